//! `track --source fanotify` by the command line: who may, on what, and who is told. These tests need root.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;
use support::tree::Tree;
use support::{stderr, stdout};

const NOBODY: u32 = 65534;

/// The binary as somebody else, who has a runtime directory of his own.
fn as_nobody(tree: &Tree, arguments: &[&str], runtime: &Path) -> Output {
    let binary = tree.home().join("highwater");
    if !binary.exists() {
        fs::copy(env!("CARGO_BIN_EXE_highwater"), &binary).unwrap();
    }
    fs::set_permissions(tree.home(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary).args(arguments);
    command.env("HIGHWATER_RUNTIME_DIR", runtime).env_remove("XDG_STATE_HOME");
    command.current_dir(tree.home()).output().unwrap()
}

fn runtime_of_nobody(tree: &Tree) -> std::path::PathBuf {
    let runtime = tree.home().join("run-nobody");
    fs::create_dir(&runtime).unwrap();
    chown(&runtime, Some(NOBODY), Some(NOBODY)).unwrap();
    runtime
}

#[test]
fn only_root_may_track_in_place() {
    let tree = Tree::new();
    chown(tree.dir(), Some(NOBODY), Some(NOBODY)).unwrap();
    let runtime = runtime_of_nobody(&tree);
    let state = runtime.join("state");
    let state = state.to_str().unwrap();
    let output = as_nobody(&tree, &["track", "tree", "--source", "fanotify", "--state", state], &runtime);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("root"), "{output:?}");
}

/// G7: the tracker is root's, whoever owns the directory, since it sees what its owner may not: names in directories that are closed to him.
#[test]
fn the_owner_of_a_directory_that_root_tracks_is_told_no_names() {
    let mut tree = Tree::new();
    chown(tree.dir(), Some(NOBODY), Some(NOBODY)).unwrap();
    let runtime = runtime_of_nobody(&tree);
    tree.track_with(&["--source", "fanotify"]);
    let now = tree.done(&["changes", "tree", "--since", "now", "--format", "json"]);
    let now: serde_json::Value = serde_json::from_str(now.lines().next().unwrap()).unwrap();
    let cursor = now["cursor"].as_str().unwrap();
    fs::create_dir(tree.dir().join("closed")).unwrap();
    fs::set_permissions(tree.dir().join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::write(tree.dir().join("closed/secret"), "x").unwrap();
    // By his own registrations, and by those of root, where he would find the socket.
    for runtime in [runtime, tree.home().join("run")] {
        for question in
            [&["changes", "tree"][..], &["follow", "tree"], &["status", "tree"], &["barrier", "tree"]]
        {
            let output = as_nobody(&tree, question, &runtime);
            assert!(!output.status.success(), "{question:?}: {output:?}");
            assert!(!stdout(&output).contains("secret") && !stderr(&output).contains("secret"), "{output:?}");
        }
    }
    let told = tree.done(&["changes", "tree", "--since", cursor]);
    assert!(told.contains("closed/secret"), "root is told: {told}");
    tree.signal(Signal::TERM);
    assert_eq!(tree.ended().0, Some(0));
}

#[test]
fn what_cannot_be_tracked_in_place_is_refused_with_what_to_use() {
    let tree = Tree::new();
    for directory in ["lower", "upper", "work"] {
        fs::create_dir(tree.home().join(directory)).unwrap();
    }
    let at = tree.home();
    let at = at.display();
    let options = format!("lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work");
    mount(
        "none",
        tree.dir(),
        "overlay",
        MountFlags::empty(),
        Some(std::ffi::CString::new(options).unwrap().as_c_str()),
    )
    .unwrap();
    let output = tree.run(&["track", "tree", "--state", "state", "--source", "fanotify"]);
    unmount(tree.dir(), UnmountFlags::DETACH).unwrap();
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("overlay") && said.contains("--source fuse"), "{said}");

    mount("none", tree.dir(), "tmpfs", MountFlags::empty(), None).unwrap();
    let output =
        tree.run(&["track", "tree", "--state", "state", "--source", "fanotify", "--barrier", "freeze"]);
    unmount(tree.dir(), UnmountFlags::DETACH).unwrap();
    assert!(!output.status.success() && stderr(&output).contains("--barrier bpf"), "{output:?}");
}

