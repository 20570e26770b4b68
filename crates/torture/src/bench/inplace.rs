//! What it costs to be watched in place: work in a tree that nobody watches, that Highwater tracks by fanotify, of which the same events are
//! thrown away, and that inotifywait, fatrace and Watchman watch. One at a time, since a watched filesystem is watched for everybody.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::BenchArgs;
use super::changes::{self, Watchman};
use super::mount::{archive, settle, tool};
use super::table::{Table, ms, seconds};
use crate::cleanup::Guard;
use crate::product::{Product, Tracking};
use crate::scratch::Scratch;

const POLL_EVERY: Duration = Duration::from_secs(1);
const CONSUMER: &str = "bench";
const CONTENDERS: [&str; 6] =
    ["untracked", "highwater", "events, thrown away", "inotifywait -r", "fatrace", "Watchman"];

/// Who watches, running.
enum Watcher {
    Nobody,
    Highwater { product: Product, tracking: Tracking },
    Program { child: Arc<Mutex<Child>>, pid: u32, _end: Guard },
    Watchman { watchman: Watchman, _end: Guard },
}

/// Working in the tree: wall time, and CPU of the work, the watcher and the consumer together.
pub(super) fn work(arguments: &BenchArgs, scratch: &Scratch) -> Result<String> {
    let archive = archive(arguments, scratch)?;
    let files = arguments.files;
    let names = CONTENDERS.map(str::to_owned);
    let mut wall = Table::new(format!("Work in a tree of {files} files, wall time, s"), names.clone());
    let mut cpu = Table::new(
        format!(
            "The same, CPU time of the work, of the watcher and of its consumer, s. Highwater and Watchman are asked once a second{}",
            ", by a command each time"
        ),
        names,
    );
    for round in 0..arguments.rounds {
        for turn in 0..CONTENDERS.len() {
            let column = (turn + round) % CONTENDERS.len();
            let name = CONTENDERS[column];
            eprintln!("bench: in place, round {}, {name}", round + 1);
            let dir = scratch.tree.join("work");
            fs::create_dir_all(&dir)?;
            let watcher = match Watcher::start(name, arguments, scratch, &dir) {
                Ok(watcher) => watcher,
                // A peer may be missing, and then is in no round.
                Err(error) if name != "highwater" => {
                    eprintln!("bench: without {name}: {error:#}");
                    continue;
                }
                Err(error) => return Err(error),
            };
            for (step, work) in steps(&archive, arguments) {
                settle(scratch)?;
                let (took, used) =
                    measure(&watcher, || work(&dir)).with_context(|| format!("{step}, {name}"))?;
                wall.add(step, column, took);
                cpu.add(step, column, used);
            }
            watcher.stop()?;
            fs::remove_dir_all(&dir)?;
        }
    }
    Ok(wall.show() + &cpu.show())
}

type Step<'a> = Box<dyn Fn(&Path) -> Result<()> + 'a>;

/// In this order, each on what the one before it has left.
fn steps<'a>(archive: &'a Path, arguments: &'a BenchArgs) -> Vec<(&'static str, Step<'a>)> {
    fn step<'a>(work: impl Fn(&Path) -> Result<()> + 'a) -> Step<'a> {
        Box::new(work)
    }
    const SQLITE: &str = "import sqlite3,sys
c = sqlite3.connect('bench.db', isolation_level=None)
c.execute('pragma synchronous=' + sys.argv[1])
c.execute('create table if not exists t(a, b)')
for i in range(int(sys.argv[2])):
    c.execute('insert into t values(?, ?)', (i, 'x' * 100))
";
    let git = |work: &'static [&'static str]| {
        step(move |dir| {
            let identity = ["-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0"];
            tool(&dir.join("files"), "git", &[&identity[..], work].concat())
        })
    };
    vec![
        ("untar", step(|dir| tool(dir, "tar", &["-xf", &archive.to_string_lossy()]))),
        ("git status", git(&["status", "--short"])),
        (
            "change every 4th file, git commit",
            step(move |dir| {
                let files = dir.join("files");
                tool(
                    &files,
                    "sh",
                    &["-c", "find . -name 'f*[048].txt' | while read f; do echo more >> $f; done"],
                )?;
                let identity =
                    ["-c", "user.name=bench", "-c", "user.email=bench@localhost", "-c", "gc.auto=0"];
                tool(&files, "git", &[&identity[..], &["commit", "-qam", "Every fourth"]].concat())
            }),
        ),
        (
            "git checkout, back and forth",
            step(move |dir| {
                let files = dir.join("files");
                tool(&files, "git", &["checkout", "-q", "HEAD~1"])?;
                tool(&files, "git", &["checkout", "-q", "-"])
            }),
        ),
        ("git gc", git(&["gc", "-q", "--prune=now"])),
        ("cargo build", step(|dir| tool(&dir.join("files/crate"), "cargo", &["build", "--offline", "-q"]))),
        (
            "fio: 4 KiB random writes, buffered",
            step(move |dir| {
                let size = format!("--size={}m", arguments.fio_mib.min(256));
                let amount = format!("--io_size={}m", arguments.fio_mib);
                let common =
                    ["--name=bench", "--filename=fio.data", "--ioengine=psync", "--rw=randwrite", "--bs=4k"];
                tool(dir, "fio", &[&common[..], &[&size, &amount, "--randseed=1"]].concat())
            }),
        ),
        ("SQLite: 500 commits", step(|dir| tool(dir, "python3", &["-c", SQLITE, "full", "500"]))),
        (
            "SQLite: 5000 commits, not synced",
            step(|dir| tool(dir, "python3", &["-c", SQLITE, "off", "5000"])),
        ),
        ("rm -rf", step(|dir| tool(dir, "rm", &["-rf", "files"]))),
    ]
}

