//! The simulated tracked tree: what is in core, what is on disk, and what is on its way from one to the other.
//!
//! Every change is made in core at once and waits as a [`Change`] until it reaches the disk: by itself at any moment, or by
//! `fsync` or `syncfs`. A crash leaves what is on disk.
//!
//! What may happen in which order, and so what recovery is entitled to assume:
//!
//! - an operation on names is atomic: a rename never leaves both names or none;
//! - it does not reach the disk before an earlier one on the same name or the same object, and the removal of a directory not
//!   before what made it empty; moves of directories keep their order among themselves, so that the tree stays a tree;
//! - otherwise anything goes ([`Disorder::Any`], more than any journalling filesystem does, though a log tree of btrfs or a fast
//!   commit of ext4 comes near), or names and attributes keep their order ([`Disorder::Data`], as in a journal);
//! - data reach the disk block by block, before or after everything else, also before the file has a name;
//! - **birth times are true**: they are those of the clock at the making, and come with the object;
//! - **change times come with what they are of**: what has reached the disk has a change time as late as its change. (Only a
//!   catch-up needs that. What changed while the volume was tracked is found by intents.)
//!
//! Handles are never used again: the generation number of a real filesystem does that.

use std::collections::BTreeMap;

use crate::random::Random;

/// The number of an object.
pub type Ino = u32;

/// One letter.
pub type Name = u8;

/// The root.
pub const ROOT: Ino = 0;

/// Blocks of a file: what reaches the disk one by one.
pub const BLOCKS: usize = 2;

/// What an object is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    #[default]
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
}

/// An object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inode {
    /// It has been made, and is not gone.
    pub exists: bool,
    /// What it is.
    pub kind: Kind,
    /// Each block's version; zero: never written.
    pub data: [u32; BLOCKS],
    /// The version of its attributes.
    pub mode: u32,
    /// When it was made.
    pub born_ns: u64,
    /// When its data were changed.
    pub mtime_ns: u64,
    /// When anything of it was changed.
    pub ctime_ns: u64,
    /// Of a directory.
    pub entries: BTreeMap<Name, Ino>,
}

/// A tree at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    inodes: Vec<Inode>,
}

/// A change of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Names.
    Names {
        /// What is at a name now.
        set: Vec<(Ino, Name, Option<Ino>)>,
        /// An object that is new.
        made: Option<(Ino, Box<Inode>)>,
        /// Objects whose change time this is: those that are linked, moved or removed.
        touched: Vec<Ino>,
        /// A directory that is gone, and was empty.
        removed: Option<Ino>,
        /// A directory is moved.
        moves_directory: bool,
        /// When.
        time_ns: u64,
    },
    /// One block of a file. Without a time: a store into a page that is dirty already.
    Data {
        /// The file.
        ino: Ino,
        /// Which block.
        block: usize,
        /// Its version.
        version: u32,
        /// When.
        time_ns: Option<u64>,
    },
    /// Attributes.
    Meta {
        /// The object.
        ino: Ino,
        /// The version; `None`: only the times.
        mode: Option<u32>,
        /// The data's time as well.
        is_data: bool,
        /// When.
        time_ns: u64,
    },
}

impl State {
    /// A tree that holds a root.
    pub fn new(time_ns: u64) -> Self {
        let root = Inode {
            exists: true,
            kind: Kind::Directory,
            born_ns: time_ns,
            mtime_ns: time_ns,
            ctime_ns: time_ns,
            ..Inode::default()
        };
        Self { inodes: vec![root] }
    }

    /// An object, if it exists.
    pub fn inode(&self, ino: Ino) -> Option<&Inode> {
        self.inodes.get(ino as usize).filter(|inode| inode.exists)
    }

    /// What is at a name.
    pub fn lookup(&self, directory: Ino, name: Name) -> Option<Ino> {
        self.inode(directory)?.entries.get(&name).copied()
    }

    /// All directories that can be reached, in a fixed order.
    pub fn directories(&self) -> Vec<Ino> {
        let mut found = vec![ROOT];
        let mut next = 0;
        while next < found.len() {
            let entries = self.inode(found[next]).map(|inode| &inode.entries);
            let below = entries.into_iter().flatten().map(|(_, ino)| *ino);
            found.extend(
                below.filter(|ino| self.inode(*ino).is_some_and(|inode| inode.kind == Kind::Directory)),
            );
            next += 1;
        }
        found
    }

    /// All names of an object.
    pub fn names_of(&self, ino: Ino) -> Vec<(Ino, Name)> {
        let mut found = Vec::new();
        for (directory, inode) in (0..).zip(&self.inodes) {
            if inode.exists {
                found.extend(
                    inode
                        .entries
                        .iter()
                        .filter(|(_, at)| **at == ino)
                        .map(|(name, _): (&Name, _)| (directory, *name)),
                );
            }
        }
        found
    }

