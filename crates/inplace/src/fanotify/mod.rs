//! The source that hears of changes from fanotify.
//!
//! A reader keeps the kernel's queue short and puts what it says into a [`Digest`](digest::Digest). At a checkpoint, in this order:
//!
//! 1. The files that can change without an event are sampled (`writers`).
//! 2. The write barrier: every modification that began before has ended, and has queued its event.
//! 3. The queue is read to its end: that is the cut.
//! 4. What has happened between the last cut and this one is found out (`resolve`) and recorded.
//!
//! Nothing is recorded before a checkpoint: until then the digest is all there is, and it is lost when the tracker is killed. So all
//! that has changed since the stable horizon counts as a gap then.

mod below;
mod bulkstat;
mod digest;
mod group;
mod holders;
mod queue;
mod relinked;
mod resolve;
mod source;
mod tree_version;
mod writers;

pub use source::{Counters, Fanotify, OpenError};

/// With a quick hash function, seeded anew for each map: a checkpoint looks each object up a dozen times.
type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::fast::RandomState>;
type HashSet<K> = std::collections::HashSet<K, foldhash::fast::RandomState>;
