//! One crash state: built, mounted, tracked again, and compared. G4 and G5.

use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use std::{fmt, fs};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;

use super::device::{Entry, Image, JOURNAL, Operation, Stable, Subset, TRACKED};
use super::run::{CONSUMERS, Recording, Snapshot, applied};
use super::volume::{Bench, show_boot_id, show_own_boot_id};
use super::workload::Workload;
use crate::compare::compare;
use crate::object::{Captured, Tree, show};
use crate::product::{Product, ProductArgs};

/// What the next tracker finds besides the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Restart {
    /// Another boot id and nothing mounted, as after a power loss. A catch-up scan by change times follows the recovery.
    Boot,
    /// The dead mount of its predecessor, so that there is no catch-up: what is told, the intents alone tell.
    Intents,
}

/// One crash state of a recording.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct State {
    /// All of the log before this has been submitted.
    pub(crate) cut: usize,
    /// What arrived of what no flush made stable, for each device.
    pub(crate) subsets: [Subset; 2],
    pub(crate) restart: Restart,
    /// A cursor that many acks older than the stored one is asked from as well.
    pub(crate) older: usize,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cut)?;
        for subset in self.subsets {
            match subset {
                Subset::Stable => write!(f, ",stable")?,
                Subset::All => write!(f, ",all")?,
                Subset::Random { seed, keep, sector } => write!(f, ",{seed}/{keep}/{sector}")?,
            }
        }
        let restart = match self.restart {
            Restart::Boot => "boot",
            Restart::Intents => "intents",
        };
        write!(f, ",{restart},{}", self.older)
    }
}

impl FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(',').collect();
        let [cut, tracked, journal, restart, older] = parts[..] else {
            return Err("expected CUT,TRACKED,JOURNAL,boot|intents,OLDER".to_owned());
        };
        let subset = |text: &str| {
            Ok(match text {
                "stable" => Subset::Stable,
                "all" => Subset::All,
                random => {
                    let numbers: Vec<&str> = random.split('/').collect();
                    let [seed, keep, sector] = numbers[..] else {
                        return Err(format!("{random:?} is none of stable, all, SEED/KEEP/SECTOR"));
                    };
                    Subset::Random { seed: number(seed)?, keep: number(keep)?, sector: number(sector)? }
                }
            })
        };
        let restart = match restart {
            "boot" => Restart::Boot,
            "intents" => Restart::Intents,
            other => return Err(format!("{other:?} is neither boot nor intents")),
        };
        let subsets = [subset(tracked)?, subset(journal)?];
        Ok(Self { cut: number(cut)?, subsets, restart, older: number(older)? })
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

/// What is broken on purpose, to see the check fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Break {
    /// The lines that recovery tells are left out of the answers.
    Recovered,
    /// The journal's disk says that it has flushed and has not: the state has it as it was 20 flushes earlier.
    JournalFlush,
    /// The tracked filesystem's disk does so. What is old there is older than the stable horizon.
    TrackedFlush,
}

const FLUSHES_LOST: usize = 20;
const THROUGH_MOUNT_ONE_IN: usize = 6;

/// Draws the crash states of a recording, in the order of their cuts.
pub(crate) fn draw(recording: &Recording, rng: &mut Rng, count: usize) -> Vec<State> {
    let log = &recording.log;
    let range = recording.begin..log.len() + 1;
    let of_tracked: Vec<usize> =
        range.clone().filter(|cut| *cut > 0 && log[cut - 1].device == TRACKED).collect();
    let sectors = recording.target.sectors();
    let mut states: Vec<State> = (0..count)
        .map(|_| {
            let cut = match rng.choice(&of_tracked) {
                Some(cut) if rng.bool() => *cut,
                _ => rng.usize(range.clone()),
            };
            let mut subset = || match rng.u32(0..10) {
                0 => Subset::Stable,
                1 | 2 => Subset::All,
                _ => Subset::Random {
                    seed: rng.u64(..) >> 32,
                    keep: *rng.choice(&[50, 300, 500, 700, 950]).unwrap_or(&500),
                    sector: *rng.choice(sectors).unwrap_or(&4096),
                },
            };
            let subsets = [subset(), subset()];
            let is_covered = !recording.gaps.iter().any(|gap| gap.contains(&cut));
            let restart = if rng.bool() && is_covered { Restart::Intents } else { Restart::Boot };
            State { cut, subsets, restart, older: rng.usize(1..20) }
        })
        .collect();
    states.sort_by_key(|state| state.cut);
    states
}

