//! A source on a real temporary directory, for tests of the tracker alone. Handles are inode numbers: nothing is removed for
//! good while a test runs, so none is used again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use highwater_journal::{Directory, Storage};
use highwater_tracker::{
    Change, Config, Cursor, FileHandle, Intent, Line, ObjectType, Opening, Place, Sample, Since, Source,
    Tracker, VolumeFacts,
};

pub(crate) struct TestSource {
    pub(crate) root: PathBuf,
    pub(crate) settled: AtomicU64,
    /// The kernel does not show what has been done: `settle` fails.
    pub(crate) is_unsettled: AtomicBool,
    pub(crate) synced: AtomicU64,
    /// Names that the source has not met: it tells objects by others only.
    pub(crate) unknown: Mutex<HashSet<PathBuf>>,
    /// Runs once, in the next `settle`: what other threads do while a checkpoint is under way.
    pub(crate) meanwhile: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

pub(crate) fn handle(path: &Path) -> FileHandle {
    let ino = fs::symlink_metadata(path).unwrap().ino();
    FileHandle::new(1, &ino.to_le_bytes()).unwrap()
}

pub(crate) fn object_type(path: &Path) -> ObjectType {
    let file_type = fs::symlink_metadata(path).unwrap().file_type();
    if file_type.is_dir() {
        ObjectType::Directory
    } else if file_type.is_file() {
        ObjectType::File
    } else {
        ObjectType::Symlink
    }
}

pub(crate) fn place(path: &Path) -> Place {
    Place { parent: handle(path.parent().unwrap()), name: path.file_name().unwrap().as_bytes().into() }
}

impl TestSource {
    fn all_paths(&self) -> Vec<PathBuf> {
        let mut paths = vec![self.root.clone()];
        let mut next = 0;
        while next < paths.len() {
            if object_type(&paths[next]) == ObjectType::Directory {
                paths.extend(fs::read_dir(&paths[next]).unwrap().map(|entry| entry.unwrap().path()));
            }
            next += 1;
        }
        paths
    }

    fn paths(&self, object: &FileHandle) -> Vec<PathBuf> {
        self.all_paths().into_iter().filter(|path| handle(path) == *object).collect()
    }
}

impl Source for TestSource {
    fn settle(&self, _: Option<Instant>) -> io::Result<()> {
        if self.is_unsettled.load(Ordering::SeqCst) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.settled.fetch_add(1, Ordering::SeqCst);
        let meanwhile = self.meanwhile.lock().unwrap().take();
        if let Some(meanwhile) = meanwhile {
            meanwhile();
        }
        Ok(())
    }

    fn places(&self, object: &FileHandle) -> Option<Vec<Place>> {
        let unknown = self.unknown.lock().unwrap();
        let known = |path: &&PathBuf| **path != self.root && !unknown.contains(*path);
        Some(self.paths(object).iter().filter(known).map(|path| place(path)).collect())
    }

    fn sample(&self, object: &FileHandle) -> io::Result<Option<Sample>> {
        let Some(path) = self.paths(object).pop() else { return Ok(None) };
        let metadata = fs::metadata(path)?;
        Ok(Some(Sample {
            mtime_ns: i128::from(metadata.mtime()) * 1_000_000_000 + i128::from(metadata.mtime_nsec()),
            ctime_ns: i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec()),
            size: metadata.size(),
            nlink: metadata.nlink(),
        }))
    }

    fn wait_for_writes(&self, _: &FileHandle, _: Option<Instant>) -> io::Result<()> {
        Ok(())
    }

    fn mapped_writable(&self, _: &[FileHandle]) -> io::Result<HashSet<FileHandle>> {
        Ok(HashSet::new())
    }

    fn timestamps_are_distinct(&self) -> bool {
        true
    }

    fn sync_filesystem(&self) -> io::Result<()> {
        self.synced.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn open_directory(&self, directory: &FileHandle) -> io::Result<Option<OwnedFd>> {
        match self.paths(directory).pop() {
            Some(path) => Ok(Some(fs::File::open(path)?.into())),
            None => Ok(None),
        }
    }

    fn handle_at(&self, directory: &OwnedFd, name: &[u8]) -> io::Result<Option<(FileHandle, ObjectType)>> {
        use std::os::fd::AsRawFd;
        let path = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
        let path = path.join(std::ffi::OsStr::from_bytes(name));
        Ok(path.symlink_metadata().is_ok().then(|| (handle(&path), object_type(&path))))
    }
}

/// A tracked directory and its state, in one temporary directory.
pub(crate) struct Volume<S: Storage = Directory> {
    pub(crate) tracker: Arc<Tracker<S>>,
    pub(crate) source: Arc<TestSource>,
    pub(crate) opening: Opening,
    pub(crate) root: PathBuf,
}

pub(crate) fn facts(root: &Path, boot_id: &str, unbroken: bool) -> VolumeFacts {
    VolumeFacts { root: handle(root), directory: root.to_owned(), boot_id: boot_id.to_owned(), unbroken }
}

pub(crate) fn source(root: &Path) -> Arc<TestSource> {
    Arc::new(TestSource {
        root: root.to_owned(),
        settled: AtomicU64::new(0),
        is_unsettled: AtomicBool::new(false),
        synced: AtomicU64::new(0),
        unknown: Mutex::default(),
        meanwhile: Mutex::new(None),
    })
}

pub(crate) fn config() -> Config {
    let mut config = Config::default();
    // The tests move the horizon themselves.
    config.horizon_every = std::time::Duration::from_secs(1 << 20);
    config.journal.segment_bytes = 64 << 10;
    config.journal.limit_bytes = 1 << 20;
    config.journal.retain_bytes = 1 << 20;
    config
}

impl Volume {
    /// Opens the volume in `directory`, which keeps `tree` and `state`.
    pub(crate) fn open(directory: &Path) -> Self {
        Self::open_with(directory, "boot", true, config())
    }

