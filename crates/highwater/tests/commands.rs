//! The commands against a volume whose changes are known: exit status, stdout, stderr.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

use highwater_client::{Change, Kind, ObjectType};
use support::{Tracked, assert_exit, change, cursor, eventually, highwater, stderr, stdout};

fn renamed(from: &[u8], to: &[u8], object_type: ObjectType) -> Change {
    Change { from: Some(from.to_vec()), ..change(to, Kind::Renamed, object_type) }
}

/// One of each kind, with names that are hard to print.
fn with_odd_names() -> Tracked {
    let tracked = Tracked::new();
    tracked.volume.push(change("a dir", Kind::Created, ObjectType::Dir));
    tracked.volume.push(Change { recovered: true, ..change("a dir/b", Kind::Modified, ObjectType::File) });
    tracked.volume.push(renamed(b"old\xff", b"new\nline", ObjectType::Symlink));
    tracked.volume.push(Change { nlink: Some(2), ..change("a dir/b", Kind::Metadata, ObjectType::File) });
    tracked.volume.push(change("gone", Kind::Deleted, ObjectType::Other));
    tracked
}

#[test]
fn text_is_one_change_per_line_with_a_summary_on_stderr() {
    let tracked = with_odd_names();
    let output = tracked.run(&["changes", ".", "--since", &cursor(0)]);
    assert_exit(&output, 0);
    let expected = r"created   dir      'a dir'
modified  file     'a dir/b'  # recovered
renamed   symlink  $'old\377' -> $'new\nline'
metadata  file     'a dir/b'
deleted   other    gone
";
    assert_eq!(stdout(&output), expected);
    assert_eq!(stderr(&output), format!("5 changes since {}; now at cursor {}\n", cursor(0), cursor(5)));
}

#[test]
fn json_is_a_line_with_the_cursor_and_one_per_change() {
    let tracked = with_odd_names();
    let output = tracked.run(&["changes", ".", "--since", &cursor(0), "--format", "json"]);
    assert_exit(&output, 0);
    let expected = format!(
        r#"{{"cursor":"{}","since":"{}","fresh":false}}
{{"path":"a dir","kind":"created","type":"dir","recovered":false,"usn":1}}
{{"path":"a dir/b","kind":"modified","type":"file","recovered":true,"usn":1}}
{{"path":"new\nline","kind":"renamed","type":"symlink","from_base64":"b2xk/w==","recovered":false,"usn":1}}
{{"path":"a dir/b","kind":"metadata","type":"file","recovered":false,"nlink":2,"usn":1}}
{{"path":"gone","kind":"deleted","type":"other","recovered":false,"usn":1}}
"#,
        cursor(5),
        cursor(0)
    );
    assert_eq!(stdout(&output), expected);
    assert_eq!(stderr(&output), "");
}

#[test]
fn null_is_every_path_once_with_both_names_of_a_rename() {
    let tracked = with_odd_names();
    std::fs::create_dir(tracked.directory.join("a dir")).unwrap();
    let output = tracked.run(&["changes", ".", "--since", &cursor(0), "--format", "null"]);
    assert_exit(&output, 0);
    assert_eq!(output.stdout, b"a dir/\0a dir/b\0old\xff\0new\nline\0gone\0");
    assert_eq!(stderr(&output), "");
}

#[test]
fn null_lists_what_is_below_a_renamed_directory() {
    let tracked = Tracked::new();
    let odd = tracked.directory.join("new").join(OsStr::from_bytes(b"s\xff"));
    std::fs::create_dir_all(&odd).unwrap();
    std::fs::write(odd.join("f"), "x").unwrap();
    tracked.volume.push(renamed(b"old", b"new", ObjectType::Dir));
    tracked.volume.push(renamed(b"elsewhere", b"moved on", ObjectType::Dir));
    let output = tracked.run(&["changes", ".", "--since", &cursor(0), "--format", "null"]);
    assert_exit(&output, 0);
    assert_eq!(output.stdout, b"old\0new/\0new/s\xff/\0new/s\xff/f\0elsewhere\0moved on\0");
}

