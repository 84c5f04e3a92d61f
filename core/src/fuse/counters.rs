//! What a session has answered, by operation and outcome, and how long it took.

use std::array::from_fn;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::io::Errno;

use super::abi::Opcode;
use super::request::Answer;

/// Operations have smaller numbers; those that are not offered count as number 0.
const OPCODES_MAX: usize = 64;

/// Upper bounds of durations, in microseconds: those of every histogram of ours (`BOUNDS_S` of fs/metrics/families.py).
const BOUNDS_US: [u64; 15] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 1_000_000, 5_000_000,
    30_000_000,
];

/// How long requests of one operation took.
struct Durations {
    /// One for each bound, and those above the last one.
    counts: [AtomicU64; BOUNDS_US.len() + 1],
    sum_ns: AtomicU64,
}

impl Default for Durations {
    fn default() -> Durations {
        Durations { counts: from_fn(|_| AtomicU64::default()), sum_ns: AtomicU64::default() }
    }
}

impl Durations {
    fn observe(&self, taken: Duration) {
        let taken_ns = taken.as_nanos() as u64;
        let place = BOUNDS_US.partition_point(|bound| bound * 1000 < taken_ns);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        self.sum_ns.fetch_add(taken_ns, Ordering::Relaxed);
    }
}

/// Durations of one operation: its name, how many were at most as long as each bound and no shorter bound, and above the
/// last one, and the sum in seconds.
pub type OperationDurations = (String, Vec<u64>, f64);

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestOutcome {
    Done,
    /// An error that says something of the request: no such file, no permission.
    Refused,
    /// The cluster, or the mount, could not do it.
    Failed,
    /// Its program was killed.
    Interrupted,
}

impl RequestOutcome {
    const ALL: [RequestOutcome; 4] =
        [RequestOutcome::Done, RequestOutcome::Refused, RequestOutcome::Failed, RequestOutcome::Interrupted];

    pub fn of(result: &Result<Answer, Errno>) -> RequestOutcome {
        match result {
            Ok(_) => RequestOutcome::Done,
            Err(Errno::IO | Errno::TIMEDOUT | Errno::STALE | Errno::NOSPC) => RequestOutcome::Failed,
            Err(_) => RequestOutcome::Refused,
        }
    }

    fn name(self) -> &'static str {
        match self {
            RequestOutcome::Done => "ok",
            RequestOutcome::Refused => "refused",
            RequestOutcome::Failed => "failed",
            RequestOutcome::Interrupted => "interrupted",
        }
    }
}

/// Totals since the mount.
pub struct SessionCounters {
    requests: [[AtomicU64; RequestOutcome::ALL.len()]; OPCODES_MAX],
    durations: [Durations; OPCODES_MAX],
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

impl Default for SessionCounters {
    fn default() -> SessionCounters {
        SessionCounters {
            requests: from_fn(|_| from_fn(|_| AtomicU64::default())),
            durations: from_fn(|_| Durations::default()),
            read_bytes: AtomicU64::default(),
            written_bytes: AtomicU64::default(),
        }
    }
}

impl SessionCounters {
    /// A request was answered, `taken` after it had arrived.
    pub fn ended(&self, opcode: u32, outcome: RequestOutcome, taken: Duration) {
        let number = Opcode::from_wire(opcode).map_or(0, |opcode| opcode as usize);
        self.requests[number][outcome as usize].fetch_add(1, Ordering::Relaxed);
        self.durations[number].observe(taken);
    }

    /// The bytes of a READ or WRITE that was answered; `payload_length`: of the request.
    pub fn moved(&self, opcode: u32, answer: &Answer, payload_length: usize) {
        match (Opcode::from_wire(opcode), answer) {
            (Some(Opcode::Write), _) => add(&self.written_bytes, payload_length),
            (Some(Opcode::Read), Answer::Piece(piece)) => add(&self.read_bytes, piece.len()),
            (Some(Opcode::Read), Answer::Pieces(pieces)) => {
                add(&self.read_bytes, pieces.iter().map(|piece| piece.len()).sum());
            }
            _ => {}
        }
    }

