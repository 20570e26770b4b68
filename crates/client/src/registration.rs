//! Which directories are tracked, by whom.
//!
//! A tracker writes its registration once it serves its socket, and removes both when it stops. A killed tracker leaves
//! both behind: a registration counts only while its process is there, told by its id and its start time.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::message::Bytes;
use crate::runtime::RuntimeDirectory;

/// One tracked directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Its canonical path.
    pub directory: PathBuf,
    /// The state directory.
    pub state: PathBuf,
    /// The tracker's process.
    pub pid: u32,
    /// When that process started, clock ticks since boot: tells it from a later process with the same id.
    pub start_ticks: u64,
    /// When tracking started, seconds since 1970.
    pub started_s: u64,
}

/// A registration cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {path}", path = path.display())]
#[non_exhaustive]
pub struct RegistrationError {
    /// `read`, `write`, `lock` or `list`.
    pub doing: &'static str,
    /// Which file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

#[derive(Serialize, Deserialize)]
struct Text {
    directory: Option<String>,
    directory_base64: Option<String>,
    state: Option<String>,
    state_base64: Option<String>,
    pid: u32,
    start_ticks: u64,
    started_s: u64,
}

impl Registration {
    /// Of this process, started tracking now.
    pub fn of_this_process(directory: &Path, state: &Path) -> Self {
        let pid = std::process::id();
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Self {
            directory: directory.to_owned(),
            state: state.to_owned(),
            pid,
            start_ticks: process_start_ticks(pid).unwrap_or(0),
            started_s: since_epoch.map_or(0, |time| time.as_secs()),
        }
    }

    /// Writes it; a reader sees all of it or nothing.
    pub fn write(&self, runtime: &RuntimeDirectory) -> Result<(), RegistrationError> {
        let path = runtime.file_for(&self.directory, "json");
        let error = |source| RegistrationError { doing: "write", path: path.clone(), source };
        let (directory, directory_base64) = Bytes::to_fields(self.directory.as_os_str().as_bytes());
        let (state, state_base64) = Bytes::to_fields(self.state.as_os_str().as_bytes());
        let text = Text {
            directory,
            directory_base64,
            state,
            state_base64,
            pid: self.pid,
            start_ticks: self.start_ticks,
            started_s: self.started_s,
        };
        let json = serde_json::to_vec(&text).map_err(|cause| error(cause.into()))?;
        let new = runtime.file_for(&self.directory, "json.new");
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)
            .map_err(error)?;
        file.write_all(&json).map_err(error)?;
        std::fs::rename(&new, &path).map_err(error)
    }

    /// Removes the registration of a directory.
    pub fn remove(runtime: &RuntimeDirectory, directory: &Path) {
        // Nothing can be done about a failure, and none does harm: the process that it names will be gone.
        drop(std::fs::remove_file(runtime.file_for(directory, "json")));
    }

    /// The registration of a directory, of a process that may be dead.
    pub fn read(runtime: &RuntimeDirectory, directory: &Path) -> Result<Option<Self>, RegistrationError> {
        Ok(Self::load(&runtime.file_for(directory, "json"))?.filter(|found| found.directory == directory))
    }

    /// All registrations, by directory, also those of dead processes.
    pub fn list(runtime: &RuntimeDirectory) -> Result<Vec<Self>, RegistrationError> {
        let error = |source| RegistrationError { doing: "list", path: runtime.path().to_owned(), source };
        let entries = match std::fs::read_dir(runtime.path()) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(error)?,
        };
        let mut found = Vec::new();
        for entry in entries {
            let path = entry.map_err(error)?.path();
            if path.extension().is_some_and(|suffix| suffix == "json") {
                found.extend(Self::load(&path)?);
            }
        }
        found.sort_by(|a, b| a.directory.cmp(&b.directory));
        Ok(found)
    }

    /// Whether its process is there.
    pub fn is_alive(&self) -> bool {
        process_start_ticks(self.pid) == Some(self.start_ticks)
    }

    /// Waits until its process has ended, with all of its threads and with the locks that it had; false if that takes longer.
    ///
    /// A process that has been killed is not gone yet: it closes its files one by one, and its first thread may be a zombie
    /// while others still run.
    pub fn wait_for_end(&self, patience: Duration) -> io::Result<bool> {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw);
        let Some(Ok(process)) = pid.map(|pid| pidfd_open(pid, PidfdFlags::empty())) else { return Ok(true) };
        // Looked at once we hold it: until then the number could have gone to another process.
        if process_stat(self.pid).is_none_or(|(_, start_ticks)| start_ticks != self.start_ticks) {
            return Ok(true);
        }
        let end = Instant::now() + patience;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn load(path: &Path) -> Result<Option<Self>, RegistrationError> {
        let error = |source| RegistrationError { doing: "read", path: path.to_owned(), source };
        let json = match std::fs::read(path) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            json => json.map_err(error)?,
        };
        let text: Text = serde_json::from_slice(&json).map_err(|cause| error(cause.into()))?;
        let directory = Bytes::to_path(&text.directory, &text.directory_base64);
        let state = Bytes::to_path(&text.state, &text.state_base64);
        let (Some(directory), Some(state)) = (directory, state) else {
            return Err(error(io::ErrorKind::InvalidData.into()));
        };
        Ok(Some(Self {
            directory,
            state,
            pid: text.pid,
            start_ticks: text.start_ticks,
            started_s: text.started_s,
        }))
    }
}

