//! Adaptive busy polling: poll for a reply for a while before sleeping until it comes.
//!
//! To put a thread to sleep and wake it costs 20 to 40 µs on an idle processor, which is as much as a node on this host needs
//! for a small read and a third of what it needs for a small write. So a thread that waits for such a reply polls first, for as
//! long as replies took lately (`BusyPoll`, one for each connection). It sleeps at once where polling does not pay:
//! replies that take long, more waiting threads than there are processors for them and for the services that they wait
//! for (`Waiters`), and a processor that others want too: then there are gaps between two looks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// A reply that is expected to take longer is not polled for: the processor is worth more than the share of the wait
/// that polling saves, a tenth. A small write to two replicas on this host takes 200 to 300 µs.
const EXPECTED_MAX: Duration = Duration::from_micros(400);
/// Longest that a thread polls.
const POLL_MAX: Duration = Duration::from_micros(500);
/// Shortest limit: small reads vary by as much as they take.
const POLL_MIN: Duration = Duration::from_micros(60);
/// A thread that did not look for so long had to leave its processor to others: a look takes less than one.
const GAP_MAX: Duration = Duration::from_micros(50);
/// Weight of the last reply in the moving average, as a divisor: it follows a change within some ten replies.
const WEIGHT: u32 = 8;
/// Replies that took longer count as this much: one that waited for the disk changes the average by 100 µs only.
const SAMPLE_MAX: Duration = Duration::from_micros(800);
/// Replies that are not polled for after the n-th consecutive poll that was in vain: `SKIPS_BASE` to the power of n.
const SKIPS_BASE: u32 = 4;
/// Where polling is never of use it costs up to 500 µs in so many replies: 1 or 2 µs each.
const SKIPS_MAX: u32 = 256;
const _: () =
    assert!(EXPECTED_MAX.as_micros() < POLL_MAX.as_micros(), "a reply may take longer than expected");
const _: () = assert!(POLL_MAX.as_micros() < SAMPLE_MAX.as_micros(), "slow replies end polling");
const _: () = assert!(POLL_MIN.as_micros() < POLL_MAX.as_micros());

/// How many threads of this process wait for replies of nodes on this host.
#[derive(Debug)]
pub(super) struct Waiters {
    count: AtomicUsize,
    /// With more, none of them polls.
    pollers_max: usize,
}

/// One of them, until dropped.
pub(super) struct Waiter<'a>(&'a Waiters);

impl Waiters {
    /// On a machine with so many processors: each poller needs one, and the service that it waits for another.
    pub(super) const fn new(processors: usize) -> Waiters {
        Waiters { count: AtomicUsize::new(0), pollers_max: processors / 2 }
    }

    pub(super) fn enter(&self) -> Waiter<'_> {
        self.count.fetch_add(1, Ordering::Relaxed);
        Waiter(self)
    }
}

impl Waiter<'_> {
    /// Where many wait, the processors have better things to do.
    fn may_poll(&self) -> bool {
        self.0.count.load(Ordering::Relaxed) <= self.0.pollers_max
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let before = self.0.count.fetch_sub(1, Ordering::Relaxed);
        assert!(before > 0, "a waiter is counted");
    }
}

/// Whether polling pays on one connection, and for how long.
#[derive(Debug, Default)]
pub(super) struct BusyPoll {
    /// Moving average of what replies took; `None` before the first.
    expected: Option<Duration>,
    /// Consecutive polls that were in vain.
    vain: u32,
    /// Replies that are not polled for.
    skips: u32,
}

impl BusyPoll {
    /// Poll `has_come`; whether it turned true. `now` is a clock.
    pub(super) fn poll(
        &mut self,
        waiter: &Waiter<'_>,
        now: impl Fn() -> Duration,
        mut has_come: impl FnMut() -> bool,
    ) -> bool {
        if !waiter.may_poll() {
            return false;
        }
        let Some(limit) = self.next_limit() else { return false };
        let begun = now();
        let mut looked = begun;
        loop {
            let has_come = has_come();
            let at = now();
            let was_displaced = at.saturating_sub(looked) > GAP_MAX;
            if was_displaced || (!has_come && at.saturating_sub(begun) >= limit) {
                self.was_in_vain();
                return has_come;
            }
            if has_come {
                self.vain = 0;
                return true;
            }
            if !waiter.may_poll() {
                self.was_in_vain();
                return false;
            }
            looked = at;
        }
    }

    /// Learn from a reply that came after `waited`, polled for or not.
    pub(super) fn came_after(&mut self, waited: Duration) {
        let sample = waited.min(SAMPLE_MAX);
        let expected = self.expected.unwrap_or(sample);
        let average = (expected * (WEIGHT - 1) + sample) / WEIGHT;
        assert!(average <= SAMPLE_MAX, "an average is no larger than its largest sample");
        self.expected = Some(average);
    }

