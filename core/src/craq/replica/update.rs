//! The steps of one update: staged, forwarded if a member follows, committed, and answered; or dropped.
//!
//! Each station is one effect, and the next begins when its end is reported. A member without a successor commits what
//! it stages in the same record. What was forwarded more than once is not taken back (R9); what is on disk and has no way on
//! stalls there (R5).

use super::{Active, Phase, Replica, Update, has_identity, refuse};
use crate::craq::{Bug, Content, Effect, Outcome, Place, QUEUE_MAX, StageEnd, StoredPending, Ticket};
use crate::types::{Op, RequestTag, Status, Version, WRITERS_MAX, WriterRecord};

impl Update {
    /// Anything but a pending version that was found, or left, on disk.
    pub(super) fn is_live(&self) -> bool {
        self.phase != Phase::Stalled
    }

    /// Whether it can be taken back once it is staged. A `Replace` cannot: the engine commits it at once, and what it
    /// brings is its sender's state, which a comparison finds there.
    pub(super) fn is_withdrawable(&self, bug: Bug) -> bool {
        !matches!(self.update.op, Op::Replace { .. })
            && !matches!(bug, Bug::KeepStagedByLeaver | Bug::CommitOwnAsSyncing)
    }

    fn callers(&mut self) -> impl Iterator<Item = Ticket> {
        self.owner.take().into_iter().chain(std::mem::take(&mut self.joined))
    }

    fn refuse(&mut self, status: Status, out: &mut Vec<Effect>) {
        self.callers().for_each(|ticket| refuse(ticket, status, out));
    }

    fn commit(&mut self, out: &mut Vec<Effect>) {
        self.phase = Phase::Committing;
        out.push(Effect::Commit { owner: self.owner, stamp: self.update.stamp });
    }

    pub(super) fn take_back(&mut self, refusal: Option<Status>, out: &mut Vec<Effect>) {
        self.phase = Phase::Dropping { refusal };
        out.push(Effect::Drop { owner: self.owner, stamp: self.update.stamp });
    }
}

impl Replica {
    pub(super) fn begin(
        &mut self,
        ticket: Ticket,
        update: StoredPending,
        writers: Vec<WriterRecord>,
        out: &mut Vec<Effect>,
    ) {
        assert!(self.active.is_none(), "one thing at a time holds a chunk");
        let syncing = self.view.place == Place::Syncing;
        self.active = Some(Active::Update(Update {
            update,
            writers,
            owner: Some(ticket),
            joined: Vec::new(),
            phase: Phase::Staging,
            syncing_under: syncing.then_some(self.view.chain_version),
            whole: false,
            sends: 0,
            left: false,
        }));
        let last = self.view.is_member() && self.view.successor.is_none();
        out.push(Effect::Stage { owner: ticket, update, fresh: self.is_bare(), last });
    }

    /// The same update came again: its caller receives the one outcome.
    pub(super) fn join(&mut self, ticket: Ticket, out: &mut Vec<Effect>) {
        let Some(Active::Update(active)) = &mut self.active else { unreachable!("only an update is joined") };
        if active.joined.len() >= QUEUE_MAX {
            return refuse(ticket, Status::Busy, out);
        }
        if active.owner.is_none() {
            active.owner = Some(ticket);
        } else {
            active.joined.push(ticket);
        }
        self.retry(out);
    }

    pub(super) fn staged(&mut self, result: Result<StageEnd, Status>, out: &mut Vec<Effect>) {
        let active = self.update_in(|phase| phase == Phase::Staging);
        match result {
            // Also if a replica has come behind this one meanwhile: its comparison finds the chunk pending, and sends it.
            Ok(StageEnd::Committed) => self.end_update(out),
            Ok(StageEnd::Pending) if active.left => active.take_back(Some(Status::WrongChainVersion), out),
            Ok(StageEnd::Pending) => self.drive(out),
            Err(status) => {
                active.refuse(status, out);
                self.settle(out);
            }
        }
    }

    /// Take a version that is on disk to its next station.
    pub(super) fn drive(&mut self, out: &mut Vec<Effect>) {
        let fresh = self.is_bare();
        let Some(Active::Update(active)) = &mut self.active else { unreachable!("an update is driven") };
        let agreed = active.syncing_under == Some(self.view.chain_version)
            || (self.bug == Bug::CommitOwnAsSyncing && active.phase == Phase::Staging);
        let successor = match self.view.place {
            Place::Member { .. } => self.view.successor,
            Place::Syncing if agreed => None,
            // It stays on disk, also if it was begun in an earlier life as a member: whatever this replica becomes
            // later decides about it (R5, R8).
            Place::Syncing | Place::Out => {
                active.phase = Phase::Stalled;
                return active.refuse(Status::WrongChainVersion, out);
            }
        };
        let Some(to) = successor else {
            return active.commit(out);
        };
        self.attempts += 1;
        active.sends += 1;
        active.phase = Phase::Forwarding { attempt: self.attempts };
        // What a returning replica holds is not known, unless it has said so.
        let unknown = to.syncing && self.successor_has != Some(self.committed);
        let whole = (active.whole || unknown) && self.bug != Bug::UpdateWithoutPrevious;
        out.push(Effect::Forward {
            owner: active.owner,
            attempt: self.attempts,
            to,
            chain_version: self.view.chain_version,
            update: active.update,
            fresh,
            content: if whole { Content::Whole } else { Content::Update },
        });
        if self.bug == Bug::CommitBeforeAnswer {
            active.commit(out);
        }
    }

