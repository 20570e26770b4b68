//! Journals that were written and then damaged, and segments of arbitrary bytes.
//!
//! What has to hold, whatever the bytes are:
//!
//! * opening, reading and inspecting end, with an answer or with damage, never with an I/O error;
//! * `inspect` finds damage exactly where an open or a read fails, and otherwise the same records, torn tail and clean end;
//! * what is read is what the reader of `layout.rs` finds by the document, and making every checksum anew changes no byte of it;
//! * a journal that opens takes more records, and gives everything back when it is opened again;
//! * where checksums were not made right after the damage: the records read are the first of those written (the last of them, if the
//!   oldest segments are gone), and fewer than were durable only where bytes became zero, which looks as if they had never been written.

use highwater_journal::{
    AppendError, Damage, Inspection, Journal, OpenError, Period, ReadError, Record, RecordKind, Start,
    TornTail, Usn, inspect,
};

use crate::input::Input;
use crate::layout::{self, Files};
use crate::memory::{ID, Memory, small};

const OPERATIONS_MAX: usize = 40;
const DAMAGES_MAX: usize = 4;
const MANIFEST: &str = "journal.manifest";

/// Writes a journal as the input says, damages it, and checks what is read.
pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let seals = input.byte() % 2 == 1;
    let count = usize::from(input.byte()) % (OPERATIONS_MAX + 1);
    let (memory, written, durable) = write(&mut input, count);
    let mut oldest_may_be_gone = false;
    let mut looks_unwritten = false;
    for _ in 0..DAMAGES_MAX {
        let names = memory.names();
        if input.is_empty() || names.is_empty() {
            break;
        }
        let last = names.iter().rfind(|name| name.ends_with(".hwj")).cloned();
        let name = &names[usize::from(input.byte()) % names.len()];
        let before = memory.bytes(name);
        oldest_may_be_gone |= damage(&memory, name, &mut input);
        // The last segment with a header may be the last file or, with one that is allocated ahead, the one before it.
        let is_segment = last.is_some() && name != MANIFEST;
        looks_unwritten |=
            is_segment && memory.names().contains(name) && has_new_zeros(&before, &memory.bytes(name));
    }
    if seals {
        for name in memory.names() {
            let mut bytes = memory.bytes(&name);
            layout::seal(&name, &mut bytes);
            memory.put_file(&name, bytes);
        }
    }
    let Some(read) = check(&memory) else { return };
    if seals {
        return;
    }
    let first =
        read.first().map_or(0, |first| written.iter().take_while(|record| record.usn < first.usn).count());
    assert!(first == 0 || oldest_may_be_gone, "the first records are missing");
    assert!(written[first..].starts_with(&read), "another record was read");
    let is_short = read.last().map_or(Usn(0), |record| record.usn) < durable;
    // What is gone at the old end are the first records, or all of them if nothing was appended since.
    let is_gone = read.is_empty() && oldest_may_be_gone;
    assert!(!is_short || looks_unwritten || is_gone, "durable records were left out without an error");
}

/// The bytes behind the header of the only segment are the input, or that with every checksum made right.
pub(crate) fn run_segment(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let flags = input.byte();
    let bytes = input.rest();
    let memory = Memory::new();
    drop(Journal::create(memory.clone(), ID, small()).expect("created"));
    let name = memory.names().into_iter().find(|name| name.ends_with(".hwj")).expect("a segment");
    let mut file = memory.bytes(&name);
    file[4096..4096 + bytes.len()].copy_from_slice(bytes);
    if flags & 1 == 1 {
        layout::seal(&name, &mut file);
    }
    memory.put_file(&name, file);
    check(&memory);
}

