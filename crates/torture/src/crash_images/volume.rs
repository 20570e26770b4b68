//! The filesystems under test on the recorded devices: how they are made, mounted and taken away.
//!
//! Layout below the base: `recorder` (the two files), `mnt` (the tracked filesystem), `mnt/tree` (what is tracked), `journal` (the
//! journal's filesystem), `lower` (the tree past the tracker's mount), `boot_id`, `evidence`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::device::{Devices, JOURNAL, NAMES, TRACKED};
use super::fuse;
use crate::cleanup::Guard;
use crate::scratch::{keep_no_mounts_of_others, run, unmount_all};

const MIB: u64 = 1 << 20;

/// What the tree is on, and where the state directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Target {
    Ext4,
    Xfs,
    Btrfs,
    /// ext4 that logs small changes in a second, logical form.
    Ext4FastCommit,
    /// ext4 that does not order data before the metadata that points to it.
    Ext4Writeback,
    /// The state directory beside the tracked one, on the same ext4.
    Ext4Beside,
    /// The same on XFS.
    XfsBeside,
    /// The same on btrfs.
    BtrfsBeside,
}

impl Target {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Xfs => "xfs",
            Self::Btrfs => "btrfs",
            Self::Ext4FastCommit => "ext4-fast-commit",
            Self::Ext4Writeback => "ext4-writeback",
            Self::Ext4Beside => "ext4-beside",
            Self::XfsBeside => "xfs-beside",
            Self::BtrfsBeside => "btrfs-beside",
        }
    }

    /// The journal is on the tracked filesystem.
    pub(crate) fn is_beside(self) -> bool {
        matches!(self, Self::Ext4Beside | Self::XfsBeside | Self::BtrfsBeside)
    }

    fn filesystem(self) -> &'static str {
        match self {
            Self::Ext4 | Self::Ext4FastCommit | Self::Ext4Writeback | Self::Ext4Beside => "ext4",
            Self::Xfs | Self::XfsBeside => "xfs",
            Self::Btrfs | Self::BtrfsBeside => "btrfs",
        }
    }

    /// What the filesystem takes for a sector that arrives whole or not at all. Only ext4 with its classic journal repairs a torn
    /// block: btrfs and XFS notice by a checksum that a block of a tree is torn, and refuse; so does ext4 with what a fast commit
    /// has changed in place.
    pub(crate) fn sectors(self) -> &'static [usize] {
        match self {
            Self::Ext4 | Self::Ext4Writeback | Self::Ext4Beside => &[512, 4096],
            _ => &[4096],
        }
    }

    /// Small, for speed, but above the least that the filesystem takes; with room for journal segments where they are beside.
    pub(crate) fn sizes(self) -> [u64; 2] {
        let tracked = match (self.filesystem(), self.is_beside()) {
            ("ext4", false) if self == Self::Ext4FastCommit => 256,
            ("ext4", false) => 64,
            ("ext4", true) => 192,
            ("xfs", false) => 304,
            ("xfs", true) => 400,
            (_, false) => 192,
            (_, true) => 384,
        };
        [tracked * MIB, 160 * MIB]
    }

    fn make(self, device: &Path) -> Result<()> {
        let device = text(device)?;
        match self.filesystem() {
            "ext4" => {
                let lazy = "lazy_itable_init=0,lazy_journal_init=1,nodiscard";
                let mut arguments = vec!["-q", "-F", "-b", "4096", "-E", lazy];
                if self == Self::Ext4FastCommit {
                    // Large enough for a run: Linux 6.18 refuses a journal whose space for fast commits has been filled to its
                    // end ("JBD2: corrupted journal superblock"), also where nothing was lost.
                    arguments.extend(["-O", "fast_commit", "-J", "size=64,fast_commit_size=32768"]);
                }
                arguments.push(device);
                run("mkfs.ext4", &arguments)
            }
            "xfs" => run("mkfs.xfs", &["-q", "-f", "-K", device]),
            _ => run("mkfs.btrfs", &["-q", "-f", "-K", device]),
        }
    }

    /// `commit_s`: how often the filesystem commits by itself, where that can be said.
    fn options(self, commit_s: u32) -> String {
        match self {
            Self::Ext4Writeback => format!("commit={commit_s},data=writeback"),
            Self::Xfs | Self::XfsBeside => "nouuid".to_owned(),
            _ => format!("commit={commit_s}"),
        }
    }
}

