//! The record lock: the order of the records, the current period, and what has been recorded in it.
//!
//! Invariant: everything that is under this lock happens in USN order. A source updates its name table under it
//! ([`Section::record`](crate::Section::record)), so that the names that a record tells are those after all earlier records
//! and before all later ones. The period changes under it, so that every period is a run of consecutive records.

use std::collections::{HashMap, HashSet};

use highwater_journal::{AppendError, Journal, Period, Storage, Usn};

use crate::change::{Change, ObjectType, Place};
use crate::handle::FileHandle;
use crate::record::Body;
use crate::source::Source;

/// After this many different objects a period is sealed, so that the memory of a tracker that nobody asks stays bounded.
pub(crate) const OBJECTS_PER_PERIOD_MAX: usize = 1 << 20;

/// How many directories may be above each other: the kernel's paths have at most 2048 components, and a handle may be
/// resolved without a path. Only a damaged filesystem has more.
const DEPTH_MAX: usize = 1 << 16;

/// The reason of a record that says that others did not fit.
pub(crate) const FULL: &str = "the journal's disk was full";

const MODIFIED: u8 = 1;
const METADATA: u8 = 2;

#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) period: Period,
    /// Something was recorded in this period that a consumer has to hear of.
    pub(crate) is_changed: bool,
    /// This period has lost a record because the journal was full.
    pub(crate) overflowing: bool,
    /// A record in the journal says so.
    pub(crate) overflow_is_recorded: bool,
    /// Why the journal does not accept records any more.
    pub(crate) failed: Option<String>,
    /// What this period tells of each object already.
    told: HashMap<FileHandle, u8>,
    /// The directories whose place this period has told.
    mentioned: HashSet<FileHandle>,
    root: FileHandle,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// It is in the journal, or this period tells the same already.
    Yes,
    /// The first thing that a consumer has to hear of in this period.
    First,
    /// The journal is full: a record that says so has been appended and is to be made durable.
    Overflow(Usn),
    /// The journal is full and says so already, or does not work any more.
    Lost,
}

impl Log {
    pub(crate) fn new(root: FileHandle, period: Period) -> Self {
        Self {
            period,
            is_changed: false,
            overflowing: false,
            overflow_is_recorded: false,
            failed: None,
            told: HashMap::new(),
            mentioned: HashSet::new(),
            root,
        }
    }

    /// Whether it is time to seal the period even though nobody asks.
    pub(crate) fn is_large(&self) -> bool {
        self.told.len() + self.mentioned.len() >= OBJECTS_PER_PERIOD_MAX
    }

    /// Begins the next period.
    pub(crate) fn next_period(&mut self) {
        self.period = Period(self.period.0 + 1);
        self.is_changed = false;
        self.told = HashMap::new();
        self.mentioned = HashSet::new();
    }

    /// Whether this period tells already that the data of the object may differ.
    pub(crate) fn tells_data(&self, object: &FileHandle) -> bool {
        self.told.get(object).is_some_and(|told| told & MODIFIED != 0)
    }

    /// Records a change, and where the directories that it names are.
    pub(crate) fn record<S: Storage>(
        &mut self,
        journal: &Journal<S>,
        source: &dyn Source,
        change: Change,
    ) -> Recorded {
        let told = match &change {
            Change::Modified { object } => Some((object, MODIFIED)),
            Change::Metadata { object, .. } => Some((object, METADATA)),
            _ => None,
        };
        let mut places = Some(Vec::new());
        if let Some((object, what)) = told {
            // A file whose data are told is taken with its metadata.
            if self.told.get(object).is_some_and(|told| told & (what | MODIFIED) != 0) {
                return Recorded::Yes;
            }
            places = source.places(object);
            if places.as_ref().is_some_and(Vec::is_empty) && *object != self.root {
                // It has no name: nobody can read it, and what gives it one tells it.
                return Recorded::Yes;
            }
            *self.told.entry(object.clone()).or_default() |= what;
        }
        match &change {
            Change::Created { object, object_type, .. } => {
                self.told.insert(object.clone(), MODIFIED | METADATA);
                if *object_type == ObjectType::Directory {
                    self.mentioned.insert(object.clone());
                }
            }
            // Its handle may come back in theory; a new object of that handle is told as created.
            Change::Removed { object, object_type: ObjectType::Directory, .. } => {
                self.mentioned.remove(object);
            }
            _ => {}
        }
        let parents: Vec<FileHandle> = match &change {
            Change::Created { place, .. } | Change::Linked { place, .. } | Change::Removed { place, .. } => {
                vec![place.parent.clone()]
            }
            Change::Renamed { from, to, .. } => vec![from.parent.clone(), to.parent.clone()],
            Change::Exchanged { a_place, b_place, .. } => {
                vec![a_place.parent.clone(), b_place.parent.clone()]
            }
            Change::Modified { .. } | Change::Metadata { .. } => {
                places.iter().flatten().map(|place| place.parent.clone()).collect()
            }
        };
        let mentioned = parents.iter().try_for_each(|parent| self.mention(journal, source, parent));
        let appended = mentioned.and_then(|()| self.append(journal, &Body::Changed { change, places }));
        self.outcome(journal, appended)
    }

