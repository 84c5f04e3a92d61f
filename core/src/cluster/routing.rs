//! Routing of mgmtd, kept current: nodes, chains and chain tables, and the placement of a file's chunks.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::lock::{Condvar, Mutex};
use crate::panics::caught;

use super::backoff::Backoff;
use super::rpc::{ATTEMPT_TIMEOUT, Lane};
use super::transport::Transport;
use crate::error::{Error, Kind, Result};
use crate::net::Endpoint;
use crate::types::{
    CHUNK_BYTES_MAX, Chain, ChainId, ChainMember, ChainVersion, NodeId, TargetId, TargetState,
};
use crate::wire::pb::{self, Method, NodeKind, PublicState};

/// How long mgmtd may hold a poll open.
const POLL_WAIT: Duration = Duration::from_secs(5);
/// How much later than that the answer may come before the connection counts as lost.
const POLL_GRACE: Duration = Duration::from_secs(5);
const _: () = assert!(POLL_WAIT.as_millis() + POLL_GRACE.as_millis() <= ATTEMPT_TIMEOUT.as_millis());
/// Pauses between polls that failed.
const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_millis(500);
const _: () = assert!(RETRY_FIRST.as_millis() <= RETRY_MAX.as_millis());
const _: () = assert!(RETRY_MAX.as_millis() < POLL_WAIT.as_millis(), "a failed poll is repeated sooner");
/// The only permutation there is (docs/formats.md).
const PERMUTATION_VERSION: u32 = 1;
/// Most chains one file is spread over, as in `fs/config.py`.
const STRIPE_MAX: u32 = 1024;

/// One version of routing. Immutable; hold an `Arc` of it for as long as one request takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Routing {
    pub version: u64,
    pub cluster_id: String,
    pub bootstrapping: bool,
    pub nodes: HashMap<NodeId, pb::Node>,
    pub chains: HashMap<ChainId, Chain>,
    /// By id and version.
    pub tables: HashMap<(u32, u32), pb::ChainTable>,
}

impl Routing {
    /// The routing after a snapshot or a delta of mgmtd. Errors: `CorruptData` if it makes no sense, or is older: a chain's
    /// members never go back.
    pub fn apply(&self, update: pb::Routing) -> Result<Routing> {
        let mut next = if update.delta { self.clone() } else { Routing::default() };
        if update.version < self.version {
            return Err(corrupt(
                "routing is older than what is known: another mgmtd answered, or one with an older store",
            ));
        }
        if !self.cluster_id.is_empty()
            && update.cluster_id != self.cluster_id
            && !update.cluster_id.is_empty()
        {
            return Err(corrupt("routing of another cluster"));
        }
        if !update.cluster_id.is_empty() {
            next.cluster_id = update.cluster_id;
        }
        next.version = update.version;
        next.bootstrapping = update.bootstrapping;
        for id in update.removed_nodes {
            next.nodes.remove(&NodeId(id));
        }
        next.nodes.extend(update.nodes.into_iter().map(|node| (NodeId(node.id), node)));
        for chain in update.chains {
            let chain = chain_from(chain)?;
            next.chains.insert(chain.id, chain);
        }
        for table in update.tables {
            if table.chains.is_empty() {
                return Err(corrupt("an empty chain table"));
            }
            next.tables.insert((table.id, table.version), table);
        }
        assert!(next.version >= self.version, "routing never goes back");
        Ok(next)
    }

    /// Where to reach a storage node: its Unix socket if it is on this host (`Auto`), else TCP, by which RDMA is agreed on
    /// too.
    pub fn endpoint(&self, node: NodeId, transport: Transport) -> Option<Endpoint> {
        let node = self.nodes.get(&node)?;
        let unix =
            || (!node.data_socket.is_empty()).then(|| Endpoint::Unix(PathBuf::from(&node.data_socket)));
        let tcp = || node.data_address.parse().ok().map(Endpoint::Tcp);
        match transport {
            Transport::Shm => unix(),
            Transport::Tcp | Transport::Rdma => tcp(),
            Transport::Auto if node.boot_id == own_boot_id() => unix().or_else(tcp),
            Transport::Auto => tcp(),
        }
    }

    /// The metadata service to call: of those that are connected the one with the newest term. One that was paused may
    /// still be published with an older term; a standby refuses requests until it has a term of its own.
    pub fn primary_meta(&self) -> Option<&pb::Node> {
        self.nodes
            .values()
            .filter(|node| node.kind() == NodeKind::NodeMeta && node.status() == pb::NodeStatus::Connected)
            .filter(|node| !node.lane_address.is_empty())
            .max_by_key(|node| (node.epoch, std::cmp::Reverse(node.id)))
    }

