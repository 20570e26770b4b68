//! What the socket serves, so that it can be tested without a tracker.

use std::time::Instant;

use highwater_client::{Change, Consumer, Refusal, Status};

pub use highwater_client::Since;

/// An answer whose lines are turned into messages while they are sent.
pub struct Answer {
    /// Everything through here has been handed out by this answer.
    pub cursor: String,
    /// Where it begins; `None` if fresh or now.
    pub since: Option<String>,
    /// Why it is fresh, if it is.
    pub fresh: Option<String>,
    /// The lines, in the order in which they are safe to apply.
    pub changes: Box<dyn Iterator<Item = Change> + Send>,
}

/// What became of a stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Nothing is tracked any more, and everything is on stable storage.
    Clean,
    /// Nothing is tracked any more, but the end did not get onto stable storage: the next start recovers.
    Unclean(Refusal),
    /// The volume is tracked as before.
    NotYet(Refusal),
}

/// A volume, as the socket serves it. Called by many threads.
pub trait Volume: Send + Sync + 'static {
    /// What `status` shows.
    fn status(&self) -> Status;
    /// A checkpoint: waits for every operation in flight, blocks none.
    fn barrier(&self, deadline: Option<Instant>) -> Result<String, Refusal>;
    /// A checkpoint, and what changed since. The deadline is the checkpoint's.
    fn changes(&self, since: &Since, deadline: Option<Instant>) -> Result<Answer, Refusal>;
    /// Returns when something has been recorded after this cursor, or at the deadline.
    fn wait_for_change(&self, after: &str, deadline: Instant);
    /// Stores a consumer's cursor, durably.
    fn ack(&self, consumer: &str, cursor: &str) -> Result<(), Refusal>;
    /// Adds a consumer.
    fn add_consumer(&self, name: &str) -> Result<(), Refusal>;
    /// Removes a consumer.
    fn remove_consumer(&self, name: &str) -> Result<(), Refusal>;
    /// All consumers, by name.
    fn consumers(&self) -> Vec<Consumer>;
    /// A clean stop.
    fn stop(&self) -> Stop;
}
