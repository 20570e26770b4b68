//! How changes are printed.
//!
//! Invariant: nothing is printed before the answer is whole and can be told in the format, so that a script never acts on
//! the first half of a list.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Context;
use clap::ValueEnum;
use highwater_client::{Change, Changes, Kind, ObjectType};
use serde::Serialize;

use crate::exit::{Exit, Failure};
use crate::quote::quote;

/// How changes are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people: one change per line, odd names quoted for a shell, a summary on stderr.
    Text,
    /// JSON lines: a line with the cursor, then one object per change.
    Json,
    /// Every changed, deleted and renamed (both names) path, each ended by a NUL, for rsync --from0 --files-from=-.
    Null,
}

/// Writes a whole answer.
///
/// Fails with [`Exit::Fresh`] and writes nothing if the answer is not a difference and the format can tell nothing else.
pub(crate) fn write_changes(
    out: &mut impl Write,
    directory: &Path,
    answer: &Changes,
    format: Format,
) -> Result<(), Failure> {
    let written = match format {
        Format::Text => write_text(out, answer),
        Format::Json => write_json(out, answer),
        Format::Null => {
            check_tellable_as_paths(answer)?;
            let list = null_list(directory, &answer.changes).with_context(|| {
                format!("cannot list a renamed directory in {}; nothing was printed", directory.display())
            })?;
            out.write_all(&list)
        }
    };
    written.and_then(|()| out.flush()).map_err(|error| {
        let failure: Failure = anyhow::Error::from(error).into();
        failure.context("cannot write the changes")
    })
}

/// The first line of an answer in JSON.
#[derive(Serialize)]
struct Header<'a> {
    cursor: &'a str,
    since: Option<&'a str>,
    fresh: bool,
    /// Why it is fresh, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
}

/// The line before the changes of an answer, and each change on a line.
pub(crate) fn write_json(out: &mut impl Write, answer: &Changes) -> io::Result<()> {
    let header = Header {
        cursor: &answer.cursor,
        since: answer.since.as_deref(),
        fresh: answer.fresh,
        reason: answer.reason.as_deref(),
    };
    serde_json::to_writer(&mut *out, &header)?;
    out.write_all(b"\n")?;
    for change in &answer.changes {
        serde_json::to_writer(&mut *out, change)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

fn write_text(out: &mut impl Write, answer: &Changes) -> io::Result<()> {
    for change in &answer.changes {
        write!(out, "{:<9} {:<8} ", change.kind.as_str(), change.object_type.as_str())?;
        if let Some(from) = &change.from {
            write!(out, "{} -> ", quote(from))?;
        }
        write!(out, "{}", quote(&change.path))?;
        let recursive = if change.recursive { "  # and everything below" } else { "" };
        let recovered = if change.recovered { "  # recovered" } else { "" };
        writeln!(out, "{recursive}{recovered}")?;
    }
    Ok(())
}

/// Every path once, in the order of their first appearance, each ended by a NUL.
///
/// A renamed directory is one change, but whoever copies by a list of paths holds nothing at the new name: everything that
/// is below it now is listed as well. What has moved on since then is in a later answer.
fn null_list(directory: &Path, changes: &[Change]) -> io::Result<Vec<u8>> {
    let mut list = Vec::new();
    let mut seen = HashSet::new();
    let mut add = |path: Cow<'_, [u8]>| {
        if !seen.contains(&*path) {
            list.extend_from_slice(&path);
            list.push(0);
            seen.insert(path.into_owned());
        }
    };
    for change in changes {
        if let Some(from) = &change.from {
            add(Cow::Borrowed(from));
        }
        add(Cow::Borrowed(&change.path));
        if change.kind == Kind::Renamed && change.object_type == ObjectType::Dir {
            below(directory, &change.path, &mut |path| add(Cow::Owned(path)))?;
        }
    }
    Ok(list)
}

/// Every path below a directory, parents first.
fn below(root: &Path, directory: &[u8], found: &mut impl FnMut(Vec<u8>)) -> io::Result<()> {
    let mut waiting = vec![directory.to_vec()];
    while let Some(directory) = waiting.pop() {
        let entries = match std::fs::read_dir(root.join(OsStr::from_bytes(&directory))) {
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                continue;
            }
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let path = [&directory, &b"/"[..], entry.file_name().as_bytes()].concat();
            if entry.file_type()?.is_dir() {
                waiting.push(path.clone());
            }
            found(path);
        }
    }
    Ok(())
}

/// A list of paths can tell what changed, and neither "everything" nor "compare this directory".
fn check_tellable_as_paths(answer: &Changes) -> Result<(), Failure> {
    let needed = "nothing was printed: a full pass is needed";
    if answer.fresh {
        let reason = answer.reason.as_deref().unwrap_or("there is no earlier cursor");
        let then = format!("then go on from cursor {}", answer.cursor);
        return Err(Failure::text(Exit::Fresh, format!("{needed} ({reason}), {then}")));
    }
    if let Some(rescan) = answer.changes.iter().find(|change| change.kind == Kind::Rescan) {
        let path = quote(&rescan.path);
        let why = format!(
            "the directory {path} has to be compared, which --format json tells and a list of paths cannot"
        );
        let then = format!("then go on from cursor {}", answer.cursor);
        return Err(Failure::text(Exit::Fresh, format!("{needed} ({why}), {then}")));
    }
    Ok(())
}

/// The summary of an answer for stderr.
pub(crate) fn summary(answer: &Changes) -> String {
    let cursor = &answer.cursor;
    match (&answer.since, answer.fresh) {
        (_, true) => {
            let reason = answer.reason.as_deref().unwrap_or("no earlier cursor");
            format!("fresh ({reason}): take everything, then go on from cursor {cursor}")
        }
        (Some(since), false) => {
            let count = answer.changes.len();
            let plural = if count == 1 { "" } else { "s" };
            format!("{count} change{plural} since {since}; now at cursor {cursor}")
        }
        (None, false) => format!("now at cursor {cursor}"),
    }
}

/// Prints one line on stdout; colour is taken out if that is not a terminal.
pub(crate) fn print_line(line: &str) -> Result<(), anyhow::Error> {
    let mut out = anstream::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("cannot write to stdout")
}

/// A number of bytes for people.
pub(crate) fn bytes_text(bytes: u64) -> String {
    let mut rest = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if rest < 10_000 {
            return format!("{rest} {unit}");
        }
        rest /= 1024;
    }
    format!("{rest} TiB")
}
