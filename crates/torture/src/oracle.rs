//! The oracle: writers, a consumer, and at each pause the question whether the replica is the tree.
//!
//! The replica is kept from change lists alone. A path that no line told is never looked at, so a change that the
//! tracker misses stays missed, and is found at the next pause. Guarantees under test: G1, G2, G4 (as far as the death
//! of the tracker goes), G5.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use fastrand::Rng;

use crate::compare::{Difference, compare, compare_views};
use crate::fake::Fake;
use crate::line::Answer;
use crate::object::{Tree, show};
use crate::product::{AskError, Product, ProductArgs, Tracking};
use crate::replica::{Policy, Replica};
use crate::scratch::{Filesystem, Scratch};
use crate::writers::Writers;

const CONSUMER: &str = "oracle";
/// Answers taken in a pause until one is empty. One is enough by G2; an object that stays mapped is told every time.
const ANSWERS_PER_PAUSE_MAX: u32 = 4;
const ROUND_MAX: Duration = Duration::from_secs(120);
/// After kill -9: how long the consumer goes on without an answer.
const OUTAGE_MAX: Duration = Duration::from_secs(60);

/// Random operations, a replica kept from the change lists, and a comparison at each pause.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct OracleArgs {
    /// What the tree is on: ext4, xfs, btrfs, tmpfs (made for the run), or a directory (a path with a slash).
    #[arg(long, default_value = "ext4", value_name = "FS|DIR")]
    dir_fs: Filesystem,
    /// Drawn at random if not given.
    #[arg(long)]
    seed: Option<u64>,
    /// Stops after the round in which this time is over.
    #[arg(long, conflicts_with = "rounds")]
    seconds: Option<u64>,
    /// Stops after so many rounds. Default: 20.
    #[arg(long)]
    rounds: Option<u64>,
    /// Operations of each writer in a round.
    #[arg(long, default_value_t = 60)]
    operations: u64,
    /// Writer processes.
    #[arg(long, default_value_t = 3)]
    writers: u64,
    /// Kill -9 the tracker at random moments, and track again.
    #[arg(long)]
    kill: bool,
    /// Stop and track again cleanly between some rounds.
    #[arg(long)]
    restart: bool,
    /// Stop and track again cleanly at random moments, while the writers go on. For sources in place.
    #[arg(long)]
    stop: bool,
    /// How the consumer deals with objects that move while it copies.
    #[arg(long, value_enum, default_value_t)]
    consumer: Policy,
    /// The consumer dies now and then with a batch half applied, or applied and not acked, and asks again.
    #[arg(long)]
    crash_consumer: bool,
    /// The consumer asks only in pauses: to tell a missed change from a race with the consumer.
    #[arg(long)]
    quiet_consumer: bool,
    /// Compare after the first answer of a pause, not after an empty one.
    #[arg(long)]
    one_answer: bool,
    /// A fresh answer later than the first is no failure.
    #[arg(long)]
    allow_fresh: bool,
    /// Do not compare the mount with the filesystem below it.
    #[arg(long)]
    skip_lower: bool,
    /// Somebody else works beside the tracked directory, on the same filesystem, and moves things in and out. For sources in place.
    #[arg(long)]
    outside: bool,
    /// No product: full differences instead, to test the oracle.
    #[arg(long)]
    self_test: bool,
    /// With --self-test: forget one of so many lines. The run must fail.
    #[arg(long, requires = "self_test", value_name = "N")]
    drop_one_in: Option<u32>,
    /// Where the run's directory is made.
    #[arg(long, value_name = "DIR")]
    base: Option<PathBuf>,
    /// Size of a filesystem made for the run, MiB.
    #[arg(long, default_value_t = 640)]
    size_mib: u64,
    #[command(flatten)]
    product: ProductArgs,
}

impl OracleArgs {
    /// The tracker ends while the consumer asks.
    fn has_outages(&self) -> bool {
        self.kill || self.stop
    }

