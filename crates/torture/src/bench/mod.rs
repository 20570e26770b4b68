//! Benchmarks, peers side by side in one run, rounds interleaved; the result is Markdown.
//!
//! A figure is the median of the rounds, with the least and the greatest beside it. Whoever is first in a round rotates, so
//! that no contender always has the cold cache or the quiet disk.

mod changes;
mod contender;
mod events;
mod inplace;
mod mount;
mod table;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

pub(crate) use events::{DiscardArgs, discard};

use crate::product::ProductArgs;
use crate::scratch::{Filesystem, Scratch};

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Metadata and whole programs: untar, find, read all, git status, cargo build, rm.
    Mount,
    /// fio: sequential and random, buffered and direct.
    Data,
    /// `changes` against scans, start, recovery, memory.
    Changes,
    /// What being watched in place costs, beside inotifywait, fatrace and Watchman.
    Inplace,
    /// Start and catch-up in place on a large tree. Only where it is asked for.
    Large,
}

/// Measures against the plain filesystem, bindfs and mergerfs, and `changes` against scans.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Only these parts; may be repeated.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// Rounds; the table shows medians.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Where to measure: a directory (a path with a slash), or ext4, xfs, btrfs, tmpfs made for the run.
    #[arg(long, default_value = "/var/tmp", value_name = "FS|DIR")]
    dir_fs: Filesystem,
    /// Size of a filesystem made for the run, MiB.
    #[arg(long, default_value_t = 8192)]
    size_mib: u64,
    /// Small files to unpack.
    #[arg(long, default_value_t = 40_000)]
    files: usize,
    /// Length of one fio measurement, seconds.
    #[arg(long, default_value_t = 3)]
    fio_seconds: u32,
    /// Size of the file that fio works on, MiB.
    #[arg(long, default_value_t = 512)]
    fio_mib: u32,
    /// Files in the trees that `changes` is asked about; 1000000 makes three million files on the disk.
    #[arg(long, value_delimiter = ',', default_values_t = [10_000, 100_000])]
    trees: Vec<usize>,
    /// Files in the tree of the part `large`; twice as many are made.
    #[arg(long, default_value_t = 1_000_000)]
    large: usize,
    /// Directories touched before kill -9.
    #[arg(long, default_value_t = 1000)]
    touched: usize,
    /// The result goes here as well.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[command(flatten)]
    product: ProductArgs,
}

/// Runs it.
pub(crate) fn main(arguments: &BenchArgs) -> Result<()> {
    ensure!(arguments.rounds > 0, "at least one round");
    let scratch = Scratch::new(&arguments.dir_fs, None, "bench", arguments.size_mib)?;
    let mut text = machine(arguments);
    let wants = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    if wants(Part::Mount) {
        text += &mount::metadata(arguments, &scratch).context("metadata")?;
    }
    if wants(Part::Data) {
        text += &mount::data(arguments, &scratch).context("data")?;
    }
    if wants(Part::Changes) {
        for files in &arguments.trees {
            text +=
                &changes::measure(arguments, &scratch, *files).with_context(|| format!("{files} files"))?;
        }
    }
    if wants(Part::Inplace) {
        text += &inplace::work(arguments, &scratch).context("in place")?;
    }
    if arguments.only.contains(&Part::Large) {
        text += &inplace::large(arguments, &scratch).context("large")?;
    }
    scratch.discard_evidence();
    println!("{text}");
    if let Some(out) = &arguments.out {
        fs::write(out, &text)?;
    }
    Ok(())
}

fn machine(arguments: &BenchArgs) -> String {
    let first = |path: &str, start: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_owned();
        line.split_once(':').map_or(line.clone(), |(_, value)| value.trim().to_owned())
    };
    let said = |program: &str, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        let text =
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        text.lines().next().unwrap_or("not installed").trim().to_owned()
    };
    let place = match &arguments.dir_fs {
        Filesystem::Directory(path) => {
            let kind = said("stat", &["-f", "-c", "%T", &path.to_string_lossy()]);
            format!("a directory on {kind}")
        }
        other => format!("{other} made for the run (loop image in the temporary directory)"),
    };
    format!(
        "Machine: {}, {} cores, {} memory, Linux {}. Filesystem: {place}. Load before: {}.\n\
         Peers: {}; {}; {}; fio {}; git {}.\n\
         Each figure: median of {} rounds (least to greatest).\n",
        first("/proc/cpuinfo", "model name"),
        std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        first("/proc/meminfo", "MemTotal"),
        said("uname", &["-r"]),
        fs::read_to_string("/proc/loadavg").unwrap_or_default().split(' ').next().unwrap_or_default(),
        said("bindfs", &["--version"]),
        said("mergerfs", &["--version"]),
        said("rsync", &["--version"]),
        said("fio", &["--version"]),
        said("git", &["--version"]),
        arguments.rounds
    )
}
