//! Simulated storage for the tracker's state: what a disk may do at a crash, and worse.
//!
//! Fault model. What was synced is there. Of what was not, at a crash:
//!
//! - each 512-byte sector of each write is kept or dropped, in any order (or, where asked for, filled with garbage);
//! - each creation and removal of a file is kept or dropped; a file's new length likewise;
//! - a [`Storage::replace`] under way has happened or not.
//!
//! On demand an operation fails with `EIO` or `ENOSPC`; a write that fails has been done in part. A kill of the process keeps
//! everything that was written.
//!
//! Invariant: every operation that changes something tells the [`Watcher`], at the moment at which its effect is there and not
//! durable: a crash in that moment is a crash in the middle of the operation.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Weak};

use highwater_journal::{Storage, StorageFile};
use parking_lot::Mutex;

use crate::random::Random;

const SECTOR_BYTES: usize = 512;
const PAGE_BYTES: usize = 4096;

/// Told of every operation that changes something.
pub trait Watcher: Send + Sync {
    /// The operation has had its effect, and nothing of it is durable.
    fn in_operation(&self, operation: Operation);
}

/// An operation that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A file is made.
    Create,
    /// A file is removed.
    Remove,
    /// A small file is replaced.
    Replace,
    /// The directory is synced.
    SyncDirectory,
    /// Bytes are written.
    Write,
    /// A file is synced.
    SyncData,
    /// A file is made longer.
    Preallocate,
}

/// What a crash does with what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Everything is there.
    Kept,
    /// Nothing is there.
    Dropped,
    /// The seed decides, for each sector and each name.
    Random(u64),
    /// As random, and some sectors are filled with garbage.
    Trashed(u64),
}

/// Bytes in shared pages: a copy of a file costs a few reference counts.
#[derive(Clone, Debug, Default)]
struct Bytes {
    pages: Vec<Option<Arc<[u8; PAGE_BYTES]>>>,
    len: usize,
}

impl Bytes {
    fn of(bytes: &[u8]) -> Self {
        let mut this = Self::default();
        this.resize(bytes.len());
        this.put(0, bytes);
        this
    }

    fn resize(&mut self, len: usize) {
        self.pages.resize(len.div_ceil(PAGE_BYTES), None);
        self.len = len;
    }

    /// Writes as far as the length reaches.
    fn put(&mut self, offset: usize, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() && offset + done < self.len {
            let (page, at) = ((offset + done) / PAGE_BYTES, (offset + done) % PAGE_BYTES);
            let count = (PAGE_BYTES - at).min(bytes.len() - done).min(self.len - offset - done);
            let page = self.pages[page].get_or_insert_with(|| Arc::new([0; PAGE_BYTES]));
            Arc::make_mut(page)[at..at + count].copy_from_slice(&bytes[done..done + count]);
            done += count;
        }
    }

