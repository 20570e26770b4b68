//! The barrier on a real kernel, against calls that stall. Needs root; fails without.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use highwater_inplace::WriteBarrier;
use highwater_inplace::barrier::{BarrierError, FilesystemBarrier, vfs_write_barrier};
use rustix::fs::{CWD, FileType};
use rustix::pipe::SpliceFlags;
use support::{DirectWrite, Interface, LENGTH, Mounted, Stalled, child, passes, prepare_direct, stalls};

#[test]
fn a_barrier_waits_for_a_stalled_write_and_for_nothing_else() {
    for kind in ["tmpfs", "ext4", "xfs", "btrfs"] {
        let mounted = Mounted::new(kind);
        let barrier = FilesystemBarrier::new(File::open(mounted.path()).unwrap()).unwrap();
        let other = Mounted::new("tmpfs");
        let elsewhere = FilesystemBarrier::new(File::open(other.path()).unwrap()).unwrap();
        passes(&barrier);
        let file = File::create(mounted.path().join("victim")).unwrap();
        let write = Stalled::start("pwrite", move |late| file.write_all_at(late.bytes(), 0));
        stalls(&barrier, "pwrite64");
        for number in 0..1000 {
            fs::write(mounted.path().join(format!("other-{}", number % 20)), number.to_string()).unwrap();
        }
        stalls(&barrier, "pwrite64");
        passes(&elsewhere);
        write.finish().unwrap();
        passes(&barrier);
    }
}

#[test]
fn every_way_to_write_through_a_descriptor_is_seen() {
    let mounted = Mounted::new("ext4");
    let barrier = FilesystemBarrier::new(File::open(mounted.path()).unwrap()).unwrap();
    let file = || OpenOptions::new().create(true).append(true).open(mounted.path().join("victim")).unwrap();

    let target = file();
    let write = Stalled::start("write", move |late| (&target).write_all(late.bytes()));
    stalls(&barrier, "write");
    write.finish().unwrap();

    let target = file();
    let write = Stalled::start("writev", move |late| {
        (&target).write_vectored(&[std::io::IoSlice::new(late.bytes())]).map(drop)
    });
    stalls(&barrier, "writev");
    write.finish().unwrap();

    let target = File::create(mounted.path().join("sent")).unwrap();
    let source = File::open(mounted.path().join("victim")).unwrap();
    let locks = target.try_clone().unwrap();
    let write = Stalled::start("pwrite", move |late| locks.write_all_at(late.bytes(), 0));
    stalls(&barrier, "pwrite64");
    let sendfile = std::thread::spawn(move || rustix::fs::sendfile(&target, &source, None, 4096));
    stalls(&barrier, "sendfile");
    write.finish().unwrap();
    assert_eq!(sendfile.join().unwrap().unwrap(), 4096);
    passes(&barrier);
}

/// Names are changed under the lock of their directory; a listing that stalls holds it.
#[test]
fn stalled_changes_of_names_are_seen() {
    for kind in ["ext4", "xfs", "btrfs"] {
        let mounted = Mounted::new(kind);
        let directory = mounted.path().join("d");
        fs::create_dir(&directory).unwrap();
        fs::write(directory.join("a"), "a").unwrap();
        fs::create_dir(directory.join("sub")).unwrap();
        let barrier = FilesystemBarrier::new(File::open(mounted.path()).unwrap()).unwrap();
        type Change = fn(&std::path::Path) -> std::io::Result<()>;
        let changes: [(&str, Change); 5] = [
            ("mkdir", |d| fs::create_dir(d.join("new"))),
            ("rename", |d| fs::rename(d.join("a"), d.join("b"))),
            ("unlink", |d| fs::remove_file(d.join("b"))),
            ("rmdir", |d| fs::remove_dir(d.join("sub"))),
            ("openat", |d| File::create(d.join("created")).map(drop)),
        ];
        for (call, change) in changes {
            let listed = File::open(&directory).unwrap();
            let listing = Stalled::start("getdents", move |late| late.list(&listed));
            // A listing modifies nothing.
            listing.wait_until_asleep();
            passes(&barrier);
            let directory = directory.clone();
            let changing = std::thread::spawn(move || change(&directory));
            stalls(&barrier, call);
            listing.finish().unwrap();
            changing.join().unwrap().unwrap();
            passes(&barrier);
        }
    }
}

