//! The records of the journal: what each kind means and how its payload is laid out.
//!
//! docs/journal-format.md shows the same layouts; a test holds the two together. All numbers are little-endian. A handle is
//! one length byte (4 to 132) and the bytes of [`FileHandle::as_bytes`]; a name is one length byte and its bytes; a place is
//! a handle and a name.
//!
//! Decoders check every limit and that nothing follows; the journal's checksum has been checked before.

use highwater_journal::{RecordKind, Usn};

use crate::change::{Change, ObjectType, Place};
use crate::cursor::CheckpointId;
use crate::handle::FileHandle;

/// What one record of the journal says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// A directory, the objects in it with one link included, may be about to change.
    IntentDirectory {
        /// The directory.
        directory: FileHandle,
    },
    /// An object may be about to change.
    IntentObject {
        /// The object.
        object: FileHandle,
        /// Its known names; `None`: it has names, but none is known.
        places: Option<Vec<Place>>,
    },
    /// A directory that is older than the horizon may be about to be moved: what is below its name may differ as a whole.
    IntentMove {
        /// The directory.
        directory: FileHandle,
    },
    /// Where a directory is: written when a period first mentions it.
    Where {
        /// The directory.
        directory: FileHandle,
        /// Where it is.
        place: Place,
    },
    /// What has happened. `places` of [`Change::Modified`] and [`Change::Metadata`]: the known names.
    Changed {
        /// What has happened.
        change: Change,
        /// The known names of a modified object (`None`: it has names, but none is known); empty for the other changes.
        places: Option<Vec<Place>>,
    },
    /// Compare a directory with what is held.
    Rescan {
        /// The directory.
        directory: FileHandle,
        /// With everything below it.
        recursive: bool,
    },
    /// An object whose state may have gone back to an earlier one in a crash, or changed in a gap.
    Recovered {
        /// The object.
        object: FileHandle,
        /// Its type.
        object_type: ObjectType,
        /// Its known names; `None`: it has names, but none is known.
        places: Option<Vec<Place>>,
    },
    /// The period ends here: all its records are before this one.
    Seal {
        /// When, nanoseconds since the epoch.
        time_ns: u64,
    },
    /// Everything through a checkpoint is on stable storage.
    Stable {
        /// The checkpoint.
        checkpoint: CheckpointId,
        /// Intents before this USN are not needed any more.
        intents_from: Usn,
        /// Directories born before this are not hidden in one that is covered; nanoseconds since the epoch.
        time_ns: u64,
    },
    /// Changes have been lost here: no difference can be given across this record.
    Lost {
        /// Why, for people.
        reason: String,
    },
    /// Tracking begins. Records of later periods than `stable` that stand before this one are no facts: the tracker died, and
    /// what they tell may not have reached the disk. What they touched is told again behind this record.
    Started {
        /// The stable horizon when tracking ended.
        stable: CheckpointId,
        /// When, nanoseconds since the epoch.
        time_ns: u64,
        /// The boot id of the system.
        boot_id: String,
    },
    /// The volume was not tracked from then until here: what changed is being looked for. Counts until the next `Stable`.
    Gap {
        /// Since when, nanoseconds since the epoch.
        began_ns: u64,
    },
    /// Tracking ends cleanly; everything is on stable storage.
    Stopped {
        /// When, nanoseconds since the epoch.
        time_ns: u64,
    },
}

