//! Every byte of a small state is changed, one at a time: the answer is right, or fresh, or there is an error. Never short. G5.
//!
//! One bit of each byte, another one in each; the ignored tests try every bit. Zeros behind the last record are not the
//! journal's yet; of them a sample.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "the other tests use the rest of it")]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use highwater_tracker::{Answer, Cursor, RequestError, Since, Tracker};
use support::{Volume, brief, config, facts};
use tempfile::tempdir;

/// What a consumer is told with one state.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Lines(Vec<String>),
    Fresh,
    Error(String),
}

/// The files of a state.
type State = BTreeMap<String, Vec<u8>>;

fn read(directory: &Path) -> State {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .filter(|(name, _)| name != "lock")
        .collect()
}

/// Opens the state and asks as a consumer, and with its cursor.
fn ask(state: &State, home: &Path, cursor: Cursor) -> [Told; 2] {
    let directory = home.join("state");
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    for (name, bytes) in state {
        fs::write(directory.join(name), bytes).unwrap();
    }
    let storage = highwater_journal::Directory::open(&directory).unwrap();
    let opened = Tracker::open(storage, facts(&home.join("tree"), "boot", true), config());
    let told = |answer: Result<Answer, RequestError>| match answer {
        Err(error) => Told::Error(error.to_string()),
        Ok(answer) if answer.fresh.is_some() => Told::Fresh,
        Ok(answer) => Told::Lines(answer.lines.iter().map(brief).collect()),
    };
    match opened {
        Err(error) => [Told::Error(error.to_string()), Told::Error(error.to_string())],
        Ok((tracker, _)) => {
            let source = support::source(&home.join("tree"));
            if let Err(error) = tracker.start(source) {
                return [Told::Error(error.to_string()), Told::Error(error.to_string())];
            }
            [Since::Consumer("c".to_owned()), Since::Cursor(cursor)]
                .map(|since| told(tracker.changes(&since, None)))
        }
    }
}

/// A small state in `home`, which has also been left as a crash leaves it if asked to, and the cursor of its consumer.
fn prepare(home: &Path, crashed: bool) -> (State, Cursor) {
    let volume = Volume::open(home);
    volume.mkdir("d");
    volume.create("d/f");
    volume.tracker.add_consumer("c").unwrap();
    let cursor = volume.tracker.changes(&Since::Now, None).unwrap().cursor;
    volume.tracker.ack("c", &cursor).unwrap();
    volume.write("d/f", "1");
    volume.create("x");
    volume.tracker.barrier(None).unwrap();
    volume.tracker.advance_horizon().unwrap();
    volume.rename("x", "d/y");
    volume.mkdir("d/new");
    volume.create("d/new/file");
    volume.tracker.barrier(None).unwrap();
    volume.remove("d/f");
    if crashed {
        volume.create("d/last");
    } else {
        volume.tracker.stop().unwrap();
    }
    drop(volume);
    (read(&home.join("state")), cursor)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bits {
    One,
    All,
}

fn every_byte(crashed: bool, bits: Bits) {
    let memory = Path::new("/dev/shm");
    let home = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempdir() }.unwrap();
    let (state, cursor) = prepare(home.path(), crashed);
    let right = ask(&state, home.path(), cursor);
    let Told::Lines(lines) = &right[1] else { panic!("{right:?}") };
    assert!(lines.len() >= 3 && right[0] == right[1], "{right:?}");
    let (mut tried, mut fresh, mut errors) = (0, 0, 0);
    for (name, bytes) in &state {
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        for at in (0..used).chain((used..bytes.len()).step_by(509)) {
            let masks = if bits == Bits::All { 0..8 } else { at % 8..at % 8 + 1 };
            for mask in masks.map(|bit| 1_u8 << bit) {
                let mut damaged = state.clone();
                damaged.get_mut(name).unwrap()[at] ^= mask;
                let told = ask(&damaged, home.path(), cursor);
                for (told, right) in told.iter().zip(&right) {
                    match told {
                        Told::Fresh => fresh += 1,
                        Told::Error(_) => errors += 1,
                        Told::Lines(told) => {
                            let Told::Lines(right) = right else { panic!("{right:?}") };
                            // More is told where less is known for sure; what is told must cover it all.
                            let is_whole = told.iter().any(|line| line == "rescan* .");
                            assert!(
                                told == right || is_whole,
                                "{name}, byte {at} xor {mask:#x}: told {told:?}, right is {right:?}"
                            );
                        }
                    }
                }
                tried += 1;
            }
        }
        // Cut off, and gone.
        for length in (0..bytes.len()).step_by((bytes.len() / 16).max(1)) {
            let mut damaged = state.clone();
            damaged.get_mut(name).unwrap().truncate(length);
            for (told, right) in ask(&damaged, home.path(), cursor).iter().zip(&right) {
                assert!(!matches!(told, Told::Lines(_)) || told == right, "{name} cut at {length}: {told:?}");
            }
            tried += 1;
        }
        let mut damaged = state.clone();
        damaged.remove(name);
        for (told, right) in ask(&damaged, home.path(), cursor).iter().zip(&right) {
            assert!(!matches!(told, Told::Lines(_)) || told == right, "{name} is gone: {told:?}");
        }
    }
    println!("{tried} damaged states, {fresh} fresh answers, {errors} errors");
    assert!(fresh > tried / 2, "most damage has to be noticed: {fresh} of {tried}");
}

#[test]
fn every_changed_byte_of_a_state_that_was_stopped_is_harmless_or_noticed() {
    every_byte(false, Bits::One);
}

#[test]
fn every_changed_byte_of_a_state_that_was_left_by_a_crash_is_harmless_or_noticed() {
    every_byte(true, Bits::One);
}

#[test]
#[ignore = "takes minutes; the two above try one bit of each byte"]
fn every_changed_bit_is_harmless_or_noticed() {
    every_byte(false, Bits::All);
    every_byte(true, Bits::All);
}
