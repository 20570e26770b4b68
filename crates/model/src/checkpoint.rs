//! docs/protocol.md, "A checkpoint", in its six steps; and what an answer is made of.

use crate::journal::{Entry, Record};
use crate::mutation::Mutation;
use crate::state::{Checkpoint, HORIZON, Model, Phase, Set, State, Step, Violation, WRITERS};
use crate::tree::{Id, Line, LineKind, Path, Place};
use crate::writer::bit;

impl Model {
    /// Somebody asks for a checkpoint: a consumer, or the horizon.
    pub(crate) fn ask(&self, state: &mut State, who: Set) {
        if self.has(Mutation::ShareCheckpointBegunBefore) && state.checkpoint.step != Step::Idle {
            state.checkpoint.serves |= who;
            note_in_flight(state);
        } else {
            state.checkpoint.asked |= who;
        }
    }

    /// Whether the checkpoint has a next step that does not wait for an operation.
    pub(crate) fn checkpoint_may_go_on(&self, state: &State) -> bool {
        let checkpoint = &state.checkpoint;
        match checkpoint.step {
            Step::Idle => checkpoint.asked != 0,
            _ => checkpoint.waits_for == 0,
        }
    }

    pub(crate) fn checkpoint_goes_on(&self, state: &mut State) -> Result<(), Violation> {
        let waits_unless = |mutation, waits_for: Set| if self.has(mutation) { 0 } else { waits_for };
        match state.checkpoint.step {
            Step::Idle => {
                state.checkpoint = Checkpoint { serves: state.checkpoint.asked, ..Checkpoint::IDLE };
                note_in_flight(state);
                let in_section = state.writers_that(|writer| writer.in_section);
                state.checkpoint.waits_for = waits_unless(Mutation::NoBarrierInCheckpoint, in_section);
                state.checkpoint.step = Step::Barrier;
            }
            Step::Barrier => {
                let is_open = |object: &Id| state.open[usize::from(*object)].is_some();
                state.checkpoint.to_sample =
                    (0..8).filter(|id| usize::from(*id) < state.open.len()).filter(is_open).map(bit).sum();
                self.next_writer(state);
            }
            // A file that has lost its name has no data that anybody could read.
            Step::Sample(object) => {
                state.checkpoint.sample = state.mtime[usize::from(object)];
                if self.has(Mutation::SampleAfterWait) {
                    state.checkpoint.step = Step::Compare(object);
                } else {
                    self.begin_wait(state, object);
                }
            }
            Step::Wait(object) => {
                let next = if self.has(Mutation::SampleAfterWait) { Step::Sample } else { Step::Compare };
                state.checkpoint.step = next(object);
            }
            Step::Compare(object) => {
                let sample = state.checkpoint.sample;
                // `None`: it was closed meanwhile, and that has been recorded.
                if let Some(open) = &mut state.open[usize::from(object)]
                    && std::mem::replace(&mut open.last, sample) != sample
                {
                    let period = state.period;
                    self.tell(state, Record::Modified(object), period);
                }
                self.next_writer(state);
            }
            Step::Flip if !state.is_changed => return self.hand_out(state),
            Step::Flip => {
                state.journal.append(Entry::Seal(state.period));
                state.period += 1;
                if !self.has(Mutation::SuppressionOutlivesPeriod) {
                    state.told = 0;
                }
                state.is_changed = false;
                state.names_sealed = state.names;
                let in_tail = state.writers_that(|writer| writer.in_tail);
                state.checkpoint.waits_for = waits_unless(Mutation::NoTails, in_tail);
                state.checkpoint.step = Step::Tails;
            }
            Step::Tails => {
                let answered = state.writers_that(|writer| writer.phase == Phase::Left);
                state.checkpoint.waits_for = waits_unless(Mutation::NoSettle, answered);
                state.checkpoint.step = Step::Settle;
            }
            Step::Settle => state.checkpoint.step = Step::Sync,
            Step::Sync => {
                if !self.has(Mutation::NoSyncOfBatch) {
                    state.journal.sync_all();
                }
                state.sealed = state.period - 1;
                return self.hand_out(state);
            }
        }
        Ok(())
    }

