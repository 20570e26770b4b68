//! Kill -9 at every system call that changes something.
//!
//! What survives a killed process is what the kernel has: files, names, mounts, sockets. The tracker changes that by system
//! calls only; it maps no file that it writes to (the journal is written by `pwrite`). So between two such calls it makes no
//! difference where it dies, and a kill before each of them is a kill at every instruction. Calls of several threads can
//! overlap; then the one that is not killed at happens or does not, as it would.
//!
//! Each trial: bring the volume into a state, let a phase run behind the [`gate`](super::gate) and kill the tracker at call
//! k, track again, and compare a consumer's replica with the tree. G4 and G5 for a killed tracker; and nothing that was
//! acked may be forgotten, no answer fresh, the plain directory never reachable while a dead mount should cover it.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;

use super::consumer::{Consumer, Fresh, Trouble};
use super::gated::{Gated, Roots};
use super::script::{self, Held};
use crate::product::{Product, ProductArgs};
use crate::scratch::{Filesystem, Scratch, is_mounted, keep_no_mounts_of_others, own_mounts, unmount_all};

/// More calls than any phase has: a phase that does not end is a bug here.
const CALLS_MAX: u64 = 3000;

/// Kill -9 the tracker at each system call that changes something, track again, compare.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct KillPointsArgs {
    /// What the tree is on: ext4, xfs, btrfs, tmpfs, or a directory.
    #[arg(long, default_value = "ext4", value_name = "FS|DIR")]
    dir_fs: Filesystem,
    /// Only these phases; may be repeated. Default: all.
    #[arg(long = "phase", value_enum)]
    phases: Vec<Phase>,
    /// Kills at random calls for so many seconds, instead of at each call once.
    #[arg(long)]
    seconds: Option<u64>,
    /// Kills at every n-th call only.
    #[arg(long, default_value_t = 1, conflicts_with = "seconds")]
    step: u64,
    /// Only at this call, to look at a failure again.
    #[arg(long, conflicts_with_all = ["seconds", "step"])]
    at: Option<u64>,
    /// Of --seconds. Drawn at random if not given.
    #[arg(long)]
    seed: Option<u64>,
    #[command(flatten)]
    product: ProductArgs,
}

/// What is going on when the tracker is killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum Phase {
    /// The first start, on an empty state.
    First,
    /// A start after a clean stop, with changes in between: catch-up.
    Start,
    /// A start after a kill: recovery, and the new mount goes beneath the dead one.
    Recover,
    /// Ordinary operations.
    Operations,
    /// A consumer asks and acks, others are added and removed.
    Ask,
    /// The stable horizon moves, while operations go on.
    Horizon,
    /// A clean stop.
    Stop,
}

const PHASES: [Phase; 7] =
    [Phase::First, Phase::Start, Phase::Recover, Phase::Operations, Phase::Ask, Phase::Horizon, Phase::Stop];

/// Runs it.
pub(crate) fn main(arguments: &KillPointsArgs) -> Result<()> {
    own_mounts()?;
    keep_no_mounts_of_others()?;
    crate::mapping::survive_sigbus();
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(1..1_000_000_000));
    let phases = if arguments.phases.is_empty() { PHASES.to_vec() } else { arguments.phases.clone() };
    // A kill leaves what the kernel has: no disk is needed, and syncs cost nothing in memory.
    let memory = Path::new("/dev/shm");
    let scratch = Scratch::new(&arguments.dir_fs, memory.is_dir().then_some(memory), "kill-points", 256)?;
    let mut world = World::new(arguments, &scratch)?;
    let begun = Instant::now();
    let outcome = match arguments.seconds {
        Some(seconds) => world.sample(&phases, seed, begun + Duration::from_secs(seconds)),
        None => world.all(&phases, arguments),
    };
    outcome.with_context(|| {
        let at = format!("--phase {:?} --at {}", world.at.0, world.at.1).to_lowercase();
        let fs = &arguments.dir_fs;
        format!(
            "kill-points: FAIL; evidence: {}; again: torture kill-points --dir-fs {fs} {at}{}",
            scratch.evidence.display(),
            arguments.product.rerun()
        )
    })?;
    scratch.discard_evidence();
    let kills: u64 = world.killed.values().sum();
    for (phase, calls) in &world.calls {
        println!("  {phase:?}: {} calls", calls.len());
    }
    println!("  killed before, by what the call does:");
    for (name, count) in &world.killed {
        println!("    {count:5}  {name}");
    }
    println!(
        "kill-points: PASS: {kills} kills at {} kinds of calls, {} answers compared, {:.1} s (seed {seed})",
        world.killed.len(),
        world.answers,
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

/// The volume that is killed again and again.
struct World<'a> {
    scratch: &'a Scratch,
    product: Product,
    roots: Roots,
    tracker: Option<Gated>,
    consumer: Option<Consumer>,
    round: u64,
    held: Held,
    /// The plain directory was seen when a mount should have covered it.
    uncovered: AtomicU64,
    /// The calls that each phase has when nobody kills, in the order in which they came.
    calls: BTreeMap<Phase, Vec<String>>,
    killed: BTreeMap<String, u64>,
    answers: u64,
    /// Where it is, for the report of a failure.
    at: (Phase, u64),
}

