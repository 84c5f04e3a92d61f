//! At most one update of a chunk in flight per client: what lets a chunk remember only the last request of each.

use std::collections::HashSet;
use std::time::Instant;

use crate::lock::{Condvar, Mutex};

use crate::types::ChunkId;

/// Locks of chunks that are being updated; as many entries as there are updates in flight.
#[derive(Debug, Default)]
pub(super) struct ChunkLocks {
    held: Mutex<HashSet<ChunkId>>,
    released: Condvar,
}

impl ChunkLocks {
    /// Locks all of `chunks` at once, which must differ; `None` if some are still held at `deadline`.
    /// All or none are taken, so two callers never wait for each other.
    pub(super) fn lock(&self, chunks: Vec<ChunkId>, deadline: Instant) -> Option<ChunkGuard<'_>> {
        let mut held = self.held.lock();
        while chunks.iter().any(|chunk| held.contains(chunk)) {
            if self.released.wait_until(&mut held, deadline).timed_out() {
                return None;
            }
        }
        let before = held.len();
        held.extend(chunks.iter().copied());
        assert_eq!(held.len(), before + chunks.len(), "the chunks differ");
        drop(held);
        Some(ChunkGuard { locks: self, chunks })
    }
}

pub(super) struct ChunkGuard<'a> {
    locks: &'a ChunkLocks,
    chunks: Vec<ChunkId>,
}

impl Drop for ChunkGuard<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held.lock();
        let before = held.len();
        self.chunks.iter().for_each(|chunk| {
            held.remove(chunk);
        });
        assert_eq!(held.len() + self.chunks.len(), before, "a chunk is locked until its guard is dropped");
        drop(held);
        self.locks.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::types::ContentId;

    fn chunk(index: u32) -> ChunkId {
        ChunkId { content: ContentId(1), index }
    }

    #[test]
    fn a_held_chunk_waits_and_others_do_not() {
        let locks = ChunkLocks::default();
        let far = Instant::now() + Duration::from_secs(60);
        let first = locks.lock(vec![chunk(1), chunk(2)], far).unwrap();
        let other = locks.lock(vec![chunk(3)], far).unwrap();
        assert!(locks.lock(vec![chunk(2), chunk(4)], Instant::now() + Duration::from_millis(5)).is_none());
        // A failed attempt holds nothing.
        drop(locks.lock(vec![chunk(4)], far).unwrap());
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| locks.lock(vec![chunk(2), chunk(3)], far).is_some());
            drop(first);
            drop(other);
            assert!(waiter.join().unwrap());
        });
        assert!(locks.held.lock().is_empty());
    }
}
