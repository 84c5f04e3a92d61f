//! Sync: one round of flushing, and the thread that runs rounds in the background.

use std::time::Duration;

use super::engine::{Core, Engine};
#[cfg(test)]
use super::faults::Moment;
use super::group_commit::FlusherTask;
use crate::panics::caught;
use crate::types::Status;

impl Engine {
    /// Return when everything acknowledged before the call is durable against power loss.
    /// Concurrent callers share one round of disk writes.
    pub fn sync(&self) -> Result<(), Status> {
        self.core.sync()
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
        assert_eq!(self.group_commit.begun(), round, "what is written from now on is of this round");
        #[cfg(test)]
        self.segments.faults.reach(Moment::Begun);
        self.segments.pause();
        self.segments.sync().map_err(|error| {
            log::error!("flushing the block files failed: {error}");
            Status::Io
        })?;
        #[cfg(test)]
        self.segments.faults.reach(Moment::Flushed);
        assert!(self.group_commit.synced() < round, "I6: the index names a round after its data is on disk");
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

    /// The body of the flusher thread.
    pub fn flush_in_background(&self, interval: Duration) {
        let flushed = caught(|| self.flush_until_stopped(interval));
        if let Err(status) = flushed.unwrap_or(Err(Status::Io)) {
            log::error!("background flush failed: {status}; refusing updates until the engine is reopened");
            self.group_commit.fail(status);
        }
    }

    /// A round every `interval` in which something happened, and when too many pages wait to be freed.
    fn flush_until_stopped(&self, interval: Duration) -> Result<(), Status> {
        loop {
            match self.group_commit.wait_for_task(interval) {
                FlusherTask::Stop => return Ok(()),
                FlusherTask::FreeUnread => self.free_unread(),
                FlusherTask::Flush => self.sync()?,
            }
        }
    }
}
