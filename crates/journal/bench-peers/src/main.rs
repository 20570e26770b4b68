//! Durable appends per second by 1, 8 and 64 waiters: the journal, SQLite and redb.
//!
//! ```text
//! highwater-journal-bench-peers DIR [ROUNDS] [SECONDS] [ONLY]
//! ```
//!
//! `ONLY` is a part of the contestants' names.
//!
//! Every waiter appends a record of 100 bytes and goes on when it is durable: the pattern of a strict write section. In
//! each round every contestant gets the same time, one after the other, in an order that turns; the answer is the median
//! of the rounds with the smallest and the largest. SQLite: WAL, synchronous=FULL, two ways, of which the better one
//! counts: a connection per waiter, and one writer thread that commits for everyone who waits (group commit by hand).
//! redb: Durability::Immediate, likewise a transaction per waiter and one for everyone who waits.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use highwater_journal::{Directory, Journal, JournalId, Options, Period, RecordKind};
use redb::{Durability, TableDefinition};

const PAYLOAD: [u8; 100] = [0x5a; 100];
const WAITERS: [usize; 3] = [1, 8, 64];
const TABLE: TableDefinition<u64, &[u8]> = TableDefinition::new("records");

type Error = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone, Copy, PartialEq)]
enum Contestant {
    Journal,
    SqliteEach,
    SqliteGrouped,
    RedbEach,
    RedbGrouped,
}

const CONTESTANTS: [(Contestant, &str); 5] = [
    (Contestant::Journal, "highwater-journal"),
    (Contestant::SqliteEach, "SQLite, connection each"),
    (Contestant::SqliteGrouped, "SQLite, one writer"),
    (Contestant::RedbEach, "redb, transaction each"),
    (Contestant::RedbGrouped, "redb, one writer"),
];

/// Runs `append` on every waiter until the time is over; returns appends per second and the latencies.
fn measure<W: FnMut() -> Result<(), Error> + Send>(
    waiters: Vec<W>,
    time: Duration,
) -> Result<(f64, Vec<u64>), Error> {
    let stop = AtomicBool::new(false);
    let start = Instant::now();
    let outcomes = std::thread::scope(|scope| {
        let threads: Vec<_> = waiters
            .into_iter()
            .map(|mut append| {
                let stop = &stop;
                scope.spawn(move || -> Result<Vec<u64>, Error> {
                    let mut latencies = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let before = Instant::now();
                        append()?;
                        latencies.push(u64::try_from(before.elapsed().as_micros())?);
                    }
                    Ok(latencies)
                })
            })
            .collect();
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Result<Vec<_>, _>>()
    })?;
    let seconds = start.elapsed().as_secs_f64();
    let mut latencies = outcomes.concat();
    latencies.sort_unstable();
    Ok((latencies.len() as f64 / seconds, latencies))
}

/// A thread that commits for everyone who waits, and the waiters that ask it.
fn grouped<C>(waiters: usize, time: Duration, mut commit: C) -> Result<(f64, Vec<u64>), Error>
where
    C: FnMut(usize) -> Result<(), Error> + Send,
{
    let (ask, asked): (Sender<Sender<()>>, Receiver<Sender<()>>) = channel();
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || -> Result<(), Error> {
            while let Ok(first) = asked.recv() {
                let mut waiting = vec![first];
                waiting.extend(asked.try_iter());
                commit(waiting.len())?;
                for waiter in waiting {
                    let _ = waiter.send(());
                }
            }
            Ok(())
        });
        let waiters = (0..waiters)
            .map(|_| {
                let ask = ask.clone();
                move || -> Result<(), Error> {
                    let (done, is_done) = channel();
                    ask.send(done)?;
                    Ok(is_done.recv()?)
                }
            })
            .collect();
        drop(ask);
        let outcome = measure(waiters, time);
        writer.join().expect("no panic")?;
        outcome
    })
}

fn sqlite(path: &Path) -> Result<rusqlite::Connection, Error> {
    let connection = rusqlite::Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(60))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.execute_batch(
        "create table if not exists records (usn integer primary key, payload blob not null)",
    )?;
    Ok(connection)
}

const INSERT: &str = "insert into records (payload) values (?1)";