    fn rerun(&self, seed: u64, rounds: u64) -> String {
        let mut text = format!(
            "torture oracle --dir-fs {} --seed {seed} --rounds {rounds} --operations {} --writers {}",
            self.dir_fs, self.operations, self.writers
        );
        for (flag, given) in [
            (" --kill", self.kill),
            (" --restart", self.restart),
            (" --stop", self.stop),
            (" --consumer careful", self.consumer == Policy::Careful),
            (" --crash-consumer", self.crash_consumer),
            (" --outside", self.outside),
            (" --quiet-consumer", self.quiet_consumer),
            (" --one-answer", self.one_answer),
            (" --allow-fresh", self.allow_fresh),
            (" --skip-lower", self.skip_lower),
            (" --self-test", self.self_test),
        ] {
            if given {
                text += flag;
            }
        }
        if let Some(one_in) = self.drop_one_in {
            text += &format!(" --drop-one-in {one_in}");
        }
        text + &self.product.rerun()
    }
}

/// Where the answers come from.
enum Volume {
    Real { product: Product, tracking: Option<Tracking> },
    Fake(Fake),
}

/// The consumer: a replica, the answers that made it, and what to do when an ack did not arrive.
struct Consumer {
    replica: Option<Replica>,
    /// The cursor up to which `replica` holds everything.
    cursor: Option<String>,
    /// The replica after a batch whose ack failed: the next answer tells whether it arrived.
    in_doubt: Option<(String, Replica)>,
    policy: Policy,
    /// Decides when the consumer dies, if it does.
    crashes: Option<Rng>,
    answers: Vec<Answer>,
    log: File,
    fresh: u64,
    lines: u64,
}

#[derive(Default)]
struct Totals {
    rounds: u64,
    kills: u64,
    restarts: u64,
    answers_in_races: u64,
    objects: usize,
}

/// Runs the oracle. An error: the run failed; what to do about it has been printed.
pub(crate) fn main(arguments: &OracleArgs) -> Result<()> {
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(1..1_000_000_000));
    let scratch = Scratch::new(
        &arguments.dir_fs,
        arguments.base.as_deref(),
        &format!("oracle-{seed}"),
        arguments.size_mib,
    )?;
    println!("oracle: seed {seed} on {}, evidence in {}", arguments.dir_fs, scratch.evidence.display());
    let mut totals = Totals::default();
    let begun = Instant::now();
    let outcome = rounds(arguments, seed, &scratch, &mut totals);
    let summary = format!(
        "{} rounds, {} kills, {} clean restarts, {} answers while writers wrote, {} objects at the end, {:.1} s",
        totals.rounds,
        totals.kills,
        totals.restarts,
        totals.answers_in_races,
        totals.objects,
        begun.elapsed().as_secs_f64()
    );
    match outcome {
        Ok(()) => {
            scratch.discard_evidence();
            println!("oracle: PASS: {summary}");
            Ok(())
        }
        Err(error) => {
            println!("oracle: FAIL: {summary}\n{error:#}");
            println!("evidence: {}", scratch.evidence.display());
            println!("run again: {}", arguments.rerun(seed, totals.rounds + 1));
            bail!("oracle: a failure was found (seed {seed})")
        }
    }
}

