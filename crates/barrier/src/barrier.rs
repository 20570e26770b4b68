//! The barrier itself: entering, waiting, cookies.
//!
//! Invariant: entering takes no lock but the registry's, once per thread and barrier; waiting holds that one only
//! while it looks at the counts.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64 as StdAtomicU64;
use std::time::{Duration, Instant};

use crate::fault::Fault;
use crate::fence::{FenceKind, FenceUnavailable};
use crate::grace::{Grace, Parts, Step, completed, needed};
use crate::local;
use crate::primitive::{
    AtomicU64, AtomicUsize, Condvar, Mutex, MutexGuard, Ordering, PoisonError, fence, lock, nap,
};
use crate::registry::Registry;
use crate::section::{OwnedSection, Section};
use crate::slot::Slot;

/// The first pause of a waiting thread between two looks at the counts. Below it, the system call costs more than
/// the section it waits for.
const PAUSE_MIN: Duration = Duration::from_micros(10);
/// The longest pause: what a barrier may return late, and a thousand looks a second for a stalled section.
const PAUSE_MAX: Duration = Duration::from_millis(1);

/// Waits for every section in flight and blocks no new one.
///
/// See the [crate documentation](crate) for what is promised.
pub struct WriteBarrier {
    hot: Hot,
    registry: Registry,
    /// Twice the number of completed grace periods; plus one while one is in progress. Written under `grace`.
    sequence: AtomicU64,
    grace: Mutex<Grace>,
    /// Notified when a grace period completes and when its leader gives up.
    progress: Condvar,
}

/// What entering reads: a line that is written only when the index flips.
#[repr(align(128))]
struct Hot {
    id: u64,
    fence: FenceKind,
    #[cfg(any(test, loom))]
    fault: Option<Fault>,
    index: AtomicUsize,
}

/// A point in time that [`WriteBarrier::poll_state`] compares with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use = "a cookie does nothing until it is polled"]
pub struct Cookie {
    barrier: u64,
    needed: u64,
}

/// A section in flight did not end before the deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeadlineExceeded;

impl fmt::Display for DeadlineExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a write section in flight did not end before the deadline")
    }
}

impl std::error::Error for DeadlineExceeded {}

impl WriteBarrier {
    /// Makes a barrier with the cheapest fence that this process can use: [`FenceKind::Membarrier`] where the
    /// kernel has it (Linux 4.14) and no sandbox forbids it, else [`FenceKind::SeqCst`].
    pub fn new() -> Self {
        Self::build(FenceKind::best(), None)
    }

    /// Makes a barrier with this fence.
    ///
    /// # Errors
    /// [`FenceKind::Membarrier`] is not available to this process.
    pub fn with_fence(fence: FenceKind) -> Result<Self, FenceUnavailable> {
        fence.prepare()?;
        Ok(Self::build(fence, None))
    }

    /// Makes a barrier that makes a mistake.
    #[cfg(any(test, loom))]
    #[doc(hidden)]
    pub fn with_fault(fence: FenceKind, fault: Fault) -> Self {
        fence.prepare().expect("the fence to test is available");
        Self::build(fence, Some(fault))
    }

    #[cfg_attr(not(any(test, loom)), allow(unused_variables, reason = "no faults in a build for use"))]
    fn build(fence: FenceKind, fault: Option<Fault>) -> Self {
        /// Not the model's: a name, not a part of the protocol.
        static NEXT_ID: StdAtomicU64 = StdAtomicU64::new(1);
        Self {
            hot: Hot {
                // ORDERING: relaxed; only uniqueness matters.
                id: NEXT_ID.fetch_add(1, std::sync::atomic::Ordering::Relaxed),
                fence,
                #[cfg(any(test, loom))]
                fault,
                index: AtomicUsize::new(0),
            },
            registry: Registry::new(),
            sequence: AtomicU64::new(0),
            grace: Mutex::new(Grace::default()),
            progress: Condvar::new(),
        }
    }

    /// The fence in use.
    pub fn fence_kind(&self) -> FenceKind {
        self.hot.fence
    }

