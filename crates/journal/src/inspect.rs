//! Looking at a journal offline, without changing it and without stopping at the first damage.
//!
//! Invariant: nothing is written, also not to a journal that is torn or damaged.

use std::io;
use std::sync::Arc;

use crate::error::{Damage, DamageReason, OpenError};
use crate::frame::{BATCH_HEADER_BYTES, BatchHeader, Chain, HeaderState, Seed};
use crate::ids::{JournalId, Period, Record, Usn};
use crate::journal::io_error;
use crate::recovery::{TornTail, check_neighbours, check_spare, check_stray, look_ahead};
use crate::segment::{
    FIRST_BATCH, MANIFEST_NAME, Manifest, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentState, segment_name,
    segment_sequence,
};
use crate::state::owned;
use crate::storage::{Storage, StorageFile};
use crate::walk::{End, Source, Step, Stop, Walk};

/// Most damages that are reported of one segment: one that is garbage from end to end says no more with more.
const DAMAGE_LIMIT: usize = 100;

/// What a segment is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum SegmentRole {
    /// Complete: another segment follows.
    Sealed,
    /// Records were appended to it last.
    Last,
    /// Allocated for later; it holds nothing.
    Spare,
    /// Its header cannot be read.
    Unreadable,
}

/// What one segment holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SegmentReport {
    /// Its sequence number.
    pub sequence: u64,
    /// The file's length.
    pub bytes: u64,
    /// What it is for.
    pub role: SegmentRole,
    /// The number of its first record.
    pub first_usn: Usn,
    /// Where its records end; for a damaged one, where they should.
    pub end: u64,
    /// How many records were read; zero if it was not verified.
    pub records: u64,
    /// The last of them.
    pub last_usn: Option<Usn>,
    /// The smallest and the largest period of them.
    pub periods: Option<(Period, Period)>,
}

/// What [`inspect`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Inspection {
    /// The journal's name, as far as it can be read.
    pub id: Option<JournalId>,
    /// Every segment, oldest first.
    pub segments: Vec<SegmentReport>,
    /// Everything that is not as it was written.
    pub damage: Vec<Damage>,
    /// What a write that was under way has left; not damage.
    pub torn_tail: Option<TornTail>,
    /// The journal was closed.
    pub is_clean: bool,
}

/// Reads a journal without changing it. With `verify` every record of every segment, else only those of the last one.
/// Shows each valid record to `record`, also those behind damage.
///
/// The journal must not be in use; on a real directory see
/// [`Directory::open_read_only`](crate::Directory::open_read_only).
///
/// # Errors
/// [`OpenError::Missing`], [`OpenError::NewerFormat`], [`OpenError::Io`]; damage is part of the answer.
pub fn inspect<S: Storage>(
    storage: &S,
    verify: bool,
    mut record: impl FnMut(Record),
) -> Result<Inspection, OpenError> {
    let mut inspection = Inspection::default();
    let names = storage.list().map_err(io_error("list", "the directory"))?;
    let mut sequences: Vec<u64> = names.iter().filter_map(|name| segment_sequence(name)).collect();
    sequences.sort_unstable();

    let manifest = match storage.read(MANIFEST_NAME) {
        Ok(bytes) => inspection.keep(Manifest::decode(&bytes))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound && sequences.is_empty() => {
            return Err(OpenError::Missing);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            inspection.damage.push(Damage {
                file: MANIFEST_NAME.to_owned(),
                segment: None,
                offset: 0,
                reason: DamageReason::Missing,
            });
            None
        }
        Err(error) => return Err(io_error("read", MANIFEST_NAME)(error)),
    };
    let newest =
        manifest.as_ref().map_or_else(|| sequences.last().copied().unwrap_or(0), |manifest| manifest.newest);
    inspection.id = manifest.as_ref().map(|manifest| manifest.id);
    if let Some(manifest) = &manifest {
        for stray in sequences.iter().filter(|sequence| **sequence > newest) {
            inspection.keep(check_stray(storage, manifest, *stray))?;
        }
    }

    let mut headers = Vec::new();
    // One behind the newest is no segment of the journal, and it may be the only one.
    let oldest = sequences.first().copied().unwrap_or(newest).min(newest);
    for sequence in oldest..=newest {
        let header = match sequences.binary_search(&sequence) {
            Ok(_) => inspection.header(storage, manifest.as_ref(), sequence)?,
            Err(_) => {
                inspection.add_damage(sequence, 0, DamageReason::Missing);
                None
            }
        };
        headers.push((sequence, header));
        // A manifest from elsewhere may name any number.
        if headers.len() > sequences.len() + DAMAGE_LIMIT {
            break;
        }
    }
    let last_born =
        headers.iter().rposition(|(_, header)| header.as_ref().is_some_and(|(header, _)| header.is_some()));
    for (index, (sequence, header)) in headers.iter().enumerate() {
        let Some((header, file)) = header else { continue };
        let bytes = file.len().map_err(io_error("read", &segment_name(*sequence)))?;
        let mut report = SegmentReport {
            sequence: *sequence,
            bytes,
            role: SegmentRole::Spare,
            first_usn: Usn::NONE,
            end: FIRST_BATCH,
            records: 0,
            last_usn: None,
            periods: None,
        };
        if let Some(header) = header {
            let is_last = Some(index) == last_born;
            let next = headers.get(index + 1).and_then(|(_, next)| next.as_ref()?.0.as_ref());
            report.role = if is_last { SegmentRole::Last } else { SegmentRole::Sealed };
            report.first_usn = header.first_usn;
            report.end = next.map_or(bytes, |next| next.previous_end);
            if let Some(next) = next {
                inspection.keep(check_neighbours(header, next))?;
            }
            if verify || is_last {
                inspection.walk(header, next, file, &mut report, &mut record)?;
            }
        } else if *sequence != newest || index == 0 {
            report.role = SegmentRole::Unreadable;
            inspection.add_damage(*sequence, 0, DamageReason::Checksum { part: "segment header" });
        } else if let Some(id) = inspection.id {
            inspection.keep(check_spare(file.as_ref(), id, *sequence, bytes))?;
        }
        inspection.segments.push(report);
    }
    Ok(inspection)
}