    fn get(&self, offset: usize, buffer: &mut [u8]) -> io::Result<()> {
        if offset + buffer.len() > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < buffer.len() {
            let (page, at) = ((offset + done) / PAGE_BYTES, (offset + done) % PAGE_BYTES);
            let count = (PAGE_BYTES - at).min(buffer.len() - done);
            match &self.pages[page] {
                Some(page) => buffer[done..done + count].copy_from_slice(&page[at..at + count]),
                None => buffer[done..done + count].fill(0),
            }
            done += count;
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Default)]
struct File {
    durable: Bytes,
    current: Bytes,
    unsynced: Vec<(usize, Arc<[u8]>)>,
}

#[derive(Clone, Debug, Default)]
struct Disk {
    files: Vec<File>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Changes of names since the last sync, in their order.
    unsynced_names: Vec<(String, Option<usize>)>,
    is_down: bool,
    is_full: bool,
    is_broken: bool,
    fails_in: Option<u64>,
    operations: u64,
}

/// A storage in memory. Clones share it; [`Medium`] is a copy that is not shared.
#[derive(Clone)]
pub struct SimStorage {
    disk: Arc<Mutex<Disk>>,
    watcher: Arc<Mutex<Option<Weak<dyn Watcher>>>>,
}

/// The state of a storage at one moment, with all that was not synced.
#[derive(Clone, Debug, Default)]
pub struct Medium(Disk);

impl Medium {
    /// What is there after a crash.
    #[must_use]
    pub fn after_crash(&self, fate: Fate) -> Self {
        let disk = &self.0;
        let mut random = match fate {
            Fate::Random(seed) | Fate::Trashed(seed) => Random::new(seed),
            Fate::Kept | Fate::Dropped => Random::new(0),
        };
        let mut keeps = |once_in: u64| match fate {
            Fate::Kept => true,
            Fate::Dropped => false,
            _ => !random.once_in(once_in),
        };
        let mut names = disk.durable_names.clone();
        for (name, file) in &disk.unsynced_names {
            if keeps(2) {
                match file {
                    Some(file) => drop(names.insert(name.clone(), *file)),
                    None => drop(names.remove(name)),
                }
            }
        }
        let mut after = Disk::default();
        for (name, file) in names {
            let file = &disk.files[file];
            let mut bytes = file.durable.clone();
            if file.current.len != bytes.len && keeps(2) {
                bytes.resize(file.current.len);
            }
            for (offset, written) in &file.unsynced {
                survive(&mut bytes, *offset, written, fate, &mut keeps);
            }
            after.names.insert(name, after.files.len());
            after.files.push(File { durable: bytes.clone(), current: bytes, unsynced: Vec::new() });
        }
        after.durable_names = after.names.clone();
        Self(after)
    }
}

/// Puts what is left of a write that was not synced into the file.
fn survive(
    bytes: &mut Bytes,
    offset: usize,
    written: &[u8],
    fate: Fate,
    keeps: &mut impl FnMut(u64) -> bool,
) {
    // Often a write is there as a whole or not at all.
    if keeps(3) {
        bytes.put(offset, written);
        return;
    }
    let is_torn = keeps(2);
    let mut start = 0;
    while is_torn && start < written.len() {
        let at = offset + start;
        let end = written.len().min(start + SECTOR_BYTES - at % SECTOR_BYTES);
        if keeps(2) {
            bytes.put(at, &written[start..end]);
        } else if matches!(fate, Fate::Trashed(_)) && !keeps(3) {
            let garbage: Vec<u8> = (start..end).map(|byte| (byte * 31 % 251).to_le_bytes()[0] | 1).collect();
            bytes.put(at, &garbage);
        }
        start = end;
    }
}

impl SimStorage {
    /// A storage with this content.
    pub fn of(medium: Medium) -> Self {
        Self { disk: Arc::new(Mutex::new(medium.0)), watcher: Arc::default() }
    }

    /// Tells somebody of every operation from now on.
    pub fn watch(&self, watcher: Weak<dyn Watcher>) {
        *self.watcher.lock() = Some(watcher);
    }

    /// A copy of the state at this moment.
    pub fn medium(&self) -> Medium {
        Medium(self.disk.lock().clone())
    }

    /// From now on every operation fails and changes nothing: the power is off.
    pub fn turn_off(&self) {
        self.disk.lock().is_down = true;
    }

    /// From now on there is no room.
    pub fn set_full(&self, is_full: bool) {
        self.disk.lock().is_full = is_full;
    }

    /// From now on every operation that changes something fails with `EIO`.
    pub fn set_broken(&self, is_broken: bool) {
        self.disk.lock().is_broken = is_broken;
    }

    /// The n-th operation from now fails with `EIO`, once.
    pub fn fail_in(&self, operations: u64) {
        self.disk.lock().fails_in = Some(operations);
    }

    /// How many operations have changed something.
    pub fn operations(&self) -> u64 {
        self.disk.lock().operations
    }

