//! Telling the metadata service of an open file's length, times and inline bytes.

use std::sync::Arc;

use super::{OpenInode, now_ns};
use crate::client::later::Later;
use crate::client::meta::Who;
use crate::error::{Error, Kind, Result};
use crate::types::ContentId;
use crate::wire::pb;

/// How often a small file's bytes are merged with somebody else's before the conflict is reported.
const MERGES_MAX: usize = 32;
/// Times an extension is told that others have truncated the file.
const EXTENDS_MAX: usize = 32;

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
    pub(super) fn tell(self: &Arc<Self>, durable: bool) -> Result<()> {
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
        } else if let Some(inline) = &mut state.inline
            && inode.is_inline
        {
            // Written meanwhile: what was edited stays edited, on top of what the inode has now. That may be more than
            // was told: an answer that was lost comes with what others have done since.
            inline.rebase(inode.inline_data.clone(), inode.change);
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
