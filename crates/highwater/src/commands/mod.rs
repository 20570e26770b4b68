//! One file per command: its arguments and what it does.

pub(crate) mod ack;
pub(crate) mod barrier;
pub(crate) mod changes;
pub(crate) mod consumer;
pub(crate) mod demo;
pub(crate) mod follow;
pub(crate) mod inspect;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod stop;
pub(crate) mod track;
