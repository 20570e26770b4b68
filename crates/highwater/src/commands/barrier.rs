//! `highwater barrier`: waits for every write in flight.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use highwater_client::Volume;
use highwater_inplace::barrier::{CarriedOver, NotCovered, vfs_write_barrier};

use crate::exit::{Exit, Failure};
use crate::output::print_line;
use crate::quote::quote_path;

/// Wait for every operation that is in flight now, and print the cursor reached.
///
/// Blocks no writer. What began before the call has ended when it returns: read a
/// file after that, and you cannot see old data under a new timestamp.
///
/// With --filesystem nothing needs to be tracked, and no cursor is printed, but a line
/// for each file with direct I/O that goes on in the background: compare it again later.
///
/// Example:
///   highwater barrier /srv/data
///   highwater barrier /srv/data --deadline 10
///   highwater barrier --filesystem /srv
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The tracked directory.
    #[arg(required_unless_present = "filesystem", conflicts_with = "filesystem")]
    dir: Option<PathBuf>,
    /// The mounted filesystem that this file or directory is on, tracked or not. Root only.
    #[arg(long, value_name = "PATH")]
    filesystem: Option<PathBuf>,
    /// Give up after so many seconds, like 10 or 0.5, and say who holds it up.
    #[arg(long, value_name = "SECONDS", value_parser = super::seconds)]
    deadline: Option<Duration>,
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    match (&args.dir, &args.filesystem) {
        (Some(dir), _) => print_line(&Volume::connect(dir)?.barrier(args.deadline)?)?,
        (None, Some(path)) => in_place(path, args.deadline)?,
        (None, None) => return Err(Failure::text(Exit::Usage, "neither a directory nor --filesystem")),
    }
    Ok(Exit::Done)
}

fn in_place(path: &Path, deadline: Option<Duration>) -> Result<(), anyhow::Error> {
    let file = File::open(path).with_context(|| format!("cannot open {}", quote_path(path)))?;
    let passed =
        vfs_write_barrier(&file, deadline).with_context(|| format!("barrier of {}", quote_path(path)))?;
    for file in &passed.carried_over {
        print_line(&carried_over(file))?;
    }
    for note in &passed.not_covered {
        // A loop device may belong to any filesystem; a file server is the one to be warned of.
        match note {
            NotCovered::LoopDevice => tracing::info!("{note}"),
            _ => tracing::warn!("{note}"),
        }
    }
    Ok(())
}

fn carried_over(file: &CarriedOver) -> String {
    let CarriedOver { pid, descriptor, inode, command, .. } = file;
    let name = std::fs::read_link(format!("/proc/{pid}/fd/{descriptor}"));
    let name = name.map_or_else(|_| format!("inode {inode}"), |path| quote_path(&path).to_string());
    format!("{name}: direct I/O in flight, opened by {command} (pid {pid})")
}
