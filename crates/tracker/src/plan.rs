//! Puts a window into lines that are safe to apply from top to bottom.
//!
//! The plan keeps a small picture of the consumer's tree, the *sketch*: only the entries that the window mentions, first as
//! they were when the window began. Each line that is emitted is applied to the sketch too, so that a `from` and a `deleted`
//! always name a path that the consumer has at that line. In order:
//!
//! 1. **Gained names**, sorted by their final path, so that a directory is in place before what goes into it. A name that an
//!    object gained while it lost another one is a rename, any other is `created`. Where something else still sits at the
//!    name, it moves first, if it has somewhere to go (a chain: `b` to `c`, then `a` to `b`); if it is part of a cycle, or
//!    its way is blocked, it is given up: deleted, and created again at its place. A swap is therefore told as one rename
//!    and one `created`: a list that is applied line by line has no third name to keep the other one in.
//! 2. **Lost names**, deepest first. A name that came and went within the window is told too: the consumer may have read the
//!    directory in between.
//! 3. **Changed objects** at every name that is known, and directories to be compared.
//! 4. What has to be **told again** because it may have been out of reach when the consumer looked for it (below).
//!
//! # Told again
//!
//! A consumer reads the objects of one batch while writers go on. It is told that `d/f` was modified, but before it reads,
//! `d` is renamed to `e`: it finds nothing. The next batch says `e` renamed from `d`, and nothing of `f`, whose data the
//! consumer still does not have. So when a rename is told, what was told before and has been moved by it is told once more at
//! its new path, as `modified`; a directory as `rescan`, recursively. "Told before" is what
//! the cursor keeps as `reading_since`. A rename counts here even if it was undone within the window.
//!
//! What was told before may also have had a second name that nobody knows, and lose the one that was told: then its data can be read
//! only at the second one. So of everything that was changed and has no known name any more the source is asked whether it
//! may have another one. If so, nobody can say where, and everything is to be compared.
//!
//! A consumer that died after it had applied some lines, and asks again from the same cursor, may hold anything that the lines
//! lead to: `renamed b from a` would move what came to `a` later. So everything that was moved is told again then.

use std::collections::HashSet;

use crate::change::ObjectType;
use crate::handle::FileHandle;
use crate::line::{Line, LineKind};
use crate::mutation::{self, Mutation};
use crate::record::Body;
use crate::window::{EntryIndex, Object, ObjectIndex, Window};

/// What the holder of the cursor may have been reading since it got the answer before this one.
pub(crate) enum Reading {
    /// Anything: its answer told it to compare a directory.
    Anything,
    /// Everything: its answer was fresh, or told it to compare all there is. So it has read every name that has been there since.
    Everything,
    /// What was told to it before.
    Told(Box<Told>),
}

/// What earlier records told, and where all that is now.
pub(crate) struct Told {
    /// The earlier records and, after them, those of the new window.
    window: Window,
    /// Which of its objects the earlier records tell.
    objects: Vec<bool>,
    /// Which of these had a name.
    named: Vec<bool>,
}

impl Told {
    /// Takes the window of the earlier records. The records of the new window are to be pushed after that.
    pub(crate) fn new(window: Window) -> Self {
        let is_told = |object: &Object| {
            object.new
                || object.linked
                || object.moved
                || object.modified
                || object.metadata
                || object.recovered
        };
        let objects = window.objects.iter().map(is_told).collect();
        Self { objects, named: window.named(), window }
    }

    /// Adds one record of the new window.
    pub(crate) fn push(&mut self, usn: u64, body: &Body) {
        self.window.push(usn, body);
    }

    fn is_told(&self, object: ObjectIndex) -> bool {
        self.objects.get(object.index()).copied().unwrap_or(false)
    }
}

/// The lines of an answer.
pub(crate) struct Plan {
    pub(crate) lines: Vec<Line>,
    /// Something had to be told again: the next answer has to look as far back as this one did.
    pub(crate) told_again: bool,
}

