//! Requests to a real server over a socket. What it answers is compared with a naive dispatcher that asks a second volume in the same state.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use highwater::server::{Answer, Limits, Server, Since, Stop, Volume};
use highwater_client::{
    Call, Change, Consumer, INTERFACE, Kind, ObjectType, Refusal, SERVICE_INTERFACE, Status,
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::fake_volume::{FakeVolume, JOURNAL, cursor};

pub(crate) const WORDS: &[&str] = &[
    "{\"method\":\"",
    "\"parameters\":{",
    "\"more\":true",
    "\"oneway\":true",
    "\"upgrade\":true",
    "\0",
    "null",
    "true",
    "-1",
    "1e3",
    "org.varlink.service.",
    "GetInfo",
    "GetInterfaceDescription",
    "\"interface\":\"",
    "io.highwater.Volume",
    "io.highwater.Volume.",
    "Status",
    "Barrier",
    "Changes",
    "Follow",
    "Ack",
    "AddConsumer",
    "RemoveConsumer",
    "ListConsumers",
    "Stop",
    "\"since\":\"",
    "\"consumer\":\"",
    "\"now\":",
    "\"deadline_ms\":",
    "\"cursor\":\"",
    "\"name\":\"",
    "hw1.0123456789abcdef0123456789abcdef.2.1",
];

/// The volume of the input that is being tried, served by one server for all of them.
struct Current(Mutex<Arc<FakeVolume>>);

impl Current {
    fn volume(&self) -> Arc<FakeVolume> {
        Arc::clone(&self.0.lock())
    }
}

impl Volume for Current {
    fn status(&self) -> Status {
        self.volume().status()
    }
    fn barrier(&self, deadline: Option<Instant>) -> Result<String, Refusal> {
        self.volume().barrier(deadline)
    }
    fn changes(&self, since: &Since, deadline: Option<Instant>) -> Result<Answer, Refusal> {
        self.volume().changes(since, deadline)
    }
    fn wait_for_change(&self, after: &str, deadline: Instant) {
        self.volume().wait_for_change(after, deadline);
    }
    fn ack(&self, consumer: &str, cursor: &str) -> Result<(), Refusal> {
        self.volume().ack(consumer, cursor)
    }
    fn add_consumer(&self, name: &str) -> Result<(), Refusal> {
        self.volume().add_consumer(name)
    }
    fn remove_consumer(&self, name: &str) -> Result<(), Refusal> {
        self.volume().remove_consumer(name)
    }
    fn consumers(&self) -> Vec<Consumer> {
        self.volume().consumers()
    }
    fn stop(&self) -> Stop {
        self.volume().stop()
    }
}

struct Served {
    current: Arc<Current>,
    socket: PathBuf,
    _server: Server,
    _home: tempfile::TempDir,
}

fn served() -> &'static Served {
    static SERVED: OnceLock<Served> = OnceLock::new();
    SERVED.get_or_init(|| {
        let home = tempfile::tempdir().expect("a temporary directory");
        let socket = home.path().join("socket");
        let current = Arc::new(Current(Mutex::default()));
        let (stopped, heard) = channel();
        // Nobody listens to what is stopped: a client's `Stop` ends its connection only.
        drop(heard);
        let volume = Arc::clone(&current);
        let server = Server::start(&socket, volume, Limits::default(), stopped).expect("a socket");
        Served { current, socket, _server: server, _home: home }
    })
}

/// With some lines, or more than fit into one reply; busy or not when it is stopped.
fn volume(flags: u8) -> FakeVolume {
    let volume = FakeVolume::of(std::path::Path::new("/tree"));
    let count = if flags & 3 == 3 { 1200 } else { 5 };
    for number in 0..count {
        volume.push(Change {
            path: if number == 3 { b"\xff\n".to_vec() } else { format!("{number}").into_bytes() },
            kind: if number == 2 { Kind::Rescan } else { Kind::Modified },
            object_type: ObjectType::File,
            from: None,
            recursive: false,
            recovered: false,
            nlink: None,
            usn: number,
        });
    }
    volume.set_busy(flags & 4 == 4);
    volume
}

