//! The guarantees of docs/guarantees.md, each with the counter-example that it rules out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use highwater_tracker::{
    Change, CheckpointId, Cursor, Durability, FreshReason, Intent, ObjectType, Place, RequestError, Sample,
    Since, Source, WriterMode,
};
use support::{Volume, config, handle};
use tempfile::tempdir;

fn lines(expected: &[&str]) -> Vec<String> {
    expected.iter().map(ToString::to_string).collect()
}

// ---- G1, G2: batches ----

#[test]
fn a_batch_tells_what_happened_and_the_next_one_what_happened_then() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    let start = volume.now();
    volume.mkdir("d");
    volume.create("d/f");
    let (first, cursor) = volume.since(start);
    assert_eq!(first, lines(&["created d", "created d/f"]));
    volume.write("d/f", "new");
    volume.rename("d", "e");
    let (second, next) = volume.since(cursor);
    // `f` was told before, and may have been out of reach when the consumer looked for it.
    assert_eq!(second, lines(&["renamed e < d", "modified e/f", "rescan* e"]));
    assert_eq!(volume.since(next), (vec![], next), "nothing has happened: the same cursor again");
    assert_eq!(
        volume.since(start).0,
        lines(&["created e", "created e/f", "deleted d"]),
        "an older cursor still works"
    );
}

#[test]
fn a_checkpoint_that_failed_after_its_flip_is_handed_out_by_the_next_one() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    let start = volume.now();
    volume.create("f");
    volume.source.is_unsettled.store(true, Ordering::SeqCst);
    let at_once = Some(Instant::now());
    for _ in 0..2 {
        let answer = volume.tracker.changes(&Since::Cursor(start), at_once);
        assert!(matches!(answer, Err(RequestError::Deadline { .. })), "{answer:?}");
    }
    volume.source.is_unsettled.store(false, Ordering::SeqCst);
    let (told, cursor) = volume.since(start);
    assert_eq!(told, lines(&["created f"]), "nothing has happened since the flip, and still it is told");
    assert_eq!(volume.source.settled.load(Ordering::SeqCst), 1);
    assert_eq!(volume.since(cursor), (vec![], cursor));
}

#[test]
fn a_rename_alone_is_one_line() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    volume.mkdir("d");
    volume.create("d/f");
    let (_, cursor) = volume.since(volume.now());
    volume.create("other");
    // The holder of this cursor has been told nothing of `d`.
    let (told, cursor) = volume.since(cursor);
    assert_eq!(told, lines(&["created other"]));
    volume.write("other", "x");
    let (_, cursor) = volume.since(cursor);
    volume.rename("d", "e");
    assert_eq!(volume.since(cursor).0, lines(&["renamed e < d"]));
}

#[test]
fn a_checkpoint_waits_for_an_operation_in_flight_and_blocks_no_other() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    volume.create("f");
    let start = volume.now();
    let section = volume.tracker.section();
    section.intend(&[Intent::Directory(&handle(&volume.root))]).unwrap();
    std::thread::scope(|scope| {
        let (done, is_done) = mpsc::channel();
        let tracker = &volume.tracker;
        scope.spawn(move || {
            let answer = tracker.changes(&Since::Cursor(start), None).unwrap();
            done.send(answer).unwrap();
        });
        let early = tracker.barrier(Some(Instant::now() + Duration::from_millis(50)));
        assert!(matches!(early, Err(RequestError::Deadline { .. })), "{early:?}");
        for number in 0..1000 {
            volume.create(&format!("other-{number}"));
        }
        assert!(is_done.try_recv().is_err(), "the batch was handed out with an operation in flight");
        section.record(Change::Modified { object: handle(&volume.path("f")) }, || {});
        drop(section);
        let answer = is_done.recv().unwrap();
        assert!(answer.lines.iter().any(|line| line.path == b"f"), "G2: it began before the checkpoint");
    });
}

/// If a record were put into the period that was current when its section was entered, this one would come into a batch that
/// has been handed out.
#[test]
fn an_operation_that_ends_after_a_checkpoint_is_in_a_later_batch() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    volume.create("a");
    volume.create("b");
    let start = volume.now();
    volume.write("a", "1");
    let (first, cursor) = volume.since(start);
    assert_eq!(first, lines(&["modified a"]));
    volume.write("a", "2");
    assert_eq!(volume.since(cursor).0, lines(&["modified a"]), "told in the batch before, and changed again");
}

