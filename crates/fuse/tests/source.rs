//! What the tracker is told, when, and what the source can be asked: G1 to G3 as far as they are the source's part.
//!
//! Needs root and `/dev/fuse`.
#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use highwater_tracker::{Change, FileHandle, ObjectType, Place};
use rustix::fs::{CWD, RenameFlags};
use support::{Fixture, Kind, PYTHON_MAP, Said, Volume, both, everywhere, sh_in};

fn place(parent: &FileHandle, name: &str) -> Place {
    Place { parent: parent.clone(), name: name.as_bytes().into() }
}

/// The root's handle, and what is in it by name.
fn handle_of(fx: &Fixture, path: &str) -> FileHandle {
    let source = fx.stacked().source();
    let mut handle = fx.stacked().root_handle().clone();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let directory = source.open_directory(&handle).unwrap().unwrap();
        handle = source.handle_at(&directory, name.as_bytes()).unwrap().unwrap().0;
    }
    handle
}

/// A Python program that runs until it is dropped, and does one step for every line it is sent.
struct Steps(Child);

impl Steps {
    fn new(fx: &Fixture, script: &str) -> Self {
        let child = Command::new("python3")
            .args(["-u", "-c", script])
            .current_dir(fx.root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Waits for the next line that it prints.
    fn line(&mut self) -> String {
        use std::io::Read;
        let mut line = Vec::new();
        let out = self.0.stdout.as_mut().unwrap();
        let mut byte = [0];
        while out.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        String::from_utf8(line).unwrap()
    }

    fn go_on(&mut self) {
        use std::io::Write;
        self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn every_change_is_recorded_once_with_its_names() {
    both(|fx| {
        let root = fx.stacked().root_handle().clone();
        fs::create_dir(fx.path("d")).unwrap();
        let d = handle_of(fx, "d");
        let created = |object: &FileHandle, object_type, place| Change::Created {
            object: object.clone(),
            object_type,
            place,
        };
        assert_eq!(fx.recorder.changes(), [created(&d, ObjectType::Directory, place(&root, "d"))]);

        fs::write(fx.path("d/f"), "x").unwrap();
        let f = handle_of(fx, "d/f");
        fx.recorder.wait_until("the file is closed", |said, _| said.contains(&Said::Closed(f.clone())));
        let said = fx.recorder.take();
        assert!(said.contains(&Said::Record(created(&f, ObjectType::File, place(&d, "f")))));
        let opened = said.iter().find_map(|said| match said {
            Said::Opened(handle, mode) if *handle == f => Some(*mode),
            _ => None,
        });
        assert_eq!(opened.unwrap().unseen, fx.passthrough);
        let modified = Said::Record(Change::Modified { object: f.clone() });
        assert_eq!(
            said.contains(&modified),
            !fx.passthrough,
            "passthrough writes are the open-writer rule's"
        );

        fs::set_permissions(fx.path("d/f"), fs::Permissions::from_mode(0o600)).unwrap();
        let metadata =
            |object: &FileHandle, object_type| Change::Metadata { object: object.clone(), object_type };
        assert_eq!(fx.recorder.changes(), [metadata(&f, ObjectType::File)]);

        fs::hard_link(fx.path("d/f"), fx.path("g")).unwrap();
        let linked =
            Change::Linked { object: f.clone(), object_type: ObjectType::File, place: place(&root, "g") };
        assert_eq!(fx.recorder.changes(), [linked]);
        let places: HashSet<Place> = fx.stacked().source().places(&f).unwrap().into_iter().collect();
        assert_eq!(places, HashSet::from([place(&root, "g"), place(&d, "f")]));

        fs::rename(fx.path("d"), fx.path("e")).unwrap();
        let renamed = Change::Renamed {
            object: d.clone(),
            object_type: ObjectType::Directory,
            from: place(&root, "d"),
            to: place(&root, "e"),
            replaced: None,
        };
        assert_eq!(fx.recorder.changes(), [renamed]);
        assert_eq!(fx.stacked().source().places(&d).unwrap(), [place(&root, "e")]);

        rustix::fs::renameat_with(CWD, fx.path("e"), CWD, fx.path("g"), RenameFlags::EXCHANGE).unwrap();
        assert!(matches!(&fx.recorder.changes()[..], [Change::Exchanged { .. }]));
        assert_eq!(fx.stacked().source().places(&d).unwrap(), [place(&root, "g")]);

        fs::remove_file(fx.path("g/f")).unwrap();
        let removed =
            Change::Removed { object: f.clone(), object_type: ObjectType::File, place: place(&d, "f") };
        assert_eq!(fx.recorder.changes(), [removed]);
        assert_eq!(fx.stacked().source().places(&f).unwrap(), [place(&root, "e")]);

        fs::write(fx.path("n"), "").unwrap();
        fs::rename(fx.path("n"), fx.path("e")).unwrap();
        let replaced = fx.recorder.changes().into_iter().find_map(|change| match change {
            Change::Renamed { replaced, .. } => Some(replaced),
            _ => None,
        });
        assert_eq!(replaced, Some(Some((f.clone(), ObjectType::File))));
        fs::remove_dir(fx.path("g")).unwrap();
        fx.recorder.take();

        fs::metadata(fx.path("e")).unwrap();
        fs::read(fx.path("e")).unwrap();
        fs::read_dir(fx.root()).unwrap().count();
        assert_eq!(fx.recorder.take(), [], "reading is no change");
    });
}

#[test]
fn an_operation_whose_intent_fails_has_no_effect() {
    both(|fx| {
        fs::write(fx.path("f"), "text").unwrap();
        fs::create_dir(fx.path("d")).unwrap();
        let before = fs::metadata(fx.path("f")).unwrap();
        fx.recorder.fail_with(Some(libc::ENOSPC));
        let refused = |result: std::io::Result<()>| {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        };
        refused(fs::create_dir(fx.path("e")));
        refused(fs::write(fx.path("g"), ""));
        refused(fs::write(fx.path("f"), "other"));
        refused(fs::remove_file(fx.path("f")));
        refused(fs::remove_dir(fx.path("d")));
        refused(fs::rename(fx.path("f"), fx.path("h")));
        refused(fs::hard_link(fx.path("f"), fx.path("h")));
        refused(std::os::unix::fs::symlink("f", fx.path("l")));
        refused(fs::set_permissions(fx.path("f"), fs::Permissions::from_mode(0o000)));
        refused(OpenOptions::new().append(true).open(fx.path("f")).map(drop));
        fx.recorder.fail_with(None);
        let after = fs::metadata(fx.path("f")).unwrap();
        assert_eq!(
            (before.ctime(), before.ctime_nsec(), before.mode()),
            (after.ctime(), after.ctime_nsec(), after.mode())
        );
        assert_eq!(sh_in(fx.root(), "ls"), "d\nf");
    });
}

#[test]
fn operations_that_wait_for_the_journal_stall_no_others() {
    both(|fx| {
        for i in 0..30 {
            fs::create_dir(fx.path(&format!("d{i}"))).unwrap();
        }
        fs::write(fx.path("f"), "text").unwrap();
        let file = File::open(fx.path("f")).unwrap();
        fx.recorder.barrier();
        fx.recorder.block();
        std::thread::scope(|scope| {
            for i in 0..30 {
                scope.spawn(move || fs::write(fx.path(&format!("d{i}/x")), "").unwrap());
            }
            fx.recorder.wait_until("thirty sections wait", |_, in_flight| in_flight >= 30);
            let mut text = [0; 4];
            file.read_exact_at(&mut text, 0).unwrap();
            assert_eq!(fs::read_dir(fx.root()).unwrap().count(), 31);
            assert!(!fx.path("absent").exists());
            fx.recorder.unblock();
        });
        assert_eq!(sh_in(fx.root(), "ls d*/x | wc -l"), "30");
    });
}

/// From here on the calling thread runs only when no other wants to: what lies between two of its steps becomes long.
fn starve() {
    // SAFETY: plain numbers; the effect is on this thread alone.
    let result = unsafe {
        let parameter = libc::sched_param { sched_priority: 0 };
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameter)
    };
    assert_eq!(result, 0);
}

/// Takes what time the processors have, until it is stopped.
fn hog<'scope>(scope: &'scope std::thread::Scope<'scope, '_>, stop: &'scope AtomicBool) {
    for _ in 0..std::thread::available_parallelism().unwrap().get() {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
    }
}

/// After a section has ended and the source has settled, the mount shows what was done. Without settling, a reader sees cached
/// names and attributes every so often.
#[test]
fn after_settling_the_mount_shows_what_ended_sections_did() {
    both(|fx| {
        const WRITERS: u64 = 3;
        let stop = AtomicBool::new(false);
        let rounds: Vec<AtomicU64> = (0..WRITERS).map(|_| AtomicU64::new(0)).collect();
        std::thread::scope(|scope| {
            hog(scope, &stop);
            for (i, round) in rounds.iter().enumerate() {
                let stop = &stop;
                scope.spawn(move || {
                    starve();
                    let (d, f) = (format!("w{i}"), format!("w{i}/f"));
                    fs::create_dir(fx.path(&d)).unwrap();
                    fs::write(fx.path(&f), "").unwrap();
                    let mut n = 0;
                    while !stop.load(Ordering::SeqCst) {
                        n += 1;
                        let file = OpenOptions::new().write(true).open(fx.path(&f)).unwrap();
                        file.set_permissions(fs::Permissions::from_mode(
                            0o400 | u32::try_from(n & 0o77).unwrap(),
                        ))
                        .unwrap();
                        fs::write(fx.path(&format!("{d}/new{n}")), "").unwrap();
                        file.set_len(n).unwrap();
                        fs::remove_file(fx.path(&format!("{d}/new{n}"))).unwrap();
                        round.store(n, Ordering::SeqCst);
                    }
                });
            }
            let _stop = StopOnDrop(&stop);
            let source = fx.stacked().source();
            let begin = Instant::now();
            let mut checks = 0;
            while begin.elapsed() < Duration::from_secs(4) || checks <= 10 {
                assert!(begin.elapsed() < Duration::from_secs(60), "only {checks} checks");
                // What sections have recorded by now is what a checkpoint would hand out: later states are allowed, earlier not.
                fx.recorder.barrier();
                let said = fx.recorder.take();
                source.settle(None).unwrap();
                // The last thing that each object and name was told to be; names that came and went are gone.
                let mut gone = HashSet::new();
                for said in said {
                    if let Said::Record(Change::Removed { place, .. }) = said {
                        gone.insert(place);
                    }
                }
                for place in gone {
                    let directory = source.places(&place.parent).unwrap().remove(0);
                    let path = fx.root().join(support::os(&directory.name)).join(support::os(&place.name));
                    assert!(
                        fs::symlink_metadata(&path).is_err(),
                        "{} is shown though it is removed",
                        path.display()
                    );
                    checks += 1;
                }
                for (i, round) in rounds.iter().enumerate() {
                    let n = round.load(Ordering::SeqCst);
                    if n > 0 {
                        let len = fs::metadata(fx.path(&format!("w{i}/f"))).unwrap().len();
                        assert!(len >= n, "length {len} is older than round {n}");
                    }
                }
            }
            stop.store(true, Ordering::SeqCst);
        });
    });
}

/// Between the answer to a write and the new size of the file in the kernel a reader reads to the old end, whatever the attributes say. A
/// writer that gets no time of the processors stays there long enough to be met.
#[test]
fn after_settling_all_that_was_written_through_the_server_can_be_read() {
    const LENGTH: usize = 40;
    let fx = Fixture::new(Kind::Ext4, false);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        hog(scope, &stop);
        scope.spawn(|| {
            starve();
            for n in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                fs::write(fx.path(&format!("f{n}")), [b'x'; LENGTH]).unwrap();
            }
        });
        let source = fx.stacked().source();
        let begin = Instant::now();
        let mut checks = 0;
        while checks < 200 && (checks == 0 || begin.elapsed() < Duration::from_secs(10)) {
            assert!(begin.elapsed() < Duration::from_secs(60), "nothing is written");
            fx.recorder.barrier();
            let said = fx.recorder.take();
            source.settle(None).unwrap();
            for said in said {
                let Said::Record(Change::Modified { object }) = said else { continue };
                let place = source.places(&object).unwrap().remove(0);
                let read = fs::read(fx.root().join(support::os(&place.name))).unwrap();
                assert_eq!(read.len(), LENGTH, "after {checks} files");
                checks += 1;
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// ext4 uses inode numbers again at once, and a look for the old object meets the new one while it is being made.
#[test]
fn an_object_that_is_gone_is_gone_also_while_its_number_is_used_again() {
    everywhere(|fx| {
        fs::write(fx.path("f"), "").unwrap();
        let gone = handle_of(fx, "f");
        fs::remove_file(fx.path("f")).unwrap();
        let source = fx.stacked().source();
        let end = Instant::now() + Duration::from_millis(400);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while Instant::now() < end {
                    fs::write(fx.path("other"), "").unwrap();
                    fs::remove_file(fx.path("other")).unwrap();
                }
            });
            while Instant::now() < end {
                let sample = source.sample(&gone).unwrap();
                assert!(sample.is_none_or(|sample| sample.nlink == 0), "{sample:?}");
            }
        });
    });
}

