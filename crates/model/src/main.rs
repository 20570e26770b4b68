//! Searches the model and prints what was tried and what was found.
//!
//!     cargo run -p highwater-model --release                          the table
//!     cargo run -p highwater-model --release -- --trace NoMoveIntent  a counter-example as a story
//!     cargo run -p highwater-model --release -- --deep                wider bounds, 20,000,000 states for each scenario: about an hour

use std::process::ExitCode;
use std::time::Instant;

use highwater_model::{Model, Mutation, SCENARIOS, Scenario};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => table(|scenario| scenario, usize::MAX),
        ["--deep"] => table(Scenario::deeper, 20_000_000),
        ["--trace", name] => trace(name),
        _ => {
            eprintln!("usage: highwater-model [--deep | --trace MUTATION]");
            ExitCode::from(2)
        }
    }
}

/// Every scenario with the whole protocol, then every mutation. Fails if the protocol does, or if a mutation is not found.
fn table(bounds: impl Fn(Scenario) -> Scenario, states_max: usize) -> ExitCode {
    let mut is_as_expected = true;
    println!(
        "{:<40} {:>10} {:>11} {:>6} {:>7}  found",
        "the whole protocol", "states", "steps", "depth", "seconds"
    );
    for scenario in SCENARIOS.map(bounds) {
        let began = Instant::now();
        let outcome = Model { scenario, mutation: None }.search(states_max);
        let found = match &outcome.counter_example {
            None if outcome.complete => "nothing".to_owned(),
            None => "nothing, within the limit of states".to_owned(),
            Some((way, violation)) => format!("after {} steps: {violation}", way.len()),
        };
        is_as_expected &= outcome.counter_example.is_none();
        let (states, steps, depth) = (outcome.states, outcome.steps, outcome.depth);
        let seconds = began.elapsed().as_secs_f32();
        println!("{:<40} {states:>10} {steps:>11} {depth:>6} {seconds:>7.1}  {found}", scenario.name);
    }
    println!();
    println!("{:<30} {:<40} {:>8} {:>7}  found", "broken", "scenario", "states", "seconds");
    for mutation in Mutation::ALL {
        let began = Instant::now();
        let outcome = model(mutation).search(usize::MAX);
        let found = match &outcome.counter_example {
            None => "NOTHING".to_owned(),
            Some((way, violation)) => format!("{} after {} steps", violation.guarantee(), way.len()),
        };
        is_as_expected &= outcome.counter_example.is_some();
        let (states, seconds) = (outcome.states, began.elapsed().as_secs_f32());
        println!("{mutation:<30} {:<40} {states:>8} {seconds:>7.1}  {found}", mutation.shown_by());
    }
    if is_as_expected { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn model(mutation: Mutation) -> Model {
    let scenario = SCENARIOS.into_iter().find(|scenario| scenario.name == mutation.shown_by());
    Model { scenario: scenario.expect("a test holds the names together"), mutation: Some(mutation) }
}

fn trace(name: &str) -> ExitCode {
    let Some(mutation) = Mutation::ALL.into_iter().find(|mutation| mutation.to_string() == name) else {
        let names: Vec<String> = Mutation::ALL.iter().map(ToString::to_string).collect();
        eprintln!("no such mutation; there are: {}", names.join(" "));
        return ExitCode::from(2);
    };
    let model = model(mutation);
    let Some((way, violation)) = model.search(usize::MAX).counter_example else {
        println!("no counter-example");
        return ExitCode::FAILURE;
    };
    println!("{mutation}, {}\n", model.scenario.about);
    for (number, line) in model.story(&way).iter().enumerate() {
        println!("{number:>3}  {line}");
    }
    println!("\n{violation}");
    ExitCode::SUCCESS
}
