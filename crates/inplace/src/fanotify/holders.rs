//! Who has files of a filesystem open for writing or mapped, as the kernel's own lists have it: by BPF iterators.
//!
//! Much cheaper than `/proc`, where each descriptor and each mapping costs several calls, and sees more: threads that have a table of
//! open files of their own. Nothing stays attached between two looks.
//!
//! What one look can miss:
//!
//! - *A process that is born meanwhile*, with what its parent had. The tasks are listed before and after; who is new is named, and the caller
//!   looks into it by `/proc`.
//! - *A descriptor in no table*: on its way through a socket, or registered with a ring of io_uring. [`Look::hides`] says that there may be
//!   some.
//! - *A descriptor that goes, during the look, from a task not yet looked at to one that has been.* It is found by the next look, unless
//!   that happens again.
//!
//! Therefore the caller compares what it finds for the first time, and what was closed, with the change times since the look before the
//! last one, and since the last one that hid nothing.

use std::error::Error;
use std::io::{self, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::HashSet;
use crate::iterator::{self, iterator};
use crate::loader::Loader;
use crate::words;

use aya::maps::{Array, MapData};
use aya::{Ebpf, include_bytes_aligned};
use rustix::fs::{MemfdFlags, memfd_create};

static OBJECT: &[u8] = include_bytes_aligned!("../../bpf/writers.bpf.o");

const FILES: &str = "writers_files";
const MAPS: &str = "writers_maps";
const TASKS: &str = "writers_tasks";
const RECORD: usize = 48;

// Shared with `bpf/writers.bpf.c`.
const END: u32 = 0;
const OPEN: u32 = 1;
const MAPPING: u32 = 2;
const LOCATED: u32 = 3;
const TASK: u32 = 4;
const READS: u32 = 1;
const DIRECT: u32 = 2;
const HIDES: u32 = 4;

/// Processes that are born during a look are looked into one by one, until there is none that is new. They can be born faster.
const ROUNDS_MAX: usize = 64;

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Control {
    superblock: u64,
    locate: u32,
    tgid: u32,
    fd: u32,
    unused: u32,
}

// SAFETY: only integers, and no padding: 8 + 4 * 4 bytes.
unsafe impl aya::Pod for Control {}

/// An object in the kernel's memory. Another one may have the same key later only if it is the same inode of the filesystem, or one
/// of another subvolume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    inode: u64,
    pub(crate) number: u64,
    generation: u32,
}

/// A file that somebody can write to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Holding {
    pub(crate) key: Key,
    /// A thread whose descriptor or mapping it is.
    pub(crate) pid: u32,
    pub(crate) how: How,
}

/// How it can be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    Open { descriptor: u64, reads: bool, direct: bool },
    Mapped { from: u64, to: u64 },
}

impl Holding {
    /// A name of the file that works as long as it is held like this.
    pub(crate) fn link(&self) -> String {
        match self.how {
            How::Open { descriptor, .. } => format!("/proc/{}/fd/{descriptor}", self.pid),
            How::Mapped { from, to } => format!("/proc/{}/map_files/{from:x}-{to:x}", self.pid),
        }
    }
}

/// What a look has found.
#[derive(Debug, Default)]
pub(crate) struct Look {
    pub(crate) holdings: Vec<Holding>,
    /// There may be open files that no look can find.
    pub(crate) hides: bool,
}

#[derive(Clone, Copy)]
struct Record {
    inode: u64,
    number: u64,
    from: u64,
    to: u64,
    generation: u32,
    pid: u32,
    kind: u32,
    flags: u32,
}

/// The programs, loaded, for one filesystem.
pub(crate) struct Holders {
    ebpf: Ebpf,
    control: Array<MapData, Control>,
}

type Refused = Box<dyn Error + Send + Sync>;

impl Holders {
    /// Loads the programs, tries whether they find what they should, and tells them the filesystem of a descriptor. It must stay open.
    pub(crate) fn of(file: BorrowedFd<'_>) -> Result<Self, Refused> {
        let mut holders = Self::load()?;
        holders.try_out()?;
        holders.turn_to(file)?;
        Ok(holders)
    }

    fn load() -> Result<Self, Refused> {
        // The iterators list the tasks of the reader's pid namespace and those below it.
        if std::fs::read_link("/proc/thread-self/ns/pid")?.as_os_str() != "pid:[4026531836]" {
            return Err("this is not the initial pid namespace".into());
        }
        let loader = Loader::shared()?;
        let mut ebpf = loader.load(OBJECT)?;
        for (name, over) in [(FILES, "task_file"), (MAPS, "task_vma"), (TASKS, "task")] {
            iterator(&mut ebpf, name)?.load(over, loader.types())?;
        }
        let control = ebpf.take_map("control").ok_or("the object has no map `control`")?;
        let control = Array::try_from(control)?;
        Ok(Self { ebpf, control })
    }

