//! Writers that the source does not see: passthrough writes, and stores into shared mappings.
//!
//! A passthrough mapping is a mapping of the *lower* file: it keeps the kernel's own open of that file, not the program's open
//! of ours. So RELEASE comes when the last descriptor is closed, although a mapping is still being written through. Whether
//! one is left, the filesystem below tells: a read lease on its file is refused as long as anybody has it open for writing
//! (`F_SETLEASE`, `inode_is_open_for_write`). Until it is granted, the open *lingers*: for the tracker it is still there.
//!
//! Invariant: we keep no descriptor open for writing of a file that may linger, but during an operation.

use std::collections::HashSet;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use highwater_objects::{attributes_of, last_errno, magic};
use highwater_tracker::FileHandle;
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::data::OpenFile;
use crate::filesystem::Filesystem;
use crate::processes::{self, Mapping};

/// Opens that the kernel has let go of, while a mapping made through them may be left.
#[derive(Default)]
pub(crate) struct Lingering {
    files: Vec<Arc<OpenFile>>,
    stopping: bool,
}

impl Filesystem {
    /// Takes over an open that has been released, if a mapping of the file may be left. False: none is.
    pub(crate) fn linger(&self, file: &Arc<OpenFile>) -> bool {
        file.drop_own();
        if !lower_is_open_for_writing(file) {
            return false;
        }
        self.lingering.lock().files.push(Arc::clone(file));
        self.lingering_changed.notify_all();
        true
    }

    /// Ends lingering opens whose mappings are gone, until the filesystem stops. The body of a thread.
    pub(crate) fn look_after_lingering(&self) {
        const SOON: Duration = Duration::from_millis(1);
        const LATEST: Duration = Duration::from_millis(256);
        let mut pause = SOON;
        loop {
            {
                let mut lingering = self.lingering.lock();
                let before = lingering.files.len();
                while lingering.files.is_empty() && self.foreign.is_empty() && !lingering.stopping {
                    self.lingering_changed.wait(&mut lingering);
                }
                if !lingering.stopping {
                    self.lingering_changed.wait_for(&mut lingering, pause);
                }
                if lingering.stopping {
                    return;
                }
                pause = if lingering.files.len() > before { SOON } else { (pause * 2).min(LATEST) };
            }
            self.end_lingering(false);
            if pause == LATEST {
                self.end_foreign(false);
            }
        }
    }

    /// Ends the lingering opens whose mappings are gone, or all of them.
    pub(crate) fn end_lingering(&self, all: bool) {
        let ended = {
            let mut lingering = self.lingering.lock();
            let (ended, left) =
                lingering.files.drain(..).partition(|file| all || !lower_is_open_for_writing(file));
            lingering.files = left;
            let ended: Vec<Arc<OpenFile>> = ended;
            ended
        };
        for file in ended {
            let section = self.sections.enter();
            self.end_writer(&*section, &file);
        }
    }

    pub(crate) fn stop_lingering(&self) {
        self.lingering.lock().stopping = true;
        self.lingering_changed.notify_all();
    }

    /// Returns once every synchronous write to a file that began before the call has ended.
    ///
    /// A passthrough write holds the lock of our inode for its whole length (`fuse_passthrough_write_iter`), and so does a
    /// write through the server: whoever gets the lock exclusively finds them ended.
    pub(crate) fn wait_for_writes_to(
        &self,
        object: &FileHandle,
        deadline: Option<Instant>,
    ) -> Result<(), Errno> {
        let Some(node) = self.nodes.id(object) else { return Ok(()) };
        let Some(probers) = self.probers.lock().clone() else {
            // Not root, so that no write is passed through: each is in a section of its own.
            return Ok(());
        };
        probers.lock_pass(vec![node], deadline)?;
        let open = self.nodes.locate(node).and_then(|located| located.open);
        if open.is_some_and(|open| !open.is_passthrough()) {
            // Stores into a mapping are in pages that we have not been sent yet.
            probers.flush_pages(node, deadline)?;
        }
        Ok(())
    }

    /// Which of these objects are mapped shared by some process, or may be. Read-only mappings count: `mprotect` can make one
    /// writable, and a page that is dirty already takes a store without a fault and so without a new timestamp.
    pub(crate) fn mapped(&self, objects: &[FileHandle]) -> Result<HashSet<FileHandle>, Errno> {
        let mut mapped = HashSet::new();
        let mut by_inode = Vec::new();
        self.end_foreign(false);
        let foreign = self.foreign.handles();
        let lingering: HashSet<FileHandle> =
            self.lingering.lock().files.iter().map(|file| file.handle.clone()).collect();
        for object in objects {
            if foreign.contains(object) {
                mapped.insert(object.clone());
                continue;
            }
            let Some(located) = self.nodes.id(object).and_then(|node| self.nodes.locate(node)) else {
                continue;
            };
            let mappable = located.open.as_ref().is_some_and(|open| open.may_be_stored_into());
            // A store into a mapping of tmpfs changes no timestamp, so that even a mapping that was there only between two
            // looks counts.
            let untold = mappable && self.covered.magic() == magic::TMPFS;
            if lingering.contains(object) || untold {
                mapped.insert(object.clone());
            } else if let Some(fd) = located.fd {
                by_inode.push((self.covered.inode_number(&attributes_of(fd.as_fd())?), object));
            }
        }
        if by_inode.is_empty() {
            return Ok(mapped);
        }
        let Some(device) = self.mount_device() else {
            mapped.extend(by_inode.into_iter().map(|(_, object)| object.clone()));
            return Ok(mapped);
        };
        let inodes = {
            let openers = self.openers.lock();
            processes::shared_mappings(device, |pid| openers.contains(&pid))
        };
        self.openers.lock().retain(|pid| std::path::Path::new(&format!("/proc/{pid}")).exists());
        mapped.extend(by_inode.into_iter().filter_map(|(ino, object)| match &inodes {
            Mapping::Known(inodes) => inodes.contains(&ino).then(|| object.clone()),
            Mapping::Unknown => Some(object.clone()),
        }));
        Ok(mapped)
    }
}

/// Whether somebody has the lower file open for writing: the kernel for a mapping, since our descriptors are closed.
fn lower_is_open_for_writing(file: &OpenFile) -> bool {
    file.open.anchor().is_some_and(|anchor| is_open_for_writing(anchor.as_fd()))
}

/// Whether anybody has a file open for writing, asked by a read lease that is given back at once.
fn is_open_for_writing(fd: BorrowedFd<'_>) -> bool {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _one = ONE_AT_A_TIME.lock();
    let call = |command, argument: libc::c_int| {
        // SAFETY: these commands take a number.
        unsafe { libc::fcntl(fd.as_raw_fd(), command, argument) }
    };
    // Somebody who opens the file in the moment of the lease breaks it and we are sent a signal; SIGIO would end the process,
    // SIGURG is ignored by default.
    const F_SETSIG: libc::c_int = 10;
    call(F_SETSIG, libc::SIGURG);
    if call(libc::F_SETLEASE, libc::F_RDLCK) == 0 {
        call(libc::F_SETLEASE, libc::F_UNLCK);
        return false;
    }
    match last_errno() {
        Errno::AGAIN => true,
        errno => {
            // No leases here: claim what is safe.
            tracing::debug!(%errno, "a lease was refused");
            true
        }
    }
}
