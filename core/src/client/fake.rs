//! Fakes of the services in memory, for tests: chunks that fail or wait on request, and the part of the
//! metadata service that files need. `tests/unit/meta/test_contract.py` asks that part and the service the same.
//!
//! For threads of a schedule (`schedule.rs`) calls take their time, and fail as `FaultPlan` say.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use crate::lock::{Condvar, Mutex};
use prost::Message;
use rustix::io::Errno;

use super::chunk_store::ChunkStore;
use super::data::{Read, Write};
use super::deferred_setattr::without_set_id;
use super::meta::{Channel, Meta};
use super::open_files::OpenFiles;
use super::shared::Shared;
use crate::buffer::BufferPool;
use crate::error::{Error, Kind, Result};
use crate::schedule;
use crate::types::{ClientId, ContentId};
use crate::wire::pb::{self, Method};

pub const CHUNK_BYTES: u32 = 64 << 10;
pub const INLINE_BYTES: u32 = 4096;
/// No client has this number.
const NO_CLIENT: u64 = 0;
const PERMISSION_BITS: u32 = 0o7777;
/// As user or group: leave it.
const NO_ID: u32 = u32::MAX;

/// What a fake keeps. Its lock is no step of a schedule: to clients a call is carried out at one moment.
#[derive(Default)]
pub struct Kept<T>(std::sync::Mutex<T>);

impl<T> Kept<T> {
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What goes wrong for threads of a schedule: one in so many calls; 0: none.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultPlan {
    /// The answer is lost, and the call sent again: it is answered with inodes as they are then.
    pub again: u64,
    /// Refused because of another transaction.
    pub conflict: u64,
    /// Not carried out.
    pub refused: u64,
    /// Carried out, and never answered.
    pub lost: u64,
}

fn happens(one_in: u64) -> bool {
    one_in != 0 && schedule::one_in(one_in)
}

/// A chunk's bytes when the last finished sync of it began.
#[derive(Default)]
struct DurableChunk {
    /// Syncs are counted as they begin.
    sync: usize,
    bytes: Vec<u8>,
}

/// Contents in memory.
#[derive(Default)]
pub struct FakeChunks {
    contents: Kept<HashMap<u64, Vec<u8>>>,
    /// What survives the loss of power, by content and number of the chunk.
    durable: Kept<BTreeMap<(u64, u64), DurableChunk>>,
    /// Cuts of contents: how many syncs had begun, the content, its length. A sync that began before does not bring back
    /// what was cut away.
    cuts: Kept<Vec<(usize, u64, usize)>>,
    /// How many calls wait to be let go, and how many writes they have.
    waiting: AtomicUsize,
    waiting_writes: AtomicUsize,
    /// Error of the next writes.
    fault: Kept<Option<Error>>,
    /// Error of writes to one place.
    fault_at: Kept<Option<(u64, Error)>>,
    faults: Kept<FaultPlan>,
    /// The next batch panics.
    mistaken: AtomicBool,
    held: Mutex<bool>,
    /// Whether syncs wait before they end, and how many do.
    held_syncs: Mutex<(bool, usize)>,
    /// Error of the next syncs.
    sync_fault: Kept<Option<Error>>,
    /// What happens before each sync ends.
    during_sync: Kept<Option<Arc<dyn Fn() + Send + Sync>>>,
    released: Condvar,
    pub writes: AtomicUsize,
    pub reads: AtomicUsize,
    pub syncs: AtomicUsize,
}

impl FakeChunks {
    /// Return a copy of the contents, which goes its own way.
    pub fn fork(&self) -> FakeChunks {
        FakeChunks {
            contents: Kept(std::sync::Mutex::new(self.contents.lock().clone())),
            ..Default::default()
        }
    }

    /// Return all contents, in order.
    pub fn all(&self) -> BTreeMap<u64, Vec<u8>> {
        self.contents.lock().iter().map(|(content, bytes)| (*content, bytes.clone())).collect()
    }

    pub fn fail_writes(&self, error: Option<Error>) {
        *self.fault.lock() = error;
    }

    /// Writes to this offset fail.
    pub fn fail_writes_at(&self, offset: u64, error: Error) {
        *self.fault_at.lock() = Some((offset, error));
    }

    pub fn panic_at_next_batch(&self) {
        self.mistaken.store(true, Ordering::Relaxed);
    }

    fn fail_if_mistaken(&self) {
        assert!(!self.mistaken.swap(false, Ordering::Relaxed), "a mistake, on purpose");
    }

    /// Writes wait until they are let go.
    pub fn hold_writes(&self, hold: bool) {
        *self.held.lock() = hold;
        self.released.notify_all();
    }

    /// Returns when so many calls wait to write.
    pub fn wait_for_writers(&self, count: usize) {
        let mut held = self.held.lock();
        while self.waiting.load(Ordering::Relaxed) < count {
            self.released.wait(&mut held);
        }
    }

    /// Returns when so many writes wait; in how many calls.
    pub fn wait_for_writes(&self, count: usize) -> usize {
        let mut held = self.held.lock();
        while self.waiting_writes.load(Ordering::Relaxed) < count {
            self.released.wait(&mut held);
        }
        self.waiting.load(Ordering::Relaxed)
    }

