//! The protocol with one step left out, or in the wrong place: the simulation must find each.
//!
//! `cargo test --release -p highwater-simulation --features mutants --test mutants -- --nocapture`
//!
//! `MUTANT=NoSyncfs` tries one of them. Each is tried on seeds from 1 on until one fails.
#![cfg(feature = "mutants")]

use std::time::{Duration, Instant};

use highwater_simulation::{Effort, Tally, case_of, explore};
use highwater_tracker::mutation::{self, Mutation};

const EFFORT: Effort = Effort { one_moment_in: 6, endings: 3 };

/// As many runs as a mistake may take to be found.
const RUNS_MAX: u64 = 2000;

/// Mistakes that cost precision only, as far as this can see, and what notices them.
const SEEN_ELSEWHERE: [(Mutation, &str); 1] = [(
    Mutation::RecordsAfterHorizon,
    "crates/tracker/tests/guarantees.rs: records_that_were_not_stable_are_left_out_after_a_crash",
)];

#[test]
fn every_mistake_is_found() {
    let only = std::env::var("MUTANT").ok();
    let mut missed = Vec::new();
    for mutant in Mutation::ALL {
        if only.as_ref().is_some_and(|only| !only.contains(&format!("{mutant:?}"))) {
            continue;
        }
        if let Some((_, by)) = SEEN_ELSEWHERE.iter().find(|(elsewhere, _)| *elsewhere == mutant)
            && only.is_none()
        {
            println!("{mutant:?}: see {by}");
            continue;
        }
        mutation::set(Some(mutant));
        let began = Instant::now();
        let mut tally = Tally::default();
        let found = (1..RUNS_MAX).find_map(|seed| {
            let failure = explore(&case_of(seed), EFFORT, &mut tally).err()?;
            Some((seed, failure.what))
        });
        mutation::set(None);
        let seconds = Duration::as_secs_f64(&began.elapsed());
        match found {
            Some((seed, what)) => {
                println!(
                    "{mutant:?}: {} runs, {} crashes, {seconds:.1} s: {what}",
                    tally.runs, tally.crashes
                );
                // It is the mistake that was found, and nothing else.
                let without = explore(&case_of(seed), EFFORT, &mut Tally::default());
                assert!(without.is_ok(), "seed {seed} fails without {mutant:?} too");
            }
            None => {
                println!(
                    "{mutant:?}: NOT FOUND: {} runs, {} crashes, {seconds:.1} s",
                    tally.runs, tally.crashes
                );
                missed.push(mutant);
            }
        }
    }
    assert_eq!(missed, []);
}
