//! docs/protocol.md, "One operation": enter, intend, operate, record, answer, leave. At the grain at which real threads interleave.

use crate::journal::{Entry, Intent, Record};
use crate::mutation::Mutation;
use crate::scenario::Operation;
use crate::state::{Covered, Model, Open, Phase, Set, State, Step, WRITERS, Writer};
use crate::tree::{Effect, Id, Node, OBJECTS, ROOT, Tree};

/// Whether an operation can begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    Yes,
    /// It makes no sense now, or the kernel keeps a lock for another operation.
    No,
    /// The tracker keeps it out. Must never be: G3.
    KeptOut,
}

impl Model {
    pub(crate) fn may_begin(&self, state: &State, writer: usize, index: usize) -> Begin {
        let me = &state.writers[writer];
        let operation = self.scenario.writers[writer][index];
        let mem = &state.mem;
        let is_file = |object: Id| mem.get(object).is_some_and(|node| !node.is_dir);
        let has_open = |object: Id| me.opened & bit(object) != 0;
        let makes_sense = match operation {
            Operation::Write(object) => is_file(object),
            Operation::Open(object) => is_file(object) && !has_open(object),
            Operation::WritePast(object) => is_file(object) && has_open(object),
            Operation::Close(object) => has_open(object),
            Operation::Create(object, place) | Operation::Mkdir(object, place) => {
                mem.get(object).is_none() && mem.is_dir(place.dir) && mem.at(place).is_none()
            }
            Operation::Rename(object, to) => {
                let replaced = mem.at(to);
                replaced != Some(object) && mem.allows(&Effect::Move { object, to, replaced })
            }
            Operation::Remove(object) => mem.allows(&Effect::Remove(object)),
        };
        let locks = locks(mem, operation);
        let is_locked = state.writers.iter().any(|other| other.locks & locks != 0);
        if me.phase != Phase::Idle || index < usize::from(me.next) || !makes_sense || is_locked {
            return Begin::No;
        }
        let barrier_waits = state.checkpoint.step == Step::Barrier && state.checkpoint.waits_for != 0
            || state.horizon.waits_for != 0;
        if self.has(Mutation::BarrierBlocksOperations) && barrier_waits { Begin::KeptOut } else { Begin::Yes }
    }

    pub(crate) fn begin(&self, state: &mut State, writer: usize, index: usize) {
        let operation = self.scenario.writers[writer][index];
        let locks = locks(&state.mem, operation);
        let target = target_dir(state, operation);
        let me = &mut state.writers[writer];
        me.target_dir = target;
        me.next = u8::try_from(index).expect("programs are short");
        me.locks = locks;
        if let Operation::WritePast(object) = operation {
            // The kernel sets the timestamp before it copies the data.
            state.mtime[usize::from(object)] += 1;
            me.phase = Phase::PastHalf;
            return;
        }
        if self.has(Mutation::CoverageBeforeEnter) {
            me.phase = Phase::Outside;
            self.intend(state, writer);
        } else if self.has(Mutation::TargetBeforeEnter) {
            me.phase = Phase::Outside;
        } else {
            self.enter(state, writer);
        }
    }

    fn enter(&self, state: &mut State, writer: usize) {
        let period = state.period;
        let operation = self.operation(state, writer);
        let target = target_dir(state, operation);
        let me = &mut state.writers[writer];
        me.in_section = true;
        if self.has(Mutation::RecordInPeriodOfEntry) {
            me.period_of_entry = period;
        }
        match me.phase {
            Phase::Outside if self.has(Mutation::CoverageBeforeEnter) => me.phase = Phase::Intended,
            Phase::Outside => me.phase = Phase::Entered,
            _ => {
                me.phase = Phase::Entered;
                me.target_dir = target;
            }
        }
    }

