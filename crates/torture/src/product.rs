//! The product, seen only through its command line: the contract that scripts rely on.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::cleanup::Guard;
use crate::line::Answer;
use crate::scratch::unmount_all;

/// Where the `highwater` binary is and how to start it.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ProductArgs {
    /// The binary to test; else $HIGHWATER, else `highwater` beside this program.
    #[arg(long, env = "HIGHWATER", value_name = "PATH")]
    pub(crate) highwater: Option<PathBuf>,
    /// One more argument for `highwater track`; may be repeated.
    #[arg(long = "track-arg", value_name = "ARG", allow_hyphen_values = true)]
    pub(crate) track_args: Vec<String>,
    /// Data goes through the tracker instead of FUSE_PASSTHROUGH.
    #[arg(long)]
    pub(crate) no_passthrough: bool,
}

impl ProductArgs {
    pub(crate) fn binary(&self) -> Result<PathBuf> {
        if let Some(path) = &self.highwater {
            return path.canonicalize().with_context(|| format!("no binary at {}", path.display()));
        }
        let here = std::env::current_exe()?;
        for directory in here.ancestors().skip(1).take(2) {
            let candidate = directory.join("highwater");
            if candidate.is_file() {
                return Ok(candidate);
            }
        }
        bail!("no highwater binary beside {}: build it or give --highwater PATH", here.display())
    }

    /// The arguments that reproduce this choice, for the command that reruns a failure.
    pub(crate) fn rerun(&self) -> String {
        let mut text = String::new();
        if let Some(path) = &self.highwater {
            text += &format!(" --highwater {}", path.display());
        }
        for argument in &self.track_args {
            text += &format!(" --track-arg={argument}");
        }
        if self.no_passthrough {
            text += " --no-passthrough";
        }
        text
    }
}

/// Why a command gave no answer.
#[derive(Debug)]
pub(crate) enum AskError {
    /// Exit status 3: nobody tracks the directory.
    NotTracked(String),
    /// Any other failure.
    Failed(String),
}

impl std::fmt::Display for AskError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotTracked(why) => write!(f, "not tracked: {why}"),
            Self::Failed(why) => f.write_str(why),
        }
    }
}

/// One volume under test.
#[derive(Clone, Debug)]
pub(crate) struct Product {
    binary: PathBuf,
    dir: PathBuf,
    state: PathBuf,
    track_args: Vec<String>,
    log: PathBuf,
}

/// A running `highwater track`. Dropped: killed, and its mount taken away.
pub(crate) struct Tracking {
    child: Option<Child>,
    _undo: Guard,
}

impl Product {
    /// `evidence`: the tracker's output goes to `tracker.log` there.
    pub(crate) fn new(arguments: &ProductArgs, dir: &Path, state: &Path, evidence: &Path) -> Result<Self> {
        let mut track_args = arguments.track_args.clone();
        if arguments.no_passthrough {
            track_args.push("--no-passthrough".to_owned());
        }
        Ok(Self {
            binary: arguments.binary()?,
            dir: dir.to_owned(),
            state: state.to_owned(),
            track_args,
            log: evidence.join("tracker.log"),
        })
    }

    fn log(&self) -> Result<File> {
        Ok(OpenOptions::new().create(true).append(true).open(&self.log)?)
    }

    /// The last lines that a tracker has said on stderr.
    pub(crate) fn last_words(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let tail: Vec<&str> = log.lines().rev().take(5).collect();
        tail.into_iter().rev().collect::<Vec<_>>().join(" | ")
    }

