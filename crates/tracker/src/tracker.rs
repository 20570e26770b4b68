//! The tracker of one volume: what all its parts share, and what callers see of it.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use highwater_barrier::WriteBarrier;
use highwater_journal::{Directory, Journal, JournalId, Period, Storage, Usn};
use parking_lot::{Condvar, Mutex};

use crate::checkpoint::Checkpoints;
use crate::consumers::Consumers;
use crate::coverage::Coverage;
use crate::cursor::CheckpointId;
use crate::driver::Driver;
use crate::error::RequestError;
use crate::handle::FileHandle;
use crate::horizon::Wake;
use crate::log::{Log, Recorded};
use crate::query::Answered;
use crate::recovery::Found;
use crate::section::Section;
use crate::source::Source;
use crate::writers::Writers;

/// Whether an operation waits for its intent to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It waits: G4 holds in a power loss.
    Strict,
    /// The intent is handed to the kernel only: G4 holds when the tracker is killed, not in a power loss, after which a
    /// catch-up scan is needed.
    Relaxed,
}

/// What to do when the journal's disk is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFull {
    /// Keep the writers going; every consumer becomes fresh.
    Overflow,
    /// Fail operations that need an intent with `ENOSPC`.
    Fail,
}

/// How a volume is tracked.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Strict or relaxed. Default strict.
    pub durability: Durability,
    /// What to do when the journal's disk is full. Default overflow.
    pub on_full: OnFull,
    /// The longest time between two moves of the stable horizon while anything changes. Default 30 s.
    pub horizon_every: Duration,
    /// Options of the journal.
    pub journal: highwater_journal::Options,
    /// Decides over time and order in a simulation. Default none: the system's clock, and threads of the tracker's own.
    pub driver: Option<Arc<dyn Driver>>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            durability: Durability::Strict,
            on_full: OnFull::Overflow,
            horizon_every: Duration::from_secs(30),
            journal: highwater_journal::Options::default(),
            driver: None,
        }
    }
}

/// What is tracked, told by whoever opens the volume.
#[derive(Clone, Debug)]
pub struct VolumeFacts {
    /// The handle of the tracked directory.
    pub root: FileHandle,
    /// Where it is, for messages and for `status`; it may move.
    pub directory: PathBuf,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Nothing can have been written unseen since the tracker before this one ended: its dead mount was still in place, or the filesystem
    /// itself says that nothing was.
    pub unbroken: bool,
}

/// One consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// Where it is; `None`: it has acked nothing, its next answer is fresh.
    pub cursor: Option<crate::Cursor>,
}

/// What `status` shows.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// The volume's id: a UUID.
    pub fsid: String,
    /// The journal's id.
    pub journal: String,
    /// The newest sealed period.
    pub checkpoint: CheckpointId,
    /// The newest stable period.
    pub stable: CheckpointId,
    /// The oldest cursor that is not too old.
    pub oldest: CheckpointId,
    /// Strict or relaxed.
    pub durability: Durability,
    /// Sections in flight now, approximately.
    pub sections: u64,
    /// Objects open for writing.
    pub open_writers: u64,
    /// Records appended since the start.
    pub records: u64,
    /// Times that an operation waited for the journal since the start.
    pub waits: u64,
    /// Bytes that the journal occupies.
    pub journal_bytes: u64,
    /// A catch-up is running: objects looked at so far.
    pub catching_up: Option<u64>,
    /// Why changes are being lost, if so.
    pub failed: Option<String>,
    /// How long the last checkpoint took.
    pub last_checkpoint: Duration,
}

/// The tracker of one volume. `S` is where its state is kept: a [`Directory`], or simulated storage in tests.
pub struct Tracker<S: Storage = Directory> {
    pub(crate) shared: Arc<Shared<S>>,
}

