//! What must hold in every state of a world.

use super::disk::{Chunk, applied};
use super::{Limits, World, is_prefix, request_of};
use luciola_core::types::*;

impl World {
    /// The first invariant that this world breaks.
    pub fn broken(&self, limits: &Limits) -> Option<&'static str> {
        self.fault
            .or_else(|| self.broken_replica(limits))
            .or_else(|| self.broken_promise(limits))
            .or_else(|| (0..limits.chunks).find_map(|chunk| self.broken_chain(chunk)))
    }

    fn broken_replica(&self, limits: &Limits) -> Option<&'static str> {
        for chunk in self.nodes.iter().flat_map(|node| node.disk.chunks()) {
            let state = &chunk.committed;
            if !self.purged && state.history.len() as u64 != state.stamp.version.0 {
                return Some("a content is not what its version says");
            }
            if !state.is_bare() && state.bytes != bytes_of(&state.history, limits) {
                return Some("a content is not what its history says");
            }
            if let Some(pending) = &chunk.pending
                && pending.update.stamp.version.0 != state.stamp.version.0 + 1
                && !state.is_bare()
            {
                return Some("a pending version does not follow the committed one");
            }
            let mut sorted = state.history.clone();
            sorted.sort_unstable();
            sorted.dedup();
            if sorted.len() != state.history.len() {
                return Some("a request was executed twice");
            }
        }
        None
    }

    /// What was synced survives the loss of power at any moment, on every replica that serves.
    fn broken_promise(&self, limits: &Limits) -> Option<&'static str> {
        if !limits.loses_power() || self.durable.iter().all(Vec::is_empty) {
            return None;
        }
        let mut members = self.serving();
        members.extend(self.with_state(TargetState::LastServing));
        for node in members {
            for left in self.nodes[node].disk.leftovers() {
                let disk = match left {
                    Ok(disk) => disk,
                    Err(broken) => return Some(broken),
                };
                let keeps =
                    |(durable, chunk): (&Vec<u8>, &Chunk)| is_prefix(durable, &chunk.committed.history);
                if !self.durable.iter().zip(disk.chunks()).all(keeps) {
                    return Some("power loss would take what was synced");
                }
            }
        }
        None
    }

    fn broken_chain(&self, chunk: usize) -> Option<&'static str> {
        let mut members = self.serving();
        members.extend(self.with_state(TargetState::LastServing));
        if self.up_to_date == Some(self.latest()) {
            members.extend(self.with_state(TargetState::Syncing)); // it may serve at any moment
        }
        // What a replica that has just lost power holds is no matter before it serves.
        members.retain(|node| !self.nodes[*node].is_partial);
        let of = |node: usize| self.nodes[node].disk.chunk(chunk);
        for node in &members {
            if !is_prefix(&self.seen[chunk], &of(*node).newest().history) {
                return Some("a member lacks what a client has seen");
            }
        }
        for pair in members.windows(2) {
            let [before, after] = [of(pair[0]), of(pair[1])];
            if !is_prefix(&before.committed.history, &after.committed.history) {
                return Some("a member has committed what a later member has not");
            }
            if !is_prefix(&after.committed.history, &before.newest().history) {
                return Some("a member has committed what an earlier member does not even hold");
            }
        }
        if self.is_quiet(&members) {
            let may_come =
                |tag: RequestTag| tag.sequence >= u64::from(self.writers[tag.client.0 as usize - 1].sequence);
            for pair in members.windows(2) {
                let [before, after] = [of(pair[0]), of(pair[1])];
                if before.essence(self.purged, may_come) != after.essence(self.purged, may_come) {
                    return Some("replicas at rest differ");
                }
            }
        }
        None
    }

    /// Nothing is under way, and all nodes know the chain.
    pub fn is_quiet(&self, members: &[usize]) -> bool {
        self.network.is_empty()
            && members.iter().all(|place| {
                let node = &self.nodes[*place];
                let at_rest = node.parts.iter().all(|part| {
                    let is_idle = |machine: &luciola_core::craq::Replica| {
                        machine.is_at_rest() && machine.pending().is_none() && machine.view().is_member()
                    };
                    part.work.is_empty() && part.machine.as_ref().is_some_and(is_idle)
                });
                at_rest && node.known == self.latest()
            })
    }
}

/// The bytes that these requests make of nothing.
fn bytes_of(history: &[u8], limits: &Limits) -> Vec<u8> {
    history.iter().fold(Vec::new(), |bytes, byte| applied(bytes, limits.op_of(request_of(*byte).0), *byte))
}
