//! The blocking client of one volume.
//!
//! Invariant: an answer is handed to the caller whole or not at all, so that a cursor is never kept for changes that did
//! not arrive.

use std::fmt;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::Change;
use crate::frame::{FrameError, FrameReader, REPLY_BYTES_MAX, read_message, write_frame};
use crate::message::{
    AckCall, BarrierCall, BarrierReply, Call, ChangesCall, ChangesReply, Consumer, ConsumerCall,
    ConsumersReply, Empty, INTERFACE, Status,
};
use crate::mounts::stacked_mounts;
use crate::refusal::Refusal;
use crate::registration::{Registration, RegistrationError};
use crate::runtime::{RuntimeDirectory, RuntimeError, canonical_directory};

/// A tracker that does not even take a request for so long is taken for dead.
const SEND_TIMEOUT: Duration = Duration::from_secs(30);

/// How long after a deadline the tracker may take to say so, on a busy machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Where an answer begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    /// A cursor that the caller kept.
    Cursor(String),
    /// The stored cursor of a consumer.
    Consumer(String),
    /// Now: a cursor and no changes.
    Now,
    /// No earlier cursor: the answer is fresh.
    Nothing,
}

impl Since {
    fn to_call(&self) -> ChangesCall {
        let mut call = ChangesCall::default();
        match self {
            Self::Cursor(cursor) => call.since = Some(cursor.clone()),
            Self::Consumer(name) => call.consumer = Some(name.clone()),
            Self::Now => call.now = Some(true),
            Self::Nothing => {}
        }
        call
    }
}

/// A whole answer to "what changed since".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Everything through here has been handed out by this answer. Keep it once the changes have been used, durably.
    pub cursor: String,
    /// Where it begins; `None` if fresh or now.
    pub since: Option<String>,
    /// Not a difference: take everything.
    pub fresh: bool,
    /// Why it is fresh.
    pub reason: Option<String>,
    /// The lines, in the order in which they are safe to apply.
    pub changes: Vec<Change>,
}

/// A connection to the tracker of one volume.
#[derive(Debug)]
pub struct Volume {
    reader: FrameReader<UnixStream>,
    writer: UnixStream,
}

/// The directory is not tracked.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NotTracked {
    /// The directory.
    pub directory: PathBuf,
    /// A tracked directory that it is in.
    pub inside: Option<PathBuf>,
    /// The tracker that died without a stop.
    pub died: Option<u32>,
    /// The stacked filesystem is mounted there.
    pub mounted: bool,
}

impl fmt::Display for NotTracked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let directory = self.directory.display();
        write!(f, "{directory} is not tracked")?;
        match (&self.inside, self.died) {
            (Some(inside), _) => {
                let inside = inside.display();
                write!(f, "; it is inside {inside}, which is: name that directory")
            }
            (None, Some(pid)) => write!(
                f,
                ": its tracker (pid {pid}) ended without a stop; `highwater track {directory}` recovers it and goes on"
            ),
            (None, None) if self.mounted => write!(
                f,
                " by you, but a tracker has mounted it: ask as the user that started it (and with its HIGHWATER_RUNTIME_DIR)"
            ),
            (None, None) => write!(f, "; `highwater track {directory}` starts that"),
        }
    }
}

