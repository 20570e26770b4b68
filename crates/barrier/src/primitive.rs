//! The one place where std and loom change places.
//!
//! Everything that the protocol reads or writes from two threads comes from here, so that `--cfg loom` checks the
//! very code that ships. What is missing here is missing from the model: `Arc` is std's in both (the protocol does
//! not order anything by a reference count), and so is the clock.

pub(crate) use std::sync::PoisonError;
use std::time::Duration;

#[cfg(loom)]
pub(crate) use loom::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
    sync::{Condvar, Mutex, MutexGuard},
    thread_local,
};
#[cfg(not(loom))]
pub(crate) use std::{
    sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
    sync::{Condvar, Mutex, MutexGuard},
    thread_local,
};

/// Locks, also after a panic of another holder: no holder leaves its data half changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Gives the lock up for at most `pause`, or until `condvar` is notified.
#[cfg(not(loom))]
pub(crate) fn nap<'a, T>(
    _mutex: &'a Mutex<T>,
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    pause: Duration,
) -> MutexGuard<'a, T> {
    condvar.wait_timeout(guard, pause).unwrap_or_else(PoisonError::into_inner).0
}

/// Gives the lock up and lets other threads run: loom has no time, and its timed wait never times out.
#[cfg(loom)]
pub(crate) fn nap<'a, T>(
    mutex: &'a Mutex<T>,
    _condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    _pause: Duration,
) -> MutexGuard<'a, T> {
    drop(guard);
    loom::thread::yield_now();
    lock(mutex)
}
