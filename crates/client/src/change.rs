//! One line of a change set, on the wire and in `--format json`.
//!
//! A path is bytes. In JSON it is the field `path` if it is UTF-8 and `path_base64` if not; the same for `from`. Fields
//! that do not apply are left out: `from` is there for `renamed` only, `recursive` for `rescan` only, `nlink` where the
//! tracker knows that the object has more than one name; `path`, `kind`, `type`, `recovered` and `usn` are always there.

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

use crate::message::{Bytes, BytesError, serialize_bytes};

/// What a consumer has to do about a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The object is new at this path: take it. What the consumer may hold there already is something else.
    Created,
    /// The data may differ: take them, and the metadata.
    Modified,
    /// Only mode, owner, times, extended attributes, ACLs or the link count may differ.
    Metadata,
    /// What the consumer holds at `from` is at `path` now; with a directory goes all that is in it.
    Renamed,
    /// Nothing is at this path any more; for a directory, nothing is below it.
    Deleted,
    /// Compare the directory with what the consumer holds. See [`Change::recursive`].
    Rescan,
}

impl Kind {
    /// The word in JSON and in text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Modified => "modified",
            Self::Metadata => "metadata",
            Self::Renamed => "renamed",
            Self::Deleted => "deleted",
            Self::Rescan => "rescan",
        }
    }
}

/// What sort of object it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectType {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A FIFO, a socket or a device.
    Other,
}

impl ObjectType {
    /// The word in JSON and in text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Dir => "dir",
            Self::Symlink => "symlink",
            Self::Other => "other",
        }
    }
}

/// One line of a change set. Applying the lines from top to bottom is safe.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Text")]
pub struct Change {
    /// Relative to the tracked directory, without a leading `./`; the root itself is `.`.
    pub path: Vec<u8>,
    /// What to do about it.
    pub kind: Kind,
    /// The type of the object; of a deleted one, what it was.
    pub object_type: ObjectType,
    /// For [`Kind::Renamed`]: the old path, as it is once the lines above have been applied.
    pub from: Option<Vec<u8>>,
    /// For [`Kind::Rescan`]: everything below as well, not only the directory's own entries.
    pub recursive: bool,
    /// Told because of a crash: the change may have happened, may have been lost, or may have been told before.
    pub recovered: bool,
    /// The number of names that the object has, where it was known to have more than one.
    pub nlink: Option<u64>,
    /// The USN of the newest record that the line stands for.
    pub usn: u64,
}

impl Serialize for Change {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut fields = serializer.serialize_struct("Change", 8)?;
        serialize_bytes(&mut fields, "path", "path_base64", &self.path)?;
        fields.serialize_field("kind", &self.kind)?;
        fields.serialize_field("type", &self.object_type)?;
        if let Some(from) = &self.from {
            serialize_bytes(&mut fields, "from", "from_base64", from)?;
        }
        if self.kind == Kind::Rescan {
            fields.serialize_field("recursive", &self.recursive)?;
        }
        fields.serialize_field("recovered", &self.recovered)?;
        if let Some(nlink) = self.nlink {
            fields.serialize_field("nlink", &nlink)?;
        }
        fields.serialize_field("usn", &self.usn)?;
        fields.end()
    }
}

/// The fields as they are in JSON. Unknown ones are ignored: a later tracker may say more.
#[derive(Deserialize)]
struct Text {
    path: Option<String>,
    path_base64: Option<String>,
    kind: Kind,
    #[serde(rename = "type")]
    object_type: ObjectType,
    from: Option<String>,
    from_base64: Option<String>,
    #[serde(default)]
    recursive: bool,
    #[serde(default)]
    recovered: bool,
    nlink: Option<u64>,
    usn: u64,
}

impl TryFrom<Text> for Change {
    type Error = BytesError;

    fn try_from(text: Text) -> Result<Self, Self::Error> {
        Ok(Self {
            path: Bytes::from_fields("path", text.path, text.path_base64)?
                .ok_or(BytesError::Missing("path"))?,
            kind: text.kind,
            object_type: text.object_type,
            from: Bytes::from_fields("from", text.from, text.from_base64)?,
            recursive: text.recursive,
            recovered: text.recovered,
            nlink: text.nlink,
            usn: text.usn,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &[u8], kind: Kind) -> Change {
        Change {
            path: path.to_vec(),
            kind,
            object_type: ObjectType::File,
            from: None,
            recursive: false,
            recovered: false,
            nlink: None,
            usn: 7,
        }
    }

    fn json(change: &Change) -> String {
        let text = serde_json::to_string(change).unwrap();
        assert_eq!(&serde_json::from_str::<Change>(&text).unwrap(), change, "{text}");
        text
    }

    #[test]
    fn fields_that_do_not_apply_are_left_out() {
        assert_eq!(
            json(&change(b"a/b", Kind::Modified)),
            r#"{"path":"a/b","kind":"modified","type":"file","recovered":false,"usn":7}"#
        );
        let renamed = Change { from: Some(b"c".to_vec()), nlink: Some(2), ..change(b"d", Kind::Renamed) };
        assert_eq!(
            json(&renamed),
            r#"{"path":"d","kind":"renamed","type":"file","from":"c","recovered":false,"nlink":2,"usn":7}"#
        );
        let rescan = Change { object_type: ObjectType::Dir, recovered: true, ..change(b".", Kind::Rescan) };
        assert_eq!(
            json(&rescan),
            r#"{"path":".","kind":"rescan","type":"dir","recursive":false,"recovered":true,"usn":7}"#
        );
    }

    #[test]
    fn names_that_are_not_utf8_travel_as_base64() {
        let odd = Change { from: Some(b"new\nline".to_vec()), ..change(b"\xff/x", Kind::Renamed) };
        assert_eq!(
            json(&odd),
            r#"{"path_base64":"/y94","kind":"renamed","type":"file","from":"new\nline","recovered":false,"usn":7}"#
        );
    }

    #[test]
    fn a_change_without_a_path_or_with_bad_base64_is_refused() {
        for text in [
            r#"{"kind":"deleted","type":"file","usn":1}"#,
            r#"{"path_base64":"?","kind":"deleted","type":"file","usn":1}"#,
            r#"{"path":"a","path_base64":"YQ==","kind":"deleted","type":"file","usn":1}"#,
            r#"{"path":"a","kind":"exploded","type":"file","usn":1}"#,
        ] {
            serde_json::from_str::<Change>(text).unwrap_err();
        }
    }
}
