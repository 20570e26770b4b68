//! G4, G5: a crash at every operation of a run, with every fate of what was not synced.
//!
//! Two passes: the first counts the operations that change the medium, the second crashes in each. What must hold after
//! the crash, and after a second one during the recovery: everything that was durable is there; what is there is what
//! was appended, in order, without a hole; no number is used twice.

mod common;

use std::collections::BTreeMap;

use common::{Fault, ID, Memory, Operation, Random, Unsynced, payload, small};
use highwater_journal::{Journal, OpenError, Period, RecordKind, Start, Usn};

/// What the caller of a journal knows when the crash comes.
#[derive(Clone, Debug, Default)]
struct Known {
    /// The creation was acknowledged.
    is_created: bool,
    appended: BTreeMap<u64, (u64, Vec<u8>)>,
    /// The last number that a sync was acknowledged for.
    durable: u64,
    /// The last number that a write was acknowledged for.
    written: u64,
    /// Every record of earlier periods may be gone.
    keep_from: u64,
}

/// Runs the same work for the same seed, until it is done or the crash comes.
fn run(memory: &Memory, seed: u64, known: &mut Known) -> Option<()> {
    let mut random = Random(seed);
    let mut journal = match Journal::create(memory.clone(), ID, small()) {
        Ok(journal) => journal,
        Err(OpenError::Exists { .. }) => Journal::open(memory.clone(), small()).ok()?.0,
        Err(_) => return None,
    };
    known.is_created = true;
    work(&journal, &mut random, known)?;
    journal.close().ok()?;
    known.durable = known.appended.last_key_value().map_or(0, |(usn, _)| *usn);
    let journal = Journal::open(memory.clone(), small()).ok()?.0;
    work(&journal, &mut random, known)
}

fn work(journal: &Journal<Memory>, random: &mut Random, known: &mut Known) -> Option<()> {
    let mut period = journal.last_period().0;
    for _ in 0..220 {
        let number = random.next();
        let bytes = payload(number);
        let usn = journal.append(RecordKind(1), Period(period), &bytes).ok()?.0;
        assert!(known.appended.insert(usn, (period, bytes)).is_none(), "{usn} is used twice");
        match random.below(24) {
            0..3 => {
                journal.sync(Usn(usn)).ok()?;
                known.durable = usn;
                known.written = usn;
            }
            3..6 => {
                journal.write_through(Usn(usn)).ok()?;
                known.written = usn;
            }
            6 => period += 1,
            7 if period > 4 => {
                known.keep_from = period - 4;
                journal.retain(Period(period - 4)).ok()?;
            }
            _ => {}
        }
    }
    Some(())
}

/// Opens what a crash left and checks it. `None` if the opening crashed too.
fn check(memory: &Memory, known: &Known, is_kill: bool, context: &str) -> Option<()> {
    let (journal, recovered) = match Journal::open(memory.clone(), small()) {
        Ok(opened) => opened,
        Err(OpenError::Missing) if !known.is_created => return Some(()),
        Err(OpenError::Io { .. }) => return None,
        Err(error) => panic!("{context}: {error}: {:?}", std::error::Error::source(&error)),
    };
    let kept: Vec<_> = journal
        .records(Start::Oldest)
        .collect::<Result<_, _>>()
        .unwrap_or_else(|error| panic!("{context}: {error:?}"));
    for record in &kept {
        let (period, bytes) = &known.appended[&record.usn.0];
        assert_eq!((record.period.0, &record.payload), (*period, bytes), "{context}: {}", record.usn);
    }
    let kept: Vec<u64> = kept.iter().map(|record| record.usn.0).collect();
    let last = kept.last().copied().unwrap_or(0);
    let bound = if is_kill { known.written } else { known.durable };
    assert!(last >= bound, "{context}: {bound} was durable, the journal ends at {last}");
    assert_eq!(recovered.last_usn.0.max(last), recovered.last_usn.0, "{context}");
    // No hole: from the first one kept, everything that was appended up to the last is there.
    let first = kept.first().copied().unwrap_or(u64::MAX);
    let expected: Vec<u64> = known.appended.range(first.min(last)..=last).map(|(usn, _)| *usn).collect();
    assert_eq!(kept, expected, "{context}");
    let is_allowed_to_go = |usn: &u64| known.appended[usn].0 < known.keep_from;
    assert!(known.appended.range(..first.min(last)).all(|(usn, _)| is_allowed_to_go(usn)), "{context}");
    // It goes on, and no number is used twice.
    let next = journal.append(
        RecordKind(2),
        Period(recovered.last_period.unwrap_or_default().0),
        b"after the crash",
    );
    let next = next.ok()?;
    assert!(known.appended.keys().all(|usn| *usn < next.0), "{context}: {next} is used twice");
    journal.sync(next).ok()?;
    let count = journal.records(Start::Oldest).inspect(|record| assert!(record.is_ok(), "{context}")).count();
    assert_eq!(count, kept.len() + 1, "{context}");
    Some(())
}

