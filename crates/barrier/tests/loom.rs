//! The protocol under the model checker, with the code that ships.
//!
//! ```text
//! RUSTFLAGS="--cfg loom" cargo test -p highwater-barrier --test loom --release
//! ```
//!
//! The property (all models but one): a thread changes `period`, does a barrier, and then touches what only sections
//! that read the old period touch. loom reports a section that read the old period and is not over, or whose effects
//! are not ordered before the return of the barrier, as a data race.
//!
//! What loom cannot see: the CPU. `FenceKind::SeqCst` is checked as it is. `FenceKind::Membarrier` is checked against
//! a model of membarrier(2), in which every thread that holds a slot executes a full fence at one of its interrupt
//! points (around the count) or has ended before the call returns; that the kernel and the CPU do this, and that the
//! compiler keeps the order across a compiler fence, is taken from their documentation. Time does not exist: a
//! deadline has passed or there is none. Preemptions are bounded (LOOM_MAX_PREEMPTIONS, default 2 here).
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
    /// One per writer, so that two writers do not race with each other.
    records: [UnsafeCell<usize>; 2],
}

impl Volume {
    fn new(barrier: WriteBarrier) -> Arc<Self> {
        let records = [UnsafeCell::new(0), UnsafeCell::new(0)];
        Arc::new(Self { barrier, period: AtomicUsize::new(0), records })
    }

    /// What an operation does inside its section.
    fn modify(&self, writer: usize) {
        if self.period.load(Ordering::Relaxed) == 0 {
            // SAFETY: the property that is checked.
            self.records[writer].with_mut(|record| unsafe { *record += 1 });
        }
    }

    fn flip_period(&self) {
        self.period.store(1, Ordering::Relaxed);
    }

    /// What a checkpoint does after the barrier.
    fn seal(&self) {
        for record in &self.records {
            // SAFETY: the property that is checked.
            record.with(|record| unsafe { *record });
        }
    }

    fn checkpoint(&self) {
        self.flip_period();
        self.barrier.synchronize();
        self.seal();
    }
}

fn model(body: impl Fn() + Sync + Send + 'static) {
    model_bounded(2, body);
}

fn model_bounded(preemptions: usize, body: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = builder.preemption_bound.or(Some(preemptions));
    builder.max_branches = 100_000;
    builder.check(body);
}

fn with_fence(fence: FenceKind) -> WriteBarrier {
    WriteBarrier::with_fence(fence).expect("every fence is available in the model")
}

/// `writers` threads with `sections` sections each against one checkpoint.
fn writers_and_checkpoint(barrier: WriteBarrier, writers: usize, sections: usize) {
    let volume = Volume::new(barrier);
    let threads: Vec<_> = (0..writers)
        .map(|writer| {
            let volume = Arc::clone(&volume);
            thread::spawn(move || {
                for _ in 0..sections {
                    let _section = volume.barrier.enter();
                    volume.modify(writer);
                }
            })
        })
        .collect();
    volume.checkpoint();
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_barrier_waits_for_a_section_of_the_old_period() {
    model_bounded(4, || writers_and_checkpoint(with_fence(FenceKind::SeqCst), 1, 2));
}

#[test]
fn a_barrier_waits_for_two_writers() {
    model(|| writers_and_checkpoint(with_fence(FenceKind::SeqCst), 2, 1));
}

#[test]
fn a_barrier_with_membarrier_waits_for_a_section_of_the_old_period() {
    model_bounded(3, || writers_and_checkpoint(with_fence(FenceKind::Membarrier), 1, 2));
}

#[test]
fn a_barrier_with_membarrier_waits_for_two_writers() {
    model(|| writers_and_checkpoint(with_fence(FenceKind::Membarrier), 2, 1));
}

#[test]
fn flipping_every_time_changes_nothing() {
    model(|| writers_and_checkpoint(WriteBarrier::with_fault(FenceKind::SeqCst, Fault::AlwaysFlip), 1, 2));
}

/// A section counted in an index that was flipped away between its load and its count.
fn straggler(barrier: WriteBarrier) {
    let volume = Volume::new(barrier);
    let writer = {
        let volume = Arc::clone(&volume);
        thread::spawn(move || {
            let _section = volume.barrier.enter();
            volume.modify(0);
        })
    };
    volume.barrier.synchronize();
    volume.checkpoint();
    writer.join().unwrap();
}

#[test]
fn a_section_that_missed_a_flip_is_waited_for() {
    model_bounded(3, || straggler(WriteBarrier::with_fault(FenceKind::SeqCst, Fault::AlwaysFlip)));
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
                ender.join().unwrap();
            })
        };
        volume.checkpoint();
        ender.join().unwrap();
    });
}

#[test]
fn nested_sections_end_in_any_order() {
    model(|| {
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
        volume.checkpoint();
        writer.join().unwrap();
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
        volume.checkpoint();
        writer.join().unwrap();
        other.join().unwrap();
        assert!(volume.barrier.grace_periods() <= 3);
    });
}

/// A cookie that one thread takes and another thread's polling reaches.
fn cookie(barrier: WriteBarrier) {
    let volume = Volume::new(barrier);
    let writer = {
        let volume = Arc::clone(&volume);
        thread::spawn(move || {
            let _section = volume.barrier.enter();
            volume.modify(0);
        })
    };
    let other = {
        let volume = Arc::clone(&volume);
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
    volume.seal();
    writer.join().unwrap();
    other.join().unwrap();
}

#[test]
fn a_cookie_is_reached_by_the_polling_of_others() {
    model(|| cookie(with_fence(FenceKind::SeqCst)));
}

#[test]
fn a_cookie_with_membarrier_is_reached_by_the_polling_of_others() {
    model(|| cookie(with_fence(FenceKind::Membarrier)));
}

#[test]
fn a_barrier_after_a_missed_deadline_is_right() {
    let past = Instant::now();
    model(move || {
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
        volume.checkpoint();
        writer.join().unwrap();
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
                    thread.join().unwrap();
                }
            })
        };
        volume.checkpoint();
        writers.join().unwrap();
    });
}

mod a_mistake_is_found {
    use super::*;

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn not_waiting() {
        model(|| writers_and_checkpoint(WriteBarrier::with_fault(FenceKind::SeqCst, Fault::NoWait), 1, 1));
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn no_fence_on_entering() {
        model(|| {
            writers_and_checkpoint(WriteBarrier::with_fault(FenceKind::SeqCst, Fault::NoLightFence), 1, 2);
        });
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn no_fence_on_waiting() {
        // The fence of start_poll hides it from a thread that waits for itself.
        model(|| cookie(WriteBarrier::with_fault(FenceKind::SeqCst, Fault::NoHeavyFence)));
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn no_membarrier_on_waiting() {
        model(|| {
            writers_and_checkpoint(
                WriteBarrier::with_fault(FenceKind::Membarrier, Fault::NoHeavyFence),
                1,
                2,
            );
        });
    }

    #[test]
    #[should_panic(expected = "Causality violation")]
    fn looking_at_one_index_only() {
        model_bounded(3, || {
            straggler(WriteBarrier::with_fault(FenceKind::SeqCst, Fault::ActiveIndexOnly));
        });
    }
}
