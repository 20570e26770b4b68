//! One operation of a program, in the steps in which the stacked source does it: found, section, intents, done, recorded, left.
//!
//! The kernel's locks are kept from the first step until the answer has been processed, as it does: of the directories whose
//! names change, and of the objects that are written, linked, moved or removed. An open takes none.

use highwater_tracker::{Change as Told, FileHandle, Intent, ObjectType, Section, SectionError, WriterMode};

use crate::action::{At, Op};
use crate::storage::SimStorage;
use crate::tree::{BLOCKS, Change, Ino, Kind, Name, ROOT};
use crate::world::{Answer, Stale, World, Writer, handle, place};

/// A name, found.
type Found = (Ino, Name);

/// What an operation is about, found before it begins.
#[derive(Clone, Debug)]
pub(crate) enum Plan {
    Make { at: Found, kind: Kind },
    Write { ino: Ino, block: usize },
    Truncate { ino: Ino },
    Chmod { ino: Ino, kind: Kind },
    Link { ino: Ino, to: Found },
    Remove { ino: Ino, at: Found, kind: Kind },
    Rename { ino: Ino, from: Found, to: Found, replaced: Option<Ino> },
    Exchange { a: Ino, a_at: Found, b: Ino, b_at: Found },
    Temporary,
    Open { ino: Ino, mode: WriterMode },
    Close { writer: Box<Writer> },
}

/// How far an operation has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Found,
    Entered,
    Intended,
    Done,
    Recorded,
}

/// An operation under way.
pub(crate) struct Operation {
    pub(crate) id: u32,
    pub(crate) plan: Plan,
    intents: Vec<OwnIntent>,
    pub(crate) locks: Vec<Ino>,
    pub(crate) progress: Progress,
    pub(crate) section: Option<Section<SimStorage>>,
    /// What was made.
    pub(crate) made: Option<Ino>,
}

#[derive(Clone, Debug)]
enum OwnIntent {
    Directory(FileHandle),
    Object(FileHandle),
    Move(FileHandle),
}

impl OwnIntent {
    fn lend(&self) -> Intent<'_> {
        match self {
            Self::Directory(handle) => Intent::Directory(handle),
            Self::Object(handle) => Intent::Object(handle),
            Self::Move(handle) => Intent::Move(handle),
        }
    }
}

fn type_of(kind: Kind) -> ObjectType {
    match kind {
        Kind::File => ObjectType::File,
        Kind::Directory => ObjectType::Directory,
        Kind::Symlink => ObjectType::Symlink,
    }
}

impl World {
    fn directory(&self, number: u8) -> Ino {
        let directories = self.tree.core().directories();
        directories[usize::from(number) % directories.len()]
    }

    fn found(&self, at: At) -> Found {
        (self.directory(at.directory), at.name)
    }

    fn kind(&self, ino: Ino) -> Kind {
        self.tree.core().inode(ino).map_or(Kind::File, |inode| inode.kind)
    }

    fn is_empty(&self, ino: Ino) -> bool {
        self.tree.core().inode(ino).is_none_or(|inode| inode.entries.is_empty())
    }

    pub(crate) fn path_of(&self, at: At) -> Vec<u8> {
        let (mut directory, name) = self.found(at);
        let mut path = vec![name];
        while directory != ROOT {
            let Some((parent, name)) = self.tree.core().names_of(directory).first().copied() else { break };
            path.extend([b'/', name]);
            directory = parent;
        }
        path.reverse();
        path
    }

    pub(crate) fn at(&self, at: At) -> Option<Ino> {
        let (directory, name) = self.found(at);
        self.tree.core().lookup(directory, name)
    }

    /// A name that exists and at which there is what is wanted: this one, or else another, so that few actions are none.
    fn existing(&self, at: At, is_wanted: impl Fn(Kind) -> bool) -> Option<(Found, Ino)> {
        let found = self.found(at);
        if let Some(ino) = self.tree.core().lookup(found.0, found.1)
            && is_wanted(self.kind(ino))
        {
            return Some((found, ino));
        }
        let core = self.tree.core();
        let mut all = Vec::new();
        for directory in core.directories() {
            for (name, ino) in core.inode(directory).into_iter().flat_map(|inode| &inode.entries) {
                if is_wanted(self.kind(*ino)) {
                    all.push(((directory, *name), *ino));
                }
            }
        }
        let number = usize::from(at.directory) * 4 + usize::from(at.name);
        (!all.is_empty()).then(|| all[number % all.len()])
    }

