//! Checkpoints.
//!
//! In this order, and each step for a reason:
//!
//! 1. *Barrier*: every operation that was in flight when the checkpoint was asked for has ended, and has been recorded. A source in
//!    place, which hears of operations afterwards, waits for them and records them now (*drain*).
//! 2. *Open writers*: sampled, waited for, compared, recorded (see `writers`).
//! 3. *Flip*: the period is sealed under the record lock; its records are the batch.
//! 4. *Tails*: an operation that is in the batch has been recorded but its caller may not have been told; wait for that.
//! 5. *Settle*: what the source's kernel may still show from before these operations is gone.
//! 6. *Sync*: the batch is on stable storage before anybody hears of it.
//!
//! Nothing of this blocks an operation. An operation that begins after the checkpoint was asked for is waited for only in
//! step 4, and only from its record to its answer.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use highwater_journal::{AppendError, Period, Storage};
use parking_lot::{Condvar, Mutex};

use crate::change::Change;
use crate::cursor::{CheckpointId, Cursor};
use crate::error::RequestError;
use crate::mutation::{self, Mutation};
use crate::record::Body;
use crate::tracker::Shared;

/// What is known about checkpoints.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    /// One checkpoint at a time; counts those that have begun and ended.
    turn: Mutex<Turns>,
    begun: AtomicU64,
    sealed: AtomicU64,
    last_took_us: AtomicU64,
    catch_up: (Mutex<CatchUp>, Condvar),
    pub(crate) caught_up_objects: AtomicU64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CatchUp {
    None,
    Running,
    Interrupted,
}

#[derive(Debug, Default)]
struct Turns {
    /// The number of the newest checkpoint that has ended well.
    ended: u64,
    /// The newest period that has been sealed in the journal and not been handed out: the checkpoint failed after the flip.
    unfinished: Option<Seal>,
}

impl Checkpoints {
    pub(crate) fn new(sealed: CheckpointId) -> Self {
        Self {
            turn: Mutex::new(Turns::default()),
            begun: AtomicU64::new(0),
            sealed: AtomicU64::new(sealed.0),
            last_took_us: AtomicU64::new(0),
            catch_up: (Mutex::new(CatchUp::None), Condvar::new()),
            caught_up_objects: AtomicU64::new(0),
        }
    }

    /// The newest checkpoint.
    pub(crate) fn sealed(&self) -> CheckpointId {
        // ORDERING: pairs with the store in `run_checkpoint`; a reader that sees a checkpoint sees its records in the journal.
        CheckpointId(self.sealed.load(Ordering::Acquire))
    }

    pub(crate) fn last_took(&self) -> Duration {
        // ORDERING: a figure for `status`.
        Duration::from_micros(self.last_took_us.load(Ordering::Relaxed))
    }

    /// How many objects the catch-up has looked at, while it runs.
    pub(crate) fn catching_up(&self) -> Option<u64> {
        let is_running = *self.catch_up.0.lock() == CatchUp::Running;
        // ORDERING: a figure for `status`.
        is_running.then(|| self.caught_up_objects.load(Ordering::Relaxed))
    }

    pub(crate) fn begin_catch_up(&self) {
        *self.catch_up.0.lock() = CatchUp::Running;
    }

    pub(crate) fn end_catch_up(&self) {
        self.leave_catch_up(CatchUp::None);
    }

    /// The tracker stops before the catch-up has ended: there will be no checkpoint any more.
    pub(crate) fn interrupt_catch_up(&self) {
        self.leave_catch_up(CatchUp::Interrupted);
    }

    pub(crate) fn is_catch_up_interrupted(&self) -> bool {
        *self.catch_up.0.lock() == CatchUp::Interrupted
    }

    fn leave_catch_up(&self, state: CatchUp) {
        *self.catch_up.0.lock() = state;
        self.catch_up.1.notify_all();
    }

    /// All that a catch-up finds belongs into one batch: a batch is not sealed before it has ended.
    fn wait_for_catch_up(&self, deadline: Option<Instant>) -> Result<(), RequestError> {
        let mut state = self.catch_up.0.lock();
        while *state == CatchUp::Running {
            match deadline {
                None => self.catch_up.1.wait(&mut state),
                Some(deadline) => {
                    if self.catch_up.1.wait_until(&mut state, deadline).timed_out() {
                        return Err(RequestError::Deadline { waiting_for: "the catch-up scan".into() });
                    }
                }
            }
        }
        if *state == CatchUp::Interrupted { Err(RequestError::Stopping) } else { Ok(()) }
    }
}

impl<S: Storage> Shared<S> {
    pub(crate) fn cursor(&self, checkpoint: CheckpointId, reading_since: CheckpointId) -> Cursor {
        Cursor { journal: self.journal_id(), checkpoint, reading_since }
    }

    /// Makes a checkpoint and returns the newest sealed period: the one before if nothing has been recorded since.
    pub(crate) fn checkpoint(&self, deadline: Option<Instant>) -> Result<CheckpointId, RequestError> {
        let checkpoints = &self.checkpoints;
        checkpoints.wait_for_catch_up(deadline)?;
        // ORDERING: the increments are made under `turn`; this only has to be a number that was reached before the call.
        let begun_before = checkpoints.begun.load(Ordering::SeqCst);
        let mut turn = match deadline {
            None => checkpoints.turn.lock(),
            Some(deadline) => checkpoints
                .turn
                .try_lock_until(deadline)
                .ok_or(RequestError::Deadline { waiting_for: "the checkpoint before this one".into() })?,
        };
        if turn.ended > begun_before {
            // A checkpoint that began after this call has ended: it is this call's as well.
            return Ok(checkpoints.sealed());
        }
        // ORDERING: as above.
        let number = checkpoints.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let began = Instant::now();
        let sealed = self.run_checkpoint(&mut turn.unfinished, deadline)?;
        turn.ended = number;
        let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        // ORDERING: a figure for `status`.
        checkpoints.last_took_us.store(took_us, Ordering::Relaxed);
        Ok(sealed)
    }

