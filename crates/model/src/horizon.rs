//! docs/protocol.md, "The stable horizon".

use crate::journal::{Entry, Intent};
use crate::mutation::Mutation;
use crate::state::{HORIZON, Horizon, Model, State};
use crate::tree::OBJECTS;

/// What the horizon does, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    BeginWindow,
    Barrier,
    WriterIntents,
    Checkpoint,
    SyncJournal,
    SyncFilesystem,
    AppendStable,
}

use Move::{AppendStable, Barrier, BeginWindow, Checkpoint, SyncFilesystem, SyncJournal, WriterIntents};

impl Model {
    fn moves(&self) -> &'static [Move] {
        const END: [Move; 4] = [SyncJournal, SyncFilesystem, AppendStable, SyncJournal];
        const fn then_end(begin: [Move; 4]) -> [Move; 8] {
            [begin[0], begin[1], begin[2], begin[3], END[0], END[1], END[2], END[3]]
        }
        const WHOLE: [Move; 8] = then_end([BeginWindow, Barrier, WriterIntents, Checkpoint]);
        const WINDOW_LATE: [Move; 8] = then_end([Barrier, BeginWindow, WriterIntents, Checkpoint]);
        const CHECKPOINT_EARLY: [Move; 8] = then_end([Checkpoint, BeginWindow, Barrier, WriterIntents]);
        const INTENTS_LATE: [Move; 8] = then_end([BeginWindow, Barrier, Checkpoint, WriterIntents]);
        match self.mutation {
            Some(Mutation::WindowAfterBarrier) => &WINDOW_LATE,
            Some(Mutation::CheckpointBeforeWindow) => &CHECKPOINT_EARLY,
            Some(Mutation::WriterIntentsAfterCheckpoint) => &INTENTS_LATE,
            _ => &WHOLE,
        }
    }

    /// The step that the horizon is at; `None`: it does not move now.
    pub(crate) fn horizon_at(&self, state: &State) -> Option<Move> {
        self.moves().get(usize::from(state.horizon.step).checked_sub(1)?).copied()
    }

    pub(crate) fn horizon_may_go_on(&self, state: &State) -> bool {
        match self.horizon_at(state) {
            None => state.horizon.left > 0,
            Some(Checkpoint) => !state.horizon.asked,
            Some(_) => state.horizon.waits_for == 0,
        }
    }

    pub(crate) fn horizon_goes_on(&self, state: &mut State) {
        match self.horizon_at(state) {
            None => state.horizon.left -= 1,
            // The wait is over.
            Some(Barrier) => {}
            Some(BeginWindow) => {
                // Under the lock that intents are appended under: no intent of the old window comes later.
                state.window += 1;
                state.covered = [None; OBJECTS];
                state.moves_covered = [None; OBJECTS];
            }
            Some(WriterIntents) if self.has(Mutation::NoWriterIntents) => {}
            Some(WriterIntents) => {
                for (object, node) in state.names.objects() {
                    if state.open[usize::from(object)].is_some() {
                        let intent = Intent::Object(object, node.place);
                        state.journal.append(Entry::Intent { intent, window: state.window });
                    }
                }
            }
            Some(Checkpoint) => {
                state.horizon.asked = true;
                self.ask(state, HORIZON);
                // Goes on when it is handed the checkpoint.
                return;
            }
            Some(SyncJournal) => state.journal.sync_all(),
            Some(SyncFilesystem) => {
                state.journal.synced_tree = state.mem;
                if !self.has(Mutation::NoSyncfs) {
                    state.disk = state.mem;
                    state.pending.clear();
                }
            }
            Some(AppendStable) => {
                let (period, window) = (state.horizon.sealed, state.window);
                state.journal.append(Entry::Stable { period, window });
            }
        }
        self.horizon_next(state);
    }

    pub(crate) fn horizon_next(&self, state: &mut State) {
        state.horizon.step += 1;
        match self.horizon_at(state) {
            None => state.horizon = Horizon { left: state.horizon.left, ..Horizon::IDLE },
            Some(Barrier) if !self.has(Mutation::NoBarrierInHorizon) => {
                state.horizon.waits_for = state.writers_that(|writer| writer.in_section);
            }
            Some(_) => {}
        }
    }
}
