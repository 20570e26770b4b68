//! What happens in a run: a list of actions, made from a seed or enumerated, and small enough to be shortened.
//!
//! An action that cannot be done when its turn comes is none, so that any part of a list is a list.

use crate::random::Random;
use crate::storage::Fate;
use crate::tree::Name;

/// A name in one of the directories that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// Which directory, counted from the root.
    pub directory: u8,
    /// Which name.
    pub name: Name,
}

/// One operation of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Makes a file.
    Create(At),
    /// Makes a directory.
    Mkdir(At),
    /// Makes a symbolic link.
    Symlink(At),
    /// Writes to one block of a file, through the source.
    Write(At, u8),
    /// Makes a file empty.
    Truncate(At),
    /// Changes attributes.
    Chmod(At),
    /// Gives a file one more name.
    Link(At, At),
    /// Removes a name: of a directory if it is empty.
    Remove(At),
    /// Moves a name, over what is there.
    Rename(At, At),
    /// Exchanges two names.
    Exchange(At, At),
    /// Makes a file without a name, and keeps it open for writing.
    Temporary(u8),
    /// Gives a file without a name one.
    LinkTemporary(At),
    /// Opens a file for writing past the source.
    Open {
        /// Which.
        at: At,
        /// With `O_DIRECT`.
        is_direct: bool,
    },
    /// Closes one of the files that are open for writing.
    Close(u8),
}

/// How a life of the tracker ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process is killed. The mount stays, dead, or is gone, so that the tree can be changed unseen.
    Kill {
        /// It stays.
        is_mount_left: bool,
    },
    /// The power fails.
    Power {
        /// What becomes of the tracker's state.
        fate: Fate,
        /// What becomes of the tree.
        seed: u64,
    },
}

/// One thing that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// An operation from its beginning to its end.
    Do(Op),
    /// An operation arrives.
    Start(Op),
    /// One of those that have arrived goes one step on.
    Step(u8),
    /// One of those that have arrived goes on to its end.
    Finish(u8),
    /// The kernel processes an answer.
    Answer,
    /// A write past the source.
    Unseen(u8, u8),
    /// A write past the source has changed the time and not yet the data.
    UnseenBegin(u8, u8),
    /// The data of such a write.
    UnseenEnd(u8),
    /// A file that is open is mapped.
    Map(u8),
    /// A store into a mapping.
    Store(u8, u8),
    /// A mapping goes.
    Unmap(u8),
    /// Changes reach the disk by themselves.
    WriteBack(u8),
    /// `fsync`.
    Fsync(At),
    /// Time passes, milliseconds.
    Tick(u32),
    /// The clock is set, seconds.
    SetClock(i32),
    /// A checkpoint that nobody reads.
    Checkpoint,
    /// The stable horizon moves.
    Horizon,
    /// A consumer asks what changed.
    Ask(u8),
    /// A consumer applies some lines.
    Apply(u8, u8),
    /// A consumer acks what it has applied.
    Ack(u8),
    /// A consumer dies. What it has applied since its last ack is still there, or is not.
    Die(u8, bool),
    /// A consumer reads something that it was not told, if its cursor says that it may be reading anything.
    ReadMore(u8, At),
    /// Ends the share of one pause.
    Yield,
    /// The life ends.
    Crash(End),
    /// The life will end in the n-th operation of the storage from now.
    CrashIn(u8, End),
    /// The tracker is stopped.
    Stop,
    /// An operation while nobody tracks.
    Untracked(Op),
    /// The disk of the state is full, or has room again.
    Full(bool),
    /// The n-th operation of the storage from now fails.
    FailIn(u8),
    /// The disk of the state fails from now on.
    Broken,
    /// The tracked filesystem or the kernel refuses the next call of the source.
    SourceFails,
}

/// An action, and where it may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// What.
    pub action: Action,
    /// It happens in a pause of what the tracker does at the moment, if there is one.
    pub is_nested: bool,
}

/// What random runs are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mix {
    /// How many actions.
    pub len: usize,
    /// Mostly writes past the source, and calls while they are in flight.
    pub is_of_writers: bool,
    /// Lives end in the middle.
    pub with_crashes: bool,
    /// The tracker is away for a time, and the tree changes.
    pub with_gaps: bool,
    /// The clock is set.
    pub with_clock: bool,
    /// The disk fails or is full.
    pub with_faults: bool,
}

fn at(random: &mut Random) -> At {
    At { directory: random.byte() % 6, name: b'a' + random.byte() % 4 }
}

