//! The write barrier in place, under load: what was seen half-done before a barrier is whole after it.
//!
//! Several tasks write some mebibytes again and again, each time with a new number at both ends. Who sees a number at the beginning, and calls the
//! barrier, must find it, or a newer one, at the end. Others truncate, make, rename and remove names: who sees the change must find its
//! event in the queue. A write that stalls must not be passed over.
//!
//! With `--broken` a check of the barrier is switched off, or all of it; then the run passes only if that is noticed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::Scope;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use highwater_inplace::barrier::{BarrierError, FilesystemBarrier, SwitchedOff};
use io_uring::{IoUring, opcode, squeue, types};
use rustix::fs::{OFlags, inotify};

use crate::mapping::Mapping;
use crate::scratch::{Filesystem, Scratch};
use crate::stall::{LENGTH, StalledWrite};

/// Bytes of a write. It must take longer than a barrier that passes over it.
const BIG: usize = 8 << 20;
/// Bytes of a write to the file that is truncated; it takes several.
const PART: usize = 1 << 20;
/// Rounds between two writes that stall.
const STALLED_EVERY: u64 = 8;
const PATIENCE: Duration = Duration::from_secs(60);
/// More than there are steps of the [`namer`].
const STEPS: u32 = 8;
/// More than there are of one number.
const EVENTS_KEPT: usize = 16;

/// The write barrier in place, under load.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BarrierInPlaceArgs {
    /// What to try it on: ext4, xfs, btrfs, tmpfs, or a directory. May be repeated.
    #[arg(long, value_name = "FS|DIR", default_value = "xfs")]
    dir_fs: Vec<Filesystem>,
    /// For how long, on each.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Call no barrier at all (`none`), or one without this check; pass only if that is noticed.
    #[arg(long, value_name = "CHECK", value_parser = broken)]
    broken: Option<Broken>,
    /// Look at these only. May be repeated.
    #[arg(long, value_enum)]
    only: Vec<Oracle>,
    /// Use no io_uring: before 6.3 there is no barrier where anybody does.
    #[arg(long)]
    no_rings: bool,
}

/// What is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Oracle {
    /// Both ends of big writes.
    Writes,
    /// Size and blocks of a file that is truncated.
    Truncation,
    /// Names, and their events.
    Names,
    /// Writes that stall.
    Stalled,
    /// Writes of io_uring that are done in part and wait for a worker (XFS; elsewhere none is done in part).
    Queued,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Broken {
    None,
    Without(SwitchedOff),
}

fn broken(text: &str) -> Result<Broken, String> {
    if text == "none" {
        return Ok(Broken::None);
    }
    let known = SwitchedOff::NAMES.join(", ");
    SwitchedOff::named(text).map(Broken::Without).ok_or_else(|| format!("none of: none, {known}"))
}

/// Runs it on each filesystem.
pub(crate) fn main(arguments: &BarrierInPlaceArgs) -> Result<()> {
    for filesystem in &arguments.dir_fs {
        let scratch = Scratch::new(filesystem, None, "barrier", 512)?;
        let begun = Instant::now();
        let tally = one(&scratch.tree, arguments).with_context(|| format!("on {filesystem}"))?;
        let seconds = begun.elapsed().as_secs_f64();
        let Tally { barriers, half_done, miss, .. } = &tally;
        scratch.discard_evidence();
        match (miss, arguments.broken) {
            (None, None) => {
                println!(
                    "barrier-in-place: {filesystem}: PASS: {barriers} barriers in {seconds:.0} s, {half_done} operations seen \
                     half-done before one"
                );
                ensure!(*half_done > 0, "nothing was seen half-done: this run shows nothing");
            }
            (Some(miss), Some(_)) => {
                println!(
                    "barrier-in-place: {filesystem}: PASS: noticed after {seconds:.2} s and {barriers} barriers: {miss}"
                );
            }
            (Some(miss), None) => bail!("{filesystem}: after {barriers} barriers: {miss}"),
            (None, Some(broken)) => bail!("{filesystem}: {broken:?}: not noticed in {barriers} barriers"),
        }
    }
    Ok(())
}

