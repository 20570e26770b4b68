//! A write barrier: waits for every section in flight and blocks no new one.
//!
//! A *write section* is the span of one operation that modifies something. The *write barrier*,
//! [`WriteBarrier::synchronize`], returns once every section that began before the call has ended. It is the part of
//! SRCU (the Linux kernel's sleepable read-copy-update) that has nothing to do with reading or copying: a section may
//! sleep, for seconds, and any number may be entered while a barrier waits.
//!
//! ```
//! use std::sync::atomic::{AtomicU64, Ordering};
//! use highwater_barrier::WriteBarrier;
//!
//! static PERIOD: AtomicU64 = AtomicU64::new(0);
//! let barrier = WriteBarrier::new();
//!
//! // A writer: everything between these braces counts for the period that it loads.
//! {
//!     let _section = barrier.enter();
//!     let period = PERIOD.load(Ordering::Relaxed);
//!     // ... record the intent in `period`, do the operation ...
//!     # let _ = period;
//! }
//!
//! // A checkpoint: after the barrier nothing is recorded in the old period any more.
//! let old = PERIOD.fetch_add(1, Ordering::Relaxed);
//! barrier.synchronize();
//! println!("period {old} is complete");
//! ```
//!
//! # What is promised
//!
//! **Order.** For every section S and every barrier B, at least one of these holds:
//!
//! - *B waits for S*: everything S does happens before B returns; or
//! - *S began after B*: everything that happens before the call of B is visible to S from its first access.
//!
//! So a section that loads the old period above is over, and its effects are visible, when the barrier returns. The
//! accesses themselves may be relaxed. For a cookie, "the call of B" is [`WriteBarrier::start_poll`] and "B returns"
//! is the [`WriteBarrier::poll_state`] that answers true.
//!
//! **Nobody waits for a barrier.** Entering and leaving take no lock that a waiting thread keeps. (The first section
//! of a thread takes a lock that others hold for a pass over the threads' counts.)
//!
//! **No starvation.** A barrier waits for one grace period, or for the rest of one in progress and then for its own. A
//! grace period waits for the sections that entered before it flipped the index, and for at most one late one per
//! thread; sections that enter after that are not waited for. A section that has not ended when a deadline passes is
//! waited for again by the next barrier, first, before the index is flipped.
//!
//! **Sharing.** Barriers that are called during one grace period share the next one.
//!
//! **Memory** is 128 bytes for each thread that was able to enter at the same time; a thread that ends gives its part
//! to the next one.
//!
//! # What is not
//!
//! - It is not a lock: sections run at the same time as each other and as the code before and after a barrier.
//! - A forgotten guard ([`std::mem::forget`], a leaked `Arc`) is a section that never ends.
//! - Latency: a waiting thread looks at the counts after 10 µs, 20 µs, ... and then every millisecond, so it may
//!   return that much (and the kernel's timer slack) after the last section has ended. That is the price for a
//!   leaving side that does not know whether anyone waits.
//! - Fairness between waiting threads, and real-time bounds.
//! - Signal handlers must not enter: the first section of a thread allocates.
//! - After `fork`, the child has the counts of its parent's threads but not the threads: sections that were open in
//!   another thread never end there. Make a new barrier in the child.
//!
//! # How it works
//!
//! Each thread has a *slot* in each barrier it has entered, with a *count* of its open sections for each of two
//! *indexes*. Entering adds one to the thread's count of the index that is active, leaving subtracts one from the
//! same count. Only the thread itself writes these counts, so both are a plain load and store. An [`OwnedSection`],
//! which may end on another thread, uses a second pair of counts in the same slot with atomic read-modify-writes. A
//! count is of open sections; it is not half of a pair of sums as in the kernel, so there is no order in which sums
//! must be taken, and no overflow of one against the other.
//!
//! ```text
//!  section                              grace period
//!
//!  i = index                            F  heavy fence
//!  count[i] += 1                           for each slot: look at count[0] and count[1] until each was zero once;
//!  E  light fence                            when all of the inactive index were: flip the index
//!     ... the operation ...
//!  count[i] -= 1  (release)                a zero is read with acquire
//! ```
//!
//! The fences are asymmetric ([`FenceKind::Membarrier`]): E is a compiler fence, and F is `membarrier(2)`, which makes
//! every running thread of the process execute a full fence. Where that is not available, both are
//! `fence(SeqCst)`.
//!
//! ## Why it is right
//!
//! *Lemma.* Let S be a section whose thread had its slot before F. If S does not see everything from before F, then a
//! look at its count after F finds S, or finds that S has ended.
//!
//! With `SeqCst`: of the two fences E and F one comes first in the single order of all such fences. If F is first, all
//! accesses of S see what was before F. If E is first, all loads after F see the count with S in it, or a later value
//! of that count. With `membarrier`: the kernel puts a full fence M between two instructions of S's thread, ordered
//! with F. If M is before the store to the count it is before all accesses of S, which see what was before F. If M is
//! after that store, loads after F see it. The compiler fence keeps the two cases apart: without it an access of S
//! could be moved above the store, and M between them.
//!
//! *A zero is enough.* A later value of the count that is zero was stored by a leaving section when none was open, so
//! S had left. That store is a release after everything S did (for the shared counts: S's own release, or one that
//! continues its release sequence), the look is an acquire: everything S did happens before. So a grace period that
//! has found **each count of both indexes at zero once, at any time after F**, has waited for all such sections.
//!
//! *A slot made or handed on after F* is not looked at. Its new owner took the registry's lock after the grace period
//! had held it, and did a full fence, so it sees everything from before F.
//!
//! *Which F?* One that comes after the barrier's call. `sequence` is odd while a grace period is in progress, and made
//! odd before F. A caller does a fence and then loads it: if it reads 2k, the F of grace period k+1 comes after the
//! caller's fence (were it before, the caller would have read 2k+1), and k+1 is the one to wait for. If it reads 2k+1,
//! that F may have come too early, and it is k+2.
//!
//! ## Why it ends: one flip, two looks
//!
//! Nothing above depends on the index. Were there only one, a grace period would still be right, but with sections that
//! overlap for ever its count might never be found at zero. So new sections are led away from the counts that are
//! being waited for. The inactive counts drain first: nobody enters there but a thread that had loaded the index
//! before an earlier flip and counts itself only now, once. Then the index is flipped and the formerly active counts
//! drain in the same way.
//!
//! One flip in a grace period is enough *because the inactive counts are looked at too*. Looking only at the index
//! that was active would be wrong: a thread loads index 0 and is preempted; a grace period flips to 1 and ends; the
//! thread counts itself in 0 and begins its section; the next grace period finds index 1 active and empty and returns
//! with the section open. (tests/loom.rs finds this when asked to.) The kernel's SRCU and liburcu look twice for the
//! same reason. A grace period that finds everything at zero at once does not flip at all.
//!
//! ## How it is checked
//!
//! tests/loom.rs runs the code of this crate under loom with both fences, and says what loom cannot see;
//! src/stress.rs runs it on threads. Both also run it with deliberate mistakes, which must be found.

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

/// Makes the process ready for its first write barrier. To be called while it has one thread, or not at all.
///
/// [`FenceKind::Membarrier`] has to be registered with the kernel once. With several threads that takes a grace period of RCU, 10 to
/// 30 ms; with one it takes nothing (`sync_runqueues_membarrier_state` in the kernel). Where `membarrier(2)` is missing, nothing happens.
pub fn register_process() {
    let _ = FenceKind::best();
}
