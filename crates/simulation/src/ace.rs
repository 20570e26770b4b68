//! Bounded exhaustive sequences, in the manner of CrashMonkey's ACE (Mohan et al., OSDI 2018).
//!
//! All sequences of a few operations over a small set of names, each followed or not by `fsync`, a checkpoint that a consumer
//! applies and acks, or a move of the stable horizon; ended at every moment. ACE looks for what a filesystem loses; here the
//! filesystem may lose whatever [`tree`](crate::tree) allows, and nobody may miss it.

use crate::action::{Action, At, Op, Turn};
use crate::explore::Case;
use crate::random::Random;
use crate::tree::Disorder;
use crate::world::Settings;

/// What comes after an operation.
const PERSISTENCE: [&[Action]; 4] = [
    &[],
    &[Action::Fsync(A_FILE), Action::WriteBack(2)],
    &[Action::Ask(0), Action::Apply(0, 200), Action::Ack(0)],
    &[Action::Tick(5000), Action::Horizon, Action::Tick(5000)],
];

// The tree that every run begins with: a/, a/a/, a/a/a, a/b, b/, b/a, b/b = c.
const ROOT_C: At = At { directory: 0, name: b'c' };
const ROOT_A: At = At { directory: 0, name: b'a' };
const ROOT_B: At = At { directory: 0, name: b'b' };
const ROOT_NEW: At = At { directory: 0, name: b'd' };
const A_FILE: At = At { directory: 1, name: b'b' };
const A_NEW: At = At { directory: 1, name: b'd' };
const A_DEEP: At = At { directory: 1, name: b'a' };
const B_FILE: At = At { directory: 2, name: b'a' };
const B_LINK: At = At { directory: 2, name: b'b' };
const B_NEW: At = At { directory: 2, name: b'd' };
const DEEP_FILE: At = At { directory: 3, name: b'a' };
const DEEP_NEW: At = At { directory: 3, name: b'd' };

/// The operations.
const OPERATIONS: [&[Action]; 32] = [
    &[Action::Do(Op::Create(A_NEW))],
    &[Action::Do(Op::Create(B_NEW))],
    &[Action::Do(Op::Mkdir(A_NEW))],
    &[Action::Do(Op::Mkdir(ROOT_NEW))],
    &[Action::Do(Op::Mkdir(DEEP_NEW))],
    &[Action::Do(Op::Symlink(B_NEW))],
    &[Action::Do(Op::Write(A_FILE, 0))],
    &[Action::Do(Op::Write(B_LINK, 1))],
    &[Action::Do(Op::Write(DEEP_FILE, 0))],
    &[Action::Do(Op::Truncate(A_FILE))],
    &[Action::Do(Op::Chmod(A_FILE))],
    &[Action::Do(Op::Chmod(A_DEEP))],
    &[Action::Do(Op::Link(A_FILE, B_NEW))],
    &[Action::Do(Op::Link(ROOT_C, A_NEW))],
    &[Action::Do(Op::Remove(A_FILE))],
    &[Action::Do(Op::Remove(B_LINK))],
    &[Action::Do(Op::Remove(DEEP_FILE))],
    &[Action::Do(Op::Remove(A_DEEP))],
    &[Action::Do(Op::Rename(A_FILE, A_NEW))],
    &[Action::Do(Op::Rename(A_FILE, B_FILE))],
    &[Action::Do(Op::Rename(A_NEW, B_NEW))],
    &[Action::Do(Op::Rename(B_FILE, A_FILE))],
    &[Action::Do(Op::Rename(A_DEEP, B_NEW))],
    &[Action::Do(Op::Rename(A_DEEP, ROOT_NEW))],
    &[Action::Do(Op::Rename(ROOT_B, DEEP_NEW))],
    &[Action::Do(Op::Exchange(A_FILE, B_FILE))],
    &[Action::Do(Op::Exchange(A_DEEP, ROOT_B))],
    &[Action::Do(Op::Exchange(ROOT_A, ROOT_B))],
    &[Action::Do(Op::Temporary(1)), Action::Unseen(0, 0), Action::Do(Op::LinkTemporary(A_NEW))],
    &[Action::Do(Op::Open { at: A_FILE, is_direct: false }), Action::Unseen(0, 0)],
    &[Action::Unseen(0, 1), Action::Do(Op::Close(0))],
    &[
        Action::Do(Op::Open { at: B_LINK, is_direct: false }),
        Action::Map(0),
        Action::Store(0, 0),
        Action::Store(0, 0),
    ],
];

/// How many sequences of so many operations there are.
#[must_use]
pub fn count(len: u32) -> u64 {
    ((OPERATIONS.len() * PERSISTENCE.len()) as u64).pow(len)
}

/// The n-th sequence of so many operations.
#[must_use]
pub fn case(len: u32, number: u64) -> Case {
    let mut left = number;
    let mut turns = Vec::new();
    let mut choose = |of: &[&'static [Action]]| {
        let chosen = of[usize::try_from(left % of.len() as u64).unwrap_or_default()];
        left /= of.len() as u64;
        turns.extend(chosen.iter().map(|action| Turn { action: *action, is_nested: false }));
    };
    for _ in 0..len {
        choose(&OPERATIONS);
        choose(&PERSISTENCE);
    }
    let disorder = if Random::derived(number, 3).once_in(2) { Disorder::Any } else { Disorder::Data };
    Case { settings: Settings { disorder, ..Settings::PLAIN }, seed: number, turns }
}
