//! A durable, checksummed, append-only journal with group commit.
#![forbid(unsafe_code)]

mod append;
mod commit;
mod directory;
mod error;
mod frame;
mod ids;
mod inspect;
mod journal;
mod options;
mod reader;
mod recovery;
mod retention;
mod segment;
mod state;
mod storage;
mod walk;

pub use directory::{Directory, DirectoryError, DirectoryFile};
pub use error::{
    AppendError, Damage, DamageReason, JournalError, OpenError, Poisoned, ReadError, RetainError,
};
pub use frame::{PAYLOAD_LIMIT, RESERVED_PAYLOAD_LIMIT};
pub use ids::{JournalId, ParseJournalIdError, Period, Record, RecordKind, Usn};
pub use inspect::{Inspection, SegmentReport, SegmentRole, inspect};
pub use journal::Journal;
pub use options::{InvalidOption, Options};
pub use reader::{Records, Start};
pub use recovery::{Recovered, TornTail};
pub use retention::Dropped;
pub use segment::FORMAT_VERSION;
pub use storage::{READ_LIMIT_BYTES, Storage, StorageFile};