/// What one state has shown.
#[derive(Default)]
pub(crate) struct Verdict {
    pub(crate) answers: u64,
    pub(crate) fresh: u64,
    pub(crate) lines: u64,
    pub(crate) objects: usize,
    /// Requests that the crash could lose.
    pub(crate) unstable: usize,
    /// The stored cursor was one whose ack had not been answered.
    pub(crate) acks_in_flight: u64,
    /// There was a catch-up scan.
    pub(crate) scanned: bool,
    /// The paths of the tree that differ from the replica that was copied last before the crash: what there was to be told.
    pub(crate) stale: usize,
    /// Objects that a program wrote to while nobody tracked, of which the disk has the data and not the time of the change.
    pub(crate) hidden: u64,
    pub(crate) failures: Vec<String>,
}

/// Builds and checks the states of one recording, cuts going forward.
pub(crate) struct Checker<'a> {
    recording: &'a Recording,
    bench: &'a Bench,
    product: &'a ProductArgs,
    base: &'a Path,
    broken: Option<Break>,
    stable: [Stable; 2],
    boots: u64,
    /// There may be a gap that a catch-up before the crash had not dealt with yet.
    pub(crate) may_scan: bool,
    /// The volume is relaxed: after a power loss everyone has to be fresh.
    pub(crate) relaxed: bool,
    /// Waits for Enter before a state is taken away.
    pub(crate) hold: bool,
}

impl<'a> Checker<'a> {
    pub(crate) fn new(
        recording: &'a Recording,
        bench: &'a Bench,
        product: &'a ProductArgs,
        base: &'a Path,
        broken: Option<Break>,
    ) -> Self {
        let [tracked, journal] = recording.bases.clone();
        let stable = [Stable::new(TRACKED, tracked), Stable::new(JOURNAL, journal)];
        let may_scan = recording.workload == Workload::MixGap;
        Self {
            recording,
            bench,
            product,
            base,
            broken,
            stable,
            boots: 0,
            may_scan,
            relaxed: false,
            hold: false,
        }
    }

    fn cut_of(&self, device: usize, cut: usize) -> usize {
        let lying = match self.broken {
            Some(Break::JournalFlush) => JOURNAL,
            Some(Break::TrackedFlush) => TRACKED,
            Some(Break::Recovered) | None => return cut,
        };
        if device != lying {
            return cut;
        }
        let is_flush = |entry: &Entry| entry.device == lying && entry.operation == Operation::Flush;
        let flushes = (self.recording.begin..cut).rev().filter(|at| is_flush(&self.recording.log[*at]));
        flushes.take(FLUSHES_LOST).last().unwrap_or(cut)
    }

    /// The two images of a state.
    pub(crate) fn images(&mut self, state: &State, verdict: &mut Verdict) -> [Image; 2] {
        [TRACKED, JOURNAL].map(|device| {
            let cut = self.cut_of(device, state.cut);
            let stable = &mut self.stable[device];
            stable.advance(&self.recording.log, cut);
            verdict.unstable += stable.unstable(&self.recording.log, cut);
            stable.state(&self.recording.log, cut, state.subsets[device])
        })
    }