    /// Whether a directory is `ancestor` or below it.
    pub fn is_below(&self, directory: Ino, ancestor: Ino) -> bool {
        let mut at = directory;
        loop {
            if at == ancestor {
                return true;
            }
            match self.names_of(at).first() {
                Some((parent, _)) => at = *parent,
                None => return false,
            }
        }
    }

    /// How many numbers have been given away.
    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    /// Whether there is nothing, not even a root.
    pub fn is_empty(&self) -> bool {
        self.inodes.is_empty()
    }

    fn at(&mut self, ino: Ino) -> &mut Inode {
        let index = ino as usize;
        if self.inodes.len() <= index {
            self.inodes.resize_with(index + 1, Inode::default);
        }
        &mut self.inodes[index]
    }

    /// Times: in core that of the last change; on disk, where changes arrive in another order, the latest.
    fn apply(&mut self, change: &Change, is_core: bool) {
        let later = |time: &mut u64, new: u64| *time = if is_core { new } else { new.max(*time) };
        match change {
            Change::Names { set, made, touched, time_ns, .. } => {
                if let Some((ino, inode)) = made {
                    let data = self.at(*ino).data;
                    *self.at(*ino) = Inode::clone(inode);
                    // Blocks may have come before.
                    if data != [0; BLOCKS] {
                        self.at(*ino).data = data;
                    }
                }
                for (directory, name, at) in set {
                    let directory = self.at(*directory);
                    match at {
                        Some(at) => drop(directory.entries.insert(*name, *at)),
                        None => drop(directory.entries.remove(name)),
                    }
                    later(&mut directory.mtime_ns, *time_ns);
                    later(&mut directory.ctime_ns, *time_ns);
                }
                for ino in touched {
                    later(&mut self.at(*ino).ctime_ns, *time_ns);
                }
            }
            Change::Data { ino, block, version, time_ns } => {
                let inode = self.at(*ino);
                inode.data[*block] = *version;
                if let Some(time_ns) = time_ns {
                    later(&mut inode.mtime_ns, *time_ns);
                    later(&mut inode.ctime_ns, *time_ns);
                }
            }
            Change::Meta { ino, mode, is_data, time_ns } => {
                let inode = self.at(*ino);
                inode.mode = mode.unwrap_or(inode.mode);
                later(&mut inode.ctime_ns, *time_ns);
                if *is_data {
                    later(&mut inode.mtime_ns, *time_ns);
                }
            }
        }
    }

    /// Takes away what has no name.
    fn drop_nameless(&mut self) {
        let mut named = vec![false; self.inodes.len()];
        named[ROOT as usize] = true;
        for directory in self.directories() {
            for ino in self.inodes[directory as usize].entries.values() {
                if let Some(named) = named.get_mut(*ino as usize) {
                    *named = true;
                }
            }
        }
        for (inode, named) in self.inodes.iter_mut().zip(named) {
            if !named {
                *inode = Inode::default();
            }
        }
    }
}

impl Change {
    fn is_data(&self) -> bool {
        matches!(self, Self::Data { .. })
    }

    /// Whether `later` may not reach the disk before this one.
    fn holds_back(&self, later: &Self) -> bool {
        match (self, later) {
            (
                Self::Names { set, made, touched, moves_directory, .. },
                Self::Names {
                    set: later_set,
                    touched: later_touched,
                    moves_directory: later_moves,
                    removed,
                    ..
                },
            ) => {
                let objects = |set: &[(Ino, Name, Option<Ino>)], touched: &[Ino]| -> Vec<Ino> {
                    set.iter().filter_map(|(_, _, at)| *at).chain(touched.iter().copied()).collect()
                };
                let (mine, theirs) = (objects(set, touched), objects(later_set, later_touched));
                let same_name = set.iter().any(|(directory, name, _)| {
                    later_set.iter().any(|(other, other_name, _)| (directory, name) == (other, other_name))
                });
                let same_object = mine.iter().any(|ino| theirs.contains(ino));
                // What was done in a directory comes before its removal, its making before what is done in it.
                let in_it = set.iter().any(|(directory, _, _)| Some(*directory) == *removed);
                let made_for_it =
                    made.iter().any(|(ino, _)| later_set.iter().any(|(directory, _, _)| directory == ino));
                same_name || same_object || in_it || made_for_it || *moves_directory && *later_moves
            }
            (Self::Data { ino, block, .. }, Self::Data { ino: other, block: other_block, .. }) => {
                (ino, block) == (other, other_block)
            }
            (Self::Meta { ino, .. }, Self::Meta { ino: other, .. }) => ino == other,
            (Self::Names { made: Some((ino, _)), .. }, Self::Meta { ino: other, .. }) => ino == other,
            _ => false,
        }
    }
}

