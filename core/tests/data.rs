//! The data client against three in-memory storage nodes, with everything that they may answer.

mod fake;
mod over;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fake::{Fault, Running, at_most_a_minute, credential, soon};
use luciola_core::buffer::{BufferPool, Placement};
use luciola_core::client::data::{DataClient, DataOptions, Read, Write};
use luciola_core::cluster::routing::{Routing, RoutingTable, own_boot_id};
use luciola_core::cluster::{Endpoints, Transport};
use luciola_core::error::Kind;
use luciola_core::net::{Pool, Secret, Token};
use luciola_core::rdma::RdmaOptions;
use luciola_core::types::*;
use luciola_core::wire::pb::{self, Layout, claims::Role};
use proptest::prelude::*;

const CHUNK: u32 = 4096;
const CONTENT: ContentId = ContentId(77);
static NEXT_CLIENT: AtomicU64 = AtomicU64::new(1000);

fn layout(stripe: u32) -> Layout {
    Layout {
        table: 1,
        table_version: 1,
        chunk_bytes: CHUNK,
        stripe,
        permutation_version: 1,
        seed: 5,
        ..Layout::default()
    }
}

/// Three nodes, numbered from 1; chain `c` is on the nodes that `chains[c - 1]` lists.
struct World {
    nodes: Vec<Running>,
    table: Arc<RoutingTable>,
}

fn member(node: u32, state: TargetState) -> ChainMember {
    ChainMember { target: TargetId(node.into()), node: NodeId(node), state }
}

fn serving(nodes: &[u32]) -> Vec<ChainMember> {
    nodes.iter().map(|node| member(*node, TargetState::Serving)).collect()
}

/// The transport that a test asks for, or RDMA in its stead.
fn endpoints(transport: Transport) -> Endpoints {
    match over::fabric() {
        Some(_) => Endpoints::new(Transport::Rdma, RdmaOptions::default()).unwrap(),
        None => transport.into(),
    }
}

fn running() -> Running {
    Running::with(|options| options.fabric = over::fabric())
}

impl World {
    fn new(chains: Vec<Vec<ChainMember>>) -> World {
        let nodes: Vec<_> = (0..3).map(|_| running()).collect();
        let mut routing = Routing { version: 1, ..Routing::default() };
        for (number, node) in nodes.iter().enumerate() {
            let id = number as u32 + 1;
            let described = pb::Node {
                id,
                data_address: node.server.tcp_address().unwrap().to_string(),
                data_socket: node.socket().to_str().unwrap().to_owned(),
                boot_id: own_boot_id().to_owned(),
                ..pb::Node::default()
            };
            routing.nodes.insert(NodeId(id), described);
        }
        let ids = (1..=chains.len() as u32).collect();
        for (number, members) in chains.into_iter().enumerate() {
            let id = ChainId(number as u32 + 1);
            routing.chains.insert(id, Chain { id, version: ChainVersion(1), members });
        }
        let table = pb::ChainTable { id: 1, version: 1, chains: ids, ..pb::ChainTable::default() };
        routing.tables.insert((1, 1), table);
        World { nodes, table: RoutingTable::fixed(routing) }
    }

    fn client(&self, transport: Transport) -> Arc<DataClient> {
        self.client_with(transport, credential(Role::Client))
    }

    fn client_with(&self, transport: Transport, token: Token) -> Arc<DataClient> {
        let options = DataOptions {
            client: ClientId(NEXT_CLIENT.fetch_add(1, Ordering::SeqCst)),
            retry_first: Duration::from_millis(2),
            retry_max: Duration::from_millis(50),
            connections_per_node: 4,
            endpoints: endpoints(transport),
        };
        DataClient::new(self.table.clone(), token.into(), options)
    }

    /// Node `number`, from 1.
    fn fake(&self, number: usize) -> &fake::FakeStore {
        &self.nodes[number - 1].fake
    }

    /// The same bytes on all nodes.
    fn put(&self, chain: u32, index: u32, bytes: &[u8]) {
        self.nodes.iter().for_each(|node| node.fake.put(chain, CONTENT.0, index, bytes));
    }