    /// Checks a state whose images are given. `record`: the recovery is logged.
    pub(crate) fn check(
        &mut self,
        state: &State,
        images: [Image; 2],
        record: bool,
        verdict: &mut Verdict,
    ) -> Result<()> {
        for (device, image) in images.into_iter().enumerate() {
            self.bench.devices.serve(device, image, record);
        }
        if self.hold {
            println!("the images are on {}; Enter mounts them", self.bench.loop_devices());
            std::io::stdin().read_line(&mut String::new())?;
        }
        let mut mounted = self.bench.mount(self.recording.commit_s)?;
        ensure!(self.bench.tree().is_dir(), "the tracked directory is gone");
        mounted.bind_lower()?;
        match if self.relaxed { Restart::Boot } else { state.restart } {
            Restart::Boot => {
                self.boots += 1;
                show_boot_id(self.base, self.boots)?;
            }
            Restart::Intents => {
                show_own_boot_id();
                mounted.leave_dead_mount(&self.bench.state())?;
            }
        }
        let evidence = self.base.join("evidence");
        let product = Product::new(self.product, &self.bench.tree(), &self.bench.state(), &evidence)?;
        let log = evidence.join("tracker.log");
        let logged = fs::metadata(&log).map_or(0, |metadata| metadata.len() as usize);
        let (tracking, _) = product.track()?;
        let said = fs::read(&log)?.split_off(logged);
        verdict.scanned = String::from_utf8_lossy(&said).contains("was not tracked for some time");
        if verdict.scanned && state.restart == Restart::Intents && !self.may_scan && !self.relaxed {
            verdict
                .failures
                .push("a catch-up scan, although a dead mount says that there was no gap".to_owned());
        }
        let truth = Tree::open(&self.bench.lower())?.everything().context("cannot read the tree")?;
        verdict.objects = truth.len();
        // Nobody writes, so a consumer reads what has been read already: through the tracker it takes much longer. The
        // oracle compares the mount with what is below; here it is done now and then.
        let tree = match state.older % THROUGH_MOUNT_ONE_IN {
            0 => Tree::open(&self.bench.tree())?,
            _ => Tree::Read(truth.clone()),
        };
        for (consumer, name) in CONSUMERS.iter().enumerate() {
            let snapshots = &self.recording.snapshots[consumer];
            let answer =
                product.changes(name).map_err(|error| anyhow::anyhow!("changes of {name}: {error}"))?;
            let Some(since) = &answer.since else {
                self.note_fresh(name, verdict);
                continue;
            };
            let Some(stored) = snapshots.iter().position(|snapshot| snapshot.cursor == *since) else {
                bail!("{name}: the answer begins at {since}, which was never acked");
            };
            let due = snapshots.iter().rposition(|snapshot| snapshot.acked <= state.cut);
            if due.is_some_and(|due| stored < due) {
                verdict.failures.push(format!(
                    "{name}: the ack of {:?} is forgotten",
                    due.map(|due| &snapshots[due].cursor)
                ));
            }
            // The consumer itself may be a batch ahead of the cursor that is stored for it.
            let ahead = snapshots.get(stored + 1).filter(|next| next.applied <= state.cut);
            verdict.acks_in_flight += u64::from(ahead.is_some());
            let held = ahead.unwrap_or(&snapshots[stored]);
            if consumer == 0 {
                verdict.stale = compare(&truth, &held.replica).len();
            }
            self.compare(name, held, &answer, (&tree, &truth), verdict)?;
            if consumer == 0 {
                let older = &snapshots[stored.saturating_sub(state.older)];
                let answer = product
                    .changes_since(&older.cursor)
                    .map_err(|error| anyhow::anyhow!("changes since {}: {error}", older.cursor))?;
                let name = format!("near, {} acks back", state.older);
                if answer.fresh {
                    self.note_fresh(&name, verdict);
                } else {
                    self.compare(&name, older, &answer, (&tree, &truth), verdict)?;
                }
            }
        }
        if self.hold {
            println!("mounted below {}, in a mount namespace of its own; Enter ends it", self.base.display());
            std::io::stdin().read_line(&mut String::new())?;
        }
        drop(tracking);
        drop(mounted);
        Ok(())
    }

    /// How many requests of a device a crash at this cut could lose.
    pub(crate) fn unstable(&self, device: usize, cut: usize) -> usize {
        self.stable[device].unstable(&self.recording.log, self.cut_of(device, cut))
    }

    fn note_fresh(&self, name: &str, verdict: &mut Verdict) {
        verdict.answers += 1;
        verdict.fresh += 1;
        if !self.relaxed {
            verdict.failures.push(format!("{name}: a fresh answer without a reason"));
        }
    }

    fn compare(
        &self,
        name: &str,
        held: &Snapshot,
        answer: &crate::line::Answer,
        (tree, truth): (&Tree, &BTreeMap<Vec<u8>, Captured>),
        verdict: &mut Verdict,
    ) -> Result<()> {
        let mut answer = answer.clone();
        if self.broken == Some(Break::Recovered) {
            answer.lines.retain(|line| !line.recovered);
        }
        verdict.answers += 1;
        if self.relaxed {
            verdict.failures.push(format!("{name}: relaxed, and not fresh after a power loss"));
        }
        verdict.lines += answer.lines.len() as u64;
        let replica = applied(Some(&held.replica), tree, &answer)
            .with_context(|| format!("{name} cannot apply its answer"))?;
        let mut differences = compare(truth, &replica);
        // A gap that has ended with the crash, or was not synced yet: the catch-up goes by times, which is all that there is
        // (docs/guarantees.md, "What is not promised"). Counted, so that nobody takes it for promised.
        if self.may_scan && verdict.scanned {
            let before = differences.len();
            differences.retain(|difference| !difference.only_data);
            verdict.hidden += (before - differences.len()) as u64;
        }
        if differences.is_empty() {
            return Ok(());
        }
        let mut text = format!("{name}: {} missed since {}:", differences.len(), held.cursor);
        for difference in differences.iter().take(5) {
            text += &format!("\n  {}: {}", show(&difference.path), difference.text);
        }
        let lines: Vec<String> = answer.lines.iter().take(30).map(crate::line::Line::show).collect();
        text += &format!("\n  the answer has {} lines: {}", answer.lines.len(), lines.join("; "));
        verdict.failures.push(text);
        Ok(())
    }
}
