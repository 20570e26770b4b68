//! The question itself: what changed? Against programs that have to look at everything.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

use super::BenchArgs;
use super::table::{Table, ms, seconds};
use crate::cleanup::Guard;
use crate::line::covers;
use crate::product::Product;
use crate::scratch::Scratch;

const CHANGES: usize = 100;
const FILES_PER_DIRECTORY: usize = 100;

/// All figures for a tree of so many files.
pub(super) fn measure(arguments: &BenchArgs, scratch: &Scratch, files: usize) -> Result<String> {
    eprintln!("bench: making three trees of {files} files");
    let home = scratch.tree.join(format!("trees-{files}"));
    let undo = Guard::new({
        let home = home.clone();
        move || drop(fs::remove_dir_all(home))
    });
    // One that is tracked, and one that scanners look at, with a copy for rsync to compare with.
    let tracked = home.join("tracked");
    let scanned = home.join("scanned");
    let copy = home.join("copy");
    for tree in [&tracked, &scanned] {
        make(tree, files)?;
    }
    let status = Command::new("cp").arg("-a").arg(&scanned).arg(&copy).status()?;
    ensure!(status.success(), "cp -a failed");
    rustix::fs::syncfs(fs::File::open(&scratch.lower)?)?;

    fs::create_dir_all(&scratch.state)?;
    let state = scratch.state.join(format!("changes-{files}"));
    let product = Product::new(&arguments.product, &tracked, &state, &scratch.evidence)?;
    let (mut tracking, first_start) = product.track()?;
    let watchman = Watchman::start(&scanned);
    if let Err(error) = &watchman {
        eprintln!("bench: without Watchman: {error:#}");
    }

    let columns = ["highwater changes", "find -newer", "rsync -n", "Watchman since"].map(str::to_owned);
    let title = format!("What changed? {CHANGES} changes in {files} files, ms (less is better)");
    let mut table = Table::new(title, columns);
    let mut rng = Rng::with_seed(files as u64);
    let marker = home.join("marker");
    for round in 0..arguments.rounds {
        eprintln!("bench: changes, round {}", round + 1);
        let since = product.changes_since("now").map_err(|error| anyhow::anyhow!("{error}"))?.cursor;
        let clock = watchman.as_ref().ok().map(Watchman::clock).transpose()?;
        fs::write(&marker, "")?;
        // `find -newer` is strict: the changes have to be at a later tick of the clock.
        std::thread::sleep(std::time::Duration::from_millis(20));
        let changed: Vec<usize> = (0..CHANGES).map(|_| rng.usize(..files)).collect();
        for tree in [&tracked, &scanned] {
            for number in &changed {
                fs::write(tree.join(name(*number)), format!("round {round}"))?;
            }
        }
        for turn in 0..4 {
            let column = (turn + round) % 4;
            let took = match column {
                0 => {
                    let begun = Instant::now();
                    let answer = product.changes_since(&since).map_err(|error| anyhow::anyhow!("{error}"))?;
                    let took = ms(begun.elapsed());
                    let missed =
                        changed.iter().find(|number| !covers(&answer.lines, name(**number).as_bytes()));
                    ensure!(missed.is_none(), "highwater did not tell {missed:?}");
                    took
                }
                1 => {
                    1e3 * seconds(|| {
                        let mut find = Command::new("find");
                        quiet(find.arg(&scanned).arg("-newer").arg(&marker))
                    })?
                }
                2 => {
                    1e3 * seconds(|| {
                        let mut rsync = Command::new("rsync");
                        rsync.args(["-an", "--delete", "--out-format=%n"]);
                        quiet(
                            rsync.arg(format!("{}/", scanned.display())).arg(format!("{}/", copy.display())),
                        )
                    })?
                }
                _ => match (&watchman, &clock) {
                    (Ok(watchman), Some(clock)) => 1e3 * seconds(|| watchman.since(clock))?,
                    _ => continue,
                },
            };
            table.add(&format!("{files} files"), column, took);
        }
    }
    drop(watchman);

    let title = format!("The tracker's life, {files} files");
    let mut life = Table::new(title, ["".to_owned()]);
    life.add("first start of tracking, ms", 0, ms(first_start));
    for round in 0..arguments.rounds {
        product.stop(tracking)?;
        let (again, took) = product.track()?;
        tracking = again;
        life.add("start after a clean stop, ms", 0, ms(took));
        let directories = (files / FILES_PER_DIRECTORY).min(arguments.touched);
        let row = |what| format!("{what} after kill -9 with {directories} touched directories, ms");
        let since = product.changes_since("now").map_err(|error| anyhow::anyhow!("{error}"))?.cursor;
        for number in 0..directories {
            fs::write(tracked.join(name(number * FILES_PER_DIRECTORY)), format!("touched in round {round}"))?;
        }
        tracking.kill()?;
        let (again, took) = product.track().context("after kill -9")?;
        tracking = again;
        life.add(&row("start"), 0, ms(took));
        let begun = Instant::now();
        let answer = product.changes_since(&since).map_err(|error| anyhow::anyhow!("{error}"))?;
        life.add(&row("`changes`"), 0, ms(begun.elapsed()));
        ensure!(!answer.fresh, "fresh after kill -9");
        let missed = (0..directories)
            .map(|number| name(number * FILES_PER_DIRECTORY))
            .find(|path| !covers(&answer.lines, path.as_bytes()));
        ensure!(missed.is_none(), "after kill -9 highwater did not tell {missed:?}");
        life.add("memory of the tracker after that (VmRSS), MiB", 0, memory_mib(tracking.pid(), "VmRSS:")?);
        quiet(Command::new("find").arg(&tracked).args(["-size", "+1G"]))?;
        let row = format!("memory after a look at all {files} files through the mount (VmRSS), MiB");
        life.add(&row, 0, memory_mib(tracking.pid(), "VmRSS:")?);
    }
    product.stop(tracking)?;
    drop(undo);
    Ok(table.show() + &life.show())
}

