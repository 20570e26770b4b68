//! A process whose system calls have to ask: each of a set stops before it happens until it is let go, is failed with an
//! errno, or the whole process is killed.
//!
//! By a seccomp filter with user notification (`seccomp_unotify(2)`). The filter belongs to the process and all its threads, so
//! calls are counted for the process as a whole, in the order in which they come; `strace --inject` counts for each thread. A
//! thread that is killed while it waits here dies without the call.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context, Result};

/// Where the child leaves the listener for the parent to fetch. High, so that it is in nobody's way.
const LISTENER: RawFd = 900;

// From linux/seccomp.h; libc does not have them.
const NOTIF_RECV: u64 = 0xc050_2100;
const NOTIF_SEND: u64 = 0xc018_2101;

/// The calls that change what survives the process: files, names, mounts, answers to the kernel and to clients.
pub(crate) fn changing() -> Vec<i64> {
    NAMES.iter().map(|(number, _)| *number).collect()
}

/// One call that waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Call {
    /// `SYS_...`.
    pub(crate) number: i64,
    pub(crate) arguments: [u64; 6],
    thread: u32,
}

/// What becomes of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It happens.
    Go,
    /// It fails without an effect.
    Fail(i32),
    /// The whole process is killed before it.
    Kill,
}

/// The calls of one process that wait.
pub(crate) struct Gate {
    listener: OwnedFd,
    process: i32,
}

/// Starts a command whose calls of the set have to be let go by [`Gate::serve`].
pub(crate) fn spawn(mut command: Command, calls: &[i64]) -> Result<(Child, Gate)> {
    let filter = filter(calls);
    // SAFETY: only calls that are safe between fork and exec, on memory that was made before.
    unsafe {
        command.pre_exec(move || install(&filter));
    }
    let child = command.spawn().with_context(|| format!("cannot run {command:?}"))?;
    let process = i32::try_from(child.id())?;
    let listener = fetch(process).context("cannot fetch the listener of the filter")?;
    Ok((child, Gate { listener, process }))
}

fn filter(calls: &[i64]) -> Vec<libc::sock_filter> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let mut program = vec![libc::sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 }];
    for call in calls {
        program.push(libc::sock_filter { code: EQUAL, jt: 0, jf: 1, k: *call as u32 });
        program.push(libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_USER_NOTIF });
    }
    program.push(libc::sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW });
    program
}

fn install(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // A signal that does not kill must not take a call back that has been counted.
    let flags = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    // SAFETY: `program` points to the filter, which outlives the call.
    let fd =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) };
    // SAFETY: no pointers.
    if fd < 0 || unsafe { libc::dup2(fd as i32, LISTENER) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn fetch(process: i32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers; the results are checked, and nothing else owns them.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, process, 0);
        if pidfd < 0 {
            return Err(io::Error::last_os_error());
        }
        let pidfd = OwnedFd::from_raw_fd(pidfd as i32);
        let fd = libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), LISTENER, 0);
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
    }
}

impl Gate {
    /// Decides about each call until the process is gone.
    pub(crate) fn serve(self, mut decide: impl FnMut(&Call) -> Verdict) {
        loop {
            let mut poll = libc::pollfd { fd: self.listener.as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd that outlives the call.
            let n = unsafe { libc::poll(&raw mut poll, 1, -1) };
            if n < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted {
                continue;
            }
            if poll.revents & libc::POLLIN == 0 {
                return;
            }
            // SAFETY: plain data for which zeros are valid, and the kernel asks for zeros.
            let mut notice: libc::seccomp_notif = unsafe { std::mem::zeroed() };
            // SAFETY: the request takes a structure of exactly this type.
            if unsafe { libc::ioctl(self.listener.as_raw_fd(), NOTIF_RECV as libc::Ioctl, &raw mut notice) }
                < 0
            {
                // The thread has been killed meanwhile.
                continue;
            }
            let call =
                Call { number: notice.data.nr.into(), arguments: notice.data.args, thread: notice.pid };
            let mut answer = libc::seccomp_notif_resp { id: notice.id, val: 0, error: 0, flags: 0 };
            match decide(&call) {
                Verdict::Go => answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32,
                Verdict::Fail(errno) => answer.error = -errno,
                Verdict::Kill => {
                    // SAFETY: no pointers. The child has not been waited for while this thread is served.
                    unsafe { libc::kill(self.process, libc::SIGKILL) };
                    continue;
                }
            }
            // SAFETY: as above. It fails if the thread has been killed meanwhile, which is all right.
            unsafe { libc::ioctl(self.listener.as_raw_fd(), NOTIF_SEND as libc::Ioctl, &raw mut answer) };
        }
    }
}

impl Call {
    /// The name of the call.
    pub(crate) fn name(&self) -> &'static str {
        NAMES.iter().find(|(number, _)| *number == self.number).map_or("?", |(_, name)| name)
    }