    /// Publishes a chain's next version.
    fn change(&self, chain: u32, members: Vec<ChainMember>) {
        let mut next = (*self.table.current()).clone();
        next.version += 1;
        let chain = next.chains.get_mut(&ChainId(chain)).unwrap();
        chain.version.0 += 1;
        chain.members = members;
        for node in &self.nodes {
            node.fake.versions.lock().insert(chain.id, chain.version);
        }
        self.table.replace(next);
    }

    fn batches(&self) -> u64 {
        self.nodes.iter().map(|node| node.fake.batches.load(Ordering::SeqCst)).sum()
    }
}

fn read(client: &DataClient, offset: u64, length: usize) -> Result<Vec<u8>, Kind> {
    read_until(client, offset, length, soon())
}

fn read_until(client: &DataClient, offset: u64, length: usize, deadline: Instant) -> Result<Vec<u8>, Kind> {
    let into = Placement::private(length).unwrap();
    into.copy_from(&vec![0xee; length]);
    let held = client.read(&layout(1), CONTENT, offset, &into, deadline).map_err(|error| error.kind())?;
    assert!(held <= length);
    Ok(into.to_vec())
}

fn write(client: &DataClient, offset: u64, bytes: &[u8]) -> Result<(), Kind> {
    let payload = Placement::from_vec(bytes.to_vec());
    client.write(&layout(1), CONTENT, offset, &payload, soon()).map_err(|error| error.kind())
}

#[derive(Clone, Debug)]
enum Action {
    Write { offset: u64, length: usize, shared: bool },
    Read { offset: u64, length: usize, shared: bool },
}

fn action() -> impl Strategy<Value = Action> {
    (any::<bool>(), 0..60_000u64, 0..50_000usize, any::<bool>()).prop_map(
        |(writes, offset, length, shared)| {
            if writes {
                Action::Write { offset, length, shared }
            } else {
                Action::Read { offset, length, shared }
            }
        },
    )
}

/// Every transport and kind of memory against a plain vector.
#[test]
fn a_file_reads_back_like_a_vector() {
    let world = World::new(vec![serving(&[1]), serving(&[2]), serving(&[3]), serving(&[2])]);
    let clients: Vec<_> = [Transport::Shm, Transport::Tcp, Transport::Auto]
        .into_iter()
        .map(|transport| {
            let options = DataOptions {
                client: ClientId(100 + transport as u64),
                retry_first: Duration::from_millis(2),
                retry_max: Duration::from_millis(50),
                connections_per_node: 2,
                endpoints: endpoints(transport),
            };
            DataClient::new(world.table.clone(), credential(Role::Client).into(), options)
        })
        .collect();
    let pool = BufferPool::new(64 << 10, 2).unwrap();
    let content = std::cell::Cell::new(1000);
    let config = ProptestConfig { cases: 40, ..ProptestConfig::default() };
    proptest!(config, |(actions in prop::collection::vec(action(), 1..20), stripe in 1..6u32, seed in any::<u64>())| {
        content.set(content.get() + 1);
        let content = ContentId(content.get());
        let layout = Layout { seed, ..layout(stripe) };
        let mut model: Vec<u8> = Vec::new();
        let place = |shared: bool, length: usize| {
            if shared { pool.try_take().unwrap().slice(0..length) } else { Placement::private(length).unwrap() }
        };
        for (step, action) in actions.into_iter().enumerate() {
            let client = &clients[step % clients.len()];
            match action {
                Action::Write { offset, length, shared } => {
                    let bytes: Vec<u8> = (0..length).map(|at| (at * 7 + step * 13 + 1) as u8).collect();
                    let payload = place(shared, length);
                    payload.copy_from(&bytes);
                    client.write(&layout, content, offset, &payload, soon()).unwrap();
                    let end = offset as usize + length;
                    if length > 0 && model.len() < end {
                        model.resize(end, 0);
                    }
                    model[offset as usize..end.max(offset as usize)].copy_from_slice(&bytes);
                }
                Action::Read { offset, length, shared } => {
                    let into = place(shared, length);
                    into.copy_from(&vec![0xee; length]);
                    let held = client.read(&layout, content, offset, &into, soon()).unwrap();
                    let mut expected: Vec<u8> = model.iter().skip(offset as usize).take(length).copied().collect();
                    let in_file = expected.len();
                    expected.resize(length, 0);
                    prop_assert_eq!(into.to_vec(), expected);
                    prop_assert!(held <= in_file);
                }
            }
        }
    });
}