/// The first byte says which volume; the rest is what a client sends.
pub(crate) fn run(bytes: &[u8]) {
    let Some((flags, requests)) = bytes.split_first() else { return };
    let Served { current, socket, .. } = served();
    let real = Arc::new(volume(*flags));
    *current.0.lock() = Arc::clone(&real);
    let replies = ask(socket, requests);
    let twin = volume(*flags);
    let mut expected = Vec::new();
    dispatch(&twin, requests, &mut expected);
    let mut frames: Vec<&[u8]> = replies.split(|byte| *byte == 0).collect();
    assert_eq!(frames.pop(), Some(&b""[..]), "half a reply");
    let frames: Vec<Value> =
        frames.into_iter().map(|frame| serde_json::from_slice(frame).expect("a reply is JSON")).collect();
    assert_eq!(frames.len(), expected.len(), "{frames:#?}\nand not {expected:#?}");
    for (frame, expected) in frames.iter().zip(&expected) {
        assert!(is_like(frame, expected), "{frame:#}\nand not {expected:#}");
    }
    assert_eq!(real.consumers(), twin.consumers(), "the same has been done");
    assert_eq!(real.is_stopped(), twin.is_stopped());
}

fn ask(socket: &std::path::Path, requests: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(socket).expect("the server is there");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    // Either fails if the server has hung up; what it has said before counts.
    drop(stream.write_all(requests));
    drop(stream.shutdown(Shutdown::Write));
    let mut replies = Vec::new();
    match stream.read_to_end(&mut replies) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        read => drop(read.expect("the server answers or hangs up")),
    }
    replies
}

/// A null in what is expected is a text that may be any.
fn is_like(found: &Value, expected: &Value) -> bool {
    match (found, expected) {
        (Value::String(_), Value::Null) => true,
        (Value::Object(found), Value::Object(expected)) => {
            let is_there = |(key, value): (&String, &Value)| match (found.get(key), value) {
                (None, Value::Null) => true,
                (Some(found), value) => found == value || is_like(found, value),
                (None, _) => false,
            };
            found.keys().all(|key| expected.contains_key(key)) && expected.iter().all(is_there)
        }
        _ => found == expected,
    }
}

fn error(refusal: &Refusal) -> Value {
    serde_json::to_value(refusal).expect("it is JSON")
}

fn malformed() -> Value {
    json!({ "error": format!("{INTERFACE}.MalformedRequest"), "parameters": { "message": null } })
}

fn refused(name: &str, key: &str, value: &str) -> Value {
    json!({ "error": format!("{SERVICE_INTERFACE}.{name}"), "parameters": { key: value } })
}

/// What a client that sends this has to be answered.
fn dispatch(volume: &FakeVolume, requests: &[u8], replies: &mut Vec<Value>) {
    let mut frames: Vec<&[u8]> = requests.split(|byte| *byte == 0).collect();
    // The last one has no end.
    frames.pop();
    for frame in frames {
        // What the method does not know beside these is left alone, whatever is in it.
        let is_object = frame.trim_ascii_start().starts_with(b"{");
        let call = serde_json::from_slice::<Call<Value>>(frame).ok().filter(|_| is_object);
        let Some(call) = call else {
            replies.push(malformed());
            return;
        };
        match answer(volume, &call) {
            Ok((of_call, goes_on)) => {
                if !call.oneway {
                    replies.extend(of_call);
                }
                if !goes_on {
                    return;
                }
            }
            Err(refusal) if !call.oneway => replies.push(refusal),
            Err(_) => {}
        }
    }
}

