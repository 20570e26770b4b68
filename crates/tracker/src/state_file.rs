//! The small files beside the journal: lines of text, replaced as a whole, with a checksum.
//!
//! Layout: `highwater <what> 1`, then `key value` lines, then `checksum <crc32c of all before, 8 hex digits>`. Values are
//! percent-encoded where they hold anything but printable ASCII. A crash leaves the old or the new file, never a mixture
//! ([`Storage::replace`]). A file that does not verify counts as damage.

use std::fmt::Write as _;
use std::io;

use highwater_journal::Storage;

/// The keys and values of a state file, in their order.
pub type Lines = Vec<(String, Vec<u8>)>;

/// Reads and takes apart a state file. `Ok(None)`: there is none.
///
/// # Errors
/// `InvalidData` if it does not verify.
pub fn read<S: Storage>(storage: &S, what: &str) -> io::Result<Option<Lines>> {
    let bytes = match storage.read(what) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let damaged = || io::Error::new(io::ErrorKind::InvalidData, format!("the state file {what} is damaged"));
    decode(what, &bytes).ok_or_else(damaged).map(Some)
}

/// Replaces a state file, durably.
///
/// # Errors
/// The storage's.
pub fn write<'a, S: Storage>(
    storage: &S,
    what: &str,
    lines: impl IntoIterator<Item = (&'a str, Vec<u8>)>,
) -> io::Result<()> {
    storage.replace(what, encode(what, lines).as_bytes())
}

pub(crate) fn encode<'a>(what: &str, lines: impl IntoIterator<Item = (&'a str, Vec<u8>)>) -> String {
    let mut text = format!("highwater {what} 1\n");
    for (key, value) in lines {
        text.push_str(key);
        text.push(' ');
        for byte in value {
            match byte {
                b'!'..=b'$' | b'&'..=b'~' => text.push(char::from(byte)),
                _ => write!(text, "%{byte:02x}").expect("writing to a string succeeds"),
            }
        }
        text.push('\n');
    }
    let checksum = crc32c::crc32c(text.as_bytes());
    writeln!(text, "checksum {checksum:08x}").expect("writing to a string succeeds");
    text
}

pub(crate) fn decode(what: &str, bytes: &[u8]) -> Option<Lines> {
    let text = std::str::from_utf8(bytes).ok()?;
    let (body, checksum) = text.strip_suffix('\n')?.rsplit_once("checksum ")?;
    if checksum.len() != 8 || u32::from_str_radix(checksum, 16).ok()? != crc32c::crc32c(body.as_bytes()) {
        return None;
    }
    let mut lines = body.lines();
    if lines.next()? != format!("highwater {what} 1") {
        return None;
    }
    let pair = |line: &str| {
        let (key, value) = line.split_once(' ')?;
        let mut bytes = Vec::new();
        let mut rest = value.as_bytes();
        while let Some((first, tail)) = rest.split_first() {
            if *first == b'%' {
                let (digits, tail) = tail.split_at_checked(2)?;
                bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
                rest = tail;
            } else {
                bytes.push(*first);
                rest = tail;
            }
        }
        Some((key.to_owned(), bytes))
    };
    lines.map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_file_keeps_any_bytes_and_notices_any_flipped_bit() {
        let text = encode("test", [("a", b"x y\n%\xff".to_vec()), ("b", vec![])]);
        let lines = vec![("a".to_owned(), b"x y\n%\xff".to_vec()), ("b".to_owned(), vec![])];
        assert_eq!(decode("test", text.as_bytes()), Some(lines.clone()));
        assert_eq!(decode("other", text.as_bytes()), None);
        for position in 0..text.len() {
            for bit in 0..8 {
                let mut damaged = text.clone().into_bytes();
                damaged[position] ^= 1 << bit;
                let decoded = decode("test", &damaged);
                assert!(
                    decoded.is_none() || decoded.as_ref() == Some(&lines),
                    "bit {bit} of byte {position}"
                );
            }
            assert_eq!(decode("test", &text.as_bytes()[..position]), None);
        }
    }
}
