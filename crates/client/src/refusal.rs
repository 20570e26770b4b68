//! The error replies.
//!
//! On the wire: `{"error":"io.highwater.Volume.UnknownConsumer","parameters":{"name":"x"}}`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A process that uses the tracked directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Its id.
    pub pid: u32,
    /// Its name.
    pub command: String,
}

/// Why a request was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(tag = "error", content = "parameters")]
#[non_exhaustive]
pub enum Refusal {
    /// No consumer of this name.
    #[serde(rename = "io.highwater.Volume.UnknownConsumer")]
    #[error("there is no consumer {name:?}; `highwater consumer add DIR {name}` makes one")]
    UnknownConsumer {
        /// The name.
        name: String,
    },
    /// There is one already.
    #[serde(rename = "io.highwater.Volume.ConsumerExists")]
    #[error("there is a consumer {name:?} already")]
    ConsumerExists {
        /// The name.
        name: String,
    },
    /// Not a name for a consumer.
    #[serde(rename = "io.highwater.Volume.BadConsumerName")]
    #[error("not a name for a consumer: {name:?} (1 to 64 letters, digits, '.', '_' or '-')")]
    BadConsumerName {
        /// The text.
        name: String,
    },
    /// There are too many consumers already.
    #[serde(rename = "io.highwater.Volume.TooManyConsumers")]
    #[error("there are {consumers_max} consumers already, which is the most; remove one first")]
    TooManyConsumers {
        /// The limit.
        consumers_max: u64,
    },
    /// An ack may not go back.
    #[serde(rename = "io.highwater.Volume.AckBackwards")]
    #[error("consumer {name:?} has acked {acked} already, {given} is older; an ack never goes back")]
    AckBackwards {
        /// The consumer.
        name: String,
        /// What is stored.
        acked: String,
        /// What was given.
        given: String,
    },
    /// The cursor was not given out by this volume.
    #[serde(rename = "io.highwater.Volume.ForeignCursor")]
    #[error("cursor {given} was not given out by this volume")]
    ForeignCursor {
        /// The cursor.
        given: String,
    },
    /// Not a cursor at all.
    #[serde(rename = "io.highwater.Volume.MalformedCursor")]
    #[error(
        "not a cursor: {given:?}; a cursor is what an earlier answer gave, like hw1.<32 hex digits>.<number>.<number>"
    )]
    MalformedCursor {
        /// The text.
        given: String,
    },
    /// The deadline passed.
    #[serde(rename = "io.highwater.Volume.Deadline")]
    #[error("the deadline passed while waiting for {waiting_for}")]
    Deadline {
        /// What held it up.
        waiting_for: String,
    },
    /// The source failed.
    #[serde(rename = "io.highwater.Volume.SourceFailed")]
    #[error("the source failed: {message}")]
    SourceFailed {
        /// How.
        message: String,
    },
    /// The journal has failed for good.
    #[serde(rename = "io.highwater.Volume.JournalFailed")]
    #[error("the journal has failed: {message}; stop the tracker, repair its disk and start it again")]
    JournalFailed {
        /// How.
        message: String,
    },
    /// A file of the state could not be stored: what was asked for has not been done.
    #[serde(rename = "io.highwater.Volume.StateFailed")]
    #[error("{message}")]
    StateFailed {
        /// How.
        message: String,
    },
    /// The tracker is stopping.
    #[serde(rename = "io.highwater.Volume.Stopping")]
    #[error("the tracker is stopping")]
    Stopping {},
    /// These processes use the tracked directory; tracking goes on.
    #[serde(rename = "io.highwater.Volume.Busy")]
    #[error("the tracked directory is in use{}; tracking goes on", holders_text(holders))]
    Busy {
        /// Who; empty if that cannot be seen.
        holders: Vec<Holder>,
        /// What the unmount said.
        message: String,
    },
    /// Stopping failed in another way.
    #[serde(rename = "io.highwater.Volume.StopFailed")]
    #[error("stopping failed: {message}")]
    StopFailed {
        /// How.
        message: String,
    },
    /// No further connection is taken now.
    #[serde(rename = "io.highwater.Volume.TooManyConnections")]
    #[error(
        "the tracker has {connections_max} connections open already, which is its limit; try again later"
    )]
    TooManyConnections {
        /// The limit.
        connections_max: u64,
    },
    /// A frame went on and on.
    #[serde(rename = "io.highwater.Volume.RequestTooLong")]
    #[error("the request is longer than {bytes_max} bytes")]
    RequestTooLong {
        /// The limit.
        bytes_max: u64,
    },
    /// A frame is not a call.
    #[serde(rename = "io.highwater.Volume.MalformedRequest")]
    #[error("the request is not a Varlink call: {message}")]
    MalformedRequest {
        /// Why.
        message: String,
    },
    /// No such interface.
    #[serde(rename = "org.varlink.service.InterfaceNotFound")]
    #[error("the tracker does not offer the interface {interface}")]
    InterfaceNotFound {
        /// Which.
        interface: String,
    },
    /// No such method.
    #[serde(rename = "org.varlink.service.MethodNotFound")]
    #[error("the tracker does not know the method {method}; it may be older than this client")]
    MethodNotFound {
        /// Which.
        method: String,
    },
    /// The method needs something that is not there.
    #[serde(rename = "org.varlink.service.MethodNotImplemented")]
    #[error("the tracker does not do {method}")]
    MethodNotImplemented {
        /// Which.
        method: String,
    },
    /// A parameter is missing, too much, or of the wrong type.
    #[serde(rename = "org.varlink.service.InvalidParameter")]
    #[error("the tracker does not take the parameter {parameter}")]
    InvalidParameter {
        /// Which.
        parameter: String,
    },
    /// The caller is neither root nor the owner of the volume.
    #[serde(rename = "org.varlink.service.PermissionDenied")]
    #[error("only the owner of the volume and root may talk to its tracker")]
    PermissionDenied {},
    /// The method answers in several replies, and the call does not take them.
    #[serde(rename = "org.varlink.service.ExpectedMore")]
    #[error("the answer needs several replies; call it with \"more\"")]
    ExpectedMore {},
    /// One that this client does not know.
    #[serde(skip)]
    #[error("the tracker answered {error} {parameters}")]
    Unknown {
        /// Its name.
        error: String,
        /// Its parameters.
        parameters: Value,
    },
}

