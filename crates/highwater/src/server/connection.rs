//! One connection: reads requests, calls the volume, writes replies.
//!
//! A frame that is not a call, or too long, is answered with an error and ends the connection: what follows cannot be
//! trusted to begin at a frame.

use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use highwater_client::{
    BarrierReply, Call, Change, ChangesReply, ConsumersReply, DescriptionReply, Empty, FrameError,
    FrameReader, INTERFACE, INTERFACE_DESCRIPTION, InfoReply, REQUEST_BYTES_MAX, Refusal, Reply,
    SERVICE_INTERFACE, SERVICE_INTERFACE_DESCRIPTION, Since, read_message, write_frame,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;
use serde_json::Value;

use super::Limits;
use super::call::{Parameters, invalid, text};
use super::volume::{Answer, Stop, Volume};

/// A reply with changes is sent when it has so many, or so many bytes of paths: well below what clients take in one
/// message (systemd: 16 MiB), and large enough that framing costs nothing.
const CHANGES_PER_REPLY_MAX: usize = 1000;
const PATH_BYTES_PER_REPLY_MAX: usize = 128 * 1024;

/// How long a client that is turned away may take to read why: it is the accepting thread that tells it.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(100);

/// Why a connection ends.
enum End {
    /// The client has what it wants, or is gone.
    Closed,
    /// The client has had the answer to its `Stop`.
    Stopped,
}

/// What a method comes to, unless it is an error reply.
enum Outcome {
    /// Replied, wait for the next request.
    Done,
    /// Replied, and nothing is tracked any more.
    Stopped,
}

/// A request that has no normal reply.
enum Failed {
    /// It is answered with this.
    Refused(Refusal),
    /// It cannot be answered at all.
    Gone,
}

impl From<Refusal> for Failed {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        tracing::debug!("a client did not take its reply: {error}");
        Self::Gone
    }
}

/// Serves a connection until its client has closed it, hangs, or breaks the protocol.
pub(super) fn serve(stream: UnixStream, volume: &dyn Volume, limits: &Limits, stopped: &Sender<()>) {
    match serve_all(stream, volume, limits) {
        Ok(End::Closed) => {}
        // Nobody waits for it: the tracker is ending already.
        Ok(End::Stopped) => drop(stopped.send(())),
        Err(error) => tracing::debug!("a connection failed: {error}"),
    }
}

/// Tells a client that it is not served, and hangs up.
pub(super) fn refuse(mut stream: UnixStream, refusal: &Refusal) {
    if stream.set_write_timeout(Some(REFUSAL_TIMEOUT)).is_ok() {
        // It need not hear it.
        drop(write_frame(&mut stream, refusal));
    }
}

fn serve_all(stream: UnixStream, volume: &dyn Volume, limits: &Limits) -> io::Result<End> {
    stream.set_read_timeout(Some(limits.idle))?;
    stream.set_write_timeout(Some(limits.unread))?;
    let mut client = Client { stream: stream.try_clone()?, limits: *limits, more: false, oneway: false };
    let mut requests = FrameReader::new(stream, REQUEST_BYTES_MAX);
    loop {
        let frame = match requests.next_frame() {
            Ok(Some(frame)) => frame,
            Ok(None) | Err(FrameError::Torn) => return Ok(End::Closed),
            Err(FrameError::TooLong { bytes_max }) => {
                let bytes_max = u64::try_from(bytes_max).unwrap_or(u64::MAX);
                write_frame(&mut client.stream, &Refusal::RequestTooLong { bytes_max })?;
                return Ok(End::Closed);
            }
            Err(FrameError::Io(error))
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) =>
            {
                return Ok(End::Closed);
            }
            Err(error) => return Err(io::Error::other(error)),
        };
        let mut call: Call<Value> = match read_message(frame) {
            Ok(call) => call,
            Err(error) => {
                let message = error.to_string();
                write_frame(&mut client.stream, &Refusal::MalformedRequest { message })?;
                return Ok(End::Closed);
            }
        };
        (client.more, client.oneway) = (call.more, call.oneway);
        match client.answer(&mut call, volume) {
            Ok(Outcome::Done) => {}
            Ok(Outcome::Stopped) => return Ok(End::Stopped),
            Err(Failed::Gone) => return Ok(End::Closed),
            Err(Failed::Refused(_)) if client.oneway => {}
            Err(Failed::Refused(refusal)) => write_frame(&mut client.stream, &refusal)?,
        }
    }
}

