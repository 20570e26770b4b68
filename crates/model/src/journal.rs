//! The journal: what is durable, and the tail that is not yet.
//!
//! The durable part is kept by what it says and not by how it is laid out, so that states that differ only in old history are one
//! state: intents by the window that they belong to (their USN is at least `intents_from` of that window), records by period.

use crate::tree::{Id, Place, Tree};

/// What may be about to change (docs/protocol.md, "What is durable when").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Intent {
    Directory(Id),
    Move(Id),
    /// An object by the name that it had.
    Object(Id, Place),
}

/// What has happened, or has been found by recovery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Record {
    Created(Id, Place),
    Removed(Place),
    Moved(Place, Place),
    Modified(Id),
    Rescan(Id),
    Whole(Id),
    Recovered(Place),
}

/// One entry of the tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Entry {
    Intent {
        intent: Intent,
        window: u8,
    },
    Record {
        period: u8,
        record: Record,
    },
    Seal(u8),
    /// Everything through this period is on stable storage; intents of earlier windows are not needed any more.
    Stable {
        period: u8,
        window: u8,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Journal {
    /// Durable intents of the windows that count.
    pub(crate) intents: Vec<(u8, Intent)>,
    /// Durable records of the periods that some consumer may still ask for.
    pub(crate) records: Vec<(u8, Record)>,
    pub(crate) sealed: u8,
    pub(crate) stable_period: u8,
    pub(crate) stable_window: u8,
    /// What was on disk when the stable horizon moved last. Not in the journal; the oracle of G4.
    pub(crate) stable_tree: Tree,
    /// The same for a `Stable` that is still in the tail.
    pub(crate) synced_tree: Tree,
    /// Appended, not durable, in order.
    pub(crate) tail: Vec<Entry>,
}

impl Journal {
    pub(crate) fn append(&mut self, entry: Entry) {
        self.tail.push(entry);
    }

    /// Makes the first entries of the tail durable.
    pub(crate) fn sync(&mut self, count: usize) {
        let entries: Vec<Entry> = self.tail.drain(..count).collect();
        for entry in entries {
            match entry {
                Entry::Intent { intent, window } => insert(&mut self.intents, (window, intent)),
                Entry::Record { period, record } => insert(&mut self.records, (period, record)),
                Entry::Seal(period) => self.sealed = period,
                Entry::Stable { period, window } => {
                    self.stable_period = period;
                    self.stable_window = window;
                    self.stable_tree = self.synced_tree;
                    self.intents.retain(|(of, _)| *of >= window);
                }
            }
        }
    }

    pub(crate) fn sync_all(&mut self) {
        self.sync(self.tail.len());
    }

    /// Whether an intent of this window for an object (or a directory's move) is appended and not durable.
    pub(crate) fn awaits(&self, object: Id, is_move: bool) -> bool {
        self.tail.iter().any(|entry| match entry {
            Entry::Intent { intent: Intent::Directory(id) | Intent::Object(id, _), .. } => {
                !is_move && *id == object
            }
            Entry::Intent { intent: Intent::Move(id), .. } => is_move && *id == object,
            _ => false,
        })
    }

    /// Retention: forgets the records that everybody has acked.
    pub(crate) fn drop_acked(&mut self, acked: u8) {
        self.records.retain(|(period, _)| *period > acked);
    }
}

fn insert<T: Ord>(sorted: &mut Vec<T>, item: T) {
    if let Err(index) = sorted.binary_search(&item) {
        sorted.insert(index, item);
    }
}
