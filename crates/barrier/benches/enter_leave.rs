//! What a section costs, next to what else could be used for it; and what a barrier costs.
//!
//! ```text
//! cargo bench -p highwater-barrier
//! cargo bench -p highwater-barrier -- --only NAME COUNT     # COUNT sections and nothing else, for callgrind
//! ```
//!
//! Every contender does "begin, compiler fence, end" in a function that is not inlined, called in a loop; `empty` is
//! that function without begin and end. Rounds of all contenders are interleaved, so that a machine that slows down
//! slows all of them. Medians over the rounds, with the 10th and 90th percentile.
//!
//! liburcu is compiled from `liburcu.c` with the system's C compiler when the benchmark runs (Debian: liburcu-dev);
//! without it, it is left out.

use std::ffi::{CStr, CString, c_ulong, c_void};
use std::hint::black_box;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering, compiler_fence};
use std::sync::{Barrier, LazyLock, RwLock};
use std::thread;
use std::time::Instant;

use highwater_barrier::{FenceKind, WriteBarrier};

const ROUNDS: usize = 21;
const SECTIONS: u64 = 1_000_000;
const BARRIERS: usize = 2_000;

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

struct Liburcu {
    register: extern "C" fn(),
    unregister: extern "C" fn(),
    synchronize: extern "C" fn(),
    sections: extern "C" fn(c_ulong),
}

static LIBURCU: LazyLock<Result<Liburcu, String>> = LazyLock::new(Liburcu::load);

impl Liburcu {
    fn load() -> Result<Self, String> {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/liburcu.c");
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("liburcu_contender.so");
        let compiled = Command::new("cc")
            .args(["-O2", "-shared", "-fPIC", "-Wl,-z,now", "-o"])
            .arg(&library)
            .args([source, "-lurcu-memb"])
            .output()
            .map_err(|error| format!("cc: {error}"))?;
        if !compiled.status.success() {
            return Err(String::from_utf8_lossy(&compiled.stderr).into_owned());
        }
        let path = CString::new(library.to_str().ok_or("a path that is not UTF-8")?)
            .map_err(|error| error.to_string())?;
        // SAFETY: `path` is a string of C; the library has no constructors but liburcu's own.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW) };
        let symbol = |name: &CStr| {
            // SAFETY: `handle` is null, which finds nothing, or a library that is never closed.
            let symbol: *mut c_void = unsafe { libc::dlsym(handle, name.as_ptr()) };
            if symbol.is_null() { Err(format!("{name:?} was not found")) } else { Ok(symbol) }
        };
        // SAFETY: benches/liburcu.c defines the four with these signatures.
        unsafe {
            Ok(Self {
                register: std::mem::transmute::<*mut c_void, extern "C" fn()>(symbol(c"contender_register")?),
                unregister: std::mem::transmute::<*mut c_void, extern "C" fn()>(symbol(
                    c"contender_unregister",
                )?),
                synchronize: std::mem::transmute::<*mut c_void, extern "C" fn()>(symbol(
                    c"contender_synchronize",
                )?),
                sections: std::mem::transmute::<*mut c_void, extern "C" fn(c_ulong)>(symbol(
                    c"contender_sections",
                )?),
            })
        }
    }
}

#[derive(Clone, Copy)]
struct Contender {
    name: &'static str,
    sections: fn(u64),
}

fn sections_of(section: impl Fn(), count: u64) {
    for _ in 0..count {
        section();
    }
}

fn contenders() -> Vec<Contender> {
    let mut contenders = vec![
        Contender { name: "empty", sections: |n| sections_of(empty, n) },
        Contender { name: "enter (membarrier)", sections: |n| sections_of(|| enter(&MEMBARRIER), n) },
        Contender { name: "enter (SeqCst)", sections: |n| sections_of(|| enter(&SEQ_CST), n) },
        Contender {
            name: "enter_owned (membarrier)",
            sections: |n| sections_of(|| enter_owned(&MEMBARRIER), n),
        },
        Contender { name: "crossbeam-epoch pin", sections: |n| sections_of(epoch, n) },
        Contender { name: "parking_lot RwLock read", sections: |n| sections_of(parking_lot_read, n) },
        Contender { name: "std RwLock read", sections: |n| sections_of(std_read, n) },
    ];
    match &*LIBURCU {
        Ok(_) => contenders.push(Contender {
            name: "liburcu-memb",
            sections: |n| {
                if let Ok(liburcu) = &*LIBURCU {
                    (liburcu.sections)(n);
                }
            },
        }),
        Err(error) => println!("liburcu is left out: {error}"),
    }
    contenders
}

