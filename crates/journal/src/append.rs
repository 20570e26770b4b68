//! Appending: a record gets its number and its place, in memory.
//!
//! Invariant: whether there is room is decided before a record gets its number.

use std::io;
use std::sync::{Arc, MutexGuard, PoisonError};

use crate::commit::PoisonOnPanic;
use crate::error::AppendError;
use crate::frame::{PAYLOAD_LIMIT, RESERVED_PAYLOAD_LIMIT};
use crate::ids::{Period, RecordKind, Usn};
use crate::journal::Journal;
use crate::options::SEGMENTS_LIMIT;
use crate::segment::{MANIFEST_NAME, Manifest, segment_name};
use crate::state::{Spare, State};
use crate::storage::{Storage, StorageFile};

/// Why there is no spare segment.
#[derive(Debug)]
enum NoSpare {
    Full(Option<io::Error>),
    Failed { operation: &'static str, file: String, source: io::Error },
}

impl<S: Storage> Journal<S> {
    /// Appends a record and returns its number.
    ///
    /// The record is in memory then, no more: [`Journal::write_through`] or [`Journal::sync`] takes it further. Blocks
    /// only if the buffer is full, or if the segment is full and the next one is not prepared yet. The periods of
    /// consecutive records may come in any order: a write section that loaded its period before a checkpoint may append
    /// after it.
    ///
    /// # Errors
    /// [`AppendError::Full`] if there is no room: nothing was lost, and a later append succeeds once there is room.
    /// [`AppendError::TooLarge`]; [`AppendError::Poisoned`].
    pub fn append(&self, kind: RecordKind, period: Period, payload: &[u8]) -> Result<Usn, AppendError> {
        self.append_record(kind, period, payload, false)
    }

    /// Appends a small record, if need be to the room that every segment keeps free for one.
    ///
    /// So that "the journal is full" can be written into the full journal. Once the reserved room is used, it is there
    /// again only when there was room for the next segment.
    ///
    /// # Errors
    /// As [`Journal::append`]; [`AppendError::Full`] if the reserved room was used before, or if the journal was
    /// recovered on a full disk, where no new segment could be made yet.
    pub fn append_reserved(
        &self,
        kind: RecordKind,
        period: Period,
        payload: &[u8],
    ) -> Result<Usn, AppendError> {
        if payload.len() > RESERVED_PAYLOAD_LIMIT {
            return Err(AppendError::TooLarge { found: payload.len(), limit: RESERVED_PAYLOAD_LIMIT });
        }
        self.append_record(kind, period, payload, true)
    }

    fn append_record(
        &self,
        kind: RecordKind,
        period: Period,
        payload: &[u8],
        is_reserved: bool,
    ) -> Result<Usn, AppendError> {
        if payload.len() > PAYLOAD_LIMIT {
            return Err(AppendError::TooLarge { found: payload.len(), limit: PAYLOAD_LIMIT });
        }
        let mut state = self.lock();
        loop {
            if let Some(poison) = &state.poison {
                return Err(poison.clone().into());
            }
            if state.buffered_bytes() >= self.options.buffer_bytes {
                state = if state.flight.is_some() {
                    self.room.wait(state).unwrap_or_else(PoisonError::into_inner)
                } else {
                    self.flush(state, false)
                };
                continue;
            }
            if state.has_room(payload.len(), false) {
                return Ok(state.push(kind, period, payload, false));
            }
            if state.spare.is_some() {
                state.begin_segment();
                continue;
            }
            if state.is_preparing {
                state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            let (relocked, prepared) = self.prepare(state);
            state = relocked;
            if let Err(full) = prepared {
                if is_reserved && state.poison.is_none() && state.has_room(payload.len(), true) {
                    return Ok(state.push(kind, period, payload, true));
                }
                return Err(full);
            }
        }
    }

    /// Prepares the next segment, so that the append that needs it finds it. Failures show up there.
    pub(crate) fn prepare_ahead(&self) {
        let state = self.lock();
        if state.wants_spare() {
            drop(self.prepare(state));
        }
    }

    /// Allocates the next segment, without the lock.
    fn prepare<'a>(
        &'a self,
        mut state: MutexGuard<'a, State<S::File>>,
    ) -> (MutexGuard<'a, State<S::File>>, Result<(), AppendError>) {
        state.is_preparing = true;
        let newest = state.segments.back().expect("a journal has a segment");
        let manifest =
            Manifest { id: state.id, newest: newest.sequence + 1, newest_bytes: self.options.segment_bytes };
        let used = state.occupied_bytes();
        let are_too_many = state.segments.len() as u64 >= SEGMENTS_LIMIT;
        drop(state);

        let panics = PoisonOnPanic { journal: self };
        let allocated = if are_too_many || used + self.options.segment_bytes > self.options.limit_bytes {
            Err(NoSpare::Full(None))
        } else {
            allocate(&self.storage, &manifest)
        };
        std::mem::forget(panics);

        let mut state = self.lock();
        state.is_preparing = false;
        self.room.notify_all();
        let outcome = match allocated {
            Ok(file) => {
                let Manifest { newest: sequence, newest_bytes: bytes, .. } = manifest;
                state.spare = Some(Spare { sequence, bytes, file: Arc::new(file) });
                Ok(())
            }
            Err(NoSpare::Full(source)) => {
                state.found_no_room = true;
                Err(AppendError::Full { source: source.map(Arc::new) })
            }
            Err(NoSpare::Failed { operation, file, source }) => {
                Err(self.poison_with(&mut state, operation, file, source).into())
            }
        };
        (state, outcome)
    }
}

/// Makes the segment that `manifest` names as the newest, and then the manifest itself.
///
/// In this order: when the manifest names the segment, its file is durably there in full length, so a shorter or missing
/// file is damage from then on. A crash before leaves a file that the manifest does not name, and the next open removes.
fn allocate<S: Storage>(storage: &S, manifest: &Manifest) -> Result<S::File, NoSpare> {
    let name = segment_name(manifest.newest);
    let failed = |operation, file: &str| {
        let file = file.to_owned();
        move |source: io::Error| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => NoSpare::Full(Some(source)),
            _ => NoSpare::Failed { operation, file, source },
        }
    };
    let file = match storage.create(&name) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            // An attempt that found no room, and then could not remove its file either.
            storage.remove(&name).map_err(failed("remove", &name))?;
            storage.create(&name)
        }
        created => created,
    };
    let file = file.map_err(failed("create", &name))?;
    let made = (|| {
        file.preallocate(manifest.newest_bytes).map_err(failed("preallocate", &name))?;
        file.sync_data().map_err(failed("sync", &name))?;
        storage.sync_directory().map_err(failed("sync", "the directory"))?;
        storage.replace(MANIFEST_NAME, &manifest.encode()).map_err(failed("replace", MANIFEST_NAME))
    })();
    match made {
        Ok(()) => Ok(file),
        Err(full @ NoSpare::Full(_)) => {
            // Gives back what was allocated. Should that fail, the next attempt does it.
            let _ = storage.remove(&name);
            Err(full)
        }
        Err(failed) => Err(failed),
    }
}
