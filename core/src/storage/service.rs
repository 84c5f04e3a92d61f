//! Batches as they come from connections.

use std::collections::BTreeMap;
use std::time::Instant;

use super::call::{Answer, Call, Payload};
use super::counters::{add, count};
use super::node::Node;
use crate::buffer::Placement;
use crate::chunk::{Origin, ReadOutcome};
use crate::craq::{Event, Forwarded};
use crate::net::{Sender, Service};
use crate::types::{
    ChainId, ChainVersion, ChunkKey, NodeId, Op, ReadOp, ReadResult, Status, UpdateOp, UpdateResult, Version,
    WriterRecord,
};
use crate::wire::pb::claims::Role;

/// How often a read of a chunk that changes meanwhile is attempted.
const READ_ATTEMPTS: usize = 8;

impl Service for Node {
    fn read(&self, ops: &[ReadOp], into: &[Placement], deadline: Instant, out: &mut Vec<ReadResult>) {
        assert!(ops.len() == into.len() && out.is_empty(), "one placement per operation, and no results yet");
        // What is in memory first. Meanwhile the disk reads what is missing of all the others, not of one after the other.
        let cached: Vec<_> = match ops {
            [_] => vec![None],
            _ => ops.iter().zip(into).map(|(op, into)| self.read_cached(op, into)).collect(),
        };
        for ((op, into), cached) in ops.iter().zip(into).zip(cached) {
            let result = cached.unwrap_or_else(|| self.read_one(op, into, deadline));
            count(&self.counters.reads);
            out.push(match result {
                Ok(outcome) => {
                    assert!(outcome.length <= op.length, "no more bytes than were asked for");
                    add(&self.counters.read_bytes, u64::from(outcome.length));
                    let version = outcome.stamp.version;
                    ReadResult { status: Status::Ok, length: outcome.length, version }
                }
                Err(status) => ReadResult { status, length: 0, version: Version(0) },
            });
        }
    }

    fn update(
        &self,
        sender: Sender<'_>,
        ops: &[UpdateOp],
        payload: &[Placement],
        deadline: Instant,
        out: &mut Vec<UpdateResult>,
    ) {
        assert!(
            ops.len() == payload.len() && out.is_empty(),
            "one payload per operation, and no results yet"
        );
        let mut call = Call::new(self, deadline);
        let under_way = self.hold.enter();
        for (op, payload) in ops.iter().zip(payload) {
            let key = ChunkKey { chain: op.chain, chunk: op.chunk };
            match self.admit(sender, op, payload) {
                Ok((Origin::Client, ..)) if under_way.is_none() => call.refuse(key, Status::Busy),
                Ok((origin, payload, event)) => {
                    call.begin(key, origin, payload, |ticket| event.with(ticket));
                }
                Err(status) => call.refuse(key, status),
            }
        }
        let answers = call.finish();
        assert_eq!(answers.len(), ops.len(), "one answer per operation");
        drop(under_way);
        let durable = if self.sync_updates { self.make_durable() } else { Ok(()) };
        for (op, answer) in ops.iter().zip(answers) {
            let answer = match durable {
                Err(status) => Answer::Refused(status),
                Ok(()) => answer,
            };
            out.push(self.result_of(op, answer));
        }
    }

    fn sync(
        &self,
        sender: Sender<'_>,
        chains: &[(ChainId, ChainVersion)],
        deadline: Instant,
        out: &mut Vec<Status>,
    ) {
        count(&self.counters.syncs);
        let refusals: Vec<Option<Status>> =
            chains.iter().map(|(chain, version)| self.refuse_sync(sender, *chain, *version)).collect();
        let accepted: Vec<(ChainId, ChainVersion)> = chains
            .iter()
            .zip(&refusals)
            .filter(|(_, refusal)| refusal.is_none())
            .map(|(chain, _)| *chain)
            .collect();
        let mut durable =
            if accepted.is_empty() { Vec::new() } else { self.sync_chains(sender, &accepted, deadline) };
        durable.reverse();
        for refusal in refusals {
            out.push(refusal.unwrap_or_else(|| durable.pop().expect("one for each that was accepted")));
        }
        assert!(durable.is_empty() && out.len() == chains.len(), "one status per chain");
    }
}

/// A checked request that lacks only its ticket.
enum Admitted {
    Client { chain_version: ChainVersion, op: UpdateOp, leased: bool },
    Chain(Forwarded),
}

impl Admitted {
    fn with(self, ticket: crate::craq::Ticket) -> Event {
        match self {
            Admitted::Client { chain_version, op, leased } => {
                Event::Client { ticket, chain_version, op: op.op, tag: op.tag, leased }
            }
            Admitted::Chain(update) => Event::Chain { ticket, update },
        }
    }
}

impl Node {
    // Reads -----------------------------------------------------------------------------------------------

