//! Old data under a new timestamp, and the barrier that ends it: G2 and G3.
//!
//! A write stalls half-way. `stat` is new, the data are old: whoever concludes "up to date" is wrong for ever. A barrier
//! does not return before this write has ended, and keeps nobody else from writing.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::line::covers;
use crate::mapping::Mapping;
use crate::product::{Product, ProductArgs};
use crate::scratch::{Filesystem, Scratch};
use crate::stall::{LENGTH, StalledWrite};

const OTHER_WRITES: u32 = 1000;
const PATIENCE: Duration = Duration::from_secs(60);

/// A stalled write: new timestamp over old data, and a barrier that waits for exactly this write.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct NaiveRaceArgs {
    /// What the tree is on: ext4, xfs, btrfs, tmpfs, or a directory. May be repeated. Default: all four.
    #[arg(long, value_name = "FS|DIR")]
    dir_fs: Vec<Filesystem>,
    /// A directory in which to try.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(flatten)]
    product: ProductArgs,
}

/// Runs it on each filesystem.
pub(crate) fn main(arguments: &NaiveRaceArgs) -> Result<()> {
    let mut on = arguments.dir_fs.clone();
    on.extend(arguments.dir.clone().map(Filesystem::Directory));
    if on.is_empty() {
        on = ["ext4", "xfs", "btrfs", "tmpfs"].iter().filter_map(|name| name.parse().ok()).collect();
    }
    let mut failed = Vec::new();
    for filesystem in &on {
        match one(filesystem, &arguments.product) {
            Ok(told) => println!("naive-race: {filesystem}: PASS: {told}"),
            Err(error) => {
                println!("naive-race: {filesystem}: FAIL: {error:#}");
                failed.push(filesystem.to_string());
            }
        }
    }
    ensure!(failed.is_empty(), "naive-race failed on {}", failed.join(", "));
    Ok(())
}

fn one(filesystem: &Filesystem, arguments: &ProductArgs) -> Result<String> {
    let scratch = Scratch::new(filesystem, None, "race", 512)?;
    let told =
        race(&scratch, arguments).with_context(|| format!("evidence: {}", scratch.evidence.display()))?;
    scratch.discard_evidence();
    Ok(told)
}

fn race(scratch: &Scratch, arguments: &ProductArgs) -> Result<String> {
    fs::write(scratch.tree.join("victim"), vec![b'O'; LENGTH])?;
    let product = Product::new(arguments, &scratch.tree, &scratch.state, &scratch.evidence)?;
    let (tracking, _) = product.track()?;
    let start = product.changes_since("now").map_err(|error| anyhow::anyhow!("--since now: {error}"))?;
    ensure!(start.lines.is_empty() && !start.fresh, "--since now is not an empty answer");

    // Past the mount, for what the filesystem itself shows, and through it, for what a consumer sees.
    let below = File::open(scratch.lower.join("victim"))?;
    let through = File::open(scratch.tree.join("victim"))?;
    let view_below = Mapping::for_reading(&below, LENGTH)?;
    let view_through = Mapping::for_reading(&through, LENGTH)?;
    let before = mtime(&below)?;
    // The clock of a coarse timestamp has to move on, or a new one could look like the old one.
    wait_for(|| clock_has_passed(before)).context("the clock stands still")?;

    let writer = OpenOptions::new().write(true).open(scratch.tree.join("victim"))?;
    let write = StalledWrite::begin(writer).context("cannot stall a write (userfaultfd)")?;
    if arguments.no_passthrough {
        // The kernel collects the data before it asks the tracker, so that a stalled source is no section yet.
        write.finish(b'N').context("the stalled write")?;
        expect_victim(&product, &start.cursor)?;
        // What is open keeps the mount busy.
        drop((view_below, view_through, below, through));
        product.stop(tracking)?;
        return Ok("without passthrough the write only begins when its data are there".to_owned());
    }
    wait_for(|| mtime(&below).is_ok_and(|now| now != before))
        .context("the stalled write changed no timestamp")?;
    let shown_through = scratch.tree.join("victim").metadata()?;
    let is_new_through = mtime_of(&shown_through) != before;
    ensure!(!write.has_ended(), "the write has not stalled");
    ensure!(is_old(&view_below), "the data below are new already: no race to show");
    ensure!(is_old(&view_through), "the data on the mount are new already, those below are not");

    let begun = Instant::now();
    let mut barrier = Barrier::start(&product)?;
    other_writes(&scratch.tree, &mut barrier)?;
    let wrote_in = begun.elapsed();
    // Time for a barrier that is wrong to return. A right one cannot, so nothing depends on its length.
    std::thread::sleep(Duration::from_millis(300));
    ensure!(barrier.is_waiting()?, "the barrier returned while a write was in flight");
    ensure!(
        !write.has_ended() && is_old(&view_below),
        "the write went on although its source page is missing"
    );
    write.finish(b'N').context("the stalled write")?;
    let finished = Instant::now();
    let output = barrier.output()?;
    let after = finished.elapsed();
    ensure!(output.status.success(), "highwater barrier: {}: {}", output.status, text(&output.stderr));
    let cursor = text(&output.stdout);
    ensure!(!cursor.is_empty(), "highwater barrier printed no cursor");
    ensure!(fs::read(scratch.tree.join("victim"))?.iter().all(|byte| *byte == b'N'), "the data are not new");
    expect_victim(&product, &start.cursor)?;
    drop((view_below, view_through, below, through));
    product.stop(tracking)?;
    Ok(format!(
        "new timestamp (on the mount: {}) over old data; {OTHER_WRITES} other writes in {} ms while the barrier waited; it \
         returned {:.1} ms after the write",
        if is_new_through { "new too" } else { "old" },
        wrote_in.as_millis(),
        after.as_secs_f64() * 1e3
    ))
}

