//! Single bytes of a state are changed: through the real binary, a sample.
//!
//! Every byte of a small one, through the library, is a test of `crates/tracker` (`tests/damage.rs`).

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;

use super::consumer::Fresh;
use super::script;
use super::stage::Stage;
use crate::product::ProductArgs;

/// Bytes that are changed, one at a time.
const SAMPLES: u64 = 12;

/// Runs it.
pub(crate) fn run(arguments: &ProductArgs) -> Result<String> {
    let mut stage = Stage::new(arguments, "damage", "ext4", &[])?.begin()?;
    let tree = stage.tree();
    let state = stage.scratch.state.clone();
    let mut rng = Rng::with_seed(7);
    let (mut noticed, mut fresh, mut right) = (0, 0, 0);
    for sample in 0..SAMPLES {
        script::run(&tree, 10 + sample);
        stage.check(Fresh::Allowed)?;
        script::run(&tree, 1000 + sample);
        stage.stop()?;
        script::in_the_gap(&tree, sample)?;
        let (file, at) = target(&state, &mut rng)?;
        let handle = fs::File::options().read(true).write(true).open(&file)?;
        let mut byte = [0];
        handle.read_exact_at(&mut byte, at)?;
        let bit = 1 << rng.u8(0..8);
        handle.write_all_at(&[byte[0] ^ bit], at)?;
        drop(handle);
        let what = format!("bit {bit:#x} of byte {at} of {}", file.file_name().unwrap_or_default().display());
        let inspected = stage.run(stage.product.command("inspect").arg(&state).arg("--verify"))?;
        noticed += u64::from(!inspected.status.success());
        let before = stage.fresh();
        match stage.try_track()? {
            Ok(()) => {}
            Err(why) => {
                ensure!(!why.contains("bug in highwater"), "{what}: {why}");
                // An error is an answer; the volume begins anew.
                fs::remove_dir_all(&state)?;
                stage.track().with_context(|| what.clone())?;
            }
        }
        let has_consumer = stage.product.changes("faults").is_ok();
        if !has_consumer {
            // It is gone with the list of consumers, and knows that.
            let tree = stage.tree();
            let mut consumer = super::consumer::Consumer::add(&stage.product, "faults")?;
            consumer.check(&stage.product, &tree, Fresh::Never)?;
            stage.consumer = Some(consumer);
            fresh += 1;
            continue;
        }
        stage.check(Fresh::Allowed).with_context(|| what.clone())?;
        if stage.fresh() > before { fresh += 1 } else { right += 1 }
    }
    ensure!(noticed > 0 && fresh > 0, "no damage was noticed: the bytes were changed elsewhere");
    stage.pass(format!(
        "{SAMPLES} single bits: {noticed} noticed by inspect --verify; answers {right} right, {fresh} fresh"
    ))
}

/// A file of the state and a byte of it that holds something: of a segment, not the zeros at its end.
fn target(state: &std::path::Path, rng: &mut Rng) -> Result<(PathBuf, u64)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(state)? {
        let path = entry?.path();
        let bytes = fs::read(&path)?;
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
        if used > 0 && path.file_name().is_some_and(|name| name != "lock" && name != "tracker.log") {
            files.push((path, used));
        }
    }
    files.sort();
    let (path, used) = files.get(rng.usize(0..files.len())).context("the state is empty")?.clone();
    Ok((path, rng.u64(0..used)))
}
