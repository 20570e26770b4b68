//! The socket of a volume: bounded, and for its owner only.
//!
//! One thread accepts, one thread serves each connection, at most [`Limits::connections_max`] of them. Whatever a client
//! does (sends garbage, sends without end, hangs, does not read), it costs one of these threads and a bounded buffer for a
//! bounded time, and never holds a lock of the tracker.
//!
//! Who may connect: root and the user of the tracker's process, by the credentials that the kernel gives for the socket
//! (G7); its mode is 0600 besides.

mod call;
mod connection;
mod volume;

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use highwater_client::Refusal;
use rustix::net::sockopt::socket_peercred;

pub use volume::{Answer, Since, Stop, Volume};

/// What a client may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at a time. Each is a thread; more than a few dozen at once is a client that forgets to close.
    pub connections_max: usize,
    /// How long a connection may be silent between requests, or inside one.
    pub idle: Duration,
    /// How long a client may leave a reply unread. The kernel buffers some 200 KiB of it.
    pub unread: Duration,
    /// The shortest time between two batches of `Follow`: so many checkpoints a second can one follower cause.
    pub batches_every: Duration,
    /// How long `Follow` waits for a record before it makes a checkpoint all the same: what is written through a mapping
    /// or past the source is seen at checkpoints only. One at which nothing has changed costs no write.
    pub checkpoint_every: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 128,
            idle: Duration::from_secs(300),
            unread: Duration::from_secs(60),
            batches_every: Duration::from_millis(100),
            checkpoint_every: Duration::from_secs(1),
        }
    }
}

/// A socket that is being served.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    listener: UnixListener,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    socket: PathBuf,
    limits: Limits,
    stopping: AtomicBool,
    /// The connections that are being served, to end them at a stop.
    connections: Mutex<HashMap<u64, UnixStream>>,
    /// Told when a client has had the answer to its `Stop`.
    stopped: Sender<()>,
}

impl Server {
    /// Serves a volume at a path, from now on.
    ///
    /// A socket that is there already is replaced: the caller holds the lock of the directory. `stopped` is told once a
    /// client has stopped the volume and has been answered.
    pub fn start(
        socket: &Path,
        volume: Arc<dyn Volume>,
        limits: Limits,
        stopped: Sender<()>,
    ) -> io::Result<Self> {
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(socket)?;
        // The runtime directory is private, so that nobody comes between; the credentials are checked besides.
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
        let shared = Arc::new(Shared {
            socket: socket.to_owned(),
            limits,
            stopping: AtomicBool::new(false),
            connections: Mutex::default(),
            stopped,
        });
        let accepting = std::thread::Builder::new().name("accept".to_owned()).spawn({
            let (listener, shared) = (listener.try_clone()?, Arc::clone(&shared));
            move || accept(&listener, &shared, &volume)
        })?;
        Ok(Self { shared, listener, accepting: Some(accepting) })
    }
}

impl Drop for Server {
    /// Takes no further connection, cuts those that are there and removes the socket.
    fn drop(&mut self) {
        // ORDERING: the thread that is woken below has to see this; the socket's own lock orders them.
        self.shared.stopping.store(true, Ordering::SeqCst);
        // It wakes who waits for a connection, as one would by itself; but that can fail, if the path is gone or there are no descriptors.
        match rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Read) {
            Ok(()) => {
                // It does not panic; and if it did, there is nothing left to stop.
                let _ = self.accepting.take().map(JoinHandle::join);
            }
            Err(errno) => tracing::warn!(%errno, "cannot end the socket; it ends with the process"),
        }
        for stream in self.shared.connections().values() {
            // Already closed by the client is as good.
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Its absence is no harm either.
        drop(std::fs::remove_file(&self.shared.socket));
    }
}

impl Shared {
    fn connections(&self) -> std::sync::MutexGuard<'_, HashMap<u64, UnixStream>> {
        // A map of streams is whole at every moment.
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn accept(listener: &UnixListener, shared: &Arc<Shared>, volume: &Arc<dyn Volume>) {
    /// Out of file descriptors or memory: some connection has to end first.
    const RETRY: Duration = Duration::from_millis(100);

    let mut number = 0;
    loop {
        let stream = match listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            // ORDERING: see the store in `drop`.
            Err(_) if shared.stopping.load(Ordering::SeqCst) => return,
            Err(error) => {
                tracing::warn!("cannot take a connection: {error}");
                std::thread::sleep(RETRY);
                continue;
            }
        };
        // ORDERING: as above.
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        number += 1;
        if let Err(refusal) = admit(&stream, shared, number) {
            connection::refuse(stream, &refusal);
            continue;
        }
        let spawned = std::thread::Builder::new().name(format!("connection {number}")).spawn({
            let (shared, volume) = (Arc::clone(shared), Arc::clone(volume));
            move || {
                connection::serve(stream, &*volume, &shared.limits, &shared.stopped);
                shared.connections().remove(&number);
            }
        });
        if let Err(error) = spawned {
            tracing::warn!("cannot serve a connection: {error}");
            shared.connections().remove(&number);
        }
    }
}

/// Lets a client in, and remembers its connection.
fn admit(stream: &UnixStream, shared: &Shared, number: u64) -> Result<(), Refusal> {
    let peer = socket_peercred(stream).map_err(|_| Refusal::PermissionDenied {})?;
    if !peer.uid.is_root() && peer.uid != rustix::process::geteuid() {
        tracing::warn!("refused a connection of user {}", peer.uid.as_raw());
        return Err(Refusal::PermissionDenied {});
    }
    let mut connections = shared.connections();
    let connections_max = shared.limits.connections_max;
    if connections.len() >= connections_max {
        let connections_max = u64::try_from(connections_max).unwrap_or(u64::MAX);
        return Err(Refusal::TooManyConnections { connections_max });
    }
    let copy = stream.try_clone().map_err(|error| Refusal::SourceFailed { message: error.to_string() })?;
    connections.insert(number, copy);
    Ok(())
}
