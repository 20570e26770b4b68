//! What the tests of the socket and of the command line share: a volume without a tracker, and the binary.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
#![allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]

pub(crate) mod fake_volume;
pub(crate) mod tree;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

pub(crate) use fake_volume::{FakeVolume, JOURNAL, cursor};
use highwater::server::{Limits, Server};
use highwater_client::{Change, Kind, ObjectType, Registration, RuntimeDirectory};
use tempfile::TempDir;

pub(crate) fn change(path: impl AsRef<[u8]>, kind: Kind, object_type: ObjectType) -> Change {
    Change {
        path: path.as_ref().to_vec(),
        kind,
        object_type,
        from: None,
        recursive: false,
        recovered: false,
        nlink: None,
        usn: 1,
    }
}

/// A directory that is "tracked" by a fake volume in this process, and the binary to ask about it.
pub(crate) struct Tracked {
    pub(crate) volume: Arc<FakeVolume>,
    pub(crate) directory: PathBuf,
    pub(crate) socket: PathBuf,
    pub(crate) stopped: Receiver<()>,
    pub(crate) server: Option<Server>,
    pub(crate) home: TempDir,
}

impl Tracked {
    pub(crate) fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    pub(crate) fn with_limits(limits: Limits) -> Self {
        let home = tempfile::tempdir().unwrap();
        let directory = home.path().canonicalize().unwrap().join("tree");
        std::fs::create_dir(&directory).unwrap();
        let runtime = RuntimeDirectory::at(home.path().join("run"));
        runtime.make().unwrap();
        let socket = runtime.socket_for(&directory);
        let volume = Arc::new(FakeVolume::of(&directory));
        let (stopped_send, stopped) = channel();
        let server = Server::start(&socket, volume.clone(), limits, stopped_send).unwrap();
        Registration::of_this_process(&directory, Path::new("/nowhere")).write(&runtime).unwrap();
        Self { volume, directory, socket, stopped, server: Some(server), home }
    }

    /// The binary, with this test's runtime directory.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = highwater(&self.home.path().join("run"));
        command.args(arguments).current_dir(&self.directory);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    pub(crate) fn connect(&self) -> highwater_client::Volume {
        highwater_client::Volume::connect_socket(&self.socket).unwrap()
    }
}

/// The binary, with a runtime directory of its own.
pub(crate) fn highwater(runtime: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_highwater"));
    command.env("HIGHWATER_RUNTIME_DIR", runtime).env_remove("RUST_LOG").env("NO_COLOR", "1");
    command
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Asserts on the exit status, and shows everything if it is another one.
#[track_caller]
pub(crate) fn assert_exit(output: &Output, status: i32) {
    assert_eq!(output.status.code(), Some(status), "stdout: {}\nstderr: {}", stdout(output), stderr(output));
}

/// Waits for something that another thread or process does.
#[track_caller]
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
