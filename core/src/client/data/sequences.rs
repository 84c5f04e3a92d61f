//! Sequence numbers of updates, and which of them are settled.
//!
//! A chunk remembers a request for as long as it may come again. It is settled, and need not be remembered, when its
//! caller has its outcome and no attempt of it can be begun any more, on whichever node that attempt may be.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Instant;

use crate::lock::Mutex;

#[derive(Debug, Default)]
pub(super) struct Sequences(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    last: u64,
    /// All below were settled when that was last asked for.
    settled: u64,
    /// Under way.
    open: BTreeSet<u64>,
    /// Acknowledged, while an attempt without an answer may still arrive somewhere, until then.
    void_at: BTreeMap<u64, Instant>,
}

impl Sequences {
    /// The next `count` numbers. Attempts of them are begun before `deadline`.
    pub(super) fn begin(&self, count: usize, deadline: Instant) -> Begun<'_> {
        let mut state = self.0.lock();
        let first = state.last + 1;
        state.last += count as u64;
        let end = state.last;
        state.open.extend(first..=end);
        Begun { sequences: self, numbers: first..end + 1, deadline }
    }

    /// The outcome of `sequence` is known; attempts of it may be begun until `open_until`.
    pub(super) fn end(&self, sequence: u64, open_until: Option<Instant>) {
        let mut state = self.0.lock();
        let was_open = state.open.remove(&sequence);
        assert!(was_open, "it has begun and not ended");
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
        let settled = open.min(not_void).min(state.last + 1);
        assert!(settled >= state.settled, "what is settled stays so: chunks have forgotten it");
        state.settled = settled;
        settled
    }
}

/// Numbers that are under way. Those that have not ended when this is dropped, because their caller panicked, end when
/// no attempt of them can be begun any more.
pub(super) struct Begun<'a> {
    sequences: &'a Sequences,
    pub(super) numbers: Range<u64>,
    deadline: Instant,
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        let state = &mut *self.sequences.0.lock();
        for number in self.numbers.clone().filter(|number| state.open.remove(number)) {
            state.void_at.insert(number, self.deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn numbers_of_a_caller_that_panicked_are_settled_after_their_deadline() {
        let sequences = Sequences::default();
        let (now, later) = (Instant::now(), Instant::now() + Duration::from_secs(3600));
        let numbers = |begun: &Begun<'_>| begun.numbers.clone();
        let panicked = |deadline| {
            let call = std::panic::AssertUnwindSafe(|| {
                let begun = sequences.begin(2, deadline);
                sequences.end(numbers(&begun).start, None);
                panic!("a mistake, on purpose");
            });
            std::panic::catch_unwind(call).unwrap_err();
        };
        panicked(now);
        assert_eq!(sequences.settled_before(), 3);
        panicked(later);
        assert_eq!(sequences.settled_before(), 4, "an attempt may still be begun");
    }

    #[test]
    fn settled_is_what_has_ended_and_cannot_come_again() {
        let sequences = Sequences::default();
        assert_eq!(sequences.settled_before(), 1);
        let far = Instant::now() + Duration::from_secs(3600);
        let begun = (sequences.begin(3, far), sequences.begin(1, far));
        assert_eq!((begun.0.numbers.start, begun.1.numbers.start), (1, 4));
        assert_eq!(sequences.settled_before(), 1);
        sequences.end(2, None);
        assert_eq!(sequences.settled_before(), 1, "the first is under way");
        let now = Instant::now();
        sequences.end(1, Some(now + Duration::from_secs(3600)));
        assert_eq!(sequences.settled_before(), 1, "an attempt of the first may still arrive");
        sequences.end(3, Some(now));
        sequences.end(4, None);
        assert_eq!(sequences.settled_before(), 1);
        drop(begun);
        let sequences = Sequences::default();
        let _begun = sequences.begin(4, far);
        sequences.end(1, Some(now));
        sequences.end(2, None);
        assert_eq!(sequences.settled_before(), 3);
        sequences.end(3, None);
        sequences.end(4, None);
        assert_eq!(sequences.settled_before(), 5);
    }
}