/// The recorder, the loop devices on it, and the places to mount. Fields are dropped, and so undone, newest first.
pub(crate) struct Bench {
    pub(crate) devices: Arc<Devices>,
    pub(crate) target: Target,
    base: PathBuf,
    loops: [PathBuf; 2],
    _undo: Undo,
}

/// Guards, dropped newest first.
#[derive(Default)]
struct Undo(Vec<Guard>);

impl Drop for Undo {
    fn drop(&mut self) {
        while let Some(guard) = self.0.pop() {
            drop(guard);
        }
    }
}

/// The filesystem could not recover itself: not Highwater's concern, but too many say that the state is none that can be.
#[derive(Debug)]
pub(crate) struct Unmountable {
    filesystem: String,
    name: String,
    errno: rustix::io::Errno,
}

impl std::fmt::Display for Unmountable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "cannot mount the {} of {}: {}", self.filesystem, self.name, self.errno)
    }
}

impl std::error::Error for Unmountable {}

/// Both filesystems mounted. Dropped: unmounted.
pub(crate) struct Mounted {
    base: PathBuf,
    _undo: Undo,
}

impl Bench {
    /// Mounts the recorder and attaches the loop devices.
    pub(crate) fn new(base: &Path, target: Target) -> Result<Self> {
        let devices = Arc::new(Devices::new(target.sizes()));
        for name in ["recorder", "mnt", "journal", "lower"] {
            fs::create_dir_all(base.join(name))?;
        }
        let mut undo = Undo::default();
        let recorder = base.join("recorder");
        fuse::serve(&recorder, &devices)?;
        undo.0.push(Guard::new({
            let recorder = recorder.clone();
            move || {
                // Ends the connection even where a mount is waiting for an answer: nobody is left who could give one.
                let _ = rustix::mount::unmount(&recorder, UnmountFlags::FORCE);
                unmount_all(&recorder);
            }
        }));
        let mut loops = Vec::new();
        for name in NAMES {
            let device = attach(&recorder.join(name))?;
            undo.0.push(Guard::new({
                let device = device.clone();
                move || detach(&device)
            }));
            loops.push(device);
        }
        let loops = loops.try_into().map_err(|_| anyhow::anyhow!("two devices"))?;
        Ok(Self { devices, target, base: base.to_owned(), loops, _undo: undo })
    }

    /// Makes both filesystems.
    pub(crate) fn make(&self) -> Result<()> {
        self.target.make(&self.loops[TRACKED])?;
        if !self.target.is_beside() {
            Target::Ext4.make(&self.loops[JOURNAL])?;
        }
        Ok(())
    }

    /// Mounts both, which recovers them. The tree has to be there for `with_lower`.
    pub(crate) fn mount(&self, commit_s: u32) -> Result<Mounted> {
        let mut mounted = Mounted { base: self.base.clone(), _undo: Undo::default() };
        let target = self.target;
        mounted.mount(&self.loops[TRACKED], "mnt", target.filesystem(), &target.options(commit_s))?;
        if !target.is_beside() {
            mounted.mount(&self.loops[JOURNAL], "journal", "ext4", "commit=5")?;
        }
        Ok(mounted)
    }

    pub(crate) fn loop_devices(&self) -> String {
        format!("{} and {}", self.loops[TRACKED].display(), self.loops[JOURNAL].display())
    }

    pub(crate) fn tree(&self) -> PathBuf {
        self.base.join("mnt/tree")
    }

    pub(crate) fn lower(&self) -> PathBuf {
        self.base.join("lower")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.base.join(if self.target.is_beside() { "mnt/state" } else { "journal/state" })
    }
}

impl Mounted {
    fn mount(&mut self, device: &Path, name: &str, filesystem: &str, options: &str) -> Result<()> {
        let at = self.base.join(name);
        let options = std::ffi::CString::new(options)?;
        rustix::mount::mount(device, &at, filesystem, MountFlags::empty(), &*options).map_err(|errno| {
            Unmountable { filesystem: filesystem.to_owned(), name: name.to_owned(), errno }
        })?;
        self._undo.0.push(Guard::new(move || unmount_all(&at)));
        Ok(())
    }

    /// Binds the tree to `lower`, where the tracker's mount will not hide it.
    pub(crate) fn bind_lower(&mut self) -> Result<()> {
        let (tree, lower) = (self.base.join("mnt/tree"), self.base.join("lower"));
        rustix::mount::mount_bind(&tree, &lower).context("cannot bind the tree")?;
        rustix::mount::mount_change(&lower, MountPropagationFlags::PRIVATE)?;
        self._undo.0.push(Guard::new(move || {
            unmount_all(&lower);
            unmount_all(&tree);
        }));
        Ok(())
    }

