//! What a command ends with.

use std::fmt;
use std::process::ExitCode;

use highwater_client::{CallError, ConnectError, Refusal};

/// The exit status. Scripts rely on the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done.
    Done,
    /// It failed; stderr says why.
    Failed,
    /// The command line is wrong, or something in it.
    Usage,
    /// The directory is not tracked.
    NotTracked,
    /// The answer is fresh, and the format can only tell a difference: a full pass is needed.
    Fresh,
    /// What the command that `run` started ended with.
    Command(u8),
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(match exit {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::NotTracked => 3,
            Exit::Fresh => 4,
            Exit::Command(status) => status,
        })
    }
}

/// Why a command did not end with [`Exit::Done`].
#[derive(Debug)]
pub(crate) struct Failure {
    /// The exit status.
    pub(crate) exit: Exit,
    /// For stderr; `None` if everything has been said already.
    pub(crate) error: Option<anyhow::Error>,
}

impl Failure {
    /// With a message, or an error that has one.
    pub(crate) fn new(exit: Exit, error: impl Into<anyhow::Error>) -> Self {
        Self { exit, error: Some(error.into()) }
    }

    /// With a text.
    pub(crate) fn text(exit: Exit, text: impl fmt::Display) -> Self {
        Self { exit, error: Some(anyhow::Error::msg(text.to_string())) }
    }

    /// Nothing more to say.
    pub(crate) fn silent(exit: Exit) -> Self {
        Self { exit, error: None }
    }

    /// Says on what it failed.
    #[must_use]
    pub(crate) fn context(self, context: impl fmt::Display + Send + Sync + 'static) -> Self {
        Self { exit: self.exit, error: self.error.map(|error| error.context(context)) }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        // The reader of our output has had enough: nothing to complain about, but not everything was said either.
        let broken_pipe = |cause: &(dyn std::error::Error + 'static)| {
            cause
                .downcast_ref::<std::io::Error>()
                .is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
        };
        if error.chain().any(broken_pipe) {
            Self::silent(Exit::Failed)
        } else {
            Self::new(Exit::Failed, error)
        }
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let exit = match error {
            ConnectError::NotTracked(_) => Exit::NotTracked,
            _ => Exit::Failed,
        };
        Self::new(exit, error)
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let exit = match error {
            CallError::Refused(Refusal::MalformedCursor { .. } | Refusal::BadConsumerName { .. }) => {
                Exit::Usage
            }
            _ => Exit::Failed,
        };
        Self::new(exit, error)
    }
}
