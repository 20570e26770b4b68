//! Files that can change without an event: mapped ones, and those open for writing, since not every way to write raises one.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use highwater_objects::{attributes_of, handle_of, has_distinct_timestamps, magic, sample};
use highwater_tracker::{FileHandle, Sample, WriterMode};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};

use super::below::{Below, Whereabouts};
use super::digest::Digest;
use super::holders::{Holders, Holding, How, Key};
use super::source::{COARSE_NS, realtime_ns};
use super::{HashMap, HashSet};

/// A file that a process can write to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Writer {
    /// What the tracker is told. Where timestamps are coarse it is to ask of each whether it is mapped.
    pub(crate) mode: WriterMode,
    /// Mapped writable and shared, or may be.
    pub(crate) mapped: bool,
    /// Open for reading as well, so that it can be mapped.
    pub(crate) can_map: bool,
    pub(crate) sample: Sample,
}

/// How often the list of processes is read again because it grew meanwhile.
const ROUNDS_MAX: usize = 64;

type Device = (u32, u32);

/// What a search has found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) writers: HashMap<FileHandle, Writer>,
    /// There may be open files that it could not find.
    pub(crate) hides: bool,
}

/// How files are searched for, and what is remembered for that from one search to the next.
#[derive(Debug, Default)]
pub(crate) struct Lookout {
    /// `None`: by `/proc`.
    pub(crate) holders: Option<Holders>,
    /// Files that were found, and whether they are in the directory. Not on btrfs: two subvolumes may have an inode with the same number.
    known: HashMap<Key, Side>,
}

#[derive(Clone, Debug)]
enum Side {
    Inside(FileHandle),
    Outside(FileHandle),
}

impl Lookout {
    /// For the filesystem of a descriptor, which must stay open.
    pub(crate) fn new(file: BorrowedFd<'_>) -> Self {
        let holders = match Holders::of(file) {
            Ok(holders) => Some(holders),
            Err(error) => {
                tracing::info!(
                    "open files are searched for by /proc, since BPF iterators do not work: {error}"
                );
                None
            }
        };
        Self { holders, known: HashMap::default() }
    }

    /// For `status`.
    pub(crate) fn name(&self) -> &'static str {
        if self.holders.is_some() { "bpf" } else { "/proc" }
    }

    /// Forgets what was outside and may have been moved in by what a digest tells.
    pub(crate) fn moved(&mut self, digest: &Digest) {
        if digest.overflow || digest.directories.values().any(Option::is_some) {
            self.known.retain(|_, side| matches!(side, Side::Inside(_)));
        } else if self.known.values().any(|side| matches!(side, Side::Outside(_))) {
            let arrivals = digest.entries.values().flat_map(|entry| &entry.arrivals);
            let arrived: HashSet<&FileHandle> = arrivals.map(|(object, _)| object).collect();
            self.known.retain(|_, side| !matches!(side, Side::Outside(object) if arrived.contains(object)));
        }
    }

    /// Searches. `before`: what the last search has found.
    pub(crate) fn search(
        &mut self,
        below: &Below,
        before: &HashMap<FileHandle, Writer>,
    ) -> std::io::Result<Found> {
        let mut search = Search { below, is_ours: HashMap::default(), found: HashMap::default(), before };
        let hides = match &mut self.holders {
            Some(holders) => {
                let look = holders.look(|pid| search.look_into(pid))?;
                look.hides | search.take(&look.holdings, &mut self.known)
            }
            None => {
                search.visit_all()?;
                false
            }
        };
        search.look_at_loop_devices();
        let found = search.found.into_iter();
        let writers = found.filter_map(|(object, writer)| Some((object, writer?))).collect();
        Ok(Found { writers, hides })
    }
}

/// Looks for files of the tracked directory that some process has open for writing or mapped.
struct Search<'a> {
    below: &'a Below,
    is_ours: HashMap<Device, bool>,
    found: HashMap<FileHandle, Option<Writer>>,
    before: &'a HashMap<FileHandle, Writer>,
}

