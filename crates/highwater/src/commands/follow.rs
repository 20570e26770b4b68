//! `highwater follow`: changes as they happen.

use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::time::Duration;

use highwater_client::{Since, Volume};
use signal_hook::consts::{SIGINT, SIGTERM};

use super::changes::since;
use crate::exit::{Exit, Failure};
use crate::output::write_json;

/// How long a batch that is being written may hold up a signal.
const PATIENCE: Duration = Duration::from_secs(1);

/// Print changes as they happen, as JSON lines, for ever.
///
/// Each batch is a line with its cursor, then its changes, as `highwater changes
/// --format json` prints them; it is printed when it is whole. The first batch
/// comes at once, be it empty. Without --since it is fresh. Ends with exit status
/// 0 on SIGINT and SIGTERM, and when nobody reads its output any more.
///
/// Example:
///   highwater follow /srv/data --since now
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The tracked directory.
    dir: PathBuf,
    /// A cursor that an earlier answer gave, or `now`.
    #[arg(long, value_name = "CURSOR")]
    since: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    let volume = Volume::connect(&args.dir)?;
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).map_err(anyhow::Error::from)?;
    std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            // A batch is written with one lock held: waiting for it ends the output between two batches. But a reader that
            // does not read must not keep us.
            std::thread::spawn(|| {
                std::thread::sleep(PATIENCE);
                std::process::exit(0);
            });
            let _out = std::io::stdout().lock();
            std::process::exit(0);
        }
    });
    let mut batches = volume.follow(&args.since.as_deref().map_or(Since::Nothing, since))?;
    loop {
        let batch = batches.next_batch()?;
        let mut out = BufWriter::new(std::io::stdout().lock());
        match write_json(&mut out, &batch).and_then(|()| out.flush()) {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(Exit::Done),
            written => written.map_err(anyhow::Error::from)?,
        }
    }
}
