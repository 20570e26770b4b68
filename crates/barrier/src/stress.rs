//! The barrier on real threads, and the mistakes that the same tests must find.
//!
//! A missing fence is not among them: it shows only where a store waits in the CPU's buffer for longer than a barrier
//! takes, and a minute of this did not show it on x86-64. tests/loom.rs finds it at once.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::fault::Fault;
use crate::{FenceKind, WriteBarrier, local};

const WRITERS: usize = 3;
/// Periods that a run keeps apart.
const PERIODS: usize = 2_000;

/// Every fence that this machine has.
fn fences() -> impl Iterator<Item = FenceKind> {
    let fences = [FenceKind::SeqCst, FenceKind::Membarrier];
    fences.into_iter().filter(|fence| WriteBarrier::with_fence(*fence).is_ok())
}

/// Writers note each operation under the period that they read inside their section. After the barrier that follows
/// the end of a period nothing may be noted under it any more. The answer is the number of periods where it was.
///
/// `enter` holds what it is given for the length of a section.
fn late_notes(barrier: &WriteBarrier, enter: impl Fn(&WriteBarrier, &mut dyn FnMut()) + Sync) -> usize {
    let period = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let notes: Vec<Vec<AtomicUsize>> =
        (0..WRITERS).map(|_| (0..=PERIODS).map(|_| AtomicUsize::new(0)).collect()).collect();
    let noted = |period: usize| -> Vec<usize> {
        notes.iter().map(|notes| notes[period].load(Ordering::Relaxed)).collect()
    };

    thread::scope(|scope| {
        for notes in &notes {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    enter(barrier, &mut || {
                        let note = &notes[period.load(Ordering::Relaxed)];
                        note.store(note.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
                    });
                }
            });
        }
        let mut sealed = Vec::with_capacity(PERIODS);
        for ended in 0..PERIODS {
            period.store(ended + 1, Ordering::Relaxed);
            barrier.synchronize();
            sealed.push(noted(ended));
        }
        stop.store(true, Ordering::Relaxed);
        sealed
    })
    // Compared when all writers have ended: a note that is late by any amount counts.
    .iter()
    .enumerate()
    .filter(|(period, sealed)| noted(*period) != **sealed)
    .count()
}

fn inside_a_section(barrier: &WriteBarrier, operation: &mut dyn FnMut()) {
    let _section = barrier.enter();
    operation();
}

fn inside_an_owned_section(barrier: &WriteBarrier, operation: &mut dyn FnMut()) {
    let _section = barrier.enter_owned();
    operation();
}

/// Sections that overlap, so that the thread is never outside of all of them for long.
fn inside_nested_sections(barrier: &WriteBarrier, operation: &mut dyn FnMut()) {
    let outer = barrier.enter();
    operation();
    let _inner = barrier.enter();
    drop(outer);
    operation();
}

#[test]
fn g2_no_operation_of_an_ended_period_is_in_flight_after_the_barrier() {
    for fence in fences() {
        let barrier = WriteBarrier::with_fence(fence).unwrap();
        assert_eq!(late_notes(&barrier, inside_a_section), 0, "{fence:?}");
        assert_eq!(late_notes(&barrier, inside_an_owned_section), 0, "{fence:?}, owned");
        assert_eq!(late_notes(&barrier, inside_nested_sections), 0, "{fence:?}, nested");
        assert_eq!(barrier.sections_in_flight(), 0);
    }
}

#[test]
fn a_barrier_that_does_not_wait_is_found() {
    for fence in fences() {
        let barrier = WriteBarrier::with_fault(fence, Fault::NoWait);
        assert!((0..1_000).any(|_| late_notes(&barrier, inside_a_section) > 0), "{fence:?}");
    }
}

/// Enters the next section before it leaves the last, and polls. The answer is the number of polls until true.
fn polls_under_overlapping_sections(barrier: &WriteBarrier) -> Option<usize> {
    let mut section = barrier.enter();
    let cookie = barrier.start_poll();
    (1..1_000).find(|_| {
        let next = barrier.enter();
        section = next;
        barrier.poll_state(cookie)
    })
}

#[test]
fn overlapping_sections_without_end_do_not_starve_a_barrier() {
    for fence in fences() {
        let barrier = WriteBarrier::with_fence(fence).unwrap();
        // One to flip the index, one to see the old one drained.
        assert!(polls_under_overlapping_sections(&barrier).unwrap() <= 2, "{fence:?}");
    }
}

#[test]
fn a_barrier_that_does_not_flip_is_found() {
    for fence in fences() {
        let barrier = WriteBarrier::with_fault(fence, Fault::NeverFlip);
        assert_eq!(polls_under_overlapping_sections(&barrier), None, "{fence:?}");
    }
}

#[test]
fn threads_one_after_another_share_a_slot() {
    let barrier = WriteBarrier::new();
    for _ in 0..100 {
        thread::scope(|scope| scope.spawn(|| drop(barrier.enter())).join().unwrap());
    }
    assert_eq!(barrier.slots(), 1);
}

#[test]
fn a_slot_with_a_forgotten_section_is_not_taken_again() {
    let barrier = WriteBarrier::new();
    for slots in 1..=3 {
        thread::scope(|scope| scope.spawn(|| std::mem::forget(barrier.enter())).join().unwrap());
        assert_eq!((barrier.slots(), barrier.sections_in_flight()), (slots, slots));
    }
}

#[test]
fn a_thread_keeps_nothing_of_barriers_that_were_dropped() {
    thread::spawn(|| {
        let live = WriteBarrier::new();
        for _ in 0..1_000 {
            drop(WriteBarrier::new().enter());
            drop(live.enter());
        }
        assert!(local::entries() <= 2, "the live one and the last dropped one");
    })
    .join()
    .unwrap();
}
