//! Act one: what changed?

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use highwater_client::{Changes, Kind, Since};

use super::stage::Stage;
use super::story::Story;
use crate::replica::{Replica, differences};

/// Who keeps the copy.
pub(super) const CONSUMER: &str = "copy";

const DIRECTORIES: usize = 20;
const FILES_IN_EACH: usize = 25;

pub(super) fn tell(stage: &Stage, story: &mut Story, replica: &mut Replica) -> Result<()> {
    story.act("What changed?");
    let tree = stage.tree();
    for directory in 0..DIRECTORIES {
        let directory = tree.join(format!("project-{directory:02}"));
        fs::create_dir(&directory)?;
        for file in 0..FILES_IN_EACH {
            fs::write(directory.join(format!("file-{file:02}.txt")), format!("{file}\n"))?;
        }
    }
    story.say(&format!("A tree with {} files, and a tracker on it:", DIRECTORIES * FILES_IN_EACH));
    story.command("highwater track tree --daemon");
    stage.start_tracker()?;
    stage.connect()?.add_consumer(CONSUMER)?;
    let first = take(stage, replica)?;
    story.say("A consumer takes everything once: the first answer is `fresh`. From now on it reads change lists only.");
    story.check("the first answer is fresh", first.fresh);

    fs::write(tree.join("project-00/file-03.txt"), "edited\n")?;
    fs::create_dir_all(tree.join("new/deep"))?;
    fs::write(tree.join("new/deep/it's odd.txt"), "new\n")?;
    fs::rename(tree.join("project-07"), tree.join("project-seven"))?;
    fs::rename(tree.join("project-01/file-00.txt"), tree.join("project-02/moved.txt"))?;
    fs::remove_file(tree.join("project-03/file-10.txt"))?;
    let made = tree.join("project-04/came and went");
    fs::write(&made, "")?;
    fs::remove_file(&made)?;
    story.say("Somebody works in it. Then:");
    story.command("highwater changes tree --consumer copy");
    let read_before = replica.work().objects_read;
    let answer = take(stage, replica)?;
    story.changes(stage, &answer);
    let read = replica.work().objects_read - read_before;
    story.say(&format!(
        "A renamed directory is one line. To follow, the consumer read {read} objects, not the tree."
    ));
    let renames = answer.changes.iter().filter(|change| change.kind == Kind::Renamed).count();
    story.check("the list is a difference, with the two renames as renames", !answer.fresh && renames == 2);
    check_copy(stage, story, "a copy kept from the list alone equals the tree")
}

/// Takes what changed, applies it to the copy, and acks.
pub(super) fn take(stage: &Stage, replica: &mut Replica) -> Result<Changes> {
    let mut volume = stage.connect()?;
    let answer = volume.changes(&Since::Consumer(CONSUMER.to_owned()), None)?;
    replica.apply(&answer)?;
    volume.ack(CONSUMER, &answer.cursor)?;
    Ok(answer)
}

/// Compares the copy with the tree; nothing may be changing.
pub(super) fn check_copy(stage: &Stage, story: &mut Story, what: &str) -> Result<()> {
    let different =
        differences(&stage.tree(), &stage.copy()).context("cannot compare the copy with the tree")?;
    for (path, why) in different.iter().take(5) {
        let path = if path == Path::new("") { Path::new(".") } else { path };
        story.say(&format!("differs: {} ({why})", path.display()));
    }
    story.check(what, different.is_empty());
    Ok(())
}
