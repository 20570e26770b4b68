//! The writer processes, seen from the oracle.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cleanup::Guard;

struct Writer {
    child: Arc<Mutex<Child>>,
    _undo: Guard,
    commands: ChildStdin,
    done: Receiver<String>,
}

/// All writers of a run. Dropped: killed.
pub(crate) struct Writers(Vec<Writer>);

impl Writers {
    /// Starts the processes; each does nothing until told.
    pub(crate) fn start(tree: &Path, evidence: &Path, count: u64, seed: u64) -> Result<Self> {
        let mut writers = Self(Vec::new());
        for id in 0..count {
            let mut child = Command::new(std::env::current_exe()?)
                .arg("worker")
                .arg("--tree")
                .arg(tree)
                .arg("--log")
                .arg(evidence.join(format!("writer-{id}.log")))
                .args(["--id", &id.to_string(), "--seed", &seed.to_string()])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .context("cannot start a writer")?;
            let commands = child.stdin.take().context("no stdin")?;
            let output = child.stdout.take().context("no stdout")?;
            let (tell, done) = channel();
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let _ = tell.send(line);
                }
            });
            let child = Arc::new(Mutex::new(child));
            let undo = Guard::new({
                let child = Arc::clone(&child);
                // `Child` knows whether it has been waited for, so no other process is hit.
                move || drop(lock(&child).kill())
            });
            writers.0.push(Writer { child, _undo: undo, commands, done });
        }
        Ok(writers)
    }

    /// Lets each writer do so many operations.
    pub(crate) fn go(&mut self, operations: u64) -> Result<()> {
        for writer in &mut self.0 {
            writeln!(writer.commands, "go {operations}").context("a writer is gone")?;
        }
        Ok(())
    }

    /// Waits until all of them have done what they were told.
    pub(crate) fn wait(&mut self, deadline: Instant) -> Result<()> {
        for (id, writer) in self.0.iter_mut().enumerate() {
            match writer.done.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    bail!("writer {id} has ended: {:?}", lock(&writer.child).try_wait())
                }
                Err(RecvTimeoutError::Timeout) => {
                    let pid = lock(&writer.child).id();
                    let waits = std::fs::read_to_string(format!("/proc/{pid}/stack")).unwrap_or_default();
                    bail!("writer {id} (pid {pid}) is stuck:\n{waits}")
                }
            }
        }
        Ok(())
    }
}

fn lock(child: &Mutex<Child>) -> MutexGuard<'_, Child> {
    child.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Writers {
    fn drop(&mut self) {
        for writer in &mut self.0 {
            let _ = lock(&writer.child).kill();
        }
        let deadline = Instant::now() + Duration::from_secs(10);
        for writer in &mut self.0 {
            // A writer in an uninterruptible wait must not keep the clean-up from ending that wait.
            while Instant::now() < deadline && matches!(lock(&writer.child).try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}