/// What was seen.
#[derive(Debug, Default)]
struct Tally {
    barriers: u64,
    /// Operations of which a part was visible, and another part was not, before the barrier.
    half_done: u64,
    miss: Option<String>,
}

/// What the tasks and the observer share.
struct Shared {
    stop: AtomicBool,
    /// Odd while a truncation is under way.
    truncations: AtomicU32,
    /// Number of the names that are being made, and how far: [`STEPS`] n + step.
    names: AtomicU32,
}

impl Shared {
    fn goes_on(&self) -> bool {
        // ORDERING: nothing but the flag itself.
        !self.stop.load(Ordering::Relaxed)
    }
}

/// Stops the tasks, also when the observer fails.
struct Stop<'a>(&'a Shared);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        // ORDERING: nothing but the flag itself.
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

fn one(tree: &Path, arguments: &BarrierInPlaceArgs) -> Result<Tally> {
    let barrier = match arguments.broken {
        Some(Broken::Without(off)) => FilesystemBarrier::broken(File::open(tree)?, off),
        _ => FilesystemBarrier::new(File::open(tree)?),
    }
    .context("cannot prepare the barrier")?;
    let call = |deadline: Duration| match arguments.broken {
        Some(Broken::None) => Ok(()),
        _ => barrier.synchronize(Some(deadline)).map(drop),
    };
    let shared =
        Shared { stop: AtomicBool::new(false), truncations: AtomicU32::new(0), names: AtomicU32::new(0) };
    let names = tree.join("names");
    fs::create_dir(&names)?;
    let mut oracles = arguments.only.clone();
    if oracles.is_empty() {
        oracles = vec![Oracle::Writes, Oracle::Truncation, Oracle::Names, Oracle::Stalled, Oracle::Queued];
    }
    if arguments.no_rings {
        oracles.retain(|oracle| *oracle != Oracle::Queued);
    }
    let mut round = 0_u64;
    std::thread::scope(|scope| {
        // Dropped before the scope waits for its threads.
        let _stop = Stop(&shared);
        let mut views = Vec::new();
        // With a check less, who holds the barrier up rightly would give a write time to end that is passed over.
        let is_broken = arguments.broken.is_some();
        let all = [How::Fifo, How::Plain, How::Plain, How::Ring, How::Worker, How::Polled];
        let all = if arguments.no_rings { &all[..3] } else { &all };
        if oracles.contains(&Oracle::Writes) {
            for kind in if is_broken { needs(arguments.broken) } else { all } {
                views.push((*kind, big_writer(scope, tree, &shared, *kind, views.len())?));
            }
        }
        if oracles.contains(&Oracle::Truncation) {
            truncater(scope, &tree.join("truncated"), &shared)?;
        }
        if !is_broken {
            for number in 0..2 {
                burner(scope, &tree.join(format!("burner-{number}")), &shared)?;
            }
        }
        let truncated = File::create(tree.join("truncated"))?;
        let events = Events::of(&names)?;
        if oracles.contains(&Oracle::Names) {
            let (shared, names) = (&shared, names.clone());
            scope.spawn(move || namer(&names, shared));
        }
        let mut tally = Tally::default();
        let until = Instant::now() + Duration::from_secs(arguments.seconds);
        let ways = [How::Plain, How::Worker, How::Ring, How::Polled];
        let ways = if arguments.no_rings { &ways[..1] } else { &ways[..] };
        while Instant::now() < until && tally.miss.is_none() {
            for oracle in &oracles {
                match oracle {
                    Oracle::Writes => writes(&views, call, &mut tally)?,
                    Oracle::Truncation => truncation(&truncated, &shared, call, &mut tally)?,
                    Oracle::Names => changes_of_names(&names, &events, &shared, call, &mut tally)?,
                    // It takes long, so that it comes seldom.
                    Oracle::Stalled if round.is_multiple_of(STALLED_EVERY) => {
                        let how = ways[(round / STALLED_EVERY) as usize % ways.len()];
                        stalled(tree, how, call, &mut tally)?;
                    }
                    Oracle::Queued if round.is_multiple_of(STALLED_EVERY) => queued(tree, call, &mut tally)?,
                    Oracle::Stalled | Oracle::Queued => continue,
                }
                tally.barriers += 1;
                if tally.miss.is_some() {
                    break;
                }
            }
            round += 1;
        }
        Ok(tally)
    })
}

