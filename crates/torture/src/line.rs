//! The JSON lines of `highwater changes`, read strictly: what the contract does not allow is an error.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

use crate::object::{Kind, show};

/// What a consumer has to do about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineKind {
    Created,
    Modified,
    Metadata,
    Renamed,
    Deleted,
    Rescan,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: LineKind,
    /// What the line says that the object is.
    pub(crate) object: Kind,
    pub(crate) from: Option<Vec<u8>>,
    pub(crate) recursive: bool,
    pub(crate) recovered: bool,
}

/// One answer.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) cursor: String,
    pub(crate) since: Option<String>,
    pub(crate) fresh: bool,
    pub(crate) lines: Vec<Line>,
}

impl Line {
    /// One line for a report.
    pub(crate) fn show(&self) -> String {
        let mut text = format!("{:?} {:?} {}", self.kind, self.object, show(&self.path));
        if let Some(from) = &self.from {
            text += &format!(" from {}", show(from));
        }
        if self.recursive {
            text += " recursive";
        }
        if self.recovered {
            text += " recovered";
        }
        text
    }

    /// Whether the line is about a path, something above it or something below it.
    pub(crate) fn touches(&self, path: &[u8]) -> bool {
        let related = |other: &[u8]| is_at_or_below(path, other) || is_at_or_below(other, path);
        self.path == b"." && self.recursive
            || self.path != b"." && related(&self.path)
            || self.from.as_deref().is_some_and(related)
    }

    fn parse(value: &Map<String, Value>) -> Result<Self> {
        for field in value.keys() {
            let known = [
                "path",
                "path_base64",
                "kind",
                "type",
                "from",
                "from_base64",
                "recursive",
                "recovered",
                "nlink",
                "usn",
            ];
            ensure!(known.contains(&field.as_str()), "unknown field {field:?}");
        }
        let kind = match text(value, "kind")? {
            "created" => LineKind::Created,
            "modified" => LineKind::Modified,
            "metadata" => LineKind::Metadata,
            "renamed" => LineKind::Renamed,
            "deleted" => LineKind::Deleted,
            "rescan" => LineKind::Rescan,
            other => bail!("unknown kind {other:?}"),
        };
        let object = match text(value, "type")? {
            "file" => Kind::File,
            "dir" => Kind::Directory,
            "symlink" => Kind::Symlink,
            "other" => Kind::Other,
            other => bail!("unknown type {other:?}"),
        };
        let line = Self {
            path: path(value, "path", "path_base64")?.context("no path")?,
            kind,
            object,
            from: path(value, "from", "from_base64")?,
            recursive: flag(value, "recursive")?,
            recovered: flag(value, "recovered")?,
        };
        ensure!(
            (kind == LineKind::Renamed) == line.from.is_some(),
            "`from` belongs to `renamed` and only there"
        );
        ensure!(!line.recursive || kind == LineKind::Rescan, "`recursive` on a line that is no rescan");
        ensure!(
            kind != LineKind::Rescan || object == Kind::Directory,
            "rescan of something that is no directory"
        );
        Ok(line)
    }
}

impl Answer {
    /// Reads the whole output of one command.
    pub(crate) fn parse(text: &[u8]) -> Result<Self> {
        ensure!(text.ends_with(b"\n"), "the answer does not end with a newline");
        let mut lines = text[..text.len() - 1].split(|byte| *byte == b'\n');
        let head = object(lines.next().unwrap_or_default())?;
        let mut answer = Self {
            cursor: self::text(&head, "cursor")?.to_owned(),
            since: match head.get("since") {
                None | Some(Value::Null) => None,
                Some(value) => Some(value.as_str().context("`since` is no string")?.to_owned()),
            },
            fresh: flag(&head, "fresh")?,
            lines: Vec::new(),
        };
        for line in lines {
            let parsed = object(line).and_then(|value| Line::parse(&value));
            answer.lines.push(parsed.with_context(|| format!("in line {}", String::from_utf8_lossy(line)))?);
        }
        ensure!(!answer.fresh || answer.lines.is_empty(), "a fresh answer with changes");
        Ok(answer)
    }
}

/// Whether some line makes a consumer look at a non-directory again that exists.
pub(crate) fn covers(lines: &[Line], path: &[u8]) -> bool {
    let parent = path.iter().rposition(|byte| *byte == b'/').map_or(&b"."[..], |at| &path[..at]);
    lines.iter().any(|line| match line.kind {
        LineKind::Rescan => line.path == parent || line.recursive && is_at_or_below(path, &line.path),
        LineKind::Created | LineKind::Modified => line.path == path,
        LineKind::Renamed | LineKind::Metadata | LineKind::Deleted => false,
    })
}