/// ADR 0014: only where it promises as much.
#[test]
fn auto_prefers_in_place_only_where_a_power_loss_makes_everyone_fresh_anyway() {
    let source = |tree: &mut Tree, arguments: &[&str]| {
        tree.track_with(arguments);
        let status: serde_json::Value =
            serde_json::from_str(&tree.done(&["status", "tree", "--json"])).unwrap();
        status["source"].as_str().unwrap().to_owned()
    };
    let stop = |tree: &mut Tree| {
        tree.done(&["stop", "tree"]);
        let (status, said) = tree.ended();
        assert_eq!(status, Some(0), "{said}");
        said
    };
    let mut tree = Tree::new();
    assert_eq!(source(&mut tree, &[]), "fuse");
    assert!(stop(&mut tree).contains("source fuse: after a crash"));
    assert_eq!(source(&mut tree, &["--durability", "relaxed", "--no-passthrough"]), "fuse");
    stop(&mut tree);
    assert_eq!(source(&mut tree, &["--durability", "relaxed"]), "fanotify");
    assert!(!tree.is_mounted());
    let said = stop(&mut tree);
    assert!(
        said.contains("source fanotify: after a kill") && !said.contains("not tracked in place"),
        "{said}"
    );

    // Where a killed tracker has left its mount, only another one can take its place without letting a change through.
    assert_eq!(source(&mut tree, &["--durability", "relaxed", "--source", "fuse"]), "fuse");
    tree.kill();
    assert_eq!(source(&mut tree, &["--durability", "relaxed"]), "fuse");
    let said = stop(&mut tree);
    assert!(said.contains("not tracked in place: a tracker with the source fuse was killed here"), "{said}");

    // What cannot be watched is mounted over.
    let mut tree = Tree::new();
    for directory in ["lower", "upper", "work"] {
        fs::create_dir(tree.home().join(directory)).unwrap();
    }
    let at = tree.home();
    let at = at.display();
    let options = format!("lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work");
    let options = std::ffi::CString::new(options).unwrap();
    mount("none", tree.dir(), "overlay", MountFlags::empty(), Some(options.as_c_str())).unwrap();
    assert_eq!(source(&mut tree, &["--durability", "relaxed"]), "fuse");
    let said = stop(&mut tree);
    unmount(tree.dir(), UnmountFlags::DETACH).unwrap();
    assert!(said.contains("not tracked in place: overlay"), "{said}");
}

/// A clean reboot costs no scan where the filesystem itself says that nothing has changed; and a scan wherever it does not.
#[test]
fn what_btrfs_says_was_not_changed_is_not_scanned() {
    let mut tree = Tree::new();
    let btrfs = Btrfs::new(&tree);
    let (at, file) = (&btrfs.at, btrfs.at.join("file"));
    fs::write(&file, "x").unwrap();
    // What the start says, what is told since the last time, and where that ends.
    let mut cursor = None;
    let mut round = |tree: &mut Tree, while_tracked: &mut dyn FnMut()| {
        tree.track_with(&["--source", "fanotify"]);
        let told = tree.done(&[
            "changes",
            "tree",
            "--format",
            "json",
            "--since",
            cursor.as_deref().unwrap_or("now"),
        ]);
        while_tracked();
        let told_meanwhile =
            tree.done(&["changes", "tree", "--format", "json", "--since", &cursor_of(&told)]);
        cursor = Some(cursor_of(&told_meanwhile));
        tree.done(&["stop", "tree"]);
        let (status, said) = tree.ended();
        assert_eq!(status, Some(0), "{said}");
        (said.contains("nothing has changed"), said.contains("a scan finds out"), told)
    };
    let nothing = &mut || {};
    let (unchanged, ..) = round(&mut tree, &mut || fs::write(&file, "told").unwrap());
    assert!(!unchanged, "a new volume");
    btrfs.unmount();
    btrfs.mount();
    let (unchanged, scan, told) = round(&mut tree, nothing);
    assert!(unchanged && !scan && told.lines().count() == 1, "after a clean reboot: {told}");
    let (unchanged, ..) = round(&mut tree, nothing);
    assert!(unchanged, "once more");

    fs::File::options().write(true).open(&file).unwrap().write_all(b"X").unwrap();
    let (unchanged, scan, told) = round(&mut tree, nothing);
    assert!(!unchanged && scan && told.contains("\"path\":\"file\""), "written in between: {told}");

    let mut open = None;
    let hold = &mut || open = Some(fs::File::options().append(true).open(&file).unwrap());
    let (unchanged, ..) = round(&mut tree, hold);
    assert!(unchanged);
    drop(open);
    let (unchanged, ..) = round(&mut tree, nothing);
    assert!(!unchanged, "a file was open for writing at the stop");

    tree.track_with(&["--source", "fanotify"]);
    tree.kill();
    let (unchanged, scan, _) = round(&mut tree, nothing);
    assert!(!unchanged && scan, "killed");

    sh(&format!("btrfs subvolume create {} > /dev/null", at.join("inner").display()));
    round(&mut tree, nothing);
    let (unchanged, scan, _) = round(&mut tree, nothing);
    assert!(!unchanged && scan, "a subvolume counts for itself");
}

