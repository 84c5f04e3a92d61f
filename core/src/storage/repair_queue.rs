//! The queue of the repair thread.

use std::collections::{HashSet, VecDeque};

use crate::lock::{Condvar, Mutex};
use crate::types::ChunkKey;

/// Damaged chunks that wait; further ones are found again by the next read or scrub.
const QUEUE_MAX: usize = 1024;

/// Damaged chunks that wait for their repair, each once.
#[derive(Debug, Default)]
pub struct Repairs {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<ChunkKey>,
    known: HashSet<ChunkKey>,
    stopped: bool,
}

impl Repairs {
    pub fn push(&self, key: ChunkKey) {
        let mut queue = self.queue.lock();
        if queue.order.len() < QUEUE_MAX && queue.known.insert(key) {
            queue.order.push_back(key);
            assert_eq!(queue.order.len(), queue.known.len(), "a chunk waits once");
            self.arrived.notify_one();
        }
    }

    pub fn take(&self) -> Option<ChunkKey> {
        let mut queue = self.queue.lock();
        loop {
            if queue.stopped {
                return None;
            }
            if let Some(key) = queue.order.pop_front() {
                let was_known = queue.known.remove(&key);
                assert!(was_known, "{key:?} waits once");
                return Some(key);
            }
            self.arrived.wait(&mut queue);
        }
    }

    pub fn stop(&self) {
        self.queue.lock().stopped = true;
        self.arrived.notify_all();
    }
}
