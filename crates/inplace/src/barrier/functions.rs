//! Where the kernel's functions are in which a program waits for a reader: a pipe that is full, a socket, a terminal.
//!
//! (B) of docs/barrier-in-place.md. A chain of calls counts only if each function in it is known. So whatever is missing here, or not
//! unique, or renamed by a newer kernel, makes a barrier wait for who need not be waited for, and nothing worse.

use std::io::{self, BufRead, BufReader};

/// What a function means in a chain of calls. Shared with `scan.bpf.c`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
enum Function {
    /// It sleeps for its caller.
    Waits = 1,
    /// What it does to a filesystem, if anything, it does after the waits that are called from here directly.
    Place = 2,
    /// It writes to a socket, and nothing that it calls modifies a filesystem.
    Socket = 3,
    /// It passes a call on to what one open file, or one path, stands for, and has modified nothing before.
    PassesOn = 4,
    /// Where a system call enters the kernel.
    Entry = 5,
}

/// The kernel leaves its scheduler's own functions (`schedule`, `mutex_lock`) out of a chain of calls. What is static may be inlined; then it
/// is in no chain.
const KNOWN: &[(&str, Function)] = &[
    ("do_wait_intr", Function::Waits),
    ("do_wait_intr_irq", Function::Waits),
    ("wait_woken", Function::Waits),
    ("wait_for_partner", Function::Waits),
    ("n_tty_write", Function::Waits),
    ("do_tty_write", Function::Waits),
    ("iterate_tty_write", Function::Waits),
    // Of a FIFO too; the file's times are set when the data are in the pipe.
    ("pipe_write", Function::Place),
    ("anon_pipe_write", Function::Place),
    ("eventfd_write", Function::Place),
    // The times of the device's file are set when the terminal has taken the data.
    ("file_tty_write", Function::Place),
    ("fifo_open", Function::Place),
    // Only who fills a pipe waits for room in it.
    ("pipe_wait_writable", Function::Place),
    // A splice waits for data as long as it has passed on none.
    ("pipe_wait_readable", Function::Place),
    ("splice_from_pipe_next", Function::PassesOn),
    ("iter_file_splice_write", Function::PassesOn),
    ("sock_write_iter", Function::Socket),
    ("splice_to_socket", Function::Socket),
    ("sock_sendpage", Function::Socket),
    ("fifo_pipe_write", Function::PassesOn),
    ("tty_write", Function::PassesOn),
    ("redirected_tty_write", Function::PassesOn),
    ("new_sync_write", Function::PassesOn),
    ("vfs_write", Function::PassesOn),
    ("ksys_write", Function::PassesOn),
    ("__x64_sys_write", Function::PassesOn),
    ("do_iter_readv_writev", Function::PassesOn),
    ("do_loop_readv_writev", Function::PassesOn),
    ("do_iter_write", Function::PassesOn),
    ("vfs_writev", Function::PassesOn),
    ("do_writev", Function::PassesOn),
    ("__x64_sys_writev", Function::PassesOn),
    ("do_dentry_open", Function::PassesOn),
    ("vfs_open", Function::PassesOn),
    ("path_openat", Function::PassesOn),
    ("do_filp_open", Function::PassesOn),
    ("do_sys_openat2", Function::PassesOn),
    ("do_sys_open", Function::PassesOn),
    ("__x64_sys_open", Function::PassesOn),
    ("__x64_sys_openat", Function::PassesOn),
    ("__x64_sys_openat2", Function::PassesOn),
    ("__x64_sys_creat", Function::PassesOn),
    ("wait_for_space", Function::PassesOn),
    ("opipe_prep", Function::PassesOn),
    ("splice_file_to_pipe", Function::PassesOn),
    ("splice_pipe_to_pipe", Function::PassesOn),
    ("pipe_to_sendpage", Function::PassesOn),
    ("__splice_from_pipe", Function::PassesOn),
    ("splice_from_pipe", Function::PassesOn),
    ("generic_splice_sendpage", Function::PassesOn),
    ("do_splice_from", Function::PassesOn),
    ("direct_splice_actor", Function::PassesOn),
    ("splice_direct_to_actor", Function::PassesOn),
    ("do_splice_direct", Function::PassesOn),
    ("do_splice_direct_actor", Function::PassesOn),
    ("do_splice", Function::PassesOn),
    ("__do_splice", Function::PassesOn),
    ("__do_sys_splice", Function::PassesOn),
    ("__x64_sys_splice", Function::PassesOn),
    ("do_sendfile", Function::PassesOn),
    ("__do_sys_sendfile64", Function::PassesOn),
    ("__x64_sys_sendfile64", Function::PassesOn),
    ("x64_sys_call", Function::PassesOn),
    ("do_syscall_64", Function::PassesOn),
    ("entry_SYSCALL_64_after_hwframe", Function::Entry),
];

/// `FUNCTIONS` of `scan.bpf.c`.
const ROOM: usize = 80;

/// Where they are: first address, end, meaning.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Functions {
    count: u32,
    unused: u32,
    list: [[u64; 3]; ROOM],
}

// SAFETY: only integers, and no padding.
unsafe impl aya::Pod for Functions {}

