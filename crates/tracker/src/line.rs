//! One line of a change set, as a consumer gets it.

use crate::ObjectType;

/// What a consumer has to do about a path. The names are those of the command line's `kind` field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum LineKind {
    /// The object is new at this path: take it. What the consumer may hold there already is something else.
    Created,
    /// The data may differ: take them, and the metadata.
    Modified,
    /// Only mode, owner, times, extended attributes, ACLs or the link count may differ.
    Metadata,
    /// What the consumer holds at `from` is at `path` now; with a directory goes all that is in it.
    Renamed,
    /// Nothing is at this path any more; for a directory, nothing is below it.
    Deleted,
    /// Compare the directory with what the consumer holds. See `recursive`.
    Rescan,
}

/// One line of a change set. Applying the lines from top to bottom is safe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Relative to the tracked directory, without a leading `./`; the root itself is `.`.
    pub path: Vec<u8>,
    /// What to do about it.
    pub kind: LineKind,
    /// The type of the object; of a deleted one, what it was.
    pub object_type: ObjectType,
    /// For [`LineKind::Renamed`]: the old path, as it is once the lines above have been applied.
    pub from: Option<Vec<u8>>,
    /// For [`LineKind::Rescan`]: everything below as well, not only the directory's own entries.
    pub recursive: bool,
    /// Told because of a crash: the change may have happened, may have been lost, or may have been told before.
    pub recovered: bool,
    /// The number of names that the object has, where it was known to have more than one.
    pub nlink: Option<u64>,
    /// The USN of the newest record that the line stands for.
    pub usn: u64,
}
