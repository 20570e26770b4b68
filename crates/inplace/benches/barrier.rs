//! How long a barrier takes: `cargo bench -p highwater-inplace --bench barrier -- [DIR]`, as root, on a machine that does nothing else.
//!
//! Idle with 100, 1,000 and 10,000 threads on the machine, and with 10,000 open files; busy with three writers of 1 MiB, one of them in real
//! time, and two programs that compute after a write. Prints a table in Markdown, and takes less than two minutes. What it makes is in a
//! directory of its own below DIR, by default that for temporary files, and goes away.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use highwater_inplace::barrier::FilesystemBarrier;
use rustix::process::{Resource, Rlimit};

const DEADLINE: Option<Duration> = Some(Duration::from_secs(60));
/// No row takes longer.
const ROW: Duration = Duration::from_secs(15);
const FILES: usize = 10_000;
const BIG: usize = 1 << 20;

type Outcome<T = ()> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Outcome {
    let directory = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let directory = directory.map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::Builder::new().prefix("highwater-bench-").tempdir_in(directory)?;
    let limit = FILES as u64 + 500;
    let maximum = rustix::process::getrlimit(Resource::Nofile).maximum.map(|maximum| maximum.max(limit));
    rustix::process::setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum })?;

    let begun = Instant::now();
    let barrier = FilesystemBarrier::new(File::open(directory.path())?)?;
    let first = begun.elapsed();
    println!("| machine | threads | barriers | looks each | p50, ms | p99, ms | longest, ms |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    let threads = Threads::default();
    threads.up_to(100)?;
    measure("idle", &barrier, 2000)?;
    let mut files = Vec::new();
    for number in 0..FILES {
        let path = directory.path().join(number.to_string());
        files.push(OpenOptions::new().create(true).append(true).open(path)?);
    }
    measure("idle, 10,000 open files", &barrier, 2000)?;
    threads.up_to(1000)?;
    measure("idle, 10,000 open files", &barrier, 1000)?;
    drop(files);
    measure("idle", &barrier, 1000)?;
    threads.up_to(10_000)?;
    measure("idle", &barrier, 500)?;
    drop(threads);
    let writes = busy(directory.path(), &barrier)?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!();
    println!(
        "To prepare the first barrier of a process took {:.0} ms. Busy, the slowest hundredth of the writes took {:.1} ms, the longest \
         one {:.1} ms. Load at the end: {}.",
        milliseconds(first),
        milliseconds(writes[(writes.len() - 1) * 99 / 100]),
        milliseconds(writes[writes.len() - 1]),
        load.split(' ').take(3).collect::<Vec<_>>().join(" ")
    );
    Ok(())
}

/// Threads that do nothing, until it is dropped.
#[derive(Default)]
struct Threads(Mutex<Vec<std::thread::JoinHandle<()>>>, std::sync::Arc<AtomicBool>);

impl Threads {
    /// So many on the whole machine.
    fn up_to(&self, wanted: usize) -> Outcome {
        for _ in tasks()?..wanted {
            let stop = self.1.clone();
            let parked = move || {
                // ORDERING: nothing but the flag itself.
                while !stop.load(Ordering::Relaxed) {
                    std::thread::park();
                }
            };
            let thread = std::thread::Builder::new().stack_size(16 << 10).spawn(parked)?;
            self.0.lock().map_err(|_| "a thread panicked")?.push(thread);
        }
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        // ORDERING: nothing but the flag itself.
        self.1.store(true, Ordering::Relaxed);
        for thread in self.0.get_mut().map(std::mem::take).unwrap_or_default() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

/// Returns how long the big writes took, in order.
fn busy(directory: &Path, barrier: &FilesystemBarrier) -> Outcome<Vec<Duration>> {
    let stop = AtomicBool::new(false);
    let writes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let (stop, writes) = (&stop, &writes);
        // ORDERING: nothing but the flag itself.
        let goes_on = move || !stop.load(Ordering::Relaxed);
        for number in 0..3 {
            scope.spawn(move || -> io::Result<()> {
                let is_in_real_time = number == 0;
                if is_in_real_time {
                    let parameters = libc::sched_param { sched_priority: 10 };
                    // SAFETY: the structure lives through the call, which concerns this thread alone.
                    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
                }
                let file = File::create(directory.join(format!("big-{number}")))?;
                let data = vec![number; BIG];
                let mut times = Vec::new();
                while goes_on() {
                    let begun = Instant::now();
                    file.write_all_at(&data, 0)?;
                    times.push(begun.elapsed());
                    // Else it would keep a processor for itself.
                    if is_in_real_time {
                        std::thread::sleep(Duration::from_millis(3));
                    }
                }
                writes.lock().map_err(|_| io::Error::other("a thread panicked"))?.append(&mut times);
                Ok(())
            });
        }
        for number in 0..2 {
            scope.spawn(move || -> io::Result<()> {
                let file = File::create(directory.join(format!("small-{number}")))?;
                while goes_on() {
                    file.write_all_at(b"x", 0)?;
                    let begun = Instant::now();
                    while begun.elapsed() < Duration::from_millis(50) && goes_on() {
                        std::hint::spin_loop();
                    }
                }
                Ok(())
            });
        }
        let outcome = measure("busy", barrier, 1000);
        // ORDERING: as above.
        stop.store(true, Ordering::Relaxed);
        outcome
    })?;
    let mut writes = writes.into_inner().map_err(|_| "a thread panicked")?;
    writes.sort();
    if writes.is_empty() { Err("nothing was written".into()) } else { Ok(writes) }
}

fn measure(what: &str, barrier: &FilesystemBarrier, count: u32) -> Outcome {
    let mut times = Vec::new();
    let mut scans = 0;
    let until = Instant::now() + ROW;
    while times.len() < count as usize && (Instant::now() < until || times.is_empty()) {
        let begun = Instant::now();
        scans += barrier.synchronize(DEADLINE)?.scans;
        times.push(begun.elapsed());
    }
    times.sort();
    let at = |percent: usize| milliseconds(times[(times.len() - 1) * percent / 100]);
    println!(
        "| {what} | {} | {} | {:.1} | {:.3} | {:.3} | {:.3} |",
        tasks()?,
        times.len(),
        f64::from(scans) / times.len() as f64,
        at(50),
        at(99),
        at(100),
    );
    Ok(())
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// How many there are on the machine.
fn tasks() -> io::Result<usize> {
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let all = load.split(['/', ' ']).nth(4).and_then(|text| text.parse().ok());
    all.ok_or_else(|| io::Error::other("no number of tasks in /proc/loadavg"))
}
