//! Texts that may be a cursor, and state files.

use highwater_tracker::{Cursor, state_file};

use crate::input::Input;
use crate::memory::Memory;

pub(crate) const WORDS: &[&str] =
    &["hw1.", ".", "0123456789abcdef0123456789abcdef", "18446744073709551615", "%2e", "checksum "];

pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    if !input.byte().is_multiple_of(4) {
        if let Ok(text) = std::str::from_utf8(input.rest()) {
            cursor(text);
        }
        return;
    }
    let memory = Memory::new();
    let is_sealed = !input.byte().is_multiple_of(4);
    let mut file = input.rest().to_vec();
    if is_sealed {
        file.splice(..0, *b"highwater test 1\n");
        let checksum = crc32c::crc32c(&file);
        file.extend(format!("checksum {checksum:08x}\n").bytes());
    }
    memory.put_file("test", file);
    if let Ok(lines) = state_file::read(&memory, "test") {
        let lines = lines.expect("there is one");
        let pairs = lines.iter().map(|(key, value)| (key.as_str(), value.clone()));
        state_file::write(&memory, "test", pairs).expect("a disk that works");
        assert_eq!(state_file::read(&memory, "test").expect("as written").expect("it is there"), lines);
    }
}

/// The grammar: `hw1.`, 32 hexadecimal digits, two numbers of which the second is not greater, each behind a dot.
fn is_cursor(text: &str) -> bool {
    let parts: Vec<&str> = text.split('.').collect();
    let [first, journal, checkpoint, since] = parts.as_slice() else { return false };
    let number = |text: &str| {
        let digits = text.trim_start_matches('0');
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // As many digits as 2^64 - 1 has, and in the order of texts not behind it.
        (is_number && (digits.len(), digits) <= (20, "18446744073709551615"))
            .then(|| (digits.len(), digits.to_owned()))
    };
    *first == "hw1"
        && journal.len() == 32
        && journal.bytes().all(|byte| byte.is_ascii_hexdigit())
        && matches!((number(checkpoint), number(since)), (Some(checkpoint), Some(since)) if since <= checkpoint)
}

fn cursor(text: &str) {
    match text.parse::<Cursor>() {
        Ok(cursor) => {
            assert!(is_cursor(text), "{text:?} is taken for a cursor");
            assert!(cursor.reading_since <= cursor.checkpoint);
            let written = cursor.to_string();
            assert_eq!(written.parse(), Ok(cursor), "{text:?}");
            assert!(is_cursor(&written));
        }
        Err(error) => {
            assert!(!is_cursor(text), "{text:?} is not taken for a cursor");
            assert!(error.text.chars().count() <= 80);
        }
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let journal = "0123456789abcdef0123456789abcdef";
    let mut seeds: Vec<Vec<u8>> =
        [format!("hw1.{journal}.12.7"), format!("hw1.{journal}.0.0"), "hw1.".to_owned()]
            .iter()
            .map(|text| [&[1], text.as_bytes()].concat())
            .collect();
    seeds.push(b"\0\x01key value\nother %ff%0a\n".to_vec());
    seeds.push(b"\0\0highwater test 1\nchecksum 00000000\n".to_vec());
    seeds
}
