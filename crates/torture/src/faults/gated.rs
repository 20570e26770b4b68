//! A tracker behind a [`super::gate`]: killed at, or failed from, a chosen call.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::gate::{self, Call, Verdict};
use crate::cleanup::Guard;
use crate::product::Product;

/// What is decided about the calls, changed while the tracker runs.
#[derive(Default)]
struct Plan {
    /// Calls are counted.
    armed: bool,
    /// Killed at this one; the first is 1.
    kill_at: Option<u64>,
    count: u64,
    /// The name of the call that it was killed at.
    killed_at: Option<String>,
    /// The names of all counted calls.
    seen: Vec<String>,
}

/// Decides in the place of the plan, which then counts nothing.
pub(crate) type Decide = Box<dyn FnMut(&Call, &Path) -> Verdict + Send>;

/// A running tracker.
pub(crate) struct Gated {
    child: Child,
    plan: Arc<Mutex<Plan>>,
    lines: Receiver<String>,
    serving: Option<JoinHandle<()>>,
    _undo: Guard,
}

impl Gated {
    /// Starts `highwater track`. `kill_at`: counted from the first call of the process.
    pub(crate) fn start(product: &Product, kill_at: Option<u64>, roots: &Roots) -> Result<Self> {
        let plan = Arc::new(Mutex::new(Plan { armed: kill_at.is_some(), kill_at, ..Plan::default() }));
        let shared = Arc::clone(&plan);
        let roots = roots.clone();
        Self::start_with(product, &gate::changing(), plan, move |call| {
            if call.opens_only() {
                return Verdict::Go;
            }
            let mut plan = lock(&shared);
            if !plan.armed {
                return Verdict::Go;
            }
            let Some(name) = roots.name(call) else { return Verdict::Go };
            plan.count += 1;
            plan.seen.push(name.clone());
            if plan.kill_at == Some(plan.count) {
                plan.killed_at = Some(name);
                plan.armed = false;
                return Verdict::Kill;
            }
            Verdict::Go
        })
    }

    /// Starts `highwater track` with a decision of one's own about these calls.
    pub(crate) fn start_deciding(product: &Product, calls: &[i64], mut decide: Decide) -> Result<Self> {
        Self::start_with(product, calls, Arc::default(), move |call| decide(call, &call.target()))
    }

    fn start_with(
        product: &Product,
        calls: &[i64],
        plan: Arc<Mutex<Plan>>,
        decide: impl FnMut(&Call) -> Verdict + Send + 'static,
    ) -> Result<Self> {
        let (mut child, gate) = gate::spawn(product.track_command()?, calls)?;
        let pid = child.id();
        let undo = Guard::new(move || crate::product::kill_if_tracker(pid));
        let serving = std::thread::spawn(move || gate.serve(decide));
        let output = child.stdout.take().context("no stdout")?;
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = tell.send(line);
            }
        });
        Ok(Self { child, plan, lines, serving: Some(serving), _undo: undo })
    }

    /// Waits until it tracks: true. False: it has ended before.
    pub(crate) fn tracks(&mut self) -> Result<bool> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) if line.starts_with("tracking ") => return Ok(true),
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(false),
                Err(RecvTimeoutError::Timeout) => bail!("it did not track within 60 s"),
            }
        }
    }

    /// Counts calls from now on, and kills at this one.
    pub(crate) fn arm(&self, kill_at: u64) {
        let mut plan = lock(&self.plan);
        (plan.armed, plan.kill_at, plan.count) = (true, Some(kill_at), 0);
        plan.seen.clear();
    }

    /// Counts no more.
    pub(crate) fn disarm(&self) {
        lock(&self.plan).armed = false;
    }

    /// What it was killed at, if it was.
    pub(crate) fn killed_at(&self) -> Option<String> {
        lock(&self.plan).killed_at.clone()
    }

    /// The calls that were counted.
    pub(crate) fn seen(&self) -> Vec<String> {
        lock(&self.plan).seen.clone()
    }

    /// Kill -9.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.end().map(drop)
    }

    /// Waits for its end.
    pub(crate) fn end(&mut self) -> Result<ExitStatus> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(Instant::now() < deadline, "the tracker (pid {}) does not end", self.child.id());
            std::thread::sleep(Duration::from_millis(1));
        };
        if let Some(serving) = self.serving.take() {
            serving.join().map_err(|_| anyhow::anyhow!("the thread of the gate panicked"))?;
        }
        Ok(status)
    }
}

impl Drop for Gated {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn lock(plan: &Mutex<Plan>) -> MutexGuard<'_, Plan> {
    plan.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the files of a run are called in reports.
#[derive(Clone)]
pub(crate) struct Roots {
    pub(crate) state: PathBuf,
    pub(crate) tree: PathBuf,
}

impl Roots {
    /// The name of a call: what it does to which file. `None`: it changes nothing that survives the process.
    fn name(&self, call: &Call) -> Option<String> {
        let target = call.target();
        let text = target.to_string_lossy();
        let what = if let Ok(file) = target.strip_prefix(&self.state) {
            let name = file.to_string_lossy();
            if name.starts_with("journal-") {
                "state/journal-N.hwj".to_owned()
            } else {
                format!("state/{name}")
            }
        } else if text == "/dev/fuse" {
            "/dev/fuse".to_owned()
        } else if text.starts_with("socket:") {
            "socket".to_owned()
        } else if text.starts_with("pipe:") {
            "pipe".to_owned()
        } else if text.contains("eventfd") || text.contains("tracker.log") || text.starts_with("/proc/") {
            return None;
        } else if text.contains("/highwater/") || text.contains("/run") && text.contains(".json") {
            format!("run/{}", target.extension().unwrap_or_default().to_string_lossy())
        } else if target == self.tree {
            "tree".to_owned()
        } else {
            "below".to_owned()
        };
        Some(format!("{} {what}", call.name()))
    }
}
