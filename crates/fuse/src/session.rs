//! The workers: threads that read requests, serve them and answer.
//!
//! A request may block: in strict mode an operation waits for the journal, and the filesystem below may take its time. So when
//! the last idle worker takes a request another one is started, up to a limit, and those go again when they are not needed.
//!
//! Invariant: no request is left unanswered, even if serving it panics.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use highwater_objects::magic;
use parking_lot::Mutex;
use rustix::io::Errno;

use crate::credentials;
use crate::filesystem::Filesystem;
use crate::wire::abi::{InitIn, InitOut, KERNEL_MAJOR, KERNEL_MINOR, init};
use crate::wire::device;
use crate::wire::request::{Request, Sent};

/// The largest READ and WRITE: 256 pages, the kernel's default limit.
pub(crate) const DATA_BYTES_MAX: u32 = 1 << 20;

/// How many workers there may be while requests block.
const WORKERS_MAX: usize = 64;

/// How many workers without work are kept. Not fewer than a burst of a few programs needs: an open, the release of the file
/// before, a lookup; ending one and starting another for each request costs more than the request.
const IDLE_MAX: usize = 8;

/// The workers of one mount.
pub(crate) struct Session {
    filesystem: Arc<Filesystem>,
    base: usize,
    idle: AtomicUsize,
    count: AtomicUsize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Session {
    /// Starts the workers. The device has its connection already.
    pub(crate) fn start(filesystem: Arc<Filesystem>) -> Arc<Self> {
        let base = filesystem.options.threads.clamp(1, WORKERS_MAX);
        let session = Arc::new(Self {
            filesystem,
            base,
            idle: AtomicUsize::new(0),
            count: AtomicUsize::new(0),
            threads: Mutex::new(Vec::new()),
        });
        for _ in 0..base {
            session.spawn();
        }
        let filesystem = Arc::clone(&session.filesystem);
        let lingering = std::thread::Builder::new().name("fuse-lingering".into());
        match lingering.spawn(move || filesystem.look_after_lingering()) {
            Ok(thread) => session.threads.lock().push(thread),
            Err(error) => tracing::error!(%error, "a thread could not be started"),
        }
        session
    }

    /// Whether the kernel ends the connection within a time.
    pub(crate) fn ends_within(&self, patience: Duration) -> bool {
        const PAUSE: Duration = Duration::from_millis(10);
        let deadline = Instant::now() + patience;
        while self.threads.lock().iter().any(|thread| !thread.is_finished()) {
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(PAUSE);
        }
        true
    }

    /// Returns when the kernel has ended the connection and every worker is gone.
    pub(crate) fn join(&self) {
        loop {
            let threads = std::mem::take(&mut *self.threads.lock());
            if threads.is_empty() {
                return;
            }
            for thread in threads {
                if thread.thread().id() != std::thread::current().id() {
                    // A worker catches the panics of requests, so this is one of our own; it has been printed.
                    let _ = thread.join();
                }
            }
        }
    }

    fn spawn(self: &Arc<Self>) {
        // ORDERING: the counters are hints for the number of threads; nothing else depends on them.
        self.idle.fetch_add(1, Ordering::Relaxed);
        self.count.fetch_add(1, Ordering::Relaxed);
        let session = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("fuse-worker".into()).spawn(move || session.work());
        match spawned {
            Ok(thread) => {
                let mut threads = self.threads.lock();
                threads.retain(|thread| !thread.is_finished());
                threads.push(thread);
            }
            Err(error) => {
                tracing::error!(%error, "a worker could not be started");
                // ORDERING: see above.
                self.idle.fetch_sub(1, Ordering::Relaxed);
                self.count.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }

    fn work(self: &Arc<Self>) {
        if let Err(errno) = credentials::own_umask() {
            tracing::warn!(%errno, "a worker has no umask of its own: new files get modes without the caller's umask");
        }
        let device: Arc<OwnedFd> = if self.filesystem.options.clone_device {
            device::clone(self.filesystem.device.as_fd())
                .map_or_else(|_| Arc::clone(&self.filesystem.device), Arc::new)
        } else {
            Arc::clone(&self.filesystem.device)
        };
        // 64-bit words for the alignment of the structures; room for the headers of a WRITE besides its data.
        let mut buffer = vec![0u64; (DATA_BYTES_MAX as usize + 4096) / 8];
        loop {
            let bytes = zerocopy::IntoBytes::as_mut_bytes(buffer.as_mut_slice());
            let len = match rustix::io::read(&*device, &mut *bytes) {
                Ok(len) => len,
                // ENOENT: the request was taken back before it was read.
                Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => continue,
                Err(Errno::NODEV) => break,
                Err(errno) => {
                    tracing::error!(%errno, "requests cannot be read any more");
                    break;
                }
            };
            // ORDERING: see `spawn`.
            if self.idle.fetch_sub(1, Ordering::Relaxed) == 1
                && self.count.load(Ordering::Relaxed) < WORKERS_MAX
            {
                self.spawn();
            }
            match Request::parse(&bytes[..len], device.as_fd()) {
                Ok(request) => {
                    let served =
                        std::panic::catch_unwind(AssertUnwindSafe(|| self.filesystem.serve(&request)));
                    if served.is_err() {
                        // If it had been answered before, the kernel ignores this.
                        request.fail(Errno::IO);
                    }
                }
                Err(_) => tracing::error!(len, "a request of the kernel makes no sense"),
            }
            // ORDERING: see `spawn`.
            if self.idle.fetch_add(1, Ordering::Relaxed) >= IDLE_MAX.max(self.base) {
                if self.count.fetch_sub(1, Ordering::Relaxed) > self.base {
                    self.idle.fetch_sub(1, Ordering::Relaxed);
                    return;
                }
                self.count.fetch_add(1, Ordering::Relaxed);
            }
        }
        // ORDERING: see `spawn`.
        self.idle.fetch_sub(1, Ordering::Relaxed);
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.filesystem.stop_lingering();
    }
}

/// The kernel asks as soon as the filesystem is made. If it does not, what follows finds out.
const INIT_PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

impl Filesystem {
    pub(crate) fn init(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let mut body = request.body();
        let input: InitIn = body.take()?;
        if input.major < KERNEL_MAJOR {
            return Err(Errno::PROTO);
        }
        if input.major > KERNEL_MAJOR {
            // It answers with its own version, and the kernel asks again with that.
            return Ok(request.reply(&InitOut {
                major: KERNEL_MAJOR,
                minor: KERNEL_MINOR,
                ..InitOut::default()
            }));
        }
        let mut offered = u64::from(input.flags);
        if offered & init::INIT_EXT != 0 {
            offered |= u64::from(body.take::<u32>()?) << 32;
        }
        // Not ATOMIC_O_TRUNC: an open with O_RDONLY and O_TRUNC would come to us before the kernel has asked whether the file is
        // being executed, and the program that runs would lose its text. It comes as an open and a SETATTR instead.
        let mut wanted = init::ASYNC_READ
            | init::EXPORT_SUPPORT
            | init::BIG_WRITES
            | init::DONT_MASK
            | init::HAS_IOCTL_DIR
            | init::DO_READDIRPLUS
            | init::READDIRPLUS_AUTO
            | init::ASYNC_DIO
            | init::PARALLEL_DIROPS
            | init::POSIX_ACL
            | init::MAX_PAGES
            | init::CACHE_SYMLINKS
            | init::EXPLICIT_INVAL_DATA
            | init::HANDLE_KILLPRIV_V2
            | init::SETXATTR_EXT
            | init::INIT_EXT;
        if self.options.passthrough {
            wanted |= init::PASSTHROUGH;
        }
        let agreed = offered & wanted;
        // ORDERING: nothing is asked before the answer to INIT, which orders them.
        self.kernel_flags.store(agreed, Ordering::Relaxed);
        self.passthrough.store(agreed & init::PASSTHROUGH != 0, Ordering::Relaxed);
        // The depth of stacking that the lower filesystem may have, plus one; it is taken off what may be stacked on us.
        let depth = if self.covered.magic() == magic::OVERLAYFS { 2 } else { 1 };
        #[allow(clippy::cast_possible_truncation, reason = "the two halves of the flags")]
        let (flags, flags2) = (agreed as u32, (agreed >> 32) as u32);
        let sent = request.reply(&InitOut {
            major: KERNEL_MAJOR,
            minor: KERNEL_MINOR.min(input.minor),
            max_readahead: input.max_readahead,
            flags,
            max_background: 64,
            congestion_threshold: 48,
            max_write: DATA_BYTES_MAX,
            time_gran: 1,
            max_pages: 256,
            flags2,
            max_stack_depth: if agreed & init::PASSTHROUGH != 0 { depth } else { 0 },
            ..InitOut::default()
        });
        *self.init_answered.0.lock() = true;
        self.init_answered.1.notify_all();
        Ok(sent)
    }

    /// Returns once the kernel and we have agreed on the flags; without asking the mount, see `Stacked::mount`.
    pub(crate) fn wait_for_init(&self) {
        let deadline = std::time::Instant::now() + INIT_PATIENCE;
        let mut answered = self.init_answered.0.lock();
        while !*answered && !self.init_answered.1.wait_until(&mut answered, deadline).timed_out() {}
    }

    /// Whether the kernel and we have agreed on a flag of INIT.
    pub(crate) fn agreed(&self, flag: u64) -> bool {
        // ORDERING: see `init`.
        self.kernel_flags.load(Ordering::Relaxed) & flag != 0
    }
}
