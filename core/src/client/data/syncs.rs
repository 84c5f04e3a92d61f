//! Durability: the head of every chain touched is asked for it, and asks its other members.

use std::collections::BTreeSet;
use std::time::Instant;

use super::batches::{Batch, Carry, carry_out};
use super::reads::pause;
use super::{DataClient, Peer};
use crate::cancel::hold;
use crate::cluster::attempts::{Attempts, Reached};
use crate::cluster::routing::Routing;
use crate::net::Connection;
use crate::types::{BATCH_OPS_MAX, ChainId, ChainVersion, Status};

/// Returns when all serving members of `chains` have made durable what they have committed.
pub(super) fn run(
    client: &DataClient,
    mut chains: BTreeSet<ChainId>,
    deadline: Instant,
    attempts: &mut Attempts<Peer>,
) -> Result<(), Status> {
    let _held = hold();
    let mut backoff = client.backoff();
    loop {
        let routing = client.routing.current();
        let mut carrier = Carrier { failed: BTreeSet::new(), last: Status::NotServing, attempts };
        carry_out(batches(client, &routing, &chains, &mut carrier, deadline), &mut carrier);
        chains = carrier.failed;
        if chains.is_empty() {
            return Ok(());
        }
        if !carrier.last.is_retryable() || !pause(client, &routing, &mut backoff, deadline) {
            return Err(carrier.last);
        }
    }
}

type Work = Vec<(ChainId, ChainVersion)>;

/// One batch per head; chains that cannot be asked now are noted as failed.
fn batches(
    client: &DataClient,
    routing: &Routing,
    chains: &BTreeSet<ChainId>,
    carrier: &mut Carrier<'_>,
    deadline: Instant,
) -> Vec<Batch<Work>> {
    let mut batches: Vec<Batch<Work>> = Vec::new();
    for id in chains {
        let chain = routing.chains.get(id);
        let head = chain.and_then(|chain| Some((chain.head()?.node, (*id, chain.version))));
        let link = head.and_then(|(node, _)| client.links.get(routing, node));
        let (Some((node, wanted)), Some(link)) = (head, link) else {
            carrier.failed.insert(*id);
            continue;
        };
        match batches.iter_mut().rfind(|batch| batch.node == node && batch.work.len() < BATCH_OPS_MAX) {
            Some(batch) => batch.work.push(wanted),
            None => {
                carrier.attempts.begin(Peer { node, chain: *id });
                batches.push(Batch { node, link, deadline, work: vec![wanted] });
            }
        }
    }
    batches
}

struct Carrier<'a> {
    failed: BTreeSet<ChainId>,
    last: Status,
    attempts: &'a mut Attempts<Peer>,
}

impl Carry<Work> for Carrier<'_> {
    fn send(&mut self, connection: &mut Connection, batch: &Batch<Work>) -> Result<(), Status> {
        connection.send_syncs(&batch.work, batch.deadline)?;
        self.attempts.reached(Reached::Sent);
        Ok(())
    }

    fn receive(&mut self, connection: &mut Connection, batch: &Batch<Work>) -> Result<(), Status> {
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

    fn failed(&mut self, batch: Batch<Work>, status: Status) {
        batch.work.iter().for_each(|(chain, _)| self.note(*chain, status));
    }
}

impl Carrier<'_> {
    /// An error that no retry can help outlives those that one can.
    fn note(&mut self, chain: ChainId, status: Status) {
        self.failed.insert(chain);
        if self.last.is_retryable() {
            self.last = status;
        }
    }
}
