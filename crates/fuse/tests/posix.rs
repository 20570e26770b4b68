//! The stacked filesystem is as good as the one below: what POSIX and Linux promise holds on the mount.
//!
//! Needs root and `/dev/fuse`.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use rustix::fs::{AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, SeekFrom, StatxFlags, XattrFlags};
use rustix::io::Errno;
use support::{Fixture, Kind, both, everywhere, os, sh_in};

#[test]
fn files_directories_and_links_can_be_made_and_removed() {
    everywhere(|fx| {
        fs::create_dir(fx.path("d")).unwrap();
        fs::write(fx.path("d/f"), "hello").unwrap();
        assert_eq!(fs::read(fx.path("d/f")).unwrap(), b"hello");
        fs::hard_link(fx.path("d/f"), fx.path("hard")).unwrap();
        let (a, b) = (fs::metadata(fx.path("hard")).unwrap(), fs::metadata(fx.path("d/f")).unwrap());
        assert_eq!((a.ino(), a.nlink(), b.nlink()), (b.ino(), 2, 2));
        std::os::unix::fs::symlink("d/f", fx.path("soft")).unwrap();
        assert_eq!(fs::read_link(fx.path("soft")).unwrap().to_str(), Some("d/f"));
        assert_eq!(fs::read(fx.path("soft")).unwrap(), b"hello");
        assert_eq!(fs::remove_dir(fx.path("d")).unwrap_err().raw_os_error(), Some(libc::ENOTEMPTY));
        fs::remove_file(fx.path("d/f")).unwrap();
        assert_eq!(fs::metadata(fx.path("hard")).unwrap().nlink(), 1);
        fs::remove_dir(fx.path("d")).unwrap();
        assert!(fs::read(fx.path("soft")).is_err());
        let mut names: Vec<_> = fs::read_dir(fx.root()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["hard", "soft"]);
    });
}

#[test]
fn inode_numbers_are_those_below() {
    everywhere(|fx| {
        fs::write(fx.path("f"), "").unwrap();
        fs::create_dir(fx.path("d")).unwrap();
        let above = [fs::metadata(fx.path("f")).unwrap().ino(), fs::metadata(fx.path("d")).unwrap().ino()];
        // Below the mount the tree is seen through the volume's own path, by a bind mount made before.
        let listed: Vec<u64> = {
            let mut all: Vec<_> = fs::read_dir(fx.root())
                .unwrap()
                .map(|e| std::os::unix::fs::DirEntryExt::ino(&e.unwrap()))
                .collect();
            all.sort_unstable();
            all
        };
        let mut sorted = above;
        sorted.sort_unstable();
        assert_eq!(listed, sorted);
        sh_in(
            fx.root(),
            &format!(
                "mkdir -p {0}/bound; mount --bind {1} {0}/bound; test $(stat -c %i {0}/bound/tracked/f) = {2}; umount {0}/bound",
                fx.volume.path().parent().unwrap().display(),
                fx.volume.path().display(),
                above[0]
            ),
        );
    });
}

#[test]
fn all_kinds_of_rename_work() {
    everywhere(|fx| {
        let rename = |from: &str, to: &str, flags| {
            rustix::fs::renameat_with(CWD, fx.path(from), CWD, fx.path(to), flags)
        };
        fs::create_dir(fx.path("d")).unwrap();
        fs::write(fx.path("a"), "a").unwrap();
        fs::write(fx.path("d/b"), "b").unwrap();
        assert_eq!(rename("a", "d/b", RenameFlags::NOREPLACE), Err(Errno::EXIST));
        rename("a", "d/b", RenameFlags::EXCHANGE).unwrap();
        assert_eq!(
            (fs::read(fx.path("a")).unwrap(), fs::read(fx.path("d/b")).unwrap()),
            (b"b".into(), b"a".into())
        );
        rename("a", "d/b", RenameFlags::empty()).unwrap();
        assert_eq!(fs::read(fx.path("d/b")).unwrap(), b"b");
        assert!(!fx.path("a").exists());
        fs::create_dir(fx.path("e")).unwrap();
        rename("d", "e/d", RenameFlags::empty()).unwrap();
        assert_eq!(fs::read(fx.path("e/d/b")).unwrap(), b"b");
        assert_eq!(rename("e", "e/d/x", RenameFlags::empty()), Err(Errno::INVAL));
        assert_eq!(fs::canonicalize(fx.path("e/d/..")).unwrap(), fx.path("e"));
    });
}