impl Functions {
    /// From the kernel's list of symbols. Empty where the kernel hides the addresses.
    pub(super) fn of_the_kernel() -> io::Result<Self> {
        Self::parse(BufReader::new(std::fs::File::open("/proc/kallsyms")?))
    }

    fn parse(symbols: impl BufRead) -> io::Result<Self> {
        let mut addresses = Vec::new();
        let mut found: Vec<Vec<u64>> = vec![Vec::new(); KNOWN.len()];
        for line in symbols.split(b'\n') {
            let line = line?;
            let Some((address, kind, name)) = symbol(&line) else { continue };
            addresses.push(address);
            if matches!(kind, b't' | b'T')
                && let Some(at) = KNOWN.iter().position(|(known, _)| *known == name)
            {
                found[at].push(address);
            }
        }
        addresses.sort_unstable();
        let mut functions = Self { count: 0, unused: 0, list: [[0; 3]; ROOM] };
        for ((_, meaning), at) in KNOWN.iter().zip(found) {
            // Two of a name: nobody knows which is which.
            let &[first] = at.as_slice() else { continue };
            let next = addresses.get(addresses.partition_point(|address| *address <= first));
            let slot = functions.list.get_mut(functions.count as usize);
            if let (Some(end), Some(slot)) = (next, slot)
                && first != 0
            {
                *slot = [first, *end, *meaning as u64];
                functions.count += 1;
            }
        }
        Ok(functions)
    }

    /// How many were found.
    pub(super) fn count(&self) -> u32 {
        self.count
    }
}

/// Address, kind and plain name of a symbol of the kernel itself: the suffixes of a copy that the compiler has made of a whole function are
/// left out, those of a part of one are not. `None`: of a module, or no symbol.
fn symbol(line: &[u8]) -> Option<(u64, u8, &str)> {
    let line = std::str::from_utf8(line).ok()?;
    // A module's name follows in brackets.
    if line.contains('\t') {
        return None;
    }
    let mut fields = line.split(' ');
    let address = u64::from_str_radix(fields.next()?, 16).ok()?;
    let &[kind] = fields.next()?.as_bytes() else { return None };
    let name = fields.next()?;
    let mut plain = name;
    while let Some((before, number)) = plain.rsplit_once('.')
        && number.bytes().all(|byte| byte.is_ascii_digit())
        && let Some(whole) = before.strip_suffix(".isra").or_else(|| before.strip_suffix(".constprop"))
    {
        plain = whole;
    }
    Some((address, kind, plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Vec<[u64; 3]> {
        let functions = Functions::parse(text.as_bytes()).unwrap();
        functions.list[..functions.count as usize].to_vec()
    }

    #[test]
    fn a_function_ends_where_the_next_symbol_is() {
        let text = "ffffffff81000040 T __pfx_other\nffffffff81000000 t vfs_write\nffffffff81000050 T other\n";
        assert_eq!(list(text), [[0xffff_ffff_8100_0000, 0xffff_ffff_8100_0040, 4]]);
    }

    #[test]
    fn a_copy_of_a_function_counts_and_a_part_of_one_does_not() {
        let copy = "10 t file_tty_write.isra.0\n20 t x\n";
        assert_eq!(list(copy), [[0x10, 0x20, 2]]);
        assert_eq!(list("10 t file_tty_write.constprop.0.isra.0\n20 t x\n"), [[0x10, 0x20, 2]]);
        for part in ["file_tty_write.cold", "file_tty_write.part.0", "file_tty_write.isra.0.cold"] {
            assert!(list(&format!("10 t {part}\n20 t x\n")).is_empty(), "{part}");
        }
    }

    #[test]
    fn what_is_not_certain_is_left_out() {
        assert!(list("10 t pipe_write\n20 t x\n30 t pipe_write\n40 t x\n").is_empty(), "two of a name");
        assert!(
            list("10 t pipe_write\n20 t x\n30 t pipe_write.isra.0\n40 t x\n").is_empty(),
            "a copy beside it"
        );
        assert!(list("0 t pipe_write\n0 t x\n").is_empty(), "hidden addresses");
        assert!(list("10 t pipe_write\t[module]\n20 t x\n").is_empty(), "a module's");
        assert!(list("10 d pipe_write\n20 t x\n").is_empty(), "no function");
        assert!(list("10 t pipe_write\n").is_empty(), "no end");
    }

    #[test]
    fn the_layouts_are_those_of_the_programs() {
        assert_eq!(size_of::<Functions>(), 8 + ROOM * 24);
        assert!(KNOWN.len() <= ROOM);
        let source = include_str!("../../bpf/scan.bpf.c");
        assert!(source.contains(&format!("#define FUNCTIONS {ROOM}\n")));
        assert!(source.contains(
            "enum function { UNKNOWN = 0, WAITS = 1, PLACE = 2, SOCKET = 3, PASSES_ON = 4, ENTRY = 5 };\n"
        ));
        assert!(
            source.contains(
                "u32 count, unused;\n\tstruct {\n\t\tu64 first, end, what;\n\t} list[FUNCTIONS];\n"
            )
        );
    }
}
