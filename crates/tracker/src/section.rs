//! A write section: the span of one modifying operation.
//!
//! The order is the protocol: enter; make sure of the intents; do the operation; record it; tell the caller; leave. Why that
//! is enough is argued in docs/protocol.md.

use std::cell::{Cell, OnceCell};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use highwater_barrier::OwnedSection;
use highwater_journal::{AppendError, Directory, Period, Storage, Usn};

use crate::change::{Change, Intent, ObjectType, Sample, WriterMode};
use crate::error::SectionError;
use crate::handle::FileHandle;
use crate::log::Recorded;
use crate::mutation::{self, Mutation};
use crate::record::Body;
use crate::tracker::{Durability, OnFull, Shared};

/// A write section. Left when it is dropped, on any thread.
///
/// A checkpoint that has begun waits until it is left, and no later operation waits for that checkpoint.
#[must_use = "the section is left when it is dropped"]
pub struct Section<S: Storage = Directory> {
    // Left in this order: a checkpoint that waits for tails must find this section's tail inside the section.
    tail: OnceCell<OwnedSection>,
    section: OnceCell<OwnedSection>,
    /// The period in which it was entered.
    #[cfg(feature = "mutants")]
    entered_in: Period,
    /// The window of the coverage in which its first intent was asked for.
    window: Cell<Option<u64>>,
    shared: Arc<Shared<S>>,
}

impl<S: Storage> Section<S> {
    pub(crate) fn enter(shared: &Arc<Shared<S>>) -> Self {
        let section = Self {
            tail: OnceCell::new(),
            section: OnceCell::new(),
            window: Cell::new(None),
            #[cfg(feature = "mutants")]
            entered_in: shared.log.lock().period,
            shared: Arc::clone(shared),
        };
        if !mutation::is(Mutation::CoverageOutsideSection) {
            section.enter_now();
        }
        section
    }

    fn enter_now(&self) {
        self.section.get_or_init(|| self.shared.sections.enter_owned());
    }

