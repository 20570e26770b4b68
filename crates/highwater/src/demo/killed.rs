//! Act three: the tracker is killed in the middle of work.

use std::time::{Duration, Instant};

use anyhow::Result;
use rustix::io::Errno;

use super::lists;
use super::stage::Stage;
use super::story::Story;
use super::workload::Workload;
use crate::replica::Replica;

/// How long the programs work before the kill, and after the recovery.
const WORK: Duration = Duration::from_millis(1500);

pub(super) fn tell(stage: &Stage, story: &mut Story, replica: &mut Replica) -> Result<()> {
    story.act("kill -9");
    story.say(
        "Four programs create, write, rename and delete. The consumer follows. Then the tracker is killed.",
    );
    let workload = Workload::start(&stage.tree(), 4, 1);
    let begin = Instant::now();
    let mut batches = 0;
    while begin.elapsed() < WORK {
        lists::take(stage, replica)?;
        batches += 1;
    }
    stage.kill_tracker()?;
    let done = workload.wait();
    story.command("kill -9 $(pidof highwater)");
    story.say(&format!("{batches} lists were taken; {done} operations were done when it died."));
    let answer = std::fs::read_dir(stage.tree());
    let closed = answer.is_err_and(|error| error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error()));
    story.check("the tree is closed until the recovery: nothing can be changed unseen", closed);

    story.command("highwater track tree --daemon");
    let begin = Instant::now();
    stage.start_tracker()?;
    let took_ms = begin.elapsed().as_secs_f64() * 1e3;
    let full_passes = replica.work().full_passes;
    let recovered = lists::take(stage, replica)?;
    let count = recovered.changes.len();
    let again = recovered.changes.iter().filter(|change| change.recovered).count();
    story.changes(stage, &recovered);
    story.check(
        &format!("recovered in {took_ms:.0} ms, with a difference of {count} lines ({again} because of the crash), not a full pass"),
        !recovered.fresh && replica.work().full_passes == full_passes,
    );
    lists::check_copy(stage, story, "nothing was missed: the copy equals the tree after the crash")?;

    let workload = Workload::start(&stage.tree(), 4, 2);
    let begin = Instant::now();
    while begin.elapsed() < WORK {
        lists::take(stage, replica)?;
    }
    let done = workload.stop();
    lists::take(stage, replica)?;
    story.say(&format!("The programs go on: {done} more operations, followed by lists."));
    lists::check_copy(stage, story, "and it still does after them")
}
