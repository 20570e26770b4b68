//! What the records of some periods say together: the objects and the directory entries that they mention, each with its
//! state at the window's beginning and at its end.
//!
//! Invariant: the first mention of an entry tells what was at that name when the window began, since nothing in the window
//! changed it before; the last one tells what is there at its end. Records are in USN order, which is the order in which
//! the operations on one entry happened: a source records an operation before the filesystem lets the next one at that
//! directory begin.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;

use crate::change::{Change, Name, ObjectType, Place};
use crate::handle::FileHandle;
use crate::record::Body;

/// An object of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ObjectIndex(u32);

/// A directory entry of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct EntryIndex(u32);

/// An object that the window mentions.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) handle: FileHandle,
    pub(crate) object_type: ObjectType,
    /// The newest record about it.
    pub(crate) usn: u64,
    /// It did not exist when the window began.
    pub(crate) new: bool,
    /// It got one more name.
    pub(crate) linked: bool,
    pub(crate) modified: bool,
    pub(crate) metadata: bool,
    pub(crate) recovered: bool,
    /// It was modified while none of its names was known.
    pub(crate) names_unknown: bool,
    /// A name of it was taken away: by a rename (even one that was undone later) or by an unlink.
    pub(crate) moved: bool,
    /// For a directory: where it was when the window began. `None`: the root, or it is new.
    pub(crate) initial: Option<EntryIndex>,
    /// For a directory: where it is. `None`: the root, or it is gone.
    pub(crate) last: Option<EntryIndex>,
    /// For a directory: where it was last, even if it is gone.
    pub(crate) last_known: Option<EntryIndex>,
}

/// A directory entry that the window mentions.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) parent: ObjectIndex,
    pub(crate) name: Name,
    /// What was there when the window began.
    pub(crate) initial: Option<ObjectIndex>,
    /// What is there at its end.
    pub(crate) last: Option<ObjectIndex>,
    /// The newest record about it.
    pub(crate) usn: u64,
    /// The type of what was there last, for the line that says that it is gone.
    pub(crate) last_type: ObjectType,
}

/// A directory that has to be compared.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rescan {
    pub(crate) directory: ObjectIndex,
    pub(crate) recursive: bool,
    pub(crate) usn: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Window {
    pub(crate) root: ObjectIndex,
    pub(crate) objects: Vec<Object>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) rescans: Vec<Rescan>,
    /// Changes were lost in the window; the first reason.
    pub(crate) lost: Option<String>,
    object_indices: HashMap<FileHandle, ObjectIndex>,
    entry_indices: HashMap<(ObjectIndex, Name), EntryIndex>,
}

impl std::ops::Index<ObjectIndex> for Window {
    type Output = Object;
    fn index(&self, index: ObjectIndex) -> &Object {
        &self.objects[index.0 as usize]
    }
}

impl std::ops::IndexMut<ObjectIndex> for Window {
    fn index_mut(&mut self, index: ObjectIndex) -> &mut Object {
        &mut self.objects[index.0 as usize]
    }
}

impl std::ops::Index<EntryIndex> for Window {
    type Output = Entry;
    fn index(&self, index: EntryIndex) -> &Entry {
        &self.entries[index.0 as usize]
    }
}

impl std::ops::IndexMut<EntryIndex> for Window {
    fn index_mut(&mut self, index: EntryIndex) -> &mut Entry {
        &mut self.entries[index.0 as usize]
    }
}

impl ObjectIndex {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl EntryIndex {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

impl Window {
    /// A window that nothing has happened in yet.
    pub(crate) fn new(root: &FileHandle) -> Self {
        let mut window = Self {
            root: ObjectIndex(0),
            objects: Vec::new(),
            entries: Vec::new(),
            rescans: Vec::new(),
            lost: None,
            object_indices: HashMap::new(),
            entry_indices: HashMap::new(),
        };
        window.root = window.object(root, ObjectType::Directory, 0);
        window
    }

