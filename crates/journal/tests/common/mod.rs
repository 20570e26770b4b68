//! A storage in memory that breaks on demand.
//!
//! Fault model: the medium holds what was synced. At a crash each unsynced write is kept, dropped, torn (a prefix of its
//! bytes, or any of its sectors) as a seed decides, and each unsynced creation or removal is kept or dropped. Not
//! modelled here: garbage in a sector that was being written.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses another part")]
#![allow(clippy::cast_possible_truncation, clippy::unwrap_used, reason = "test code on small numbers")]

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use highwater_journal::{Journal, JournalId, Options, Period, Record, RecordKind, Storage, StorageFile, Usn};

pub const ID: JournalId = JournalId(*b"a journal's name");

/// What a crash does with what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsynced {
    /// Nothing is lost: the process was killed.
    Kept,
    /// Everything is lost.
    Dropped,
    /// The seed decides for each write, and for each sector of it.
    Random(u64),
    /// The last write of each file leaves a prefix, those before it are there.
    Prefix(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Create,
    Remove,
    Replace,
    SyncDirectory,
    Write,
    SyncData,
    Preallocate,
}

/// What to do with the n-th operation that changes something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The power fails in the middle of it: it may have had its effect, as far as the crash lets it.
    Crash,
    /// It fails, once.
    Fail(io::ErrorKind),
}

#[derive(Clone, Default)]
struct Inode {
    durable: Vec<u8>,
    durable_len: u64,
    current: Vec<u8>,
    unsynced: Vec<(u64, Vec<u8>)>,
}

#[derive(Default)]
struct Disk {
    inodes: Vec<Inode>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    operations: Vec<Operation>,
    faults: BTreeMap<u64, Fault>,
    is_down: bool,
    is_full: bool,
    syncs: u64,
}

/// Shared by the storage and by the test.
#[derive(Clone, Default)]
pub struct Memory {
    disk: Arc<Mutex<Disk>>,
    gate: Arc<Gate>,
}

/// Holds syncs back until they are let through.
#[derive(Default)]
pub struct Gate {
    closed: Mutex<bool>,
    changed: Condvar,
    pub waiting: AtomicU64,
}

impl Gate {
    pub fn close(&self) {
        *self.closed.lock().unwrap() = true;
    }

    pub fn open(&self) {
        *self.closed.lock().unwrap() = false;
        self.changed.notify_all();
    }

