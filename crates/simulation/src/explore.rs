//! Runs a list of actions, ends it in many ways at many moments, and looks whether every consumer has what is there.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use highwater_tracker::{Durability, OnFull};

use crate::action::{self, Action, End, Mix, Turn};
use crate::random::Random;
use crate::sim::{Keep, Moment, Sim};
use crate::storage::{Fate, Medium};
use crate::tree::Disorder;
use crate::world::{Settings, World};

/// A run that can be repeated.
#[derive(Clone, Debug)]
pub struct Case {
    /// What does not change.
    pub settings: Settings,
    /// For what the list does not say.
    pub seed: u64,
    /// What happens.
    pub turns: Vec<Turn>,
}

/// How a life ends that is looked at by itself, and what happens after that.
#[derive(Clone, Debug)]
pub struct Ending {
    /// At which moment of the run.
    pub moment: u32,
    /// How.
    pub end: End,
    /// What comes then, before everybody compares.
    pub turns: Vec<Turn>,
}

/// At how many moments, in how many ways.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// One moment in so many; 1: all.
    pub one_moment_in: u64,
    /// Endings for each moment.
    pub endings: u64,
}

/// What has been done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Lists of actions.
    pub runs: u64,
    /// Crashes: of the power, and kills.
    pub crashes: u64,
    /// Of these: in a recovery, or after one.
    pub again: u64,
    /// Comparisons of a consumer's copy with the tree, at an end.
    pub recoveries: u64,
}

/// A list of actions that leads to a miss.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What went wrong.
    pub what: String,
    /// The run.
    pub case: Case,
    /// The end, if the run itself was right.
    pub ending: Option<Ending>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.what)?;
        writeln!(f, "settings: {:?}", self.case.settings)?;
        for turn in &self.case.turns {
            writeln!(f, "  {}{:?}", if turn.is_nested { "  | " } else { "" }, turn.action)?;
        }
        if let Some(ending) = &self.ending {
            writeln!(f, "ends at moment {}: {:?}", ending.moment, ending.end)?;
            for turn in &ending.turns {
                writeln!(f, "  {}{:?}", if turn.is_nested { "  | " } else { "" }, turn.action)?;
            }
        }
        Ok(())
    }
}

/// The run of a seed.
#[must_use]
pub fn case_of(seed: u64) -> Case {
    let mut random = Random::derived(seed, 0);
    let durability = if random.once_in(8) { Durability::Relaxed } else { Durability::Strict };
    let with_gaps = random.once_in(4);
    let settings = Settings {
        distinct: !random.once_in(3),
        disorder: if random.once_in(3) { Disorder::Data } else { Disorder::Any },
        durability,
        on_full: if random.once_in(2) { OnFull::Overflow } else { OnFull::Fail },
        keeps_little: random.once_in(10),
        from_creation: random.once_in(10),
    };
    let most = if random.once_in(6) { 120 } else { 40 };
    let mix = Mix {
        len: 10 + random.index(most),
        is_of_writers: random.once_in(3),
        with_crashes: !random.once_in(3),
        with_gaps,
        with_clock: !with_gaps && random.once_in(5),
        with_faults: random.once_in(6),
    };
    let turns = action::generate(&mut random, mix);
    Case { settings, seed, turns }
}

fn ending(case: &Case, moment: u32, number: u64) -> Ending {
    let mut random = Random::derived(case.seed, (u64::from(moment) << 8) + number + 1000);
    let mut power = |fate| End::Power { fate, seed: random.next() };
    let end = match number {
        0 => power(Fate::Dropped),
        1 => End::Kill { is_mount_left: true },
        2 => power(Fate::Kept),
        _ if random.once_in(12) => {
            let fate = Fate::Trashed(random.next());
            End::Power { fate, seed: random.next() }
        }
        _ => {
            let fate = Fate::Random(random.next());
            End::Power { fate, seed: random.next() }
        }
    };
    let turns = match random.below(8) {
        // Dies again while it recovers, or soon after.
        0 | 1 => {
            let turn = |action| Turn { action, is_nested: false };
            vec![turn(Action::CrashIn(random.byte() % 30, action::end(&mut random)))]
        }
        2 => {
            let turn = |action| Turn { action, is_nested: false };
            vec![
                turn(Action::Tick(5000)),
                turn(Action::Horizon),
                turn(Action::Crash(action::end(&mut random))),
            ]
        }
        3 => {
            let mix = Mix {
                len: 8,
                is_of_writers: random.once_in(3),
                with_crashes: true,
                with_gaps: false,
                with_clock: false,
                with_faults: false,
            };
            action::generate(&mut random, mix)
        }
        _ => Vec::new(),
    };
    Ending { moment, end, turns }
}

