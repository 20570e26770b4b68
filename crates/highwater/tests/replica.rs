//! The reference consumer against lists written by hand.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use highwater::replica::{Replica, ReplicaError, differences};
use highwater_client::{Change, Changes, Kind, ObjectType};

struct Pair {
    home: tempfile::TempDir,
}

impl Pair {
    /// A tree, and a copy that is like it.
    fn new() -> Self {
        let pair = Self { home: tempfile::tempdir().unwrap() };
        for side in [pair.tree(), pair.copy()] {
            fs::create_dir_all(side.join("d/sub")).unwrap();
            fs::write(side.join("d/f"), "old").unwrap();
            fs::write(side.join("a"), "a").unwrap();
            fs::write(side.join("b"), "b").unwrap();
            symlink("a", side.join("l")).unwrap();
        }
        pair.assert_equal();
        pair
    }

    fn tree(&self) -> PathBuf {
        self.home.path().join("tree")
    }

    fn copy(&self) -> PathBuf {
        self.home.path().join("copy")
    }

    fn apply(&self, lines: &[Change]) -> Result<(), ReplicaError> {
        self.answer(false, lines)
    }

    fn answer(&self, fresh: bool, lines: &[Change]) -> Result<(), ReplicaError> {
        let changes = lines.to_vec();
        let answer = Changes { cursor: "c".into(), since: None, fresh, reason: None, changes };
        Replica::new(self.tree(), self.copy()).apply(&answer)
    }

    #[track_caller]
    fn assert_equal(&self) {
        assert_eq!(differences(&self.tree(), &self.copy()).unwrap(), []);
    }
}

fn line(kind: Kind, path: &str, object_type: ObjectType) -> Change {
    Change {
        path: path.into(),
        kind,
        object_type,
        from: None,
        recursive: false,
        recovered: false,
        nlink: None,
        usn: 1,
    }
}

fn file(kind: Kind, path: &str) -> Change {
    line(kind, path, ObjectType::File)
}

fn renamed(from: &str, to: &str, object_type: ObjectType) -> Change {
    Change { from: Some(from.into()), ..line(Kind::Renamed, to, object_type) }
}

#[test]
fn each_kind_of_line_is_applied() {
    let pair = Pair::new();
    let tree = pair.tree();
    fs::write(tree.join("new"), "new").unwrap();
    fs::write(tree.join("d/f"), "newer").unwrap();
    fs::set_permissions(tree.join("b"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::remove_file(tree.join("l")).unwrap();
    fs::rename(tree.join("d"), tree.join("e")).unwrap();
    pair.apply(&[
        file(Kind::Created, "new"),
        renamed("d", "e", ObjectType::Dir),
        file(Kind::Modified, "e/f"),
        file(Kind::Metadata, "b"),
        line(Kind::Deleted, "l", ObjectType::Symlink),
    ])
    .unwrap();
    pair.assert_equal();
}

#[test]
fn a_swap_by_way_of_a_third_name_comes_out_right() {
    let pair = Pair::new();
    fs::rename(pair.tree().join("a"), pair.tree().join("t")).unwrap();
    fs::rename(pair.tree().join("b"), pair.tree().join("a")).unwrap();
    fs::rename(pair.tree().join("t"), pair.tree().join("b")).unwrap();
    let rename = |from, to| renamed(from, to, ObjectType::File);
    pair.apply(&[rename("a", "t"), rename("b", "a"), rename("t", "b")]).unwrap();
    pair.assert_equal();
}

#[test]
fn a_rename_of_what_the_copy_never_had_takes_it_whole() {
    let pair = Pair::new();
    fs::create_dir_all(pair.tree().join("n/m")).unwrap();
    fs::write(pair.tree().join("n/m/f"), "x").unwrap();
    pair.apply(&[renamed("never", "n", ObjectType::Dir)]).unwrap();
    pair.assert_equal();
}

#[test]
fn a_rescan_compares_and_goes_below_only_where_it_has_to() {
    let pair = Pair::new();
    let tree = pair.tree();
    fs::remove_file(tree.join("a")).unwrap();
    fs::create_dir_all(tree.join("unknown/below")).unwrap();
    fs::write(tree.join("unknown/below/f"), "x").unwrap();
    fs::write(tree.join("b"), "changed").unwrap();
    pair.apply(&[line(Kind::Rescan, ".", ObjectType::Dir)]).unwrap();
    pair.assert_equal();

    fs::write(tree.join("d/f"), "below").unwrap();
    pair.apply(&[line(Kind::Rescan, ".", ObjectType::Dir)]).unwrap();
    assert_eq!(differences(&tree, &pair.copy()).unwrap(), [(PathBuf::from("d/f"), "other content")]);
    let recursive = Change { recursive: true, ..line(Kind::Rescan, ".", ObjectType::Dir) };
    pair.apply(&[recursive]).unwrap();
    pair.assert_equal();
}

#[test]
fn a_fresh_answer_is_a_full_pass() {
    let pair = Pair::new();
    fs::remove_dir_all(pair.tree().join("d")).unwrap();
    fs::write(pair.tree().join("d"), "a file now").unwrap();
    pair.answer(true, &[]).unwrap();
    pair.assert_equal();
}

#[test]
fn what_has_gone_since_the_list_is_no_error() {
    let pair = Pair::new();
    pair.apply(&[
        file(Kind::Created, "gone"),
        file(Kind::Modified, "gone/too"),
        renamed("nowhere", "gone", ObjectType::Dir),
        line(Kind::Deleted, "gone", ObjectType::Dir),
        line(Kind::Rescan, "gone", ObjectType::Dir),
    ])
    .unwrap();
    pair.assert_equal();
}

#[test]
fn a_path_that_leads_out_of_the_tree_is_refused() {
    let pair = Pair::new();
    fs::write(pair.home.path().join("secret"), "x").unwrap();
    for path in ["../secret", "/etc/passwd", "", "d/../../secret", ".."] {
        let refused = pair.apply(&[file(Kind::Deleted, path)]);
        assert!(matches!(refused, Err(ReplicaError::Path { .. })), "{path}");
    }
    assert!(Path::new(&pair.home.path().join("secret")).exists());
}
