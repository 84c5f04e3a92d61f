//! What changes without a request: time passes, a caller leaves, routing says something new, a tombstone gets old.
//!
//! Nothing pending is dropped here (R5); what is still being staged when the replica leaves is taken back later (R9).
//! What waits in the queue came under the old chain version, and is refused.

use super::{Active, Phase, Replica, refuse};
use crate::craq::{Bug, Effect, Ticket, View};
use crate::types::{Stamp, Status};

impl Replica {
    pub(super) fn retry(&mut self, out: &mut Vec<Effect>) {
        if let Some(Active::Update(active)) = &self.active
            && active.phase == Phase::Stalled
            && self.view.is_member()
        {
            self.drive(out);
        }
    }

    pub(super) fn leave(&mut self, ticket: Ticket, out: &mut Vec<Effect>) {
        self.queue.retain(|waiting| waiting.ticket() != ticket);
        self.readers.retain(|reader| *reader != ticket);
        match &mut self.active {
            Some(Active::Push { owner, .. }) if *owner == ticket => self.settle(out),
            Some(Active::Update(active)) => {
                active.joined.retain(|joined| *joined != ticket);
                if active.owner == Some(ticket) {
                    // Its thread may be in the middle of an effect, which it finishes; the next one is not its.
                    active.owner = None;
                }
            }
            _ => {}
        }
        refuse(ticket, Status::Timeout, out);
    }

    pub(super) fn view_changed(&mut self, view: View, out: &mut Vec<Effect>) {
        if view.chain_version <= self.view.chain_version {
            return;
        }
        self.view = view;
        self.successor_has = None;
        // Lease and version were looked at when they came, under the view before (R4): their senders come again.
        if self.bug != Bug::KeepQueueOnChange {
            for waiting in std::mem::take(&mut self.queue) {
                refuse(waiting.ticket(), Status::WrongChainVersion, out);
            }
        }
        if !view.is_tail() {
            let status = if view.is_member() { Status::Dirty } else { Status::NotServing };
            for ticket in std::mem::take(&mut self.readers) {
                refuse(ticket, status, out);
            }
        }
        match &mut self.active {
            Some(Active::Push { owner, .. }) => {
                let owner = *owner;
                refuse(owner, Status::WrongChainVersion, out);
                self.settle(out);
            }
            Some(Active::Update(active)) => match active.phase {
                Phase::Forwarding { .. } | Phase::Stalled if self.bug == Bug::DropPendingOnChange => {
                    active.take_back(Some(Status::WrongChainVersion), out);
                }
                Phase::Forwarding { .. } | Phase::Stalled => self.drive(out),
                Phase::Staging => active.left |= !view.is_member() && active.is_withdrawable(self.bug),
                // These end by themselves, and what follows is decided by the new view.
                Phase::Committing | Phase::Dropping { .. } => {}
            },
            None => {}
        }
    }

    /// A tombstone and its absence are the same for every message that may still come, so every member forgets its own.
    pub(super) fn forget(&mut self, stamp: Stamp, out: &mut Vec<Effect>) {
        if self.active.is_none() && self.removed && self.committed == stamp {
            out.push(Effect::Forget { stamp });
            self.floor = self.floor.max(self.committed.version);
            self.committed = Stamp::default();
            self.removed = false;
            self.writers.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::craq::{Event, Outcome, Place, StageEnd, Stored};
    use crate::types::{ChainVersion, ClientId, Op, RequestTag};

    #[test]
    fn queued_requests_are_refused_when_the_chain_changes_under_the_same_head() {
        let view = |version| View {
            chain_version: ChainVersion(version),
            place: Place::Member { head: true },
            successor: None,
        };
        let mut replica = Replica::open(view(1), Stored::default());
        let mut ask = |ticket| {
            let tag = RequestTag { client: ClientId(ticket), sequence: 1 };
            let (ticket, op) = (Ticket(ticket), Op::Remove);
            replica.step(Event::Client { ticket, chain_version: ChainVersion(1), op, tag, leased: true })
        };
        assert!(matches!(ask(1)[..], [Effect::Stage { .. }]));
        assert_eq!(ask(2), [], "waits for the first");
        let outcome = Outcome::Refused(Status::WrongChainVersion);
        let refused = Effect::Reply { ticket: Ticket(2), outcome };
        assert_eq!(replica.step(Event::ViewChanged { view: view(2) }), [refused]);
        let staged = Event::Staged { result: Ok(StageEnd::Pending) };
        assert!(matches!(replica.step(staged)[..], [Effect::Commit { .. }]));
    }
}
