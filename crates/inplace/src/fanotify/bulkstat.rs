//! All inodes of an XFS filesystem at once, for the catch-up: `XFS_IOC_BULKSTAT` (`ioctl_xfs_bulkstat(2)`) reads them in the order of the
//! disk and without a path for each, three times as fast as `statx`.
//!
//! What it tells is what `statx` would: it takes each inode from the kernel's cache, or puts it there. It knows no names. So the walk still
//! reads every directory, and looks closer only at those entries whose inode has changed.
//!
//! It reads the whole filesystem, also the part outside of the tracked directory, and is therefore used only if that is the root of the
//! filesystem.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;

/// How many inodes one call returns; 192 bytes each.
const BATCH: usize = 1024;

/// Allocation groups are read side by side.
const THREADS: usize = 4;

/// If more than these have changed it is no use to remember them: 64 MiB.
const CHANGED_MAX: usize = 4 << 20;

/// `struct xfs_bulk_ireq` of `xfs_fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Request {
    /// Where to begin; the kernel moves it on.
    ino: u64,
    flags: u32,
    room: u32,
    count: u32,
    group: u32,
    reserved: [u64; 5],
}

/// `struct xfs_bulkstat`; what is not read has no name of its own.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Inode {
    ino: u64,
    _size_blocks_flags: [u64; 3],
    _atime_mtime: [i64; 2],
    ctime: i64,
    btime: i64,
    _generation_owner: [u32; 4],
    _atime_mtime_ns: [u32; 2],
    ctime_ns: u32,
    btime_ns: u32,
    _rest: [u32; 10],
    _more: [u64; 7],
}

#[repr(C)]
struct Call {
    request: Request,
    inodes: [Inode; BATCH],
}

// The sizes are part of the kernel's interface; that of the request is in the number of the call.
const _: () = assert!(size_of::<Request>() == 64 && size_of::<Inode>() == 192);
/// `_IOR('X', 127, struct xfs_bulkstat_req)`.
const XFS_IOC_BULKSTAT: libc::Ioctl = 0x8040_587f_u32 as libc::Ioctl;
const ONE_GROUP: u32 = 1 << 0;
const SPECIAL: u32 = 1 << 1;
const SPECIAL_ROOT: u64 = 1;

impl Call {
    fn new() -> Box<Self> {
        Box::new(Self { request: Request::default(), inodes: [Inode::default(); BATCH] })
    }

    fn run(&mut self, filesystem: BorrowedFd<'_>) -> Result<&[Inode], Errno> {
        self.request.room = u32::try_from(BATCH).map_err(|_| Errno::INVAL)?;
        self.request.count = 0;
        // SAFETY: the kernel reads the request and writes it and at most `room` inodes behind it; `Call` has that layout and room, and any
        // bytes are a value of it.
        let result =
            unsafe { libc::ioctl(filesystem.as_raw_fd(), XFS_IOC_BULKSTAT, std::ptr::from_mut(self)) };
        if result < 0 {
            return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO));
        }
        self.inodes.get(..self.request.count as usize).ok_or(Errno::IO)
    }
}

/// The inodes that were changed or born since then, if the descriptor is of the root of an XFS filesystem and the kernel can tell.
///
/// # Errors
/// What the filesystem answers; then nothing is known.
pub(super) fn changed_since(root: BorrowedFd<'_>, since_ns: i128) -> Result<Option<HashSet<u64>>, Errno> {
    let mut call = Call::new();
    call.request = Request { ino: SPECIAL_ROOT, flags: SPECIAL, ..Request::default() };
    let root_ino = match call.run(root) {
        Ok([inode]) => inode.ino,
        // Not XFS, too old, or not allowed to.
        Ok(_) | Err(Errno::NOTTY | Errno::INVAL | Errno::OPNOTSUPP | Errno::PERM | Errno::NOSYS) => {
            return Ok(None);
        }
        Err(errno) => return Err(errno),
    };
    if rustix::fs::fstat(root)?.st_ino != root_ino {
        return Ok(None);
    }
    let (next_group, changed) = (AtomicU32::new(0), Mutex::new(Ok(HashSet::new())));
    let read = || {
        loop {
            // ORDERING: each group is taken once; what is found is handed over under the lock.
            let group = next_group.fetch_add(1, Ordering::Relaxed);
            let found = changed_in_group(root, group, since_ns);
            let mut changed = changed.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match (&mut *changed, found) {
                (Ok(changed), Ok(Some(found))) if changed.len() + found.len() <= CHANGED_MAX => {
                    changed.extend(found);
                }
                (Ok(_), Ok(Some(_))) => *changed = Err(Errno::FBIG),
                (Ok(_), Err(errno)) => *changed = Err(errno),
                // The last one was taken, or somebody has failed.
                (Ok(_), Ok(None)) | (Err(_), _) => return,
            }
        }
    };
    std::thread::scope(|scope| (0..THREADS).for_each(|_| drop(scope.spawn(read))));
    match changed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Err(Errno::FBIG) => Ok(None),
        changed => changed.map(Some),
    }
}

/// `None`: there is no such allocation group.
fn changed_in_group(root: BorrowedFd<'_>, group: u32, since_ns: i128) -> Result<Option<Vec<u64>>, Errno> {
    let ns = |seconds: i64, ns: u32| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
    let mut call = Call::new();
    call.request = Request { flags: ONE_GROUP, group, ..Request::default() };
    let mut changed = Vec::new();
    loop {
        let is_first = call.request.ino == 0;
        let inodes = match call.run(root.as_fd()) {
            Err(Errno::INVAL) if is_first => return Ok(None),
            inodes => inodes?,
        };
        if inodes.is_empty() {
            return Ok(Some(changed));
        }
        let is_new =
            |inode: &&Inode| ns(inode.ctime, inode.ctime_ns).max(ns(inode.btime, inode.btime_ns)) >= since_ns;
        changed.extend(inodes.iter().filter(is_new).map(|inode| inode.ino));
        if changed.len() > CHANGED_MAX {
            return Err(Errno::FBIG);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_root_of_an_xfs_filesystem_is_left_to_statx() {
        let directory = std::fs::File::open("/proc").unwrap();
        assert_eq!(changed_since(directory.as_fd(), 0), Ok(None));
    }
}
