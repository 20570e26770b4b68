//! The header of a segment, and the manifest that says which segment is the newest.
//!
//! Invariant: the header of segment n+1 names the exact end of segment n, so nothing behind that end is ever read as
//! records again, and a segment that lost its end is noticed.

use crate::error::{Damage, DamageReason, OpenError};
use crate::frame::{Chain, u32_at, u64_at};
use crate::ids::{JournalId, Period, Usn};
use crate::options::SEGMENTS_LIMIT;

/// The format that this crate writes, and the newest that it reads.
pub const FORMAT_VERSION: u32 = 1;

/// Begins a segment. The line ends show a copy in text mode, the first byte a copy that lost the eighth bit.
pub(crate) const SEGMENT_MAGIC: [u8; 8] = *b"\x89HWS\r\n\x1a\n";
/// Ends a segment header, behind everything that its checksum covers: if it is zero, the header was torn off.
pub(crate) const SEGMENT_END_MAGIC: [u8; 8] = *b"HWSegEnd";
/// Where that is.
const SEGMENT_END_MAGIC_AT: usize = SEGMENT_HEADER_BYTES - SEGMENT_END_MAGIC.len();
/// Length of a segment header: one sector.
pub(crate) const SEGMENT_HEADER_BYTES: usize = 512;
/// Where the records begin: the header has a page of its own, so that no later write touches it.
pub(crate) const FIRST_BATCH: u64 = 4096;
/// The longest segment.
pub(crate) const SEGMENT_LIMIT_BYTES: u64 = 1 << 30;

/// The manifest's name.
pub(crate) const MANIFEST_NAME: &str = "journal.manifest";
/// Begins the manifest.
pub(crate) const MANIFEST_MAGIC: [u8; 8] = *b"\x89HWM\r\n\x1a\n";
/// Length of the manifest.
pub(crate) const MANIFEST_BYTES: usize = 48;

/// Returns the file name of a segment.
pub(crate) fn segment_name(sequence: u64) -> String {
    format!("journal-{sequence:020}.hwj")
}

/// Returns the sequence number in the file name of a segment, or `None` if the name is another one.
pub(crate) fn segment_sequence(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("journal-")?.strip_suffix(".hwj")?;
    (digits.len() == 20 && digits.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| digits.parse().ok())
        .flatten()
}

fn damaged(file: &str, segment: Option<u64>, reason: DamageReason) -> OpenError {
    OpenError::Damaged(Damage { file: file.to_owned(), segment, offset: 0, reason })
}

/// Magic, then version, then checksum: a newer format may have its checksum elsewhere.
fn check(
    bytes: &[u8],
    magic: &[u8],
    part: &'static str,
    file: &str,
    segment: Option<u64>,
) -> Result<(), OpenError> {
    if bytes.len() < 16 || bytes[..8] != *magic {
        return Err(damaged(file, segment, DamageReason::Magic));
    }
    let found = u32_at(bytes, 8);
    if found > FORMAT_VERSION {
        return Err(OpenError::NewerFormat { file: file.to_owned(), found, supported: FORMAT_VERSION });
    }
    if u32_at(bytes, 12) != checksum(bytes) {
        return Err(damaged(file, segment, DamageReason::Checksum { part }));
    }
    if found == 0 {
        let reason = DamageReason::Meaning { part, field: "version", value: 0 };
        return Err(damaged(file, segment, reason));
    }
    Ok(())
}

/// Everything but the checksum itself.
fn checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..])
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) id: JournalId,
    pub(crate) sequence: u64,
    /// Length of the file.
    pub(crate) bytes: u64,
    pub(crate) first_usn: Usn,
    /// The largest period of any record in any segment before this one; zero if there was none.
    pub(crate) period_before: Period,
    /// Where the records of the segment before this one end; zero if there is none.
    pub(crate) previous_end: u64,
    /// The last record before this segment; zero if there is none.
    pub(crate) previous_usn: Usn,
    /// The chain at the end of the segment before this one.
    pub(crate) previous_chain: Chain,
}

/// What the place of a segment header holds.
#[derive(Debug)]
pub(crate) enum SegmentState {
    Valid(SegmentHeader),
    /// The header was never written, or its write was torn: the segment holds no records.
    Unborn,
}

