//! From an object to its handle, and back.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use highwater_tracker::{FileHandle, HANDLE_BYTES_MAX};
use rustix::fs::{CWD, OFlags};
use rustix::io::Errno;

use crate::kernel::{last_errno, owned};

/// `struct file_handle` with the room that any handle needs.
#[repr(C, align(8))]
struct RawHandle {
    len: u32,
    handle_type: i32,
    bytes: [u8; HANDLE_BYTES_MAX],
}

/// The handle of what is at a name in a directory, of a symbolic link its own; an empty name means the descriptor itself.
///
/// # Errors
/// Those of `name_to_handle_at(2)`: `EOPNOTSUPP` if the filesystem has none.
pub fn handle_of(at: BorrowedFd<'_>, name: &CStr) -> Result<FileHandle, Errno> {
    name_to_handle(at, name, if name.is_empty() { libc::AT_EMPTY_PATH } else { 0 })
}

/// The handle of what a link, as those in `/proc`, leads to.
///
/// # Errors
/// As for [`handle_of`].
pub fn handle_behind(link: &CStr) -> Result<FileHandle, Errno> {
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

/// How long an inode may take to be made, before an answer that there is no memory is believed.
const MAKING_TRIES: usize = 100;
const MAKING_PAUSE: Duration = Duration::from_micros(100);

/// Opens an object by its handle, through a mount of its filesystem.
///
/// ext4 answers `ENOMEM` for a handle of an object that is gone while another is being made of the same inode number
/// (`iget_locked` finds an inode with `I_CREATING`). That takes no time worth speaking of, so it is asked again, for 10 ms at most.
///
/// # Errors
/// Those of `open_by_handle_at(2)`: `ESTALE` if the object does not exist any more, `EPERM` for who is not root.
pub fn open_by_handle(mount: BorrowedFd<'_>, handle: &FileHandle, flags: OFlags) -> Result<OwnedFd, Errno> {
    for _ in 1..MAKING_TRIES {
        match open_once(mount, handle, flags) {
            Err(Errno::NOMEM) => std::thread::sleep(MAKING_PAUSE),
            opened => return opened,
        }
    }
    open_once(mount, handle, flags)
}

fn open_once(mount: BorrowedFd<'_>, handle: &FileHandle, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut raw = RawHandle { len: 0, handle_type: handle.handle_type(), bytes: [0; HANDLE_BYTES_MAX] };
    let opaque = handle.opaque();
    raw.len = u32::try_from(opaque.len()).map_err(|_| Errno::INVAL)?;
    raw.bytes[..opaque.len()].copy_from_slice(opaque);
    let flags = (flags | OFlags::CLOEXEC).bits().cast_signed();
    // SAFETY: `raw` has the kernel's layout and outlives the call, which makes a descriptor.
    unsafe {
        let fd = libc::syscall(libc::SYS_open_by_handle_at, mount.as_raw_fd(), &raw const raw, flags);
        owned(i32::try_from(fd).unwrap_or(-1))
    }
}

/// The path by which a descriptor can be opened again, or used by calls that take no `O_PATH` descriptor.
pub fn proc_path(fd: BorrowedFd<'_>) -> ProcPath {
    let mut path = ProcPath([0; 32]);
    let mut digits = [0u8; 10];
    let mut n = fd.as_raw_fd().unsigned_abs();
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + u8::try_from(n % 10).unwrap_or_default();
        n /= 10;
        if n == 0 {
            break;
        }
    }
    const PREFIX: &[u8] = b"/proc/self/fd/";
    path.0[..PREFIX.len()].copy_from_slice(PREFIX);
    path.0[PREFIX.len()..PREFIX.len() + digits.len() - at].copy_from_slice(&digits[at..]);
    path
}

/// See [`proc_path`].
pub struct ProcPath([u8; 32]);

impl ProcPath {
    /// The path.
    pub fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.0).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_path_of_a_descriptor_is_spelled_right() {
        for raw in [0, 7, 10, 4096, 1_048_575] {
            // SAFETY: only the number is looked at, no call is made on it.
            let fd = unsafe { BorrowedFd::borrow_raw(raw) };
            assert_eq!(proc_path(fd).as_c_str().to_str(), Ok(format!("/proc/self/fd/{raw}").as_str()));
        }
    }

    #[test]
    fn an_object_has_one_handle_however_it_is_reached() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let by_descriptor = handle_of(file.as_file().as_fd(), c"").unwrap();
        assert_eq!(handle_behind(proc_path(file.as_file().as_fd()).as_c_str()), Ok(by_descriptor));
    }
}
