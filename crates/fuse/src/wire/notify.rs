//! Notifications: what the server tells the kernel unasked.

use std::os::fd::AsFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::abi::{NotifyInvalEntry, NotifyInvalInode, OutHeader, notify};
use super::device;

/// A way to tell the kernel something unasked.
#[derive(Clone)]
pub(crate) struct Notifier(Arc<OwnedFd>);

impl Notifier {
    pub(crate) fn new(device: Arc<OwnedFd>) -> Self {
        Self(device)
    }

    /// Drops the cached attributes and ACLs of a node, and makes answers to older requests for them void. Takes no lock that
    /// a request may hold, so that it may be called while requests are being served.
    pub(crate) fn attributes(&self, node: u64) -> Result<(), Errno> {
        self.inode(node, -1)
    }

    /// Drops the cached attributes and the cached pages of a node. Waits for pages that are being read: never to be called by
    /// a worker.
    pub(crate) fn data(&self, node: u64) -> Result<(), Errno> {
        self.inode(node, 0)
    }

    fn inode(&self, node: u64, off: i64) -> Result<(), Errno> {
        let body = NotifyInvalInode { ino: node, off, len: 0 };
        self.send(notify::INVAL_INODE, body.as_bytes(), &[])
    }

    /// Takes and gives back the lock of a directory, exclusively: `FUSE_NOTIFY_INVAL_ENTRY` for a name that cannot exist.
    /// Never to be called by a worker. Where there are probers they do it better, see [`crate::prober`].
    pub(crate) fn directory_lock_pass(&self, directory: u64) -> Result<(), Errno> {
        // Longer than NAME_MAX and shorter than FUSE_NAME_MAX: taken by the protocol, and no entry can have it.
        const NAME: [u8; 301] = {
            let mut name = [1; 301];
            name[300] = 0;
            name
        };
        let body = NotifyInvalEntry { parent: directory, namelen: 300, flags: 0 };
        self.send(notify::INVAL_ENTRY, body.as_bytes(), &NAME)
    }

    fn send(&self, code: i32, body: &[u8], rest: &[u8]) -> Result<(), Errno> {
        let len = size_of::<OutHeader>() + body.len() + rest.len();
        let header = OutHeader { len: u32::try_from(len).unwrap_or(u32::MAX), error: code, unique: 0 };
        device::try_send(self.0.as_fd(), &[header.as_bytes(), body, rest])
    }
}
