//! Descriptors: those that stay open because they are used again and again, and those that the kernel has open.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

/// How many directories are kept open. Enough for the directories that programs work in at one time; each costs a descriptor
/// and pins an inode below.
const DIRECTORIES_MAX: usize = 512;

/// And how many of the descriptors that the process may have: it must never be these that leave none for a request.
const SHARE_OF_LIMIT: u64 = 8;

/// Directories that have been used lately, so that making ten thousand files in one opens it once.
pub(crate) struct DirectoryCache {
    recent: Mutex<Recent>,
    kept_max: usize,
}

impl Default for DirectoryCache {
    fn default() -> Self {
        let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let kept_max =
            usize::try_from(limit / SHARE_OF_LIMIT).unwrap_or(DIRECTORIES_MAX).min(DIRECTORIES_MAX);
        Self { recent: Mutex::default(), kept_max }
    }
}

#[derive(Default)]
struct Recent {
    by_node: HashMap<u64, (Arc<OwnedFd>, u64)>,
    clock: u64,
}

impl DirectoryCache {
    pub(crate) fn get(&self, node: u64) -> Option<Arc<OwnedFd>> {
        let mut recent = self.recent.lock();
        recent.clock += 1;
        let clock = recent.clock;
        let (fd, used) = recent.by_node.get_mut(&node)?;
        *used = clock;
        Some(Arc::clone(fd))
    }

    pub(crate) fn insert(&self, node: u64, fd: OwnedFd) -> Arc<OwnedFd> {
        let fd = Arc::new(fd);
        let mut recent = self.recent.lock();
        recent.clock += 1;
        let clock = recent.clock;
        if recent.by_node.len() >= self.kept_max.max(1) {
            // Drops the older half at once, so that the search is paid once in a while only.
            let mut used: Vec<u64> = recent.by_node.values().map(|(_, used)| *used).collect();
            used.sort_unstable();
            let middle = used[used.len() / 2];
            recent.by_node.retain(|_, (_, used)| *used > middle);
        }
        recent.by_node.insert(node, (Arc::clone(&fd), clock));
        fd
    }

    pub(crate) fn remove(&self, node: u64) {
        self.recent.lock().by_node.remove(&node);
    }

    pub(crate) fn clear(&self) {
        self.recent.lock().by_node.clear();
    }
}

/// What the kernel has open, by the number that it was given.
pub(crate) struct OpenTable<T>(Mutex<Slots<T>>);

struct Slots<T> {
    slots: Vec<Option<Arc<T>>>,
    free: Vec<usize>,
}

impl<T> Default for OpenTable<T> {
    fn default() -> Self {
        Self(Mutex::new(Slots { slots: Vec::new(), free: Vec::new() }))
    }
}

impl<T> OpenTable<T> {
    pub(crate) fn insert(&self, value: T) -> u64 {
        let mut table = self.0.lock();
        let value = Some(Arc::new(value));
        let index = match table.free.pop() {
            Some(index) => {
                table.slots[index] = value;
                index
            }
            None => {
                table.slots.push(value);
                table.slots.len() - 1
            }
        };
        index as u64
    }

    pub(crate) fn get(&self, fh: u64) -> Result<Arc<T>, Errno> {
        let table = self.0.lock();
        let slot = usize::try_from(fh).ok().and_then(|index| table.slots.get(index));
        slot.and_then(Clone::clone).ok_or(Errno::BADF)
    }

    pub(crate) fn remove(&self, fh: u64) -> Result<Arc<T>, Errno> {
        let mut table = self.0.lock();
        let index = usize::try_from(fh).map_err(|_| Errno::BADF)?;
        let value = table.slots.get_mut(index).and_then(Option::take).ok_or(Errno::BADF)?;
        table.free.push(index);
        Ok(value)
    }

    /// Everything that is open, for the end of the session.
    pub(crate) fn drain(&self) -> Vec<Arc<T>> {
        let mut table = self.0.lock();
        table.free.clear();
        table.slots.drain(..).flatten().collect()
    }
}