/// Registers this thread with liburcu for the length of a call.
fn with_liburcu_thread<R>(body: impl FnOnce() -> R) -> R {
    if let Ok(liburcu) = &*LIBURCU {
        (liburcu.register)();
    }
    let result = body();
    if let Ok(liburcu) = &*LIBURCU {
        (liburcu.unregister)();
    }
    result
}

/// Nanoseconds for one section, `threads` threads at once; the slowest thread counts.
fn time_sections(contender: Contender, threads: usize) -> f64 {
    let start = Barrier::new(threads);
    let run = || {
        with_liburcu_thread(|| {
            (contender.sections)(10_000);
            start.wait();
            let begin = Instant::now();
            (contender.sections)(black_box(SECTIONS));
            begin.elapsed().as_secs_f64() * 1e9 / SECTIONS as f64
        })
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        threads.into_iter().map(|thread| thread.join().expect("no contender panics")).fold(0.0, f64::max)
    })
}

/// Median, 10th and 90th percentile.
fn spread(mut samples: Vec<f64>) -> (f64, f64, f64) {
    samples.sort_by(f64::total_cmp);
    let at = |tenths: usize| samples[(samples.len() - 1) * tenths / 10];
    (at(5), at(1), at(9))
}

fn bench_sections() {
    for threads in [1, 2] {
        let contenders = contenders();
        let mut samples = vec![Vec::new(); contenders.len()];
        for _ in 0..ROUNDS {
            for (contender, samples) in contenders.iter().zip(&mut samples) {
                samples.push(time_sections(*contender, threads));
            }
        }
        println!("\n| section, {threads} thread(s) | median ns | p10 | p90 |\n|---|---:|---:|---:|");
        for (contender, samples) in contenders.iter().zip(samples) {
            let (median, low, high) = spread(samples);
            println!("| {} | {median:.2} | {low:.2} | {high:.2} |", contender.name);
        }
    }
}

/// Microseconds for one barrier, while `load` other threads enter and leave sections of the same kind.
fn bench_barriers() {
    type Kind = (&'static str, fn(), fn(u64));
    let mut kinds: Vec<Kind> = vec![
        ("synchronize (membarrier)", || MEMBARRIER.synchronize(), |n| sections_of(|| enter(&MEMBARRIER), n)),
        ("synchronize (SeqCst)", || SEQ_CST.synchronize(), |n| sections_of(|| enter(&SEQ_CST), n)),
    ];
    if LIBURCU.is_ok() {
        let synchronize = || {
            if let Ok(liburcu) = &*LIBURCU {
                (liburcu.synchronize)();
            }
        };
        let sections = |n| {
            if let Ok(liburcu) = &*LIBURCU {
                (liburcu.sections)(n);
            }
        };
        kinds.push(("liburcu-memb synchronize_rcu", synchronize, sections));
    }
    println!("\n| barrier | busy threads | median µs | p10 | p90 |\n|---|---:|---:|---:|---:|");
    for load in [0, 1, 2] {
        for (name, synchronize, sections) in &kinds {
            let stop = AtomicBool::new(false);
            let ready = Barrier::new(load + 1);
            let samples = thread::scope(|scope| {
                for _ in 0..load {
                    scope.spawn(|| {
                        with_liburcu_thread(|| {
                            ready.wait();
                            while !stop.load(Ordering::Relaxed) {
                                sections(1_000);
                            }
                        });
                    });
                }
                ready.wait();
                let samples = (0..BARRIERS)
                    .map(|_| {
                        let begin = Instant::now();
                        synchronize();
                        begin.elapsed().as_secs_f64() * 1e6
                    })
                    .collect();
                stop.store(true, Ordering::Relaxed);
                samples
            });
            let (median, low, high) = spread(samples);
            println!("| {name} | {load} | {median:.2} | {low:.2} | {high:.2} |");
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [only, name, count] = &arguments[..]
        && only == "--only"
    {
        let count = count.parse().expect("COUNT is a number");
        let contenders = contenders();
        let contender = contenders.iter().find(|contender| contender.name == name);
        with_liburcu_thread(|| (contender.expect("NAME is a contender").sections)(count));
        return;
    }
    // `cargo test --all-targets` runs this without --bench: compiling it was the test.
    if arguments.iter().any(|argument| argument == "--bench") {
        bench_sections();
        bench_barriers();
    }
}
