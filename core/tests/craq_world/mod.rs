//! A small world around the production `craq::Replica`: replicas with disks, a network, a cluster manager that
//! obeys the leases, writers that retry and a reader. `craq_model.rs` explores it exhaustively, and
//! `craq_simulator.rs` walks through it at random for long.
//!
//! An update appends one byte that names its request, so a chunk's content is its history, and as long as no
//! tombstone has been forgotten its length is its version. A removal appends its byte as well; that real chunks are
//! empty then makes no difference to the protocol. Where a tombstone is forgotten, the history is kept for checking. A client's request is delivered where and when it is sent: the world may send any request again at
//! any time, late duplicates included, so a network between clients and replicas would add nothing.

#![allow(dead_code)] // each of the two tests uses its part

use std::collections::VecDeque;

use luciola_core::craq::{
    Bug, Content, Effect, Event, Forwarded, Outcome, Place, Replica, Stored, StoredPending, Ticket, View,
};
use luciola_core::types::*;

/// What may happen in a world, and how often.
#[derive(Clone, Debug)]
pub struct Limits {
    pub replicas: usize,
    /// The first so many replicas begin as SERVING, the others as OFFLINE.
    pub serving: usize,
    pub writers: u8,
    /// Updates of each writer, one after another.
    pub requests: u8,
    /// Sends of each request, retries and late duplicates included.
    pub sends: u8,
    pub crashes: u8,
    /// Nodes that lose touch with the manager while they go on.
    pub expiries: u8,
    pub restarts: u8,
    pub chain_versions: u64,
    /// Sends to a successor that are not the first of their update.
    pub resends: u8,
    /// A disk takes its time, so that everything else can happen before it is done.
    pub slow_disks: bool,
    /// Stages that fail for want of space.
    pub full_disks: u8,
    pub duplicates: u8,
    pub losses: bool,
    pub bug: Bug,
    /// So many of the writers, the last ones, remove the chunk instead of writing to it.
    pub removers: u8,
    /// Tombstones forgotten.
    pub purges: u8,
    /// Tombstones of other chunks forgotten on a disk, of higher versions than this chunk has.
    pub neighbours: u8,
    /// Tombstones are forgotten while messages from before them are still on their way.
    pub purges_early: bool,
    /// The manager forgets that a lease which had run out needs newer routing.
    pub lease_without_routing: bool,
    /// Recovery skips a chunk that is equal in the listings of both sides.
    pub compares: bool,
}

impl Limits {
    pub const SMALL: Limits = Limits {
        replicas: 3,
        serving: 3,
        writers: 2,
        requests: 1,
        sends: 2,
        crashes: 1,
        expiries: 0,
        restarts: 0,
        chain_versions: 2,
        resends: 1,
        slow_disks: false,
        full_disks: 0,
        duplicates: 0,
        losses: false,
        bug: Bug::None,
        removers: 0,
        purges: 0,
        neighbours: 0,
        purges_early: false,
        lease_without_routing: false,
        compares: false,
    };

