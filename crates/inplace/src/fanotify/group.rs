//! A group of fanotify that watches a whole filesystem: opening it, and reading what it tells.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use highwater_objects::{last_errno, owned};
use highwater_tracker::{FileHandle, Place};
use rustix::io::Errno;

/// What the kernel has seen. Events of one object by one process may have been merged: then one event has several bits, and is
/// where the first of them was in the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) mask: u64,
    /// The process; zero for those that we cannot see, all of them.
    pub(crate) pid: u32,
    pub(crate) told: Told,
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    /// An entry of a directory and the object there.
    Entry { place: Place, object: FileHandle },
    /// An object whose name the kernel does not tell; of a directory, the directory itself.
    Object { object: FileHandle },
    /// A name that has moved.
    Renamed { from: Place, to: Place, object: FileHandle },
    /// Events were lost.
    Overflow,
}

/// The bits of a mask that are asked for.
pub(crate) mod bit {
    pub(crate) const MODIFY: u64 = libc::FAN_MODIFY;
    pub(crate) const ATTRIB: u64 = libc::FAN_ATTRIB;
    pub(crate) const CLOSE_WRITE: u64 = libc::FAN_CLOSE_WRITE;
    pub(crate) const CREATE: u64 = libc::FAN_CREATE;
    pub(crate) const DELETE: u64 = libc::FAN_DELETE;
    pub(crate) const RENAME: u64 = libc::FAN_RENAME;
    /// The object does not exist any more: it has lost its last name and its last holder.
    pub(crate) const DELETE_SELF: u64 = libc::FAN_DELETE_SELF;
    pub(crate) const DIRECTORY: u64 = libc::FAN_ONDIR;
    pub(crate) const OVERFLOW: u64 = libc::FAN_Q_OVERFLOW;
    /// Of what an object is.
    pub(crate) const CHANGES: u64 = MODIFY | ATTRIB | CLOSE_WRITE;
}

const WATCHED: u64 =
    bit::CHANGES | bit::CREATE | bit::DELETE | bit::RENAME | bit::DELETE_SELF | bit::DIRECTORY;

// linux/fanotify.h
const METADATA_BYTES: usize = 24;
const METADATA_VERSION: u8 = 3;
const INFO_FID: u8 = 1;
const INFO_DFID_NAME: u8 = 2;
const INFO_DFID: u8 = 3;
const INFO_OLD_DFID_NAME: u8 = 10;
const INFO_NEW_DFID_NAME: u8 = 12;
/// The header of a record about an object, the filesystem's id, and the length and type of its handle.
const INFO_FIXED_BYTES: usize = 4 + 8 + 8;

const BUFFER_BYTES: usize = 256 * 1024;

/// The group.
pub(crate) struct Group {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Group {
    /// Opens a group that watches the filesystem of a directory.
    pub(crate) fn watch(directory: BorrowedFd<'_>) -> Result<Self, Errno> {
        Self::watch_with(directory, libc::FAN_UNLIMITED_QUEUE)
    }

    /// With the queue that the system allows, which overflows.
    #[cfg(test)]
    pub(crate) fn watch_with_short_queue(directory: BorrowedFd<'_>) -> Result<Self, Errno> {
        Self::watch_with(directory, 0)
    }

