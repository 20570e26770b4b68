//! The protocol with one step left out, each of which the simulation must find.
//!
//! `cargo test --release -p highwater-simulation --features mutants --test mutants`
#![cfg(feature = "mutants")]

use std::time::{Duration, Instant};

use highwater_simulation::{Effort, Tally, case_of, explore};
use highwater_tracker::mutation::{self, Mutation};

#[test]
fn every_mistake_is_found() {
    let mut missed = Vec::new();
    let only = std::env::var("MUTANT").ok();
    for mutant in Mutation::ALL {
        if only.as_ref().is_some_and(|only| !only.contains(&format!("{mutant:?}"))) {
            continue;
        }
        mutation::set(Some(mutant));
        let began = Instant::now();
        let mut tally = Tally::default();
        let mut found = None;
        for seed in 1.. {
            if began.elapsed() > Duration::from_secs(15) {
                break;
            }
            if let Err(failure) = explore(&case_of(seed), Effort { one_moment_in: 6, endings: 3 }, &mut tally)
            {
                found = Some((seed, failure.what));
                break;
            }
        }
        match found {
            Some((seed, what)) => println!(
                "{mutant:?}: seed {seed}, {} crashes, {:.1} s: {what}",
                tally.crashes,
                began.elapsed().as_secs_f32()
            ),
            None => {
                println!("{mutant:?}: NOT FOUND: {} runs, {} crashes", tally.runs, tally.crashes);
                missed.push(mutant);
            }
        }
    }
    assert_eq!(missed, []);
}