    /// How long to poll for the next reply; `None`: not at all.
    fn next_limit(&mut self) -> Option<Duration> {
        let expected = self.expected.filter(|expected| *expected <= EXPECTED_MAX)?;
        if self.skips > 0 {
            self.skips -= 1;
            return None;
        }
        Some((expected * 2).clamp(POLL_MIN, POLL_MAX))
    }

    fn was_in_vain(&mut self) {
        self.vain += 1;
        self.skips = SKIPS_BASE.saturating_pow(self.vain).min(SKIPS_MAX);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    /// A connection whose replies come after a given time, on a machine where a look takes a microsecond.
    struct PolledConnection {
        now: Cell<Duration>,
        waiters: Waiters,
        busy_poll: BusyPoll,
    }

    /// The outcome of one wait.
    #[derive(Debug, PartialEq, Eq)]
    enum PollOutcome {
        Slept,
        /// Polled until the reply came.
        Polled,
        /// Polled so long, and slept then.
        Gave(Duration),
    }

    const LOOK: Duration = Duration::from_micros(1);

    fn us(count: u64) -> Duration {
        Duration::from_micros(count)
    }

    impl PolledConnection {
        fn new(processors: usize) -> PolledConnection {
            PolledConnection {
                now: Cell::new(Duration::ZERO),
                waiters: Waiters::new(processors),
                busy_poll: BusyPoll::default(),
            }
        }

        fn wait(&mut self, reply: Duration) -> PollOutcome {
            self.wait_displaced(reply, Duration::MAX)
        }

        /// As `wait`; another thread takes the processor after `displaced` of polling, for a millisecond.
        fn wait_displaced(&mut self, reply: Duration, displaced: Duration) -> PollOutcome {
            let begun = self.now.get();
            let waiter = self.waiters.enter();
            let now = &self.now;
            let mut looks = 0;
            let has_come = || {
                looks += 1;
                let before = now.get() - begun;
                now.set(now.get() + LOOK);
                if before < displaced && displaced <= before + LOOK {
                    now.set(now.get() + Duration::from_millis(1));
                }
                before >= reply
            };
            let polled = self.busy_poll.poll(&waiter, || now.get(), has_come);
            let took = now.get() - begun;
            now.set(now.get().max(begun + reply));
            self.busy_poll.came_after(now.get() - begun);
            match (polled, looks) {
                (true, _) => PollOutcome::Polled,
                (false, 0) => PollOutcome::Slept,
                (false, _) => PollOutcome::Gave(took),
            }
        }

        fn learn(&mut self, reply: Duration) {
            for _ in 0..400 {
                self.wait(reply);
            }
        }
    }

    #[test]
    fn first_reply_of_a_connection_is_not_polled_for() {
        let mut connection = PolledConnection::new(2);
        assert_eq!(connection.wait(us(20)), PollOutcome::Slept);
        assert_eq!(connection.wait(us(20)), PollOutcome::Polled);
    }

    #[test]
    fn replies_are_polled_for_as_long_as_they_take() {
        for reply in [1, 30, 105, 250, 399] {
            let mut connection = PolledConnection::new(2);
            connection.learn(us(reply));
            for _ in 0..1000 {
                assert_eq!(connection.wait(us(reply)), PollOutcome::Polled, "replies that take {reply} µs");
            }
        }
    }

    #[test]
    fn replies_that_take_long_are_not_polled_for() {
        for reply in [us(410), us(600), Duration::from_millis(4)] {
            let mut connection = PolledConnection::new(2);
            connection.learn(reply);
            for _ in 0..1000 {
                assert_eq!(connection.wait(reply), PollOutcome::Slept, "replies that take {reply:?}");
            }
        }
    }

    #[test]
    fn polls_end_at_twice_what_is_expected_within_bounds() {
        for (usual, limit) in [(5, 60), (105, 210), (390, 500)] {
            let mut connection = PolledConnection::new(2);
            connection.learn(us(usual));
            let PollOutcome::Gave(polled) = connection.wait(Duration::from_millis(1)) else {
                panic!("not polled for")
            };
            assert!((us(limit)..us(limit) + 4 * LOOK).contains(&polled), "{polled:?} after {usual} µs");
        }
    }

    #[test]
    fn one_slow_reply_changes_little() {
        let mut connection = PolledConnection::new(2);
        connection.learn(us(105));
        assert!(matches!(connection.wait(Duration::from_secs(1)), PollOutcome::Gave(_)));
        for _ in 0..SKIPS_BASE {
            assert_eq!(connection.wait(us(105)), PollOutcome::Slept);
        }
        assert_eq!(connection.wait(us(105)), PollOutcome::Polled);
    }

    #[test]
    fn polls_in_vain_become_rare() {
        let mut connection = PolledConnection::new(2);
        connection.learn(us(30));
        let mut wasted = Duration::ZERO;
        let count = 4000;
        for number in 0..count {
            // The average stays low enough for polling, and what is polled for is late each time.
            let reply = if connection.busy_poll.skips == 0 { us(600) } else { us(30) };
            match connection.wait(reply) {
                PollOutcome::Gave(polled) => wasted += polled,
                PollOutcome::Slept => {}
                PollOutcome::Polled => panic!("reply {number} came too soon"),
            }
        }
        assert!(wasted / count < us(2), "{wasted:?} of polling for {count} replies");
    }

    #[test]
    fn polling_begins_again_when_replies_become_fast() {
        let mut connection = PolledConnection::new(2);
        connection.learn(Duration::from_millis(10));
        let slept = (0..100).take_while(|_| connection.wait(us(50)) == PollOutcome::Slept).count();
        assert!((1..20).contains(&slept), "slept {slept} times");
    }

    #[test]
    fn thread_that_is_displaced_sleeps_and_skips_the_next_replies() {
        let mut connection = PolledConnection::new(2);
        connection.learn(us(105));
        assert!(matches!(connection.wait_displaced(us(2000), us(10)), PollOutcome::Gave(_)));
        for _ in 0..SKIPS_BASE {
            assert_eq!(connection.wait(us(105)), PollOutcome::Slept);
        }
        connection.learn(us(105));
        // Also if the reply came meanwhile.
        assert_eq!(connection.wait_displaced(us(105), us(106)), PollOutcome::Polled);
        assert_eq!(connection.wait(us(105)), PollOutcome::Slept);
    }

    #[test]
    fn no_thread_polls_while_more_wait_than_processors_allow() {
        for (processors, pollers) in [(1, 0), (2, 1), (3, 1), (4, 2), (16, 8)] {
            let waiters = Waiters::new(processors);
            let mut waiting = Vec::new();
            for number in 1..=pollers + 2 {
                waiting.push(waiters.enter());
                let may_poll = waiting.iter().filter(|waiter| waiter.may_poll()).count();
                let expected = if number <= pollers { number } else { 0 };
                assert_eq!(may_poll, expected, "{number} wait, {processors} processors");
            }
            waiting.truncate(pollers);
            assert!(waiting.iter().all(Waiter::may_poll));
        }
    }

    #[test]
    fn polling_ends_when_replies_become_slow() {
        let mut connection = PolledConnection::new(2);
        connection.learn(us(50));
        let polled = (0..5000).filter(|_| connection.wait(us(600)) != PollOutcome::Slept).count();
        assert!((1..=3).contains(&polled), "polled for {polled} replies that took long");
    }

    #[test]
    fn slow_replies_that_are_rare_end_no_polling() {
        let mut connection = PolledConnection::new(2);
        connection.learn(us(105));
        for number in 0..20 {
            assert!(matches!(connection.wait(Duration::from_millis(5)), PollOutcome::Gave(_)));
            let slept = (0..100).filter(|_| connection.wait(us(105)) == PollOutcome::Slept).count();
            assert_eq!(slept, SKIPS_BASE as usize, "after slow reply {number}");
        }
    }

    #[test]
    fn thread_does_not_look_while_another_waits() {
        let mut connection = PolledConnection::new(2);
        connection.learn(us(50));
        let waiter = connection.waiters.enter();
        let other = connection.waiters.enter();
        for _ in 0..10 {
            assert!(!connection.busy_poll.poll(&waiter, || Duration::ZERO, || panic!("another waits")));
        }
        drop(other);
        assert!(connection.busy_poll.poll(&waiter, || Duration::ZERO, || true), "nothing was in vain");
    }

    #[test]
    fn thread_stops_to_poll_when_another_begins_to_wait() {
        let mut connection = PolledConnection::new(2);
        connection.learn(us(50));
        let waiter = connection.waiters.enter();
        let mut other = None;
        let mut looks = 0;
        let has_come = || {
            looks += 1;
            connection.now.set(connection.now.get() + LOOK);
            other = Some(connection.waiters.enter());
            false
        };
        assert!(!connection.busy_poll.poll(&waiter, || connection.now.get(), has_come));
        assert_eq!(looks, 1);
        drop(other);
        for _ in 0..SKIPS_BASE {
            assert!(!connection.busy_poll.poll(&waiter, || Duration::ZERO, || true), "others wait, it seems");
        }
        assert!(connection.busy_poll.poll(&waiter, || Duration::ZERO, || true));
    }
}