fn rounds(arguments: &OracleArgs, seed: u64, scratch: &Scratch, totals: &mut Totals) -> Result<()> {
    let mut rng = Rng::with_seed(seed ^ 0x6f72_6163_6c65);
    let mut writers;
    let mut volume;
    // Something is there already when tracking starts.
    {
        writers = Writers::start(&scratch.tree, &scratch.evidence, arguments.writers, seed ^ 1)?;
        writers.go(arguments.operations)?;
        writers.wait(Instant::now() + ROUND_MAX)?;
        drop(writers);
    }
    if arguments.self_test {
        volume = Volume::Fake(Fake::new(arguments.drop_one_in, seed));
    } else {
        let product = Product::new(&arguments.product, &scratch.tree, &scratch.state, &scratch.evidence)?;
        let (tracking, _) = product.track()?;
        product.add_consumer(CONSUMER).map_err(|error| anyhow::anyhow!("consumer add: {error}"))?;
        volume = Volume::Real { product, tracking: Some(tracking) };
    }
    writers = Writers::start(&scratch.tree, &scratch.evidence, arguments.writers, seed)?;
    let mut consumer = Consumer {
        replica: None,
        cursor: None,
        in_doubt: None,
        policy: arguments.consumer,
        crashes: arguments.crash_consumer.then(|| Rng::with_seed(seed ^ 0x6372_6173_6865)),
        answers: Vec::new(),
        log: File::create(scratch.evidence.join("answers.log"))?,
        fresh: 0,
        lines: 0,
    };
    let deadline = arguments.seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let rounds_max = if deadline.is_some() { u64::MAX } else { arguments.rounds.unwrap_or(20) };
    while totals.rounds < rounds_max && deadline.is_none_or(|deadline| Instant::now() < deadline) {
        round(arguments, scratch, &mut writers, &mut volume, &mut consumer, &mut rng, totals)
            .with_context(|| format!("in round {}", totals.rounds + 1))?;
        totals.rounds += 1;
        if arguments.restart
            && rng.u32(0..4) == 0
            && let Volume::Real { product, tracking } = &mut volume
            && let Some(old) = tracking.take()
        {
            // The writers' descriptors would keep the mount busy.
            drop(writers);
            product.stop(old)?;
            *tracking = Some(product.track()?.0);
            totals.restarts += 1;
            writers =
                Writers::start(&scratch.tree, &scratch.evidence, arguments.writers, seed + totals.restarts)?;
        }
    }
    drop(writers);
    if let Volume::Real { product, tracking } = &mut volume
        && let Some(tracking) = tracking.take()
    {
        product.stop(tracking)?;
    }
    Ok(())
}

/// One round: the writers write while the consumer consumes; then a pause and the comparison.
fn round(
    arguments: &OracleArgs,
    scratch: &Scratch,
    writers: &mut Writers,
    volume: &mut Volume,
    consumer: &mut Consumer,
    rng: &mut Rng,
    totals: &mut Totals,
) -> Result<()> {
    writeln!(consumer.log, "=== round {}", totals.rounds + 1)?;
    writers.go(arguments.operations)?;
    let over = AtomicBool::new(false);
    let outside_rng = arguments.outside.then(|| rng.fork());
    let deadline = Instant::now() + ROUND_MAX;
    match volume {
        Volume::Fake(_) => writers.wait(deadline)?,
        Volume::Real { product, tracking } => {
            let product = &*product;
            let end_after = (arguments.has_outages() && rng.u32(0..3) > 0)
                .then(|| Duration::from_micros(rng.u64(0..400_000)));
            let is_killed = arguments.kill && (!arguments.stop || rng.bool());
            let over = &over;
            let slot = &mut *tracking;
            let consumer = &mut *consumer;
            let (answers, ends) = std::thread::scope(|scope| -> Result<(u64, u64)> {
                let consuming = scope.spawn(move || -> Result<u64> {
                    let mut answers = 0;
                    // ORDERING: a flag; the threads are joined before anything else is shared.
                    while !over.load(Ordering::Relaxed) && !arguments.quiet_consumer {
                        consumer.turn_through_outages(product, scratch, arguments)?;
                        answers += 1;
                    }
                    Ok(answers)
                });
                let ending = scope.spawn(move || -> Result<u64> {
                    let Some(after) = end_after else { return Ok(0) };
                    std::thread::sleep(after);
                    match slot.take() {
                        Some(old) if is_killed => old.kill()?,
                        Some(old) => product.stop(old)?,
                        None => {}
                    }
                    let what = if is_killed { "after kill -9" } else { "after a stop" };
                    *slot = Some(product.track().context(what)?.0);
                    Ok(1)
                });
                let moving = outside_rng.map(|rng| {
                    scope.spawn(move || crate::outside::work(&scratch.tree, &scratch.evidence, rng, over))
                });
                let ends = joined(ending.join());
                let written = if ends.is_ok() { writers.wait(deadline) } else { Ok(()) };
                over.store(true, Ordering::Relaxed);
                let answers = joined(consuming.join());
                moving.map_or(Ok(()), |moving| joined(moving.join()))?;
                // The tracker's end explains the others.
                let ends = ends?;
                written?;
                Ok((answers?, ends))
            })?;
            totals.answers_in_races += answers;
            if is_killed {
                totals.kills += ends;
            } else {
                totals.restarts += ends;
            }
            if let Some(status) = tracking.as_mut().and_then(Tracking::ended) {
                bail!("the tracker has ended by itself: {status} (see tracker.log)");
            }
        }
    }
    writeln!(consumer.log, "--- pause")?;
    let mut answers = 0;
    // Deaths of the consumer cost answers too.
    let answers_max = ANSWERS_PER_PAUSE_MAX * if arguments.crash_consumer { 5 } else { 1 };
    while answers < answers_max {
        answers += 1;
        let lines = match volume {
            Volume::Real { product, .. } => consumer.turn_through_outages(product, scratch, arguments)?,
            Volume::Fake(fake) => consumer.turn_fake(fake, &scratch.tree)?,
        };
        if lines == 0 || arguments.one_answer {
            break;
        }
    }
    totals.objects = check(arguments, scratch, consumer, volume)?;
    Ok(())
}

