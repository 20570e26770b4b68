//! The tracker's clock is wrong, and is stepped.
//!
//! The clock of the machine is not touched: a small library that is loaded before libc adds an offset to `CLOCK_REALTIME`, which a
//! file holds and which can change while the tracker runs. The timestamps of files stay those of the kernel.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::consumer::Fresh;
use super::script;
use super::stage::Stage;
use super::states::text;
use crate::product::ProductArgs;
use crate::scratch::{run as run_program, unmount_all};

const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *offset_s;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CLOCK_OFFSET_FILE");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    void *page = fd < 0 ? MAP_FAILED : mmap(0, 8, PROT_READ, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED) offset_s = page;
    if (fd >= 0) close(fd);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, clock, now);
    if (result == 0 && clock == CLOCK_REALTIME && offset_s) now->tv_sec += *offset_s;
    return result;
}
"#;

/// The clock of one tracker.
struct Clock {
    library: PathBuf,
    offset: PathBuf,
}

impl Clock {
    fn new(directory: &Path) -> Result<Self> {
        let source = directory.join("clock.c");
        let clock = Self { library: directory.join("clock.so"), offset: directory.join("clock-offset") };
        fs::write(&source, SHIM)?;
        run_program("gcc", &["-shared", "-fPIC", "-O1", "-o", text(&clock.library)?, text(&source)?])?;
        fs::write(&clock.offset, 0_i64.to_ne_bytes())?;
        Ok(clock)
    }

    /// How far it is ahead from now on, seconds.
    fn set(&self, offset_s: i64) -> Result<()> {
        let file = fs::File::options().write(true).open(&self.offset)?;
        Ok(std::os::unix::fs::FileExt::write_all_at(&file, &offset_s.to_ne_bytes(), 0)?)
    }

    fn track(&self, stage: &mut Stage, offset_s: i64) -> Result<()> {
        self.set(offset_s)?;
        let mut command = stage.product.track_command()?;
        command.env("LD_PRELOAD", &self.library).env("CLOCK_OFFSET_FILE", &self.offset);
        stage.try_track_by(command)?.map_err(|why| anyhow::anyhow!("not tracked: {why}"))
    }
}

const HOUR: i64 = 3600;

/// Runs it.
pub(crate) fn run(arguments: &ProductArgs) -> Result<String> {
    let mut stage = Stage::new(arguments, "clock", "ext4", &[])?.begin()?;
    let tree = stage.tree();
    let clock = Clock::new(&stage.scratch.evidence)?;
    let mut round = 10;
    let in_the_gap = |number: i64| script::in_the_gap(&tree, number.unsigned_abs());
    let mut next = || {
        round += 1;
        script::run(&tree, round);
        fs::create_dir_all(tree.join(format!("d/born-{round}/inside")))
            .and_then(|()| fs::write(tree.join(format!("d/born-{round}/inside/file")), "x"))
    };

    // That it is the tracker's clock that is wrong.
    stage.stop()?;
    clock.track(&mut stage, 5 * HOUR)?;
    stage.stop()?;
    clock.track(&mut stage, 0)?;
    ensure!(
        stage.log().contains("the clock went back"),
        "the tracker does not see the clock of the scenario"
    );
    stage.check(Fresh::Allowed)?;

    // Stepped while it tracks, then killed and started again with every clock.
    for (while_tracking, afterwards) in
        [(HOUR, HOUR), (HOUR, 0), (-HOUR, -HOUR), (-HOUR, 0), (0, HOUR), (0, -HOUR)]
    {
        next()?;
        stage.check(Fresh::Allowed)?;
        clock.set(while_tracking)?;
        next()?;
        stage.check(Fresh::Allowed)?;
        next()?;
        stage.kill()?;
        clock.track(&mut stage, afterwards)?;
        stage.check(Fresh::Allowed).with_context(|| {
            format!("stepped by {while_tracking} s while tracking, {afterwards} s after the kill")
        })?;
    }
    let across_kills = stage.fresh();

    // Across a gap, in which files are changed by the right clock.
    for (at_the_stop, at_the_start) in [(0, HOUR), (0, -HOUR), (HOUR, 0), (-HOUR, 0), (-HOUR, HOUR)] {
        clock.set(0)?;
        next()?;
        stage.check(Fresh::Allowed)?;
        clock.set(at_the_stop)?;
        next()?;
        stage.check(Fresh::Allowed)?;
        stage.stop()?;
        in_the_gap(at_the_stop + 2 * at_the_start)?;
        clock.track(&mut stage, at_the_start)?;
        stage.check(Fresh::Allowed).with_context(|| {
            format!("a gap from {at_the_stop} s to {at_the_start} s off the kernel's clock")
        })?;
    }

    // Ahead for a while, and right again before the stop: the gap begins at the stop.
    clock.set(2 * HOUR)?;
    next()?;
    stage.check(Fresh::Allowed)?;
    clock.set(0)?;
    next()?;
    stage.check(Fresh::Allowed)?;
    stage.stop()?;
    in_the_gap(7)?;
    clock.track(&mut stage, 3 * HOUR)?;
    stage.check(Fresh::Allowed).context("a gap after a clock that was ahead for a while")?;
    // The same with a kill, after which somebody has taken the dead mount away.
    clock.set(2 * HOUR)?;
    next()?;
    stage.check(Fresh::Allowed)?;
    clock.set(0)?;
    next()?;
    stage.check(Fresh::Allowed)?;
    stage.kill()?;
    unmount_all(&tree);
    in_the_gap(8)?;
    clock.track(&mut stage, 3 * HOUR)?;
    stage.check(Fresh::Allowed).context("a gap after a kill and a clock that was ahead for a while")?;
    clock.set(0)?;
    let all = stage.fresh();
    stage.pass(format!(
        "7 kills and 7 gaps with the clock off by hours: nothing missed; {across_kills} fresh answers across kills, {} across gaps",
        all - across_kills
    ))
}
