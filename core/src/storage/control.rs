//! Calls of the Python process to its node.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use super::call::{Answer, Call};
use super::node::{Node, within};
use super::redrive_queue::RedriveJob;
use super::server::StorageServer;
use crate::chunk::{ChunkRecord, Origin, Space};
use crate::craq::Event;
use crate::error::{Error, Kind, Result};
use crate::types::{
    BATCH_OPS_MAX, Chain, ChainId, ChainVersion, ChunkId, ChunkKey, ContentId, Op, RequestTag, Stamp, Status,
    Version,
};

/// How long a control operation may take through its chain.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Chunks that are sent to a returning replica at once: as many as fit into memory that is set aside.
const PUSHES_AT_ONCE: usize = 8;
const REMOVALS_AT_ONCE: usize = 128;
const _: () = assert!(PUSHES_AT_ONCE > 0 && PUSHES_AT_ONCE <= BATCH_OPS_MAX);
const _: () = assert!(REMOVALS_AT_ONCE > 0 && REMOVALS_AT_ONCE <= BATCH_OPS_MAX);

/// One line of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkLine {
    pub chunk: ChunkId,
    pub stamp: Stamp,
    pub length: u32,
    pub crc32c: u32,
    pub removed: bool,
    /// 0: the record cannot be read, and nothing else is known.
    pub pending: Option<Version>,
}

impl ChunkLine {
    /// The index knows nothing of it.
    fn absent(chunk: ChunkId) -> ChunkLine {
        ChunkLine { chunk, stamp: Stamp::default(), length: 0, crc32c: 0, removed: false, pending: None }
    }
}

