//! What this kernel can do.

use std::sync::OnceLock;

/// Whether every change after a `statx` gets a timestamp that differs from it (multigrain timestamps).
pub(crate) fn has_distinct_timestamps(magic: i64) -> bool {
    const EXT4: i64 = 0xef53;
    const XFS: i64 = 0x5846_5342;
    const BTRFS: i64 = 0x9123_683e;
    const TMPFS: i64 = 0x0102_1994;
    matches!(magic, EXT4 | XFS | BTRFS | TMPFS) && version() >= (6, 13)
}

fn version() -> (u32, u32) {
    static VERSION: OnceLock<(u32, u32)> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let uname = rustix::system::uname();
        let release = uname.release().to_string_lossy().into_owned();
        let mut numbers =
            release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or(0));
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    })
}