/// Any operation.
pub fn operation(random: &mut Random) -> Op {
    match random.below(27) {
        0..=2 => Op::Create(at(random)),
        3..=5 => Op::Mkdir(at(random)),
        6 => Op::Symlink(at(random)),
        7..=9 => Op::Write(at(random), random.byte()),
        10 => Op::Truncate(at(random)),
        11 => Op::Chmod(at(random)),
        12 => Op::Link(at(random), at(random)),
        13..=14 => Op::Remove(at(random)),
        15..=18 => Op::Rename(at(random), at(random)),
        19 => Op::Exchange(at(random), at(random)),
        20 => Op::Temporary(random.byte()),
        21 => Op::LinkTemporary(at(random)),
        22..=24 => Op::Open { at: at(random), is_direct: random.once_in(5) },
        _ => Op::Close(random.byte()),
    }
}

fn fate(random: &mut Random) -> Fate {
    match random.below(8) {
        0 => Fate::Kept,
        1 => Fate::Dropped,
        _ => Fate::Random(random.next()),
    }
}

/// Any end.
pub fn end(random: &mut Random) -> End {
    if random.once_in(3) {
        End::Kill { is_mount_left: true }
    } else {
        End::Power { fate: fate(random), seed: random.next() }
    }
}

/// Something that may also happen in a pause of the tracker.
fn small(random: &mut Random, mix: Mix) -> Action {
    if mix.is_of_writers && !random.once_in(3) {
        return match random.below(20) {
            0..=2 => Action::Do(Op::Open { at: at(random), is_direct: random.once_in(5) }),
            3..=4 => Action::Start(Op::Open { at: at(random), is_direct: random.once_in(5) }),
            5 => Action::Do(Op::Close(random.byte())),
            6 => Action::Start(Op::Close(random.byte())),
            7..=8 => Action::Step(random.byte()),
            9..=10 => Action::Unseen(random.byte(), random.byte()),
            11..=14 => Action::UnseenBegin(random.byte(), random.byte()),
            15 => Action::UnseenEnd(random.byte()),
            16 => Action::Map(random.byte()),
            17..=18 => Action::Store(random.byte(), random.byte()),
            _ => Action::Unmap(random.byte()),
        };
    }
    match random.below(46) {
        0..=7 => Action::Do(operation(random)),
        8..=14 => Action::Start(operation(random)),
        15..=22 => Action::Step(random.byte()),
        23..=24 => Action::Finish(random.byte()),
        25 => Action::Answer,
        26..=28 => Action::Unseen(random.byte(), random.byte()),
        29..=31 => Action::UnseenBegin(random.byte(), random.byte()),
        32 => Action::UnseenEnd(random.byte()),
        33 => Action::Map(random.byte()),
        34..=35 => Action::Store(random.byte(), random.byte()),
        36 => Action::Unmap(random.byte()),
        37..=38 => Action::WriteBack(1 + random.byte() % 4),
        39 => Action::Fsync(at(random)),
        40 => Action::Tick([1, 1, 30, 5000][random.index(4)]),
        41 => Action::ReadMore(random.byte(), at(random)),
        42 => Action::Die(random.byte(), random.once_in(2)),
        _ => Action::Apply(random.byte(), 1 + random.byte() % 3),
    }
}

/// A few actions in an order in which mistakes are likely to show, with room for chance.
fn motif(random: &mut Random, push: &mut dyn FnMut(Action, bool)) {
    let writer = random.byte();
    let block = random.byte();
    let consumer = random.byte();
    let file = at(random);
    let open = Op::Open { at: file, is_direct: false };
    let read = |push: &mut dyn FnMut(Action, bool)| {
        push(Action::Apply(consumer, 200), false);
        push(Action::Ack(consumer), false);
    };
    match random.below(5) {
        // A file is opened while it is being renamed, and the horizon moves.
        4 => {
            push(
                Action::Start(if random.once_in(3) {
                    Op::Link(file, at(random))
                } else {
                    Op::Rename(file, at(random))
                }),
                false,
            );
            for _ in 0..3 {
                push(Action::Step(u8::MAX), false);
            }
            push(Action::Tick(5000), false);
            push(Action::Horizon, false);
            push(Action::Start(open), true);
            push(Action::Step(1), true);
            push(Action::Step(1), true);
            push(Action::Yield, true);
            push(Action::Unseen(writer, block), false);
        }
        // An operation that goes on while the horizon moves, and another one that has begun when it began to.
        0 => {
            push(Action::Start(operation(random)), false);
            for _ in 0..1 + random.below(3) {
                push(Action::Step(u8::MAX), false);
            }
            push(Action::Tick(5000), false);
            push(Action::Horizon, false);
            push(Action::Start(if random.once_in(2) { open } else { operation(random) }), true);
            for _ in 0..random.below(5) {
                push(Action::Step(random.byte()), true);
            }
            push(Action::Yield, true);
            push(Action::Unseen(writer, block), false);
        }
        // A mapping that is stored to again, when a store leaves no trace any more.
        1 => {
            push(Action::Do(open), false);
            push(Action::Map(writer), false);
            push(Action::Store(writer, block), false);
            push(Action::Ask(consumer), false);
            read(push);
            push(Action::Store(writer, block), false);
            push(Action::Unmap(writer), false);
            push(Action::Ask(consumer), false);
            read(push);
        }
        // An operation that begins after the barrier, and is recorded and not answered when the batch is handed out.
        2 => {
            push(Action::Do(open), false);
            push(Action::Ask(consumer), false);
            push(Action::Start(operation(random)), true);
            for _ in 0..3 + random.below(3) {
                push(Action::Step(u8::MAX), true);
            }
            push(Action::Yield, true);
            read(push);
        }
        // A write that is under way while a batch is made.
        _ => {
            push(Action::Do(open), false);
            push(Action::Do(open), false);
            if random.once_in(2) {
                push(Action::Do(Op::Open { at: at(random), is_direct: false }), false);
            }
            push(Action::Ask(consumer), false);
            for _ in 0..random.below(5) {
                push(Action::Yield, true);
            }
            push(Action::UnseenBegin(writer, block), true);
            push(if random.once_in(2) { Action::Do(Op::Close(random.byte())) } else { Action::Answer }, true);
            push(Action::Yield, true);
            read(push);
            push(Action::UnseenEnd(writer), false);
            push(Action::Ask(consumer), false);
            read(push);
        }
    }
}

