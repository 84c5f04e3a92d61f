//! Group commit: callers that come while a round runs share the next one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::lock::{Condvar, Mutex};

use super::engine::{Core, Engine};
#[cfg(test)]
use super::faults::Moment;
use crate::types::Status;

impl Engine {
    /// Return when everything acknowledged before the call is durable against power loss.
    /// Concurrent callers share one round of disk writes.
    pub fn sync(&self) -> Result<(), Status> {
        self.core.sync()
    }
}

/// GroupCommit of flushing, and what makes the engine refuse updates for good.
#[derive(Default)]
pub struct GroupCommit {
    state: Mutex<CommitState>,
    finished: Condvar,
    /// Wakes the flusher.
    wake: Condvar,
    /// Copies of `CommitState::begun`, and of `CommitState::ended` as far as rounds succeeded.
    begun: AtomicU64,
    synced: AtomicU64,
    /// Whether there is a `CommitState::failure`.
    has_failed: AtomicBool,
}

#[derive(Default)]
struct CommitState {
    /// GroupCommit begun and ended. At most one runs.
    begun: u64,
    ended: u64,
    is_running: bool,
    /// Something was acknowledged since the last round began.
    has_news: bool,
    is_urgent: bool,
    is_stopping: bool,
    /// A failed flush or index write: what is on disk is no longer known, so nothing more may be promised.
    failure: Option<Status>,
}

impl GroupCommit {
    /// Rounds are counted over the whole life of the directory, of which `synced` are known to have succeeded.
    pub fn starting_at(synced: u64) -> GroupCommit {
        let group_commit = GroupCommit::default();
        // What an earlier process wrote may still wait for its flush.
        *group_commit.state.lock() =
            CommitState { begun: synced, ended: synced, has_news: true, ..CommitState::default() };
        group_commit.begun.store(synced, Ordering::Release);
        group_commit.synced.store(synced, Ordering::Release);
        group_commit
    }

    /// The newest round that has begun. What was written before this call is durable after the next one.
    pub fn begun(&self) -> u64 {
        self.begun.load(Ordering::Acquire)
    }

    /// The newest round that has succeeded. States of earlier rounds have their data on disk.
    pub fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// An update was acknowledged.
    pub fn wrote(&self) {
        self.state.lock().has_news = true;
    }

    /// Wake the flusher: many pages wait to be freed.
    pub fn hurry(&self) {
        let mut state = self.state.lock();
        if !state.is_urgent {
            state.is_urgent = true;
            self.wake.notify_all();
        }
    }

    pub fn stop(&self) {
        self.state.lock().is_stopping = true;
        self.wake.notify_all();
    }

    /// From now on every update and sync fails with `status`; reads continue.
    pub fn fail(&self, status: Status) {
        self.state.lock().failure.get_or_insert(status);
        self.has_failed.store(true, Ordering::Release);
    }

    /// Whether `check` gives an error; costs next to nothing.
    pub fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    pub fn check(&self) -> Result<(), Status> {
        self.state.lock().failure.map_or(Ok(()), Err)
    }

    /// GroupCommit run so far.
    #[cfg(test)]
    pub fn count(&self) -> u64 {
        self.state.lock().ended
    }

    /// Run or joins a round that begins after this call, unless nothing was acknowledged since the last one began:
    /// `before_begin`, then `flush` with its result.
    fn join<T>(
        &self,
        before_begin: impl Fn() -> T,
        flush: impl Fn(u64, T) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let mut state = self.state.lock();
        let wanted = state.begun + 1;
        let is_quiet = !state.has_news && !state.is_urgent && !state.is_running;
        loop {
            if let Some(status) = state.failure {
                return Err(status);
            }
            if is_quiet {
                return Ok(());
            }
            if state.ended >= wanted {
                return Ok(());
            }
            if state.is_running {
                self.finished.wait(&mut state);
                continue;
            }
            state.is_running = true;
            state.begun += 1;
            state.has_news = false;
            state.is_urgent = false;
            let round = state.begun;
            let prepared = before_begin();
            self.begun.store(round, Ordering::Release);
            drop(state);
            let outcome = flush(round, prepared);
            state = self.state.lock();
            state.is_running = false;
            state.ended = round;
            match outcome {
                Ok(()) => self.synced.store(round, Ordering::Release),
                Err(status) => {
                    state.failure.get_or_insert(status);
                    self.has_failed.store(true, Ordering::Release);
                }
            }
            self.finished.notify_all();
        }
    }
}

impl Core {
    pub fn sync(&self) -> Result<(), Status> {
        // Marked before the round begins: a state that one of this round replaces is a fallback until the next ends.
        self.group_commit.join(|| self.deferred_free.lock().mark(), |round, mark| self.flush(round, mark))?;
        self.free_unread();
        Ok(())
    }

    /// Free pages that readers held at the end of the last round, which may have been long ago.
    fn free_unread(&self) {
        let released = self.deferred_free.lock().release_flushed();
        if !released.is_empty() {
            self.free_pages(&released);
        }
    }

    /// One round: data, then the index that names it, then what that set free.
    fn flush(&self, round: u64, mark: u64) -> Result<(), Status> {
        #[cfg(test)]
        self.segments.faults.reach(Moment::Begun);
        self.segments.pause();
        self.segments.sync().map_err(|error| {
            log::error!("flushing the block files failed: {error}");
            Status::Io
        })?;
        #[cfg(test)]
        self.segments.faults.reach(Moment::Flushed);
        // From here on the data of states of earlier rounds counts as durable, also after power loss.
        self.index.set_synced(round)?;
        self.segments.pause();
        #[cfg(test)]
        self.segments.faults.reach(Moment::Recorded);
        self.index.sync()?;
        self.segments.pause();
        let released = self.deferred_free.lock().release(mark);
        self.free_pages(&released);
        Ok(())
    }

    /// The flusher thread: a round every `interval` in which something happened, and when too many pages wait to be freed.
    pub fn flush_until_stopped(&self, interval: Duration) {
        loop {
            {
                let mut state = self.group_commit.state.lock();
                if !state.is_stopping && !state.is_urgent {
                    self.group_commit.wake.wait_for(&mut state, interval);
                }
                if state.is_stopping {
                    return;
                }
                if !state.has_news && !state.is_urgent {
                    drop(state);
                    self.free_unread();
                    continue;
                }
            }
            if let Err(status) = self.sync() {
                log::error!(
                    "background flush failed: {status}; refusing updates until the engine is reopened"
                );
                return;
            }
        }
    }
}
