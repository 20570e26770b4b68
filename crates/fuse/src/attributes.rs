//! GETATTR, STATX, SETATTR and READLINK.

use std::os::fd::{AsFd, BorrowedFd};

use highwater_objects::{attributes_of, last_errno, proc_path};
use highwater_tracker::Change;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Statx, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};
use rustix::io::Errno;

use crate::credentials;
use crate::filesystem::{Filesystem, metadata};
use crate::settle::Touch;
use crate::wire::abi::{self, GETATTR_FH, GetattrIn, SetattrIn, StatxIn, StatxOut, SxTime, fattr};
use crate::wire::request::{Request, Sent};

impl Filesystem {
    pub(crate) fn getattr(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let input: GetattrIn = request.body().take()?;
        let stat = self.stat(request.node(), (input.flags & GETATTR_FH != 0).then_some(input.fh))?;
        Ok(request.reply(&self.attr_out(request.node(), &stat)))
    }

    pub(crate) fn statx(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let input: StatxIn = request.body().take()?;
        let stat = self.stat(request.node(), (input.flags & GETATTR_FH != 0).then_some(input.fh))?;
        let time =
            |time: rustix::fs::StatxTimestamp| SxTime { sec: time.tv_sec, nsec: time.tv_nsec, reserved: 0 };
        Ok(request.reply(&StatxOut {
            attr_valid: self.nodes.attribute_seconds(request.node(), stat.stx_nlink, stat.stx_mode.into()),
            stat: abi::Statx {
                mask: stat.stx_mask,
                blksize: stat.stx_blksize,
                attributes: stat.stx_attributes.bits(),
                nlink: stat.stx_nlink,
                uid: stat.stx_uid,
                gid: stat.stx_gid,
                mode: stat.stx_mode,
                ino: self.covered.inode_number(&stat),
                size: stat.stx_size,
                blocks: stat.stx_blocks,
                attributes_mask: stat.stx_attributes_mask.bits(),
                atime: time(stat.stx_atime),
                btime: time(stat.stx_btime),
                ctime: time(stat.stx_ctime),
                mtime: time(stat.stx_mtime),
                rdev_major: stat.stx_rdev_major,
                rdev_minor: stat.stx_rdev_minor,
                dev_major: stat.stx_dev_major,
                dev_minor: stat.stx_dev_minor,
                ..abi::Statx::default()
            },
            ..StatxOut::default()
        }))
    }

    fn stat(&self, node: u64, fh: Option<u64>) -> Result<Statx, Errno> {
        if let Some(anchor) =
            fh.and_then(|fh| self.open_files.get(fh).ok()).and_then(|file| file.open.anchor())
        {
            return attributes_of(anchor.as_fd());
        }
        attributes_of(self.object(node)?.as_fd())
    }

    pub(crate) fn setattr(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        const CHANGES: u32 =
            fattr::MODE | fattr::UID | fattr::GID | fattr::SIZE | fattr::ATIME | fattr::MTIME;
        let input: SetattrIn = request.body().take()?;
        let node = request.node();
        let object = self.object(node)?;
        if input.valid & CHANGES == 0 {
            return Ok(request.reply(&self.attr_out(node, &attributes_of(object.as_fd())?)));
        }
        let (target, section) = self.section_for(node)?;
        let (data, other) = (input.valid & fattr::SIZE != 0, input.valid & (CHANGES & !fattr::SIZE) != 0);
        let mut effect = false;
        let result = self.apply(&input, object.as_fd(), &mut effect);
        if effect {
            self.touched.node(node, if data { Touch::Data } else { Touch::Attributes });
            if data {
                section.record(Change::Modified { object: target.handle.clone() }, &mut || {});
            }
            if other {
                section.record(metadata(&target), &mut || {});
            }
        }
        result?;
        let stat = attributes_of(object.as_fd())?;
        let sent = request.reply(&self.attr_out(node, &stat));
        drop(section);
        Ok(sent)
    }

    /// Does what SETATTR asks, in the order in which the kernel would. `effect`: something may have changed, even on failure.
    fn apply(&self, input: &SetattrIn, object: BorrowedFd<'_>, effect: &mut bool) -> Result<(), Errno> {
        let path = proc_path(object);
        let has = |flag| input.valid & flag != 0;
        if has(fattr::MODE) {
            change_mode(object, input.mode)?;
            *effect = true;
        }
        if has(fattr::UID | fattr::GID) {
            let uid = has(fattr::UID).then(|| Uid::from_raw(input.uid));
            let gid = has(fattr::GID).then(|| Gid::from_raw(input.gid));
            rustix::fs::chownat(object, c"", uid, gid, AtFlags::EMPTY_PATH)?;
            *effect = true;
        }
        if has(fattr::SIZE) {
            let file = if has(fattr::FH) { self.open_files.get(input.fh).ok() } else { None };
            let truncate = || match &file {
                Some(file) => rustix::fs::ftruncate(file.writable()?, input.size),
                None => {
                    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
                    let fd = rustix::fs::open(path.as_c_str(), flags, Mode::empty())?;
                    rustix::fs::ftruncate(fd, input.size)
                }
            };
            if has(fattr::KILL_SUIDGID) { credentials::without_fsetid(truncate) } else { truncate() }?;
            *effect = true;
        }
        if has(fattr::ATIME | fattr::MTIME) {
            let time = |set: bool, now: bool, tv_sec: i64, nsec: u32| match (set, now) {
                (false, _) => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
                (true, true) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
                (true, false) => Timespec { tv_sec, tv_nsec: nsec.into() },
            };
            let times = Timestamps {
                last_access: time(has(fattr::ATIME), has(fattr::ATIME_NOW), input.atime, input.atimensec),
                last_modification: time(
                    has(fattr::MTIME),
                    has(fattr::MTIME_NOW),
                    input.mtime,
                    input.mtimensec,
                ),
            };
            rustix::fs::utimensat(rustix::fs::CWD, path.as_c_str(), &times, AtFlags::empty())?;
            *effect = true;
        }
        Ok(())
    }

    pub(crate) fn readlink(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let object = self.object(request.node())?;
        let target = rustix::fs::readlinkat(object, c"", Vec::new())?;
        Ok(request.reply_parts(target.as_bytes(), &[]))
    }
}

/// `fchmodat2(2)` on an `O_PATH` descriptor; by `/proc` on kernels before 6.6.
pub(crate) fn change_mode(object: BorrowedFd<'_>, mode: u32) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    let mode = mode & 0o7777;
    // SAFETY: the path is an empty C string that outlives the call.
    let r = unsafe {
        libc::syscall(libc::SYS_fchmodat2, object.as_raw_fd(), c"".as_ptr(), mode, libc::AT_EMPTY_PATH)
    };
    match (r >= 0, last_errno()) {
        (true, _) => Ok(()),
        (false, Errno::NOSYS) => rustix::fs::chmod(proc_path(object).as_c_str(), Mode::from_raw_mode(mode)),
        (false, errno) => Err(errno),
    }
}
