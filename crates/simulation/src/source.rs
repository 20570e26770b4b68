//! The simulated tree as a source, and the simulation as the tracker's clock.
//!
//! Every call of the tracker is a pause in which other things happen: the actions of the list that are marked for it.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::Instant;

use highwater_tracker::{Driver, Entry, EntryTimes, FileHandle, ObjectType, Place, Sample, Source};

use crate::replica::{Copy, View};
use crate::sim::Sim;
use crate::tree::{Ino, Kind, Name, ROOT};
use crate::world::{World, handle, ino_of, place};

/// What the tracker has of the simulation.
pub(crate) struct Seam(pub(crate) Weak<Sim>);

impl fmt::Debug for Seam {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Seam")
    }
}

impl Seam {
    fn sim(&self) -> Arc<Sim> {
        self.0.upgrade().expect("a run outlives its trackers")
    }

    /// The world, unless the power is off or this call is to fail.
    fn world<T>(&self, ask: impl FnOnce(&mut World) -> T) -> io::Result<T> {
        let sim = self.sim();
        let mut world = sim.world.lock();
        if world.is_down {
            return Err(io::Error::other("the power is off"));
        }
        if std::mem::take(&mut world.source_fails) {
            return Err(io::Error::other("the filesystem refuses"));
        }
        Ok(ask(&mut world))
    }
}

impl Driver for Seam {
    fn now_ns(&self) -> u64 {
        self.sim().world.lock().clock()
    }

    fn random(&self) -> [u8; 16] {
        let sim = self.sim();
        let mut world = sim.world.lock();
        let (a, b) = (world.random.next(), world.random.next());
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&a.to_le_bytes());
        bytes[8..].copy_from_slice(&b.to_le_bytes());
        bytes
    }

    fn wait_for_sections(&self) {
        self.sim().wait_for_sections();
    }
}

impl Source for Seam {
    fn settle(&self, _: Option<Instant>) -> io::Result<()> {
        self.sim().pause();
        self.world(|world| world.process_answers(None))?;
        self.sim().pause();
        Ok(())
    }

    fn places(&self, object: &FileHandle) -> Option<Vec<Place>> {
        let sim = self.sim();
        let world = sim.world.lock();
        let ino = ino_of(object);
        if ino == ROOT {
            return Some(Vec::new());
        }
        let known = world.names.get(&ino).map_or(&[][..], Vec::as_slice);
        if !known.is_empty() {
            return Some(known.iter().map(|(directory, name)| place(*directory, *name)).collect());
        }
        let names = world.tree.core().names_of(ino);
        let is_directory = world.tree.core().inode(ino).is_some_and(|inode| inode.kind == Kind::Directory);
        match names.first() {
            Some((directory, name)) if is_directory => Some(vec![place(*directory, *name)]),
            Some(_) => None,
            None => Some(Vec::new()),
        }
    }

    fn sample(&self, object: &FileHandle) -> io::Result<Option<Sample>> {
        let sample = self.world(|world| world.sample(ino_of(object)));
        self.sim().pause();
        sample
    }

    fn wait_for_writes(&self, object: &FileHandle, _: Option<Instant>) -> io::Result<()> {
        let ino = ino_of(object);
        self.world(|world| {
            for index in 0..world.writers.len() {
                // Asynchronous direct writes have given the lock back.
                if world.writers[index].ino == ino && !world.writers[index].mode.direct {
                    world.end_unseen(index);
                }
            }
        })?;
        self.sim().changed();
        self.sim().pause();
        Ok(())
    }

    fn mapped_writable(&self, objects: &[FileHandle]) -> io::Result<HashSet<FileHandle>> {
        let mapped = self.world(|world| {
            let mapped = world.writers.iter().filter(|writer| writer.is_mapped || writer.is_foreign);
            let mapped: HashSet<Ino> = mapped.map(|writer| writer.ino).collect();
            objects.iter().filter(|object| mapped.contains(&ino_of(object))).cloned().collect()
        });
        self.sim().pause();
        mapped
    }

    fn timestamps_are_distinct(&self) -> bool {
        self.sim().world.lock().settings.distinct
    }

    fn sync_filesystem(&self) -> io::Result<()> {
        self.sim().pause();
        self.world(|world| {
            world.tree.sync();
            world.synced = Copy::whole(&mut world.tree.disk(), ROOT);
        })?;
        self.sim().changed();
        self.sim().pause();
        Ok(())
    }

    fn open_directory(&self, _: &FileHandle) -> io::Result<Option<OwnedFd>> {
        Err(io::Error::other("a simulated tree has no descriptors"))
    }

    fn handle_at(&self, _: &OwnedFd, _: &[u8]) -> io::Result<Option<(FileHandle, ObjectType)>> {
        Err(io::Error::other("a simulated tree has no descriptors"))
    }

    fn leads_to(&self, place: &Place) -> io::Result<Option<FileHandle>> {
        let found = self.world(|world| {
            let &[name] = &*place.name else { return None };
            world.tree.core().lookup(ino_of(&place.parent), name).map(handle)
        });
        self.sim().pause();
        found
    }

    fn walk(
        &self,
        directory: &FileHandle,
        visit: &mut dyn FnMut(&dyn Entry) -> io::Result<()>,
    ) -> io::Result<bool> {
        let ino = ino_of(directory);
        let listed = self.world(|world| {
            let mut core = world.tree.core();
            let is_there = ino == ROOT || !core.names_of(ino).is_empty();
            is_there.then(|| core.list(ino))
        })?;
        let Some(listed) = listed else { return Ok(false) };
        for (name, _) in listed {
            self.sim().pause();
            visit(&Found { seam: self, directory: ino, name })?;
        }
        Ok(true)
    }
}

/// An entry that is being walked.
struct Found<'a> {
    seam: &'a Seam,
    directory: Ino,
    name: Name,
}

impl Entry for Found<'_> {
    fn name(&self) -> &[u8] {
        std::slice::from_ref(&self.name)
    }

    /// Nobody asks: `changed_since` is as it is by default.
    fn inode_number(&self) -> u64 {
        0
    }

    fn may_be_directory(&self) -> bool {
        true
    }

    fn times(&self) -> io::Result<Option<EntryTimes>> {
        self.seam.world(|world| {
            let core = world.tree.core();
            let inode = core.inode(core.lookup(self.directory, self.name)?)?;
            Some(EntryTimes {
                is_directory: inode.kind == Kind::Directory,
                ctime_ns: inode.ctime_ns.into(),
                born_ns: Some(inode.born_ns.into()),
            })
        })
    }

    fn object(&self) -> io::Result<Option<(FileHandle, ObjectType)>> {
        self.seam.world(|world| {
            let core = world.tree.core();
            let ino = core.lookup(self.directory, self.name)?;
            let object_type = match core.inode(ino)?.kind {
                Kind::File => ObjectType::File,
                Kind::Directory => ObjectType::Directory,
                Kind::Symlink => ObjectType::Symlink,
            };
            Some((handle(ino), object_type))
        })
    }
}
