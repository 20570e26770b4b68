//! Write sections, periods, checkpoints, change sets and consumers of a tracked volume.

#![forbid(unsafe_code)]

mod change;
mod cursor;
mod handle;
mod line;
mod source;
mod tracker;

pub use change::{Change, Intent, Name, ObjectType, Place, Sample, WriterMode};
pub use cursor::{CheckpointId, Cursor, ParseCursorError};
pub use handle::{FileHandle, HANDLE_BYTES_MAX};
pub use line::{Line, LineKind};
pub use source::Source;
pub use tracker::*;
