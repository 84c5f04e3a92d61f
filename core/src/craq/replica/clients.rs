//! What clients ask of this replica: an update of the head, or to be served what is committed.
//!
//! A request is refused by what is known now: the chain version, this replica's place, its lease (R4). A request that is
//! remembered, or under way, is not begun a second time (I4, R6); nothing is read while a later member may have committed
//! more (I5).

use super::{Active, Phase, Replica, Waiting, has_identity, refuse};
use crate::craq::{Bug, Effect, Outcome, READERS_MAX, StoredPending, Ticket};
use crate::types::{ChainVersion, Op, RequestTag, Stamp, Status, Version};

impl Replica {
    pub(super) fn refuse_client(&self, chain_version: ChainVersion, op: Op, leased: bool) -> Option<Status> {
        if chain_version != self.view.chain_version && self.bug != Bug::IgnoreChainVersion {
            Some(Status::WrongChainVersion)
        } else if !self.view.is_member() {
            Some(Status::NotServing)
        } else if !self.view.is_head() {
            Some(Status::NotHead)
        } else if !leased && self.bug != Bug::IgnoreLease {
            Some(Status::NoLease)
        } else if matches!(op, Op::Replace { .. }) {
            Some(Status::Invalid)
        } else {
            None
        }
    }

    pub(super) fn client(&mut self, ticket: Ticket, op: Op, tag: RequestTag, out: &mut Vec<Effect>) {
        if let Some(outcome) = self.executed(tag) {
            return out.push(Effect::Reply { ticket, outcome });
        }
        if let Some(Active::Update(active)) = &self.active
            && has_identity(tag)
            && active.update.tag == tag
        {
            return self.join(ticket, out);
        }
        let waiting = Waiting::Client { ticket, op, tag };
        if self.active.is_some() {
            return self.enqueue(waiting, out);
        }
        let stamp = Stamp { chain_version: self.view.chain_version, version: self.next_version() };
        self.begin(ticket, StoredPending { stamp, op, tag }, Vec::new(), out);
    }

    /// Of the next update of this head: it follows on what is here. The first after nothing is higher than every
    /// tombstone that another member may still have. The floor is of the whole disk, so a chunk that lives may be below.
    fn next_version(&self) -> Version {
        let begins = self.is_bare() || self.bug == Bug::FloorForAll;
        let floor = if begins && self.bug != Bug::BirthRestarts { self.floor } else { Version(0) };
        Version(self.committed.version.max(floor).0 + 1)
    }

    /// The outcome of a request that this chunk remembers.
    fn executed(&self, tag: RequestTag) -> Option<Outcome> {
        let record = self.writers.iter().find(|record| record.tag.client == tag.client)?;
        if !has_identity(tag) || tag.sequence > record.tag.sequence {
            None
        } else if tag.sequence == record.tag.sequence {
            Some(Outcome::Done { version: record.version })
        } else {
            Some(Outcome::Refused(Status::Stale))
        }
    }

    pub(super) fn read(
        &mut self,
        ticket: Ticket,
        chain_version: ChainVersion,
        leased: bool,
        out: &mut Vec<Effect>,
    ) {
        if chain_version != self.view.chain_version {
            return refuse(ticket, Status::WrongChainVersion, out);
        }
        if !self.view.is_member() {
            return refuse(ticket, Status::NotServing, out);
        }
        if !leased && self.bug != Bug::IgnoreLease {
            return refuse(ticket, Status::NoLease, out);
        }
        if !self.has_unsettled() {
            out.push(Effect::Serve { ticket });
        } else if !self.view.is_tail() {
            refuse(ticket, Status::Dirty, out);
        } else if self.readers.len() < READERS_MAX {
            self.readers.push(ticket);
        } else {
            refuse(ticket, Status::Busy, out);
        }
    }

    /// Whether a later member may have committed more than this one (I5). While the update is still being
    /// staged, no later member has seen it.
    fn has_unsettled(&self) -> bool {
        let unsettled =
            matches!(&self.active, Some(Active::Update(active)) if active.phase != Phase::Staging);
        match self.bug {
            Bug::ServeWhilePending => false,
            Bug::TailIgnoresSyncing if self.view.is_tail() && self.view.successor.is_some() => false,
            _ => unsettled,
        }
    }
}
