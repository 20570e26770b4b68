//! The layout of batches and of the records in them.
//!
//! Invariant: this is the one place that knows these bytes; `docs/journal-format.md` shows them, and
//! `format_document.rs` holds the two together.
//!
//! A batch is what one write adds: a header, records, a trailer. Two of its properties let recovery tell a write that
//! the crash tore from a write that was complete and rotted:
//!
//! * a header never straddles a 512-byte sector, and ends with four bytes that are not zero, as does the trailer;
//! * the header says which sectors of the batch were written with at least two bytes that are not zero (*dense*).
//!
//! A torn write leaves at least one sector as it was before, all zero. One flipped byte cannot make a dense sector zero.

use crate::error::DamageReason;
use crate::ids::{JournalId, Period, RecordKind, Usn};

/// What a medium writes whole or not at all, in bytes.
pub(crate) const SECTOR_BYTES: usize = 512;
/// Everything begins at a multiple of this.
pub(crate) const ALIGNMENT_BYTES: usize = 8;

/// Begins a batch header.
pub(crate) const BATCH_MAGIC: [u8; 4] = *b"HWbh";
/// Ends a batch header, behind everything that its checksum covers: if it is zero, the header was torn off.
pub(crate) const BATCH_END_MAGIC: [u8; 4] = *b"hbWH";
/// Where that is.
const BATCH_END_MAGIC_AT: usize = BATCH_HEADER_BYTES - BATCH_END_MAGIC.len();
/// Ends a batch, outside every checksum: if it is zero, the batch was torn off.
pub(crate) const TRAILER_MAGIC: [u8; 4] = *b"HWbt";

/// Length of a batch header.
pub(crate) const BATCH_HEADER_BYTES: usize = 48;
/// Length of a batch trailer.
pub(crate) const BATCH_TRAILER_BYTES: usize = 8;
/// Length of a record header.
pub(crate) const RECORD_HEADER_BYTES: usize = 32;
/// Most bytes of a batch: 63 sectors, which touch at most the 64 that the dense map has bits for.
pub(crate) const BATCH_LIMIT_BYTES: usize = 63 * SECTOR_BYTES;

/// Most bytes of a payload. Two records of it do not fit into one batch, one always does.
pub const PAYLOAD_LIMIT: usize = 16 << 10;
/// Most bytes of a payload that [`Journal::append_reserved`](crate::Journal::append_reserved) takes.
pub const RESERVED_PAYLOAD_LIMIT: usize = 256;

/// The batch is the last of a journal that was closed.
pub(crate) const FLAG_CLOSED: u32 = 1;
/// The batch was written when the journal was opened after a clean end, before any number was assigned.
pub(crate) const FLAG_OPENED: u32 = 2;

/// Kept free at the end of a segment for the batch that closes the journal, with its padding.
pub(crate) const CLOSE_RESERVE_BYTES: usize = 128;
/// Kept free at the end of a segment for one reserved record in a batch of its own, and for closing.
pub(crate) const RESERVE_BYTES: usize = 512;

const _: () = {
    let padding = BATCH_HEADER_BYTES - ALIGNMENT_BYTES;
    let empty = padding + BATCH_HEADER_BYTES + BATCH_TRAILER_BYTES;
    assert!(CLOSE_RESERVE_BYTES >= empty);
    assert!(RESERVE_BYTES >= CLOSE_RESERVE_BYTES + empty + RECORD_HEADER_BYTES + RESERVED_PAYLOAD_LIMIT);
    assert!(
        BATCH_LIMIT_BYTES >= BATCH_HEADER_BYTES + RECORD_HEADER_BYTES + PAYLOAD_LIMIT + BATCH_TRAILER_BYTES
    );
};

/// Casts an offset inside a buffer.
pub(crate) fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("an offset inside a buffer fits usize")
}

/// Casts a length that a limit has bounded.
pub(crate) fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).expect("a bounded length fits u32")
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("eight bytes"))
}

/// Where every checksum of one segment begins, so that no bytes of another segment or journal validate in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seed(u32);

impl Seed {
    pub(crate) fn new(id: JournalId, sequence: u64) -> Self {
        Self(crc32c::crc32c_append(crc32c::crc32c(&id.0), &sequence.to_le_bytes()))
    }

    fn sum(self, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(self.0, bytes)
    }
}

/// A checksum over the checksums of every record and batch header of a segment so far, which links each batch, and the
/// next segment, to everything before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain(pub(crate) u32);

