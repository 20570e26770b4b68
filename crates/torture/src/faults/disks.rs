//! Faults of disks: full, failing, read-only, gone.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::consumer::{Consumer, Fresh};
use super::gate::Verdict;
use super::gated::Gated;
use super::processes::unmounted;
use super::script;
use super::stage::{Stage, eventually};
use super::states::text;
use crate::cleanup::Guard;
use crate::product::ProductArgs;
use crate::scratch::{Scratch, is_mounted, run, unmount_all};

/// A disk for the journal alone. Its stage is dropped first.
struct Disk {
    at: PathBuf,
    _undo: Guard,
}

impl Disk {
    /// A tmpfs: its space is counted by the page, and can be changed.
    fn tmpfs(scratch: &Scratch, size_mib: u64) -> Result<Self> {
        let disk = Self::at(scratch)?;
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size_mib}m"), "none", text(&disk.at)?])?;
        Ok(disk)
    }

    /// An ext4 that becomes read-only at the first error.
    fn ext4(scratch: &Scratch) -> Result<Self> {
        let disk = Self::at(scratch)?;
        let image = disk.at.with_extension("image");
        File::create(&image)?.set_len(96 << 20)?;
        run("mkfs.ext4", &["-q", "-F", text(&image)?])?;
        run("mount", &["-o", "loop,errors=remount-ro", text(&image)?, text(&disk.at)?])?;
        // The loop device keeps it.
        fs::remove_file(image)?;
        Ok(disk)
    }

    fn at(scratch: &Scratch) -> Result<Self> {
        let at = scratch.state.with_extension("disk");
        fs::create_dir(&at)?;
        let undo = Guard::new({
            let at = at.clone();
            move || {
                unmount_all(&at);
                let _ = fs::remove_dir(&at);
            }
        });
        Ok(Self { at, _undo: undo })
    }

    fn resize(&self, size_mib: u64) -> Result<()> {
        run("mount", &["-o", &format!("remount,size={size_mib}m"), text(&self.at)?])
    }

    /// Fills what is free.
    fn fill(&self) -> Result<()> {
        let mut file = File::create(self.at.join("filler"))?;
        let chunk = vec![1; 1 << 16];
        loop {
            match file.write_all(&chunk) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn free(&self) -> Result<()> {
        Ok(fs::remove_file(self.at.join("filler"))?)
    }
}

/// A stage whose journal is on a disk of its own.
fn on_disk(
    arguments: &ProductArgs,
    name: &str,
    track_args: &[&str],
    make: impl FnOnce(&Scratch) -> Result<Disk>,
) -> Result<(Stage, Disk)> {
    let mut disk = None;
    let stage = Stage::with_state(arguments, name, "ext4", track_args, |scratch| {
        let made = make(scratch)?;
        let state = made.at.join("state");
        disk = Some(made);
        Ok(state)
    })?;
    Ok((stage.begin()?, disk.context("no disk")?))
}

/// Makes records until something holds: renames with long names, whose records are the largest.
fn churn(tree: &Path, mut enough: impl FnMut() -> Result<bool>) -> Result<io::Result<()>> {
    let names = [tree.join("c").join("n".repeat(250)), tree.join("c").join("m".repeat(250))];
    let mut written = fs::write(&names[0], "churn").or_else(|_| fs::metadata(&names[1]).map(drop));
    let deadline = Instant::now() + Duration::from_secs(180);
    for turn in 0_usize.. {
        if written.is_err() || turn.is_multiple_of(512) && enough()? {
            break;
        }
        ensure!(Instant::now() < deadline, "the journal is not full after 180 s");
        let (from, to) = (&names[turn % 2], &names[(turn + 1) % 2]);
        written = match fs::rename(from, to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            renamed => renamed,
        };
    }
    Ok(written)
}

/// The writers go on, the consumers are told to take everything, and it ends by itself when there is room again.
pub(crate) fn full_overflow(arguments: &ProductArgs) -> Result<String> {
    let track = ["--on-full", "overflow"];
    let (mut stage, disk) = on_disk(arguments, "full-overflow", &track, |scratch| Disk::tmpfs(scratch, 40))?;
    let tree = stage.tree();
    disk.fill()?;
    let written = churn(&tree, || Ok(stage.failed()?.is_some()))?;
    written.context("a writer was failed although the policy is overflow")?;
    let why = stage.failed()?.unwrap_or_default();
    ensure!(why.contains("full"), "status does not say that the disk is full: {why:?}");
    script::run(&tree, 2);
    fs::create_dir(tree.join("made-when-full"))
        .context("a writer was failed although the policy is overflow")?;
    let (before, consumer) = (stage.fresh(), stage.consumer.as_mut().context("no consumer")?);
    // Its cursor needs the disk as well: it may be told that it was not stored, and asks again.
    if let Err(trouble) = consumer.turn(&stage.product, &tree, Fresh::Allowed) {
        let text = trouble.to_string();
        ensure!(text.contains("No space left"), "while the disk is full: {text}");
    }
    let while_full = stage.fresh() - before;
    ensure!(while_full > 0, "changes were lost and nobody was told");

    script::run(&tree, 3);
    disk.free()?;
    disk.resize(200)?;
    script::run(&tree, 4);
    stage.check(Fresh::Allowed).context("with room again")?;
    eventually("status is well again", || Ok(stage.failed()?.is_none()))
        .with_context(|| format!("{:?}", stage.failed()))?;
    let before = stage.fresh();
    script::run(&tree, 5);
    stage.check(Fresh::Allowed)?;
    script::run(&tree, 6);
    stage.check(Fresh::Allowed)?;
    let after = stage.fresh() - before;
    ensure!(after <= 1, "there is room again, and the answers stay fresh");
    stage.kill()?;
    stage.track()?;
    // The horizon may not have passed what did not fit.
    stage.check(Fresh::Allowed).context("killed after that")?;
    script::run(&tree, 8);
    stage.check(Fresh::Never)?;
    stage.pass(format!(
        "writers went on; {while_full} fresh answers while full, {after} after that; status said {why:?}"
    ))
}

/// What needs an intent fails with ENOSPC, and works again when there is room.
pub(crate) fn full_fail(arguments: &ProductArgs) -> Result<String> {
    let (mut stage, disk) =
        on_disk(arguments, "full-fail", &["--on-full", "fail"], |scratch| Disk::tmpfs(scratch, 40))?;
    let tree = stage.tree();
    disk.fill()?;
    // A new directory at each look needs intents, so that the end shows.
    let number = std::cell::Cell::new(0);
    let probe = || {
        number.set(number.get() + 1);
        let name = if number.get() % 2 == 0 { "a/probe" } else { "d/probe" };
        match fs::hard_link(tree.join("top"), tree.join(format!("{name}-{}", number.get()))) {
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => Ok(true),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(false),
        }
    };
    let _ = churn(&tree, probe)?;
    let error = fs::write(tree.join("b/deep/needs-an-intent"), "x").err();
    let code = error.as_ref().and_then(io::Error::raw_os_error);
    ensure!(code == Some(libc::ENOSPC), "an operation that needs an intent on a full disk: {error:?}");
    let consumer = stage.consumer.as_mut().context("no consumer")?;
    if let Err(trouble) = consumer.turn(&stage.product, &tree, Fresh::Allowed) {
        let text = trouble.to_string();
        ensure!(text.contains("No space left"), "while the disk is full: {text}");
    }
    let while_full = stage.fresh();
    disk.free()?;
    disk.resize(200)?;
    fs::write(tree.join("b/deep/needs-an-intent"), "x").context("there is room again")?;
    stage.check(Fresh::Allowed).context("with room again")?;
    script::run(&tree, 3);
    stage.check(Fresh::Allowed)?;
    let before = stage.fresh();
    script::run(&tree, 4);
    stage.check(Fresh::Allowed)?;
    ensure!(stage.fresh() == before, "there is room again, and the answers stay fresh");
    stage.kill()?;
    stage.track()?;
    // The horizon may not have passed what did not fit.
    stage.check(Fresh::Allowed).context("killed after that")?;
    script::run(&tree, 8);
    stage.check(Fresh::Never)?;
    stage
        .pass(format!("ENOSPC while full, {while_full} fresh answers; it works again, and nothing is missed"))
}

/// Killed with a full disk: the next start says what is wrong, and the directory stays closed until there is room.
pub(crate) fn full_restart(arguments: &ProductArgs) -> Result<String> {
    let (mut stage, disk) = on_disk(arguments, "full-restart", &[], |scratch| Disk::tmpfs(scratch, 40))?;
    let tree = stage.tree();
    script::run(&tree, 2);
    disk.fill()?;
    script::run(&tree, 3);
    let mut starts = 0;
    let why = loop {
        stage.kill()?;
        starts += 1;
        ensure!(starts < 10, "a full disk is no reason not to start");
        match stage.try_track()? {
            Ok(()) => {
                script::run(&tree, 3 + starts);
                stage.check(Fresh::Allowed).context("started on a full disk")?;
                // The spare segment has been used by this start; what it has dropped makes room for another one.
                disk.fill()?;
            }
            Err(why) => break why,
        }
    };
    ensure!(why.contains("disk is full"), "a start on a full disk: {why}");
    ensure!(fs::read_dir(&tree).is_err(), "the directory is open without a tracker");
    disk.free()?;
    disk.resize(200)?;
    stage.track()?;
    stage.check(Fresh::Allowed).context("started with room again")?;
    script::run(&tree, 20);
    stage.check(Fresh::Never)?;
    stage.pass(format!("start {starts} on a full disk is refused (\"{}\"), the directory stays closed, and it recovers with room", last(&why)))
}

/// The journal stops at the first error; what is covered goes on, everything else is refused, answers are fresh.
pub(crate) fn eio(arguments: &ProductArgs) -> Result<String> {
    let mut seen = Vec::new();
    const ALL: &[i64] =
        &[libc::SYS_pwrite64, libc::SYS_fdatasync, libc::SYS_fsync, libc::SYS_write, libc::SYS_fallocate];
    let cases: [(&str, &[i64]); 4] = [
        ("fdatasync", &[libc::SYS_fdatasync]),
        ("pwrite", &[libc::SYS_pwrite64]),
        ("fsync", &[libc::SYS_fsync]),
        ("everything", ALL),
    ];
    for (name, calls) in cases {
        let ends = [false, true];
        for by_kill in ends {
            eio_of(arguments, calls, by_kill)
                .with_context(|| format!("EIO of {name}, ended by kill: {by_kill}"))?;
        }
        seen.push(name);
    }
    Ok(format!(
        "EIO of {}: what is covered went on, the rest answered EIO, answers were fresh, status said so; a new tracker on a healthy disk missed nothing",
        seen.join(", ")
    ))
}

fn eio_of(arguments: &ProductArgs, calls: &'static [i64], by_kill: bool) -> Result<()> {
    let mut stage = Stage::new(arguments, "eio", "ext4", &[])?;
    let tree = stage.tree();
    let is_broken = Arc::new(AtomicBool::new(false));
    let (broken, state) = (Arc::clone(&is_broken), stage.scratch.state.clone());
    let decide = move |_: &super::gate::Call, target: &Path| {
        // ORDERING: a flag.
        let fails = broken.load(Ordering::Relaxed) && target.starts_with(&state);
        if fails { Verdict::Fail(libc::EIO) } else { Verdict::Go }
    };
    let mut tracker = Gated::start_deciding(&stage.product, calls, Box::new(decide))?;
    ensure!(tracker.tracks()?, "it does not track: {}", stage.product.last_words());
    let mut consumer = Consumer::add(&stage.product, "faults")?;
    consumer.check(&stage.product, &tree, Fresh::Never)?;
    fs::write(tree.join("a/covered"), "1")?;
    fs::create_dir(tree.join("d/inside"))?;
    consumer.check(&stage.product, &tree, Fresh::Never)?;
    fs::write(tree.join("a/covered"), "told before it broke?")?;

    is_broken.store(true, Ordering::Relaxed);
    let syncs_only = calls == [libc::SYS_fsync];
    // The first one that needs the disk finds out.
    let error = fs::write(tree.join("b/deep/needs-an-intent"), "x").err();
    if !syncs_only {
        let code = error.as_ref().and_then(io::Error::raw_os_error);
        ensure!(code == Some(libc::EIO), "an operation that needs an intent on a failed journal: {error:?}");
    }
    fs::write(tree.join("a/covered"), "2").context("an operation that is covered")?;
    let answer = consumer.turn(&stage.product, &tree, Fresh::Allowed);
    let failed = stage.failed()?;
    if !syncs_only {
        ensure!(consumer.fresh > 0, "the answer of a failed journal is not fresh: {answer:?}");
        let failed = failed.context("status does not say that the journal has failed")?;
        ensure!(failed.contains("Input/output error"), "status: {failed}");
    }
    fs::write(tree.join("a/covered"), "3").context("an operation that is covered")?;
    fs::write(tree.join("d/inside/file"), "3").context("in a directory that is covered with its parent")?;
    // A read-only look must not be worse for it.
    ensure!(fs::read(tree.join("a/covered"))? == b"3");

    if by_kill {
        tracker.kill()?;
    } else {
        let output = stage.run(stage.product.command("stop").arg(&tree))?;
        ensure!(!output.status.success(), "a stop whose journal has failed says that it was clean");
        tracker.end()?;
        unmounted(&tree)?;
        script::in_the_gap(&tree, 1)?;
    }
    drop(tracker);
    stage.track().context("on a healthy disk")?;
    consumer.check(&stage.product, &tree, Fresh::Allowed).context("after a new start on a healthy disk")?;
    script::run(&tree, 2);
    let before = consumer.fresh;
    consumer.check(&stage.product, &tree, Fresh::Allowed)?;
    ensure!(consumer.fresh == before, "the new tracker's answers stay fresh");
    stage.pass("").map(drop)
}

/// ext4 becomes read-only at an error of its own, while files are open for writing.
pub(crate) fn read_only(arguments: &ProductArgs) -> Result<String> {
    let (mut stage, disk) = on_disk(arguments, "read-only", &[], Disk::ext4)?;
    let tree = stage.tree();
    fs::write(tree.join("a/covered"), "1")?;
    stage.check(Fresh::Never)?;
    let state = disk.at.join("state");
    break_ext4(&disk.at)?;
    let error = fs::write(tree.join("b/deep/needs-an-intent"), "x").err();
    ensure!(
        error.as_ref().and_then(io::Error::raw_os_error) == Some(libc::EIO),
        "an operation that needs an intent with a read-only journal: {error:?}"
    );
    fs::write(tree.join("a/covered"), "2").context("an operation that is covered")?;
    let consumer = stage.consumer.as_mut().context("no consumer")?;
    let asked = consumer.turn(&stage.product, &tree, Fresh::Allowed);
    ensure!(asked.is_err() || consumer.fresh > 0, "the answer of a failed journal is a difference");
    ensure!(stage.failed()?.is_some(), "status does not say that the journal has failed");
    stage.kill()?;
    let why = stage.try_track()?.err().unwrap_or_default();
    ensure!(
        why.contains("read-only") || why.contains("Read-only"),
        "a start with a read-only state: {why:?}"
    );
    // What is there is whole; a healthy disk is another one with a copy.
    let healthy = stage.scratch.state.clone();
    run("cp", &["-a", text(&state)?, text(&healthy)?])?;
    stage.move_state(arguments, &healthy)?;
    stage.track()?;
    stage.check(Fresh::Allowed).context("with the state on a healthy disk")?;

    // The tracked one: changes fail, questions are answered.
    script::run(&tree, 3);
    stage.check(Fresh::Never)?;
    script::run(&tree, 4);
    break_ext4(&stage.scratch.lower)?;
    let error = fs::write(tree.join("a/covered"), "3").err();
    ensure!(error.is_some(), "a file was written on a read-only filesystem");
    stage.check(Fresh::Allowed).context("the tracked filesystem is read-only")?;
    let output = stage.run(stage.product.command("stop").arg(&tree))?;
    let stopped = if output.status.success() {
        "a stop works".to_owned()
    } else {
        last(&String::from_utf8_lossy(&output.stderr))
    };
    ensure!(!is_mounted(&tree), "the mount is still there after a stop: {stopped}");
    stage.tracking = None;
    drop(disk);
    stage.pass(format!(
        "journal: EIO, fresh, a start is refused (\"{}\"); tracked filesystem: answers go on; {stopped}",
        last(&why)
    ))
}

/// Lets ext4 find an error, as in its own tests.
fn break_ext4(at: &Path) -> Result<()> {
    let device = fs::metadata(at)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let block = fs::read_link(format!("/sys/dev/block/{major}:{minor}"))?;
    let name = block.file_name().context("no device name")?.to_string_lossy().into_owned();
    run("mount", &["-o", "remount,errors=remount-ro", text(at)?])?;
    fs::write(format!("/sys/fs/ext4/{name}/trigger_fs_error"), "1").context("trigger_fs_error")?;
    eventually("ext4 is read-only", || {
        let error = fs::write(at.join("probe"), "x").err();
        Ok(error.is_some_and(|error| error.raw_os_error() == Some(libc::EROFS)))
    })
}

/// Somebody unmounts the filesystem, with the tracker's mount in it, by force.
pub(crate) fn device_gone(arguments: &ProductArgs) -> Result<String> {
    let mut stage = Stage::new(arguments, "device-gone", "ext4", &[])?.begin()?;
    let tree = stage.tree();
    let home = tree.parent().context("no parent")?.to_owned();
    script::run(&tree, 2);
    let device = source_of(&home)?;
    run("umount", &["-l", text(&home)?])?;
    let tracking = stage.tracking.take().context("nothing is tracked")?;
    let mut tracking = tracking;
    eventually("the tracker ends", || Ok(tracking.ended().is_some()))?;
    let said = stage.product.last_words();
    ensure!(said.contains("unmounted"), "the tracker does not say why it has ended: {said}");
    drop(tracking);
    run("mount", &[&device, text(&home)?])?;
    script::in_the_gap(&tree, 1)?;
    stage.track().context("with the filesystem back")?;
    stage.check(Fresh::Allowed).context("with the filesystem back")?;
    script::run(&tree, 3);
    stage.check(Fresh::Never)?;
    stage.pass(format!("the tracker ended (\"{}\"), and the next one missed nothing", last(&said)))
}

fn source_of(at: &Path) -> Result<String> {
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let at = text(at)?;
    let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(at)).context("not mounted")?;
    Ok(line.split(' ').next().unwrap_or_default().to_owned())
}

fn last(text: &str) -> String {
    text.trim().rsplit(" | ").next().unwrap_or_default().to_owned()
}
