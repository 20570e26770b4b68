//! What a source tells the tracker: where an object is, and what has happened to it.

use crate::FileHandle;

/// A file name: one path component, any bytes but `/` and NUL, 1 to 255 of them.
pub type Name = Box<[u8]>;

/// One directory entry: the directory and the name in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// The directory.
    pub parent: FileHandle,
    /// The name in it.
    pub name: Name,
}

/// What sort of object it is, as the `type` field of a change tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectType {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO, a socket or a device.
    Other,
}

/// Something that a source has seen happen, told after it happened and before its write section ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new object at a new name.
    Created {
        /// The new object.
        object: FileHandle,
        /// Its type.
        object_type: ObjectType,
        /// Where it is.
        place: Place,
    },
    /// One more name of an object: a hard link, or an `O_TMPFILE` that got a name.
    Linked {
        /// The object.
        object: FileHandle,
        /// Its type.
        object_type: ObjectType,
        /// The new name.
        place: Place,
    },
    /// A name is gone: unlink or rmdir.
    Removed {
        /// The object that had the name.
        object: FileHandle,
        /// Its type.
        object_type: ObjectType,
        /// The name that is gone.
        place: Place,
    },
    /// A name has moved. What was at `to` before, if anything, has lost that name.
    Renamed {
        /// The object.
        object: FileHandle,
        /// Its type.
        object_type: ObjectType,
        /// The name that is gone.
        from: Place,
        /// The name that it has now.
        to: Place,
        /// What was at `to` and has been replaced.
        replaced: Option<(FileHandle, ObjectType)>,
    },
    /// Two names have changed their objects: `RENAME_EXCHANGE`.
    Exchanged {
        /// The object that was at `a_place` and is at `b_place` now.
        a: (FileHandle, ObjectType),
        /// Its old place.
        a_place: Place,
        /// The object that was at `b_place` and is at `a_place` now.
        b: (FileHandle, ObjectType),
        /// Its old place.
        b_place: Place,
    },
    /// The data of a regular file, or may be: write, truncate, fallocate, a change seen by the open-writer rule.
    Modified {
        /// The file.
        object: FileHandle,
    },
    /// Mode, owner, times, extended attributes or ACLs.
    Metadata {
        /// The object.
        object: FileHandle,
        /// Its type.
        object_type: ObjectType,
    },
}

/// What is about to change, for [`Section::intend`](crate::Section::intend).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent<'a> {
    /// The entries of a directory, the directory itself, or a non-directory in it that has one link.
    Directory(&'a FileHandle),
    /// An object that has several names, or whose directory is not known.
    Object(&'a FileHandle),
    /// A directory that is going to be renamed, in addition to the directories of its old and its new name.
    ///
    /// After a crash a consumer compares a directory by the names in it; that another old directory has one of the names now
    /// it would not notice.
    Move(&'a FileHandle),
}

/// How an object is open for writing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriterMode {
    /// Open for reading as well, so that it can be mapped writable and shared.
    pub can_map: bool,
    /// Opened with `O_DIRECT`, so that asynchronous I/O cannot be waited for.
    pub direct: bool,
    /// Writes go past the source (passthrough): it sees neither their beginning nor their end.
    pub unseen: bool,
}

/// When an entry of a directory was changed and born, for recovery and catch-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryTimes {
    /// It is a directory.
    pub is_directory: bool,
    /// Change time, nanoseconds since the epoch.
    pub ctime_ns: i128,
    /// Birth time, nanoseconds since the epoch; `None` where the filesystem keeps none.
    pub born_ns: Option<i128>,
}

/// The attributes of an object that tell whether an open writer has changed it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Modification time, nanoseconds since the epoch.
    pub mtime_ns: i128,
    /// Change time, nanoseconds since the epoch.
    pub ctime_ns: i128,
    /// Size, bytes.
    pub size: u64,
    /// The number of names.
    pub nlink: u64,
}
