//! "What changed since?"
//!
//! An answer is made of the records of the periods after the cursor, through the newest checkpoint. Where tracking began
//! anew within them (a `Started` record), they are planned in parts, one after the other: what stands before a crash and
//! after its stable horizon is no fact, is left out, and is told again behind the `Started` record.

use std::collections::BTreeSet;
use std::time::Instant;

use highwater_journal::{Period, ReadError, Storage, Usn};

use crate::cursor::{CheckpointId, Cursor};
use crate::error::RequestError;
use crate::handle::FileHandle;
use crate::line::Line;
use crate::mutation::{self, Mutation};
use crate::plan::{Reading, Told, plan};
use crate::record::Body;
use crate::tracker::{Shared, Tracker};
use crate::window::Window;

/// Most records that an answer is made of: beyond that a full pass is cheaper, and memory stays bounded (about 300 bytes each).
const RECORDS_MAX: u64 = 20_000_000;

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

/// An answer to "what changed since?".
#[derive(Clone, Debug)]
pub struct Answer {
    /// Everything through here has been handed out by this answer.
    pub cursor: Cursor,
    /// Where it begins; `None` if it is fresh or from now on.
    pub since: Option<Cursor>,
    /// Not a difference: take everything. The reason.
    pub fresh: Option<FreshReason>,
    /// The lines, in the order in which they are safe to apply.
    pub lines: Vec<Line>,
}

/// Why an answer is fresh.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FreshReason {
    /// There was no cursor to begin at.
    #[error("there is no earlier cursor")]
    NoCursor,
    /// The cursor belongs to another journal.
    #[error("the cursor belongs to another journal")]
    ForeignCursor,
    /// What comes after the cursor is not kept any more.
    #[error("what comes after the cursor is not kept any more")]
    TooOld,
    /// The cursor is of a checkpoint that this journal has not reached.
    #[error("the cursor is of a checkpoint that has not been reached")]
    Future,
    /// The cursor is of a checkpoint that this journal did not make: an older copy of the state has been put back since.
    #[error(
        "the cursor is of a checkpoint that is not in the journal: an older copy of the state has been put back"
    )]
    NotSealed,
    /// Too much has changed.
    #[error("too much has changed since the cursor")]
    TooMuch,
    /// Changes were lost after the cursor.
    #[error("changes were lost: {0}")]
    Lost(String),
}

/// Most checkpoints that are remembered one by one as answered from.
const ANSWERED_MAX: usize = 4096;

/// The checkpoints from which an answer has been given: a holder that asks again may have applied some of it.
#[derive(Debug)]
pub(crate) struct Answered {
    through: CheckpointId,
    after: BTreeSet<CheckpointId>,
}

impl Answered {
    /// All checkpoints through this one count as answered from; but zero, which is before the first answer.
    pub(crate) fn through(checkpoint: CheckpointId) -> Self {
        Self { through: checkpoint, after: BTreeSet::new() }
    }

    /// Whether this is the first answer from this checkpoint. Notes that it is given.
    fn is_first(&mut self, checkpoint: CheckpointId) -> bool {
        let is_first = checkpoint > self.through && self.after.insert(checkpoint);
        if self.after.len() > ANSWERED_MAX {
            self.through = self.after.pop_first().expect("it is not empty");
        }
        is_first
    }
}

/// Why a window could not be read.
pub(crate) enum Unreadable {
    Fresh(FreshReason),
    Failed(RequestError),
}

