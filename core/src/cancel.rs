//! Cancelling the call that a thread works on: its program was killed, and nothing reads the result.
//!
//! A session cancels only calls that change nothing. What they wait for looks here before it tries again.
//!
//! A thread may also be watched while it reads: its program has signal handlers, and `watch` says how to run them. Waits of
//! such a thread look every `SLICE`, and at once where a signal interrupts a system call.

use std::cell::{Cell, OnceCell};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long a watched thread waits before it looks.
pub const SLICE: Duration = Duration::from_millis(50);

/// The calls of one thread, by numbers that are never used again. 0 is none.
#[derive(Default)]
pub struct Calls {
    current: AtomicU64,
    cancelled: AtomicU64,
}

thread_local! {
    static CALLS: OnceCell<Arc<Calls>> = const { OnceCell::new() };
    static WATCH: Cell<Option<fn() -> bool>> = const { Cell::new(None) };
    static IS_HELD: Cell<bool> = const { Cell::new(false) };
}

impl Calls {
    /// Make these the calls of the present thread. Once in a thread.
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

/// Whether the present thread's call is cancelled. False in threads that have no calls and are not watched.
pub fn is_cancelled() -> bool {
    if IS_HELD.get() {
        return false;
    }
    CALLS.with(|calls| calls.get().is_some_and(|calls| calls.is_cancelled()))
        || WATCH.get().is_some_and(|is_over| is_over())
}

/// Do `work`, which changes nothing. What it waits for is cancelled once `is_over` says so, and so from then on.
#[cfg(any(test, feature = "python"))]
pub fn watch<R>(is_over: fn() -> bool, work: impl FnOnce() -> R) -> R {
    let _before = Restored { cell: &WATCH, value: WATCH.replace(Some(is_over)) };
    work()
}

/// Until the result is dropped, nothing that this thread waits for is cancelled.
#[must_use]
pub fn hold() -> Restored<bool> {
    Restored { cell: &IS_HELD, value: IS_HELD.replace(true) }
}

/// Gives a cell of this thread its former value when dropped.
pub struct Restored<T: Copy + 'static> {
    cell: &'static std::thread::LocalKey<Cell<T>>,
    value: T,
}

impl<T: Copy> Drop for Restored<T> {
    fn drop(&mut self) {
        self.cell.set(self.value);
    }
}

/// How much of `left` to wait before looking whether the call is cancelled.
pub fn slice(left: Duration) -> Duration {
    if WATCH.get().is_some() && !IS_HELD.get() { left.min(SLICE) } else { left }
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

    #[test]
    fn a_watched_thread_looks_often_and_is_not_cancelled_while_held() {
        let long = Duration::from_secs(60);
        assert_eq!(slice(long), long);
        watch(
            || true,
            || {
                assert_eq!((is_cancelled(), slice(long)), (true, SLICE));
                let held = hold();
                assert_eq!((is_cancelled(), slice(long)), (false, long));
                drop(held);
                assert!(is_cancelled());
            },
        );
        assert_eq!((is_cancelled(), slice(long)), (false, long));
    }
}
