//! Who holds what: mgmtd's routing, kept current, and where a file's chunks lie.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::Transport;
use super::lane::Lane;
use crate::error::Result;
use crate::net::Endpoint;
use crate::types::{Chain, ChainId, NodeId};
use crate::wire::pb;

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
    /// The routing after a snapshot or a delta of mgmtd. Errors: `CorruptData` if it makes no sense.
    pub fn apply(&self, update: pb::Routing) -> Result<Routing> {
        let _ = update;
        todo!("lands with the routing thread")
    }

    /// Where to reach a storage node: its Unix socket if it is on this host (`Auto`), else TCP.
    pub fn endpoint(&self, node: NodeId, transport: Transport) -> Option<Endpoint> {
        let _ = (node, transport);
        todo!("lands with the routing thread")
    }

    /// Lane addresses of the nodes of one kind that are connected.
    pub fn lane_addresses(&self, kind: pb::NodeKind) -> Vec<String> {
        let _ = kind;
        todo!("lands with the routing thread")
    }

    /// The chains of a layout's stripe in permuted order: chunk `i` lies on `stripe[i % stripe.len()]`.
    /// Errors: `StaleRouting` if its table is not known yet, `InvalidArgument` if the layout makes no sense.
    pub fn stripe(&self, layout: &pb::Layout) -> Result<Arc<[ChainId]>> {
        let _ = layout;
        todo!("lands with the routing thread")
    }
}

/// Keeps routing current: one thread holds a long poll at mgmtd. Ends on drop.
#[derive(Debug)]
pub struct RoutingTable {}

impl RoutingTable {
    /// Fetches the first snapshot before `deadline`, then follows.
    pub fn start(mgmtd: Arc<Lane>, deadline: Instant) -> Result<Arc<RoutingTable>> {
        let _ = (mgmtd, deadline);
        todo!("lands with the routing thread")
    }

    /// A table that stays as it is, for tests and tools.
    pub fn fixed(routing: Routing) -> Arc<RoutingTable> {
        let _ = routing;
        todo!("lands with the routing thread")
    }

    pub fn current(&self) -> Arc<Routing> {
        todo!("lands with the routing thread")
    }

    /// Waits for a version above `version` until `deadline`, hurrying the thread if it sleeps after a failure.
    /// Returns what is current then.
    pub fn wait_newer(&self, version: u64, deadline: Instant) -> Arc<Routing> {
        let _ = (version, deadline);
        todo!("lands with the routing thread")
    }

    /// Calls `hook` with every new routing, from the routing thread.
    pub fn on_change(&self, hook: impl Fn(&Arc<Routing>) + Send + Sync + 'static) {
        let _ = hook;
        todo!("lands with the routing thread")
    }

    pub fn stop(&self) {
        todo!("lands with the routing thread")
    }
}
