//! A hold on updates of clients: for a moment none is begun and none is under way, so that a backup sees every chunk as
//! of one moment. Reads, and what the chain has begun, continue.
//!
//! - H1 A hold ends by itself: its holder may have died. At most `HOLD_MAX`, which is far less than clients
//!   retry a request: they receive `Busy`, and retry. What the metadata service asks for waits here.
//! - H2 Between the return of `begin` and the end of the hold no update of a client is executed here.

use std::time::{Duration, Instant};

use crate::lock::{Condvar, Mutex};
use crate::types::Status;

pub const HOLD_MAX: Duration = Duration::from_secs(8);

#[derive(Default)]
pub struct Hold {
    state: Mutex<HoldState>,
    changed: Condvar,
}

#[derive(Default)]
struct HoldState {
    /// The holder, and the end of its hold, which may have passed.
    held: Option<(u64, Instant)>,
    /// Batches of clients' updates under way.
    under_way: usize,
}

impl HoldState {
    fn holder(&self) -> Option<u64> {
        self.held.filter(|(_, until)| Instant::now() < *until).map(|(holder, _)| holder)
    }
}

/// Updates are under way until this is dropped.
pub struct UnderWay<'a>(&'a Hold);

impl Hold {
    /// Before an update of a client is begun; `None` while a hold is on.
    pub fn enter(&self) -> Option<UnderWay<'_>> {
        let mut state = self.state.lock();
        if state.holder().is_some() {
            return None;
        }
        state.held = None;
        state.under_way += 1;
        Some(UnderWay(self))
    }

    /// As `enter`, after the hold has ended; `None` if that is not before `deadline`.
    pub fn enter_when_over(&self, deadline: Instant) -> Option<UnderWay<'_>> {
        let mut state = self.state.lock();
        while let Some((_, until)) = state.held.filter(|(_, until)| Instant::now() < *until) {
            let left = until.min(deadline).saturating_duration_since(Instant::now());
            if Instant::now() >= deadline {
                return None;
            }
            self.changed.wait_for(&mut state, left);
        }
        drop(state);
        self.enter()
    }

    /// Hold updates for at most `limit`; returns when none is under way. Errors: `Busy` while another one holds,
    /// `Timeout` if what is under way does not end; then nothing is held.
    pub fn begin(&self, holder: u64, limit: Duration) -> Result<(), Status> {
        let until = Instant::now() + limit.min(HOLD_MAX);
        let mut state = self.state.lock();
        if state.holder().is_some_and(|other| other != holder) {
            return Err(Status::Busy);
        }
        state.held = Some((holder, until));
        while state.under_way > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.held = None;
                return Err(Status::Timeout);
            }
            self.changed.wait_for(&mut state, left);
        }
        assert_eq!(state.under_way, 0, "H2: no update of a client is in progress");
        Ok(())
    }

    /// End the hold of `holder`; whether it had lasted until now.
    pub fn end(&self, holder: u64) -> bool {
        let mut state = self.state.lock();
        let lasted = state.holder() == Some(holder);
        if lasted {
            state.held = None;
            self.changed.notify_all();
        }
        lasted
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        assert!(state.under_way > 0, "an update that was begun ends once");
        state.under_way -= 1;
        if state.under_way == 0 {
            self.0.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(8);

    #[test]
    fn hold_waits_for_what_is_under_way_and_keeps_out_what_comes() {
        let hold = Hold::default();
        let first = hold.enter().expect("nothing is held");
        std::thread::scope(|scope| {
            let begun = scope.spawn(|| hold.begin(1, LONG));
            while hold.enter().is_some() {
                std::thread::yield_now();
            }
            assert!(!begun.is_finished(), "an update is under way");
            drop(first);
            assert_eq!(begun.join().unwrap(), Ok(()));
        });
        assert!(hold.enter().is_none());
        assert_eq!(hold.begin(2, LONG), Err(Status::Busy));
        assert!(!hold.end(2));
        assert!(hold.end(1));
        assert!(hold.enter().is_some());
        assert!(!hold.end(1));
    }

    #[test]
    fn who_may_wait_enters_when_the_hold_is_over() {
        let hold = Hold::default();
        assert_eq!(hold.begin(1, LONG), Ok(()));
        assert!(hold.enter_when_over(Instant::now()).is_none());
        std::thread::scope(|scope| {
            let entered = scope.spawn(|| hold.enter_when_over(Instant::now() + LONG).is_some());
            assert!(hold.end(1));
            assert!(entered.join().unwrap());
        });
        assert_eq!(hold.begin(1, Duration::from_millis(1)), Ok(()));
        assert!(hold.enter_when_over(Instant::now() + LONG).is_some(), "it has ended by itself");
    }

    #[test]
    fn hold_ends_by_itself() {
        let hold = Hold::default();
        assert_eq!(hold.begin(1, Duration::ZERO), Ok(()));
        assert!(hold.enter().is_some());
        assert!(!hold.end(1), "it has not lasted");
    }

    #[test]
    fn hold_is_given_up_if_updates_do_not_end() {
        let hold = Hold::default();
        let _slow = hold.enter();
        assert_eq!(hold.begin(1, Duration::from_millis(1)), Err(Status::Timeout));
        assert!(hold.enter().is_some());
    }
}