    /// A file in memory that is open and mapped has to be found as both.
    fn try_out(&mut self) -> Result<(), Refused> {
        let file = memory_file()?;
        self.turn_to(file.as_fd())?;
        let found = self.look(|_| {})?.holdings;
        let me = std::process::id();
        let descriptor = u64::from(file.as_raw_fd().unsigned_abs());
        let is_open = found.iter().any(|holding| {
            holding.how == How::Open { descriptor, reads: true, direct: false }
                && holding.link().starts_with(&format!("/proc/{me}/"))
        });
        if !is_open {
            return Err("an open file was not found".into());
        }
        let mapping = SharedMapping::of(&file)?;
        let found = self.look(|_| {})?.holdings;
        let is_mapped = found
            .iter()
            .any(|holding| matches!(holding.how, How::Mapped { from, .. } if from == mapping.address()));
        if !is_mapped {
            return Err("a mapped file was not found".into());
        }
        Ok(())
    }

    fn turn_to(&mut self, file: BorrowedFd<'_>) -> Result<(), Refused> {
        let tgid = std::process::id();
        let fd = file.as_raw_fd().unsigned_abs();
        self.control.set(0, Control { locate: 1, tgid, fd, ..Control::default() }, 0)?;
        let records = self.run(FILES)?;
        let superblock = records.iter().find(|record| record.kind == LOCATED).map(|record| record.inode);
        let superblock = superblock.filter(|address| *address != 0).ok_or("a descriptor was not found")?;
        self.control.set(0, Control { superblock, ..Control::default() }, 0)?;
        Ok(())
    }

    /// Looks once at everything. `born`: is called for each process that was born meanwhile, and has to look into it.
    pub(crate) fn look(&mut self, mut born: impl FnMut(u32)) -> io::Result<Look> {
        let mut look = Look::default();
        let mut known: HashSet<(u32, u64)> = HashSet::default();
        let before = self.run(TASKS)?;
        known.extend(before.iter().map(|task| (task.pid, task.inode)));
        for record in self.run(FILES)?.into_iter().chain(self.run(MAPS)?) {
            let how = match record.kind {
                OPEN => How::Open {
                    descriptor: record.from,
                    reads: record.flags & READS != 0,
                    direct: record.flags & DIRECT != 0,
                },
                MAPPING => How::Mapped { from: record.from, to: record.to },
                _ => continue,
            };
            let key = Key { inode: record.inode, number: record.number, generation: record.generation };
            look.holdings.push(Holding { key, pid: record.pid, how });
        }
        for _ in 0..ROUNDS_MAX {
            let tasks = self.run(TASKS)?;
            look.hides |= tasks.iter().any(|task| task.flags & HIDES != 0);
            let new: Vec<u32> = tasks
                .iter()
                .filter(|task| known.insert((task.pid, task.inode)))
                .map(|task| task.pid)
                .collect();
            if new.is_empty() {
                look.hides |= before.iter().any(|task| task.flags & HIDES != 0);
                return Ok(look);
            }
            new.into_iter().for_each(&mut born);
        }
        Err(io::Error::other("processes appear faster than they can be looked into"))
    }

    /// Runs a program over everything that it is for.
    fn run(&mut self, name: &str) -> io::Result<Vec<Record>> {
        let program = iterator(&mut self.ebpf, name).map_err(io::Error::other)?;
        let mut records = Vec::new();
        iterator::run::<RECORD>(program, |bytes| {
            let record = Record::parse(bytes);
            if record.kind == END {
                return Ok(ControlFlow::Break(()));
            }
            if matches!(record.kind, OPEN | MAPPING | LOCATED | TASK) {
                records.push(record);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(records)
    }
}

impl Record {
    fn parse(bytes: &[u8; RECORD]) -> Self {
        let long = |at| words::long(bytes, at);
        let short = |at| words::short(bytes, at);
        Self {
            inode: long(0),
            number: long(8),
            from: long(16),
            to: long(24),
            generation: short(32),
            pid: short(36),
            kind: short(40),
            flags: short(44),
        }
    }
}

fn memory_file() -> io::Result<OwnedFd> {
    let file = memfd_create(c"highwater-self-test", MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(b"x")?;
    Ok(file.into())
}

/// A mapping of one page, for the self-test.
struct SharedMapping(*mut libc::c_void);

const PAGE: usize = 4096;

impl SharedMapping {
    fn of(file: &OwnedFd) -> io::Result<Self> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        // SAFETY: a new mapping at an address that the kernel chooses; nobody reads or writes it.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), PAGE, protection, flags, file.as_raw_fd(), 0) };
        if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self(address)) }
    }

    fn address(&self) -> u64 {
        self.0.addr() as u64
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nothing refers to it.
        unsafe { libc::munmap(self.0, PAGE) };
    }
}

impl std::fmt::Debug for Holders {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Holders")
    }
}
