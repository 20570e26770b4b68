//! From a digest to what has happened between two cuts.
//!
//! A *cut* is the moment at which the queue was read to its end. The digest of the events between two cuts tells what was there at
//! the first one. What is there at the second one is looked up in the filesystem, a little later; what changed in between
//! has an event behind the cut, and that event tells what was there before. So after the lookups the queue is read on, and what
//! it says corrects them. For that an event must not be missing whose effect a lookup has seen: the kernel queues the event
//! of an entry under the lock of the directory, so each directory in which something was looked up is locked once.

use std::os::fd::AsFd;
use std::time::Duration;

use highwater_objects::{magic, object_type};
use highwater_tracker::{FileHandle, ObjectType, Place};
use rustix::fs::{AtFlags, StatxFlags};
use rustix::io::Errno;

use super::below::{Below, Whereabouts, noted, wait_for_changes_of};
use super::digest::{Before, Digest, Touched};
use super::{HashMap, HashSet};

/// How long the event of a directory's end may be behind its end.
const EVENT_PATIENCE: Duration = Duration::from_millis(500);
const EVENT_PAUSE: Duration = Duration::from_millis(1);

/// Names of files that have several: the kernel tells the one by which a file was changed, which may be gone by now.
pub(crate) type Links = HashMap<FileHandle, Vec<Place>>;

/// Reads the queue on, and shows what it has said since the cut.
pub(crate) trait Later {
    fn read(&self, look: &mut dyn FnMut(&Digest)) -> Result<(), Errno>;
}

/// What has happened between two cuts, in an order in which it can be recorded.
#[derive(Debug, Default)]
pub(crate) struct Resolved {
    /// Where each directory that is mentioned was at the first cut; `None`: not in the tracked directory.
    pub(crate) directories: HashMap<FileHandle, Option<Place>>,
    /// Names that were there at the first cut and have changed.
    pub(crate) lost: Vec<Name>,
    /// Names that came and went; which object that was does not matter.
    pub(crate) passed: Vec<Name>,
    /// Names that are there at the second cut and have changed.
    pub(crate) gained: Vec<Name>,
    pub(crate) touched: Vec<Change>,
    /// Objects that moved just after the cut from a name that is not known yet: the next digest tells.
    pub(crate) carried: Vec<FileHandle>,
    /// Files that have lost a name and do not exist any more. None of them comes back: another one has another handle.
    pub(crate) gone: HashSet<FileHandle>,
    /// Directories that were outside for a while, in which something may have gone unseen: to be compared as a whole.
    pub(crate) crossed: Vec<FileHandle>,
    /// It could not be found out: everything has to be compared.
    pub(crate) lost_sight: bool,
}

/// A name and the object there.
#[derive(Clone, Debug)]
pub(crate) struct Name {
    pub(crate) place: Place,
    pub(crate) object: FileHandle,
    pub(crate) object_type: ObjectType,
    pub(crate) nlink: u32,
    /// It did not exist at the first cut, and is empty but for what has been recorded since.
    pub(crate) is_new: bool,
}

/// An object of which events tell, or which may change without one, and what has changed of it, if anything.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) object: FileHandle,
    pub(crate) object_type: ObjectType,
    pub(crate) modified: bool,
    pub(crate) metadata: bool,
    /// Its names at the second cut that are told. Empty: it has none in the directory, or what tells them has to tell it too. `None`: it
    /// has names and none is known.
    pub(crate) places: Option<Vec<Place>>,
    pub(crate) nlink: u32,
}

/// Where a directory is relative to the tracked one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Inside,
    Outside,
    /// It does not exist.
    Nowhere,
    Unknown,
}

/// Where a directory is relative to the tracked one at both cuts.
#[derive(Clone, Copy, Debug)]
struct Position {
    first: Side,
    second: Side,
    /// What happens in it is told entry by entry: it is inside, and neither it nor anything above it came from outside, since then it is
    /// told as a whole.
    told_by_entry: bool,
}

impl Position {
    fn is_unknown(self) -> bool {
        [self.first, self.second].contains(&Side::Unknown)
    }
}

/// What a lookup found at a name.
#[derive(Clone, Debug)]
struct Seen {
    object: FileHandle,
    object_type: ObjectType,
    nlink: u32,
    /// The root of a btrfs subvolume: a snapshot is born full.
    is_subvolume: bool,
}

impl Seen {
    /// What was at a name at the cut by what the queue says. It is somewhere else by now, and there it is told again.
    fn at_the_cut(object: FileHandle, is_directory: bool) -> Self {
        let object_type = if is_directory { ObjectType::Directory } else { ObjectType::File };
        Self { object, object_type, nlink: 1, is_subvolume: false }
    }
}

