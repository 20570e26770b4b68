//! Filesystems to try on, and calls that stall.

#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use highwater_inplace::barrier::{BarrierError, FilesystemBarrier};

/// Bytes of a call that stalls.
pub(crate) const LENGTH: usize = 1 << 16;

/// Expects a barrier to pass. The limit is for a machine that is very busy.
pub(crate) fn passes(barrier: &FilesystemBarrier) {
    barrier.synchronize(Some(Duration::from_secs(60))).unwrap();
}

/// Expects a barrier to be held up by this call; "": by any.
pub(crate) fn stalls(barrier: &FilesystemBarrier, call: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        match barrier.synchronize(Some(Duration::from_millis(200))) {
            Err(BarrierError::Deadline { holders, .. }) => {
                assert!(!holders.is_empty());
                // On a busy machine others may be in a call at the same time.
                if holders.iter().any(|holder| holder.call.contains(call)) {
                    return;
                }
            }
            Err(error) => panic!("{error}"),
            // The call may not have begun.
            Ok(_) => {}
        }
        assert!(Instant::now() < deadline, "no barrier was held up by {call:?}");
    }
}

/// A filesystem of its own, until it is dropped.
pub(crate) struct Mounted {
    directory: Option<tempfile::TempDir>,
    at: PathBuf,
}

impl Mounted {
    pub(crate) fn new(kind: &str) -> Self {
        Self::with_image_in(kind, &std::env::temp_dir())
    }

    /// With its image in this directory.
    pub(crate) fn with_image_in(kind: &str, images: &Path) -> Self {
        assert!(rustix::process::geteuid().is_root(), "this test mounts and needs root");
        let directory = tempfile::Builder::new().prefix("highwater-inplace-").tempdir_in(images).unwrap();
        let at = directory.path().join("mnt");
        fs::create_dir(&at).unwrap();
        let at_text = at.to_str().unwrap();
        if kind == "tmpfs" {
            run("mount", &["-t", "tmpfs", "-o", "size=64m", "none", at_text]);
        } else {
            let image = directory.path().join("image");
            let megabytes = if kind == "xfs" { 320 } else { 128 };
            File::create(&image).unwrap().set_len(megabytes << 20).unwrap();
            let force = if kind == "ext4" { "-F" } else { "-f" };
            run(&format!("mkfs.{kind}"), &["-q", force, image.to_str().unwrap()]);
            run("mount", &["-o", "loop", "-t", kind, image.to_str().unwrap(), at_text]);
        }
        Self { directory: Some(directory), at }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.at
    }

    /// An overlay whose upper directory is here.
    pub(crate) fn overlay(&self) -> Self {
        let directory = tempfile::Builder::new().prefix("highwater-inplace-").tempdir().unwrap();
        let at = directory.path().join("mnt");
        fs::create_dir(&at).unwrap();
        for name in ["lower", "upper", "work"] {
            fs::create_dir(self.at.join(name)).unwrap();
        }
        let here = self.at.to_str().unwrap();
        let options = format!("lowerdir={here}/lower,upperdir={here}/upper,workdir={here}/work");
        run("mount", &["-t", "overlay", "-o", &options, "none", at.to_str().unwrap()]);
        Self { directory: Some(directory), at }
    }

    /// Freezes it until the result is dropped: writes to it wait.
    pub(crate) fn freeze(&self) -> Frozen {
        const FIFREEZE: libc::Ioctl = 0xc004_5877_u32 as libc::Ioctl;
        let root = File::open(&self.at).unwrap();
        // SAFETY: the request takes no pointer that it uses.
        let result = unsafe { libc::ioctl(root.as_raw_fd(), FIFREEZE, 0) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
        Frozen(root)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: what a failed test has left open must not keep the mount.
        let _ = rustix::mount::unmount(&self.at, rustix::mount::UnmountFlags::DETACH);
        let directory = self.directory.take();
        if let Some(directory) = directory {
            let _ = fs::remove_file(directory.path().join("image"));
            let _ = fs::remove_dir(&self.at);
            let _ = directory.close();
        }
    }
}

/// See [`Mounted::freeze`].
pub(crate) struct Frozen(File);

impl Drop for Frozen {
    fn drop(&mut self) {
        const FITHAW: libc::Ioctl = 0xc004_5878_u32 as libc::Ioctl;
        // SAFETY: the request takes no pointer that it uses.
        unsafe { libc::ioctl(self.0.as_raw_fd(), FITHAW, 0) };
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {complaint}");
}

/// A buffer whose pages arrive late: who touches them waits.
pub(crate) struct Late {
    region: usize,
}

impl Late {
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: the region is mapped until the thread that has this value has ended; the kernel alone reads it, and waits for it.
        unsafe { std::slice::from_raw_parts(self.region as *const u8, LENGTH) }
    }

