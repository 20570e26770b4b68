//! What a journal does when nothing goes wrong, and when the disk is full.

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use common::{Fault, ID, Memory, Operation, all, append, payload, small};
use highwater_journal::{
    AppendError, Journal, JournalError, OpenError, PAYLOAD_LIMIT, Period, RESERVED_PAYLOAD_LIMIT, ReadError,
    RecordKind, Start, Usn,
};

fn create(memory: &Memory) -> Journal<Memory> {
    Journal::create(memory.clone(), ID, small()).expect("created")
}

fn open(memory: &Memory) -> (Journal<Memory>, highwater_journal::Recovered) {
    Journal::open(memory.clone(), small()).expect("opened")
}

#[test]
fn records_come_back_in_order_over_many_segments_and_a_close() {
    let memory = Memory::new();
    let mut journal = create(&memory);
    for number in 1..=2000 {
        assert_eq!(append(&journal, number / 100, &payload(number)), Usn(number));
        if number % 37 == 0 {
            journal.sync(Usn(number)).expect("synced");
            assert_eq!(journal.durable_usn(), Usn(number));
        }
    }
    let check = |journal: &Journal<Memory>| {
        let records = all(journal);
        assert_eq!(records.len(), 2000);
        for (number, record) in (1..).zip(&records) {
            assert_eq!((record.usn, record.period), (Usn(number), Period(number / 100)));
            assert_eq!(record.payload, payload(number));
        }
    };
    check(&journal);
    assert!(memory.names().len() > 4, "{:?}", memory.names());
    journal.close().expect("closed");

    let (journal, recovered) = open(&memory);
    assert_eq!((recovered.last_usn, recovered.last_period), (Usn(2000), Some(Period(20))));
    assert!(recovered.is_clean && recovered.torn_tail.is_none());
    check(&journal);
    assert_eq!(append(&journal, 20, b"more"), Usn(2001));
    assert_eq!(all(&journal).len(), 2001);
}

#[test]
fn a_read_begins_where_it_was_asked_to() {
    let memory = Memory::new();
    let journal = create(&memory);
    for number in 1..=3000 {
        append(&journal, number / 10, &payload(number));
    }
    for (start, first) in [(1, 1), (2, 2), (777, 777), (2999, 2999), (3000, 3000)] {
        let records: Vec<_> = journal.records(Usn(start)).map(|record| record.unwrap().usn).collect();
        assert_eq!(records.len() as u64, 3001 - first);
        assert_eq!(records[0], Usn(first));
    }
    assert_eq!(journal.records(Usn(3001)).count(), 0);
    for period in [0, 1, 99, 299, 300] {
        let records: Vec<_> = journal.records(Period(period)).map(Result::unwrap).collect();
        assert_eq!(records[0].usn, Usn((period * 10).max(1)), "period {period}");
        assert_eq!(records.last().unwrap().usn, Usn(3000));
    }
}

#[test]
fn a_record_of_an_older_period_may_come_late() {
    let memory = Memory::new();
    let journal = create(&memory);
    for number in 1..=3000 {
        let period = if number % 5 == 0 { number / 50 } else { number / 50 + 1 };
        append(&journal, period, &payload(number));
    }
    let everything = all(&journal);
    for period in [0, 1, 30, 45, 60, 61] {
        let expected: Vec<_> = everything.iter().filter(|record| record.period >= Period(period)).collect();
        let found: Vec<_> = journal.records(Period(period)).map(Result::unwrap).collect();
        assert!(expected.into_iter().eq(&found), "period {period}");
    }
}

#[test]
fn a_kill_loses_only_what_was_not_written_through() {
    let memory = Memory::new();
    let journal = create(&memory);
    append(&journal, 1, b"one");
    let written = append(&journal, 1, b"two");
    journal.write_through(written).expect("written");
    append(&journal, 1, b"three");
    drop(journal);
    let (journal, recovered) = open(&memory);
    assert_eq!(recovered.last_usn, written);
    assert!(!recovered.is_clean);
    assert!(append(&journal, 1, b"four") > Usn(3), "a number may be lost, but not used twice");
    let payloads: Vec<_> = all(&journal).into_iter().map(|record| record.payload).collect();
    assert_eq!(payloads, [&b"one"[..], b"two", b"four"]);
}

