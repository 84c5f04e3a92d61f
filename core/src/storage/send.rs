//! Sending updates and whole chunks to successors.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::counters::{add, count};
use super::node::Node;
use super::table::SlotRef;
use crate::buffer::Placement;
use crate::cluster::routing::Routing;
use crate::craq::{Content, Effect, Event, StoredPending, Successor};
use crate::net::{Pool, Pooled};
use crate::types::{
    BATCH_BYTES_MAX, BATCH_OPS_MAX, ChainId, ChainVersion, ChunkKey, NodeId, Op, RequestTag, Stamp, Status,
    UpdateOp, UpdateResult, WRITERS_MAX, WriterRecord,
};

/// Most payload bytes in one batch to a peer, unless a single chunk is larger: what waits in memory at once.
const SEND_BYTES_MAX: usize = 16 << 20;

const _: () = assert!(SEND_BYTES_MAX <= BATCH_BYTES_MAX, "a batch to a peer fits a frame");
/// A send that takes longer is given up and done again: its successor may have been replaced meanwhile.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// A `Forward` or a `Push` to carry out.
pub struct SendRequest {
    pub slot: SlotRef,
    pub effect: Effect,
    /// The payload that the pending version was made from, if the caller still has it.
    pub payload: Option<Placement>,
}

struct Addressed {
    send: SendRequest,
    attempt: u64,
    to: Successor,
}

impl SendRequest {
    /// The attempt, and the member that it goes to.
    pub fn addressed(&self) -> (u64, Successor) {
        match &self.effect {
            Effect::Forward { attempt, to, .. } | Effect::Push { attempt, to, .. } => (*attempt, *to),
            other => unreachable!("not for a successor: {other:?}"),
        }
    }

    /// Its payload is read from the disk.
    fn must_be_built(&self) -> bool {
        match &self.effect {
            Effect::Forward { update, content: Content::Update, .. } => {
                matches!(update.op, Op::Write { .. }) && self.payload.is_none()
            }
            _ => true,
        }
    }
}

/// One operation ready to go.
struct OutgoingUpdate {
    slot: SlotRef,
    attempt: u64,
    op: UpdateOp,
    payload: Placement,
}

/// Operations that go to one node together.
struct SendBatch {
    to: NodeId,
    following: usize,
    updates: Vec<OutgoingUpdate>,
    /// Payload bytes of `updates`.
    bytes: usize,
}

impl SendBatch {
    fn has_room(&self, bytes: usize) -> bool {
        self.updates.len() < BATCH_OPS_MAX && self.bytes + bytes <= SEND_BYTES_MAX
    }
}

impl Node {
    /// Send all of them, each with others to the same node, and report every answer to its machine.
    pub fn send(&self, sends: Vec<SendRequest>, deadline: Instant) {
        let routing = self.routing();
        let deadline = deadline.min(Instant::now() + SEND_TIMEOUT);
        let mut by_following: BTreeMap<(usize, bool), Vec<Addressed>> = BTreeMap::new();
        for send in sends {
            let (attempt, to) = send.addressed();
            let following = members_after(&routing, send.slot.key.chain, to);
            by_following.entry((following, send.must_be_built())).or_default().push(Addressed {
                send,
                attempt,
                to,
            });
        }
        for ((following, built), sends) in by_following {
            let permit = match built {
                true => Some(self.peers.permit(following, deadline)),
                false => None,
            };
            if let Some(Err(status)) = permit {
                for Addressed { send, attempt, .. } in sends {
                    self.report(&send.slot, Event::Answered { attempt, result: Err(status) });
                }
                continue;
            }
            self.send_group(&routing, following, sends, deadline);
        }
    }

    /// Send with the same number of members that follow, a bounded number of bytes at a time.
    fn send_group(&self, routing: &Routing, following: usize, sends: Vec<Addressed>, deadline: Instant) {
        let mut batches: Vec<SendBatch> = Vec::new();
        for Addressed { send, attempt, to } in sends {
            let slot = send.slot.clone();
            match self.outgoing(send, attempt) {
                Ok(outgoing) => {
                    if !put(&mut batches, to.node, following, outgoing) {
                        self.send_batches(routing, std::mem::take(&mut batches), deadline);
                    }
                }
                Err(status) => self.report(&slot, Event::Answered { attempt, result: Err(status) }),
            }
        }
        self.send_batches(routing, batches, deadline);
    }

