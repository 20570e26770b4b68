//! States that are not what they seem: of another tree, of another machine, of another time.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::consumer::{Consumer, Fresh};
use super::gate::Verdict;
use super::gated::Gated;
use super::script;
use super::stage::Stage;
use crate::product::{Product, ProductArgs};
use crate::scratch::run;

/// A copied state must be noticed: another tree of this machine, and the root of another machine's filesystem, which has the
/// same inode number and often the same handle.
pub(crate) fn foreign(arguments: &ProductArgs) -> Result<String> {
    let mut seen = Vec::new();
    for fs in ["ext4", "xfs", "btrfs"] {
        let mut stage = Stage::new(arguments, &format!("foreign-{fs}"), fs, &[])?.begin()?;
        stage.stop()?;
        let copy = stage.scratch.state.with_extension("copy");
        let copied = CopiedState(&copy);
        run("cp", &["-a", text(&stage.scratch.state)?, text(&copy)?])?;

        // The same tree, copied with all its times.
        let beside = stage.tree().with_file_name("copied");
        run("cp", &["-a", text(&stage.tree())?, text(&beside)?])?;
        let product = Product::new(arguments, &beside, &copy, &stage.scratch.evidence)?;
        let why = match product.track() {
            Ok(_) => anyhow::bail!("{fs}: the state of another directory was taken"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(why.contains("belongs to another tracked directory"), "{fs}: {why}");
        drop(copied);

        seen.push(format!("{fs}: {}", machines(arguments, fs, &stage.scratch.evidence)?));
        stage.pass("")?;
    }
    Ok(seen.join("; "))
}

/// Two filesystems that were made in the same way, as on two machines; the volume is the root of each.
fn machines(arguments: &ProductArgs, fs: &str, evidence: &Path) -> Result<String> {
    let one = Stage::new(arguments, &format!("machine-1-{fs}"), fs, &[])?;
    let two = Stage::new(arguments, &format!("machine-2-{fs}"), fs, &[])?;
    let root = |stage: &Stage| stage.tree().parent().map(Path::to_path_buf).context("no parent");
    let roots = [root(&one)?, root(&two)?];
    let _undo = [Unmount(&roots[0]), Unmount(&roots[1])];
    let first = Product::new(arguments, &roots[0], &one.scratch.state, evidence)?;
    let mut tracker = tracked(&first)?;
    let mut consumer = Consumer::add(&first, "faults")?;
    consumer.check(&first, &roots[0], Fresh::Never)?;
    stop(&first, &mut tracker)?;
    // What the other machine has, and the state knows nothing of: long before the gap that a scan looks at.
    run("cp", &["-a", text(&one.scratch.state)?, text(&two.scratch.state)?])?;
    let second = Product::new(arguments, &roots[1], &two.scratch.state, evidence)?;
    let outcome = match tracked(&second) {
        Err(error) => {
            let why = format!("{error:#}");
            ensure!(why.contains("belongs to another"), "{fs}: {why}");
            "refused"
        }
        Ok(mut tracker) => {
            let answer = second.changes("faults").map_err(|error| anyhow::anyhow!("{error}"))?;
            stop(&second, &mut tracker)?;
            ensure!(
                answer.fresh,
                "{fs}: the state of another machine was taken: its consumer got a difference of {} lines",
                answer.lines.len()
            );
            "fresh"
        }
    };
    one.pass("")?;
    two.pass("")?;
    Ok(format!("the state of another machine: {outcome}"))
}

/// Without the undo of [`Product::track`], which would unmount the filesystem whose root this is.
fn tracked(product: &Product) -> Result<Gated> {
    let mut tracker = Gated::start_deciding(product, &[], Box::new(|_, _| Verdict::Go))?;
    let tracks = tracker.tracks()?;
    ensure!(tracks, "it does not track: {}", product.last_words());
    Ok(tracker)
}

fn stop(product: &Product, tracker: &mut Gated) -> Result<()> {
    let output = product.command("stop").arg(product.dir()).output()?;
    ensure!(output.status.success(), "stop: {}", String::from_utf8_lossy(&output.stderr));
    tracker.end().map(drop)
}

/// A dead mount proves that nothing was written unseen, but only to the state of the tracker that died.
pub(crate) fn other(arguments: &ProductArgs) -> Result<String> {
    let mut stage = Stage::new(arguments, "other-state", "ext4", &[])?.begin()?;
    let tree = stage.tree();
    let second = stage.scratch.state.with_extension("second");
    let _undo = CopiedState(&second);
    let other = Product::new(arguments, &tree, &second, &stage.scratch.evidence)?;

    // Stopped, then tracked with the other state, which is killed.
    stage.stop()?;
    let (tracking, _) = other.track()?;
    script::run(&tree, 2);
    script::in_the_gap(&tree, 2)?;
    tracking.kill()?;
    stage.track()?;
    stage.check(Fresh::Allowed).context("stopped, and over the dead mount of another state")?;

    // Killed itself, then the other one too.
    script::run(&tree, 3);
    stage.kill()?;
    let (tracking, _) = other.track()?;
    let mut second_consumer = Consumer::add(&other, "second")?;
    second_consumer.check(&other, &tree, Fresh::Allowed)?;
    script::run(&tree, 4);
    second_consumer.check(&other, &tree, Fresh::Allowed)?;
    script::run(&tree, 5);
    script::in_the_gap(&tree, 5)?;
    tracking.kill()?;
    stage.track()?;
    stage.check(Fresh::Allowed).context("killed, and over the dead mount of another state")?;
    script::run(&tree, 6);
    stage.kill()?;
    let (tracking, _) = other.track()?;
    second_consumer.check(&other, &tree, Fresh::Allowed).context("the other state again")?;
    other.stop(tracking)?;
    let fresh = stage.fresh();
    stage.pass(format!("four changes of the state, three over dead mounts; {fresh} fresh answers"))
}

/// An old copy of the state is put back. The consumers in it are of that time too and are told again; a cursor that was
/// given out since must not be taken.
pub(crate) fn restored(arguments: &ProductArgs) -> Result<String> {
    let mut stage = Stage::new(arguments, "restored", "ext4", &[])?.begin()?;
    let tree = stage.tree();
    script::run(&tree, 2);
    stage.check(Fresh::Never)?;
    stage.stop()?;
    let backup = stage.scratch.state.with_extension("backup");
    let _undo = CopiedState(&backup);
    run("cp", &["-a", text(&stage.scratch.state)?, text(&backup)?])?;

    stage.track()?;
    for round in 3..6 {
        script::run(&tree, round);
        stage.check(Fresh::Never)?;
    }
    let cursor = stage.consumer.as_ref().and_then(Consumer::cursor).context("no cursor")?.to_owned();
    script::run(&tree, 6);
    stage.stop()?;
    fs::remove_dir_all(&stage.scratch.state)?;
    run("cp", &["-a", text(&backup)?, text(&stage.scratch.state)?])?;
    script::run(&tree, 7);

    stage.track()?;
    let early = stage.product.changes_since(&cursor).map_err(|error| anyhow::anyhow!("{error}"))?;
    ensure!(early.fresh, "a cursor of the future was taken: {} lines", early.lines.len());
    // The consumer in the state is behind the one that we have: its answers begin earlier, and tell everything since.
    let since = stage.product.changes("faults").map_err(|error| anyhow::anyhow!("{error}"))?;
    ensure!(
        since.fresh
            || since.lines.iter().any(|line| line.path == b"top" || line.recursive || line.path == b"."),
        "the restored consumer is not told what changed since the backup"
    );
    // The restored volume counts on, and each of its trackers leaves out a random number of periods: it comes to and beyond the number of that
    // checkpoint, with other contents.
    let number = |cursor: &str| cursor.split('.').nth(2).and_then(|part| part.parse::<u64>().ok());
    let wanted = number(&cursor).context("not a cursor")?;
    let mut reached = number(&early.cursor);
    for round in 8..40 {
        script::run(&tree, round);
        let late = stage.product.changes_since(&cursor).map_err(|error| anyhow::anyhow!("{error}"))?;
        ensure!(
            late.fresh,
            "a cursor of the history that was replaced was taken: {} lines",
            late.lines.len()
        );
        reached = number(&late.cursor);
        if reached <= Some(wanted) {
            stage.stop()?;
            stage.track()?;
        }
    }
    ensure!(reached > Some(wanted), "the volume has not come so far again: {reached:?} of {wanted}");
    stage.pass(
        "a cursor from after the backup is fresh; the consumers of the backup are told what changed since",
    )
}

struct CopiedState<'a>(&'a Path);

impl Drop for CopiedState<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(self.0);
    }
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        // Only what a tracker has put over it; the filesystem below is the stage's.
        while crate::scratch::is_mounted(self.0) && is_ours(self.0) {
            let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn is_ours(at: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let at = at.to_string_lossy();
    let newest = mounts.lines().rfind(|line| line.split(' ').nth(4) == Some(&at));
    newest.is_some_and(|line| line.contains(" fuse.highwater "))
}

pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
