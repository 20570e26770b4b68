//! Foreign writers: programs that can change objects of the tracked tree past the mount, because they had them open before it
//! was made. Two sorts: descriptors of the covered tree itself, and descriptors and mappings of a dead mount. The kernel goes
//! on passing writes through a dead mount to the lower file (`fuse_passthrough_write_iter` does not ask whether the connection
//! is alive); only what would need the server fails.
//!
//! For the tracker each is an open writer that may be mapped writable: it is reported at every checkpoint until the last
//! holder is gone. Holders are looked for by device and inode number, since descriptors can be passed on.
//!
//! Which object is it? That of a descriptor of the covered tree is what the descriptor leads to. Behind a dead mount nothing can be
//! opened; what is left is a path and an inode number, and the path is that of when the mount died: an operation that was under way
//! then, or a tracker since, may have renamed what it leads to. If another object is there now, or none, the tree is searched by
//! inode number. That is exact, because nothing can be renamed meanwhile: it is done once the new mount is in its place and before the
//! tracker has started, while every operation that modifies something waits.
//!
//! Invariant: each foreign writer of an object that has a name is either in `objects`, and has been told to the tracker as open and
//! not been taken back; or it is `lost`, and every checkpoint tells a rescan of everything.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use highwater_objects::{attributes_of, sample};
use highwater_tracker::{Change, FileHandle, Intent, Place, WriterMode};
use parking_lot::Mutex;
use rustix::fs::{CWD, FileType, Mode, OFlags, Statx};

use crate::covered::{Found, ObjectFd};
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

impl ForeignWriter {
    /// What stays the same while a descriptor is passed on.
    fn key(&self) -> (Device, u64) {
        (self.device, self.inode)
    }
}

/// The foreign writers of a mount.
#[derive(Default)]
pub(crate) struct Foreign(Mutex<Known>);

#[derive(Default)]
struct Known {
    objects: HashMap<FileHandle, Object>,
    /// Which object they write to is not known.
    lost: Vec<ForeignWriter>,
}

/// What foreign writers write to.
struct Object {
    located: Located,
    holders: Vec<ForeignWriter>,
}

/// An object of the covered tree, and one of its names.
#[derive(Clone)]
pub(crate) struct Located {
    pub(crate) found: Found,
    pub(crate) name: Option<FoundName>,
}

/// A name that an object had when it was found.
#[derive(Clone)]
pub(crate) struct FoundName {
    pub(crate) parent: FileHandle,
    /// The directory, kept where it cannot be opened by its handle.
    pub(crate) parent_fd: Option<Arc<OwnedFd>>,
    pub(crate) name: CString,
}

/// What one look at all processes says of writers that were known before it.
#[derive(Default)]
struct Look {
    known: HashSet<(Device, u64)>,
    held: HashSet<(Device, u64)>,
    /// Processes that could not be looked into.
    closed_to_us: HashSet<u32>,
}

impl Look {
    /// `None`: not all processes could be listed.
    fn take(known: &[ForeignWriter]) -> Option<Self> {
        let devices: HashSet<Device> = known.iter().map(|writer| writer.device).collect();
        let found = processes::writers(|writer, _| devices.contains(&writer.device));
        found.settled.then(|| Self {
            known: known.iter().map(ForeignWriter::key).collect(),
            held: found.writers.iter().map(|writer| (writer.device, writer.inode)).collect(),
            closed_to_us: found.closed_to_us.iter().map(|holder| holder.pid).collect(),
        })
    }

    /// Of one that became known while we looked, it says nothing.
    fn is_over(&self, writer: &ForeignWriter) -> bool {
        let key = writer.key();
        self.known.contains(&key)
            && !self.held.contains(&key)
            && !self.closed_to_us.contains(&writer.holder.pid)
    }
}

impl Foreign {
    pub(crate) fn list(&self) -> Vec<ForeignWriter> {
        let known = self.0.lock();
        known.objects.values().flat_map(|object| &object.holders).chain(&known.lost).cloned().collect()
    }

    pub(crate) fn handles(&self) -> HashSet<FileHandle> {
        self.0.lock().objects.keys().cloned().collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        let known = self.0.lock();
        known.objects.is_empty() && known.lost.is_empty()
    }

    fn has_lost(&self) -> bool {
        !self.0.lock().lost.is_empty()
    }
}

