//! Attacks the plan: random operations on a small tree, a consumer that reads it while they go on, and a replica that is kept
//! only from the lines. Whenever everything has been handed out, the replica must equal the tree.
//!
//! The operations come from proptest, or, with the feature `fuzz`, from the bytes of a fuzzer that is guided by coverage.
#![allow(clippy::unwrap_used, reason = "a model: what cannot be is a failed test")]

use std::collections::{BTreeMap, HashSet};

use crate::change::{Change, ObjectType, Place};
use crate::cursor::{CheckpointId, Cursor};
use crate::handle::FileHandle;
use crate::line::{Line, LineKind};
use crate::plan::{Reading, Told, plan};
use crate::record::Body;
use crate::window::Window;

// ---- the tracked tree, and the records that a source makes of it ----

#[derive(Clone, Debug)]
enum Node {
    File { content: u64, links: u64 },
    Directory { mode: u64, entries: BTreeMap<u8, u64>, parent: u64 },
}

#[derive(Clone, Debug)]
struct Tree {
    nodes: BTreeMap<u64, Node>,
    next: u64,
    clock: u64,
    records: Vec<(u64, u64, Body)>,
    period: u64,
    mentioned: HashSet<u64>,
    names: Names,
}

/// Which names of a file the source knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Names {
    /// All of them. A consumer need not know which ones are of one file.
    All,
    /// Of a change sometimes one of them. A consumer brings what it reads by one name to the others that it holds.
    Some,
}

const ROOT: u64 = 1;

/// The names that there are; entries are kept by the number of the name. One is the beginning of another, with a byte that is less
/// than a slash, so that paths do not sort as their bytes do; one has a newline, one is not UTF-8.
const NAMES: [&[u8]; 3] = [b"a", b"a!\n", b"\xffb"];

fn number_of(name: &[u8]) -> u8 {
    u8::try_from(NAMES.iter().position(|known| *known == name).expect("a name of the model")).unwrap()
}

fn handle(id: u64) -> FileHandle {
    FileHandle::new(1, &id.to_le_bytes()).unwrap()
}

impl Tree {
    fn new(names: Names) -> Self {
        let root = Node::Directory { mode: 0, entries: BTreeMap::new(), parent: ROOT };
        Self {
            nodes: BTreeMap::from([(ROOT, root)]),
            next: 2,
            clock: 0,
            records: Vec::new(),
            period: 1,
            mentioned: HashSet::new(),
            names,
        }
    }

    fn entries(&self, directory: u64) -> &BTreeMap<u8, u64> {
        match &self.nodes[&directory] {
            Node::Directory { entries, .. } => entries,
            Node::File { .. } => panic!("not a directory"),
        }
    }

    fn entries_mut(&mut self, directory: u64) -> &mut BTreeMap<u8, u64> {
        match self.nodes.get_mut(&directory) {
            Some(Node::Directory { entries, .. }) => entries,
            _ => panic!("not a directory"),
        }
    }

    fn object_type(&self, id: u64) -> ObjectType {
        match self.nodes[&id] {
            Node::File { .. } => ObjectType::File,
            Node::Directory { .. } => ObjectType::Directory,
        }
    }

    fn directories(&self) -> Vec<u64> {
        self.nodes
            .iter()
            .filter(|(_, node)| matches!(node, Node::Directory { .. }))
            .map(|(id, _)| *id)
            .collect()
    }

    fn is_below(&self, mut directory: u64, ancestor: u64) -> bool {
        loop {
            if directory == ancestor {
                return true;
            }
            match &self.nodes[&directory] {
                Node::Directory { parent, .. } if directory != ROOT => directory = *parent,
                _ => return false,
            }
        }
    }

    fn place(&self, directory: u64, name: u8) -> Place {
        Place { parent: handle(directory), name: NAMES[usize::from(name)].into() }
    }

    fn places(&self, object: u64) -> Vec<Place> {
        let in_directory = |directory: u64| {
            self.entries(directory)
                .iter()
                .filter(|(_, id)| **id == object)
                .map(move |(name, _)| self.place(directory, *name))
                .collect::<Vec<_>>()
        };
        self.directories().into_iter().flat_map(in_directory).collect()
    }

    fn push(&mut self, body: Body) {
        let usn = self.records.len() as u64 + 1;
        self.records.push((usn, self.period, body));
    }

