//! Damaged chunks are fetched from another replica.

use std::sync::Arc;
use std::time::Duration;

use super::counters::count;
use super::node::{Node, within};
use crate::buffer::Placement;
use crate::chunk::{Committed, Install};
use crate::panics::caught;
use crate::types::{Chain, ChainId, ChunkKey, NodeId, ReadOp, RequestTag, Status, Version, WriterRecord};

const FETCH_TIMEOUT: Duration = Duration::from_secs(10);

/// The body of the repair thread.
pub fn run(node: &Arc<Node>) {
    while let Some(key) = node.repairs.take() {
        match node.repair(key) {
            Ok(()) => log::warn!("node {}: {key:?} was damaged; repaired from another replica", node.id),
            Err(status) => {
                log::error!(
                    "node {}: repairing damaged {key:?} failed: {status}; this replica stays damaged",
                    node.id
                )
            }
        }
    }
}

impl Node {
    pub fn has_other_replica(&self, chain: ChainId) -> bool {
        let routing = self.routing();
        routing.chains.get(&chain).is_some_and(|chain| self.sources(chain).next().is_some())
    }

    fn sources<'a>(&self, chain: &'a Chain) -> impl Iterator<Item = NodeId> + use<'a> {
        let own = self.id;
        chain.serving().map(|member| member.node).filter(move |node| *node != own)
    }

    /// Put the content of another replica in the place of a damaged one, at the same stamp.
    pub fn repair(&self, key: ChunkKey) -> Result<(), Status> {
        let result = caught(|| self.try_repair(key)).unwrap_or(Err(Status::Io));
        count(if result.is_ok() { &self.counters.repairs } else { &self.counters.repairs_failed });
        result
    }

    fn try_repair(&self, key: ChunkKey) -> Result<(), Status> {
        let state = self.engine.lookup(key)?.ok_or(Status::NotFound)?;
        let committed = state.committed.filter(|committed| !committed.removed).ok_or(Status::NotFound)?;
        let content = self.fetch(key, &committed)?;
        self.put_back(key, &committed, &state.writers, &content)
    }

    fn fetch(&self, key: ChunkKey, committed: &Committed) -> Result<Placement, Status> {
        let routing = self.routing();
        let chain = routing.chains.get(&key.chain).ok_or(Status::NotServing)?;
        let mut last = Status::NotFound;
        for node in self.sources(chain) {
            let buffer = self.buffer(committed.length as usize)?;
            let op = ReadOp {
                chain: key.chain,
                chain_version: chain.version,
                chunk: key.chunk,
                offset: 0,
                length: committed.length,
            };
            match self.fetch_from(node, op, &buffer, committed.stamp.version) {
                Ok(()) => return Ok(buffer),
                Err(status) => last = status,
            }
        }
        Err(last)
    }

    fn fetch_from(&self, node: NodeId, op: ReadOp, into: &Placement, version: Version) -> Result<(), Status> {
        let deadline = within(FETCH_TIMEOUT);
        let pool = self.peers.pool(&self.routing(), node, 0)?;
        let mut connection = pool.get(deadline).map_err(|error| error.status())?;
        let mut results = Vec::new();
        connection.read(&[op], std::slice::from_ref(into), deadline, &mut results)?;
        assert_eq!(results.len(), 1, "one result per operation");
        match results[0] {
            result if result.status != Status::Ok => Err(result.status),
            result if result.version != version || result.length != op.length => Err(Status::MissingVersion),
            _ => Ok(()),
        }
    }

    /// Under the lock of the chunk's machine, so that no update comes in between (S1).
    fn put_back(
        &self,
        key: ChunkKey,
        committed: &Committed,
        writers: &[WriterRecord],
        content: &Placement,
    ) -> Result<(), Status> {
        assert_eq!(content.len(), committed.length as usize, "{key:?}: the whole content");
        let slot = self.table.slot(key);
        let state = slot.state.lock();
        if state.machine.as_ref().is_some_and(|machine| machine.pending().is_some()) {
            return Err(Status::Busy);
        }
        let now = self.engine.lookup(key)?.ok_or(Status::NotFound)?;
        if now.pending.is_some() || now.committed.map(|now| now.stamp) != Some(committed.stamp) {
            return Err(Status::Busy);
        }
        let (stamp, tag) = (committed.stamp, RequestTag::default());
        let install = Install { key, stamp, removed: false, tag, writers };
        self.engine.install(&install, content).map(|_| ())
    }
}
