//! A tracker that only remembers, and checks the order of what it is told.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use highwater_fuse::{Sections, WriteSection};
use highwater_tracker::{Change, FileHandle, Intent, Sample, WriterMode};
use parking_lot::{Condvar, Mutex};
use rustix::io::Errno;

/// One thing that a source said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Directory(FileHandle),
    Object(FileHandle),
    Move(FileHandle),
    LostSight(FileHandle),
    Record(Change),
    Opened(FileHandle, WriterMode),
    Closed(FileHandle),
}

#[derive(Default)]
struct State {
    said: Vec<(u64, Said)>,
    in_flight: Vec<u64>,
    blocked: bool,
    fail_with: Option<i32>,
    misuse: Vec<String>,
}

/// A tracker that only remembers.
#[derive(Clone, Default)]
pub struct Recorder(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
    next: AtomicU64,
    quiet: std::sync::atomic::AtomicBool,
}

impl Recorder {
    /// One that remembers nothing, for measurements.
    pub fn quiet() -> Self {
        let recorder = Self::default();
        recorder.0.quiet.store(true, Ordering::Relaxed);
        recorder
    }

    /// Everything said so far, and forgets it.
    pub fn take(&self) -> Vec<Said> {
        self.0.state.lock().said.drain(..).map(|(_, said)| said).collect()
    }

    /// The changes recorded so far, and forgets everything.
    pub fn changes(&self) -> Vec<Change> {
        self.take()
            .into_iter()
            .filter_map(|said| match said {
                Said::Record(change) => Some(change),
                _ => None,
            })
            .collect()
    }

    /// From now on intents wait.
    pub fn block(&self) {
        self.0.state.lock().blocked = true;
    }

    /// Intents go on.
    pub fn unblock(&self) {
        self.0.state.lock().blocked = false;
        self.0.changed.notify_all();
    }

    /// From now on intents fail.
    pub fn fail_with(&self, errno: Option<i32>) {
        self.0.state.lock().fail_with = errno;
    }

    /// How many sections are in flight.
    pub fn in_flight(&self) -> usize {
        self.0.state.lock().in_flight.len()
    }

    /// Waits until something holds.
    pub fn wait_until(&self, what: &str, mut holds: impl FnMut(&[Said], usize) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut state = self.0.state.lock();
        loop {
            let said: Vec<Said> = state.said.iter().map(|(_, said)| said.clone()).collect();
            if holds(&said, state.in_flight.len()) {
                return;
            }
            assert!(Instant::now() < deadline, "waited in vain until {what}; said: {said:?}");
            self.0.changed.wait_for(&mut state, Duration::from_millis(100));
        }
    }

    /// What a write barrier does: waits for every section that is in flight now.
    pub fn barrier(&self) {
        let limit = self.0.next.load(Ordering::SeqCst);
        let mut state = self.0.state.lock();
        while state.in_flight.iter().any(|section| *section < limit) {
            self.0.changed.wait_for(&mut state, Duration::from_millis(100));
        }
    }

    /// What the source did in the wrong order.
    pub fn misuse(&self) -> Vec<String> {
        self.0.state.lock().misuse.clone()
    }
}

impl Sections for Recorder {
    fn enter(&self) -> Box<dyn WriteSection + '_> {
        let mut state = self.0.state.lock();
        let id = self.0.next.fetch_add(1, Ordering::SeqCst);
        state.in_flight.push(id);
        drop(state);
        Box::new(RecordingSection { recorder: self, id, intended: Mutex::new(false) })
    }
}

struct RecordingSection<'a> {
    recorder: &'a Recorder,
    id: u64,
    intended: Mutex<bool>,
}

impl RecordingSection<'_> {
    fn say(&self, said: Said) {
        if !self.recorder.0.quiet.load(Ordering::Relaxed) {
            self.recorder.0.state.lock().said.push((self.id, said));
            self.recorder.0.changed.notify_all();
        }
    }

    fn needs_intent(&self, what: &str) {
        if !*self.intended.lock() {
            self.recorder.0.state.lock().misuse.push(format!("{what} without an intent"));
        }
    }
}

impl WriteSection for RecordingSection<'_> {
    fn intend(&self, intents: &[Intent<'_>]) -> Result<(), Errno> {
        for intent in intents {
            self.say(match intent {
                Intent::Directory(handle) => Said::Directory((*handle).clone()),
                Intent::Object(handle) => Said::Object((*handle).clone()),
                Intent::Move(handle) => Said::Move((*handle).clone()),
            });
        }
        let mut state = self.recorder.0.state.lock();
        if let Some(errno) = state.fail_with {
            return Err(Errno::from_raw_os_error(errno));
        }
        while state.blocked {
            self.recorder.0.changed.wait(&mut state);
        }
        *self.intended.lock() = true;
        Ok(())
    }

    fn lost_sight(&self, directory: &FileHandle) {
        self.say(Said::LostSight(directory.clone()));
    }

    fn record(&self, change: Change, names: &mut dyn FnMut()) {
        if !matches!(change, Change::Modified { .. }) {
            self.needs_intent("record");
        }
        names();
        self.say(Said::Record(change));
    }

    fn opened(&self, object: &FileHandle, mode: WriterMode, _sample: Sample) {
        self.needs_intent("opened");
        self.say(Said::Opened(object.clone(), mode));
    }

    fn closed(&self, object: &FileHandle, sample: &mut dyn FnMut() -> Option<Sample>) {
        sample();
        self.say(Said::Closed(object.clone()));
    }
}

impl Drop for RecordingSection<'_> {
    fn drop(&mut self) {
        self.recorder.0.state.lock().in_flight.retain(|id| *id != self.id);
        self.recorder.0.changed.notify_all();
    }
}
