//! Foreign writers: programs that can change objects of the tracked tree past the mount, because they had them open before it
//! was made. Two sorts: descriptors of the covered tree itself, and descriptors and mappings of a dead mount. The kernel goes
//! on passing writes through a dead mount to the lower file (`fuse_passthrough_write_iter` does not ask whether the connection
//! is alive); only what would need the server fails.
//!
//! For the tracker each is an open writer that may be mapped writable: it is reported at every checkpoint until the last
//! holder is gone. Holders are looked for by device and inode number, since descriptors can be passed on.
//!
//! Invariant: an object in the list has been told to the tracker as open, and has not been taken back.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use highwater_tracker::{Change, FileHandle, Intent, Place, WriterMode};
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags};

use crate::covered::{sample, statx_fd};
use crate::filesystem::Filesystem;
use crate::mountinfo;
use crate::processes::{self, Device, Holder, Writer};

/// An object that a program can write to past the mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignWriter {
    /// Who.
    pub holder: Holder,
    /// The object, relative to the tracked directory; as it was named when it was found.
    pub path: PathBuf,
    pub(crate) device: Device,
    pub(crate) inode: u64,
}

/// The foreign writers of a mount.
#[derive(Default)]
pub(crate) struct Foreign(Mutex<HashMap<FileHandle, Vec<ForeignWriter>>>);

impl Foreign {
    pub(crate) fn list(&self) -> Vec<ForeignWriter> {
        self.0.lock().values().flatten().cloned().collect()
    }

    pub(crate) fn handles(&self) -> HashSet<FileHandle> {
        self.0.lock().keys().cloned().collect()
    }

