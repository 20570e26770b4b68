//! Wire messages and blocking client of the Highwater volume socket.
//!
//! The tracker of a volume serves a Unix stream socket in [Varlink] framing: JSON objects, each ended by one NUL. The
//! interface is `io.highwater.Volume` ([`INTERFACE_DESCRIPTION`]), so that `varlinkctl` and any language can talk to it.
//!
//! ```no_run
//! use highwater_client::{Since, Volume};
//!
//! let mut volume = Volume::connect(std::path::Path::new("/srv/data"))?;
//! let answer = volume.changes(&Since::Consumer("backup".to_owned()), None)?;
//! for change in &answer.changes {
//!     println!("{:?} {}", change.kind, String::from_utf8_lossy(&change.path));
//! }
//! // Only when the changes have been used, durably:
//! volume.ack("backup", &answer.cursor)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! | file | idea |
//! |---|---|
//! | `frame` | one message on the wire, and its limits |
//! | `change` | one line of a change set |
//! | `message` | the parameters of each method and reply |
//! | `refusal` | the error replies |
//! | `volume` | the client |
//! | `runtime` | where the sockets are |
//! | `registration` | which directories are tracked, by whom |
//! | `mounts` | which mounts of the stacked filesystem there are |
//!
//! Nothing of the engine is in here: a program that talks to a tracker needs this crate only.
//!
//! [Varlink]: https://varlink.org

#![forbid(unsafe_code)]

mod change;
mod frame;
mod message;
mod mounts;
mod refusal;
mod registration;
mod runtime;
mod volume;

pub use change::{Change, Kind, ObjectType};
pub use frame::{FrameError, FrameReader, REPLY_BYTES_MAX, REQUEST_BYTES_MAX, read_message, write_frame};
pub use message::*;
pub use mounts::{StackedMount, stacked_mounts};
pub use refusal::{Holder, Refusal};
pub use registration::{DirectoryLock, Registration, RegistrationError, process_start_ticks};
pub use runtime::{RuntimeDirectory, RuntimeError, canonical_directory, directory_key};
pub use volume::{CallError, Changes, ConnectError, Follow, NotTracked, Since, Volume};
