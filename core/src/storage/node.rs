//! The state of one node: its membership, and the machines of its chunks.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::lock::{Mutex, RwLock};

use super::counters::{Counters, count};
use super::hold::Hold;
use super::lease::Lease;
use super::peers::Peers;
use super::redrive_queue::{Redrive, RedriveJob};
use super::repair_queue::Repairs;
use super::table::{SlotRef, SlotState, Table};
use crate::buffer::{BufferPool, Placement};
use crate::chunk::Engine;
use crate::cluster::routing::Routing;
use crate::craq::{Effect, Event, Place, Replica, Stored, StoredPending, Ticket, View};
use crate::error::Result;
use crate::types::{
    ChainId, ChainVersion, ChunkId, ChunkKey, NodeId, Stamp, Status, TargetId, TargetState, Version,
};
use crate::wire::pb;

/// One replica, for the heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetReport {
    pub target: TargetId,
    pub chain: ChainId,
    pub chain_version: ChainVersion,
    pub chunks: u64,
    pub used_bytes: u64,
    /// Updates that its chunks have seen.
    pub updates: u64,
    /// Its disk has failed.
    pub bad: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChainStatus {
    pub chain: ChainId,
    pub version: ChainVersion,
    pub state: TargetState,
    /// Pending versions that have not been driven to their end.
    pub pending: usize,
}

/// What all threads of a node share.
pub struct Node {
    pub id: NodeId,
    pub engine: Engine,
    pub table: Arc<Table>,
    pub peers: Peers,
    pub lease: Lease,
    pub hold: Hold,
    pub redrive: Redrive,
    pub repairs: Repairs,
    pub counters: Counters,
    pub sync_updates: bool,
    pub(super) buffers: BufferPool,
    pub(super) routing: RwLock<Arc<Routing>>,
    /// One change of routing at a time.
    pub(super) routing_change: Mutex<()>,
    pub(super) tickets: AtomicU64,
    pub(super) bad: AtomicBool,
    pub wiping: Mutex<HashSet<ChainId>>,
    pub stopping: AtomicBool,
}

impl Node {
    // Membership ------------------------------------------------------------------------------------------

    pub fn routing(&self) -> Arc<Routing> {
        self.routing.read().clone()
    }

    /// What routing says of this node's replica of a chain; nothing but version 0 for an unknown chain.
    pub fn view(&self, chain: ChainId) -> View {
        self.routing.read().chains.get(&chain).map_or(View::default(), |chain| View::of(chain, self.id))
    }

    /// Whether the disk has failed. A bad one serves nothing until the process has been restarted. A failed flush
    /// of the background or a failed write of the index counts from the moment it happens, not when it is noticed (S6).
    pub fn is_bad(&self) -> bool {
        if self.engine.has_failed() && !self.bad.load(Ordering::Acquire) {
            self.mark_bad("background flush or index write");
        }
        self.bad.load(Ordering::Acquire)
    }

    pub fn mark_bad(&self, what: &str) {
        count(&self.counters.io_errors);
        if !self.bad.swap(true, Ordering::AcqRel) {
            log::error!(
                "node {}: disk failed: {what}; serving nothing until the disk is repaired and the node restarted",
                self.id
            );
        }
    }

    /// Why no request for this chain may be served now.
    pub fn refusal(&self, chain: ChainId) -> Option<Status> {
        let closed =
            self.is_bad() || self.stopping.load(Ordering::Acquire) || (self.wiping.lock().contains(&chain));
        closed.then_some(Status::NotServing)
    }

    pub fn set_routing(&self, update: pb::Routing) -> Result<u64> {
        let _one = self.routing_change.lock();
        let before = self.routing();
        let after = Arc::new(before.apply(update)?);
        assert!(after.version >= before.version, "routing never goes back");
        *self.routing.write() = after.clone();
        let changed: HashSet<ChainId> = after
            .chains
            .values()
            .filter(|chain| before.chains.get(&chain.id).is_none_or(|old| old.version < chain.version))
            .map(|chain| chain.id)
            .collect();
        // A machine made from now on sees the new routing; those made before are stepped with it (S4).
        for slot in self.table.slots_of(&changed) {
            self.step_if_made(&slot, |view| Event::ViewChanged { view });
        }
        for key in self.table.dormant_of(&changed) {
            if self.view(key.chain).is_member() {
                self.redrive.push(RedriveJob::Wake(key));
            }
        }
        self.lease.routing_known(after.version);
        Ok(after.version)
    }