#[test]
fn waiters_share_a_sync() {
    const WAITERS: u64 = 16;
    let memory = Memory::new();
    let journal = Arc::new(create(&memory));
    let before = memory.syncs();
    memory.gate().close();
    let first = append(&journal, 1, b"first");
    let wait = |usn| {
        let journal = Arc::clone(&journal);
        std::thread::spawn(move || journal.sync(usn).expect("synced"))
    };
    let leader = wait(first);
    while memory.gate().waiting.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    // The first sync is under way; everyone else comes too late for it.
    let others: Vec<_> = (0..WAITERS).map(|number| wait(append(&journal, 1, &payload(number)))).collect();
    memory.gate().open();
    for waiter in others.into_iter().chain([leader]) {
        waiter.join().expect("no panic");
    }
    assert_eq!(journal.durable_usn(), Usn(WAITERS + 1));
    let syncs = memory.syncs() - before;
    assert!((2..=3).contains(&syncs), "{syncs} syncs for {} waiters", WAITERS + 1);
}

#[test]
fn many_threads_append_sync_and_read_at_once() {
    let memory = Memory::new();
    let journal = Arc::new(create(&memory));
    std::thread::scope(|scope| {
        for thread in 0..6u64 {
            let journal = &journal;
            scope.spawn(move || {
                for number in 0..200 {
                    let usn = append(journal, number / 10, &payload(thread * 1000 + number));
                    match thread % 3 {
                        0 => journal.sync(usn).expect("synced"),
                        1 => journal.write_through(usn).expect("written"),
                        _ => {}
                    }
                }
            });
        }
        scope.spawn(|| {
            for _ in 0..50 {
                let next = journal.next_usn();
                let numbers: Vec<_> = all(&journal).iter().map(|record| record.usn.0).collect();
                assert!(numbers.len() as u64 >= next.0 - 1);
                assert!(numbers.iter().copied().eq(1..=numbers.len() as u64));
            }
        });
    });
    assert_eq!(all(&journal).len(), 1200);
    Arc::into_inner(journal).expect("the last one").close().expect("closed");
    assert_eq!(all(&open(&memory).0).len(), 1200);
}

#[test]
fn a_full_disk_refuses_records_keeps_room_for_one_and_recovers() {
    let memory = Memory::new();
    let mut journal = create(&memory);
    memory.set_full(true);
    let mut accepted = 0;
    let error = loop {
        match journal.append(RecordKind(1), Period(1), &[7; 100]) {
            Ok(usn) => accepted = usn.0,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AppendError::Full { source: Some(_) }), "{error:?}");
    assert!(accepted > 300, "a segment's worth of records: {accepted}");
    journal.sync(Usn(accepted)).expect("what was accepted has its space");
    assert_eq!(memory.names().len(), 2, "nothing is left of the attempts: {:?}", memory.names());

    let overflow =
        journal.append_reserved(RecordKind(9), Period(1), &[1; RESERVED_PAYLOAD_LIMIT]).expect("reserved");
    journal.sync(overflow).expect("synced");
    let again = journal.append_reserved(RecordKind(9), Period(1), b"");
    assert!(matches!(again, Err(AppendError::Full { .. })), "{again:?}");
    assert!(journal.poison().is_none());

    memory.set_full(false);
    let usn = append(&journal, 2, b"goes on");
    assert_eq!(usn, Usn(overflow.0 + 1));
    assert_eq!(all(&journal).len() as u64, usn.0);
    journal.close().expect("closed");
    assert_eq!(all(&open(&memory).0).len() as u64, usn.0);
}

#[test]
fn a_full_disk_still_takes_the_clean_end() {
    let memory = Memory::new();
    let mut journal = create(&memory);
    memory.set_full(true);
    while journal.append(RecordKind(1), Period(1), &[7; 33]).is_ok() {}
    let last = journal.append_reserved(RecordKind(9), Period(1), &[1; 256]).expect("reserved");
    journal.close().expect("closed");
    let (journal, recovered) = open(&memory);
    assert!(recovered.is_clean);
    assert_eq!(recovered.last_usn, last);
    assert!(matches!(journal.append_reserved(RecordKind(9), Period(1), b""), Err(AppendError::Full { .. })));
    memory.set_full(false);
    assert!(append(&journal, 1, b"") > last);
}

#[test]
fn the_journal_has_a_limit_of_its_own_and_retention_makes_room() {
    let memory = Memory::new();
    let journal = create(&memory);
    let mut number = 0;
    let full = loop {
        number += 1;
        if let Err(error) = journal.append(RecordKind(1), Period(number / 100), &[1; 1000]) {
            break error;
        }
    };
    assert!(matches!(full, AppendError::Full { source: None }), "{full:?}");
    assert_eq!(journal.size_bytes(), small().limit_bytes);
    let dropped = journal.retain(Period(5)).expect("dropped");
    assert!(dropped.segments > 0);
    append(&journal, number / 100, b"goes on");
}

