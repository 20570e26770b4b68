//! What has to be undone whatever happens: mounts, loop devices, processes, directories.
//!
//! Invariant: each undo runs exactly once, newest first, at the drop of its guard or at SIGINT, SIGTERM or SIGHUP.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// Blocks the ending signals in this and all later threads and handles them in one thread of their own.
///
/// Children are not affected: `std::process::Command` starts them with an empty signal mask.
pub(crate) fn catch_signals() {
    // SAFETY: the set is initialised by sigemptyset before it is used; the calls have no other requirement.
    let set = unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
            libc::sigaddset(&raw mut set, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        set
    };
    std::thread::spawn(move || {
        let mut signal = 0;
        // SAFETY: both pointers are to live values of the right type.
        if unsafe { libc::sigwait(&raw const set, &raw mut signal) } == 0 {
            eprintln!("torture: signal {signal}, cleaning up");
            run_all();
            std::process::exit(128 + signal);
        }
    });
}