    fn pass(&self) {
        let closed = self.closed.lock().unwrap();
        self.waiting.fetch_add(1, Ordering::SeqCst);
        drop(self.changed.wait_while(closed, |closed| *closed).unwrap());
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A small generator of numbers (splitmix64), so that a seed repeats a run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

impl Disk {
    /// Counts an operation and returns its fault.
    fn begin(&mut self, operation: Operation) -> io::Result<Option<Fault>> {
        if self.is_down {
            return Err(io::Error::other("the power is off"));
        }
        self.operations.push(operation);
        let fault = self.faults.remove(&(self.operations.len() as u64 - 1));
        match fault {
            Some(Fault::Fail(kind)) => Err(kind.into()),
            Some(Fault::Crash) => {
                self.is_down = true;
                Ok(fault)
            }
            None => Ok(None),
        }
    }
}

fn finish(fault: Option<Fault>) -> io::Result<()> {
    if fault.is_some() { Err(io::Error::other("the power is off")) } else { Ok(()) }
}

fn put(bytes: &mut Vec<u8>, offset: u64, new: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + new.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[start..end].copy_from_slice(new);
}

impl Memory {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    pub fn set_fault(&self, operation: u64, fault: Fault) {
        self.disk.lock().unwrap().faults.insert(operation, fault);
    }

    pub fn set_full(&self, is_full: bool) {
        self.disk.lock().unwrap().is_full = is_full;
    }

    pub fn operations(&self) -> Vec<Operation> {
        self.disk.lock().unwrap().operations.clone()
    }

    pub fn syncs(&self) -> u64 {
        self.disk.lock().unwrap().syncs
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        let disk = self.disk.lock().unwrap();
        disk.inodes[disk.names[name]].current.clone()
    }

    pub fn names(&self) -> Vec<String> {
        self.disk.lock().unwrap().names.keys().cloned().collect()
    }

    pub fn put_file(&self, name: &str, bytes: Vec<u8>) {
        let mut disk = self.disk.lock().unwrap();
        let inode = disk.inodes.len();
        disk.inodes.push(Inode {
            durable_len: bytes.len() as u64,
            durable: bytes.clone(),
            current: bytes,
            unsynced: Vec::new(),
        });
        disk.names.insert(name.to_owned(), inode);
        disk.durable_names.insert(name.to_owned(), inode);
    }

    /// A copy whose changes this one does not see.
    pub fn copy(&self) -> Self {
        let copy = Self::new();
        for name in self.names() {
            copy.put_file(&name, self.bytes(&name));
        }
        copy
    }

    /// The disk as it comes up again.
    pub fn after_crash(&self, unsynced: Unsynced) -> Self {
        let disk = self.disk.lock().unwrap();
        let mut random = Random(match unsynced {
            Unsynced::Random(seed) | Unsynced::Prefix(seed) => seed,
            _ => 0,
        });
        let mut names = disk.durable_names.clone();
        for (name, inode) in &disk.names {
            let keeps = match unsynced {
                Unsynced::Kept => true,
                Unsynced::Dropped => false,
                _ => random.below(2) == 0,
            };
            if keeps {
                names.insert(name.clone(), *inode);
            }
        }
        let removed: Vec<_> = names.keys().filter(|name| !disk.names.contains_key(*name)).cloned().collect();
        for name in removed {
            if unsynced == Unsynced::Kept || (unsynced != Unsynced::Dropped && random.below(2) == 0) {
                names.remove(&name);
            }
        }
        let after = Self::new();
        for (name, inode) in names {
            let inode = &disk.inodes[inode];
            let mut bytes = inode.durable.clone();
            let mut len = inode.durable_len;
            if unsynced == Unsynced::Kept || (unsynced != Unsynced::Dropped && random.below(2) == 0) {
                len = inode.current.len() as u64;
            }
            bytes.resize(len as usize, 0);
            let count = inode.unsynced.len();
            for (index, (offset, new)) in inode.unsynced.iter().enumerate() {
                match unsynced {
                    Unsynced::Kept => put(&mut bytes, *offset, new),
                    Unsynced::Dropped => {}
                    Unsynced::Prefix(_) if index + 1 < count => put(&mut bytes, *offset, new),
                    Unsynced::Prefix(_) => {
                        let cut = random.below(new.len() as u64 + 1) as usize;
                        put(&mut bytes, *offset, &new[..cut]);
                    }
                    Unsynced::Random(_) => {
                        let mode = random.below(3);
                        let mut start = 0;
                        while start < new.len() {
                            let at = *offset + start as u64;
                            let end = new.len().min(start + (512 - at % 512) as usize);
                            if mode == 0 || (mode == 1 && random.below(2) == 0) {
                                put(&mut bytes, at, &new[start..end]);
                            }
                            start = end;
                        }
                    }
                }
            }
            after.put_file(&name, bytes);
        }
        after
    }
}

pub struct MemoryFile {
    memory: Memory,
    inode: usize,
}

impl Storage for Memory {
    type File = MemoryFile;

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.names())
    }

    fn create(&self, name: &str) -> io::Result<MemoryFile> {
        let mut disk = self.disk.lock().unwrap();
        let fault = disk.begin(Operation::Create)?;
        if disk.names.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = disk.inodes.len();
        disk.inodes.push(Inode::default());
        disk.names.insert(name.to_owned(), inode);
        finish(fault)?;
        Ok(MemoryFile { memory: self.clone(), inode })
    }

