//! G5: rot is noticed. Whatever single byte of a journal changes, wherever a file is cut, the answer is right or an
//! error, never a shorter one that looks whole.

mod common;

use common::{ID, Memory, all, append, payload, small};
use highwater_journal::{DamageReason, Journal, OpenError, Period, Record, RecordKind, Start, Usn};

/// What a journal answers: every record, or that it cannot.
fn answer(memory: &Memory) -> Option<Vec<Record>> {
    let (journal, _) = Journal::open(memory.clone(), small()).ok()?;
    journal.records(Start::Oldest).collect::<Result<_, _>>().ok()
}

fn few_records(period: u64) -> (Memory, Vec<Record>, Journal<Memory>) {
    let memory = Memory::new();
    let journal = Journal::create(memory.clone(), ID, small()).expect("created");
    for number in 1..=12 {
        let usn = append(&journal, period, &payload(number));
        if number % 4 == 0 {
            journal.sync(usn).expect("synced");
        }
    }
    let records = all(&journal);
    (memory, records, journal)
}

/// Changes every byte in turn, one bit of it and to zero, and checks the answer.
fn flip_every_byte(memory: &Memory, records: &[Record]) {
    let mut noticed = 0;
    for name in memory.names() {
        let original = memory.bytes(&name);
        // Behind the last record and a page of zeros, every byte is like the one before.
        let used = original.iter().rposition(|&byte| byte != 0).unwrap_or(0) + 600;
        for at in 0..used.min(original.len()) {
            for mask in [1 << (at % 8), original[at]] {
                if mask == 0 {
                    continue;
                }
                let damaged = memory.copy();
                let mut bytes = original.clone();
                bytes[at] ^= mask;
                damaged.put_file(&name, bytes);
                match answer(&damaged) {
                    Some(found) => assert_eq!(found, records, "{name} byte {at} mask {mask:02x}"),
                    None => noticed += 1,
                }
            }
        }
    }
    assert!(noticed > 1000, "{noticed}");
}

#[test]
fn any_flipped_byte_of_durable_records_is_noticed_even_in_the_last_batch() {
    let (memory, records, journal) = few_records(1);
    drop(journal);
    flip_every_byte(&memory, &records);
}

#[test]
fn any_flipped_byte_of_a_closed_journal_is_noticed() {
    let (memory, records, mut journal) = few_records(1);
    journal.close().expect("closed");
    flip_every_byte(&memory, &records);
}

#[test]
fn any_flipped_byte_is_noticed_in_every_segment() {
    let memory = Memory::new();
    let journal = Journal::create(memory.clone(), ID, small()).expect("created");
    for number in 1..=60 {
        let usn = append(&journal, number, &[0x5a; 3000]);
        journal.sync(usn).expect("synced");
    }
    let records = all(&journal);
    drop(journal);
    let mut random = common::Random(1);
    for name in memory.names() {
        let original = memory.bytes(&name);
        for _ in 0..300 {
            let at = usize::try_from(random.below(original.len() as u64)).expect("small");
            let damaged = memory.copy();
            let mut bytes = original.clone();
            bytes[at] ^= 1 << random.below(8);
            damaged.put_file(&name, bytes);
            if let Some(found) = answer(&damaged) {
                assert_eq!(found, records, "{name} byte {at}");
            }
        }
    }
}

#[test]
fn a_file_cut_at_any_length_is_noticed() {
    let memory = Memory::new();
    let journal = Journal::create(memory.clone(), ID, small()).expect("created");
    for number in 1..=50 {
        let usn = append(&journal, number, &[0x5a; 2000]);
        journal.sync(usn).expect("synced");
    }
    drop(journal);
    let records = answer(&memory).expect("whole");
    assert_eq!(records.len(), 50);
    for name in memory.names() {
        let original = memory.bytes(&name);
        let lengths = (0..5000).chain((5000..original.len()).step_by(997)).chain([original.len() - 1]);
        for len in lengths.filter(|&len| len < original.len()) {
            let damaged = memory.copy();
            damaged.put_file(&name, original[..len].to_vec());
            assert_eq!(answer(&damaged), None, "{name} cut to {len}");
        }
    }
}

/// Records behind a header that was lost, and their own headers too, are no segment that nothing was written to.
#[test]
fn anything_in_a_segment_without_a_header_is_noticed() {
    let memory = Memory::new();
    let mut journal = Journal::create(memory.clone(), ID, small()).expect("created");
    for number in 1..=25 {
        let usn = append(&journal, number, &[0x5a; 2000]);
        journal.sync(usn).expect("synced");
    }
    journal.close().expect("closed");
    let spare = memory.names().into_iter().rfind(|name| name.ends_with(".hwj")).expect("a segment");
    let mut bytes = memory.bytes(&spare);
    assert!(bytes.iter().all(|byte| *byte == 0), "{spare} is allocated ahead");
    for at in [4096, 20_000, bytes.len() - 1] {
        bytes[at] = 1;
        let damaged = memory.copy();
        damaged.put_file(&spare, bytes.clone());
        bytes[at] = 0;
        assert_eq!(answer(&damaged), None, "byte {at}");
        let inspection = highwater_journal::inspect(&damaged, true, drop).expect("inspected");
        assert_eq!(inspection.damage.len(), 1, "{:?}", inspection.damage);
    }
}