    /// As the tracker does: a period says where a directory is when it first mentions it.
    fn mention(&mut self, directory: u64) {
        if directory == ROOT || !self.nodes.contains_key(&directory) || !self.mentioned.insert(directory) {
            return;
        }
        let Node::Directory { parent, .. } = self.nodes[&directory] else { return };
        let place = self.places(directory).remove(0);
        self.mention(parent);
        self.push(Body::Where { directory: handle(directory), place });
    }

    fn record(&mut self, directories: &[u64], change: Change, places: Vec<Place>) {
        directories.iter().for_each(|directory| self.mention(*directory));
        self.push(Body::Changed { change, places: Some(places) });
    }

    fn unlink(&mut self, directory: u64, name: u8) {
        let id = self.entries_mut(directory).remove(&name).unwrap();
        let gone = match self.nodes.get_mut(&id).unwrap() {
            Node::File { links, .. } => {
                *links -= 1;
                *links == 0
            }
            Node::Directory { .. } => true,
        };
        if gone {
            self.nodes.remove(&id);
        }
    }

    /// One operation, chosen by numbers; one that cannot be done is none.
    fn operate(&mut self, op: Operation) {
        let directories = self.directories();
        let pick = |number: u8| directories[usize::from(number) % directories.len()];
        let (directory, other) = (pick(op.directory), pick(op.other));
        let (name, to) = (op.name % 3, op.to % 3);
        let at = self.entries(directory).get(&name).copied();
        let at_to = self.entries(other).get(&to).copied();
        self.clock += 1;
        match (op.kind % 10, at) {
            (0 | 1, None) => {
                let id = self.next;
                self.next += 1;
                let is_file = op.kind.is_multiple_of(10);
                let node = if is_file {
                    Node::File { content: self.clock, links: 1 }
                } else {
                    Node::Directory { mode: self.clock, entries: BTreeMap::new(), parent: directory }
                };
                self.nodes.insert(id, node);
                self.entries_mut(directory).insert(name, id);
                if !is_file {
                    self.mentioned.insert(id);
                }
                let change = Change::Created {
                    object: handle(id),
                    object_type: self.object_type(id),
                    place: self.place(directory, name),
                };
                self.record(&[directory], change, vec![]);
            }
            (2, Some(id)) => {
                if matches!(&self.nodes[&id], Node::Directory { entries, .. } if !entries.is_empty()) {
                    return;
                }
                let change = Change::Removed {
                    object: handle(id),
                    object_type: self.object_type(id),
                    place: self.place(directory, name),
                };
                self.unlink(directory, name);
                self.record(&[directory], change, vec![]);
            }
            (3..=5, Some(id)) => {
                let is_directory = self.object_type(id) == ObjectType::Directory;
                if at_to == Some(id) || is_directory && self.is_below(other, id) {
                    return;
                }
                let replaced = at_to.map(|id| (handle(id), self.object_type(id)));
                if let Some(target) = at_to {
                    let empty =
                        matches!(&self.nodes[&target], Node::Directory { entries, .. } if entries.is_empty());
                    if is_directory != (self.object_type(target) == ObjectType::Directory)
                        || is_directory && !empty
                    {
                        return;
                    }
                    self.unlink(other, to);
                }
                self.entries_mut(directory).remove(&name);
                self.entries_mut(other).insert(to, id);
                let change = Change::Renamed {
                    object: handle(id),
                    object_type: self.object_type(id),
                    from: self.place(directory, name),
                    to: self.place(other, to),
                    replaced,
                };
                // As in the tracker, where directories are is asked before and written before the rename.
                if let Some(Node::Directory { parent, .. }) = self.nodes.get_mut(&id) {
                    *parent = other;
                }
                self.record(&[directory, other], change, vec![]);
            }
            (6, Some(id)) => {
                let Some(target) = at_to.filter(|target| *target != id) else { return };
                let loops = |below: u64, id: u64| {
                    self.object_type(id) == ObjectType::Directory && self.is_below(below, id)
                };
                if loops(other, id) || loops(directory, target) {
                    return;
                }
                self.entries_mut(directory).insert(name, target);
                self.entries_mut(other).insert(to, id);
                for (moved, parent_now) in [(id, other), (target, directory)] {
                    if let Some(Node::Directory { parent, .. }) = self.nodes.get_mut(&moved) {
                        *parent = parent_now;
                    }
                }
                let change = Change::Exchanged {
                    a: (handle(id), self.object_type(id)),
                    a_place: self.place(directory, name),
                    b: (handle(target), self.object_type(target)),
                    b_place: self.place(other, to),
                };
                self.record(&[directory, other], change, vec![]);
            }
            (7, Some(id)) if at_to.is_none() && self.object_type(id) == ObjectType::File => {
                if let Some(Node::File { links, .. }) = self.nodes.get_mut(&id) {
                    *links += 1;
                }
                self.entries_mut(other).insert(to, id);
                let change = Change::Linked {
                    object: handle(id),
                    object_type: ObjectType::File,
                    place: self.place(other, to),
                };
                self.record(&[other], change, vec![]);
            }
            (8 | 9, Some(id)) => {
                let mut places = self.places(id);
                if self.names == Names::Some && op.other.is_multiple_of(2) {
                    places = vec![places.swap_remove(usize::from(op.to) % places.len())];
                }
                let parents: Vec<u64> = self
                    .directories()
                    .into_iter()
                    .filter(|d| self.entries(*d).values().any(|entry| *entry == id))
                    .collect();
                let clock = self.clock;
                let object_type = self.object_type(id);
                let change = match self.nodes.get_mut(&id).unwrap() {
                    // One number stands for the data and the attributes.
                    Node::File { content, .. } => {
                        *content = clock;
                        match op.kind % 10 {
                            8 => Change::Modified { object: handle(id) },
                            _ => Change::Metadata { object: handle(id), object_type },
                        }
                    }
                    Node::Directory { mode, .. } => {
                        *mode = clock;
                        Change::Metadata { object: handle(id), object_type }
                    }
                };
                self.record(&parents, change, places);
            }
            _ => {}
        }
    }