    /// The next step of the operation that a writer is at. There always is one: nothing here waits for the tracker but for
    /// durability, which it brings about itself (G3).
    pub(crate) fn go_on(&self, state: &mut State, writer: usize) {
        let operation = self.operation(state, writer);
        let record_first = self.has(Mutation::RecordBeforeOperation);
        let compare_always = self.has(Mutation::CompareAtEveryClose);
        match state.writers[writer].phase {
            Phase::Idle => unreachable!("it has no operation"),
            Phase::Outside => self.enter(state, writer),
            Phase::Entered => {
                self.intend(state, writer);
                let awaits = self.awaits(state, writer) && !self.has(Mutation::IntentNotAwaited);
                state.writers[writer].phase = if awaits { Phase::Intended } else { Phase::Ready };
            }
            Phase::Intended => {
                if !self.has(Mutation::IntentNotAwaited) {
                    state.journal.sync_all();
                }
                state.writers[writer].phase = Phase::Ready;
            }
            Phase::Ready => {
                if record_first {
                    self.record(state, writer)
                } else {
                    operate(state, writer, operation, compare_always)
                }
                state.writers[writer].phase = Phase::Half;
            }
            Phase::Half => {
                if record_first {
                    operate(state, writer, operation, compare_always)
                } else {
                    self.record(state, writer)
                }
                state.writers[writer].phase = Phase::Recorded;
            }
            Phase::Recorded if self.has_to_renew(state, writer) => {
                self.intend(state, writer);
                state.journal.sync_all();
            }
            Phase::Recorded => leave(state, writer),
            Phase::Left => end(state, writer),
            Phase::PastHalf => {
                if let Operation::WritePast(object) = operation {
                    change(state, Effect::Data(object, version(writer, state.writers[writer].next)));
                }
                state.checkpoint.waits_for &= !(1 << writer);
                end(state, writer);
            }
        }
    }

    /// "What is durable when": the intents that an operation needs and that the window does not have are appended.
    fn intend(&self, state: &mut State, writer: usize) {
        state.writers[writer].window_of_intent = state.window;
        for intent in self.needs(state, writer) {
            let (object, is_move, covered) = match intent {
                Intent::Directory(dir) => (dir, false, &mut state.covered),
                Intent::Move(dir) => (dir, true, &mut state.moves_covered),
                Intent::Object(..) => unreachable!("objects have one name here"),
            };
            if covered[usize::from(object)].is_none() {
                covered[usize::from(object)] = Some(Covered { by: object, is_move });
                state.journal.append(Entry::Intent { intent, window: state.window });
            }
        }
    }

    /// Who asks what covers an object while it is renamed is told its old directory until the record is made. If it asks in a window
    /// that began after the rename's intents, nothing of that window covers the new one. So the rename does, before it is left.
    fn has_to_renew(&self, state: &State, writer: usize) -> bool {
        matches!(self.operation(state, writer), Operation::Rename(..))
            && state.writers[writer].window_of_intent != state.window
            && !self.has(Mutation::IntentsNotRenewed)
    }

    fn needs(&self, state: &State, writer: usize) -> Vec<Intent> {
        let names = &state.names;
        let mut needs = Vec::new();
        let mut victim = |object: Option<Id>| {
            let dir = object.filter(|object| names.is_dir(*object));
            if let Some(dir) = dir.filter(|_| !self.has(Mutation::NoVictimIntent)) {
                needs.push(Intent::Directory(dir));
            }
        };
        match self.operation(state, writer) {
            Operation::Write(_) | Operation::Open(_) => {
                needs.push(Intent::Directory(state.writers[writer].target_dir));
            }
            Operation::WritePast(_) | Operation::Close(_) => {}
            Operation::Create(_, place) | Operation::Mkdir(_, place) => {
                needs.push(Intent::Directory(place.dir));
            }
            Operation::Rename(object, to) => {
                victim(names.at(to));
                needs.push(Intent::Directory(dir_of(names, object)));
                needs.push(Intent::Directory(to.dir));
                if names.is_dir(object) && !self.has(Mutation::NoMoveIntent) {
                    needs.push(Intent::Move(object));
                }
            }
            Operation::Remove(object) => {
                victim(Some(object));
                needs.push(Intent::Directory(dir_of(names, object)));
            }
        }
        needs
    }