    /// All entries.
    pub(crate) fn entry_indices(&self) -> impl Iterator<Item = EntryIndex> + use<> {
        (0..u32::try_from(self.entries.len()).expect("bounded by push")).map(EntryIndex)
    }

    /// The object of this handle, if the window mentions it.
    pub(crate) fn find(&self, handle: &FileHandle) -> Option<ObjectIndex> {
        self.object_indices.get(handle).copied()
    }

    /// For each object whether it has a name that is known here.
    pub(crate) fn named(&self) -> Vec<bool> {
        let mut named = vec![false; self.objects.len()];
        self.entries.iter().filter_map(|entry| entry.last).for_each(|object| named[object.index()] = true);
        named
    }

    /// Adds one record. Records must come in USN order.
    pub(crate) fn push(&mut self, usn: u64, body: &Body) {
        match body {
            Body::Where { directory, place } => self.located(directory, ObjectType::Directory, place, usn),
            Body::Changed { change, places } => self.changed(usn, change, places.as_deref()),
            Body::Rescan { directory, recursive } => {
                let directory = self.object(directory, ObjectType::Directory, usn);
                self.rescans.push(Rescan { directory, recursive: *recursive, usn });
            }
            Body::Recovered { object, object_type, places } => {
                let index = self.touched(object, *object_type, places.as_deref(), usn);
                let object = &mut self[index];
                object.recovered = true;
                object.modified |= *object_type == ObjectType::File;
                object.metadata = true;
            }
            Body::Lost { reason } => {
                self.lost.get_or_insert_with(|| reason.clone());
            }
            Body::IntentDirectory { .. }
            | Body::IntentObject { .. }
            | Body::IntentMove { .. }
            | Body::Seal { .. }
            | Body::Stable { .. }
            | Body::Started { .. }
            | Body::Gap { .. }
            | Body::Stopped { .. } => {}
        }
    }

    fn changed(&mut self, usn: u64, change: &Change, places: Option<&[Place]>) {
        match change {
            Change::Created { object, object_type, place } => {
                let index = self.object(object, *object_type, usn);
                self[index].new = true;
                self.occupy(place, None, index, usn);
            }
            Change::Linked { object, object_type, place } => {
                let index = self.object(object, *object_type, usn);
                self[index].linked = true;
                self.occupy(place, None, index, usn);
            }
            Change::Removed { object, object_type, place } => {
                let index = self.object(object, *object_type, usn);
                self[index].moved = true;
                self.vacate(place, index, usn);
            }
            Change::Renamed { object, object_type, from, to, replaced } => {
                let index = self.object(object, *object_type, usn);
                let replaced =
                    replaced.as_ref().map(|(handle, object_type)| self.object(handle, *object_type, usn));
                self.vacate(from, index, usn);
                if let Some(replaced) = replaced {
                    self[replaced].moved = true;
                    self.vacate(to, replaced, usn);
                }
                self.occupy(to, replaced, index, usn);
                self[index].moved = true;
            }
            Change::Exchanged { a, a_place, b, b_place } => {
                let a = self.object(&a.0, a.1, usn);
                let b = self.object(&b.0, b.1, usn);
                self.vacate(a_place, a, usn);
                self.vacate(b_place, b, usn);
                self.occupy(b_place, Some(b), a, usn);
                self.occupy(a_place, Some(a), b, usn);
                for index in [a, b] {
                    self[index].moved = true;
                }
            }
            Change::Modified { object } => {
                let index = self.touched(object, ObjectType::File, places, usn);
                self[index].modified = true;
            }
            Change::Metadata { object, object_type } => {
                let index = self.touched(object, *object_type, places, usn);
                self[index].metadata = true;
            }
        }
    }

    /// The object of a record about an object, which was at these places then.
    fn touched(
        &mut self,
        handle: &FileHandle,
        object_type: ObjectType,
        places: Option<&[Place]>,
        usn: u64,
    ) -> ObjectIndex {
        let index = self.object(handle, object_type, usn);
        match places {
            Some(places) => places.iter().for_each(|place| self.located(handle, object_type, place, usn)),
            None => self[index].names_unknown = true,
        }
        index
    }

