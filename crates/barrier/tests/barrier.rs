//! What a barrier promises, through its public interface, with every fence that the machine has.
#![cfg(not(loom))]

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, LazyLock};
use std::thread;
use std::time::{Duration, Instant};

use highwater_barrier::{DeadlineExceeded, FenceKind, OwnedSection, WriteBarrier};

fn with_every_fence(test: impl Fn(Arc<WriteBarrier>)) {
    for fence in [FenceKind::SeqCst, FenceKind::Membarrier] {
        match WriteBarrier::with_fence(fence) {
            Ok(barrier) => {
                assert_eq!(barrier.fence_kind(), fence);
                test(Arc::new(barrier));
            }
            Err(error) => println!("not tested here: {error}"),
        }
    }
}

/// Looks once, without waiting.
fn is_clear(barrier: &WriteBarrier) -> bool {
    barrier.synchronize_deadline(Instant::now()).is_ok()
}

#[test]
fn an_idle_barrier_returns() {
    with_every_fence(|barrier| {
        barrier.synchronize();
        drop(barrier.enter());
        barrier.synchronize();
        assert_eq!(barrier.grace_periods(), 2);
    });
}

#[test]
fn new_takes_the_cheapest_fence_there_is() {
    let membarrier = WriteBarrier::with_fence(FenceKind::Membarrier).is_ok();
    let expected = if membarrier { FenceKind::Membarrier } else { FenceKind::SeqCst };
    assert_eq!(WriteBarrier::new().fence_kind(), expected);
}

#[test]
fn a_barrier_waits_for_a_section() {
    with_every_fence(|barrier| {
        let section = barrier.enter();
        assert!(!is_clear(&barrier));
        drop(section);
        assert!(is_clear(&barrier));
    });
}

#[test]
fn g3_a_stalled_section_blocks_the_barrier_and_no_new_section() {
    with_every_fence(|barrier| {
        let stalled = barrier.enter();
        let returned = AtomicBool::new(false);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                barrier.synchronize();
                returned.store(true, Ordering::Relaxed);
            });
            // A grace period is in progress, the waiter's or this one, before the first of the new sections.
            let begun = barrier.start_poll();
            assert!(!barrier.poll_state(begun));
            let writer = scope.spawn(|| {
                for _ in 0..10_000 {
                    drop(barrier.enter());
                    drop(barrier.enter_owned());
                }
            });
            writer.join().unwrap();
            assert!(
                !returned.load(Ordering::Relaxed),
                "the barrier returned before the stalled section ended"
            );
            drop(stalled);
            waiter.join().unwrap();
        });
    });
}

#[test]
fn nested_sections_end_in_any_order() {
    with_every_fence(|barrier| {
        let (first, second, owned) = (barrier.enter(), barrier.enter(), barrier.enter_owned());
        assert_eq!(barrier.sections_in_flight(), 3);
        drop(first);
        assert!(!is_clear(&barrier));
        let third = barrier.enter();
        drop(second);
        assert!(!is_clear(&barrier));
        drop(owned);
        assert!(!is_clear(&barrier));
        drop(third);
        assert!(is_clear(&barrier));
        assert_eq!(barrier.sections_in_flight(), 0);
    });
}

#[test]
fn an_owned_section_ends_on_another_thread() {
    with_every_fence(|barrier| {
        let section = barrier.enter_owned();
        assert!(!is_clear(&barrier));
        thread::scope(|scope| scope.spawn(move || drop(section)).join().unwrap());
        assert!(is_clear(&barrier));
    });
}

#[test]
fn an_owned_section_outlives_the_thread_that_entered_it() {
    with_every_fence(|barrier| {
        let section = thread::scope(|scope| scope.spawn(|| barrier.enter_owned()).join().unwrap());
        // The slot is free for the next thread, the count is not forgotten.
        drop(barrier.enter());
        assert!(!is_clear(&barrier));
        drop(section);
        assert!(is_clear(&barrier));
    });
}

#[test]
fn an_owned_section_may_outlive_its_barrier() {
    let barrier = WriteBarrier::new();
    let section: OwnedSection = barrier.enter_owned();
    drop(barrier);
    drop(section);
}

#[test]
fn a_panic_ends_its_section() {
    with_every_fence(|barrier| {
        let caught = catch_unwind(AssertUnwindSafe(|| {
            let _section = barrier.enter();
            std::panic::resume_unwind(Box::new("an operation failed"));
        }));
        assert!(caught.is_err());
        assert!(is_clear(&barrier));
    });
}

#[test]
fn a_barrier_inside_its_own_section_is_refused() {
    with_every_fence(|barrier| {
        let section = barrier.enter();
        assert!(catch_unwind(AssertUnwindSafe(|| barrier.synchronize())).is_err());
        drop(section);
        barrier.synchronize();
    });
}

#[test]
fn a_missed_deadline_leaves_the_barrier_right() {
    with_every_fence(|barrier| {
        let old = barrier.enter();
        assert_eq!(barrier.synchronize_deadline(Instant::now()), Err(DeadlineExceeded));
        let soon = Instant::now() + Duration::from_millis(2);
        assert_eq!(barrier.synchronize_deadline(soon), Err(DeadlineExceeded));
        // Sections that enter after the missed deadline, in the index that the old one is not in.
        let new = barrier.enter();
        drop(old);
        assert_eq!(barrier.synchronize_deadline(Instant::now()), Err(DeadlineExceeded));
        drop(new);
        assert_eq!(barrier.synchronize_deadline(Instant::now()), Ok(()));
    });
}

