//! Dropping old segments.
//!
//! Invariant: segments go oldest first and one by one, each removal durable before the next, so that a crash never
//! leaves a hole; and never one whose successor is not durably there.

use std::io;
use std::sync::PoisonError;

use crate::error::RetainError;
use crate::ids::Period;
use crate::journal::Journal;
use crate::segment::segment_name;
use crate::storage::Storage;

/// What was dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// How many segments.
    pub segments: u64,
    /// Their length in bytes.
    pub bytes: u64,
}

impl<S: Storage> Journal<S> {
    /// Drops the oldest segments that hold only records of periods before `keep_from`.
    ///
    /// Never the one that is appended to, so a little more is kept than was asked for. Reads under way are not
    /// disturbed.
    ///
    /// # Errors
    /// [`RetainError::Io`]: a segment could not be removed, and may be tried again; [`RetainError::Poisoned`].
    pub fn retain(&self, keep_from: Period) -> Result<Dropped, RetainError> {
        self.drop_while(keep_from, |_| true)
    }

    /// Drops the oldest segments as long as the journal is larger than
    /// [`Options::retain_bytes`](crate::Options::retain_bytes), but none with a record of `protect` or a later period.
    ///
    /// Consumers behind [`Journal::oldest_period_kept`] become fresh.
    ///
    /// # Errors
    /// As [`Journal::retain`].
    pub fn retain_size(&self, protect: Period) -> Result<Dropped, RetainError> {
        self.drop_while(protect, |bytes| bytes > self.options.retain_bytes)
    }

    /// Drops the oldest segments, one by one, until there is room for the next one; none with a record of `protect` or a later
    /// period. Does nothing unless there was no room at the last attempt to make a segment ahead.
    ///
    /// # Errors
    /// As [`Journal::retain`].
    pub fn make_room(&self, protect: Period) -> Result<Dropped, RetainError> {
        let mut dropped = Dropped::default();
        while self.can_make_room() {
            let is_first = std::cell::Cell::new(true);
            let one = self.drop_while(protect, |_| is_first.take())?;
            if one.segments == 0 {
                break;
            }
            dropped.segments += one.segments;
            dropped.bytes += one.bytes;
            self.prepare_ahead();
        }
        Ok(dropped)
    }

    /// Tells whether there was no room for the next segment, and there are old ones.
    #[must_use]
    pub fn can_make_room(&self) -> bool {
        let state = self.lock();
        state.found_no_room && state.segments.len() > 1
    }

    /// Returns the bytes that the journal's segments occupy.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.lock().occupied_bytes()
    }

    fn drop_while(
        &self,
        keep_from: Period,
        is_too_large: impl Fn(u64) -> bool,
    ) -> Result<Dropped, RetainError> {
        let _one_at_a_time = self.retention.lock().unwrap_or_else(PoisonError::into_inner);
        let mut dropped = Dropped::default();
        loop {
            let (sequence, bytes) = {
                let state = self.lock();
                if let Some(poison) = &state.poison {
                    return Err(poison.clone().into());
                }
                let total = state.occupied_bytes();
                let (Some(oldest), Some(next)) = (state.segments.front(), state.segments.get(1)) else {
                    break;
                };
                if !next.is_born || next.period_before >= keep_from || !is_too_large(total) {
                    break;
                }
                (oldest.sequence, oldest.kept_bytes())
            };
            let file = segment_name(sequence);
            match self.storage.remove(&file) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(RetainError::Io { file, source });
                }
                _ => {}
            }
            let synced = self.storage.sync_directory();
            let mut state = self.lock();
            if let Err(source) = synced {
                return Err(self.poison_with(&mut state, "sync", "the directory".to_owned(), source).into());
            }
            state.segments.pop_front();
            state.found_no_room = false;
            dropped.segments += 1;
            dropped.bytes += bytes;
        }
        Ok(dropped)
    }
}