    /// `unfinished` outlives a failure: a period that has been sealed and not been handed out belongs to the next checkpoint, also
    /// if nothing has happened since.
    fn run_checkpoint(
        &self,
        unfinished: &mut Option<Seal>,
        deadline: Option<Instant>,
    ) -> Result<CheckpointId, RequestError> {
        if !mutation::is(Mutation::NoBarrier) {
            self.synchronize(&self.sections, deadline, "operations in flight")?;
        }
        // ORDERING: a hint; what comes from here on makes a hint of its own.
        self.has_news.store(false, Ordering::Relaxed);
        self.source()
            .drain(deadline)
            .map_err(from_source("read what has happened", "modifications in flight"))?;
        self.record_open_writers(deadline)?;
        if let Some(seal) = self.flip()? {
            *unfinished = Some(seal);
        }
        let Some(seal) = *unfinished else {
            return Ok(self.checkpoints.sealed());
        };
        if !mutation::is(Mutation::NoTails) {
            self.synchronize(&self.tails, deadline, "an operation to be answered")?;
        }
        let settled = if mutation::is(Mutation::NoSettle) { Ok(()) } else { self.source().settle(deadline) };
        settled.map_err(from_source("wait for the kernel", "the kernel to show what has been done"))?;
        let synced =
            if mutation::is(Mutation::SealNotDurable) { Ok(()) } else { self.journal.sync(seal.usn) };
        synced.map_err(|error| {
            self.fail(&error);
            RequestError::journal(&error)
        })?;
        *unfinished = None;
        // ORDERING: pairs with the load in `sealed`.
        self.checkpoints.sealed.store(seal.period.0, Ordering::Release);
        Ok(CheckpointId(seal.period.0))
    }

    /// Reports the open writers that have changed since the last checkpoint.
    fn record_open_writers(&self, deadline: Option<Instant>) -> Result<(), RequestError> {
        let writers = self.writers.lock().all();
        if writers.is_empty() {
            return Ok(());
        }
        let source = self.source();
        let failed = |doing| from_source(doing, "writes in flight");
        let can_map: Vec<_> =
            writers.iter().filter(|(_, mode)| mode.can_map).map(|(object, _)| object.clone()).collect();
        let mapped = source.mapped_writable(&can_map).map_err(failed("find out what is mapped"))?;
        let distinct = source.timestamps_are_distinct();
        for (object, _) in &writers {
            if mutation::is(Mutation::SampleAfterWait) {
                source.wait_for_writes(object, deadline).map_err(failed("wait for writes in flight"))?;
            }
            // Before the sample: by the end of the wait it may look older than the last write in its tick.
            let coarse = (!distinct).then(|| self.now_ns());
            let sample =
                source.sample(object).map_err(failed("read the attributes of a file open for writing"))?;
            if !mutation::is(Mutation::SampleAfterWait) {
                source.wait_for_writes(object, deadline).map_err(failed("wait for writes in flight"))?;
            }
            let Some(sample) = sample else { continue };
            let report = self.writers.lock().sampled(object, sample, mapped.contains(object), coarse);
            if report {
                let change = Change::Modified { object: object.clone() };
                let recorded = self.log.lock().record(&self.journal, &**source, change);
                self.after_record(recorded);
            }
        }
        Ok(())
    }

    /// Seals the period and begins the next one, unless there is nothing in it for a consumer.
    fn flip(&self) -> Result<Option<Seal>, RequestError> {
        let mut log = self.log.lock();
        if let Some(why) = &log.failed {
            return Err(RequestError::Journal { why: why.clone() });
        }
        if !log.is_changed {
            return Ok(None);
        }
        let full = || RequestError::Journal { why: "the journal's disk is full".to_owned() };
        if log.overflowing && !log.end_overflow(&self.journal) {
            return Err(full());
        }
        let period = log.period;
        let (kind, payload) = Body::Seal { time_ns: self.now_ns() }.encode();
        match self.journal.append(kind, period, &payload) {
            Ok(usn) => {
                log.next_period();
                Ok(Some(Seal { period, usn }))
            }
            // The room that is kept is for the record that says that others are missing, not for this one.
            Err(AppendError::Full { .. }) => {
                let recorded = log.overflow(&self.journal);
                drop(log);
                self.after_record(recorded);
                Err(full())
            }
            Err(error) => Err(RequestError::journal(&error)),
        }
    }
}

/// Tells an error of the source from a deadline that has passed in it.
fn from_source(doing: &'static str, waiting_for: &'static str) -> impl FnOnce(io::Error) -> RequestError {
    move |source| match (source.kind(), source.get_ref()) {
        (io::ErrorKind::TimedOut, Some(whom)) => {
            RequestError::Deadline { waiting_for: format!("{waiting_for}: {whom}").into() }
        }
        (io::ErrorKind::TimedOut, None) => RequestError::Deadline { waiting_for: waiting_for.into() },
        _ => RequestError::Source { doing, source },
    }
}

/// The record that ends a period.
#[derive(Clone, Copy, Debug)]
struct Seal {
    period: Period,
    usn: highwater_journal::Usn,
}
