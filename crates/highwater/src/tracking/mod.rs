//! Tracking a directory: from the checks before it to the clean stop.
//!
//! The order at the start is the order in which a failure leaves nothing behind:
//!
//! 1. the directory is looked at, and locked against another tracker of it;
//! 2. the registration is written, so that a tracker above or below that starts at the same time sees it, and then the
//!    others' are looked at: of two that start at once exactly one gives way;
//! 3. the state is opened and locked;
//! 4. a dead mount is taken away; from here until 6 a change would not be seen, so nothing slow is in between;
//! 5. the volume is opened: recovery;
//! 6. the directory is covered: from here on every change waits until 7, and none is missed;
//! 7. the tracker starts; 8. the socket is served.
//!
//! Each step is undone by dropping what it gave, in reverse order. A killed tracker leaves the dead mount (whose state says
//! that nothing went by it), the registration and the socket, which count for nothing without their process.
//!
//! **A panic aborts the process.** A tracker that has lost a thread could hand out an answer that looks whole and is not
//! (G5), or leave a writer waiting for ever. A mount then answers `ENOTCONN`, nothing can be written past it, and the next
//! `highwater track` recovers as after a kill.

mod bypass;
mod checks;
pub(crate) mod daemon;
mod engine;
mod state;

use std::path::{Path, PathBuf};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use anyhow::Context;
use highwater_client::{DirectoryLock, Registration, RuntimeDirectory};
use highwater_fuse::{Covered, DeadMount, Stacked};
use highwater_inplace::Fanotify;
use highwater_inplace::barrier::FilesystemBarrier;
use highwater_journal::Directory;
use highwater_tracker::{Config, Durability, Opening, Tracker, VolumeFacts};

use crate::exit::{Exit, Failure};
use crate::quote::quote_path;
use crate::server::{Limits, Server, Stop, Volume};
use engine::{Engine, Mount, Source};

/// What is to be tracked, and how.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) directory: PathBuf,
    pub(crate) state: Option<PathBuf>,
    pub(crate) config: Config,
    pub(crate) passthrough: bool,
    pub(crate) source: SourceChoice,
    pub(crate) barrier: BarrierKind,
}

/// What is to see the changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceChoice {
    /// The directory is mounted over itself.
    Fuse,
    /// The directory is watched in place.
    Fanotify,
    /// The directory is watched in place if it can be, else mounted over itself.
    InPlaceIfPossible,
}

/// What waits for the writes in flight, for a source in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BarrierKind {
    /// BPF looks at all tasks, and holds nobody up.
    Bpf,
    /// The filesystem is frozen for a moment.
    Freeze,
}

/// A directory that is being tracked. Dropping it stops, if it can.
pub(crate) struct Tracking {
    // Dropped in this order: no request comes any more, then the volume ends, then the directory is free.
    _server: Server,
    engine: Arc<Engine>,
    registered: Registered,
    opening: Opening,
    /// What else the start has found, for people.
    notes: Vec<String>,
}

/// A registration, and the lock that it needs.
struct Registered {
    runtime: RuntimeDirectory,
    directory: PathBuf,
    _lock: DirectoryLock,
}

impl Drop for Registered {
    fn drop(&mut self) {
        Registration::remove(&self.runtime, &self.directory);
    }
}

impl Tracking {
    /// Starts tracking; when this returns, every change is seen. `ended` is told when tracking has ended without a call
    /// of [`Tracking::stop`].
    pub(crate) fn start(request: &Request, ended: &Sender<Ended>) -> Result<Self, Failure> {
        let directory = checks::directory(&request.directory)?;
        if request.source == SourceChoice::Fuse {
            // Before anything is made. As a second choice it is looked for when it is needed.
            checks::fuse_device(&directory.path)?;
        }
        let runtime = RuntimeDirectory::of_this_user().map_err(anyhow::Error::from)?;
        runtime.make().map_err(anyhow::Error::from)?;
        let path = &directory.path;
        checks::end_of_the_last(&runtime, &directory)?;
        let Some(lock) = DirectoryLock::take(&runtime, path).map_err(anyhow::Error::from)? else {
            return Err(checks::already_tracked(&runtime, path));
        };
        let state_path = match &request.state {
            Some(state) => state.clone(),
            None => state::default_for(path)?,
        };
        let state_path = state::check(&state_path, &directory)?;
        let registration = Registration::of_this_process(path, &state_path);
        registration.write(&runtime).map_err(anyhow::Error::from)?;
        let registered = Registered { runtime, directory: path.clone(), _lock: lock };
        checks::nesting(&registered.runtime, &directory)?;
        let state = state::open(&state_path)?;

        let (watched, passed_over) = watch_in_place(request, &directory)?;
        let mut notes: Vec<String> = passed_over.into_iter().collect();
        let (engine, opening) = match watched {
            Some(fanotify) => track_in_place(request, fanotify, path, &state_path, state, &mut notes)?,
            None => {
                checks::fuse_device(path)?;
                let dead_mount = highwater_fuse::find_dead_mount(path).map_err(anyhow::Error::from)?;
                let covered = cover(request, path, &state_path, state, dead_mount)?;
                bypass::warn(path);
                covered
            }
        };
        let engine = Arc::new(engine);

        let (stopped_send, stopped) = std::sync::mpsc::channel();
        let socket = registered.runtime.socket_for(path);
        let server =
            Server::start(&socket, Arc::clone(&engine) as Arc<dyn Volume>, Limits::default(), stopped_send)
                .inspect_err(|_| drop(engine.stop()))
                .with_context(|| format!("cannot serve the socket {}", socket.display()))?;
        watch(&engine, stopped, ended);
        Ok(Self { _server: server, engine, registered, opening, notes })
    }