#[test]
fn a_waiter_takes_over_from_one_that_gave_up() {
    with_every_fence(|barrier| {
        let section = barrier.enter();
        thread::scope(|scope| {
            let hasty =
                scope.spawn(|| barrier.synchronize_deadline(Instant::now() + Duration::from_millis(2)));
            let patient = scope.spawn(|| barrier.synchronize());
            assert_eq!(hasty.join().unwrap(), Err(DeadlineExceeded));
            drop(section);
            patient.join().unwrap();
        });
    });
}

#[test]
fn a_cookie_is_reached_when_the_sections_before_it_have_ended() {
    with_every_fence(|barrier| {
        let before = barrier.enter();
        let cookie = barrier.start_poll();
        let after = barrier.enter();
        assert!(!barrier.poll_state(cookie));
        drop(after);
        assert!(!barrier.poll_state(cookie));
        drop(before);
        assert!(barrier.poll_state(cookie));
        let _later = barrier.enter();
        assert!(barrier.poll_state(cookie), "once true it stays true");
        assert_eq!(barrier.synchronize_cookie(cookie, None), Ok(()));
    });
}

#[test]
fn a_cookie_taken_in_a_grace_period_needs_the_next_one() {
    with_every_fence(|barrier| {
        let first = barrier.enter();
        let early = barrier.start_poll();
        assert!(!barrier.poll_state(early));
        let second = barrier.enter();
        let late = barrier.start_poll();
        drop(first);
        assert!(barrier.poll_state(early));
        assert!(!barrier.poll_state(late));
        assert_eq!(barrier.synchronize_cookie(late, Some(Instant::now())), Err(DeadlineExceeded));
        drop(second);
        assert!(barrier.poll_state(late));
        assert_eq!(barrier.grace_periods(), 2);
    });
}

#[test]
#[should_panic(expected = "a cookie of another barrier")]
fn a_cookie_of_another_barrier_is_refused() {
    let cookie = WriteBarrier::new().start_poll();
    WriteBarrier::new().poll_state(cookie);
}

#[test]
fn a_hundred_barriers_share_two_grace_periods() {
    const BARRIERS: usize = 100;
    with_every_fence(|barrier| {
        let stalled = barrier.enter();
        assert!(!is_clear(&barrier), "a grace period is in progress");
        let cookies_taken = Barrier::new(BARRIERS + 1);
        thread::scope(|scope| {
            for _ in 0..BARRIERS {
                scope.spawn(|| {
                    // synchronize(), cut where all hundred have begun.
                    let cookie = barrier.start_poll();
                    cookies_taken.wait();
                    barrier.synchronize_cookie(cookie, None)
                });
            }
            cookies_taken.wait();
            drop(stalled);
        });
        assert_eq!(barrier.grace_periods(), 2);
    });
}

#[test]
fn a_stream_of_new_sections_does_not_starve_a_barrier() {
    with_every_fence(|barrier| {
        let stop = AtomicBool::new(false);
        let entered = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    // Never outside of all sections.
                    let mut section = barrier.enter();
                    let mut owned = barrier.enter_owned();
                    while !stop.load(Ordering::Relaxed) {
                        let next = barrier.enter();
                        drop(std::mem::replace(&mut section, next));
                        let next = barrier.enter_owned();
                        drop(std::mem::replace(&mut owned, next));
                        entered.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            while entered.load(Ordering::Relaxed) < 2 {
                thread::yield_now();
            }
            for _ in 0..20 {
                barrier.synchronize();
            }
            stop.store(true, Ordering::Relaxed);
        });
    });
}

#[test]
fn barriers_do_not_wait_for_each_others_sections() {
    with_every_fence(|barrier| {
        let others: Vec<_> = (0..100).map(|_| WriteBarrier::new()).collect();
        let sections: Vec<_> = others.iter().map(WriteBarrier::enter).collect();
        assert!(is_clear(&barrier));
        assert!(others.iter().all(|other| !is_clear(other)));
        drop(sections);
        assert!(others.iter().all(is_clear));
    });
}

static OF_ENDING_THREADS: LazyLock<WriteBarrier> = LazyLock::new(WriteBarrier::new);

/// Enters a section when its thread ends.
struct EntersAtTheEnd;

impl Drop for EntersAtTheEnd {
    fn drop(&mut self) {
        let _section = OF_ENDING_THREADS.enter();
        let _owned = OF_ENDING_THREADS.enter_owned();
        assert!(!is_clear(&OF_ENDING_THREADS));
    }
}

thread_local! {
    static FIRST: RefCell<Option<EntersAtTheEnd>> = const { RefCell::new(None) };
    static LAST: RefCell<Option<EntersAtTheEnd>> = const { RefCell::new(None) };
    static HELD_TO_THE_END: RefCell<Option<highwater_barrier::Section<'static>>> = const { RefCell::new(None) };
}

#[test]
fn a_section_may_be_entered_and_left_while_the_thread_ends() {
    for _ in 0..10 {
        thread::spawn(|| {
            // Thread-locals are destroyed in the order of their first use or against it: have some of each.
            FIRST.with(|first| *first.borrow_mut() = Some(EntersAtTheEnd));
            HELD_TO_THE_END.with(|_| ());
            let section = OF_ENDING_THREADS.enter();
            HELD_TO_THE_END.with(|held| *held.borrow_mut() = Some(section));
            LAST.with(|last| *last.borrow_mut() = Some(EntersAtTheEnd));
        })
        .join()
        .unwrap();
        assert_eq!(OF_ENDING_THREADS.sections_in_flight(), 0);
        assert!(is_clear(&OF_ENDING_THREADS));
    }
}

#[test]
fn guards_are_send_where_they_may_be() {
    fn is_send_and_sync<T: Send + Sync>() {}
    is_send_and_sync::<WriteBarrier>();
    is_send_and_sync::<OwnedSection>();
}
