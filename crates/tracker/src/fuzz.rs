//! Arbitrary bytes for everything that the tracker reads back: records, cursors, state files.
//!
//! `HIGHWATER_FUZZ=1000` tries a thousand times as many cases as `cargo test` does, `plan_model` included.

use proptest::prelude::*;

use crate::change::{Change, ObjectType, Place};
use crate::cursor::{CheckpointId, Cursor};
use crate::handle::FileHandle;
use crate::record::Body;
use crate::state_file;
use highwater_journal::{JournalId, RecordKind, Usn};

/// How many cases are tried.
pub(crate) fn cases(at_least: u32) -> ProptestConfig {
    let times =
        std::env::var("HIGHWATER_FUZZ").map_or(1, |times| times.parse().expect("HIGHWATER_FUZZ is a number"));
    ProptestConfig {
        cases: at_least.saturating_mul(times),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn handle() -> impl Strategy<Value = FileHandle> {
    (any::<i32>(), prop::collection::vec(any::<u8>(), 0..=crate::handle::HANDLE_BYTES_MAX))
        .prop_map(|(handle_type, opaque)| FileHandle::new(handle_type, &opaque).expect("short enough"))
}

fn place() -> impl Strategy<Value = Place> {
    let byte = any::<u8>().prop_map(|byte| if byte == 0 || byte == b'/' { b'\n' } else { byte });
    (handle(), prop::collection::vec(byte, 1..=255))
        .prop_map(|(parent, name)| Place { parent, name: name.into() })
}

fn places() -> impl Strategy<Value = Option<Vec<Place>>> {
    prop::option::of(prop::collection::vec(place(), 0..=crate::record::PLACES_MAX))
}

fn object_type() -> impl Strategy<Value = ObjectType> {
    use ObjectType::{Directory, File, Other, Symlink};
    prop::sample::select(vec![File, Directory, Symlink, Other])
}

fn text() -> impl Strategy<Value = String> {
    "\\PC{0,30}"
}

fn change() -> impl Strategy<Value = Body> {
    let object = || (handle(), object_type());
    let told = |change| Body::Changed { change, places: Some(Vec::new()) };
    prop_oneof![
        (object(), place()).prop_map(move |((object, object_type), place)| {
            told(Change::Created { object, object_type, place })
        }),
        (object(), place()).prop_map(move |((object, object_type), place)| {
            told(Change::Linked { object, object_type, place })
        }),
        (object(), place()).prop_map(move |((object, object_type), place)| {
            told(Change::Removed { object, object_type, place })
        }),
        (object(), place(), place(), prop::option::of(object())).prop_map(
            move |((object, object_type), from, to, replaced)| {
                told(Change::Renamed { object, object_type, from, to, replaced })
            }
        ),
        (object(), place(), object(), place())
            .prop_map(move |(a, a_place, b, b_place)| told(Change::Exchanged { a, a_place, b, b_place })),
        (handle(), places())
            .prop_map(|(object, places)| Body::Changed { change: Change::Modified { object }, places }),
        (object(), places()).prop_map(|((object, object_type), places)| Body::Changed {
            change: Change::Metadata { object, object_type },
            places
        }),
    ]
}

fn body() -> impl Strategy<Value = Body> {
    prop_oneof![
        7 => change(),
        1 => handle().prop_map(|directory| Body::IntentDirectory { directory }),
        1 => (handle(), places()).prop_map(|(object, places)| Body::IntentObject { object, places }),
        1 => handle().prop_map(|directory| Body::IntentMove { directory }),
        1 => (handle(), place()).prop_map(|(directory, place)| Body::Where { directory, place }),
        1 => (handle(), any::<bool>()).prop_map(|(directory, recursive)| Body::Rescan { directory, recursive }),
        1 => (handle(), object_type(), places())
            .prop_map(|(object, object_type, places)| Body::Recovered { object, object_type, places }),
        1 => any::<u64>().prop_map(|time_ns| Body::Seal { time_ns }),
        1 => any::<(u64, u64, u64)>().prop_map(|(checkpoint, usn, time_ns)| Body::Stable {
            checkpoint: CheckpointId(checkpoint),
            intents_from: Usn(usn),
            time_ns
        }),
        1 => text().prop_map(|reason| Body::Lost { reason }),
        1 => (any::<(u64, u64)>(), text()).prop_map(|((stable, time_ns), boot_id)| Body::Started {
            stable: CheckpointId(stable),
            time_ns,
            boot_id
        }),
        1 => any::<u64>().prop_map(|began_ns| Body::Gap { began_ns }),
        1 => any::<u64>().prop_map(|time_ns| Body::Stopped { time_ns }),
    ]
}

proptest! {
    #![proptest_config(cases(1_000))]

    #[test]
    fn a_record_comes_back_as_it_was(body in body()) {
        let (kind, payload) = body.encode();
        prop_assert_eq!(Body::decode(kind, &payload), Ok(body));
    }

    /// What is decoded is what the bytes say: there is one way to write each record.
    #[test]
    fn arbitrary_bytes_are_refused_or_are_a_record(kind in 0_u8..24, bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(body) = Body::decode(RecordKind(kind), &bytes) {
            prop_assert_eq!(body.encode(), (RecordKind(kind), bytes));
        }
    }

    #[test]
    fn a_record_with_a_byte_changed_is_refused_or_another_record(
        body in body(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let (kind, mut payload) = body.encode();
        let at = at.index(payload.len());
        payload[at] = byte;
        if let Ok(other) = Body::decode(kind, &payload) {
            prop_assert_eq!(other.encode().1, payload);
        }
    }

    #[test]
    fn a_cursor_comes_back_as_it_was(id in any::<[u8; 16]>(), a in any::<u64>(), b in any::<u64>()) {
        let cursor = Cursor {
            journal: JournalId(id),
            checkpoint: CheckpointId(a.max(b)),
            reading_since: CheckpointId(a.min(b)),
        };
        prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
    }

    #[test]
    fn an_arbitrary_text_is_no_cursor_or_means_one(text in prop_oneof![
        "\\PC{0,80}",
        "hw1\\.[0-9a-f]{32}\\.[0-9]{1,3}\\.[0-9]{1,3}(\\.[0-9]?)?",
        "hw1\\.[0-9a-fA-F+]{30,34}\\.[0-9+ -]{0,22}\\.[0-9]{0,22}(\\..)?",
    ]) {
        match text.parse::<Cursor>() {
            Ok(cursor) => {
                prop_assert!(cursor.reading_since <= cursor.checkpoint);
                prop_assert_eq!(text.split('.').count(), 4, "nothing follows");
                prop_assert_eq!(cursor.to_string().parse(), Ok(cursor));
            }
            Err(error) => prop_assert!(error.text.chars().count() <= 80),
        }
    }

    #[test]
    fn a_state_file_comes_back_as_it_was(values in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..6)) {
        let lines: Vec<(String, Vec<u8>)> =
            values.into_iter().enumerate().map(|(number, value)| (format!("key-{number}"), value)).collect();
        let text = state_file::encode("test", lines.iter().map(|(key, value)| (key.as_str(), value.clone())));
        prop_assert_eq!(state_file::decode("test", text.as_bytes()), Some(lines));
    }

    /// Also where the checksum is right.
    #[test]
    fn an_arbitrary_state_file_is_refused_or_read(body in "(highwater test 1\n)?([a-z]{0,4} ?[ -~]{0,20}\n){0,4}\\PC{0,9}") {
        let text = format!("{body}checksum {:08x}\n", crc32c::crc32c(body.as_bytes()));
        if let Some(lines) = state_file::decode("test", text.as_bytes()) {
            let again = state_file::encode("test", lines.iter().map(|(key, value)| (key.as_str(), value.clone())));
            prop_assert_eq!(state_file::decode("test", again.as_bytes()), Some(lines));
        }
    }

    #[test]
    fn arbitrary_bytes_are_no_state_file(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert_eq!(state_file::decode("test", &bytes), None);
    }
}
