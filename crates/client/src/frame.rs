//! One message on the wire: the bytes of a JSON object, ended by one NUL.
//!
//! Invariant: a reader never holds more than its limit and one read's worth of bytes, whatever the other side sends.

use std::io::{self, Read, Write};

/// The most bytes of a request. The longest honest one is a cursor and a consumer's name.
pub const REQUEST_BYTES_MAX: usize = 1024 * 1024;

/// The most bytes of a reply that the client takes. A server ends a batch of changes at a small part of this.
pub const REPLY_BYTES_MAX: usize = 16 * 1024 * 1024;

const READ_BYTES: usize = 64 * 1024;

/// A frame that could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// More than the limit has come without an end.
    #[error("a message of more than {bytes_max} bytes")]
    TooLong {
        /// The limit.
        bytes_max: usize,
    },
    /// The other side has closed the connection in the middle of a frame.
    #[error("the connection was closed in the middle of a message")]
    Torn,
    /// Reading failed; [`io::ErrorKind::WouldBlock`] if the time for it ran out.
    #[error("cannot read from the socket")]
    Io(#[from] io::Error),
}

/// Takes a stream of bytes apart into frames.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    /// Bytes received and not handed out: `buffer[start..]`.
    buffer: Vec<u8>,
    start: usize,
    /// There is no NUL in `buffer[start..scanned]`.
    scanned: usize,
    bytes_max: usize,
}

impl<R: Read> FrameReader<R> {
    /// Reads frames of at most `bytes_max` bytes from a stream.
    pub fn new(stream: R, bytes_max: usize) -> Self {
        Self { stream, buffer: Vec::new(), start: 0, scanned: 0, bytes_max }
    }

    /// The next frame without its NUL; `None` when the other side has closed the connection between two frames.
    ///
    /// After an error the reader is not to be used again.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        loop {
            if let Some(found) = self.buffer[self.scanned..].iter().position(|byte| *byte == 0) {
                let frame = self.start..self.scanned + found;
                if frame.len() > self.bytes_max {
                    return Err(FrameError::TooLong { bytes_max: self.bytes_max });
                }
                self.start = frame.end + 1;
                self.scanned = self.start;
                return Ok(Some(&self.buffer[frame]));
            }
            self.scanned = self.buffer.len();
            if self.buffer.len() - self.start > self.bytes_max {
                return Err(FrameError::TooLong { bytes_max: self.bytes_max });
            }
            if !self.fill()? {
                return if self.start == self.buffer.len() { Ok(None) } else { Err(FrameError::Torn) };
            }
        }
    }

    /// The stream, to ask or to change it (timeouts).
    pub fn stream(&self) -> &R {
        &self.stream
    }

    /// Receives some bytes; `false` at the end of the stream.
    fn fill(&mut self) -> Result<bool, FrameError> {
        self.buffer.drain(..self.start);
        self.scanned -= self.start;
        self.start = 0;
        let len = self.buffer.len();
        self.buffer.resize(len + READ_BYTES, 0);
        let received = loop {
            match self.stream.read(&mut self.buffer[len..]) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                received => break received,
            }
        };
        self.buffer.truncate(len + *received.as_ref().unwrap_or(&0));
        Ok(received? > 0)
    }
}

/// Reads the bytes of a frame as one message.
///
/// serde takes an array for a struct too, its fields in their order. On the wire that is no message.
pub fn read_message<'a, T: serde::Deserialize<'a>>(bytes: &'a [u8]) -> serde_json::Result<T> {
    if bytes.trim_ascii_start().first() == Some(&b'{') {
        serde_json::from_slice(bytes)
    } else {
        Err(serde::de::Error::custom("it is not an object"))
    }
}

/// Writes one message as a frame, with one call so that a small frame is not cut in two.
///
/// serde_json escapes control characters, so that no NUL can be inside.
pub fn write_frame(stream: &mut impl Write, message: &impl serde::Serialize) -> io::Result<()> {
    let mut bytes = serde_json::to_vec(message)?;
    bytes.push(0);
    stream.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands out a few bytes at a time.
    struct Dribble<'a>(&'a [u8], usize);

    impl Read for Dribble<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let len = self.1.min(self.0.len()).min(buffer.len());
            buffer[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }

    #[test]
    fn frames_come_out_however_the_bytes_are_cut() {
        for step in 1..12 {
            let mut reader = FrameReader::new(Dribble(b"{}\0\0{\"a\":1}\0", step), 100);
            assert_eq!(reader.next_frame().unwrap(), Some(&b"{}"[..]));
            assert_eq!(reader.next_frame().unwrap(), Some(&b""[..]));
            assert_eq!(reader.next_frame().unwrap(), Some(&b"{\"a\":1}"[..]));
            assert_eq!(reader.next_frame().unwrap(), None);
        }
    }

    #[test]
    fn a_torn_frame_is_an_error() {
        let mut reader = FrameReader::new(&b"{}\0{"[..], 100);
        assert!(reader.next_frame().unwrap().is_some());
        assert!(matches!(reader.next_frame(), Err(FrameError::Torn)));
    }

    #[test]
    fn an_endless_frame_is_refused_with_bounded_memory() {
        let mut reader = FrameReader::new(io::repeat(b'x'), 1000);
        assert!(matches!(reader.next_frame(), Err(FrameError::TooLong { bytes_max: 1000 })));
        assert!(reader.buffer.capacity() <= 4 * READ_BYTES);
    }

    #[test]
    fn the_limit_is_exact() {
        let frame = [b"x".repeat(10), vec![0]].concat();
        assert!(FrameReader::new(&frame[..], 10).next_frame().unwrap().is_some());
        assert!(matches!(FrameReader::new(&frame[..], 9).next_frame(), Err(FrameError::TooLong { .. })));
    }
}
