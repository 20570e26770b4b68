//! The temporary directory and the tracker's process, and that nothing of them is left behind.
//!
//! However the demo ends (done, failed, Ctrl-C), the tracker's process is ended, the mount is taken away, and then the
//! directory is removed: in this order, and never the tree through a live mount.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use highwater_client::{RuntimeDirectory, Volume, stacked_mounts};
use rustix::mount::{UnmountFlags, unmount};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use tempfile::TempDir;

use super::late_buffer::LateBuffer;
use crate::exit::Failure;

/// As a shell tells a program that was ended by Ctrl-C.
const INTERRUPTED: i32 = 130;

/// Where the story takes place.
pub(super) struct Stage {
    home: PathBuf,
    props: Arc<Mutex<Props>>,
    keep: bool,
}

/// What has to be cleared away.
struct Props {
    home: Option<TempDir>,
    tracker: Option<Child>,
    /// While a write is stalled nothing that waits for it can end, not even by SIGKILL: it has to go on first.
    late: Option<Arc<LateBuffer>>,
}

impl Stage {
    /// Makes the directories. From now on Ctrl-C clears them away.
    pub(super) fn set(keep: bool) -> Result<Self> {
        let home = tempfile::Builder::new().prefix("highwater-demo-").tempdir();
        let home = home.context("cannot make a temporary directory")?;
        let path = home.path().canonicalize().context("cannot find the temporary directory")?;
        for name in ["tree", "copy", "run"] {
            std::fs::create_dir(path.join(name)).context("cannot fill the temporary directory")?;
        }
        let props = Arc::new(Mutex::new(Props { home: Some(home), tracker: None, late: None }));
        let mut signals =
            signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]).context("cannot catch signals")?;
        let stage = Self { home: path, props, keep };
        let (props, tree) = (Arc::clone(&stage.props), stage.tree());
        std::thread::spawn(move || {
            if signals.forever().next().is_some() {
                let mut props = props.lock().unwrap_or_else(PoisonError::into_inner);
                props.strike(&tree);
                props.home = None;
                std::process::exit(INTERRUPTED);
            }
        });
        Ok(stage)
    }

    pub(super) fn home(&self) -> &Path {
        &self.home
    }

    /// The tracked directory.
    pub(super) fn tree(&self) -> PathBuf {
        self.home.join("tree")
    }

    /// The copy that is kept from change lists alone.
    pub(super) fn copy(&self) -> PathBuf {
        self.home.join("copy")
    }

    fn props(&self) -> MutexGuard<'_, Props> {
        self.props.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a tracker of the tree, a process of its own; returns when changes are being seen.
    pub(super) fn start_tracker(&self) -> Result<()> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let log_path = self.home.join("tracker.log");
        let log = File::options().create(true).append(true).open(&log_path).context("cannot write a log")?;
        let mut props = self.props();
        let mut child = Command::new(program)
            .arg("track")
            .arg(self.tree())
            .arg("--state")
            .arg(self.home.join("state"))
            .arg("--end-with-parent")
            .env("HIGHWATER_RUNTIME_DIR", self.home.join("run"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            // Ctrl-C is for us; we end it.
            .process_group(0)
            .spawn()
            .context("cannot start the tracker")?;
        let stdout = child.stdout.take();
        props.tracker = Some(child);
        drop(props);
        let mut line = String::new();
        if let Some(stdout) = stdout {
            BufReader::new(stdout).read_line(&mut line).context("cannot hear from the tracker")?;
        }
        if !line.starts_with("tracking ") {
            let log = std::fs::read_to_string(&log_path).unwrap_or_default();
            bail!("the tracker did not start: {}", log.trim());
        }
        Ok(())
    }

    /// Remembers what a write is stalled by.
    pub(super) fn stall(&self, late: &Arc<LateBuffer>) {
        self.props().late = Some(Arc::clone(late));
    }

    /// A connection to the tracker.
    pub(super) fn connect(&self) -> Result<Volume> {
        Ok(Volume::connect_in(&RuntimeDirectory::at(self.home.join("run")), &self.tree())?)
    }

    /// SIGKILL.
    pub(super) fn kill_tracker(&self) -> Result<()> {
        if let Some(mut child) = self.props().tracker.take() {
            child.kill().context("cannot kill the tracker")?;
            child.wait().context("cannot wait for the tracker")?;
        }
        Ok(())
    }

    /// Stops the tracker cleanly and removes everything.
    pub(super) fn clear(&self) -> Result<(), Failure> {
        let stopped = self.connect().and_then(|mut volume| Ok(volume.stop()?));
        let mut props = self.props();
        let mut ended = Ok(());
        if let Some(mut child) = props.tracker.take_if(|_| stopped.is_ok()) {
            let status = child.wait().context("cannot wait for the tracker")?;
            if !status.success() {
                ended = Err(anyhow::anyhow!("the tracker ended with {status}"));
            }
        }
        if is_mounted(&self.tree()) && ended.is_ok() && stopped.is_ok() {
            ended = Err(anyhow::anyhow!("{} is still mounted", self.tree().display()));
        }
        props.strike(&self.tree());
        match props.home.take() {
            Some(home) if self.keep => drop(home.keep()),
            Some(home) => home.close().context("cannot remove the temporary directory")?,
            None => {}
        }
        stopped.and(ended).map_err(Failure::from)
    }
}

impl Props {
    /// Ends the tracker and takes the mount away, whatever state they are in.
    fn strike(&mut self, tree: &Path) {
        if let Some(late) = self.late.take() {
            // It may have arrived already.
            let _ = late.arrive();
        }
        if let Some(mut child) = self.tracker.take() {
            // It may have ended already.
            let _ = child.kill();
            let _ = child.wait();
        }
        while is_mounted(tree) && unmount(tree, UnmountFlags::DETACH).is_ok() {}
    }
}

impl Drop for Props {
    fn drop(&mut self) {
        if let Some(tree) = self.home.as_ref().map(|home| home.path().join("tree")) {
            self.strike(&tree);
        }
    }
}

fn is_mounted(tree: &Path) -> bool {
    stacked_mounts().is_ok_and(|mounts| mounts.iter().any(|mount| mount.directory == tree))
}