/// Writes records, syncs, closes, reopens and kills; returns every record and the last one that was durable.
fn write(input: &mut Input<'_>, count: usize) -> (Memory, Vec<Record>, Usn) {
    let memory = Memory::new();
    let mut journal = Journal::create(memory.clone(), ID, small()).expect("created");
    let mut records = Vec::new();
    let mut period = 0;
    let mut durable = Usn(0);
    for _ in 0..count {
        let operation = input.byte();
        let last = records.last().map_or(Usn(0), |record: &Record| record.usn);
        match operation % 8 {
            0..=3 => {
                let len = if operation % 8 == 3 { input.word() % 16385 } else { usize::from(input.byte()) };
                let fill = input.byte();
                period += u64::from(fill % 3);
                let payload = (0..=u8::MAX)
                    .cycle()
                    .take(len)
                    .map(|at| if fill.is_multiple_of(4) { 0 } else { fill ^ at })
                    .collect();
                append(&mut records, &journal, RecordKind(fill), Period(period), payload);
            }
            4 if last > Usn(0) => {
                journal.sync(last).expect("a disk that works");
                durable = last;
            }
            5 if last > Usn(0) => journal.write_through(last).expect("a disk that works"),
            6 | 7 => {
                if operation % 8 == 6 {
                    journal.close().expect("a disk that works");
                }
                drop(journal);
                let (opened, recovered) = Journal::open(memory.clone(), small()).expect("nothing is damaged");
                journal = opened;
                // What was written through is durable by having been read.
                records.retain(|record| record.usn <= recovered.last_usn);
                durable = recovered.last_usn;
            }
            _ => {}
        }
    }
    drop(journal);
    // What is only in memory ends with the process.
    let whole = Journal::open(memory.copy(), small()).expect("nothing is damaged").1;
    records.retain(|record| record.usn <= whole.last_usn);
    (memory, records, durable)
}

fn append(
    records: &mut Vec<Record>,
    journal: &Journal<Memory>,
    kind: RecordKind,
    period: Period,
    payload: Vec<u8>,
) {
    match journal.append(kind, period, &payload) {
        Ok(usn) => records.push(Record { usn, period, kind, payload }),
        // As many segments as the options allow: a disk that is full.
        Err(AppendError::Full { source: None }) => {}
        Err(error) => panic!("{error}"),
    }
}

/// Damages a file; returns whether it is gone as a whole, which at the old end looks like retention.
fn damage(memory: &Memory, name: &str, input: &mut Input<'_>) -> bool {
    let mut bytes = memory.bytes(name);
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let what = input.byte();
    // Near the end of what was written is where most decisions are made.
    let at = match what / 8 % 4 {
        0 => input.word(),
        1 => used.saturating_sub(input.word() % 4096),
        2 => 4096 + usize::from(input.byte()),
        _ => usize::from(input.byte()),
    };
    match what % 8 {
        0 | 1 => {
            let count = usize::from(input.byte()) % 32 + 1;
            let new = input.bytes(count);
            if let Some(place) = bytes.get_mut(at..at + new.len()) {
                place.copy_from_slice(new);
            }
        }
        2 => {
            let mask = input.byte();
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= mask;
            }
        }
        3 => {
            let sector = at / 512 * 512;
            let end = bytes.len().min(sector + 512);
            if let Some(place) = bytes.get_mut(sector..end) {
                place.fill(0);
            }
        }
        4 => {
            let end = bytes.len();
            bytes.get_mut(at.min(end)..).into_iter().for_each(|rest| rest.fill(0));
        }
        5 => bytes.resize(at, 0),
        6 => {
            // A part of the file in another place of it.
            let (from, len) = (input.word(), input.word() % 2048);
            if from + len <= bytes.len() && at + len <= bytes.len() {
                bytes.copy_within(from..from + len, at);
            }
        }
        _ => {
            let kept = memory.copy();
            let storage: &dyn Fn(&str) -> _ = &|name| highwater_journal::Storage::remove(memory, name);
            storage(name).expect("it is there");
            // A file behind the newest one, as an interrupted allocation leaves it, or with something in it.
            if let (0..=63, Some(next)) = (at, next_name(&kept)) {
                memory.put_file(name, bytes);
                memory.put_file(&next, vec![u8::from(at > 31); at * 64]);
                return false;
            }
            return true;
        }
    }
    memory.put_file(name, bytes);
    false
}

