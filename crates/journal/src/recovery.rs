//! Opening a journal, whatever way it was left.
//!
//! Invariant: the answer is everything that was durable, or an error. A torn tail is an answer only in the last segment,
//! only if the bytes look as a crash leaves them, and only if no batch behind it says that more was durable.
//!
//! By example. Records 1 to 3 are durable, the batch with 4 and 5 was being written, power fails.
//!
//! * None of its sectors is there: zeros follow record 3, nothing says more; the journal ends at 3.
//! * Its first sector is there, the second is not: the header says that the second was written dense, and it is zero;
//!   the journal ends at 3, or at 4 if that is whole, and the rest is reported as the torn tail.
//! * Record 3 does not validate, but every sector of its batch is there: no crash does that, something rotted. Damage.
//! * Record 3's sectors are zero, but the batch behind it says "3 was durable when I was written": damage.

use std::io;
use std::sync::Arc;

use crate::error::{Damage, DamageReason, OpenError};
use crate::frame::{
    BATCH_HEADER_BYTES, BATCH_MAGIC, BatchHeader, CLOSE_RESERVE_BYTES, HeaderState, RESERVE_BYTES, Seed,
    batch_start,
};
use crate::ids::{JournalId, Period, Usn};
use crate::journal::io_error;
use crate::segment::{
    FIRST_BATCH, MANIFEST_NAME, Manifest, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentState, segment_name,
    segment_sequence,
};
use crate::state::{Active, Segment, Spare, State};
use crate::storage::{Storage, StorageFile};
use crate::walk::{End, Source, Step, Stop, Walk};

/// How many numbers are left out behind a journal that was not closed, so that a number that a lost record may have had
/// is not used again. Lost records are at most those that fit into the two segments that can have been allocated:
/// 2 * 2^30 bytes / 32 bytes a record.
pub(crate) const USN_SKIP: u64 = 1 << 26;

/// What [`Journal::open`](crate::Journal::open) found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Recovered {
    /// The journal's name.
    pub id: JournalId,
    /// The last record; if there is none, the number before the first.
    pub last_usn: Usn,
    /// The largest period of any record, kept or dropped; `None` if there was none.
    pub last_period: Option<Period>,
    /// The first period of which every record is kept.
    pub oldest_period_kept: Period,
    /// The journal was closed. If not, the last thing that happened to it was a crash or a kill.
    pub is_clean: bool,
    /// What a write that was under way has left.
    pub torn_tail: Option<TornTail>,
}

/// Bytes behind the last record that were being written when a crash came, and had not been durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The segment's sequence number.
    pub segment: u64,
    /// Where the last record ends.
    pub offset: u64,
    /// From there to the last byte that is not zero.
    pub bytes: u64,
}

/// A segment whose header is valid.
#[derive(Debug)]
pub(crate) struct Born<F> {
    pub(crate) header: SegmentHeader,
    pub(crate) file: Arc<F>,
}

/// All files of a journal, their headers checked one by one and against each other.
#[derive(Debug)]
pub(crate) struct Files<F> {
    pub(crate) manifest: Manifest,
    /// In order, at least one.
    pub(crate) segments: Vec<Born<F>>,
    pub(crate) spare: Option<Spare<F>>,
    /// Left behind by an allocation that a crash interrupted.
    pub(crate) stray: Option<String>,
}

fn damaged(sequence: u64, offset: u64, reason: DamageReason) -> OpenError {
    OpenError::Damaged(Damage { file: segment_name(sequence), segment: Some(sequence), offset, reason })
}

