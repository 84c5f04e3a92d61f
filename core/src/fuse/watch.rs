//! What wakes the watching thread of a session: interrupted requests, threads that are all busy, and queues of rings to look
//! at.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::lock::{Condvar, Mutex};

pub const TICK: Duration = Duration::from_millis(100);
/// Most threads of one session. Each that waits costs its stack and the request that it holds.
pub const THREADS_LIMIT: usize = 256;
const INTERRUPTED_MAX: usize = 4096;
const _: () = assert!(THREADS_LIMIT < INTERRUPTED_MAX, "every request that is worked on may be interrupted");

/// A request whose program has got a signal.
pub struct Interrupted {
    pub unique: u64,
    pub since: Instant,
}

#[derive(Default)]
struct WatchState {
    interrupted: VecDeque<Interrupted>,
    ended: bool,
}

/// What the thread is woken for.
#[derive(Default)]
pub struct Watch {
    state: Mutex<WatchState>,
    changed: Condvar,
    asleep: AtomicBool,
}

impl Watch {
    /// There may be something to watch over. Cheap if the watching thread is awake.
    pub fn wake(&self) {
        if self.asleep.swap(false, Ordering::AcqRel) {
            let _state = self.state.lock();
            self.changed.notify_one();
        }
    }

    /// The program that waits for request `unique` has got a signal.
    pub fn interrupt(&self, unique: u64) {
        let mut state = self.state.lock();
        if state.interrupted.len() == INTERRUPTED_MAX {
            state.interrupted.pop_front();
        }
        assert!(state.interrupted.len() < INTERRUPTED_MAX, "interrupts that wait are bounded");
        state.interrupted.push_back(Interrupted { unique, since: Instant::now() });
        self.changed.notify_one();
    }

    pub fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_one();
    }

    /// Wait for something to watch over; afterwards for a tick, or less if a request is interrupted. The interrupts
    /// that are to be looked at; `None` at the end.
    pub fn next(
        &self,
        needs_watch: impl Fn() -> bool,
        pending: VecDeque<Interrupted>,
    ) -> Option<VecDeque<Interrupted>> {
        let mut state = self.state.lock();
        if state.interrupted.is_empty() && !state.ended {
            // Before the question: who makes the last thread busy afterwards finds this asleep.
            self.asleep.store(pending.is_empty(), Ordering::SeqCst);
            if pending.is_empty() && !needs_watch() {
                while self.asleep.load(Ordering::Acquire) && state.interrupted.is_empty() && !state.ended {
                    self.changed.wait(&mut state);
                }
            } else {
                self.asleep.store(false, Ordering::Release);
                self.changed.wait_for(&mut state, TICK);
            }
            self.asleep.store(false, Ordering::Release);
        }
        let mut found = pending;
        found.append(&mut state.interrupted);
        (!state.ended).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn interrupt_is_handed_over_even_if_it_came_before_the_wait() {
        let watch = Watch::default();
        watch.interrupt(7);
        let found = watch.next(|| false, VecDeque::new()).unwrap();
        assert_eq!(found.iter().map(|one| one.unique).collect::<Vec<_>>(), [7]);
        watch.end();
        assert!(watch.next(|| true, found).is_none());
    }

    #[test]
    fn busy_threads_wake_the_watch_once() {
        let watch = Arc::new(Watch::default());
        let woken = std::thread::spawn({
            let watch = watch.clone();
            move || watch.next(|| false, VecDeque::new()).is_some()
        });
        while !watch.asleep.load(Ordering::Acquire) {
            std::thread::yield_now();
        }
        watch.wake();
        assert!(woken.join().unwrap());
    }
}
