//! What the kernel itself takes for the events of a whole filesystem: a group of fanotify that asks for what the source `fanotify` asks for,
//! reads it as often, and throws it away. Nobody who is told of changes by fanotify, with names, can cost less.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::io::Errno;

/// As in `highwater-inplace`.
const FLAGS: u32 = libc::FAN_CLASS_NOTIF
    | libc::FAN_UNLIMITED_QUEUE
    | libc::FAN_REPORT_DFID_NAME_TARGET
    | libc::FAN_CLOEXEC
    | libc::FAN_NONBLOCK;
const WATCHED: u64 = libc::FAN_MODIFY
    | libc::FAN_ATTRIB
    | libc::FAN_CLOSE_WRITE
    | libc::FAN_CREATE
    | libc::FAN_DELETE
    | libc::FAN_DELETE_SELF
    | libc::FAN_RENAME
    | libc::FAN_ONDIR;
const GATHER: Duration = Duration::from_millis(20);

/// The hidden subcommand that the benchmark starts.
#[derive(clap::Args)]
pub(crate) struct DiscardArgs {
    /// A directory of the filesystem.
    dir: PathBuf,
}

/// Reads and throws away until it is killed.
pub(crate) fn discard(arguments: &DiscardArgs) -> Result<()> {
    let path = CString::new(arguments.dir.as_os_str().as_bytes())?;
    // SAFETY: no pointers; the descriptor, if there is one, is new and ours.
    let group = unsafe {
        let fd = libc::fanotify_init(FLAGS, libc::O_RDONLY as u32);
        if fd < 0 {
            return Err(std::io::Error::last_os_error()).context("fanotify_init");
        }
        OwnedFd::from_raw_fd(fd)
    };
    let add = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
    // SAFETY: the path outlives the call.
    let marked =
        unsafe { libc::fanotify_mark(group.as_raw_fd(), add, WATCHED, libc::AT_FDCWD, path.as_ptr()) };
    if marked < 0 {
        return Err(std::io::Error::last_os_error()).context("fanotify_mark");
    }
    let mut buffer = vec![0; 256 * 1024];
    loop {
        match rustix::io::read(&group, &mut buffer) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => std::thread::sleep(GATHER),
            Err(errno) => return Err(errno.into()),
        }
    }
}
