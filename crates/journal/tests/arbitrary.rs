//! Arbitrary bytes in the place of a journal never panic, never loop, and never allocate by what they say.

mod common;

use common::{ID, Memory, append, small};
use highwater_journal::{Journal, Start, inspect};
use proptest::prelude::*;

/// `HIGHWATER_FUZZ=1000` tries a thousand times as many cases as `cargo test` does.
fn cases(at_least: u32) -> u32 {
    let times =
        std::env::var("HIGHWATER_FUZZ").map_or(1, |times| times.parse().expect("HIGHWATER_FUZZ is a number"));
    at_least.saturating_mul(times)
}

fn try_everything(memory: &Memory) {
    let _ = inspect(memory, true, drop);
    if let Ok((mut journal, _)) = Journal::open(memory.clone(), small()) {
        let _ = journal.records(Start::Oldest).count();
        let _ = journal.append(highwater_journal::RecordKind(0), highwater_journal::Period(0), b"more");
        let _ = journal.close();
    }
}

fn journal() -> Memory {
    let memory = Memory::new();
    let mut journal = Journal::create(memory.clone(), ID, small()).expect("created");
    for number in 0..80 {
        append(&journal, number, &common::payload(number));
    }
    journal.close().expect("closed");
    memory
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(64), failure_persistence: None, ..ProptestConfig::default() })]

    /// G5. What follows a place in the newest file is anything: an error, or the records as they were, or (where it looks like a
    /// write that was torn) the first of them. Never another record; after rot, never one less than was durable without an error.
    #[test]
    fn a_damaged_end_never_changes_a_record(
        synced in 1..60_u64,
        after in 0..20_u64,
        at in any::<prop::sample::Index>(),
        damage in prop_oneof![
            prop::collection::vec(any::<u8>(), 1..3000),
            prop::collection::vec(Just(0_u8), 1..3000),
        ],
    ) {
        let memory = Memory::new();
        let journal = Journal::create(memory.clone(), ID, small()).expect("created");
        let mut last = append(&journal, 0, &common::payload(0));
        for number in 1..=synced + after {
            let usn = append(&journal, number, &common::payload(number));
            if number == synced {
                journal.sync(usn).expect("synced");
                last = usn;
            }
        }
        journal.write_through(highwater_journal::Usn(journal.next_usn().0 - 1)).expect("written");
        let records = common::all(&journal);
        drop(journal);
        let name = memory.names().into_iter().rfind(|name| name.ends_with(".hwj")).expect("a segment");
        let mut bytes = memory.bytes(&name);
        let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0) + 1;
        let at = at.index(used);
        let end = bytes.len().min(at + damage.len());
        bytes[at..end].copy_from_slice(&damage[..end - at]);
        // Zeros can look like sectors of the last batch that were never written: a disk that lied (docs/journal-format.md).
        let is_rot = end < used && damage.iter().any(|byte| *byte != 0);
        memory.put_file(&name, bytes);
        if let Ok((journal, _)) = Journal::open(memory, small()) {
            let read: Result<Vec<_>, _> = journal.records(Start::Oldest).collect();
            if let Ok(read) = read {
                prop_assert!(records.starts_with(&read), "another record was read");
                let is_short = read.last().is_none_or(|record| record.usn < last);
                prop_assert!(!(is_short && is_rot), "durable records were left out without an error");
            }
        }
    }

    #[test]
    fn files_of_arbitrary_bytes(manifest in any::<bool>(), bytes in prop::collection::vec(any::<u8>(), 0..20_000)) {
        let memory = journal();
        let names = memory.names();
        memory.put_file(&names[usize::from(manifest)], bytes);
        try_everything(&memory);
    }

    #[test]
    fn journals_with_arbitrary_changes(
        changes in prop::collection::vec((0..20_000usize, prop::collection::vec(any::<u8>(), 1..40)), 1..6),
    ) {
        let memory = journal();
        let name = &memory.names()[0];
        let mut bytes = memory.bytes(name);
        for (at, new) in changes {
            bytes[at..at + new.len()].copy_from_slice(&new);
        }
        memory.put_file(name, bytes);
        try_everything(&memory);
    }
}
