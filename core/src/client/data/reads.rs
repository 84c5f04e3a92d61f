//! Reads: choice of a replica, and what to do when it cannot answer.

use std::time::{Duration, Instant};

use super::access::{ChainAccess, Peer};
use super::batches::{Batch, BatchOps, Exchange, carry_out, with_room};
use crate::buffer::Placement;
use crate::cancel::is_cancelled;
use crate::cluster::attempts::{Attempts, Reached};
use crate::cluster::routing::Routing;
use crate::net::Connection;
use crate::types::{
    ChainId, ChainMember, ChainVersion, ChunkId, NodeId, ReadOp, ReadResult, Status, Version,
};

/// Most bytes read by one batch: enough to hide its round trip, few enough that several connections share a large
/// read.
const BATCH_BYTES: usize = 2 << 20;
/// A node that has not answered a read for so long is given up for another replica, where the memory is not registered.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// The same where the memory is registered, and its owner reads into other memory then: soon, because a program waits.
const SHARED_TIMEOUT: Duration = Duration::from_secs(2);
/// Reads into memory of this process alone, from a node on this host: from here on it is cheaper to let the node
/// fill a shared buffer and to copy that, than to send the bytes through the socket.
const BOUNCE_BYTES_MIN: usize = 32 << 10;

/// Part of a read that is in one chunk.
pub(super) struct ChunkRead {
    /// Which read of the caller's list it belongs to, and where in it it begins.
    pub(super) request: usize,
    pub(super) start: usize,
    pub(super) chain: ChainId,
    pub(super) chunk: ChunkId,
    pub(super) offset: u32,
    pub(super) into: Placement,
    /// Bytes that the chunk had; the rest of `into` is untouched.
    pub(super) outcome: Option<Result<u32, Status>>,
    /// Of the chunk that was read; 0 if there is none.
    pub(super) version: Version,
    pub(super) attempts: Attempts<Peer>,
    last: Status,
    /// Replicas that could not answer since the last pause.
    avoided: Vec<NodeId>,
    /// How many of them because their copy is damaged.
    damaged: usize,
    to_tail: bool,
    /// Nothing can be tried before a pause.
    exhausted: bool,
}

impl ChunkRead {
    pub(super) fn new(
        request: usize,
        start: usize,
        chain: ChainId,
        chunk: ChunkId,
        offset: u32,
        into: Placement,
    ) -> ChunkRead {
        ChunkRead {
            request,
            start,
            chain,
            chunk,
            offset,
            into,
            outcome: None,
            version: Version(0),
            attempts: Attempts::new(),
            last: Status::NotServing,
            avoided: Vec::new(),
            damaged: 0,
            to_tail: false,
            exhausted: false,
        }
    }

    fn answered(&mut self, node: NodeId, result: &ReadResult, routing_is_newer: bool) {
        self.attempts.reached(Reached::Answered);
        self.last = result.status;
        match result.status {
            Status::Ok => {
                self.version = result.version;
                self.outcome = Some(Ok(result.length));
            }
            Status::NotFound => self.outcome = Some(Ok(0)),
            // The tail always knows; if even it is waiting for a commit, so must we.
            Status::Dirty if self.to_tail => self.exhausted = true,
            Status::Dirty => self.to_tail = true,
            Status::WrongChainVersion | Status::NotHead => self.exhausted = !routing_is_newer,
            Status::Checksum | Status::Io => {
                self.damaged += 1;
                self.avoided.push(node);
            }
            status if status.is_retryable() => self.avoided.push(node),
            status => self.outcome = Some(Err(status)),
        }
    }

    fn after_pause(&mut self) {
        self.avoided.clear();
        self.damaged = 0;
        self.exhausted = false;
    }
}

/// Reads all `pieces`; afterwards each has an outcome.
pub(super) fn run(access: &ChainAccess, pieces: &mut [ChunkRead], deadline: Instant) {
    let mut backoff = access.backoff();
    loop {
        let routing = access.routing.current();
        let batches = batches(access, &routing, pieces, deadline);
        carry_out(batches, &mut ReadExchange { access, routing: &routing, pieces });
        if pieces.iter().all(|piece| piece.outcome.is_some()) {
            return;
        }
        let is_over = is_cancelled();
        if !is_over && pieces.iter().any(|piece| piece.outcome.is_none() && !piece.exhausted) {
            continue;
        }
        if is_over || !access.pause(&routing, &mut backoff, deadline) {
            for piece in pieces.iter_mut().filter(|piece| piece.outcome.is_none()) {
                piece.outcome = Some(Err(piece.last));
            }
            return;
        }
        pieces.iter_mut().for_each(ChunkRead::after_pause);
    }
}