/// Puts a window into lines. `reading` is asked only if the window takes a name from something. `may_be_elsewhere`: whether an object
/// none of whose names is known may have one.
pub(crate) fn plan<E>(
    window: &Window,
    reading: impl FnOnce() -> Result<Reading, E>,
    may_be_elsewhere: impl Fn(&FileHandle) -> Result<bool, E>,
) -> Result<Plan, E> {
    let mut planner = Planner::new(window);
    planner.gained();
    planner.lost();
    planner.changed();
    planner.rescans();
    let mut told_again = false;
    if window.objects.iter().any(|object| object.moved) && !mutation::is(Mutation::NotToldAgain) {
        let lines_before = planner.lines.len();
        match reading()? {
            Reading::Anything => {
                planner.tell_all_moved_again();
                planner.look_for_all_moved();
            }
            Reading::Everything => planner.tell_all_moved_again(),
            Reading::Told(told) => planner.tell_again(&told),
        }
        told_again = planner.lines.len() > lines_before;
    }
    for object in std::mem::take(&mut planner.out_of_reach) {
        if planner.unresolved {
            break;
        }
        planner.unresolved = may_be_elsewhere(&object)?;
    }
    if planner.unresolved {
        let usn = window.objects.iter().map(|object| object.usn).max().unwrap_or(0);
        planner.lines.push(line(b".".to_vec(), LineKind::Rescan, ObjectType::Directory, usn).recursive());
    }
    Ok(Plan { lines: planner.lines, told_again })
}

fn line(path: Vec<u8>, kind: LineKind, object_type: ObjectType, usn: u64) -> Line {
    Line { path, kind, object_type, from: None, recursive: false, recovered: false, nlink: None, usn }
}

impl Line {
    fn recursive(mut self) -> Self {
        self.recursive = true;
        self
    }

    fn recovered(mut self, recovered: bool) -> Self {
        self.recovered = recovered;
        self
    }
}

/// How a gained name is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gain {
    /// The object moves here from the other entry.
    Rename(EntryIndex),
    /// The object is taken from the tracked tree.
    Create,
    /// Told already.
    Done,
}

struct Planner<'w> {
    window: &'w Window,
    lines: Vec<Line>,
    /// What the sketch has at each entry.
    occupant: Vec<Option<ObjectIndex>>,
    /// Where the sketch has each directory.
    place: Vec<Option<EntryIndex>>,
    /// For each entry that an object gained: how it is told.
    gain: Vec<Option<Gain>>,
    /// The entries that were told as created.
    created: HashSet<EntryIndex>,
    /// The entries that were told as the `from` of a rename.
    left: HashSet<EntryIndex>,
    /// For each object that moves: where to.
    goal: Vec<Option<EntryIndex>>,
    /// Which objects have a name in the end that is known.
    named: Vec<bool>,
    /// What has changed, or was told as changed before, and has no name any more that is known.
    out_of_reach: Vec<FileHandle>,
    /// A path could not be found out: everything has to be compared.
    unresolved: bool,
}

impl<'w> Planner<'w> {
    fn new(window: &'w Window) -> Self {
        let mut planner = Self {
            window,
            lines: Vec::new(),
            occupant: window.entries.iter().map(|entry| entry.initial).collect(),
            place: window.objects.iter().map(|object| object.initial).collect(),
            gain: vec![None; window.entries.len()],
            created: HashSet::new(),
            left: HashSet::new(),
            goal: vec![None; window.objects.len()],
            named: window.named(),
            out_of_reach: Vec::new(),
            unresolved: false,
        };
        planner.pair();
        planner
    }

