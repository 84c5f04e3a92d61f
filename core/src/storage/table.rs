//! The machines of the chunks with work in progress.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::ops::Deref;
use std::sync::Arc;
use std::time::Instant;

use crate::lock::{Condvar, Mutex};

use crate::craq::{Effect, Replica, Ticket};
use crate::types::{ChainId, ChunkKey, Stamp, Status, WRITERS_MAX};

const SHARDS: usize = 64;
const _: () = assert!(SHARDS.is_power_of_two(), "hashes spread evenly");

/// Orders of the machines for one caller's thread: the place of the operation in its batch, and the order. Often the
/// thread that enqueues an order is the caller itself.
#[derive(Debug, Default)]
pub struct Mailbox {
    orders: Mutex<VecDeque<(usize, Effect)>>,
    arrived: Condvar,
}

impl Mailbox {
    pub fn enqueue(&self, place: usize, effect: Effect) {
        self.orders.lock().push_back((place, effect));
        self.arrived.notify_one();
    }

    pub fn take_all(&self) -> VecDeque<(usize, Effect)> {
        std::mem::take(&mut self.orders.lock())
    }

    /// What has arrived, waiting for something until `deadline`.
    pub fn wait(&self, deadline: Instant) -> VecDeque<(usize, Effect)> {
        let mut orders = self.orders.lock();
        while orders.is_empty() && !self.arrived.wait_until(&mut orders, deadline).timed_out() {}
        std::mem::take(&mut orders)
    }
}

/// One chunk.
#[derive(Debug)]
pub struct ChunkSlot {
    pub key: ChunkKey,
    pub state: Mutex<SlotState>,
}

#[derive(Debug, Default)]
pub struct SlotState {
    /// `None` until the engine has been asked.
    pub machine: Option<Replica>,
    pub callers: HashMap<Ticket, (Arc<Mailbox>, usize)>,
    /// A redrive of this chunk is queued.
    pub redrive_queued: bool,
    /// What holds the chunk, since when, and why the successor did not take it when it was sent last.
    pub work: Option<(Stamp, Instant)>,
    pub refusal: Option<Status>,
    pub review: WriterReview,
}

/// A machine that remembers more requests than this is asked to forget those that are settled; fewer cost nothing.
const WRITERS_REVIEWED: usize = 128;
const _: () =
    assert!(WRITERS_REVIEWED < WRITERS_MAX / 2 * 3, "a review is due before a machine forgets unasked");

/// When a machine is asked to forget requests that are settled: whenever it remembers twice as many as were left the last
/// time. So a step costs the same however many there are.
#[derive(Debug, Default)]
pub struct WriterReview {
    left: usize,
}

impl WriterReview {
    /// So many are remembered; those on the disk were looked through when it was written.
    pub fn done(&mut self, count: usize) {
        self.left = count;
    }

    pub fn is_due(&self, count: usize) -> bool {
        // Before the machine forgets the oldest of them, settled or not.
        count > (2 * self.left).clamp(WRITERS_REVIEWED, WRITERS_MAX / 2 * 3)
    }
}

impl SlotState {
    fn is_forgettable(&self) -> bool {
        self.callers.is_empty() && self.machine.as_ref().is_none_or(Replica::is_at_rest)
    }
}

#[derive(Debug)]
struct TableEntry {
    slot: Arc<ChunkSlot>,
    /// References given out, counted under the lock of the shard.
    users: usize,
}

#[derive(Debug)]
pub struct Table {
    shards: Vec<Mutex<HashMap<ChunkKey, TableEntry>>>,
    hasher: RandomState,
    /// Chunks without a machine whose pending version is on disk: found at the start, or left there when the
    /// replica was taken out of its chain.
    dormant: Mutex<HashSet<ChunkKey>>,
}

impl Table {
    pub fn new(pending: impl IntoIterator<Item = ChunkKey>) -> Arc<Table> {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        let dormant = Mutex::new(pending.into_iter().collect());
        Arc::new(Table { shards, hasher: RandomState::new(), dormant })
    }

