//! A checked model of the protocol.
//!
//! This is docs/protocol.md in executable form, small enough that all of it can be tried: two writers that do a few operations on a
//! few objects, a checkpoint, the stable horizon, one or two consumers that ask, read, read ahead, ack and die, and crashes that
//! leave any part of what was not synced. The search takes every step of every one of them in every order within the bounds of a
//! [`Scenario`], and checks after each:
//!
//! - **G1** when no operation is in flight, everybody takes one more batch, and holds exactly the tree; also who dies first and asks again;
//! - **G2** when a batch is handed out, no operation is in flight that began before its checkpoint;
//! - **G3** no operation is ever kept from going on by the tracker;
//! - **G4** what recovery tells leads from the tree at the stable horizon, and from the tree before the crash, to what is on disk.
//!
//! Each step that matters is taken away once ([`Mutation`]), and the search must find what goes wrong.
//!
//! What is left out, and tested elsewhere: how records become lines when things move (`plan_model` in the tracker; here everything that
//! has moved is told as a whole), hard links, mappings and direct I/O (carried in every batch), coarse timestamps, gaps and
//! catch-up, a failing or damaged journal, writers that outlive a killed tracker, and what this code and the tracker's may do differently.

mod checkpoint;
mod crash;
mod horizon;
mod journal;
mod mutation;
mod scenario;
mod search;
mod state;
mod steps;
mod story;
mod tree;
mod writer;

pub use mutation::Mutation;
pub use scenario::{SCENARIOS, Scenario};
pub use search::Outcome;
pub use state::{Model, State, Violation};
pub use steps::Action;