#[test]
fn retention_drops_whole_old_segments_and_a_read_behind_it_fails() {
    let memory = Memory::new();
    let journal = create(&memory);
    for number in 1..=5000 {
        append(&journal, number / 100, &[5; 60]);
    }
    assert_eq!(journal.oldest_period_kept(), Period(0));
    let under_way = journal.records(Start::Oldest);
    journal.sync(Usn(5000)).expect("synced");
    let dropped = journal.retain(Period(20)).expect("dropped");
    assert!(dropped.segments >= 2, "{dropped:?}");
    let oldest = journal.oldest_period_kept();
    assert!(oldest <= Period(20) && oldest > Period(5), "{oldest}");
    assert_eq!(under_way.map(Result::unwrap).count(), 5000, "a read under way is not disturbed");

    let first = journal.records(Period(20)).next().unwrap().unwrap();
    assert_eq!(first.usn, Usn(2000));
    assert_eq!(journal.records(oldest).next().unwrap().unwrap().period, oldest);
    let mut behind = journal.records(Period(oldest.0 - 1));
    assert!(matches!(behind.next(), Some(Err(ReadError::Dropped { .. }))));
    assert!(behind.next().is_none());
    assert!(matches!(journal.records(Usn(1)).next(), Some(Err(ReadError::Dropped { .. }))));
    assert!(journal.records(journal.oldest_usn_kept()).next().unwrap().is_ok());

    let segments = journal.size_bytes() / small().segment_bytes;
    assert_eq!(journal.retain(Period(1_000)).expect("dropped").segments, segments - 1);
    assert_eq!(all(&journal).last().unwrap().usn, Usn(5000), "the active segment is never dropped");
    let kept = journal.oldest_period_kept();
    drop(journal);
    let (journal, recovered) = open(&memory);
    assert_eq!(recovered.oldest_period_kept, kept);
    assert_eq!(journal.oldest_period_kept(), kept);
    assert_eq!(all(&journal).last().unwrap().usn, Usn(5000));
}

#[test]
fn retention_by_size_spares_what_is_protected() {
    let memory = Memory::new();
    let journal = create(&memory);
    for number in 1..=6000 {
        append(&journal, number / 100, &[5; 60]);
    }
    journal.sync(Usn(6000)).expect("synced");
    let before = journal.size_bytes();
    assert!(before > small().retain_bytes);
    assert_eq!(journal.retain_size(Period(0)).expect("nothing to drop").segments, 0);
    journal.retain_size(Period(60)).expect("dropped");
    assert!(journal.size_bytes() <= small().retain_bytes);
    assert!(journal.size_bytes() > small().retain_bytes - 2 * small().segment_bytes);
}

#[test]
fn the_first_failure_stops_the_journal_for_good() {
    for kind in [io::ErrorKind::Other, io::ErrorKind::StorageFull] {
        for wanted in [Operation::Write, Operation::SyncData] {
            let memory = Memory::new();
            let mut journal = create(&memory);
            let durable = append(&journal, 1, b"durable");
            journal.sync(durable).expect("synced");
            let lost = append(&journal, 1, b"perhaps lost");
            let next = memory.operations().len() as u64;
            memory.set_fault(next + u64::from(wanted == Operation::SyncData), Fault::Fail(kind));
            let Err(JournalError::Poisoned(first)) = journal.sync(lost) else {
                panic!("{wanted:?} must fail")
            };
            assert_eq!(first.source.kind(), kind);
            let count = memory.operations().len();

            let Err(JournalError::Poisoned(again)) = journal.sync(lost) else { panic!("poisoned") };
            assert_eq!(again.source.kind(), kind, "the first cause");
            assert!(
                matches!(journal.write_through(lost), Err(JournalError::Poisoned(_)))
                    || wanted == Operation::SyncData
            );
            assert!(matches!(journal.append(RecordKind(1), Period(1), b""), Err(AppendError::Poisoned(_))));
            assert!(matches!(
                journal.append_reserved(RecordKind(1), Period(1), b""),
                Err(AppendError::Poisoned(_))
            ));
            assert!(journal.retain(Period(9)).is_err());
            assert!(journal.sync(durable).is_ok(), "what was durable still is");
            assert!(journal.close().is_err());
            assert_eq!(memory.operations().len(), count, "nothing was tried again");

            let (journal, recovered) = open(&memory);
            assert!(recovered.last_usn >= durable);
            assert_eq!(all(&journal)[0].payload, b"durable");
        }
    }
}

