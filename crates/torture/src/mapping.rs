//! A shared writable mapping that survives what happens to its file.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by the SIGBUS handler: the store went nowhere.
static BUS_ERROR: AtomicBool = AtomicBool::new(false);

/// A `MAP_SHARED` mapping.
pub(crate) struct Mapping {
    address: *mut u8,
    length: usize,
}

// SAFETY: the mapping belongs to the value alone and is not tied to a thread.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Maps the first bytes of a file, readable and writable.
    pub(crate) fn of(file: &File, length: usize) -> io::Result<Self> {
        Self::new(file, length, libc::PROT_READ | libc::PROT_WRITE)
    }

    /// Maps the first bytes of a file for reading.
    pub(crate) fn for_reading(file: &File, length: usize) -> io::Result<Self> {
        Self::new(file, length, libc::PROT_READ)
    }

    fn new(file: &File, length: usize, protection: i32) -> io::Result<Self> {
        // SAFETY: the kernel chooses the address, so that no existing mapping is replaced; `length` is not 0 or it fails.
        let address = unsafe {
            libc::mmap(std::ptr::null_mut(), length, protection, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { address: address.cast(), length })
    }

    /// Bytes mapped.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// Stores bytes, as many as fit. False: SIGBUS, nothing of the file is behind the page any more.
    pub(crate) fn store(&mut self, offset: usize, bytes: &[u8]) -> bool {
        // ORDERING: the handler runs in this thread.
        BUS_ERROR.store(false, Ordering::Relaxed);
        for (index, byte) in bytes.iter().enumerate().take(self.length.saturating_sub(offset)) {
            // SAFETY: inside the mapping; volatile, since others may change the file; a SIGBUS is survived.
            unsafe { self.address.add(offset + index).write_volatile(*byte) };
        }
        // ORDERING: the handler runs in this thread.
        !BUS_ERROR.load(Ordering::Relaxed)
    }

    /// Reads bytes.
    pub(crate) fn load(&self, offset: usize, length: usize) -> Vec<u8> {
        assert!(offset + length <= self.length);
        // SAFETY: inside the mapping; volatile, since others change the file at the same time.
        (offset..offset + length).map(|at| unsafe { self.address.add(at).read_volatile() }).collect()
    }

    /// `msync(MS_SYNC)`.
    pub(crate) fn sync(&self) -> io::Result<()> {
        // SAFETY: the range is the mapping's own.
        match unsafe { libc::msync(self.address.cast(), self.length, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the mapping's own, and nothing refers to it after this.
        unsafe { libc::munmap(self.address.cast(), self.length) };
    }
}

/// Lets stores beyond the end of a file, or into one whose filesystem has died, go nowhere.
pub(crate) fn survive_sigbus() {
    extern "C" fn replace_page(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
        // ORDERING: read by the thread that was interrupted.
        BUS_ERROR.store(true, Ordering::Relaxed);
        // SAFETY: `info` comes from the kernel. The page at fault is inside a `Mapping` of this thread; putting an anonymous
        // page there keeps the mapping valid. mmap is a plain system call and safe in a handler.
        unsafe {
            let page = (*info).si_addr() as usize & !4095;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            if libc::mmap(page as *mut libc::c_void, 4096, protection, flags, -1, 0) == libc::MAP_FAILED {
                libc::abort();
            }
        }
    }
    // SAFETY: the structure is zeroed, then its handler and flags are set; the handler is async-signal-safe.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        action.sa_sigaction = replace_page as *const () as usize;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &raw const action, std::ptr::null_mut());
    }
}
