//! Running a BPF iterator: a program that the kernel calls for each object of a kind, inside `read` of a descriptor that is made for each
//! run. Between two runs nothing of it is attached to anything.
//!
//! After the last object the program is called once more without one, and writes the record of the end. Without that record a run was not
//! whole. With it, it is over, and must not be read on: the kernel would go on behind the number of the last task, and tell of tasks that
//! were born since.

use std::io::{self, Read};
use std::ops::ControlFlow;

use aya::Ebpf;
use aya::programs::{Iter, ProgramError};

/// One of the iterators of an object.
pub(crate) fn iterator<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Iter, ProgramError> {
    ebpf.program_mut(name).ok_or(ProgramError::UnexpectedProgramType)?.try_into()
}

/// Runs an iterator that has been loaded, and shows each record of `N` bytes until `take` breaks at that of the end.
///
/// # Errors
/// What the kernel answers; `UnexpectedEof` if the record of the end is missing, `InvalidData` if there is half a record.
pub(crate) fn run<const N: usize>(
    iterator: &mut Iter,
    mut take: impl FnMut(&[u8; N]) -> io::Result<ControlFlow<()>>,
) -> io::Result<()> {
    let link = iterator.attach().map_err(io::Error::other)?;
    let link = iterator.take_link(link).map_err(io::Error::other)?;
    let mut file = link.into_file().map_err(io::Error::other)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = match file.read(&mut buffer) {
            Ok(0) => {
                let text = "a look at all tasks was cut short";
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
            }
            Ok(length) => length,
            // The kernel gives other tasks a turn after a million objects without output.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EINTR)) => continue,
            Err(error) => return Err(error),
        };
        let (whole, rest) = buffer[..length].as_chunks::<N>();
        if !rest.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "half a record of a task"));
        }
        for record in whole {
            if take(record)?.is_break() {
                return Ok(());
            }
        }
    }
}

/// More than the kernel gives at once.
const BUFFER: usize = 1 << 16;
