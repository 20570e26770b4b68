//! SKELETON: signatures only, to be filled in.
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use crate::*;

/// A volume's tracker. `Send + Sync`; used as `Arc<Tracker>`.
pub struct Tracker { _private: () }

/// Whether an operation waits for its intent to be durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// It waits: G4 holds in a power loss.
    Strict,
    /// The intent is handed to the kernel only: holds when the tracker is killed, not in a power loss.
    Relaxed,
}

/// What to do when the journal's disk is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFull {
    /// Keep the writers going; every consumer becomes fresh.
    Overflow,
    /// Fail the operation with `ENOSPC`.
    Fail,
}

/// How a volume is opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Strict or relaxed.
    pub durability: Durability,
    /// What to do when the journal's disk is full.
    pub on_full: OnFull,
    /// The longest time between two advances of the stable horizon while anything changes.
    pub horizon_every: Duration,
}
impl Default for Config { fn default() -> Self { Self { durability: Durability::Strict, on_full: OnFull::Overflow, horizon_every: Duration::from_secs(30) } } }

/// What is tracked, told by whoever opens the volume.
#[derive(Clone, Debug)]
pub struct VolumeFacts {
    /// The handle of the tracked directory.
    pub root: FileHandle,
    /// Where it is, for messages and for `status`; it may move.
    pub directory: PathBuf,
    /// `/proc/sys/kernel/random/boot_id`.
    pub boot_id: String,
    /// Nothing can have been written unseen since the tracker before this one ended (its dead mount was still in place).
    pub unbroken: bool,
}

/// What [`Tracker::open`] found.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Opening {
    /// The state directory was new.
    pub new: bool,
    /// The previous tracker did not stop cleanly.
    pub crashed: bool,
    /// Directories and objects that will be handed out again.
    pub recovered: u64,
    /// A catch-up scan is needed and has begun.
    pub catching_up: bool,
    /// Every consumer is fresh, and why.
    pub fresh: Option<String>,
}

/// Why a write section cannot go on. The operation must fail with the errno and without an effect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SectionError {
    /// The journal's disk is full and the policy is [`OnFull::Fail`]. `ENOSPC`.
    #[error("the journal's disk is full")]
    Full,
}
impl SectionError { /// The errno that the operation answers.
    pub fn errno(&self) -> i32 { match self { Self::Full => 28 } } }

/// A write section. Leaves when dropped, on any thread.
pub struct Section { _private: () }
impl Section {
    /// Returns when a crash cannot hide what is about to change. Strict: waits for the journal if it has to.
    pub fn intend(&self, _intents: &[Intent<'_>]) -> Result<(), SectionError> { unimplemented!() }
    /// Records what has happened. `names` updates the source's name table, as one step with the record.
    pub fn record(&self, _change: Change, _names: impl FnOnce()) { unimplemented!() }
    /// The object has been opened for writing and can change unseen from now on. `sample`: its attributes before that.
    pub fn opened(&self, _object: &FileHandle, _mode: WriterMode, _sample: Sample) { unimplemented!() }
    /// One open of the object for writing is gone. `sample` is asked only if it matters (its attributes now; None: gone).
    pub fn closed(&self, _object: &FileHandle, _sample: impl FnOnce() -> Option<Sample>) { unimplemented!() }
}

/// Where an answer begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    /// A cursor that the caller kept.
    Cursor(Cursor),
    /// The stored cursor of a consumer.
    Consumer(String),
    /// Now: a cursor and no changes.
    Now,
    /// No earlier cursor: the answer is fresh.
    Nothing,
}

/// An answer to "what changed since".
#[derive(Clone, Debug)]
pub struct Answer {
    /// Everything through here has been handed out by this answer.
    pub cursor: Cursor,
    /// Where it begins; `None` if fresh or now.
    pub since: Option<Cursor>,
    /// Not a difference: take everything.
    pub fresh: Option<FreshReason>,
    /// The lines, in the order in which they are safe to apply.
    pub lines: Vec<Line>,
}

/// Why an answer is fresh.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FreshReason {
    /// There was no cursor to begin at.
    NoCursor,
    /// The cursor belongs to another journal.
    ForeignCursor,
    /// What comes after the cursor is not kept any more.
    TooOld,
    /// The cursor is of a checkpoint that this journal has not reached.
    Future,
    /// Changes were lost after the cursor: the text says why.
    Lost(String),
}

