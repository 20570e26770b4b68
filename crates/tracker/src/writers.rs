//! Objects that are open for writing and can change without a call that the source sees.
//!
//! At a checkpoint, for each of them: first a sample of its attributes, then wait for the writes in flight, then compare with
//! the sample of the last checkpoint. The order is the point: a write whose timestamp is in the sample began before the wait,
//! so it has ended before a consumer reads. A write that begins later has a timestamp that differs from the sample, and the
//! next checkpoint sees it.
//!
//! Three things that timestamps do not tell are *carried*: reported in every batch from the first sign on.
//! - A writable shared mapping: a store to a page that is dirty already changes no timestamp.
//! - `O_DIRECT`: an asynchronous write has its timestamp when it is submitted, and its data later.
//! - Coarse timestamps: a sample within two ticks of now may be equal to the one after the next write; carried once.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::change::{Sample, WriterMode};
use crate::handle::FileHandle;
use crate::mutation::{self, Mutation};

/// Two ticks of the slowest clock that kernels are built with (100 Hz), and a little more.
const COARSE: Duration = Duration::from_millis(25);

#[derive(Clone, Debug)]
pub(crate) struct Writer {
    /// How many times it is open for writing.
    opens: u64,
    pub(crate) mode: WriterMode,
    last: Sample,
    /// To be reported at the next checkpoint whatever its attributes say.
    carried: bool,
    /// It has changed since it was opened.
    changed: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Writers {
    /// In an order that does not depend on the process: they are sampled in it.
    writers: BTreeMap<FileHandle, Writer>,
}

impl Writers {
    pub(crate) fn len(&self) -> usize {
        self.writers.len()
    }

    /// All objects and how they are open.
    pub(crate) fn all(&self) -> Vec<(FileHandle, WriterMode)> {
        self.writers.iter().map(|(object, writer)| (object.clone(), writer.mode)).collect()
    }

    /// `coarse`: the time, where a timestamp may be given twice.
    pub(crate) fn opened(
        &mut self,
        object: &FileHandle,
        mode: WriterMode,
        sample: Sample,
        coarse: Option<u64>,
    ) {
        let writer = self.writers.entry(object.clone()).or_insert(Writer {
            opens: 0,
            mode: WriterMode::default(),
            last: sample,
            carried: coarse.is_some_and(|now_ns| is_recent(&sample, now_ns)),
            changed: false,
        });
        writer.opens += 1;
        writer.mode.can_map |= mode.can_map;
        writer.mode.direct |= mode.direct;
        writer.mode.unseen |= mode.unseen;
    }

    /// One open is gone. Returns whether the object may have changed since the last sample.
    ///
    /// Compared at the last one only. While others have it open, their writes may be in flight, and a sample that is not followed
    /// by a wait for them must not become the last one: the next checkpoint samples, waits and compares.
    pub(crate) fn closed(&mut self, object: &FileHandle, sample: Option<Sample>) -> bool {
        let Some(writer) = self.writers.get_mut(object) else { return false };
        writer.opens = writer.opens.saturating_sub(1);
        if writer.opens > 0 {
            return false;
        }
        let differs = sample.is_some_and(|sample| writer.mode.unseen && sample != writer.last);
        let changed = writer.carried || differs;
        self.writers.remove(object);
        changed
    }

