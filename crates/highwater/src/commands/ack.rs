//! `highwater ack`: stores a consumer's cursor.

use std::path::PathBuf;

use highwater_client::Volume;

use crate::exit::{Exit, Failure};

/// Store the cursor of a consumer: its next answer begins there.
///
/// Ack a cursor only after the changes up to it have been used, durably: what a
/// consumer has acked it is not told again, unless a crash may have undone it. An
/// ack never goes back.
///
/// Example:
///   highwater ack /srv/data --consumer backup hw1.0123456789abcdef0123456789abcdef.17.17
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The tracked directory.
    dir: PathBuf,
    /// The consumer.
    #[arg(long, value_name = "NAME")]
    consumer: String,
    /// The cursor of the answer that has been used.
    cursor: String,
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    Volume::connect(&args.dir)?.ack(&args.consumer, &args.cursor)?;
    Ok(Exit::Done)
}
