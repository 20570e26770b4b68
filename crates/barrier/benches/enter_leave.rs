//! What a section costs, next to what else could be used for it; and what a barrier costs.
//!
//! ```text
//! cargo bench -p highwater-barrier --bench enter_leave
//! cargo bench -p highwater-barrier --bench enter_leave -- --only NAME COUNT
//! ```
//!
//! The second form runs COUNT sections and nothing else, for callgrind: the difference between two counts is the
//! number of instructions.
//!
//! Every contender does "begin, compiler fence, end" in a function that is not inlined, called in a loop; `empty` is
//! that function without begin and end. Rounds of all contenders are interleaved, so that a machine that slows down
//! slows all of them. Medians over the rounds, with the 10th and 90th percentile.
//!
//! liburcu is a C program (`liburcu.c`) that is compiled with the system's compiler when the benchmark runs (Debian:
//! liburcu-dev); without it, it is left out.

use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, compiler_fence};
use std::sync::{Barrier, LazyLock, RwLock};
use std::thread;
use std::time::Instant;

use highwater_barrier::{FenceKind, WriteBarrier};

const ROUNDS: usize = 21;
const SECTIONS: u64 = 1_000_000;
/// How long barriers are repeated: long enough that busy threads are scheduled, whatever else the machine does.
const BARRIERS_MS: u64 = 500;

static MEMBARRIER: LazyLock<WriteBarrier> =
    LazyLock::new(|| WriteBarrier::with_fence(FenceKind::Membarrier).expect("a kernel with membarrier(2)"));
static SEQ_CST: LazyLock<WriteBarrier> =
    LazyLock::new(|| WriteBarrier::with_fence(FenceKind::SeqCst).expect("always available"));
static STD: RwLock<()> = RwLock::new(());
static PARKING_LOT: parking_lot::RwLock<()> = parking_lot::RwLock::new(());

#[inline(never)]
fn empty() {
    compiler_fence(Ordering::SeqCst);
}

#[inline(never)]
fn enter(barrier: &WriteBarrier) {
    let _section = barrier.enter();
    compiler_fence(Ordering::SeqCst);
}

#[inline(never)]
fn enter_owned(barrier: &WriteBarrier) {
    let _section = barrier.enter_owned();
    compiler_fence(Ordering::SeqCst);
}

#[inline(never)]
fn epoch() {
    let _guard = crossbeam_epoch::pin();
    compiler_fence(Ordering::SeqCst);
}

#[inline(never)]
fn std_read() {
    let _guard = STD.read();
    compiler_fence(Ordering::SeqCst);
}

#[inline(never)]
fn parking_lot_read() {
    let _guard = PARKING_LOT.read();
    compiler_fence(Ordering::SeqCst);
}

fn repeat(section: impl Fn(), count: u64) {
    for _ in 0..count {
        section();
    }
}

/// A name and a loop of that many sections.
type Contender = (&'static str, fn(u64));

const CONTENDERS: [Contender; 7] = [
    ("empty", |count| repeat(empty, count)),
    ("enter (membarrier)", |count| {
        let barrier = &*MEMBARRIER;
        repeat(|| enter(barrier), count);
    }),
    ("enter (SeqCst)", |count| {
        let barrier = &*SEQ_CST;
        repeat(|| enter(barrier), count);
    }),
    ("enter_owned (membarrier)", |count| {
        let barrier = &*MEMBARRIER;
        repeat(|| enter_owned(barrier), count);
    }),
    ("crossbeam-epoch pin", |count| repeat(epoch, count)),
    ("parking_lot RwLock read", |count| repeat(parking_lot_read, count)),
    ("std RwLock read", |count| repeat(std_read, count)),
];

/// Nanoseconds for one section, `threads` threads at once; the slowest thread counts.
fn time_sections(sections: fn(u64), threads: usize) -> f64 {
    let start = Barrier::new(threads);
    let run = || {
        sections(10_000);
        start.wait();
        let begin = Instant::now();
        sections(black_box(SECTIONS));
        begin.elapsed().as_secs_f64() * 1e9 / SECTIONS as f64
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no contender panics")).fold(0.0, f64::max)
    })
}