#[test]
fn names_of_255_arbitrary_bytes_work_and_longer_ones_do_not() {
    both(|fx| {
        let mut name: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
        name.push(b'x');
        assert_eq!(name.len(), 255);
        fs::write(fx.root().join(os(&name)), "odd").unwrap();
        assert_eq!(fs::read_dir(fx.root()).unwrap().next().unwrap().unwrap().file_name(), os(&name));
        assert_eq!(fs::read(fx.root().join(os(&name))).unwrap(), b"odd");
        name.push(b'y');
        let error = fs::write(fx.root().join(os(&name)), "").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENAMETOOLONG));
        fs::remove_file(fx.root().join(os(&name[..255]))).unwrap();
    });
}

#[test]
fn attributes_times_and_birth_times_are_those_below() {
    everywhere(|fx| {
        let file = File::create(fx.path("f")).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o4711)).unwrap();
        rustix::fs::chownat(CWD, fx.path("f"), None, Some(rustix::fs::Gid::from_raw(7)), AtFlags::empty())
            .unwrap();
        let time = |tv_sec, tv_nsec| rustix::fs::Timespec { tv_sec, tv_nsec };
        let times = rustix::fs::Timestamps { last_access: time(1, 2), last_modification: time(-3, 4) };
        rustix::fs::futimens(&file, &times).unwrap();
        let meta = fs::metadata(fx.path("f")).unwrap();
        assert_eq!(
            (meta.gid(), meta.atime(), meta.atime_nsec(), meta.mtime(), meta.mtime_nsec()),
            (7, 1, 2, -3, 4)
        );
        assert_eq!(meta.mode() & 0o7777, 0o711, "chown takes the set-user-id bit away");
        let stat = rustix::fs::statx(CWD, fx.path("f"), AtFlags::empty(), StatxFlags::BTIME).unwrap();
        assert_eq!(stat.stx_mask & StatxFlags::BTIME.bits(), StatxFlags::BTIME.bits());
        assert!(stat.stx_btime.tv_sec > 1_000_000_000);
    });
}

#[test]
fn an_unlinked_file_lives_until_it_is_closed() {
    everywhere(|fx| {
        let mut file = OpenOptions::new().read(true).write(true).create_new(true).open(fx.path("f")).unwrap();
        file.write_all(b"one").unwrap();
        fs::remove_file(fx.path("f")).unwrap();
        file.write_all(b"two").unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o600)).unwrap();
        rustix::fs::fsetxattr(&file, "user.x", b"y", XattrFlags::empty()).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
        assert_eq!(file.metadata().unwrap().len(), 6);
        file.set_len(4).unwrap();
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "onet");
        let path: OwnedFd = rustix::fs::open(fx.root(), OFlags::PATH, Mode::empty()).unwrap();
        fs::create_dir(fx.path("gone")).unwrap();
        let gone = File::open(fx.path("gone")).unwrap();
        fs::remove_dir(fx.path("gone")).unwrap();
        assert_eq!(rustix::fs::fstat(&gone).unwrap().st_nlink, 0);
        drop(path);
    });
}

#[test]
fn a_temporary_file_can_be_given_a_name() {
    everywhere(|fx| {
        let fd =
            rustix::fs::open(fx.root(), OFlags::TMPFILE | OFlags::RDWR, Mode::from_raw_mode(0o640)).unwrap();
        rustix::io::write(&fd, b"data").unwrap();
        assert_eq!(rustix::fs::fstat(&fd).unwrap().st_nlink, 0);
        let proc = format!("/proc/self/fd/{}", fd.as_raw_fd());
        rustix::fs::linkat(CWD, proc, CWD, fx.path("named"), AtFlags::SYMLINK_FOLLOW).unwrap();
        assert_eq!(fs::read(fx.path("named")).unwrap(), b"data");
        assert_eq!(rustix::fs::fstat(&fd).unwrap().st_nlink, 1);
    });
}

