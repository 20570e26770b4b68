//! Walks the batches of one segment in order, checking everything.
//!
//! Invariant: a record is handed out only if it, and everything before it in the segment since the walk began, is valid
//! and carries the number that must follow.

use std::io;
use std::sync::Arc;

use crate::error::DamageReason;
use crate::frame::{
    BATCH_HEADER_BYTES, BATCH_TRAILER_BYTES, BatchHeader, Chain, FLAG_CLOSED, HeaderState, RecordView, Seed,
    batch_start, index, looks_torn, record_bytes, trailer_chain,
};
use crate::ids::Usn;
use crate::storage::StorageFile;

/// How much is read at once: larger than any batch.
const READ_BYTES: u64 = 128 << 10;

/// Bytes of a segment, in its file or still in memory.
#[derive(Debug)]
pub(crate) enum Source<F> {
    File { file: Arc<F>, end: u64, buffer: Vec<u8>, buffer_offset: u64 },
    Memory { bytes: Arc<Vec<u8>>, offset: u64 },
}

impl<F: StorageFile> Source<F> {
    /// The bytes of a file up to `end`.
    pub(crate) fn file(file: Arc<F>, end: u64) -> Self {
        Self::File { file, end, buffer: Vec::new(), buffer_offset: 0 }
    }

    /// Returns where the bytes begin in the segment.
    pub(crate) fn offset(&self) -> u64 {
        match self {
            Self::File { .. } => 0,
            Self::Memory { offset, .. } => *offset,
        }
    }

    /// Returns `len` bytes from `offset` on.
    pub(crate) fn bytes(&mut self, offset: u64, len: usize) -> io::Result<&[u8]> {
        match self {
            Self::Memory { bytes, offset: base } => {
                let start = index(offset - *base);
                bytes.get(start..start + len).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
            }
            Self::File { file, end, buffer, buffer_offset } => {
                let held = *buffer_offset..=*buffer_offset + buffer.len() as u64;
                if !(held.contains(&offset) && held.contains(&(offset + len as u64))) {
                    let wanted = READ_BYTES.min(end.saturating_sub(offset)).max(len as u64);
                    buffer.clear();
                    buffer.resize(index(wanted), 0);
                    *buffer_offset = offset;
                    if let Err(error) = file.read_at(buffer, offset) {
                        buffer.clear();
                        return Err(error);
                    }
                }
                let start = index(offset - *buffer_offset);
                Ok(&buffer[start..start + len])
            }
        }
    }
}

/// Where the records of a segment end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Exactly here: the writer or the next segment's header says so.
    Known(u64),
    /// At the first batch that is not valid, at the latest where the file ends.
    Open(u64),
}

/// What one step found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// A whole batch, or the part of one in front of a known end.
    Batch(BatchHeader),
    /// The known end, or no room for another batch.
    End,
    /// The walk cannot go on; everything up to [`Walk::at`] was valid.
    Stop(Stop),
}

/// Why a walk cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// No batch was written here, or its first sector is missing.
    Missing,
    /// A batch was written here, but a part of it is missing in the way of a crash.
    Torn,
    /// Bytes are here that no crash leaves.
    Damaged { offset: u64, reason: DamageReason },
}

/// A walk through the batches of one segment.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    pub(crate) seed: Seed,
    /// The end of what was valid.
    pub(crate) at: u64,
    pub(crate) chain: Chain,
    /// The walk began in the middle, so the first trailer says what the chain is.
    pub(crate) adopts_chain: bool,
    /// The number that the next record must have.
    pub(crate) expected: Usn,
    pub(crate) end: End,
    pub(crate) closed: bool,
}

impl Walk {
    /// Walks one batch on, and shows every valid record to `record`.
    pub(crate) fn step<F: StorageFile>(
        &mut self,
        source: &mut Source<F>,
        mut record: impl FnMut(&RecordView<'_>),
    ) -> io::Result<Step> {
        let limit = match self.end {
            End::Known(end) if self.at == end => return Ok(Step::End),
            End::Known(end) | End::Open(end) => end,
        };
        let is_known = matches!(self.end, End::Known(_));
        let stop_at_end = |offset| Step::Stop(Stop::Damaged { offset, reason: DamageReason::End });
        let start = batch_start(self.at);
        let room = limit.saturating_sub(start);
        if room < (BATCH_HEADER_BYTES + BATCH_TRAILER_BYTES) as u64 {
            return Ok(if is_known { stop_at_end(self.at) } else { Step::End });
        }
        let header = match BatchHeader::decode(source.bytes(start, BATCH_HEADER_BYTES)?, self.seed) {
            HeaderState::Valid(header) => header,
            HeaderState::Missing => return Ok(Step::Stop(Stop::Missing)),
            HeaderState::Torn => return Ok(Step::Stop(Stop::Torn)),
            HeaderState::Invalid(reason) => return Ok(Step::Stop(Stop::Damaged { offset: start, reason })),
        };
        if header.first_usn != self.expected {
            let reason = DamageReason::Sequence { expected: self.expected, found: header.first_usn };
            return Ok(Step::Stop(Stop::Damaged { offset: start, reason }));
        }
        // A recovery may have ended the segment inside a batch that was torn; what is behind that end does not count.
        let len = room.min(u64::from(header.bytes));
        let is_cut = len < u64::from(header.bytes);
        if is_cut && !is_known {
            let reason = DamageReason::Meaning {
                part: "batch header",
                field: "bytes",
                value: u64::from(header.bytes),
            };
            return Ok(Step::Stop(Stop::Damaged { offset: start, reason }));
        }
        let batch = source.bytes(start, index(len))?;
        self.closed = false;
        let body_end = batch.len() - if is_cut { 0 } else { BATCH_TRAILER_BYTES };
        let mut at = BATCH_HEADER_BYTES;
        let mut remaining = header.records;
        let invalid = |at: usize, reason: DamageReason| {
            if !is_known && looks_torn(batch, start, header.dense) {
                Stop::Torn
            } else {
                Stop::Damaged { offset: start + at as u64, reason }
            }
        };
        while at < body_end && remaining > 0 {
            let view = match RecordView::decode(&batch[at..body_end], self.seed) {
                Ok(view) if view.usn == self.expected => view,
                Ok(view) => {
                    let reason = DamageReason::Sequence { expected: self.expected, found: view.usn };
                    return Ok(Step::Stop(Stop::Damaged { offset: start + at as u64, reason }));
                }
                Err(reason) => return Ok(Step::Stop(invalid(at, reason))),
            };
            record(&view);
            at += record_bytes(view.payload.len());
            remaining -= 1;
            self.at = start + at as u64;
            self.chain = self.chain.link(view.checksum);
            self.expected = self.expected.next();
        }
        if is_cut {
            return Ok(if self.at == limit { Step::Batch(header) } else { stop_at_end(self.at) });
        }
        if at != body_end || remaining != 0 {
            let value = u64::from(header.records);
            let reason = DamageReason::Meaning { part: "batch header", field: "records", value };
            return Ok(Step::Stop(Stop::Damaged { offset: start, reason }));
        }
        let chain = if std::mem::take(&mut self.adopts_chain) {
            trailer_chain(&batch[body_end..])
        } else {
            self.chain.link(header.checksum)
        };
        // A recovery may also have ended the segment right in front of a trailer that was torn off.
        if trailer_chain(&batch[body_end..]) != chain {
            return Ok(Step::Stop(invalid(at, DamageReason::Checksum { part: "batch" })));
        }
        self.chain = chain;
        self.at = start + len;
        self.closed = header.flags & FLAG_CLOSED != 0;
        Ok(Step::Batch(header))
    }
}
