//! The source on a real filesystem, with the real tracker: what a consumer is told. Needs root.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use highwater_inplace::{BarrierError, CarriedOver, Fanotify, Freeze, Holdup, OpenError, WriteBarrier};
use highwater_journal::Directory;
use highwater_tracker::{Config, Cursor, Line, LineKind, RequestError, Since, Tracker, VolumeFacts};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::TempDir;

/// A tmpfs of our own with the directory `t` in it, which is tracked, and `o` beside it.
struct Scratch {
    home: TempDir,
}

impl Scratch {
    fn new() -> Self {
        Self::mounted(|mount| format!("mount -t tmpfs none {mount}"))
    }

    /// On ext4: on tmpfs every file that is open for reading and writing counts as mapped.
    fn ext4() -> Self {
        Self::mounted(|mount| {
            format!(
                "truncate -s 64M {mount}.img; mkfs.ext4 -q -F {mount}.img; mount -o loop {mount}.img {mount}"
            )
        })
    }

    fn mounted(command: impl FnOnce(std::path::Display<'_>) -> String) -> Self {
        let scratch = Self { home: tempfile::tempdir().unwrap() };
        let mount = scratch.mount_point();
        fs::create_dir(&mount).unwrap();
        sh(&command(mount.display()));
        fs::create_dir(scratch.tree()).unwrap();
        fs::create_dir(scratch.outside()).unwrap();
        scratch
    }

    fn mount_point(&self) -> PathBuf {
        self.home.path().join("mnt")
    }

    fn tree(&self) -> PathBuf {
        self.mount_point().join("t")
    }

    fn outside(&self) -> PathBuf {
        self.mount_point().join("o")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.mount_point()).stderr(Stdio::null()).status();
    }
}

fn sh(command: &str) {
    let output = Command::new("sh").arg("-ec").arg(command).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

type Act = Box<dyn FnMut() -> Result<CarriedOver, BarrierError> + Send>;

/// A barrier that does what a test wants.
#[derive(Clone)]
struct Scripted(Arc<Mutex<Act>>);

impl Scripted {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Box::new(|| Ok(CarriedOver::default())))))
    }

    fn act(&self, act: impl FnMut() -> Result<CarriedOver, BarrierError> + Send + 'static) {
        *self.0.lock().unwrap() = Box::new(act);
    }

    fn rest(&self) {
        self.act(|| Ok(CarriedOver::default()));
    }
}

impl WriteBarrier for Scripted {
    fn wait(&self, _deadline: Option<Instant>) -> Result<CarriedOver, BarrierError> {
        (self.0.lock().unwrap())()
    }

    fn name(&self) -> &'static str {
        "scripted"
    }
}

struct Volume {
    source: Fanotify,
    tracker: Arc<Tracker>,
    barrier: Scripted,
    cursor: Cursor,
}

impl Volume {
    fn open(scratch: &Scratch) -> Self {
        Self::open_at(scratch, &scratch.tree())
    }

    fn open_at(scratch: &Scratch, directory: &Path) -> Self {
        let barrier = Scripted::new();
        let given = barrier.clone();
        let mut source = Fanotify::watch(directory, |_| Ok(Box::new(given))).unwrap();
        let facts = VolumeFacts {
            root: source.root_handle().clone(),
            directory: directory.to_owned(),
            boot_id: "boot".to_owned(),
            unbroken: false,
        };
        let state = Directory::open(scratch.home.path().join("state")).unwrap();
        let (tracker, _) = Tracker::open(state, facts, Config::default()).unwrap();
        source.start(&tracker).unwrap();
        let cursor = tracker.changes(&Since::Now, None).unwrap().cursor;
        let mut volume = Self { source, tracker, barrier, cursor };
        // The holder of the first cursor may be reading anything, so that every move is told again; then only what it was told.
        for _ in 0..2 {
            fs::write(directory.join("settle"), "x").unwrap();
            volume.told();
        }
        volume
    }

    /// The lines since the last call, as `kind path` or `renamed path from path`.
    fn told(&mut self) -> Vec<String> {
        let answer = self.tracker.changes(&Since::Cursor(self.cursor), None).unwrap();
        assert!(answer.fresh.is_none(), "{:?}", answer.fresh);
        self.cursor = answer.cursor;
        answer.lines.into_iter().map(show).collect()
    }

    fn told_in_any_order(&mut self) -> BTreeSet<String> {
        self.told().into_iter().collect()
    }
}

fn show(line: Line) -> String {
    let text = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    let path = text(&line.path);
    match line.kind {
        LineKind::Created => format!("created {path}"),
        LineKind::Modified => format!("modified {path}"),
        LineKind::Metadata => format!("metadata {path}"),
        LineKind::Renamed => format!("renamed {path} from {}", text(&line.from.unwrap())),
        LineKind::Deleted => format!("deleted {path}"),
        LineKind::Rescan if line.recursive => format!("rescan {path} all"),
        LineKind::Rescan => format!("rescan {path}"),
    }
}

fn set(lines: &[&str]) -> BTreeSet<String> {
    lines.iter().map(|line| (*line).to_owned()).collect()
}

/// Whether a file is told as changed, or everything is to be compared.
fn tells_changed(told: &[String], path: &str) -> bool {
    told.iter().any(|line| *line == format!("modified {path}") || line == "rescan . all")
}

