//! A second reader of the journal, written from docs/journal-format.md and sharing nothing with the real one: whole files in memory,
//! one pass, no care for speed.

use std::collections::BTreeMap;

use highwater_journal::{Period, Record, RecordKind, Usn};

pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// What a segment holds.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) records: Vec<Record>,
    /// Where they end.
    pub(crate) end: usize,
    /// Bytes that no crash leaves.
    pub(crate) is_damaged: bool,
    /// From the end to the last byte that is not zero.
    pub(crate) tail: usize,
    /// The last batch says "closed", and nothing is behind it.
    pub(crate) is_closed: bool,
}

/// The header of a segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    id: [u8; 16],
    pub(crate) sequence: u64,
    first_usn: u64,
    /// Where the segment before ends, and its chain.
    before: (usize, u32),
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("eight bytes"))
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

fn sum(from: u32, parts: &[&[u8]]) -> u32 {
    parts.iter().fold(from, |sum, part| crc32c::crc32c_append(sum, part))
}

fn link(chain: u32, checksum: u32) -> u32 {
    sum(chain, &[&checksum.to_le_bytes()])
}

fn batch_start(end: usize) -> usize {
    if 512 - end % 512 < 48 { end.next_multiple_of(512) } else { end }
}

/// Each segment that has a header, in order. Whoever calls this knows that the headers are valid.
pub(crate) fn segments(files: &Files) -> Vec<(Header, &[u8])> {
    let mut segments = Vec::new();
    for (name, bytes) in files {
        if !name.ends_with(".hwj") || bytes.len() < 4096 || is_zero(&bytes[504..512]) {
            continue;
        }
        let before = (usize::try_from(u64_at(bytes, 64)).unwrap_or(usize::MAX), u32_at(bytes, 80));
        let id = *bytes[16..].first_chunk().expect("16 bytes");
        let (sequence, first_usn) = (u64_at(bytes, 32), u64_at(bytes, 48));
        segments.push((Header { id, sequence, first_usn, before }, bytes.as_slice()));
    }
    segments
}

/// Reads one segment. `next` is the header of the segment behind it, which says where this one ends.
pub(crate) fn read(header: &Header, file: &[u8], next: Option<&Header>) -> Found {
    let seed = sum(0, &[&header.id, &header.sequence.to_le_bytes()]);
    let limit = next.map_or(file.len(), |next| next.before.0.min(file.len()));
    let mut found = Found { records: Vec::new(), end: 4096, is_damaged: false, tail: 0, is_closed: false };
    let mut chain = 0;
    // Whether a batch was cut by a crash; `None`: damage.
    let stopped_by_crash = loop {
        if next.is_some() && found.end == limit {
            break Some(());
        }
        match read_batch(&mut found, &file[..limit], seed, header.first_usn, &mut chain, next.is_some()) {
            Batch::Whole => {}
            Batch::Crash => break Some(()),
            Batch::Damage => break None,
        }
    };
    match next {
        Some(next) => {
            found.is_damaged = stopped_by_crash.is_none() || found.end != limit || chain != next.before.1;
        }
        None => {
            let expected = header.first_usn + found.records.len() as u64;
            let says_more = |at: usize| {
                batch_start(at) == at
                    && file.len() - at >= 48
                    && is_header(&file[at..at + 48], seed)
                    && u64_at(file, at + 24) >= expected
            };
            found.is_damaged =
                stopped_by_crash.is_none() || (found.end..file.len()).step_by(8).any(says_more);
            let last = file[found.end..].iter().rposition(|byte| *byte != 0);
            found.tail = last.map_or(0, |last| last + 1);
            found.is_closed &= found.tail == 0;
        }
    }
    found
}

enum Batch {
    Whole,
    /// It is not there, or looks as a crash leaves it.
    Crash,
    Damage,
}

/// A header that is whole and means something.
fn is_header(header: &[u8], seed: u32) -> bool {
    let (bytes, records) = (u32_at(header, 8), u32_at(header, 12));
    header[..4] == *b"HWbh"
        && u32_at(header, 4) == sum(seed, &[&header[8..44]])
        && (56..=63 * 512).contains(&bytes)
        && bytes % 8 == 0
        && records <= (bytes - 56) / 32
        && u32_at(header, 40) < 4
}