fn run(
    contestant: Contestant,
    path: &Path,
    waiters: usize,
    time: Duration,
) -> Result<(f64, Vec<u64>), Error> {
    let _ = std::fs::remove_dir_all(path);
    std::fs::create_dir_all(path)?;
    match contestant {
        Contestant::Journal => {
            let directory = Directory::open(path.join("state"))?;
            let journal = Journal::create(directory, JournalId([7; 16]), Options::default())?;
            let append = || -> Result<(), Error> {
                let usn = journal.append(RecordKind(1), Period(1), &PAYLOAD)?;
                Ok(journal.sync(usn)?)
            };
            measure((0..waiters).map(|_| &append).collect(), time)
        }
        Contestant::SqliteEach => {
            let path = path.join("sqlite");
            drop(sqlite(&path)?);
            let connections = (0..waiters).map(|_| sqlite(&path)).collect::<Result<Vec<_>, _>>()?;
            let waiters = connections.into_iter().map(|connection| {
                move || -> Result<(), Error> {
                    connection.prepare_cached(INSERT)?.execute([&PAYLOAD[..]])?;
                    Ok(())
                }
            });
            measure(waiters.collect(), time)
        }
        Contestant::SqliteGrouped => {
            let mut connection = sqlite(&path.join("sqlite"))?;
            grouped(waiters, time, move |count| {
                let transaction = connection.transaction()?;
                {
                    let mut insert = transaction.prepare_cached(INSERT)?;
                    for _ in 0..count {
                        insert.execute([&PAYLOAD[..]])?;
                    }
                }
                Ok(transaction.commit()?)
            })
        }
        Contestant::RedbEach | Contestant::RedbGrouped => {
            let database = redb::Database::create(path.join("redb"))?;
            let next = AtomicU64::new(1);
            let commit = |count: usize| -> Result<(), Error> {
                let mut transaction = database.begin_write()?;
                transaction.set_durability(Durability::Immediate)?;
                {
                    let mut table = transaction.open_table(TABLE)?;
                    for _ in 0..count {
                        table.insert(next.fetch_add(1, Ordering::Relaxed), &PAYLOAD[..])?;
                    }
                }
                Ok(transaction.commit()?)
            };
            if contestant == Contestant::RedbGrouped {
                return grouped(waiters, time, commit);
            }
            let append = || commit(1);
            measure((0..waiters).map(|_| &append).collect(), time)
        }
    }
}

/// How preallocation changes a sync: appends of 200 bytes and of 4 KiB, each with its fdatasync.
fn preallocation(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::FileExt;
    const SEGMENT: u64 = 16 << 20;
    println!("\npreallocation: microseconds per write and fdatasync, median and 90th percentile of 1000");
    for round in 0..3 {
        for (len, name) in [(200usize, "200 B"), (4096, "4 KiB")] {
            for mode in ["none", "fallocate", "zeros"] {
                let file = path.join("preallocation");
                let _ = std::fs::remove_file(&file);
                let file = std::fs::OpenOptions::new().create_new(true).write(true).open(&file)?;
                let before = Instant::now();
                if mode != "none" {
                    rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, SEGMENT)?;
                }
                if mode == "zeros" {
                    let zeros = vec![0; 1 << 20];
                    for at in (0..SEGMENT).step_by(1 << 20) {
                        file.write_all_at(&zeros, at)?;
                    }
                }
                file.sync_all()?;
                let made = before.elapsed().as_micros();
                let bytes = vec![0x5a; len];
                let mut times = Vec::new();
                for index in 0..1000u64 {
                    let before = Instant::now();
                    file.write_all_at(&bytes, index * len as u64)?;
                    file.sync_data()?;
                    times.push(before.elapsed().as_micros());
                }
                times.sort_unstable();
                println!(
                    "round {round} {name:>6} {mode:>9}: {:>5} {:>5}   made in {made:>6}",
                    times[500], times[900]
                );
            }
        }
    }
    Ok(())
}

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args_os().skip(1);
    let path = PathBuf::from(
        arguments.next().ok_or("usage: highwater-journal-bench-peers DIR [ROUNDS] [SECONDS] [ONLY]")?,
    );
    let mut number =
        |default: f64| arguments.next().and_then(|text| text.to_str()?.parse().ok()).unwrap_or(default);
    let (rounds, seconds): (f64, f64) = (number(5.0), number(1.5));
    let only = arguments.next().and_then(|text| text.into_string().ok()).unwrap_or_default();
    let contestants: Vec<_> = CONTESTANTS.into_iter().filter(|(_, name)| name.contains(&only)).collect();
    let path = path.join("highwater-journal-bench");
    std::fs::create_dir_all(&path)?;
    println!("{:<26}{:>8}{:>12}{:>22}{:>10}{:>10}", "", "waiters", "appends/s", "spread", "p50 us", "p99 us");
    for waiters in WAITERS {
        let mut results = vec![Vec::new(); contestants.len()];
        for round in 0..rounds as usize {
            for turn in 0..contestants.len() {
                let index = (round + turn) % contestants.len();
                let outcome = run(contestants[index].0, &path, waiters, Duration::from_secs_f64(seconds))?;
                results[index].push(outcome);
            }
        }
        for ((_, name), mut rounds) in contestants.iter().zip(results) {
            rounds.sort_by(|a, b| a.0.total_cmp(&b.0));
            let (median, latencies) = &rounds[rounds.len() / 2];
            let spread = format!("{:.0} to {:.0}", rounds[0].0, rounds[rounds.len() - 1].0);
            let at = |percent: usize| latencies.get(latencies.len() * percent / 100).copied().unwrap_or(0);
            println!("{name:<26}{waiters:>8}{median:>12.0}{spread:>22}{:>10}{:>10}", at(50), at(99));
        }
    }
    if only.is_empty() {
        preallocation(&path)?;
    }
    std::fs::remove_dir_all(&path)?;
    Ok(())
}
