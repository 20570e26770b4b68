//! The socket: the protocol as any client sees it, and clients that mean harm or are broken.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use highwater::server::Limits;
use highwater_client::{CallError, Kind, ObjectType, Refusal, Since};
use serde_json::{Value, json};
use support::{Tracked, change, cursor, eventually};

/// Speaks to the socket without the client library.
struct Raw(UnixStream);

impl Raw {
    fn connect(tracked: &Tracked) -> Self {
        Self(UnixStream::connect(&tracked.socket).unwrap())
    }

    fn send(&mut self, call: &Value) {
        self.0.write_all(call.to_string().as_bytes()).unwrap();
        self.0.write_all(&[0]).unwrap();
    }

    /// The next reply; null when the server has hung up.
    fn receive(&mut self) -> Value {
        let mut frame = Vec::new();
        let mut byte = [1];
        loop {
            if self.0.read(&mut byte).unwrap_or(0) == 0 {
                assert!(frame.is_empty(), "half a reply");
                return Value::Null;
            }
            if byte == [0] {
                return serde_json::from_slice(&frame).unwrap();
            }
            frame.push(byte[0]);
        }
    }

    fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.send(&json!({ "method": method, "parameters": parameters }));
        self.receive()
    }
}

/// What `varlinkctl info` and `varlinkctl introspect` ask first.
#[test]
fn any_varlink_client_can_find_out_what_the_service_offers() {
    let tracked = Tracked::new();
    let mut raw = Raw::connect(&tracked);
    let info = raw.call("org.varlink.service.GetInfo", json!({}));
    assert_eq!(info["parameters"]["product"], "highwater");
    assert_eq!(info["parameters"]["interfaces"], json!(["org.varlink.service", "io.highwater.Volume"]));
    for interface in ["org.varlink.service", "io.highwater.Volume"] {
        let reply =
            raw.call("org.varlink.service.GetInterfaceDescription", json!({ "interface": interface }));
        let description = reply["parameters"]["description"].as_str().unwrap();
        assert!(description.contains(&format!("\ninterface {interface}\n")));
    }
    let reply = raw.call("org.varlink.service.GetInterfaceDescription", json!({ "interface": "a.b" }));
    assert_eq!(reply["error"], "org.varlink.service.InterfaceNotFound");
    // Parameters may be left out, or be null, where there are none.
    raw.send(&json!({ "method": "io.highwater.Volume.Status" }));
    assert_eq!(raw.receive()["parameters"]["source"], "fake");
    assert_eq!(raw.call("io.highwater.Volume.Status", Value::Null)["parameters"]["source"], "fake");
}

/// Somebody has cleaned up below /run.
#[test]
fn a_server_whose_socket_is_gone_ends_all_the_same() {
    let tracked = Tracked::new();
    std::fs::remove_file(&tracked.socket).unwrap();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        drop(tracked);
        tell.send(()).unwrap();
    });
    told.recv_timeout(Duration::from_secs(30)).unwrap();
}

#[test]
fn every_described_method_is_served_and_no_other() {
    let tracked = Tracked::new();
    let described =
        highwater_client::INTERFACE_DESCRIPTION.lines().filter_map(|line| line.strip_prefix("method "));
    let mut count = 0;
    for method in described.map(|line| line.split('(').next().unwrap()) {
        count += 1;
        // A parameter that nobody knows, so that nothing happens.
        let reply =
            Raw::connect(&tracked).call(&format!("io.highwater.Volume.{method}"), json!({ "zzz": 1 }));
        assert_eq!(reply["error"], "org.varlink.service.InvalidParameter", "{method}: {reply}");
    }
    assert_eq!(count, 9);
    let mut raw = Raw::connect(&tracked);
    for (method, error) in [
        ("io.highwater.Volume.Explode", "org.varlink.service.MethodNotFound"),
        ("org.varlink.service.Explode", "org.varlink.service.MethodNotFound"),
        ("nothing", "org.varlink.service.MethodNotFound"),
        ("", "org.varlink.service.MethodNotFound"),
        ("io.other.Status", "org.varlink.service.InterfaceNotFound"),
    ] {
        assert_eq!(raw.call(method, json!({}))["error"], error, "{method}");
    }
}