fn read_batch(
    found: &mut Found,
    file: &[u8],
    seed: u32,
    first_usn: u64,
    chain: &mut u32,
    end_is_known: bool,
) -> Batch {
    let start = batch_start(found.end);
    if file.len() < start + 56 {
        return if end_is_known { Batch::Damage } else { Batch::Crash };
    }
    let header = &file[start..start + 48];
    if is_zero(header) {
        return Batch::Crash;
    }
    if !is_header(header, seed) {
        let has_checksum = header[..4] == *b"HWbh" && u32_at(header, 4) == sum(seed, &[&header[8..44]]);
        return if is_zero(&header[44..]) && !has_checksum { Batch::Crash } else { Batch::Damage };
    }
    let expected = |found: &Found| first_usn + found.records.len() as u64;
    let (bytes, dense) = (u32_at(header, 8) as usize, u64_at(header, 32));
    if u64_at(header, 16) != expected(found) || (!end_is_known && start + bytes > file.len()) {
        return Batch::Damage;
    }
    found.is_closed = false;
    let is_cut = start + bytes > file.len();
    let batch = &file[start..file.len().min(start + bytes)];
    let is_missing = |(bit, sector): (usize, &[u8])| dense >> bit & 1 == 1 && is_zero(sector);
    let (head, others) = batch.split_at(batch.len().min(512 - start % 512));
    let looks_torn = std::iter::once(head).chain(others.chunks(512)).enumerate().any(is_missing)
        || is_zero(&batch[batch.len() - 4..]);
    let invalid = || if looks_torn && !end_is_known { Batch::Crash } else { Batch::Damage };
    let records_end = if is_cut { batch.len() } else { bytes - 8 };
    let mut at = 48;
    for _ in 0..u32_at(header, 12) {
        if is_cut && at == records_end {
            break;
        }
        let Some(record) = batch[..records_end].get(at..).filter(|record| record.len() >= 32) else {
            // No room for another: whether one was promised is looked at below.
            if at == records_end {
                return Batch::Damage;
            }
            return invalid();
        };
        let length = u32_at(record, 0) as usize;
        let padded = (32 + length).next_multiple_of(8);
        if length > 16384 || padded > record.len() {
            return invalid();
        }
        let checksum = u32_at(record, 4);
        if checksum != sum(seed, &[&record[..4], &record[8..padded]]) {
            return invalid();
        }
        if u64_at(record, 8) != expected(found) {
            return Batch::Damage;
        }
        found.records.push(Record {
            usn: Usn(u64_at(record, 8)),
            period: Period(u64_at(record, 16)),
            kind: RecordKind(record[24]),
            payload: record[32..32 + length].to_vec(),
        });
        at += padded;
        found.end = start + at;
        *chain = link(*chain, checksum);
    }
    if is_cut {
        return if found.end == file.len() { Batch::Whole } else { Batch::Damage };
    }
    if at != records_end {
        return Batch::Damage;
    }
    let chain_behind = link(*chain, u32_at(header, 4));
    if u32_at(batch, bytes - 8) != chain_behind {
        return invalid();
    }
    *chain = chain_behind;
    found.end = start + bytes;
    found.is_closed = u32_at(header, 40) & 1 == 1;
    Batch::Whole
}

/// Makes every checksum of a file right, as far as its lengths can be followed.
pub(crate) fn seal(name: &str, file: &mut [u8]) {
    let part_of_header = |file: &[u8]| if name.ends_with(".hwj") { 504 } else { 48 }.min(file.len());
    let len = part_of_header(file);
    if len < 48 {
        return;
    }
    let checksum = sum(0, &[&file[..12], &file[16..len]]);
    file[12..16].copy_from_slice(&checksum.to_le_bytes());
    if len < 504 {
        return;
    }
    let seed = sum(0, &[&file[16..40]]);
    let (mut at, mut chain) = (batch_start(4096), 0);
    while at + 56 <= file.len() && !is_zero(&file[at..at + 48]) {
        let bytes = u32_at(file, at + 8) as usize;
        let (count, end) = (u32_at(file, at + 12), at + bytes.max(56) - 8);
        if end + 8 > file.len() {
            return;
        }
        let mut record = at + 48;
        for _ in 0..count {
            if record + 32 > end {
                break;
            }
            let padded = (32 + u32_at(file, record) as usize).next_multiple_of(8);
            if record + padded > end {
                break;
            }
            let checksum = sum(seed, &[&file[record..record + 4], &file[record + 8..record + padded]]);
            file[record + 4..record + 8].copy_from_slice(&checksum.to_le_bytes());
            chain = link(chain, checksum);
            record += padded;
        }
        let checksum = sum(seed, &[&file[at + 8..at + 44]]);
        file[at + 4..at + 8].copy_from_slice(&checksum.to_le_bytes());
        chain = link(chain, checksum);
        file[end..end + 4].copy_from_slice(&chain.to_le_bytes());
        at = batch_start(end + 8);
    }
}