#[test]
fn holes_and_short_chunks_read_as_zeros_and_the_last_byte_held_is_reported() {
    let world = World::new(vec![serving(&[1])]);
    let client = world.client(Transport::Shm);
    world.put(1, 0, b"abc");
    world.put(1, 2, b"xyz");
    let chunk = CHUNK as usize;
    let mut expected = vec![0; 4 * chunk];
    expected[..3].copy_from_slice(b"abc");
    expected[2 * chunk..2 * chunk + 3].copy_from_slice(b"xyz");
    assert_eq!(read(&client, 0, 4 * chunk).unwrap(), expected);
    let into = Placement::private(4 * chunk).unwrap();
    assert_eq!(client.read(&layout(1), CONTENT, 0, &into, soon()).unwrap(), 2 * chunk + 3);
    assert_eq!(client.read(&layout(1), ContentId(5), 0, &into, soon()).unwrap(), 0);
    assert_eq!(into.to_vec(), vec![0; 4 * chunk]);
}

#[test]
fn chunks_are_spread_over_replicas_and_one_chunk_stays_with_one() {
    let world = World::new(vec![serving(&[1, 2, 3])]);
    let client = world.client(Transport::Auto);
    for _ in 0..2 {
        for index in 0..6 {
            read(&client, index * u64::from(CHUNK), 10).unwrap();
        }
    }
    for node in 1..=3 {
        assert_eq!(world.fake(node).reads.load(Ordering::SeqCst), 4);
    }
}

#[test]
fn a_dirty_chunk_is_read_from_the_tail() {
    let world = World::new(vec![serving(&[1, 2, 3])]);
    let client = world.client(Transport::Shm);
    for node in 1..=3 {
        world.fake(node).put(1, CONTENT.0, 0, format!("node{node}").as_bytes());
    }
    // The replica that is asked first is dirty; only the tail never is.
    let faults = || [Fault::Answer(Status::Dirty)];
    world.fake(1).fail(faults());
    world.fake(2).fail(faults());
    let index_of_node_1 = (0..3).find(|index| (CONTENT.0 as u32 + index).is_multiple_of(3)).unwrap();
    for node in 1..=3 {
        world.fake(node).put(1, CONTENT.0, index_of_node_1, format!("node{node}").as_bytes());
    }
    let offset = u64::from(index_of_node_1) * u64::from(CHUNK);
    assert_eq!(read(&client, offset, 5).unwrap(), b"node3");
    // Even a tail that is dirty for a while.
    let tail = u64::from(index_of_node_1 + 2) * u64::from(CHUNK);
    world.fake(3).fail([
        Fault::Answer(Status::Dirty),
        Fault::Answer(Status::Dirty),
        Fault::Answer(Status::Dirty),
    ]);
    world.put(1, index_of_node_1 + 2, b"value");
    assert_eq!(read(&client, tail, 5).unwrap(), b"value");
}

#[test]
fn a_damaged_copy_is_read_from_another_replica() {
    let world = World::new(vec![serving(&[1, 2])]);
    let client = world.client(Transport::Shm);
    world.put(1, 0, b"value");
    let damaged = || Fault::Answer(Status::Checksum);
    for node in 1..=2 {
        world.fake(node).fail([damaged()]);
        assert_eq!(read(&client, 0, 5).unwrap(), b"value");
        world.fake(node).faults.lock().clear();
    }
    let before = world.batches();
    world.fake(1).fail([damaged()]);
    world.fake(2).fail([damaged()]);
    assert_eq!(read(&client, 0, 5), Err(Kind::CorruptData), "when no good copy is left");
    assert_eq!(world.batches(), before + 2, "each is asked once");
}

