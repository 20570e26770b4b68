//! Journals of every released format version are read for ever.

mod common;

use std::path::Path;

use common::{all, small};
use highwater_journal::{Directory, Journal, JournalId, Period, RecordKind, Usn};

#[test]
fn a_journal_of_format_1_is_read() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1");
    let parent = tempfile::tempdir().expect("a temporary directory");
    let copy = parent.path().join("state");
    drop(Directory::open(&copy).expect("made"));
    for entry in std::fs::read_dir(fixture).expect("the fixture") {
        let entry = entry.expect("an entry");
        std::fs::copy(entry.path(), copy.join(entry.file_name())).expect("copied");
    }
    let directory = Directory::open(&copy).expect("opened");
    let (journal, recovered) = Journal::open(directory, small()).expect("read");
    assert_eq!(recovered.id, JournalId(*b"highwater fixtur"));
    assert_eq!((recovered.last_usn, recovered.last_period), (Usn(100), Some(Period(10))));
    assert!(recovered.is_clean && recovered.torn_tail.is_none());
    let records = all(&journal);
    assert_eq!(records.len(), 100);
    for (number, record) in (1..=100u8).zip(&records) {
        assert_eq!(record.usn, Usn(u64::from(number)));
        assert_eq!(record.period, Period(u64::from(number) / 10));
        assert_eq!(record.kind, RecordKind(number % 3));
        assert_eq!(record.payload, vec![number; usize::from(number) * 10]);
    }
}
