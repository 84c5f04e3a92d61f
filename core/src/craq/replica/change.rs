//! What changes without a request: time passes, a caller leaves, routing says something new, a tombstone gets old.
//!
//! Nothing pending is dropped here (R5). What waits in the queue under the old chain version is refused, but for a head's clients.

use super::{Active, Phase, Replica, Waiting, refuse};
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
        for waiting in std::mem::take(&mut self.queue) {
            match waiting {
                Waiting::Client { .. } if view.is_head() => self.queue.push_back(waiting),
                // Its own pending version is being dropped: the order is looked at again after that.
                _ => refuse(waiting.ticket(), Status::WrongChainVersion, out),
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
                // These end by themselves, and what follows is decided by the new view.
                Phase::Staging | Phase::Committing | Phase::Dropping { .. } => {}
            },
            None => {}
        }
    }

    /// A tombstone and its absence are the same for whatever may still come, so every member forgets its own.
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
