//! Where the sockets are.
//!
//! One directory per user holds, for each directory that the user tracks, named by a hash of its canonical path:
//!
//! | file | what it is |
//! |---|---|
//! | `<hash>.socket` | the tracker's socket |
//! | `<hash>.json` | its registration: which directory, by which process, with which state |
//! | `<hash>.lock` | locked by the tracker (`flock`) from before it looks around until it has ended; never removed |
//!
//! It is `$HIGHWATER_RUNTIME_DIR` if that is set, else `/run/highwater` for root and `$XDG_RUNTIME_DIR/highwater` for
//! everybody else. All of these are gone after a reboot; nothing here has to survive one.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Enough to be recognised, and well below what a name may have.
const NAME_CHARS_MAX: usize = 64;

/// The directory of the sockets and registrations of one user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeDirectory(PathBuf);

/// The runtime directory cannot be found or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RuntimeError {
    /// Nothing says where it is.
    #[error("XDG_RUNTIME_DIR is not set: set it, or HIGHWATER_RUNTIME_DIR, to a directory of your own")]
    Unknown,
    /// Somebody else could put a socket there.
    #[error("{path} belongs to user {owner}: only a directory of your own can hold the sockets", path = path.display())]
    NotOwned {
        /// Where it is.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// It cannot be made or read.
    #[error("cannot {doing} the runtime directory {path}", path = path.display())]
    Io {
        /// `make` or `read`.
        doing: &'static str,
        /// Where it is.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl RuntimeDirectory {
    /// The one of this user, which need not exist yet.
    pub fn of_this_user() -> Result<Self, RuntimeError> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(path) = set("HIGHWATER_RUNTIME_DIR") {
            return Ok(Self(path));
        }
        if rustix::process::geteuid().is_root() {
            return Ok(Self("/run/highwater".into()));
        }
        set("XDG_RUNTIME_DIR").map(|path| Self(path.join("highwater"))).ok_or(RuntimeError::Unknown)
    }

    /// One at a given place.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Makes it, for nobody but the user, if it is not there.
    pub fn make(&self) -> Result<(), RuntimeError> {
        let error = |source| RuntimeError::Io { doing: "make", path: self.0.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.0).map_err(error)?;
        let owner = std::fs::metadata(&self.0).map_err(error)?.uid();
        if owner != rustix::process::geteuid().as_raw() {
            return Err(RuntimeError::NotOwned { path: self.0.clone(), owner });
        }
        Ok(())
    }

    /// A file for a tracked directory, given by its canonical path.
    pub fn file_for(&self, directory: &Path, suffix: &str) -> PathBuf {
        self.0.join(format!("{:016x}.{suffix}", hash(directory)))
    }

    /// The socket for a tracked directory, given by its canonical path.
    pub fn socket_for(&self, directory: &Path) -> PathBuf {
        self.file_for(directory, "socket")
    }
}

/// A name for what belongs to a directory, given by its canonical path: readable, unique, the same for ever.
pub fn directory_key(directory: &Path) -> String {
    let name = directory.file_name().unwrap_or_default().to_string_lossy();
    let plain = |character: &char| character.is_ascii_alphanumeric() || "._-".contains(*character);
    let name: String = name.chars().filter(plain).take(NAME_CHARS_MAX).collect();
    format!("{name}-{:016x}", hash(directory))
}

/// FNV-1a, 64 bits: the same on every machine and in every version. The registration holds the whole path, so that two
/// directories with one hash are noticed and not mixed up.
fn hash(directory: &Path) -> u64 {
    let bytes = directory.as_os_str().as_bytes();
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// The canonical path of a directory, even if the mount on it is dead.
///
/// After a tracker was killed, every look at the directory itself answers `ENOTCONN`, or `ECONNABORTED` if it was under way when the
/// tracker died; its parent is fine.
pub fn canonical_directory(directory: &Path) -> io::Result<PathBuf> {
    match std::fs::canonicalize(directory) {
        Err(error) if matches!(Errno::from_io_error(&error), Some(Errno::NOTCONN | Errno::CONNABORTED)) => {
            let absolute = std::path::absolute(directory)?;
            let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
                return Err(error);
            };
            let path = std::fs::canonicalize(parent)?.join(name);
            match std::fs::read_link(&path) {
                Ok(target) => canonical_directory(&path.parent().unwrap_or(&path).join(target)),
                Err(_) => Ok(path),
            }
        }
        canonical => canonical,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_of_the_files_never_change() {
        // Test vector of the FNV authors: "foobar" is 85944171f73967e8.
        let runtime = RuntimeDirectory::at("/run/highwater");
        assert_eq!(
            runtime.socket_for(Path::new("foobar")),
            Path::new("/run/highwater/85944171f73967e8.socket")
        );
        assert_eq!(
            runtime.file_for(Path::new(""), "json"),
            Path::new("/run/highwater/cbf29ce484222325.json")
        );
    }

    #[test]
    fn the_key_of_a_directory_is_a_plain_name() {
        assert_eq!(directory_key(Path::new("/srv/my data")), "mydata-e9233d807627f9aa");
        assert_eq!(directory_key(Path::new("/")), "-af63a24c860189fe");
        assert_eq!(directory_key(&Path::new("/").join("x".repeat(255))).len(), 64 + 1 + 16);
    }

    #[test]
    fn a_new_runtime_directory_is_for_its_owner_only() {
        let parent = tempfile::tempdir().unwrap();
        let runtime = RuntimeDirectory::at(parent.path().join("a/b"));
        runtime.make().unwrap();
        runtime.make().unwrap();
        assert_eq!(std::fs::metadata(runtime.path()).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn a_symlink_to_a_directory_has_the_directory_s_name() {
        let parent = tempfile::tempdir().unwrap();
        let parent = parent.path().canonicalize().unwrap();
        std::fs::create_dir(parent.join("d")).unwrap();
        std::os::unix::fs::symlink("d", parent.join("l")).unwrap();
        assert_eq!(canonical_directory(&parent.join("l/../l/.")).unwrap(), parent.join("d"));
    }
}