    fn lookup(&self, path: &[u8]) -> Option<u64> {
        if path == b"." {
            return Some(ROOT);
        }
        path.split(|byte| *byte == b'/').try_fold(ROOT, |directory, name| match &self.nodes[&directory] {
            Node::Directory { entries, .. } => entries.get(&number_of(name)).copied(),
            Node::File { .. } => None,
        })
    }

    fn copy(&self, id: u64) -> Copy {
        match &self.nodes[&id] {
            Node::File { content, .. } => Copy::File(id, *content),
            Node::Directory { mode, entries, .. } => {
                Copy::Directory(*mode, entries.iter().map(|(name, id)| (*name, self.copy(*id))).collect())
            }
        }
    }
}

// ---- the consumer ----

#[derive(Clone, Debug, PartialEq, Eq)]
enum Copy {
    /// What file it is, and what is in it.
    File(u64, u64),
    Directory(u64, BTreeMap<u8, Copy>),
}

impl Copy {
    fn parent_of(&mut self, path: &[u8], make: bool) -> Option<(&mut BTreeMap<u8, Copy>, u8)> {
        let mut names: Vec<u8> = path.split(|byte| *byte == b'/').map(number_of).collect();
        let last = names.pop()?;
        let mut here = self;
        for name in names {
            let Copy::Directory(_, entries) = here else { return None };
            here = if make {
                entries.entry(name).or_insert_with(|| Copy::Directory(u64::MAX, BTreeMap::new()))
            } else {
                entries.get_mut(&name)?
            };
        }
        match here {
            Copy::Directory(_, entries) => Some((entries, last)),
            Copy::File(..) => None,
        }
    }

    /// The files in it, each once for each of its names.
    fn files(&mut self) -> Vec<(u64, &mut u64)> {
        match self {
            Self::File(id, content) => vec![(*id, content)],
            Self::Directory(_, entries) => entries.values_mut().flat_map(Self::files).collect(),
        }
    }

    fn apply(&mut self, line: &Line, tree: &Tree) {
        let Some(mut taken) = self.apply_alone(line, tree) else { return };
        if tree.names == Names::Some {
            let taken: BTreeMap<u64, u64> =
                taken.files().into_iter().map(|(id, content)| (id, *content)).collect();
            for (id, content) in self.files() {
                *content = taken.get(&id).copied().unwrap_or(*content);
            }
        }
    }

