//! Which records of writers a chunk still needs: those of requests that may come once more.
//!
//! A record is forgotten when its client has said, with any later update that passed through this node, that its
//! request is settled: the client knows the outcome, and every attempt of it is void. Clients that fall silent say
//! nothing, so a record is forgotten, too, when it is older than any client retries one update. The age is known by
//! rounds of `sync`: the wall clock may be set, and the clock that counts begins with the machine.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::clock;
use crate::lock::{Mutex, RwLock};
use crate::types::{ClientId, RequestTag, WRITER_LIFE, WRITERS_MAX, WriterRecord};

/// Clients whose word is remembered: more than a cluster has at once. It is given with each update again.
const CLIENTS_MAX: usize = 1 << 16;
/// So many records are not worth a look at their age.
const FEW: usize = 8;
/// How often it is noted which round has begun.
const NOTE_INTERVAL: Duration = Duration::from_secs(10);
const _: () =
    assert!(NOTE_INTERVAL.as_secs() < WRITER_LIFE.as_secs(), "ages are known finer than they matter");

#[derive(Default)]
pub struct Writers {
    /// The lowest sequence of each client that may not be settled.
    settled: RwLock<HashMap<ClientId, AtomicU64>>,
    ages: Mutex<Ages>,
}

/// Rounds that had begun at moments of the last while, the oldest first.
#[derive(Default)]
struct Ages {
    notes: VecDeque<(u64, u64)>,
    /// Records of earlier rounds than this one are old.
    old_before: u64,
}

impl Ages {
    fn old_before(&mut self, now_ns: u64, begun: u64) -> u64 {
        let elapsed = |at_ns: u64| Duration::from_nanos(now_ns.saturating_sub(at_ns));
        if self.notes.back().is_none_or(|(at_ns, _)| elapsed(*at_ns) >= NOTE_INTERVAL) {
            self.notes.push_back((now_ns, begun));
        }
        while self.notes.front().is_some_and(|(at_ns, _)| elapsed(*at_ns) >= WRITER_LIFE) {
            let (_, round) = self.notes.pop_front().expect("looked at it");
            self.old_before = round;
        }
        self.old_before
    }
}

impl Writers {
    /// `client` says that each of its requests below `sequence` is settled.
    pub fn settle(&self, client: ClientId, sequence: u64) {
        if sequence == 0 {
            return;
        }
        if let Some(known) = self.settled.read().get(&client) {
            known.fetch_max(sequence, Ordering::Relaxed);
            return;
        }
        let mut settled = self.settled.write();
        if settled.len() >= CLIENTS_MAX {
            settled.clear();
        }
        settled.entry(client).or_default().fetch_max(sequence, Ordering::Relaxed);
    }

    /// What `client` has said last; 0 if nothing is known.
    pub fn settled_before(&self, client: ClientId) -> u64 {
        self.settled.read().get(&client).map_or(0, |known| known.load(Ordering::Relaxed))
    }

    pub fn is_settled(&self, tag: RequestTag) -> bool {
        tag.sequence < self.settled_before(tag.client)
    }

    /// Whether one more client can be remembered beside those that must not be forgotten.
    pub fn has_room(&self, known: &[WriterRecord], tag: RequestTag, begun: u64) -> bool {
        tag == RequestTag::default()
            || known.len() < WRITERS_MAX
            || known.iter().any(|record| record.tag.client == tag.client)
            || self.needed(known, begun).len() < WRITERS_MAX
    }

    /// `known` with the request `record` in it, one record a client, without those that are not needed. A chain has
    /// agreed to the update, so where there are too many the oldest goes.
    pub fn with(&self, known: &[WriterRecord], record: WriterRecord, begun: u64) -> Vec<WriterRecord> {
        let mut writers = self.needed(known, begun);
        if record.tag == RequestTag::default() {
            return writers;
        }
        match writers.iter_mut().find(|known| known.tag.client == record.tag.client) {
            Some(same) if same.tag.sequence <= record.tag.sequence => *same = record,
            Some(_) => {}
            None => writers.push(record),
        }
        while writers.len() > WRITERS_MAX {
            let places = 0..writers.len();
            writers.swap_remove(places.min_by_key(|&place| writers[place].version).expect("it is not empty"));
        }
        assert!(writers.len() <= WRITERS_MAX, "the requests remembered are bounded");
        writers
    }

    fn needed(&self, known: &[WriterRecord], begun: u64) -> Vec<WriterRecord> {
        let old_before = match known.len() {
            0..=FEW => 0,
            _ => self.ages.lock().old_before(clock::now_ns(), begun),
        };
        let is_needed = |record: &&WriterRecord| record.round >= old_before && !self.is_settled(record.tag);
        known.iter().filter(is_needed).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Version;

    fn record(client: u64, sequence: u64, round: u64) -> WriterRecord {
        let tag = RequestTag { client: ClientId(client), sequence };
        WriterRecord { tag, version: Version(client), round }
    }

    #[test]
    fn writers_keep_one_record_a_client_until_it_is_settled() {
        let writers = Writers::default();
        let mut known = Vec::new();
        for client in 1..=500 {
            known = writers.with(&known, record(client, 7, 3), 3);
        }
        known = writers.with(&known, record(20, 9, 3), 3);
        known = writers.with(&known, record(20, 8, 3), 3);
        assert_eq!(known.len(), 500);
        assert_eq!(known.iter().find(|known| known.tag.client.0 == 20), Some(&record(20, 9, 3)));
        for client in 1..=499 {
            writers.settle(ClientId(client), 8);
            writers.settle(ClientId(client), 2);
        }
        known = writers.with(&known, record(501, 1, 3), 3);
        let mut clients: Vec<u64> = known.iter().map(|record| record.tag.client.0).collect();
        clients.sort_unstable();
        assert_eq!(clients, [20, 500, 501], "sequence 9 of client 20 is not settled, 500 has said nothing");
        let nothing = WriterRecord { tag: RequestTag::default(), ..record(0, 0, 3) };
        assert_eq!(writers.with(&known, nothing, 3), known);
    }

    #[test]
    fn room_is_for_everybody_who_is_not_settled_up_to_the_limit() {
        let writers = Writers::default();
        let known: Vec<_> = (1..=WRITERS_MAX as u64).map(|client| record(client, 1, 3)).collect();
        assert!(!writers.has_room(&known, record(9999, 1, 3).tag, 3));
        assert!(writers.has_room(&known, record(5, 2, 3).tag, 3), "its record is there");
        let more = writers.with(&known, record(9999, 1, 3), 3);
        assert_eq!((more.len(), more.contains(&record(1, 1, 3))), (WRITERS_MAX, false));
        writers.settle(ClientId(7), 2);
        assert!(writers.has_room(&known, record(9999, 1, 3).tag, 3));
    }

    #[test]
    fn silent_writers_are_forgotten_by_age() {
        let second = 1_000_000_000;
        let mut ages = Ages::default();
        assert_eq!(ages.old_before(1000 * second, 5), 0, "nothing is known of the time before the start");
        assert_eq!(ages.old_before(1060 * second, 9), 0);
        assert_eq!(ages.old_before(1119 * second, 14), 0);
        assert_eq!(ages.old_before(1120 * second, 14), 5, "what is older than round 5 is older than that");
        assert_eq!(ages.old_before(1179 * second, 20), 5);
        assert_eq!(ages.old_before(1180 * second, 20), 9);
        assert!(ages.notes.len() < 8);
    }
}