/// Wall time and CPU time. The consumer polls beside the work, and once after it: what has been put off counts too.
fn measure(watcher: &Watcher, work: impl FnOnce() -> Result<()>) -> Result<(f64, f64)> {
    let before = children_cpu() + watcher.cpu()?;
    let over = AtomicBool::new(false);
    let took = std::thread::scope(|scope| {
        let poller = scope.spawn(|| -> Result<()> {
            let mut next = Instant::now() + POLL_EVERY;
            // ORDERING: a flag; the thread is joined.
            while !over.load(Ordering::Relaxed) {
                if Instant::now() >= next {
                    watcher.poll()?;
                    next = (next + POLL_EVERY).max(Instant::now());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            Ok(())
        });
        let took = seconds(work);
        // ORDERING: as above.
        over.store(true, Ordering::Relaxed);
        let polled = poller.join().map_err(|_| anyhow::anyhow!("the poller panicked"))?;
        polled?;
        took
    })?;
    watcher.poll()?;
    // Programs that are told of each event have a moment to read the last ones.
    std::thread::sleep(Duration::from_millis(300));
    Ok((took, children_cpu() + watcher.cpu()? - before))
}

impl Watcher {
    fn start(name: &str, arguments: &BenchArgs, scratch: &Scratch, dir: &Path) -> Result<Self> {
        let program = |program: &str, given: &[&str]| -> Result<Self> {
            let mut child = Command::new(program)
                .args(given)
                .current_dir(dir)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .with_context(|| format!("cannot run {program}"))?;
            std::thread::sleep(Duration::from_millis(300));
            ensure!(child.try_wait()?.is_none(), "{program} has ended at once");
            let pid = child.id();
            let child = Arc::new(Mutex::new(child));
            let end = Arc::clone(&child);
            Ok(Self::Program { child, pid, _end: Guard::new(move || kill(&end)) })
        };
        let watcher = match name {
            "untracked" => Self::Nobody,
            "highwater" => {
                let mut given = arguments.product.clone();
                given.track_args.extend(["--source".to_owned(), "fanotify".to_owned()]);
                fs::create_dir_all(&scratch.state)?;
                // Each round has a directory of its own, which the state of the one before would refuse.
                let state = scratch.state.join("in-place");
                if state.exists() {
                    fs::remove_dir_all(&state)?;
                }
                let product = Product::new(&given, dir, &state, &scratch.evidence)?;
                let (tracking, _) = product.track()?;
                product.add_consumer(CONSUMER).map_err(|error| anyhow::anyhow!("{error}"))?;
                Self::Highwater { product, tracking }
            }
            "events, thrown away" => {
                let torture = std::env::current_exe().context("cannot find this program")?;
                program(&torture.to_string_lossy(), &["discard-events", &dir.to_string_lossy()])?
            }
            "inotifywait -r" => program(
                "inotifywait",
                &["-r", "-m", "-q", "-e", "modify,attrib,close_write,move,create,delete", "."],
            )?,
            // What it can do on the filesystem of its working directory: everything but opens and reads.
            "fatrace" => program("fatrace", &["--current-mount", "--filter=WCD+<>"])?,
            _ => {
                let watchman = Watchman::start(dir)?;
                let pid = watchman.pid()?;
                // For a signal; otherwise it has been asked to end by then.
                let end = move || {
                    let is_it = fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name == b"watchman\n");
                    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw).filter(|_| is_it) {
                        let _ = kill_process(pid, Signal::TERM);
                    }
                };
                Self::Watchman { watchman, _end: Guard::new(end) }
            }
        };
        watcher.poll()?;
        Ok(watcher)
    }

    /// What its consumer does once a second. The others write to their output what they hear.
    fn poll(&self) -> Result<()> {
        match self {
            Self::Nobody | Self::Program { .. } => Ok(()),
            Self::Highwater { product, .. } => {
                let answer = product.changes(CONSUMER).map_err(|error| anyhow::anyhow!("{error}"))?;
                product.ack(CONSUMER, &answer.cursor).map_err(|error| anyhow::anyhow!("{error}"))
            }
            Self::Watchman { watchman, .. } => watchman.poll(),
        }
    }

    /// CPU time of the watcher's own process so far, seconds.
    fn cpu(&self) -> Result<f64> {
        match self {
            Self::Nobody => Ok(0.0),
            Self::Highwater { tracking, .. } => process_cpu(tracking.pid()),
            Self::Program { pid, .. } => process_cpu(*pid),
            Self::Watchman { watchman, .. } => process_cpu(watchman.pid()?),
        }
    }

    fn stop(self) -> Result<()> {
        match self {
            Self::Nobody => Ok(()),
            Self::Highwater { product, tracking } => product.stop(tracking),
            Self::Program { child, .. } => {
                kill(&child);
                Ok(())
            }
            Self::Watchman { watchman, .. } => {
                drop(watchman);
                Ok(())
            }
        }
    }
}