/// Microseconds for each of many barriers, while `busy` other threads enter and leave sections.
fn time_barriers(synchronize: fn(), sections: fn(u64), busy: usize) -> Vec<f64> {
    let stop = AtomicBool::new(false);
    let running = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..busy {
            scope.spawn(|| {
                sections(1_000);
                running.fetch_add(1, Ordering::Relaxed);
                while !stop.load(Ordering::Relaxed) {
                    sections(1_000);
                }
            });
        }
        while running.load(Ordering::Relaxed) < busy {
            thread::yield_now();
        }
        let mut samples = Vec::new();
        let all = Instant::now();
        while all.elapsed().as_millis() < u128::from(BARRIERS_MS) {
            let begin = Instant::now();
            synchronize();
            samples.push(begin.elapsed().as_secs_f64() * 1e6);
        }
        stop.store(true, Ordering::Relaxed);
        samples
    })
}

struct Liburcu(PathBuf);

impl Liburcu {
    fn compile() -> Result<Self, String> {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("liburcu");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/liburcu.c");
        let compiled = Command::new("cc")
            .args(["-O2", "-Wall", "-Wextra", "-pthread", "-o"])
            .arg(&program)
            .args([source, "-lurcu-memb"])
            .output()
            .map_err(|error| format!("cc: {error}"))?;
        if compiled.status.success() {
            Ok(Self(program))
        } else {
            Err(String::from_utf8_lossy(&compiled.stderr).into_owned())
        }
    }

    fn run(&self, what: &str, threads: usize, count: u64) -> Vec<f64> {
        let output = Command::new(&self.0)
            .args([what, &threads.to_string(), &count.to_string()])
            .output()
            .expect("the program was just compiled");
        let output = String::from_utf8(output.stdout).expect("the program prints numbers");
        output.lines().map(|line| line.parse().expect("the program prints numbers")).collect()
    }
}

/// A row of a table: median, 10th and 90th percentile, and the largest.
fn print_row(name: &str, mut samples: Vec<f64>) {
    samples.sort_by(f64::total_cmp);
    let at = |tenths: usize| samples[(samples.len() - 1) * tenths / 10];
    println!("| {name} | {:.2} | {:.2} | {:.2} | {:.2} |", at(5), at(1), at(9), at(10));
}

fn bench_sections(liburcu: Option<&Liburcu>) {
    for threads in [1, 2] {
        let mut samples = vec![Vec::new(); CONTENDERS.len()];
        let mut samples_of_liburcu = Vec::new();
        for _ in 0..ROUNDS {
            for ((_, sections), samples) in CONTENDERS.iter().zip(&mut samples) {
                samples.push(time_sections(*sections, threads));
            }
            if let Some(liburcu) = liburcu {
                samples_of_liburcu.extend(liburcu.run("sections", threads, SECTIONS));
            }
        }
        println!(
            "\n| section, {threads} thread(s) | median ns | p10 | p90 | max |\n|---|---:|---:|---:|---:|"
        );
        for ((name, _), samples) in CONTENDERS.iter().zip(samples) {
            print_row(name, samples);
        }
        if liburcu.is_some() {
            print_row("liburcu-memb", samples_of_liburcu);
        }
    }
}

fn bench_barriers(liburcu: Option<&Liburcu>) {
    println!("\n| barrier | median µs | p10 | p90 | max |\n|---|---:|---:|---:|---:|");
    for busy in [0, 1, 2] {
        let samples = time_barriers(|| MEMBARRIER.synchronize(), CONTENDERS[1].1, busy);
        print_row(&format!("synchronize (membarrier), {busy} busy thread(s)"), samples);
        let samples = time_barriers(|| SEQ_CST.synchronize(), CONTENDERS[2].1, busy);
        print_row(&format!("synchronize (SeqCst), {busy} busy thread(s)"), samples);
        if let Some(liburcu) = liburcu {
            let samples = liburcu.run("barriers", busy, BARRIERS_MS);
            print_row(&format!("liburcu-memb synchronize_rcu, {busy} busy thread(s)"), samples);
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let Some(only) = arguments.iter().position(|argument| argument == "--only") {
        let (name, count) = (&arguments[only + 1], &arguments[only + 2]);
        let contender = CONTENDERS.iter().find(|(of, _)| of == name).expect("NAME is a contender");
        contender.1(count.parse().expect("COUNT is a number"));
        return;
    }
    // `cargo test --all-targets` runs this without --bench: compiling it was the test.
    if arguments.iter().any(|argument| argument == "--bench") {
        let liburcu = Liburcu::compile().inspect_err(|error| println!("liburcu is left out: {error}")).ok();
        bench_sections(liburcu.as_ref());
        bench_barriers(liburcu.as_ref());
    }
}
