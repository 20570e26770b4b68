//! Group commit: one write and one sync for everyone who waits.
//!
//! A waiter that finds no flush under way leads one: it takes everything buffered, writes it, syncs it, and wakes the
//! waiters. Those who come meanwhile wait; when the flush ends and has not served them, one of them leads the next. So
//! there is no thread of its own, a lone waiter pays one write and one sync, and any number of waiters share two.
//!
//! Invariant: what is written goes out in the order of its numbers, and a new segment's header only after everything
//! before it is durable. So unsynced bytes that anybody reads are only ever in the last segment.

use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};

use crate::error::JournalError;
use crate::ids::Usn;
use crate::journal::Journal;
use crate::segment::segment_name;
use crate::state::{Flight, Run, State, kept_bytes};
use crate::storage::{Storage, StorageFile};

/// The operation that failed, on which file.
struct Failed {
    operation: &'static str,
    file: String,
    source: io::Error,
}

impl<S: Storage> Journal<S> {
    /// Returns once the record, and every one before it, was handed to the kernel: it survives a kill of this process,
    /// but not a power loss.
    ///
    /// # Errors
    /// [`JournalError::Poisoned`] if a write or sync failed, now or before; whether the record is there shows when the
    /// journal is opened again.
    ///
    /// # Panics
    /// If the number was never assigned.
    pub fn write_through(&self, usn: Usn) -> Result<(), JournalError> {
        self.wait(usn, false)
    }

    /// Returns once the record, and every one before it, is durable: it survives a power loss.
    ///
    /// # Errors
    /// As [`Journal::write_through`].
    ///
    /// # Panics
    /// If the number was never assigned.
    pub fn sync(&self, usn: Usn) -> Result<(), JournalError> {
        self.wait(usn, true)
    }

    fn wait(&self, usn: Usn, is_sync: bool) -> Result<(), JournalError> {
        let mut state = self.lock();
        assert!(usn < state.next_usn, "{usn} was never assigned");
        let mut has_led = false;
        let mut has_yielded = false;
        loop {
            let reached = if is_sync { state.durable_usn } else { state.written_usn };
            if usn <= reached {
                break;
            }
            if let Some(poison) = &state.poison {
                return Err(poison.clone().into());
            }
            let Some(flight) = state.flight else {
                if state.others_waited && !has_yielded {
                    // Those whom the last flush has just served are about to come back with their next record. Let
                    // them append it first, or this flush would be one record, and they would wait for it.
                    has_yielded = true;
                    drop(state);
                    std::thread::yield_now();
                    state = self.lock();
                    continue;
                }
                state = self.flush(state, is_sync);
                has_led = true;
                continue;
            };
            let serves_me = usn <= flight.last_usn && (flight.is_sync || !is_sync);
            let turn = state.flights + u64::from(!serves_me);
            state.waiters += 1;
            state =
                self.flushed[usize::from(turn % 2 == 1)].wait(state).unwrap_or_else(PoisonError::into_inner);
            state.waiters -= 1;
        }
        let wants_spare = has_led && state.wants_spare();
        drop(state);
        if wants_spare {
            self.prepare_ahead();
        }
        Ok(())
    }

