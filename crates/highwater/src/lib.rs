//! The one binary: tracker process, socket server, commands and demo.
//!
//! | module | idea |
//! |---|---|
//! | `cli` | the command line, and which command it means |
//! | `commands` | one file per command |
//! | `demo` | the story, checked |
//! | `exit` | exit status |
//! | `output`, `quote` | how changes are printed |
//! | [`server`] | the socket: bounded, for the owner only |
//! | `tracking` | from the checks before tracking to the clean stop |
//! | [`replica`] | a reference consumer, for the demo and for tests |
//!
//! This is a library only so that tests can use [`server`] and [`replica`]; its interface is the command line.

#![deny(unsafe_code)]

mod cli;
mod commands;
mod demo;
mod exit;
mod output;
mod quote;
pub mod replica;
pub mod server;
mod tracking;

pub use cli::main;
