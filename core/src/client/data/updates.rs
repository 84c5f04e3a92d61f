//! Updates: to the head of the chain, with the same tag until their outcome is known.

use std::time::{Duration, Instant};

use super::access::{ChainAccess, Peer};
use super::batches::{Batch, BatchOps, Exchange, carry_out, with_room};
use crate::buffer::Placement;
use crate::cancel::hold;
use crate::cluster::attempts::{Attempts, Reached};
use crate::cluster::routing::Routing;
use crate::net::Connection;
use crate::types::{
    ChainId, ChainVersion, ChunkId, NodeId, Op, RequestTag, Status, UPDATE_LIFE_MAX, UpdateOp, UpdateResult,
    Version,
};

/// Most payload bytes of one batch: few enough that several connections share a large write.
const BATCH_BYTES: usize = 2 << 20;
/// A head that has not answered for so long is asked again, perhaps another one. Long, because a loaded disk is
/// slow and asking twice does not make it faster.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
/// From here on payload in memory of this process alone is copied into a shared buffer for a node on this host.
const BOUNCE_BYTES_MIN: usize = 32 << 10;
/// Attempts whose payload was damaged on the way before the caller hears of it.
const DAMAGED_MAX: u32 = 3;

/// One update of one chunk.
pub(super) struct ChunkUpdate {
    /// Which write of the caller's list it belongs to.
    pub(super) request: usize,
    pub(super) chain: ChainId,
    pub(super) chunk: ChunkId,
    pub(super) op: Op,
    pub(super) payload: Placement,
    pub(super) outcome: Option<Result<UpdateResult, Status>>,
    pub(super) attempts: Attempts<Peer>,
    tag: RequestTag,
    last: Status,
    damaged: u32,
    exhausted: bool,
    /// Until then the attempt under way may be begun, and those of which no answer came.
    sent_until: Option<Instant>,
    open_until: Option<Instant>,
}

impl ChunkUpdate {
    pub(super) fn new(
        request: usize,
        chain: ChainId,
        chunk: ChunkId,
        op: Op,
        payload: Placement,
    ) -> ChunkUpdate {
        ChunkUpdate {
            request,
            chain,
            chunk,
            op,
            payload,
            outcome: None,
            attempts: Attempts::new(),
            tag: RequestTag::default(),
            last: Status::NotServing,
            damaged: 0,
            exhausted: false,
            sent_until: None,
            open_until: None,
        }
    }

    fn answered(&mut self, result: &UpdateResult, routing_is_newer: bool) {
        self.sent_until = None;
        self.attempts.reached(Reached::Answered);
        self.last = result.status;
        match result.status {
            Status::Ok => self.outcome = Some(Ok(*result)),
            Status::Checksum if self.damaged < DAMAGED_MAX => self.damaged += 1,
            Status::WrongChainVersion | Status::NotHead => self.exhausted = !routing_is_newer,
            status if status.is_retryable() => self.exhausted = true,
            status => self.outcome = Some(Err(status)),
        }
    }
}

/// Carries out all `pieces`, which touch different chunks; afterwards each has an outcome. Without an answer by
/// `deadline` an update may or may not have happened; that it will happen later is excluded.
pub(super) fn run(access: &ChainAccess, pieces: &mut [ChunkUpdate], deadline: Instant) {
    let _held = hold();
    // So long the chunk remembers that it has executed the request.
    let deadline = deadline.min(Instant::now() + UPDATE_LIFE_MAX);
    let chunks = pieces.iter().map(|piece| piece.chunk).collect();
    let Some(_guard) = access.locks.lock(chunks, deadline) else {
        pieces.iter_mut().for_each(|piece| piece.outcome = Some(Err(Status::Timeout)));
        return;
    };
    // Under the lock, so that the sequence grows for each chunk.
    let begun = access.sequences.begin(pieces.len(), deadline);
    for (piece, sequence) in pieces.iter_mut().zip(begun.numbers.clone()) {
        piece.tag = RequestTag { client: access.options.client, sequence };
    }
    attempt_all(access, pieces, deadline);
    assert!(pieces.iter().all(|piece| piece.outcome.is_some()), "an update has an outcome");
    wait_until_void(pieces);
    pieces.iter().for_each(|piece| access.sequences.end(piece.tag.sequence, piece.open_until));
}

/// An attempt without an answer may be under way still. If the update was acknowledged, its chunk knows the tag and
/// executes it no more; otherwise its caller continues only when it cannot be begun any more (N3).
fn wait_until_void(pieces: &[ChunkUpdate]) {
    let failed = pieces.iter().filter(|piece| !matches!(piece.outcome, Some(Ok(_))));
    if let Some(until) = failed.filter_map(|piece| piece.open_until).max() {
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
    }
}