impl Refusal {
    /// Reads an error reply; every text is one.
    pub fn from_reply(error: String, parameters: Option<Value>) -> Self {
        let parameters =
            parameters.filter(Value::is_object).unwrap_or_else(|| Value::Object(Default::default()));
        let whole = serde_json::json!({ "error": error, "parameters": parameters });
        serde_json::from_value(whole).unwrap_or(Self::Unknown { error, parameters })
    }
}

fn holders_text(holders: &[Holder]) -> String {
    const NAMED_MAX: usize = 8;
    let mut text = String::new();
    for (at, holder) in holders.iter().take(NAMED_MAX).enumerate() {
        text += if at == 0 { " by " } else { ", " };
        text += &format!("{} (pid {})", holder.command, holder.pid);
    }
    if holders.len() > NAMED_MAX {
        text += &format!(" and {} more", holders.len() - NAMED_MAX);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_replies_have_the_names_of_the_interface_descriptions() {
        let busy = Refusal::Busy {
            holders: vec![Holder { pid: 7, command: "bash".to_owned() }],
            message: "EBUSY".to_owned(),
        };
        assert_eq!(busy.to_string(), "the tracked directory is in use by bash (pid 7); tracking goes on");
        for refusal in [busy, Refusal::Stopping {}, Refusal::RequestTooLong { bytes_max: 5 }] {
            let value = serde_json::to_value(&refusal).unwrap();
            let name = value["error"].as_str().unwrap();
            let short = name.strip_prefix("io.highwater.Volume.").unwrap();
            assert!(crate::INTERFACE_DESCRIPTION.contains(&format!("\nerror {short} (")), "{name}");
            let back = Refusal::from_reply(name.to_owned(), value.get("parameters").cloned());
            assert_eq!(back, refusal);
        }
    }

    #[test]
    fn an_error_reply_without_parameters_or_of_another_tracker_is_understood() {
        assert_eq!(Refusal::from_reply("io.highwater.Volume.Stopping".into(), None), Refusal::Stopping {});
        let odd = Refusal::from_reply("io.highwater.Volume.Tired".into(), None);
        assert!(matches!(odd, Refusal::Unknown { .. }), "{odd:?}");
    }
}
