//! Repeats inputs without the fuzzer: `highwater-fuzz TARGET FILE...`.

use std::process::ExitCode;

use highwater_fuzz::{TARGETS, Target, target};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let Some((target, files)) =
        arguments.split_first().and_then(|(name, files)| Some((target(name)?, files)))
    else {
        let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("highwater-fuzz TARGET FILE...; targets: {}", names.join(", "));
        return ExitCode::from(2);
    };
    match repeat(target, files) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// A failure is a panic, with the file's name before it.
fn repeat(target: &Target, files: &[String]) -> std::io::Result<()> {
    for file in files {
        println!("{} {file}", target.name);
        (target.run)(&std::fs::read(file)?);
    }
    Ok(())
}
