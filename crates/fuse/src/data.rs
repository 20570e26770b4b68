//! Files: opening and making them, their data, and letting them go.
//!
//! A file that is open for writing is told to the tracker before the kernel can use the open, and taken back when the kernel
//! has let go of it *and* no mapping of it is left (see [`crate::writers`]).

use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use highwater_objects::{attributes_of, magic, object_type, proc_path, sample};
use highwater_tracker::{Change, FileHandle, Intent, WriterMode};
use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::backing::OpenNode;
use crate::covered::Found;
use crate::credentials::{as_caller, without_fsetid};
use crate::filesystem::{Filesystem, place};
use crate::sections::WriteSection;
use crate::settle::Touch;
use crate::wire::abi::{
    CopyFileRangeIn, CopyFileRangeOut, CreateIn, EntryOut, FSYNC_DATA_ONLY, FallocateIn, FsyncIn, LseekIn,
    LseekOut, OpenIn, OpenOut, ReadIn, ReleaseIn, WRITE_KILL_SUIDGID, WriteIn, WriteOut, fopen,
};
use crate::wire::request::{Request, Sent};

/// One open of a regular file.
pub(crate) struct OpenFile {
    pub(crate) node: u64,
    pub(crate) handle: FileHandle,
    pub(crate) open: Arc<OpenNode>,
    /// The flags that matter for a descriptor of the lower file.
    flags: OFlags,
    /// A descriptor with those flags, when one is needed.
    own: Mutex<Option<Arc<OwnedFd>>>,
    pub(crate) writer: Option<WriterMode>,
}

impl OpenFile {
    /// A descriptor of the lower file for writing.
    pub(crate) fn writable(&self) -> Result<Arc<OwnedFd>, Errno> {
        if self.writer.is_none() {
            return Err(Errno::BADF);
        }
        let mut own = self.own.lock();
        if let Some(own) = &*own {
            return Ok(Arc::clone(own));
        }
        let anchor = self.open.anchor().ok_or(Errno::BADF)?;
        let path = proc_path(anchor.as_fd());
        let fd = Arc::new(rustix::fs::open(path.as_c_str(), self.flags | OFlags::CLOEXEC, Mode::empty())?);
        *own = Some(Arc::clone(&fd));
        Ok(fd)
    }

    /// A descriptor of the lower file for reading and for everything that does not write.
    fn readable(&self) -> Result<Arc<OwnedFd>, Errno> {
        if !self.flags.contains(OFlags::WRONLY)
            && let Some(own) = &*self.own.lock()
        {
            return Ok(Arc::clone(own));
        }
        self.open.anchor().ok_or(Errno::BADF)
    }

    /// Closes the descriptor for writing; another is made when it is needed.
    pub(crate) fn drop_own(&self) {
        *self.own.lock() = None;
    }
}

/// The flags of an open that a descriptor of the lower file takes over. Not `O_APPEND`: the kernel says where a write goes;
/// not `O_DIRECT`: requests come in buffers of any alignment.
fn lower_flags(flags: OFlags) -> OFlags {
    flags & (OFlags::ACCMODE | OFlags::DSYNC | OFlags::SYNC | OFlags::NOATIME)
}

fn writes(flags: OFlags) -> bool {
    flags & OFlags::ACCMODE != OFlags::RDONLY
}

impl Filesystem {
    pub(crate) fn open(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let input: OpenIn = request.body().take()?;
        let flags = OFlags::from_bits_retain(input.flags);
        let node = request.node();
        if !writes(flags) {
            let handle = self.handle(node)?;
            let (open, backing) = self.begin_open(node, None)?;
            let out = self.opened(node, handle, open, backing, flags, None, false);
            return Ok(request.reply(&out));
        }
        self.note_opener(request, flags);
        let (target, section) = self.section_for(node)?;
        let (open, backing) = self.begin_open(node, None)?;
        match self.open_for_writing(&*section, &target.handle, node, &open, backing, flags) {
            Ok(out) => {
                let sent = request.reply(&out);
                drop(section);
                Ok(sent)
            }
            Err(errno) => {
                self.end_open(node, &open);
                Err(errno)
            }
        }
    }