    pub fn fail_syncs(&self, error: Option<Error>) {
        *self.sync_fault.lock() = error;
    }

    pub fn during_sync(&self, work: impl Fn() + Send + Sync + 'static) {
        *self.during_sync.lock() = Some(Arc::new(work));
    }

    /// Syncs that have begun wait until they are released.
    pub fn hold_syncs(&self, hold: bool) {
        self.held_syncs.lock().0 = hold;
        self.released.notify_all();
    }

    /// Returns when so many syncs wait.
    pub fn wait_for_syncs(&self, count: usize) {
        let mut held = self.held_syncs.lock();
        while held.1 < count {
            self.released.wait(&mut held);
        }
    }

    /// What is left of a content after the loss of power.
    pub fn durable(&self, content: u64, chunk_bytes: u32) -> Vec<u8> {
        let mut bytes = Vec::new();
        for ((_, index), chunk) in self.durable.lock().range((content, 0)..(content + 1, 0)) {
            bytes.resize(*index as usize * chunk_bytes as usize, 0);
            bytes.extend(&chunk.bytes);
        }
        bytes
    }

    /// The chunks of a content that `range` touches, as they are now.
    fn chunks_in(&self, content: u64, range: Range<u64>, chunk_bytes: u32) -> Vec<(u64, Vec<u8>)> {
        let bytes = self.content(content);
        let indices =
            range.start / u64::from(chunk_bytes)..=range.end.saturating_sub(1) / u64::from(chunk_bytes);
        let chunks = bytes.chunks(chunk_bytes as usize).zip(0..);
        chunks
            .filter(|(_, index)| indices.contains(index))
            .map(|(chunk, index)| (index, chunk.to_vec()))
            .collect()
    }

    fn make_durable(&self, sync: usize, content: u64, chunks: Vec<(u64, Vec<u8>)>, chunk_bytes: u32) {
        let mut durable = self.durable.lock();
        let cuts = self.cuts.lock();
        let since = cuts.iter().filter(|(syncs, cut, _)| *cut == content && *syncs >= sync);
        let end = since.map(|(_, _, length)| *length).min().unwrap_or(usize::MAX);
        for (index, mut bytes) in chunks {
            bytes.truncate(end.saturating_sub(index as usize * chunk_bytes as usize));
            let known = durable.entry((content, index)).or_default();
            if known.sync <= sync {
                *known = DurableChunk { sync, bytes };
            }
        }
    }

    /// Cuts a content at once, and on disk.
    fn cut(&self, content: u64, length: usize, chunk_bytes: u32) {
        if let Some(bytes) = self.contents.lock().get_mut(&content) {
            bytes.truncate(length);
        }
        self.cuts.lock().push((self.syncs.load(Ordering::Relaxed), content, length));
        for ((_, index), chunk) in self.durable.lock().range_mut((content, 0)..(content + 1, 0)) {
            chunk.bytes.truncate(length.saturating_sub(*index as usize * chunk_bytes as usize));
        }
    }

    pub fn content(&self, content: u64) -> Vec<u8> {
        self.contents.lock().get(&content).cloned().unwrap_or_default()
    }

    /// Puts bytes into a content, as an acknowledged write does.
    pub fn write(&self, content: u64, offset: u64, bytes: &[u8]) {
        let mut contents = self.contents.lock();
        let stored = contents.entry(content).or_default();
        let end = offset as usize + bytes.len();
        if stored.len() < end {
            stored.resize(end, 0);
        }
        stored[offset as usize..end].copy_from_slice(bytes);
    }

    /// From now on writes and reads fail at times.
    pub fn follow(&self, faults: FaultPlan) {
        *self.faults.lock() = faults;
    }

    fn fault_now(&self) -> Result<()> {
        let refused = happens(self.faults.lock().refused);
        if refused { Err(Error::new(Kind::Unavailable, "a planned fault")) } else { Ok(()) }
    }

    fn chunks_of(writes: &[Write]) -> Vec<(u64, u64)> {
        let chunk = |write: &Write| (write.content.0, write.offset / u64::from(write.layout.chunk_bytes));
        let mut chunks: Vec<_> = writes.iter().map(chunk).collect();
        chunks.dedup();
        chunks
    }

    fn put(&self, write: &Write) {
        let mut bytes = vec![0; write.payload.len()];
        write.payload.copy_to(&mut bytes);
        self.write(write.content.0, write.offset, &bytes);
    }
}

/// One client's way to the chunks.
struct ChunkClient {
    fake: Arc<FakeChunks>,
    under_way: Mutex<HashMap<(u64, u64), usize>>,
}

impl ChunkStore for ChunkClient {
    fn read(&self, read: &Read) -> Result<()> {
        self.fake.reads.fetch_add(1, Ordering::Relaxed);
        schedule::pause();
        self.fake.fault_now()?;
        read.into.zero();
        {
            let contents = self.fake.contents.lock();
            let bytes = contents.get(&read.content.0).map(Vec::as_slice).unwrap_or_default();
            let known = bytes.get(read.offset as usize..).unwrap_or_default();
            read.into.copy_from(&known[..known.len().min(read.into.len())]);
        }
        schedule::pause();
        Ok(())
    }