impl Chain {
    pub(crate) fn link(self, checksum: u32) -> Self {
        Self(crc32c::crc32c_append(self.0, &checksum.to_le_bytes()))
    }
}

/// Returns where a batch begins when the one before it ended at `end`: there, or at the next sector if its header
/// would straddle two.
pub(crate) fn batch_start(end: u64) -> u64 {
    let sector = SECTOR_BYTES as u64;
    let left = sector - end % sector;
    if left < BATCH_HEADER_BYTES as u64 { end + left } else { end }
}

/// Returns the length of a record with its padding.
pub(crate) fn record_bytes(payload: usize) -> usize {
    (RECORD_HEADER_BYTES + payload).next_multiple_of(ALIGNMENT_BYTES)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BatchHeader {
    /// The whole batch, with header and trailer.
    pub(crate) bytes: u32,
    pub(crate) records: u32,
    /// The number of the first record, or that of the next one to come if there is none.
    pub(crate) first_usn: Usn,
    /// The last record that was known to be durable when this batch was finished.
    pub(crate) durable: Usn,
    /// Bit i: the i-th sector that the batch touches was written with at least two bytes that are not zero.
    pub(crate) dense: u64,
    pub(crate) flags: u32,
    pub(crate) checksum: u32,
}

/// What the place of a batch header holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HeaderState {
    Valid(BatchHeader),
    /// All zero: nothing was written here, or its sector did not get to the medium.
    Missing,
    /// Its end is missing: a write was cut short.
    Torn,
    Invalid(DamageReason),
}

impl BatchHeader {
    fn encode(&self, out: &mut [u8], seed: Seed) -> u32 {
        out[0..4].copy_from_slice(&BATCH_MAGIC);
        out[8..12].copy_from_slice(&self.bytes.to_le_bytes());
        out[12..16].copy_from_slice(&self.records.to_le_bytes());
        out[16..24].copy_from_slice(&self.first_usn.0.to_le_bytes());
        out[24..32].copy_from_slice(&self.durable.0.to_le_bytes());
        out[32..40].copy_from_slice(&self.dense.to_le_bytes());
        out[40..44].copy_from_slice(&self.flags.to_le_bytes());
        out[BATCH_END_MAGIC_AT..BATCH_HEADER_BYTES].copy_from_slice(&BATCH_END_MAGIC);
        let checksum = seed.sum(&out[8..BATCH_END_MAGIC_AT]);
        out[4..8].copy_from_slice(&checksum.to_le_bytes());
        checksum
    }

    /// Decodes the header at the start of `bytes`, which has at least [`BATCH_HEADER_BYTES`].
    pub(crate) fn decode(bytes: &[u8], seed: Seed) -> HeaderState {
        let bytes = &bytes[..BATCH_HEADER_BYTES];
        if bytes.iter().all(|&byte| byte == 0) {
            return HeaderState::Missing;
        }
        let checksum = u32_at(bytes, 4);
        if bytes[..4] != BATCH_MAGIC || checksum != seed.sum(&bytes[8..BATCH_END_MAGIC_AT]) {
            // The end magic is outside the checksum: a header that only lacks a part of it is whole.
            return if is_zero(&bytes[BATCH_END_MAGIC_AT..]) {
                HeaderState::Torn
            } else {
                HeaderState::Invalid(DamageReason::Checksum { part: "batch header" })
            };
        }
        let header = Self {
            bytes: u32_at(bytes, 8),
            records: u32_at(bytes, 12),
            first_usn: Usn(u64_at(bytes, 16)),
            durable: Usn(u64_at(bytes, 24)),
            dense: u64_at(bytes, 32),
            flags: u32_at(bytes, 40),
            checksum,
        };
        let meaning =
            |field, value| HeaderState::Invalid(DamageReason::Meaning { part: "batch header", field, value });
        let least = BATCH_HEADER_BYTES + BATCH_TRAILER_BYTES;
        if !(least..=BATCH_LIMIT_BYTES).contains(&(header.bytes as usize))
            || !(header.bytes as usize).is_multiple_of(ALIGNMENT_BYTES)
        {
            return meaning("bytes", u64::from(header.bytes));
        }
        if header.records as usize > (header.bytes as usize - least) / RECORD_HEADER_BYTES {
            return meaning("records", u64::from(header.records));
        }
        if header.flags & !(FLAG_CLOSED | FLAG_OPENED) != 0 {
            return meaning("flags", u64::from(header.flags));
        }
        HeaderState::Valid(header)
    }
}

