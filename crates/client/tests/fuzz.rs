//! Arbitrary bytes from the other side of the socket, and lines of changes that come back as they were.
//!
//! `HIGHWATER_FUZZ=1000` tries a thousand times as many cases as `cargo test` does.

use std::io::{self, Read};

use highwater_client::{Call, Change, FrameError, FrameReader, Kind, ObjectType, Refusal, Reply};
use proptest::prelude::*;

fn cases(at_least: u32) -> ProptestConfig {
    let times =
        std::env::var("HIGHWATER_FUZZ").map_or(1, |times| times.parse().expect("HIGHWATER_FUZZ is a number"));
    ProptestConfig {
        cases: at_least.saturating_mul(times),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// A stream that gives its bytes in pieces of these sizes, and notes the most that it was asked for.
struct Pieces<'a> {
    bytes: &'a [u8],
    sizes: std::iter::Cycle<std::slice::Iter<'a, usize>>,
}

impl Read for Pieces<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let size = (*self.sizes.next().expect("it never ends")).min(into.len()).min(self.bytes.len());
        into[..size].copy_from_slice(&self.bytes[..size]);
        self.bytes = &self.bytes[size..];
        Ok(size)
    }
}

fn change() -> impl Strategy<Value = Change> {
    let byte = any::<u8>().prop_map(|byte| if byte == 0 { b'\n' } else { byte });
    let path = move || prop::collection::vec(byte.clone(), 1..60);
    let kind = prop::sample::select(vec![
        Kind::Created,
        Kind::Modified,
        Kind::Metadata,
        Kind::Renamed,
        Kind::Deleted,
        Kind::Rescan,
    ]);
    let object_type =
        prop::sample::select(vec![ObjectType::File, ObjectType::Dir, ObjectType::Symlink, ObjectType::Other]);
    (path(), kind, object_type, path(), any::<(bool, bool, Option<u64>, u64)>()).prop_map(
        |(path, kind, object_type, from, (recursive, recovered, nlink, usn))| Change {
            path,
            kind,
            object_type,
            from: (kind == Kind::Renamed).then_some(from),
            recursive: recursive && kind == Kind::Rescan,
            recovered,
            nlink,
            usn,
        },
    )
}

proptest! {
    #![proptest_config(cases(500))]

    /// Wherever the stream is cut into pieces, the frames are what is between the NULs.
    #[test]
    fn frames_do_not_depend_on_how_they_come(
        bytes in prop::collection::vec(prop_oneof![4 => 1_u8..4, 1 => Just(0_u8)], 0..300),
        sizes in prop::collection::vec(1..40_usize, 1..9),
        bytes_max in 1..60_usize,
    ) {
        let mut reader = FrameReader::new(Pieces { bytes: &bytes, sizes: sizes.iter().cycle() }, bytes_max);
        let mut expected: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
        let torn = expected.pop().unwrap_or_default();
        for frame in expected {
            match reader.next_frame() {
                Ok(Some(found)) if frame.len() <= bytes_max => prop_assert_eq!(found, frame),
                Err(FrameError::TooLong { .. }) if frame.len() > bytes_max => return Ok(()),
                other => prop_assert!(false, "{:?} instead of {:?}", other, frame),
            }
        }
        match reader.next_frame() {
            Ok(None) => prop_assert!(torn.is_empty()),
            Err(FrameError::Torn) => prop_assert!(!torn.is_empty()),
            Err(FrameError::TooLong { .. }) => prop_assert!(torn.len() > bytes_max),
            other => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn a_change_comes_back_as_it_was(change in change()) {
        let text = serde_json::to_string(&change).expect("it has no NaN");
        prop_assert!(!text.contains('\n') && !text.contains('\0'), "one line, one frame: {}", text);
        prop_assert_eq!(serde_json::from_str::<Change>(&text).expect("it was written so"), change);
    }

    /// One byte of a message changed, or cut off: it is refused, or it means something. What is read can be written again.
    #[test]
    fn a_damaged_change_is_refused_or_another_change(
        change in change(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        cut in any::<bool>(),
    ) {
        let mut bytes = serde_json::to_vec(&change).expect("it has no NaN");
        let at = at.index(bytes.len());
        if cut { bytes.truncate(at) } else { bytes[at] = byte }
        if let Ok(other) = serde_json::from_slice::<Change>(&bytes) {
            // Fields that do not apply to the kind are read and not written.
            let text = serde_json::to_string(&other).expect("it has no NaN");
            let again = serde_json::from_str::<Change>(&text).expect("it was written so");
            prop_assert_eq!((again.path, again.kind, again.usn), (other.path, other.kind, other.usn));
        }
    }

    #[test]
    fn arbitrary_messages_do_no_harm(bytes in prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        "[\\[{\":,}\\]a-z0-9.e-]{0,200}".prop_map(String::into_bytes),
        (0..100_000_usize, "[\\[{]").prop_map(|(depth, open)| open.repeat(depth).into_bytes()),
        (0..3000_usize).prop_map(|depth| format!("{{\"method\":\"a.B\",\"parameters\":{}1{}}}", "[".repeat(depth), "]".repeat(depth)).into_bytes()),
    ]) {
        let _ = serde_json::from_slice::<Call<serde_json::Value>>(&bytes);
        let _ = serde_json::from_slice::<Reply<serde_json::Value>>(&bytes);
        let _ = serde_json::from_slice::<Refusal>(&bytes);
        let _ = serde_json::from_slice::<Change>(&bytes);
    }
}
