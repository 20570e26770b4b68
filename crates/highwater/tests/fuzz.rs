//! Arbitrary bytes at the socket, whole and in pieces: every reply is a message, the connection ends cleanly, and the server goes on.
//!
//! `HIGHWATER_FUZZ=1000` tries a thousand times as many cases as `cargo test` does.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use support::{JOURNAL, Tracked, cursor};

fn cases(at_least: u32) -> ProptestConfig {
    let times =
        std::env::var("HIGHWATER_FUZZ").map_or(1, |times| times.parse().expect("HIGHWATER_FUZZ is a number"));
    ProptestConfig {
        cases: at_least.saturating_mul(times),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Not `Stop`, which ends the server, and not `Follow`, which has no end.
fn call() -> impl Strategy<Value = Vec<u8>> {
    let method = prop::sample::select(vec![
        "org.varlink.service.GetInfo",
        "org.varlink.service.GetInterfaceDescription",
        "io.highwater.Volume.Status",
        "io.highwater.Volume.Changes",
        "io.highwater.Volume.Ack",
        "io.highwater.Volume.AddConsumer",
        "io.highwater.Volume.RemoveConsumer",
        "io.highwater.Volume.ListConsumers",
        "io.highwater.Volume.Barrier",
    ]);
    let value = prop_oneof![
        Just(json!(null)),
        any::<i64>().prop_map(|number| json!(number)),
        any::<bool>().prop_map(|flag| json!(flag)),
        "\\PC{0,40}".prop_map(|text| json!(text)),
        Just(json!(cursor(0))),
        (0..1000_usize).prop_map(|checkpoint| json!(format!("hw1.{JOURNAL}.{checkpoint}.0"))),
    ];
    let name = prop::sample::select(vec!["since", "consumer", "now", "cursor", "name", "interface", "zzz"]);
    let parameters = prop::collection::btree_map(name, value, 0..4);
    (method, parameters, any::<(bool, bool)>()).prop_map(|(method, parameters, (more, oneway))| {
        let call = json!({ "method": method, "parameters": parameters, "more": more, "oneway": oneway });
        let mut bytes = call.to_string().into_bytes();
        bytes.push(0);
        bytes
    })
}

fn attack() -> impl Strategy<Value = Vec<u8>> {
    let damaged = (call(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut bytes, at, byte)| {
        let at = at.index(bytes.len());
        bytes[at] = byte;
        bytes
    });
    let deep = (1..50_000_usize, "[\\[{]").prop_map(|(depth, open)| {
        format!("{{\"method\":\"io.highwater.Volume.Status\",\"parameters\":{}\0", open.repeat(depth))
            .into_bytes()
    });
    prop_oneof![4 => call(), 4 => damaged, 1 => deep, 1 => prop::collection::vec(any::<u8>(), 0..300)]
}

fn replies(tracked: &Tracked, bytes: &[u8], pieces: &[usize]) -> Vec<u8> {
    let mut stream = UnixStream::connect(&tracked.socket).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let (mut rest, mut pieces) = (bytes, pieces.iter().cycle());
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.len().min(*pieces.next().unwrap()));
        rest = after;
        // The server has hung up: what it has said before counts.
        if stream.write_all(piece).is_err() {
            break;
        }
    }
    // Fails if the server has hung up already.
    let _ = stream.shutdown(Shutdown::Write);
    let mut replies = Vec::new();
    match stream.read_to_end(&mut replies) {
        // It hangs up with bytes of ours unread.
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
        read => drop(read.expect("the server answers or hangs up")),
    }
    replies
}

#[test]
fn arbitrary_requests_are_answered_or_end_the_connection() {
    let tracked = Tracked::new();
    let strategy = (prop::collection::vec(attack(), 1..6), prop::collection::vec(1..3000_usize, 1..5));
    let mut runner = TestRunner::new(cases(300));
    let outcome = runner.run(&strategy, |(attacks, pieces)| {
        let replies = replies(&tracked, &attacks.concat(), &pieces);
        let mut frames = replies.split(|byte| *byte == 0).collect::<Vec<_>>();
        prop_assert_eq!(frames.pop(), Some(&b""[..]), "half a reply");
        for frame in frames {
            let reply: Value =
                serde_json::from_slice(frame).map_err(|error| TestCaseError::fail(error.to_string()))?;
            prop_assert!(reply.get("parameters").is_some() || reply.get("error").is_some(), "{}", reply);
        }
        let mut status = br#"{"method":"io.highwater.Volume.Status"}"#.to_vec();
        status.push(0);
        let status = self::replies(&tracked, &status, &[1000]);
        prop_assert!(status.starts_with(b"{\"parameters\""), "the server goes on: {}", status.escape_ascii());
        Ok(())
    });
    outcome.unwrap();
}
