//! The attempts at one request, for its error: how long and how often it was tried, and how far the last one got.

use std::fmt;
use std::time::Instant;

/// How far the last attempt got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// There was no connection, or the request could not be sent.
    Unsent,
    Sent,
    Answered,
}

/// The attempts at one request. `P` names the peer of the last one; without one, the request waited for this process or
/// for routing.
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
        self.count = self.count.saturating_add(1);
        self.peer = Some(peer);
        self.reached = Reached::Unsent;
    }

    pub fn reached(&mut self, reached: Reached) {
        assert!(self.count > 0, "an attempt has begun");
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
            return write!(f, "no request sent within {passed_s:.1} s");
        };
        write!(f, "{} attempts in {passed_s:.1} s, the last to {peer}, ", self.count)?;
        f.write_str(match self.reached {
            Reached::Unsent => "not sent",
            Reached::Sent => "sent and not answered",
            Reached::Answered => "answered",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_say_how_far_the_last_one_got() {
        let mut attempts = Attempts::new();
        assert!(attempts.to_string().starts_with("no request sent within "), "{attempts}");
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
}
