//! Working in the tree: metadata, whole programs, and data.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::BenchArgs;
use super::contender::Contender;
use super::table::{Table, seconds};
use crate::scratch::Scratch;

/// One workload in a contender's directory.
type Step<'a> = dyn Fn(&Path) -> Result<()> + 'a;

/// untar, find, read all, git status, cargo build, rm -rf.
pub(super) fn metadata(arguments: &BenchArgs, scratch: &Scratch) -> Result<String> {
    let archive = archive(arguments, scratch)?;
    let contenders = Contender::all(arguments, scratch)?;
    let title = format!("Working in the tree: {} small files, seconds (less is better)", arguments.files);
    let mut table = Table::new(title, contenders.iter().map(|contender| contender.name.clone()));
    for round in 0..arguments.rounds {
        eprintln!("bench: metadata, round {}", round + 1);
        let steps: [(&str, &Step<'_>); 8] = [
            ("untar", &|dir| tool(dir, "tar", &["-xf", &archive.to_string_lossy()])),
            ("find -printf, caches dropped", &|dir| {
                tool(dir, "find", &["files", "-printf", "%p %s %T@ %i\\n"])
            }),
            ("find -printf, again", &|dir| tool(dir, "find", &["files", "-printf", "%p %s %T@ %i\\n"])),
            ("read all", &|dir| tool(dir, "grep", &["-rqs", "no such text is in there", "files"])),
            ("git status, first", &|dir| tool(&dir.join("files"), "git", &["status", "--short"])),
            ("git status, again", &|dir| tool(&dir.join("files"), "git", &["status", "--short"])),
            ("cargo build", &|dir| tool(&dir.join("files/crate"), "cargo", &["build", "--offline", "-q"])),
            ("rm -rf", &|dir| tool(dir, "rm", &["-rf", "files"])),
        ];
        for (step, work) in steps {
            if step.contains("dropped") {
                // Dentries and inodes of everybody; pages stay.
                fs::write("/proc/sys/vm/drop_caches", "2").context("cannot drop caches")?;
            }
            for turn in 0..contenders.len() {
                let column = (turn + round) % contenders.len();
                settle(scratch)?;
                let took = seconds(|| work(&contenders[column].dir))
                    .with_context(|| format!("{step} on {}", contenders[column].name))?;
                table.add(step, column, took);
            }
        }
    }
    contenders.into_iter().try_for_each(Contender::stop)?;
    Ok(table.show())
}

/// fio, bandwidth.
pub(super) fn data(arguments: &BenchArgs, scratch: &Scratch) -> Result<String> {
    let contenders = Contender::all(arguments, scratch)?;
    let title = format!("Data: a file of {} MiB, MiB/s (more is better)", arguments.fio_mib);
    let mut table = Table::new(title, contenders.iter().map(|contender| contender.name.clone()));
    for contender in &contenders {
        // Laid out once and whole, so that each measurement finds the same file.
        fio(contender, "write", "1m", Cache::Dropped, arguments, true)?;
    }
    for round in 0..arguments.rounds {
        eprintln!("bench: data, round {}", round + 1);
        for cache in [Cache::Dropped, Cache::Warm, Cache::Bypassed] {
            for (kind, size) in [("write", "1m"), ("read", "1m"), ("randwrite", "4k"), ("randread", "4k")] {
                let row = format!("{kind} {size}, {}", cache.text());
                for turn in 0..contenders.len() {
                    let column = (turn + round) % contenders.len();
                    settle(scratch)?;
                    cache.prepare(&contenders[column])?;
                    match fio(&contenders[column], kind, size, cache, arguments, false) {
                        Ok(rate) => table.add(&row, column, rate),
                        // Some stacked filesystems have no O_DIRECT: the cell stays empty.
                        Err(error) => eprintln!("bench: {row} on {}: {error:#}", contenders[column].name),
                    }
                }
            }
        }
    }
    for contender in &contenders {
        let _ = fs::remove_file(contender.dir.join("fio.data"));
    }
    contenders.into_iter().try_for_each(Contender::stop)?;
    Ok(table.show())
}

/// What the page cache has to do with a measurement. fio is kept from dropping its file's pages itself: through a stacked filesystem
/// it would reach those of the mount only, and not those of the file below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cache {
    /// Buffered, and nothing is cached.
    Dropped,
    /// Buffered, and the whole file is cached.
    Warm,
    /// O_DIRECT.
    Bypassed,
}

impl Cache {
    fn text(self) -> &'static str {
        match self {
            Self::Dropped => "cache dropped",
            Self::Warm => "cache warm",
            Self::Bypassed => "O_DIRECT",
        }
    }

    fn prepare(self, contender: &Contender) -> Result<()> {
        // Clean pages of everybody.
        fs::write("/proc/sys/vm/drop_caches", "1").context("cannot drop caches")?;
        if self == Self::Warm {
            io::copy(&mut fs::File::open(contender.dir.join("fio.data"))?, &mut io::sink())?;
        }
        Ok(())
    }
}

