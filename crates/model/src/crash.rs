//! docs/protocol.md, "Crashes": what is left, and what recovery tells.

use crate::journal::{Intent, Journal, Record};
use crate::mutation::Mutation;
use crate::scenario::Crash;
use crate::state::{Checkpoint, Horizon, Model, State, Violation, Writer};
use crate::tree::{Listing, OBJECTS, Tree};
use crate::{checkpoint, journal::Entry};

impl State {
    /// What is on disk if some of the pending changes have reached it: in any combination, as far as it makes a tree.
    pub(crate) fn disk_after(&self, reached: u32) -> Tree {
        let mut disk = self.disk;
        for (index, effect) in self.pending.iter().enumerate() {
            if reached & 1 << index != 0 && disk.allows(effect) {
                disk.apply(effect);
            }
        }
        disk
    }
}

impl Model {
    /// Crashes, and recovers. `kept`: how much of the journal's tail has reached the disk. `reached`: which of the pending changes
    /// of the tree have, in any combination that makes a tree; of no meaning for a kill, which the kernel survives.
    pub(crate) fn crash(&self, state: &mut State, kept: usize, reached: u32) -> Result<(), Violation> {
        let before = state.mem.listing();
        state.crashes_left -= 1;
        state.journal.sync(kept);
        state.journal.tail.clear();
        if self.scenario.crash == Some(Crash::PowerLoss) {
            state.disk = state.disk_after(reached);
            state.pending.clear();
            state.mem = state.disk;
            for consumer in &mut state.consumers {
                // It dies too. What it has copied is durable, as is its ack.
                consumer.lines.clear();
                consumer.cursor = consumer.acked;
            }
        }
        for writer in &mut state.writers {
            let next = writer.next + u8::from(writer.phase != crate::state::Phase::Idle);
            *writer = Writer { next, ..Writer::IDLE };
        }
        state.mtime = [0; OBJECTS];
        state.open = [None; OBJECTS];
        state.checkpoint = Checkpoint::IDLE;
        state.horizon = Horizon { left: state.horizon.left, ..Horizon::IDLE };
        self.recover(state, &before)
    }

    fn recover(&self, state: &mut State, before: &Listing) -> Result<(), Violation> {
        // Records that are not stable are no facts.
        let Journal { stable_period, stable_window, stable_tree, sealed, .. } = state.journal;
        state.journal.records.retain(|(period, _)| *period <= stable_period);
        state.sealed = sealed;
        state.period = sealed + 1;
        state.window += 1;
        state.covered = [None; OBJECTS];
        state.moves_covered = [None; OBJECTS];
        state.told = 0;
        state.names = Tree::default();
        for (object, node) in state.mem.objects() {
            state.names.set(object, Some(crate::tree::Node { content: 0, born: 0, ..node }));
        }
        state.names_sealed = state.names;

        let mut found = Vec::new();
        for (_, intent) in state.journal.intents.iter().filter(|(window, _)| *window >= stable_window) {
            match *intent {
                Intent::Directory(dir) if state.mem.is_dir(dir) => {
                    found.push(Record::Rescan(dir));
                    let is_born = |born: u8| born >= stable_window && !self.has(Mutation::BornNotTold);
                    let children = state.mem.children(dir);
                    let born = children.filter(|(_, node)| node.is_dir && is_born(node.born));
                    found.extend(born.map(|(child, _)| Record::Whole(child)));
                }
                Intent::Move(dir) if state.mem.is_dir(dir) => found.push(Record::Whole(dir)),
                Intent::Object(object, place) if state.mem.get(object).is_some() => {
                    found.push(Record::Recovered(place));
                }
                _ => {}
            }
        }
        found.sort_unstable();
        found.dedup();
        let period = if self.has(Mutation::RecoveredInAckedPeriod) { sealed } else { state.period };
        for record in &found {
            state.journal.append(Entry::Record { period, record: *record });
        }
        // The period is handed out even if it is empty.
        state.is_changed = true;

        // G4: what differs from the stable horizon, and what differs from what a reader saw before the crash, is told.
        let lines = checkpoint::lines(state, &found);
        let now = state.mem.listing();
        for (from, mut replica) in
            [("the stable horizon", stable_tree.listing()), ("the tree before the crash", before.clone())]
        {
            lines.iter().for_each(|line| replica.follow(line, &now));
            if replica != now {
                return Err(Violation::G4 { from, leads_to: replica.to_string(), disk: now.to_string() });
            }
        }
        Ok(())
    }
}
