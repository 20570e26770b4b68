//! A reference consumer: keeps a copy of a tree from change lists alone.
//!
//! It reads the tree only after it has a list, and only what the list names; it looks at the whole tree only when the answer
//! is fresh. So if the copy equals the tree in the end, the lists were complete.
//!
//! What it reads may be newer than the list: the tree goes on changing. Something that is not there (any more) is left out:
//! a later list tells what became of it. A read that fails for another reason is an error, and the list must not be acked.

use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use highwater_client::{Change, Changes, Kind, ObjectType};

/// A tree, and a copy of it elsewhere.
#[derive(Debug)]
pub struct Replica {
    source: PathBuf,
    copy: PathBuf,
    work: Work,
}

/// How much a replica has done, to show that it followed the lists and did not read everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Lines applied.
    pub lines: u64,
    /// Objects read from the tree.
    pub objects_read: u64,
    /// Full passes.
    pub full_passes: u64,
}

/// A list that cannot be applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplicaError {
    /// A path of the list would lead out of the tree.
    #[error("the list names {path}, which is not a path inside the tree", path = path.display())]
    Path {
        /// The path.
        path: PathBuf,
    },
    /// Reading the tree or writing the copy failed.
    #[error("cannot apply {} {path}", kind.as_str(), path = path.display())]
    Io {
        /// The kind of the line.
        kind: Kind,
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A full pass failed.
    #[error("cannot copy {path} whole", path = path.display())]
    FullPass {
        /// The tree.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl Replica {
    /// A copy in a directory that exists; what is in it is taken for what the last list said.
    pub fn new(source: impl Into<PathBuf>, copy: impl Into<PathBuf>) -> Self {
        Self { source: source.into(), copy: copy.into(), work: Work::default() }
    }

    /// What it has done so far.
    pub fn work(&self) -> Work {
        self.work
    }

    /// Applies a whole answer. Only after this may its cursor be acked.
    pub fn apply(&mut self, answer: &Changes) -> Result<(), ReplicaError> {
        if answer.fresh {
            self.work.full_passes += 1;
            let root = Path::new("");
            return self
                .rescan(root, true)
                .map_err(|source| ReplicaError::FullPass { path: self.source.clone(), source });
        }
        answer.changes.iter().try_for_each(|change| self.apply_line(change))
    }

    fn apply_line(&mut self, change: &Change) -> Result<(), ReplicaError> {
        self.work.lines += 1;
        let path = inside(&change.path)?;
        let from = change.from.as_deref().map(inside).transpose()?;
        let done = match (change.kind, from) {
            (Kind::Created, _) => self.take_new(&path),
            (Kind::Modified | Kind::Metadata, _) => self.take(&path),
            (Kind::Deleted, _) => remove(&self.copy.join(&path)),
            (Kind::Renamed, Some(from)) => self.rename(&from, &path, change.object_type),
            (Kind::Renamed, None) => self.take_whole(&path),
            (Kind::Rescan, _) => self.rescan(&path, change.recursive),
        };
        done.map_err(|source| ReplicaError::Io { kind: change.kind, path, source })
    }

    /// A new object: what the copy has there already is something else.
    fn take_new(&mut self, path: &Path) -> io::Result<()> {
        if path != Path::new("") {
            remove(&self.copy.join(path))?;
        }
        self.take(path)
    }

    /// Makes one object of the copy like that of the tree; of a directory the metadata and not the entries.
    fn take(&mut self, path: &Path) -> io::Result<()> {
        self.work.objects_read += 1;
        let (from, to) = (self.source.join(path), self.copy.join(path));
        if !to.parent().is_some_and(Path::is_dir) {
            // The directory that it is in has gone or moved since: a later list says so.
            return Ok(());
        }
        gone_is_fine(take_object(&from, &to))
    }

    /// What the copy holds at `from` is at `path` now.
    fn rename(&mut self, from: &Path, path: &Path, object_type: ObjectType) -> io::Result<()> {
        let (held, to) = (self.copy.join(from), self.copy.join(path));
        let Some(held_type) = gone_as_none(held.symlink_metadata())? else { return self.take_whole(path) };
        if held_type.is_dir() != (object_type == ObjectType::Dir) {
            // Not the object that was renamed: it was read there after the rename.
            return self.take_whole(path);
        }
        if !to.parent().is_some_and(Path::is_dir) {
            return remove(&held);
        }
        remove(&to)?;
        std::fs::rename(&held, &to)
    }

    /// Takes an object with all that is in it.
    fn take_whole(&mut self, path: &Path) -> io::Result<()> {
        remove(&self.copy.join(path))?;
        self.take(path)?;
        if self.copy.join(path).symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
            self.rescan(path, true)?;
        }
        Ok(())
    }

    /// Compares a directory with the copy's: takes a child that the copy does not have whole, deletes what is missing, and
    /// takes those that are there; with `recursive` everything below as well.
    fn rescan(&mut self, path: &Path, recursive: bool) -> io::Result<()> {
        let to = self.copy.join(path);
        let Some(metadata) = gone_as_none(self.source.join(path).symlink_metadata())? else {
            return remove(&to);
        };
        self.take(path)?;
        if !metadata.is_dir() || !to.is_dir() {
            return Ok(());
        }
        let Some(names) = gone_as_none(names(&self.source.join(path)))? else { return Ok(()) };
        for held in self::names(&to)? {
            if !names.contains(&held) {
                remove(&to.join(held))?;
            }
        }
        for name in names {
            let child = path.join(&name);
            let held = self.copy.join(&child).symlink_metadata();
            let is_directory =
                gone_as_none(self.source.join(&child).symlink_metadata())?.is_some_and(|m| m.is_dir());
            match held {
                Ok(held) if is_directory && held.is_dir() => {
                    if recursive {
                        self.rescan(&child, true)?;
                    } else {
                        self.take(&child)?;
                    }
                }
                _ if is_directory => self.take_whole(&child)?,
                _ => self.take(&child)?,
            }
        }
        Ok(())
    }
}