fn begin(case: &Case, keep: Keep, trace: bool) -> std::sync::Arc<Sim> {
    let world = World::new(case.settings, case.seed);
    Sim::new(world, Medium::default(), case.turns.clone(), keep, trace)
}

/// Runs it, and ends it everywhere.
///
/// # Errors
/// The first thing that went wrong.
pub fn explore(case: &Case, effort: Effort, tally: &mut Tally) -> Result<(), Box<Failure>> {
    let keep = match effort.one_moment_in {
        1 => Keep::All,
        n => Keep::Some(Random::derived(case.seed, 2), n),
    };
    let sim = begin(case, keep, false);
    let outcome = sim.run();
    tally.runs += 1;
    tally.recoveries += 1;
    tally.crashes += sim.ends.load(Ordering::Relaxed);
    outcome.map_err(|what| Box::new(Failure { what, case: case.clone(), ending: None }))?;
    for moment in sim.take_moments() {
        for number in 0..effort.endings {
            let ending = ending(case, moment.number, number);
            end_at(&moment, &ending, tally, false)
                .map_err(|(what, _)| Box::new(Failure { what, case: case.clone(), ending: Some(ending) }))?;
        }
    }
    Ok(())
}

/// Runs it, and ends it at every moment in each way; and each recovery again, at each of its operations on the storage.
///
/// # Errors
/// The first thing that went wrong.
pub fn exhaust(case: &Case, tally: &mut Tally) -> Result<(), Box<Failure>> {
    let sim = begin(case, Keep::All, false);
    let outcome = sim.run();
    tally.runs += 1;
    tally.recoveries += 1;
    tally.crashes += sim.ends.load(Ordering::Relaxed);
    outcome.map_err(|what| Box::new(Failure { what, case: case.clone(), ending: None }))?;
    for moment in sim.take_moments() {
        let mut random = Random::derived(case.seed, u64::from(moment.number) + 5000);
        let mut fates = vec![Fate::Kept, Fate::Dropped];
        fates.extend((0..3).map(|_| Fate::Random(random.next())));
        let mut ends = vec![End::Kill { is_mount_left: true }];
        ends.extend(fates.into_iter().map(|fate| End::Power { fate, seed: random.next() }));
        for end in ends {
            for second in std::iter::once(None).chain((0..u8::MAX).map(Some)) {
                let again = match second {
                    Some(number) if number % 2 == 0 => End::Kill { is_mount_left: true },
                    _ => End::Power { fate: Fate::Random(random.next()), seed: random.next() },
                };
                let turns =
                    second.map(|number| Turn { action: Action::CrashIn(number, again), is_nested: false });
                let ending = Ending { moment: moment.number, end, turns: turns.into_iter().collect() };
                let before = tally.again;
                end_at(&moment, &ending, tally, false).map_err(|(what, _)| {
                    Box::new(Failure { what, case: case.clone(), ending: Some(ending) })
                })?;
                // That many operations there are not.
                if second.is_some() && tally.again == before {
                    break;
                }
            }
        }
    }
    Ok(())
}

/// A short run of a seed.
#[must_use]
pub fn small_case_of(seed: u64) -> Case {
    let mut random = Random::derived(seed, 7);
    let mut case = case_of(seed);
    let mix = Mix {
        len: 8,
        is_of_writers: random.once_in(3),
        with_crashes: false,
        with_gaps: random.once_in(5),
        with_clock: false,
        with_faults: false,
    };
    case.settings =
        Settings { from_creation: random.once_in(4), disorder: case.settings.disorder, ..Settings::PLAIN };
    case.turns = action::generate(&mut random, mix);
    case
}

