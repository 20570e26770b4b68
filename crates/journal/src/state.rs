//! What a journal holds in memory, and the rules for changing it under its lock.
//!
//! Invariant: a record that was accepted has its place in a segment whose space is preallocated, so the bytes that are
//! buffered can be written whatever the disk does meanwhile, short of failing.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::Poisoned;
use crate::frame::{
    BATCH_HEADER_BYTES, BATCH_LIMIT_BYTES, BATCH_TRAILER_BYTES, CLOSE_RESERVE_BYTES, Chain, OpenBatch,
    RESERVE_BYTES, RecordView, Seed, batch_start, record_bytes,
};
use crate::ids::{JournalId, Period, Record, RecordKind, Usn};
use crate::segment::{FIRST_BATCH, SegmentHeader};
use crate::walk::{End, Walk};

/// A read begins at most this far before the first record that was asked for, in a segment that is indexed.
const INDEX_BYTES: u64 = 64 << 10;

/// A place inside a segment where a read can begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    /// The end of a batch.
    pub(crate) at: u64,
    /// The number of the next record.
    pub(crate) usn: Usn,
    pub(crate) chain: Chain,
    /// The largest period of any record before this place, in this segment and those before it.
    pub(crate) period_before: Period,
}

/// How much of the file of a segment that ends there is kept: whole pages.
pub(crate) fn kept_bytes(end: u64) -> u64 {
    end.next_multiple_of(4096)
}

/// One segment that has a header.
#[derive(Debug)]
pub(crate) struct Segment<F> {
    pub(crate) sequence: u64,
    pub(crate) file: Arc<F>,
    /// Length of the file.
    pub(crate) bytes: u64,
    pub(crate) first_usn: Usn,
    /// The last record before this segment.
    pub(crate) previous_usn: Usn,
    pub(crate) period_before: Period,
    /// The header is durable.
    pub(crate) is_born: bool,
    /// The end of the records, with those that are still in memory.
    pub(crate) end: u64,
    /// The end of what was handed to the storage.
    pub(crate) written_end: u64,
    /// The last record up to `end`, in this segment or before it.
    pub(crate) last_usn: Usn,
    /// The chain at `end`.
    pub(crate) chain: Chain,
    /// Where reads can begin besides the first batch; empty for a segment that was complete when it was opened.
    pub(crate) marks: Vec<Mark>,
}

impl<F> Segment<F> {
    /// What is kept of the file when the next segment has begun. The rest is given back.
    pub(crate) fn kept_bytes(&self) -> u64 {
        kept_bytes(self.end).min(self.bytes)
    }

    pub(crate) fn new(header: &SegmentHeader, file: Arc<F>, is_born: bool) -> Self {
        Self {
            sequence: header.sequence,
            file,
            bytes: header.bytes,
            first_usn: header.first_usn,
            previous_usn: header.previous_usn,
            period_before: header.period_before,
            is_born,
            end: FIRST_BATCH,
            written_end: FIRST_BATCH,
            last_usn: header.previous_usn,
            chain: Chain::default(),
            marks: Vec::new(),
        }
    }

    /// Returns a walk from the last place before which `is_before` holds.
    pub(crate) fn walk(&self, id: JournalId, is_before: impl Fn(&Mark) -> bool) -> Walk {
        let first = Mark {
            at: FIRST_BATCH,
            usn: self.first_usn,
            chain: Chain::default(),
            period_before: self.period_before,
        };
        let marks = &self.marks[..self.marks.partition_point(is_before)];
        let mark = marks.last().unwrap_or(&first);
        Walk {
            seed: Seed::new(id, self.sequence),
            at: mark.at,
            chain: mark.chain,
            adopts_chain: false,
            expected: mark.usn,
            end: End::Known(self.end),
            closed: false,
        }
    }

    /// Remembers the current end, if it is far enough behind the last mark.
    pub(crate) fn mark(&mut self, next_usn: Usn, period_before: Period) {
        let last = self.marks.last().map_or(FIRST_BATCH, |mark| mark.at);
        if self.end - last >= INDEX_BYTES {
            self.marks.push(Mark { at: self.end, usn: next_usn, chain: self.chain, period_before });
        }
    }
}

/// Bytes that go to one segment in one write.
#[derive(Debug)]
pub(crate) struct Run<F> {
    pub(crate) sequence: u64,
    pub(crate) file: Arc<F>,
    /// Set if the segment begins with this run: then its header goes first, once everything before it is durable.
    pub(crate) header: Option<SegmentHeader>,
    pub(crate) offset: u64,
    pub(crate) bytes: Arc<Vec<u8>>,
}

