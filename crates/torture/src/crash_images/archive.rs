//! A recording in a file, so that a failing state can be built again: numbers in little-endian, byte strings with their length. Where
//! there were gaps is not kept; only the drawing of states asks for it.
//!
//! Not a format to keep: it is read by the version that wrote it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;

use super::device::{Entry, Image, Operation, PAGE};
use super::run::{Recording, Snapshot};
use crate::object::{Kind, Object};
use crate::replica::Replica;

const MAGIC: u64 = 0x3130_6765_6d69_7768;

struct Out<W: Write> {
    to: W,
    /// Contents are stored once; then by number.
    contents: HashMap<*const u8, u64>,
    next: u64,
}

impl<W: Write> Out<W> {
    fn number(&mut self, number: u64) -> Result<()> {
        Ok(self.to.write_all(&number.to_le_bytes())?)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.number(bytes.len() as u64)?;
        Ok(self.to.write_all(bytes)?)
    }

    fn content(&mut self, content: &Arc<Vec<u8>>) -> Result<()> {
        // What is empty has no address of its own.
        if let Some(known) = self.contents.get(&content.as_ptr()).filter(|_| !content.is_empty()) {
            let known = *known;
            return self.number(known);
        }
        self.contents.insert(content.as_ptr(), self.next);
        self.number(self.next)?;
        self.next += 1;
        self.bytes(content)
    }
}

/// Writes a recording.
pub(crate) fn save(recording: &Recording, path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("cannot make {}", path.display()))?;
    let mut out = Out { to: BufWriter::new(file), contents: HashMap::new(), next: 0 };
    out.number(MAGIC)?;
    out.bytes(recording.target.name().as_bytes())?;
    out.bytes(recording.workload.name().as_bytes())?;
    for number in [recording.seed, u64::from(recording.commit_s), recording.begin as u64] {
        out.number(number)?;
    }
    for image in &recording.bases {
        out.number(image.pages.len() as u64)?;
        for (page, bytes) in &image.pages {
            out.number(*page)?;
            out.to.write_all(&bytes[..])?;
        }
    }
    out.number(recording.log.len() as u64)?;
    for entry in &recording.log {
        out.number(entry.device as u64)?;
        out.number(entry.offset)?;
        match &entry.operation {
            Operation::Write(data) => {
                out.number(0)?;
                out.bytes(data)?;
            }
            Operation::Zero(length) => {
                out.number(1)?;
                out.number(*length)?;
            }
            Operation::Flush => out.number(2)?,
        }
    }
    for snapshots in &recording.snapshots {
        out.number(snapshots.len() as u64)?;
        for snapshot in snapshots {
            out.bytes(snapshot.cursor.as_bytes())?;
            out.number(snapshot.applied as u64)?;
            out.number(snapshot.acked as u64)?;
            let all = snapshot.replica.everything();
            out.number(all.len() as u64)?;
            for (path, held) in all {
                out.bytes(&path)?;
                out.number(held.ino)?;
                let object = held.object;
                out.number(object.kind as u64)?;
                for number in [object.mode, object.uid, object.gid] {
                    out.number(u64::from(number))?;
                }
                out.number(object.rdev)?;
                out.bytes(&object.mtime_ns.to_le_bytes())?;
                out.number(object.xattrs.len() as u64)?;
                for (name, value) in &object.xattrs {
                    out.bytes(name)?;
                    out.bytes(value)?;
                }
                out.content(&object.content)?;
            }
        }
    }
    Ok(out.to.flush()?)
}

struct In<R: Read> {
    from: R,
    contents: Vec<Arc<Vec<u8>>>,
}

impl<R: Read> In<R> {
    fn number(&mut self) -> Result<u64> {
        let mut bytes = [0; 8];
        self.from.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn size(&mut self) -> Result<usize> {
        Ok(usize::try_from(self.number()?)?)
    }

    fn small(&mut self) -> Result<u32> {
        Ok(u32::try_from(self.number()?)?)
    }

    fn bytes(&mut self) -> Result<Vec<u8>> {
        let length = self.size()?;
        let mut bytes = vec![0; length];
        self.from.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn text(&mut self) -> Result<String> {
        Ok(String::from_utf8(self.bytes()?)?)
    }

    fn content(&mut self) -> Result<Arc<Vec<u8>>> {
        let number = self.size()?;
        if number == self.contents.len() {
            let content = Arc::new(self.bytes()?);
            self.contents.push(content);
        }
        self.contents.get(number).cloned().context("a content that is not there")
    }

    fn object(&mut self) -> Result<Object> {
        let kinds = [Kind::File, Kind::Directory, Kind::Symlink, Kind::Other];
        let kind = *kinds.get(self.size()?).context("no such kind")?;
        let (mode, uid, gid, rdev) = (self.small()?, self.small()?, self.small()?, self.number()?);
        let mtime_ns = i128::from_le_bytes(self.bytes()?[..].try_into()?);
        let mut xattrs = std::collections::BTreeMap::new();
        for _ in 0..self.size()? {
            let name = self.bytes()?;
            let value = self.bytes()?;
            xattrs.insert(name, value);
        }
        Ok(Object { kind, mode, uid, gid, rdev, mtime_ns, xattrs, content: self.content()? })
    }
}

/// Reads a recording.
pub(crate) fn load(path: &Path) -> Result<Recording> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut from = In { from: BufReader::new(file), contents: Vec::new() };
    ensure!(from.number()? == MAGIC, "{} is no recording", path.display());
    let named = |text: String| move |error: String| anyhow::anyhow!("{text}: {error}");
    let text = from.text()?;
    let target = ValueEnum::from_str(&text, false).map_err(named(text))?;
    let text = from.text()?;
    let workload = ValueEnum::from_str(&text, false).map_err(named(text))?;
    let (seed, commit_s, begin) = (from.number()?, from.small()?, from.size()?);
    let mut bases = [Image::default(), Image::default()];
    for image in &mut bases {
        for _ in 0..from.size()? {
            let page = from.number()?;
            let mut bytes = [0; PAGE];
            from.from.read_exact(&mut bytes)?;
            image.pages.insert(page, Arc::new(bytes));
        }
    }
    let mut log = Vec::new();
    for _ in 0..from.size()? {
        let (device, offset) = (from.size()?, from.number()?);
        let operation = match from.number()? {
            0 => Operation::Write(from.bytes()?.into()),
            1 => Operation::Zero(from.number()?),
            2 => Operation::Flush,
            other => bail!("no operation has the number {other}"),
        };
        log.push(Entry { device, offset, operation });
    }
    let mut snapshots = [Vec::new(), Vec::new()];
    for list in &mut snapshots {
        for _ in 0..from.size()? {
            let (cursor, applied, acked) = (from.text()?, from.size()?, from.size()?);
            let mut objects = Vec::new();
            for _ in 0..from.size()? {
                let path = from.bytes()?;
                let ino = from.number()?;
                objects.push((path, ino, from.object()?));
            }
            list.push(Snapshot { cursor, replica: Replica::of(objects), applied, acked });
        }
    }
    Ok(Recording { target, workload, seed, commit_s, bases, log, begin, snapshots, gaps: Vec::new() })
}