    fn op_of(&self, writer: usize) -> Op {
        match writer >= usize::from(self.writers - self.removers) {
            true => Op::Remove,
            false => Op::Write { offset: 0, length: 1 },
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Payload {
    Update,
    Whole(Vec<u8>),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    Update { to: usize, from: usize, life: u8, attempt: u64, update: Forwarded, payload: Payload },
    Answer { to: usize, attempt: u64, result: Result<(), Status> },
}

impl Message {
    /// Messages are a bag: worlds that differ only in their order are the same.
    fn order(&self) -> (bool, usize, usize, u64, Stamp, u64, u16) {
        match self {
            Message::Update { to, from, life, attempt, update, .. } => {
                let lives = (*attempt << 8) | *life as u64;
                (true, *to, *from, lives, update.stamp, update.chain_version.0, 0)
            }
            Message::Answer { to, attempt, result } => {
                let status = result.err().map_or(0, |status| status as u16);
                (false, *to, 0, *attempt, Stamp::default(), 0, status)
            }
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Disk {
    pub committed: Stamp,
    pub content: Vec<u8>,
    pub removed: bool,
    pub pending: Option<StoredPending>,
    pub writers: Vec<WriterRecord>,
    pub floor: Version,
}

impl Disk {
    fn stored(&self) -> Stored {
        Stored {
            committed: self.committed,
            removed: self.removed,
            pending: self.pending,
            writers: self.writers.clone(),
            floor: self.floor,
        }
    }

    fn is_bare(&self) -> bool {
        self.removed || self.committed.version == Version(0)
    }

    /// `None` while something is pending: that counts as a difference (R8).
    fn listing(&self) -> Option<Listing> {
        self.pending.is_none().then(|| (self.committed, self.removed, self.content.clone()))
    }

    /// What two replicas must agree on: a tombstone is as good as none, also for the requests it remembers.
    fn essence(&self, purged: bool) -> (&[u8], Option<StoredPending>, Option<Stamp>, &[WriterRecord]) {
        let stamp = (!purged || !self.is_bare()).then_some(self.committed);
        (&self.content, self.pending, stamp, if purged { &[] } else { &self.writers })
    }

    fn remember(&mut self, tag: RequestTag, version: Version) {
        if tag.client.0 != 0 {
            self.writers.retain(|record| record.tag.client != tag.client);
            self.writers.push(WriterRecord { tag, version, round: 0 });
        }
    }

    /// The content once the pending version is committed.
    fn pending_content(&self) -> Vec<u8> {
        let mut content = self.content.clone();
        // To remove nothing once more, where its tombstone was forgotten, changes nothing.
        let again = |pending: &StoredPending| {
            pending.op == Op::Remove && self.is_bare() && self.content.last() == Some(&byte_of(pending.tag))
        };
        content.extend(self.pending.filter(|pending| !again(pending)).map(|pending| byte_of(pending.tag)));
        content
    }
}

/// What recovery compares: the committed state, as the index has it. What a machine is staging is in no index.
type Listing = (Stamp, bool, Vec<u8>);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum DiskWork {
    Stage { update: StoredPending, replacement: Option<(Vec<u8>, Vec<WriterRecord>)> },
    Commit(Stamp),
    Drop(Stamp),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// `None` while the process is dead.
    pub machine: Option<Replica>,
    pub leased: bool,
    /// The chain version that this node knows of; 0 after a start.
    pub known: u64,
    /// Counts process starts.
    pub life: u8,
    pub disk: Disk,
    work: VecDeque<DiskWork>,
    /// Payloads of replacements that wait in the machine.
    held: Vec<(Ticket, Vec<u8>, Vec<WriterRecord>)>,
    /// The send that has not been answered.
    outstanding: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Writer {
    pub sequence: u8,
    pub sends: u8,
    pub acknowledged: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub nodes: Vec<Node>,
    /// `chains[v - 1]` is the chain at version v.
    pub chains: Vec<Vec<(usize, TargetState)>>,
    pub network: Vec<Message>,
    pub writers: Vec<Writer>,
    /// The longest history that a completed read or an acknowledgement has shown to a client.
    pub seen: Vec<u8>,
    /// A read that waits at a tail, and how long the history was that had been seen when it began.
    waiting_reader: Option<(usize, usize)>,
    /// The chain version under which the SYNCING replica is known to be complete.
    pub synced: Option<u64>,
    /// What the SYNCING replica's listing said last, with nothing pending, under that chain version.
    listed: Option<(u64, Listing)>,
    crashes: u8,
    expiries: u8,
    restarts: u8,
    resends: u8,
    full_disks: u8,
    duplicates: u8,
    purges: u8,
    neighbours: u8,
    /// The SYNCING replica holds what its predecessor has forgotten, and must forget everything first.
    ahead: bool,
    /// A tombstone has been forgotten somewhere.
    purged: bool,
    pub fault: Option<&'static str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Send { writer: usize, node: usize },
    Next { writer: usize },
    GiveUp { writer: usize, node: usize },
    Read { node: usize },
    Deliver(usize),
    DeliverAndKeep(usize),
    Lose(usize),
    DiskDone { node: usize },
    DiskFull { node: usize },
    Resend { node: usize },
    Crash { node: usize },
    Expire { node: usize },
    Restart { node: usize },
    Learn { node: usize },
    Grant { node: usize },
    Remove { node: usize },
    FallTogether,
    Revive { node: usize },
    BeginSync { node: usize },
    Push,
    List,
    Compare,
    Promote,
    Purge { node: usize },
    PurgeNeighbour { node: usize },
}

const READER: Ticket = Ticket(1 << 40);
const PUSHER: Ticket = Ticket(1 << 41);

fn byte_of(tag: RequestTag) -> u8 {
    (tag.client.0 as u8) * 32 + tag.sequence as u8
}

fn is_prefix(short: &[u8], long: &[u8]) -> bool {
    long.starts_with(short)
}

impl World {
    pub fn new(limits: &Limits) -> World {
        let chain = (0..limits.replicas)
            .map(|node| {
                let serving = node < limits.serving;
                (node, if serving { TargetState::Serving } else { TargetState::Offline })
            })
            .collect();
        let mut world = World {
            nodes: Vec::new(),
            chains: vec![chain],
            network: Vec::new(),
            writers: vec![Writer { sequence: 1, sends: 0, acknowledged: false }; limits.writers as usize],
            seen: Vec::new(),
            waiting_reader: None,
            synced: None,
            listed: None,
            crashes: limits.crashes,
            expiries: limits.expiries,
            restarts: limits.restarts,
            resends: limits.resends,
            full_disks: limits.full_disks,
            duplicates: limits.duplicates,
            purges: limits.purges,
            neighbours: limits.neighbours,
            ahead: false,
            purged: false,
            fault: None,
        };
        for node in 0..limits.replicas {
            let view = world.view(1, node);
            world.nodes.push(Node {
                machine: Some(Replica::open_with_bug(view, Stored::default(), limits.bug)),
                leased: true,
                known: 1,
                life: 0,
                disk: Disk::default(),
                work: VecDeque::new(),
                held: Vec::new(),
                outstanding: None,
            });
        }
        world
    }

    pub fn latest(&self) -> u64 {
        self.chains.len() as u64
    }

    fn chain(&self, version: u64) -> Chain {
        let members = self.chains[version as usize - 1]
            .iter()
            .map(|(node, state)| ChainMember {
                target: TargetId(*node as u64),
                node: NodeId(*node as u32),
                state: *state,
            })
            .collect();
        Chain { id: ChainId(1), version: ChainVersion(version), members }
    }

    fn view(&self, version: u64, node: usize) -> View {
        View::of(&self.chain(version), NodeId(node as u32))
    }

    fn state_of(&self, node: usize) -> TargetState {
        self.chains[self.chains.len() - 1].iter().find(|(member, _)| *member == node).expect("a member").1
    }

    fn with_state(&self, state: TargetState) -> Vec<usize> {
        let chain = &self.chains[self.chains.len() - 1];
        chain.iter().filter(|(_, other)| *other == state).map(|(node, _)| *node).collect()
    }

    pub fn serving(&self) -> Vec<usize> {
        self.with_state(TargetState::Serving)
    }

    /// Everything that could happen next, in a fixed order.
    pub fn actions(&self, limits: &Limits, actions: &mut Vec<Action>) {
        if self.fault.is_some() {
            return;
        }
        for (place, message) in self.network.iter().enumerate() {
            // Two equal messages lead to the same place.
            if place == 0 || self.network[place - 1] != *message {
                actions.push(Action::Deliver(place));
                if self.duplicates > 0 {
                    actions.push(Action::DeliverAndKeep(place));
                }
                if limits.losses {
                    actions.push(Action::Lose(place));
                }
            }
        }
        let chain_may_change = self.latest() < limits.chain_versions;
        for (place, node) in self.nodes.iter().enumerate() {
            let state = self.state_of(place);
            let Some(machine) = &node.machine else {
                if self.restarts > 0 {
                    actions.push(Action::Restart { node: place });
                }
                if chain_may_change && matches!(state, TargetState::Serving | TargetState::Syncing) {
                    actions.push(Action::Remove { node: place });
                }
                continue;
            };
            if let Some(work) = node.work.front() {
                actions.push(Action::DiskDone { node: place });
                if self.full_disks > 0 && matches!(work, DiskWork::Stage { .. }) {
                    actions.push(Action::DiskFull { node: place });
                }
            }
            if machine.view().is_head() {
                for (writer, state) in self.writers.iter().enumerate() {
                    if state.sends < limits.sends {
                        actions.push(Action::Send { writer, node: place });
                    }
                }
            }
            if machine.view().is_member() {
                actions.push(Action::Read { node: place });
            }
            let may_resend = self.resends > 0 && machine.pending().is_some() && machine.view().is_member();
            if may_resend && node.work.is_empty() {
                actions.push(Action::Resend { node: place });
            }
            if self.may_purge(limits, place) {
                actions.push(Action::Purge { node: place });
            }
            if self.may_purge_neighbour(place) {
                actions.push(Action::PurgeNeighbour { node: place });
            }
            if self.crashes > 0 {
                actions.push(Action::Crash { node: place });
            }
            if self.expiries > 0 && node.leased {
                actions.push(Action::Expire { node: place });
            }
            if node.known < self.latest() {
                actions.push(Action::Learn { node: place });
            }
            if !node.leased && (node.known == self.latest() || limits.lease_without_routing) {
                actions.push(Action::Grant { node: place });
            }
            if chain_may_change {
                match state {
                    TargetState::Serving | TargetState::Syncing if !node.leased => {
                        actions.push(Action::Remove { node: place });
                    }
                    TargetState::LastServing => actions.push(Action::Revive { node: place }),
                    TargetState::Offline
                        if !self.serving().is_empty() && self.with_state(TargetState::Syncing).is_empty() =>
                    {
                        actions.push(Action::BeginSync { node: place });
                    }
                    _ => {}
                }
            }
        }
        let serving = self.serving();
        if chain_may_change && serving.len() > 1 && serving.iter().all(|node| !self.nodes[*node].leased) {
            actions.push(Action::FallTogether);
        }
        for (writer, state) in self.writers.iter().enumerate() {
            if state.acknowledged && state.sequence < limits.requests {
                actions.push(Action::Next { writer });
            }
        }
        if self.may_push() {
            actions.push(Action::Push);
        }
        if limits.compares && self.may_list() {
            actions.push(Action::List);
        }
        if limits.compares && self.is_equal() {
            actions.push(Action::Compare);
        }
        if self.synced == Some(self.latest()) && chain_may_change {
            actions.push(Action::Promote);
        }
    }

    /// The world after `action`; `None` if nothing changes.
    pub fn after(&self, limits: &Limits, action: &Action) -> Option<World> {
        let mut world = self.clone();
        world.act(limits, action);
        (world != *self).then_some(world)
    }

    pub fn act(&mut self, limits: &Limits, action: &Action) {
        match *action {
            Action::Send { writer, node } => self.send(limits, writer, node),
            Action::Next { writer } => {
                let state = &mut self.writers[writer];
                *state = Writer { sequence: state.sequence + 1, sends: 0, acknowledged: false };
            }
            Action::GiveUp { writer, node } => {
                let ticket = self.client_ticket(writer);
                self.step(limits, node, Event::Leave { ticket });
            }
            Action::Read { node } => self.read(limits, node),
            Action::Deliver(place) => {
                let message = self.network.remove(place);
                self.deliver(limits, message);
            }
            Action::DeliverAndKeep(place) => {
                self.duplicates -= 1;
                let message = self.network[place].clone();
                self.deliver(limits, message);
            }
            Action::Lose(place) => drop(self.network.remove(place)),
            Action::DiskDone { node } => self.disk_done(limits, node, Ok(())),
            Action::DiskFull { node } => {
                self.full_disks -= 1;
                self.disk_done(limits, node, Err(Status::NoSpace));
            }
            Action::Resend { node } => {
                self.resends -= 1;
                if let Some(attempt) = self.nodes[node].outstanding.take() {
                    self.step(limits, node, Event::Answered { attempt, result: Err(Status::Timeout) });
                }
                self.step(limits, node, Event::Retry);
            }
            Action::Crash { node } => self.crash(node),
            Action::Expire { node } => {
                self.expiries -= 1;
                self.nodes[node].leased = false;
            }
            Action::Restart { node } => {
                self.restarts -= 1;
                let stored = self.nodes[node].disk.stored();
                self.nodes[node].machine = Some(Replica::open_with_bug(View::default(), stored, limits.bug));
            }
            Action::Learn { node } => {
                let view = self.view(self.latest(), node);
                self.nodes[node].known = self.latest();
                self.step(limits, node, Event::ViewChanged { view });
            }
            Action::Grant { node } => self.nodes[node].leased = true,
            Action::Remove { node } => self.remove(node),
            Action::FallTogether => self.fall_together(),
            Action::Revive { node } => self.change(node, TargetState::Serving),
            Action::BeginSync { node } => self.change(node, TargetState::Syncing),
            Action::Promote => {
                let node = self.with_state(TargetState::Syncing)[0];
                self.change(node, TargetState::Serving);
            }
            Action::Push => self.push(limits),
            Action::List => {
                let returning = self.with_state(TargetState::Syncing)[0];
                self.listed = self.nodes[returning].disk.listing().map(|listing| (self.latest(), listing));
            }
            Action::Compare => {
                self.listed = None;
                self.synced = Some(self.latest());
            }
            Action::Purge { node } => self.purge(limits, node),
            Action::PurgeNeighbour { node } => self.purge_neighbour(limits, node),
        }
        self.network.sort_by_key(Message::order);
    }

    // Clients ---------------------------------------------------------------------------------------------

    fn client_ticket(&self, writer: usize) -> Ticket {
        let state = &self.writers[writer];
        Ticket((writer as u64) << 16 | (state.sequence as u64) << 8 | state.sends as u64)
    }

    fn send(&mut self, limits: &Limits, writer: usize, node: usize) {
        self.writers[writer].sends += 1;
        let ticket = self.client_ticket(writer);
        let sequence = self.writers[writer].sequence as u64;
        let tag = RequestTag { client: ClientId(writer as u64 + 1), sequence };
        let event = Event::Client {
            ticket,
            // The client's routing is as old as the node's; other requests are refused without a trace.
            chain_version: ChainVersion(self.nodes[node].known),
            op: limits.op_of(writer),
            tag,
            leased: self.nodes[node].leased,
        };
        self.step(limits, node, event);
    }

    fn read(&mut self, limits: &Limits, node: usize) {
        let busy = self.waiting_reader.is_some();
        let before = self.clone();
        self.waiting_reader = Some((node, self.seen.len()));
        let chain_version = ChainVersion(self.nodes[node].known);
        let leased = self.nodes[node].leased;
        self.step(limits, node, Event::Read { ticket: READER, chain_version, leased });
        if busy && self.waiting_reader.is_some() {
            // One reader waits at most.
            *self = before;
        } else if busy && self.fault.is_none() {
            self.waiting_reader = before.waiting_reader;
        }
    }

    fn acknowledge(&mut self, writer: usize, sequence: u8, node: usize, version: Version) {
        let content = &self.nodes[node].disk.content;
        let byte = (writer as u8 + 1) * 32 + sequence;
        // Versions are places in the history until they begin anew.
        let place = match self.purged {
            true => content.iter().position(|other| *other == byte).unwrap_or(usize::MAX),
            false => (version.0 as usize).wrapping_sub(1),
        };
        if content.get(place) != Some(&byte) {
            self.fault = Some("an acknowledged write is not in the history");
            return;
        }
        let content = content[..=place].to_vec();
        self.show(&content);
        if self.writers[writer].sequence == sequence {
            self.writers[writer].acknowledged = true;
        }
    }

    /// A client has seen this history.
    fn show(&mut self, content: &[u8]) {
        if is_prefix(&self.seen, content) {
            self.seen = content.to_vec();
        } else if !is_prefix(content, &self.seen) {
            self.fault = Some("two clients have seen different histories");
        }
    }

    fn serve(&mut self, node: usize) {
        let Some((_, floor)) = self.waiting_reader.take() else { return };
        let content = self.nodes[node].disk.content.clone();
        if content.len() < floor {
            self.fault = Some("a read is older than what had been seen before it began");
        } else {
            self.show(&content);
        }
    }

    // Replicas --------------------------------------------------------------------------------------------

    fn step(&mut self, limits: &Limits, node: usize, event: Event) {
        let machine = self.nodes[node].machine.as_mut().expect("alive");
        let mut effects: VecDeque<Effect> = machine.step(event).into();
        while let Some(effect) = effects.pop_front() {
            self.carry_out(limits, node, effect);
        }
        // A quick disk is done before anything else happens.
        while !limits.slow_disks && self.fault.is_none() && !self.nodes[node].work.is_empty() {
            self.disk_done(limits, node, Ok(()));
        }
    }

    fn carry_out(&mut self, limits: &Limits, node: usize, effect: Effect) {
        let _ = limits;
        match effect {
            Effect::Forget { .. } => {
                let disk = &mut self.nodes[node].disk;
                disk.floor = disk.floor.max(disk.committed.version);
                disk.committed = Stamp::default();
                disk.removed = false;
                disk.writers.clear();
            }
            Effect::Stage { owner, update, .. } => {
                let held = &mut self.nodes[node].held;
                let place = held.iter().position(|(ticket, ..)| *ticket == owner);
                let replacement = match update.op {
                    Op::Replace { .. } => {
                        let (_, content, writers) = held.remove(place.expect("its payload is held"));
                        Some((content, writers))
                    }
                    _ => None,
                };
                self.nodes[node].work.push_back(DiskWork::Stage { update, replacement });
            }
            Effect::Commit { stamp, .. } => self.nodes[node].work.push_back(DiskWork::Commit(stamp)),
            Effect::Drop { stamp, .. } => self.nodes[node].work.push_back(DiskWork::Drop(stamp)),
            Effect::Forward { attempt, to, chain_version, update, fresh, content, .. } => {
                let StoredPending { stamp, op, tag } = update;
                let disk = &self.nodes[node].disk;
                let (op, payload, writers) = match content {
                    Content::Update => (op, Payload::Update, Vec::new()),
                    Content::Whole => {
                        let content = disk.pending_content();
                        let length = content.len() as u32;
                        let writers = disk.writers.clone();
                        let removed = op == Op::Remove;
                        let op = Op::Replace { length, writers: writers.len() as u32, removed };
                        (op, Payload::Whole(content), writers)
                    }
                };
                let fresh = fresh && content == Content::Update;
                let update = Forwarded { chain_version, stamp, op, tag, fresh, writers };
                self.post(node, to.node, attempt, update, payload);
            }
            Effect::Push { attempt, to, chain_version, stamp, .. } => {
                let disk = &self.nodes[node].disk;
                let (content, writers) = (disk.content.clone(), disk.writers.clone());
                let length = content.len() as u32;
                let removed = disk.is_bare();
                let op = Op::Replace { length, writers: writers.len() as u32, removed };
                let tag = RequestTag::default();
                let update = Forwarded { chain_version, stamp, op, tag, fresh: false, writers };
                self.post(node, to.node, attempt, update, Payload::Whole(content));
            }
            Effect::Stalled { .. } => self.nodes[node].outstanding = None,
            Effect::Serve { .. } => self.serve(node),
            Effect::Reply { ticket, outcome } => self.reply(node, ticket, outcome),
        }
    }

    fn post(&mut self, from: usize, to: NodeId, attempt: u64, update: Forwarded, payload: Payload) {
        self.nodes[from].outstanding = Some(attempt);
        let life = self.nodes[from].life;
        let message = Message::Update { to: to.0 as usize, from, life, attempt, update, payload };
        self.network.push(message);
    }

    fn reply(&mut self, node: usize, ticket: Ticket, outcome: Outcome) {
        self.nodes[node].held.retain(|(held, ..)| *held != ticket);
        if ticket == READER {
            self.waiting_reader = None;
        } else if ticket.0 & PUSHER.0 != 0 {
            match outcome {
                Outcome::Done { .. } => self.synced = Some(ticket.0 & 0xFF),
                Outcome::Refused(status) => self.ahead |= status == Status::Stale,
            }
        } else if ticket.0 >> 32 != 0 {
            let (from, life) = ((ticket.0 >> 16) as usize & 0xFF, (ticket.0 >> 24) as u8);
            let attempt = ticket.0 & 0xFFFF;
            let result = match outcome {
                Outcome::Done { .. } => Ok(()),
                Outcome::Refused(status) => Err(status),
            };
            // An answer to a process that has ended reaches nobody.
            if self.nodes[from].life == life && self.nodes[from].machine.is_some() {
                self.network.push(Message::Answer { to: from, attempt, result });
            }
        } else if let Outcome::Done { version } = outcome {
            let (writer, sequence) = ((ticket.0 >> 16) as usize, (ticket.0 >> 8) as u8);
            self.acknowledge(writer, sequence, node, version);
        }
    }

    fn deliver(&mut self, limits: &Limits, message: Message) {
        match message {
            Message::Update { to, from, life, attempt, update, payload } => {
                if self.nodes[to].machine.is_none() {
                    return;
                }
                let ticket = Ticket(1 << 32 | (life as u64) << 24 | (from as u64) << 16 | attempt);
                let nothing = update.stamp.version == Version(0)
                    && self.nodes[to].machine.as_ref().is_some_and(|machine| {
                        machine.view().chain_version == update.chain_version
                            && machine.view().place == Place::Syncing
                    });
                let mut history = None;
                if let Payload::Whole(content) = payload {
                    history = nothing.then(|| content.clone());
                    let held = &mut self.nodes[to].held;
                    held.retain(|(other, ..)| *other != ticket);
                    held.push((ticket, content, update.writers.clone()));
                }
                self.step(limits, to, Event::Chain { ticket, update });
                // What is pending here is left over from an earlier life; it may be being dropped.
                let drops = self.nodes[to].work.iter().any(|work| matches!(work, DiskWork::Drop(_)));
                let disk = &mut self.nodes[to].disk;
                if let Some(history) = history.filter(|_| disk.is_bare() && (disk.pending.is_none() || drops))
                {
                    // Nothing here and nothing there, however that came about.
                    disk.content = history;
                }
            }
            Message::Answer { to, attempt, result } => {
                if self.nodes[to].machine.is_none() {
                    return;
                }
                if self.nodes[to].outstanding == Some(attempt) {
                    self.nodes[to].outstanding = None;
                }
                self.step(limits, to, Event::Answered { attempt, result });
            }
        }
    }

    fn disk_done(&mut self, limits: &Limits, node: usize, result: Result<(), Status>) {
        let work = self.nodes[node].work.pop_front().expect("disk work");
        let disk = &mut self.nodes[node].disk;
        let event = match work {
            DiskWork::Stage { update, replacement } => {
                match (result, replacement) {
                    (Err(_), _) => {}
                    // As the engine does it: a replacement is committed at once.
                    (Ok(()), Some((content, writers))) => {
                        disk.committed = update.stamp;
                        disk.removed = matches!(update.op, Op::Replace { removed: true, .. });
                        disk.content = content;
                        disk.pending = None;
                        disk.writers = writers;
                        disk.remember(update.tag, update.stamp.version);
                    }
                    (Ok(()), None) => disk.pending = Some(update),
                }
                Event::Staged { result }
            }
            DiskWork::Commit(stamp) => {
                if let Some(pending) = disk.pending
                    && pending.stamp == stamp
                {
                    disk.content = disk.pending_content();
                    disk.committed = stamp;
                    disk.removed = pending.op == Op::Remove;
                    disk.pending = None;
                    disk.remember(pending.tag, stamp.version);
                }
                Event::Committed { result: Ok(()) }
            }
            DiskWork::Drop(_) => {
                disk.pending = None;
                Event::Dropped { result: Ok(()) }
            }
        };
        self.step(limits, node, event);
    }

    fn crash(&mut self, node: usize) {
        self.crashes -= 1;
        let dead = &mut self.nodes[node];
        dead.machine = None;
        dead.leased = false;
        dead.known = 0;
        dead.life += 1;
        dead.work.clear();
        dead.held.clear();
        dead.outstanding = None;
        self.network.retain(|message| !matches!(message, Message::Answer { to, .. } if *to == node));
        if self.waiting_reader.is_some_and(|(place, _)| place == node) {
            self.waiting_reader = None;
        }
    }

    // The cluster manager ---------------------------------------------------------------------------------

    fn remove(&mut self, node: usize) {
        let last = self.serving() == [node];
        self.change(node, if last { TargetState::LastServing } else { TargetState::Offline });
    }

    /// All that serve are found dead in one look: each had all that was acknowledged, and any of them may resume.
    fn fall_together(&mut self) {
        let mut chain = self.chains[self.chains.len() - 1].clone();
        for (_, state) in &mut chain {
            *state = match *state {
                TargetState::Serving => TargetState::LastServing,
                TargetState::Syncing => TargetState::Waiting,
                other => other,
            };
        }
        self.chains.push(chain);
        self.listed = None;
    }

    fn change(&mut self, node: usize, state: TargetState) {
        let mut chain = self.chains[self.chains.len() - 1].clone();
        chain.retain(|(member, _)| *member != node);
        if state == TargetState::Serving {
            for (_, other) in chain.iter_mut().filter(|(_, other)| *other == TargetState::LastServing) {
                *other = TargetState::Offline;
            }
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
        self.chains.push(chain);
        self.listed = None;
    }

    /// Whether the SYNCING replica's listing would say something new.
    fn may_list(&self) -> bool {
        let Some(&returning) = self.with_state(TargetState::Syncing).first() else { return false };
        let node = &self.nodes[returning];
        let listing = node.disk.listing().map(|listing| (self.latest(), listing));
        let is_known = node.machine.is_some() && node.known == self.latest();
        is_known && listing.is_some() && self.listed != listing && self.synced != Some(self.latest())
    }

    /// Whether the predecessor, which lists its own chunks later, finds the chunk equal on both sides.
    fn is_equal(&self) -> bool {
        let (Some((version, theirs)), Some(&tail)) = (&self.listed, self.serving().last()) else {
            return false;
        };
        let node = &self.nodes[tail];
        let is_known = node.machine.is_some() && node.known == self.latest() && *version == self.latest();
        is_known && node.disk.listing().as_ref() == Some(theirs) && self.synced != Some(self.latest())
    }

    /// Who may bring the SYNCING replica up to date: both sides know that it is one, and the send before this
    /// has been answered or counts as lost.
    fn may_push(&self) -> bool {
        let (Some(tail), Some(returning)) =
            (self.serving().last().copied(), self.with_state(TargetState::Syncing).first().copied())
        else {
            return false;
        };
        let ready = [tail, returning].iter().all(|place| {
            let node = &self.nodes[*place];
            node.machine.is_some() && node.known == self.latest()
        });
        let lost = self.nodes[tail].outstanding.is_some();
        ready && self.synced != Some(self.latest()) && (!lost || self.resends > 0)
    }

    /// The predecessor of the SYNCING replica sends what it has committed.
    fn push(&mut self, limits: &Limits) {
        let tail = *self.serving().last().expect("a predecessor");
        if std::mem::take(&mut self.ahead) {
            self.wipe(limits);
        }
        let ticket = Ticket(PUSHER.0 | self.latest());
        if let Some(attempt) = self.nodes[tail].outstanding.take() {
            self.resends -= 1;
            self.step(limits, tail, Event::Answered { attempt, result: Err(Status::Timeout) });
        }
        self.step(limits, tail, Event::Leave { ticket });
        let chain_version = ChainVersion(self.latest());
        self.step(limits, tail, Event::Push { ticket, chain_version });
    }

    fn wipe(&mut self, limits: &Limits) {
        let returning = self.with_state(TargetState::Syncing)[0];
        let view = self.view(self.latest(), returning);
        let node = &mut self.nodes[returning];
        node.disk = Disk { floor: node.disk.floor.max(node.disk.committed.version), ..Disk::default() };
        let stored = node.disk.stored();
        node.machine = Some(Replica::open_with_bug(view, stored, limits.bug));
        (node.work, node.held) = Default::default();
    }

    // Tombstones ------------------------------------------------------------------------------------------

    /// A tombstone is forgotten when all replicas serve, and so long after it was made that nothing from before it can
    /// still arrive: no message (its deadline has passed), and no request, which its client has given up.
    fn may_purge(&self, limits: &Limits, place: usize) -> bool {
        let node = &self.nodes[place];
        let disk = &node.disk;
        let before = |message: &Message| match message {
            Message::Update { to, update, .. } => *to == place && update.stamp < disk.committed,
            Message::Answer { .. } => false,
        };
        self.purges > 0
            && disk.removed
            && disk.pending.is_none()
            && node.known == self.latest()
            && self.serving().len() == limits.replicas
            && (limits.purges_early || !self.network.iter().any(before))
    }

    fn purge(&mut self, limits: &Limits, place: usize) {
        let stamp = self.nodes[place].disk.committed;
        self.step(limits, place, Event::Forget { stamp });
        if self.nodes[place].disk.removed {
            return; // something is going on for this chunk
        }
        self.purges -= 1;
        self.purged = true;
        for writer in self.writers.iter_mut().filter(|writer| writer.sends > 0) {
            writer.sends = limits.sends;
        }
    }

    /// The floor is of the whole disk, and a machine that has nothing to do is made anew when it is needed. Of a chunk
    /// that does not live the length would not be the version afterwards.
    fn may_purge_neighbour(&self, place: usize) -> bool {
        let node = &self.nodes[place];
        let at_rest = node.machine.as_ref().is_some_and(Replica::is_at_rest);
        self.neighbours > 0 && at_rest && node.disk.pending.is_none() && !node.disk.is_bare()
    }

    fn purge_neighbour(&mut self, limits: &Limits, place: usize) {
        self.neighbours -= 1;
        let node = &mut self.nodes[place];
        let view = *node.machine.as_ref().expect("alive").view();
        node.disk.floor = Version(node.disk.floor.max(node.disk.committed.version).0 + 1);
        node.machine = Some(Replica::open_with_bug(view, node.disk.stored(), limits.bug));
    }

    // What must always hold -------------------------------------------------------------------------------

    /// The first invariant that this world breaks.
    pub fn broken(&self) -> Option<&'static str> {
        self.fault.or_else(|| self.broken_replica()).or_else(|| self.broken_chain())
    }

    fn broken_replica(&self) -> Option<&'static str> {
        for node in &self.nodes {
            let disk = &node.disk;
            if !self.purged && disk.content.len() as u64 != disk.committed.version.0 {
                return Some("a content is not what its version says");
            }
            if let Some(pending) = disk.pending
                && pending.stamp.version.0 != disk.committed.version.0 + 1
                && !disk.is_bare()
            {
                return Some("a pending version does not follow the committed one");
            }
            let mut sorted = disk.content.clone();
            sorted.sort_unstable();
            sorted.dedup();
            if sorted.len() != disk.content.len() {
                return Some("a request was executed twice");
            }
        }
        None
    }

    fn broken_chain(&self) -> Option<&'static str> {
        let mut members = self.serving();
        members.extend(self.with_state(TargetState::LastServing));
        for node in &members {
            let disk = &self.nodes[*node].disk;
            if !is_prefix(&self.seen, &disk.pending_content()) {
                return Some("a member lacks what a client has seen");
            }
        }
        for pair in members.windows(2) {
            let [before, after] = [&self.nodes[pair[0]].disk, &self.nodes[pair[1]].disk];
            if !is_prefix(&before.content, &after.content) {
                return Some("a member has committed what a later member has not");
            }
            if !is_prefix(&after.content, &before.pending_content()) {
                return Some("a member has committed what an earlier member does not even hold");
            }
        }
        if self.is_quiet(&members) {
            for pair in members.windows(2) {
                let [before, after] = [&self.nodes[pair[0]].disk, &self.nodes[pair[1]].disk];
                if before.essence(self.purged) != after.essence(self.purged) {
                    return Some("replicas at rest differ");
                }
            }
        }
        None
    }

    /// Nothing is under way, and everybody knows the chain.
    pub fn is_quiet(&self, members: &[usize]) -> bool {
        self.network.is_empty()
            && members.iter().all(|place| {
                let node = &self.nodes[*place];
                let at_rest = node.machine.as_ref().is_some_and(|machine| {
                    machine.is_at_rest() && machine.pending().is_none() && machine.view().is_member()
                });
                at_rest && node.known == self.latest() && node.work.is_empty()
            })
    }
}
