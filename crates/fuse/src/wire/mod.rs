//! The wire layer: what is said over `/dev/fuse`, and nothing about what it means.
//!
//! Invariant: nothing in here knows of nodes, sections or the filesystem below.

pub(crate) mod abi;
pub(crate) mod device;
pub(crate) mod notify;
pub(crate) mod request;