    fn read_many(&self, reads: &[Read]) -> Vec<Result<()>> {
        self.fake.fail_if_mistaken();
        reads.iter().map(|read| self.read(read)).collect()
    }

    fn write_many(&self, writes: &[Write]) -> Vec<Result<()>> {
        self.fake.fail_if_mistaken();
        let chunks = FakeChunks::chunks_of(writes);
        for chunk in &chunks {
            let mut under_way = self.under_way.lock();
            let count = under_way.entry(*chunk).or_default();
            assert_eq!(*count, 0, "I2: one update of a chunk in flight at a time");
            *count += 1;
        }
        let mut held = self.fake.held.lock();
        self.fake.waiting.fetch_add(1, Ordering::Relaxed);
        self.fake.waiting_writes.fetch_add(writes.len(), Ordering::Relaxed);
        self.fake.released.notify_all();
        while *held {
            self.fake.released.wait(&mut held);
        }
        self.fake.waiting.fetch_sub(1, Ordering::Relaxed);
        self.fake.waiting_writes.fetch_sub(writes.len(), Ordering::Relaxed);
        drop(held);
        let results = writes.iter().map(|write| {
            let chunk_bytes = u64::from(write.layout.chunk_bytes);
            assert!(write.offset % chunk_bytes + write.payload.len() as u64 <= chunk_bytes);
            self.fake.writes.fetch_add(1, Ordering::Relaxed);
            schedule::pause();
            if let Some(error) = self.fake.fault.lock().clone() {
                return Err(error);
            }
            if let Some((offset, error)) = &*self.fake.fault_at.lock()
                && *offset == write.offset
            {
                return Err(error.clone());
            }
            self.fake.fault_now()?;
            self.fake.put(write);
            Ok(())
        });
        let results = results.collect();
        schedule::pause();
        for chunk in &chunks {
            *self.under_way.lock().get_mut(chunk).unwrap() -= 1;
        }
        results
    }

    fn sync(&self, layout: &pb::Layout, content: ContentId, range: Range<u64>) -> Result<()> {
        let number = self.fake.syncs.fetch_add(1, Ordering::Relaxed) + 1;
        let chunks = self.fake.chunks_in(content.0, range, layout.chunk_bytes);
        let mut held = self.fake.held_syncs.lock();
        held.1 += 1;
        self.fake.released.notify_all();
        while held.0 {
            self.fake.released.wait(&mut held);
        }
        held.1 -= 1;
        drop(held);
        let during = self.fake.during_sync.lock().clone();
        if let Some(work) = during {
            work();
        }
        schedule::pause();
        self.fake.fault_now()?;
        if let Some(error) = self.fake.sync_fault.lock().clone().or(self.fake.fault.lock().clone()) {
            return Err(error);
        }
        self.fake.make_durable(number, content.0, chunks, layout.chunk_bytes);
        Ok(())
    }

    fn data_extents(&self, _: &pb::Layout, content: ContentId, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let end = range.end.min(self.fake.content(content.0).len() as u64);
        Ok((range.start < end).then_some(range.start..end).into_iter().collect())
    }
}

/// The method of a request that was carried out, and its reply.
type Record = (Method, Vec<u8>);

/// Inodes in memory. Names: only "f<number>" below the root, which is inode <number>.
pub struct FakeMeta {
    /// Held by the call that is being carried out: a call of the service is one transaction.
    transaction: Kept<()>,
    inodes: Kept<HashMap<u64, pb::Inode>>,
    /// Those that survive the loss of power.
    durable: Kept<HashMap<u64, pb::Inode>>,
    chunks: Arc<FakeChunks>,
    pub calls: Kept<Vec<Method>>,
    /// Error of the next calls.
    fault: Kept<Option<Error>>,
    faults: Kept<FaultPlan>,
    /// Of new files.
    layout: Kept<pb::Layout>,
    last_content: AtomicUsize,
    spares: Kept<Vec<u64>>,
    /// Write sessions, by inode and session, and whose they are.
    sessions: Kept<BTreeMap<(u64, u64), u64>>,
    last_session: AtomicU64,
    /// By client and sequence number.
    records: Kept<BTreeMap<(u64, u64), Record>>,
    /// By client: requests below this number are void.
    settled: Kept<HashMap<u64, u64>>,
    /// Grows with each look at it.
    clock_ns: AtomicU64,
    /// Sessions that were left to the collector, which has ended them at once.
    measured: Kept<Vec<(u64, u64)>>,
    /// The next answer to this method is held back; and whether somebody waits for it.
    held: Mutex<(Option<Method>, bool)>,
    released: Condvar,
}

impl FakeMeta {
    pub fn new(chunks: Arc<FakeChunks>) -> Arc<FakeMeta> {
        let fake = FakeMeta {
            transaction: Kept::default(),
            inodes: Kept::default(),
            durable: Kept::default(),
            chunks,
            calls: Kept::default(),
            fault: Kept::default(),
            faults: Kept::default(),
            layout: Kept::default(),
            last_content: AtomicUsize::new(1000),
            spares: Kept::default(),
            sessions: Kept::default(),
            last_session: AtomicU64::new(0),
            records: Kept::default(),
            settled: Kept::default(),
            clock_ns: AtomicU64::new(1_700_000_000_000_000_000),
            measured: Kept::default(),
            held: Mutex::default(),
            released: Condvar::new(),
        };
        fake.lay_out(CHUNK_BYTES, INLINE_BYTES);
        Arc::new(fake)
    }

