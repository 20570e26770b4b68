//! The seam between an in-place source and what waits for the writes in flight.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use highwater_tracker::FileHandle;
use rustix::io::Errno;

/// Waits for the modifications in flight on one filesystem.
pub trait WriteBarrier: Send + Sync + 'static {
    /// Returns once every modification of the filesystem that began before the call has ended, but for what is carried over.
    ///
    /// Ended means: the call that made it has queued its event, and a reader sees what it did. A modification that
    /// begins after the call may or may not be waited for.
    ///
    /// # Errors
    /// [`BarrierError`]; nothing is known then about what was in flight.
    fn wait(&self, deadline: Option<Instant>) -> Result<CarriedOver, BarrierError>;

    /// Its name, for `status`.
    fn name(&self) -> &'static str;
}

/// What a barrier did not wait for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CarriedOver {
    /// Objects with asynchronous I/O in flight, or whose writer is stopped or traced. They are reported in this batch and in the next one.
    pub objects: Vec<FileHandle>,
    /// Who may write inside the kernel without being seen, a sentence for each; for `status`.
    pub not_covered: Vec<String>,
}

/// Who holds a barrier up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holdup {
    /// The thread's number.
    pub tid: u32,
    /// The name of its command.
    pub command: String,
    /// The call that it is in, if that is known.
    pub call: Option<String>,
}

impl fmt::Display for Holdup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (thread {})", self.command, self.tid)?;
        self.call.as_ref().map_or(Ok(()), |call| write!(f, " in {call}"))
    }
}

/// Why a barrier did not hold.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BarrierError {
    /// The deadline has passed.
    #[error("the deadline has passed while modifications were in flight")]
    Deadline {
        /// Who was in a modifying call then, as far as that is known.
        holdups: Vec<Holdup>,
    },
    /// The barrier does not work here.
    #[error("the write barrier failed")]
    Failed {
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The barrier that needs nothing of the kernel but `FIFREEZE`: freezing waits for every write, and is taken back at once.
///
/// It is the explicit alternative where the one in BPF cannot be loaded. **It blocks writers** while the filesystem is frozen,
/// and freezing syncs the filesystem, so that may take seconds. A process that is killed while it freezes leaves the filesystem
/// frozen until `fsfreeze -u`.
#[derive(Debug)]
pub struct Freeze {
    directory: OwnedFd,
}

/// How long to wait before asking again, while somebody else has frozen the filesystem.
const FROZEN_PAUSE: Duration = Duration::from_millis(10);

// _IOWR('X', 119, int) and _IOWR('X', 120, int), linux/fs.h.
const FIFREEZE: libc::Ioctl = 0xc004_5877_u32 as libc::Ioctl;
const FITHAW: libc::Ioctl = 0xc004_5878_u32 as libc::Ioctl;

impl Freeze {
    /// Takes the filesystem of a directory, and tries once whether it can be frozen.
    ///
    /// # Errors
    /// `EOPNOTSUPP` where it cannot (tmpfs), `EPERM` without `CAP_SYS_ADMIN`.
    pub fn new(directory: impl AsFd) -> io::Result<Self> {
        let barrier = Self { directory: directory.as_fd().try_clone_to_owned()? };
        match barrier.freeze_and_thaw() {
            // Frozen by somebody else now: so it can be frozen.
            Ok(()) | Err(Errno::BUSY) => Ok(barrier),
            Err(errno) => Err(errno.into()),
        }
    }

    fn freeze_and_thaw(&self) -> Result<(), Errno> {
        self.ioctl(FIFREEZE)?;
        // Nothing may come in between: whatever this process wrote now would wait for itself.
        self.ioctl(FITHAW)
    }

    fn ioctl(&self, request: libc::Ioctl) -> Result<(), Errno> {
        // SAFETY: the kernel does not look at the argument of these two.
        let r = unsafe { libc::ioctl(self.directory.as_raw_fd(), request, 0) };
        if r == 0 {
            return Ok(());
        }
        Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
    }
}

impl WriteBarrier for Freeze {
    fn wait(&self, deadline: Option<Instant>) -> Result<CarriedOver, BarrierError> {
        loop {
            match self.freeze_and_thaw() {
                // Asynchronous writes hold the filesystem's write count until they complete: none is left to carry over.
                Ok(()) => return Ok(CarriedOver::default()),
                Err(Errno::BUSY) if deadline.is_some_and(|deadline| Instant::now() >= deadline) => {
                    return Err(BarrierError::Deadline { holdups: Vec::new() });
                }
                Err(Errno::BUSY) => std::thread::sleep(FROZEN_PAUSE),
                Err(errno) => return Err(BarrierError::Failed { source: errno.into() }),
            }
        }
    }

    fn name(&self) -> &'static str {
        "freeze"
    }
}
