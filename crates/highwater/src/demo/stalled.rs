//! Act two: a write is stalled half-way.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::late_buffer::{LateBuffer, peek};
use super::lists;
use super::stage::Stage;
use super::story::Story;
use super::workload::Writers;
use crate::replica::Replica;

const PAGES: usize = 16;

/// How long the barrier is watched while the write is stalled.
const WATCH: Duration = Duration::from_secs(1);

/// How long anything may take that ought to happen at once.
const PATIENCE: Duration = Duration::from_secs(20);

pub(super) fn tell(stage: &Stage, story: &mut Story, replica: &mut Replica) -> Result<()> {
    story.act("Old data under a new timestamp");
    let path = stage.tree().join("ledger.db");
    let len = PAGES * rustix::param::page_size();
    let buffer = match LateBuffer::new(vec![b'N'; len]) {
        Ok(buffer) => Arc::new(buffer),
        Err(error) => {
            story.not_shown(&format!("a write stalled half-way needs userfaultfd, as root ({error})"));
            return Ok(());
        }
    };
    fs::write(&path, vec![b'O'; len])?;
    lists::take(stage, replica)?;
    let before = modified(&path)?;
    story.say("A program writes 16 pages into ledger.db, from memory of which 15 arrive late: write(2) is stalled half-way.");

    stage.stall(&buffer);
    let writer = std::thread::spawn({
        let (path, buffer) = (path.clone(), Arc::clone(&buffer));
        move || -> Result<usize> {
            let file = File::options().write(true).open(path)?;
            Ok(rustix::io::pwrite(file, buffer.bytes(), 0)?)
        }
    });
    let stalled = race(story, &path, before, len);
    let watched = stalled.and_then(|raced| if raced { watch(stage, story).map(Some) } else { Ok(None) });
    // Whatever happened, the write has to end.
    buffer.arrive().context("the late pages cannot arrive")?;
    let arrived = Instant::now();
    let Some((barrier, writers)) = watched? else {
        join(writer, "the writer")??;
        lists::take(stage, replica)?;
        return Ok(());
    };
    story.say("The pages arrive.");
    let returned = join(barrier, "the barrier")??;
    join(writer, "the writer")??;
    let after_ms = returned.saturating_duration_since(arrived).as_secs_f64() * 1e3;
    let data = peek(File::open(&path)?, len)?;
    story.check(
        &format!(
            "the barrier returned {after_ms:.1} ms after they came, and what is read after it is the new data"
        ),
        returned > arrived && data == vec![b'N'; len],
    );
    writers.stop();
    let answer = lists::take(stage, replica)?;
    story.check(
        "ledger.db is in the list of changes",
        answer.changes.iter().any(|change| change.path == b"ledger.db"),
    );
    lists::check_copy(stage, story, "the copy equals the tree again")
}

/// Waits for the timestamp to change, and looks at the data. False: this mount does not show the race.
fn race(story: &mut Story, path: &Path, before: SystemTime, len: usize) -> Result<bool> {
    let begin = Instant::now();
    while modified(path)? == before {
        if begin.elapsed() > Duration::from_secs(2) {
            story.not_shown(
                "file data goes through the tracker here, which has the whole buffer before it writes",
            );
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let page = rustix::param::page_size();
    let old = peek(File::open(path)?, len)?.iter().skip(page).all(|byte| *byte == b'O');
    story.say("stat(2) says it was modified just now. read(2) still gives the old data. An indexer that looks now notes");
    story.say("\"up to date at that time\", and never looks again: no later event will come.");
    story.check("the timestamp is new and the data is old: the race is real", old);
    Ok(true)
}

type Barrier = std::thread::JoinHandle<Result<Instant>>;

/// Makes a barrier while the write is stalled and others go on writing.
fn watch(stage: &Stage, story: &mut Story) -> Result<(Barrier, Writers)> {
    let writers = Writers::start(&stage.tree().join("busy"))?;
    story.command("highwater barrier tree --deadline 0.3");
    match stage.connect()?.barrier(Some(Duration::from_millis(300))) {
        Ok(_) => story.check("a barrier with a deadline does not return before the write has ended", false),
        Err(error) => story.say(&format!("     {error}")),
    }
    story.command("highwater barrier tree");
    let mut volume = stage.connect()?;
    let barrier = std::thread::spawn(move || -> Result<Instant> {
        volume.barrier(None)?;
        Ok(Instant::now())
    });
    let before = writers.operations();
    std::thread::sleep(WATCH);
    let during = writers.operations() - before;
    let waits = !barrier.is_finished();
    story.check(
        &format!("the barrier has been waiting for exactly that write, for {} s now", WATCH.as_secs()),
        waits,
    );
    story.check(
        &format!("it blocks no other writer: {during} operations of others went on meanwhile"),
        during > 0,
    );
    Ok((barrier, writers))
}

/// The time of the last modification, asked from the filesystem and not from a cache.
fn modified(path: &Path) -> Result<SystemTime> {
    let stat = statx(CWD, path, AtFlags::STATX_FORCE_SYNC, StatxFlags::MTIME)?;
    let seconds = u64::try_from(stat.stx_mtime.tv_sec).unwrap_or(0);
    Ok(SystemTime::UNIX_EPOCH + Duration::new(seconds, stat.stx_mtime.tv_nsec))
}

fn join<T>(thread: std::thread::JoinHandle<T>, name: &str) -> Result<T> {
    let begin = Instant::now();
    while !thread.is_finished() {
        if begin.elapsed() > PATIENCE {
            bail!("{name} has not ended within {} s", PATIENCE.as_secs());
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    thread.join().map_err(|_| anyhow::anyhow!("{name} has panicked"))
}
