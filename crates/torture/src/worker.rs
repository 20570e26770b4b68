//! One writer process: random operations on the tracked tree, all drawn from one seed.
//!
//! It does what programs do, not what is polite: descriptors stay open across renames and unlinks, mappings outlive
//! their descriptors, and nothing is ever flushed on purpose. It tells nobody what it did: only the tree counts. The
//! log is for a person who looks for the cause of a miss.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use fastrand::Rng;
use rustix::fs::{
    AtFlags, FallocateFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, XattrFlags,
};
use rustix::fs::{CWD, Gid, Uid};

use crate::mapping::Mapping;
use crate::{async_io, object};

/// The hidden subcommand that the oracle starts.
#[derive(clap::Args)]
pub(crate) struct WorkerArgs {
    #[arg(long)]
    tree: PathBuf,
    #[arg(long)]
    log: PathBuf,
    #[arg(long)]
    id: u64,
    #[arg(long)]
    seed: u64,
}

const HELD_FILES_MAX: usize = 6;
const HELD_MAPPINGS_MAX: usize = 4;
const DEPTH_MAX: usize = 6;
/// Above this many entries in a directory the writers delete more than they create.
const ENTRIES_HIGH: usize = 14;

struct Worker {
    tree: PathBuf,
    prefix: String,
    rng: Rng,
    id: u64,
    operation: u64,
    files: Vec<(File, PathBuf)>,
    mappings: Vec<(Mapping, PathBuf)>,
    log: BufWriter<File>,
}

/// Serves `go N` lines on stdin with `done N` lines on stdout: so many operations were tried.
pub(crate) fn main(arguments: &WorkerArgs) -> Result<()> {
    // Modes are part of what is compared, so they have to be what the operation asked for.
    rustix::process::umask(Mode::empty());
    crate::mapping::survive_sigbus();
    let mut worker = Worker {
        tree: arguments.tree.clone(),
        prefix: format!("{}/", arguments.tree.display()),
        rng: Rng::with_seed(arguments.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(arguments.id)),
        id: arguments.id,
        operation: 0,
        files: Vec::new(),
        mappings: Vec::new(),
        log: BufWriter::new(File::create(&arguments.log)?),
    };
    for line in io::stdin().lock().lines() {
        let line = line?;
        let count: u64 = line.strip_prefix("go ").context("expected `go N`")?.parse()?;
        worker.round(count)?;
        worker.log.flush()?;
        // An error: the oracle is gone, and nobody is left to work for.
        writeln!(io::stdout(), "done {count}")?;
        io::stdout().flush()?;
    }
    Ok(())
}