    /// The intent that covers a change of an object itself.
    fn target(&self, ino: Ino) -> OwnIntent {
        if self.kind(ino) == Kind::Directory {
            return OwnIntent::Directory(handle(ino));
        }
        match self.names.get(&ino).map_or(&[][..], Vec::as_slice) {
            [(directory, _)] if self.links(ino) == 1 => OwnIntent::Directory(handle(*directory)),
            _ => OwnIntent::Object(handle(ino)),
        }
    }

    /// Finds what an operation is about; `None` if it cannot be done.
    fn plan(&mut self, op: Op) -> Option<(Plan, Vec<OwnIntent>, Vec<Ino>)> {
        let directory = |ino| OwnIntent::Directory(handle(ino));
        Some(match op {
            Op::Create(at) | Op::Mkdir(at) | Op::Symlink(at) => {
                let at = self.found(at);
                if self.tree.core().lookup(at.0, at.1).is_some() {
                    return None;
                }
                let kind = match op {
                    Op::Create(_) => Kind::File,
                    Op::Mkdir(_) => Kind::Directory,
                    _ => Kind::Symlink,
                };
                (Plan::Make { at, kind }, vec![directory(at.0)], vec![at.0])
            }
            Op::Write(at, block) => {
                let ino = self.file(at)?;
                let block = usize::from(block) % BLOCKS;
                (Plan::Write { ino, block }, vec![], vec![ino])
            }
            Op::Truncate(at) => {
                let ino = self.file(at)?;
                (Plan::Truncate { ino }, vec![], vec![ino])
            }
            Op::Chmod(at) => {
                // Sometimes the root.
                let ino = if at == (At { directory: 0, name: b'd' }) {
                    ROOT
                } else {
                    self.existing(at, |kind| kind != Kind::Symlink)?.1
                };
                let kind = self.kind(ino);
                (Plan::Chmod { ino, kind }, vec![], vec![ino])
            }
            Op::Link(from, to) => {
                let (_, ino) = self.existing(from, |kind| kind != Kind::Directory)?;
                let to = self.found(to);
                if self.tree.core().lookup(to.0, to.1).is_some() {
                    return None;
                }
                let intents = vec![directory(to.0), OwnIntent::Object(handle(ino))];
                (Plan::Link { ino, to }, intents, vec![to.0, ino])
            }
            Op::LinkTemporary(to) => {
                let (ino, to) = (*self.nameless.first()?, self.found(to));
                if self.tree.core().lookup(to.0, to.1).is_some() {
                    return None;
                }
                let intents = vec![directory(to.0), OwnIntent::Object(handle(ino))];
                (Plan::Link { ino, to }, intents, vec![to.0, ino])
            }
            Op::Remove(at) => {
                let (at, ino) = self.existing(at, |_| true)?;
                let kind = self.kind(ino);
                if kind == Kind::Directory && !self.is_empty(ino) {
                    return None;
                }
                let mut intents = vec![directory(at.0)];
                if kind == Kind::Directory {
                    // After a crash it may be there again, and something else of its name may have been read.
                    intents.push(directory(ino));
                }
                (Plan::Remove { ino, at, kind }, intents, vec![at.0, ino])
            }
            Op::Rename(from, to) => {
                let (from, ino) = self.existing(from, |_| true)?;
                let to = self.found(to);
                let replaced = self.tree.core().lookup(to.0, to.1);
                let is_directory = self.kind(ino) == Kind::Directory;
                let is_possible = replaced.is_none_or(|over| {
                    over != ino
                        && is_directory == (self.kind(over) == Kind::Directory)
                        && (!is_directory || self.is_empty(over))
                });
                if !is_possible || is_directory && self.tree.core().is_below(to.0, ino) {
                    return None;
                }
                let mut intents = vec![directory(from.0), directory(to.0)];
                if is_directory {
                    intents.push(OwnIntent::Move(handle(ino)));
                    intents.extend(replaced.map(directory));
                }
                let locks = [from.0, to.0, ino].into_iter().chain(replaced).collect();
                (Plan::Rename { ino, from, to, replaced }, intents, locks)
            }
            Op::Exchange(a, b) => {
                let (a_at, a) = self.existing(a, |_| true)?;
                let (b_at, b) = self.existing(b, |_| true)?;
                let core = self.tree.core();
                let loops = |moved, into| self.kind(moved) == Kind::Directory && core.is_below(into, moved);
                if a == b || loops(a, b_at.0) || loops(b, a_at.0) {
                    return None;
                }
                let mut intents = vec![directory(a_at.0), directory(b_at.0)];
                for moved in [a, b] {
                    if self.kind(moved) == Kind::Directory {
                        intents.push(OwnIntent::Move(handle(moved)));
                    }
                }
                (Plan::Exchange { a, a_at, b, b_at }, intents, vec![a_at.0, b_at.0, a, b])
            }
            Op::Temporary(number) => {
                let at = self.directory(number);
                (Plan::Temporary, vec![directory(at)], vec![at])
            }
            Op::Open { at, is_direct } => {
                let ino = self.file(at)?;
                let mode = WriterMode { can_map: !is_direct, direct: is_direct, unseen: true };
                (Plan::Open { ino, mode }, vec![], vec![])
            }
            Op::Close(number) => {
                let open: Vec<usize> = (0..self.writers.len())
                    .filter(|index| {
                        let writer = &self.writers[*index];
                        !writer.is_mapped && writer.in_flight.is_none()
                    })
                    .collect();
                if open.is_empty() {
                    return None;
                }
                let writer = self.writers.remove(open[usize::from(number) % open.len()]);
                (Plan::Close { writer: Box::new(writer) }, vec![], vec![])
            }
        })
    }