/// What sections, checkpoints and requests share. Locks are taken in the order of the fields.
pub(crate) struct Shared<S: Storage> {
    pub(crate) config: Config,
    pub(crate) facts: VolumeFacts,
    pub(crate) fsid: String,
    pub(crate) journal: Journal<Arc<S>>,
    pub(crate) first_usn: Usn,
    /// The first period of this tracker.
    pub(crate) first_period: Period,
    pub(crate) source: OnceLock<Arc<dyn Source>>,
    source_is_set: (Mutex<()>, Condvar),
    is_started: AtomicBool,
    /// Write sections: an operation is in flight.
    pub(crate) sections: WriteBarrier,
    /// The end of a section, from its record on: the operation has been done and its caller is being told.
    pub(crate) tails: WriteBarrier,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) consumers: Mutex<Consumers>,
    pub(crate) writers: Mutex<Writers>,
    pub(crate) log: Mutex<Log>,
    pub(crate) first_change: Condvar,
    pub(crate) coverage: Mutex<Coverage>,
    /// Cursors that an answer has been given from already.
    pub(crate) answered: Mutex<Answered>,
    /// The newest stable period.
    pub(crate) stable: AtomicU64,
    pub(crate) waits: AtomicU64,
    /// Intents have been recorded since the horizon moved.
    pub(crate) is_unstable: AtomicBool,
    /// The source has something to record.
    pub(crate) has_news: AtomicBool,
    pub(crate) stopping: AtomicBool,
    /// The journal says that everything is stable.
    is_stopped: AtomicBool,
    pub(crate) horizon_turn: Mutex<()>,
    pub(crate) horizon_wake: (Mutex<Wake>, Condvar),
    /// The horizon's, and the catch-up's.
    pub(crate) threads: Mutex<Vec<std::thread::JoinHandle<()>>>,
    pub(crate) found: Mutex<Option<Found>>,
    /// A catch-up that a driver has not run yet; and since when it has to look, if there was a gap.
    pub(crate) due_catch_up: Mutex<Option<Option<u64>>>,
}

/// After a clean stop, the last one to go closes the journal, which saves the next start a new segment.
impl<S: Storage> Drop for Shared<S> {
    fn drop(&mut self) {
        if *self.is_stopped.get_mut()
            && let Err(error) = self.journal.close()
        {
            tracing::warn!(error = crate::error::with_causes(&error), "the journal was not closed");
        }
    }
}

impl<S: Storage> Shared<S> {
    #[expect(clippy::too_many_arguments, reason = "called in one place, by open")]
    pub(crate) fn new(
        config: Config,
        facts: VolumeFacts,
        fsid: String,
        journal: Journal<Arc<S>>,
        period: Period,
        sealed: CheckpointId,
        stable: CheckpointId,
        consumers: Consumers,
        found: Found,
    ) -> Self {
        Self {
            coverage: Mutex::new(Coverage::new(config.now_ns())),
            log: Mutex::new(Log::new(facts.root.clone(), period)),
            checkpoints: Checkpoints::new(sealed),
            first_usn: journal.next_usn(),
            first_period: period,
            config,
            facts,
            fsid,
            journal,
            source: OnceLock::new(),
            source_is_set: (Mutex::new(()), Condvar::new()),
            is_started: AtomicBool::new(false),
            sections: WriteBarrier::new(),
            tails: WriteBarrier::new(),
            consumers: Mutex::new(consumers),
            writers: Mutex::new(Writers::default()),
            first_change: Condvar::new(),
            // What the trackers before this one have answered is not known: it counts as answered.
            answered: Mutex::new(Answered::through(sealed)),
            stable: AtomicU64::new(stable.0),
            waits: AtomicU64::new(0),
            is_unstable: AtomicBool::new(true),
            has_news: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            horizon_turn: Mutex::new(()),
            horizon_wake: (Mutex::new(Wake::No), Condvar::new()),
            threads: Mutex::new(Vec::new()),
            found: Mutex::new(Some(found)),
            due_catch_up: Mutex::new(None),
        }
    }

    /// The source, once there is one.
    ///
    /// # Panics
    /// Before [`Tracker::start`]: only sections wait for it.
    pub(crate) fn source(&self) -> &Arc<dyn Source> {
        self.source.get().expect("Tracker::start has been called")
    }

    pub(crate) fn journal_id(&self) -> JournalId {
        self.journal.id()
    }