/// A request that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// No consumer of this name.
    #[error("no consumer {name:?}; add it with `highwater consumer add`")]
    UnknownConsumer { /** its name */ name: String },
    /// There is one already.
    #[error("consumer {name:?} exists already")]
    ConsumerExists { /** its name */ name: String },
    /// Not 1 to 64 of `[A-Za-z0-9._-]`.
    #[error("not a consumer name: {name:?} (1 to 64 letters, digits, '.', '_' or '-')")]
    BadConsumerName { /** its name */ name: String },
    /// An ack may not go back.
    #[error("consumer {name:?} has acked {acked} already, {given} is older")]
    AckBackwards { /** its name */ name: String, /** stored */ acked: Cursor, /** given */ given: Cursor },
    /// An ack of a cursor that this journal never gave out.
    #[error("cursor {given} was not given out by this volume")]
    ForeignCursor { /** given */ given: Cursor },
    /// The time given ran out; what holds it up.
    #[error("the deadline passed while waiting for {waiting_for}")]
    Deadline { /** what */ waiting_for: String },
    /// The source failed.
    #[error("the source could not {doing}")]
    Source { /** what */ doing: &'static str, /** why */ #[source] source: io::Error },
    /// The journal failed for good; only a new start of the tracker helps.
    #[error("the journal has failed: {why}")]
    Journal { /** why */ why: String },
    /// The tracker is stopping.
    #[error("the tracker is stopping")]
    Stopping,
}

/// One consumer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// Where it is; `None`: it has acked nothing, its next answer is fresh.
    pub cursor: Option<Cursor>,
}

/// What `status` shows.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// The volume's id.
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
    /// Sections in flight now.
    pub sections: u64,
    /// Objects open for writing.
    pub open_writers: u64,
    /// Records appended since the start.
    pub records: u64,
    /// Times that an operation waited for the journal.
    pub waits: u64,
    /// Bytes that the journal occupies.
    pub journal_bytes: u64,
    /// A catch-up is running: objects looked at so far.
    pub catching_up: Option<u64>,
    /// Why the journal does not work any more, if so.
    pub failed: Option<String>,
    /// How long the last checkpoint took.
    pub last_checkpoint: Duration,
}

impl Tracker {
    /// Opens the state, or makes it if it is empty; recovers. Nothing is tracked until [`Tracker::start`].
    pub fn open(_state: highwater_journal::Directory, _facts: VolumeFacts, _config: Config) -> Result<(Arc<Self>, Opening), OpenVolumeError> { unimplemented!() }
    /// Gives the tracker its source. Sections may be entered from before this call; checkpoints work after it. Starts the
    /// thread that moves the stable horizon, and the catch-up, if one is needed.
    pub fn start(self: &Arc<Self>, _source: Arc<dyn Source>) { unimplemented!() }
    /// Enters a write section.
    pub fn section(&self) -> Section { unimplemented!() }
    /// A checkpoint: waits for every operation in flight, blocks none.
    pub fn barrier(&self, _deadline: Option<Instant>) -> Result<Cursor, RequestError> { unimplemented!() }
    /// A checkpoint, and what changed since.
    pub fn changes(&self, _since: &Since) -> Result<Answer, RequestError> { unimplemented!() }
    /// Returns when something has been recorded after this cursor, or at the deadline (false).
    pub fn wait_for_change(&self, _after: &Cursor, _deadline: Instant) -> bool { unimplemented!() }
    /// Stores a consumer's cursor, durably.
    pub fn ack(&self, _consumer: &str, _cursor: &Cursor) -> Result<(), RequestError> { unimplemented!() }
    /// Adds a consumer.
    pub fn add_consumer(&self, _name: &str) -> Result<(), RequestError> { unimplemented!() }
    /// Removes a consumer.
    pub fn remove_consumer(&self, _name: &str) -> Result<(), RequestError> { unimplemented!() }
    /// All consumers, by name.
    pub fn consumers(&self) -> Vec<Consumer> { unimplemented!() }
    /// What `status` shows.
    pub fn status(&self) -> Status { unimplemented!() }
    /// Moves the stable horizon: checkpoint, `syncfs`, `Stable`.
    pub fn advance_horizon(&self) -> Result<(), RequestError> { unimplemented!() }
    /// A clean stop: to be called when the source serves no operation any more. Seals, syncs, closes the journal.
    pub fn stop(&self) -> Result<(), RequestError> { unimplemented!() }
}

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenVolumeError {
    /// The state is of another directory.
    #[error("the state belongs to another tracked directory ({directory})")]
    OtherVolume { /** which */ directory: PathBuf },
    /// Reading or writing it failed.
    #[error("cannot {doing}")]
    Io { /** what */ doing: &'static str, /** why */ #[source] source: io::Error },
    /// The journal cannot be opened.
    #[error("cannot open the journal")]
    Journal { /** why */ #[source] source: Box<dyn std::error::Error + Send + Sync> },
}
