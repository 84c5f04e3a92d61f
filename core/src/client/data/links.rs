//! How this client reaches each storage node.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lock::{Mutex, RwLock};

use crate::cluster::routing::Routing;
use crate::cluster::{Endpoints, Transport};
use crate::net::{ConnectError, Credential, Endpoint, Pool};
use crate::types::NodeId;

/// A node whose connection failed is not asked for reads so long, if another replica can answer.
const SUSPECT_TIME: Duration = Duration::from_secs(1);
/// A socket on this host that cannot be used (another user's, another mount namespace) is tried again after this.
const SOCKET_RETRY: Duration = Duration::from_secs(10);

/// The connections to one node.
#[derive(Debug)]
pub(super) struct NodeLink {
    preferred: Arc<Pool>,
    /// TCP, where the socket is preferred but may turn out not to be usable.
    fallback: Option<Arc<Pool>>,
    avoid_preferred_until: Mutex<Option<Instant>>,
    suspect_until: Mutex<Option<Instant>>,
}

impl NodeLink {
    /// Whether memory is shared with the node.
    pub(super) fn is_local(&self) -> bool {
        matches!(self.preferred.endpoint(), Endpoint::Unix(_)) && !is_before(&self.avoid_preferred_until)
    }

    /// The pool to use, and the one to use if it turns out that the first cannot be.
    pub(super) fn pools(&self) -> [Arc<Pool>; 2] {
        let fallback = self.fallback.as_ref().unwrap_or(&self.preferred);
        let first = if is_before(&self.avoid_preferred_until) { fallback } else { &self.preferred };
        [first.clone(), fallback.clone()]
    }

    /// Learns from a failed attempt to connect through `pool`; true if the other pool may be used at once.
    pub(super) fn connect_failed(&self, pool: &Arc<Pool>, error: &ConnectError) -> bool {
        let has_other = self.fallback.is_some() && Arc::ptr_eq(pool, &self.preferred);
        if has_other && matches!(error, ConnectError::Io(_)) {
            *self.avoid_preferred_until.lock() = Some(Instant::now() + SOCKET_RETRY);
            return true;
        }
        // The node may be down rather than its socket unusable: back to the preferred pool when it comes up.
        *self.avoid_preferred_until.lock() = None;
        false
    }

    pub(super) fn suspect(&self) {
        *self.suspect_until.lock() = Some(Instant::now() + SUSPECT_TIME);
    }

    pub(super) fn is_suspect(&self) -> bool {
        is_before(&self.suspect_until)
    }
}

fn is_before(time: &Mutex<Option<Instant>>) -> bool {
    time.lock().is_some_and(|until| Instant::now() < until)
}

/// One link per node, for the routing last seen.
#[derive(Debug)]
pub(super) struct Links {
    credential: Credential,
    connections_max: usize,
    endpoints: Endpoints,
    known: RwLock<Known>,
}

#[derive(Debug, Default)]
struct Known {
    version: u64,
    links: HashMap<NodeId, Arc<NodeLink>>,
}

impl Links {
    pub(super) fn new(credential: Credential, connections_max: usize, endpoints: Endpoints) -> Links {
        Links { credential, connections_max, endpoints, known: RwLock::default() }
    }

    /// The way to `node`; `None` if routing does not say where it is.
    pub(super) fn get(&self, routing: &Routing, node: NodeId) -> Option<Arc<NodeLink>> {
        {
            let known = self.known.read();
            if known.version == routing.version
                && let Some(link) = known.links.get(&node)
            {
                return Some(link.clone());
            }
        }
        let preferred = self.endpoints.endpoint(routing, node)?;
        let mut known = self.known.write();
        if known.version < routing.version {
            known.version = routing.version;
            // Nodes that moved are reached by new links; requests under way keep their old link.
            known.links.retain(|node, link| {
                self.endpoints.endpoint(routing, *node).as_ref() == Some(link.preferred.endpoint())
            });
        }
        if let Some(link) = known.links.get(&node).filter(|link| *link.preferred.endpoint() == preferred) {
            return Some(link.clone());
        }
        let link = Arc::new(self.open(routing, node, preferred));
        known.links.insert(node, link.clone());
        Some(link)
    }

    fn open(&self, routing: &Routing, node: NodeId, preferred: Endpoint) -> NodeLink {
        let pool = |endpoint| Arc::new(Pool::new(endpoint, self.credential.clone(), self.connections_max));
        let fallback = match (&preferred, self.endpoints.transport()) {
            (Endpoint::Unix(_), Transport::Auto) => self.endpoints.without_socket(routing, node),
            _ => None,
        };
        NodeLink {
            preferred: pool(preferred),
            fallback: fallback.map(pool),
            avoid_preferred_until: Mutex::default(),
            suspect_until: Mutex::default(),
        }
    }
}
