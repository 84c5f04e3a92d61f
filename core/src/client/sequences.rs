//! Numbers of the requests that change metadata, and which of them are settled: answered, or given up.
//!
//! V1: A request is void once a request with a higher `settled_below` has reached the metadata service. So whatever is
//! begun after a request was given up overtakes it, however late the latter arrives.
//! V2: A request that was sent, and is given up, is settled only when no older one is live: `settled_below` is one number.
//! Older ones end by deadlines that are no later than its own.

use std::collections::BTreeSet;

use crate::lock::{Condvar, Mutex};

pub struct Sequences {
    state: Mutex<State>,
    settled: Condvar,
}

#[derive(Default)]
struct State {
    last: u64,
    live: BTreeSet<u64>,
    /// How many wait in `give_up`: a wake-up without waiters costs a system call, too.
    waiting: usize,
}

impl State {
    fn lowest(&self) -> u64 {
        self.live.first().copied().unwrap_or(self.last + 1)
    }
}

/// One request, from its beginning until it is settled by dropping this.
pub struct Live<'a> {
    sequences: &'a Sequences,
    pub number: u64,
    /// All requests below were settled when this one began.
    pub settled_below: u64,
}

impl Sequences {
    pub fn new() -> Sequences {
        Sequences { state: Mutex::default(), settled: Condvar::new() }
    }

    pub fn begin(&self) -> Live<'_> {
        let mut state = self.state.lock();
        state.last += 1;
        let number = state.last;
        state.live.insert(number);
        let settled_below = state.lowest();
        assert!(settled_below <= number, "V1: no request voids itself");
        Live { sequences: self, number, settled_below }
    }
}

impl Live<'_> {
    /// Settles a request that may still be on its way (V2).
    pub fn give_up(self) {
        let mut state = self.sequences.state.lock();
        state.waiting += 1;
        while state.lowest() < self.number {
            self.sequences.settled.wait(&mut state);
        }
        state.waiting -= 1;
        assert_eq!(state.lowest(), self.number, "V2: no older request is live");
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        let mut state = self.sequences.state.lock();
        assert!(state.live.remove(&self.number), "a request is settled once");
        if state.waiting > 0 {
            self.sequences.settled.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn the_mark_is_the_lowest_live_request() {
        let sequences = Sequences::new();
        let first = sequences.begin();
        assert_eq!((first.number, first.settled_below), (1, 1));
        let second = sequences.begin();
        assert_eq!((second.number, second.settled_below), (2, 1));
        drop(second);
        let third = sequences.begin();
        assert_eq!((third.number, third.settled_below), (3, 1));
        drop(first);
        let fourth = sequences.begin();
        assert_eq!((fourth.number, fourth.settled_below), (4, 3));
        drop((third, fourth));
        let fifth = sequences.begin();
        assert_eq!((fifth.number, fifth.settled_below), (5, 5));
    }

    #[test]
    fn a_request_given_up_waits_for_older_ones_and_no_others() {
        let sequences = Sequences::new();
        let (older, mine, _younger) = (sequences.begin(), sequences.begin(), sequences.begin());
        let answered = AtomicBool::new(false);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                mine.give_up();
                assert!(answered.load(Ordering::SeqCst), "an older request was live");
                sequences.begin().settled_below
            });
            answered.store(true, Ordering::SeqCst);
            drop(older);
            assert_eq!(waiting.join().unwrap(), 3, "whatever begins now voids it");
        });
    }

    #[test]
    fn the_oldest_request_is_given_up_at_once() {
        let sequences = Sequences::new();
        let (mine, younger) = (sequences.begin(), sequences.begin());
        mine.give_up();
        assert_eq!(sequences.begin().settled_below, younger.number);
    }
}