    /// Returns what it has taken from the tree.
    fn apply_alone(&mut self, line: &Line, tree: &Tree) -> Option<Copy> {
        let now = tree.lookup(&line.path).map(|id| tree.copy(id));
        if line.path == b"." {
            let Some(Copy::Directory(mode, entries)) = &now else { panic!("the root is gone") };
            match (line.kind, &mut *self) {
                (LineKind::Rescan, own) => {
                    *own = Copy::Directory(*mode, entries.clone());
                    return now;
                }
                (LineKind::Metadata, Copy::Directory(own, _)) => *own = *mode,
                _ => panic!("{line:?}"),
            }
            return None;
        }
        match line.kind {
            LineKind::Deleted => {
                if let Some((entries, name)) = self.parent_of(&line.path, false) {
                    entries.remove(&name);
                }
                None
            }
            LineKind::Renamed => {
                let from = self
                    .parent_of(line.from.as_ref().unwrap(), false)
                    .and_then(|(entries, name)| entries.remove(&name));
                let taken = now.filter(|_| from.is_none());
                let (entries, name) = self.parent_of(&line.path, true)?;
                entries.insert(name, from.or_else(|| taken.clone())?);
                taken
            }
            LineKind::Created | LineKind::Modified | LineKind::Metadata => {
                let copy = now?;
                let (entries, name) = self.parent_of(&line.path, true)?;
                match (copy, entries.get_mut(&name)) {
                    (Copy::Directory(mode, _), Some(Copy::Directory(own, _)))
                        if line.kind != LineKind::Created =>
                    {
                        *own = mode;
                        None
                    }
                    (Copy::Directory(mode, _), _) => {
                        entries.insert(name, Copy::Directory(mode, BTreeMap::new()));
                        None
                    }
                    (file, _) => {
                        entries.insert(name, file.clone());
                        Some(file)
                    }
                }
            }
            LineKind::Rescan => {
                assert!(line.recursive, "the model has no crash");
                let copy = now?;
                let (entries, name) = self.parent_of(&line.path, true)?;
                entries.insert(name, copy.clone());
                Some(copy)
            }
        }
    }
}

/// As in the cursor: the checkpoint, and since when the holder has been reading.
#[derive(Clone, Copy, Debug)]
struct Seen {
    checkpoint: u64,
    reading_since: u64,
}

fn answer(tree: &mut Tree, seen: Seen) -> (Vec<Line>, Seen) {
    let sealed = tree.period;
    tree.period += 1;
    tree.mentioned.clear();
    let mut window = Window::new(&handle(ROOT));
    for (usn, period, body) in &tree.records {
        if *period > seen.checkpoint {
            window.push(*usn, body);
        }
    }
    let journal = highwater_journal::JournalId([0; 16]);
    let (checkpoint, reading_since) = (CheckpointId(seen.checkpoint), CheckpointId(seen.reading_since));
    let cursor = Cursor { journal, checkpoint, reading_since };
    let reading = || -> Result<Reading, std::convert::Infallible> {
        if cursor.has_compared_everything() {
            return Ok(Reading::Everything);
        }
        if seen.reading_since == 0 {
            return Ok(Reading::Anything);
        }
        let mut earlier = Window::new(&handle(ROOT));
        let of_period = |from: u64| tree.records.iter().filter(move |(_, period, _)| *period > from);
        of_period(seen.reading_since)
            .filter(|(_, period, _)| *period <= seen.checkpoint)
            .for_each(|(usn, _, body)| earlier.push(*usn, body));
        let mut told = Told::new(earlier);
        of_period(seen.checkpoint).for_each(|(usn, _, body)| told.push(*usn, body));
        Ok(Reading::Told(Box::new(told)))
    };
    let may_be_elsewhere = |object: &FileHandle| Ok(tree.nodes.keys().any(|id| handle(*id) == *object));
    let plan = plan(&window, reading, may_be_elsewhere).unwrap();
    let reading_since = cursor.reading_since_next(CheckpointId(sealed), &plan.lines, plan.told_again).0;
    (plan.lines, Seen { checkpoint: sealed, reading_since })
}

fn brief(line: &Line) -> String {
    let text = |path: &[u8]| path.escape_ascii().to_string();
    let from = line.from.as_deref().map(|from| format!(" from {}", text(from)));
    format!("{:?} {:?} {}{}", line.kind, line.object_type, text(&line.path), from.unwrap_or_default())
}

