//! One run of the barrier: what to conclude from one look at all tasks after the other.
//!
//! The letters refer to docs/barrier-in-place.md. A run goes through stages, in the order in which a request of io_uring moves:
//!
//! 1. *callers*: tasks that may be in a call. Each is waited for until it is seen to be out of the call in which it was seen first (R);
//! 2. *queues*: the queues for workers that were not empty after that, until each has been seen empty (Q);
//! 3. *workers*: those that had a request after that (W).
//!
//! Nothing that begins later is waited for, but for a queue that is never seen empty.

use std::collections::{HashMap, HashSet};

use super::calls;
use super::error::Holder;
use super::record::{Kind, Record, Scan};

/// A run.
#[derive(Clone, Debug, Default)]
pub(super) struct Run {
    stage: Stage,
    waits_for: HashMap<(u64, u64), Record>,
    queues: HashSet<u64>,
    queue_owners: Vec<Record>,
    uses_rings: bool,
    /// Whether a call that writes is over when it has been counted.
    counts_writes: bool,
    /// Whether direct I/O may be in flight without a task that is in a call for it.
    pub(super) uses_asynchronous: bool,
    /// Whether kernel threads serve files to other machines.
    pub(super) has_kernel_writers: bool,
    /// How many looks it took so far.
    pub(super) scans: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    Begin,
    Callers,
    BeginQueues,
    Queues,
    BeginWorkers,
    Workers,
    Passed,
}

impl Run {
    /// Takes one look into account. True: everything that was in flight when the first look began has ended.
    pub(super) fn step(&mut self, scan: &Scan) -> bool {
        self.scans += 1;
        match self.stage {
            Stage::Begin => {
                self.uses_rings = scan.uses_rings;
                self.uses_asynchronous = scan.uses_asynchronous;
                self.has_kernel_writers = scan.has_kernel_writers;
                self.begin(scan, |kind| !matches!(kind, Kind::Worker | Kind::Queue));
                self.stage = Stage::Callers;
            }
            Stage::Callers => self.narrow(scan),
            Stage::BeginQueues => {
                self.queue_owners =
                    scan.records.iter().filter(|record| record.kind == Kind::Queue).cloned().collect();
                self.queues = self.queue_owners.iter().map(|record| record.work).collect();
                self.stage = Stage::Queues;
            }
            Stage::Queues => {
                let full: HashSet<u64> =
                    scan.records.iter().filter(|record| record.kind == Kind::Queue).map(|r| r.work).collect();
                self.queues.retain(|queue| full.contains(queue));
                self.queue_owners.retain(|record| full.contains(&record.work));
            }
            Stage::BeginWorkers => {
                self.begin(scan, |kind| kind == Kind::Worker);
                self.stage = Stage::Workers;
            }
            Stage::Workers => self.narrow(scan),
            Stage::Passed => {}
        }
        self.advance();
        self.stage == Stage::Passed
    }

    fn begin(&mut self, scan: &Scan, belongs: impl Fn(Kind) -> bool) {
        let of_stage = scan.records.iter().filter(|record| belongs(record.kind));
        self.waits_for = of_stage.map(|record| (record.task, record.clone())).collect();
    }

    fn narrow(&mut self, scan: &Scan) {
        let counts_writes = self.counts_writes;
        let mut now: HashMap<(u64, u64), &Record> = HashMap::new();
        for record in &scan.records {
            if record.kind != Kind::Queue {
                now.insert(record.task, record);
            }
        }
        self.waits_for.retain(|task, first| {
            let Some(seen) = now.get(task) else { return false };
            match first.kind {
                Kind::Worker => {
                    // Between two requests, or with more of them at hand: what it holds later is all that is left of it.
                    if first.work == 0 || first.chain != 0 {
                        *first = (*seen).clone();
                        return true;
                    }
                    seen.kind == Kind::Worker && seen.work == first.work
                }
                _ => {
                    first.on_cpu = seen.on_cpu;
                    is_same_moment(first, seen)
                        && (first.writes == seen.writes || !counts_writes || !calls::is_counted(first))
                }
            }
        });
    }

    fn advance(&mut self) {
        // A stage that has nothing to wait for is over at once; the next one begins with a look of its own.
        match self.stage {
            Stage::Callers if self.waits_for.is_empty() => {
                self.stage = if self.uses_rings { Stage::BeginQueues } else { Stage::Passed };
            }
            Stage::Queues if self.queues.is_empty() => self.stage = Stage::BeginWorkers,
            Stage::Workers if self.waits_for.is_empty() => self.stage = Stage::Passed,
            _ => {}
        }
    }

    /// From now on a call that writes is over when it has been counted. To be found out between the first look and the second: what is mounted
    /// where a call of the first look is in progress is known then.
    pub(super) fn trust_counts(&mut self) {
        self.counts_writes = true;
    }

    /// Whether one of those waited for was off the processor, in a call, when last seen.
    pub(super) fn waits_for_a_sleeping_caller(&self) -> bool {
        self.waits_for.values().any(|record| record.kind == Kind::Call && !record.on_cpu)
    }

    /// Who holds it up now.
    pub(super) fn holders(&self) -> Vec<Holder> {
        let mut holders: Vec<Holder> =
            self.waits_for.values().chain(&self.queue_owners).map(holder).collect();
        holders.sort_by_key(|holder| holder.pid);
        holders
    }
}

/// (R) Whether a task may still be in the call in which it was seen first. While it is, none of these changes.
fn is_same_moment(first: &Record, now: &Record) -> bool {
    first.kind == now.kind
        && first.call == now.call
        && first.compat == now.compat
        && first.registers == now.registers
        && first.result == now.result
        && first.user_time == now.user_time
}