    /// Does what the outcome of a record asks for, outside the record lock.
    pub(crate) fn after_record(&self, recorded: Recorded) {
        match recorded {
            Recorded::Yes | Recorded::Lost => {}
            Recorded::First => {
                self.first_change.notify_all();
            }
            Recorded::Overflow(usn) => {
                tracing::warn!("the journal's disk is full: consumers will be told to take everything");
                if let Err(error) = self.journal.sync(usn) {
                    self.fail(&error);
                }
                self.first_change.notify_all();
            }
        }
    }

    /// Notes that the journal does not work any more, and tries to leave a mark that the next start will find.
    pub(crate) fn fail(&self, error: &(dyn std::error::Error + 'static)) {
        let mut log = self.log.lock();
        if log.failed.is_none() {
            log.failed = Some(crate::error::with_causes(error));
            log.is_changed = true;
            drop(log);
            tracing::error!(error = crate::error::with_causes(error), "the journal has failed");
        }
    }
}

/// A tracker that is dropped without [`Tracker::stop`] leaves what a crash leaves.
impl<S: Storage> Drop for Tracker<S> {
    fn drop(&mut self) {
        self.end_threads();
    }
}

impl<S: Storage> Tracker<S> {
    /// Ends the threads.
    fn end_threads(&self) {
        // ORDERING: a flag that ends loops soon.
        self.shared.stopping.store(true, Ordering::Relaxed);
        *self.shared.horizon_wake.0.lock() = Wake::Stop;
        self.shared.horizon_wake.1.notify_all();
        let threads = std::mem::take(&mut *self.shared.threads.lock());
        for thread in threads {
            // It has said what went wrong; a panic in it must not keep the volume from being closed.
            let _ = thread.join();
        }
    }

    /// Gives the tracker its source, recovers what a crash has left, and begins the catch-up after a gap.
    ///
    /// Sections that were entered before wait for it. Starts the thread that moves the stable horizon.
    ///
    /// # Errors
    /// If recovery fails. Every answer is fresh then, and the next start recovers again.
    ///
    /// # Panics
    /// If it has been called before.
    pub fn start(&self, source: Arc<dyn Source>) -> Result<(), RequestError> {
        let shared = &self.shared;
        assert!(shared.source.set(source).is_ok(), "a tracker is started once");
        let found = shared.found.lock().take().expect("start is called once");
        let has_crashed = found.has_crashed();
        let told = shared.tell_found(found);
        if let Err(error) = &told {
            shared.fail(error);
        }
        // Only now: a change must not be recorded before what it follows.
        let guard = shared.source_is_set.0.lock();
        // ORDERING: pairs with the load in `section`; what recovery has done happens before the first section.
        shared.is_started.store(true, Ordering::Release);
        drop(guard);
        shared.source_is_set.1.notify_all();
        told?;
        if shared.config.driver.is_some() {
            return Ok(());
        }
        let on_thread = Arc::clone(shared);
        let thread =
            std::thread::Builder::new().name("horizon".into()).spawn(move || on_thread.move_horizon());
        match thread {
            Ok(thread) => shared.threads.lock().push(thread),
            Err(source) => {
                return Err(RequestError::Source { doing: "start the thread of the horizon", source });
            }
        }
        if has_crashed {
            // Each unclean end costs a journal segment, which can go once the horizon has moved.
            shared.request_horizon();
        }
        Ok(())
    }

    /// Enters a write section.
    ///
    /// Waits until [`Tracker::start`] has done its work. A section must not be held while waiting for another one.
    pub fn section(&self) -> Section<S> {
        // ORDERING: pairs with the store in `start`.
        if !self.shared.is_started.load(Ordering::Acquire) {
            let mut guard = self.shared.source_is_set.0.lock();
            // ORDERING: as above.
            while !self.shared.is_started.load(Ordering::Acquire) {
                self.shared.source_is_set.1.wait(&mut guard);
            }
        }
        Section::enter(&self.shared)
    }

    /// Makes a checkpoint: waits for every operation in flight, blocks none. Callers at the same time share it.
    ///
    /// Returns the same cursor as before if nothing has been recorded since.
    ///
    /// # Errors
    /// [`RequestError::Deadline`], and if the source or the journal fails.
    pub fn barrier(&self, deadline: Option<Instant>) -> Result<crate::Cursor, RequestError> {
        let checkpoint = self.shared.checkpoint(deadline)?;
        Ok(self.shared.cursor(checkpoint, CheckpointId(0)))
    }

