//! The stacked source: a directory mounted over itself.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use highwater_objects::{attributes_of, kernel_at_least, object_type, proc_path, sample};
use highwater_tracker::{FileHandle, ObjectType, Place, RequestError, Sample, Source, Tracker};
use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::covered::{Access, Covered, ObjectFd};
use crate::filesystem::Filesystem;
use crate::foreign::{Foreign, ForeignWriter};
use crate::gone::Gone;
use crate::mount::{self, MountError, UnmountError};
use crate::nodes::Nodes;
use crate::prober::Probers;
use crate::processes::{self, Device};
use crate::sections::Sections;
use crate::session::Session;
use crate::wire::notify::Notifier;

/// How long a filesystem that has been unmounted may take to end before it is said who keeps it.
const OTHERS_PATIENCE: std::time::Duration = std::time::Duration::from_secs(2);
const COPIES_NAMED_MAX: usize = 8;

/// How often, and after what pause, a busy mount is tried again: a child between fork and exec holds what its parent has open,
/// and a path that is being looked up is in use as well. Together a quarter of a second.
const BUSY_RETRIES: u32 = 10;
const BUSY_PAUSE: std::time::Duration = std::time::Duration::from_millis(25);

/// How a directory is covered.
#[derive(Clone, Debug)]
pub struct Options {
    /// Workers that are always there; more are started while requests block.
    pub threads: usize,
    /// Let the kernel read and write files directly where it can.
    pub passthrough: bool,
    /// Give every worker a device descriptor of its own.
    pub clone_device: bool,
    /// Writers of a mount that a tracker left behind, from [`find_dead_mount`](crate::find_dead_mount).
    pub foreign: Vec<ForeignWriter>,
    /// The devices of the mounts of earlier trackers of this tree that were killed: who writes through one of them writes to this tree,
    /// wherever his path leads now. Of other dead servers nobody can know.
    pub dead_devices: Vec<Device>,
    /// That mount is still in its place ([`DeadMount::in_place`](crate::DeadMount::in_place)).
    pub replaces: bool,
    /// Which start of a tracker this is: a mark on the mount, by which its dead mount is told from that of another tracker. Letters,
    /// digits and `-`.
    pub instance: String,
}

impl Default for Options {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(2, usize::from).clamp(2, 8);
        Self {
            threads,
            passthrough: true,
            clone_device: true,
            foreign: Vec::new(),
            dead_devices: Vec::new(),
            replaces: false,
            instance: String::new(),
        }
    }
}

/// What an operator should know of a mount: what it does not do as well as it could.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct MountReport {
    /// File data goes through the kernel only. Known after the first file was opened.
    pub passthrough: bool,
    /// What is lost, and why, one sentence each.
    pub losses: Vec<String>,
    /// Mounts inside the directory that lie over the new mount as they did over the old one. They are not tracked.
    pub nested_kept: Vec<PathBuf>,
    /// Mounts inside the directory that are hidden while it is covered.
    pub nested_hidden: Vec<PathBuf>,
}

/// A directory that is mounted over itself.
pub struct Stacked {
    filesystem: Arc<Filesystem>,
    session: Arc<Session>,
    directory: PathBuf,
    report: MountReport,
    mounted: AtomicBool,
    mount_id: u64,
}

impl Stacked {
    /// Covers the directory and starts the tracker. When this returns, everything that is done in the directory is seen.
    ///
    /// An operation that comes before the tracker has started waits for it.
    pub fn mount(covered: Covered, tracker: Arc<Tracker>, options: Options) -> Result<Self, MountError> {
        let sections = Box::new(Arc::clone(&tracker));
        Self::mount_and_start(covered, sections, options, |source| tracker.start(source))
    }

    /// The same with another tracker, for tests.
    #[doc(hidden)]
    pub fn mount_with(
        covered: Covered,
        sections: Box<dyn Sections>,
        options: Options,
    ) -> Result<Self, MountError> {
        Self::mount_and_start(covered, sections, options, |_| Ok(()))
    }