impl Worker {
    fn round(&mut self, count: u64) -> Result<()> {
        let mut refused = 0;
        for _ in 0..count {
            self.operation += 1;
            let (what, outcome) = self.step();
            // Paths relative to the tree, as the change lists have them.
            let what = what.replace(&self.prefix, "");
            let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
            writeln!(
                self.log,
                "{} {}.{:09} {what} -> {}",
                self.operation,
                now.as_secs(),
                now.subsec_nanos(),
                match &outcome {
                    Ok(()) => "ok".to_owned(),
                    Err(error) => error.to_string(),
                }
            )?;
            if let Err(error) = outcome
                && matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED | libc::ESTALE))
            {
                // The tracker is dead: let go of everything, as a program that is restarted does, and wait.
                self.files.clear();
                self.mappings.clear();
                refused += 1;
                self.log.flush()?;
                std::thread::sleep(Duration::from_millis(5));
                // For good: the oracle finds out and says so.
                anyhow::ensure!(refused < 12_000, "no tracker for a minute");
            }
        }
        Ok(())
    }

    /// Bytes that tell who wrote them and when: worker, operation.
    fn data(&mut self, length: usize) -> Vec<u8> {
        let stamp = format!("<{}.{}>", self.id, self.operation);
        stamp.bytes().cycle().take(length).collect()
    }

    fn length(&mut self) -> usize {
        match self.rng.u32(0..10) {
            0 => 0,
            1..=4 => self.rng.usize(1..200),
            5..=7 => self.rng.usize(1000..9000),
            8 => 4096 * self.rng.usize(1..5),
            _ => self.rng.usize(20_000..150_000),
        }
    }

    fn name(&mut self) -> Vec<u8> {
        match self.rng.u32(0..60) {
            0 => b"new\nline".to_vec(),
            1 => b"not-utf8-\xff\xfe".to_vec(),
            2 => [b"long-".as_slice(), &[b'x'; 250]].concat(),
            3 => b" space \t\"quote\"\\".to_vec(),
            4 => "\u{fc}ml\u{e4}ut".as_bytes().to_vec(),
            5 => b"-rf".to_vec(),
            6 => b"...".to_vec(),
            n => format!("n{}", n % 18).into_bytes(),
        }
    }

    fn entries(&self, directory: &Path) -> Vec<(PathBuf, object::Kind)> {
        let Ok(list) =
            rustix::fs::open(directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .and_then(|fd| rustix::fs::Dir::read_from(&fd))
        else {
            return Vec::new();
        };
        let mut found: Vec<_> = list
            .flatten()
            .filter(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."))
            .map(|entry| {
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                (directory.join(name), object::kind_of(entry.file_type()))
            })
            .collect();
        // Sorted, so that one writer alone does the same in each run.
        found.sort();
        found
    }

    /// A random directory of the tree.
    fn directory(&mut self) -> PathBuf {
        let mut at = self.tree.clone();
        for _ in 0..DEPTH_MAX {
            if self.rng.u32(0..100) < 30 {
                break;
            }
            let below: Vec<_> =
                self.entries(&at).into_iter().filter(|(_, kind)| *kind == object::Kind::Directory).collect();
            match self.rng.choice(below) {
                Some((path, _)) => at = path,
                None => break,
            }
        }
        at
    }

    /// A random existing entry, preferably of this kind.
    fn entry(&mut self, kind: Option<object::Kind>) -> io::Result<PathBuf> {
        for _ in 0..4 {
            let directory = self.directory();
            let entries = self.entries(&directory);
            let wanted: Vec<_> =
                entries.into_iter().filter(|(_, found)| kind.is_none_or(|k| k == *found)).collect();
            if let Some((path, _)) = self.rng.choice(wanted) {
                return Ok(path);
            }
        }
        // Not ENOENT, which may come from the operation itself.
        Err(io::Error::other("nothing to work on"))
    }

    fn file(&mut self) -> io::Result<PathBuf> {
        self.entry(Some(object::Kind::File))
    }

    /// A random place for a new entry, which may exist already.
    fn place(&mut self) -> PathBuf {
        let directory = self.directory();
        let name = self.name();
        directory.join(std::ffi::OsString::from_vec(name))
    }

    fn open(&mut self, path: &Path) -> io::Result<File> {
        without_waiting().read(true).write(true).open(path)
    }

    /// A length and an offset inside or a little behind the end of a file.
    fn span(&mut self, file: &File) -> io::Result<(u64, usize)> {
        let size = file.metadata()?.len().min(400_000);
        let offset = self.rng.u64(0..=size + size / 8);
        Ok((offset, self.length()))
    }

    fn hold(&mut self, file: File, path: PathBuf) {
        if self.files.len() >= HELD_FILES_MAX {
            let oldest = self.rng.usize(..self.files.len());
            self.files.swap_remove(oldest);
        }
        self.files.push((file, path));
    }

    /// One operation. The text says what was tried; a failure is as good as a success.
    fn step(&mut self) -> (String, io::Result<()>) {
        let mut what = String::new();
        let outcome = self.choose(&mut what);
        (what, outcome)
    }

    fn choose(&mut self, what: &mut String) -> io::Result<()> {
        // Keeps the tree at a size where writers meet each other.
        if self.rng.u32(0..4) == 0 {
            let directory = self.directory();
            if self.entries(&directory).len() > ENTRIES_HIGH {
                return self.remove_something(what);
            }
        }
        match self.rng.u32(0..100) {
            0..=11 => self.create(what),
            12..=16 => self.append(what),
            17..=21 => self.overwrite(what),
            22..=25 => self.truncate(what),
            26..=30 => self.map(what),
            31..=34 => self.store_again(what),
            35..=44 => self.rename(what),
            45..=48 => self.exchange(what),
            49..=52 => self.link(what),
            53..=55 => self.unlink_open(what),
            56..=59 => self.attributes(what),
            60..=62 => self.xattr(what),
            63..=64 => self.tmpfile(what),
            65..=68 => self.fallocate(what),
            69..=70 => self.copy_range(what),
            71..=73 => self.keep_open(what),
            74..=79 => self.write_held(what),
            80..=83 => self.async_write(what),
            84..=85 => self.direct(what),
            86..=87 => self.special(what),
            88..=93 => self.make_directories(what),
            94..=95 => self.move_directory(what),
            _ => self.remove_something(what),
        }
    }

    fn create(&mut self, what: &mut String) -> io::Result<()> {
        let path = self.place();
        let exclusive = self.rng.bool();
        let length = self.length();
        *what = format!("create {} exclusive={exclusive} length={length}", shown(&path));
        let mode = *self.rng.choice([0o644, 0o600, 0o755, 0o4755, 0o666].iter()).unwrap_or(&0o644);
        let mut options = without_waiting();
        options.write(true).read(true).mode(mode);
        if exclusive {
            options.create_new(true)
        } else {
            options.create(true).truncate(true)
        };
        let mut file = options.open(&path)?;
        let data = self.data(length);
        file.write_all(&data)?;
        if self.rng.u32(0..6) == 0 {
            self.hold(file, path);
        }
        Ok(())
    }

    fn append(&mut self, what: &mut String) -> io::Result<()> {
        let path = self.file()?;
        *what = format!("append {}", shown(&path));
        let mut file = without_waiting().append(true).open(&path)?;
        if file.metadata()?.len() > 1 << 20 {
            return file.set_len(10);
        }
        let length = self.length();
        let data = self.data(length);
        file.write_all(&data)
    }

    fn overwrite(&mut self, what: &mut String) -> io::Result<()> {
        let path = self.file()?;
        let file = self.open(&path)?;
        let (offset, length) = self.span(&file)?;
        *what = format!("overwrite {} offset={offset} length={length}", shown(&path));
        let data = self.data(length);
        if self.rng.bool() {
            return file.write_all_at(&data, offset);
        }
        // As two vectors, in one call.
        let (one, two) = data.split_at(data.len() / 3);
        rustix::io::pwritev(&file, &[io::IoSlice::new(one), io::IoSlice::new(two)], offset)?;
        Ok(())
    }

    fn truncate(&mut self, what: &mut String) -> io::Result<()> {
        let path = self.file()?;
        let size = self.rng.u64(0..100_000);
        let by_path = self.rng.bool();
        *what = format!("truncate {} size={size} by_path={by_path}", shown(&path));
        if by_path {
            let name = std::ffi::CString::new(path.as_os_str().as_bytes())?;
            // SAFETY: `name` is a string that ends with NUL and lives through the call.
            let result = unsafe { libc::truncate(name.as_ptr(), size as libc::off_t) };
            return if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        }
        self.open(&path)?.set_len(size)
    }

    /// Maps a file shared, stores into it, and often keeps the mapping after the close of the descriptor.
    fn map(&mut self, what: &mut String) -> io::Result<()> {
        let path = self.file()?;
        let file = self.open(&path)?;
        let size = file.metadata()?.len().min(300_000) as usize;
        *what = format!("map {} size={size}", shown(&path));
        if size == 0 {
            return Ok(());
        }
        let mut mapping = Mapping::of(&file, size)?;
        if self.rng.bool() {
            drop(file);
        } else {
            self.hold(file, path.clone());
        }
        let stamp = self.data(16);
        let offset = self.rng.usize(..size);
        mapping.store(offset, &stamp);
        if self.rng.u32(0..3) > 0 {
            if self.mappings.len() >= HELD_MAPPINGS_MAX {
                let one = self.rng.usize(..self.mappings.len());
                self.mappings.swap_remove(one);
            }
            self.mappings.push((mapping, path));
        }
        Ok(())
    }

    /// Stores into a mapping that may be old, whose page may be dirty already and whose descriptor may be closed.
    fn store_again(&mut self, what: &mut String) -> io::Result<()> {
        if self.mappings.is_empty() {
            return self.map(what);
        }
        let which = self.rng.usize(..self.mappings.len());
        let stamp = self.data(24);
        let (mapping, path) = &mut self.mappings[which];
        let offset = self.rng.usize(..mapping.len());
        *what = format!("store offset={offset} into a mapping of what was {}", shown(path));
        if !mapping.store(offset, &stamp) {
            what.push_str(" SIGBUS");
            self.mappings.swap_remove(which);
            return Ok(());
        }
        if self.rng.u32(0..8) == 0 {
            what.push_str(" and msync");
            self.mappings[which].0.sync()?;
        }
        Ok(())
    }

    fn rename(&mut self, what: &mut String) -> io::Result<()> {
        let from = self.entry(None)?;
        let to = if self.rng.u32(0..3) == 0 { self.entry(None)? } else { self.place() };
        let flags = if self.rng.u32(0..8) == 0 { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
        *what = format!("rename {} -> {} {flags:?}", shown(&from), shown(&to));
        if flags.is_empty() {
            return fs::rename(&from, &to);
        }
        Ok(rustix::fs::renameat_with(CWD, &from, CWD, &to, flags)?)
    }

    fn exchange(&mut self, what: &mut String) -> io::Result<()> {
        let one = self.entry(None)?;
        let two = self.entry(None)?;
        *what = format!("exchange {} <-> {}", shown(&one), shown(&two));
        Ok(rustix::fs::renameat_with(CWD, &one, CWD, &two, RenameFlags::EXCHANGE)?)
    }

    fn link(&mut self, what: &mut String) -> io::Result<()> {
        let from = if self.rng.u32(0..10) == 0 { self.entry(None)? } else { self.file()? };
        let to = self.place();
        *what = format!("link {} -> {}", shown(&from), shown(&to));
        fs::hard_link(from, to)
    }

    /// Unlinks a file that stays open, and writes on: other names of it must show the write.
    fn unlink_open(&mut self, what: &mut String) -> io::Result<()> {
        let path = self.file()?;
        *what = format!("unlink while open {}", shown(&path));
        let file = self.open(&path)?;
        fs::remove_file(&path)?;
        let data = self.data(50);
        file.write_all_at(&data, 0)?;
        self.hold(file, path);
        Ok(())
    }

    fn attributes(&mut self, what: &mut String) -> io::Result<()> {
        let path = self.entry(None)?;
        match self.rng.u32(0..4) {
            0 => {
                let mode = self.rng.u32(0..0o10000) | 0o600;
                *what = format!("chmod {mode:o} {}", shown(&path));
                // Not through a symbolic link, which may lead out of the tree.
                if fs::symlink_metadata(&path)?.is_symlink() {
                    return Ok(());
                }
                Ok(rustix::fs::chmodat(CWD, &path, Mode::from_bits_truncate(mode), AtFlags::empty())?)
            }
            1 => {
                let (uid, gid) = (self.rng.u32(0..4), self.rng.u32(0..4));
                *what = format!("chown {uid}:{gid} {}", shown(&path));
                let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                Ok(rustix::fs::chownat(CWD, &path, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)?)
            }
            2 => {
                let seconds = self.rng.i64(0..2_000_000_000);
                let nanoseconds = self.rng.i64(0..1_000_000_000);
                *what = format!("utimens {seconds}.{nanoseconds:09} {}", shown(&path));
                let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
                let times = Timestamps { last_access: time, last_modification: time };
                Ok(rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
            }
            _ => {
                *what = format!("fchmod and futimens {}", shown(&path));
                let file = self.open(&path)?;
                rustix::fs::fchmod(&file, Mode::from_bits_truncate(self.rng.u32(0..0o1000) | 0o600))?;
                let time = Timespec { tv_sec: self.rng.i64(0..2_000_000_000), tv_nsec: 5 };
                Ok(rustix::fs::futimens(&file, &Timestamps { last_access: time, last_modification: time })?)
            }
        }
    }

    fn xattr(&mut self, what: &mut String) -> io::Result<()> {
        let path = self.entry(None)?;
        let name = format!("user.k{}", self.rng.u32(0..3));
        if fs::symlink_metadata(&path)?.is_symlink() {
            return Ok(());
        }
        match self.rng.u32(0..6) {
            0 | 1 => {
                *what = format!("remove xattr {name} {}", shown(&path));
                Ok(rustix::fs::removexattr(&path, name)?)
            }
            2 => {
                *what = format!("set access ACL {}", shown(&path));
                // Version 2; user::rw-, user:1:r--, group::r--, mask::rwx, other::r--.
                let mut acl = 2_u32.to_le_bytes().to_vec();
                for (tag, permissions, id) in [
                    (1_u16, 6_u16, u32::MAX),
                    (2, 4, 1),
                    (4, 4, u32::MAX),
                    (16, 7, u32::MAX),
                    (32, 4, u32::MAX),
                ] {
                    acl.extend(tag.to_le_bytes());
                    acl.extend(permissions.to_le_bytes());
                    acl.extend(id.to_le_bytes());
                }
                Ok(rustix::fs::setxattr(&path, "system.posix_acl_access", &acl, XattrFlags::empty())?)
            }
            _ => {
                *what = format!("set xattr {name} {}", shown(&path));
                let length = self.rng.usize(0..100);
                let value = self.data(length);
                Ok(rustix::fs::setxattr(&path, name, &value, XattrFlags::empty())?)
            }
        }
    }

    fn tmpfile(&mut self, what: &mut String) -> io::Result<()> {
        let directory = self.directory();
        let to = self.place();
        *what = format!("tmpfile in {} linked to {}", shown(&directory), shown(&to));
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(&directory, flags, Mode::from_bits_truncate(0o640))?);
        let length = self.length();
        let data = self.data(length);
        file.write_all_at(&data, 0)?;
        rustix::fs::linkat(file.as_fd(), "", CWD, &to, AtFlags::EMPTY_PATH)?;
        if self.rng.bool() {
            let data = self.data(30);
            file.write_all_at(&data, 5)?;
            self.hold(file, to);
        }
        Ok(())
    }

    fn fallocate(&mut self, what: &mut String) -> io::Result<()> {
        let path = self.file()?;
        let file = self.open(&path)?;
        let (offset, length) = self.span(&file)?;
        let (offset, length) = (offset & !4095, (length as u64 | 1).next_multiple_of(4096));
        let flags = match self.rng.u32(0..6) {
            0 => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
            1 => FallocateFlags::ZERO_RANGE,
            2 => FallocateFlags::COLLAPSE_RANGE,
            3 => FallocateFlags::INSERT_RANGE,
            4 => FallocateFlags::KEEP_SIZE,
            _ => FallocateFlags::empty(),
        };
        *what = format!("fallocate {flags:?} {} offset={offset} length={length}", shown(&path));
        Ok(rustix::fs::fallocate(&file, flags, offset, length)?)
    }

    fn copy_range(&mut self, what: &mut String) -> io::Result<()> {
        let (from, to) = (self.file()?, self.file()?);
        let clone = self.rng.u32(0..3) == 0;
        *what = format!("{} {} -> {}", if clone { "clone" } else { "copy range" }, shown(&from), shown(&to));
        let source = self.open(&from)?;
        let target = self.open(&to)?;
        if clone {
            return Ok(rustix::fs::ioctl_ficlone(&target, &source)?);
        }
        let mut offset = self.rng.u64(0..20_000);
        rustix::fs::copy_file_range(&source, None, &target, Some(&mut offset), self.rng.usize(1..50_000))?;
        Ok(())
    }

    fn keep_open(&mut self, what: &mut String) -> io::Result<()> {
        let path = self.file()?;
        *what = format!("keep open {}", shown(&path));
        let mut options = without_waiting();
        match self.rng.u32(0..3) {
            0 => options.append(true),
            1 => options.write(true),
            _ => options.read(true).write(true),
        };
        let file = options.open(&path)?;
        self.hold(file, path);
        Ok(())
    }

    fn write_held(&mut self, what: &mut String) -> io::Result<()> {
        if self.files.is_empty() {
            return self.keep_open(what);
        }
        let which = self.rng.usize(..self.files.len());
        let size = self.files[which].0.metadata()?.len().min(400_000);
        let offset = self.rng.u64(0..=size);
        let length = self.length();
        let data = self.data(length);
        let choice = self.rng.u32(0..12);
        let (file, path) = &mut self.files[which];
        *what = format!("held file, once {}: ", shown(path));
        match choice {
            0 => {
                what.push_str("ftruncate");
                file.set_len(offset)
            }
            1 => {
                what.push_str("fchmod");
                Ok(rustix::fs::fchmod(&*file, Mode::from_bits_truncate(0o600 | (offset as u32 & 0o177)))?)
            }
            2 => {
                what.push_str("fsetxattr");
                let value = &data[..data.len().min(60)];
                Ok(rustix::fs::fsetxattr(&*file, "user.held", value, XattrFlags::empty())?)
            }
            3 => {
                what.push_str("write and fsync");
                file.write_all(&data)?;
                file.sync_all()
            }
            4 => {
                what.push_str("close");
                self.files.swap_remove(which);
                Ok(())
            }
            5 => {
                what.push_str("dup, close, write through the dup");
                let mut copy = file.try_clone()?;
                let path = path.clone();
                self.files.swap_remove(which);
                copy.write_all(&data)?;
                self.hold(copy, path);
                Ok(())
            }
            _ => {
                *what += &format!("pwrite offset={offset} length={length}");
                file.write_all_at(&data, offset)
            }
        }
    }

    fn async_write(&mut self, what: &mut String) -> io::Result<()> {
        let path = self.file()?;
        let file = self.open(&path)?;
        let (offset, length) = self.span(&file)?;
        let data = self.data(length.max(1));
        let uring = self.rng.bool();
        *what = format!(
            "{} {} offset={offset} length={length}",
            if uring { "io_uring" } else { "libaio" },
            shown(&path)
        );
        // Sometimes the descriptor is closed while the write is in flight.
        if uring {
            async_io::uring_write(file, offset, &data, self.rng.bool())
        } else {
            async_io::aio_write(file, offset, &data, self.rng.bool())
        }
    }

    fn direct(&mut self, what: &mut String) -> io::Result<()> {
        let path = self.file()?;
        let file =
            OpenOptions::new().write(true).custom_flags(libc::O_DIRECT | WITHOUT_WAITING).open(&path)?;
        let blocks = self.rng.usize(1..4);
        let offset = 4096 * self.rng.u64(0..8);
        let asynchronous = self.rng.u32(0..3);
        *what =
            format!("direct {} offset={offset} blocks={blocks} asynchronous={asynchronous}", shown(&path));
        let stamp = self.data(4096 * blocks);
        let aligned = async_io::Aligned::from(&stamp);
        match asynchronous {
            0 => async_io::uring_write(file, offset, aligned.bytes(), false),
            1 => async_io::aio_write(file, offset, aligned.bytes(), true),
            _ => file.write_all_at(aligned.bytes(), offset),
        }
    }

    fn special(&mut self, what: &mut String) -> io::Result<()> {
        let path = self.place();
        let mode = Mode::from_bits_truncate(0o644);
        match self.rng.u32(0..4) {
            0 => {
                *what = format!("fifo {}", shown(&path));
                Ok(rustix::fs::mknodat(CWD, &path, FileType::Fifo, mode, 0)?)
            }
            1 => {
                *what = format!("socket {}", shown(&path));
                Ok(rustix::fs::mknodat(CWD, &path, FileType::Socket, mode, 0)?)
            }
            _ => {
                let target = self.rng.choice(["n1", "../n2", "/nowhere", "n3/n4"]).unwrap_or("n1");
                *what = format!("symlink {} -> {target}", shown(&path));
                std::os::unix::fs::symlink(target, path)
            }
        }
    }

    fn make_directories(&mut self, what: &mut String) -> io::Result<()> {
        let mut path = self.place();
        *what = format!("mkdir {}", shown(&path));
        fs::create_dir(&path)?;
        for _ in 0..self.rng.u32(0..4) {
            let name = self.name();
            path.push(OsStr::from_bytes(&name));
            if path.components().count() > self.tree.components().count() + DEPTH_MAX + 3 {
                break;
            }
            *what += &format!(", {}", shown(&path));
            fs::create_dir(&path)?;
            let data = self.data(40);
            let inside = path.join("inside");
            without_waiting().write(true).create(true).truncate(true).open(inside)?.write_all(&data)?;
        }
        Ok(())
    }

    fn move_directory(&mut self, what: &mut String) -> io::Result<()> {
        let from = self.entry(Some(object::Kind::Directory))?;
        let to = self.place();
        *what = format!("move directory {} -> {}", shown(&from), shown(&to));
        fs::rename(from, to)
    }

    fn remove_something(&mut self, what: &mut String) -> io::Result<()> {
        let path = self.entry(None)?;
        let is_directory = fs::symlink_metadata(&path)?.is_dir();
        if !is_directory {
            *what = format!("unlink {}", shown(&path));
            return fs::remove_file(path);
        }
        if self.rng.u32(0..3) > 0 {
            *what = format!("rmdir {}", shown(&path));
            return fs::remove_dir(path);
        }
        *what = format!("remove all of {}", shown(&path));
        fs::remove_dir_all(path)
    }
}

/// How each file is opened: at any moment another writer may put a FIFO in its place, and a blocking open of one
/// waits for a partner that never comes.
const WITHOUT_WAITING: i32 = libc::O_NOFOLLOW | libc::O_NONBLOCK;

pub(crate) fn without_waiting() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.custom_flags(WITHOUT_WAITING);
    options
}

fn shown(path: &Path) -> String {
    path.as_os_str().as_bytes().escape_ascii().to_string()
}
