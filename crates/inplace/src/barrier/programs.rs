//! The BPF programs: loading them, and running one over all tasks.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, BorrowedFd};

use aya::maps::{Array, MapData};
use aya::{Ebpf, include_bytes_aligned};

use super::error::{ScanError, StartError};
use super::functions::Functions;
use super::record::{Control, Kind, RECORD, Record, Scan, SwitchedOff};
use crate::iterator::{self, iterator};
use crate::loader::Loader;

static OBJECT: &[u8] = include_bytes_aligned!("../../bpf/scan.bpf.o");

const TASKS: &str = "scan_tasks";
const FILES: &str = "scan_files";

/// The programs, loaded.
pub(super) struct Programs {
    ebpf: Ebpf,
    control: Array<MapData, Control>,
    functions: Array<MapData, Functions>,
    knows_functions: bool,
    told: Control,
}

impl Programs {
    /// Loads the programs, fitted to the running kernel.
    pub(super) fn load() -> Result<Self, StartError> {
        let loader = Loader::shared().map_err(StartError::NoBtf)?;
        let refused = |error: Box<dyn std::error::Error + Send + Sync>| StartError::Refused(error);
        let mut ebpf = loader.load(OBJECT).map_err(|error| refused(Box::new(error)))?;
        for (name, over) in [(TASKS, "task"), (FILES, "task_file")] {
            iterator(&mut ebpf, name)
                .and_then(|program| program.load(over, loader.types()))
                .map_err(|error| refused(Box::new(error)))?;
        }
        let mut map = |name: &str| {
            ebpf.take_map(name).ok_or_else(|| refused(format!("the object has no map `{name}`").into()))
        };
        let control = Array::try_from(map("control")?).map_err(|error| refused(Box::new(error)))?;
        let functions = Array::try_from(map("functions")?).map_err(|error| refused(Box::new(error)))?;
        let told = Control::new();
        Ok(Self { ebpf, control, functions, knows_functions: false, told })
    }

    /// Lets the looks to come find out who waits for a reader only (B). It takes tens of milliseconds, the first time.
    pub(super) fn know_functions(&mut self) {
        if self.knows_functions {
            return;
        }
        self.knows_functions = true;
        let told = Functions::of_the_kernel().map_err(|error| error.to_string()).and_then(|functions| {
            self.functions.set(0, functions, 0).map_err(|error| error.to_string())?;
            Ok(functions.count())
        });
        match told {
            Ok(0) => tracing::debug!("the kernel hides where its functions are"),
            Ok(count) => tracing::debug!(count, "found functions of the kernel"),
            Err(error) => tracing::debug!(error, "cannot find functions of the kernel"),
        }
    }

    /// The address of the superblock that a descriptor of this process is on. It stays the same while the descriptor is open.
    pub(super) fn locate(&mut self, fd: BorrowedFd<'_>) -> Result<u64, ScanError> {
        self.told.mode = 1;
        self.told.tid = rustix::thread::gettid().as_raw_nonzero().get();
        self.told.fd = fd.as_raw_fd().unsigned_abs();
        let records = self.run(TASKS)?;
        let found = records.iter().find(|record| record.kind == Kind::Located).map(|record| record.work);
        found.filter(|superblock| *superblock != 0).ok_or(ScanError::NotLocated)
    }

    /// Looks at every task once.
    pub(super) fn tasks(&mut self, superblock: u64, off: SwitchedOff) -> Result<Scan, ScanError> {
        self.told.mode = 0;
        self.told.superblock = superblock;
        self.told.off = off.0;
        let mut records = self.run(TASKS)?;
        let end = records.pop().ok_or(ScanError::Incomplete)?;
        let scan = Scan {
            records,
            uses_rings: end.rings != 0,
            uses_asynchronous: end.rings != 0 || end.call != 0,
            has_kernel_writers: end.kernel_writers != 0,
            has_old_rings: end.compat != 0,
        };
        if scan.uses_rings && scan.has_old_rings { Err(ScanError::OldRings) } else { Ok(scan) }
    }

    /// The open files of the superblock with direct I/O in flight.
    pub(super) fn files(&mut self, superblock: u64) -> Result<Vec<Record>, ScanError> {
        self.told.mode = 0;
        self.told.superblock = superblock;
        let mut records = self.run(FILES)?;
        records.pop();
        Ok(records)
    }

    /// Runs a program over all tasks. The last record is the one that says that the scan was whole.
    fn run(&mut self, name: &str) -> Result<Vec<Record>, ScanError> {
        self.control.set(0, self.told, 0).map_err(|error| ScanError::Program(error.into()))?;
        let program = iterator(&mut self.ebpf, name).map_err(|error| ScanError::Program(error.into()))?;
        let mut records: Vec<Record> = Vec::new();
        let whole = iterator::run::<RECORD>(program, |bytes| {
            let record = Record::parse(bytes).ok_or(io::ErrorKind::InvalidData)?;
            let is_end = record.kind == Kind::End;
            records.push(record);
            Ok(if is_end { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        });
        match whole {
            Ok(()) => Ok(records),
            Err(error)
                if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData) =>
            {
                Err(ScanError::Incomplete)
            }
            Err(error) => Err(ScanError::Read(error)),
        }
    }
}
