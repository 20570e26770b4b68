//! A directory that is really tracked, for tests that need root and FUSE. Whatever happens, nothing of it stays mounted.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{assert_exit, highwater, stderr, stdout};

/// A directory to track, with a state and a runtime directory of its own.
pub(crate) struct Tree {
    home: TempDir,
    trackers: Vec<Child>,
}

impl Tree {
    pub(crate) fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test needs root and /dev/fuse");
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("tree")).unwrap();
        Self { home, trackers: Vec::new() }
    }

    pub(crate) fn home(&self) -> PathBuf {
        self.home.path().canonicalize().unwrap()
    }

    /// The directory to track.
    pub(crate) fn dir(&self) -> PathBuf {
        self.home().join("tree")
    }

    /// The binary, in the home directory, where the tree is `tree`.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = highwater(&self.home.path().join("run"));
        command.args(arguments).current_dir(self.home.path()).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that has to do what it is asked for; gives its stdout.
    #[track_caller]
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert_exit(&output, 0);
        stdout(&output)
    }

    /// Runs a command that has to fail; gives its stderr.
    #[track_caller]
    pub(crate) fn fails(&self, arguments: &[&str], status: i32) -> String {
        let output = self.run(arguments);
        assert_exit(&output, status);
        assert_eq!(stdout(&output), "", "{arguments:?}");
        stderr(&output)
    }

    /// Starts a tracker in the foreground; returns when changes are being seen.
    #[track_caller]
    pub(crate) fn track(&mut self) -> u32 {
        self.track_with(&[])
    }

    #[track_caller]
    pub(crate) fn track_with(&mut self, arguments: &[&str]) -> u32 {
        let mut command = self.command(&["track", "tree", "--state", "state"]);
        let mut child =
            command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let expected = format!("tracking {} (source ", self.dir().display());
        if !line.starts_with(&expected) {
            drop(child.kill());
            panic!("{line:?}: {}", stderr(&child.wait_with_output().unwrap()));
        }
        self.trackers.push(child);
        pid
    }

    /// Sends a signal to the newest tracker.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.trackers.last().unwrap().id()).unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
    }

    /// Waits until the newest tracker ends; gives its exit status, if it has one, and its stderr.
    pub(crate) fn ended(&mut self) -> (Option<i32>, String) {
        let output = self.trackers.pop().unwrap().wait_with_output().unwrap();
        (output.status.code(), stderr(&output))
    }

    /// SIGKILL, and the wait for its end.
    pub(crate) fn kill(&mut self) {
        self.signal(Signal::KILL);
        assert_eq!(self.ended().0, None);
    }

    pub(crate) fn is_mounted(&self) -> bool {
        is_mounted(&self.dir())
    }
}

pub(crate) fn is_mounted(directory: &Path) -> bool {
    highwater_client::stacked_mounts().unwrap().iter().any(|mount| mount.directory == directory)
}

impl Drop for Tree {
    fn drop(&mut self) {
        for child in &mut self.trackers {
            drop(child.kill());
            drop(child.wait());
        }
        // One in the background, or left by a failed test.
        for entry in std::fs::read_dir(self.home.path().join("run")).into_iter().flatten().flatten() {
            let Ok(text) = std::fs::read_to_string(entry.path()) else { continue };
            let Ok(json) = serde_json::from_str::<serde_json::Value>(&text) else { continue };
            let pid = json["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
            if let Some(pid) =
                pid.filter(|pid| pid.as_raw_nonzero().get().cast_unsigned() != std::process::id())
            {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        let home = self.home();
        for mount in highwater_client::stacked_mounts().unwrap_or_default() {
            if mount.directory.starts_with(&home) {
                let _ = unmount(&mount.directory, UnmountFlags::DETACH);
            }
        }
    }
}
