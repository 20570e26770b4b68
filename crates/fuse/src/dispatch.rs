//! Which operation a request is for.

use rustix::io::Errno;

use crate::filesystem::Filesystem;
use crate::wire::abi::{BatchForgetIn, ForgetIn, ForgetOne, StatfsOut, op};
use crate::wire::request::{Request, Sent};

impl Filesystem {
    /// Serves one request: it has been answered when this returns.
    pub(crate) fn serve(&self, request: &Request<'_>) {
        let _: Sent = self.operation(request).unwrap_or_else(|errno| request.fail(errno));
    }

    fn operation(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        match request.header.opcode {
            op::LOOKUP => {
                let entry = self.look_up(request, request.body().name()?)?;
                Ok(request.reply(&entry))
            }
            op::FORGET => {
                self.nodes.forget(request.node(), request.body().take::<ForgetIn>()?.nlookup);
                Ok(request.no_answer())
            }
            op::BATCH_FORGET => {
                let mut body = request.body();
                let count = body.take::<BatchForgetIn>()?.count;
                for _ in 0..count {
                    let Ok(one) = body.take::<ForgetOne>() else { break };
                    self.nodes.forget(one.nodeid, one.nlookup);
                }
                Ok(request.no_answer())
            }
            op::GETATTR => self.getattr(request),
            op::STATX => self.statx(request),
            op::SETATTR => self.setattr(request),
            op::READLINK => self.readlink(request),
            op::SYMLINK => self.symlink(request),
            op::MKNOD => self.mknod(request),
            op::MKDIR => self.mkdir(request),
            op::UNLINK => self.unlink(request, false),
            op::RMDIR => self.unlink(request, true),
            op::RENAME => self.rename(request, false),
            op::RENAME2 => self.rename(request, true),
            op::LINK => self.link(request),
            op::OPEN => self.open(request),
            op::CREATE => self.create(request),
            op::TMPFILE => self.tmpfile(request),
            op::READ => self.read(request),
            op::WRITE => self.write(request),
            op::RELEASE => self.release(request),
            op::FSYNC => self.fsync(request),
            op::FALLOCATE => self.fallocate(request),
            op::LSEEK => self.lseek(request),
            op::COPY_FILE_RANGE => self.copy_file_range(request, false),
            op::COPY_FILE_RANGE_64 => self.copy_file_range(request, true),
            op::IOCTL => self.ioctl(request),
            op::SETXATTR => self.setxattr(request),
            op::GETXATTR => self.getxattr(request),
            op::LISTXATTR => self.listxattr(request),
            op::REMOVEXATTR => self.removexattr(request),
            op::OPENDIR => self.opendir(request),
            op::READDIR => self.readdir(request, false),
            op::READDIRPLUS => self.readdir(request, true),
            op::RELEASEDIR => self.releasedir(request),
            op::FSYNCDIR => self.fsyncdir(request),
            op::STATFS => self.statfs(request),
            op::SYNCFS => {
                rustix::fs::syncfs(self.covered.root())?;
                Ok(request.done())
            }
            op::INIT => self.init(request),
            op::DESTROY => Ok(request.done()),
            // FLUSH: nothing is buffered here, and locks are the kernel's own; ENOSYS makes it stop asking. INTERRUPT: the same;
            // every operation ends by itself. ACCESS, GETLK, SETLK, BMAP, POLL: not asked for with what INIT agreed on.
            _ => Err(Errno::NOSYS),
        }
    }

    fn statfs(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let stat = rustix::fs::fstatvfs(self.covered.root())?;
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Ok(request.reply(&StatfsOut {
            blocks: stat.f_blocks,
            bfree: stat.f_bfree,
            bavail: stat.f_bavail,
            files: stat.f_files,
            ffree: stat.f_ffree,
            bsize: narrow(stat.f_bsize),
            namelen: narrow(stat.f_namemax),
            frsize: narrow(stat.f_frsize),
            ..StatfsOut::default()
        }))
    }
}
