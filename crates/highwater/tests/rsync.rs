//! The example of `highwater run --help`, with a real rsync: a copy that is kept by lists of paths alone equals the tree. Needs root,
//! /dev/fuse and rsync, and fails without.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use support::tree::Tree;
use support::{assert_exit, stderr};

/// As `highwater run --help` says it.
const RSYNC: [&str; 7] =
    ["rsync", "-a", "--ignore-times", "--force", "--delete", "--from0", "--files-from=-"];

/// Keeps `copy` by the list of paths.
fn keep(tree: &Tree) {
    let mut arguments = vec!["run", "tree", "--consumer", "rsync", "--format", "null", "--"];
    arguments.extend(RSYNC);
    arguments.extend(["--delete-missing-args", "tree/", "copy/"]);
    let output = tree.run(&arguments);
    assert_exit(&output, 0);
    assert_eq!(stderr(&output), "", "rsync has nothing to complain of");
}

fn begin() -> Tree {
    let mut tree = Tree::new();
    fs::create_dir(tree.home().join("copy")).unwrap();
    tree.track();
    tree.done(&["consumer", "add", "tree", "rsync"]);
    let first = tree.run(&["run", "tree", "--consumer", "rsync", "--format", "null", "--", "false"]);
    assert_exit(&first, 4);
    let cursor = tree.done(&["barrier", "tree"]);
    tree.done(&["ack", "tree", "--consumer", "rsync", cursor.trim()]);
    tree
}

/// Path: mode, and data or the goal of a symlink.
fn contents(root: &Path) -> BTreeMap<PathBuf, (u32, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let data = if metadata.is_dir() {
                waiting.push(path.clone());
                Vec::new()
            } else if metadata.is_symlink() {
                fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            found.insert(path.strip_prefix(root).unwrap().to_owned(), (metadata.permissions().mode(), data));
        }
    }
    found
}

#[track_caller]
fn assert_kept(tree: &Tree, what: &str) {
    let (there, copy) = (contents(&tree.dir()), contents(&tree.home().join("copy")));
    for (path, is) in &there {
        assert_eq!(copy.get(path), Some(is), "{what}: {}", path.display());
    }
    let stale: Vec<_> = copy.keys().filter(|path| !there.contains_key(*path)).collect();
    assert!(stale.is_empty(), "{what}: stale {stale:?}");
}

/// Changes the tree, keeps the copy, compares.
#[track_caller]
fn case(what: &str, before: impl Fn(&Path), change: impl Fn(&Path)) {
    let tree = begin();
    before(&tree.dir());
    keep(&tree);
    assert_kept(&tree, "before");
    change(&tree.dir());
    keep(&tree);
    assert_kept(&tree, what);
}

fn a_directory(dir: &Path) {
    fs::create_dir_all(dir.join("d/below")).unwrap();
    fs::write(dir.join("d/x"), "x").unwrap();
    fs::write(dir.join("d/below/y"), "y").unwrap();
}

#[test]
fn a_new_directory_at_the_name_of_a_moved_one_is_empty() {
    case("moved, and made anew", a_directory, |dir| {
        fs::rename(dir.join("d"), dir.join("e")).unwrap();
        fs::create_dir(dir.join("d")).unwrap();
        fs::write(dir.join("d/new"), "new").unwrap();
        fs::remove_file(dir.join("e/x")).unwrap();
    });
}

#[test]
fn a_new_directory_at_the_name_of_a_removed_one_is_empty() {
    case("removed, and made anew", a_directory, |dir| {
        fs::remove_dir_all(dir.join("d")).unwrap();
        fs::create_dir(dir.join("d")).unwrap();
    });
}

#[test]
fn what_was_taken_out_of_a_moved_directory_does_not_stay_at_its_old_name() {
    case("moved, and things moved out of it", a_directory, |dir| {
        fs::rename(dir.join("d"), dir.join("e")).unwrap();
        fs::rename(dir.join("e/below"), dir.join("f")).unwrap();
        fs::create_dir_all(dir.join("d/below")).unwrap();
    });
}

#[test]
fn two_directories_that_change_places_are_told_with_what_is_in_them() {
    case(
        "exchanged",
        |dir| {
            a_directory(dir);
            fs::create_dir(dir.join("other")).unwrap();
            fs::write(dir.join("other/z"), "z").unwrap();
        },
        |dir| {
            let (one, other) = (dir.join("d"), dir.join("other"));
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, other, flags).unwrap();
        },
    );
}

#[test]
fn a_directory_and_a_file_take_each_others_names() {
    case(
        "a file where a directory was",
        |dir| {
            a_directory(dir);
            fs::write(dir.join("f"), "f").unwrap();
        },
        |dir| {
            fs::rename(dir.join("d"), dir.join("t")).unwrap();
            fs::rename(dir.join("f"), dir.join("d")).unwrap();
            fs::rename(dir.join("t"), dir.join("f")).unwrap();
        },
    );
}

#[test]
fn random_changes() {
    let seeds = std::env::var("RSYNC_SEEDS").map_or(4, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        let mut rng = Rng::with_seed(seed);
        let tree = begin();
        for round in 0..12 {
            for _ in 0..rng.usize(1..25) {
                change(&tree.dir(), &mut rng);
            }
            keep(&tree);
            assert_kept(&tree, &format!("seed {seed}, round {round}"));
        }
    }
}

/// One operation on a few names, three deep. Whether it is possible does not matter.
fn change(dir: &Path, rng: &mut Rng) {
    let path = |rng: &mut Rng| {
        let mut path = dir.to_owned();
        for _ in 0..rng.usize(1..4) {
            path.push(["a", "b", "c", "d.e"][rng.usize(..4)]);
        }
        path
    };
    let (one, other) = (path(rng), path(rng));
    let _ = match rng.u32(0..12) {
        0..=2 => fs::create_dir(one),
        3..=5 => fs::write(one, format!("{}", rng.u64(..))),
        6..=8 => fs::rename(one, other),
        9 => fs::remove_dir_all(one),
        10 => fs::remove_file(one),
        _ if one.is_file() => fs::set_permissions(one, fs::Permissions::from_mode(0o600)),
        _ => std::os::unix::fs::symlink("a", one),
    };
}