fn next_name(memory: &Memory) -> Option<String> {
    let name = memory.names().into_iter().rfind(|name| name.ends_with(".hwj"))?;
    let sequence: u64 = name.strip_prefix("journal-")?.strip_suffix(".hwj")?.parse().ok()?;
    Some(format!("journal-{:020}.hwj", sequence + 1))
}

/// Whether one of the words that recovery looks for may have become zero.
fn has_new_zeros(before: &[u8], after: &[u8]) -> bool {
    let is_zero = |word: &[u8]| word.iter().all(|byte| *byte == 0);
    before.chunks(4).zip(after.chunks(4)).any(|(before, after)| is_zero(after) && !is_zero(before))
}

fn files(memory: &Memory) -> Files {
    memory.names().into_iter().map(|name| (name.clone(), memory.bytes(&name))).collect()
}

/// Everything that has to hold whatever the bytes are; the records, if there is no damage.
fn check(memory: &Memory) -> Option<Vec<Record>> {
    let files = files(memory);
    let mut inspected = Vec::new();
    let inspection = inspect(memory, true, |record| inspected.push(record));
    assert_eq!(files, self::files(memory), "inspecting changes nothing");
    let opened = Journal::open(memory.clone(), small());
    if opened.is_err() {
        assert_eq!(files, self::files(memory), "an open that fails changes nothing");
    }
    let inspection = match (inspection, &opened) {
        (Ok(inspection), _) => inspection,
        (Err(OpenError::Missing), Err(OpenError::Missing))
        // Inspecting looks at the segments also where the manifest is gone.
        | (
            Err(OpenError::NewerFormat { .. }),
            Err(OpenError::NewerFormat { .. } | OpenError::Damaged(_) | OpenError::Missing),
        ) => {
            return None;
        }
        (Err(error), _) => panic!("inspect: {error:?}"),
    };
    let (mut journal, recovered) = match opened {
        Ok(opened) => opened,
        Err(OpenError::Damaged(damage)) => {
            assert!(!inspection.damage.is_empty(), "an open finds {damage:?}, inspect nothing");
            return None;
        }
        Err(OpenError::Missing) => {
            assert!(inspection.damage.iter().any(|damage| damage.file == MANIFEST), "{inspection:?}");
            return None;
        }
        Err(OpenError::NewerFormat { .. }) => {
            assert!(!inspection.damage.is_empty());
            return None;
        }
        Err(error) => panic!("open: {error:?}"),
    };
    let read: Result<Vec<Record>, ReadError> = journal.records(Start::Oldest).collect();
    let by_the_document = naive(&files);
    let records = match read {
        Ok(records) => records,
        Err(ReadError::Damaged(damage)) => {
            assert!(!inspection.damage.is_empty(), "a read finds {damage:?}, inspect nothing");
            assert!(by_the_document.is_none(), "a read finds {damage:?}, the document nothing");
            return None;
        }
        Err(error) => panic!("read: {error:?}"),
    };
    let Some((expected, torn, is_closed)) = by_the_document else {
        panic!("damaged by the document, and yet there is an answer of {} records", records.len())
    };
    assert_eq!(records, expected, "other records than by the document");
    assert_eq!(
        (recovered.torn_tail, recovered.is_clean),
        (torn, is_closed),
        "another end than by the document"
    );
    assert_is_whole(&inspection, &files);
    assert_eq!(inspected, records, "inspect shows the same records");
    assert_eq!((inspection.torn_tail, inspection.is_clean), (torn, is_closed), "inspect sees the same end");
    assert_eq!(inspection.id, Some(recovered.id));

    let first = recovered.clone();
    let mut all = records.clone();
    let period = Period(recovered.last_period.map_or(0, |period| period.0));
    append(&mut all, &journal, RecordKind(7), period, b"one more".to_vec());
    journal.close().expect("a disk that works");
    drop(journal);
    let (journal, recovered) = Journal::open(memory.clone(), small()).expect("it was closed");
    assert!(
        recovered.is_clean && recovered.torn_tail.is_none(),
        "it was closed: {recovered:?}, first {first:?}"
    );
    let again: Result<Vec<Record>, ReadError> = journal.records(Start::Oldest).collect();
    assert_eq!(again.expect("it was whole"), all, "what was there and one more");
    Some(records)
}

