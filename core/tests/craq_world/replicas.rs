//! Carries out what the machines say, on disks and in the network, and ends and starts their processes.

use std::collections::VecDeque;

use luciola_core::craq::{
    Content, Effect, Event, Forwarded, Outcome, Place, StageEnd, StoredPending, Ticket, View,
};
use luciola_core::types::*;

use super::disk::{Chunk, State};
use super::{
    Action, DiskWork, Limits, Message, Mistake, PUSHER, Part, Payload, READER, Replacement, World, byte_of,
};

/// Tickets of what other nodes sent; those of clients are lower.
const CHAIN: u64 = 1 << 32;

impl World {
    pub(super) fn network_actions(&self, limits: &Limits, actions: &mut Vec<Action>) {
        for (place, message) in self.network.iter().enumerate() {
            // Two equal messages lead to the same place.
            if place == 0 || self.network[place - 1] != *message {
                actions.push(Action::Deliver(place));
                if self.left.duplicates > 0 {
                    actions.push(Action::DeliverAndKeep(place));
                }
                if limits.losses {
                    actions.push(Action::Lose(place));
                }
            }
        }
    }

    pub(super) fn process_actions(&self, node: usize, actions: &mut Vec<Action>) {
        for (chunk, part) in self.nodes[node].parts.iter().enumerate() {
            if let Some(work) = part.work.front() {
                actions.push(Action::DiskDone { node, chunk });
                if self.left.full_disks > 0 && matches!(work, DiskWork::Stage { .. }) {
                    actions.push(Action::DiskFull { node, chunk });
                }
            }
            let machine = self.nodes[node].machine(chunk);
            let may_resend = self.left.resends > 0 && machine.pending().is_some();
            if may_resend && machine.view().is_member() && part.work.is_empty() {
                actions.push(Action::Resend { node, chunk });
            }
        }
        if self.left.crashes > 0 {
            actions.push(Action::Crash { node });
        }
    }

    pub(super) fn power_actions(&self, node: usize, actions: &mut Vec<Action>) {
        let about = &self.nodes[node];
        if self.left.power_losses > 0 && (about.is_alive() || !about.disk.is_durable()) {
            let outcomes = about.disk.leftovers().len();
            actions.extend((0..outcomes).map(|leaves| Action::LosePower { node, leaves }));
        }
        if !about.is_alive() && self.left.restarts > 0 {
            actions.push(Action::Restart { node });
        }
    }

    pub(super) fn step(&mut self, limits: &Limits, node: usize, chunk: usize, event: Event) {
        let machine = self.nodes[node].parts[chunk].machine.as_mut().expect("alive");
        let mut effects: VecDeque<Effect> = machine.step(event).into();
        while let Some(effect) = effects.pop_front() {
            self.carry_out(limits, node, chunk, effect);
        }
        // A quick disk is done before anything else happens.
        while !limits.slow_disks && self.fault.is_none() && !self.nodes[node].parts[chunk].work.is_empty() {
            self.disk_done(limits, node, chunk, Ok(()));
        }
    }

    fn carry_out(&mut self, limits: &Limits, node: usize, chunk: usize, effect: Effect) {
        let part = &mut self.nodes[node].parts[chunk];
        match effect {
            Effect::Forget { .. } => {
                let history = self.nodes[node].disk.chunk(chunk).committed.history.clone();
                self.nodes[node].disk.forget(chunk);
                self.nodes[node].disk.learn_history(chunk, history);
            }
            Effect::Stage { owner, update, last, .. } => {
                let is_clients = owner.0 < CHAIN;
                if is_clients && World::version_of(owner) != update.stamp.chain_version.0 {
                    self.fault = Some("an update was begun under another chain version than its request's");
                    return;
                }
                let place = part.held.iter().position(|(ticket, ..)| *ticket == owner);
                let replacement = match update.op {
                    Op::Replace { .. } => Some(part.held.remove(place.expect("its payload is held")).1),
                    _ => None,
                };
                part.work.push_back(DiskWork::Stage { update, replacement, last });
            }
            Effect::Commit { stamp, .. } => part.work.push_back(DiskWork::Commit(stamp)),
            Effect::Drop { stamp, .. } => part.work.push_back(DiskWork::Drop(stamp)),
            Effect::Forward { attempt, to, chain_version, update, fresh, content, .. } => {
                let StoredPending { stamp, op, tag } = update;
                let about = self.nodes[node].disk.chunk(chunk);
                let (op, payload, writers) = match content {
                    Content::Update => (op, Payload::Update, Vec::new()),
                    Content::Whole => whole(about, about.newest(), about.newest().is_bare()),
                };
                let fresh = fresh && content == Content::Update;
                let update = Forwarded { chain_version, stamp, op, tag, fresh, writers };
                self.post(node, chunk, to.node, attempt, update, payload);
            }
            Effect::Push { attempt, to, chain_version, stamp, .. } => {
                let about = self.nodes[node].disk.chunk(chunk);
                let (op, payload, writers) = whole(about, &about.committed, about.committed.is_bare());
                let tag = RequestTag::default();
                let update = Forwarded { chain_version, stamp, op, tag, fresh: false, writers };
                self.post(node, chunk, to.node, attempt, update, payload);
            }
            Effect::Stalled { .. } => part.outstanding = None,
            Effect::Serve { .. } => self.serve(node, chunk),
            Effect::Reply { ticket, outcome } => self.reply(limits, node, chunk, ticket, outcome),
        }
    }

