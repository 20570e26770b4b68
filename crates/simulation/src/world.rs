//! Everything of a run that is not the tracker: the tree, programs, the kernel's caches, consumers, the clock.

use std::collections::{BTreeMap, VecDeque};

use highwater_journal::Options;
use highwater_tracker::{Cursor, Durability, FileHandle, Line, OnFull, Place, Sample, WriterMode};

use crate::action::End;
use crate::random::Random;
use crate::replica::{Copy, View};
use crate::tree::{BLOCKS, Change, Disorder, Ino, Inode, Kind, Name, ROOT, State, Tree};

/// What does not change during a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Every change has a timestamp of its own.
    pub distinct: bool,
    /// What the filesystem may reorder.
    pub disorder: Disorder,
    /// Strict or relaxed.
    pub durability: Durability,
    /// What to do when the disk is full.
    pub on_full: OnFull,
    /// The journal keeps as little as it can.
    pub keeps_little: bool,
    /// The volume is new when the run begins, and making it counts.
    pub from_creation: bool,
}

impl Settings {
    /// Strict, with everything as generous to mistakes as it can be.
    pub const PLAIN: Self = Self {
        distinct: true,
        disorder: Disorder::Any,
        durability: Durability::Strict,
        on_full: OnFull::Overflow,
        keeps_little: false,
        from_creation: false,
    };

    pub(crate) fn journal(&self) -> Options {
        let mut options = Options::default();
        options.segment_bytes = 64 << 10;
        options.limit_bytes = 64 * options.segment_bytes;
        options.retain_bytes = if self.keeps_little { 0 } else { options.limit_bytes };
        options
    }
}

/// A program that has a file open for writing.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    pub(crate) id: u32,
    pub(crate) ino: Ino,
    pub(crate) mode: WriterMode,
    pub(crate) is_mapped: bool,
    /// Blocks that have been stored to through the mapping: while such a page is dirty, another store leaves no trace.
    pub(crate) stored: [bool; BLOCKS],
    /// It was there before the tracker.
    pub(crate) is_foreign: bool,
    /// A write that has changed the time and not yet the data: its number, block and time.
    pub(crate) in_flight: Option<(u32, usize, u64)>,
}

/// What the kernel may still show from before an operation.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Stale {
    Entry(Ino, Name, Option<Ino>),
    Data(Ino, usize, u32),
    Mode(Ino, u32),
}

/// An operation that has been done, as the kernel sees it: until the answer has been processed it keeps its locks and may show
/// what was before.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) operation: u32,
    pub(crate) is_sent: bool,
    pub(crate) locks: Vec<Ino>,
    pub(crate) stale: Vec<Stale>,
}

/// One consumer.
#[derive(Clone, Debug)]
pub(crate) struct Consumer {
    pub(crate) name: String,
    /// The tracker keeps its cursor; otherwise it does so itself.
    pub(crate) is_stored: bool,
    pub(crate) acked: Option<Cursor>,
    /// It is being acked.
    pub(crate) acking: Option<Cursor>,
    pub(crate) replica: Copy,
    /// As it was at the last ack.
    pub(crate) durable: Copy,
    pub(crate) cursor: Option<Cursor>,
    pub(crate) lines: VecDeque<Line>,
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) settings: Settings,
    pub(crate) tree: Tree,
    pub(crate) now_ns: u64,
    /// The latest time that the clock has shown.
    pub(crate) latest_ns: u64,
    pub(crate) random: Random,
    pub(crate) version: u32,
    pub(crate) boot: u32,
    /// The source's table of names.
    pub(crate) names: BTreeMap<Ino, Vec<(Ino, Name)>>,
    pub(crate) writers: Vec<Writer>,
    pub(crate) next_id: u32,
    pub(crate) nameless: Vec<Ino>,
    /// Made by operations that have not been answered.
    pub(crate) unborn: Vec<Ino>,
    pub(crate) answers: Vec<Answer>,
    pub(crate) consumers: Vec<Consumer>,
    /// The newest cursor that anybody has got in this life.
    pub(crate) newest: Option<Cursor>,
    /// The newest stable cursor, and the tree as it was on disk when it became stable.
    pub(crate) horizon: Option<(Cursor, Copy)>,
    /// The tree as it was on disk at the last `syncfs`.
    pub(crate) synced: Option<Copy>,
    /// A fresh answer is no failure: something has happened that justifies it.
    pub(crate) may_be_fresh: bool,
    /// A call may fail.
    pub(crate) may_fail: bool,
    /// Nothing could be changed unseen since the tracker ended.
    pub(crate) is_unbroken: bool,
    /// The tree has been changed while nobody tracked it, and what changed has not been looked for yet. What a consumer reads then
    /// counts for nothing: a power loss can take it back without a trace.
    pub(crate) is_unknown: bool,
    /// The tree is covered: what happens in it is seen.
    pub(crate) is_mounted: bool,
    pub(crate) source_fails: bool,
    pub(crate) crash_in: Option<(u8, End)>,
    pub(crate) is_down: bool,
}