#[test]
fn what_cannot_be_helped_is_reported_at_once() {
    let world = World::new(vec![serving(&[1, 2])]);
    let client = world.client(Transport::Tcp);
    for (status, kind) in [
        (Status::NoSpace, Kind::NoSpace),
        (Status::Denied, Kind::PermissionDenied),
        (Status::Invalid, Kind::InvalidArgument),
    ] {
        let before = world.batches();
        world.fake(1).fail([Fault::Answer(status)]);
        assert_eq!(write(&client, 0, b"x"), Err(kind));
        assert_eq!(world.batches(), before + 1, "{status:?} is not tried again");
    }
    let foreign = Secret::new([1; 32]).mint(&pb::Claims::default());
    let client = world.client_with(Transport::Auto, foreign);
    assert_eq!(write(&client, 0, b"x"), Err(Kind::Unauthenticated));
    assert_eq!(read(&client, 0, 1), Err(Kind::Unauthenticated));
}

#[test]
fn passing_troubles_are_waited_out() {
    use Status::*;
    let world = World::new(vec![serving(&[1])]);
    for transport in [Transport::Shm, Transport::Tcp] {
        let client = world.client(transport);
        let faults = || [NotServing, Busy, NoLease, MissingVersion, Timeout].map(Fault::Answer);
        world.fake(1).fail(faults());
        write(&client, 10, b"hello").unwrap();
        world.fake(1).fail(faults());
        world.fake(1).fail([Fault::DropBefore, Fault::DropAfter, Fault::DropBefore]);
        assert_eq!(read(&client, 10, 5).unwrap(), b"hello");
    }
}

#[test]
fn an_update_whose_answer_was_lost_happens_once() {
    let world = World::new(vec![serving(&[1])]);
    for transport in [Transport::Shm, Transport::Tcp] {
        let client = world.client(transport);
        let before = world.fake(1).executed.load(Ordering::SeqCst);
        world.fake(1).fail([Fault::DropAfter, Fault::DropBefore, Fault::DropAfter]);
        write(&client, 0, b"once").unwrap();
        assert_eq!(world.fake(1).executed.load(Ordering::SeqCst), before + 1);
        assert_eq!(world.fake(1).chunk(1, CONTENT.0, 0).unwrap(), b"once");
    }
}

#[test]
fn an_update_says_which_earlier_ones_need_not_be_remembered() {
    let world = World::new(vec![serving(&[1])]);
    let client = world.client(Transport::Shm);
    for chunk in 0..5 {
        write(&client, chunk * u64::from(CHUNK), b"x").unwrap();
    }
    assert_eq!(world.fake(1).writer_count(), 1, "the others are settled");
    // An attempt that was lost may still arrive, so this one is not, although its answer is known.
    world.fake(1).fail([Fault::DropAfter]);
    write(&client, 0, b"y").unwrap();
    write(&client, u64::from(CHUNK), b"z").unwrap();
    assert_eq!(world.fake(1).writer_count(), 2);
}

#[test]
fn a_lost_replica_costs_readers_nothing_but_a_connection() {
    let world = World::new(vec![serving(&[1, 2])]);
    for index in 0..10 {
        world.put(1, index, b"value");
    }
    for transport in [Transport::Auto, Transport::Shm, Transport::Tcp] {
        let client = world.client(transport);
        read(&client, 0, 5).unwrap();
        world.nodes[0].server.stop();
        let before = world.batches();
        for index in 0..10 {
            assert_eq!(read(&client, index * u64::from(CHUNK), 5).unwrap(), b"value");
        }
        assert_eq!(world.batches(), before + 10, "the other one is asked, once for each");
    }
}

