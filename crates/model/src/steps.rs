//! Who may do what next, and what must hold then.

use crate::scenario::Crash;
use crate::state::{Model, Phase, State, Step, Violation, WRITERS};
use crate::writer::Begin;

/// One step of one of those who run at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A writer begins an operation of its program.
    Begin {
        /// Which writer.
        writer: usize,
        /// Which operation.
        index: usize,
    },
    /// A writer goes on with its operation.
    Write {
        /// Which writer.
        writer: usize,
    },
    /// The next step of the checkpoint.
    Checkpoint,
    /// The next step of the horizon.
    Horizon,
    /// A consumer asks what has changed.
    Ask {
        /// Which consumer.
        consumer: usize,
    },
    /// A consumer follows a line (or all of them), reading the tree.
    Follow {
        /// Which consumer.
        consumer: usize,
    },
    /// A consumer has made its state durable and acks.
    Ack {
        /// Which consumer.
        consumer: usize,
    },
    /// A consumer dies with lines in its hand; it will ask again from what it has acked.
    Die {
        /// Which consumer.
        consumer: usize,
    },
    /// A consumer copies the whole tree without having been told to.
    ReadAhead {
        /// Which consumer.
        consumer: usize,
    },
    /// The tracker or the machine goes down, and recovers.
    Crash {
        /// How many entries of the journal's tail are left.
        kept: usize,
        /// Which of the pending changes of the tree are left.
        reached: u32,
    },
}

impl Model {
    /// All steps that are possible in a state.
    pub(crate) fn actions(&self, state: &State, into: &mut Vec<Action>) {
        into.clear();
        for writer in 0..WRITERS {
            if state.writers[writer].phase != Phase::Idle {
                into.push(Action::Write { writer });
            }
            for index in 0..self.scenario.writers[writer].len() {
                if self.may_begin(state, writer, index) == Begin::Yes {
                    into.push(Action::Begin { writer, index });
                }
            }
        }
        if self.checkpoint_may_go_on(state) {
            into.push(Action::Checkpoint);
        }
        if self.horizon_may_go_on(state) {
            into.push(Action::Horizon);
        }
        for (index, consumer) in state.consumers.iter().enumerate() {
            let has_asked = (state.checkpoint.serves | state.checkpoint.asked) & 1 << index != 0;
            let is_idle = consumer.lines.is_empty() && consumer.cursor == consumer.acked && !has_asked;
            if is_idle && consumer.asks_left > 0 {
                into.push(Action::Ask { consumer: index });
            }
            if !consumer.lines.is_empty() {
                into.push(Action::Follow { consumer: index });
                if consumer.deaths_left > 0 {
                    into.push(Action::Die { consumer: index });
                }
            } else if consumer.cursor != consumer.acked {
                into.push(Action::Ack { consumer: index });
            }
            if consumer.reads_ahead_left > 0 {
                into.push(Action::ReadAhead { consumer: index });
            }
        }
        self.crashes(state, into);
    }

    fn crashes(&self, state: &State, into: &mut Vec<Action>) {
        let Some(crash) = self.scenario.crash.filter(|_| state.crashes_left > 0) else { return };
        // A descriptor that outlives the tracker is another story (`foreign.rs`).
        let is_open = state.open.iter().any(Option::is_some)
            || state.writers.iter().any(|writer| writer.phase == Phase::PastHalf);
        if crash == Crash::Kill && is_open {
            return;
        }
        let changes = if crash == Crash::Kill { 0 } else { state.pending.len() };
        let mut disks = Vec::new();
        for reached in 0..1_u32 << changes {
            let disk = state.disk_after(reached);
            if disks.contains(&disk) {
                continue;
            }
            disks.push(disk);
            into.extend((0..=state.journal.tail.len()).map(|kept| Action::Crash { kept, reached }));
        }
    }

    pub(crate) fn take(&self, state: &mut State, action: Action) -> Result<(), Violation> {
        match action {
            Action::Begin { writer, index } => self.begin(state, writer, index),
            Action::Write { writer } => self.go_on(state, writer),
            Action::Checkpoint => self.checkpoint_goes_on(state)?,
            Action::Horizon => self.horizon_goes_on(state),
            Action::Ask { consumer } => {
                state.consumers[consumer].asks_left -= 1;
                self.ask(state, 1 << consumer);
            }
            Action::Follow { consumer } => {
                let view = state.view();
                let consumer = &mut state.consumers[consumer];
                let count = if self.scenario.by_line { 1 } else { consumer.lines.len() };
                for line in consumer.lines.drain(..count) {
                    consumer.replica.follow(&line, &view);
                }
            }
            Action::Ack { consumer } => {
                let consumer = &mut state.consumers[consumer];
                consumer.acked = consumer.cursor;
                self.retain(state);
            }
            Action::Die { consumer } => {
                let consumer = &mut state.consumers[consumer];
                consumer.deaths_left -= 1;
                consumer.lines.clear();
                consumer.cursor = consumer.acked;
            }
            Action::ReadAhead { consumer } => {
                let view = state.view();
                state.consumers[consumer].reads_ahead_left -= 1;
                state.consumers[consumer].replica = view;
            }
            Action::Crash { kept, reached } => self.crash(state, kept, reached)?,
        }
        Ok(())
    }

    fn retain(&self, state: &mut State) {
        let acked = state.consumers.iter().map(|consumer| consumer.acked).min().unwrap_or(0);
        state.journal.drop_acked(acked);
    }

    /// What must hold in every state. (G2 and G4 are checked where a batch is handed out and where recovery tells.)
    pub(crate) fn check(&self, state: &State) -> Result<(), Violation> {
        for writer in 0..WRITERS {
            let is_kept_out = |index: usize| self.may_begin(state, writer, index) == Begin::KeptOut;
            if (0..self.scenario.writers[writer].len()).any(is_kept_out) {
                return Err(Violation::G3 { writer });
            }
        }
        let is_quiet = state.writers.iter().all(|writer| writer.phase == Phase::Idle);
        if !is_quiet {
            return Ok(());
        }
        let tree = state.mem.listing();
        for dies in [false, true] {
            let mut end = state.clone();
            for consumer in &mut end.consumers {
                if dies {
                    consumer.lines.clear();
                    consumer.cursor = consumer.acked;
                }
            }
            let holds = self.end(&mut end)?;
            if let Some(consumer) = holds.iter().position(|replica| *replica != tree) {
                let holds = holds[consumer].to_string();
                return Err(Violation::G1 { consumer, holds, tree: tree.to_string() });
            }
        }
        Ok(())
    }

    /// All is quiet: everybody takes a last batch. What they hold then.
    fn end(&self, state: &mut State) -> Result<Vec<crate::tree::Listing>, Violation> {
        for round in 0..2 {
            while state.checkpoint.step != Step::Idle || state.checkpoint.asked != 0 {
                self.checkpoint_goes_on(state)?;
            }
            let view = state.view();
            for consumer in &mut state.consumers {
                for line in std::mem::take(&mut consumer.lines) {
                    consumer.replica.follow(&line, &view);
                }
                consumer.acked = consumer.cursor;
            }
            if round == 0 {
                (0..state.consumers.len()).for_each(|consumer| self.ask(state, 1 << consumer));
            }
        }
        Ok(state.consumers.iter().map(|consumer| consumer.replica.clone()).collect())
    }
}
