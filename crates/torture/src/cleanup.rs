//! What has to be undone whatever happens: mounts, loop devices, processes, directories.
//!
//! Invariant: each undo runs exactly once, newest first, at the drop of its guard or at SIGINT, SIGTERM or SIGHUP.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::IntoRawFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

type Undo = Box<dyn FnOnce() + Send>;

static UNDOS: Mutex<BTreeMap<u64, Undo>> = Mutex::new(BTreeMap::new());
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Runs its undo when dropped.
#[must_use = "the undo runs at once when the guard is dropped"]
pub(crate) struct Guard(u64);

impl Guard {
    /// Registers an undo.
    pub(crate) fn new(undo: impl FnOnce() + Send + 'static) -> Self {
        // ORDERING: only uniqueness matters.
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        lock().insert(id, Box::new(undo));
        Self(id)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let undo = lock().remove(&self.0);
        if let Some(undo) = undo {
            undo();
        }
    }
}

fn lock() -> std::sync::MutexGuard<'static, BTreeMap<u64, Undo>> {
    UNDOS.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn run_all() {
    loop {
        let newest = lock().pop_last();
        match newest {
            Some((_, undo)) => undo(),
            None => return,
        }
    }
}

/// The write end of a pipe to the thread that cleans up.
static TELL: AtomicI32 = AtomicI32::new(-1);

extern "C" fn tell(signal: i32) {
    let byte = signal as u8;
    // ORDERING: stored before the handler was installed.
    let pipe = TELL.load(Ordering::Relaxed);
    // SAFETY: one byte that lives through the call; write is safe in a handler.
    unsafe { libc::write(pipe, (&raw const byte).cast(), 1) };
}

/// Handles the ending signals in a thread of their own.
///
/// By handler and pipe, not by a blocked mask: children would inherit the mask, and the product has to see SIGTERM.
pub(crate) fn catch_signals() -> io::Result<()> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // ORDERING: the handler is installed after this.
    TELL.store(write.into_raw_fd(), Ordering::Relaxed);
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only makes one call that is safe in handlers.
        unsafe { libc::signal(signal, tell as *const () as libc::sighandler_t) };
    }
    std::thread::spawn(move || {
        let mut byte = [0];
        if File::from(read).read_exact(&mut byte).is_ok() {
            eprintln!("torture: signal {}, cleaning up", byte[0]);
            run_all();
            std::process::exit(128 + i32::from(byte[0]));
        }
    });
    Ok(())
}
