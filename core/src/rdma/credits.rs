//! How many messages may be sent: a pure machine, one for each end of a connection (docs/protocol.md, "Messages").
//!
//! - C1 An end sends only what the other has a buffer for, so no message ever meets an empty queue.
//! - C2 Neither end waits indefinitely: one buffer is kept for a message that only returns buffers, and an end that owes
//!   half its window must send one.

use crate::wire::rdma::WINDOW_MIN;

/// What one end knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Credits {
    /// Buffers of the other end that are free for us.
    free: u16,
    /// The other end's window.
    free_max: u16,
    /// Buffers of ours that were posted again and that the other end does not know of.
    owed: u16,
    /// Buffers of ours that the other end knows to be free.
    known: u16,
    /// Our window.
    window: u16,
}

/// What the other end may not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CreditError {
    #[error("more receive buffers were returned than there are")]
    TooManyReturned,
    #[error("more messages came than there were receive buffers for")]
    TooManyMessages,
}

impl Credits {
    pub fn new(window: u16, window_of_peer: u16) -> Credits {
        assert!(
            window >= WINDOW_MIN && window_of_peer >= WINDOW_MIN,
            "with less, ends would return buffers to each other without end"
        );
        Credits { free: window_of_peer, free_max: window_of_peer, owed: 0, known: window, window }
    }

    /// Whether a message with bytes may be sent.
    pub fn may_send(&self) -> bool {
        self.free >= 2
    }

    /// Whether a message must be sent only to return buffers, and may be.
    pub fn must_return(&self) -> bool {
        self.owed >= self.window / 2 && self.free >= 1
    }

    /// A message goes out; it returns that many buffers.
    pub fn send(&mut self) -> u16 {
        assert!(self.free >= 1, "C1: the sender has checked `may_send`");
        assert!(self.free <= self.free_max, "no end has more buffers than its window");
        self.free -= 1;
        self.known += self.owed;
        std::mem::take(&mut self.owed)
    }

    /// A message came in that returns `returned` buffers.
    pub fn receive(&mut self, returned: u16) -> Result<(), CreditError> {
        self.known = self.known.checked_sub(1).ok_or(CreditError::TooManyMessages)?;
        let free = self.free.checked_add(returned).filter(|free| *free <= self.free_max);
        self.free = free.ok_or(CreditError::TooManyReturned)?;
        Ok(())
    }

    /// The buffer of a message is posted again.
    pub fn repost(&mut self) {
        self.owed += 1;
        assert!(self.owed + self.known <= self.window, "an end has no more buffers than its window");
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashSet, VecDeque};

    use super::*;

    /// Two ends and the messages under way between them (buffers returned, and whether there are bytes).
    #[derive(Clone, PartialEq, Eq, Hash)]
    struct CreditWorld {
        ends: [Credits; 2],
        /// Posted receive buffers, as the devices know them.
        posted: [u16; 2],
        /// Received and not yet posted again.
        held: [u16; 2],
        /// Towards end 0 and towards end 1.
        lines: [VecDeque<(u16, bool)>; 2],
        /// Messages with bytes that each end still wants to send.
        wanted: [u8; 2],
    }

    impl CreditWorld {
        fn new(windows: [u16; 2], wanted: u8) -> CreditWorld {
            CreditWorld {
                ends: [Credits::new(windows[0], windows[1]), Credits::new(windows[1], windows[0])],
                posted: windows,
                held: [0; 2],
                lines: Default::default(),
                wanted: [wanted; 2],
            }
        }

        fn send(&self, end: usize, bytes: bool) -> CreditWorld {
            let mut next = self.clone();
            let returned = next.ends[end].send();
            next.wanted[end] -= u8::from(bytes);
            next.lines[1 - end].push_back((returned, bytes));
            next
        }

        /// Everything that could happen next.
        fn steps(&self) -> Vec<CreditWorld> {
            let mut steps = Vec::new();
            for end in 0..2 {
                if self.wanted[end] > 0 && self.ends[end].may_send() {
                    steps.push(self.send(end, true));
                }
                if self.ends[end].must_return() {
                    steps.push(self.send(end, false));
                }
                if let Some((returned, _)) = self.lines[end].front() {
                    let mut next = self.clone();
                    assert!(next.posted[end] > 0, "C1: a message finds a buffer");
                    next.posted[end] -= 1;
                    next.held[end] += 1;
                    next.ends[end].receive(*returned).unwrap();
                    next.lines[end].pop_front();
                    steps.push(next);
                }
                if self.held[end] > 0 {
                    let mut next = self.clone();
                    next.held[end] -= 1;
                    next.posted[end] += 1;
                    next.ends[end].repost();
                    steps.push(next);
                }
            }
            steps
        }
    }

    /// All orders of events, for small windows.
    #[test]
    fn every_message_finds_a_buffer_and_none_waits_indefinitely() {
        for windows in [[4, 4], [4, 5], [6, 4]] {
            let mut seen = HashSet::new();
            let mut open = vec![CreditWorld::new(windows, 3)];
            let mut finished = 0;
            while let Some(world) = open.pop() {
                if !seen.insert(world.clone()) {
                    continue;
                }
                let steps = world.steps();
                if steps.is_empty() {
                    assert_eq!(world.wanted, [0, 0], "C2: both ends wait");
                    finished += 1;
                }
                open.extend(steps);
            }
            assert!(finished > 0, "windows {windows:?}: returning buffers never ends");
        }
    }

    #[test]
    fn more_buffers_than_there_are_is_an_error() {
        let mut credits = Credits::new(8, 4);
        assert_eq!(credits.receive(1), Err(CreditError::TooManyReturned));
        credits.send();
        assert_eq!(credits.receive(2), Err(CreditError::TooManyReturned));
        assert_eq!(credits.receive(1), Ok(()));
        assert_eq!(credits.receive(u16::MAX), Err(CreditError::TooManyReturned));
    }

    #[test]
    fn more_messages_than_the_other_end_knows_buffers_for_is_an_error() {
        let mut credits = Credits::new(4, 4);
        // It never returns any, so neither can we.
        for _ in 0..4 {
            credits.send();
        }
        for _ in 0..4 {
            assert_eq!(credits.receive(0), Ok(()));
            credits.repost();
        }
        assert_eq!(credits.receive(0), Err(CreditError::TooManyMessages));
    }

    #[test]
    fn a_message_returns_what_is_owed() {
        let mut credits = Credits::new(8, 8);
        for _ in 0..3 {
            credits.receive(0).unwrap();
            credits.repost();
        }
        assert!(!credits.must_return());
        credits.receive(0).unwrap();
        credits.repost();
        assert!(credits.must_return());
        assert_eq!(credits.send(), 4);
        assert!(!credits.must_return());
    }
}