    fn watch_with(directory: BorrowedFd<'_>, queue: u32) -> Result<Self, Errno> {
        let flags = libc::FAN_CLASS_NOTIF
            | queue
            | libc::FAN_REPORT_DFID_NAME_TARGET
            | libc::FAN_CLOEXEC
            | libc::FAN_NONBLOCK;
        // SAFETY: no pointers, and the descriptor is new.
        let fd = unsafe { owned(libc::fanotify_init(flags, libc::O_RDONLY.cast_unsigned())) }?;
        let flags = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
        // SAFETY: the path outlives the call.
        let r = unsafe {
            libc::fanotify_mark(fd.as_raw_fd(), flags, WATCHED, directory.as_raw_fd(), c".".as_ptr())
        };
        if r < 0 {
            return Err(last_errno());
        }
        Ok(Self { fd, buffer: vec![0; BUFFER_BYTES] })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// How many events are waiting.
    pub(crate) fn waiting(&self) -> Result<u64, Errno> {
        let bytes = rustix::io::ioctl_fionread(&self.fd)?;
        // An event is at least as long as its fixed part, so this is as many or more.
        Ok(bytes / METADATA_BYTES as u64)
    }

    /// Reads some events. Returns how many; none are waiting if it is zero.
    pub(crate) fn read(&mut self, mut visit: impl FnMut(Event)) -> Result<u64, Errno> {
        let len = match rustix::io::read(&self.fd, &mut self.buffer) {
            Err(Errno::AGAIN) => return Ok(0),
            len => len?,
        };
        let mut rest = &self.buffer[..len];
        let mut count = 0;
        while !rest.is_empty() {
            let (event, after) = split_event(rest).ok_or(Errno::PROTO)?;
            visit(parse(event).ok_or(Errno::PROTO)?);
            count += 1;
            rest = after;
        }
        Ok(count)
    }
}

fn split_event(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let len = u32_at(bytes, 0)? as usize;
    (len >= METADATA_BYTES && len <= bytes.len()).then(|| bytes.split_at(len))
}

/// `struct fanotify_event_metadata` and the records after it. `None` if it is not what was asked for.
fn parse(bytes: &[u8]) -> Option<Event> {
    if *bytes.get(4)? != METADATA_VERSION {
        return None;
    }
    let metadata_len = usize::from(u16::from_ne_bytes(*bytes.get(6..)?.first_chunk()?));
    let mask = u64::from_ne_bytes(*bytes.get(8..)?.first_chunk()?);
    let pid = u32_at(bytes, 20)?;
    if mask & bit::OVERFLOW != 0 {
        return Some(Event { mask, pid, told: Told::Overflow });
    }
    let (mut object, mut entry, mut old, mut new) = (None, None, None, None);
    let mut rest = bytes.get(metadata_len..)?;
    while !rest.is_empty() {
        let info_len = usize::from(u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?));
        let info = rest.get(..info_len).filter(|info| info.len() >= 4)?;
        match info[0] {
            INFO_FID => object = Some(handle_and_name(info)?.0),
            INFO_DFID_NAME | INFO_DFID => entry = Some(handle_and_name(info)?),
            INFO_OLD_DFID_NAME => old = Some(handle_and_name(info)?),
            INFO_NEW_DFID_NAME => new = Some(handle_and_name(info)?),
            _ => {}
        }
        rest = &rest[info_len..];
    }
    let place = |(parent, name): (FileHandle, Box<[u8]>)| Place { parent, name };
    let told = match (entry, old, new, object) {
        (_, Some(old), Some(new), Some(object)) => Told::Renamed { from: place(old), to: place(new), object },
        // The directory itself.
        (Some((directory, name)), _, _, object) if name.is_empty() || *name == *b"." => {
            Told::Object { object: object.unwrap_or(directory) }
        }
        (Some(entry), _, _, Some(object)) => Told::Entry { place: place(entry), object },
        (None, _, _, Some(object)) => Told::Object { object },
        _ => return None,
    };
    Some(Event { mask, pid, told })
}

/// `struct fanotify_event_info_fid`, with the name behind the handle if there is one.
fn handle_and_name(info: &[u8]) -> Option<(FileHandle, Box<[u8]>)> {
    let len = u32_at(info, 12)? as usize;
    let handle_type = u32_at(info, 16)?.cast_signed();
    let opaque = info.get(INFO_FIXED_BYTES..INFO_FIXED_BYTES + len)?;
    let name = &info[INFO_FIXED_BYTES + len..];
    let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
    Some((FileHandle::new(handle_type, opaque)?, name.into()))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}
