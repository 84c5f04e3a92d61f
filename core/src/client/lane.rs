//! Calls to mgmtd and meta over the lane (docs/protocol.md): framed protobuf on blocking sockets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message;

use crate::error::Result;
use crate::wire::credential::Credential;
use crate::wire::pb::Method;

/// How a lane retries.
#[derive(Clone, Debug)]
pub struct LaneOptions {
    pub retry_first: Duration,
    pub retry_max: Duration,
    pub connections_max: usize,
}

impl Default for LaneOptions {
    fn default() -> LaneOptions {
        LaneOptions {
            retry_first: Duration::from_millis(10),
            retry_max: Duration::from_secs(1),
            connections_max: 16,
        }
    }
}

/// Calls one service that listens at one of several addresses. A call goes to the address that answered last,
/// and on to the next when a connection fails.
#[derive(Debug)]
pub struct Lane {}

impl Lane {
    /// `addresses` are "host:port". Connects when the first call is made.
    pub fn new(addresses: Vec<String>, credential: Credential, options: LaneOptions) -> Arc<Lane> {
        let _ = (addresses, credential, options);
        todo!("lands with the transports")
    }

    /// Replaces the addresses, as routing tells them. Calls under way are not disturbed.
    pub fn set_addresses(&self, addresses: Vec<String>) {
        let _ = addresses;
        todo!("lands with the transports")
    }

    /// Calls `method`. The same bytes are sent again, with growing pauses, after a lost connection and after
    /// `Unavailable`, `MaybeCommitted` and `Busy`, until `deadline`: the request's `Caller` makes it idempotent.
    /// All other errors of the service are returned as they come, `Conflict` included.
    pub fn call<Q: Message, R: Message + Default>(
        &self,
        method: Method,
        request: &Q,
        deadline: Instant,
    ) -> Result<R> {
        let _ = (method, request, deadline);
        todo!("lands with the transports")
    }
}
