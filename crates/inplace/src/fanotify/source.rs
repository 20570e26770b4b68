//! The source itself.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use highwater_objects::{filesystem_name, handle_behind, magic, object_type, sample};
use highwater_tracker::{
    Change, FileHandle, Intent, ObjectType, Place, RequestError, Sample, Section, Source, Tracker,
};
use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use super::below::{Below, Whereabouts, noted};
use super::digest::Digest;
use super::group::Group;
use super::queue::Queue;
use super::resolve::{Later, Links, Name, Resolved, resolve};
use super::writers::{Found, Lookout, Writer};
use super::{HashMap, HashSet, tree_version};
use crate::loader::Loader;
use crate::write_barrier::{BarrierError, WriteBarrier};

/// After events have come, the reader lets more of them come together: they cost less that way, and the kernel merges some.
const GATHER: Duration = Duration::from_millis(20);

/// How far a filesystem's timestamps may be behind the clock: two ticks of the slowest kernel, and a little more.
const COARSE: Duration = Duration::from_millis(25);
pub(super) const COARSE_NS: i128 = COARSE.as_nanos().cast_signed();

/// A clock that was set by less than this counts as steady: it is being corrected.
const STEADY_NS: i128 = 5_000_000;

/// Files with several names of which names are remembered, and how many of each. What is not remembered costs a comparison of
/// everything when it is needed.
const LINKS_MAX: usize = 1 << 17;
const LINKS_OF_ONE_MAX: usize = 16;

/// Why a directory cannot be tracked in place.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The directory cannot be opened.
    #[error("cannot open {directory}")]
    Open {
        /// Which directory.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Only root may watch a whole filesystem.
    #[error("tracking in place needs root (CAP_SYS_ADMIN and CAP_DAC_READ_SEARCH)")]
    NotRoot,
    /// The filesystem has no file handles that objects can be opened by, or no id.
    #[error("{filesystem} cannot be watched as a whole: {why}")]
    Unfit {
        /// What sort of filesystem it is.
        filesystem: String,
        /// What it lacks.
        why: &'static str,
    },
    /// The kernel has no fanotify, or one that is too old.
    #[error(
        "the kernel does not offer the events that are needed (Linux 5.17 or newer, with CONFIG_FANOTIFY)"
    )]
    Kernel {
        /// What it said.
        #[source]
        source: io::Error,
    },
    /// The write barrier does not work here.
    #[error("there is no write barrier here")]
    Barrier {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The tracker could not be started.
    #[error("the tracker could not be started")]
    Start {
        /// Why.
        #[source]
        source: RequestError,
    },
}

/// What a source has seen, for `status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Events read.
    pub events: u64,
    /// Of these, dropped at once: outside of the directory.
    pub dropped: u64,
    /// Files that could change without an event at the last checkpoint.
    pub open_writers: u64,
    /// How long the search for these took, microseconds.
    pub search_us: u64,
    /// How long the last write barrier took, microseconds.
    pub barrier_us: u64,
    /// How long it took to find out what had happened at the last checkpoint, microseconds.
    pub resolve_us: u64,
}