#[test]
fn a_node_in_trouble_is_left_alone_for_a_while() {
    let world = World::new(vec![serving(&[1, 2])]);
    for transport in [Transport::Shm, Transport::Tcp] {
        let client = world.client(transport);
        let before = world.fake(1).batches.load(Ordering::SeqCst);
        world.fake(1).fail([Fault::DropBefore; 20]);
        let begun = Instant::now();
        for index in 0..6 {
            read(&client, index * u64::from(CHUNK), 5).unwrap();
        }
        // For a second; under load the reads may take longer.
        let most = 1 + begun.elapsed().as_secs();
        let asked = world.fake(1).batches.load(Ordering::SeqCst) - before;
        assert!((1..=most).contains(&asked), "asked {asked} times and not {most}");
        world.fake(1).faults.lock().clear();
    }
}

#[test]
fn a_write_follows_the_chain_to_its_new_head() {
    let world = World::new(vec![serving(&[1, 2])]);
    let client = world.client(Transport::Auto);
    write(&client, 0, b"first").unwrap();
    world.nodes[0].server.stop();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write(&client, 0, b"other"));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!writer.is_finished(), "no replica takes it before the chain has changed");
        world.change(1, vec![member(2, TargetState::Serving), member(1, TargetState::Offline)]);
        writer.join().unwrap().unwrap();
    });
    assert_eq!(world.fake(2).chunk(1, CONTENT.0, 0).unwrap(), b"other");
    assert_eq!(read(&client, 0, 5).unwrap(), b"other");
}

#[test]
fn an_old_chain_version_waits_for_routing() {
    let world = World::new(vec![serving(&[1, 2])]);
    let client = world.client(Transport::Shm);
    world.put(1, 0, b"value");
    // The nodes know already, the client does not yet.
    for node in 1..=2 {
        world.fake(node).versions.lock().insert(ChainId(1), ChainVersion(2));
    }
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&client, 0, 5));
        let writer = scope.spawn(|| write(&client, 4096, b"x"));
        std::thread::sleep(Duration::from_millis(60));
        assert!(!reader.is_finished() && !writer.is_finished());
        world.change(1, serving(&[2, 1]));
        assert_eq!(reader.join().unwrap().unwrap(), b"value");
        writer.join().unwrap().unwrap();
    });
    assert!(world.fake(2).chunk(1, CONTENT.0, 1).is_some(), "written at the new head");
}

#[test]
fn a_deadline_is_kept_whatever_happens() {
    for transport in [Transport::Shm, Transport::Tcp] {
        let world = World::new(vec![serving(&[1]), Vec::new()]);
        let client = world.client(transport);
        let limit = |time| Instant::now() + Duration::from_millis(time);
        world.fake(1).fail([Fault::Hang, Fault::Hang]);
        let payload = Placement::from_vec(vec![1; 10]);
        let attempts = || {
            assert_eq!(read_until(&client, 0, 10, limit(80)), Err(Kind::Timeout));
            let written = client.write(&layout(1), CONTENT, 0, &payload, limit(80)).unwrap_err();
            assert_eq!(written.kind(), Kind::Timeout);
            let said = written.message();
            assert!(said.starts_with("writing chunk 0 of content 77: "), "{said}");
            assert!(
                said.contains(" attempts in ") && said.contains(", the last to node 1 for chain 1, "),
                "{said}"
            );
        };
        at_most_a_minute(|| world.fake(1).release(), attempts);
        // A chain without a serving member.
        let nowhere = Layout { base: 1, ..layout(1) };
        let into = Placement::private(10).unwrap();
        let nothing = client.read(&nowhere, CONTENT, 0, &into, limit(80));
        let nothing = nothing.unwrap_err();
        assert_eq!(nothing.kind(), Kind::Timeout);
        assert!(nothing.message().contains("(no request sent within "), "{nothing}");
        assert!(client.write(&nowhere, CONTENT, 0, &payload, limit(80)).is_err());
        assert!(client.sync(&nowhere, CONTENT, 0, 1, limit(80)).is_err());
        world.fake(1).release();
    }
}

