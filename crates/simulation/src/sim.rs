//! One run: a world, a storage, a list of actions, and the real tracker between them.
//!
//! Everything is on one thread. Where the tracker waits or asks its source, the actions that the list has marked for a pause
//! happen; where a barrier waits and the list has nothing more, the oldest operation goes one step on.
//!
//! Invariant: no lock of the simulation is held while the tracker is called.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use highwater_tracker::{
    Answer, Config, Cursor, FreshReason, Intent, RequestError, Since, Source, Tracker, VolumeFacts,
    WriterMode,
};
use parking_lot::Mutex;

use crate::action::{Action, At, End, Op, Turn};
use crate::operation::{Operation, Progress};
use crate::random::Random;
use crate::replica::Copy;
use crate::source::Seam;
use crate::storage::{Fate, Medium, Operation as StorageOperation, SimStorage, Watcher};
use crate::tree::{BLOCKS, ROOT};
use crate::world::{World, handle};

/// The state at a moment in which everything could end.
#[derive(Clone, Debug)]
pub(crate) struct Moment {
    /// Its number within the run.
    pub(crate) number: u32,
    pub(crate) world: World,
    pub(crate) medium: Medium,
}

/// Which moments of a run are kept.
#[derive(Clone, Debug)]
pub(crate) enum Keep {
    None,
    All,
    Only(u32),
    /// One in so many.
    Some(Random, u64),
}

#[derive(Debug)]
struct Moments {
    keep: Keep,
    next: u32,
    kept: Vec<Moment>,
}

#[derive(Debug)]
struct Script {
    turns: Vec<Turn>,
    next: usize,
}

/// A run.
pub(crate) struct Sim {
    pub(crate) world: Mutex<World>,
    storage: Mutex<SimStorage>,
    tracker: Mutex<Option<Arc<Tracker<SimStorage>>>>,
    operations: Mutex<Vec<Operation>>,
    script: Mutex<Script>,
    moments: Mutex<Moments>,
    /// How the life has ended, if it has.
    ended: Mutex<Option<(End, World, Medium)>>,
    failure: Mutex<Option<String>>,
    trace: Mutex<Option<Vec<String>>>,
    state: Mutex<State>,
    this: Weak<Sim>,
    /// How many lives have ended.
    pub(crate) ends: AtomicU64,
}

/// What may be done at the moment.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// The tracker has started: a section can be entered.
    can_enter: bool,
    /// A call is under way that no other may be made in.
    is_busy: bool,
    /// The tracker has been opened in this life.
    lives: u32,
}

/// Nothing more can be done in this life.
struct Over;

impl Watcher for Sim {
    fn in_operation(&self, operation: StorageOperation) {
        self.note(|| format!("    storage: {operation:?}"));
        self.moment();
        let end = {
            let mut world = self.world.lock();
            match &mut world.crash_in {
                Some((0, end)) => Some(*end),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            }
        };
        if let Some(end) = end {
            self.end_life(end);
        }
    }
}

impl Sim {
    pub(crate) fn new(world: World, medium: Medium, turns: Vec<Turn>, keep: Keep, trace: bool) -> Arc<Self> {
        Arc::new_cyclic(|this| Self {
            world: Mutex::new(world),
            storage: Mutex::new(SimStorage::of(medium)),
            tracker: Mutex::new(None),
            operations: Mutex::new(Vec::new()),
            script: Mutex::new(Script { turns, next: 0 }),
            moments: Mutex::new(Moments { keep, next: 0, kept: Vec::new() }),
            ended: Mutex::new(None),
            failure: Mutex::new(None),
            trace: Mutex::new(trace.then(Vec::new)),
            state: Mutex::new(State::default()),
            this: Weak::clone(this),
            ends: AtomicU64::new(0),
        })
    }

    pub(crate) fn take_moments(&self) -> Vec<Moment> {
        std::mem::take(&mut self.moments.lock().kept)
    }

    pub(crate) fn take_trace(&self) -> Vec<String> {
        self.trace.lock().take().unwrap_or_default()
    }

    pub(crate) fn note(&self, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut *self.trace.lock() {
            trace.push(text());
        }
    }

    fn fail(&self, text: impl FnOnce() -> String) {
        let mut failure = self.failure.lock();
        if failure.is_none() {
            let text = text();
            self.note(|| format!("FAILED: {text}"));
            *failure = Some(text);
        }
    }

    fn is_down(&self) -> bool {
        self.world.lock().is_down
    }

    fn is_over(&self) -> bool {
        self.is_down() || self.failure.lock().is_some()
    }

    fn storage(&self) -> SimStorage {
        self.storage.lock().clone()
    }

    fn tracker(&self) -> Option<Arc<Tracker<SimStorage>>> {
        self.tracker.lock().clone()
    }

    // ---- moments ----

