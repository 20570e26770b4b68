//! Sources that track a mounted filesystem in place: nothing is mounted over it, and its users notice nothing.
//!
//! The kernel tells of changes after they were made. So a batch is complete only if the changes that were under way have
//! ended when the last event is read: that is what the [`WriteBarrier`] is for.
//!
//! [`barrier`] is the one in BPF, which is of use alone too. [`Fanotify`] is the source.

pub mod barrier;
mod fanotify;
mod iterator;
mod loader;
mod words;
mod write_barrier;

pub use fanotify::{Counters, Fanotify, OpenError};
pub use write_barrier::{BarrierError, CarriedOver, Freeze, Holdup, WriteBarrier};
