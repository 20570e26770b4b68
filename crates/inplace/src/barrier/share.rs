//! Callers at the same time share runs.
//!
//! A caller needs a run that begins after its call. So callers that come during a run share the next one. One of the waiting callers
//! does the work; when its deadline passes, another one goes on with the run where it was.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// What came of one step of a run.
pub(super) enum Step<P> {
    /// It has to go on.
    Waits,
    /// It is over.
    Passed(P),
}

#[derive(Debug)]
pub(super) struct Shared<R, P, E> {
    state: Mutex<State<R, P>>,
    changed: Condvar,
    _error: std::marker::PhantomData<fn() -> E>,
}

#[derive(Debug)]
struct State<R, P> {
    /// How many runs have begun, and the number of the newest one that is over.
    begun: u64,
    over: u64,
    passed: Option<P>,
    /// The newest run, if it is not over and nobody works on it now.
    run: Option<R>,
    /// How the run looked after its last step, for those who wait while another one works on it.
    seen: Option<R>,
    is_led: bool,
    callers: usize,
}

impl<R, P, E> Default for Shared<R, P, E> {
    fn default() -> Self {
        let state =
            State { begun: 0, over: 0, passed: None, run: None, seen: None, is_led: false, callers: 0 };
        Self { state: Mutex::new(state), changed: Condvar::new(), _error: std::marker::PhantomData }
    }
}

/// Leaves the lead also if a step panics; the run is then lost, and the next caller begins another.
struct Lead<'a, R, P, E>(&'a Shared<R, P, E>);

impl<R, P, E> Drop for Lead<'_, R, P, E> {
    fn drop(&mut self) {
        self.0.state.lock().is_led = false;
        self.0.changed.notify_all();
    }
}

/// Counts a caller, and drops the run when nobody wants it any more.
struct Caller<'a, R, P, E>(&'a Shared<R, P, E>);

impl<R, P, E> Drop for Caller<'_, R, P, E> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.callers -= 1;
        if state.callers == 0 {
            state.run = None;
            state.seen = None;
        }
    }
}

impl<R: Clone, P: Clone, E> Shared<R, P, E> {
    /// Returns what came of a run that began after the call. `too_late` is told how the newest run looked last.
    pub(super) fn join(
        &self,
        until: Option<Instant>,
        begin: impl Fn() -> R,
        step: impl Fn(&mut R) -> Result<Step<P>, E>,
        too_late: impl Fn(Option<&R>) -> E,
    ) -> Result<P, E> {
        let is_late = || until.is_some_and(|until| Instant::now() >= until);
        let mut state = self.state.lock();
        state.callers += 1;
        let wanted = state.begun + 1;
        drop(state);
        let _caller = Caller(self);
        loop {
            let mut state = self.state.lock();
            if state.over >= wanted
                && let Some(passed) = &state.passed
            {
                return Ok(passed.clone());
            }
            if state.is_led {
                match until {
                    None => self.changed.wait(&mut state),
                    Some(until) if !is_late() => drop(self.changed.wait_until(&mut state, until)),
                    Some(_) => return Err(too_late(state.seen.as_ref())),
                }
                continue;
            }
            let mut run = match state.run.take() {
                Some(run) => run,
                None => {
                    state.begun += 1;
                    begin()
                }
            };
            let number = state.begun;
            state.is_led = true;
            drop(state);
            let lead = Lead(self);
            let passed = lead_run(&mut run, |run| self.step_for_all(run, &step), is_late)?;
            let mut state = self.state.lock();
            match passed {
                Some(passed) => {
                    state.over = number;
                    state.passed = Some(passed);
                }
                None => {
                    let error = too_late(Some(&run));
                    state.run = Some(run);
                    drop(state);
                    drop(lead);
                    return Err(error);
                }
            }
            drop(state);
            drop(lead);
        }
    }

    fn step_for_all(&self, run: &mut R, step: impl Fn(&mut R) -> Result<Step<P>, E>) -> Result<Step<P>, E> {
        let outcome = step(run)?;
        let mut state = self.state.lock();
        if state.callers > 1 {
            state.seen = Some(run.clone());
        }
        Ok(outcome)
    }
}