#[test]
fn null_ends_a_directory_whose_names_have_to_be_compared_with_a_slash() {
    let tracked = Tracked::new();
    std::fs::create_dir_all(tracked.directory.join("made")).unwrap();
    std::fs::create_dir_all(tracked.directory.join("d/e")).unwrap();
    std::fs::write(tracked.directory.join("d/f"), "x").unwrap();
    for (path, kind) in [("d/e", Kind::Metadata), ("made", Kind::Created), ("d", Kind::Rescan)] {
        tracked.volume.push(change(path, kind, ObjectType::Dir));
    }
    tracked.volume.push(change("made and gone", Kind::Created, ObjectType::Dir));
    let output = tracked.run(&["changes", ".", "--since", &cursor(0), "--format", "null"]);
    assert_exit(&output, 0);
    let told: Vec<&[u8]> = output.stdout.split(|byte| *byte == 0).collect();
    assert_eq!(told, [&b"d/e/"[..], b"made/", b"d/", b"d/f", b"made and gone", b""]);
}

#[test]
fn null_prints_nothing_and_exits_4_where_a_list_of_paths_cannot_tell_the_answer() {
    let tracked = Tracked::new();
    let output = tracked.run(&["changes", ".", "--format", "null"]);
    assert_exit(&output, 4);
    assert_eq!(stdout(&output), "");
    assert!(stderr(&output).contains("a full pass is needed"), "{}", stderr(&output));
    assert!(stderr(&output).contains(&cursor(0)), "{}", stderr(&output));

    tracked.volume.push(change("a", Kind::Modified, ObjectType::File));
    tracked.volume.push(change(".", Kind::Rescan, ObjectType::Dir));
    let output = tracked.run(&["changes", ".", "--since", &cursor(0), "--format", "null"]);
    assert_exit(&output, 4);
    assert_eq!(stdout(&output), "");
    let expected = "the tracked directory itself has to be compared";
    assert!(stderr(&output).contains(expected), "{}", stderr(&output));
}

#[test]
fn a_fresh_answer_says_so_and_now_gives_a_cursor() {
    let tracked = with_odd_names();
    let output = tracked.run(&["changes", "."]);
    assert_exit(&output, 0);
    assert_eq!(stdout(&output), "");
    assert!(stderr(&output).starts_with("fresh (no earlier cursor): take everything"), "{}", stderr(&output));
    let output = tracked.run(&["changes", ".", "--format", "json"]);
    let expected = format!(
        "{{\"cursor\":\"{}\",\"since\":null,\"fresh\":true,\"reason\":\"no earlier cursor\"}}\n",
        cursor(5)
    );
    assert_eq!(stdout(&output), expected);
    let output =
        tracked.run(&["changes", ".", "--since", "now", "--format", "json", "--save-cursor", "../kept"]);
    assert_eq!(stdout(&output), format!("{{\"cursor\":\"{}\",\"since\":null,\"fresh\":false}}\n", cursor(5)));
    assert_eq!(
        std::fs::read_to_string(tracked.home.path().join("kept")).unwrap(),
        format!("{}\n", cursor(5))
    );
    let output = tracked.run(&["changes", ".", "--since", "now", "--save-cursor", "/nowhere/kept"]);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("cannot write the cursor to /nowhere/kept"), "{}", stderr(&output));
}

#[test]
fn wrong_usage_exits_2() {
    let tracked = Tracked::new();
    for arguments in [
        &["changes"][..],
        &["changes", ".", "--since", &cursor(0), "--consumer", "a"],
        &["changes", ".", "--since", "yesterday"],
        &["changes", ".", "--since", ""],
        &["changes", ".", "--format", "xml"],
        &["follow", ".", "--since", "yesterday"],
        &["ack", ".", "--consumer", "a"],
        &["ack", ".", "--consumer", "a", "yesterday"],
        &["consumer", "add", ".", "a/b"],
        &["consumer", "shoot", ".", "a"],
        &["run", ".", "--consumer", "a"],
        &["run", ".", "--consumer", "a", "true"],
        &["barrier", ".", "--deadline", "soon"],
        &["barrier", ".", "--deadline", "-1"],
        &["explode"],
        &[],
    ] {
        let output = tracked.run(arguments);
        assert_exit(&output, 2);
        assert_eq!(stdout(&output), "", "{arguments:?}");
        assert_ne!(stderr(&output), "", "{arguments:?}");
    }
}

#[test]
fn help_teaches_every_command_with_an_example() {
    let help = highwater(std::path::Path::new("/nowhere")).arg("--help").output().unwrap();
    assert_exit(&help, 0);
    let text = stdout(&help);
    let commands = text.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    for command in
        commands.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help")
    {
        let help = highwater(std::path::Path::new("/nowhere")).args([command, "--help"]).output().unwrap();
        assert_exit(&help, 0);
        assert!(stdout(&help).contains(&format!("highwater {command}")), "{command}");
        assert!(stdout(&help).contains("Example"), "{command}");
    }
}