struct Resolver<'a> {
    below: &'a Below,
    digest: &'a Digest,
    links: &'a Links,
    seen: HashMap<Place, Option<Seen>>,
    located: HashMap<FileHandle, Whereabouts>,
    /// What follows from that, once nothing is going to be corrected any more.
    positions: HashMap<FileHandle, Position>,
    /// Where files are that are not at the names that events tell of them.
    files: HashMap<FileHandle, Whereabouts>,
    /// Directories whose changes have to be waited for before the queue is read on.
    unlocked: HashSet<FileHandle>,
    lost_sight: bool,
}

/// Finds out what has happened. `changed_since_cut`: whether a file that was closed may have changed since the first cut.
pub(crate) fn resolve(
    below: &Below,
    digest: &Digest,
    links: &Links,
    later: &dyn Later,
    changed_since_cut: &dyn Fn(&FileHandle) -> Result<bool, Errno>,
) -> Result<Resolved, Errno> {
    let mut resolver = Resolver::new(below, digest, links);
    let mut wanted: Vec<FileHandle> = Vec::new();
    wanted.extend(digest.entries.keys().map(|place| place.parent.clone()));
    wanted.extend(digest.directories.keys().cloned());
    wanted.extend(digest.directories.values().flatten().map(|place| place.parent.clone()));
    for (object, touched) in &digest.touched {
        wanted.extend(touched.is_directory.then(|| object.clone()));
        wanted.extend(candidates(links, object, touched).map(|place| place.parent.clone()));
    }
    if !digest.directories.is_empty() {
        wanted.extend(digest.unseen_in.iter().cloned());
        wanted.extend(unseen(digest).map(|(_, directory)| directory.clone()));
    }
    noted("look up names that events tell", resolver.look_up_names())?;
    noted("look for files that were changed", resolver.look_for_files(&mut wanted))?;
    noted("look for directories", resolver.correct(later, wanted))?;
    resolver.find_positions();
    let mut resolved = Resolved { lost_sight: resolver.lost_sight, ..Resolved::default() };
    resolver.name_directories(&mut resolved);
    noted("look at objects that have gone", resolver.resolve_entries(&mut resolved))?;
    noted("look at files that were closed", resolver.resolve_touched(&mut resolved, changed_since_cut))?;
    noted("look for files that were changed before they left", resolver.resolve_unseen(&mut resolved))?;
    for directory in &digest.unseen_in {
        if resolver.position(directory).told_by_entry {
            resolved.crossed.push(directory.clone());
        }
    }
    resolved.lost_sight |= resolver.lost_sight;
    Ok(resolved)
}

/// Files whose changes were dropped, since they are outside, each with the directory.
fn unseen(digest: &Digest) -> impl Iterator<Item = (&FileHandle, &FileHandle)> {
    digest.unseen.files.iter().chain(&digest.unseen_before.files)
}

/// The names at which an object may be by what is known of it.
fn candidates<'b>(
    links: &'b Links,
    object: &FileHandle,
    touched: &'b Touched,
) -> impl Iterator<Item = &'b Place> + use<'b> {
    touched.places.iter().chain(links.get(object).into_iter().flatten())
}

impl<'a> Resolver<'a> {
    fn new(below: &'a Below, digest: &'a Digest, links: &'a Links) -> Self {
        Self {
            below,
            digest,
            links,
            seen: HashMap::default(),
            located: HashMap::default(),
            positions: HashMap::default(),
            files: HashMap::default(),
            unlocked: HashSet::default(),
            lost_sight: digest.overflow,
        }
    }

    /// Looks up every name at which something may be.
    fn look_up_names(&mut self) -> Result<(), Errno> {
        let (digest, links) = (self.digest, self.links);
        let arrivals = digest.entries.iter().filter(|(_, entry)| !entry.arrivals.is_empty());
        let places = arrivals
            .map(|(place, _)| place)
            .chain(digest.touched.iter().flat_map(|(object, touched)| candidates(links, object, touched)));
        let mut by_directory: HashMap<&FileHandle, HashSet<&Place>> = HashMap::default();
        for place in places {
            by_directory.entry(&place.parent).or_default().insert(place);
        }
        for (parent, places) in by_directory {
            let directory = self.below.open_directory(parent)?;
            for place in places {
                let seen = match &directory {
                    Some(directory) => self.look_at(directory.as_fd(), &place.name)?,
                    None => None,
                };
                self.seen.insert(place.clone(), seen);
            }
            if let Some(directory) = directory {
                wait_for_changes_of(directory.as_fd())?;
            }
        }
        Ok(())
    }