/// The tracker of a directory cannot be reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The directory is not tracked.
    #[error("{0}")]
    NotTracked(Box<NotTracked>),
    /// The directory cannot be looked at.
    #[error("cannot find the directory {directory}", directory = directory.display())]
    Directory {
        /// As it was given.
        directory: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is no place where sockets could be.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    /// The registration cannot be read.
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    /// The socket is there and does not answer.
    #[error("cannot connect to the tracker's socket {socket}", socket = socket.display())]
    Socket {
        /// Where it is.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A call that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The tracker said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The tracker has gone away during the call.
    #[error("the tracker has closed the connection before its answer was complete")]
    Closed,
    /// The tracker does not even say that the deadline has passed. The connection is of no use any more.
    #[error("the tracker does not answer: is its process stopped?")]
    Silent,
    /// Sending or receiving failed.
    #[error("cannot talk to the tracker")]
    Frame(#[from] FrameError),
    /// The replies are parts of more than one answer: together they are none.
    #[error("the tracker has mixed up two answers")]
    Mixed,
    /// What came is not an answer to the call.
    #[error("cannot make sense of the tracker's answer")]
    Answer(#[from] serde_json::Error),
}

/// A reply, told apart from an error reply and not looked into.
#[derive(Deserialize)]
struct RawReply<'a> {
    error: Option<String>,
    #[serde(borrow)]
    parameters: Option<&'a RawValue>,
    #[serde(default)]
    continues: bool,
}

impl Volume {
    /// Connects to the tracker of a directory, which is to be the tracked directory itself.
    pub fn connect(directory: &Path) -> Result<Self, ConnectError> {
        Self::connect_in(&RuntimeDirectory::of_this_user()?, directory)
    }

    /// Like [`Volume::connect`], for a given runtime directory.
    pub fn connect_in(runtime: &RuntimeDirectory, directory: &Path) -> Result<Self, ConnectError> {
        let canonical = canonical_directory(directory)
            .map_err(|source| ConnectError::Directory { directory: directory.to_owned(), source })?;
        let registration = Registration::read(runtime, &canonical)?;
        let not_tracked = |died| -> Result<Self, ConnectError> {
            let all = Registration::list(runtime)?;
            let inside = all.into_iter().filter(|other| other.directory != canonical && other.is_alive());
            let mounted =
                stacked_mounts().is_ok_and(|all| all.iter().any(|mount| mount.directory == canonical));
            Err(ConnectError::NotTracked(Box::new(NotTracked {
                inside: inside.map(|other| other.directory).find(|other| canonical.starts_with(other)),
                directory: canonical.clone(),
                died,
                mounted,
            })))
        };
        match registration {
            None => not_tracked(None),
            Some(registration) if !registration.is_alive() => not_tracked(Some(registration.pid)),
            Some(_) => {
                let socket = runtime.socket_for(&canonical);
                match Self::connect_socket(&socket) {
                    Ok(volume) => Ok(volume),
                    // The tracker has just gone.
                    Err(error)
                        if matches!(
                            error.kind(),
                            io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
                        ) =>
                    {
                        not_tracked(None)
                    }
                    Err(source) => Err(ConnectError::Socket { socket, source }),
                }
            }
        }
    }

    /// Connects to a socket.
    pub fn connect_socket(socket: &Path) -> io::Result<Self> {
        let writer = UnixStream::connect(socket)?;
        writer.set_write_timeout(Some(SEND_TIMEOUT))?;
        Ok(Self { reader: FrameReader::new(writer.try_clone()?, REPLY_BYTES_MAX), writer })
    }

    /// The state of the volume.
    pub fn status(&mut self) -> Result<Status, CallError> {
        self.call("Status", &Empty {})
    }

    /// The write barrier and a checkpoint: returns the cursor once every operation that began before the call has ended.
    ///
    /// Without a deadline it waits as long as the longest operation takes.
    pub fn barrier(&mut self, deadline: Option<Duration>) -> Result<String, CallError> {
        let call = BarrierCall { deadline_ms: deadline.map(milliseconds) };
        self.within(deadline, |volume| Ok(volume.call::<BarrierReply>("Barrier", &call)?.cursor))
    }

    /// A checkpoint, and what changed since.
    ///
    /// Without a deadline it waits as long as the longest operation takes. The deadline is the checkpoint's: an answer that has begun to
    /// come is waited for.
    pub fn changes(&mut self, since: &Since, deadline: Option<Duration>) -> Result<Changes, CallError> {
        let call = ChangesCall { deadline_ms: deadline.map(milliseconds), ..since.to_call() };
        self.within(deadline, |volume| {
            volume.send("Changes", &call, true)?;
            volume.receive_changes()
        })
    }

    /// Batch after batch, for ever.
    pub fn follow(mut self, since: &Since) -> Result<Follow, CallError> {
        self.send("Follow", &since.to_call(), true)?;
        Ok(Follow { volume: self })
    }

    /// Stores the cursor of a consumer, durably.
    pub fn ack(&mut self, consumer: &str, cursor: &str) -> Result<(), CallError> {
        let call = AckCall { consumer: consumer.to_owned(), cursor: cursor.to_owned() };
        self.call::<Empty>("Ack", &call).map(drop)
    }

    /// Adds a consumer.
    pub fn add_consumer(&mut self, name: &str) -> Result<(), CallError> {
        self.call::<Empty>("AddConsumer", &ConsumerCall { name: name.to_owned() }).map(drop)
    }

    /// Removes a consumer.
    pub fn remove_consumer(&mut self, name: &str) -> Result<(), CallError> {
        self.call::<Empty>("RemoveConsumer", &ConsumerCall { name: name.to_owned() }).map(drop)
    }

    /// All consumers, by name.
    pub fn consumers(&mut self) -> Result<Vec<Consumer>, CallError> {
        Ok(self.call::<ConsumersReply>("ListConsumers", &Empty {})?.consumers)
    }

    /// Stops the tracker; returns when it has unmounted and closed its journal.
    pub fn stop(&mut self) -> Result<(), CallError> {
        self.call::<Empty>("Stop", &Empty {}).map(drop)
    }

    /// A tracker that keeps the deadline answers in time; one that is stopped does not.
    fn within<T>(
        &mut self,
        deadline: Option<Duration>,
        call: impl FnOnce(&mut Self) -> Result<T, CallError>,
    ) -> Result<T, CallError> {
        let Some(deadline) = deadline else { return call(self) };
        let set =
            |timeout| self.writer.set_read_timeout(timeout).map_err(|error| CallError::Frame(error.into()));
        set(deadline.checked_add(ANSWER_TIMEOUT))?;
        let answer = call(self);
        self.writer.set_read_timeout(None).map_err(|error| CallError::Frame(error.into()))?;
        match answer {
            Err(CallError::Frame(FrameError::Io(error)))
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                Err(CallError::Silent)
            }
            answer => answer,
        }
    }

    fn call<R: DeserializeOwned>(
        &mut self,
        method: &str,
        parameters: &impl Serialize,
    ) -> Result<R, CallError> {
        self.send(method, parameters, false)?;
        Ok(self.receive()?.0)
    }

    fn send(&mut self, method: &str, parameters: &impl Serialize, more: bool) -> Result<(), CallError> {
        let method = format!("{INTERFACE}.{method}");
        let call = Call { method, parameters: Some(parameters), more, oneway: false, upgrade: false };
        match write_frame(&mut self.writer, &call) {
            Ok(()) => Ok(()),
            // A tracker that takes no more connections says so and hangs up without reading.
            Err(error) => match self.receive::<Empty>() {
                Err(CallError::Refused(refusal)) => Err(refusal.into()),
                _ => Err(CallError::Frame(error.into())),
            },
        }
    }

    fn receive<R: DeserializeOwned>(&mut self) -> Result<(R, bool), CallError> {
        let frame = self.reader.next_frame()?.ok_or(CallError::Closed)?;
        let reply: RawReply<'_> = read_message(frame)?;
        let parameters = reply.parameters.map(RawValue::get);
        if let Some(error) = reply.error {
            let parameters = parameters.map(serde_json::from_str).transpose()?;
            return Err(Refusal::from_reply(error, parameters).into());
        }
        Ok((read_message(parameters.unwrap_or("{}").as_bytes())?, reply.continues))
    }

    fn receive_changes(&mut self) -> Result<Changes, CallError> {
        let (first, mut continues) = self.receive::<ChangesReply>()?;
        let mut complete = first.complete;
        let mut changes = first.changes;
        while !complete {
            if !continues {
                return Err(CallError::Closed);
            }
            let (next, next_continues) = self.receive::<ChangesReply>()?;
            if (&next.cursor, &next.since, next.fresh) != (&first.cursor, &first.since, first.fresh) {
                return Err(CallError::Mixed);
            }
            changes.extend(next.changes);
            (complete, continues) = (next.complete, next_continues);
        }
        Ok(Changes {
            cursor: first.cursor,
            since: first.since,
            fresh: first.fresh,
            reason: first.reason,
            changes,
        })
    }
}

/// A time that is too long to be told is told as the longest.
fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// A stream of batches, each of which begins where the one before ended.
#[derive(Debug)]
pub struct Follow {
    volume: Volume,
}

impl Follow {
    /// The next batch: the first comes at once, be it empty, a later one when something has changed.
    pub fn next_batch(&mut self) -> Result<Changes, CallError> {
        self.volume.receive_changes()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A tracker that answers whatever it is asked with these bytes, and hangs up.
    fn scripted(answer: &'static str) -> (tempfile::TempDir, Volume) {
        let parent = tempfile::tempdir().unwrap();
        let socket = parent.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [1];
            while byte != [0] {
                stream.read_exact(&mut byte).unwrap();
            }
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let volume = Volume::connect_socket(&socket).unwrap();
        (parent, volume)
    }

    #[test]
    fn an_answer_in_several_replies_is_put_together() {
        let (_socket, mut volume) = scripted(concat!(
            r#"{"parameters":{"cursor":"c","since":"s","fresh":false,"changes":[{"path":"a","kind":"deleted","type":"file","usn":1}],"complete":false},"continues":true}"#,
            "\0",
            r#"{"parameters":{"cursor":"c","since":"s","fresh":false,"changes":[{"path":"b","kind":"deleted","type":"file","usn":2}],"complete":true}}"#,
            "\0"
        ));
        let answer = volume.changes(&Since::Cursor("s".to_owned()), None).unwrap();
        assert_eq!(answer.changes.len(), 2);
        assert_eq!(answer.cursor, "c");
    }

    /// G5: no shorter answer that looks whole.
    #[test]
    fn an_answer_that_is_cut_off_is_an_error_and_not_a_shorter_answer() {
        let (_socket, mut volume) = scripted(concat!(
            r#"{"parameters":{"cursor":"c","since":"s","fresh":false,"changes":[],"complete":false},"continues":true}"#,
            "\0"
        ));
        assert!(matches!(volume.changes(&Since::Nothing, None), Err(CallError::Closed)));
        let (_socket, mut volume) = scripted(concat!(
            r#"{"parameters":{"cursor":"c","since":"s","fresh":false,"changes":[],"complete":false}}"#,
            "\0"
        ));
        assert!(matches!(volume.changes(&Since::Nothing, None), Err(CallError::Closed)));
    }

    /// G5: the cursor of one answer does not stand for the lines of another.
    #[test]
    fn replies_of_two_answers_are_not_put_together() {
        let (_socket, mut volume) = scripted(concat!(
            r#"{"parameters":{"cursor":"d","since":"s","fresh":false,"changes":[],"complete":false},"continues":true}"#,
            "\0",
            r#"{"parameters":{"cursor":"c","since":"s","fresh":false,"changes":[],"complete":true}}"#,
            "\0"
        ));
        assert!(matches!(volume.changes(&Since::Nothing, None), Err(CallError::Mixed)));
    }

    #[test]
    fn an_array_is_no_reply() {
        for answer in ["[null,{\"cursor\":\"c\"},false]\0", "{\"parameters\":[\"c\"]}\0"] {
            let (_socket, mut volume) = scripted(answer);
            assert!(matches!(volume.barrier(None), Err(CallError::Answer(_))), "{answer}");
        }
    }

    #[test]
    fn garbage_and_error_replies_are_told_apart() {
        let (_socket, mut volume) = scripted("hello\0");
        assert!(matches!(volume.status(), Err(CallError::Answer(_))));
        let (_socket, mut volume) = scripted(
            "{\"error\":\"org.varlink.service.MethodNotFound\",\"parameters\":{\"method\":\"x\"}}\0",
        );
        assert!(matches!(volume.stop(), Err(CallError::Refused(Refusal::MethodNotFound { .. }))));
        let (_socket, mut volume) = scripted("");
        assert!(matches!(volume.stop(), Err(CallError::Closed)));
    }

    #[test]
    fn a_directory_without_a_live_tracker_is_not_tracked_and_the_error_says_which_one_is() {
        let parent = tempfile::tempdir().unwrap();
        let parent = parent.path().canonicalize().unwrap();
        let runtime = RuntimeDirectory::at(parent.join("run"));
        runtime.make().unwrap();
        std::fs::create_dir_all(parent.join("tree/sub")).unwrap();
        let connect = |directory: &str| match Volume::connect_in(&runtime, &parent.join(directory)) {
            Err(ConnectError::NotTracked(error)) => *error,
            other => panic!("{other:?}"),
        };
        assert_eq!(connect("tree").died, None);

        let alive = Registration::of_this_process(&parent.join("tree"), Path::new("/state"));
        alive.write(&runtime).unwrap();
        assert_eq!(connect("tree/sub").inside, Some(parent.join("tree")));
        // Alive, but the socket is not there (any more).
        assert_eq!(connect("tree").died, None);

        Registration { start_ticks: 1, ..alive }.write(&runtime).unwrap();
        assert_eq!(connect("tree").died, Some(std::process::id()));
        assert_eq!(connect("tree/sub").inside, None);
        assert!(connect("tree").to_string().contains("ended without a stop"));
    }
}
