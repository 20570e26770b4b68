//! Writes the fixture of the current format version, which `tests/fixture.rs` must read for ever:
//!
//! ```text
//! umask 077; cargo run -p highwater-journal --example write_fixture -- crates/journal/tests/fixtures/format-1
//! ```
//!
//! Run it once per format version; a fixture that was committed is never written again.

use highwater_journal::{Directory, Journal, JournalId, Options, Period, RecordKind};

fn main() {
    let path = std::env::args_os().nth(1).expect("the fixture's directory");
    let mut options = Options::default();
    options.segment_bytes = 64 << 10;
    options.limit_bytes = 16 * options.segment_bytes;
    let directory = Directory::open(path).expect("a directory of mode 0700");
    let id = JournalId(*b"highwater fixtur");
    let mut journal = Journal::create(directory, id, options).expect("an empty directory");
    for number in 1..=100u8 {
        let payload = vec![number; usize::from(number) * 10];
        let usn = journal
            .append(RecordKind(number % 3), Period(u64::from(number) / 10), &payload)
            .expect("appended");
        if number.is_multiple_of(7) {
            journal.sync(usn).expect("synced");
        }
    }
    journal.close().expect("closed");
}
