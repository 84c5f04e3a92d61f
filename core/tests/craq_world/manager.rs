//! The cluster manager, recovery of a replica that returns, and tombstones.

use luciola_core::craq::{Event, Outcome, Replica, Ticket};
use luciola_core::types::*;

use super::disk::Listing;
use super::{Action, Limits, Message, Mistake, PUSHER, World};

/// The tail's work to bring the SYNCING replica up to date (`fs/storage/recovery.py`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Resync {
    version: u64,
    tail: usize,
    returning: usize,
    chunks: Vec<Compared>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Compared {
    NotYet,
    /// What the returning replica's listing says of the chunk. The tail lists its own later.
    Listed(Listing),
    /// It has to be sent.
    Differs,
    /// No history of the chain explains this state of the returning replica: it must be set aside.
    Conflict(Stamp),
    Equal,
}

/// `fs/storage/compare.py`: both have the same, or the chunk has to be sent, after it is set aside if need be.
fn compare(ours: &Listing, theirs: &Listing, mistake: Mistake) -> Compared {
    let is_known = ours.pending.is_some_and(|pending| theirs.stamp.version <= pending);
    let is_ahead = match ours.is_absent() {
        true => theirs.stamp.version != Version(0) && !theirs.removed,
        false => theirs.stamp > ours.stamp && !is_known,
    };
    let same = |listing: &Listing| (listing.stamp, listing.removed, listing.bytes.clone());
    let is_pending = ours.pending.is_some() || theirs.pending.is_some();
    let looks_equal = same(ours) == same(theirs);
    if is_ahead {
        if mistake == Mistake::KeepAhead { Compared::Equal } else { Compared::Conflict(theirs.stamp) }
    } else if looks_equal && (!is_pending || mistake == Mistake::CompareCommittedOnly) {
        Compared::Equal
    } else {
        Compared::Differs
    }
}

impl World {
    // The chain -------------------------------------------------------------------------------------------

    pub(super) fn manager_actions(&self, limits: &Limits, node: usize, actions: &mut Vec<Action>) {
        let about = &self.nodes[node];
        if self.may_flush(limits, node) && about.is_alive() {
            actions.push(Action::Flush { node });
        }
        if about.is_alive() {
            if self.left.expiries > 0 && about.leased {
                actions.push(Action::Expire { node });
            }
            let may_hear = !about.must_fall || limits.mistake == Mistake::ServeOnAfterPowerLoss;
            if about.known < self.latest() && may_hear {
                actions.push(Action::Learn { node });
            }
            let is_current = about.known == self.latest() || limits.mistake == Mistake::LeaseWithoutRouting;
            if !about.leased && is_current {
                actions.push(Action::Grant { node });
            }
        }
        if self.latest() < limits.chain_versions {
            self.membership_actions(limits, node, actions);
        }
    }

    fn membership_actions(&self, limits: &Limits, node: usize, actions: &mut Vec<Action>) {
        let about = &self.nodes[node];
        let may_return = about.is_alive()
            && !self.serving().is_empty()
            && self.with_state(TargetState::Syncing).is_empty();
        match self.state_of(node) {
            TargetState::Serving | TargetState::Syncing
                if !about.leased && (self.serving() != [node] || !self.would_leave_out()) =>
            {
                actions.push(Action::Remove { node });
            }
            TargetState::Serving if self.left.rotations > 0 && may_return && self.serving().len() > 1 => {
                actions.push(Action::Rotate { node });
            }
            TargetState::LastServing if self.may_resume(limits, node) => {
                actions.push(Action::Revive { node })
            }
            TargetState::Offline | TargetState::Waiting if may_return => {
                actions.push(Action::BeginSync { node });
            }
            _ => {}
        }
    }

    pub(super) fn chain_actions(&self, limits: &Limits, actions: &mut Vec<Action>) {
        let chain_may_change = self.latest() < limits.chain_versions;
        let serving = self.serving();
        let all_are_dead = serving.len() > 1 && serving.iter().all(|node| !self.nodes[*node].leased);
        if chain_may_change && all_are_dead && !self.would_leave_out() {
            actions.push(Action::FallTogether);
        }
        for chunk in 0..limits.chunks {
            self.resync_actions(chunk, actions);
        }
        if self.may_end_resync() {
            actions.push(Action::SyncDone);
        }
        if self.up_to_date == Some(self.latest()) && chain_may_change {
            actions.push(Action::Promote);
        }
    }

    /// L6 of `fs/mgmtd/model.py`: a replica that was rotated, and may still serve as it has not heard of that, would not
    /// take part in writes any more if no replica served.
    fn would_leave_out(&self) -> bool {
        let may_serve = |node: &usize| {
            let about = &self.nodes[*node];
            about.is_alive()
                && about.leased
                && about.known > 0
                && self.chains[about.known as usize - 1].contains(&(*node, TargetState::Serving))
        };
        self.with_state(TargetState::Syncing).iter().any(may_serve)
    }

