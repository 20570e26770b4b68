//! What must be there, checked first, so that what is missing can be named.

use std::fs;

use super::error::StartError;

/// `PROC_PID_INIT_INO` of the kernel: the initial pid namespace has this number always.
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";

const CAP_SYS_ADMIN: u32 = 21;
const CAP_PERFMON: u32 = 38;
const CAP_BPF: u32 = 39;

pub(super) fn check() -> Result<(), StartError> {
    if !cfg!(all(target_arch = "x86_64", target_pointer_width = "64")) {
        return Err(StartError::Architecture);
    }
    let capabilities = capabilities()?;
    let missing = missing(capabilities);
    if !missing.is_empty() {
        return Err(StartError::Capability { missing });
    }
    // The scan lists the tasks of the reader's namespace and those below it.
    if fs::read_link("/proc/thread-self/ns/pid")?.as_os_str() != INITIAL_PID_NAMESPACE {
        return Err(StartError::PidNamespace);
    }
    Ok(())
}

/// A kernel that is locked down refuses the programs too; then that is what to say.
pub(super) fn explain(error: StartError) -> StartError {
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").unwrap_or_default();
    match error {
        StartError::Refused(_) if lockdown.contains("[confidentiality]") => StartError::Lockdown,
        other => other,
    }
}

fn capabilities() -> Result<u64, StartError> {
    let status = fs::read_to_string("/proc/thread-self/status")?;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    effective.ok_or_else(|| StartError::SelfTest("/proc/thread-self/status has no CapEff".to_owned()))
}

fn missing(effective: u64) -> String {
    let has = |capability: u32| effective & (1 << capability) != 0;
    // CAP_SYS_ADMIN stands for both others.
    if has(CAP_SYS_ADMIN) {
        return String::new();
    }
    let needed = [(CAP_BPF, "CAP_BPF"), (CAP_PERFMON, "CAP_PERFMON")];
    let missing: Vec<&str> =
        needed.iter().filter(|(capability, _)| !has(*capability)).map(|(_, name)| *name).collect();
    missing.join(" and ")
}

/// Whether any loop device has a file behind it.
pub(super) fn has_loop_devices() -> bool {
    let Ok(devices) = fs::read_dir("/sys/block") else { return false };
    devices
        .flatten()
        .filter(|device| device.file_name().as_encoded_bytes().starts_with(b"loop"))
        // The kernel makes `loop` appear in the directory of a device that is attached.
        .any(|device| fs::exists(device.path().join("loop")).unwrap_or(false))
}

/// Filesystems that do not write to another one as a program does (`kernel_write`, which counts as a write of the task) while a call that
/// writes to them is in progress. eCryptfs does.
const COUNTED_ONCE: &[&str] = &[
    "9p",
    "afs",
    "autofs",
    "bcachefs",
    "bdev",
    "binder",
    "binfmt_misc",
    "bpf",
    "btrfs",
    "ceph",
    "cgroup",
    "cgroup2",
    "cifs",
    "configfs",
    "cpuset",
    "cramfs",
    "dax",
    "debugfs",
    "devpts",
    "devtmpfs",
    "drm",
    "efivarfs",
    "erofs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "fuse",
    "fuseblk",
    "fusectl",
    "gfs2",
    "hfs",
    "hfsplus",
    "hugetlbfs",
    "iso9660",
    "jfs",
    "minix",
    "mqueue",
    "msdos",
    "nfs",
    "nfs4",
    "nfsd",
    "nilfs2",
    "nsfs",
    "ntfs",
    "ntfs3",
    "ocfs2",
    "overlay",
    "pidfs",
    "pipefs",
    "proc",
    "pstore",
    "ramfs",
    "reiserfs",
    "resctrl",
    "romfs",
    "rpc_pipefs",
    "secretmem",
    "securityfs",
    "selinuxfs",
    "smb3",
    "sockfs",
    "squashfs",
    "sysfs",
    "tmpfs",
    "tracefs",
    "udf",
    "vfat",
    "virtiofs",
    "xfs",
    "zonefs",
];

/// Whether the kernel counts each call that writes once, when it is over.
pub(super) fn counts_of_writes_can_be_trusted() -> bool {
    fs::read_to_string("/proc/filesystems").is_ok_and(|list| all_are_counted_once(&list))
}

fn all_are_counted_once(list: &str) -> bool {
    let mut names = list.lines().filter_map(|line| line.rsplit('\t').next());
    names.all(|name| COUNTED_ONCE.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_not_trusted_beside_an_unknown_filesystem() {
        assert!(all_are_counted_once("nodev\tsysfs\n\text4\nnodev\toverlay\n"));
        assert!(!all_are_counted_once("nodev\tsysfs\n\text4\nnodev\tecryptfs\n"));
        assert!(!all_are_counted_once("\tsomething_new\n"));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(missing(0), "CAP_BPF and CAP_PERFMON");
        assert_eq!(missing(1 << CAP_BPF), "CAP_PERFMON");
        assert_eq!(missing(1 << CAP_BPF | 1 << CAP_PERFMON), "");
        assert_eq!(missing(1 << CAP_SYS_ADMIN), "");
    }
}