/// Without file handles what the kernel does not know any more cannot be looked for; but what has been removed is gone.
#[test]
fn what_has_been_removed_is_nowhere_also_without_file_handles() {
    let volume = Volume::new(Kind::Tmpfs);
    let at = volume.path();
    sh_in(&at, "mkdir lower upper work tracked");
    sh_in(&at, "mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none tracked");
    let directory = at.join("tracked");
    sh_in(&directory, "echo x > alone; echo x > linked; ln linked other; echo x > replaced; mkdir d");
    let mut fx = Fixture::over(volume, directory.clone(), Kind::Tmpfs, true, |_| {});
    let [alone, linked, replaced, d] = ["alone", "linked", "replaced", "d"].map(|name| handle_of(&fx, name));
    sh_in(
        &directory,
        "rm alone linked; mv other replaced; rmdir d; rm replaced; echo x > kept; rm kept; ln -s x kept",
    );
    // Until the kernel has forgotten them, they can be asked themselves.
    let deadline = Instant::now() + Duration::from_secs(10);
    while fx.stacked().nodes() > 2 {
        assert!(Instant::now() < deadline, "{} nodes", fx.stacked().nodes());
        std::thread::sleep(Duration::from_millis(5));
    }
    let source = fx.stacked().source();
    for (object, name) in [(alone, "alone"), (replaced, "replaced"), (d, "d"), (linked, "linked")] {
        assert!(!source.may_be_elsewhere(&object).unwrap(), "{name}");
    }
    sh_in(&directory, "echo x > linked; ln linked other");
    let linked = handle_of(&fx, "linked");
    sh_in(&directory, "rm linked");
    // Either it is known still, and has a name, or nobody can say.
    assert!(source.may_be_elsewhere(&linked).unwrap_or(true));
    drop(source);
    fx.uncover();
    sh_in(&at, "umount tracked");
}