/// Another process that holds a file; a line to it makes it write, and it answers with a line.
struct Writer {
    child: Child,
    answers: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Writer {
    fn start(program: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut writer = Self { child, answers };
        writer.hear();
        writer
    }

    fn hear(&mut self) {
        assert_eq!(self.answers.next().unwrap().unwrap(), "done");
    }

    fn write(&mut self) {
        writeln!(self.child.stdin.as_mut().unwrap(), "7").unwrap();
        self.hear();
    }

    fn end(mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

/// Maps the file that it is given, closes it, and stores a number into it for each line.
const MAPPING: &str = "import mmap,os,sys,ctypes
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
f = os.open(sys.argv[1], os.O_RDWR)
m = libc.mmap(None, 4096, 3, 1, f, ctypes.c_long(0))
os.close(f)
print('done', flush=True)
for line in sys.stdin:
    ctypes.memset(m, int(line), 9)
    print('done', flush=True)
";

#[test]
fn every_kind_of_change_is_told_by_its_names() {
    let scratch = Scratch::new();
    let t = scratch.tree();
    for file in ["written", "cut", "chmodded", "gone", "moved", "linked"] {
        fs::write(t.join(file), "old").unwrap();
    }
    fs::create_dir_all(t.join("d/e")).unwrap();
    fs::write(t.join("d/e/f"), "old").unwrap();
    let mut volume = Volume::open(&scratch);
    assert_eq!(volume.told(), [""; 0]);

    fs::write(t.join("new"), "x").unwrap();
    fs::create_dir(t.join("dir")).unwrap();
    fs::write(t.join("dir/inside"), "x").unwrap();
    std::os::unix::fs::symlink("nowhere", t.join("link")).unwrap();
    OpenOptions::new().append(true).open(t.join("written")).unwrap().write_all(b"more").unwrap();
    File::options().write(true).open(t.join("cut")).unwrap().set_len(1).unwrap();
    fs::set_permissions(t.join("chmodded"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::set_permissions(t.join("d"), fs::Permissions::from_mode(0o700)).unwrap();
    fs::remove_file(t.join("gone")).unwrap();
    fs::rename(t.join("moved"), t.join("d/moved")).unwrap();
    fs::hard_link(t.join("linked"), t.join("another")).unwrap();
    fs::rename(t.join("d/e"), t.join("g")).unwrap();
    fs::write(t.join("g/f"), "new").unwrap();
    assert_eq!(
        volume.told_in_any_order(),
        set(&[
            "created new",
            "created dir",
            "created dir/inside",
            "created link",
            "modified written",
            "modified cut",
            "metadata chmodded",
            "metadata d",
            "deleted gone",
            "renamed d/moved from moved",
            "created another",
            "renamed g from d/e",
            "modified g/f",
        ])
    );
    assert_eq!(volume.told(), [""; 0]);
}

#[test]
fn what_came_and_went_is_told_as_deleted_and_what_came_back_as_created() {
    let scratch = Scratch::new();
    let t = scratch.tree();
    fs::write(t.join("a"), "old").unwrap();
    let mut volume = Volume::open(&scratch);
    fs::write(t.join("temporary"), "x").unwrap();
    fs::remove_file(t.join("temporary")).unwrap();
    // The same name and object again and again: the kernel may merge it all into one event without an order.
    for _ in 0..2 {
        fs::hard_link(t.join("a"), t.join("b")).unwrap();
        fs::remove_file(t.join("b")).unwrap();
    }
    assert_eq!(volume.told_in_any_order(), set(&["deleted temporary", "deleted b"]));
    for _ in 0..2 {
        fs::hard_link(t.join("a"), t.join("b")).unwrap();
        fs::remove_file(t.join("b")).unwrap();
    }
    fs::hard_link(t.join("a"), t.join("b")).unwrap();
    assert_eq!(volume.told_in_any_order(), set(&["created b"]));
}

#[test]
fn a_rename_that_may_be_merged_into_an_earlier_one_is_told_by_where_things_are() {
    let scratch = Scratch::new();
    let t = scratch.tree();
    fs::create_dir(t.join("a")).unwrap();
    fs::write(t.join("a/f"), "x").unwrap();
    let mut volume = Volume::open(&scratch);
    fs::rename(t.join("a"), t.join("b")).unwrap();
    fs::rename(t.join("b"), t.join("a")).unwrap();
    fs::rename(t.join("a"), t.join("b")).unwrap();
    assert_eq!(volume.told(), ["renamed b from a"]);
    fs::write(t.join("b/f"), "y").unwrap();
    assert_eq!(volume.told(), ["modified b/f"]);
    // A consumer may have looked for b/f while b was away.
    fs::rename(t.join("b"), t.join("c")).unwrap();
    fs::rename(t.join("c"), t.join("b")).unwrap();
    let told = volume.told();
    assert!(told.contains(&"modified b/f".to_owned()), "{told:?}");
}

#[test]
fn of_an_exchange_both_objects_count_as_moved() {
    for directory_first in [true, false] {
        let scratch = Scratch::new();
        let t = scratch.tree();
        fs::create_dir_all(t.join("d/below")).unwrap();
        fs::write(t.join("file"), "x").unwrap();
        let mut volume = Volume::open(&scratch);
        // Both were told before, so both are told again when they have moved.
        fs::write(t.join("file"), "y").unwrap();
        fs::write(t.join("d/below/f"), "y").unwrap();
        assert_eq!(volume.told_in_any_order(), set(&["modified file", "created d/below/f"]));
        let (a, b) = if directory_first { ("d", "file") } else { ("file", "d") };
        renameat_with(CWD, t.join(a), CWD, t.join(b), RenameFlags::EXCHANGE).unwrap();
        let told = volume.told_in_any_order();
        let is_told = |lines: [&str; 2]| lines.iter().any(|line| told.contains(*line));
        assert!(is_told(["created d", "modified d"]), "the file: {told:?}");
        assert!(is_told(["rescan file all", "modified file/below/f"]), "the directory: {told:?}");
    }
}

#[test]
fn what_is_outside_is_dropped_and_what_comes_in_is_told_whole() {
    let scratch = Scratch::new();
    let (t, o) = (scratch.tree(), scratch.outside());
    fs::create_dir_all(o.join("d/below")).unwrap();
    fs::write(o.join("d/below/f"), "x").unwrap();
    fs::create_dir_all(t.join("e/below")).unwrap();
    let mut volume = Volume::open(&scratch);
    fs::write(o.join("d/below/f"), "y").unwrap();
    fs::write(o.join("new"), "y").unwrap();
    assert_eq!(volume.told(), [""; 0]);
    assert!(volume.source.counters().dropped >= 2);

    fs::rename(o.join("d"), t.join("d")).unwrap();
    assert_eq!(volume.told(), ["created d", "rescan d all"]);
    // Whoever compares a directory may be reading anything; what goes then may have been read by nobody.
    fs::write(t.join("settle"), "y").unwrap();
    volume.told();
    fs::rename(t.join("e"), o.join("e")).unwrap();
    fs::write(o.join("e/below/f"), "x").unwrap();
    assert_eq!(volume.told(), ["deleted e"]);
}

/// Nobody would want every batch to end with a rescan because a log is being written elsewhere on the filesystem.
#[test]
fn who_writes_outside_is_nobodys_concern() {
    for scratch in [Scratch::new(), Scratch::ext4()] {
        let (t, o) = (scratch.tree(), scratch.outside());
        // Tracked by a bind mount: what is outside is not to be seen from there, but from the holder.
        let bound = scratch.home.path().join("bound");
        fs::create_dir(&bound).unwrap();
        sh(&format!("mount --bind {} {}", t.display(), bound.display()));
        for directory in [&t, &bound] {
            let mut volume = Volume::open_at(&scratch, directory);
            let mut log = File::create(o.join("log")).unwrap();
            fs::write(o.join("mapped"), [0; 4096]).unwrap();
            let mut mapped = Writer::start("python3", &["-c", MAPPING, o.join("mapped").to_str().unwrap()]);
            for turn in 0..3 {
                writeln!(log, "something").unwrap();
                mapped.write();
                fs::write(t.join(format!("f{turn}")), "x").unwrap();
                assert_eq!(volume.told(), [format!("created f{turn}")]);
                fs::remove_file(t.join(format!("f{turn}"))).unwrap();
                assert_eq!(volume.told(), [format!("deleted f{turn}")]);
            }
            mapped.end();
            drop(log);
            assert_eq!(volume.told(), [""; 0]);
            fs::remove_file(o.join("mapped")).unwrap();
            drop(volume);
            let _ = fs::remove_dir_all(scratch.home.path().join("state"));
        }
        sh(&format!("umount {}", bound.display()));
    }
}

#[test]
fn what_was_outside_for_a_while_is_compared_whole() {
    let scratch = Scratch::new();
    let (t, o) = (scratch.tree(), scratch.outside());
    fs::create_dir_all(t.join("d/below")).unwrap();
    fs::write(t.join("d/below/f"), "x").unwrap();
    let mut volume = Volume::open(&scratch);
    fs::rename(t.join("d"), o.join("d")).unwrap();
    // Until the reader has seen that it is outside, and has dropped what happened there.
    let deadline = Instant::now() + Duration::from_secs(10);
    while volume.source.counters().dropped == 0 {
        fs::write(o.join("d/below/f"), "y").unwrap();
        assert!(Instant::now() < deadline, "the reader drops nothing");
        std::thread::sleep(Duration::from_millis(5));
    }
    fs::rename(o.join("d"), t.join("d")).unwrap();
    let told = volume.told();
    assert!(told.contains(&"rescan d/below all".to_owned()), "{told:?}");
}

#[test]
fn a_file_that_was_outside_for_a_while_is_taken_again() {
    let scratch = Scratch::new();
    let (t, o) = (scratch.tree(), scratch.outside());
    fs::write(t.join("a"), "x").unwrap();
    let mut volume = Volume::open(&scratch);
    fs::rename(t.join("a"), o.join("a")).unwrap();
    fs::write(o.join("a"), "y").unwrap();
    fs::rename(o.join("a"), t.join("b")).unwrap();
    assert_eq!(volume.told(), ["renamed b from a", "modified b"]);
}

#[test]
fn what_is_too_deep_for_a_path_is_told_all_the_same() {
    let scratch = Scratch::new();
    let name = "n".repeat(200);
    // Made from the bottom up: each path is short then.
    for _ in 0..30 {
        fs::create_dir(scratch.outside().join("top")).unwrap();
        if scratch.outside().join("below").exists() {
            fs::rename(scratch.outside().join("below"), scratch.outside().join("top").join(&name)).unwrap();
        }
        fs::rename(scratch.outside().join("top"), scratch.outside().join("below")).unwrap();
    }
    fs::rename(scratch.outside().join("below"), scratch.tree().join("deep")).unwrap();
    let mut volume = Volume::open(&scratch);
    let program = format!(
        "import os\nos.chdir('{}/deep')\nfor i in range(29): os.chdir('{name}')\nopen('f','w').write('x')\nos.mkdir('d')",
        scratch.tree().display()
    );
    assert!(Command::new("python3").arg("-c").arg(program).status().unwrap().success());
    let told = volume.told();
    let paths: Vec<usize> = told.iter().map(String::len).collect();
    assert!(paths.iter().all(|length| *length > 29 * 201), "{paths:?}");
    assert_eq!(told.len(), 2);
}

#[test]
fn a_write_by_a_name_that_is_gone_is_told() {
    // The kernel puts a mark at the end of a name that is gone, and the long one has no room for it. tmpfs gives another name.
    for (name, scratch) in [("b", Scratch::new()), (&"b".repeat(255), Scratch::ext4())] {
        let t = scratch.tree();
        fs::write(t.join("a"), "x").unwrap();
        fs::hard_link(t.join("a"), t.join(name)).unwrap();
        let mut volume = Volume::open(&scratch);
        let by_name = OpenOptions::new().append(true).open(t.join(name)).unwrap();
        fs::remove_file(t.join(name)).unwrap();
        assert!(volume.told().contains(&format!("deleted {name}")));
        (&by_name).write_all(b"more").unwrap();
        let told = volume.told();
        assert!(tells_changed(&told, "a"), "{told:?}");
    }
}

#[test]
fn a_file_that_is_written_by_a_name_that_goes_in_the_same_batch_is_told() {
    for scratch in [Scratch::new(), Scratch::ext4()] {
        let t = scratch.tree();
        fs::create_dir(t.join("d")).unwrap();
        for way in 0..3 {
            fs::write(t.join("a"), "x").unwrap();
            fs::hard_link(t.join("a"), t.join("d/b")).unwrap();
            let mut volume = Volume::open(&scratch);
            OpenOptions::new().append(true).open(t.join("a")).unwrap().write_all(b"more").unwrap();
            match way {
                0 => fs::remove_file(t.join("a")).unwrap(),
                1 => {
                    fs::rename(t.join("a"), t.join("c")).unwrap();
                    fs::remove_file(t.join("c")).unwrap();
                }
                _ => {
                    fs::write(t.join("c"), "other").unwrap();
                    renameat_with(CWD, t.join("a"), CWD, t.join("c"), RenameFlags::EXCHANGE).unwrap();
                    fs::remove_file(t.join("c")).unwrap();
                    fs::remove_file(t.join("a")).unwrap();
                }
            }
            let told = volume.told();
            assert!(tells_changed(&told, "d/b"), "way {way}: {told:?}");
            drop(volume);
            fs::remove_file(t.join("d/b")).unwrap();
        }
    }
}

/// A batch tells one of two names, and that goes before the consumer comes to read it.
#[test]
fn a_file_whose_name_goes_after_it_was_told_is_told_by_the_other() {
    for scratch in [Scratch::new(), Scratch::ext4()] {
        let t = scratch.tree();
        fs::create_dir(t.join("d")).unwrap();
        for way in 0..4 {
            fs::write(t.join("a"), "x").unwrap();
            fs::write(t.join("c"), "other").unwrap();
            fs::create_dir(scratch.outside().join("e")).unwrap();
            fs::hard_link(t.join("a"), t.join("d/b")).unwrap();
            let mut volume = Volume::open(&scratch);
            OpenOptions::new().append(true).open(t.join("a")).unwrap().write_all(b"more").unwrap();
            assert_eq!(volume.told(), ["modified a"]);
            match way {
                0 => fs::remove_file(t.join("a")).unwrap(),
                1 => fs::rename(t.join("c"), t.join("a")).unwrap(),
                2 => fs::rename(t.join("a"), scratch.outside().join("a")).unwrap(),
                _ => {
                    // From here on the consumer may be reading anything.
                    fs::rename(scratch.outside().join("e"), t.join("e")).unwrap();
                    assert_eq!(volume.told(), ["created e", "rescan e all"]);
                    fs::rename(t.join("c"), t.join("a")).unwrap();
                }
            }
            let told = volume.told();
            assert!(tells_changed(&told, "d/b"), "way {way}: {told:?}");
            drop(volume);
            fs::remove_file(t.join("d/b")).unwrap();
            let _ = fs::remove_dir(scratch.outside().join("e"));
        }
    }
}

/// Nothing more is told of a file that had one name, or the tree would have to be compared for each one that is delivered.
#[test]
fn a_file_that_is_made_and_moved_out_costs_its_lines() {
    let scratch = Scratch::ext4();
    let (t, o) = (scratch.tree(), scratch.outside());
    let mut volume = Volume::open(&scratch);
    for _ in 0..3 {
        fs::write(t.join("f"), "x").unwrap();
        assert_eq!(volume.told(), ["created f"]);
        fs::rename(t.join("f"), o.join("f")).unwrap();
        assert_eq!(volume.told(), ["deleted f"]);
        fs::create_dir(t.join("d")).unwrap();
        fs::write(t.join("d/f"), "x").unwrap();
        assert_eq!(volume.told(), ["created d", "created d/f"]);
        fs::rename(t.join("d"), o.join("d")).unwrap();
        assert_eq!(volume.told(), ["deleted d"]);
        fs::remove_dir_all(o.join("d")).unwrap();
        fs::write(t.join("f"), "x").unwrap();
        fs::rename(t.join("f"), o.join("f")).unwrap();
        fs::write(t.join("g"), "x").unwrap();
        let told = volume.told();
        assert!(!told.contains(&"rescan . all".to_owned()), "{told:?}");
        fs::remove_file(t.join("g")).unwrap();
        volume.told();
    }
}

/// ext4 answers that it has no memory while an object is made with the number of one that is gone.
#[test]
fn numbers_that_are_used_again_at_once_do_not_fail_a_checkpoint() {
    let scratch = Scratch::ext4();
    let t = scratch.tree();
    let mut volume = Volume::open(&scratch);
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for number in 0..3 {
            let (t, over) = (&t, &over);
            scope.spawn(move || {
                let directory = t.join(format!("d{number}"));
                fs::create_dir(&directory).unwrap();
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    for file in 0..40 {
                        fs::write(directory.join(format!("f{file}")), "x").unwrap();
                    }
                    for file in 0..40 {
                        fs::remove_file(directory.join(format!("f{file}"))).unwrap();
                    }
                }
            });
        }
        let deadline = Instant::now() + Duration::from_secs(3);
        let mut outcome = Ok(());
        while Instant::now() < deadline && outcome.is_ok() {
            outcome = volume
                .tracker
                .changes(&Since::Cursor(volume.cursor), None)
                .map(|answer| volume.cursor = answer.cursor);
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        outcome.unwrap();
    });
}

#[test]
fn a_batch_holds_what_ends_while_the_barrier_waits() {
    let scratch = Scratch::new();
    let t = scratch.tree();
    fs::write(t.join("a"), "x").unwrap();
    let mut volume = Volume::open(&scratch);
    let late = t.join("a");
    volume.barrier.act(move || {
        fs::write(&late, "a write in flight ends now").unwrap();
        Ok(CarriedOver::default())
    });
    assert_eq!(volume.told(), ["modified a"]);
}

#[test]
fn a_barrier_that_does_not_hold_costs_nothing_but_time() {
    let scratch = Scratch::new();
    let mut volume = Volume::open(&scratch);
    fs::write(scratch.tree().join("a"), "x").unwrap();
    let call = Some("pwrite64".to_owned());
    let holdup = Holdup { tid: 4711, command: "dd".to_owned(), call };
    volume.barrier.act(move || Err(BarrierError::Deadline { holdups: vec![holdup.clone()] }));
    let error = volume.tracker.changes(&Since::Cursor(volume.cursor), None).unwrap_err();
    assert!(matches!(error, RequestError::Deadline { .. }), "{error:?}");
    assert!(error.to_string().ends_with(": held up by dd (thread 4711) in pwrite64"), "{error}");
    volume.barrier.act(|| Err(BarrierError::Deadline { holdups: Vec::new() }));
    let error = volume.tracker.changes(&Since::Cursor(volume.cursor), None).unwrap_err();
    assert!(error.to_string().ends_with("modifications in flight"), "{error}");
    volume.barrier.act(|| Err(BarrierError::Failed { source: io::Error::other("broken") }));
    let error = volume.tracker.changes(&Since::Cursor(volume.cursor), None).unwrap_err();
    assert!(matches!(error, RequestError::Source { .. }), "{error:?}");
    volume.barrier.rest();
    assert_eq!(volume.told(), ["created a"]);
}

#[test]
fn what_a_barrier_carries_over_is_told_twice() {
    let scratch = Scratch::new();
    let file = scratch.tree().join("a");
    fs::write(&file, "x").unwrap();
    let mut volume = Volume::open(&scratch);
    let handle = Fanotify::handle_of(&file).unwrap();
    volume.barrier.act(move || Ok(CarriedOver { objects: vec![handle.clone()], ..CarriedOver::default() }));
    assert_eq!(volume.told(), ["modified a"]);
    volume.barrier.rest();
    assert_eq!(volume.told(), ["modified a"]);
    assert_eq!(volume.told(), [""; 0]);
}

#[test]
fn a_mapped_file_is_told_while_it_is_mapped_and_once_more() {
    let scratch = Scratch::ext4();
    let path = scratch.tree().join("a");
    fs::write(&path, [0; 4096]).unwrap();
    let mut volume = Volume::open(&scratch);
    let mut writer = Writer::start("python3", &["-c", MAPPING, path.to_str().unwrap()]);
    assert_eq!(volume.told(), ["modified a"]);
    writer.write();
    assert_eq!(volume.told(), ["modified a"]);
    // The directory above it changes its name: the file is found all the same.
    fs::rename(&path, scratch.tree().join("b")).unwrap();
    assert_eq!(volume.told(), ["renamed b from a", "modified b"]);
    writer.write();
    writer.end();
    assert_eq!(volume.told(), ["modified b"], "a store before it was unmapped leaves no trace");
    assert_eq!(volume.told(), [""; 0]);
}

#[test]
fn an_idle_file_that_is_open_for_writing_is_not_told() {
    let scratch = Scratch::new();
    let path = scratch.tree().join("a");
    fs::write(&path, "x").unwrap();
    let mut volume = Volume::open(&scratch);
    let script =
        format!("exec 3>>{}; echo done; while read l; do echo $l >&3; echo done; done", path.display());
    let mut writer = Writer::start("sh", &["-c", &script]);
    // Opened since the last look: it may have been written to in between.
    let _ = volume.told();
    // Where timestamps are coarse (before 6.13), what was written in the last ticks is told once more.
    let ticks = Duration::from_millis(50);
    std::thread::sleep(ticks);
    let _ = volume.told();
    assert_eq!(volume.told(), [""; 0]);
    assert_eq!(volume.source.counters().open_writers, 1);
    writer.write();
    std::thread::sleep(ticks);
    assert_eq!(volume.told(), ["modified a"]);
    assert_eq!(volume.told(), [""; 0]);
    writer.end();
}

/// libaio: the kernel tells of such a write by no event.
fn write_without_an_event(file: &File, text: &[u8]) {
    #[repr(C)]
    #[derive(Default)]
    struct Request {
        data: u64,
        key: u32,
        flags: u32,
        operation: u16,
        priority: i16,
        descriptor: u32,
        buffer: u64,
        length: u64,
        offset: i64,
        reserved: u64,
        more: [u32; 2],
    }
    const WRITE: u16 = 1;
    let request = Request {
        operation: WRITE,
        descriptor: file.as_raw_fd().unsigned_abs(),
        buffer: text.as_ptr().addr() as u64,
        length: text.len() as u64,
        ..Request::default()
    };
    let mut context = 0u64;
    let mut result = [0u64; 4];
    let mut requests = [&raw const request];
    // SAFETY: the layouts are the kernel's, and all of it outlives the last call, which waits for the write.
    unsafe {
        assert_eq!(libc::syscall(libc::SYS_io_setup, 1, &raw mut context), 0);
        assert_eq!(libc::syscall(libc::SYS_io_submit, context, 1, requests.as_mut_ptr()), 1);
        let none = std::ptr::null::<libc::timespec>();
        assert_eq!(libc::syscall(libc::SYS_io_getevents, context, 1, 1, result.as_mut_ptr(), none), 1);
        libc::syscall(libc::SYS_io_destroy, context);
    }
    assert_eq!(result[2], text.len() as u64, "the write failed");
}

fn for_writing(path: &Path) -> File {
    OpenOptions::new().write(true).open(path).unwrap()
}

/// A write that begins after the barrier must not be in the sample that the next checkpoint compares with: its data may be in flight.
#[test]
fn what_can_change_without_an_event_is_sampled_before_the_barrier() {
    let scratch = Scratch::ext4();
    let path = scratch.tree().join("a");
    fs::write(&path, "x").unwrap();
    let mut volume = Volume::open(&scratch);
    let file = for_writing(&path);
    let _ = volume.told();
    let _ = volume.told();
    assert_eq!(volume.told(), [""; 0]);
    let in_barrier = file.try_clone().unwrap();
    volume.barrier.act(move || {
        write_without_an_event(&in_barrier, b"after the sample");
        Ok(CarriedOver::default())
    });
    assert_eq!(volume.told(), [""; 0], "the sample was taken after the barrier had begun");
    volume.barrier.rest();
    assert_eq!(volume.told(), ["modified a"]);
    assert_eq!(volume.told(), [""; 0]);
}

#[test]
fn a_thread_with_descriptors_of_its_own_is_found() {
    let scratch = Scratch::ext4();
    let path = scratch.tree().join("a");
    fs::write(&path, "x").unwrap();
    let mut volume = Volume::open(&scratch);
    assert_eq!(volume.source.search_name(), "bpf");
    let (ready, go) = (Arc::new(std::sync::Barrier::new(2)), Arc::new(std::sync::Barrier::new(2)));
    let thread = std::thread::spawn({
        let (ready, go) = (ready.clone(), go.clone());
        move || {
            // SAFETY: from here on the thread has a table of descriptors of its own.
            assert_eq!(unsafe { libc::unshare(libc::CLONE_FILES) }, 0);
            let file = for_writing(&path);
            ready.wait();
            go.wait();
            write_without_an_event(&file, b"y");
            ready.wait();
            go.wait();
        }
    });
    ready.wait();
    let _ = volume.told();
    assert_eq!(volume.source.counters().open_writers, 1);
    let _ = volume.told();
    go.wait();
    ready.wait();
    assert_eq!(volume.told(), ["modified a"]);
    go.wait();
    thread.join().unwrap();
}

/// Nobody can find a descriptor that is on its way through a socket. When it comes out, what was done by it has to be told.
#[test]
fn what_was_written_before_its_descriptor_was_sent_is_told_when_it_is_closed() {
    let scratch = Scratch::ext4();
    let path = scratch.tree().join("a");
    fs::write(&path, "x").unwrap();
    let mut volume = Volume::open(&scratch);
    let (sender, receiver) = std::os::unix::net::UnixStream::pair().unwrap();
    let file = for_writing(&path);
    write_without_an_event(&file, b"y");
    send_descriptor(&sender, &file);
    drop(file);
    let mut told = Vec::new();
    for _ in 0..4 {
        told.extend(volume.told());
        std::thread::sleep(Duration::from_millis(30));
    }
    // Nobody has it open as far as can be seen.
    assert_eq!(told, [""; 0]);
    // With what is in it, which is closed by that.
    drop((sender, receiver));
    let deadline = Instant::now() + Duration::from_secs(10);
    while told.is_empty() && Instant::now() < deadline {
        told.extend(volume.told());
    }
    assert_eq!(told, ["modified a"]);
}

fn send_descriptor(to: &std::os::unix::net::UnixStream, file: &File) {
    let mut space = [0u64; 4];
    let mut byte = 0u8;
    let mut part = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: a message of one byte with one descriptor beside it; all of it outlives the call.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = space.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as usize;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as usize;
        libc::CMSG_DATA(header).cast::<i32>().write_unaligned(file.as_raw_fd());
        assert_eq!(libc::sendmsg(to.as_raw_fd(), &raw const message, 0), 1);
    }
}

#[test]
fn what_is_in_a_subvolume_is_told_and_a_snapshot_is_told_whole() {
    let scratch = Scratch::mounted(|mount| {
        format!(
            "truncate -s 256M {mount}.img; mkfs.btrfs -q -f {mount}.img; mount -o loop {mount}.img {mount}"
        )
    });
    let t = scratch.tree();
    sh(&format!("btrfs -q subvolume create {}/s", t.display()));
    fs::write(t.join("s/f"), "x").unwrap();
    let mut volume = Volume::open(&scratch);
    fs::write(t.join("s/f"), "y").unwrap();
    fs::write(t.join("s/g"), "y").unwrap();
    assert_eq!(volume.told_in_any_order(), set(&["modified s/f", "created s/g"]));
    // Without an event: found by its descriptor.
    let file = for_writing(&t.join("s/f"));
    let _ = volume.told();
    let _ = volume.told();
    write_without_an_event(&file, b"z");
    assert_eq!(volume.told(), ["modified s/f"]);
    drop(file);
    let _ = volume.told();
    sh(&format!("btrfs -q subvolume snapshot {0}/s {0}/snapshot", t.display()));
    let told = volume.told();
    assert!(told.contains(&"rescan snapshot all".to_owned()), "{told:?}");
    fs::write(t.join("snapshot/f"), "in the copy").unwrap();
    assert_eq!(volume.told(), ["modified snapshot/f"]);
}

#[test]
fn what_is_written_behind_a_loop_device_is_told() {
    let scratch = Scratch::ext4();
    let (disk, inner) = (scratch.tree().join("disk"), scratch.home.path().join("inner"));
    fs::create_dir(&inner).unwrap();
    sh(&format!(
        "truncate -s 8M {0}; mkfs.ext4 -q -F {0}; mount -o loop {0} {1}",
        disk.display(),
        inner.display()
    ));
    let mut volume = Volume::open(&scratch);
    let _ = volume.told();
    fs::write(inner.join("f"), "x").unwrap();
    sh(&format!("sync -f {}", inner.display()));
    let told = volume.told();
    sh(&format!("umount {}", inner.display()));
    assert_eq!(told, ["modified disk"]);
}

#[test]
fn a_filesystem_that_is_read_only_for_a_while_goes_on_being_tracked() {
    let scratch = Scratch::ext4();
    let mut volume = Volume::open(&scratch);
    let at = scratch.mount_point().display().to_string();
    fs::write(scratch.tree().join("before"), "x").unwrap();
    sh(&format!("mount -o remount,ro {at}"));
    assert_eq!(volume.told(), ["created before"]);
    assert_eq!(volume.told(), [""; 0]);
    sh(&format!("mount -o remount,rw {at}"));
    fs::write(scratch.tree().join("after"), "x").unwrap();
    assert_eq!(volume.told(), ["created after"]);
}

#[test]
fn a_change_through_another_mount_is_told() {
    let scratch = Scratch::new();
    let t = scratch.tree();
    fs::write(t.join("a"), "x").unwrap();
    fs::write(t.join("b"), "x").unwrap();
    let mut volume = Volume::open(&scratch);
    let elsewhere = scratch.home.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let (from, to) = (t.display(), elsewhere.display());
    // A bind mount in a mount namespace of its own.
    sh(&format!("unshare -m sh -ec 'mount --bind {from} {to}; echo more >> {to}/a; mv {to}/b {to}/c'"));
    assert_eq!(volume.told_in_any_order(), set(&["modified a", "renamed c from b"]));
}

#[test]
fn what_changed_while_nobody_tracked_is_caught_up_with() {
    let scratch = Scratch::new();
    let t = scratch.tree();
    fs::create_dir(t.join("d")).unwrap();
    fs::write(t.join("d/f"), "x").unwrap();
    let mut volume = Volume::open(&scratch);
    fs::write(t.join("told"), "x").unwrap();
    assert_eq!(volume.told(), ["created told"]);
    let cursor = volume.cursor;
    fs::write(t.join("d/f"), "lost in the queue of a tracker that is killed").unwrap();
    drop(volume);
    fs::write(t.join("d/g"), "in the gap").unwrap();

    let mut volume = Volume::open(&scratch);
    volume.cursor = cursor;
    let told = volume.told();
    assert!(told.iter().any(|line| line.starts_with("rescan d")), "{told:?}");
    assert!(told.contains(&"modified d/f".to_owned()), "{told:?}");
}

/// The root of an XFS filesystem: its inodes are read at once (bulkstat), and only what has changed is looked at.
#[test]
fn what_changed_on_the_whole_of_an_xfs_filesystem_is_caught_up_with_and_nothing_else() {
    let scratch = Scratch::mounted(|mount| {
        format!("truncate -s 400M {mount}.img; mkfs.xfs -q -f {mount}.img; mount -o loop {mount}.img {mount}")
    });
    let root = scratch.mount_point();
    // More than one call returns, and in several allocation groups: each new directory goes to another one.
    for directory in 0..8 {
        fs::create_dir(root.join(format!("d{directory}"))).unwrap();
        for file in 0..700 {
            fs::write(root.join(format!("d{directory}/{file}")), "x").unwrap();
        }
    }
    std::thread::sleep(Duration::from_millis(3500)); // A gap is widened by three seconds: clocks may differ.
    let volume = Volume::open_at(&scratch, &root);
    volume.tracker.advance_horizon().unwrap();
    let cursor = volume.cursor;
    drop(volume);
    std::thread::sleep(Duration::from_millis(3500));
    let mut expected = BTreeSet::new();
    for directory in 0..8 {
        for file in [3, 699] {
            fs::write(root.join(format!("d{directory}/{file}")), "in the gap").unwrap();
            expected.insert(format!("modified d{directory}/{file}"));
        }
    }
    fs::remove_file(root.join("d7/17")).unwrap();
    // All of it: the root has changed as well, so that it may have been moved there.
    expected.insert("rescan d7 all".to_owned());
    let mut volume = Volume::open_at(&scratch, &root);
    volume.cursor = cursor;
    let mut told = volume.told_in_any_order();
    // By the opening itself, each time.
    told.remove("modified settle");
    told.remove("rescan .");
    assert_eq!(told, expected);
}

#[test]
fn tracking_is_in_nobodys_way_at_an_unmount() {
    let scratch = Scratch::new();
    let volume = Volume::open(&scratch);
    sh(&format!("umount {}", scratch.mount_point().display()));
    drop(volume);
}

#[test]
fn a_mount_over_a_directory_does_not_hide_what_is_below_it() {
    let scratch = Scratch::new();
    let covered = scratch.tree().join("d/covered");
    fs::create_dir_all(&covered).unwrap();
    let mut volume = Volume::open(&scratch);
    fs::write(covered.join("f"), "x").unwrap();
    sh(&format!("mount -t tmpfs none {}", covered.display()));
    let told = volume.told();
    sh(&format!("umount {}", covered.display()));
    assert_eq!(told, ["created d/covered/f"]);
}

#[test]
fn a_filesystem_that_cannot_be_watched_is_refused_with_its_name() {
    let scratch = Scratch::new();
    let home = scratch.mount_point();
    let merged = home.join("m");
    for directory in ["l", "u", "w", "m"] {
        fs::create_dir(home.join(directory)).unwrap();
    }
    let at = home.display();
    sh(&format!("mount -t overlay -o lowerdir={at}/l,upperdir={at}/u,workdir={at}/w none {at}/m"));
    let refused = Fanotify::watch(&merged, |_| Ok(Box::new(Scripted::new())));
    sh(&format!("umount {at}/m"));
    match refused {
        Err(OpenError::Unfit { filesystem, .. }) => assert_eq!(filesystem, "overlay"),
        Err(other) => panic!("{other:?}"),
        Ok(_) => panic!("overlay was taken"),
    }
    let refused = Freeze::new(File::open(&home).unwrap()).unwrap_err();
    assert_eq!(refused.raw_os_error(), Some(libc::EOPNOTSUPP), "tmpfs cannot be frozen");
}

#[test]
fn freezing_waits_for_whoever_has_frozen_before_and_leaves_the_filesystem_writable() {
    let home = tempfile::tempdir().unwrap();
    let (image, mount) = (home.path().join("image"), home.path().join("mnt"));
    File::create(&image).unwrap().set_len(64 << 20).unwrap();
    fs::create_dir(&mount).unwrap();
    let (image, at): (_, &Path) = (image.display(), &mount);
    let at = at.display();
    sh(&format!("mkfs.ext4 -q -F {image}; mount -o loop {image} {at}"));
    let barrier = Freeze::new(File::open(&mount).unwrap()).unwrap();
    barrier.wait(None).unwrap();
    fs::write(mount.join("f"), "x").unwrap();
    sh(&format!("fsfreeze -f {at}"));
    let waited = barrier.wait(Some(Instant::now() + Duration::from_millis(50)));
    sh(&format!("fsfreeze -u {at}"));
    assert!(matches!(waited, Err(BarrierError::Deadline { .. })), "{waited:?}");
    barrier.wait(Some(Instant::now() + Duration::from_secs(10))).unwrap();
    fs::write(mount.join("f"), "y").unwrap();
    drop(barrier);
    sh(&format!("umount {at}"));
}