    /// "Open writers": for each, sample, wait, compare.
    fn next_writer(&self, state: &mut State) {
        let to_sample = &mut state.checkpoint.to_sample;
        if *to_sample == 0 {
            state.checkpoint.step = Step::Flip;
            return;
        }
        let object = u8::try_from(to_sample.trailing_zeros()).expect("fewer than 8");
        *to_sample &= !bit(object);
        if self.has(Mutation::SampleAfterWait) {
            self.begin_wait(state, object);
        } else {
            state.checkpoint.step = Step::Sample(object);
        }
    }

    fn begin_wait(&self, state: &mut State, object: Id) {
        let writes = |writer: usize| {
            let writer = &state.writers[writer];
            writer.phase == Phase::PastHalf && writer.locks & bit(object) != 0
        };
        let in_flight: Set = (0..WRITERS).filter(|writer| writes(*writer)).map(|writer| 1 << writer).sum();
        state.checkpoint.waits_for = if self.has(Mutation::NoWaitForWrites) { 0 } else { in_flight };
        state.checkpoint.step = Step::Wait(object);
    }

    /// The end of a checkpoint: everybody who asked before it began gets an answer.
    fn hand_out(&self, state: &mut State) -> Result<(), Violation> {
        let serves = state.checkpoint.serves;
        if let Some(writer) = (0..WRITERS).find(|writer| state.writers[*writer].began_before) {
            return Err(Violation::G2 { writer });
        }
        for index in 0..state.consumers.len() {
            if serves & 1 << index != 0 {
                let (lines, cursor) = answer(state, state.consumers[index].acked);
                let consumer = &mut state.consumers[index];
                (consumer.lines, consumer.cursor) = (lines, cursor);
            }
        }
        if serves & HORIZON != 0 {
            state.horizon.sealed = state.sealed;
            state.horizon.asked = false;
            self.horizon_next(state);
        }
        state.checkpoint = Checkpoint { asked: state.checkpoint.asked, ..Checkpoint::IDLE };
        Ok(())
    }
}

/// For G2: the operations that a checkpoint that begins now has to wait for.
fn note_in_flight(state: &mut State) {
    for writer in &mut state.writers {
        writer.began_before |= writer.in_section || writer.phase == Phase::PastHalf;
    }
}

/// The lines from a cursor to the newest sealed period, and the next cursor.
fn answer(state: &State, since: u8) -> (Vec<Line>, u8) {
    if since > state.sealed {
        // A cursor that the journal has not reached: fresh.
        return (vec![Line { path: Path::ROOT, kind: LineKind::Whole }], state.sealed);
    }
    let tail = state.journal.tail.iter().filter_map(|entry| match entry {
        Entry::Record { period, record } => Some((*period, *record)),
        _ => None,
    });
    let records = state.journal.records.iter().copied().chain(tail);
    let records: Vec<Record> = records
        .filter(|(period, _)| (since + 1..=state.sealed).contains(period))
        .map(|(_, record)| record)
        .collect();
    (lines(state, &records), state.sealed)
}

/// Puts records into lines: each entry that they mention as it is in the end, then contents, then directories to compare.
pub(crate) fn lines(state: &State, records: &[Record]) -> Vec<Line> {
    let names = &state.names_sealed;
    let is_new =
        |object: Id| records.iter().any(|record| matches!(record, Record::Created(id, _) if *id == object));
    let mut lines = Vec::new();
    let mut push = |path: Option<Path>, kind| lines.extend(path.map(|path| Line { path, kind }));
    let entry = |place: Place| match names.at(place) {
        None => LineKind::Deleted,
        Some(object) if is_new(object) => LineKind::Created,
        Some(_) => LineKind::Whole,
    };
    for record in records {
        match *record {
            Record::Created(_, place) | Record::Removed(place) => push(names.path_at(place), entry(place)),
            Record::Moved(from, to) => {
                push(names.path_at(from), entry(from));
                push(names.path_at(to), entry(to));
            }
            Record::Modified(object) => {
                let place = names.get(object).map(|node| node.place);
                push(place.and_then(|place| names.path_at(place)), LineKind::Modified);
            }
            Record::Rescan(dir) => push(names.path(dir), LineKind::Rescan),
            Record::Whole(dir) => push(names.path(dir), LineKind::Whole),
            Record::Recovered(place) => push(names.path_at(place), LineKind::Modified),
        }
    }
    lines.sort_unstable();
    lines.dedup();
    lines
}
