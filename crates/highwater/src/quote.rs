//! Names that a person can read and a shell takes back.

use std::fmt::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Quotes a path for a shell (bash, zsh, ksh) if it needs that, so that a terminal is not harmed by control characters
/// and `eval` gives the same bytes back.
///
/// Plain names stay as they are; others are in `'...'`, and those with control characters, bytes that are not UTF-8 or
/// invisible characters in `$'...'`.
pub(crate) fn quote(bytes: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"/._-+,@%:=".contains(byte);
    let text = std::str::from_utf8(bytes);
    let printable = text.is_ok_and(|text| text.chars().all(is_printable));
    match text {
        Ok(text)
            if !text.is_empty() && text.bytes().all(|byte| plain(&byte) || byte >= 0x80) && printable =>
        {
            text.to_owned()
        }
        Ok(text) if printable && !text.contains('\'') => format!("'{text}'"),
        _ => escaped(bytes),
    }
}

/// Quotes a path, see [`quote`].
pub(crate) fn quote_path(path: &Path) -> String {
    quote(path.as_os_str().as_bytes())
}

fn is_printable(character: char) -> bool {
    // Format and separator characters: direction overrides and the like can make a name look like another one.
    let invisible = matches!(character, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202f}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}');
    !character.is_control() && !invisible
}

fn escaped(bytes: &[u8]) -> String {
    let mut text = String::from("$'");
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\'' | '\\' => text.extend(['\\', character]),
                '\n' => text += "\\n",
                '\t' => text += "\\t",
                '\r' => text += "\\r",
                _ if is_printable(character) => text.push(character),
                _ => hex(&mut text, character.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        hex(&mut text, chunk.invalid());
    }
    text.push('\'');
    text
}

/// Octal with three digits ends by itself; `\x` would take what follows in some shells.
fn hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        // Writing to a String does not fail.
        let _ = write!(text, "\\{byte:03o}");
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const NAMES: &[&[u8]] = &[
        b"plain/name.txt",
        "grün/日本".as_bytes(),
        b"with space",
        b"it's",
        b"back\\slash 'x'",
        b"new\nline\ttab",
        b"\xff\xfe01",
        b"\x1b[31mred\x7f9",
        b"$HOME `id` !x \"q\" *?",
        b"# comment",
        b"~root",
        b"-> arrow",
        "left\u{202e}right".as_bytes(),
    ];

    #[test]
    fn plain_names_stay_as_they_are_and_odd_ones_are_quoted() {
        assert_eq!(quote(b"a/b-c_d.txt"), "a/b-c_d.txt");
        assert_eq!(quote("grün".as_bytes()), "grün");
        assert_eq!(quote(b"a b"), "'a b'");
        assert_eq!(quote(b"it's"), r"$'it\'s'");
        assert_eq!(quote(b"a\n\xff"), r"$'a\n\377'");
        assert_eq!(quote(b""), "''");
    }

    #[test]
    fn a_shell_takes_every_name_back() {
        for name in NAMES {
            let script = format!("printf %s {}", quote(name));
            let output = Command::new("bash").arg("-c").arg(&script).output().unwrap();
            assert_eq!(&output.stdout, name, "{script}");
        }
    }

    #[test]
    fn nothing_quoted_harms_a_terminal() {
        for name in NAMES {
            assert!(quote(name).chars().all(is_printable), "{name:?}");
        }
    }
}