    /// The tree or a consumer has changed.
    pub(crate) fn changed(&self) {
        self.moment();
    }

    fn moment(&self) {
        let mut moments = self.moments.lock();
        let number = moments.next;
        moments.next += 1;
        let is_kept = match &mut moments.keep {
            Keep::None => false,
            Keep::All => true,
            Keep::Only(wanted) => *wanted == number,
            Keep::Some(random, once_in) => random.once_in(*once_in),
        };
        if is_kept {
            let world = self.world.lock().clone();
            if !world.is_down {
                moments.kept.push(Moment { number, world, medium: self.storage().medium() });
            }
        }
    }

    /// The life ends here.
    fn end_life(&self, end: End) {
        self.note(|| format!("    the life ends: {end:?}"));
        let mut world = self.world.lock();
        if world.is_down {
            return;
        }
        self.ends.fetch_add(1, Ordering::Relaxed);
        world.crash_in = None;
        let kept = world.clone();
        world.is_down = true;
        drop(world);
        let storage = self.storage();
        *self.ended.lock() = Some((end, kept, storage.medium()));
        storage.turn_off();
    }

    // ---- the list of actions ----

    /// Runs the list, and then lets everything come to its end and compares.
    pub(crate) fn run(&self) -> Result<(), String> {
        self.live();
        loop {
            let next = {
                let mut script = self.script.lock();
                let next = script.turns.get(script.next).copied();
                script.next += 1;
                next
            };
            let failure = self.failure.lock().take();
            if let Some(failure) = failure {
                self.clear();
                return Err(failure);
            }
            let Some(turn) = next else { break };
            self.act(turn.action);
            if self.is_down() {
                self.live_again();
            }
        }
        self.world.lock().crash_in = None;
        self.come_to_an_end();
        self.clear();
        self.failure.lock().take().map_or(Ok(()), Err)
    }

    /// Only what comes after the end of a life: recovery, and the comparison.
    pub(crate) fn recover(&self, end: End) -> Result<(), String> {
        self.note(|| format!("the end: {end:?}"));
        let (world, medium) = (self.world.lock().clone(), self.storage().medium());
        *self.ended.lock() = Some((end, world, medium));
        self.world.lock().is_down = true;
        self.live_again();
        loop {
            let next = {
                let mut script = self.script.lock();
                let next = script.turns.get(script.next).copied();
                script.next += 1;
                next
            };
            let Some(turn) = next else { break };
            self.act(turn.action);
            if self.is_down() {
                self.live_again();
            }
            if self.failure.lock().is_some() {
                break;
            }
        }
        self.world.lock().crash_in = None;
        self.come_to_an_end();
        self.clear();
        self.failure.lock().take().map_or(Ok(()), Err)
    }

    fn clear(&self) {
        self.storage().turn_off();
        self.operations.lock().clear();
        drop(self.tracker.lock().take());
    }

    /// What the list has for a pause of the tracker.
    pub(crate) fn pause(&self) {
        loop {
            if self.is_over() {
                return;
            }
            let action = {
                let mut script = self.script.lock();
                let Some(turn) = script.turns.get(script.next).copied().filter(|turn| turn.is_nested) else {
                    return;
                };
                let is_busy = self.state.lock().is_busy;
                let is_call = matches!(
                    turn.action,
                    Action::Checkpoint | Action::Horizon | Action::Ask(_) | Action::Stop | Action::Ack(_)
                );
                if is_call && is_busy || matches!(turn.action, Action::Untracked(_)) {
                    return;
                }
                script.next += 1;
                turn.action
            };
            if action == Action::Yield {
                return;
            }
            self.note(|| "    in a pause:".to_owned());
            self.act(action);
        }
    }

    /// A barrier waits.
    pub(crate) fn wait_for_sections(&self) {
        if self.is_over() {
            // Those who ran the operations are gone.
            self.operations.lock().clear();
            return;
        }
        let before = self.script.lock().next;
        self.pause();
        let is_busy = self.state.lock().is_busy;
        if is_busy && self.script.lock().next == before {
            self.step(0);
        }
    }