    /// The canonical path of the directory.
    pub(crate) fn directory(&self) -> &Path {
        &self.registered.directory
    }

    /// What sees the changes.
    pub(crate) fn source(&self) -> &'static str {
        self.engine.source_name()
    }

    /// Where the state is.
    pub(crate) fn state(&self) -> &Path {
        self.engine.state()
    }

    /// What the start has found, and what the mount does not do as well as it could, for people.
    pub(crate) fn remarks(&self) -> Vec<String> {
        let opening = &self.opening;
        let mut remarks = self.notes.clone();
        if opening.new {
            remarks.push("new volume: the first answer to every consumer is fresh".to_owned());
        }
        if opening.crashed {
            let count = opening.recovered;
            remarks.push(format!(
                "the tracker before this one did not stop cleanly: {count} intents since the stable horizon are handed out again"
            ));
        }
        if opening.catching_up {
            remarks
                .push("the volume was not tracked for some time: a scan finds out what changed".to_owned());
        }
        if let Some(why) = &opening.fresh {
            remarks.push(format!("every consumer is fresh: {why}"));
        }
        remarks.extend(self.engine.losses());
        remarks
    }

    /// Stops cleanly; also if it has been stopped already.
    pub(crate) fn stop(&self) -> Stop {
        self.engine.stop()
    }
}

/// How tracking has ended without a signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// A client has stopped it.
    Stopped,
    /// Somebody else has unmounted the directory.
    Unmounted,
}

/// Opens the volume, covers the directory and starts the tracker.
fn cover(
    request: &Request,
    path: &Path,
    state_path: &Path,
    state: Directory,
    dead_mount: Option<DeadMount>,
) -> Result<(Engine, Opening), Failure> {
    let below = dead_mount.as_ref().filter(|dead| dead.in_place);
    let covered =
        below.map_or_else(|| Covered::open(path), Covered::open_below).map_err(anyhow::Error::from)?;
    let replaces = below.is_some();
    // A dead mount proves that nothing was written unseen to the state of the tracker that died, and to no other.
    let tree = state::Tree::read(&state).map_err(|error| state::explain(error, state_path))?;
    tree.check(&covered.origin()).map_err(|error| state::explain(error, state_path))?;
    let left = dead_mount.as_ref().filter(|dead| dead.complete && tree.has_mounted(&dead.instances));
    let unbroken = left.is_some();
    let instance = state::new_instance();
    let mut mounts = left.map_or_else(Vec::new, |dead| dead.instances.clone());
    mounts.push(instance.clone());
    let boot_id = boot_id()?;
    let mut dead_devices = tree.dead_devices(&boot_id);
    if let Some(dead) = &dead_mount {
        dead_devices.retain(|device| !dead.devices.contains(device));
        dead_devices.extend(&dead.devices);
    }
    state::Tree::store(&state, path, &covered.origin(), &mounts, (&dead_devices, &boot_id))
        .map_err(|error| state::explain(error, state_path))?;
    let facts =
        VolumeFacts { root: covered.root_handle().clone(), directory: path.to_owned(), boot_id, unbroken };
    let filesystem = covered.filesystem().to_owned();
    let (tracker, opening) = Tracker::open(state, facts, request.config.clone())
        .map_err(|error| state::explain(anyhow::Error::from(error), state_path))?;
    let options = highwater_fuse::Options {
        passthrough: request.passthrough,
        // They went on writing past the dead mount, and still do.
        replaces,
        foreign: dead_mount.map(|dead| dead.writers).unwrap_or_default(),
        dead_devices,
        instance,
        ..Default::default()
    };
    let stacked = Stacked::mount(covered, Arc::clone(&tracker), options)
        .map_err(|error| Failure::new(Exit::Failed, anyhow::Error::from(error).context("cannot track")))?;
    let strict = request.config.durability == Durability::Strict;
    tracing::info!(filesystem = %filesystem, strict, "covered {}", path.display());
    Ok((Engine::new(tracker, Source::Stacked(stacked), path, state_path, filesystem), opening))
}

