//! What clients ask and see, and what they were promised.

use luciola_core::craq::{Event, Ticket};
use luciola_core::types::*;

use super::{Action, Limits, Mistake, READER, World, is_prefix};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Writer {
    pub sequence: u8,
    pub sends: u8,
    pub acknowledged: bool,
}

impl Default for Writer {
    fn default() -> Writer {
        Writer { sequence: 1, sends: 0, acknowledged: false }
    }
}

impl Writer {
    fn has_begun(&self) -> bool {
        self.sequence > 1 || self.sends > 0
    }
}

/// A read, and how long the history was that had been seen when it began.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reader {
    pub node: usize,
    pub chunk: usize,
    floor: usize,
}

/// A client's request to make durable what has been acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Sync {
    /// The member that was asked, and asks the others.
    node: usize,
    version: u64,
    acknowledged: Vec<Vec<u8>>,
    /// Members that have not heard of it.
    to_join: Vec<usize>,
    /// Members, and how many rounds have to end there.
    waits: Vec<(usize, u8)>,
}

impl World {
    pub(super) fn client_actions(&self, limits: &Limits, node: usize, actions: &mut Vec<Action>) {
        let view = *self.nodes[node].machine(0).view();
        for writer in 0..self.writers.len() {
            if view.is_head() && self.may_send(limits, writer) {
                actions.push(Action::Send { writer, node });
            }
            if limits.other_routing && view.is_member() && self.may_send(limits, writer) {
                let known = self.nodes[node].known;
                let others = [known - 1, self.latest()].into_iter().filter(|version| *version != known);
                actions.extend(others.map(|version| Action::SendUnder { writer, node, version }));
            }
        }
        if view.is_member() {
            let chunks = if limits.reads { limits.chunks } else { 0 };
            actions.extend((0..chunks).map(|chunk| Action::Read { node, chunk }));
            if self.left.syncs > 0 && self.sync.is_none() && self.acknowledged != self.durable {
                actions.push(Action::Sync { node });
            }
        }
        if self.sync.as_ref().is_some_and(|sync| sync.to_join.contains(&node)) {
            actions.push(Action::JoinSync { node });
        }
    }

    /// Writers that do the same are interchangeable: they begin in their order.
    fn may_send(&self, limits: &Limits, writer: usize) -> bool {
        let state = &self.writers[writer];
        let follows = writer == 0
            || limits.op_of(writer - 1) != limits.op_of(writer)
            || self.writers[writer - 1].has_begun();
        state.sends < limits.sends && (state.has_begun() || follows)
    }

    /// The chunk of a writer's request.
    fn chunk_of(&self, sequence: u8) -> usize {
        (usize::from(sequence) - 1) % self.seen.len()
    }

    /// What names a send of a writer under that chain version.
    fn client_ticket(&self, writer: usize, version: u64) -> Ticket {
        let Writer { sequence, sends, .. } = self.writers[writer];
        Ticket(version << 24 | (writer as u64) << 16 | u64::from(sequence) << 8 | u64::from(sends))
    }

    pub(super) fn version_of(ticket: Ticket) -> u64 {
        ticket.0 >> 24 & 0xFF
    }

    pub(super) fn send(&mut self, limits: &Limits, writer: usize, node: usize) {
        self.writers[writer].sends += 1;
        self.ask(limits, writer, node, self.nodes[node].known);
    }

    /// It is refused without a trace.
    pub(super) fn send_under(&mut self, limits: &Limits, writer: usize, node: usize, version: u64) {
        let before = self.nodes[node].clone();
        self.ask(limits, writer, node, version);
        if self.nodes[node] != before {
            self.fault = Some("a request under another chain version was taken");
        }
    }

    fn ask(&mut self, limits: &Limits, writer: usize, node: usize, version: u64) {
        let ticket = self.client_ticket(writer, version);
        let sequence = self.writers[writer].sequence;
        let tag = RequestTag { client: ClientId(writer as u64 + 1), sequence: u64::from(sequence) };
        let (op, leased) = (limits.op_of(writer), self.nodes[node].leased);
        let event = Event::Client { ticket, chain_version: ChainVersion(version), op, tag, leased };
        self.step(limits, node, self.chunk_of(sequence), event);
    }

    pub(super) fn give_up(&mut self, limits: &Limits, writer: usize, node: usize) {
        let chunk = self.chunk_of(self.writers[writer].sequence);
        for version in 1..=self.latest() {
            let ticket = self.client_ticket(writer, version);
            self.step(limits, node, chunk, Event::Leave { ticket });
        }
    }

    pub(super) fn read(&mut self, limits: &Limits, node: usize, chunk: usize) {
        let busy = self.waiting_reader.is_some();
        let before = self.clone();
        self.waiting_reader = Some(Reader { node, chunk, floor: self.seen[chunk].len() });
        let chain_version = ChainVersion(self.nodes[node].known);
        let leased = self.nodes[node].leased;
        self.step(limits, node, chunk, Event::Read { ticket: READER, chain_version, leased });
        if busy && self.waiting_reader.is_some() {
            // One reader waits at most.
            *self = before;
        } else if busy && self.fault.is_none() {
            self.waiting_reader = before.waiting_reader;
        }
    }

    pub(super) fn serve(&mut self, node: usize, chunk: usize) {
        let Some(Reader { floor, .. }) = self.waiting_reader.take() else { return };
        let history = self.nodes[node].disk.chunk(chunk).committed.history.clone();
        if history.len() < floor {
            self.fault = Some("a read is older than what had been seen before it began");
        } else {
            self.show(chunk, &history);
        }
    }

