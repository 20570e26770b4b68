//! The demo: a story in three acts, each of which ends with checks.
//!
//! | module | idea |
//! |---|---|
//! | `stage` | the temporary directory and the tracker's process, and that nothing of them is left behind |
//! | `story` | what is printed, and what was checked |
//! | `lists`, `stalled`, `killed` | the acts |
//! | `late_buffer` | memory of which a part arrives late |
//! | `workload` | programs that change files |

mod killed;
mod late_buffer;
mod lists;
mod stage;
mod stalled;
mod story;
mod workload;

use std::time::Instant;

use crate::exit::Failure;
use crate::replica::Replica;
use stage::Stage;
use story::Story;

/// Tells the story. Returns whether every check held.
pub(crate) fn run(keep: bool) -> Result<bool, Failure> {
    let begin = Instant::now();
    let stage = Stage::set(keep)?;
    let mut story = Story::begin(&stage);
    let mut replica = Replica::new(stage.tree(), stage.copy());
    let told = (|| {
        lists::tell(&stage, &mut story, &mut replica)?;
        stalled::tell(&stage, &mut story, &mut replica)?;
        killed::tell(&stage, &mut story, &mut replica)
    })();
    let cleared = stage.clear();
    told?;
    story.check("the tracker stopped cleanly, and nothing is left of the mount", cleared.is_ok());
    if let Err(failure) = cleared {
        story.say(&format!("{:#}", failure.error.unwrap_or_else(|| anyhow::Error::msg("no reason"))));
    }
    Ok(story.end(begin.elapsed()))
}