/// The segment that records are appended to.
#[derive(Debug)]
pub(crate) struct Active<F> {
    seed: Seed,
    pub(crate) file: Arc<F>,
    sequence: u64,
    bytes: u64,
    /// The end of everything appended, a batch that is still open included.
    at: u64,
    chain: Chain,
    batch: Option<OpenBatch>,
    /// What was appended and not yet taken to be written, and where it goes.
    buffer: Vec<u8>,
    buffer_offset: u64,
    header: Option<SegmentHeader>,
    reserve_used: bool,
}

impl<F> Active<F> {
    pub(crate) fn new(segment: &Segment<F>, id: JournalId, header: Option<SegmentHeader>) -> Self {
        Self {
            seed: Seed::new(id, segment.sequence),
            file: Arc::clone(&segment.file),
            sequence: segment.sequence,
            bytes: segment.bytes,
            at: segment.end,
            chain: segment.chain,
            batch: None,
            buffer: Vec::new(),
            buffer_offset: segment.end,
            header,
            reserve_used: false,
        }
    }

    /// Tells whether the open batch can take the record.
    fn fits_batch(&self, payload: usize) -> bool {
        self.batch.as_ref().is_some_and(|batch| {
            self.buffer.len() - batch.start + record_bytes(payload) + BATCH_TRAILER_BYTES <= BATCH_LIMIT_BYTES
        })
    }

    /// Returns where the records would end with one more.
    fn end_with(&self, payload: usize) -> u64 {
        let record = (record_bytes(payload) + BATCH_TRAILER_BYTES) as u64;
        if self.fits_batch(payload) {
            return self.at + record;
        }
        let closed = self.at + if self.batch.is_some() { BATCH_TRAILER_BYTES as u64 } else { 0 };
        batch_start(closed) + BATCH_HEADER_BYTES as u64 + record
    }

    fn has_room(&self, payload: usize, is_reserved: bool) -> bool {
        let kept_free = if is_reserved && !self.reserve_used { CLOSE_RESERVE_BYTES } else { RESERVE_BYTES };
        self.end_with(payload) + kept_free as u64 <= self.bytes
    }
}

/// How a journal's lock-protected part stands.
#[derive(Debug)]
pub(crate) struct State<F> {
    pub(crate) id: JournalId,
    pub(crate) segments: VecDeque<Segment<F>>,
    /// `None` until the first append after a recovery: the new segment that it begins is not there yet.
    pub(crate) active: Option<Active<F>>,
    /// Whole runs of segments before the active one that are not yet taken to be written.
    pub(crate) pending: Vec<Run<F>>,
    /// What a flush under way is writing.
    pub(crate) in_flight: Arc<Vec<Run<F>>>,
    /// A segment whose space is allocated and that has no header yet.
    pub(crate) spare: Option<Spare<F>>,
    pub(crate) is_preparing: bool,
    pub(crate) flight: Option<Flight>,
    /// Counts the flushes begun.
    pub(crate) flights: u64,
    /// How many threads sleep until a flush ends.
    pub(crate) waiters: usize,
    /// Somebody besides the leader waited for the last flush.
    pub(crate) others_waited: bool,
    pub(crate) next_usn: Usn,
    pub(crate) written_usn: Usn,
    pub(crate) durable_usn: Usn,
    /// The largest period of any record.
    pub(crate) last_period: Period,
    /// The last record; smaller than `next_usn - 1` behind a recovery, which leaves out numbers.
    pub(crate) last_usn: Usn,
    /// An attempt to prepare a segment ahead found no room; the append that needs the segment tries again.
    pub(crate) found_no_room: bool,
    pub(crate) poison: Option<Poisoned>,
}

/// A segment whose space is allocated, named by the manifest, without a header.
#[derive(Debug)]
pub(crate) struct Spare<F> {
    pub(crate) sequence: u64,
    pub(crate) bytes: u64,
    pub(crate) file: Arc<F>,
}

/// A flush under way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flight {
    pub(crate) last_usn: Usn,
    pub(crate) is_sync: bool,
}

impl<F> State<F> {
    /// What the segments occupy: all of the last one, and of the others what is in front of their end.
    pub(crate) fn occupied_bytes(&self) -> u64 {
        let last = self.segments.back().map_or(0, |segment| segment.bytes - segment.kept_bytes());
        last + self.segments.iter().map(Segment::kept_bytes).sum::<u64>()
    }