    /// Return a copy of inodes, sessions and spares over `chunks`, which goes its own way.
    pub fn fork(&self, chunks: Arc<FakeChunks>) -> Arc<FakeMeta> {
        let fork = FakeMeta::new(chunks);
        *fork.inodes.lock() = self.inodes.lock().clone();
        *fork.layout.lock() = *self.layout.lock();
        *fork.spares.lock() = self.spares.lock().clone();
        *fork.sessions.lock() = self.sessions.lock().clone();
        fork.last_content.store(self.last_content.load(Ordering::Relaxed), Ordering::Relaxed);
        fork.last_session.store(self.last_session.load(Ordering::Relaxed), Ordering::Relaxed);
        fork
    }

    /// Files made from now on have chunks of this size, and so many bytes in their inodes.
    pub fn lay_out(&self, chunk_bytes: u32, inline_bytes: u32) {
        let (stripe, permutation_version) = (1, 1);
        *self.layout.lock() = pb::Layout {
            chunk_bytes,
            inline_bytes: Some(inline_bytes),
            stripe,
            permutation_version,
            ..Default::default()
        };
    }

    /// From now on calls go wrong at times.
    pub fn follow(&self, faults: FaultPlan) {
        *self.faults.lock() = faults;
    }

    /// Ends all write sessions, as if their clients had been silent for too long.
    pub fn end_sessions(&self) {
        self.sessions.lock().clear();
    }

    /// Closes that asked for the length on the chains.
    pub fn measured(&self) -> Vec<(u64, u64)> {
        self.measured.lock().clone()
    }

    /// Write sessions that have not ended.
    pub fn sessions(&self) -> Vec<(u64, u64)> {
        self.sessions.lock().keys().copied().collect()
    }

    /// The next call of this method is carried out, and answered once this is called with `None`; a sync as one that
    /// had to be sent again: with the inode as it is then.
    pub fn hold_answer(&self, method: Option<Method>) {
        self.held.lock().0 = method;
        self.released.notify_all();
    }

    /// Returns when a call has been carried out and waits for its answer.
    pub fn wait_for_caller(&self) {
        let mut held = self.held.lock();
        while !held.1 {
            self.released.wait(&mut held);
        }
    }

    pub fn inode(&self, id: u64) -> pb::Inode {
        self.inodes.lock()[&id].clone()
    }

    /// What the file holds after the loss of power; `None`: it is not there.
    pub fn durable_bytes(&self, id: u64) -> Option<Vec<u8>> {
        let inode = self.durable.lock().get(&id)?.clone();
        let chunk_bytes = inode.layout.unwrap_or_default().chunk_bytes;
        let mut bytes =
            if inode.is_inline { inode.inline_data } else { self.chunks.durable(inode.content, chunk_bytes) };
        // A writer's session survives too, so its length is measured.
        bytes.resize(bytes.len().max(inode.length as usize), 0);
        Some(bytes)
    }

    /// Somebody else makes empty files.
    pub fn make(&self, ids: Range<u64>) {
        let empty = |id| (id, pb::Inode { id, change: 1, ..Default::default() });
        self.inodes.lock().extend(ids.map(empty));
    }

    /// Somebody else removes a file.
    pub fn remove(&self, id: u64) {
        self.inodes.lock().remove(&id);
    }

    pub fn fail_calls(&self, error: Option<Error>) {
        *self.fault.lock() = error;
    }

    pub fn count(&self, method: Method) -> usize {
        self.calls.lock().iter().filter(|called| **called == method).count()
    }

    pub fn call<Q: Message, R: Message + Default>(&self, method: Method, request: &Q) -> Result<R> {
        self.calls.lock().push(method);
        if let Some(error) = self.fault.lock().clone() {
            return Err(error);
        }
        let bytes = request.encode_to_vec();
        let faults = *self.faults.lock();
        schedule::pause();
        if happens(faults.refused) {
            return Err(Error::new(Kind::Unavailable, "a planned fault"));
        }
        if method == Method::MetaSync && happens(faults.conflict) {
            return Err(Error::new(Kind::Conflict, "a planned fault"));
        }
        let mut reply = self.answer(method, &bytes)?;
        if self.hold_back(method) || happens(faults.again) {
            schedule::pause();
            reply = self.answer(method, &bytes)?;
        }
        let reply = self.shown(method, &bytes, reply);
        schedule::pause();
        if happens(faults.lost) {
            return Err(Error::new(Kind::Timeout, "a planned fault"));
        }
        Ok(R::decode(reply.as_slice()).expect("fake and caller agree on types"))
    }