    fn act(&self, action: Action) {
        self.note(|| format!("{action:?}"));
        match action {
            Action::Do(op) => {
                if let Some(id) = self.start(op) {
                    self.finish(id);
                }
            }
            Action::Start(op) => drop(self.start(op)),
            Action::Step(number) => self.step(number),
            Action::Finish(number) => {
                if let Some(id) = self.operation(number) {
                    self.finish(id);
                }
            }
            Action::Unseen(..)
            | Action::UnseenBegin(..)
            | Action::UnseenEnd(_)
            | Action::Map(_)
            | Action::Store(..)
            | Action::Unmap(_) => {
                self.past_the_source(action);
                self.changed();
            }
            Action::Answer => {
                let mut world = self.world.lock();
                if let Some(index) = world.answers.iter().position(|answer| answer.is_sent) {
                    world.answers.remove(index);
                }
            }
            Action::WriteBack(count) => {
                let mut world = self.world.lock();
                let mut random = Random::new(world.random.next());
                world.tree.write_back(&mut random, count.into());
                drop(world);
                self.changed();
            }
            Action::Fsync(at) => {
                let mut world = self.world.lock();
                if let Some(ino) = world.at(at) {
                    world.tree.fsync(ino);
                }
                drop(world);
                self.changed();
            }
            Action::Tick(ms) => self.world.lock().now_ns += u64::from(ms) * 1_000_000,
            Action::SetClock(seconds) => {
                let mut world = self.world.lock();
                world.now_ns = world.now_ns.saturating_add_signed(i64::from(seconds) * 1_000_000_000);
            }
            Action::Checkpoint => self.call(|tracker| {
                let reached = tracker.barrier(None);
                self.note(|| format!("    reached {reached:?}"));
                reached.map(|cursor| self.reached(cursor))
            }),
            Action::Horizon => self.move_horizon(),
            Action::Ask(number) => self.ask(number),
            Action::Apply(number, lines) => self.apply(number, lines.into()),
            Action::Ack(number) => self.ack(number),
            Action::Die(number, keeps) => {
                let mut world = self.world.lock();
                let index = usize::from(number) % world.consumers.len();
                world.consumers[index].die(keeps);
            }
            Action::ReadMore(number, at) => self.read_more(number, at),
            Action::Yield => {}
            Action::Crash(end) => self.end_life(end),
            Action::CrashIn(operations, end) => self.world.lock().crash_in = Some((operations, end)),
            Action::Stop => self.stop(),
            Action::Untracked(_) => {}
            Action::Full(is_full) => {
                self.expect_failures();
                self.storage().set_full(is_full);
            }
            Action::FailIn(operations) => {
                self.expect_failures();
                self.storage().fail_in(operations.into());
            }
            Action::Broken => {
                self.expect_failures();
                self.storage().set_broken(true);
            }
            Action::SourceFails => {
                let mut world = self.world.lock();
                world.may_fail = true;
                world.may_be_fresh = true;
                world.source_fails = true;
            }
        }
    }

    fn expect_failures(&self) {
        let mut world = self.world.lock();
        world.may_fail = true;
        world.may_be_fresh = true;
    }

    fn past_the_source(&self, action: Action) {
        let mut world = self.world.lock();
        if world.writers.is_empty() {
            return;
        }
        let count = world.writers.len();
        let of = |number: u8| usize::from(number) % count;
        let block = |block: u8| usize::from(block) % BLOCKS;
        match action {
            Action::Unseen(number, at) if world.begin_unseen(of(number), block(at)) => {
                world.end_unseen(of(number));
            }
            Action::UnseenBegin(number, at) => drop(world.begin_unseen(of(number), block(at))),
            Action::UnseenEnd(number) => world.end_unseen(of(number)),
            Action::Map(number) => {
                let writer = &mut world.writers[of(number)];
                writer.is_mapped |= writer.mode.can_map;
            }
            Action::Store(number, at) => world.store(of(number), block(at)),
            Action::Unmap(number) => {
                let writer = &mut world.writers[of(number)];
                writer.is_mapped = false;
                writer.stored = [false; BLOCKS];
            }
            _ => {}
        }
    }

    // ---- operations ----

    fn operation(&self, number: u8) -> Option<u32> {
        let operations = self.operations.lock();
        let index = usize::from(number) % operations.len().max(1);
        operations.get(index).map(|operation| operation.id)
    }

    fn start(&self, op: Op) -> Option<u32> {
        if !self.state.lock().can_enter || self.is_over() {
            return None;
        }
        let mut operations = self.operations.lock();
        let busy: Vec<_> = operations.iter().flat_map(|operation| operation.locks.clone()).collect();
        let operation = self.world.lock().arrive(op, &busy)?;
        self.note(|| format!("    operation {} {:?}", operation.id, operation.plan));
        let id = operation.id;
        operations.push(operation);
        Some(id)
    }

    fn step(&self, number: u8) {
        if let Some(id) = self.operation(number) {
            self.step_of(id);
        }
    }

    fn finish(&self, id: u32) {
        while !self.is_over() && self.step_of(id) {}
    }

    /// One step of an operation. False if there is none left.
    fn step_of(&self, id: u32) -> bool {
        let mut operation = {
            let mut operations = self.operations.lock();
            let Some(index) = operations.iter().position(|operation| operation.id == id) else {
                return false;
            };
            operations.remove(index)
        };
        self.note(|| format!("    step of {id} after {:?}", operation.progress));
        let goes_on = self.go_on(&mut operation);
        if goes_on && !self.is_down() {
            let mut operations = self.operations.lock();
            let index = operations.iter().position(|other| other.id > id).unwrap_or(operations.len());
            operations.insert(index, operation);
        } else {
            drop(operation);
            self.changed();
        }
        goes_on
    }