    pub(super) fn answered(&mut self, attempt: u64, result: Result<(), Status>, out: &mut Vec<Effect>) {
        match &mut self.active {
            Some(Active::Push { owner, attempt: current }) if *current == attempt => {
                let owner = *owner;
                let outcome = match result {
                    Ok(()) => {
                        self.successor_has = Some(self.committed);
                        Outcome::Done { version: self.committed.version }
                    }
                    Err(status) => Outcome::Refused(status),
                };
                out.push(Effect::Reply { ticket: owner, outcome });
                self.settle(out);
            }
            Some(Active::Update(active)) if active.phase == (Phase::Forwarding { attempt }) => match result {
                Ok(()) => {
                    self.successor_has = Some(active.update.stamp);
                    active.commit(out);
                }
                Err(Status::MissingVersion)
                    if !active.whole && self.view.successor.is_some_and(|successor| successor.syncing) =>
                {
                    active.whole = true;
                    self.drive(out);
                }
                Err(status)
                    if is_final(status) && (active.sends == 1 || self.bug == Bug::AbortAfterRetry) =>
                {
                    // R9: the only send was refused, so no later member has it or will.
                    active.take_back(Some(status), out);
                }
                Err(status) => {
                    active.phase = Phase::Stalled;
                    out.push(Effect::Stalled { owner: active.owner, status });
                }
            },
            // An answer to an earlier attempt, or under an earlier view of the chain.
            _ => {}
        }
    }

    pub(super) fn committed_event(&mut self, result: Result<(), Status>, out: &mut Vec<Effect>) {
        let active = self.update_in(|phase| phase == Phase::Committing);
        if let Err(status) = result {
            // It is still pending on disk, and a later member may have committed it.
            active.phase = Phase::Stalled;
            return active.refuse(status, out);
        }
        self.end_update(out);
    }

    /// The update is committed on this disk, and on all that had to take it before.
    fn end_update(&mut self, out: &mut Vec<Effect>) {
        let (head, before) = (self.view.is_head(), self.committed);
        let bug = self.bug;
        let active = self.update_in(|phase| matches!(phase, Phase::Staging | Phase::Committing));
        let outcome = Outcome::Done { version: active.update.stamp.version };
        for ticket in active.callers() {
            out.push(Effect::Reply { ticket, outcome });
        }
        let StoredPending { stamp, op, tag } = active.update;
        assert!(stamp > before || bug != Bug::None, "stamps of a chunk only grow");
        let records = std::mem::take(&mut active.writers);
        self.committed = stamp;
        self.removed = matches!(op, Op::Remove | Op::Replace { removed: true, .. });
        if matches!(op, Op::Replace { .. }) {
            self.writers = records;
        }
        if has_identity(tag) && (bug != Bug::ForgetWriters || head) {
            self.remember(tag, stamp.version);
        }
        self.settle(out);
    }

    fn remember(&mut self, tag: RequestTag, version: Version) {
        self.writers.retain(|record| record.tag.client != tag.client);
        // Twice what the disk keeps: what it has forgotten by age meanwhile is older than all that it has.
        if self.writers.len() >= 2 * WRITERS_MAX {
            let oldest = self.writers.iter().enumerate().min_by_key(|(_, record)| record.version);
            let place = oldest.expect("the list is full").0;
            self.writers.remove(place);
        }
        self.writers.push(WriterRecord { tag, version, round: 0 });
    }

    pub(super) fn dropped(&mut self, result: Result<(), Status>, out: &mut Vec<Effect>) {
        let active = self.update_in(|phase| matches!(phase, Phase::Dropping { .. }));
        let Phase::Dropping { refusal } = active.phase else { unreachable!("looked up by phase") };
        match (refusal, result) {
            (Some(status), _) => active.refuse(status, out),
            // The caller is at the front of the queue.
            (None, _) => active.owner = None,
        }
        if let Err(status) = result {
            active.phase = Phase::Stalled;
            for waiting in std::mem::take(&mut self.queue) {
                refuse(waiting.ticket(), status, out);
            }
            return;
        }
        self.settle(out);
    }

    fn update_in(&mut self, expected: impl Fn(Phase) -> bool) -> &mut Update {
        let Some(Active::Update(active)) = &mut self.active else { panic!("no update is under way") };
        assert!(expected(active.phase), "an effect was reported that is not under way: {:?}", active.phase);
        active
    }
}

/// Refusals that say "not staged, and never will be", rather than "not now".
fn is_final(status: Status) -> bool {
    matches!(status, Status::NoSpace | Status::Invalid)
}