    /// Writes everything that was appended, and syncs it if asked to. There must be no flush under way.
    pub(crate) fn flush<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<S::File>>,
        is_sync: bool,
    ) -> MutexGuard<'a, State<S::File>> {
        assert!(state.flight.is_none(), "one flush at a time");
        let runs = Arc::new(state.take());
        let last_usn = Usn(state.next_usn.0 - 1);
        state.flights += 1;
        state.flight = Some(Flight { last_usn, is_sync });
        state.in_flight = Arc::clone(&runs);
        // Without a run there is still what earlier flushes wrote and did not sync: all of it in the last segment.
        let last = state.segments.back().expect("a journal has a segment");
        let (file, sequence) = (Arc::clone(&last.file), last.sequence);
        // If retention dropped the segment before the first run, everything in it was durable.
        let first = runs.first().map_or(sequence, |run| run.sequence);
        let before = state.segments.iter().rev().find(|segment| segment.sequence < first);
        let before = before.map(|segment| (Arc::clone(&segment.file), segment.sequence));
        drop(state);

        let panics = PoisonOnPanic { journal: self };
        let outcome = write(&runs, before, (is_sync, &file, sequence));
        std::mem::forget(panics);

        let mut state = self.lock();
        match outcome {
            Ok(()) => {
                for run in runs.iter() {
                    let end = run.offset + run.bytes.len() as u64;
                    if let Some(header) = &run.header {
                        state.durable_usn = state.durable_usn.max(header.previous_usn);
                    }
                    // The newest are last, and retention keeps the active one.
                    let mut segments = state.segments.iter_mut().rev();
                    if let Some(segment) = segments.find(|segment| segment.sequence == run.sequence) {
                        segment.written_end = end;
                        segment.is_born = true;
                    }
                }
                state.written_usn = last_usn;
                if is_sync {
                    state.durable_usn = last_usn;
                }
            }
            Err(Failed { operation, file, source }) => {
                self.poison_with(&mut state, operation, file, source);
            }
        }
        self.land(state);
        self.lock()
    }

    /// Ends a flush and wakes who waits for it: outside the lock, which they all need, and the next leader first, so
    /// that the next sync begins while the others wake up.
    fn land(&self, mut state: MutexGuard<'_, State<S::File>>) {
        state.flight = None;
        state.in_flight = Arc::default();
        let turn = usize::from(state.flights % 2 == 1);
        let is_poisoned = state.poison.is_some();
        state.others_waited = state.waiters > 0;
        drop(state);
        if is_poisoned {
            self.flushed[1 - turn].notify_all();
        } else {
            self.flushed[1 - turn].notify_one();
        }
        self.flushed[turn].notify_all();
        self.room.notify_all();
    }
}

/// Stops the journal if the storage panics, so that nobody waits for ever for what will not come. Forgotten if not.
pub(crate) struct PoisonOnPanic<'a, S: Storage> {
    pub(crate) journal: &'a Journal<S>,
}

impl<S: Storage> Drop for PoisonOnPanic<'_, S> {
    fn drop(&mut self) {
        let mut state = self.journal.lock();
        let source = io::Error::other("the storage panicked");
        self.journal.poison_with(&mut state, "use", "the storage".to_owned(), source);
        state.is_preparing = false;
        self.journal.land(state);
    }
}

/// Writes the runs in order. `before` is the segment before the first run's.
fn write<F: StorageFile>(
    runs: &[Run<F>],
    mut before: Option<(Arc<F>, u64)>,
    (is_sync, last, last_sequence): (bool, &Arc<F>, u64),
) -> Result<(), Failed> {
    let failed =
        |operation, sequence| move |source| Failed { operation, file: segment_name(sequence), source };
    for run in runs {
        if let Some(header) = &run.header {
            if let Some((file, sequence)) = &before {
                file.sync_data().map_err(failed("sync", *sequence))?;
            }
            run.file.write_at(&header.encode(), 0).map_err(failed("write", run.sequence))?;
            run.file.sync_data().map_err(failed("sync", run.sequence))?;
            if let Some((file, _)) = &before {
                // Durably ended, perhaps long before its end: a tracker that is killed again and again must not fill the disk. A
                // filesystem that cannot do this keeps the space.
                let _ = file.give_back(kept_bytes(header.previous_end));
            }
        }
        if !run.bytes.is_empty() {
            run.file.write_at(&run.bytes, run.offset).map_err(failed("write", run.sequence))?;
        }
        before = Some((Arc::clone(&run.file), run.sequence));
    }
    if is_sync {
        last.sync_data().map_err(failed("sync", last_sequence))?;
    }
    Ok(())
}