    fn open(&self, name: &str) -> io::Result<MemoryFile> {
        let disk = self.disk.lock().unwrap();
        let inode = *disk.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(MemoryFile { memory: self.clone(), inode })
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        let fault = disk.begin(Operation::Remove)?;
        disk.names.remove(name).ok_or(io::ErrorKind::NotFound)?;
        finish(fault)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        let fault = disk.begin(Operation::Replace)?;
        if disk.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let inode = disk.inodes.len();
        disk.inodes.push(Inode {
            durable_len: bytes.len() as u64,
            durable: bytes.to_vec(),
            current: bytes.to_vec(),
            unsynced: Vec::new(),
        });
        disk.names.insert(name.to_owned(), inode);
        if fault.is_none() {
            disk.durable_names = disk.names.clone();
        }
        finish(fault)
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let disk = self.disk.lock().unwrap();
        let inode = *disk.names.get(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(disk.inodes[inode].current.clone())
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut disk = self.disk.lock().unwrap();
        let fault = disk.begin(Operation::SyncDirectory)?;
        if fault.is_none() {
            disk.durable_names = disk.names.clone();
        }
        finish(fault)
    }
}

impl StorageFile for MemoryFile {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let disk = self.memory.disk.lock().unwrap();
        let bytes = &disk.inodes[self.inode].current;
        let range = offset as usize..offset as usize + buffer.len();
        buffer.copy_from_slice(bytes.get(range).ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut disk = self.memory.disk.lock().unwrap();
        let fault = match disk.begin(Operation::Write) {
            Err(error) if !disk.is_down => {
                // A failed write may have been a short one.
                let half = bytes[..bytes.len() / 2].to_vec();
                let inode = &mut disk.inodes[self.inode];
                put(&mut inode.current, offset, &half);
                inode.unsynced.push((offset, half));
                return Err(error);
            }
            begun => begun?,
        };
        let inode = &mut disk.inodes[self.inode];
        assert!(
            offset + bytes.len() as u64 <= inode.current.len() as u64,
            "a write beyond what was preallocated"
        );
        put(&mut inode.current, offset, bytes);
        inode.unsynced.push((offset, bytes.to_vec()));
        finish(fault)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.memory.gate.pass();
        let mut disk = self.memory.disk.lock().unwrap();
        let fault = disk.begin(Operation::SyncData)?;
        finish(fault)?;
        disk.syncs += 1;
        let inode = &mut disk.inodes[self.inode];
        for (offset, bytes) in std::mem::take(&mut inode.unsynced) {
            put(&mut inode.durable, offset, &bytes);
        }
        inode.durable_len = inode.current.len() as u64;
        Ok(())
    }

    fn give_back(&self, start: u64) -> io::Result<()> {
        // A write of zeros, which a crash may cut like any other.
        let len = self.memory.disk.lock().unwrap().inodes[self.inode].current.len() as u64;
        if start < len { self.write_at(&vec![0; (len - start) as usize], start) } else { Ok(()) }
    }

    fn preallocate(&self, len: u64) -> io::Result<()> {
        let mut disk = self.memory.disk.lock().unwrap();
        let fault = disk.begin(Operation::Preallocate)?;
        if disk.is_full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        disk.inodes[self.inode].current.resize(len as usize, 0);
        finish(fault)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.memory.disk.lock().unwrap().inodes[self.inode].current.len() as u64)
    }
}

/// Small segments, so that tests cross their borders.
pub fn small() -> Options {
    let mut options = Options::default();
    options.segment_bytes = 64 << 10;
    options.limit_bytes = 16 * options.segment_bytes;
    options.retain_bytes = 4 * options.segment_bytes;
    options.buffer_bytes = 16 << 10;
    options
}

pub fn append(journal: &Journal<Memory>, period: u64, payload: &[u8]) -> Usn {
    journal.append(RecordKind(1), Period(period), payload).expect("appended")
}

/// Every record, or the error that ended the read.
pub fn all<S: Storage>(journal: &Journal<S>) -> Vec<Record> {
    journal.records(highwater_journal::Start::Oldest).collect::<Result<_, _>>().expect("every record")
}

/// A payload that its number determines, of varying length, with runs of zeros.
pub fn payload(number: u64) -> Vec<u8> {
    let mut random = Random(number);
    let len = match random.below(8) {
        0 => 0,
        1 => random.below(3000),
        _ => random.below(200),
    };
    let zero = random.below(4) == 0;
    (0..len).map(|_| if zero { 0 } else { random.next() as u8 }).collect()
}