    /// Whether an intent that the operation needs is not durable yet.
    fn awaits(&self, state: &State, writer: usize) -> bool {
        let needs = self.needs(state, writer);
        needs.into_iter().any(|intent| {
            let covered = match intent {
                Intent::Directory(dir) | Intent::Object(dir, _) => state.covered[usize::from(dir)],
                Intent::Move(dir) => state.moves_covered[usize::from(dir)],
            };
            covered.is_some_and(|covered| state.journal.awaits(covered.by, covered.is_move))
        })
    }

    /// Under the record lock: the record, the table of names, what a new directory inherits.
    fn record(&self, state: &mut State, writer: usize) {
        let operation = self.operation(state, writer);
        state.writers[writer].in_tail = !self.has(Mutation::RecordBeforeOperation);
        let record = match operation {
            Operation::Write(object) => Record::Modified(object),
            Operation::Open(_) | Operation::WritePast(_) => return,
            Operation::Close(object) => {
                let has_changed = std::mem::take(&mut state.writers[writer].has_changed);
                if !has_changed || self.has(Mutation::CloseNotCompared) {
                    return;
                }
                Record::Modified(object)
            }
            Operation::Create(object, place) | Operation::Mkdir(object, place) => {
                let is_dir = matches!(operation, Operation::Mkdir(..));
                state.names.set(object, Some(Node { is_dir, content: 0, born: 0, place }));
                let is_same_window = state.writers[writer].window_of_intent == state.window;
                if is_dir && (is_same_window || self.has(Mutation::InheritAcrossWindows)) {
                    let covered = state.covered[usize::from(place.dir)];
                    state.covered[usize::from(object)] = covered;
                    state.moves_covered[usize::from(object)] = covered;
                }
                Record::Created(object, place)
            }
            Operation::Rename(object, to) => {
                let Some(from) = state.names.get(object).map(|node| node.place) else { return };
                let replaced = state.names.at(to);
                state.names.apply(&Effect::Move { object, to, replaced });
                Record::Moved(from, to)
            }
            Operation::Remove(object) => {
                let Some(place) = state.names.get(object).map(|node| node.place) else { return };
                state.names.set(object, None);
                state.covered[usize::from(object)] = None;
                state.moves_covered[usize::from(object)] = None;
                Record::Removed(place)
            }
        };
        let period = match state.writers[writer].period_of_entry {
            0 => state.period,
            entered => entered,
        };
        self.tell(state, record, period);
    }

    /// Appends a record, unless the period says the same already.
    pub(crate) fn tell(&self, state: &mut State, record: Record, period: u8) {
        let told = match record {
            Record::Modified(object) if state.names.get(object).is_none() => return,
            Record::Modified(object) | Record::Created(object, _) => bit(object),
            _ => 0,
        };
        if matches!(record, Record::Modified(_)) && state.told & told != 0 {
            return;
        }
        state.told |= told;
        state.is_changed = true;
        state.journal.append(Entry::Record { period, record });
    }
}

