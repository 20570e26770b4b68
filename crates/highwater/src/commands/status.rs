//! `highwater status`: what is tracked, and how it goes.

use std::path::{Path, PathBuf};

use highwater_client::{ConnectError, Registration, RuntimeDirectory, Status, Volume};

use crate::cli::complain;
use crate::exit::{Exit, Failure};
use crate::output::{bytes_text, print_line};
use crate::quote::quote_path;

/// Show what is tracked: one directory, or all that you track.
///
/// Example:
///   highwater status
///   highwater status /srv/data --json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The tracked directory; without it all of them.
    dir: Option<PathBuf>,
    /// One JSON object per line.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    if let Some(dir) = &args.dir {
        let status = Volume::connect(dir)?.status()?;
        show(&status, args.json)?;
        return Ok(Exit::Done);
    }
    let mut exit = Exit::Done;
    for registration in Registration::list(&RuntimeDirectory::of_this_user().map_err(anyhow::Error::from)?)
        .map_err(anyhow::Error::from)?
    {
        match status_of(&registration.directory) {
            Ok(status) => show(&status, args.json)?,
            Err(failure) => {
                complain(&format!("{:#}", failure.error.unwrap_or_else(|| anyhow::Error::msg("no answer"))));
                exit = failure.exit;
            }
        }
    }
    Ok(exit)
}

fn status_of(directory: &Path) -> Result<Status, Failure> {
    match Volume::connect(directory) {
        // The directory of a tracker that died may be gone as well: nothing is tracked there.
        Err(ConnectError::Directory { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
            let text = format!("{} was tracked and is not there any more", directory.display());
            Err(Failure::text(Exit::NotTracked, text))
        }
        connected => Ok(connected?.status()?),
    }
}

fn show(status: &Status, json: bool) -> Result<(), Failure> {
    if json {
        return Ok(print_line(&serde_json::to_string(status).map_err(anyhow::Error::from)?)?);
    }
    let path = |path: Option<PathBuf>| path.map_or_else(|| "?".to_owned(), |path| quote_path(&path));
    let bold = anstyle::Style::new().bold();
    let mut lines = vec![format!("{bold}{}{bold:#}", path(status.directory()))];
    let mut line = |name: &str, value: String| lines.push(format!("  {name:<14} {value}"));
    line("source", format!("{}, {}", status.source, status.durability));
    line("tracker", format!("pid {}", status.pid));
    line("state", format!("{}, journal {}", path(status.state()), bytes_text(status.journal_bytes)));
    line(
        "checkpoint",
        format!("{}, stable through {}, cursors from {} on", status.checkpoint, status.stable, status.oldest),
    );
    line(
        "in flight",
        format!("{} write sections, {} open for writing", status.sections, status.open_writers),
    );
    line("since start", format!("{} records, {} waits for the journal", status.records, status.waits));
    line(
        "last",
        format!(
            "checkpoint in {} ms",
            f64::from(u32::try_from(status.last_checkpoint_us).unwrap_or(u32::MAX)) / 1e3
        ),
    );
    line("journal", status.journal.clone());
    if let Some(looked_at) = status.catching_up {
        line("catching up", format!("{looked_at} objects looked at"));
    }
    for (name, value) in &status.details {
        line(name, value.clone());
    }
    if let Some(why) = &status.failed {
        let red = anstyle::AnsiColor::Red.on_default().bold();
        line("FAILED", format!("{red}{why}{red:#}; stop the tracker, repair its disk and start it again"));
    }
    for line in lines {
        print_line(&line)?;
    }
    Ok(())
}
