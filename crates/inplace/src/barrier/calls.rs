//! Which system calls can modify a filesystem.
//!
//! The list is of those that *cannot*. What is not on it, and every number that is newer than it, counts as modifying: that makes a
//! barrier look at the task's stack, or wait a moment, and nothing worse. A call is on the list if nothing that it does to a filesystem
//! can be seen in an object's data, names, times (but for the access time) or attributes: `fsync` and `close` write out and free what
//! has been modified before; `mmap` and page faults belong to writable mappings, for which no barrier can vouch;
//! what `io_uring_enter` does for a ring is looked for at every task that uses one, whatever its call.

/// How the scan judges a call. Shared with `scan.bpf.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Class {
    /// It may modify something.
    MayModify = 0,
    /// It cannot.
    Harmless = 1,
    /// Only with O_CREAT, O_TRUNC or O_TMPFILE in the second argument.
    OpenFlagsSecond = 2,
    /// The same in the third.
    OpenFlagsThird = 3,
    /// Only with `MADV_REMOVE` or `MADV_POPULATE_WRITE`.
    Advice = 4,
    /// But for the requests of [`HARMLESS_IOCTLS`].
    Ioctl = 5,
}

/// Numbers below this one are in the tables.
pub(super) const CALLS: usize = 512;

/// Calls that run for hours, and change nothing that a program could see: FITRIM; scrub, balance and replace of btrfs; and KVM_RUN, in
/// which a virtual machine spends its life (its memory is a mapping).
pub(super) const HARMLESS_IOCTLS: [u32; 8] =
    [0xc018_5879, 0xc400_941b, 0xc400_9420, 0xca28_9435, 0xae80, 0, 0, 0];

/// The classes of 64-bit calls, by number.
pub(super) fn native() -> [u8; CALLS] {
    let mut classes = [Class::MayModify as u8; CALLS];
    let mut set = |number: i64, class: Class| {
        if let Some(slot) = usize::try_from(number).ok().and_then(|at| classes.get_mut(at)) {
            *slot = class as u8;
        }
    };
    for number in HARMLESS {
        set(*number, Class::Harmless);
    }
    #[cfg(target_arch = "x86_64")]
    set(libc::SYS_open, Class::OpenFlagsSecond);
    set(libc::SYS_openat, Class::OpenFlagsThird);
    set(libc::SYS_open_by_handle_at, Class::OpenFlagsThird);
    set(libc::SYS_madvise, Class::Advice);
    set(libc::SYS_ioctl, Class::Ioctl);
    classes
}

/// The classes of the calls of 32-bit programs, by number.
pub(super) fn compat() -> [u8; CALLS] {
    let mut classes = [Class::MayModify as u8; CALLS];
    for &(first, last) in HARMLESS_I386 {
        classes[usize::from(first)..=usize::from(last)].fill(Class::Harmless as u8);
    }
    classes[5] = Class::OpenFlagsSecond as u8;
    classes[295] = Class::OpenFlagsThird as u8;
    classes[342] = Class::OpenFlagsThird as u8;
    classes[219] = Class::Advice as u8;
    classes[54] = Class::Ioctl as u8;
    classes
}

/// Whether the kernel counts the call as a write, once, when it is over: see (R).
pub(super) fn is_counted(record: &super::record::Record) -> bool {
    let counted =
        [libc::SYS_write, libc::SYS_pwrite64, libc::SYS_writev, libc::SYS_pwritev, libc::SYS_pwritev2];
    record.compat == 0 && counted.contains(&i64::from(record.call))
}

/// What to call a call when it holds up a barrier.
pub(super) fn name(number: u32, compat: bool) -> String {
    let known = NAMES.iter().find(|(of, _)| *of == i64::from(number));
    match known {
        Some((_, name)) if !compat => (*name).to_owned(),
        _ if compat => format!("32-bit system call {number}"),
        _ => format!("system call {number}"),
    }
}

macro_rules! names {
    ($($name:ident)*) => { &[$((libc::$name, strip(stringify!($name)))),*] };
}

