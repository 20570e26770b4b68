//! The state that all workers share, and the small steps that many operations are made of.
//!
//! Invariant: every operation that changes something runs in a write section, and its answer is sent before the section ends.

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock};

use highwater_objects::object_type;
use highwater_tracker::{Change, FileHandle, Intent, Name, ObjectType, Place};
use parking_lot::{Condvar, Mutex};
use rustix::fs::{OFlags, Statx};
use rustix::io::Errno;

use crate::covered::{Access, Covered, Found, ObjectFd};
use crate::data::OpenFile;
use crate::descriptors::{DirectoryCache, OpenTable};
use crate::directory::OpenDirectory;
use crate::foreign::Foreign;
use crate::gone::Gone;
use crate::nodes::{LookedUp, Nodes, Target, VALID_SECONDS};
use crate::prober::Probers;
use crate::processes::Device;
use crate::sections::{Sections, WriteSection};
use crate::settle::Touched;
use crate::stacked::Options;
use crate::wire::abi::{Attr, AttrOut, EntryOut, ROOT_ID};
use crate::wire::notify::Notifier;
use crate::wire::request::Request;
use crate::writers::Lingering;

/// The stacked filesystem.
pub(crate) struct Filesystem {
    pub(crate) covered: Covered,
    pub(crate) nodes: Nodes,
    pub(crate) directories: DirectoryCache,
    pub(crate) open_files: OpenTable<OpenFile>,
    pub(crate) open_directories: OpenTable<OpenDirectory>,
    pub(crate) sections: Box<dyn Sections>,
    pub(crate) notifier: Notifier,
    pub(crate) device: Arc<OwnedFd>,
    pub(crate) touched: Touched,
    pub(crate) lingering: Mutex<Lingering>,
    /// Processes that have opened a file so that they can map it writable, for those that cannot be looked into.
    pub(crate) openers: Mutex<HashSet<u32>>,
    /// Wakes the thread that looks after lingering opens and foreign writers.
    pub(crate) lingering_changed: Condvar,
    pub(crate) foreign: Foreign,
    pub(crate) gone: Gone,
    pub(crate) passthrough: AtomicBool,
    pub(crate) kernel_flags: AtomicU64,
    pub(crate) options: Options,
    /// What waits for locks of our own inodes; only as root.
    pub(crate) probers: Mutex<Option<Arc<Probers>>>,
    pub(crate) mount_device: OnceLock<Device>,
    pub(crate) init_answered: (Mutex<bool>, Condvar),
}

impl Filesystem {
    /// A descriptor of a node below, `O_PATH` or better.
    pub(crate) fn object(&self, node: u64) -> Result<ObjectFd, Errno> {
        if let Some(fd) = self.directories.get(node) {
            return Ok(ObjectFd::Shared(fd));
        }
        let located = self.nodes.locate(node).ok_or(Errno::STALE)?;
        if let Some(fd) = located.fd {
            return Ok(ObjectFd::Shared(fd));
        }
        let fd = self.covered.open_object(&located.handle, OFlags::PATH | OFlags::NOFOLLOW)?;
        if located.kind == ObjectType::Directory {
            return Ok(ObjectFd::Shared(self.directories.insert(node, fd)));
        }
        Ok(ObjectFd::Own(fd))
    }

    pub(crate) fn handle(&self, node: u64) -> Result<FileHandle, Errno> {
        self.nodes.handle(node).ok_or(Errno::STALE)
    }

    pub(crate) fn target(&self, node: u64) -> Result<Target, Errno> {
        self.nodes.target(node).ok_or(Errno::STALE)
    }

    pub(crate) fn attr(&self, stat: &Statx) -> Attr {
        Attr {
            ino: self.covered.inode_number(stat),
            size: stat.stx_size,
            blocks: stat.stx_blocks,
            atime: stat.stx_atime.tv_sec,
            mtime: stat.stx_mtime.tv_sec,
            ctime: stat.stx_ctime.tv_sec,
            atimensec: stat.stx_atime.tv_nsec,
            mtimensec: stat.stx_mtime.tv_nsec,
            ctimensec: stat.stx_ctime.tv_nsec,
            mode: stat.stx_mode.into(),
            nlink: stat.stx_nlink,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            rdev: encode_device(stat.stx_rdev_major, stat.stx_rdev_minor),
            blksize: stat.stx_blksize,
            flags: 0,
        }
    }