fn brief_records(tree: &Tree) -> Vec<String> {
    let id = |handle: &FileHandle| handle.opaque()[0];
    let at = |place: &Place| format!("{}/{}", id(&place.parent), place.name.escape_ascii());
    let text = |body: &Body| match body {
        Body::Where { directory, place } => format!("where {} {}", id(directory), at(place)),
        Body::Changed { change, places } => match change {
            Change::Created { object, object_type, place } => {
                format!("create {object_type:?} {} {}", id(object), at(place))
            }
            Change::Linked { object, place, .. } => format!("link {} {}", id(object), at(place)),
            Change::Removed { object, place, .. } => format!("remove {} {}", id(object), at(place)),
            Change::Renamed { object, from, to, replaced, .. } => {
                format!(
                    "rename {} {} {} {:?}",
                    id(object),
                    at(from),
                    at(to),
                    replaced.as_ref().map(|r| id(&r.0))
                )
            }
            Change::Exchanged { a, a_place, b, b_place } => {
                format!("exchange {} {} with {} {}", id(&a.0), at(a_place), id(&b.0), at(b_place))
            }
            Change::Modified { object } | Change::Metadata { object, .. } => {
                format!("modify {} {:?}", id(object), places.iter().flatten().map(at).collect::<Vec<_>>())
            }
        },
        other => format!("{other:?}"),
    };
    tree.records.iter().map(|(usn, period, body)| format!("{usn} [{period}] {}", text(body))).collect()
}

#[derive(Clone, Copy, Debug)]
struct Operation {
    kind: u8,
    directory: u8,
    name: u8,
    other: u8,
    to: u8,
}

/// One round of a consumer.
#[derive(Clone, Debug)]
struct Round {
    /// Operations before the answer.
    before: Vec<Operation>,
    /// Operations between the lines that the consumer applies.
    during: Vec<Operation>,
    /// The consumer dies after this many lines, and asks again from the same cursor.
    dies_after: Option<usize>,
}

fn run(rounds: Vec<Round>, names: Names) -> Result<(), String> {
    let mut tree = Tree::new(names);
    let mut replica = tree.copy(ROOT);
    let mut seen = Seen { checkpoint: 0, reading_since: 0 };
    let mut history = Vec::new();
    for round in rounds {
        round.before.into_iter().for_each(|op| tree.operate(op));
        let mut during = round.during.into_iter();
        if let Some(dies_after) = round.dies_after {
            let (lines, _) = answer(&mut tree, seen);
            for line in lines.iter().take(dies_after) {
                during.by_ref().take(1).for_each(|op| tree.operate(op));
                replica.apply(line, &tree);
            }
            history.push(lines);
            seen.reading_since = 0;
        }
        let (lines, next) = answer(&mut tree, seen);
        seen = next;
        let per_line = during.len() / (lines.len() + 1) + 1;
        for line in &lines {
            during.by_ref().take(per_line).for_each(|op| tree.operate(op));
            replica.apply(line, &tree);
        }
        during.for_each(|op| tree.operate(op));
        history.push(lines);
    }
    let (lines, next) = answer(&mut tree, seen);
    lines.iter().for_each(|line| replica.apply(line, &tree));
    history.push(lines);
    let told: Vec<Vec<String>> = history.iter().map(|lines| lines.iter().map(brief).collect()).collect();
    let now = tree.copy(ROOT);
    if replica != now {
        let records = brief_records(&tree);
        return Err(format!("{replica:?}\nis not {now:?}\ntold: {told:#?}\nrecords: {records:#?}"));
    }
    let (lines, _) = answer(&mut tree, next);
    if lines.is_empty() { Ok(()) } else { Err(format!("nothing has happened, yet: {lines:?}")) }
}

/// Every name that existed at any time in the window is reported, as present or as deleted.
fn name_every_name(before: Vec<Operation>, during: Vec<Operation>) -> Result<(), String> {
    let mut tree = Tree::new(Names::All);
    before.into_iter().for_each(|op| tree.operate(op));
    let (_, seen) = answer(&mut tree, Seen { checkpoint: 0, reading_since: 0 });
    let first = tree.records.len();
    let entries_before = tree.entries(ROOT).clone();
    during.into_iter().for_each(|op| tree.operate(op));
    let (lines, _) = answer(&mut tree, seen);
    for (_, _, body) in &tree.records[first..] {
        if let Body::Changed { change: Change::Created { object_type: ObjectType::File, place, .. }, .. } = body
            && place.parent == handle(ROOT)
            // What is there again at the end as it was at the beginning needs no line.
            && (tree.entries(ROOT).get(&number_of(&place.name)) != entries_before.get(&number_of(&place.name))
                || !entries_before.contains_key(&number_of(&place.name)))
        {
            let is_told =
                |line: &Line| *line.path == *place.name || line.from.as_deref() == Some(&place.name);
            if !lines.iter().any(is_told) {
                return Err(format!("{place:?} is not in {lines:?}"));
            }
        }
    }
    Ok(())
}