#[test]
fn a_descriptor_that_is_replaced_under_a_stalled_write_hides_nothing() {
    let mounted = Mounted::new("ext4");
    let barrier = FilesystemBarrier::new(File::open(mounted.path()).unwrap()).unwrap();
    let file = File::create(mounted.path().join("victim")).unwrap();
    let number = file.as_raw_fd();
    let write = Stalled::start("pwrite", move |late| file.write_all_at(late.bytes(), 0));
    stalls(&barrier, "pwrite64");
    let (_source, pipe) = rustix::pipe::pipe().unwrap();
    // SAFETY: the number is that of the file above, which the stalled call has its own reference to; it now owns the pipe's end.
    assert_eq!(unsafe { libc::dup2(pipe.as_raw_fd(), number) }, number);
    stalls(&barrier, "pwrite64");
    write.finish().unwrap();
    passes(&barrier);
}

type Way = (&'static str, fn(&Path));

/// What somebody can do who then waits, with a file of the filesystem, until another one reads.
const WAITS_FOR_A_READER: [Way; 11] = [
    ("write to a pipe", |_| {
        let (_unread, pipe) = rustix::pipe::pipe().unwrap();
        let _ = rustix::io::write(pipe, &[0; 1 << 20]);
    }),
    ("writev to a pipe", |_| {
        let (_unread, pipe) = rustix::pipe::pipe().unwrap();
        let _ = rustix::io::writev(pipe, &[IoSlice::new(&[0; 1 << 19]), IoSlice::new(&[0; 1 << 19])]);
    }),
    ("write to a socket", |_| {
        let (socket, _unread) = UnixStream::pair().unwrap();
        while rustix::io::write(&socket, &[0; 1 << 19]).is_ok() {}
    }),
    ("write to a terminal", |_| {
        let terminal = OpenOptions::new().read(true).write(true).open("/dev/ptmx").unwrap();
        let (mut number, unlock) = (0, 0);
        // SAFETY: both requests take a pointer to an integer, which lives.
        unsafe {
            assert_eq!(libc::ioctl(terminal.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock), 0);
            assert_eq!(libc::ioctl(terminal.as_raw_fd(), libc::TIOCGPTN, &raw mut number), 0);
        }
        let path = format!("/dev/pts/{number}");
        let shown = OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY).open(path).unwrap();
        while rustix::io::write(&shown, &[b'x'; 1 << 16]).is_ok() {}
    }),
    ("write to an event counter", |_| {
        let counter = rustix::event::eventfd(0, rustix::event::EventfdFlags::empty()).unwrap();
        while rustix::io::write(&counter, &(u64::MAX - 1).to_ne_bytes()).is_ok() {}
    }),
    ("write to a FIFO of the filesystem", |directory| {
        rustix::fs::mknodat(CWD, directory.join("fifo"), FileType::Fifo, 0o600.into(), 0).unwrap();
        // Both ends, so that it is open at once.
        let fifo = OpenOptions::new().read(true).write(true).open(directory.join("fifo")).unwrap();
        let _ = rustix::io::write(fifo, &[0; 1 << 20]);
    }),
    ("open of a FIFO of the filesystem", |directory| {
        rustix::fs::mknodat(CWD, directory.join("unread"), FileType::Fifo, 0o600.into(), 0).unwrap();
        let _ = File::create(directory.join("unread"));
    }),
    ("sendfile to a socket", |directory| {
        let file = File::open(directory.join("file")).unwrap();
        let (socket, _unread) = UnixStream::pair().unwrap();
        while rustix::fs::sendfile(&socket, &file, Some(&mut 0), 1 << 20).is_ok() {}
    }),
    ("sendfile to a pipe", |directory| {
        let file = File::open(directory.join("file")).unwrap();
        let (_unread, pipe) = rustix::pipe::pipe().unwrap();
        while rustix::fs::sendfile(&pipe, &file, Some(&mut 0), 1 << 20).is_ok() {}
    }),
    ("splice to a pipe", |directory| {
        let file = File::open(directory.join("file")).unwrap();
        let (_unread, pipe) = rustix::pipe::pipe().unwrap();
        while rustix::pipe::splice(&file, Some(&mut 0), &pipe, None, 1 << 20, SpliceFlags::empty()).is_ok() {}
    }),
    // It has done nothing yet.
    ("splice from an empty pipe", |directory| {
        let file = File::create(directory.join("spliced")).unwrap();
        let (empty, _unwritten) = rustix::pipe::pipe().unwrap();
        let _ = rustix::pipe::splice(&empty, None, &file, None, 4096, SpliceFlags::empty());
    }),
];