/// The client's end, and what it said about replies to the current call.
struct Client {
    stream: UnixStream,
    limits: Limits,
    more: bool,
    oneway: bool,
}

impl Client {
    fn answer(&mut self, call: &mut Call<Value>, volume: &dyn Volume) -> Result<Outcome, Failed> {
        if call.upgrade {
            return Err(invalid("upgrade").into());
        }
        let mut parameters = Parameters::of(call)?;
        let Some((interface, method)) = call.method.rsplit_once('.') else {
            return Err(Refusal::MethodNotFound { method: call.method.clone() }.into());
        };
        match (interface, method) {
            (SERVICE_INTERFACE, "GetInfo") => {
                parameters.end()?;
                self.reply(info())?;
            }
            (SERVICE_INTERFACE, "GetInterfaceDescription") => {
                let interface = parameters.text("interface")?;
                parameters.end()?;
                self.reply(DescriptionReply { description: description(interface)?.to_owned() })?;
            }
            (INTERFACE, "Status") => {
                parameters.end()?;
                self.reply(volume.status())?;
            }
            (INTERFACE, "Barrier") => {
                let deadline = deadline(&mut parameters)?;
                parameters.end()?;
                self.reply(BarrierReply { cursor: volume.barrier(deadline)? })?;
            }
            (INTERFACE, "Changes") => {
                let deadline = deadline(&mut parameters)?;
                let since = since(parameters)?;
                self.changes(volume.changes(&since, deadline)?, false)?;
            }
            (INTERFACE, "Follow") => {
                let since = since(parameters)?;
                self.follow(volume, since)?;
            }
            (INTERFACE, "Ack") => {
                let (consumer, cursor) = (parameters.text("consumer")?, parameters.text("cursor")?);
                parameters.end()?;
                volume.ack(&consumer, &cursor)?;
                self.reply(Empty {})?;
            }
            (INTERFACE, "AddConsumer") => {
                let name = parameters.text("name")?;
                parameters.end()?;
                volume.add_consumer(&name)?;
                self.reply(Empty {})?;
            }
            (INTERFACE, "RemoveConsumer") => {
                let name = parameters.text("name")?;
                parameters.end()?;
                volume.remove_consumer(&name)?;
                self.reply(Empty {})?;
            }
            (INTERFACE, "ListConsumers") => {
                parameters.end()?;
                self.reply(ConsumersReply { consumers: volume.consumers() })?;
            }
            (INTERFACE, "Stop") => {
                parameters.end()?;
                // Stopped is stopped, also if nobody hears it.
                match volume.stop() {
                    Stop::Clean => drop(self.reply(Empty {})),
                    Stop::Unclean(why) if !self.oneway => drop(write_frame(&mut self.stream, &why)),
                    Stop::Unclean(_) => {}
                    Stop::NotYet(why) => return Err(why.into()),
                }
                return Ok(Outcome::Stopped);
            }
            (SERVICE_INTERFACE | INTERFACE, _) => {
                return Err(Refusal::MethodNotFound { method: call.method.clone() }.into());
            }
            _ => return Err(Refusal::InterfaceNotFound { interface: interface.to_owned() }.into()),
        }
        Ok(Outcome::Done)
    }

    fn reply(&mut self, parameters: impl Serialize) -> io::Result<()> {
        self.reply_and(parameters, false)
    }

    fn reply_and(&mut self, parameters: impl Serialize, continues: bool) -> io::Result<()> {
        if self.oneway { Ok(()) } else { write_frame(&mut self.stream, &Reply { parameters, continues }) }
    }

