//! The stable horizon: the last period whose effects are known to be on stable storage.
//!
//! It moves by itself, by time, when a period grows large, and at a clean stop; consumers never pay for a `syncfs`. The steps:
//!
//! 1. A new window of the coverage: from here on every operation needs an intent with a USN of at least `intents_from`.
//! 2. A barrier: operations that went on under an older intent have ended.
//! 3. An intent for every object that is open for writing: it can change without an operation.
//! 4. A checkpoint, which seals period p. All that step 2 waited for is recorded in p or before; whatever is recorded later, a
//!    writer that closes included, has an intent of the new window.
//! 5. The intents are made durable, then `syncfs`: everything that ended before it is on stable storage, so all of p.
//! 6. `Stable(p, intents_from)`, durable. Intents before `intents_from` are not needed any more.
//!
//! A crash between any two of these finds the `Stable` record before this one, and all intents since.

use std::sync::atomic::Ordering;

use highwater_journal::{Period, Storage};

use crate::change::Intent;
use crate::error::RequestError;
use crate::mutation::{self, Mutation};
use crate::record::Body;
use crate::state_file;
use crate::tracker::Shared;

/// The state file that tells where recovery has to begin to read.
pub(crate) const FILE: &str = "horizon";

impl<S: Storage> Shared<S> {
    /// The thread that moves the horizon.
    pub(crate) fn move_horizon(&self) {
        loop {
            {
                let mut wake = self.horizon_wake.0.lock();
                if *wake == Wake::No {
                    self.horizon_wake.1.wait_for(&mut wake, self.config.horizon_every);
                }
                if *wake == Wake::Stop {
                    return;
                }
                *wake = Wake::No;
            }
            let is_needed = self.is_unstable() || self.log.lock().is_changed;
            if is_needed && let Err(error) = self.advance_horizon() {
                tracing::warn!(
                    error = crate::error::with_causes(&error),
                    "the stable horizon stays where it is"
                );
            }
        }
    }

    /// Asks for the horizon to be moved soon.
    pub(crate) fn request_horizon(&self) {
        let mut wake = self.horizon_wake.0.lock();
        if *wake == Wake::No {
            *wake = Wake::Now;
            self.horizon_wake.1.notify_all();
        }
    }

    fn is_unstable(&self) -> bool {
        // ORDERING: written under the lock of the coverage, which is taken here for that reason.
        let _coverage = self.coverage.lock();
        self.is_unstable.load(Ordering::Relaxed)
    }

    pub(crate) fn advance_horizon(&self) -> Result<(), RequestError> {
        let _one_at_a_time = self.horizon_turn.lock();
        if mutation::is(Mutation::WindowAfterBarrier) {
            self.wait_for(&self.sections);
        }
        let early =
            mutation::is(Mutation::CheckpointBeforeWindow).then(|| self.checkpoint(None)).transpose()?;
        let (intents_from, time_ns) = {
            let mut coverage = self.coverage.lock();
            coverage.begin_window(self.now_ns());
            // ORDERING: see `is_unstable`.
            self.is_unstable.store(false, Ordering::Relaxed);
            (self.journal.next_usn(), coverage.began_ns)
        };
        let moved = self.advance_horizon_to(intents_from, time_ns, early);
        if moved.is_err() {
            // ORDERING: a hint to try again.
            self.is_unstable.store(true, Ordering::Relaxed);
        }
        moved
    }

    fn advance_horizon_to(
        &self,
        intents_from: highwater_journal::Usn,
        time_ns: u64,
        early: Option<crate::cursor::CheckpointId>,
    ) -> Result<(), RequestError> {
        if !mutation::is(Mutation::NoHorizonBarrier) && !mutation::is(Mutation::WindowAfterBarrier) {
            self.wait_for(&self.sections);
        }
        let mut writers = self.writers.lock().all();
        writers.retain(|_| !mutation::is(Mutation::NoWriterIntents));
        for (object, _) in &writers {
            self.append_intent(&Intent::Object(object)).map_err(|error| RequestError::journal(&error))?;
        }
        if !writers.is_empty() {
            // ORDERING: see `is_unstable`. These intents alone are no reason to move the horizon again.
            self.is_unstable.store(false, Ordering::Relaxed);
        }
        // Not earlier: a record that does not count after a crash, since its period is not p, must have an intent that does.
        let checkpoint = early.map_or_else(|| self.checkpoint(None), Ok)?;
        self.sync_journal()?;
        let synced = if mutation::is(Mutation::NoSyncfs) { Ok(()) } else { self.source().sync_filesystem() };
        synced.map_err(|source| RequestError::Source { doing: "sync the tracked filesystem", source })?;
        let (kind, payload) = Body::Stable { checkpoint, intents_from, time_ns }.encode();
        let period = self.log.lock().period;
        self.journal.append(kind, period, &payload).map_err(|error| RequestError::journal(&error))?;
        self.sync_journal()?;
        // ORDERING: a figure for `status`; what counts is the record.
        self.stable.store(checkpoint.0, Ordering::Relaxed);
        let decimal = |number: u64| number.to_string().into_bytes();
        let lines = [
            ("intents-from", decimal(intents_from.0)),
            ("time-ns", decimal(time_ns)),
            ("boot-id", self.facts.boot_id.clone().into_bytes()),
        ];
        state_file::write(self.journal.storage(), FILE, lines)
            .map_err(|source| RequestError::State { doing: "store the horizon", source })?;
        let protect = Period(checkpoint.0 + 1);
        let retained = self.journal.retain_size(protect).and_then(|_| self.journal.make_room(protect));
        if let Err(error) = retained {
            tracing::warn!(error = crate::error::with_causes(&error), "old journal segments stay");
        }
        Ok(())
    }

    fn sync_journal(&self) -> Result<(), RequestError> {
        let last = highwater_journal::Usn(self.journal.next_usn().0 - 1);
        self.journal.sync(last).map_err(|error| {
            self.fail(&error);
            RequestError::journal(&error)
        })
    }

    /// The end of a clean stop: everything is stable, and the journal says so.
    pub(crate) fn close(&self) -> Result<(), RequestError> {
        self.advance_horizon()?;
        let (kind, payload) = Body::Stopped { time_ns: self.now_ns() }.encode();
        let period = self.log.lock().period;
        self.journal.append(kind, period, &payload).map_err(|error| RequestError::journal(&error))?;
        self.sync_journal()
    }
}

/// What the thread of the horizon is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Wait until it is time.
    No,
    /// Move the horizon.
    Now,
    /// End.
    Stop,
}
