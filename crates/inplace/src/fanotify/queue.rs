//! The queue of events, read into a digest, where what is outside of the tracked directory is dropped at once.

use highwater_tracker::FileHandle;
use rustix::io::Errno;

use super::HashMap;
use super::below::Below;
use super::digest::Digest;
use super::group::{Event, Group, Told, bit};

/// Directories of which is remembered on which side they are.
const SIDES_MAX: usize = 1 << 16;

/// See the module.
pub(crate) struct Queue {
    group: Group,
    /// What has been read since the last cut.
    pub(crate) digest: Digest,
    /// Whether a directory is inside. A move of any directory makes all of it worthless.
    sides: HashMap<FileHandle, bool>,
    pub(crate) events: u64,
    pub(crate) dropped: u64,
}

impl Queue {
    pub(crate) fn new(group: Group) -> Self {
        Self { group, digest: Digest::default(), sides: HashMap::default(), events: 0, dropped: 0 }
    }

    pub(crate) fn group(&self) -> &Group {
        &self.group
    }

    /// Reads everything that is in the queue now. What comes meanwhile may be read too; it does not keep this from ending.
    ///
    /// After an error events are missing from the digest, and it says so.
    pub(crate) fn read(&mut self, below: &Below) -> Result<(), Errno> {
        let read = self.read_all(below);
        self.digest.overflow |= read.is_err();
        read
    }

    fn read_all(&mut self, below: &Below) -> Result<(), Errno> {
        let mut left = self.group.waiting()?;
        while left > 0 {
            let mut events = Vec::new();
            let count = self.group.read(|event| events.push(event))?;
            if count == 0 {
                break;
            }
            self.events += count;
            left = left.saturating_sub(count);
            for event in events {
                self.take(event, below)?;
            }
            self.digest.relinked.shorten(|object| Ok(below.stat(object)?.is_some()))?;
        }
        Ok(())
    }

    /// Cuts: gives what was read since the last cut.
    pub(crate) fn cut(&mut self) -> Digest {
        self.digest.cut()
    }

    fn take(&mut self, event: Event, below: &Below) -> Result<(), Errno> {
        let is_directory = event.mask & bit::DIRECTORY != 0;
        let is_kept = match &event.told {
            Told::Overflow => true,
            Told::Entry { place, object } => {
                let is_kept = self.may_be_inside(&place.parent, below)?;
                if !is_kept && is_directory && event.mask & bit::DELETE != 0 {
                    self.digest.ended_outside.insert(object.clone());
                }
                if !is_kept && !is_directory && event.mask & bit::CHANGES != 0 {
                    self.digest.unseen.push(object.clone(), place.parent.clone());
                }
                is_kept
            }
            Told::Object { object } if is_directory => {
                event.mask & bit::CHANGES != 0 && self.may_be_inside(object, below)?
            }
            Told::Object { .. } => true,
            Told::Renamed { from, to, object } => {
                if is_directory {
                    self.sides.clear();
                }
                // Both are asked, so that both are noted.
                let is_from_inside = self.may_be_inside(&from.parent, below)?;
                let is_to_inside = self.may_be_inside(&to.parent, below)?;
                // What was done to it there may have been dropped.
                if !is_directory && is_to_inside && self.digest.unseen_in.contains(&from.parent) {
                    self.digest.add(object.clone(), |touched| touched.modified = true);
                }
                is_from_inside || is_to_inside
            }
        };
        if is_kept {
            self.digest.push(event);
        } else {
            self.dropped += 1;
        }
        Ok(())
    }

    /// Whether a directory is inside, or may have been: it is gone.
    fn may_be_inside(&mut self, directory: &FileHandle, below: &Below) -> Result<bool, Errno> {
        let is_inside = match self.sides.get(directory) {
            Some(is_inside) => *is_inside,
            None => {
                let Some(is_inside) = below.is_inside(directory)? else { return Ok(true) };
                if self.sides.len() >= SIDES_MAX {
                    self.sides.clear();
                }
                self.sides.insert(directory.clone(), is_inside);
                is_inside
            }
        };
        if !is_inside && !self.digest.unseen_in.contains(directory) {
            self.digest.unseen_in.insert(directory.clone());
        }
        Ok(is_inside)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn events_that_could_not_be_taken_are_not_forgotten() {
        let home = tempfile::tempdir_in("/dev/shm").unwrap();
        let below = Below::open(home.path()).unwrap();
        let mut queue = Queue::new(Group::watch(below.root()).unwrap());
        fs::create_dir(home.path().join("d")).unwrap();
        fs::write(home.path().join("d/f"), "x").unwrap();
        let descriptor = below.root().as_raw_fd();
        let kept = rustix::io::fcntl_dupfd_cloexec(below.root(), 0).unwrap();
        // SAFETY: nothing is passed; from here on this thread has a table of descriptors of its own.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
        // SAFETY: it is put back before anybody else uses it; `below` is used by the call in between alone.
        unsafe { libc::close(descriptor) };
        assert_eq!(queue.read(&below), Err(Errno::BADF));
        // SAFETY: as above.
        assert_eq!(unsafe { libc::dup2(kept.as_raw_fd(), descriptor) }, descriptor);
        assert_eq!(queue.read(&below), Ok(()));
        assert!(queue.cut().overflow);
        assert!(!queue.cut().overflow);
    }
}