#[test]
fn the_kernel_is_let_finish_before_a_batch_is_handed_out() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    let start = volume.now();
    let before = volume.source.settled.load(std::sync::atomic::Ordering::SeqCst);
    volume.create("f");
    volume.since(start);
    assert!(volume.source.settled.load(std::sync::atomic::Ordering::SeqCst) > before);
}

#[test]
fn a_descriptor_that_was_open_before_is_sampled_at_every_checkpoint() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    volume.create("f");
    let object = handle(&volume.path("f"));
    let section = volume.tracker.section();
    section.intend(&[Intent::Directory(&handle(&volume.root))]).unwrap();
    let sample = volume.source.sample(&object).unwrap().unwrap();
    section.opened(&object, WriterMode { unseen: true, ..WriterMode::default() }, sample);
    drop(section);
    let start = volume.now();
    std::fs::write(volume.path("f"), "written past the source").unwrap();
    let (told, cursor) = volume.since(start);
    assert_eq!(told, lines(&["modified f"]));
    assert_eq!(volume.since(cursor), (vec![], cursor));
    std::fs::write(volume.path("f"), "and again, before it is closed").unwrap();
    let section = volume.tracker.section();
    section.closed(&object, || volume.source.sample(&object).unwrap());
    drop(section);
    assert_eq!(volume.since(cursor).0, lines(&["modified f"]));
}

// ---- G4: crashes ----

#[test]
fn what_was_not_stable_is_told_again_after_a_crash_even_if_it_was_acked() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    volume.mkdir("old");
    volume.create("old/f");
    volume.mkdir("quiet");
    volume.tracker.advance_horizon().unwrap();
    std::thread::sleep(Duration::from_millis(2100)); // Births are told apart by time, with two seconds of slack.
    volume.tracker.advance_horizon().unwrap();
    volume.write("old/f", "new");
    volume.mkdir("old/born");
    volume.create("old/born/g");
    volume.tracker.add_consumer("c").unwrap();
    let acked = volume.now();
    volume.tracker.ack("c", &acked).unwrap();
    drop(volume);

    let volume = Volume::open(directory.path());
    assert!(volume.opening.crashed && !volume.opening.catching_up);
    let answer = volume.tracker.changes(&Since::Consumer("c".into()), None).unwrap();
    let told: Vec<String> = answer.lines.iter().map(support::brief).collect();
    assert_eq!(told, lines(&["rescan old", "rescan* old/born"]), "and nothing of `quiet`");
    assert!(answer.lines.iter().all(|line| line.recovered));
    // And once more, until the horizon has moved.
    drop(volume);
    let volume = Volume::open(directory.path());
    assert_eq!(volume.since(acked).0, lines(&["rescan old", "rescan* old/born"]));
    volume.tracker.advance_horizon().unwrap();
    let after = volume.now();
    drop(volume);
    let volume = Volume::open(directory.path());
    assert_eq!(volume.since(after).0, lines(&[]));
}

/// A consumer compares names: two old directories that were exchanged would look the same.
#[test]
fn a_directory_that_was_moved_before_a_crash_is_told_as_a_whole() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    volume.mkdir("a");
    volume.mkdir("a/deep");
    volume.create("a/deep/f");
    std::thread::sleep(Duration::from_millis(2100));
    volume.tracker.advance_horizon().unwrap();
    volume.rename("a", "b");
    let cursor = volume.now();
    drop(volume);
    let volume = Volume::open(directory.path());
    assert_eq!(volume.since(cursor).0, lines(&["rescan .", "rescan* b"]));
}

/// Records of before a crash may be of changes that never reached the disk: they are no facts.
#[test]
fn records_that_were_not_stable_are_left_out_after_a_crash() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    volume.create("a");
    volume.tracker.advance_horizon().unwrap();
    let cursor = volume.now();
    volume.rename("a", "b");
    volume.now();
    drop(volume);
    // The power loss takes the rename back.
    std::fs::rename(directory.path().join("tree/b"), directory.path().join("tree/a")).unwrap();
    let volume = Volume::open(directory.path());
    assert_eq!(volume.since(cursor).0, lines(&["rescan ."]));
}