    /// Pairs names that an object lost with names that it gained.
    fn pair(&mut self) {
        let mut lost: Vec<Vec<EntryIndex>> = vec![Vec::new(); self.window.objects.len()];
        for index in self.window.entry_indices() {
            let entry = &self.window[index];
            if let Some(object) = entry.initial.filter(|_| entry.initial != entry.last) {
                lost[object.index()].push(index);
            }
        }
        for index in self.window.entry_indices() {
            let entry = &self.window[index];
            let Some(object) = entry.last.filter(|_| entry.initial != entry.last) else { continue };
            let gain = match lost[object.index()].pop() {
                Some(from) => {
                    self.goal[object.index()] = Some(index);
                    Gain::Rename(from)
                }
                None => Gain::Create,
            };
            self.gain[index.index()] = Some(gain);
        }
    }

    // ---- paths ----

    /// The path of an entry when its directory is where `place` says; `None` if a directory on the way is nowhere.
    fn path(&self, entry: EntryIndex, place: impl Fn(ObjectIndex) -> Option<EntryIndex>) -> Option<Vec<u8>> {
        path_of(self.window, entry, place)
    }

    fn final_path(&self, entry: EntryIndex) -> Option<Vec<u8>> {
        self.path(entry, |directory| self.window[directory].last)
    }

    fn sketch_path(&self, entry: EntryIndex) -> Option<Vec<u8>> {
        self.path(entry, |directory| self.place[directory.index()])
    }

    /// Whether the directory of an entry is where it will be in the end.
    fn is_in_place(&self, entry: EntryIndex) -> bool {
        let path = self.sketch_path(entry);
        path.is_some() && path == self.final_path(entry)
    }

    /// Whether `entry` is below the directory `ancestor` in the sketch.
    fn is_below(&self, entry: EntryIndex, ancestor: ObjectIndex) -> bool {
        ancestors(self.window, entry, |directory| self.place[directory.index()])
            .any(|directory| directory == ancestor)
    }

    // ---- 1: gained names ----

    fn gained(&mut self) {
        let window = self.window;
        let mut gained = Vec::new();
        for entry in window.entry_indices().filter(|entry| self.gain[entry.index()].is_some()) {
            match self.final_path(entry) {
                Some(path) => gained.push((path, entry)),
                None => self.unresolved = true,
            }
        }
        gained.sort_by(|a, b| by_component(&a.0, &b.0));
        for (_, entry) in gained {
            // The occupants that have to move out of each other's way, the last of them first.
            let mut chain = vec![entry];
            while let Some(next) = self.way_out(*chain.last().expect("never empty")) {
                if chain.contains(&next) {
                    break;
                }
                chain.push(next);
            }
            while let Some(entry) = chain.pop() {
                self.gain_one(entry);
            }
        }
    }

    /// Where what sits at this entry wants to move, if it can move now.
    fn way_out(&self, entry: EntryIndex) -> Option<EntryIndex> {
        let occupant =
            self.occupant[entry.index()].filter(|occupant| Some(*occupant) != self.window[entry].last)?;
        let goal = self.goal[occupant.index()]?;
        let pending = matches!(self.gain[goal.index()], Some(Gain::Rename(from)) if from == entry);
        (pending && self.is_in_place(goal)).then_some(goal)
    }

    fn gain_one(&mut self, entry: EntryIndex) {
        let window = self.window;
        let object = window[entry].last.expect("a gained name has an object");
        if self.gain[entry.index()] == Some(Gain::Done) {
            return;
        }
        let Some(path) = self.final_path(entry) else {
            self.unresolved = true;
            return;
        };
        if let Some(occupant) = self.occupant[entry.index()].filter(|occupant| *occupant != object) {
            self.clear(entry, occupant, &path, window[object].object_type);
        }
        let is_directory = window[object].object_type == ObjectType::Directory;
        let gain = self.gain[entry.index()].replace(Gain::Done);
        let from = match gain {
            Some(Gain::Rename(from)) if self.occupant[from.index()] == Some(object) => {
                self.sketch_path(from).map(|path| (from, path))
            }
            _ => None,
        };
        let is_rename = from.is_some();
        match from {
            Some((from, from_path)) => {
                self.occupant[from.index()] = None;
                self.left.insert(from);
                let mut renamed =
                    line(path.clone(), LineKind::Renamed, window[object].object_type, window[entry].usn);
                renamed.from = Some(from_path);
                self.lines.push(renamed);
            }
            None => {
                let created =
                    line(path.clone(), LineKind::Created, window[object].object_type, window[entry].usn);
                self.lines.push(created.recovered(window[object].recovered));
                self.created.insert(entry);
            }
        }
        self.occupant[entry.index()] = Some(object);
        if is_directory {
            if !is_rename && !window[object].new {
                // It has been given up where it was, and what it holds with it.
                self.give_up_below(object);
                self.lines
                    .push(line(path, LineKind::Rescan, ObjectType::Directory, window[entry].usn).recursive());
            }
            self.place[object.index()] = Some(entry);
        }
    }