/// The replies, and whether the connection goes on; or an error reply.
fn answer(volume: &FakeVolume, call: &Call<Value>) -> Result<(Vec<Value>, bool), Value> {
    let invalid = |name: &str| refused("InvalidParameter", "parameter", name);
    if call.upgrade {
        return Err(invalid("upgrade"));
    }
    let mut parameters = match &call.parameters {
        None => serde_json::Map::new(),
        Some(Value::Object(map)) => map.clone(),
        Some(_) => return Err(malformed()),
    };
    parameters.retain(|_, value| !value.is_null());
    let interface = call.method.rsplit_once('.').map(|(interface, _)| interface);
    let known: &[&str] = match call.method.as_str() {
        "org.varlink.service.GetInfo" => &[],
        "org.varlink.service.GetInterfaceDescription" => &["interface"],
        "io.highwater.Volume.Status" | "io.highwater.Volume.ListConsumers" | "io.highwater.Volume.Stop" => {
            &[]
        }
        "io.highwater.Volume.Barrier" => &["deadline_ms"],
        "io.highwater.Volume.Changes" => &["deadline_ms", "since", "consumer", "now"],
        "io.highwater.Volume.Follow" => &["since", "consumer", "now"],
        "io.highwater.Volume.Ack" => &["consumer", "cursor"],
        "io.highwater.Volume.AddConsumer" | "io.highwater.Volume.RemoveConsumer" => &["name"],
        method => {
            return Err(match interface {
                Some(interface) if interface != INTERFACE && interface != SERVICE_INTERFACE => {
                    refused("InterfaceNotFound", "interface", interface)
                }
                _ => refused("MethodNotFound", "method", method),
            });
        }
    };
    // Those that are known are looked at first, in this order.
    for name in known {
        let is_optional =
            matches!(*name, "deadline_ms" | "since" | "now") || (*name == "consumer" && known.len() > 2);
        let is_right = match (*name, parameters.get(*name)) {
            (_, None) => is_optional,
            ("deadline_ms", Some(value)) => value.is_u64(),
            ("now", Some(value)) => value.is_boolean(),
            (_, Some(value)) => value.is_string(),
        };
        if !is_right {
            return Err(invalid(name));
        }
    }
    let all = call.parameters.as_ref().and_then(Value::as_object);
    if let Some(unknown) =
        all.into_iter().flatten().map(|(name, _)| name).find(|name| !known.contains(&name.as_str()))
    {
        return Err(invalid(unknown));
    }
    let text = |name: &str| parameters.get(name).and_then(Value::as_str).unwrap_or_default();
    let done = |outcome: Result<(), Refusal>| match outcome {
        Ok(()) => Ok((vec![json!({ "parameters": {} })], true)),
        Err(refusal) => Err(error(&refusal)),
    };
    let reply = |parameters: Value| Ok((vec![json!({ "parameters": parameters })], true));
    match call.method.rsplit('.').next().unwrap_or_default() {
        "GetInfo" => reply(json!({
            "vendor": null, "product": null, "version": null, "url": null, "interfaces": [SERVICE_INTERFACE, INTERFACE]
        })),
        "GetInterfaceDescription" => match text("interface") {
            SERVICE_INTERFACE | INTERFACE => reply(json!({ "description": null })),
            other => Err(refused("InterfaceNotFound", "interface", other)),
        },
        "Status" => reply(serde_json::to_value(volume.status()).expect("it is JSON")),
        "ListConsumers" => reply(json!({ "consumers": volume.consumers() })),
        "Barrier" => reply(json!({ "cursor": volume.barrier(None).map_err(|refusal| error(&refusal))? })),
        "Ack" => done(volume.ack(text("consumer"), text("cursor"))),
        "AddConsumer" => done(volume.add_consumer(text("name"))),
        "RemoveConsumer" => done(volume.remove_consumer(text("name"))),
        "Stop" => match volume.stop() {
            Stop::Clean => Ok((vec![json!({ "parameters": {} })], false)),
            Stop::Unclean(refusal) | Stop::NotYet(refusal) => Err(error(&refusal)),
        },
        _ => changes(volume, call, &parameters),
    }
}