#[test]
fn waiting_for_writes_waits_for_one_that_is_stalled_and_for_nothing_else() {
    everywhere(|fx| {
        fs::write(fx.path("f"), "old").unwrap();
        fs::write(fx.path("g"), "old").unwrap();
        let (f, g) = (handle_of(fx, "f"), handle_of(fx, "g"));
        let file = OpenOptions::new().write(true).open(fx.path("f")).unwrap();
        let _other = OpenOptions::new().write(true).open(fx.path("g")).unwrap();
        let source = fx.stacked().source();
        source.wait_for_writes(&f, None).unwrap();
        let stalled = StalledPage::new();
        let finished = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let before = fs::metadata(fx.path("f")).unwrap();
            scope.spawn(|| {
                file.write_all_at(stalled.page(), 0).unwrap();
            });
            stalled.wait_for_fault();
            source.wait_for_writes(&g, None).unwrap();
            let waiter = scope.spawn(|| {
                source.wait_for_writes(&f, None).unwrap();
                assert!(finished.load(Ordering::SeqCst), "the wait ended before the write");
            });
            let _ = before;
            std::thread::sleep(Duration::from_millis(100));
            assert!(!waiter.is_finished());
            for _ in 0..20 {
                let soon = Instant::now() + Duration::from_millis(5);
                let refused = source.wait_for_writes(&f, Some(soon)).unwrap_err();
                assert_eq!(refused.kind(), std::io::ErrorKind::TimedOut);
            }
            source.wait_for_writes(&g, None).unwrap();
            finished.store(true, Ordering::SeqCst);
            stalled.resolve();
            waiter.join().unwrap();
        });
        assert_eq!(fs::read(fx.path("f")).unwrap()[0], b'N');
    });
}