    fn go_on(&self, operation: &mut Operation) -> bool {
        match operation.progress {
            Progress::Found => {
                let Some(tracker) = self.tracker() else { return false };
                operation.section = Some(tracker.section());
                operation.progress = Progress::Entered;
            }
            Progress::Entered => {
                if let Err(error) = operation.intend(&self.world) {
                    if !self.is_down() && !self.world.lock().may_fail {
                        self.fail(|| format!("an intent failed: {error}"));
                    }
                    self.note(|| format!("    refused: {error}"));
                    return false;
                }
                operation.progress = Progress::Intended;
            }
            Progress::Intended => {
                if self.is_down() {
                    return false;
                }
                operation.perform(&self.world);
                operation.progress = Progress::Done;
                self.changed();
            }
            Progress::Done => {
                operation.record(&self.world);
                operation.progress = Progress::Recorded;
            }
            Progress::Recorded => {
                operation.section = None;
                let mut world = self.world.lock();
                let answer = world.answers.iter_mut().find(|answer| answer.operation == operation.id);
                if let Some(answer) = answer {
                    answer.is_sent = true;
                }
                world.unborn.retain(|ino| Some(*ino) != operation.made);
                return false;
            }
        }
        true
    }

    // ---- calls ----

    /// A call in which others wait, and after which what was in flight before has to have ended.
    fn call(&self, call: impl FnOnce(&Tracker<SimStorage>) -> Result<(), RequestError>) {
        let Some(tracker) = self.tracker().filter(|_| !self.is_over() && self.state.lock().can_enter) else {
            return;
        };
        if std::mem::replace(&mut self.state.lock().is_busy, true) {
            return;
        }
        let before = self.in_flight();
        let outcome = call(&tracker);
        self.state.lock().is_busy = false;
        if self.is_over() {
            return;
        }
        match outcome {
            Ok(()) => {
                let after = self.in_flight();
                if let Some(id) = before.iter().find(|id| after.contains(id)) {
                    self.fail(|| format!("G2: {id} was in flight before the checkpoint and still is"));
                }
            }
            Err(error) => {
                let why = with_causes(&error);
                self.note(|| format!("    failed: {why}"));
                if !self.world.lock().may_fail {
                    self.fail(|| format!("a call failed: {why}"));
                }
            }
        }
    }

    /// The operations in a section, and the writes past the source that can be waited for.
    fn in_flight(&self) -> Vec<u32> {
        let mut found: Vec<u32> = {
            let operations = self.operations.lock();
            operations.iter().filter(|operation| operation.section.is_some()).map(|op| op.id).collect()
        };
        let world = self.world.lock();
        let writes = world.writers.iter().filter(|writer| !writer.mode.direct);
        found.extend(writes.filter_map(|writer| Some(writer.in_flight?.0)));
        found
    }

    fn reached(&self, cursor: Cursor) {
        let mut world = self.world.lock();
        let is_newer = world
            .newest
            .is_none_or(|newest| newest.journal != cursor.journal || newest.checkpoint <= cursor.checkpoint);
        if is_newer {
            world.newest = Some(cursor);
        }
    }

    fn move_horizon(&self) {
        self.call(|tracker| {
            self.world.lock().synced = None;
            tracker.advance_horizon()?;
            let checkpoint = tracker.status().stable;
            let mut world = self.world.lock();
            let synced = world.synced.take();
            if let (Some(newest), Some(synced)) = (world.newest, synced) {
                let reading_since = highwater_tracker::CheckpointId(0);
                world.horizon = Some((Cursor { checkpoint, reading_since, ..newest }, synced));
            }
            Ok(())
        });
        self.changed();
    }

    fn ask(&self, number: u8) {
        let (index, since) = {
            let world = self.world.lock();
            let index = usize::from(number) % world.consumers.len();
            let consumer = &world.consumers[index];
            if consumer.cursor.is_some() {
                // It has a batch that it has not acked.
                return;
            }
            (index, consumer.since())
        };
        self.call(|tracker| {
            let answer = tracker.changes(&since, None)?;
            if !self.is_down() {
                self.take(index, answer);
            }
            Ok(())
        });
        self.changed();
    }

    /// A consumer gets an answer.
    fn take(&self, index: usize, answer: Answer) {
        self.note(|| format!("    consumer {index} is told {}", brief(&answer)));
        self.reached(answer.cursor);
        let mut world = self.world.lock();
        if let Some(reason) = &answer.fresh
            && !self.is_justified(&world, index, reason)
        {
            drop(world);
            self.fail(|| format!("fresh without a reason: {reason}"));
            return;
        }
        world.consumers[index].take(answer);
    }

