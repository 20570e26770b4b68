//! A volume without a tracker: the tests of the socket ask it, and the fuzzer in crates/fuzz.
#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::path::{Path, PathBuf};
use std::time::Instant;

use highwater::server::{Answer, Since, Stop, Volume};
use highwater_client::{Change, Consumer, Holder, Refusal, Status};
use parking_lot::{Condvar, Mutex};

pub(crate) const JOURNAL: &str = "0123456789abcdef0123456789abcdef";

pub(crate) fn cursor(checkpoint: usize) -> String {
    format!("hw1.{JOURNAL}.{checkpoint}.{checkpoint}")
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
    pub(crate) fn of(directory: &Path) -> Self {
        let state = State { directory: directory.to_owned(), ..State::default() };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

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
