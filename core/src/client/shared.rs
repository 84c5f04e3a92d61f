//! What all files of one client share: the services, memory for dirty bytes, threads, and the table of open files.

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::lock::{Condvar, Mutex};

use super::data::{DataClient, Read, Write};
use super::dirty::RUN_BYTES;
use super::dirty_limit::DirtyLimit;
use super::fence::Fence;
use super::meta::{Identity, Meta};
use super::metadata_cache::MetadataCache;
use super::open_file::OpenInode;
use super::workers::Workers;
use crate::buffer::BufferPool;
use crate::clock;
use crate::error::{Kind, Result};
use crate::types::ContentId;
use crate::wire::pb;

/// File data as files see it: no chains, no retries.
pub trait Chunks: Send + Sync {
    /// Fills all of `read.into`; holes read as zeros.
    fn read(&self, read: &Read) -> Result<()>;
    fn read_many(&self, reads: &[Read]) -> Vec<Result<()>>;
    /// One result for each; overlapping writes happen in order.
    fn write_many(&self, writes: &[Write]) -> Vec<Result<()>>;
    /// Everything acknowledged in `range` survives the loss of power.
    fn sync(&self, layout: &pb::Layout, content: ContentId, range: Range<u64>) -> Result<()>;
    /// The parts of `range` that lie in chunks which hold bytes there; the rest reads as zeros.
    fn data_extents(
        &self,
        layout: &pb::Layout,
        content: ContentId,
        range: Range<u64>,
    ) -> Result<Vec<Range<u64>>>;
}

/// Bytes for memory that no node can reach travel through a socket; from this size on a copy out of a buffer that
/// nodes on this host do reach is cheaper.
const STAGED_BYTES_MIN: usize = 32 << 10;
/// Buffers that one call uses for that; beyond, bytes travel.
const STAGED_BUFFERS_MAX: usize = 8;

/// The chains of a cluster.
pub struct Chains {
    pub data: Arc<DataClient>,
    pub deadline: Duration,
    /// Where to stage reads into private memory; `None`: no node is on this host.
    pub staging: Option<BufferPool>,
}

/// A part of a read as it is carried out: for which read, where in it, and whether a copy is to follow.
struct Staged {
    owner: usize,
    at: usize,
    copy: bool,
}

impl Chains {
    /// Splits reads into private memory into parts that buffers of the pool hold.
    fn stage(&self, pool: &BufferPool, reads: &[Read]) -> (Vec<Read>, Vec<Staged>) {
        let (mut parts, mut staged) = (Vec::with_capacity(reads.len()), Vec::with_capacity(reads.len()));
        let mut buffers = 0;
        for (owner, read) in reads.iter().enumerate() {
            let mut at = 0;
            while at < read.into.len() && !read.into.is_shared() && read.into.len() >= STAGED_BYTES_MIN {
                let buffer = if buffers < STAGED_BUFFERS_MAX { pool.try_take() } else { None };
                let Some(buffer) = buffer else { break };
                buffers += 1;
                let length = buffer.len().min(read.into.len() - at);
                let into = buffer.slice(0..length).expendable();
                parts.push(Read { into, offset: read.offset + at as u64, ..*read });
                staged.push(Staged { owner, at, copy: true });
                at += length;
            }
            if at < read.into.len() || at == 0 {
                let into = read.into.slice(at..read.into.len());
                parts.push(Read { into, offset: read.offset + at as u64, ..*read });
                staged.push(Staged { owner, at, copy: false });
            }
        }
        (parts, staged)
    }
}

impl Chunks for Chains {
    fn read(&self, read: &Read) -> Result<()> {
        if self.staging.is_none() || read.into.is_shared() || read.into.len() < STAGED_BYTES_MIN {
            let deadline = Instant::now() + self.deadline;
            return self.data.read(&read.layout, read.content, read.offset, &read.into, deadline).map(drop);
        }
        let window = STAGED_BUFFERS_MAX * RUN_BYTES as usize;
        for at in (0..read.into.len()).step_by(window) {
            let into = read.into.slice(at..read.into.len().min(at + window));
            let part = Read { into, offset: read.offset + at as u64, ..*read };
            self.read_many(&[part]).into_iter().collect::<Result<()>>()?;
        }
        Ok(())
    }