#[test]
fn a_misspelt_or_mistyped_parameter_is_refused_by_name() {
    let tracked = Tracked::new();
    let mut raw = Raw::connect(&tracked);
    for (method, parameters, name) in [
        ("Barrier", json!({ "deadline": 1 }), "deadline"),
        ("Barrier", json!({ "deadline_ms": "1" }), "deadline_ms"),
        ("Barrier", json!({ "deadline_ms": -1 }), "deadline_ms"),
        ("Changes", json!({ "since": 1 }), "since"),
        ("Changes", json!({ "deadline_ms": "1" }), "deadline_ms"),
        ("Follow", json!({ "deadline_ms": 1 }), "deadline_ms"),
        ("Changes", json!({ "since": "a", "now": true }), "now"),
        ("Changes", json!({ "since": "a", "consumer": "b" }), "consumer"),
        ("Ack", json!({ "consumer": "b" }), "cursor"),
        ("AddConsumer", json!({}), "name"),
    ] {
        let reply = raw.call(&format!("io.highwater.Volume.{method}"), parameters);
        assert_eq!(reply["error"], "org.varlink.service.InvalidParameter");
        assert_eq!(reply["parameters"]["parameter"], name);
    }
    raw.send(&json!({ "method": "io.highwater.Volume.Status", "parameters": [1] }));
    assert_eq!(raw.receive()["error"], "io.highwater.Volume.MalformedRequest");
    raw.send(&json!({ "method": "io.highwater.Volume.Status", "upgrade": true }));
    assert_eq!(raw.receive()["error"], "org.varlink.service.InvalidParameter");
}

#[test]
fn a_long_answer_comes_in_bounded_replies_and_needs_more() {
    let tracked = Tracked::new();
    for number in 0..2500 {
        tracked.volume.push(change(format!("f{number}"), Kind::Created, ObjectType::File));
    }
    let mut raw = Raw::connect(&tracked);
    let parameters = json!({ "since": cursor(0) });
    assert_eq!(
        raw.call("io.highwater.Volume.Changes", parameters.clone())["error"],
        "org.varlink.service.ExpectedMore"
    );
    raw.send(&json!({ "method": "io.highwater.Volume.Changes", "parameters": parameters, "more": true }));
    for (count, complete) in [(1000, false), (1000, false), (500, true)] {
        let reply = raw.receive();
        assert_eq!(reply["parameters"]["changes"].as_array().unwrap().len(), count);
        assert_eq!(reply["parameters"]["complete"], complete);
        assert_eq!(reply["continues"].as_bool().unwrap_or(false), !complete);
        assert_eq!(reply["parameters"]["cursor"], cursor(2500));
    }
    // Long paths fill a reply sooner.
    for _ in 0..10 {
        tracked.volume.push(change(vec![b'x'; 50_000], Kind::Created, ObjectType::File));
    }
    let answer = tracked.connect().changes(&Since::Cursor(cursor(2500)), None).unwrap();
    assert_eq!(answer.changes.len(), 10);
    assert_eq!(
        raw.call("io.highwater.Volume.Follow", json!({}))["error"],
        "org.varlink.service.ExpectedMore"
    );
    // A short one does without "more".
    let reply = raw.call("io.highwater.Volume.Changes", json!({ "since": cursor(2509) }));
    assert_eq!(reply["parameters"]["complete"], true);
}

#[test]
fn a_oneway_call_has_no_reply() {
    let tracked = Tracked::new();
    let mut raw = Raw::connect(&tracked);
    let add = |name: &str| json!({ "method": "io.highwater.Volume.AddConsumer", "parameters": { "name": name }, "oneway": true });
    raw.send(&add("a"));
    raw.send(&add("a"));
    let reply = raw.call("io.highwater.Volume.ListConsumers", json!({}));
    assert_eq!(reply["parameters"]["consumers"], json!([{ "name": "a", "cursor": null }]));
}

