//! Which mounts of the stacked filesystem there are: `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

const FILESYSTEM_TYPE: &[u8] = b"fuse.highwater";

/// A tracked tree as the kernel sees it: a mount of type `fuse.highwater`, alive or dead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackedMount {
    /// Where it is.
    pub directory: PathBuf,
    /// The user that mounted it, where the mount says so.
    pub owner: Option<u32>,
}

/// The mounts of the stacked filesystem in this mount namespace.
pub fn stacked_mounts() -> io::Result<Vec<StackedMount>> {
    Ok(parse(&std::fs::read("/proc/self/mountinfo")?))
}

/// See `proc_pid_mountinfo(5)`: `36 35 98:0 /root /mount/point options optional... - type source super-options`.
fn parse(mountinfo: &[u8]) -> Vec<StackedMount> {
    let mut mounts = Vec::new();
    for line in mountinfo.split(|byte| *byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let Some(dash) = fields.iter().position(|field| *field == b"-") else { continue };
        if fields.get(dash + 1).is_some_and(|kind| *kind == FILESYSTEM_TYPE) && dash > 4 {
            let options = fields.get(dash + 3).copied().unwrap_or_default();
            let owner =
                options.split(|byte| *byte == b',').find_map(|option| option.strip_prefix(b"user_id="));
            mounts.push(StackedMount {
                directory: PathBuf::from(OsString::from_vec(unescape(fields[4]))),
                owner: owner.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok()),
            });
        }
    }
    mounts
}

/// The kernel writes space, tab, newline and backslash as three octal digits after a backslash.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|digits| *first == b'\\' && digits.iter().all(|d| (b'0'..b'8').contains(d)));
        let value = octal.map(|d| d.iter().fold(0_u32, |value, digit| value * 8 + u32::from(digit - b'0')));
        if let Some(byte) = value.and_then(|value| u8::try_from(value).ok()) {
            bytes.push(byte);
            rest = &after[3..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_from_mountinfo_with_odd_names() {
        let text = b"22 1 8:1 / / rw shared:1 - ext4 /dev/sda rw\n\
            40 22 0:50 / /srv/a\\040b\\134\\012c rw,nosuid shared:3 master:1 - fuse.highwater highwater rw,user_id=7,group_id=0\n\
            41 22 0:51 / /srv/fuse.highwater rw - fuse.sshfs x rw\n\
            broken line\n";
        let mounts = parse(text);
        assert_eq!(mounts, [StackedMount { directory: "/srv/a b\\\nc".into(), owner: Some(7) }]);
        stacked_mounts().unwrap();
    }
}