    fn read_many(&self, reads: &[Read]) -> Vec<Result<()>> {
        let deadline = Instant::now() + self.deadline;
        let Some(pool) = &self.staging else {
            let results = self.data.read_many(reads, deadline);
            return results.into_iter().map(|result| result.map(drop)).collect();
        };
        let (parts, staged) = self.stage(pool, reads);
        let results = self.data.read_many(&parts, deadline);
        let mut outcomes: Vec<Result<()>> = reads.iter().map(|_| Ok(())).collect();
        for ((part, staged), result) in parts.iter().zip(staged).zip(results) {
            match result {
                Ok(_) if staged.copy => {
                    let target = &reads[staged.owner].into;
                    part.into.copy_into(&target.slice(staged.at..staged.at + part.into.len()));
                }
                Ok(_) => {}
                // A node hangs with our buffer; without one another node can be asked.
                Err(error) if staged.copy && error.kind() == Kind::Timeout => {
                    let into = reads[staged.owner].into.slice(staged.at..staged.at + part.into.len());
                    let again = self.data.read(&part.layout, part.content, part.offset, &into, deadline);
                    if let (Err(error), Ok(())) = (again, &outcomes[staged.owner]) {
                        outcomes[staged.owner] = Err(error);
                    }
                }
                Err(error) if outcomes[staged.owner].is_ok() => outcomes[staged.owner] = Err(error),
                Err(_) => {}
            }
        }
        outcomes
    }

    fn write_many(&self, writes: &[Write]) -> Vec<Result<()>> {
        self.data.write_many(writes, Instant::now() + self.deadline)
    }

    fn sync(&self, layout: &pb::Layout, content: ContentId, range: Range<u64>) -> Result<()> {
        let deadline = Instant::now() + self.deadline;
        self.data.sync(layout, content, range.start, range.end - range.start, deadline)
    }

    fn data_extents(
        &self,
        layout: &pb::Layout,
        content: ContentId,
        range: Range<u64>,
    ) -> Result<Vec<Range<u64>>> {
        self.data.data_extents(layout, content, range, Instant::now() + self.deadline)
    }
}

/// Closes sent in one call.
pub const CLOSES_MAX: usize = 128;

/// Closes that may wait. Whoever closes more helps to send them.
const CLOSES_WAITING_MAX: usize = 4096;

/// A close that the metadata service is still to be told.
pub struct Close {
    pub identity: Arc<Identity>,
    pub one: pb::CloseOne,
}

struct Opened {
    inode: Arc<OpenInode>,
    handles: usize,
}

/// Open files, and what was learnt of others while the metadata service is asked to open some.
///
/// F1: The answer to an open may be older than what this client has told since, with handles that are gone by now, or
/// changed without one. Nothing must be written on top of that: it is asked for again.
#[derive(Default)]
struct Files {
    open: HashMap<u64, Opened>,
    /// Opens that are not finished, by number, and the number of the last one.
    opening: BTreeSet<u64>,
    last_opening: u64,
    /// What was learnt of inodes that are not open, since the oldest of those opens began.
    left: HashMap<u64, Left>,
    /// Opens up to this number began before something was forgotten of that.
    forgotten: u64,
}

/// The newest `change` of an inode, and the last open that had begun when it was learnt.
struct Left {
    change: u64,
    opening: u64,
}

const LEFT_MAX: usize = 1024;

impl Files {
    fn leave(&mut self, inode: u64, change: u64) {
        if self.opening.is_empty() {
            return;
        }
        if self.left.len() >= LEFT_MAX {
            self.left.clear();
            self.forgotten = self.last_opening;
        }
        let opening = self.last_opening;
        let left = self.left.entry(inode).or_insert(Left { change, opening });
        *left = Left { change: left.change.max(change), opening };
    }

    fn begin_opening(&mut self) -> u64 {
        self.last_opening += 1;
        self.opening.insert(self.last_opening);
        self.last_opening
    }

    fn end_opening(&mut self, number: u64) {
        self.opening.remove(&number);
        if self.opening.is_empty() {
            self.left.clear();
        }
    }