/// A record as it lies in a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordView<'a> {
    pub(crate) usn: Usn,
    pub(crate) period: Period,
    pub(crate) kind: RecordKind,
    pub(crate) payload: &'a [u8],
    pub(crate) checksum: u32,
}

impl<'a> RecordView<'a> {
    /// Decodes the record at the start of `bytes`, which end where the batch's trailer begins.
    pub(crate) fn decode(bytes: &'a [u8], seed: Seed) -> Result<Self, DamageReason> {
        let broken = DamageReason::Checksum { part: "record" };
        if bytes.len() < RECORD_HEADER_BYTES {
            return Err(broken);
        }
        let payload = u32_at(bytes, 0) as usize;
        if payload > PAYLOAD_LIMIT || record_bytes(payload) > bytes.len() {
            return Err(broken);
        }
        let bytes = &bytes[..record_bytes(payload)];
        let checksum = u32_at(bytes, 4);
        if checksum != record_checksum(bytes, seed) {
            return Err(broken);
        }
        Ok(Self {
            usn: Usn(u64_at(bytes, 8)),
            period: Period(u64_at(bytes, 16)),
            kind: RecordKind(bytes[24]),
            payload: &bytes[RECORD_HEADER_BYTES..RECORD_HEADER_BYTES + payload],
            checksum,
        })
    }
}

/// The length, and everything behind the checksum up to the padding's end.
fn record_checksum(bytes: &[u8], seed: Seed) -> u32 {
    crc32c::crc32c_append(seed.sum(&bytes[0..4]), &bytes[8..])
}

