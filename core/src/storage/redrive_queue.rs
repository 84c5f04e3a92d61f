//! The queue of the redrive threads: pending versions whose caller has left, or that a restart found on disk.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::lock::{Condvar, Mutex};

use super::table::SlotRef;
use crate::craq::Effect;
use crate::types::ChunkKey;

/// Pause before an orphan is sent again.
const PAUSE: Duration = Duration::from_millis(100);
/// Most that one thread takes at once.
const TAKE_MAX: usize = 32;
const _: () = assert!(TAKE_MAX > 0);

/// One thing to do.
#[derive(Debug)]
pub enum RedriveJob {
    /// A pending version is on disk and has no machine.
    Wake(ChunkKey),
    Retry(SlotRef),
    Execute(SlotRef, Effect),
}

/// The queue of the redrive threads. It holds at most a few entries for each chunk that has a machine.
#[derive(Debug, Default)]
pub struct Redrive {
    queue: Mutex<Queue>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    ready: VecDeque<RedriveJob>,
    later: VecDeque<(Instant, SlotRef)>,
    stopped: bool,
}

impl Redrive {
    pub fn push(&self, work: RedriveJob) {
        let mut queue = self.queue.lock();
        if !queue.stopped {
            queue.ready.push_back(work);
            self.arrived.notify_one();
        }
    }

    pub fn push_later(&self, slot: SlotRef) {
        let mut queue = self.queue.lock();
        if !queue.stopped {
            let at = Instant::now() + PAUSE;
            assert!(queue.later.back().is_none_or(|(last, _)| *last <= at), "retries wait in order");
            queue.later.push_back((at, slot));
            self.arrived.notify_one();
        }
    }

    /// Some work, waiting for it; `None` when it is time to end.
    pub fn take(&self) -> Option<Vec<RedriveJob>> {
        let mut queue = self.queue.lock();
        loop {
            if queue.stopped {
                return None;
            }
            let now = Instant::now();
            while queue.later.front().is_some_and(|(at, _)| *at <= now) {
                let (_, slot) = queue.later.pop_front().expect("looked at it");
                queue.ready.push_back(RedriveJob::Retry(slot));
            }
            if !queue.ready.is_empty() {
                let count = queue.ready.len().min(TAKE_MAX);
                return Some(queue.ready.drain(..count).collect());
            }
            match queue.later.front().map(|(at, _)| *at) {
                Some(at) => drop(self.arrived.wait_until(&mut queue, at)),
                None => self.arrived.wait(&mut queue),
            }
        }
    }

    pub fn stop(&self) {
        let mut queue = self.queue.lock();
        let rest = std::mem::replace(&mut *queue, Queue { stopped: true, ..Queue::default() });
        self.arrived.notify_all();
        drop(queue);
        // Outside of the lock: giving up a slot locks its shard.
        drop(rest);
    }
}
