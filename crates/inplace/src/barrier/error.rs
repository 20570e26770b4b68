//! What keeps a barrier from starting, and from ending.

use std::io;
use std::time::Duration;

/// The method cannot be trusted here, or not be used. What else works is said by each.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// Only x86-64 has been shown to be right.
    #[error("the write barrier in place is for x86-64 only so far; a tracked directory has its own barrier")]
    Architecture,
    /// The kernel does not describe its structures.
    #[error("no BTF in /sys/kernel/btf/vmlinux (CONFIG_DEBUG_INFO_BTF): no write barrier in place")]
    NoBtf(#[source] aya::BtfError),
    /// The process may not load BPF programs that read kernel memory.
    #[error("no write barrier in place without {missing}: run it as root")]
    Capability {
        /// The capabilities that are missing.
        missing: String,
    },
    /// The kernel is locked down.
    #[error(
        "the kernel is locked down (confidentiality): no BPF program may read kernel memory, so no write barrier in place"
    )]
    Lockdown,
    /// Other namespaces' tasks would not be seen.
    #[error(
        "a write barrier in place must see every task: run it in the initial pid namespace, not in a container"
    )]
    PidNamespace,
    /// The kernel refuses a program, or lacks a field that it reads.
    #[error("this kernel refuses the programs of the write barrier in place")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The method was tried and does not see what it must see.
    #[error("the write barrier in place does not work on this kernel: {0}")]
    SelfTest(String),
    /// A system call failed.
    #[error("cannot prepare the write barrier in place")]
    Io(#[from] io::Error),
    /// Looking at the tasks failed.
    #[error(transparent)]
    Scan(#[from] ScanError),
}

/// Looking at the tasks failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ScanError {
    /// The iterator cannot be made.
    #[error("cannot look at the tasks")]
    Program(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Reading it failed.
    #[error("cannot read what the tasks do")]
    Read(#[source] io::Error),
    /// The answer ended early, or is not what the program writes.
    #[error("the look at the tasks was not whole")]
    Incomplete,
    /// The descriptor's filesystem could not be found.
    #[error("the filesystem of the descriptor was not found")]
    NotLocated,
    /// The queues of io_uring are elsewhere in this kernel.
    #[error("programs use io_uring, whose queues in this kernel (before 6.3) the barrier does not know")]
    OldRings,
}

/// Why a barrier did not pass.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BarrierError {
    /// The deadline passed first.
    #[error("not passed after {waited:?}: {}", list(.holders))]
    Deadline {
        /// For how long this call has waited.
        waited: Duration,
        /// Who holds it up.
        holders: Vec<Holder>,
    },
    /// Looking at the tasks failed.
    #[error("{0}")]
    Scan(std::sync::Arc<ScanError>),
    /// The method cannot be used.
    #[error("{0}")]
    Start(std::sync::Arc<StartError>),
}

/// A task that holds up a barrier.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Holder {
    /// Its thread id.
    pub pid: u32,
    /// Its name.
    pub command: String,
    /// The system call, or what else it does.
    pub call: String,
    /// Whether it was on a processor when last seen.
    pub running: bool,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pid, command, call, running } = self;
        write!(f, "{command} (pid {pid}) is in {call}{}", if *running { ", running" } else { "" })
    }
}

fn list(holders: &[Holder]) -> String {
    const SHOWN: usize = 5;
    let mut text: Vec<String> = holders.iter().take(SHOWN).map(ToString::to_string).collect();
    if holders.len() > SHOWN {
        text.push(format!("and {} more", holders.len() - SHOWN));
    }
    text.join("; ")
}