    fn read_one(&self, op: &ReadOp, into: &Placement, deadline: Instant) -> Result<ReadOutcome, Status> {
        let key = ChunkKey { chain: op.chain, chunk: op.chunk };
        let into = into.slice(0..(op.length as usize).min(into.len()));
        for _ in 0..READ_ATTEMPTS {
            // The lease and the chain version first, then the state (S4).
            self.check_read(op)?;
            match self.engine.read(key, op.offset, &mut &into) {
                Ok(outcome) if outcome.pending.is_none() => return Ok(outcome),
                Ok(_) => {}
                Err(Status::NotFound) => {
                    match self.engine.lookup(key).map_err(|status| self.failed(key, status))? {
                        None => return Err(Status::NotFound),
                        Some(state) if state.pending.is_none() => match state.committed {
                            Some(committed) if !committed.removed => continue,
                            _ => return Err(Status::NotFound),
                        },
                        Some(_) => {}
                    }
                }
                Err(status) => return Err(self.read_failed(key, status)),
            }
            // Something is pending: the machine knows what that means.
            count(&self.counters.reads_unsettled);
            match self.ask_to_read(key, op, deadline) {
                Answer::Serve => {}
                Answer::Refused(status) => return Err(status),
                Answer::Done(_) => unreachable!("a read is not an update"),
            }
            // What is pending now came after this read had begun, so the committed state is new enough.
            self.check_read(op)?;
            return self
                .engine
                .read(key, op.offset, &mut &into)
                .map_err(|status| self.read_failed(key, status));
        }
        Err(Status::Busy)
    }

    /// A read that need not wait for anything; `None`: it has to.
    fn read_cached(&self, op: &ReadOp, into: &Placement) -> Option<Result<ReadOutcome, Status>> {
        if let Err(status) = self.check_read(op) {
            return Some(Err(status));
        }
        let key = ChunkKey { chain: op.chain, chunk: op.chunk };
        let into = into.slice(0..(op.length as usize).min(into.len()));
        match self.engine.read_cached(key, op.offset, &mut &into) {
            Ok(Some(outcome)) if outcome.pending.is_none() => Some(Ok(outcome)),
            _ => None,
        }
    }

    fn check_read(&self, op: &ReadOp) -> Result<(), Status> {
        if let Some(status) = self.refusal(op.chain) {
            return Err(status);
        }
        let leased = self.lease.holds();
        let view = self.view(op.chain);
        if op.chain_version != view.chain_version {
            return Err(Status::WrongChainVersion);
        }
        if !view.is_member() {
            return Err(Status::NotServing);
        }
        if !leased {
            count(&self.counters.lease_refusals);
            return Err(Status::NoLease);
        }
        Ok(())
    }

    /// One page that cannot be read is damage, which another replica heals; it is not yet a bad disk.
    fn read_failed(&self, key: ChunkKey, status: Status) -> Status {
        match status {
            Status::Io => {
                count(&self.counters.io_errors);
                self.failed(key, Status::Checksum)
            }
            status => self.failed(key, status),
        }
    }

    fn ask_to_read(&self, key: ChunkKey, op: &ReadOp, deadline: Instant) -> Answer {
        let mut call = Call::new(self, deadline);
        let (chain_version, leased) = (op.chain_version, self.lease.holds());
        call.begin(key, Origin::Client, None, |ticket| Event::Read { ticket, chain_version, leased });
        call.finish()[0]
    }

    // Updates ---------------------------------------------------------------------------------------------

    fn admit(
        &self,
        sender: Sender<'_>,
        op: &UpdateOp,
        payload: &Placement,
    ) -> Result<(Origin, Option<Payload>, Admitted), Status> {
        if let Some(status) = self.refusal(op.chain) {
            return Err(status);
        }
        if matches!(sender, Sender::Client(claims) if claims.read_only) {
            return Err(Status::Denied);
        }
        let is_replace = matches!(op.op, Op::Replace { .. });
        let is_of_client = op.version == Version(0) && !is_replace;
        // Without a client it would be executed again when it is sent again; and what is under way is not settled.
        if is_of_client && (op.tag.client.0 == 0 || op.settled > op.tag.sequence) {
            return Err(Status::Invalid);
        }
        self.engine.writers().settle(op.tag.client, op.settled);
        if is_of_client {
            count(&self.counters.updates);
            let stable = !payload.is_shared() || is_trusted(sender);
            let payload = (!payload.is_empty()).then(|| Payload { bytes: payload.clone(), stable });
            let leased = self.lease.holds();
            let event = Admitted::Client { chain_version: op.chain_version, op: *op, leased };
            return Ok((Origin::Client, payload, event));
        }
        if !matches!(sender, Sender::Node(_)) {
            return Err(Status::Denied);
        }
        count(&self.counters.chain_updates);
        let writers = match op.op {
            Op::Replace { length, .. } => decode_writers(payload, length as usize),
            _ => Vec::new(),
        };
        let stamp = op.stamp();
        let update = Forwarded {
            chain_version: op.chain_version,
            stamp,
            op: op.op,
            tag: op.tag,
            fresh: op.fresh,
            writers,
        };
        let payload = (!payload.is_empty()).then(|| Payload { bytes: payload.clone(), stable: true });
        Ok((Origin::Chain, payload, Admitted::Chain(update)))
    }