impl<F: StorageFile> Files<F> {
    /// Opens every segment. Writes nothing.
    pub(crate) fn open<S: Storage<File = F>>(storage: &S) -> Result<Self, OpenError> {
        let manifest = match storage.read(MANIFEST_NAME) {
            Ok(bytes) => Manifest::decode(&bytes)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(OpenError::Missing),
            Err(error) => return Err(io_error("read", MANIFEST_NAME)(error)),
        };
        let names = storage.list().map_err(io_error("list", "the directory"))?;
        let mut sequences: Vec<u64> = names.iter().filter_map(|name| segment_sequence(name)).collect();
        sequences.sort_unstable();

        let newest = manifest.newest;
        let stray = sequences.last().copied().filter(|&last| last > newest);
        if let Some(stray) = stray {
            sequences.pop();
            check_stray(storage, &manifest, stray)?;
        }
        let oldest = sequences.first().copied().unwrap_or(newest);
        if sequences.last() != Some(&newest) {
            return Err(damaged(newest, 0, DamageReason::Missing));
        }
        if let Some((missing, _)) =
            (oldest..=newest).zip(&sequences).find(|(expected, found)| expected != *found)
        {
            return Err(damaged(missing, 0, DamageReason::Missing));
        }

        let mut segments: Vec<Born<F>> = Vec::new();
        let mut spare = None;
        for sequence in sequences {
            let is_newest = sequence == newest;
            match read_header(storage, &manifest, sequence)? {
                (SegmentState::Valid(header), file) => {
                    if let Some(previous) = segments.last() {
                        check_neighbours(&previous.header, &header)?;
                    }
                    segments.push(Born { header, file });
                }
                (SegmentState::Unborn, file) if is_newest && !segments.is_empty() => {
                    spare = Some(Spare { sequence, bytes: manifest.newest_bytes, file });
                }
                (SegmentState::Unborn, _) => {
                    return Err(damaged(sequence, 0, DamageReason::Checksum { part: "segment header" }));
                }
            }
        }
        Ok(Self { manifest, segments, spare, stray: stray.map(segment_name) })
    }
}

/// A file behind the newest segment is the work of an allocation that a crash interrupted. It has no header, since that
/// is only written once the manifest names the segment; if it has one, the manifest is an old copy.
pub(crate) fn check_stray<S: Storage>(storage: &S, manifest: &Manifest, stray: u64) -> Result<(), OpenError> {
    let is_unborn = || -> Result<bool, OpenError> {
        let name = segment_name(stray);
        let file = storage.open(&name).map_err(io_error("open", &name))?;
        let len = file.len().map_err(io_error("read", &name))?;
        if len < SEGMENT_HEADER_BYTES as u64 {
            return Ok(true);
        }
        let mut header = [0; SEGMENT_HEADER_BYTES];
        file.read_at(&mut header, 0).map_err(io_error("read", &name))?;
        Ok(header.iter().all(|&byte| byte == 0))
    };
    if stray == manifest.newest + 1 && is_unborn()? {
        return Ok(());
    }
    let reason = DamageReason::Meaning { part: "manifest", field: "newest", value: manifest.newest };
    Err(OpenError::Damaged(Damage { file: MANIFEST_NAME.to_owned(), segment: None, offset: 32, reason }))
}

fn read_header<S: Storage>(
    storage: &S,
    manifest: &Manifest,
    sequence: u64,
) -> Result<(SegmentState, Arc<S::File>), OpenError> {
    let name = segment_name(sequence);
    let file = storage.open(&name).map_err(io_error("open", &name))?;
    let len = file.len().map_err(io_error("read", &name))?;
    let expected = if sequence == manifest.newest { manifest.newest_bytes } else { len.max(FIRST_BATCH) };
    if len != expected {
        return Err(damaged(sequence, len.min(expected), DamageReason::Length { expected, found: len }));
    }
    let mut bytes = [0; SEGMENT_HEADER_BYTES];
    file.read_at(&mut bytes, 0).map_err(io_error("read", &name))?;
    Ok((SegmentHeader::decode(&bytes, manifest.id, sequence, len)?, Arc::new(file)))
}

/// What the header of a segment says about the one before it must be possible.
pub(crate) fn check_neighbours(previous: &SegmentHeader, header: &SegmentHeader) -> Result<(), OpenError> {
    let meaning = |field, value| {
        Err(damaged(header.sequence, 0, DamageReason::Meaning { part: "segment header", field, value }))
    };
    if header.previous_end < FIRST_BATCH || header.previous_end > previous.bytes {
        return meaning("previous end", header.previous_end);
    }
    if header.previous_usn < previous.previous_usn {
        return meaning("previous usn", header.previous_usn.0);
    }
    if header.period_before < previous.period_before {
        return meaning("period before", header.period_before.0);
    }
    Ok(())
}

