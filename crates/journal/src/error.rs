//! What can go wrong, one enum per operation.
//!
//! Invariant: damage is never an I/O error and never an answer; a caller can match each of the three.

use std::io;
use std::sync::Arc;

use crate::ids::{JournalId, Period, Usn};
use crate::options::InvalidOption;

/// A place in the journal whose bytes are not what was written there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file} is damaged at byte {offset}: {reason}")]
pub struct Damage {
    /// The file's name.
    pub file: String,
    /// The sequence number of the segment; `None` for the manifest.
    pub segment: Option<u64>,
    /// Where the damage was noticed, in bytes from the start of the file.
    pub offset: u64,
    /// What was noticed.
    pub reason: DamageReason,
}

/// What was noticed at a damaged place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DamageReason {
    /// The file does not begin with the magic of its type.
    #[error("it does not begin with the magic of a journal file")]
    Magic,
    /// A checksum does not match the bytes that it covers.
    #[error("the checksum of the {part} does not match")]
    Checksum {
        /// What the checksum covers: `manifest`, `segment header`, `batch header`, `record`, `batch`.
        part: &'static str,
    },
    /// A valid checksum covers a value that has no meaning.
    #[error("the {part} is valid but means nothing: {value} in {field}")]
    Meaning {
        /// What the value is part of.
        part: &'static str,
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The segment belongs to another journal.
    #[error("it belongs to journal {found}")]
    OtherJournal {
        /// The journal that it names.
        found: JournalId,
    },
    /// The segment's header names another sequence number than its file name.
    #[error("its header says segment {found}")]
    OtherSegment {
        /// The sequence number in the header.
        found: u64,
    },
    /// A file that must exist does not.
    #[error("the file is missing")]
    Missing,
    /// The segment is shorter or longer than it was made.
    #[error("the file is {found} bytes long, not {expected}")]
    Length {
        /// The length it was made with.
        expected: u64,
        /// The length it has.
        found: u64,
    },
    /// A record number is not the one that follows.
    #[error("the record number is {found}, not {expected}")]
    Sequence {
        /// The number that must follow.
        expected: Usn,
        /// The number that is there.
        found: Usn,
    },
    /// Records end here although more were durable.
    #[error("records end at {last}, but {durable} was durable")]
    Short {
        /// The last valid record.
        last: Usn,
        /// The last record that is known to have been durable.
        durable: Usn,
    },
    /// The segment does not end as the header of the next one says.
    #[error("the segment does not end as the next one says")]
    End,
}

/// Why a journal could not be created or opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// An option is out of its limits.
    #[error(transparent)]
    Options(#[from] InvalidOption),
    /// There is no journal here: it was never created, or its creation did not get to its end.
    #[error("there is no journal here")]
    Missing,
    /// There is a journal, or the remains of one; [`Journal::discard`](crate::Journal::discard) removes it.
    #[error("there is a journal here already ({file} exists)")]
    Exists {
        /// One of its files.
        file: String,
    },
    /// The bytes are not what was written; what the journal held cannot be trusted to be complete.
    #[error("the journal is damaged")]
    Damaged(#[source] Damage),
    /// The journal was written by a newer version of this crate.
    #[error(
        "{file} has journal format {found}; this program knows format {supported} only and changed nothing"
    )]
    NewerFormat {
        /// The file.
        file: String,
        /// Its format version.
        found: u32,
        /// The newest version known here.
        supported: u32,
    },
    /// The storage failed.
    #[error("cannot {operation} {file}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        file: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// The first failed write or sync, after which the journal does nothing more.
///
/// After a failed sync nobody knows which bytes are on the medium, and a repeated one may succeed without having
/// written them; only opening the journal anew tells what it holds.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the journal stopped when it could not {operation} {file}")]
pub struct Poisoned {
    /// What was tried.
    pub operation: &'static str,
    /// On which file.
    pub file: String,
    /// The first cause.
    #[source]
    pub source: Arc<io::Error>,
}

/// Why records could not be written or made durable.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum JournalError {
    /// A write or sync failed, now or before.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}

/// Why a record was not accepted.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// There is no room for the record: the disk, the quota or the journal's own limit. Nothing was lost; appending
    /// goes on when there is room again. See [`Journal::append_reserved`](crate::Journal::append_reserved).
    #[error("there is no room for another journal segment")]
    Full {
        /// The cause; `None` if it is [`Options::limit_bytes`](crate::Options::limit_bytes).
        #[source]
        source: Option<Arc<io::Error>>,
    },
    /// The payload is larger than the limit.
    #[error("the payload has {found} bytes; the limit is {limit}")]
    TooLarge {
        /// Its length.
        found: usize,
        /// [`PAYLOAD_LIMIT`](crate::PAYLOAD_LIMIT) or [`RESERVED_PAYLOAD_LIMIT`](crate::RESERVED_PAYLOAD_LIMIT).
        limit: usize,
    },
    /// A write or sync failed, now or before.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}

/// Why a record could not be read. What was asked for is then incomplete.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Retention has dropped records that were asked for.
    #[error("records before {oldest_usn} were dropped; periods are whole from {oldest_period} on")]
    Dropped {
        /// The first record that is kept.
        oldest_usn: Usn,
        /// The first period of which every record is kept.
        oldest_period: Period,
    },
    /// The bytes are not what was written.
    #[error("the journal is damaged")]
    Damaged(#[source] Damage),
    /// The storage failed.
    #[error("cannot read {file}")]
    Io {
        /// The file.
        file: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Why old segments could not be dropped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RetainError {
    /// A segment could not be removed; the journal goes on with it.
    #[error("cannot remove {file}")]
    Io {
        /// The file.
        file: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A write or sync failed, now or before.
    #[error(transparent)]
    Poisoned(#[from] Poisoned),
}
