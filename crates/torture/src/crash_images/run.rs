//! One recorded run: the product, a workload and two consumers on the recorded devices.

use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;

use super::device::{Entry, Image};
use super::volume::{Bench, Target, show_own_boot_id};
use super::workload::{Workload, push_out};
use crate::line::Answer;
use crate::object::Tree;
use crate::product::{Product, ProductArgs, Tracking};
use crate::replica::{Policy, Replica};

/// The consumers: one asks all the time, the other lags behind.
pub(crate) const CONSUMERS: [&str; 2] = ["near", "far"];
const OUTAGE_MAX: Duration = Duration::from_secs(60);

/// What a consumer had when it acked. The positions are cuts.
#[derive(Clone)]
pub(crate) struct Snapshot {
    pub(crate) cursor: String,
    pub(crate) replica: Replica,
    /// At cuts from here on the consumer may have the replica.
    pub(crate) applied: usize,
    /// From here on the cursor must not be forgotten; `usize::MAX`: no answer came.
    pub(crate) acked: usize,
}

/// What a run leaves, and all that its crash states are made of.
pub(crate) struct Recording {
    pub(crate) target: Target,
    pub(crate) workload: Workload,
    pub(crate) seed: u64,
    pub(crate) commit_s: u32,
    pub(crate) bases: [Image; 2],
    pub(crate) log: Vec<Entry>,
    /// The first cut at which both consumers have acked once.
    pub(crate) begin: usize,
    /// Of each of [`CONSUMERS`], in the order of their acks.
    pub(crate) snapshots: [Vec<Snapshot>; 2],
    /// Cuts at which the tree may have been uncovered: no dead mount stands for those.
    pub(crate) gaps: Vec<RangeInclusive<usize>>,
}

/// What to record.
pub(crate) struct Plan<'a> {
    pub(crate) target: Target,
    pub(crate) workload: Workload,
    pub(crate) seed: u64,
    pub(crate) duration: Duration,
    pub(crate) product: &'a ProductArgs,
    pub(crate) base: &'a Path,
}

struct Consumer<'a> {
    name: &'static str,
    product: &'a Product,
    bench: &'a Bench,
    snapshots: Vec<Snapshot>,
    /// Of an ack without an answer.
    in_doubt: Option<Snapshot>,
}

/// Records one run. When it returns, everything is unmounted and nothing has the devices open.
pub(crate) fn record(plan: &Plan<'_>, bench: &Bench) -> Result<Recording> {
    // The states of the run before may have left another.
    show_own_boot_id();
    bench.make()?;
    let mut rng = Rng::with_seed(plan.seed ^ 0x0072_756e);
    let commit_s = if rng.bool() { 1 } else { 5 };
    let bases = bench.devices.record();
    let mut mounted = bench.mount(commit_s)?;
    let evidence = plan.base.join("evidence");
    fs::create_dir_all(&evidence)?;
    let tree = bench.tree();
    fs::create_dir(&tree)?;
    // A crash before the root is on the disk leaves nothing to track.
    rustix::fs::syncfs(fs::File::open(&tree)?)?;
    plan.workload.prepare(&tree, &evidence, plan.seed)?;
    mounted.bind_lower()?;
    let product = Product::new(plan.product, &tree, &bench.state(), &evidence)?;
    let tracking = Mutex::new(Some(product.track()?.0));
    let mut consumers = Vec::new();
    for name in CONSUMERS {
        product.add_consumer(name).map_err(|error| anyhow::anyhow!("consumer add: {error}"))?;
        let mut consumer = Consumer { name, product: &product, bench, snapshots: Vec::new(), in_doubt: None };
        consumer.turn()?;
        consumers.push(consumer);
    }
    let begin = bench.devices.position();
    let over = AtomicBool::new(false);
    let gate = RwLock::new(());
    let mut gaps = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let writing = scope.spawn(|| -> Result<()> {
            if plan.workload != Workload::MixGap {
                return plan.workload.run(&tree, &evidence, plan.seed, &over);
            }
            between_gaps(plan, &tree, &evidence, &over, &gate)
        });
        let pushing = scope.spawn(|| push_out(&bench.lower(), plan.seed, &over));
        let consuming: Vec<_> = consumers
            .iter_mut()
            .enumerate()
            .map(|(index, consumer)| {
                let (over, gate, seed) = (&over, &gate, plan.seed);
                scope.spawn(move || consumer.consume(over, gate, index, seed))
            })
            .collect();
        let restarted = restarts(plan, bench, &product, &tracking, &gate, &mut rng).map(|found| gaps = found);
        // ORDERING: only a flag; the threads are joined.
        over.store(true, Ordering::Relaxed);
        let written = joined(writing.join());
        drop(pushing.join());
        let consumed: Vec<_> = consuming.into_iter().map(|thread| joined(thread.join())).collect();
        restarted?;
        written.context("the workload")?;
        consumed.into_iter().collect::<Result<Vec<()>>>()?;
        Ok(())
    })?;
    let log = bench.devices.end_recording();
    let all = consumers.into_iter().map(|consumer| {
        let mut snapshots = consumer.snapshots;
        snapshots.extend(consumer.in_doubt);
        snapshots
    });
    let snapshots: Vec<_> = all.collect();
    let snapshots = snapshots.try_into().map_err(|_| anyhow::anyhow!("two consumers"))?;
    let mut last = tracking.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    if let Some(status) = last.as_mut().and_then(Tracking::ended) {
        bail!("the tracker has ended by itself: {status} (see tracker.log)");
    }
    drop(last);
    drop(mounted);
    Ok(Recording {
        target: plan.target,
        workload: plan.workload,
        seed: plan.seed,
        commit_s,
        bases,
        log,
        begin,
        snapshots,
        gaps,
    })
}