impl<'a> World<'a> {
    fn new(arguments: &KillPointsArgs, scratch: &'a Scratch) -> Result<Self> {
        script::prepare(&scratch.tree)?;
        let product = Product::new(&arguments.product, &scratch.tree, &scratch.state, &scratch.evidence)?;
        let roots = Roots { state: scratch.state.clone(), tree: scratch.tree.clone() };
        let mut world = Self {
            scratch,
            product,
            roots,
            tracker: None,
            consumer: None,
            round: 1,
            held: Held::open(Path::new("/nowhere")),
            uncovered: AtomicU64::new(0),
            calls: BTreeMap::new(),
            killed: BTreeMap::new(),
            answers: 0,
            at: (Phase::First, 0),
        };
        world.track()?;
        world.consumer = Some(Consumer::add(&world.product, "kills")?);
        world.check(Fresh::Never)?;
        Ok(world)
    }

    fn all(&mut self, phases: &[Phase], arguments: &KillPointsArgs) -> Result<()> {
        for phase in phases {
            let first = arguments.at.unwrap_or(1);
            let mut k = first;
            loop {
                let ended = self.trial(*phase, k)?;
                if ended || arguments.at.is_some() {
                    break;
                }
                k += arguments.step;
                ensure!(k < CALLS_MAX, "{phase:?} does not end");
            }
            println!("kill-points: {phase:?}: killed at calls {first} to {k}");
        }
        Ok(())
    }

    fn sample(&mut self, phases: &[Phase], seed: u64, deadline: Instant) -> Result<()> {
        for phase in phases {
            self.trial(*phase, CALLS_MAX)?;
        }
        // By name first: most calls are answers to the kernel, and the rare ones are the interesting ones.
        let mut named: BTreeMap<(Phase, String), Vec<u64>> = BTreeMap::new();
        for (phase, calls) in &self.calls {
            for (index, name) in calls.iter().enumerate() {
                named.entry((*phase, name.clone())).or_default().push(index as u64 + 1);
            }
        }
        let named: Vec<((Phase, String), Vec<u64>)> = named.into_iter().collect();
        let mut rng = Rng::with_seed(seed);
        let mut order = Vec::new();
        while Instant::now() < deadline {
            if order.is_empty() {
                order = (0..named.len()).collect();
                rng.shuffle(&mut order);
            }
            let ((phase, _), calls) = &named[order.pop().unwrap_or(0)];
            self.trial(*phase, calls[rng.usize(0..calls.len())])?;
        }
        Ok(())
    }

