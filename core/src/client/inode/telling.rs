//! Telling the metadata service of an open file's length, times and inline bytes.

use std::sync::Arc;

use super::durability::Stored;
use super::state::OUTGROWN;
use super::{OpenInode, Source, now_ns};
use crate::client::later::Later;
use crate::client::meta::Who;
use crate::error::{Error, Kind, Result};
use crate::wire::pb;

/// How often a small file's bytes are merged with somebody else's before the conflict is reported.
const MERGES_MAX: usize = 32;
/// Times an extension is told that others have truncated or changed the file.
const EXTENDS_MAX: usize = 32;

impl OpenInode {
    /// Everything written so far is acknowledged and the metadata service knows of it.
    ///
    /// An error of the write-back is not this function's: handles ask `error_since`.
    pub fn sync(self: &Arc<Self>) -> Result<()> {
        self.flush();
        let state = self.state.lock();
        // Opened for reading only: nothing of it is ours.
        let skip = state.is_clean();
        drop(state);
        if skip { Ok(()) } else { self.tell() }
    }

    /// Tells that the file is at least `length` bytes long: the rest is zeros. Truncation would cut what others write.
    pub fn extend(self: &Arc<Self>, who: &Who, session: u64, length: u64) -> Result<()> {
        self.sync()?;
        for _ in 0..EXTENDS_MAX {
            let truncate_version = self.state.lock().inode.truncate_version;
            let request = pb::SyncRequest {
                inode: self.id,
                length: Some(pb::LengthHint { length, truncate_version }),
                mtime_ns: now_ns(),
                session,
                ..Default::default()
            };
            let inode = match self.shared.meta.sync(who, request) {
                Err(error) if error.kind() == Kind::Conflict => continue,
                result => result?,
            };
            let done = inode.length >= length;
            self.adopt_own(&inode);
            self.shared.names.learn(inode);
            if done {
                return Ok(());
            }
        }
        Err(Error::timeout("others change the file again and again"))
    }

    /// Synchronizes length, times and inline bytes with the metadata service, if there are any to report.
    pub(super) fn tell(self: &Arc<Self>) -> Result<()> {
        self.report(None).map(drop)
    }

    /// As `tell`, and returns when all that the service has committed of the file is on its disk, from any client.
    pub(super) fn report_durably(self: &Arc<Self>, who: &Arc<Who>) -> Result<Stored> {
        self.report(Some(who))
    }

    fn report(self: &Arc<Self>, durable_for: Option<&Arc<Who>>) -> Result<Stored> {
        let durable = durable_for.is_some();
        let _telling = self.telling.lock();
        let mut merges = 0;
        loop {
            let mut state = self.state.lock();
            if state.has_outgrown() {
                drop(state);
                self.flush_until(OUTGROWN);
                continue;
            }
            if state.is_told() && !durable {
                return Ok(state.stored());
            }
            let layout = state.layout;
            let news = state.news();
            let writer = state.sessions.first().cloned();
            let reader = || (0, durable_for.cloned().unwrap_or_default());
            let (session, mut who) = writer.unwrap_or_else(reader);
            if let Some(later) = &news.later {
                who = later.who.clone();
            }
            let request = pb::SyncRequest {
                inode: self.id,
                length: news.length,
                mtime_ns: news.mtime_ns,
                has_inline: news.inline.is_some(),
                inline_base: news.base,
                inline_data: news.inline.clone().unwrap_or_default(),
                durable,
                session,
                attributes: news.later.as_ref().map(|later| later.request.clone()),
                clear_set_id: news.clears_set_id,
                ..Default::default()
            };
            drop(state);
            match self.shared.meta.sync(&who, request) {
                Ok(inode) => {
                    let layout = inode.layout.unwrap_or(layout);
                    let stored = Stored { layout, content: inode.content };
                    self.told(inode, &news, durable);
                    return Ok(stored);
                }
                Err(error) if error.kind() == Kind::Conflict && merges < MERGES_MAX => {
                    merges += 1;
                    self.untold();
                    self.merge(&who)?;
                }
                Err(error) => {
                    self.untold();
                    return Err(error);
                }
            }
        }
    }

    /// The metadata service has not taken the news, or it is not known.
    pub fn untold(&self) {
        if let Some(inline) = &mut self.state.lock().inline {
            inline.end_telling();
        }
        self.changed.notify_all();
    }

    /// The metadata service has taken the news.
    pub fn told(&self, inode: pb::Inode, news: &News, durable: bool) {
        // First of all: who finds the file clean, or closed, finds this.
        if news.reports() {
            self.shared.names.learn(inode.clone());
        } else {
            self.shared.names.learn_opened(inode.clone());
        }
        let mut state = self.state.lock();
        self.settled(&mut state, news.later.as_ref());
        let source = state.source_of(&inode, news.reports());
        if source == Source::Own {
            self.shared.names.page_cache_follows(self.id, state.inode.change, inode.change);
        }
        if durable {
            state.durable = state.durable.max(news.undurable);
        } else {
            state.undurable += 1;
        }
        if let Some(inline) = &mut state.inline {
            inline.telling = Default::default();
        }
        // What was in flight when the news was made, and has arrived since, is not in it: not even if the length is the
        // same, for the file may have been cut in between.
        let arrived = state.landings != news.landings;
        if state.doubtful == news.length && !arrived {
            state.doubtful = None;
        }
        if state.writes == news.writes {
            state.mtime_ns = None;
            state.clears_set_id = false;
            state.unsynced = !state.dirty.is_empty() || !state.flights.is_empty() || arrived;
        }
        self.adopt_into(&mut state, inode, source);
        if state.inline.is_none() && state.acknowledged > state.inode.length {
            state.unsynced = true;
        }
        self.changed.notify_all();
    }

    /// Somebody else changed the small file: keep their bytes where nothing was written here.
    fn merge(self: &Arc<Self>, who: &Who) -> Result<()> {
        let theirs = self.shared.meta.stat_open(who, self.id)?;
        let mut state = self.state.lock();
        state.writes += 1;
        let write = state.writes;
        self.adopt_into(&mut state, theirs, Source::Any);
        drop(state);
        self.flush_until(write);
        Ok(())
    }

    /// What a close has to tell; `None` if nothing, also where all that was written has been cut away since.
    /// Everything written so far has been written back, also by others; hold `telling`.
    pub fn last_words(self: &Arc<Self>) -> Option<News> {
        loop {
            let mut state = self.state.lock();
            if !state.has_outgrown() {
                let told = state.is_told();
                return Some(state.news()).filter(|news| !told && news.reports());
            }
            drop(state);
            self.flush_until(OUTGROWN);
        }
    }
}

/// What the metadata service is to be told.
pub struct News {
    pub length: Option<pb::LengthHint>,
    pub mtime_ns: i64,
    pub inline: Option<Vec<u8>>,
    pub base: u64,
    pub later: Option<Later>,
    pub clears_set_id: bool,
    /// How many writes had been made, and how often the chains had acknowledged some.
    pub writes: u64,
    pub landings: u64,
    /// How much had been told or changed without being made durable.
    pub undurable: u64,
}

impl News {
    /// Whether there is anything to report. The inode certainly changes by it.
    fn reports(&self) -> bool {
        let bytes = self.length.is_some() || self.inline.is_some();
        bytes || self.mtime_ns != 0 || self.later.is_some() || self.clears_set_id
    }
}
