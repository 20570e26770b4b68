//! The mount that a killed tracker leaves behind: everything in it answers `ENOTCONN`, and what was under way `ECONNABORTED`.
//!
//! It covers the directory, so that nothing can be changed there meanwhile, but for one thing: a program that has a file of it
//! open in passthrough mode goes on writing into the lower file (see [`crate::foreign`]). Those are looked for before the mount
//! is taken away: after that, their paths lead nowhere.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use highwater_objects::last_errno;
use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, UnmountFlags};

use crate::foreign::{ForeignWriter, relative};
use crate::mount::take_away;
use crate::mountinfo;
use crate::processes::{self, Device};

/// A dead mount.
#[derive(Debug)]
#[non_exhaustive]
pub struct DeadMount {
    /// Where it was.
    pub directory: PathBuf,
    /// Who can still write through it; for [`Options::foreign`](crate::Options::foreign).
    pub writers: Vec<ForeignWriter>,
    /// False: processes appeared faster than they could be looked into, and something may be written unseen.
    pub complete: bool,
    /// It is still there, and is to be replaced by the new one: [`Options::replaces`](crate::Options::replaces).
    pub in_place: bool,
    /// The devices of the mounts, several if they lay on top of each other; for
    /// [`Options::dead_devices`](crate::Options::dead_devices) of this start and of later ones.
    pub devices: Vec<Device>,
    /// The [`Options::instance`](crate::Options::instance) of each tracker that has left one, empty if it had none.
    pub instances: Vec<String>,
}

/// Why a dead mount could not be taken away.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeadMountError {
    /// The directory cannot be found.
    #[error("cannot find {directory}")]
    NotFound {
        /// Which.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to unmount it.
    #[error("cannot unmount the dead mount on {directory}")]
    Refused {
        /// Which.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Finds the mount of a tracker that was killed, if the directory itself is covered by one, and who can write through it.
///
/// As root it stays where it is, so that nobody reaches the directory below before the new mount is there:
/// [`Covered::open`](crate::Covered::open) opens what is below it, and [`Stacked::mount`](crate::Stacked::mount) replaces it. Other users
/// cannot do that; it is taken away, and `complete` is false.
pub fn find_dead_mount(directory: &Path) -> Result<Option<DeadMount>, DeadMountError> {
    if !rustix::process::geteuid().is_root() {
        let taken_away = clean_dead_mount(directory)?;
        return Ok(taken_away.map(|dead| DeadMount { complete: false, ..dead }));
    }
    let directory = absolute(directory)
        .map_err(|source| DeadMountError::NotFound { directory: directory.to_owned(), source })?;
    let ours = ours(&directory);
    let devices: Vec<_> = ours.iter().map(|mount| mount.device).collect();
    if devices.is_empty() || !is_dead(&directory) {
        return Ok(None);
    }
    let instances = ours.iter().map(|mount| crate::mount::instance_of(&mount.source)).collect();
    let found = processes::writers(|writer, _| devices.contains(&writer.device));
    let writers = found.writers.into_iter().filter_map(|writer| relative(writer, &directory)).collect();
    Ok(Some(DeadMount { directory, writers, complete: found.settled, in_place: true, devices, instances }))
}

/// The mounts of this crate that lie on top of each other on the directory, if the uppermost mount is one.
pub(crate) fn ours(directory: &Path) -> Vec<mountinfo::Mount> {
    let mounts = mountinfo::read().into_iter().filter(|mount| mount.point == directory).collect::<Vec<_>>();
    mounts.into_iter().rev().take_while(|mount| mount.filesystem == "fuse.highwater").collect()
}

/// Opens a copy of the mount below the dead ones: they are taken away in a mount namespace of a thread, where nobody else sees it.
pub(crate) fn tree_below(directory: &Path) -> Result<OwnedFd, Errno> {
    let open = || {
        // SAFETY: takes no pointers; what this thread does not share any more with the others ends with it.
        if unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) } < 0 {
            return Err(last_errno());
        }
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        while is_dead(directory) {
            rustix::mount::unmount(directory, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?;
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        rustix::mount::open_tree(CWD, directory, flags)
    };
    std::thread::scope(|scope| scope.spawn(open).join()).unwrap_or(Err(Errno::IO))
}

/// Takes away the mount of a tracker that was killed, if the directory itself is covered by one.
///
/// `None`: it is not, or the tracker is alive. Repeated as often as dead mounts lie on top of each other.
pub fn clean_dead_mount(directory: &Path) -> Result<Option<DeadMount>, DeadMountError> {
    let directory = absolute(directory)
        .map_err(|source| DeadMountError::NotFound { directory: directory.to_owned(), source })?;
    let mut dead: Option<DeadMount> = None;
    while let Some(mount) = mountinfo::read().into_iter().rfind(|mount| mount.point == directory) {
        if mount.filesystem != "fuse.highwater" || !is_dead(&directory) {
            break;
        }
        // By device, not by mount: descriptors may have been opened through a bind mount or in another namespace.
        let found = processes::writers(|writer, _| writer.device == mount.device);
        let writers = found.writers.into_iter().filter_map(|writer| relative(writer, &directory));
        let dead = dead.get_or_insert_with(|| DeadMount {
            directory: directory.clone(),
            writers: Vec::new(),
            complete: true,
            in_place: false,
            devices: Vec::new(),
            instances: Vec::new(),
        });
        dead.writers.extend(writers);
        dead.complete &= found.settled;
        dead.devices.push(mount.device);
        take_away(&directory, true).map_err(|errno| DeadMountError::Refused {
            directory: directory.clone(),
            source: errno.into(),
        })?;
    }
    Ok(dead)
}

/// Whether the directory is the root of a mount whose server is gone.
pub(crate) fn is_dead(directory: &Path) -> bool {
    let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(CWD, directory, flags, StatxFlags::BASIC_STATS)
        .is_err_and(|errno| matches!(errno, Errno::NOTCONN | Errno::CONNABORTED))
}

/// The path without symlinks; the last component is not looked at, since a dead mount's root cannot be.
fn absolute(directory: &Path) -> io::Result<PathBuf> {
    match std::fs::canonicalize(directory) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED)) => {}
        other => return other,
    }
    match (directory.parent(), directory.file_name()) {
        (Some(parent), Some(name)) if !parent.as_os_str().is_empty() => {
            Ok(std::fs::canonicalize(parent)?.join(name))
        }
        (_, Some(name)) => Ok(std::env::current_dir()?.join(name)),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}
