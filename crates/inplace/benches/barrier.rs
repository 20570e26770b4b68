//! How long a barrier takes: `cargo bench -p highwater-inplace --bench barrier -- [DIR]`, as root.
//!
//! Idle with what the machine runs, with 1,000 and 10,000 more threads and 10,000 open files, and busy with three writers of 1 MiB and two
//! programs that compute after a write.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use highwater_inplace::barrier::FilesystemBarrier;

const DEADLINE: Option<Duration> = Some(Duration::from_secs(60));

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let directory = directory.map_or_else(std::env::temp_dir, PathBuf::from);
    let directory = tempfile::Builder::new().prefix("highwater-bench-").tempdir_in(directory)?;
    let begun = Instant::now();
    let barrier = FilesystemBarrier::new(File::open(directory.path())?)?;
    println!("prepare {:>21.1} ms", begun.elapsed().as_secs_f64() * 1e3);
    measure("idle", &barrier, 2000)?;
    let mut files = Vec::new();
    for number in 0..10_000 {
        match OpenOptions::new().create(true).append(true).open(directory.path().join(number.to_string())) {
            Ok(file) => files.push(file),
            // The limit of descriptors: say how many there were.
            Err(error) if error.raw_os_error() == Some(libc::EMFILE) => break,
            Err(error) => return Err(error.into()),
        }
    }
    measure(&format!("idle, {} open files", files.len()), &barrier, 1000)?;
    for threads in [1_000, 9_000] {
        for _ in 0..threads {
            std::thread::Builder::new().stack_size(16 << 10).spawn(std::thread::park)?;
        }
        measure(&format!("idle, {} threads", tasks()?), &barrier, 300)?;
    }
    drop(files);
    busy(directory.path(), &barrier)?;
    Ok(())
}

fn busy(directory: &Path, barrier: &FilesystemBarrier) -> Result<(), Box<dyn std::error::Error>> {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // ORDERING: nothing but the flag itself.
        let goes_on = || !stop.load(Ordering::Relaxed);
        for number in 0..3 {
            scope.spawn(move || -> io::Result<()> {
                let file = File::create(directory.join(format!("big-{number}")))?;
                let data = vec![number; 1 << 20];
                while goes_on() {
                    file.write_all_at(&data, 0)?;
                }
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
        let outcome = measure("busy", barrier, 500);
        stop.store(true, Ordering::Relaxed);
        outcome
    })
}

fn measure(what: &str, barrier: &FilesystemBarrier, count: u32) -> Result<(), Box<dyn std::error::Error>> {
    let mut times = Vec::new();
    let mut scans = 0;
    for _ in 0..count {
        let begun = Instant::now();
        scans += barrier.synchronize(DEADLINE)?.scans;
        times.push(begun.elapsed());
    }
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!(
        "{what:<24} p50 {:>8.3} ms  p99 {:>8.3} ms  max {:>8.3} ms  {:.1} looks each, {count} barriers",
        at(50),
        at(99),
        at(100),
        f64::from(scans) / f64::from(count)
    );
    Ok(())
}

fn tasks() -> io::Result<usize> {
    let load = std::fs::read_to_string("/proc/loadavg")?;
    let all = load.split(['/', ' ']).nth(4).and_then(|text| text.parse().ok());
    all.ok_or_else(|| io::Error::other("no number of tasks in /proc/loadavg"))
}