    /// Returns true when something has been recorded after this cursor, or false at the deadline.
    ///
    /// Writes through a descriptor that was open before show only at a checkpoint; while there are such descriptors it
    /// returns true after a second at the latest.
    pub fn wait_for_change(&self, after: &crate::Cursor, deadline: Instant) -> bool {
        let shared = &self.shared;
        loop {
            let has_writers = shared.writers.lock().len() > 0;
            let mut log = shared.log.lock();
            // ORDERING: a hint; it is set before whoever waits here is woken.
            let has_news = shared.has_news.load(Ordering::Relaxed);
            if log.is_changed || has_news || shared.checkpoints.sealed() > after.checkpoint {
                return true;
            }
            let now = Instant::now();
            if now >= deadline || shared.stopping.load(Ordering::Relaxed) {
                return false;
            }
            let a_second = now + Duration::from_secs(1);
            let timed_out = shared.first_change.wait_until(&mut log, deadline.min(a_second)).timed_out();
            if timed_out && has_writers {
                return true;
            }
        }
    }

    /// The source has heard of something that it will record when a checkpoint drains it.
    pub fn noticed(&self) {
        let shared = &self.shared;
        // ORDERING: hints. The lock is taken so that nobody goes to sleep between its look at the hint and the call.
        let log = shared.log.lock();
        shared.has_news.store(true, Ordering::Relaxed);
        shared.is_unstable.store(true, Ordering::Relaxed);
        drop(log);
        shared.first_change.notify_all();
    }

    /// What `status` shows.
    pub fn status(&self) -> Status {
        let shared = &self.shared;
        let failed = {
            let log = shared.log.lock();
            log.failed.clone().or_else(|| log.overflowing.then(|| "the journal's disk is full".to_owned()))
        };
        Status {
            fsid: shared.fsid.clone(),
            journal: shared.journal_id().to_string(),
            checkpoint: shared.checkpoints.sealed(),
            stable: CheckpointId(shared.stable.load(Ordering::Relaxed)),
            oldest: CheckpointId(shared.journal.oldest_period_kept().0.saturating_sub(1)),
            durability: shared.config.durability,
            sections: shared.sections.sections_in_flight() as u64,
            open_writers: shared.writers.lock().len() as u64,
            records: shared.journal.next_usn().0 - shared.first_usn.0,
            waits: shared.waits.load(Ordering::Relaxed),
            journal_bytes: shared.journal.size_bytes(),
            catching_up: shared.checkpoints.catching_up(),
            failed,
            last_checkpoint: shared.checkpoints.last_took(),
        }
    }

    /// Where the state is kept.
    pub fn storage(&self) -> &S {
        self.shared.journal.storage()
    }

    /// Moves the stable horizon now: a checkpoint, `syncfs`, `Stable`.
    ///
    /// # Errors
    /// If the checkpoint, the filesystem or the journal fails; the horizon stays where it is.
    pub fn advance_horizon(&self) -> Result<(), RequestError> {
        self.shared.advance_horizon()
    }

    /// Runs the catch-up that [`Tracker::start`] has found to be needed, if the tracker has a [`Driver`]. Until then there is
    /// no checkpoint.
    pub fn catch_up(&self) {
        if let Some(began_ns) = self.shared.due_catch_up.lock().take() {
            let result = self.shared.catch_up(began_ns);
            self.shared.end_catch_up(result);
        }
    }

    /// Stops: to be called when the source serves no operation any more. Moves the horizon and says that all is stable.
    ///
    /// # Errors
    /// As [`Tracker::advance_horizon`]; the next start recovers then.
    pub fn stop(&self) -> Result<(), RequestError> {
        let shared = &self.shared;
        shared.first_change.notify_all();
        self.end_threads();
        if shared.checkpoints.is_catch_up_interrupted() {
            // Not a clean end: the next start goes on with it.
            return Ok(());
        }
        shared.close()?;
        // ORDERING: read by the last owner, who has exclusive access.
        shared.is_stopped.store(true, Ordering::Relaxed);
        Ok(())
    }
}
