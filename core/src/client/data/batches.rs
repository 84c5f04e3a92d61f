//! Sends batches to several nodes at once from one thread: all are sent before any answer is waited for.

use std::sync::Arc;
use std::time::Instant;

use super::links::NodeLink;
use crate::buffer::Placement;
use crate::net::{ConnectError, Connection, Pool, Pooled};
use crate::types::{BATCH_OPS_MAX, NodeId, Status};

/// Batches in flight at once for one call. Each occupies a connection, that is a thread of a server.
const IN_FLIGHT_MAX: usize = 8;

/// One batch for one node. `W` is what is sent, and what the sender knows it by.
pub(super) struct Batch<W> {
    pub(super) node: NodeId,
    pub(super) link: Arc<NodeLink>,
    pub(super) deadline: Instant,
    pub(super) work: W,
}

/// Operations, the memory of each, and which of the caller's pieces each belongs to.
pub(super) struct BatchOps<O> {
    pub(super) pieces: Vec<usize>,
    pub(super) ops: Vec<O>,
    pub(super) places: Vec<Placement>,
    bytes: usize,
}

impl<O> BatchOps<O> {
    pub(super) fn add(&mut self, piece: usize, op: O, place: Placement) {
        assert!(self.ops.len() < BATCH_OPS_MAX, "a batch with room was chosen");
        self.bytes += place.len();
        self.pieces.push(piece);
        self.ops.push(op);
        self.places.push(place);
    }
}

/// The batch for `node` that has room for one operation more, of `length` bytes; a new one, over the link and with the
/// deadline that `open` returns, if there is none. `None`: `open` knows no way to the node.
pub(super) fn with_room<O>(
    batches: &mut Vec<Batch<BatchOps<O>>>,
    node: NodeId,
    length: usize,
    bytes_max: usize,
    open: impl FnOnce() -> Option<(Arc<NodeLink>, Instant)>,
) -> Option<&mut Batch<BatchOps<O>>> {
    let has_room = |work: &BatchOps<O>| work.ops.len() < BATCH_OPS_MAX && work.bytes + length <= bytes_max;
    let known = batches.iter().rposition(|batch| batch.node == node && has_room(&batch.work));
    let place = match known {
        Some(place) => place,
        None => {
            let (link, deadline) = open()?;
            let work = BatchOps { pieces: Vec::new(), ops: Vec::new(), places: Vec::new(), bytes: 0 };
            batches.push(Batch { node, link, deadline, work });
            batches.len() - 1
        }
    };
    batches.get_mut(place)
}

/// How one kind of batch is sent and its answer taken.
pub(super) trait Exchange<W> {
    fn send(&mut self, connection: &mut Connection, batch: &Batch<W>) -> Result<(), Status>;
    fn receive(&mut self, connection: &mut Connection, batch: &Batch<W>) -> Result<(), Status>;
    /// The batch failed as a whole.
    fn failed(&mut self, batch: Batch<W>, status: Status);
}

/// Carries out all `batches`. A small call is one batch, for which this costs next to nothing.
pub(super) fn carry_out<W>(batches: Vec<Batch<W>>, exchange: &mut impl Exchange<W>) {
    let pools: Vec<[Arc<Pool>; 2]> = batches.iter().map(|batch| batch.link.pools()).collect();
    let mut in_flight: Vec<(Pooled<'_>, Batch<W>)> = Vec::with_capacity(batches.len().min(IN_FLIGHT_MAX));
    for (batch, [first, second]) in batches.into_iter().zip(&pools) {
        if in_flight.len() == IN_FLIGHT_MAX {
            receive_all(&mut in_flight, exchange);
        }
        // A thread that holds a connection must not wait for another one.
        let at_once = if in_flight.is_empty() { None } else { first.try_get(batch.deadline) };
        let connection = at_once.unwrap_or_else(|| {
            receive_all(&mut in_flight, exchange);
            first.get(batch.deadline)
        });
        let connection = connection.or_else(|error| {
            receive_all(&mut in_flight, exchange);
            get_fallback(&batch, first, second, error)
        });
        match connection {
            Err(error) => fail(batch, error.status(), exchange),
            Ok(mut connection) => match exchange.send(&mut connection, &batch) {
                Ok(()) => in_flight.push((connection, batch)),
                Err(status) => fail(batch, status, exchange),
            },
        }
    }
    receive_all(&mut in_flight, exchange);
}

fn get_fallback<'a, W>(
    batch: &Batch<W>,
    first: &Arc<Pool>,
    second: &'a Pool,
    error: ConnectError,
) -> Result<Pooled<'a>, ConnectError> {
    if batch.link.connect_failed(first, &error) { second.get(batch.deadline) } else { Err(error) }
}

fn receive_all<W>(in_flight: &mut Vec<(Pooled<'_>, Batch<W>)>, exchange: &mut impl Exchange<W>) {
    for (mut connection, batch) in in_flight.drain(..) {
        if let Err(status) = exchange.receive(&mut connection, &batch) {
            fail(batch, status, exchange);
        }
    }
}

fn fail<W>(batch: Batch<W>, status: Status, exchange: &mut impl Exchange<W>) {
    batch.link.suspect();
    // Bytes damaged on the way say nothing about the replica: as good as a lost connection.
    let status = if status == Status::Checksum { Status::Disconnected } else { status };
    exchange.failed(batch, status);
}
