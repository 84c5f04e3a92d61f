//! What this process knows of one open file, however many handles it has: the newest bytes and the newest length.
//!
//! Invariants:
//! - I1 A byte that was written is in `inline`, in `dirty`, in a flight, or acknowledged by the chains.
//! - I2 At most one flight of a chunk is under way, so its updates reach the chain in order.
//! - I3 A length is told to the metadata service only after the bytes below it were acknowledged.
//! - I4 While `exclusive` is set no flight is under way, the file is not leaving its inode, and nobody writes.
//! - I5 The first error of a write-back is told to every handle that was open then, at its next fsync and close.
//! - I6 While there is `inline`, nothing flies: a file with dirty bytes besides leaves its inode first (departure.rs).

use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::lock::{Condvar, Mutex, MutexGuard};
use rustix::io::Errno;

use super::data::{Read, Write};
use super::departure::Departure;
use super::dirty::{Dirty, DirtyChunk, RUN_BYTES, overlay, parts};
use super::inline::Inline;
use super::later::Later;
use super::meta::{Who, inode_path};
use super::shared::Shared;
use crate::buffer::Placement;
use crate::error::{Error, Kind, Result};
use crate::types::ContentId;
use crate::wire::pb;

/// Threads of the pool that write back one file at a time: enough to fill the chains, few enough to leave others room.
const HELPERS_MAX: usize = 4;
/// Updates of one wave of write-back; each is one piece.
const WAVE_PIECES_MAX: usize = 128;
/// How often a small file's bytes are merged with somebody else's before the conflict is reported.
const MERGES_MAX: usize = 32;
/// Times an extension is told that others have truncated the file.
const EXTENDS_MAX: usize = 32;
/// Most bytes taken in at once.
const WRITE_BYTES_MAX: usize = 4 << 20;
/// A reader asks again what it reads after this long: the file may have been replaced by an empty one, and its old
/// chunks are only kept for a while (`MetaConfig.gc_delay_ms`).
const REFRESH: Duration = Duration::from_secs(10);

/// Where a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    At(u64),
    End,
}

/// How a write or read treats this client's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// Bytes may wait here.
    Buffered,
    /// Acknowledged by the chains before the call returns; reads see what others wrote.
    Direct,
}

pub struct State {
    /// As last told by the metadata service.
    inode: pb::Inode,
    told: Instant,
    layout: pb::Layout,
    /// What a reader here sees.
    length: u64,
    /// End of what the chains have acknowledged since the last truncation.
    acknowledged: u64,
    /// The bytes in the inode. With `dirty` bytes besides, those are newer, and the file has outgrown it.
    inline: Option<Inline>,
    /// A thread is moving the file out of its inode.
    departing: bool,
    dirty: Dirty,
    flights: BTreeMap<u32, Arc<DirtyChunk>>,
    /// Counts writes.
    writes: u64,
    /// Time of the last write that the metadata service was not told.
    mtime_ns: Option<i64>,
    /// Made here and not closed yet: attributes may wait.
    fresh: bool,
    later: Option<Later>,
    /// The metadata service is to be told of a length, a time or inline bytes.
    unsynced: bool,
    /// Something was told to it without asking for durability.
    undurable: bool,
    /// Bytes acknowledged by the chains and perhaps not on their disks.
    volatile: Option<Range<u64>>,
    errors: u64,
    error: Option<Error>,
    helpers: usize,
    exclusive: bool,
    /// Write sessions of this client, and who opened them.
    sessions: Vec<(u64, Arc<Who>)>,
    /// In the client's list of files with dirty bytes.
    listed: bool,
}

pub struct OpenInode {
    id: u64,
    shared: Arc<Shared>,
    state: Mutex<State>,
    changed: Condvar,
    /// Held by whoever tells the metadata service.
    telling: Mutex<()>,
}

pub fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as i64)
}

impl OpenInode {
    pub fn new(shared: Arc<Shared>, inode: pb::Inode) -> Arc<OpenInode> {
        let layout = inode.layout.unwrap_or_default();
        let inline = inline_of(&inode);
        let state = State {
            told: Instant::now(),
            layout,
            length: inode.length,
            acknowledged: 0,
            inline,
            departing: false,
            dirty: Dirty::default(),
            flights: BTreeMap::new(),
            writes: 0,
            mtime_ns: None,
            fresh: false,
            later: None,
            unsynced: false,
            undurable: true,
            volatile: None,
            errors: 0,
            error: None,
            helpers: 0,
            exclusive: false,
            sessions: Vec::new(),
            listed: false,
            inode,
        };
        let id = state.inode.id;
        Arc::new(OpenInode {
            id,
            shared,
            state: Mutex::new(state),
            changed: Condvar::new(),
            telling: Mutex::new(()),
        })
    }

    pub fn id(&self) -> u64 {
        self.id
    }

    /// The inode as this process sees it: with what was written here and not yet told.
    pub fn seen(&self) -> pb::Inode {
        self.state.lock().seen()
    }