fn batches(
    access: &ChainAccess,
    routing: &Routing,
    pieces: &mut [ChunkRead],
    deadline: Instant,
) -> Vec<Batch<BatchOps<ReadOp>>> {
    let mut batches: Vec<Batch<BatchOps<ReadOp>>> = Vec::new();
    for (index, piece) in pieces.iter_mut().enumerate() {
        if piece.outcome.is_some() || piece.exhausted {
            continue;
        }
        let Some((node, chain_version)) = choose(access, routing, piece) else {
            piece.exhausted = true;
            continue;
        };
        let open = || {
            let link = access.links.get(routing, node)?;
            Some((link, deadline.min(Instant::now() + ATTEMPT_TIMEOUT)))
        };
        let length = piece.into.len();
        let Some(batch) = with_room(&mut batches, node, length, BATCH_BYTES, open) else {
            piece.exhausted = true;
            continue;
        };
        piece.attempts.begin(Peer { node, chain: piece.chain });
        let local = batch.link.is_local();
        if local && piece.into.is_shared() {
            // While a node may still write into the caller's memory there is no other replica to turn to.
            batch.deadline = match piece.into.is_expendable() {
                true => batch.deadline.min(Instant::now() + SHARED_TIMEOUT),
                false => deadline,
            };
        }
        let op = ReadOp {
            chain: piece.chain,
            chain_version,
            chunk: piece.chunk,
            offset: piece.offset,
            length: length as u32,
        };
        let place = if local { bounced(access, &piece.into) } else { piece.into.clone() };
        batch.work.add(index, op, place);
    }
    batches
}

fn bounced(access: &ChainAccess, into: &Placement) -> Placement {
    let len = into.len();
    if into.is_shared() || len < BOUNCE_BYTES_MIN || len > access.buffers.buffer_bytes() {
        return into.clone();
    }
    access.buffers.try_take().map_or_else(|| into.clone(), |buffer| buffer.slice(0..len).expendable())
}

/// The replica that `piece` is read from now; `None` if all that could answer have been tried. Then the piece
/// fails for good if every copy is damaged.
fn choose(access: &ChainAccess, routing: &Routing, piece: &mut ChunkRead) -> Option<(NodeId, ChainVersion)> {
    let chain = routing.chains.get(&piece.chain)?;
    if piece.to_tail {
        let tail = chain.tail().filter(|tail| !piece.avoided.contains(&tail.node))?;
        return Some((tail.node, chain.version));
    }
    let serving: Vec<&ChainMember> = chain.serving().collect();
    let candidates = || serving.iter().filter(|member| !piece.avoided.contains(&member.node));
    let count = candidates().count();
    if count == 0 {
        if !serving.is_empty() && piece.damaged >= serving.len() {
            piece.outcome = Some(Err(piece.last));
        }
        return None;
    }
    // One chunk is always read from the same replica while all is well: its page cache has it.
    let first = spread(piece.chunk) % count;
    let rank = |member: &ChainMember| match access.links.get(routing, member.node) {
        Some(link) if !link.is_suspect() => usize::from(!link.is_local()),
        _ => 2,
    };
    let (_, member) = candidates()
        .enumerate()
        .min_by_key(|(place, member)| (rank(member), (place + count - first) % count))
        .expect("there is one at least");
    Some((member.node, chain.version))
}

/// Neighbouring chunks go to different replicas.
fn spread(chunk: ChunkId) -> usize {
    (chunk.content.0 as usize).wrapping_add(chunk.index as usize)
}

struct ReadExchange<'a> {
    access: &'a ChainAccess,
    routing: &'a Routing,
    pieces: &'a mut [ChunkRead],
}

impl Exchange<BatchOps<ReadOp>> for ReadExchange<'_> {
    fn send(&mut self, connection: &mut Connection, batch: &Batch<BatchOps<ReadOp>>) -> Result<(), Status> {
        connection.send_reads(&batch.work.ops, &batch.work.places, batch.deadline)?;
        for index in &batch.work.pieces {
            self.pieces[*index].attempts.reached(Reached::Sent);
        }
        Ok(())
    }

    fn receive(
        &mut self,
        connection: &mut Connection,
        batch: &Batch<BatchOps<ReadOp>>,
    ) -> Result<(), Status> {
        let Batch { node, deadline, work, .. } = batch;
        let mut results = Vec::with_capacity(work.ops.len());
        connection.receive_reads(&work.ops, &work.places, *deadline, &mut results)?;
        let newer = || self.access.routing.current().version > self.routing.version;
        let all_good = results.iter().all(|result| result.status == Status::Ok);
        let newer = !all_good && newer();
        for ((index, place), result) in work.pieces.iter().zip(&work.places).zip(&results) {
            let piece = &mut self.pieces[*index];
            if place.as_ptr() != piece.into.as_ptr() && result.length > 0 {
                place.slice(0..result.length as usize).copy_into(&piece.into);
            }
            piece.answered(*node, result, newer);
        }
        Ok(())
    }

    fn failed(&mut self, batch: Batch<BatchOps<ReadOp>>, status: Status) {
        let is_in_shared_memory = batch.link.is_local() && status == Status::Timeout;
        for index in batch.work.pieces {
            let piece = &mut self.pieces[index];
            piece.last = status;
            // Lost to the node that hangs: only other memory can be read into.
            let is_lost = is_in_shared_memory && piece.into.is_shared() && piece.into.is_expendable();
            match status.is_retryable() && !is_lost {
                true => piece.avoided.push(batch.node),
                false => piece.outcome = Some(Err(status)),
            }
        }
    }
}