    /// Carries out a request in its wire form, without a fault.
    pub fn carry_out(&self, method: Method, request: &[u8]) -> Result<Vec<u8>> {
        let reply = self.answer(method, request)?;
        Ok(self.shown(method, request, reply))
    }

    /// True: the answer has waited for `hold_answer`, and is to be asked for again.
    fn hold_back(&self, method: Method) -> bool {
        let mut held = self.held.lock();
        if held.0 != Some(method) || held.1 {
            return false;
        }
        held.1 = true;
        self.released.notify_all();
        while held.0.is_some() {
            self.released.wait(&mut held);
        }
        held.1 = false;
        method == Method::MetaSync
    }

    /// Whatever a call reads and changes, no other call changes meanwhile. Threads of a schedule do not wait in here.
    fn answer(&self, method: Method, bytes: &[u8]) -> Result<Vec<u8>> {
        let _transaction = self.transaction.lock();
        let caller = caller_of(bytes);
        self.admit(&caller)?;
        // Asked again, these answer as things are then.
        let is_recorded = caller.sequence != 0 && !matches!(method, Method::MetaList | Method::MetaHold);
        let key = (caller.client, caller.sequence);
        if is_recorded && let Some((known, reply)) = self.records.lock().get(&key).cloned() {
            return if known == method { Ok(self.answer_again(method, reply)) } else { Err(used()) };
        }
        let reply = self.carry_out_once(method, bytes, caller.client)?;
        if is_recorded {
            self.records.lock().insert(key, (method, reply.clone()));
        }
        Ok(reply)
    }

    /// Takes note of what the caller has settled; refuses what is settled.
    fn admit(&self, caller: &pb::Caller) -> Result<()> {
        if caller.sequence == 0 {
            return Ok(());
        }
        if caller.settled_below > caller.sequence {
            return Err(Error::invalid("a request cannot be settled when it is sent"));
        }
        let mut settled = self.settled.lock();
        let below = settled.entry(caller.client).or_default();
        if caller.sequence < *below {
            return Err(Error::invalid("the request is void: its client has given it up"));
        }
        *below = caller.settled_below.max(*below);
        let client = caller.client;
        self.records.lock().retain(|(owner, sequence), _| *owner != client || sequence >= below);
        Ok(())
    }

    /// A reply that was lost, with inodes as they are now.
    fn answer_again(&self, method: Method, reply: Vec<u8>) -> Vec<u8> {
        let renew = |inode: &mut pb::Inode| {
            *inode = self.inodes.lock().get(&inode.id).unwrap_or(inode).clone();
        };
        change_inodes(method, reply, renew)
    }

    fn carry_out_once(&self, method: Method, bytes: &[u8], client: u64) -> Result<Vec<u8>> {
        let reply = match method {
            Method::MetaCreate => self.create(pb::CreateRequest::decode(bytes).unwrap(), client)?,
            Method::MetaOpen => {
                let request = pb::OpenRequest::decode(bytes).unwrap();
                self.open(request.path.unwrap().at, request.write, request.truncate, client)?
            }
            Method::MetaStat => {
                reply_of(self.take(pb::StatRequest::decode(bytes).unwrap().path.unwrap().at)?)
            }
            Method::MetaSync => self.sync(pb::SyncRequest::decode(bytes).unwrap())?,
            Method::MetaSetAttr => self.set_attr(pb::SetAttrRequest::decode(bytes).unwrap(), client)?,
            Method::MetaList => {
                return Ok(self.list(pb::ListRequest::decode(bytes).unwrap()).encode_to_vec());
            }
            Method::MetaHold => {
                let mut lost = pb::HoldRequest::decode(bytes).unwrap().sessions;
                lost.retain(|one| self.owner(one.inode, one.session) != Some(client));
                lost.sort_by_key(|one| (one.inode, one.session));
                return Ok(pb::HoldReply { lost, ..Default::default() }.encode_to_vec());
            }
            Method::MetaClose => {
                return Ok(self.close(pb::CloseRequest::decode(bytes).unwrap(), client).encode_to_vec());
            }
            other => panic!("the fake does not know {other:?}"),
        };
        Ok(reply.encode_to_vec())
    }

    /// The inode, to be changed.
    fn take(&self, id: u64) -> Result<pb::Inode> {
        self.inodes.lock().get(&id).cloned().ok_or_else(|| Error::new(Kind::NotFound, "no inode"))
    }

    /// Stores an inode that was taken and changed.
    fn change(&self, inode: &mut pb::Inode) {
        inode.change += 1;
        inode.ctime_ns = self.now_ns();
        self.inodes.lock().insert(inode.id, inode.clone());
    }

    fn now_ns(&self) -> i64 {
        self.clock_ns.fetch_add(1, Ordering::Relaxed) as i64
    }

