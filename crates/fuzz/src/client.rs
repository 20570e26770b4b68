//! Answers to a real client: a script instead of a tracker, written to the socket before the client asks, so that one thread is enough.
//!
//! G5: an answer that the client gives out is all that the frames say, and no frame contradicts another.

use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use highwater_client::{CallError, Change, Changes, Since, Volume};
use serde_json::Value;

pub(crate) const WORDS: &[&str] = &[
    "{\"parameters\":{",
    "\"continues\":true",
    "\"error\":\"",
    "\0",
    "\"cursor\":\"",
    "\"since\":\"",
    "\"since\":null",
    "\"fresh\":true",
    "\"fresh\":false",
    "\"reason\":\"",
    "\"changes\":[",
    "\"complete\":true",
    "\"complete\":false",
    "\"path\":\"",
    "\"path_base64\":\"/w==\"",
    "\"kind\":\"renamed\"",
    "\"kind\":\"rescan\"",
    "\"type\":\"file\"",
    "\"from\":\"",
    "\"from_base64\":\"",
    "\"recursive\":true",
    "\"recovered\":true",
    "\"nlink\":",
    "\"usn\":1",
    "\"consumers\":[",
    "\"name\":\"",
    "io.highwater.Volume.UnknownConsumer",
    "io.highwater.Volume.Busy",
    "\"holders\":[",
    "org.varlink.service.InvalidParameter",
    "\\u0000",
    "18446744073709551616",
];

struct Script {
    listener: UnixListener,
    socket: PathBuf,
    _home: tempfile::TempDir,
}

fn script() -> &'static Script {
    static SCRIPT: OnceLock<Script> = OnceLock::new();
    SCRIPT.get_or_init(|| {
        let home = tempfile::tempdir().expect("a temporary directory");
        let socket = home.path().join("socket");
        Script { listener: UnixListener::bind(&socket).expect("a socket"), socket, _home: home }
    })
}

/// The first byte says what is asked; the rest is what is answered.
pub(crate) fn run(bytes: &[u8]) {
    let Some((what, answers)) = bytes.split_first() else { return };
    let Script { listener, socket, .. } = script();
    let mut volume = Volume::connect_socket(socket).expect("the listener is there");
    let (mut tracker, _) = listener.accept().expect("the client is there");
    tracker.write_all(answers).expect("there is room for it");
    tracker.shutdown(Shutdown::Write).expect("it is open");
    let mut frames: Vec<&[u8]> = answers.split(|byte| *byte == 0).collect();
    // What has no end is no frame.
    frames.pop();
    let mut frames = frames.into_iter();
    match what % 10 {
        0 => compare(volume.status(), reply(&mut frames)),
        1 => {
            let cursor = volume.barrier(Some(Duration::from_secs(9)));
            let expected = reply(&mut frames).filter(|parameters| parameters["cursor"].is_string());
            if let Ok(cursor) = &cursor {
                assert_eq!(
                    expected.as_ref().and_then(|parameters| parameters["cursor"].as_str()),
                    Some(cursor.as_str())
                );
            }
            compare(cursor, expected);
        }
        2 => {
            let consumers = volume.consumers();
            let expected = reply(&mut frames);
            if let (Ok(consumers), Some(expected)) = (&consumers, &expected) {
                assert_eq!(Some(consumers.len()), expected["consumers"].as_array().map(Vec::len));
            }
            compare(consumers, expected);
        }
        3 => compare(volume.ack("c", "hw1"), reply(&mut frames)),
        4 => compare(volume.stop(), reply(&mut frames)),
        5 => {
            let Ok(mut follow) = volume.follow(&Since::Now) else { return };
            for _ in 0..4 {
                let batch = follow.next_batch();
                let ended = batch.is_err();
                compare_changes(batch, &mut frames);
                if ended {
                    return;
                }
            }
        }
        _ => compare_changes(volume.changes(&Since::Nothing, None), &mut frames),
    }
}