fn kill(child: &Mutex<Child>) {
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
    // Killed already, the second time.
    let _ = child.kill();
    let _ = child.wait();
}

/// User and system time of a process, of all its threads, and of the children that it has waited for.
fn process_cpu(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("the watcher has ended")?;
    // The name of the command may have anything in it, a parenthesis too.
    let (_, fields) = stat.rsplit_once(')').context("no command in stat")?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks: f64 = fields[11..15].iter().filter_map(|field| field.parse::<f64>().ok()).sum();
    // SAFETY: no pointers.
    let per_second = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    Ok(ticks / per_second as f64)
}

/// User and system time of the commands that this process has run and waited for.
fn children_cpu() -> f64 {
    // SAFETY: the kernel fills the structure.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Start and catch-up on a large tree, against programs that look at everything, with warm caches.
pub(super) fn large(arguments: &BenchArgs, scratch: &Scratch) -> Result<String> {
    let files = arguments.large;
    eprintln!("bench: making two trees of {files} files");
    let home = scratch.tree.join("large");
    let (tracked, copy) = (home.join("tracked"), home.join("copy"));
    changes::make(&tracked, files)?;
    let status = Command::new("cp").arg("-a").arg(&tracked).arg(&copy).status()?;
    ensure!(status.success(), "cp -a failed");
    settle(scratch)?;
    let mut given = arguments.product.clone();
    given.track_args.extend(["--source".to_owned(), "fanotify".to_owned()]);
    fs::create_dir_all(&scratch.state)?;
    let product = Product::new(&given, &tracked, &scratch.state.join("large"), &scratch.evidence)?;
    let title = format!("{files} files in place, ms (less is better)");
    let mut table = Table::new(title, ["highwater", "find -newerct", "rsync -n"].map(str::to_owned));
    let ask = |since: &str| product.changes_since(since).map_err(|error| anyhow::anyhow!("{error}"));
    let (mut tracking, first) = product.track()?;
    table.add("first start", 0, ms(first));
    for round in 0..arguments.rounds {
        eprintln!("bench: large tree, round {}", round + 1);
        let since = ask("now")?.cursor;
        product.stop(tracking)?;
        // What happened before the gap is behind its slack.
        std::thread::sleep(Duration::from_secs(4));
        for number in 0..100 {
            fs::write(tracked.join(changes::name(number * (files / 100))), format!("round {round}"))?;
        }
        settle(scratch)?;
        let changed = tracked.join(changes::name(0));
        let since_ns = fs::metadata(&changed)?.ctime();
        // Warm for everyone.
        changes::quiet(Command::new("find").arg(&home).args(["-newerct", "@1"]).stdout(Stdio::null()))?;
        let mut turns = [0, 1, 2];
        turns.rotate_left(round % 3);
        let mut again = None;
        for turn in turns {
            match turn {
                0 => {
                    let (tracking, start) = product.track()?;
                    let begun = Instant::now();
                    let answer = ask(&since)?;
                    table.add("start after a clean stop", 0, ms(start));
                    table.add("catch-up: start and first answer", 0, ms(start + begun.elapsed()));
                    ensure!(!answer.fresh, "fresh after a clean stop");
                    let missed = (0..100)
                        .map(|number| changes::name(number * (files / 100)))
                        .find(|path| !crate::line::covers(&answer.lines, path.as_bytes()));
                    ensure!(missed.is_none(), "highwater did not tell {missed:?}");
                    again = Some(tracking);
                }
                1 => {
                    let since = format!("@{}", since_ns - 1);
                    let mut find = Command::new("find");
                    find.arg(&tracked).args(["-newerct", &since]);
                    let took = seconds(|| changes::quiet(&mut find))?;
                    table.add("catch-up: start and first answer", 1, took * 1e3);
                }
                _ => {
                    let mut rsync = Command::new("rsync");
                    rsync.args(["-an", "--delete", "--out-format=%n"]);
                    rsync.arg(format!("{}/", tracked.display())).arg(format!("{}/", copy.display()));
                    let took = seconds(|| changes::quiet(&mut rsync))?;
                    table.add("catch-up: start and first answer", 2, took * 1e3);
                }
            }
        }
        tracking = again.context("it has its turn in every round")?;
    }
    product.stop(tracking)?;
    fs::remove_dir_all(&home)?;
    Ok(table.show())
}