/// `None`: too late.
fn lead_run<R, P, E>(
    run: &mut R,
    step: impl Fn(&mut R) -> Result<Step<P>, E>,
    is_late: impl Fn() -> bool,
) -> Result<Option<P>, E> {
    let begun = Instant::now();
    for looks in 0_u32.. {
        if let Step::Passed(passed) = step(run)? {
            return Ok(Some(passed));
        }
        if is_late() {
            return Ok(None);
        }
        // Most calls take microseconds. Who takes long is looked at the less often the longer it takes.
        let pause = match begun.elapsed() {
            _ if looks < 2 => Duration::from_micros(5),
            elapsed => (elapsed / 8).clamp(Duration::from_micros(20), Duration::from_millis(10)),
        };
        std::thread::sleep(pause);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    type Counted = Shared<u32, u32, &'static str>;

    #[test]
    fn a_caller_gets_a_run_that_began_after_its_call() {
        let shared = Counted::default();
        let begun = AtomicU32::new(0);
        let passed = |_: &mut u32| Ok(Step::Passed(begun.load(Ordering::Relaxed)));
        for number in 1..4 {
            // ORDERING: one thread.
            let begin = || begun.fetch_add(1, Ordering::Relaxed);
            assert_eq!(shared.join(None, begin, passed, |_| "late"), Ok(number));
        }
    }

    #[test]
    fn callers_during_a_run_share_the_next_one() {
        let shared = Counted::default();
        let begun = AtomicU32::new(0);
        let open = Mutex::new(false);
        let opened = Condvar::new();
        // ORDERING: the lock of `shared` orders the runs.
        let begin = || begun.fetch_add(1, Ordering::Relaxed) + 1;
        let step = |run: &mut u32| {
            let mut open = open.lock();
            while !*open {
                opened.wait(&mut open);
            }
            Ok(Step::Passed(*run))
        };
        std::thread::scope(|scope| {
            let first = scope.spawn(|| shared.join(None, begin, step, |_| "late"));
            while shared.state.lock().begun == 0 {
                std::thread::yield_now();
            }
            let others: Vec<_> =
                (0..5).map(|_| scope.spawn(|| shared.join(None, begin, step, |_| "late"))).collect();
            while shared.state.lock().callers < 6 {
                std::thread::yield_now();
            }
            *open.lock() = true;
            opened.notify_all();
            // Or what came of the next one, if that was over when it looked.
            assert!(matches!(first.join().unwrap(), Ok(1 | 2)));
            for other in others {
                assert_eq!(other.join().unwrap(), Ok(2));
            }
        });
    }

    #[test]
    fn a_run_goes_on_when_the_one_who_led_it_is_too_late() {
        let shared = Counted::default();
        let begun = AtomicU32::new(0);
        let patient = Mutex::new(false);
        // ORDERING: the lock of `shared` orders the runs.
        let begin = || begun.fetch_add(1, Ordering::Relaxed) + 1;
        let step = |run: &mut u32| Ok(if *patient.lock() { Step::Passed(*run) } else { Step::Waits });
        std::thread::scope(|scope| {
            let hasty = scope.spawn(|| {
                let until = Instant::now() + Duration::from_millis(200);
                shared.join(Some(until), begin, step, |_| "late")
            });
            while shared.state.lock().begun == 0 {
                std::thread::yield_now();
            }
            let other = scope.spawn(|| shared.join(None, begin, step, |_| "late"));
            assert_eq!(hasty.join().unwrap(), Err("late"));
            *patient.lock() = true;
            // The run that was left behind, and then the one that began after its call.
            assert_eq!(other.join().unwrap(), Ok(2));
        });
    }

    #[test]
    fn nobody_goes_on_with_a_run_that_nobody_wants() {
        let shared = Counted::default();
        let late = Instant::now();
        assert_eq!(
            shared.join(Some(late), || 1, |_| Ok(Step::Waits), |run| run.map_or("?", |_| "late")),
            Err("late")
        );
        assert_eq!(shared.join(None, || 2, |run| Ok(Step::Passed(*run)), |_| "late"), Ok(2));
    }
}
