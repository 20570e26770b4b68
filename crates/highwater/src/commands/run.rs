//! `highwater run`: a command that uses the changes, and an ack when it has.
//!
//! Invariant: nothing is acked unless the command got the whole answer and said that it has used it.

use std::ffi::OsString;
use std::io::{BufWriter, Seek, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::Context;
use highwater_client::{CallError, Refusal, Since, Volume};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::exit::{Exit, Failure};
use crate::output::{Format, summary, write_changes};

/// Give a command a consumer's changes on stdin, and ack when it exits 0.
///
/// The command runs also when nothing has changed. It finds the cursor in
/// HIGHWATER_CURSOR and whether the answer is fresh (1 or 0) in HIGHWATER_FRESH.
/// Its exit status becomes that of `highwater run`, 128 and the number of the
/// signal if one killed it; signals are passed on to it. What it was told and did
/// not ack it is told again the next time.
///
/// With --format null an answer that a list of paths cannot tell (fresh, or with
/// a rescan of all) does not run the command: exit status 4. Then copy everything once,
/// and ack a cursor taken before that with `highwater barrier`.
///
/// Example:
///   highwater run /srv/data --consumer backup --format null -- \
///     rsync -a --ignore-times --force --delete --delete-missing-args \
///       --from0 --files-from=- /srv/data/ /backup/
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The tracked directory.
    dir: PathBuf,
    /// The consumer, which is to be there already: `highwater consumer add`.
    #[arg(long, value_name = "NAME")]
    consumer: String,
    /// How the changes are told to the command.
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
    /// Give up, and run nothing, if what is in flight has not ended after so many seconds, like 10 or 0.5.
    #[arg(long, value_name = "SECONDS", value_parser = super::seconds)]
    deadline: Option<Duration>,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    let since = Since::Consumer(args.consumer.clone());
    let answer = Volume::connect(&args.dir)?.changes(&since, args.deadline)?;
    tracing::info!("{}", summary(&answer));

    // A file, so that a slow command holds nobody up, and is never handed the first half of an answer.
    let mut stdin = tempfile::tempfile().context("cannot make a temporary file for the changes")?;
    write_changes(&mut BufWriter::new(&stdin), &args.dir, &answer, args.format)?;
    stdin.flush().and_then(|()| stdin.rewind()).context("cannot hand over the changes")?;

    let program = &args.command[0];
    let mut command = Command::new(program);
    command.args(&args.command[1..]).stdin(stdin);
    command
        .env("HIGHWATER_CURSOR", &answer.cursor)
        .env("HIGHWATER_FRESH", if answer.fresh { "1" } else { "0" });
    // Caught from before the command starts: a signal that comes between is passed on, not lost.
    let signals =
        Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2]).map_err(anyhow::Error::from)?;
    let mut child = command.spawn().with_context(|| format!("cannot run {}", program.display()))?;
    let passing = pass_on(signals, child.id());
    let status = child.wait().context("cannot wait for the command")?;
    passing.close();
    if !status.success() {
        return Ok(Exit::Command(shell_status(status)));
    }
    // A new connection: the command may have taken longer than the tracker keeps an idle one.
    match Volume::connect(&args.dir)?.ack(&args.consumer, &answer.cursor) {
        // Another run of the same consumer was faster and is further: what this one used is acked.
        Err(CallError::Refused(Refusal::AckBackwards { .. })) => {
            tracing::warn!("consumer {:?} has been acked by somebody else meanwhile", args.consumer);
        }
        acked => acked.map_err(|error| {
            let failure: Failure = error.into();
            failure
                .context("the command exited 0, but the ack failed: it will be told the same changes again")
        })?,
    }
    Ok(Exit::Done)
}

/// Passes signals on to a child until the handle is closed.
fn pass_on(mut signals: Signals, child: u32) -> signal_hook::iterator::Handle {
    let handle = signals.handle();
    let pid = i32::try_from(child).ok().and_then(rustix::process::Pid::from_raw);
    std::thread::spawn(move || {
        for number in signals.forever() {
            // A terminal sends SIGINT and SIGQUIT to the child itself; a second one does no harm there.
            let signal = rustix::process::Signal::from_named_raw(number);
            if let (Some(pid), Some(signal)) = (pid, signal) {
                // It may just have ended.
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
    });
    handle
}

/// As a shell tells it: 128 and the number of the signal.
fn shell_status(status: ExitStatus) -> u8 {
    let number = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(number).unwrap_or(1)
}
