//! The tracked tree: what the filesystem has in memory, what it has on disk, and what a consumer has copied of it.

/// An object, identified as a file handle does: never used again for another one.
pub(crate) type Id = u8;

/// The tracked directory.
pub(crate) const ROOT: Id = 0;

/// How many objects a scenario may have, the root included.
pub(crate) const OBJECTS: usize = 6;

/// A file name: one ASCII letter.
pub(crate) type Name = u8;

/// One directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) dir: Id,
    pub(crate) name: Name,
}

/// An object that has a name. (Hard links are left to `plan_model` in the tracker.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Node {
    pub(crate) is_dir: bool,
    /// Which write the data are of.
    pub(crate) content: u8,
    /// The birth time: the window of the stable horizon in which it was made.
    pub(crate) born: u8,
    pub(crate) place: Place,
}

/// A tree by objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Tree([Option<Node>; OBJECTS]);

/// A change of the filesystem, as it is in memory first and on disk some time later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Effect {
    Make(Id, Node),
    Data(Id, u8),
    Move { object: Id, to: Place, replaced: Option<Id> },
    Remove(Id),
}

impl Tree {
    pub(crate) fn get(&self, object: Id) -> Option<Node> {
        self.0[usize::from(object)]
    }

    pub(crate) fn set(&mut self, object: Id, node: Option<Node>) {
        self.0[usize::from(object)] = node;
    }

    pub(crate) fn is_dir(&self, object: Id) -> bool {
        object == ROOT || self.get(object).is_some_and(|node| node.is_dir)
    }

    /// What has this name.
    pub(crate) fn at(&self, place: Place) -> Option<Id> {
        self.objects().find(|(_, node)| node.place == place).map(|(id, _)| id)
    }

    pub(crate) fn objects(&self) -> impl Iterator<Item = (Id, Node)> + '_ {
        (0..).zip(&self.0).filter_map(|(id, node)| node.map(|node| (id, node)))
    }

    pub(crate) fn children(&self, dir: Id) -> impl Iterator<Item = (Id, Node)> + '_ {
        self.objects().filter(move |(_, node)| node.place.dir == dir)
    }

    fn is_below(&self, mut object: Id, ancestor: Id) -> bool {
        for _ in 0..OBJECTS {
            if object == ancestor {
                return true;
            }
            let Some(node) = self.get(object) else { return false };
            object = node.place.dir;
        }
        false
    }

    /// Whether a change makes sense here: at run time it always does; on disk after a crash only if what it builds on is there too.
    pub(crate) fn allows(&self, effect: &Effect) -> bool {
        let is_free = |place: Place| self.is_dir(place.dir) && self.at(place).is_none();
        match *effect {
            Effect::Make(object, node) => self.get(object).is_none() && is_free(node.place),
            Effect::Data(object, _) => self.get(object).is_some(),
            Effect::Remove(object) => self.get(object).is_some() && self.children(object).next().is_none(),
            Effect::Move { object, to, replaced } => {
                let occupant = self.at(to);
                let fits = match replaced {
                    None => occupant.is_none(),
                    Some(old) => {
                        occupant.is_none_or(|occupant| occupant == old)
                            && self.children(old).next().is_none()
                            && self.is_dir(old) == self.is_dir(object)
                    }
                };
                self.get(object).is_some() && self.is_dir(to.dir) && !self.is_below(to.dir, object) && fits
            }
        }
    }

    pub(crate) fn apply(&mut self, effect: &Effect) {
        match *effect {
            Effect::Make(object, node) => self.set(object, Some(node)),
            Effect::Data(object, content) => {
                if let Some(node) = &mut self.0[usize::from(object)] {
                    node.content = content;
                }
            }
            Effect::Remove(object) => self.set(object, None),
            Effect::Move { object, to, replaced } => {
                if let Some(old) = replaced {
                    self.set(old, None);
                }
                if let Some(node) = &mut self.0[usize::from(object)] {
                    node.place = to;
                }
            }
        }
    }

    /// The path of a directory; `None` if it is nowhere.
    pub(crate) fn path(&self, dir: Id) -> Option<Path> {
        if dir == ROOT {
            return Some(Path::ROOT);
        }
        let node = self.get(dir).filter(|node| node.is_dir)?;
        Some(self.path(node.place.dir)?.join(node.place.name))
    }

    pub(crate) fn path_at(&self, place: Place) -> Option<Path> {
        Some(self.path(place.dir)?.join(place.name))
    }

    /// The tree by names.
    pub(crate) fn listing(&self) -> Listing {
        let item = |node: Node| if node.is_dir { Item::Dir } else { Item::File(node.content) };
        let mut items: Vec<_> =
            self.objects().filter_map(|(_, node)| Some((self.path_at(node.place)?, item(node)))).collect();
        items.sort_unstable();
        Listing(items)
    }
}

const DEPTH: usize = 4;

/// A path: its names, then zeros.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Path([Name; DEPTH]);

impl Path {
    pub(crate) const ROOT: Self = Self([0; DEPTH]);