/// Gives a writer that was found a path relative to the directory.
pub(crate) fn relative(writer: Writer, directory: &Path) -> Option<ForeignWriter> {
    let path = writer.holder.path.strip_prefix(directory).ok()?.to_owned();
    Some(ForeignWriter { path, device: writer.device, inode: writer.inode, holder: writer.holder })
}

/// Whether an object may be the file of this number that a writer was seen with. Not by the device, of which a mapping of btrfs has
/// another one.
fn is_file(stat: &Statx, inode: u64) -> bool {
    FileType::from_raw_mode(stat.stx_mode.into()) == FileType::RegularFile && stat.stx_ino == inode
}

/// What was found of the writers from before the mount. The tracker has not been told.
#[derive(Default)]
pub(crate) struct Sought {
    located: Vec<(ForeignWriter, Located)>,
    lost: Vec<ForeignWriter>,
    /// What could not be found out, in words for an operator.
    losses: Vec<String>,
}

impl Filesystem {
    /// Looks for the writers of the covered tree and of dead mounts; `dead` are known already. Called once the new mount is in its
    /// place, so that nobody can become one any more, and before the tracker has started.
    pub(crate) fn seek_foreign(&self, directory: &Path, dead: Vec<ForeignWriter>) -> Sought {
        let mut sought = Sought::default();
        let Some(own) = self.mount_device() else { return sought };
        let mounts = mountinfo::read().into_iter().filter(|mount| mount.point != directory);
        let (nested, listed): (Vec<_>, Vec<_>) = mounts.map(|mount| (mount.point, mount.device)).unzip();
        let is_nested =
            |path: &Path| nested.iter().any(|point| point.starts_with(directory) && path.starts_with(point));
        let known: HashSet<_> = dead.iter().map(ForeignWriter::key).collect();
        // One walk for both: writers of the covered tree, and what the mounts of earlier trackers have left.
        let mut dead_devices = self.options.dead_devices.clone();
        dead_devices.retain(|device| !listed.contains(device));
        let mut by_link: HashMap<Writer, Found> = HashMap::new();
        let found = processes::writers(|writer, link| {
            let device = writer.device;
            if device == own {
                return false;
            }
            // A mount that has been taken away is in no list, and nobody else's server need be asked.
            let may_be_dead = !listed.contains(&device) && !dead_devices.contains(&device);
            if may_be_dead && processes::is_on_dead_server(link) {
                dead_devices.push(device);
            }
            if dead_devices.contains(&device) {
                return !known.contains(&(device, writer.inode));
            }
            let path = &writer.holder.path;
            let is_inside = match path.as_os_str().is_empty() {
                true => self.covered.may_have(device),
                false => path.starts_with(directory) && !is_nested(path),
            };
            if is_inside {
                // Now: the path is that of this moment.
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                let opened = rustix::fs::openat(CWD, link, flags, Mode::empty());
                let found = opened.ok().and_then(|fd| self.covered.found_at(fd).ok());
                // The process may have closed it meanwhile, and have something else there: a directory, even.
                if let Some(found) = found.filter(|found| is_file(&found.stat, writer.inode)) {
                    by_link.insert(writer.clone(), found);
                }
            }
            is_inside
        });
        sought.losses = losses_of(&found);
        let mut behind_dead = dead;
        for writer in found.writers {
            if dead_devices.contains(&writer.device) {
                // A mount that has been taken away: its path begins at its own root.
                behind_dead.extend(relative(writer, Path::new("/")));
                continue;
            }
            let found = by_link.get(&writer).cloned();
            let path = writer.holder.path.strip_prefix(directory).unwrap_or(Path::new("")).to_owned();
            let Writer { holder, device, inode } = writer;
            let writer = ForeignWriter { holder, path, device, inode };
            let there = self.locate(&writer.path);
            match (found, there) {
                // No name leads to it, so that no consumer can read it.
                (Some(found), _) if found.stat.stx_nlink == 0 => {}
                (Some(found), there) => {
                    let there = there.filter(|there| there.found.handle == found.handle);
                    let name = there.and_then(|there| there.name);
                    sought.located.push((writer, Located { found, name }));
                }
                // It was let go of while we looked, or is another descriptor by now.
                (None, Some(there)) if self.is_surely(&there, &writer) => {
                    sought.located.push((writer, there))
                }
                (None, _) => sought.lost.push(writer),
            }
        }
        self.locate_all(behind_dead, &mut sought);
        sought
    }

