//! Simulated crashes of the real tracker, from the command line. See `simulation --help`.

use std::ops::Range;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use highwater_simulation::random::Random;
use highwater_simulation::{
    Case, Effort, Failure, Tally, ace, case_of, exhaust, explore, minimise, small_case_of, trace,
};

/// Simulates crashes of the tracker and looks whether any consumer misses anything.
///
/// The tracker and its journal are the real ones; the disk, the tracked tree, the clock, programs and consumers are simulated. A
/// seed is a list of actions; it is run once, and ended at some of its moments in several ways (power loss, kill, again during
/// the recovery). After each end every consumer's copy has to become equal to the tree. The same seed does the same everywhere.
///
/// Without a choice: seeds from a fixed one on, for --seconds.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// One seed, ended at every moment.
    #[arg(long, value_name = "N", conflicts_with_all = ["seeds", "ace", "scenario"])]
    seed: Option<u64>,

    /// A range of seeds, without its end.
    #[arg(long, value_name = "A..B", value_parser = range, conflicts_with_all = ["ace", "scenario"])]
    seeds: Option<Range<u64>>,

    /// Short lists of actions.
    #[arg(long, requires = "exhaustive", conflicts_with = "ace")]
    scenario: Option<Scenario>,

    /// End each list at every moment in six ways, and each recovery at every operation on the disk.
    #[arg(long, requires = "scenario")]
    exhaustive: bool,

    /// All sequences of so many operations over a few names, each with fsync, a checkpoint, a move of the horizon or nothing
    /// after every operation, ended at every moment.
    #[arg(long, value_name = "1|2|3", value_parser = clap::value_parser!(u32).range(1..=3))]
    ace: Option<u32>,

    /// Only so many of the sequences, chosen by chance.
    #[arg(long, value_name = "N", requires = "ace")]
    sample: Option<u64>,

    /// End a list at one moment in so many. [default: 1 with --seed and --ace, otherwise 6]
    #[arg(long, value_name = "N")]
    moments: Option<u64>,

    /// Ways to end at each moment.
    #[arg(long, value_name = "N", default_value_t = 3)]
    endings: u64,

    /// Stop after this time; without a range, sequences or a seed, run as long.
    #[arg(long, value_name = "N")]
    seconds: Option<u64>,

    /// On failure, shorten the list for at most this time, seconds.
    #[arg(long, value_name = "N", default_value_t = 30)]
    minimise: u64,

    /// On failure, tell every step.
    #[arg(long)]
    trace: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Scenario {
    /// About ten actions.
    Small,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let (from, to) = text.split_once("..").ok_or("it looks like 1..1000")?;
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text}: {error}"));
    let range = number(from)?..number(to)?;
    if range.is_empty() { Err("it is empty".to_owned()) } else { Ok(range) }
}

/// What is run, by number.
struct Work {
    numbers: Box<dyn Iterator<Item = u64>>,
    case: Box<dyn Fn(u64) -> Case>,
    /// How to do the n-th alone.
    again: Box<dyn Fn(u64) -> String>,
    moments: u64,
    is_exhaustive: bool,
}

fn work(arguments: &Arguments) -> Work {
    let endings = arguments.endings;
    if let Some(len) = arguments.ace {
        let moments = arguments.moments.unwrap_or(1);
        let numbers: Box<dyn Iterator<Item = u64>> = match arguments.sample {
            None => Box::new(0..ace::count(len)),
            Some(sample) => {
                let mut random = Random::new(len.into());
                Box::new((0..sample).map(move |_| random.below(ace::count(len))))
            }
        };
        return Work {
            numbers,
            case: Box::new(move |number| ace::case(len, number)),
            again: Box::new(move |number| format!("--ace {len}, sequence {number}")),
            moments,
            is_exhaustive: false,
        };
    }
    let seeds = match (arguments.seed, &arguments.seeds) {
        (Some(seed), _) => seed..seed + 1,
        (None, Some(seeds)) => seeds.clone(),
        (None, None) => 1..u64::MAX,
    };
    if arguments.scenario.is_some() {
        return Work {
            numbers: Box::new(seeds),
            case: Box::new(small_case_of),
            again: Box::new(|seed| format!("--scenario small --exhaustive --seeds {seed}..{}", seed + 1)),
            moments: 1,
            is_exhaustive: true,
        };
    }
    let moments = arguments.moments.unwrap_or(if arguments.seed.is_some() { 1 } else { 6 });
    Work {
        numbers: Box::new(seeds),
        case: Box::new(case_of),
        again: Box::new(move |seed| format!("--seed {seed} --moments {moments} --endings {endings}")),
        moments,
        is_exhaustive: false,
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let work = work(&arguments);
    let is_bounded = arguments.seed.is_some()
        || arguments.seeds.is_some()
        || arguments.ace.is_some()
        || arguments.seconds.is_some();
    let most = Duration::from_secs(arguments.seconds.unwrap_or(if is_bounded { u64::MAX } else { 10 }));
    let began = Instant::now();
    let mut told = began;
    let mut tally = Tally::default();
    let mut last = 0;
    for number in work.numbers {
        if began.elapsed() >= most {
            break;
        }
        last = number;
        let case = (work.case)(number);
        let outcome = if work.is_exhaustive {
            exhaust(&case, &mut tally)
        } else {
            let effort = Effort { one_moment_in: work.moments.max(1), endings: arguments.endings };
            explore(&case, effort, &mut tally)
        };
        if let Err(failure) = outcome {
            report(*failure, &(work.again)(number), &arguments);
            println!("{}", summary(&tally, began));
            return ExitCode::FAILURE;
        }
        if told.elapsed() >= Duration::from_secs(1) {
            told = Instant::now();
            eprint!("\r{} (at {number})  ", summary(&tally, began));
        }
    }
    if began.elapsed() >= Duration::from_secs(1) {
        eprintln!();
    }
    println!("nothing was missed: {}; the last was {last}", summary(&tally, began));
    ExitCode::SUCCESS
}

fn report(failure: Failure, again: &str, arguments: &Arguments) {
    println!("\nFAILED: {}", failure.what);
    println!("again: target/release/simulation {again}");
    let shortest = minimise(failure, Duration::from_secs(arguments.minimise));
    println!("the shortest list found that leads to such a failure:\n{shortest}");
    if arguments.trace {
        println!("step by step:");
        for line in trace(&shortest) {
            println!("{line}");
        }
    } else {
        println!("(--trace tells every step)");
    }
}

fn summary(tally: &Tally, began: Instant) -> String {
    let seconds = began.elapsed().as_secs_f64();
    format!(
        "{} lists, {} crashes ({} of them during or after a recovery), {} comparisons after recovery, {seconds:.1} s",
        tally.runs, tally.crashes, tally.again, tally.recoveries
    )
}