/// A directory that is tracked in place. Dropping it ends that.
pub struct Fanotify {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

struct Shared {
    below: Below,
    barrier: Box<dyn WriteBarrier>,
    queue: Mutex<Queue>,
    tracker: Mutex<Weak<Tracker>>,
    /// One drain at a time.
    drains: Mutex<Drains>,
    /// Where everything was at the last cut, as far as it has been asked for.
    cut: Mutex<Cut>,
    /// The tracker has been told that there is something.
    has_told: AtomicBool,
    stopping: AtomicBool,
    wake: OwnedFd,
    resolve_us: AtomicU64,
    barrier_us: AtomicU64,
    search_us: AtomicU64,
    not_covered: Mutex<Vec<String>>,
    lookout_name: &'static str,
}

#[derive(Default)]
struct Drains {
    /// When cuts began, by two clocks: what one search for open files has missed, the next one finds.
    cuts: Cuts,
    lookout: Lookout,
    writers: HashMap<FileHandle, Writer>,
    links: Links,
    /// Objects that the last barrier did not wait for.
    carried: Vec<FileHandle>,
    /// The last drain failed after its cut: what it had read is lost.
    has_failed: bool,
}

/// When the last two cuts began that nothing was hidden from.
#[derive(Debug, Default)]
struct Cuts {
    last: Option<(i128, i128)>,
    before_last: Option<(i128, i128)>,
}

#[derive(Default)]
struct Cut {
    directories: HashMap<FileHandle, Option<Place>>,
    objects: HashMap<FileHandle, Option<Vec<Place>>>,
    writers: HashMap<FileHandle, Writer>,
    gone: HashSet<FileHandle>,
}

impl Fanotify {
    /// Begins to watch. From here on every change is in the queue of the kernel.
    ///
    /// # Errors
    /// [`OpenError`].
    pub fn watch(
        directory: &Path,
        barrier: impl FnOnce(&OwnedFd) -> io::Result<Box<dyn WriteBarrier>>,
    ) -> Result<Self, OpenError> {
        let failed = |errno: Errno| match errno {
            Errno::PERM => OpenError::NotRoot,
            errno => OpenError::Open { directory: directory.to_owned(), source: errno.into() },
        };
        let below = Below::open(directory).map_err(|errno| match errno {
            Errno::OPNOTSUPP => unfit(directory, "it has no file handles"),
            errno => failed(errno),
        })?;
        if below.fsid() == [0, 0] {
            return Err(unfit(directory, "it has no id of its own"));
        }
        below.open_object(below.root_handle(), OFlags::PATH).map_err(|errno| match errno {
            Errno::PERM => OpenError::NotRoot,
            _ => unfit(directory, "its objects cannot be opened by their handles"),
        })?;
        let group = Group::watch(below.root()).map_err(|errno| match errno {
            Errno::PERM => OpenError::NotRoot,
            Errno::NODEV | Errno::XDEV | Errno::OPNOTSUPP => unfit(directory, "fanotify does not support it"),
            errno => OpenError::Kernel { source: errno.into() },
        })?;
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC).map_err(failed)?;
        let root = rustix::io::fcntl_dupfd_cloexec(below.root(), 0).map_err(failed)?;
        // For the barrier and the lookout; where there is none, both have to do without.
        let _loader = Loader::shared();
        // Most of the time that a start takes: the kernel checks the programs of both.
        let (barrier, lookout) = std::thread::scope(|scope| {
            let lookout = scope.spawn(|| Lookout::new(below.root()));
            let barrier = barrier(&root).map_err(|source| OpenError::Barrier { source });
            (barrier, lookout.join())
        });
        let barrier = barrier?;
        let lookout = lookout.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let lookout_name = lookout.name();
        let shared = Arc::new(Shared {
            below,
            barrier,
            queue: Mutex::new(Queue::new(group)),
            tracker: Mutex::new(Weak::new()),
            drains: Mutex::new(Drains { lookout, ..Drains::default() }),
            cut: Mutex::default(),
            has_told: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            wake,
            resolve_us: AtomicU64::new(0),
            barrier_us: AtomicU64::new(0),
            search_us: AtomicU64::new(0),
            not_covered: Mutex::default(),
            lookout_name,
        });
        Ok(Self { shared, reader: None })
    }

    /// The handle of the tracked directory.
    pub fn root_handle(&self) -> &FileHandle {
        self.shared.below.root_handle()
    }