fn attempt_all(access: &ChainAccess, pieces: &mut [ChunkUpdate], deadline: Instant) {
    let mut backoff = access.backoff();
    loop {
        let routing = access.routing.current();
        let batches = batches(access, &routing, pieces, deadline);
        carry_out(batches, &mut UpdateExchange { access, routing: &routing, pieces });
        if pieces.iter().all(|piece| piece.outcome.is_some()) {
            return;
        }
        if pieces.iter().any(|piece| piece.outcome.is_none() && !piece.exhausted) {
            continue;
        }
        if !access.pause(&routing, &mut backoff, deadline) {
            for piece in pieces.iter_mut().filter(|piece| piece.outcome.is_none()) {
                piece.outcome = Some(Err(piece.last));
            }
            return;
        }
        pieces.iter_mut().for_each(|piece| piece.exhausted = false);
    }
}

fn batches(
    access: &ChainAccess,
    routing: &Routing,
    pieces: &mut [ChunkUpdate],
    deadline: Instant,
) -> Vec<Batch<BatchOps<UpdateOp>>> {
    let attempt_deadline = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
    let mut batches: Vec<Batch<BatchOps<UpdateOp>>> = Vec::new();
    let settled = access.sequences.settled_before();
    for (index, piece) in pieces.iter_mut().enumerate() {
        if piece.outcome.is_some() || piece.exhausted {
            continue;
        }
        let Some((node, chain_version)) = head(routing, piece.chain) else {
            piece.exhausted = true;
            continue;
        };
        let open = || Some((access.links.get(routing, node)?, attempt_deadline));
        let Some(batch) = with_room(&mut batches, node, piece.payload.len(), BATCH_BYTES, open) else {
            piece.exhausted = true;
            continue;
        };
        let op = UpdateOp {
            chain: piece.chain,
            chain_version,
            chunk: piece.chunk,
            op: piece.op,
            tag: piece.tag,
            settled,
            version: Version(0),
            decided: ChainVersion(0),
            fresh: false,
            payload_crc: None,
        };
        piece.attempts.begin(Peer { node, chain: piece.chain });
        let local = batch.link.is_local();
        let place = if local { bounced(access, &piece.payload) } else { piece.payload.clone() };
        batch.work.add(index, op, place);
    }
    batches
}

fn head(routing: &Routing, chain: ChainId) -> Option<(NodeId, ChainVersion)> {
    let chain = routing.chains.get(&chain)?;
    Some((chain.head()?.node, chain.version))
}

fn bounced(access: &ChainAccess, payload: &Placement) -> Placement {
    let len = payload.len();
    if payload.is_shared() || len < BOUNCE_BYTES_MIN || len > access.buffers.buffer_bytes() {
        return payload.clone();
    }
    let Some(buffer) = access.buffers.try_take() else {
        return payload.clone();
    };
    payload.copy_into(&buffer);
    buffer.slice(0..len)
}

struct UpdateExchange<'a> {
    access: &'a ChainAccess,
    routing: &'a Routing,
    pieces: &'a mut [ChunkUpdate],
}

impl Exchange<BatchOps<UpdateOp>> for UpdateExchange<'_> {
    fn send(&mut self, connection: &mut Connection, batch: &Batch<BatchOps<UpdateOp>>) -> Result<(), Status> {
        for index in &batch.work.pieces {
            self.pieces[*index].sent_until = Some(batch.deadline);
        }
        connection.send_updates(&batch.work.ops, &batch.work.places, batch.deadline)?;
        for index in &batch.work.pieces {
            self.pieces[*index].attempts.reached(Reached::Sent);
        }
        Ok(())
    }

    fn receive(
        &mut self,
        connection: &mut Connection,
        batch: &Batch<BatchOps<UpdateOp>>,
    ) -> Result<(), Status> {
        let mut results = Vec::with_capacity(batch.work.ops.len());
        connection.receive_updates(batch.deadline, &mut results)?;
        let all_good = results.iter().all(|result| result.status == Status::Ok);
        let newer = !all_good && self.access.routing.current().version > self.routing.version;
        for (index, result) in batch.work.pieces.iter().zip(&results) {
            self.pieces[*index].answered(result, newer);
        }
        Ok(())
    }

    fn failed(&mut self, batch: Batch<BatchOps<UpdateOp>>, status: Status) {
        for index in batch.work.pieces {
            let piece = &mut self.pieces[index];
            piece.last = status;
            piece.open_until = piece.open_until.max(piece.sent_until.take());
            match status.is_retryable() {
                true => piece.exhausted = true,
                false => piece.outcome = Some(Err(status)),
            }
        }
    }
}
