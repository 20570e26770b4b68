//! What the tests of the socket and of the command line share: a volume without a tracker, and the binary.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod tree;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use highwater::server::{Answer, Limits, Server, Since, Stop, Volume};
use highwater_client::{
    Change, Consumer, Holder, Kind, ObjectType, Refusal, Registration, RuntimeDirectory, Status,
};
use parking_lot::{Condvar, Mutex};
use tempfile::TempDir;

pub(crate) const JOURNAL: &str = "0123456789abcdef0123456789abcdef";

pub(crate) fn cursor(checkpoint: usize) -> String {
    format!("hw1.{JOURNAL}.{checkpoint}.{checkpoint}")
}

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

/// A volume whose changes are what the test says. Each change is a checkpoint.
#[derive(Default)]
pub(crate) struct FakeVolume {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    log: Vec<Change>,
    consumers: Vec<Consumer>,
    stalled: bool,
    busy: bool,
    stopped: bool,
    directory: PathBuf,
}

impl FakeVolume {
    pub(crate) fn push(&self, change: Change) {
        self.state.lock().log.push(change);
        self.changed.notify_all();
    }

    /// Barriers wait until the write in flight ends.
    pub(crate) fn stall(&self, stalled: bool) {
        self.state.lock().stalled = stalled;
        self.changed.notify_all();
    }

    pub(crate) fn set_busy(&self, busy: bool) {
        self.state.lock().busy = busy;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.state.lock().stopped
    }

    fn checkpoint(&self, text: &str) -> Result<usize, Refusal> {
        let number = text.strip_prefix(&format!("hw1.{JOURNAL}.")).and_then(|rest| rest.split('.').next());
        let malformed = || Refusal::MalformedCursor { given: text.to_owned() };
        number.ok_or_else(malformed)?.parse().map_err(|_| malformed())
    }
}

impl Volume for FakeVolume {
    fn status(&self) -> Status {
        let state = self.state.lock();
        Status {
            source: "fake".to_owned(),
            durability: "strict".to_owned(),
            pid: std::process::id(),
            checkpoint: state.log.len() as u64,
            ..Status::default().with_directories(&state.directory, Path::new("/nowhere"))
        }
    }

    fn barrier(&self, deadline: Option<Instant>) -> Result<String, Refusal> {
        let mut state = self.state.lock();
        while state.stalled {
            let Some(deadline) = deadline else {
                self.changed.wait(&mut state);
                continue;
            };
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                return Err(Refusal::Deadline { waiting_for: "a write to a/b".to_owned() });
            }
        }
        Ok(cursor(state.log.len()))
    }

    fn changes(&self, since: &Since, _: Option<Instant>) -> Result<Answer, Refusal> {
        let state = self.state.lock();
        let (since, fresh) = match since {
            Since::Cursor(text) => (Some(text.clone()), None),
            Since::Now => (None, None),
            Since::Nothing => (None, Some("no earlier cursor".to_owned())),
            Since::Consumer(name) => {
                let found = state.consumers.iter().find(|consumer| &consumer.name == name);
                let found = found.ok_or_else(|| Refusal::UnknownConsumer { name: name.clone() })?;
                let fresh = found.cursor.is_none().then(|| "the consumer has acked nothing yet".to_owned());
                (found.cursor.clone(), fresh)
            }
        };
        let begin = since.as_deref().map_or(Ok(state.log.len()), |text| self.checkpoint(text))?;
        let changes: Vec<Change> = state.log[begin.min(state.log.len())..].to_vec();
        Ok(Answer { cursor: cursor(state.log.len()), since, fresh, changes: Box::new(changes.into_iter()) })
    }

    fn wait_for_change(&self, after: &str, deadline: Instant) {
        let after = self.checkpoint(after).unwrap();
        let mut state = self.state.lock();
        while state.log.len() <= after && !self.changed.wait_until(&mut state, deadline).timed_out() {}
    }

    fn ack(&self, name: &str, text: &str) -> Result<(), Refusal> {
        let given = self.checkpoint(text)?;
        let mut state = self.state.lock();
        let found = state.consumers.iter_mut().find(|consumer| consumer.name == name);
        let found = found.ok_or_else(|| Refusal::UnknownConsumer { name: name.to_owned() })?;
        if let Some(acked) = found.cursor.clone().filter(|acked| self.checkpoint(acked).unwrap() > given) {
            return Err(Refusal::AckBackwards { name: name.to_owned(), acked, given: text.to_owned() });
        }
        found.cursor = Some(text.to_owned());
        Ok(())
    }

    fn add_consumer(&self, name: &str) -> Result<(), Refusal> {
        if name.is_empty() || name.contains('/') {
            return Err(Refusal::BadConsumerName { name: name.to_owned() });
        }
        let mut state = self.state.lock();
        if state.consumers.iter().any(|consumer| consumer.name == name) {
            return Err(Refusal::ConsumerExists { name: name.to_owned() });
        }
        state.consumers.push(Consumer { name: name.to_owned(), cursor: None });
        Ok(())
    }

    fn remove_consumer(&self, name: &str) -> Result<(), Refusal> {
        let mut state = self.state.lock();
        let at = state.consumers.iter().position(|consumer| consumer.name == name);
        let at = at.ok_or_else(|| Refusal::UnknownConsumer { name: name.to_owned() })?;
        state.consumers.remove(at);
        Ok(())
    }

    fn consumers(&self) -> Vec<Consumer> {
        self.state.lock().consumers.clone()
    }

    fn stop(&self) -> Stop {
        let mut state = self.state.lock();
        if state.busy {
            let holders = vec![Holder { pid: 7, command: "bash".to_owned() }];
            return Stop::NotYet(Refusal::Busy { holders, message: "EBUSY".to_owned() });
        }
        state.stopped = true;
        Stop::Clean
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
        let volume = Arc::new(FakeVolume::default());
        volume.state.lock().directory.clone_from(&directory);
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