    /// The handle of an object of the filesystem, as a [`WriteBarrier`] reports it.
    ///
    /// # Errors
    /// If it does not exist or cannot be reached.
    pub fn handle_of(path: &Path) -> io::Result<FileHandle> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        Ok(handle_behind(&path)?)
    }

    /// A version of all that is in the directory, if its filesystem counts one. One that is the same as that of
    /// [`Fanotify::version_to_stop_at`] says that nothing has changed since, whoever could have. What is in memory is written for it.
    pub fn tree_version(&self) -> Option<String> {
        let below = &self.shared.below;
        tree_version::of(below.root(), below.magic()).unwrap_or_else(|errno| {
            tracing::debug!(%errno, "cannot find out the version of the tree");
            None
        })
    }

    /// The version that the next tracker may compare with, if this one is stopped at once, and then nothing is open for writing any more
    /// ([`Counters::open_writers`]).
    pub fn version_to_stop_at(&self) -> Option<String> {
        let version = self.tree_version()?;
        // So that what is changed after the stop has a later timestamp than what is in this version, and so is a change of it.
        std::thread::sleep(COARSE);
        Some(version)
    }

    /// Starts the tracker, which recovers, and then the reader.
    ///
    /// # Errors
    /// [`OpenError::Start`].
    pub fn start(&mut self, tracker: &Arc<Tracker>) -> Result<(), OpenError> {
        *self.shared.tracker.lock() = Arc::downgrade(tracker);
        let source = Arc::clone(&self.shared);
        tracker.start(source).map_err(|source| OpenError::Start { source })?;
        let shared = Arc::clone(&self.shared);
        let reader = std::thread::Builder::new().name("events".into()).spawn(move || shared.keep_reading());
        let reader = reader.map_err(|source| OpenError::Start {
            source: RequestError::Source { doing: "start the thread that reads events", source },
        })?;
        self.reader = Some(reader);
        Ok(())
    }

    /// What has been seen.
    pub fn counters(&self) -> Counters {
        let shared = &self.shared;
        let (events, dropped) = {
            let queue = shared.queue.lock();
            (queue.events, queue.dropped)
        };
        // ORDERING: figures for `status`.
        let figure = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counters {
            events,
            dropped,
            open_writers: shared.cut.lock().writers.len() as u64,
            search_us: figure(&shared.search_us),
            barrier_us: figure(&shared.barrier_us),
            resolve_us: figure(&shared.resolve_us),
        }
    }

    /// How open files are searched for.
    pub fn search_name(&self) -> &'static str {
        self.shared.lookout_name
    }

    /// Who may write inside the kernel without being waited for, as the last write barrier found; a sentence for each.
    pub fn not_covered(&self) -> Vec<String> {
        self.shared.not_covered.lock().clone()
    }

    /// The name of the write barrier.
    pub fn barrier_name(&self) -> &'static str {
        self.shared.barrier.name()
    }

    /// Ends the reader; the tracker must have been stopped.
    pub fn end(&mut self) {
        // ORDERING: a flag that ends a loop soon.
        self.shared.stopping.store(true, Ordering::Relaxed);
        // A counter that is full wakes as well.
        let _ = rustix::io::write(&self.shared.wake, &1u64.to_ne_bytes());
        if let Some(reader) = self.reader.take() {
            // It has said what went wrong.
            let _ = reader.join();
        }
    }
}

impl Drop for Fanotify {
    fn drop(&mut self) {
        self.end();
    }
}

fn unfit(directory: &Path, why: &'static str) -> OpenError {
    let magic = rustix::fs::statfs(directory).map_or(0, |statfs| statfs.f_type);
    let filesystem =
        filesystem_name(magic).map_or_else(|| format!("this filesystem (type {magic:#x})"), str::to_owned);
    OpenError::Unfit { filesystem, why }
}

/// The time by the clock that can be set and by the one that cannot, nanoseconds.
fn clocks() -> (i128, i128) {
    (clock_ns(ClockId::Realtime), clock_ns(ClockId::Boottime))
}

/// The time, nanoseconds since the epoch.
pub(super) fn realtime_ns() -> i128 {
    clock_ns(ClockId::Realtime)
}

fn clock_ns(clock: ClockId) -> i128 {
    let time = clock_gettime(clock);
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}