/// Whose writes a barrier that lacks this check passes over.
fn needs(broken: Option<Broken>) -> &'static [How] {
    let is = |name: &str| broken == SwitchedOff::named(name).map(Broken::Without);
    if is("rings") {
        &[How::Ring]
    } else if is("workers") {
        &[How::Worker]
    } else if is("sqpoll") {
        &[How::Polled]
    } else {
        &[How::Plain]
    }
}

/// How a task writes.
#[derive(Clone, Copy, Debug)]
enum How {
    Plain,
    /// In real time.
    Fifo,
    /// io_uring, in the submitting call.
    Ring,
    /// io_uring, by a worker.
    Worker,
    /// io_uring, by a submission thread.
    Polled,
}

fn big_writer<'scope>(
    scope: &'scope Scope<'scope, '_>,
    tree: &Path,
    shared: &'scope Shared,
    how: How,
    number: usize,
) -> Result<Mapping> {
    let path = tree.join(format!("big-{number}"));
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    file.write_all_at(&vec![0; BIG], 0)?;
    let view = Mapping::for_reading(&file, BIG)?;
    std::thread::Builder::new().name(format!("big-{how:?}")).spawn_scoped(scope, move || {
        let written = match how {
            How::Plain | How::Fifo => write_calls(&file, shared, how),
            How::Ring | How::Worker | How::Polled => write_rings(&file, shared, how),
        };
        written.unwrap_or_else(|error| eprintln!("barrier-in-place: {how:?}: {error:#}"));
    })?;
    Ok(view)
}

fn mark(data: &mut [u8], number: u32) {
    for page in data.chunks_mut(4096) {
        page[..4].copy_from_slice(&number.to_ne_bytes());
        let end = page.len() - 4;
        page[end..].copy_from_slice(&number.to_ne_bytes());
    }
}

fn write_calls(file: &File, shared: &Shared, how: How) -> Result<()> {
    if matches!(how, How::Fifo) {
        let parameters = libc::sched_param { sched_priority: 10 };
        // SAFETY: the structure lives through the call, which concerns this thread alone.
        let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
        ensure!(result == 0, "SCHED_FIFO: {}", std::io::Error::last_os_error());
    }
    let mut data = vec![0; BIG];
    for number in 1.. {
        if !shared.goes_on() {
            break;
        }
        let begun = Instant::now();
        mark(&mut data, number);
        file.write_all_at(&data, 0)?;
        // Half of a processor is left to the others, however slow the machine is.
        if matches!(how, How::Fifo) {
            std::thread::sleep(begun.elapsed().max(Duration::from_millis(3)));
        }
    }
    Ok(())
}

