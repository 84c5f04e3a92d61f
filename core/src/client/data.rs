//! File data: striping over chains, batching per node, choice of replica, retry through failover.
//!
//! A call runs on its caller's thread. It is split at chunk boundaries; the pieces for one node travel together,
//! and batches for several nodes are all sent before the first answer is waited for.
//!
//! - D1 A read returns what one serving replica had committed; bytes that no chunk holds are zeros.
//! - D2 An acknowledged write is committed on every member of the chain that counts. It is executed once, however
//!   often it was sent: it keeps its tag, and a chunk has at most one update of this client in flight.
//! - D3 Memory handed in is never touched after a call has *succeeded*. After a timeout a server on this host may
//!   still touch memory in a shared region; a pooled buffer returns to its pool only when it no longer can (N2).

mod access;
mod batches;
mod links;
mod locks;
mod reads;
mod sequences;
mod syncs;
mod updates;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::slice;
use std::sync::Arc;
use std::time::Instant;

use super::chunk_slice::{ChunkSlice, chunk_slices, require_range};
use crate::lock::RwLock;

use crate::buffer::{BufferPool, Placement};
use crate::cluster::attempts::Attempts;
use crate::cluster::routing::RoutingTable;
use crate::error::{Error, Kind, Result};
use crate::log_rate_limit::Warnings;
use crate::types::{CHUNK_BYTES_MAX, ChainId, ChunkId, ContentId, Op, Status, Version};
use crate::wire::credential::Credential;
use crate::wire::pb::Layout;

pub use access::DataOptions;
use access::{ChainAccess, Peer};

/// Stripes remembered; a stripe is a few chain numbers, and computed again when forgotten.
const STRIPES_MAX: usize = 8192;

static GIVEN_UP: Warnings = Warnings::new();

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
pub struct DataClient {
    access: ChainAccess,
    stripes: RwLock<HashMap<Layout, Arc<[ChainId]>>>,
}

impl DataClient {
    /// A client that finds nodes and chains in `routing`.
    pub fn new(routing: Arc<RoutingTable>, credential: Credential, options: DataOptions) -> Arc<DataClient> {
        let access = ChainAccess::new(routing, credential, options);
        Arc::new(DataClient { access, stripes: RwLock::default() })
    }

    /// Buffers that travel without a copy to nodes on this host: reads and writes whose placements lie in the
    /// region of any [`BufferPool`] or [`Region`](crate::buffer::Region) do. This pool is the client's own.
    pub fn buffers(&self) -> &BufferPool {
        &self.access.buffers
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
        let mut pieces = Vec::with_capacity(1 + into.len() / (layout.chunk_bytes as usize).max(1));
        self.split_read(0, layout, content, offset, into, deadline, &mut pieces)?;
        reads::run(&self.access, &mut pieces, deadline);
        self.finish_read(&pieces, deadline)
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
        let mut pieces = Vec::new();
        self.split_write(0, layout, content, offset, payload, deadline, &mut pieces)?;
        // One write touches every chunk once.
        updates::run(&self.access, &mut pieces, deadline);
        pieces.iter().try_for_each(|piece| self.finish_update(piece, deadline))
    }

    /// Many reads at once, of one or many files, batched by node; one result each.
    pub fn read_many(&self, reads: &[Read], deadline: Instant) -> Vec<Result<usize>> {
        let mut pieces = Vec::with_capacity(reads.len());
        let mut results: Vec<Result<usize>> = Vec::with_capacity(reads.len());
        for (request, read) in reads.iter().enumerate() {
            let Read { layout, content, offset, into } = read;
            let split = self.split_read(request, layout, *content, *offset, into, deadline, &mut pieces);
            results.push(split.map(|()| 0));
        }
        reads::run(&self.access, &mut pieces, deadline);
        for of_one in pieces.chunk_by(|one, next| one.request == next.request) {
            let result = &mut results[of_one[0].request];
            if result.is_ok() {
                *result = self.finish_read(of_one, deadline);
            }
        }
        results
    }

    /// Many writes at once; one result each. Writes of one list that overlap happen in the list's order.
    pub fn write_many(&self, writes: &[Write], deadline: Instant) -> Vec<Result<()>> {
        let mut pieces = Vec::with_capacity(writes.len());
        let mut results: Vec<Result<()>> = Vec::with_capacity(writes.len());
        for (request, write) in writes.iter().enumerate() {
            let Write { layout, content, offset, payload } = write;
            results.push(self.split_write(
                request,
                layout,
                *content,
                *offset,
                payload,
                deadline,
                &mut pieces,
            ));
        }
        while !pieces.is_empty() {
            // The first update of each chunk; the others wait for the next round.
            let mut chunks = HashSet::with_capacity(pieces.len());
            let (mut now, later): (Vec<_>, Vec<_>) =
                pieces.into_iter().partition(|piece| chunks.insert(piece.chunk));
            updates::run(&self.access, &mut now, deadline);
            for piece in &now {
                let result = &mut results[piece.request];
                if result.is_ok() {
                    *result = self.finish_update(piece, deadline);
                }
            }
            pieces = later;
        }
        results
    }

