//! Scratch directories on several filesystems, covered by the stacked filesystem, with a tracker that only remembers.
//!
//! These tests need root and `/dev/fuse`.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

pub mod recorder;

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use highwater_fuse::{Covered, Options, Stacked};
use tempfile::TempDir;

#[allow(unused_imports)]
pub use recorder::{Recorder, Said};

/// The filesystems that tests run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Whatever the temporary directory is on.
    Scratch,
    Ext4,
    Xfs,
    Btrfs,
    Tmpfs,
}

pub const ALL: [Kind; 4] = [Kind::Ext4, Kind::Xfs, Kind::Btrfs, Kind::Tmpfs];

/// A filesystem of our own, mounted in a temporary directory.
pub struct Volume {
    directory: TempDir,
    mounted: bool,
}

impl Volume {
    pub fn new(kind: Kind) -> Self {
        let directory = tempfile::tempdir().unwrap();
        if kind == Kind::Scratch {
            std::fs::create_dir(directory.path().join("mnt")).unwrap();
            return Self { directory, mounted: false };
        }
        let point = directory.path().join("mnt");
        std::fs::create_dir(&point).unwrap();
        let image = directory.path().join("image");
        match kind {
            Kind::Tmpfs => sh(&format!("mount -t tmpfs tmpfs {}", point.display())),
            _ => {
                let file = std::fs::File::create(&image).unwrap();
                file.set_len(400 << 20).unwrap();
                let mkfs = match kind {
                    Kind::Ext4 => "mkfs.ext4 -q -F",
                    Kind::Xfs => "mkfs.xfs -q -f",
                    _ => "mkfs.btrfs -q -f",
                };
                sh(&format!("{mkfs} {0} && mount -o loop {0} {1}", image.display(), point.display()));
            }
        }
        Self { directory, mounted: true }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join("mnt")
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        if self.mounted {
            let _ = Command::new("umount").arg("-l").arg(self.path()).status();
        }
    }
}

/// A directory that is mounted over itself.
pub struct Fixture {
    stacked: Option<Stacked>,
    pub recorder: Recorder,
    pub kind: Kind,
    pub passthrough: bool,
    directory: PathBuf,
    // Last: dropped after the mount.
    pub volume: Volume,
}

impl Fixture {
    pub fn new(kind: Kind, passthrough: bool) -> Self {
        let volume = Volume::new(kind);
        let directory = volume.path().join("tracked");
        std::fs::create_dir(&directory).unwrap();
        Self::over(volume, directory, kind, passthrough, |_| {})
    }

    pub fn over(
        volume: Volume,
        directory: PathBuf,
        kind: Kind,
        passthrough: bool,
        change: impl FnOnce(&mut Options),
    ) -> Self {
        let recorder = Recorder::default();
        let covered = Covered::open(&directory).unwrap();
        let mut options = Options { passthrough, ..Options::default() };
        change(&mut options);
        let stacked = Stacked::mount_with(covered, Box::new(recorder.clone()), options).unwrap();
        Self { stacked: Some(stacked), recorder, kind, passthrough, directory, volume }
    }

    pub fn root(&self) -> &Path {
        &self.directory
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    pub fn stacked(&self) -> &Stacked {
        self.stacked.as_ref().unwrap()
    }

    /// Unmounts, checks what has to hold at the end, and leaves the tree below to be looked at.
    pub fn uncover(&mut self) -> PathBuf {
        let stacked = self.stacked.take().unwrap();
        unmount(&stacked);
        assert_eq!(self.recorder.in_flight(), 0, "sections are left");
        assert_eq!(self.recorder.misuse(), Vec::<String>::new());
        self.directory.clone()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        if let Some(stacked) = self.stacked.take() {
            if std::thread::panicking() {
                let _ = stacked.unmount_lazy();
                std::mem::forget(stacked);
            } else {
                unmount(&stacked);
                assert_eq!(self.recorder.misuse(), Vec::<String>::new());
            }
        }
    }
}

/// Unmounts. Other tests of this process start programs meanwhile, which have our descriptors until they are executed.
fn unmount(stacked: &Stacked) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while let Err(error) = stacked.unmount() {
        assert!(std::time::Instant::now() < deadline, "{error}");
    }
}

/// Runs a check on both data paths of the scratch filesystem.
pub fn both(check: impl Fn(&Fixture)) {
    for passthrough in [true, false] {
        eprintln!("passthrough {passthrough}");
        let mut fixture = Fixture::new(Kind::Scratch, passthrough);
        check(&fixture);
        fixture.uncover();
    }
}

/// Runs a check on both data paths of all filesystems.
pub fn everywhere(check: impl Fn(&Fixture)) {
    for kind in ALL {
        for passthrough in [true, false] {
            eprintln!("{kind:?}, passthrough {passthrough}");
            let mut fixture = Fixture::new(kind, passthrough);
            check(&fixture);
            fixture.uncover();
        }
    }
}

/// Runs a shell script, which has to succeed.
pub fn sh(script: &str) {
    let output = Command::new("bash").arg("-ec").arg(script).output().unwrap();
    assert!(
        output.status.success(),
        "{script}: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs a shell script in a directory and returns what it prints.
pub fn sh_in(directory: &Path, script: &str) -> String {
    let output = Command::new("bash").arg("-ec").arg(script).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
}

/// Python functions for mappings without the descriptor that Python's own keep open: `m = Map(fd)`, `m.store(byte)`, `m.unmap()`.
pub const PYTHON_MAP: &str = "
import ctypes,os
libc=ctypes.CDLL(None,use_errno=True); libc.mmap.restype=ctypes.c_void_p
libc.mmap.argtypes=[ctypes.c_void_p,ctypes.c_size_t]+[ctypes.c_int]*3+[ctypes.c_long]
libc.munmap.argtypes=[ctypes.c_void_p,ctypes.c_size_t]
class Map:
    def __init__(self,fd): self.p=libc.mmap(None,4096,3,1,fd,0); assert self.p not in (None,2**64-1)
    def store(self,b): ctypes.memset(self.p,b,1)
    def unmap(self): libc.munmap(self.p,4096)
";

/// A name of bytes.
pub fn os(bytes: &[u8]) -> &std::ffi::OsStr {
    std::ffi::OsStr::from_bytes(bytes)
}
