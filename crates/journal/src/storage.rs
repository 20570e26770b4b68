//! The crash seam: everything that the journal asks of a medium.
//!
//! Invariant: the journal reaches the medium through these two traits only, so a simulated storage sees, and can break,
//! every operation.
//!
//! What a crash leaves, which every implementation must promise and no caller may expect more than:
//!
//! * bytes written and then covered by [`StorageFile::sync_data`] are there;
//! * of bytes written after that, each 512-byte sector is there or is not, in any order;
//! * a file created or removed, and then covered by [`Storage::sync_directory`], is there, or is gone;
//! * [`Storage::replace`] is atomic, and durable once it returned.

use std::io;
use std::sync::Arc;

/// One flat directory of named files.
///
/// A name is a plain file name of ASCII letters, digits, `-`, `_` and `.`, never a path.
pub trait Storage: Send + Sync + 'static {
    /// An open file. Stays readable after [`Storage::remove`], as on any Unix filesystem.
    type File: StorageFile + 'static;

    /// Lists the names of all files, in any order.
    ///
    /// # Errors
    /// Any error of the medium.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Creates an empty file for reading and writing. Not durable before [`Storage::sync_directory`].
    ///
    /// # Errors
    /// [`io::ErrorKind::AlreadyExists`] if the name is taken; any error of the medium.
    fn create(&self, name: &str) -> io::Result<Self::File>;

    /// Opens a file that exists, for reading, and for writing unless the storage is read-only.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`]; any error of the medium.
    fn open(&self, name: &str) -> io::Result<Self::File>;

    /// Removes a file. Not durable before [`Storage::sync_directory`].
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`]; any error of the medium.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Puts `bytes` in the place of the whole file, atomically and durably: after a crash the file holds the old
    /// bytes or the new ones, and after a return the new ones. The file need not exist before.
    ///
    /// # Errors
    /// Any error of the medium; either content may then be there.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Reads a whole small file (up to [`READ_LIMIT_BYTES`]).
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`]; [`io::ErrorKind::FileTooLarge`]; any error of the medium.
    fn read(&self, name: &str) -> io::Result<Vec<u8>>;

    /// Makes every creation and removal so far durable.
    ///
    /// # Errors
    /// Any error of the medium; never retried by the journal.
    fn sync_directory(&self) -> io::Result<()>;
}

/// The largest file that [`Storage::read`] returns: it is for small files, such as a list of consumers.
pub const READ_LIMIT_BYTES: u64 = 16 << 20;

/// An open file of a [`Storage`].
pub trait StorageFile: Send + Sync {
    /// Fills `buffer` from `offset`. Handles short reads and interruptions itself.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends first; any error of the medium.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`. Handles short writes and interruptions itself.
    ///
    /// # Errors
    /// Any error of the medium; any part of the bytes may then be there.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes everything written so far, and the file's length, durable (`fdatasync`).
    ///
    /// # Errors
    /// Any error of the medium. What was written may then be lost although a later call succeeds, so the journal
    /// never retries.
    fn sync_data(&self) -> io::Result<()>;

    /// Extends the file to `len` bytes that read as zeros and have their space on the medium: a later write to them
    /// cannot fail for want of space.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] or [`io::ErrorKind::QuotaExceeded`] if there is no room; any error of the
    /// medium.
    fn preallocate(&self, len: u64) -> io::Result<()>;

    /// Gives back the space of the bytes from `start` on. The length stays, and nobody reads or writes them any more.
    ///
    /// # Errors
    /// Any error of the medium, also that it cannot do this; the space is then kept.
    fn give_back(&self, start: u64) -> io::Result<()>;

    /// Returns the file's length in bytes.
    ///
    /// # Errors
    /// Any error of the medium.
    fn len(&self) -> io::Result<u64>;

    /// Tells whether the file has no bytes.
    ///
    /// # Errors
    /// Any error of the medium.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

impl<S: Storage> Storage for Arc<S> {
    type File = S::File;

    fn list(&self) -> io::Result<Vec<String>> {
        self.as_ref().list()
    }

    fn create(&self, name: &str) -> io::Result<Self::File> {
        self.as_ref().create(name)
    }

    fn open(&self, name: &str) -> io::Result<Self::File> {
        self.as_ref().open(name)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.as_ref().remove(name)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.as_ref().replace(name, bytes)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.as_ref().read(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.as_ref().sync_directory()
    }
}
