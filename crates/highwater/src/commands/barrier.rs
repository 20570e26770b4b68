//! `highwater barrier`: waits for every write in flight.

use std::path::PathBuf;
use std::time::Duration;

use highwater_client::Volume;

use crate::exit::{Exit, Failure};
use crate::output::print_line;

/// Wait for every operation that is in flight now, and print the cursor reached.
///
/// Blocks no writer. What began before the call has ended when it returns: read a
/// file after that, and you cannot see old data under a new timestamp.
///
/// Example:
///   highwater barrier /srv/data
///   highwater barrier /srv/data --deadline 10
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The tracked directory.
    dir: PathBuf,
    /// Give up after so many seconds, like 10 or 0.5.
    #[arg(long, value_name = "SECONDS", value_parser = super::seconds)]
    deadline: Option<Duration>,
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    let cursor = Volume::connect(&args.dir)?.barrier(args.deadline)?;
    print_line(&cursor)?;
    Ok(Exit::Done)
}
