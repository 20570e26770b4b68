//! The seam between the tracker and what sees modifications.
//!
//! A source wraps every modifying operation like this:
//!
//! ```text
//! let section = tracker.section();            // enter the write section
//! section.intend(&[Intent::Directory(d)])?;   // waits until a crash cannot hide the change (strict)
//! ... do the operation ...
//! section.record(change, || names.update());  // what has happened, and the source's own name table, as one step
//! drop(section);                              // leave; a barrier that waits for it goes on
//! ```
//!
//! An operation that failed without an effect records nothing. One that may have had an effect records it.

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use crate::{EntryTimes, FileHandle, ObjectType, Place, Sample};

/// What sees modifications of the tracked tree. Implemented by the sources, called by the tracker.
///
/// [`places`](Source::places) is called with the tracker's record lock held and must not call the tracker; the other methods
/// are called without it, by the thread that runs a checkpoint, never by a thread that is inside a write section.
///
/// A method that is given a deadline fails with [`io::ErrorKind::TimedOut`] when it has passed; the error's text may say who held it
/// up, and is passed on.
pub trait Source: Send + Sync + 'static {
    /// Returns once what every ended write section did is visible to all readers of the tracked tree.
    ///
    /// Called after the write barrier of each checkpoint. A stacked source lets the kernel finish with the answers it has
    /// been sent: after a section has ended, the kernel may still show cached attributes or names from before.
    ///
    /// A call that fails settles nothing: the next one must do what this one should have done.
    fn settle(&self, deadline: Option<Instant>) -> io::Result<()>;

    /// Records what has happened and has not been recorded: a source that hears of operations after they were made does it here, in
    /// a section of its own. When it returns, every operation that began before the call has ended and has been recorded.
    ///
    /// Called by each checkpoint after the barrier for the sections in flight, and before anything else.
    fn drain(&self, _deadline: Option<Instant>) -> io::Result<()> {
        Ok(())
    }

    /// The names of an object that the source knows; for a directory the one it has.
    ///
    /// Must reflect exactly the updates made by the closures given to [`Section::record`](crate::Section::record).
    /// For an object that the source does not know it may ask the filesystem (a directory by its handle).
    /// `Some` and empty: the object has no name (any more). `None`: it has names, but none is known.
    fn places(&self, object: &FileHandle) -> Option<Vec<Place>>;

    /// Whether an object that has lost every name that the records know may have another one in the tracked directory; of a directory
    /// that has been moved out of it, whether something below it may. Now: what is elsewhere by then and was not has records of that.
    ///
    /// By default whether it exists.
    ///
    /// # Errors
    /// `Unsupported`: as for [`sample`](Source::sample). It may be then.
    fn may_be_elsewhere(&self, object: &FileHandle) -> io::Result<bool> {
        Ok(self.sample(object)?.is_some_and(|sample| sample.nlink > 0))
    }

    /// The attributes of an object now, as the filesystem below has them; `None` if it does not exist any more.
    ///
    /// Asked for objects that are open for writing, and by recovery for those that were.
    ///
    /// # Errors
    /// `Unsupported`: it is not known to the source, and cannot be looked for by its handle.
    fn sample(&self, object: &FileHandle) -> io::Result<Option<Sample>>;

    /// Returns once every synchronous write to the object that began before the call has ended.
    fn wait_for_writes(&self, object: &FileHandle, deadline: Option<Instant>) -> io::Result<()>;

    /// Which of these objects are mapped writable and shared by some process, or may be.
    fn mapped_writable(&self, objects: &[FileHandle]) -> io::Result<HashSet<FileHandle>>;

    /// Whether every change after a [`sample`](Source::sample) gets a timestamp that differs from it (multigrain timestamps).
    fn timestamps_are_distinct(&self) -> bool;

    /// Makes everything that has been written to the tracked filesystem durable: `syncfs(2)`.
    fn sync_filesystem(&self) -> io::Result<()>;

    /// Opens a directory of the tracked tree below the source for reading, by handle; `None` if it does not exist any more.
    ///
    /// For recovery and catch-up, which walk it. Must not go through a mount that the source itself serves.
    ///
    /// # Errors
    /// `Unsupported`: as for [`sample`](Source::sample). Recovery and catch-up then tell a rescan of everything.
    fn open_directory(&self, directory: &FileHandle) -> io::Result<Option<OwnedFd>>;

    /// The handle and the type of an entry of a directory opened by [`open_directory`](Source::open_directory).
    fn handle_at(&self, directory: &OwnedFd, name: &[u8]) -> io::Result<Option<(FileHandle, ObjectType)>>;

    /// The inode numbers of everything on the filesystem that was changed or born since then, nanoseconds since the epoch, as far as
    /// that was before the call; `None` where that is not cheaper than to ask for each entry. For catch-up.
    fn changed_since(&self, _since_ns: i128) -> io::Result<Option<HashSet<u64>>> {
        Ok(None)
    }

    /// What a name leads to now; `None` if the name or its directory does not exist any more. For recovery.
    ///
    /// By default by [`open_directory`](Source::open_directory) and [`handle_at`](Source::handle_at).
    fn leads_to(&self, place: &Place) -> io::Result<Option<FileHandle>> {
        let Some(directory) = self.open_directory(&place.parent)? else { return Ok(None) };
        Ok(self.handle_at(&directory, &place.name)?.map(|(handle, _)| handle))
    }

    /// Shows each entry of a directory. `false` if it does not exist any more.
    ///
    /// For recovery and catch-up. By default by [`open_directory`](Source::open_directory), which is right for every real
    /// filesystem; a simulated one has its own way.
    fn walk(
        &self,
        directory: &FileHandle,
        visit: &mut dyn FnMut(&dyn Entry) -> io::Result<()>,
    ) -> io::Result<bool> {
        crate::walk::walk(self, directory, visit)
    }
}

/// An entry of a directory that is walked. What it costs to know is asked for one by one.
pub trait Entry {
    /// Its name.
    fn name(&self) -> &[u8];

    /// Its inode number, as the directory has it; only to be looked for in [`Source::changed_since`].
    fn inode_number(&self) -> u64;

    /// False if it is surely not a directory.
    fn may_be_directory(&self) -> bool;

    /// Its times; `None` if it is gone by now.
    fn times(&self) -> io::Result<Option<EntryTimes>>;

    /// What is there; `None` if nothing is any more.
    fn object(&self) -> io::Result<Option<(FileHandle, ObjectType)>>;
}
