//! What an object looks like: everything that a replica has to reproduce.
//!
//! Invariant: a capture holds one object open from the first look to the last, so it never mixes two objects (it may mix two
//! moments of one: the tracker tells such an object again).

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// The type of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    Other,
}

/// An object without its name and its place among others.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) kind: Kind,
    /// Type and permission bits, as in `st_mode`.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) rdev: u64,
    /// Of regular files; 0 for others, whose times a copying consumer does not keep.
    pub(crate) mtime_ns: i128,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The data of a file, the target of a symbolic link.
    pub(crate) content: Arc<Vec<u8>>,
}

impl std::fmt::Debug for Object {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let head = String::from_utf8_lossy(&self.content[..self.content.len().min(32)]).into_owned();
        write!(
            f,
            "{:?} mode {:o} owner {}:{} mtime {} rdev {} size {} hash {:016x} head {head:?} xattrs {:?}",
            self.kind,
            self.mode,
            self.uid,
            self.gid,
            self.mtime_ns,
            self.rdev,
            self.content.len(),
            fnv(&self.content),
            self.xattrs
                .iter()
                .map(|(name, value)| (String::from_utf8_lossy(name), String::from_utf8_lossy(value)))
                .collect::<Vec<_>>()
        )
    }
}

impl Object {
    /// Says in a few words where two objects differ.
    pub(crate) fn difference(&self, other: &Self) -> String {
        let mut found = Vec::new();
        if self.kind != other.kind {
            found.push("type".to_owned());
        }
        if self.content != other.content {
            let at = self.content.iter().zip(other.content.iter()).position(|(a, b)| a != b);
            let at = at.unwrap_or_else(|| self.content.len().min(other.content.len()));
            found.push(format!(
                "content from byte {at} (sizes {} and {})",
                self.content.len(),
                other.content.len()
            ));
        }
        for (what, differs) in [
            ("mode", self.mode != other.mode),
            ("owner", (self.uid, self.gid) != (other.uid, other.gid)),
            ("mtime", self.mtime_ns != other.mtime_ns),
            ("device number", self.rdev != other.rdev),
            ("xattrs", self.xattrs != other.xattrs),
        ] {
            if differs {
                found.push(what.to_owned());
            }
        }
        found.join(", ")
    }

    /// Whether times and sizes do not tell these two apart, and all else is the same.
    pub(crate) fn differs_in_data_only(&self, other: &Self) -> bool {
        self.content != other.content
            && self.content.len() == other.content.len()
            && *self == Self { content: Arc::clone(&self.content), ..other.clone() }
    }
}

/// FNV-1a, to tell contents apart in a report.
fn fnv(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// An object as found at a path.
#[derive(Clone, Debug)]
pub(crate) struct Captured {
    pub(crate) object: Object,
    pub(crate) ino: u64,
    pub(crate) nlink: u64,
    pub(crate) ctime_ns: i128,
}

/// A name in a directory and what it is.
pub(crate) type Entry = (Vec<u8>, Kind);

/// A tree to read from: paths are resolved below it, never through a symbolic link.
pub(crate) enum Tree {
    /// By its root.
    Open(OwnedFd),
    /// Read already, while nobody wrote.
    Read(BTreeMap<Vec<u8>, Captured>),
}

impl Tree {
    /// Opens the root of the tree.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(Self::Open(rustix::fs::open(path, flags, Mode::empty())?))
    }

    fn resolve(root: &OwnedFd, path: &[u8], flags: OFlags) -> io::Result<Option<OwnedFd>> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        loop {
            match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Ok(fd) => return Ok(Some(fd)),
                // Gone, or something else than when it was told: an ancestor has been moved or replaced meanwhile.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                // A rename anywhere made the look-up beneath uncertain, or what it has found was moved out of the tree meanwhile.
                Err(Errno::AGAIN | Errno::XDEV) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Reads the object at a path; `None`: nothing is there.
    pub(crate) fn capture(&self, path: &[u8]) -> io::Result<Option<Captured>> {
        let root = match self {
            Self::Open(root) => root,
            Self::Read(all) => return Ok(all.get(path).cloned()),
        };
        let Some(fd) = Self::resolve(root, path, OFlags::PATH | OFlags::NOFOLLOW)? else { return Ok(None) };
        capture_fd(fd.as_fd())
    }

    /// Names and types in a directory, sorted; `None`: no directory is there.
    pub(crate) fn list(&self, path: &[u8]) -> io::Result<Option<Vec<Entry>>> {
        let root = match self {
            Self::Open(root) => root,
            Self::Read(all) => return Ok(list_read(all, path)),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let Some(fd) = Self::resolve(root, path, flags)? else {
            return Ok(None);
        };
        let mut found = Vec::new();
        for entry in Dir::read_from(&fd)? {
            let entry = match entry {
                Ok(entry) => entry,
                Err(Errno::NOENT) => return Ok(None),
                Err(error) => return Err(error.into()),
            };
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                found.push((name.to_vec(), kind_of(entry.file_type())));
            }
        }
        found.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Some(found))
    }

    /// Everything in the tree by path, the root as `.`. Right only while nobody writes.
    pub(crate) fn everything(&self) -> io::Result<BTreeMap<Vec<u8>, Captured>> {
        let mut all = BTreeMap::new();
        let mut todo = vec![b".".to_vec()];
        while let Some(path) = todo.pop() {
            let Some(captured) = self.capture(&path)? else { continue };
            if captured.object.kind == Kind::Directory {
                for (name, _) in self.list(&path)?.unwrap_or_default() {
                    todo.push(join(&path, &name));
                }
            }
            all.insert(path, captured);
        }
        Ok(all)
    }
}

