//! Taking and giving back the lock of an inode of our own mount, from a thread that cannot keep a dead mount alive.
//!
//! A thread that waits for such a lock cannot be killed, and whoever holds the lock may wait for an answer of ours. If the tracker
//! is killed then, the waiting thread would keep the descriptors of the process, and with them the device, open for ever: the
//! connection would not end, the answer never come. So the waiting is done by threads with a descriptor table of their own that
//! holds a descriptor of the mount and nothing else. When all other threads are gone the device is closed, every operation
//! fails, the lock becomes free, and the thread ends too.
//!
//! For the same reason the lock is not taken by `FUSE_NOTIFY_INVAL_ENTRY`, which is a write to the device.
//!
//! How the lock is taken without a request to us: `setxattr(2)` of a `trusted.` attribute takes the inode's lock exclusively
//! (`vfs_setxattr`), then asks for `CAP_SYS_ADMIN` (`xattr_permission`), which the thread has given up, and answers `EPERM`.
//!
//! Invariant: a prober owns no descriptor object; it knows descriptors by number, in its own table.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Instant;

use highwater_objects::{last_errno, open_by_handle};
use highwater_tracker::FileHandle;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::wire::abi::FILEID_INO64_GEN;

/// What a prober does.
enum Job {
    /// Takes and gives back the lock of each of these nodes.
    LockPass(Vec<u64>),
    /// Writes the dirty pages of a file back, so that they reach the server.
    FlushPages(u64),
}

/// The probers of one mount.
pub(crate) struct Probers {
    mount: OwnedFd,
    idle: Mutex<Vec<Prober>>,
    /// Those that were still waiting when the deadline of their caller passed. They go on waiting: nothing can stop them.
    stuck: Mutex<VecDeque<Prober>>,
}

/// With so many threads that wait for nobody any more, a caller with a deadline waits for one of them and starts no other. Callers
/// without a deadline are as few as checkpoints at the same time: one.
const STUCK_MAX: usize = 16;

struct Prober {
    jobs: Sender<Job>,
    result: Receiver<Result<(), Errno>>,
    thread: JoinHandle<()>,
}

impl Probers {
    /// `mount` is a mount that does not make the visible one busy, not opened for anything (`open_tree(2)`).
    pub(crate) fn new(mount: OwnedFd) -> Self {
        Self { mount, idle: Mutex::default(), stuck: Mutex::default() }
    }

    /// Returns once everybody who held the lock of one of these nodes has given it back, or with `ETIMEDOUT`.
    pub(crate) fn lock_pass(&self, nodes: Vec<u64>, deadline: Option<Instant>) -> Result<(), Errno> {
        if nodes.is_empty() { Ok(()) } else { self.run(Job::LockPass(nodes), deadline) }
    }

    /// Returns once stores into shared mappings of a file that happened before have been sent to the server, or with
    /// `ETIMEDOUT`.
    pub(crate) fn flush_pages(&self, node: u64, deadline: Option<Instant>) -> Result<(), Errno> {
        self.run(Job::FlushPages(node), deadline)
    }

    fn run(&self, job: Job, deadline: Option<Instant>) -> Result<(), Errno> {
        let prober = self.free(deadline)?;
        prober.jobs.send(job).map_err(|_| Errno::IO)?;
        let result = prober.done(deadline);
        match result {
            Err(Errno::TIMEDOUT) => self.stuck.lock().push_back(prober),
            Ok(()) => self.idle.lock().push(prober),
            // It may not have come as far as to open the mount (too few descriptors), and would never do.
            Err(_) => prober.end(),
        }
        result
    }

    /// A prober that waits for nothing.
    fn free(&self, deadline: Option<Instant>) -> Result<Prober, Errno> {
        let mut stuck = self.stuck.lock();
        for prober in std::mem::take(&mut *stuck) {
            match prober.result.try_recv() {
                Err(TryRecvError::Empty) => stuck.push_back(prober),
                Err(TryRecvError::Disconnected) => {}
                Ok(_) => self.idle.lock().push(prober),
            }
        }
        if let Some(prober) = self.idle.lock().pop() {
            return Ok(prober);
        }
        if deadline.is_none() || stuck.len() < STUCK_MAX {
            return Prober::start(self.mount.as_raw_fd());
        }
        let oldest = stuck.pop_front().expect("there are at least so many");
        drop(stuck);
        if let Err(Errno::TIMEDOUT) = oldest.done(deadline) {
            self.stuck.lock().push_front(oldest);
            return Err(Errno::TIMEDOUT);
        }
        Ok(oldest)
    }
}

impl Drop for Probers {
    fn drop(&mut self) {
        // A stuck one is not waited for. It ends when what it waits for has ended.
        self.idle.get_mut().drain(..).for_each(Prober::end);
    }
}

