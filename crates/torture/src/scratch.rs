//! A directory to work in on a chosen filesystem, taken away again at the end.
//!
//! Layout below the base: `image` (the loop image), `mnt` (the filesystem), `mnt/tree` (what is tracked), `lower` (the same
//! tree past whatever is mounted over it), `state`, `evidence`.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountPropagationFlags, UnmountFlags};

use crate::cleanup::Guard;

/// What the tree is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Filesystem {
    /// A new filesystem of this type in a loop image.
    Image(&'static str),
    /// A new tmpfs.
    Tmpfs,
    /// A new directory inside this one.
    Directory(PathBuf),
}

impl std::str::FromStr for Filesystem {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "ext4" => Self::Image("ext4"),
            "xfs" => Self::Image("xfs"),
            "btrfs" => Self::Image("btrfs"),
            "tmpfs" => Self::Tmpfs,
            directory if directory.contains('/') => Self::Directory(directory.into()),
            other => {
                return Err(format!("{other:?} is none of ext4, xfs, btrfs, tmpfs, nor a path with a slash"));
            }
        })
    }
}

impl std::fmt::Display for Filesystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Image(kind) => f.write_str(kind),
            Self::Tmpfs => f.write_str("tmpfs"),
            Self::Directory(path) => write!(f, "{}", path.display()),
        }
    }
}

/// The directories of one run. Fields are dropped, and so undone, in this order.
pub(crate) struct Scratch {
    /// Where the tree is, as programs see it.
    pub(crate) tree: PathBuf,
    /// The tree past anything that is mounted over it later.
    pub(crate) lower: PathBuf,
    /// For the state of the tracker; not made.
    pub(crate) state: PathBuf,
    /// Kept if the run fails.
    pub(crate) evidence: PathBuf,
    _undo: Vec<Guard>,
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Newest first: a Vec drops its oldest element first.
        while let Some(guard) = self._undo.pop() {
            drop(guard);
        }
    }
}

impl Scratch {
    /// Makes the directories. `size_mib`: of a new filesystem.
    pub(crate) fn new(on: &Filesystem, base: Option<&Path>, label: &str, size_mib: u64) -> Result<Self> {
        ensure!(rustix::process::geteuid().is_root(), "root is needed: this mounts filesystems");
        let parent = base.map_or_else(std::env::temp_dir, Path::to_path_buf);
        let base = parent.join(format!("highwater-torture-{label}-{}", std::process::id()));
        fs::create_dir_all(&base).with_context(|| format!("cannot make {}", base.display()))?;
        let base = base.canonicalize()?;
        let evidence = base.join("evidence");
        fs::create_dir_all(&evidence)?;
        let mut undo = Vec::new();
        undo.push(Guard::new({
            let base = base.clone();
            move || {
                let _ = fs::remove_dir_all(base.join("state"));
                // Not recursive: whatever else is left is evidence, or still mounted.
                for leftover in ["mnt", "lower", "evidence"] {
                    let _ = fs::remove_dir(base.join(leftover));
                }
                let _ = fs::remove_dir(&base);
            }
        }));
        let home = match on {
            Filesystem::Directory(path) => {
                let home = path.join(format!("torture-{label}-{}", std::process::id()));
                fs::create_dir(&home).with_context(|| format!("cannot make {}", home.display()))?;
                let home = home.canonicalize()?;
                undo.push(Guard::new({
                    let home = home.clone();
                    move || drop(fs::remove_dir_all(home))
                }));
                home
            }
            Filesystem::Tmpfs => {
                let home = base.join("mnt");
                fs::create_dir_all(&home)?;
                run("mount", &["-t", "tmpfs", "-o", &format!("size={size_mib}m"), "none", text(&home)?])?;
                undo.push(unmount_guard(home.clone()));
                home
            }
            Filesystem::Image(kind) => {
                let image = base.join("image");
                fs::File::create(&image)?.set_len(size_mib << 20)?;
                undo.push(Guard::new({
                    let image = image.clone();
                    move || drop(fs::remove_file(image))
                }));
                match *kind {
                    "ext4" => run("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=1", text(&image)?])?,
                    "xfs" => run("mkfs.xfs", &["-q", "-f", text(&image)?])?,
                    "btrfs" => run("mkfs.btrfs", &["-q", "-f", text(&image)?])?,
                    other => bail!("no mkfs for {other}"),
                }
                let home = base.join("mnt");
                fs::create_dir_all(&home)?;
                // `-o loop` sets autoclear: the loop device goes with the last user of the mount.
                run("mount", &["-o", "loop", "-t", kind, text(&image)?, text(&home)?])?;
                undo.push(unmount_guard(home.clone()));
                home
            }
        };
        let tree = home.join("tree");
        fs::create_dir(&tree)?;
        let lower = base.join("lower");
        fs::create_dir_all(&lower)?;
        rustix::mount::mount_bind(&tree, &lower).context("cannot bind the tree")?;
        // Private, or the tracker's mount over the tree would appear here too.
        rustix::mount::mount_change(&lower, MountPropagationFlags::PRIVATE)?;
        undo.push(unmount_guard(lower.clone()));
        undo.push(unmount_guard(tree.clone()));
        Ok(Self { state: base.join("state"), tree, lower, evidence, _undo: undo })
    }

    /// Removes the evidence: the run was good.
    pub(crate) fn discard_evidence(&self) {
        let _ = fs::remove_dir_all(&self.evidence);
    }
}

/// Unmounts whatever is mounted exactly there, however often.
pub(crate) fn unmount_all(at: &Path) {
    for _ in 0..8 {
        if !is_mounted(at) {
            return;
        }
        if rustix::mount::unmount(at, UnmountFlags::empty()).is_err() {
            let _ = rustix::mount::unmount(at, UnmountFlags::DETACH);
        }
    }
}

fn unmount_guard(at: PathBuf) -> Guard {
    Guard::new(move || unmount_all(&at))
}

/// Whether something is mounted exactly there. Does not touch the path itself, which may be dead.
pub(crate) fn is_mounted(at: &Path) -> bool {
    let Ok(table) = fs::read("/proc/self/mountinfo") else { return false };
    table
        .split(|byte| *byte == b'\n')
        .any(|line| line.split(|b| *b == b' ').nth(4) == Some(at.as_os_str().as_bytes()))
}

/// Gives this thread, and all that it starts, mounts of their own: nothing that is mounted here is seen elsewhere, and it goes with
/// the process.
pub(crate) fn own_mounts() -> Result<()> {
    // SAFETY: takes no pointers; what this thread does not share any more with the others ends with it.
    if unsafe { libc::unshare(libc::CLONE_FS | libc::CLONE_NEWNS) } < 0 {
        return Err(std::io::Error::last_os_error()).context("unshare: root is needed");
    }
    Ok(rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

/// Gives back the copies of tracked directories that a private mount namespace began with. A tracker cannot stop while any namespace has one.
pub(crate) fn keep_no_mounts_of_others() -> Result<()> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo")?;
    for line in mounts.lines().rev() {
        let Some(at) = line.split(' ').nth(4) else { continue };
        if line.contains(" - fuse.highwater ") || at.contains("/highwater-") {
            let _ = rustix::mount::unmount(at, UnmountFlags::DETACH);
        }
    }
    Ok(())
}

/// Runs a program, which must succeed.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
