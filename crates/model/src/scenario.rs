//! What the two writers may do, and how often everything else may happen.

use crate::tree::{Id, Name, Node, Place, ROOT, Tree};

/// One operation of a program. The numbers are objects; a new object has one that was never used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Operation {
    /// Through the source.
    Write(Id),
    /// Opens for writing past the source (passthrough).
    Open(Id),
    /// One write past the source: its timestamp first, its data later.
    WritePast(Id),
    Close(Id),
    Create(Id, Place),
    Mkdir(Id, Place),
    /// To a new name; what has that name is replaced.
    Rename(Id, Place),
    /// Unlink or rmdir.
    Remove(Id),
}

/// What sort of crash there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Crash {
    /// The tracker dies, the kernel lives on: what it has of the tree stays.
    Kill,
    /// Of what is not synced, any part of the tree and any beginning of the journal's tail is left.
    PowerLoss,
}

/// The bounds of one search.
#[derive(Clone, Copy, Debug)]
pub struct Scenario {
    /// Its name in the table.
    pub name: &'static str,
    /// What it is about.
    pub about: &'static str,
    /// What is there at the beginning: stable, known to all consumers, older than the window.
    pub(crate) tree: &'static [(Id, bool, Place)],
    /// Each writer does any subset of these, in this order.
    pub(crate) writers: [&'static [Operation]; 2],
    pub(crate) consumers: usize,
    /// How often a consumer asks before the last question, which comes when all is quiet.
    pub(crate) asks: u8,
    pub(crate) horizons: u8,
    pub(crate) crash: Option<Crash>,
    pub(crate) crashes: u8,
    /// How often a consumer copies the whole tree without having been told to.
    pub(crate) reads_ahead: u8,
    /// How often a consumer dies with lines in its hand.
    pub(crate) deaths: u8,
    /// Whether others may run between two lines that a consumer follows.
    pub(crate) by_line: bool,
}

const fn at(dir: Id, name: Name) -> Place {
    Place { dir, name }
}

use Operation::{Close, Create, Mkdir, Open, Remove, Rename, Write, WritePast};

const QUIET: Scenario = Scenario {
    name: "",
    about: "",
    tree: &[],
    writers: [&[], &[]],
    consumers: 1,
    asks: 1,
    horizons: 0,
    crash: None,
    crashes: 0,
    reads_ahead: 0,
    deaths: 0,
    by_line: false,
};

const POWER_LOSS: Scenario = Scenario { horizons: 1, crash: Some(Crash::PowerLoss), crashes: 1, ..QUIET };

/// Every scenario: docs/protocol.md has a section for each of the words in their names.
pub const SCENARIOS: [Scenario; 10] = [
    Scenario {
        name: "checkpoint",
        about: "two writers through the source, two consumers that ask, read line by line and die",
        tree: &[(1, true, at(ROOT, b'd')), (2, false, at(1, b'f'))],
        writers: [&[Write(2)], &[Create(3, at(1, b'g')), Rename(1, at(ROOT, b'e'))]],
        consumers: 2,
        deaths: 1,
        by_line: true,
        ..QUIET
    },
    Scenario {
        name: "open writers",
        about: "two programs write past the source, two checkpoints",
        tree: &[(1, false, at(ROOT, b'f')), (2, false, at(ROOT, b'g'))],
        writers: [
            &[Open(1), WritePast(1), WritePast(1), Close(1)],
            &[Open(1), WritePast(1), Close(1), Rename(1, at(ROOT, b'h'))],
        ],
        asks: 2,
        ..QUIET
    },
    Scenario {
        name: "horizon",
        about: "writes through the source while the horizon moves twice, a power loss at any moment",
        tree: &[(1, true, at(ROOT, b'd')), (2, false, at(1, b'f')), (3, false, at(ROOT, b'g'))],
        writers: [&[Write(2), Write(2)], &[Rename(2, at(ROOT, b'h'))]],
        ..POWER_LOSS
    },
    Scenario {
        name: "horizon and open writers",
        about: "writes past the source while the horizon moves, a power loss at any moment",
        tree: &[(1, false, at(ROOT, b'f')), (2, false, at(ROOT, b'g'))],
        writers: [&[Open(1), WritePast(1), Close(1)], &[Write(2)]],
        asks: 0,
        ..POWER_LOSS
    },
    Scenario {
        name: "horizon and directories",
        about: "directories are made, filled and moved, a power loss at any moment",
        tree: &[(1, true, at(ROOT, b'd')), (2, true, at(1, b'x')), (3, false, at(2, b'f'))],
        writers: [&[Mkdir(4, at(1, b'n')), Create(5, at(4, b'g'))], &[Rename(2, at(4, b'y')), Write(3)]],
        asks: 0,
        ..POWER_LOSS
    },
    Scenario {
        name: "directories in each other's place",
        about: "an old directory goes or moves away, another comes to its name and is filled, a power loss at any moment",
        tree: &[(1, true, at(ROOT, b'd')), (2, true, at(ROOT, b'e')), (3, false, at(2, b'f'))],
        writers: [
            &[Remove(1), Mkdir(4, at(ROOT, b'd')), Create(5, at(4, b'g'))],
            &[Rename(2, at(ROOT, b'd'))],
        ],
        asks: 0,
        ..POWER_LOSS
    },
    Scenario {
        name: "a file that moves while it is opened",
        about: "one program opens a file and writes past the source, another renames it into another directory, a power loss at any moment",
        tree: &[(1, true, at(ROOT, b'd')), (2, false, at(1, b'f')), (3, true, at(ROOT, b'e'))],
        writers: [&[Open(2), WritePast(2)], &[Rename(2, at(3, b'h'))]],
        asks: 0,
        ..POWER_LOSS
    },
    Scenario {
        name: "a window that begins late",
        about: "a directory is made under an intent of the old window, another operation renews the intent",
        tree: &[(1, true, at(ROOT, b'd')), (2, false, at(1, b'f'))],
        writers: [&[Mkdir(3, at(1, b'n')), Create(4, at(3, b'g'))], &[Write(2)]],
        asks: 0,
        ..POWER_LOSS
    },
    Scenario {
        name: "two crashes",
        about: "a power loss, work that goes on, another power loss",
        tree: &[(1, true, at(ROOT, b'd')), (2, false, at(1, b'f'))],
        writers: [&[Write(2)], &[Mkdir(3, at(1, b'n'))]],
        asks: 0,
        crashes: 2,
        ..POWER_LOSS
    },
    Scenario {
        name: "two kills",
        about: "the tracker is killed twice, a consumer lives on with lines in its hand",
        tree: &[(1, true, at(ROOT, b'd')), (2, false, at(1, b'f'))],
        writers: [&[Write(2)], &[Rename(1, at(ROOT, b'e'))]],
        horizons: 0,
        crash: Some(Crash::Kill),
        crashes: 2,
        ..POWER_LOSS
    },
];

impl Scenario {
    /// The same with everything that is bounded once more: for hours and not for minutes.
    pub fn deeper(self) -> Self {
        let with_crash = u8::from(self.crash.is_some());
        Self {
            asks: self.asks + 1,
            horizons: self.horizons + with_crash,
            reads_ahead: self.reads_ahead + with_crash,
            ..self
        }
    }

    /// The tree at the beginning.
    pub(crate) fn initial(&self) -> Tree {
        let mut tree = Tree::default();
        for (object, is_dir, place) in self.tree {
            tree.set(*object, Some(Node { is_dir: *is_dir, content: 0, born: 0, place: *place }));
        }
        tree
    }
}