impl Prober {
    fn start(mount: RawFd) -> Result<Self, Errno> {
        let (jobs, todo) = channel();
        let (finished, result) = channel();
        let thread = std::thread::Builder::new()
            .name("fuse-prober".into())
            .spawn(move || {
                let prepared = isolate(mount);
                for job in todo {
                    let result = match prepared {
                        Ok(root) => do_job(root, job),
                        // The mount is gone, and so is everybody who held a lock.
                        Err(Errno::NOTCONN | Errno::CONNABORTED) => Ok(()),
                        Err(errno) => Err(errno),
                    };
                    if finished.send(result).is_err() {
                        return;
                    }
                }
            })
            .map_err(|_| Errno::AGAIN)?;
        Ok(Self { jobs, result, thread })
    }

    /// Ends one that has no job.
    fn end(self) {
        drop(self.jobs);
        // It ends with the channel; its copy of the mount's descriptor is gone when it has.
        let _ = self.thread.join();
    }

    /// What became of its job.
    fn done(&self, deadline: Option<Instant>) -> Result<(), Errno> {
        match deadline {
            None => self.result.recv().map_err(|_| Errno::IO)?,
            Some(deadline) => {
                match self.result.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                    Ok(result) => result,
                    Err(RecvTimeoutError::Timeout) => Err(Errno::TIMEDOUT),
                    Err(RecvTimeoutError::Disconnected) => Err(Errno::IO),
                }
            }
        }
    }
}

/// Gives the calling thread a descriptor table of its own, opens the root of the mount in it, which is the first request to us, and
/// takes `CAP_SYS_ADMIN` away from the thread.
fn isolate(mount: RawFd) -> Result<RawFd, Errno> {
    let mount_fd = mount;
    let mount = libc::c_uint::try_from(mount).map_err(|_| Errno::BADF)?;
    // SAFETY: takes no pointers. After it, closing descriptors by number affects this thread's copies only, and no object of this
    // thread owns one.
    unsafe {
        if libc::unshare(libc::CLONE_FILES) < 0 {
            return Err(last_errno());
        }
        if mount > 0 {
            libc::close_range(0, mount - 1, 0);
        }
        libc::close_range(mount + 1, libc::c_uint::MAX, 0);
    }
    // SAFETY: the descriptor is in this thread's own table, where nothing closes it.
    let mount = unsafe { BorrowedFd::borrow_raw(mount_fd) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(mount, c".", flags, Mode::empty())?.into_raw_fd();
    let sets = rustix::thread::capabilities(None)?;
    let effective = sets.effective.difference(CapabilitySet::SYS_ADMIN);
    rustix::thread::set_capabilities(None, CapabilitySets { effective, ..sets })?;
    Ok(root)
}

fn do_job(mount: RawFd, job: Job) -> Result<(), Errno> {
    // SAFETY: the descriptor is in this thread's own table, where nothing closes it.
    let mount = unsafe { BorrowedFd::borrow_raw(mount) };
    match job {
        Job::LockPass(nodes) => nodes.into_iter().try_for_each(|node| lock_pass(mount, node)),
        Job::FlushPages(node) => flush_pages(mount, node),
    }
}

/// Opens a node by FUSE's own handle. `None`: the kernel has dropped the inode, so that nobody uses it, or the mount is gone.
fn open(mount: BorrowedFd<'_>, node: u64, flags: OFlags) -> Result<Option<OwnedFd>, Errno> {
    #[allow(clippy::cast_possible_truncation, reason = "the halves of the number, high first")]
    let words = [(node >> 32) as u32, node as u32, 0];
    let mut opaque = [0; 12];
    for (bytes, word) in opaque.chunks_exact_mut(4).zip(words) {
        bytes.copy_from_slice(&word.to_ne_bytes());
    }
    let handle = FileHandle::new(FILEID_INO64_GEN, &opaque).ok_or(Errno::INVAL)?;
    match open_by_handle(mount, &handle, flags) {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::STALE | Errno::NOENT | Errno::NOTCONN | Errno::CONNABORTED) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn lock_pass(mount: BorrowedFd<'_>, node: u64) -> Result<(), Errno> {
    let Some(fd) = open(mount, node, OFlags::PATH)? else { return Ok(()) };
    let path = format!("/proc/thread-self/fd/{}", fd.as_raw_fd());
    match rustix::fs::setxattr(path, c"trusted.highwater", b"", XattrFlags::empty()) {
        // EROFS: nothing can be in flight on a read-only mount.
        Err(Errno::PERM | Errno::ROFS) => Ok(()),
        Err(errno) => Err(errno),
        Ok(()) => Err(Errno::PERM),
    }
}

fn flush_pages(mount: BorrowedFd<'_>, node: u64) -> Result<(), Errno> {
    let Some(fd) = open(mount, node, OFlags::RDONLY | OFlags::NONBLOCK)? else { return Ok(()) };
    let flags =
        libc::SYNC_FILE_RANGE_WAIT_BEFORE | libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: takes no pointers.
    if unsafe { libc::sync_file_range(fd.as_raw_fd(), 0, 0, flags) } < 0 { Err(last_errno()) } else { Ok(()) }
}