impl Search<'_> {
    /// Takes what the kernel's lists say. True: some of it could not be reached any more.
    fn take(&mut self, holdings: &[Holding], known: &mut HashMap<Key, Side>) -> bool {
        let mut handles: HashMap<Key, Option<FileHandle>> = HashMap::default();
        for holding in holdings {
            let handle = match known.get(&holding.key) {
                Some(Side::Inside(object)) => Some(object.clone()),
                Some(Side::Outside(_)) => continue,
                None => match handles.get(&holding.key) {
                    Some(Some(object)) => Some(object.clone()),
                    // Whoever else has it may have it still.
                    None | Some(None) => {
                        self.object_behind(holding.link().as_ref(), Some(holding.key.number))
                    }
                },
            };
            handles.insert(holding.key, handle.clone());
            let Some(object) = handle else { continue };
            let mode = match holding.how {
                How::Open { reads, direct, .. } => WriterMode { can_map: reads, direct, unseen: true },
                How::Mapped { .. } => WriterMode { can_map: true, direct: false, unseen: true },
            };
            self.add_object(&object, mode, matches!(holding.how, How::Mapped { .. }));
        }
        // A subvolume and its snapshot have inodes of the same number and generation.
        let may_remember = self.below.magic() != magic::BTRFS;
        let held: HashSet<Key> = holdings.iter().map(|holding| holding.key).collect();
        known.retain(|key, side| matches!(side, Side::Outside(_)) && held.contains(key));
        for (key, object) in handles.iter().filter_map(|(key, object)| Some((key, object.as_ref()?))) {
            let is_inside = self.found.get(object).is_some_and(Option::is_some);
            let side = if is_inside { Side::Inside(object.clone()) } else { Side::Outside(object.clone()) };
            if may_remember {
                known.insert(*key, side);
            }
        }
        handles.values().any(Option::is_none)
    }

    /// The handle of a file by way of who holds it. `number`: of its inode, as another one may be there by now.
    fn object_behind(&mut self, link: &Path, number: Option<u64>) -> Option<FileHandle> {
        let fd = rustix::fs::open(link, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
        if number.is_some() && attributes_of(fd.as_fd()).ok().map(|stat| stat.stx_ino) != number {
            return None;
        }
        let object = handle_of(fd.as_fd(), c"").ok()?;
        self.look_by_holder(&fd, &object);
        Some(object)
    }

    /// Notes a file that is outside by the name that its holder has opened it by.
    fn look_by_holder(&mut self, fd: &OwnedFd, object: &FileHandle) {
        let is_new = !self.found.contains_key(object) && !self.before.contains_key(object);
        if is_new && self.below.is_held_outside(fd, object).unwrap_or(false) {
            self.found.insert(object.clone(), None);
        }
    }

    /// A loop device writes to the file behind it without an event, and no process has it open. Like direct I/O, nobody waits for it.
    ///
    /// The kernel tells the file by the path of whoever attached it. One that is not there by that path is told when it is detached.
    fn look_at_loop_devices(&mut self) {
        for device in std::fs::read_dir("/sys/block").into_iter().flatten().flatten() {
            if !device.file_name().as_bytes().starts_with(b"loop") {
                continue;
            }
            let Ok(mut path) = std::fs::read(device.path().join("loop/backing_file")) else { continue };
            path.truncate(path.trim_ascii_end().len());
            let path = Path::new(std::ffi::OsStr::from_bytes(&path));
            if self.is_regular_file_of_ours(path) {
                self.add(path, WriterMode { can_map: false, direct: true, unseen: true }, false);
            }
        }
    }

    /// Visits all processes. A process may hand what it has to a child and end while we look, so the list is read again until
    /// it has none that was not looked into.
    fn visit_all(&mut self) -> std::io::Result<()> {
        let mut seen = HashSet::default();
        for _ in 0..ROUNDS_MAX {
            let entries = std::fs::read_dir("/proc")?;
            let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
            let new: Vec<u32> = pids.filter(|pid| seen.insert(*pid)).collect();
            if new.is_empty() {
                return Ok(());
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
        let is_ours = || below.has_device(device, || rustix::fs::statfs(link));
        *self.is_ours.entry(device).or_insert_with(is_ours)
    }

    fn add(&mut self, link: &Path, mode: WriterMode, mapped: bool) {
        if let Some(object) = self.object_behind(link, None) {
            self.add_object(&object, mode, mapped);
        }
    }

    fn add_object(&mut self, object: &FileHandle, mode: WriterMode, mapped: bool) {
        let (below, before) = (self.below, self.before);
        let writer = self.found.entry(object.clone()).or_insert_with(|| {
            // One that cannot be found may be inside: it has another name than the one that it was opened by. One that was inside counts
            // as inside as long as it is held; if it is not any more, nothing is told of it.
            if !before.contains_key(object)
                && matches!(below.locate_file(object), Ok(Whereabouts::Gone | Whereabouts::Outside))
            {
                return None;
            }
            // Before the sample: what changes after it must not look old.
            let now_ns = realtime_ns();
            let sample = sample(&below.stat(object).ok().flatten()?);
            // Where timestamps are coarse, a change right after this sample may get the same one: carried over like a mapped file.
            let is_coarse = !has_distinct_timestamps(below.magic());
            let mapped = is_coarse && sample.ctime_ns >= now_ns - COARSE_NS;
            let mode = WriterMode { can_map: is_coarse, ..WriterMode::default() };
            Some(Writer { mode, mapped, can_map: false, sample })
        });
        if let Some(writer) = writer {
            writer.can_map |= mode.can_map;
            writer.mode.can_map |= mode.can_map;
            writer.mode.direct |= mode.direct;
            writer.mode.unseen |= mode.unseen;
            writer.mapped |= mapped;
        }
    }
}

fn flags(info: &str) -> Option<i32> {
    let flags = info.lines().find_map(|line| line.strip_prefix("flags:"))?;
    i32::from_str_radix(flags.trim(), 8).ok()
}
