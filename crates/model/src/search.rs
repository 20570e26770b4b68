//! Breadth-first search of all states, so that a counter-example is as short as there is one.
//!
//! A state that was seen is kept as 64 bits of its hash, and each one as the step that led to it and the state before: with ten
//! million states, two of them have the same hash with a probability of three in a million.

use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use crate::state::{Model, State, Violation};
use crate::steps::Action;

/// What a search has found.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Different states.
    pub states: usize,
    /// Steps taken from them, crashes included.
    pub steps: usize,
    /// The most steps from the beginning that any state needs.
    pub depth: usize,
    /// Everything within the bounds has been tried; otherwise the limit was reached, or a guarantee does not hold.
    pub complete: bool,
    /// The shortest way to a state in which a guarantee does not hold, if there is one.
    pub counter_example: Option<(Vec<Action>, Violation)>,
}

struct Seen {
    before: u32,
    action: Action,
}

/// A hash is spread well already.
#[derive(Default)]
struct Plain(u64);

impl std::hash::Hasher for Plain {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("only hashes are put in")
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

impl Model {
    /// Searches everything within the bounds, or until a guarantee does not hold, or that many states have been seen.
    pub fn search(&self, states_max: usize) -> Outcome {
        let hasher = BuildHasherDefault::<DefaultHasher>::default();
        let initial = self.initial();
        let mut known: HashSet<u64, BuildHasherDefault<Plain>> = HashSet::default();
        known.insert(hasher.hash_one(&initial));
        let mut seen = vec![Seen { before: 0, action: Action::Checkpoint }];
        let mut level = vec![(0_u32, initial)];
        let mut outcome = Outcome { states: 1, steps: 0, depth: 0, complete: false, counter_example: None };
        let mut actions = Vec::new();
        while !level.is_empty() {
            let mut next_level = Vec::new();
            for (index, state) in level {
                if outcome.states >= states_max {
                    return outcome;
                }
                self.actions(&state, &mut actions);
                for action in &actions {
                    outcome.steps += 1;
                    let mut next = state.clone();
                    let taken = self.take(&mut next, *action);
                    if taken.is_ok() && !known.insert(hasher.hash_one(&next)) {
                        continue;
                    }
                    outcome.states += 1;
                    if let Err(violation) = taken.and_then(|()| self.check(&next)) {
                        let mut way = vec![*action];
                        let mut at = index;
                        while at != 0 {
                            way.push(seen[at as usize].action);
                            at = seen[at as usize].before;
                        }
                        way.reverse();
                        outcome.depth += 1;
                        outcome.counter_example = Some((way, violation));
                        return outcome;
                    }
                    // After the last crash only the last question is left, and `check` has asked it.
                    let is_over =
                        matches!(action, Action::Crash { .. }) && next.crashes_left == 0 && !self.goes_on();
                    if !is_over {
                        let number = u32::try_from(seen.len()).expect("fewer than 2^32 states");
                        seen.push(Seen { before: index, action: *action });
                        next_level.push((number, next));
                    }
                }
            }
            outcome.depth += usize::from(!next_level.is_empty());
            level = next_level;
        }
        outcome.complete = true;
        outcome
    }

    /// Whether writers go on after the last crash.
    fn goes_on(&self) -> bool {
        self.scenario.crashes > 1
    }

    /// The states along a way.
    pub fn states(&self, way: &[Action]) -> Vec<State> {
        let mut states = vec![self.initial()];
        for action in way {
            let mut next = states.last().expect("never empty").clone();
            let last = self.take(&mut next, *action);
            states.push(next);
            if last.is_err() {
                break;
            }
        }
        states
    }
}