    fn list(&self, request: pb::ListRequest) -> pb::ListReply {
        let inodes = self.inodes.lock();
        let entry = |inode: &pb::Inode| pb::Dentry {
            name: format!("f{}", inode.id).into(),
            inode: inode.id,
            r#type: inode.r#type,
            attributes: request.with_inodes.then(|| pb::Inode { inline_data: Vec::new(), ..inode.clone() }),
            ..Default::default()
        };
        let mut entries: Vec<_> = inodes.values().map(entry).collect();
        if request.by_cookie {
            entries.retain(|entry| entry.inode > request.after_cookie);
            entries.sort_by_key(|entry| entry.inode);
        } else {
            entries.retain(|entry| entry.name > request.after);
            entries.sort_by(|one, other| one.name.cmp(&other.name));
        }
        let limit = if request.limit == 0 { usize::MAX } else { request.limit as usize };
        let more = entries.len() > limit;
        entries.truncate(limit);
        let next_cookie = inodes.keys().max().map_or(1, |last| last + 1);
        pb::ListReply { entries, more, parent: 1, next_cookie }
    }

    /// The reply, with what the caller is shown of files that other clients write: that they do, and of one in chunks
    /// the length that the chains hold.
    fn shown(&self, method: Method, request: &[u8], reply: Vec<u8>) -> Vec<u8> {
        let client = caller_of(request).client;
        let show = |inode: &mut pb::Inode| {
            if self.others_write(inode.id, client) {
                inode.others_write = true;
                if !inode.is_inline {
                    inode.length = inode.length.max(self.measure(inode.content));
                }
            }
        };
        change_inodes(method, reply, show)
    }

    fn others_write(&self, id: u64, client: u64) -> bool {
        self.sessions.lock().iter().any(|((inode, _), owner)| *inode == id && *owner != client)
    }

    /// Whose write session that is.
    fn owner(&self, inode: u64, session: u64) -> Option<u64> {
        self.sessions.lock().get(&(inode, session)).copied()
    }

    fn measure(&self, content: u64) -> u64 {
        self.chunks.contents.lock().get(&content).map_or(0, |bytes| bytes.len() as u64)
    }

    fn fresh_content(&self) -> u64 {
        self.last_content.fetch_add(1, Ordering::Relaxed) as u64
    }

    fn fresh_session(&self, inode: u64, client: u64) -> u64 {
        let session = self.last_session.fetch_add(1, Ordering::Relaxed) + 1;
        self.sessions.lock().insert((inode, session), client);
        session
    }

    fn create(&self, request: pb::CreateRequest, client: u64) -> Result<pb::InodeReply> {
        let name = String::from_utf8(request.path.unwrap().path).unwrap();
        let id: u64 = name[1..].parse().unwrap();
        if self.inodes.lock().contains_key(&id) {
            if request.exclusive {
                return Err(Error::new(Kind::AlreadyExists, "the name exists already"));
            }
            return self.open(id, request.write, request.truncate, client);
        }
        let layout = *self.layout.lock();
        let now_ns = self.now_ns();
        let inode = pb::Inode {
            id,
            r#type: pb::FileType::Regular.into(),
            permissions: request.permissions & PERMISSION_BITS,
            layout: Some(layout),
            content: self.fresh_content(),
            is_inline: layout.inline_bytes() > 0 && !request.in_chunks,
            change: 1,
            link_count: 1,
            atime_ns: now_ns,
            mtime_ns: now_ns,
            ctime_ns: now_ns,
            birth_ns: now_ns as u64,
            parent: 1,
            ..Default::default()
        };
        self.inodes.lock().insert(id, inode.clone());
        let session = if request.write { self.fresh_session(id, client) } else { 0 };
        Ok(pb::InodeReply { session, created: true, ..reply_of(inode) })
    }

    fn open(&self, id: u64, write: bool, truncate: bool, client: u64) -> Result<pb::InodeReply> {
        let mut inode = self.take(id)?;
        if truncate {
            self.cut(&mut inode, 0, client)?;
            self.change(&mut inode);
        }
        let session = if write { self.fresh_session(id, client) } else { 0 };
        Ok(pb::InodeReply { session, ..reply_of(inode) })
    }

    fn cut(&self, inode: &mut pb::Inode, length: u64, client: u64) -> Result<()> {
        let layout = inode.layout.unwrap_or_default();
        require_length(&layout, length)?;
        if inode.is_inline {
            inode.inline_data.truncate(length as usize);
            inode.inline_data.resize(length.min(u64::from(layout.inline_bytes())) as usize, 0);
        } else if length == 0 && !self.others_write(inode.id, client) {
            // Content that was never written stays.
            if inode.length > 0 || self.others_write(inode.id, NO_CLIENT) {
                inode.content = self.fresh_content();
            }
            inode.is_inline = layout.inline_bytes() > 0;
        } else {
            self.chunks.cut(inode.content, length as usize, layout.chunk_bytes);
        }
        inode.length = length;
        inode.truncate_version += 1;
        inode.mtime_ns = self.now_ns();
        Ok(())
    }

