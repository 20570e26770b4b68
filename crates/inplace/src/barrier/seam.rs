//! The barrier as an in-place source wants it: what is carried over by its handle.

use std::ffi::CString;
use std::io;
use std::time::Instant;

use highwater_tracker::{FileHandle, HANDLE_BYTES_MAX};

use super::{BarrierError, CarriedOver, FilesystemBarrier, Holder};
use crate::write_barrier::{self, Holdup, WriteBarrier};

impl WriteBarrier for FilesystemBarrier {
    fn wait(
        &self,
        deadline: Option<Instant>,
    ) -> Result<write_barrier::CarriedOver, write_barrier::BarrierError> {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let passed = self.synchronize(left).map_err(|error| match error {
            BarrierError::Deadline { holders, .. } => {
                write_barrier::BarrierError::Deadline { holdups: holders.into_iter().map(holdup).collect() }
            }
            other => write_barrier::BarrierError::Failed { source: io::Error::other(other) },
        })?;
        let mut objects = Vec::new();
        for file in &passed.carried_over {
            match handle(file) {
                Ok(handle) => objects.push(handle),
                // Closed in the meantime: the I/O has ended, or CLOSE_WRITE will tell when it does.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(write_barrier::BarrierError::Failed { source }),
            }
        }
        let not_covered = passed.not_covered.iter().map(ToString::to_string).collect();
        Ok(write_barrier::CarriedOver { objects, not_covered })
    }

    fn name(&self) -> &'static str {
        "bpf"
    }
}

fn holdup(holder: Holder) -> Holdup {
    Holdup { tid: holder.pid, command: holder.command, call: Some(holder.call) }
}

fn handle(file: &CarriedOver) -> io::Result<FileHandle> {
    #[repr(C)]
    struct Buffer {
        length: u32,
        kind: i32,
        bytes: [u8; HANDLE_BYTES_MAX],
    }
    let path = CString::new(format!("/proc/{}/fd/{}", file.pid, file.descriptor))?;
    let length = u32::try_from(HANDLE_BYTES_MAX).map_err(io::Error::other)?;
    let mut buffer = Buffer { length, kind: 0, bytes: [0; HANDLE_BYTES_MAX] };
    let mut mount = 0_i32;
    // SAFETY: the path ends with a zero; the buffer is a `struct file_handle` with as much room behind it as its length says; both outlive
    // the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            libc::AT_FDCWD,
            path.as_ptr(),
            &raw mut buffer,
            &raw mut mount,
            libc::AT_SYMLINK_FOLLOW,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // Another file may be under the descriptor by now. Its handle is then reported too much, and the file that was closed is told of by
    // CLOSE_WRITE, as above.
    let bytes = buffer.bytes.get(..usize::try_from(buffer.length).map_err(io::Error::other)?);
    bytes
        .and_then(|bytes| FileHandle::new(buffer.kind, bytes))
        .ok_or_else(|| io::Error::other("a file handle that is too long"))
}