    /// A replica that lost nothing resumes as soon as it is there. Without one all must be there, and the one resumes
    /// whose chunks have seen the most updates (`fs/mgmtd/transitions.py`).
    fn may_resume(&self, limits: &Limits, node: usize) -> bool {
        let last = self.with_state(TargetState::LastServing);
        let updates = |place: &usize| self.nodes[*place].disk.updates();
        let all_are_there = last.iter().all(|place| self.nodes[*place].is_alive());
        let none_is_whole = last.iter().all(|place| self.nodes[*place].is_partial);
        let most = last.iter().map(updates).max();
        let is_best = all_are_there && none_is_whole && Some(updates(&node)) == most;
        let may = !self.nodes[node].is_partial || is_best || limits.mistake == Mistake::ResumeWithFirst;
        self.nodes[node].is_alive() && may
    }

    pub(super) fn remove(&mut self, node: usize) {
        let last = self.serving() == [node];
        self.change(node, if last { TargetState::LastServing } else { TargetState::Offline });
    }

    /// All that serve are found dead in one look: each had all that was acknowledged, and any of them may resume.
    pub(super) fn fall_together(&mut self) {
        let mut chain = self.chains[self.chains.len() - 1].clone();
        for (_, state) in &mut chain {
            *state = match *state {
                TargetState::Serving => TargetState::LastServing,
                TargetState::Syncing => TargetState::Waiting,
                other => other,
            };
        }
        self.publish(chain);
    }

    pub(super) fn change(&mut self, node: usize, state: TargetState) {
        if state == TargetState::Serving {
            // A replica that was moved behind it and has not heard of it may have shown what this one has lost.
            self.keep_promises();
        }
        let mut chain = self.chains[self.chains.len() - 1].clone();
        chain.retain(|(member, _)| *member != node);
        if state == TargetState::Serving {
            for (_, other) in chain.iter_mut().filter(|(_, other)| *other == TargetState::LastServing) {
                *other = TargetState::Offline;
            }
            self.nodes[node].is_partial = false;
        }
        let after_serving = chain.iter().filter(|(_, state)| *state == TargetState::Serving).count();
        match state {
            TargetState::Offline => chain.push((node, state)),
            _ => chain.insert(after_serving, (node, state)),
        }
        if after_serving == 0 && state != TargetState::Serving {
            for (_, state) in &mut chain {
                if *state == TargetState::Syncing {
                    *state = TargetState::Waiting;
                }
            }
        }
        self.publish(chain);
    }

    fn publish(&mut self, chain: Vec<(usize, TargetState)>) {
        for (node, state) in &chain {
            if !matches!(state, TargetState::Serving | TargetState::Syncing) {
                self.nodes[*node].must_fall = false;
            }
        }
        self.chains.push(chain);
        self.up_to_date = None;
        self.keep_promises();
    }

    /// What was acknowledged and not synced is promised as long as one replica that had it has not lost power.
    pub(super) fn keep_promises(&mut self) {
        let mut members = self.serving();
        members.extend(self.with_state(TargetState::LastServing));
        if members.iter().all(|node| self.nodes[*node].is_partial) {
            self.forget_unsynced();
        }
    }

    // Recovery --------------------------------------------------------------------------------------------

    /// The node receives the newest chain, and, as its tail, begins or continues to compare a SYNCING replica's chunks.
    /// It continues only under the very next version: every write in between has then reached that replica.
    pub(super) fn learn(&mut self, limits: &Limits, node: usize) {
        let version = self.latest();
        let view = self.view(version, node);
        self.nodes[node].known = version;
        self.forget_resync_where(|resync| resync.tail == node && version - resync.version > 1);
        let syncing = self.with_state(TargetState::Syncing).first().copied();
        if self.serving().last() == Some(&node) {
            let before = self.resync.take();
            self.resync = syncing.map(|returning| {
                let known = before.filter(|resync| (resync.tail, resync.returning) == (node, returning));
                let mut chunks = vec![Compared::NotYet; limits.chunks];
                for (chunk, known) in chunks.iter_mut().zip(known.into_iter().flat_map(|known| known.chunks))
                {
                    if known == Compared::Equal {
                        *chunk = known;
                    }
                }
                Resync { version, tail: node, returning, chunks }
            });
        } else {
            self.forget_resync_where(|resync| resync.tail == node);
        }
        for chunk in 0..limits.chunks {
            self.step(limits, node, chunk, Event::ViewChanged { view });
        }
    }

