//! What is said of a request that was given up: how long and how often it was tried, and how far it got.

use std::fmt;
use std::time::{Duration, Instant};

use crate::lock::Mutex;

/// Lines of one kind in one window; where a node hangs, thousands of requests may wait for the same.
const LINES_MAX: u32 = 10;
const WINDOW: Duration = Duration::from_secs(10);

/// How far the last attempt got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// There was no connection, or the request could not be sent.
    Unsent,
    Sent,
    Answered,
}

/// The attempts at one request. `P` says to whom the last one went; without one, something of this process, or the routing, was
/// waited for.
#[derive(Clone, Copy, Debug)]
pub struct Attempts<P> {
    begun: Instant,
    count: u32,
    peer: Option<P>,
    reached: Reached,
    /// An attempt before the last one was sent and not answered.
    outstanding: bool,
}

impl<P> Attempts<P> {
    pub fn new() -> Attempts<P> {
        Attempts { begun: Instant::now(), count: 0, peer: None, reached: Reached::Unsent, outstanding: false }
    }

    /// One more begins.
    pub fn begin(&mut self, peer: P) {
        self.outstanding = self.may_arrive();
        self.count += 1;
        self.peer = Some(peer);
        self.reached = Reached::Unsent;
    }

    pub fn reached(&mut self, reached: Reached) {
        self.reached = reached;
    }

    /// Whether an attempt that was not answered may still be on its way.
    pub fn may_arrive(&self) -> bool {
        self.outstanding || self.reached == Reached::Sent
    }
}

impl<P: fmt::Display> fmt::Display for Attempts<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let passed_s = self.begun.elapsed().as_secs_f32();
        let Some(peer) = &self.peer else {
            return write!(f, "nobody was asked in {passed_s:.1} s");
        };
        write!(f, "{} attempts in {passed_s:.1} s, the last to {peer}, ", self.count)?;
        f.write_str(match self.reached {
            Reached::Unsent => "not sent",
            Reached::Sent => "sent and not answered",
            Reached::Answered => "answered",
        })
    }
}

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
    fn attempts_say_how_far_the_last_one_got() {
        let mut attempts = Attempts::new();
        assert!(attempts.to_string().starts_with("nobody was asked in "), "{attempts}");
        attempts.begin("node 1");
        assert!(attempts.to_string().ends_with("the last to node 1, not sent"), "{attempts}");
        attempts.reached(Reached::Answered);
        attempts.begin("node 2");
        assert!(!attempts.may_arrive());
        attempts.reached(Reached::Sent);
        assert!(attempts.may_arrive());
        assert!(attempts.to_string().starts_with("2 attempts in "), "{attempts}");
        assert!(attempts.to_string().ends_with("the last to node 2, sent and not answered"), "{attempts}");
        attempts.begin("node 3");
        attempts.reached(Reached::Answered);
        assert!(attempts.may_arrive(), "the attempt before was never answered");
    }

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
