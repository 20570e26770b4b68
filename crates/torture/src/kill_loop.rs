//! Kill -9 and track again, over and over: also while the tracker starts, and while it answers. G4 and G5.
//!
//! One thread writes all the time. Every file whose write returned has to be covered by an answer that is not fresh: told
//! by name, or by a rescan of what it is in.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;

use crate::line::covers;
use crate::product::{Product, ProductArgs};
use crate::scratch::{Filesystem, Scratch};

/// Kill -9 and track again in a loop; each write that returned has to be told.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct KillLoopArgs {
    /// What the tree is on: ext4, xfs, btrfs, tmpfs, or a directory.
    #[arg(long, default_value = "ext4", value_name = "FS|DIR")]
    dir_fs: Filesystem,
    /// Times that the tracker is killed.
    #[arg(long, default_value_t = 30)]
    rounds: u64,
    /// Drawn at random if not given.
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    product: ProductArgs,
}

/// Runs it.
pub(crate) fn main(arguments: &KillLoopArgs) -> Result<()> {
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(1..1_000_000_000));
    let scratch = Scratch::new(&arguments.dir_fs, None, "kill", 512)?;
    let (fs, rounds, rerun) = (&arguments.dir_fs, arguments.rounds, arguments.product.rerun());
    let rerun = format!("torture kill-loop --dir-fs {fs} --rounds {rounds} --seed {seed}{rerun}");
    let told = rounds_of(arguments, &scratch, seed).with_context(|| {
        format!("kill-loop: FAIL; evidence: {}; again: {rerun}", scratch.evidence.display())
    })?;
    scratch.discard_evidence();
    println!("kill-loop: PASS: {told}");
    Ok(())
}

fn rounds_of(arguments: &KillLoopArgs, scratch: &Scratch, seed: u64) -> Result<String> {
    let mut rng = Rng::with_seed(seed);
    let product = Product::new(&arguments.product, &scratch.tree, &scratch.state, &scratch.evidence)?;
    let mut tracking = Some(product.track()?.0);
    product.add_consumer("loop").map_err(|error| anyhow::anyhow!("consumer add: {error}"))?;
    let first = product.changes("loop").map_err(|error| anyhow::anyhow!("changes: {error}"))?;
    product.ack("loop", &first.cursor).map_err(|error| anyhow::anyhow!("ack: {error}"))?;

    let over = AtomicBool::new(false);
    let written = Mutex::new(Vec::new());
    let mut starts = Vec::new();
    let mut total = 0;
    let mut killed_starting = 0;
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| write_on(&scratch.tree, &over, &written));
        let mut outcome = Ok(());
        let mut undecided = Vec::new();
        for round in 0..arguments.rounds {
            outcome = (|| {
                std::thread::sleep(Duration::from_micros(rng.u64(0..150_000)));
                if let Some(old) = tracking.take() {
                    old.kill()?;
                }
                // Sometimes the next one dies as well, while it recovers.
                while rng.u32(0..3) == 0 {
                    killed_starting += 1;
                    kill_while_starting(&product, &mut rng)?;
                }
                let (new, took) = product.track()?;
                tracking = Some(new);
                starts.push(took);
                // What had returned before this point is what the answer has to tell.
                let mut due = std::mem::take(&mut undecided);
                due.append(&mut take(&written));
                let answer = product.changes("loop").map_err(|error| anyhow::anyhow!("changes: {error}"))?;
                ensure!(!answer.fresh, "the answer is fresh");
                let missed: Vec<&String> =
                    due.iter().filter(|path| !covers(&answer.lines, path.as_bytes())).take(5).collect();
                if !missed.is_empty() {
                    let lines: Vec<String> =
                        answer.lines.iter().take(40).map(crate::line::Line::show).collect();
                    bail!("{} files written, not told: {missed:?}; the answer: {lines:#?}", due.len());
                }
                total += due.len();
                // These returned while the answer was made: it has them, or the next one does.
                undecided = take(&written);
                undecided.retain(|path| !covers(&answer.lines, path.as_bytes()));
                product.ack("loop", &answer.cursor).map_err(|error| anyhow::anyhow!("ack: {error}"))
            })()
            .with_context(|| format!("in round {}", round + 1));
            if outcome.is_err() {
                break;
            }
        }
        // ORDERING: only a flag.
        over.store(true, Ordering::Relaxed);
        outcome
    })?;
    if let Some(tracking) = tracking {
        product.stop(tracking)?;
    }
    starts.sort();
    Ok(format!(
        "{} kills ({killed_starting} more while starting), {total} writes all told; starting took {:.1} ms (median), {:.1} ms (worst)",
        arguments.rounds,
        starts[starts.len() / 2].as_secs_f64() * 1e3,
        starts[starts.len() - 1].as_secs_f64() * 1e3
    ))
}

fn take(written: &Mutex<Vec<String>>) -> Vec<String> {
    std::mem::take(&mut *written.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn kill_while_starting(product: &Product, rng: &mut Rng) -> Result<()> {
    let mut child = product.track_command()?.spawn()?;
    std::thread::sleep(Duration::from_micros(rng.u64(0..40_000)));
    child.kill()?;
    child.wait()?;
    Ok(())
}

/// Writes files one after another, and says of each that it has been written.
fn write_on(tree: &Path, over: &AtomicBool, written: &Mutex<Vec<String>>) {
    let mut refused_since: Option<Instant> = None;
    for number in 0_u64.. {
        // ORDERING: only a flag.
        if over.load(Ordering::Relaxed) {
            return;
        }
        let path = format!("d{}/f{}", number / 40 % 25, number % 40);
        let outcome = (|| -> io::Result<()> {
            fs::create_dir_all(
                tree.join(&path[..path.len() - path.rsplit('/').next().map_or(0, str::len) - 1]),
            )?;
            fs::write(tree.join(&path), number.to_string())
        })();
        match outcome {
            Ok(()) => {
                refused_since = None;
                written.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(path);
            }
            Err(_) => {
                let since = *refused_since.get_or_insert_with(Instant::now);
                if since.elapsed() > Duration::from_secs(90) {
                    return;
                }
            }
        }
        std::thread::sleep(Duration::from_micros(if refused_since.is_some() { 2000 } else { 200 }));
    }
}