    /// The parts of `range` that lie in chunks which hold bytes there, found by reading one byte of each.
    pub fn data_extents(
        &self,
        layout: &Layout,
        content: ContentId,
        range: Range<u64>,
        deadline: Instant,
    ) -> Result<Vec<Range<u64>>> {
        let stripe = self.stripe(layout, deadline)?;
        let length = (range.end - range.start) as usize;
        let chunk_bytes = layout.chunk_bytes;
        require_range(range.start, length, chunk_bytes)?;
        let slices: Vec<ChunkSlice> = chunk_slices(range.start, length, chunk_bytes, chunk_bytes).collect();
        let bytes = Placement::from_vec(vec![0; slices.len()]);
        let ask = |(request, slice): (usize, &ChunkSlice)| {
            let chain = stripe[slice.index as usize % stripe.len()];
            let chunk = ChunkId { content, index: slice.index };
            reads::ChunkRead::new(request, 0, chain, chunk, slice.offset, bytes.slice(request..request + 1))
        };
        let mut pieces: Vec<reads::ChunkRead> = slices.iter().enumerate().map(ask).collect();
        reads::run(&self.access, &mut pieces, deadline);
        let mut held = Vec::new();
        for (slice, piece) in slices.iter().zip(&pieces) {
            if self.finish_read(slice::from_ref(piece), deadline)? > 0 {
                let start = range.start + slice.range.start as u64;
                held.push(start..start + slice.range.len() as u64);
            }
        }
        Ok(held)
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
        if length == 0 {
            return Ok(());
        }
        let stripe = self.stripe(layout, deadline)?;
        let chunk_bytes = u64::from(layout.chunk_bytes);
        let (first, last) = (offset / chunk_bytes, (offset.saturating_add(length) - 1) / chunk_bytes);
        // After as many chunks as the stripe has chains, the chains repeat.
        let count = (last - first + 1).min(stripe.len() as u64);
        let chains: BTreeSet<ChainId> =
            (first..first + count).map(|index| stripe[(index % stripe.len() as u64) as usize]).collect();
        let mut attempts = Attempts::new();
        syncs::run(&self.access, chains, deadline, &mut attempts).map_err(|status| {
            self.error(status, deadline, &attempts, format!("making content {content} durable"))
        })
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
        if length > layout.chunk_bytes {
            return Err(Error::invalid("a chunk is no longer than its layout says"));
        }
        let stripe = self.stripe(layout, deadline)?;
        let chain = stripe[index as usize % stripe.len()];
        let nothing = Placement::from_vec(Vec::new());
        let op = Op::Truncate { length };
        let mut pieces = [updates::ChunkUpdate::new(0, chain, ChunkId { content, index }, op, nothing)];
        updates::run(&self.access, &mut pieces, deadline);
        self.finish_update(&pieces[0], deadline)
    }

    /// The first `into.len()` bytes of one chunk, of the version that is returned, and how many it has of them.
    pub fn read_chunk(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        into: &Placement,
        deadline: Instant,
    ) -> Result<(usize, Version)> {
        let mut pieces = [reads::ChunkRead::new(0, 0, chain, chunk, 0, into.clone())];
        reads::run(&self.access, &mut pieces, deadline);
        Ok((self.finish_read(&pieces, deadline)?, pieces[0].version))
    }

    /// Writes `payload` at the beginning of one chunk.
    pub fn write_chunk(
        &self,
        chain: ChainId,
        chunk: ChunkId,
        payload: Placement,
        deadline: Instant,
    ) -> Result<()> {
        if payload.len() > CHUNK_BYTES_MAX as usize {
            let reason = format!("a chunk has at most {CHUNK_BYTES_MAX} bytes, not {}", payload.len());
            return Err(Error::invalid(reason));
        }
        let op = Op::Write { offset: 0, length: payload.len() as u32 };
        let mut pieces = [updates::ChunkUpdate::new(0, chain, chunk, op, payload)];
        updates::run(&self.access, &mut pieces, deadline);
        self.finish_update(&pieces[0], deadline)
    }

