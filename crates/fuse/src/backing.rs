//! What all opens of one node share: the lower file, and whether the kernel reads and writes it directly (passthrough).
//!
//! The kernel's rules: while one open of a node is passthrough, all of them are, with the same backing number; while one goes
//! through the page cache, none may be passthrough. It ends its own use of the mode before it sends RELEASE, so a count of the
//! opens that we have answered and not seen released is never too small.
//!
//! Invariant: the mode and the backing number of a node change only while no open of it is counted.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use highwater_objects::proc_path;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::credentials;
use crate::filesystem::Filesystem;
use crate::wire::device;

/// What all opens of one node share. Ends with the last of them; a later open makes a new one.
#[derive(Default)]
pub(crate) struct OpenNode {
    /// The lower file, open for reading at least, so that it stays reachable when its last name is gone.
    anchor: OnceLock<Arc<OwnedFd>>,
    mappable: AtomicU32,
    state: Mutex<State>,
    ended: AtomicBool,
}

#[derive(Default)]
struct State {
    opens: u32,
    backing: Option<i32>,
}

impl OpenNode {
    pub(crate) fn anchor(&self) -> Option<Arc<OwnedFd>> {
        self.anchor.get().cloned()
    }

    /// Whether the file may be changed by stores into mappings of the lower file, of which the kernel tells neither us nor its own
    /// inode of ours. (A passthrough *write* makes it forget the attributes, `fuse_passthrough_end_write`.) Read with the lock
    /// of the node table held.
    pub(crate) fn may_be_stored_into(&self) -> bool {
        // ORDERING: pairs with nothing; the lock of the node table orders it against `take_attributes_cached`.
        self.mappable.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn is_passthrough(&self) -> bool {
        self.state.lock().backing.is_some()
    }

    /// An open begins through which such a mapping can be made.
    pub(crate) fn add_mappable(&self) {
        // ORDERING: see `may_be_stored_into`.
        self.mappable.fetch_add(1, Ordering::Relaxed);
    }

    /// It has ended, and so has every mapping made through it.
    pub(crate) fn remove_mappable(&self) {
        // ORDERING: see `may_be_stored_into`.
        self.mappable.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Filesystem {
    /// Counts an open of a node. `created` is a descriptor of the lower file, open for reading at least, if there is one.
    ///
    /// Returns the backing number if the open must be passthrough.
    pub(crate) fn begin_open(
        &self,
        node: u64,
        created: Option<OwnedFd>,
    ) -> Result<(Arc<OpenNode>, Option<i32>), Errno> {
        let mut created = created;
        loop {
            let open = self.nodes.open_node(node).ok_or(Errno::STALE)?;
            let mut state = open.state.lock();
            // ORDERING: both sides hold the lock of `state`.
            if open.ended.load(Ordering::Relaxed) {
                drop(state);
                self.nodes.open_node_ended(node, &open);
                continue;
            }
            if state.opens == 0
                && let Err(errno) = self.first_open(node, &open, &mut state, created.take())
            {
                self.end_open_node(node, &open, &state);
                return Err(errno);
            }
            state.opens += 1;
            let backing = state.backing;
            drop(state);
            return Ok((open, backing));
        }
    }

    fn first_open(
        &self,
        node: u64,
        open: &OpenNode,
        state: &mut State,
        created: Option<OwnedFd>,
    ) -> Result<(), Errno> {
        let anchor = match created {
            Some(fd) => fd,
            None => self.open_for_reading(node)?,
        };
        // ORDERING: set at INIT and on failure only; a stale value costs one attempt.
        if self.passthrough.load(Ordering::Relaxed) {
            match credentials::without_fsetid(|| device::backing_open(self.device.as_fd(), anchor.as_fd())) {
                Ok(id) => state.backing = Some(id),
                Err(errno @ (Errno::PERM | Errno::LOOP | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOTTY)) => {
                    tracing::warn!(%errno, "no passthrough here: file data goes through the server");
                    // ORDERING: see above.
                    self.passthrough.store(false, Ordering::Relaxed);
                }
                Err(errno) => tracing::debug!(%errno, "no passthrough for one file"),
            }
        }
        if open.anchor.set(Arc::new(anchor)).is_err() {
            unreachable!("a record of opens is begun once");
        }
        Ok(())
    }

    fn open_for_reading(&self, node: u64) -> Result<OwnedFd, Errno> {
        let located = self.nodes.locate(node).ok_or(Errno::STALE)?;
        if located.fd.is_none() {
            return self.covered.open_object(&located.handle, OFlags::RDONLY | OFlags::NOFOLLOW);
        }
        let object = self.object(node)?;
        let path = proc_path(object.as_fd());
        let reopen = |flags| rustix::fs::open(path.as_c_str(), flags | OFlags::CLOEXEC, Mode::empty());
        match reopen(OFlags::RDONLY) {
            // Not root, and a file that may be written and not read: its data is reached by each open's own descriptor.
            Err(Errno::ACCESS) => reopen(OFlags::PATH),
            other => other,
        }
    }

    /// Takes one open back. The caller holds no other lock.
    pub(crate) fn end_open(&self, node: u64, open: &Arc<OpenNode>) {
        let mut state = open.state.lock();
        state.opens -= 1;
        if state.opens == 0 {
            self.end_open_node(node, open, &state);
        }
    }

    fn end_open_node(&self, node: u64, open: &Arc<OpenNode>, state: &State) {
        // ORDERING: both sides hold the lock of `state`.
        open.ended.store(true, Ordering::Relaxed);
        if let Some(id) = state.backing {
            device::backing_close(self.device.as_fd(), id);
        }
        self.nodes.open_node_ended(node, open);
    }
}