    /// Attributes from elsewhere (a listing, a cache), with what was written here and not told yet. The bytes of small
    /// files do not come with them, so nothing is taken in.
    pub fn seen_over(&self, inode: &pb::Inode) -> pb::Inode {
        let state = self.state.lock();
        if inode.change <= state.inode.change {
            return state.seen();
        }
        let length = inode.length.max(state.acknowledged).max(state.waiting_end());
        state.with_times(pb::Inode { length, ..inode.clone() })
    }

    /// `change` of the inode if nothing was written here since it was told.
    pub fn settled_change(&self) -> Option<u64> {
        let state = self.state.lock();
        state.is_clean().then_some(state.inode.change)
    }

    pub fn length(&self) -> u64 {
        self.state.lock().length
    }

    /// Counts writes made here.
    pub fn writes(&self) -> u64 {
        self.state.lock().writes
    }

    pub fn layout(&self) -> pb::Layout {
        self.state.lock().layout
    }

    /// Number of errors so far: a handle remembers it when it is opened and when it reports.
    pub fn errors(&self) -> u64 {
        self.state.lock().errors
    }

    /// The error that a handle which has seen `seen` of them is still to be told.
    pub fn error_since(&self, seen: u64) -> Option<(u64, Error)> {
        let state = self.state.lock();
        (state.errors > seen)
            .then(|| (state.errors, state.error.clone().expect("errors are counted with a reason")))
    }

    pub fn add_session(&self, session: u64, who: &Arc<Who>) {
        self.state.lock().sessions.push((session, who.clone()));
    }

    pub fn drop_session(&self, session: u64) {
        self.state.lock().sessions.retain(|(known, _)| *known != session);
    }

    /// Whether everything written here is acknowledged and told.
    pub fn is_clean(&self) -> bool {
        self.state.lock().is_clean()
    }

    /// Takes in the reply to a change of attributes that this client made. If it was the only change since what is
    /// known, the bytes of a small file are still those that what is waiting here was made from.
    pub fn adopt_own(&self, inode: &pb::Inode) {
        let mut state = self.state.lock();
        let known = state.inode.change;
        if inode.change == known + 1 {
            self.shared.names.page_cache_follows(self.id, known, inode.change);
            if let Some(inline) = &mut state.inline
                && inline.base == known
            {
                inline.base = inode.change;
            }
        }
        self.adopt_into(&mut state, inode.clone());
    }

    /// Takes in what the metadata service just said of this inode: all of it, with the bytes of a small file.
    pub fn adopt(&self, inode: &pb::Inode) {
        let mut state = self.state.lock();
        self.adopt_into(&mut state, inode.clone());
    }

    fn adopt_into(&self, state: &mut State, inode: pb::Inode) {
        if inode.id != self.id || inode.change < state.inode.change {
            return;
        }
        let truncated =
            inode.truncate_version != state.inode.truncate_version || inode.content != state.inode.content;
        if truncated {
            state.acknowledged = 0;
            state.volatile = None;
        }
        if state.inline.as_ref().is_none_or(|inline| inline.edited.is_empty()) {
            state.inline = inline_of(&inode);
        }
        state.length = inode.length.max(state.acknowledged).max(state.waiting_end());
        if let Some(layout) = inode.layout {
            state.layout = layout;
        }
        state.inode = inode;
        state.told = Instant::now();
    }

