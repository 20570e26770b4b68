//! Tells a way through the states as a story.

use crate::horizon::Move;
use crate::journal::{Entry, Intent, Record};
use crate::scenario::{Crash, Operation};
use crate::state::{Model, Phase, State, Step};
use crate::steps::Action;
use crate::tree::{Id, Path, Place, ROOT};

impl Model {
    /// One line for each step.
    pub fn story(&self, way: &[Action]) -> Vec<String> {
        let states = self.states(way);
        let tree = format!("at the beginning there is {}", states[0].mem.listing());
        let steps = way.iter().zip(states.windows(2));
        std::iter::once(tree)
            .chain(steps.map(|(action, pair)| self.tell_step(*action, &pair[0], &pair[1])))
            .collect()
    }

    fn tell_step(&self, action: Action, before: &State, after: &State) -> String {
        match action {
            Action::Begin { writer, index } => {
                let operation = self.tell_operation(self.scenario.writers[writer][index]);
                let what = match after.writers[writer].phase {
                    Phase::PastHalf => "has set its timestamp, not yet its data",
                    Phase::Outside => "has looked up what it needs to, and is not in its section yet",
                    _ => "has entered its section",
                };
                format!("writer {writer}: {operation}: {what}")
            }
            Action::Write { writer } => {
                let operation = self.tell_operation(self.operation(before, writer));
                format!("writer {writer}: {operation}: {}", self.tell_phase(writer, before, after))
            }
            Action::Checkpoint => format!("checkpoint: {}", self.tell_checkpoint(before, after)),
            Action::Horizon => format!("horizon: {}", self.tell_horizon(before, after)),
            Action::Ask { consumer } => format!("consumer {consumer} asks what has changed"),
            Action::Follow { consumer } => {
                let lines = &before.consumers[consumer].lines;
                let done = &lines[..lines.len() - after.consumers[consumer].lines.len()];
                let lines = done.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
                let holds = &after.consumers[consumer].replica;
                format!("consumer {consumer} follows [{lines}] and holds {holds}")
            }
            Action::Ack { consumer } => {
                format!(
                    "consumer {consumer} acks everything through period {}",
                    after.consumers[consumer].acked
                )
            }
            Action::Die { consumer } => format!("consumer {consumer} dies"),
            Action::ReadAhead { consumer } => {
                format!(
                    "consumer {consumer} copies everything unasked and holds {}",
                    after.consumers[consumer].replica
                )
            }
            Action::Crash { kept, .. } => {
                let what = match self.scenario.crash {
                    Some(Crash::Kill) => "THE TRACKER IS KILLED",
                    _ => "THE POWER FAILS",
                };
                let (of, was, is) = (before.journal.tail.len(), before.mem.listing(), after.mem.listing());
                let told = self.tell_entries(&after.journal.tail);
                format!(
                    "{what}: {kept} of {of} entries of the journal's tail are left; there was {was}, there is {is}; recovery finds {told}"
                )
            }
        }
    }

    fn tell_phase(&self, writer: usize, before: &State, after: &State) -> String {
        let appended = || {
            self.tell_entries(&after.journal.tail[before.journal.tail.len().min(after.journal.tail.len())..])
        };
        match before.writers[writer].phase {
            Phase::Outside => "has entered its section".to_owned(),
            Phase::Entered if after.journal.tail.len() == before.journal.tail.len() => {
                format!("all that it may change is covered in window {}", before.window)
            }
            Phase::Entered => format!("has appended {}", appended()),
            Phase::Intended => "its intents are durable".to_owned(),
            Phase::Recorded if after.writers[writer].phase == Phase::Recorded => {
                format!("renews its intents in window {}", after.window)
            }
            Phase::Recorded => "is answered and has left its section".to_owned(),
            Phase::Left => "readers see it now".to_owned(),
            Phase::PastHalf => format!("its data are there: {}", after.mem.listing()),
            Phase::Ready | Phase::Half if after.journal.tail.len() > before.journal.tail.len() => {
                format!("has recorded {}", appended())
            }
            Phase::Ready | Phase::Half if after.mem == before.mem => match before.writers[writer].phase {
                Phase::Ready => "is done".to_owned(),
                _ => "has nothing to record".to_owned(),
            },
            Phase::Ready | Phase::Half => format!("is done: {}", after.mem.listing()),
            Phase::Idle => String::new(),
        }
    }

