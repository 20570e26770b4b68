//! Reading records back, from any place on, while appends go on.
//!
//! Invariant: the records handed out have consecutive numbers up to the last one that was appended when the read began,
//! or the read ends with an error. (A recovery leaves out numbers; a read steps over them only from one segment to the
//! next.)

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::{Damage, DamageReason, ReadError};
use crate::frame::Chain;
use crate::ids::{Period, Record, Usn};
use crate::journal::Journal;
use crate::recovery::oldest_period;
use crate::segment::segment_name;
use crate::state::{Segment, State, owned};
use crate::storage::{Storage, StorageFile};
use crate::walk::{Source, Step, Stop, Walk};

/// Where a read begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the oldest record that is kept.
    Oldest,
    /// At this record, or the next one if there is none of this number.
    Usn(Usn),
    /// With every record of this period or a later one, in the order of their numbers.
    Period(Period),
}

impl From<Usn> for Start {
    fn from(usn: Usn) -> Self {
        Self::Usn(usn)
    }
}

impl From<Period> for Start {
    fn from(period: Period) -> Self {
        Self::Period(period)
    }
}

impl Start {
    fn takes(self, usn: Usn, period: Period) -> bool {
        match self {
            Self::Oldest => true,
            Self::Usn(first) => usn >= first,
            Self::Period(first) => period >= first,
        }
    }
}

impl<S: Storage> Journal<S> {
    /// Reads every record from `start` to the last one appended so far, written or not.
    ///
    /// Begins in the right segment, and in those that this process wrote at most about 100 KiB before the first record
    /// asked for; holds one batch in memory at a time. Appends and retention go on meanwhile and do not change the
    /// answer. What it returns may not be durable yet; see [`Journal::sync`].
    ///
    /// The first error ends the iteration, and what came before it is not the whole answer.
    pub fn records(&self, start: impl Into<Start>) -> Records<S::File> {
        let start = start.into();
        let mut state = self.lock();
        // What is buffered becomes a run, which the reader can hold while it is written.
        state.close_batch(0);
        state.take_buffer();
        let oldest = state.segments.front().expect("a journal has a segment");
        let is_dropped = oldest.sequence > 1
            && match start {
                Start::Oldest => false,
                Start::Usn(usn) => usn <= oldest.previous_usn,
                Start::Period(period) => period <= oldest.period_before,
            };
        let mut records = Records { start, parts: VecDeque::new(), ready: VecDeque::new(), failure: None };
        if is_dropped {
            records.failure = Some(ReadError::Dropped {
                oldest_usn: oldest.first_usn,
                oldest_period: oldest_period(oldest),
            });
            return records;
        }
        let after = match start {
            Start::Oldest => 0,
            Start::Usn(usn) => state.segments.partition_point(|segment| segment.first_usn <= usn),
            Start::Period(period) => state.segments.partition_point(|segment| segment.period_before < period),
        };
        records.parts = state
            .segments
            .iter()
            .skip(after.saturating_sub(1))
            .map(|segment| part(&state, segment, start))
            .collect();
        records
    }

    /// Returns the first period of which every record is kept; a read from an earlier one fails.
    #[must_use]
    pub fn oldest_period_kept(&self) -> Period {
        oldest_period(self.lock().segments.front().expect("a journal has a segment"))
    }

    /// Returns the first record that is kept, or would be.
    #[must_use]
    pub fn oldest_usn_kept(&self) -> Usn {
        self.lock().segments.front().expect("a journal has a segment").first_usn
    }
}

fn part<F: StorageFile>(state: &State<F>, segment: &Segment<F>, start: Start) -> Part<F> {
    let walk = segment.walk(state.id, |mark| match start {
        Start::Oldest => false,
        Start::Usn(usn) => mark.usn <= usn,
        Start::Period(period) => mark.period_before < period,
    });
    let in_memory = state
        .in_flight
        .iter()
        .chain(&state.pending)
        .filter(|run| run.sequence == segment.sequence && !run.bytes.is_empty())
        .map(|run| Source::Memory { bytes: Arc::clone(&run.bytes), offset: run.offset });
    Part {
        sequence: segment.sequence,
        walk,
        chain: segment.chain,
        file_end: segment.written_end,
        file: Source::file(Arc::clone(&segment.file), segment.written_end),
        memory: in_memory.collect(),
    }
}

/// What a read takes from one segment.
#[derive(Debug)]
struct Part<F> {
    sequence: u64,
    walk: Walk,
    /// The chain at the end.
    chain: Chain,
    file_end: u64,
    file: Source<F>,
    /// What was not yet written when the read began, in order.
    memory: Vec<Source<F>>,
}

impl<F: StorageFile> Part<F> {
    /// Reads one batch; `false` at the end.
    fn step(&mut self, start: Start, ready: &mut VecDeque<Record>) -> Result<bool, ReadError> {
        let at = self.walk.at;
        let source = if at < self.file_end {
            &mut self.file
        } else {
            let run = self.memory.iter_mut().rev().find(|run| run.offset() <= at);
            run.unwrap_or(&mut self.file)
        };
        let step = self.walk.step(source, |record| {
            if start.takes(record.usn, record.period) {
                ready.push_back(owned(record));
            }
        });
        let damaged = |offset, reason| {
            let file = segment_name(self.sequence);
            Err(ReadError::Damaged(Damage { file, segment: Some(self.sequence), offset, reason }))
        };
        match step {
            Err(source) => Err(ReadError::Io { file: segment_name(self.sequence), source }),
            Ok(Step::Batch(_)) => Ok(true),
            Ok(Step::End) if self.walk.chain == self.chain => Ok(false),
            Ok(Step::End) => damaged(at, DamageReason::End),
            Ok(Step::Stop(Stop::Damaged { offset, reason })) => damaged(offset, reason),
            Ok(Step::Stop(Stop::Missing | Stop::Torn)) => damaged(at, DamageReason::End),
        }
    }
}

/// The answer of [`Journal::records`].
#[derive(Debug)]
#[must_use = "a read does nothing unless it is iterated"]
pub struct Records<F> {
    start: Start,
    parts: VecDeque<Part<F>>,
    ready: VecDeque<Record>,
    /// Handed out once everything ready is.
    failure: Option<ReadError>,
}

impl<F: StorageFile> Iterator for Records<F> {
    type Item = Result<Record, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.ready.pop_front() {
                return Some(Ok(record));
            }
            if let Some(failure) = self.failure.take() {
                self.parts.clear();
                return Some(Err(failure));
            }
            match self.parts.front_mut()?.step(self.start, &mut self.ready) {
                Ok(true) => {}
                Ok(false) => {
                    self.parts.pop_front();
                }
                Err(failure) => self.failure = Some(failure),
            }
        }
    }
}

impl<F: StorageFile> std::iter::FusedIterator for Records<F> {}
