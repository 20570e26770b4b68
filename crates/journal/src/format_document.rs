//! Holds `docs/journal-format.md` and the code together: its constants, and the offsets in its boxes.

use crate::frame::*;
use crate::ids::{JournalId, Period, RecordKind, Usn};
use crate::recovery::USN_SKIP;
use crate::segment::*;

const DOCUMENT: &str = include_str!("../../../docs/journal-format.md");

/// Returns the fields of the boxes under a heading: where each begins, and its name.
fn fields(heading: &str) -> Vec<(usize, String)> {
    let section = DOCUMENT.split_once(heading).unwrap_or_else(|| panic!("no {heading}")).1;
    let section = section.split("\n#").next().expect("a section");
    let lines: Vec<&str> = section.lines().collect();
    let mut fields = Vec::new();
    for window in lines.windows(3) {
        let [offsets, border, names] = window else { continue };
        let is_offsets = !offsets.trim().is_empty()
            && offsets.chars().all(|character| character.is_ascii_digit() || character == ' ');
        if !is_offsets || !border.trim_start().starts_with('+') {
            continue;
        }
        let offsets = offsets.split_whitespace().map(|offset| offset.parse().expect("a number"));
        let names = names.trim().trim_matches('|').split('|').map(|name| name.trim().to_owned());
        fields.extend(offsets.zip(names));
    }
    fields
}

fn assert_fields(heading: &str, bytes: &[u8], expected: &[(&str, &[u8])]) {
    let fields = fields(heading);
    let names: Vec<_> = fields.iter().map(|(_, name)| name.as_str()).filter(|name| *name != "zero").collect();
    assert_eq!(names, expected.iter().map(|(name, _)| *name).collect::<Vec<_>>(), "{heading}");
    let mut covered = vec![false; bytes.len()];
    for (name, value) in expected {
        let at = fields.iter().find(|(_, field)| field == name).expect("found above").0;
        assert_eq!(&bytes[at..at + value.len()], *value, "{heading}: {name} at {at}");
        covered[at..at + value.len()].fill(true);
    }
    for (at, covered) in covered.iter().enumerate() {
        assert!(*covered || bytes[at] == 0, "{heading}: byte {at} is in no field");
    }
}

#[test]
fn the_documents_constants_are_the_codes() {
    let numbers: [(&str, u64); 15] = [
        ("FORMAT_VERSION", FORMAT_VERSION.into()),
        ("MANIFEST_BYTES", MANIFEST_BYTES as u64),
        ("SEGMENT_HEADER_BYTES", SEGMENT_HEADER_BYTES as u64),
        ("FIRST_BATCH", FIRST_BATCH),
        ("SEGMENT_LIMIT_BYTES", SEGMENT_LIMIT_BYTES),
        ("SECTOR_BYTES", SECTOR_BYTES as u64),
        ("ALIGNMENT_BYTES", ALIGNMENT_BYTES as u64),
        ("BATCH_HEADER_BYTES", BATCH_HEADER_BYTES as u64),
        ("BATCH_TRAILER_BYTES", BATCH_TRAILER_BYTES as u64),
        ("BATCH_LIMIT_BYTES", BATCH_LIMIT_BYTES as u64),
        ("RECORD_HEADER_BYTES", RECORD_HEADER_BYTES as u64),
        ("PAYLOAD_LIMIT", PAYLOAD_LIMIT as u64),
        ("FLAG_CLOSED", FLAG_CLOSED.into()),
        ("FLAG_OPENED", FLAG_OPENED.into()),
        ("USN_SKIP", USN_SKIP),
    ];
    for (name, value) in numbers {
        assert!(DOCUMENT.contains(&format!("| `{name}` | {value} |")), "{name} is {value}");
    }
    for text in [
        format!("(`RESERVE_BYTES`, {RESERVE_BYTES})"),
        format!("(`CLOSE_RESERVE_BYTES`, {CLOSE_RESERVE_BYTES})"),
        format!(
            "The magic is `{}`, the end `{}`",
            BATCH_MAGIC.escape_ascii(),
            BATCH_END_MAGIC.escape_ascii()
        ),
        format!("the tail `{}`", TRAILER_MAGIC.escape_ascii()),
        format!("the end magic `{}`", SEGMENT_END_MAGIC.escape_ascii()),
        format!("`{}`", SEGMENT_MAGIC.escape_ascii()),
        format!("`{}`", MANIFEST_MAGIC.escape_ascii()),
        format!("`{MANIFEST_NAME}`"),
    ] {
        assert!(DOCUMENT.contains(&text), "{text}");
    }
}

