//! Real crash images: every disk that a power loss may leave is mounted, tracked again, and compared. G4 and G5.
//!
//! The tracked filesystem and the journal's are on loop devices whose files a recorder of our own serves (`fuse.rs`), so that every
//! write and every flush of both is known in one order (`device.rs`). A *run* records the product, a workload and two consumers
//! (`run.rs`). From its log any crash state can be built: what was flushed before the cut is there, and of the rest any subset, torn
//! at sectors. Each state is mounted, so that the filesystem recovers itself, the tracker is started on it, and each consumer gets
//! its answer for the cursor that is stored in the state, and applies it to the replica that it had then. If that is not the
//! tree as it is on the disk now, something was missed (`check.rs`). Telling more than needed passes.
//!
//! The recorded run is not deterministic, the kernel takes part in it; the states of a recording are. A failing run is kept in a
//! file, from which its states are built again (`archive.rs`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum as _;
use fastrand::Rng;

use crate::cleanup::Guard;
use crate::product::ProductArgs;
use check::{Break, Checker, State, Verdict};
use device::{JOURNAL, TRACKED};
use run::{Plan, Recording, Snapshot, record};
use volume::{Bench, Target, Unmountable};
use workload::Workload;

mod archive;
mod check;
mod device;
mod fuse;
mod run;
mod volume;
mod workload;

const PROGRESS_EVERY: Duration = Duration::from_secs(15);
/// A filesystem may have bugs of its own; if more than one state in so many cannot be mounted, the states are wrong.
const UNMOUNTABLE_ONE_IN: u64 = 200;
/// Linux 6.18 refuses some journals with fast commits even where nothing was lost.
const FAST_COMMIT_UNMOUNTABLE_ONE_IN: u64 = 5;
/// One state in so many is crashed again while the tracker recovers.
const AGAIN_ONE_IN: u32 = 12;

/// Power losses on real disk images: what a crash may leave is built, mounted, and asked.
///
/// Runs are recorded in turn on each filesystem with each workload; from each a
/// number of crash states is drawn. A failing run is kept in a file, and printed
/// with the state that failed; --replay builds it again.
///
/// Examples:
///   torture crash-images --states 1000 --seed 1
///   torture crash-images --on xfs,xfs-beside --workload git --states 200
///   torture crash-images --replay FILE --state 51234,all,77/500/512,boot,3
#[derive(Clone, Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct CrashImagesArgs {
    /// Filesystems, with the journal on a device of its own or beside the tree. Default: all.
    #[arg(long, value_enum, value_delimiter = ',')]
    on: Vec<Target>,
    /// Workloads. Default: all.
    #[arg(long, value_enum, value_delimiter = ',')]
    workload: Vec<Workload>,
    /// Stops when so many crash states have been checked. Default: 300.
    #[arg(long)]
    states: Option<u64>,
    /// Stops after the run in which this time is over; then --states counts only if it is given.
    #[arg(long)]
    seconds: Option<u64>,
    /// Crash states of one recorded run.
    #[arg(long, default_value_t = 100)]
    states_per_run: usize,
    /// How long a run is recorded, in seconds.
    #[arg(long, default_value_t = 8)]
    seconds_per_run: u64,
    /// How often the stable horizon moves while it is recorded, in milliseconds.
    #[arg(long, default_value_t = 1500)]
    horizon_ms: u64,
    /// Of the first run; each further one has the next. Drawn at random if not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Goes on after a failure, and fails at the end.
    #[arg(long)]
    keep_going: bool,
    /// The volume is relaxed. Then every consumer has to be fresh after each power loss.
    #[arg(long, conflicts_with = "broken")]
    relaxed: bool,
    /// Broken on purpose, to see the check fail.
    #[arg(long = "break", value_enum, value_name = "WHAT")]
    broken: Option<Break>,
    /// Builds states of this recording, which a failing run has left.
    #[arg(long, value_name = "FILE", requires = "state")]
    replay: Option<PathBuf>,
    /// With --replay: the state, as printed at its failure. May be repeated.
    #[arg(long, value_name = "STATE")]
    state: Vec<State>,
    /// With --replay: waits for Enter before the images are mounted, and before they are taken away.
    #[arg(long, requires = "replay")]
    hold: bool,
    /// Where the run's directory is made.
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    #[command(flatten)]
    product: ProductArgs,
}