    /// Where to call the metadata service: one address, or none.
    pub fn meta_addresses(&self) -> Vec<String> {
        self.primary_meta().map(|node| node.lane_address.clone()).into_iter().collect()
    }

    /// The chains of a layout's stripe in permuted order: chunk `i` is stored on `stripe[i % stripe.len()]`.
    /// Errors: `StaleRouting` if its table is not known yet, `InvalidArgument` if the layout makes no sense.
    pub fn stripe(&self, layout: &pb::Layout) -> Result<Arc<[ChainId]>> {
        if layout.permutation_version != PERMUTATION_VERSION {
            return Err(Error::invalid(format!(
                "unknown permutation version {}",
                layout.permutation_version
            )));
        }
        if !layout.chunk_bytes.is_power_of_two() || layout.chunk_bytes > CHUNK_BYTES_MAX {
            return Err(Error::invalid(format!("chunks of {} bytes are not allowed", layout.chunk_bytes)));
        }
        if layout.stripe == 0 || layout.stripe > STRIPE_MAX {
            return Err(Error::invalid(format!("a stripe of {} chains is not allowed", layout.stripe)));
        }
        let table = self.tables.get(&(layout.table, layout.table_version)).ok_or_else(|| {
            Error::new(
                Kind::StaleRouting,
                format!("chain table {} version {} is not known", layout.table, layout.table_version),
            )
        })?;
        Ok(permuted_run(&table.chains, layout.base, layout.stripe, layout.seed).map(ChainId).collect())
    }
}

/// Placement of a file's chunks, permutation version 1 (docs/formats.md).
fn permuted_run(chains: &[u32], base: u32, stripe: u32, seed: u64) -> impl Iterator<Item = u32> {
    let length = chains.len();
    let mut run: Vec<u32> =
        (0..length.min(stripe as usize)).map(|place| chains[(base as usize + place) % length]).collect();
    assert!(!run.is_empty() && run.len() <= stripe as usize, "a table has chains, and a stripe at least one");
    let mut state = seed;
    for place in (1..run.len()).rev() {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^= mixed >> 31;
        run.swap(place, (mixed % (place as u64 + 1)) as usize);
    }
    run.into_iter()
}

fn chain_from(chain: pb::Chain) -> Result<Chain> {
    let members = chain
        .targets
        .into_iter()
        .map(|target| ChainMember {
            target: TargetId(target.id),
            node: NodeId(target.node),
            state: match target.state() {
                PublicState::Serving => TargetState::Serving,
                PublicState::Lastsrv => TargetState::LastServing,
                PublicState::Syncing => TargetState::Syncing,
                PublicState::Waiting => TargetState::Waiting,
                PublicState::Offline | PublicState::PublicInvalid => TargetState::Offline,
            },
        })
        .collect();
    if chain.version == 0 {
        return Err(corrupt("a chain without a version"));
    }
    Ok(Chain { id: ChainId(chain.id), version: ChainVersion(chain.version), members })
}

fn corrupt(message: &'static str) -> Error {
    Error::new(Kind::CorruptData, message)
}

/// Differs from that of every other host, and of this host before it was started last.
pub fn own_boot_id() -> &'static str {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    BOOT_ID.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        text.map(|text| text.trim().to_owned()).unwrap_or_default()
    })
}

/// Keeps routing current: one thread holds a long poll at mgmtd. Ends on drop.
pub struct RoutingTable {
    shared: Arc<TableShared>,
}

type Listener = Box<dyn FnMut(&Routing) + Send>;

struct TableShared {
    state: Mutex<TableState>,
    listeners: Mutex<Vec<Listener>>,
    changed: Condvar,
    /// Wakes the thread out of a pause.
    hurry: Condvar,
}

struct TableState {
    current: Arc<Routing>,
    hurried: bool,
    stopped: bool,
}

impl RoutingTable {
    /// Fetch the first snapshot before `deadline`, then follows.
    pub fn start(mgmtd: Arc<Lane>, deadline: Instant) -> Result<Arc<RoutingTable>> {
        let first = poll(&mgmtd, &Routing::default(), Duration::ZERO, deadline)?;
        let table = RoutingTable::fixed(first);
        let shared = table.shared.clone();
        let next = move |current: &Routing| {
            poll(&mgmtd, current, POLL_WAIT, Instant::now() + POLL_WAIT + POLL_GRACE)
        };
        thread::Builder::new().name("luciola-routing".into()).spawn(move || shared.follow(next))?;
        Ok(table)
    }

