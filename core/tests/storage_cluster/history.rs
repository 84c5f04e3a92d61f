//! What clients saw, and whether one order of all operations explains it.
//!
//! Every write puts a value of its own over the whole chunk, and every answer names the version it speaks of. So
//! the versions are the order, and it remains to check that each version has one value, that no value has two
//! versions, and that an operation which began after another had ended does not come before it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use luciola_core::types::*;
use parking_lot::Mutex;

use super::{Cluster, Random, chunk, tag};

const LENGTH: usize = 24_000;

#[derive(Clone, Copy, Debug)]
struct Event {
    chunk: u32,
    value: u64,
    version: u64,
    is_write: bool,
    began: Instant,
    ended: Instant,
}

pub struct History {
    pub chunks: u32,
    events: Mutex<Vec<Event>>,
}

impl History {
    pub fn new(chunks: u32) -> History {
        History { chunks, events: Mutex::default() }
    }

    /// How many reads and writes there are by now.
    pub fn counts(&self) -> (usize, usize) {
        let events = self.events.lock();
        let writes = events.iter().filter(|event| event.is_write).count();
        (events.len() - writes, writes)
    }

    /// Panics if no order explains what was seen. The numbers of reads and writes.
    pub fn check(&self) -> (usize, usize) {
        let events = self.events.lock();
        let mut values: HashMap<(u32, u64), u64> = HashMap::new();
        let mut versions: HashMap<u64, u64> = HashMap::new();
        for event in events.iter() {
            let value = values.entry((event.chunk, event.version)).or_insert(event.value);
            assert_eq!(*value, event.value, "one version, two values: {event:?}");
            let version = versions.entry(event.value).or_insert(event.version);
            assert!(event.value == 0 || *version == event.version, "executed twice: {event:?}");
        }
        let mut ended: Vec<&Event> = events.iter().collect();
        ended.sort_unstable_by_key(|event| event.ended);
        let mut began: Vec<&Event> = events.iter().collect();
        began.sort_unstable_by_key(|event| event.began);
        let mut floors: HashMap<u32, &Event> = HashMap::new();
        let mut ended = ended.into_iter().peekable();
        for event in began {
            while let Some(earlier) = ended.next_if(|earlier| earlier.ended < event.began) {
                let floor = floors.entry(earlier.chunk).or_insert(earlier);
                if earlier.version > floor.version {
                    *floor = earlier;
                }
            }
            if let Some(floor) = floors.get(&event.chunk) {
                assert!(
                    event.version > floor.version || (!event.is_write && event.version == floor.version),
                    "{event:?} began after {floor:?} had ended"
                );
            }
        }
        drop(events);
        self.counts()
    }

    fn add(&self, event: Event) {
        self.events.lock().push(event);
    }
}

/// Reads and writes at random until `stop`.
pub fn run_client(cluster: &Cluster, history: &History, client: u64, seed: u64, stop: &AtomicBool) {
    let mut random = Random(seed ^ (client << 32));
    let mut sequence = 0;
    while !stop.load(Ordering::Relaxed) {
        let index = (random.next() % u64::from(history.chunks)) as u32;
        if random.next().is_multiple_of(3) {
            sequence += 1;
            write(cluster, history, index, client, sequence);
        } else {
            read(cluster, history, index, &mut random, stop);
        }
    }
}

fn write(cluster: &Cluster, history: &History, index: u32, client: u64, sequence: u64) {
    let value = (client << 32) | sequence;
    let bytes: Vec<u8> = value.to_le_bytes().into_iter().cycle().take(LENGTH).collect();
    let began = Instant::now();
    let result = cluster.write_persistently(chunk(index), 0, &bytes, tag(client, sequence));
    assert_eq!(result.status, Status::Ok, "client {client}, request {sequence}");
    let version = result.version.0;
    history.add(Event { chunk: index, value, version, is_write: true, began, ended: Instant::now() });
}

fn read(cluster: &Cluster, history: &History, index: u32, random: &mut Random, stop: &AtomicBool) {
    let began = Instant::now();
    let serving = cluster.serving();
    let mut node = serving[random.next() as usize % serving.len()];
    while !stop.load(Ordering::Relaxed) {
        let (version, value) = match cluster.read_version(node, chunk(index), Duration::from_secs(1)) {
            Ok((version, bytes)) => {
                assert_eq!(bytes.len(), LENGTH, "the length of every value");
                let value = u64::from_le_bytes(bytes[..8].try_into().unwrap());
                assert!(bytes.chunks(8).all(|word| word == value.to_le_bytes()), "a torn read");
                (version.0, value)
            }
            Err(Status::NotFound) => (0, 0),
            Err(status) => {
                assert!(status.is_retryable(), "a read failed with {status}");
                let serving = cluster.serving();
                node = match status {
                    Status::Dirty => *serving.last().unwrap(),
                    _ => serving[random.next() as usize % serving.len()],
                };
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
        };
        return history.add(Event {
            chunk: index,
            value,
            version,
            is_write: false,
            began,
            ended: Instant::now(),
        });
    }
}
