//! A chain of storage nodes in this process, with a manager that changes it and clients that call it.
#![allow(dead_code)]

pub mod history;
#[path = "../over/mod.rs"]
mod over;
#[path = "../port/mod.rs"]
mod port;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use luciola_core::buffer::{BufferPool, Placement};
use luciola_core::cluster::Transport;
use luciola_core::cluster::routing::own_boot_id;
use luciola_core::error::Kind;
use luciola_core::net::{Endpoint, Pool, Secret};
use luciola_core::storage::{ChunkLine, NodeOptions, StorageServer};
use luciola_core::types::*;
use luciola_core::wire::pb::{self, PublicState, claims::Role};
use over::fabric;
use parking_lot::{Mutex, RwLock};
use port::Port;

pub const CHAIN: ChainId = ChainId(7);
const SECRET: [u8; 32] = [42; 32];
/// Nothing takes so long, on an emulated machine either, unless it fails.
const PATIENCE: Duration = Duration::from_secs(120);

pub struct Cluster {
    nodes: Vec<RwLock<Option<Arc<StorageServer>>>>,
    root: tempfile::TempDir,
    /// Where the nodes' directories are.
    disks: PathBuf,
    change: fn(&mut NodeOptions),
    manager: Mutex<Manager>,
    pools: Mutex<HashMap<(Endpoint, bool), Arc<Pool>>>,
    /// Of all nodes so far: what is sent to one that has ended reaches no other.
    ports: Mutex<Vec<Port>>,
}

struct Manager {
    /// In chain order.
    members: Vec<(usize, TargetState)>,
    chain_version: u64,
    routing_version: u64,
}

pub fn chunk(index: u32) -> ChunkId {
    ChunkId { content: ContentId(500), index }
}

pub fn tag(client: u64, sequence: u64) -> RequestTag {
    RequestTag { client: ClientId(client), sequence }
}

pub fn pattern(length: usize, seed: usize) -> Vec<u8> {
    (0..length).map(|at| ((at * 31 + seed * 17 + at / 251) % 251) as u8).collect()
}

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

pub struct SetOnDrop<'a>(pub &'a std::sync::atomic::AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// `LUCIOLA_SEED`, or a new one.
pub fn seed() -> u64 {
    let given = std::env::var("LUCIOLA_SEED").ok().and_then(|text| text.parse().ok());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970");
    given.unwrap_or(now.as_nanos() as u64)
}

fn refused(status: Status) -> UpdateResult {
    UpdateResult { status, version: Version(0), length: 0 }
}

/// Who serves goes first, in the order they had.
fn in_chain_order(mut members: Vec<(usize, TargetState)>) -> Vec<(usize, TargetState)> {
    members.sort_by_key(|(_, state)| match state {
        TargetState::Serving => 0,
        TargetState::LastServing => 1,
        TargetState::Syncing => 2,
        TargetState::Waiting => 3,
        TargetState::Offline => 4,
    });
    members
}

pub fn soon() -> Instant {
    Instant::now() + PATIENCE
}

impl Cluster {
    /// A chain of that many serving replicas.
    pub fn start(replicas: usize) -> Arc<Cluster> {
        let root = tempfile::tempdir().unwrap();
        let disks = root.path().to_owned();
        Cluster::start_on(root, disks, &vec![TargetState::Serving; replicas], 1, |_| {})
    }

    /// A chain of replicas in these states, with their directories below `disks`.
    pub fn start_in(
        disks: &Path,
        states: &[TargetState],
        chain_version: u64,
        change: fn(&mut NodeOptions),
    ) -> Arc<Cluster> {
        let root = tempfile::tempdir().unwrap();
        Cluster::start_on(root, disks.to_owned(), states, chain_version, change)
    }

    fn start_on(
        root: tempfile::TempDir,
        disks: PathBuf,
        states: &[TargetState],
        chain_version: u64,
        change: fn(&mut NodeOptions),
    ) -> Arc<Cluster> {
        let cluster = Arc::new(Cluster {
            nodes: states.iter().map(|_| RwLock::default()).collect(),
            root,
            disks,
            change,
            manager: Mutex::new(Manager {
                members: in_chain_order(states.iter().copied().enumerate().collect()),
                chain_version,
                routing_version: 1,
            }),
            pools: Mutex::default(),
            ports: Mutex::default(),
        });
        for node in 0..states.len() {
            cluster.open(node, |_| {});
        }
        cluster.publish();
        cluster
    }

    // The manager -----------------------------------------------------------------------------------------