    fn file(&self, at: At) -> Option<Ino> {
        self.existing(at, |kind| kind == Kind::File).map(|(_, ino)| ino)
    }

    /// An operation arrives. `busy`: the locks of those under way.
    pub(crate) fn arrive(&mut self, op: Op, busy: &[Ino]) -> Option<Operation> {
        let (plan, intents, locks) = self.plan(op)?;
        // A file is written under its own lock, also past the source.
        let is_written =
            |ino: &Ino| self.writers.iter().any(|writer| writer.ino == *ino && writer.in_flight.is_some());
        // What has been made and not been answered for nobody knows yet.
        let opened = if let Plan::Open { ino, .. } = plan { Some(ino) } else { None };
        if locks.iter().chain(&opened).any(|ino| self.unborn.contains(ino)) {
            return None;
        }
        if self.is_locked(&locks) || locks.iter().any(|ino| busy.contains(ino) || is_written(ino)) {
            return None;
        }
        self.process_answers(Some(&locks));
        let id = self.next_id();
        Some(Operation { id, plan, intents, locks, progress: Progress::Found, section: None, made: None })
    }

    /// Changes the tree, and notes what the kernel may still show.
    fn perform(&mut self, operation: &mut Operation) {
        let mut stale = Vec::new();
        let core = self.tree.core();
        let mut change_name = |at: Found| stale.push(Stale::Entry(at.0, at.1, core.lookup(at.0, at.1)));
        match operation.plan {
            Plan::Make { at, .. } => change_name(at),
            Plan::Link { to, .. } => change_name(to),
            Plan::Remove { at, .. } => change_name(at),
            Plan::Rename { from, to, .. } => [from, to].into_iter().for_each(change_name),
            Plan::Exchange { a_at, b_at, .. } => [a_at, b_at].into_iter().for_each(change_name),
            Plan::Write { ino, block } => {
                stale.extend(core.inode(ino).map(|inode| Stale::Data(ino, block, inode.data[block])));
            }
            Plan::Truncate { ino } => {
                let data = core.inode(ino).map_or([0; BLOCKS], |inode| inode.data);
                stale.extend((0..BLOCKS).map(|block| Stale::Data(ino, block, data[block])));
            }
            Plan::Chmod { ino, .. } => {
                stale.extend(core.inode(ino).map(|inode| Stale::Mode(ino, inode.mode)));
            }
            Plan::Temporary | Plan::Open { .. } | Plan::Close { .. } => {}
        }
        let is_directory = |ino: Ino| core.inode(ino).is_some_and(|inode| inode.kind == Kind::Directory);
        let names = |set, touched, removed, moves_directory, time_ns| Change::Names {
            set,
            made: None,
            touched,
            removed,
            moves_directory,
            time_ns,
        };
        match operation.plan {
            Plan::Make { at, kind } => {
                let ino = self.tree.next_ino();
                let time_ns = self.stamp();
                let change = self.making(ino, at.0, at.1, kind, time_ns);
                self.tree.change(change);
                operation.made = Some(ino);
            }
            Plan::Temporary => {
                let ino = self.tree.next_ino();
                let time_ns = self.stamp();
                let Change::Names { made, .. } = self.making(ino, 0, 0, Kind::File, time_ns) else { return };
                let set = Vec::new();
                self.tree.change(Change::Names {
                    set,
                    made,
                    touched: vec![ino],
                    removed: None,
                    moves_directory: false,
                    time_ns,
                });
                operation.made = Some(ino);
                self.nameless.push(ino);
            }
            Plan::Link { ino, to } => {
                let time_ns = self.stamp();
                self.tree.change(names(vec![(to.0, to.1, Some(ino))], vec![ino], None, false, time_ns));
                self.nameless.retain(|nameless| *nameless != ino);
            }
            Plan::Remove { ino, at, kind } => {
                let removed = (kind == Kind::Directory).then_some(ino);
                let time_ns = self.stamp();
                self.tree.change(names(vec![(at.0, at.1, None)], vec![ino], removed, false, time_ns));
            }
            Plan::Rename { ino, from, to, replaced } => {
                let removed = replaced.filter(|ino| is_directory(*ino));
                let moves = is_directory(ino);
                let touched = [ino].into_iter().chain(replaced).collect();
                let set = vec![(from.0, from.1, None), (to.0, to.1, Some(ino))];
                let time_ns = self.stamp();
                self.tree.change(names(set, touched, removed, moves, time_ns));
            }
            Plan::Exchange { a, a_at, b, b_at } => {
                let moves = is_directory(a) || is_directory(b);
                let set = vec![(a_at.0, a_at.1, Some(b)), (b_at.0, b_at.1, Some(a))];
                let time_ns = self.stamp();
                self.tree.change(names(set, vec![a, b], None, moves, time_ns));
            }
            Plan::Write { ino, block } => {
                let (version, time_ns) = (self.next_version(), Some(self.stamp()));
                self.tree.change(Change::Data { ino, block, version, time_ns });
            }
            Plan::Truncate { ino } => {
                let time_ns = Some(self.stamp());
                for block in 0..BLOCKS {
                    self.tree.change(Change::Data { ino, block, version: 0, time_ns });
                }
            }
            Plan::Chmod { ino, .. } => {
                let (mode, time_ns) = (Some(self.next_version()), self.stamp());
                self.tree.change(Change::Meta { ino, mode, is_data: false, time_ns });
            }
            Plan::Open { .. } | Plan::Close { .. } => {}
        }
        let locks = operation.locks.clone();
        self.unborn.extend(operation.made);
        self.answers.push(Answer { operation: operation.id, is_sent: false, locks, stale });
    }

