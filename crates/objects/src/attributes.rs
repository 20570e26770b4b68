//! What the tracker wants to know of an object.

use std::os::fd::BorrowedFd;

use highwater_tracker::{ObjectType, Sample};
use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, StatxTimestamp};
use rustix::io::Errno;

/// What is asked for: all that `stat(2)` has, and the birth time.
pub const ATTRIBUTES: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// The attributes of what a descriptor, `O_PATH` or better, is of.
///
/// # Errors
/// Those of `statx(2)`.
pub fn attributes_of(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, ATTRIBUTES)
}

/// The type, as the tracker tells types apart.
pub fn object_type(stat: &Statx) -> ObjectType {
    match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::RegularFile => ObjectType::File,
        FileType::Directory => ObjectType::Directory,
        FileType::Symlink => ObjectType::Symlink,
        _ => ObjectType::Other,
    }
}

/// What differs after a change.
pub fn sample(stat: &Statx) -> Sample {
    let ns = |time: StatxTimestamp| i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec);
    Sample {
        mtime_ns: ns(stat.stx_mtime),
        ctime_ns: ns(stat.stx_ctime),
        size: stat.stx_size,
        nlink: stat.stx_nlink.into(),
    }
}