    fn is_justified(&self, world: &World, index: usize, reason: &FreshReason) -> bool {
        match reason {
            FreshReason::NoCursor => world.consumers[index].acked.is_none(),
            FreshReason::TooOld => world.settings.keeps_little || world.may_be_fresh,
            _ => world.may_be_fresh,
        }
    }

    fn apply(&self, number: u8, lines: usize) {
        for _ in 0..lines {
            let mut world = self.world.lock();
            if world.is_unknown {
                return;
            }
            let index = usize::from(number) % world.consumers.len();
            let Some(line) = world.consumers[index].lines.pop_front() else { return };
            let mut replica = std::mem::replace(&mut world.consumers[index].replica, Copy::nothing());
            replica.apply(&line, &mut world.view());
            world.consumers[index].replica = replica;
        }
        self.changed();
    }

    fn read_more(&self, number: u8, at: At) {
        let mut world = self.world.lock();
        if world.is_unknown {
            return;
        }
        let index = usize::from(number) % world.consumers.len();
        // Only who was told to look everywhere may: what another one reads at a name it may take for something else that it holds.
        let consumer = &world.consumers[index];
        let cursor = consumer.cursor.or(consumer.acked);
        if !cursor.is_some_and(|cursor| cursor.may_have_read_anything()) {
            return;
        }
        let path = world.path_of(at);
        let mut replica = std::mem::replace(&mut world.consumers[index].replica, Copy::nothing());
        replica.read_more(&path, &mut world.view());
        world.consumers[index].replica = replica;
    }

    fn ack(&self, number: u8) {
        let (name, cursor, is_stored) = {
            let mut world = self.world.lock();
            let index = usize::from(number) % world.consumers.len();
            let consumer = &mut world.consumers[index];
            let Some(cursor) = consumer.cursor.filter(|_| consumer.lines.is_empty()) else { return };
            consumer.durable = consumer.replica.clone();
            consumer.acking = Some(cursor);
            (consumer.name.clone(), cursor, consumer.is_stored)
        };
        let acked = match self.tracker() {
            Some(tracker) if is_stored => tracker.ack(&name, &cursor),
            Some(_) => Ok(()),
            None => return,
        };
        if self.is_over() {
            return;
        }
        let mut world = self.world.lock();
        let may_fail = world.may_fail;
        let index = usize::from(number) % world.consumers.len();
        let consumer = &mut world.consumers[index];
        match acked {
            Ok(()) => {
                consumer.acked = consumer.acking.take();
                consumer.cursor = None;
            }
            Err(error) => {
                consumer.die(true);
                drop(world);
                if !may_fail {
                    self.fail(|| format!("an ack failed: {}", with_causes(&error)));
                }
            }
        }
    }

    fn stop(&self) {
        let Some(tracker) = self.tracker().filter(|_| !self.is_over() && self.state.lock().can_enter) else {
            return;
        };
        // The mount cannot be taken away while anything is open.
        self.quiesce();
        self.state.lock().can_enter = false;
        self.state.lock().is_busy = true;
        let stopped = tracker.stop();
        self.state.lock().is_busy = false;
        if self.is_over() {
            return;
        }
        let is_clean = stopped.is_ok();
        if let Err(error) = stopped {
            let why = with_causes(&error);
            self.note(|| format!("    failed: {why}"));
            if !self.world.lock().may_fail {
                self.fail(|| format!("the stop failed: {why}"));
                return;
            }
        }
        drop(tracker);
        if is_clean {
            // The last one to go closes the journal.
            drop(self.tracker.lock().take());
        }
        if !self.is_over() {
            self.end_life(End::Kill { is_mount_left: false });
        }
    }

    /// Ends every operation and every open file.
    fn quiesce(&self) {
        loop {
            while let Some(id) = self.operation(0).filter(|_| !self.is_over()) {
                self.finish(id);
            }
            let mut world = self.world.lock();
            for index in 0..world.writers.len() {
                world.end_unseen(index);
                world.writers[index].is_mapped = false;
            }
            let is_done = world.writers.is_empty();
            drop(world);
            if is_done || self.is_over() {
                break;
            }
            let Some(id) = self.start(Op::Close(0)) else { break };
            self.finish(id);
        }
        let mut world = self.world.lock();
        world.nameless.clear();
        world.process_answers(None);
    }

    // ---- lives ----

    /// The first life.
    fn live(&self) {
        self.attach_watcher();
        if !self.world.lock().settings.from_creation {
            let keep = std::mem::replace(&mut self.moments.lock().keep, Keep::None);
            self.open();
            self.begin_consumers();
            self.moments.lock().keep = keep;
            return;
        }
        self.open();
        while self.is_down() {
            self.live_again();
        }
        self.begin_consumers();
    }