#[test]
fn the_horizon_waits_for_operations_that_went_on_under_an_older_intent() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    // A new volume is synced once.
    volume.now();
    let section = volume.tracker.section();
    section.intend(&[Intent::Directory(&handle(&volume.root))]).unwrap();
    std::thread::scope(|scope| {
        let moved = scope.spawn(|| volume.tracker.advance_horizon());
        let synced = || volume.source.synced.load(std::sync::atomic::Ordering::SeqCst);
        let before = synced();
        // Others go on, and the filesystem is not synced while it is in flight.
        (0..100).for_each(|number| volume.create(&format!("f{number}")));
        assert_eq!(synced(), before);
        drop(section);
        moved.join().unwrap().unwrap();
        assert!(synced() > before);
    });
}

/// Between the flip of the horizon's checkpoint and its `syncfs`: the change gets to the disk, its record does not count after a crash
/// since its period is not stable, so it must have an intent that counts.
#[test]
fn what_happens_while_the_horizon_moves_is_told_after_a_crash() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    volume.create("f");
    let cursor = volume.now();
    volume.create("g");
    let (tracker, path) = (Arc::clone(&volume.tracker), volume.path("f"));
    volume.meanwhile(move || {
        let section = tracker.section();
        section.intend(&[Intent::Directory(&handle(path.parent().unwrap()))]).unwrap();
        std::fs::write(&path, "new").unwrap();
        section.record(Change::Modified { object: handle(&path) }, || {});
    });
    volume.tracker.advance_horizon().unwrap();
    drop(volume);
    let volume = Volume::open(directory.path());
    let told = volume.since(cursor).0;
    assert!(told.contains(&"rescan .".to_owned()), "{told:?}");
}

/// The same for a file that was changed past the source and closed then.
#[test]
fn a_writer_that_closes_while_the_horizon_moves_is_told_after_a_crash() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    volume.create("f");
    let (tracker, source, path) = (Arc::clone(&volume.tracker), Arc::clone(&volume.source), volume.path("f"));
    let object = handle(&path);
    let section = tracker.section();
    section.intend(&[Intent::Directory(&handle(&volume.root))]).unwrap();
    let sample = source.sample(&object).unwrap().unwrap();
    section.opened(&object, WriterMode { unseen: true, ..WriterMode::default() }, sample);
    drop(section);
    let cursor = volume.now();
    volume.create("g");
    volume.meanwhile(move || {
        std::fs::write(&path, "written past the source").unwrap();
        tracker.section().closed(&object, || source.sample(&object).unwrap());
    });
    volume.tracker.advance_horizon().unwrap();
    assert_eq!(volume.tracker.status().open_writers, 0);
    drop(volume);
    let volume = Volume::open(directory.path());
    let told = volume.since(cursor).0;
    assert!(told.contains(&"modified f".to_owned()), "{told:?}");
}

/// Of a file with two names one is known when it gets its intent, and that one goes before the crash. What is known of names then is not
/// what there is.
#[test]
fn a_file_that_lost_the_names_of_its_intent_is_told_by_another_one_after_a_crash() {
    for is_known_again in [false, true] {
        let directory = tempdir().unwrap();
        let volume = Volume::open(directory.path());
        volume.mkdir("d");
        volume.mkdir("e");
        volume.create("f");
        std::fs::hard_link(volume.path("f"), volume.path("d/g")).unwrap();
        volume.source.unknown.lock().unwrap().insert(volume.path("d/g"));
        std::thread::sleep(Duration::from_millis(2100)); // Births are told apart by time, with two seconds of slack.
        volume.tracker.advance_horizon().unwrap();
        let object = handle(&volume.path("f"));
        let section = volume.tracker.section();
        section.intend(&[Intent::Object(&object)]).unwrap();
        let sample = volume.source.sample(&object).unwrap().unwrap();
        section.opened(&object, WriterMode { unseen: true, ..WriterMode::default() }, sample);
        drop(section);
        if is_known_again {
            // Its directory has an intent: what is there now is found without a look at everything.
            volume.rename("f", "e/h");
        } else {
            volume.remove("f");
        }
        let cursor = volume.now();
        std::fs::write(volume.path("d/g"), "written past the source").unwrap();
        drop(volume);
        let volume = Volume::open(directory.path());
        let told = volume.since(cursor).0;
        let has = |line: &str| told.contains(&line.to_owned());
        if is_known_again {
            assert!(has("modified e/h") && !has("rescan* ."), "{told:?}");
        } else {
            assert!(has("rescan* ."), "{told:?}");
        }
    }
}

