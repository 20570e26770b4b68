//! The volume that the socket serves: the tracker and its source.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use highwater_client::{Change, Consumer, Holder, Kind, ObjectType, Refusal, Status, stacked_mounts};
use highwater_fuse::{Stacked, UnmountError};
use highwater_inplace::Fanotify;
use highwater_tracker::{self as tracker, Cursor, Durability, LineKind, RequestError, Tracker};
use rustix::event::{PollFd, PollFlags, poll};

use super::state::Tree;
use crate::server::{Answer, Since, Stop, Volume};

/// Another user than root cannot look into most processes, and each is a loss of its own.
const LOSSES_TOLD_MAX: usize = 6;

/// What sees the changes.
pub(super) enum Source {
    Stacked(Stacked),
    InPlace { fanotify: Mutex<Fanotify>, mount_id: u64 },
}

impl Source {
    fn name(&self) -> &'static str {
        match self {
            Self::Stacked(_) => "fuse",
            Self::InPlace { .. } => "fanotify",
        }
    }
}

/// A mount, as `/proc/self/mountinfo` lists it.
pub(super) struct Mount {
    pub(super) id: u64,
    pub(super) filesystem: String,
}

impl Mount {
    /// The one that a directory is on.
    pub(super) fn of(directory: &Path) -> std::io::Result<Self> {
        let flags = rustix::fs::AtFlags::NO_AUTOMOUNT;
        let stat = rustix::fs::statx(rustix::fs::CWD, directory, flags, rustix::fs::StatxFlags::MNT_ID)?;
        let found = Self::all()?.find(|mount| mount.id == stat.stx_mnt_id);
        found.ok_or_else(|| std::io::Error::other("it is not in /proc/self/mountinfo"))
    }

    fn all() -> std::io::Result<impl Iterator<Item = Self>> {
        let text = std::fs::read("/proc/self/mountinfo")?;
        let text = String::from_utf8_lossy(&text).into_owned();
        let mounts: Vec<Self> = text.lines().filter_map(Self::parse).collect();
        Ok(mounts.into_iter())
    }

    /// `id parent device root point options ... - filesystem source options`.
    fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split(' ');
        let id = fields.next()?.parse().ok()?;
        let filesystem = fields.skip_while(|field| *field != "-").nth(1)?;
        Some(Self { id, filesystem: filesystem.to_owned() })
    }
}

/// A tracked directory.
pub(super) struct Engine {
    tracker: Arc<Tracker>,
    source: Source,
    directory: PathBuf,
    state: PathBuf,
    filesystem: String,
    /// How the stop went, once it has been done.
    stopped: Mutex<Option<Result<(), Refusal>>>,
}

impl Engine {
    pub(super) fn new(
        tracker: Arc<Tracker>,
        source: Source,
        directory: &Path,
        state: &Path,
        filesystem: String,
    ) -> Self {
        let (directory, state) = (directory.to_owned(), state.to_owned());
        Self { tracker, source, directory, state, filesystem, stopped: Mutex::new(None) }
    }

