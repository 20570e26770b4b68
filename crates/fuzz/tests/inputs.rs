//! The seeds of every target, and every input that has found a bug. (libFuzzer finds more: scripts/fuzz.sh.)

use std::path::Path;

use highwater_fuzz::{TARGETS, target};

#[test]
fn every_seed_passes() {
    for target in TARGETS {
        for (number, seed) in (target.seeds)().iter().enumerate() {
            assert!(seed.len() <= target.bytes_max, "seed {number} of {} would be cut", target.name);
            (target.run)(seed);
        }
    }
}

#[test]
fn what_has_found_a_bug_passes_now() {
    let mut count = 0;
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let (name, _) = name.split_once('-').expect("TARGET-WHAT");
        (target(name).expect("the name of a target").run)(&std::fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count > 0);
}