#[test]
fn a_missing_file_is_noticed() {
    let memory = Memory::new();
    let mut journal = Journal::create(memory.clone(), ID, small()).expect("created");
    for number in 1..=200 {
        append(&journal, number, &[0x5a; 2000]);
    }
    journal.close().expect("closed");
    let names = memory.names();
    assert!(names.len() > 6);
    for missing in &names {
        let damaged = Memory::new();
        for name in names.iter().filter(|name| *name != missing) {
            damaged.put_file(name, memory.bytes(name));
        }
        match Journal::open(damaged, small()) {
            Err(OpenError::Missing) => assert!(missing.contains("manifest")),
            Err(OpenError::Damaged(damage)) => {
                assert_eq!((&damage.file, damage.reason), (missing, DamageReason::Missing))
            }
            // The oldest segment may have been dropped; then the journal says that its periods are not whole.
            Ok((_, recovered)) => {
                assert_eq!(
                    missing,
                    &names[1 - usize::from(names[0] < names[1] && !names[0].ends_with("manifest"))]
                );
                assert!(recovered.oldest_period_kept > Period(0));
            }
            Err(error) => panic!("{missing}: {error}"),
        }
    }
}

#[test]
fn a_segment_of_another_journal_or_place_is_refused() {
    let (memory, _, journal) = few_records(1);
    drop(journal);
    let name = "journal-00000000000000000001.hwj";
    let other = Memory::new();
    drop(Journal::create(other.clone(), highwater_journal::JournalId([7; 16]), small()).expect("created"));
    other.put_file(name, memory.bytes(name));
    let Err(OpenError::Damaged(damage)) = Journal::open(other, small()) else { panic!("refused") };
    assert_eq!(damage.reason, DamageReason::OtherJournal { found: ID });

    // Two journals of the same name, the segments of one in the other's place: the chain does not fit.
    let big = |byte: u8| {
        let memory = Memory::new();
        let mut journal = Journal::create(memory.clone(), ID, small()).expect("created");
        for _ in 0..60 {
            append(&journal, 1, &[byte; 2000]);
        }
        journal.close().expect("closed");
        memory
    };
    let (first, second) = (big(1), big(2));
    first.put_file(name, second.bytes(name));
    let (journal, _) = Journal::open(first, small()).expect("the headers fit");
    assert!(journal.records(Start::Oldest).any(|record| record.is_err()));
}

#[test]
fn a_newer_format_is_refused_and_nothing_is_changed() {
    for name in ["journal.manifest", "journal-00000000000000000001.hwj"] {
        let (memory, _, journal) = few_records(1);
        drop(journal);
        let mut bytes = memory.bytes(name);
        bytes[8] = 2;
        memory.put_file(name, bytes);
        let error = Journal::open(memory.clone(), small()).expect_err("refused");
        assert!(
            matches!(&error, OpenError::NewerFormat { file, found: 2, supported: 1 } if file == name),
            "{error:?}"
        );
        assert!(error.to_string().contains("format 2"), "{error}");
    }
}

#[test]
fn a_lost_sector_below_what_a_later_batch_calls_durable_is_damage() {
    let (memory, records, journal) = few_records(1);
    drop(journal);
    let name = "journal-00000000000000000001.hwj";
    let original = memory.bytes(name);
    let used = original.iter().rposition(|&byte| byte != 0).expect("records") + 1;
    let last_header = original.windows(4).rposition(|bytes| bytes == b"HWbh").expect("a batch");
    let (mut errors, mut shorter) = (0, 0);
    for sector in 4096 / 512..used.div_ceil(512) {
        let damaged = memory.copy();
        let mut bytes = original.clone();
        bytes[sector * 512..(sector + 1) * 512].fill(0);
        damaged.put_file(name, bytes);
        match answer(&damaged) {
            None => errors += 1,
            // The limit of the format: what the last batch's header vouched for is unknown without it, and a sector of
            // the last batch that is zero looks as if it had never been written.
            Some(found) => {
                assert!(sector >= last_header / 512 && found == records[..found.len()], "sector {sector}");
                shorter += 1;
            }
        }
    }
    assert!(errors > shorter, "{errors} errors, {shorter} shorter answers");
}

#[test]
fn a_torn_tail_is_told_and_never_read_again() {
    let memory = Memory::new();
    let journal = Journal::create(memory.clone(), ID, small()).expect("created");
    let first = append(&journal, 1, b"durable");
    journal.sync(first).expect("synced");
    let before = memory.bytes("journal-00000000000000000001.hwj");
    let end = before.iter().rposition(|&byte| byte != 0).expect("records") + 1;
    for _ in 0..20 {
        append(&journal, 1, &[0x77; 300]);
    }
    let last = append(&journal, 1, b"last");
    journal.write_through(last).expect("written");
    let mut bytes = memory.bytes("journal-00000000000000000001.hwj");
    // The sector in the middle of the batch never got to the medium.
    bytes[4096 + 2048..4096 + 2560].fill(0);
    let torn = Memory::new();
    torn.put_file("journal-00000000000000000001.hwj", bytes);
    torn.put_file("journal.manifest", memory.bytes("journal.manifest"));
    let (mut journal, recovered) = Journal::open(torn.clone(), small()).expect("opened");
    let tail = recovered.torn_tail.expect("a torn tail");
    assert!(tail.segment == 1 && tail.offset >= end as u64 && tail.bytes > 2000, "{tail:?}");
    let kept = all(&journal).len();
    assert!((1..22).contains(&kept), "{kept}");
    let after = journal.append(RecordKind(2), Period(1), b"after").expect("appended");
    assert!(after > last);
    journal.close().expect("closed");
    let (journal, recovered) = Journal::open(torn, small()).expect("opened");
    assert!(recovered.torn_tail.is_none() && recovered.is_clean);
    assert_eq!(recovered.last_usn, after);
    let records = all(&journal);
    assert_eq!(records.len(), kept + 1);
    assert_eq!(records[kept].payload, b"after");
    assert_eq!(journal.records(Usn(after.0 - 5)).count(), 1);
}