    fn mount_and_start(
        covered: Covered,
        sections: Box<dyn Sections>,
        mut options: Options,
        start: impl FnOnce(Arc<dyn Source>) -> Result<(), RequestError>,
    ) -> Result<Self, MountError> {
        let root = rustix::process::geteuid().is_root();
        options.passthrough &= root;
        let mut report = MountReport::default();
        losses(&covered, &options, root, &mut report.losses);
        raise_descriptor_limit();
        let directory =
            std::fs::canonicalize(covered.directory()).unwrap_or_else(|_| covered.directory().to_owned());
        let dead = std::mem::take(&mut options.foreign);
        let nested = mount::nested(&directory);
        let mut made = mount::make(&covered, &options.instance)?;
        let device = Arc::new(made.device.try_clone().map_err(|source| MountError::NoDevice { source })?);
        let root_fd =
            covered.root().try_clone_to_owned().map_err(|source| MountError::NoDevice { source })?;
        let filesystem = Arc::new(Filesystem {
            nodes: Nodes::new(covered.root_handle().clone(), Arc::new(root_fd)),
            covered,
            directories: crate::descriptors::DirectoryCache::default(),
            open_files: crate::descriptors::OpenTable::default(),
            open_directories: crate::descriptors::OpenTable::default(),
            sections,
            notifier: Notifier::new(Arc::clone(&device)),
            device,
            touched: crate::settle::Touched::default(),
            lingering: Mutex::default(),
            openers: Mutex::default(),
            lingering_changed: parking_lot::Condvar::new(),
            foreign: Foreign::default(),
            gone: Gone::default(),
            passthrough: AtomicBool::new(false),
            kernel_flags: AtomicU64::new(0),
            options,
            probers: Mutex::new(None),
            mount_device: OnceLock::new(),
            init_answered: (Mutex::new(false), parking_lot::Condvar::new()),
        });
        let session = Session::start(Arc::clone(&filesystem));
        let private = match made.attach(&filesystem.covered, filesystem.options.replaces) {
            Ok(private) => private,
            Err(error) => {
                drop(made);
                session.join();
                return Err(error);
            }
        };
        let (back, hidden) = mount::put_back(&directory, nested);
        report.nested_kept = back;
        report.nested_hidden = hidden;
        // As the kernel has it cached: a thread that asks its own mount, and is killed before it is answered, would keep the device open and
        // the mount hanging for ever (see `prober`).
        let stat = rustix::fs::statx(
            rustix::fs::CWD,
            &directory,
            AtFlags::STATX_DONT_SYNC,
            StatxFlags::TYPE | StatxFlags::MNT_ID,
        );
        let mut mount_id = 0;
        if let Ok(stat) = stat {
            mount_id = stat.stx_mnt_id;
            let device = Device { major: stat.stx_dev_major, minor: stat.stx_dev_minor };
            let _ = filesystem.mount_device.set(device);
        }
        if let Some(private) = private {
            *filesystem.probers.lock() = Some(Arc::new(Probers::new(private)));
        }
        filesystem.wait_for_init();
        // ORDERING: INIT has been answered.
        report.passthrough = filesystem.passthrough.load(Ordering::Relaxed);
        drop(made);
        let mut stacked =
            Self { filesystem, session, directory, report, mounted: AtomicBool::new(true), mount_id };
        // Before the start: nothing can be renamed yet.
        let foreign = stacked.filesystem.seek_foreign(&stacked.directory, dead);
        if let Err(source) = start(stacked.source()) {
            if let Err(error) = stacked.unmount_lazy() {
                tracing::warn!(%error, "the mount stays");
            }
            return Err(MountError::Start { source });
        }
        let losses = stacked.filesystem.add_foreign(foreign);
        stacked.report.losses.extend(losses);
        Ok(stacked)
    }

    /// The source, as the tracker has it.
    pub fn source(&self) -> Arc<dyn Source> {
        Arc::clone(&self.filesystem) as Arc<dyn Source>
    }

    /// What an operator should know.
    pub fn report(&self) -> &MountReport {
        &self.report
    }

    /// The handle of the tracked directory.
    pub fn root_handle(&self) -> &FileHandle {
        self.filesystem.covered.root_handle()
    }

    /// Where it is mounted.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Programs that can write to objects in the directory past the mount: they had them open before it was made.
    pub fn foreign_writers(&self) -> Vec<ForeignWriter> {
        self.filesystem.foreign.list()
    }

    /// How many objects the kernel knows.
    pub fn nodes(&self) -> usize {
        self.filesystem.nodes.len()
    }

    /// Whether file data goes through the kernel only: asked for, agreed on, and not given up since.
    pub fn is_passthrough(&self) -> bool {
        // ORDERING: a hint for people.
        self.filesystem.passthrough.load(Ordering::Relaxed)
    }