impl<S: Storage> Tracker<S> {
    /// Makes a checkpoint and tells what changed since. `deadline`: of the checkpoint.
    ///
    /// # Errors
    /// [`RequestError::UnknownConsumer`], and as [`Tracker::barrier`]. A cursor that cannot be used is no error: the answer is
    /// fresh.
    pub fn changes(&self, since: &Since, deadline: Option<Instant>) -> Result<Answer, RequestError> {
        let since = match since {
            Since::Cursor(cursor) => Since::Cursor(*cursor),
            Since::Consumer(name) => match self.shared.consumers.lock().cursor(name)? {
                Some(cursor) => Since::Cursor(cursor),
                None => Since::Nothing,
            },
            Since::Now => Since::Now,
            Since::Nothing => Since::Nothing,
        };
        let shared = &self.shared;
        let sealed = match shared.checkpoint(deadline) {
            Ok(sealed) => sealed,
            // A journal that has failed still answers: everything may have changed.
            Err(RequestError::Journal { why }) => {
                let cursor = shared.cursor(shared.checkpoints.sealed(), CheckpointId(0));
                return Ok(Answer {
                    cursor,
                    since: None,
                    fresh: Some(FreshReason::Lost(why)),
                    lines: Vec::new(),
                });
            }
            Err(error) => return Err(error),
        };
        // It will have compared everything.
        let fresh = |reason| Answer {
            cursor: shared.cursor(sealed, sealed),
            since: None,
            fresh: Some(reason),
            lines: Vec::new(),
        };
        let cursor = match since {
            Since::Cursor(cursor) => cursor,
            Since::Now => {
                let cursor = shared.cursor(sealed, CheckpointId(0));
                return Ok(Answer { cursor, fresh: None, ..fresh(FreshReason::NoCursor) });
            }
            _ => return Ok(fresh(FreshReason::NoCursor)),
        };
        if cursor.journal != shared.journal_id() {
            return Ok(fresh(FreshReason::ForeignCursor));
        }
        if cursor.checkpoint > sealed {
            return Ok(fresh(FreshReason::Future));
        }
        match shared.has_sealed(cursor.checkpoint) {
            Ok(true) => {}
            Ok(false) => return Ok(fresh(FreshReason::NotSealed)),
            Err(Unreadable::Fresh(reason)) => return Ok(fresh(reason)),
            Err(Unreadable::Failed(error)) => return Err(error),
        }
        if cursor.checkpoint == sealed {
            return Ok(Answer { cursor, since: Some(cursor), fresh: None, lines: Vec::new() });
        }
        let is_first = shared.answered.lock().is_first(cursor.checkpoint);
        let reading_since = if is_first { cursor.reading_since } else { CheckpointId(0) };
        match shared.difference(&Cursor { reading_since, ..cursor }, sealed) {
            Ok((lines, reading_since)) => Ok(Answer {
                cursor: shared.cursor(sealed, reading_since),
                since: Some(cursor),
                fresh: None,
                lines,
            }),
            Err(Unreadable::Fresh(reason)) => Ok(fresh(reason)),
            Err(Unreadable::Failed(error)) => Err(error),
        }
    }
}