    /// `highwater track`, not started; its output is to be read from a pipe.
    pub(crate) fn track_command(&self) -> Result<Command> {
        let mut command = Command::new(&self.binary);
        command.arg("track").arg(&self.dir).arg("--state").arg(&self.state).args(&self.track_args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(self.log()?);
        Ok(command)
    }

    /// Starts tracking and returns once changes are being seen; also how long that took.
    pub(crate) fn track(&self) -> Result<(Tracking, Duration)> {
        let begun = Instant::now();
        let mut child =
            self.track_command()?.spawn().with_context(|| format!("cannot run {}", self.binary.display()))?;
        let output = child.stdout.take().context("no stdout")?;
        let (tell, told) = mpsc::channel();
        // Reads on for ever, so that the tracker never blocks on a full pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        let mut tracking = self.tracking_of(child);
        let deadline = begun + Duration::from_secs(60);
        loop {
            match told.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with("tracking ") => return Ok((tracking, begun.elapsed())),
                Ok(_) => {}
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    bail!(
                        "`highwater track` did not print `tracking ...` within 60 s (log: {})",
                        self.log.display()
                    )
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    let status = tracking.child.as_mut().map(Child::wait).transpose()?;
                    bail!("`highwater track` ended before it tracked ({status:?}): {}", self.last_words())
                }
            }
        }
    }

    /// A tracker that has been started.
    pub(crate) fn tracking_of(&self, child: Child) -> Tracking {
        let pid = child.id();
        let dir = self.dir.clone();
        let undo = Guard::new(move || {
            kill_if_tracker(pid);
            unmount_all(&dir);
        });
        Tracking { child: Some(child), _undo: undo }
    }

    /// Starts a command; the caller reads its output.
    pub(crate) fn command(&self, name: &str) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg(name).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The tracked directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    fn ask(&self, command: &mut Command) -> Result<Vec<u8>, AskError> {
        let output: Output =
            command.output().map_err(|error| AskError::Failed(format!("cannot run highwater: {error}")))?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        match output.status.code() {
            Some(3) => Err(AskError::NotTracked(why)),
            _ => Err(AskError::Failed(format!("{command:?}: {}: {why}", output.status))),
        }
    }

    /// `highwater changes --consumer NAME --format json`. An answer that breaks the contract is an error.
    pub(crate) fn changes(&self, consumer: &str) -> Result<Answer, AskError> {
        let mut command = self.command("changes");
        command.arg(&self.dir).args(["--consumer", consumer, "--format", "json"]);
        let text = self.ask(&mut command)?;
        Answer::parse(&text)
            .map_err(|error| AskError::Failed(format!("the answer breaks the contract: {error:#}")))
    }

    /// `highwater changes --since CURSOR --format json`.
    pub(crate) fn changes_since(&self, cursor: &str) -> Result<Answer, AskError> {
        let mut command = self.command("changes");
        command.arg(&self.dir).args(["--since", cursor, "--format", "json"]);
        let text = self.ask(&mut command)?;
        Answer::parse(&text)
            .map_err(|error| AskError::Failed(format!("the answer breaks the contract: {error:#}")))
    }

    /// `highwater ack`.
    pub(crate) fn ack(&self, consumer: &str, cursor: &str) -> Result<(), AskError> {
        let mut command = self.command("ack");
        self.ask(command.arg(&self.dir).args(["--consumer", consumer, cursor])).map(drop)
    }

    /// `highwater consumer add`.
    pub(crate) fn add_consumer(&self, consumer: &str) -> Result<(), AskError> {
        let mut command = self.command("consumer");
        self.ask(command.arg("add").arg(&self.dir).arg(consumer)).map(drop)
    }

    /// `highwater consumer remove`.
    pub(crate) fn remove_consumer(&self, consumer: &str) -> Result<(), AskError> {
        let mut command = self.command("consumer");
        self.ask(command.arg("remove").arg(&self.dir).arg(consumer)).map(drop)
    }

    /// `highwater stop`: a clean stop.
    pub(crate) fn stop(&self, mut tracking: Tracking) -> Result<()> {
        let mut command = self.command("stop");
        self.ask(command.arg(&self.dir)).map_err(|error| anyhow::anyhow!("highwater stop: {error}"))?;
        let Some(mut child) = tracking.child.take() else { return Ok(()) };
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = child.try_wait()? {
                ensure!(status.success(), "the tracker ended with {status} after `highwater stop`");
                return Ok(());
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                bail!("the tracker was still running 60 s after `highwater stop`");
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Tracking {
    /// Kill -9, and waits for the process to be gone.
    pub(crate) fn kill(mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill()?;
            child.wait()?;
        }
        // The dead mount stays: `highwater track` has to cope with it.
        std::mem::forget(self);
        Ok(())
    }

    /// The tracker's process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// How the tracker ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<std::process::ExitStatus> {
        self.child.as_mut().and_then(|child| child.try_wait().ok().flatten())
    }
}

impl Drop for Tracking {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Kills by id, but only if the id still is a tracker: the child may have been waited for.
pub(crate) fn kill_if_tracker(pid: u32) {
    let Ok(command) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return };
    let mut words = command.split(|byte| *byte == 0);
    let is_highwater = words.next().is_some_and(|word| word.ends_with(b"highwater"));
    if is_highwater
        && words.next() == Some(b"track")
        && let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw)
    {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}