/// The kinds, as they are on disk. A number is never used again for something else.
pub(crate) mod kind {
    use highwater_journal::RecordKind;
    pub(crate) const INTENT_DIRECTORY: RecordKind = RecordKind(1);
    pub(crate) const INTENT_OBJECT: RecordKind = RecordKind(2);
    pub(crate) const WHERE: RecordKind = RecordKind(3);
    pub(crate) const INTENT_MOVE: RecordKind = RecordKind(13);
    pub(crate) const CREATED: RecordKind = RecordKind(4);
    pub(crate) const LINKED: RecordKind = RecordKind(5);
    pub(crate) const REMOVED: RecordKind = RecordKind(6);
    pub(crate) const RENAMED: RecordKind = RecordKind(7);
    pub(crate) const EXCHANGED: RecordKind = RecordKind(8);
    pub(crate) const MODIFIED: RecordKind = RecordKind(9);
    pub(crate) const METADATA: RecordKind = RecordKind(10);
    pub(crate) const RESCAN: RecordKind = RecordKind(11);
    pub(crate) const RECOVERED: RecordKind = RecordKind(12);
    pub(crate) const SEAL: RecordKind = RecordKind(16);
    pub(crate) const STABLE: RecordKind = RecordKind(17);
    pub(crate) const LOST: RecordKind = RecordKind(18);
    pub(crate) const STARTED: RecordKind = RecordKind(19);
    pub(crate) const STOPPED: RecordKind = RecordKind(20);
    pub(crate) const GAP: RecordKind = RecordKind(21);
}

/// The most names of one object that a record tells. More are told as if none were known (`rescan` of everything).
pub(crate) const PLACES_MAX: usize = 32;

/// The most bytes of a handle and of a name, each with its length byte.
const HANDLE_FIELD_MAX: usize = 1 + 4 + crate::handle::HANDLE_BYTES_MAX;
const NAME_FIELD_MAX: usize = 1 + 255;

// The largest payload, an object with PLACES_MAX names, fits into a record.
const _: () = assert!(
    2 + HANDLE_FIELD_MAX + PLACES_MAX * (HANDLE_FIELD_MAX + NAME_FIELD_MAX)
        <= highwater_journal::PAYLOAD_LIMIT
);

/// The count of places that says: there are names, but none is known.
const PLACES_UNKNOWN: u8 = 255;

/// The longest reason of [`Body::Lost`], bytes: the record must fit into the journal's reserve.
pub(crate) const REASON_BYTES_MAX: usize = 120;

/// A record whose payload is not what its kind says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("record of kind {kind} cannot be decoded: {what}")]
pub struct DecodeError {
    /// The kind.
    pub kind: u8,
    /// What is wrong.
    pub what: &'static str,
}

impl Body {
    /// The kind and the payload.
    pub fn encode(&self) -> (RecordKind, Vec<u8>) {
        let mut out = Encoder(Vec::with_capacity(64));
        let kind = match self {
            Self::IntentDirectory { directory } => {
                out.handle(directory);
                kind::INTENT_DIRECTORY
            }
            Self::IntentObject { object, places } => {
                out.handle(object);
                out.places(places);
                kind::INTENT_OBJECT
            }
            Self::IntentMove { directory } => {
                out.handle(directory);
                kind::INTENT_MOVE
            }
            Self::Where { directory, place } => {
                out.handle(directory);
                out.place(place);
                kind::WHERE
            }
            Self::Changed { change, places } => out.change(change, places),
            Self::Rescan { directory, recursive } => {
                out.handle(directory);
                out.0.push(u8::from(*recursive));
                kind::RESCAN
            }
            Self::Recovered { object, object_type, places } => {
                out.object(object, *object_type);
                out.places(places);
                kind::RECOVERED
            }
            Self::Seal { time_ns } => {
                out.u64(*time_ns);
                kind::SEAL
            }
            Self::Stable { checkpoint, intents_from, time_ns } => {
                out.u64(checkpoint.0);
                out.u64(intents_from.0);
                out.u64(*time_ns);
                kind::STABLE
            }
            Self::Lost { reason } => {
                out.text(reason);
                kind::LOST
            }
            Self::Started { stable, time_ns, boot_id } => {
                out.u64(stable.0);
                out.u64(*time_ns);
                out.text(boot_id);
                kind::STARTED
            }
            Self::Gap { began_ns } => {
                out.u64(*began_ns);
                kind::GAP
            }
            Self::Stopped { time_ns } => {
                out.u64(*time_ns);
                kind::STOPPED
            }
        };
        (kind, out.0)
    }

