//! Where chains are, and how their nodes are reached: what each kind of request stands on.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::links::Links;
use super::locks::ChunkLocks;
use super::sequences::Sequences;
use crate::buffer::BufferPool;
use crate::cluster::Endpoints;
use crate::cluster::backoff::Backoff;
use crate::cluster::routing::{Routing, RoutingTable};
use crate::types::{ChainId, ClientId, NodeId};
use crate::wire::credential::Credential;

/// Buffers of the client's own, for data in memory that cannot be shared: as many as threads that read and write
/// such data at once. Memory is used only once they are.
const BUFFER_BYTES: usize = 1 << 20;
const BUFFERS: usize = 32;

/// How a data client behaves; `ClientConfig` has the reasons.
#[derive(Clone, Debug)]
pub struct DataOptions {
    pub client: ClientId,
    pub retry_first: Duration,
    pub retry_max: Duration,
    pub connections_per_node: usize,
    pub endpoints: Endpoints,
}

pub(super) struct ChainAccess {
    pub(super) options: DataOptions,
    pub(super) routing: Arc<RoutingTable>,
    pub(super) credential: Credential,
    pub(super) links: Links,
    pub(super) locks: ChunkLocks,
    pub(super) sequences: Sequences,
    pub(super) buffers: BufferPool,
}

impl ChainAccess {
    pub(super) fn new(
        routing: Arc<RoutingTable>,
        credential: Credential,
        options: DataOptions,
    ) -> ChainAccess {
        ChainAccess {
            routing,
            credential: credential.clone(),
            links: Links::new(credential, options.connections_per_node, options.endpoints.clone()),
            locks: ChunkLocks::default(),
            sequences: Sequences::default(),
            buffers: BufferPool::new(BUFFER_BYTES, BUFFERS).expect("address space for the client's buffers"),
            options,
        }
    }

    pub(super) fn backoff(&self) -> Backoff {
        Backoff::new(self.options.retry_first, self.options.retry_max)
    }

    /// Wait for newer routing or a little while; false once the deadline has passed.
    pub(super) fn pause(&self, routing: &Routing, backoff: &mut Backoff, deadline: Instant) -> bool {
        let Some(time) = backoff.pause(deadline) else {
            return false;
        };
        if self.routing.wait_newer(routing.version, Instant::now() + time).version > routing.version {
            *backoff = self.backoff();
        }
        true
    }
}

/// A node that is asked for something of a chain.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) node: NodeId,
    pub(super) chain: ChainId,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node {} for chain {}", self.node, self.chain)
    }
}
