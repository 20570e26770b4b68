//! G5: inspecting a journal names every damage and changes nothing.

mod common;

use common::{ID, Memory, append, small};
use highwater_journal::{DamageReason, Journal, OpenError, Period, Record, SegmentRole, Usn, inspect};

fn journal_of_three_segments() -> Memory {
    let memory = Memory::new();
    let mut journal = Journal::create(memory.clone(), ID, small()).expect("created");
    for number in 1..=80 {
        let usn = append(&journal, number / 10, &[0x5a; 2000]);
        journal.sync(usn).expect("synced");
    }
    journal.close().expect("closed");
    memory
}

fn look(memory: &Memory, verify: bool) -> (highwater_journal::Inspection, Vec<Record>) {
    let before = memory.operations().len();
    let mut records = Vec::new();
    let inspection = inspect(memory, verify, |record| records.push(record)).expect("inspected");
    assert_eq!(memory.operations().len(), before, "an inspection changes nothing");
    (inspection, records)
}

#[test]
fn a_whole_journal_is_described() {
    let memory = journal_of_three_segments();
    let (inspection, records) = look(&memory, true);
    assert_eq!(inspection.id, Some(ID));
    assert!(
        inspection.is_clean && inspection.damage.is_empty() && inspection.torn_tail.is_none(),
        "{inspection:?}"
    );
    assert_eq!(records.len(), 80);
    let roles: Vec<_> = inspection.segments.iter().map(|segment| segment.role).collect();
    assert_eq!(roles[..3], [SegmentRole::Sealed, SegmentRole::Sealed, SegmentRole::Last]);
    assert_eq!(inspection.segments.iter().map(|segment| segment.records).sum::<u64>(), 80);
    assert_eq!(inspection.segments[0].first_usn, Usn(1));
    assert_eq!(inspection.segments[2].last_usn, Some(Usn(80)));
    assert_eq!(inspection.segments[2].periods.expect("records").1, Period(8));
    let (inspection, some) = look(&memory, false);
    assert!(inspection.is_clean && some.len() < 40 && records.ends_with(&some));
}

#[test]
fn each_damage_is_named_and_what_is_behind_it_is_read() {
    let memory = journal_of_three_segments();
    let names = memory.names();
    let mut first = memory.bytes(&names[0]);
    first[9_000] ^= 1;
    first[30_000] ^= 1;
    memory.put_file(&names[0], first);
    let mut second = memory.bytes(&names[1]);
    second[20_000] ^= 1;
    memory.put_file(&names[1], second);
    let (inspection, records) = look(&memory, true);
    let segments: Vec<_> = inspection.damage.iter().filter_map(|damage| damage.segment).collect();
    assert_eq!(segments, [1, 1, 2], "{:?}", inspection.damage);
    assert!(
        inspection.damage.iter().all(|damage| damage.reason == DamageReason::Checksum { part: "record" })
    );
    assert!(inspection.damage[0].offset <= 9_000 && inspection.damage[0].offset > 6_000);
    assert_eq!(records.len(), 77);
}

#[test]
fn missing_files_and_headers_are_named() {
    let memory = journal_of_three_segments();
    let names = memory.names();
    let damaged = Memory::new();
    damaged.put_file(&names[0], memory.bytes(&names[0]));
    let mut third = memory.bytes(&names[2]);
    third[40] ^= 1;
    damaged.put_file(&names[2], third);
    let (inspection, records) = look(&damaged, true);
    let reasons: Vec<_> = inspection.damage.iter().map(|damage| &damage.reason).collect();
    assert!(reasons.contains(&&DamageReason::Missing), "{reasons:?}");
    assert!(reasons.contains(&&DamageReason::Checksum { part: "segment header" }), "{reasons:?}");
    assert!(!records.is_empty());
    assert!(matches!(inspect(&Memory::new(), true, drop), Err(OpenError::Missing)));
}

/// An open refuses it, so that a verification must not call it whole.
#[test]
fn a_segment_that_the_manifest_does_not_know_is_named_unless_it_is_empty() {
    let memory = journal_of_three_segments();
    let behind = |memory: &Memory| {
        let segments = memory.names().len() - 1;
        format!("journal-{:020}.hwj", segments + 1)
    };
    let empty = memory.copy();
    empty.put_file(&behind(&memory), vec![0; 64 << 10]);
    assert_eq!(look(&empty, true).0.damage, []);
    drop(Journal::open(empty, small()).expect("what an interrupted allocation left"));

    memory.put_file(&behind(&memory), memory.bytes(&memory.names()[0]));
    let (inspection, _) = look(&memory, true);
    assert_eq!(inspection.damage.len(), 1, "{:?}", inspection.damage);
    assert_eq!(inspection.damage[0].file, "journal.manifest");
    assert!(
        matches!(Journal::open(memory, small()), Err(OpenError::Damaged(damage)) if damage == inspection.damage[0])
    );
}

#[test]
fn a_torn_tail_is_not_damage() {
    let memory = Memory::new();
    let journal = Journal::create(memory.clone(), ID, small()).expect("created");
    let usn = append(&journal, 1, &[9; 2000]);
    journal.write_through(usn).expect("written");
    let name = &memory.names()[0];
    let mut bytes = memory.bytes(name);
    bytes[4096 + 1024..4096 + 1536].fill(0);
    memory.put_file(name, bytes);
    let (inspection, records) = look(&memory, true);
    assert!(inspection.damage.is_empty() && records.is_empty() && !inspection.is_clean);
    assert_eq!(inspection.torn_tail.expect("torn").offset, 4096);
}
