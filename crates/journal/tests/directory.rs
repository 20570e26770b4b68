//! The storage on a real directory.

mod common;

use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::PathBuf;

use common::{ID, all, small};
use highwater_journal::{
    Directory, DirectoryError, Journal, Options, Period, RecordKind, Storage, StorageFile, Usn, inspect,
};

/// A path that does not exist yet, in a directory that is removed at the end.
fn state() -> (tempfile::TempDir, PathBuf) {
    let parent = tempfile::tempdir().expect("a temporary directory");
    let path = parent.path().join("state");
    (parent, path)
}

#[test]
fn a_journal_survives_its_process_in_a_directory() {
    let (_parent, path) = state();
    let mut journal = Journal::create(Directory::open(&path).expect("made"), ID, small()).expect("created");
    for number in 0..2000u64 {
        let usn =
            journal.append(RecordKind(1), Period(number / 100), &common::payload(number)).expect("appended");
        if number % 50 == 0 {
            journal.sync(usn).expect("synced");
        }
        if number % 500 == 0 {
            journal.retain(Period(number / 200)).expect("dropped");
        }
    }
    let before = all(&journal);
    journal.close().expect("closed");
    drop(journal);
    let (journal, recovered) =
        Journal::open(Directory::open(&path).expect("opened"), small()).expect("opened");
    assert!(recovered.is_clean);
    assert_eq!(all(&journal), before);
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o700);
    for entry in std::fs::read_dir(&path).expect("listed") {
        let mode = entry.expect("an entry").metadata().expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "G7: nobody else reads the journal");
    }
}

#[test]
fn a_directory_has_one_writer_at_a_time() {
    let (_parent, path) = state();
    let first = Directory::open(&path).expect("opened");
    let error = Directory::open(&path).expect_err("locked");
    assert!(
        matches!(error, DirectoryError::Locked { pid: Some(pid), .. } if pid == std::process::id()),
        "{error:?}"
    );
    let message = format!("is locked by a live tracker, pid {}", std::process::id());
    assert!(error.to_string().ends_with(&message), "{error}");
    Directory::open_read_only(&path).expect("a reader takes no lock");
    drop(first);
    Directory::open(&path).expect("the lock ends with its owner");
}

#[test]
fn a_directory_that_others_may_enter_is_refused() {
    let (_parent, path) = state();
    std::fs::create_dir(&path).expect("made");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("changed");
    let error = Directory::open(&path).expect_err("refused");
    assert!(matches!(error, DirectoryError::Exposed { mode: 0o755, .. }), "{error:?}");
}

#[test]
fn a_read_only_directory_writes_nothing() {
    let (_parent, path) = state();
    Directory::open(&path).expect("opened").replace("a", b"1").expect("replaced");
    let directory = Directory::open_read_only(&path).expect("opened");
    assert_eq!(directory.read("a").expect("read"), b"1");
    let is_refused =
        |result: io::Result<()>| result.expect_err("refused").kind() == io::ErrorKind::ReadOnlyFilesystem;
    assert!(is_refused(directory.create("b").map(drop)));
    assert!(is_refused(directory.replace("a", b"2")));
    assert!(is_refused(directory.remove("a")));
    assert!(is_refused(directory.sync_directory()));
    assert!(directory.open("a").expect("opened").write_at(b"2", 0).is_err());
    assert_eq!(directory.read("a").expect("read"), b"1");
}

#[test]
fn a_storage_does_what_the_journal_relies_on() {
    let (_parent, path) = state();
    let directory = Directory::open(&path).expect("opened");
    let file = directory.create("a").expect("created");
    assert_eq!(directory.create("a").map(drop).expect_err("taken").kind(), io::ErrorKind::AlreadyExists);
    assert_eq!(directory.open("b").map(drop).expect_err("missing").kind(), io::ErrorKind::NotFound);
    assert_eq!(directory.remove("b").expect_err("missing").kind(), io::ErrorKind::NotFound);
    assert_eq!(directory.read("b").expect_err("missing").kind(), io::ErrorKind::NotFound);
    assert!(file.is_empty().expect("known"));
    file.preallocate(10_000).expect("allocated");
    assert_eq!(file.len().expect("known"), 10_000);
    file.write_at(b"xyz", 9_997).expect("written");
    let mut bytes = [1; 5];
    file.read_at(&mut bytes, 9_995).expect("read");
    assert_eq!(&bytes, b"\0\0xyz");
    assert_eq!(file.read_at(&mut bytes, 9_996).expect_err("too far").kind(), io::ErrorKind::UnexpectedEof);
    directory.replace("c", b"old").expect("replaced");
    directory.replace("c", b"new").expect("replaced");
    assert_eq!(directory.read("c").expect("read"), b"new");
    directory.remove("a").expect("removed");
    file.read_at(&mut bytes, 0).expect("an open file stays readable");
    let mut names = directory.list().expect("listed");
    names.sort();
    assert_eq!(names, ["c"], "neither the lock nor what is incomplete");
    for name in ["", ".", "..", "a/b", "lock", "a\0b", "ä"] {
        assert_eq!(
            directory.read(name).expect_err("refused").kind(),
            io::ErrorKind::InvalidInput,
            "{name:?}"
        );
    }
}

/// Each opening that was not closed before begins a segment. A tracker that is killed again and again must not fill the disk.
#[test]
fn openings_after_kills_do_not_add_up() {
    let (_parent, path) = state();
    let mut options = Options::default();
    (options.segment_bytes, options.limit_bytes) = (1 << 20, 4 << 20);
    options.retain_bytes = options.limit_bytes;
    let create = Journal::create(Directory::open(&path).expect("made"), ID, options.clone());
    drop(create.expect("created"));
    for number in 1..=50 {
        // Dropped without being closed, as after a kill.
        let (journal, recovered) =
            Journal::open(Directory::open(&path).expect("opened"), options.clone()).expect("opened");
        assert!(!recovered.is_clean, "{number}");
        let usn = journal.append(RecordKind(1), Period(number), b"one").expect("there is room");
        journal.sync(usn).expect("synced");
        assert_eq!(journal.records(Usn(0)).count() as u64, number);
    }
    let occupied: u64 = std::fs::read_dir(&path)
        .expect("listed")
        .map(|entry| entry.expect("an entry").metadata().expect("metadata").blocks() * 512)
        .sum();
    assert!(occupied < 4 << 20, "50 openings occupy {occupied} bytes");
    let report = inspect(&Directory::open(&path).expect("opened"), true, drop).expect("inspected");
    assert_eq!(report.damage, []);
}