/// Watches the directory, if that is asked for. What is changed before the watch is in the gap since the tracker before this one.
///
/// Where it is only preferred and cannot be done, the reason comes with `None`.
fn watch_in_place(
    request: &Request,
    directory: &checks::Directory,
) -> Result<(Option<Fanotify>, Option<String>), Failure> {
    let path = &directory.path;
    match request.source {
        SourceChoice::Fuse => return Ok((None, None)),
        SourceChoice::Fanotify => checks::no_dead_mount(directory)?,
        SourceChoice::InPlaceIfPossible if directory.is_dead_mount => {
            return Ok((
                None,
                Some("not tracked in place: a tracker with the source fuse was killed here".to_owned()),
            ));
        }
        SourceChoice::InPlaceIfPossible => {}
    }
    let watched = Fanotify::watch(path, |root| match request.barrier {
        BarrierKind::Bpf => {
            let barrier = FilesystemBarrier::new(root).map_err(std::io::Error::other)?;
            Ok(Box::new(barrier))
        }
        BarrierKind::Freeze => Ok(Box::new(highwater_inplace::Freeze::new(root)?)),
    });
    match watched {
        Ok(fanotify) => Ok((Some(fanotify), None)),
        Err(error) if request.source == SourceChoice::InPlaceIfPossible => {
            Ok((None, Some(format!("not tracked in place: {:#}", anyhow::Error::from(error)))))
        }
        Err(error) => Err(cannot_watch(request, path, error)),
    }
}

fn cannot_watch(request: &Request, path: &Path, error: highwater_inplace::OpenError) -> Failure {
    let hint = match error {
        highwater_inplace::OpenError::Unfit { .. } => "; use --source fuse",
        highwater_inplace::OpenError::NotRoot => "; run as root, or use --source fuse",
        highwater_inplace::OpenError::Barrier { .. } if request.barrier == BarrierKind::Bpf => {
            "; use --barrier freeze, which holds writers up for a moment, or --source fuse"
        }
        highwater_inplace::OpenError::Barrier { .. } => "; use --barrier bpf, or --source fuse",
        _ => "",
    };
    let error = anyhow::Error::from(error);
    Failure::text(Exit::Failed, format!("cannot track {}: {error:#}{hint}", quote_path(path)))
}

/// Opens the volume of a directory that is watched already, and starts the tracker.
fn track_in_place(
    request: &Request,
    mut fanotify: Fanotify,
    path: &Path,
    state_path: &Path,
    state: Directory,
    notes: &mut Vec<String>,
) -> Result<(Engine, Opening), Failure> {
    let origin = Covered::open(path).map_err(anyhow::Error::from)?.origin();
    let tree = state::Tree::read(&state).map_err(|error| state::explain(error, state_path))?;
    tree.check(&origin).map_err(|error| state::explain(error, state_path))?;
    let boot_id = boot_id()?;
    // What happens from now on is seen, so that the question may take its time: it syncs. Not without something to compare with.
    let is_at = |left: &[u8]| fanotify.tree_version().is_some_and(|version| version.as_bytes() == left);
    let unbroken = tree.left_at().is_some_and(is_at);
    // No mount: one that a tracker before this one has left proves nothing any more.
    state::Tree::store(&state, path, &origin, &[], (&tree.dead_devices(&boot_id), &boot_id))
        .map_err(|error| state::explain(error, state_path))?;
    let root = fanotify.root_handle().clone();
    if unbroken {
        notes.push("nothing has changed since the volume was tracked last: no scan".to_owned());
    }
    let facts = VolumeFacts { root, directory: path.to_owned(), boot_id, unbroken };
    let (tracker, opening) = Tracker::open(state, facts, request.config.clone())
        .map_err(|error| state::explain(anyhow::Error::from(error), state_path))?;
    let mount = Mount::of(path).with_context(|| format!("cannot find the mount of {}", quote_path(path)))?;
    fanotify.start(&tracker).map_err(|error| cannot_watch(request, path, error))?;
    let filesystem = mount.filesystem;
    let source = Source::InPlace { fanotify: Mutex::new(fanotify), mount_id: mount.id };
    Ok((Engine::new(tracker, source, path, state_path, filesystem), opening))
}

fn boot_id() -> Result<String, Failure> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("cannot read the boot id")?;
    Ok(id.trim().to_owned())
}

/// Tells the owner of the process when tracking ends from elsewhere.
fn watch(engine: &Arc<Engine>, stopped: std::sync::mpsc::Receiver<()>, ended: &Sender<Ended>) {
    let tell = ended.clone();
    std::thread::spawn(move || {
        if stopped.recv().is_ok() {
            // The owner may have ended already.
            let _ = tell.send(Ended::Stopped);
        }
    });
    let (engine, tell) = (Arc::clone(engine), ended.clone());
    std::thread::spawn(move || {
        match engine.wait_for_unmount() {
            // In the middle of our own stop the mount goes first: then there is somebody who knows.
            Ok(()) if !engine.is_being_stopped() => {
                let _ = tell.send(Ended::Unmounted);
            }
            Ok(()) => {}
            Err(error) => tracing::warn!("cannot watch the mounts: {error}"),
        }
    });
}

/// From here on a panic in any thread ends the process, see the module's description.
pub(crate) fn abort_on_panic() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        crate::cli::complain(
            "this is a bug in highwater; the tracker ends at once, so that no change is lost without a word. \
             `highwater track` recovers; until then a directory that is mounted over answers `Transport endpoint is not connected`",
        );
        std::process::abort();
    }));
}