#[test]
fn garbage_is_answered_with_an_error_and_ends_the_connection() {
    let tracked = Tracked::new();
    for garbage in [
        &b"\0"[..],
        b"GET / HTTP/1.1\r\n\r\n\0",
        b"{}\0",
        b"[1]\0",
        b"[\"io.highwater.Volume.Status\"]\0",
        b"{\"method\":7}\0",
        // Without a word about it this would be a question for everything.
        b"{\"method\":\"io.highwater.Volume.Changes\",\"paramaters\":{\"since\":\"hw1\"}}\0",
        b"\xff\xfe\0",
    ] {
        let mut raw = Raw::connect(&tracked);
        raw.0.write_all(garbage).unwrap();
        assert_eq!(raw.receive()["error"], "io.highwater.Volume.MalformedRequest", "{garbage:?}");
        assert_eq!(raw.receive(), Value::Null);
    }
    // Nested as deep as a stack could not take it.
    let mut raw = Raw::connect(&tracked);
    raw.0.write_all(&[&b"[".repeat(500_000)[..], b"\0"].concat()).unwrap();
    assert_eq!(raw.receive()["error"], "io.highwater.Volume.MalformedRequest");
    tracked.connect().status().unwrap();
}

#[test]
fn a_gigabyte_without_a_frame_is_cut_off_after_the_limit() {
    let tracked = Tracked::new();
    let mut raw = Raw::connect(&tracked);
    let block = vec![b'x'; 64 * 1024];
    let mut sent = 0_u64;
    while sent < 1024 * 1024 * 1024 && raw.0.write_all(&block).is_ok() {
        sent += block.len() as u64;
    }
    assert!(sent < 4 * 1024 * 1024, "the tracker took {sent} bytes");
    let mut reply = Vec::new();
    // The rest of what was sent is thrown away, which a read may report after the reply.
    let _ = raw.0.read_to_end(&mut reply);
    assert!(String::from_utf8_lossy(&reply).contains("io.highwater.Volume.RequestTooLong"), "{reply:?}");
    tracked.connect().status().unwrap();
}

#[test]
fn clients_beyond_the_limit_are_refused_clearly_and_a_hanging_one_is_dropped() {
    let limits = Limits { connections_max: 3, idle: Duration::from_millis(300), ..Limits::default() };
    let tracked = Tracked::with_limits(limits);
    // Three that say nothing, or only half of something.
    let mut hanging: Vec<Raw> = (0..3).map(|_| Raw::connect(&tracked)).collect();
    hanging[1].0.write_all(b"{\"method\":").unwrap();
    let mut refused = false;
    for _ in 0..3 {
        refused |= matches!(
            tracked.connect().status(),
            Err(CallError::Refused(Refusal::TooManyConnections { connections_max: 3 }))
        );
    }
    assert!(refused);
    for raw in &mut hanging {
        assert_eq!(raw.receive(), Value::Null);
    }
    eventually("a place is free", || tracked.connect().status().is_ok());
}

#[test]
fn a_client_that_does_not_read_costs_one_connection_for_a_bounded_time() {
    let limits = Limits { unread: Duration::from_secs(1), connections_max: 2, ..Limits::default() };
    let tracked = Tracked::with_limits(limits);
    for number in 0..50_000 {
        tracked.volume.push(change(format!("{number:0>200}"), Kind::Created, ObjectType::File));
    }
    let mut raw = Raw::connect(&tracked);
    let parameters = json!({ "since": cursor(0) });
    raw.send(&json!({ "method": "io.highwater.Volume.Changes", "parameters": parameters, "more": true }));
    // Others are served meanwhile, and the volume is not held up.
    assert_eq!(tracked.connect().barrier(None).unwrap(), cursor(50_000));
    eventually("its place is free", || {
        let (mut one, mut two) = (tracked.connect(), tracked.connect());
        one.status().is_ok() && two.status().is_ok()
    });
    let mut received = Vec::new();
    let _ = raw.0.read_to_end(&mut received);
    assert!(received.len() < 1_000_000, "{} bytes were kept for it", received.len());
    // The same answer for a client that reads, once the places of the others are free.
    eventually("a client that reads has it all", || {
        tracked
            .connect()
            .changes(&Since::Cursor(cursor(0)), None)
            .is_ok_and(|answer| answer.changes.len() == 50_000)
    });
}

