//! G1, G2, G4, G5: the share of the simulation that every test run has, and the lists that once led to a miss.

use std::time::Duration;

use highwater_simulation::action::{Action, At, End, Op, Turn};
use highwater_simulation::storage::Fate;
use highwater_simulation::{
    Case, Effort, Failure, Settings, Tally, ace, case_of, exhaust, explore, minimise, small_case_of,
};

fn at(directory: u8, name: u8) -> At {
    At { directory, name }
}

fn turn(action: Action) -> Turn {
    Turn { action, is_nested: false }
}

fn nested(action: Action) -> Turn {
    Turn { action, is_nested: true }
}

fn explained(outcome: Result<(), Box<Failure>>) {
    if let Err(failure) = outcome {
        panic!("{}", minimise(*failure, Duration::from_secs(10)));
    }
}

fn explore_all(settings: Settings, turns: Vec<Turn>) {
    let case = Case { settings, seed: 1, turns };
    let mut tally = Tally::default();
    explained(explore(&case, Effort { one_moment_in: 1, endings: 8 }, &mut tally));
    assert!(tally.crashes > 50, "only {} crashes", tally.crashes);
}

#[test]
fn seeds() {
    let mut tally = Tally::default();
    for seed in 0..60 {
        explained(explore(&case_of(seed), Effort { one_moment_in: 8, endings: 3 }, &mut tally));
    }
    assert!(tally.crashes > 2000 && tally.again > 500, "{tally:?}");
}

#[test]
fn short_lists_end_at_every_operation_and_so_does_each_recovery() {
    let mut tally = Tally::default();
    for seed in 0..2 {
        explained(exhaust(&small_case_of(seed), &mut tally));
    }
    assert!(tally.again > 1000, "{tally:?}");
}

#[test]
fn every_operation_alone() {
    let mut tally = Tally::default();
    for number in 0..ace::count(1) {
        explained(explore(&ace::case(1, number), Effort { one_moment_in: 4, endings: 2 }, &mut tally));
    }
    assert_eq!(tally.runs, ace::count(1));
}

#[test]
fn the_same_seed_does_the_same() {
    for seed in [3, 17, 40] {
        let run = || {
            let mut tally = Tally::default();
            explained(explore(&case_of(seed), Effort { one_moment_in: 8, endings: 3 }, &mut tally));
            (tally.crashes, tally.again, tally.recoveries)
        };
        assert_eq!(run(), run());
    }
}

// ---- found by the simulation, or by others and repeated here ----

/// Records that are made between the flip of the horizon's checkpoint and its window were told to nobody after a crash.
#[test]
fn what_is_recorded_while_the_horizon_moves_is_told_after_a_crash() {
    explore_all(
        Settings::PLAIN,
        vec![
            turn(Action::Do(Op::Mkdir(at(0, b'd')))),
            turn(Action::Start(Op::Mkdir(at(3, b'b')))),
            turn(Action::Horizon),
            nested(Action::Finish(0)),
        ],
    );
}

/// A tracker that died between the record of its start and that of the gap hid what was changed before.
#[test]
fn a_gap_is_on_record_before_the_start_that_ends_it() {
    for operations in 0..20 {
        explore_all(
            Settings::PLAIN,
            vec![
                turn(Action::Crash(End::Kill { is_mount_left: false })),
                turn(Action::Untracked(Op::Rename(at(3, b'a'), at(3, b'b')))),
                turn(Action::CrashIn(operations, End::Power { fate: Fate::Kept, seed: 1 })),
                turn(Action::Tick(20_000)),
            ],
        );
    }
}

/// A close compared while another program's write past the source was in flight, and took its timestamp for told.
#[test]
fn a_close_does_not_hide_the_write_of_another() {
    for pauses in 0..8 {
        let open = Op::Open { at: at(1, b'b'), is_direct: false };
        // Another file, looked at after this one.
        let other = Op::Open { at: at(2, b'a'), is_direct: false };
        // An overwrite changes no size.
        let mut turns = vec![turn(Action::Do(Op::Write(at(1, b'b'), 0)))];
        turns.extend([turn(Action::Do(open)), turn(Action::Do(open)), turn(Action::Do(other))]);
        turns.push(turn(Action::Tick(5000)));
        turns.extend([turn(Action::Ask(0)), turn(Action::Apply(0, 200)), turn(Action::Ack(0))]);
        turns.push(turn(Action::Ask(0)));
        turns.extend((0..pauses).map(|_| nested(Action::Yield)));
        turns.extend([
            nested(Action::UnseenBegin(0, 0)),
            nested(Action::Do(Op::Close(0))),
            nested(Action::Yield),
        ]);
        turns.extend([turn(Action::Apply(0, 200)), turn(Action::Ack(0)), turn(Action::UnseenEnd(0))]);
        explore_all(Settings::PLAIN, turns);
    }
}

/// A directory that is made after the clock was set back looks old, and took the name of one that a consumer holds.
#[test]
fn what_is_made_after_the_clock_was_set_back_is_told_as_a_whole() {
    explore_all(
        Settings::PLAIN,
        vec![
            turn(Action::SetClock(-30)),
            turn(Action::Do(Op::Rename(at(0, b'b'), at(1, b'd')))),
            turn(Action::Ask(1)),
            turn(Action::Apply(1, 200)),
            turn(Action::Do(Op::Mkdir(at(0, b'b')))),
        ],
    );
}

/// The start after a power loss died between the record of its boot and the one that said what that means: a relaxed volume was
/// then taken for one that had only been killed.
#[test]
fn what_was_lost_is_on_record_before_the_start_that_found_it() {
    let mut tally = Tally::default();
    explained(explore(&case_of(11_544), Effort { one_moment_in: 6, endings: 3 }, &mut tally));
}
