//! Objects of the tracked filesystem, found by their handles.
//!
//! They are reached through a private, detached clone of the directory's mount: it enters no mount point, it is in nobody's
//! way at an unmount, and the kernel refuses to go up from it out of the directory, which tells what is inside from what is not.
//! That is a question to a directory. A file is where its name is, and of what is outside of a mount the kernel tells no name; so
//! files are reached through a second clone, of all that the directory's mount shows.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use highwater_objects::{
    attributes_of, handle_of, last_errno, magic, object_type, open_by_handle, proc_path,
};
use highwater_tracker::{FileHandle, ObjectType, Place};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

/// The filesystem, and the directory in it that is tracked.
pub(crate) struct Below {
    root: OwnedFd,
    /// The uppermost directory of the directory's mount; `root` if that is not to be reached.
    top: OwnedFd,
    /// The clones that those two were opened through. A mount without a namespace (this is an anonymous one) costs a lock of the whole
    /// machine at the end of every lookup (`mntput` in the kernel).
    _trees: [Option<OwnedFd>; 2],
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

/// What the name that the kernel has of an open file says.
enum Lookup {
    Inside(Place),
    Outside,
    /// There is none at hand that could be followed.
    Nameless,
    /// It does not lead there any more.
    Moved,
}

/// How often an object is looked for that moves while it is looked for.
const TRIES: usize = 8;

impl Below {
    pub(crate) fn open(directory: &Path) -> Result<Self, Errno> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, directory, flags)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&tree, c".", flags, Mode::empty())?;
        let root_handle = handle_of(root.as_fd(), c"")?;
        let statfs = rustix::fs::fstatfs(&root)?;
        let stat = attributes_of(root.as_fd())?;
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        let (top, top_tree) = match top_of_mount(directory) {
            Ok((top, tree)) => (top, Some(tree)),
            Err(errno) => {
                tracing::debug!(%errno, "files that are outside may be taken for ones that are inside");
                (rustix::io::fcntl_dupfd_cloexec(&root, 0)?, None)
            }
        };
        let (_trees, magic) = ([Some(tree), top_tree], statfs.f_type);
        Ok(Self { root, top, _trees, root_handle, magic, fsid: fsid(&statfs), device })
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

    /// Whether something of this device is on the filesystem. Each btrfs subvolume has its own device; what they share is one half of the
    /// filesystem's id.
    pub(crate) fn has_device(
        &self,
        device: (u32, u32),
        statfs: impl FnOnce() -> Result<rustix::fs::StatFs, Errno>,
    ) -> bool {
        let is_of_same_id =
            |stat: &rustix::fs::StatFs| stat.f_type == magic::BTRFS && fsid(stat)[0] == self.fsid[0];
        device == self.device || self.magic == magic::BTRFS && statfs().is_ok_and(|stat| is_of_same_id(&stat))
    }

    /// Opens an object by its handle; `None` if it does not exist any more.
    pub(crate) fn open_object(&self, handle: &FileHandle, flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
        open_through(self.root(), handle, flags)
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
            Some(fd) => Ok(Some(attributes_of(fd.as_fd())?).filter(|stat| stat.stx_nlink > 0)),
            None => Ok(None),
        }
    }

    /// Where a directory is. Not to be asked for the root.
    pub(crate) fn locate_directory(&self, directory: &FileHandle) -> Result<Whereabouts, Errno> {
        for _ in 0..TRIES {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let Some(fd) = self.open_object(directory, flags)? else { return Ok(Whereabouts::Gone) };
            if attributes_of(fd.as_fd())?.stx_nlink == 0 {
                return Ok(Whereabouts::Gone);
            }
            let parent = match rustix::fs::openat(&fd, c"..", flags | OFlags::CLOEXEC, Mode::empty()) {
                // Above the root of our mount.
                Err(Errno::NOENT) => return Ok(Whereabouts::Outside),
                parent => parent?,
            };
            let name = match rustix::fs::readlink(proc_path(fd.as_fd()).as_c_str(), Vec::new()) {
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
                let parent = handle_of(parent.as_fd(), c"")?;
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
        for _ in 0..TRIES {
            let flags = OFlags::PATH | OFlags::NOFOLLOW;
            let Some(fd) = open_through(self.top.as_fd(), file, flags)? else {
                return Ok(Whereabouts::Gone);
            };
            let nlink = attributes_of(fd.as_fd())?.stx_nlink;
            if nlink == 0 {
                return Ok(Whereabouts::Gone);
            }
            match self.look_at_name_of(&fd, file, self.top.as_fd())? {
                Lookup::Inside(place) => return Ok(Whereabouts::At(place)),
                // By another one it may be inside.
                Lookup::Outside if nlink > 1 => return Ok(Whereabouts::Unknown),
                Lookup::Outside => return Ok(Whereabouts::Outside),
                Lookup::Nameless => return Ok(Whereabouts::Unknown),
                Lookup::Moved => {}
            }
        }
        Ok(Whereabouts::Unknown)
    }

    /// Whether a file that some process holds is outside, by the name that it was opened by; `fd` is a descriptor of the same open.
    /// For what the directory's mount does not show: another subvolume, or a bind mount's surroundings.
    pub(crate) fn is_held_outside(&self, fd: &OwnedFd, file: &FileHandle) -> Result<bool, Errno> {
        if attributes_of(fd.as_fd())?.stx_nlink != 1 {
            return Ok(false);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(c"/", flags, Mode::empty())?;
        Ok(matches!(self.look_at_name_of(fd, file, root.as_fd())?, Lookup::Outside))
    }

    /// Looks whether the name that the kernel has of an open file, from `root` on, leads to it.
    fn look_at_name_of(
        &self,
        fd: &OwnedFd,
        file: &FileHandle,
        root: BorrowedFd<'_>,
    ) -> Result<Lookup, Errno> {
        let path = match rustix::fs::readlink(proc_path(fd.as_fd()).as_c_str(), Vec::new()) {
            // Too deep for a path.
            Err(Errno::NAMETOOLONG) => return Ok(Lookup::Nameless),
            path => path?,
        };
        let path = path.as_bytes();
        let name = last_component(path);
        // Not below that root, or the kernel has the object and none of its names.
        if name.is_empty() {
            return Ok(Lookup::Nameless);
        }
        let above = [b".", &path[..path.len() - name.len()]].concat();
        let above = CString::new(above).map_err(|_| Errno::INVAL)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let parent = match gone(rustix::fs::openat(root, &above, flags, Mode::empty())) {
            Ok(Some(parent)) => parent,
            Ok(None) => return Ok(Lookup::Moved),
            Err(Errno::NAMETOOLONG) => return Ok(Lookup::Nameless),
            Err(errno) => return Err(errno),
        };
        let stat = attributes_of(parent.as_fd())?;
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        // On another one the same handle is another object.
        if !self.has_device(device, || rustix::fs::fstatfs(&parent))
            || self.at(parent.as_fd(), name)?.as_ref() != Some(file)
        {
            // A name that has been taken away from an object that is still open; there are others.
            let is_taken_away = name.ends_with(b" (deleted)");
            return Ok(if is_taken_away { Lookup::Nameless } else { Lookup::Moved });
        }
        let parent = handle_of(parent.as_fd(), c"")?;
        Ok(match self.is_inside(&parent)? {
            Some(true) => Lookup::Inside(Place { parent, name: name.into() }),
            Some(false) => Lookup::Outside,
            None => Lookup::Moved,
        })
    }

    pub(crate) fn locate(&self, object: &FileHandle) -> Result<Whereabouts, Errno> {
        match self.stat(object)? {
            None => Ok(Whereabouts::Gone),
            Some(stat) if object_type(&stat) == ObjectType::Directory => self.locate_directory(object),
            Some(_) => self.locate_file(object),
        }
    }
}

/// A private clone of all that the mount of a directory shows: its uppermost directory, and the mount itself.
fn top_of_mount(directory: &Path) -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let identity = |fd: &OwnedFd| {
        let wanted = StatxFlags::BASIC_STATS | StatxFlags::MNT_ID;
        let stat = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, wanted)?;
        Ok::<_, Errno>((stat.stx_mnt_id, (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino)))
    };
    let mut top = rustix::fs::open(directory, flags, Mode::empty())?;
    let (mount, mut here) = identity(&top)?;
    loop {
        let above = rustix::fs::openat(&top, c"..", flags, Mode::empty())?;
        let (mount_above, there) = identity(&above)?;
        // The root of the process is its own parent.
        if mount_above != mount || there == here {
            break;
        }
        (top, here) = (above, there);
    }
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(&top, c"", flags)?;
    // Opened, so that handles can be opened through it.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok((rustix::fs::openat(&tree, c".", flags, Mode::empty())?, tree))
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

/// Opens an object by its handle, through a mount of its filesystem; `None` if it does not exist any more.
fn open_through(mount: BorrowedFd<'_>, handle: &FileHandle, flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
    gone(open_by_handle(mount, handle, flags))
}
