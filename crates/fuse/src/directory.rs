//! Reading directories.

use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use highwater_objects::{last_errno, proc_path};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use crate::filesystem::Filesystem;
use crate::wire::abi::{DirentHeader, EntryOut, FSYNC_DATA_ONLY, FsyncIn, OpenOut, ReadIn, ReleaseIn, fopen};
use crate::wire::request::{Request, Sent};

/// One open of a directory.
pub(crate) struct OpenDirectory {
    pub(crate) fd: OwnedFd,
    stream: Mutex<Stream>,
}

/// Where reading has got to: entries that the filesystem below has given and the kernel has not had yet.
struct Stream {
    buffer: Vec<u64>,
    len: usize,
    at: usize,
    /// The offset that the entry at `at` is asked for by.
    offset: u64,
}

/// An entry as `getdents64(2)` gives it.
struct Dirent<'a> {
    ino: u64,
    next: u64,
    kind: u8,
    name: &'a CStr,
    len: usize,
}

const BUFFER_BYTES: usize = 32 << 10;

impl Stream {
    fn seek(&mut self, fd: &OwnedFd, offset: u64) -> Result<(), Errno> {
        // From the beginning always anew: btrfs lists a directory as it was when it was opened or rewound, and the kernel keeps
        // the listing as that of the moment in which it asked for its beginning.
        if self.offset != offset || offset == 0 {
            rustix::fs::seek(fd, SeekFrom::Start(offset))?;
            (self.len, self.at, self.offset) = (0, 0, offset);
        }
        Ok(())
    }

    /// The next entry, if there is one; [`Stream::accept`] goes past it.
    fn peek(&mut self, fd: &OwnedFd) -> Result<Option<Dirent<'_>>, Errno> {
        if self.at == self.len {
            if self.buffer.is_empty() {
                self.buffer = vec![0; BUFFER_BYTES / 8];
            }
            // SAFETY: the buffer is ours alone, has `BUFFER_BYTES` bytes, and the kernel writes at most that many.
            let n = unsafe {
                libc::syscall(libc::SYS_getdents64, fd.as_raw_fd(), self.buffer.as_mut_ptr(), BUFFER_BYTES)
            };
            self.len = usize::try_from(n).map_err(|_| last_errno())?;
            self.at = 0;
        }
        let Some(bytes) = self.buffer.as_bytes()[..self.len].get(self.at..).filter(|bytes| bytes.len() >= 19)
        else {
            return Ok(None);
        };
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(word)
        };
        let name = CStr::from_bytes_until_nul(&bytes[19..]).map_err(|_| Errno::IO)?;
        let len = usize::from(u16::from_ne_bytes([bytes[16], bytes[17]]));
        Ok(Some(Dirent { ino: word(0), next: word(8), kind: bytes[18], name, len }))
    }

    fn accept(&mut self, len: usize, next: u64) {
        self.at += len;
        self.offset = next;
    }
}

impl Filesystem {
    pub(crate) fn opendir(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let object = self.object(request.node())?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(proc_path(object.as_fd()).as_c_str(), flags, Mode::empty())?;
        let stream = Mutex::new(Stream { buffer: Vec::new(), len: 0, at: 0, offset: 0 });
        let fh = self.open_directories.insert(OpenDirectory { fd, stream });
        // The kernel keeps the listing until it changes the directory itself.
        Ok(request.reply(&OpenOut { fh, open_flags: fopen::CACHE_DIR | fopen::KEEP_CACHE, backing_id: 0 }))
    }

    pub(crate) fn readdir(&self, request: &Request<'_>, plus: bool) -> Result<Sent, Errno> {
        let input: ReadIn = request.body().take()?;
        let directory = self.open_directories.get(input.fh)?;
        let node = request.node();
        let mut stream = directory.stream.lock();
        stream.seek(&directory.fd, input.offset)?;
        let room = input.size.min(crate::session::DATA_BYTES_MAX) as usize;
        let mut out = Vec::with_capacity(room);
        while let Some(entry) = stream.peek(&directory.fd)? {
            let name = entry.name.to_bytes();
            let fixed = size_of::<DirentHeader>() + if plus { size_of::<EntryOut>() } else { 0 };
            if out.len() + (fixed + name.len()).next_multiple_of(8) > room {
                break;
            }
            let mut ino = entry.ino;
            if plus {
                let mut found = EntryOut::new_zeroed();
                if name != b"." && name != b".." {
                    match self.covered.find(directory.fd.as_fd(), entry.name) {
                        Ok(object) => {
                            found = self.entry(&object, Some((node, name)));
                            ino = found.attr.ino;
                        }
                        // Not there by name, or not to be looked at: the name alone, as READDIR gives it.
                        Err(_) => found = EntryOut::new_zeroed(),
                    }
                }
                out.extend_from_slice(found.as_bytes());
            }
            let header = DirentHeader {
                ino,
                off: entry.next,
                namelen: u32::try_from(name.len()).unwrap_or_default(),
                kind: entry.kind.into(),
            };
            out.extend_from_slice(header.as_bytes());
            out.extend_from_slice(name);
            out.resize(out.len().next_multiple_of(8), 0);
            let (len, next) = (entry.len, entry.next);
            stream.accept(len, next);
        }
        Ok(request.reply_parts(&out, &[]))
    }

    pub(crate) fn releasedir(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let input: ReleaseIn = request.body().take()?;
        self.open_directories.remove(input.fh)?;
        Ok(request.done())
    }

    pub(crate) fn fsyncdir(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let input: FsyncIn = request.body().take()?;
        let directory = self.open_directories.get(input.fh)?;
        let fd = directory.fd.as_fd();
        if input.fsync_flags & FSYNC_DATA_ONLY != 0 {
            rustix::fs::fdatasync(fd)
        } else {
            rustix::fs::fsync(fd)
        }?;
        Ok(request.done())
    }
}
