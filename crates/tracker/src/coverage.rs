//! Which objects have an intent that will be found after a crash.
//!
//! An intent counts from the moment that the stable horizon begins to move ([`Coverage::begin_window`]) until it has moved
//! past it. A directory made in this window needs no intent of its own: recovery finds it, because it walks the directory
//! that the new one was made in and tells everything that was born since the window began.
//!
//! Invariant: a map has an object only if recovery would tell what that intent covers, given that the intent of that USN is in the
//! journal.

use std::collections::HashMap;
use std::time::Duration;

use highwater_journal::Usn;

use crate::change::Intent;
use crate::handle::FileHandle;
use crate::mutation::{self, Mutation};

/// How far a birth time may lie behind the clock that we read: filesystems stamp with the clock of the last tick.
pub(crate) const BIRTH_SLACK: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(crate) struct Coverage {
    directories: HashMap<FileHandle, Usn>,
    /// Not in one map with the directories: recovery looks at an object that had an intent of its own, and not at what is in it.
    objects: HashMap<FileHandle, Usn>,
    moves: HashMap<FileHandle, Usn>,
    /// The number of this window.
    pub(crate) window: u64,
    /// When this window began. A directory born before it is not found by its birth time.
    pub(crate) began_ns: u64,
}

impl Coverage {
    pub(crate) fn new(began_ns: u64) -> Self {
        let (directories, objects, moves) = Default::default();
        Self { directories, objects, moves, window: 0, began_ns }
    }

    /// The intent that covers what this one would.
    pub(crate) fn of(&self, intent: &Intent<'_>) -> Option<Usn> {
        let found = match intent {
            Intent::Directory(directory) => self.directories.get(directory),
            Intent::Object(object) => self.objects.get(object).or_else(|| self.directories.get(object)),
            Intent::Move(directory) => self.moves.get(directory),
        };
        found.copied()
    }

    pub(crate) fn cover(&mut self, intent: &Intent<'_>, usn: Usn) {
        let (map, handle) = match *intent {
            Intent::Directory(directory) => (&mut self.directories, directory),
            Intent::Object(object) => (&mut self.objects, object),
            Intent::Move(directory) => (&mut self.moves, directory),
        };
        map.insert(handle.clone(), usn);
    }

    /// A directory has been made in another one: what covers the parent covers it, for changes in it and for its being moved.
    ///
    /// `window` is the one in which its maker asked for an intent. Not if that was an earlier one, or if the clock stands before
    /// the beginning of the window: its birth time would not tell that it is new.
    pub(crate) fn inherit(&mut self, directory: &FileHandle, parent: &FileHandle, window: u64, now_ns: u64) {
        let is_new = window == self.window && now_ns >= self.began_ns;
        if let Some(usn) = self
            .of(&Intent::Directory(parent))
            .filter(|_| is_new || mutation::is(Mutation::InheritWhateverTheTime))
        {
            self.cover(&Intent::Directory(directory), usn);
            self.cover(&Intent::Move(directory), usn);
        }
    }

    /// Forgets an object that is gone, so that the maps stay as small as the set of live objects.
    pub(crate) fn forget(&mut self, object: &FileHandle) {
        self.directories.remove(object);
        self.objects.remove(object);
        self.moves.remove(object);
    }

    /// Every intent so far will not count any more once the horizon has moved.
    pub(crate) fn begin_window(&mut self, now_ns: u64) {
        *self = Self { window: self.window + 1, ..Self::new(now_ns) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intent_of_a_directory_as_an_object_does_not_cover_what_is_in_it() {
        let directory = FileHandle::new(1, b"directory").unwrap();
        let mut coverage = Coverage::new(0);
        coverage.cover(&Intent::Object(&directory), Usn(1));
        assert_eq!(coverage.of(&Intent::Object(&directory)), Some(Usn(1)));
        assert_eq!(coverage.of(&Intent::Directory(&directory)), None);
        assert_eq!(coverage.of(&Intent::Move(&directory)), None);
        // The other way round it does: the directory is told with what is in it.
        coverage.forget(&directory);
        coverage.cover(&Intent::Directory(&directory), Usn(2));
        assert_eq!(coverage.of(&Intent::Object(&directory)), Some(Usn(2)));
    }
}