    /// Uncovers the directory. When this returns no operation is being served and every section has ended.
    ///
    /// Programs that use the mount make it fail and are named; nothing has changed then. Mounts that were put back over it are
    /// taken away first.
    pub fn unmount(&self) -> Result<(), UnmountError> {
        for nested in self.report.nested_kept.iter().rev() {
            if let Err(errno) = mount::take_away(nested, false)
                && errno != Errno::INVAL
            {
                return Err(UnmountError::Refused { directory: nested.clone(), source: errno.into() });
            }
        }
        let mut result = mount::take_away(&self.directory, false);
        for _ in 0..BUSY_RETRIES {
            if result != Err(Errno::BUSY) {
                break;
            }
            std::thread::sleep(BUSY_PAUSE);
            result = mount::take_away(&self.directory, false);
        }
        match result {
            Ok(()) => {}
            Err(Errno::BUSY) => {
                let device = self.filesystem.mount_device().unwrap_or(Device { major: 0, minor: 0 });
                let holders = processes::holders(self.mount_id, device);
                return Err(UnmountError::Busy { directory: self.directory.clone(), holders });
            }
            // Somebody else has unmounted it.
            Err(Errno::INVAL) => {}
            Err(errno) => {
                return Err(UnmountError::Refused {
                    directory: self.directory.clone(),
                    source: errno.into(),
                });
            }
        }
        *self.filesystem.probers.lock() = None;
        if !self.session.ends_within(OTHERS_PATIENCE) {
            self.warn_of_copies();
        }
        self.end();
        // One that could not be replaced, only covered.
        while crate::dead_mount::is_dead(&self.directory) {
            mount::take_away(&self.directory, true).map_err(|errno| UnmountError::Refused {
                directory: self.directory.clone(),
                source: errno.into(),
            })?;
        }
        Ok(())
    }

    /// Somebody has a mount of this filesystem that our unmount did not reach: a private copy in a mount namespace, or a bind mount.
    fn warn_of_copies(&self) {
        let Some(device) = self.filesystem.mount_device() else { return };
        let copies = processes::with_mount(device);
        let named: Vec<String> = copies
            .iter()
            .take(COPIES_NAMED_MAX)
            .map(|one| format!("{} (pid {})", one.command, one.pid))
            .collect();
        tracing::warn!(
            "{} is unmounted here, but still mounted elsewhere{}{}; it is tracked until that is gone too",
            self.directory.display(),
            if named.is_empty() { "" } else { ", for " },
            named.join(", "),
        );
    }

    /// Takes the mount out of sight at once; programs that use it can go on until they let go, and are still tracked.
    /// [`Stacked::wait`] returns when the last has.
    pub fn unmount_lazy(&self) -> Result<(), UnmountError> {
        for nested in self.report.nested_kept.iter().rev() {
            let _ = mount::take_away(nested, true);
        }
        mount::take_away(&self.directory, true).map_err(|errno| UnmountError::Refused {
            directory: self.directory.clone(),
            source: errno.into(),
        })?;
        *self.filesystem.probers.lock() = None;
        Ok(())
    }

    /// Returns when the mount is gone, by [`Stacked::unmount`] or from outside, and nothing is being served.
    pub fn wait(&self) {
        self.session.join();
        self.end();
    }

    fn end(&self) {
        *self.filesystem.probers.lock() = None;
        self.session.join();
        // ORDERING: ends once; the lock of the lingering list orders the rest.
        if self.mounted.swap(false, Ordering::Relaxed) {
            self.filesystem.end_lingering(true);
            self.filesystem.end_foreign(true);
            for file in self.filesystem.open_files.drain() {
                if file.writer.is_some() {
                    let section = self.filesystem.sections.enter();
                    self.filesystem.end_writer(&*section, &file);
                }
            }
            self.filesystem.open_directories.drain();
            self.filesystem.directories.clear();
        }
    }
}

impl Drop for Stacked {
    fn drop(&mut self) {
        // ORDERING: see `end`.
        if self.mounted.load(Ordering::Relaxed) && self.unmount().is_err() {
            tracing::warn!(directory = %self.directory.display(), "still in use: taken away when the last user lets go");
            let _ = self.unmount_lazy();
        }
    }
}

fn losses(covered: &Covered, options: &Options, root: bool, losses: &mut Vec<String>) {
    let mut lose = |loss: &str| losses.push(loss.to_owned());
    if !root {
        lose("not root: file data goes through the server, which is slower");
        lose("not root: only this user can see into the directory while it is tracked");
        lose("not root: set-user-id programs and devices do not work in the directory while it is tracked");
    } else if !options.passthrough {
        lose("passthrough is off: file data goes through the server, which is slower");
    }
    // Since FUSE writes back by iomap. Seen on 6.18, with bindfs as well.
    if !(root && options.passthrough) && kernel_at_least(6, 17) {
        lose(
            "this kernel has a mistake in FUSE without passthrough: a write that makes a file longer can come out as zeros, if its last page \
             has just been changed through a mapping",
        );
    }
    match covered.access() {
        Access::Handles => {}
        Access::Descriptors => {
            lose(
                "objects cannot be opened by their handles here: a descriptor is kept for each that the kernel knows",
            );
        }
        Access::Synthetic => lose(
            "the filesystem has no file handles: objects are known by inode number and birth time, and a number that is used \
             again within the same clock tick is taken for the same object",
        ),
    }
    if !covered.detached() {
        lose("the directory could not be cloned: mounts made below it are entered");
    }
}

/// A file that a program has open costs one here, and so does every object where they cannot be opened by their handles.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(errno) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })
    {
        tracing::warn!(%errno, "the limit of descriptors could not be raised");
    }
}