    /// Returns when a crash cannot hide what is about to change.
    ///
    /// Strict: waits until the intents are on stable storage, if they are not yet. Relaxed: until the kernel has them.
    ///
    /// # Errors
    /// The operation must not go on. [`SectionError::Full`]; [`SectionError::Failed`].
    pub fn intend(&self, intents: &[Intent<'_>]) -> Result<(), SectionError> {
        let newest = self.append_intents(intents)?;
        self.shared.land(newest)
    }

    /// The same for what has happened already and is going to be recorded: the intents become durable with the records.
    ///
    /// # Errors
    /// As [`Section::intend`].
    pub fn note(&self, intents: &[Intent<'_>]) -> Result<(), SectionError> {
        self.append_intents(intents).map(drop)
    }

    /// Appends the intents that are not covered. Returns the newest that counts.
    fn append_intents(&self, intents: &[Intent<'_>]) -> Result<Usn, SectionError> {
        let shared = &*self.shared;
        let mut newest = Usn(0);
        for intent in intents {
            let whole = match intent {
                // What is made in it now has a birth time that recovery takes for an old one: the directory is told as a whole.
                Intent::Directory(directory) if shared.is_clock_behind() => Some(Intent::Move(directory)),
                _ => None,
            };
            for intent in std::iter::once(intent).chain(&whole) {
                match self.cover(intent) {
                    Ok(usn) => newest = newest.max(usn),
                    Err(error) => return shared.without_intent(&error).map(|()| Usn(0)),
                }
            }
        }
        Ok(newest)
    }

    /// The intent that covers this, which may not be durable yet.
    fn cover(&self, intent: &Intent<'_>) -> Result<Usn, AppendError> {
        let covered = {
            let coverage = self.shared.coverage.lock();
            self.window.set(self.window.get().or(Some(coverage.window)));
            match intent {
                Intent::Move(_) if mutation::is(Mutation::NoMoveIntent) => Some(Usn(0)),
                intent => coverage.of(intent),
            }
        };
        #[cfg(feature = "mutants")]
        self.enter_late();
        covered.map_or_else(|| self.shared.append_intent(intent), Ok)
    }

    /// Records what has happened, before the caller is told. `names` updates the source's name table, as one step with it.
    ///
    /// Cannot fail: a record that does not fit makes consumers fresh.
    pub fn record(&self, change: Change, names: impl FnOnce()) {
        let shared = &*self.shared;
        // Before the record lock: a checkpoint that changes the period after this record waits for this tail.
        self.tail.get_or_init(|| shared.tails.enter_owned());
        let mut log = shared.log.lock();
        names();
        match &change {
            Change::Created { object, object_type: ObjectType::Directory, place } => {
                if let Some(window) = self.window.get() {
                    shared.coverage.lock().inherit(object, &place.parent, window, shared.now_ns());
                }
            }
            Change::Removed { object, object_type: ObjectType::Directory, .. } => {
                shared.coverage.lock().forget(object)
            }
            _ => {}
        }
        #[cfg(feature = "mutants")]
        let _put_back = self.misplace(&mut log);
        let recorded = log.record(&shared.journal, &**shared.source(), change);
        #[cfg(feature = "mutants")]
        _put_back(&mut log);
        let is_large = log.is_large();
        drop(log);
        shared.after_record(recorded);
        // While there still is some: a full journal cannot move the horizon, and so drops nothing.
        if is_large || shared.journal.can_make_room() {
            shared.request_horizon();
        }
    }

    /// Something has happened in a directory, or may have, and what it was could not be found out: all of it is to be compared.
    pub fn lost_sight(&self, directory: &FileHandle) {
        let shared = &*self.shared;
        self.tail.get_or_init(|| shared.tails.enter_owned());
        shared.tell_rescan(&**shared.source(), directory, true);
    }

    /// The object has been opened for writing and can change unseen from now on. `sample`: its attributes before that.
    ///
    /// Its intent must have been made sure of in this section.
    pub fn opened(&self, object: &FileHandle, mode: WriterMode, sample: Sample) {
        let distinct = self.shared.source().timestamps_are_distinct();
        let now_ns = self.shared.now_ns();
        self.shared.writers.lock().opened(object, mode, sample, (!distinct).then_some(now_ns));
    }

    /// One open of the object for writing is about to go. `sample` gives its attributes now (`None`: it is gone); it is asked
    /// only if they matter.
    pub fn closed(&self, object: &FileHandle, sample: impl FnOnce() -> Option<Sample>) {
        let is_told = self.shared.log.lock().tells_data(object);
        let sample = if is_told { None } else { sample() };
        let changed = self.shared.writers.lock().closed(object, sample);
        if changed {
            self.record(Change::Modified { object: object.clone() }, || {});
        }
    }
}

/// Mistakes that take more than a line.
#[cfg(feature = "mutants")]
impl<S: Storage> Section<S> {
    /// Enters between the look at the coverage and what relies on it, after others had their turn.
    fn enter_late(&self) {
        if self.section.get().is_none() {
            self.shared.config.driver.iter().for_each(|driver| driver.wait_for_sections());
            self.enter_now();
        }
    }

    /// Puts the next record into the period in which the section was entered. Returns how that ends.
    fn misplace(&self, log: &mut crate::log::Log) -> impl FnOnce(&mut crate::log::Log) + use<S> {
        let period = log.period;
        if mutation::is(Mutation::RecordInOldPeriod) {
            log.period = self.entered_in;
        }
        move |log| log.period = period
    }
}

impl<S: Storage> Shared<S> {
    /// Appends an intent and covers the object with it.
    pub(crate) fn append_intent(&self, intent: &Intent<'_>) -> Result<Usn, AppendError> {
        let body = match *intent {
            Intent::Directory(directory) => Body::IntentDirectory { directory: directory.clone() },
            Intent::Move(directory) => Body::IntentMove { directory: directory.clone() },
            Intent::Object(object) => {
                let log = self.log.lock();
                let places = self.source().places(object);
                drop(log);
                Body::IntentObject { object: object.clone(), places }
            }
        };
        let (kind, payload) = body.encode();
        // An intent belongs to no batch; the period in its record only tells when it was made.
        let period = Period(self.checkpoints.sealed().0 + 1);
        // The lock of the coverage is held over the append: when the horizon begins a new window under it, every intent of
        // the old one has a smaller USN.
        let mut coverage = self.coverage.lock();
        let usn = self.journal.append(kind, period, &payload)?;
        coverage.cover(intent, usn);
        // ORDERING: a hint for the horizon, which reads it under the lock of the coverage.
        self.is_unstable.store(true, Ordering::Relaxed);
        Ok(usn)
    }

    /// The clock stands before the beginning of the window: it has been set back since.
    fn is_clock_behind(&self) -> bool {
        let began_ns = self.coverage.lock().began_ns;
        self.now_ns() < began_ns && !mutation::is(Mutation::InheritWhateverTheTime)
    }

    /// Waits for an intent as the durability asks for.
    fn land(&self, usn: Usn) -> Result<(), SectionError> {
        let landed = match self.config.durability {
            _ if mutation::is(Mutation::IntentNotDurable) => return Ok(()),
            Durability::Strict if self.journal.durable_usn() >= usn => return Ok(()),
            Durability::Relaxed if self.journal.written_usn() >= usn => return Ok(()),
            Durability::Strict => self.journal.sync(usn),
            Durability::Relaxed => self.journal.write_through(usn),
        };
        // ORDERING: a counter for `status`.
        self.waits.fetch_add(1, Ordering::Relaxed);
        landed.map_err(|error| {
            self.fail(&error);
            SectionError::Failed
        })
    }

    /// There is no intent because the journal does not take one.
    fn without_intent(&self, error: &AppendError) -> Result<(), SectionError> {
        match (error, self.config.on_full) {
            (AppendError::Full { .. }, OnFull::Fail) => Err(SectionError::Full),
            (AppendError::Full { .. }, OnFull::Overflow) => {
                // The record that says so takes the place of all intents: after a crash everything is fresh.
                let (recorded, is_recorded) = {
                    let mut log = self.log.lock();
                    (log.overflow(&self.journal), log.overflow_is_recorded)
                };
                let durable = match recorded {
                    Recorded::Overflow(usn) => self.journal.sync(usn),
                    _ => self.journal.sync(Usn(self.journal.next_usn().0 - 1)),
                };
                self.after_record(recorded);
                if self.log.lock().failed.is_some() || durable.is_err() {
                    Err(SectionError::Failed)
                } else if is_recorded {
                    Ok(())
                } else {
                    Err(SectionError::Full)
                }
            }
            _ => {
                self.fail(error);
                Err(SectionError::Failed)
            }
        }
    }
}