    pub fn version(&self) -> ChainVersion {
        ChainVersion(self.manager.lock().chain_version)
    }

    /// By node.
    pub fn states(&self) -> Vec<TargetState> {
        let mut members = self.manager.lock().members.clone();
        members.sort_unstable_by_key(|(node, _)| *node);
        members.into_iter().map(|(_, state)| state).collect()
    }

    /// The next version of the chain; who serves goes first, in the order they had.
    pub fn set_states(&self, states: &[TargetState]) {
        self.decide_states(states);
        self.publish();
    }

    /// The same, on this node alone.
    pub fn set_states_at(&self, node: usize, states: &[TargetState]) {
        self.decide_states(states);
        self.node(node).set_routing(self.routing()).unwrap();
    }

    fn decide_states(&self, states: &[TargetState]) {
        let mut manager = self.manager.lock();
        for (node, state) in &mut manager.members {
            *state = states[*node];
        }
        manager.members = in_chain_order(std::mem::take(&mut manager.members));
        manager.chain_version += 1;
    }

    pub fn set_state(&self, node: usize, state: TargetState) {
        let mut states = self.states();
        states[node] = state;
        self.set_states(&states);
    }

    fn routing(&self) -> pb::Routing {
        let mut manager = self.manager.lock();
        manager.routing_version += 1;
        let nodes = (0..self.nodes.len()).filter_map(|node| {
            let server = self.nodes[node].read().clone()?;
            Some(pb::Node {
                id: node as u32 + 1,
                kind: pb::NodeKind::NodeStorage as i32,
                status: pb::NodeStatus::Connected as i32,
                data_address: server.tcp_address().unwrap().to_string(),
                data_socket: self.socket(node).display().to_string(),
                boot_id: own_boot_id().to_owned(),
                ..pb::Node::default()
            })
        });
        let targets = manager.members.iter().map(|(node, state)| pb::Target {
            id: 100 + *node as u64,
            node: *node as u32 + 1,
            state: match state {
                TargetState::Serving => PublicState::Serving,
                TargetState::LastServing => PublicState::Lastsrv,
                TargetState::Syncing => PublicState::Syncing,
                TargetState::Waiting => PublicState::Waiting,
                TargetState::Offline => PublicState::Offline,
            } as i32,
            ..pb::Target::default()
        });
        let chain = pb::Chain {
            id: CHAIN.0,
            version: manager.chain_version,
            targets: targets.collect(),
            ..pb::Chain::default()
        };
        pb::Routing {
            version: manager.routing_version,
            nodes: nodes.collect(),
            chains: vec![chain],
            ..pb::Routing::default()
        }
    }

    /// Notify every node, one after the other, and renew its lease.
    fn publish(&self) {
        let routing = self.routing();
        for node in &self.nodes {
            let Some(server) = node.read().clone() else { continue };
            // Another change may have been published meanwhile.
            if server.set_routing(routing.clone()).is_ok() {
                server.set_lease(u64::MAX, routing.version);
            }
        }
    }

    // Nodes -----------------------------------------------------------------------------------------------

    fn socket(&self, node: usize) -> PathBuf {
        self.root.path().join(format!("{node}.sock"))
    }