    /// Whether the answer to that open is, or may be, older than what is known.
    fn is_overtaken(&self, number: u64, inode: &pb::Inode) -> bool {
        let newer = |left: &Left| left.opening >= number && left.change > inode.change;
        number <= self.forgotten || self.left.get(&inode.id).is_some_and(newer)
    }
}

/// The metadata service is being asked to open a file, until this is dropped.
pub struct Opening<'a> {
    shared: &'a Arc<Shared>,
    number: u64,
    /// By `clock`.
    pub begun_ns: u64,
}

impl Opening<'_> {
    /// One handle more of the file that the metadata service described. `None`: it has changed since, by this client;
    /// ask again.
    pub fn opened(&mut self, inode: &pb::Inode) -> Option<Arc<OpenInode>> {
        let mut files = self.shared.files.lock();
        if let Some(known) = files.open.get_mut(&inode.id) {
            known.handles += 1;
            let known = known.inode.clone();
            drop(files);
            known.apply_server_inode(inode);
            return Some(known);
        }
        if files.is_overtaken(self.number, inode) {
            let again = files.begin_opening();
            files.end_opening(std::mem::replace(&mut self.number, again));
            return None;
        }
        let new = OpenInode::new(self.shared.clone(), inode.clone());
        files.open.insert(inode.id, Opened { inode: new.clone(), handles: 1 });
        Some(new)
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.shared.files.lock().end_opening(self.number);
    }
}

pub struct Shared {
    pub meta: Meta,
    pub chunks: Box<dyn Chunks>,
    pub fence: Fence,
    /// Buffers for dirty bytes and for reading ahead.
    pub pool: BufferPool,
    pub dirty_limit: DirtyLimit,
    /// Write-back only: its jobs wait for chains, never for room or for other jobs.
    pub workers: Workers,
    /// Everything else that should not hold up its caller.
    pub background: Workers,
    pub metadata_cache: MetadataCache,
    /// Files whose attributes wait to be told.
    pub deferred_count: AtomicUsize,
    pub attribute_timeout: Duration,
    pub read_ahead_bytes: usize,
    /// How many of the files made last, in a row, have outgrown their inodes.
    large_files: AtomicUsize,
    files: Mutex<Files>,
    listed: Mutex<Vec<Weak<OpenInode>>>,
    /// Files with appended bytes that may not wait until they have aged.
    appended: Mutex<Vec<Weak<OpenInode>>>,
    closes: Mutex<Vec<Close>>,
    /// Tells the clock thread that closes or appended bytes wait.
    pub wake: Condvar,
    holds: Mutex<HashMap<u64, usize>>,
}

/// So many large files in a row, and the next is taken for a large one: a mistake costs a round trip to a storage node
/// instead of one to the metadata service.
const LARGE_FILES_MIN: usize = 4;

/// Threads for write-back, and for the rest.
const WORKERS_MAX: usize = 8;
const BACKGROUND_MAX: usize = 16;

impl Shared {
    pub fn new(
        meta: Meta,
        chunks: Box<dyn Chunks>,
        pool: BufferPool,
        write_buffer_bytes: usize,
        read_ahead_bytes: usize,
        attribute_timeout: Duration,
    ) -> Arc<Shared> {
        Arc::new(Shared {
            meta,
            chunks,
            fence: Fence::new(),
            pool,
            dirty_limit: DirtyLimit::new(write_buffer_bytes),
            workers: Workers::new("luciola-write", WORKERS_MAX),
            background: Workers::new("luciola-errand", BACKGROUND_MAX),
            metadata_cache: MetadataCache::new(attribute_timeout),
            deferred_count: AtomicUsize::new(0),
            attribute_timeout,
            read_ahead_bytes,
            large_files: AtomicUsize::new(0),
            files: Mutex::default(),
            listed: Mutex::new(Vec::new()),
            appended: Mutex::new(Vec::new()),
            closes: Mutex::new(Vec::new()),
            wake: Condvar::new(),
            holds: Mutex::new(HashMap::new()),
        })
    }

    /// The open file with that inode number, if this process has it open.
    pub fn find(&self, inode: u64) -> Option<Arc<OpenInode>> {
        self.files.lock().open.get(&inode).map(|opened| opened.inode.clone())
    }