fn write_rings(file: &File, shared: &Shared, how: How) -> Result<()> {
    let mut ring = ring(how)?;
    let mut data = vec![0; BIG];
    for number in 1.. {
        if !shared.goes_on() {
            break;
        }
        mark(&mut data, number);
        ring_write(&mut ring, how, file, &data)?;
        // Workers and submission threads sleep now and then; for one that never does a barrier waits for ever.
        if !matches!(how, How::Ring) {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    Ok(())
}

/// Computes most of the time, after a write.
fn burner<'scope>(scope: &'scope Scope<'scope, '_>, path: &Path, shared: &'scope Shared) -> Result<()> {
    let file = File::create(path)?;
    std::thread::Builder::new().name("burner".to_owned()).spawn_scoped(scope, move || {
        while shared.goes_on() && file.write_all_at(b"x", 0).is_ok() {
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_millis(20) && shared.goes_on() {
                std::hint::spin_loop();
            }
        }
    })?;
    Ok(())
}

fn truncater<'scope>(scope: &'scope Scope<'scope, '_>, path: &Path, shared: &'scope Shared) -> Result<()> {
    let file = File::create(path)?;
    std::thread::Builder::new().name("truncater".to_owned()).spawn_scoped(scope, move || {
        let data = vec![1; PART];
        while shared.goes_on() {
            let written = (0..8).all(|at| file.write_all_at(&data, at * PART as u64).is_ok());
            // ORDERING: SeqCst, as everything between the tasks and the observer here: clear beats fast.
            shared.truncations.fetch_add(1, Ordering::SeqCst);
            let truncated = file.set_len(0).is_ok();
            shared.truncations.fetch_add(1, Ordering::SeqCst);
            if !(written && truncated) {
                eprintln!("barrier-in-place: the truncater gave up");
                break;
            }
        }
    })?;
    Ok(())
}

/// Makes a directory, renames it, removes it; makes a file and removes it. Each step is announced before it is done.
fn namer(names: &Path, shared: &Shared) {
    let act = |step: u32, [first, second, file]: &[PathBuf; 3]| match step {
        1 => fs::create_dir(first),
        2 => fs::rename(first, second),
        3 => fs::remove_dir(second),
        4 => File::create(file).map(drop),
        _ => fs::remove_file(file),
    };
    'numbers: for number in 0.. {
        let paths = names_of(names, number);
        for step in 1..=5 {
            if !shared.goes_on() {
                break 'numbers;
            }
            // ORDERING: as above.
            shared.names.store(STEPS * number + step, Ordering::SeqCst);
            if let Err(error) = act(step, &paths) {
                eprintln!("barrier-in-place: the namer gave up: {error}");
                break 'numbers;
            }
        }
    }
}

fn names_of(names: &Path, number: u32) -> [PathBuf; 3] {
    ["m", "r", "f"].map(|name| names.join(format!("{name}{number}")))
}

type Views = [(How, Mapping)];

fn writes(
    views: &Views,
    call: impl Fn(Duration) -> Result<(), BarrierError>,
    tally: &mut Tally,
) -> Result<()> {
    let number_at = |view: &Mapping, at: usize| -> Result<u32> {
        Ok(u32::from_ne_bytes(view.load(at, 4).as_slice().try_into()?))
    };
    let mut begun = Vec::new();
    let deadline = Instant::now() + Duration::from_millis(20);
    // Until one is seen half-done: that is the moment to try.
    loop {
        begun.clear();
        let mut half_done = 0;
        for (_, view) in views {
            let first = number_at(view, 0)?;
            half_done += u64::from(number_at(view, BIG - 4)? < first);
            begun.push(first);
        }
        if half_done > 0 || Instant::now() > deadline {
            tally.half_done += half_done;
            break;
        }
    }
    call(PATIENCE)?;
    for ((how, view), first) in views.iter().zip(begun) {
        let last = number_at(view, BIG - 4)?;
        if last < first {
            tally.miss = Some(format!(
                "{how:?}: write {first} had begun before the barrier; after it the end is of {last}"
            ));
        }
    }
    Ok(())
}

