//! Waiting until the kernel shows what has been answered.
//!
//! A write section ends after its answer has been written to the device. The write wakes the thread that asked, and that
//! thread, not ours, then updates what the kernel has cached: it drops the dentry of an unlinked name, puts the new mode into
//! the inode, drops cached pages behind a truncation. A reader that comes in between sees the old state, although the section
//! has ended and a barrier has let a checkpoint pass. So a checkpoint settles what was touched:
//!
//! - *Directories.* The asking thread holds the directory's lock exclusively from before it asks until all of its updates are
//!   done: the dentries, and the invalidation of the attributes of the directory and of the object. So whoever gets that lock
//!   after the answer was sent finds them done. A rename holds the locks of both directories to its end; both are passed.
//! - *Attributes.* `FUSE_NOTIFY_INVAL_INODE` drops cached attributes and ACLs, so that a reader asks us. If the asking thread
//!   stores the attributes of its answer after that, these are the new ones; and a change of the same object that is made later
//!   waits for that thread, which holds the inode's lock.
//! - *Data.* Truncation, fallocate and copying hold the inode's lock until the cached pages are dropped, so that lock is passed as well.
//!   Pages of a write through the cache are new before we are asked, but the size is not before the asking thread has our answer; until
//!   then the kernel takes no other size from us (`FUSE_I_SIZE_UNSTABLE`), and a reader reads to the old end. A write holds the
//!   inode's lock to its end too.
//! - What foreign writers do, the kernel does not hear of: at every checkpoint it forgets what it has cached of their objects.
//!
//! An operation is put into the set before its answer is sent, and the set is taken after the barrier: so whatever the barrier
//! waited for is in this set, or was in that of an earlier checkpoint, which settled it.
//!
//! Invariant: never called by a worker: the passes wait for operations that workers have to serve.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use highwater_tracker::FileHandle;
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::filesystem::Filesystem;

/// What the kernel may still have cached of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Touch {
    /// Its attributes and ACLs.
    Attributes,
    /// Those and its data.
    Data,
    /// Those and its data, past the mount.
    Foreign,
}

/// What operations have touched since the last checkpoint.
#[derive(Default)]
pub(crate) struct Touched(Mutex<Sets>);

#[derive(Default)]
struct Sets {
    directories: HashSet<u64>,
    nodes: HashMap<u64, Touch>,
}

impl Sets {
    fn touch(&mut self, node: u64, touch: Touch) {
        let entry = self.nodes.entry(node).or_insert(touch);
        *entry = touch.max(*entry);
    }
}

impl Touched {
    /// Entries of a directory have changed. Before the answer is sent.
    pub(crate) fn directory(&self, node: u64) {
        self.0.lock().directories.insert(node);
    }

    /// A node has changed. Before the answer is sent.
    pub(crate) fn node(&self, node: u64, touch: Touch) {
        self.0.lock().touch(node, touch);
    }

    fn take(&self) -> Sets {
        std::mem::take(&mut *self.0.lock())
    }

    /// What was taken has not been settled: the next checkpoint has to.
    fn give_back(&self, taken: Sets) {
        let mut sets = self.0.lock();
        sets.directories.extend(taken.directories);
        for (node, touch) in taken.nodes {
            sets.touch(node, touch);
        }
    }
}

impl Filesystem {
    /// Returns once the kernel shows what every operation did whose section has ended.
    pub(crate) fn settle_touched(&self, deadline: Option<Instant>) -> Result<(), Errno> {
        // The kernel hears of nothing that a foreign writer does.
        for object in self.foreign.handles() {
            self.touched_past_the_mount(&object);
        }
        let sets = self.touched.take();
        let settled = self.settle_sets(&sets, deadline);
        if settled.is_err() {
            self.touched.give_back(sets);
        }
        settled
    }

    /// An object that the kernel may have cached has changed past the mount.
    pub(crate) fn touched_past_the_mount(&self, object: &FileHandle) {
        if let Some(node) = self.nodes.id(object) {
            self.touched.node(node, Touch::Foreign);
        }
    }

    fn settle_sets(&self, sets: &Sets, deadline: Option<Instant>) -> Result<(), Errno> {
        let known = |result: Result<(), Errno>| match result {
            // ENOENT: the kernel has nothing cached, or (for the pass) found no such name, as it should.
            // ENODEV and ENOTCONN: the mount is gone.
            Ok(()) | Err(Errno::NOENT | Errno::NODEV | Errno::NOTCONN | Errno::NOTDIR) => Ok(()),
            Err(errno) => Err(errno),
        };
        let probers = self.probers.lock().clone();
        let data = sets.nodes.iter().filter(|(_, touch)| **touch >= Touch::Data).map(|(node, _)| node);
        let locks: Vec<u64> = sets.directories.iter().chain(data).copied().collect();
        match probers {
            Some(probers) => probers.lock_pass(locks, deadline)?,
            None => locks.into_iter().try_for_each(|node| known(self.notifier.directory_lock_pass(node)))?,
        }
        for (&node, &touch) in &sets.nodes {
            // Where the kernel reads the file below by itself, it has cached no pages of it.
            let pages = touch == Touch::Foreign && !self.options.passthrough;
            known(if pages { self.notifier.data(node) } else { self.notifier.attributes(node) })?;
        }
        Ok(())
    }
}