fn end_at(
    moment: &Moment,
    ending: &Ending,
    tally: &mut Tally,
    trace: bool,
) -> Result<Vec<String>, (String, Vec<String>)> {
    let sim = Sim::new(moment.world.clone(), moment.medium.clone(), ending.turns.clone(), Keep::None, trace);
    let outcome = sim.recover(ending.end);
    let again = sim.ends.load(Ordering::Relaxed);
    tally.crashes += 1 + again;
    tally.again += again;
    tally.recoveries += 1 + again;
    match outcome {
        Ok(()) => Ok(sim.take_trace()),
        Err(what) => Err((what, sim.take_trace())),
    }
}

/// What happened on the way to a failure, step by step.
#[must_use]
pub fn trace(failure: &Failure) -> Vec<String> {
    let Some(ending) = &failure.ending else {
        let sim = begin(&failure.case, Keep::None, true);
        let _ = sim.run();
        return sim.take_trace();
    };
    let sim = begin(&failure.case, Keep::Only(ending.moment), true);
    let _ = sim.run();
    let mut trace = sim.take_trace();
    trace.push(format!("---- and at moment {} of this:", ending.moment));
    for moment in sim.take_moments() {
        let ended = end_at(&moment, ending, &mut Tally::default(), true);
        trace.extend(ended.unwrap_or_else(|(_, trace)| trace));
    }
    trace
}

/// Leaves out what is not needed for the failure, as far as the time allows.
#[must_use]
pub fn minimise(failure: Failure, most: Duration) -> Failure {
    let began = Instant::now();
    let mut best = failure;
    let effort = Effort { one_moment_in: 1, endings: 6 };
    let kind = |failure: &Failure| failure.what.split(':').next().unwrap_or_default().to_owned();
    let wanted = kind(&best);
    let is_of_run = best.ending.is_none();
    let fails = |case: &Case, ending: Option<&Ending>| -> Option<Failure> {
        let found = match ending {
            Some(ending) => {
                let sim = begin(case, Keep::Only(ending.moment), false);
                sim.run().err().map(|what| Failure { what, case: case.clone(), ending: None }).or_else(|| {
                    sim.take_moments().iter().find_map(|moment| {
                        let (what, _) = end_at(moment, ending, &mut Tally::default(), false).err()?;
                        Some(Failure { what, case: case.clone(), ending: Some(ending.clone()) })
                    })
                })
            }
            // A run that is wrong by itself needs no end.
            None if is_of_run => {
                let what = begin(case, Keep::None, false).run().err();
                what.map(|what| Failure { what, case: case.clone(), ending: None })
            }
            None => explore(case, effort, &mut Tally::default()).err().map(|failure| *failure),
        };
        found.filter(|failure| kind(failure) == wanted)
    };
    // First of the end, then of the run, which changes the numbers of the moments.
    if let Some(ending) = &mut best.ending.clone() {
        let mut index = 0;
        while index < ending.turns.len() {
            let mut shorter = ending.clone();
            shorter.turns.remove(index);
            match fails(&best.case, Some(&shorter)) {
                Some(failure) => {
                    best = failure;
                    *ending = shorter;
                }
                None => index += 1,
            }
        }
    }
    let mut size = (best.case.turns.len() / 2).max(1);
    loop {
        let mut has_shrunk = false;
        let mut from = 0;
        while from < best.case.turns.len() && began.elapsed() < most {
            let mut shorter = best.case.clone();
            let to = (from + size).min(shorter.turns.len());
            shorter.turns.drain(from..to);
            match fails(&shorter, None) {
                Some(failure) => {
                    best = failure;
                    has_shrunk = true;
                }
                None => from += size,
            }
        }
        if size == 1 && !has_shrunk || began.elapsed() >= most {
            return best;
        }
        size = (size / 2).max(1);
    }
}