#[test]
fn a_failure_wakes_every_waiter() {
    let memory = Memory::new();
    let journal = Arc::new(create(&memory));
    memory.gate().close();
    let first = append(&journal, 1, b"first");
    let wait = |usn| {
        let journal = Arc::clone(&journal);
        std::thread::spawn(move || journal.sync(usn).is_err())
    };
    let leader = wait(first);
    while memory.gate().waiting.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    let others: Vec<_> = (0..8).map(|number| wait(append(&journal, 1, &payload(number)))).collect();
    memory.set_fault(memory.operations().len() as u64, Fault::Fail(io::ErrorKind::Other));
    memory.gate().open();
    for waiter in others.into_iter().chain([leader]) {
        assert!(waiter.join().expect("no panic"), "the waiter was told");
    }
}

#[test]
fn there_is_one_journal_in_a_storage() {
    let memory = Memory::new();
    assert!(matches!(Journal::open(memory.clone(), small()), Err(OpenError::Missing)));
    memory.put_file("consumers.json", b"{}".to_vec());
    drop(create(&memory));
    assert!(matches!(Journal::create(memory.clone(), ID, small()), Err(OpenError::Exists { .. })));
    Journal::discard(&memory).expect("discarded");
    Journal::discard(&memory).expect("discarded again");
    assert_eq!(memory.names(), ["consumers.json"]);
    assert!(matches!(Journal::open(memory.clone(), small()), Err(OpenError::Missing)));
    drop(create(&memory));
}

#[test]
fn a_payload_has_a_limit() {
    let memory = Memory::new();
    let mut journal = create(&memory);
    append(&journal, 1, &vec![3; PAYLOAD_LIMIT]);
    append(&journal, 1, &vec![0; PAYLOAD_LIMIT]);
    let too_large = journal.append(RecordKind(1), Period(1), &vec![3; PAYLOAD_LIMIT + 1]);
    assert!(matches!(too_large, Err(AppendError::TooLarge { limit: PAYLOAD_LIMIT, .. })));
    let too_large = journal.append_reserved(RecordKind(1), Period(1), &[3; RESERVED_PAYLOAD_LIMIT + 1]);
    assert!(matches!(too_large, Err(AppendError::TooLarge { limit: RESERVED_PAYLOAD_LIMIT, .. })));
    journal.close().expect("closed");
    assert_eq!(all(&open(&memory).0).len(), 2);
}

#[test]
fn the_first_number_of_a_journal_can_be_chosen() {
    let memory = Memory::new();
    let mut options = small();
    options.first_usn = Usn(1_000_000);
    let mut journal = Journal::create(memory.clone(), ID, options).expect("created");
    assert_eq!(append(&journal, 5, b"first"), Usn(1_000_000));
    journal.close().expect("closed");
    assert_eq!(open(&memory).1.last_usn, Usn(1_000_000));
}

/// A storage whose files panic when they are synced.
struct Panicking(Memory);

struct PanickingFile(common::MemoryFile);

impl highwater_journal::Storage for Panicking {
    type File = PanickingFile;

    fn list(&self) -> io::Result<Vec<String>> {
        self.0.list()
    }

    fn create(&self, name: &str) -> io::Result<PanickingFile> {
        self.0.create(name).map(PanickingFile)
    }

    fn open(&self, name: &str) -> io::Result<PanickingFile> {
        self.0.open(name).map(PanickingFile)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.replace(name, bytes)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.0.read(name)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.0.sync_directory()
    }
}

impl highwater_journal::StorageFile for PanickingFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        assert!(offset == 0, "the storage panics");
        self.0.write_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        self.0.preallocate(len)
    }

    fn give_back(&self, start: u64) -> io::Result<()> {
        self.0.give_back(start)
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
}

#[test]
fn a_storage_that_panics_stops_the_journal_and_blocks_nobody() {
    let journal = Arc::new(Journal::create(Panicking(Memory::new()), ID, small()).expect("created"));
    let usn = journal.append(RecordKind(1), Period(1), b"").expect("appended");
    let leader = Arc::clone(&journal);
    std::thread::spawn(move || leader.sync(usn)).join().expect_err("the panic goes on to its caller");
    assert!(matches!(journal.sync(usn), Err(JournalError::Poisoned(_))));
    assert!(matches!(journal.append(RecordKind(1), Period(1), b""), Err(AppendError::Poisoned(_))));
}