fn truncation(
    file: &File,
    shared: &Shared,
    call: impl Fn(Duration) -> Result<(), BarrierError>,
    tally: &mut Tally,
) -> Result<()> {
    let is_partial = || file.metadata().map(|metadata| metadata.size() == 0 && metadata.blocks() > 8);
    // ORDERING: as above.
    let now = || shared.truncations.load(Ordering::SeqCst);
    let deadline = Instant::now() + Duration::from_millis(20);
    while Instant::now() < deadline {
        let before = now();
        if before % 2 == 1 && is_partial()? && now() == before {
            tally.half_done += 1;
            call(PATIENCE)?;
            if is_partial()? && now() == before {
                tally.miss =
                    Some("a truncation that had begun before the barrier was not over after it".to_owned());
            }
            return Ok(());
        }
    }
    call(PATIENCE)?;
    Ok(())
}

/// The queue of events of a directory.
struct Events {
    queue: std::os::fd::OwnedFd,
    /// The newest ones, so that who asks for one name does not take away another one's.
    taken: RefCell<VecDeque<(inotify::ReadFlags, Vec<u8>)>>,
}

impl Events {
    fn of(directory: &Path) -> Result<Self> {
        let queue = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let of = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO | inotify::WatchFlags::DELETE;
        inotify::add_watch(queue.as_fd(), directory, of)?;
        Ok(Self { queue, taken: RefCell::default() })
    }