const NS_PER_MS: u64 = 1_000_000;
/// A tick of the filesystem's clock, where timestamps are coarse.
const COARSE_NS: u64 = 4 * NS_PER_MS;

pub(crate) fn handle(ino: Ino) -> FileHandle {
    FileHandle::new(1, &ino.to_le_bytes()).expect("a short handle")
}

pub(crate) fn ino_of(handle: &FileHandle) -> Ino {
    handle.opaque().try_into().map_or(Ino::MAX, Ino::from_le_bytes)
}

pub(crate) fn place(directory: Ino, name: Name) -> Place {
    Place { parent: handle(directory), name: Box::new([name]) }
}

impl World {
    pub(crate) fn new(settings: Settings, seed: u64) -> Self {
        let began_ns = 1 << 60;
        let mut this = Self {
            settings,
            tree: Tree::new(State::new(began_ns), settings.disorder),
            now_ns: began_ns,
            latest_ns: began_ns,
            random: Random::derived(seed, 1),
            version: 0,
            boot: 0,
            names: BTreeMap::new(),
            writers: Vec::new(),
            next_id: 0,
            nameless: Vec::new(),
            unborn: Vec::new(),
            answers: Vec::new(),
            consumers: Vec::new(),
            newest: None,
            horizon: None,
            synced: None,
            may_be_fresh: false,
            may_fail: false,
            is_unbroken: false,
            is_unknown: false,
            is_mounted: false,
            source_fails: false,
            crash_in: None,
            is_down: false,
        };
        this.plant();
        this.now_ns += 1_000_000 * NS_PER_MS;
        for (name, is_stored) in [("stored", true), ("own", false), ("late", true)] {
            this.consumers.push(Consumer {
                name: name.to_owned(),
                is_stored,
                acked: None,
                acking: None,
                replica: Copy::nothing(),
                durable: Copy::nothing(),
                cursor: None,
                lines: VecDeque::new(),
            });
        }
        this
    }

    /// The tree that every run begins with.
    fn plant(&mut self) {
        let a = self.make(ROOT, b'a', Kind::Directory);
        let b = self.make(ROOT, b'b', Kind::Directory);
        let file = self.make(ROOT, b'c', Kind::File);
        let deep = self.make(a, b'a', Kind::Directory);
        self.make(a, b'b', Kind::File);
        self.make(deep, b'a', Kind::File);
        self.make(b, b'a', Kind::File);
        let time_ns = self.stamp();
        let link = vec![(b, b'b', Some(file))];
        let link = Change::Names {
            set: link,
            made: None,
            touched: vec![file],
            removed: None,
            moves_directory: false,
            time_ns,
        };
        self.tree.change(link);
        self.tree.sync();
        self.learn_names();
    }

    /// A new object with data.
    fn make(&mut self, directory: Ino, name: Name, kind: Kind) -> Ino {
        let time_ns = self.stamp();
        let ino = self.tree.next_ino();
        let change = self.making(ino, directory, name, kind, time_ns);
        self.tree.change(change);
        ino
    }

