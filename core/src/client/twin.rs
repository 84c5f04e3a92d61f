//! Twins of the services in memory, for tests: chunks that can be told to fail or to wait, and the part of the
//! metadata service that files need. Inline conflicts and truncation follow `proto/meta.proto`, lengths
//! `fs/meta/operations/length.py`.
//!
//! For threads of a schedule (`schedule.rs`) calls take their time, and fail as `Whims` say.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use crate::lock::{Condvar, Mutex};
use prost::Message;

use super::data::{Read, Write};
use super::later::without_set_id;
use super::meta::{Carrier, Meta, inode_path};
use super::shared::{Chunks, Shared};
use crate::buffer::BufferPool;
use crate::error::{Error, Kind, Result};
use crate::schedule;
use crate::types::{ClientId, ContentId};
use crate::wire::pb::{self, Method};

pub const CHUNK_BYTES: u32 = 64 << 10;
pub const INLINE_BYTES: u32 = 4096;

/// What a twin keeps. Nobody takes turns at its lock: to clients a call is carried out at one moment.
#[derive(Default)]
pub struct Kept<T>(std::sync::Mutex<T>);

impl<T> Kept<T> {
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What goes wrong for threads of a schedule: one in so many calls; 0: none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Whims {
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
pub struct ChunkTwin {
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
    whims: Kept<Whims>,
    /// The next write panics.
    mistaken: AtomicBool,
    held: Mutex<bool>,
    /// Whether syncs wait before they end, and how many do.
    held_syncs: Mutex<(bool, usize)>,
    /// Error of the next syncs.
    sync_fault: Kept<Option<Error>>,
    released: Condvar,
    pub writes: AtomicUsize,
    pub reads: AtomicUsize,
    pub syncs: AtomicUsize,
}

impl ChunkTwin {
    pub fn fail_writes(&self, error: Option<Error>) {
        *self.fault.lock() = error;
    }

    /// Writes to this offset fail.
    pub fn fail_writes_at(&self, offset: u64, error: Error) {
        *self.fault_at.lock() = Some((offset, error));
    }

    pub fn panic_at_next_write(&self) {
        self.mistaken.store(true, Ordering::Relaxed);
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

    /// From now on writes and reads fail at times.
    pub fn follow(&self, whims: Whims) {
        *self.whims.lock() = whims;
    }

    fn whim(&self) -> Result<()> {
        let refused = happens(self.whims.lock().refused);
        if refused { Err(Error::new(Kind::Unavailable, "a whim of the twin")) } else { Ok(()) }
    }

    fn chunks_of(writes: &[Write]) -> Vec<(u64, u64)> {
        let chunk = |write: &Write| (write.content.0, write.offset / u64::from(write.layout.chunk_bytes));
        let mut chunks: Vec<_> = writes.iter().map(chunk).collect();
        chunks.dedup();
        chunks
    }

    fn put(&self, write: &Write) {
        let mut contents = self.contents.lock();
        let bytes = contents.entry(write.content.0).or_default();
        let end = write.offset as usize + write.payload.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        write.payload.copy_to(&mut bytes[write.offset as usize..end]);
    }
}

/// One client's way to the chunks.
struct ChunkClient {
    twin: Arc<ChunkTwin>,
    under_way: Mutex<HashMap<(u64, u64), usize>>,
}

impl Chunks for ChunkClient {
    fn read(&self, read: &Read) -> Result<()> {
        self.twin.reads.fetch_add(1, Ordering::Relaxed);
        schedule::pause();
        self.twin.whim()?;
        read.into.zero();
        {
            let contents = self.twin.contents.lock();
            let bytes = contents.get(&read.content.0).map(Vec::as_slice).unwrap_or_default();
            let known = bytes.get(read.offset as usize..).unwrap_or_default();
            read.into.copy_from(&known[..known.len().min(read.into.len())]);
        }
        schedule::pause();
        Ok(())
    }

    fn read_many(&self, reads: &[Read]) -> Vec<Result<()>> {
        reads.iter().map(|read| self.read(read)).collect()
    }

    fn write_many(&self, writes: &[Write]) -> Vec<Result<()>> {
        assert!(!self.twin.mistaken.swap(false, Ordering::Relaxed), "a mistake, on purpose");
        let chunks = ChunkTwin::chunks_of(writes);
        for chunk in &chunks {
            let mut under_way = self.under_way.lock();
            let count = under_way.entry(*chunk).or_default();
            assert_eq!(*count, 0, "I2: one flight of a chunk at a time");
            *count += 1;
        }
        let mut held = self.twin.held.lock();
        self.twin.waiting.fetch_add(1, Ordering::Relaxed);
        self.twin.waiting_writes.fetch_add(writes.len(), Ordering::Relaxed);
        self.twin.released.notify_all();
        while *held {
            self.twin.released.wait(&mut held);
        }
        self.twin.waiting.fetch_sub(1, Ordering::Relaxed);
        self.twin.waiting_writes.fetch_sub(writes.len(), Ordering::Relaxed);
        drop(held);
        let results = writes.iter().map(|write| {
            let chunk_bytes = u64::from(write.layout.chunk_bytes);
            assert!(write.offset % chunk_bytes + write.payload.len() as u64 <= chunk_bytes);
            self.twin.writes.fetch_add(1, Ordering::Relaxed);
            schedule::pause();
            if let Some(error) = self.twin.fault.lock().clone() {
                return Err(error);
            }
            if let Some((offset, error)) = &*self.twin.fault_at.lock()
                && *offset == write.offset
            {
                return Err(error.clone());
            }
            self.twin.whim()?;
            self.twin.put(write);
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
        let number = self.twin.syncs.fetch_add(1, Ordering::Relaxed) + 1;
        let chunks = self.twin.chunks_in(content.0, range, layout.chunk_bytes);
        let mut held = self.twin.held_syncs.lock();
        held.1 += 1;
        self.twin.released.notify_all();
        while held.0 {
            self.twin.released.wait(&mut held);
        }
        held.1 -= 1;
        drop(held);
        schedule::pause();
        self.twin.whim()?;
        if let Some(error) = self.twin.sync_fault.lock().clone().or(self.twin.fault.lock().clone()) {
            return Err(error);
        }
        self.twin.make_durable(number, content.0, chunks, layout.chunk_bytes);
        Ok(())
    }

    fn held(&self, _: &pb::Layout, content: ContentId, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let end = range.end.min(self.twin.content(content.0).len() as u64);
        Ok((range.start < end).then_some(range.start..end).into_iter().collect())
    }
}

/// Inodes in memory. Names: only "f<number>" below the root, which is inode <number>.
pub struct MetaTwin {
    /// Held by the call that is being carried out: a call of the service is one transaction.
    transaction: Kept<()>,
    inodes: Kept<HashMap<u64, pb::Inode>>,
    /// Those that survive the loss of power.
    durable: Kept<HashMap<u64, pb::Inode>>,
    chunks: Arc<ChunkTwin>,
    pub calls: Kept<Vec<Method>>,
    /// Error of the next calls.
    fault: Kept<Option<Error>>,
    whims: Kept<Whims>,
    /// Of new files.
    layout: Kept<pb::Layout>,
    last_content: AtomicUsize,
    spares: Kept<Vec<u64>>,
    /// Write sessions, by inode and session, and whose they are.
    sessions: Kept<BTreeMap<(u64, u64), u64>>,
    last_session: AtomicU64,
    /// Sessions that were left to the collector, which has ended them at once.
    measured: Kept<Vec<(u64, u64)>>,
    /// The next answer to this method is held back; and whether somebody waits for it.
    held: Mutex<(Option<Method>, bool)>,
    released: Condvar,
}

impl MetaTwin {
    pub fn new(chunks: Arc<ChunkTwin>) -> Arc<MetaTwin> {
        let twin = MetaTwin {
            transaction: Kept::default(),
            inodes: Kept::default(),
            durable: Kept::default(),
            chunks,
            calls: Kept::default(),
            fault: Kept::default(),
            whims: Kept::default(),
            layout: Kept::default(),
            last_content: AtomicUsize::new(1000),
            spares: Kept::default(),
            sessions: Kept::default(),
            last_session: AtomicU64::new(0),
            measured: Kept::default(),
            held: Mutex::default(),
            released: Condvar::new(),
        };
        twin.lay_out(CHUNK_BYTES, INLINE_BYTES);
        Arc::new(twin)
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
    pub fn follow(&self, whims: Whims) {
        *self.whims.lock() = whims;
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
        let whims = *self.whims.lock();
        schedule::pause();
        if happens(whims.refused) {
            return Err(Error::new(Kind::Unavailable, "a whim of the twin"));
        }
        if method == Method::MetaSync && happens(whims.conflict) {
            return Err(Error::new(Kind::Conflict, "a whim of the twin"));
        }
        let mut reply = self.answer(method, &bytes)?;
        if self.hold_back(method) || happens(whims.again) {
            schedule::pause();
            reply = self.answer_again(method, reply);
        }
        let reply = self.shown(method, &bytes, reply);
        schedule::pause();
        if happens(whims.lost) {
            return Err(Error::new(Kind::Timeout, "a whim of the twin"));
        }
        Ok(R::decode(reply.as_slice()).expect("twin and caller agree on types"))
    }

    /// True: the answer has waited for `hold_answer`, and was given anew.
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

    /// A reply that was lost, with inodes as they are now.
    fn answer_again(&self, method: Method, reply: Vec<u8>) -> Vec<u8> {
        let renew = |reply: &mut pb::InodeReply| {
            if let Some(inode) = &mut reply.inode {
                *inode = self.inode(inode.id);
            }
        };
        change_inodes(method, reply, renew)
    }

    /// Whatever a call reads and changes, no other call changes meanwhile. Threads of a schedule do not wait in here.
    fn answer(&self, method: Method, bytes: &[u8]) -> Result<Vec<u8>> {
        let _transaction = self.transaction.lock();
        let reply = match method {
            Method::MetaCreate => self.create(pb::CreateRequest::decode(bytes).unwrap())?,
            Method::MetaOpen => self.open(pb::OpenRequest::decode(bytes).unwrap())?,
            Method::MetaStat => self.reply(pb::StatRequest::decode(bytes).unwrap().path.unwrap().at)?,
            Method::MetaSync => self.sync(pb::SyncRequest::decode(bytes).unwrap())?,
            Method::MetaSetAttr => self.set_attr(pb::SetAttrRequest::decode(bytes).unwrap())?,
            Method::MetaList => {
                return Ok(self.list(pb::ListRequest::decode(bytes).unwrap()).encode_to_vec());
            }
            Method::MetaHold => {
                let sessions = self.sessions.lock();
                let mut lost = pb::HoldRequest::decode(bytes).unwrap().sessions;
                lost.retain(|one| !sessions.contains_key(&(one.inode, one.session)));
                return Ok(pb::HoldReply { lost, ..Default::default() }.encode_to_vec());
            }
            Method::MetaClose => {
                return Ok(self.close(pb::CloseRequest::decode(bytes).unwrap()).encode_to_vec());
            }
            other => panic!("the twin does not know {other:?}"),
        };
        Ok(reply.encode_to_vec())
    }

    fn reply(&self, id: u64) -> Result<pb::InodeReply> {
        let inode =
            self.inodes.lock().get(&id).cloned().ok_or_else(|| Error::new(Kind::NotFound, "no inode"))?;
        Ok(pb::InodeReply { inode: Some(inode), ..Default::default() })
    }

    fn list(&self, request: pb::ListRequest) -> pb::ListReply {
        let inodes = self.inodes.lock();
        let entry = |inode: &pb::Inode| pb::Dentry {
            name: format!("f{}", inode.id).into(),
            inode: inode.id,
            r#type: inode.r#type,
            attributes: request.with_inodes.then(|| inode.clone()),
        };
        let mut entries: Vec<_> =
            inodes.values().map(entry).filter(|entry| entry.name > request.after).collect();
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        let more = entries.len() > request.limit as usize;
        entries.truncate(request.limit as usize);
        pb::ListReply { entries, more, parent: 1 }
    }

    /// The reply, with what the caller is shown of files that other clients write: that they do, and of one in chunks
    /// the length that the chains hold.
    fn shown(&self, method: Method, request: &[u8], reply: Vec<u8>) -> Vec<u8> {
        // The caller is the first field of every request.
        let client = pb::StatFsRequest::decode(request).unwrap().caller.unwrap_or_default().client;
        let show = |reply: &mut pb::InodeReply| {
            if let Some(inode) = &mut reply.inode
                && self.others_write(inode.id, client)
            {
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

    fn create(&self, request: pb::CreateRequest) -> Result<pb::InodeReply> {
        let name = String::from_utf8(request.path.unwrap().path).unwrap();
        let id: u64 = name[1..].parse().unwrap();
        if self.inodes.lock().contains_key(&id) {
            let path = Some(inode_path(id));
            let pb::CreateRequest { caller, read, write, truncate, .. } = request;
            return self.open(pb::OpenRequest { caller, path, read, write, truncate, ..Default::default() });
        }
        let inode = pb::Inode {
            id,
            r#type: pb::FileType::Regular.into(),
            permissions: request.permissions,
            layout: Some(*self.layout.lock()),
            content: self.fresh_content(),
            is_inline: !request.in_chunks,
            change: 1,
            link_count: 1,
            ..Default::default()
        };
        self.inodes.lock().insert(id, inode.clone());
        let client = request.caller.unwrap_or_default().client;
        let session = if request.write { self.fresh_session(id, client) } else { 0 };
        Ok(pb::InodeReply { inode: Some(inode), session, created: true, spare: None })
    }

    fn open(&self, request: pb::OpenRequest) -> Result<pb::InodeReply> {
        let id = request.path.unwrap().at;
        let client = request.caller.unwrap_or_default().client;
        if request.truncate {
            self.cut(id, 0, client)?;
        }
        let reply = self.reply(id)?;
        let session = if request.write { self.fresh_session(id, client) } else { 0 };
        Ok(pb::InodeReply { session, ..reply })
    }

    fn cut(&self, id: u64, length: u64, client: u64) -> Result<()> {
        let others = self.others_write(id, client);
        let mut inodes = self.inodes.lock();
        let inode = inodes.get_mut(&id).ok_or_else(|| Error::new(Kind::NotFound, "no inode"))?;
        if inode.is_inline {
            inode.inline_data.truncate(length as usize);
            let inline_bytes = u64::from(inode.layout.unwrap_or_default().inline_bytes());
            inode.inline_data.resize(length.min(inline_bytes) as usize, 0);
        } else if length == 0 && !others {
            inode.content = self.fresh_content();
            inode.is_inline = true;
        } else {
            let chunk_bytes = inode.layout.unwrap_or_default().chunk_bytes;
            self.chunks.cut(inode.content, length as usize, chunk_bytes);
        }
        inode.length = length;
        inode.truncate_version += 1;
        inode.change += 1;
        Ok(())
    }

    fn set_attr(&self, request: pb::SetAttrRequest) -> Result<pb::InodeReply> {
        let id = request.path.as_ref().unwrap().at;
        let client = request.caller.as_ref().map_or(0, |caller| caller.client);
        if let Some(length) = request.length {
            self.cut(id, length, client)?;
        }
        if let Some(inode) = self.inodes.lock().get_mut(&id) {
            change_attributes(inode, &request);
            inode.change += 1;
        }
        self.reply(id)
    }

    fn sync(&self, request: pb::SyncRequest) -> Result<pb::InodeReply> {
        let one = pb::CloseOne {
            inode: request.inode,
            length: request.length,
            mtime_ns: request.mtime_ns,
            has_inline: request.has_inline,
            inline_data: request.inline_data,
            inline_base: request.inline_base,
            clear_set_id: request.clear_set_id,
            ..Default::default()
        };
        if request.reserve_spare {
            self.inline_at(request.inode, request.inline_base)?;
            let content = self.fresh_content();
            self.spares.lock().push(content);
            let spare = Some(pb::Spare { content, reserved_ms: 1 });
            return Ok(pb::InodeReply { spare, ..self.reply(request.inode)? });
        }
        if request.leave_inline {
            self.leave(request.inode, request.inline_base, request.spare)?;
        }
        let mut changed = self.tell(&one)? || request.leave_inline;
        if let (Some(attributes), Some(inode)) =
            (request.attributes, self.inodes.lock().get_mut(&request.inode))
        {
            change_attributes(inode, &attributes);
            changed = true;
        }
        self.count_change(request.inode, changed);
        if request.durable {
            *self.durable.lock() = self.inodes.lock().clone();
        }
        self.reply(request.inode)
    }

    fn count_change(&self, id: u64, changed: bool) {
        if let Some(inode) = self.inodes.lock().get_mut(&id) {
            inode.change += u64::from(changed);
        }
    }

    fn inline_at(&self, id: u64, base: u64) -> Result<pb::Inode> {
        let inode = self.reply(id)?.inode.expect("every reply has one");
        if !inode.is_inline || inode.change != base {
            return Err(Error::new(Kind::Conflict, "the inode has changed"));
        }
        Ok(inode)
    }

    fn leave(&self, id: u64, base: u64, spare: Option<pb::Spare>) -> Result<()> {
        let inode = self.inline_at(id, base)?;
        let mut inodes = self.inodes.lock();
        let stored = inodes.get_mut(&id).expect("it was there a moment ago");
        if stored.change != base {
            return Err(Error::new(Kind::Conflict, "the inode has changed"));
        }
        match spare {
            Some(spare) => {
                let mut spares = self.spares.lock();
                assert!(spares.contains(&spare.content), "a spare is reserved, and used once");
                spares.retain(|content| *content != spare.content);
                stored.content = spare.content;
                let moved = self.chunks.content(spare.content);
                assert_eq!(
                    moved, inode.inline_data,
                    "X2: exactly the inode's bytes are under the spare content"
                );
            }
            None => assert!(inode.inline_data.is_empty(), "bytes would be lost"),
        }
        stored.is_inline = false;
        stored.inline_data = Vec::new();
        Ok(())
    }

    /// Whether that changes anything.
    fn tell(&self, one: &pb::CloseOne) -> Result<bool> {
        let mut inodes = self.inodes.lock();
        let inode = inodes.get_mut(&one.inode).ok_or_else(|| Error::new(Kind::NotFound, "no inode"))?;
        if one.has_inline && (one.inline_base != inode.change || !inode.is_inline) {
            return Err(Error::new(Kind::Conflict, "the inode has changed"));
        }
        if one.has_inline {
            inode.length = one.inline_data.len() as u64;
            inode.inline_data = one.inline_data.clone();
        }
        match one.length {
            Some(hint) if hint.truncate_version == inode.truncate_version => {
                inode.length = inode.length.max(hint.length);
            }
            Some(_) if !inode.is_inline => inode.length = inode.length.max(self.measure(inode.content)),
            _ => {}
        }
        if one.mtime_ns != 0 {
            inode.mtime_ns = one.mtime_ns;
        }
        if one.clear_set_id {
            inode.permissions = without_set_id(inode.permissions);
        }
        Ok(has_news(one))
    }

    fn close(&self, request: pb::CloseRequest) -> pb::CloseReply {
        let mut reply = pb::CloseReply::default();
        for one in request.closes {
            let (result, error) = match self.close_one(&one) {
                Ok(result) => (result, pb::Error::default()),
                Err(error) => (pb::InodeReply::default(), pb::Error::from(&error)),
            };
            reply.results.push(result);
            reply.errors.push(error);
        }
        reply
    }

    /// What the collector does before it ends a session.
    fn settle(&self, id: u64) {
        if let Some(inode) = self.inodes.lock().get_mut(&id)
            && !inode.is_inline
        {
            inode.length = inode.length.max(self.measure(inode.content));
            inode.change += 1;
        }
    }

    fn close_one(&self, one: &pb::CloseOne) -> Result<pb::InodeReply> {
        let mut reply = pb::InodeReply::default();
        if has_news(one) {
            if happens(self.whims.lock().conflict) {
                return Err(Error::new(Kind::Conflict, "a whim of the twin"));
            }
            let changed = self.tell(one)?;
            self.count_change(one.inode, changed);
            reply = self.reply(one.inode)?;
        }
        if one.measure {
            self.measured.lock().push((one.inode, one.session));
            self.settle(one.inode);
        }
        self.sessions.lock().remove(&(one.inode, one.session));
        Ok(reply)
    }
}

fn has_news(one: &pb::CloseOne) -> bool {
    one.has_inline || one.length.is_some() || one.mtime_ns != 0 || one.clear_set_id
}

/// Changes all that a reply says of inodes.
fn change_inodes(method: Method, reply: Vec<u8>, change: impl Fn(&mut pb::InodeReply)) -> Vec<u8> {
    let bytes = reply.as_slice();
    match method {
        Method::MetaList | Method::MetaHold => reply,
        Method::MetaClose => {
            let mut reply = pb::CloseReply::decode(bytes).expect("its own reply");
            reply.results.iter_mut().for_each(change);
            reply.encode_to_vec()
        }
        _ => {
            let mut reply = pb::InodeReply::decode(bytes).expect("its own reply");
            change(&mut reply);
            reply.encode_to_vec()
        }
    }
}

fn change_attributes(inode: &mut pb::Inode, request: &pb::SetAttrRequest) {
    inode.uid = request.uid.unwrap_or(inode.uid);
    inode.gid = request.gid.unwrap_or(inode.gid);
    inode.permissions = request.permissions.unwrap_or(inode.permissions);
    inode.mtime_ns = request.mtime_ns.unwrap_or(inode.mtime_ns);
}

/// A client of twins. Two of one `chunks` and `meta` are two processes.
pub fn client(chunks: &Arc<ChunkTwin>, meta: &Arc<MetaTwin>, write_buffer_bytes: usize) -> Arc<Shared> {
    client_that_trusts(chunks, meta, write_buffer_bytes, Duration::ZERO)
}

/// As `client`, but what it knows holds for `attribute_timeout`.
pub fn client_that_trusts(
    chunks: &Arc<ChunkTwin>,
    meta: &Arc<MetaTwin>,
    write_buffer_bytes: usize,
    attribute_timeout: Duration,
) -> Arc<Shared> {
    static LAST: AtomicU64 = AtomicU64::new(0);
    let id = ClientId(LAST.fetch_add(1, Ordering::Relaxed) + 1);
    let meta = Meta::new(Carrier::Twin(meta.clone()), id, Duration::from_secs(60));
    let pool = BufferPool::new(1 << 20, 16).unwrap();
    Shared::new(
        meta,
        Box::new(ChunkClient { twin: chunks.clone(), under_way: Mutex::default() }),
        pool,
        write_buffer_bytes,
        4 << 20,
        attribute_timeout,
    )
}

/// Occupies all shared threads of a client until the sender is dropped.
pub fn hold_errands(shared: &Shared) -> crossbeam_channel::Sender<()> {
    let (release, held) = crossbeam_channel::bounded::<()>(0);
    for _ in 0..64 {
        let held = held.clone();
        shared.errands.submit(move || while held.recv().is_ok() {});
    }
    release
}
