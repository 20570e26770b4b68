//! The volume that the socket serves: the tracker and its source.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use highwater_client::{Change, Consumer, Holder, Kind, ObjectType, Refusal, Status, stacked_mounts};
use highwater_fuse::{Stacked, UnmountError};
use highwater_tracker::{self as tracker, Cursor, Durability, LineKind, RequestError, Tracker};
use rustix::event::{PollFd, PollFlags, poll};

use crate::server::{Answer, Since, Stop, Volume};

/// Another user than root cannot look into most processes, and each is a loss of its own.
const LOSSES_TOLD_MAX: usize = 6;

/// A tracked directory.
pub(super) struct Engine {
    tracker: Arc<Tracker>,
    stacked: Stacked,
    directory: PathBuf,
    state: PathBuf,
    filesystem: &'static str,
    /// How the stop went, once it has been done.
    stopped: Mutex<Option<Result<(), Refusal>>>,
}

impl Engine {
    pub(super) fn new(
        tracker: Arc<Tracker>,
        stacked: Stacked,
        directory: &Path,
        state: &Path,
        filesystem: &'static str,
    ) -> Self {
        let (directory, state) = (directory.to_owned(), state.to_owned());
        Self { tracker, stacked, directory, state, filesystem, stopped: Mutex::new(None) }
    }

    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    /// What is lost with this mount, one sentence each; of many the first ones.
    pub(super) fn losses(&self) -> Vec<String> {
        let all = &self.stacked.report().losses;
        let mut told: Vec<String> = all.iter().take(LOSSES_TOLD_MAX).cloned().collect();
        if all.len() > told.len() {
            told.push(format!("and {} more like that", all.len() - told.len()));
        }
        told
    }

    /// Returns when the directory is not covered any more, by whomever that was done.
    ///
    /// The kernel tells of each change of the mounts by an exceptional condition of `/proc/self/mountinfo` (proc(5)).
    pub(super) fn wait_for_unmount(&self) -> std::io::Result<()> {
        let mounts = std::fs::File::open("/proc/self/mountinfo")?;
        while stacked_mounts()?.iter().any(|mount| mount.directory == self.directory) {
            let mut events = [PollFd::new(&mounts, PollFlags::PRI | PollFlags::ERR)];
            match poll(&mut events, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
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
        let data =
            if self.stacked.is_passthrough() { "native speed (passthrough)" } else { "through the tracker" };
        let mut details = std::collections::BTreeMap::from([
            ("data".to_owned(), data.to_owned()),
            ("filesystem".to_owned(), self.filesystem.to_owned()),
        ]);
        if !losses.is_empty() {
            details.insert("note".to_owned(), losses.join("; "));
        }
        Status {
            source: "fuse".to_owned(),
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
        match self.stacked.unmount() {
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
        let ended = self.tracker.stop().map_err(|error| Refusal::StopFailed {
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
        RequestError::Stopping => Refusal::Stopping {},
        error => Refusal::SourceFailed { message: causes(&error) },
    }
}

/// An error and its causes on one line.
fn causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