    /// The attributes of a node as an answer; decides how long they are valid, so it is called after `stat` was taken.
    pub(crate) fn attr_out(&self, node: u64, stat: &Statx) -> AttrOut {
        let attr_valid = self.nodes.attribute_seconds(node, stat.stx_nlink, stat.stx_mode.into());
        AttrOut { attr_valid, attr: self.attr(stat), ..AttrOut::default() }
    }

    /// Counts a lookup of what was found or made, and gives the answer.
    pub(crate) fn entry(&self, found: &Found, name: Option<(u64, &[u8])>) -> EntryOut {
        let (nodeid, attr_valid) = self.nodes.looked_up(LookedUp {
            handle: &found.handle,
            kind: object_type(&found.stat),
            links: found.stat.stx_nlink,
            mode: found.stat.stx_mode.into(),
            name,
            fd: found.fd.as_ref(),
        });
        EntryOut {
            nodeid,
            entry_valid: VALID_SECONDS,
            attr_valid,
            attr: self.attr(&found.stat),
            ..EntryOut::default()
        }
    }

    /// Finds an entry for LOOKUP: `.` and `..` come from our own `open_by_handle_at` on the mount.
    pub(crate) fn look_up(&self, request: &Request<'_>, name: &CStr) -> Result<EntryOut, Errno> {
        let parent = request.node();
        match name.to_bytes() {
            b"." => {
                let object = self.object(parent)?;
                self.entry_of_self(parent, object.as_fd())
            }
            b".." => {
                let handle = self.handle(parent)?;
                let place = self.nodes.places(&handle).and_then(|mut places| places.pop());
                let up = place.and_then(|place| self.nodes.id(&place.parent)).unwrap_or(ROOT_ID);
                let object = self.object(up)?;
                self.entry_of_self(up, object.as_fd())
            }
            bytes => {
                let directory = self.object(parent)?;
                match self.covered.find(directory.as_fd(), name) {
                    Ok(found) => Ok(self.entry(&found, Some((parent, bytes)))),
                    Err(Errno::NOENT) => Ok(EntryOut { entry_valid: VALID_SECONDS, ..EntryOut::default() }),
                    Err(errno) => Err(errno),
                }
            }
        }
    }

    fn entry_of_self(&self, node: u64, fd: BorrowedFd<'_>) -> Result<EntryOut, Errno> {
        let stat = highwater_objects::attributes_of(fd)?;
        let handle = self.handle(node)?;
        Ok(self.entry(&Found { handle, stat, fd: None }, None))
    }

    /// Enters a section and announces a change of what a node is.
    ///
    /// What covers it is looked up inside: before, it could be renamed and the window could end until the section is entered.
    pub(crate) fn section_for(&self, node: u64) -> Result<(Target, Box<dyn WriteSection + '_>), Errno> {
        let section = self.sections.enter();
        let target = self.target(node)?;
        section.intend(&[intent(&target)])?;
        Ok((target, section))
    }

    pub(crate) fn keeps_descriptors(&self) -> bool {
        self.covered.access() != Access::Handles
    }
}

/// The intent that covers a change of an object itself.
pub(crate) fn intent(target: &Target) -> Intent<'_> {
    match (&target.directory, target.kind) {
        (_, ObjectType::Directory) => Intent::Directory(&target.handle),
        (Some(directory), _) => Intent::Directory(directory),
        (None, _) => Intent::Object(&target.handle),
    }
}

pub(crate) fn place(parent: &FileHandle, name: &[u8]) -> Place {
    Place { parent: parent.clone(), name: Name::from(name) }
}

pub(crate) fn metadata(target: &Target) -> Change {
    Change::Metadata { object: target.handle.clone(), object_type: target.kind }
}

/// The kernel's `new_encode_dev`.
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// The kernel's `new_decode_dev`: major and minor.
pub(crate) fn decode_device(dev: u32) -> (u32, u32) {
    ((dev & 0xfff00) >> 8, (dev & 0xff) | ((dev >> 12) & 0xfff00))
}
