//! [`Storage`] on a real directory.
//!
//! Invariant: every file is reached relative to the directory that was opened, so the directory may be renamed
//! meanwhile; and only one process at a time can write to it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, AtFlags, FallocateFlags, FlockOperation, Mode, OFlags};

use crate::storage::{READ_LIMIT_BYTES, Storage, StorageFile};

/// The file that carries the lock. Never removed: a lock on a removed file excludes nobody.
const LOCK_NAME: &str = "lock";

/// A directory that only its owner can enter, locked by this process, or read-only and without a lock.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    fd: OwnedFd,
    /// Holds the lock until it is closed, which a kill does too; `None` if read-only.
    lock: Option<File>,
}

/// Why a directory could not be opened as a storage.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DirectoryError {
    /// Another process has it.
    #[error("{} is locked by a live tracker{}", path.display(), pid.map_or(String::new(), |pid| format!(", pid {pid}")))]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The process, if it wrote its id.
        pid: Option<u32>,
    },
    /// Others than the owner may enter it.
    #[error("{} has mode {mode:04o}: others may enter it; use chmod 700", path.display())]
    Exposed {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The operating system refused.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which path.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl Directory {
    /// Opens a directory for reading and writing, after making it with mode 0700 if it is missing, and locks it until
    /// the value is dropped or the process ends.
    ///
    /// # Errors
    /// [`DirectoryError::Locked`]; [`DirectoryError::Exposed`]; [`DirectoryError::Io`], also if the parent is missing.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DirectoryError> {
        let path = path.as_ref();
        match rustix::fs::mkdir(path, Mode::RWXU) {
            Ok(()) => sync_parent(path).map_err(io_error("sync the parent of", path))?,
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(io_error("create", path)(error.into())),
        }
        let fd = open_directory(path)?;
        let lock_path = path.join(LOCK_NAME);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut lock: File = rustix::fs::openat(&fd, LOCK_NAME, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| io_error("open", &lock_path)(error.into()))?
            .into();
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _ = lock.read_to_string(&mut text);
                return Err(DirectoryError::Locked { path: path.to_owned(), pid: text.trim().parse().ok() });
            }
            Err(error) => return Err(io_error("lock", &lock_path)(error.into())),
        }
        // Only for the message above, so not synced.
        lock.set_len(0)
            .and_then(|()| lock.write_all(format!("{}\n", std::process::id()).as_bytes()))
            .map_err(io_error("write", &lock_path))?;
        Ok(Self { path: path.to_owned(), fd, lock: Some(lock) })
    }

    /// Opens a directory for reading only: takes no lock, writes nothing, and every operation that would write fails
    /// with [`io::ErrorKind::ReadOnlyFilesystem`]. What a live process writes meanwhile may look damaged.
    ///
    /// # Errors
    /// As [`Directory::open`], but for the lock.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Self, DirectoryError> {
        let path = path.as_ref();
        Ok(Self { path: path.to_owned(), fd: open_directory(path)?, lock: None })
    }

    /// Returns the path that the directory was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn open_file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        check_name(name)?;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(rustix::fs::openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.lock.is_some() { Ok(()) } else { Err(io::ErrorKind::ReadOnlyFilesystem.into()) }
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd, DirectoryError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|error| io_error("open", path)(error.into()))?;
    let stat = rustix::fs::fstat(&fd).map_err(|error| io_error("stat", path)(error.into()))?;
    let mode = stat.st_mode & 0o7777;
    if mode & 0o077 != 0 {
        return Err(DirectoryError::Exposed { path: path.to_owned(), mode });
    }
    Ok(fd)
}

fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirectoryError + use<> {
    let path = path.to_owned();
    move |source| DirectoryError::Io { operation, path, source }
}

fn check_name(name: &str) -> io::Result<()> {
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    if is_plain && !name.is_empty() && name != "." && name != ".." && name != LOCK_NAME {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("not a name of a storage file: {name:?}")))
    }
}

/// Names what is in the place of `name` until it is complete.
fn temporary(name: &str) -> String {
    format!(".{name}.new")
}

impl Storage for Directory {
    type File = DirectoryFile;

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.fd)? {
            let entry = entry?;
            // What is not UTF-8 or begins with a dot is not one of ours, or not complete.
            if let Ok(name) = entry.file_name().to_str()
                && !name.starts_with('.')
                && name != LOCK_NAME
            {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn create(&self, name: &str) -> io::Result<DirectoryFile> {
        self.check_writable()?;
        self.open_file(name, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL).map(DirectoryFile)
    }

    fn open(&self, name: &str) -> io::Result<DirectoryFile> {
        if self.lock.is_none() {
            return self.open_file(name, OFlags::RDONLY).map(DirectoryFile);
        }
        let file = self.open_file(name, OFlags::RDWR)?;
        // The page cache may hold bytes that a failed write-back of an earlier process left clean, and that the medium
        // does not have. Read what is really there.
        file.sync_data()?;
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
        Ok(DirectoryFile(file))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.check_writable()?;
        check_name(name)?;
        Ok(rustix::fs::unlinkat(&self.fd, name, AtFlags::empty())?)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.check_writable()?;
        check_name(name)?;
        let temporary = temporary(name);
        let mut file = self.open_file(&temporary, OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC)?;
        let renamed: io::Result<()> = (|| {
            file.write_all(bytes)?;
            file.sync_all()?;
            Ok(rustix::fs::renameat(&self.fd, &temporary, &self.fd, name)?)
        })();
        if renamed.is_err() {
            // Frees the space; the next call would truncate it anyway.
            let _ = rustix::fs::unlinkat(&self.fd, &temporary, AtFlags::empty());
        }
        renamed?;
        self.sync_directory()
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = self.open_file(name, OFlags::RDONLY)?;
        let mut bytes = Vec::new();
        file.take(READ_LIMIT_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > READ_LIMIT_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        Ok(bytes)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.check_writable()?;
        Ok(rustix::fs::fsync(&self.fd)?)
    }
}

/// A file of a [`Directory`].
#[derive(Debug)]
pub struct DirectoryFile(File);

impl StorageFile for DirectoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        match rustix::fs::fallocate(&self.0, FallocateFlags::empty(), 0, len) {
            // NFS before 4.2, some FUSE filesystems: zeros take the space as well.
            Err(rustix::io::Errno::OPNOTSUPP) => {
                let zeros = vec![0; 1 << 16];
                (0..len).step_by(zeros.len()).try_for_each(|at| {
                    let rest = usize::try_from(len - at).map_or(zeros.len(), |rest| rest.min(zeros.len()));
                    self.0.write_all_at(&zeros[..rest], at)
                })
            }
            allocated => Ok(allocated?),
        }
    }

    fn give_back(&self, start: u64) -> io::Result<()> {
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match self.0.metadata()?.size().checked_sub(start) {
            None | Some(0) => Ok(()),
            Some(bytes) => Ok(rustix::fs::fallocate(&self.0, flags, start, bytes)?),
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.size())
    }
}