#[test]
fn one_client_has_one_update_of_a_chunk_in_flight() {
    let world = World::new(vec![serving(&[1]), serving(&[2])]);
    let client = world.client(Transport::Auto);
    std::thread::scope(|scope| {
        for thread in 0..6u8 {
            let client = &client;
            scope.spawn(move || {
                for _ in 0..30 {
                    let payload = Placement::from_vec(vec![thread; 3 * CHUNK as usize]);
                    client.write(&layout(2), CONTENT, u64::from(thread) * 1000, &payload, soon()).unwrap();
                }
            });
        }
    });
    for node in 1..=2 {
        assert_eq!(world.fake(node).under_way_max.load(Ordering::SeqCst), 1);
    }
}

#[test]
fn many_reads_and_writes_go_in_few_batches_and_in_order() {
    let world = World::new(vec![serving(&[1]), serving(&[2]), serving(&[3])]);
    let client = world.client(Transport::Auto);
    let layout = layout(3);
    let writes: Vec<Write> = (0..90u64)
        .map(|file| Write {
            layout,
            content: ContentId(file),
            offset: file % 7,
            payload: Placement::from_vec(file.to_le_bytes().to_vec()),
        })
        .collect();
    assert!(client.write_many(&writes, soon()).iter().all(Result::is_ok));
    let reads: Vec<Read> = (0..91u64)
        .map(|file| Read {
            layout,
            content: ContentId(file),
            offset: file % 7,
            into: Placement::private(8).unwrap(),
        })
        .collect();
    let results = client.read_many(&reads, soon());
    assert!(results[..90].iter().all(|result| *result.as_ref().unwrap() == 8));
    assert_eq!(*results[90].as_ref().unwrap(), 0, "a file without chunks");
    for (file, read) in reads[..90].iter().enumerate() {
        assert_eq!(read.into.to_vec(), (file as u64).to_le_bytes());
    }
    assert!(world.batches() <= 6, "one for each node: {}", world.batches());

    // Writes of one chunk: the last of the list wins.
    let writes: Vec<Write> = (0..5u8)
        .map(|turn| Write {
            layout,
            content: CONTENT,
            offset: 0,
            payload: Placement::from_vec(vec![turn; 4]),
        })
        .collect();
    assert!(client.write_many(&writes, soon()).iter().all(Result::is_ok));
    let into = Placement::private(4).unwrap();
    client.read(&layout, CONTENT, 0, &into, soon()).unwrap();
    assert_eq!(into.to_vec(), [4; 4]);
}

#[test]
fn chunks_that_hold_bytes_are_found_by_few_batches() {
    let world = World::new(vec![serving(&[1]), serving(&[2]), serving(&[3])]);
    let client = world.client(Transport::Auto);
    let (layout, chunk) = (layout(3), u64::from(CHUNK));
    for (offset, length) in [(chunk * 5, 1), (chunk * 200, chunk as usize), (chunk * 300 + 7, 10)] {
        client.write(&layout, CONTENT, offset, &Placement::from_vec(vec![0; length]), soon()).unwrap();
    }
    let before = world.batches();
    let held = client.data_extents(&layout, CONTENT, 3..chunk * 600, soon()).unwrap();
    assert_eq!(held, [5, 200, 300].map(|index| chunk * index..chunk * (index + 1)));
    assert!(world.batches() - before <= 3, "one for each node: {}", world.batches() - before);
    let is_held = |start, end| !client.data_extents(&layout, CONTENT, start..end, soon()).unwrap().is_empty();
    assert!(is_held(chunk * 300 + 16, chunk * 300 + 20));
    assert!(!is_held(chunk * 300 + 17, chunk * 300 + 20));
    assert!(!is_held(chunk * 5, chunk * 5));
    (1..=3).for_each(|node| world.fake(node).fail([Fault::Answer(Status::Io)]));
    assert_eq!(client.data_extents(&layout, CONTENT, chunk..chunk * 2, soon()).unwrap_err().errno(), 5);
}

