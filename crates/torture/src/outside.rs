//! Somebody who works beside the tracked directory, on the same filesystem, and moves things in and out of it.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use fastrand::Rng;

use crate::worker::without_waiting;

/// What is outside at most: beyond that the oldest is removed or moved in.
const OUTSIDE_MAX: usize = 12;
const PAUSE: Duration = Duration::from_micros(300);

/// Works until it is over.
pub(crate) fn work(tree: &Path, evidence: &Path, mut rng: Rng, over: &AtomicBool) -> Result<()> {
    let outside = tree.with_file_name("outside");
    fs::create_dir_all(&outside)?;
    let mut log =
        fs::OpenOptions::new().create(true).append(true).open(evidence.join("writer-outside.log"))?;
    let mut count = 0u64;
    // ORDERING: a flag; the thread is joined before anything else is shared.
    while !over.load(Ordering::Relaxed) {
        count += 1;
        let mut what = String::new();
        let outcome = step(tree, &outside, &mut rng, count, &mut what);
        let outcome = outcome.map_or_else(|error| error.to_string(), |()| "ok".to_owned());
        writeln!(log, "{count} {} -> {outcome}", what.replace(&format!("{}/", tree.display()), ""))?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// One operation. Most errors are those of a race with the writers inside.
fn step(tree: &Path, outside: &Path, rng: &mut Rng, count: u64, what: &mut String) -> io::Result<()> {
    let held = entries(outside)?;
    match rng.u32(0..8) {
        0 | 1 if held.len() < OUTSIDE_MAX => {
            let directory = outside.join(format!("d{count}"));
            *what = format!("make {}", directory.display());
            fs::create_dir_all(directory.join("below/deeper"))?;
            fs::write(directory.join("file"), format!("<outside.{count}>"))?;
            fs::write(directory.join("below/deeper/file"), format!("<outside.{count}>"))
        }
        0..=3 => {
            let Some(from) = pick(&held, rng) else { return Ok(()) };
            let into = directory_below(tree, rng)?;
            let to = into.join(format!("o{}", rng.u32(0..12)));
            *what = format!("move in {} -> {}", from.display(), to.display());
            fs::rename(from, to)
        }
        4 | 5 => {
            let directory = directory_below(tree, rng)?;
            let Some(from) = pick(&entries(&directory)?, rng) else { return Ok(()) };
            let to = outside.join(format!("t{count}"));
            *what = format!("move out {} -> {}", from.display(), to.display());
            fs::rename(&from, &to)?;
            if rng.bool() {
                // What happens outside is nobody's business, until it comes back.
                change_below(&to, rng, count)?;
                *what += " and back";
                fs::rename(to, from)?;
            }
            Ok(())
        }
        6 => {
            let Some(victim) = pick(&held, rng) else { return Ok(()) };
            *what = format!("change {}", victim.display());
            change_below(&victim, rng, count)
        }
        _ if held.len() >= OUTSIDE_MAX => {
            let Some(victim) = pick(&held, rng) else { return Ok(()) };
            *what = format!("remove {}", victim.display());
            if victim.symlink_metadata()?.is_dir() {
                fs::remove_dir_all(victim)
            } else {
                fs::remove_file(victim)
            }
        }
        _ => Ok(()),
    }
}

/// Writes to something at or below a path, or makes something new there. Not to a file that may have a name in the tree as well: what is
/// written by a name outside is not promised (docs/guarantees.md).
fn change_below(path: &Path, rng: &mut Rng, count: u64) -> io::Result<()> {
    let metadata = path.symlink_metadata()?;
    let kind = metadata.file_type();
    if kind.is_file() && metadata.nlink() > 1 {
        return Ok(());
    }
    if kind.is_file() {
        return without_waiting().append(true).open(path)?.write_all(format!("<outside.{count}>").as_bytes());
    }
    if !kind.is_dir() {
        return Ok(());
    }
    let directory = directory_below(path, rng)?;
    match pick(&entries(&directory)?, rng) {
        Some(file) if file.symlink_metadata()?.is_file() => {
            if file.symlink_metadata()?.nlink() > 1 {
                return Ok(());
            }
            without_waiting().append(true).open(file)?.write_all(format!("<outside.{count}>").as_bytes())
        }
        _ => {
            let file = directory.join(format!("outside-{}", rng.u32(0..6)));
            if file.symlink_metadata().is_ok_and(|metadata| metadata.nlink() > 1) {
                return Ok(());
            }
            let mut file = without_waiting().write(true).create(true).truncate(true).open(file)?;
            file.write_all(format!("<outside.{count}>").as_bytes())
        }
    }
}

/// The directory itself or one below it.
fn directory_below(directory: &Path, rng: &mut Rng) -> io::Result<PathBuf> {
    let mut at = directory.to_owned();
    while rng.u32(0..3) > 0 {
        let below: Vec<PathBuf> = entries(&at)?
            .into_iter()
            .filter(|path| path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()))
            .collect();
        let Some(next) = pick(&below, rng) else { break };
        at = next;
    }
    Ok(at)
}

fn pick(paths: &[PathBuf], rng: &mut Rng) -> Option<PathBuf> {
    (!paths.is_empty()).then(|| paths[rng.usize(..paths.len())].clone())
}

fn entries(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(directory)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    entries.sort();
    Ok(entries)
}