    /// Asks the metadata service again if what it said is older than `age`. A file that is gone keeps what is known.
    pub fn refresh(&self, who: &Who, age: Duration) -> Result<()> {
        if self.state.lock().told.elapsed() < age {
            return Ok(());
        }
        match self.shared.meta.stat_open(who, self.id) {
            Ok(inode) => self.adopt(&inode),
            Err(error) if error.kind() == Kind::NotFound => self.state.lock().told = Instant::now(),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn shared_state(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock();
        while state.exclusive {
            self.changed.wait(&mut state);
        }
        state
    }
}

// Reading.
impl OpenInode {
    /// Reads up to `into.len()` bytes; fewer only at the end of the file.
    pub fn read(&self, who: &Who, offset: u64, into: &Placement, through: Through) -> Result<usize> {
        self.refresh_for(who, offset.saturating_add(into.len() as u64), through)?;
        let state = self.state.lock();
        if offset >= state.length {
            return Ok(0);
        }
        let count = (state.length - offset).min(into.len() as u64) as usize;
        let into = into.slice(0..count);
        if let Some(inline) = &state.inline {
            copy_inline(&inline.bytes, offset as usize, &into);
            for (at, bytes) in state.waiting(offset, &into).unwrap_or_default() {
                bytes.copy_into(&into.slice(at..at + bytes.len()));
            }
            return Ok(count);
        }
        let waiting = state.waiting(offset, &into);
        let Some(waiting) = waiting else { return Ok(count) };
        let read = Read {
            layout: state.layout,
            content: ContentId(state.inode.content),
            offset,
            into: into.clone(),
        };
        drop(state);
        self.shared.chunks.read(&read)?;
        for (at, bytes) in waiting {
            bytes.copy_into(&into.slice(at..at + bytes.len()));
        }
        Ok(count)
    }

    /// As `read`, into memory that its owner can do without: if a node hangs with it, the bytes lie elsewhere.
    pub fn read_anywhere(
        &self,
        who: &Who,
        offset: u64,
        into: &Placement,
        through: Through,
    ) -> Result<Placement> {
        match self.read(who, offset, &into.clone().expendable(), through) {
            Err(error) if error.kind() == Kind::Timeout && into.is_shared() => {
                let other = Placement::private(into.len())?;
                let count = self.read(who, offset, &other, through)?;
                Ok(other.slice(0..count))
            }
            result => result.map(|count| into.slice(0..count)),
        }
    }

    /// Asks anew before a read up to `end`, if what is known is too old for it.
    pub fn refresh_for(&self, who: &Who, end: u64, through: Through) -> Result<()> {
        let age = self.freshness(end, through);
        self.refresh(who, age)
    }

    /// How old the inode may be for a read up to `end`.
    fn freshness(&self, end: u64, through: Through) -> Duration {
        let state = self.state.lock();
        let beyond = end > state.length;
        match through {
            Through::Direct if beyond || state.inline.is_some() => Duration::ZERO,
            _ if beyond => self.shared.attribute_timeout,
            _ => REFRESH,
        }
    }

    /// What a read of a chunked file needs where nothing waits here: for batches of many files.
    /// `None`: use `read`.
    pub fn plan_read(&self, offset: u64, into: &Placement) -> Option<Read> {
        let state = self.state.lock();
        let end = offset + into.len() as u64;
        let settled = state.inline.is_none() && state.dirty.is_empty() && state.flights.is_empty();
        (settled && end <= state.length && state.told.elapsed() < REFRESH).then(|| Read {
            layout: state.layout,
            content: ContentId(state.inode.content),
            offset,
            into: into.clone(),
        })
    }
}

fn inline_of(inode: &pb::Inode) -> Option<Inline> {
    inode.is_inline.then(|| Inline::new(inode.inline_data.clone(), inode.change))
}

fn copy_inline(bytes: &[u8], offset: usize, into: &Placement) {
    let known = bytes.get(offset..).unwrap_or_default();
    let known = &known[..known.len().min(into.len())];
    into.copy_from(known);
    // The length may be ahead of the bytes: a file extended by truncation.
    into.slice(known.len()..into.len()).zero();
}

// Writing.
impl OpenInode {
    /// Writes `payload`; `keep`: its memory may be kept and changed. Returns the offset it went to.
    pub fn write(
        self: &Arc<Self>,
        place: Place,
        payload: &Placement,
        keep: bool,
        through: Through,
    ) -> Result<u64> {
        if payload.is_empty() {
            return Ok(0);
        }
        // A long payload in parts, so that its copy fits the bound on dirty bytes. An append stays whole: others may
        // append too.
        if let Place::At(offset) = place
            && payload.len() > WRITE_BYTES_MAX
        {
            for at in (0..payload.len()).step_by(WRITE_BYTES_MAX) {
                let part = payload.slice(at..payload.len().min(at + WRITE_BYTES_MAX));
                let place = Place::At(offset.saturating_add(at as u64));
                self.write(place, &part, keep, through)?;
            }
            return Ok(offset);
        }
        self.reserve(payload.len())?;
        let mut state = self.shared_state();
        let offset = match place {
            Place::At(offset) => offset,
            Place::End => state.length,
        };
        if offset.saturating_add(payload.len() as u64) > state.length_max() {
            self.shared.budget.release(payload.len());
            return Err(Error::invalid("the file would be too large for its layout").with_errno(Errno::FBIG));
        }
        let (change, complete) = state.put(offset, payload, keep, &self.shared);
        self.shared.budget.settle(payload.len(), change);
        let write = state.writes;
        let inside = state.is_inside();
        self.list(&mut state);
        if through == Through::Buffered {
            if complete {
                self.help(&mut state);
            }
            drop(state);
            if self.shared.budget.is_pressed() {
                self.shared.press();
            }
            return Ok(offset);
        }
        let seen = state.errors;
        drop(state);
        if inside {
            self.tell(false)?;
        } else {
            self.flush_until(write);
            if let Some((_, error)) = self.error_since(seen) {
                return Err(error);
            }
            // The metadata service measures the chains only now and then: a longer file is told at once.
            let longer = !self.state.lock().length_is_told();
            if longer {
                self.tell(false)?;
            }
        }
        Ok(offset)
    }

    /// Room for dirty bytes, making some by writing back what all files hold.
    fn reserve(&self, bytes: usize) -> Result<()> {
        if self.shared.budget.try_reserve(bytes) {
            return Ok(());
        }
        self.shared.press();
        self.shared.budget.reserve(bytes, self.shared.meta.deadline())
    }

    /// Begins to write back everything without waiting.
    pub fn start_write_back(self: &Arc<Self>) {
        let mut state = self.state.lock();
        state.want_until(u64::MAX);
        self.help(&mut state);
    }

    /// Sends threads, if there is something for them to do.
    fn help(self: &Arc<Self>, state: &mut State) {
        self.help_besides(state, 0);
    }

    /// Sends threads, if there is more to do than `others` will.
    fn help_besides(self: &Arc<Self>, state: &mut State, others: usize) {
        let ready = state.ready().take(HELPERS_MAX + others).count().saturating_sub(others);
        while state.helpers < ready {
            let inode = self.clone();
            if !self.shared.workers.submit(move || inode.write_back()) {
                return;
            }
            state.helpers += 1;
        }
    }

    /// A helper: writes back until nothing wanted is left.
    fn write_back(self: Arc<Self>) {
        let mut state = self.state.lock();
        while !state.exclusive && self.fly(&mut state) {}
        state.helpers -= 1;
    }

    /// Writes back what is wanted, as many chunks as make a good batch. False: there was nothing to do.
    fn fly(self: &Arc<Self>, state: &mut MutexGuard<'_, State>) -> bool {
        if state.inline.is_some() {
            return self.depart(state);
        }
        assert!(!state.inode.is_inline, "I6: nothing is written under the content of a file in its inode");
        let wave = state.take_wave();
        if wave.is_empty() {
            return false;
        }
        let (layout, content) = (state.layout, state.inode.content);
        let truncate_version = state.inode.truncate_version;
        let mut writes = Vec::new();
        for (index, chunk) in &wave {
            let start = u64::from(*index) * u64::from(layout.chunk_bytes);
            writes.extend(chunk.pieces().map(|(at, payload)| Write {
                layout,
                content: ContentId(content),
                offset: start + u64::from(at),
                payload,
            }));
        }
        let results = MutexGuard::unlocked(state, || self.write_all(&writes));
        assert_eq!(results.len(), writes.len(), "one result for each write");
        let current = truncate_version == state.inode.truncate_version && content == state.inode.content;
        for (write, result) in writes.iter().zip(results) {
            match result {
                Ok(()) if current => state.landed(write.offset, write.payload.len()),
                Ok(()) => state.unsynced = true,
                Err(error) => state.fail(error.context("write-back")),
            }
        }
        drop(writes);
        let mut freed = 0;
        for (index, chunk) in wave {
            state.flights.remove(&index);
            freed += chunk.bytes();
        }
        self.shared.budget.release(freed);
        self.changed.notify_all();
        true
    }

    /// One result for each. A mistake in there is an error of these writes: whoever waits for them goes on.
    fn write_all(&self, writes: &[Write]) -> Vec<Result<()>> {
        let result = catch_unwind(AssertUnwindSafe(|| self.shared.chunks.write_many(writes)));
        let mistake = || Err(Error::new(Kind::Other, "a defect of the client, see its log"));
        result.unwrap_or_else(|_| writes.iter().map(|_| mistake()).collect())
    }

    /// Moves the file out of its inode, because dirty bytes are wanted on its chunks. False: there is nothing to do.
    fn depart(self: &Arc<Self>, state: &mut MutexGuard<'_, State>) -> bool {
        if state.departing || state.ready().next().is_none() {
            return false;
        }
        let Some(inline) = state.inline.clone() else { return false };
        let (session, who) = state.sessions.first().cloned().unwrap_or_default();
        let layout = state.layout;
        state.departing = true;
        let departed = MutexGuard::unlocked(state, || {
            let departure = Departure { shared: &self.shared, who: &who, inode: self.id, session, layout };
            departure.run(inline.bytes, inline.base)
        });
        state.departing = false;
        match departed {
            Ok(departed) => {
                let inode = departed.inode;
                if departed.ours && inode.change == state.inode.change + 1 {
                    self.shared.names.page_cache_follows(self.id, state.inode.change, inode.change);
                }
                state.undurable = true;
                self.adopt_into(state, inode);
            }
            Err(error) => {
                let freed = state.give_up();
                self.shared.budget.release(freed);
                state.fail(error.context("write-back"));
            }
        }
        self.help(state);
        self.changed.notify_all();
        true
    }

    /// Returns when every write up to number `write` has been acknowledged or has failed.
    fn flush_until(self: &Arc<Self>, write: u64) {
        let mut state = self.shared_state();
        loop {
            state.want_until(write);
            // This thread flies too: for one chunk nobody is woken.
            self.help_besides(&mut state, 1);
            if !state.exclusive && self.fly(&mut state) {
                continue;
            }
            if !state.waits_until(write) {
                return;
            }
            self.changed.wait(&mut state);
        }
    }

    /// Writes back everything written so far. Errors are counted (`error_since`).
    pub fn flush(self: &Arc<Self>) {
        let writes = self.state.lock().writes;
        self.flush_until(writes);
    }

    /// Write-back by age: chunks, and inline bytes too.
    pub fn write_back_aged(self: &Arc<Self>) {
        self.start_write_back();
        let mut state = self.state.lock();
        if state.later.is_some() {
            drop(state);
            if let Err(error) = self.settle() {
                self.state.lock().fail(error.context("attributes"));
            }
        } else if state.inline.as_ref().is_some_and(|inline| !inline.edited.is_empty()) {
            drop(state);
            if let Err(error) = self.tell(false) {
                self.state.lock().fail(error.context("write-back"));
            }
        } else if state.dirty.is_empty() && state.flights.is_empty() {
            state.listed = false;
        }
    }

    /// Whether the client's list of dirty files still needs this one.
    pub fn is_listed(&self) -> bool {
        self.state.lock().listed
    }

    /// Counts an error that concerns every handle.
    pub fn fail(&self, error: Error) {
        self.state.lock().fail(error);
    }
}

// Telling the metadata service.
impl OpenInode {
    /// Everything written so far is acknowledged and the metadata service knows of it. With `durable`, it survives
    /// the loss of power as well; `data_only` leaves out times.
    ///
    /// An error of the write-back is not this function's: handles ask `error_since`.
    pub fn sync(self: &Arc<Self>, durable: bool, data_only: bool) -> Result<()> {
        self.flush();
        if durable {
            self.sync_chains()?;
        }
        let state = self.state.lock();
        let told = state.is_clean();
        let skip = match (durable, data_only) {
            // Opened for reading only: nothing of it is ours.
            _ if told && state.sessions.is_empty() => true,
            (false, _) => told,
            (true, false) => told && !state.undurable,
            (true, true) => !state.undurable && state.length_is_told(),
        };
        drop(state);
        if skip { Ok(()) } else { self.tell(durable) }
    }

    fn sync_chains(&self) -> Result<()> {
        let (layout, content, volatile) = {
            let mut state = self.state.lock();
            (state.layout, ContentId(state.inode.content), state.volatile.take())
        };
        let Some(range) = volatile else { return Ok(()) };
        let result = self.shared.chunks.sync(&layout, content, range.clone());
        if result.is_err() {
            self.state.lock().add_volatile(range);
        }
        result.map_err(|error| error.context("fsync"))
    }

    /// Tells that the file is at least `length` bytes long: the rest is zeros. Truncation would cut what others write.
    pub fn extend(self: &Arc<Self>, who: &Who, session: u64, length: u64) -> Result<()> {
        self.sync(false, false)?;
        for _ in 0..EXTENDS_MAX {
            let truncate_version = self.state.lock().inode.truncate_version;
            let inode = self.shared.meta.sync(
                who,
                pb::SyncRequest {
                    inode: self.id,
                    length: Some(pb::LengthHint { length, truncate_version }),
                    mtime_ns: now_ns(),
                    session,
                    ..Default::default()
                },
            )?;
            let done = inode.length >= length;
            self.adopt_own(&inode);
            self.shared.names.learn(inode);
            if done {
                return Ok(());
            }
        }
        Err(Error::timeout("others truncate the file again and again"))
    }

    /// Tells length, times and inline bytes.
    fn tell(self: &Arc<Self>, durable: bool) -> Result<()> {
        let telling = self.telling.lock();
        let mut merges = 0;
        loop {
            let state = self.state.lock();
            let writes = state.writes;
            if state.inline.is_some() && !state.dirty.is_empty() {
                // Outgrown since its caller wrote everything back, with bytes that were to be told now.
                drop(state);
                self.flush_until(writes);
                continue;
            }
            if state.is_told() && !(durable && state.undurable) {
                return Ok(());
            }
            let news = state.news();
            let (session, mut who) = state.sessions.first().cloned().unwrap_or_default();
            if let Some(later) = &news.later {
                who = later.who.clone();
            }
            let request = pb::SyncRequest {
                inode: self.id,
                length: news.length,
                mtime_ns: news.mtime_ns,
                has_inline: news.inline.is_some(),
                inline_base: news.base,
                inline_data: news.inline.unwrap_or_default(),
                durable,
                session,
                attributes: news.later.as_ref().map(|later| later.request.clone()),
                ..Default::default()
            };
            drop(state);
            match self.shared.meta.sync(&who, request) {
                Ok(inode) => {
                    self.told(&inode, writes, durable, news.later.as_ref());
                    drop(telling);
                    self.shared.names.learn(inode);
                    return Ok(());
                }
                Err(error) if error.kind() == Kind::Conflict && merges < MERGES_MAX => {
                    merges += 1;
                    self.merge(&who)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The metadata service has taken what was news when `writes` writes had been made, and `later` waited.
    pub fn told(&self, inode: &pb::Inode, writes: u64, durable: bool, later: Option<&Later>) {
        let mut state = self.state.lock();
        self.settled(&mut state, later);
        if inode.change == state.inode.change + 1 {
            self.shared.names.page_cache_follows(self.id, state.inode.change, inode.change);
        }
        state.undurable = !durable;
        if state.writes == writes {
            if let Some(inline) = &mut state.inline {
                inline.edited = Default::default();
            }
            state.mtime_ns = None;
            state.unsynced = !state.dirty.is_empty() || !state.flights.is_empty();
        } else if let Some(inline) = &mut state.inline {
            // Written meanwhile: what was edited stays edited, on top of what was just told.
            inline.base = inode.change;
        }
        self.adopt_into(&mut state, inode.clone());
        // What was in flight when the news was made, and has arrived since, is not in it.
        if state.inline.is_none() && state.acknowledged > state.inode.length {
            state.unsynced = true;
        }
        self.changed.notify_all();
    }

    /// Somebody else changed the small file: keep their bytes where nothing was written here.
    fn merge(self: &Arc<Self>, who: &Who) -> Result<()> {
        let asked = self.shared.meta.stat_open(who, self.id)?;
        let mut state = self.state.lock();
        let theirs = if asked.change < state.inode.change { state.inode.clone() } else { asked };
        if let Some(inline) = &mut state.inline
            && theirs.is_inline
        {
            inline.rebase(theirs.inline_data.clone(), theirs.change);
        } else {
            let change = state.outgrow(&self.shared);
            self.shared.budget.settle(0, change);
        }
        state.writes += 1;
        let write = state.writes;
        self.adopt_into(&mut state, theirs);
        let end = state.inline.as_ref().map_or(0, |inline| inline.bytes.len() as u64);
        state.length = state.length.max(end);
        drop(state);
        self.flush_until(write);
        Ok(())
    }

    /// What a close has to tell; `None` if nothing.
    pub fn last_words(&self) -> Option<(News, u64)> {
        let state = self.state.lock();
        (!state.is_told()).then(|| (state.news(), state.writes))
    }
}

/// What the metadata service is to be told.
pub struct News {
    pub length: Option<pb::LengthHint>,
    pub mtime_ns: i64,
    pub inline: Option<Vec<u8>>,
    pub base: u64,
    pub later: Option<Later>,
}

// Attributes that wait.
impl OpenInode {
    /// The file was made here just now: until it is closed, attributes may wait.
    pub fn made(&self) {
        self.state.lock().fresh = true;
    }

    /// The file is being closed: from here on attributes are told at once.
    pub fn closing(&self) {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.fresh) {
            self.shared.was_made(state.length, state.layout.inline_bytes);
        }
    }

    /// Keeps a change of attributes to be told later, and returns what is seen now. `None`: it may not wait.
    pub fn set_later(self: &Arc<Self>, who: &Arc<Who>, request: &pb::SetAttrRequest) -> Option<pb::Inode> {
        let mut state = self.state.lock();
        if !state.fresh || state.sessions.is_empty() {
            return None;
        }
        let later = Later::add(state.later.as_ref(), who, request, &state.seen())?;
        if request.mtime_ns.is_some() || request.mtime_now {
            state.mtime_ns = None;
        }
        if state.later.replace(later).is_none() {
            self.shared.unsettled.fetch_add(1, Ordering::AcqRel);
        }
        self.list(&mut state);
        Some(state.seen())
    }

    /// Tells attributes that wait, alone. Length and bytes are not told.
    pub fn settle(&self) -> Result<()> {
        let _telling = self.telling.lock();
        let Some(later) = self.state.lock().later.clone() else { return Ok(()) };
        let request = pb::SetAttrRequest { path: Some(inode_path(self.id)), ..later.request.clone() };
        let inode = self.shared.meta.set_attr(&later.who, request)?;
        self.adopt_own(&inode);
        self.settled(&mut self.state.lock(), Some(&later));
        self.shared.names.learn(inode);
        Ok(())
    }

    fn settled(&self, state: &mut State, told: Option<&Later>) {
        let told = told.map(|later| later.number);
        if told.is_some() && told == state.later.as_ref().map(|later| later.number) {
            state.later = None;
            self.shared.unsettled.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// In the client's list of files that have something to tell.
    fn list(self: &Arc<Self>, state: &mut State) {
        if !state.listed {
            state.listed = true;
            self.shared.list_dirty(self);
        }
    }
}

// Alone with the file.
impl OpenInode {
    /// Calls `change` at the metadata service while nobody writes and nothing is under way, for changes that replace
    /// content; `length` is the file's length afterwards. Dirty bytes beyond it are dropped once that has succeeded.
    pub fn truncate(
        self: &Arc<Self>,
        length: u64,
        change: impl FnOnce() -> Result<pb::InodeReply>,
    ) -> Result<pb::InodeReply> {
        let mut state = self.enter(length)?;
        let result = MutexGuard::unlocked(&mut state, change);
        if let Ok(reply) = &result {
            let chunk_bytes = state.layout.chunk_bytes;
            let freed = state.dirty.cut(length, chunk_bytes);
            self.shared.budget.release(freed);
            state.inline = state.inline.take().map(|inline| Inline { edited: Default::default(), ..inline });
            state.acknowledged = 0;
            state.length = length;
            state.mtime_ns = None;
            if let Some(later) = &mut state.later {
                later.written();
            }
            state.undurable = true;
            if let Some(inode) = reply.inode.clone() {
                self.adopt_into(&mut state, inode);
            }
        }
        state.exclusive = false;
        self.help(&mut state);
        self.changed.notify_all();
        result
    }

    /// Waits until this thread is alone with the file. What only exists as inline bytes is told first, unless it is
    /// about to be cut away.
    fn enter(self: &Arc<Self>, length: u64) -> Result<MutexGuard<'_, State>> {
        loop {
            let mut state = self.shared_state();
            if length != 0 && !state.inline_is_told() {
                drop(state);
                self.flush();
                self.tell(false)?;
                continue;
            }
            state.exclusive = true;
            while !state.flights.is_empty() || state.departing {
                self.changed.wait(&mut state);
            }
            if length == 0 || state.inline_is_told() {
                return Ok(state);
            }
            state.exclusive = false;
            self.changed.notify_all();
        }
    }

    /// Changes times at the metadata service while nothing else is being told of this file: what it hears of earlier
    /// writes must not come after, and take the times back.
    pub fn set_times<T>(&self, change: impl FnOnce() -> Result<T>) -> Result<T> {
        let _telling = self.telling.lock();
        let result = change()?;
        self.forget_mtime();
        Ok(result)
    }

    /// The metadata service was given times by the user: those of earlier writes count no more.
    pub fn forget_mtime(&self) {
        self.state.lock().mtime_ns = None;
    }

    /// Held by whoever tells the metadata service of this file.
    pub fn telling(&self) -> MutexGuard<'_, ()> {
        self.telling.lock()
    }
}

impl State {
    fn seen(&self) -> pb::Inode {
        self.with_times(pb::Inode { length: self.length, ..self.inode.clone() })
    }

    fn with_times(&self, mut inode: pb::Inode) -> pb::Inode {
        if let Some(mtime_ns) = self.mtime_ns {
            inode.mtime_ns = mtime_ns;
            inode.ctime_ns = inode.ctime_ns.max(mtime_ns);
        }
        if let Some(later) = &self.later {
            later.overlay(&mut inode);
        }
        inode
    }

    fn is_clean(&self) -> bool {
        self.dirty.is_empty() && self.flights.is_empty() && self.is_told()
    }

    fn is_told(&self) -> bool {
        !self.unsynced && self.mtime_ns.is_none() && self.later.is_none() && self.inline_is_told()
    }

    fn inline_is_told(&self) -> bool {
        self.inline.as_ref().is_none_or(|inline| inline.edited.is_empty())
    }

    /// Whether all that is known of the file's bytes is in `inline`, so that a small write may go there.
    fn is_inside(&self) -> bool {
        self.inline.is_some() && self.dirty.is_empty() && self.flights.is_empty()
    }

    fn length_is_told(&self) -> bool {
        self.acknowledged <= self.inode.length && self.inline_is_told()
    }

    fn news(&self) -> News {
        // Of an inline file all of it is told, and it may be longer than its bytes: zeros after them.
        let length = if self.is_inside() { self.length } else { self.acknowledged };
        let hint = pb::LengthHint { length, truncate_version: self.inode.truncate_version };
        News {
            length: (length > 0).then_some(hint),
            mtime_ns: self.mtime_ns.unwrap_or_default(),
            inline: self
                .inline
                .as_ref()
                .filter(|inline| !inline.edited.is_empty())
                .map(|inline| inline.bytes.clone()),
            base: self.inline.as_ref().map_or(0, |inline| inline.base),
            later: self.later.clone(),
        }
    }

    /// Largest length that chunk indices can express.
    fn length_max(&self) -> u64 {
        u64::from(self.layout.chunk_bytes.max(1)) * u64::from(u32::MAX)
    }

    /// End of what waits here for the chains.
    fn waiting_end(&self) -> u64 {
        let chunk_bytes = u64::from(self.layout.chunk_bytes);
        let flying = self
            .flights
            .last_key_value()
            .map_or(0, |(&index, chunk)| u64::from(index) * chunk_bytes + u64::from(chunk.end()));
        let inline = self.inline.as_ref().filter(|inline| !inline.edited.is_empty());
        let inline = inline.map_or(0, |inline| inline.bytes.len() as u64);
        self.dirty.end(self.layout.chunk_bytes).max(flying).max(inline)
    }

    /// Takes in a write. Returns the change in memory held and whether a run is complete.
    fn put(&mut self, offset: u64, payload: &Placement, keep: bool, shared: &Shared) -> (isize, bool) {
        self.writes += 1;
        let end = offset + payload.len() as u64;
        let mut change = 0;
        let mut complete = false;
        let inside = self.is_inside() && end <= u64::from(self.layout.inline_bytes);
        if let Some(inline) = self.inline.as_mut().filter(|_| inside) {
            inline.write(offset as usize, payload.len(), |target| payload.copy_to(target));
            self.unsynced = true;
        } else {
            change += self.outgrow(shared);
            let (more, runs) =
                self.dirty.put(self.writes, offset, payload, keep, self.layout.chunk_bytes, &shared.pool);
            change += more;
            complete = !runs.is_empty();
        }
        self.length = self.length.max(end);
        self.mtime_ns = Some(now_ns());
        if let Some(later) = &mut self.later {
            later.written();
        }
        (change, complete)
    }

    /// What was written to `inline` becomes dirty instead, and what is left of it is what the inode holds. Returns the
    /// change in memory held.
    fn outgrow(&mut self, shared: &Shared) -> isize {
        let Some(inline) = self.inline.as_ref().filter(|inline| !inline.edited.is_empty()) else { return 0 };
        let bytes = Placement::from_vec(inline.bytes.clone());
        let mut change = 0;
        for range in inline.edited.iter() {
            // Older than everything that is written from here on: whoever flushes waits for it.
            let (start, bytes) = (range.start as u64, bytes.slice(range));
            change += self.dirty.put(0, start, &bytes, false, self.layout.chunk_bytes, &shared.pool).0;
        }
        self.inline = inline_of(&self.inode);
        change
    }

    /// What waits here of a range that is about to be read: pieces to lay over what the chains have. `None`: all of
    /// it, and it has been copied.
    fn waiting(&self, offset: u64, into: &Placement) -> Option<Vec<(usize, Placement)>> {
        if self.dirty.is_empty() && self.flights.is_empty() {
            return Some(Vec::new());
        }
        let chunk_bytes = self.layout.chunk_bytes;
        let layers = |index: u32| [self.flights.get(&index).map(Arc::as_ref), self.dirty.chunk(index)];
        let mut found = Vec::new();
        let mut complete = true;
        for part in parts(offset, into.len(), chunk_bytes, chunk_bytes) {
            let layers = layers(part.index);
            if layers.iter().all(Option::is_none) {
                complete = false;
                continue;
            }
            let range = part.offset..part.offset + part.range.len() as u32;
            for layer in layers.into_iter().flatten() {
                for (at, bytes) in layer.pieces_in(range.clone()) {
                    found.push((part.range.start + (at - part.offset) as usize, bytes));
                }
            }
        }
        if complete && overlay(offset, into, chunk_bytes, layers) {
            return None;
        }
        // Copied now: pieces that are dirty may change in place once the lock is gone.
        Some(found.into_iter().map(|(at, bytes)| (at, Placement::from_vec(bytes.to_vec()))).collect())
    }

    /// Marks what was dirty by write number `write` as wanted.
    fn want_until(&mut self, write: u64) {
        for (_, chunk) in self.dirty.chunks_mut() {
            chunk.wanted |= chunk.since <= write;
        }
    }

    /// Chunks that can be written back now (I2).
    fn ready(&self) -> impl Iterator<Item = (u32, &DirtyChunk)> {
        self.dirty.chunks().filter(|(index, chunk)| chunk.wanted && !self.flights.contains_key(index))
    }

    /// Moves chunks from dirty to flight.
    fn take_wave(&mut self) -> Vec<(u32, Arc<DirtyChunk>)> {
        let (mut bytes, mut pieces) = (0, 0);
        let mut indices = Vec::new();
        for (index, chunk) in self.ready() {
            bytes += chunk.bytes();
            pieces += chunk.pieces().count();
            if !indices.is_empty() && (bytes > RUN_BYTES as usize || pieces > WAVE_PIECES_MAX) {
                break;
            }
            indices.push(index);
        }
        let mut wave = Vec::new();
        for index in indices {
            let chunk = Arc::new(self.dirty.take(index).expect("it was there a moment ago"));
            self.flights.insert(index, chunk.clone());
            wave.push((index, chunk));
        }
        wave
    }

    /// Forgets what is wanted on chunks and cannot get there. Returns the memory set free.
    fn give_up(&mut self) -> usize {
        let lost: Vec<u32> = self.ready().map(|(index, _)| index).collect();
        lost.into_iter().filter_map(|index| self.dirty.take(index)).map(|chunk| chunk.bytes()).sum()
    }

    /// Whether a write up to number `write` is not acknowledged yet.
    fn waits_until(&self, write: u64) -> bool {
        self.dirty.chunks().any(|(_, chunk)| chunk.since <= write)
            || self.flights.values().any(|chunk| chunk.since <= write)
    }

    fn landed(&mut self, offset: u64, length: usize) {
        let end = offset + length as u64;
        self.acknowledged = self.acknowledged.max(end);
        self.add_volatile(offset..end);
        self.unsynced = true;
    }

    fn add_volatile(&mut self, range: Range<u64>) {
        self.volatile = Some(match self.volatile.take() {
            Some(before) => before.start.min(range.start)..before.end.max(range.end),
            None => range,
        });
    }

    fn fail(&mut self, error: Error) {
        log::warn!("inode {}: {error}", self.inode.id);
        self.errors += 1;
        self.error = Some(error);
    }
}