    fn shard(&self, key: &ChunkKey) -> &Mutex<HashMap<ChunkKey, TableEntry>> {
        &self.shards[self.hasher.hash_one(key) as usize % SHARDS]
    }

    /// The slot of a chunk; it exists at least as long as the reference.
    pub fn slot(self: &Arc<Table>, key: ChunkKey) -> SlotRef {
        let mut shard = self.shard(&key).lock();
        let new = || TableEntry { slot: Arc::new(ChunkSlot { key, state: Mutex::default() }), users: 0 };
        self.refer(shard.entry(key).or_insert_with(new))
    }

    fn refer(self: &Arc<Table>, entry: &mut TableEntry) -> SlotRef {
        entry.users += 1;
        debug_assert!(entry.users < 1 << 32, "references are given back");
        SlotRef { table: self.clone(), slot: entry.slot.clone() }
    }

    /// Those slots of `chains` that exist now.
    pub fn slots_of(self: &Arc<Table>, chains: &HashSet<ChainId>) -> Vec<SlotRef> {
        let mut found = Vec::new();
        for shard in &self.shards {
            let mut shard = shard.lock();
            let wanted = shard.values_mut().filter(|entry| chains.contains(&entry.slot.key.chain));
            found.extend(wanted.map(|entry| self.refer(entry)));
        }
        found
    }

    /// All slots that exist now.
    pub fn all(self: &Arc<Table>) -> Vec<SlotRef> {
        let of_shard = |shard: &Mutex<HashMap<ChunkKey, TableEntry>>| {
            shard.lock().values_mut().map(|entry| self.refer(entry)).collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(of_shard).collect()
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    pub fn dormant_of(&self, chains: &HashSet<ChainId>) -> Vec<ChunkKey> {
        self.dormant.lock().iter().filter(|key| chains.contains(&key.chain)).copied().collect()
    }

    /// A machine has been made for it.
    pub fn awake(&self, key: &ChunkKey) {
        self.dormant.lock().remove(key);
    }

    fn release(&self, slot: &Arc<ChunkSlot>) {
        let mut shard = self.shard(&slot.key).lock();
        let entry = shard.get_mut(&slot.key).expect("an entry exists while it is referred to");
        assert!(Arc::ptr_eq(&entry.slot, slot), "a chunk has one slot");
        assert!(entry.users > 0, "each reference is given back once");
        entry.users -= 1;
        if entry.users > 0 {
            return;
        }
        let state = slot.state.lock();
        if state.is_forgettable() {
            if state.machine.as_ref().is_some_and(|machine| machine.pending().is_some()) {
                self.dormant.lock().insert(slot.key);
            }
            shard.remove(&slot.key);
        }
    }
}

/// A slot that stays in the table while this exists.
#[derive(Debug)]
pub struct SlotRef {
    table: Arc<Table>,
    slot: Arc<ChunkSlot>,
}

impl Clone for SlotRef {
    fn clone(&self) -> SlotRef {
        self.table.slot(self.key)
    }
}

impl Deref for SlotRef {
    type Target = ChunkSlot;

    fn deref(&self) -> &ChunkSlot {
        &self.slot
    }
}

impl Drop for SlotRef {
    fn drop(&mut self) {
        self.table.release(&self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsettled_requests_are_looked_through_seldom_and_settled_ones_in_time() {
        let mut review = WriterReview::default();
        let mut looked_at = 0;
        for count in 0..=WRITERS_MAX {
            if review.is_due(count) {
                looked_at += count;
                review.done(count);
            }
        }
        assert!(looked_at <= 4 * WRITERS_MAX, "{looked_at} looked at for {WRITERS_MAX} updates");
        assert!(!review.is_due(WRITERS_MAX), "nothing has come since");
        assert!(review.is_due(2 * WRITERS_MAX - 1), "the machine is about to forget the oldest");
        review.done(0);
        assert!(review.is_due(WRITERS_REVIEWED + 1));
    }
}