    /// Lists a directory into it.
    pub(crate) fn list(&self, directory: &File) -> io::Result<()> {
        // SAFETY: the kernel writes at most so many bytes into the region, which is mapped and which nothing else uses.
        let got = unsafe { libc::syscall(libc::SYS_getdents64, directory.as_raw_fd(), self.region, LENGTH) };
        if got < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// A thread with a call that stalls on a [`Late`] buffer.
pub(crate) struct Stalled {
    uffd: Option<OwnedFd>,
    region: usize,
    thread: Option<JoinHandle<io::Result<()>>>,
    tid: u32,
}

impl Stalled {
    pub(crate) fn start(name: &str, call: impl FnOnce(&Late) -> io::Result<()> + Send + 'static) -> Self {
        // SAFETY: no pointers are passed; the result is checked.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        assert!(fd >= 0, "userfaultfd: {}", io::Error::last_os_error());
        // SAFETY: a new descriptor that nothing else owns.
        let uffd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()) };
        uffd_ioctl(&uffd, 0xc018_aa3f, &mut [0xaa, 0, 0]);
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: the kernel chooses the address, so that no existing mapping is replaced.
        let region = unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, protection, flags, -1, 0) };
        assert_ne!(region, libc::MAP_FAILED);
        let region = region as usize;
        uffd_ioctl(&uffd, 0xc020_aa00, &mut [region as u64, LENGTH as u64, 1, 0]);
        let (tell, told) = mpsc::channel();
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs()).unwrap();
            call(&Late { region })
        });
        let tid = told.recv().unwrap();
        Self { uffd: Some(uffd), region, thread: Some(thread.unwrap()), tid }
    }

    /// Waits until the thread sleeps in the kernel.
    pub(crate) fn wait_until_asleep(&self) {
        wait_until_asleep(&format!("/proc/self/task/{}/stat", self.tid));
    }

    /// Provides the pages, and returns what came of the call.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let data = vec![b'N'; LENGTH];
        if let Some(uffd) = &self.uffd {
            uffd_ioctl(
                uffd,
                0xc028_aa03,
                &mut [self.region as u64, data.as_ptr() as u64, LENGTH as u64, 0, 0],
            );
        }
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Stalled {
    fn drop(&mut self) {
        // Without the descriptor, missing pages are ordinary ones: nobody waits any more.
        self.uffd = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        // SAFETY: the region is this value's own, and the only thread that used it has ended.
        unsafe { libc::munmap(self.region as *mut libc::c_void, LENGTH) };
    }
}

