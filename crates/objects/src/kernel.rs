//! What this kernel, and a filesystem of it, can do; and how its calls answer.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::OnceLock;

use rustix::io::Errno;

/// Magic numbers of filesystems, from `linux/magic.h`, as `statfs(2)` gives them.
#[allow(missing_docs, reason = "the names of filesystems")]
pub mod magic {
    pub const EXT4: i64 = 0xef53;
    pub const XFS: i64 = 0x5846_5342;
    pub const BTRFS: i64 = 0x9123_683e;
    pub const TMPFS: i64 = 0x0102_1994;
    pub const OVERLAYFS: i64 = 0x794c_7630;
    pub const FUSE: i64 = 0x6573_5546;
    pub const NFS: i64 = 0x6969;
    pub const F2FS: i64 = 0xf2f5_2010;
    pub const ZFS: i64 = 0x2fc1_2fc1;
}

/// The usual name of a filesystem, by its magic number.
pub fn filesystem_name(magic: i64) -> Option<&'static str> {
    Some(match magic {
        magic::EXT4 => "ext4",
        magic::XFS => "xfs",
        magic::BTRFS => "btrfs",
        magic::TMPFS => "tmpfs",
        magic::OVERLAYFS => "overlay",
        magic::FUSE => "fuse",
        magic::NFS => "nfs",
        magic::F2FS => "f2fs",
        magic::ZFS => "zfs",
        _ => return None,
    })
}

/// Whether every change after a `statx` gets a timestamp that differs from it (multigrain timestamps, Linux 6.13).
pub fn has_distinct_timestamps(filesystem: i64) -> bool {
    matches!(filesystem, magic::EXT4 | magic::XFS | magic::BTRFS | magic::TMPFS) && kernel_at_least(6, 13)
}

/// Whether the kernel is of this version, or newer.
pub fn kernel_at_least(major: u32, minor: u32) -> bool {
    static VERSION: OnceLock<(u32, u32)> = OnceLock::new();
    let version = VERSION.get_or_init(|| {
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy().into_owned();
        let mut numbers =
            release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    });
    *version >= (major, minor)
}

/// The errno of the libc call that has just failed on this thread.
pub fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Takes the descriptor that a libc call has just returned.
///
/// # Errors
/// The errno of that call, if the number is negative.
///
/// # Safety
/// A number that is not negative must be that of a descriptor that the kernel has just made, and that nobody else knows of.
pub unsafe fn owned(raw: i32) -> Result<OwnedFd, Errno> {
    if raw < 0 {
        return Err(last_errno());
    }
    // SAFETY: by contract.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}
