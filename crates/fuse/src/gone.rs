//! Objects that have lost their last name, where objects cannot be opened by their handles: later nobody could tell that from an
//! object that the kernel does not know any more, and everything would have to be compared for each file that is deleted.

use std::collections::HashSet;

use highwater_tracker::FileHandle;
use parking_lot::Mutex;

/// They are forgotten all at once then; whoever is asked about later may be anywhere.
const GONE_MAX: usize = 1 << 16;

/// See the module.
#[derive(Default)]
pub(crate) struct Gone(Mutex<HashSet<FileHandle>>);

impl Gone {
    pub(crate) fn insert(&self, object: FileHandle) {
        let mut gone = self.0.lock();
        if gone.len() >= GONE_MAX {
            gone.clear();
        }
        gone.insert(object);
    }

    /// An object has been made. Where handles are made up, it may have that of one that is gone.
    pub(crate) fn remove(&self, object: &FileHandle) {
        self.0.lock().remove(object);
    }

    pub(crate) fn contains(&self, object: &FileHandle) -> bool {
        self.0.lock().contains(object)
    }
}