fn holder(record: &Record) -> Holder {
    let call = match record.kind {
        Kind::CoreDump => "a core dump".to_owned(),
        Kind::Worker => "a request of io_uring".to_owned(),
        Kind::SubmissionThread => "the submission of requests of io_uring".to_owned(),
        Kind::Queue => "io_uring, with requests that wait for a worker".to_owned(),
        _ if i32::try_from(record.call).is_err() => "work for a ring of io_uring".to_owned(),
        _ => calls::name(record.call, record.compat != 0),
    };
    Holder { pid: record.pid, command: record.command.clone(), call, running: record.on_cpu }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(number: u64, kind: Kind) -> Record {
        Record {
            task: (number, 1),
            registers: 1,
            result: 2,
            user_time: 3,
            work: 0,
            chain: 0,
            writes: 0,
            kind,
            pid: u32::try_from(number).unwrap(),
            call: 1,
            compat: 0,
            on_cpu: true,
            rings: 0,
            kernel_writers: 0,
            command: "writer".to_owned(),
        }
    }

    fn look(records: &[Record]) -> Scan {
        let uses_rings = true;
        Scan { records: records.to_vec(), uses_rings, ..Scan::default() }
    }

    fn without_rings(records: &[Record]) -> Scan {
        Scan { records: records.to_vec(), ..Scan::default() }
    }

    #[test]
    fn nobody_in_a_call_takes_one_look() {
        assert!(Run::default().step(&without_rings(&[])));
    }

    #[test]
    fn a_task_is_waited_for_until_anything_of_it_changes() {
        let changes: [fn(&mut Record); 5] = [
            |record| record.registers += 1,
            |record| record.result += 1,
            |record| record.user_time += 1,
            |record| record.call += 1,
            |record| record.task.1 += 1,
        ];
        for change in changes {
            let mut run = Run::default();
            let writer = task(7, Kind::Call);
            assert!(!run.step(&without_rings(std::slice::from_ref(&writer))));
            assert!(!run.step(&without_rings(std::slice::from_ref(&writer))));
            assert_eq!(run.holders()[0].to_string(), "writer (pid 7) is in write, running");
            let mut next = writer.clone();
            change(&mut next);
            assert!(run.step(&without_rings(&[next])));
        }
    }

    #[test]
    fn a_write_that_was_counted_is_over_where_counts_can_be_trusted() {
        let writer = task(7, Kind::Call);
        let next = Record { writes: 1, ..writer.clone() };
        for trusted in [false, true] {
            let mut run = Run::default();
            assert!(!run.step(&without_rings(std::slice::from_ref(&writer))));
            if trusted {
                run.trust_counts();
            }
            assert_eq!(run.step(&without_rings(std::slice::from_ref(&next))), trusted);
        }
        // copy_file_range: counted by the calls below, too.
        let writer = Record { call: 326, ..task(7, Kind::Call) };
        let mut run = Run::default();
        assert!(!run.step(&without_rings(std::slice::from_ref(&writer))));
        run.trust_counts();
        assert!(!run.step(&without_rings(&[Record { writes: 1, ..writer }])));
    }

    #[test]
    fn who_comes_later_is_not_waited_for() {
        let mut run = Run::default();
        assert!(!run.step(&without_rings(&[task(7, Kind::Call)])));
        assert!(run.step(&without_rings(&[task(8, Kind::Call)])));
    }

    #[test]
    fn what_moves_from_a_caller_by_the_queue_to_a_worker_is_followed() {
        let mut run = Run::default();
        let queue = Record { work: 9, ..task(7, Kind::Queue) };
        let worker = Record { work: 5, ..task(8, Kind::Worker) };
        assert!(!run.step(&look(&[task(7, Kind::Call)])), "in its call");
        assert!(!run.step(&look(std::slice::from_ref(&queue))), "the call is over");
        assert!(!run.step(&look(std::slice::from_ref(&queue))), "in the queue");
        assert!(!run.step(&look(&[queue])), "still");
        assert!(
            !run.step(&look(std::slice::from_ref(&worker))),
            "with a worker, which is only looked for next"
        );
        assert!(!run.step(&look(std::slice::from_ref(&worker))), "with a worker");
        assert!(run.step(&look(&[Record { work: 6, ..worker }])), "the worker does something else");
    }

    #[test]
    fn a_worker_between_two_requests_may_hold_either() {
        let mut run = Run::default();
        let idle = task(8, Kind::Worker);
        let busy = Record { work: 5, ..idle.clone() };
        for _ in 0..2 {
            assert!(!run.step(&look(&[])));
        }
        assert!(!run.step(&look(std::slice::from_ref(&idle))));
        assert!(
            !run.step(&look(std::slice::from_ref(&busy))),
            "the request that it held when it was first seen"
        );
        assert!(!run.step(&look(&[busy])));
        assert!(run.step(&look(&[idle])));
    }

    #[test]
    fn a_worker_with_a_chain_is_waited_for_to_its_end() {
        let mut run = Run::default();
        let first = Record { work: 5, chain: 6, ..task(8, Kind::Worker) };
        let last = Record { work: 6, ..task(8, Kind::Worker) };
        for _ in 0..2 {
            assert!(!run.step(&look(&[])));
        }
        assert!(!run.step(&look(&[first])));
        assert!(!run.step(&look(std::slice::from_ref(&last))));
        assert!(!run.step(&look(&[last])));
        assert!(run.step(&look(&[])));
    }
}
