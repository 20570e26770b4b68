//! Not root: `fusermount3` mounts, objects cannot be opened by their handles, and a dead mount cannot be replaced from beneath.
//!
//! So a kill is a gap, and what recovery cannot look for has to be told by a rescan of everything; never left out.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{CWD, FileType, Mode, makedev};
use rustix::mount::UnmountFlags;
use rustix::process::Signal;

use super::processes::signal;
use super::stage::output_within;
use crate::line::{Answer, Line, covers};
use crate::product::ProductArgs;
use crate::scratch::{Filesystem, Scratch, own_mounts};

/// `nobody`.
const USER: u32 = 65534;

/// Runs it.
pub(crate) fn run(arguments: &ProductArgs) -> Result<String> {
    let memory = Path::new("/dev/shm");
    let scratch =
        Scratch::new(&Filesystem::Image("ext4"), memory.is_dir().then_some(memory), "other-user", 64)?;
    // In a thread, whose mounts nobody else sees: the device for everybody, as it is on most machines.
    let seen = std::thread::scope(|scope| scope.spawn(|| in_namespace(arguments, &scratch)).join());
    let seen = seen.map_err(|_| anyhow::anyhow!("panicked"))??;
    scratch.discard_evidence();
    Ok(seen)
}

fn in_namespace(arguments: &ProductArgs, scratch: &Scratch) -> Result<String> {
    own_mounts()?;
    let device = scratch.evidence.join("fuse");
    let everybody = Mode::from_raw_mode(0o666);
    // Not on a filesystem without devices.
    let devices = scratch.evidence.join("devices");
    fs::create_dir(&devices)?;
    crate::scratch::run("mount", &["-t", "tmpfs", "-o", "dev", "none", &devices.to_string_lossy()])?;
    let device = devices.join(device.file_name().context("no name")?);
    rustix::fs::mknodat(CWD, &device, FileType::CharacterDevice, everybody, makedev(10, 229))?;
    fs::set_permissions(&device, fs::Permissions::from_mode(0o666))?;
    rustix::mount::mount_bind(&device, "/dev/fuse").context("cannot bind /dev/fuse")?;
    let user = User::new(arguments, scratch, &devices)?;
    let outcome = user.scenario();
    let _ = rustix::mount::unmount(&scratch.tree, UnmountFlags::DETACH);
    drop(user);
    let _ = rustix::mount::unmount("/dev/fuse", UnmountFlags::DETACH);
    rustix::mount::unmount(&devices, UnmountFlags::DETACH)?;
    fs::remove_dir(&devices)?;
    outcome
}

/// Somebody who tracks a directory of theirs.
struct User {
    binary: PathBuf,
    home: PathBuf,
    tree: PathBuf,
    log: PathBuf,
}

