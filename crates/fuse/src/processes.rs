//! What other processes have open and mapped, as `/proc` tells.
//!
//! Invariant: what cannot be found out is taken for the worse.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fmt;
use std::io::ErrorKind;
use std::num::ParseIntError;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::mountinfo;

/// A device number; as text `major:minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Device {
    /// The upper part.
    pub major: u32,
    /// The lower part.
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for Device {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let (major, minor) = text.split_once(':').unwrap_or((text, ""));
        Ok(Self { major: major.parse()?, minor: minor.parse()? })
    }
}

/// The inode numbers of one device that are mapped shared.
pub(crate) enum Mapping {
    Known(HashSet<u64>),
    /// A process that may have such a mapping could not be looked into.
    Unknown,
}

/// A process that uses a mount.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// The name of its command.
    pub command: String,
    /// What it uses: a path, as the process has it.
    pub path: PathBuf,
}

/// How often the list of processes is read again because it grew meanwhile.
const ROUNDS_MAX: usize = 64;

fn pids() -> std::io::Result<Vec<u32>> {
    let names = std::fs::read_dir("/proc")?.map(|entry| Ok(entry?.file_name()));
    let names = names.collect::<std::io::Result<Vec<_>>>()?;
    Ok(names.iter().filter_map(|name| name.to_str()?.parse().ok()).collect())
}

/// Looks for shared mappings of a device in all processes.
///
/// A process may hand its mappings to a child and end while we look; the child's number is new, so the list is read again
/// until it has no process that was not looked into.
///
/// A process that may not be looked into (it has capabilities that we lack) counts only if `opened` says that it has opened a
/// file of the device: another one would have had to be given the descriptor, then to map it and close it again.
pub(crate) fn shared_mappings(device: Device, opened: impl Fn(u32) -> bool) -> Mapping {
    let mut inodes = HashSet::new();
    let mut closed_to_us = false;
    let settled = each_process(HashSet::new(), |pid| match std::fs::read(format!("/proc/{pid}/maps")) {
        Ok(maps) => {
            let lines = maps.split(|byte| *byte == b'\n');
            inodes.extend(lines.filter_map(|line| shared_inode(&String::from_utf8_lossy(line), device)));
        }
        Err(error) => closed_to_us |= !gone(&error) && opened(pid),
    });
    if settled && !closed_to_us { Mapping::Known(inodes) } else { Mapping::Unknown }
}

/// Visits every process, and those that appear meanwhile. False: they appeared faster than we looked, or cannot be listed.
fn each_process(mut seen: HashSet<u32>, mut visit: impl FnMut(u32)) -> bool {
    for _ in 0..ROUNDS_MAX {
        let Ok(pids) = pids() else { return false };
        let new: Vec<u32> = pids.into_iter().filter(|pid| !seen.contains(pid)).collect();
        if new.is_empty() {
            return true;
        }
        for pid in new {
            seen.insert(pid);
            visit(pid);
        }
    }
    false
}

fn gone(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

/// The inode number of a line of `/proc/*/maps`, if it is a shared mapping of the device.
fn shared_inode(line: &str, device: Device) -> Option<u64> {
    let (_, permissions, _, dev, inode, _) = fields(line)?;
    (permissions.ends_with('s') && dev == device).then_some(inode)
}

/// `start-end perms offset dev inode path`.
fn fields(line: &str) -> Option<(&str, &str, &str, Device, u64, &str)> {
    let mut rest = line;
    let mut next = || {
        rest = rest.trim_start_matches(' ');
        let (field, after) = rest.split_once(' ').unwrap_or((rest, ""));
        rest = after;
        field
    };
    let (range, permissions, offset) = (next(), next(), next());
    let (major, minor) = next().split_once(':')?;
    let device =
        Device { major: u32::from_str_radix(major, 16).ok()?, minor: u32::from_str_radix(minor, 16).ok()? };
    let inode = next().parse().ok()?;
    Some((range, permissions, offset, device, inode, rest.trim_start()))
}

/// The processes that use a mount, one entry for each: by a descriptor (by the mount's number), their working or root directory,
/// or a mapping.
pub(crate) fn holders(mount_id: u64, device: Device) -> Vec<Holder> {
    let me = std::process::id();
    pids()
        .unwrap_or_default()
        .into_iter()
        .filter(|pid| *pid != me)
        .filter_map(|pid| holder(pid, mount_id, device))
        .collect()
}

fn holder(pid: u32, mount_id: u64, device: Device) -> Option<Holder> {
    let base = PathBuf::from(format!("/proc/{pid}"));
    let holds = |path: PathBuf| Some(Holder { pid, command: command_of(pid), path });
    for link in ["cwd", "root", "exe"] {
        let link = base.join(link);
        if on_device(&link, device) {
            return holds(std::fs::read_link(&link).unwrap_or_default());
        }
    }
    for entry in std::fs::read_dir(base.join("fd")).into_iter().flatten().flatten() {
        if mount_of(pid, &entry.file_name()) == Some(mount_id) {
            return holds(std::fs::read_link(entry.path()).unwrap_or_default());
        }
    }
    let maps = std::fs::read(base.join("maps")).ok()?;
    let maps = String::from_utf8_lossy(&maps);
    let path = maps.lines().filter_map(fields).find(|line| line.3 == device)?.5;
    holds(PathBuf::from(path))
}

fn on_device(path: &Path, device: Device) -> bool {
    cached_stat(path)
        .is_ok_and(|stat| (stat.stx_dev_major, stat.stx_dev_minor) == (device.major, device.minor))
}

/// The number of the mount that a descriptor of a process is on.
pub(crate) fn mount_of(pid: u32, fd: &OsStr) -> Option<u64> {
    let path = PathBuf::from(format!("/proc/{pid}/fdinfo")).join(fd);
    let info = std::fs::read_to_string(path).ok()?;
    info.lines().find_map(|line| line.strip_prefix("mnt_id:")).and_then(|id| id.trim().parse().ok())
}

/// A regular file that a process can write to: a descriptor that is open for writing, or a shared mapping. The path is
/// empty if it is too long to be told.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Writer {
    pub(crate) holder: Holder,
    pub(crate) device: Device,
    pub(crate) inode: u64,
}

