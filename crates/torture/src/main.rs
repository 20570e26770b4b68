//! Tests of Highwater from outside, through its command line alone.
//!
//! `torture oracle` is the main one: random operations, a replica kept from the change lists, and a comparison at each
//! pause. The others take single promises apart. Everything needs root; everything that is mounted, started or made is
//! taken away again, also on Ctrl-C.

#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "numbers here are small or random; a wrong one makes a test fail, not data go bad"
)]

use std::process::ExitCode;

use clap::Parser;

mod async_io;
mod barrier_in_place;
mod bench;
mod cleanup;
mod compare;
mod crash_hole;
mod crash_images;
mod fake;
mod faults;
mod kill_loop;
mod line;
mod mapping;
mod naive_race;
mod object;
mod oracle;
mod outside;
mod product;
mod replica;
mod scratch;
mod stall;
mod worker;
mod writers;

#[derive(Parser)]
#[command(version, about)]
enum Command {
    Oracle(oracle::OracleArgs),
    NaiveRace(naive_race::NaiveRaceArgs),
    BarrierInPlace(barrier_in_place::BarrierInPlaceArgs),
    KillLoop(kill_loop::KillLoopArgs),
    CrashHole(crash_hole::CrashHoleArgs),
    CrashImages(crash_images::CrashImagesArgs),
    Faults(faults::FaultsArgs),
    KillPoints(faults::kill_points::KillPointsArgs),
    Bench(bench::BenchArgs),
    #[command(hide = true)]
    Worker(worker::WorkerArgs),
    #[command(hide = true)]
    DiscardEvents(bench::DiscardArgs),
}

fn main() -> ExitCode {
    let command = Command::parse();
    if !matches!(command, Command::Worker(_) | Command::DiscardEvents(_))
        && let Err(error) = cleanup::catch_signals()
    {
        eprintln!("torture: cannot handle signals: {error}");
        return ExitCode::FAILURE;
    }
    let outcome = match &command {
        Command::Oracle(arguments) => oracle::main(arguments),
        Command::NaiveRace(arguments) => naive_race::main(arguments),
        Command::BarrierInPlace(arguments) => barrier_in_place::main(arguments),
        Command::KillLoop(arguments) => kill_loop::main(arguments),
        Command::CrashHole(arguments) => crash_hole::main(arguments),
        Command::CrashImages(arguments) => crash_images::main(arguments),
        Command::Faults(arguments) => faults::main(arguments),
        Command::KillPoints(arguments) => faults::kill_points::main(arguments),
        Command::Bench(arguments) => bench::main(arguments),
        Command::Worker(arguments) => worker::main(arguments),
        Command::DiscardEvents(arguments) => bench::discard(arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // `{:#}` is the chain of causes; `{:?}` would add a backtrace.
            eprintln!("torture: {error:#}");
            ExitCode::FAILURE
        }
    }
}
