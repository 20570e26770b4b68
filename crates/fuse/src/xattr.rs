//! Extended attributes and POSIX ACLs, which travel as extended attributes.

use std::os::fd::AsFd;

use highwater_objects::{attributes_of, proc_path};
use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::attributes::change_mode;
use crate::filesystem::{Filesystem, metadata};
use crate::settle::Touch;
use crate::wire::abi::{GetxattrIn, GetxattrOut, SETXATTR_ACL_KILL_SGID, SetxattrIn, SetxattrInOld, init};
use crate::wire::request::{Request, Sent};

impl Filesystem {
    pub(crate) fn setxattr(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let mut body = request.body();
        let extended = self.agreed(init::SETXATTR_EXT);
        let input: SetxattrIn = if extended {
            body.take()?
        } else {
            let SetxattrInOld { size, flags } = body.take()?;
            SetxattrIn { size, flags, setxattr_flags: 0, padding: 0 }
        };
        let name = body.name()?;
        let value = body.bytes(input.size)?;
        self.change_xattr(request, |path, object| {
            rustix::fs::setxattr(path, name, value, XattrFlags::from_bits_retain(input.flags))?;
            if input.setxattr_flags & SETXATTR_ACL_KILL_SGID != 0 {
                let mode = u32::from(attributes_of(object)?.stx_mode);
                if mode & libc::S_ISGID != 0 {
                    change_mode(object, mode & !libc::S_ISGID)?;
                }
            }
            Ok(())
        })
    }

    pub(crate) fn removexattr(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let name = request.body().name()?;
        self.change_xattr(request, |path, _| rustix::fs::removexattr(path, name))
    }

    fn change_xattr(
        &self,
        request: &Request<'_>,
        change: impl FnOnce(&std::ffi::CStr, std::os::fd::BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<Sent, Errno> {
        let object = self.object(request.node())?;
        let (target, section) = self.section_for(request.node())?;
        change(proc_path(object.as_fd()).as_c_str(), object.as_fd())?;
        self.touched.node(request.node(), Touch::Attributes);
        section.record(metadata(&target), &mut || {});
        let sent = request.done();
        drop(section);
        Ok(sent)
    }

    pub(crate) fn getxattr(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let mut body = request.body();
        let input: GetxattrIn = body.take()?;
        let name = body.name()?;
        let object = self.object(request.node())?;
        let path = proc_path(object.as_fd());
        let path = path.as_c_str();
        if input.size == 0 {
            return answer_size(request, rustix::fs::getxattr_query(path, name)?);
        }
        answer(request, input.size, |buffer| rustix::fs::getxattr(path, name, buffer))
    }

    pub(crate) fn listxattr(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let input: GetxattrIn = request.body().take()?;
        let object = self.object(request.node())?;
        let path = proc_path(object.as_fd());
        let path = path.as_c_str();
        if input.size == 0 {
            return answer_size(request, rustix::fs::listxattr_query(path)?);
        }
        answer(request, input.size, |buffer| rustix::fs::listxattr(path, buffer))
    }
}

fn answer_size(request: &Request<'_>, size: usize) -> Result<Sent, Errno> {
    let size = u32::try_from(size).map_err(|_| Errno::TOOBIG)?;
    Ok(request.reply(&GetxattrOut { size, padding: 0 }))
}

fn answer(
    request: &Request<'_>,
    size: u32,
    read: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
) -> Result<Sent, Errno> {
    let mut buffer = vec![0; size.min(XATTR_BYTES_MAX) as usize];
    let len = read(&mut buffer)?;
    Ok(request.reply_parts(&buffer[..len], &[]))
}

/// The kernel's `XATTR_SIZE_MAX`.
const XATTR_BYTES_MAX: u32 = 65536;
