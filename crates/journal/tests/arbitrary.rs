//! Arbitrary bytes in the place of a journal never panic, never loop, and never allocate by what they say.

mod common;

use common::{ID, Memory, append, small};
use highwater_journal::{Journal, Start, inspect};
use proptest::prelude::*;

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
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

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
