//! What a run of events says, put together.
//!
//! The kernel merges an event into an earlier one of the same process about the same name and object, so the order of events is not
//! the order of what happened. Two things can be relied on:
//!
//! - **The first event that mentions a name tells what happened to it first**: one that came later would have been merged into it or
//!   is behind it. If several bits were merged into that one, only that much is known as the bits agree on. The events of one
//!   directory are queued in the order of its changes, since the kernel queues them under the directory's lock.
//! - **What is at a name now was told by some event** if there is an event of it at all.
//!
//! So a digest keeps of each name what was there *before* and what may have come there; what is there in the end is looked up.

use highwater_tracker::{FileHandle, Place};

use super::group::{Event, Told, bit};
use super::relinked::Relinked;
use super::{HashMap, HashSet};

/// An object and whether it is a directory.
pub(crate) type Occupant = (FileHandle, bool);

/// What was at a name before the first event that mentions it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Before {
    Nothing,
    Object(Occupant),
    /// Something may have been replaced, or the order of merged events is not known.
    Unknown,
}

/// A name that events mention.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) before: Before,
    /// What has come there, each once.
    pub(crate) arrivals: Vec<Occupant>,
}

/// An object whose data or metadata events tell of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Touched {
    pub(crate) modified: bool,
    pub(crate) metadata: bool,
    /// Closed after it was open for writing.
    pub(crate) closed: bool,
    pub(crate) is_directory: bool,
    /// It was in the digest before, where it had no name: it had moved after that cut.
    pub(crate) carried: bool,
    /// Its names as the events have them. They may have been gone by then.
    pub(crate) places: Vec<Place>,
}

/// Changed files whose events were dropped.
#[derive(Clone, Debug, Default)]
pub(crate) struct Unseen {
    /// Each with the directory by which it was changed.
    pub(crate) files: HashMap<FileHandle, FileHandle>,
    /// There were more.
    pub(crate) more: bool,
}

impl Unseen {
    pub(crate) fn push(&mut self, file: FileHandle, directory: FileHandle) {
        if self.files.len() < FILES_MAX {
            self.files.insert(file, directory);
        } else {
            self.more = true;
        }
    }
}

/// Files that are remembered in case that their directory turns out to have left.
const FILES_MAX: usize = 1 << 13;

/// Files that are remembered as gone.
const GONE_MAX: usize = 1 << 18;

/// The names of one object that are kept; it is looked for by other means if it has more.
const PLACES_MAX: usize = 8;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Digest {
    pub(crate) entries: HashMap<Place, Entry>,
    /// Each directory that came, went or moved, and where it was before that; `None`: it did not exist.
    pub(crate) directories: HashMap<FileHandle, Option<Place>>,
    pub(crate) touched: HashMap<FileHandle, Touched>,
    /// Directories that ended outside of the tracked one.
    pub(crate) ended_outside: HashSet<FileHandle>,
    /// Directories that were outside when an event of what is in them was read, so that it was dropped.
    pub(crate) unseen_in: HashSet<FileHandle>,
    /// What was dropped for that reason. The directory may have been inside when it happened.
    pub(crate) unseen: Unseen,
    /// That of the digest before: the event that moved the directory may be in this one.
    pub(crate) unseen_before: Unseen,
    /// What may have been replaced, and that of the digest before.
    pub(crate) relinked: Relinked,
    pub(crate) relinked_before: Relinked,
    /// Files that do not exist any more, as far as the kernel has said so already. None of them comes back: another one has another
    /// handle, and a file without a name can only be given one that never had any.
    pub(crate) gone: HashSet<FileHandle>,
    /// Events were lost.
    pub(crate) overflow: bool,
}