    /// Return when every machine has been stepped with the present routing.
    pub fn wait_for_routing_change(&self) {
        drop(self.routing_change.lock());
    }

    pub fn targets(&self) -> Vec<TargetReport> {
        let routing = self.routing();
        let own = routing.chains.values().filter_map(|chain| {
            let member = chain.members.iter().find(|member| member.node == self.id)?;
            let usage = self.engine.usage(chain.id);
            Some(TargetReport {
                target: member.target,
                chain: chain.id,
                chain_version: chain.version,
                chunks: usage.chunks,
                used_bytes: usage.page_bytes,
                updates: usage.updates,
                bad: self.is_bad(),
            })
        });
        let mut own: Vec<TargetReport> = own.collect();
        own.sort_by_key(|report| report.chain);
        own
    }

    pub fn chain_states(&self) -> Vec<ChainStatus> {
        let routing = self.routing();
        let mut states: Vec<ChainStatus> = routing
            .chains
            .values()
            .filter_map(|chain| {
                let member = chain.members.iter().find(|member| member.node == self.id)?;
                let pending = self.pending_count(chain.id);
                Some(ChainStatus { chain: chain.id, version: chain.version, state: member.state, pending })
            })
            .collect();
        states.sort_by_key(|state| state.chain);
        states
    }

    pub fn pending_count(&self, chain: ChainId) -> usize {
        let chains = HashSet::from([chain]);
        let awake = self.table.slots_of(&chains);
        let awake = awake.iter().filter(|slot| {
            slot.state.lock().machine.as_ref().is_some_and(|machine| machine.pending().is_some())
        });
        awake.count() + self.table.dormant_of(&chains).len()
    }

    /// The chunks of a chain whose machine has an update, and the version that it makes.
    pub fn under_way(&self, chain: ChainId) -> Vec<(ChunkId, Version)> {
        let slots = self.table.slots_of(&HashSet::from([chain]));
        let pending = slots.iter().filter_map(|slot| {
            let stamp = slot.state.lock().machine.as_ref()?.pending()?;
            Some((slot.key.chunk, stamp.version))
        });
        pending.collect()
    }

    // Machines --------------------------------------------------------------------------------------------

    pub fn new_ticket(&self) -> Ticket {
        Ticket(self.tickets.fetch_add(1, Ordering::Relaxed))
    }

    /// Step the chunk's machine, which is made first if need be, and hand out what it orders.
    pub fn step(&self, slot: &SlotRef, event: Event) -> Result<(), Status> {
        let mut state = slot.state.lock();
        self.make(slot.key, &mut state)?;
        self.step_made(slot, &mut state, event);
        Ok(())
    }

    fn step_if_made(&self, slot: &SlotRef, event: impl FnOnce(View) -> Event) {
        let mut state = slot.state.lock();
        if state.machine.is_some() {
            let event = event(self.view(slot.key.chain));
            self.step_made(slot, &mut state, event);
        }
    }

    fn step_made(&self, slot: &SlotRef, state: &mut SlotState, event: Event) {
        let machine = state.machine.as_mut().expect("made before");
        if state.review.is_due(machine.writer_count()) {
            machine.forget_settled(|tag| self.engine.writers().is_settled(tag));
            state.review.done(machine.writer_count());
        }
        let effects = machine.step(event);
        let orphan = machine.is_orphan();
        let stamp = machine.progress().map(|progress| progress.stamp);
        if stamp != state.work.map(|(stamp, _)| stamp) {
            state.work = stamp.map(|stamp| (stamp, Instant::now()));
            state.refusal = None;
        }
        assert_eq!(
            state.work.is_some(),
            stamp.is_some(),
            "{:?}: work is timed while there is some",
            slot.key
        );
        for effect in effects {
            self.dispatch(slot, state, effect);
        }
        if orphan && !state.redrive_queued {
            state.redrive_queued = true;
            self.redrive.push_later(slot.clone());
        }
    }