    /// Makes an entry free for something else.
    fn clear(&mut self, entry: EntryIndex, occupant: ObjectIndex, path: &[u8], next_type: ObjectType) {
        let occupant_type = self.window[occupant].object_type;
        // Anything but a directory is replaced by whatever comes to its name.
        if occupant_type == ObjectType::Directory || next_type == ObjectType::Directory {
            self.lines.push(line(path.to_vec(), LineKind::Deleted, occupant_type, self.window[entry].usn));
        }
        if occupant_type == ObjectType::Directory {
            self.place[occupant.index()] = None;
        }
        self.occupant[entry.index()] = None;
    }

    /// What waits to be moved out of a directory cannot be any more: it will be taken from the tracked tree.
    fn give_up_below(&mut self, directory: ObjectIndex) {
        for goal in self.window.entry_indices() {
            if let Some(Gain::Rename(from)) = self.gain[goal.index()]
                && self.is_below(from, directory)
            {
                self.occupant[from.index()] = None;
                self.gain[goal.index()] = Some(Gain::Create);
            }
        }
    }

    // ---- 2: lost names ----

    fn lost(&mut self) {
        let window = self.window;
        let mut lost = Vec::new();
        for index in window.entry_indices() {
            let entry = &window[index];
            if entry.last.is_some() || self.left.contains(&index) || self.is_taken_over(index) {
                continue;
            }
            // A directory that is gone is looked for where it was last.
            let last_known =
                |directory: ObjectIndex| self.place[directory.index()].or(window[directory].last_known);
            match self.path(index, last_known) {
                Some(path) => {
                    let object_type = self.occupant[index.index()]
                        .map_or(entry.last_type, |object| window[object].object_type);
                    lost.push(line(path, LineKind::Deleted, object_type, entry.usn));
                }
                None => self.unresolved = true,
            }
        }
        lost.sort_by(|a, b| by_component(&b.path, &a.path));
        lost.dedup_by(|a, b| a.path == b.path);
        self.lines.append(&mut lost);
    }

    /// Whether the path of a lost name leads through a directory that is gone and whose name something else has now: its own
    /// line has said all there is to say, and the path means something else.
    fn is_taken_over(&self, entry: EntryIndex) -> bool {
        let window = self.window;
        let last_known =
            |directory: ObjectIndex| self.place[directory.index()].or(window[directory].last_known);
        ancestors(window, entry, last_known).any(|directory| {
            self.place[directory.index()].is_none()
                && window[directory]
                    .last_known
                    .is_some_and(|place| window[place].last.is_some_and(|now| now != directory))
        })
    }

    // ---- 3: changed objects, directories to compare ----