    /// The paths by which an object was found.
    pub(crate) fn paths(&self, object: &FileHandle) -> Vec<PathBuf> {
        let writers = self.0.lock();
        writers.get(object).into_iter().flatten().map(|writer| writer.path.clone()).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

/// Gives a writer that was found a path relative to the directory.
pub(crate) fn relative(writer: Writer, directory: &Path) -> Option<ForeignWriter> {
    let path = writer.holder.path.strip_prefix(directory).ok()?.to_owned();
    Some(ForeignWriter { path, device: writer.device, inode: writer.inode, holder: writer.holder })
}

impl Filesystem {
    /// Finds the writers of the covered tree, and takes over those of a dead mount. Called once the new mount is in its place, so
    /// that nobody can become one any more. Returns what could not be found out, in words for an operator.
    pub(crate) fn find_foreign(&self, directory: &Path, dead: Vec<ForeignWriter>) -> Vec<String> {
        let Some(own) = self.mount_device() else { return Vec::new() };
        let mut elsewhere: Vec<Device> = mountinfo::read()
            .into_iter()
            .filter(|mount| mount.point != directory && mount.point.starts_with(directory))
            .map(|mount| mount.device)
            .collect();
        elsewhere.push(own);
        // One walk for both: writers of the covered tree, and what the mounts of earlier trackers have left.
        let found = processes::writers(|device, path, link| match path.starts_with(directory) {
            true => !elsewhere.contains(&device),
            false => processes::is_on_dead_server(link),
        });
        let mut losses = Vec::new();
        if !found.closed_to_us.is_empty() {
            const NAMED: usize = 3;
            let count = found.closed_to_us.len();
            let named = found.closed_to_us.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
            let more = if count > NAMED { format!(" and {} more", count - NAMED) } else { String::new() };
            losses.push(format!(
                "{named}{more} cannot be looked into: a file that they had open before may change unseen"
            ));
        }
        if !found.settled {
            losses.push(
                "processes start faster than they can be looked into: a file that one had open before may change unseen"
                    .to_owned(),
            );
        }
        let (here, detached): (Vec<_>, Vec<_>) =
            found.writers.into_iter().partition(|writer| writer.holder.path.starts_with(directory));
        let here = here.into_iter().filter_map(|writer| relative(writer, directory));
        let detached = detached.into_iter().filter_map(|writer| self.of_detached(writer));
        for writer in here.chain(dead).chain(detached) {
            if let Some(loss) = self.add_foreign(writer) {
                // G5: what it has changed so far cannot be told by name.
                self.sections.enter().lost_sight(self.covered.root_handle());
                losses.push(loss);
            }
        }
        self.lingering_changed.notify_all();
        losses
    }

    /// A writer through a mount of an earlier tracker that has been taken away already: its path begins at the root of the mount, and is that
    /// of when it died. An object that was renamed since is found among those that had an intent of their own, as every one that is
    /// open for writing has. Of other dead servers, only what has the path and the inode number of an object here is taken for
    /// one, which does no harm.
    fn of_detached(&self, writer: Writer) -> Option<ForeignWriter> {
        let writer = relative(writer, Path::new("/"))?;
        (self.path_leads_to(&writer) || self.written_as(&writer).is_some()).then_some(writer)
    }

    fn path_leads_to(&self, writer: &ForeignWriter) -> bool {
        self.open_path(writer).is_some_and(|fd| self.is_of(fd.as_fd(), writer))
    }

    fn open_path(&self, writer: &ForeignWriter) -> Option<OwnedFd> {
        let path = CString::new(writer.path.as_os_str().as_bytes()).ok()?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(self.covered.root(), path, flags, Mode::empty()).ok()
    }

    /// The object among those that were open for writing.
    fn written_as(&self, writer: &ForeignWriter) -> Option<OwnedFd> {
        let open = |handle| self.covered.open_object(handle, OFlags::PATH | OFlags::NOFOLLOW).ok();
        self.options.written.iter().filter_map(open).find(|fd| self.is_of(fd.as_fd(), writer))
    }

    fn is_of(&self, fd: BorrowedFd<'_>, writer: &ForeignWriter) -> bool {
        statx_fd(fd).is_ok_and(|stat| {
            stat.stx_ino == writer.inode || self.covered.inode_number(&stat) == writer.inode
        })
    }

    /// Where a foreign writer's object is, if it is still where it was found. Nobody has looked it up through the mount, it may be.
    pub(crate) fn place_of_foreign(&self, object: &FileHandle) -> Option<Place> {
        self.foreign.paths(object).into_iter().find_map(|path| {
            let name = CString::new(path.file_name()?.as_bytes()).ok()?;
            let parent =
                path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let parent = rustix::fs::openat(self.covered.root(), parent, flags, Mode::empty()).ok()?;
            let there = self.covered.find(parent.as_fd(), &name).ok()?;
            let (parent, _) = self.covered.identify(parent.as_fd()).ok()?;
            (there.handle == *object).then(|| Place { parent, name: name.to_bytes().into() })
        })
    }

    /// A foreign writer's object, if it is still where it was found.
    pub(crate) fn foreign_object(&self, object: &FileHandle) -> Option<OwnedFd> {
        let writers = self.foreign.list().into_iter();
        let fds = writers.filter_map(|writer| self.open_path(&writer));
        let mut same =
            fds.filter(|fd| self.covered.identify(fd.as_fd()).is_ok_and(|(handle, _)| handle == *object));
        same.next()
    }

    fn add_foreign(&self, writer: ForeignWriter) -> Option<String> {
        let by_path = self.open_path(&writer).filter(|fd| self.is_of(fd.as_fd(), &writer));
        let found = by_path
            .or_else(|| self.written_as(&writer))
            .and_then(|fd| self.covered.identify(fd.as_fd()).ok());
        let Some((handle, stat)) = found else {
            if writer.path.as_os_str().as_bytes().ends_with(b" (deleted)") {
                // No name leads to it, so that no consumer can read it.
                return None;
            }
            return Some(format!(
                "{} (pid {}) can write to an object that was not found again as {}",
                writer.holder.command,
                writer.holder.pid,
                writer.path.display()
            ));
        };
        let mut foreign = self.foreign.0.lock();
        let holders = foreign.entry(handle.clone()).or_default();
        if holders.iter().any(|known| known.holder.pid == writer.holder.pid) {
            // Several descriptors, or a descriptor and a mapping.
            return None;
        }
        holders.push(writer);
        if holders.len() == 1 {
            drop(foreign);
            let section = self.sections.enter();
            // No operation waits for this one, so that a failure has nobody to be told to; the journal remembers its own.
            let _ = section.intend(&[Intent::Object(&handle)]);
            let mode = WriterMode { can_map: true, direct: true, unseen: true };
            section.opened(&handle, mode, sample(&stat));
            // It may have changed since the end of the tracker before this one.
            section.record(Change::Modified { object: handle.clone() }, &mut || {});
        }
        None
    }

    /// Takes back the foreign writers whose holders are gone, or all of them.
    pub(crate) fn end_foreign(&self, all: bool) {
        if self.foreign.is_empty() {
            return;
        }
        let mut ended = Vec::new();
        if all {
            ended.extend(self.foreign.0.lock().drain().map(|(handle, _)| handle));
        } else {
            let known: HashSet<(u32, u32, u64)> = self.foreign.list().iter().map(key_of).collect();
            let devices: HashSet<(u32, u32)> =
                known.iter().map(|(major, minor, _)| (*major, *minor)).collect();
            let found = processes::writers(|device, _, _| devices.contains(&(device.major, device.minor)));
            if !found.settled {
                return;
            }
            let held: HashSet<_> = found
                .writers
                .iter()
                .map(|writer| (writer.device.major, writer.device.minor, writer.inode))
                .collect();
            let gone =
                |writers: &[ForeignWriter]| writers.iter().all(|writer| !held.contains(&key_of(writer)));
            self.foreign.0.lock().retain(|handle, writers| {
                let keep = !gone(writers);
                if !keep {
                    ended.push(handle.clone());
                }
                keep
            });
        }
        for handle in ended {
            self.touched_past_the_mount(&handle);
            let section = self.sections.enter();
            section.record(Change::Modified { object: handle.clone() }, &mut || {});
            section.closed(&handle, &mut || {
                let fd = self.covered.open_object(&handle, OFlags::PATH | OFlags::NOFOLLOW).ok()?;
                Some(sample(&statx_fd(fd.as_fd()).ok()?))
            });
        }
    }
}

fn key_of(writer: &ForeignWriter) -> (u32, u32, u64) {
    (writer.device.major, writer.device.minor, writer.inode)
}