/// Some have pointers to a file of the filesystem in their stacks, the others may have old ones: each has used it.
#[test]
fn who_waits_for_a_reader_holds_nothing_up() {
    for kind in ["ext4", "xfs", "btrfs", "tmpfs"] {
        let mounted = Mounted::new(kind);
        let barrier = FilesystemBarrier::new(File::open(mounted.path()).unwrap()).unwrap();
        for (what, call) in WAITS_FOR_A_READER {
            let waits = child(|| {
                for name in ["file", "another"] {
                    fs::write(mounted.path().join(name), [0; 1 << 20]).unwrap();
                }
                fs::rename(mounted.path().join("another"), mounted.path().join("third")).unwrap();
                call(mounted.path());
            });
            waits.wait_until_asleep();
            for _ in 0..3 {
                let outcome = barrier.synchronize(Some(Duration::from_secs(20)));
                assert!(outcome.is_ok(), "{kind}: {what}: {outcome:?}");
            }
            let stack = fs::read_to_string(format!("/proc/{}/stack", waits.pid())).unwrap();
            waits.signal(libc::SIGKILL);
            assert_eq!(waits.wait(), -1, "{kind}: {what}: it did not wait: {stack}");
        }
    }
}

#[test]
fn who_waits_for_another_filesystem_holds_nothing_up() {
    let (mounted, other) = (Mounted::new("ext4"), Mounted::new("tmpfs"));
    let barrier = FilesystemBarrier::new(File::open(mounted.path()).unwrap()).unwrap();
    let victim = File::create(other.path().join("victim")).unwrap();
    let write = Stalled::start("pwrite", move |late| victim.write_all_at(late.bytes(), 0));
    write.wait_until_asleep();
    for _ in 0..3 {
        passes(&barrier);
    }
    write.finish().unwrap();
}

/// The pipe has data, and the splice waits for the lock of the file. A barrier that knows who waits for a reader must see it.
#[test]
fn a_splice_that_has_begun_is_waited_for() {
    for kind in ["ext4", "xfs", "btrfs", "tmpfs"] {
        let mounted = Mounted::new(kind);
        let barrier = FilesystemBarrier::new(File::open(mounted.path()).unwrap()).unwrap();
        let file = File::create(mounted.path().join("victim")).unwrap();
        let (locks, target) = (file.try_clone().unwrap(), file);
        let write = Stalled::start("pwrite", move |late| locks.write_all_at(late.bytes(), 0));
        stalls(&barrier, "pwrite64");
        // Kept open: to close it waits for the splice.
        let (source, feed) = rustix::pipe::pipe().unwrap();
        rustix::io::write(&feed, b"at last").unwrap();
        let splice = std::thread::spawn(move || {
            rustix::pipe::splice(&source, None, &target, None, 4096, SpliceFlags::empty())
        });
        stalls(&barrier, "splice");
        write.finish().unwrap();
        assert_eq!(splice.join().unwrap().unwrap(), 7);
        passes(&barrier);
    }
}