    fn changed(&mut self) {
        let window = self.window;
        let mut changed = Vec::new();
        for index in window.entry_indices() {
            let Some(object_index) = window[index].last else { continue };
            let object = &window[object_index];
            if self.created.contains(&index) || !(object.modified || object.metadata) {
                continue;
            }
            let kind = if object.modified { LineKind::Modified } else { LineKind::Metadata };
            match self.final_path(index) {
                Some(path) => {
                    changed.push(line(path, kind, object.object_type, object.usn).recovered(object.recovered))
                }
                None => self.out_of_reach.push(object.handle.clone()),
            }
        }
        for (object, named) in window.objects.iter().zip(&self.named) {
            let is_changed =
                object.modified || object.metadata && object.object_type != ObjectType::Directory;
            // Of what was made in the window every name is known.
            if is_changed && object.moved && !object.new && !named {
                self.out_of_reach.push(object.handle.clone());
            }
        }
        if let Some(root) = window.objects.first().filter(|root| root.metadata) {
            changed.push(
                line(b".".to_vec(), LineKind::Metadata, ObjectType::Directory, root.usn)
                    .recovered(root.recovered),
            );
        }
        changed.sort_by(|a, b| by_component(&a.path, &b.path));
        self.lines.append(&mut changed);
        if window.objects.iter().any(|object| object.names_unknown) {
            self.unresolved = true;
        }
    }

    fn rescans(&mut self) {
        let mut rescans = Vec::new();
        for rescan in &self.window.rescans {
            match self.directory_path(rescan.directory) {
                Ok(Some(path)) => {
                    let mut line =
                        line(path, LineKind::Rescan, ObjectType::Directory, rescan.usn).recovered(true);
                    line.recursive = rescan.recursive;
                    rescans.push(line);
                }
                // It is gone, and the line of its name says so.
                Ok(None) => {}
                Err(()) => self.unresolved = true,
            }
        }
        rescans.sort_by(|a, b| by_component(&a.path, &b.path).then(b.recursive.cmp(&a.recursive)));
        rescans.dedup_by(|a, b| a.path == b.path);
        self.lines.append(&mut rescans);
    }

    /// The final path of a directory; `Ok(None)` if it is gone.
    fn directory_path(&self, directory: ObjectIndex) -> Result<Option<Vec<u8>>, ()> {
        if directory == self.window.root {
            return Ok(Some(b".".to_vec()));
        }
        let object = &self.window[directory];
        match (object.last, object.last_known) {
            (Some(entry), _) => self.final_path(entry).map(Some).ok_or(()),
            (None, Some(_)) => Ok(None),
            (None, None) => Err(()),
        }
    }

    // ---- 4: told again ----

    /// The holder may have read whatever there is: every directory that was moved is compared, every file that was moved taken again.
    fn tell_all_moved_again(&mut self) {
        let window = self.window;
        let mut again = Vec::new();
        for index in window.entry_indices() {
            let Some(object) =
                window[index].last.filter(|object| window[*object].moved && !window[*object].new)
            else {
                continue;
            };
            match self.final_path(index) {
                Some(path) => again.push(told_again(path, window, object)),
                None => self.unresolved = true,
            }
        }
        self.append_again(again);
    }

    /// It may have been told before of what has no known name any more, and of what is in a directory that has gone.
    fn look_for_all_moved(&mut self) {
        let window = self.window;
        for (object, named) in window.objects.iter().zip(&self.named) {
            if object.moved && !object.new && !named {
                self.out_of_reach.push(object.handle.clone());
            }
        }
    }

    /// The holder may have read what it was told: of that, what this window has moved.
    fn tell_again(&mut self, told: &Told) {
        let window = &told.window;
        let moved_here = |object: ObjectIndex| {
            self.window.find(&window[object].handle).is_some_and(|object| self.window[object].moved)
        };
        let place = |directory: ObjectIndex| window[directory].last;
        let named_now = window.named();
        let mut again = Vec::new();
        for index in window.entry_indices() {
            let Some(object) = window[index].last else { continue };
            let is_moved = || moved_here(object) || ancestors(window, index, place).any(moved_here);
            if !told.is_told(object) || !is_moved() {
                continue;
            }
            match path_of(window, index, place) {
                Some(path) => again.push(told_again(path, window, object)),
                None => self.out_of_reach.push(window[object].handle.clone()),
            }
        }
        for (index, was_named) in told.named.iter().enumerate() {
            let object = &window.objects[index];
            // A directory was told for itself only, without what is in it.
            let may_have_others = !object.new && object.object_type != ObjectType::Directory;
            if told.objects[index] && may_have_others && *was_named && !named_now[index] {
                self.out_of_reach.push(object.handle.clone());
            }
        }
        self.moved_out_of_told(told, &mut again);
        self.append_again(again);
    }