/// The end of the last segment.
#[derive(Debug)]
pub(crate) struct Tail<F> {
    pub(crate) segment: Segment<F>,
    pub(crate) last_period: Period,
    pub(crate) is_closed: bool,
    pub(crate) torn: Option<TornTail>,
}

/// Finds the end of the last segment.
pub(crate) fn find_tail<F: StorageFile>(born: &Born<F>) -> Result<Tail<F>, OpenError> {
    let header = &born.header;
    let sequence = header.sequence;
    let read_error = io_error("read", &segment_name(sequence));
    let mut segment = Segment::new(header, Arc::clone(&born.file), true);
    let mut walk = Walk { end: End::Open(header.bytes), ..segment.walk(header.id, |_| false) };
    let mut source = Source::file(Arc::clone(&born.file), header.bytes);
    let mut last_period = header.period_before;
    loop {
        let step = walk.step(&mut source, |record| {
            segment.last_usn = record.usn;
            last_period = last_period.max(record.period);
        });
        let step = step.map_err(&read_error)?;
        segment.end = walk.at;
        segment.chain = walk.chain;
        match step {
            Step::Batch(_) => segment.mark(walk.expected, last_period),
            Step::End | Step::Stop(Stop::Missing | Stop::Torn) => break,
            Step::Stop(Stop::Damaged { offset, reason }) => return Err(damaged(sequence, offset, reason)),
        }
    }
    segment.written_end = segment.end;
    let ahead = look_ahead(born.file.as_ref(), segment.end, header.bytes, walk.seed).map_err(&read_error)?;
    if let Some(durable) = ahead.durable.filter(|&durable| durable >= walk.expected) {
        let reason = DamageReason::Short { last: segment.last_usn, durable };
        return Err(damaged(sequence, segment.end, reason));
    }
    let torn =
        ahead.end.map(|end| TornTail { segment: sequence, offset: segment.end, bytes: end - segment.end });
    Ok(Tail { segment, last_period, is_closed: walk.closed && torn.is_none(), torn })
}

/// A segment's header is durable before any batch is written, so anything behind the place of one that is missing means that it was lost.
pub(crate) fn check_spare<F: StorageFile>(
    file: &F,
    id: JournalId,
    sequence: u64,
    bytes: u64,
) -> Result<(), OpenError> {
    let ahead = look_ahead(file, FIRST_BATCH, bytes, Seed::new(id, sequence))
        .map_err(io_error("read", &segment_name(sequence)))?;
    if ahead.end.is_some() {
        return Err(damaged(sequence, 0, DamageReason::Checksum { part: "segment header" }));
    }
    Ok(())
}

/// What lies behind the end of the records.
#[derive(Debug, Default)]
pub(crate) struct Ahead {
    /// The largest number that a valid batch header there says was durable when it was written.
    pub(crate) durable: Option<Usn>,
    /// Where the first valid batch header there is.
    pub(crate) batch: Option<u64>,
    /// The end of the last byte that is not zero.
    pub(crate) end: Option<u64>,
}

/// Looks for batches from `from` to `end`.
pub(crate) fn look_ahead<F: StorageFile>(file: &F, from: u64, end: u64, seed: Seed) -> io::Result<Ahead> {
    const CHUNK_BYTES: u64 = 64 << 10;
    let mut ahead = Ahead::default();
    let mut buffer = Vec::new();
    let mut at = from;
    while at < end {
        // A header never straddles a sector, so it never straddles two chunks that meet at a multiple of their length.
        let chunk_end = ((at / CHUNK_BYTES + 1) * CHUNK_BYTES).min(end);
        buffer.resize(crate::frame::index(chunk_end - at), 0);
        file.read_at(&mut buffer, at)?;
        for (offset, word) in (at..).step_by(8).zip(buffer.chunks(8)) {
            let Some(last) = word.iter().rposition(|&byte| byte != 0) else { continue };
            ahead.end = Some(offset + last as u64 + 1);
            let place = &buffer[crate::frame::index(offset - at)..];
            if place.len() < BATCH_HEADER_BYTES || place[..4] != BATCH_MAGIC || batch_start(offset) != offset
            {
                continue;
            }
            if let HeaderState::Valid(header) = BatchHeader::decode(place, seed) {
                ahead.durable = ahead.durable.max(Some(header.durable));
                ahead.batch = ahead.batch.or(Some(offset));
            }
        }
        at = chunk_end;
    }
    Ok(ahead)
}