/// What a walk through the processes found.
pub(crate) struct Writers {
    pub(crate) writers: Vec<Writer>,
    /// Processes that could not be looked into, each without a path.
    pub(crate) closed_to_us: Vec<Holder>,
    /// No process appeared while we looked that was not looked into.
    pub(crate) settled: bool,
}

/// Looks for what all other processes can write to, as far as it is `wanted`; that is given the link in /proc as well.
///
/// Attributes are taken as the kernel has them cached, so that a dead or hanging mount is not asked.
pub(crate) fn writers(mut wanted: impl FnMut(&Writer, &Path) -> bool) -> Writers {
    let (mut writers, mut closed_to_us) = (Vec::new(), Vec::new());
    let settled = each_process(HashSet::from([std::process::id()]), |pid| {
        if let Err(error) = writers_of(pid, &mut wanted, &mut writers)
            && !gone(&error)
        {
            closed_to_us.push(Holder { pid, command: command_of(pid), path: PathBuf::new() });
        }
    });
    Writers { writers, closed_to_us, settled }
}

/// The processes in whose lists of mounts a filesystem is, each with where.
pub(crate) fn with_mount(device: Device) -> Vec<Holder> {
    let mut found = Vec::new();
    each_process(HashSet::new(), |pid| {
        let mounts = mountinfo::read_of(pid);
        if let Some(mount) = mounts.into_iter().find(|mount| mount.device == device) {
            found.push(Holder { pid, command: command_of(pid), path: mount.point });
        }
    });
    found
}

fn command_of(pid: u32) -> String {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim_end().to_owned()
}

fn writers_of(
    pid: u32,
    wanted: &mut impl FnMut(&Writer, &Path) -> bool,
    found: &mut Vec<Writer>,
) -> std::io::Result<()> {
    let base = PathBuf::from(format!("/proc/{pid}"));
    let command = command_of(pid);
    let mut see = |path: PathBuf, device, inode, link: &Path| {
        let holder = Holder { pid, command: command.clone(), path };
        let writer = Writer { holder, device, inode };
        if wanted(&writer, link) {
            found.push(writer);
        }
    };
    for entry in std::fs::read_dir(base.join("fd"))? {
        let Ok(entry) = entry else { break };
        let Ok(stat) = cached_stat(&entry.path()) else { continue };
        let device = Device { major: stat.stx_dev_major, minor: stat.stx_dev_minor };
        let regular = u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFREG;
        if !regular || !may_write(pid, &entry.file_name()) {
            continue;
        }
        let path = match std::fs::read_link(entry.path()) {
            Err(error) if gone(&error) => continue,
            path => path.unwrap_or_default(),
        };
        see(path, device, stat.stx_ino, &entry.path());
    }
    let maps = std::fs::read(base.join("maps"))?;
    for line in maps.split(|byte| *byte == b'\n') {
        let line = String::from_utf8_lossy(line);
        let Some((range, permissions, _, device, inode, shown)) = fields(&line) else { continue };
        if !permissions.ends_with('s') || inode == 0 {
            continue;
        }
        // The line writes a newline as `\012`; the link has the bytes. It is root's to read.
        let link = base.join("map_files").join(range);
        let path = std::fs::read_link(&link).unwrap_or_else(|_| PathBuf::from(shown));
        see(path, device, inode, &link);
    }
    Ok(())
}

/// Whether a file that a process holds, given by its link in /proc, is on a FUSE filesystem whose server is gone. A detached mount of
/// a tracker before the last one is found by this only: it is in no list of mounts.
pub(crate) fn is_on_dead_server(link: &Path) -> bool {
    rustix::fs::statfs(link).is_err_and(|errno| errno == rustix::io::Errno::NOTCONN)
}

fn may_write(pid: u32, fd: &OsStr) -> bool {
    let path = PathBuf::from(format!("/proc/{pid}/fdinfo")).join(fd);
    let info = std::fs::read_to_string(path).unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    // Not to be read: the process has closed it, or it is not ours to see; the latter is noticed elsewhere.
    flags.is_some_and(|flags| flags & libc::O_ACCMODE != libc::O_RDONLY && flags & libc::O_PATH == 0)
}

fn cached_stat(path: &Path) -> Result<rustix::fs::Statx, rustix::io::Errno> {
    let flags = rustix::fs::AtFlags::STATX_DONT_SYNC | rustix::fs::AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(rustix::fs::CWD, path, flags, rustix::fs::StatxFlags::BASIC_STATS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_mapping_is_told_from_a_private_one() {
        let device = Device { major: 0, minor: 0x3a };
        let shared = "7f0-7f1 rw-s 00000000 00:3a 1234                       /mnt/a b (deleted)";
        let private = "7f0-7f1 rw-p 00000000 00:3a 1234                       /mnt/a";
        assert_eq!(shared_inode(shared, device), Some(1234));
        assert_eq!(shared_inode(private, device), None);
        assert_eq!(shared_inode(shared, Device { major: 8, minor: 1 }), None);
        assert_eq!(fields(shared).unwrap().5, "/mnt/a b (deleted)");
        assert_eq!(shared_inode("7f0-7f1 rw-s 00000000 00:3a 7", device), Some(7));
    }
}
