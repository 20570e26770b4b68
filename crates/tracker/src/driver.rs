//! The seam between the tracker and what makes two runs differ: the clock, random numbers, threads, and waiting.
//!
//! A simulation that implements [`Driver`] decides all of it, so that one seed is one run. The system is used otherwise.

use std::fmt;
use std::io;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use highwater_barrier::{DeadlineExceeded, WriteBarrier};
use highwater_journal::Storage;

use crate::error::RequestError;
use crate::tracker::{Config, Shared};

/// Drives a tracker that shall do nothing by itself.
///
/// Such a tracker starts no thread: the stable horizon moves by [`Tracker::advance_horizon`](crate::Tracker::advance_horizon),
/// and a catch-up runs in [`Tracker::catch_up`](crate::Tracker::catch_up).
pub trait Driver: fmt::Debug + Send + Sync {
    /// The time: nanoseconds since the epoch. It may go back, as the system's may.
    fn now_ns(&self) -> u64;

    /// Random bytes.
    fn random(&self) -> [u8; 16];

    /// A barrier waits for write sections. Called until they have been left; without this nobody could leave them.
    ///
    /// No lock is held that a section needs. Another checkpoint must not be asked for in here.
    fn wait_for_sections(&self);
}

impl Config {
    /// Nanoseconds since the epoch; 0 for a clock before it.
    pub(crate) fn now_ns(&self) -> u64 {
        if let Some(driver) = &self.driver {
            return driver.now_ns();
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    pub(crate) fn random(&self) -> io::Result<[u8; 16]> {
        if let Some(driver) = &self.driver {
            return Ok(driver.random());
        }
        let mut bytes = [0; 16];
        let mut filled = 0;
        while filled < bytes.len() {
            filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())?;
        }
        Ok(bytes)
    }
}

impl<S: Storage> Shared<S> {
    pub(crate) fn now_ns(&self) -> u64 {
        self.config.now_ns()
    }

    /// Waits for the sections of a barrier.
    pub(crate) fn synchronize(
        &self,
        barrier: &WriteBarrier,
        deadline: Option<Instant>,
        waiting_for: &'static str,
    ) -> Result<(), RequestError> {
        match deadline.filter(|_| self.config.driver.is_none()) {
            None => {
                self.wait_for(barrier);
                Ok(())
            }
            Some(deadline) => barrier
                .synchronize_deadline(deadline)
                .map_err(|DeadlineExceeded| RequestError::Deadline { waiting_for: waiting_for.into() }),
        }
    }

    /// Waits for the sections of a barrier as long as it takes.
    pub(crate) fn wait_for(&self, barrier: &WriteBarrier) {
        let Some(driver) = &self.config.driver else {
            barrier.synchronize();
            return;
        };
        let cookie = barrier.start_poll();
        while !barrier.poll_state(cookie) {
            driver.wait_for_sections();
        }
    }
}