/// A directory that is made under an intent of the old window is older than the new one: recovery would not look into it.
#[test]
fn a_directory_made_before_the_window_but_recorded_in_it_has_an_intent_of_its_own() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    let root = handle(&volume.root);
    let section = volume.tracker.section();
    section.intend(&[Intent::Directory(&root)]).unwrap();
    std::fs::create_dir(volume.path("n")).unwrap();
    let object = handle(&volume.path("n"));
    let place = Place { parent: root.clone(), name: (*b"n").into() };
    std::thread::sleep(Duration::from_millis(2100)); // Births are told apart by time, with two seconds of slack.
    std::thread::scope(|scope| {
        let moved = scope.spawn(|| volume.tracker.advance_horizon());
        let intends_anew = || {
            let before = volume.tracker.status().records;
            volume.tracker.section().intend(&[Intent::Directory(&root)]).unwrap();
            volume.tracker.status().records > before
        };
        while !intends_anew() {
            std::thread::yield_now();
        }
        section.record(Change::Created { object, object_type: ObjectType::Directory, place }, || {});
        drop(section);
        moved.join().unwrap().unwrap();
    });
    volume.create("n/f");
    let cursor = volume.now();
    drop(volume);
    let volume = Volume::open(directory.path());
    let told = volume.since(cursor).0;
    assert!(told.iter().any(|line| line == "rescan n" || line == "rescan* n"), "{told:?}");
}

#[test]
fn an_open_writer_has_an_intent_in_every_window() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    volume.create("f");
    let object = handle(&volume.path("f"));
    let section = volume.tracker.section();
    section.intend(&[Intent::Directory(&handle(&volume.root))]).unwrap();
    let sample = Sample { mtime_ns: 0, ctime_ns: 0, size: 0, nlink: 1 };
    section.opened(&object, WriterMode { unseen: true, ..WriterMode::default() }, sample);
    drop(section);
    volume.tracker.advance_horizon().unwrap();
    volume.tracker.advance_horizon().unwrap();
    let cursor = volume.now();
    drop(volume);
    let volume = Volume::open(directory.path());
    assert_eq!(volume.since(cursor).0, lines(&["modified f"]));
}

#[test]
fn an_operation_waits_for_its_directory_once_per_window() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    volume.mkdir("d");
    let waits = |volume: &Volume| volume.tracker.status().waits;
    let before = waits(&volume);
    for number in 0..100 {
        volume.mkdir(&format!("d/{number}"));
        volume.create(&format!("d/{number}/f"));
    }
    assert_eq!(waits(&volume), before, "all of it is below a directory that was made in this window");
    volume.tracker.advance_horizon().unwrap();
    volume.create("d/1/g");
    volume.create("d/1/h");
    assert_eq!(waits(&volume), before + 1);
}

// ---- gaps ----

#[test]
fn a_clean_stop_and_a_gap_are_caught_up_with() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    volume.mkdir("d");
    volume.create("d/f");
    volume.mkdir("d/quiet");
    volume.create("d/quiet/q");
    volume.mkdir("other");
    let (_, cursor) = volume.since(volume.now());
    std::thread::sleep(Duration::from_millis(3100)); // The slack for clocks.
    volume.tracker.stop().unwrap();
    drop(volume);
    std::fs::write(directory.path().join("tree/d/f"), "unseen").unwrap();

    let volume = Volume::open_with(directory.path(), "boot", false, config());
    assert!(!volume.opening.crashed && volume.opening.catching_up);
    assert_eq!(volume.since(cursor).0, lines(&["modified d/f"]));
}