    /// A table that changes only by [`RoutingTable::replace`], for tests and tools.
    pub fn fixed(routing: Routing) -> Arc<RoutingTable> {
        let state = TableState { current: Arc::new(routing), hurried: false, stopped: false };
        let shared = Arc::new(TableShared {
            state: Mutex::new(state),
            listeners: Mutex::default(),
            changed: Condvar::new(),
            hurry: Condvar::new(),
        });
        Arc::new(RoutingTable { shared })
    }

    pub fn current(&self) -> Arc<Routing> {
        self.shared.state.lock().current.clone()
    }

    /// Make `routing` the current one.
    pub fn replace(&self, routing: Routing) {
        self.shared.publish(routing);
    }

    /// Call `listener` with the current routing now, and with each that becomes the current one. It must not wait.
    pub fn listen(&self, mut listener: impl FnMut(&Routing) + Send + 'static) {
        let mut listeners = self.shared.listeners.lock();
        listener(&self.current());
        listeners.push(Box::new(listener));
    }

    /// Wait for a version above `version` until `deadline`, hurrying the thread if it sleeps after a failure.
    /// Returns what is current then.
    pub fn wait_newer(&self, version: u64, deadline: Instant) -> Arc<Routing> {
        let mut state = self.shared.state.lock();
        state.hurried = true;
        self.shared.hurry.notify_all();
        while state.current.version <= version && !state.stopped {
            if self.shared.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.current.clone()
    }

    /// End the thread, at the latest when its poll is answered. Callers that wait for a newer version are woken.
    pub fn stop(&self) {
        self.shared.state.lock().stopped = true;
        self.shared.changed.notify_all();
        self.shared.hurry.notify_all();
    }
}

impl Drop for RoutingTable {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for RoutingTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RoutingTable {{ version: {} }}", self.current().version)
    }
}

impl TableShared {
    fn publish(&self, routing: Routing) {
        let mut state = self.state.lock();
        assert!(routing.version >= state.current.version, "routing never goes back");
        state.current = Arc::new(routing);
        drop(state);
        self.changed.notify_all();
        for listener in self.listeners.lock().iter_mut() {
            let current = self.state.lock().current.clone();
            listener(&current);
        }
    }

    /// Publish what `next` brings, until the table is stopped. A panic in there is a failed poll: without this thread every
    /// request would stay with old routing.
    fn follow(&self, next: impl Fn(&Routing) -> Result<Routing>) {
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX);
        loop {
            let (current, stopped) = {
                let state = self.state.lock();
                (state.current.clone(), state.stopped)
            };
            if stopped {
                return;
            }
            let polled = caught(|| {
                let next = next(&current)?;
                if next != *current {
                    self.publish(next);
                }
                Ok(())
            });
            match polled.unwrap_or_else(|| Err(Error::new(Kind::Other, "the poll panicked"))) {
                Ok(()) => backoff = Backoff::new(RETRY_FIRST, RETRY_MAX),
                Err(error) => {
                    log::warn!("polling mgmtd for routing failed: {error}; retrying");
                    self.pause(backoff.pause(Instant::now() + RETRY_MAX).unwrap_or(RETRY_MAX));
                }
            }
        }
    }

    fn pause(&self, time: Duration) {
        let mut state = self.state.lock();
        state.hurried = false;
        let deadline = Instant::now() + time;
        while !state.hurried && !state.stopped {
            if self.hurry.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }
}

