//! Where a volume's state is, and what has to hold there.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use highwater_client::directory_key;
use highwater_fuse::Device;
use highwater_journal::{Directory, Storage as _};
use highwater_tracker::state_file;
use rustix::io::Errno;

use super::checks;
use crate::exit::{Exit, Failure};
use crate::quote::quote_path;

/// The file that every state directory has.
const VOLUME_FILE: &str = "volume";

/// See [`Tree`].
const TREE_FILE: &str = "tree";

/// Whether a file may be in a state directory that has no volume yet: a start that failed leaves such.
fn is_ours(name: &str) -> bool {
    let whole = ["lock", "consumers", "horizon", TREE_FILE].contains(&name);
    whole || name.starts_with("journal") || name.starts_with(super::daemon::LOG_FILE) || name.starts_with('.')
}

/// The state of a directory if none is given: `/var/lib/highwater/NAME-HASH` for root, else below `$XDG_STATE_HOME` or
/// `~/.local/state`.
pub(super) fn default_for(directory: &Path) -> Result<PathBuf, Failure> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/lib")
    } else {
        let home = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")));
        home.ok_or_else(|| {
            Failure::text(Exit::Failed, "neither XDG_STATE_HOME nor HOME is set: give --state")
        })?
    };
    Ok(base.join("highwater").join(directory_key(directory)))
}

/// Checks where the state is or will be, and makes the directories above it. Gives the canonical path.
pub(super) fn check(given: &Path, directory: &checks::Directory) -> Result<PathBuf, Failure> {
    let absolute =
        std::path::absolute(given).with_context(|| format!("not a path: {}", quote_path(given)))?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Err(Failure::text(Exit::Failed, format!("{} cannot hold a state", quote_path(given))));
    };
    let inside = |path: &Path| {
        Failure::text(
            Exit::Failed,
            format!(
                "the state {} would be inside the tracked directory {}, and every record a change of its own; \
                 give a --state elsewhere, best on another filesystem",
                quote_path(path),
                quote_path(&directory.path)
            ),
        )
    };
    // What is not there yet is below what is: nothing may be made inside the tracked directory.
    let there = parent.ancestors().find_map(|ancestor| ancestor.canonicalize().ok()).unwrap_or_default();
    if there.starts_with(&directory.path) || is_below(&there, &directory.path) {
        return Err(inside(&absolute));
    }
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700).create(parent).map_err(|error| explain(error.into(), &absolute))?;
    let parent =
        parent.canonicalize().with_context(|| format!("cannot use the state {}", quote_path(&absolute)))?;
    let path = parent.join(name);
    let path = path.canonicalize().unwrap_or(path);
    if path.starts_with(&directory.path) || is_below(&path, &directory.path) {
        return Err(inside(&path));
    }
    match std::fs::metadata(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        metadata => check_existing(&path, &metadata.map_err(|error| explain(error.into(), &path))?)?,
    }
    Ok(path)
}

fn check_existing(path: &Path, metadata: &std::fs::Metadata) -> Result<(), Failure> {
    let shown = quote_path(path);
    let refuse =
        |why: String| Err(Failure::text(Exit::Failed, format!("cannot use the state {shown}: {why}")));
    if !metadata.is_dir() {
        return refuse("it is not a directory".to_owned());
    }
    let me = rustix::process::geteuid().as_raw();
    if metadata.uid() != me {
        return refuse(format!(
            "it belongs to user {}, and you are {me}; only its owner may use it",
            metadata.uid()
        ));
    }
    let entries = std::fs::read_dir(path).map_err(|error| explain(error.into(), path))?;
    let names: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    let is_state = names.iter().any(|name| name == VOLUME_FILE);
    if !is_state && !names.iter().all(|name| name.to_str().is_some_and(is_ours)) {
        return refuse("there are other files in it, and no state; give a new or empty directory".to_owned());
    }
    if !is_state {
        // Ours, and nothing in it: nobody else has to get in from now on.
        return std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
            .map_err(|error| explain(error.into(), path));
    }
    Ok(())
}

/// Whether a path is the directory or below it under another name, as a bind mount makes it.
fn is_below(path: &Path, directory: &Path) -> bool {
    let identity =
        |path: &Path| std::fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let Some(tracked) = identity(directory) else { return false };
    path.ancestors().any(|ancestor| identity(ancestor) == Some(tracked))
}

/// Opens and locks the state.
pub(super) fn open(path: &Path) -> Result<Directory, Failure> {
    Directory::open(path).map_err(|error| explain(error.into(), path))
}

/// What a state knows of the tree besides what the tracker knows: the state file `tree`.
///
/// `filesystem` and `born` are the tree's origin: the root of another machine's filesystem has the same handle. `mount` is a mark that a
/// tracker of this state has put on its mount: only such a dead mount says that the tree has been covered since. `dead` is the device of
/// a mount whose tracker was killed, and the boot in which that was: programs may still write through it. `version` is that of the tree at a
/// clean stop of a tracker in place, and gone with the next start: all that is in that version has been recorded.
#[derive(Debug, Default)]
pub(super) struct Tree(Vec<(String, Vec<u8>)>);

