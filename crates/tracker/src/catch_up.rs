//! The catch-up: the scan that turns a gap into changes.
//!
//! Walks the tree below the source with a few threads and reports what has a change time in the gap, while tracking already
//! runs. A change time cannot be set back by a program, so what was written, made, linked or moved in the gap has a new one;
//! and so has every directory that lost or gained a name.
//!
//! - A non-directory is told by the name at which the walk met it. If it is moved meanwhile, the record of that move follows
//!   or precedes in the same period, and the plan knows both.
//! - A directory is told as `rescan`. If its parent was changed too, it may have been moved there as a whole: then recursively,
//!   since a consumer compares by name and could hold another directory of that name.
//!
//! Before the walk, the tracked filesystem is synced: what was written while nobody tracked has no intent, and a consumer that
//! copies it and acks could lose it in a crash without a word. A new volume has no gap to walk, but is synced for that reason.
//!
//! What fails on the way makes consumers fresh.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use highwater_journal::Storage;
use parking_lot::{Condvar, Mutex};

use crate::change::{ObjectType, Place};
use crate::handle::FileHandle;
use crate::record::Body;
use crate::source::{Entry, Source};
use crate::tracker::Shared;

/// How far the clocks of the tracker and of the filesystem, or a clock that is being corrected, may be apart.
pub(crate) const CLOCK_SLACK: Duration = Duration::from_secs(3);

/// More threads than this do not make a walk faster on the devices that were measured.
const THREADS: usize = 4;

/// The directories that wait to be walked.
#[derive(Debug, Default)]
struct Queue {
    /// With each: whether it changed in the gap.
    waiting: Vec<(FileHandle, bool)>,
    /// Walks under way, which may add more.
    busy: usize,
}

struct Walk {
    queue: Mutex<Queue>,
    more: Condvar,
    is_over: AtomicBool,
    failure: Mutex<Option<io::Error>>,
    began_ns: i128,
    /// The only files that have to be looked at, if that could be found out beforehand. What is changed later is seen by the source.
    changed: Option<HashSet<u64>>,
}

impl<S: Storage> Shared<S> {
    /// Begins the catch-up on threads of its own. Checkpoints wait for its end. `None`: there is no gap to walk for.
    pub(crate) fn begin_catch_up(self: &Arc<Self>, began_ns: Option<u64>) {
        self.checkpoints.begin_catch_up();
        if self.config.driver.is_some() {
            // It runs when it is asked to.
            *self.due_catch_up.lock() = Some(began_ns);
            return;
        }
        let shared = Arc::clone(self);
        let spawned = std::thread::Builder::new().name("catch-up".into()).spawn(move || {
            let result = shared.catch_up(began_ns);
            shared.end_catch_up(result);
        });
        match spawned {
            Ok(thread) => self.threads.lock().push(thread),
            Err(error) => self.end_catch_up(Err(error)),
        }
    }

    pub(crate) fn end_catch_up(&self, result: io::Result<()>) {
        // ORDERING: a flag; the thread that set it joins this one.
        if result.is_err() && self.stopping.load(Ordering::Relaxed) {
            // The record of the gap is in the journal: the next start begins anew.
            self.checkpoints.interrupt_catch_up();
            return;
        }
        if let Err(error) = result {
            tracing::warn!(%error, "the catch-up failed: consumers will be told to take everything");
            let recorded =
                self.log.lock().record_lost(&self.journal, format!("the catch-up scan failed: {error}"));
            self.after_record(recorded);
        }
        self.checkpoints.end_catch_up();
    }

