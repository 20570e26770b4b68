//! What can go wrong, one enum per kind of call.

use std::borrow::Cow;
use std::error::Error;
use std::io;
use std::path::PathBuf;

use crate::cursor::Cursor;

/// The state cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenVolumeError {
    /// The state is of another directory.
    #[error("the state belongs to another tracked directory, {}", directory.display())]
    OtherVolume {
        /// Which.
        directory: PathBuf,
    },
    /// The state was written by a newer version.
    #[error("the state was written by a newer version of highwater; nothing has been changed")]
    NewerFormat {
        /// What the journal says.
        #[source]
        source: highwater_journal::OpenError,
    },
    /// Reading or writing it failed.
    #[error("cannot {doing}")]
    Io {
        /// What.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The journal cannot be opened or made.
    #[error("cannot open the journal")]
    Journal {
        /// Why.
        #[source]
        source: highwater_journal::OpenError,
    },
}

/// Why a write section cannot go on. The operation must fail with the errno and without an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SectionError {
    /// The journal's disk is full and the policy is [`OnFull::Fail`](crate::OnFull::Fail).
    #[error("the journal's disk is full")]
    Full,
    /// The journal has failed: a change that went on would be lost in a crash without anybody knowing.
    #[error("the journal has failed")]
    Failed,
}

impl SectionError {
    /// The errno that the operation answers: `ENOSPC` or `EIO`.
    pub fn errno(&self) -> i32 {
        match self {
            Self::Full => rustix::io::Errno::NOSPC.raw_os_error(),
            Self::Failed => rustix::io::Errno::IO.raw_os_error(),
        }
    }
}

/// A request that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// No consumer of this name.
    #[error("no consumer {name:?}; add it with `highwater consumer add`")]
    UnknownConsumer {
        /// The name.
        name: String,
    },
    /// There is one of this name already.
    #[error("consumer {name:?} exists already")]
    ConsumerExists {
        /// The name.
        name: String,
    },
    /// The name is not 1 to 64 of `[A-Za-z0-9._-]`.
    #[error("not a consumer name: {name:?} (1 to 64 letters, digits, '.', '_' or '-')")]
    BadConsumerName {
        /// The name.
        name: String,
    },
    /// There are too many consumers already.
    #[error("there are {max} consumers already, which is the most")]
    TooManyConsumers {
        /// The limit.
        max: usize,
    },
    /// An ack may not go back.
    #[error("consumer {name:?} has acked {acked} already; {given} is older")]
    AckBackwards {
        /// The name.
        name: String,
        /// What is stored.
        acked: Cursor,
        /// What was given.
        given: Cursor,
    },
    /// A cursor that this volume has not given out.
    #[error("cursor {given} was not given out by this volume as it is now")]
    ForeignCursor {
        /// What was given.
        given: Cursor,
    },
    /// The time that was given ran out.
    #[error("the deadline passed while waiting for {waiting_for}")]
    Deadline {
        /// What held it up; and by whom, where the source can tell.
        waiting_for: Cow<'static, str>,
    },
    /// The source or the tracked filesystem failed.
    #[error("cannot {doing}")]
    Source {
        /// What.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The journal failed for good; only a new start of the tracker helps.
    #[error("the journal has failed: {why}")]
    Journal {
        /// Why.
        why: String,
    },
    /// A state file could not be written.
    #[error("cannot {doing}")]
    State {
        /// What.
        doing: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The tracker is stopping.
    #[error("the tracker is stopping")]
    Stopping,
}

impl RequestError {
    pub(crate) fn journal(error: &(dyn Error + 'static)) -> Self {
        Self::Journal { why: with_causes(error) }
    }
}

/// An error and its causes, in one line.
pub(crate) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let causes = std::iter::successors(error.source(), |error| (*error).source());
    std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}
