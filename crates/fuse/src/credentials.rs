//! Doing what an operation does below with the right credentials.
//!
//! The kernel has checked every access before it asks (`default_permissions`), so the server needs no check of its own and
//! keeps all its capabilities; what matters is who *owns* what is made, whose umask applies, and whether writing takes the
//! set-user-id bit away.
//!
//! Invariant: outside of the closures given to these functions a thread has the credentials of the process. Every thread
//! that calls [`with_umask`] has unshared its filesystem attributes (see [`own_umask`]).

use std::cell::Cell;
use std::sync::OnceLock;

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, CapabilitySets};

thread_local! {
    /// The capabilities that this thread has outside of the closures.
    static OWN: Option<CapabilitySets> = rustix::thread::capabilities(None).ok();
    static UMASK: Cell<Option<u32>> = const { Cell::new(None) };
}

/// Gives the calling thread a umask of its own. To be called once by each worker.
pub(crate) fn own_umask() -> Result<(), Errno> {
    // SAFETY: takes no pointers; separates the working directory and the umask of this thread from the others, and no code of
    // this crate relies on sharing either.
    if unsafe { libc::unshare(libc::CLONE_FS) } < 0 {
        return Err(highwater_objects::last_errno());
    }
    UMASK.set(Some(u32::MAX));
    Ok(())
}

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Caller {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Runs `f`, which makes an object, as the caller: it owns what is made, and its umask applies where no default ACL does.
///
/// Supplementary groups are not taken over; the capabilities are kept, so that what the kernel has allowed by one of them does
/// not fail below.
pub(crate) fn as_caller<T>(caller: Caller, umask: u32, f: impl FnOnce() -> T) -> T {
    with_umask(umask);
    static OWN_IDS: OnceLock<(u32, u32)> = OnceLock::new();
    let (own_uid, own_gid) =
        *OWN_IDS.get_or_init(|| (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
    if own_uid != 0 || (caller.uid == own_uid && caller.gid == own_gid) {
        return f();
    }
    let capabilities = OWN.with(copy);
    set_fs_ids(caller.uid, caller.gid);
    if let Some(sets) = &capabilities
        && caller.uid != 0
    {
        // setfsuid to a user other than root has taken CAP_DAC_OVERRIDE and its like out of the effective set.
        set_effective(sets, sets.effective.difference(CapabilitySet::SYS_RESOURCE));
    }
    let result = f();
    set_fs_ids(own_uid, own_gid);
    if let Some(sets) = &capabilities {
        set_effective(sets, sets.effective);
    }
    result
}

/// Runs `f`, which changes the data of a file, without `CAP_FSETID`: the filesystem below takes set-user-id and set-group-id
/// bits away as it does for the caller.
pub(crate) fn without_fsetid<T>(f: impl FnOnce() -> T) -> T {
    let Some(sets) = OWN.with(copy) else { return f() };
    set_effective(&sets, sets.effective.difference(CapabilitySet::FSETID | CapabilitySet::SYS_RESOURCE));
    let result = f();
    set_effective(&sets, sets.effective);
    result
}

fn copy(sets: &Option<CapabilitySets>) -> Option<CapabilitySets> {
    let sets = sets.as_ref()?;
    Some(CapabilitySets {
        effective: sets.effective,
        permitted: sets.permitted,
        inheritable: sets.inheritable,
    })
}

fn set_effective(sets: &CapabilitySets, effective: CapabilitySet) {
    let wanted = CapabilitySets { effective, permitted: sets.permitted, inheritable: sets.inheritable };
    if let Err(errno) = rustix::thread::set_capabilities(None, wanted) {
        tracing::error!(%errno, "the capabilities of a worker could not be set");
    }
}

fn set_fs_ids(uid: u32, gid: u32) {
    // SAFETY: takes no pointers. The raw calls change this thread only. The group first: changing it needs CAP_SETGID only,
    // which setfsuid leaves alone.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
    }
}

fn with_umask(umask: u32) {
    UMASK.with(|current| {
        if let Some(set) = current.get()
            && set != umask
        {
            rustix::process::umask(Mode::from_raw_mode(umask & 0o777));
            current.set(Some(umask));
        }
    });
}
