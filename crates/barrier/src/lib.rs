//! A write barrier: waits for every section in flight and blocks no new one.

mod barrier;
mod fault;
mod fence;
mod grace;
mod local;
mod primitive;
mod registry;
mod section;
mod slot;
#[cfg(all(test, not(loom)))]
mod stress;

pub use barrier::{Cookie, DeadlineExceeded, WriteBarrier};
#[cfg(any(test, loom))]
#[doc(hidden)]
pub use fault::Fault;
pub use fence::{FenceKind, FenceUnavailable};
pub use section::{OwnedSection, Section};
