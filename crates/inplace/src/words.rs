//! Numbers in the records that the BPF programs write, in the order of the machine's own bytes.

/// The 8 bytes from `at` on, which are there.
pub(crate) fn long(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}

/// The 4 bytes from `at` on, which are there.
pub(crate) fn short(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}
