//! The asymmetric fence: free where a section is entered, dear where a barrier waits.
//!
//! Invariant: for every pair of one [`light`](FenceKind::light) and one [`heavy`](FenceKind::heavy) fence of the
//! same kind, either everything before the light one is visible after the heavy one, or everything before the heavy
//! one is visible after the light one. Two `fence(SeqCst)` have that property; so has a compiler fence against
//! `membarrier(2)`, which makes every running thread of the process execute a full memory barrier between two of its
//! instructions before it returns (Linux 4.14, `MEMBARRIER_CMD_PRIVATE_EXPEDITED`).

use std::fmt;
use std::io;

use rustix::thread::{MembarrierCommand, MembarrierQuery, membarrier, membarrier_query};

use crate::primitive::{Ordering, fence};
use crate::registry::Registry;

/// How entering a section is ordered against a barrier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FenceKind {
    /// Entering costs a compiler fence; a grace period costs one `membarrier(2)`, which interrupts every CPU that
    /// runs a thread of this process (a few microseconds).
    Membarrier,
    /// Entering and a grace period cost one full memory fence each. Works everywhere.
    SeqCst,
}

impl FenceKind {
    /// The best kind that this process can use.
    pub(crate) fn best() -> Self {
        if Self::Membarrier.prepare().is_ok() { Self::Membarrier } else { Self::SeqCst }
    }

    /// Makes this kind usable in this process; may be called any number of times.
    pub(crate) fn prepare(self) -> Result<(), FenceUnavailable> {
        if self == Self::SeqCst || cfg!(loom) {
            return Ok(());
        }
        // The query is asked first because a kernel with nohz_full or without SMP answers it without the bit.
        if !membarrier_query().contains(MembarrierQuery::PRIVATE_EXPEDITED) {
            return Err(FenceUnavailable { source: io::ErrorKind::Unsupported.into() });
        }
        membarrier(MembarrierCommand::RegisterPrivateExpedited)
            .map_err(|errno| FenceUnavailable { source: errno.into() })
    }

    /// The fence of the entering side. A section does this after it has counted itself and before its first access.
    #[inline(always)]
    pub(crate) fn light(self) {
        match self {
            // ORDERING: pairs with the membarrier in `heavy`, which supplies the CPU's half of this fence; the
            // compiler must not move an access of the section above the count.
            #[cfg(not(loom))]
            Self::Membarrier => std::sync::atomic::compiler_fence(Ordering::SeqCst),
            // The model's interrupt (Slot::interrupt_point) supplies the fence.
            #[cfg(loom)]
            Self::Membarrier => {}
            // ORDERING: pairs with fence(SeqCst) in `heavy`.
            Self::SeqCst => fence(Ordering::SeqCst),
        }
    }

    /// The fence of the waiting side.
    ///
    /// # Errors
    /// The system call failed although it had been registered: a seccomp filter came later. The fence did not
    /// happen, and nothing may rely on it.
    pub(crate) fn heavy(self, registry: &Registry) -> io::Result<()> {
        // ORDERING: pairs with fence(SeqCst) in `light`, and with the one in `WriteBarrier::start_poll`.
        fence(Ordering::SeqCst);
        if self == Self::Membarrier {
            interrupt_every_thread(registry)?;
            // ORDERING: membarrier is a full barrier for its caller too; this says so to the memory model.
            fence(Ordering::SeqCst);
        }
        Ok(())
    }
}

#[cfg(not(loom))]
fn interrupt_every_thread(_registry: &Registry) -> io::Result<()> {
    match membarrier(MembarrierCommand::PrivateExpedited) {
        // Not registered: this is a child of fork on a kernel that does not inherit the registration.
        Err(rustix::io::Errno::PERM) => {
            membarrier(MembarrierCommand::RegisterPrivateExpedited)?;
            Ok(membarrier(MembarrierCommand::PrivateExpedited)?)
        }
        other => Ok(other?),
    }
}

#[cfg(loom)]
fn interrupt_every_thread(registry: &Registry) -> io::Result<()> {
    registry.interrupt_every_thread();
    Ok(())
}

/// The asked [`FenceKind`] does not work on this kernel or in this sandbox.
#[derive(Debug)]
pub struct FenceUnavailable {
    source: io::Error,
}

impl fmt::Display for FenceUnavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("membarrier(2) is not available to this process; use FenceKind::SeqCst")
    }
}

impl std::error::Error for FenceUnavailable {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}