    /// Finds the objects of writers through dead mounts.
    fn locate_all(&self, writers: Vec<ForeignWriter>, sought: &mut Sought) {
        let mut moved = Vec::new();
        for writer in writers {
            match self.locate(&writer.path).filter(|there| self.is_surely(there, &writer)) {
                Some(located) => sought.located.push((writer, located)),
                None if self.options.dead_devices.contains(&writer.device) => moved.push(writer),
                // Of another tree, or of a tracker of which nothing is known any more. In the former case it did no harm to take an
                // object for its own that has its path and its inode number.
                None => {}
            }
        }
        if moved.is_empty() {
            return;
        }
        tracing::info!(
            writers = moved.len(),
            "searching for files that programs have open since before a kill"
        );
        let search = self.search(&moved.iter().map(|writer| writer.inode).collect());
        for writer in moved {
            let mut is_found = false;
            for located in &search.found {
                if self.covered.may_be_shown_as(&located.found.stat, writer.inode) {
                    is_found = true;
                    sought.located.push((writer.clone(), located.clone()));
                }
            }
            if !is_found && !search.is_complete {
                sought.lost.push(writer);
            }
            // Else no name leads to it.
        }
    }

    /// Of a subvolume inside the tree the mount before this one may have shown other numbers: then several objects come into question.
    fn is_surely(&self, located: &Located, writer: &ForeignWriter) -> bool {
        let stat = &located.found.stat;
        !self.covered.is_of_subvolume(stat) && is_file(stat, writer.inode)
    }

    /// What a path leads to now, from the root of the covered tree.
    fn locate(&self, path: &Path) -> Option<Located> {
        let name = CString::new(path.file_name()?.as_bytes()).ok()?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = rustix::fs::openat(self.covered.root(), parent, flags, Mode::empty()).ok()?;
        let found = self.covered.find(parent.as_fd(), &name).ok()?;
        let parent = self.covered.found_at(parent).ok()?;
        let name = FoundName { parent: parent.handle, parent_fd: parent.fd, name };
        Some(Located { found, name: Some(name) })
    }

    /// Tells the tracker, which has been started. Returns what could not be found out, in words for an operator.
    pub(crate) fn add_foreign(&self, sought: Sought) -> Vec<String> {
        let Sought { located, lost, mut losses } = sought;
        for (writer, located) in located {
            self.add_located(writer, located);
        }
        losses.extend(lost.iter().map(|writer| {
            let Holder { pid, command, path } = &writer.holder;
            format!(
                "{command} (pid {pid}) can write to a file that was not found again, once {}: every batch says that everything \
                 may have changed, until it has let go of it",
                path.display()
            )
        }));
        losses.dedup();
        self.foreign.0.lock().lost = lost;
        self.tell_lost();
        self.lingering_changed.notify_all();
        losses
    }

    fn add_located(&self, writer: ForeignWriter, located: Located) {
        let (handle, stat) = (located.found.handle.clone(), located.found.stat);
        let mut known = self.foreign.0.lock();
        let object =
            known.objects.entry(handle.clone()).or_insert_with(|| Object { located, holders: Vec::new() });
        if object.holders.iter().any(|holder| holder.holder.pid == writer.holder.pid) {
            // Several descriptors, or a descriptor and a mapping.
            return;
        }
        object.holders.push(writer);
        if object.holders.len() > 1 {
            return;
        }
        drop(known);
        let section = self.sections.enter();
        // No operation waits for this one, so that a failure has nobody to be told to; the journal remembers its own.
        let _ = section.intend(&[Intent::Object(&handle)]);
        let mode = WriterMode { can_map: true, direct: true, unseen: true };
        section.opened(&handle, mode, sample(&stat));
        // It may have changed since the end of the tracker before this one.
        section.record(Change::Modified { object: handle.clone() }, &mut || {});
    }

    /// Records, at each checkpoint, that anything may have been changed, while there are writers whose object is not known.
    pub(crate) fn tell_lost(&self) {
        if self.foreign.has_lost() {
            self.sections.enter().lost_sight(self.covered.root_handle());
        }
    }