/// The entries of a directory of a tree that has been read.
fn list_read(all: &BTreeMap<Vec<u8>, Captured>, path: &[u8]) -> Option<Vec<Entry>> {
    if all.get(path)?.object.kind != Kind::Directory {
        return None;
    }
    let prefix = if path == b"." { Vec::new() } else { join(path, b"") };
    let below = all.range(prefix.clone()..).take_while(|(path, _)| path.starts_with(&prefix));
    let entries = below.filter_map(|(path, captured)| {
        let name = &path[prefix.len()..];
        (!name.contains(&b'/') && path != b".").then(|| (name.to_vec(), captured.object.kind))
    });
    Some(entries.collect())
}

/// `directory/name`, where the root is `.`.
pub(crate) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    if directory == b"." { name.to_vec() } else { [directory, b"/", name].concat() }
}

/// A path for a person: what is not printable is escaped, the filling of long names cut.
pub(crate) fn show(path: &[u8]) -> String {
    path.escape_ascii().to_string().replace(&"x".repeat(245), "xxx..")
}

pub(crate) fn kind_of(file_type: FileType) -> Kind {
    match file_type {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        _ => Kind::Other,
    }
}

fn capture_fd(fd: BorrowedFd<'_>) -> io::Result<Option<Captured>> {
    let stat = rustix::fs::fstat(fd)?;
    let kind = kind_of(FileType::from_raw_mode(stat.st_mode));
    let by_fd = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let content = match kind {
        Kind::File => match std::fs::read(&by_fd) {
            Ok(data) => data,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        },
        Kind::Symlink => rustix::fs::readlinkat(fd, "", Vec::new())?.into_bytes(),
        Kind::Directory | Kind::Other => Vec::new(),
    };
    let xattrs = if kind == Kind::Symlink { BTreeMap::new() } else { xattrs(&by_fd)? };
    // The attributes once more, after the data: a consumer that keeps the older ones is as right, since a change in
    // between is told again; a mode that belongs to the data makes the reports easier to read.
    let stat = if kind == Kind::File { rustix::fs::fstat(fd)? } else { stat };
    Ok(Some(captured(&stat, kind, xattrs, content)))
}

fn captured(stat: &Stat, kind: Kind, xattrs: BTreeMap<Vec<u8>, Vec<u8>>, content: Vec<u8>) -> Captured {
    let ns = |seconds: i64, nanoseconds: u64| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    Captured {
        object: Object {
            kind,
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            rdev: if kind == Kind::Other { stat.st_rdev } else { 0 },
            mtime_ns: if kind == Kind::File { ns(stat.st_mtime, stat.st_mtime_nsec) } else { 0 },
            xattrs,
            content: Arc::new(content),
        },
        ino: stat.st_ino,
        nlink: stat.st_nlink,
        ctime_ns: ns(stat.st_ctime, stat.st_ctime_nsec),
    }
}

fn xattrs(path: &str) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut found = BTreeMap::new();
    let mut names = vec![0_u8; 8192];
    let length = match rustix::fs::listxattr(path, &mut names[..]) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP | Errno::NOENT) => return Ok(found),
        Err(error) => return Err(error.into()),
    };
    for name in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        // Set by the security policy of the machine, not by the writers.
        if name.starts_with(b"security.") {
            continue;
        }
        let mut value = vec![0_u8; 65536];
        match rustix::fs::getxattr(path, CString::new(name)?, &mut value[..]) {
            Ok(length) => {
                value.truncate(length);
                found.insert(name.to_vec(), value);
            }
            Err(Errno::NODATA | Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(found)
}