    /// Records something of recovery or catch-up. `near`: directories whose places it needs.
    pub(crate) fn record_found<S: Storage>(
        &mut self,
        journal: &Journal<S>,
        source: &dyn Source,
        near: &[&FileHandle],
        body: &Body,
    ) -> Recorded {
        let mentioned = near.iter().try_for_each(|directory| self.mention(journal, source, directory));
        let appended = mentioned.and_then(|()| self.append(journal, body));
        self.outcome(journal, appended)
    }

    /// Tells that something was lost: consumers become fresh.
    pub(crate) fn record_lost<S: Storage>(&mut self, journal: &Journal<S>, reason: String) -> Recorded {
        let (kind, payload) = Body::Lost { reason }.encode();
        let appended = journal.append_reserved(kind, self.period, &payload).map(drop);
        self.outcome(journal, appended)
    }

    fn outcome<S: Storage>(&mut self, journal: &Journal<S>, appended: Result<(), AppendError>) -> Recorded {
        match appended {
            Ok(()) if std::mem::replace(&mut self.is_changed, true) => Recorded::Yes,
            Ok(()) => Recorded::First,
            Err(_) if self.failed.is_some() => Recorded::Lost,
            Err(AppendError::Full { .. }) => self.overflow(journal),
            Err(error) => self.fail(&error),
        }
    }

    /// There is no room for a record: consumers are fresh until there is. Says so in the journal too, if the room that is kept for
    /// that has not been used yet.
    pub(crate) fn overflow<S: Storage>(&mut self, journal: &Journal<S>) -> Recorded {
        self.is_changed = true;
        self.overflowing = true;
        if self.overflow_is_recorded {
            return Recorded::Lost;
        }
        let (kind, payload) = Body::Lost { reason: FULL.to_owned() }.encode();
        match journal.append_reserved(kind, self.period, &payload) {
            Ok(usn) => {
                self.overflow_is_recorded = true;
                Recorded::Overflow(usn)
            }
            Err(AppendError::Full { .. }) => Recorded::Lost,
            Err(error) => self.fail(&error),
        }
    }

    /// Tries whether there is room again. The period says then, once more, that records before here are missing. False: there is none.
    pub(crate) fn end_overflow<S: Storage>(&mut self, journal: &Journal<S>) -> bool {
        match self.append(journal, &Body::Lost { reason: FULL.to_owned() }) {
            Ok(()) => {
                self.overflowing = false;
                self.overflow_is_recorded = false;
                true
            }
            Err(AppendError::Full { .. }) => false,
            Err(error) => {
                self.fail(&error);
                false
            }
        }
    }

    fn fail(&mut self, error: &AppendError) -> Recorded {
        self.is_changed = true;
        self.failed.get_or_insert_with(|| error.to_string());
        Recorded::Lost
    }

    /// Tells where a directory is, and those above it, if this period has not yet.
    fn mention<S: Storage>(
        &mut self,
        journal: &Journal<S>,
        source: &dyn Source,
        directory: &FileHandle,
    ) -> Result<(), AppendError> {
        let mut directory = directory.clone();
        for _ in 0..DEPTH_MAX {
            if directory == self.root || !self.mentioned.insert(directory.clone()) {
                return Ok(());
            }
            let Some(place) = source.places(&directory).and_then(|mut places| places.pop()) else {
                // Nobody knows where it is, or it is gone by now and the record of its removal says where it was. A plan
                // that needs its path tells a rescan of everything.
                return Ok(());
            };
            let parent = place.parent.clone();
            self.append(journal, &Body::Where { directory, place })?;
            directory = parent;
        }
        Ok(())
    }

    fn append<S: Storage>(&self, journal: &Journal<S>, body: &Body) -> Result<(), AppendError> {
        let (kind, payload) = body.encode();
        journal.append(kind, self.period, &payload).map(drop)
    }
}

/// The places of an object that recovery or catch-up has found itself.
pub(crate) fn parents(places: &[Place]) -> Vec<&FileHandle> {
    places.iter().map(|place| &place.parent).collect()
}