    /// One kill, or none if the phase has fewer calls: true. Leaves a tracker running, and the replica equal to the tree.
    fn trial(&mut self, phase: Phase, k: u64) -> Result<bool> {
        self.at = (phase, k);
        self.round += 1;
        let begun = Instant::now();
        self.phase(phase, k)
            .with_context(|| format!("in {phase:?}, killed at call {k}, round {}", self.round))?;
        let tracker = self.tracker.as_mut().context("no tracker")?;
        tracker.disarm();
        let killed_at = tracker.killed_at();
        let ended = killed_at.is_none();
        if ended {
            self.calls.insert(phase, tracker.seen());
        }
        let killed = killed_at.clone().unwrap_or_default();
        self.verify(phase, killed_at).with_context(|| {
            format!("in {phase:?}, killed at call {k} (`{killed}`), round {}", self.round)
        })?;
        if std::env::var_os("KILL_POINTS_TRACE").is_some() {
            println!("{phase:?} {k} `{killed}` {:?}", begun.elapsed());
        }
        Ok(ended)
    }

    /// Runs a phase; the tracker may be dead after it.
    fn phase(&mut self, phase: Phase, k: u64) -> Result<()> {
        let (tree, round) = (self.scratch.tree.clone(), self.round);
        match phase {
            Phase::First => {
                self.stop()?;
                std::fs::remove_dir_all(&self.scratch.state)?;
                self.consumer = None;
                self.start(Some(k))?;
                if let Ok(mut consumer) = Consumer::add(&self.product, "kills")
                    && consumer.turn(&self.product, &tree, Fresh::Never).is_ok()
                {
                    self.consumer = Some(consumer);
                }
            }
            Phase::Start => {
                self.stop()?;
                script::run(&tree, round);
                if self.start(Some(k))? {
                    self.held = Held::open(&tree);
                    self.turn()?;
                }
            }
            Phase::Recover => {
                script::run(&tree, round);
                self.turn()?;
                self.held = Held::open(&tree);
                self.held.write(round, "before");
                std::fs::write(tree.join("top"), format!("not yet told {round}"))?;
                self.kill()?;
                self.held.write(round, "dead");
                if self.start(Some(k))? {
                    self.turn()?;
                }
            }
            Phase::Operations => {
                self.held = Held::open(&tree);
                self.arm(k)?;
                self.held.write(round, "alive");
                script::run(&tree, round);
                self.held.write(round, "end");
            }
            Phase::Ask => {
                script::run(&tree, round);
                self.held = Held::open(&tree);
                self.held.write(round, "alive");
                self.arm(k)?;
                self.turn()?;
                let _ = self.product.add_consumer("other");
                std::fs::write(tree.join("top"), format!("asked {round}")).ok();
                self.turn()?;
                let _ = self.product.remove_consumer("other");
            }
            Phase::Horizon => {
                self.kill()?;
                self.track()?;
                self.turn()?;
                self.held = Held::open(&tree);
                self.arm(k)?;
                self.wait_for_the_horizon();
                self.held.write(round, "horizon");
                script::run(&tree, round);
            }
            Phase::Stop => {
                script::run(&tree, round);
                self.turn()?;
                std::fs::write(tree.join("top"), format!("not yet told {round}"))?;
                self.held = Held::open(Path::new("/nowhere"));
                self.arm(k)?;
                // It may be killed in the middle of it.
                let _ = self.product.command("stop").arg(&tree).output();
            }
        }
        Ok(())
    }

    /// After a kill, or none: tracks again and compares.
    fn verify(&mut self, phase: Phase, killed_at: Option<String>) -> Result<()> {
        let tree = self.scratch.tree.clone();
        if let Some(name) = killed_at {
            *self.killed.entry(format!("{name} ({phase:?})")).or_default() += 1;
            let tracker = self.tracker.as_mut().context("no tracker")?;
            let status = tracker.end()?;
            ensure!(
                std::os::unix::process::ExitStatusExt::signal(&status) == Some(libc::SIGKILL),
                "the tracker ended with {status} and was not killed (see tracker.log)"
            );
            self.tracker = None;
            self.held.write(self.round, "killed");
        } else if phase == Phase::Stop {
            let status = self.tracker.as_mut().context("no tracker")?.end()?;
            ensure!(status.success(), "the stop ended with {status}");
            self.tracker = None;
        }
        if self.tracker.is_none() {
            if !is_mounted(&tree) {
                // Not tracked: what is changed now is for the catch-up.
                script::in_the_gap(&tree, self.round)?;
            }
            self.track().context("tracking again")?;
            self.held.write(self.round, "again");
        }
        if self.consumer.is_none() {
            // Killed before it was there, or before it was told so.
            let _ = self.product.remove_consumer("kills");
            self.consumer = Some(Consumer::add(&self.product, "kills")?);
        }
        self.check(Fresh::Never)?;
        script::run(&tree, self.round + 1_000_000);
        self.check(Fresh::Never).context("after another round of operations")?;
        ensure!(
            // ORDERING: the thread that counts has been joined.
            self.uncovered.load(Ordering::Relaxed) == 0,
            "the plain directory could be reached while a dead mount should have covered it"
        );
        Ok(())
    }