fn poll(mgmtd: &Lane, current: &Routing, wait: Duration, deadline: Instant) -> Result<Routing> {
    let request = pb::GetRoutingRequest { known_version: current.version, wait_ms: wait.as_millis() as u32 };
    current.apply(mgmtd.call(Method::MgmtdGetRouting, &request, deadline)?)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    fn routing(delta: bool, version: u64) -> pb::Routing {
        pb::Routing { version, delta, ..pb::Routing::default() }
    }

    fn node(id: u32, boot_id: &str) -> pb::Node {
        pb::Node {
            id,
            kind: NodeKind::NodeStorage as i32,
            status: pb::NodeStatus::Connected as i32,
            boot_id: boot_id.to_owned(),
            data_address: format!("127.0.0.1:{}", 4000 + id),
            data_socket: format!("/tmp/{id}.sock"),
            lane_address: format!("127.0.0.1:{}", 5000 + id),
            ..pb::Node::default()
        }
    }

    #[test]
    fn the_test_vector_of_the_formats_page_holds() {
        let page = include_str!("../../../docs/formats.md");
        let (_, vector) = page.split_once("Test vector:").expect("the page has a test vector");
        let (_, list) = vector.split_once("`shuffled` = ").expect("and its result");
        let expected: Vec<u32> = list
            .split(|mark: char| !(mark.is_ascii_digit() || mark == ',' || mark == ' '))
            .find(|text| !text.is_empty())
            .expect("numbers")
            .split(',')
            .map(|number| number.trim().parse().expect("a number"))
            .collect();
        let chains: Vec<u32> = (100..108).collect();
        let shuffled: Vec<u32> = permuted_run(&chains, 3, 8, 42).collect();
        assert_eq!(shuffled, [106, 104, 101, 105, 107, 103, 102, 100]);
        assert_eq!(shuffled, expected);
    }

    #[test]
    fn a_run_wraps_around_its_table_and_is_no_longer_than_it() {
        let chains: Vec<u32> = (100..108).collect();
        let run = |base, stripe, seed| permuted_run(&chains, base, stripe, seed).collect::<Vec<_>>();
        assert_eq!(run(6, 5, u64::MAX), [100, 106, 101, 102, 107]);
        assert_eq!(run(u32::MAX, 1, 0), [107]);
        let mut all = run(2, 1000, 7);
        all.sort_unstable();
        assert_eq!(all, chains);
    }

    #[test]
    fn layouts_that_make_no_sense_are_refused() {
        let table = pb::ChainTable { id: 1, version: 2, chains: vec![5], ..pb::ChainTable::default() };
        let update = pb::Routing { tables: vec![table], ..routing(false, 1) };
        let known = Routing::default().apply(update).unwrap();
        let good = pb::Layout {
            table: 1,
            table_version: 2,
            chunk_bytes: 1 << 20,
            stripe: 4,
            permutation_version: 1,
            ..pb::Layout::default()
        };
        assert_eq!(known.stripe(&good).unwrap()[..], [ChainId(5)]);
        let kind = |layout| known.stripe(&layout).unwrap_err().kind();
        assert_eq!(kind(pb::Layout { table_version: 3, ..good }), Kind::StaleRouting);
        assert_eq!(kind(pb::Layout { permutation_version: 2, ..good }), Kind::InvalidArgument);
        assert_eq!(kind(pb::Layout { chunk_bytes: 1000, ..good }), Kind::InvalidArgument);
        assert_eq!(kind(pb::Layout { chunk_bytes: 0, ..good }), Kind::InvalidArgument);
        assert_eq!(kind(pb::Layout { chunk_bytes: 1 << 30, ..good }), Kind::InvalidArgument);
        assert_eq!(kind(pb::Layout { stripe: 0, ..good }), Kind::InvalidArgument);
        assert_eq!(kind(pb::Layout { stripe: u32::MAX, ..good }), Kind::InvalidArgument);
    }

    #[test]
    fn a_delta_changes_what_it_names_and_a_snapshot_replaces_all() {
        let chain = |id, version, state: PublicState| pb::Chain {
            id,
            version,
            targets: vec![pb::Target { id: 9, node: 1, state: state as i32, ..pb::Target::default() }],
            ..pb::Chain::default()
        };
        let first = pb::Routing {
            nodes: vec![node(1, "a"), node(2, "a")],
            chains: vec![chain(7, 1, PublicState::Serving), chain(8, 1, PublicState::Serving)],
            cluster_id: "c".to_owned(),
            ..routing(false, 5)
        };
        let first = Routing::default().apply(first).unwrap();
        let delta = pb::Routing {
            chains: vec![chain(7, 2, PublicState::Offline)],
            removed_nodes: vec![2],
            cluster_id: "c".to_owned(),
            ..routing(true, 6)
        };
        let second = first.apply(delta).unwrap();
        assert_eq!((second.version, second.nodes.len(), second.chains.len()), (6, 1, 2));
        assert_eq!(second.chains[&ChainId(7)].members[0].state, TargetState::Offline);
        assert_eq!(second.chains[&ChainId(8)], first.chains[&ChainId(8)]);
        assert!(second.apply(routing(true, 5)).is_err(), "not back in time");
        assert!(second.apply(routing(false, 5)).is_err(), "nor by a snapshot");
        let foreign = pb::Routing { cluster_id: "d".to_owned(), ..routing(false, 9) };
        assert!(second.apply(foreign).is_err());
        assert!(second.apply(routing(false, 9)).unwrap().nodes.is_empty());
        let versionless = pb::Routing { chains: vec![chain(1, 0, PublicState::Serving)], ..routing(true, 9) };
        assert!(second.apply(versionless).is_err());
    }

    #[test]
    fn a_node_on_this_host_is_reached_through_shared_memory() {
        let update =
            pb::Routing { nodes: vec![node(1, own_boot_id()), node(2, "elsewhere")], ..routing(false, 1) };
        let known = Routing::default().apply(update).unwrap();
        let unix = |id: u32| Some(Endpoint::Unix(PathBuf::from(format!("/tmp/{id}.sock"))));
        let tcp = |id: u32| Some(Endpoint::Tcp(format!("127.0.0.1:{}", 4000 + id).parse().unwrap()));
        assert_eq!(known.endpoint(NodeId(1), Transport::Auto), unix(1));
        assert_eq!(known.endpoint(NodeId(2), Transport::Auto), tcp(2));
        assert_eq!(known.endpoint(NodeId(1), Transport::Tcp), tcp(1));
        assert_eq!(known.endpoint(NodeId(2), Transport::Shm), unix(2));
        assert_eq!(known.endpoint(NodeId(3), Transport::Auto), None);
        assert!(known.meta_addresses().is_empty());
    }

    #[test]
    fn of_several_metadata_services_the_one_with_the_newest_term_is_called() {
        let meta = |id, epoch| pb::Node { kind: NodeKind::NodeMeta as i32, epoch, ..node(id, "a") };
        let called = |nodes: Vec<pb::Node>| {
            let update = pb::Routing { nodes, ..routing(false, 1) };
            Routing::default().apply(update).unwrap().primary_meta().map(|node| node.id)
        };
        let lost = pb::Node { status: pb::NodeStatus::Failed as i32, ..meta(102, 20) };
        let mute = pb::Node { lane_address: String::new(), ..meta(103, 30) };
        assert_eq!(called(vec![meta(100, 7), meta(101, 9), lost.clone(), mute.clone()]), Some(101));
        assert_eq!(called(vec![meta(100, 9), meta(101, 7), lost.clone(), mute.clone()]), Some(100));
        assert_eq!(
            called(vec![meta(101, 0), meta(100, 0)]),
            Some(100),
            "standbys refuse, and are asked again"
        );
        assert_eq!(called(vec![node(1, "a"), lost, mute]), None);
    }

    #[test]
    fn a_waiter_is_woken_by_a_newer_version_and_by_the_end() {
        let table = RoutingTable::fixed(Routing { version: 1, ..Routing::default() });
        let far = Instant::now() + Duration::from_secs(60);
        thread::scope(|scope| {
            let waiter = scope.spawn(|| table.wait_newer(1, far).version);
            table.replace(Routing { version: 2, ..Routing::default() });
            assert_eq!(waiter.join().unwrap(), 2);
            let waiter = scope.spawn(|| table.wait_newer(2, far).version);
            table.stop();
            assert_eq!(waiter.join().unwrap(), 2);
        });
        assert_eq!(table.wait_newer(9, Instant::now()).version, 2);
    }

    #[test]
    fn a_listener_hears_of_each_version() {
        let table = RoutingTable::fixed(Routing { version: 1, ..Routing::default() });
        let heard = Arc::new(Mutex::new(Vec::new()));
        let versions = heard.clone();
        table.listen(move |routing| versions.lock().push(routing.version));
        table.replace(Routing { version: 4, ..Routing::default() });
        assert_eq!(*heard.lock(), [1, 4]);
    }

    #[test]
    fn after_a_poll_that_panics_routing_is_followed_further() {
        let table = RoutingTable::fixed(Routing { version: 1, ..Routing::default() });
        let panicked = AtomicBool::new(false);
        let shared = table.shared.clone();
        thread::scope(|scope| {
            scope.spawn(|| {
                shared.follow(|current| {
                    assert!(panicked.swap(true, Ordering::Relaxed), "a mistake, on purpose");
                    Ok(Routing { version: 2, ..current.clone() })
                });
            });
            let newer = table.wait_newer(1, Instant::now() + Duration::from_secs(60));
            table.stop();
            assert_eq!(newer.version, 2);
        });
    }
}