#[test]
fn one_bad_request_of_a_list_harms_no_other() {
    let world = World::new(vec![serving(&[1])]);
    let client = world.client(Transport::Shm);
    let write = |offset, layout| Write {
        layout,
        content: CONTENT,
        offset,
        payload: Placement::from_vec(b"data".to_vec()),
    };
    let bad = Layout { chunk_bytes: 3, ..layout(1) };
    let results =
        client.write_many(&[write(0, layout(1)), write(0, bad), write(u64::MAX, layout(1))], soon());
    let kinds: Vec<_> = results.iter().map(|result| result.as_ref().map_err(|error| error.errno())).collect();
    assert_eq!(kinds, [Ok(&()), Err(22), Err(27)]);
    let into = Placement::private(4).unwrap();
    let read = |offset, layout| Read { layout, content: CONTENT, offset, into: into.clone() };
    let results = client.read_many(&[read(0, bad), read(0, layout(1))], soon());
    assert!(results[0].is_err());
    assert_eq!(*results[1].as_ref().unwrap(), 4);
}

#[test]
fn a_sync_asks_the_head_of_every_chain_that_the_range_touches() {
    let world = World::new(vec![serving(&[1, 2]), serving(&[3, 1]), serving(&[1])]);
    let client = world.client(Transport::Auto);
    let synced = || [1, 2, 3].map(|node| world.fake(node).synced.load(Ordering::SeqCst));
    client.sync(&layout(3), CONTENT, 0, u64::MAX, soon()).unwrap();
    assert_eq!(synced(), [2, 0, 1]);
    world.fake(3).fail([Fault::Answer(Status::NotServing), Fault::DropBefore]);
    client.sync(&layout(3), CONTENT, 0, 3 * u64::from(CHUNK), soon()).unwrap();
    assert_eq!(synced(), [4, 0, 3], "only the chain that failed is asked again");
    client.sync(&layout(3), CONTENT, 0, 1, soon()).unwrap();
    assert_eq!(synced().iter().sum::<u64>(), 8, "a range in one chunk touches one chain");
    client.sync(&layout(3), CONTENT, 10, 0, soon()).unwrap();
    assert_eq!(synced().iter().sum::<u64>(), 8);
    world.fake(1).fail([Fault::Answer(Status::Io)]);
    let all = client.sync(&layout(3), CONTENT, 0, u64::MAX, soon());
    assert_eq!(all.unwrap_err().errno(), 5);
}

#[test]
fn a_chunk_is_cut_at_the_head() {
    let world = World::new(vec![serving(&[1, 2])]);
    let client = world.client(Transport::Shm);
    write(&client, 0, b"0123456789").unwrap();
    client.truncate_chunk(&layout(1), CONTENT, 0, 4, soon()).unwrap();
    assert_eq!(world.fake(1).chunk(1, CONTENT.0, 0).unwrap(), b"0123");
    assert!(client.truncate_chunk(&layout(1), CONTENT, 0, CHUNK + 1, soon()).is_err());
}

#[test]
fn a_socket_that_cannot_be_used_gives_way_to_tcp() {
    let world = World::new(vec![serving(&[1])]);
    world.put(1, 0, b"value");
    let mut next = (*world.table.current()).clone();
    next.version += 1;
    next.nodes.get_mut(&NodeId(1)).unwrap().data_socket = "/nonexistent/data.sock".to_owned();
    world.table.replace(next);
    let client = world.client(Transport::Auto);
    assert_eq!(read(&client, 0, 5).unwrap(), b"value");
    write(&client, 0, b"VALUE").unwrap();
    assert_eq!(read(&client, 0, 5).unwrap(), b"VALUE");
    assert_eq!(world.batches(), 3, "each went through the first time");
}