    /// (operation, outcome, how many), of all that there were.
    pub fn requests(&self) -> Vec<(String, &'static str, u64)> {
        let mut all = Vec::new();
        for (number, outcomes) in self.requests.iter().enumerate() {
            for (outcome, count) in RequestOutcome::ALL.iter().zip(outcomes) {
                let count = count.load(Ordering::Relaxed);
                if count > 0 {
                    all.push((operation_name(number), outcome.name(), count));
                }
            }
        }
        all
    }

    /// Upper bounds in seconds, and the durations of all operations that there were.
    pub fn durations(&self) -> (Vec<f64>, Vec<OperationDurations>) {
        let mut all = Vec::new();
        for (number, durations) in self.durations.iter().enumerate() {
            let counts: Vec<u64> =
                durations.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
            if counts.iter().any(|count| *count > 0) {
                let sum_s = durations.sum_ns.load(Ordering::Relaxed) as f64 / 1e9;
                all.push((operation_name(number), counts, sum_s));
            }
        }
        (BOUNDS_US.iter().map(|bound| *bound as f64 / 1e6).collect(), all)
    }

    /// Bytes read, and written.
    pub fn bytes(&self) -> (u64, u64) {
        (self.read_bytes.load(Ordering::Relaxed), self.written_bytes.load(Ordering::Relaxed))
    }
}

fn operation_name(number: usize) -> String {
    let operation = Opcode::from_wire(number as u32);
    operation.map_or("other".to_owned(), |opcode| format!("{opcode:?}").to_lowercase())
}

fn add(counter: &AtomicU64, bytes: usize) {
    counter.fetch_add(bytes as u64, Ordering::Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Placement;

    #[test]
    fn requests_are_counted_by_operation_and_outcome() {
        let counters = SessionCounters::default();
        let taken = Duration::ZERO;
        counters.ended(Opcode::Lookup as u32, RequestOutcome::of(&Ok(Answer::Out)), taken);
        counters.ended(Opcode::Lookup as u32, RequestOutcome::of(&Err(Errno::NOENT)), taken);
        counters.ended(Opcode::Read as u32, RequestOutcome::of(&Err(Errno::IO)), taken);
        counters.ended(4000, RequestOutcome::Refused, taken);
        let expected = [("other", "refused"), ("lookup", "ok"), ("lookup", "refused"), ("read", "failed")];
        let found = counters.requests();
        assert_eq!(found, expected.map(|(operation, outcome)| (operation.to_owned(), outcome, 1)));
    }

    #[test]
    fn durations_are_counted_below_the_first_bound_that_they_do_not_exceed() {
        let counters = SessionCounters::default();
        for taken_us in [0, 50, 51, 30_000_000, 30_000_001] {
            counters.ended(Opcode::Read as u32, RequestOutcome::Done, Duration::from_micros(taken_us));
        }
        let (bounds_s, found) = counters.durations();
        assert_eq!((bounds_s[0], bounds_s.last()), (0.00005, Some(&30.0)));
        assert!(bounds_s.is_sorted());
        let [(operation, counts, sum_s)] = &found[..] else { panic!("one operation, not {found:?}") };
        assert_eq!(operation, "read");
        assert_eq!((counts[0], counts[1], counts[14], counts[15]), (2, 1, 1, 1));
        assert_eq!(counts.iter().sum::<u64>(), 5);
        assert!((sum_s - 60.000102).abs() < 1e-9, "{sum_s}");
    }

    #[test]
    fn bytes_are_those_of_reads_and_writes() {
        let counters = SessionCounters::default();
        let piece = || Placement::from_vec(vec![0; 5]);
        counters.moved(Opcode::Read as u32, &Answer::Piece(piece()), 0);
        counters.moved(Opcode::Read as u32, &Answer::Pieces(vec![piece(), piece()]), 0);
        counters.moved(Opcode::ReadDir as u32, &Answer::Piece(piece()), 0);
        counters.moved(Opcode::Write as u32, &Answer::Out, 7);
        assert_eq!(counters.bytes(), (15, 7));
    }
}
