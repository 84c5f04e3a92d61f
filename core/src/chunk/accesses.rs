//! Calls to the disk that are under way, and since when: a disk that hangs gives no error, only calls that do not end.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// More than threads that wait for a disk at once; the calls of further ones are not watched.
const SLOTS: usize = 512;
/// Slots that a call tries before it proceeds unwatched.
const TRIES: usize = 8;

/// When each call began, in nanoseconds since `base`; 0: free.
pub struct Accesses {
    base: Instant,
    slots: Box<[AccessSlot]>,
}

/// Each on a cache line of its own.
#[derive(Default)]
#[repr(align(64))]
struct AccessSlot(AtomicU64);

/// One call; it ends when this is dropped.
pub struct Access<'a>(Option<&'a AccessSlot>);

impl Drop for Access<'_> {
    fn drop(&mut self) {
        if let Some(slot) = self.0 {
            slot.0.store(0, Ordering::Release);
        }
    }
}

impl Accesses {
    pub fn begin(&self) -> Access<'_> {
        let now = self.now().max(1);
        let first = first_slot();
        let slots = (0..TRIES).map(|step| &self.slots[(first + step) % SLOTS]);
        let is_taken = |slot: &&AccessSlot| {
            slot.0.load(Ordering::Relaxed) == 0
                && slot.0.compare_exchange(0, now, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        };
        Access(slots.into_iter().find(is_taken))
    }

    /// How long the oldest call has been under way; zero if there is none.
    pub fn oldest(&self) -> Duration {
        let now = self.now();
        let begun = self.slots.iter().map(|slot| slot.0.load(Ordering::Acquire)).filter(|&begun| begun > 0);
        Duration::from_nanos(begun.min().map_or(0, |begun| now.saturating_sub(begun)))
    }

    fn now(&self) -> u64 {
        self.base.elapsed().as_nanos() as u64
    }
}

impl Default for Accesses {
    fn default() -> Accesses {
        Accesses { base: Instant::now(), slots: (0..SLOTS).map(|_| AccessSlot::default()).collect() }
    }
}

/// Where this thread begins to look: far from other threads, so that they rarely meet.
fn first_slot() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static FIRST: Cell<usize> = Cell::new(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    FIRST.get()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_call_is_the_one_that_has_not_ended() {
        let accesses = Accesses::default();
        assert_eq!(accesses.oldest(), Duration::ZERO);
        let first = accesses.begin();
        let moment = Instant::now();
        let more: Vec<_> = (0..2 * TRIES).map(|_| accesses.begin()).collect();
        drop(more);
        while moment.elapsed() < Duration::from_millis(2) {}
        assert!(accesses.oldest() >= Duration::from_millis(2));
        drop(first);
        assert_eq!(accesses.oldest(), Duration::ZERO);
    }
}