#[test]
fn data_is_read_and_written_at_any_place_of_a_big_file() {
    everywhere(|fx| {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(fx.path("f")).unwrap();
        let far = 5 << 30;
        file.write_all_at(b"far", far).unwrap();
        file.write_all_at(&vec![7; 3 << 20], 100).unwrap();
        let mut three = [0; 3];
        file.read_exact_at(&mut three, far).unwrap();
        assert_eq!(&three, b"far");
        assert_eq!(file.metadata().unwrap().len(), far + 3);
        let data = rustix::fs::seek(&file, SeekFrom::Data(1 << 30)).unwrap();
        assert!(data <= far && data + (2 << 20) > far, "data at {data}");
    });
}

#[test]
fn appending_through_several_opens_loses_nothing() {
    both(|fx| {
        let open = || OpenOptions::new().append(true).create(true).open(fx.path("f")).unwrap();
        let (mut a, mut b) = (open(), open());
        for _ in 0..100 {
            a.write_all(b"aa").unwrap();
            b.write_all(b"b").unwrap();
        }
        assert_eq!(fs::read(fx.path("f")).unwrap(), b"aab".repeat(100));
    });
}

#[test]
fn fallocate_copy_and_holes_work() {
    everywhere(|fx| {
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(fx.path("f")).unwrap();
        rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 1 << 20);
        file.write_all_at(&[1; 8192], 0).unwrap();
        rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 0, 4096)
            .unwrap();
        let mut page = [9; 4096];
        file.read_exact_at(&mut page, 0).unwrap();
        assert_eq!(page, [0; 4096]);
        file.read_exact_at(&mut page, 4096).unwrap();
        assert_eq!(page, [1; 4096]);
        let copy =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(fx.path("c")).unwrap();
        let (mut from, mut to) = (4096, 10);
        let n = rustix::fs::copy_file_range(&file, Some(&mut from), &copy, Some(&mut to), 4096).unwrap();
        assert_eq!(n, 4096);
        assert_eq!(copy.metadata().unwrap().len(), 4106);
        let mut byte = [0];
        copy.read_exact_at(&mut byte, 10).unwrap();
        assert_eq!(byte, [1]);
        file.sync_all().unwrap();
        File::open(fx.root()).unwrap().sync_all().unwrap();
    });
}

#[test]
fn direct_io_works() {
    both(|fx| {
        fs::write(fx.path("f"), vec![3; 16384]).unwrap();
        let flags = libc::O_DIRECT;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(fx.path("f")).unwrap();
        let mut memory = vec![0u8; 8192 + 4096];
        let offset = memory.as_ptr().align_offset(4096);
        let page = &mut memory[offset..offset + 4096];
        file.read_exact_at(page, 4096).unwrap();
        assert_eq!(page, [3; 4096]);
        page.fill(4);
        file.write_all_at(page, 8192).unwrap();
        assert_eq!(fs::read(fx.path("f")).unwrap()[8191..8193], [3, 4]);
    });
}

#[test]
fn extended_attributes_and_acls_work() {
    everywhere(|fx| {
        fs::write(fx.path("f"), "").unwrap();
        if fx.kind != Kind::Tmpfs {
            rustix::fs::setxattr(fx.path("f"), "user.a", b"1", XattrFlags::CREATE).unwrap();
            let again = rustix::fs::setxattr(fx.path("f"), "user.a", b"1", XattrFlags::CREATE);
            assert_eq!(again, Err(Errno::EXIST));
            let mut buffer = [0; 16];
            assert_eq!(rustix::fs::getxattr(fx.path("f"), "user.a", &mut buffer[..]), Ok(1));
            rustix::fs::removexattr(fx.path("f"), "user.a").unwrap();
            assert_eq!(rustix::fs::getxattr(fx.path("f"), "user.a", &mut buffer[..]), Err(Errno::NODATA));
        }
        let script = "chmod 640 f; chown 5:6 f; setfacl -m u:nobody:r f; getfacl -cE f | tr '\\n' ' '";
        assert_eq!(sh_in(fx.root(), script), "user::rw- user:nobody:r-- group::r-- mask::r-- other::---");
        sh_in(
            fx.root(),
            "chmod 755 .; su nobody -s /bin/sh -c 'cat f'; setfacl -b f; ! su nobody -s /bin/sh -c 'cat f'",
        );
        let script =
            "mkdir d; setfacl -d -m u:nobody:rwx d; umask 077; touch d/f; getfacl -cE d/f | tr '\\n' ' '";
        assert_eq!(
            sh_in(fx.root(), script),
            "user::rw- user:nobody:rwx group::r-x mask::rw- other::r--",
            "a default ACL takes the place of the umask"
        );
    });
}