/// Opens the journal in `storage`. Changes nothing unless everything is in order.
pub(crate) fn recover<S: Storage>(storage: &S) -> Result<(State<S::File>, Recovered), OpenError> {
    // What a killed process left in the page cache is read as if it were durable, so it has to become so: the name of
    // the manifest first, then the last segment. Otherwise a power loss could take back what this open hands out.
    storage.sync_directory().map_err(io_error("sync", "the directory"))?;
    let files = Files::open(storage)?;
    let (last, sealed) = files.segments.split_last().expect("at least one segment");
    last.file.sync_data().map_err(io_error("sync", &segment_name(last.header.sequence)))?;
    let tail = find_tail(last)?;
    if let Some(spare) = &files.spare {
        check_spare(spare.file.as_ref(), files.manifest.id, spare.sequence, spare.bytes)?;
    }
    if let Some(stray) = &files.stray {
        storage.remove(stray).map_err(io_error("remove", stray))?;
    }

    let id = files.manifest.id;
    let Tail { segment, last_period, is_closed, torn } = tail;
    let last_usn = segment.last_usn;
    // Room for the batch that says "opened", besides what is always kept free.
    let needed = (CLOSE_RESERVE_BYTES + RESERVE_BYTES) as u64;
    let goes_on = is_closed && segment.end + needed <= segment.bytes;
    let next_usn =
        if is_closed { last_usn.next().max(segment.first_usn) } else { after_crash(last_usn, &segment) };
    let active = goes_on.then(|| Active::new(&segment, id, None));
    let segments = sealed
        .iter()
        .zip(&files.segments[1..])
        .map(|(born, next)| sealed_segment(born, &next.header))
        .chain([segment])
        .collect::<std::collections::VecDeque<_>>();
    let has_records = last_usn >= segments[0].first_usn || segments[0].sequence > 1;
    let recovered = Recovered {
        id,
        last_usn,
        last_period: has_records.then_some(last_period),
        oldest_period_kept: oldest_period(&segments[0]),
        is_clean: is_closed,
        torn_tail: torn,
    };
    let reached = Usn(next_usn.0 - 1);
    let state = State {
        id,
        segments,
        active,
        pending: Vec::new(),
        in_flight: Arc::default(),
        spare: files.spare,
        is_preparing: false,
        flight: None,
        flights: 0,
        waiters: 0,
        others_waited: false,
        next_usn,
        written_usn: reached,
        durable_usn: reached,
        last_period,
        last_usn,
        found_no_room: false,
        poison: None,
    };
    Ok((state, recovered))
}

fn after_crash<F>(last_usn: Usn, segment: &Segment<F>) -> Usn {
    Usn(last_usn.max(Usn(segment.first_usn.0 - 1)).0 + 1 + USN_SKIP)
}

/// A segment that another one follows.
pub(crate) fn sealed_segment<F>(born: &Born<F>, next: &SegmentHeader) -> Segment<F> {
    Segment {
        end: next.previous_end,
        written_end: next.previous_end,
        last_usn: next.previous_usn,
        chain: next.previous_chain,
        ..Segment::new(&born.header, Arc::clone(&born.file), true)
    }
}

/// Returns the first period of which every record is kept.
pub(crate) fn oldest_period<F>(oldest: &Segment<F>) -> Period {
    // The first segment of all has nothing before it.
    if oldest.sequence == 1 { Period(0) } else { Period(oldest.period_before.0.saturating_add(1)) }
}
