//! The protocol under the model checker, with the code that ships.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p highwater-barrier --test loom --release
//! ```
//!
//! The property: a thread changes `period`, does a barrier, and then reads what sections that read the old period have
//! noted. When all threads have ended, this must be all that was noted: a section that was still in flight, or whose
//! effects were not ordered before the return of the barrier, is missing. All accesses are relaxed, so nothing but the
//! barrier orders them. Beside each note is a cell that is not atomic: loom reports a data race in executions where it
//! would not have shown a stale note.
//!
//! What loom cannot see: the CPU. `FenceKind::SeqCst` is checked as it is. `FenceKind::Membarrier` is checked against
//! a model of membarrier(2), in which every thread that holds a slot executes a full fence at one of its interrupt
//! points (around the count) or has ended before the call returns; that the kernel and the CPU do this, and that the
//! compiler keeps the order across a compiler fence, is taken from their documentation. Time does not exist: a
//! deadline has passed or there is none. With three threads preemptions are bounded (3 or 4, or LOOM_MAX_PREEMPTIONS).
#![cfg(loom)]

use std::sync::Arc;
use std::time::Instant;

use highwater_barrier::{DeadlineExceeded, Fault, FenceKind, WriteBarrier};
use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread;

/// A journal of one period: written in sections that read period 0, read by the checkpoint that ended it.
struct Volume {
    barrier: WriteBarrier,
    period: AtomicUsize,
    /// What each writer noted in period 0.
    notes: [AtomicUsize; 2],
    /// The same, in cells that two threads must not touch at once.
    cells: Option<[UnsafeCell<()>; 2]>,
}

impl Volume {
    fn new(barrier: WriteBarrier) -> Arc<Self> {
        let cells = Some([UnsafeCell::new(()), UnsafeCell::new(())]);
        Arc::new(Self { barrier, period: AtomicUsize::new(0), notes: Default::default(), cells })
    }

    /// For mistakes: what is missed is told by the notes, and not by a panic in the middle of a section.
    fn with_fault(fence: FenceKind, fault: Fault) -> Arc<Self> {
        let barrier = WriteBarrier::with_fault(fence, fault);
        Arc::new(Self { barrier, period: AtomicUsize::new(0), notes: Default::default(), cells: None })
    }