#[derive(Default)]
struct Tally {
    runs: u64,
    requests: u64,
    states: u64,
    again: u64,
    answers: u64,
    fresh: u64,
    /// States in which the consumer's copy was not the tree on the disk: what there was to be told.
    stale: u64,
    acks_in_flight: u64,
    scanned: u64,
    hidden: u64,
    failed: u64,
    unmountable: u64,
    checking: Duration,
}

struct Session<'a> {
    arguments: &'a CrashImagesArgs,
    base: PathBuf,
    evidence: PathBuf,
    product: ProductArgs,
    tallies: BTreeMap<(Target, Workload), Tally>,
    begun: Instant,
    told: Instant,
    failures: Vec<String>,
    unmountable: u64,
}

/// Runs it.
pub(crate) fn main(arguments: &CrashImagesArgs) -> Result<()> {
    if volume::in_own_namespaces()? {
        return Ok(());
    }
    crate::mapping::survive_sigbus();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(1..1_000_000));
    let parent = arguments.base.clone().unwrap_or_else(std::env::temp_dir);
    let base = parent.join(format!("highwater-crash-images-{}", volume::outer_pid().unwrap_or_default()));
    fs::create_dir_all(&base).with_context(|| format!("cannot make {}", base.display()))?;
    let base = base.canonicalize()?;
    let _undo = Guard::new({
        let base = base.clone();
        move || {
            // Not recursive where something may be mounted or is evidence.
            let _ = fs::remove_file(base.join("boot_id"));
            for name in ["recorder", "mnt", "journal", "lower", "evidence", ""] {
                let _ = fs::remove_dir(base.join(name));
            }
        }
    });
    let mut product = arguments.product.clone();
    product.track_args.push(format!("--horizon-ms={}", arguments.horizon_ms));
    if arguments.relaxed {
        product.track_args.extend(["--source=fuse".to_owned(), "--durability=relaxed".to_owned()]);
    }
    let evidence = base.join("evidence");
    fs::create_dir_all(&evidence)?;
    let mut session = Session {
        arguments,
        evidence,
        base,
        product,
        tallies: BTreeMap::new(),
        begun: Instant::now(),
        told: Instant::now(),
        failures: Vec::new(),
        unmountable: 0,
    };
    if let Some(file) = &arguments.replay {
        return session.replay(file);
    }
    println!("crash-images: seed {seed}, evidence in {}", session.evidence.display());
    let outcome = session.runs(seed);
    session.print_table();
    outcome?;
    if !session.failures.is_empty() {
        bail!("crash-images: {} failing states", session.failures.len())
    }
    for (what, fast_commit, one_in) in [
        ("ext4 with fast commits", true, FAST_COMMIT_UNMOUNTABLE_ONE_IN),
        ("the others", false, UNMOUNTABLE_ONE_IN),
    ] {
        let of = session
            .tallies
            .iter()
            .filter(|((target, _), _)| (*target == Target::Ext4FastCommit) == fast_commit);
        let (bad, all) = of.fold((0, 0), |(bad, all), (_, tally)| {
            (bad + tally.unmountable, all + tally.states + tally.again)
        });
        // One alone is no share.
        if bad > 1 && bad * one_in > all {
            bail!(
                "crash-images: {bad} of {all} states of {what} could not be mounted: they may be none that can be"
            )
        }
    }
    if session.unmountable == 0 {
        let _ = fs::remove_dir_all(&session.evidence);
    }
    println!("crash-images: PASS");
    Ok(())
}

