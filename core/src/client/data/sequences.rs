//! Sequence numbers of updates, and which of them are settled.
//!
//! A chunk remembers a request for as long as it may come again. It is settled, and need not be remembered, when its
//! caller has its outcome and no attempt of it can be begun any more, on whichever node that attempt may be.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use crate::lock::Mutex;

#[derive(Debug, Default)]
pub(super) struct Sequences(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: u64,
    /// Under way.
    open: BTreeSet<u64>,
    /// Acknowledged, while an attempt without an answer may still arrive somewhere, until then.
    void_at: BTreeMap<u64, Instant>,
}

impl Sequences {
    /// The next `count` numbers; the first of them.
    pub(super) fn begin(&self, count: usize) -> u64 {
        let mut state = self.0.lock();
        let first = state.last + 1;
        state.last += count as u64;
        let end = state.last;
        state.open.extend(first..=end);
        first
    }

    /// The outcome of `sequence` is known; attempts of it may be begun until `open_until`.
    pub(super) fn end(&self, sequence: u64, open_until: Option<Instant>) {
        let mut state = self.0.lock();
        let was_open = state.open.remove(&sequence);
        debug_assert!(was_open, "it has begun and not ended");
        if let Some(until) = open_until {
            state.void_at.insert(sequence, until);
        }
    }

    /// All numbers below this one are settled.
    pub(super) fn settled_before(&self) -> u64 {
        let mut state = self.0.lock();
        if !state.void_at.is_empty() {
            let now = Instant::now();
            state.void_at.retain(|_, until| *until > now);
        }
        let open = state.open.first().copied().unwrap_or(u64::MAX);
        let not_void = state.void_at.keys().next().copied().unwrap_or(u64::MAX);
        open.min(not_void).min(state.last + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn settled_is_what_has_ended_and_cannot_come_again() {
        let sequences = Sequences::default();
        assert_eq!(sequences.settled_before(), 1);
        assert_eq!((sequences.begin(3), sequences.begin(1)), (1, 4));
        assert_eq!(sequences.settled_before(), 1);
        sequences.end(2, None);
        assert_eq!(sequences.settled_before(), 1, "the first is under way");
        let now = Instant::now();
        sequences.end(1, Some(now + Duration::from_secs(3600)));
        assert_eq!(sequences.settled_before(), 1, "an attempt of the first may still arrive");
        sequences.end(3, Some(now));
        sequences.end(4, None);
        assert_eq!(sequences.settled_before(), 1);
        let sequences = Sequences::default();
        sequences.begin(4);
        sequences.end(1, Some(now));
        sequences.end(2, None);
        assert_eq!(sequences.settled_before(), 3);
        sequences.end(3, None);
        sequences.end(4, None);
        assert_eq!(sequences.settled_before(), 5);
    }
}
