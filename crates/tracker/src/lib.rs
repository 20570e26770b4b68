//! Write sections, periods, checkpoints, change sets and consumers of a tracked volume.
//!
//! A [`Tracker`] keeps the state of one volume. A [`Source`] sees the modifications of its tree and wraps each one in a write
//! [`Section`]. Consumers ask [`Tracker::changes`] and [`Tracker::ack`] what they have taken.
//!
//! | module | what it keeps |
//! |---|---|
//! | `section` | the order of one operation: intent, operation, record, answer |
//! | `coverage` | what has an intent that recovery will find |
//! | `log` | the record lock: the order of records, the period |
//! | `writers` | what can change without an operation |
//! | `checkpoint` | barrier, flip, tails, settle: a complete batch |
//! | `horizon` | what is on stable storage |
//! | `window`, `plan` | from records to lines that are safe to apply |
//! | `query`, `consumers` | cursors |
//! | `recovery`, `catch_up`, `walk` | after a crash, after a gap |
//! | `mutation` | mistakes, for the simulation that must find them |
//! | `driver` | time and waiting, in a simulation |
//!
//! docs/protocol.md argues why the guarantees hold.

#![forbid(unsafe_code)]

mod catch_up;
mod change;
mod checkpoint;
mod consumers;
mod coverage;
mod cursor;
mod driver;
mod error;
#[cfg(test)]
mod fuzz;
mod handle;
mod horizon;
mod line;
mod log;
#[cfg(not(feature = "mutants"))]
mod mutation;
#[cfg(feature = "mutants")]
pub mod mutation;
mod plan;
#[cfg(feature = "fuzz")]
pub mod plan_model;
#[cfg(all(test, not(feature = "fuzz")))]
mod plan_model;
mod query;
mod record;
mod recovery;
mod section;
mod source;
pub mod state_file;
mod tracker;
mod walk;
mod window;
mod writers;

pub use change::{Change, EntryTimes, Intent, Name, ObjectType, Place, Sample, WriterMode};
pub use cursor::{CheckpointId, Cursor, ParseCursorError};
pub use driver::Driver;
pub use error::{OpenVolumeError, RequestError, SectionError};
pub use handle::{FileHandle, HANDLE_BYTES_MAX};
pub use highwater_barrier::register_process;
pub use line::{Line, LineKind};
pub use query::{Answer, FreshReason, Since};
pub use record::{Body, DecodeError};
pub use recovery::Opening;
pub use section::Section;
pub use source::{Entry, Source};
pub use tracker::{Config, Consumer, Durability, OnFull, Status, Tracker, VolumeFacts};
