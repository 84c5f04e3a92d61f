//! Watches over requests that take long: ends the wait of killed programs, and lets the session start further threads.
//!
//! One thread a session. It sleeps until a request is interrupted or every thread is busy.
//!
//! W1  A call that changes nothing ends with its program: it is answered with `EINTR` as soon as a fatal signal is
//!     pending. Other signals wait until the call returns, as on NFS: programs do not expect `EINTR` from a file. What
//!     changes something is never answered early, because it may still happen.
//! W2  Calls that wait do not stop others: while all threads have worked on the same requests for `TICK`, the limit of
//!     threads doubles, up to `THREADS_LIMIT`.

use std::collections::VecDeque;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::lock::{Condvar, Mutex};

use super::request::Ending;
use super::session::SessionShared;

const TICK: Duration = Duration::from_millis(100);
/// Most threads of one session. Each that waits costs its stack and the request that it holds.
pub const THREADS_LIMIT: usize = 256;
/// How long an interrupt of a request is remembered that no thread works on: its thread may be about to begin.
const UNMATCHED_KEPT: Duration = Duration::from_secs(10);
/// A caller in another pid namespace does not show which signal it has got. Its call is ended when it has waited for so
/// long after one: longer than a call takes unless something hangs.
const UNKNOWN_CALLER_WAITS: Duration = Duration::from_secs(5);
const INTERRUPTED_MAX: usize = 4096;
const SIGKILL: u32 = 9;

struct Interrupted {
    unique: u64,
    since: Instant,
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
    /// Every thread of the session is busy. Cheap if the watching thread is awake.
    pub fn all_busy(&self) {
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
        state.interrupted.push_back(Interrupted { unique, since: Instant::now() });
        self.changed.notify_one();
    }

    pub fn end(&self) {
        self.state.lock().ended = true;
        self.changed.notify_one();
    }

    /// Wait for something to watch over; afterwards for a tick, or less if a request is interrupted. The interrupts
    /// that are to be looked at; `None` at the end.
    fn next(
        &self,
        is_busy: impl Fn() -> bool,
        pending: VecDeque<Interrupted>,
    ) -> Option<VecDeque<Interrupted>> {
        let mut state = self.state.lock();
        if state.interrupted.is_empty() && !state.ended {
            // Before the question: who makes the last thread busy afterwards finds this asleep.
            self.asleep.store(pending.is_empty(), Ordering::SeqCst);
            if pending.is_empty() && !is_busy() {
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

/// Run until the session ends.
pub fn run(shared: &Arc<SessionShared>) {
    let mut pending = VecDeque::new();
    let mut stuck = Stuck { requests: Vec::new(), since: Instant::now() };
    while let Some(found) = shared.watch.next(|| shared.is_busy(), pending) {
        pending = found.into_iter().filter(|one| !is_settled(shared, one)).collect();
        if stuck.is_stuck(shared) {
            shared.raise_limit();
        }
    }
}

/// Whether the interrupt needs no further look. Answers its request if the program was killed.
fn is_settled(shared: &SessionShared, one: &Interrupted) -> bool {
    let Some(slot) = shared.slot_of(one.unique) else {
        return one.since.elapsed() >= UNMATCHED_KEPT;
    };
    if slot.ending() == Ending::OnlyWhenDone {
        return true;
    }
    let is_dying = match has_fatal_signal(slot.pid()) {
        Some(is_fatal) => is_fatal,
        None => one.since.elapsed() >= UNKNOWN_CALLER_WAITS,
    };
    if is_dying {
        slot.end_early(one.unique, Errno::INTR);
    }
    is_dying
}

/// Whether a signal that ends the thread is pending: the kernel turns every one that kills into SIGKILL. `None` if the
/// thread cannot be seen from here.
fn has_fatal_signal(pid: u32) -> Option<bool> {
    if pid == 0 {
        return None;
    }
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let pending = status.lines().find_map(|line| line.strip_prefix("SigPnd:"))?;
    let pending = u64::from_str_radix(pending.trim(), 16).ok()?;
    Some(pending & (1 << (SIGKILL - 1)) != 0)
}

/// The requests that all threads worked on when that was last looked at.
struct Stuck {
    requests: Vec<u64>,
    since: Instant,
}

impl Stuck {
    /// Whether no thread has been free, nor begun another request, for a tick.
    fn is_stuck(&mut self, shared: &SessionShared) -> bool {
        let requests = if shared.is_busy() { shared.requests() } else { Vec::new() };
        if requests.is_empty() || requests != self.requests {
            *self = Stuck { requests, since: Instant::now() };
            return false;
        }
        self.since.elapsed() >= TICK
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fatal_signals_are_seen_where_the_caller_is() {
        assert_eq!(has_fatal_signal(std::process::id()), Some(false));
        assert_eq!(has_fatal_signal(0), None);
        assert_eq!(has_fatal_signal(u32::MAX), None);
    }

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
        watch.all_busy();
        assert!(woken.join().unwrap());
    }
}
