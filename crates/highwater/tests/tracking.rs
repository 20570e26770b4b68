//! Tracking for real: the tracker's process on a directory. These tests need root and /dev/fuse, and fail without.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::Signal;
use serde_json::Value;
use support::tree::{Tree, is_mounted};
use support::{assert_exit, eventually, stderr, stdout};

fn lines(json: &str) -> Vec<Value> {
    json.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_tracked_directory_tells_what_changed_and_stops_cleanly() {
    let mut tree = Tree::new();
    fs::write(tree.dir().join("old"), "x").unwrap();
    tree.track();
    let now = lines(&tree.done(&["changes", "tree", "--since", "now", "--format", "json"]));
    let since = now[0]["cursor"].as_str().unwrap();
    fs::create_dir(tree.dir().join("d")).unwrap();
    fs::write(tree.dir().join("d/f"), "data").unwrap();
    fs::rename(tree.dir().join("old"), tree.dir().join("new")).unwrap();
    let answer = lines(&tree.done(&["changes", "tree", "--since", since, "--format", "json"]));
    assert_eq!((answer[0]["since"].as_str(), answer[0]["fresh"].as_bool()), (Some(since), Some(false)));
    let told =
        |path: &str, kind: &str| answer[1..].iter().any(|line| line["path"] == path && line["kind"] == kind);
    assert!(told("d", "created") && told("d/f", "created") && told("new", "renamed"), "{answer:?}");
    let status: Value = serde_json::from_str(&tree.done(&["status", "tree", "--json"])).unwrap();
    assert_eq!(status["source"], "fuse");

    tree.signal(Signal::TERM);
    let (status, stderr) = tree.ended();
    assert_eq!(status, Some(0), "{stderr}");
    assert!(stderr.contains("new volume"), "{stderr}");
    assert!(!tree.is_mounted());
    assert_eq!(fs::read(tree.dir().join("d/f")).unwrap(), b"data");
    let left: Vec<_> =
        fs::read_dir(tree.home().join("run")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.iter().all(|path| path.extension() == Some(OsStr::new("lock"))), "{left:?}");
    tree.fails(&["status", "tree"], 3);
}

/// G5: what happened while nobody looked is found, and the consumer goes on where it was.
#[test]
fn a_gap_is_found_by_the_next_tracker() {
    let mut tree = Tree::new();
    fs::write(tree.dir().join("a"), "x").unwrap();
    tree.track();
    tree.done(&["consumer", "add", "tree", "c"]);
    tree.done(&["run", "tree", "--consumer", "c", "--", "true"]);
    tree.done(&["stop", "tree"]);
    assert_eq!(tree.ended().0, Some(0));
    fs::write(tree.dir().join("a"), "changed unseen").unwrap();
    tree.track();
    let answer = lines(&tree.done(&["changes", "tree", "--consumer", "c", "--format", "json"]));
    let header = &answer[0];
    let told = answer[1..].iter().any(|line| line["path"] == "a" || line["kind"] == "rescan");
    assert!(header["fresh"] == true || told, "{answer:?}");
}

/// G4, for a killed tracker.
#[test]
fn a_killed_tracker_leaves_the_directory_closed_and_the_next_one_recovers() {
    let mut tree = Tree::new();
    let pid = tree.track();
    tree.done(&["consumer", "add", "tree", "c"]);
    tree.done(&["run", "tree", "--consumer", "c", "--", "true"]);
    fs::write(tree.dir().join("f"), "before the kill").unwrap();
    tree.kill();
    assert!(fs::read_dir(tree.dir()).is_err(), "the tree is open");
    let message = tree.fails(&["changes", "tree", "--consumer", "c"], 3);
    assert!(message.contains(&format!("its tracker (pid {pid}) ended without a stop")), "{message}");
    assert_eq!(tree.run(&["status"]).status.code(), Some(3));

    tree.track();
    assert_eq!(fs::read(tree.dir().join("f")).unwrap(), b"before the kill");
    let answer = lines(&tree.done(&["changes", "tree", "--consumer", "c", "--format", "json"]));
    assert_eq!(answer[0]["fresh"], false, "{answer:?}");
    assert!(answer[1..].iter().any(|line| line["path"] == "f" || line["kind"] == "rescan"), "{answer:?}");
    tree.done(&["stop", "tree"]);
    let (status, stderr) = tree.ended();
    assert_eq!(status, Some(0));
    assert!(stderr.contains("did not stop cleanly"), "{stderr}");
}

/// A program goes on writing through a mount whose tracker is dead. Its file is renamed under the next tracker, and the one after that
/// has nothing of it but an inode number: its mount is in no list any more.
#[test]
fn who_writes_through_two_kills_is_told_by_the_name_that_the_file_has_now() {
    let mut tree = Tree::new();
    fs::create_dir(tree.dir().join("d")).unwrap();
    tree.track();
    tree.done(&["consumer", "add", "tree", "c"]);
    tree.done(&["run", "tree", "--consumer", "c", "--", "true"]);
    let mut file = fs::OpenOptions::new().append(true).create(true).open(tree.dir().join("d/f")).unwrap();
    tree.kill();
    tree.track();
    fs::rename(tree.dir().join("d"), tree.dir().join("e")).unwrap();
    tree.kill();
    tree.track();
    tree.done(&["run", "tree", "--consumer", "c", "--", "true"]);
    for text in ["one", "two"] {
        file.write_all(text.as_bytes()).unwrap();
        let told = lines(&tree.done(&["changes", "tree", "--consumer", "c", "--format", "json"]));
        assert!(told[1..].iter().any(|line| line["path"] == "e/f"), "after {text}: {told:?}");
        tree.done(&["ack", "tree", "--consumer", "c", told[0]["cursor"].as_str().unwrap()]);
    }
    assert_eq!(fs::read(tree.dir().join("e/f")).unwrap(), b"onetwo");
    drop(file);
    tree.done(&["stop", "tree"]);
}

/// What looks at the directory while its tracker dies is told so by the kernel in other words than what comes later.
#[test]
fn a_tracker_that_dies_while_the_next_one_looks_is_followed_by_it() {
    let mut tree = Tree::new();
    let pid = tree.track();
    tree.signal(Signal::STOP);
    // A thread that still runs could answer.
    eventually("all threads of the tracker are stopped", || {
        let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        threads.map(|thread| thread.unwrap().path().join("stat")).all(|stat| {
            let stat = fs::read_to_string(stat).unwrap();
            stat.rsplit_once(") ").unwrap().1.starts_with('T')
        })
    });
    let mut next = tree.command(&["track", "tree"]);
    let mut next = next.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let wchan = format!("/proc/{}/wchan", next.id());
    eventually("the next one waits for an answer", || {
        fs::read_to_string(&wchan).is_ok_and(|wchan| wchan.contains("request_wait_answer"))
    });
    tree.kill();
    let mut said = String::new();
    BufReader::new(next.stdout.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.starts_with("tracking "), "{said}");
    tree.done(&["stop", "tree"]);
    assert!(next.wait().unwrap().success());
}

#[test]
fn a_daemon_returns_when_it_tracks_and_its_errors_reach_the_caller() {
    let tree = Tree::new();
    let message = tree.fails(&["track", "missing", "--daemon"], 1);
    assert!(message.contains("cannot track missing: No such file or directory"), "{message}");
    tree.fails(&["track", "tree", "--daemon", "--source", "bpf"], 2);
    let output = tree.run(&["track", "tree", "--state", "state", "--daemon"]);
    assert_exit(&output, 0);
    assert!(
        stdout(&output).starts_with(&format!("tracking {} ", tree.dir().display())),
        "{}",
        stdout(&output)
    );
    assert!(tree.is_mounted());
    let message = tree.fails(&["track", "tree", "--state", "state2", "--daemon"], 1);
    assert!(message.contains("is already tracked by pid"), "{message}");
    assert_eq!(
        fs::metadata(tree.home().join("state/tracker.log")).unwrap().permissions().mode() & 0o777,
        0o600
    );
    tree.done(&["stop", "tree"]);
    assert!(!tree.is_mounted());
    // At once again: a stop returns when the process has ended.
    tree.done(&["track", "tree", "--state", "state", "--daemon"]);
    tree.done(&["stop", "tree"]);
}

#[test]
fn a_stop_of_a_directory_in_use_names_who_uses_it_and_tracking_goes_on() {
    let mut tree = Tree::new();
    tree.track();
    let mut holder = Command::new("sleep").arg("1000").current_dir(tree.dir()).spawn().unwrap();
    let message = tree.fails(&["stop", "tree"], 1);
    drop(holder.kill());
    holder.wait().unwrap();
    assert!(message.contains(&format!("in use by sleep (pid {})", holder.id())), "{message}");
    assert!(message.contains("tracking goes on"), "{message}");
    fs::write(tree.dir().join("f"), "x").unwrap();
    tree.done(&["barrier", "tree"]);
    tree.done(&["stop", "tree"]);
    assert_eq!(tree.ended().0, Some(0));
}

/// A container that was started while the tree was tracked has a copy of the mount, which no unmount from outside reaches.
#[test]
fn a_stop_that_waits_for_a_mount_namespace_says_for_whose() {
    let mut tree = Tree::new();
    tree.track();
    let mut container = Command::new("unshare");
    container.args(["--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 600"]);
    let mut container = container.stdout(Stdio::piped()).spawn().unwrap();
    BufReader::new(container.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let mut stop = tree.command(&["stop", "tree"]).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_secs(4));
    assert!(stop.try_wait().unwrap().is_none(), "what is done in the container would be missed");
    let pid = container.id();
    container.kill().unwrap();
    container.wait().unwrap();
    assert!(stop.wait().unwrap().success());
    let (status, stderr) = tree.ended();
    assert_eq!(status, Some(0));
    assert!(stderr.contains(&format!("still mounted elsewhere, for sleep (pid {pid})")), "{stderr}");
}

#[test]
fn names_of_any_bytes_come_out_as_they_are() {
    let mut tree = Tree::new();
    tree.track();
    tree.done(&["changes", "tree", "--since", "now", "--save-cursor", "cursor"]);
    let since = fs::read_to_string(tree.home().join("cursor")).unwrap();
    let names: [&[u8]; 4] = [b"\xff\xfe", b"new\nline", b" '\"\\ $(id)", "snow\u{2603}".as_bytes()];
    for name in names {
        fs::write(tree.dir().join(OsStr::from_bytes(name)), "x").unwrap();
    }
    let output = tree.run(&["changes", "tree", "--since", since.trim(), "--format", "null"]);
    assert_exit(&output, 0);
    let mut told: Vec<&[u8]> =
        output.stdout.split(|byte| *byte == 0).filter(|path| !path.is_empty()).collect();
    told.sort_unstable();
    let mut expected = names.to_vec();
    expected.sort_unstable();
    assert_eq!(told, expected);
    let json = tree.done(&["changes", "tree", "--since", since.trim(), "--format", "json"]);
    assert!(json.contains(r#""path_base64":"//4=""#), "{json}");
    assert_eq!(json.lines().count(), 5);
}

#[test]
fn what_cannot_be_tracked_is_refused_with_the_reason_and_what_to_do() {
    let tree = Tree::new();
    fs::write(tree.home().join("file"), "").unwrap();
    fs::create_dir(tree.home().join("full of files")).unwrap();
    fs::write(tree.home().join("full of files/letter"), "").unwrap();
    fs::create_dir(tree.home().join("other's")).unwrap();
    chown(tree.home().join("other's"), Some(65534), None).unwrap();
    for (arguments, status, expected) in [
        (&["track", "missing"][..], 1, "cannot track missing: No such file or directory"),
        (&["track", "file"], 1, "cannot track file: it is not a directory"),
        (&["track", "tree", "--state", "tree/state"], 1, "would be inside the tracked directory"),
        (&["track", "tree", "--state", "tree/a/b/state"], 1, "would be inside the tracked directory"),
        (&["track", "tree", "--state", "tree"], 1, "would be inside the tracked directory"),
        (&["track", "tree", "--state", "file"], 1, "it is not a directory"),
        (&["track", "tree", "--state", "full of files"], 1, "there are other files in it"),
        (&["track", "tree", "--state", "other's"], 1, "it belongs to user 65534"),
        (&["track", "tree", "--source", "bpf"], 2, "not built yet"),
        (&["track", "tree", "--source", "magic"], 2, "invalid value 'magic'"),
        (&["track"], 2, "<DIR>"),
    ] {
        let message = tree.fails(arguments, status);
        assert!(message.contains(expected), "{arguments:?}: {message}");
    }
    assert_eq!(fs::read_dir(tree.dir()).unwrap().count(), 0, "something was made inside the tree");
    assert!(!tree.is_mounted());
}

/// A small filesystem that goes away with the test.
struct Disk(std::path::PathBuf);

impl Disk {
    fn new(path: std::path::PathBuf, flags: MountFlags) -> Self {
        fs::create_dir(&path).unwrap();
        mount("none", &path, "tmpfs", flags, c"size=1m").unwrap();
        Self(path)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_state_on_a_full_or_read_only_disk_is_refused_and_says_so() {
    let tree = Tree::new();
    let full = Disk::new(tree.home().join("full"), MountFlags::empty());
    let message = tree.fails(&["track", "tree", "--state", "full/state"], 1);
    assert!(message.contains("its disk is full"), "{message}");
    // What the failed start has left does not keep the next one from trying.
    let message = tree.fails(&["track", "tree", "--state", "full/state"], 1);
    assert!(message.contains("its disk is full"), "{message}");
    drop(full);
    let _read_only = Disk::new(tree.home().join("ro"), MountFlags::RDONLY);
    let message = tree.fails(&["track", "tree", "--state", "ro/state"], 1);
    assert!(message.contains("its filesystem is read-only"), "{message}");
    assert!(!tree.is_mounted());
}

#[test]
fn a_state_in_use_or_of_another_directory_is_refused() {
    let mut tree = Tree::new();
    fs::create_dir(tree.home().join("second")).unwrap();
    let pid = tree.track();
    let message = tree.fails(&["track", "second", "--state", "state"], 1);
    assert!(message.contains(&format!("locked by a live tracker, pid {pid}")), "{message}");
    tree.done(&["stop", "tree"]);
    let message = tree.fails(&["track", "second", "--state", "state"], 1);
    assert!(message.contains("belongs to another tracked directory"), "{message}");
    assert!(message.contains(tree.dir().to_str().unwrap()), "{message}");
}

#[test]
fn a_tree_inside_or_above_a_tracked_one_is_refused() {
    let mut tree = Tree::new();
    fs::create_dir(tree.dir().join("sub")).unwrap();
    tree.track();
    let outside = tempfile::tempdir().unwrap();
    let state = outside.path().join("state").to_str().unwrap().to_owned();
    // By the registrations, and by the mounts where another user's registrations cannot be seen.
    for runtime in [tree.home().join("run"), tree.home().join("run of another user")] {
        for (directory, expected) in [
            ("tree/sub", "it is inside"),
            (".", "inside it is tracked already"),
            ("tree", "is already tracked"),
        ] {
            let mut command = tree.command(&["track", directory, "--state", &state]);
            let output = command.env("HIGHWATER_RUNTIME_DIR", &runtime).output().unwrap();
            assert_exit(&output, 1);
            assert!(stderr(&output).contains(expected), "{directory}: {}", stderr(&output));
        }
    }
    tree.done(&["stop", "tree"]);
}

#[test]
fn without_dev_fuse_the_message_says_what_to_do() {
    let tree = Tree::new();
    let program = env!("CARGO_BIN_EXE_highwater");
    let script = format!("mount -t tmpfs none /dev && exec {program} track tree --state state");
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).current_dir(tree.home());
    let output = command.env("HIGHWATER_RUNTIME_DIR", tree.home().join("run")).output().unwrap();
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("cannot open /dev/fuse"), "{}", stderr(&output));
    assert!(stderr(&output).contains("modprobe fuse"), "{}", stderr(&output));
}

#[test]
fn a_process_that_was_there_before_is_named() {
    let mut tree = Tree::new();
    let mut early = Command::new("sleep").arg("1000").current_dir(tree.dir()).spawn().unwrap();
    tree.track();
    drop(early.kill());
    early.wait().unwrap();
    tree.done(&["stop", "tree"]);
    let (_, stderr) = tree.ended();
    assert!(stderr.contains(&format!("sleep (pid {})", early.id())), "{stderr}");
}

#[test]
fn systemd_is_told_when_changes_are_seen() {
    let mut tree = Tree::new();
    let socket = UnixDatagram::bind(tree.home().join("notify")).unwrap();
    let mut command = tree.command(&["track", "tree", "--state", "state"]);
    let notify = tree.home().join("notify");
    let mut child =
        command.env("NOTIFY_SOCKET", notify).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut message = [0; 100];
    socket.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    let len = socket.recv(&mut message).unwrap();
    assert_eq!(&message[..len], b"READY=1\n");
    assert!(tree.is_mounted());
    tree.done(&["stop", "tree"]);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    // The same directory again, to be sure that nothing was left.
    tree.track();
}

#[test]
fn somebody_else_s_unmount_ends_the_tracker_with_a_message() {
    let mut tree = Tree::new();
    tree.track();
    unmount(tree.dir(), UnmountFlags::empty()).unwrap();
    let (status, stderr) = tree.ended();
    assert_eq!(status, Some(1));
    assert!(stderr.contains("somebody else has unmounted"), "{stderr}");
    tree.fails(&["status", "tree"], 3);
}

#[test]
fn a_state_is_inspected_while_it_is_used_and_afterwards() {
    let mut tree = Tree::new();
    let pid = tree.track();
    fs::write(tree.dir().join("f"), "x").unwrap();
    tree.done(&["barrier", "tree"]);
    let text = tree.done(&["inspect", "state", "--verify"]);
    assert!(text.contains(&format!("the tracker with pid {pid} is using it")), "{text}");
    tree.done(&["stop", "tree"]);
    let text = tree.done(&["inspect", "state", "--verify"]);
    assert!(text.contains("end         stopped cleanly") && !text.contains("is using it"), "{text}");
    let before = snapshot(&tree.home().join("state"));
    tree.done(&["inspect", "state", "--records"]);
    assert_eq!(snapshot(&tree.home().join("state")), before, "inspect has written");

    let segment = fs::read_dir(tree.home().join("state")).unwrap().map(|entry| entry.unwrap().path());
    let segment = segment.into_iter().find(|path| path.extension() == Some(OsStr::new("hwj"))).unwrap();
    let mut bytes = fs::read(&segment).unwrap();
    // In the first record, which names the boot.
    let boot_id = fs::read("/proc/sys/kernel/random/boot_id").unwrap();
    let at = bytes.windows(36).position(|window| window == boot_id.trim_ascii()).unwrap();
    bytes[at] ^= 1;
    fs::write(&segment, bytes).unwrap();
    let output = tree.run(&["inspect", "state", "--verify"]);
    assert_exit(&output, 1);
    assert!(stdout(&output).contains("damage "), "{output:?}");
    assert!(stderr(&output).contains("state is damaged"), "{}", stderr(&output));
    let message = tree.fails(&["inspect", "run"], 1);
    assert!(message.contains("run is not a state"), "{message}");
    let message = tree.fails(&["inspect", "missing"], 1);
    assert!(message.contains("cannot inspect missing"), "{message}");
}

fn snapshot(directory: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = files.map(|path| (path.clone(), fs::read(path).unwrap())).collect();
    files.sort();
    files
}

#[test]
fn follow_tells_what_happens_as_it_happens() {
    let mut tree = Tree::new();
    tree.track();
    let mut command = tree.command(&["follow", "tree", "--since", "now"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().starts_with("{\"cursor\":"));
    fs::write(tree.dir().join("f"), "x").unwrap();
    assert!(lines.next().unwrap().unwrap().starts_with("{\"cursor\":"));
    assert!(lines.next().unwrap().unwrap().contains("\"path\":\"f\""));
    drop(child.kill());
    child.wait().unwrap();
    tree.done(&["stop", "tree"]);
}

#[test]
fn the_demo_holds_and_leaves_nothing_behind() {
    let tree = Tree::new();
    let output = tree.command(&["demo"]).env("TMPDIR", tree.home()).output().unwrap();
    assert_exit(&output, 0);
    assert!(stdout(&output).contains("14 held"), "{}", stdout(&output));
    assert!(!stdout(&output).contains('\x1b'), "colour without a terminal");
    let left: Vec<_> = fs::read_dir(tree.home()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["tree"]);
}

/// In the middle of the stalled write, which nothing that waits for it can be killed out of.
#[test]
fn ctrl_c_clears_the_demo_away() {
    let tree = Tree::new();
    let mut command = tree.command(&["demo"]);
    let mut child = command.env("TMPDIR", tree.home()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut home = String::new();
    while let Some(Ok(line)) = lines.next() {
        if let Some(rest) = line.strip_prefix("Everything happens in ") {
            rest.trim_end_matches('.').clone_into(&mut home);
        }
        if line.contains("the race is real") {
            break;
        }
    }
    assert!(is_mounted(&Path::new(&home).join("tree")));
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    eventually("the mount is gone", || !is_mounted(&Path::new(&home).join("tree")));
    assert!(!Path::new(&home).exists());
}

#[test]
fn a_signal_at_any_moment_of_the_start_leaves_nothing_behind() {
    let tree = Tree::new();
    for delay_ms in (0..120).step_by(10) {
        let mut command = tree.command(&["track", "tree", "--state", "state"]);
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // Not to wait for something, but to hit another moment each time.
        std::thread::sleep(std::time::Duration::from_millis(delay_ms));
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        child.wait().unwrap();
        assert!(!tree.is_mounted(), "after {delay_ms} ms");
        fs::write(tree.dir().join("f"), "x").unwrap();
        tree.fails(&["status", "tree"], 3);
    }
}
