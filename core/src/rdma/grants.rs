//! Leave to transmit, given by a client to the servers that are ready to: against too many at once (incast).

use std::time::Instant;

use crate::lock::{Condvar, Mutex};

/// A number of transmissions that may be under way at once. First come, first served.
#[derive(Debug)]
pub struct Grants {
    transmissions_max: usize,
    state: Mutex<GrantState>,
    freed: Condvar,
}

#[derive(Debug)]
struct GrantState {
    free: usize,
    next_ticket: u64,
    serving: u64,
}

/// One transmission; over when dropped.
#[derive(Debug)]
pub struct Grant<'a>(&'a Grants);

impl Grants {
    pub fn new(transmissions_max: usize) -> Grants {
        assert!(transmissions_max > 0, "with none nothing would ever be read");
        Grants {
            transmissions_max,
            state: Mutex::new(GrantState { free: transmissions_max, next_ticket: 0, serving: 0 }),
            freed: Condvar::new(),
        }
    }

    /// Wait for its turn; `None` if that did not come by `deadline`.
    pub fn take(&self, deadline: Instant) -> Option<Grant<'_>> {
        let mut state = self.state.lock();
        let ticket = state.next_ticket;
        state.next_ticket += 1;
        // Each waiter takes its turn, with a grant or without, so that those after it proceed.
        let mut in_time = true;
        while state.serving != ticket || (in_time && state.free == 0) {
            if in_time {
                in_time = !self.freed.wait_until(&mut state, deadline).timed_out();
            } else {
                self.freed.wait(&mut state);
            }
        }
        state.serving += 1;
        assert!(state.serving <= state.next_ticket, "turns come in the order of tickets");
        let granted = state.free > 0;
        state.free -= usize::from(granted);
        drop(state);
        self.freed.notify_all();
        granted.then(|| Grant(self))
    }
}

impl Drop for Grant<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.free += 1;
        assert!(state.free <= self.0.transmissions_max, "a grant ends once");
        drop(state);
        self.0.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn no_more_are_given_than_there_are_and_all_get_one() {
        let grants = Grants::new(2);
        let (under_way, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let _grant = grants.take(Instant::now() + Duration::from_secs(60)).unwrap();
                        most.fetch_max(under_way.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        std::thread::yield_now();
                        under_way.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 2);
        assert_eq!(grants.state.lock().free, 2);
    }

    #[test]
    fn a_waiter_that_gives_up_lets_the_next_one_in() {
        let grants = Grants::new(1);
        let held = grants.take(Instant::now()).unwrap();
        assert!(grants.take(Instant::now() + Duration::from_millis(5)).is_none());
        drop(held);
        assert!(grants.take(Instant::now() + Duration::from_secs(60)).is_some());
        assert_eq!(grants.state.lock().free, 1, "who gave up has had none to give back");
    }
}
