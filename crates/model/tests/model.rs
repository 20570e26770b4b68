//! G1 to G4 in every state within the bounds; and every step that is taken away is missed.

use highwater_model::{Model, Mutation, SCENARIOS};

#[test]
fn the_protocol_holds_in_every_state() {
    for scenario in SCENARIOS {
        let model = Model { scenario, mutation: None };
        let outcome = model.search(usize::MAX);
        println!(
            "{}: {} states, {} steps, depth {}",
            scenario.name, outcome.states, outcome.steps, outcome.depth
        );
        if let Some((way, violation)) = outcome.counter_example {
            panic!("{}:\n{}\n{violation}", scenario.name, model.story(&way).join("\n"));
        }
        assert!(outcome.complete && outcome.states > 1000, "{}: {outcome:?}", scenario.name);
    }
}

#[test]
fn every_step_that_is_taken_away_is_missed() {
    for mutation in Mutation::ALL {
        let scenario = SCENARIOS.into_iter().find(|scenario| scenario.name == mutation.shown_by()).unwrap();
        let model = Model { scenario, mutation: Some(mutation) };
        let outcome = model.search(usize::MAX);
        let Some((way, violation)) = outcome.counter_example else {
            panic!("{mutation} is not found in {:?}, {} states", scenario.name, outcome.states);
        };
        println!(
            "{mutation}: {} after {} steps, {} states",
            violation.guarantee(),
            way.len(),
            outcome.states
        );
        assert_eq!(model.story(&way).len(), way.len() + 1, "each step has its line in the story");
    }
}