    /// What was moved out of a directory that was told and has been moved itself: the consumer may not have had the directory,
    /// taken it whole from where it is now, and moved something else out of it.
    fn moved_out_of_told(&mut self, told: &Told, again: &mut Vec<Line>) {
        let window = self.window;
        let initial = |directory: ObjectIndex| window[directory].initial;
        let is_told = |directory: ObjectIndex| {
            window[directory].moved
                && told.window.find(&window[directory].handle).is_some_and(|object| told.is_told(object))
        };
        let moved_out: HashSet<ObjectIndex> = window
            .entry_indices()
            .filter(|entry| {
                window[*entry].initial != window[*entry].last
                    && ancestors(window, *entry, initial).any(is_told)
            })
            .filter_map(|entry| window[entry].initial)
            .collect();
        for index in window.entry_indices() {
            if let Some(object) = window[index].last.filter(|object| moved_out.contains(object)) {
                match self.final_path(index) {
                    Some(path) => again.push(told_again(path, window, object)),
                    None => self.unresolved = true,
                }
            }
        }
    }

    fn append_again(&mut self, mut again: Vec<Line>) {
        again.sort_by(|a, b| by_component(&a.path, &b.path));
        again.dedup_by(|a, b| a.path == b.path);
        let told: HashSet<&[u8]> = self
            .lines
            .iter()
            .filter(|line| {
                matches!(line.kind, LineKind::Created | LineKind::Modified)
                    && line.object_type != ObjectType::Directory
            })
            .map(|line| line.path.as_slice())
            .collect();
        again.retain(|line| !told.contains(line.path.as_slice()));
        self.lines.append(&mut again);
    }
}

/// The line that tells an object again. A consumer that looked for a directory may have found something else there, and what
/// it held below is lost: so a directory is told as a whole.
fn told_again(path: Vec<u8>, window: &Window, object: ObjectIndex) -> Line {
    let object = &window[object];
    match object.object_type {
        ObjectType::Directory => line(path, LineKind::Rescan, ObjectType::Directory, object.usn).recursive(),
        object_type => line(path, LineKind::Modified, object_type, object.usn),
    }
}

/// The directories above an entry, from the nearest to the root, where `place` says where each one is.
fn ancestors(
    window: &Window,
    entry: EntryIndex,
    place: impl Fn(ObjectIndex) -> Option<EntryIndex>,
) -> impl Iterator<Item = ObjectIndex> {
    // A sketch can hold a loop for a moment, while a directory waits to be moved below what was below it.
    let mut steps_left = window.objects.len() + 1;
    std::iter::successors(Some(window[entry].parent), move |directory| {
        steps_left = steps_left.checked_sub(1)?;
        Some(window[place(*directory)?].parent)
    })
}

/// The path of an entry; `None` if a directory on the way is nowhere.
fn path_of(
    window: &Window,
    entry: EntryIndex,
    place: impl Fn(ObjectIndex) -> Option<EntryIndex>,
) -> Option<Vec<u8>> {
    let mut names: Vec<&[u8]> = vec![&window[entry].name];
    let mut directory = window[entry].parent;
    while directory != window.root {
        if names.len() > window.objects.len() {
            return None;
        }
        let entry = place(directory)?;
        names.push(&window[entry].name);
        directory = window[entry].parent;
    }
    names.reverse();
    Some(names.join(&b'/'))
}

/// Compares two paths component by component, so that a directory comes right before what is in it.
fn by_component(a: &[u8], b: &[u8]) -> std::cmp::Ordering {
    a.split(|byte| *byte == b'/').cmp(b.split(|byte| *byte == b'/'))
}
