//! Flags: words in memory that processes share, by which each shows the others its progress.

use std::hint::spin_loop;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::thread::futex;

/// How often a waiter looks before it sleeps: less than a sleep and a wake-up cost together.
const LOOKS: u32 = 64;

/// No wait is longer; clocks cannot count to every duration.
const LONGEST: Duration = Duration::from_secs(86_400);

/// A 64-bit number that only grows. One process raises it, others wait for it.
///
/// - F1 A reader that has seen a value sees everything that was written before it was raised: the store releases and
///   every load acquires, which costs nothing on x86-64 and is one instruction (`stlr`, `ldar`) on arm64.
/// - F2 A waiter that sleeps is woken: the kernel compares the lower half of the word before it lets it sleep. So the
///   value must not grow by a multiple of 2³² between two looks.
#[derive(Clone, Copy)]
pub struct Flag<'a>(&'a AtomicU64);

impl<'a> Flag<'a> {
    /// The flag at an address.
    ///
    /// # Safety
    /// `word` is aligned to eight bytes, valid for reads and writes as long as `'a`, and other threads and processes
    /// touch it only by atomic operations.
    pub unsafe fn from_ptr(word: *mut u64) -> Flag<'a> {
        // SAFETY: the caller's promise.
        Flag(unsafe { AtomicU64::from_ptr(word) })
    }

    /// The value, and everything that was written before it was raised to it.
    pub fn load(self) -> u64 {
        self.0.load(Ordering::Acquire)
    }

    /// Publish `value`: everything written so far belongs to it.
    pub fn raise(self, value: u64) {
        self.0.store(value, Ordering::Release);
        // Waking can only fail for an address that is not mapped, and the store has just been there.
        let _ = futex::wake(self.lower_half(), futex::Flags::empty(), i32::MAX as u32);
    }

    /// Wait until the value is at least `value`, but not longer than `limit`. Returns the value seen last.
    pub fn wait(self, value: u64, limit: Duration) -> u64 {
        for _ in 0..LOOKS {
            let seen = self.load();
            if seen >= value {
                return seen;
            }
            spin_loop();
        }
        let deadline = Instant::now() + limit.min(LONGEST);
        loop {
            let seen = self.load();
            let rest = deadline.saturating_duration_since(Instant::now());
            if seen >= value || rest.is_zero() {
                return seen;
            }
            let rest = futex::Timespec { tv_sec: rest.as_secs() as _, tv_nsec: rest.subsec_nanos() as _ };
            // Every outcome (woken, changed meanwhile, interrupted, out of time) means: look again.
            let _ = futex::wait(self.lower_half(), futex::Flags::empty(), seen as u32, Some(&rest));
        }
    }

    fn lower_half(self) -> &'a AtomicU32 {
        let word = self.0.as_ptr().cast::<u32>();
        let half = if cfg!(target_endian = "little") { 0 } else { 1 };
        // SAFETY: both halves of the word are aligned to four bytes and live as long as it; the kernel and the compiler
        // only ever read this half here.
        unsafe { AtomicU32::from_ptr(word.add(half)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Words(Box<[u64; 2]>);

    impl Words {
        fn flags(&mut self) -> [Flag<'_>; 2] {
            let start = self.0.as_mut_ptr();
            // SAFETY: both words are aligned, and borrowed as long as the flags live.
            unsafe { [Flag::from_ptr(start), Flag::from_ptr(start.add(1))] }
        }
    }

    #[test]
    fn a_flag_that_is_up_is_not_waited_for() {
        let mut words = Words(Box::new([5, 0]));
        let [flag, _] = words.flags();
        assert_eq!(flag.wait(4, Duration::ZERO), 5);
        assert_eq!(flag.wait(5, Duration::MAX), 5);
    }

    #[test]
    fn a_wait_has_an_end() {
        let mut words = Words(Box::new([5, 0]));
        let [flag, _] = words.flags();
        assert_eq!(flag.wait(6, Duration::from_millis(2)), 5);
    }

    #[test]
    fn a_sleeper_is_woken_and_sees_what_was_written_before() {
        let mut words = Words(Box::new([0, 0]));
        let [ping, pong] = words.flags();
        let mut parcel = 0_u64;
        let parcel = &raw mut parcel as usize;
        std::thread::scope(|scope| {
            scope.spawn(move || {
                for turn in 1..=2000_u64 {
                    assert!(ping.wait(turn, Duration::from_secs(60)) >= turn);
                    // SAFETY: the other thread does not touch the parcel between its ping and our pong.
                    unsafe { *(parcel as *mut u64) += 1 };
                    pong.raise(turn);
                }
            });
            for turn in 1..=2000_u64 {
                // SAFETY: as above.
                unsafe { *(parcel as *mut u64) += 1 };
                ping.raise(turn);
                assert!(pong.wait(turn, Duration::from_secs(60)) >= turn);
                // SAFETY: as above.
                assert_eq!(unsafe { *(parcel as *const u64) }, 2 * turn);
            }
        });
    }
}