    fn look_at(&self, directory: std::os::fd::BorrowedFd<'_>, name: &[u8]) -> Result<Option<Seen>, Errno> {
        let Some(object) = self.below.at(directory, name)? else { return Ok(None) };
        let stat =
            match rustix::fs::statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BASIC_STATS) {
                Err(Errno::NOENT | Errno::STALE) => return Ok(None),
                stat => stat?,
            };
        /// `BTRFS_FIRST_FREE_OBJECTID`.
        const SUBVOLUME_ROOT: u64 = 256;
        let is_subvolume = self.below.magic() == magic::BTRFS && stat.stx_ino == SUBVOLUME_ROOT;
        Ok(Some(Seen { object, object_type: object_type(&stat), nlink: stat.stx_nlink, is_subvolume }))
    }

    /// Looks for files that are not at any of the names that events tell of them.
    fn look_for_files(&mut self, wanted: &mut Vec<FileHandle>) -> Result<(), Errno> {
        let mut named: HashSet<&FileHandle> = HashSet::default();
        for seen in self.seen.values().flatten() {
            named.insert(&seen.object);
        }
        let touched = self.digest.touched.iter().filter(|(_, touched)| !touched.is_directory);
        let missing: Vec<FileHandle> =
            touched.map(|(object, _)| object).filter(|object| !named.contains(object)).cloned().collect();
        for object in missing {
            let whereabouts =
                if self.is_gone(&object) { Whereabouts::Gone } else { self.below.locate_file(&object)? };
            if let Whereabouts::At(place) = &whereabouts {
                let stat = self.below.stat(&object)?;
                let (object_type, nlink) =
                    stat.map_or((ObjectType::File, 1), |stat| (object_type(&stat), stat.stx_nlink));
                let seen = Seen { object: object.clone(), object_type, nlink, is_subvolume: false };
                self.seen.insert(place.clone(), Some(seen));
                self.unlocked.insert(place.parent.clone());
                wanted.push(place.parent.clone());
            }
            self.files.insert(object, whereabouts);
        }
        Ok(())
    }

    /// Looks for directories and what is above them, reads the queue on, and corrects what the lookups have seen too late.
    fn correct(&mut self, later: &dyn Later, mut wanted: Vec<FileHandle>) -> Result<(), Errno> {
        let mut patience = EVENT_PATIENCE;
        loop {
            while let Some(directory) = wanted.pop() {
                if directory == *self.below.root_handle() || self.located.contains_key(&directory) {
                    continue;
                }
                let whereabouts = self.below.locate_directory(&directory)?;
                if let Whereabouts::At(place) = &whereabouts {
                    self.unlocked.insert(place.parent.clone());
                    wanted.push(place.parent.clone());
                }
                self.located.insert(directory, whereabouts);
            }
            for directory in std::mem::take(&mut self.unlocked) {
                if let Some(directory) = self.below.open_directory(&directory)? {
                    wait_for_changes_of(directory.as_fd())?;
                }
            }
            let (digest, located, seen) = (self.digest, &mut self.located, &mut self.seen);
            let mut is_missing = false;
            later.read(&mut |after| {
                for (place, seen) in &mut *seen {
                    let before = after.before(place, seen.as_ref().map(|seen| &seen.object));
                    if seen.as_ref().map(|seen| &seen.object) != before.as_ref() {
                        let before_it = after.entries.get(place).map(|entry| &entry.before);
                        let is_directory = matches!(before_it, Some(Before::Object((_, true))));
                        *seen = before.map(|object| Seen::at_the_cut(object, is_directory));
                    }
                }
                // Where a file was that has moved since the cut.
                for (place, entry) in &after.entries {
                    if let Before::Object((object, false)) = &entry.before
                        && digest.touched.contains_key(object)
                        && !seen.contains_key(place)
                    {
                        seen.insert(place.clone(), Some(Seen::at_the_cut(object.clone(), false)));
                        wanted.push(place.parent.clone());
                    }
                }
                for (directory, whereabouts) in &mut *located {
                    match after.directories.get(directory) {
                        Some(Some(place)) => *whereabouts = Whereabouts::At(place.clone()),
                        // It came after the cut.
                        Some(None) => *whereabouts = Whereabouts::Gone,
                        None if after.ended_outside.contains(directory)
                            || digest.ended_outside.contains(directory) =>
                        {
                            *whereabouts = Whereabouts::Outside;
                        }
                        None => {}
                    }
                }
            })?;
            for whereabouts in self.located.values() {
                if let Whereabouts::At(place) = whereabouts {
                    wanted.push(place.parent.clone());
                }
            }
            wanted.retain(|directory| {
                *directory != *self.below.root_handle() && !self.located.contains_key(directory)
            });
            if !wanted.is_empty() {
                continue;
            }
            // A directory in which something has happened, and which is gone without a word: the word is on its way.
            for parent in self.digest.entries.keys().map(|place| &place.parent) {
                is_missing |= self.located.get(parent) == Some(&Whereabouts::Gone)
                    && !self.digest.directories.contains_key(parent);
            }
            if !is_missing {
                return Ok(());
            }
            if patience.is_zero() {
                self.lost_sight = true;
                return Ok(());
            }
            patience = patience.saturating_sub(EVENT_PAUSE);
            std::thread::sleep(EVENT_PAUSE);
        }
    }

    /// Where a directory was at the first cut; `None`: it did not exist.
    fn first(&self, directory: &FileHandle) -> Option<Whereabouts> {
        match self.digest.directories.get(directory) {
            Some(Some(place)) => Some(Whereabouts::At(place.clone())),
            Some(None) => None,
            None => self.located.get(directory).cloned(),
        }
    }

    fn side_at_first(&self, directory: &FileHandle) -> Side {
        self.side(directory, |directory| self.first(directory))
    }

    fn side_at_second(&self, directory: &FileHandle) -> Side {
        self.side(directory, |directory| self.located.get(directory).cloned())
    }

    fn side(&self, directory: &FileHandle, place: impl Fn(&FileHandle) -> Option<Whereabouts>) -> Side {
        let mut directory = directory.clone();
        for _ in 0..=self.located.len() {
            if directory == *self.below.root_handle() {
                return Side::Inside;
            }
            match place(&directory) {
                Some(Whereabouts::At(above)) => directory = above.parent,
                Some(Whereabouts::Outside) => return Side::Outside,
                Some(Whereabouts::Gone) | None => return Side::Nowhere,
                Some(Whereabouts::Unknown) => return Side::Unknown,
            }
        }
        Side::Unknown
    }

    /// Once for each directory: many names are in one.
    fn find_positions(&mut self) {
        let directories = self.located.keys().chain([self.below.root_handle()]);
        self.positions =
            directories.map(|directory| (directory.clone(), self.find_position(directory))).collect();
    }

    fn find_position(&self, directory: &FileHandle) -> Position {
        Position {
            first: self.side_at_first(directory),
            second: self.side_at_second(directory),
            told_by_entry: self.is_told_by_entry(directory),
        }
    }

    fn position(&self, directory: &FileHandle) -> Position {
        self.positions.get(directory).copied().unwrap_or_else(|| self.find_position(directory))
    }

    /// See [`Position`].
    fn is_told_by_entry(&self, directory: &FileHandle) -> bool {
        let mut directory = directory.clone();
        for _ in 0..=self.located.len() {
            if directory == *self.below.root_handle() {
                return true;
            }
            if self.first(&directory).is_some() && self.side_at_first(&directory) != Side::Inside {
                return false;
            }
            match self.located.get(&directory) {
                Some(Whereabouts::At(above)) => directory = above.parent.clone(),
                _ => return false,
            }
        }
        false
    }

    fn name_directories(&self, resolved: &mut Resolved) {
        for directory in self.located.keys() {
            let place = match self.first(directory) {
                Some(Whereabouts::At(place)) if self.position(directory).first == Side::Inside => Some(place),
                _ => None,
            };
            resolved.directories.insert(directory.clone(), place);
        }
    }

    fn resolve_entries(&mut self, resolved: &mut Resolved) -> Result<(), Errno> {
        let mut unknown = false;
        for (place, entry) in &self.digest.entries {
            let parent = &place.parent;
            let position = self.position(parent);
            unknown |= position.is_unknown();
            let is_old = position.first == Side::Inside;
            if let Before::Object((object, is_directory)) = &entry.before
                && is_old
                && position.second != Side::Outside
            {
                let object_type = self.type_of(object, *is_directory, &mut resolved.gone)?;
                let (place, object) = (place.clone(), object.clone());
                resolved.lost.push(Name { place, object, object_type, nlink: 1, is_new: false });
            }
            let seen = self.seen.get(place).cloned().flatten();
            let arrived = seen.filter(|seen| entry.arrivals.iter().any(|(object, _)| *object == seen.object));
            match (arrived, entry.arrivals.first()) {
                (Some(seen), _) if position.told_by_entry => {
                    let is_directory = seen.object_type == ObjectType::Directory;
                    let is_new = is_directory
                        && !seen.is_subvolume
                        && self.digest.directories.get(&seen.object) == Some(&None);
                    let Seen { object, object_type, nlink, .. } = seen;
                    resolved.gained.push(Name { place: place.clone(), object, object_type, nlink, is_new });
                }
                (None, Some((object, is_directory)))
                    if is_old
                        && position.second != Side::Outside
                        && !matches!(entry.before, Before::Object(_)) =>
                {
                    let object_type = self.type_of(object, *is_directory, &mut resolved.gone)?;
                    let (place, object) = (place.clone(), object.clone());
                    resolved.passed.push(Name { place, object, object_type, nlink: 1, is_new: false });
                }
                _ => {}
            }
        }
        self.lost_sight |= unknown;
        let by_place = |a: &Name, b: &Name| a.place.cmp(&b.place);
        resolved.lost.sort_by(by_place);
        resolved.passed.sort_by(by_place);
        resolved.gained.sort_by(by_place);
        Ok(())
    }

    /// Whether it is known, without another look, that a file does not exist any more.
    fn is_gone(&self, file: &FileHandle) -> bool {
        self.digest.gone.contains(file) || self.files.get(file) == Some(&Whereabouts::Gone)
    }

    fn type_of(
        &self,
        object: &FileHandle,
        is_directory: bool,
        gone: &mut HashSet<FileHandle>,
    ) -> Result<ObjectType, Errno> {
        if is_directory {
            return Ok(ObjectType::Directory);
        }
        let stat = if self.is_gone(object) { None } else { self.below.stat(object)? };
        if stat.is_none() {
            gone.insert(object.clone());
        }
        // Of a file that is gone nobody knows any more what sort it was.
        Ok(stat.map_or(ObjectType::File, |stat| object_type(&stat)))
    }

    fn resolve_touched(
        &mut self,
        resolved: &mut Resolved,
        changed_since_cut: &dyn Fn(&FileHandle) -> Result<bool, Errno>,
    ) -> Result<(), Errno> {
        // By whatever a name came to be looked up: one that was looked up as another file's is one that this file has as well.
        let mut names: HashMap<&FileHandle, Vec<(&Place, &Seen)>> = HashMap::default();
        for (place, seen) in &self.seen {
            if let Some(seen) = seen {
                names.entry(&seen.object).or_default().push((place, seen));
            }
        }
        let mut touched: Vec<(&FileHandle, &Touched)> = self.digest.touched.iter().collect();
        touched.sort_by_key(|(object, _)| *object);
        let (mut changes, mut unknown) = (Vec::new(), false);
        for (object, touched) in touched {
            if touched.is_directory {
                let position = self.position(object);
                unknown |= position.is_unknown();
                if position.told_by_entry {
                    changes.push(Change {
                        object: object.clone(),
                        object_type: ObjectType::Directory,
                        modified: false,
                        metadata: true,
                        places: None,
                        nlink: 1,
                    });
                }
                continue;
            }
            let modified =
                touched.modified || touched.closed && !self.is_gone(object) && changed_since_cut(object)?;
            let (mut places, mut elsewhere) = (Vec::new(), false);
            let (mut object_type, mut nlink) = (ObjectType::File, 1);
            for (place, seen) in names.get(object).into_iter().flatten() {
                (object_type, nlink) = (seen.object_type, seen.nlink);
                let position = self.position(&place.parent);
                if position.told_by_entry {
                    places.push((*place).clone());
                } else {
                    // Outside, or told as a whole with its directory.
                    elsewhere = true;
                    unknown |= position.is_unknown();
                }
            }
            let places = if !places.is_empty() {
                places.sort();
                Some(places)
            } else if elsewhere {
                // By another name it may be inside, and told by nothing else.
                let is_linked = self.below.stat(object)?.is_some_and(|stat| stat.stx_nlink > 1);
                (!is_linked).then(Vec::new)
            } else {
                match self.files.get(object) {
                    Some(Whereabouts::Gone | Whereabouts::Outside) => Some(Vec::new()),
                    Some(Whereabouts::Unknown) => None,
                    Some(Whereabouts::At(_)) | None if touched.carried => None,
                    // It has moved since the cut, in a way that does not tell from where: the next digest knows where it is.
                    Some(Whereabouts::At(_)) | None => {
                        resolved.carried.push(object.clone());
                        Some(Vec::new())
                    }
                }
            };
            changes.push(Change {
                object: object.clone(),
                object_type,
                modified: modified && object_type == ObjectType::File,
                metadata: touched.metadata,
                places,
                nlink,
            });
        }
        self.lost_sight |= unknown;
        resolved.touched = changes;
        Ok(())
    }

    /// A file that was changed while its directory was inside, and whose event was dropped since the directory was outside when it was
    /// read, may have another name that is inside.
    fn resolve_unseen(&mut self, resolved: &mut Resolved) -> Result<(), Errno> {
        if self.digest.directories.is_empty() {
            return Ok(());
        }
        for (file, directory) in unseen(self.digest) {
            if self.position(directory).first == Side::Outside {
                continue;
            }
            if let Whereabouts::At(_) | Whereabouts::Unknown = self.below.locate_file(file)? {
                resolved.touched.push(Change {
                    object: file.clone(),
                    object_type: ObjectType::File,
                    modified: true,
                    metadata: true,
                    places: None,
                    nlink: 2,
                });
            }
        }
        let has_left = |directory: &FileHandle| {
            let position = self.position(directory);
            position.first == Side::Inside && position.second != Side::Inside
        };
        if self.digest.unseen.more || self.digest.unseen_before.more {
            self.lost_sight |= self.digest.directories.keys().any(has_left);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;
    use std::process::Command;

    use highwater_objects::handle_of;
    use parking_lot::Mutex;

    use super::super::digest::Entry;
    use super::super::group::Group;
    use super::super::queue::Queue;
    use super::*;

    /// A tmpfs, watched, on which a cut can be made at will.
    struct Watched {
        below: Below,
        queue: Mutex<Queue>,
        /// The root of the filesystem, which is tracked unless a directory was named.
        tree: PathBuf,
        _home: tempfile::TempDir,
    }

    impl Watched {
        fn new() -> Self {
            Self::by(Group::watch, ".")
        }

        fn by(
            watch: impl FnOnce(std::os::fd::BorrowedFd<'_>) -> Result<Group, Errno>,
            directory: &str,
        ) -> Self {
            let home = tempfile::tempdir().unwrap();
            let tree = home.path().to_owned();
            assert!(
                Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&tree).status().unwrap().success()
            );
            fs::create_dir_all(tree.join(directory)).unwrap();
            let below = Below::open(&tree.join(directory)).unwrap();
            let queue = Mutex::new(Queue::new(watch(below.root()).unwrap()));
            Self { below, queue, tree, _home: home }
        }

        fn at(&self, path: &str) -> PathBuf {
            self.tree.join(path)
        }

        fn cut(&self) -> Digest {
            let mut queue = self.queue.lock();
            queue.read(&self.below).unwrap();
            queue.cut()
        }

        fn resolve(&self, digest: &Digest) -> Resolved {
            resolve(&self.below, digest, &Links::default(), self, &|_| Ok(false)).unwrap()
        }
    }

    impl Later for Watched {
        fn read(&self, look: &mut dyn FnMut(&Digest)) -> Result<(), Errno> {
            let mut queue = self.queue.lock();
            queue.read(&self.below)?;
            look(&queue.digest);
            Ok(())
        }
    }

    impl Drop for Watched {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg("-l").arg(&self.tree).status();
        }
    }

    fn names(names: &[Name]) -> Vec<&[u8]> {
        names.iter().map(|name| &name.place.name[..]).collect()
    }

    #[test]
    fn a_directory_that_is_moved_after_the_cut_is_where_it_was() {
        let watched = Watched::new();
        fs::create_dir_all(watched.at("c/d")).unwrap();
        fs::write(watched.at("c/d/f"), "x").unwrap();
        watched.cut();
        fs::write(watched.at("c/d/f"), "y").unwrap();
        let digest = watched.cut();
        fs::rename(watched.at("c/d"), watched.at("e")).unwrap();
        fs::rename(watched.at("c"), watched.at("b")).unwrap();
        let resolved = watched.resolve(&digest);
        let places: HashSet<&[u8]> =
            resolved.directories.values().flatten().map(|place| &place.name[..]).collect();
        assert_eq!(places, HashSet::from_iter([&b"c"[..], b"d"]));
        assert_eq!(resolved.touched.len(), 1);
    }

    #[test]
    fn a_name_that_changes_after_the_cut_counts_as_it_was() {
        let watched = Watched::new();
        for file in ["moved", "removed", "replaced"] {
            fs::write(watched.at(file), "x").unwrap();
        }
        let digest = watched.cut();
        fs::rename(watched.at("moved"), watched.at("elsewhere")).unwrap();
        fs::remove_file(watched.at("removed")).unwrap();
        fs::remove_file(watched.at("replaced")).unwrap();
        fs::create_dir(watched.at("replaced")).unwrap();
        fs::write(watched.at("new"), "x").unwrap();
        let resolved = watched.resolve(&digest);
        assert_eq!(names(&resolved.gained), [&b"moved"[..], b"removed", b"replaced"]);
        assert!(resolved.gained.iter().all(|name| name.object_type == ObjectType::File));
        assert_eq!(names(&resolved.passed), [&b""[..]; 0]);
    }

    #[test]
    fn a_queue_that_overflows_makes_everything_be_compared_once() {
        let allowed = fs::read_to_string("/proc/sys/fs/fanotify/max_queued_events").unwrap();
        let allowed: usize = allowed.trim().parse().unwrap();
        let watched = Watched::by(Group::watch_with_short_queue, ".");
        for number in 0..=allowed {
            fs::write(watched.at(&format!("f{number}")), "").unwrap();
        }
        let resolved = watched.resolve(&watched.cut());
        assert!(resolved.lost_sight);
        fs::write(watched.at("after"), "x").unwrap();
        let resolved = watched.resolve(&watched.cut());
        assert!(!resolved.lost_sight);
        assert_eq!(names(&resolved.gained), [b"after"]);
    }

    #[test]
    fn a_file_that_was_changed_just_before_its_directory_left_may_have_another_name() {
        for more in [false, true] {
            let watched = Watched::by(Group::watch, "in");
            fs::create_dir_all(watched.at("in/d/below")).unwrap();
            for file in ["alone", "linked"] {
                fs::write(watched.at("in/d/below").join(file), "x").unwrap();
            }
            fs::hard_link(watched.at("in/d/below/linked"), watched.at("in/other")).unwrap();
            watched.cut();
            for file in ["alone", "linked"] {
                fs::write(watched.at("in/d/below").join(file), "y").unwrap();
            }
            fs::rename(watched.at("in/d"), watched.at("d")).unwrap();
            // Whoever is at work outside all the time is nobody's concern.
            fs::write(watched.at("d/below/alone"), "z").unwrap();
            fs::write(watched.at("outside"), "x").unwrap();
            fs::hard_link(watched.at("outside"), watched.at("outside too")).unwrap();
            let mut digest = watched.cut();
            digest.unseen.more = more;
            let resolved = watched.resolve(&digest);
            assert_eq!(names(&resolved.lost), [b"d"]);
            let told = resolved.touched.iter().filter(|change| change.places != Some(Vec::new()));
            let told: Vec<&Change> = told.collect();
            assert_eq!(told.len(), 1, "{told:?}");
            assert_eq!(told[0].places, None);
            assert_eq!(resolved.lost_sight, more);
        }
    }

    #[test]
    fn what_the_kernel_says_is_gone_is_not_looked_for() {
        let watched = Watched::new();
        let handle = |name: &std::ffi::CStr| handle_of(watched.below.root(), name).unwrap();
        for name in ["plain", "held", "linked", "replaced", "other"] {
            fs::write(watched.at(name), "x").unwrap();
        }
        fs::create_dir(watched.at("directory")).unwrap();
        fs::hard_link(watched.at("linked"), watched.at("second name")).unwrap();
        let held = fs::File::open(watched.at("held")).unwrap();
        let gone = HashSet::from_iter([handle(c"plain"), handle(c"replaced")]);
        let held_handle = handle(c"held");
        watched.cut();
        for name in ["plain", "held", "linked"] {
            fs::remove_file(watched.at(name)).unwrap();
        }
        fs::remove_dir(watched.at("directory")).unwrap();
        fs::rename(watched.at("other"), watched.at("replaced")).unwrap();
        let digest = watched.cut();
        assert_eq!(digest.gone, gone);
        let replaced = digest.relinked.replaced(&digest.relinked_before).unwrap();
        assert!(replaced.is_disjoint(&digest.gone));
        let resolved = watched.resolve(&digest);
        assert!(resolved.gone.contains(&held_handle), "it has no name, and is looked at");
        drop(held);
        assert_eq!(watched.cut().gone, HashSet::from_iter([held_handle]));
    }

    fn open_file(watched: &Watched, name: &std::ffi::CStr) -> (FileHandle, Digest) {
        let file = handle_of(watched.below.root(), name).unwrap();
        watched.cut();
        let mut digest = watched.cut();
        // As for one that somebody has open for writing, and of which there is no news.
        digest.add(file.clone(), |_| {});
        (file, digest)
    }

    fn at(watched: &Watched, name: &[u8]) -> Place {
        Place { parent: watched.below.root_handle().clone(), name: name.into() }
    }

    /// It is not told by the new name, which the consumer knows nothing of yet.
    #[test]
    fn an_open_file_that_is_moved_after_the_cut_is_where_it_was() {
        let watched = Watched::new();
        fs::create_dir_all(watched.at("c/d")).unwrap();
        fs::write(watched.at("a"), "x").unwrap();
        let (file, digest) = open_file(&watched, c"a");
        fs::rename(watched.at("a"), watched.at("c/d/b")).unwrap();
        let resolved = watched.resolve(&digest);
        assert_eq!(resolved.touched.len(), 1, "so that nobody asks the filesystem where it is");
        assert_eq!(
            (&resolved.touched[0].object, &resolved.touched[0].places),
            (&file, &Some(vec![at(&watched, b"a")]))
        );
        assert_eq!(resolved.carried, []);
    }

    /// A name that was looked up as another file's, which has lost it unheard, is the name of this one.
    #[test]
    fn a_file_is_at_a_name_that_was_looked_up_for_another_one() {
        let watched = Watched::new();
        for name in ["a", "b"] {
            fs::write(watched.at(name), "x").unwrap();
        }
        let other = handle_of(watched.below.root(), c"b").unwrap();
        let links = Links::from_iter([(other.clone(), vec![at(&watched, b"a"), at(&watched, b"b")])]);
        let (file, mut digest) = open_file(&watched, c"a");
        digest.add(other, |touched| touched.modified = true);
        let resolved = resolve(&watched.below, &digest, &links, &watched, &|_| Ok(false)).unwrap();
        let change = resolved.touched.iter().find(|change| change.object == file).unwrap();
        assert_eq!(change.places, Some(vec![at(&watched, b"a")]));
        assert_eq!(resolved.carried, []);
    }

    #[test]
    fn a_file_is_carried_over_once_only() {
        let watched = Watched::new();
        fs::write(watched.at("a"), "x").unwrap();
        for (carried, places) in [(false, Some(Vec::new())), (true, None)] {
            let (file, mut digest) = open_file(&watched, c"a");
            digest.add(file, |touched| touched.carried = carried);
            // Of a merged event it cannot be told what was there before.
            let unknown = Entry { before: Before::Unknown, arrivals: Vec::new() };
            watched.queue.lock().digest.entries.insert(at(&watched, b"a"), unknown);
            let resolved = watched.resolve(&digest);
            assert_eq!(resolved.touched[0].places, places);
            assert_eq!(resolved.carried.len(), usize::from(!carried));
        }
    }

    #[test]
    fn what_is_in_a_directory_that_cannot_be_found_makes_everything_be_compared() {
        let watched = Watched::new();
        fs::create_dir(watched.at("d")).unwrap();
        fs::write(watched.at("d/f"), "x").unwrap();
        watched.cut();
        fs::write(watched.at("d/f"), "y").unwrap();
        fs::set_permissions(watched.at("d"), fs::metadata(watched.at("d")).unwrap().permissions()).unwrap();
        let digest = watched.cut();
        let d = handle_of(watched.below.root(), c"d").unwrap();
        for of in [ObjectType::File, ObjectType::Directory] {
            let touched = digest
                .touched
                .iter()
                .filter(|(_, touched)| touched.is_directory == (of == ObjectType::Directory));
            let one = Digest {
                touched: touched.map(|(object, touched)| (object.clone(), touched.clone())).collect(),
                ..Digest::default()
            };
            assert_eq!(one.touched.len(), 1);
            for whereabouts in [
                Whereabouts::Unknown,
                Whereabouts::At(Place { parent: watched.below.root_handle().clone(), name: (*b"d").into() }),
            ] {
                let links = Links::default();
                let mut resolver = Resolver::new(&watched.below, &one, &links);
                resolver.look_up_names().unwrap();
                resolver.located.insert(d.clone(), whereabouts.clone());
                resolver.resolve_touched(&mut Resolved::default(), &|_| Ok(true)).unwrap();
                assert_eq!(resolver.lost_sight, whereabouts == Whereabouts::Unknown, "{of:?}");
            }
        }
    }

    #[test]
    fn what_comes_back_after_the_cut_was_away() {
        let watched = Watched::new();
        fs::write(watched.at("a"), "x").unwrap();
        watched.cut();
        fs::rename(watched.at("a"), watched.at("b")).unwrap();
        let digest = watched.cut();
        fs::rename(watched.at("b"), watched.at("a")).unwrap();
        let resolved = watched.resolve(&digest);
        assert_eq!(names(&resolved.lost), [b"a"]);
        assert_eq!(names(&resolved.gained), [b"b"]);
    }
}
