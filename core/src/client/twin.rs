//! Twins of the services in memory, for tests: chunks that can be told to fail or to wait, and the part of the
//! metadata service that files need. Inline conflicts and truncation follow `proto/meta.proto`.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use crate::lock::{Condvar, Mutex};
use prost::Message;

use super::data::{Read, Write};
use super::meta::{Carrier, Meta};
use super::shared::{Chunks, Shared};
use crate::buffer::BufferPool;
use crate::error::{Error, Kind, Result};
use crate::types::{ClientId, ContentId};
use crate::wire::pb::{self, Method};

pub const CHUNK_BYTES: u32 = 64 << 10;
pub const INLINE_BYTES: u32 = 4096;

/// Contents in memory.
#[derive(Default)]
pub struct ChunkTwin {
    contents: Mutex<HashMap<u64, Vec<u8>>>,
    /// How many writes wait to be let go.
    waiting: AtomicUsize,
    /// Error of the next writes.
    fault: Mutex<Option<Error>>,
    /// The next write panics.
    mistaken: AtomicBool,
    held: Mutex<bool>,
    released: Condvar,
    pub writes: AtomicUsize,
    pub reads: AtomicUsize,
    pub syncs: AtomicUsize,
}

impl ChunkTwin {
    pub fn fail_writes(&self, error: Option<Error>) {
        *self.fault.lock() = error;
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

    pub fn content(&self, content: u64) -> Vec<u8> {
        self.contents.lock().get(&content).cloned().unwrap_or_default()
    }

    fn chunks_of(writes: &[Write]) -> Vec<(u64, u64)> {
        let mut chunks: Vec<_> =
            writes.iter().map(|write| (write.content.0, write.offset / u64::from(CHUNK_BYTES))).collect();
        chunks.dedup();
        chunks
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
        read.into.zero();
        let contents = self.twin.contents.lock();
        let bytes = contents.get(&read.content.0).map(Vec::as_slice).unwrap_or_default();
        let known = bytes.get(read.offset as usize..).unwrap_or_default();
        read.into.copy_from(&known[..known.len().min(read.into.len())]);
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
        self.twin.released.notify_all();
        while *held {
            self.twin.released.wait(&mut held);
        }
        self.twin.waiting.fetch_sub(1, Ordering::Relaxed);
        drop(held);
        let results = writes.iter().map(|write| {
            assert!(
                write.offset % u64::from(CHUNK_BYTES) + write.payload.len() as u64 <= u64::from(CHUNK_BYTES)
            );
            self.twin.writes.fetch_add(1, Ordering::Relaxed);
            if let Some(error) = self.twin.fault.lock().clone() {
                return Err(error);
            }
            let mut contents = self.twin.contents.lock();
            let bytes = contents.entry(write.content.0).or_default();
            let end = write.offset as usize + write.payload.len();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            write.payload.copy_to(&mut bytes[write.offset as usize..end]);
            Ok(())
        });
        let results = results.collect();
        for chunk in &chunks {
            *self.under_way.lock().get_mut(chunk).unwrap() -= 1;
        }
        results
    }

    fn sync(&self, _: &pb::Layout, _: ContentId, _: Range<u64>) -> Result<()> {
        self.twin.syncs.fetch_add(1, Ordering::Relaxed);
        self.twin.fault.lock().clone().map_or(Ok(()), Err)
    }

    fn held(&self, _: &pb::Layout, content: ContentId, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let end = range.end.min(self.twin.content(content.0).len() as u64);
        Ok((range.start < end).then_some(range.start..end).into_iter().collect())
    }
}

/// Inodes in memory. Names: only "f<number>" below the root, which is inode <number>.
pub struct MetaTwin {
    inodes: Mutex<HashMap<u64, pb::Inode>>,
    chunks: Arc<ChunkTwin>,
    pub calls: Mutex<Vec<Method>>,
    /// Error of the next calls.
    fault: Mutex<Option<Error>>,
    last_content: AtomicUsize,
    spares: Mutex<Vec<u64>>,
    /// The next answer to this method is held back; and whether somebody waits for it.
    held: Mutex<(Option<Method>, bool)>,
    released: Condvar,
}

impl MetaTwin {
    pub fn new(chunks: Arc<ChunkTwin>) -> Arc<MetaTwin> {
        let last_content = AtomicUsize::new(1000);
        Arc::new(MetaTwin {
            inodes: Mutex::new(HashMap::new()),
            chunks,
            calls: Mutex::new(Vec::new()),
            fault: Mutex::new(None),
            last_content,
            spares: Mutex::default(),
            held: Mutex::default(),
            released: Condvar::new(),
        })
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
        let mut reply = self.answer(method, &bytes)?;
        let mut held = self.held.lock();
        if held.0 == Some(method) && !held.1 {
            held.1 = true;
            self.released.notify_all();
            while held.0.is_some() {
                self.released.wait(&mut held);
            }
            held.1 = false;
            if method == Method::MetaSync {
                let inode = pb::SyncRequest::decode(bytes.as_slice()).unwrap().inode;
                reply = self.reply(inode)?.encode_to_vec();
            }
        }
        drop(held);
        Ok(R::decode(reply.as_slice()).expect("twin and caller agree on types"))
    }