    fn set_attr(&self, request: pb::SetAttrRequest, client: u64) -> Result<pb::InodeReply> {
        let mut inode = self.take(request.path.as_ref().unwrap().at)?;
        if let Some(length) = request.length {
            self.cut(&mut inode, length, client)?;
        }
        if request.clear_set_id {
            inode.permissions = without_set_id(inode.permissions);
        }
        self.change_attributes(&mut inode, &request);
        self.change(&mut inode);
        Ok(reply_of(inode))
    }

    fn change_attributes(&self, inode: &mut pb::Inode, request: &pb::SetAttrRequest) {
        let (uid, gid) = (request.uid.filter(|id| *id != NO_ID), request.gid.filter(|id| *id != NO_ID));
        if uid.is_some() || gid.is_some() {
            inode.permissions = without_set_id(inode.permissions);
        }
        inode.uid = uid.unwrap_or(inode.uid);
        inode.gid = gid.unwrap_or(inode.gid);
        inode.permissions = request.permissions.map_or(inode.permissions, |bits| bits & PERMISSION_BITS);
        let time_ns = |is_now: bool, set_ns: Option<i64>| if is_now { Some(self.now_ns()) } else { set_ns };
        inode.atime_ns = time_ns(request.atime_now, request.atime_ns).unwrap_or(inode.atime_ns);
        inode.mtime_ns = time_ns(request.mtime_now, request.mtime_ns).unwrap_or(inode.mtime_ns);
    }

    fn sync(&self, request: pb::SyncRequest) -> Result<pb::InodeReply> {
        let one = pb::CloseOne {
            length: request.length,
            mtime_ns: request.mtime_ns,
            has_inline: request.has_inline,
            inline_data: request.inline_data,
            inline_base: request.inline_base,
            clear_set_id: request.clear_set_id,
            ..Default::default()
        };
        let mut inode = self.take(request.inode)?;
        if request.leave_inline {
            self.leave(&mut inode, request.inline_base, request.spare)?;
        }
        let mut changed = self.absorb(&mut inode, &one, request.exact)? || request.leave_inline;
        if let Some(attributes) = request.attributes {
            self.change_attributes(&mut inode, &attributes);
            changed = true;
        }
        if request.reserve_spare {
            require_inline(&inode, request.inline_base)?;
        }
        if changed {
            self.change(&mut inode);
        }
        if request.durable {
            *self.durable.lock() = self.inodes.lock().clone();
        }
        let spare = request.reserve_spare.then(|| self.fresh_spare());
        Ok(pb::InodeReply { spare, ..reply_of(inode) })
    }

    fn fresh_spare(&self) -> pb::Spare {
        let content = self.fresh_content();
        self.spares.lock().push(content);
        pb::Spare { content, reserved_ms: 1 }
    }

    fn leave(&self, inode: &mut pb::Inode, base: u64, spare: Option<pb::Spare>) -> Result<()> {
        require_inline(inode, base)?;
        match spare {
            Some(spare) => {
                let mut spares = self.spares.lock();
                assert!(spares.contains(&spare.content), "a spare is reserved, and used once");
                spares.retain(|content| *content != spare.content);
                inode.content = spare.content;
                let moved = self.chunks.content(spare.content);
                assert_eq!(
                    moved, inode.inline_data,
                    "X2: exactly the inode's bytes are under the spare content"
                );
            }
            None => assert!(inode.inline_data.is_empty(), "bytes would be lost"),
        }
        inode.is_inline = false;
        inode.inline_data = Vec::new();
        Ok(())
    }

    /// Whether that changes anything.
    fn absorb(&self, inode: &mut pb::Inode, one: &pb::CloseOne, exact: bool) -> Result<bool> {
        let layout = inode.layout.unwrap_or_default();
        let before = inode.length;
        let hint = one.length.unwrap_or_default();
        let is_fresh = hint.truncate_version == inode.truncate_version;
        if one.has_inline {
            require_inline(inode, one.inline_base)?;
            if one.inline_data.len() > layout.inline_bytes() as usize {
                return Err(Error::invalid("too many bytes for the inode").with_errno(Errno::FBIG));
            }
            inode.inline_data = one.inline_data.clone();
            let reported = if is_fresh { hint.length.min(length_max(&layout)) } else { 0 };
            inode.length = reported.max(inode.inline_data.len() as u64);
        } else if !inode.is_inline && (exact || one.length.is_some() && !is_fresh) {
            inode.length = inode.length.max(self.measure(inode.content));
        } else if is_fresh {
            require_length(&layout, hint.length)?;
            inode.length = inode.length.max(hint.length);
        }
        if one.mtime_ns != 0 {
            inode.mtime_ns = one.mtime_ns;
        }
        if one.clear_set_id {
            inode.permissions = without_set_id(inode.permissions);
        }
        Ok(has_news(one) || inode.length != before)
    }

    fn close(&self, request: pb::CloseRequest, client: u64) -> pb::CloseReply {
        let mut reply = pb::CloseReply::default();
        for one in request.closes {
            let (result, error) = match self.close_one(&one, client) {
                Ok(result) => (result, pb::Error::default()),
                Err(error) => (pb::InodeReply::default(), pb::Error::from(&error)),
            };
            reply.results.push(result);
            reply.errors.push(error);
        }
        reply
    }

