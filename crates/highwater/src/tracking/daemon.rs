//! Tracking in the background.
//!
//! The tracker is a new process of the same program, started with the same arguments and one more. Until it tracks it stays
//! in the session of its caller, so that Ctrl-C ends both and its errors are on the caller's stderr. The one line that it
//! prints when it tracks is the sign for the caller to end; then it leaves the session, and what it has to say from then on
//! goes to a file in the state.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Context;

use crate::exit::{Exit, Failure};
use crate::output::print_line;

/// The argument that the new process gets.
pub(crate) const CHILD_ARGUMENT: &str = "background-child";

/// What a tracker in the background has to say, in its state.
pub(crate) const LOG_FILE: &str = "tracker.log";

/// A log that is longer than this at the start is kept as one older file; there is a line for what goes wrong only.
const LOG_BYTES_MAX: u64 = 1024 * 1024;

/// Starts this program again with the same arguments and returns when it tracks, or has failed.
pub(crate) fn start() -> Result<Exit, Failure> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut child = Command::new(program)
        .args(std::env::args_os().skip(1))
        .arg(format!("--{CHILD_ARGUMENT}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the tracker in the background")?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).context("cannot hear from the tracker")?;
    }
    if line.ends_with('\n') {
        print_line(line.trim_end())?;
        return Ok(Exit::Done);
    }
    // It has said why on stderr.
    let status = child.wait().context("cannot wait for the tracker")?;
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) => Ok(Exit::Command(code)),
        None => Err(Failure::text(Exit::Failed, format!("the tracker ended before it tracked: {status}"))),
    }
}

/// In the new process, first of all: ends if the caller ends before it tracks.
pub(crate) fn stay_with_parent() -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))
        .context("cannot watch the caller")?;
    Ok(())
}

/// In the new process, once it tracks and before it says so: the caller ends when it is told, and must not take us along.
/// Leaves the caller's session, and what is said on stderr goes to the log from now on.
pub(crate) fn leave(state: &Path) -> Result<(), Failure> {
    rustix::process::set_parent_process_death_signal(None).context("cannot leave the caller")?;
    rustix::process::setsid().context("cannot leave the caller's session")?;
    let path = state.join(LOG_FILE);
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LOG_BYTES_MAX) {
        // Keeping too long a log does no harm.
        drop(std::fs::rename(&path, state.join(format!("{LOG_FILE}.old"))));
    }
    let log = match OpenOptions::new().create(true).append(true).mode(0o600).open(&path) {
        Ok(log) => log,
        Err(error) => {
            // A full disk must not keep the volume from being tracked: then there is no log.
            tracing::warn!("cannot write {}: {error}; there will be no log", path.display());
            null()?
        }
    };
    rustix::stdio::dup2_stderr(&log).context("cannot leave the caller's terminal")?;
    Ok(())
}

/// In the new process, once it has said that it tracks.
pub(crate) fn hang_up() -> Result<(), Failure> {
    rustix::stdio::dup2_stdout(null()?).context("cannot leave the caller's terminal")?;
    Ok(())
}

fn null() -> Result<File, anyhow::Error> {
    File::options().write(true).open("/dev/null").context("cannot open /dev/null")
}