    fn begin_consumers(&self) {
        self.add_consumers();
        for number in [0, 1, 2] {
            self.ask(number);
            self.apply(number, 1);
            self.ack(number);
        }
        self.world.lock().now_ns += 5_000_000_000;
        self.move_horizon();
        self.world.lock().now_ns += 5_000_000_000;
        if self.is_down() {
            self.live_again();
        }
    }

    fn add_consumers(&self) {
        let Some(tracker) = self.tracker() else { return };
        let names: Vec<String> = {
            let world = self.world.lock();
            let stored = world.consumers.iter().filter(|consumer| consumer.is_stored);
            stored.map(|consumer| consumer.name.clone()).collect()
        };
        let known = tracker.consumers();
        for name in names {
            if known.iter().any(|consumer| consumer.name == name) || self.is_over() {
                continue;
            }
            let mut world = self.world.lock();
            let consumer = world.consumers.iter_mut().find(|consumer| consumer.name == name);
            let has_acked = consumer.as_ref().is_some_and(|consumer| consumer.acked.is_some());
            if has_acked && !world.may_be_fresh {
                drop(world);
                self.fail(|| format!("consumer {name} is forgotten"));
                return;
            }
            if let Some(consumer) = world.consumers.iter_mut().find(|consumer| consumer.name == name) {
                consumer.acked = None;
                consumer.acking = None;
            }
            drop(world);
            if let Err(error) = tracker.add_consumer(&name)
                && !self.is_over()
                && !self.world.lock().may_fail
            {
                self.fail(|| format!("a consumer could not be added: {}", with_causes(&error)));
            }
        }
    }

    fn attach_watcher(&self) {
        let this: Weak<dyn Watcher> = self.this.clone();
        self.storage().watch(this);
    }

    /// The next life, after the end of one.
    fn live_again(&self) {
        loop {
            let ended = self.ended.lock().take();
            let Some((end, world, medium)) = ended else { return };
            self.operations.lock().clear();
            drop(self.tracker.lock().take());
            let lives = self.state.lock().lives + 1;
            *self.state.lock() = State { lives, ..State::default() };
            if lives > 64 {
                self.fail(|| "too many lives".to_owned());
                return;
            }
            let (world, medium) = after(end, world, &medium);
            *self.world.lock() = world;
            *self.storage.lock() = SimStorage::of(medium);
            self.attach_watcher();
            self.between_lives();
            self.open();
            self.add_consumers_again();
        }
    }

    fn add_consumers_again(&self) {
        if !self.is_over() {
            self.add_consumers();
            self.check_consumers();
        }
    }

    /// What the list has for the time in which nobody tracks.
    fn between_lives(&self) {
        loop {
            let (action, is_tracked) = {
                let is_tracked = self.world.lock().is_unbroken;
                let mut script = self.script.lock();
                let Some(turn) = script.turns.get(script.next).copied() else { return };
                let is_for_here = matches!(
                    turn.action,
                    Action::Untracked(_)
                        | Action::Tick(_)
                        | Action::WriteBack(_)
                        | Action::Fsync(_)
                        | Action::Unseen(..)
                        | Action::Store(..)
                        | Action::CrashIn(..)
                );
                if !is_for_here || turn.is_nested {
                    return;
                }
                script.next += 1;
                (turn.action, is_tracked)
            };
            match action {
                Action::Untracked(op) if !is_tracked => {
                    self.note(|| format!("untracked: {op:?}"));
                    self.world.lock().perform_untracked(op);
                }
                Action::Untracked(_) => {}
                action => self.act(action),
            }
        }
    }

    fn config(&self) -> Config {
        let settings = self.world.lock().settings;
        let mut config = Config::default();
        config.durability = settings.durability;
        config.on_full = settings.on_full;
        config.journal = settings.journal();
        config.driver = Some(Arc::new(Seam(self.this.clone())));
        config
    }

    fn open(&self) {
        let opened = self.try_open();
        if opened.is_err() {
            self.operations.lock().clear();
        }
    }

