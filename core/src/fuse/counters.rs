//! What a session has answered, by operation and outcome.

use std::array::from_fn;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::abi::Opcode;
use super::request::Answer;

/// Operations have smaller numbers; those that are not offered count as number 0.
const OPCODES_MAX: usize = 64;

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
    read_bytes: AtomicU64,
    written_bytes: AtomicU64,
}

impl Default for SessionCounters {
    fn default() -> SessionCounters {
        SessionCounters {
            requests: from_fn(|_| from_fn(|_| AtomicU64::default())),
            read_bytes: AtomicU64::default(),
            written_bytes: AtomicU64::default(),
        }
    }
}

impl SessionCounters {
    pub fn ended(&self, opcode: u32, outcome: RequestOutcome) {
        let number = Opcode::from_wire(opcode).map_or(0, |opcode| opcode as usize);
        self.requests[number][outcome as usize].fetch_add(1, Ordering::Relaxed);
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
                    let operation = Opcode::from_wire(number as u32);
                    let name = operation.map_or("other".to_owned(), |opcode| format!("{opcode:?}"));
                    all.push((name.to_lowercase(), outcome.name(), count));
                }
            }
        }
        all
    }

    /// Bytes read, and written.
    pub fn bytes(&self) -> (u64, u64) {
        (self.read_bytes.load(Ordering::Relaxed), self.written_bytes.load(Ordering::Relaxed))
    }
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
        counters.ended(Opcode::Lookup as u32, RequestOutcome::of(&Ok(Answer::Out)));
        counters.ended(Opcode::Lookup as u32, RequestOutcome::of(&Err(Errno::NOENT)));
        counters.ended(Opcode::Read as u32, RequestOutcome::of(&Err(Errno::IO)));
        counters.ended(4000, RequestOutcome::Refused);
        let expected = [("other", "refused"), ("lookup", "ok"), ("lookup", "refused"), ("read", "failed")];
        let found = counters.requests();
        assert_eq!(found, expected.map(|(operation, outcome)| (operation.to_owned(), outcome, 1)));
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