    fn post(
        &mut self,
        from: usize,
        chunk: usize,
        to: NodeId,
        attempt: u64,
        update: Forwarded,
        payload: Payload,
    ) {
        self.nodes[from].parts[chunk].outstanding = Some(attempt);
        let life = self.nodes[from].life;
        let message = Message::Update { to: to.0 as usize, from, chunk, life, attempt, update, payload };
        self.network.push(message);
    }

    fn reply(&mut self, limits: &Limits, node: usize, chunk: usize, ticket: Ticket, outcome: Outcome) {
        self.nodes[node].parts[chunk].held.retain(|(held, ..)| *held != ticket);
        if ticket == READER {
            self.waiting_reader = None;
        } else if ticket.0 & PUSHER.0 != 0 {
            self.pushed(chunk, ticket.0 & 0xFF, outcome);
        } else if ticket.0 >= CHAIN {
            let (from, life) = ((ticket.0 >> 16) as usize & 0xFF, (ticket.0 >> 24) as u8);
            let attempt = ticket.0 & 0xFFFF;
            let result = match outcome {
                Outcome::Done { .. } => Ok(()),
                Outcome::Refused(status) => Err(status),
            };
            // An answer to a process that has ended is lost.
            if self.nodes[from].life == life && self.nodes[from].is_alive() {
                self.network.push(Message::Answer { to: from, chunk, attempt, result });
            }
        } else if let Outcome::Done { version } = outcome {
            self.acknowledge(limits, ticket, node, chunk, version);
        }
    }

    pub(super) fn deliver(&mut self, limits: &Limits, message: Message) {
        match message {
            Message::Update { to, from, chunk, life, attempt, update, payload } => {
                if !self.nodes[to].is_alive() {
                    return;
                }
                let ticket = Ticket(CHAIN | (life as u64) << 24 | (from as u64) << 16 | attempt);
                let view = *self.nodes[to].machine(chunk).view();
                let stamp = self.nodes[to].disk.chunk(chunk).committed.stamp;
                // Or the tombstone that is here too: a later removal found nothing at the predecessor.
                let is_same = matches!(update.op, Op::Replace { removed: true, .. }) && update.stamp == stamp;
                let nothing = (update.stamp.version == Version(0) || is_same)
                    && view.chain_version == update.chain_version
                    && view.place == Place::Syncing;
                let mut nothings_history = None;
                if let Payload::Whole { history, bytes } = payload {
                    nothings_history = nothing.then(|| history.clone());
                    let replacement = Replacement { history, bytes, writers: update.writers.clone() };
                    let held = &mut self.nodes[to].parts[chunk].held;
                    held.retain(|(other, ..)| *other != ticket);
                    held.push((ticket, replacement));
                }
                self.step(limits, to, chunk, Event::Chain { ticket, update });
                // What is pending here is left over from an earlier life; it may be being dropped.
                let drops =
                    self.nodes[to].parts[chunk].work.iter().any(|work| matches!(work, DiskWork::Drop(_)));
                let disk = &mut self.nodes[to].disk;
                let about = disk.chunk(chunk);
                let is_nothing = about.committed.is_bare() && (about.pending.is_none() || drops);
                // A push that was overtaken knows less; only power takes back what was committed.
                let is_news = |history: &Vec<u8>| {
                    limits.power_losses > 0 || history.len() >= about.committed.history.len()
                };
                if let Some(history) = nothings_history.filter(|history| is_nothing && is_news(history)) {
                    disk.learn_history(chunk, history);
                }
            }
            Message::Answer { to, chunk, attempt, result } => {
                if !self.nodes[to].is_alive() {
                    return;
                }
                let part = &mut self.nodes[to].parts[chunk];
                part.outstanding.take_if(|outstanding| *outstanding == attempt);
                self.step(limits, to, chunk, Event::Answered { attempt, result });
            }
        }
    }