    /// Attributes as the metadata service described them, with what was written here and not told yet.
    pub fn local_view(&self, inode: &pb::Inode) -> pb::Inode {
        match self.find(inode.id) {
            Some(open) => open.overlay_local(inode),
            // It may have been closed since that was asked.
            None => self
                .metadata_cache
                .newest(inode)
                .map_or_else(|| inode.clone(), |known| pb::Inode::clone(&known)),
        }
    }

    /// Call it before the metadata service is asked to open a file.
    pub fn opening(self: &Arc<Self>) -> Opening<'_> {
        let number = self.files.lock().begin_opening();
        Opening { shared: self, number, begun_ns: clock::now_ns() }
    }

    /// The open file that this client has just changed, to `inode`; `None`: it is not open.
    pub fn find_changed(&self, inode: &pb::Inode) -> Option<Arc<OpenInode>> {
        let mut files = self.files.lock();
        let open = files.open.get(&inode.id).map(|opened| opened.inode.clone());
        if open.is_none() {
            files.leave(inode.id, inode.change);
        }
        open
    }

    /// One handle less.
    pub fn released(&self, inode: u64) {
        let mut files = self.files.lock();
        let Some(known) = files.open.get_mut(&inode) else { return };
        known.handles -= 1;
        if known.handles == 0 {
            known.inode.discard_unsynced();
            let change = known.inode.change();
            files.open.remove(&inode);
            files.leave(inode, change);
        }
    }

    pub fn open_files(&self) -> Vec<Arc<OpenInode>> {
        self.files.lock().open.values().map(|opened| opened.inode.clone()).collect()
    }

    /// Remembers a file that has dirty bytes.
    pub fn list_dirty(&self, inode: &Arc<OpenInode>) {
        self.listed.lock().push(Arc::downgrade(inode));
    }

    /// Remembers a file to which bytes were appended while this client was its only writer.
    pub fn list_appended(&self, inode: &Arc<OpenInode>) {
        self.appended.lock().push(Arc::downgrade(inode));
        // Whoever has seen the list without it is waiting once this lock is free.
        drop(self.closes.lock());
        self.wake.notify_all();
    }

    pub fn has_appended(&self) -> bool {
        !self.appended.lock().is_empty()
    }

    /// Writes back what was appended before others may append.
    pub fn write_back_appended(&self) {
        let files = std::mem::take(&mut *self.appended.lock());
        let files: Vec<_> = files.iter().filter_map(Weak::upgrade).collect();
        // All of them first: a report may wait for the metadata service.
        files.iter().for_each(OpenInode::start_append_write_back);
        files.iter().for_each(OpenInode::report_appended);
    }

    fn dirty_files(&self) -> Vec<Arc<OpenInode>> {
        self.listed.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// A file that was made here has been closed for the first time; `length` tells what has become of it. An empty
    /// one tells nothing.
    pub fn on_created_file_closed(&self, length: u64, inline_bytes: u32) {
        if length > u64::from(inline_bytes) {
            self.large_files.fetch_add(1, Ordering::Relaxed);
        } else if length > 0 {
            self.large_files.store(0, Ordering::Relaxed);
        }
    }

    /// Whether the next file will probably outgrow its inode, so that it had better be made in chunks.
    pub fn makes_large_files(&self) -> bool {
        self.large_files.load(Ordering::Relaxed) >= LARGE_FILES_MIN
    }

    /// Tells all attributes that wait: a name is about to be moved, and its reader is to find them.
    pub fn flush_deferred(&self) {
        if self.deferred_count.load(Ordering::Acquire) == 0 {
            return;
        }
        for inode in self.dirty_files() {
            if let Err(error) = inode.flush_deferred() {
                inode.fail(error.context("attributes"));
            }
        }
    }

    /// Begins to write back everything: memory is short.
    pub fn flush_for_pressure(&self) {
        for inode in self.dirty_files() {
            inode.start_write_back();
        }
    }

    /// Begins to write back what has waited since the last call but one.
    pub fn write_back_aged(&self) {
        let files = self.dirty_files();
        // All of them first: a report may wait for the metadata service.
        files.iter().for_each(|inode| inode.start_write_back());
        let mut done: HashSet<_> =
            files.iter().filter(|inode| !inode.report_aged()).map(Arc::as_ptr).collect();
        // Once each: a file that has been written since is there once more.
        self.listed.lock().retain(|inode| inode.strong_count() > 0 && !done.remove(&inode.as_ptr()));
    }

    /// Leaves a close to be sent with others.
    pub fn close_later(&self, close: Close) {
        let waiting = {
            let mut closes = self.closes.lock();
            closes.push(close);
            closes.len()
        };
        if waiting == 1 || waiting == CLOSES_MAX {
            self.wake.notify_all();
        }
        if waiting > CLOSES_WAITING_MAX {
            self.send_closes();
        }
    }

    /// Waits at most `most` for closes or appended bytes. True: there are closes.
    pub fn wait_for_closes(&self, most: Duration) -> bool {
        let mut closes = self.closes.lock();
        if closes.is_empty() && !self.has_appended() {
            self.wake.wait_for(&mut closes, most);
        }
        !closes.is_empty()
    }

    pub fn closes_waiting(&self) -> usize {
        self.closes.lock().len()
    }

    /// Sends the closes that wait. Those that the metadata service does not answer wait on.
    pub fn send_closes(&self) {
        loop {
            let (identity, batch) = {
                let mut closes = self.closes.lock();
                let Some(identity) = closes.first().map(|close| close.identity.clone()) else { return };
                let mut batch = Vec::new();
                let mut rest = Vec::new();
                for close in closes.drain(..) {
                    if batch.len() < CLOSES_MAX && close.identity == identity {
                        batch.push(close.one);
                    } else {
                        rest.push(close);
                    }
                }
                *closes = rest;
                (identity, batch)
            };
            match self.meta.close(&identity, batch.clone()) {
                Ok(outcomes) => {
                    for error in outcomes.into_iter().filter_map(Result::err) {
                        log::debug!("close: {error}");
                    }
                }
                Err(error) if error.is_retryable() => {
                    log::warn!("{} files stay open at the metadata service for now: {error}", batch.len());
                    let again = batch.into_iter().map(|one| Close { identity: identity.clone(), one });
                    self.closes.lock().extend(again);
                    return;
                }
                Err(error) => {
                    // Sessions that are not named in the next minutes end too.
                    log::warn!("closing {} files was refused: {error}", batch.len());
                }
            }
        }
    }

    /// A file is open for reading once more.
    pub fn hold(&self, inode: u64) {
        *self.holds.lock().entry(inode).or_default() += 1;
    }

    pub fn unhold(&self, inode: u64) {
        if let Entry::Occupied(mut count) = self.holds.lock().entry(inode) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }

    /// The write sessions of all open files.
    pub fn write_sessions(&self) -> Vec<pb::WriteSession> {
        self.open_files().iter().flat_map(|inode| inode.write_sessions()).collect()
    }

    /// Write sessions that the metadata service does not know any more.
    pub fn lose_sessions(&self, lost: &[pb::WriteSession]) {
        for lost in lost {
            if let Some(inode) = self.find(lost.inode) {
                inode.lose_session(lost.session);
            }
        }
    }

    /// Reports what is open, as `request` says, to a service that may have forgotten this client: write sessions that
    /// were lost fail, and what is known of open files is asked for again.
    pub fn register_again(&self, identity: &Identity, request: pb::HoldRequest) -> Result<()> {
        let lost = self.meta.hold(identity, request)?;
        self.lose_sessions(&lost);
        self.open_files().iter().for_each(|inode| inode.distrust());
        Ok(())
    }

    pub fn held(&self) -> Vec<u64> {
        self.holds.lock().keys().copied().collect()
    }

    /// What a client should not keep when all files are closed and all has been told; empty if there is none.
    #[cfg(test)]
    pub fn leftovers(&self) -> String {
        let mut left = Vec::new();
        let mut expect_none = |what: &str, count: usize| {
            if count != 0 {
                left.push(format!("{count} {what}"));
            }
        };
        expect_none("bytes of the budget", self.dirty_limit.used());
        expect_none("files with attributes to tell", self.deferred_count.load(Ordering::Acquire));
        expect_none("closes", self.closes_waiting());
        expect_none("held inodes", self.held().len());
        expect_none("files with dirty bytes", self.listed.lock().len());
        let files = self.files.lock();
        expect_none("open files", files.open.len());
        expect_none("opens", files.opening.len());
        expect_none("changes", files.left.len());
        left.join(", ")
    }
}