    pub(super) fn result_of(&self, op: &UpdateOp, answer: Answer) -> UpdateResult {
        let key = ChunkKey { chain: op.chain, chunk: op.chunk };
        match answer {
            Answer::Done(version) => {
                // A predecessor does not look at the length.
                let length = if op.version == Version(0) { self.length(key) } else { 0 };
                UpdateResult { status: Status::Ok, version, length }
            }
            Answer::Refused(status) => UpdateResult { status, version: Version(0), length: 0 },
            Answer::Serve => unreachable!("an update is not a read"),
        }
    }

    // Sync ------------------------------------------------------------------------------------------------

    fn refuse_sync(&self, sender: Sender<'_>, chain: ChainId, version: ChainVersion) -> Option<Status> {
        let view = self.view(chain);
        let serves = match sender {
            Sender::Client(_) => view.is_member(),
            // A returning replica takes part.
            Sender::Node(_) => view.place != crate::craq::Place::Out,
        };
        self.refusal(chain).or(if version != view.chain_version {
            Some(Status::WrongChainVersion)
        } else if !serves {
            Some(Status::NotServing)
        } else {
            None
        })
    }

    /// Make the chains durable here and, for a client, on all other members, at the same time.
    fn sync_chains(
        &self,
        sender: Sender<'_>,
        chains: &[(ChainId, ChainVersion)],
        deadline: Instant,
    ) -> Vec<Status> {
        match sender {
            Sender::Client(_) => self.sync_members(chains, deadline),
            Sender::Node(_) => self.sync_with(&BTreeMap::new(), chains, deadline),
        }
    }

    /// Make the chains durable on all members, at the same time.
    pub(super) fn sync_members(&self, chains: &[(ChainId, ChainVersion)], deadline: Instant) -> Vec<Status> {
        self.sync_with(&self.other_members(&self.routing(), chains), chains, deadline)
    }

    fn sync_with(
        &self,
        others: &BTreeMap<NodeId, Vec<(ChainId, ChainVersion)>>,
        chains: &[(ChainId, ChainVersion)],
        deadline: Instant,
    ) -> Vec<Status> {
        let mut statuses = vec![Status::Ok; chains.len()];
        std::thread::scope(|scope| {
            let asked: Vec<_> = others
                .iter()
                .map(|(node, chains)| (chains, scope.spawn(|| self.sync_peer(*node, chains, deadline))))
                .collect();
            if let Err(status) = self.make_durable() {
                statuses.fill(status);
            }
            for (asked_for, peer) in asked {
                let answers = peer.join().expect("a sync does not panic");
                assert_eq!(answers.len(), asked_for.len(), "one status per chain");
                for (chain, answer) in
                    asked_for.iter().zip(answers).filter(|(_, answer)| *answer != Status::Ok)
                {
                    let at = chains.iter().position(|other| other == chain).expect("one of them");
                    statuses[at] = answer;
                }
            }
        });
        statuses
    }

    /// Errors: `NotServing`; the caller asks the chain again when it has continued without this node.
    pub(super) fn make_durable(&self) -> Result<(), Status> {
        self.engine.sync().map_err(|_| {
            self.mark_bad("a sync");
            Status::NotServing
        })
    }

    /// By node, the chains it takes writes of. A SYNCING replica's answer counts as any other: it may be promoted at any
    /// moment, or have been under a version that is not known here yet, and then it serves what it was given.
    fn other_members(
        &self,
        routing: &crate::cluster::routing::Routing,
        chains: &[(ChainId, ChainVersion)],
    ) -> BTreeMap<NodeId, Vec<(ChainId, ChainVersion)>> {
        let mut others: BTreeMap<NodeId, Vec<_>> = BTreeMap::new();
        for wanted in chains {
            for member in routing.chains.get(&wanted.0).iter().flat_map(|chain| &chain.members) {
                if member.node != self.id && member.state.takes_writes() {
                    others.entry(member.node).or_default().push(*wanted);
                }
            }
        }
        others
    }

    fn sync_peer(&self, node: NodeId, chains: &[(ChainId, ChainVersion)], deadline: Instant) -> Vec<Status> {
        let mut out = Vec::new();
        let mut attempt = || -> Result<(), Status> {
            let pool = self.peers.pool(&self.routing(), node, 0)?;
            let mut connection = pool.get(deadline).map_err(|error| error.status())?;
            connection.sync(chains, deadline, &mut out)
        };
        match attempt() {
            Ok(()) => out,
            Err(status) => vec![status; chains.len()],
        }
    }
}

/// A mount's buffers, and those of other nodes, are known not to change.
fn is_trusted(sender: Sender<'_>) -> bool {
    match sender {
        Sender::Client(claims) | Sender::Node(claims) => {
            matches!(claims.role(), Role::Trusted | Role::Service)
        }
    }
}

fn decode_writers(payload: &Placement, mut offset: usize) -> Vec<WriterRecord> {
    let mut writers = Vec::new();
    while offset + WriterRecord::BYTES <= payload.len() {
        let mut bytes = [0; WriterRecord::BYTES];
        payload.slice(offset..offset + WriterRecord::BYTES).copy_to(&mut bytes);
        writers.push(WriterRecord::decode(&bytes));
        offset += WriterRecord::BYTES;
    }
    writers
}
