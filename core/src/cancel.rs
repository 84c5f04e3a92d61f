//! Cancelling the call that a thread works on: its program was killed, and nothing reads the result.
//!
//! A session cancels only calls that change nothing. What they wait for looks here before it tries again.

use std::cell::OnceCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The calls of one thread, by numbers that are never used again. 0 is none.
#[derive(Default)]
pub struct Calls {
    current: AtomicU64,
    cancelled: AtomicU64,
}

thread_local! {
    static CALLS: OnceCell<Arc<Calls>> = const { OnceCell::new() };
}

impl Calls {
    /// Makes these the calls of the present thread. Once in a thread.
    pub fn install(self: &Arc<Self>) {
        let is_first = CALLS.with(|known| known.set(self.clone()).is_ok());
        assert!(is_first, "a thread works on one call at a time");
    }

    pub fn begin(&self, number: u64) {
        self.current.store(number, Ordering::Relaxed);
    }

    /// Has no effect if another call has begun meanwhile.
    pub fn cancel(&self, number: u64) {
        self.cancelled.store(number, Ordering::Relaxed);
    }

    fn is_cancelled(&self) -> bool {
        let number = self.current.load(Ordering::Relaxed);
        number != 0 && number == self.cancelled.load(Ordering::Relaxed)
    }
}

/// Whether the present thread's call is cancelled. False in threads without calls.
pub fn is_cancelled() -> bool {
    CALLS.with(|calls| calls.get().is_some_and(|calls| calls.is_cancelled()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cancelling_a_call_leaves_the_next_one_and_other_threads_alone() {
        let calls = Arc::new(Calls::default());
        let seen = std::thread::spawn(move || {
            calls.install();
            calls.begin(1);
            calls.cancel(1);
            let first = is_cancelled();
            calls.begin(2);
            (first, is_cancelled())
        });
        assert_eq!(seen.join().unwrap(), (true, false));
        assert!(!is_cancelled());
    }
}
