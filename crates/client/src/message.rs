//! The parameters of each method and reply, as JSON.
//!
//! `io.highwater.Volume.varlink` says the same in Varlink's language; a test holds the two together.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize};

use crate::Change;

/// The interface of a volume.
pub const INTERFACE: &str = "io.highwater.Volume";

/// The interface of a volume in Varlink's language.
pub const INTERFACE_DESCRIPTION: &str = include_str!("io.highwater.Volume.varlink");

/// The interface of every Varlink service.
pub const SERVICE_INTERFACE: &str = "org.varlink.service";

/// The interface of every Varlink service in Varlink's language.
pub const SERVICE_INTERFACE_DESCRIPTION: &str = include_str!("org.varlink.service.varlink");

/// A request. A field that it does not know makes it malformed: `parameters` misspelt would otherwise be a question without any, and be
/// answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call<P> {
    /// Interface and method, with a dot between them.
    pub method: String,
    /// The parameters of the method. A client may leave them out where there are none.
    #[serde(default = "Option::default", skip_serializing_if = "Option::is_none")]
    pub parameters: Option<P>,
    /// The caller takes several replies.
    #[serde(default, skip_serializing_if = "is_false")]
    pub more: bool,
    /// The caller takes no reply.
    #[serde(default, skip_serializing_if = "is_false")]
    pub oneway: bool,
    /// The caller wants to speak something else after the reply; not supported.
    #[serde(default, skip_serializing_if = "is_false")]
    pub upgrade: bool,
}

/// A reply that is not an error.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reply<P> {
    /// What is answered.
    pub parameters: P,
    /// More replies to the same call follow.
    #[serde(default, skip_serializing_if = "is_false")]
    pub continues: bool,
}

/// No parameters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// Parameters of `Barrier`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BarrierCall {
    /// How long to wait, milliseconds; without it as long as it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// Reply of `Barrier`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BarrierReply {
    /// Where the volume is now.
    pub cursor: String,
}

/// Parameters of `Changes`, and of `Follow`, which takes no deadline: at most one of the first three.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangesCall {
    /// A cursor that the caller kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// The stored cursor of a consumer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub consumer: Option<String>,
    /// A cursor and no changes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub now: Option<bool>,
    /// How long to wait for the checkpoint, milliseconds; without it as long as it takes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// One reply of `Changes` and `Follow`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesReply {
    /// Everything through here has been handed out once the answer is complete. The same in each reply of one answer.
    pub cursor: String,
    /// Where the answer begins; `None` if fresh or now.
    pub since: Option<String>,
    /// Not a difference: take everything.
    pub fresh: bool,
    /// Why it is fresh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Some of the lines, in the order in which they are safe to apply.
    pub changes: Vec<Change>,
    /// These were the last ones of this answer.
    pub complete: bool,
}

/// Parameters of `Ack`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AckCall {
    /// Who has used the changes.
    pub consumer: String,
    /// Up to where.
    pub cursor: String,
}

/// Parameters of `AddConsumer` and `RemoveConsumer`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsumerCall {
    /// The name, 1 to 64 of `[A-Za-z0-9._-]`.
    pub name: String,
}

/// One consumer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Consumer {
    /// Its name.
    pub name: String,
    /// Up to where it has acked; `None`: nothing yet, its next answer is fresh.
    pub cursor: Option<String>,
}

/// Reply of `ListConsumers`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ConsumersReply {
    /// All of them, by name.
    pub consumers: Vec<Consumer>,
}

/// Parameters of `org.varlink.service.GetInterfaceDescription`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DescriptionCall {
    /// Which interface.
    pub interface: String,
}

/// Reply of `org.varlink.service.GetInterfaceDescription`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DescriptionReply {
    /// The interface in Varlink's language.
    pub description: String,
}

/// Reply of `org.varlink.service.GetInfo`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InfoReply {
    /// Who made the service.
    pub vendor: String,
    /// What it is.
    pub product: String,
    /// Its version.
    pub version: String,
    /// Where to read about it.
    pub url: String,
    /// What it offers.
    pub interfaces: Vec<String>,
}