    /// Covers the tree with what a killed tracker of this state leaves: a mount whose server is gone. A tracker knows those of its own
    /// state by a mark in their source, which the state file `tree` remembers.
    pub(crate) fn leave_dead_mount(&self, state: &Path) -> Result<()> {
        let tree = self.base.join("mnt/tree");
        let known = fs::read_to_string(state.join("tree")).unwrap_or_default();
        let mark = known.lines().rev().find_map(|line| line.strip_prefix("mount ")).unwrap_or_default();
        drop(fuse::mount(&tree, "highwater", &format!("highwater#{mark}:{}", tree.display()))?);
        Ok(())
    }
}

const MARK: &str = "TORTURE_OWN_NAMESPACES";

/// Runs the program once more in namespaces of its own, and waits for it. Gives false in that second process.
///
/// In a mount namespace of its own another boot id can be shown to the trackers of the crash states, and no mount outlives the
/// run, whatever happens to it. In a process namespace of its own the trackers see no process of the machine: what others do
/// does not make their search for writers longer, or incomplete.
pub(crate) fn in_own_namespaces() -> Result<bool> {
    if outer_pid().is_some() {
        // SAFETY: takes numbers only.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
        rustix::mount::mount("proc", "/proc", "proc", MountFlags::empty(), None::<&std::ffi::CStr>)
            .context("cannot mount /proc")?;
        keep_no_mounts_of_others()?;
        // The trackers' registrations name processes that nobody else sees by these numbers.
        rustix::mount::mount("none", "/run", "tmpfs", MountFlags::empty(), None::<&std::ffi::CStr>)
            .context("cannot mount /run")?;
        return Ok(false);
    }
    ensure!(rustix::process::geteuid().is_root(), "root is needed: this mounts filesystems");
    let flags = rustix::thread::UnshareFlags::NEWNS | rustix::thread::UnshareFlags::NEWPID;
    // SAFETY: no descriptors are unshared; the mounts and the children of this thread are its own from here on.
    unsafe { rustix::thread::unshare_unsafe(flags) }.context("cannot make namespaces")?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(MARK, std::process::id().to_string())
        .spawn()
        .context("cannot start anew")?;
    let pid = child.id();
    let ended = Arc::new(AtomicBool::new(false));
    let has_ended = Arc::clone(&ended);
    let _undo = Guard::new(move || {
        // ORDERING: only a flag. The number may be another process's by then.
        if !has_ended.load(Ordering::Relaxed)
            && let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            // A signal ends this process when the guards have run: it takes away what it has mounted first.
            for _ in 0..600 {
                if rustix::process::test_kill_process(pid).is_err() {
                    break;
                }
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        }
    });
    let status = child.wait()?;
    // ORDERING: see above.
    ended.store(true, Ordering::Relaxed);
    ensure!(status.success(), "the run has failed: {status}");
    Ok(true)
}

/// The number of the first process: that of the second one is 1, always.
pub(crate) fn outer_pid() -> Option<String> {
    std::env::var(MARK).ok()
}

/// Shows another boot id to every process of this namespace from now on.
pub(crate) fn show_boot_id(base: &Path, number: u64) -> Result<()> {
    let shown = "/proc/sys/kernel/random/boot_id";
    let file = base.join("boot_id");
    fs::write(&file, format!("{number:08x}-0000-4000-8000-{number:012x}\n"))?;
    // Again and again would pile them up: the file is bound once and rewritten in place.
    if !crate::scratch::is_mounted(Path::new(shown)) {
        rustix::mount::mount_bind(&file, shown).context("cannot show another boot id")?;
    }
    Ok(())
}

/// Shows the real one again.
pub(crate) fn show_own_boot_id() {
    let _ = rustix::mount::unmount("/proc/sys/kernel/random/boot_id", UnmountFlags::DETACH);
}

fn attach(file: &Path) -> Result<PathBuf> {
    let output = Command::new("losetup")
        .args(["--find", "--show", "--direct-io=on", text(file)?])
        .output()
        .context("cannot run losetup")?;
    let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(
        output.status.success() && !device.is_empty(),
        "losetup: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(device.into())
}

fn detach(device: &Path) {
    if let Ok(device) = text(device) {
        let _ = run("losetup", &["-d", device]);
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
