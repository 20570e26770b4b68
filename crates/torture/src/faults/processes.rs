//! Faults of the tracker's process: stopped, terminated, started twice.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::consumer::Fresh;
use super::script;
use super::stage::{Stage, eventually, output_within};
use crate::product::{Product, ProductArgs};
use crate::scratch::{is_mounted, unmount_all};

/// A tracker that does not run keeps its writers waiting, and loses nothing.
pub(crate) fn stopped(arguments: &ProductArgs) -> Result<String> {
    let mut stage = Stage::new(arguments, "stopped", "ext4", &[])?.begin()?;
    let tree = stage.tree();
    let written = AtomicU64::new(0);
    let write = |from: u64, to: u64| {
        for number in from..to {
            // ORDERING: a counter that is looked at while this goes on.
            match fs::write(tree.join(format!("a/stopped-{number}")), number.to_string()) {
                Ok(()) => drop(written.fetch_add(1, Ordering::Relaxed)),
                Err(_) => return,
            }
        }
    };
    let pid = stage.tracking.as_ref().map_or(0, crate::product::Tracking::pid);
    stop(pid)?;
    let waited = std::thread::scope(|scope| -> Result<Duration> {
        scope.spawn(|| write(0, 20));
        // The deadline is the client's as well: the server cannot keep it.
        let begun = Instant::now();
        let mut barrier = stage.product.command("barrier");
        let output = output_within(barrier.arg(&tree).args(["--deadline", "1"]), Duration::from_secs(20));
        let waited = begun.elapsed();
        std::thread::sleep(Duration::from_millis(500));
        let before = written.load(Ordering::Relaxed);
        signal(pid, Signal::CONT)?;
        ensure!(before == 0, "{before} files were written past a tracker that does not run");
        let output = output?;
        ensure!(!output.status.success(), "a barrier of a tracker that does not run has succeeded");
        Ok(waited)
    })?;
    ensure!(written.load(Ordering::Relaxed) == 20, "writers did not go on after SIGCONT");
    stage.check(Fresh::Never).context("after SIGCONT")?;

    stop(pid)?;
    std::thread::scope(|scope| -> Result<()> {
        scope.spawn(|| write(20, 40));
        std::thread::sleep(Duration::from_millis(200));
        stage.kill()
    })?;
    stage.track()?;
    script::run(&tree, 2);
    stage.check(Fresh::Never).context("after kill -9 of a stopped tracker")?;
    stage.pass(format!(
        "writers waited and went on; a barrier with a deadline of 1 s gave up after {:.1} s; nothing lost, also after kill -9",
        waited.as_secs_f64()
    ))
}

/// Stops a process, and returns when all of its threads have: one that still runs answers.
fn stop(pid: u32) -> Result<()> {
    signal(pid, Signal::STOP)?;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let stat = thread?.path().join("stat");
        eventually("a thread of the tracker to stop", || {
            // The name, in parentheses, may have any letter.
            Ok(fs::read_to_string(&stat)?.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T')))
        })?;
    }
    Ok(())
}

/// SIGTERM at moments at which there is much to do.
pub(crate) fn terminated(arguments: &ProductArgs) -> Result<String> {
    let mut stage = Stage::new(arguments, "terminated", "ext4", &[])?.begin()?;
    let tree = stage.tree();
    for directory in 0..25 {
        let directory = tree.join(format!("many/{directory}"));
        fs::create_dir_all(&directory)?;
        for file in 0..20 {
            fs::write(directory.join(file.to_string()), "x")?;
        }
    }
    stage.check(Fresh::Never)?;

    // In a catch-up: every second start is terminated at another moment, after changes that only the scan can find.
    let mut terminated = 0;
    stage.stop()?;
    for round in 0..8_u64 {
        script::run(&tree, 10 + round);
        fs::write(tree.join(format!("many/{}/{}", round * 3, round)), format!("gap {round}"))?;
        let mut child = stage.product.track_command()?.spawn()?;
        std::thread::sleep(Duration::from_millis(20 * round));
        signal(child.id(), Signal::TERM)?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "a tracker in its catch-up does not end at SIGTERM");
            std::thread::sleep(Duration::from_millis(2));
        }
        ensure!(!is_mounted(&tree), "terminated while it started, and its mount is still there");
        terminated += 1;
    }
    stage.track()?;
    stage.check(Fresh::Never).context("terminated in catch-ups")?;

    // In recovery.
    for round in 0..6_u64 {
        script::run(&tree, 30 + round);
        stage.kill()?;
        let mut child = stage.product.track_command()?.spawn()?;
        std::thread::sleep(Duration::from_millis(15 * round));
        signal(child.id(), Signal::TERM)?;
        child.wait()?;
        terminated += 1;
        if !is_mounted(&tree) {
            script::in_the_gap(&tree, round)?;
        }
        stage.track()?;
        stage.check(Fresh::Never).with_context(|| format!("terminated in recovery {round}"))?;
    }

    // While busy: with a file open it does not end, and goes on.
    let held = fs::File::create(tree.join("a/open"))?;
    let pid = stage.tracking.as_ref().map_or(0, crate::product::Tracking::pid);
    signal(pid, Signal::TERM)?;
    std::thread::sleep(Duration::from_millis(1500));
    ensure!(is_mounted(&tree), "a signal has taken away a mount that is in use");
    script::run(&tree, 40);
    stage.check(Fresh::Never).context("after a refused stop")?;
    drop(held);
    stage.pass(format!("{terminated} trackers terminated while they started; a busy one stayed and went on"))
}

