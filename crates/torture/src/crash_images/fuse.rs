//! The recorder's filesystem: two files, one for each device, that loop devices sit on.
//!
//! Our own few requests of the FUSE protocol rather than a library: nothing may be cached or reordered on the way, and which
//! requests the loop driver makes of a flush or a discard is exactly what matters here. The files are opened with
//! `FOPEN_DIRECT_IO`, so each request of the block layer arrives when it is submitted and no page cache lies in between;
//! `REQ_OP_FLUSH` comes as `FSYNC`, discards and zeroes as `FALLOCATE`. The loop driver offers no FUA, so that the block layer
//! makes a flush of it.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

use super::device::{Devices, NAMES};

/// The largest write, as everywhere: 256 pages.
const DATA_BYTES_MAX: usize = 1 << 20;
const THREADS: usize = 2;

const ROOT: u64 = 1;
const FIRST_FILE: u64 = 2;
const VALID_SECONDS: u64 = 1 << 30;

const DIRECT_IO: u32 = 1 << 0;
const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

const PUNCH_HOLE: u32 = libc::FALLOC_FL_PUNCH_HOLE as u32;
const ZERO_RANGE: u32 = libc::FALLOC_FL_ZERO_RANGE as u32;

/// `enum fuse_opcode` of `linux/fuse.h`.
mod opcode {
    pub(super) const LOOKUP: u32 = 1;
    pub(super) const FORGET: u32 = 2;
    pub(super) const GETATTR: u32 = 3;
    pub(super) const SETATTR: u32 = 4;
    pub(super) const OPEN: u32 = 14;
    pub(super) const READ: u32 = 15;
    pub(super) const WRITE: u32 = 16;
    pub(super) const RELEASE: u32 = 18;
    pub(super) const FSYNC: u32 = 20;
    pub(super) const FLUSH: u32 = 25;
    pub(super) const INIT: u32 = 26;
    pub(super) const INTERRUPT: u32 = 36;
    pub(super) const DESTROY: u32 = 38;
    pub(super) const BATCH_FORGET: u32 = 42;
    pub(super) const FALLOCATE: u32 = 43;
}

/// Mounts a FUSE filesystem and gives its device; nobody serves it yet.
pub(crate) fn mount(at: &Path, subtype: &str, source: &str) -> Result<OwnedFd> {
    let device = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .context("cannot open /dev/fuse")?;
    let context = rustix::mount::fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let descriptor = device.as_raw_fd().to_string();
    for (key, value) in [
        ("source", source),
        ("subtype", subtype),
        ("fd", &descriptor),
        ("rootmode", "40000"),
        ("user_id", "0"),
        ("group_id", "0"),
    ] {
        rustix::mount::fsconfig_set_string(context.as_fd(), key, value)?;
    }
    rustix::mount::fsconfig_set_flag(context.as_fd(), "allow_other")?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    let mounted =
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
    rustix::mount::move_mount(mounted.as_fd(), "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .with_context(|| format!("cannot mount at {}", at.display()))?;
    Ok(device)
}

/// Mounts the recorder and serves it until it is unmounted.
pub(crate) fn serve(at: &Path, devices: &Arc<Devices>) -> Result<()> {
    let device = Arc::new(mount(at, "torture-recorder", "torture")?);
    for _ in 0..THREADS {
        let (device, devices) = (Arc::clone(&device), Arc::clone(devices));
        std::thread::Builder::new().name("recorder".into()).spawn(move || work(&device, &devices))?;
    }
    Ok(())
}

fn work(device: &OwnedFd, devices: &Devices) {
    const PR_SET_IO_FLUSHER: i32 = 57;
    // SAFETY: takes numbers only. Memory that this thread asks for must not wait for the device that it serves.
    unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    let mut request = vec![0; DATA_BYTES_MAX + PAGE_FOR_HEADERS];
    let mut answer = Vec::new();
    loop {
        let length = match rustix::io::read(device, &mut request[..]) {
            Ok(length) => length,
            Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => continue,
            // Unmounted.
            Err(_) => return,
        };
        let Some(asked) = Asked::parse(&request[..length]) else { continue };
        answer.clear();
        let error = match asked.serve(devices, &mut answer) {
            Ok(Served::Answer) => 0,
            Ok(Served::NoAnswer) => continue,
            Err(errno) => {
                answer.clear();
                -errno.raw_os_error()
            }
        };
        let mut head = Vec::with_capacity(16);
        head.extend(((16 + answer.len()) as u32).to_ne_bytes());
        head.extend(error.to_ne_bytes());
        head.extend(asked.unique.to_ne_bytes());
        // An error: the request was interrupted or the mount is gone; nobody waits for the answer.
        let _ = rustix::io::writev(device, &[IoSlice::new(&head), IoSlice::new(&answer)]);
    }
}

const PAGE_FOR_HEADERS: usize = 4096;

enum Served {
    Answer,
    NoAnswer,
}

/// A request.
struct Asked<'a> {
    opcode: u32,
    unique: u64,
    node: u64,
    body: &'a [u8],
}

