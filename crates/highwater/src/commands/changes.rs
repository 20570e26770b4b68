//! `highwater changes`: what changed since.

use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use highwater_client::{Since, Volume};

use crate::exit::{Exit, Failure};
use crate::output::{Format, summary, write_changes};

/// Print what changed since a cursor, or since a consumer's last ack.
///
/// Without --since and --consumer the answer is fresh: not a difference, take
/// everything. `--since now` gives a cursor and no changes. Applying the lines
/// from top to bottom is safe; nothing is printed before the answer is whole.
///
/// With --format json the first line is
/// {"cursor":"...","since":"..."|null,"fresh":false}, then one object per change:
///   {"path":"a/b","kind":"created|modified|metadata|renamed|deleted|rescan","type":"file|dir|symlink|other",
///    "from":"old/path","recursive":false,"recovered":false,"nlink":2,"usn":123}
/// `from` is there for renamed, `recursive` for rescan, `nlink` for a file with
/// several names; a path that is not UTF-8 is in path_base64 (from_base64).
///
/// With --format null each changed, deleted and renamed (both names) path once,
/// and everything below a renamed directory, or one to compare. A directory whose
/// names have to be compared ends with a slash: rsync with --delete does that. An
/// answer that a list of paths cannot tell (fresh, or a rescan of all) prints
/// nothing and ends with exit status 4.
///
/// Example:
///   cursor=$(highwater changes /srv/data --since now --format json | jq -r .cursor)
///   highwater changes /srv/data --since "$cursor"
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The tracked directory.
    dir: PathBuf,
    /// A cursor that an earlier answer gave, or `now`.
    #[arg(long, value_name = "CURSOR", conflicts_with = "consumer")]
    since: Option<String>,
    /// The consumer whose stored cursor to begin at. It stays where it is: `highwater ack` moves it.
    #[arg(long, value_name = "NAME")]
    consumer: Option<String>,
    /// How to print the changes.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// Give up if what is in flight has not ended after so many seconds, like 10 or 0.5.
    #[arg(long, value_name = "SECONDS", value_parser = super::seconds)]
    deadline: Option<Duration>,
    /// Write the cursor reached to a file, after everything has been printed.
    #[arg(long, value_name = "FILE")]
    save_cursor: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    let since = match (&args.since, &args.consumer) {
        (Some(cursor), _) => since(cursor),
        (None, Some(name)) => Since::Consumer(name.clone()),
        (None, None) => Since::Nothing,
    };
    let answer = Volume::connect(&args.dir)?.changes(&since, args.deadline)?;
    let mut out = BufWriter::new(std::io::stdout().lock());
    write_changes(&mut out, &args.dir, &answer, args.format)?;
    if args.format == Format::Text {
        anstream::eprintln!("{}", summary(&answer));
    }
    if let Some(path) = &args.save_cursor {
        save(path, &answer.cursor)
            .with_context(|| format!("cannot write the cursor to {}", path.display()))?;
    }
    Ok(Exit::Done)
}

/// `now` is not a cursor.
pub(super) fn since(text: &str) -> Since {
    if text == "now" { Since::Now } else { Since::Cursor(text.to_owned()) }
}

/// The old cursor or the new one is in the file, whatever happens.
fn save(path: &Path, cursor: &str) -> std::io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    writeln!(file, "{cursor}")?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
