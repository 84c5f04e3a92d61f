//! A node alone with a disk that fails.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::redrive_queue::RedriveJob;
use super::*;
use crate::buffer::Placement;
use crate::craq::{Effect, Outcome, Ticket};
use crate::net::{Secret, Sender, Service};
use crate::types::*;
use crate::wire::pb::{self, PublicState, claims::Role};

const CHAIN: ChainId = ChainId(7);

struct Alone {
    server: StorageServer,
    directory: tempfile::TempDir,
}

impl Alone {
    fn start() -> Alone {
        Alone::start_with(|_| {})
    }

    fn start_with(change: impl FnOnce(&mut NodeOptions)) -> Alone {
        Alone::open(tempfile::tempdir().unwrap(), change)
    }

    fn open(directory: tempfile::TempDir, change: impl FnOnce(&mut NodeOptions)) -> Alone {
        let secret = Secret::new([1; 32]);
        let mut options = NodeOptions::new(NodeId(1), directory.path().join("chunks"), secret);
        options.engine.reserve_bytes = 0;
        options.engine.sync_interval = None;
        change(&mut options);
        let server = StorageServer::start(options).unwrap();
        let alone = Alone { server, directory };
        alone.set_chain(1, &[1]);
        alone.server.set_lease(u64::MAX, 1);
        alone
    }

    /// The chain has replicas on these nodes, of which all but this one are out of reach.
    fn set_chain(&self, version: u64, nodes: &[u32]) {
        let target = |node: &u32| pb::Target {
            id: u64::from(70 + node),
            node: *node,
            state: PublicState::Serving as i32,
            ..pb::Target::default()
        };
        let targets = nodes.iter().map(target).collect();
        let chain = pb::Chain { id: 7, version, targets, ..pb::Chain::default() };
        let routing = pb::Routing { version, chains: vec![chain], ..pb::Routing::default() };
        self.server.set_routing(routing).unwrap();
    }

    fn write(&self, sequence: u64) -> UpdateResult {
        self.write_to(0, sequence)
    }

    fn write_to(&self, index: u32, sequence: u64) -> UpdateResult {
        self.write_as(1, index, sequence)
    }

    fn write_under(&self, chain_version: u64, sequence: u64) -> UpdateResult {
        self.write_as(chain_version, 0, sequence)
    }

    fn write_as(&self, chain_version: u64, index: u32, sequence: u64) -> UpdateResult {
        let claims = pb::Claims { role: Role::Client as i32, ..pb::Claims::default() };
        self.write_with(&claims, chain_version, index, sequence)
    }

    fn write_with(&self, claims: &pb::Claims, chain_version: u64, index: u32, sequence: u64) -> UpdateResult {
        let op = UpdateOp {
            chain: CHAIN,
            chain_version: ChainVersion(chain_version),
            chunk: ChunkId { content: ContentId(1), index },
            op: Op::Write { offset: 0, length: 5000 },
            tag: RequestTag { client: ClientId(1), sequence },
            settled: 0,
            version: Version(0),
            decided: ChainVersion(0),
            fresh: false,
            payload_crc: None,
        };
        let payload = [Placement::from_vec(vec![sequence as u8; 5000])];
        let mut out = Vec::new();
        self.server.node.update(Sender::Client(claims), &[op], &payload, soon(), &mut out);
        out[0]
    }

    fn read(&self) -> Result<Vec<u8>, Status> {
        let op = ReadOp {
            chain: CHAIN,
            chain_version: ChainVersion(1),
            chunk: ChunkId { content: ContentId(1), index: 0 },
            offset: 0,
            length: 5000,
        };
        let into = Placement::private(5000).unwrap();
        let mut out = Vec::new();
        self.server.node.read(&[op], std::slice::from_ref(&into), soon(), &mut out);
        match out[0].status {
            Status::Ok => Ok(into.to_vec()),
            status => Err(status),
        }
    }

    fn sync(&self) -> Status {
        let claims = pb::Claims::default();
        let mut out = Vec::new();
        self.server.node.sync(Sender::Client(&claims), &[(CHAIN, ChainVersion(1))], soon(), &mut out);
        out[0]
    }