    /// Where a foreign writer's object is, if it is still where it was found. Nobody has looked it up through the mount, it may be.
    pub(crate) fn place_of_foreign(&self, object: &FileHandle) -> Option<Place> {
        let (parent, parent_fd, name) = {
            let known = self.foreign.0.lock();
            let name = known.objects.get(object)?.located.name.as_ref()?;
            (name.parent.clone(), name.parent_fd.clone(), name.name.clone())
        };
        let parent_fd = match parent_fd {
            Some(fd) => ObjectFd::Shared(fd),
            None => ObjectFd::Own(self.covered.open_object(&parent, OFlags::PATH).ok()?),
        };
        let there = self.covered.find(parent_fd.as_fd(), &name).ok()?;
        (there.handle == *object).then(|| Place { parent, name: name.to_bytes().into() })
    }

    /// A foreign writer's object, where it cannot be opened by its handle.
    pub(crate) fn foreign_object(&self, object: &FileHandle) -> Option<ObjectFd> {
        let fd = self.foreign.0.lock().objects.get(object)?.located.found.fd.clone();
        fd.map(ObjectFd::Shared)
    }

    /// Takes back the foreign writers whose holders are gone, or all of them.
    pub(crate) fn end_foreign(&self, all: bool) {
        if self.foreign.is_empty() {
            return;
        }
        let known = self.foreign.list();
        let look = match all {
            true => Look { known: known.iter().map(ForeignWriter::key).collect(), ..Look::default() },
            false => match Look::take(&known) {
                Some(look) => look,
                None => return,
            },
        };
        let mut ended = Vec::new();
        let has_lost_one = {
            let mut known = self.foreign.0.lock();
            known.objects.retain(|handle, object| {
                let keep = !object.holders.iter().all(|writer| look.is_over(writer));
                if !keep {
                    ended.push((handle.clone(), object.located.found.fd.clone()));
                }
                keep
            });
            known.lost.iter().any(|writer| look.is_over(writer))
        };
        if has_lost_one {
            // What the last of them has written is to be told as well.
            self.tell_lost();
            self.foreign.0.lock().lost.retain(|writer| !look.is_over(writer));
        }
        for (handle, fd) in ended {
            self.touched_past_the_mount(&handle);
            let section = self.sections.enter();
            section.record(Change::Modified { object: handle.clone() }, &mut || {});
            section.closed(&handle, &mut || {
                let fd = match &fd {
                    Some(fd) => ObjectFd::Shared(Arc::clone(fd)),
                    None => ObjectFd::Own(
                        self.covered.open_object(&handle, OFlags::PATH | OFlags::NOFOLLOW).ok()?,
                    ),
                };
                Some(sample(&attributes_of(fd.as_fd()).ok()?))
            });
        }
    }
}

fn losses_of(found: &processes::Writers) -> Vec<String> {
    let mut losses = Vec::new();
    if !found.closed_to_us.is_empty() {
        const NAMED: usize = 3;
        let count = found.closed_to_us.len();
        let named = found.closed_to_us.iter().take(NAMED);
        let named = named.map(|holder| format!("{} (pid {})", holder.command, holder.pid));
        let named = named.collect::<Vec<_>>().join(", ");
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
    losses
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(minor: u32, inode: u64) -> ForeignWriter {
        let holder = Holder { pid: 7, command: "writer".to_owned(), path: PathBuf::new() };
        ForeignWriter { holder, path: PathBuf::new(), device: Device { major: 0, minor }, inode }
    }

    /// At a start they become known one by one, while checkpoints are made already.
    #[test]
    fn a_writer_that_became_known_during_a_look_at_others_is_not_over() {
        let (gone, held, new) = (writer(1, 10), writer(1, 11), writer(2, 10));
        let mut look = Look {
            known: HashSet::from([gone.key(), held.key()]),
            held: HashSet::from([held.key()]),
            closed_to_us: HashSet::new(),
        };
        assert_eq!([&gone, &held, &new].map(|writer| look.is_over(writer)), [true, false, false]);
        look.closed_to_us.insert(7);
        assert!(!look.is_over(&gone), "nobody knows what it has");
    }

    #[test]
    fn a_look_finds_what_no_process_has() {
        let look = Look::take(&[writer(u32::MAX, 1)]).unwrap();
        assert!(look.is_over(&writer(u32::MAX, 1)));
    }
}