    /// Takes all events; whether one of them is this one, or the queue has run over.
    fn take(&self, what: inotify::ReadFlags, name: &str) -> Result<bool> {
        let mut buffer = [std::mem::MaybeUninit::uninit(); 1 << 14];
        let mut reader = inotify::Reader::new(self.queue.as_fd(), &mut buffer);
        let mut taken = self.taken.borrow_mut();
        let mut has_run_over = false;
        loop {
            match reader.next() {
                Ok(event) => {
                    has_run_over |= event.events().contains(inotify::ReadFlags::QUEUE_OVERFLOW);
                    let of = event.file_name().map(|of| of.to_bytes().to_vec());
                    taken.push_back((event.events(), of.unwrap_or_default()));
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(error) => return Err(error.into()),
            }
        }
        let is_it =
            |(events, of): &(inotify::ReadFlags, Vec<u8>)| events.contains(what) && of == name.as_bytes();
        let found = has_run_over || taken.iter().rev().any(is_it);
        while taken.len() > EVENTS_KEPT {
            taken.pop_front();
        }
        Ok(found)
    }
}

/// What is visible first differs: the number of links of the parent or of the file, or the name. After the barrier all of it is.
fn changes_of_names(
    names: &Path,
    events: &Events,
    shared: &Shared,
    call: impl Fn(Duration) -> Result<(), BarrierError>,
    tally: &mut Tally,
) -> Result<()> {
    use inotify::ReadFlags;
    // A step of each kind in turn.
    let wanted = (tally.barriers % 5) as u32 + 1;
    // ORDERING: as above.
    let now = || shared.names.load(Ordering::SeqCst);
    let exists = |path: &Path| rustix::fs::lstat(path).is_ok();
    let parent_links = || names.metadata().map_or(0, |metadata| metadata.nlink());
    let deadline = Instant::now() + Duration::from_millis(20);
    while Instant::now() < deadline {
        let announced = now();
        let number = announced / STEPS;
        let [first, second, path] = names_of(names, number);
        // To count the links of the file that is removed.
        let file = match (wanted, announced % STEPS) {
            (5, 4 | 5) => rustix::fs::open(&path, OFlags::PATH, rustix::fs::Mode::empty()).ok(),
            _ => None,
        };
        let announced = STEPS * number + wanted;
        while now() == announced - 1 && file.is_some() {}
        if now() != announced {
            continue;
        }
        let has_no_links = || {
            let stat = file.as_ref().and_then(|file| rustix::fs::fstat(file).ok());
            stat.is_some_and(|stat| stat.st_nlink == 0)
        };
        let (what, name) = match wanted {
            1 => (ReadFlags::CREATE, format!("m{number}")),
            2 => (ReadFlags::MOVED_TO, format!("r{number}")),
            3 => (ReadFlags::DELETE, format!("r{number}")),
            4 => (ReadFlags::CREATE, format!("f{number}")),
            _ => (ReadFlags::DELETE, format!("f{number}")),
        };
        let is_whole = || match wanted {
            1 => exists(&first),
            2 => exists(&second) && !exists(&first),
            3 => !exists(&second),
            4 => exists(&path),
            _ => !exists(&path),
        };
        // On btrfs a directory has one link always.
        let is_visible = || match wanted {
            1 => parent_links() > 2 || is_whole(),
            2 => exists(&second) || !exists(&first),
            3 => parent_links() == 2 || is_whole(),
            5 => has_no_links() || is_whole(),
            _ => is_whole(),
        };
        let mut is_seen = is_visible();
        while !is_seen && now() == announced && shared.goes_on() {
            is_seen = is_visible();
        }
        // Else it may have been the next step that was seen.
        if !is_seen || now() != announced {
            continue;
        }
        let told_before = events.take(what, &name)?;
        let was_whole = is_whole();
        if now() != announced {
            continue;
        }
        call(PATIENCE)?;
        tally.half_done += u64::from(!told_before || !was_whole);
        if !told_before && !events.take(what, &name)? {
            tally.miss = Some(format!(
                "{name}: {what:?} was visible before the barrier, and its event is not there after it"
            ));
        }
        if !is_whole() && now() == announced {
            tally.miss =
                Some(format!("{name}: {what:?} was visible in part before the barrier, and is after it"));
        }
        return Ok(());
    }
    call(PATIENCE)?;
    Ok(())
}

/// A write that stalls is not passed over. Where the filesystem never waits in the submitting call (ext4) a worker does all of io_uring's.
fn stalled(
    tree: &Path,
    how: How,
    call: impl Fn(Duration) -> Result<(), BarrierError>,
    tally: &mut Tally,
) -> Result<()> {
    let path = tree.join("stalled");
    // Over what is there: then io_uring need not hand it to a worker.
    fs::write(&path, vec![b'O'; LENGTH])?;
    let before = fs::metadata(&path)?;
    let file = OpenOptions::new().write(true).open(&path)?;
    let write = match how {
        How::Plain | How::Fifo => StalledWrite::begin(file),
        How::Ring | How::Worker | How::Polled => StalledWrite::begin_with(move |data| {
            let mut ring = ring(how)?;
            ring_write(&mut ring, how, &file, data)
        }),
    }?;
    let deadline = Instant::now() + Duration::from_millis(500);
    // Visible: the time has changed. If it has not (a coarse clock, a busy machine) the write need not be seen.
    let time = |of: &fs::Metadata| (of.mtime(), of.mtime_nsec());
    let is_visible = || fs::metadata(&path).is_ok_and(|now| time(&now) != time(&before));
    while !is_visible() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
    if is_visible() {
        // As long as others hold it up, a barrier that would pass over this write cannot show it.
        match call(Duration::from_millis(1500)) {
            Ok(()) => tally.miss = Some(format!("{how:?}: a write that stalls was passed over")),
            Err(BarrierError::Deadline { .. }) => tally.half_done += 1,
            Err(error) => return Err(error.into()),
        }
    }
    write.finish(b'N')?;
    Ok(())
}

/// A write of io_uring is done as far as it goes without waiting; the rest waits for a worker, and the only one is busy elsewhere.
fn queued(tree: &Path, call: impl Fn(Duration) -> Result<(), BarrierError>, tally: &mut Tally) -> Result<()> {
    const ELSEWHERE: usize = 2;
    const FILES: usize = 40;
    let mut files = Vec::new();
    let mut views = Vec::new();
    for number in 0..FILES {
        let path = tree.join(format!("queued-{number}"));
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
        file.write_all_at(&vec![b'O'; LENGTH], 0)?;
        file.sync_all()?;
        // Only the first page is in memory. The last one is written in part, and must be read for that.
        for advice in [libc::POSIX_FADV_DONTNEED, libc::POSIX_FADV_RANDOM] {
            // SAFETY: plain numbers.
            ensure!(unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, advice) } == 0, "posix_fadvise");
        }
        file.read_exact_at(&mut [0], 0)?;
        views.push(Mapping::for_reading(&file, LENGTH)?);
        files.push(file);
    }
    let is_half_done = |view: &Mapping| view.load(0, 1) == b"N" && view.load(LENGTH - 101, 1) == b"O";
    let elsewhere: Vec<File> = (0..ELSEWHERE)
        .map(|_| rustix::fs::memfd_create("elsewhere", rustix::fs::MemfdFlags::CLOEXEC).map(File::from))
        .collect::<Result<_, _>>()?;
    let (tell, submitted) = std::sync::mpsc::channel();
    let write = StalledWrite::begin_with(move |late| {
        let mut ring: IoUring = IoUring::builder().setup_cqsize(64).build(4)?;
        // One that writes to regular files.
        ring.submitter().register_iowq_max_workers(&mut [1, 1])?;
        let data = vec![b'N'; LENGTH - 100];
        let entry = |to: &File, from: &[u8]| {
            opcode::Write::new(types::Fd(to.as_raw_fd()), from.as_ptr(), from.len() as u32).build()
        };
        for busy in &elsewhere {
            // Files in memory cannot be written to without waiting, so a worker of this kind does it; with `ASYNC` it would be of another.
            // SAFETY: the data live until all completions have been seen below.
            unsafe { ring.submission().push(&entry(busy, late)) }.map_err(std::io::Error::other)?;
            ring.submit()?;
        }
        for file in &files {
            // A time that need not change again for a millisecond: to change it would be left to the worker, before anything else. That
            // does not always succeed, so there are many files.
            file.write_all_at(b"O", 0)?;
            // SAFETY: as above.
            unsafe { ring.submission().push(&entry(file, &data)) }.map_err(std::io::Error::other)?;
            ring.submit()?;
        }
        let _ = tell.send(());
        ring.submit_and_wait(ELSEWHERE + FILES)?;
        Ok(())
    })?;
    let _ = submitted.recv_timeout(PATIENCE);
    if let Some(view) = views.iter().find(|view| is_half_done(view)) {
        match call(Duration::from_millis(1500)) {
            Ok(()) if is_half_done(view) => {
                let what = "a write that was done in part, and waits for a worker, was passed over";
                tally.miss = Some(what.to_owned());
            }
            // A worker has done it in the meantime.
            Ok(()) => {}
            Err(BarrierError::Deadline { .. }) => tally.half_done += 1,
            Err(error) => return Err(error.into()),
        }
    }
    write.finish(b'N')?;
    Ok(())
}

fn ring(how: How) -> std::io::Result<IoUring> {
    let mut builder = IoUring::builder();
    if matches!(how, How::Polled) {
        // Milliseconds until it sleeps: a barrier waits for that.
        builder.setup_sqpoll(1);
    }
    builder.build(4)
}

fn ring_write(ring: &mut IoUring, how: How, file: &File, data: &[u8]) -> std::io::Result<()> {
    let flags = if matches!(how, How::Worker) { squeue::Flags::ASYNC } else { squeue::Flags::empty() };
    let length = data.len() as u32;
    let write = opcode::Write::new(types::Fd(file.as_raw_fd()), data.as_ptr(), length).build();
    // SAFETY: the caller's borrow keeps the data until the completion has been seen below.
    unsafe { ring.submission().push(&write.flags(flags)) }.map_err(std::io::Error::other)?;
    ring.submit_and_wait(1)?;
    match ring.completion().next().map(|completion| completion.result()) {
        Some(written) if written == length as i32 => Ok(()),
        other => Err(std::io::Error::other(format!("io_uring: {other:?}"))),
    }
}
