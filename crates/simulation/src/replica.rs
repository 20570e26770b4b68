//! A consumer's copy of the tree, kept by the rules of docs/guarantees.md and by nothing else.

use std::collections::BTreeMap;

use highwater_tracker::{Line, LineKind, ObjectType};

use crate::tree::{BLOCKS, Ino, Kind, Name, ROOT, State};

/// What a consumer reads from: the mount, which may show something old for a moment.
pub trait View {
    /// What is at a name.
    fn lookup(&mut self, directory: Ino, name: Name) -> Option<Ino>;
    /// The names in a directory.
    fn list(&mut self, directory: Ino) -> Vec<(Name, Ino)>;
    /// What an object is, its data and its attributes; `None` if it is gone.
    fn read(&mut self, ino: Ino) -> Option<(Kind, [u32; BLOCKS], u32)>;
}

impl View for &State {
    fn lookup(&mut self, directory: Ino, name: Name) -> Option<Ino> {
        State::lookup(self, directory, name)
    }

    fn list(&mut self, directory: Ino) -> Vec<(Name, Ino)> {
        let inode = self.inode(directory);
        inode.into_iter().flat_map(|inode| &inode.entries).map(|(name, ino)| (*name, *ino)).collect()
    }

    fn read(&mut self, ino: Ino) -> Option<(Kind, [u32; BLOCKS], u32)> {
        self.inode(ino).map(|inode| (inode.kind, inode.data, inode.mode))
    }
}

/// One object of the copy, with what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Copy {
    /// A file or a symbolic link.
    Leaf {
        /// Which of the two.
        kind: Kind,
        /// What was read.
        data: [u32; BLOCKS],
        /// Attributes.
        mode: u32,
    },
    /// A directory.
    Directory {
        /// Attributes.
        mode: u32,
        /// What is in it.
        entries: BTreeMap<Name, Copy>,
    },
}

impl Copy {
    /// An empty copy of a root.
    pub fn nothing() -> Self {
        Self::Directory { mode: u32::MAX, entries: BTreeMap::new() }
    }

    /// A whole copy of an object.
    pub fn whole(view: &mut impl View, ino: Ino) -> Option<Self> {
        Some(match view.read(ino)? {
            (Kind::Directory, _, mode) => {
                let entries = view.list(ino);
                let entries =
                    entries.into_iter().filter_map(|(name, ino)| Some((name, Self::whole(view, ino)?)));
                Self::Directory { mode, entries: entries.collect() }
            }
            (kind, data, mode) => Self::Leaf { kind, data, mode },
        })
    }

    fn is_directory(&self) -> bool {
        matches!(self, Self::Directory { .. })
    }

    /// The directory that a path leads into, and the last name. Directories on the way that are not held are not made: what is in
    /// them is told with them.
    fn parent_of(&mut self, path: &[u8]) -> Option<(&mut BTreeMap<Name, Self>, Name)> {
        let (last, above) = names(path).split_last().map(|(last, above)| (*last, above.to_vec()))?;
        let mut here = self;
        for name in above {
            let Self::Directory { entries, .. } = here else { return None };
            here = entries.get_mut(&name)?;
        }
        match here {
            Self::Directory { entries, .. } => Some((entries, last)),
            Self::Leaf { .. } => None,
        }
    }

    fn find(&mut self, path: &[u8]) -> Option<&mut Self> {
        if path == b"." {
            return Some(self);
        }
        let (entries, name) = self.parent_of(path)?;
        entries.get_mut(&name)
    }

    /// Applies one line.
    pub fn apply(&mut self, line: &Line, view: &mut impl View) {
        let path = &line.path[..];
        let now = resolve(view, path);
        match line.kind {
            LineKind::Created | LineKind::Modified | LineKind::Metadata => {
                let is_new = line.kind == LineKind::Created;
                if let Some(ino) = now {
                    self.take(path, ino, is_new, view);
                }
            }
            LineKind::Deleted => {
                if let Some((entries, name)) = self.parent_of(path) {
                    entries.remove(&name);
                }
            }
            LineKind::Renamed => {
                let from = line.from.as_deref().unwrap_or_default();
                let held = self.parent_of(from).and_then(|(entries, name)| entries.remove(&name));
                let is_it = |held: &Self| held.is_directory() == (line.object_type == ObjectType::Directory);
                // Nothing there, or something else that was read there after the rename.
                let copy = held.filter(is_it).or_else(|| Self::whole(view, now?));
                if let (Some(copy), Some((entries, name))) = (copy, self.parent_of(path)) {
                    entries.insert(name, copy);
                }
            }
            LineKind::Rescan => self.rescan(path, now, line.recursive, view),
        }
    }

