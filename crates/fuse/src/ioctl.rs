//! The ioctls that are about an object and not about a device: flags, project, generation.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use highwater_objects::last_errno;
use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::filesystem::{Filesystem, metadata};
use crate::settle::Touch;
use crate::wire::abi::{IoctlIn, IoctlOut};
use crate::wire::request::{Request, Sent};

const GET_FLAGS: u32 = 0x8008_6601;
const SET_FLAGS: u32 = 0x4008_6602;
const GET_XATTR: u32 = 0x801c_581f;
const SET_XATTR: u32 = 0x401c_5820;
const GET_VERSION: u32 = 0x8008_7601;
const IOCTL_DIR: u32 = 1 << 4;

impl Filesystem {
    pub(crate) fn ioctl(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let mut body = request.body();
        let input: IoctlIn = body.take()?;
        let mut buffer = [0u64; 8];
        let given = body.bytes(input.in_size)?;
        buffer.as_mut_bytes().get_mut(..given.len()).ok_or(Errno::NOTTY)?.copy_from_slice(given);
        let call = |fd: BorrowedFd<'_>, buffer: &mut [u64; 8]| {
            // SAFETY: the ioctls let through read or write at most 28 bytes at the pointer, which has 64.
            let r = unsafe { libc::ioctl(fd.as_raw_fd(), input.cmd.into(), buffer.as_mut_ptr()) };
            if r < 0 { Err(last_errno()) } else { Ok(r) }
        };
        let with_fd = |buffer: &mut [u64; 8]| {
            if input.flags & IOCTL_DIR != 0 {
                call(self.open_directories.get(input.fh)?.fd.as_fd(), buffer)
            } else {
                let file = self.open_files.get(input.fh)?;
                call(file.open.anchor().ok_or(Errno::BADF)?.as_fd(), buffer)
            }
        };
        match input.cmd {
            GET_FLAGS | GET_XATTR | GET_VERSION => {
                let result = with_fd(&mut buffer)?;
                let len = (input.out_size as usize).min(64);
                let out = IoctlOut { result, ..IoctlOut::default() };
                Ok(request.reply_parts(out.as_bytes(), &buffer.as_bytes()[..len]))
            }
            SET_FLAGS | SET_XATTR => {
                let (target, section) = self.section_for(request.node())?;
                let result = with_fd(&mut buffer)?;
                self.touched.node(request.node(), Touch::Attributes);
                section.record(metadata(&target), &mut || {});
                let sent = request.reply(&IoctlOut { result, ..IoctlOut::default() });
                drop(section);
                Ok(sent)
            }
            _ => Err(Errno::NOTTY),
        }
    }
}
