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

/// A number of seconds on the command line.
fn seconds(text: &str) -> Result<std::time::Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    std::time::Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}