    fn try_open(&self) -> Result<(), Over> {
        let facts = {
            let mut world = self.world.lock();
            // A clock that goes back over the time in which nobody tracked makes everyone fresh.
            world.may_be_fresh |= !world.is_unbroken && world.now_ns < world.latest_ns;
            VolumeFacts {
                root: handle(ROOT),
                directory: "/tree".into(),
                boot_id: format!("boot {}", world.boot),
                unbroken: world.is_unbroken,
            }
        };
        let opened = Tracker::open(self.storage(), facts, self.config());
        if self.is_down() {
            return Err(Over);
        }
        let (tracker, opening) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let why = with_causes(&error);
                self.note(|| format!("    not opened: {why}"));
                if !self.world.lock().may_fail {
                    self.fail(|| format!("the volume cannot be opened: {why}"));
                }
                return Err(Over);
            }
        };
        self.note(|| format!("    opened: {opening:?}"));
        *self.tracker.lock() = Some(Arc::clone(&tracker));
        self.state.lock().is_busy = true;
        let source: Arc<dyn Source> = Arc::new(Seam(self.this.clone()));
        self.world.lock().learn_names();
        self.world.lock().is_mounted = true;
        let started = tracker.start(source);
        if self.is_down() {
            return Err(Over);
        }
        if let Err(error) = started {
            let why = with_causes(&error);
            if !self.world.lock().may_fail {
                self.fail(|| format!("the tracker cannot start: {why}"));
            }
            self.note(|| format!("    not started: {why}"));
            // As the product: it ends.
            drop(self.tracker.lock().take());
            return Err(Over);
        }
        self.state.lock().can_enter = true;
        tracker.catch_up();
        if self.is_down() {
            return Err(Over);
        }
        self.world.lock().is_unknown = false;
        self.state.lock().is_busy = false;
        self.adopt(&tracker);
        Ok(())
    }

    /// Takes over the writers of the life before, as the stacked source does.
    fn adopt(&self, tracker: &Tracker<SimStorage>) {
        let left: Vec<(u32, u32)> = {
            let mut world = self.world.lock();
            let mode = WriterMode { can_map: true, direct: true, unseen: true };
            for writer in &mut world.writers {
                writer.is_foreign = true;
                writer.mode = mode;
            }
            world.writers.iter().map(|writer| (writer.id, writer.ino)).collect()
        };
        for (_, ino) in left {
            if self.is_over() {
                return;
            }
            let Some(sample) = self.world.lock().sample(ino) else { continue };
            let object = handle(ino);
            let section = tracker.section();
            let _ = section.intend(&[Intent::Object(&object)]);
            let mode = WriterMode { can_map: true, direct: true, unseen: true };
            section.opened(&object, mode, sample);
            section.record(highwater_tracker::Change::Modified { object: object.clone() }, || {});
        }
    }

    /// Nothing acked is forgotten.
    fn check_consumers(&self) {
        let Some(tracker) = self.tracker() else { return };
        for kept in tracker.consumers() {
            let mut world = self.world.lock();
            let may_be_fresh = world.may_be_fresh;
            let Some(consumer) = world.consumers.iter_mut().find(|consumer| consumer.name == kept.name)
            else {
                continue;
            };
            let is_one =
                kept.cursor == consumer.acked || consumer.acking.is_some() && kept.cursor == consumer.acking;
            let acked = consumer.acked;
            consumer.acked = kept.cursor;
            consumer.acking = None;
            drop(world);
            if !is_one && !may_be_fresh {
                self.fail(|| format!("consumer {} acked {acked:?}, kept is {:?}", kept.name, kept.cursor));
            }
        }
    }

    // ---- the end ----

    /// Everything ends, everybody asks once more: every copy has to be the tree.
    fn come_to_an_end(&self) {
        self.note(|| "the end of the list".to_owned());
        if self.failure.lock().is_some() {
            return;
        }
        if self.tracker().is_none() || self.world.lock().may_fail {
            // What has failed is started anew, on a disk that works.
            self.note(|| "    once more, on a disk that works".to_owned());
            if self.tracker().is_some() {
                // Before that: right, or fresh, or an error.
                self.finish_all();
                self.everybody_compares();
            }
            self.world.lock().may_fail = false;
            self.world.lock().source_fails = false;
            let storage = self.storage();
            storage.set_broken(false);
            storage.set_full(false);
            self.end_life(End::Kill { is_mount_left: true });
            self.live_again();
        }
        self.finish_all();
        self.everybody_compares();
    }

    fn finish_all(&self) {
        while let Some(id) = self.operation(0).filter(|_| !self.is_over()) {
            self.finish(id);
        }
        let mut world = self.world.lock();
        for index in 0..world.writers.len() {
            world.end_unseen(index);
        }
        world.process_answers(None);
    }

    fn everybody_compares(&self) {
        let count = self.world.lock().consumers.len();
        for index in 0..count {
            self.compares(index);
        }
    }

    fn compares(&self, index: usize) {
        let number = u8::try_from(index).unwrap_or_default();
        // What it has been told it applies first; what it has not been told by then it asks for.
        self.apply(number, usize::MAX);
        self.ack(number);
        self.world.lock().consumers[index].cursor = None;
        let before = self.world.lock().may_fail;
        self.ask(number);
        if self.is_over() {
            return;
        }
        if self.world.lock().consumers[index].cursor.is_none() {
            // An error: it knows that it does not know.
            if !before {
                self.fail(|| format!("consumer {index} got no answer"));
            }
            return;
        }
        self.apply(number, usize::MAX);
        let (difference, name) = {
            let world = self.world.lock();
            let consumer = &world.consumers[index];
            (consumer.replica.difference(&world.copy(), ""), consumer.name.clone())
        };
        if let Some(difference) = difference {
            self.fail(|| format!("a miss: consumer {name}: {difference}"));
        }
        self.ack(number);
    }
}

