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
    suppressed: u64,
}

impl Warnings {
    pub const fn new() -> Warnings {
        Warnings(Mutex::new(Window { begun: None, lines: 0, suppressed: 0 }))
    }

    /// Log the line, or count it.
    pub fn warn(&self, line: fmt::Arguments<'_>) {
        let Some(suppressed) = self.0.lock().admit(Instant::now()) else { return };
        if suppressed > 0 {
            log::warn!("suppressed {suppressed} similar messages");
        }
        log::warn!("{line}");
    }
}

impl Window {
    /// `None`: not this line; otherwise how many were suppressed before it.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.begun.is_none_or(|begun| now.duration_since(begun) >= WINDOW) {
            (self.begun, self.lines) = (Some(now), 0);
        }
        if self.lines == LINES_MAX {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn window_admits_its_limit_and_the_next_counts_suppressed_lines() {
        let mut window = Window { begun: None, lines: 0, suppressed: 0 };
        let now = Instant::now();
        let admitted: Vec<_> = (0..LINES_MAX + 5).filter_map(|_| window.admit(now)).collect();
        assert_eq!(admitted, vec![0; LINES_MAX as usize]);
        assert_eq!(window.admit(now + WINDOW), Some(5));
        assert_eq!(window.admit(now + WINDOW), Some(0));
    }
}