/// What (B) relies on: a splice from a pipe does not wait when it has passed on anything.
#[test]
fn a_splice_waits_for_data_only_before_it_has_passed_on_any() {
    let mounted = Mounted::new("ext4");
    let file = File::create(mounted.path().join("victim")).unwrap();
    let (source, feed) = rustix::pipe::pipe().unwrap();
    rustix::io::write(&feed, b"a part").unwrap();
    assert_eq!(rustix::pipe::splice(&source, None, &file, None, 4096, SpliceFlags::empty()).unwrap(), 6);
}

#[test]
fn a_stacked_filesystem_is_seen_from_below() {
    let mounted = Mounted::new("ext4");
    let merged = mounted.overlay();
    let barrier = FilesystemBarrier::new(File::open(mounted.path()).unwrap()).unwrap();
    let file = File::create(merged.path().join("victim")).unwrap();
    let write = Stalled::start("pwrite", move |late| file.write_all_at(late.bytes(), 0));
    stalls(&barrier, "pwrite64");
    let above = FilesystemBarrier::new(File::open(merged.path()).unwrap()).unwrap();
    stalls(&above, "pwrite64");
    write.finish().unwrap();
    passes(&barrier);
    passes(&above);
}

#[test]
fn a_write_of_io_uring_is_seen_wherever_it_is() {
    use io_uring::{IoUring, opcode, squeue, types};
    let mounted = Mounted::new("ext4");
    let barrier = FilesystemBarrier::new(File::open(mounted.path()).unwrap()).unwrap();
    // In the submitting call; with a worker of the kernel; in the submission thread.
    for (flags, polled) in
        [(squeue::Flags::empty(), false), (squeue::Flags::ASYNC, false), (squeue::Flags::empty(), true)]
    {
        let file = File::create(mounted.path().join("victim")).unwrap();
        let write = Stalled::start("io_uring", move |late| {
            let mut builder = IoUring::builder();
            if polled {
                builder.setup_sqpoll(50);
            }
            // More rings than anybody looks at one by one; the write is for the first one.
            let mut ring: IoUring = builder.build(4)?;
            let mut others = Vec::new();
            for _ in 0..70 {
                others.push(IoUring::new(2)?);
            }
            let length = u32::try_from(LENGTH).unwrap();
            let entry = opcode::Write::new(types::Fd(file.as_raw_fd()), late.bytes().as_ptr(), length);
            // SAFETY: the late page lives until the completion has been seen below.
            unsafe { ring.submission().push(&entry.build().flags(flags)) }.unwrap();
            ring.submit_and_wait(1)?;
            let result = ring.completion().next().unwrap().result();
            assert_eq!(result, i32::try_from(LENGTH).unwrap());
            Ok(())
        });
        stalls(&barrier, "io_uring");
        write.finish().unwrap();
        passes(&barrier);
    }
}

#[test]
fn a_linked_write_that_is_issued_at_the_end_of_another_call_is_seen() {
    use io_uring::{IoUring, opcode, squeue, types};
    for kind in ["ext4", "xfs"] {
        let mounted = Mounted::new(kind);
        let barrier = FilesystemBarrier::new(File::open(mounted.path()).unwrap()).unwrap();
        let file = File::create(mounted.path().join("victim")).unwrap();
        let (source, feed) = rustix::pipe::pipe().unwrap();
        let write = Stalled::start("linked", move |late| {
            let mut ring = IoUring::new(4)?;
            let _another = IoUring::new(4)?;
            let poll =
                opcode::PollAdd::new(types::Fd(source.as_raw_fd()), 1).build().flags(squeue::Flags::IO_LINK);
            let entry = opcode::Write::new(
                types::Fd(file.as_raw_fd()),
                late.bytes().as_ptr(),
                u32::try_from(LENGTH).unwrap(),
            );
            // SAFETY: the late page lives until the completion has been seen below.
            unsafe { ring.submission().push_multiple(&[poll, entry.build()]) }.unwrap();
            ring.submit()?;
            // The write begins at the end of one of these, when the pipe is readable.
            while ring.completion().len() < 2 {
                let _ = rustix::process::getppid();
            }
            Ok(())
        });
        passes(&barrier);
        File::from(feed).write_all(b"x").unwrap();
        // In that call itself (XFS), or handed to a worker (ext4).
        stalls(&barrier, "");
        write.finish().unwrap();
        passes(&barrier);
    }
}