/// Reply of `Status`, and a line of `highwater status --json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The tracked directory, if it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<String>,
    /// The tracked directory otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory_base64: Option<String>,
    /// The state directory, if it is UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// The state directory otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_base64: Option<String>,
    /// What sees the modifications: `fuse`, `fanotify` or `bpf`.
    pub source: String,
    /// `strict` or `relaxed`.
    pub durability: String,
    /// The tracker's process id.
    pub pid: u32,
    /// The volume's id.
    pub fsid: String,
    /// The journal's id, as it is in cursors.
    pub journal: String,
    /// The newest sealed period.
    pub checkpoint: u64,
    /// The newest stable period: what is known to be on stable storage.
    pub stable: u64,
    /// The oldest period that a cursor may be of.
    pub oldest: u64,
    /// Write sections in flight.
    pub sections: u64,
    /// Objects open for writing.
    pub open_writers: u64,
    /// Records since the tracker's start.
    pub records: u64,
    /// Times that an operation waited for the journal.
    pub waits: u64,
    /// Bytes that the journal occupies.
    pub journal_bytes: u64,
    /// How long the last checkpoint took, microseconds.
    pub last_checkpoint_us: u64,
    /// A catch-up is running: objects looked at so far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub catching_up: Option<u64>,
    /// Why the journal does not work any more, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// What the source has to say, for people.
    pub details: BTreeMap<String, String>,
}

impl Status {
    /// Sets the tracked and the state directory.
    #[must_use]
    pub fn with_directories(mut self, directory: &Path, state: &Path) -> Self {
        (self.directory, self.directory_base64) = Bytes::to_fields(directory.as_os_str().as_bytes());
        (self.state, self.state_base64) = Bytes::to_fields(state.as_os_str().as_bytes());
        self
    }

    /// The tracked directory.
    pub fn directory(&self) -> Option<PathBuf> {
        Bytes::to_path(&self.directory, &self.directory_base64)
    }

    /// The state directory.
    pub fn state(&self) -> Option<PathBuf> {
        Bytes::to_path(&self.state, &self.state_base64)
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// Bytes in JSON: one field if they are UTF-8, another one if not.
pub(crate) struct Bytes;

/// A pair of such fields that says nothing, or too much.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BytesError {
    #[error("the field {0} is missing")]
    Missing(&'static str),
    #[error("both {0} and {0}_base64 are there")]
    Twice(&'static str),
    #[error("{0}_base64 is not base64")]
    NotBase64(&'static str),
}

impl Bytes {
    pub(crate) fn from_fields(
        name: &'static str,
        text: Option<String>,
        base64: Option<String>,
    ) -> Result<Option<Vec<u8>>, BytesError> {
        match (text, base64) {
            (Some(_), Some(_)) => Err(BytesError::Twice(name)),
            (Some(text), None) => Ok(Some(text.into_bytes())),
            (None, Some(base64)) => {
                STANDARD.decode(base64).map(Some).map_err(|_| BytesError::NotBase64(name))
            }
            (None, None) => Ok(None),
        }
    }

    pub(crate) fn to_fields(bytes: &[u8]) -> (Option<String>, Option<String>) {
        match std::str::from_utf8(bytes) {
            Ok(text) => (Some(text.to_owned()), None),
            Err(_) => (None, Some(STANDARD.encode(bytes))),
        }
    }

    pub(crate) fn to_path(text: &Option<String>, base64: &Option<String>) -> Option<PathBuf> {
        let bytes = Self::from_fields("", text.clone(), base64.clone()).ok()??;
        Some(PathBuf::from(OsString::from_vec(bytes)))
    }
}

pub(crate) fn serialize_bytes<S: SerializeStruct>(
    fields: &mut S,
    name: &'static str,
    name_base64: &'static str,
    bytes: &[u8],
) -> Result<(), S::Error> {
    match std::str::from_utf8(bytes) {
        Ok(text) => fields.serialize_field(name, text),
        Err(_) => fields.serialize_field(name_base64, &STANDARD.encode(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::*;

    #[test]
    fn the_fields_of_a_status_are_those_of_the_interface_description() {
        let odd = Path::new(OsStr::from_bytes(b"/\xff"));
        let status = Status {
            catching_up: Some(1),
            failed: Some("x".to_owned()),
            ..Status::default().with_directories(odd, Path::new("/state"))
        };
        assert_eq!(status.directory().unwrap(), odd);
        let begin = INTERFACE_DESCRIPTION.find("method Status() -> (").unwrap();
        let described =
            &INTERFACE_DESCRIPTION[begin..][..INTERFACE_DESCRIPTION[begin..].find("\n)").unwrap()];
        let serde_json::Value::Object(fields) = serde_json::to_value(&status).unwrap() else {
            unreachable!()
        };
        for field in fields.keys() {
            assert!(described.contains(&format!("  {field}: ")), "{field} is not described");
        }
        // Two of the four path fields are there at a time.
        assert_eq!(described.matches(": ").count(), fields.len() + 2);
    }

    #[test]
    fn a_call_needs_nothing_but_a_method() {
        let call: Call<Empty> = serde_json::from_str(r#"{"method":"a.b.C"}"#).unwrap();
        assert!(call.parameters.is_none() && !call.more && !call.oneway && !call.upgrade);
        assert_eq!(serde_json::to_string(&call).unwrap(), r#"{"method":"a.b.C"}"#);
    }
}