    /// Enqueue an order for its caller, or for the redrive threads if that one has left.
    fn dispatch(&self, slot: &SlotRef, state: &mut SlotState, effect: Effect) {
        if let Effect::Stalled { status, .. } = effect {
            state.refusal = Some(status);
        }
        let owner = match &effect {
            Effect::Reply { ticket, .. } => {
                if let Some((mailbox, place)) = state.callers.remove(ticket) {
                    mailbox.enqueue(place, effect);
                }
                return;
            }
            Effect::Serve { ticket } => {
                if let Some((mailbox, place)) = state.callers.remove(ticket) {
                    mailbox.enqueue(place, effect);
                }
                return;
            }
            Effect::Forget { .. } => unreachable!("`forget` carries it out"),
            Effect::Stage { owner, .. } | Effect::Push { owner, .. } => Some(*owner),
            Effect::Forward { owner, .. }
            | Effect::Commit { owner, .. }
            | Effect::Drop { owner, .. }
            | Effect::Stalled { owner, .. } => *owner,
        };
        match owner.and_then(|owner| state.callers.get(&owner)) {
            Some((mailbox, place)) => mailbox.enqueue(*place, effect),
            // What is stalled is an orphan, and queued as such.
            None if matches!(effect, Effect::Stalled { .. }) => {}
            None => self.redrive.push(RedriveJob::Execute(slot.clone(), effect)),
        }
    }

    /// Forget a tombstone that is old enough; whether it did. Under the lock of the chunk's machine, so that no update
    /// comes in between (S1).
    pub fn forget(&self, key: ChunkKey, stamp: Stamp) -> Result<bool, Status> {
        let slot = self.table.slot(key);
        let mut state = slot.state.lock();
        self.make(key, &mut state)?;
        let machine = state.machine.as_mut().expect("made before");
        match machine.step(Event::Forget { stamp })[..] {
            [Effect::Forget { stamp: forgotten }] => {
                assert_eq!(forgotten, stamp, "{key:?}: the tombstone that was asked for");
                self.engine.forget(key, stamp)
            }
            _ => Ok(false),
        }
    }

    /// Remove a chunk whose record cannot be read, where no other replica has it; else that is `Checksum`.
    pub fn remove_unreadable(&self, key: ChunkKey) -> Result<(), Status> {
        let slot = self.table.slot(key);
        let state = slot.state.lock();
        let view = self.view(key.chain);
        if state.machine.is_some() {
            return Err(Status::Busy);
        }
        if view.place != (Place::Member { head: true }) || view.successor.is_some() {
            return Err(self.failed(key, Status::Checksum));
        }
        self.engine.erase(key)
    }

    fn make(&self, key: ChunkKey, state: &mut SlotState) -> Result<(), Status> {
        if state.machine.is_some() {
            return Ok(());
        }
        let found = match self.engine.lookup(key) {
            // Only the predecessor's state counts, and its comparison finds nothing here: it sends the chunk.
            Err(Status::Checksum) if self.view(key.chain).place == Place::Syncing => {
                self.engine.erase(key)?;
                None
            }
            found => found?,
        };
        let stored = found.map_or(Stored::default(), |found| Stored {
            committed: found.committed.map_or(Stamp::default(), |committed| committed.stamp),
            removed: found.committed.is_some_and(|committed| committed.removed),
            pending: found.pending.map(|pending| StoredPending {
                stamp: pending.stamp,
                op: pending.op,
                tag: pending.tag,
            }),
            writers: found.writers,
            floor: Version(0),
        });
        // Read after the record: forgetting it raised the floor with it.
        let stored = Stored { floor: self.engine.floor(), ..stored };
        self.table.awake(&key);
        state.review.done(stored.writers.len());
        state.machine = Some(Replica::open(self.view(key.chain), stored));
        Ok(())
    }

    /// Shared memory of our own for a payload.
    pub fn buffer(&self, len: usize) -> Result<Placement, Status> {
        if len <= self.buffers.buffer_bytes()
            && let Some(buffer) = self.buffers.try_take()
        {
            let buffer = buffer.into_placement().slice(0..len);
            assert_eq!(buffer.len(), len, "a buffer as long as the payload");
            return Ok(buffer);
        }
        Placement::private(len).map_err(|_| Status::Busy)
    }

    /// Length of the committed content; 0 if there is none, or it cannot be read.
    pub fn length(&self, key: ChunkKey) -> u32 {
        self.engine.length(key).unwrap_or(0)
    }
}

/// The deadline of work without a waiting caller.
pub fn within(limit: Duration) -> Instant {
    Instant::now() + limit
}
