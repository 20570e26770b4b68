//! What the fuzzer tries: everything that Highwater reads back, against readers and models that are as simple as they can be.
//!
//! A target is a function of some bytes that panics if something is wrong. `scripts/fuzz.sh` runs them under libFuzzer, guided by
//! coverage (the package in `engine/`, which is not part of the workspace); this crate's binary repeats single inputs without it, and
//! its tests repeat the seeds and every input that has found a bug (`regressions/`).
//!
//! | target | what it feeds | what it compares with |
//! |---|---|---|
//! | `journal` | a journal that was written, and then damaged | what was written; `layout.rs`, a reader written from docs/journal-format.md |
//! | `segment` | the bytes of a segment, checksums made right or not | `layout.rs` |
//! | `socket` | requests to a real server | a naive dispatcher on a second volume |
//! | `client` | answers to a real client | what is in the frames |
//! | `plan` | operations, and a consumer that reads meanwhile | the model in crates/tracker/src/plan_model.rs |
//! | `cursor` | texts | the grammar of a cursor; state files |
//! | `record` | payloads of records, lines of changes | what encoding again gives |
//!
//! Memory is bounded for all of them: an input for which more than [`MEMORY_BYTES_MAX`] are held is a failure.

mod client;
mod input;
mod journal;
mod layout;
mod record;
mod socket;
mod text;

// The storage in memory of the journal's own tests, and the volume of the socket's.
#[path = "../../highwater/tests/support/fake_volume.rs"]
mod fake_volume;
#[path = "../../journal/tests/common/mod.rs"]
mod memory;

/// The most that a target may hold at a time, in bytes. A reply may have 16 MiB, and what it is taken apart to some times that.
pub const MEMORY_BYTES_MAX: usize = 96 << 20;

#[global_allocator]
static ALLOCATOR: cap::Cap<std::alloc::System> = cap::Cap::new(std::alloc::System, MEMORY_BYTES_MAX);

/// One thing to feed.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// Feeds one input; panics if something is wrong.
    pub run: fn(&[u8]),
    /// Inputs to begin with.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// The longest input that is worth trying, in bytes.
    pub bytes_max: usize,
    /// Words that inputs are likely to need.
    pub words: &'static [&'static str],
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "journal", run: journal::run, seeds: journal::seeds, bytes_max: 400, words: &["\0"] },
    Target {
        name: "segment",
        run: journal::run_segment,
        seeds: journal::segment_seeds,
        bytes_max: 6000,
        words: &["HWbh", "hbWH", "HWbt"],
    },
    Target { name: "socket", run: socket::run, seeds: socket::seeds, bytes_max: 2000, words: socket::WORDS },
    Target { name: "client", run: client::run, seeds: client::seeds, bytes_max: 3000, words: client::WORDS },
    Target { name: "plan", run: plan, seeds: plan_seeds, bytes_max: 500, words: &["\0"] },
    Target { name: "cursor", run: text::run, seeds: text::seeds, bytes_max: 200, words: text::WORDS },
    Target { name: "record", run: record::run, seeds: record::seeds, bytes_max: 600, words: client::WORDS },
];

/// The target of a name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

/// Writes what libFuzzer begins with for each target, and prints the names with the longest input: in a directory of its name `seeds`, one
/// file each, and `words`, a dictionary in libFuzzer's form.
///
/// # Errors
/// The file system's.
pub fn prepare(directory: &std::path::Path) -> std::io::Result<()> {
    for target in TARGETS {
        let own = directory.join(target.name);
        std::fs::create_dir_all(own.join("seeds"))?;
        for (number, seed) in (target.seeds)().iter().enumerate() {
            std::fs::write(own.join(format!("seeds/{number:02}")), seed)?;
        }
        let escaped = |word: &&str| word.replace('\\', "\\\\").replace('"', "\\\"").replace('\0', "\\x00");
        let lines = target.words.iter().map(|word| format!("\"{}\"\n", escaped(word)));
        std::fs::write(own.join("words"), lines.collect::<String>())?;
        println!("{} {}", target.name, target.bytes_max);
    }
    Ok(())
}

fn plan(bytes: &[u8]) {
    if let Err(what) = highwater_tracker::plan_model::check(bytes) {
        panic!("{what}");
    }
}

fn plan_seeds() -> Vec<Vec<u8>> {
    let count = |bytes: usize| (0..251_u8).cycle().step_by(37).take(bytes).collect();
    vec![count(60), count(200), vec![8; 120]]
}
