//! Durability: the head of every chain touched is asked for it, and asks its other members.

use std::collections::BTreeSet;
use std::time::Instant;

use super::access::{ChainAccess, Peer};
use super::batches::{Batch, Exchange, carry_out};
use crate::cancel::hold;
use crate::cluster::attempts::{Attempts, Reached};
use crate::cluster::routing::Routing;
use crate::net::Connection;
use crate::types::{BATCH_OPS_MAX, ChainId, ChainVersion, Status};

/// Returns when all serving members of `chains` have made durable what they have committed.
pub(super) fn run(
    access: &ChainAccess,
    mut chains: BTreeSet<ChainId>,
    deadline: Instant,
    attempts: &mut Attempts<Peer>,
) -> Result<(), Status> {
    let _held = hold();
    let mut backoff = access.backoff();
    loop {
        let routing = access.routing.current();
        let mut exchange = SyncExchange { failed: BTreeSet::new(), last: Status::NotServing, attempts };
        carry_out(batches(access, &routing, &chains, &mut exchange, deadline), &mut exchange);
        chains = exchange.failed;
        if chains.is_empty() {
            return Ok(());
        }
        if !exchange.last.is_retryable() || !access.pause(&routing, &mut backoff, deadline) {
            return Err(exchange.last);
        }
    }
}

/// A chain that is to be synced, and the version under which its head is asked.
type SyncedChain = (ChainId, ChainVersion);

/// One batch per head; chains that cannot be asked now are noted as failed.
fn batches(
    access: &ChainAccess,
    routing: &Routing,
    chains: &BTreeSet<ChainId>,
    exchange: &mut SyncExchange<'_>,
    deadline: Instant,
) -> Vec<Batch<Vec<SyncedChain>>> {
    let mut batches: Vec<Batch<Vec<SyncedChain>>> = Vec::new();
    for id in chains {
        let chain = routing.chains.get(id);
        let head = chain.and_then(|chain| Some((chain.head()?.node, (*id, chain.version))));
        let link = head.and_then(|(node, _)| access.links.get(routing, node));
        let (Some((node, wanted)), Some(link)) = (head, link) else {
            exchange.failed.insert(*id);
            continue;
        };
        match batches.iter_mut().rfind(|batch| batch.node == node && batch.work.len() < BATCH_OPS_MAX) {
            Some(batch) => batch.work.push(wanted),
            None => {
                exchange.attempts.begin(Peer { node, chain: *id });
                batches.push(Batch { node, link, deadline, work: vec![wanted] });
            }
        }
    }
    batches
}

struct SyncExchange<'a> {
    failed: BTreeSet<ChainId>,
    last: Status,
    attempts: &'a mut Attempts<Peer>,
}

impl Exchange<Vec<SyncedChain>> for SyncExchange<'_> {
    fn send(&mut self, connection: &mut Connection, batch: &Batch<Vec<SyncedChain>>) -> Result<(), Status> {
        connection.send_syncs(&batch.work, batch.deadline)?;
        self.attempts.reached(Reached::Sent);
        Ok(())
    }

    fn receive(
        &mut self,
        connection: &mut Connection,
        batch: &Batch<Vec<SyncedChain>>,
    ) -> Result<(), Status> {
        let mut results = Vec::with_capacity(batch.work.len());
        connection.receive_syncs(batch.deadline, &mut results)?;
        self.attempts.reached(Reached::Answered);
        for ((chain, _), status) in batch.work.iter().zip(results) {
            if status != Status::Ok {
                self.note(*chain, status);
            }
        }
        Ok(())
    }

    fn failed(&mut self, batch: Batch<Vec<SyncedChain>>, status: Status) {
        batch.work.iter().for_each(|(chain, _)| self.note(*chain, status));
    }
}

impl SyncExchange<'_> {
    /// An error that no retry can help outlives those that one can.
    fn note(&mut self, chain: ChainId, status: Status) {
        self.failed.insert(chain);
        if self.last.is_retryable() {
            self.last = status;
        }
    }
}