    /// Takes a payload apart.
    ///
    /// # Errors
    /// If it is not exactly one payload of that kind.
    pub fn decode(kind: RecordKind, payload: &[u8]) -> Result<Self, DecodeError> {
        let mut decoder = Decoder { rest: payload };
        let body =
            decoder.body(kind).ok_or(DecodeError { kind: kind.0, what: "damaged or of an unknown kind" })?;
        if !decoder.rest.is_empty() {
            return Err(DecodeError { kind: kind.0, what: "bytes follow the payload" });
        }
        Ok(body)
    }
}

struct Encoder(Vec<u8>);

impl Encoder {
    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        let len = u8::try_from(bytes.len()).expect("handles, names and texts are at most 255 bytes");
        self.0.push(len);
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        let mut end = text.len().min(REASON_BYTES_MAX);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.bytes(&text.as_bytes()[..end]);
    }

    fn handle(&mut self, handle: &FileHandle) {
        self.bytes(handle.as_bytes());
    }

    fn object(&mut self, object: &FileHandle, object_type: ObjectType) {
        self.0.push(match object_type {
            ObjectType::File => 0,
            ObjectType::Directory => 1,
            ObjectType::Symlink => 2,
            ObjectType::Other => 3,
        });
        self.handle(object);
    }

    fn place(&mut self, place: &Place) {
        self.handle(&place.parent);
        self.bytes(&place.name);
    }

    fn places(&mut self, places: &Option<Vec<Place>>) {
        match places {
            Some(places) if places.len() <= PLACES_MAX => {
                self.0.push(u8::try_from(places.len()).expect("at most PLACES_MAX"));
                places.iter().for_each(|place| self.place(place));
            }
            _ => self.0.push(PLACES_UNKNOWN),
        }
    }

    fn change(&mut self, change: &Change, places: &Option<Vec<Place>>) -> RecordKind {
        match change {
            Change::Created { object, object_type, place } => {
                self.object(object, *object_type);
                self.place(place);
                kind::CREATED
            }
            Change::Linked { object, object_type, place } => {
                self.object(object, *object_type);
                self.place(place);
                kind::LINKED
            }
            Change::Removed { object, object_type, place } => {
                self.object(object, *object_type);
                self.place(place);
                kind::REMOVED
            }
            Change::Renamed { object, object_type, from, to, replaced } => {
                self.object(object, *object_type);
                self.place(from);
                self.place(to);
                self.0.push(u8::from(replaced.is_some()));
                if let Some((object, object_type)) = replaced {
                    self.object(object, *object_type);
                }
                kind::RENAMED
            }
            Change::Exchanged { a, a_place, b, b_place } => {
                self.object(&a.0, a.1);
                self.place(a_place);
                self.object(&b.0, b.1);
                self.place(b_place);
                kind::EXCHANGED
            }
            Change::Modified { object } => {
                self.handle(object);
                self.places(places);
                kind::MODIFIED
            }
            Change::Metadata { object, object_type } => {
                self.object(object, *object_type);
                self.places(places);
                kind::METADATA
            }
        }
    }
}