impl<'a> Asked<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        let body = bytes.get(40..)?;
        Some(Self { opcode: word(bytes, 4)?, unique: long(bytes, 8)?, node: long(bytes, 16)?, body })
    }

    fn word(&self, at: usize) -> Result<u32, Errno> {
        word(self.body, at).ok_or(Errno::INVAL)
    }

    fn long(&self, at: usize) -> Result<u64, Errno> {
        long(self.body, at).ok_or(Errno::INVAL)
    }

    /// Which device the node is.
    fn file(&self) -> Result<usize, Errno> {
        let file = self.node.checked_sub(FIRST_FILE).ok_or(Errno::ISDIR)? as usize;
        if file < NAMES.len() { Ok(file) } else { Err(Errno::NOENT) }
    }

    fn serve(&self, devices: &Devices, answer: &mut Vec<u8>) -> Result<Served, Errno> {
        match self.opcode {
            opcode::INIT => self.init(answer)?,
            opcode::LOOKUP => {
                let name = self.body.strip_suffix(&[0]).unwrap_or(self.body);
                let file = NAMES.iter().position(|known| known.as_bytes() == name).ok_or(Errno::NOENT)?;
                let node = FIRST_FILE + file as u64;
                for value in [node, 0, VALID_SECONDS, VALID_SECONDS, 0] {
                    answer.extend(value.to_ne_bytes());
                }
                attributes(devices, node, answer);
            }
            opcode::GETATTR | opcode::SETATTR => {
                for value in [VALID_SECONDS, 0] {
                    answer.extend(value.to_ne_bytes());
                }
                attributes(devices, self.node, answer);
            }
            opcode::OPEN => {
                self.file()?;
                answer.extend(0_u64.to_ne_bytes());
                answer.extend((DIRECT_IO | PARALLEL_DIRECT_WRITES).to_ne_bytes());
                answer.extend(0_u32.to_ne_bytes());
            }
            opcode::READ => {
                let (file, offset) = (self.file()?, self.long(8)?);
                let end = devices.size(file).saturating_sub(offset).min(u64::from(self.word(16)?));
                answer.resize(end as usize, 0);
                devices.read(file, offset, answer);
            }
            opcode::WRITE => {
                let (file, offset, length) = (self.file()?, self.long(8)?, self.word(16)?);
                let data = self.body.get(40..40 + length as usize).ok_or(Errno::INVAL)?;
                if offset + u64::from(length) > devices.size(file) {
                    return Err(Errno::NOSPC);
                }
                devices.write(file, offset, data);
                answer.extend(length.to_ne_bytes());
                answer.extend(0_u32.to_ne_bytes());
            }
            opcode::FALLOCATE => {
                let (file, mode) = (self.file()?, self.word(24)?);
                if mode & (PUNCH_HOLE | ZERO_RANGE) == 0 {
                    return Err(Errno::OPNOTSUPP);
                }
                devices.zero(file, self.long(8)?, self.long(16)?);
            }
            opcode::FSYNC => devices.flush(self.file()?),
            opcode::FLUSH | opcode::RELEASE | opcode::DESTROY => {}
            opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT => return Ok(Served::NoAnswer),
            _ => return Err(Errno::NOSYS),
        }
        Ok(Served::Answer)
    }

    fn init(&self, answer: &mut Vec<u8>) -> Result<(), Errno> {
        const MAJOR: u32 = 7;
        const MINOR: u32 = 38;
        const ASYNC_READ: u32 = 1 << 0;
        const BIG_WRITES: u32 = 1 << 5;
        const ASYNC_DIO: u32 = 1 << 15;
        const MAX_PAGES: u32 = 1 << 22;
        let offered = self.word(12)?;
        let flags = offered & (ASYNC_READ | BIG_WRITES | ASYNC_DIO | MAX_PAGES);
        for value in [MAJOR, MINOR.min(self.word(4)?), self.word(8)?, flags] {
            answer.extend(value.to_ne_bytes());
        }
        // Requests in the background, and when that is too many.
        for value in [64_u16, 48] {
            answer.extend(value.to_ne_bytes());
        }
        for value in [DATA_BYTES_MAX as u32, 1] {
            answer.extend(value.to_ne_bytes());
        }
        answer.extend(256_u16.to_ne_bytes());
        answer.resize(64, 0);
        Ok(())
    }
}

fn attributes(devices: &Devices, node: u64, answer: &mut Vec<u8>) {
    let (mode, size) = match node {
        ROOT => (libc::S_IFDIR | 0o700, 0),
        node => (libc::S_IFREG | 0o600, devices.size((node - FIRST_FILE) as usize)),
    };
    for value in [node, size, size / 512, 0, 0, 0] {
        answer.extend(value.to_ne_bytes());
    }
    for value in [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0] {
        answer.extend(value.to_ne_bytes());
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}