    fn forget_resync_where(&mut self, is_void: impl Fn(&Resync) -> bool) {
        self.resync.take_if(|resync| is_void(resync));
    }

    /// Of a process that ends.
    pub(super) fn forget_resync_of(&mut self, node: usize) {
        self.forget_resync_where(|resync| resync.tail == node);
        // What it had listed may have been lost with it.
        if let Some(resync) = self.resync.as_mut().filter(|resync| resync.returning == node) {
            resync.chunks.fill(Compared::NotYet);
        }
        if self.with_state(TargetState::Syncing) == [node] {
            self.up_to_date = None;
        }
    }

    /// The comparison under way, while both sides know of it.
    fn resync(&self) -> Option<&Resync> {
        self.resync.as_ref().filter(|resync| {
            let is_known =
                |node: usize| self.nodes[node].is_alive() && self.nodes[node].known == self.latest();
            resync.version == self.latest() && is_known(resync.tail) && is_known(resync.returning)
        })
    }

    fn compared(&mut self, chunk: usize) -> &mut Compared {
        &mut self.resync.as_mut().expect("a replica is compared").chunks[chunk]
    }

    fn resync_actions(&self, chunk: usize, actions: &mut Vec<Action>) {
        let Some(resync) = self.resync() else { return };
        let theirs = self.nodes[resync.returning].disk.chunk(chunk).listing(None);
        match &resync.chunks[chunk] {
            Compared::NotYet => actions.push(Action::List { chunk }),
            Compared::Listed(listing) => {
                if *listing != theirs {
                    actions.push(Action::List { chunk });
                }
                actions.push(Action::Compare { chunk });
            }
            Compared::Differs => {
                let lost = self.nodes[resync.tail].parts[chunk].outstanding.is_some();
                if !lost || self.left.resends > 0 {
                    actions.push(Action::Push { chunk });
                }
            }
            Compared::Conflict(_) => {
                if self.nodes[resync.returning].machine(chunk).is_at_rest() {
                    actions.push(Action::SetAside { chunk });
                }
            }
            Compared::Equal => {}
        }
    }

    pub(super) fn list(&mut self, chunk: usize) {
        let returning = self.resync.as_ref().expect("a replica is compared").returning;
        *self.compared(chunk) = Compared::Listed(self.nodes[returning].disk.chunk(chunk).listing(None));
    }

    pub(super) fn compare(&mut self, limits: &Limits, chunk: usize) {
        let Some(Resync { tail, returning, .. }) = self.resync else { unreachable!("a replica is compared") };
        let under_way = self.nodes[tail].machine(chunk).pending().map(|stamp| stamp.version);
        let under_way = under_way.filter(|_| limits.mistake != Mistake::CompareIndexOnly);
        let about = self.nodes[tail].disk.chunk(chunk);
        let (ours, history) = (about.listing(under_way), about.committed.history.clone());
        let compared = self.compared(chunk);
        let Compared::Listed(theirs) = std::mem::replace(compared, Compared::NotYet) else {
            unreachable!("listed before")
        };
        *compared = compare(&ours, &theirs, limits.mistake);
        let is_conflict = matches!(compared, Compared::Conflict(_));
        let are_removed = *compared == Compared::Equal && ours.removed && theirs.removed;
        let same_stamp = ours.stamp == theirs.stamp && ours.removed == theirs.removed;
        if same_stamp && ours.bytes != theirs.bytes {
            self.fault = Some("two contents under one stamp");
        } else if is_conflict && limits.power_losses == 0 && !self.purged {
            self.fault = Some("a chunk is ahead of its predecessor's although no power was lost");
        } else if are_removed || (ours.is_absent() && theirs.is_absent()) {
            // Nothing here and nothing there, however that came about: one may have been sent that a later removal found
            // nothing, and kept its own tombstone.
            self.nodes[returning].disk.learn_history(chunk, history);
        }
    }

    /// The returning replica keeps the chunk in a file, and forgets it.
    pub(super) fn set_aside(&mut self, limits: &Limits, chunk: usize) {
        let Some(Resync { returning, .. }) = self.resync else { unreachable!("a replica is compared") };
        let compared = self.compared(chunk);
        let Compared::Conflict(stamp) = std::mem::replace(compared, Compared::NotYet) else {
            unreachable!("compared before")
        };
        let view = self.view(self.latest(), returning);
        let node = &mut self.nodes[returning];
        if node.disk.chunk(chunk).committed.stamp == stamp {
            node.disk.forget(chunk);
            node.open(chunk, view, limits.bug);
            self.purged = true;
        }
    }