    pub(crate) fn making(
        &mut self,
        ino: Ino,
        directory: Ino,
        name: Name,
        kind: Kind,
        time_ns: u64,
    ) -> Change {
        let version = self.next_version();
        let data = if kind == Kind::Symlink { [version; BLOCKS] } else { [0; BLOCKS] };
        let inode = Inode {
            exists: true,
            kind,
            data,
            mode: version,
            born_ns: time_ns,
            mtime_ns: time_ns,
            ctime_ns: time_ns,
            entries: BTreeMap::new(),
        };
        Change::Names {
            set: vec![(directory, name, Some(ino))],
            made: Some((ino, Box::new(inode))),
            touched: Vec::new(),
            removed: None,
            moves_directory: false,
            time_ns,
        }
    }

    pub(crate) fn next_version(&mut self) -> u32 {
        self.version += 1;
        self.version
    }

    pub(crate) fn next_id(&mut self) -> u32 {
        self.next_id += 1;
        self.next_id
    }

    /// The clock, which runs while it is looked at.
    pub(crate) fn clock(&mut self) -> u64 {
        self.now_ns += 1000;
        self.latest_ns = self.latest_ns.max(self.now_ns);
        self.now_ns
    }

    /// The timestamp of a change.
    pub(crate) fn stamp(&mut self) -> u64 {
        let now_ns = self.clock();
        if self.settings.distinct { now_ns } else { now_ns / COARSE_NS * COARSE_NS }
    }

    /// The table of names after a start: everything has been looked up.
    pub(crate) fn learn_names(&mut self) {
        self.names.clear();
        let core = self.tree.core();
        for directory in core.directories() {
            for (name, ino) in core.inode(directory).into_iter().flat_map(|inode| &inode.entries) {
                self.names.entry(*ino).or_default().push((directory, *name));
            }
        }
    }

    pub(crate) fn add_name(&mut self, ino: Ino, directory: Ino, name: Name) {
        let names = self.names.entry(ino).or_default();
        if !names.contains(&(directory, name)) {
            names.push((directory, name));
        }
    }

    pub(crate) fn remove_name(&mut self, ino: Ino, directory: Ino, name: Name) {
        if let Some(names) = self.names.get_mut(&ino) {
            names.retain(|known| *known != (directory, name));
        }
    }

    pub(crate) fn links(&self, ino: Ino) -> u64 {
        self.tree.core().names_of(ino).len() as u64
    }

    pub(crate) fn sample(&self, ino: Ino) -> Option<Sample> {
        let inode = self.tree.core().inode(ino)?;
        let is_held = self.writers.iter().any(|writer| writer.ino == ino);
        let nlink = self.links(ino);
        if nlink == 0 && ino != ROOT && !is_held && !self.nameless.contains(&ino) {
            return None;
        }
        Some(Sample {
            mtime_ns: inode.mtime_ns.into(),
            ctime_ns: inode.ctime_ns.into(),
            size: inode.data.iter().filter(|version| **version != 0).count() as u64,
            nlink,
        })
    }

    /// Whether an operation that has not been answered keeps this object.
    pub(crate) fn is_locked(&self, locks: &[Ino]) -> bool {
        let held = self.answers.iter().filter(|answer| !answer.is_sent);
        held.flat_map(|answer| &answer.locks).any(|ino| locks.contains(ino))
    }

    /// Lets the kernel process the answers that have been sent, of those that keep one of these or of all.
    pub(crate) fn process_answers(&mut self, locks: Option<&[Ino]>) {
        self.answers.retain(|answer| {
            let is_wanted = locks.is_none_or(|locks| answer.locks.iter().any(|ino| locks.contains(ino)));
            !(answer.is_sent && is_wanted)
        });
    }

    /// Nothing old is shown of a block any more.
    pub(crate) fn forget_stale(&mut self, ino: Ino, block: usize) {
        for answer in &mut self.answers {
            answer
                .stale
                .retain(|stale| !matches!(stale, Stale::Data(of, at, _) if (*of, *at) == (ino, block)));
        }
    }

