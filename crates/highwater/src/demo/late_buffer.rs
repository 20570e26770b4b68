//! Memory of which all but the first page arrives late.
//!
//! A program may write(2) from memory that is not there yet: mapped from a network filesystem, swapped out, migrated. The
//! kernel has changed the timestamp by then, and waits half-way. Here userfaultfd plays the slow memory: pages that are
//! missing are filled when we say so, and whoever touches one before that waits in the kernel.

#![allow(unsafe_code, reason = "memory mappings and userfaultfd have no safe interface")]

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr;

use rustix::ioctl::{Updater, ioctl, opcode};
use rustix::mm::{MapFlags, ProtFlags, UserfaultfdFlags, mmap, mmap_anonymous, munmap, userfaultfd};

/// `UFFDIO` and `UFFD_API` of `linux/userfaultfd.h`.
const UFFDIO: u8 = 0xaa;
const UFFD_API: u64 = 0xaa;
const MODE_MISSING: u64 = 1;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Copy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

const API: u32 = opcode::read_write::<Api>(UFFDIO, 0x3f);
const REGISTER: u32 = opcode::read_write::<Register>(UFFDIO, 0x00);
const COPY: u32 = opcode::read_write::<Copy>(UFFDIO, 0x03);

/// Memory of which all but the first page arrives with [`LateBuffer::arrive`].
pub(super) struct LateBuffer {
    memory: *mut c_void,
    len: usize,
    page: usize,
    content: Vec<u8>,
    faults: OwnedFd,
}

// SAFETY: the mapping belongs to this value alone, is never written by this process after `new`, and is unmapped by drop only.
unsafe impl Send for LateBuffer {}
// SAFETY: as above; `arrive` fills missing pages in the kernel, which is atomic for whoever waits for them.
unsafe impl Sync for LateBuffer {}

impl LateBuffer {
    /// Memory with this content, a whole number of pages and at least two.
    ///
    /// Fails where the user may not handle the faults of the kernel (not root, and `vm.unprivileged_userfaultfd` is 0).
    pub(super) fn new(content: Vec<u8>) -> io::Result<Self> {
        let (len, page) = (content.len(), rustix::param::page_size());
        assert!(len.is_multiple_of(page) && len > page, "whole pages");
        // SAFETY: a new descriptor; it is given no memory yet.
        let faults = unsafe { userfaultfd(UserfaultfdFlags::CLOEXEC)? };
        let mut api = Api { api: UFFD_API, features: 0, ioctls: 0 };
        // SAFETY: `Api` is `struct uffdio_api`, which this request reads and writes.
        unsafe { ioctl(&faults, Updater::<API, Api>::new(&mut api))? };
        // SAFETY: a new private mapping at a place that the kernel chooses.
        let memory = unsafe {
            mmap_anonymous(ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)?
        };
        let buffer = Self { memory, len, page, content, faults };
        // SAFETY: the first page of the mapping, which nobody else knows yet; `content` is longer than a page.
        unsafe { ptr::copy_nonoverlapping(buffer.content.as_ptr(), memory.cast::<u8>(), page) };
        let mut register = Register {
            start: memory.addr() as u64 + page as u64,
            len: (len - page) as u64,
            mode: MODE_MISSING,
            ioctls: 0,
        };
        // SAFETY: `Register` is `struct uffdio_register`; the range is inside the mapping, which outlives the descriptor.
        unsafe { ioctl(&buffer.faults, Updater::<REGISTER, Register>::new(&mut register))? };
        Ok(buffer)
    }

    /// The memory. Reading behind the first page waits until the rest has arrived, so it is for system calls only.
    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: the mapping is there until drop, readable, and its pages change only from missing to filled.
        unsafe { std::slice::from_raw_parts(self.memory.cast::<u8>(), self.len) }
    }

    /// The rest arrives.
    pub(super) fn arrive(&self) -> io::Result<()> {
        let mut copy = Copy {
            dst: self.memory.addr() as u64 + self.page as u64,
            src: self.content.as_ptr().addr() as u64 + self.page as u64,
            len: (self.len - self.page) as u64,
            mode: 0,
            copied: 0,
        };
        // SAFETY: `Copy` is `struct uffdio_copy`; both ranges are `len - page` bytes behind the first page of the mapping and
        // of `content`.
        unsafe { ioctl(&self.faults, Updater::<COPY, Copy>::new(&mut copy))? };
        Ok(())
    }
}

impl Drop for LateBuffer {
    fn drop(&mut self) {
        // SAFETY: our own mapping; every reference to it borrows this value.
        let unmapped = unsafe { munmap(self.memory, self.len) };
        debug_assert!(unmapped.is_ok());
    }
}

/// What a file's page cache holds now, without waiting for a write that is under way: a read(2) would wait for it on XFS.
pub(super) fn peek(file: impl AsFd, len: usize) -> io::Result<Vec<u8>> {
    // SAFETY: a new shared, read-only mapping at a place that the kernel chooses.
    let memory = unsafe { mmap(ptr::null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, 0)? };
    let mut bytes = vec![0; len];
    // SAFETY: the mapping is `len` bytes, and the file at least as long (the caller has written it), so no access is beyond
    // its end. Another program may be writing the file, which raw copies of bytes can stand.
    unsafe { ptr::copy_nonoverlapping(memory.cast::<u8>(), bytes.as_mut_ptr(), len) };
    // SAFETY: the mapping made above, to which no reference exists.
    unsafe { munmap(memory, len)? };
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Arc;

    use super::*;

    /// Needs root, or `vm.unprivileged_userfaultfd`.
    #[test]
    fn a_write_from_it_is_stalled_half_way_until_the_rest_arrives() {
        let page = rustix::param::page_size();
        let buffer = Arc::new(LateBuffer::new(vec![b'N'; 4 * page]).unwrap());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![b'O'; 4 * page]).unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        let writer = std::thread::spawn({
            let (file, buffer) = (file.try_clone().unwrap(), Arc::clone(&buffer));
            move || rustix::io::pwrite(file, buffer.bytes(), 0)
        });
        while file.metadata().unwrap().modified().unwrap() == before {
            std::thread::yield_now();
        }
        assert_eq!(peek(&file, 4 * page).unwrap()[page..], vec![b'O'; 3 * page]);
        assert!(!writer.is_finished());
        buffer.arrive().unwrap();
        assert_eq!(writer.join().unwrap().unwrap(), 4 * page);
        assert_eq!(peek(&file, 4 * page).unwrap(), vec![b'N'; 4 * page]);
    }
}
