//! One state of everything: the filesystem, the tracker, two writers, one or two consumers.

use crate::journal::Journal;
use crate::mutation::Mutation;
use crate::scenario::{Operation, Scenario};
use crate::tree::{Id, Line, Listing, Node, OBJECTS, Tree};

/// A set of writers, consumers or objects, one bit for each.
pub(crate) type Set = u8;

/// The bit of the horizon among those who ask for a checkpoint.
pub(crate) const HORIZON: Set = 1 << 7;

pub(crate) const WRITERS: usize = 2;

/// The protocol that is searched: within the bounds of a scenario, whole or broken.
#[derive(Clone, Copy, Debug)]
pub struct Model {
    /// The bounds.
    pub scenario: Scenario,
    /// What is broken, if anything is.
    pub mutation: Option<Mutation>,
}

impl Model {
    pub(crate) fn has(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }
}

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    // ---- the filesystem ----
    /// In memory: what the last finished operation left.
    pub(crate) mem: Tree,
    /// On disk.
    pub(crate) disk: Tree,
    /// What is in memory and not on disk, in order.
    pub(crate) pending: Vec<crate::tree::Effect>,
    /// The timestamps of files that are open for writing.
    pub(crate) mtime: [u8; OBJECTS],

    // ---- the tracker ----
    pub(crate) journal: Journal,
    /// The current period, under the record lock.
    pub(crate) period: u8,
    /// The objects that the period tells already.
    pub(crate) told: Set,
    /// There is something in the period for a consumer.
    pub(crate) is_changed: bool,
    /// The source's table of names, as of the last record.
    pub(crate) names: Tree,
    /// The same as of the last flip: what an answer takes its paths from.
    pub(crate) names_sealed: Tree,
    pub(crate) sealed: u8,
    /// The current window of the coverage.
    pub(crate) window: u8,
    /// The intent by which an object is covered, for changes and for moves.
    pub(crate) covered: [Option<Covered>; OBJECTS],
    pub(crate) moves_covered: [Option<Covered>; OBJECTS],
    pub(crate) open: [Option<Open>; OBJECTS],
    pub(crate) checkpoint: Checkpoint,
    pub(crate) horizon: Horizon,

    // ---- the others ----
    pub(crate) writers: [Writer; WRITERS],
    pub(crate) consumers: Vec<Consumer>,
    pub(crate) crashes_left: u8,
}

/// The intent that covers an object: its own, or that of a directory that it was made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Covered {
    pub(crate) by: Id,
    pub(crate) is_move: bool,
}

/// An object in the table of open writers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Open {
    pub(crate) opens: u8,
    /// The timestamp at the last sample.
    pub(crate) last: u8,
}

/// Where an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    Idle,
    /// Asked for, but its section is not entered (broken protocols only).
    Outside,
    /// In its section.
    Entered,
    /// Its intents are appended.
    Intended,
    /// Its intents are durable.
    Ready,
    /// Done on the filesystem below, not recorded (or the other way round in the first design).
    Half,
    /// Done and recorded; the caller is being told.
    Recorded,
    /// The answer is sent, the section is left, the kernel's thread has not taken notice.
    Left,
    /// A write past the source has set its timestamp and not yet its data.
    PastHalf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Writer {
    /// The first operation of its program that it may still do.
    pub(crate) next: u8,
    pub(crate) phase: Phase,
    pub(crate) in_section: bool,
    /// Between its record and its answer.
    pub(crate) in_tail: bool,
    /// It was in flight when the checkpoint that is being made began.
    pub(crate) began_before: bool,
    /// The inodes that the kernel keeps locked for it.
    pub(crate) locks: Set,
    /// The files that it has open for writing.
    pub(crate) opened: Set,
    /// What of its operation is noted for later.
    pub(crate) period_of_entry: u8,
    pub(crate) window_of_intent: u8,
    pub(crate) target_dir: Id,
    pub(crate) has_changed: bool,
    /// What readers still see instead of what it has done.
    pub(crate) stale: [Option<(Id, Option<Node>)>; 2],
}

impl Writer {
    pub(crate) const IDLE: Self = Self {
        next: 0,
        phase: Phase::Idle,
        in_section: false,
        in_tail: false,
        began_before: false,
        locks: 0,
        opened: 0,
        period_of_entry: 0,
        window_of_intent: 0,
        target_dir: 0,
        has_changed: false,
        stale: [None; 2],
    };
}

