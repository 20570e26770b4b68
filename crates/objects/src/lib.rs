//! Objects of a real filesystem, as the sources see them: found by their handles, and looked at.
//!
//! What [`highwater_tracker`] calls an object, it knows by a [`FileHandle`]. Here is how a source gets one from the kernel, opens the object again
//! by it, and reads what the tracker wants to know.
//!
//! [`FileHandle`]: highwater_tracker::FileHandle

mod attributes;
mod handles;
mod kernel;

pub use attributes::{ATTRIBUTES, attributes_of, object_type, sample};
pub use handles::{ProcPath, handle_behind, handle_of, open_by_handle, proc_path};
pub use kernel::{filesystem_name, has_distinct_timestamps, kernel_at_least, last_errno, magic, owned};
