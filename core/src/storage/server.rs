//! The life of a node: its data server and its threads.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::lock::{Mutex, RwLock};

use super::counters::Counters;
use super::hold::Hold;
use super::lease::Lease;
use super::node::{ChainStatus, Node, TargetReport};
use super::peers::Peers;
use super::redrive;
use super::redrive_queue::Redrive;
use super::repair;
use super::repair_queue::Repairs;
use super::table::Table;
use crate::buffer::BufferPool;
use crate::chunk::{self, Engine};
use crate::cluster::{Endpoints, Transport};
use crate::error::{Error, Kind, Result};
use crate::net::{Certificates, Credential, Secret, Server, ServerOptions, Wire};
use crate::rdma;
use crate::types::{CHUNK_BYTES_MAX, NodeId};
use crate::wire::pb;
use crate::wire::pb::claims::Role;

/// Buffers for payloads that are read from the disk to be sent, each for a chunk of the usual size.
const BUFFER_BYTES: usize = (1 << 20) + (64 << 10);
const BUFFERS: usize = 64;
/// Threads for what no caller carries out.
pub(super) const REDRIVE_THREADS: usize = 4;
const _: () = assert!(REDRIVE_THREADS > 0 && BUFFERS > 0);
const _: () = assert!(BUFFER_BYTES < CHUNK_BYTES_MAX as usize, "larger payloads get memory of their own");

/// How a node runs.
#[derive(Clone, Debug)]
pub struct NodeOptions {
    pub node: NodeId,
    pub directory: PathBuf,
    pub secret: Secret,
    pub tcp: Option<SocketAddr>,
    pub unix: Option<PathBuf>,
    /// Connections served at once.
    pub threads_max: usize,
    pub engine: chunk::EngineOptions,
    /// Acknowledge an update only when it is durable against power loss.
    pub sync_updates: bool,
    /// How to reach the other nodes, and whether clients may reach this one by RDMA.
    pub transport: Transport,
    pub rdma: rdma::RdmaOptions,
    pub connections_per_peer: usize,
    /// Of a cluster of several machines; `None`: in clear text.
    pub certificates: Option<Certificates>,
    /// What protects frames over TCP where there are certificates.
    pub wire: Wire,
}

impl NodeOptions {
    pub fn new(node: NodeId, directory: PathBuf, secret: Secret) -> NodeOptions {
        NodeOptions {
            node,
            directory,
            secret,
            tcp: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
            unix: None,
            threads_max: 512,
            engine: chunk::EngineOptions::default(),
            sync_updates: false,
            transport: Transport::Auto,
            rdma: rdma::RdmaOptions::default(),
            connections_per_peer: 32,
            certificates: None,
            wire: Wire::default(),
        }
    }
}

/// A running node: its data server and its threads.
pub struct StorageServer {
    pub(super) node: Arc<Node>,
    server: Server,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl StorageServer {
    /// Open the directory and begin to listen. Without routing and lease every request is refused.
    pub fn start(options: NodeOptions) -> Result<StorageServer> {
        assert!(options.threads_max > 1, "a server serves clients and nodes");
        let endpoints = Endpoints::new(options.transport, options.rdma)?;
        let engine = Engine::open(&options.directory, options.engine.clone()).map_err(opening)?;
        let pending = engine.open_report().pending.clone();
        let claims = pb::Claims { role: Role::Service as i32, ..pb::Claims::default() };
        let credential = Credential::from(options.secret.mint(&claims));
        let credential = credential.with_certificates(options.certificates.clone());
        let node = Arc::new(Node {
            id: options.node,
            engine,
            table: Table::new(pending),
            peers: Peers::new(credential, endpoints, options.connections_per_peer),
            lease: Lease::default(),
            hold: Hold::default(),
            redrive: Redrive::default(),
            repairs: Repairs::default(),
            counters: Counters::default(),
            sync_updates: options.sync_updates,
            buffers: BufferPool::new(BUFFER_BYTES, BUFFERS)?,
            routing: RwLock::default(),
            routing_change: Mutex::default(),
            tickets: AtomicU64::new(1),
            bad: AtomicBool::new(false),
            wiping: Mutex::default(),
            stopping: AtomicBool::new(false),
        });
        let mut server = ServerOptions::new(options.secret);
        server.tcp = options.tcp;
        server.unix = options.unix;
        server.threads_max = options.threads_max;
        (server.certificates, server.wire) = (options.certificates, options.wire);
        server.fabric = node.peers.fabric().cloned();
        let server = Server::start(server, node.clone())?;
        let mut threads = Vec::new();
        for _ in 0..REDRIVE_THREADS {
            let node = node.clone();
            let builder = std::thread::Builder::new().name("luciola-redrive".into());
            threads.push(builder.spawn(move || redrive::run(&node))?);
        }
        let repairer = node.clone();
        let builder = std::thread::Builder::new().name("luciola-repair".into());
        threads.push(builder.spawn(move || repair::run(&repairer))?);
        Ok(StorageServer { node, server, threads: Mutex::new(threads) })
    }

    pub fn id(&self) -> NodeId {
        self.node.id
    }

    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.server.tcp_address()
    }