#[test]
fn a_node_that_moved_is_found_at_its_new_address() {
    let mut world = World::new(vec![serving(&[1])]);
    let client = world.client(Transport::Tcp);
    write(&client, 0, b"value").unwrap();
    let moved = running();
    moved.fake.put(1, CONTENT.0, 0, b"moved");
    let old = std::mem::replace(&mut world.nodes[0], moved);
    old.server.stop();
    let mut next = (*world.table.current()).clone();
    next.version += 1;
    let address = world.nodes[0].server.tcp_address().unwrap().to_string();
    next.nodes.get_mut(&NodeId(1)).unwrap().data_address = address;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| read(&client, 0, 5));
        std::thread::sleep(Duration::from_millis(30));
        world.table.replace(next);
        assert_eq!(reader.join().unwrap().unwrap(), b"moved");
    });
}

#[test]
fn a_layout_newer_than_routing_waits_for_its_table() {
    let world = World::new(vec![serving(&[1])]);
    world.put(1, 0, b"value");
    let client = world.client(Transport::Shm);
    let newer = Layout { table_version: 2, ..layout(1) };
    let into = Placement::private(5).unwrap();
    let early = client.read(&newer, CONTENT, 0, &into, Instant::now() + Duration::from_millis(30));
    assert_eq!(early.unwrap_err().kind(), Kind::StaleRouting);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| client.read(&newer, CONTENT, 0, &into, soon()));
        let mut next = (*world.table.current()).clone();
        next.version += 1;
        let table = next.tables[&(1, 1)].clone();
        next.tables.insert((1, 2), pb::ChainTable { version: 2, ..table });
        world.table.replace(next);
        assert_eq!(reader.join().unwrap().unwrap(), 5);
    });
}

/// What a client wrote through a chain of three is on all of them, without a copy through a socket.
#[test]
fn a_chain_of_three_forwards_what_it_is_given() {
    let world = World::new(vec![serving(&[1, 2, 3])]);
    for (node, next) in [(1, 2), (2, 3)] {
        let pool = Pool::new(world.nodes[next - 1].unix(), credential(Role::Service), 4);
        *world.fake(node).next.lock() = Some(Arc::new(pool));
    }
    let client = world.client(Transport::Auto);
    let buffer = client.buffers().try_take().unwrap().slice(0..10_000);
    let bytes: Vec<u8> = (0..10_000u32).map(|at| (at % 251) as u8).collect();
    buffer.copy_from(&bytes);
    client.write(&layout(1), CONTENT, 100, &buffer, soon()).unwrap();
    for node in 1..=3 {
        let stored: Vec<u8> =
            (0..3).flat_map(|index| world.fake(node).chunk(1, CONTENT.0, index).unwrap()).collect();
        assert_eq!(stored[100..], bytes);
    }
}

/// A node on this host that hangs keeps the buffer registered with it; a caller that can do without that reads elsewhere.
#[test]
fn a_read_into_registered_memory_is_abandoned_if_its_owner_can_do_without() {
    let world = World::new(vec![serving(&[1, 2])]);
    let client = world.client(Transport::Auto);
    for index in 0..2 {
        world.put(1, index, &[index as u8 + 1; CHUNK as usize]);
    }
    world.fake(1).fail([Fault::Hang]);
    let deadline = Instant::now() + Duration::from_secs(60);
    let pool = BufferPool::new(CHUNK as usize, 4).unwrap();
    let mut lost = 0;
    // Neighbouring chunks are read from different nodes.
    for index in 0..2u64 {
        let offset = index * u64::from(CHUNK);
        let buffer = pool.try_take().unwrap();
        let into = buffer.slice(0..CHUNK as usize).expendable();
        if let Err(error) = client.read(&layout(1), CONTENT, offset, &into, deadline) {
            assert_eq!(error.kind(), Kind::Timeout);
            lost += 1;
        }
        let other = Placement::private(CHUNK as usize).unwrap();
        client.read(&layout(1), CONTENT, offset, &other, deadline).unwrap();
        assert_eq!(other.to_vec(), vec![index as u8 + 1; CHUNK as usize]);
    }
    // Under load the other node may take too long as well.
    assert!(lost >= 1);
    assert!(pool.available() < 4, "the lost buffer is not used again");
    world.fake(1).release();
    while pool.available() < 4 {
        assert!(Instant::now() < deadline, "it comes back when the node has answered");
        std::thread::yield_now();
    }
}