    /// Data and attributes of one object; of a directory not what is in it.
    fn take(&mut self, path: &[u8], ino: Ino, is_new: bool, view: &mut impl View) {
        let Some((kind, data, mode)) = view.read(ino) else { return };
        if let Some(Self::Directory { mode: held, .. }) = self.find(path)
            && kind == Kind::Directory
            && (!is_new || path == b".")
        {
            *held = mode;
            return;
        }
        let Some((entries, name)) = self.parent_of(path) else { return };
        let copy = match kind {
            Kind::Directory if is_new => Self::Directory { mode, entries: BTreeMap::new() },
            // Told as changed and never taken: whole.
            Kind::Directory => match Self::whole(view, ino) {
                Some(copy) => copy,
                None => return,
            },
            kind => Self::Leaf { kind, data, mode },
        };
        entries.insert(name, copy);
    }

    fn rescan(&mut self, path: &[u8], now: Option<Ino>, recursive: bool, view: &mut impl View) {
        let Some(ino) = now else {
            if let Some((entries, name)) = self.parent_of(path) {
                entries.remove(&name);
            }
            return;
        };
        let is_directory = view.read(ino).is_some_and(|(kind, ..)| kind == Kind::Directory);
        match self.find(path) {
            Some(held) if held.is_directory() && is_directory => held.compare(ino, recursive, view),
            _ => {
                let copy = Self::whole(view, ino);
                if let (Some((entries, name)), Some(copy)) = (self.parent_of(path), copy) {
                    entries.insert(name, copy);
                }
            }
        }
    }

    fn compare(&mut self, ino: Ino, recursive: bool, view: &mut impl View) {
        let (Self::Directory { mode, entries }, Some((_, _, mode_now))) = (self, view.read(ino)) else {
            return;
        };
        *mode = mode_now;
        let listed = view.list(ino);
        entries.retain(|name, _| listed.iter().any(|(listed, _)| listed == name));
        for (name, child) in listed {
            let Some((kind, _, mode)) = view.read(child) else { continue };
            match entries.get_mut(&name) {
                Some(held) if held.is_directory() && kind == Kind::Directory => {
                    if recursive {
                        held.compare(child, true, view);
                    } else if let Self::Directory { mode: held, .. } = held {
                        *held = mode;
                    }
                }
                _ => {
                    if let Some(copy) = Self::whole(view, child) {
                        entries.insert(name, copy);
                    }
                }
            }
        }
    }

    /// Reads one object anew that nobody has told of: a consumer may read what it likes.
    pub fn read_more(&mut self, path: &[u8], view: &mut impl View) {
        if let Some(ino) = resolve(view, path) {
            self.take(path, ino, false, view);
        }
    }

    /// The first difference from another copy, for people.
    pub fn difference(&self, other: &Self, path: &str) -> Option<String> {
        match (self, other) {
            (
                Self::Directory { mode, entries },
                Self::Directory { mode: other_mode, entries: other_entries },
            ) => {
                if mode != other_mode {
                    return Some(format!("{path}/ has mode {mode}, the tree {other_mode}"));
                }
                for (name, copy) in entries {
                    let path = format!("{path}/{}", char::from(*name));
                    match other_entries.get(name) {
                        Some(other) => {
                            if let Some(found) = copy.difference(other, &path) {
                                return Some(found);
                            }
                        }
                        None => return Some(format!("{path} is not in the tree any more")),
                    }
                }
                let missing = other_entries.keys().find(|name| !entries.contains_key(name));
                missing.map(|name| format!("{path}/{} is missing", char::from(*name)))
            }
            (mine, theirs) if mine != theirs => Some(format!("{path} is {mine:?}, in the tree {theirs:?}")),
            _ => None,
        }
    }
}

/// The letters of a path: one per component.
fn names(path: &[u8]) -> Vec<Name> {
    path.split(|byte| *byte == b'/').map(|name| name.first().copied().unwrap_or_default()).collect()
}

fn resolve(view: &mut impl View, path: &[u8]) -> Option<Ino> {
    if path == b"." {
        return Some(ROOT);
    }
    names(path).into_iter().try_fold(ROOT, |directory, name| view.lookup(directory, name))
}
