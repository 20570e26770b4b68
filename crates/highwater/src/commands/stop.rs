//! `highwater stop`: ends tracking, cleanly.

use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::Context;
use highwater_client::Volume;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::exit::{Exit, Failure};

/// What takes longer than this is worth a word.
const PATIENCE: Duration = Duration::from_secs(1);

/// The process has nothing left to do but to exit.
const EXIT_SECONDS_MAX: i64 = 10;

/// Stop tracking, cleanly: unmount, seal, sync.
///
/// What changes from then on is not seen: the next `highwater track` finds it by
/// a scan. A directory that is in use cannot be unmounted: the message says by
/// whom, and tracking goes on.
///
/// Example:
///   highwater stop /srv/data
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The tracked directory.
    dir: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    let mut volume = Volume::connect(&args.dir)?;
    let pid = volume.status()?.pid;
    // Before the stop: afterwards the number could be another process's.
    let process = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let process = process.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());

    let (done, wait) = channel();
    std::thread::spawn(move || done.send(volume.stop()));
    let stopped = match wait.recv_timeout(PATIENCE) {
        Err(RecvTimeoutError::Timeout) => {
            anstream::eprintln!(
                "stopping {}: waiting for operations in flight and for the disk",
                args.dir.display()
            );
            wait.recv().context("the thread that waits for the tracker has ended")?
        }
        stopped => stopped.context("the thread that waits for the tracker has ended")?,
    };
    stopped.map_err(|error| Failure::from(error).context(format!("cannot stop {}", args.dir.display())))?;
    if let Some(process) = process {
        // When it has ended, its locks are free and the directory can be tracked again.
        let timeout = Timespec { tv_sec: EXIT_SECONDS_MAX, tv_nsec: 0 };
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout))
            .context("cannot wait for the tracker's end")?;
    }
    Ok(Exit::Done)
}
