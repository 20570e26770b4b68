//! Walking a directory of the tracked tree below the source, for recovery and catch-up.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, DirEntry, FileType, StatxFlags, Timespec};

use crate::change::{EntryTimes, ObjectType};
use crate::handle::FileHandle;
use crate::source::{Entry, Source};

/// Shows each entry of a directory: what [`Source::walk`] does on a real filesystem.
pub(crate) fn walk<S: Source + ?Sized>(
    source: &S,
    directory: &FileHandle,
    visit: &mut dyn FnMut(&dyn Entry) -> io::Result<()>,
) -> io::Result<bool> {
    let Some(fd) = source.open_directory(directory)? else { return Ok(false) };
    for entry in Dir::read_from(&fd)? {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            visit(&Below { source, directory: &fd, entry: &entry })?;
        }
    }
    Ok(true)
}

/// An entry of a directory that is open.
struct Below<'a, S: ?Sized> {
    source: &'a S,
    directory: &'a OwnedFd,
    entry: &'a DirEntry,
}

impl<S: Source + ?Sized> Entry for Below<'_, S> {
    fn name(&self) -> &[u8] {
        self.entry.file_name().to_bytes()
    }

    fn inode_number(&self) -> u64 {
        self.entry.ino()
    }

    fn may_be_directory(&self) -> bool {
        matches!(self.entry.file_type(), FileType::Directory | FileType::Unknown)
    }

    fn times(&self) -> io::Result<Option<EntryTimes>> {
        let mask = StatxFlags::TYPE | StatxFlags::CTIME | StatxFlags::BTIME;
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        let statx = match rustix::fs::statx(self.directory, self.entry.file_name(), flags, mask) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            statx => statx?,
        };
        let has_birth_time = statx.stx_mask & StatxFlags::BTIME.bits() != 0;
        let ns = |time: rustix::fs::StatxTimestamp| {
            timestamp_ns(&Timespec { tv_sec: time.tv_sec, tv_nsec: time.tv_nsec.into() })
        };
        Ok(Some(EntryTimes {
            is_directory: FileType::from_raw_mode(statx.stx_mode.into()) == FileType::Directory,
            ctime_ns: ns(statx.stx_ctime),
            born_ns: has_birth_time.then(|| ns(statx.stx_btime)),
        }))
    }

    fn object(&self) -> io::Result<Option<(FileHandle, ObjectType)>> {
        self.source.handle_at(self.directory, self.name())
    }
}

/// Nanoseconds since the epoch.
fn timestamp_ns(time: &Timespec) -> i128 {
    i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
}