/// A header that is written, or not yet; and its file.
type Read<F> = (Option<SegmentHeader>, Arc<F>);

impl Inspection {
    /// Notes damage and goes on without the value.
    fn keep<T>(&mut self, outcome: Result<T, OpenError>) -> Result<Option<T>, OpenError> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(OpenError::Damaged(damage)) => {
                self.damage.push(damage);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn add_damage(&mut self, sequence: u64, offset: u64, reason: DamageReason) {
        self.damage.push(Damage { file: segment_name(sequence), segment: Some(sequence), offset, reason });
    }

    fn header<S: Storage>(
        &mut self,
        storage: &S,
        manifest: Option<&Manifest>,
        sequence: u64,
    ) -> Result<Option<Read<S::File>>, OpenError> {
        let name = segment_name(sequence);
        let file = storage.open(&name).map_err(io_error("open", &name))?;
        let len = file.len().map_err(io_error("read", &name))?;
        let expected = match manifest {
            Some(manifest) if sequence == manifest.newest => manifest.newest_bytes,
            _ => len.max(FIRST_BATCH),
        };
        let mut bytes = [0; SEGMENT_HEADER_BYTES];
        if len != expected {
            self.add_damage(sequence, len.min(expected), DamageReason::Length { expected, found: len });
            return Ok(None);
        }
        file.read_at(&mut bytes, 0).map_err(io_error("read", &name))?;
        // Without a manifest the first segment has to say whose journal this is.
        let id = *self.id.get_or_insert_with(|| JournalId(*bytes[16..].first_chunk().expect("16 bytes")));
        let state = self.keep(SegmentHeader::decode(&bytes, id, sequence, len))?;
        Ok(state.map(|state| match state {
            SegmentState::Valid(header) => (Some(header), Arc::new(file)),
            SegmentState::Unborn => (None, Arc::new(file)),
        }))
    }

    /// Reads the records of one segment, and goes on behind what is damaged.
    fn walk<F: StorageFile>(
        &mut self,
        header: &SegmentHeader,
        next: Option<&SegmentHeader>,
        file: &Arc<F>,
        report: &mut SegmentReport,
        show: &mut impl FnMut(Record),
    ) -> Result<(), OpenError> {
        let sequence = header.sequence;
        let name = segment_name(sequence);
        let read_error = io_error("read", &name);
        let seed = Seed::new(header.id, sequence);
        let limit = next.map_or(header.bytes, |next| next.previous_end.min(header.bytes));
        let mut walk = Walk {
            seed,
            at: FIRST_BATCH,
            chain: Chain::default(),
            adopts_chain: false,
            expected: header.first_usn,
            end: if next.is_some() { End::Known(limit) } else { End::Open(limit) },
            closed: false,
        };
        let mut source = Source::file(Arc::clone(file), limit);
        for _ in 0..DAMAGE_LIMIT {
            let stop = loop {
                let step = walk.step(&mut source, |view| {
                    report.records += 1;
                    report.last_usn = Some(view.usn);
                    let (least, most) = report.periods.unwrap_or((view.period, view.period));
                    report.periods = Some((least.min(view.period), most.max(view.period)));
                    show(owned(view));
                });
                match step.map_err(&read_error)? {
                    Step::Batch(_) => {}
                    Step::End => break None,
                    Step::Stop(stop) => break Some(stop),
                }
            };
            if next.is_some_and(|next| stop.is_none() && walk.chain != next.previous_chain) {
                self.add_damage(sequence, walk.at, DamageReason::End);
            }
            if stop.is_none() && next.is_some() {
                return Ok(());
            }
            let ahead = look_ahead(file.as_ref(), walk.at, header.bytes, seed).map_err(&read_error)?;
            match stop {
                Some(Stop::Damaged { offset, reason }) => self.add_damage(sequence, offset, reason),
                Some(_) if next.is_some() => self.add_damage(sequence, walk.at, DamageReason::End),
                Some(Stop::Missing | Stop::Torn) | None => {
                    let Some(durable) = ahead.durable.filter(|&durable| durable >= walk.expected) else {
                        report.end = walk.at;
                        self.is_clean = walk.closed && ahead.end.is_none();
                        self.torn_tail = ahead.end.map(|end| TornTail {
                            segment: sequence,
                            offset: walk.at,
                            bytes: end - walk.at,
                        });
                        return Ok(());
                    };
                    let reason = DamageReason::Short { last: Usn(walk.expected.0 - 1), durable };
                    self.add_damage(sequence, walk.at, reason);
                }
            }
            // On at the next batch whose header is valid; its own place does not count.
            let behind = crate::frame::batch_start(walk.at) + crate::frame::ALIGNMENT_BYTES as u64;
            let ahead = look_ahead(file.as_ref(), behind.min(limit), limit, seed).map_err(&read_error)?;
            let Some(at) = ahead.batch else { return Ok(()) };
            let mut bytes = [0; BATCH_HEADER_BYTES];
            file.read_at(&mut bytes, at).map_err(&read_error)?;
            let HeaderState::Valid(batch) = BatchHeader::decode(&bytes, seed) else { return Ok(()) };
            walk = Walk { at, expected: batch.first_usn, adopts_chain: true, closed: false, ..walk };
        }
        Ok(())
    }
}
