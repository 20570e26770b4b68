//! Processes that were in the directory before it was covered.
//!
//! A working directory or an open directory stays on what is below the mount: what such a process changes there is not seen. It
//! cannot be prevented from here, so it is said.

use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

const NAMED_MAX: usize = 8;

/// Warns of each process that still works below the mount.
pub(super) fn warn(directory: &Path) {
    let Some(mount) = device_of(directory) else { return };
    let found = find(directory, mount);
    if found.is_empty() {
        return;
    }
    let mut names: Vec<String> =
        found.iter().take(NAMED_MAX).map(|(pid, name)| format!("{name} (pid {pid})")).collect();
    if found.len() > NAMED_MAX {
        names.push(format!("{} more", found.len() - NAMED_MAX));
    }
    tracing::warn!(
        "in {} since before it was tracked: {}. What they change by way of a directory that they had \
         open then is not seen; let them go there anew (`cd .` is not enough, `cd {}` is)",
        directory.display(),
        names.join(", "),
        directory.display()
    );
}

fn find(directory: &Path, mount_device: Device) -> Vec<(u32, String)> {
    let me = std::process::id();
    let pids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids =
        pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()).filter(|pid| *pid != me);
    pids.filter(|pid| is_below(*pid, directory, mount_device))
        .map(|pid| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            (pid, name.trim_end().to_owned())
        })
        .collect()
}

fn is_below(pid: u32, directory: &Path, mount_device: Device) -> bool {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let descriptors = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    let descriptors =
        descriptors.filter(|entry| is_directory(&process.join("fdinfo").join(entry.file_name())));
    let links =
        [process.join("cwd"), process.join("root")].into_iter().chain(descriptors.map(|entry| entry.path()));
    links.into_iter().any(|link| {
        let below = std::fs::read_link(&link).is_ok_and(|target| target.starts_with(directory));
        below && device_of(&link).is_some_and(|device| device != mount_device)
    })
}

/// Major and minor number.
type Device = (u32, u32);

/// The device that a path leads to, as the kernel knows it without asking: a tracker that waits for its own mount when it is killed would
/// keep it hanging.
fn device_of(path: &Path) -> Option<Device> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
    let stat = statx(CWD, path, flags, StatxFlags::TYPE).ok()?;
    Some((stat.stx_dev_major, stat.stx_dev_minor))
}

/// Whether a descriptor is one of a directory: `flags:` are octal. Files that are open for writing are the source's business,
/// which takes them over.
fn is_directory(fdinfo: &Path) -> bool {
    const O_DIRECTORY: u32 = 0o200_000;
    let Ok(text) = std::fs::read_to_string(fdinfo) else { return false };
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    flags
        .and_then(|octal| u32::from_str_radix(octal.trim(), 8).ok())
        .is_some_and(|flags| flags & O_DIRECTORY != 0)
}
