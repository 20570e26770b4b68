//! What the BPF programs and the barrier tell each other. `bpf/scan.bpf.c` has the same layouts.

use super::calls::{self, CALLS};
use crate::words;

/// A check that a test has switched off, to show that the check is needed. Empty in every other use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SwitchedOff(pub(super) u32);

impl SwitchedOff {
    /// The names that [`named`](Self::named) knows.
    pub const NAMES: [&'static str; 7] =
        ["sleeping", "running", "workers", "queue", "rings", "calls", "sqpoll"];

    /// Without the check of this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().position(|known| *known == name).map(|bit| Self(1 << bit))
    }
}

/// What a scan is told.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Control {
    pub(super) superblock: u64,
    /// 0: scan. 1: tell the superblock of descriptor `fd` of thread `tid`.
    pub(super) mode: u32,
    pub(super) tid: i32,
    pub(super) fd: u32,
    pub(super) off: u32,
    native: [u8; CALLS],
    compat: [u8; CALLS],
    harmless_ioctls: [u32; 8],
}

// SAFETY: only integers, and no padding: 8 + 4 * 4 + 512 + 512 + 32 bytes, a multiple of 8; a test compares.
unsafe impl aya::Pod for Control {}

impl Control {
    pub(super) fn new() -> Self {
        Self {
            superblock: 0,
            mode: 0,
            tid: 0,
            fd: 0,
            off: 0,
            native: calls::native(),
            compat: calls::compat(),
            harmless_ioctls: calls::HARMLESS_IOCTLS,
        }
    }
}

/// Bytes of a record.
pub(super) const RECORD: usize = 112;

/// What a record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The end of a whole scan.
    End,
    /// A task in a call, or one that may do work for a ring of io_uring.
    Call,
    /// A task that writes a core dump.
    CoreDump,
    /// A worker thread of io_uring.
    Worker,
    /// A submission thread of io_uring.
    SubmissionThread,
    /// A queue of requests for workers, not empty.
    Queue,
    /// The superblock asked for.
    Located,
    /// An open file with direct I/O in flight.
    FileInFlight,
}

/// One look at one task, or at one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Address and start: together unique for the life of the machine.
    pub(super) task: (u64, u64),
    /// All user registers but the result, mixed.
    pub(super) registers: u64,
    pub(super) result: u64,
    pub(super) user_time: u64,
    /// Worker: its request. Queue: its address. Located: the superblock. File: the inode's number.
    pub(super) work: u64,
    /// Worker: whether requests hang on this one. File: the inode's generation.
    pub(super) chain: u64,
    /// How many calls that write have ended, where the kernel counts them.
    pub(super) writes: u64,
    pub(super) kind: Kind,
    pub(super) pid: u32,
    /// The number of the call. File: the descriptor. End: how many tasks have contexts for asynchronous I/O.
    pub(super) call: u32,
    pub(super) compat: u32,
    pub(super) on_cpu: bool,
    /// End: how many tasks use io_uring.
    pub(super) rings: u32,
    /// End: how many kernel threads serve files to other machines.
    pub(super) kernel_writers: u32,
    pub(super) command: String,
}

impl Record {
    /// `None`: not a record.
    pub(super) fn parse(bytes: &[u8; RECORD]) -> Option<Self> {
        let long = |at| words::long(bytes, at);
        let short = |at| words::short(bytes, at);
        let kind = match short(64) {
            0 => Kind::End,
            1 => Kind::Call,
            2 => Kind::CoreDump,
            3 => Kind::Worker,
            4 => Kind::SubmissionThread,
            5 => Kind::Queue,
            6 => Kind::Located,
            7 => Kind::FileInFlight,
            _ => return None,
        };
        let name = &bytes[96..112];
        let length = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
        Some(Self {
            task: (long(0), long(8)),
            registers: long(16),
            result: long(24),
            user_time: long(32),
            work: long(40),
            chain: long(48),
            writes: long(56),
            kind,
            pid: short(68),
            call: short(76),
            compat: short(80),
            on_cpu: short(84) != 0,
            rings: short(88),
            kernel_writers: short(92),
            command: String::from_utf8_lossy(&name[..length]).into_owned(),
        })
    }
}

/// One whole scan of all tasks.
#[derive(Clone, Debug, Default)]
pub(super) struct Scan {
    /// Tasks, workers and queues.
    pub(super) records: Vec<Record>,
    pub(super) uses_rings: bool,
    pub(super) uses_asynchronous: bool,
    pub(super) has_kernel_writers: bool,
    /// The kernel keeps the queues of io_uring where this program does not look.
    pub(super) has_old_rings: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layouts_are_those_of_the_programs() {
        assert_eq!(size_of::<Control>(), 8 + 16 + 2 * CALLS + 32);
        let source = include_str!("../../bpf/scan.bpf.c");
        // 8 words of 8 bytes, 8 of 4, 16 bytes of name: the structure has no padding.
        assert!(
            source.contains(
                "u64 task, start;\n\tu64 registers, result, user_time;\n\tu64 work, chain, writes;\n"
            )
        );
        assert!(source.contains(
            "u32 kind, pid, tgid, call;\n\tu32 compat, on_cpu, rings, kernel_writers;\n\tchar comm[16];\n"
        ));
        assert_eq!(RECORD, 8 * 8 + 8 * 4 + 16);
        assert!(source.contains(&format!("#define CALLS {CALLS}\n")));
        for (bit, name) in SwitchedOff::NAMES.iter().enumerate() {
            let constant = match *name {
                "workers" => "OFF_WORKER".to_owned(),
                "rings" => "OFF_RING".to_owned(),
                other => format!("OFF_{}", other.to_uppercase()),
            };
            assert!(source.contains(&format!("{constant} = {}", 1 << bit)), "{constant}");
        }
    }
}