    /// Makes everything acknowledged on `chains` durable against power loss on every replica.
    pub fn sync_chains(&self, chains: BTreeSet<ChainId>, deadline: Instant) -> Result<()> {
        let mut attempts = Attempts::new();
        syncs::run(&self.access, chains, deadline, &mut attempts)
            .map_err(|status| self.error(status, deadline, &attempts, "making chains durable".into()))
    }

    fn stripe(&self, layout: &Layout, deadline: Instant) -> Result<Arc<[ChainId]>> {
        if let Some(stripe) = self.stripes.read().get(layout) {
            return Ok(stripe.clone());
        }
        let mut routing = self.access.routing.current();
        loop {
            match routing.stripe(layout) {
                Ok(stripe) => {
                    let mut stripes = self.stripes.write();
                    if stripes.len() >= STRIPES_MAX {
                        stripes.clear();
                    }
                    stripes.insert(*layout, stripe.clone());
                    return Ok(stripe);
                }
                // The table is newer than our routing.
                Err(error) if error.kind() == Kind::StaleRouting && Instant::now() < deadline => {
                    routing = self.access.routing.wait_newer(routing.version, deadline);
                }
                Err(error) => return Err(error),
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn split_read(
        &self,
        request: usize,
        layout: &Layout,
        content: ContentId,
        offset: u64,
        into: &Placement,
        deadline: Instant,
        pieces: &mut Vec<reads::ChunkRead>,
    ) -> Result<()> {
        let stripe = self.stripe(layout, deadline)?;
        let chunk_bytes = layout.chunk_bytes;
        require_range(offset, into.len(), chunk_bytes)?;
        for slice in chunk_slices(offset, into.len(), chunk_bytes, chunk_bytes) {
            let chain = stripe[slice.index as usize % stripe.len()];
            let chunk = ChunkId { content, index: slice.index };
            let into = into.slice(slice.range.clone());
            pieces.push(reads::ChunkRead::new(request, slice.range.start, chain, chunk, slice.offset, into));
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn split_write(
        &self,
        request: usize,
        layout: &Layout,
        content: ContentId,
        offset: u64,
        payload: &Placement,
        deadline: Instant,
        pieces: &mut Vec<updates::ChunkUpdate>,
    ) -> Result<()> {
        let stripe = self.stripe(layout, deadline)?;
        let chunk_bytes = layout.chunk_bytes;
        require_range(offset, payload.len(), chunk_bytes)?;
        for slice in chunk_slices(offset, payload.len(), chunk_bytes, chunk_bytes) {
            let chain = stripe[slice.index as usize % stripe.len()];
            let chunk = ChunkId { content, index: slice.index };
            let op = Op::Write { offset: slice.offset, length: slice.range.len() as u32 };
            let payload = payload.slice(slice.range);
            pieces.push(updates::ChunkUpdate::new(request, chain, chunk, op, payload));
        }
        Ok(())
    }

    /// Fills the gaps of one read with zeros.
    fn finish_read(&self, pieces: &[reads::ChunkRead], deadline: Instant) -> Result<usize> {
        let mut held = 0;
        for piece in pieces {
            let outcome = piece.outcome.expect("every piece has been carried out");
            let length = outcome.map_err(|status| {
                self.error(status, deadline, &piece.attempts, format!("reading chunk {}", name(piece.chunk)))
            })? as usize;
            if length < piece.into.len() {
                piece.into.slice(length..piece.into.len()).zero();
            }
            if length > 0 {
                held = piece.start + length;
            }
        }
        Ok(held)
    }

    fn finish_update(&self, piece: &updates::ChunkUpdate, deadline: Instant) -> Result<()> {
        let outcome = piece.outcome.expect("every piece has been carried out");
        outcome.map(|_| ()).map_err(|status| {
            self.error(status, deadline, &piece.attempts, format!("writing chunk {}", name(piece.chunk)))
        })
    }

    /// What the caller hears of `what`: whatever could have been retried was, until the deadline. Then an operator hears
    /// of it too.
    fn error(&self, status: Status, deadline: Instant, attempts: &Attempts<Peer>, what: String) -> Error {
        if status == Status::Denied && self.access.credential.is_refused() {
            return Error::new(Kind::Unauthenticated, self.access.credential.explain()).context(what);
        }
        if !status.is_retryable() || Instant::now() < deadline {
            return Error::from(status).context(what);
        }
        let error = Error::timeout(format!("{status} ({attempts})")).context(what);
        GIVEN_UP.warn(format_args!("client {}: given up: {error}", self.access.options.client));
        error
    }
}

impl fmt::Debug for DataClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DataClient {{ client: {}, {:?} }}", self.access.options.client, self.access.routing)
    }
}

fn name(chunk: ChunkId) -> String {
    format!("{} of content {}", chunk.index, chunk.content)
}
