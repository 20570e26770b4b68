//! The device: reading requests, sending answers, cloning, backing files.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use highwater_objects::last_errno;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::abi::{BackingMap, IOC_BACKING_CLOSE, IOC_BACKING_OPEN, IOC_CLONE};

/// Opens a device with no connection yet.
pub(crate) fn open() -> Result<OwnedFd, Errno> {
    rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
}

/// Another descriptor of the same connection: requests read from it are answered through it.
pub(crate) fn clone(device: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let new = open()?;
    let source = device.as_raw_fd().cast_unsigned();
    // SAFETY: the ioctl reads one u32, which outlives the call.
    let r = unsafe { libc::ioctl(new.as_raw_fd(), IOC_CLONE, &raw const source) };
    if r < 0 { Err(last_errno()) } else { Ok(new) }
}

/// Sends one answer or notification whole. Errors are the kernel's word that nobody waits for it any more.
pub(crate) fn send(device: BorrowedFd<'_>, parts: &[&[u8]]) {
    if let Err(errno) = try_send(device, parts)
        && errno != Errno::NOENT
        && errno != Errno::NODEV
    {
        tracing::error!(%errno, "an answer was refused by the kernel");
    }
}

/// Sends one answer or notification whole.
pub(crate) fn try_send(device: BorrowedFd<'_>, parts: &[&[u8]]) -> Result<(), Errno> {
    let mut slices = [IoSlice::new(&[]), IoSlice::new(&[]), IoSlice::new(&[])];
    for (slice, part) in slices.iter_mut().zip(parts) {
        *slice = IoSlice::new(part);
    }
    rustix::io::writev(device, &slices[..parts.len()]).map(drop)
}

/// Registers a lower file so that opens of a node can be answered with it. Needs `CAP_SYS_ADMIN`.
pub(crate) fn backing_open(device: BorrowedFd<'_>, lower: BorrowedFd<'_>) -> Result<i32, Errno> {
    let map = BackingMap { fd: lower.as_raw_fd(), flags: 0, padding: 0 };
    // SAFETY: the ioctl reads one `fuse_backing_map`, which outlives the call.
    let r = unsafe { libc::ioctl(device.as_raw_fd(), IOC_BACKING_OPEN, &raw const map) };
    if r < 0 { Err(last_errno()) } else { Ok(r) }
}

/// Gives the number of a backing file back; opens that use it go on.
pub(crate) fn backing_close(device: BorrowedFd<'_>, id: i32) {
    // SAFETY: the ioctl reads one u32, which outlives the call.
    let r = unsafe { libc::ioctl(device.as_raw_fd(), IOC_BACKING_CLOSE, &raw const id) };
    if r < 0 {
        tracing::debug!(id, errno = %last_errno(), "a backing file could not be given back");
    }
}
