//! A machine that is out of memory, or of descriptors.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::consumer::Fresh;
use super::script;
use super::stage::Stage;
use crate::cleanup::Guard;
use crate::product::ProductArgs;

/// Directories and files in each, that the tracker is made to know all at once.
const DIRECTORIES: u64 = 60;
const FILES: u64 = 400;

/// How long a tracker may still be without descriptors after the programs have closed their files.
const RECOVERY_MAX: Duration = Duration::from_secs(10);

/// In a cgroup with a limit below what it needs (what it had before it came in does not count): it is killed, or it lives; nothing is missed either way.
pub(crate) fn memory(arguments: &ProductArgs) -> Result<String> {
    let mut stage = Stage::new(arguments, "memory", "tmpfs", &[])?;
    let tree = stage.tree();
    for directory in 0..DIRECTORIES {
        let directory = tree.join(format!("m/{directory}"));
        fs::create_dir_all(&directory)?;
        for file in 0..FILES {
            File::create(directory.join(file.to_string()))?;
        }
    }
    stage = stage.begin()?;
    let (mut killed, mut lived) = (0, 0);
    for (round, limit_mib) in [1, 2, 4, 64].into_iter().enumerate() {
        let group = Group::new(limit_mib)?;
        let tracking = stage.tracking.as_mut().context("nothing is tracked")?;
        group.add(tracking.pid())?;
        for directory in 0..DIRECTORIES {
            let directory = format!("m/{directory}");
            // The inodes, and so the nodes of the tracker, stay as long as the kernel has the memory.
            let Ok(entries) = fs::read_dir(tree.join(&directory)) else { break };
            let met = entries.flatten().map(|entry| entry.metadata()).take_while(Result::is_ok).count();
            let _ = fs::write(tree.join(&directory).join("changed"), format!("round {round} {met}"));
        }
        script::run(&tree, 10 + round as u64);
        // It may be dying right now; then the next start finds out.
        if stage.check(Fresh::Never).is_ok() {
            lived += 1;
            stage.kill()?;
        } else {
            let tracking = stage.tracking.as_mut().context("nothing is tracked")?;
            let pid = tracking.pid();
            let status = (0..400).find_map(|_| {
                std::thread::sleep(std::time::Duration::from_millis(5));
                tracking.ended()
            });
            let Some(status) = status else { bail!("tracker {pid} is alive and its answers are not right") };
            let signal = std::os::unix::process::ExitStatusExt::signal(&status);
            ensure!(
                matches!(signal, Some(libc::SIGKILL | libc::SIGABRT)),
                "a tracker without memory ended with {status}: {}",
                stage.product.last_words()
            );
            killed += 1;
            stage.kill()?;
        }
        drop(group);
        stage.track()?;
        stage.check(Fresh::Never).with_context(|| format!("after a limit of {limit_mib} MiB"))?;
    }
    ensure!(killed > 0, "no limit was low enough to be one");
    stage.pass(format!("killed for want of memory {killed} times, lived {lived} times; nothing missed"))
}

/// A cgroup with a limit of memory, of version 2 or 1, whichever has the controller.
struct Group {
    at: PathBuf,
    _undo: Guard,
}

impl Group {
    fn new(limit_mib: u64) -> Result<Self> {
        let name = format!("highwater-torture-{}-{limit_mib}", std::process::id());
        let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers");
        let has_v2 = fs::read_to_string(v2).is_ok_and(|text| text.contains("memory"));
        let (root, limit) = if has_v2 {
            fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+memory").context("no memory controller")?;
            ("/sys/fs/cgroup", "memory.max")
        } else {
            ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
        };
        let at = Path::new(root).join(name);
        fs::create_dir(&at)
            .with_context(|| format!("no cgroup with a memory controller: {}", at.display()))?;
        let undo = Guard::new({
            let at = at.clone();
            move || {
                // Whoever is still in it goes up.
                let _ = fs::read_to_string(at.join("cgroup.procs")).map(|pids| {
                    pids.lines().for_each(|pid| drop(fs::write(Path::new(root).join("cgroup.procs"), pid)));
                });
                let _ = fs::remove_dir(&at);
            }
        });
        fs::write(at.join(limit), (limit_mib << 20).to_string())?;
        // Without swap, or there is always more.
        let _ = fs::write(at.join("memory.swap.max"), "0");
        Ok(Self { at, _undo: undo })
    }

