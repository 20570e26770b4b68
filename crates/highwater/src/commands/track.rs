//! `highwater track`: the tracker's process.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use highwater_client::Refusal;
use highwater_tracker::{Config, Durability, OnFull};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};

use crate::cli::complain;
use crate::exit::{Exit, Failure};
use crate::output::print_line;
use crate::quote::quote_path;
use crate::server::Stop;
use crate::tracking::{BarrierKind, Ended, Request, SourceChoice, Tracking, abort_on_panic, daemon};

/// How long a stop by a signal waits for programs that use the directory: at a shutdown they are ending as well.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

/// How often it tries.
const STOP_EVERY: Duration = Duration::from_millis(100);

/// Track a directory: record every change in it before it happens.
///
/// Stays in the foreground until SIGTERM or SIGINT and prints one line, `tracking
/// DIR ...`, when changes are being seen; with --daemon it goes to the background
/// at that moment. `highwater stop` ends it as well. A directory that is in use
/// cannot be stopped: then a signal is answered with who uses it, and tracking
/// goes on.
///
/// With the source `fanotify` the directory stays as it is, and nobody notices;
/// root only. Each start is followed by a scan for what has changed since the
/// stable horizon, and so is every crash; on btrfs there is none after a clean
/// stop if nothing has changed.
///
/// With the source `fuse` the directory is mounted over itself. If the tracker is
/// killed, the directory answers `Transport endpoint is not connected` until the
/// next `highwater track`, which recovers: nothing can change unseen in between.
/// Processes that work in the directory already when tracking starts are not
/// seen, and named.
///
/// The state is the journal and the consumers' cursors. It is never inside DIR;
/// default /var/lib/highwater/NAME-HASH for root, else
/// $XDG_STATE_HOME/highwater/NAME-HASH.
///
/// Example:
///   highwater track /srv/data --daemon
///   highwater track /srv/data --state /fast/data.state --durability relaxed
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The directory.
    dir: PathBuf,
    /// What sees the changes. `auto` takes `fuse`, which promises most in a power loss; with `--durability relaxed`, where a power loss
    /// makes every consumer start afresh anyway, `fanotify` if it can. docs/guarantees.md says what each promises.
    #[arg(long, value_enum, default_value_t = SourceArg::Auto)]
    source: SourceArg,
    /// What waits for the writes in flight, with the source `fanotify`. `bpf` holds nobody up. `freeze` freezes the filesystem for a
    /// moment, which syncs it and blocks writers as long as that takes; it needs nothing of the kernel.
    #[arg(long, value_enum, default_value_t = BarrierArg::Bpf)]
    barrier: BarrierArg,
    /// Where the journal is kept.
    #[arg(long, value_name = "STATE")]
    state: Option<PathBuf>,
    /// `strict`: nothing is missed in a power loss. `relaxed`: a killed tracker is covered, and after a power loss every
    /// consumer starts afresh.
    #[arg(long, value_enum, default_value_t = DurabilityArg::Strict)]
    durability: DurabilityArg,
    /// When the journal's disk is full: `overflow` keeps the writers going and makes every consumer fresh, `fail` fails
    /// the operation with ENOSPC.
    #[arg(long, value_enum, default_value_t = OnFullArg::Overflow)]
    on_full: OnFullArg,
    /// Go to the background when changes are being seen; messages go to STATE/tracker.log then.
    #[arg(long)]
    daemon: bool,
    /// Let file data go through the tracker, also where the kernel could read and write the files directly.
    #[arg(long)]
    no_passthrough: bool,
    /// This is the process in the background.
    #[arg(long = daemon::CHILD_ARGUMENT, hide = true)]
    background_child: bool,
    /// The longest time between two moves of the stable horizon, in milliseconds: tests of crashes want many.
    #[arg(long, hide = true, value_name = "MILLISECONDS")]
    horizon_ms: Option<u64>,
    /// Stop when the process that started this one ends.
    #[arg(long, hide = true)]
    end_with_parent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum SourceArg {
    Auto,
    Fuse,
    Fanotify,
    Bpf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum BarrierArg {
    Bpf,
    Freeze,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum DurabilityArg {
    Strict,
    Relaxed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OnFullArg {
    Overflow,
    Fail,
}

/// What the main thread waits for.
enum Event {
    Signal,
    Ended(Ended),
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    if let SourceArg::Bpf = args.source {
        let name =
            args.source.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        let text = format!("the source {name} is not built yet; use --source fanotify, fuse, or auto");
        return Err(Failure::text(Exit::Usage, text));
    }
    if args.daemon && !args.background_child {
        return daemon::start();
    }
    // While there is one thread.
    highwater_tracker::register_process();
    if args.background_child || args.end_with_parent {
        daemon::stay_with_parent()?;
    }
    abort_on_panic();
    let events = events()?;
    let tracking = Tracking::start(&request(args)?, &events.ended)?;
    if let Ok(Event::Signal) = events.receive.try_recv() {
        stop(&tracking)?;
        return Err(Failure::text(Exit::Failed, "interrupted while starting; nothing is tracked"));
    }
    if let Err(failure) = announce(args, &tracking) {
        stop(&tracking)?;
        return Err(failure);
    }
    wait(&tracking, &events.receive)
}

struct Events {
    ended: std::sync::mpsc::Sender<Ended>,
    receive: Receiver<Event>,
}

/// Signals, and what happens to the volume, as one queue. From here on no signal ends the process by itself.
fn events() -> Result<Events, Failure> {
    let (send, receive) = channel();
    let mut signals = signal_hook::iterator::Signals::new([SIGINT, SIGTERM]).map_err(anyhow::Error::from)?;
    let tell = send.clone();
    std::thread::spawn(move || signals.forever().take_while(|_| tell.send(Event::Signal).is_ok()).count());
    let (ended, ends) = channel();
    std::thread::spawn(move || {
        ends.into_iter().take_while(|end: &Ended| send.send(Event::Ended(end.clone())).is_ok()).count()
    });
    Ok(Events { ended, receive })
}

fn request(args: &Args) -> Result<Request, Failure> {
    let mut config = Config::default();
    config.durability = match args.durability {
        DurabilityArg::Strict => Durability::Strict,
        DurabilityArg::Relaxed => Durability::Relaxed,
    };
    config.on_full = match args.on_full {
        OnFullArg::Overflow => OnFull::Overflow,
        OnFullArg::Fail => OnFull::Fail,
    };
    if let Some(milliseconds) = args.horizon_ms {
        config.horizon_every = Duration::from_millis(milliseconds);
    }
    Ok(Request {
        directory: args.dir.clone(),
        state: args.state.clone(),
        config,
        passthrough: !args.no_passthrough,
        source: match args.source {
            // In place promises as much only where a power loss makes everyone fresh anyway (ADR 0014).
            SourceArg::Auto if args.durability == DurabilityArg::Relaxed && !args.no_passthrough => {
                SourceChoice::InPlaceIfPossible
            }
            SourceArg::Fanotify => SourceChoice::Fanotify,
            SourceArg::Auto | SourceArg::Fuse | SourceArg::Bpf => SourceChoice::Fuse,
        },
        barrier: match args.barrier {
            BarrierArg::Bpf => BarrierKind::Bpf,
            BarrierArg::Freeze => BarrierKind::Freeze,
        },
    })
}

/// Says that changes are being seen, and what is worth knowing about it.
fn announce(args: &Args, tracking: &Tracking) -> Result<(), Failure> {
    let (directory, state) = (tracking.directory().to_owned(), tracking.state().to_owned());
    for remark in tracking.remarks() {
        anstream::eprintln!("{remark}");
    }
    if args.source == SourceArg::Auto {
        let source = tracking.source();
        let after_crash = match (args.durability, source) {
            (DurabilityArg::Strict, _) => "after a crash what may have changed is told again, without a scan",
            (DurabilityArg::Relaxed, "fuse") => {
                "after a kill of the tracker what may have changed is told again without a scan; after a power loss every \
                 consumer starts afresh"
            }
            (DurabilityArg::Relaxed, _) => {
                "after a kill of the tracker a scan finds what has changed; after a power loss every consumer starts afresh"
            }
        };
        anstream::eprintln!("source {source}: {after_crash}");
    }
    // The manager that asked may be gone; tracking does not depend on it.
    drop(sd_notify::notify(&[NotifyState::Ready]));
    let durability = if args.durability == DurabilityArg::Strict { "strict" } else { "relaxed" };
    let (shown, state_shown) = (quote_path(&directory), quote_path(&state));
    let pid = std::process::id();
    let source = tracking.source();
    let line = format!("tracking {shown} (source {source}, {durability}, state {state_shown}, pid {pid})");
    if args.background_child {
        daemon::leave(&state)?;
    }
    // Nobody has to listen.
    if let Err(error) = print_line(&line) {
        tracing::debug!("nobody reads stdout: {error:#}");
    }
    // The tracker must not keep the filesystem busy on which it was started.
    drop(std::env::set_current_dir(Path::new("/")));
    if args.background_child { daemon::hang_up() } else { Ok(()) }
}

fn wait(tracking: &Tracking, events: &Receiver<Event>) -> Result<Exit, Failure> {
    loop {
        match events.recv() {
            Ok(Event::Signal) => {
                if stop(tracking)? {
                    return Ok(Exit::Done);
                }
                // Asked for before the answer was there.
                while let Ok(Event::Signal) = events.try_recv() {}
            }
            Ok(Event::Ended(Ended::Stopped)) => {
                stop(tracking)?;
                return Ok(Exit::Done);
            }
            Ok(Event::Ended(Ended::Unmounted)) => {
                let directory = quote_path(tracking.directory());
                complain(&format!("somebody else has unmounted {directory}: tracking ends"));
                // If a program still uses what was unmounted, this waits for it.
                stop(tracking)?;
                return Err(Failure::silent(Exit::Failed));
            }
            Err(_) => return Err(Failure::text(Exit::Failed, "the thread that waits for signals has ended")),
        }
    }
}

/// Stops, and gives programs that are just ending the time to do so. False: in use; that has been said, and tracking goes on.
fn stop(tracking: &Tracking) -> Result<bool, Failure> {
    let begin = Instant::now();
    let failed = |why: Refusal| {
        let directory = quote_path(tracking.directory());
        Failure::new(Exit::Failed, anyhow::Error::from(why)).context(format!("cannot stop {directory}"))
    };
    loop {
        match tracking.stop() {
            Stop::Clean => return Ok(true),
            Stop::Unclean(why) => return Err(failed(why)),
            Stop::NotYet(_) if begin.elapsed() < STOP_PATIENCE => std::thread::sleep(STOP_EVERY),
            Stop::NotYet(why) => {
                if let Some(error) = failed(why).error {
                    complain(&format!("{error:#}"));
                }
                return Ok(false);
            }
        }
    }
}