/// The operation itself, on the filesystem below. What it changes readers do not see before the kernel has processed the answer.
fn operate(state: &mut State, writer: usize, operation: Operation, compare_always: bool) {
    let version = version(writer, state.writers[writer].next);
    let born = state.window;
    let effect = match operation {
        Operation::Write(object) => Effect::Data(object, version),
        Operation::Create(object, place) => {
            Effect::Make(object, Node { is_dir: false, content: version, born, place })
        }
        Operation::Mkdir(object, place) => {
            Effect::Make(object, Node { is_dir: true, content: 0, born, place })
        }
        Operation::Rename(object, to) => Effect::Move { object, to, replaced: state.mem.at(to) },
        Operation::Remove(object) => Effect::Remove(object),
        Operation::Open(object) => {
            let last = state.mtime[usize::from(object)];
            let open = state.open[usize::from(object)].get_or_insert(Open { opens: 0, last });
            open.opens += 1;
            state.writers[writer].opened |= bit(object);
            return;
        }
        Operation::Close(object) => {
            close(state, writer, object, compare_always);
            return;
        }
        Operation::WritePast(_) => return,
    };
    let before = |object: Id| Some((object, state.mem.get(object)));
    state.writers[writer].stale = match effect {
        Effect::Make(object, _) | Effect::Data(object, _) | Effect::Remove(object) => [before(object), None],
        Effect::Move { object, replaced, .. } => [before(object), replaced.and_then(before)],
    };
    change(state, effect);
}

/// The last one to close a file is compared at its close. While others have it open, the next checkpoint will find it: only that
/// samples before it waits for their writes.
fn close(state: &mut State, writer: usize, object: Id, compare_always: bool) {
    let index = usize::from(object);
    state.writers[writer].opened &= !bit(object);
    let Some(open) = &mut state.open[index] else { return };
    open.opens -= 1;
    if open.opens == 0 || compare_always {
        state.writers[writer].has_changed = state.mtime[index] != open.last;
        open.last = state.mtime[index];
    }
    if open.opens == 0 {
        state.open[index] = None;
    }
}

fn change(state: &mut State, effect: Effect) {
    if state.mem.allows(&effect) {
        state.mem.apply(&effect);
        state.pending.push(effect);
    }
}

/// The answer is sent, the section left, and with it its tail.
fn leave(state: &mut State, writer: usize) {
    let me = &mut state.writers[writer];
    me.in_section = false;
    me.in_tail = false;
    let is_seen = me.stale == [None; 2] && me.locks == 0;
    me.phase = Phase::Left;
    state.checkpoint.waits_for &= !(1 << writer);
    state.horizon.waits_for &= !(1 << writer);
    if is_seen {
        end(state, writer);
    }
}

/// The kernel's thread has processed the answer: readers see the change, the locks are free, the caller goes on.
fn end(state: &mut State, writer: usize) {
    let me = &mut state.writers[writer];
    *me = Writer { next: me.next + 1, opened: me.opened, ..Writer::IDLE };
    state.checkpoint.waits_for &= !(1 << writer);
}

/// The inodes that the kernel keeps locked from before it asks until it has processed the answer.
fn locks(mem: &Tree, operation: Operation) -> Set {
    match operation {
        Operation::Write(object) | Operation::WritePast(object) => bit(object),
        Operation::Open(_) | Operation::Close(_) => 0,
        Operation::Create(_, place) | Operation::Mkdir(_, place) => bit(place.dir),
        Operation::Rename(object, to) => {
            let moved = if mem.is_dir(object) { 0 } else { bit(object) };
            bit(dir_of(mem, object)) | bit(to.dir) | moved | mem.at(to).map_or(0, bit)
        }
        Operation::Remove(object) => bit(dir_of(mem, object)) | bit(object),
    }
}

/// The directory whose intent covers the object of an operation.
fn target_dir(state: &State, operation: Operation) -> Id {
    match operation {
        Operation::Write(object) | Operation::Open(object) => dir_of(&state.names, object),
        _ => ROOT,
    }
}

fn dir_of(tree: &Tree, object: Id) -> Id {
    tree.get(object).map_or(ROOT, |node| node.place.dir)
}

pub(crate) fn bit(object: Id) -> Set {
    1 << object
}

/// Data that no other write writes.
fn version(writer: usize, operation: u8) -> u8 {
    u8::try_from(10 * (writer + 1)).expect("few writers") + operation
}

const _: () = assert!(OBJECTS <= 8 && WRITERS <= 7);