    fn counters(&self) -> HashMap<&'static str, u64> {
        self.server.counters().into_iter().collect()
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

#[test]
fn reads_of_one_frame_are_answered_in_order_wherever_their_bytes_are() {
    let alone = Alone::start();
    for index in 0..6 {
        assert_eq!(alone.write_to(index, 10 + u64::from(index)).status, Status::Ok);
    }
    alone.server.node.engine.drop_cached();
    // Of these some are in memory again.
    alone.read().unwrap();
    let op = |index: u32, offset: u32| ReadOp {
        chain: CHAIN,
        chain_version: ChainVersion(if index == 3 { 2 } else { 1 }),
        chunk: ChunkId { content: ContentId(1), index },
        offset,
        length: 3000,
    };
    let ops = [op(5, 0), op(0, 0), op(7, 0), op(3, 0), op(4, 3000), op(0, 100), op(1, 0)];
    let into: Vec<_> = ops.iter().map(|_| Placement::private(3000).unwrap()).collect();
    let mut out = Vec::new();
    alone.server.node.read(&ops, &into, soon(), &mut out);
    let statuses: Vec<_> = out.iter().map(|result| (result.status, result.length)).collect();
    let wanted = [
        (Status::Ok, 3000),
        (Status::Ok, 3000),
        (Status::NotFound, 0),
        (Status::WrongChainVersion, 0),
        (Status::Ok, 2000),
        (Status::Ok, 3000),
        (Status::Ok, 3000),
    ];
    assert_eq!(statuses, wanted);
    for place in [0, 1, 4, 5, 6] {
        let (bytes, index) = (into[place].to_vec(), ops[place].chunk.index);
        let length = statuses[place].1 as usize;
        assert!(bytes[..length].iter().all(|&byte| u32::from(byte) == 10 + index), "read {place}");
    }
    assert_eq!(alone.counters()["reads"], 8);
}

#[test]
fn a_disk_that_cannot_be_written_takes_its_replicas_out() {
    let alone = Alone::start();
    assert_eq!(alone.write(1).status, Status::Ok);
    assert!(!alone.server.targets()[0].bad);
    alone.server.node.engine.fail_next("write", 1, Errno::IO);
    // Not an error that reaches a program: another replica takes over when mgmtd knows of it.
    assert_eq!(alone.write(2).status, Status::NotServing);
    assert!(alone.server.targets()[0].bad);
    assert_eq!(alone.read(), Err(Status::NotServing));
    assert_eq!(alone.counters()["machines"], 0);
}

#[test]
fn a_disk_that_cannot_be_synced_takes_its_replicas_out() {
    let alone = Alone::start();
    assert_eq!(alone.write(1).status, Status::Ok);
    alone.server.node.engine.fail_next("sync", 1, Errno::IO);
    // The others continue without this one, so the caller asks again.
    assert_eq!(alone.sync(), Status::NotServing);
    assert!(alone.server.targets()[0].bad);
}

/// What is acknowledged may not have reached the disk and never will: from then on others must serve it (S6).
#[test]
fn a_failed_flush_in_the_background_takes_the_replicas_out_at_once() {
    // The flush is to come after the write, which may take longer than an interval.
    let written = [50, 500, 5000, 50_000].into_iter().find_map(|interval_ms| {
        let alone = Alone::start_with(|options| {
            options.engine.sync_interval = Some(Duration::from_millis(interval_ms));
        });
        alone.server.node.engine.fail_next("sync", 1, Errno::IO);
        (alone.write(1).status == Status::Ok).then_some(alone)
    });
    let alone = written.expect("a write that no flush overtakes");
    let deadline = soon();
    while alone.server.node.engine.failure().is_none() {
        assert!(Instant::now() < deadline, "the flusher runs");
        std::thread::yield_now();
    }
    // No write or sync since.
    assert_eq!(alone.read(), Err(Status::NotServing));
    assert!(alone.server.targets()[0].bad);
    assert_eq!(alone.write(2).status, Status::NotServing);
    assert_eq!(alone.counters()["machines"], 0);
}

#[test]
fn mistake_of_one_redrive_job_leaves_the_threads_to_the_others() {
    let alone = Alone::start();
    let node = &alone.server.node;
    let key = ChunkKey { chain: CHAIN, chunk: ChunkId { content: ContentId(1), index: 0 } };
    for done in 0..=server::REDRIVE_THREADS as u64 {
        let outcome = Outcome::Done { version: Version(1) };
        let unexpected = Effect::Reply { ticket: Ticket(1), outcome };
        node.redrive.push(RedriveJob::Execute(node.table.slot(key), unexpected));
        node.redrive.push(RedriveJob::Wake(key));
        let deadline = soon();
        while alone.counters()["redriven"] == done {
            assert!(Instant::now() < deadline, "a thread is left");
            std::thread::yield_now();
        }
    }
    assert_eq!(alone.write(1).status, Status::Ok);
}

#[test]
fn an_index_that_cannot_be_written_takes_the_replicas_out() {
    for errno in [Errno::IO, Errno::NOSPC] {
        let alone = Alone::start();
        assert_eq!(alone.write(1).status, Status::Ok);
        alone.server.node.engine.fail_next("index", 1, errno);
        // Whether the index took it is not known; no program sees that, not as ENOSPC either.
        assert_eq!(alone.write(2).status, Status::NotServing, "{errno:?}");
        assert!(alone.server.targets()[0].bad);
        assert_eq!(alone.read(), Err(Status::NotServing));
    }
}

#[test]
fn an_update_that_cannot_be_made_durable_is_asked_for_elsewhere() {
    let alone = Alone::start_with(|options| options.sync_updates = true);
    assert_eq!(alone.write(1).status, Status::Ok);
    alone.server.node.engine.fail_next("sync", 1, Errno::IO);
    assert_eq!(alone.write(2).status, Status::NotServing);
    assert!(alone.server.targets()[0].bad);
}

/// A process that ends after its disk has failed, and one that begins on it.
#[test]
fn a_node_with_a_failed_disk_ends_and_comes_back() {
    let alone = Alone::start();
    assert_eq!(alone.write(1).status, Status::Ok);
    alone.server.node.engine.fail_next("sync", 1, Errno::IO);
    alone.sync();
    assert_eq!(alone.read(), Err(Status::NotServing));
    assert!(alone.server.stop().is_err(), "nothing is known to be durable");
    let Alone { server, directory } = alone;
    drop(server);
    let alone = Alone::open(directory, |_| {});
    assert!(!alone.server.targets()[0].bad);
    assert_eq!(alone.read().unwrap(), vec![1; 5000]);
}

#[test]
fn a_page_that_cannot_be_read_is_damage_and_not_a_bad_disk() {
    let alone = Alone::start();
    assert_eq!(alone.write(1).status, Status::Ok);
    alone.server.node.engine.fail_next("read", 1, Errno::IO);
    assert_eq!(alone.read(), Err(Status::Checksum));
    assert!(!alone.server.targets()[0].bad);
    assert_eq!(alone.read().unwrap(), vec![1; 5000]);
}

#[test]
fn a_full_disk_refuses_the_write_and_the_server_continues() {
    let alone = Alone::start();
    assert_eq!(alone.write(1).status, Status::Ok);
    alone.server.node.engine.fail_next("write", 1, Errno::NOSPC);
    assert_eq!(alone.write(2).status, Status::NoSpace);
    assert_eq!(alone.read().unwrap(), vec![1; 5000]);
    assert_eq!(alone.write(3).status, Status::Ok);
    assert!(!alone.server.targets()[0].bad);
}

/// A caller's thread that sleeps until its deadline has passed, and only then begins what it was ordered to do (S5).
#[test]
fn an_update_is_not_begun_after_its_deadline() {
    let alone = Alone::start();
    assert_eq!(alone.write(1).status, Status::Ok);
    let key = ChunkKey { chain: CHAIN, chunk: ChunkId { content: ContentId(1), index: 0 } };
    let mut call = call::Call::new(&alone.server.node, Instant::now());
    let tag = RequestTag { client: ClientId(2), sequence: 1 };
    call.begin(key, crate::chunk::Origin::Client, None, |ticket| crate::craq::Event::Client {
        ticket,
        chain_version: ChainVersion(1),
        op: Op::Remove,
        tag,
        leased: true,
    });
    assert_eq!(call.finish(), [call::Answer::Refused(Status::Timeout)]);
    assert_eq!(alone.read().unwrap(), vec![1; 5000]);
    assert_eq!(alone.write(2).status, Status::Ok);
    let content = ContentId(1);
    let removed = alone
        .server
        .remove_chunks((CHAIN, ChainVersion(1)), &[(content, 0)], 10, tag, Instant::now())
        .unwrap_err();
    assert_eq!(removed.kind(), crate::error::Kind::Timeout);
    assert_eq!(alone.read().unwrap(), vec![2; 5000]);
}

#[test]
fn requests_of_one_chunk_are_executed_one_after_the_other() {
    let alone = Alone::start();
    let results: Vec<Status> = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=16u64)
            .map(|sequence| {
                scope.spawn({
                    let alone = &alone;
                    move || alone.write(sequence).status
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // One client's requests of one chunk: each is executed, or was overtaken by a newer one.
    assert!(results.iter().all(|status| matches!(status, Status::Ok | Status::Stale)), "{results:?}");
    assert!(results.contains(&Status::Ok));
    assert_eq!(alone.counters()["machines"], 0);
}

/// The floor is one number of the disk, so a chunk that lives may have a lower version (R7).
#[test]
fn a_living_chunk_is_written_on_after_a_higher_tombstone_of_another_was_forgotten() {
    let alone = Alone::start();
    assert_eq!(alone.write(1).version, Version(1));
    for sequence in 1..=5 {
        assert_eq!(alone.write_to(1, sequence).status, Status::Ok);
    }
    let (version, content) = (ChainVersion(1), ContentId(1));
    let tag = RequestTag { client: ClientId(2), sequence: 1 };
    let removed = alone.server.remove_chunks((CHAIN, version), &[(content, 1)], 10, tag, soon());
    assert_eq!(removed.unwrap(), (1, None));
    alone.server.sync().unwrap();
    assert_eq!(alone.server.purge_tombstones(CHAIN, None, u64::MAX, 10).unwrap(), (1, None));
    assert_eq!(alone.server.node.engine.floor(), Version(6));
    assert_eq!(alone.write(2).version, Version(2));
    assert_eq!(alone.read().unwrap(), vec![2; 5000]);
    assert_eq!(alone.write_to(1, 9).version, Version(7), "a new chunk begins above it");
    assert_eq!(alone.counters()["machines"], 0);
}

#[test]
fn an_update_that_waits_for_a_successor_says_so() {
    let alone = Alone::start();
    assert_eq!(alone.write(1).status, Status::Ok);
    assert!(alone.server.slow_ops(Duration::ZERO).is_empty());
    alone.set_chain(2, &[1, 2]);
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| alone.write_under(2, 2));
        let deadline = soon();
        let line = loop {
            assert!(Instant::now() < deadline, "it says so some time");
            match &alone.server.slow_ops(Duration::ZERO)[..] {
                [line] if line.contains("refused last") => break line.clone(),
                _ => std::thread::yield_now(),
            }
        };
        assert!(line.starts_with("chunk 0 of content 1 on chain 7, for "), "{line}");
        assert!(line.contains(": version 2.2 (request 2 of client 1) "), "{line}");
        assert!(line.ends_with("; 1 requests wait, refused last: the connection was lost"), "{line}");
        assert!(alone.server.slow_ops(Duration::from_secs(600)).is_empty());
        alone.set_chain(3, &[1]);
        assert_eq!(writer.join().unwrap().status, Status::Ok);
    });
    assert!(alone.server.slow_ops(Duration::ZERO).is_empty());
}

#[test]
fn a_token_that_is_read_only_writes_nothing() {
    let alone = Alone::start();
    assert_eq!(alone.write(1).status, Status::Ok);
    for role in [Role::Client, Role::Trusted] {
        let claims = pb::Claims { role: role as i32, read_only: true, version: 2, ..pb::Claims::default() };
        assert_eq!(alone.write_with(&claims, 1, 0, 2).status, Status::Denied);
    }
    assert_eq!(alone.read(), Ok(vec![1; 5000]));
    assert_eq!(alone.write(2).status, Status::Ok);
}