    /// The same without a tracker.
    pub(crate) fn perform_untracked(&mut self, op: Op) {
        if matches!(op, Op::Temporary(_) | Op::LinkTemporary(_) | Op::Open { .. } | Op::Close(_)) {
            return;
        }
        if let Some(mut operation) = self.arrive(op, &[]) {
            self.perform(&mut operation);
            self.answers.clear();
            self.unborn.clear();
            self.is_unknown = true;
        }
    }

    /// The table of names after an operation.
    fn rename_in_table(&mut self, plan: &Plan, made: Option<Ino>) {
        match plan {
            Plan::Make { at, .. } => {
                if let Some(made) = made {
                    self.add_name(made, at.0, at.1);
                }
            }
            Plan::Link { ino, to } => self.add_name(*ino, to.0, to.1),
            Plan::Remove { ino, at, .. } => self.remove_name(*ino, at.0, at.1),
            Plan::Rename { ino, from, to, replaced } => {
                if let Some(replaced) = replaced {
                    self.remove_name(*replaced, to.0, to.1);
                }
                self.add_name(*ino, to.0, to.1);
                self.remove_name(*ino, from.0, from.1);
            }
            Plan::Exchange { a, a_at, b, b_at } => {
                self.add_name(*a, b_at.0, b_at.1);
                self.remove_name(*a, a_at.0, a_at.1);
                self.add_name(*b, a_at.0, a_at.1);
                self.remove_name(*b, b_at.0, b_at.1);
            }
            _ => {}
        }
    }
}

