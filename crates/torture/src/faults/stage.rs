//! What each scenario begins with: a filesystem, a tree on it, a volume, a consumer that is up to date.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::consumer::{Consumer, Fresh};
use super::script;
use crate::product::{Product, ProductArgs, Tracking};
use crate::scratch::{Filesystem, Scratch};

/// A volume under test. Dropped in this order.
pub(crate) struct Stage {
    pub(crate) tracking: Option<Tracking>,
    pub(crate) consumer: Option<Consumer>,
    pub(crate) product: Product,
    pub(crate) scratch: Scratch,
    passed: bool,
}

impl Stage {
    /// A tree with some files; nothing is tracked yet. `track_args`: for every start.
    pub(crate) fn new(arguments: &ProductArgs, name: &str, fs: &str, track_args: &[&str]) -> Result<Self> {
        Self::with_state(arguments, name, fs, track_args, |scratch| Ok(scratch.state.clone()))
    }

    /// The same with the state somewhere else.
    pub(crate) fn with_state(
        arguments: &ProductArgs,
        name: &str,
        fs: &str,
        track_args: &[&str],
        state: impl FnOnce(&Scratch) -> Result<PathBuf>,
    ) -> Result<Self> {
        let fs: Filesystem = fs.parse().map_err(|error: String| anyhow::anyhow!(error))?;
        let memory = Path::new("/dev/shm");
        let scratch = Scratch::new(&fs, memory.is_dir().then_some(memory), name, 320)?;
        script::prepare(&scratch.tree)?;
        let mut arguments = arguments.clone();
        arguments.track_args.extend(track_args.iter().map(|argument| (*argument).to_owned()));
        let state = state(&scratch)?;
        let product = Product::new(&arguments, &scratch.tree, &state, &scratch.evidence)?;
        Ok(Self { tracking: None, consumer: None, product, scratch, passed: false })
    }

    /// Starts tracking, and gives the volume its consumer, up to date.
    pub(crate) fn begin(mut self) -> Result<Self> {
        self.track()?;
        self.consumer = Some(Consumer::add(&self.product, "faults")?);
        self.check(Fresh::Never)?;
        Ok(self)
    }

    pub(crate) fn tree(&self) -> PathBuf {
        self.scratch.tree.clone()
    }

    pub(crate) fn track(&mut self) -> Result<()> {
        self.tracking = Some(self.product.track()?.0);
        Ok(())
    }

    /// Kill -9; the dead mount stays.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.tracking.take().context("nothing is tracked")?.kill()
    }

    /// Starts tracking, or says why that was refused. Leaves the mounts as they are.
    pub(crate) fn try_track(&mut self) -> Result<Result<(), String>> {
        self.try_track_by(self.product.track_command()?)
    }

    /// The same with a command of one's own.
    pub(crate) fn try_track_by(&mut self, mut command: Command) -> Result<Result<(), String>> {
        let before = self.log().len();
        let mut child = command.spawn()?;
        let mut output = std::io::BufReader::new(child.stdout.take().context("no stdout")?);
        let mut line = String::new();
        std::io::BufRead::read_line(&mut output, &mut line)?;
        if line.starts_with("tracking ") {
            self.tracking = Some(self.product.tracking_of(child));
            return Ok(Ok(()));
        }
        child.wait()?;
        Ok(Err(self.log().split_off(before)))
    }

    /// From now on the state is there.
    pub(crate) fn move_state(&mut self, arguments: &ProductArgs, state: &Path) -> Result<()> {
        self.product = Product::new(arguments, &self.scratch.tree, state, &self.scratch.evidence)?;
        Ok(())
    }

    pub(crate) fn stop(&mut self) -> Result<()> {
        self.product.stop(self.tracking.take().context("nothing is tracked")?)
    }

    /// The consumer takes what there is, and its replica has to be the tree.
    pub(crate) fn check(&mut self, fresh: Fresh) -> Result<()> {
        let tree = self.tree();
        self.consumer.as_mut().context("no consumer")?.check(&self.product, &tree, fresh)
    }

    /// How many fresh answers the consumer has had after its first.
    pub(crate) fn fresh(&self) -> u64 {
        self.consumer.as_ref().map_or(0, |consumer| consumer.fresh)
    }

    /// What `highwater status --json` says.
    pub(crate) fn status(&self) -> Result<Value> {
        let output = self.run(self.product.command("status").arg(self.tree()).arg("--json"))?;
        ensure!(output.status.success(), "status: {}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Why the volume says that it is failed, if it does.
    pub(crate) fn failed(&self) -> Result<Option<String>> {
        Ok(self.status()?["failed"].as_str().map(str::to_owned))
    }

    /// Runs a command that must end soon.
    pub(crate) fn run(&self, command: &mut Command) -> Result<Output> {
        output_within(command, Duration::from_secs(60))
    }

    /// What the trackers have said so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.evidence.join("tracker.log")).unwrap_or_default()
    }

    /// It went well: stops, and keeps no evidence.
    pub(crate) fn pass(mut self, seen: impl Into<String>) -> Result<String> {
        if self.tracking.is_some() {
            self.stop().context("at the end")?;
        }
        self.passed = true;
        Ok(seen.into())
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if self.passed {
            self.scratch.discard_evidence();
        } else {
            println!("  evidence: {}", self.scratch.evidence.display());
        }
    }
}

/// The output of a command that must end in time; else it is killed.
pub(crate) fn output_within(command: &mut Command, limit: Duration) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {command:?}"))?;
    let deadline = Instant::now() + limit;
    // What is printed here is short and fits into the pipes.
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            bail!("{command:?} did not end within {limit:?}");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(child.wait_with_output()?)
}

/// Waits until something holds.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds()? {
        ensure!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