    fn outgoing(&self, send: SendRequest, attempt: u64) -> Result<OutgoingUpdate, Status> {
        let SendRequest { slot, effect, payload } = send;
        let key = slot.key;
        let (op, payload) = match effect {
            Effect::Forward { chain_version, update, fresh, content: Content::Update, .. } => {
                count(&self.counters.forwards);
                let StoredPending { stamp, op, tag } = update;
                let payload = match op {
                    Op::Write { offset, length } => match payload {
                        Some(payload) => payload,
                        None => self.read_pending(key, offset, length)?,
                    },
                    _ => self.buffer(0)?,
                };
                let settled = self.engine.writers().settled_before(tag.client);
                (UpdateOp { fresh, settled, ..operation(key, chain_version, op, tag, stamp) }, payload)
            }
            Effect::Forward { chain_version, update, .. } => {
                count(&self.counters.forwards_whole);
                self.whole(key, chain_version, update.stamp, update.tag, true)?
            }
            Effect::Push { chain_version, stamp, .. } => {
                count(&self.counters.pushes);
                self.whole(key, chain_version, stamp, RequestTag::default(), false)?
            }
            other => unreachable!("not for a successor: {other:?}"),
        };
        assert_eq!(
            op.payload_bytes(),
            payload.len(),
            "{key:?}: the payload is as long as its operation says"
        );
        Ok(OutgoingUpdate { slot, attempt, op, payload })
    }

    fn read_pending(&self, key: ChunkKey, offset: u32, length: u32) -> Result<Placement, Status> {
        let buffer = self.buffer(length as usize)?;
        let read = self.engine.read_pending(key, offset, &mut &buffer);
        let outcome = read.map_err(|status| self.failed(key, status))?;
        // Nothing but this update could have changed the pending content, and it wrote that range.
        if outcome.length == length { Ok(buffer) } else { Err(Status::MissingVersion) }
    }

    /// A `Replace` with the pending or the committed content.
    fn whole(
        &self,
        key: ChunkKey,
        chain_version: ChainVersion,
        stamp: Stamp,
        tag: RequestTag,
        pending: bool,
    ) -> Result<(UpdateOp, Placement), Status> {
        let failed = |status| self.failed(key, status);
        let state = self.engine.lookup(key).map_err(failed)?;
        let writers = state.as_ref().map_or(&[][..], |state| &state.writers);
        let writers = &writers[writers.len().saturating_sub(WRITERS_MAX)..];
        assert!(writers.len() <= WRITERS_MAX, "a replacement carries a bounded number of records");
        let found = state.as_ref().and_then(|state| {
            if pending {
                state.pending.as_ref().map(|pending| (pending.stamp, pending.length, pending.removed))
            } else {
                state
                    .committed
                    .as_ref()
                    .map(|committed| (committed.stamp, committed.length, committed.removed))
            }
        });
        let (found_stamp, length, removed) = found.unwrap_or((Stamp::default(), 0, true));
        if found_stamp.version != stamp.version {
            return Err(Status::MissingVersion);
        }
        let length = if removed { 0 } else { length };
        let buffer = self.buffer(length as usize + writers.len() * WriterRecord::BYTES)?;
        if length > 0 {
            let mut into = &buffer.slice(0..length as usize);
            let read = match pending {
                true => self.engine.read_pending(key, 0, &mut into),
                false => self.engine.read(key, 0, &mut into),
            };
            if read.map_err(failed)?.length != length {
                return Err(Status::MissingVersion);
            }
        }
        for (place, record) in writers.iter().enumerate() {
            buffer.copy_in(length as usize + place * WriterRecord::BYTES, &record.encode());
        }
        let op = Op::Replace { length, writers: writers.len() as u32, removed };
        Ok((operation(key, chain_version, op, tag, stamp), buffer))
    }

