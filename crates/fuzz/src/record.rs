//! Payloads of the tracker's records, and lines of changes.

use highwater_client::{Change, Kind};
use highwater_journal::RecordKind;
use highwater_tracker::Body;

use crate::input::Input;

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let kind = input.byte();
    let bytes = input.rest();
    if kind < 24 {
        // There is one way to write each record.
        if let Ok(body) = Body::decode(RecordKind(kind), bytes) {
            assert_eq!(body.encode(), (RecordKind(kind), bytes.to_vec()));
        }
        return;
    }
    if let Ok(change) = serde_json::from_slice::<Change>(bytes) {
        let text = serde_json::to_string(&change).expect("it has no NaN");
        assert!(!text.contains(['\n', '\0']), "one line, one frame: {text}");
        let again: Change = serde_json::from_str(&text).expect("it was written so");
        // `recursive` is written where it applies only.
        let recursive = change.recursive && change.kind == Kind::Rescan;
        assert_eq!(again, Change { recursive, ..change });
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let handle = b"\x08\x01\0\0\0abcd";
    let place = [&handle[..], b"\x03a b"].concat();
    let object = [&[1], &handle[..]].concat();
    let number = 77_u64.to_le_bytes();
    let mut seeds = vec![
        [&[1], &handle[..]].concat(),
        [&[2], &handle[..], &[1], &place[..]].concat(),
        [&[3], &handle[..], &place[..]].concat(),
        [&[7], &object[..], &place[..], &place[..], &[1], &object[..]].concat(),
        [&[8], &object[..], &place[..], &object[..], &place[..]].concat(),
        [&[9], &handle[..], &[255]].concat(),
        [&[11], &handle[..], &[1]].concat(),
        [&[12], &object[..], &[2], &place[..], &place[..]].concat(),
        [&[16], &number[..]].concat(),
        [&[17], &number[..], &number[..], &number[..]].concat(),
        [&[18, 4][..], b"full"].concat(),
        [&[19], &number[..], &number[..], &[4], b"boot"].concat(),
    ];
    for kind in [4, 5, 6] {
        seeds.push([&[kind], &object[..], &place[..]].concat());
    }
    seeds.push([&[10], &object[..], &[0]].concat());
    seeds.push(
        br#"~{"path":"a/b","kind":"renamed","type":"file","from":"c","recovered":false,"nlink":2,"usn":7}"#
            .to_vec(),
    );
    seeds.push(
        br#"~{"path_base64":"/y94","kind":"rescan","type":"dir","recursive":true,"recovered":true,"usn":7}"#
            .to_vec(),
    );
    seeds
}