#[test]
fn what_a_user_makes_belongs_to_that_user() {
    everywhere(|fx| {
        let script = "chmod 755 .; mkdir -m 2775 d; chown root:daemon d; mkdir -m 777 p
            su nobody -s /bin/bash -c 'umask 027; cd p; touch f; mkdir s; ln -s x l; mkfifo q'
            setpriv --reuid=65534 --regid=65534 --groups=1 touch d/supplementary
            stat -c '%n %U %G %a' p/f p/s p/l p/q d/supplementary";
        assert_eq!(
            sh_in(fx.root(), script).lines().collect::<Vec<_>>(),
            [
                "p/f nobody nogroup 640",
                "p/s nobody nogroup 750",
                "p/l nobody nogroup 777",
                "p/q nobody nogroup 640",
                "d/supplementary nobody daemon 644"
            ]
        );
        sh_in(
            fx.root(),
            "! su nobody -s /bin/sh -c 'touch no' 2>/dev/null; chmod 1777 p; touch p/mine; ! su daemon -s /bin/sh -c 'rm -f p/mine' 2>/dev/null",
        );
    });
}

#[test]
fn a_write_by_another_user_takes_set_user_id_away_and_one_by_root_does_not() {
    everywhere(|fx| {
        let script = "chmod 755 .; mkdir -m 777 p; cd p
            for op in 'echo x >> f' 'truncate -s 1 f' ': > f' 'printf y | dd of=f conv=notrunc status=none'; do
                rm -f f; echo 123 > f; chown nobody:nogroup f; chmod 6777 f
                bash -c \"$op\"; stat -c %a f
                chmod 6777 f; su nobody -s /bin/bash -c \"$op\"; stat -c %a f
            done";
        assert_eq!(sh_in(fx.root(), script).replace('\n', " "), "6777 777 6777 777 6777 777 6777 777");
        // Set while the file is open.
        let script = "cd p; rm -f f; touch f; chmod 666 f
            su nobody -s /bin/bash -c 'exec 3>>f; read; echo late >&3' < <(sleep 0.3; chmod 6777 f; echo); stat -c %a f";
        assert_eq!(sh_in(fx.root(), script), "777");
        let script = "cd p; rm -f f; cp /bin/true f; setcap cap_net_raw+ep f; getcap f | wc -l; echo x >> f; getcap f | wc -l";
        assert_eq!(sh_in(fx.root(), script), "1\n0");
    });
}

#[test]
fn a_program_that_runs_cannot_be_written_to_nor_truncated() {
    everywhere(|fx| {
        fs::copy("/bin/sleep", fx.path("sleep")).unwrap();
        let mut running = std::process::Command::new(fx.path("sleep")).arg("60").spawn().unwrap();
        let open = |options: &mut OpenOptions| options.open(fx.path("sleep")).unwrap_err().raw_os_error();
        for _ in 0..3 {
            assert_eq!(open(OpenOptions::new().write(true)), Some(libc::ETXTBSY));
            let truncated = OpenOptions::new().read(true).custom_flags(libc::O_TRUNC).open(fx.path("sleep"));
            assert_eq!(truncated.unwrap_err().raw_os_error(), Some(libc::ETXTBSY));
        }
        assert!(fs::read(fx.path("sleep")).unwrap() == fs::read("/bin/sleep").unwrap(), "it is not whole");
        assert!(running.try_wait().unwrap().is_none(), "it has lost its text");
        running.kill().unwrap();
        running.wait().unwrap();
    });
}

/// A passthrough write changes the attributes behind the server's back, and the kernel has cached them.
#[test]
fn the_attributes_of_a_file_that_is_being_written_are_never_stale() {
    both(|fx| {
        for flags in ["w", "r+"] {
            let script = format!(
                "import os,time\nopen('a','w').close()\nf=open('a','{flags}b',buffering=0)\nlast=None\n\
                 for i in range(50):\n \
                     f.seek(i//2); f.write(b'xx'); s=os.stat('a'); t=os.fstat(f.fileno())\n \
                     assert s.st_size == t.st_size == i//2+2, (i, s, t)\n \
                     assert s.st_mtime_ns == t.st_mtime_ns != last, (i, s, last)\n last=s.st_mtime_ns\n \
                     time.sleep(0.012)\n\
                 os.ftruncate(f.fileno(),1); assert os.stat('a').st_size == 1"
            );
            sh_in(fx.root(), &format!("python3 -c \"{script}\""));
        }
    });
}