/// The tracker dies while, or right after, it looks for what changed in a gap: the next one looks again.
#[test]
fn a_gap_is_not_forgotten_in_a_crash() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    volume.create("f");
    volume.create("quiet");
    let cursor = volume.now();
    std::thread::sleep(Duration::from_millis(3100)); // The slack for clocks.
    volume.tracker.stop().unwrap();
    drop(volume);
    std::fs::write(directory.path().join("tree/f"), "unseen").unwrap();
    drop(Volume::open_with(directory.path(), "boot", false, config()));

    let volume = Volume::open(directory.path());
    assert!(volume.opening.catching_up, "the mount was there all the time, but the catch-up was not stable");
    assert!(volume.since(cursor).0.contains(&"modified f".to_owned()));
    volume.tracker.advance_horizon().unwrap();
    drop(volume);
    let volume = Volume::open(directory.path());
    assert!(!volume.opening.catching_up, "the horizon has moved past it");
}

/// A consumer copies what was written before tracking began, and acks. If that is in the page cache alone, a crash takes it back,
/// and no intent tells so. G4.
#[test]
fn what_was_written_while_nobody_tracked_is_on_the_disk_before_the_first_answer() {
    let directory = tempdir().unwrap();
    let synced = |volume: &Volume| {
        volume.now();
        volume.source.synced.load(Ordering::SeqCst)
    };
    let new = Volume::open(directory.path());
    assert_eq!(synced(&new), 1, "a new volume");
    drop(new);
    let killed = Volume::open(directory.path());
    assert!(synced(&killed) >= 1, "the one before may have been killed before it was done");
    killed.tracker.stop().unwrap();
    drop(killed);
    let after_gap = Volume::open_with(directory.path(), "boot", false, config());
    assert_eq!(synced(&after_gap), 1, "after a gap");
    after_gap.tracker.stop().unwrap();
    drop(after_gap);
    let unbroken = Volume::open(directory.path());
    assert_eq!(synced(&unbroken), 0, "nothing can have been written");
}

#[test]
fn a_start_without_a_gap_costs_no_scan() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    volume.create("f");
    let cursor = volume.now();
    volume.tracker.stop().unwrap();
    drop(volume);
    let volume = Volume::open_with(directory.path(), "boot", true, config());
    assert!(!volume.opening.crashed && !volume.opening.catching_up);
    assert_eq!(volume.since(cursor), (vec![], cursor));
}

// ---- G5: no silent loss ----

fn fresh(volume: &Volume, cursor: Cursor) -> Option<FreshReason> {
    volume.tracker.changes(&Since::Cursor(cursor), None).unwrap().fresh
}

#[test]
fn a_cursor_that_cannot_be_used_gives_a_fresh_answer() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    volume.create("f");
    let cursor = volume.now();
    let foreign = Cursor { journal: "00000000000000000000000000000000".parse().unwrap(), ..cursor };
    assert_eq!(fresh(&volume, foreign), Some(FreshReason::ForeignCursor));
    let future = Cursor { checkpoint: CheckpointId(cursor.checkpoint.0 + 1), ..cursor };
    assert_eq!(fresh(&volume, future), Some(FreshReason::Future));
    assert_eq!(volume.tracker.changes(&Since::Nothing, None).unwrap().fresh, Some(FreshReason::NoCursor));
}

/// An older copy of the state uses the numbers of its periods again, for other contents.
#[test]
fn a_cursor_from_after_a_copy_of_the_state_that_was_put_back_is_not_accepted() {
    let directory = tempdir().unwrap();
    let (state, copy) = (directory.path().join("state"), directory.path().join("copy"));
    let open = || Volume::open_with(directory.path(), "boot", true, config());
    let lived = |name: &str| {
        let volume = open();
        let cursors: Vec<Cursor> = (0..5)
            .map(|number| {
                volume.create(&format!("{name}{number}"));
                volume.now()
            })
            .collect();
        volume.tracker.stop().unwrap();
        cursors
    };
    let before = lived("before");
    copy_directory(&state, &copy);
    let lost = lived("lost");
    let volume = open();
    assert_eq!(fresh(&volume, lost[4]), None, "nothing has been put back yet");
    drop(volume);
    std::fs::remove_dir_all(&state).unwrap();
    copy_directory(&copy, &state);
    lived("again");
    let volume = open();
    volume.tracker.add_consumer("c").unwrap();
    for cursor in lost {
        let why = fresh(&volume, cursor);
        assert!(matches!(why, Some(FreshReason::NotSealed | FreshReason::Future)), "{why:?}");
        let acked = volume.tracker.ack("c", &cursor);
        assert!(matches!(acked, Err(RequestError::ForeignCursor { .. })), "{acked:?}");
    }
    assert_eq!(fresh(&volume, before[4]), None);
    volume.tracker.ack("c", &before[4]).unwrap();
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    std::fs::set_permissions(to, std::fs::metadata(from).unwrap().permissions()).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let name = entry.unwrap().file_name();
        std::fs::copy(from.join(&name), to.join(&name)).unwrap();
    }
}