    fn len(self) -> usize {
        self.0.iter().take_while(|name| **name != 0).count()
    }

    pub(crate) fn join(self, name: Name) -> Self {
        let mut path = self;
        path.0[self.len()] = name;
        path
    }

    pub(crate) fn parent(self) -> Option<Self> {
        let mut path = self;
        path.0[self.len().checked_sub(1)?] = 0;
        Some(path)
    }

    fn starts_with(self, prefix: Self) -> bool {
        self.0.starts_with(&prefix.0[..prefix.len()])
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<String> =
            self.0[..self.len()].iter().map(|name| char::from(*name).to_string()).collect();
        f.write_str(if names.is_empty() { ".".to_owned() } else { names.join("/") }.as_str())
    }
}

impl std::fmt::Debug for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

/// What a listing has at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Item {
    Dir,
    File(u8),
}

/// A tree by names: what a consumer holds. Sorted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Listing(Vec<(Path, Item)>);

impl Listing {
    fn get(&self, path: Path) -> Option<Item> {
        if path == Path::ROOT {
            return Some(Item::Dir);
        }
        self.0.binary_search_by_key(&path, |(path, _)| *path).ok().map(|index| self.0[index].1)
    }

    fn remove(&mut self, path: Path) {
        self.0.retain(|(other, _)| !other.starts_with(path));
    }

    fn put(&mut self, path: Path, item: Item) {
        if let Some(parent) = path.parent().filter(|parent| self.get(*parent) != Some(Item::Dir)) {
            self.remove(parent);
            self.put(parent, Item::Dir);
        }
        match self.0.binary_search_by_key(&path, |(path, _)| *path) {
            Ok(index) => self.0[index].1 = item,
            Err(index) => self.0.insert(index, (path, item)),
        }
    }

    /// Takes what is at a path, with all that is below. Nothing there: leaves what it holds, a later batch will tell.
    fn take_whole(&mut self, path: Path, view: &Self) {
        if view.get(path).is_none() {
            return;
        }
        self.remove(path);
        for (path, item) in view.0.iter().filter(|(other, _)| other.starts_with(path)) {
            self.put(*path, *item);
        }
    }

    /// Does what a line says, as docs/guarantees.md asks of a consumer. `view` is the tree as a reader sees it now.
    pub(crate) fn follow(&mut self, line: &Line, view: &Self) {
        let Line { path, kind } = *line;
        let now = view.get(path);
        match (kind, now) {
            (LineKind::Deleted, _) => self.remove(path),
            (_, None) => {}
            (LineKind::Created, Some(Item::Dir)) => {
                self.remove(path);
                self.put(path, Item::Dir);
            }
            (LineKind::Modified, Some(Item::Dir)) => {
                if self.get(path) != Some(Item::Dir) {
                    self.put(path, Item::Dir);
                }
            }
            (LineKind::Created | LineKind::Modified, Some(file)) => {
                self.remove(path);
                self.put(path, file);
            }
            (LineKind::Whole, _) | (LineKind::Rescan, Some(Item::File(_))) => self.take_whole(path, view),
            (LineKind::Rescan, Some(Item::Dir)) if self.get(path) != Some(Item::Dir) => {
                self.take_whole(path, view);
            }
            (LineKind::Rescan, Some(Item::Dir)) => self.compare(path, view),
        }
    }

    /// `rescan`, not recursive: names, and the contents of files; a directory that is known by its name is left as it is.
    fn compare(&mut self, dir: Path, view: &Self) {
        let entries = |listing: &Self| -> Vec<(Path, Item)> {
            listing.0.iter().filter(|(path, _)| path.parent() == Some(dir)).copied().collect()
        };
        for (path, _) in entries(self) {
            if view.get(path).is_none() {
                self.remove(path);
            }
        }
        for (path, item) in entries(view) {
            if item != Item::Dir || self.get(path) != Some(Item::Dir) {
                self.take_whole(path, view);
            }
        }
    }
}

impl std::fmt::Display for Listing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let item = |(path, item): &(Path, Item)| match item {
            Item::Dir => format!("{path}/"),
            Item::File(content) => format!("{path}={content}"),
        };
        write!(f, "{{{}}}", self.0.iter().map(item).collect::<Vec<_>>().join(" "))
    }
}

/// One line of a change set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Line {
    pub(crate) kind: LineKind,
    pub(crate) path: Path,
}

/// In the order in which lines of each kind are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum LineKind {
    Created,
    Deleted,
    Modified,
    Rescan,
    /// `rescan`, recursive; also for what has moved, which the product tells as `renamed` and tells again where it must
    /// (plan.rs has a model of its own for that, `plan_model`).
    Whole,
}

impl std::fmt::Display for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            LineKind::Created => "created",
            LineKind::Deleted => "deleted",
            LineKind::Modified => "modified",
            LineKind::Rescan => "rescan",
            LineKind::Whole => "rescan*",
        };
        write!(f, "{kind} {}", self.path)
    }
}