#[test]
fn programs_fifos_sockets_devices_and_locks_work() {
    both(|fx| {
        sh_in(fx.root(), "cp /bin/true t; ./t; cp /bin/ls .; ./ls > /dev/null");
        sh_in(fx.root(), "mkfifo q; (echo through > q) & test \"$(cat q)\" = through; wait");
        sh_in(fx.root(), "mknod n c 1 3; test -z \"$(cat n)\"; test \"$(stat -c '%t %T' n)\" = '1 3'");
        let listener = std::os::unix::net::UnixListener::bind(fx.path("sock")).unwrap();
        std::os::unix::net::UnixStream::connect(fx.path("sock")).unwrap();
        drop(listener);
        sh_in(fx.root(), "touch l; flock l sh -c '! flock -n l true'; flock -n l true");
        let script = "import fcntl,os
f=open('l','r+'); fcntl.lockf(f,fcntl.LOCK_EX)
if os.fork()==0:
    g=open('l','r+')
    try: fcntl.lockf(g,fcntl.LOCK_EX|fcntl.LOCK_NB); os._exit(1)
    except OSError: os._exit(0)
assert os.wait()[1]==0";
        fs::write(fx.path("lock.py"), script).unwrap();
        sh_in(fx.root(), "python3 lock.py");
    });
}

#[test]
fn flags_can_be_read_and_set() {
    for kind in [Kind::Ext4, Kind::Xfs, Kind::Btrfs] {
        for passthrough in [true, false] {
            let mut fx = Fixture::new(kind, passthrough);
            let script = "touch f; mkdir d; chattr +i f; lsattr f | cut -c5; ! echo x 2>/dev/null > f; ! rm -f f 2>/dev/null
                chattr -i f; echo x > f; lsattr -d d > /dev/null; chattr +A d; lsattr -d d | grep -c A";
            assert_eq!(sh_in(fx.root(), script), "i\n1");
            fx.uncover();
        }
    }
}

#[test]
fn mappings_and_files_show_the_same() {
    everywhere(|fx| {
        let script = "import mmap,os
f=open('f','w+b'); f.truncate(8192)
m=mmap.mmap(f.fileno(),8192); p=mmap.mmap(f.fileno(),8192,flags=mmap.MAP_PRIVATE)
m[0:5]=b'store'; m.flush(); assert open('f','rb').read(5)==b'store'
os.pwrite(f.fileno(),b'write',4096); assert m[4096:4101]==b'write'
p[0:5]=b'priva'; assert open('f','rb').read(5)==b'store'
f.close(); m[0:5]=b'after'; m.flush(); assert open('f','rb').read(5)==b'after'
";
        fs::write(fx.path("m.py"), script).unwrap();
        sh_in(fx.root(), "python3 m.py");
    });
}

#[test]
fn a_write_beside_a_store_in_the_same_page_is_not_lost() {
    both(|fx| {
        let file = readable_and_writable(fx, "f");
        file.set_len(4096).unwrap();
        let reader = File::open(fx.path("f")).unwrap();
        let page = SharedPage::of(&file);
        let store = || {
            page.store(0, 1);
            std::thread::yield_now();
        };
        beside(store, || {
            for number in 1..=3_000_u64 {
                let mut read = [0; 8];
                file.write_all_at(&number.to_ne_bytes(), 8).unwrap();
                reader.read_exact_at(&mut read, 8).unwrap();
                assert_eq!(u64::from_ne_bytes(read), number, "a write that has returned is not there");
                assert_eq!(page.load(8), number.to_ne_bytes()[0], "nor in a mapping");
            }
        });
    });
}

#[test]
fn a_write_that_makes_a_file_longer_is_whole_beside_writeback() {
    // Without passthrough it is not, on any FUSE filesystem since Linux 6.17: docs/adr/0015.
    let mut fx = Fixture::new(Kind::Scratch, true);
    let longer = vec![b'y'; 100_000];
    for number in 0..200 {
        let name = format!("f{number}");
        let file = readable_and_writable(&fx, &name);
        file.write_all_at(&[b'x'; 40], 0).unwrap();
        let page = SharedPage::of(&file);
        page.store(4, b's');
        let write_back = || {
            // SAFETY: plain numbers.
            unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 4096, libc::SYNC_FILE_RANGE_WRITE) };
        };
        beside(write_back, || {
            page.store(5, b't');
            file.write_all_at(&longer, 23).unwrap();
        });
        assert!(fs::read(fx.path(&name)).unwrap()[23..] == longer, "file {number}");
        fs::remove_file(fx.path(&name)).unwrap();
    }
    fx.uncover();
}