    /// Enters a write section, which ends when the guard is dropped, on this thread.
    ///
    /// With [`FenceKind::Membarrier`] this is a dozen plain instructions, and no atomic read-modify-write or fence
    /// among them. Never waits for a barrier; the first call of a thread takes a lock for a moment and may allocate.
    /// Threads that alternate between barriers pay a search through those that they use. Not for signal handlers.
    #[inline]
    pub fn enter(&self) -> Section<'_> {
        match self.last_slot() {
            Some(slot) => self.enter_through(slot),
            None => self.enter_for_the_first_time(),
        }
    }

    /// Enters a write section that may end on another thread.
    ///
    /// Costs four atomic read-modify-writes on a line that is not shared with other entering threads.
    #[inline]
    pub fn enter_owned(&self) -> OwnedSection {
        let held = local::last(self.hot.id).or_else(|| local::hold(self.hot.id, &self.registry));
        let slot = match held {
            // SAFETY: the pointer is from `Arc::as_ptr`, of a slot of this barrier (the ids are equal), which its
            // registry holds for as long as `self` is borrowed; the count taken here is what `from_raw` gives away.
            Some(slot) => unsafe {
                Arc::increment_strong_count(slot);
                Arc::from_raw(slot)
            },
            None => self.registry.lend(Arc::clone),
        };
        // ORDERING: relaxed; as in `enter_through`.
        let index = self.hot.index.load(Ordering::Relaxed);
        slot.enter_shared(index);
        self.light();
        OwnedSection::new(slot, index)
    }

    #[inline(always)]
    fn enter_through<'a>(&self, slot: &'a Slot) -> Section<'a> {
        // ORDERING: relaxed; no access is ordered by the index. A stale one is counted all the same: a grace period
        // looks at both indexes after its fence.
        let count = slot.enter_own(self.hot.index.load(Ordering::Relaxed));
        self.light();
        Section::new(count)
    }

    /// For a thread that has not entered this barrier yet, or another one since.
    #[cold]
    #[inline(never)]
    fn enter_for_the_first_time(&self) -> Section<'_> {
        match self.slot() {
            Some(slot) => self.enter_through(slot),
            // In a destructor that runs after this thread's slots were given back.
            None => self.registry.lend(|slot| {
                // SAFETY: the registry holds the slot for as long as `self` is borrowed.
                self.enter_through(unsafe { &*Arc::as_ptr(slot) })
            }),
        }
    }

    /// This thread's slot, if this is the barrier that it used last.
    #[inline(always)]
    fn last_slot(&self) -> Option<&Slot> {
        let slot = local::last(self.hot.id)?;
        // SAFETY: the slot is of this barrier: the ids are equal, and no other barrier ever has this one's. The
        // registry holds its slots for as long as `self` is borrowed.
        Some(unsafe { &*slot })
    }

    /// This thread's slot; `None` while the thread ends.
    #[cold]
    #[inline(never)]
    fn slot(&self) -> Option<&Slot> {
        let slot = local::hold(self.hot.id, &self.registry)?;
        // SAFETY: the slot is of this barrier's registry, which holds it for as long as `self` is borrowed.
        Some(unsafe { &*slot })
    }

    #[inline(always)]
    fn light(&self) {
        #[cfg(any(test, loom))]
        if self.hot.fault == Some(Fault::NoLightFence) {
            return;
        }
        self.hot.fence.light();
    }

    /// The write barrier: returns once every section that began before the call has ended.
    ///
    /// Blocks no new section and does not wait for sections that began after the index was flipped, so a stream of
    /// them cannot starve it. Concurrent calls share grace periods. Sleeps while it waits; returns at most a
    /// millisecond or so after the last section has left.
    ///
    /// # Panics
    /// The calling thread is inside a section of this barrier, which could not end before the return. (Only
    /// [`Section`]s are noticed; with an [`OwnedSection`] that it keeps itself it waits for ever.)
    ///
    /// `membarrier(2)` was taken away from the process (by a seccomp filter) after the barrier was made: there is no
    /// way to order the sections that are in flight any more.
    pub fn synchronize(&self) {
        assert!(
            !local::inside(self.hot.id),
            "synchronize inside a section of the same barrier would never return"
        );
        let waited = self.wait(self.start_poll(), None);
        debug_assert_eq!(waited, Ok(()), "a wait without a deadline");
    }

    /// As [`synchronize`](Self::synchronize), but gives up at `deadline`.
    ///
    /// With a deadline in the past it looks once and does not wait. What was reached is kept: a later call goes on
    /// from there, and is as right as if this one had not been.
    ///
    /// # Errors
    /// A section that began before the call may still be in flight.
    ///
    /// # Panics
    /// `membarrier(2)` was taken away from the process. Inside a section it does not panic: the deadline passes.
    pub fn synchronize_deadline(&self, deadline: Instant) -> Result<(), DeadlineExceeded> {
        self.wait(self.start_poll(), Some(deadline))
    }

    /// As [`synchronize_deadline`](Self::synchronize_deadline), for the sections that began before `cookie` was
    /// taken; without a deadline it waits as long as it takes.
    ///
    /// # Errors
    /// A section that began before `cookie` was taken may still be in flight.
    ///
    /// # Panics
    /// `membarrier(2)` was taken away from the process, or the cookie is of another barrier.
    pub fn synchronize_cookie(
        &self,
        cookie: Cookie,
        deadline: Option<Instant>,
    ) -> Result<(), DeadlineExceeded> {
        self.wait(cookie, deadline)
    }

    /// Remembers this moment.
    ///
    /// There is no thread behind a barrier: a grace period begins and moves on when someone polls or waits.
    pub fn start_poll(&self) -> Cookie {
        // ORDERING: pairs with fence(SeqCst) in `FenceKind::heavy`: what the caller did before is visible to every
        // section that the grace period it needs does not wait for.
        fence(Ordering::SeqCst);
        Cookie { barrier: self.hot.id, needed: needed(&self.sequence) }
    }

    /// Whether every section that began before the cookie was taken has ended. Once true it stays true.
    ///
    /// Does not wait; moves the grace period on when it must, which may cost a `membarrier(2)`.
    ///
    /// # Panics
    /// `membarrier(2)` was taken away from the process, or the cookie is of another barrier.
    pub fn poll_state(&self, cookie: Cookie) -> bool {
        if self.reached(cookie) {
            return true;
        }
        let mut grace = lock(&self.grace);
        loop {
            if self.reached(cookie) {
                return true;
            }
            let step = self.step(&mut grace);
            match step {
                Ok(Step::Waiting) => return false,
                Ok(Step::Flipped | Step::Completed) => {}
                Err(error) => {
                    drop(grace);
                    fence_failed(&error);
                }
            }
        }
    }

    fn reached(&self, cookie: Cookie) -> bool {
        assert_eq!(cookie.barrier, self.hot.id, "a cookie of another barrier");
        completed(&self.sequence) >= cookie.needed
    }

    fn wait(&self, cookie: Cookie, deadline: Option<Instant>) -> Result<(), DeadlineExceeded> {
        let mut grace = lock(&self.grace);
        while grace.led {
            if self.reached(cookie) {
                return Ok(());
            }
            let left = deadline.map(time_left).transpose()?;
            grace = self.sleep(grace, left);
        }
        grace.led = true;
        let (mut grace, led) = self.lead(grace, cookie, deadline);
        grace.led = false;
        self.wake(&grace);
        drop(grace);
        led.unwrap_or_else(|error| fence_failed(&error))
    }

    /// Moves grace periods on until the cookie is reached or the deadline has passed.
    #[allow(clippy::type_complexity, reason = "said once")]
    fn lead<'a>(
        &'a self,
        mut grace: MutexGuard<'a, Grace>,
        cookie: Cookie,
        deadline: Option<Instant>,
    ) -> (MutexGuard<'a, Grace>, io::Result<Result<(), DeadlineExceeded>>) {
        let mut pause = PAUSE_MIN;
        loop {
            if self.reached(cookie) {
                return (grace, Ok(Ok(())));
            }
            match self.step(&mut grace) {
                Err(error) => return (grace, Err(error)),
                Ok(Step::Flipped | Step::Completed) => {
                    pause = PAUSE_MIN;
                    continue;
                }
                Ok(Step::Waiting) => {}
            }
            let left = match deadline.map(time_left).transpose() {
                Ok(left) => left.unwrap_or(Duration::MAX),
                Err(exceeded) => return (grace, Ok(Err(exceeded))),
            };
            grace = self.sleep(grace, Some(pause.min(left)));
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Gives the lock up until there is progress, at most for `pause`.
    fn sleep<'a>(
        &'a self,
        mut grace: MutexGuard<'a, Grace>,
        pause: Option<Duration>,
    ) -> MutexGuard<'a, Grace> {
        grace.asleep += 1;
        grace = match pause {
            Some(pause) => nap(&self.grace, &self.progress, grace, pause),
            None => self.progress.wait(grace).unwrap_or_else(PoisonError::into_inner),
        };
        grace.asleep -= 1;
        grace
    }

    /// Wakes who sleeps, if anyone: the notification is a system call in any case.
    fn wake(&self, grace: &Grace) {
        if grace.asleep > 0 {
            self.progress.notify_all();
        }
    }

    fn step(&self, grace: &mut Grace) -> io::Result<Step> {
        #[cfg(any(test, loom))]
        let fault = self.hot.fault;
        #[cfg(not(any(test, loom)))]
        let fault = None;
        let step = grace.step(&Parts {
            fence: self.hot.fence,
            index: &self.hot.index,
            sequence: &self.sequence,
            registry: &self.registry,
            fault,
        });
        if let Ok(Step::Completed) = step {
            self.wake(grace);
        }
        step
    }

    /// The number of sections in flight, for a status display: sections come and go while it counts.
    pub fn sections_in_flight(&self) -> usize {
        // One count may be read before and another after a section moves on; the sum is never far off.
        self.registry.slots().iter().map(|slot| slot.sections()).sum()
    }

    /// The number of grace periods completed so far.
    pub fn grace_periods(&self) -> u64 {
        completed(&self.sequence)
    }

    /// The number of slots that threads hold or have held at the same time.
    #[cfg(all(test, not(loom)))]
    pub(crate) fn slots(&self) -> usize {
        self.registry.slots().len()
    }
}

impl Default for WriteBarrier {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for WriteBarrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteBarrier")
            .field("fence", &self.hot.fence)
            .field("grace_periods", &self.grace_periods())
            .field("sections_in_flight", &self.sections_in_flight())
            .finish_non_exhaustive()
    }
}

fn time_left(deadline: Instant) -> Result<Duration, DeadlineExceeded> {
    match deadline.saturating_duration_since(Instant::now()) {
        Duration::ZERO => Err(DeadlineExceeded),
        left => Ok(left),
    }
}

#[cold]
fn fence_failed(error: &io::Error) -> ! {
    panic!("membarrier(2) worked when the write barrier was made and now fails: {error}");
}
