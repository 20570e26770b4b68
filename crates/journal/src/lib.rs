//! A durable, checksummed, append-only journal with group commit.
//!
//! A record is a kind, a [`Period`], a number ([`Usn`]) that the journal assigns, and bytes that it does not look into.
//! It has three states: appended (in memory), written through (survives a kill of the process), durable (survives a
//! power loss).
//!
//! ```
//! use highwater_journal::{Directory, Journal, JournalId, Options, Period, RecordKind};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let parent = tempfile::tempdir()?;
//! # let path = parent.path().join("state");
//! let mut journal = Journal::create(Directory::open(&path)?, JournalId([7; 16]), Options::default())?;
//! let usn = journal.append(RecordKind(1), Period(1), b"an intent")?;
//! journal.sync(usn)?;
//! journal.close()?;
//! drop(journal);
//!
//! let (journal, recovered) = Journal::open(Directory::open(&path)?, Options::default())?;
//! assert_eq!(recovered.last_usn, usn);
//! for record in journal.records(Period(1)) {
//!     assert_eq!(record?.payload, b"an intent");
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # The life of a record
//!
//! 1. `append.rs`: under the lock it gets its number and its place in the segment that is open, whose space is
//!    allocated. If there is no room, the next segment is allocated first, or the record is refused as
//!    [`AppendError::Full`]. So whatever was accepted can be written.
//! 2. `commit.rs`: the first waiter takes everything buffered, writes it in one piece and syncs it, without the lock; who
//!    comes meanwhile waits, and one of those leads the next round.
//! 3. `reader.rs`: [`Journal::records`] finds the segment by what the headers say, walks it (`walk.rs`), and goes on into
//!    what is still in memory.
//! 4. `recovery.rs`: after a crash, everything that was durable, or an error; see there for what a torn tail is.
//! 5. `retention.rs`: old segments go, whole, oldest first.
//!
//! `frame.rs` and `segment.rs` define the bytes, which `docs/journal-format.md` explains; `storage.rs` is the crash seam:
//! the journal touches the medium through [`Storage`] only, `directory.rs` is the real one. `inspect.rs` looks at a
//! journal offline.
//!
//! # What is not promised
//!
//! * Periods are not in the order of the numbers, and numbers are not without gaps: a crash leaves some out.
//! * A journal that is dropped without [`Journal::close`] keeps what was written through, no more.
//! * A record whose [`Journal::sync`] failed may be there or not.
#![forbid(unsafe_code)]

mod append;
mod commit;
mod directory;
mod error;
#[cfg(test)]
mod format_document;
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