/// MiB/s of one run.
fn fio(
    contender: &Contender,
    kind: &str,
    block: &str,
    cache: Cache,
    arguments: &BenchArgs,
    layout: bool,
) -> Result<f64> {
    let mut command = Command::new("fio");
    command.args(["--name=bench", "--filename=fio.data", "--ioengine=psync", "--output-format=json"]);
    command.args([
        format!("--rw={kind}"),
        format!("--bs={block}"),
        format!("--direct={}", u8::from(cache == Cache::Bypassed)),
        "--invalidate=0".to_owned(),
        format!("--size={}m", arguments.fio_mib),
    ]);
    if layout {
        command.arg("--end_fsync=1");
    } else {
        command.arg(format!("--runtime={}", arguments.fio_seconds));
        // Otherwise once through the file at most: the second time it would be cached, or wait for the disk to take the first.
        if cache == Cache::Bypassed || cache == Cache::Warm && kind.ends_with("read") {
            command.arg("--time_based");
        }
    }
    let output = command.current_dir(&contender.dir).output().context("cannot run fio")?;
    ensure!(output.status.success(), "fio: {}", String::from_utf8_lossy(&output.stderr));
    // fio may put notes before the JSON.
    let start = output.stdout.iter().position(|byte| *byte == b'{').context("fio printed no JSON")?;
    let value: serde_json::Value = serde_json::from_slice(&output.stdout[start..])?;
    let direction = if kind.ends_with("read") { "read" } else { "write" };
    let bytes = value["jobs"][0][direction]["bw_bytes"].as_f64().context("no bandwidth in fio's answer")?;
    Ok(bytes / f64::from(1 << 20))
}

/// Runs a program in a directory; its output goes nowhere.
pub(super) fn tool(dir: &Path, program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .env("GIT_OPTIONAL_LOCKS", "1")
        .env_remove("CARGO_TARGET_DIR")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
        .with_context(|| format!("cannot run {program}"))?;
    // grep: 1 means that nothing was found, which is what is asked for.
    let is_good = output.status.success() || program == "grep" && output.status.code() == Some(1);
    ensure!(is_good, "{program}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

/// Nobody pays for what another one left to be written.
pub(super) fn settle(scratch: &Scratch) -> Result<()> {
    rustix::fs::syncfs(fs::File::open(&scratch.lower)?)?;
    Ok(())
}

/// A tar file with a git repository of small files and a small crate.
pub(super) fn archive(arguments: &BenchArgs, scratch: &Scratch) -> Result<PathBuf> {
    let home = scratch.tree.join("archive");
    let files = home.join("files");
    eprintln!("bench: making {} files", arguments.files);
    for number in 0..arguments.files {
        let directory = files.join(format!("d{:03}/e{:02}", number / 100 % 1000, number / 20 % 5));
        if number % 20 == 0 {
            fs::create_dir_all(&directory)?;
        }
        let text = format!("file {number} of a small tree\n").repeat(number % 97 + 1);
        fs::write(directory.join(format!("f{number}.txt")), text)?;
    }
    let source = files.join("crate/src");
    fs::create_dir_all(&source)?;
    fs::write(
        files.join("crate/Cargo.toml"),
        "[package]\nname = \"small\"\nedition = \"2021\"\n[workspace]\n",
    )?;
    let mut main = String::new();
    for number in 0..30 {
        main += &format!("mod m{number};\n");
        let module = format!(
            "#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]\n\
             pub struct S {{ pub a: String, pub b: Vec<u64> }}\n\
             pub fn f(n: u64) -> S {{ S {{ a: n.to_string(), b: (0..n).map(|x| x * {number}).collect() }} }}\n"
        );
        fs::write(source.join(format!("m{number}.rs")), module)?;
    }
    main += "fn main() {\n";
    for number in 0..30 {
        main += &format!("    println!(\"{{:?}}\", m{number}::f({number}));\n");
    }
    main += "}\n";
    fs::write(source.join("main.rs"), main)?;
    fs::write(files.join(".gitignore"), "target\nCargo.lock\n")?;
    tool(&files, "git", &["init", "-q"])?;
    // The gc below is the only one: one that runs by itself, in the background, gets in its way.
    tool(&files, "git", &["config", "gc.auto", "0"])?;
    tool(&files, "git", &["add", "."])?;
    let identity = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"];
    tool(&files, "git", &[&identity[..], &["commit", "-qm", "All files"]].concat())?;
    tool(&files, "git", &["gc", "-q", "--prune=now"])?;
    let archive = scratch.tree.join("files.tar");
    tool(&home, "tar", &["-cf", &archive.to_string_lossy(), "files"])?;
    fs::remove_dir_all(&home)?;
    Ok(archive)
}