#[test]
fn the_documents_boxes_are_the_codes() {
    const ID: JournalId = JournalId(*b"0123456789abcdef");
    let manifest = Manifest { id: ID, newest: 0x1111_2222_3333, newest_bytes: 0x10_0000 };
    let bytes = manifest.encode();
    assert_fields(
        "## Manifest: 48 bytes",
        &bytes,
        &[
            ("magic", &MANIFEST_MAGIC),
            ("version", &1u32.to_le_bytes()),
            ("checksm", &bytes[12..16]),
            ("journal id", &ID.0),
            ("newest", &manifest.newest.to_le_bytes()),
            ("newest bytes", &manifest.newest_bytes.to_le_bytes()),
        ],
    );

    let header = SegmentHeader {
        id: ID,
        sequence: 0x0101_0101,
        bytes: 0x20_0000,
        first_usn: Usn(0x0202_0202),
        period_before: Period(0x0303_0303),
        previous_end: 0x4040,
        previous_usn: Usn(0x0105_0505),
        previous_chain: Chain(0x0606_0606),
    };
    let bytes = header.encode();
    assert_fields(
        "### Segment header: 512 bytes",
        &bytes,
        &[
            ("magic", &SEGMENT_MAGIC),
            ("version", &1u32.to_le_bytes()),
            ("checksm", &bytes[12..16]),
            ("journal id", &ID.0),
            ("sequence", &header.sequence.to_le_bytes()),
            ("file length", &header.bytes.to_le_bytes()),
            ("first usn", &header.first_usn.0.to_le_bytes()),
            ("period before", &header.period_before.0.to_le_bytes()),
            ("previous end", &header.previous_end.to_le_bytes()),
            ("previous usn", &header.previous_usn.0.to_le_bytes()),
            ("chain", &header.previous_chain.0.to_le_bytes()),
            ("end magic", &SEGMENT_END_MAGIC),
        ],
    );

    let seed = Seed::new(ID, 1);
    let usn = Usn(0x0808_0808);
    let view = RecordView {
        usn,
        period: Period(0x0909_0909),
        kind: RecordKind(0xaa),
        payload: &[0xbb; 13],
        checksum: 0,
    };
    let mut bytes = Vec::new();
    let mut batch = OpenBatch::open(&mut bytes, 0, usn);
    let chain = batch.push(&mut bytes, &view, seed, Chain::default());
    let chain = batch.close(&mut bytes, Usn(0x0707_0707), FLAG_CLOSED, seed, chain);
    let (head, rest) = bytes.split_at(BATCH_HEADER_BYTES);
    let (record, trailer) = rest.split_at(record_bytes(13));
    assert_fields(
        "### Batch: up to 32256 bytes",
        head,
        &[
            ("magic", &BATCH_MAGIC),
            ("checksm", &head[4..8]),
            ("bytes", &length(bytes.len()).to_le_bytes()),
            ("records", &1u32.to_le_bytes()),
            ("first usn", &usn.0.to_le_bytes()),
            ("durable", &0x0707_0707u64.to_le_bytes()),
            ("dense", &1u64.to_le_bytes()),
            ("flags", &FLAG_CLOSED.to_le_bytes()),
            ("end", &BATCH_END_MAGIC),
        ],
    );
    assert_eq!(trailer, [&chain.0.to_le_bytes()[..], &TRAILER_MAGIC].concat());
    assert_fields(
        "### Record: 32 bytes and the payload",
        record,
        &[
            ("length", &13u32.to_le_bytes()),
            ("checksm", &record[4..8]),
            ("usn", &usn.0.to_le_bytes()),
            ("period", &view.period.0.to_le_bytes()),
            ("k.", &[0xaa]),
            ("payload", &[0xbb; 13]),
        ],
    );
}
