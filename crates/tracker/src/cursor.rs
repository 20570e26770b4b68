//! The place of a consumer in the history of a volume.

use std::fmt;
use std::str::FromStr;

use highwater_journal::JournalId;

use crate::line::{Line, LineKind};

/// The number of a checkpoint: the period that it sealed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CheckpointId(pub u64);

/// "Everything through this checkpoint has been handed out."
///
/// The text form is opaque to consumers: `hw1.<journal id>.<checkpoint>.<reading since>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// The journal that the checkpoint belongs to. Another one: the cursor is foreign, the answer fresh.
    pub journal: JournalId,
    /// Everything through this checkpoint has been handed out to the holder.
    pub checkpoint: CheckpointId,
    /// The holder may have read what was handed out after this checkpoint at any time since. Zero: it may have read anything.
    /// The checkpoint of the cursor itself: it has compared everything.
    pub reading_since: CheckpointId,
}

impl Cursor {
    /// Whether its holder may have read what it was not told to: it has compared a directory.
    pub fn may_have_read_anything(&self) -> bool {
        self.reading_since == CheckpointId(0) || self.reading_since == self.checkpoint
    }

    pub(crate) fn has_compared_everything(&self) -> bool {
        self.reading_since == self.checkpoint && self.reading_since != CheckpointId(0)
    }

    /// What the next cursor says of the holder of this one, when it is told these lines up to a checkpoint. `told_again`: some of them
    /// it has been told before, and may not find once more.
    pub(crate) fn reading_since_next(
        &self,
        checkpoint: CheckpointId,
        lines: &[Line],
        told_again: bool,
    ) -> CheckpointId {
        let rescans = || lines.iter().filter(|line| line.kind == LineKind::Rescan);
        if rescans().any(|line| line.recursive && line.path == b".") {
            checkpoint
        } else if rescans().next().is_some() || told_again && self.has_compared_everything() {
            CheckpointId(0)
        } else if told_again {
            self.reading_since
        } else {
            self.checkpoint
        }
    }
}

/// A text that is not a cursor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a cursor: {text:?} (a cursor looks like hw1.<32 hex digits>.<number>.<number>)")]
pub struct ParseCursorError {
    /// What was given, shortened.
    pub text: String,
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hw1.{}.{}.{}", self.journal, self.checkpoint.0, self.reading_since.0)
    }
}

impl FromStr for Cursor {
    type Err = ParseCursorError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || ParseCursorError { text: text.chars().take(80).collect() };
        let mut parts = text.strip_prefix("hw1.").ok_or_else(error)?.split('.');
        let mut next = || parts.next().ok_or_else(error);
        let journal = next()?.parse().map_err(|_| error())?;
        let number = |part: &str| {
            let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
            if digits { part.parse().map_err(|_| error()) } else { Err(error()) }
        };
        let checkpoint = CheckpointId(number(next()?)?);
        let reading_since = CheckpointId(number(next()?)?);
        if parts.next().is_some() || reading_since > checkpoint {
            return Err(error());
        }
        Ok(Self { journal, checkpoint, reading_since })
    }
}