    fn open_for_writing(
        &self,
        section: &dyn WriteSection,
        handle: &FileHandle,
        node: u64,
        open: &Arc<OpenNode>,
        backing: Option<i32>,
        flags: OFlags,
    ) -> Result<OpenOut, Errno> {
        let anchor = open.anchor().ok_or(Errno::IO)?;
        let stat = attributes_of(anchor.as_fd())?;
        let path = proc_path(anchor.as_fd());
        let writer = writer_mode(flags, backing);
        let privileged =
            backing.is_some() && loses_privileges_on_write(stat.stx_mode.into(), path.as_c_str());
        section.opened(handle, writer, sample(&stat));
        if writer.unseen && writer.can_map {
            open.add_mappable();
            if self.nodes.take_attributes_cached(node) {
                // ENOENT: the kernel has dropped the inode meanwhile.
                let _ = self.notifier.attributes(node);
            }
        }
        let open = Arc::clone(open);
        let out = self.opened(node, handle.clone(), open, backing, flags, Some(writer), privileged);
        if backing.is_none()
            && let Err(errno) = self.open_files.get(out.fh).and_then(|file| file.writable().map(drop))
        {
            drop(self.open_files.remove(out.fh));
            section.closed(handle, &mut || None);
            return Err(errno);
        }
        Ok(out)
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one open, used here only")]
    fn opened(
        &self,
        node: u64,
        handle: FileHandle,
        open: Arc<OpenNode>,
        backing: Option<i32>,
        flags: OFlags,
        writer: Option<WriterMode>,
        privileged: bool,
    ) -> OpenOut {
        let file = OpenFile { node, handle, open, flags: lower_flags(flags), own: Mutex::new(None), writer };
        let fh = self.open_files.insert(file);
        match backing {
            Some(backing_id) => {
                // A program that writes to a file with privileges must lose them for the file; a passthrough write by root
                // must not. Only the server can tell the two apart, so those writes come to it.
                let direct = if privileged { fopen::DIRECT_IO } else { 0 };
                OpenOut { fh, open_flags: fopen::PASSTHROUGH | fopen::NOFLUSH | direct, backing_id }
            }
            None => {
                // Pages stay valid from one open to the next, since every change goes through them; not if some opens of the
                // file may have gone past them.
                let keep = if self.options.passthrough { 0 } else { fopen::KEEP_CACHE };
                OpenOut { fh, open_flags: keep, backing_id: 0 }
            }
        }
    }

    fn note_opener(&self, request: &Request<'_>, flags: OFlags) {
        if flags & OFlags::ACCMODE == OFlags::RDWR {
            self.openers.lock().insert(request.header.pid);
        }
    }

    /// Makes the kernel forget a mode that has just lost its set-user-id bits: it does not expect a write to change one.
    fn privileges_taken(&self, node: u64) {
        // ENOENT: the kernel has dropped the inode meanwhile.
        let _ = self.notifier.attributes(node);
    }

    pub(crate) fn create(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let mut body = request.body();
        let input: CreateIn = body.take()?;
        let name = body.name()?;
        let flags = OFlags::from_bits_retain(input.flags);
        let parent = request.node();
        let directory = self.object(parent)?;
        let parent_handle = self.handle(parent)?;
        let section = self.sections.enter();
        section.intend(&[Intent::Directory(&parent_handle)])?;
        let lower = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = as_caller(request.caller(), input.umask, || {
            rustix::fs::openat(directory.as_fd(), name, lower, Mode::from_raw_mode(input.mode & 0o7777))
        })
        .map_err(|errno| match errno {
            // The kernel has cached that there is no such name; ESTALE makes it look again.
            Errno::EXIST if !flags.contains(OFlags::EXCL) => Errno::STALE,
            errno => errno,
        })?;
        self.touched.directory(parent);
        let found = self.found_new(&fd).inspect_err(|_| section.lost_sight(&parent_handle))?;
        let change = Change::Created {
            object: found.handle.clone(),
            object_type: object_type(&found.stat),
            place: place(&parent_handle, name.to_bytes()),
        };
        let entry = self.record_name(&*section, change, &found, (parent, name));
        let sent = self.answer_created(request, &*section, &found, entry, fd, flags)?;
        drop(section);
        Ok(sent)
    }

    pub(crate) fn tmpfile(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let input: CreateIn = request.body().take()?;
        let flags = OFlags::from_bits_retain(input.flags);
        let parent = request.node();
        let directory = self.object(parent)?;
        let parent_handle = self.handle(parent)?;
        let section = self.sections.enter();
        section.intend(&[Intent::Directory(&parent_handle)])?;
        let lower = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC | (flags & OFlags::EXCL);
        let fd = as_caller(request.caller(), input.umask, || {
            rustix::fs::openat(directory.as_fd(), c".", lower, Mode::from_raw_mode(input.mode & 0o7777))
        })?;
        let found = self.found_new(&fd)?;
        let entry = self.entry(&found, None);
        // It has no name by which it could be opened again.
        if let Ok(path) =
            rustix::fs::open(proc_path(fd.as_fd()).as_c_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        {
            self.nodes.keep_descriptor(&found.handle, Arc::new(path));
        }
        let sent = self.answer_created(request, &*section, &found, entry, fd, flags)?;
        drop(section);
        Ok(sent)
    }

    fn found_new(&self, fd: &OwnedFd) -> Result<Found, Errno> {
        let (handle, stat) = self.covered.identify(fd.as_fd())?;
        let mut kept = None;
        if self.keeps_descriptors() {
            let path = proc_path(fd.as_fd());
            let fd = rustix::fs::open(path.as_c_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
            kept = Some(Arc::new(fd));
        }
        Ok(Found { handle, stat, fd: kept })
    }

    fn answer_created(
        &self,
        request: &Request<'_>,
        section: &dyn WriteSection,
        found: &Found,
        mut entry: EntryOut,
        fd: OwnedFd,
        flags: OFlags,
    ) -> Result<Sent, Errno> {
        // The descriptor of a file that can be mapped writable must not stay open for writing below: whether one is, is how
        // the end of the last mapping is seen.
        let can_map = flags & OFlags::ACCMODE == OFlags::RDWR;
        self.note_opener(request, flags);
        let created = if can_map {
            let path = proc_path(fd.as_fd());
            rustix::fs::open(path.as_c_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).or_else(
                |errno| {
                    // Not root, and a mode without the right to read.
                    if errno == Errno::ACCESS { rustix::io::fcntl_dupfd_cloexec(&fd, 0) } else { Err(errno) }
                },
            )
        } else {
            Ok(fd)
        };
        let (open, backing) = match created.and_then(|fd| self.begin_open(entry.nodeid, Some(fd))) {
            Ok(open) => open,
            Err(errno) => {
                self.nodes.forget(entry.nodeid, 1);
                return Err(errno);
            }
        };
        let writer = writes(flags).then(|| writer_mode(flags, backing));
        if let Some(writer) = writer {
            section.opened(&found.handle, writer, sample(&found.stat));
            if writer.unseen && writer.can_map {
                open.add_mappable();
                self.nodes.take_attributes_cached(entry.nodeid);
                entry.attr_valid = 0;
            }
        }
        let out = self.opened(entry.nodeid, found.handle.clone(), open, backing, flags, writer, false);
        Ok(request.reply_parts(entry.as_bytes(), out.as_bytes()))
    }

    pub(crate) fn release(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let input: ReleaseIn = request.body().take()?;
        let file = self.open_files.remove(input.fh)?;
        let Some(writer) = file.writer else {
            self.end_open(file.node, &file.open);
            return Ok(request.done());
        };
        if writer.unseen && writer.can_map && self.linger(&file) {
            return Ok(request.done());
        }
        let section = self.sections.enter();
        self.end_writer(&*section, &file);
        let sent = request.done();
        drop(section);
        Ok(sent)
    }

    /// Takes an open for writing back: no write and no store can come through it any more.
    pub(crate) fn end_writer(&self, section: &dyn WriteSection, file: &OpenFile) {
        let anchor = file.open.anchor();
        if let Some(writer) = file.writer
            && writer.unseen
            && writer.can_map
        {
            file.open.remove_mappable();
            if self.covered.magic() == magic::TMPFS {
                // A store into a shared mapping changes no timestamp there: nothing else would tell.
                section.record(Change::Modified { object: file.handle.clone() }, &mut || {});
            }
        }
        section.closed(&file.handle, &mut || {
            let stat = attributes_of(anchor.as_ref()?.as_fd()).ok()?;
            Some(sample(&stat))
        });
        self.end_open(file.node, &file.open);
    }

    pub(crate) fn read(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        thread_local! {
            static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
        }
        let input: ReadIn = request.body().take()?;
        let file = self.open_files.get(input.fh)?;
        let fd = file.readable()?;
        let size = input.size.min(crate::session::DATA_BYTES_MAX) as usize;
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            let mut filled = 0;
            while filled < size {
                match rustix::io::pread(fd.as_fd(), &mut buffer[filled..size], input.offset + filled as u64) {
                    Ok(0) => break,
                    Ok(n) => filled += n,
                    Err(_) if filled > 0 => break,
                    Err(errno) => return Err(errno),
                }
            }
            Ok(request.reply_parts(&buffer[..filled], &[]))
        })
    }

    pub(crate) fn write(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let mut body = request.body();
        let input: WriteIn = body.take()?;
        let data = body.bytes(input.size)?;
        let file = self.open_files.get(input.fh)?;
        let fd = file.writable()?;
        let (target, section) = self.section_for(file.node)?;
        let mut written = 0;
        let mut write = || {
            while written < data.len() {
                match rustix::io::pwrite(&fd, &data[written..], input.offset + written as u64) {
                    Ok(0) => break,
                    Ok(n) => written += n,
                    Err(_) if written > 0 => break,
                    Err(errno) => return Err(errno),
                }
            }
            Ok(())
        };
        const PRIVILEGED: u32 = libc::S_ISUID | libc::S_ISGID;
        let kill = input.write_flags & WRITE_KILL_SUIDGID != 0
            && u32::from(attributes_of(fd.as_fd())?.stx_mode) & PRIVILEGED != 0;
        if kill {
            without_fsetid(write)?;
            self.privileges_taken(file.node);
        } else {
            write()?;
        }
        self.touched.node(file.node, Touch::Data);
        section.record(Change::Modified { object: target.handle.clone() }, &mut || {});
        let size = u32::try_from(written).map_err(|_| Errno::IO)?;
        let sent = request.reply(&WriteOut { size, padding: 0 });
        drop(section);
        Ok(sent)
    }

    pub(crate) fn fallocate(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let input: FallocateIn = request.body().take()?;
        let file = self.open_files.get(input.fh)?;
        let fd = file.writable()?;
        let (target, section) = self.section_for(file.node)?;
        let mode = FallocateFlags::from_bits_retain(input.mode);
        // The kernel's VFS leaves it to the filesystem to take privileges away here, and the caller's are not told.
        rustix::fs::fallocate(fd, mode, input.offset, input.length)?;
        self.touched.node(file.node, Touch::Data);
        section.record(Change::Modified { object: target.handle.clone() }, &mut || {});
        let sent = request.done();
        drop(section);
        Ok(sent)
    }

    pub(crate) fn copy_file_range(&self, request: &Request<'_>, wide: bool) -> Result<Sent, Errno> {
        let input: CopyFileRangeIn = request.body().take()?;
        let source = self.open_files.get(input.fh_in)?;
        let file = self.open_files.get(input.fh_out)?;
        let (from, to) = (source.readable()?, file.writable()?);
        let (target, section) = self.section_for(file.node)?;
        let (mut from_offset, mut to_offset) = (input.off_in, input.off_out);
        // The narrow answer has 32 bits for the length.
        let limit = if wide { input.len } else { input.len.min(u64::from(u32::MAX) & !0xfff) };
        let len = usize::try_from(limit).unwrap_or(usize::MAX);
        let copied =
            rustix::fs::copy_file_range(from.as_fd(), Some(&mut from_offset), to, Some(&mut to_offset), len)?;
        if copied > 0 {
            self.touched.node(file.node, Touch::Data);
            section.record(Change::Modified { object: target.handle.clone() }, &mut || {});
        }
        let sent = if wide {
            request.reply(&CopyFileRangeOut { bytes_copied: copied as u64 })
        } else {
            request.reply(&WriteOut { size: u32::try_from(copied).map_err(|_| Errno::IO)?, padding: 0 })
        };
        drop(section);
        Ok(sent)
    }

    pub(crate) fn lseek(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let input: LseekIn = request.body().take()?;
        let file = self.open_files.get(input.fh)?;
        let position = match input.whence.cast_signed() {
            libc::SEEK_DATA => SeekFrom::Data(input.offset),
            libc::SEEK_HOLE => SeekFrom::Hole(input.offset),
            _ => return Err(Errno::INVAL),
        };
        let offset = rustix::fs::seek(file.readable()?, position)?;
        Ok(request.reply(&LseekOut { offset }))
    }

    pub(crate) fn fsync(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let input: FsyncIn = request.body().take()?;
        let file = self.open_files.get(input.fh)?;
        let fd = file.readable()?;
        if input.fsync_flags & FSYNC_DATA_ONLY != 0 {
            rustix::fs::fdatasync(fd)
        } else {
            rustix::fs::fsync(fd)
        }?;
        Ok(request.done())
    }
}

fn writer_mode(flags: OFlags, backing: Option<i32>) -> WriterMode {
    WriterMode {
        can_map: flags & OFlags::ACCMODE == OFlags::RDWR,
        direct: flags.contains(OFlags::DIRECT),
        unseen: backing.is_some(),
    }
}

/// Whether a file has what a write by an unprivileged program takes away.
fn loses_privileges_on_write(mode: u32, path: &std::ffi::CStr) -> bool {
    mode & (libc::S_ISUID | libc::S_ISGID) != 0
        || rustix::fs::getxattr_query(path, c"security.capability").is_ok()
}
