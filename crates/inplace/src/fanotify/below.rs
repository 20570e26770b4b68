//! Objects of the tracked filesystem, found by their handles.
//!
//! They are reached through a private, detached clone of the directory's mount: it enters no mount point, it is in nobody's
//! way at an unmount, and the kernel refuses to go up from it out of the directory, which tells what is inside from what is not.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use highwater_tracker::{FileHandle, HANDLE_BYTES_MAX, ObjectType, Place, Sample};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

/// The filesystem, and the directory in it that is tracked.
pub(crate) struct Below {
    root: OwnedFd,
    root_handle: FileHandle,
    magic: i64,
    fsid: [i32; 2],
    device: (u32, u32),
}

/// Where an object is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Whereabouts {
    /// It has no name any more.
    Gone,
    /// In the filesystem, and not in the directory.
    Outside,
    /// In the directory, or that cannot be ruled out: no name could be found.
    Unknown,
    /// In the directory, at this name among perhaps others.
    At(Place),
}

/// How often an object is looked for that moves while it is looked for.
const TRIES: usize = 8;

/// How long an inode may take to be made, before an answer that there is no memory is believed.
const MAKING_TRIES: usize = 100;
const MAKING_PAUSE: Duration = Duration::from_micros(100);

impl Below {
    pub(crate) fn open(directory: &Path) -> Result<Self, Errno> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, directory, flags)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&tree, c".", flags, Mode::empty())?;
        let root_handle = handle_of_fd(root.as_fd())?;
        let statfs = rustix::fs::fstatfs(&root)?;
        let stat = statx_fd(root.as_fd())?;
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        Ok(Self { root, root_handle, magic: statfs.f_type, fsid: fsid(&statfs), device })
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    pub(crate) fn root_handle(&self) -> &FileHandle {
        &self.root_handle
    }

    pub(crate) fn magic(&self) -> i64 {
        self.magic
    }

    pub(crate) fn fsid(&self) -> [i32; 2] {
        self.fsid
    }

    pub(crate) fn device(&self) -> (u32, u32) {
        self.device
    }

    /// Opens an object by its handle; `None` if it does not exist any more.
    pub(crate) fn open_object(&self, handle: &FileHandle, flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
        for _ in 0..MAKING_TRIES {
            match open_by_handle(self.root(), handle, flags) {
                // ext4 says so (iget_locked gives no inode) while another object is being made with the number of one that is gone.
                Err(Errno::NOMEM) => std::thread::sleep(MAKING_PAUSE),
                opened => return gone(opened),
            }
        }
        gone(open_by_handle(self.root(), handle, flags))
    }

    /// Opens a directory for reading, by handle.
    pub(crate) fn open_directory(&self, handle: &FileHandle) -> Result<Option<OwnedFd>, Errno> {
        self.open_object(handle, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME)
    }

    /// What is at a name of a directory. The name may be one that the kernel has marked as deleted, and too long by that.
    pub(crate) fn at(&self, directory: BorrowedFd<'_>, name: &[u8]) -> Result<Option<FileHandle>, Errno> {
        let name = CString::new(name).map_err(|_| Errno::INVAL)?;
        match gone(handle_of(directory, &name)) {
            Err(Errno::NAMETOOLONG) => Ok(None),
            found => found,
        }
    }

    /// The attributes of an object; `None` if it does not exist any more.
    pub(crate) fn stat(&self, handle: &FileHandle) -> Result<Option<Statx>, Errno> {
        match self.open_object(handle, OFlags::PATH | OFlags::NOFOLLOW)? {
            Some(fd) => Ok(Some(statx_fd(fd.as_fd())?).filter(|stat| stat.stx_nlink > 0)),
            None => Ok(None),
        }
    }

    /// Where a directory is. Not to be asked for the root.
    pub(crate) fn locate_directory(&self, directory: &FileHandle) -> Result<Whereabouts, Errno> {
        for _ in 0..TRIES {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let Some(fd) = self.open_object(directory, flags)? else { return Ok(Whereabouts::Gone) };
            if statx_fd(fd.as_fd())?.stx_nlink == 0 {
                return Ok(Whereabouts::Gone);
            }
            let parent = match rustix::fs::openat(&fd, c"..", flags | OFlags::CLOEXEC, Mode::empty()) {
                // Above the root of our mount.
                Err(Errno::NOENT) => return Ok(Whereabouts::Outside),
                parent => parent?,
            };
            let name = match rustix::fs::readlink(proc_path(&fd), Vec::new()) {
                Ok(path) => last_component(path.as_bytes()).to_owned(),
                // Too deep for a path.
                Err(Errno::NAMETOOLONG) => match self.name_in(&parent, directory)? {
                    Some(name) => name,
                    None => continue,
                },
                Err(errno) => return Err(errno),
            };
            // The name is a snapshot: it counts if it leads here.
            if !name.is_empty() && self.at(parent.as_fd(), &name)?.as_ref() == Some(directory) {
                let parent = handle_of_fd(parent.as_fd())?;
                return Ok(Whereabouts::At(Place { parent, name: name.into() }));
            }
        }
        Ok(Whereabouts::Unknown)
    }

    /// The name of a directory, found by listing the one above.
    fn name_in(&self, parent: &OwnedFd, directory: &FileHandle) -> Result<Option<Vec<u8>>, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME | OFlags::CLOEXEC;
        let parent = rustix::fs::openat(parent, c".", flags, Mode::empty())?;
        for entry in rustix::fs::Dir::read_from(&parent)? {
            let entry = entry?;
            let name = entry.file_name();
            let may_be = matches!(entry.file_type(), FileType::Directory | FileType::Unknown);
            if may_be && name != c".." && gone(handle_of(parent.as_fd(), name))?.as_ref() == Some(directory) {
                return Ok(Some(name.to_bytes().to_owned()));
            }
        }
        Ok(None)
    }

    /// Whether a directory is in the tracked one, or is it. `None`: it does not exist any more.
    pub(crate) fn is_inside(&self, directory: &FileHandle) -> Result<Option<bool>, Errno> {
        if *directory == self.root_handle {
            return Ok(Some(true));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let Some(fd) = self.open_object(directory, flags)? else { return Ok(None) };
        match rustix::fs::openat(&fd, c"..", flags | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOENT) => Ok(Some(false)),
            parent => parent.map(|_| Some(true)),
        }
    }

    /// Where a file is, as far as the kernel has one of its names at hand.
    pub(crate) fn locate_file(&self, file: &FileHandle) -> Result<Whereabouts, Errno> {
        let (mut nlink, mut is_name_gone) = (0, false);
        for _ in 0..TRIES {
            let flags = OFlags::PATH | OFlags::NOFOLLOW;
            let Some(fd) = self.open_object(file, flags)? else { return Ok(Whereabouts::Gone) };
            nlink = statx_fd(fd.as_fd())?.stx_nlink;
            if nlink == 0 {
                return Ok(Whereabouts::Gone);
            }
            let path = match rustix::fs::readlink(proc_path(&fd), Vec::new()) {
                // Too deep for a path.
                Err(Errno::NAMETOOLONG) => return Ok(Whereabouts::Unknown),
                path => path?,
            };
            let path = path.as_bytes();
            let name = last_component(path);
            if name.is_empty() {
                // The kernel has the object and none of its names.
                return Ok(Whereabouts::Unknown);
            }
            // What the kernel has at hand is a name that has been taken away from an object that is still open; there are others.
            is_name_gone = name.ends_with(b" (deleted)");
            // From the root of our mount, or from that of the filesystem for what is outside.
            let above = [b".", &path[..path.len() - name.len()]].concat();
            let above = CString::new(above).map_err(|_| Errno::INVAL)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let parent = match gone(rustix::fs::openat(&self.root, &above, flags, Mode::empty())) {
                Ok(Some(parent)) => parent,
                Ok(None) => continue,
                Err(Errno::NAMETOOLONG) => return Ok(Whereabouts::Unknown),
                Err(errno) => return Err(errno),
            };
            if self.at(parent.as_fd(), name)?.as_ref() == Some(file) {
                let parent = handle_of_fd(parent.as_fd())?;
                return Ok(Whereabouts::At(Place { parent, name: name.into() }));
            }
        }
        Ok(if nlink == 1 && !is_name_gone { Whereabouts::Outside } else { Whereabouts::Unknown })
    }

    pub(crate) fn locate(&self, object: &FileHandle) -> Result<Whereabouts, Errno> {
        match self.stat(object)? {
            None => Ok(Whereabouts::Gone),
            Some(stat) if object_type(&stat) == ObjectType::Directory => self.locate_directory(object),
            Some(_) => self.locate_file(object),
        }
    }
}