/// Held by the tracker of a directory from before it looks around until it has ended.
#[derive(Debug)]
pub struct DirectoryLock {
    /// Closing it, also by dying, gives the lock back.
    _file: File,
}

impl DirectoryLock {
    /// Takes the lock; `None` if another tracker has it.
    pub fn take(runtime: &RuntimeDirectory, directory: &Path) -> Result<Option<Self>, RegistrationError> {
        let path = runtime.file_for(directory, "lock");
        let error = |source| RegistrationError { doing: "lock", path: path.clone(), source };
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = file.map_err(error)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(error(errno.into())),
        }
    }
}

/// When a process started, clock ticks since boot; `None` if it is not there, or is a zombie.
pub fn process_start_ticks(pid: u32) -> Option<u64> {
    process_stat(pid).filter(|(state, _)| !matches!(state, b'Z' | b'X')).map(|(_, start_ticks)| start_ticks)
}

/// The state of a process, as a letter, and when it started.
fn process_stat(pid: u32) -> Option<(u8, u64)> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may contain anything; the third is the state, the 22nd the start.
    let after_name = &stat[stat.iter().rposition(|byte| *byte == b')')? + 2..];
    let text = std::str::from_utf8(after_name).ok()?;
    let mut fields = text.split(' ');
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_counts_only_while_its_process_is_there() {
        let parent = tempfile::tempdir().unwrap();
        let runtime = RuntimeDirectory::at(parent.path());
        let mine = Registration::of_this_process(Path::new("/srv/x"), Path::new("/state"));
        assert!(mine.is_alive());
        mine.write(&runtime).unwrap();
        assert_eq!(Registration::read(&runtime, Path::new("/srv/x")).unwrap().as_ref(), Some(&mine));
        assert_eq!(Registration::read(&runtime, Path::new("/srv/y")).unwrap(), None);

        let mut child = std::process::Command::new("true").spawn().unwrap();
        let start_ticks = process_start_ticks(child.id()).unwrap_or(1);
        child.wait().unwrap();
        let dead = Registration { pid: child.id(), start_ticks, directory: "/srv/a".into(), ..mine.clone() };
        dead.write(&runtime).unwrap();
        assert!(!dead.is_alive());
        let reused = Registration { start_ticks: mine.start_ticks + 1, ..mine.clone() };
        assert!(!reused.is_alive());
        assert_eq!(Registration::list(&runtime).unwrap(), [dead, mine]);
        Registration::remove(&runtime, Path::new("/srv/x"));
        assert_eq!(Registration::read(&runtime, Path::new("/srv/x")).unwrap(), None);
    }

    #[test]
    fn the_end_of_a_process_is_waited_for_and_of_no_other_with_its_number() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        let start_ticks = process_start_ticks(pid).unwrap();
        let registration = Registration {
            directory: "/srv/a".into(),
            state: "/state".into(),
            pid,
            start_ticks,
            started_s: 0,
        };
        assert!(!registration.wait_for_end(Duration::from_millis(10)).unwrap());
        let other = Registration { start_ticks: start_ticks - 1, ..registration.clone() };
        assert!(other.wait_for_end(Duration::ZERO).unwrap(), "waited for a process that is not meant");
        child.kill().unwrap();
        assert!(registration.wait_for_end(Duration::from_secs(60)).unwrap(), "a zombie has ended");
        child.wait().unwrap();
        assert!(registration.wait_for_end(Duration::ZERO).unwrap());
    }

    #[test]
    fn only_one_tracker_has_the_lock_of_a_directory() {
        let parent = tempfile::tempdir().unwrap();
        let runtime = RuntimeDirectory::at(parent.path());
        let lock = DirectoryLock::take(&runtime, Path::new("/srv/x")).unwrap();
        assert!(lock.is_some());
        assert!(DirectoryLock::take(&runtime, Path::new("/srv/x")).unwrap().is_none());
        assert!(DirectoryLock::take(&runtime, Path::new("/srv/y")).unwrap().is_some());
        drop(lock);
        assert!(DirectoryLock::take(&runtime, Path::new("/srv/x")).unwrap().is_some());
    }
}
