//! A request, taken apart: which method, with which parameters.
//!
//! A parameter that the method does not know, or of the wrong type, is refused by name: a misspelt `deadline_ms` must not
//! become a barrier without a deadline.

use highwater_client::{Call, Refusal};
use serde_json::{Map, Value};

/// The parameters that have not been taken yet.
pub(super) struct Parameters(Map<String, Value>);

impl Parameters {
    pub(super) fn of(call: &mut Call<Value>) -> Result<Self, Refusal> {
        match call.parameters.take() {
            None | Some(Value::Null) => Ok(Self(Map::new())),
            Some(Value::Object(map)) => Ok(Self(map)),
            Some(_) => {
                Err(Refusal::MalformedRequest { message: "the parameters are not an object".to_owned() })
            }
        }
    }

    /// One that may be left out, or null.
    pub(super) fn optional<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(Value) -> Option<T>,
    ) -> Result<Option<T>, Refusal> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| invalid(name)),
        }
    }

    /// A text that has to be there.
    pub(super) fn text(&mut self, name: &str) -> Result<String, Refusal> {
        self.optional(name, text)?.ok_or_else(|| invalid(name))
    }

    /// Ends the parameters: no other one may be there.
    pub(super) fn end(self) -> Result<(), Refusal> {
        self.0.into_iter().next().map_or(Ok(()), |(name, _)| Err(invalid(&name)))
    }
}

pub(super) fn text(value: Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

pub(super) fn invalid(parameter: &str) -> Refusal {
    Refusal::InvalidParameter { parameter: parameter.to_owned() }
}
