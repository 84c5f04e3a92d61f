//! File data: striping over chains, batching per node, choice of replica, retry through failover.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Transport;
use super::routing::RoutingTable;
use crate::buffer::{BufferPool, Placement};
use crate::error::Result;
use crate::types::{ClientId, ContentId};
use crate::wire::credential::Credential;
use crate::wire::pb::Layout;

/// How a data client behaves; `ClientConfig` has the reasons.
#[derive(Clone, Debug)]
pub struct DataOptions {
    pub client: ClientId,
    pub retry_first: Duration,
    pub retry_max: Duration,
    pub connections_per_node: usize,
    pub transport: Transport,
}

/// One read: `into.len()` bytes of `content` from `offset`.
#[derive(Clone, Debug)]
pub struct Read {
    pub layout: Layout,
    pub content: ContentId,
    pub offset: u64,
    pub into: Placement,
}

/// One write: `payload` at `offset` of `content`.
#[derive(Clone, Debug)]
pub struct Write {
    pub layout: Layout,
    pub content: ContentId,
    pub offset: u64,
    pub payload: Placement,
}

/// Reads and writes file data. Knows nothing of names, lengths or permissions. Callable from any thread.
pub struct DataClient {}

impl DataClient {
    pub fn new(routing: Arc<RoutingTable>, credential: Credential, options: DataOptions) -> Arc<DataClient> {
        let _ = (routing, credential, options);
        todo!("lands with the data client")
    }

    /// Buffers that travel without a copy to nodes on this host: reads and writes whose placements lie in the
    /// region of any [`BufferPool`] or [`Region`](crate::buffer::Region) do. This pool is the client's own.
    pub fn buffers(&self) -> &BufferPool {
        todo!("lands with the data client")
    }

    /// Fills `into` from `offset`. Holes, and everything beyond the last byte written, read as zeros: the caller
    /// clips by the file's length. Returns the number of bytes up to the last one that a chunk holds.
    pub fn read(
        &self,
        layout: &Layout,
        content: ContentId,
        offset: u64,
        into: &Placement,
        deadline: Instant,
    ) -> Result<usize> {
        let _ = (layout, content, offset, into, deadline);
        todo!("lands with the data client")
    }

    /// Writes `payload` at `offset`; acknowledged means committed on every replica that counts. The payload must
    /// not change meanwhile. After an error any part of it may have been written.
    pub fn write(
        &self,
        layout: &Layout,
        content: ContentId,
        offset: u64,
        payload: &Placement,
        deadline: Instant,
    ) -> Result<()> {
        let _ = (layout, content, offset, payload, deadline);
        todo!("lands with the data client")
    }

    /// Many reads at once, of one or many files, batched by node; one result each.
    pub fn read_many(&self, reads: &[Read], deadline: Instant) -> Vec<Result<usize>> {
        let _ = (reads, deadline);
        todo!("lands with the data client")
    }

    /// Many writes at once; one result each. Writes of one list that overlap happen in the list's order.
    pub fn write_many(&self, writes: &[Write], deadline: Instant) -> Vec<Result<()>> {
        let _ = (writes, deadline);
        todo!("lands with the data client")
    }

    /// Makes everything acknowledged in `[offset, offset + length)` of `content` durable against power loss on
    /// every replica.
    pub fn sync(
        &self,
        layout: &Layout,
        content: ContentId,
        offset: u64,
        length: u64,
        deadline: Instant,
    ) -> Result<()> {
        let _ = (layout, content, offset, length, deadline);
        todo!("lands with the data client")
    }

    /// Cuts or extends one chunk to `length` bytes.
    pub fn truncate_chunk(
        &self,
        layout: &Layout,
        content: ContentId,
        index: u32,
        length: u32,
        deadline: Instant,
    ) -> Result<()> {
        let _ = (layout, content, index, length, deadline);
        todo!("lands with the data client")
    }
}