const fn strip(name: &'static str) -> &'static str {
    // "SYS_write" -> "write"
    name.split_at(4).1
}

const NAMES: &[(i64, &str)] = names! {
    SYS_write SYS_pwrite64 SYS_writev SYS_pwritev SYS_pwritev2 SYS_sendfile SYS_splice SYS_copy_file_range SYS_openat SYS_openat2
    SYS_truncate SYS_ftruncate SYS_fallocate SYS_renameat SYS_renameat2 SYS_mkdirat SYS_unlinkat SYS_linkat SYS_symlinkat SYS_mknodat
    SYS_fchmod SYS_fchmodat SYS_fchown SYS_fchownat SYS_utimensat SYS_setxattr SYS_lsetxattr SYS_fsetxattr SYS_removexattr
    SYS_lremovexattr SYS_fremovexattr SYS_ioctl SYS_io_submit SYS_io_uring_enter SYS_bind SYS_mount SYS_umount2 SYS_read SYS_pread64
    SYS_readv SYS_close SYS_futex SYS_madvise SYS_open_by_handle_at SYS_open SYS_creat SYS_rename SYS_mkdir SYS_rmdir SYS_link
    SYS_unlink SYS_symlink SYS_mknod SYS_chmod SYS_chown SYS_lchown SYS_utime SYS_utimes SYS_futimesat
};

macro_rules! numbers {
    ($($name:ident)*) => { &[$(libc::$name),*] };
}

const HARMLESS: &[i64] = numbers! {
    SYS_read SYS_pread64 SYS_readv SYS_preadv SYS_preadv2 SYS_close SYS_close_range SYS_lseek SYS_readahead SYS_fadvise64
    SYS_stat SYS_fstat SYS_lstat SYS_newfstatat SYS_statx SYS_statfs SYS_fstatfs SYS_access SYS_faccessat SYS_faccessat2
    SYS_readlink SYS_readlinkat SYS_name_to_handle_at SYS_getdents SYS_getdents64 SYS_getcwd SYS_chdir SYS_fchdir SYS_umask
    SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_listxattr SYS_llistxattr SYS_flistxattr
    SYS_fsync SYS_fdatasync SYS_sync SYS_syncfs SYS_sync_file_range SYS_msync SYS_flock SYS_fcntl SYS_dup SYS_dup2 SYS_dup3
    SYS_poll SYS_ppoll SYS_select SYS_pselect6 SYS_epoll_create SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_wait SYS_epoll_pwait
    SYS_epoll_pwait2 SYS_pipe SYS_pipe2 SYS_tee SYS_vmsplice SYS_eventfd SYS_eventfd2 SYS_signalfd SYS_signalfd4
    SYS_inotify_init SYS_inotify_init1 SYS_inotify_add_watch SYS_inotify_rm_watch SYS_fanotify_init SYS_fanotify_mark
    SYS_mmap SYS_munmap SYS_mprotect SYS_mremap SYS_brk SYS_mincore SYS_mlock SYS_mlock2 SYS_munlock SYS_mlockall SYS_munlockall
    SYS_pkey_mprotect SYS_pkey_alloc SYS_pkey_free SYS_mbind SYS_get_mempolicy SYS_set_mempolicy SYS_migrate_pages SYS_move_pages
    SYS_userfaultfd SYS_membarrier SYS_process_vm_readv
    SYS_futex SYS_futex_waitv SYS_set_robust_list SYS_get_robust_list SYS_sched_yield SYS_nanosleep SYS_clock_nanosleep
    SYS_pause SYS_restart_syscall SYS_rseq SYS_getcpu SYS_gettid SYS_set_tid_address SYS_arch_prctl SYS_prctl
    SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_rt_sigpending SYS_rt_sigtimedwait SYS_rt_sigqueueinfo
    SYS_rt_tgsigqueueinfo SYS_rt_sigsuspend SYS_sigaltstack SYS_kill SYS_tkill SYS_tgkill SYS_pidfd_send_signal SYS_pidfd_open
    SYS_pidfd_getfd SYS_ptrace SYS_seccomp SYS_kcmp
    SYS_clone SYS_clone3 SYS_fork SYS_vfork SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_unshare
    SYS_setns SYS_personality
    SYS_getpid SYS_getppid SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid SYS_getgroups SYS_setuid
    SYS_setgid SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid SYS_setgroups SYS_setfsuid SYS_setfsgid SYS_capget SYS_capset
    SYS_getpgid SYS_getpgrp SYS_setpgid SYS_getsid SYS_setsid SYS_getpriority SYS_setpriority SYS_getrlimit SYS_setrlimit
    SYS_prlimit64 SYS_getrusage SYS_sysinfo SYS_times SYS_time SYS_uname SYS_getrandom SYS_syslog SYS_ioprio_get SYS_ioprio_set
    SYS_sched_setparam SYS_sched_getparam SYS_sched_setscheduler SYS_sched_getscheduler SYS_sched_get_priority_max
    SYS_sched_get_priority_min SYS_sched_rr_get_interval SYS_sched_setaffinity SYS_sched_getaffinity SYS_sched_setattr
    SYS_sched_getattr
    SYS_getitimer SYS_setitimer SYS_alarm SYS_gettimeofday SYS_clock_gettime SYS_clock_getres SYS_clock_settime SYS_clock_adjtime
    SYS_timer_create SYS_timer_settime SYS_timer_gettime SYS_timer_getoverrun SYS_timer_delete SYS_timerfd_create
    SYS_timerfd_settime SYS_timerfd_gettime
    SYS_socket SYS_socketpair SYS_connect SYS_accept SYS_accept4 SYS_listen SYS_sendto SYS_recvfrom SYS_sendmsg SYS_recvmsg
    SYS_sendmmsg SYS_recvmmsg SYS_shutdown SYS_getsockname SYS_getpeername SYS_setsockopt SYS_getsockopt
    SYS_semget SYS_semop SYS_semtimedop SYS_semctl SYS_shmat SYS_shmdt SYS_msgget SYS_msgsnd SYS_msgrcv SYS_msgctl
    SYS_io_uring_enter SYS_io_setup SYS_io_destroy SYS_io_getevents SYS_io_cancel SYS_perf_event_open SYS_bpf
};

/// Ranges of numbers, from the kernel's `syscall_32.tbl`: fewer than above, since such programs are rare.
const HARMLESS_I386: &[(u16, u16)] = &[
    (0, 3),     // restart_syscall, exit, fork, read
    (6, 7),     // close, waitpid
    (11, 13),   // execve, chdir, time
    (18, 20),   // oldstat, lseek, getpid
    (23, 29),   // setuid to pause: setuid, getuid, stime, ptrace, alarm, oldfstat, pause
    (33, 34),   // access, nice
    (36, 37),   // sync, kill
    (41, 43),   // dup, pipe, times
    (45, 50),   // brk, setgid, getgid, signal, geteuid, getegid
    (55, 55),   // fcntl
    (57, 57),   // setpgid
    (60, 60),   // umask
    (63, 82),   // dup2 to select: signals, ids, limits, times
    (84, 85),   // oldlstat, readlink
    (90, 91),   // mmap, munmap
    (96, 97),   // getpriority, setpriority
    (99, 100),  // statfs, fstatfs
    (103, 109), // syslog, itimers, stat, lstat, fstat, olduname
    (114, 114), // wait4
    (116, 116), // sysinfo
    (118, 120), // fsync, sigreturn, clone
    (122, 122), // uname
    (125, 126), // mprotect, sigprocmask
    (132, 133), // getpgid, fchdir
    (140, 145), // _llseek, getdents, select, flock, msync, readv
    (147, 148), // getsid, fdatasync
    (150, 163), // mlock to mremap: scheduling, nanosleep
    (168, 168), // poll
    (172, 180), // prctl, rt_sig*, pread64
    (183, 186), // getcwd, capget, capset, sigaltstack
    (190, 192), // vfork, getrlimit, mmap2
    (195, 197), // stat64, lstat64, fstat64
    (199, 202), // getuid32 to getegid32
    (220, 221), // getdents64, fcntl64
    (224, 225), // gettid, readahead
    (229, 234), // get and list of extended attributes
    (240, 242), // futex, sched_*affinity
    (252, 252), // exit_group
    (254, 256), // epoll
    (258, 270), // set_tid_address, timers, clocks, statfs64, tgkill
    (284, 284), // waitid
    (308, 309), // pselect6, ppoll
    (319, 319), // epoll_pwait
    (359, 360), // socket, socketpair
    (362, 373), // connect to shutdown
    (403, 411), // clocks and timers with 64-bit times
    (413, 414), // pselect6, ppoll
    (417, 417), // recvmmsg
    (420, 423), // semtimedop, rt_sigtimedwait, futex, sched_rr_get_interval
];