    /// What the call is about: the file behind its descriptor, or its path.
    pub(crate) fn target(&self) -> PathBuf {
        let by_path = |argument: usize| self.text(argument).map(PathBuf::from).unwrap_or_default();
        match self.number {
            libc::SYS_openat
            | libc::SYS_openat2
            | libc::SYS_unlinkat
            | libc::SYS_mkdirat
            | libc::SYS_mknodat
            | libc::SYS_fchmodat
            | libc::SYS_fchownat
            | libc::SYS_utimensat => {
                let path = by_path(1);
                if path.is_absolute() || path.as_os_str().is_empty() {
                    path
                } else {
                    self.behind(0).join(path)
                }
            }
            libc::SYS_renameat | libc::SYS_renameat2 | libc::SYS_linkat => self.behind(2).join(by_path(3)),
            libc::SYS_symlinkat => self.behind(1).join(by_path(2)),
            libc::SYS_umount2 | libc::SYS_truncate | libc::SYS_setxattr | libc::SYS_removexattr => by_path(0),
            libc::SYS_mount => by_path(1),
            libc::SYS_move_mount => by_path(3),
            libc::SYS_open_tree => by_path(1),
            libc::SYS_exit_group => PathBuf::new(),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open | libc::SYS_unlink | libc::SYS_mkdir | libc::SYS_rmdir | libc::SYS_chmod => {
                by_path(0)
            }
            #[cfg(target_arch = "x86_64")]
            libc::SYS_rename | libc::SYS_link => by_path(1),
            _ => self.behind(0),
        }
    }

    /// Whether an open can make or empty a file. Other opens change nothing.
    pub(crate) fn opens_only(&self) -> bool {
        const CHANGES: u64 = (libc::O_CREAT | libc::O_TRUNC) as u64;
        match self.number {
            libc::SYS_openat => self.arguments[2] & CHANGES == 0,
            libc::SYS_openat2 => self.word(self.arguments[2]).is_some_and(|flags| flags & CHANGES == 0),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_open => self.arguments[1] & CHANGES == 0,
            _ => false,
        }
    }

    fn behind(&self, argument: usize) -> PathBuf {
        // The kernel passes an int; AT_FDCWD is negative.
        let fd = self.arguments[argument] as u32 as i32;
        let link = if fd < 0 {
            format!("/proc/{}/cwd", self.thread)
        } else {
            format!("/proc/{}/fd/{fd}", self.thread)
        };
        std::fs::read_link(link).unwrap_or_default()
    }

    fn memory(&self) -> io::Result<File> {
        File::open(Path::new("/proc").join(self.thread.to_string()).join("mem"))
    }

    fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.memory().ok()?.read_exact_at(&mut bytes, address).ok()?;
        Some(u64::from_ne_bytes(bytes))
    }

    fn text(&self, argument: usize) -> Option<String> {
        let mut bytes = vec![0; libc::PATH_MAX as usize];
        let memory = self.memory().ok()?;
        let mut filled = 0;
        // A string may end just before an unmapped page.
        while filled < bytes.len() && !bytes[..filled].contains(&0) {
            let end = (filled + 64).min(bytes.len());
            let address = self.arguments[argument] + filled as u64;
            match memory.read_at(&mut bytes[filled..end], address) {
                Ok(n) if n > 0 => filled += n,
                _ => break,
            }
        }
        let end = bytes.iter().position(|byte| *byte == 0)?;
        bytes.truncate(end);
        Some(CString::new(bytes).ok()?.to_string_lossy().into_owned())
    }
}

macro_rules! names {
    ($($(#[$attribute:meta])* $name:ident = $call:ident,)*) => {
        const NAMES: &[(i64, &str)] = &[$($(#[$attribute])* (libc::$call, stringify!($name)),)*];
    };
}

names! {
    write = SYS_write,
    writev = SYS_writev,
    pwrite64 = SYS_pwrite64,
    pwritev = SYS_pwritev,
    fsync = SYS_fsync,
    fdatasync = SYS_fdatasync,
    syncfs = SYS_syncfs,
    sync_file_range = SYS_sync_file_range,
    fallocate = SYS_fallocate,
    ftruncate = SYS_ftruncate,
    truncate = SYS_truncate,
    openat = SYS_openat,
    openat2 = SYS_openat2,
    renameat = SYS_renameat,
    renameat2 = SYS_renameat2,
    linkat = SYS_linkat,
    symlinkat = SYS_symlinkat,
    unlinkat = SYS_unlinkat,
    mkdirat = SYS_mkdirat,
    mknodat = SYS_mknodat,
    fchmod = SYS_fchmod,
    fchmodat = SYS_fchmodat,
    fchown = SYS_fchown,
    fchownat = SYS_fchownat,
    utimensat = SYS_utimensat,
    setxattr = SYS_setxattr,
    fsetxattr = SYS_fsetxattr,
    removexattr = SYS_removexattr,
    fremovexattr = SYS_fremovexattr,
    copy_file_range = SYS_copy_file_range,
    sendto = SYS_sendto,
    sendmsg = SYS_sendmsg,
    bind = SYS_bind,
    flock = SYS_flock,
    mount = SYS_mount,
    umount2 = SYS_umount2,
    fsmount = SYS_fsmount,
    move_mount = SYS_move_mount,
    open_tree = SYS_open_tree,
    exit_group = SYS_exit_group,
    #[cfg(target_arch = "x86_64")]
    open = SYS_open,
    #[cfg(target_arch = "x86_64")]
    rename = SYS_rename,
    #[cfg(target_arch = "x86_64")]
    unlink = SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    mkdir = SYS_mkdir,
    #[cfg(target_arch = "x86_64")]
    rmdir = SYS_rmdir,
    #[cfg(target_arch = "x86_64")]
    link = SYS_link,
    #[cfg(target_arch = "x86_64")]
    chmod = SYS_chmod,
}
