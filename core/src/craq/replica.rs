//! The state of one chunk replica and its transitions.

use std::collections::VecDeque;

use super::{
    Bug, Content, Effect, Event, Forwarded, Outcome, Place, Progress, QUEUE_MAX, READERS_MAX, Step, Stored,
    StoredPending, Ticket, View,
};
use crate::types::{ChainVersion, Op, RequestTag, Stamp, Status, Version, WRITERS_MAX, WriterRecord};

/// One chunk replica while something is going on for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Replica {
    view: View,
    committed: Stamp,
    removed: bool,
    writers: Vec<WriterRecord>,
    floor: Version,
    active: Option<Active>,
    queue: VecDeque<Waiting>,
    readers: Vec<Ticket>,
    /// The last state that the present successor is known to hold.
    successor_has: Option<Stamp>,
    /// Numbers the sends of this machine, so that an answer to an earlier one is recognised as old.
    attempts: u64,
    bug: Bug,
}

/// What holds the chunk: at most one thing at a time.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Active {
    Update(Update),
    Push { owner: Ticket, attempt: u64 },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Update {
    update: StoredPending,
    /// Records that came with a `Replace`.
    writers: Vec<WriterRecord>,
    owner: Option<Ticket>,
    /// Retries of the same update, answered together.
    joined: Vec<Ticket>,
    phase: Phase,
    /// The chain version under which it was begun as the predecessor's word to a SYNCING replica.
    syncing_under: Option<ChainVersion>,
    /// The successor said that it misses the version before.
    whole: bool,
    /// How often it was sent to a successor. Only the refusal of the only send proves that nobody has it.
    sends: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Staging,
    Forwarding {
        attempt: u64,
    },
    /// On disk, and nobody is working on it.
    Stalled,
    Committing,
    /// Being dropped; the callers are then refused with this, or, with `None`, the queue just goes on.
    Dropping {
        refusal: Option<Status>,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Waiting {
    Client { ticket: Ticket, op: Op, tag: RequestTag },
    Chain { ticket: Ticket, update: Forwarded },
    Push { ticket: Ticket },
}

impl Waiting {
    fn ticket(&self) -> Ticket {
        match self {
            Waiting::Client { ticket, .. } | Waiting::Chain { ticket, .. } | Waiting::Push { ticket } => {
                *ticket
            }
        }
    }
}

impl Update {
    fn callers(&mut self) -> impl Iterator<Item = Ticket> {
        self.owner.take().into_iter().chain(std::mem::take(&mut self.joined))
    }

    /// Anything but a pending version that was found, or left, on disk.
    fn is_live(&self) -> bool {
        self.phase != Phase::Stalled
    }
}

impl Replica {
    /// The machine of a chunk as the disk has it. A pending version found there waits for `Event::Retry`.
    pub fn open(view: View, stored: Stored) -> Replica {
        Replica::open_with_bug(view, stored, Bug::None)
    }

    #[doc(hidden)]
    pub fn open_with_bug(view: View, stored: Stored, bug: Bug) -> Replica {
        let active = stored.pending.map(|update| {
            let is_replace = matches!(update.op, Op::Replace { .. });
            let bare = stored.removed || stored.committed.version == Version(0);
            assert!(
                is_replace || bare || update.stamp.version.0 == stored.committed.version.0 + 1,
                "I1: a pending version follows the committed one"
            );
            Active::Update(Update {
                update,
                writers: Vec::new(),
                owner: None,
                joined: Vec::new(),
                phase: Phase::Stalled,
                syncing_under: None,
                whole: false,
                // It may have been sent before the restart.
                sends: 1,
            })
        });
        Replica {
            view,
            committed: stored.committed,
            removed: stored.removed,
            writers: stored.writers,
            floor: stored.floor,
            active,
            queue: VecDeque::new(),
            readers: Vec::new(),
            successor_has: None,
            attempts: 0,
            bug,
        }
    }

    pub fn view(&self) -> &View {
        &self.view
    }

    pub fn committed(&self) -> Stamp {
        self.committed
    }

    /// The version that is on disk or on its way there.
    pub fn pending(&self) -> Option<Stamp> {
        match &self.active {
            Some(Active::Update(active)) => Some(active.update.stamp),
            _ => None,
        }
    }

    /// Nobody waits for this machine and nothing is left to do: its state is what the disk says.
    pub fn is_at_rest(&self) -> bool {
        let nothing_to_do = match &self.active {
            None => true,
            // Out of the chain a pending version stays on disk until somebody decides about it.
            Some(Active::Update(active)) => {
                !active.is_live() && active.owner.is_none() && !self.view.is_member()
            }
            Some(Active::Push { .. }) => false,
        };
        nothing_to_do && self.queue.is_empty() && self.readers.is_empty()
    }

    /// A pending version that a member must drive and that no caller drives.
    pub fn is_orphan(&self) -> bool {
        match &self.active {
            Some(Active::Update(active)) => {
                active.phase == Phase::Stalled && active.owner.is_none() && self.view.is_member()
            }
            _ => false,
        }
    }

    /// How far it has got with what holds the chunk; `None` if nothing does.
    pub fn progress(&self) -> Option<Progress> {
        let to = self.view.successor;
        let (stamp, tag, step) = match self.active.as_ref()? {
            Active::Push { .. } => (self.committed, RequestTag::default(), Step::Pushing { to }),
            Active::Update(Update { update, phase, sends, .. }) => {
                let step = match phase {
                    Phase::Staging => Step::Staging,
                    Phase::Forwarding { .. } => Step::Forwarding { to, sends: *sends },
                    Phase::Stalled => Step::Stalled { sends: *sends },
                    Phase::Committing => Step::Committing,
                    Phase::Dropping { .. } => Step::Dropping,
                };
                (update.stamp, update.tag, step)
            }
        };
        Some(Progress { stamp, tag, step, queued: self.queue.len(), readers: self.readers.len() })
    }

    /// The state after `event`, and what must be done about it, in order.
    pub fn step(&mut self, event: Event) -> Vec<Effect> {
        let mut effects = Vec::new();
        let out = &mut effects;
        match event {
            Event::Client { ticket, chain_version, op, tag, leased } => {
                match self.refuse_client(chain_version, op, leased) {
                    Some(status) => refuse(ticket, status, out),
                    None => self.client(ticket, op, tag, out),
                }
            }
            Event::Chain { ticket, update } => self.chain(ticket, update, out),
            Event::Push { ticket, chain_version } => {
                if chain_version == self.view.chain_version {
                    self.push(ticket, out);
                } else {
                    refuse(ticket, Status::WrongChainVersion, out);
                }
            }
            Event::Read { ticket, chain_version, leased } => self.read(ticket, chain_version, leased, out),
            Event::Staged { result } => self.staged(result, out),
            Event::Answered { attempt, result } => self.answered(attempt, result, out),
            Event::Committed { result } => self.committed_event(result, out),
            Event::Dropped { result } => self.dropped(result, out),
            Event::Retry => self.retry(out),
            Event::Leave { ticket } => self.leave(ticket, out),
            Event::Forget { stamp } => self.forget(stamp, out),
            Event::ViewChanged { view } => self.view_changed(view, out),
        }
        self.check();
        effects
    }

    // Requests of clients ---------------------------------------------------------------------------------

    fn refuse_client(&self, chain_version: ChainVersion, op: Op, leased: bool) -> Option<Status> {
        if chain_version != self.view.chain_version {
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

    fn client(&mut self, ticket: Ticket, op: Op, tag: RequestTag, out: &mut Vec<Effect>) {
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

    /// Here is nothing: no chunk, or a tombstone, which is the same for all that comes (R7).
    fn is_bare(&self) -> bool {
        self.removed || self.committed.version == Version(0)
    }

    /// Of the next update of this head: it follows on what is here. The first after nothing is higher than every
    /// tombstone that another member may still have. The floor is of the whole disk, so a chunk that lives may be below.
    fn next_version(&self) -> Version {
        let begins = self.is_bare() || self.bug == Bug::FloorForAll;
        let floor = if begins && self.bug != Bug::BirthRestarts { self.floor } else { Version(0) };
        Version(self.committed.version.max(floor).0 + 1)
    }

    /// What became of a request that this chunk remembers.
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

    fn read(&mut self, ticket: Ticket, chain_version: ChainVersion, leased: bool, out: &mut Vec<Effect>) {
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
    /// staged, nobody after this member has seen it.
    fn has_unsettled(&self) -> bool {
        let unsettled =
            matches!(&self.active, Some(Active::Update(active)) if active.phase != Phase::Staging);
        match self.bug {
            Bug::ServeWhilePending => false,
            Bug::TailIgnoresSyncing if self.view.is_tail() && self.view.successor.is_some() => false,
            _ => unsettled,
        }
    }

    // Requests of the chain -------------------------------------------------------------------------------

    fn chain(&mut self, ticket: Ticket, update: Forwarded, out: &mut Vec<Effect>) {
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
                active.phase = Phase::Dropping { refusal: None };
                out.push(Effect::Drop { owner: Some(ticket), stamp: active.update.stamp });
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
            let nothing_here = self.committed.version == Version(0) || self.removed;
            let outcome = if nothing_here { done } else { Outcome::Refused(Status::Stale) };
            return out.push(Effect::Reply { ticket, outcome });
        }
        if update.stamp <= self.committed {
            let rolls_back = is_replace && self.bug == Bug::ReplaceRollsBack && update.stamp < self.committed;
            if !rolls_back {
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

    fn push(&mut self, ticket: Ticket, out: &mut Vec<Effect>) {
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

    // One update's way ------------------------------------------------------------------------------------

    fn begin(
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
        }));
        out.push(Effect::Stage { owner: ticket, update, fresh: self.is_bare() });
    }

    /// The same update came again: its caller hears of the one outcome.
    fn join(&mut self, ticket: Ticket, out: &mut Vec<Effect>) {
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

    fn staged(&mut self, result: Result<(), Status>, out: &mut Vec<Effect>) {
        let active = self.update_in(|phase| phase == Phase::Staging);
        match result {
            Ok(()) => self.drive(out),
            Err(status) => {
                for ticket in active.callers() {
                    refuse(ticket, status, out);
                }
                self.settle(out);
            }
        }
    }

    /// Takes a version that is on disk to its next station.
    fn drive(&mut self, out: &mut Vec<Effect>) {
        let Some(Active::Update(active)) = &mut self.active else { unreachable!("an update is driven") };
        let agreed = active.syncing_under == Some(self.view.chain_version)
            || (self.bug == Bug::CommitOwnAsSyncing && active.phase == Phase::Staging);
        let successor = match self.view.place {
            Place::Member { .. } => self.view.successor,
            Place::Syncing if agreed => None,
            // It stays on disk, also if it was begun in an earlier life as a member: whoever this replica becomes later decides about it (R5, R8).
            Place::Syncing | Place::Out => {
                active.phase = Phase::Stalled;
                for ticket in active.callers() {
                    refuse(ticket, Status::WrongChainVersion, out);
                }
                return;
            }
        };
        let Some(to) = successor else {
            active.phase = Phase::Committing;
            return out.push(Effect::Commit { owner: active.owner, stamp: active.update.stamp });
        };
        self.attempts += 1;
        active.sends += 1;
        active.phase = Phase::Forwarding { attempt: self.attempts };
        // What a returning replica holds is not known, unless it has said so.
        let unknown = to.syncing && self.successor_has != Some(self.committed);
        let fresh = self.removed || self.committed.version == Version(0);
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
            active.phase = Phase::Committing;
            out.push(Effect::Commit { owner: active.owner, stamp: active.update.stamp });
        }
    }

    fn answered(&mut self, attempt: u64, result: Result<(), Status>, out: &mut Vec<Effect>) {
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
                    active.phase = Phase::Committing;
                    self.successor_has = Some(active.update.stamp);
                    out.push(Effect::Commit { owner: active.owner, stamp: active.update.stamp });
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
                    active.phase = Phase::Dropping { refusal: Some(status) };
                    out.push(Effect::Drop { owner: active.owner, stamp: active.update.stamp });
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

    fn committed_event(&mut self, result: Result<(), Status>, out: &mut Vec<Effect>) {
        let head = self.view.is_head();
        let bug = self.bug;
        let active = self.update_in(|phase| phase == Phase::Committing);
        if let Err(status) = result {
            // It is still pending on disk, and a later member may have committed it.
            active.phase = Phase::Stalled;
            for ticket in active.callers() {
                refuse(ticket, status, out);
            }
            return;
        }
        let outcome = Outcome::Done { version: active.update.stamp.version };
        for ticket in active.callers() {
            out.push(Effect::Reply { ticket, outcome });
        }
        let StoredPending { stamp, op, tag } = active.update;
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
        if self.writers.len() >= WRITERS_MAX {
            let oldest = self.writers.iter().enumerate().min_by_key(|(_, record)| record.version);
            let place = oldest.expect("the list is full").0;
            self.writers.remove(place);
        }
        self.writers.push(WriterRecord { tag, version, unix_ms: 0 });
    }

    fn dropped(&mut self, result: Result<(), Status>, out: &mut Vec<Effect>) {
        let active = self.update_in(|phase| matches!(phase, Phase::Dropping { .. }));
        let Phase::Dropping { refusal } = active.phase else { unreachable!("looked up by phase") };
        match (refusal, result) {
            (Some(status), _) => {
                for ticket in active.callers() {
                    refuse(ticket, status, out);
                }
            }
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

    /// Nothing holds the chunk any more: readers are served, then the queue goes on.
    fn settle(&mut self, out: &mut Vec<Effect>) {
        self.active = None;
        for ticket in std::mem::take(&mut self.readers) {
            if self.view.is_member() {
                out.push(Effect::Serve { ticket });
            } else {
                refuse(ticket, Status::NotServing, out);
            }
        }
        while self.active.is_none()
            && let Some(waiting) = self.queue.pop_front()
        {
            match waiting {
                Waiting::Client { ticket, op, tag } => self.client(ticket, op, tag, out),
                Waiting::Chain { ticket, update } => self.chain(ticket, update, out),
                Waiting::Push { ticket } => self.push(ticket, out),
            }
        }
    }

    /// A tombstone and its absence are the same for whatever may still come, so every member forgets its own.
    fn forget(&mut self, stamp: Stamp, out: &mut Vec<Effect>) {
        if self.active.is_none() && self.removed && self.committed == stamp {
            out.push(Effect::Forget { stamp });
            self.floor = self.floor.max(self.committed.version);
            self.committed = Stamp::default();
            self.removed = false;
            self.writers.clear();
        }
    }

    // Time and change -------------------------------------------------------------------------------------

    fn retry(&mut self, out: &mut Vec<Effect>) {
        if let Some(Active::Update(active)) = &self.active
            && active.phase == Phase::Stalled
            && self.view.is_member()
        {
            self.drive(out);
        }
    }

    fn leave(&mut self, ticket: Ticket, out: &mut Vec<Effect>) {
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

    fn view_changed(&mut self, view: View, out: &mut Vec<Effect>) {
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
                    active.phase = Phase::Dropping { refusal: Some(Status::WrongChainVersion) };
                    out.push(Effect::Drop { owner: active.owner, stamp: active.update.stamp });
                }
                Phase::Forwarding { .. } | Phase::Stalled => self.drive(out),
                // These end by themselves, and what follows is decided by the new view.
                Phase::Staging | Phase::Committing | Phase::Dropping { .. } => {}
            },
            None => {}
        }
    }

    fn enqueue(&mut self, waiting: Waiting, out: &mut Vec<Effect>) {
        if self.queue.len() < QUEUE_MAX {
            self.queue.push_back(waiting);
        } else {
            refuse(waiting.ticket(), Status::Busy, out);
        }
    }

    fn update_in(&mut self, expected: impl Fn(Phase) -> bool) -> &mut Update {
        let Some(Active::Update(active)) = &mut self.active else { panic!("no update is under way") };
        assert!(expected(active.phase), "an effect was reported that is not under way: {:?}", active.phase);
        active
    }

    fn check(&self) {
        assert!(self.queue.len() <= QUEUE_MAX + 1, "the queue is bounded");
        assert!(self.active.is_some() || self.queue.is_empty(), "nothing waits for an idle chunk");
        assert!(self.active.is_some() || self.readers.is_empty(), "no reader waits for an idle chunk");
        if let Some(Active::Update(active)) = &self.active
            && !matches!(active.update.op, Op::Replace { .. })
            && !self.is_bare()
            && self.bug == Bug::None
        {
            assert_eq!(active.update.stamp.version.0, self.committed.version.0 + 1, "I1");
        }
    }
}

/// Client 0 has no identity: internal requests that are harmless to repeat.
fn has_identity(tag: RequestTag) -> bool {
    tag.client.0 != 0
}

/// Refusals that say "not staged, and never will be", rather than "not now".
fn is_final(status: Status) -> bool {
    matches!(status, Status::NoSpace | Status::Invalid)
}

fn refuse(ticket: Ticket, status: Status, out: &mut Vec<Effect>) {
    out.push(Effect::Reply { ticket, outcome: Outcome::Refused(status) });
}
