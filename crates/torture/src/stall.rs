//! A write that stalls half-way: its source page arrives late.
//!
//! The page of the buffer is registered with userfaultfd and missing. The kernel bumps the timestamp of the file, then
//! copies the data, faults on the page, and waits until somebody provides it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::thread::JoinHandle;

/// Length of a stalled write, bytes.
pub(crate) const LENGTH: usize = 65536;

const UFFD_API: u64 = 0xaa;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_COPY: u64 = 0xc028_aa03;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;

/// A write in flight that ends when [`finish`](StalledWrite::finish) provides its data.
pub(crate) struct StalledWrite {
    uffd: Option<OwnedFd>,
    region: usize,
    writer: Option<JoinHandle<io::Result<()>>>,
}

impl StalledWrite {
    /// Begins to write [`LENGTH`] bytes at the start of the file, on a thread of its own.
    pub(crate) fn begin(file: File) -> io::Result<Self> {
        Self::begin_with(move |data| file.write_all_at(data, 0))
    }

    /// Begins another kind of write of [`LENGTH`] bytes, on a thread of its own.
    pub(crate) fn begin_with(
        write: impl FnOnce(&[u8]) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        // SAFETY: no pointers are passed; the result is checked.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nothing else owns.
        let uffd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        ioctl(&uffd, UFFDIO_API, &mut [UFFD_API, 0, 0])?;
        let region = anonymous()?;
        ioctl(&uffd, UFFDIO_REGISTER, &mut [region as u64, LENGTH as u64, UFFDIO_REGISTER_MODE_MISSING, 0])?;
        let writer = std::thread::spawn(move || {
            // SAFETY: the region stays mapped until this thread has ended; the kernel alone reads it, and waits for it.
            let data = unsafe { std::slice::from_raw_parts(region as *const u8, LENGTH) };
            write(data)
        });
        Ok(Self { uffd: Some(uffd), region, writer: Some(writer) })
    }

    /// Whether the write has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.writer.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Provides the data, all of them `byte`, and returns when the write has ended.
    pub(crate) fn finish(mut self, byte: u8) -> io::Result<()> {
        let data = vec![byte; LENGTH];
        if let Some(uffd) = &self.uffd {
            ioctl(uffd, UFFDIO_COPY, &mut [self.region as u64, data.as_ptr() as u64, LENGTH as u64, 0, 0])?;
        }
        self.join()
    }

    fn join(&mut self) -> io::Result<()> {
        // Without the descriptor, missing pages are ordinary ones: nobody waits any more.
        let outcome = match self.writer.take() {
            Some(writer) => {
                if std::thread::panicking() {
                    self.uffd = None;
                }
                writer.join().map_err(|_| io::Error::other("the writing thread panicked"))?
            }
            None => Ok(()),
        };
        self.uffd = None;
        outcome
    }
}

impl Drop for StalledWrite {
    fn drop(&mut self) {
        self.uffd = None;
        let _ = self.join();
        // SAFETY: the region is this value's own, and the only thread that read it has ended.
        unsafe { libc::munmap(self.region as *mut libc::c_void, LENGTH) };
    }
}

fn ioctl<const N: usize>(uffd: &OwnedFd, request: u64, argument: &mut [u64; N]) -> io::Result<()> {
    // SAFETY: each request here takes a structure of exactly these 64-bit fields, which the kernel may write back.
    match unsafe { libc::ioctl(uffd.as_raw_fd(), request as libc::Ioctl, argument.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn anonymous() -> io::Result<usize> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: the kernel chooses the address, so that no existing mapping is replaced.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(address as usize) }
}
