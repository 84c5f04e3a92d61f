//! Connections to the other nodes, and how many sends may build payloads at once.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use crate::lock::{Condvar, Mutex};

use crate::cluster::Endpoints;
use crate::cluster::routing::Routing;
use crate::net::{Credential, Endpoint, Pool};
use crate::rdma::Fabric;
use crate::types::{NodeId, Status};

/// Sends that build their payload in our own memory, at once for each number of members that follow: with
/// `SEND_BYTES_MAX` the bound of that memory.
const BUILDERS_MAX: usize = 8;

/// Permission to build payloads. Returned on drop.
pub struct Permit<'a> {
    peers: &'a Peers,
    following: usize,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let mut builders = self.peers.builders.lock();
        let count = builders.get_mut(&self.following).expect("counted when it was permitted");
        assert!(*count > 0 && *count <= BUILDERS_MAX, "{count} sends build payloads");
        *count -= 1;
        drop(builders);
        self.peers.built.notify_all();
    }
}

/// Connections to the other nodes. A send is answered when all later members have answered, so there is a pool
/// for every number of members that follow: those of the last hop never wait for others (S3).
pub struct Peers {
    credential: Credential,
    endpoints: Endpoints,
    connections_max: usize,
    pools: Mutex<HashMap<(Endpoint, usize), Arc<Pool>>>,
    builders: Mutex<HashMap<usize, usize>>,
    built: Condvar,
}

impl Peers {
    pub fn new(credential: Credential, endpoints: Endpoints, connections_max: usize) -> Peers {
        assert!(connections_max > 0, "updates are forwarded over at least one connection");
        let (pools, builders, built) = (Mutex::default(), Mutex::default(), Condvar::new());
        Peers { credential, endpoints, connections_max, pools, builders, built }
    }

    /// Connections to `node` for requests that `following` further members must answer too.
    pub fn pool(&self, routing: &Routing, node: NodeId, following: usize) -> Result<Arc<Pool>, Status> {
        let endpoint = self.endpoints.endpoint(routing, node).ok_or(Status::Disconnected)?;
        let mut pools = self.pools.lock();
        // The processor that polls is often the one that the other node, or the client, needs.
        let new = || {
            let pool = Pool::new(endpoint.clone(), self.credential.clone(), self.connections_max);
            Arc::new(pool.without_polling())
        };
        Ok(pools.entry((endpoint.clone(), following)).or_insert_with(new).clone())
    }

    /// As with connections, those of the last hop never wait for others (S3).
    pub fn permit(&self, following: usize, deadline: Instant) -> Result<Permit<'_>, Status> {
        let mut builders = self.builders.lock();
        while builders.get(&following).is_some_and(|count| *count >= BUILDERS_MAX) {
            if self.built.wait_until(&mut builders, deadline).timed_out() {
                return Err(Status::Timeout);
            }
        }
        let count = builders.entry(following).or_default();
        assert!(*count < BUILDERS_MAX, "waited until one more may build");
        *count += 1;
        Ok(Permit { peers: self, following })
    }

    /// The RDMA of this node, also of its server.
    pub fn fabric(&self) -> Option<&Arc<Fabric>> {
        self.endpoints.fabric()
    }

    pub fn clear(&self) {
        for (_, pool) in self.pools.lock().drain() {
            pool.clear();
        }
    }
}