#[test]
fn an_idle_ring_holds_nothing_up() {
    use io_uring::{IoUring, opcode, types};
    let mounted = Mounted::new("ext4");
    let barrier = FilesystemBarrier::new(File::open(mounted.path()).unwrap()).unwrap();
    let file = File::create(mounted.path().join("file")).unwrap();
    let (source, feed) = rustix::pipe::pipe().unwrap();
    let waits = std::thread::spawn(move || {
        let mut ring = IoUring::new(4).unwrap();
        file.write_all_at(b"x", 0).unwrap();
        let poll = opcode::PollAdd::new(types::Fd(source.as_raw_fd()), 1).build();
        // SAFETY: the request refers to nothing.
        unsafe { ring.submission().push(&poll) }.unwrap();
        ring.submit_and_wait(1).unwrap();
    });
    std::thread::sleep(Duration::from_millis(100));
    for _ in 0..20 {
        passes(&barrier);
    }
    drop(feed);
    waits.join().unwrap();
}

#[test]
fn a_stopped_writer_holds_nothing_up() {
    let mounted = Mounted::new("ext4");
    let barrier = FilesystemBarrier::new(File::open(mounted.path()).unwrap()).unwrap();
    let file = File::create(mounted.path().join("victim")).unwrap();
    let writer = child(|| {
        for number in 0_u32.. {
            let _ = file.write_at(&number.to_ne_bytes(), 0);
        }
    });
    for signal in [libc::SIGSTOP, libc::SIGCONT, libc::SIGSTOP, libc::SIGCONT] {
        writer.signal(signal);
        for _ in 0..20 {
            passes(&barrier);
        }
    }
}

/// A look is over with the record of its end. A task that is born after that would be in what one more read gives.
#[test]
fn who_is_born_at_the_end_of_a_look_does_not_spoil_it() {
    let mounted = Mounted::new("tmpfs");
    let barrier = FilesystemBarrier::new(File::open(mounted.path()).unwrap()).unwrap();
    let file = File::create(mounted.path().join("victim")).unwrap();
    let (stalled, others) = (file.try_clone().unwrap(), File::create(mounted.path().join("others")).unwrap());
    let write = Stalled::start("pwrite", move |late| stalled.write_all_at(late.bytes(), 0));
    stalls(&barrier, "pwrite64");
    let over = AtomicBool::new(false);
    let failed = std::thread::scope(|scope| {
        // They wait for the lock of the file: as many records as one read gives, which take a while to be looked at.
        for _ in 0..250 {
            scope.spawn(|| file.write_all_at(b"later", 0).unwrap());
        }
        scope.spawn(|| {
            let bytes = vec![0; 1 << 18];
            // ORDERING: ends a loop and says nothing else.
            while !over.load(Ordering::Relaxed) {
                std::thread::scope(|born| drop(born.spawn(|| others.write_all_at(&bytes, 0).unwrap())));
            }
        });
        let begun = Instant::now();
        let mut failed = None;
        while failed.is_none() && begun.elapsed() < Duration::from_secs(3) {
            failed = match barrier.synchronize(Some(Duration::from_millis(500))) {
                Err(BarrierError::Deadline { .. }) => None,
                other => Some(other),
            };
        }
        // ORDERING: as above.
        over.store(true, Ordering::Relaxed);
        write.finish().unwrap();
        failed
    });
    assert!(failed.is_none(), "{failed:?}");
    passes(&barrier);
}