impl Operation {
    /// Makes sure of the intents. What covers an object is found out only here: in the section.
    pub(crate) fn intend(&mut self, world: &parking_lot::Mutex<World>) -> Result<(), SectionError> {
        match &self.plan {
            Plan::Write { ino, .. }
            | Plan::Truncate { ino }
            | Plan::Chmod { ino, .. }
            | Plan::Open { ino, .. } => self.intents = vec![world.lock().target(*ino)],
            _ => {}
        }
        let intents: Vec<Intent<'_>> = self.intents.iter().map(OwnIntent::lend).collect();
        self.section.as_ref().map_or(Ok(()), |section| section.intend(&intents))
    }

    pub(crate) fn perform(&mut self, world: &parking_lot::Mutex<World>) {
        world.lock().perform(self);
    }

    /// Tells what has happened.
    pub(crate) fn record(&mut self, world: &parking_lot::Mutex<World>) {
        let Some(section) = self.section.as_ref() else { return };
        let kind = |ino| type_of(world.lock().kind(ino));
        let at = |at: &Found| place(at.0, at.1);
        let told = match &self.plan {
            Plan::Make { at: to, kind } => {
                let Some(made) = self.made else { return };
                Told::Created { object: handle(made), object_type: type_of(*kind), place: at(to) }
            }
            Plan::Write { ino, .. } | Plan::Truncate { ino } => Told::Modified { object: handle(*ino) },
            Plan::Chmod { ino, kind } => Told::Metadata { object: handle(*ino), object_type: type_of(*kind) },
            Plan::Link { ino, to } => {
                Told::Linked { object: handle(*ino), object_type: kind(*ino), place: at(to) }
            }
            Plan::Remove { ino, at: from, kind } => {
                Told::Removed { object: handle(*ino), object_type: type_of(*kind), place: at(from) }
            }
            Plan::Rename { ino, from, to, replaced } => Told::Renamed {
                object: handle(*ino),
                object_type: kind(*ino),
                from: at(from),
                to: at(to),
                replaced: replaced.map(|ino| (handle(ino), kind(ino))),
            },
            Plan::Exchange { a, a_at, b, b_at } => Told::Exchanged {
                a: (handle(*a), kind(*a)),
                a_place: at(a_at),
                b: (handle(*b), kind(*b)),
                b_place: at(b_at),
            },
            Plan::Temporary => {
                let mode = WriterMode { can_map: true, direct: false, unseen: true };
                self.open(section, world, self.made.unwrap_or_default(), mode);
                return;
            }
            Plan::Open { ino, mode } => {
                self.open(section, world, *ino, *mode);
                return;
            }
            Plan::Close { writer } => {
                let object = handle(writer.ino);
                if writer.is_foreign {
                    section.record(Told::Modified { object: object.clone() }, || {});
                }
                section.closed(&object, || world.lock().sample(writer.ino));
                return;
            }
        };
        section.record(told, || world.lock().rename_in_table(&self.plan, self.made));
        if matches!(self.plan, Plan::Rename { .. } | Plan::Exchange { .. } | Plan::Link { .. }) {
            // Somebody may have found the object at its old name since a new window began: free unless one has.
            let intents: Vec<Intent<'_>> = self.intents.iter().map(OwnIntent::lend).collect();
            if section.intend(&intents).is_err() {
                section.lost_sight(&handle(ROOT));
            }
        }
    }

    fn open(
        &self,
        section: &Section<SimStorage>,
        world: &parking_lot::Mutex<World>,
        ino: Ino,
        mode: WriterMode,
    ) {
        let sample = world.lock().sample(ino);
        let Some(sample) = sample else { return };
        section.opened(&handle(ino), mode, sample);
        let mut world = world.lock();
        let id = world.next_id();
        world.writers.push(Writer {
            id,
            ino,
            mode,
            is_mapped: false,
            stored: [false; BLOCKS],
            is_foreign: false,
            in_flight: None,
        });
    }
}