/// Whether `path` is `above` or below it.
pub(crate) fn is_at_or_below(path: &[u8], above: &[u8]) -> bool {
    above == b"."
        || path.strip_prefix(above).is_some_and(|rest| rest.is_empty() || rest.first() == Some(&b'/'))
}

fn object(line: &[u8]) -> Result<Map<String, Value>> {
    match serde_json::from_slice(line)? {
        Value::Object(map) => Ok(map),
        _ => bail!("not a JSON object"),
    }
}

fn text<'a>(value: &'a Map<String, Value>, field: &str) -> Result<&'a str> {
    value.get(field).and_then(Value::as_str).with_context(|| format!("no string {field:?}"))
}

fn flag(value: &Map<String, Value>, field: &str) -> Result<bool> {
    match value.get(field) {
        None => Ok(false),
        Some(found) => found.as_bool().with_context(|| format!("{field:?} is no boolean")),
    }
}

fn path(value: &Map<String, Value>, plain: &str, encoded: &str) -> Result<Option<Vec<u8>>> {
    let path = match (value.get(plain), value.get(encoded)) {
        (Some(_), Some(_)) => bail!("both {plain:?} and {encoded:?}"),
        (None, None) => return Ok(None),
        (Some(_), None) => text(value, plain)?.as_bytes().to_vec(),
        (None, Some(_)) => {
            let path = base64(text(value, encoded)?).with_context(|| format!("{encoded:?} is no base64"))?;
            ensure!(std::str::from_utf8(&path).is_err(), "{encoded:?} of a path that is UTF-8");
            path
        }
    };
    ensure!(!path.is_empty(), "an empty path");
    if path != b"." {
        for component in path.split(|byte| *byte == b'/') {
            ensure!(!matches!(component, b"" | b"." | b".."), "a path with an empty, `.` or `..` component");
        }
    }
    Ok(Some(path))
}

/// Standard alphabet, with padding.
fn base64(text: &str) -> Option<Vec<u8>> {
    let text = text.as_bytes();
    if !text.len().is_multiple_of(4) {
        return None;
    }
    let mut decoded = Vec::with_capacity(text.len() / 4 * 3);
    for (index, group) in text.chunks(4).enumerate() {
        let last = (index + 1) * 4 == text.len();
        let padding = group.iter().rev().take_while(|byte| **byte == b'=').count();
        if padding > 2 || (padding > 0 && !last) {
            return None;
        }
        let mut bits = 0_u32;
        for byte in &group[..4 - padding] {
            let six = match byte {
                b'A'..=b'Z' => byte - b'A',
                b'a'..=b'z' => byte - b'a' + 26,
                b'0'..=b'9' => byte - b'0' + 52,
                b'+' => 62,
                b'/' => 63,
                _ => return None,
            };
            bits = bits << 6 | u32::from(six);
        }
        bits <<= 6 * padding;
        decoded.extend_from_slice(&bits.to_be_bytes()[1..4 - padding]);
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_every_padding_is_read_and_damage_is_refused() {
        assert_eq!(base64("/w=="), Some(vec![0xff]));
        assert_eq!(base64("YWI="), Some(b"ab".to_vec()));
        assert_eq!(base64("YWJj"), Some(b"abc".to_vec()));
        assert_eq!(base64("YWJj/w=="), Some(b"abc\xff".to_vec()));
        for bad in ["Y", "====", "YW=j", "/w==YWJj", "Y W="] {
            assert_eq!(base64(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_answer_is_read_and_one_that_breaks_the_contract_is_refused() {
        let head = r#"{"cursor":"c2","since":"c1","fresh":false}"#;
        let good = format!(
            "{head}\n{}\n",
            r#"{"path_base64":"YS//","kind":"renamed","type":"file","from":"b","recursive":false,"usn":7}"#
        );
        let answer = Answer::parse(good.as_bytes()).expect("it is good");
        assert_eq!(answer.lines[0].path, b"a/\xff");
        assert_eq!(answer.lines[0].from.as_deref(), Some(&b"b"[..]));
        for bad in [
            r#"{"path":"./a","kind":"modified","type":"file"}"#,
            r#"{"path":"","kind":"modified","type":"file"}"#,
            r#"{"path":"a","kind":"touched","type":"file"}"#,
            r#"{"path":"a","kind":"renamed","type":"file"}"#,
            r#"{"path":"a","kind":"modified","type":"file","recursive":true}"#,
        ] {
            assert!(Answer::parse(format!("{head}\n{bad}\n").as_bytes()).is_err(), "{bad}");
        }
        assert!(Answer::parse(head.as_bytes()).is_err(), "cut off");
    }
}