#[test]
fn a_consumer_that_falls_behind_what_is_kept_becomes_fresh() {
    let directory = tempdir().unwrap();
    let mut config = config();
    config.journal.retain_bytes = 0;
    let volume = Volume::open_with(directory.path(), "boot", true, config);
    let cursor = volume.now();
    for round in 0..20 {
        (0..40).for_each(|number| volume.create(&format!("{round}-{number}-{}", "x".repeat(200))));
        volume.tracker.advance_horizon().unwrap();
    }
    assert_eq!(fresh(&volume, cursor), Some(FreshReason::TooOld));
}

#[test]
fn a_damaged_journal_makes_everyone_fresh() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    (0..10).for_each(|number| volume.create(&format!("f{number}")));
    let cursor = volume.now();
    volume.tracker.stop().unwrap();
    drop(volume);
    for entry in std::fs::read_dir(directory.path().join("state")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "hwj") {
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[5000] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let volume = Volume::open(directory.path());
    assert!(volume.opening.fresh.is_some());
    assert!(fresh(&volume, cursor).is_some());
}

#[test]
fn a_relaxed_volume_that_was_not_stopped_before_the_system_was_is_fresh() {
    let directory = tempdir().unwrap();
    let mut relaxed = config();
    relaxed.durability = Durability::Relaxed;
    let volume = Volume::open_with(directory.path(), "boot", true, relaxed.clone());
    volume.create("f");
    let cursor = volume.now();
    drop(volume);
    let volume = Volume::open_with(directory.path(), "boot", true, relaxed.clone());
    assert_eq!(volume.since(cursor).0.len(), 1, "killed: its intents had reached the kernel");
    volume.tracker.advance_horizon().unwrap();
    volume.create("g");
    let cursor = volume.now();
    drop(volume);
    let volume = Volume::open_with(directory.path(), "boot", true, relaxed.clone());
    assert_eq!(volume.since(cursor).0.len(), 1, "also if the record of the start is behind the horizon");
    let cursor = volume.now();
    drop(volume);
    let volume = Volume::open_with(directory.path(), "the next boot", false, relaxed);
    assert!(matches!(fresh(&volume, cursor), Some(FreshReason::Lost(_))));
}

// ---- consumers ----

#[test]
fn an_ack_is_kept_and_does_not_go_back() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    let tracker = Arc::clone(&volume.tracker);
    tracker.add_consumer("c").unwrap();
    assert!(matches!(tracker.add_consumer("c"), Err(RequestError::ConsumerExists { .. })));
    assert!(matches!(tracker.add_consumer("a b"), Err(RequestError::BadConsumerName { .. })));
    assert!(matches!(tracker.remove_consumer("x"), Err(RequestError::UnknownConsumer { .. })));
    let first = volume.now();
    volume.create("f");
    let second = volume.now();
    assert!(second.checkpoint > first.checkpoint);
    tracker.ack("c", &second).unwrap();
    assert!(matches!(tracker.ack("c", &first), Err(RequestError::AckBackwards { .. })));
    let future = Cursor { checkpoint: CheckpointId(99), ..second };
    assert!(matches!(tracker.ack("c", &future), Err(RequestError::ForeignCursor { .. })));
    tracker.stop().unwrap();
    drop(tracker);
    drop(volume);
    let volume = Volume::open(directory.path());
    assert_eq!(volume.tracker.consumers()[0].cursor, Some(second));
}

#[test]
fn a_name_that_came_and_went_is_told() {
    let directory = tempdir().unwrap();
    let volume = Volume::open(directory.path());
    let start = volume.now();
    volume.create("f");
    volume.remove("f");
    assert_eq!(
        volume.since(start).0,
        lines(&["deleted f"]),
        "a consumer may have read the directory in between"
    );
}
