//! The journal's disk is full: what is told, and that it ends. G5.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[expect(dead_code, reason = "the other tests use the rest of it")]
mod support;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use highwater_journal::{Directory, DirectoryFile, Storage};
use highwater_tracker::{Answer, Config, Cursor, Intent, OnFull, SectionError, Since};
use support::{Volume, config, handle};
use tempfile::{TempDir, tempdir};

/// A disk with room for so many segments.
struct Disk {
    directory: Directory,
    room: Arc<AtomicUsize>,
}

impl Storage for Disk {
    type File = DirectoryFile;

    fn list(&self) -> io::Result<Vec<String>> {
        self.directory.list()
    }

    fn create(&self, name: &str) -> io::Result<DirectoryFile> {
        let segments = self.list()?.iter().filter(|name| name.ends_with(".hwj")).count();
        if segments >= self.room.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.directory.create(name)
    }

    fn open(&self, name: &str) -> io::Result<DirectoryFile> {
        self.directory.open(name)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.directory.remove(name)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.directory.replace(name, bytes)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.directory.read(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.directory.sync_directory()
    }
}

struct Full {
    volume: Volume<Disk>,
    room: Arc<AtomicUsize>,
    directory: TempDir,
}

fn open(directory: &Path, room: &Arc<AtomicUsize>, config: Config) -> Volume<Disk> {
    let disk = Disk { directory: Directory::open(directory.join("state")).unwrap(), room: Arc::clone(room) };
    Volume::open_on(disk, directory, "boot", true, config)
}

impl Full {
    fn new(on_full: OnFull, room: usize) -> Self {
        let directory = tempdir().unwrap();
        let room = Arc::new(AtomicUsize::new(room));
        let mut config = config();
        config.on_full = on_full;
        let volume = open(directory.path(), &room, config);
        volume.create("f");
        volume.create("g");
        volume.mkdir("d");
        Self { volume, room, directory }
    }

    fn ask(&self, since: Cursor) -> Answer {
        self.volume.tracker.changes(&Since::Cursor(since), None).unwrap()
    }

    /// Renames a file to and fro, with names as long as they get, until something holds.
    fn churn(&self, mut until: impl FnMut() -> bool) {
        let names = ["n".repeat(250), "m".repeat(250)];
        self.volume.rename("f", &names[0]);
        for turn in 0.. {
            self.volume.rename(&names[turn % 2], &names[(turn + 1) % 2]);
            if until() {
                self.volume.rename(&names[(turn + 1) % 2], "f");
                return;
            }
            assert!(turn < 10_000, "it does not come to that");
        }
    }

    fn is_full(&self) -> bool {
        self.volume.tracker.status().failed.is_some_and(|why| why.contains("full"))
    }
}

#[test]
fn a_full_disk_keeps_writers_going_and_makes_consumers_fresh_until_there_is_room() {
    let full = Full::new(OnFull::Overflow, 1);
    let start = full.volume.now();
    full.churn(|| full.is_full());
    for round in 0..5 {
        // A directory that has no intent yet.
        full.volume.mkdir(&format!("new-{round}"));
        full.volume.create(&format!("new-{round}/file"));
        let answer = full.ask(start);
        assert!(answer.fresh.is_some(), "round {round}: records are missing, and the answer is a difference");
        assert!(full.is_full(), "{:?}", full.volume.tracker.status().failed);
    }
    full.room.store(4, Ordering::SeqCst);
    let answer = full.ask(start);
    assert!(answer.fresh.is_some(), "the records of before are missing still");
    assert_eq!(full.volume.tracker.status().failed, None);
    let cursor = full.volume.now();
    full.volume.create("after");
    assert_eq!(full.volume.since(cursor).0, ["created after"]);
}

/// An operation that has no intent, because the journal is full, goes on only behind a durable record that says so.
#[test]
fn what_went_on_without_an_intent_makes_consumers_fresh_after_a_crash() {
    let full = Full::new(OnFull::Overflow, 1);
    full.churn(|| full.is_full());
    full.volume.mkdir("without-an-intent");
    full.volume.create("without-an-intent/file");
    let Full { volume, room, directory } = full;
    let cursor = Cursor { journal: volume.tracker.status().journal.parse().unwrap(), ..volume_cursor() };
    drop(volume);
    room.store(4, Ordering::SeqCst);
    let volume = open(directory.path(), &room, config());
    let answer = volume.tracker.changes(&Since::Cursor(cursor), None).unwrap();
    assert!(answer.fresh.is_some(), "{:?}", answer.lines);
}

fn volume_cursor() -> Cursor {
    let zero = highwater_tracker::CheckpointId(0);
    Cursor { journal: highwater_journal::JournalId([0; 16]), checkpoint: zero, reading_since: zero }
}

#[test]
fn a_full_disk_refuses_what_needs_an_intent_and_takes_it_when_there_is_room() {
    let full = Full::new(OnFull::Fail, 1);
    let start = full.volume.now();
    full.churn(|| full.is_full());
    let intend = |path: &str| {
        let section = full.volume.tracker.section();
        section.intend(&[Intent::Object(&handle(&full.volume.path(path)))])
    };
    assert_eq!(intend("g"), Err(SectionError::Full));
    assert!(full.ask(start).fresh.is_some());
    assert_eq!(intend("g"), Err(SectionError::Full), "a question has made a failure of it");
    full.room.store(4, Ordering::SeqCst);
    assert_eq!(intend("g"), Ok(()));
    assert!(full.ask(start).fresh.is_some());
    let cursor = full.volume.now();
    full.volume.create("after");
    assert_eq!(full.volume.since(cursor).0, ["created after"]);
}

/// Retention by size comes too late on a small disk.
#[test]
fn a_disk_that_is_nearly_full_drops_what_is_stable() {
    let full = Full::new(OnFull::Overflow, 3);
    let start = full.volume.now();
    let mut moved = 0;
    for _ in 0..40 {
        let mut turns = 0;
        full.churn(|| {
            turns += 1;
            turns > 30
        });
        // What the thread of the horizon does when it is asked to.
        full.volume.tracker.advance_horizon().unwrap();
        moved += 1;
        assert!(!full.is_full(), "full after {moved} moves of the horizon");
    }
    assert!(full.ask(start).fresh.is_some(), "what it began at is not kept any more");
    let cursor = full.volume.now();
    full.volume.create("after");
    assert_eq!(full.volume.since(cursor).0, ["created after"]);
}