    /// The tail sends what it has committed.
    pub(super) fn push(&mut self, limits: &Limits, chunk: usize) {
        let tail = self.resync.as_ref().expect("a replica is compared").tail;
        let ticket = Ticket(PUSHER.0 | self.latest());
        if self.nodes[tail].parts[chunk].outstanding.is_some() {
            self.left.resends -= 1;
            self.answer_is_lost(limits, tail, chunk);
        }
        self.step(limits, tail, chunk, Event::Leave { ticket });
        let chain_version = ChainVersion(self.latest());
        self.step(limits, tail, chunk, Event::Push { ticket, chain_version });
    }

    /// The outcome of a push under that chain version. After a refusal the chunk is compared again.
    pub(super) fn pushed(&mut self, chunk: usize, version: u64, outcome: Outcome) {
        if let Some(resync) = self.resync.as_mut().filter(|resync| resync.version == version) {
            match outcome {
                Outcome::Done { .. } => resync.chunks[chunk] = Compared::Equal,
                Outcome::Refused(Status::Stale) => resync.chunks[chunk] = Compared::NotYet,
                Outcome::Refused(_) => {}
            }
        }
    }

    fn may_end_resync(&self) -> bool {
        let is_equal = |resync: &Resync| resync.chunks.iter().all(|chunk| *chunk == Compared::Equal);
        self.up_to_date != Some(self.latest()) && self.resync().is_some_and(is_equal)
    }

    /// The returning replica makes durable what it was given, and says that it is up to date.
    pub(super) fn sync_done(&mut self, limits: &Limits) {
        let returning = self.resync.as_ref().expect("a replica was compared").returning;
        if limits.mistake != Mistake::PromoteUnflushed {
            self.nodes[returning].disk.flush();
        }
        self.nodes[returning].is_partial = false;
        self.up_to_date = Some(self.latest());
    }

    // Tombstones ------------------------------------------------------------------------------------------

    pub(super) fn tombstone_actions(&self, limits: &Limits, node: usize, actions: &mut Vec<Action>) {
        for chunk in 0..limits.chunks {
            if self.may_purge(limits, node, chunk) {
                actions.push(Action::Purge { node, chunk });
            }
        }
        if self.may_purge_neighbour(limits, node) {
            actions.push(Action::PurgeNeighbour { node });
        }
    }

    /// A tombstone is forgotten when all replicas serve, and so long after it was made that nothing from before it can
    /// still arrive: no message (its deadline has passed), and no request, which its client has given up.
    fn may_purge(&self, limits: &Limits, node: usize, chunk: usize) -> bool {
        let about = self.nodes[node].disk.chunk(chunk);
        let before = |message: &Message| match message {
            Message::Update { to, chunk: other, update, .. } => {
                (*to, *other) == (node, chunk) && update.stamp < about.committed.stamp
            }
            Message::Answer { .. } => false,
        };
        self.left.purges > 0
            && about.committed.removed
            && about.pending.is_none()
            && self.nodes[node].known == self.latest()
            && self.serving().len() == limits.replicas
            && (limits.mistake == Mistake::PurgeEarly || !self.network.iter().any(before))
    }

    pub(super) fn purge(&mut self, limits: &Limits, node: usize, chunk: usize) {
        let stamp = self.nodes[node].disk.chunk(chunk).committed.stamp;
        self.step(limits, node, chunk, Event::Forget { stamp });
        if self.nodes[node].disk.chunk(chunk).committed.removed {
            return; // this chunk has work in progress
        }
        self.left.purges -= 1;
        self.purged = true;
        for writer in self.writers.iter_mut().filter(|writer| writer.sends > 0) {
            writer.sends = limits.sends;
        }
    }

    /// The floor is of the whole disk, and a machine that has nothing to do is made again when it is needed. Of a chunk
    /// that does not live the length would not be the version afterwards.
    fn may_purge_neighbour(&self, limits: &Limits, node: usize) -> bool {
        let about = &self.nodes[node];
        let is_fit = |chunk: usize| {
            let here = about.disk.chunk(chunk);
            about.parts[chunk].machine.as_ref().is_some_and(Replica::is_at_rest)
                && here.pending.is_none()
                && !here.committed.is_bare()
        };
        self.left.neighbours > 0 && (0..limits.chunks).all(is_fit)
    }

    pub(super) fn purge_neighbour(&mut self, limits: &Limits, node: usize) {
        self.left.neighbours -= 1;
        let about = &mut self.nodes[node];
        let view = *about.machine(0).view();
        let versions = about.disk.chunks().iter().map(|chunk| chunk.committed.stamp.version);
        let highest = versions.max().expect("a chunk").max(about.disk.floor());
        about.disk.raise_floor(Version(highest.0 + 1));
        (0..limits.chunks).for_each(|chunk| about.open(chunk, view, limits.bug));
    }
}
