//! The stacked source: the tracked directory is mounted over itself through a FUSE filesystem, so that every modification asks
//! before it happens.
//!
//! [`Covered::open`] takes the directory as it is, before anything covers it. [`Stacked::mount`] puts the filesystem over it.
//! From then on each operation that modifies something is a write section of the tracker: it announces its intent, runs on the
//! tree below, records what happened, answers the kernel and leaves. File data takes the short way where the kernel can
//! (`FUSE_PASSTHROUGH`): such files are told to the tracker as open writers.
//!
//! | module | what it holds |
//! |---|---|
//! | `wire` | the protocol of `/dev/fuse` |
//! | `session` | workers |
//! | `covered` | the tree below: finding and opening objects |
//! | `nodes` | which objects the kernel knows, and under which names |
//! | `dispatch`, `attributes`, `namespace`, `data`, `directory`, `xattr`, `ioctl` | the operations |
//! | `backing` | what all opens of a file share; passthrough |
//! | `settle`, `prober` | waiting until the kernel shows what was answered |
//! | `writers`, `processes` | writers that are not seen |
//! | `foreign`, `search`, `dead_mount` | writers that were there before the mount, and the mount of a tracker that was killed |
//! | `mount`, `mountinfo`, `stacked` | covering and uncovering |

mod attributes;
mod backing;
mod covered;
mod credentials;
mod data;
mod dead_mount;
mod descriptors;
mod directory;
mod dispatch;
mod filesystem;
mod foreign;
mod gone;
mod ioctl;
mod mount;
mod mountinfo;
mod namespace;
mod nodes;
mod prober;
mod processes;
mod search;
mod sections;
mod session;
mod settle;
mod stacked;
mod wire;
mod writers;
mod xattr;

pub use covered::{Covered, CoveredError};
pub use dead_mount::{DeadMount, DeadMountError, clean_dead_mount, find_dead_mount};
pub use foreign::ForeignWriter;
pub use mount::{MountError, UnmountError};
pub use processes::Device;
pub use processes::Holder;
#[doc(hidden)]
pub use sections::{Sections, WriteSection};
pub use stacked::{MountReport, Options, Stacked};