fn readable_and_writable(fx: &Fixture, name: &str) -> File {
    OpenOptions::new().read(true).write(true).create_new(true).open(fx.path(name)).unwrap()
}

/// Does the second, and the first over and over on another thread meanwhile.
fn beside(again_and_again: impl Fn() + Sync, once: impl FnOnce()) {
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            // ORDERING: ends a loop and says nothing else.
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let over = AtomicBool::new(false);
    std::thread::scope(|threads| {
        threads.spawn(|| {
            // ORDERING: as above.
            while !over.load(Ordering::Relaxed) {
                again_and_again();
            }
        });
        let _over = Over(&over);
        once();
    });
}

/// The first page of a file, shared.
struct SharedPage(*mut u8);

// SAFETY: the mapping lives as long as the value, and is stored into and loaded from by the byte, atomically.
unsafe impl Sync for SharedPage {}

impl SharedPage {
    fn of(file: &File) -> Self {
        let both = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, of a descriptor that is open.
        let page =
            unsafe { libc::mmap(std::ptr::null_mut(), 4096, both, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert_ne!(page, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        Self(page.cast())
    }

    fn byte(&self, at: usize) -> &AtomicU8 {
        assert!(at < 4096);
        // SAFETY: within the mapping, which is as long as `self` lives; a byte has any alignment.
        unsafe { AtomicU8::from_ptr(self.0.add(at)) }
    }

    fn store(&self, at: usize, byte: u8) {
        // ORDERING: what is looked at is the page, by one thread for each byte.
        self.byte(at).store(byte, Ordering::Relaxed);
    }

    fn load(&self, at: usize) -> u8 {
        // ORDERING: as in `store`.
        self.byte(at).load(Ordering::Relaxed)
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: nothing refers to it any more.
        unsafe { libc::munmap(self.0.cast(), 4096) };
    }
}

#[test]
fn a_big_directory_is_listed_whole_while_it_changes() {
    both(|fx| {
        fs::create_dir(fx.path("d")).unwrap();
        for i in 0..20_000 {
            rustix::fs::mknodat(
                CWD,
                fx.path(&format!("d/{i}")),
                rustix::fs::FileType::RegularFile,
                Mode::RUSR,
                0,
            )
            .unwrap();
        }
        let listed = |n: usize| assert_eq!(fs::read_dir(fx.path("d")).unwrap().count(), n);
        listed(20_000);
        listed(20_000);
        assert_eq!(sh_in(fx.root(), "find d -type f -size 0 | wc -l"), "20000");
        let mut directory = fs::read_dir(fx.path("d")).unwrap();
        let first = directory.next().unwrap().unwrap().path();
        fs::write(fx.path("d/more"), "").unwrap();
        fs::remove_file(first).unwrap();
        assert!(directory.count() >= 19_998);
        listed(20_000);
        sh_in(fx.root(), "rm -rf d");
        assert!(!fx.path("d").exists());
    });
}

#[test]
fn git_and_tar_and_rsync_are_content() {
    both(|fx| {
        sh_in(
            fx.root(),
            "git init -q r; cd r; git config user.email a@b; git config user.name x; seq 1000 > f; git add .; git commit -qm x
             test -z \"$(git status -s)\"; echo y >> f; git status -s | grep -q M; git checkout -q f; test -z \"$(git status -s)\"
             ln f g; tar cf ../r.tar .; mkdir ../s; tar xf ../r.tar -C ../s; test $(stat -c %h ../s/f) = 2; diff -r . ../s",
        );
    });
}

#[test]
fn statfs_is_that_below() {
    everywhere(|fx| {
        let above = rustix::fs::statvfs(fx.root()).unwrap();
        let below = rustix::fs::statvfs(fx.volume.path()).unwrap();
        assert_eq!((above.f_blocks, above.f_namemax), (below.f_blocks, below.f_namemax));
    });
}