    /// Sends a whole answer, in as many replies as it takes.
    fn changes(&mut self, answer: Answer, continues: bool) -> Result<(), Failed> {
        let Answer { cursor, since, fresh, changes } = answer;
        let mut changes = changes.peekable();
        let mut first = true;
        loop {
            let batch = batch(&mut changes);
            let complete = changes.peek().is_none();
            if first && !complete && !self.more {
                return Err(Refusal::ExpectedMore {}.into());
            }
            first = false;
            let reply = ChangesReply {
                cursor: cursor.clone(),
                since: since.clone(),
                fresh: fresh.is_some(),
                reason: fresh.clone(),
                changes: batch,
                complete,
            };
            self.reply_and(reply, continues || !complete)?;
            if complete {
                return Ok(());
            }
        }
    }

    /// Sends answer after answer until the client is gone or the volume has an error.
    fn follow(&mut self, volume: &dyn Volume, mut since: Since) -> Result<(), Failed> {
        if !self.more {
            return Err(Refusal::ExpectedMore {}.into());
        }
        let mut first = true;
        loop {
            let next_batch = Instant::now() + self.limits.batches_every;
            let answer = volume.changes(&since, None)?;
            let cursor = answer.cursor.clone();
            let mut changes = answer.changes.peekable();
            if first || changes.peek().is_some() || answer.fresh.is_some() {
                self.changes(Answer { changes: Box::new(changes), ..answer }, true)?;
                first = false;
            }
            self.pause_until(next_batch)?;
            volume.wait_for_change(&cursor, Instant::now() + self.limits.checkpoint_every);
            self.pause_until(Instant::now())?;
            since = Since::Cursor(cursor);
        }
    }

    /// Waits for a moment, or until the client has hung up; it has nothing to say during `Follow`.
    fn pause_until(&mut self, moment: Instant) -> Result<(), Failed> {
        let wait = moment.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(wait).map_err(|_| Failed::Gone)?;
        let mut stream = [PollFd::new(&self.stream, PollFlags::IN | PollFlags::RDHUP)];
        match poll(&mut stream, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => Ok(()),
            _ => Err(Failed::Gone),
        }
    }
}

/// The next lines, as many as fit into one reply.
fn batch(changes: &mut impl Iterator<Item = Change>) -> Vec<Change> {
    let mut batch = Vec::new();
    let mut bytes = 0;
    while batch.len() < CHANGES_PER_REPLY_MAX && bytes < PATH_BYTES_PER_REPLY_MAX {
        let Some(change) = changes.next() else { break };
        bytes += change.path.len() + change.from.as_ref().map_or(0, Vec::len);
        batch.push(change);
    }
    batch
}

fn deadline(parameters: &mut Parameters) -> Result<Option<Instant>, Refusal> {
    let deadline_ms = parameters.optional("deadline_ms", |value| value.as_u64())?;
    // One that is too far away to be told is none.
    Ok(deadline_ms.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms))))
}

fn since(mut parameters: Parameters) -> Result<Since, Refusal> {
    let cursor = parameters.optional("since", text)?;
    let consumer = parameters.optional("consumer", text)?;
    let now = parameters.optional("now", |value| value.as_bool())?.unwrap_or(false);
    parameters.end()?;
    match (cursor, consumer, now) {
        (Some(cursor), None, false) => Ok(Since::Cursor(cursor)),
        (None, Some(name), false) => Ok(Since::Consumer(name)),
        (None, None, true) => Ok(Since::Now),
        (None, None, false) => Ok(Since::Nothing),
        (_, Some(_), _) => Err(invalid("consumer")),
        (Some(_), None, true) => Err(invalid("now")),
    }
}

fn info() -> InfoReply {
    InfoReply {
        vendor: "Highwater".to_owned(),
        product: "highwater".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        url: env!("CARGO_PKG_REPOSITORY").to_owned(),
        interfaces: vec![SERVICE_INTERFACE.to_owned(), INTERFACE.to_owned()],
    }
}

fn description(interface: String) -> Result<&'static str, Refusal> {
    match interface.as_str() {
        SERVICE_INTERFACE => Ok(SERVICE_INTERFACE_DESCRIPTION),
        INTERFACE => Ok(INTERFACE_DESCRIPTION),
        _ => Err(Refusal::InterfaceNotFound { interface }),
    }
}
