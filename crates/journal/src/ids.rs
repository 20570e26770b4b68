//! The numbers and the record that the journal knows.
//!
//! Invariant: a [`Usn`] that was assigned once is never assigned again in the same journal.

use std::fmt;
use std::str::FromStr;

/// Update sequence number: strictly increasing in one journal, never reused. `Usn(0)` is no record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Usn(pub u64);

impl Usn {
    /// Stands before the first record.
    pub const NONE: Self = Self(0);

    /// Returns the number after this one.
    ///
    /// # Panics
    /// After 2^64 - 1 records.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.checked_add(1).expect("the update sequence numbers are used up"))
    }
}

impl fmt::Display for Usn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The time between two checkpoints; every record belongs to one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Period(pub u64);

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a record means; its values belong to the caller, the journal only stores them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKind(pub u8);

/// Names one journal for ever: 16 random bytes chosen by whoever creates it.
///
/// Shown and parsed as 32 lower-case hexadecimal digits. It seeds every checksum, so a segment of another journal
/// never validates.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JournalId(pub [u8; 16]);

impl fmt::Display for JournalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for JournalId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JournalId({self})")
    }
}

/// A text that is not 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a journal id is 32 hexadecimal digits")]
pub struct ParseJournalIdError;

impl FromStr for JournalId {
    type Err = ParseJournalIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.as_bytes();
        if digits.len() != 32 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(ParseJournalIdError);
        }
        let mut id = [0; 16];
        for (index, byte) in id.iter_mut().enumerate() {
            *byte =
                u8::from_str_radix(&text[2 * index..2 * index + 2], 16).map_err(|_| ParseJournalIdError)?;
        }
        Ok(Self(id))
    }
}

/// One record as it was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The number that the journal assigned.
    pub usn: Usn,
    /// The period that the caller gave.
    pub period: Period,
    /// The kind that the caller gave.
    pub kind: RecordKind,
    /// The caller's bytes, at most [`PAYLOAD_LIMIT`](crate::PAYLOAD_LIMIT).
    pub payload: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_journal_id_survives_its_text() {
        let id = JournalId(*b"\x00\x01highwater\xff\xfe abc".first_chunk().expect("16 bytes"));
        assert_eq!(id.to_string().len(), 32);
        assert_eq!(id.to_string().parse(), Ok(id));
        for text in [
            "",
            "00",
            "zz000000000000000000000000000000",
            "+0000000000000000000000000000000",
            "äöüäöüäöüäöüäöüä",
        ] {
            assert_eq!(text.parse::<JournalId>(), Err(ParseJournalIdError), "{text}");
        }
    }
}
