//! The promises that can be taken apart, against the real product. G1, G2, G3, G4, G5.
//!
//! Needs root, /dev/fuse and loop devices; it fails without, it does not skip. Long runs are for the hand:
//! `torture oracle --seconds 600 --kill`.

use std::path::PathBuf;
use std::process::Command;

/// The product: $HIGHWATER, or built here and now.
fn highwater() -> PathBuf {
    if let Some(path) = std::env::var_os("HIGHWATER") {
        return path.into();
    }
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--package", "highwater", "--bin", "highwater"]);
    let is_release = !cfg!(debug_assertions);
    if is_release {
        build.arg("--release");
    }
    let status = build.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../..")).status();
    assert!(status.expect("cargo runs").success(), "cargo build -p highwater");
    PathBuf::from(env!("CARGO_BIN_EXE_torture")).with_file_name("highwater")
}

fn torture(arguments: &[&str]) {
    let output = Command::new(env!("CARGO_BIN_EXE_torture"))
        .args(arguments)
        .env("HIGHWATER", highwater())
        .output()
        .expect("the binary of this package runs");
    let told =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "torture {}:\n{told}", arguments.join(" "));
}

#[test]
fn a_barrier_waits_for_a_stalled_write_and_for_nothing_else() {
    torture(&["naive-race"]);
}

#[test]
fn without_passthrough_a_write_whose_data_are_missing_is_told_when_it_happens() {
    torture(&["naive-race", "--dir-fs", "tmpfs", "--no-passthrough"]);
}

#[test]
fn what_was_written_before_kill_9_is_told_after_it() {
    torture(&["kill-loop", "--rounds", "12", "--seed", "1"]);
}

#[test]
fn writes_through_what_outlived_the_tracker_are_told() {
    torture(&["crash-hole"]);
}

#[test]
fn a_replica_kept_from_the_changes_equals_the_tree() {
    for fs in ["ext4", "xfs", "btrfs", "tmpfs"] {
        torture(&["oracle", "--dir-fs", fs, "--seed", "1", "--rounds", "8"]);
    }
    torture(&["oracle", "--dir-fs", "ext4", "--seed", "2", "--rounds", "8", "--no-passthrough"]);
}

#[test]
fn a_replica_equals_the_tree_across_kill_9() {
    for seed in ["1", "2"] {
        torture(&["oracle", "--dir-fs", "ext4", "--seed", seed, "--rounds", "10", "--kill"]);
    }
}
