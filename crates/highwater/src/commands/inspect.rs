//! `highwater inspect`: looks at a state without a tracker.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use highwater_client::process_start_ticks;
use highwater_journal::{Directory, Inspection, OpenError, Record, SegmentRole};
use highwater_tracker::Body;

use crate::exit::{Exit, Failure};
use crate::output::{bytes_text, print_line};
use crate::quote::quote_path;

/// Look at a state directory offline: its segments, and what is wrong with it.
///
/// Changes nothing and takes no lock. While a tracker runs it can be used too,
/// but what is just being written may look torn or damaged then. With --verify
/// every record is read and its checksum checked; without it only those of the
/// last segment. Exits 1 if something is damaged. A torn tail is not damage: it
/// is what a crash leaves of a write under way.
///
/// Example:
///   highwater inspect /var/lib/highwater/data-0123456789abcdef --verify
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// The state directory.
    state: PathBuf,
    /// Read every record.
    #[arg(long)]
    verify: bool,
    /// Print every record that is read, one per line.
    #[arg(long)]
    records: bool,
}

pub(crate) fn run(args: &Args) -> Result<Exit, Failure> {
    let shown = quote_path(&args.state);
    let directory =
        Directory::open_read_only(&args.state).with_context(|| format!("cannot inspect {shown}"))?;
    let tracker = live_tracker(&args.state);
    let mut kinds = BTreeMap::<&str, u64>::new();
    let mut undecodable = 0_u64;
    let mut stopped = false;
    let mut printed = Ok(());
    let inspected = highwater_journal::inspect(&directory, args.verify, |record| {
        match Body::decode(record.kind, &record.payload) {
            Ok(body) => {
                *kinds.entry(name(&body)).or_default() += 1;
                stopped = matches!(body, Body::Stopped { .. });
            }
            Err(_) => undecodable += 1,
        }
        if args.records && printed.is_ok() {
            printed = print_record(&record);
        }
    });
    printed?;
    let inspection = match inspected {
        Err(error @ OpenError::Missing) => {
            return Err(Failure::new(
                Exit::Failed,
                anyhow::Error::from(error).context(format!("{shown} is not a state")),
            ));
        }
        inspected => inspected.with_context(|| format!("cannot inspect {shown}"))?,
    };
    show(&inspection, args.verify, stopped, tracker.is_some())?;
    if !kinds.is_empty() {
        let kinds: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
        print_line(&format!("records     {}", kinds.join(", ")))?;
    }
    if let Some(pid) = tracker {
        print_line(&format!(
            "note        the tracker with pid {pid} is using it: what is being written may look torn or damaged"
        ))?;
    }
    let damages = inspection.damage.len() as u64 + undecodable;
    for damage in &inspection.damage {
        print_line(&format!("damage      {damage}"))?;
    }
    if undecodable > 0 {
        print_line(&format!(
            "damage      {undecodable} records have valid checksums and mean nothing to this version"
        ))?;
    }
    if damages > 0 {
        let text = format!(
            "{shown} is damaged in {damages} places; the next `highwater track` makes every consumer fresh"
        );
        return Err(Failure::text(Exit::Failed, text));
    }
    Ok(Exit::Done)
}

fn show(inspection: &Inspection, verify: bool, stopped: bool, in_use: bool) -> Result<(), Failure> {
    let id = inspection.id.map_or_else(|| "unreadable".to_owned(), |id| id.to_string());
    print_line(&format!("journal     {id}"))?;
    let bytes: u64 = inspection.segments.iter().map(|segment| segment.bytes).sum();
    print_line(&format!("size        {} in {} segments", bytes_text(bytes), inspection.segments.len()))?;
    let end = match (&inspection.torn_tail, inspection.is_clean || stopped, in_use) {
        (Some(tail), ..) => {
            format!(
                "{} bytes of a write under way at byte {} of segment {}",
                tail.bytes, tail.offset, tail.segment
            )
        }
        (None, true, _) => "stopped cleanly".to_owned(),
        (None, false, true) => "open".to_owned(),
        (None, false, false) => "not stopped: the next start recovers".to_owned(),
    };
    print_line(&format!("end         {end}"))?;
    for segment in &inspection.segments {
        let role = match segment.role {
            SegmentRole::Sealed => "sealed",
            SegmentRole::Last => "last",
            SegmentRole::Spare => "spare",
            _ => "unreadable",
        };
        let read = match (&segment.periods, segment.last_usn) {
            (Some((first, last)), Some(usn)) => {
                format!(
                    "{} records, usn {} to {}, periods {} to {}",
                    segment.records, segment.first_usn.0, usn.0, first.0, last.0
                )
            }
            _ if segment.role == SegmentRole::Sealed && !verify => "not read; --verify does".to_owned(),
            _ => "no records".to_owned(),
        };
        print_line(&format!(
            "segment {:<3} {role}, {}, {read}",
            segment.sequence,
            bytes_text(segment.bytes)
        ))?;
    }
    Ok(())
}

fn print_record(record: &Record) -> Result<(), anyhow::Error> {
    let (usn, period) = (record.usn.0, record.period.0);
    match Body::decode(record.kind, &record.payload) {
        Ok(body) => print_line(&format!("usn {usn} period {period} {body:?}")),
        Err(error) => print_line(&format!("usn {usn} period {period} {error}")),
    }
}

fn name(body: &Body) -> &'static str {
    match body {
        Body::IntentDirectory { .. } | Body::IntentObject { .. } | Body::IntentMove { .. } => "intents",
        Body::Where { .. } => "names of directories",
        Body::Changed { .. } => "changes",
        Body::Rescan { .. } | Body::Recovered { .. } => "told again",
        Body::Seal { .. } => "seals",
        Body::Stable { .. } => "moves of the stable horizon",
        // Of how tracking went: starts, stops, gaps, losses.
        _ => "marks",
    }
}

/// The process that has the state locked, as the lock file says.
fn live_tracker(state: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(state.join("lock")).ok()?;
    let pid: u32 = text.trim().parse().ok()?;
    let command = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    // A zombie has let go of its locks.
    (command.starts_with("highwater") && process_start_ticks(pid).is_some()).then_some(pid)
}
