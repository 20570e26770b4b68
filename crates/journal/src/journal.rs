//! The journal: creating, opening and closing it, and what it can tell about itself.
//!
//! Invariant: at most one flush writes at a time, and after the first failure none does.

use std::fmt;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::error::{JournalError, OpenError, Poisoned};
use crate::frame::{Chain, FLAG_CLOSED, FLAG_OPENED};
use crate::ids::{JournalId, Period, Usn};
use crate::options::Options;
use crate::recovery::{self, Recovered};
use crate::segment::{MANIFEST_NAME, Manifest, SegmentHeader, segment_name, segment_sequence};
use crate::state::{Active, Segment, State};
use crate::storage::{Storage, StorageFile};

/// A durable, append-only journal on a [`Storage`]. All methods may be called from any number of threads.
///
/// Dropping it is like killing the process: what was not written through is lost. [`Journal::close`] is the clean end.
pub struct Journal<S: Storage> {
    pub(crate) storage: S,
    pub(crate) options: Options,
    pub(crate) state: Mutex<State<S::File>>,
    /// Where waiters sleep: those that the n-th flush serves in `flushed[n % 2]`, so that the end of one flush wakes
    /// everyone it served and only one of those it did not, to lead the next.
    pub(crate) flushed: [Condvar; 2],
    /// Held while segments are dropped.
    pub(crate) retention: Mutex<()>,
    /// Where appends wait for a segment being prepared, or for a buffer being written.
    pub(crate) room: Condvar,
}

impl<S: Storage> Journal<S> {
    /// Creates a journal in a storage that holds none.
    ///
    /// A crash before the return leaves no journal ([`OpenError::Missing`]) or an empty one.
    ///
    /// # Errors
    /// [`OpenError::Options`], [`OpenError::Exists`], [`OpenError::Io`].
    pub fn create(storage: S, id: JournalId, options: Options) -> Result<Self, OpenError> {
        options.validate()?;
        for file in storage.list().map_err(io_error("list", "the directory"))? {
            // Without a manifest, segments are what an interrupted creation or removal left.
            if file == MANIFEST_NAME {
                return Err(OpenError::Exists { file });
            }
            if segment_sequence(&file).is_some() {
                storage.remove(&file).map_err(io_error("remove", &file))?;
            }
        }
        let header = SegmentHeader {
            id,
            sequence: 1,
            bytes: options.segment_bytes,
            first_usn: options.first_usn,
            period_before: Period(0),
            previous_end: 0,
            previous_usn: Usn(options.first_usn.0 - 1),
            previous_chain: Chain::default(),
        };
        let name = segment_name(1);
        let file = storage.create(&name).map_err(io_error("create", &name))?;
        file.preallocate(header.bytes).map_err(io_error("preallocate", &name))?;
        file.write_at(&header.encode(), 0).map_err(io_error("write", &name))?;
        file.sync_data().map_err(io_error("sync", &name))?;
        storage.sync_directory().map_err(io_error("sync", "the directory"))?;
        let manifest = Manifest { id, newest: 1, newest_bytes: header.bytes };
        storage.replace(MANIFEST_NAME, &manifest.encode()).map_err(io_error("replace", MANIFEST_NAME))?;

        let segment = Segment::new(&header, Arc::new(file), true);
        let state = State {
            id,
            active: Some(Active::new(&segment, id, None)),
            segments: [segment].into(),
            pending: Vec::new(),
            in_flight: Arc::default(),
            spare: None,
            is_preparing: false,
            flight: None,
            flights: 0,
            waiters: 0,
            others_waited: false,
            next_usn: header.first_usn,
            written_usn: header.previous_usn,
            durable_usn: header.previous_usn,
            last_period: Period(0),
            last_usn: header.previous_usn,
            found_no_room: false,
            poison: None,
        };
        Ok(Self::with_state(storage, options, state))
    }