    fn add(&self, pid: u32) -> Result<()> {
        // Version 1: what it has already counts as well, and is reclaimed or refused.
        let _ = fs::write(self.at.join("memory.move_charge_at_immigrate"), "3");
        Ok(fs::write(self.at.join("cgroup.procs"), pid.to_string())?)
    }
}

/// Programs hold more files open than the tracker may have descriptors.
pub(crate) fn descriptors(arguments: &ProductArgs) -> Result<String> {
    let mut seen = Vec::new();
    for limit in [16, 48, 64, 128] {
        let mut stage = Stage::new(arguments, "descriptors", "ext4", &[])?.begin()?;
        let tree = stage.tree();
        for number in 0..200 {
            fs::write(tree.join(format!("a/{number}")), "0")?;
            fs::create_dir(tree.join(format!("a/directory-{number}")))?;
        }
        stage.check(Fresh::Never)?;
        stage.kill()?;
        let mut command = stage.product.track_command()?;
        // SAFETY: one call that is safe between fork and exec.
        unsafe {
            command.pre_exec(move || {
                let limit = libc::rlimit { rlim_cur: limit, rlim_max: limit };
                match libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                }
            });
        }
        if let Err(why) = stage.try_track_by(command)? {
            seen.push(format!(
                "{limit}: no start (\"{}\")",
                why.trim().rsplit(": ").next().unwrap_or_default()
            ));
            stage.track()?;
            stage.check(Fresh::Never)?;
            stage.pass("")?;
            continue;
        }
        let mut held = Vec::new();
        let mut refused = 0;
        for number in 0..200 {
            match File::options().write(true).open(tree.join(format!("a/{number}"))) {
                Ok(file) => {
                    std::os::unix::fs::FileExt::write_all_at(&file, format!("held {number}").as_bytes(), 0)?;
                    held.push(file);
                }
                Err(_) => refused += 1,
            }
        }
        // The tracker keeps directories open that have been used lately.
        for number in 0..200 {
            let _ = fs::write(tree.join(format!("a/directory-{number}/file")), "new");
        }
        script::run(&tree, 2);
        let consumer = stage.consumer.as_mut().context("no consumer")?;
        let asked = consumer.turn(&stage.product, &tree, Fresh::Allowed);
        let asked = if asked.is_ok() { "answered" } else { "refused" };
        // A program that goes on writing to what it got.
        for (number, file) in held.iter().enumerate() {
            std::os::unix::fs::FileExt::write_all_at(file, format!("again {number}").as_bytes(), 0)?;
        }
        seen.push(format!("{limit}: {} opened, {refused} refused, the question {asked}", held.len()));
        drop(held);
        // The kernel lets go of what was open in its own time.
        let began = Instant::now();
        while let Err(error) = stage.check(Fresh::Allowed) {
            let is_about_changes =
                ["MISSED", "forgotten"].iter().any(|word| error.to_string().contains(word));
            ensure!(
                !is_about_changes && began.elapsed() < RECOVERY_MAX,
                "limit {limit}: after the load: {error:#}"
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        script::run(&tree, 3);
        stage.check(Fresh::Allowed)?;
        let tracking = stage.tracking.as_mut().context("nothing is tracked")?;
        ensure!(tracking.ended().is_none(), "the tracker has ended for want of descriptors");
        stage.kill()?;
        stage.track()?;
        stage.check(Fresh::Allowed).with_context(|| format!("limit {limit}: the next tracker"))?;
        stage.pass("")?;
    }
    Ok(seen.join("; "))
}
