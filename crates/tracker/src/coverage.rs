//! Which objects have an intent that will be found after a crash.
//!
//! An intent counts from the moment that the stable horizon begins to move ([`Coverage::begin_window`]) until it has moved
//! past it. A directory made in this window needs no intent of its own: recovery finds it, because it walks the directory
//! that the new one was made in and tells everything that was born since the window began.
//!
//! Invariant: an object is in the map only if recovery would tell it, given that the intent of that USN is in the journal.

use std::collections::HashMap;
use std::time::Duration;

use highwater_journal::Usn;

use crate::handle::FileHandle;
use crate::mutation::{self, Mutation};

/// How far a birth time may lie behind the clock that we read: filesystems stamp with the clock of the last tick.
pub(crate) const BIRTH_SLACK: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Coverage {
    intents: HashMap<FileHandle, Usn>,
    moves: HashMap<FileHandle, Usn>,
    /// The number of this window.
    pub(crate) window: u64,
    /// When this window began. A directory born before it is not found by its birth time.
    pub(crate) began_ns: u64,
}

impl Coverage {
    pub(crate) fn new(began_ns: u64) -> Self {
        Self { intents: HashMap::new(), moves: HashMap::new(), window: 0, began_ns }
    }

    /// The intent that covers an object.
    pub(crate) fn of(&self, object: &FileHandle) -> Option<Usn> {
        self.intents.get(object).copied()
    }

    /// The intent that covers the moving of a directory.
    pub(crate) fn of_move(&self, directory: &FileHandle) -> Option<Usn> {
        self.moves.get(directory).copied()
    }

    pub(crate) fn cover(&mut self, object: &FileHandle, usn: Usn) {
        self.intents.insert(object.clone(), usn);
    }

    pub(crate) fn cover_move(&mut self, directory: &FileHandle, usn: Usn) {
        self.moves.insert(directory.clone(), usn);
    }

    /// A directory has been made in another one: what covers the parent covers it, for changes in it and for its being moved.
    ///
    /// `window` is the one in which its maker asked for an intent. Not if that was an earlier one, or if the clock stands before
    /// the beginning of the window: its birth time would not tell that it is new.
    pub(crate) fn inherit(&mut self, directory: &FileHandle, parent: &FileHandle, window: u64, now_ns: u64) {
        let is_new = window == self.window && now_ns >= self.began_ns;
        if let Some(usn) =
            self.of(parent).filter(|_| is_new || mutation::is(Mutation::InheritWhateverTheTime))
        {
            self.cover(directory, usn);
            self.cover_move(directory, usn);
        }
    }

    /// Forgets an object that is gone, so that the map stays as small as the set of live objects.
    pub(crate) fn forget(&mut self, object: &FileHandle) {
        self.intents.remove(object);
        self.moves.remove(object);
    }

    /// Every intent so far will not count any more once the horizon has moved.
    pub(crate) fn begin_window(&mut self, now_ns: u64) {
        *self = Self { window: self.window + 1, ..Self::new(now_ns) };
    }
}
