//! `highwater demo`: the whole story.

use crate::demo;
use crate::exit::{Exit, Failure};

/// Tell the whole story on real files, in under a minute.
///
/// Shows a list of changes; a write that is stalled half-way, the new timestamp
/// over old data that it makes, and the barrier that waits for exactly that
/// write; a tracker killed with SIGKILL in the middle of work, and its recovery.
/// At the end it says what it has checked, and exits 1 if anything did not hold.
/// Ctrl-C cleans up. The directory is made in $TMPDIR.
///
/// Example:
///   highwater demo
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// Leave the temporary directory behind.
    #[arg(long)]
    keep: bool,
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    Ok(if demo::run(args.keep)? { Exit::Done } else { Exit::Failed })
}