    /// Starts a tracker, killed at a call. True: it tracks. Watches that the directory below is not seen if it is covered now.
    fn start(&mut self, kill_at: Option<u64>) -> Result<bool> {
        let tree = &self.scratch.tree;
        let below = std::fs::metadata(&self.scratch.lower)?.dev();
        let is_covered = is_mounted(tree);
        let (over, uncovered) = (AtomicBool::new(false), &self.uncovered);
        let mut tracker = Gated::start(&self.product, kill_at, &self.roots)?;
        let tracks = std::thread::scope(|scope| {
            if is_covered {
                scope.spawn(|| {
                    // ORDERING: a flag and a counter; the scope joins.
                    while !over.load(Ordering::Relaxed) {
                        if std::fs::metadata(tree).is_ok_and(|found| found.dev() == below) {
                            uncovered.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                });
            }
            let tracks = tracker.tracks();
            // ORDERING: as above.
            over.store(true, Ordering::Relaxed);
            tracks
        });
        self.tracker = Some(tracker);
        tracks
    }

    fn track(&mut self) -> Result<()> {
        if !self.start(None)? {
            let log = std::fs::read_to_string(self.scratch.evidence.join("tracker.log")).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(4).collect();
            bail!("the tracker ended before it tracked: {}", tail.join(" | "));
        }
        Ok(())
    }

    fn arm(&self, k: u64) -> Result<()> {
        self.tracker.as_ref().context("no tracker")?.arm(k);
        Ok(())
    }

    fn kill(&mut self) -> Result<()> {
        match self.tracker.take() {
            Some(mut tracker) => tracker.kill(),
            None => Ok(()),
        }
    }

    fn stop(&mut self) -> Result<()> {
        self.held = Held::open(Path::new("/nowhere"));
        let Some(mut tracker) = self.tracker.take() else { return Ok(()) };
        let output = self.product.command("stop").arg(&self.scratch.tree).output()?;
        ensure!(output.status.success(), "stop: {}", String::from_utf8_lossy(&output.stderr));
        ensure!(tracker.end()?.success(), "the tracker failed at its stop");
        Ok(())
    }

    /// One answer, applied and acked. The tracker may be killed in the middle of it.
    fn turn(&mut self) -> Result<()> {
        let consumer = self.consumer.as_mut().context("no consumer")?;
        match consumer.turn(&self.product, &self.scratch.tree, Fresh::Never) {
            Ok(_) => self.answers += 1,
            Err(Trouble::Wrong(why)) => bail!("{why}"),
            Err(Trouble::Away(_)) => {}
        }
        Ok(())
    }

    fn check(&mut self, fresh: Fresh) -> Result<()> {
        let consumer = self.consumer.as_mut().context("no consumer")?;
        consumer.check(&self.product, &self.scratch.tree, fresh)?;
        self.answers += 1;
        Ok(())
    }

    /// A tracker that has recovered moves the horizon soon. Returns when it has, or is dead, or has been before we looked.
    fn wait_for_the_horizon(&self) {
        let file = self.scratch.state.join("horizon");
        let changed = || std::fs::metadata(&file).map(|found| found.ino()).ok();
        let (before, deadline) = (changed(), Instant::now() + Duration::from_millis(150));
        while changed() == before && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for World<'_> {
    fn drop(&mut self) {
        self.tracker = None;
        unmount_all(&self.scratch.tree);
    }
}
