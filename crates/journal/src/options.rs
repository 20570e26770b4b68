//! The limits of a journal, with their reasons.

use crate::ids::Usn;

/// The limits of a journal. They belong to the process, not to the format: a journal may be opened with other options
/// than it was created with, and only segments made from then on follow them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Options {
    /// Length of a segment in bytes: a multiple of 4096 from 64 KiB to 1 GiB. Default 16 MiB.
    ///
    /// Reading on open costs at most one segment, and retention frees whole ones, so smaller is finer; each new one
    /// costs a handful of syncs, so larger is cheaper. At 100 bytes a record, 16 MiB hold about 120,000.
    pub segment_bytes: u64,
    /// What [`Journal::retain_size`](crate::Journal::retain_size) reduces the journal to, in bytes. Default 256 MiB.
    pub retain_bytes: u64,
    /// The most that all segments together may occupy, in bytes; an append beyond it is refused as
    /// [`Full`](crate::AppendError::Full), just as on a full disk. At least three segments, at most 1024 (one open
    /// file each). Default 1 GiB.
    pub limit_bytes: u64,
    /// The most that is buffered in memory before an append writes it out itself: from 4 KiB to 64 MiB. Default 1 MiB.
    pub buffer_bytes: usize,
    /// The number of the first record of a *new* journal, at least 1. Default 1.
    pub first_usn: Usn,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
            retain_bytes: 256 << 20,
            limit_bytes: 1 << 30,
            buffer_bytes: 1 << 20,
            first_usn: Usn(1),
        }
    }
}

/// Most segments that a journal keeps: each is one open file.
pub(crate) const SEGMENTS_LIMIT: u64 = 1024;

/// An option outside its limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("journal option {name} is out of its limits: {limits}")]
pub struct InvalidOption {
    /// The field of [`Options`].
    pub name: &'static str,
    /// What it may be.
    pub limits: &'static str,
}

impl Options {
    /// Checks every limit.
    ///
    /// # Errors
    /// The first option that is out of its limits.
    pub fn validate(&self) -> Result<(), InvalidOption> {
        let check =
            |holds: bool, name, limits| if holds { Ok(()) } else { Err(InvalidOption { name, limits }) };
        check(
            (64 << 10..=1 << 30).contains(&self.segment_bytes) && self.segment_bytes.is_multiple_of(4096),
            "segment_bytes",
            "a multiple of 4096 from 64 KiB to 1 GiB",
        )?;
        let segments = self.limit_bytes / self.segment_bytes;
        check((3..=SEGMENTS_LIMIT).contains(&segments), "limit_bytes", "from 3 to 1024 segments")?;
        check((4 << 10..=64 << 20).contains(&self.buffer_bytes), "buffer_bytes", "from 4 KiB to 64 MiB")?;
        check(self.first_usn >= Usn(1) && self.first_usn.0 < 1 << 63, "first_usn", "from 1 to 2^63 - 1")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_has_limits() {
        let valid = Options::default();
        assert_eq!(valid.validate(), Ok(()));
        for (name, options) in [
            ("segment_bytes", Options { segment_bytes: 4096, ..valid.clone() }),
            ("segment_bytes", Options { segment_bytes: (1 << 20) + 1, ..valid.clone() }),
            ("segment_bytes", Options { segment_bytes: 2 << 30, ..valid.clone() }),
            ("limit_bytes", Options { limit_bytes: 1 << 20, ..valid.clone() }),
            ("limit_bytes", Options { limit_bytes: 1 << 40, ..valid.clone() }),
            ("buffer_bytes", Options { buffer_bytes: 1, ..valid.clone() }),
            ("first_usn", Options { first_usn: Usn(0), ..valid.clone() }),
        ] {
            assert_eq!(options.validate().map_err(|error| error.name), Err(name));
        }
    }
}