    pub(super) fn acknowledge(
        &mut self,
        limits: &Limits,
        ticket: Ticket,
        node: usize,
        chunk: usize,
        version: Version,
    ) {
        let (writer, sequence) = ((ticket.0 >> 16) as usize & 0xFF, (ticket.0 >> 8) as u8);
        let history = &self.nodes[node].disk.chunk(chunk).committed.history;
        let byte = (writer as u8 + 1) * 32 + sequence;
        // Versions are places in the history until they begin again.
        let place = match self.purged {
            true => history.iter().position(|other| *other == byte).unwrap_or(usize::MAX),
            false => (version.0 as usize).wrapping_sub(1),
        };
        if history.get(place) != Some(&byte) {
            self.fault = Some("an acknowledged write is not in the history");
            return;
        }
        let history = history[..=place].to_vec();
        self.show(chunk, &history);
        if limits.loses_power() && history.len() > self.acknowledged[chunk].len() {
            self.acknowledged[chunk] = history;
        }
        if self.writers[writer].sequence == sequence {
            self.writers[writer].acknowledged = true;
        }
    }

    /// A client has seen this history.
    fn show(&mut self, chunk: usize, history: &[u8]) {
        let seen = &mut self.seen[chunk];
        if is_prefix(seen, history) {
            *seen = history.to_vec();
        } else if !is_prefix(history, seen) {
            self.fault = Some("two clients have seen different histories");
        }
    }

    /// All that have it have lost power: only what was synced is promised.
    pub(super) fn forget_unsynced(&mut self) {
        self.seen.clone_from(&self.durable);
        self.acknowledged.clone_from(&self.durable);
        (self.sync, self.waiting_reader) = (None, None);
    }

    // Syncing ---------------------------------------------------------------------------------------------

    /// A member is asked, and asks all others that take part in writes as it knows them.
    pub(super) fn begin_sync(&mut self, limits: &Limits, node: usize) {
        self.left.syncs -= 1;
        let version = self.nodes[node].known;
        let takes_part = |state| match state {
            TargetState::Serving => true,
            TargetState::Syncing => limits.mistake != Mistake::SyncWithoutSyncing,
            _ => false,
        };
        let chain = &self.chains[version as usize - 1];
        let members = chain.iter().filter(|(_, state)| takes_part(*state)).map(|(member, _)| *member);
        let mut to_join: Vec<usize> = members.collect();
        to_join.sort_unstable();
        let acknowledged = self.acknowledged.clone();
        self.sync = Some(Sync { node, version, acknowledged, to_join, waits: Vec::new() });
        self.join_sync(limits, node);
    }

    pub(super) fn join_sync(&mut self, limits: &Limits, node: usize) {
        let Some(sync) = &mut self.sync else { unreachable!("a sync is joined") };
        if self.nodes[node].known != sync.version
            || self.nodes[node].place() == luciola_core::craq::Place::Out
        {
            self.sync = None; // refused
            return;
        }
        sync.to_join.retain(|other| *other != node);
        let disk = &mut self.nodes[node].disk;
        if !limits.slow_rounds {
            disk.flush();
        } else if !disk.is_durable() {
            sync.waits.push((node, if disk.is_round_under_way() { 2 } else { 1 }));
            sync.waits.sort_unstable();
        }
        self.end_sync();
    }

    fn end_sync(&mut self) {
        if let Some(Sync { acknowledged, .. }) =
            self.sync.take_if(|sync| sync.to_join.is_empty() && sync.waits.is_empty())
        {
            for (durable, acknowledged) in self.durable.iter_mut().zip(acknowledged) {
                if acknowledged.len() > durable.len() {
                    *durable = acknowledged;
                }
            }
        }
    }

    pub(super) fn may_flush(&self, limits: &Limits, node: usize) -> bool {
        let disk = &self.nodes[node].disk;
        let is_waited_for = |sync: &Sync| sync.waits.iter().any(|(other, _)| *other == node);
        let is_wanted =
            self.sync.as_ref().is_some_and(is_waited_for) || (self.left.flushes > 0 && !disk.is_durable());
        limits.loses_power() && (disk.is_round_under_way() || is_wanted)
    }

    pub(super) fn flush(&mut self, limits: &Limits, node: usize) {
        let is_waited_for =
            self.sync.as_ref().is_some_and(|sync| sync.waits.iter().any(|(other, _)| *other == node));
        let disk = &mut self.nodes[node].disk;
        if !disk.is_round_under_way() && !is_waited_for {
            self.left.flushes -= 1;
        }
        if !limits.slow_rounds {
            return disk.flush();
        }
        if disk.advance_round()
            && let Some(sync) = &mut self.sync
        {
            for (other, rounds) in &mut sync.waits {
                *rounds -= u8::from(*other == node);
            }
            sync.waits.retain(|(_, rounds)| *rounds > 0);
            self.end_sync();
        }
    }

    /// A sync that a process took part in fails with it.
    pub(super) fn fail_sync(&mut self, node: usize) {
        let takes_part = |sync: &mut Sync| {
            sync.node == node
                || sync.to_join.contains(&node)
                || sync.waits.iter().any(|(other, _)| *other == node)
        };
        self.sync.take_if(takes_part);
    }
}
