//! Files that can change without an event: mapped ones, and those open for writing, since not every way to write raises one.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use highwater_tracker::{FileHandle, Sample, WriterMode};
use rustix::fs::{AtFlags, CWD, StatxFlags};

use super::below::{Below, Whereabouts, handle_behind, sample};
use super::source::{COARSE_NS, realtime_ns};
use crate::kernel::has_distinct_timestamps;

/// A file that a process can write to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer {
    pub(crate) mode: WriterMode,
    /// Mapped writable and shared, or may be.
    pub(crate) mapped: bool,
    pub(crate) sample: Sample,
}

/// How often the list of processes is read again because it grew meanwhile.
const ROUNDS_MAX: usize = 64;
const BTRFS: i64 = 0x9123_683e;

type Device = (u32, u32);

/// Looks for files of the tracked directory that some process has open for writing or mapped.
pub(crate) struct Search<'a> {
    below: &'a Below,
    is_ours: HashMap<Device, bool>,
    found: HashMap<FileHandle, Option<Writer>>,
}

impl<'a> Search<'a> {
    pub(crate) fn new(below: &'a Below) -> Self {
        Self { below, is_ours: HashMap::new(), found: HashMap::new() }
    }

    /// Visits all processes. A process may hand what it has to a child and end while we look, so the list is read again until
    /// it has none that was not looked into.
    pub(crate) fn run(mut self) -> std::io::Result<HashMap<FileHandle, Writer>> {
        let mut seen = HashSet::new();
        for _ in 0..ROUNDS_MAX {
            let entries = std::fs::read_dir("/proc")?;
            let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
            let new: Vec<u32> = pids.filter(|pid| seen.insert(*pid)).collect();
            if new.is_empty() {
                let found = self.found.into_iter();
                return Ok(found.filter_map(|(object, writer)| Some((object, writer?))).collect());
            }
            new.into_iter().for_each(|pid| self.look_into(pid));
        }
        Err(std::io::Error::other("processes appear faster than they can be looked into"))
    }

    fn look_into(&mut self, pid: u32) {
        let process = Path::new("/proc").join(pid.to_string());
        for entry in std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten() {
            let link = entry.path();
            if !self.is_regular_file_of_ours(&link) {
                continue;
            }
            let info = std::fs::read_to_string(process.join("fdinfo").join(entry.file_name()));
            let Some(flags) = info.ok().and_then(|info| flags(&info)) else { continue };
            if flags & libc::O_ACCMODE != libc::O_RDONLY && flags & libc::O_PATH == 0 {
                let can_map = flags & libc::O_ACCMODE == libc::O_RDWR;
                let direct = flags & libc::O_DIRECT != 0;
                self.add(&link, WriterMode { can_map, direct, unseen: true }, false);
            }
        }
        let Ok(maps) = std::fs::read(process.join("maps")) else { return };
        for line in maps.split(|byte| *byte == b'\n') {
            let mut fields = line.split(|byte| *byte == b' ').filter(|field| !field.is_empty());
            let (Some(range), Some(permissions)) = (fields.next(), fields.next()) else { continue };
            if !permissions.ends_with(b"s") {
                continue;
            }
            let link = process.join("map_files").join(std::ffi::OsStr::from_bytes(range));
            // The link's permissions are those of the open file that was mapped.
            let can_write = std::fs::symlink_metadata(&link)
                .is_ok_and(|link| std::os::unix::fs::MetadataExt::mode(&link) & 0o200 != 0);
            if can_write && self.is_regular_file_of_ours(&link) {
                self.add(&link, WriterMode { can_map: true, direct: false, unseen: true }, true);
            }
        }
    }

    fn is_regular_file_of_ours(&mut self, link: &Path) -> bool {
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        let Ok(stat) = rustix::fs::statx(CWD, link, flags, StatxFlags::TYPE) else { return false };
        if u32::from(stat.stx_mode) & libc::S_IFMT != libc::S_IFREG {
            return false;
        }
        let device = (stat.stx_dev_major, stat.stx_dev_minor);
        let below = self.below;
        *self.is_ours.entry(device).or_insert_with(|| is_ours(below, device, link))
    }

    fn add(&mut self, link: &Path, mode: WriterMode, mapped: bool) {
        let Ok(link) = CString::new(link.as_os_str().as_bytes()) else { return };
        let Ok(object) = handle_behind(&link) else { return };
        let below = self.below;
        let writer = self.found.entry(object.clone()).or_insert_with(|| {
            // One that cannot be found may be inside: it has another name than the one that it was opened by.
            if let Ok(Whereabouts::Gone | Whereabouts::Outside) = below.locate_file(&object) {
                return None;
            }
            // Before the sample: what changes after it must not look old.
            let now_ns = realtime_ns();
            let sample = sample(&below.stat(&object).ok().flatten()?);
            // Where timestamps are coarse, a change right after this sample may get the same one: carried over like a mapped file.
            let is_coarse = !has_distinct_timestamps(below.magic());
            let mapped = is_coarse && sample.ctime_ns >= now_ns - COARSE_NS;
            Some(Writer { mode: WriterMode { can_map: is_coarse, ..WriterMode::default() }, mapped, sample })
        });
        if let Some(writer) = writer {
            writer.mode.can_map |= mode.can_map;
            writer.mode.direct |= mode.direct;
            writer.mode.unseen |= mode.unseen;
            writer.mapped |= mapped;
        }
    }
}

/// Whether a device number is one of the tracked filesystem. Each btrfs subvolume has its own; what they share is one half of
/// the filesystem's id.
fn is_ours(below: &Below, device: Device, link: &Path) -> bool {
    if below.device() == device {
        return true;
    }
    below.magic() == BTRFS
        && rustix::fs::statfs(link)
            .is_ok_and(|stat| stat.f_type == BTRFS && super::below::fsid(&stat)[0] == below.fsid()[0])
}

fn flags(info: &str) -> Option<i32> {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    i32::from_str_radix(flags.trim(), 8).ok()
}
