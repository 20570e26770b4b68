//! The write barrier on demand, for any mounted filesystem.
//!
//! [`vfs_write_barrier`] returns once every system call that may modify the filesystem, and was in progress when it was called, has
//! ended. It blocks nobody, and nothing is left behind in the kernel: while no barrier runs, writers pay nothing.
//!
//! ```no_run
//! use std::{fs::File, time::Duration};
//! use highwater_inplace::barrier::vfs_write_barrier;
//!
//! let root = File::open("/srv/data")?;
//! let before = root.metadata()?;
//! let passed = vfs_write_barrier(&root, Some(Duration::from_secs(10)))?;
//! // No old data under the new time of `before` any more, but for what is carried over.
//! for file in &passed.carried_over {
//!     println!("direct I/O in flight on inode {}", file.inode);
//! }
//! # drop(before);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What is promised
//!
//! **Order.** Let an effect of a call (new data, a new time, a new name) be visible to the caller before it calls the barrier. When the
//! barrier has passed, the call has ended: all its effects are visible, and its events are queued.
//!
//! **What counts.** System calls, 32-bit ones included, requests of io_uring, core dumps; through any mount, from any container, also from
//! a filesystem that is stacked on this one. The access time does not count.
//!
//! **What is carried over.** Direct I/O that was submitted and goes on without anybody in a call is not waited for but returned, where an
//! open descriptor shows it. Nobody can vouch for stores through writable shared mappings: a consumer compares such files again, as it
//! does with every file that is open for writing.
//!
//! **What is not covered** is in [`Passed::not_covered`] where it can be known.
//!
//! The argument, what it relies on, and what is not covered, is in docs/barrier-in-place.md.
//!
//! # What it needs
//!
//! Linux 5.17 or newer on x86-64 with BTF, root (or CAP_BPF and CAP_PERFMON), and the initial pid namespace.

mod calls;
mod error;
mod functions;
mod programs;
mod record;
mod requirements;
mod run;
mod seam;
mod self_test;
mod share;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

pub use error::{BarrierError, Holder, ScanError, StartError};
pub use record::SwitchedOff;

use programs::Programs;
use run::Run;
use share::{Shared, Step};

/// Who sleeps in a call for longer than these looks may wait for a reader: then it is worth to find that out.
const SHORT_SCANS: u32 = 4;

/// What a barrier that has passed has to tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Passed {
    /// Files with direct I/O in flight. It may have begun before the barrier or after.
    pub carried_over: Vec<CarriedOver>,
    /// Who may write without being seen.
    pub not_covered: Vec<NotCovered>,
    /// How many looks at the tasks it took.
    pub scans: u32,
}

/// A file with direct I/O in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CarriedOver {
    /// Number of its inode.
    pub inode: u64,
    /// Generation of its inode.
    pub generation: u32,
    /// A process that has it open; which one does the I/O is not known.
    pub pid: u32,
    /// The descriptor, so that the file is `/proc/PID/fd/DESCRIPTOR` while it is open.
    pub descriptor: u32,
    /// Name of that process.
    pub command: String,
}

/// Somebody who writes inside the kernel, and whom the barrier cannot see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NotCovered {
    /// The kernel serves files to other machines (nfsd, ksmbd), perhaps of this filesystem.
    FileServer,
    /// A loop device is attached, perhaps to a file of this filesystem.
    LoopDevice,
}

impl std::fmt::Display for NotCovered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::FileServer => "writes by the file server in the kernel (nfsd, ksmbd) are not waited for",
            Self::LoopDevice => {
                "writes to files behind loop devices are waited for only as far as a program is in a call"
            }
        })
    }
}

/// The write barrier of one mounted filesystem. It keeps a file of it open, and so keeps it mounted.
#[derive(Debug)]
pub struct FilesystemBarrier {
    programs: Arc<Mutex<Programs>>,
    superblock: u64,
    /// The address above is that of this superblock as long as a file of it is open.
    _file: OwnedFd,
    shared: Shared<Run, Passed, BarrierError>,
    off: SwitchedOff,
}

impl FilesystemBarrier {
    /// Prepares barriers for the filesystem that a descriptor is on. The first one in a process loads the programs and tries whether they
    /// work on this kernel.
    pub fn new(file: impl AsFd) -> Result<Self, StartError> {
        let programs = Arc::new(Mutex::new(start()?));
        Self::with(programs, file.as_fd(), SwitchedOff::default())
    }

    /// With a check less: for tests that show that it is needed.
    #[doc(hidden)]
    pub fn broken(file: impl AsFd, off: SwitchedOff) -> Result<Self, StartError> {
        let programs = Arc::new(Mutex::new(start()?));
        Self::with(programs, file.as_fd(), off)
    }

    fn with(
        programs: Arc<Mutex<Programs>>,
        file: BorrowedFd<'_>,
        off: SwitchedOff,
    ) -> Result<Self, StartError> {
        let file = file.try_clone_to_owned()?;
        let superblock = programs.lock().locate(file.as_fd())?;
        Ok(Self { programs, superblock, _file: file, shared: Shared::default(), off })
    }