    pub(super) fn source_name(&self) -> &'static str {
        self.source.name()
    }

    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    /// What is lost with this mount, one sentence each; of many the first ones.
    pub(super) fn losses(&self) -> Vec<String> {
        let all = match &self.source {
            Source::Stacked(stacked) => stacked.report().losses.clone(),
            Source::InPlace { fanotify, .. } => {
                fanotify.lock().unwrap_or_else(PoisonError::into_inner).not_covered()
            }
        };
        let mut told: Vec<String> = all.iter().take(LOSSES_TOLD_MAX).cloned().collect();
        if all.len() > told.len() {
            told.push(format!("and {} more like that", all.len() - told.len()));
        }
        told
    }

    /// Returns when the directory is not covered any more, or what it is on has been unmounted, by whomever that was done.
    ///
    /// The kernel tells of each change of the mounts by an exceptional condition of `/proc/self/mountinfo` (proc(5)).
    pub(super) fn wait_for_unmount(&self) -> std::io::Result<()> {
        let mounts = std::fs::File::open("/proc/self/mountinfo")?;
        while self.is_mounted()? {
            let mut events = [PollFd::new(&mounts, PollFlags::PRI | PollFlags::ERR)];
            match poll(&mut events, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    fn is_mounted(&self) -> std::io::Result<bool> {
        match &self.source {
            Source::Stacked(_) => Ok(stacked_mounts()?.iter().any(|mount| mount.directory == self.directory)),
            Source::InPlace { mount_id, .. } => Ok(Mount::all()?.any(|mount| mount.id == *mount_id)),
        }
    }

    /// What is worth knowing about the source.
    fn details(&self) -> Vec<(&'static str, String)> {
        match &self.source {
            Source::Stacked(stacked) => {
                let data = if stacked.is_passthrough() {
                    "native speed (passthrough)"
                } else {
                    "through the tracker"
                };
                vec![("data", data.to_owned())]
            }
            Source::InPlace { fanotify, .. } => {
                let fanotify = fanotify.lock().unwrap_or_else(PoisonError::into_inner);
                let counters = fanotify.counters();
                vec![
                    ("barrier", format!("{}, last {} us", fanotify.barrier_name(), counters.barrier_us)),
                    ("events", format!("{}, of which {} were outside", counters.events, counters.dropped)),
                    ("carried", format!("{} files open for writing or mapped", counters.open_writers)),
                    (
                        "search",
                        format!("for these by {}, last {} us", fanotify.search_name(), counters.search_us),
                    ),
                    ("resolve", format!("last {} us", counters.resolve_us)),
                ]
            }
        }
    }

    /// The version is that of before the last checkpoint: all that is in it has been recorded. (In this order. Behind the checkpoint there
    /// could be a change in it that is in no record.)
    fn stop_in_place(&self, fanotify: &mut Fanotify) -> Result<(), RequestError> {
        let is_catching_up = self.tracker.status().catching_up.is_some();
        let version = if is_catching_up { None } else { fanotify.version_to_stop_at() };
        let stopped = self.tracker.stop();
        fanotify.end();
        if let (Ok(()), Some(version)) = (&stopped, version)
            && fanotify.counters().open_writers == 0
            && let Err(error) = Tree::store_version(self.tracker.storage(), &version)
        {
            tracing::warn!("the next start will scan the tree: {error:#}");
        }
        stopped
    }

    pub(super) fn is_being_stopped(&self) -> bool {
        self.stopped.try_lock().map_or(true, |stopped| stopped.is_some())
    }

    fn stop_state(&self) -> std::sync::MutexGuard<'_, Option<Result<(), Refusal>>> {
        self.stopped.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Volume for Engine {
    fn status(&self) -> Status {
        let status = self.tracker.status();
        let losses = self.losses();
        let mut details: std::collections::BTreeMap<String, String> =
            self.details().into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        details.insert("filesystem".to_owned(), self.filesystem.clone());
        if !losses.is_empty() {
            details.insert("note".to_owned(), losses.join("; "));
        }
        Status {
            source: self.source.name().to_owned(),
            durability: match status.durability {
                Durability::Strict => "strict".to_owned(),
                Durability::Relaxed => "relaxed".to_owned(),
            },
            pid: std::process::id(),
            fsid: status.fsid,
            journal: status.journal,
            checkpoint: status.checkpoint.0,
            stable: status.stable.0,
            oldest: status.oldest.0,
            sections: status.sections,
            open_writers: status.open_writers,
            records: status.records,
            waits: status.waits,
            journal_bytes: status.journal_bytes,
            last_checkpoint_us: u64::try_from(status.last_checkpoint.as_micros()).unwrap_or(u64::MAX),
            catching_up: status.catching_up,
            failed: status.failed,
            details,
            ..Status::default().with_directories(&self.directory, &self.state)
        }
    }

    fn barrier(&self, deadline: Option<Instant>) -> Result<String, Refusal> {
        self.tracker.barrier(deadline).map(|cursor| cursor.to_string()).map_err(refusal)
    }

    fn changes(&self, since: &Since, deadline: Option<Instant>) -> Result<Answer, Refusal> {
        let since = match since {
            Since::Cursor(text) => tracker::Since::Cursor(cursor(text)?),
            Since::Consumer(name) => tracker::Since::Consumer(name.clone()),
            Since::Now => tracker::Since::Now,
            Since::Nothing => tracker::Since::Nothing,
        };
        let answer = self.tracker.changes(&since, deadline).map_err(refusal)?;
        Ok(Answer {
            cursor: answer.cursor.to_string(),
            since: answer.since.map(|cursor| cursor.to_string()),
            fresh: answer.fresh.map(|reason| reason.to_string()),
            changes: Box::new(answer.lines.into_iter().map(change)),
        })
    }

    fn wait_for_change(&self, after: &str, deadline: Instant) {
        if let Ok(after) = after.parse() {
            self.tracker.wait_for_change(&after, deadline);
        }
    }

    fn ack(&self, consumer: &str, given: &str) -> Result<(), Refusal> {
        self.tracker.ack(consumer, &cursor(given)?).map_err(refusal)
    }

    fn add_consumer(&self, name: &str) -> Result<(), Refusal> {
        self.tracker.add_consumer(name).map_err(refusal)
    }

    fn remove_consumer(&self, name: &str) -> Result<(), Refusal> {
        self.tracker.remove_consumer(name).map_err(refusal)
    }

    fn consumers(&self) -> Vec<Consumer> {
        let consumers = self.tracker.consumers().into_iter();
        consumers
            .map(|one| Consumer { name: one.name, cursor: one.cursor.map(|cursor| cursor.to_string()) })
            .collect()
    }

    fn stop(&self) -> Stop {
        let mut stopped = self.stop_state();
        match &*stopped {
            Some(Ok(())) => return Stop::Clean,
            Some(Err(why)) => return Stop::Unclean(why.clone()),
            None => {}
        }
        let uncovered = match &self.source {
            Source::Stacked(stacked) => stacked.unmount(),
            // Nobody is in the way, and nobody notices.
            Source::InPlace { .. } => Ok(()),
        };
        match uncovered {
            Ok(()) => {}
            Err(UnmountError::Busy { directory, holders }) => {
                let holder = |one: highwater_fuse::Holder| Holder { pid: one.pid, command: one.command };
                let message = format!("{} is busy", directory.display());
                return Stop::NotYet(Refusal::Busy {
                    holders: holders.into_iter().map(holder).collect(),
                    message,
                });
            }
            Err(error) => return Stop::NotYet(Refusal::StopFailed { message: causes(&error) }),
        }
        let ended = match &self.source {
            Source::Stacked(_) => self.tracker.stop(),
            Source::InPlace { fanotify, .. } => {
                self.stop_in_place(&mut fanotify.lock().unwrap_or_else(PoisonError::into_inner))
            }
        };
        let ended = ended.map_err(|error| Refusal::StopFailed {
            message: format!("{}; the next `highwater track` recovers", causes(&error)),
        });
        *stopped = Some(ended.clone());
        match ended {
            Ok(()) => Stop::Clean,
            Err(why) => Stop::Unclean(why),
        }
    }
}

fn cursor(text: &str) -> Result<Cursor, Refusal> {
    text.parse().map_err(|_| Refusal::MalformedCursor { given: text.chars().take(80).collect() })
}

/// A line of the tracker as a message.
fn change(line: tracker::Line) -> Change {
    Change {
        path: line.path,
        kind: match line.kind {
            LineKind::Created => Kind::Created,
            LineKind::Modified => Kind::Modified,
            LineKind::Metadata => Kind::Metadata,
            LineKind::Renamed => Kind::Renamed,
            LineKind::Deleted => Kind::Deleted,
            LineKind::Rescan => Kind::Rescan,
        },
        object_type: match line.object_type {
            tracker::ObjectType::File => ObjectType::File,
            tracker::ObjectType::Directory => ObjectType::Dir,
            tracker::ObjectType::Symlink => ObjectType::Symlink,
            tracker::ObjectType::Other => ObjectType::Other,
        },
        from: line.from,
        recursive: line.recursive,
        recovered: line.recovered,
        nlink: line.nlink,
        usn: line.usn,
    }
}

fn refusal(error: RequestError) -> Refusal {
    match error {
        RequestError::UnknownConsumer { name } => Refusal::UnknownConsumer { name },
        RequestError::ConsumerExists { name } => Refusal::ConsumerExists { name },
        RequestError::BadConsumerName { name } => Refusal::BadConsumerName { name },
        RequestError::TooManyConsumers { max } => {
            Refusal::TooManyConsumers { consumers_max: u64::try_from(max).unwrap_or(u64::MAX) }
        }
        RequestError::AckBackwards { name, acked, given } => {
            Refusal::AckBackwards { name, acked: acked.to_string(), given: given.to_string() }
        }
        RequestError::ForeignCursor { given } => Refusal::ForeignCursor { given: given.to_string() },
        RequestError::Deadline { waiting_for } => Refusal::Deadline { waiting_for: waiting_for.to_string() },
        RequestError::Journal { why } => Refusal::JournalFailed { message: why },
        error @ RequestError::State { .. } => Refusal::StateFailed { message: causes(&error) },
        RequestError::Stopping => Refusal::Stopping {},
        error => Refusal::SourceFailed { message: causes(&error) },
    }
}

/// An error and its causes on one line.
fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn an_ack_that_cannot_be_stored_is_no_failure_of_the_source() {
        let error = RequestError::State {
            doing: "store the consumers",
            source: io::Error::from(io::ErrorKind::StorageFull),
        };
        let refusal = refusal(error);
        assert!(matches!(&refusal, Refusal::StateFailed { .. }), "{refusal:?}");
        assert_eq!(refusal.to_string(), "cannot store the consumers: no storage space");
    }
}