fn joined<T>(result: std::thread::Result<Result<T>>) -> Result<T> {
    result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Lets the time of the run go by; kills or stops the tracker meanwhile where the workload says so. Gives the gaps.
fn restarts(
    plan: &Plan<'_>,
    bench: &Bench,
    product: &Product,
    tracking: &Mutex<Option<Tracking>>,
    gate: &RwLock<()>,
    rng: &mut Rng,
) -> Result<Vec<RangeInclusive<usize>>> {
    let mut gaps = Vec::new();
    let lock = || tracking.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let deadline = Instant::now() + plan.duration;
    while Instant::now() < deadline {
        let pause = match plan.workload {
            Workload::MixKill | Workload::MixGap => Duration::from_millis(rng.u64(200..2500)),
            _ => plan.duration,
        };
        std::thread::sleep(pause.min(deadline.saturating_duration_since(Instant::now())));
        let mut slot = lock();
        if let Some(status) = slot.as_mut().and_then(Tracking::ended) {
            bail!("the tracker has ended by itself: {status} (see tracker.log)");
        }
        match plan.workload {
            Workload::MixKill => {
                if let Some(old) = slot.take() {
                    old.kill()?;
                }
                *slot = Some(product.track().context("after kill -9")?.0);
            }
            Workload::MixGap => {
                // Nobody has anything open while this is held.
                let _quiet = gate.write();
                let began = bench.devices.position();
                if let Some(old) = slot.take() {
                    product.stop(old)?;
                }
                // Untracked: what a catch-up has to find.
                let mut writers = crate::writers::Writers::start(
                    product.dir(),
                    &plan.base.join("evidence"),
                    1,
                    rng.u64(..),
                )?;
                writers.go(20)?;
                writers.wait(Instant::now() + OUTAGE_MAX)?;
                drop(writers);
                *slot = Some(product.track().context("after a stop")?.0);
                gaps.push(began..=bench.devices.position());
            }
            _ => {}
        }
    }
    Ok(gaps)
}

/// The mix in short pieces, none of them while the tracker is stopped.
fn between_gaps(
    plan: &Plan<'_>,
    tree: &Path,
    evidence: &Path,
    over: &AtomicBool,
    gate: &RwLock<()>,
) -> Result<()> {
    let mut piece = 0;
    // ORDERING: only a flag.
    while !over.load(Ordering::Relaxed) {
        piece += 1;
        let running = gate.read();
        let end = AtomicBool::new(false);
        let seed = plan.seed.wrapping_mul(1009).wrapping_add(piece);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(300));
                // ORDERING: only a flag.
                end.store(true, Ordering::Relaxed);
            });
            plan.workload.run(tree, evidence, seed, &end)
        })?;
        drop(running);
        // Lets the other side take the lock.
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

impl Consumer<'_> {
    fn consume(&mut self, over: &AtomicBool, gate: &RwLock<()>, index: usize, seed: u64) -> Result<()> {
        let mut rng = Rng::with_seed(seed ^ (index as u64 + 77));
        let mut outage: Option<Instant> = None;
        // ORDERING: only a flag.
        while !over.load(Ordering::Relaxed) {
            let pause = if index == 0 { rng.u64(0..120) } else { rng.u64(500..4000) };
            let until = Instant::now() + Duration::from_millis(if outage.is_some() { 5 } else { pause });
            while Instant::now() < until && !over.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _running = gate.read();
            match self.turn() {
                Ok(()) => outage = None,
                Err(error) => {
                    let since = *outage.get_or_insert_with(Instant::now);
                    let text = format!("{error:#}");
                    if text.contains("breaks the contract") || since.elapsed() > OUTAGE_MAX {
                        return Err(error.context(format!("the consumer {} cannot go on", self.name)));
                    }
                }
            }
        }
        Ok(())
    }

    /// Changes, copy, ack. An error may be an outage.
    fn turn(&mut self) -> Result<()> {
        let answer = self.product.changes(self.name).map_err(|error| anyhow::anyhow!("changes: {error}"))?;
        if let Some(doubt) = self.in_doubt.take()
            && answer.since.as_deref() == Some(&doubt.cursor[..])
        {
            self.snapshots.push(doubt);
        }
        let held = self.snapshots.last();
        ensure!(
            answer.since.as_deref() == held.map(|held| &held.cursor[..]) || answer.fresh,
            "breaks the contract: the answer begins at {:?}, not where it was acked last",
            answer.since
        );
        ensure!(
            !answer.fresh || held.is_none(),
            "breaks the contract: a fresh answer without a reason in the recorded run"
        );
        let tree = Tree::open(self.product.dir())?;
        let replica = applied(held.map(|held| &held.replica), &tree, &answer)?;
        let applied = self.bench.devices.position();
        let mut snapshot = Snapshot { cursor: answer.cursor.clone(), replica, applied, acked: usize::MAX };
        if let Err(error) = self.product.ack(self.name, &answer.cursor) {
            self.in_doubt = Some(snapshot);
            bail!("ack: {error}");
        }
        snapshot.acked = self.bench.devices.position();
        // The same cursor again, and so no line: the snapshot from before holds, and from earlier on.
        if held.is_none_or(|held| held.cursor != snapshot.cursor) {
            self.snapshots.push(snapshot);
        }
        Ok(())
    }
}

/// The replica after an answer.
pub(crate) fn applied(held: Option<&Replica>, tree: &Tree, answer: &Answer) -> Result<Replica> {
    let mut next = match held {
        Some(held) if !answer.fresh => {
            let mut next = held.clone();
            next.apply(tree, &answer.lines)?;
            next
        }
        _ => Replica::fresh(tree, Policy::Reference)?,
    };
    next.reads.clear();
    Ok(next)
}