impl<S: Storage> Shared<S> {
    /// Whether a checkpoint not after the newest one was made in this journal: a tracker begins at a random period, so that others are
    /// left out.
    pub(crate) fn has_sealed(&self, checkpoint: CheckpointId) -> Result<bool, Unreadable> {
        if checkpoint == CheckpointId(0)
            || checkpoint == self.checkpoints.sealed()
            || checkpoint.0 >= self.first_period.0
        {
            return Ok(true);
        }
        if self.journal.oldest_period_kept().0 > checkpoint.0 {
            return Err(Unreadable::Fresh(FreshReason::TooOld));
        }
        for record in self.journal.records(Period(checkpoint.0)) {
            let record = record.map_err(unreadable)?;
            if record.period.0 > checkpoint.0 {
                break;
            }
            if record.kind == crate::record::kind::SEAL && record.period.0 == checkpoint.0 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The lines from a cursor to a checkpoint, and since when the holder of the next cursor will have been reading.
    fn difference(
        &self,
        since: &Cursor,
        sealed: CheckpointId,
    ) -> Result<(Vec<Line>, CheckpointId), Unreadable> {
        if self.journal.oldest_period_kept().0 > since.checkpoint.0 + 1 {
            return Err(Unreadable::Fresh(FreshReason::TooOld));
        }
        let mut lines = Vec::new();
        let mut told_again = false;
        let parts = self.parts(since.checkpoint, sealed)?;
        let is_whole = parts.len() == 1;
        for part in &parts {
            let mut window = self.read_part(part, Window::new(&self.facts.root), Window::push)?;
            if let Some(reason) = window.lost.take() {
                return Err(Unreadable::Fresh(FreshReason::Lost(reason)));
            }
            let reading = || if is_whole { self.reading(since, part) } else { Ok(Reading::Anything) };
            let mut plan = plan(&window, reading, |object| self.may_be_elsewhere(object))?;
            lines.append(&mut plan.lines);
            told_again |= plan.told_again;
        }
        let reading_since = since.reading_since_next(sealed, &lines, told_again);
        Ok((lines, reading_since))
    }

    /// Cuts the periods after `since` where tracking began anew.
    fn parts(&self, since: CheckpointId, sealed: CheckpointId) -> Result<Vec<Part>, Unreadable> {
        let first = Usn(0);
        let mut parts = vec![Part { first, end: Usn(u64::MAX), after: since, through: sealed }];
        let mut count = 0;
        for record in self.journal.records(Period(since.0 + 1)) {
            let record = record.map_err(unreadable)?;
            count += 1;
            if count > RECORDS_MAX {
                return Err(Unreadable::Fresh(FreshReason::TooMuch));
            }
            if record.kind == crate::record::kind::STARTED && record.period.0 <= sealed.0 {
                let Body::Started { stable, .. } = decode(record.kind, &record.payload)? else { continue };
                let last = parts.last_mut().expect("never empty");
                last.end = record.usn;
                if !mutation::is(Mutation::RecordsAfterHorizon) {
                    last.through = last.through.min(stable);
                }
                parts.push(Part { first: record.usn, end: Usn(u64::MAX), after: since, through: sealed });
            }
        }
        Ok(parts)
    }

    fn read_part<T>(
        &self,
        part: &Part,
        mut into: T,
        push: impl Fn(&mut T, u64, &Body),
    ) -> Result<T, Unreadable> {
        for record in self.journal.records(Period(part.after.0 + 1)) {
            let record = record.map_err(unreadable)?;
            if record.usn >= part.end {
                break;
            }
            let is_told = record.usn >= part.first && record.period.0 <= part.through.0;
            // What was lost stays lost, also where the other records are no facts.
            if is_told || record.kind == crate::record::kind::LOST && record.usn >= part.first {
                push(&mut into, record.usn.0, &decode(record.kind, &record.payload)?);
            }
        }
        Ok(into)
    }

    /// What the holder of a cursor may have been reading.
    fn reading(&self, since: &Cursor, part: &Part) -> Result<Reading, Unreadable> {
        let from = since.reading_since;
        if since.has_compared_everything() {
            return Ok(Reading::Everything);
        }
        if from == CheckpointId(0) || self.journal.oldest_period_kept().0 > from.0 + 1 {
            return Ok(Reading::Anything);
        }
        let parts = self.parts(from, since.checkpoint)?;
        let [earlier] = &parts[..] else { return Ok(Reading::Anything) };
        let earlier = self.read_part(earlier, Window::new(&self.facts.root), Window::push)?;
        Ok(Reading::Told(Box::new(self.read_part(part, Told::new(earlier), Told::push)?)))
    }

    fn may_be_elsewhere(&self, object: &FileHandle) -> Result<bool, Unreadable> {
        match self.source().may_be_elsewhere(object) {
            // It cannot be looked for: it may be.
            Err(error) if error.kind() == std::io::ErrorKind::Unsupported => Ok(true),
            found => found.map_err(|source| {
                let doing = "look for an object that has lost its names";
                Unreadable::Failed(RequestError::Source { doing, source })
            }),
        }
    }
}

/// Consecutive records without a break of tracking.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// The first record.
    first: Usn,
    /// The record behind the last one.
    end: Usn,
    /// Records of this period and earlier ones have been handed out.
    after: CheckpointId,
    /// Records of later periods are no facts, or do not belong to the answer.
    through: CheckpointId,
}

fn decode(kind: highwater_journal::RecordKind, payload: &[u8]) -> Result<Body, Unreadable> {
    // The checksum was right, so a version that knows more has written it: nothing can be said about it.
    Body::decode(kind, payload).map_err(|error| Unreadable::Fresh(FreshReason::Lost(error.to_string())))
}

fn unreadable(error: ReadError) -> Unreadable {
    match error {
        ReadError::Dropped { .. } => Unreadable::Fresh(FreshReason::TooOld),
        // G5: what cannot be read is not left out.
        error => Unreadable::Fresh(FreshReason::Lost(crate::error::with_causes(&error))),
    }
}
