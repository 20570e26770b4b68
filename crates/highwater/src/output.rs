//! How changes are printed.
//!
//! Invariant: nothing is printed before the answer is whole and can be told in the format, so that a script never acts on
//! the first half of a list.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::FileType;
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
/// Who copies by a list of paths may hold other things at the path of a new directory, and holds nothing at that of a renamed one. So
/// a directory whose names have to be compared ends with a slash, which makes rsync look into it, and everything that is
/// below a renamed directory, or one to compare, is listed as well. What has moved on since then is in a later answer.
fn null_list(directory: &Path, changes: &[Change]) -> io::Result<Vec<u8>> {
    let mut paths = Paths::new(directory);
    for change in changes {
        if let Some(from) = &change.from {
            paths.add(from, false);
        }
        let is_directory = change.object_type == ObjectType::Dir;
        let is_whole = is_directory && change.kind == Kind::Renamed || change.kind == Kind::Rescan;
        paths.add(&change.path, is_whole || is_directory && change.kind == Kind::Created);
        if is_whole {
            below(directory, &change.path, &mut |path, is_directory| paths.insert(path, is_directory))?;
        }
    }
    Ok(paths.list())
}

/// Paths in the order of their first appearance, and whether the names in them have to be compared.
struct Paths<'a> {
    root: &'a Path,
    order: Vec<(Vec<u8>, bool)>,
    at: HashMap<Vec<u8>, usize>,
}

impl<'a> Paths<'a> {
    fn new(root: &'a Path) -> Self {
        Self { root, order: Vec::new(), at: HashMap::new() }
    }

    fn add(&mut self, path: &[u8], compare: bool) {
        let (path, type_now) = self.as_it_is_now(path);
        // rsync looks into a path with a slash behind it, and takes one that is gone by now for an error.
        self.insert(path, compare && type_now.is_some_and(|type_now| type_now.is_dir()));
    }

    fn insert(&mut self, path: &[u8], compare: bool) {
        if let Some(&at) = self.at.get(path) {
            self.order[at].1 |= compare;
        } else {
            self.at.insert(path.to_owned(), self.order.len());
            self.order.push((path.to_owned(), compare));
        }
    }

    /// What is gone is told by the highest directory that is gone with it, or by what is in that one's place: for rsync a path below such a
    /// one is an error.
    fn as_it_is_now<'p>(&self, mut path: &'p [u8]) -> (&'p [u8], Option<FileType>) {
        let type_of = |path: &[u8]| {
            let metadata = self.root.join(OsStr::from_bytes(path)).symlink_metadata();
            metadata.ok().map(|metadata| metadata.file_type())
        };
        let mut type_now = type_of(path);
        while type_now.is_none()
            && let Some(slash) = path.iter().rposition(|byte| *byte == b'/')
        {
            let above = type_of(&path[..slash]);
            if above.is_some_and(|above| above.is_dir()) {
                break;
            }
            (path, type_now) = (&path[..slash], above);
        }
        (path, type_now)
    }

    fn list(self) -> Vec<u8> {
        let mut list = Vec::new();
        for (path, compare) in self.order {
            list.extend_from_slice(&path);
            list.extend_from_slice(if compare { b"/\0" } else { b"\0" });
        }
        list
    }
}

/// Every path below a directory, parents first, and whether it is a directory.
fn below(root: &Path, directory: &[u8], found: &mut impl FnMut(&[u8], bool)) -> io::Result<()> {
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
            let is_directory = entry.file_type()?.is_dir();
            found(&path, is_directory);
            if is_directory {
                waiting.push(path);
            }
        }
    }
    Ok(())
}

/// A list of paths can tell what changed, and not "everything".
fn check_tellable_as_paths(answer: &Changes) -> Result<(), Failure> {
    let needed = "nothing was printed: a full pass is needed";
    if answer.fresh {
        let reason = answer.reason.as_deref().unwrap_or("there is no earlier cursor");
        let then = format!("then go on from cursor {}", answer.cursor);
        return Err(Failure::text(Exit::Fresh, format!("{needed} ({reason}), {then}")));
    }
    if answer.changes.iter().any(|change| change.kind == Kind::Rescan && change.path == b".") {
        let why = "the tracked directory itself has to be compared";
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
