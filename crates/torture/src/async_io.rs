//! Writes that are not a `write(2)`: io_uring and libaio. All of them have ended when these functions return.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use io_uring::{IoUring, opcode, types};

/// Bytes at an address that O_DIRECT accepts.
pub(crate) struct Aligned {
    space: Vec<u8>,
    start: usize,
    length: usize,
}

impl From<&Vec<u8>> for Aligned {
    fn from(bytes: &Vec<u8>) -> Self {
        let mut space = vec![0; bytes.len() + 4096];
        let start = space.as_ptr().align_offset(4096);
        space[start..start + bytes.len()].copy_from_slice(bytes);
        Self { space, start, length: bytes.len() }
    }
}

impl Aligned {
    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.space[self.start..self.start + self.length]
    }
}

/// Writes through io_uring. `close_early`: the descriptor is closed between submission and completion.
pub(crate) fn uring_write(file: File, offset: u64, data: &[u8], close_early: bool) -> io::Result<()> {
    let mut ring = IoUring::new(4)?;
    let mut entry = opcode::Write::new(types::Fd(file.as_raw_fd()), data.as_ptr(), data.len() as u32)
        .offset(offset)
        .build();
    if close_early {
        // To a worker thread of the kernel, or small writes would have ended at the submission.
        entry = entry.flags(io_uring::squeue::Flags::ASYNC);
    }
    // SAFETY: `data` lives until the completion has been seen below; the ring holds its own reference to the file.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    ring.submit()?;
    let kept = if close_early { None } else { Some(file) };
    ring.submit_and_wait(1)?;
    let result = ring.completion().next().map_or(0, |completion| completion.result());
    drop(kept);
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

/// `struct iocb` of the kernel's interface, for a 64-bit little-endian machine.
#[repr(C)]
#[derive(Default)]
struct Iocb {
    data: u64,
    key: u32,
    flags_rw: u32,
    opcode: u16,
    priority: i16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    result_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct IoEvent {
    data: u64,
    object: u64,
    result: i64,
    result2: i64,
}

const IOCB_CMD_PWRITE: u16 = 1;

/// Writes through libaio's system calls. `close_early`: the descriptor is closed between submission and completion.
pub(crate) fn aio_write(file: File, offset: u64, data: &[u8], close_early: bool) -> io::Result<()> {
    let mut context: u64 = 0;
    // SAFETY: the kernel writes the context's id into `context`.
    check(unsafe { libc::syscall(libc::SYS_io_setup, 4_u64, &raw mut context) })?;
    let control = Iocb {
        opcode: IOCB_CMD_PWRITE,
        fd: file.as_raw_fd() as u32,
        buffer: data.as_ptr() as u64,
        bytes: data.len() as u64,
        offset: offset as i64,
        ..Iocb::default()
    };
    let list = [&raw const control];
    // SAFETY: `control` and `data` live until io_getevents or io_destroy has returned.
    let submitted = check(unsafe { libc::syscall(libc::SYS_io_submit, context, 1_u64, list.as_ptr()) });
    let kept = if close_early { None } else { Some(file) };
    let mut event = IoEvent::default();
    let outcome = submitted.and_then(|_| {
        let no_time: *const libc::timespec = std::ptr::null();
        // SAFETY: there is room for the one event that is asked for.
        check(unsafe {
            libc::syscall(libc::SYS_io_getevents, context, 1_u64, 1_u64, &raw mut event, no_time)
        })
    });
    drop(kept);
    // SAFETY: the context is this function's own; the call waits for what is in flight.
    unsafe { libc::syscall(libc::SYS_io_destroy, context) };
    outcome?;
    if event.result < 0 { Err(io::Error::from_raw_os_error(-event.result as i32)) } else { Ok(()) }
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