#[test]
fn what_is_not_tracked_exits_3_and_says_what_is() {
    let tracked = Tracked::new();
    let other = tracked.home.path().canonicalize().unwrap().join("other");
    std::fs::create_dir(&other).unwrap();
    std::fs::create_dir(tracked.directory.join("sub")).unwrap();
    let other = other.to_str().unwrap();
    for arguments in [
        &["status", other][..],
        &["stop", other],
        &["barrier", other],
        &["changes", other],
        &["ack", other, "--consumer", "a", &cursor(0)],
        &["consumer", "list", other],
        &["run", other, "--consumer", "a", "--", "true"],
        &["follow", other],
    ] {
        let output = tracked.run(arguments);
        assert_exit(&output, 3);
        assert_eq!(stdout(&output), "");
        assert!(stderr(&output).contains(&format!("{other} is not tracked")), "{}", stderr(&output));
    }
    let output = tracked.run(&["changes", "sub"]);
    assert_exit(&output, 3);
    assert!(
        stderr(&output).contains(&format!("it is inside {}", tracked.directory.display())),
        "{}",
        stderr(&output)
    );
    let output = tracked.run(&["changes", "missing"]);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("cannot find the directory missing"), "{}", stderr(&output));
}

#[test]
fn consumers_are_added_listed_acked_and_removed() {
    let tracked = with_odd_names();
    assert_exit(&tracked.run(&["consumer", "add", ".", "backup"]), 0);
    assert_exit(&tracked.run(&["consumer", "add", ".", "backup"]), 1);
    assert_eq!(stdout(&tracked.run(&["consumer", "list", "."])), "backup  -\n");
    let output = tracked.run(&["changes", ".", "--consumer", "backup"]);
    assert!(stderr(&output).starts_with("fresh (the consumer has acked nothing yet)"), "{}", stderr(&output));
    assert_exit(&tracked.run(&["ack", ".", "--consumer", "backup", &cursor(4)]), 0);
    assert_eq!(stdout(&tracked.run(&["consumer", "list", "."])), format!("backup  {}\n", cursor(4)));
    assert_eq!(stdout(&tracked.run(&["changes", ".", "--consumer", "backup"])), "deleted   other    gone\n");
    let output = tracked.run(&["ack", ".", "--consumer", "backup", &cursor(3)]);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("an ack never goes back"), "{}", stderr(&output));
    assert_exit(&tracked.run(&["consumer", "remove", ".", "backup"]), 0);
    for arguments in [
        &["consumer", "remove", ".", "backup"][..],
        &["ack", ".", "--consumer", "backup", &cursor(5)],
        &["changes", ".", "--consumer", "backup"],
        &["run", ".", "--consumer", "backup", "--", "true"],
    ] {
        let output = tracked.run(arguments);
        assert_exit(&output, 1);
        assert!(stderr(&output).contains("there is no consumer \"backup\""), "{}", stderr(&output));
    }
}

#[test]
fn run_acks_only_when_the_command_exits_0() {
    let tracked = with_odd_names();
    let run = |format: &str, script: &str| {
        tracked.run(&["run", ".", "--consumer", "c", "--format", format, "--", "sh", "-c", script])
    };
    let acked = || stdout(&tracked.run(&["consumer", "list", "."])).trim_end().replace("c  ", "");
    tracked.run(&["consumer", "add", ".", "c"]);

    // Fresh, as a list of paths: the command is not run.
    let output = run("null", "echo ran");
    assert_exit(&output, 4);
    assert_eq!(stdout(&output), "");
    assert_eq!(acked(), "-");

    let output = run("json", "cat; exit 7");
    assert_exit(&output, 7);
    assert!(stdout(&output).contains("\"fresh\":true"), "{}", stdout(&output));
    assert_eq!(acked(), "-");
    assert_exit(&run("json", "kill -9 $$"), 128 + 9);
    assert_eq!(acked(), "-");

    let output = run("json", "echo $HIGHWATER_CURSOR $HIGHWATER_FRESH");
    assert_exit(&output, 0);
    assert_eq!(stdout(&output), format!("{} 1\n", cursor(5)));
    assert_eq!(acked(), cursor(5));

    tracked.volume.push(change("x y", Kind::Modified, ObjectType::File));
    let output = run("null", "cat; echo $HIGHWATER_FRESH");
    assert_exit(&output, 0);
    assert_eq!(stdout(&output), "x y\x000\n");
    assert_eq!(acked(), cursor(6));

    let output = tracked.run(&["run", ".", "--consumer", "c", "--", "/nowhere/command"]);
    assert_exit(&output, 1);
    assert!(stderr(&output).contains("cannot run /nowhere/command"), "{}", stderr(&output));
}