/// Somebody writes until some moment around a stop, or on and on. `STOP_ROUNDS`: how often, 8 if it is not set.
#[test]
fn what_is_written_around_a_stop_is_told() {
    const FILES: usize = 40;
    let mut tree = Tree::new();
    let btrfs = Btrfs::new(&tree);
    let path = |number: usize| btrfs.at.join(number.to_string());
    for number in 0..FILES {
        fs::write(path(number), [b'x'; 4096]).unwrap();
    }
    let seed = fastrand::u64(..);
    let (mut random, mut cursor, mut unchanged) = (fastrand::Rng::with_seed(seed), None, 0);
    let rounds = std::env::var("STOP_ROUNDS").map_or(8, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        tree.track_with(&["--source", "fanotify"]);
        if cursor.is_none() {
            cursor = Some(cursor_of(&tree.done(&["changes", "tree", "--format", "json", "--since", "now"])));
        }
        let writes_for = random.u64(0..150);
        // Every fourth time it is over before.
        let stop_after = if round % 4 == 0 { writes_for + 20 } else { random.u64(0..100) };
        let mut choice = random.fork();
        let begun = Instant::now();
        let written = std::thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let mut written = HashSet::new();
                while begun.elapsed() < Duration::from_millis(writes_for) {
                    let number = choice.usize(0..FILES);
                    let file = fs::File::options().write(true).open(path(number)).unwrap();
                    file.write_all_at(&choice.u64(..).to_ne_bytes(), 0).unwrap();
                    written.insert(number);
                    std::thread::sleep(Duration::from_micros(choice.u64(0..4) * 700));
                }
                written
            });
            std::thread::sleep(Duration::from_millis(stop_after));
            tree.done(&["stop", "tree"]);
            let (status, said) = tree.ended();
            assert_eq!(status, Some(0), "{said}");
            tree.track_with(&["--source", "fanotify"]);
            writing.join().unwrap()
        });
        let since = cursor.as_deref().unwrap();
        let told = tree.done(&["changes", "tree", "--format", "json", "--since", since]);
        let missed: Vec<_> =
            written.iter().filter(|number| !told.contains(&format!("\"path\":\"{number}\""))).collect();
        assert!(missed.is_empty(), "round {round} of seed {seed}: {missed:?} are not in {told}");
        cursor = Some(cursor_of(&told));
        tree.done(&["stop", "tree"]);
        unchanged += u32::from(tree.ended().1.contains("nothing has changed"));
    }
    assert!(unchanged > 0, "a scan each time, which tries nothing (seed {seed})");
}

/// The cursor of an answer that is not fresh.
fn cursor_of(told: &str) -> String {
    let head: serde_json::Value = serde_json::from_str(told.lines().next().unwrap()).unwrap();
    assert_eq!(head["fresh"], false, "{told}");
    head["cursor"].as_str().unwrap().to_owned()
}

/// A btrfs at the directory of a tree, until it is dropped.
struct Btrfs {
    image: PathBuf,
    at: PathBuf,
}

impl Btrfs {
    fn new(tree: &Tree) -> Self {
        let new = Self { image: tree.home().join("image"), at: tree.dir().to_owned() };
        fs::File::create(&new.image).unwrap().set_len(300 << 20).unwrap();
        sh(&format!("mkfs.btrfs -q {}", new.image.display()));
        new.mount();
        new
    }

    fn mount(&self) {
        sh(&format!("mount -o loop {} {}", self.image.display(), self.at.display()));
    }

    fn unmount(&self) {
        sh(&format!("umount {}", self.at.display()));
    }
}

impl Drop for Btrfs {
    fn drop(&mut self) {
        let _ = unmount(&self.at, UnmountFlags::DETACH);
    }
}

fn sh(command: &str) {
    let output = Command::new("sh").args(["-ec", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", stderr(&output));
}

#[test]
fn status_says_what_the_source_relies_on() {
    let mut tree = Tree::new();
    tree.track_with(&["--source", "fanotify"]);
    fs::write(tree.dir().join("f"), "x").unwrap();
    tree.done(&["barrier", "tree"]);
    let status: serde_json::Value = serde_json::from_str(&tree.done(&["status", "tree", "--json"])).unwrap();
    assert_eq!(status["source"], "fanotify");
    let details = &status["details"];
    let starts = |what: &str, with: &str| details[what].as_str().is_some_and(|text| text.starts_with(with));
    assert!(starts("barrier", "bpf, last ") && starts("search", "for these by bpf, "), "{details}");
    let events: u64 = details["events"].as_str().unwrap().split(',').next().unwrap().parse().unwrap();
    assert!(events > 0, "{details}");
    tree.signal(Signal::TERM);
    assert_eq!(tree.ended().0, Some(0));
}