    fn answer(&self, method: Method, bytes: &[u8]) -> Result<Vec<u8>> {
        let reply = match method {
            Method::MetaCreate => self.create(pb::CreateRequest::decode(bytes).unwrap()),
            Method::MetaOpen => self.open(pb::OpenRequest::decode(bytes).unwrap())?,
            Method::MetaStat => self.reply(pb::StatRequest::decode(bytes).unwrap().path.unwrap().at)?,
            Method::MetaSync => self.sync(pb::SyncRequest::decode(bytes).unwrap())?,
            Method::MetaSetAttr => self.set_attr(pb::SetAttrRequest::decode(bytes).unwrap())?,
            Method::MetaList => {
                return Ok(self.list(pb::ListRequest::decode(bytes).unwrap()).encode_to_vec());
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

    fn fresh_content(&self) -> u64 {
        self.last_content.fetch_add(1, Ordering::Relaxed) as u64
    }

    fn create(&self, request: pb::CreateRequest) -> pb::InodeReply {
        let name = String::from_utf8(request.path.unwrap().path).unwrap();
        let id: u64 = name[1..].parse().unwrap();
        let layout = pb::Layout {
            chunk_bytes: CHUNK_BYTES,
            inline_bytes: INLINE_BYTES,
            stripe: 1,
            permutation_version: 1,
            ..Default::default()
        };
        let inode = pb::Inode {
            id,
            r#type: pb::FileType::Regular.into(),
            permissions: request.permissions,
            layout: Some(layout),
            content: self.fresh_content(),
            is_inline: !request.in_chunks,
            change: 1,
            link_count: 1,
            ..Default::default()
        };
        self.inodes.lock().insert(id, inode.clone());
        pb::InodeReply { inode: Some(inode), session: id * 10 + 1, created: true, spare: None }
    }

    fn open(&self, request: pb::OpenRequest) -> Result<pb::InodeReply> {
        let id = request.path.unwrap().at;
        if request.truncate {
            self.cut(id, 0)?;
        }
        let reply = self.reply(id)?;
        Ok(pb::InodeReply { session: if request.write { id * 10 + 2 } else { 0 }, ..reply })
    }

    fn cut(&self, id: u64, length: u64) -> Result<()> {
        let mut inodes = self.inodes.lock();
        let inode = inodes.get_mut(&id).ok_or_else(|| Error::new(Kind::NotFound, "no inode"))?;
        if length == 0 {
            inode.content = self.fresh_content();
            inode.is_inline = true;
        }
        inode.inline_data.truncate(length as usize);
        if !inode.is_inline
            && let Some(bytes) = self.chunks.contents.lock().get_mut(&inode.content)
        {
            bytes.truncate(length as usize);
        }
        inode.length = length;
        if inode.is_inline && length <= u64::from(INLINE_BYTES) {
            inode.inline_data.resize(length as usize, 0);
        }
        inode.truncate_version += 1;
        inode.change += 1;
        Ok(())
    }

    fn set_attr(&self, request: pb::SetAttrRequest) -> Result<pb::InodeReply> {
        let id = request.path.as_ref().unwrap().at;
        if let Some(length) = request.length {
            self.cut(id, length)?;
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
            ..Default::default()
        };
        if request.reserve_spare {
            self.inline_at(request.inode, request.inline_base)?;
            let content = self.fresh_content();
            self.spares.lock().push(content);
            let spare = Some(pb::Spare { content, reserved_unix_ms: 1 });
            return Ok(pb::InodeReply { spare, ..self.reply(request.inode)? });
        }
        if request.leave_inline {
            self.leave(request.inode, request.inline_base, request.spare)?;
        }
        self.tell(&one)?;
        if let (Some(attributes), Some(inode)) =
            (request.attributes, self.inodes.lock().get_mut(&request.inode))
        {
            change_attributes(inode, &attributes);
        }
        self.reply(request.inode)
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

    fn tell(&self, one: &pb::CloseOne) -> Result<()> {
        let mut inodes = self.inodes.lock();
        let inode = inodes.get_mut(&one.inode).ok_or_else(|| Error::new(Kind::NotFound, "no inode"))?;
        if one.has_inline && (one.inline_base != inode.change || !inode.is_inline) {
            return Err(Error::new(Kind::Conflict, "the inode has changed"));
        }
        if one.has_inline {
            inode.length = one.inline_data.len() as u64;
            inode.inline_data = one.inline_data.clone();
        }
        if let Some(hint) = one.length
            && hint.truncate_version == inode.truncate_version
        {
            inode.length = inode.length.max(hint.length);
        }
        if one.mtime_ns != 0 {
            inode.mtime_ns = one.mtime_ns;
        }
        inode.change += 1;
        Ok(())
    }

    fn close(&self, request: pb::CloseRequest) -> pb::CloseReply {
        let mut reply = pb::CloseReply::default();
        for one in request.closes {
            let told = one.length.is_some() || one.mtime_ns != 0 || one.has_inline;
            match if told { self.tell(&one) } else { Ok(()) }.and_then(|()| self.reply(one.inode)) {
                Ok(inode) => {
                    reply.results.push(inode);
                    reply.errors.push(pb::Error::default());
                }
                Err(error) => {
                    reply.results.push(pb::InodeReply::default());
                    reply.errors.push(pb::Error::from(&error));
                }
            }
        }
        reply
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
    let meta = Meta::new(Carrier::Twin(meta.clone()), ClientId(7), Duration::from_secs(60));
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
