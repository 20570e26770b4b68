//! Whether anything was changed while nobody tracked, where the filesystem itself counts.
//!
//! A btrfs subvolume knows the transaction that was the last one to change it, in names, in attributes and in data: what is written is put
//! somewhere else, and what is overwritten in place (no copy on write) gets new times in the same transaction. If that is the same
//! before and after, nothing was changed in between, whoever could have. A mount, a clean one at least, changes nothing.
//!
//! docs/protocol.md says why this is enough, and in which order it has to be asked.

use std::os::fd::{AsRawFd, BorrowedFd};

use highwater_objects::magic::BTRFS;
use rustix::io::Errno;

/// `struct btrfs_ioctl_get_subvol_info_args`; what is not read has no name of its own.
#[repr(C)]
struct Subvolume {
    id: u64,
    _name: [u8; 256],
    _parent: [u64; 2],
    generation: u64,
    _flags: u64,
    uuid: [u8; 16],
    _other_uuids: [u8; 32],
    changed_in: u64,
    _other_transactions: [u64; 3],
    changed_seconds: u64,
    changed_ns: u32,
    _other_times: [u64; 6],
    _reserved: [u64; 8],
}

/// `struct btrfs_ioctl_get_subvol_rootref_args`.
#[repr(C)]
struct Children {
    from: u64,
    _children: [[u64; 2]; 255],
    count: u8,
    _align: [u8; 7],
}

// The sizes are part of the kernel's interface, and in the numbers of the calls.
const _: () = assert!(size_of::<Subvolume>() == 504 && size_of::<Children>() == 4096);
/// `_IOR(0x94, 60, struct btrfs_ioctl_get_subvol_info_args)`.
const BTRFS_IOC_GET_SUBVOL_INFO: libc::Ioctl = 0x81f8_943c_u32 as libc::Ioctl;
/// `_IOWR(0x94, 61, struct btrfs_ioctl_get_subvol_rootref_args)`.
const BTRFS_IOC_GET_SUBVOL_ROOTREF: libc::Ioctl = 0xd000_943d_u32 as libc::Ioctl;

/// The version of all that is below a directory, after what is in memory has been written: equal versions mean that nothing has changed.
/// `None`: the filesystem does not count, or there are subvolumes inside, which count for themselves.
pub(super) fn of(directory: BorrowedFd<'_>, magic: i64) -> Result<Option<String>, Errno> {
    if magic != BTRFS {
        return Ok(None);
    }
    // It counts what has been committed.
    rustix::fs::syncfs(directory)?;
    // SAFETY: both are integers only, for which zero is a value.
    let (mut subvolume, mut children): (Subvolume, Children) = unsafe { std::mem::zeroed() };
    // SAFETY: each call writes at most as many bytes as its number says, which is the size of its structure.
    let answers = unsafe {
        [
            libc::ioctl(directory.as_raw_fd(), BTRFS_IOC_GET_SUBVOL_INFO, &raw mut subvolume),
            libc::ioctl(directory.as_raw_fd(), BTRFS_IOC_GET_SUBVOL_ROOTREF, &raw mut children),
        ]
    };
    // Before 4.18, or not allowed to.
    if answers != [0, 0] || children.count > 0 {
        return Ok(None);
    }
    let uuid = u128::from_be_bytes(subvolume.uuid);
    let Subvolume { id, generation, changed_in, changed_seconds, changed_ns, .. } = subvolume;
    Ok(Some(format!("btrfs {uuid:032x} {id} {generation} {changed_in} {changed_seconds}.{changed_ns:09}")))
}
