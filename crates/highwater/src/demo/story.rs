//! What is printed, and what was checked.
//!
//! Nothing here fails: a demo whose reader has gone still checks and cleans up.

use std::time::Duration;

use anstyle::{AnsiColor, Style};
use highwater_client::Changes;

use super::stage::Stage;
use crate::output::{Format, write_changes};

const HEADLINE: Style = AnsiColor::Cyan.on_default().bold();
const QUIET: Style = Style::new().dimmed();
const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

/// The narrator.
pub(super) struct Story {
    checks: Vec<(String, bool)>,
    not_shown: Vec<String>,
    acts: u32,
}

/// One line; a reader that has gone is no reason to stop.
macro_rules! tell {
    ($($arg:tt)*) => {{
        use std::io::Write;
        let mut out = anstream::stdout().lock();
        drop(writeln!(out, $($arg)*).and_then(|()| out.flush()));
    }};
}

impl Story {
    pub(super) fn begin(stage: &Stage) -> Self {
        tell!("{HEADLINE}Highwater: never miss a change{HEADLINE:#}");
        tell!("{QUIET}Everything happens in {}.{QUIET:#}", stage.home().display());
        Self { checks: Vec::new(), not_shown: Vec::new(), acts: 0 }
    }

    pub(super) fn act(&mut self, title: &str) {
        self.acts += 1;
        tell!("\n{HEADLINE}{}. {title}{HEADLINE:#}", self.acts);
    }

    pub(super) fn say(&self, text: &str) {
        tell!("   {text}");
    }

    /// A command as one would type it.
    pub(super) fn command(&self, text: &str) {
        tell!("   {QUIET}${QUIET:#} {text}");
    }

    /// A list of changes, as `highwater changes` prints it; of a long one the beginning.
    pub(super) fn changes(&self, stage: &Stage, answer: &Changes) {
        const LINES_MAX: usize = 12;
        let mut text = Vec::new();
        if write_changes(&mut text, &stage.tree(), answer, Format::Text).is_ok() {
            let text = String::from_utf8_lossy(&text);
            text.lines().take(LINES_MAX).for_each(|line| tell!("     {line}"));
            let more = text.lines().count().saturating_sub(LINES_MAX);
            if more > 0 {
                tell!("     {QUIET}... and {more} more{QUIET:#}");
            }
        }
    }

    /// Says whether something holds, and remembers it.
    pub(super) fn check(&mut self, what: &str, holds: bool) {
        let (style, mark) = if holds { (GOOD, "✓") } else { (BAD, "✗ DOES NOT HOLD:") };
        tell!("   {style}{mark}{style:#} {what}");
        self.checks.push((what.to_owned(), holds));
    }

    /// Something that this machine does not let us show.
    pub(super) fn not_shown(&mut self, why: &str) {
        tell!("   {QUIET}not shown here: {why}{QUIET:#}");
        self.not_shown.push(why.to_owned());
    }

    /// The summary. Returns whether everything held.
    pub(super) fn end(self, took: Duration) -> bool {
        tell!("\n{HEADLINE}What was checked{HEADLINE:#}");
        for (what, holds) in &self.checks {
            let (style, mark) = if *holds { (GOOD, "held   ") } else { (BAD, "BROKEN ") };
            tell!("   {style}{mark}{style:#} {what}");
        }
        for why in &self.not_shown {
            tell!("   {QUIET}not shown: {why}{QUIET:#}");
        }
        let broken = self.checks.iter().filter(|(_, holds)| !holds).count();
        let count = self.checks.len();
        let seconds = took.as_secs_f64();
        if broken == 0 {
            tell!("   {GOOD}All {count} held{GOOD:#}, in {seconds:.1} s.");
        } else {
            tell!("   {BAD}{broken} of {count} did not hold{BAD:#}; please report it.");
        }
        broken == 0
    }
}