    /// Waits until every call in progress that may modify the filesystem has ended.
    ///
    /// Callers at the same time share runs. With a deadline, an error says who holds it up; what was waited for has then *not* ended.
    pub fn synchronize(&self, deadline: Option<Duration>) -> Result<Passed, BarrierError> {
        let begun = Instant::now();
        // Too far away to be told apart from no deadline.
        let until = deadline.and_then(|deadline| begun.checked_add(deadline));
        self.shared.join(
            until,
            Run::default,
            |run| self.step(run),
            |run| BarrierError::Deadline {
                waited: begun.elapsed(),
                holders: run.map(Run::holders).unwrap_or_default(),
            },
        )
    }

    fn step(&self, run: &mut Run) -> Result<Step<Passed>, BarrierError> {
        let scan_error = |error| BarrierError::Scan(Arc::new(error));
        let mut programs = self.programs.lock();
        let scan = programs.tasks(self.superblock, self.off).map_err(scan_error)?;
        if !run.step(&scan) {
            if run.scans == 1 && requirements::counts_of_writes_can_be_trusted() {
                run.trust_counts();
            }
            if run.scans >= SHORT_SCANS && run.waits_for_a_sleeping_caller() {
                programs.know_functions();
            }
            return Ok(Step::Waits);
        }
        let mut passed = Passed { scans: run.scans, ..Passed::default() };
        // After the callers: who has submitted direct I/O before the barrier is out of the call, so that it is counted by now.
        if run.uses_asynchronous {
            for record in programs.files(self.superblock).map_err(scan_error)? {
                if passed.carried_over.iter().all(|known| known.inode != record.work) {
                    passed.carried_over.push(CarriedOver {
                        inode: record.work,
                        generation: u32::try_from(record.chain).unwrap_or(0),
                        pid: record.pid,
                        descriptor: record.call,
                        command: record.command,
                    });
                }
            }
        }
        drop(programs);
        if run.has_kernel_writers {
            passed.not_covered.push(NotCovered::FileServer);
        }
        if requirements::has_loop_devices() {
            passed.not_covered.push(NotCovered::LoopDevice);
        }
        Ok(Step::Passed(passed))
    }
}

fn start() -> Result<Programs, StartError> {
    requirements::check()?;
    let mut programs = Programs::load().map_err(requirements::explain)?;
    self_test::check(&mut programs)?;
    Ok(programs)
}

/// Waits until every call in progress that may modify the filesystem of `file` has ended: see the [module](self).
///
/// The programs are loaded by the first call in a process and kept. Callers at the same time, for one filesystem, share runs.
pub fn vfs_write_barrier(file: impl AsFd, deadline: Option<Duration>) -> Result<Passed, BarrierError> {
    let begun = Instant::now();
    let barrier = of_this_process(file.as_fd()).map_err(BarrierError::Start)?;
    barrier.synchronize(deadline.map(|deadline| deadline.saturating_sub(begun.elapsed())))
}

/// The barrier of a filesystem that the callers in this process have in common, as long as one of them uses it.
fn of_this_process(file: BorrowedFd<'_>) -> Result<Arc<FilesystemBarrier>, Arc<StartError>> {
    static PROGRAMS: OnceLock<Result<Arc<Mutex<Programs>>, Arc<StartError>>> = OnceLock::new();
    static IN_USE: Mutex<BTreeMap<u64, Weak<FilesystemBarrier>>> = Mutex::new(BTreeMap::new());
    let programs =
        PROGRAMS.get_or_init(|| Ok(Arc::new(Mutex::new(start()?)))).as_ref().map_err(Arc::clone)?;
    let barrier = FilesystemBarrier::with(programs.clone(), file, SwitchedOff::default())?;
    let mut in_use = IN_USE.lock();
    in_use.retain(|_, known| known.strong_count() > 0);
    // It keeps a file of the filesystem open, so that the address is that of the same one.
    if let Some(known) = in_use.get(&barrier.superblock).and_then(Weak::upgrade) {
        return Ok(known);
    }
    let barrier = Arc::new(barrier);
    in_use.insert(barrier.superblock, Arc::downgrade(&barrier));
    Ok(barrier)
}

impl std::fmt::Debug for Programs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Programs")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn callers_in_one_process_share_the_barrier_of_a_filesystem() {
        let (one, two) = (std::fs::File::open("/proc/version"), std::fs::File::open("/proc/filesystems"));
        let other = std::fs::File::open("/dev/null").unwrap();
        let first = of_this_process(one.unwrap().as_fd()).unwrap();
        let second = of_this_process(two.unwrap().as_fd()).unwrap();
        assert!(Arc::ptr_eq(&first, &second));
        assert!(!Arc::ptr_eq(&first, &of_this_process(other.as_fd()).unwrap()));
    }
}
