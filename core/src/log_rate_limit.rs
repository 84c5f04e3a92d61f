//! Log lines at a bounded rate.

use std::fmt;
use std::time::{Duration, Instant};

use crate::lock::Mutex;

/// Lines of one kind in one window; where a node hangs, thousands of requests may wait for the same.
const LINES_MAX: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// Warnings at a bounded rate.
pub struct Warnings(Mutex<Window>);

struct Window {
    begun: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Warnings {
    pub const fn new() -> Warnings {
        Warnings(Mutex::new(Window { begun: None, lines: 0, left_out: 0 }))
    }

    /// Logs the line, or counts it.
    pub fn warn(&self, line: fmt::Arguments<'_>) {
        let Some(left_out) = self.0.lock().admit(Instant::now()) else { return };
        if left_out > 0 {
            log::warn!("{left_out} lines like the next were left out");
        }
        log::warn!("{line}");
    }
}

impl Window {
    /// `None`: not this line; otherwise how many were left out before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.begun.is_none_or(|begun| now.duration_since(begun) >= WINDOW) {
            (self.begun, self.lines) = (Some(now), 0);
        }
        if self.lines == LINES_MAX {
            self.left_out += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_holds_so_many_lines_and_the_next_tells_what_was_left_out() {
        let mut window = Window { begun: None, lines: 0, left_out: 0 };
        let now = Instant::now();
        let admitted: Vec<_> = (0..LINES_MAX + 5).filter_map(|_| window.admit(now)).collect();
        assert_eq!(admitted, vec![0; LINES_MAX as usize]);
        assert_eq!(window.admit(now + WINDOW), Some(5));
        assert_eq!(window.admit(now + WINDOW), Some(0));
    }
}
