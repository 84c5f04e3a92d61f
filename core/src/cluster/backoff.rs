//! Growing pauses between attempts.

use std::time::{Duration, Instant};

use crate::clock::Suspension;

/// Pauses that double from `first` to `max`, each shortened at random by up to half, so that clients that failed
/// together do not come back together.
///
/// The time for which the machine was suspended counts: a request is sent again only while those who serve it remember
/// its first attempt, and their clocks have advanced.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    next: Duration,
    max: Duration,
    suspension: Suspension,
}

impl Backoff {
    pub(crate) fn new(first: Duration, max: Duration) -> Backoff {
        let first = first.min(max);
        Backoff { first, next: first, max, suspension: Suspension::since_now() }
    }

    /// Begin again with short pauses: what failed has changed.
    pub(crate) fn restart(&mut self) {
        self.next = self.first;
    }

    /// How long to wait now, never beyond `deadline`; `None` once that has passed.
    pub(crate) fn pause(&mut self, deadline: Instant) -> Option<Duration> {
        let left = deadline.saturating_duration_since(Instant::now() + self.suspension.length());
        let pause = self.next.mul_f64(1.0 - random_fraction() / 2.0);
        self.next = (self.next * 2).min(self.max);
        assert!(pause <= self.max, "pauses are bounded");
        (!left.is_zero()).then_some(pause.min(left))
    }
}

/// In [0, 1).
fn random_fraction() -> f64 {
    let mut bytes = [0; 4];
    // Without randomness the pauses are merely equal.
    let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    f64::from(u32::from_le_bytes(bytes)) / (f64::from(u32::MAX) + 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_their_limit_and_end_at_the_deadline() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(50));
        let far = Instant::now() + Duration::from_secs(100);
        for most in [10, 20, 40, 50, 50] {
            let pause = backoff.pause(far).unwrap();
            let most = Duration::from_millis(most);
            assert!(pause > most / 2 - Duration::from_micros(1) && pause <= most, "{pause:?} {most:?}");
        }
        assert!(backoff.pause(Instant::now()).is_none());
        backoff.restart();
        assert!(backoff.pause(far).unwrap() <= Duration::from_millis(10));
        let mut patient = Backoff::new(Duration::from_secs(1000), Duration::from_secs(1000));
        let left = Duration::from_secs(100);
        assert!(patient.pause(Instant::now() + left).unwrap() <= left);
    }

    #[test]
    fn a_deadline_passes_while_the_machine_is_suspended() {
        let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(10));
        let deadline = Instant::now() + Duration::from_secs(60);
        backoff.suspension = backoff.suspension.lengthened(Duration::from_secs(30));
        assert!(backoff.pause(deadline).is_some());
        backoff.suspension = backoff.suspension.lengthened(Duration::from_secs(31));
        backoff.restart();
        assert!(backoff.pause(deadline).is_none());
    }
}