#[test]
fn concurrent_callers_all_pass() {
    let mounted = Mounted::new("tmpfs");
    let barrier = FilesystemBarrier::new(File::open(mounted.path()).unwrap()).unwrap();
    let file = File::create(mounted.path().join("victim")).unwrap();
    let write = Stalled::start("pwrite", move |late| file.write_all_at(late.bytes(), 0));
    stalls(&barrier, "pwrite64");
    std::thread::scope(|scope| {
        let callers: Vec<_> =
            (0..8).map(|_| scope.spawn(|| barrier.synchronize(Some(Duration::from_secs(60))))).collect();
        let hasty = barrier.synchronize(Some(Duration::from_millis(300)));
        match hasty {
            Err(BarrierError::Deadline { holders, .. }) => assert_eq!(holders[0].call, "pwrite64"),
            other => panic!("passed over a write in flight: {other:?}"),
        }
        assert!(callers.iter().all(|caller| !caller.is_finished()));
        write.finish().unwrap();
        for caller in callers {
            caller.join().unwrap().unwrap();
        }
    });
}

/// The device of the filesystem is a file on one that is frozen: what is written to it stays in flight.
#[test]
fn direct_writes_in_flight_are_carried_over() {
    for interface in [Interface::Libaio, Interface::DeferredTaskWork] {
        let below = Mounted::new("ext4");
        let mounted = Mounted::with_image_in("ext4", below.path());
        let barrier = FilesystemBarrier::new(File::open(mounted.path()).unwrap()).unwrap();
        let file = prepare_direct(&mounted.path().join("direct"));
        rustix::fs::syncfs(&file).unwrap();
        assert!(barrier.synchronize(Some(Duration::from_secs(60))).unwrap().carried_over.is_empty());
        let frozen = below.freeze();
        let flight = DirectWrite::start(file, interface);
        let passed = barrier.synchronize(Some(Duration::from_secs(60))).unwrap();
        assert!(
            passed.carried_over.iter().any(|file| file.inode == flight.inode),
            "{interface:?}: {passed:?}"
        );
        assert!(!WriteBarrier::wait(&barrier, None).unwrap().objects.is_empty());
        drop(frozen);
        drop(flight);
        assert!(barrier.synchronize(Some(Duration::from_secs(60))).unwrap().carried_over.is_empty());
    }
}

/// Such a write is not found by its file; who watches hears of it when it has ended.
#[test]
fn a_direct_write_whose_descriptor_is_closed_is_told_of_when_it_has_ended() {
    for interface in [Interface::Libaio, Interface::DeferredTaskWork] {
        let below = Mounted::new("ext4");
        let mounted = Mounted::with_image_in("ext4", below.path());
        let barrier = FilesystemBarrier::new(File::open(mounted.path()).unwrap()).unwrap();
        let file = prepare_direct(&mounted.path().join("direct"));
        rustix::fs::syncfs(&file).unwrap();
        let events = close_write_events(mounted.path());
        let frozen = below.freeze();
        let mut flight = DirectWrite::start(file, interface);
        flight.close();
        passes(&barrier);
        let mut buffer = [0; 4096];
        assert_eq!(rustix::io::read(&events, &mut buffer), Err(rustix::io::Errno::AGAIN), "{interface:?}");
        drop(frozen);
        drop(flight);
        let mut wait = [rustix::event::PollFd::new(&events, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: 60, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut wait, Some(&limit)).unwrap(), 1, "{interface:?}: no CLOSE_WRITE");
    }
}