/// `Changes`, and the first batch of `Follow`, which goes on until the client hangs up.
fn changes(
    volume: &FakeVolume,
    call: &Call<Value>,
    parameters: &serde_json::Map<String, Value>,
) -> Result<(Vec<Value>, bool), Value> {
    const LINES_MAX: usize = 1000;

    let text = |name: &str| parameters.get(name).and_then(Value::as_str).map(str::to_owned);
    let is_now = parameters.get("now") == Some(&json!(true));
    let since = match (text("since"), text("consumer")) {
        (None, None) if is_now => Since::Now,
        (None, None) => Since::Nothing,
        (Some(cursor), None) if !is_now => Since::Cursor(cursor),
        (None, Some(name)) if !is_now => Since::Consumer(name),
        (_, Some(_)) => return Err(refused("InvalidParameter", "parameter", "consumer")),
        (Some(_), None) => return Err(refused("InvalidParameter", "parameter", "now")),
    };
    let expected_more = || json!({ "error": format!("{SERVICE_INTERFACE}.ExpectedMore"), "parameters": {} });
    let follows = call.method.ends_with("Follow");
    if follows && !call.more {
        return Err(expected_more());
    }
    let answer = volume.changes(&since, None).map_err(|refusal| error(&refusal))?;
    let lines: Vec<Change> = answer.changes.collect();
    let parts: Vec<&[Change]> = if lines.is_empty() { vec![&[]] } else { lines.chunks(LINES_MAX).collect() };
    if parts.len() > 1 && !call.more {
        return Err(expected_more());
    }
    let last = parts.len() - 1;
    let replies = parts.iter().enumerate().map(|(at, part)| {
        let mut parameters = json!({
            "cursor": answer.cursor, "since": answer.since, "fresh": answer.fresh.is_some(), "changes": part, "complete": at == last
        });
        if let Some(reason) = &answer.fresh {
            parameters["reason"] = json!(reason);
        }
        let mut reply = json!({ "parameters": parameters });
        if follows || at < last {
            reply["continues"] = json!(true);
        }
        reply
    });
    Ok((replies.collect(), !follows))
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let call =
        |method: &str, parameters: &str| format!("{{\"method\":\"{method}\"{parameters}}}\0").into_bytes();
    let volume = |method: &str, parameters: &str| call(&format!("{INTERFACE}.{method}"), parameters);
    let name = ",\"parameters\":{\"name\":\"c\"}";
    let ack = format!(",\"parameters\":{{\"consumer\":\"c\",\"cursor\":\"{}\"}}", cursor(2));
    let since = format!(",\"parameters\":{{\"since\":\"hw1.{JOURNAL}.1.0\",\"deadline_ms\":5}}");
    let of_consumer = ",\"more\":true,\"parameters\":{\"consumer\":\"c\"}";
    let all: Vec<Vec<u8>> = vec![
        volume("Status", ""),
        call("org.varlink.service.GetInfo", ""),
        call(
            "org.varlink.service.GetInterfaceDescription",
            ",\"parameters\":{\"interface\":\"io.highwater.Volume\"}",
        ),
        volume("Barrier", ",\"parameters\":{\"deadline_ms\":10}"),
        volume("Changes", ""),
        volume("Changes", ",\"more\":true"),
        volume("Changes", ",\"parameters\":{\"now\":true}"),
        volume("Changes", &since),
        volume("Follow", ",\"more\":true"),
        [
            volume("AddConsumer", name),
            volume("Ack", &ack),
            volume("ListConsumers", ""),
            volume("Changes", of_consumer),
        ]
        .concat(),
        [volume("AddConsumer", name), volume("RemoveConsumer", name), volume("Stop", "")].concat(),
        volume("Status", ",\"oneway\":true"),
        volume("Status", ",\"upgrade\":true"),
    ];
    let few = all.iter().map(|requests| [&[0], requests.as_slice()].concat());
    let many = all[4..10].iter().map(|requests| [&[7], requests.as_slice()].concat());
    few.chain(many).collect()
}