    /// Opens the journal in a storage, whatever way it was left.
    ///
    /// Everything in the answer is durable, also what a killed process had only handed to the kernel. A torn tail is
    /// dropped, and new records go to a new segment behind it, with numbers far enough on that none is used twice.
    /// Reads the headers of all segments and the records of the last one; the records of the others are checked when
    /// they are read.
    ///
    /// # Errors
    /// [`OpenError::Missing`] if there is none; [`OpenError::Damaged`] if it cannot be trusted to hold everything that
    /// was durable: it changed nothing, and the way on is [`Journal::discard`] and a new journal;
    /// [`OpenError::NewerFormat`]; [`OpenError::Options`]; [`OpenError::Io`].
    pub fn open(storage: S, options: Options) -> Result<(Self, Recovered), OpenError> {
        options.validate()?;
        let (state, recovered) = recovery::recover(&storage)?;
        let journal = Self::with_state(storage, options, state);
        let mut state = journal.lock();
        if state.active.is_some() {
            // The segment ends with "closed". That must not stand there when the first number is assigned: a crash
            // before the record is durable would leave a clean end, and the number would be used twice.
            state.close_batch(FLAG_OPENED);
            drop(journal.flush(state, true));
        } else {
            drop(state);
            // So that there is reserved room, if the disk has any.
            journal.prepare_ahead();
        }
        if let Some(Poisoned { operation, file, source }) = journal.poison() {
            let source = io::Error::new(source.kind(), source);
            return Err(OpenError::Io { operation, file, source });
        }
        Ok((journal, recovered))
    }

    /// Removes a journal, damaged or not, but no other file of the storage.
    ///
    /// A crash before the return leaves the journal as it was, or none ([`OpenError::Missing`]).
    ///
    /// # Errors
    /// The storage's; calling it again goes on.
    pub fn discard(storage: &S) -> io::Result<()> {
        match storage.remove(MANIFEST_NAME) {
            Ok(()) => storage.sync_directory()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        for name in storage.list()?.iter().filter(|name| segment_sequence(name).is_some()) {
            storage.remove(name)?;
        }
        storage.sync_directory()
    }

    fn with_state(storage: S, options: Options, state: State<S::File>) -> Self {
        Self {
            storage,
            options,
            state: Mutex::new(state),
            flushed: [Condvar::new(), Condvar::new()],
            retention: Mutex::new(()),
            room: Condvar::new(),
        }
    }

    /// Makes everything durable and notes that the journal was left whole, so that the next open goes on where this
    /// one ended. To be called last: a record that is appended after it takes the note back.
    ///
    /// # Errors
    /// [`JournalError::Poisoned`]; the next open then recovers as after a crash.
    pub fn close(&mut self) -> Result<(), JournalError> {
        let mut state = self.lock();
        if let Some(poison) = &state.poison {
            return Err(poison.clone().into());
        }
        state.close_batch(FLAG_CLOSED);
        drop(self.flush(state, true));
        match &self.lock().poison {
            Some(poison) => Err(poison.clone().into()),
            None => Ok(()),
        }
    }

    /// Returns the journal's name.
    #[must_use]
    pub fn id(&self) -> JournalId {
        self.lock().id
    }

    /// Returns the storage.
    #[must_use]
    pub fn storage(&self) -> &S {
        &self.storage
    }

    /// Returns the options in force.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Returns the number that the next record gets.
    #[must_use]
    pub fn next_usn(&self) -> Usn {
        self.lock().next_usn
    }

    /// Returns the number up to which every record survives a kill of the process.
    #[must_use]
    pub fn written_usn(&self) -> Usn {
        self.lock().written_usn
    }

    /// Returns the number up to which every record survives a power loss.
    #[must_use]
    pub fn durable_usn(&self) -> Usn {
        self.lock().durable_usn
    }

    /// Returns the largest period of any record that was appended, `Period(0)` if there is none.
    #[must_use]
    pub fn last_period(&self) -> Period {
        self.lock().last_period
    }

    /// Returns the first failure, if the journal has stopped at one.
    #[must_use]
    pub fn poison(&self) -> Option<Poisoned> {
        self.lock().poison.clone()
    }

    /// Locks the state. A panic of another thread cannot leave it half changed: a flush that panics poisons the journal.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State<S::File>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the journal at a failure, unless it has stopped before, and returns the first one.
    pub(crate) fn poison_with(
        &self,
        state: &mut State<S::File>,
        operation: &'static str,
        file: String,
        source: io::Error,
    ) -> Poisoned {
        let poison = Poisoned { operation, file, source: Arc::new(source) };
        state.poison.get_or_insert(poison).clone()
    }
}

impl<S: Storage> fmt::Debug for Journal<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Journal")
            .field("id", &state.id)
            .field("next_usn", &state.next_usn)
            .field("written_usn", &state.written_usn)
            .field("durable_usn", &state.durable_usn)
            .field("segments", &state.segments.len())
            .field("poison", &state.poison)
            .finish_non_exhaustive()
    }
}

pub(crate) fn io_error(operation: &'static str, file: &str) -> impl Fn(io::Error) -> OpenError + use<> {
    let file = file.to_owned();
    move |source| OpenError::Io { operation, file: file.clone(), source }
}