impl Digest {
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.touched.is_empty() && !self.overflow
    }

    /// Adds an event that is not older than those before.
    pub(crate) fn push(&mut self, event: Event) {
        let mask = event.mask;
        let is_directory = mask & bit::DIRECTORY != 0;
        match event.told {
            Told::Overflow => self.overflow = true,
            Told::Renamed { from, to, object } => {
                if is_directory {
                    self.directories.entry(object.clone()).or_insert_with(|| Some(from.clone()));
                }
                self.leave(from, &object, is_directory);
                self.arrive(to, (object, is_directory), Before::Unknown);
                self.relinked.moved(event.pid);
            }
            Told::Entry { place, object } => {
                let (created, deleted) = (mask & bit::CREATE != 0, mask & bit::DELETE != 0);
                if is_directory && (created || deleted) {
                    // A directory is created once, and deleted after that.
                    let before = (!created).then(|| place.clone());
                    self.directories.entry(object.clone()).or_insert(before);
                }
                if created {
                    let before = if deleted && !is_directory { Before::Unknown } else { Before::Nothing };
                    self.arrive(place.clone(), (object.clone(), is_directory), before);
                } else if deleted {
                    self.leave(place.clone(), &object, is_directory);
                }
                self.touch(&object, mask, Some(place));
            }
            Told::Object { object } if !is_directory && mask & bit::DELETE_SELF != 0 => {
                self.relinked.remove(event.pid, &object);
                // What is missing is looked for.
                if self.gone.len() < GONE_MAX {
                    self.gone.insert(object);
                }
            }
            // Without a name and not of a directory this is how the kernel tells that the number of links has changed.
            Told::Object { object } if !is_directory && mask & (bit::MODIFY | bit::CLOSE_WRITE) == 0 => {
                self.relinked.push(event.pid, object);
            }
            Told::Object { object } => self.touch(&object, mask, None),
        }
    }

    fn entry(&mut self, place: Place, before: impl FnOnce() -> Before) -> &mut Entry {
        self.entries.entry(place).or_insert_with(|| Entry { before: before(), arrivals: Vec::new() })
    }

    /// What leaves a name to which it has not come was there before. In an exchange that is told second.
    fn leave(&mut self, place: Place, object: &FileHandle, is_directory: bool) {
        let was_there = || Before::Object((object.clone(), is_directory));
        let entry = self.entry(place, was_there);
        if entry.before == Before::Unknown && !entry.arrivals.iter().any(|(arrived, _)| arrived == object) {
            entry.before = was_there();
        }
    }

    fn arrive(&mut self, place: Place, object: Occupant, before: Before) {
        let entry = self.entry(place, || before);
        if !entry.arrivals.contains(&object) {
            entry.arrivals.push(object);
        }
    }

    fn touch(&mut self, object: &FileHandle, mask: u64, place: Option<Place>) {
        if mask & bit::CHANGES == 0 {
            return;
        }
        let touched = match self.touched.get_mut(object) {
            Some(touched) => touched,
            None => self.touched.entry(object.clone()).or_default(),
        };
        touched.modified |= mask & bit::MODIFY != 0;
        touched.metadata |= mask & bit::ATTRIB != 0;
        touched.closed |= mask & bit::CLOSE_WRITE != 0;
        touched.is_directory |= mask & bit::DIRECTORY != 0;
        if let Some(place) = place
            && touched.places.len() < PLACES_MAX
            && !touched.places.contains(&place)
        {
            touched.places.push(place);
        }
    }

    /// Ends the digest, and begins the next one.
    pub(crate) fn cut(&mut self) -> Self {
        let mut cut = std::mem::take(self);
        if cut.relinked.has_files() {
            let arrivals = cut.entries.values().flat_map(|entry| &entry.arrivals);
            let left = cut.entries.values().filter_map(|entry| match &entry.before {
                Before::Object(occupant) => Some(occupant),
                Before::Nothing | Before::Unknown => None,
            });
            let by_name: HashSet<&FileHandle> = arrivals.chain(left).map(|(object, _)| object).collect();
            cut.relinked.forget(|file| by_name.contains(file));
        }
        self.unseen_before = cut.unseen.clone();
        self.relinked_before = cut.relinked.clone();
        cut
    }

    /// Adds an object that is to be looked at, without an event.
    pub(crate) fn add(&mut self, object: FileHandle, change: impl FnOnce(&mut Touched)) {
        change(self.touched.entry(object).or_default());
    }

    /// What was at a name before these events, where `now` is there if they do not mention it.
    pub(crate) fn before(&self, place: &Place, now: Option<&FileHandle>) -> Option<FileHandle> {
        match self.entries.get(place).map(|entry| &entry.before) {
            None => now.cloned(),
            Some(Before::Object((object, _))) => Some(object.clone()),
            Some(Before::Nothing | Before::Unknown) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(number: u8) -> FileHandle {
        FileHandle::new(1, &[number; 8]).unwrap()
    }

    fn place(name: &str) -> Place {
        Place { parent: object(0), name: name.as_bytes().into() }
    }

    fn digest(events: impl IntoIterator<Item = (u64, Told)>) -> Digest {
        let mut digest = Digest::default();
        events.into_iter().for_each(|(mask, told)| digest.push(Event { mask, pid: 1, told }));
        digest
    }

    fn entry(name: &str, number: u8) -> Told {
        Told::Entry { place: place(name), object: object(number) }
    }

    fn renamed(from: &str, to: &str, number: u8) -> Told {
        Told::Renamed { from: place(from), to: place(to), object: object(number) }
    }

    fn before(digest: &Digest, name: &str) -> Before {
        digest.entries[&place(name)].before.clone()
    }

    fn arrivals(digest: &Digest, name: &str) -> Vec<FileHandle> {
        digest.entries[&place(name)].arrivals.iter().map(|(object, _)| object.clone()).collect()
    }

    #[test]
    fn the_first_event_of_a_name_tells_what_was_there_before() {
        let made = digest([(bit::CREATE, entry("a", 1)), (bit::DELETE, entry("a", 1))]);
        assert_eq!(before(&made, "a"), Before::Nothing);
        assert_eq!(arrivals(&made, "a"), [object(1)]);
        let removed = digest([(bit::DELETE, entry("a", 1)), (bit::CREATE, entry("a", 2))]);
        assert_eq!(before(&removed, "a"), Before::Object((object(1), false)));
        assert_eq!(arrivals(&removed, "a"), [object(2)]);
    }

    #[test]
    fn of_a_merged_event_the_order_is_not_known_unless_it_is_a_directory() {
        let both = bit::CREATE | bit::DELETE;
        assert_eq!(before(&digest([(both, entry("a", 1))]), "a"), Before::Unknown);
        let directory = digest([(both | bit::DIRECTORY, entry("a", 1))]);
        assert_eq!(before(&directory, "a"), Before::Nothing);
        assert_eq!(directory.directories[&object(1)], None);
    }

    #[test]
    fn what_a_rename_replaced_is_not_known_until_something_leaves_that_name() {
        let replaced = digest([(0, renamed("a", "b", 1))]);
        assert_eq!(before(&replaced, "a"), Before::Object((object(1), false)));
        assert_eq!(before(&replaced, "b"), Before::Unknown);
        // An exchange is two renames: the second one tells what was at the name that the first one has taken.
        let exchanged = digest([(0, renamed("a", "b", 1)), (0, renamed("b", "a", 2))]);
        assert_eq!(before(&exchanged, "a"), Before::Object((object(1), false)));
        assert_eq!(before(&exchanged, "b"), Before::Object((object(2), false)));
        assert_eq!(arrivals(&exchanged, "a"), [object(2)]);
        assert_eq!(arrivals(&exchanged, "b"), [object(1)]);
    }

    #[test]
    fn what_came_to_a_name_and_left_it_was_not_there_before() {
        let passed = digest([(0, renamed("a", "b", 1)), (0, renamed("b", "c", 1))]);
        assert_eq!(before(&passed, "b"), Before::Unknown);
        assert_eq!(before(&passed, "c"), Before::Unknown);
        let second =
            digest([(0, renamed("a", "b", 1)), (0, renamed("b", "c", 1)), (bit::DELETE, entry("b", 2))]);
        assert_eq!(before(&second, "b"), Before::Object((object(2), false)));
    }

    #[test]
    fn a_directory_was_where_it_first_left() {
        let moved = digest([(bit::DIRECTORY, renamed("a", "b", 1)), (bit::DIRECTORY, renamed("b", "c", 1))]);
        assert_eq!(moved.directories[&object(1)], Some(place("a")));
        let made =
            digest([(bit::DIRECTORY | bit::CREATE, entry("a", 1)), (bit::DIRECTORY, renamed("a", "b", 1))]);
        assert_eq!(made.directories[&object(1)], None);
    }

    #[test]
    fn a_change_of_the_link_count_alone_is_nothing() {
        let told = Told::Object { object: object(1) };
        assert!(digest([(bit::ATTRIB, told.clone())]).touched.is_empty());
        assert!(digest([(bit::ATTRIB | bit::MODIFY, told)]).touched[&object(1)].modified);
    }

    #[test]
    fn what_only_the_number_of_links_is_told_of_beside_a_move_may_have_been_replaced() {
        let relinked = (bit::ATTRIB, Told::Object { object: object(2) });
        let replaced = |events: &[(u64, Told)]| {
            let cut = digest(events.iter().cloned()).cut();
            cut.relinked.replaced(&cut.relinked_before).unwrap().into_iter().collect::<Vec<_>>()
        };
        let renamed = (0, renamed("a", "b", 1));
        assert_eq!(replaced(&[renamed.clone(), relinked.clone()]), [object(2)]);
        // The names of these are told.
        assert_eq!(replaced(&[renamed.clone(), (bit::DELETE, entry("c", 2)), relinked.clone()]), []);
        assert_eq!(replaced(&[renamed.clone(), (bit::CREATE, entry("c", 2)), relinked.clone()]), []);
        let mut later = digest([renamed]);
        later.cut();
        later.push(Event { mask: relinked.0, pid: 1, told: relinked.1 });
        assert_eq!(later.relinked.replaced(&later.relinked_before), Some(HashSet::from_iter([object(2)])));
    }
}
