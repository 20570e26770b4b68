//! The covered tree: what lies below the mount, reached past it.
//!
//! As root it is a private, detached clone of the directory's mount, made before the stacked mount covers it: no mount made
//! later and no mount point inside the tree is entered through it, and `..` ends at its root.
//!
//! Invariant: nothing in here ever goes through the stacked mount.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use highwater_objects::{ATTRIBUTES, attributes_of, handle_of, magic, open_by_handle};
use highwater_tracker::FileHandle;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatVfs, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use crate::dead_mount::{self, DeadMount};
use crate::processes::Device;

/// Why the tracked directory cannot be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CoveredError {
    /// It cannot be opened.
    #[error("cannot open {directory}")]
    Open {
        /// Which directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is not a directory.
    #[error("{directory} is not a directory")]
    NotADirectory {
        /// What it is not.
        directory: PathBuf,
    },
    /// It is the root of a mount that a tracker left behind; see [`find_dead_mount`](crate::find_dead_mount).
    #[error("{directory} is covered by the mount of a tracker that is gone")]
    DeadMount {
        /// Which directory.
        directory: PathBuf,
    },
    /// `/proc` is not there.
    #[error("/proc is not mounted, and the stacked source cannot do without it")]
    NoProc,
}

/// How objects below are found again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// By file handle: no descriptor is kept per node.
    Handles,
    /// By a descriptor kept per node. Handles still identify objects.
    Descriptors,
    /// By a descriptor kept per node, and objects are identified by device, inode number and birth time.
    Synthetic,
}

/// The tracked directory, opened before anything covers it.
pub struct Covered {
    directory: PathBuf,
    root: OwnedFd,
    root_handle: FileHandle,
    root_dev: u64,
    magic: i64,
    access: Access,
    /// The clone of the directory's mount, if it could be made. A mount without a namespace (this is an anonymous one) costs a lock of the
    /// whole machine at the end of every lookup (`mntput` in the kernel).
    tree: Option<OwnedFd>,
    subvolumes: parking_lot::Mutex<Vec<u64>>,
}

/// An object found below.
#[derive(Clone)]
pub(crate) struct Found {
    pub(crate) handle: FileHandle,
    pub(crate) stat: Statx,
    /// Kept unless objects can be opened by their handles.
    pub(crate) fd: Option<Arc<OwnedFd>>,
}

/// A descriptor of an object below, `O_PATH` or better.
pub(crate) enum ObjectFd {
    Own(OwnedFd),
    Shared(Arc<OwnedFd>),
}

impl AsFd for ObjectFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(fd) => fd.as_fd(),
            Self::Shared(fd) => fd.as_fd(),
        }
    }
}