fn append_record(
    out: &mut Vec<u8>,
    usn: Usn,
    period: Period,
    kind: RecordKind,
    payload: &[u8],
    seed: Seed,
) -> u32 {
    let start = out.len();
    out.extend_from_slice(&length(payload.len()).to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&usn.0.to_le_bytes());
    out.extend_from_slice(&period.0.to_le_bytes());
    out.extend_from_slice(&[kind.0, 0, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(payload);
    out.resize(start + record_bytes(payload.len()), 0);
    let checksum = record_checksum(&out[start..], seed);
    out[start + 4..start + 8].copy_from_slice(&checksum.to_le_bytes());
    checksum
}

/// Returns the chain that the trailer at the start of `bytes` names.
pub(crate) fn trailer_chain(bytes: &[u8]) -> Chain {
    Chain(u32_at(bytes, 0))
}

/// Returns the parts of `bytes`, which lie at `offset`, by sector.
fn sectors(bytes: &[u8], offset: u64) -> impl Iterator<Item = &[u8]> {
    let first = SECTOR_BYTES - index(offset % SECTOR_BYTES as u64);
    let (head, rest) = bytes.split_at(first.min(bytes.len()));
    std::iter::once(head).chain(rest.chunks(SECTOR_BYTES))
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}

/// Tells whether the bytes of a batch at `offset` that does not validate look as if a crash tore its write: a sector
/// that was written dense is zero, or the trailer's end is.
pub(crate) fn looks_torn(batch: &[u8], offset: u64, dense: u64) -> bool {
    let sector_missing =
        sectors(batch, offset).enumerate().any(|(bit, sector)| dense & (1 << bit) != 0 && is_zero(sector));
    sector_missing || is_zero(&batch[batch.len() - TRAILER_MAGIC.len()..])
}

/// The batch that records are being added to, at the end of a buffer.
#[derive(Debug)]
pub(crate) struct OpenBatch {
    /// Where its header begins in the buffer.
    pub(crate) start: usize,
    /// Where its header begins in the file.
    pub(crate) offset: u64,
    first_usn: Usn,
    records: u32,
}

impl OpenBatch {
    /// Opens a batch at the end of `out`, whose end is `end` in the file.
    pub(crate) fn open(out: &mut Vec<u8>, end: u64, first_usn: Usn) -> Self {
        let offset = batch_start(end);
        out.resize(out.len() + index(offset - end), 0);
        let start = out.len();
        out.resize(start + BATCH_HEADER_BYTES, 0);
        Self { start, offset, first_usn, records: 0 }
    }

    /// Adds a record and returns the chain behind it.
    pub(crate) fn push(
        &mut self,
        out: &mut Vec<u8>,
        record: &RecordView<'_>,
        seed: Seed,
        chain: Chain,
    ) -> Chain {
        let checksum = append_record(out, record.usn, record.period, record.kind, record.payload, seed);
        self.records += 1;
        chain.link(checksum)
    }

    /// Finishes the batch and returns the chain behind it.
    pub(crate) fn close(
        self,
        out: &mut Vec<u8>,
        durable: Usn,
        flags: u32,
        seed: Seed,
        chain: Chain,
    ) -> Chain {
        let header = out.len();
        out.resize(header + BATCH_TRAILER_BYTES, 0);
        let batch = &mut out[self.start..];
        let trailer = batch.len() - BATCH_TRAILER_BYTES;
        batch[trailer + 4..].copy_from_slice(&TRAILER_MAGIC);
        let mut header = BatchHeader {
            bytes: length(batch.len()),
            records: self.records,
            first_usn: self.first_usn,
            durable,
            dense: 0,
            flags,
            checksum: 0,
        };
        // The header itself makes the first sector dense, and the magic the last one; the others need counting.
        header.encode(batch, seed);
        header.dense = sectors(batch, self.offset).enumerate().fold(0, |dense, (bit, sector)| {
            let is_dense = sector.iter().filter(|&&byte| byte != 0).take(2).count() == 2;
            dense | u64::from(is_dense) << bit
        });
        let chain = chain.link(header.encode(batch, seed));
        batch[trailer..trailer + 4].copy_from_slice(&chain.0.to_le_bytes());
        chain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: Seed = Seed(7);

    fn batch(end: u64, payloads: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut chain = Chain::default();
        let mut open = OpenBatch::open(&mut out, end, Usn(1));
        for (usn, payload) in (1..).zip(payloads) {
            let record =
                RecordView { usn: Usn(usn), period: Period(1), kind: RecordKind(9), payload, checksum: 0 };
            chain = open.push(&mut out, &record, SEED, chain);
        }
        open.close(&mut out, Usn(0), 0, SEED, chain);
        out
    }

    #[test]
    fn a_header_never_straddles_a_sector() {
        for end in (0..2048).step_by(ALIGNMENT_BYTES) {
            let start = batch_start(end);
            assert!(start >= end && start - end < BATCH_HEADER_BYTES as u64);
            assert_eq!(start / 512, (start + BATCH_HEADER_BYTES as u64 - 1) / 512);
        }
    }

    #[test]
    fn no_single_flipped_byte_looks_torn() {
        let payload = [0; 2000];
        let bytes = batch(8, &[b"abc", &payload, b"", &[0, 0, 1]]);
        let HeaderState::Valid(header) = BatchHeader::decode(&bytes, SEED) else { panic!("valid") };
        assert!(!looks_torn(&bytes, 8, header.dense));
        for at in 0..bytes.len() {
            for mask in [1, 0x80, 0xff, bytes[at]] {
                let mut flipped = bytes.clone();
                flipped[at] ^= mask;
                if mask == 0 {
                    continue;
                }
                match BatchHeader::decode(&flipped, SEED) {
                    HeaderState::Valid(header) => assert!(!looks_torn(&flipped, 8, header.dense), "{at}"),
                    HeaderState::Invalid(_) => assert!(at < BATCH_HEADER_BYTES, "{at}"),
                    state => panic!("byte {at} made it {state:?}"),
                }
            }
        }
    }

    #[test]
    fn a_batch_with_a_lost_dense_sector_or_a_cut_end_looks_torn() {
        let payload = [0x55; 3000];
        let bytes = batch(8, &[&payload]);
        let HeaderState::Valid(header) = BatchHeader::decode(&bytes, SEED) else { panic!("valid") };
        for sector in 1..bytes.len() / 512 {
            let mut lost = bytes.clone();
            lost[sector * 512 - 8..(sector + 1) * 512 - 8].fill(0);
            assert!(looks_torn(&lost, 8, header.dense), "sector {sector}");
        }
        for cut in BATCH_HEADER_BYTES..bytes.len() - 4 {
            let mut torn = bytes.clone();
            torn[cut..].fill(0);
            assert!(looks_torn(&torn, 8, header.dense), "cut at {cut}");
        }
        for cut in 1..BATCH_HEADER_BYTES - 4 {
            let mut torn = bytes.clone();
            torn[cut..].fill(0);
            // Where only zeros are cut off, nothing is.
            let is_whole = torn[..BATCH_END_MAGIC_AT] == bytes[..BATCH_END_MAGIC_AT];
            let expected = if is_whole { HeaderState::Valid(header) } else { HeaderState::Torn };
            assert_eq!(BatchHeader::decode(&torn, SEED), expected, "cut at {cut}");
        }
    }
}