struct Decoder<'a> {
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(*first)
    }

    fn flag(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn u64(&mut self) -> Option<u64> {
        let (first, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(u64::from_le_bytes(*first))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::from(self.u8()?);
        let (bytes, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(bytes)
    }

    fn text(&mut self) -> Option<String> {
        String::from_utf8(self.bytes()?.to_vec()).ok()
    }

    fn handle(&mut self) -> Option<FileHandle> {
        FileHandle::from_bytes(self.bytes()?)
    }

    fn object(&mut self) -> Option<(FileHandle, ObjectType)> {
        let object_type = match self.u8()? {
            0 => ObjectType::File,
            1 => ObjectType::Directory,
            2 => ObjectType::Symlink,
            3 => ObjectType::Other,
            _ => return None,
        };
        Some((self.handle()?, object_type))
    }

    fn place(&mut self) -> Option<Place> {
        let parent = self.handle()?;
        let name = self.bytes()?;
        let valid = !name.is_empty() && !name.contains(&b'/') && !name.contains(&0);
        valid.then(|| Place { parent, name: name.into() })
    }

    #[expect(
        clippy::option_option,
        reason = "the outer one is the decoder's failure, the inner one is what was recorded"
    )]
    fn places(&mut self) -> Option<Option<Vec<Place>>> {
        let count = self.u8()?;
        if count == PLACES_UNKNOWN {
            return Some(None);
        }
        if usize::from(count) > PLACES_MAX {
            return None;
        }
        (0..count).map(|_| self.place()).collect::<Option<Vec<_>>>().map(Some)
    }

    fn body(&mut self, kind: RecordKind) -> Option<Body> {
        Some(match kind {
            kind::INTENT_DIRECTORY => Body::IntentDirectory { directory: self.handle()? },
            kind::INTENT_OBJECT => Body::IntentObject { object: self.handle()?, places: self.places()? },
            kind::INTENT_MOVE => Body::IntentMove { directory: self.handle()? },
            kind::WHERE => Body::Where { directory: self.handle()?, place: self.place()? },
            kind::RESCAN => Body::Rescan { directory: self.handle()?, recursive: self.flag()? },
            kind::RECOVERED => {
                let (object, object_type) = self.object()?;
                Body::Recovered { object, object_type, places: self.places()? }
            }
            kind::SEAL => Body::Seal { time_ns: self.u64()? },
            kind::STABLE => Body::Stable {
                checkpoint: CheckpointId(self.u64()?),
                intents_from: Usn(self.u64()?),
                time_ns: self.u64()?,
            },
            kind::LOST => Body::Lost { reason: self.text()? },
            kind::STARTED => {
                let (stable, time_ns) = (CheckpointId(self.u64()?), self.u64()?);
                Body::Started { stable, time_ns, boot_id: self.text()? }
            }
            kind::GAP => Body::Gap { began_ns: self.u64()? },
            kind::STOPPED => Body::Stopped { time_ns: self.u64()? },
            _ => {
                let (change, places) = self.change(kind)?;
                Body::Changed { change, places }
            }
        })
    }

    fn change(&mut self, kind: RecordKind) -> Option<(Change, Option<Vec<Place>>)> {
        let change = match kind {
            kind::CREATED => {
                let (object, object_type) = self.object()?;
                Change::Created { object, object_type, place: self.place()? }
            }
            kind::LINKED => {
                let (object, object_type) = self.object()?;
                Change::Linked { object, object_type, place: self.place()? }
            }
            kind::REMOVED => {
                let (object, object_type) = self.object()?;
                Change::Removed { object, object_type, place: self.place()? }
            }
            kind::RENAMED => {
                let (object, object_type) = self.object()?;
                let (from, to) = (self.place()?, self.place()?);
                let replaced = if self.flag()? { Some(self.object()?) } else { None };
                Change::Renamed { object, object_type, from, to, replaced }
            }
            kind::EXCHANGED => {
                let (a, a_place) = (self.object()?, self.place()?);
                let (b, b_place) = (self.object()?, self.place()?);
                Change::Exchanged { a, a_place, b, b_place }
            }
            kind::MODIFIED => return Some((Change::Modified { object: self.handle()? }, self.places()?)),
            kind::METADATA => {
                let (object, object_type) = self.object()?;
                return Some((Change::Metadata { object, object_type }, self.places()?));
            }
            _ => return None,
        };
        Some((change, Some(Vec::new())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(id: u8) -> FileHandle {
        FileHandle::new(1, &[id; 8]).unwrap()
    }

    fn place(parent: u8, name: &[u8]) -> Place {
        Place { parent: handle(parent), name: name.into() }
    }

    fn one_of_each() -> Vec<Body> {
        let changed = |change| Body::Changed { change, places: Some(Vec::new()) };
        vec![
            Body::IntentDirectory { directory: handle(1) },
            Body::IntentObject {
                object: handle(2),
                places: Some(vec![place(1, b"a\n\xff"), place(1, &[b'x'; 255])]),
            },
            Body::Where { directory: handle(3), place: place(1, b"d") },
            changed(Change::Created {
                object: handle(4),
                object_type: ObjectType::File,
                place: place(3, b"f"),
            }),
            changed(Change::Linked {
                object: handle(4),
                object_type: ObjectType::Symlink,
                place: place(3, b"g"),
            }),
            changed(Change::Removed {
                object: handle(4),
                object_type: ObjectType::Other,
                place: place(3, b"g"),
            }),
            changed(Change::Renamed {
                object: handle(4),
                object_type: ObjectType::Directory,
                from: place(3, b"f"),
                to: place(1, b"h"),
                replaced: Some((handle(5), ObjectType::File)),
            }),
            changed(Change::Exchanged {
                a: (handle(4), ObjectType::File),
                a_place: place(1, b"h"),
                b: (handle(3), ObjectType::Directory),
                b_place: place(1, b"d"),
            }),
            Body::Changed {
                change: Change::Modified { object: handle(4) },
                places: Some(vec![place(1, b"h")]),
            },
            Body::Changed {
                change: Change::Metadata { object: handle(3), object_type: ObjectType::Directory },
                places: None,
            },
            Body::Rescan { directory: handle(1), recursive: true },
            Body::Recovered { object: handle(4), object_type: ObjectType::File, places: Some(vec![]) },
            Body::Seal { time_ns: 7 },
            Body::Stable { checkpoint: CheckpointId(3), intents_from: Usn(9), time_ns: 1 },
            Body::Lost { reason: "the disk was full".into() },
            Body::IntentMove { directory: handle(3) },
            Body::Started { stable: CheckpointId(2), time_ns: 1, boot_id: "b".into() },
            Body::Gap { began_ns: 4 },
            Body::Stopped { time_ns: 2 },
        ]
    }

    #[test]
    fn every_kind_of_record_survives_the_journal() {
        let mut kinds = std::collections::BTreeSet::new();
        for body in one_of_each() {
            let (kind, payload) = body.encode();
            assert!(kinds.insert(kind.0), "two records of kind {}", kind.0);
            assert_eq!(Body::decode(kind, &payload), Ok(body));
        }
        assert_eq!(kinds.len(), 19, "a kind is missing from this test");
    }

    #[test]
    fn the_document_shows_every_kind() {
        let document = include_str!("../../../docs/journal-format.md");
        for body in one_of_each() {
            let name = match &body {
                Body::Changed { change, .. } => format!("{change:?}"),
                other => format!("{other:?}"),
            };
            let name = name.split(' ').next().unwrap_or_default();
            let row = format!("| {} | `{name}` |", body.encode().0.0);
            assert!(document.contains(&row), "docs/journal-format.md has no row {row:?}");
        }
        assert!(document.contains(&format!("0 to {PLACES_MAX}; {PLACES_UNKNOWN}:")));
        assert!(document.contains(&format!("at most {REASON_BYTES_MAX} bytes")));
    }

    #[test]
    fn a_payload_that_is_cut_or_too_long_is_refused() {
        for body in one_of_each() {
            let (kind, mut payload) = body.encode();
            for len in 0..payload.len() {
                assert!(Body::decode(kind, &payload[..len]).is_err(), "{body:?} cut to {len}");
            }
            payload.push(0);
            assert!(Body::decode(kind, &payload).is_err(), "{body:?} with a byte more");
        }
    }

    #[test]
    fn a_name_that_would_leave_its_directory_is_refused() {
        for name in [&b"a/b"[..], b"a\0"] {
            let (kind, payload) = Body::Where { directory: handle(1), place: place(2, name) }.encode();
            assert!(Body::decode(kind, &payload).is_err());
        }
    }
}