    fn send_batches(&self, routing: &Routing, batches: Vec<SendBatch>, deadline: Instant) {
        assert!(batches.iter().all(|batch| !batch.updates.is_empty()), "a batch carries an update");
        let mut pools: Vec<Option<Arc<Pool>>> = Vec::new();
        for batch in &batches {
            pools.push(self.peers.pool(routing, batch.to, batch.following).ok());
        }
        let mut in_flight: Vec<(&SendBatch, Pooled<'_>)> = Vec::new();
        for (batch, pool) in batches.iter().zip(&pools) {
            let Some(pool) = pool else {
                self.answer(batch, Err(Status::Disconnected));
                continue;
            };
            // A thread that holds a connection does not wait for another one (S3).
            let got = match in_flight.is_empty() {
                true => pool.get(deadline),
                false => match pool.try_get(deadline) {
                    Some(got) => got,
                    None => {
                        for (batch, connection) in in_flight.drain(..) {
                            self.receive(batch, connection, deadline);
                        }
                        assert!(in_flight.is_empty(), "S3: holds no connection while it waits for one");
                        pool.get(deadline)
                    }
                },
            };
            let sent = got.map_err(|error| error.status()).and_then(|mut connection| {
                let (ops, payload) = batch.contents();
                connection.send_updates(&ops, &payload, deadline).map(|()| connection)
            });
            match sent {
                Ok(connection) => in_flight.push((batch, connection)),
                Err(status) => self.answer(batch, Err(status)),
            }
        }
        for (batch, connection) in in_flight {
            self.receive(batch, connection, deadline);
        }
    }

    fn receive(&self, batch: &SendBatch, mut connection: Pooled<'_>, deadline: Instant) {
        let mut results = Vec::with_capacity(batch.updates.len());
        let received = connection.receive_updates(deadline, &mut results);
        // The connection is free for others before the machines are stepped.
        drop(connection);
        self.answer(batch, received.map(|()| results));
    }

    fn answer(&self, batch: &SendBatch, results: Result<Vec<UpdateResult>, Status>) {
        if let Ok(results) = &results {
            assert_eq!(results.len(), batch.updates.len(), "one result per update");
        }
        for (place, outgoing) in batch.updates.iter().enumerate() {
            let result = match &results {
                Ok(results) => match results[place].status {
                    Status::Ok => Ok(()),
                    status => Err(status),
                },
                // The batch may or may not have arrived; a final refusal comes from the successor alone (R9).
                Err(Status::NoSpace | Status::Invalid) => Err(Status::Disconnected),
                Err(status) => Err(*status),
            };
            if result.is_err() {
                add(&self.counters.forwards_failed, 1);
            }
            self.report(&outgoing.slot, Event::Answered { attempt: outgoing.attempt, result });
        }
    }
}

impl SendBatch {
    fn contents(&self) -> (Vec<UpdateOp>, Vec<Placement>) {
        self.updates.iter().map(|outgoing| (outgoing.op, outgoing.payload.clone())).unzip()
    }
}

/// Add an update to the batch of its node; false when it is time to send what there is.
fn put(batches: &mut Vec<SendBatch>, to: NodeId, following: usize, outgoing: OutgoingUpdate) -> bool {
    let bytes = outgoing.payload.len();
    let same = |batch: &&mut SendBatch| batch.to == to && batch.following == following;
    match batches.iter_mut().rev().find(same) {
        Some(batch) if batch.has_room(bytes) => {
            batch.bytes += bytes;
            batch.updates.push(outgoing);
        }
        _ => batches.push(SendBatch { to, following, updates: vec![outgoing], bytes }),
    }
    assert!(batches.iter().all(|batch| batch.updates.len() <= BATCH_OPS_MAX), "a batch fits a frame");
    let held: usize = batches.iter().map(|batch| batch.bytes).sum();
    held < SEND_BYTES_MAX
}

fn operation(key: ChunkKey, chain_version: ChainVersion, op: Op, tag: RequestTag, stamp: Stamp) -> UpdateOp {
    UpdateOp {
        chain: key.chain,
        chain_version,
        chunk: key.chunk,
        op,
        tag,
        settled: 0,
        version: stamp.version,
        decided: stamp.chain_version,
        fresh: false,
        payload_crc: None,
    }
}

/// How many members come after `to`: each of them must answer before it does.
fn members_after(routing: &Routing, chain: ChainId, to: Successor) -> usize {
    let Some(chain) = routing.chains.get(&chain) else { return 0 };
    let after = chain.members.iter().skip_while(|member| member.target != to.target).skip(1);
    after.take_while(|member| member.state.takes_writes()).count()
}