fn wait_until_asleep(stat: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    // The state of the thread, twenty times in a row: it also sleeps for short times.
    let mut asleep = 0;
    while asleep < 20 {
        let stat = fs::read_to_string(stat).unwrap();
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        asleep = if matches!(state, Some('S' | 'D')) { asleep + 1 } else { 0 };
        assert!(Instant::now() < deadline, "it does not stall");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn uffd_ioctl<const N: usize>(uffd: &OwnedFd, request: u32, argument: &mut [u64; N]) {
    // SAFETY: each request here takes a structure of exactly these 64-bit fields, which the kernel may write back.
    let result = unsafe { libc::ioctl(uffd.as_raw_fd(), request as libc::Ioctl, argument.as_mut_ptr()) };
    assert_eq!(result, 0, "userfaultfd: {}", io::Error::last_os_error());
}

/// A child process; killed when it is dropped.
pub(crate) struct Child(libc::pid_t);

/// Does something in a child process: it exits with 0 unless it panics.
pub(crate) fn child(act: impl FnOnce()) -> Child {
    // SAFETY: the child has this thread alone, and ends with _exit; it takes no lock that another thread may have held but the allocator's,
    // which the C library takes care of.
    match unsafe { libc::fork() } {
        -1 => panic!("fork: {}", io::Error::last_os_error()),
        0 => {
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(act));
            // SAFETY: ends the child at once.
            unsafe { libc::_exit(i32::from(outcome.is_err())) }
        }
        pid => Child(pid),
    }
}

impl Child {
    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: the child has not been waited for, so that the number is its own.
        assert_eq!(unsafe { libc::kill(self.0, signal) }, 0);
    }

    pub(crate) fn pid(&self) -> libc::pid_t {
        self.0
    }

    /// Waits until it sleeps in the kernel.
    pub(crate) fn wait_until_asleep(&self) {
        wait_until_asleep(&format!("/proc/{}/stat", self.0));
    }

    /// Its exit status.
    pub(crate) fn wait(mut self) -> i32 {
        let pid = std::mem::replace(&mut self.0, 0);
        let mut status = 0;
        // SAFETY: the status is written into a place of its own.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        if libc::WIFEXITED(status) { libc::WEXITSTATUS(status) } else { -1 }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.0 != 0 {
            // SAFETY: the child has not been waited for, so that the number is its own.
            unsafe {
                libc::kill(self.0, libc::SIGKILL);
                libc::waitpid(self.0, std::ptr::null_mut(), 0);
            }
        }
    }
}

/// How direct I/O is submitted.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Interface {
    /// `io_submit`.
    Libaio,
    /// io_uring, whose completions wait until they are asked for.
    DeferredTaskWork,
}

/// A direct write in flight on a filesystem whose device stands still. Nobody is in a call for it.
pub(crate) struct DirectWrite {
    pub(crate) inode: u64,
    file: Option<File>,
    _data: Vec<u8>,
    _ring: Option<io_uring::IoUring>,
    context: u64,
}

/// Makes a file ready for direct writes: all of it is allocated and written.
pub(crate) fn prepare_direct(path: &Path) -> File {
    fs::write(path, vec![b'O'; LENGTH]).unwrap();
    let file = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path).unwrap();
    file.sync_all().unwrap();
    file
}

impl DirectWrite {
    pub(crate) fn start(file: File, interface: Interface) -> Self {
        let inode = file.metadata().unwrap().ino();
        let data = vec![b'N'; 8192];
        let at = data.as_ptr().align_offset(4096);
        let address = data[at..].as_ptr();
        let mut context: u64 = 0;
        let mut ring = None;
        match interface {
            Interface::Libaio => {
                // SAFETY: the kernel writes the context's id into `context`.
                assert_eq!(unsafe { libc::syscall(libc::SYS_io_setup, 4_u64, &raw mut context) }, 0);
                // `struct iocb`: data, key and flags, opcode 1 (write) and descriptor, buffer, length, offset, reserved, flags.
                let descriptor = u64::from(file.as_raw_fd().unsigned_abs());
                let control = [0, 0, 1 | descriptor << 32, address as u64, 4096, 0, 0, 0_u64];
                let list = [control.as_ptr()];
                // SAFETY: the list has one valid entry; the data live until the context is destroyed.
                assert_eq!(unsafe { libc::syscall(libc::SYS_io_submit, context, 1_u64, list.as_ptr()) }, 1);
            }
            Interface::DeferredTaskWork => {
                let mut new = io_uring::IoUring::builder()
                    .setup_single_issuer()
                    .setup_defer_taskrun()
                    .build(4)
                    .unwrap();
                let entry =
                    io_uring::opcode::Write::new(io_uring::types::Fd(file.as_raw_fd()), address, 4096)
                        .build();
                // SAFETY: the data live until the ring is dropped.
                unsafe { new.submission().push(&entry) }.unwrap();
                assert_eq!(new.submit().unwrap(), 1);
                ring = Some(new);
            }
        }
        Self { inode, file: Some(file), _data: data, _ring: ring, context }
    }

    /// Closes the descriptor; the write goes on.
    pub(crate) fn close(&mut self) {
        self.file = None;
    }
}

impl Drop for DirectWrite {
    fn drop(&mut self) {
        if self.context != 0 {
            // SAFETY: the context is this value's own; the call waits for what is in flight, so that the data may go.
            unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
        }
        if let Some(ring) = &self._ring {
            let _ = ring.submit_and_wait(1);
        }
    }
}
