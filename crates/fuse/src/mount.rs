//! Putting the filesystem over the tracked directory, and taking it away again.
//!
//! As root the mount is made detached and then moved into its place, so that nobody sees it before it works. Another user goes
//! through `fusermount3`, which passes the device over a socket.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use highwater_objects::owned;
use rustix::fs::{CWD, StatVfsMountFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::covered::Covered;
use crate::dead_mount;
use crate::mountinfo;
use crate::processes::Holder;
use crate::wire::device;

/// Why the directory could not be covered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The kernel has no FUSE, or this environment hides it.
    #[error("/dev/fuse cannot be opened: is the fuse module loaded, and may this user use it?")]
    NoDevice {
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Not root, and the helper that mounts for other users is not installed.
    #[error("fusermount3 was not found: install fuse3, or run as root")]
    NoFusermount,
    /// The helper refused.
    #[error("fusermount3 refused to mount over {directory}: {message}")]
    FusermountRefused {
        /// Where.
        directory: PathBuf,
        /// What it said.
        message: String,
    },
    /// The kernel refused.
    #[error("cannot mount over {directory}: {step} failed")]
    Refused {
        /// Where.
        directory: PathBuf,
        /// Which call failed.
        step: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The tracker could not start; the mount has been taken away.
    #[error("the tracker cannot start")]
    Start {
        /// Why.
        #[source]
        source: highwater_tracker::RequestError,
    },
}

/// Why the directory could not be uncovered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnmountError {
    /// Programs still use the mount.
    #[error("{directory} is busy: {}", list(.holders))]
    Busy {
        /// The mount.
        directory: PathBuf,
        /// Who uses it, as far as could be seen.
        holders: Vec<Holder>,
    },
    /// The kernel refused for another reason.
    #[error("cannot unmount {directory}")]
    Refused {
        /// The mount.
        directory: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

fn list(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return "it is in use, but not by a process that can be seen from here".into();
    }
    let one =
        |holder: &Holder| format!("{} (pid {}) uses {}", holder.command, holder.pid, holder.path.display());
    holders.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// A mount that lay inside the tracked directory, kept to be put back over the new one.
pub(crate) struct Nested {
    path: PathBuf,
    tree: Option<OwnedFd>,
}

/// A mount that has been made.
pub(crate) struct Made {
    pub(crate) device: OwnedFd,
    /// The detached mount; none if the helper has mounted it in its place already.
    detached: Option<OwnedFd>,
}

/// Connects a device to a new filesystem. As root nothing is visible yet.
pub(crate) fn make(covered: &Covered, instance: &str) -> Result<Made, MountError> {
    if rustix::process::geteuid().is_root() { as_root(covered, instance) } else { by_helper(covered) }
}

fn as_root(covered: &Covered, instance: &str) -> Result<Made, MountError> {
    let device = device::open().map_err(|errno| MountError::NoDevice { source: errno.into() })?;
    let directory = covered.directory();
    let failed = |step| {
        move |errno: Errno| MountError::Refused {
            directory: directory.to_owned(),
            step,
            source: errno.into(),
        }
    };
    let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC).map_err(failed("fsopen"))?;
    let set = |key: &'static str, value: &[u8]| {
        rustix::mount::fsconfig_set_string(context.as_fd(), key, value).map_err(failed("fsconfig"))
    };
    set("source", &source(covered, instance))?;
    set("subtype", b"highwater")?;
    set("fd", device.as_raw_fd().to_string().as_bytes())?;
    set("rootmode", b"40000")?;
    set("user_id", b"0")?;
    set("group_id", b"0")?;
    for flag in ["allow_other", "default_permissions"] {
        rustix::mount::fsconfig_set_flag(context.as_fd(), flag).map_err(failed("fsconfig"))?;
    }
    rustix::mount::fsconfig_create(context.as_fd()).map_err(failed("fsconfig"))?;
    let attributes = attributes(covered);
    let detached = rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(failed("fsmount"))?;
    Ok(Made { device, detached: Some(detached) })
}

/// What lists of mounts show as the device.
///
/// Not a path that exists: programs such as `mkfs` ask for the status of every source in the list, and that of a dead mount
/// would be an error for them.
fn source(covered: &Covered, instance: &str) -> Vec<u8> {
    let mark = if instance.is_empty() { "" } else { "#" };
    [b"highwater", mark.as_bytes(), instance.as_bytes(), b":", covered.directory().as_os_str().as_bytes()]
        .concat()
}

/// The instance in a source; empty if there is none.
pub(crate) fn instance_of(source: &[u8]) -> String {
    let rest = source.strip_prefix(b"highwater#").unwrap_or_default();
    let end = rest.iter().position(|byte| *byte == b':').unwrap_or(0);
    String::from_utf8_lossy(&rest[..end]).into_owned()
}

/// What the covered mount forbids stays forbidden.
fn attributes(covered: &Covered) -> MountAttrFlags {
    let mut attributes = MountAttrFlags::empty();
    let Ok(stat) = covered.statvfs() else { return attributes };
    for (flag, attribute) in [
        (StatVfsMountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (StatVfsMountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (StatVfsMountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (StatVfsMountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
    ] {
        if stat.f_flag.contains(flag) {
            attributes |= attribute;
        }
    }
    attributes
}

impl Made {
    /// Puts the mount over the directory. Requests are being served.
    ///
    /// Returns another, private mount of the same filesystem, which works until it is dropped and does not make the visible one
    /// busy.
    ///
    /// `replaces`: the mounts on the directory are dead ones of this crate. At no moment is the directory below to be seen: the new mount
    /// is put beneath them before they are taken away (Linux 6.5), or over them.
    pub(crate) fn attach(
        &mut self,
        covered: &Covered,
        replaces: bool,
    ) -> Result<Option<OwnedFd>, MountError> {
        let Some(detached) = self.detached.take() else { return Ok(None) };
        let directory = covered.directory();
        let failed = |step| {
            move |errno: Errno| MountError::Refused {
                directory: directory.to_owned(),
                step,
                source: errno.into(),
            }
        };
        let private = private_clone(detached.as_fd()).map_err(failed("open_tree"))?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        let attach = |flags| rustix::mount::move_mount(detached.as_fd(), "", CWD, directory, flags);
        let mut dead = if replaces { dead_mount::ours(directory).len() } else { 0 };
        // A tracker that was killed between the next two steps has left two of them. The new one goes beneath the uppermost only.
        while dead > 1 {
            take_away(directory, true).map_err(failed("umount of a dead mount"))?;
            dead -= 1;
        }
        if dead > 0 && attach(flags | MoveMountFlags::from_bits_retain(MOVE_MOUNT_BENEATH)).is_ok() {
            take_away(directory, true).map_err(failed("umount of the dead mount"))?;
        } else {
            attach(flags).map_err(failed("move_mount"))?;
        }
        Ok(Some(private))
    }
}

/// From `linux/mount.h`; rustix does not name it.
const MOVE_MOUNT_BENEATH: u32 = 0x200;

fn private_clone(mount: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(mount, "", flags)
}

/// The mounts that the new one will hide, in the order in which they have to be put back.
pub(crate) fn nested(directory: &Path) -> Vec<Nested> {
    let Ok(directory) = std::fs::canonicalize(directory) else { return Vec::new() };
    let mounts = mountinfo::read();
    let below = mounts.into_iter().filter_map(|mount| {
        let path = mount.point.strip_prefix(&directory).ok()?.to_owned();
        if path.as_os_str().is_empty() {
            return None;
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, &mount.point, flags).ok();
        Some(Nested { path, tree })
    });
    below.collect()
}

/// Puts nested mounts over the same places of the new mount. Returns those that are there again and those that stay hidden.
pub(crate) fn put_back(directory: &Path, nested: Vec<Nested>) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let (mut back, mut hidden) = (Vec::new(), Vec::new());
    for Nested { path, tree } in nested {
        let point = directory.join(&path);
        let moved = tree.is_some_and(|tree| {
            let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
            rustix::mount::move_mount(tree, "", CWD, &point, flags).is_ok()
        });
        if moved { back.push(point) } else { hidden.push(point) }
    }
    (back, hidden)
}

/// Takes the mount away. `EBUSY` if it is in use and `lazy` is not set.
pub(crate) fn take_away(directory: &Path, lazy: bool) -> Result<(), Errno> {
    if rustix::process::geteuid().is_root() {
        let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
        return rustix::mount::unmount(directory, flags | UnmountFlags::NOFOLLOW);
    }
    let mut command = Command::new("fusermount3");
    command.arg("-u").arg("-q");
    if lazy {
        command.arg("-z");
    }
    let status = command.arg("--").arg(directory).status().map_err(|_| Errno::IO)?;
    if status.success() { Ok(()) } else { Err(Errno::BUSY) }
}

fn by_helper(covered: &Covered) -> Result<Made, MountError> {
    let refused = |message: String| MountError::FusermountRefused {
        directory: covered.directory().to_owned(),
        message,
    };
    let (ours, theirs) = UnixStream::pair().map_err(|error| refused(error.to_string()))?;
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())
        .map_err(|errno| refused(errno.to_string()))?;
    let source = String::from_utf8_lossy(&source(covered, "")).replace([',', '\\'], "_");
    let child = Command::new("fusermount3")
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .arg("-o")
        .arg(format!("rw,nosuid,nodev,default_permissions,fsname={source},subtype=highwater"))
        .arg("--")
        .arg(covered.directory())
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(MountError::NoFusermount),
        Err(error) => return Err(refused(error.to_string())),
    };
    drop(theirs);
    let device = receive_descriptor(&ours);
    let output = child.wait_with_output().map_err(|error| refused(error.to_string()))?;
    match device {
        Ok(device) => Ok(Made { device, detached: None }),
        Err(_) => Err(refused(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}

/// Receives one descriptor with one byte of data.
fn receive_descriptor(socket: &UnixStream) -> Result<OwnedFd, Errno> {
    let mut byte = 0u8;
    let mut control = [0u64; 8];
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: msghdr is plain data for which zeros are valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: `message` points to buffers of the lengths given, which outlive the call.
    let n = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    if n <= 0 {
        return Err(Errno::IO);
    }
    // SAFETY: the kernel has filled `message`, whose control buffer is aligned and still there; CMSG_FIRSTHDR returns null or a
    // header inside of it, and a header of SCM_RIGHTS is followed by at least one descriptor, new and ours, which may be unaligned.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if header.is_null()
            || (*header).cmsg_level != libc::SOL_SOCKET
            || (*header).cmsg_type != libc::SCM_RIGHTS
        {
            return Err(Errno::IO);
        }
        owned(libc::CMSG_DATA(header).cast::<i32>().read_unaligned())
    }
}