    pub(crate) fn catch_up(&self, began_ns: Option<u64>) -> io::Result<()> {
        let source = Arc::clone(self.source());
        source.sync_filesystem()?;
        let Some(began_ns) = began_ns else { return Ok(()) };
        let walk = Walk {
            queue: Mutex::new(Queue { waiting: vec![(self.facts.root.clone(), true)], busy: 0 }),
            more: Condvar::new(),
            is_over: AtomicBool::new(false),
            failure: Mutex::new(None),
            began_ns: i128::from(began_ns),
            changed: source.changed_since(i128::from(began_ns))?,
        };
        if let Some(root) = source.sample(&self.facts.root)? {
            if root.ctime_ns >= walk.began_ns {
                self.tell_rescan(&*source, &self.facts.root, false);
            } else {
                walk.queue.lock().waiting[0].1 = false;
            }
        }
        if self.config.driver.is_some() {
            self.walk(&walk, &*source);
        } else {
            std::thread::scope(|scope| {
                for _ in 0..THREADS {
                    scope.spawn(|| self.walk(&walk, &*source));
                }
            });
        }
        match walk.failure.into_inner() {
            Some(error) if error.kind() == io::ErrorKind::Unsupported => {
                // G5: a directory that cannot be opened by its handle is not taken for gone.
                self.tell_rescan(&*source, &self.facts.root, true);
                Ok(())
            }
            failure => failure.map_or(Ok(()), Err),
        }
    }

    fn walk(&self, walk: &Walk, source: &dyn Source) {
        while let Some((directory, changed)) = walk.next() {
            // ORDERING: a flag that ends the loops soon.
            if self.stopping.load(Ordering::Relaxed) {
                walk.fail(io::Error::new(io::ErrorKind::Interrupted, "the tracker is stopping"));
            }
            if let Err(error) = self.walk_directory(walk, source, &directory, changed) {
                walk.fail(error);
            }
            walk.done();
        }
    }

    fn walk_directory(
        &self,
        walk: &Walk,
        source: &dyn Source,
        directory: &FileHandle,
        changed: bool,
    ) -> io::Result<()> {
        source.walk(directory, &mut |entry| self.walk_entry(walk, source, directory, changed, entry))?;
        Ok(())
    }

    fn walk_entry(
        &self,
        walk: &Walk,
        source: &dyn Source,
        directory: &FileHandle,
        changed: bool,
        entry: &dyn Entry,
    ) -> io::Result<()> {
        // ORDERING: a figure for `status`.
        self.checkpoints.caught_up_objects.fetch_add(1, Ordering::Relaxed);
        let is_changed = walk.changed.as_ref().is_none_or(|changed| changed.contains(&entry.inode_number()));
        if !is_changed && !entry.may_be_directory() {
            return Ok(());
        }
        let Some(times) = entry.times()? else { return Ok(()) };
        let in_gap = times.ctime_ns >= walk.began_ns;
        if !in_gap && !times.is_directory {
            return Ok(());
        }
        let Some((object, object_type)) = entry.object()? else { return Ok(()) };
        if object_type != ObjectType::Directory {
            let place = Place { parent: directory.clone(), name: entry.name().into() };
            let body = Body::Recovered { object, object_type, places: Some(vec![place]) };
            let recorded = self.log.lock().record_found(&self.journal, source, &[directory], &body);
            self.after_record(recorded);
        } else {
            if in_gap {
                self.tell_rescan(source, &object, changed);
            }
            walk.add(object, in_gap);
        }
        Ok(())
    }
}

impl Walk {
    /// The next directory; `None` when all have been walked.
    fn next(&self) -> Option<(FileHandle, bool)> {
        let mut queue = self.queue.lock();
        loop {
            // ORDERING: a flag that ends the loops soon; it is set under the lock of the queue.
            if self.is_over.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(next) = queue.waiting.pop() {
                queue.busy += 1;
                return Some(next);
            }
            if queue.busy == 0 {
                self.more.notify_all();
                return None;
            }
            self.more.wait(&mut queue);
        }
    }

    fn add(&self, directory: FileHandle, changed: bool) {
        self.queue.lock().waiting.push((directory, changed));
        self.more.notify_one();
    }

    fn done(&self) {
        let mut queue = self.queue.lock();
        queue.busy -= 1;
        if queue.busy == 0 && queue.waiting.is_empty() {
            self.more.notify_all();
        }
    }

    fn fail(&self, error: io::Error) {
        self.failure.lock().get_or_insert(error);
        let _queue = self.queue.lock();
        // ORDERING: see `next`.
        self.is_over.store(true, Ordering::Relaxed);
        self.more.notify_all();
    }
}