    pub(crate) fn open_with(directory: &Path, boot_id: &str, unbroken: bool, config: Config) -> Self {
        let storage = Directory::open(directory.join("state")).unwrap();
        Self::open_on(storage, directory, boot_id, unbroken, config)
    }
}

impl<S: Storage> Volume<S> {
    pub(crate) fn open_on(
        storage: S,
        directory: &Path,
        boot_id: &str,
        unbroken: bool,
        config: Config,
    ) -> Self {
        let root = directory.join("tree");
        fs::create_dir_all(&root).unwrap();
        let (tracker, opening) = Tracker::open(storage, facts(&root, boot_id, unbroken), config).unwrap();
        let source = source(&root);
        tracker.start(Arc::clone(&source) as Arc<dyn Source>).unwrap();
        Self { tracker, source, opening, root }
    }

    /// Does something in the middle of the next checkpoint, after its flip.
    pub(crate) fn meanwhile(&self, operation: impl FnOnce() + Send + 'static) {
        *self.source.meanwhile.lock().unwrap() = Some(Box::new(operation));
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    // Operations as a source does them.

    pub(crate) fn create(&self, path: &str) {
        self.make(path, |path| fs::write(path, path.as_os_str().as_bytes()).unwrap());
    }

    pub(crate) fn mkdir(&self, path: &str) {
        self.make(path, |path| fs::create_dir(path).unwrap());
    }

    fn make(&self, path: &str, make: impl FnOnce(&Path)) {
        let path = self.path(path);
        let section = self.tracker.section();
        section.intend(&[Intent::Directory(&handle(path.parent().unwrap()))]).unwrap();
        make(&path);
        let change =
            Change::Created { object: handle(&path), object_type: object_type(&path), place: place(&path) };
        section.record(change, || {});
    }

    pub(crate) fn write(&self, path: &str, data: &str) {
        let path = self.path(path);
        let section = self.tracker.section();
        section.intend(&[Intent::Directory(&handle(path.parent().unwrap()))]).unwrap();
        fs::write(&path, data).unwrap();
        section.record(Change::Modified { object: handle(&path) }, || {});
    }

    pub(crate) fn rename(&self, from: &str, to: &str) {
        let (from, to) = (self.path(from), self.path(to));
        let section = self.tracker.section();
        let parents = [handle(from.parent().unwrap()), handle(to.parent().unwrap())];
        section.intend(&[Intent::Directory(&parents[0]), Intent::Directory(&parents[1])]).unwrap();
        if object_type(&from) == ObjectType::Directory {
            section.intend(&[Intent::Move(&handle(&from))]).unwrap();
        }
        let (object, object_type, from_place) = (handle(&from), object_type(&from), place(&from));
        let replaced = to.symlink_metadata().ok().map(|_| (handle(&to), self::object_type(&to)));
        fs::rename(&from, &to).unwrap();
        section.record(
            Change::Renamed { object, object_type, from: from_place, to: place(&to), replaced },
            || {},
        );
    }

    pub(crate) fn remove(&self, path: &str) {
        let path = self.path(path);
        let section = self.tracker.section();
        section.intend(&[Intent::Directory(&handle(path.parent().unwrap()))]).unwrap();
        let change =
            Change::Removed { object: handle(&path), object_type: object_type(&path), place: place(&path) };
        if path.is_dir() {
            fs::remove_dir(&path).unwrap()
        } else {
            fs::remove_file(&path).unwrap()
        }
        section.record(change, || {});
    }

    // Questions.

    pub(crate) fn now(&self) -> Cursor {
        self.tracker.changes(&Since::Now, None).unwrap().cursor
    }

    /// The lines since a cursor, in short: `kind path`, `kind path < from`, `rescan* path` if recursive. And the next cursor.
    pub(crate) fn since(&self, cursor: Cursor) -> (Vec<String>, Cursor) {
        let answer = self.tracker.changes(&Since::Cursor(cursor), None).unwrap();
        assert_eq!(answer.fresh, None);
        (answer.lines.iter().map(brief).collect(), answer.cursor)
    }
}

pub(crate) fn brief(line: &Line) -> String {
    let kind = format!("{:?}", line.kind).to_lowercase();
    let path = String::from_utf8_lossy(&line.path);
    let from = line.from.as_ref().map(|from| format!(" < {}", String::from_utf8_lossy(from)));
    format!("{kind}{} {path}{}", if line.recursive { "*" } else { "" }, from.unwrap_or_default())
}