#[test]
fn a_barrier_ends_at_its_deadline_and_holds_up_nobody_else() {
    let tracked = Tracked::new();
    tracked.volume.stall(true);
    let waiting = tracked.connect();
    let waiting = std::thread::spawn(move || { waiting }.barrier(None));
    let refused = tracked.connect().barrier(Some(Duration::from_millis(50)));
    assert!(matches!(refused, Err(CallError::Refused(Refusal::Deadline { .. }))), "{refused:?}");
    tracked.connect().status().unwrap();
    assert!(!waiting.is_finished());
    tracked.volume.stall(false);
    assert_eq!(waiting.join().unwrap().unwrap(), cursor(0));
}

#[test]
fn follow_tells_each_change_once_and_ends_when_the_client_goes() {
    let limits = Limits { connections_max: 2, batches_every: Duration::from_millis(5), ..Limits::default() };
    let tracked = Tracked::with_limits(limits);
    let mut follow = tracked.connect().follow(&Since::Now).unwrap();
    let first = follow.next_batch().unwrap();
    assert!(!first.fresh && first.changes.is_empty() && first.since.is_none());
    let mut since = first.cursor;
    let mut seen = Vec::new();
    for number in 0..20 {
        tracked.volume.push(change(format!("f{number}"), Kind::Created, ObjectType::File));
        if number % 5 == 4 {
            while seen.len() < number + 1 {
                let batch = follow.next_batch().unwrap();
                assert_eq!(batch.since, Some(since));
                since = batch.cursor;
                seen.extend(batch.changes);
            }
        }
    }
    assert_eq!(seen.len(), 20);
    assert!(seen.iter().enumerate().all(|(number, change)| change.path == format!("f{number}").as_bytes()));
    drop(follow);
    // Both places are free again, without another change.
    eventually("the follower's place is free", || {
        let (mut one, mut two) = (tracked.connect(), tracked.connect());
        one.status().is_ok() && two.status().is_ok()
    });
}

#[test]
fn a_stop_is_answered_before_the_socket_goes() {
    let mut tracked = Tracked::new();
    assert_eq!(std::fs::metadata(&tracked.socket).unwrap().permissions().mode() & 0o777, 0o600);
    tracked.volume.set_busy(true);
    let refused = tracked.connect().stop();
    assert!(matches!(refused, Err(CallError::Refused(Refusal::Busy { .. }))));
    assert!(tracked.stopped.try_recv().is_err());
    tracked.volume.set_busy(false);
    let mut idle = tracked.connect();
    tracked.connect().stop().unwrap();
    tracked.stopped.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(tracked.volume.is_stopped());
    tracked.server = None;
    assert!(!tracked.socket.exists());
    assert!(matches!(idle.status(), Err(CallError::Closed | CallError::Frame(_))));
}

/// G7. Needs root, to become somebody else.
#[test]
fn another_user_is_refused_even_where_the_mode_would_let_it_in() {
    assert!(rustix::process::geteuid().is_root(), "this test needs root");
    let tracked = Tracked::new();
    let open = |path: &std::path::Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    open(tracked.home.path(), 0o755);
    open(tracked.socket.parent().unwrap(), 0o755);
    let script = format!(
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect({:?}); print(s.recv(1000))",
        tracked.socket.to_str().unwrap()
    );
    let as_nobody = || {
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "/usr/bin/python3", "-c", &script]);
        command.output().unwrap()
    };
    let output = as_nobody();
    assert!(support::stderr(&output).contains("PermissionError"), "{output:?}");
    open(&tracked.socket, 0o777);
    let output = as_nobody();
    assert!(support::stdout(&output).contains("org.varlink.service.PermissionDenied"), "{output:?}");
}