/// How much the filesystem may reorder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disorder {
    /// Everything that the module allows.
    Any,
    /// Data only: names and attributes keep their order.
    Data,
}

/// A tree with its page cache.
#[derive(Clone, Debug)]
pub struct Tree {
    core: State,
    disk: State,
    waiting: Vec<Change>,
    disorder: Disorder,
}

impl Tree {
    /// A tree of which everything is on disk.
    pub fn new(state: State, disorder: Disorder) -> Self {
        Self { core: state.clone(), disk: state, waiting: Vec::new(), disorder }
    }

    /// What programs see.
    pub fn core(&self) -> &State {
        &self.core
    }

    /// What would be left.
    pub fn disk(&self) -> &State {
        &self.disk
    }

    /// How much it may reorder.
    pub fn set_disorder(&mut self, disorder: Disorder) {
        self.disorder = disorder;
    }

    /// Makes a change.
    pub fn change(&mut self, change: Change) {
        self.core.apply(&change, true);
        self.waiting.push(change);
    }

    /// A number that no object has had.
    pub fn next_ino(&self) -> Ino {
        Ino::try_from(self.core.len().max(self.disk.len())).expect("few objects")
    }

    /// Whether a block has been stored to and has not reached the disk.
    pub fn is_dirty(&self, ino: Ino, block: usize) -> bool {
        self.waiting.iter().any(
            |change| matches!(change, Change::Data { ino: of, block: at, .. } if *of == ino && *at == block),
        )
    }

    fn is_ready(&self, index: usize) -> bool {
        let change = &self.waiting[index];
        let ordered = self.disorder == Disorder::Data && !change.is_data();
        !self.waiting[..index]
            .iter()
            .any(|earlier| earlier.holds_back(change) || ordered && !earlier.is_data())
    }

    fn flush(&mut self, index: usize) {
        let change = self.waiting.remove(index);
        self.disk.apply(&change, false);
    }

    /// Some changes reach the disk by themselves.
    pub fn write_back(&mut self, random: &mut Random, count: usize) {
        for _ in 0..count {
            let ready: Vec<usize> = (0..self.waiting.len()).filter(|index| self.is_ready(*index)).collect();
            if ready.is_empty() {
                return;
            }
            let index = ready[random.index(ready.len())];
            self.flush(index);
        }
    }

    /// `fsync` of an object: its changes, its names, and what these need.
    pub fn fsync(&mut self, ino: Ino) {
        let mut index = 0;
        let mut wanted: Vec<bool> = self
            .waiting
            .iter()
            .map(|change| match change {
                Change::Names { set, made, touched, .. } => {
                    made.as_ref().is_some_and(|(made, _)| *made == ino)
                        || touched.contains(&ino)
                        || set.iter().any(|(directory, _, at)| *directory == ino || *at == Some(ino))
                }
                Change::Data { ino: of, .. } | Change::Meta { ino: of, .. } => *of == ino,
            })
            .collect();
        let ordered = self.disorder == Disorder::Data;
        let comes_first = |first: &Change, second: &Change| {
            first.holds_back(second) || ordered && !first.is_data() && !second.is_data()
        };
        for later in (0..self.waiting.len()).rev() {
            let (before, [is_wanted, ..]) = wanted.split_at_mut(later) else { continue };
            if *is_wanted {
                for (wanted, earlier) in before.iter_mut().zip(&self.waiting) {
                    *wanted |= comes_first(earlier, &self.waiting[later]);
                }
            }
        }
        for is_wanted in wanted {
            if is_wanted {
                self.flush(index);
            } else {
                index += 1;
            }
        }
    }

    /// `syncfs`.
    pub fn sync(&mut self) {
        for change in std::mem::take(&mut self.waiting) {
            self.disk.apply(&change, false);
        }
    }

    /// The power fails. Some of what was on its way arrives.
    pub fn crash(&mut self, random: &mut Random) {
        let count = match random.below(4) {
            0 => 0,
            1 => self.waiting.len(),
            _ => random.index(self.waiting.len() + 1),
        };
        self.write_back(random, count);
        self.waiting.clear();
        self.disk.drop_nameless();
        self.core = self.disk.clone();
    }

    /// The system goes down cleanly, or the next one comes up: nothing is open any more.
    pub fn drop_nameless(&mut self) {
        self.core.drop_nameless();
    }
}
