//! Figures of several rounds, and the Markdown table that shows them.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::Result;

/// One cell: the figures of all rounds.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell(Vec<f64>);

impl Cell {
    /// Adds the figure of one round.
    pub(super) fn add(&mut self, figure: f64) {
        self.0.push(figure);
    }

    fn show(&self) -> String {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match (sorted.first(), sorted.last()) {
            (Some(least), Some(greatest)) => {
                let median = sorted[sorted.len() / 2];
                format!("{} ({} to {})", figure(median), figure(*least), figure(*greatest))
            }
            _ => "-".to_owned(),
        }
    }
}

fn figure(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

/// Rows of workloads, columns of contenders.
pub(super) struct Table {
    title: String,
    columns: Vec<String>,
    rows: Vec<(String, Vec<Cell>)>,
}

impl Table {
    /// An empty table.
    pub(super) fn new(title: impl Into<String>, columns: impl IntoIterator<Item = String>) -> Self {
        Self { title: title.into(), columns: columns.into_iter().collect(), rows: Vec::new() }
    }

    /// Adds a figure.
    pub(super) fn add(&mut self, row: &str, column: usize, figure: f64) {
        let at = match self.rows.iter().position(|(name, _)| name == row) {
            Some(at) => at,
            None => {
                self.rows.push((row.to_owned(), vec![Cell::default(); self.columns.len()]));
                self.rows.len() - 1
            }
        };
        self.rows[at].1[column].add(figure);
    }

    /// As Markdown.
    pub(super) fn show(&self) -> String {
        let mut text = format!("\n### {}\n\n| | {} |\n|---|", self.title, self.columns.join(" | "));
        text += &"---|".repeat(self.columns.len());
        text.push('\n');
        for (name, cells) in &self.rows {
            let cells: Vec<String> = cells.iter().map(Cell::show).collect();
            let _ = writeln!(text, "| {name} | {} |", cells.join(" | "));
        }
        text
    }
}

/// How long something took, seconds.
pub(super) fn seconds(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let begun = Instant::now();
    work()?;
    Ok(begun.elapsed().as_secs_f64())
}

/// A duration in milliseconds.
pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