impl Tree {
    pub(super) fn read(state: &Directory) -> Result<Self, anyhow::Error> {
        // Before there is a volume, it is what a start that failed has left.
        match state.read(VOLUME_FILE) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            _ => {}
        }
        match state_file::read(state, TREE_FILE) {
            Ok(lines) => Ok(Self(lines.unwrap_or_default())),
            // Nothing is known then, and nothing proved: a scan.
            Err(error) if error.kind() == ErrorKind::InvalidData => Ok(Self::default()),
            Err(error) => Err(anyhow::Error::from(error).context("cannot read the state file tree")),
        }
    }

    fn values(&self, key: &str) -> impl Iterator<Item = &[u8]> {
        self.0.iter().filter(move |line| line.0 == key).map(|line| line.1.as_slice())
    }

    /// Fails if the state was made for another tree. What one of the two does not know is not compared.
    pub(super) fn check(&self, origin: &[(&str, String)]) -> Result<(), anyhow::Error> {
        let differs = |(key, value): &&(&str, String)| {
            self.values(key).next().is_some_and(|known| known != value.as_bytes())
        };
        let Some((key, _)) = origin.iter().find(differs) else { return Ok(()) };
        let directory = self.values("directory").next().unwrap_or_default();
        Err(anyhow!(
            "the state belongs to another tracked directory, {} ({key} differs)",
            quote_path(Path::new(OsStr::from_bytes(directory)))
        ))
    }

    /// Whether all of these mounts are of trackers of this state.
    pub(super) fn has_mounted(&self, instances: &[String]) -> bool {
        instances.iter().all(|instance| self.values("mount").any(|known| known == instance.as_bytes()))
    }

    /// The devices of mounts whose trackers were killed since the system was booted, the newest last.
    pub(super) fn dead_devices(&self, boot_id: &str) -> Vec<Device> {
        let of_this_boot = |line: &[u8]| {
            let (device, boot) = std::str::from_utf8(line).ok()?.split_once(' ')?;
            device.parse().ok().filter(|_| boot == boot_id)
        };
        self.values("dead").filter_map(of_this_boot).collect()
    }

    /// The version at which the tracker before has left the tree, if it was stopped: if it has that one now, nothing has changed since.
    pub(super) fn left_at(&self) -> Option<&[u8]> {
        self.values("version").last()
    }

    /// Adds the version at which the tree was left.
    pub(super) fn store_version(state: &Directory, version: &str) -> Result<(), anyhow::Error> {
        let Self(mut lines) = Self::read(state)?;
        lines.push(("version".to_owned(), version.as_bytes().to_vec()));
        let lines = lines.iter().map(|(key, value)| (key.as_str(), value.clone()));
        state_file::write(state, TREE_FILE, lines).context("cannot write the state file tree")
    }

    /// Replaces the file, without a version: the mounts that are still there, the one that is about to be made, and the dead ones.
    pub(super) fn store(
        state: &Directory,
        directory: &Path,
        origin: &[(&'static str, String)],
        mounts: &[String],
        (dead, boot_id): (&[Device], &str),
    ) -> Result<(), anyhow::Error> {
        // A program that goes on writing through so many kills is found by its path only.
        const DEAD_MAX: usize = 256;
        let dead = &dead[dead.len().saturating_sub(DEAD_MAX)..];
        let dead: Vec<String> = dead.iter().map(|device| format!("{device} {boot_id}")).collect();
        let mounts = mounts.iter().map(|instance| ("mount", instance.as_str()));
        let lines = origin.iter().map(|(key, value)| (*key, value.as_str())).chain(mounts);
        let lines = lines.chain(dead.iter().map(|line| ("dead", line.as_str())));
        let lines = lines.map(|(key, value)| (key, value.as_bytes().to_vec()));
        let directory = ("directory", directory.as_os_str().as_bytes().to_vec());
        let written = state_file::write(state, TREE_FILE, [directory].into_iter().chain(lines));
        written.context("cannot write the state file tree")
    }
}

/// A mark for the mount of this process that no other has.
pub(super) fn new_instance() -> String {
    let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    format!("{:x}-{:x}", std::process::id(), since_epoch.as_nanos())
}

/// Says what to do about an error of the state.
pub(super) fn explain(error: anyhow::Error, path: &Path) -> Failure {
    let errno = error.chain().find_map(|cause| cause.downcast_ref::<std::io::Error>()?.raw_os_error());
    let is = |other: Errno| errno == Some(other.raw_os_error());
    let hint = if is(Errno::NOSPC) || is(Errno::DQUOT) {
        "; its disk is full: make room, or give a --state on another one"
    } else if is(Errno::ROFS) {
        "; its filesystem is read-only: give a --state on another one"
    } else if is(Errno::ACCESS) || is(Errno::PERM) {
        "; give a --state in a directory of your own"
    } else {
        ""
    };
    Failure::new(Exit::Failed, anyhow!("cannot use the state {}: {error:#}{hint}", quote_path(path)))
}