/// A run of a seed.
pub fn generate(random: &mut Random, mix: Mix) -> Vec<Turn> {
    let mut turns: Vec<Turn> = Vec::new();
    let mut push = |action, is_nested| turns.push(Turn { action, is_nested });
    let pauses = |random: &mut Random, push: &mut dyn FnMut(Action, bool)| {
        for _ in 0..random.below(5) {
            for _ in 0..random.below(4) {
                push(small(random, mix), true);
            }
            push(Action::Yield, true);
        }
    };
    let mut count = 0;
    while count < mix.len {
        count += 1;
        match random.below(if mix.is_of_writers { 24 } else { 40 }) {
            0..=1 => {
                push(Action::Tick(5000), false);
                push(Action::Horizon, false);
                pauses(random, &mut push);
                push(Action::Tick(5000), false);
            }
            2 => {
                push(Action::Checkpoint, false);
                pauses(random, &mut push);
            }
            3..=7 => {
                let consumer = random.byte();
                push(Action::Ask(consumer), false);
                pauses(random, &mut push);
                if random.once_in(2) {
                    push(Action::Apply(consumer, 200), false);
                    push(Action::Ack(consumer), false);
                }
            }
            8..=9 => push(Action::Ack(random.byte()), false),
            10 if mix.with_crashes => {
                let end = end(random);
                push(Action::Crash(end), false);
                if random.once_in(3) {
                    push(Action::CrashIn(random.byte() % 24, self::end(random)), false);
                }
                pauses(random, &mut push);
            }
            11 if mix.with_crashes => push(Action::CrashIn(random.byte() % 20, end(random)), false),
            12 if mix.with_gaps => {
                let end = if random.once_in(2) {
                    Action::Stop
                } else {
                    Action::Crash(End::Kill { is_mount_left: false })
                };
                push(Action::Tick(10_000), false);
                push(end, false);
                push(Action::Tick(10_000), false);
                for _ in 0..random.below(4) {
                    push(Action::Untracked(operation(random)), false);
                }
                if random.once_in(3) {
                    push(Action::CrashIn(random.byte() % 30, self::end(random)), false);
                }
                pauses(random, &mut push);
            }
            13 if mix.with_crashes => {
                push(Action::Stop, false);
                pauses(random, &mut push);
            }
            14 | 15 if mix.with_clock && random.once_in(2) => {
                // What is made now is born before the window.
                push(Action::SetClock(-28), false);
                push(Action::Do(Op::Mkdir(at(random))), false);
                push(Action::WriteBack(4), false);
                push(Action::Do(Op::Create(at(random))), false);
                push(Action::Do(Op::Create(at(random))), false);
            }
            14 if mix.with_clock => {
                push(Action::SetClock(i32::from(random.byte() % 50) - 30), random.once_in(3));
            }
            15 if mix.with_faults => match random.below(5) {
                0 => push(Action::Full(true), false),
                1 => push(Action::Full(false), false),
                2 => push(Action::Broken, false),
                3 => push(Action::FailIn(random.byte() % 30), false),
                _ => push(Action::SourceFails, random.once_in(2)),
            },
            16..=17 => motif(random, &mut push),
            _ => push(small(random, mix), false),
        }
    }
    turns
}