fn fates(seed: u64) -> Vec<Unsynced> {
    let mut fates = vec![Unsynced::Kept, Unsynced::Dropped];
    fates.extend((0..3).map(|fate| Unsynced::Random(seed * 100 + fate)));
    fates.extend((0..2).map(|fate| Unsynced::Prefix(seed * 100 + fate)));
    fates
}

fn crash_everywhere(seed: u64) {
    let memory = Memory::new();
    run(&memory, seed, &mut Known::default()).expect("the run without a crash gets to its end");
    let operations = memory.operations();
    assert!(operations.contains(&Operation::Remove) && operations.contains(&Operation::Replace));
    let mut torn = 0;
    for at in 0..operations.len() as u64 {
        let memory = Memory::new();
        memory.set_fault(at, Fault::Crash);
        let mut known = Known::default();
        assert_eq!(run(&memory, seed, &mut known), None, "seed {seed}: no crash at {at}");
        for fate in fates(at + 1) {
            let context = format!(
                "seed {seed}, crash at {at} ({:?}), {fate:?}",
                operations[usize::try_from(at).expect("small")]
            );
            let after = memory.after_crash(fate);
            let is_kill = fate == Unsynced::Kept;
            check(&after.copy(), &known, is_kill, &context).expect("the second run has no crash");
            torn += usize::from(
                Journal::open(after.copy(), small())
                    .is_ok_and(|(_, recovered)| recovered.torn_tail.is_some()),
            );
            // A second crash during the recovery, at each of its operations.
            let is_recrashed = matches!(fate, Unsynced::Kept | Unsynced::Random(_)) && at % 3 == seed % 3;
            for second in (0..).take_while(|_| is_recrashed) {
                let again = after.copy();
                again.set_fault(second, Fault::Crash);
                if check(&again, &known, is_kill, &context).is_some() {
                    break;
                }
                let context = format!("{context}, then at {second}");
                let again = again.after_crash(Unsynced::Random(second));
                check_second(&again, &known, &context);
            }
        }
    }
    assert!(torn > 10, "the crashes tore only {torn} tails");
}

/// After a second crash there may be the one record that the check appended.
fn check_second(memory: &Memory, known: &Known, context: &str) {
    let (journal, _) = match Journal::open(memory.clone(), small()) {
        Ok(opened) => opened,
        Err(OpenError::Missing) if !known.is_created => return,
        Err(error) => panic!("{context}: {error}: {:?}", std::error::Error::source(&error)),
    };
    let records: Vec<_> = journal.records(Start::Oldest).map(|record| record.expect("valid")).collect();
    let ours: Vec<_> = records.iter().filter(|record| record.kind == RecordKind(1)).collect();
    assert!(records.len() - ours.len() <= 1, "{context}");
    assert!(ours.last().map_or(0, |record| record.usn.0) >= known.durable, "{context}");
    for record in ours {
        assert_eq!(record.payload, known.appended[&record.usn.0].1, "{context}");
    }
}

#[test]
fn nothing_durable_is_lost_in_a_crash_at_any_operation() {
    for seed in 1..=2 {
        crash_everywhere(seed);
    }
}

#[test]
fn a_failure_at_any_operation_loses_nothing_durable() {
    for kind in [std::io::ErrorKind::Other, std::io::ErrorKind::StorageFull] {
        let memory = Memory::new();
        run(&memory, 7, &mut Known::default()).expect("the run without a failure gets to its end");
        for at in 0..memory.operations().len() as u64 {
            let memory = Memory::new();
            memory.set_fault(at, Fault::Fail(kind));
            let mut known = Known::default();
            let _ = run(&memory, 7, &mut known);
            for fate in [Unsynced::Kept, Unsynced::Dropped, Unsynced::Random(at)] {
                check(&memory.after_crash(fate), &known, false, &format!("{kind} at {at}, {fate:?}"))
                    .expect("no crash");
            }
        }
    }
}