impl Covered {
    /// Opens the directory, with whatever lies there now, and learns how to find objects in it again.
    pub fn open(directory: &Path) -> Result<Self, CoveredError> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        Self::of_tree(directory, rustix::mount::open_tree(CWD, directory, flags))
    }

    /// Opens the directory below a dead mount that is still in its place. Root only.
    pub fn open_below(dead: &DeadMount) -> Result<Self, CoveredError> {
        let directory = &dead.directory;
        let tree = dead_mount::tree_below(directory)
            .map_err(|errno| CoveredError::Open { directory: directory.clone(), source: errno.into() })?;
        Self::of_tree(directory, Ok(tree))
    }

    fn of_tree(directory: &Path, tree: Result<OwnedFd, Errno>) -> Result<Self, CoveredError> {
        let failed =
            |errno: Errno| CoveredError::Open { directory: directory.to_owned(), source: errno.into() };
        if rustix::fs::stat("/proc/self/fd").is_err() {
            return Err(CoveredError::NoProc);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |result: Result<OwnedFd, Errno>| match result {
            Err(Errno::NOTDIR) => Err(CoveredError::NotADirectory { directory: directory.to_owned() }),
            Err(Errno::NOTCONN | Errno::CONNABORTED) => {
                Err(CoveredError::DeadMount { directory: directory.to_owned() })
            }
            Err(errno) => Err(failed(errno)),
            Ok(fd) => Ok(fd),
        };
        let (root, tree) = match tree {
            Ok(tree) => (open(rustix::fs::openat(&tree, c".", flags, Mode::empty()))?, Some(tree)),
            Err(Errno::NOTCONN | Errno::CONNABORTED) => {
                return Err(CoveredError::DeadMount { directory: directory.to_owned() });
            }
            Err(_) => (open(rustix::fs::open(directory, flags, Mode::empty()))?, None),
        };
        let stat = attributes_of(root.as_fd()).map_err(failed)?;
        let magic = rustix::fs::fstatfs(&root).map_err(failed)?.f_type;
        let (root_handle, access) = match handle_of(root.as_fd(), c"") {
            Ok(handle) => match open_by_handle(root.as_fd(), &handle, OFlags::PATH) {
                Ok(_) => (handle, Access::Handles),
                Err(_) => (handle, Access::Descriptors),
            },
            Err(_) => (synthetic_handle(&stat), Access::Synthetic),
        };
        Ok(Self {
            directory: directory.to_owned(),
            root,
            root_handle,
            root_dev: dev_of(&stat),
            magic,
            access,
            tree,
            subvolumes: parking_lot::Mutex::new(Vec::new()),
        })
    }

    /// The handle of the tracked directory.
    pub fn root_handle(&self) -> &FileHandle {
        &self.root_handle
    }

    /// Of which filesystem the directory is, and when it was made: what tells the root of one filesystem from that of another, which has the
    /// same handle. What is not known here is left out.
    pub fn origin(&self) -> Vec<(&'static str, String)> {
        let mut origin = Vec::new();
        if let Some(uuid) = filesystem_uuid(self.root.as_fd()) {
            origin.push(("filesystem", uuid.iter().map(|byte| format!("{byte:02x}")).collect()));
        } else if self.magic == magic::BTRFS
            && let Ok(stat) = self.statvfs()
        {
            // Made of its UUID; elsewhere it can be the number of the device, which changes.
            origin.push(("filesystem", format!("{:016x}", stat.f_fsid)));
        }
        if let Ok(stat) = attributes_of(self.root.as_fd())
            && stat.stx_mask & StatxFlags::BTIME.bits() != 0
        {
            origin.push(("born", format!("{}.{:09}", stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec)));
        }
        origin
    }

    /// The tracked directory as it was given.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The magic number of the filesystem, as `statfs(2)` gives it.
    pub fn magic(&self) -> i64 {
        self.magic
    }

    /// The usual name of the filesystem, for messages.
    pub fn filesystem(&self) -> &'static str {
        highwater_objects::filesystem_name(self.magic).unwrap_or("unknown")
    }

    /// How full the filesystem is.
    pub fn statvfs(&self) -> std::io::Result<StatVfs> {
        Ok(rustix::fs::fstatvfs(&self.root)?)
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    pub(crate) fn access(&self) -> Access {
        self.access
    }

    pub(crate) fn detached(&self) -> bool {
        self.tree.is_some()
    }

    /// Finds an entry of a directory: what it is now, and its attributes. The two belong together as long as the caller keeps
    /// the directory from changing; the kernel does for LOOKUP, READDIRPLUS and everything that changes a directory.
    pub(crate) fn find(&self, directory: BorrowedFd<'_>, name: &CStr) -> Result<Found, Errno> {
        if self.access == Access::Handles {
            let handle = handle_of(directory, name)?;
            let stat = rustix::fs::statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, ATTRIBUTES)?;
            return Ok(Found { handle, stat, fd: None });
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.found(rustix::fs::openat(directory, name, flags, Mode::empty())?)
    }

    /// Finds an entry, and keeps a descriptor of it in any case.
    pub(crate) fn find_open(
        &self,
        directory: BorrowedFd<'_>,
        name: &CStr,
    ) -> Result<(Found, Arc<OwnedFd>), Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = Arc::new(rustix::fs::openat(directory, name, flags, Mode::empty())?);
        let stat = attributes_of(fd.as_fd())?;
        let handle = self.handle_of_fd(fd.as_fd(), &stat)?;
        let kept = (self.access != Access::Handles).then(|| Arc::clone(&fd));
        Ok((Found { handle, stat, fd: kept }, fd))
    }

    /// What an open descriptor is.
    pub(crate) fn identify(&self, fd: BorrowedFd<'_>) -> Result<(FileHandle, Statx), Errno> {
        let stat = attributes_of(fd)?;
        Ok((self.handle_of_fd(fd, &stat)?, stat))
    }

    /// What an open descriptor is, and the descriptor where the object could not be opened again.
    pub(crate) fn found_at(&self, fd: OwnedFd) -> Result<Found, Errno> {
        let found = self.found(fd)?;
        Ok(Found { fd: found.fd.filter(|_| self.access != Access::Handles), ..found })
    }

    fn found(&self, fd: OwnedFd) -> Result<Found, Errno> {
        let (handle, stat) = self.identify(fd.as_fd())?;
        Ok(Found { handle, stat, fd: Some(Arc::new(fd)) })
    }

    fn handle_of_fd(&self, fd: BorrowedFd<'_>, stat: &Statx) -> Result<FileHandle, Errno> {
        match self.access {
            Access::Synthetic => Ok(synthetic_handle(stat)),
            Access::Handles | Access::Descriptors => handle_of(fd, c""),
        }
    }

    /// Opens an object by its handle. `ESTALE` if it does not exist any more.
    pub(crate) fn open_object(&self, handle: &FileHandle, flags: OFlags) -> Result<OwnedFd, Errno> {
        match self.access {
            Access::Handles => open_by_handle(self.root.as_fd(), handle, flags),
            Access::Descriptors | Access::Synthetic => Err(Errno::STALE),
        }
    }

    /// The inode number that the mount shows.
    ///
    /// It is the one below, but in a btrfs subvolume inside the tree: there the numbers begin anew, and the mount shows one
    /// device only, so that two objects would look like hard links of one. The subvolume's index goes into the upper bits.
    pub(crate) fn inode_number(&self, stat: &Statx) -> u64 {
        let dev = dev_of(stat);
        if dev == self.root_dev {
            return stat.stx_ino;
        }
        let mut subvolumes = self.subvolumes.lock();
        let index = subvolumes.iter().position(|known| *known == dev).unwrap_or_else(|| {
            subvolumes.push(dev);
            subvolumes.len() - 1
        });
        stat.stx_ino ^ ((index as u64 + 1) << SUBVOLUME_SHIFT)
    }

    /// Whether a mount of this tree, this one or one before it, may have shown an object with an inode number. The indices of
    /// subvolumes are those of one mount, so that of an object in one only the lower bits can be told.
    pub(crate) fn may_be_shown_as(&self, stat: &Statx, shown: u64) -> bool {
        match self.is_of_subvolume(stat) {
            true => same_but_for_subvolume(stat.stx_ino, shown),
            false => stat.stx_ino == shown,
        }
    }

    /// Whether an object has another device number than the tracked directory.
    pub(crate) fn is_of_subvolume(&self, stat: &Statx) -> bool {
        dev_of(stat) != self.root_dev
    }

    /// Whether objects of the tree may have this device number.
    pub(crate) fn may_have(&self, device: Device) -> bool {
        let of_root = device_number(device.major, device.minor) == self.root_dev;
        of_root || matches!(self.magic, magic::BTRFS | magic::OVERLAYFS)
    }
}