/// The parameters of the next frame, if it is a reply and not an error.
fn reply<'a>(frames: &mut impl Iterator<Item = &'a [u8]>) -> Option<Value> {
    // What is in a field that nobody knows is not looked at, so it need not be UTF-8.
    let frame: Value = serde_json::from_str(&String::from_utf8_lossy(frames.next()?)).ok()?;
    let is_reply = frame.is_object() && frame.get("error").is_none_or(Value::is_null);
    let parameters = frame.get("parameters").filter(|value| !value.is_null()).cloned();
    let parameters = parameters.unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    (is_reply && parameters.is_object()).then_some(parameters)
}

/// The client may refuse more, but takes nothing that is no reply.
fn compare<T>(answer: Result<T, CallError>, expected: Option<Value>) {
    match answer {
        Ok(_) => assert!(expected.is_some(), "an answer where there is none"),
        // An error can be told to people.
        Err(error) => drop(error.to_string()),
    }
}

fn compare_changes<'a>(answer: Result<Changes, CallError>, frames: &mut impl Iterator<Item = &'a [u8]>) {
    let Ok(answer) = answer else { return };
    let mut lines: Vec<Value> = Vec::new();
    loop {
        let frame = frames.next().expect("an answer that has not come");
        let parameters = reply(&mut std::iter::once(frame)).expect("an answer that is no reply");
        let text = |name: &str| parameters.get(name).and_then(Value::as_str).map(str::to_owned);
        assert_eq!(text("cursor").as_ref(), Some(&answer.cursor), "an answer with two cursors");
        assert_eq!(text("since"), answer.since, "an answer with two beginnings");
        assert_eq!(parameters["fresh"], answer.fresh, "an answer that is fresh and not fresh");
        lines.extend(parameters["changes"].as_array().expect("lines").iter().cloned());
        if parameters["complete"] == true {
            break;
        }
        let whole: Value = serde_json::from_str(&String::from_utf8_lossy(frame)).expect("it was read before");
        assert_eq!(whole["continues"], true, "an answer that ends before it is complete");
    }
    let expected: Result<Vec<Change>, _> = lines.into_iter().map(serde_json::from_value).collect();
    assert_eq!(answer.changes, expected.expect("lines that are none"), "other lines than in the frames");
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let line = r#"{"path":"a","kind":"deleted","type":"file","recovered":false,"usn":1}"#;
    let part = |cursor: &str, complete: bool, continues: &str| {
        format!(
            "{{\"parameters\":{{\"cursor\":\"{cursor}\",\"since\":\"s\",\"fresh\":false,\"changes\":[{line}],\"complete\":{complete}}}{continues}}}\0"
        )
    };
    let more = ",\"continues\":true";
    let error = "{\"error\":\"io.highwater.Volume.Busy\",\"parameters\":{\"holders\":[{\"pid\":1,\"command\":\"x\"}],\"message\":\"m\"}}\0";
    [
        format!("\x06{}", part("c", true, "")),
        format!("\x06{}{}", part("c", false, more), part("c", true, "")),
        format!("\x06{}", part("c", false, "")),
        format!("\x06{}{}", part("c", false, more), part("d", true, "")),
        format!("\x05{}{}{}", part("c", true, more), part("d", false, more), part("d", true, more)),
        "\0{\"parameters\":{\"source\":\"fuse\",\"pid\":7,\"details\":{\"a\":\"b\"}}}\0".to_owned(),
        "\x01{\"parameters\":{\"cursor\":\"c\"}}\0".to_owned(),
        "\x02{\"parameters\":{\"consumers\":[{\"name\":\"c\",\"cursor\":null}]}}\0".to_owned(),
        "\x03{}\0".to_owned(),
        format!("\x04{error}"),
        "\x03{\"error\":\"org.varlink.service.MethodNotFound\",\"parameters\":{\"method\":\"x\"}}\0"
            .to_owned(),
    ]
    .map(String::into_bytes)
    .to_vec()
}