    /// What an operation does inside its section.
    fn modify(&self, writer: usize) {
        if self.period.load(Ordering::Relaxed) == 0 {
            let note = &self.notes[writer];
            note.store(note.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
            if let Some(cells) = &self.cells {
                cells[writer].with_mut(|_| ());
            }
        }
    }

    fn flip_period(&self) {
        self.period.store(1, Ordering::Relaxed);
    }

    /// What a checkpoint reads after the barrier; and, when all writers have been joined, what there was to read.
    fn notes(&self) -> [usize; 2] {
        for cell in self.cells.iter().flatten() {
            cell.with(|_| ());
        }
        [self.notes[0].load(Ordering::Relaxed), self.notes[1].load(Ordering::Relaxed)]
    }

    fn checkpoint(&self) -> [usize; 2] {
        self.flip_period();
        self.barrier.synchronize();
        self.notes()
    }
}

const MISSED: &str = "a section of the old period was not waited for";

/// For models of three threads. The bound is on preemptions, not on what a load may return.
fn model(body: impl Fn() + Sync + Send + 'static) {
    check(Some(4), body);
}

/// For models of two threads: every interleaving.
fn model_all(body: impl Fn() + Sync + Send + 'static) {
    check(None, body);
}

fn check(preemptions: Option<usize>, body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(preemptions);
    builder.max_branches = 100_000;
    builder.check(body);
}

fn with_fence(fence: FenceKind) -> WriteBarrier {
    WriteBarrier::with_fence(fence).expect("every fence is available in the model")
}

/// `writers` threads with `sections` sections each against one checkpoint. The answer, as of all of these: nothing
/// was missed.
fn writers_and_checkpoint(volume: &Arc<Volume>, writers: usize, sections: usize) -> bool {
    let threads: Vec<_> = (0..writers)
        .map(|writer| {
            let volume = Arc::clone(volume);
            thread::spawn(move || {
                for _ in 0..sections {
                    let _section = volume.barrier.enter();
                    volume.modify(writer);
                }
            })
        })
        .collect();
    let sealed = volume.checkpoint();
    for thread in threads {
        thread.join().expect("no section panics");
    }
    sealed == volume.notes()
}

#[test]
fn a_barrier_waits_for_a_section_of_the_old_period() {
    model_all(|| {
        assert!(writers_and_checkpoint(&Volume::new(with_fence(FenceKind::SeqCst)), 1, 2), "{MISSED}")
    });
}

#[test]
fn a_barrier_waits_for_two_writers() {
    model(|| assert!(writers_and_checkpoint(&Volume::new(with_fence(FenceKind::SeqCst)), 2, 1), "{MISSED}"));
}

#[test]
fn a_barrier_with_membarrier_waits_for_a_section_of_the_old_period() {
    model_all(|| {
        assert!(writers_and_checkpoint(&Volume::new(with_fence(FenceKind::Membarrier)), 1, 2), "{MISSED}")
    });
}

#[test]
fn a_barrier_with_membarrier_waits_for_two_writers() {
    check(Some(3), || {
        assert!(writers_and_checkpoint(&Volume::new(with_fence(FenceKind::Membarrier)), 2, 1), "{MISSED}")
    });
}

#[test]
fn flipping_every_time_changes_nothing() {
    model_all(|| {
        let volume = Volume::new(WriteBarrier::with_fault(FenceKind::SeqCst, Fault::AlwaysFlip));
        assert!(writers_and_checkpoint(&volume, 1, 2), "{MISSED}");
    });
}

/// A section counted in an index that was flipped away between its load and its count.
fn straggler(volume: &Arc<Volume>) -> bool {
    let writer = {
        let volume = Arc::clone(volume);
        thread::spawn(move || {
            let _section = volume.barrier.enter();
            volume.modify(0);
        })
    };
    volume.barrier.synchronize();
    let sealed = volume.checkpoint();
    writer.join().expect("no section panics");
    sealed == volume.notes()
}

#[test]
fn a_section_that_missed_a_flip_is_waited_for() {
    model_all(|| {
        let volume = Volume::new(WriteBarrier::with_fault(FenceKind::SeqCst, Fault::AlwaysFlip));
        assert!(straggler(&volume), "{MISSED}");
    });
}

#[test]
fn an_owned_section_ends_on_another_thread() {
    model(|| {
        let volume = Volume::new(with_fence(FenceKind::SeqCst));
        let ender = {
            let volume = Arc::clone(&volume);
            thread::spawn(move || {
                let section = volume.barrier.enter_owned();
                let inner = Arc::clone(&volume);
                let ender = thread::spawn(move || {
                    inner.modify(0);
                    drop(section);
                });
                ender.join().expect("no section panics");
            })
        };
        let sealed = volume.checkpoint();
        ender.join().expect("no section panics");
        assert_eq!(sealed, volume.notes(), "{MISSED}");
    });
}

#[test]
fn an_owned_section_with_membarrier_is_waited_for() {
    model_all(|| {
        let volume = Volume::new(with_fence(FenceKind::Membarrier));
        let writer = {
            let volume = Arc::clone(&volume);
            thread::spawn(move || {
                let _section = volume.barrier.enter_owned();
                volume.modify(0);
            })
        };
        let sealed = volume.checkpoint();
        writer.join().expect("no section panics");
        assert_eq!(sealed, volume.notes(), "{MISSED}");
    });
}

/// Two threads' sections in one slot's shared counts: the barrier acquires from both.
#[test]
fn owned_sections_of_one_slot_are_all_waited_for() {
    model(|| {
        let volume = Volume::new(with_fence(FenceKind::SeqCst));
        let writer = {
            let volume = Arc::clone(&volume);
            thread::spawn(move || {
                let section = volume.barrier.enter_owned();
                let inner = Arc::clone(&volume);
                let other = thread::spawn(move || {
                    inner.modify(1);
                    drop(section);
                });
                let section = volume.barrier.enter_owned();
                volume.modify(0);
                drop(section);
                other.join().expect("no section panics");
            })
        };
        let sealed = volume.checkpoint();
        writer.join().expect("no section panics");
        assert_eq!(sealed, volume.notes(), "{MISSED}");
    });
}

#[test]
fn nested_sections_end_in_any_order() {
    model_all(|| {
        let volume = Volume::new(with_fence(FenceKind::SeqCst));
        let writer = {
            let volume = Arc::clone(&volume);
            thread::spawn(move || {
                let outer = volume.barrier.enter();
                let inner = volume.barrier.enter();
                volume.modify(0);
                drop(outer);
                volume.modify(0);
                drop(inner);
            })
        };
        let sealed = volume.checkpoint();
        writer.join().expect("no section panics");
        assert_eq!(sealed, volume.notes(), "{MISSED}");
    });
}

#[test]
fn two_barriers_at_once_share_what_they_may_and_no_more() {
    model(|| {
        let volume = Volume::new(with_fence(FenceKind::SeqCst));
        let writer = {
            let volume = Arc::clone(&volume);
            thread::spawn(move || {
                let _section = volume.barrier.enter();
                volume.modify(0);
            })
        };
        let other = {
            let volume = Arc::clone(&volume);
            thread::spawn(move || volume.barrier.synchronize())
        };
        let sealed = volume.checkpoint();
        writer.join().expect("no section panics");
        other.join().expect("no section panics");
        assert!(volume.barrier.grace_periods() <= 3);
        assert_eq!(sealed, volume.notes(), "{MISSED}");
    });
}

/// A cookie that one thread takes and another thread's polling reaches.
fn cookie(volume: &Arc<Volume>) -> bool {
    let writer = {
        let volume = Arc::clone(volume);
        thread::spawn(move || {
            let _section = volume.barrier.enter();
            volume.modify(0);
        })
    };
    let other = {
        let volume = Arc::clone(volume);
        thread::spawn(move || {
            let cookie = volume.barrier.start_poll();
            volume.barrier.poll_state(cookie);
        })
    };
    volume.flip_period();
    let cookie = volume.barrier.start_poll();
    while !volume.barrier.poll_state(cookie) {
        thread::yield_now();
    }
    let sealed = volume.notes();
    writer.join().expect("no section panics");
    other.join().expect("no section panics");
    sealed == volume.notes()
}

#[test]
fn a_cookie_is_reached_by_the_polling_of_others() {
    model(|| assert!(cookie(&Volume::new(with_fence(FenceKind::SeqCst))), "{MISSED}"));
}

#[test]
fn a_cookie_with_membarrier_is_reached_by_the_polling_of_others() {
    model(|| assert!(cookie(&Volume::new(with_fence(FenceKind::Membarrier))), "{MISSED}"));
}

#[test]
fn a_barrier_after_a_missed_deadline_is_right() {
    let past = Instant::now();
    model_all(move || {
        let volume = Volume::new(with_fence(FenceKind::SeqCst));
        let writer = {
            let volume = Arc::clone(&volume);
            thread::spawn(move || {
                let _section = volume.barrier.enter();
                volume.modify(0);
            })
        };
        let first: Result<(), DeadlineExceeded> = volume.barrier.synchronize_deadline(past);
        let _ = first;
        let sealed = volume.checkpoint();
        writer.join().expect("no section panics");
        assert_eq!(sealed, volume.notes(), "{MISSED}");
    });
}

#[test]
fn a_slot_is_handed_from_an_ended_thread_to_a_new_one() {
    model(|| {
        let volume = Volume::new(with_fence(FenceKind::SeqCst));
        let writers = {
            let volume = Arc::clone(&volume);
            thread::spawn(move || {
                for writer in 0..2 {
                    let volume = Arc::clone(&volume);
                    let thread = thread::spawn(move || {
                        let _section = volume.barrier.enter();
                        volume.modify(writer);
                    });
                    thread.join().expect("no section panics");
                }
            })
        };
        let sealed = volume.checkpoint();
        writers.join().expect("no section panics");
        assert_eq!(sealed, volume.notes(), "{MISSED}");
    });
}

/// Every mistake must be found: there is an execution in which a section is missed.
mod a_mistake_is_found {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn find(preemptions: Option<usize>, nothing_missed: impl Fn() -> bool + Sync + Send + 'static) {
        let found = Arc::new(AtomicBool::new(false));
        let missed = Arc::clone(&found);
        check(preemptions, move || {
            if !nothing_missed() {
                missed.store(true, Ordering::Relaxed);
            }
        });
        assert!(found.load(Ordering::Relaxed));
    }

    #[test]
    fn not_waiting() {
        find(None, || writers_and_checkpoint(&Volume::with_fault(FenceKind::SeqCst, Fault::NoWait), 1, 1));
    }

    #[test]
    fn no_fence_on_entering() {
        find(None, || {
            writers_and_checkpoint(&Volume::with_fault(FenceKind::SeqCst, Fault::NoLightFence), 1, 2)
        });
    }

    #[test]
    fn no_fence_on_waiting() {
        // The fence of start_poll hides it from a thread that waits for itself.
        find(Some(4), || cookie(&Volume::with_fault(FenceKind::SeqCst, Fault::NoHeavyFence)));
    }

    #[test]
    fn no_membarrier_on_waiting() {
        find(None, || {
            writers_and_checkpoint(&Volume::with_fault(FenceKind::Membarrier, Fault::NoHeavyFence), 1, 2)
        });
    }

    #[test]
    fn looking_at_one_index_only() {
        find(None, || straggler(&Volume::with_fault(FenceKind::SeqCst, Fault::ActiveIndexOnly)));
    }
}