/// Returns once every change of the directory's entries that was under way has been made known: the kernel queues its event
/// before it lets go of the directory's lock, which a listing takes as well.
pub(crate) fn wait_for_changes_of(directory: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut too_small = [0u8; 1];
    // SAFETY: the kernel writes at most as many bytes as the buffer has.
    let r = unsafe {
        libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), too_small.as_mut_ptr(), too_small.len())
    };
    match if r < 0 { Err(last_errno()) } else { Ok(()) } {
        // No entry fits; a directory that has been removed is not listed.
        Err(Errno::INVAL | Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// The filesystem's id, whose type is opaque for no reason.
pub(crate) fn fsid(statfs: &rustix::fs::StatFs) -> [i32; 2] {
    // SAFETY: `fsid_t` is two ints.
    unsafe { std::mem::transmute(statfs.f_fsid) }
}

fn last_component(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// Objects that are gone as `None`.
fn gone<T>(result: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(Errno::NOENT | Errno::STALE | Errno::NOTDIR | Errno::LOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Says in the log where an error comes from that nobody expects: what the caller of a checkpoint is told has no room for it.
pub(crate) fn noted<T>(doing: &str, result: Result<T, Errno>) -> Result<T, Errno> {
    if let Err(errno) = &result {
        tracing::warn!(%errno, "cannot {doing}");
    }
    result
}

pub(crate) fn statx_fd(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::BTIME)
}

pub(crate) fn object_type(stat: &Statx) -> ObjectType {
    match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::RegularFile => ObjectType::File,
        FileType::Directory => ObjectType::Directory,
        FileType::Symlink => ObjectType::Symlink,
        _ => ObjectType::Other,
    }
}

pub(crate) fn sample(stat: &Statx) -> Sample {
    let ns =
        |time: rustix::fs::StatxTimestamp| i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    Sample {
        mtime_ns: ns(stat.stx_mtime),
        ctime_ns: ns(stat.stx_ctime),
        size: stat.stx_size,
        nlink: stat.stx_nlink.into(),
    }
}

/// The path by which a descriptor can be opened again.
pub(crate) fn proc_path(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

#[repr(C, align(8))]
struct RawHandle {
    len: u32,
    handle_type: i32,
    bytes: [u8; HANDLE_BYTES_MAX],
}

pub(crate) fn handle_of_fd(fd: BorrowedFd<'_>) -> Result<FileHandle, Errno> {
    name_to_handle(fd, c"", libc::AT_EMPTY_PATH)
}

/// The handle of what is at a name; of a symbolic link, its own.
pub(crate) fn handle_of(at: BorrowedFd<'_>, name: &CStr) -> Result<FileHandle, Errno> {
    name_to_handle(at, name, 0)
}

/// The handle of what a link in `/proc` leads to.
pub(crate) fn handle_behind(link: &CStr) -> Result<FileHandle, Errno> {
    name_to_handle(CWD, link, libc::AT_SYMLINK_FOLLOW)
}

fn name_to_handle(at: BorrowedFd<'_>, name: &CStr, flags: i32) -> Result<FileHandle, Errno> {
    let mut raw = RawHandle { len: 128, handle_type: 0, bytes: [0; HANDLE_BYTES_MAX] };
    let mut mount_id = 0i32;
    // SAFETY: `raw` has the kernel's layout with room for the 128 bytes that it announces; all pointers outlive the call.
    let r = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            at.as_raw_fd(),
            name.as_ptr(),
            &raw mut raw,
            &raw mut mount_id,
            flags,
        )
    };
    if r < 0 {
        return Err(last_errno());
    }
    let opaque = raw.bytes.get(..raw.len as usize).ok_or(Errno::OVERFLOW)?;
    FileHandle::new(raw.handle_type, opaque).ok_or(Errno::OVERFLOW)
}

fn open_by_handle(mount: BorrowedFd<'_>, handle: &FileHandle, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut raw = RawHandle { len: 0, handle_type: handle.handle_type(), bytes: [0; HANDLE_BYTES_MAX] };
    let opaque = handle.opaque();
    raw.len = u32::try_from(opaque.len()).map_err(|_| Errno::INVAL)?;
    raw.bytes[..opaque.len()].copy_from_slice(opaque);
    let flags = (flags | OFlags::CLOEXEC).bits().cast_signed();
    // SAFETY: `raw` has the kernel's layout and outlives the call.
    let r = unsafe { libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw const raw, flags) };
    owned(i32::try_from(r).unwrap_or(-1))
}

/// The errno of the libc call that has just failed on this thread.
pub(crate) fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Takes a descriptor that a libc call returned.
pub(crate) fn owned(raw: i32) -> Result<OwnedFd, Errno> {
    if raw < 0 {
        return Err(last_errno());
    }
    // SAFETY: the kernel has just made this descriptor for us and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
