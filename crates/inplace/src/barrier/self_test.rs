//! Whether the method sees, on this kernel, what it must see.
//!
//! A thread splices from an empty pipe into a file in memory: it waits in the middle of a call that modifies. It must be seen, and seen to
//! be elsewhere by a barrier for another filesystem; and when it goes on, it must be gone. That shows that the fields are where BTF says, that
//! the registers of a call are found, that a stack is read and holds what the argument says, and that the end of a call is noticed.
//! It cannot show the order of memory, for which there is the argument alone.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::MemfdFlags;
use rustix::pipe::{PipeFlags, SpliceFlags};

use super::error::StartError;
use super::programs::Programs;
use super::record::{Record, SwitchedOff};

const PATIENCE: Duration = Duration::from_secs(10);

pub(super) fn check(programs: &mut Programs) -> Result<(), StartError> {
    let target =
        rustix::fs::memfd_create("highwater-self-test", MemfdFlags::CLOEXEC).map_err(std::io::Error::from)?;
    let other = File::open("/proc/self/status")?;
    let superblock = programs.locate(target.as_fd())?;
    let elsewhere = programs.locate(other.as_fd())?;
    if superblock == elsewhere {
        return Err(StartError::SelfTest("two filesystems look like one".to_owned()));
    }
    let (source, feed) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(std::io::Error::from)?;
    let (tell, told) = std::sync::mpsc::channel();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let splicer = std::thread::Builder::new().name("self-test".to_owned()).spawn(move || {
        let _ = tell.send(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs());
        let outcome = rustix::pipe::splice(&source, None, &target, None, 1, SpliceFlags::empty());
        // It stays, in a call that modifies nothing, until it has been looked at.
        let _ = held.recv();
        outcome
    })?;
    let outcome = match told.recv() {
        Ok(thread) => watch(programs, thread, superblock, elsewhere, feed),
        Err(_) => Err(StartError::SelfTest("its thread did not start".to_owned())),
    };
    drop(release);
    let spliced = splicer.join().map_err(|_| StartError::SelfTest("its thread panicked".to_owned()))?;
    outcome?;
    match spliced {
        Ok(1) => Ok(()),
        Ok(count) => Err(StartError::SelfTest(format!("{count} bytes were spliced instead of 1"))),
        Err(error) => Err(StartError::Io(error.into())),
    }
}

/// `feed` is dropped at the end, which ends the splice in any case.
fn watch(
    programs: &mut Programs,
    thread: u32,
    superblock: u64,
    elsewhere: u64,
    feed: OwnedFd,
) -> Result<(), StartError> {
    let splice = u32::try_from(libc::SYS_splice).unwrap_or(u32::MAX);
    let waits = |record: &Record| record.call == splice && !record.on_cpu;
    until(programs, thread, superblock, |seen| seen.is_some_and(waits), "a call in progress is not seen")?;
    for _ in 0..3 {
        let seen = look(programs, thread, superblock)?;
        if !seen.as_ref().is_some_and(waits) {
            return Err(StartError::SelfTest("a call in progress is lost sight of".to_owned()));
        }
    }
    until(
        programs,
        thread,
        elsewhere,
        |seen| seen.is_none(),
        "a call on one filesystem would hold up barriers of all",
    )?;
    File::from(feed).write_all(b"x")?;
    until(programs, thread, superblock, |seen| seen.is_none(), "the end of a call is not seen")
}

fn look(programs: &mut Programs, thread: u32, superblock: u64) -> Result<Option<Record>, StartError> {
    let scan = programs.tasks(superblock, SwitchedOff::default())?;
    Ok(scan.records.into_iter().find(|record| record.pid == thread))
}

fn until(
    programs: &mut Programs,
    thread: u32,
    superblock: u64,
    condition: impl Fn(Option<&Record>) -> bool,
    complaint: &str,
) -> Result<(), StartError> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = look(programs, thread, superblock)?;
        if condition(seen.as_ref()) {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(StartError::SelfTest(complaint.to_owned()));
        }
        std::thread::sleep(Duration::from_micros(100));
    }
}