impl User {
    fn new(arguments: &ProductArgs, scratch: &Scratch, home: &Path) -> Result<Self> {
        // The build directory may be closed to others.
        let binary = home.join("highwater");
        fs::copy(arguments.binary()?, &binary)?;
        let home = home.join("home");
        fs::create_dir(&home)?;
        fs::create_dir_all(scratch.tree.join("d/e"))?;
        fs::create_dir_all(scratch.tree.join("x/y"))?;
        for file in ["d/e/file", "x/y/file", "x/y/second"] {
            fs::write(scratch.tree.join(file), "0")?;
        }
        fs::hard_link(scratch.tree.join("x/y/file"), scratch.tree.join("d/link"))?;
        for path in [
            home.clone(),
            scratch.tree.clone(),
            scratch.tree.join("d"),
            scratch.tree.join("d/e"),
            scratch.tree.join("x"),
            scratch.tree.join("x/y"),
            scratch.tree.join("d/e/file"),
            scratch.tree.join("x/y/file"),
            scratch.tree.join("x/y/second"),
        ] {
            chown(path, Some(USER), Some(USER))?;
        }
        let log = scratch.evidence.join("tracker.log");
        Ok(Self { binary, home, tree: scratch.tree.clone(), log })
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &USER.to_string(), "--regid", &USER.to_string(), "--clear-groups", "--"]);
        command.arg(program).env("HIGHWATER_RUNTIME_DIR", self.home.join("run")).env("HOME", &self.home);
        command.current_dir(&self.home).stdin(Stdio::null());
        command
    }

    fn highwater(&self, arguments: &[&str]) -> Result<String> {
        let output =
            output_within(self.command(&self.binary).args(arguments), std::time::Duration::from_secs(60))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {}: {stderr}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    fn dir(&self) -> Result<&str> {
        super::states::text(&self.tree)
    }

    fn track(&self) -> Result<Child> {
        let log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = self.command(&self.binary);
        command.arg("track").arg(&self.tree).arg("--state").arg(self.home.join("state"));
        let mut child = command.stdout(Stdio::piped()).stderr(log).spawn()?;
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().context("no stdout")?);
        output.read_line(&mut line)?;
        if !line.starts_with("tracking ") {
            child.wait()?;
            let mut log = String::new();
            fs::File::open(&self.log)?.read_to_string(&mut log)?;
            bail!("not tracked as user {USER}: {log}");
        }
        // `setpriv` becomes the tracker: the same process.
        child.stdout = None;
        Ok(child)
    }

    /// Writes as this user; nobody else can see into the mount.
    fn shell(&self, script: &str) -> Result<()> {
        let output = output_within(
            self.command(Path::new("sh")).args(["-c", script]).env("T", &self.tree),
            std::time::Duration::from_secs(30),
        )?;
        ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    fn changes(&self, consumer: &str) -> Result<Answer> {
        let text = self.highwater(&["changes", self.dir()?, "--consumer", consumer, "--format", "json"])?;
        Answer::parse(text.as_bytes())
    }

    fn ack(&self, consumer: &str, answer: &Answer) -> Result<()> {
        self.highwater(&["ack", self.dir()?, "--consumer", consumer, &answer.cursor]).map(drop)
    }

    /// Takes an answer, which has to tell these paths, or to be fresh.
    fn expect(&self, consumer: &str, paths: &[&str], when: &str) -> Result<&'static str> {
        let answer = self.changes(consumer)?;
        if !answer.fresh {
            for path in paths {
                ensure!(
                    covers(&answer.lines, path.as_bytes()),
                    "MISSED: {path}, {when}; told: {:?}",
                    answer.lines.iter().map(Line::show).collect::<Vec<_>>()
                );
            }
        }
        self.ack(consumer, &answer)?;
        Ok(if answer.fresh {
            "fresh"
        } else if answer.lines.iter().any(|line| line.path == b"." && line.recursive) {
            "a rescan of everything"
        } else {
            "told by name"
        })
    }

    fn scenario(&self) -> Result<String> {
        let mut seen = Vec::new();
        let mut tracker = self.track()?;
        for consumer in ["one", "behind"] {
            self.highwater(&["consumer", "add", self.dir()?, consumer])?;
            let first = self.changes(consumer)?;
            self.ack(consumer, &first)?;
        }
        self.shell("echo 1 > $T/d/e/file")?;
        seen.push(format!("tracked: {}", self.expect("one", &["d/e/file"], "while it was tracked")?));
        // Longer than the clocks may be apart, so that what was made before does not count as changed in the gap.
        std::thread::sleep(std::time::Duration::from_secs(4));
        self.highwater(&["stop", self.dir()?])?;
        tracker.wait()?;

        self.shell("echo gap > $T/x/y/file")?;
        tracker = self.track()?;
        seen.push(format!("after a gap: {}", self.expect("one", &["x/y/file", "d/link"], "in a gap")?));

        // `behind` has not been told of this when the tracker dies, and the gap begins after it.
        self.shell("echo 2 > $T/x/y/second; echo 2 > $T/d/e/file")?;
        self.expect("one", &["x/y/second", "d/e/file"], "while it was tracked again")?;
        std::thread::sleep(std::time::Duration::from_secs(4));
        self.expect("one", &[], "nothing")?;
        self.shell("echo 3 > $T/top")?;
        self.expect("one", &["top"], "while it was tracked")?;
        signal(tracker.id(), Signal::KILL)?;
        tracker.wait()?;
        let mut tracker = self.track()?;
        self.shell("ls -lR $T > /dev/null")?;
        let told =
            self.expect("behind", &["x/y/second", "d/e/file", "x/y/file", "d/link", "top"], "before a kill")?;
        seen.push(format!("behind a kill: {told}"));
        seen.push(format!("the other one: {}", self.expect("one", &["top"], "told before the kill")?));
        self.shell("echo 4 > $T/x/y/second")?;
        self.expect("one", &["x/y/second"], "after the kill")?;
        self.highwater(&["stop", self.dir()?])?;
        ensure!(tracker.wait()?.success(), "the stop failed");
        Ok(seen.join("; "))
    }
}