impl Shared {
    fn keep_reading(&self) {
        // A descriptor of its own, so that the lock is not held while waiting.
        let group = match rustix::io::fcntl_dupfd_cloexec(self.queue.lock().group().fd(), 0) {
            Ok(group) => group,
            Err(errno) => {
                tracing::error!(%errno, "events are read at checkpoints only");
                return;
            }
        };
        // ORDERING: a flag that ends the loop soon.
        while !self.stopping.load(Ordering::Relaxed) {
            let mut fds = [PollFd::new(&group, PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
            if let Err(errno) = poll(&mut fds, None)
                && errno != Errno::INTR
            {
                tracing::error!(%errno, "cannot wait for events; they are read at checkpoints only");
                return;
            }
            let read = {
                let mut queue = self.queue.lock();
                queue.read(&self.below).map(|()| !queue.digest.is_empty())
            };
            match read {
                Ok(true) => self.tell(),
                Ok(false) => {}
                // The next checkpoint meets it again, and says so to whoever asks.
                Err(errno) => tracing::warn!(%errno, "events cannot be read"),
            }
            std::thread::sleep(GATHER);
        }
    }

    /// Tells the tracker, once after each cut, that there is something.
    fn tell(&self) {
        // ORDERING: a hint; whoever misses it is told at the next event or asks by itself.
        if !self.has_told.swap(true, Ordering::Relaxed)
            && let Some(tracker) = self.tracker.lock().upgrade()
        {
            tracker.noticed();
        }
    }

    fn drain_to(&self, tracker: &Arc<Tracker>, deadline: Option<Instant>) -> io::Result<()> {
        let mut drains = self.drains.lock();
        let began = clocks();
        let search_began = Instant::now();
        let Found { writers, hides } = {
            let drains = &mut *drains;
            drains.lookout.search(&self.below, &drains.writers)?
        };
        // ORDERING: a figure for `status`.
        self.search_us.store(micros(search_began), Ordering::Relaxed);
        let barrier_began = Instant::now();
        let carried = self.barrier.wait(deadline).map_err(from_barrier)?;
        // ORDERING: a figure for `status`.
        self.barrier_us.store(micros(barrier_began), Ordering::Relaxed);
        let resolve_began = Instant::now();
        let mut digest = {
            let mut queue = self.queue.lock();
            noted("read events", queue.read(&self.below))?;
            queue.cut()
        };
        // ORDERING: see `tell`.
        self.has_told.store(false, Ordering::Relaxed);
        digest.overflow |= std::mem::replace(&mut drains.has_failed, true);
        // It may have another name, and may have been read by nobody by the one that it has lost.
        match digest.relinked.replaced(&digest.relinked_before) {
            None => digest.overflow = true,
            Some(replaced) => {
                for object in replaced {
                    if self.below.stat(&object)?.is_some() {
                        digest.add(object, |touched| touched.modified = true);
                    }
                }
            }
        }
        for object in carried.objects.iter().chain(&drains.carried) {
            digest.add(object.clone(), |touched| touched.modified = true);
        }
        drains.carried = carried.objects;
        *self.not_covered.lock() = carried.not_covered;
        for (object, writer) in &drains.writers {
            if !writers.contains_key(object) {
                let mapped = writer.mapped;
                digest.add(object.clone(), |touched| {
                    touched.closed = true;
                    touched.modified |= mapped;
                });
            }
        }
        for (object, writer) in &writers {
            // Of one that the tracker does not know as it is now there is no sample to compare with.
            let is_known = drains.writers.get(object).is_some_and(|before| is_covered(writer, before));
            digest.add(object.clone(), |touched| touched.closed |= !is_known);
        }
        let since = drains.cuts.before_last.filter(|since| {
            let jump = (began.0 - began.1) - (since.0 - since.1);
            jump.abs() < STEADY_NS
        });
        let changed_since_cut = |object: &FileHandle| {
            let Some(stat) = self.below.stat(object)? else { return Ok(false) };
            // A store into a mapping of tmpfs leaves no trace.
            if self.below.magic() == magic::TMPFS {
                return Ok(true);
            }
            let now = sample(&stat);
            if let Some(writer) = drains.writers.get(object) {
                let is_coarse = now.ctime_ns >= began.0 - COARSE_NS && !self.timestamps_are_distinct();
                return Ok(now != writer.sample || is_coarse);
            }
            Ok(since.is_none_or(|since| now.ctime_ns >= since.0 - COARSE_NS))
        };
        let resolved = resolve(&self.below, &digest, &drains.links, self, &changed_since_cut)?;
        // All that is needed to understand an answer afterwards, in the order in which it came to be.
        tracing::trace!(?began, hides, ?writers, ?digest, ?resolved, "drained");
        learn_links(&mut drains.links, &resolved);
        let section = tracker.section();
        self.record(&section, &resolved)?;
        self.follow_writers(&section, &mut drains.writers, &writers);
        self.cut.lock().writers = writers.clone();
        drains.writers = writers;
        drains.lookout.moved(&digest);
        if !hides {
            drains.cuts = Cuts { last: Some(began), before_last: drains.cuts.last };
        }
        drains.has_failed = false;
        // ORDERING: a figure for `status`.
        self.resolve_us.store(micros(resolve_began), Ordering::Relaxed);
        Ok(())
    }

    fn record(&self, section: &Section, resolved: &Resolved) -> io::Result<()> {
        let (directories, gone) = (resolved.directories.clone(), resolved.gone.clone());
        let mut cut = Cut { directories, gone, ..Cut::default() };
        for change in &resolved.touched {
            if change.object_type != ObjectType::Directory {
                cut.objects.insert(change.object.clone(), change.places.clone());
            }
        }
        *self.cut.lock() = cut;
        self.note_intents(section, resolved)?;
        for name in &resolved.lost {
            self.record_removed(section, name);
        }
        for name in &resolved.passed {
            self.record_gained(section, name);
            self.record_removed(section, name);
        }
        for name in &resolved.gained {
            self.record_gained(section, name);
        }
        for change in &resolved.touched {
            let object = change.object.clone();
            if change.modified {
                section.record(Change::Modified { object }, || {});
            } else if change.metadata {
                let object_type = change.object_type;
                section.record(Change::Metadata { object, object_type }, || {});
            }
        }
        for directory in &resolved.crossed {
            section.lost_sight(directory);
        }
        if resolved.lost_sight {
            section.lost_sight(self.below.root_handle());
        }
        let mut queue = self.queue.lock();
        for object in &resolved.carried {
            queue.digest.add(object.clone(), |touched| {
                touched.modified = true;
                touched.carried = true;
            });
        }
        Ok(())
    }

    /// After a power loss the disk may be older than what has been handed out: each directory in which something has been recorded
    /// is told again then.
    fn note_intents(&self, section: &Section, resolved: &Resolved) -> io::Result<()> {
        let mut directories: HashSet<&FileHandle> = HashSet::default();
        let mut intents = Vec::new();
        for name in resolved.lost.iter().chain(&resolved.passed).chain(&resolved.gained) {
            directories.insert(&name.place.parent);
            if name.object_type == ObjectType::Directory && !name.is_new {
                intents.push(Intent::Move(&name.object));
            }
        }
        for change in resolved.touched.iter().filter(|change| change.modified || change.metadata) {
            match &change.places {
                Some(places) if places.is_empty() => {}
                Some(places) if change.nlink == 1 => {
                    directories.extend(places.iter().map(|place| &place.parent));
                }
                _ if change.object_type == ObjectType::Directory => drop(directories.insert(&change.object)),
                _ => intents.push(Intent::Object(&change.object)),
            }
        }
        let mut directories: Vec<&FileHandle> = directories.into_iter().collect();
        directories.sort();
        intents.extend(directories.into_iter().map(Intent::Directory));
        section.note(&intents).map_err(io::Error::other)
    }

    fn record_removed(&self, section: &Section, name: &Name) {
        let Name { place, object, object_type, .. } = name.clone();
        section.record(Change::Removed { object, object_type, place }, || self.move_directory(name, false));
    }

    fn record_gained(&self, section: &Section, name: &Name) {
        let Name { place, object, object_type, is_new, .. } = name.clone();
        let change = if is_new {
            Change::Created { object, object_type, place }
        } else {
            Change::Linked { object, object_type, place }
        };
        section.record(change, || self.move_directory(name, true));
    }

    fn move_directory(&self, name: &Name, gained: bool) {
        if name.object_type == ObjectType::Directory {
            let place = gained.then(|| name.place.clone());
            self.cut.lock().directories.insert(name.object.clone(), place);
        }
    }

    /// Tells the tracker which files can change without an event from now on, and which cannot any more.
    fn follow_writers(
        &self,
        section: &Section,
        before: &mut HashMap<FileHandle, Writer>,
        now: &HashMap<FileHandle, Writer>,
    ) {
        for (object, writer) in before.iter() {
            if now.get(object).is_none_or(|now| !is_covered(now, writer)) {
                section.closed(object, || Some(writer.sample));
            }
        }
        for (object, writer) in now {
            if before.get(object).is_none_or(|before| !is_covered(writer, before)) {
                section.opened(object, writer.mode, writer.sample);
            }
        }
    }

    fn locate(&self, object: &FileHandle) -> Option<Vec<Place>> {
        match self.below.locate(object) {
            Ok(Whereabouts::At(place)) => Some(vec![place]),
            Ok(Whereabouts::Gone | Whereabouts::Outside) => Some(Vec::new()),
            Ok(Whereabouts::Unknown) | Err(_) => None,
        }
    }
}

/// Remembers names of files that have several.
fn learn_links(links: &mut Links, resolved: &Resolved) {
    for name in &resolved.lost {
        if let Some(places) = links.get_mut(&name.object) {
            places.retain(|place| *place != name.place);
        }
    }
    if links.len() >= LINKS_MAX {
        links.clear();
    }
    let gained = resolved.gained.iter().map(|name| (&name.object, name.object_type, name.nlink, &name.place));
    let touched = resolved.touched.iter().flat_map(|change| {
        let places = change.places.iter().flatten();
        places.map(|place| (&change.object, change.object_type, change.nlink, place))
    });
    for (object, object_type, nlink, place) in gained.chain(touched) {
        if object_type == ObjectType::Directory || nlink < 2 {
            continue;
        }
        let places = links.entry(object.clone()).or_default();
        if !places.contains(place) && places.len() < LINKS_OF_ONE_MAX {
            places.push(place.clone());
        }
    }
}

/// Whether the tracker knows a writer as it is now.
fn is_covered(now: &Writer, before: &Writer) -> bool {
    now.mode == before.mode
}

fn from_barrier(error: BarrierError) -> io::Error {
    match error {
        BarrierError::Deadline { holdups } => {
            if holdups.is_empty() {
                return io::ErrorKind::TimedOut.into();
            }
            let who: Vec<String> = holdups.iter().map(ToString::to_string).collect();
            io::Error::new(io::ErrorKind::TimedOut, format!("held up by {}", who.join(", ")))
        }
        BarrierError::Failed { source } => source,
    }
}

impl Later for Shared {
    fn read(&self, look: &mut dyn FnMut(&Digest)) -> Result<(), Errno> {
        let mut queue = self.queue.lock();
        queue.read(&self.below)?;
        look(&queue.digest);
        Ok(())
    }
}

impl Source for Shared {
    fn drain(&self, deadline: Option<Instant>) -> io::Result<()> {
        let tracker = self.tracker.lock().upgrade();
        tracker.map_or(Ok(()), |tracker| self.drain_to(&tracker, deadline))
    }

    /// What has been done is visible at once in place.
    fn settle(&self, _deadline: Option<Instant>) -> io::Result<()> {
        Ok(())
    }

    fn places(&self, object: &FileHandle) -> Option<Vec<Place>> {
        if object == self.below.root_handle() {
            return Some(Vec::new());
        }
        {
            let cut = self.cut.lock();
            if let Some(place) = cut.directories.get(object) {
                return Some(place.iter().cloned().collect());
            }
            if let Some(places) = cut.objects.get(object) {
                return places.clone();
            }
        }
        self.locate(object)
    }

    fn may_be_elsewhere(&self, object: &FileHandle) -> io::Result<bool> {
        // To ask the kernel for a file that is gone costs more than anything else about a file that is deleted.
        if self.cut.lock().gone.contains(object) {
            return Ok(false);
        }
        Ok(match self.below.stat(object)? {
            None => false,
            Some(stat) if object_type(&stat) == ObjectType::Directory => true,
            Some(_) => !matches!(self.below.locate_file(object)?, Whereabouts::Gone | Whereabouts::Outside),
        })
    }

    /// Of an open writer, as it was before the write barrier.
    fn sample(&self, object: &FileHandle) -> io::Result<Option<Sample>> {
        if let Some(writer) = self.cut.lock().writers.get(object) {
            return Ok(Some(writer.sample));
        }
        Ok(self.below.stat(object)?.map(|stat| sample(&stat)))
    }

    /// The barrier has waited, after the sample.
    fn wait_for_writes(&self, _object: &FileHandle, _deadline: Option<Instant>) -> io::Result<()> {
        Ok(())
    }

    fn mapped_writable(&self, objects: &[FileHandle]) -> io::Result<std::collections::HashSet<FileHandle>> {
        let cut = self.cut.lock();
        let mapped = |object: &&FileHandle| {
            cut.writers.get(*object).is_none_or(|writer| {
                // On tmpfs, also where the mapping was there only between two looks.
                writer.mapped || self.below.magic() == magic::TMPFS && writer.can_map
            })
        };
        Ok(objects.iter().filter(mapped).cloned().collect())
    }

    fn timestamps_are_distinct(&self) -> bool {
        highwater_objects::has_distinct_timestamps(self.below.magic())
    }

    fn sync_filesystem(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(self.below.root())?)
    }

    fn open_directory(&self, directory: &FileHandle) -> io::Result<Option<OwnedFd>> {
        Ok(self.below.open_directory(directory)?)
    }

    fn changed_since(&self, since_ns: i128) -> io::Result<Option<std::collections::HashSet<u64>>> {
        Ok(super::bulkstat::changed_since(self.below.root(), since_ns)?)
    }

    fn handle_at(&self, directory: &OwnedFd, name: &[u8]) -> io::Result<Option<(FileHandle, ObjectType)>> {
        let Some(object) = self.below.at(directory.as_fd(), name)? else { return Ok(None) };
        Ok(self.below.stat(&object)?.map(|stat| (object, object_type(&stat))))
    }
}
