//! A slot: the counts of the open sections that entered through one thread.
//!
//! Invariants:
//! - `own` is written by one thread only, the one that holds the slot, so plain loads and stores do for it. A slot
//!   that nobody holds may still have sections (a guard that outlives its thread's locals, or a forgotten one); then
//!   only their thread writes to it, and nobody takes the slot until both counts are zero.
//! - `shared` is written by anyone, with read-modify-write instructions, at any time.
//! - A count is the number of open sections, never a sum of halves in different places: a section leaves in the
//!   same count that it entered in.

use crate::primitive::{AtomicBool, AtomicUsize, Ordering};

/// The number of indexes that sections are spread over: one that new sections use and one that drains.
pub(crate) const INDEXES: usize = 2;

/// One thread's counts, on two cache lines of their own (128 because CPUs fetch lines in pairs).
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Slot {
    /// Open [`Section`](crate::Section)s per index. Written by the holder only.
    own: [AtomicUsize; INDEXES],
    /// A live thread holds this slot. Set under the registry's lock.
    held: AtomicBool,
    /// The loom model of an interrupt by membarrier(2): set by the barrier, cleared by the thread.
    #[cfg(loom)]
    interrupt: AtomicBool,
    shared: Shared,
}

/// Open [`OwnedSection`](crate::OwnedSection)s per index, away from the line that the holder writes to.
#[derive(Debug)]
#[repr(align(64))]
struct Shared([AtomicUsize; INDEXES]);

impl Slot {
    /// A slot held by the calling thread.
    pub(crate) fn new_held() -> Self {
        Self {
            own: [AtomicUsize::new(0), AtomicUsize::new(0)],
            held: AtomicBool::new(true),
            #[cfg(loom)]
            interrupt: AtomicBool::new(false),
            shared: Shared([AtomicUsize::new(0), AtomicUsize::new(0)]),
        }
    }

    /// Counts a section of the holder. Only the holder may call this.
    #[inline(always)]
    pub(crate) fn enter_own(&self, index: usize) -> &AtomicUsize {
        let count = &self.own[index % INDEXES];
        self.interrupt_point();
        // ORDERING: relaxed; only this thread writes the count. What orders the store against the section is the
        // light fence that the caller does next.
        count.store(count.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        self.interrupt_point();
        count
    }

    /// Counts a section that any thread may leave.
    #[inline(always)]
    pub(crate) fn enter_shared(&self, index: usize) {
        self.interrupt_point();
        // ORDERING: relaxed, as in `enter_own`. As a read-modify-write it continues the release sequence of every
        // earlier `leave_shared`, so a barrier that reads a later zero still acquires from those.
        self.shared.0[index % INDEXES].fetch_add(1, Ordering::Relaxed);
        self.interrupt_point();
    }

    /// Ends a section counted by `enter_shared` with the same index.
    #[inline(always)]
    pub(crate) fn leave_shared(&self, index: usize) {
        // ORDERING: release; pairs with the acquire load in `is_zero`: what the section did happens before the
        // return of the barrier that waited for it.
        self.shared.0[index % INDEXES].fetch_sub(1, Ordering::Release);
    }

    /// Drops the counts of `pending` that are zero now; a bit per count, see [`Slot::bits`].
    pub(crate) fn drain(&self, pending: u8) -> u8 {
        let mut left = 0;
        for index in 0..INDEXES {
            let [own, shared] = [OWN[index], SHARED[index]];
            if pending & own != 0 && !is_zero(&self.own[index]) {
                left |= own;
            }
            if pending & shared != 0 && !is_zero(&self.shared.0[index]) {
                left |= shared;
            }
        }
        left
    }

    /// The bits of both counts of `index`.
    pub(crate) const fn bits(index: usize) -> u8 {
        OWN[index] | SHARED[index]
    }

    /// Takes the slot for the calling thread, if it is free. The caller holds the registry's lock.
    pub(crate) fn take(&self) -> bool {
        // ORDERING: acquire; pairs with the release in `release`: the last holder's counts are visible.
        if self.held.load(Ordering::Acquire) || !self.own.iter().all(is_zero) {
            return false;
        }
        // ORDERING: relaxed; takers exclude each other by the registry's lock.
        self.held.store(true, Ordering::Relaxed);
        true
    }

    /// Gives the slot back. The calling thread must not enter through it any more; sections still open in it keep it
    /// from being taken until they have left.
    pub(crate) fn release(&self) {
        // ORDERING: release; pairs with the acquire in `take`.
        self.held.store(false, Ordering::Release);
    }

    /// Whether the holder, which is the caller, has an open section of its own.
    pub(crate) fn inside(&self) -> bool {
        // ORDERING: relaxed; only this thread writes them.
        self.own.iter().any(|count| count.load(Ordering::Relaxed) != 0)
    }

    /// The number of open sections, as far as this thread sees it.
    pub(crate) fn sections(&self) -> usize {
        // ORDERING: relaxed; a diagnostic.
        self.own.iter().chain(&self.shared.0).map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// A place between two instructions where the model of membarrier(2) may interrupt this thread.
    #[cfg(not(loom))]
    #[inline(always)]
    #[allow(clippy::unused_self, reason = "has a body under loom")]
    fn interrupt_point(&self) {}

    #[cfg(loom)]
    fn interrupt_point(&self) {
        // ORDERING: acquire and release; the hand-shake of an inter-processor interrupt. The fence is what the
        // kernel executes in the interrupt.
        if self.interrupt.load(Ordering::Acquire) {
            crate::primitive::fence(Ordering::SeqCst);
            self.interrupt.store(false, Ordering::Release);
        }
    }

    #[cfg(loom)]
    pub(crate) fn interrupt(&self) {
        // ORDERING: release; pairs with the acquire in `interrupt_point`.
        self.interrupt.store(true, Ordering::Release);
    }

    #[cfg(loom)]
    pub(crate) fn interrupted(&self) -> bool {
        // ORDERING: acquire; pairs with the release in `interrupt_point` and, for a thread that has ended, in
        // `release`.
        !self.held.load(Ordering::Acquire) || !self.interrupt.load(Ordering::Acquire)
    }
}

const OWN: [u8; INDEXES] = [1 << 0, 1 << 1];
const SHARED: [u8; INDEXES] = [1 << 2, 1 << 3];

/// Ends a section of the thread that entered it with [`Slot::enter_own`].
#[inline(always)]
pub(crate) fn leave_own(count: &AtomicUsize) {
    // ORDERING: release; pairs with the acquire load in `is_zero`. The load is relaxed: only this thread writes the
    // count. A zero that a barrier reads was always written here, after every earlier section of the thread.
    count.store(count.load(Ordering::Relaxed) - 1, Ordering::Release);
}

fn is_zero(count: &AtomicUsize) -> bool {
    // ORDERING: acquire; pairs with the release in `leave_own` and `leave_shared`.
    count.load(Ordering::Acquire) == 0
}