    /// The send under way counts as lost.
    pub(super) fn answer_is_lost(&mut self, limits: &Limits, node: usize, chunk: usize) {
        if let Some(attempt) = self.nodes[node].parts[chunk].outstanding.take() {
            self.step(limits, node, chunk, Event::Answered { attempt, result: Err(Status::Timeout) });
        }
    }

    pub(super) fn disk_done(
        &mut self,
        limits: &Limits,
        node: usize,
        chunk: usize,
        result: Result<(), Status>,
    ) {
        let work = self.nodes[node].parts[chunk].work.pop_front().expect("disk work");
        let disk = &mut self.nodes[node].disk;
        let one_fallback = limits.mistake == Mistake::OneFallback;
        let (before, round) = (disk.chunk(chunk), disk.begun());
        let event = match work {
            DiskWork::Stage { update, replacement, last } => {
                let after = match (result, replacement) {
                    (Err(_), _) => None,
                    // As the engine does it: a replacement is committed at once.
                    (Ok(()), Some(replacement)) => Some(installed(update, replacement, round)),
                    (Ok(()), None) if last => Some(before.staged(update, round).with_pending_committed()),
                    (Ok(()), None) => Some(before.staged(update, round)),
                };
                let is_pending = after.as_ref().is_some_and(|after| after.pending.is_some());
                if let Some(after) = after {
                    disk.put(chunk, after, one_fallback);
                }
                let end = if is_pending { StageEnd::Pending } else { StageEnd::Committed };
                Event::Staged { result: result.map(|()| end) }
            }
            DiskWork::Commit(stamp) => {
                if before.pending.as_ref().is_some_and(|pending| pending.update.stamp == stamp) {
                    disk.put(chunk, before.with_pending_committed(), one_fallback);
                }
                Event::Committed { result: Ok(()) }
            }
            DiskWork::Drop(_) => {
                disk.put(chunk, Chunk { pending: None, ..before.clone() }, one_fallback);
                Event::Dropped { result: Ok(()) }
            }
        };
        self.step(limits, node, chunk, event);
    }

    // Processes -------------------------------------------------------------------------------------------

    pub(super) fn end_process(&mut self, node: usize) {
        let dead = &mut self.nodes[node];
        dead.parts.fill(Part::default());
        dead.leased = false;
        dead.known = 0;
        dead.life += 1;
        self.network.retain(|message| !matches!(message, Message::Answer { to, .. } if *to == node));
        self.waiting_reader.take_if(|reader| reader.node == node);
        self.fail_sync(node);
        self.forget_resync_of(node);
    }

    /// `leaves`: which of the states that are possible is left on the disk.
    pub(super) fn lose_power(&mut self, node: usize, leaves: usize) {
        self.left.power_losses -= 1;
        let took_part = matches!(self.state_of(node), TargetState::Serving | TargetState::Syncing);
        self.end_process(node);
        let dead = &mut self.nodes[node];
        match dead.disk.leftovers().swap_remove(leaves) {
            Ok(disk) => dead.disk = disk,
            Err(fault) => self.fault = Some(fault),
        }
        dead.is_partial = true;
        dead.must_fall = took_part;
        self.keep_promises();
    }

    /// Opening a disk makes durable what an earlier process left in the kernel.
    pub(super) fn restart(&mut self, limits: &Limits, node: usize) {
        self.left.restarts -= 1;
        let about = &mut self.nodes[node];
        about.disk.flush();
        (0..limits.chunks).for_each(|chunk| about.open(chunk, View::default(), limits.bug));
    }
}

fn whole(about: &Chunk, state: &State, removed: bool) -> (Op, Payload, Vec<WriterRecord>) {
    let (history, bytes) = (state.history.clone(), state.bytes.clone());
    let writers = about.writers.clone();
    let op = Op::Replace { length: bytes.len() as u32, writers: writers.len() as u32, removed };
    (op, Payload::Whole { history, bytes }, writers)
}

fn installed(update: StoredPending, replacement: Replacement, round: u64) -> Chunk {
    let Replacement { history, bytes, writers } = replacement;
    let removed = matches!(update.op, Op::Replace { removed: true, .. });
    let state = State { stamp: update.stamp, removed, history, bytes, round };
    let chunk = Chunk { writers, ..Chunk::default() };
    debug_assert!(update.tag.client.0 == 0 || state.history.last() == Some(&byte_of(update.tag)));
    chunk.committed_as(state, update.tag)
}