impl Session<'_> {
    fn total(&self) -> u64 {
        self.tallies.values().map(|tally| tally.states + tally.again).sum()
    }

    /// How many states are still to be checked.
    fn left(&self) -> u64 {
        let wanted = self.arguments.states.unwrap_or(match self.arguments.seconds {
            Some(_) => u64::MAX,
            None => 300,
        });
        wanted.saturating_sub(self.total())
    }

    fn runs(&mut self, seed: u64) -> Result<()> {
        let arguments = self.arguments;
        let targets = or_all(&arguments.on);
        let workloads = or_all(&arguments.workload);
        let deadline = arguments.seconds.map(Duration::from_secs);
        for seed in seed.. {
            if self.left() == 0 || deadline.is_some_and(|deadline| self.begun.elapsed() > deadline) {
                return Ok(());
            }
            // The pairs come in turn, each filesystem first: which one it is, the seed says.
            let turn = seed as usize;
            let target = targets[turn % targets.len()];
            let workload = workloads[(turn + turn / targets.len()) % workloads.len()];
            self.run(target, workload, seed).with_context(|| {
                format!(
                    "run of seed {seed}: {} on {} (evidence: {})",
                    workload.name(),
                    target.name(),
                    self.evidence.display()
                )
            })?;
            if !self.failures.is_empty() && !arguments.keep_going {
                return Ok(());
            }
        }
        Ok(())
    }

    fn run(&mut self, target: Target, workload: Workload, seed: u64) -> Result<()> {
        let bench = Bench::new(&self.base, target)?;
        let duration = Duration::from_secs(self.arguments.seconds_per_run);
        let plan = Plan { target, workload, seed, duration, product: &self.product, base: &self.base };
        let recording = record(&plan, &bench)?;
        let tally = self.tallies.entry((target, workload)).or_default();
        tally.runs += 1;
        tally.requests += recording.log.len() as u64;
        let mut rng = Rng::with_seed(seed ^ 0x7374_6174);
        let count = self.arguments.states_per_run.min(usize::try_from(self.left()).unwrap_or(usize::MAX));
        let states = check::draw(&recording, &mut rng, count);
        // Checkers hold the recording; the session counts.
        let product = self.product.clone();
        let base = self.base.clone();
        let mut checker = Checker::new(&recording, &bench, &product, &base, self.arguments.broken);
        checker.relaxed = self.arguments.relaxed;
        for state in &states {
            let again = rng.u32(0..AGAIN_ONE_IN) == 0;
            let begun = Instant::now();
            let mut verdict = Verdict::default();
            let images = checker.images(state, &mut verdict);
            let kept = again.then(|| images.clone());
            let outcome = checker.check(state, images, again, &mut verdict);
            let failed = self.count(&recording, state, begun, verdict, outcome, false)?;
            if let Some(images) = kept.filter(|_| !failed) {
                self.again(&recording, &bench, state, images, &mut rng)?;
            }
            if !self.failures.is_empty() && !self.arguments.keep_going {
                break;
            }
        }
        Ok(())
    }

    /// Crashes a second time, anywhere in the recovery that has just been recorded.
    fn again(
        &mut self,
        recording: &Recording,
        bench: &Bench,
        first: &State,
        images: [device::Image; 2],
        rng: &mut Rng,
    ) -> Result<()> {
        let snapshots = recording.snapshots.clone().map(|list| {
            let seen = list.into_iter().filter(|snapshot| snapshot.applied <= first.cut);
            let seen = seen.map(|snapshot| Snapshot {
                applied: 0,
                acked: if snapshot.acked <= first.cut { 0 } else { usize::MAX },
                ..snapshot
            });
            seen.collect()
        });
        // In a gap nothing covered the tree, and nothing has since.
        let was_gap = recording.gaps.iter().any(|gap| gap.contains(&first.cut));
        let second = Recording {
            gaps: if was_gap { vec![0..=usize::MAX] } else { Vec::new() },
            bases: images,
            log: bench.devices.end_recording(),
            begin: 0,
            snapshots,
            ..*recording
        };
        let (product, base) = (self.product.clone(), self.base.clone());
        let mut checker = Checker::new(&second, bench, &product, &base, self.arguments.broken);
        // The first restart may have begun one.
        checker.may_scan = true;
        checker.relaxed = self.arguments.relaxed;
        for state in check::draw(&second, rng, 2) {
            let begun = Instant::now();
            let mut verdict = Verdict::default();
            let images = checker.images(&state, &mut verdict);
            let outcome = checker.check(&state, images, false, &mut verdict);
            self.count(&second, &state, begun, verdict, outcome, true)?;
        }
        Ok(())
    }

    /// Counts a state. Gives whether it failed; then its recording is kept.
    fn count(
        &mut self,
        recording: &Recording,
        state: &State,
        begun: Instant,
        mut verdict: Verdict,
        outcome: Result<()>,
        again: bool,
    ) -> Result<bool> {
        let unmountable = matches!(&outcome, Err(error) if error.is::<Unmountable>());
        if let Err(error) = outcome {
            verdict.failures.push(format!("{error:#}"));
        }
        let tally = self.tallies.entry((recording.target, recording.workload)).or_default();
        *(if again { &mut tally.again } else { &mut tally.states }) += 1;
        tally.answers += verdict.answers;
        tally.fresh += verdict.fresh;
        tally.stale += u64::from(verdict.stale > 0);
        tally.acks_in_flight += verdict.acks_in_flight;
        tally.scanned += u64::from(verdict.scanned);
        tally.hidden += verdict.hidden;
        tally.checking += begun.elapsed();
        let failed = !verdict.failures.is_empty();
        if failed {
            *(if unmountable { &mut tally.unmountable } else { &mut tally.failed }) += 1;
            let (target, workload, seed) =
                (recording.target.name(), recording.workload.name(), recording.seed);
            let kind = if again { "-again" } else { "" };
            // Of a recovery there is one recording for each; of a run one for all its states.
            let label = if again { format!("-{}", self.failures.len()) } else { String::new() };
            let file = self.evidence.join(format!("{target}-{workload}-{seed}{kind}{label}.recording"));
            if !file.exists() {
                archive::save(recording, &file)?;
            }
            let text = format!(
                "{target}, {workload}, seed {seed}{kind}: state {state} ({} requests, {} objects):\n{}\n\
                 build it again: torture crash-images --replay {} --state {state}{}{}",
                verdict.unstable,
                verdict.objects,
                verdict.failures.join("\n"),
                file.display(),
                match self.arguments.broken {
                    Some(broken) => format!(
                        " --break {}",
                        broken.to_possible_value().map_or_else(String::new, |v| v.get_name().to_owned())
                    ),
                    None if self.arguments.relaxed => " --relaxed".to_owned(),
                    None => String::new(),
                },
                self.arguments.product.rerun(),
            );
            if unmountable {
                println!("crash-images: UNMOUNTABLE: {text}");
                self.unmountable += 1;
            } else {
                println!("crash-images: FAIL: {text}");
                self.failures.push(text);
            }
        }
        if self.told.elapsed() > PROGRESS_EVERY {
            self.told = Instant::now();
            let (states, seconds) = (self.total(), self.begun.elapsed().as_secs_f64());
            println!(
                "crash-images: {states} states in {seconds:.0} s, {:.1} a second, {} failed, {} unmountable",
                states as f64 / seconds,
                self.failures.len(),
                self.unmountable
            );
        }
        Ok(failed)
    }

    fn replay(&mut self, file: &Path) -> Result<()> {
        let recording = archive::load(file)?;
        let (base, product) = (self.base.clone(), self.product.clone());
        let bench = Bench::new(&base, recording.target)?;
        let mut states = self.arguments.state.clone();
        states.sort_by_key(|state| state.cut);
        println!(
            "crash-images: {} on {}, {} requests, cuts from {} on; {} and {} snapshots",
            recording.workload.name(),
            recording.target.name(),
            recording.log.len(),
            recording.begin,
            recording.snapshots[0].len(),
            recording.snapshots[1].len()
        );
        let mut checker = Checker::new(&recording, &bench, &product, &base, self.arguments.broken);
        checker.relaxed = self.arguments.relaxed;
        checker.hold = self.arguments.hold;
        for state in &states {
            let mut verdict = Verdict::default();
            anyhow::ensure!(
                state.cut <= recording.log.len(),
                "the recording ends at {}",
                recording.log.len()
            );
            let images = checker.images(state, &mut verdict);
            let outcome = checker.check(state, images, false, &mut verdict);
            if let Err(error) = outcome {
                verdict.failures.push(format!("{error:#}"));
            }
            println!(
                "state {state}: {} unstable requests (tracked {}, journal {}), {} objects, {} answers, {} fresh, {} lines",
                verdict.unstable,
                checker.unstable(TRACKED, state.cut),
                checker.unstable(JOURNAL, state.cut),
                verdict.objects,
                verdict.answers,
                verdict.fresh,
                verdict.lines
            );
            self.failures.append(&mut verdict.failures);
        }
        for failure in &self.failures {
            println!("{failure}");
        }
        anyhow::ensure!(self.failures.is_empty(), "crash-images: {} failures", self.failures.len());
        println!("crash-images: PASS");
        Ok(())
    }

    fn print_table(&self) {
        println!(
            "{:<17} {:<10} {:>4} {:>8} {:>7} {:>6} {:>7} {:>7} {:>7} {:>6} {:>6} {:>6} {:>7} {:>8}",
            "on",
            "workload",
            "runs",
            "requests",
            "states",
            "again",
            "stale",
            "answers",
            "scans",
            "ahead",
            "fresh",
            "failed",
            "unmount",
            "ms/state"
        );
        let mut sum = Tally::default();
        for ((target, workload), tally) in &self.tallies {
            print_row(target.name(), workload.name(), tally);
            sum.runs += tally.runs;
            sum.requests += tally.requests;
            sum.states += tally.states;
            sum.again += tally.again;
            sum.answers += tally.answers;
            sum.fresh += tally.fresh;
            sum.stale += tally.stale;
            sum.scanned += tally.scanned;
            sum.hidden += tally.hidden;
            sum.acks_in_flight += tally.acks_in_flight;
            sum.failed += tally.failed;
            sum.unmountable += tally.unmountable;
            sum.checking += tally.checking;
        }
        print_row("all", "", &sum);
        println!(
            "(again: crashed once more in the recovery; stale: the consumer's copy was not what is on the disk, so there was \
             something to be told; scans: there was a catch-up; ahead: the consumer had applied a batch whose ack was not \
             stored; unmount: the filesystem could not recover itself) {:.0} s",
            self.begun.elapsed().as_secs_f64()
        );
        if sum.hidden > 0 {
            println!(
                "{} times a file was not told that was written to in a gap, and of which the disk had the data and not the time: \
                 docs/guarantees.md does not promise that",
                sum.hidden
            );
        }
    }
}

fn print_row(target: &str, workload: &str, tally: &Tally) {
    let states = tally.states + tally.again;
    println!(
        "{target:<17} {workload:<10} {:>4} {:>8} {:>7} {:>6} {:>7} {:>7} {:>7} {:>6} {:>6} {:>6} {:>7} {:>8.0}",
        tally.runs,
        tally.requests,
        tally.states,
        tally.again,
        tally.stale,
        tally.answers,
        tally.scanned,
        tally.acks_in_flight,
        tally.fresh,
        tally.failed,
        tally.unmountable,
        tally.checking.as_secs_f64() * 1e3 / (states.max(1) as f64)
    );
}

fn or_all<T: clap::ValueEnum + Clone>(given: &[T]) -> Vec<T> {
    if given.is_empty() { T::value_variants().to_vec() } else { given.to_vec() }
}