    fn tell(&self, operation: Operation) -> io::Result<()> {
        let watcher = self.watcher.lock().as_ref().and_then(Weak::upgrade);
        if let Some(watcher) = watcher {
            watcher.in_operation(operation);
        }
        self.disk.lock().is_up()
    }
}

impl Disk {
    fn is_up(&self) -> io::Result<()> {
        if self.is_down { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }

    fn begin(&mut self) -> io::Result<()> {
        self.is_up()?;
        self.operations += 1;
        let fails = match &mut self.fails_in {
            Some(0) => {
                self.fails_in = None;
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        };
        if fails || self.is_broken { Err(io::Error::other("input/output error")) } else { Ok(()) }
    }

    fn room(&self) -> io::Result<()> {
        if self.is_full { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

/// An open file of a [`SimStorage`].
pub struct SimFile {
    storage: SimStorage,
    index: usize,
}

impl Storage for SimStorage {
    type File = SimFile;

    fn list(&self) -> io::Result<Vec<String>> {
        let disk = self.disk.lock();
        disk.is_up()?;
        Ok(disk.names.keys().cloned().collect())
    }

    fn create(&self, name: &str) -> io::Result<SimFile> {
        let index = {
            let mut disk = self.disk.lock();
            disk.begin()?;
            if disk.names.contains_key(name) {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            let index = disk.files.len();
            disk.files.push(File::default());
            disk.names.insert(name.to_owned(), index);
            disk.unsynced_names.push((name.to_owned(), Some(index)));
            index
        };
        self.tell(Operation::Create)?;
        Ok(SimFile { storage: self.clone(), index })
    }

    fn open(&self, name: &str) -> io::Result<SimFile> {
        let disk = self.disk.lock();
        disk.is_up()?;
        let index = *disk.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(SimFile { storage: self.clone(), index })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        {
            let mut disk = self.disk.lock();
            disk.begin()?;
            disk.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
            disk.unsynced_names.push((name.to_owned(), None));
        }
        self.tell(Operation::Remove)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let index = {
            let mut disk = self.disk.lock();
            disk.begin()?;
            disk.room()?;
            let index = disk.files.len();
            let bytes = Bytes::of(bytes);
            disk.files.push(File { durable: bytes.clone(), current: bytes, unsynced: Vec::new() });
            disk.names.insert(name.to_owned(), index);
            disk.unsynced_names.push((name.to_owned(), Some(index)));
            index
        };
        self.tell(Operation::Replace)?;
        let mut disk = self.disk.lock();
        disk.durable_names.insert(name.to_owned(), index);
        disk.unsynced_names.retain(|(other, _)| other != name);
        Ok(())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let disk = self.disk.lock();
        disk.is_up()?;
        let file = &disk.files[*disk.names.get(name).ok_or(io::ErrorKind::NotFound)?];
        let mut bytes = vec![0; file.current.len];
        file.current.get(0, &mut bytes)?;
        Ok(bytes)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.disk.lock().begin()?;
        self.tell(Operation::SyncDirectory)?;
        let mut disk = self.disk.lock();
        disk.durable_names = disk.names.clone();
        disk.unsynced_names.clear();
        Ok(())
    }
}

impl StorageFile for SimFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let disk = self.storage.disk.lock();
        disk.is_up()?;
        disk.files[self.index].current.get(index(offset), buffer)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let outcome = {
            let mut disk = self.storage.disk.lock();
            disk.is_up()?;
            let outcome = disk.begin();
            // A write that fails may have been done in part.
            let done = if outcome.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
            let file = &mut disk.files[self.index];
            assert!(index(offset) + bytes.len() <= file.current.len, "a write beyond what was preallocated");
            file.current.put(index(offset), done);
            file.unsynced.push((index(offset), done.into()));
            outcome
        };
        self.storage.tell(Operation::Write)?;
        outcome
    }

    fn sync_data(&self) -> io::Result<()> {
        self.storage.disk.lock().begin()?;
        self.storage.tell(Operation::SyncData)?;
        let mut disk = self.storage.disk.lock();
        let file = &mut disk.files[self.index];
        file.durable = file.current.clone();
        file.unsynced.clear();
        Ok(())
    }

    fn give_back(&self, start: u64) -> io::Result<()> {
        // A write of zeros, which may be lost or torn like any other.
        let bytes = self.len()?.saturating_sub(start);
        if bytes == 0 { Ok(()) } else { self.write_at(&vec![0; index(bytes)], start) }
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        {
            let mut disk = self.storage.disk.lock();
            disk.begin()?;
            disk.room()?;
            disk.files[self.index].current.resize(index(len));
        }
        self.storage.tell(Operation::Preallocate)
    }

    fn len(&self) -> io::Result<u64> {
        let disk = self.storage.disk.lock();
        disk.is_up()?;
        Ok(disk.files[self.index].current.len as u64)
    }
}

fn index(offset: u64) -> usize {
    usize::try_from(offset).expect("simulated files are small")
}