    /// A place for files of a test.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn directory(&self, node: usize) -> PathBuf {
        self.disks.join(format!("node-{node}"))
    }

    fn open(&self, node: usize, change: impl FnOnce(&mut NodeOptions)) {
        let id = NodeId(node as u32 + 1);
        let mut options = NodeOptions::new(id, self.directory(node), Secret::new(SECRET));
        let port = Port::reserve();
        options.tcp = Some(port.address);
        self.ports.lock().push(port);
        options.unix = Some(self.socket(node));
        if fabric().is_some() {
            options.transport = Transport::Rdma;
        }
        options.engine.segment_bytes = 16 << 20;
        options.engine.reserve_bytes = 0;
        (self.change)(&mut options);
        change(&mut options);
        let deadline = soon();
        let server = loop {
            match StorageServer::start(options.clone()) {
                Ok(server) => break server,
                // A thread of the life before waits for another node, and still has the directory.
                Err(error) if error.kind() == Kind::Busy && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(error) => panic!("node {node} cannot be opened: {error}"),
            }
        };
        *self.nodes[node].write() = Some(Arc::new(server));
    }

    pub fn node(&self, node: usize) -> Arc<StorageServer> {
        self.nodes[node].read().clone().expect("the node runs")
    }

    /// Ends the node in the middle of whatever it does.
    pub fn kill(&self, node: usize) {
        let server = self.nodes[node].write().take().expect("the node runs");
        server.end();
        // A caller that is in it now is done in a moment; only then the directory can be opened again.
        self.wait_until("the node is gone", || Arc::strong_count(&server) == 1);
    }

    pub fn restart(&self, node: usize) {
        self.open(node, |_| {});
        self.publish();
    }

    /// Restarts a running node with other options, without a change of the chain.
    pub fn restart_with(&self, node: usize, change: impl FnOnce(&mut NodeOptions)) {
        self.kill(node);
        self.open(node, change);
        self.publish();
    }

    pub fn wipe_disk(&self, node: usize) {
        fs::remove_dir_all(self.directory(node)).unwrap();
    }

    /// Flips a byte of the first place on the node's disk with these bytes.
    pub fn flip_byte(&self, node: usize, bytes: &[u8]) {
        let mut directories = vec![self.directory(node)];
        while let Some(directory) = directories.pop() {
            for entry in fs::read_dir(directory).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                    continue;
                }
                let content = fs::read(&path).unwrap();
                if let Some(place) = content.windows(bytes.len()).position(|window| window == bytes) {
                    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
                    file.write_all_at(&[!bytes[0]], place as u64).unwrap();
                    return;
                }
            }
        }
        panic!("the bytes are not on the disk of node {node}");
    }

    pub fn pending(&self, node: usize) -> usize {
        self.node(node).chain_states()[0].pending
    }

    pub fn wait_until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition() {
            assert!(Instant::now() < deadline, "{what}: it does not happen");
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    // Recovery --------------------------------------------------------------------------------------------

    pub fn lines(&self, node: usize) -> BTreeMap<(u64, u32), ChunkLine> {
        let server = self.node(node);
        let mut lines = BTreeMap::new();
        let mut after = None;
        loop {
            let page = server.list_chunks(CHAIN, after, 7, 0).unwrap();
            after = page.last().map(|line| line.chunk);
            lines.extend(page.iter().map(|line| ((line.chunk.content.0, line.chunk.index), *line)));
            if page.len() < 7 {
                return lines;
            }
        }
    }

    /// Makes a replica that has come back SYNCING, brings it up to date and lets it serve.
    pub fn resync(&self, node: usize) {
        self.set_state(node, TargetState::Syncing);
        self.fill(node);
        // As its node does before it reports the replica up to date.
        self.node(node).sync().unwrap();
        self.set_state(node, TargetState::Serving);
    }

    /// Makes the SYNCING replica equal to its predecessor, as `fs/storage/recovery.py` does: what the chain never had is
    /// set aside first.
    pub fn fill(&self, node: usize) {
        let tail = self.serving().last().copied().expect("a predecessor");
        let version = self.version();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (ours, theirs) = (self.lines(tail), self.lines(node));
            let mut is_busy = false;
            for (_, line) in theirs.iter().filter(|(name, line)| is_unknown(ours.get(name), line)) {
                let folder = self.folder("quarantine");
                let result = self.node(node).quarantine(CHAIN, version, line.chunk, line.stamp, &folder);
                is_busy |= result.is_err_and(|error| error.kind() == Kind::Busy);
            }
            let mut names: Vec<(u64, u32)> = ours.keys().chain(theirs.keys()).copied().collect();
            names.sort_unstable();
            names.dedup();
            names.retain(|name| {
                let lines = [ours.get(name), theirs.get(name)];
                lines[0] != lines[1] || lines.iter().flatten().any(|line| line.pending.is_some())
            });
            let chunks: Vec<ChunkId> = names
                .into_iter()
                .map(|(content, index)| ChunkId { content: ContentId(content), index })
                .collect();
            let report = self.node(tail).sync_chunks(CHAIN, version, &chunks).unwrap();
            if report.failed.is_empty() && !is_busy {
                break;
            }
            assert!(Instant::now() < deadline, "cannot be synced: {:?}", report.failed);
        }
    }

    /// Waits until nothing is pending, then compares every chunk of every serving replica.
    pub fn assert_equal_replicas(&self) {
        let serving = self.serving();
        self.wait_until("everything is committed", || serving.iter().all(|node| self.pending(*node) == 0));
        let first = self.lines(serving[0]);
        assert!(!first.is_empty(), "nothing to compare");
        for node in &serving[1..] {
            let other = self.lines(*node);
            assert_eq!(first, other, "nodes {} and {node} differ", serving[0]);
        }
        for node in serving {
            let report = self.node(node).scrub(CHAIN, None, 100_000, false).unwrap();
            assert_eq!(report.damaged, [], "node {node}");
        }
    }

    /// Nodes that serve, in chain order.
    pub fn serving(&self) -> Vec<usize> {
        let manager = self.manager.lock();
        let serving = manager.members.iter().filter(|(_, state)| *state == TargetState::Serving);
        serving.map(|(node, _)| *node).collect()
    }

    // Clients ---------------------------------------------------------------------------------------------

    fn pool(&self, endpoint: Endpoint, mount: bool) -> Arc<Pool> {
        let role = if mount { Role::Trusted } else { Role::Client };
        let claims = pb::Claims { role: role as i32, ..pb::Claims::default() };
        let new = || Arc::new(Pool::new(endpoint.clone(), Secret::new(SECRET).mint(&claims), 16));
        self.pools.lock().entry((endpoint.clone(), mount)).or_insert_with(new).clone()
    }

    fn tcp(&self, node: usize) -> Result<Endpoint, Status> {
        let server = self.nodes[node].read();
        let server = server.as_ref().ok_or(Status::Disconnected)?;
        let address = server.tcp_address().unwrap();
        Ok(match fabric() {
            Some(fabric) => Endpoint::Rdma { address, fabric, may_fall_back: false },
            None => Endpoint::Tcp(address),
        })
    }

    fn head(&self) -> usize {
        self.serving()[0]
    }

    fn operation(&self, chunk: ChunkId, op: Op, tag: RequestTag) -> UpdateOp {
        UpdateOp {
            chain: CHAIN,
            chain_version: self.version(),
            chunk,
            op,
            tag,
            settled: 0,
            version: Version(0),
            decided: ChainVersion(0),
            fresh: false,
            payload_crc: None,
        }
    }

    fn send(
        &self,
        endpoint: Endpoint,
        ops: &[UpdateOp],
        payload: &[Placement],
        deadline: Instant,
        mount: bool,
    ) -> Result<Vec<UpdateResult>, Status> {
        let pool = self.pool(endpoint, mount);
        let mut connection = pool.get(deadline).map_err(|error| error.status())?;
        let mut out = Vec::new();
        connection.update(ops, payload, deadline, &mut out)?;
        Ok(out)
    }

    fn send_one(&self, node: usize, op: UpdateOp, payload: &[u8], deadline: Instant) -> UpdateResult {
        let payload = [Placement::from_vec(payload.to_vec())];
        let sent = self.tcp(node).and_then(|to| self.send(to, &[op], &payload, deadline, false));
        sent.map_or_else(refused, |results| results[0])
    }

    pub fn write(&self, chunk: ChunkId, offset: u32, bytes: &[u8], tag: RequestTag) -> UpdateResult {
        self.write_within(chunk, offset, bytes, tag, PATIENCE)
    }

    pub fn write_within(
        &self,
        chunk: ChunkId,
        offset: u32,
        bytes: &[u8],
        tag: RequestTag,
        patience: Duration,
    ) -> UpdateResult {
        let op = self.operation(chunk, Op::Write { offset, length: bytes.len() as u32 }, tag);
        self.send_one(self.head(), op, bytes, Instant::now() + patience)
    }

    /// A write whose client says that all its requests below `settled` are settled.
    pub fn write_settling(
        &self,
        chunk: ChunkId,
        bytes: &[u8],
        tag: RequestTag,
        settled: u64,
    ) -> UpdateResult {
        let op = self.operation(chunk, Op::Write { offset: 0, length: bytes.len() as u32 }, tag);
        self.send_one(self.head(), UpdateOp { settled, ..op }, bytes, Instant::now() + PATIENCE)
    }

    /// Writes with less and less hurry until the head has a version pending that is not committed, and gives up: under
    /// load the time may be over before the head has begun.
    pub fn write_in_vain(&self, chunk: ChunkId, offset: u32, bytes: &[u8], tag: RequestTag) {
        let before = self.pending(self.head());
        let times = [200, 2000, 20_000].map(Duration::from_millis);
        let is_pending = times.into_iter().any(|time| {
            let result = self.write_within(chunk, offset, bytes, tag, time);
            assert!(result.status.is_retryable(), "{}", result.status);
            self.pending(self.head()) > before
        });
        assert!(is_pending, "the head does not begin");
    }

    /// As a client does: the same request again, to the head of that moment, until it is acknowledged.
    pub fn write_persistently(
        &self,
        chunk: ChunkId,
        offset: u32,
        bytes: &[u8],
        tag: RequestTag,
    ) -> UpdateResult {
        let deadline = Instant::now() + 2 * PATIENCE;
        loop {
            let result = self.write_within(chunk, offset, bytes, tag, Duration::from_secs(1));
            if !result.status.is_retryable() || Instant::now() > deadline {
                return result;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn write_in_background(
        self: &Arc<Cluster>,
        chunk: ChunkId,
        offset: u32,
        bytes: &[u8],
        tag: RequestTag,
    ) -> JoinHandle<UpdateResult> {
        let (cluster, bytes) = (self.clone(), bytes.to_vec());
        std::thread::spawn(move || cluster.write(chunk, offset, &bytes, tag))
    }

    pub fn update(&self, chunk: ChunkId, op: Op, tag: RequestTag) -> UpdateResult {
        self.update_at(self.head(), self.version(), chunk, op, tag)
    }

    pub fn update_at(
        &self,
        node: usize,
        chain_version: ChainVersion,
        chunk: ChunkId,
        op: Op,
        tag: RequestTag,
    ) -> UpdateResult {
        let op = UpdateOp { chain_version, ..self.operation(chunk, op, tag) };
        self.send_one(node, op, b"", soon())
    }

    pub fn forge(&self, chunk: ChunkId, op: Op, tag: RequestTag) -> UpdateResult {
        let op = UpdateOp { version: Version(9), decided: self.version(), ..self.operation(chunk, op, tag) };
        self.send_one(self.head(), op, b"", soon())
    }

    pub fn write_batch(&self, writes: &[(ChunkId, Vec<u8>)], client: u64) -> Vec<UpdateResult> {
        let ops: Vec<UpdateOp> = writes
            .iter()
            .enumerate()
            .map(|(place, (chunk, bytes))| {
                let op = Op::Write { offset: 0, length: bytes.len() as u32 };
                self.operation(*chunk, op, tag(client, 1 + place as u64))
            })
            .collect();
        let payload: Vec<Placement> =
            writes.iter().map(|(_, bytes)| Placement::from_vec(bytes.clone())).collect();
        self.send(self.tcp(self.head()).unwrap(), &ops, &payload, soon(), false).unwrap()
    }

    /// From memory that the head shares.
    pub fn write_shared(&self, chunk: ChunkId, bytes: &[u8], tag: RequestTag, mount: bool) -> UpdateResult {
        let pool = BufferPool::new(bytes.len(), 1).unwrap();
        let buffer = pool.try_take().unwrap().into_placement().slice(0..bytes.len());
        buffer.copy_from(bytes);
        let op = self.operation(chunk, Op::Write { offset: 0, length: bytes.len() as u32 }, tag);
        let to = Endpoint::Unix(self.socket(self.head()));
        self.send(to, &[op], &[buffer], soon(), mount).unwrap()[0]
    }

    /// Writes that many new chunks of 1 MiB from one shared buffer, one after the other.
    pub fn write_rounds(&self, rounds: u32, mount: bool) {
        let pool = BufferPool::new(1 << 20, 1).unwrap();
        let buffer = pool.try_take().unwrap().into_placement();
        buffer.copy_from(&pattern(1 << 20, 1));
        let to = Endpoint::Unix(self.socket(self.head()));
        for round in 0..rounds {
            let op = Op::Write { offset: 0, length: 1 << 20 };
            let client = 1 + u64::from(mount);
            let index = round + if mount { rounds } else { 0 };
            let op = self.operation(chunk(index), op, tag(client, 1));
            let results = self.send(to.clone(), &[op], std::slice::from_ref(&buffer), soon(), mount);
            assert_eq!(results.unwrap()[0].status, Status::Ok);
        }
    }

    /// Reads them from the tail into one shared buffer.
    pub fn read_rounds(&self, rounds: u32) {
        let pool = BufferPool::new(1 << 20, 1).unwrap();
        let into = pool.try_take().unwrap().into_placement();
        let to = Endpoint::Unix(self.socket(*self.serving().last().unwrap()));
        let mut connection_out = Vec::new();
        let pool = self.pool(to, false);
        for round in 0..rounds {
            let op = ReadOp {
                chain: CHAIN,
                chain_version: self.version(),
                chunk: chunk(round),
                offset: 0,
                length: 1 << 20,
            };
            let mut connection = pool.get(soon()).unwrap();
            connection.read(&[op], std::slice::from_ref(&into), soon(), &mut connection_out).unwrap();
            assert_eq!(connection_out[0].length, 1 << 20);
        }
    }

    pub fn write_while_scribbling(&self, chunk: ChunkId, length: usize, tag: RequestTag) {
        let pool = BufferPool::new(length, 1).unwrap();
        let buffer = pool.try_take().unwrap().into_placement().slice(0..length);
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            let scribbler = buffer.clone();
            let done = &done;
            scope.spawn(move || {
                let mut round = 0u8;
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    round = round.wrapping_add(1);
                    scribbler.copy_from(&vec![round; length]);
                }
            });
            let op = self.operation(chunk, Op::Write { offset: 0, length: length as u32 }, tag);
            let to = Endpoint::Unix(self.socket(self.head()));
            let result = self.send(to, &[op], &[buffer], soon(), false).unwrap()[0];
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(result.status, Status::Ok);
        });
    }

    pub fn read(&self, node: usize, chunk: ChunkId) -> Result<Vec<u8>, Status> {
        self.read_version(node, chunk, PATIENCE).map(|(_, bytes)| bytes)
    }

    pub fn read_version(
        &self,
        node: usize,
        chunk: ChunkId,
        patience: Duration,
    ) -> Result<(Version, Vec<u8>), Status> {
        let into = Placement::private(2 << 20).unwrap();
        self.read_into(self.tcp(node)?, chunk, into, Instant::now() + patience)
    }

    pub fn read_shared(&self, node: usize, chunk: ChunkId) -> Result<Vec<u8>, Status> {
        let pool = BufferPool::new(2 << 20, 1).unwrap();
        let into = pool.try_take().unwrap().into_placement();
        self.read_into(Endpoint::Unix(self.socket(node)), chunk, into, soon()).map(|(_, bytes)| bytes)
    }

    fn read_into(
        &self,
        endpoint: Endpoint,
        chunk: ChunkId,
        into: Placement,
        deadline: Instant,
    ) -> Result<(Version, Vec<u8>), Status> {
        let pool = self.pool(endpoint, false);
        let mut connection = pool.get(deadline).map_err(|error| error.status())?;
        let op = ReadOp {
            chain: CHAIN,
            chain_version: self.version(),
            chunk,
            offset: 0,
            length: into.len() as u32,
        };
        let mut out = Vec::new();
        connection.read(&[op], std::slice::from_ref(&into), deadline, &mut out)?;
        match out[0].status {
            Status::Ok => Ok((out[0].version, into.slice(0..out[0].length as usize).to_vec())),
            status => Err(status),
        }
    }

    pub fn read_ranges(&self, node: usize, ranges: &[(ChunkId, u32)], length: u32) -> Vec<ReadResult> {
        let version = self.version();
        let ops: Vec<ReadOp> = ranges
            .iter()
            .map(|(chunk, offset)| ReadOp {
                chain: CHAIN,
                chain_version: version,
                chunk: *chunk,
                offset: *offset,
                length,
            })
            .collect();
        let into: Vec<Placement> =
            ops.iter().map(|op| Placement::private(op.length as usize).unwrap()).collect();
        let mut out = Vec::new();
        let pool = self.pool(self.tcp(node).unwrap(), false);
        pool.get(soon()).unwrap().read(&ops, &into, soon(), &mut out).unwrap();
        out
    }

    pub fn sync(&self) -> Vec<Status> {
        self.sync_under(self.version())
    }

    pub fn sync_under(&self, version: ChainVersion) -> Vec<Status> {
        let pool = self.pool(self.tcp(self.head()).unwrap(), false);
        let mut out = Vec::new();
        pool.get(soon()).unwrap().sync(&[(CHAIN, version)], soon(), &mut out).unwrap();
        out
    }
}

/// One member falls, the chain continues without it, and it comes back.
pub fn fall_and_return(cluster: &Cluster, victim: usize, with_empty_disk: bool) {
    cluster.kill(victim);
    cluster.set_state(victim, TargetState::Offline);
    if with_empty_disk {
        cluster.wipe_disk(victim);
    }
    cluster.restart(victim);
    cluster.resync(victim);
}

/// Whether a returning replica's line is one that its predecessor's history does not explain.
fn is_unknown(ours: Option<&ChunkLine>, theirs: &ChunkLine) -> bool {
    match ours {
        None => theirs.stamp.version != Version(0) && !theirs.removed,
        Some(ours) => {
            theirs.stamp > ours.stamp && ours.pending.is_none_or(|next| theirs.stamp.version > next)
        }
    }
}