    /// Returns the bytes that are buffered and not being written.
    pub(crate) fn buffered_bytes(&self) -> usize {
        let pending: usize = self.pending.iter().map(|run| run.bytes.len()).sum();
        pending + self.active.as_ref().map_or(0, |active| active.buffer.len())
    }

    /// Tells whether the active segment has room for the record.
    pub(crate) fn has_room(&self, payload: usize, is_reserved: bool) -> bool {
        self.active.as_ref().is_some_and(|active| active.has_room(payload, is_reserved))
    }

    /// Tells whether the active segment is so full that the next one should be prepared.
    pub(crate) fn wants_spare(&self) -> bool {
        self.spare.is_none()
            && !self.is_preparing
            && !self.found_no_room
            && self.poison.is_none()
            && self.active.as_ref().is_none_or(|active| active.at > active.bytes / 2)
    }

    /// Adds a record, for which there is room, and returns its number.
    pub(crate) fn push(
        &mut self,
        kind: RecordKind,
        period: Period,
        payload: &[u8],
        is_reserved: bool,
    ) -> Usn {
        let usn = self.next_usn;
        let is_in_reserve = is_reserved && !self.has_room(payload.len(), false);
        if !self.active.as_ref().is_some_and(|active| active.fits_batch(payload.len())) {
            self.close_batch(0);
        }
        let active = self.active.as_mut().expect("a segment with room is active");
        active.reserve_used |= is_in_reserve;
        let mut batch =
            active.batch.take().unwrap_or_else(|| OpenBatch::open(&mut active.buffer, active.at, usn));
        let record = RecordView { usn, period, kind, payload, checksum: 0 };
        active.chain = batch.push(&mut active.buffer, &record, active.seed, active.chain);
        active.batch = Some(batch);
        active.at = active.buffer_offset + active.buffer.len() as u64;
        self.next_usn = usn.next();
        self.last_usn = usn;
        self.last_period = self.last_period.max(period);
        usn
    }

    /// Finishes the open batch; with `flags` there is one in any case.
    pub(crate) fn close_batch(&mut self, flags: u32) {
        let Some(active) = &mut self.active else { return };
        let batch = match active.batch.take() {
            Some(batch) => batch,
            None if flags != 0 => OpenBatch::open(&mut active.buffer, active.at, self.next_usn),
            None => return,
        };
        active.chain = batch.close(&mut active.buffer, self.durable_usn, flags, active.seed, active.chain);
        active.at = active.buffer_offset + active.buffer.len() as u64;
        let segment = self.segments.back_mut().expect("the active segment");
        segment.end = active.at;
        segment.chain = active.chain;
        segment.last_usn = self.last_usn;
        segment.mark(self.next_usn, self.last_period);
    }

    /// Takes what the active segment has buffered.
    pub(crate) fn take_buffer(&mut self) {
        let Some(active) = &mut self.active else { return };
        if active.buffer.is_empty() && active.header.is_none() {
            return;
        }
        // The next group is likely to be about as large as this one.
        let next = Vec::with_capacity(active.buffer.len());
        let bytes = std::mem::replace(&mut active.buffer, next);
        let offset = std::mem::replace(&mut active.buffer_offset, active.at);
        self.pending.push(Run {
            sequence: active.sequence,
            file: Arc::clone(&active.file),
            header: active.header.take(),
            offset,
            bytes: Arc::new(bytes),
        });
    }

    /// Takes everything that was appended, to be written.
    pub(crate) fn take(&mut self) -> Vec<Run<F>> {
        self.close_batch(0);
        self.take_buffer();
        std::mem::take(&mut self.pending)
    }

    /// Makes the spare segment the active one. Its header goes to the storage with the first flush.
    pub(crate) fn begin_segment(&mut self) {
        self.close_batch(0);
        self.take_buffer();
        self.found_no_room = false;
        let Spare { sequence, bytes, file } = self.spare.take().expect("a spare segment");
        let previous = self.segments.back().expect("a journal has a segment");
        let header = SegmentHeader {
            id: self.id,
            sequence,
            bytes,
            first_usn: self.next_usn,
            period_before: self.last_period,
            previous_end: previous.end,
            previous_usn: self.last_usn,
            previous_chain: previous.chain,
        };
        let segment = Segment::new(&header, file, false);
        self.active = Some(Active::new(&segment, self.id, Some(header)));
        self.segments.push_back(segment);
    }
}

/// Makes an owned record of a view.
pub(crate) fn owned(view: &RecordView<'_>) -> Record {
    Record { usn: view.usn, period: view.period, kind: view.kind, payload: view.payload.to_vec() }
}
