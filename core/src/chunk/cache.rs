//! Records of recently used chunks, in front of the index, and the lock of each chunk.
//!
//! A slot in use is never evicted: its lock and its record are the only ones of that chunk.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::lock::Mutex;

use super::state::Record;
use crate::types::{ChunkKey, Status};

const SHARDS: usize = 64;
const _: () = assert!(SHARDS.is_power_of_two(), "hashes spread evenly");
/// Memory of an entry besides its record: slot, map entry, queue entry.
const ENTRY_BYTES: usize = 192;

/// One chunk in memory.
#[derive(Default)]
pub struct CacheSlot {
    /// Held while the chunk changes, also while it writes data and index. Readers never take it.
    pub update: Mutex<()>,
    /// `None` until loaded. Held only to load, copy or swap the pointer.
    record: Mutex<Option<Arc<Record>>>,
    recent: AtomicBool,
}

pub struct Cache {
    shards: Vec<Mutex<Shard>>,
    shard_bytes_max: usize,
    hasher: RandomState,
    bytes: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    slots: HashMap<ChunkKey, CacheEntry>,
    /// Every key of `slots`, in the order in which they are looked at for eviction.
    queue: VecDeque<ChunkKey>,
    bytes: usize,
}

struct CacheEntry {
    slot: Arc<CacheSlot>,
    /// What the entry is counted with in `Shard::bytes`.
    bytes: usize,
}

impl Cache {
    pub fn new(bytes_max: usize) -> Cache {
        Cache {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            shard_bytes_max: bytes_max / SHARDS,
            hasher: RandomState::new(),
            bytes: AtomicUsize::new(0),
        }
    }

    /// The slot of `key`. It stays the only one of that chunk as long as it is referenced.
    pub fn slot(&self, key: ChunkKey) -> Arc<CacheSlot> {
        let mut shard = self.shard(key);
        if let Some(entry) = shard.slots.get(&key) {
            entry.slot.recent.store(true, Ordering::Relaxed);
            return entry.slot.clone();
        }
        let slot = Arc::new(CacheSlot::default());
        shard.slots.insert(key, CacheEntry { slot: slot.clone(), bytes: ENTRY_BYTES });
        shard.queue.push_back(key);
        assert_eq!(shard.queue.len(), shard.slots.len(), "every slot is queued once");
        self.resize(&mut shard, 0, ENTRY_BYTES);
        self.evict(&mut shard);
        slot
    }

    /// The record of a slot, loaded by `load` the first time.
    pub fn record(
        &self,
        key: ChunkKey,
        slot: &CacheSlot,
        load: impl FnOnce() -> Result<Record, Status>,
    ) -> Result<Arc<Record>, Status> {
        let mut record = slot.record.lock();
        if let Some(record) = &*record {
            return Ok(record.clone());
        }
        let loaded = Arc::new(load()?);
        *record = Some(loaded.clone());
        drop(record);
        self.recount(key, ENTRY_BYTES + loaded.memory());
        Ok(loaded)
    }

    /// Swap the record of a slot that the caller holds the update lock of; return the one before, if loaded.
    pub fn replace(&self, key: ChunkKey, slot: &CacheSlot, record: Arc<Record>) -> Option<Arc<Record>> {
        let now = ENTRY_BYTES + record.memory();
        let before = slot.record.lock().replace(record);
        self.recount(key, now);
        before
    }

    /// Drop the record of a slot that the caller holds the update lock of: the next use loads it.
    pub fn unload(&self, key: ChunkKey, slot: &CacheSlot) {
        *slot.record.lock() = None;
        self.recount(key, ENTRY_BYTES);
    }

    /// Bytes of memory held, roughly.
    pub fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    fn shard(&self, key: ChunkKey) -> crate::lock::MutexGuard<'_, Shard> {
        self.shards[self.hasher.hash_one(key) as usize % SHARDS].lock()
    }

    fn recount(&self, key: ChunkKey, now: usize) {
        let mut shard = self.shard(key);
        if let Some(entry) = shard.slots.get_mut(&key) {
            let counted = std::mem::replace(&mut entry.bytes, now);
            self.resize(&mut shard, counted, now);
        }
    }

    fn resize(&self, shard: &mut Shard, before: usize, after: usize) {
        assert!(shard.bytes + after >= before, "memory is counted once");
        shard.bytes = shard.bytes + after - before;
        self.bytes.fetch_add(after, Ordering::Relaxed);
        self.bytes.fetch_sub(before, Ordering::Relaxed);
    }

    /// Second chance: what was used since it was last looked at goes to the back of the queue once more.
    fn evict(&self, shard: &mut Shard) {
        // A few entries a call keep up with one insertion a call; entries that are all in use end the search.
        for _ in 0..8 {
            if shard.bytes <= self.shard_bytes_max {
                return;
            }
            let Some(key) = shard.queue.pop_front() else { return };
            let entry = &shard.slots[&key];
            // No reference to the slot is taken without the shard's lock, so one reference means the map's own.
            let in_use = Arc::strong_count(&entry.slot) > 1;
            if in_use || entry.slot.recent.swap(false, Ordering::Relaxed) {
                shard.queue.push_back(key);
                continue;
            }
            let entry = shard.slots.remove(&key).expect("queued");
            assert_eq!(shard.queue.len(), shard.slots.len(), "every slot is queued once");
            self.resize(shard, entry.bytes, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ChunkId, ContentId};

    fn key(index: u32) -> ChunkKey {
        ChunkKey { chunk: ChunkId { content: ContentId(1), index }, ..ChunkKey::default() }
    }

    #[test]
    fn memory_stays_bounded_and_slots_in_use_stay() {
        let cache = Cache::new(1 << 20);
        let held = cache.slot(key(0));
        for index in 1..100_000 {
            let slot = cache.slot(key(index));
            cache.record(key(index), &slot, || Ok(Record::default())).unwrap();
        }
        assert!(cache.bytes() <= (1 << 20) + SHARDS * ENTRY_BYTES * 2, "{} bytes", cache.bytes());
        assert!(Arc::ptr_eq(&held, &cache.slot(key(0))));
    }

    #[test]
    fn a_failed_load_is_tried_again() {
        let cache = Cache::new(1 << 20);
        let slot = cache.slot(key(1));
        assert_eq!(cache.record(key(1), &slot, || Err(Status::Io)), Err(Status::Io));
        assert!(cache.record(key(1), &slot, || Ok(Record::default())).is_ok());
        assert!(cache.record(key(1), &slot, || panic!("it is loaded")).is_ok());
    }
}
