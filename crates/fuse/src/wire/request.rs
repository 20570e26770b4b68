//! One request: its header, its body read piece by piece with bounds checks, and its reply.
//!
//! Invariant: a request is answered at most once; [`Sent`] is the proof that it was.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::abi::{InHeader, OutHeader};
use super::device;

/// Proof that a request has been answered, or needs no answer.
#[derive(Debug)]
pub(crate) struct Sent(());

/// A request, borrowed from the buffer that it was read into.
pub(crate) struct Request<'a> {
    pub(crate) header: InHeader,
    body: &'a [u8],
    device: BorrowedFd<'a>,
}

/// The part of a request's body that has not been read yet.
pub(crate) struct Body<'a>(&'a [u8]);

impl<'a> Request<'a> {
    /// Takes a request apart. `EIO` if it is shorter than it says.
    pub(crate) fn parse(bytes: &'a [u8], device: BorrowedFd<'a>) -> Result<Self, Errno> {
        let (header, body) = InHeader::read_from_prefix(bytes).map_err(|_| Errno::IO)?;
        let len = usize::try_from(header.len).map_err(|_| Errno::IO)?;
        if len != bytes.len() {
            return Err(Errno::IO);
        }
        let extensions = usize::from(header.total_extlen) * 8;
        let body = body.get(..body.len().saturating_sub(extensions)).ok_or(Errno::IO)?;
        Ok(Self { header, body, device })
    }

    pub(crate) fn body(&self) -> Body<'a> {
        Body(self.body)
    }

    pub(crate) fn node(&self) -> u64 {
        self.header.nodeid
    }

    /// Answers with a structure.
    pub(crate) fn reply<T: IntoBytes + Immutable>(&self, out: &T) -> Sent {
        self.reply_parts(out.as_bytes(), &[])
    }

    /// Answers with two pieces, one after the other.
    pub(crate) fn reply_parts(&self, first: &[u8], second: &[u8]) -> Sent {
        let len = size_of::<OutHeader>() + first.len() + second.len();
        let header =
            OutHeader { len: u32::try_from(len).unwrap_or(u32::MAX), error: 0, unique: self.header.unique };
        device::send(self.device, &[header.as_bytes(), first, second]);
        Sent(())
    }

    /// Answers that it is done.
    pub(crate) fn done(&self) -> Sent {
        self.reply_parts(&[], &[])
    }

    /// Answers with an error.
    pub(crate) fn fail(&self, errno: Errno) -> Sent {
        let header = OutHeader { len: 16, error: -errno.raw_os_error(), unique: self.header.unique };
        device::send(self.device, &[header.as_bytes()]);
        Sent(())
    }

    /// For the requests that the kernel wants no answer to.
    pub(crate) fn no_answer(&self) -> Sent {
        Sent(())
    }
}

impl<'a> Body<'a> {
    /// Reads the next structure.
    pub(crate) fn take<T: FromBytes + KnownLayout + Immutable>(&mut self) -> Result<T, Errno> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| Errno::IO)?;
        self.0 = rest;
        Ok(value)
    }

    /// Reads the next name, which ends with a NUL.
    pub(crate) fn name(&mut self) -> Result<&'a CStr, Errno> {
        let name = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::IO)?;
        self.0 = &self.0[name.to_bytes_with_nul().len()..];
        Ok(name)
    }

    /// Reads exactly `len` bytes.
    pub(crate) fn bytes(&mut self, len: u32) -> Result<&'a [u8], Errno> {
        let len = usize::try_from(len).map_err(|_| Errno::IO)?;
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Errno::IO)?;
        self.0 = rest;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_request_that_is_shorter_than_it_says_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let mut bytes = vec![0u8; 48];
        bytes[..4].copy_from_slice(&48u32.to_le_bytes());
        assert!(Request::parse(&bytes, null.as_fd()).is_ok());
        assert!(Request::parse(&bytes[..47], null.as_fd()).is_err());
        assert!(Request::parse(&bytes[..39], null.as_fd()).is_err());
    }

    #[test]
    fn a_body_is_never_read_past_its_end() {
        let mut body = Body(b"ab\0cd");
        assert_eq!(body.name().unwrap().to_bytes(), b"ab");
        assert!(body.name().is_err());
        assert!(body.bytes(3).is_err());
        assert_eq!(body.bytes(2).unwrap(), b"cd");
        assert!(body.take::<super::super::abi::ForgetIn>().is_err());
    }

    /// Takes a body apart as some operation does.
    fn read(body: &mut Body<'_>, steps: &[u8]) -> usize {
        use super::super::abi;
        let mut read = 0;
        for step in steps {
            let before = body.0.len();
            let is_read = match step % 10 {
                0 => body.name().map(|name| assert!(!name.to_bytes().contains(&0))).is_ok(),
                1 => body.take::<abi::SetattrIn>().is_ok(),
                2 => body.take::<abi::CreateIn>().is_ok(),
                3 => body.take::<abi::WriteIn>().is_ok_and(|write| body.bytes(write.size).is_ok()),
                4 => body.take::<abi::Rename2In>().is_ok(),
                5 => body.take::<abi::CopyFileRangeIn>().is_ok(),
                6 => body.take::<abi::ForgetIn>().is_ok(),
                7 => body.take::<abi::IoctlIn>().is_ok(),
                8 => body.bytes(u32::from(*step) << 24 | 3).is_ok(),
                _ => body.bytes(u32::from(*step) / 10).is_ok(),
            };
            assert!(body.0.len() <= before, "a body only gets shorter");
            read += before - body.0.len();
            if !is_read {
                break;
            }
        }
        read
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            cases: 2_000 * std::env::var("HIGHWATER_FUZZ").map_or(1, |times| times.parse::<u32>().unwrap()),
            failure_persistence: None,
            ..Default::default()
        })]

        /// Whatever the kernel sends, nothing is read that it has not sent, and nothing panics. (The slices' own bounds checks
        /// see to memory; this is about lengths that lie.)
        #[test]
        fn arbitrary_requests_are_refused_or_read_within_their_bounds(
            mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            len_is_right in proptest::prelude::any::<bool>(),
            extensions in proptest::option::of(0_u16..30),
            steps in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..6),
        ) {
            let null = std::fs::File::open("/dev/null").unwrap();
            if len_is_right && bytes.len() >= 40 {
                let len = u32::try_from(bytes.len()).unwrap();
                bytes[..4].copy_from_slice(&len.to_le_bytes());
                let extensions = extensions.unwrap_or(u16::from_le_bytes([bytes[36], bytes[37]]));
                bytes[36..38].copy_from_slice(&extensions.to_le_bytes());
            }
            if let Ok(request) = Request::parse(&bytes, null.as_fd()) {
                let read = read(&mut request.body(), &steps);
                proptest::prop_assert!(read <= bytes.len() - size_of::<InHeader>());
            }
        }
    }
}
