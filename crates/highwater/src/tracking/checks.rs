//! What has to hold before a directory is tracked.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use highwater_client::{Registration, RuntimeDirectory, canonical_directory, stacked_mounts};
use rustix::fs::{AtFlags, CWD, FileType, StatxFlags, statx};
use rustix::io::Errno;

use crate::exit::{Exit, Failure};
use crate::quote::quote_path;

/// A directory that can be tracked.
#[derive(Debug)]
pub(super) struct Directory {
    /// Its canonical path.
    pub(super) path: PathBuf,
    /// A tracker that was killed has left its mount there.
    pub(super) is_dead_mount: bool,
}

/// Looks at the directory itself.
pub(super) fn directory(given: &Path) -> Result<Directory, Failure> {
    let shown = quote_path(given);
    let path = canonical_directory(given).with_context(|| format!("cannot track {shown}"))?;
    // Past the kernel's cache, which still has the attributes of a tracker that has just been killed.
    let flags = AtFlags::STATX_FORCE_SYNC | AtFlags::NO_AUTOMOUNT;
    let is_dead_mount = match statx(CWD, &path, flags, StatxFlags::TYPE) {
        // The second: it has just died, with this call under way.
        Err(Errno::NOTCONN | Errno::CONNABORTED) => {
            let mounts = stacked_mounts().context("cannot read the mounts")?;
            if !mounts.iter().any(|mount| mount.directory == path) {
                let text = format!(
                    "cannot track {shown}: a dead mount of another program is there; umount it first"
                );
                return Err(Failure::text(Exit::Failed, text));
            }
            true
        }
        Err(errno) => {
            return Err(anyhow::Error::from(std::io::Error::from(errno))
                .context(format!("cannot track {shown}"))
                .into());
        }
        Ok(stat) if !FileType::from_raw_mode(stat.stx_mode.into()).is_dir() => {
            return Err(Failure::text(Exit::Failed, format!("cannot track {shown}: it is not a directory")));
        }
        Ok(_) => false,
    };
    Ok(Directory { path, is_dead_mount })
}

/// Refuses to track a directory in place that the mount of a killed tracker covers.
pub(super) fn no_dead_mount(directory: &Directory) -> Result<(), Failure> {
    if directory.is_dead_mount {
        let text = format!(
            "cannot track {} in place: a tracker with the source fuse was killed there; track it with --source fuse once more \
             and stop it, or umount it",
            quote_path(&directory.path)
        );
        return Err(Failure::text(Exit::Failed, text));
    }
    Ok(())
}

/// Refuses to mount over a directory without the device for it.
pub(super) fn fuse_device(path: &Path) -> Result<(), Failure> {
    let shown = quote_path(path);
    // fusermount3, which mounts for others than root, opens it with the rights of its caller as well.
    if let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse") {
        let what_to_do = match error.kind() {
            ErrorKind::NotFound => {
                "load the kernel's module with `modprobe fuse`, or pass the device into the container"
            }
            _ => "run as root, or let this user use the device (it usually has mode 0666)",
        };
        let text = format!("cannot track {shown}: cannot open /dev/fuse ({error}): {what_to_do}");
        return Err(Failure::text(Exit::Failed, text));
    }
    Ok(())
}

/// How long the process of a tracker that is dead may take to exit: it may be writing a core, or wait for a disk.
const EXIT_PATIENCE: Duration = Duration::from_secs(10);

/// Waits for a tracker that is ending: its mount is dead, or its first thread, but not all of its locks are free yet.
pub(super) fn end_of_the_last(runtime: &RuntimeDirectory, directory: &Directory) -> Result<(), Failure> {
    let last = Registration::read(runtime, &directory.path).map_err(anyhow::Error::from)?;
    if let Some(last) = last.filter(|last| directory.is_dead_mount || !last.is_alive()) {
        let ended =
            last.wait_for_end(EXIT_PATIENCE).context("cannot wait for the end of the last tracker")?;
        if !ended {
            tracing::warn!("the last tracker, pid {}, is dead but does not exit", last.pid);
        }
    }
    Ok(())
}

/// The message for a directory whose lock is taken.
pub(super) fn already_tracked(runtime: &RuntimeDirectory, path: &Path) -> Failure {
    let by = match Registration::read(runtime, path) {
        Ok(Some(registration)) if registration.is_alive() => {
            format!(" by pid {}, with the state {}", registration.pid, quote_path(&registration.state))
        }
        _ => " by a process that is just starting".to_owned(),
    };
    let path = quote_path(path);
    Failure::text(Exit::Failed, format!("{path} is already tracked{by}; `highwater stop {path}` ends that"))
}

/// How long a start waits for another one, inside its directory, that does not give way and does not mount.
const INNER_PATIENCE: Duration = Duration::from_secs(5);

/// What is registered by a live process, and what is mounted.
///
/// Of two that start at once, one inside the other, the inner one sees the outer one and gives way. The outer one waits until it has, or
/// has been mounted: if both gave way, neither would be tracked.
fn others(runtime: &RuntimeDirectory, path: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>), Failure> {
    let begin = Instant::now();
    loop {
        let registrations = Registration::list(runtime).map_err(anyhow::Error::from)?;
        let registered =
            registrations.into_iter().filter(Registration::is_alive).map(|other| other.directory);
        let registered: Vec<PathBuf> = registered.collect();
        let mounts = stacked_mounts().context("cannot read the mounts")?;
        let mounted: Vec<PathBuf> = mounts.into_iter().map(|mount| mount.directory).collect();
        let is_inside = |other: &&PathBuf| *other != path && other.starts_with(path);
        let all_decided = registered.iter().filter(is_inside).all(|other| mounted.contains(other));
        if all_decided || begin.elapsed() > INNER_PATIENCE {
            return Ok((registered, mounted));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// No tracked tree may be inside another one: each would see the other's operations as its own.
pub(super) fn nesting(runtime: &RuntimeDirectory, directory: &Directory) -> Result<(), Failure> {
    let path = &directory.path;
    let shown = quote_path(path);
    let (registered, mounted) = others(runtime, path)?;
    // The directory's own dead mount does not count, and its registration is our own.
    let others =
        registered.into_iter().chain(mounted).filter(|other| other != path || !directory.is_dead_mount);
    let me = std::process::id();
    for other in others {
        let other_shown = quote_path(&other);
        let ours = Registration::read(runtime, &other).ok().flatten().is_some_and(|found| found.pid == me);
        let text = if other == *path {
            if ours && !is_mounted(path)? {
                continue;
            }
            format!(
                "{shown} is already tracked: a live tracker has mounted it; stop it as the user that started it"
            )
        } else if path.starts_with(&other) {
            format!(
                "cannot track {shown}: it is inside {other_shown}, which is tracked already; use that, or stop it"
            )
        } else if other.starts_with(path) {
            format!(
                "cannot track {shown}: {other_shown} inside it is tracked already, or its tracker was killed; \
                 stop that first (`highwater stop {other_shown}`; after a kill `umount {other_shown}`)"
            )
        } else {
            continue;
        };
        return Err(Failure::text(Exit::Failed, text));
    }
    Ok(())
}

fn is_mounted(path: &Path) -> Result<bool, Failure> {
    let mounts = stacked_mounts().context("cannot read the mounts")?;
    Ok(mounts.iter().any(|mount| mount.directory == path))
}