/// Where the index of a subvolume begins in an inode number.
const SUBVOLUME_SHIFT: u32 = 48;

/// Whether two inode numbers may be one, shown with different indices of a subvolume.
pub(crate) fn same_but_for_subvolume(one: u64, other: u64) -> bool {
    (one ^ other).trailing_zeros() >= SUBVOLUME_SHIFT
}

fn dev_of(stat: &Statx) -> u64 {
    device_number(stat.stx_dev_major, stat.stx_dev_minor)
}

fn device_number(major: u32, minor: u32) -> u64 {
    (u64::from(major) << 32) | u64::from(minor)
}

/// `FS_IOC_GETFSUUID` (Linux 6.9; ext4, XFS, btrfs, tmpfs and others).
fn filesystem_uuid(root: BorrowedFd<'_>) -> Option<Vec<u8>> {
    const FS_IOC_GETFSUUID: libc::Ioctl = 0x8011_1500u32 as libc::Ioctl;
    // `struct fsuuid2`: a length and up to 16 bytes.
    let mut uuid = [0u8; 17];
    // SAFETY: the request fills a structure of exactly this size.
    if unsafe { libc::ioctl(root.as_raw_fd(), FS_IOC_GETFSUUID, uuid.as_mut_ptr()) } < 0 {
        return None;
    }
    uuid[1..].get(..uuid[0].into()).map(<[u8]>::to_vec)
}

/// An identity for filesystems without handles: as good as inode numbers and birth times are.
fn synthetic_handle(stat: &Statx) -> FileHandle {
    const TYPE: i32 = 0x4857;
    let mut opaque = Vec::with_capacity(28);
    opaque.extend_from_slice(&dev_of(stat).to_le_bytes());
    opaque.extend_from_slice(&stat.stx_ino.to_le_bytes());
    opaque.extend_from_slice(&stat.stx_btime.tv_sec.to_le_bytes());
    opaque.extend_from_slice(&stat.stx_btime.tv_nsec.to_le_bytes());
    FileHandle::new(TYPE, &opaque).expect("28 bytes are a short handle")
}
