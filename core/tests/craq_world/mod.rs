//! A small world around the production `craq::Replica`: replicas of some chunks with their disks, a network, a cluster
//! manager that obeys the leases, recovery, writers that retry, a reader, and a client that syncs. `craq_model.rs`
//! explores it exhaustively, and `craq_simulator.rs` walks through it at random for long.
//!
//! An update adds one byte that names its request to the chunk's history, and overwrites, cuts or removes the bytes. As
//! long as no tombstone has been forgotten the history's length is the version; where one is, the history is kept for
//! checking. A client's request is delivered where and when it is sent: the world may send any request again at any
//! time, late duplicates included, so a network between clients and replicas would add nothing. The requests of a writer
//! go to one chunk after the other, each after the answer to the one before.
//!
//! - `clients`: what clients ask and see, and what they were promised.
//! - `replicas`: carries out the effects of the machines; the network; processes that end.
//! - `manager`: the chain, comparison and promotion of a replica that returns, tombstones.
//! - `disk`: what is on a disk, and what power loss leaves of it.
//! - `invariants`: what must hold in every state.

#![allow(dead_code)] // each of the two tests uses its part

mod clients;
mod disk;
mod invariants;
mod manager;
mod replicas;

use luciola_core::craq::{Bug, Forwarded, Place, Replica, StoredPending, Ticket, View};
use luciola_core::types::*;
use std::collections::VecDeque;

use clients::{Reader, Sync, Writer};
use disk::Disk;
use manager::Resync;

/// What may happen in a world, and how often.
#[derive(Clone, Debug)]
pub struct Limits {
    pub replicas: usize,
    /// The first so many replicas begin as SERVING, the others as OFFLINE.
    pub serving: usize,
    pub chunks: usize,
    pub writers: u8,
    /// Updates of each writer, one after another, to one chunk after the other.
    pub requests: u8,
    /// Sends of each request, retries and late duplicates included.
    pub sends: u8,
    pub crashes: u8,
    /// Nodes that lose touch with the manager while they run.
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
    /// A client reads, at any member.
    pub reads: bool,
    /// Clients ask under an older or a newer chain version than that of the node.
    pub other_routing: bool,
    /// So many of the writers, the last ones, remove the chunk instead of writing to it.
    pub removers: u8,
    /// So many of the writers, the first ones, cut the chunk.
    pub cutters: u8,
    /// Tombstones forgotten.
    pub purges: u8,
    /// Tombstones of other chunks forgotten on a disk, of higher versions than its chunks have.
    pub neighbours: u8,
    /// An administrator takes a serving replica to the tail.
    pub rotations: u8,
    /// Machines that lose power.
    pub power_losses: u8,
    /// Times a client syncs what has been acknowledged.
    pub syncs: u8,
    /// Rounds of `sync` that a disk begins by itself.
    pub flushes: u8,
    /// A round of `sync` goes by steps.
    pub slow_rounds: bool,
    /// A mistake in the machine.
    pub bug: Bug,
    /// A mistake in what stands around the machine.
    pub mistake: Mistake,
}

/// Mistakes of the disk, the manager and the servers, which a test plants to see that the model check finds them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    None,
    /// Tombstones are forgotten while messages from before them are still on their way.
    PurgeEarly,
    /// The manager forgets that a lease which had run out needs newer routing.
    LeaseWithoutRouting,
    /// A chunk's record names one state to fall back to after power loss.
    OneFallback,
    /// A replica is promoted with what it was sent still in memory.
    PromoteUnflushed,
    /// A sync is answered without the SYNCING replica.
    SyncWithoutSyncing,
    /// The chain resumes with the first replica that returns, whatever it has lost.
    ResumeWithFirst,
    /// A replica that lost power serves on if it is back before it was declared failed.
    ServeOnAfterPowerLoss,
    /// What is pending on one side is not looked at when chunks are compared.
    CompareCommittedOnly,
    /// What the tail is staging does not count as pending when chunks are compared.
    CompareIndexOnly,
    /// A chunk that is ahead of its predecessor's counts as up to date.
    KeepAhead,
}