impl From<ChunkRecord> for ChunkLine {
    fn from(record: ChunkRecord) -> ChunkLine {
        ChunkLine {
            chunk: record.chunk,
            stamp: record.committed.map_or(Stamp::default(), |committed| committed.stamp),
            length: record.committed.map_or(0, |committed| committed.length),
            crc32c: record.crc32c,
            removed: record.committed.is_some_and(|committed| committed.removed),
            pending: match record.is_unreadable {
                true => Some(Version(0)),
                false => record.pending.map(|pending| pending.stamp.version),
            },
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncReport {
    /// Chunks that are equal on both sides now.
    pub equal: usize,
    pub failed: Vec<(ChunkId, Status)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    pub chunks: u64,
    pub bytes: u64,
    pub damaged: Vec<(ChunkId, Version)>,
    pub repaired: u64,
    /// The last chunk looked at; `None` at the end of the chain.
    pub last: Option<ChunkId>,
}

impl StorageServer {
    /// Up to `limit` chunks after `after`. A chunk with an update under way is pending, also while that is still being
    /// staged, when the index does not show it. `since`: only those staged since that round of sync had begun, and
    /// pending ones.
    pub fn list_chunks(
        &self,
        chain: ChainId,
        after: Option<ChunkId>,
        limit: usize,
        since: u64,
    ) -> Result<Vec<ChunkLine>> {
        // Asked before the index: an update that is being staged is in one of the two.
        let under_way = self.node.under_way(chain);
        let records = self.node.engine.list_since(chain, after, limit, since)?;
        let mut lines: BTreeMap<ChunkId, ChunkLine> =
            records.into_iter().map(|record| (record.chunk, ChunkLine::from(record))).collect();
        let through = lines.last_key_value().map(|(chunk, _)| *chunk).filter(|_| lines.len() == limit);
        for (chunk, version) in under_way {
            if after.is_none_or(|after| chunk > after) && through.is_none_or(|through| chunk <= through) {
                lines.entry(chunk).or_insert(ChunkLine::absent(chunk)).pending.get_or_insert(version);
            }
        }
        assert!(lines.keys().all(|chunk| after.is_none_or(|after| *chunk > after)), "a listing proceeds");
        Ok(lines.into_values().take(limit).collect())
    }

    /// Keep updates of clients waiting for at most `limit`; returns when none is under way (`Hold`).
    pub fn hold_updates(&self, holder: u64, limit: Duration) -> Result<()> {
        Ok(self.node.hold.begin(holder, limit)?)
    }

    /// End that; whether it had lasted until now.
    pub fn release_updates(&self, holder: u64) -> bool {
        self.node.hold.end(holder)
    }

    /// Index and length of the last committed chunk of one content. Reads one record, however many there are.
    pub fn last_chunk(
        &self,
        chain: ChainId,
        version: ChainVersion,
        content: ContentId,
    ) -> Result<Option<(u32, u32)>> {
        self.node.check_serving(chain, version)?;
        Ok(self.node.engine.last_chunk(chain, content)?)
    }

    /// Remove up to `limit` chunks through the chain: for each of `removals`, those of a content from an index on.
    /// Returns how many, and where to continue: a place in `removals`, and the index there; `None` when nothing is left.
    /// No removal is begun after `expires` (S5).
    pub fn remove_chunks(
        &self,
        (chain, version): (ChainId, ChainVersion),
        removals: &[(ContentId, u32)],
        limit: usize,
        tag: RequestTag,
        expires: Instant,
    ) -> Result<(usize, Option<(usize, u32)>)> {
        self.node.check_serving(chain, version)?;
        self.node.wait_for_routing_change();
        let limit = limit.max(1);
        let (mut found, mut rest) = (Vec::new(), None);
        for (place, &(content, first_index)) in removals.iter().enumerate() {
            let wanted = limit - found.len() + 1;
            let mut records = self.node.engine.content_chunks(chain, content, first_index, wanted)?;
            if records.len() == wanted {
                rest = records.pop().map(|next| (place, next.chunk.index));
            }
            for record in records {
                let key = ChunkKey { chain, chunk: record.chunk };
                match record.is_unreadable {
                    true => self.node.remove_unreadable(key)?,
                    false => found.push(key),
                }
            }
            if rest.is_some() {
                break;
            }
        }
        assert!(found.len() <= limit, "no more removals than were asked for");
        for group in found.chunks(REMOVALS_AT_ONCE) {
            for answer in self.update(version, group.iter().copied(), Op::Remove, tag, expires) {
                done(answer)?;
            }
        }
        Ok((found.len(), rest))
    }

    /// Return when everything that the chain has acknowledged before this call survives power loss, on all members.
    pub fn sync_chain(&self, chain: ChainId, version: ChainVersion) -> Result<()> {
        self.node.check_serving(chain, version)?;
        self.node.wait_for_routing_change();
        let statuses = self.node.sync_members(&[(chain, version)], within(TIMEOUT));
        statuses.into_iter().find(|status| *status != Status::Ok).map_or(Ok(()), |status| Err(status.into()))
    }

    pub fn truncate_chunk(
        &self,
        chain: ChainId,
        version: ChainVersion,
        chunk: ChunkId,
        length: u32,
        tag: RequestTag,
        expires: Instant,
    ) -> Result<()> {
        let key = ChunkKey { chain, chunk };
        done(self.update(version, [key], Op::Truncate { length }, tag, expires)[0])
    }

    fn update(
        &self,
        chain_version: ChainVersion,
        keys: impl IntoIterator<Item = ChunkKey>,
        op: Op,
        tag: RequestTag,
        expires: Instant,
    ) -> Vec<Answer> {
        let node = &self.node;
        let mut call = Call::new(node, expires.min(within(TIMEOUT)));
        let under_way = node.hold.enter_when_over(expires.min(within(TIMEOUT)));
        for key in keys {
            let late = under_way.is_none().then_some(Status::Timeout);
            match node.refusal(key.chain).or(late) {
                Some(status) => call.refuse(key, status),
                None => {
                    let leased = node.lease.holds();
                    call.begin(key, Origin::Client, None, |ticket| Event::Client {
                        ticket,
                        chain_version,
                        op,
                        tag,
                        leased,
                    });
                }
            }
        }
        let answers = call.finish();
        drop(under_way);
        match node.sync_updates.then(|| node.make_durable()) {
            Some(Err(status)) => answers.iter().map(|_| Answer::Refused(status)).collect(),
            _ => answers,
        }
    }

    /// Make the SYNCING successor's copies of these chunks equal to this node's. Errors: `StaleRouting` when
    /// the chain has changed, so that everything must be compared again.
    pub fn sync_chunks(
        &self,
        chain: ChainId,
        chain_version: ChainVersion,
        chunks: &[ChunkId],
    ) -> Result<SyncReport> {
        let mut report = SyncReport::default();
        for group in chunks.chunks(PUSHES_AT_ONCE) {
            let mut call = Call::new(&self.node, within(TIMEOUT));
            for chunk in group {
                let key = ChunkKey { chain, chunk: *chunk };
                match self.node.refusal(chain) {
                    Some(status) => call.refuse(key, status),
                    None => {
                        call.begin(key, Origin::Chain, None, |ticket| Event::Push { ticket, chain_version });
                    }
                }
            }
            for (chunk, answer) in group.iter().zip(call.finish()) {
                match answer {
                    Answer::Done(_) => report.equal += 1,
                    Answer::Refused(Status::WrongChainVersion) => {
                        return Err(Status::WrongChainVersion.into());
                    }
                    Answer::Refused(status) => report.failed.push((*chunk, status)),
                    Answer::Serve => unreachable!("a push is not a read"),
                }
            }
        }
        assert_eq!(report.equal + report.failed.len(), chunks.len(), "one outcome per chunk");
        Ok(report)
    }

    /// Drive every pending version of a chain to its end; how many are left after `timeout`.
    pub fn commit_pending(&self, chain: ChainId, timeout: Duration) -> usize {
        let (node, deadline) = (&self.node, within(timeout));
        if node.view(chain).is_member() {
            for key in node.table.dormant_of(&HashSet::from([chain])) {
                node.redrive.push(RedriveJob::Wake(key));
            }
        }
        loop {
            let left = node.pending_count(chain);
            if left == 0 || Instant::now() >= deadline {
                return left;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn scrub(
        &self,
        chain: ChainId,
        after: Option<ChunkId>,
        limit: usize,
        repair: bool,
    ) -> Result<ScrubReport> {
        let records = self.node.engine.list(chain, after, limit)?;
        let mut report = ScrubReport::default();
        if records.len() == limit {
            report.last = records.last().map(|record| record.chunk);
        }
        for record in records {
            if record.is_unreadable {
                report.damaged.push((record.chunk, Version(0)));
            }
            let Some(committed) = record.committed.filter(|committed| !committed.removed) else { continue };
            let key = ChunkKey { chain, chunk: record.chunk };
            report.chunks += 1;
            report.bytes += u64::from(committed.length);
            if self.node.engine.verify(key)?.is_empty() {
                continue;
            }
            report.damaged.push((record.chunk, committed.stamp.version));
            if repair && self.node.repair(key).is_ok() {
                report.repaired += 1;
            }
        }
        Ok(report)
    }

    /// Chains of which this node's disk has chunks, members or not, in order.
    pub fn stored_chains(&self) -> Vec<ChainId> {
        self.node.engine.chains()
    }

    /// Forget every chunk of a chain that this node is not a serving member of.
    pub fn wipe_chain(&self, chain: ChainId) -> Result<()> {
        let node = &self.node;
        if node.view(chain).is_member() {
            return Err(Error::new(Kind::Busy, format!("chain {chain} is served by this node")));
        }
        if !node.wiping.lock().insert(chain) {
            return Err(Error::new(Kind::Busy, format!("chain {chain} is being wiped already")));
        }
        let result = self.wipe(chain);
        node.wiping.lock().remove(&chain);
        result
    }

    fn wipe(&self, chain: ChainId) -> Result<()> {
        let (node, chains) = (&self.node, HashSet::from([chain]));
        // Nothing new comes in; what is under way ends first.
        let deadline = within(TIMEOUT);
        while !node.table.slots_of(&chains).is_empty() {
            if Instant::now() >= deadline {
                return Err(Error::new(Kind::Busy, format!("chain {chain} is in use")));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        while !node.engine.remove_chain(chain, 1000)? {}
        for key in node.table.dormant_of(&chains) {
            node.table.awake(&key);
        }
        Ok(())
    }

    /// Rounds of sync begun on this disk: separates what was staged before from what was staged after.
    pub fn round(&self) -> u64 {
        self.node.engine.round()
    }

    /// The round up to which the disk had been synced when its directory was opened, and that of now.
    pub fn rounds(&self) -> (u64, u64) {
        (self.node.engine.opened_round(), self.node.engine.synced_round())
    }

    /// The directory is known to be the newest of this node (`Engine::confirm`).
    pub fn confirm(&self) -> Result<()> {
        Ok(self.node.engine.confirm()?)
    }

    /// Look at the next `limit` chunks of a chain and forget the tombstones among them that were staged before
    /// `round` began; how many, and the last chunk looked at, `None` at the end. The caller knows that this round
    /// began so long ago that no message and no request from before is on its way (R7). Does nothing while a replica of
    /// the chain is away: it would return with chunks whose removal is forgotten.
    pub fn purge_tombstones(
        &self,
        chain: ChainId,
        after: Option<ChunkId>,
        round: u64,
        limit: usize,
    ) -> Result<(usize, Option<ChunkId>)> {
        let node = &self.node;
        let is_whole = |chain: &Chain| chain.serving().count() == chain.members.len();
        let whole =
            || node.routing().chains.get(&chain).is_some_and(is_whole) && node.view(chain).is_member();
        if !whole() {
            return Ok((0, None));
        }
        let (found, last) = node.engine.old_tombstones(chain, after, round, limit)?;
        let mut count = 0;
        for (key, stamp) in found {
            if whole() && node.refusal(chain).is_none() {
                count += usize::from(node.forget(key, stamp)?);
            }
        }
        assert!(count <= limit, "no more than were looked at");
        Ok((count, last))
    }

    pub fn sync(&self) -> Result<()> {
        Ok(self.node.engine.sync()?)
    }

    pub fn space(&self) -> Result<Space> {
        Ok(self.node.engine.space()?)
    }
}

impl Node {
    fn check_serving(&self, chain: ChainId, version: ChainVersion) -> Result<()> {
        let view = self.view(chain);
        let status = match self.refusal(chain) {
            Some(status) => Some(status),
            None if version != view.chain_version => Some(Status::WrongChainVersion),
            None if !view.is_member() => Some(Status::NotServing),
            None if !self.lease.holds() => Some(Status::NoLease),
            None => None,
        };
        status.map_or(Ok(()), |status| Err(status.into()))
    }
}

fn done(answer: Answer) -> Result<()> {
    match answer {
        Answer::Done(_) => Ok(()),
        Answer::Refused(status) => Err(status.into()),
        Answer::Serve => unreachable!("an update is not a read"),
    }
}