#[test]
fn a_mapping_is_seen_while_the_file_is_open_and_after_it_is_closed() {
    everywhere(|fx| {
        let script = format!(
            "{PYTHON_MAP}
f=os.open('f',os.O_RDWR|os.O_CREAT,0o600); os.ftruncate(f,4096); print('open'); input()
m=Map(f); print('mapped'); input()
os.close(f); print('closed'); input()
m.store(1); print('stored'); input()
m.unmap(); print('unmapped'); input()"
        );
        let mut program = Steps::new(fx, &script);
        assert_eq!(program.line(), "open");
        let f = handle_of(fx, "f");
        let source = fx.stacked().source();
        let mapped = || source.mapped_writable(std::slice::from_ref(&f)).unwrap().contains(&f);
        let no_timestamps = fx.kind == Kind::Tmpfs && fx.passthrough;
        assert_eq!(mapped(), no_timestamps, "open and not mapped");
        program.go_on();
        assert_eq!(program.line(), "mapped");
        assert!(mapped(), "open and mapped");
        program.go_on();
        assert_eq!(program.line(), "closed");
        if fx.passthrough {
            std::thread::sleep(Duration::from_millis(50));
            assert!(mapped(), "closed and mapped");
            assert!(fs::metadata(fx.path("f")).is_ok());
            assert!(
                !fx.recorder.take().contains(&Said::Closed(f.clone())),
                "it can still be written through the mapping"
            );
        }
        program.go_on();
        assert_eq!(program.line(), "stored");
        source.wait_for_writes(&f, None).unwrap();
        assert_eq!(fs::read(fx.path("f")).unwrap()[0], 1);
        if !fx.passthrough {
            fx.recorder.wait_until("the store was sent to the server", |said, _| {
                said.contains(&Said::Record(Change::Modified { object: f.clone() }))
            });
        }
        program.go_on();
        assert_eq!(program.line(), "unmapped");
        fx.recorder.wait_until("the open is taken back", |said, _| said.contains(&Said::Closed(f.clone())));
        assert!(!mapped(), "unmapped");
        if fx.kind == Kind::Tmpfs && fx.passthrough {
            let modified = Said::Record(Change::Modified { object: f.clone() });
            assert!(fx.recorder.take().contains(&modified), "no timestamp tells of the store");
        }
    });
}

