//! Watches over requests that take long: ends the wait of killed programs, and lets the session start further threads.
//!
//! One thread a session. It sleeps until a request is interrupted, every thread is busy, or requests may wait beside free
//! entries of a ring.
//!
//! W1  A call that changes nothing ends with its program: it is answered with `EINTR` as soon as a fatal signal is
//!     pending. Other signals wait until the call returns, as on NFS: programs do not expect `EINTR` from a file. What
//!     changes something is never answered early, because it may still happen.
//! W2  Calls that wait do not stop others: while all threads have worked on the same requests for `TICK`, the limit of
//!     threads doubles, up to `THREADS_LIMIT`.

use std::collections::VecDeque;
use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::request::Ending;
use super::shared::SessionShared;
use super::slot::{ThreadSlot, Way};
use super::watch::{Interrupted, TICK};

/// How long an interrupt of a request is remembered that no thread works on: its thread may be about to begin.
const UNMATCHED_KEPT: Duration = Duration::from_secs(10);
/// A caller in another pid namespace does not show which signal it has got. Its call is ended when it has waited for so
/// long after one: longer than a call takes unless something hangs.
const UNKNOWN_CALLER_WAITS: Duration = Duration::from_secs(5);
const SIGKILL: u32 = 9;
const _: () = assert!(TICK.as_millis() < UNKNOWN_CALLER_WAITS.as_millis());
const _: () = assert!(UNKNOWN_CALLER_WAITS.as_millis() < UNMATCHED_KEPT.as_millis());

/// Run until the session ends.
pub fn run(shared: &Arc<SessionShared>) {
    let mut pending = VecDeque::new();
    let mut stuck = Stuck { requests: Vec::new(), since: Instant::now() };
    while let Some(found) = shared.watch.next(|| shared.needs_watch(), pending) {
        pending = found.into_iter().filter(|one| !is_settled(shared, one)).collect();
        if stuck.is_stuck(shared) {
            shared.raise_limit();
        }
        shared.look_at_rings();
    }
}

/// Whether the interrupt needs no further look. Answers its request if the program was killed.
fn is_settled(shared: &Arc<SessionShared>, one: &Interrupted) -> bool {
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
    is_dying && end_early(shared, &slot, one.unique)
}

/// Answer request `unique` with EINTR while its thread still works on it. False: not now.
fn end_early(shared: &Arc<SessionShared>, slot: &Arc<ThreadSlot>, unique: u64) -> bool {
    if slot.ending() == Ending::Cancelled {
        slot.calls.cancel(unique);
    }
    match &slot.way {
        Way::Device(device) => {
            if slot.claim(unique) {
                device.reply(unique, Some(Errno::INTR), &[], &[]);
            }
            true
        }
        Way::Ring { queue, .. } => shared.answer_from_another_thread(*queue, slot, unique).is_ok(),
    }
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
}
