//! The mount that a killed tracker leaves behind: everything in it answers `ENOTCONN`.
//!
//! It covers the directory, so that nothing can be changed there meanwhile, but for one thing: a program that has a file of it
//! open in passthrough mode goes on writing into the lower file (see [`crate::foreign`]). Those are looked for before the mount
//! is taken away: after that, their paths lead nowhere.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::io::Errno;

use crate::foreign::{ForeignWriter, relative};
use crate::mount::take_away;
use crate::mountinfo;
use crate::processes;

/// A dead mount that has been taken away.
#[derive(Debug)]
#[non_exhaustive]
pub struct DeadMount {
    /// Where it was.
    pub directory: PathBuf,
    /// Who can still write through it; for [`Options::foreign`](crate::Options::foreign).
    pub writers: Vec<ForeignWriter>,
    /// False: processes appeared faster than they could be looked into, and something may be written unseen.
    pub complete: bool,
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
        let found = processes::writers(|device, _| device == mount.device);
        let writers = found.writers.into_iter().filter_map(|writer| relative(writer, &directory));
        let dead = dead.get_or_insert_with(|| DeadMount {
            directory: directory.clone(),
            writers: Vec::new(),
            complete: true,
        });
        dead.writers.extend(writers);
        dead.complete &= found.settled;
        take_away(&directory, true).map_err(|errno| DeadMountError::Refused {
            directory: directory.clone(),
            source: errno.into(),
        })?;
    }
    Ok(dead)
}

fn is_dead(directory: &Path) -> bool {
    let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(CWD, directory, flags, StatxFlags::BASIC_STATS)
        .is_err_and(|errno| errno == Errno::NOTCONN)
}

/// The path without symlinks; the last component is not looked at, since a dead mount's root cannot be.
fn absolute(directory: &Path) -> io::Result<PathBuf> {
    match std::fs::canonicalize(directory) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {}
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