impl Filesystem {
    pub(crate) fn mount_device(&self) -> Option<Device> {
        self.mount_device.get().copied()
    }

    /// An object that may be unknown to the kernel. `None`: it does not exist any more. `EOPNOTSUPP`: nobody can tell, since it cannot
    /// be opened by its handle here.
    fn object_of(&self, handle: &FileHandle) -> Result<Option<ObjectFd>, Errno> {
        if handle == self.covered.root_handle() {
            return Ok(Some(ObjectFd::Own(rustix::io::fcntl_dupfd_cloexec(self.covered.root(), 0)?)));
        }
        let known = self.nodes.id(handle).map(|node| self.object(node));
        let found = match known {
            Some(Ok(object)) => return Ok(Some(object)),
            _ if self.covered.access() != Access::Handles => {
                return self.foreign_object(handle).ok_or(Errno::OPNOTSUPP).map(Some);
            }
            _ => self.covered.open_object(handle, OFlags::PATH | OFlags::NOFOLLOW),
        };
        match found {
            Ok(fd) => Ok(Some(ObjectFd::Own(fd))),
            Err(Errno::STALE | Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// The place of a directory that the kernel does not know, from the filesystem below.
    fn place_below(&self, handle: &FileHandle) -> Option<Place> {
        let directory = self.object_of(handle).ok()??;
        if object_type(&attributes_of(directory.as_fd()).ok()?) != ObjectType::Directory {
            return None;
        }
        let path = rustix::fs::readlink(proc_path(directory.as_fd()).as_c_str(), Vec::new()).ok()?;
        let name = path.as_bytes().rsplit(|byte| *byte == b'/').next()?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let parent = rustix::fs::openat(directory.as_fd(), c"..", flags, Mode::empty()).ok()?;
        let (parent_handle, _) = self.covered.identify(parent.as_fd()).ok()?;
        let name_c = std::ffi::CString::new(name).ok()?;
        // The path is a snapshot: it counts if the name still leads here.
        let there = self.covered.find(parent.as_fd(), &name_c).ok()?;
        (there.handle == *handle).then(|| Place { parent: parent_handle, name: name.into() })
    }
}

impl Source for Filesystem {
    fn drain(&self, _deadline: Option<Instant>) -> io::Result<()> {
        self.tell_lost();
        Ok(())
    }

    fn settle(&self, deadline: Option<Instant>) -> io::Result<()> {
        Ok(self.settle_touched(deadline)?)
    }

    fn places(&self, object: &FileHandle) -> Option<Vec<Place>> {
        if object == self.covered.root_handle() {
            return Some(Vec::new());
        }
        match self.nodes.places(object) {
            Some(places) if !places.is_empty() => Some(places),
            // Unknown, or without a name that is known: it may have others.
            known => match self.place_below(object).or_else(|| self.place_of_foreign(object)) {
                Some(place) => Some(vec![place]),
                None => {
                    let links = self.sample(object).ok()?.map_or(0, |sample| sample.nlink);
                    (links == 0).then_some(known.unwrap_or_default())
                }
            },
        }
    }

    fn may_be_elsewhere(&self, object: &FileHandle) -> io::Result<bool> {
        Ok(!self.gone.contains(object) && self.sample(object)?.is_some_and(|sample| sample.nlink > 0))
    }

    fn sample(&self, object: &FileHandle) -> io::Result<Option<Sample>> {
        let Some(object) = self.object_of(object)? else { return Ok(None) };
        Ok(Some(sample(&attributes_of(object.as_fd())?)))
    }

    fn wait_for_writes(&self, object: &FileHandle, deadline: Option<Instant>) -> io::Result<()> {
        Ok(self.wait_for_writes_to(object, deadline)?)
    }

    fn mapped_writable(&self, objects: &[FileHandle]) -> io::Result<HashSet<FileHandle>> {
        Ok(self.mapped(objects)?)
    }

    fn timestamps_are_distinct(&self) -> bool {
        highwater_objects::has_distinct_timestamps(self.covered.magic())
    }

    fn sync_filesystem(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(self.covered.root())?)
    }

    fn open_directory(&self, directory: &FileHandle) -> io::Result<Option<OwnedFd>> {
        let Some(object) = self.object_of(directory)? else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::open(proc_path(object.as_fd()).as_c_str(), flags, Mode::empty()) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::STALE | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    fn handle_at(&self, directory: &OwnedFd, name: &[u8]) -> io::Result<Option<(FileHandle, ObjectType)>> {
        let name = std::ffi::CString::new(name).map_err(|_| Errno::INVAL)?;
        match self.covered.find(directory.as_fd(), &name) {
            Ok(found) => Ok(Some((found.handle, object_type(&found.stat)))),
            Err(Errno::NOENT | Errno::STALE) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}