    /// The first half of a write past the source.
    pub(crate) fn begin_unseen(&mut self, writer: usize, block: usize) -> bool {
        let Writer { ino, in_flight, mode, .. } = self.writers[writer];
        // The inode's lock: one at a time, but direct ones.
        let is_busy = self.writers.iter().any(|other| other.ino == ino && other.in_flight.is_some());
        if in_flight.is_some() || is_busy && !mode.direct || self.tree.core().inode(ino).is_none() {
            return false;
        }
        let time_ns = self.stamp();
        let id = self.next_id();
        self.tree.change(Change::Meta { ino, mode: None, is_data: true, time_ns });
        self.writers[writer].in_flight = Some((id, block, time_ns));
        true
    }

    /// The second half.
    pub(crate) fn end_unseen(&mut self, writer: usize) {
        let ino = self.writers[writer].ino;
        if let Some((_, block, time_ns)) = self.writers[writer].in_flight.take() {
            let version = self.next_version();
            self.tree.change(Change::Data { ino, block, version, time_ns: Some(time_ns) });
            self.forget_stale(ino, block);
        }
    }

    /// A store into a mapping.
    pub(crate) fn store(&mut self, writer: usize, block: usize) {
        let Writer { ino, is_mapped, stored, .. } = self.writers[writer];
        if !is_mapped {
            return;
        }
        let is_traceless = stored[block] && self.tree.is_dirty(ino, block);
        self.writers[writer].stored[block] = true;
        let time_ns = if is_traceless { None } else { Some(self.stamp()) };
        let version = self.next_version();
        self.tree.change(Change::Data { ino, block, version, time_ns });
        self.forget_stale(ino, block);
    }

    /// The mount, as a reader sees it.
    pub(crate) fn view(&mut self) -> MountView<'_> {
        MountView { world: self }
    }

    /// The tree as it is, with nothing old.
    pub(crate) fn copy(&self) -> Copy {
        Copy::whole(&mut self.tree.core(), ROOT).expect("the root is there")
    }
}

/// See [`World::view`].
pub(crate) struct MountView<'w> {
    world: &'w mut World,
}

impl MountView<'_> {
    /// What may still be shown, if the kernel happens to show it.
    fn stale<T>(&mut self, what: impl Fn(&Stale) -> Option<T>) -> Option<T> {
        let found = self.world.answers.iter().flat_map(|answer| &answer.stale).find_map(what)?;
        self.world.random.once_in(2).then_some(found)
    }
}

impl View for MountView<'_> {
    fn lookup(&mut self, directory: Ino, name: Name) -> Option<Ino> {
        let old = self.stale(|stale| match stale {
            Stale::Entry(of, at, old) if (*of, *at) == (directory, name) => Some(*old),
            _ => None,
        });
        old.unwrap_or_else(|| self.world.tree.core().lookup(directory, name))
    }

    fn list(&mut self, directory: Ino) -> Vec<(Name, Ino)> {
        let mut names: Vec<Name> =
            (&mut self.world.tree.core()).list(directory).iter().map(|(name, _)| *name).collect();
        for stale in self.world.answers.iter().flat_map(|answer| &answer.stale) {
            if let Stale::Entry(of, name, Some(_)) = stale
                && *of == directory
                && !names.contains(name)
            {
                names.push(*name);
            }
        }
        names.into_iter().filter_map(|name| Some((name, self.lookup(directory, name)?))).collect()
    }

    fn read(&mut self, ino: Ino) -> Option<(Kind, [u32; BLOCKS], u32)> {
        let inode = self.world.tree.core().inode(ino)?;
        let (kind, mut data, mut mode) = (inode.kind, inode.data, inode.mode);
        for (block, version) in data.iter_mut().enumerate() {
            let old = self.stale(|stale| match stale {
                Stale::Data(of, at, old) if (*of, *at) == (ino, block) => Some(*old),
                _ => None,
            });
            *version = old.unwrap_or(*version);
        }
        let old = self.stale(|stale| match stale {
            Stale::Mode(of, old) if *of == ino => Some(*old),
            _ => None,
        });
        mode = old.unwrap_or(mode);
        Some((kind, data, mode))
    }
}