fn close_write_events(mount: &Path) -> OwnedFd {
    let flags = libc::FAN_CLASS_NOTIF | libc::FAN_REPORT_FID | libc::FAN_NONBLOCK | libc::FAN_CLOEXEC;
    // SAFETY: plain numbers.
    let fd = unsafe { libc::fanotify_init(flags, 0) };
    assert!(fd >= 0, "{}", std::io::Error::last_os_error());
    // SAFETY: a new descriptor that nothing else owns.
    let events = unsafe { OwnedFd::from_raw_fd(fd) };
    let path = std::ffi::CString::new(mount.as_os_str().as_encoded_bytes()).unwrap();
    let of = libc::FAN_MARK_ADD | libc::FAN_MARK_FILESYSTEM;
    // SAFETY: the path ends with a zero and lives through the call.
    let result = unsafe { libc::fanotify_mark(fd, of, libc::FAN_CLOSE_WRITE, libc::AT_FDCWD, path.as_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    events
}

/// A tracer stops a program where a call begins and where it ends: what it has written is whole at each.
#[test]
fn a_traced_writer_holds_nothing_up() {
    let mounted = Mounted::new("ext4");
    let barrier = FilesystemBarrier::new(File::open(mounted.path()).unwrap()).unwrap();
    let file = OpenOptions::new().read(true).write(true).create_new(true).open(mounted.path().join("victim"));
    let file = file.unwrap();
    let traced = |request: libc::c_uint, pid: libc::pid_t| {
        // SAFETY: the requests used here take no pointer.
        let result = unsafe { libc::ptrace(request, pid, 0, 0) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    };
    let writer = child(|| {
        traced(libc::PTRACE_TRACEME, 0);
        // SAFETY: plain number; the tracer lets it go on.
        unsafe { libc::raise(libc::SIGSTOP) };
        for number in 0_u8.. {
            file.write_all_at(&[number; LENGTH], 0).unwrap();
        }
    });
    let mut data = vec![0; LENGTH];
    let mut seen = std::collections::HashSet::new();
    for _ in 0..40 {
        let mut status = 0;
        // SAFETY: the status is written into a place of its own.
        assert_eq!(unsafe { libc::waitpid(writer.pid(), &raw mut status, 0) }, writer.pid());
        assert!(libc::WIFSTOPPED(status), "{status}");
        passes(&barrier);
        let length = file.read_at(&mut data, 0).unwrap();
        assert!(length == 0 || length == LENGTH && data.iter().all(|byte| *byte == data[0]));
        seen.insert(data[0]);
        traced(libc::PTRACE_SYSCALL, writer.pid());
    }
    assert!(seen.len() > 10, "it did not write: {seen:?}");
}

#[test]
fn one_function_is_enough() {
    let mounted = Mounted::new("tmpfs");
    vfs_write_barrier(File::open(mounted.path()).unwrap().as_fd(), Some(Duration::from_secs(60))).unwrap();
}

#[test]
fn what_is_missing_is_said() {
    let outcome = child(|| {
        // SAFETY: plain numbers; the effect is on this child alone.
        unsafe {
            assert_eq!(libc::setresgid(65534, 65534, 65534), 0);
            assert_eq!(libc::setresuid(65534, 65534, 65534), 0);
        }
        let error = FilesystemBarrier::new(File::open("/").unwrap()).unwrap_err().to_string();
        assert_eq!(error, "no write barrier in place without CAP_BPF and CAP_PERFMON: run it as root");
    });
    assert_eq!(outcome.wait(), 0);
}

#[test]
fn another_pid_namespace_is_refused() {
    let outcome = child(|| {
        // SAFETY: plain numbers.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWPID) }, 0);
        let inner = child(|| {
            let error = FilesystemBarrier::new(File::open("/").unwrap()).unwrap_err().to_string();
            assert!(error.contains("initial pid namespace"), "{error}");
        });
        assert_eq!(inner.wait(), 0);
    });
    assert_eq!(outcome.wait(), 0);
}