    /// Apply a snapshot or a delta of the manager's; return the version then known.
    pub fn set_routing(&self, mut update: pb::Routing) -> Result<u64> {
        let (revocations, cluster) = (update.revocations.take(), update.cluster_id.clone());
        let version = self.node.set_routing(update)?;
        if !cluster.is_empty() {
            self.server.authority().set_cluster(&cluster);
        }
        if let Some(revocations) = revocations {
            self.server.authority().set_revocations(revocations);
        }
        Ok(version)
    }

    /// `until_ns` on the monotonic clock; see [`Lease`].
    pub fn set_lease(&self, until_ns: u64, routing_version: u64) {
        let known = self.node.routing().version;
        self.node.lease.set(until_ns, routing_version, known);
        // Routing may have become that new since it was looked at.
        self.node.lease.routing_known(self.node.routing().version);
    }

    pub fn drop_lease(&self) {
        self.node.lease.drop_now();
    }

    pub fn lease_left(&self) -> Duration {
        Duration::from_nanos(self.node.lease.left_ns())
    }

    pub fn targets(&self) -> Vec<TargetReport> {
        self.node.targets()
    }

    /// How long the oldest access to the disk has been under way. Waits for nothing.
    pub fn oldest_access(&self) -> Duration {
        self.node.engine.oldest_access()
    }

    /// Refuse everything from now on: the disk hangs. Waits for nothing.
    pub fn give_up_disk(&self) {
        self.node.lease.drop_now();
        self.node.mark_bad("an access does not return");
    }

    pub fn chain_states(&self) -> Vec<ChainStatus> {
        self.node.chain_states()
    }

    pub fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut all = self.node.counters.snapshot();
        all.push(("connections", self.server.connection_count() as u64));
        all.push(("machines", self.node.table.len() as u64));
        if let Some(fabric) = self.node.peers.fabric() {
            all.extend(fabric.counters().all());
        }
        all
    }

    /// Stop serving, wait for the threads, and make everything durable. Idempotent. Errors: it is not durable.
    pub fn stop(&self) -> Result<()> {
        self.end();
        Ok(self.node.engine.sync()?)
    }

    /// As `kill -9` would end it, as far as that is possible within one process: nothing is synced.
    #[doc(hidden)]
    pub fn end(&self) {
        self.node.stopping.store(true, Ordering::Release);
        self.node.lease.drop_now();
        self.server.stop();
        self.node.redrive.stop();
        self.node.repairs.stop();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            if thread.join().is_err() {
                log::error!("node {}: stop: a thread has panicked", self.node.id);
            }
        }
        self.node.peers.clear();
    }
}

impl Drop for StorageServer {
    fn drop(&mut self) {
        self.end();
    }
}

fn opening(error: chunk::OpenError) -> Error {
    use chunk::OpenError::*;
    let kind = match &error {
        Locked { .. } => Kind::Busy,
        Foreign { .. } | Format { .. } | RecordFormat { .. } | Option(_) => Kind::ConfigError,
        Missing { .. } | OtherEngine { .. } => Kind::ConfigError,
        Damaged { .. } => Kind::CorruptData,
        Io { .. } | Index { .. } => Kind::Other,
    };
    Error::new(kind, error.to_string())
}