/// docs/protocol.md, "A checkpoint".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Idle,
    Barrier,
    Sample(Id),
    Wait(Id),
    Compare(Id),
    Flip,
    Tails,
    Settle,
    Sync,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Checkpoint {
    pub(crate) step: Step,
    /// The writers that it waits for.
    pub(crate) waits_for: Set,
    /// The open writers that it has still to look at.
    pub(crate) to_sample: Set,
    pub(crate) sample: u8,
    /// Who asked before it began.
    pub(crate) serves: Set,
    /// Who asked since.
    pub(crate) asked: Set,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Horizon {
    /// The step that comes next; 0: it does not move now.
    pub(crate) step: u8,
    pub(crate) waits_for: Set,
    pub(crate) asked: bool,
    /// What its checkpoint has sealed.
    pub(crate) sealed: u8,
    pub(crate) left: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Consumer {
    /// The cursor that is stored.
    pub(crate) acked: u8,
    /// The cursor of the answer in its hand.
    pub(crate) cursor: u8,
    /// What of the answer it has still to do.
    pub(crate) lines: Vec<Line>,
    pub(crate) replica: Listing,
    pub(crate) asks_left: u8,
    pub(crate) reads_ahead_left: u8,
    pub(crate) deaths_left: u8,
}

impl Model {
    /// The only state that a search begins with.
    pub(crate) fn initial(&self) -> State {
        let tree = self.scenario.initial();
        let consumer = Consumer {
            acked: 0,
            cursor: 0,
            lines: Vec::new(),
            replica: tree.listing(),
            asks_left: self.scenario.asks,
            reads_ahead_left: self.scenario.reads_ahead,
            deaths_left: self.scenario.deaths,
        };
        State {
            mem: tree,
            disk: tree,
            pending: Vec::new(),
            mtime: [0; OBJECTS],
            journal: Journal { stable_window: 1, stable_tree: tree, synced_tree: tree, ..Journal::default() },
            period: 1,
            told: 0,
            is_changed: false,
            names: tree,
            names_sealed: tree,
            sealed: 0,
            window: 1,
            covered: [None; OBJECTS],
            moves_covered: [None; OBJECTS],
            open: [None; OBJECTS],
            checkpoint: Checkpoint::IDLE,
            horizon: Horizon { left: self.scenario.horizons, ..Horizon::IDLE },
            writers: [Writer::IDLE; WRITERS],
            consumers: vec![consumer; self.scenario.consumers],
            crashes_left: self.scenario.crashes,
        }
    }

    /// The operation that a writer is at.
    pub(crate) fn operation(&self, state: &State, writer: usize) -> Operation {
        self.scenario.writers[writer][usize::from(state.writers[writer].next)]
    }
}

impl Checkpoint {
    pub(crate) const IDLE: Self =
        Self { step: Step::Idle, waits_for: 0, to_sample: 0, sample: 0, serves: 0, asked: 0 };
}

impl Horizon {
    pub(crate) const IDLE: Self = Self { step: 0, waits_for: 0, asked: false, sealed: 0, left: 0 };
}

impl State {
    /// The writers for which something holds.
    pub(crate) fn writers_that(&self, is: impl Fn(&Writer) -> bool) -> Set {
        (0..WRITERS).filter(|writer| is(&self.writers[*writer])).map(|writer| 1 << writer).sum()
    }

    /// The tree as a reader sees it: without what the kernel has not taken notice of.
    pub(crate) fn view(&self) -> Listing {
        let mut view = self.mem;
        for (object, node) in self.writers.iter().flat_map(|writer| writer.stale).flatten() {
            view.set(object, node);
        }
        view.listing()
    }
}

/// A guarantee that does not hold (docs/guarantees.md).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Violation {
    /// A consumer that has followed all lines holds another tree.
    G1 {
        /// Which consumer.
        consumer: usize,
        /// What it holds.
        holds: String,
        /// What is there.
        tree: String,
    },
    /// A batch is handed out while an operation is in flight that began before its checkpoint.
    G2 {
        /// Whose operation.
        writer: usize,
    },
    /// An operation cannot go on.
    G3 {
        /// Whose operation.
        writer: usize,
    },
    /// What recovery tells does not lead from what was there to what is there.
    G4 {
        /// From what.
        from: &'static str,
        /// Where the lines lead to.
        leads_to: String,
        /// What is on disk.
        disk: String,
    },
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::G1 { consumer, holds, tree } => {
                write!(
                    f,
                    "G1: all is quiet, consumer {consumer} has done all it was told and holds {holds}, but there is {tree}"
                )
            }
            Self::G2 { writer } => write!(
                f,
                "G2: the batch is handed out while an operation of writer {writer} is in flight that began before its checkpoint"
            ),
            Self::G3 { writer } => write!(f, "G3: the tracker keeps writer {writer} from going on"),
            Self::G4 { from, leads_to, disk } => {
                write!(f, "G4: what recovery tells makes {leads_to} of {from}, but on disk is {disk}")
            }
        }
    }
}

impl Violation {
    /// `G1` to `G4`.
    pub fn guarantee(&self) -> &'static str {
        match self {
            Self::G1 { .. } => "G1",
            Self::G2 { .. } => "G2",
            Self::G3 { .. } => "G3",
            Self::G4 { .. } => "G4",
        }
    }
}
