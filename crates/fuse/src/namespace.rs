//! What changes directories: making, linking, renaming and removing entries.
//!
//! The kernel holds the lock of every directory involved, exclusively, while it waits for the answer: what an entry is can be
//! looked up first and is still true when the operation runs.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd};

use highwater_objects::{attributes_of, object_type, proc_path};
use highwater_tracker::{Change, FileHandle, Intent, ObjectType};
use rustix::fs::{AtFlags, CWD, FileType, Mode, RenameFlags};
use rustix::io::Errno;

use crate::covered::Found;
use crate::credentials::{Caller, as_caller};
use crate::filesystem::{Filesystem, decode_device, place};
use crate::sections::WriteSection;
use crate::wire::abi::{EntryOut, LinkIn, MkdirIn, MknodIn, Rename2In, RenameIn};
use crate::wire::request::{Request, Sent};

impl Request<'_> {
    pub(crate) fn caller(&self) -> Caller {
        Caller { uid: self.header.uid, gid: self.header.gid }
    }
}

impl Filesystem {
    pub(crate) fn mkdir(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let mut body = request.body();
        let input: MkdirIn = body.take()?;
        let name = body.name()?;
        self.make(request, name, input.umask, |directory| {
            rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(input.mode & 0o7777))
        })
    }

    pub(crate) fn mknod(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let mut body = request.body();
        let input: MknodIn = body.take()?;
        let name = body.name()?;
        let (major, minor) = decode_device(input.rdev);
        let file_type = FileType::from_raw_mode(input.mode);
        self.make(request, name, input.umask, |directory| {
            let mode = Mode::from_raw_mode(input.mode & 0o7777);
            rustix::fs::mknodat(directory, name, file_type, mode, rustix::fs::makedev(major, minor))
        })
    }

    pub(crate) fn symlink(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let mut body = request.body();
        let name = body.name()?;
        let target = body.name()?;
        self.make(request, name, 0, |directory| rustix::fs::symlinkat(target, directory, name))
    }

    fn make(
        &self,
        request: &Request<'_>,
        name: &CStr,
        umask: u32,
        make: impl FnOnce(BorrowedFd<'_>) -> Result<(), Errno>,
    ) -> Result<Sent, Errno> {
        let parent = request.node();
        let directory = self.object(parent)?;
        let parent_handle = self.handle(parent)?;
        let section = self.sections.enter();
        section.intend(&[Intent::Directory(&parent_handle)])?;
        as_caller(request.caller(), umask, || make(directory.as_fd()))?;
        self.touched.directory(parent);
        let found = self.find_made(&*section, directory.as_fd(), name, &parent_handle)?;
        let change = Change::Created {
            object: found.handle.clone(),
            object_type: object_type(&found.stat),
            place: place(&parent_handle, name.to_bytes()),
        };
        let sent = request.reply(&self.record_name(&*section, change, &found, (parent, name)));
        drop(section);
        Ok(sent)
    }

    /// Records that an object has got a name, and what the kernel is told of it.
    pub(crate) fn record_name(
        &self,
        section: &dyn WriteSection,
        change: Change,
        found: &Found,
        (parent, name): (u64, &CStr),
    ) -> EntryOut {
        self.gone.remove(&found.handle);
        let mut entry = EntryOut::default();
        section.record(change, &mut || entry = self.entry(found, Some((parent, name.to_bytes()))));
        entry
    }

    /// Finds what has just been made. If that fails, all of the directory is to be compared.
    fn find_made(
        &self,
        section: &dyn WriteSection,
        directory: BorrowedFd<'_>,
        name: &CStr,
        parent: &FileHandle,
    ) -> Result<Found, Errno> {
        self.covered.find(directory, name).inspect_err(|_| section.lost_sight(parent))
    }

    pub(crate) fn link(&self, request: &Request<'_>) -> Result<Sent, Errno> {
        let mut body = request.body();
        let input: LinkIn = body.take()?;
        let name = body.name()?;
        let parent = request.node();
        let directory = self.object(parent)?;
        let parent_handle = self.handle(parent)?;
        let object = self.object(input.oldnodeid)?;
        let handle = self.handle(input.oldnodeid)?;
        let section = self.sections.enter();
        let intents = [Intent::Directory(&parent_handle), Intent::Object(&handle)];
        section.intend(&intents)?;
        let path = proc_path(object.as_fd());
        rustix::fs::linkat(CWD, path.as_c_str(), directory.as_fd(), name, AtFlags::SYMLINK_FOLLOW)?;
        self.touched.directory(parent);
        let found = self.find_made(&*section, directory.as_fd(), name, &parent_handle)?;
        let change = Change::Linked {
            object: found.handle.clone(),
            object_type: object_type(&found.stat),
            place: place(&parent_handle, name.to_bytes()),
        };
        let entry = self.record_name(&*section, change, &found, (parent, name));
        renew(&*section, &intents, &parent_handle);
        let sent = request.reply(&entry);
        drop(section);
        Ok(sent)
    }

    pub(crate) fn unlink(&self, request: &Request<'_>, is_directory: bool) -> Result<Sent, Errno> {
        let name = request.body().name()?;
        let parent = request.node();
        let directory = self.object(parent)?;
        let parent_handle = self.handle(parent)?;
        let section = self.sections.enter();
        section.intend(&[Intent::Directory(&parent_handle)])?;
        let (victim, fd) = self.covered.find_open(directory.as_fd(), name)?;
        intend_removal(&*section, &victim)?;
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        rustix::fs::unlinkat(directory.as_fd(), name, flags)?;
        self.touched.directory(parent);
        let object_type = object_type(&victim.stat);
        self.lost_a_name(&victim, fd);
        let change = Change::Removed {
            object: victim.handle.clone(),
            object_type,
            place: place(&parent_handle, name.to_bytes()),
        };
        section.record(change, &mut || self.nodes.remove_name(&victim.handle, parent, name.to_bytes()));
        let sent = request.done();
        drop(section);
        Ok(sent)
    }

    /// Keeps an object reachable that has lost its last name, for programs that still use it.
    fn lost_a_name(&self, victim: &Found, fd: std::sync::Arc<std::os::fd::OwnedFd>) {
        let is_directory = object_type(&victim.stat) == ObjectType::Directory;
        if is_directory && let Some(node) = self.nodes.id(&victim.handle) {
            self.directories.remove(node);
        }
        let is_nameless = || is_directory || attributes_of(fd.as_fd()).is_ok_and(|stat| stat.stx_nlink == 0);
        if self.keeps_descriptors() && is_nameless() {
            self.gone.insert(victim.handle.clone());
        }
        if is_directory || victim.stat.stx_nlink <= 1 {
            self.nodes.keep_descriptor(&victim.handle, fd);
        }
    }

    pub(crate) fn rename(&self, request: &Request<'_>, with_flags: bool) -> Result<Sent, Errno> {
        let mut body = request.body();
        let (to_node, flags) = if with_flags {
            let input: Rename2In = body.take()?;
            (input.newdir, RenameFlags::from_bits_retain(input.flags))
        } else {
            (body.take::<RenameIn>()?.newdir, RenameFlags::empty())
        };
        let from_name = body.name()?;
        let to_name = body.name()?;
        let from_node = request.node();
        let (from_dir, to_dir) = (self.object(from_node)?, self.object(to_node)?);
        let (from_handle, to_handle) = (self.handle(from_node)?, self.handle(to_node)?);
        let source = self.covered.find(from_dir.as_fd(), from_name)?;
        let replaced = match self.covered.find_open(to_dir.as_fd(), to_name) {
            Ok(found) => Some(found),
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(errno),
        };
        let section = self.sections.enter();
        let intents = [Intent::Directory(&from_handle), Intent::Directory(&to_handle)];
        section.intend(&intents)?;
        let exchanged =
            replaced.as_ref().filter(|_| flags.contains(RenameFlags::EXCHANGE)).map(|(other, _)| other);
        for moved in [Some(&source), exchanged].into_iter().flatten() {
            if object_type(&moved.stat) == ObjectType::Directory {
                section.intend(&[Intent::Move(&moved.handle)])?;
            }
        }
        if let Some((replaced, _)) = replaced.as_ref().filter(|_| exchanged.is_none()) {
            intend_removal(&*section, replaced)?;
        }
        let rename =
            || rustix::fs::renameat_with(from_dir.as_fd(), from_name, to_dir.as_fd(), to_name, flags);
        if flags.contains(RenameFlags::WHITEOUT) {
            as_caller(request.caller(), 0, rename)?;
        } else {
            rename()?;
        }
        self.touched.directory(from_node);
        self.touched.directory(to_node);

        let (from, to) = (from_name.to_bytes(), to_name.to_bytes());
        let from_place = place(&from_handle, from);
        let to_place = place(&to_handle, to);
        let source_is = (source.handle.clone(), object_type(&source.stat));
        match replaced {
            Some((other, _)) if flags.contains(RenameFlags::EXCHANGE) => {
                let change = Change::Exchanged {
                    a: source_is,
                    a_place: from_place.clone(),
                    b: (other.handle.clone(), object_type(&other.stat)),
                    b_place: to_place,
                };
                section.record(change, &mut || {
                    self.nodes.move_name(&source.handle, (from_node, from), (to_node, to));
                    self.nodes.move_name(&other.handle, (to_node, to), (from_node, from));
                });
            }
            // Two names of one object: rename(2) leaves both, and nothing has happened.
            Some((other, _)) if other.handle == source.handle => {}
            replaced => {
                let replaced = replaced.map(|(found, fd)| {
                    self.lost_a_name(&found, fd);
                    (found.handle, object_type(&found.stat))
                });
                let change = Change::Renamed {
                    object: source_is.0,
                    object_type: source_is.1,
                    from: from_place.clone(),
                    to: to_place,
                    replaced: replaced.clone(),
                };
                section.record(change, &mut || {
                    if let Some((handle, _)) = &replaced {
                        self.nodes.remove_name(handle, to_node, to);
                    }
                    self.nodes.move_name(&source.handle, (from_node, from), (to_node, to));
                });
            }
        }
        if flags.contains(RenameFlags::WHITEOUT)
            && let Ok(whiteout) = self.covered.find(from_dir.as_fd(), from_name)
        {
            let change = Change::Created {
                object: whiteout.handle.clone(),
                object_type: object_type(&whiteout.stat),
                place: from_place,
            };
            section.record(change, &mut || {});
        }
        renew(&*section, &intents, &to_handle);
        let sent = request.done();
        drop(section);
        Ok(sent)
    }
}

/// A directory that is about to lose its name has an intent of its own, which one that was emptied in this window has already.
///
/// After a crash it may be back, and what a consumer holds at its name may be another one, made later: in the directory above,
/// names alone are compared.
fn intend_removal(section: &dyn WriteSection, victim: &Found) -> Result<(), Errno> {
    if object_type(&victim.stat) == ObjectType::Directory {
        section.intend(&[Intent::Directory(&victim.handle)])?;
    }
    Ok(())
}

/// Asks for intents once more, after an object has got another name and that has been recorded.
///
/// Until then, who opened it looked for what covers the old name. If a new window began after our first intents, nothing in it would
/// cover the new name. It costs nothing as long as the window is the same.
fn renew(section: &dyn WriteSection, intents: &[Intent<'_>], directory: &FileHandle) {
    if section.intend(intents).is_err() {
        // The journal takes none. This makes it say so, as far as it still can.
        section.lost_sight(directory);
    }
}