    fn close_one(&self, one: &pb::CloseOne, client: u64) -> Result<pb::InodeReply> {
        let mut reply = pb::InodeReply::default();
        if has_news(one) {
            if happens(self.faults.lock().conflict) {
                return Err(Error::new(Kind::Conflict, "a planned fault"));
            }
            let mut inode = self.take(one.inode)?;
            if self.absorb(&mut inode, one, false)? {
                self.change(&mut inode);
            }
            reply = reply_of(inode);
        }
        match self.owner(one.inode, one.session) {
            Some(owner) if owner != client && !one.measure => {
                return Err(Error::new(Kind::NotFound, "not this client's session"));
            }
            Some(owner) if owner == client => {
                if one.measure {
                    self.measured.lock().push((one.inode, one.session));
                    self.settle(one.inode);
                }
                self.sessions.lock().remove(&(one.inode, one.session));
            }
            _ => {}
        }
        Ok(reply)
    }

    /// What the collector does before it ends a session.
    fn settle(&self, id: u64) {
        if let Some(inode) = self.inodes.lock().get_mut(&id)
            && !inode.is_inline
        {
            inode.change += 1;
            let length = self.measure(inode.content);
            if length > inode.length {
                inode.length = length;
                inode.mtime_ns = self.now_ns();
                inode.ctime_ns = inode.mtime_ns;
            }
        }
    }
}

fn reply_of(inode: pb::Inode) -> pb::InodeReply {
    pb::InodeReply { inode: Some(inode), ..Default::default() }
}

fn used() -> Error {
    Error::invalid("this sequence number was used for another request")
}

/// Of any request: the caller is its first field.
fn caller_of(request: &[u8]) -> pb::Caller {
    pb::StatFsRequest::decode(request).unwrap().caller.unwrap_or_default()
}

fn require_inline(inode: &pb::Inode, base: u64) -> Result<()> {
    if inode.is_inline && inode.change == base {
        return Ok(());
    }
    Err(Error::new(Kind::Conflict, "the inode has changed"))
}

fn length_max(layout: &pb::Layout) -> u64 {
    u64::from(layout.chunk_bytes) << 32
}

fn require_length(layout: &pb::Layout, length: u64) -> Result<()> {
    if length <= length_max(layout) {
        return Ok(());
    }
    Err(Error::invalid("the file would be too large").with_errno(Errno::FBIG))
}

fn has_news(one: &pb::CloseOne) -> bool {
    one.has_inline || one.length.is_some() || one.mtime_ns != 0 || one.clear_set_id
}

/// Changes all that a reply says of inodes.
fn change_inodes(method: Method, reply: Vec<u8>, change: impl Fn(&mut pb::Inode)) -> Vec<u8> {
    let bytes = reply.as_slice();
    match method {
        Method::MetaHold => reply,
        Method::MetaList => {
            let mut reply = pb::ListReply::decode(bytes).expect("its own reply");
            reply.entries.iter_mut().filter_map(|entry| entry.attributes.as_mut()).for_each(change);
            reply.encode_to_vec()
        }
        Method::MetaClose => {
            let mut reply = pb::CloseReply::decode(bytes).expect("its own reply");
            reply.results.iter_mut().filter_map(|result| result.inode.as_mut()).for_each(change);
            reply.encode_to_vec()
        }
        _ => {
            let mut reply = pb::InodeReply::decode(bytes).expect("its own reply");
            reply.inode.iter_mut().for_each(change);
            reply.encode_to_vec()
        }
    }
}

/// A client of fakes. Two of one `chunks` and `meta` are two processes.
pub fn client(chunks: &Arc<FakeChunks>, meta: &Arc<FakeMeta>, write_buffer_bytes: usize) -> Arc<OpenFiles> {
    client_that_trusts(chunks, meta, write_buffer_bytes, Duration::ZERO)
}

/// As `client`, but what it knows holds for `attribute_timeout`.
pub fn client_that_trusts(
    chunks: &Arc<FakeChunks>,
    meta: &Arc<FakeMeta>,
    write_buffer_bytes: usize,
    attribute_timeout: Duration,
) -> Arc<OpenFiles> {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let id = ClientId(LAST.fetch_add(1, Ordering::Relaxed) + 1);
    let meta = Meta::new(Channel::Fake(meta.clone()), id, Duration::from_secs(60));
    let pool = BufferPool::new(1 << 20, 16).unwrap();
    OpenFiles::new(Shared::new(
        meta,
        Box::new(ChunkClient { fake: chunks.clone(), under_way: Mutex::default() }),
        pool,
        write_buffer_bytes,
        4 << 20,
        attribute_timeout,
    ))
}

/// Occupies all shared threads of a client until the sender is dropped.
pub fn hold_background(shared: &Shared) -> crossbeam_channel::Sender<()> {
    let (release, held) = crossbeam_channel::bounded::<()>(0);
    for _ in 0..64 {
        let held = held.clone();
        shared.background.submit(move || while held.recv().is_ok() {});
    }
    release
}
