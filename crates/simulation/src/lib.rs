//! Tests of the crash guarantee: the real journal and the real tracker on simulated storage, over a simulated tree.
//!
//! One seed is one run. A run is a list of actions ([`action`]): operations of programs, step by step, checkpoints, moves of the
//! stable horizon, consumers that ask, read, ack and die, and ends of the tracker's life. At chosen moments of a run, or at all,
//! everything is copied and ended: the power fails or the process is killed; the storage keeps, drops or tears what was not
//! synced ([`storage`]), the tree keeps what had reached its disk ([`tree`]), and the tracker is opened again.
//!
//! # What has to hold then
//!
//! - No consumer that acked is forgotten.
//! - Every consumer asks once more, applies what it is told ([`replica`]), and holds what is there. Among them are two that are
//!   made up at each end: one that read the whole tree at that moment, one that read it at the stable horizon. So every object whose
//!   durable state differs from either is handed out again.
//! - No answer is fresh without a reason.
//! - When an answer has been handed out, nothing is in flight that was when it was asked for.
//!
//! Too much may be told, too little may not.

#![forbid(unsafe_code)]

pub mod ace;
pub mod action;
mod explore;
mod operation;
pub mod random;
pub mod replica;
mod sim;
mod source;
pub mod storage;
pub mod tree;
mod world;

pub use explore::{
    Case, Effort, Ending, Failure, Tally, case_of, exhaust, explore, minimise, small_case_of, trace,
};
pub use world::Settings;