impl SegmentHeader {
    pub(crate) fn encode(&self) -> [u8; SEGMENT_HEADER_BYTES] {
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        bytes[0..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.id.0);
        bytes[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.bytes.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.first_usn.0.to_le_bytes());
        bytes[56..64].copy_from_slice(&self.period_before.0.to_le_bytes());
        bytes[64..72].copy_from_slice(&self.previous_end.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.previous_usn.0.to_le_bytes());
        bytes[80..84].copy_from_slice(&self.previous_chain.0.to_le_bytes());
        bytes[SEGMENT_END_MAGIC_AT..].copy_from_slice(&SEGMENT_END_MAGIC);
        let checksum = checksum(&bytes[..SEGMENT_END_MAGIC_AT]);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// Decodes the header of the segment that is called `sequence`, in the journal `id`, in a file of `len` bytes.
    pub(crate) fn decode(
        bytes: &[u8; SEGMENT_HEADER_BYTES],
        id: JournalId,
        sequence: u64,
        len: u64,
    ) -> Result<SegmentState, OpenError> {
        let (bytes, end) = bytes.split_at(SEGMENT_END_MAGIC_AT);
        // Either the whole sector is zero and never got to the medium, or the write was cut short. One flipped byte
        // makes neither of them out of a header that was written.
        if end.iter().all(|&byte| byte == 0) {
            return Ok(SegmentState::Unborn);
        }
        let file = segment_name(sequence);
        let damaged = |reason| Err(damaged(&file, Some(sequence), reason));
        check(bytes, &SEGMENT_MAGIC, "segment header", &file, Some(sequence))?;
        let header = Self {
            id: JournalId(*bytes[16..].first_chunk().expect("16 bytes")),
            sequence: u64_at(bytes, 32),
            bytes: u64_at(bytes, 40),
            first_usn: Usn(u64_at(bytes, 48)),
            period_before: Period(u64_at(bytes, 56)),
            previous_end: u64_at(bytes, 64),
            previous_usn: Usn(u64_at(bytes, 72)),
            previous_chain: Chain(u32_at(bytes, 80)),
        };
        if header.id != id {
            return damaged(DamageReason::OtherJournal { found: header.id });
        }
        if header.sequence != sequence {
            return damaged(DamageReason::OtherSegment { found: header.sequence });
        }
        let meaning = |field, value| DamageReason::Meaning { part: "segment header", field, value };
        if !(FIRST_BATCH..=SEGMENT_LIMIT_BYTES).contains(&header.bytes) {
            return damaged(meaning("bytes", header.bytes));
        }
        if header.bytes != len {
            return damaged(DamageReason::Length { expected: header.bytes, found: len });
        }
        if header.first_usn <= header.previous_usn || header.first_usn.0 > u64::MAX / 2 {
            return damaged(meaning("first usn", header.first_usn.0));
        }
        let is_first = sequence == 1;
        if is_first != (header.previous_end == 0) || header.previous_end > SEGMENT_LIMIT_BYTES {
            return damaged(meaning("previous end", header.previous_end));
        }
        Ok(SegmentState::Valid(header))
    }
}

/// Which segments must exist: every one up to `newest`, but for the oldest ones that retention dropped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Manifest {
    pub(crate) id: JournalId,
    /// The newest segment whose space is durably allocated. Its header may not be written yet.
    pub(crate) newest: u64,
    /// The length of the newest segment's file.
    pub(crate) newest_bytes: u64,
}

impl Manifest {
    pub(crate) fn encode(&self) -> [u8; MANIFEST_BYTES] {
        let mut bytes = [0; MANIFEST_BYTES];
        bytes[0..8].copy_from_slice(&MANIFEST_MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.id.0);
        bytes[32..40].copy_from_slice(&self.newest.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.newest_bytes.to_le_bytes());
        let checksum = checksum(&bytes);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, OpenError> {
        let part = "manifest";
        check(bytes, &MANIFEST_MAGIC, part, MANIFEST_NAME, None)?;
        if bytes.len() != MANIFEST_BYTES {
            let reason = DamageReason::Length { expected: MANIFEST_BYTES as u64, found: bytes.len() as u64 };
            return Err(damaged(MANIFEST_NAME, None, reason));
        }
        let manifest = Self {
            id: JournalId(*bytes[16..].first_chunk().expect("16 bytes")),
            newest: u64_at(bytes, 32),
            newest_bytes: u64_at(bytes, 40),
        };
        let meaning =
            |field, value| Err(damaged(MANIFEST_NAME, None, DamageReason::Meaning { part, field, value }));
        if manifest.newest == 0 || manifest.newest > u64::MAX - SEGMENTS_LIMIT {
            return meaning("newest", manifest.newest);
        }
        if !(FIRST_BATCH..=SEGMENT_LIMIT_BYTES).contains(&manifest.newest_bytes) {
            return meaning("newest bytes", manifest.newest_bytes);
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_name_survives() {
        for sequence in [1, 42, u64::MAX] {
            assert_eq!(segment_sequence(&segment_name(sequence)), Some(sequence));
        }
        for name in ["journal-1.hwj", "journal.manifest", "journal-99999999999999999999.hwj", "lock"] {
            assert_eq!(segment_sequence(name), None, "{name}");
        }
    }
}