/// Runs what a fuzzer's bytes say, five for an operation: rounds of a consumer, or one window in which every name has to be told.
///
/// # Errors
/// What went wrong, with the lines and the records.
#[cfg(feature = "fuzz")]
pub fn check(bytes: &[u8]) -> Result<(), String> {
    /// Answers get slow with more, and say nothing new.
    const ROUNDS_MAX: usize = 8;
    const OPERATIONS_MAX: usize = 20;

    fn operations<'a>(bytes: &mut impl Iterator<Item = &'a u8>, count: usize) -> Vec<Operation> {
        let mut next = || bytes.next().copied();
        let mut operation = || {
            let (kind, directory, name) = (next()?, next()?, next()?);
            Some(Operation { kind, directory, name, other: next()?, to: next()? })
        };
        std::iter::from_fn(&mut operation).take(count.min(OPERATIONS_MAX)).collect()
    }
    let mut bytes = bytes.iter();
    if bytes.next().is_some_and(|byte| byte.is_multiple_of(8)) {
        let before = operations(&mut bytes, OPERATIONS_MAX);
        return name_every_name(before, operations(&mut bytes, OPERATIONS_MAX));
    }
    let mut rounds = Vec::new();
    let names =
        if bytes.next().is_some_and(|byte| byte.is_multiple_of(2)) { Names::Some } else { Names::All };
    while let (Some(before), Some(during)) = (bytes.next(), bytes.next())
        && rounds.len() < ROUNDS_MAX
    {
        let dies_after = (during / 16).checked_sub(11).map(usize::from);
        rounds.push(Round {
            before: operations(&mut bytes, usize::from(before % 12)),
            during: operations(&mut bytes, usize::from(during % 16)),
            dies_after,
        });
    }
    run(rounds, names)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn operation() -> impl Strategy<Value = Operation> {
        any::<(u8, u8, u8, u8, u8)>().prop_map(|(kind, directory, name, other, to)| Operation {
            kind,
            directory,
            name,
            other,
            to,
        })
    }

    fn rounds() -> impl Strategy<Value = Vec<Round>> {
        let some = |most| prop::collection::vec(operation(), 0..most);
        let round = (some(12), some(12), prop::option::weighted(0.2, 0..10_usize));
        let round = round.prop_map(|(before, during, dies_after)| Round { before, during, dies_after });
        prop::collection::vec(round, 1..8)
    }

    /// One of two names is told and goes before it is read; then the consumer dies and asks again, so that nobody knows what it has read.
    #[test]
    fn a_file_whose_known_name_went_is_looked_for_when_anything_may_have_been_read() {
        let operation = |kind, name, to| Operation { kind, directory: 0, name, other: 0, to };
        let (create, link) = (operation(0, 0, 0), operation(7, 0, 1));
        let (modify_by_the_first_name, remove_it) = (operation(8, 0, 0), operation(2, 0, 0));
        let round = |before, during, dies_after| Round { before, during, dies_after };
        let told = |dies_after| {
            vec![
                round(vec![create, link], vec![], None),
                round(vec![modify_by_the_first_name], vec![remove_it], None),
                round(vec![], vec![], dies_after),
            ]
        };
        run(told(None), Names::Some).unwrap();
        run(told(Some(0)), Names::Some).unwrap();
    }

    proptest! {
        #![proptest_config(ProptestConfig { max_shrink_iters: 20_000, ..crate::fuzz::cases(20_000) })]

        /// G1: a consumer that reads while writers go on misses nothing.
        #[test]
        fn a_replica_kept_from_the_lines_equals_the_tree(rounds in rounds()) {
            run(rounds, Names::All).map_err(TestCaseError::fail)?;
        }

        /// Also if the source knows one name of a file that has several, and that one goes.
        #[test]
        fn a_file_with_names_that_nobody_knows_is_not_missed(rounds in rounds()) {
            run(rounds, Names::Some).map_err(TestCaseError::fail)?;
        }

        #[test]
        fn every_name_is_reported(
            before in prop::collection::vec(operation(), 0..20),
            during in prop::collection::vec(operation(), 0..20),
        ) {
            name_every_name(before, during).map_err(TestCaseError::fail)?;
        }
    }
}