impl crate::world::Consumer {
    fn since(&self) -> Since {
        match self.acked {
            _ if self.is_stored => Since::Consumer(self.name.clone()),
            Some(cursor) => Since::Cursor(cursor),
            None => Since::Nothing,
        }
    }

    fn take(&mut self, answer: Answer) {
        self.cursor = Some(answer.cursor);
        self.lines = answer.lines.into();
        if answer.fresh.is_some() {
            // Everything, at a time of its own.
            self.lines.push_back(highwater_tracker::Line {
                path: b".".to_vec(),
                kind: highwater_tracker::LineKind::Rescan,
                object_type: highwater_tracker::ObjectType::Directory,
                from: None,
                recursive: true,
                recovered: false,
                nlink: None,
                usn: 0,
            });
        }
    }

    /// It dies, and asks again from where it had acked.
    pub(crate) fn die(&mut self, keeps: bool) {
        if !keeps {
            self.replica = self.durable.clone();
        }
        self.lines.clear();
        self.cursor = None;
    }
}

/// What is left of a world and a storage after the end of a life.
fn after(end: End, mut world: World, medium: &Medium) -> (World, Medium) {
    let was_mounted = std::mem::take(&mut world.is_mounted);
    world.answers.clear();
    world.unborn.clear();
    world.is_down = false;
    world.newest_as_a_consumer();
    let medium = match end {
        End::Kill { is_mount_left } => {
            // A tracker that dies before it has mounted leaves what it found.
            world.is_unbroken = is_mount_left && (was_mounted || world.is_unbroken);
            world.drop_unnamed_writers();
            medium.after_crash(Fate::Kept)
        }
        End::Power { fate, seed } => {
            let mut random = Random::new(seed);
            world.tree.crash(&mut random);
            world.boot += 1;
            world.is_unbroken = false;
            world.writers.clear();
            world.nameless.clear();
            world.now_ns += 60_000_000_000;
            if world.settings.durability == highwater_tracker::Durability::Relaxed
                || matches!(fate, Fate::Trashed(_))
            {
                world.may_be_fresh = true;
            }
            for consumer in &mut world.consumers {
                consumer.die(random.once_in(2));
            }
            medium.after_crash(fate)
        }
    };
    (world, medium)
}

impl World {
    /// Adds those who could have read anything: what they hold and where they stand is as legal as what the others do.
    fn newest_as_a_consumer(&mut self) {
        self.consumers.retain(|consumer| !consumer.name.starts_with('('));
        let whole = self.copy();
        let newest = self.newest.take().filter(|_| !self.is_unknown).map(|cursor| {
            let reading_since = highwater_tracker::CheckpointId(0);
            ("(read everything at the end)", Cursor { reading_since, ..cursor }, whole)
        });
        let horizon =
            self.horizon.clone().map(|(cursor, copy)| ("(read everything at the horizon)", cursor, copy));
        for (name, cursor, copy) in [newest, horizon].into_iter().flatten() {
            self.consumers.push(crate::world::Consumer {
                name: name.to_owned(),
                is_stored: false,
                acked: Some(cursor),
                acking: None,
                replica: copy.clone(),
                durable: copy,
                cursor: None,
                lines: std::collections::VecDeque::new(),
            });
        }
    }

    /// Files without a name are nobody's after a kill: no path leads to them, and no consumer can read them.
    fn drop_unnamed_writers(&mut self) {
        self.nameless.clear();
        let named: Vec<bool> = self.writers.iter().map(|writer| self.links(writer.ino) > 0).collect();
        let mut named = named.into_iter();
        self.writers.retain(|_| named.next().unwrap_or(false));
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| (*error).source());
    std::iter::once(error.to_string()).chain(causes.map(ToString::to_string)).collect::<Vec<_>>().join(": ")
}

fn brief(answer: &Answer) -> String {
    let lines: Vec<String> = answer
        .lines
        .iter()
        .map(|line| {
            let from = line.from.as_ref().map(|from| format!(" < {}", String::from_utf8_lossy(from)));
            let star = if line.recursive { "*" } else { "" };
            format!(
                "{:?}{star} {}{}",
                line.kind,
                String::from_utf8_lossy(&line.path),
                from.unwrap_or_default()
            )
        })
        .collect();
    let fresh = answer.fresh.as_ref().map(|reason| format!("fresh ({reason}) ")).unwrap_or_default();
    format!("{fresh}through {}: [{}]", answer.cursor, lines.join(", "))
}