fn joined<T>(result: std::thread::Result<Result<T>>) -> Result<T> {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Compares; the number of objects.
fn check(arguments: &OracleArgs, scratch: &Scratch, consumer: &Consumer, volume: &Volume) -> Result<usize> {
    let tree = Tree::open(&scratch.tree)?.everything().context("cannot read the tree")?;
    let replica = consumer.replica.as_ref().context("no answer in this round")?;
    let mut differences = compare(&tree, replica);
    if matches!(volume, Volume::Real { .. }) && !arguments.skip_lower {
        // Without passthrough a store into a mapping is in the mount's page cache alone until it is written back. Only
        // now: the replica had to be right without that.
        rustix::fs::syncfs(File::open(&scratch.tree)?).context("cannot sync the mount")?;
        let upper = Tree::open(&scratch.tree)?.everything()?;
        let lower = Tree::open(&scratch.lower)?.everything()?;
        let mut views = compare_views(&upper, &lower);
        for difference in views.iter_mut().take(10) {
            difference.text += &probe(&scratch.tree, &difference.path)?;
        }
        if !views.is_empty() {
            differences.push(Difference {
                path: Vec::new(),
                text: format!("--- {} of two views:", views.len()),
                only_data: false,
            });
            differences.extend(views);
        }
    }
    if differences.is_empty() {
        return Ok(tree.len());
    }
    bail!("{}", report(&differences, consumer, scratch))
}

/// How the mount answers for one path, by name and by listing: a stale cache of the kernel shows in one of them.
fn probe(tree: &Path, path: &[u8]) -> Result<String> {
    let tree = Tree::open(tree)?;
    let slash = path.iter().rposition(|byte| *byte == b'/');
    let (parent, name) = slash.map_or((&b"."[..], path), |at| (&path[..at], &path[at + 1..]));
    let by_name = tree.capture(path)?.is_some();
    let listed = tree.list(parent)?.is_some_and(|entries| entries.iter().any(|(entry, _)| entry == name));
    Ok(format!("\n    asked again, the mount finds it by name: {by_name}, lists it: {listed}"))
}

fn report(differences: &[Difference], consumer: &Consumer, scratch: &Scratch) -> String {
    let mut text = format!("{} differences between the tree and the replica:\n", differences.len());
    for difference in differences.iter().take(20) {
        text += &format!("  {}: {}\n", show(&difference.path), difference.text);
    }
    for difference in differences.iter().filter(|difference| !difference.path.is_empty()).take(3) {
        text += &format!("  the last answers that tell of {}:\n", show(&difference.path));
        let mut shown = 0;
        for answer in consumer.answers.iter().rev() {
            let lines: Vec<_> = answer.lines.iter().filter(|line| line.touches(&difference.path)).collect();
            if lines.is_empty() {
                continue;
            }
            let (cursor, all) = (&answer.cursor, answer.lines.len());
            text += &format!("    {cursor} (since {:?}): {all} lines, of which\n", answer.since);
            for line in lines.iter().take(12) {
                text += &format!("      {}\n", line.show());
            }
            shown += 1;
            if shown == 4 {
                break;
            }
        }
        text += &operations(&scratch.evidence, &difference.path);
    }
    text
}

/// The tails of the writers' logs for a path and, shorter, for its last component, which it may have had elsewhere.
fn operations(evidence: &Path, path: &[u8]) -> String {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    let mut text = String::new();
    for (wanted, count) in [(path, 6), (name, 3)] {
        let wanted = wanted.escape_ascii().to_string();
        text += &format!("  the last operations that name {}:\n", show(wanted.as_bytes()));
        for id in 0.. {
            let Ok(log) = std::fs::read_to_string(evidence.join(format!("writer-{id}.log"))) else { break };
            let is_named = |line: &&str| line.ends_with("-> ok") && line.contains(&wanted);
            let named: Vec<&str> = log.lines().filter(is_named).collect();
            for line in named.iter().rev().take(count).rev() {
                text += &format!("    writer {id}: {line}\n");
            }
        }
    }
    text
}

impl Consumer {
    /// One turn: changes, copy, ack. Returns the number of lines.
    fn turn(&mut self, product: &Product, scratch: &Scratch, allow_fresh: bool) -> Result<usize, Trouble> {
        let now = || std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_secs_f64();
        let asked = now();
        let answer = product.changes(CONSUMER)?;
        let _ = writeln!(self.log, "asked at {asked:.6}, answered at {:.6}", now());
        self.settle_doubt(&answer)?;
        let tree = Tree::open(&scratch.tree)?;
        if self.dies_in_the_middle(&tree, &answer)? {
            return Ok(self.keep(answer).max(1));
        }
        let mut next = self.applied(&tree, &answer, allow_fresh)?;
        self.log_reads(&answer, std::mem::take(&mut next.reads));
        match product.ack(CONSUMER, &answer.cursor) {
            Ok(()) => {
                self.replica = Some(next);
                self.cursor = Some(answer.cursor.clone());
            }
            Err(error) if self.crashes.is_some() => {
                // It does not know that this batch is in its replica, and will apply it again.
                self.replica = Some(next);
                return Err(error.into());
            }
            Err(error) => {
                self.in_doubt = Some((answer.cursor.clone(), next));
                return Err(error.into());
            }
        }
        Ok(self.keep(answer))
    }

    /// Sometimes applies only the first lines and does not ack: what a consumer leaves that is killed. True if so.
    fn dies_in_the_middle(&mut self, tree: &Tree, answer: &Answer) -> Result<bool, Trouble> {
        let Some(rng) = &mut self.crashes else { return Ok(false) };
        if answer.fresh || answer.lines.is_empty() || rng.u32(0..5) > 0 {
            return Ok(false);
        }
        let applied = rng.usize(0..=answer.lines.len());
        if let Some(replica) = &mut self.replica {
            let _ = writeln!(self.log, "(the consumer dies after {applied} lines of the next answer)");
            replica.apply(tree, &answer.lines[..applied])?;
            let reads = std::mem::take(&mut replica.reads);
            self.log_reads(answer, reads);
        }
        Ok(true)
    }

    /// The next answer begins at the cursor that is stored: so it tells whether the last ack has arrived.
    fn settle_doubt(&mut self, answer: &Answer) -> Result<(), Trouble> {
        if let Some((cursor, replica)) = self.in_doubt.take()
            && answer.since.as_deref() == Some(&cursor[..])
        {
            self.cursor = Some(cursor);
            self.replica = Some(replica);
        }
        // A consumer that dies may have stored an ack that it does not know of.
        if !answer.fresh && answer.since != self.cursor && self.crashes.is_none() {
            return Err(Trouble::Broken(format!(
                "the answer begins at {:?}, but {:?} was acked last",
                answer.since, self.cursor
            )));
        }
        Ok(())
    }

    fn applied(&mut self, tree: &Tree, answer: &Answer, allow_fresh: bool) -> Result<Replica, Trouble> {
        match (&self.replica, answer.fresh) {
            (Some(held), false) => {
                let mut next = held.clone();
                next.apply(tree, &answer.lines)?;
                Ok(next)
            }
            (None, false) => {
                Err(Trouble::Broken("the first answer of a new consumer is not fresh".to_owned()))
            }
            (_, true) => {
                // A consumer whose first ack did not arrive is as new as before.
                if self.cursor.is_some() && !allow_fresh {
                    return Err(Trouble::Broken(
                        "a fresh answer without a reason (--allow-fresh accepts it)".to_owned(),
                    ));
                }
                self.fresh += 1;
                Ok(Replica::fresh(tree, self.policy)?)
            }
        }
    }

    fn log_reads(&mut self, answer: &Answer, reads: Vec<String>) {
        let _ = writeln!(self.log, "{} since {:?} fresh {}", answer.cursor, answer.since, answer.fresh);
        for read in reads {
            let _ = writeln!(self.log, "{read}");
        }
    }

    fn keep(&mut self, answer: Answer) -> usize {
        let count = answer.lines.len();
        self.lines += count as u64;
        self.answers.push(answer);
        if self.answers.len() > 400 {
            self.answers.drain(..200);
        }
        count
    }

    /// A turn, tried again while the tracker is away.
    fn turn_through_outages(
        &mut self,
        product: &Product,
        scratch: &Scratch,
        arguments: &OracleArgs,
    ) -> Result<usize> {
        let deadline = Instant::now() + OUTAGE_MAX;
        loop {
            match self.turn(product, scratch, arguments.allow_fresh) {
                Ok(lines) => return Ok(lines),
                Err(Trouble::Outage(why)) if arguments.has_outages() && Instant::now() < deadline => {
                    let _ = writeln!(self.log, "(outage: {why})");
                    std::thread::sleep(Duration::from_millis(3));
                }
                Err(Trouble::Outage(why) | Trouble::Broken(why)) => bail!("the consumer cannot go on: {why}"),
            }
        }
    }

    fn turn_fake(&mut self, fake: &mut Fake, tree: &Path) -> Result<usize> {
        let tree = Tree::open(tree)?;
        let answer = fake.changes(&tree)?;
        let mut next =
            self.applied(&tree, &answer, false).map_err(|trouble| anyhow::anyhow!("{trouble:?}"))?;
        self.log_reads(&answer, std::mem::take(&mut next.reads));
        self.replica = Some(next);
        Ok(self.keep(answer))
    }
}

#[derive(Debug)]
enum Trouble {
    /// Could be because the tracker is dead.
    Outage(String),
    /// Never right.
    Broken(String),
}

impl From<AskError> for Trouble {
    fn from(error: AskError) -> Self {
        let text = error.to_string();
        if text.contains("breaks the contract") { Self::Broken(text) } else { Self::Outage(text) }
    }
}

impl From<std::io::Error> for Trouble {
    fn from(error: std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOTCONN | libc::ECONNABORTED | libc::ESTALE | libc::EIO) => {
                Self::Outage(format!("reading the tree: {error}"))
            }
            _ => Self::Broken(format!("reading the tree: {error}")),
        }
    }
}
