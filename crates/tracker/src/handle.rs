//! The identity of an object: its file handle.
//!
//! Invariant: two objects that exist at the same time on one volume never have equal handles, and a handle is not
//! reused while an object with it exists (the filesystem puts a generation number into it).

use std::fmt;

/// The identity of an object, as `name_to_handle_at(2)` gives it: a type and up to 128 opaque bytes.
///
/// Handles of the common filesystems (ext4, XFS, btrfs, tmpfs) are kept inline; longer ones are on the heap.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileHandle(Repr);

/// The type (little-endian) and then the opaque bytes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Repr {
    Inline { len: u8, bytes: [u8; INLINE_MAX] },
    Heap(Box<[u8]>),
}

const TYPE_LEN: usize = 4;
const INLINE_MAX: usize = 30;

/// The kernel's `MAX_HANDLE_SZ`.
pub const HANDLE_BYTES_MAX: usize = 128;

impl FileHandle {
    /// Makes a handle of its type and opaque bytes.
    ///
    /// Returns `None` for more than [`HANDLE_BYTES_MAX`] bytes.
    pub fn new(handle_type: i32, opaque: &[u8]) -> Option<Self> {
        let len = TYPE_LEN + opaque.len();
        if opaque.len() > HANDLE_BYTES_MAX {
            return None;
        }
        if len <= INLINE_MAX {
            let mut bytes = [0; INLINE_MAX];
            bytes[..TYPE_LEN].copy_from_slice(&handle_type.to_le_bytes());
            bytes[TYPE_LEN..len].copy_from_slice(opaque);
            Some(Self(Repr::Inline { len: u8::try_from(len).ok()?, bytes }))
        } else {
            let mut bytes = Vec::with_capacity(len);
            bytes.extend_from_slice(&handle_type.to_le_bytes());
            bytes.extend_from_slice(opaque);
            Some(Self(Repr::Heap(bytes.into())))
        }
    }

    /// Takes the form of [`FileHandle::as_bytes`] back.
    ///
    /// Returns `None` if it is too short or too long to be a handle.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (handle_type, opaque) = bytes.split_first_chunk::<TYPE_LEN>()?;
        Self::new(i32::from_le_bytes(*handle_type), opaque)
    }

    /// The type, little-endian, followed by the opaque bytes: the form in the journal.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline { len, bytes } => &bytes[..usize::from(*len)],
            Repr::Heap(bytes) => bytes,
        }
    }

    /// The type, which is for `open_by_handle_at(2)` only.
    pub fn handle_type(&self) -> i32 {
        let bytes = self.as_bytes();
        i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    /// The opaque bytes, for `open_by_handle_at(2)` only.
    pub fn opaque(&self) -> &[u8] {
        &self.as_bytes()[TYPE_LEN..]
    }
}

impl fmt::Debug for FileHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.handle_type())?;
        self.opaque().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_keeps_its_type_and_bytes_inline_and_on_the_heap() {
        for len in [0, 1, 8, 26, 27, 128] {
            let opaque: Vec<u8> = (0..len).collect();
            let handle = FileHandle::new(-7, &opaque).unwrap();
            assert_eq!(handle.handle_type(), -7);
            assert_eq!(handle.opaque(), opaque);
            assert_eq!(FileHandle::from_bytes(handle.as_bytes()), Some(handle));
        }
        assert_eq!(FileHandle::new(1, &[0; 129]), None);
        assert_eq!(FileHandle::from_bytes(&[1, 2, 3]), None);
    }
}