/// A spare segment behind the newest, as an allocation leaves it, is no damage.
fn assert_is_whole(inspection: &Inspection, files: &Files) {
    let damage: Vec<&Damage> = inspection.damage.iter().collect();
    assert!(
        damage.is_empty(),
        "inspect finds {damage:?} where an open and a read find nothing: {:?}",
        files.keys()
    );
}

/// The records, the torn tail and whether the journal was closed, as the document has it; `None`: damage in a batch.
fn naive(files: &Files) -> Option<(Vec<Record>, Option<TornTail>, bool)> {
    let segments = layout::segments(files);
    let mut records = Vec::new();
    let mut end = (None, false);
    for (at, (header, file)) in segments.iter().enumerate() {
        let found = layout::read(header, file, segments.get(at + 1).map(|(next, _)| next));
        if found.is_damaged {
            return None;
        }
        let mut sealed = file.to_vec();
        layout::seal("segment.hwj", &mut sealed);
        assert_eq!(
            &sealed[..found.end],
            &file[..found.end],
            "what was accepted has other checksums than by the document"
        );
        records.extend(found.records);
        let offset = found.end as u64;
        let torn = TornTail { segment: header.sequence, offset, bytes: found.tail as u64 };
        end = ((found.tail > 0).then_some(torn), found.is_closed);
    }
    Some((records, end.0, end.1))
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    // Appends of each length, syncs, a clean and an unclean reopen, a second segment; then a flipped byte, a zero sector, a cut.
    let written: &[u8] = &[
        12, 0, 20, 5, 1, 200, 6, 4, 3, 0, 16, 9, 3, 0, 40, 9, 5, 6, 0, 10, 4, 3, 255, 63, 1, 4, 7, 2, 3, 4, 5,
    ];
    let long: &[u8] = &[
        14, 3, 0, 63, 1, 3, 0, 63, 2, 3, 0, 63, 5, 4, 3, 0, 63, 7, 3, 0, 63, 9, 4, 3, 0, 63, 1, 5, 4, 0, 9,
        9, 6, 0, 3, 4,
    ];
    let mut seeds = Vec::new();
    for program in [written, long] {
        for damage in [
            &[][..],
            &[0, 10, 40, 0, 1],
            &[1, 11, 0, 1],
            &[0, 12, 30, 2],
            &[1, 13, 9, 0],
            &[0, 15, 200],
            &[1, 8, 3, 0, 2, 9, 9],
        ] {
            for seals in [0, 1] {
                seeds.push([&[seals], program, damage].concat());
            }
        }
    }
    seeds
}

pub(crate) fn segment_seeds() -> Vec<Vec<u8>> {
    let lengths: &[&[usize]] = &[&[], &[0, 3, 40], &[600, 0, 1200], &[5; 12]];
    let mut seeds = Vec::new();
    for lengths in lengths {
        for is_closed in [false, true] {
            let memory = Memory::new();
            let mut journal = Journal::create(memory.clone(), ID, small()).expect("created");
            let mut last = None;
            for (at, len) in (0_u8..).zip(lengths.iter()) {
                let payload = vec![at; *len];
                last = journal.append(RecordKind(1), Period(u64::from(at)), &payload).ok();
                if at.is_multiple_of(2) {
                    last.into_iter().for_each(|usn| journal.sync(usn).expect("a disk that works"));
                }
            }
            match last {
                _ if is_closed => journal.close().expect("a disk that works"),
                Some(last) => journal.write_through(last).expect("a disk that works"),
                None => {}
            }
            drop(journal);
            let name = memory.names().into_iter().find(|name| name.ends_with(".hwj")).expect("a segment");
            let bytes = memory.bytes(&name);
            let used = bytes.iter().rposition(|byte| *byte != 0).map_or(4096, |last| last + 1).max(4096);
            for flags in [0, 1] {
                seeds.push([&[flags], &bytes[4096..used]].concat());
            }
        }
    }
    seeds
}
