//! The oracle itself is under test: with perfect answers it passes, with forgetful ones it fails.
//!
//! Needs root, as everything here mounts a filesystem. It fails without, it does not skip.

use std::process::{Command, Output};

fn oracle(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_torture"))
        .args(["oracle", "--self-test", "--dir-fs", "tmpfs", "--size-mib", "200"])
        .args(arguments)
        .output()
        .expect("the binary of this package runs")
}

#[test]
fn the_oracle_accepts_perfect_answers() {
    for seed in ["11", "12", "13"] {
        let output = oracle(&["--seed", seed, "--rounds", "6"]);
        let told =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "seed {seed}: {told}");
    }
}

#[test]
fn the_oracle_notices_one_forgotten_line_in_two_hundred() {
    for seed in ["21", "22", "23"] {
        let base = std::env::temp_dir().join(format!("highwater-self-test-{seed}-{}", std::process::id()));
        let arguments = ["--seed", seed, "--rounds", "40", "--drop-one-in", "200", "--base"];
        let output = oracle(&[&arguments[..], &[base.to_str().expect("UTF-8")]].concat());
        let told = String::from_utf8_lossy(&output.stdout);
        std::fs::remove_dir_all(&base).expect("the evidence of the failure is there");
        assert!(!output.status.success(), "seed {seed}: {told}");
        assert!(told.contains("differences between the tree and the replica"), "seed {seed}: {told}");
        assert!(
            told.contains(&format!("run again: torture oracle --dir-fs tmpfs --seed {seed}")),
            "seed {seed}: {told}"
        );
    }
}
