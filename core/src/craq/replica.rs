//! The state of one chunk replica and its transitions.
//!
//! - `step` sorts events: to `clients`, `chain`, `update` (one update's way) and `change` (time, and the chain itself).
//! - At most one thing holds the chunk, and all others wait in order: updates in `queue`, reads of the tail in `readers`.
//!   Every path that ends it calls `settle`, so no request waits for an idle chunk.

mod chain;
mod change;
mod clients;
mod update;

use std::collections::VecDeque;

use super::{
    Bug, Effect, Event, Forwarded, Outcome, Progress, QUEUE_MAX, Step, Stored, StoredPending, Ticket, View,
};
use crate::types::{ChainVersion, Op, RequestTag, Stamp, Status, Version, WriterRecord};

/// One chunk replica with work in progress.
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
    /// How often it was sent to a successor. Only the refusal of the only send proves that no other member has it.
    sends: u32,
    /// This replica was no member while the update was being staged. A comparison of listings cannot have seen it, so it
    /// is taken back when it is staged, whatever the state of the replica by then (R9).
    left: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Staging,
    Forwarding {
        attempt: u64,
    },
    /// On disk, and no caller drives it.
    Stalled,
    Committing,
    /// Being dropped; the callers are then refused with this, or, with `None`, the queue just proceeds.
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
                left: false,
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

    /// Requests that are remembered.
    pub fn writer_count(&self) -> usize {
        self.writers.len()
    }

    /// Forget requests of which the client has said that they are settled: they do not come again.
    pub fn forget_settled(&mut self, is_settled: impl Fn(RequestTag) -> bool) {
        self.writers.retain(|record| !is_settled(record.tag));
    }

    /// No caller waits for this machine and nothing is left to do: its state is what the disk says.
    pub fn is_at_rest(&self) -> bool {
        let nothing_to_do = match &self.active {
            None => true,
            // Out of the chain a pending version stays on disk until a view decides about it.
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

    /// Here is nothing: no chunk, or a tombstone, which is the same for all that comes (R7).
    fn is_bare(&self) -> bool {
        self.removed || self.committed.version == Version(0)
    }

    fn enqueue(&mut self, waiting: Waiting, out: &mut Vec<Effect>) {
        if self.queue.len() < QUEUE_MAX {
            self.queue.push_back(waiting);
        } else {
            refuse(waiting.ticket(), Status::Busy, out);
        }
    }

    /// Nothing holds the chunk any more: readers are served, then the queue proceeds.
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

fn refuse(ticket: Ticket, status: Status, out: &mut Vec<Effect>) {
    out.push(Effect::Reply { ticket, outcome: Outcome::Refused(status) });
}