fn expect_victim(product: &Product, since: &str) -> Result<()> {
    let answer = product.changes_since(since).map_err(|error| anyhow::anyhow!("changes: {error}"))?;
    ensure!(!answer.fresh, "the answer is fresh");
    ensure!(covers(&answer.lines, b"victim"), "`changes` does not list the file: {:?}", answer.lines);
    Ok(())
}

fn other_writes(tree: &Path, barrier: &mut Barrier) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for number in 0..OTHER_WRITES {
        fs::write(tree.join(format!("other-{}", number % 50)), number.to_string())?;
        ensure!(
            Instant::now() < deadline,
            "only {number} other writes in a minute: the barrier blocks writers"
        );
    }
    ensure!(barrier.is_waiting()?, "the barrier returned while a write was in flight");
    Ok(())
}

/// `highwater barrier`, running.
struct Barrier(Option<Child>);

impl Barrier {
    fn start(product: &Product) -> Result<Self> {
        Ok(Self(Some(product.command("barrier").arg(product.dir()).spawn()?)))
    }

    fn is_waiting(&mut self) -> Result<bool> {
        match &mut self.0 {
            Some(child) => Ok(child.try_wait()?.is_none()),
            None => Ok(false),
        }
    }

    fn output(mut self) -> Result<Output> {
        wait_for(|| !self.is_waiting().unwrap_or(false))
            .context("the barrier did not return after the write")?;
        match self.0.take() {
            Some(child) => Ok(child.wait_with_output()?),
            None => bail!("no barrier"),
        }
    }
}

impl Drop for Barrier {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_owned()
}

fn is_old(view: &Mapping) -> bool {
    view.load(0, LENGTH).iter().all(|byte| *byte == b'O')
}

fn mtime(file: &File) -> Result<(i64, i64)> {
    Ok(mtime_of(&file.metadata()?))
}

fn mtime_of(metadata: &fs::Metadata) -> (i64, i64) {
    (metadata.mtime(), metadata.mtime_nsec())
}

fn clock_has_passed(time: (i64, i64)) -> bool {
    let tick = 20_000_000;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let ns =
        |(seconds, nanoseconds): (i64, i64)| i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    now.as_nanos() as i128 > ns(time) + tick
}

fn wait_for(mut condition: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        ensure!(Instant::now() < deadline, "nothing for a minute");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}
