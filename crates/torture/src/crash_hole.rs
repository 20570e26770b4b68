//! Writes through a descriptor and a mapping that outlive the tracker. G1 and G4.
//!
//! On a mount with FUSE_PASSTHROUGH the kernel lets a descriptor that was open before the tracker died write to the file
//! below for as long as it stays open: after the death, and after the next tracker has mounted the tree again. The next
//! tracker cannot see these writes, so it has to tell such a file in each batch, or to make the writes fail.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

use crate::line::covers;
use crate::mapping::{Mapping, survive_sigbus};
use crate::product::{Product, ProductArgs};
use crate::scratch::{Filesystem, Scratch};

const SIZE: usize = 8192;

/// Writes through descriptors and mappings that survived kill -9 of the tracker have to be told.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CrashHoleArgs {
    /// What the tree is on: ext4, xfs, btrfs, tmpfs, or a directory.
    #[arg(long, default_value = "ext4", value_name = "FS|DIR")]
    dir_fs: Filesystem,
    #[command(flatten)]
    product: ProductArgs,
}

/// Runs it.
pub(crate) fn main(arguments: &CrashHoleArgs) -> Result<()> {
    survive_sigbus();
    let scratch = Scratch::new(&arguments.dir_fs, None, "hole", 512)?;
    let told = hole(arguments, &scratch)
        .with_context(|| format!("crash-hole: FAIL; evidence: {}", scratch.evidence.display()))?;
    scratch.discard_evidence();
    println!("crash-hole: PASS: {told}");
    Ok(())
}

/// One way to write through what was opened before the crash.
struct Survivor {
    name: &'static str,
    file: Option<File>,
    mapping: Option<Mapping>,
}

impl Survivor {
    /// Writes `byte` everywhere. Errors and stores that go nowhere are as good: then nothing has changed.
    fn write(&mut self, byte: u8) -> String {
        let data = [byte; SIZE];
        match (&self.file, &mut self.mapping) {
            (_, Some(mapping)) => match mapping.store(0, &data) {
                true => "stored".to_owned(),
                false => "SIGBUS".to_owned(),
            },
            (Some(file), None) => match file.write_all_at(&data, 0) {
                Ok(()) => "written".to_owned(),
                Err(error) => error.to_string(),
            },
            (None, None) => "nothing open".to_owned(),
        }
    }
}

fn hole(arguments: &CrashHoleArgs, scratch: &Scratch) -> Result<String> {
    for name in ["descriptor", "mapping", "both", "late-mapping", "untouched", "moved"] {
        fs::write(scratch.tree.join(name), [b'0'; SIZE])?;
    }
    let product = Product::new(&arguments.product, &scratch.tree, &scratch.state, &scratch.evidence)?;
    let (tracking, _) = product.track()?;
    product.add_consumer("hole").map_err(|error| anyhow::anyhow!("consumer add: {error}"))?;

    let open = |name: &str| OpenOptions::new().read(true).write(true).open(scratch.tree.join(name));
    let map = |name: &str| open(name).and_then(|file| Mapping::of(&file, SIZE));
    let mut survivors = vec![
        Survivor { name: "descriptor", file: Some(open("descriptor")?), mapping: None },
        Survivor { name: "mapping", file: None, mapping: Some(map("mapping")?) },
        Survivor { name: "both", file: Some(open("both")?), mapping: Some(map("both")?) },
        Survivor { name: "late-mapping", file: Some(open("late-mapping")?), mapping: None },
        Survivor { name: "moved", file: Some(open("moved")?), mapping: None },
    ];
    for survivor in &mut survivors {
        survivor.write(b'1');
    }
    let first = product.changes("hole").map_err(|error| anyhow::anyhow!("changes: {error}"))?;
    product.ack("hole", &first.cursor).map_err(|error| anyhow::anyhow!("ack: {error}"))?;

    tracking.kill()?;
    let mut seen = contents(scratch, &survivors)?;
    let mut told = Vec::new();
    let dead = write_all(&mut survivors, b'2');
    // A mapping can also be made from an old descriptor after the death.
    for survivor in survivors.iter_mut().filter(|survivor| survivor.name == "late-mapping") {
        if let Some(file) = &survivor.file {
            survivor.mapping = Mapping::of(file, SIZE).ok();
        }
        told.push(format!("mapping made after the death: {}", survivor.write(b'3')));
    }
    told.push(format!("dead: {dead}"));

    let (tracking, _) = product.track().context("after kill -9")?;
    expect(&product, scratch, &survivors, &mut seen, "after the death of the tracker")?;
    for (round, byte) in [b'4', b'5', b'6'].into_iter().enumerate() {
        if round == 1 {
            fs::rename(scratch.tree.join("moved"), scratch.tree.join("moved-on"))?;
            for survivor in survivors.iter_mut().filter(|survivor| survivor.name == "moved") {
                survivor.name = "moved-on";
            }
            seen = contents(scratch, &survivors)?;
        }
        let alive = write_all(&mut survivors, byte);
        told.push(format!("tracked again, batch {}: {alive}", round + 1));
        expect(&product, scratch, &survivors, &mut seen, "written after tracking again")?;
    }
    // They outlive the next tracker as well, and what was renamed meanwhile is not where their old mount says.
    tracking.kill()?;
    told.push(format!("dead again: {}", write_all(&mut survivors, b'7')));
    let (tracking, _) = product.track().context("after the second kill -9")?;
    expect(&product, scratch, &survivors, &mut seen, "after the death of the second tracker")?;
    for byte in [b'8', b'9'] {
        let alive = write_all(&mut survivors, byte);
        told.push(format!("tracked a third time: {alive}"));
        expect(&product, scratch, &survivors, &mut seen, "written after the third start")?;
    }
    drop(survivors);
    product.stop(tracking)?;
    Ok(told.join("; "))
}

fn write_all(survivors: &mut [Survivor], byte: u8) -> String {
    let write = |survivor: &mut Survivor| {
        let outcome = survivor.write(byte);
        format!("{} {outcome}", survivor.name)
    };
    survivors.iter_mut().map(write).collect::<Vec<_>>().join(", ")
}

/// As the filesystem below has them, which no dead mount hides.
fn contents(scratch: &Scratch, survivors: &[Survivor]) -> Result<Vec<Vec<u8>>> {
    Ok(survivors.iter().map(|s| fs::read(scratch.lower.join(s.name))).collect::<Result<_, _>>()?)
}

/// Takes and acks an answer; what has changed below since `seen` has to be in it.
fn expect(
    product: &Product,
    scratch: &Scratch,
    survivors: &[Survivor],
    seen: &mut Vec<Vec<u8>>,
    when: &str,
) -> Result<()> {
    let now = contents(scratch, survivors)?;
    let answer = product.changes("hole").map_err(|error| anyhow::anyhow!("changes: {error}"))?;
    ensure!(!answer.fresh, "the answer is fresh");
    for (index, survivor) in survivors.iter().enumerate() {
        let has_changed = now[index] != seen[index];
        ensure!(
            !has_changed || covers(&answer.lines, survivor.name.as_bytes()),
            "{}: changed on disk ({when}) and is not told; the answer: {:?}",
            survivor.name,
            answer.lines.iter().map(crate::line::Line::show).collect::<Vec<_>>()
        );
        let shown = fs::read(scratch.tree.join(survivor.name))?;
        ensure!(
            shown == now[index],
            "{}: the mount shows other data than the file below has ({when})",
            survivor.name
        );
    }
    product.ack("hole", &answer.cursor).map_err(|error| anyhow::anyhow!("ack: {error}"))?;
    *seen = now;
    Ok(())
}