    fn tell_horizon(&self, before: &State, after: &State) -> String {
        match self.horizon_at(before) {
            None => "begins to move".to_owned(),
            Some(Move::BeginWindow) => format!("begins window {}", after.window),
            Some(Move::Barrier) => "the operations before it have left".to_owned(),
            Some(Move::WriterIntents) => "open writers have their intents".to_owned(),
            Some(Move::Checkpoint) => "asks for a checkpoint".to_owned(),
            Some(Move::SyncJournal) => "the journal is durable".to_owned(),
            Some(Move::SyncFilesystem) => "syncfs".to_owned(),
            Some(Move::AppendStable) => {
                format!("appends Stable(period {}, window {})", before.horizon.sealed, before.window)
            }
        }
    }
}

impl Model {
    fn tell_checkpoint(&self, before: &State, after: &State) -> String {
        match before.checkpoint.step {
            Step::Idle => "begins".to_owned(),
            Step::Barrier => "the operations before it have left".to_owned(),
            Step::Sample(object) => {
                format!("samples {}: timestamp {}", self.name(object), after.checkpoint.sample)
            }
            Step::Wait(object) => format!("the writes to {} before it have ended", self.name(object)),
            Step::Compare(object) if after.is_changed && !before.is_changed => {
                format!("{} has changed, and is recorded", self.name(object))
            }
            Step::Compare(object) => format!("{} is compared", self.name(object)),
            Step::Flip if after.period == before.period => {
                "nothing is recorded; hands out what was sealed before".to_owned()
            }
            Step::Flip => format!("seals period {}", before.period),
            Step::Tails => "who is recorded in it has been answered".to_owned(),
            Step::Settle => "readers see what was answered".to_owned(),
            Step::Sync => "the batch is durable and handed out".to_owned(),
        }
    }
}

impl Model {
    fn tell_entries(&self, entries: &[Entry]) -> String {
        let told: Vec<String> = entries.iter().map(|entry| self.tell_entry(entry)).collect();
        if told.is_empty() { "nothing".to_owned() } else { told.join(", ") }
    }

    fn tell_entry(&self, entry: &Entry) -> String {
        match *entry {
            Entry::Intent { intent: Intent::Directory(dir), window } => {
                format!("the intent for {} in window {window}", self.name(dir))
            }
            Entry::Intent { intent: Intent::Move(dir), window } => {
                format!("the intent for the move of {} in window {window}", self.name(dir))
            }
            Entry::Intent { intent: Intent::Object(object, _), window } => {
                format!("the intent for the file {} in window {window}", self.name(object))
            }
            Entry::Record { period, record } => format!("`{}` in period {period}", self.tell_record(record)),
            Entry::Seal(period) => format!("the seal of period {period}"),
            Entry::Stable { period, window } => format!("Stable({period}, {window})"),
        }
    }

    fn tell_record(&self, record: Record) -> String {
        match record {
            Record::Created(_, place) => format!("created {}", self.at(place)),
            Record::Removed(place) => format!("removed {}", self.at(place)),
            Record::Moved(from, to) => format!("renamed {} to {}", self.at(from), self.at(to)),
            Record::Modified(object) => format!("modified {}", self.name(object)),
            Record::Rescan(dir) => format!("rescan {}", self.name(dir)),
            Record::Whole(dir) => format!("rescan* {}", self.name(dir)),
            Record::Recovered(place) => format!("modified {}", self.at(place)),
        }
    }

    /// The first name of an object, whatever it is called meanwhile.
    fn name(&self, object: Id) -> String {
        let initial = self.scenario.initial();
        if object == ROOT {
            return Path::ROOT.to_string();
        }
        if let Some(path) = initial.get(object).and_then(|node| initial.path_at(node.place)) {
            return path.to_string();
        }
        let made = self.scenario.writers.iter().copied().flatten().find_map(|operation| match operation {
            Operation::Create(id, place) | Operation::Mkdir(id, place) if *id == object => Some(*place),
            _ => None,
        });
        made.map_or_else(|| format!("object {object}"), |place| self.at(place))
    }

    fn at(&self, place: Place) -> String {
        let name = char::from(place.name);
        if place.dir == ROOT { name.to_string() } else { format!("{}/{name}", self.name(place.dir)) }
    }

    fn tell_operation(&self, operation: Operation) -> String {
        match operation {
            Operation::Write(object) => format!("write {}", self.name(object)),
            Operation::Open(object) => format!("open {}", self.name(object)),
            Operation::WritePast(object) => format!("write {} past the source", self.name(object)),
            Operation::Close(object) => format!("close {}", self.name(object)),
            Operation::Create(_, place) => format!("create {}", self.at(place)),
            Operation::Mkdir(_, place) => format!("mkdir {}", self.at(place)),
            Operation::Rename(object, to) => format!("rename {} to {}", self.name(object), self.at(to)),
            Operation::Remove(object) => format!("remove {}", self.name(object)),
        }
    }
}
