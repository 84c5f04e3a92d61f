//! Time for promises between machines: leases, deadlines, ages. It goes on while the machine is suspended.
//!
//! `Instant` stands still then, and a promise measured with it would last longer here than where it was made. Waits and
//! measurements within one process use `Instant`.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds since the machine was started, the time it was suspended included: the clock of Python's
/// `time.clock_gettime(time.CLOCK_BOOTTIME)`.
pub fn now_ns() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}
