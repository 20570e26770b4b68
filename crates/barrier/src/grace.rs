//! The grace period: a state machine that whoever waits or polls moves on, step by step.
//!
//! Invariant: a grace period completes only after each count of each slot that existed after its fence has been seen
//! at zero after its fence. Everything else here is there so that this happens soon.
//!
//! ```text
//!         begin: sequence += 1, fence            every count seen at zero
//!  idle ------------------------------> scan ------------------------------> idle, sequence += 1
//!                                      |    ^
//!                                      +----+ flip the index, once, when the inactive one has drained
//! ```

use std::io;

use crate::fault::Fault;
use crate::fence::FenceKind;
use crate::primitive::{AtomicU64, AtomicUsize, Ordering};
use crate::registry::Registry;
use crate::slot::{INDEXES, Slot};

/// What the barrier knows about the grace period in progress. Behind a lock that no section ever takes.
#[derive(Debug, Default)]
pub(crate) struct Grace {
    /// A thread waits and moves the grace period on; others may sleep.
    pub(crate) led: bool,
    /// How many threads sleep until there is progress.
    pub(crate) asleep: usize,
    /// The fence of the grace period has been done and `pending` is of this grace period.
    begun: bool,
    flipped: bool,
    /// For each slot that existed after the fence, the counts not yet seen at zero.
    pending: Vec<u8>,
}

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// The grace period is over.
    Completed,
    /// The index was flipped: look again at once.
    Flipped,
    /// A section is still open.
    Waiting,
}

/// The parts of a barrier that a grace period works on.
pub(crate) struct Parts<'a> {
    pub(crate) fence: FenceKind,
    /// The index that new sections use.
    pub(crate) index: &'a AtomicUsize,
    /// Twice the number of completed grace periods; plus one while one is in progress.
    pub(crate) sequence: &'a AtomicU64,
    pub(crate) registry: &'a Registry,
    pub(crate) fault: Option<Fault>,
}

impl Grace {
    /// Begins a grace period if none is in progress, and looks at every pending count once.
    ///
    /// # Errors
    /// The fence failed; the grace period has not begun, and the next step tries again.
    pub(crate) fn step(&mut self, parts: &Parts<'_>) -> io::Result<Step> {
        if !self.begun {
            self.begin(parts)?;
        }
        // ORDERING: relaxed; the lock around `self` orders all writers of the index.
        let active = parts.index.load(Ordering::Relaxed);
        let left = {
            let slots = parts.registry.slots();
            self.pending.iter_mut().zip(slots.iter()).fold(0, |left, (pending, slot)| {
                if *pending != 0 {
                    *pending = slot.drain(*pending);
                }
                left | *pending
            })
        };
        let must_flip = matches!(parts.fault, Some(Fault::AlwaysFlip | Fault::ActiveIndexOnly));
        if left == 0 && (self.flipped || !must_flip) {
            self.begun = false;
            // ORDERING: release; pairs with the acquire in `completed`: the acquire loads of the zeros above happen
            // before a thread that sees the grace period completed goes on.
            parts.sequence.store((parts.sequence.load(Ordering::Relaxed) | 1) + 1, Ordering::Release);
            return Ok(Step::Completed);
        }
        let may_flip = !self.flipped && parts.fault != Some(Fault::NeverFlip);
        if may_flip && left & Slot::bits((active + 1) % INDEXES) == 0 {
            // ORDERING: relaxed; no access is ordered by the index. It decides only how long the wait is.
            parts.index.store((active + 1) % INDEXES, Ordering::Relaxed);
            self.flipped = true;
            return Ok(Step::Flipped);
        }
        Ok(Step::Waiting)
    }

    fn begin(&mut self, parts: &Parts<'_>) -> io::Result<()> {
        // Odd also after a step whose fence failed. A cookie taken from now on needs the next grace period.
        // ORDERING: ordered against the load in `needed` by the fences next to both. Release pairs with the acquire in
        // `completed`: one who reads this odd number learns of the grace periods before it, and must have what they
        // acquired; the lock has handed that to this thread. Writers hold the lock, so their own load is relaxed.
        parts.sequence.store(parts.sequence.load(Ordering::Relaxed) | 1, Ordering::Release);
        if parts.fault != Some(Fault::NoHeavyFence) {
            parts.fence.heavy(parts.registry)?;
        }
        let all = match parts.fault {
            Some(Fault::NoWait) => 0,
            // ORDERING: relaxed; the lock around `self` orders all writers of the index.
            Some(Fault::ActiveIndexOnly) => Slot::bits(parts.index.load(Ordering::Relaxed)),
            _ => Slot::bits(0) | Slot::bits(1),
        };
        // Slots added after this are held by threads that see everything from before the fence: Registry::take.
        let slots = parts.registry.slots().len();
        self.pending.clear();
        self.pending.resize(slots, all);
        self.flipped = false;
        self.begun = true;
        Ok(())
    }
}

/// The number of grace periods that must have completed before one has begun after this call and completed.
///
/// The caller does a full fence first.
pub(crate) fn needed(sequence: &AtomicU64) -> u64 {
    // Idle (2k): the next one, k+1. In progress (2k+1): it may have begun too early for the caller, so k+2.
    // ORDERING: relaxed; the fence before it pairs with the one in `FenceKind::heavy`: a grace period whose begin
    // this load does not see does its fence after the caller's.
    (sequence.load(Ordering::Relaxed) + 3) / 2
}

/// The number of completed grace periods.
pub(crate) fn completed(sequence: &AtomicU64) -> u64 {
    // ORDERING: acquire; pairs with the release in `step`.
    sequence.load(Ordering::Acquire) / 2
}
