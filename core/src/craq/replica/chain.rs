//! What comes along the chain: an update from the predecessor, and the order to bring a successor up to date.
//!
//! An update follows on what is committed here, or the predecessor is asked to send the whole chunk (I1, I2). A returning
//! replica trusts only the predecessor's state, not its own disk (R8).

use super::{Active, Replica, Waiting, refuse};
use crate::craq::{Bug, Effect, Forwarded, Outcome, Place, StoredPending, Ticket};
use crate::types::{Op, Status, Version};

impl Replica {
    pub(super) fn chain(&mut self, ticket: Ticket, update: Forwarded, out: &mut Vec<Effect>) {
        if update.chain_version != self.view.chain_version {
            return refuse(ticket, Status::WrongChainVersion, out);
        }
        match self.view.place {
            Place::Out => return refuse(ticket, Status::NotServing, out),
            Place::Member { head: true } => return refuse(ticket, Status::Invalid, out),
            Place::Member { head: false } | Place::Syncing => {}
        }
        let syncing = self.view.place == Place::Syncing;
        let is_replace = matches!(update.op, Op::Replace { .. });
        match &mut self.active {
            None => self.chain_now(ticket, update, out),
            Some(Active::Update(active)) if syncing && !active.is_live() => {
                // Left over from an earlier life, and perhaps never decided: only what the predecessor says
                // of the whole chunk counts.
                if !is_replace {
                    return refuse(ticket, Status::MissingVersion, out);
                }
                if self.bug == Bug::KeepStalePending && update.stamp <= self.committed {
                    let outcome = Outcome::Done { version: self.committed.version };
                    return out.push(Effect::Reply { ticket, outcome });
                }
                active.owner = Some(ticket);
                active.take_back(None, out);
                self.queue.push_front(Waiting::Chain { ticket, update });
            }
            Some(Active::Update(active)) if active.update.stamp == update.stamp => self.join(ticket, out),
            Some(_) => self.enqueue(Waiting::Chain { ticket, update }, out),
        }
    }

    /// An update from the predecessor while nothing else holds the chunk. Stamps of one chunk grow along its
    /// history, by chain version first.
    fn chain_now(&mut self, ticket: Ticket, update: Forwarded, out: &mut Vec<Effect>) {
        let done = Outcome::Done { version: self.committed.version };
        let is_replace = matches!(update.op, Op::Replace { .. });
        // What removes follows on nothing as well: a later member may have forgotten that tombstone already.
        let follows = match self.is_bare() {
            true => update.fresh || update.op == Op::Remove,
            false => update.stamp.version.0 == self.committed.version.0 + 1,
        };
        if is_replace && update.stamp.version == Version(0) {
            // The predecessor has no such chunk. Living content is not taken away by a late message.
            let outcome = if self.is_bare() { done } else { Outcome::Refused(Status::Stale) };
            return out.push(Effect::Reply { ticket, outcome });
        }
        if update.stamp <= self.committed {
            let is_ahead = is_replace && update.stamp < self.committed;
            if is_ahead && self.bug != Bug::ReplaceRollsBack {
                // A late message, or what this replica was staging when its predecessor's power was lost: to be compared again.
                return refuse(ticket, Status::Stale, out);
            }
            if !is_ahead {
                return out.push(Effect::Reply { ticket, outcome: done });
            }
        } else if is_replace && self.view.place != Place::Syncing {
            // A replacement is committed at once, so a member with successors cannot take it.
            return refuse(ticket, Status::MissingVersion, out);
        } else if !is_replace && !follows && self.bug != Bug::UpdateWithoutPrevious {
            return refuse(ticket, Status::MissingVersion, out);
        }
        let Forwarded { stamp, op, tag, writers, .. } = update;
        self.begin(ticket, StoredPending { stamp, op, tag }, writers, out);
    }

    pub(super) fn push(&mut self, ticket: Ticket, out: &mut Vec<Effect>) {
        let Some(to) = self.view.successor.filter(|successor| successor.syncing) else {
            return refuse(ticket, Status::NotServing, out);
        };
        if self.active.is_some() {
            return self.enqueue(Waiting::Push { ticket }, out);
        }
        if self.successor_has == Some(self.committed) {
            let outcome = Outcome::Done { version: self.committed.version };
            return out.push(Effect::Reply { ticket, outcome });
        }
        self.attempts += 1;
        let attempt = self.attempts;
        self.active = Some(Active::Push { owner: ticket, attempt });
        let chain_version = self.view.chain_version;
        out.push(Effect::Push { owner: ticket, attempt, to, chain_version, stamp: self.committed });
    }
}