#[test]
fn attributes_follow_passthrough_writes_and_stores() {
    everywhere(|fx| {
        fs::write(fx.path("f"), "123").unwrap();
        fs::metadata(fx.path("f")).unwrap();
        let file = OpenOptions::new().read(true).write(true).open(fx.path("f")).unwrap();
        for n in 4..20 {
            file.write_all_at(b"x", n).unwrap();
            assert_eq!(fs::metadata(fx.path("f")).unwrap().len(), n + 1);
        }
        let before = fs::metadata(fx.path("f")).unwrap();
        file.sync_all().unwrap();
        let script = "import mmap,os
f=open('f','r+b'); m=mmap.mmap(f.fileno(),10); m[0]=65; m.flush(); os.fsync(f.fileno())";
        sh_in(fx.root(), &format!("python3 -c \"{script}\""));
        let after = fs::metadata(fx.path("f")).unwrap();
        if fx.kind != Kind::Tmpfs {
            assert_ne!((before.mtime(), before.mtime_nsec()), (after.mtime(), after.mtime_nsec()));
        }
        drop(file);
    });
}

#[test]
fn a_source_finds_directories_that_the_kernel_does_not_know() {
    everywhere(|fx| {
        sh_in(fx.root(), "mkdir -p a/b/c; echo 2 > /proc/sys/vm/drop_caches");
        let source = fx.stacked().source();
        let (b, c) = (handle_of(fx, "a/b"), handle_of(fx, "a/b/c"));
        assert_eq!(source.places(&c).unwrap(), [place(&b, "c")]);
        sh_in(fx.root(), "rm -r a");
        fx.recorder.take();
        assert!(
            source.open_directory(&c).unwrap().is_none_or(|fd| rustix::fs::fstat(fd).unwrap().st_nlink == 0)
        );
    });
}

