//! The command line, and which command it means.

use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::commands::{ack, barrier, changes, consumer, demo, follow, inspect, run, status, stop, track};
use crate::exit::{Exit, Failure};

const LONG_ABOUT: &str = "\
A crash-consistent change journal for any Linux filesystem.

Highwater tells what changed in a directory tree since you last looked, without scanning it, and never misses a change: \
not in a race with a writer, not in a crash, not in a reboot.";

const AFTER_HELP: &str = "\
A first look:
  highwater demo

Keep a copy of a tree up to date:
  highwater track /srv/data --daemon
  highwater consumer add /srv/data backup
  highwater run /srv/data --consumer backup --format null -- \\
      rsync -a --ignore-times --force --delete --delete-missing-args \\
          --from0 --files-from=- /srv/data/ /backup/
  (exit status 4: no difference can be told; copy everything once and `ack`)

Exit status:
  0 done   1 failed   2 wrong usage   3 not tracked
  4 fresh, where the format can only tell a difference

Environment:
  HIGHWATER_RUNTIME_DIR  where the sockets are; default /run/highwater for root,
                         else $XDG_RUNTIME_DIR/highwater
  RUST_LOG               what the tracker logs, like highwater=debug
  NO_COLOR               no colour, also on a terminal";

#[derive(Debug, Parser)]
#[command(name = "highwater", version, about = "A crash-consistent change journal for any Linux filesystem")]
#[command(long_about = LONG_ABOUT, after_long_help = AFTER_HELP, after_help = "`highwater help` says more.")]
#[command(propagate_version = true, arg_required_else_help = true, max_term_width = 110)]
struct Cli {
    /// Log more: -v for what happens, -vv for everything.
    #[arg(short, long, action = ArgAction::Count, global = true)]
    verbose: u8,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Track(track::Args),
    Status(status::Args),
    Stop(stop::Args),
    Barrier(barrier::Args),
    Changes(changes::Args),
    Ack(ack::Args),
    Consumer(consumer::Args),
    Run(run::Args),
    Follow(follow::Args),
    Inspect(inspect::Args),
    Demo(demo::Args),
}

/// Does what the command line says.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are not errors, and go to stdout.
            let exit = if error.use_stderr() { Exit::Usage } else { Exit::Done };
            return if error.print().is_ok() { exit.into() } else { Exit::Failed.into() };
        }
    };
    log(cli.verbose);
    match dispatch(cli.command) {
        Ok(exit) => exit.into(),
        Err(Failure { exit, error }) => {
            if let Some(error) = error {
                complain(&format!("{error:#}"));
            }
            exit.into()
        }
    }
}

fn dispatch(command: Command) -> Result<Exit, Failure> {
    match command {
        Command::Track(args) => track::run(&args),
        Command::Status(args) => status::run(&args),
        Command::Stop(args) => stop::run(&args),
        Command::Barrier(args) => barrier::run(&args),
        Command::Changes(args) => changes::run(&args),
        Command::Ack(args) => ack::run(&args),
        Command::Consumer(args) => consumer::run(&args),
        Command::Run(args) => run::run(&args),
        Command::Follow(args) => follow::run(&args),
        Command::Inspect(args) => inspect::run(&args),
        Command::Demo(args) => demo::run(&args),
    }
}

/// Says on stderr what is wrong.
pub(crate) fn complain(text: &str) {
    let style = anstyle::AnsiColor::Red.on_default().bold();
    anstream::eprintln!("{style}highwater:{style:#} {text}");
}

fn log(verbose: u8) {
    let default = ["warn", "info", "trace"][usize::from(verbose.min(2))];
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    subscriber.with_ansi(colour).with_target(false).init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
