//! A search of the covered tree for files by their inode numbers, for foreign writers whose path leads nowhere any more.
//!
//! It reads names only, as `find -inum` does, and holds up whoever wants to modify something in the tree meanwhile: see
//! [`crate::foreign`].

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use highwater_objects::magic;
use highwater_tracker::FileHandle;
use rustix::fs::{Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::covered::{Covered, same_but_for_subvolume};
use crate::filesystem::Filesystem;
use crate::foreign::{FoundName, Located};

/// What a search has found.
pub(crate) struct Search {
    /// Files that the mount may have shown under one of the numbers, one name of each.
    pub(crate) found: Vec<Located>,
    /// There is nothing that was not looked at.
    pub(crate) is_complete: bool,
}

/// A directory to be read.
struct Pending {
    handle: FileHandle,
    /// Where it cannot be opened by its handle.
    fd: Option<Arc<OwnedFd>>,
}

impl Pending {
    fn open(&self, covered: &Covered) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match &self.fd {
            Some(fd) => rustix::fs::openat(fd, c".", flags, Mode::empty()),
            None => covered.open_object(&self.handle, flags),
        }
    }
}

impl Filesystem {
    /// Searches the whole tree for regular files that the mount may have shown under one of these inode numbers.
    pub(crate) fn search(&self, shown: &HashSet<u64>) -> Search {
        let mut search = Search { found: Vec::new(), is_complete: true };
        let mut seen = HashSet::new();
        let mut pending = Vec::new();
        match rustix::io::fcntl_dupfd_cloexec(self.covered.root(), 0) {
            Ok(fd) => {
                pending.push(Pending { handle: self.covered.root_handle().clone(), fd: Some(Arc::new(fd)) })
            }
            Err(_) => search.is_complete = false,
        }
        while let Some(directory) = pending.pop() {
            if let Err(error) = self.search_directory(&directory, shown, &mut pending, &mut seen, &mut search)
            {
                tracing::warn!(%error, "a directory could not be searched");
                search.is_complete = false;
            }
        }
        search
    }

    fn search_directory(
        &self,
        directory: &Pending,
        shown: &HashSet<u64>,
        pending: &mut Vec<Pending>,
        seen: &mut HashSet<FileHandle>,
        search: &mut Search,
    ) -> Result<(), Errno> {
        // Where a directory does not give the numbers that `stat` does, everything has to be asked.
        let gives_numbers = matches!(
            self.covered.magic(),
            magic::EXT4 | magic::XFS | magic::BTRFS | magic::TMPFS | magic::F2FS
        );
        let is_candidate =
            |number| !gives_numbers || shown.iter().any(|shown| same_but_for_subvolume(number, *shown));
        let fd = directory.open(&self.covered)?;
        for entry in Dir::read_from(&fd)? {
            let entry = entry?;
            let name: &CStr = entry.file_name();
            let kind = entry.file_type();
            let may_be_file = matches!(kind, FileType::RegularFile | FileType::Unknown);
            let may_be_directory = matches!(kind, FileType::Directory | FileType::Unknown);
            let is_dots = name == c"." || name == c"..";
            if is_dots || !(may_be_directory || may_be_file && is_candidate(entry.ino())) {
                continue;
            }
            let found = match self.covered.find(fd.as_fd(), name) {
                Ok(found) => found,
                Err(Errno::NOENT) => continue,
                Err(errno) => {
                    tracing::warn!(error = %errno, name = %name.to_string_lossy(), "an entry could not be looked at");
                    search.is_complete = false;
                    continue;
                }
            };
            match FileType::from_raw_mode(found.stat.stx_mode.into()) {
                FileType::Directory => pending.push(Pending { handle: found.handle, fd: found.fd }),
                FileType::RegularFile
                    if shown.iter().any(|shown| self.covered.may_be_shown_as(&found.stat, *shown))
                        && seen.insert(found.handle.clone()) =>
                {
                    let parent = directory.handle.clone();
                    let name = FoundName { parent, parent_fd: directory.fd.clone(), name: name.to_owned() };
                    search.found.push(Located { found, name: Some(name) });
                }
                _ => {}
            }
        }
        Ok(())
    }
}
