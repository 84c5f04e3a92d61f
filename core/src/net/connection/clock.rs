//! The clock that a server keeps for a connection, as far as its client knows it (rule N3).

use std::time::Instant;

use crate::net::CLOCK_DRIFT_PERCENT;

/// The clock that the server keeps for this connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct ServerClock {
    /// When it was received: later than the server had read it.
    received_at: Instant,
    clock_ms: u32,
}

impl ServerClock {
    /// Whether it was received within the last half of the time until `deadline`.
    pub(super) fn is_fresh_for(&self, deadline: Instant) -> bool {
        let now = Instant::now();
        now - self.received_at <= deadline.saturating_duration_since(now) / 2
    }

    pub(super) fn received_now(clock_ms: u32) -> ServerClock {
        ServerClock { received_at: Instant::now(), clock_ms }
    }

    /// What it shows at `moment`, or less (N3).
    pub(super) fn at(&self, moment: Instant) -> u32 {
        let passed = moment.saturating_duration_since(self.received_at) * (100 - CLOCK_DRIFT_PERCENT) / 100;
        assert!(passed <= moment.saturating_duration_since(self.received_at), "N3: reckoned from below");
        // Half of the range of a wrapping `u32`; a server waits no longer than that anyway.
        let passed_ms = passed.as_millis().min(i32::MAX as u128 / 2) as u32;
        self.clock_ms.wrapping_add(passed_ms)
    }
}
