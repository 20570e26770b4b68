//! What this crate needs of the tracker, as a trait: the real tracker on one side, a recording fake in tests on the other.
//!
//! Invariant: a section that is dropped has been left.

use std::sync::Arc;

use highwater_tracker::{Change, FileHandle, Intent, Sample, Section, Tracker, WriterMode};
use rustix::io::Errno;

/// Gives write sections.
pub trait Sections: Send + Sync + 'static {
    /// Enters a write section.
    fn enter(&self) -> Box<dyn WriteSection + '_>;
}

/// A write section; left when dropped. See [`highwater_tracker::Section`], whose methods these are.
pub trait WriteSection {
    /// Returns when a crash cannot hide what is about to change.
    fn intend(&self, intents: &[Intent<'_>]) -> Result<(), Errno>;
    /// Records what has happened; `names` runs once, as one step with it.
    fn record(&self, change: Change, names: &mut dyn FnMut());
    /// Something has happened in a directory, or may have, and what it was cannot be told.
    fn lost_sight(&self, directory: &FileHandle);
    /// The object has been opened for writing.
    fn opened(&self, object: &FileHandle, mode: WriterMode, sample: Sample);
    /// One open of the object for writing is gone.
    fn closed(&self, object: &FileHandle, sample: &mut dyn FnMut() -> Option<Sample>);
}

impl Sections for Arc<Tracker> {
    fn enter(&self) -> Box<dyn WriteSection + '_> {
        Box::new(self.section())
    }
}

impl WriteSection for Section {
    fn intend(&self, intents: &[Intent<'_>]) -> Result<(), Errno> {
        Section::intend(self, intents).map_err(|error| Errno::from_raw_os_error(error.errno()))
    }

    fn record(&self, change: Change, names: &mut dyn FnMut()) {
        Section::record(self, change, names);
    }

    fn lost_sight(&self, directory: &FileHandle) {
        Section::lost_sight(self, directory);
    }

    fn opened(&self, object: &FileHandle, mode: WriterMode, sample: Sample) {
        Section::opened(self, object, mode, sample);
    }

    fn closed(&self, object: &FileHandle, sample: &mut dyn FnMut() -> Option<Sample>) {
        Section::closed(self, object, sample);
    }
}
