//! Faults of processes, disks, clocks and machines, against the real product.
//!
//! Each scenario has a name, makes its own volume, and says in one line what it has seen. What counts is always the same: a
//! consumer's replica equals the tree, or the answer was fresh, or there was an error; never a shorter answer.

mod clocks;
mod consumer;
mod damage;
mod disks;
mod gate;
mod gated;
pub(crate) mod kill_points;
mod other_user;
mod processes;
mod resources;
mod script;
mod stage;
mod states;

use std::time::Instant;

use anyhow::{Result, bail, ensure};

use crate::product::ProductArgs;
use crate::scratch::{keep_no_mounts_of_others, own_mounts};

/// Runs the named scenarios, or all of them.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FaultsArgs {
    /// Which. Default: all.
    names: Vec<String>,
    /// Leave out those that take long.
    #[arg(long)]
    quick: bool,
    /// Only say which there are.
    #[arg(long)]
    list: bool,
    #[command(flatten)]
    product: ProductArgs,
}

type Run = fn(&ProductArgs) -> Result<String>;

struct Scenario {
    name: &'static str,
    about: &'static str,
    is_quick: bool,
    run: Run,
}

const fn scenario(name: &'static str, is_quick: bool, about: &'static str, run: Run) -> Scenario {
    Scenario { name, about, is_quick, run }
}

const SCENARIOS: &[Scenario] = &[
    scenario("stopped", true, "SIGSTOP of the tracker, then SIGCONT, then kill -9", processes::stopped),
    scenario("terminated", true, "SIGTERM in recovery and catch-up, and while busy", processes::terminated),
    scenario(
        "two-trackers",
        true,
        "several trackers of one state, one directory, nested ones",
        processes::two_trackers,
    ),
    scenario("other-user", true, "not root: a gap, a kill, records behind the horizon", other_user::run),
    scenario("full-overflow", false, "the journal's disk is full: --on-full overflow", disks::full_overflow),
    scenario("full-fail", false, "the journal's disk is full: --on-full fail", disks::full_fail),
    scenario("full-restart", true, "killed with a full journal disk", disks::full_restart),
    scenario("eio", true, "the journal's disk begins to answer EIO", disks::eio),
    scenario(
        "read-only",
        true,
        "the journal's disk, and the tracked one, become read-only",
        disks::read_only,
    ),
    scenario("device-gone", true, "the tracked filesystem is unmounted by force", disks::device_gone),
    scenario("clock", true, "the tracker's clock is stepped, while tracking and across a gap", clocks::run),
    scenario("memory", false, "the tracker in a cgroup with too little memory", resources::memory),
    scenario("descriptors", true, "the tracker has too few descriptors", resources::descriptors),
    scenario("foreign-state", true, "the state of another tree, of another machine", states::foreign),
    scenario("other-state", true, "two states of one tree in turn, over a dead mount", states::other),
    scenario("restored-state", true, "the state of yesterday is put back", states::restored),
    scenario("damage", true, "single bytes of a state are changed", damage::run),
];

/// Runs them. All are run, also after a failure.
pub(crate) fn main(arguments: &FaultsArgs) -> Result<()> {
    own_mounts()?;
    keep_no_mounts_of_others()?;
    crate::mapping::survive_sigbus();
    for name in &arguments.names {
        ensure!(SCENARIOS.iter().any(|one| one.name == name), "no scenario {name:?}; see --list");
    }
    let mut failed = Vec::new();
    let is_wanted = |one: &&Scenario| match &arguments.names[..] {
        [] => one.is_quick || !arguments.quick,
        names => names.iter().any(|name| name == one.name),
    };
    for one in SCENARIOS.iter().filter(is_wanted) {
        if arguments.list {
            println!("{:16} {}", one.name, one.about);
            continue;
        }
        let begun = Instant::now();
        let outcome = (one.run)(&arguments.product);
        let took = begun.elapsed().as_secs_f64();
        match outcome {
            Ok(seen) => println!("{}: PASS ({took:.1} s): {seen}", one.name),
            Err(error) => {
                println!("{}: FAIL ({took:.1} s): {error:#}", one.name);
                failed.push(one.name);
            }
        }
    }
    if !failed.is_empty() {
        bail!("faults: failed: {}", failed.join(", "));
    }
    Ok(())
}