impl Limits {
    pub const SMALL: Limits = Limits {
        replicas: 3,
        serving: 3,
        chunks: 1,
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
        reads: true,
        other_routing: false,
        removers: 0,
        cutters: 0,
        purges: 0,
        neighbours: 0,
        rotations: 0,
        power_losses: 0,
        syncs: 0,
        flushes: 0,
        slow_rounds: false,
        bug: Bug::None,
        mistake: Mistake::None,
    };

    fn op_of(&self, writer: usize) -> Op {
        if writer >= usize::from(self.writers - self.removers) {
            Op::Remove
        } else if writer < usize::from(self.cutters) {
            Op::Truncate { length: 1 }
        } else {
            // It overwrites what the one before wrote, or what may have been cut.
            Op::Write { offset: u32::from(self.cutters > 0), length: 1 }
        }
    }

    fn loses_power(&self) -> bool {
        self.power_losses > 0 || self.syncs > 0
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Payload {
    Update,
    Whole { history: Vec<u8>, bytes: Vec<u8> },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    Update {
        to: usize,
        from: usize,
        chunk: usize,
        life: u8,
        attempt: u64,
        update: Forwarded,
        payload: Payload,
    },
    Answer {
        to: usize,
        chunk: usize,
        attempt: u64,
        result: Result<(), Status>,
    },
}

impl Message {
    /// Messages are a bag: worlds that differ only in their order are the same.
    fn order(&self) -> (bool, usize, usize, usize, u64, Stamp, u64, u16) {
        match self {
            Message::Update { to, from, chunk, life, attempt, update, .. } => {
                let lives = (*attempt << 8) | *life as u64;
                (true, *to, *from, *chunk, lives, update.stamp, update.chain_version.0, 0)
            }
            Message::Answer { to, chunk, attempt, result } => {
                let status = result.err().map_or(0, |status| status as u16);
                (false, *to, 0, *chunk, *attempt, Stamp::default(), 0, status)
            }
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum DiskWork {
    Stage { update: StoredPending, replacement: Option<Replacement>, last: bool },
    Commit(Stamp),
    Drop(Stamp),
}

/// What comes with an `Op::Replace`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Replacement {
    history: Vec<u8>,
    bytes: Vec<u8>,
    writers: Vec<WriterRecord>,
}

/// One chunk in a node's process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Part {
    /// `None` while the process is dead.
    pub machine: Option<Replica>,
    work: VecDeque<DiskWork>,
    /// Payloads of replacements that wait in the machine.
    held: Vec<(Ticket, Replacement)>,
    /// The send that has not been answered.
    outstanding: Option<u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub leased: bool,
    /// The chain version that this node knows of; 0 after a start.
    pub known: u64,
    /// Counts process starts.
    pub life: u8,
    /// It lost power, and has neither served nor been brought up to date since.
    pub is_partial: bool,
    /// It lost power while it took part in the chain, and is not heard before it has been taken out.
    must_fall: bool,
    pub disk: Disk,
    pub parts: Vec<Part>,
}

impl Node {
    pub fn is_alive(&self) -> bool {
        self.parts[0].machine.is_some()
    }

    fn place(&self) -> Place {
        self.parts[0].machine.as_ref().map_or(Place::Out, |machine| machine.view().place)
    }

    fn machine(&self, chunk: usize) -> &Replica {
        self.parts[chunk].machine.as_ref().expect("alive")
    }

    fn open(&mut self, chunk: usize, view: View, bug: Bug) {
        let machine = Replica::open_with_bug(view, self.disk.stored(chunk), bug);
        self.parts[chunk] = Part { machine: Some(machine), ..Part::default() };
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub nodes: Vec<Node>,
    /// `chains[v - 1]` is the chain at version v.
    pub chains: Vec<Vec<(usize, TargetState)>>,
    pub network: Vec<Message>,
    pub writers: Vec<Writer>,
    /// Of each chunk the longest history that a completed read or an acknowledgement has shown to a client.
    pub seen: Vec<Vec<u8>>,
    /// Of each chunk the longest history of which the last update was acknowledged. Kept where power is lost.
    acknowledged: Vec<Vec<u8>>,
    /// Of each chunk what had been acknowledged before a sync that succeeded.
    pub durable: Vec<Vec<u8>>,
    /// A read that waits at a tail.
    waiting_reader: Option<Reader>,
    sync: Option<Sync>,
    resync: Option<Resync>,
    /// The chain version under which the SYNCING replica has said that it is up to date.
    up_to_date: Option<u64>,
    left: Left,
    /// A tombstone has been forgotten somewhere, or a chunk was set aside.
    purged: bool,
    pub fault: Option<&'static str>,
}

/// How often things may still happen.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Left {
    crashes: u8,
    expiries: u8,
    restarts: u8,
    resends: u8,
    full_disks: u8,
    duplicates: u8,
    purges: u8,
    neighbours: u8,
    rotations: u8,
    power_losses: u8,
    syncs: u8,
    flushes: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Send {
        writer: usize,
        node: usize,
    },
    /// A client asks the node under another chain version than its own.
    SendUnder {
        writer: usize,
        node: usize,
        version: u64,
    },
    Next {
        writer: usize,
    },
    GiveUp {
        writer: usize,
        node: usize,
    },
    Read {
        node: usize,
        chunk: usize,
    },
    Sync {
        node: usize,
    },
    /// The request to sync reaches another member.
    JoinSync {
        node: usize,
    },
    Deliver(usize),
    DeliverAndKeep(usize),
    Lose(usize),
    DiskDone {
        node: usize,
        chunk: usize,
    },
    DiskFull {
        node: usize,
        chunk: usize,
    },
    /// A round of `sync` on that disk, or one step of it.
    Flush {
        node: usize,
    },
    Resend {
        node: usize,
        chunk: usize,
    },
    Crash {
        node: usize,
    },
    /// As `Crash`, and that one of the possible states is left on its disk.
    LosePower {
        node: usize,
        leaves: usize,
    },
    Expire {
        node: usize,
    },
    Restart {
        node: usize,
    },
    Learn {
        node: usize,
    },
    Grant {
        node: usize,
    },
    Remove {
        node: usize,
    },
    FallTogether,
    Revive {
        node: usize,
    },
    BeginSync {
        node: usize,
    },
    Rotate {
        node: usize,
    },
    List {
        chunk: usize,
    },
    Compare {
        chunk: usize,
    },
    SetAside {
        chunk: usize,
    },
    Push {
        chunk: usize,
    },
    SyncDone,
    Promote,
    Purge {
        node: usize,
        chunk: usize,
    },
    PurgeNeighbour {
        node: usize,
    },
}

const READER: Ticket = Ticket(1 << 40);
const PUSHER: Ticket = Ticket(1 << 41);

/// Names a request in a history.
fn byte_of(tag: RequestTag) -> u8 {
    (tag.client.0 as u8) * 32 + tag.sequence as u8
}

/// The writer of a request, and its place among those of that writer, from 1.
fn request_of(byte: u8) -> (usize, u8) {
    (usize::from(byte / 32) - 1, byte % 32)
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
        let nothing = vec![Vec::new(); limits.chunks];
        let mut world = World {
            nodes: Vec::new(),
            chains: vec![chain],
            network: Vec::new(),
            writers: vec![Writer::default(); limits.writers as usize],
            seen: nothing.clone(),
            acknowledged: nothing.clone(),
            durable: nothing,
            waiting_reader: None,
            sync: None,
            resync: None,
            up_to_date: None,
            left: Left {
                crashes: limits.crashes,
                expiries: limits.expiries,
                restarts: limits.restarts,
                resends: limits.resends,
                full_disks: limits.full_disks,
                duplicates: limits.duplicates,
                purges: limits.purges,
                neighbours: limits.neighbours,
                rotations: limits.rotations,
                power_losses: limits.power_losses,
                syncs: limits.syncs,
                flushes: limits.flushes,
            },
            purged: false,
            fault: None,
        };
        for place in 0..limits.replicas {
            let view = world.view(1, place);
            let mut node = Node {
                leased: true,
                known: 1,
                life: 0,
                is_partial: false,
                must_fall: false,
                disk: Disk::new(limits.chunks, limits.loses_power()),
                parts: vec![Part::default(); limits.chunks],
            };
            (0..limits.chunks).for_each(|chunk| node.open(chunk, view, limits.bug));
            world.nodes.push(node);
        }
        world
    }

    /// Everything that could happen next, in a fixed order.
    pub fn actions(&self, limits: &Limits, actions: &mut Vec<Action>) {
        if self.fault.is_some() {
            return;
        }
        self.network_actions(limits, actions);
        for node in 0..self.nodes.len() {
            if self.nodes[node].is_alive() {
                self.process_actions(node, actions);
                self.client_actions(limits, node, actions);
                self.tombstone_actions(limits, node, actions);
            }
            self.power_actions(node, actions);
            self.manager_actions(limits, node, actions);
        }
        self.chain_actions(limits, actions);
        for (writer, state) in self.writers.iter().enumerate() {
            if state.acknowledged && state.sequence < limits.requests {
                actions.push(Action::Next { writer });
            }
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
            Action::SendUnder { writer, node, version } => self.send_under(limits, writer, node, version),
            Action::Next { writer } => {
                let sequence = self.writers[writer].sequence + 1;
                self.writers[writer] = Writer { sequence, ..Writer::default() };
            }
            Action::GiveUp { writer, node } => self.give_up(limits, writer, node),
            Action::Read { node, chunk } => self.read(limits, node, chunk),
            Action::Sync { node } => self.begin_sync(limits, node),
            Action::JoinSync { node } => self.join_sync(limits, node),
            Action::Deliver(place) => {
                let message = self.network.remove(place);
                self.deliver(limits, message);
            }
            Action::DeliverAndKeep(place) => {
                self.left.duplicates -= 1;
                let message = self.network[place].clone();
                self.deliver(limits, message);
            }
            Action::Lose(place) => drop(self.network.remove(place)),
            Action::DiskDone { node, chunk } => self.disk_done(limits, node, chunk, Ok(())),
            Action::DiskFull { node, chunk } => {
                self.left.full_disks -= 1;
                self.disk_done(limits, node, chunk, Err(Status::NoSpace));
            }
            Action::Flush { node } => self.flush(limits, node),
            Action::Resend { node, chunk } => {
                self.left.resends -= 1;
                self.answer_is_lost(limits, node, chunk);
                self.step(limits, node, chunk, luciola_core::craq::Event::Retry);
            }
            Action::Crash { node } => {
                self.left.crashes -= 1;
                self.end_process(node);
            }
            Action::LosePower { node, leaves } => self.lose_power(node, leaves),
            Action::Expire { node } => {
                self.left.expiries -= 1;
                self.nodes[node].leased = false;
            }
            Action::Restart { node } => self.restart(limits, node),
            Action::Learn { node } => self.learn(limits, node),
            Action::Grant { node } => self.nodes[node].leased = true,
            Action::Remove { node } => self.remove(node),
            Action::FallTogether => self.fall_together(),
            Action::Revive { node } => self.change(node, TargetState::Serving),
            Action::BeginSync { node } => self.change(node, TargetState::Syncing),
            Action::Rotate { node } => {
                self.left.rotations -= 1;
                self.change(node, TargetState::Syncing);
            }
            Action::List { chunk } => self.list(chunk),
            Action::Compare { chunk } => self.compare(limits, chunk),
            Action::SetAside { chunk } => self.set_aside(limits, chunk),
            Action::Push { chunk } => self.push(limits, chunk),
            Action::SyncDone => self.sync_done(limits),
            Action::Promote => {
                let node = self.with_state(TargetState::Syncing)[0];
                self.change(node, TargetState::Serving);
            }
            Action::Purge { node, chunk } => self.purge(limits, node, chunk),
            Action::PurgeNeighbour { node } => self.purge_neighbour(limits, node),
        }
        self.network.sort_by_key(Message::order);
    }

    // The chain -------------------------------------------------------------------------------------------

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
}