pub(super) fn make(tree: &Path, files: usize) -> Result<()> {
    for number in 0..files {
        let path = tree.join(name(number));
        if number % FILES_PER_DIRECTORY == 0 {
            fs::create_dir_all(path.parent().context("a name has a directory")?)?;
        }
        fs::write(path, format!("{number}"))?;
    }
    Ok(())
}

pub(super) fn name(number: usize) -> String {
    let directory = number / FILES_PER_DIRECTORY;
    format!("a{:02}/b{directory:05}/f{number:07}", directory % 64)
}

pub(super) fn quiet(command: &mut Command) -> Result<()> {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).status()?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn memory_mib(pid: u32, field: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib / 1024.0)
}

/// A Watchman of our own, so that none of the machine's is disturbed.
pub(super) struct Watchman {
    home: std::path::PathBuf,
    root: std::path::PathBuf,
}

impl Watchman {
    pub(super) fn start(root: &Path) -> Result<Self> {
        let home = std::env::temp_dir().join(format!("highwater-watchman-{}", std::process::id()));
        fs::create_dir_all(&home)?;
        let watchman = Self { home, root: root.to_owned() };
        watchman.ask(&["watch".to_owned(), root.to_string_lossy().into_owned()])?;
        // Returns after the first crawl.
        watchman.clock()?;
        Ok(watchman)
    }

    fn ask(&self, arguments: &[String]) -> Result<serde_json::Value> {
        let output = Command::new("watchman")
            .arg(format!("--sockname={}", self.home.join("socket").display()))
            .arg(format!("--statefile={}", self.home.join("state").display()))
            .arg(format!("--logfile={}", self.home.join("log").display()))
            .arg(format!("--pidfile={}", self.home.join("pid").display()))
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .context("cannot run watchman")?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "watchman {arguments:?}: {}", text.trim());
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        ensure!(answer.get("error").is_none(), "watchman: {}", answer["error"]);
        Ok(answer)
    }

    fn clock(&self) -> Result<String> {
        let answer = self.ask(&["clock".to_owned(), self.root.to_string_lossy().into_owned()])?;
        Ok(answer["clock"].as_str().context("no clock")?.to_owned())
    }

    /// What has changed since the last call; Watchman remembers that by a name.
    pub(super) fn poll(&self) -> Result<()> {
        let root = self.root.to_string_lossy().into_owned();
        self.ask(&["since".to_owned(), root, "n:bench".to_owned()]).map(drop)
    }

    /// The server's process.
    pub(super) fn pid(&self) -> Result<u32> {
        let answer = self.ask(&["get-pid".to_owned()])?;
        let pid = answer["pid"].as_u64().context("Watchman told no pid")?;
        Ok(u32::try_from(pid)?)
    }

    fn since(&self, clock: &str) -> Result<()> {
        let answer =
            self.ask(&["since".to_owned(), self.root.to_string_lossy().into_owned(), clock.to_owned()])?;
        ensure!(answer["files"].as_array().is_some_and(|files| !files.is_empty()), "watchman told nothing");
        Ok(())
    }
}

impl Drop for Watchman {
    fn drop(&mut self) {
        let _ = self.ask(&["shutdown-server".to_owned()]);
        let _ = fs::remove_dir_all(&self.home);
    }
}