    /// Notes that an object is at a place, where nothing has changed.
    fn located(&mut self, handle: &FileHandle, object_type: ObjectType, place: &Place, usn: u64) {
        let object = self.object(handle, object_type, usn);
        let (entry, first) = self.entry(place, usn);
        if first {
            self[entry].initial = Some(object);
            self[entry].last = Some(object);
            self[entry].last_type = object_type;
        }
        if object_type == ObjectType::Directory && self[entry].last == Some(object) {
            let new = self[object].new;
            let object = &mut self[object];
            if object.last_known.is_none() && !new {
                object.initial = Some(entry);
            }
            object.last = Some(entry);
            object.last_known = Some(entry);
        }
    }

    /// Notes that an object has got a name, which `replaced` had before.
    fn occupy(&mut self, place: &Place, replaced: Option<ObjectIndex>, object: ObjectIndex, usn: u64) {
        let object_type = self[object].object_type;
        let (entry, first) = self.entry(place, usn);
        if first {
            self[entry].initial = replaced;
        }
        // A source that hears of changes afterwards cannot always say what was replaced.
        if let Some(replaced) = self[entry].last.filter(|there| *there != object) {
            self[replaced].moved = true;
        }
        self[entry].last = Some(object);
        self[entry].last_type = object_type;
        if object_type == ObjectType::Directory {
            self[object].last = Some(entry);
            self[object].last_known = Some(entry);
        }
    }

    /// Notes that an object has lost a name.
    fn vacate(&mut self, place: &Place, object: ObjectIndex, usn: u64) {
        let object_type = self[object].object_type;
        let (entry, first) = self.entry(place, usn);
        if first {
            self[entry].initial = Some(object);
        }
        self[entry].last = None;
        self[entry].last_type = object_type;
        if object_type == ObjectType::Directory {
            let object = &mut self[object];
            if object.last_known.is_none() && !object.new {
                object.initial = Some(entry);
            }
            object.last = None;
            object.last_known = Some(entry);
        }
    }

    fn object(&mut self, handle: &FileHandle, object_type: ObjectType, usn: u64) -> ObjectIndex {
        let index = match self.object_indices.entry(handle.clone()) {
            MapEntry::Occupied(entry) => *entry.get(),
            MapEntry::Vacant(entry) => {
                let index = ObjectIndex(
                    u32::try_from(self.objects.len()).expect("fewer than 2^32 objects in a window"),
                );
                self.objects.push(Object {
                    handle: handle.clone(),
                    object_type,
                    usn,
                    new: false,
                    linked: false,
                    modified: false,
                    metadata: false,
                    recovered: false,
                    names_unknown: false,
                    moved: false,
                    initial: None,
                    last: None,
                    last_known: None,
                });
                *entry.insert(index)
            }
        };
        let object = &mut self[index];
        object.usn = object.usn.max(usn);
        index
    }

    /// The entry of a place, and whether this is its first mention.
    fn entry(&mut self, place: &Place, usn: u64) -> (EntryIndex, bool) {
        let parent = self.object(&place.parent, ObjectType::Directory, 0);
        match self.entry_indices.entry((parent, place.name.clone())) {
            MapEntry::Occupied(entry) => {
                let index = *entry.get();
                self[index].usn = usn;
                (index, false)
            }
            MapEntry::Vacant(entry) => {
                let index = EntryIndex(
                    u32::try_from(self.entries.len()).expect("fewer than 2^32 entries in a window"),
                );
                entry.insert(index);
                let name = place.name.clone();
                self.entries.push(Entry {
                    parent,
                    name,
                    initial: None,
                    last: None,
                    usn,
                    last_type: ObjectType::Other,
                });
                (index, true)
            }
        }
    }
}