/// Exactly one tracker has a state, and a directory.
pub(crate) fn two_trackers(arguments: &ProductArgs) -> Result<String> {
    let mut stage = Stage::new(arguments, "two-trackers", "ext4", &[])?.begin()?;
    let tree = stage.tree();
    let beside = tree.with_file_name("beside");
    fs::create_dir(&beside)?;
    let evidence = stage.scratch.evidence.clone();
    let second = Product::new(arguments, &beside, &stage.scratch.state, &evidence)?;
    let why = second.track().map(drop).err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(why.contains("locked by a live tracker"), "a second tracker of one state: {why:?}");
    script::run(&tree, 2);
    stage.check(Fresh::Never).context("after another tracker tried the state")?;
    stage.stop()?;

    let state = |name: String| stage.scratch.state.with_extension(name);
    let mut neither = 0;
    const ROUNDS: u64 = 6;
    for round in 0..ROUNDS {
        // The same directory, several states and one state.
        let products = (0..5).map(|number| {
            let state = if number < 3 { state(format!("race-{number}")) } else { state("race".to_owned()) };
            Product::new(arguments, &tree, &state, &evidence)
        });
        let won = race(&products.collect::<Result<Vec<_>>>()?)?;
        ensure!(won == 1, "{won} of 5 trackers of one directory say that they track it");
        // One inside the other.
        let inner = Product::new(arguments, &tree.join("b/deep"), &state("inner".to_owned()), &evidence)?;
        let outer = Product::new(arguments, &tree, &state("outer".to_owned()), &evidence)?;
        let both = if round % 2 == 0 { [inner, outer] } else { [outer, inner] };
        let won = race(&both)?;
        ensure!(won < 2, "two trackers, one inside the other");
        neither += u64::from(won == 0);
    }
    for name in ["race-0", "race-1", "race-2", "race", "inner", "outer"] {
        let _ = fs::remove_dir_all(state(name.to_owned()));
    }
    ensure!(neither == 0, "in {neither} of {ROUNDS} races of nested trackers neither won");
    stage.track()?;
    stage.check(Fresh::Allowed)?;
    stage.pass(format!("one state, one tracker; {ROUNDS} races of five in one directory and {ROUNDS} nested ones: one won each"))
}

/// Starts all of them at once, waits until each tracks or has ended, and stops those that track. How many did.
fn race(products: &[Product]) -> Result<usize> {
    let mut children = Vec::new();
    for product in products {
        children.push((product, product.track_command()?.spawn()?));
    }
    let mut won = 0;
    let mut outcome = Ok(());
    for (product, child) in &mut children {
        let mut output = std::io::BufReader::new(child.stdout.take().context("no stdout")?);
        let mut line = String::new();
        std::io::BufRead::read_line(&mut output, &mut line)?;
        if line.starts_with("tracking ") {
            won += 1;
            if !is_mounted(product.dir()) {
                outcome = Err(anyhow::anyhow!("it says that it tracks, and nothing is mounted"));
            }
        }
    }
    for (product, child) in &mut children {
        if child.try_wait()?.is_none() {
            signal(child.id(), Signal::TERM)?;
        }
        child.wait()?;
        unmount_all(product.dir());
    }
    outcome.map(|()| won)
}

pub(crate) fn signal(pid: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(pid)?).context("no pid")?;
    Ok(kill_process(pid, signal)?)
}

/// Waits until a mount is gone.
pub(crate) fn unmounted(at: &Path) -> Result<()> {
    eventually("the mount is gone", || Ok(!is_mounted(at)))
}