#[test]
fn run_passes_signals_on() {
    let tracked = Tracked::new();
    tracked.run(&["consumer", "add", ".", "c"]);
    let script = "trap 'echo got it; exit 9' TERM; echo ready; while :; do sleep 0.01; done";
    let mut command = tracked.command(&["run", ".", "--consumer", "c", "--", "sh", "-c", script]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    signal(&child, rustix::process::Signal::TERM);
    assert_eq!(lines.next().unwrap().unwrap(), "got it");
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

fn signal(child: &std::process::Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[test]
fn follow_prints_batches_and_ends_cleanly() {
    let tracked = Tracked::new();
    for end in ["int", "term", "pipe"] {
        let mut child =
            tracked.command(&["follow", ".", "--since", "now"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut line = || lines.next().unwrap().unwrap();
        assert!(line().contains("\"fresh\":false"));
        tracked.volume.push(change("a", Kind::Modified, ObjectType::File));
        assert!(line().starts_with("{\"cursor\":"));
        assert_eq!(line(), r#"{"path":"a","kind":"modified","type":"file","recovered":false,"usn":1}"#);
        match end {
            "int" => signal(&child, rustix::process::Signal::INT),
            "term" => signal(&child, rustix::process::Signal::TERM),
            _ => {
                drop(lines);
                tracked.volume.push(change("b", Kind::Modified, ObjectType::File));
            }
        }
        assert_eq!(child.wait().unwrap().code(), Some(0), "{end}");
    }
}

#[test]
fn a_reader_that_has_had_enough_is_no_reason_to_complain() {
    let tracked = Tracked::new();
    for number in 0..5000 {
        tracked.volume.push(change(format!("{number}"), Kind::Modified, ObjectType::File));
    }
    let mut command = tracked.command(&["changes", ".", "--since", &cursor(0)]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_exit(&output, 1);
    assert_eq!(stderr(&output), "");
}

#[test]
fn barrier_prints_the_cursor_and_keeps_its_deadline() {
    let tracked = with_odd_names();
    let output = tracked.run(&["barrier", "."]);
    assert_exit(&output, 0);
    assert_eq!(stdout(&output), format!("{}\n", cursor(5)));
    tracked.volume.stall(true);
    let output = tracked.run(&["barrier", ".", "--deadline", "0.05"]);
    assert_exit(&output, 1);
    assert_eq!(stdout(&output), "");
    assert!(
        stderr(&output).contains("the deadline passed while waiting for a write to a/b"),
        "{}",
        stderr(&output)
    );
    tracked.volume.stall(false);
}

#[test]
fn status_is_for_people_or_json() {
    let tracked = with_odd_names();
    let output = tracked.run(&["status", ".", "--json"]);
    assert_exit(&output, 0);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(status["directory"], tracked.directory.to_str().unwrap());
    assert_eq!(status["checkpoint"], 5);
    assert_eq!(stdout(&tracked.run(&["status", "--json"])), stdout(&output));
    let output = tracked.run(&["status"]);
    assert_exit(&output, 0);
    assert!(stdout(&output).starts_with(tracked.directory.to_str().unwrap()), "{}", stdout(&output));
    assert!(!stdout(&output).contains('\x1b'));
    // Nothing tracked is nothing wrong.
    let empty = tempfile::tempdir().unwrap();
    let output = highwater(empty.path()).arg("status").output().unwrap();
    assert_exit(&output, 0);
    assert_eq!(stdout(&output), "");
}

#[test]
fn stop_names_who_is_in_the_way() {
    let tracked = Tracked::new();
    tracked.volume.set_busy(true);
    let output = tracked.run(&["stop", "."]);
    assert_exit(&output, 1);
    let text = stderr(&output);
    assert!(text.contains("in use by bash (pid 7); tracking goes on"), "{text}");
    assert!(!tracked.volume.is_stopped());
    eventually("the tracker goes on", || tracked.run(&["status", "."]).status.success());
}