/// Ends the threads of a scope when its body panics.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// A page of memory that is not there until it is resolved: whoever reads it waits (userfaultfd).
struct StalledPage {
    fd: File,
    page: *const u8,
}

// SAFETY: the pointer is to a private mapping that lives as long as the value; only the kernel reads it.
unsafe impl Sync for StalledPage {}

impl StalledPage {
    fn new() -> Self {
        // SAFETY: the structures are those of linux/userfaultfd.h and outlive the calls; the mapping is ours.
        unsafe {
            let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC);
            assert!(fd >= 0, "userfaultfd: {}", std::io::Error::last_os_error());
            let fd = <File as std::os::fd::FromRawFd>::from_raw_fd(i32::try_from(fd).unwrap());
            let mut api = [0xaa_u64, 0, 0];
            assert_eq!(libc::ioctl(fd.as_raw_fd(), 0xc018_aa3f, api.as_mut_ptr()), 0);
            let page = libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            assert_ne!(page, libc::MAP_FAILED);
            let mut register = [page as u64, 4096, 1, 0];
            assert_eq!(libc::ioctl(fd.as_raw_fd(), 0xc020_aa00, register.as_mut_ptr()), 0);
            Self { fd, page: page.cast() }
        }
    }

    fn page(&self) -> &[u8] {
        // SAFETY: the page is mapped for as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.page, 4096) }
    }

    fn wait_for_fault(&self) {
        use std::io::Read;
        let mut message = [0; 32];
        (&self.fd).read_exact(&mut message).unwrap();
    }

    fn resolve(&self) {
        let source = vec![b'N'; 8192];
        let aligned = source.as_ptr().align_offset(4096);
        let mut copy = [self.page as u64, source[aligned..].as_ptr() as u64, 4096, 0, 0];
        // SAFETY: `copy` is a uffdio_copy, whose source is a page of `source`.
        let r = unsafe { libc::ioctl(self.fd.as_raw_fd(), 0xc028_aa03, copy.as_mut_ptr()) };
        assert_eq!(r, 0, "{}", std::io::Error::last_os_error());
    }
}

impl Drop for StalledPage {
    fn drop(&mut self) {
        // SAFETY: the page is ours and nothing refers to it any more.
        unsafe { libc::munmap(self.page as *mut libc::c_void, 4096) };
    }
}