/// A path of a list, checked; the root is the empty path.
fn inside(bytes: &[u8]) -> Result<PathBuf, ReplicaError> {
    let path = Path::new(OsStr::from_bytes(bytes));
    if bytes == b"." {
        return Ok(PathBuf::new());
    }
    let plain = path.components().all(|component| matches!(component, Component::Normal(_)));
    if plain && !bytes.is_empty() {
        Ok(path.to_owned())
    } else {
        Err(ReplicaError::Path { path: path.to_owned() })
    }
}

fn names(directory: &Path) -> io::Result<std::collections::BTreeSet<OsString>> {
    std::fs::read_dir(directory)?.map(|entry| Ok(entry?.file_name())).collect()
}

/// Makes one object like another one, of whatever type.
fn take_object(from: &Path, to: &Path) -> io::Result<()> {
    let metadata = match from.symlink_metadata() {
        Err(error) if is_gone(&error) => return remove(to),
        metadata => metadata?,
    };
    let held = gone_as_none(to.symlink_metadata())?;
    if held.as_ref().is_some_and(|held| held.file_type() != metadata.file_type()) {
        remove(to)?;
    }
    let file_type = metadata.file_type();
    if file_type.is_dir() {
        match std::fs::create_dir(to) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            made => made?,
        }
    } else if file_type.is_symlink() {
        remove(to)?;
        return symlink(std::fs::read_link(from)?, to);
    } else if file_type.is_file() {
        let mut content = Vec::new();
        std::fs::File::open(from)?.read_to_end(&mut content)?;
        // Anew, so that a second name of the old file keeps what it had.
        remove(to)?;
        std::fs::write(to, content)?;
    } else {
        remove(to)?;
        // Its type is told in the comparison; its content is nobody's.
        rustix::fs::mknodat(rustix::fs::CWD, to, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)?;
    }
    std::fs::set_permissions(to, metadata.permissions())
}

fn remove(path: &Path) -> io::Result<()> {
    let Some(metadata) = gone_as_none(path.symlink_metadata())? else { return Ok(()) };
    if metadata.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}

/// It is gone, or another object of another type has taken its place since it was looked at: `readlink` says `EINVAL`, `read` says
/// `EISDIR`. A later list tells what is there.
fn is_gone(error: &io::Error) -> bool {
    use ErrorKind::{InvalidInput, IsADirectory, NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory | InvalidInput | IsADirectory)
}

fn gone_is_fine(done: io::Result<()>) -> io::Result<()> {
    gone_as_none(done).map(drop)
}

fn gone_as_none<T>(found: io::Result<T>) -> io::Result<Option<T>> {
    match found {
        Err(error) if is_gone(&error) => Ok(None),
        found => found.map(Some),
    }
}

/// Compares two trees: names, types, modes, contents, targets. Gives each path that differs, and why.
pub fn differences(a: &Path, b: &Path) -> io::Result<Vec<(PathBuf, &'static str)>> {
    let mut found = Vec::new();
    let mut waiting = vec![PathBuf::new()];
    while let Some(path) = waiting.pop() {
        let (in_a, in_b) = (a.join(&path), b.join(&path));
        let (meta_a, meta_b) =
            (gone_as_none(in_a.symlink_metadata())?, gone_as_none(in_b.symlink_metadata())?);
        match (meta_a, meta_b) {
            (Some(meta_a), Some(meta_b)) => {
                if let Some(why) = difference(&in_a, &meta_a, &in_b, &meta_b)? {
                    found.push((path, why));
                } else if meta_a.is_dir() {
                    let names = names(&in_a)?.into_iter().chain(names(&in_b)?);
                    let names: std::collections::BTreeSet<OsString> = names.collect();
                    waiting.extend(names.into_iter().map(|name| path.join(name)));
                }
            }
            (Some(_), None) => found.push((path, "missing")),
            (None, Some(_)) => found.push((path, "too much")),
            (None, None) => {}
        }
    }
    Ok(found)
}

fn difference(a: &Path, meta_a: &Metadata, b: &Path, meta_b: &Metadata) -> io::Result<Option<&'static str>> {
    let kind = |metadata: &Metadata| {
        let file_type = metadata.file_type();
        let special = file_type.is_fifo() || file_type.is_socket() || file_type.is_char_device();
        (
            file_type.is_dir(),
            file_type.is_file(),
            file_type.is_symlink(),
            special || file_type.is_block_device(),
        )
    };
    if kind(meta_a) != kind(meta_b) {
        return Ok(Some("another type"));
    }
    if meta_a.is_symlink() {
        return Ok((std::fs::read_link(a)? != std::fs::read_link(b)?).then_some("another target"));
    }
    if meta_a.permissions().mode() != meta_b.permissions().mode() {
        return Ok(Some("another mode"));
    }
    if meta_a.is_file() && (meta_a.size() != meta_b.size() || std::fs::read(a)? != std::fs::read(b)?) {
        return Ok(Some("other content"));
    }
    Ok(None)
}
