//! Time for promises between machines: leases, deadlines, ages. It advances while the machine is suspended.
//!
//! `Instant` stands still then, and a promise measured with it would last longer here than where it was made. Waits and
//! measurements within one process use `Instant`.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since the machine was started, the time it was suspended included: the clock of Python's
/// `time.clock_gettime(time.CLOCK_BOOTTIME)`.
pub fn now_ns() -> u64 {
    read_ns(ClockId::Boottime)
}

fn read_ns(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// How long the machine has been suspended since a moment: what a deadline kept as an `Instant` has lost.
#[derive(Clone, Copy, Debug)]
pub struct Suspension {
    /// Boot clock less `Instant`'s, at that moment.
    ahead_ns: i64,
}

impl Suspension {
    pub fn since_now() -> Suspension {
        Suspension { ahead_ns: ahead_ns() }
    }

    /// Reading two clocks takes a while, so up to a few microseconds may be seen where there was none.
    pub fn length(self) -> Duration {
        Duration::from_nanos((ahead_ns() - self.ahead_ns).max(0) as u64)
    }

    /// As if the machine had been suspended for `length` since.
    #[cfg(test)]
    pub fn lengthened(self, length: Duration) -> Suspension {
        Suspension { ahead_ns: self.ahead_ns - length.as_nanos() as i64 }
    }
}

fn ahead_ns() -> i64 {
    let monotonic = read_ns(ClockId::Monotonic);
    now_ns() as i64 - monotonic as i64
}
