//! Covering and uncovering: busy mounts, nested mounts, and the mount of a tracker that was killed.
//!
//! Needs root and `/dev/fuse`.
#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};

use highwater_fuse::{Covered, CoveredError, Options, Stacked, UnmountError, clean_dead_mount};
use highwater_tracker::Change;
use support::{Fixture, Kind, PYTHON_MAP, Recorder, Said, Volume, sh, sh_in};

/// A shell, or another program, that runs until it is dropped.
struct Shell(Child);

impl Shell {
    fn new(directory: &std::path::Path) -> Self {
        let child = Command::new("bash")
            .current_dir(directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self(child)
    }

    /// Runs a command in it and returns the line that it prints.
    fn run(&mut self, command: &str) -> String {
        writeln!(self.0.stdin.as_mut().unwrap(), "{command}").unwrap();
        let mut line = String::new();
        BufReader::with_capacity(1, self.0.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_busy_mount_stays_and_names_who_uses_it() {
    let mut fx = Fixture::new(Kind::Scratch, true);
    fs::create_dir(fx.path("d")).unwrap();
    let mut shell = Shell::new(&fx.path("d"));
    assert_eq!(shell.run("echo here"), "here");
    let Err(UnmountError::Busy { holders, .. }) = fx.stacked().unmount() else { panic!("not busy") };
    assert_eq!(holders.len(), 1);
    assert_eq!((holders[0].pid, holders[0].command.as_str()), (shell.0.id(), "bash"));
    assert_eq!(holders[0].path, fx.path("d"));
    fs::write(fx.path("still"), "works").unwrap();
    shell.run("cd /; exec 5> /dev/null; echo moved");
    let open = fx.path("open");
    shell.run(&format!("exec 6> {}; echo opened", open.display()));
    let Err(error) = fx.stacked().unmount() else { panic!("not busy") };
    assert!(error.to_string().contains("bash"), "{error}");
    drop(shell);
    fx.uncover();
}

#[test]
fn a_mount_taken_away_lazily_serves_until_its_last_user_lets_go() {
    let volume = Volume::new(Kind::Scratch);
    let directory = volume.path();
    let recorder = Recorder::default();
    let covered = Covered::open(&directory).unwrap();
    let stacked = Stacked::mount_with(covered, Box::new(recorder.clone()), Options::default()).unwrap();
    let mut shell = Shell::new(&directory);
    shell.run("exec 5> f; echo open");
    stacked.unmount_lazy().unwrap();
    assert_eq!(shell.run("echo late >&5; mkdir d; echo done"), "done");
    drop(shell);
    stacked.wait();
    assert_eq!(recorder.in_flight(), 0);
    assert!(recorder.take().iter().any(|said| matches!(said, Said::Closed(_))));
    assert_eq!(sh_in(&directory, "cat f; ls"), "late\nd\nf");
}

#[test]
fn nested_mounts_lie_over_the_new_mount_as_over_the_old() {
    let volume = Volume::new(Kind::Scratch);
    let directory = volume.path();
    sh_in(
        &directory,
        "mkdir -p a/n b; touch a/below; mount -t tmpfs inner a/n; mkdir a/n/m; mount -t tmpfs inmost a/n/m; touch a/n/m/deep",
    );
    let mut fx = Fixture::over(volume, directory.clone(), Kind::Scratch, true, |_| {});
    assert_eq!(fx.stacked().report().nested_kept, [directory.join("a/n"), directory.join("a/n/m")]);
    assert!(directory.join("a/n/m/deep").exists());
    fs::write(directory.join("a/n/untracked"), "").unwrap();
    assert_eq!(fx.recorder.take(), []);
    fs::write(directory.join("b/tracked"), "").unwrap();
    assert_ne!(fx.recorder.take(), []);
    fx.uncover();
    assert!(directory.join("a/n/untracked").exists());
    sh_in(&directory, "umount a/n/m a/n; ls a/n b");
}

#[test]
fn what_is_not_a_directory_is_refused() {
    let volume = Volume::new(Kind::Scratch);
    fs::write(volume.path().join("f"), "").unwrap();
    assert!(matches!(Covered::open(&volume.path().join("f")), Err(CoveredError::NotADirectory { .. })));
    assert!(matches!(Covered::open(&volume.path().join("absent")), Err(CoveredError::Open { .. })));
}

#[test]
fn writers_from_before_the_mount_are_told_until_they_let_go() {
    let volume = Volume::new(Kind::Scratch);
    let directory = volume.path();
    let mut shell = Shell::new(&directory);
    shell.run("exec 5> old; echo open");
    shell.run("cd /; echo away");
    let mut fx = Fixture::over(volume, directory.clone(), Kind::Scratch, true, |_| {});
    let foreign = fx.stacked().foreign_writers();
    assert_eq!(foreign.len(), 1, "{foreign:?}");
    assert_eq!((foreign[0].path.to_str(), foreign[0].holder.pid), (Some("old"), shell.0.id()));
    let handle = fx
        .recorder
        .take()
        .into_iter()
        .find_map(|said| match said {
            Said::Opened(handle, mode) if mode.unseen && mode.can_map => Some(handle),
            _ => None,
        })
        .unwrap();
    let source = fx.stacked().source();
    assert!(source.mapped_writable(std::slice::from_ref(&handle)).unwrap().contains(&handle));
    assert_eq!(shell.run("echo unseen >&5; exec 5>&-; echo closed"), "closed");
    fx.recorder.wait_until("it is taken back", |said, _| said.contains(&Said::Closed(handle.clone())));
    assert!(fx.recorder.take().contains(&Said::Record(Change::Modified { object: handle.clone() })));
    assert!(!source.mapped_writable(std::slice::from_ref(&handle)).unwrap().contains(&handle));
    assert_eq!(fs::read_to_string(directory.join("old")).unwrap(), "unseen\n");
    drop(source);
    fx.uncover();
}

/// What a process has at a number is looked at in several steps, and it may be something else by the next one.
#[test]
fn a_directory_at_the_number_of_a_writer_is_not_taken_for_its_file() {
    const SWITCHING: &str = "import os, sys
file, directory = os.open(sys.argv[1], os.O_RDWR), os.open(sys.argv[2], os.O_RDONLY)
print('ready', flush=True)
while True:
    os.dup2(file, 100)
    os.dup2(directory, 100)";
    let volume = Volume::new(Kind::Scratch);
    let root = volume.path();
    fs::create_dir(root.join("d")).unwrap();
    fs::write(root.join("f"), "x").unwrap();
    let mut python = Command::new("python3");
    python.args(["-c", SWITCHING]).args([root.join("f"), root.join("d")]).stdout(Stdio::piped());
    let mut switching = Shell(python.spawn().unwrap());
    BufReader::new(switching.0.stdout.as_mut().unwrap()).read_line(&mut String::new()).unwrap();
    for _ in 0..40 {
        let recorder = Recorder::default();
        let covered = Covered::open(&root).unwrap();
        let options = Options::default();
        let stacked = Stacked::mount_with(covered, Box::new(recorder.clone()), options).unwrap();
        let source = stacked.source();
        let top = source.open_directory(stacked.root_handle()).unwrap().unwrap();
        let (directory, _) = source.handle_at(&top, b"d").unwrap().unwrap();
        assert!(!recorder.changes().contains(&Change::Modified { object: directory }));
        drop((source, top));
        stacked.unmount().unwrap();
    }
}

/// Serves a directory in a process of its own, for the tests that kill it.
#[test]
#[ignore = "started by the tests that kill it"]
fn serve_until_killed() {
    let directory = std::env::var_os("HIGHWATER_TEST_SERVE").expect("the directory to serve");
    let covered = Covered::open(directory.as_ref()).unwrap();
    let stall = std::env::var_os("HIGHWATER_TEST_STALL").is_some();
    // Nothing in here may use the mount: a process that waits for itself cannot be killed.
    let recorder = if stall { Recorder::default() } else { Recorder::quiet() };
    let stacked = Stacked::mount_with(covered, Box::new(recorder.clone()), Options::default()).unwrap();
    println!("\nserving");
    if stall {
        recorder
            .wait_until("d/a is closed", |said, _| said.iter().any(|said| matches!(said, Said::Closed(_))));
        recorder.barrier();
        recorder.block();
        println!("\nblocked");
        recorder.wait_until("an operation waits", |_, in_flight| in_flight > 0);
        let source = stacked.source();
        std::thread::spawn(move || source.settle(None));
        std::thread::sleep(std::time::Duration::from_millis(100));
        println!("\nsettling");
    }
    stacked.wait();
}

struct Server(Child);

impl Server {
    fn new(directory: &std::path::Path) -> Self {
        Self::with(directory, |_| {})
    }

    fn with(directory: &std::path::Path, change: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "serve_until_killed", "--ignored", "--nocapture"])
            .env("HIGHWATER_TEST_SERVE", directory)
            .stdout(Stdio::piped());
        change(&mut command);
        let mut server = Self(command.spawn().unwrap());
        server.wait_for("serving");
        server
    }

    fn wait_for(&mut self, what: &str) {
        let lines = BufReader::with_capacity(1, self.0.stdout.as_mut().unwrap()).lines();
        assert!(lines.map_while(Result::ok).any(|line| line == what), "the server ended before {what}");
    }
}

/// A checkpoint waits for the lock of a directory whose holder waits for an answer, and the tracker is killed: nobody is left who
/// could answer, and still the mount dies instead of hanging.
#[test]
fn a_tracker_killed_while_it_settles_leaves_no_hanging_mount() {
    let volume = Volume::new(Kind::Scratch);
    let directory = volume.path();
    fs::create_dir(directory.join("d")).unwrap();
    let mut server = Server::with(&directory, |command| {
        command.env("HIGHWATER_TEST_STALL", "1");
    });
    fs::write(directory.join("d/a"), "").unwrap();
    server.wait_for("blocked");
    let mut stalled = Command::new("touch").arg(directory.join("d/b")).stderr(Stdio::null()).spawn().unwrap();
    server.wait_for("settling");
    server.0.kill().unwrap();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while server.0.try_wait().unwrap().is_none() {
        assert!(std::time::Instant::now() < deadline, "the killed tracker does not end");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(!stalled.wait().unwrap().success());
    assert!(clean_dead_mount(&directory).unwrap().is_some());
    assert_eq!(fs::read_dir(directory.join("d")).unwrap().count(), 1);
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A program keeps a descriptor and a mapping when the tracker is killed, and goes on writing through them: past the dead mount,
/// into the file. The next tracker is told so.
#[test]
fn what_is_written_through_a_dead_mount_is_told() {
    for passthrough in [true, false] {
        let volume = Volume::new(Kind::Scratch);
        let directory = volume.path();
        let server = Server::new(&directory);
        fs::create_dir(directory.join("d")).unwrap();
        let mut shell = Shell::new(std::path::Path::new("/"));
        shell.run(&format!("exec 5>> {}; echo one >&5; echo written", directory.join("d/f").display()));
        let script = format!(
            "{PYTHON_MAP}\nf=os.open('{}',os.O_RDWR|os.O_CREAT,0o600); os.ftruncate(f,4096); m=Map(f); os.close(f); print('mapped'); input(); m.store(65); print('stored'); input()",
            directory.join("d/m").display()
        );
        let mut mapper = Command::new("python3")
            .args(["-u", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut mapper_says = BufReader::new(mapper.stdout.take().unwrap()).lines();
        assert_eq!(mapper_says.next().unwrap().unwrap(), "mapped");
        assert!(clean_dead_mount(&directory).unwrap().is_none(), "it is alive");

        drop(server);
        assert_eq!(fs::read_dir(&directory).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
        assert!(matches!(Covered::open(&directory), Err(CoveredError::DeadMount { .. })));
        let source =
            sh_in(std::path::Path::new("/"), &format!("findmnt -n -o SOURCE {}", directory.display()));
        assert_eq!(source.trim(), format!("highwater:{}", directory.display()));
        let looked_up = fs::metadata(source.trim()).unwrap_err().kind();
        assert_eq!(
            looked_up,
            std::io::ErrorKind::NotFound,
            "mkfs looks up every source in the list of mounts"
        );
        assert_eq!(shell.run("echo two >&5 && echo written"), "written", "the kernel passes it through");

        let dead = clean_dead_mount(&directory).unwrap().expect("the mount is dead");
        assert!(dead.complete);
        assert_eq!(fs::read_to_string(directory.join("d/f")).unwrap(), "one\ntwo\n");
        let mut fx = Fixture::over(volume, directory.clone(), Kind::Scratch, passthrough, |options| {
            options.foreign = dead.writers;
        });
        let mut paths: Vec<_> = fx
            .stacked()
            .foreign_writers()
            .into_iter()
            .map(|writer| writer.path.display().to_string())
            .collect();
        paths.sort();
        assert_eq!(paths, ["d/f", "d/m"]);
        let opened: Vec<_> = fx
            .recorder
            .take()
            .into_iter()
            .filter_map(|said| match said {
                Said::Opened(handle, _) => Some(handle),
                _ => None,
            })
            .collect();
        assert_eq!(opened.len(), 2);
        let source = fx.stacked().source();
        assert_eq!(source.mapped_writable(&opened).unwrap().len(), 2);
        // The kernel caches what is read, and hears nothing of what is written past the mount.
        let length = || fs::metadata(directory.join("d/f")).unwrap().len();
        assert_eq!(fs::read_to_string(directory.join("d/f")).unwrap(), "one\ntwo\n");
        assert_eq!(length(), 8);
        assert_eq!(fs::read(directory.join("d/m")).unwrap()[0], 0);
        assert_eq!(shell.run("echo three >&5 && echo written"), "written");
        writeln!(mapper.stdin.as_mut().unwrap()).unwrap();
        assert_eq!(mapper_says.next().unwrap().unwrap(), "stored");
        source.settle(None).unwrap();
        assert_eq!(length(), 14);
        assert_eq!(fs::read_to_string(directory.join("d/f")).unwrap(), "one\ntwo\nthree\n");
        assert_eq!(fs::read(directory.join("d/m")).unwrap()[0], 65);

        drop(shell);
        mapper.kill().unwrap();
        mapper.wait().unwrap();
        fx.recorder.wait_until("both are taken back", |said, _| {
            opened.iter().all(|handle| said.contains(&Said::Closed(handle.clone())))
        });
        assert_eq!(fx.stacked().foreign_writers(), []);
        drop(source);
        fx.uncover();
    }
}

/// A program that has a file open for writing behind a dead mount, of which the tracker was killed.
fn writer_behind_a_dead_mount(directory: &std::path::Path, file: &str) -> Shell {
    let server = Server::new(directory);
    let mut shell = Shell::new(std::path::Path::new("/"));
    shell.run(&format!("exec 5>> {}; echo one >&5; echo written", directory.join(file).display()));
    drop(server);
    shell
}

/// A rename can have been under way when a tracker was killed, or be made under the next one: the path behind the dead mount leads
/// nowhere then, or elsewhere.
#[test]
fn a_file_behind_a_dead_mount_is_found_by_its_number_where_its_path_leads_elsewhere() {
    // The mount may have been taken away by the tracker before this one, or still be known.
    for (kind, detached) in
        [(Kind::Scratch, false), (Kind::Scratch, true), (Kind::Xfs, true), (Kind::Btrfs, true)]
    {
        let volume = Volume::new(kind);
        let directory = volume.path().join("tracked");
        fs::create_dir_all(directory.join("d/deep/er")).unwrap();
        let subvolume = directory.join("d/deep/sub");
        match kind {
            Kind::Btrfs => sh(&format!("btrfs -q subvolume create {}", subvolume.display())),
            _ => fs::create_dir(&subvolume).unwrap(),
        }
        let mut shell = writer_behind_a_dead_mount(&directory, "d/deep/sub/f");
        let dead = clean_dead_mount(&directory).unwrap().expect("the mount is dead");
        assert_eq!(dead.writers.len(), 1);
        fs::rename(directory.join("d"), directory.join("e")).unwrap();
        fs::create_dir_all(directory.join("d/deep/sub")).unwrap();
        fs::write(directory.join("d/deep/sub/f"), "another").unwrap();

        let mut fx = Fixture::over(volume, directory.clone(), kind, true, |options| {
            options.foreign = if detached { Vec::new() } else { dead.writers };
            options.dead_devices = dead.devices;
        });
        let opened: Vec<_> =
            fx.recorder.take().into_iter().filter(|said| matches!(said, Said::Opened(..))).collect();
        let [Said::Opened(handle, _)] = &opened[..] else {
            panic!("{kind:?}, detached {detached}: {opened:?}")
        };
        let source = fx.stacked().source();
        let size = || source.sample(handle).unwrap().unwrap().size;
        assert_eq!(size(), 4);
        assert_eq!(shell.run("echo two >&5 && echo written"), "written");
        assert_eq!(size(), 8);
        // Its name is known, though nobody has looked it up, and stays so when the directory above it is renamed again.
        fs::rename(directory.join("e"), directory.join("g")).unwrap();
        let places = source.places(handle).expect("a name");
        assert_eq!((places.len(), &places[0].name[..]), (1, &b"f"[..]));
        assert!(source.mapped_writable(std::slice::from_ref(handle)).unwrap().contains(handle));
        fx.recorder.take();
        source.drain(None).unwrap();
        assert_eq!(fx.recorder.take(), [], "nothing is lost");
        drop(shell);
        fx.recorder.wait_until("it is taken back", |said, _| said.contains(&Said::Closed(handle.clone())));
        drop(source);
        fx.uncover();
    }
}

/// What cannot be found is not forgotten: everything may have changed, in every batch, until the writer is gone.
#[test]
fn a_file_behind_a_dead_mount_that_cannot_be_looked_for_makes_every_batch_a_rescan() {
    let volume = Volume::new(Kind::Ext4);
    let directory = volume.path().join("tracked");
    fs::create_dir_all(directory.join("damaged")).unwrap();
    let (point, image) = (volume.path(), volume.path().with_file_name("image"));
    let (point, image) = (point.display(), image.display());
    sh(&format!(
        "umount {point}; debugfs -w -R 'clri tracked/damaged' {image}; mount -o loop {image} {point}"
    ));
    assert!(fs::read_dir(directory.join("damaged")).is_err());
    let shell = writer_behind_a_dead_mount(&directory, "f");
    let dead = clean_dead_mount(&directory).unwrap().expect("the mount is dead");
    fs::remove_file(directory.join("f")).unwrap();

    let mut fx = Fixture::over(volume, directory.clone(), Kind::Ext4, true, |options| {
        options.foreign = dead.writers;
        options.dead_devices = dead.devices;
    });
    let losses = fx.stacked().report().losses.join("\n");
    assert!(losses.contains("was not found again"), "{losses}");
    let lost = Said::LostSight(fx.stacked().root_handle().clone());
    let told = std::slice::from_ref(&lost);
    assert_eq!(fx.recorder.take(), told);
    let source = fx.stacked().source();
    for _ in 0..2 {
        source.drain(None).unwrap();
        assert_eq!(fx.recorder.take(), told);
    }
    assert_eq!(fx.stacked().foreign_writers().len(), 1);
    drop(shell);
    fx.recorder.wait_until("the last that it wrote is told", |said, _| said.contains(&lost));
    let begin = std::time::Instant::now();
    while !fx.stacked().foreign_writers().is_empty() {
        assert!(begin.elapsed() < std::time::Duration::from_secs(60), "it is not taken back");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    fx.recorder.take();
    source.drain(None).unwrap();
    assert_eq!(fx.recorder.take(), []);
    drop(source);
    fx.uncover();
}

/// Other mounts of the same filesystem inside the directory do not hide who writes to the directory itself.
#[test]
fn a_writer_from_before_is_found_beside_a_nested_mount_of_the_same_filesystem() {
    let volume = Volume::new(Kind::Scratch);
    let directory = volume.path();
    fs::create_dir_all(directory.join("n")).unwrap();
    fs::create_dir_all(directory.join("d")).unwrap();
    sh_in(&directory, "mount --bind d n");
    let mut shell = Shell::new(&directory);
    shell.run("exec 5> old 6> n/inside; cd /; echo open");
    let mut fx = Fixture::over(volume, directory.clone(), Kind::Scratch, true, |_| {});
    let paths: Vec<_> = fx.stacked().foreign_writers().into_iter().map(|writer| writer.path).collect();
    assert_eq!(paths, [std::path::Path::new("old")]);
    shell.run("exec 5>&- 6>&-; echo closed");
    fx.uncover();
    sh_in(&directory, "umount n");
}

#[test]
fn the_same_directory_can_be_covered_again_and_again() {
    let volume = Volume::new(Kind::Scratch);
    let directory = volume.path();
    for i in 0..10 {
        let covered = Covered::open(&directory).unwrap();
        let stacked =
            Stacked::mount_with(covered, Box::new(Recorder::default()), Options::default()).unwrap();
        fs::write(directory.join(format!("f{i}")), "x").unwrap();
        stacked.unmount().unwrap();
    }
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 10);
    sh(&format!("! grep -q {} /proc/self/mountinfo", directory.display()));
}

#[test]
fn a_read_only_directory_stays_read_only() {
    let volume = Volume::new(Kind::Tmpfs);
    let directory = volume.path();
    sh(&format!("touch {0}/f; mount -o remount,ro,nosuid,nodev,noexec {0}", directory.display()));
    let mut fx = Fixture::over(volume, directory.clone(), Kind::Tmpfs, true, |_| {});
    assert_eq!(fs::write(directory.join("g"), "").unwrap_err().raw_os_error(), Some(libc::EROFS));
    let options = sh_in(&directory, "findmnt -n -o OPTIONS -T . | tail -1");
    for option in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(options.split(',').any(|given| given == option), "{options}");
    }
    fx.uncover();
}
