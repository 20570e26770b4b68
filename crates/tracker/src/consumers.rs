//! The consumers and their cursors, in the state file `consumers`.
//!
//! Invariant: a cursor that has been acked is on stable storage before the ack is answered, and never goes back.

use std::collections::BTreeMap;
use std::io;

use highwater_journal::Storage;

use crate::cursor::Cursor;
use crate::error::RequestError;
use crate::state_file;
use crate::tracker::{Consumer, Shared, Tracker};

/// Most consumers: the file is rewritten as a whole at each ack.
const CONSUMERS_MAX: usize = 1024;

const NAME_BYTES_MAX: usize = 64;

const FILE: &str = "consumers";

#[derive(Clone, Debug, Default)]
pub(crate) struct Consumers {
    cursors: BTreeMap<String, Option<Cursor>>,
}

impl Consumers {
    pub(crate) fn read<S: Storage>(storage: &S) -> io::Result<Self> {
        let Some(lines) = state_file::read(storage, FILE)? else { return Ok(Self::default()) };
        let damaged =
            || io::Error::new(io::ErrorKind::InvalidData, "the state file consumers holds no cursor");
        let mut cursors = BTreeMap::new();
        for (name, value) in lines {
            let text = String::from_utf8(value).map_err(|_| damaged())?;
            let cursor = if text.is_empty() { None } else { Some(text.parse().map_err(|_| damaged())?) };
            cursors.insert(name, cursor);
        }
        Ok(Self { cursors })
    }

    fn write<S: Storage>(&self, storage: &S) -> Result<(), RequestError> {
        let text =
            |cursor: &Option<Cursor>| cursor.as_ref().map_or(String::new(), ToString::to_string).into_bytes();
        let lines = self.cursors.iter().map(|(name, cursor)| (name.as_str(), text(cursor)));
        state_file::write(storage, FILE, lines)
            .map_err(|source| RequestError::State { doing: "store the consumers", source })
    }

    pub(crate) fn cursor(&self, name: &str) -> Result<Option<Cursor>, RequestError> {
        self.cursors.get(name).copied().ok_or_else(|| RequestError::UnknownConsumer { name: name.to_owned() })
    }
}

impl<S: Storage> Shared<S> {
    /// Changes the consumers on stable storage, then in memory.
    fn change_consumers(
        &self,
        change: impl FnOnce(&mut Consumers) -> Result<(), RequestError>,
    ) -> Result<(), RequestError> {
        let mut consumers = self.consumers.lock();
        let mut changed = consumers.clone();
        change(&mut changed)?;
        changed.write(self.journal.storage())?;
        *consumers = changed;
        Ok(())
    }
}

impl<S: Storage> Tracker<S> {
    /// Stores a consumer's cursor, durably. The consumer must have made durable what it was told before.
    ///
    /// # Errors
    /// [`RequestError::UnknownConsumer`]; [`RequestError::AckBackwards`]; [`RequestError::ForeignCursor`] for a cursor of
    /// another journal, or one that has not been given out yet; [`RequestError::State`].
    pub fn ack(&self, name: &str, given: &Cursor) -> Result<(), RequestError> {
        let shared = &self.shared;
        self.shared.change_consumers(|consumers| {
            let stored = consumers.cursor(name)?;
            let is_ours = given.journal == shared.journal_id()
                && given.checkpoint <= shared.checkpoints.sealed()
                // What cannot be told any more is no reason to refuse it: the next answer is fresh then.
                && shared.has_sealed(given.checkpoint).unwrap_or(true);
            if !is_ours {
                return Err(RequestError::ForeignCursor { given: *given });
            }
            if let Some(acked) =
                stored.filter(|acked| acked.journal == given.journal && acked.checkpoint > given.checkpoint)
            {
                return Err(RequestError::AckBackwards { name: name.to_owned(), acked, given: *given });
            }
            consumers.cursors.insert(name.to_owned(), Some(*given));
            Ok(())
        })
    }

    /// Adds a consumer. Its first answer is fresh.
    ///
    /// # Errors
    /// [`RequestError::BadConsumerName`]; [`RequestError::ConsumerExists`]; [`RequestError::TooManyConsumers`];
    /// [`RequestError::State`].
    pub fn add_consumer(&self, name: &str) -> Result<(), RequestError> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(allowed) {
            return Err(RequestError::BadConsumerName { name: name.chars().take(80).collect() });
        }
        self.shared.change_consumers(|consumers| {
            if consumers.cursors.contains_key(name) {
                return Err(RequestError::ConsumerExists { name: name.to_owned() });
            }
            if consumers.cursors.len() >= CONSUMERS_MAX {
                return Err(RequestError::TooManyConsumers { max: CONSUMERS_MAX });
            }
            consumers.cursors.insert(name.to_owned(), None);
            Ok(())
        })
    }

    /// Removes a consumer and forgets its cursor.
    ///
    /// # Errors
    /// [`RequestError::UnknownConsumer`]; [`RequestError::State`].
    pub fn remove_consumer(&self, name: &str) -> Result<(), RequestError> {
        self.shared.change_consumers(|consumers| {
            consumers.cursor(name)?;
            consumers.cursors.remove(name);
            Ok(())
        })
    }

    /// Returns all consumers, by name.
    pub fn consumers(&self) -> Vec<Consumer> {
        let consumers = self.shared.consumers.lock();
        consumers
            .cursors
            .iter()
            .map(|(name, cursor)| Consumer { name: name.clone(), cursor: *cursor })
            .collect()
    }
}