    /// Takes the sample of a checkpoint, after the wait for the writes in flight. Returns whether to report the object.
    pub(crate) fn sampled(
        &mut self,
        object: &FileHandle,
        sample: Sample,
        is_mapped: bool,
        coarse: Option<u64>,
    ) -> bool {
        // It was closed meanwhile, and that has been recorded.
        let Some(writer) = self.writers.get_mut(object) else { return false };
        let differs = writer.mode.unseen && sample != writer.last;
        let report = differs || writer.carried || is_mapped;
        // Also what is reported on suspicion: the write behind it may be an asynchronous one.
        writer.changed |= report;
        writer.last = sample;
        writer.carried = is_mapped && !mutation::is(Mutation::MappingNotCarried)
            || writer.mode.direct && writer.changed
            || coarse.is_some_and(|now_ns| is_recent(&sample, now_ns));
        report
    }
}

/// Whether a change right after this sample may get the same timestamp.
fn is_recent(sample: &Sample, now_ns: u64) -> bool {
    let now = i128::from(now_ns);
    let newest = sample.ctime_ns.max(sample.mtime_ns);
    // A timestamp in the future may be given again as well.
    newest + COARSE.as_nanos().cast_signed() >= now
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object() -> FileHandle {
        FileHandle::new(1, &[1; 8]).unwrap()
    }

    fn sample(ctime_ns: i128) -> Sample {
        Sample { mtime_ns: ctime_ns, ctime_ns, size: 1, nlink: 1 }
    }

    const UNSEEN: WriterMode = WriterMode { can_map: true, direct: false, unseen: true };

    #[test]
    fn a_change_is_reported_once_and_no_change_is_not() {
        let mut writers = Writers::default();
        writers.opened(&object(), UNSEEN, sample(1), None);
        assert!(!writers.sampled(&object(), sample(1), false, None));
        assert!(writers.sampled(&object(), sample(2), false, None));
        assert!(!writers.sampled(&object(), sample(2), false, None));
        assert!(writers.closed(&object(), Some(sample(3))));
        assert_eq!(writers.len(), 0);
    }

    #[test]
    fn a_mapping_is_reported_while_it_exists_and_once_more() {
        let mut writers = Writers::default();
        writers.opened(&object(), UNSEEN, sample(1), None);
        assert!(writers.sampled(&object(), sample(1), true, None));
        assert!(writers.sampled(&object(), sample(1), true, None));
        assert!(
            writers.sampled(&object(), sample(1), false, None),
            "a store before it was unmapped left no trace"
        );
        assert!(!writers.sampled(&object(), sample(1), false, None));
    }

    #[test]
    fn direct_writers_are_carried_from_their_first_change_on() {
        let mut writers = Writers::default();
        writers.opened(&object(), WriterMode { direct: true, ..UNSEEN }, sample(1), None);
        assert!(!writers.sampled(&object(), sample(1), false, None));
        assert!(writers.sampled(&object(), sample(2), false, None));
        assert!(writers.sampled(&object(), sample(2), false, None));
        assert!(writers.closed(&object(), Some(sample(2))));
    }

    #[test]
    fn a_coarse_timestamp_of_just_now_is_carried_over() {
        let mut writers = Writers::default();
        let now_ns = 1 << 60;
        let now = sample(i128::from(now_ns));
        writers.opened(&object(), UNSEEN, sample(1), Some(now_ns));
        assert!(writers.sampled(&object(), now, false, Some(now_ns)));
        assert!(
            writers.sampled(&object(), now, false, Some(now_ns)),
            "a write in the same tick leaves the timestamp as it is"
        );
    }

    /// A direct write that began in the tick of the sample before it leaves no trace but that it could have.
    #[test]
    fn a_direct_writer_that_may_have_changed_in_the_tick_of_its_sample_is_carried_on() {
        let mut writers = Writers::default();
        let (now_ns, later_ns) = (1 << 60, (1 << 60) + 5_000_000_000);
        let now = sample(i128::from(now_ns));
        writers.opened(&object(), WriterMode { direct: true, ..UNSEEN }, now, Some(now_ns));
        assert!(
            writers.sampled(&object(), now, false, Some(later_ns)),
            "it was opened in the tick of its sample"
        );
        assert!(writers.sampled(&object(), now, false, Some(later_ns)), "and may have a write in flight");
    }

    #[test]
    fn the_last_close_of_several_removes_it() {
        let mut writers = Writers::default();
        writers.opened(&object(), UNSEEN, sample(1), None);
        writers.opened(&object(), UNSEEN, sample(1), None);
        assert!(!writers.closed(&object(), Some(sample(1))));
        assert_eq!(writers.len(), 1);
        assert!(!writers.closed(&object(), Some(sample(1))));
        assert_eq!(writers.len(), 0);
    }

    /// A write of another program may be in flight, with its timestamp set and its data not: nobody has waited for it.
    #[test]
    fn a_close_leaves_the_comparison_to_the_checkpoint_while_others_have_it_open() {
        let mut writers = Writers::default();
        writers.opened(&object(), UNSEEN, sample(1), None);
        writers.opened(&object(), UNSEEN, sample(1), None);
        assert!(!writers.sampled(&object(), sample(1), false, None));
        assert!(!writers.closed(&object(), Some(sample(2))));
        assert!(writers.sampled(&object(), sample(2), false, None), "the wait comes after this sample");
    }
}
