//! What programs do to the tree while it is recorded.
//!
//! Each runs until it is told to end. Errors of single operations are part of it; that nothing at all succeeds is not.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;

use crate::mapping::Mapping;
use crate::writers::Writers;

/// What is done to the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Workload {
    /// The operation mix of the oracle, by two processes.
    Mix,
    /// The same while the tracker is killed and started again.
    MixKill,
    /// The same while the tracker is stopped and started again, and other programs write in between.
    MixGap,
    /// Transactions of two SQLite databases, one with a rollback journal, one with a write-ahead log.
    Sqlite,
    /// Commits, branches and merges in a git repository.
    Git,
    /// Write to a temporary file, fsync or not, rename over the old one; directories are renamed too.
    Replace,
    /// Overwrite in place, with and without fsync, through descriptors that stay open.
    Overwrite,
    /// Stores into shared mappings.
    Mmap,
}

impl Workload {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mix => "mix",
            Self::MixKill => "mix-kill",
            Self::MixGap => "mix-gap",
            Self::Sqlite => "sqlite",
            Self::Git => "git",
            Self::Replace => "replace",
            Self::Overwrite => "overwrite",
            Self::Mmap => "mmap",
        }
    }

    /// What is there before tracking starts.
    pub(crate) fn prepare(self, tree: &Path, evidence: &Path, seed: u64) -> Result<()> {
        match self {
            Self::Mix | Self::MixKill | Self::MixGap => {
                let mut writers = Writers::start(tree, evidence, 2, seed ^ 1)?;
                writers.go(60)?;
                writers.wait(Instant::now() + PATIENCE)
            }
            Self::Sqlite => {
                for (name, mode) in DATABASES {
                    let make =
                        format!("PRAGMA journal_mode={mode}; CREATE TABLE t(k INTEGER PRIMARY KEY, v TEXT);");
                    sqlite(&tree.join(name), &make)?;
                }
                Ok(())
            }
            Self::Git => {
                git(tree, &["init", "-q", "-b", "main", "repo"])?;
                fs::write(tree.join("repo/first"), "first\n")?;
                commit(&tree.join("repo"), "first")
            }
            Self::Replace | Self::Overwrite | Self::Mmap => {
                let mut rng = Rng::with_seed(seed);
                for directory in 0..DIRECTORIES {
                    fs::create_dir(tree.join(format!("d{directory}")))?;
                    for file in 0..FILES {
                        let length = rng.usize(1..60_000);
                        fs::write(tree.join(format!("d{directory}/f{file}")), data(&mut rng, length))?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Runs until `over`.
    pub(crate) fn run(self, tree: &Path, evidence: &Path, seed: u64, over: &AtomicBool) -> Result<()> {
        let mut rng = Rng::with_seed(seed ^ 0x776f_726b);
        // ORDERING: only a flag, as everywhere here.
        let is_over = || over.load(Ordering::Relaxed);
        match self {
            Self::Mix | Self::MixKill | Self::MixGap => {
                let mut writers = Writers::start(tree, evidence, 2, seed)?;
                while !is_over() {
                    writers.go(15)?;
                    writers.wait(Instant::now() + PATIENCE)?;
                    std::thread::sleep(Duration::from_millis(rng.u64(0..30)));
                }
                Ok(())
            }
            Self::Sqlite => {
                while !is_over() {
                    transactions(tree, &mut rng)?;
                }
                Ok(())
            }
            Self::Git => {
                let mut step = 0;
                while !is_over() {
                    step += 1;
                    commits(&tree.join("repo"), &mut rng, step)?;
                }
                Ok(())
            }
            Self::Replace => steps(tree, &mut rng, over, replace),
            Self::Overwrite => {
                let mut held = Vec::new();
                steps(tree, &mut rng, over, |tree, rng| overwrite(tree, rng, &mut held))
            }
            Self::Mmap => {
                let mut held = Vec::new();
                steps(tree, &mut rng, over, |tree, rng| store(tree, rng, &mut held))
            }
        }
    }
}

const PATIENCE: Duration = Duration::from_secs(90);
const DIRECTORIES: u32 = 4;
const FILES: u32 = 8;
const DATABASES: [(&str, &str); 2] = [("rollback.db", "DELETE"), ("wal.db", "WAL")];

/// Repeats a step until it is over. Most have to succeed.
fn steps(
    tree: &Path,
    rng: &mut Rng,
    over: &AtomicBool,
    mut step: impl FnMut(&Path, &mut Rng) -> io::Result<()>,
) -> Result<()> {
    let (mut done, mut failed, mut last) = (0_u64, 0_u64, None);
    // ORDERING: only a flag.
    while !over.load(Ordering::Relaxed) {
        match step(tree, rng) {
            Ok(()) => done += 1,
            Err(error) => {
                failed += 1;
                last = Some(error);
            }
        }
        std::thread::sleep(Duration::from_micros(rng.u64(0..12_000)));
    }
    ensure!(done >= failed, "{failed} of {} operations failed, the last with {last:?}", done + failed);
    Ok(())
}

/// Bytes that differ each time.
fn data(rng: &mut Rng, length: usize) -> Vec<u8> {
    let stamp = format!("<{:x}>", rng.u64(..));
    stamp.bytes().cycle().take(length).collect()
}

fn place(tree: &Path, rng: &mut Rng) -> PathBuf {
    tree.join(format!("d{}", rng.u32(0..DIRECTORIES))).join(format!("f{}", rng.u32(0..FILES)))
}

fn length(rng: &mut Rng) -> usize {
    if rng.u32(0..4) == 0 { rng.usize(1..120_000) } else { rng.usize(1..5000) }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(path))?.sync_all()
}

fn replace(tree: &Path, rng: &mut Rng) -> io::Result<()> {
    let target = place(tree, rng);
    let length = length(rng);
    match rng.u32(0..10) {
        0..=6 => {
            // Half of them from another directory.
            let temporary = if rng.bool() { target.with_extension("tmp") } else { tree.join("staging") };
            let mut file = File::create(&temporary)?;
            file.write_all(&data(rng, length))?;
            if rng.u32(0..3) > 0 {
                file.sync_all()?;
            }
            fs::rename(&temporary, &target)?;
            if rng.bool() { sync_directory(&target) } else { Ok(()) }
        }
        7 => fs::remove_file(&target),
        8 => {
            // A directory moves there and back under another name, and its new entries with it.
            let number = rng.u32(0..DIRECTORIES);
            let (from, away) =
                (tree.join(format!("d{number}")), tree.join(format!("moved{}", rng.u32(0..3))));
            fs::rename(&from, &away)?;
            fs::write(away.join(format!("f{}", rng.u32(0..FILES))), data(rng, length))?;
            if rng.bool() {
                File::open(&away)?.sync_all()?;
            }
            fs::rename(&away, &from)
        }
        _ => {
            let directory = tree.join(format!("new{}", rng.u32(0..6)));
            if directory.exists() {
                return fs::remove_dir_all(directory);
            }
            fs::create_dir_all(directory.join("in"))?;
            let file = directory.join("in/file");
            fs::write(&file, data(rng, length))?;
            if rng.bool() { File::open(file)?.sync_all() } else { Ok(()) }
        }
    }
}

fn overwrite(tree: &Path, rng: &mut Rng, held: &mut Vec<File>) -> io::Result<()> {
    let file = if held.len() > 3 && rng.u32(0..3) > 0 {
        let which = rng.usize(..held.len());
        if rng.u32(0..6) == 0 { held.swap_remove(which) } else { held[which].try_clone()? }
    } else {
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(place(tree, rng))?
    };
    let size = file.metadata()?.len();
    let length = length(rng);
    match rng.u32(0..12) {
        0 => file.set_len(rng.u64(0..80_000))?,
        1 => file.write_all_at(&data(rng, length), size)?,
        _ => file.write_all_at(&data(rng, length), rng.u64(0..=size))?,
    }
    match rng.u32(0..5) {
        0 => file.sync_all()?,
        1 => file.sync_data()?,
        _ => {}
    }
    if held.len() < 6 && rng.u32(0..3) == 0 {
        held.push(file);
    }
    Ok(())
}

fn store(tree: &Path, rng: &mut Rng, held: &mut Vec<Mapping>) -> io::Result<()> {
    if held.len() < 3 || rng.u32(0..4) == 0 {
        let file = OpenOptions::new().read(true).write(true).open(place(tree, rng))?;
        let size = file.metadata()?.len() as usize;
        held.push(Mapping::of(&file, size.max(1))?);
    }
    if held.len() > 8 {
        held.swap_remove(rng.usize(..held.len()));
    }
    let which = rng.usize(..held.len());
    let mapping = &mut held[which];
    let offset = rng.usize(..mapping.len());
    let length = rng.usize(1..3000);
    mapping.store(offset, &data(rng, length));
    if rng.u32(0..8) == 0 { mapping.sync() } else { Ok(()) }
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

fn sqlite(database: &Path, script: &str) -> Result<()> {
    run(Command::new("sqlite3").args(["-batch", "-bail"]).arg(database).arg(script))
}

fn transactions(tree: &Path, rng: &mut Rng) -> Result<()> {
    let (name, mode) = DATABASES[rng.usize(..2)];
    let synchronous = *rng.choice(&["FULL", "FULL", "NORMAL", "OFF"]).unwrap_or(&"FULL");
    let mut script = format!("PRAGMA synchronous={synchronous};");
    if mode == "WAL" && rng.bool() {
        script += "PRAGMA wal_autocheckpoint=8;";
    }
    for _ in 0..rng.u32(1..5) {
        script += "BEGIN;";
        for _ in 0..rng.u32(1..6) {
            let key = rng.u32(0..60);
            script += &match rng.u32(0..5) {
                0 => format!("DELETE FROM t WHERE k={key};"),
                _ => format!(
                    "INSERT OR REPLACE INTO t VALUES({key}, printf('%.*c', {}, 'x') || '{:x}');",
                    rng.u32(1..4000),
                    rng.u64(..)
                ),
            };
        }
        script += if rng.u32(0..6) == 0 { "ROLLBACK;" } else { "COMMIT;" };
    }
    sqlite(&tree.join(name), &script)
}

fn git(directory: &Path, arguments: &[&str]) -> Result<()> {
    let identity = ["-c", "user.name=torture", "-c", "user.email=torture@example.org", "-c", "gc.auto=0"];
    run(Command::new("git")
        .arg("-C")
        .arg(directory)
        .args(identity)
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1"))
}

fn commit(repository: &Path, message: &str) -> Result<()> {
    git(repository, &["add", "-A"])?;
    git(repository, &["commit", "-q", "--allow-empty", "-m", message])
}

fn commits(repository: &Path, rng: &mut Rng, step: u32) -> Result<()> {
    for _ in 0..rng.u32(1..5) {
        let directory = repository.join(format!("src{}", rng.u32(0..3)));
        fs::create_dir_all(&directory)?;
        let length = length(rng);
        fs::write(directory.join(format!("f{}", rng.u32(0..12))), data(rng, length))?;
    }
    match rng.u32(0..8) {
        0 => git(repository, &["-c", "core.fsync=all", "commit", "-q", "--allow-empty", "-m", "empty"]),
        1 => {
            commit(repository, "before a branch")?;
            let branch = format!("branch{step}");
            git(repository, &["checkout", "-q", "-b", &branch, "HEAD~1"])?;
            fs::write(repository.join(format!("only-{step}")), data(rng, 2000))?;
            commit(repository, "on a branch")?;
            git(repository, &["checkout", "-q", "main"])?;
            git(repository, &["merge", "-q", "-X", "ours", "-m", "merge", &branch])?;
            git(repository, &["branch", "-q", "-D", &branch])
        }
        2 => {
            git(repository, &["add", "-A"])?;
            git(repository, &["stash", "-q"]).or(Ok::<(), anyhow::Error>(()))?;
            git(repository, &["-c", "core.fsync=all", "gc", "-q"])
        }
        3 => {
            git(repository, &["add", "-A"])?;
            git(repository, &["-c", "core.fsync=all", "commit", "-q", "--allow-empty", "-m", "synced"])
        }
        _ => commit(repository, "step"),
    }
}

/// Pushes some dirty data to the disk, as the kernel would after a longer time: of a random file, with or without what
/// points to it. Uses the tree below the mount, which it only reads.
pub(crate) fn push_out(lower: &Path, seed: u64, over: &AtomicBool) {
    let mut rng = Rng::with_seed(seed ^ 0x7075_7368);
    // ORDERING: only a flag.
    while !over.load(Ordering::Relaxed) {
        std::thread::sleep(Duration::from_millis(rng.u64(5..250)));
        let mut at = lower.to_owned();
        for _ in 0..6 {
            let entries: Vec<PathBuf> = fs::read_dir(&at)
                .map(|list| list.flatten().map(|entry| entry.path()).collect())
                .unwrap_or_default();
            let Some(chosen) = rng.choice(entries) else { break };
            at = chosen;
            if !at.is_dir() {
                break;
            }
        }
        // A fifo would wait for its other end.
        if !at.is_file() && !at.is_dir() {
            continue;
        }
        let Ok(file) = File::open(&at) else { continue };
        match rng.u32(0..4) {
            0 => drop(file.sync_all()),
            _ => push(&file),
        }
    }
}

fn push(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: takes numbers only; the descriptor is open. Data alone, no metadata, no flush.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}
