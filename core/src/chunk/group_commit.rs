//! Group commit: callers that come while a round runs share the next one.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::lock::{Condvar, Mutex};
use crate::panics::caught;
use crate::types::Status;

/// What the flusher has to do.
pub enum FlusherTask {
    /// Something was acknowledged since the last round began, or pages are needed.
    Flush,
    /// No round is needed; readers may have let go of pages.
    FreeUnread,
    Stop,
}

/// Rounds of flushing, and what makes the engine refuse updates for good.
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
    /// Rounds begun and ended. At most one runs.
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

    /// `begun`, and `synced` of a moment later. Between the two a round may have begun and ended: it counts
    /// as begun, as what was written before it is durable.
    pub fn rounds(&self) -> (u64, u64) {
        let begun = self.begun();
        let synced = self.synced();
        (begun.max(synced), synced)
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

    /// Wait for up to `interval`, or until the flusher is woken; return what it has to do.
    pub fn wait_for_task(&self, interval: Duration) -> FlusherTask {
        let mut state = self.state.lock();
        if !state.is_stopping && !state.is_urgent {
            self.wake.wait_for(&mut state, interval);
        }
        match (state.is_stopping, state.has_news || state.is_urgent) {
            (true, _) => FlusherTask::Stop,
            (false, true) => FlusherTask::Flush,
            (false, false) => FlusherTask::FreeUnread,
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

    /// Rounds run so far.
    #[cfg(test)]
    pub fn count(&self) -> u64 {
        self.state.lock().ended
    }

    /// Run or join a round that begins after this call, unless nothing was acknowledged since the last one began:
    /// `before_begin`, then `flush` with its result. A `flush` that panics has failed.
    pub fn join<T>(
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
            assert_eq!(state.begun, state.ended, "at most one round runs");
            state.is_running = true;
            state.begun += 1;
            state.has_news = false;
            state.is_urgent = false;
            let round = state.begun;
            let prepared = before_begin();
            self.begun.store(round, Ordering::Release);
            drop(state);
            let outcome = caught(|| flush(round, prepared)).unwrap_or(Err(Status::Io));
            state = self.state.lock();
            assert!(state.is_running && state.begun == round, "no other round began meanwhile");
            state.is_running = false;
            state.ended = round;
            match outcome {
                Ok(()) => {
                    let before = self.synced.swap(round, Ordering::AcqRel);
                    assert!(before < round, "rounds succeed in order");
                }
                Err(status) => {
                    state.failure.get_or_insert(status);
                    self.has_failed.store(true, Ordering::Release);
                }
            }
            self.finished.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_round_has_succeeded_that_has_not_begun_while_rounds_pass() {
        let group_commit = GroupCommit::starting_at(0);
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        let (begun, synced) = group_commit.rounds();
                        assert!(
                            synced <= begun,
                            "round {synced} has succeeded, and {begun} is the last begun"
                        );
                    }
                });
            }
            for _ in 0..20_000 {
                group_commit.wrote();
                group_commit.join(|| (), |_, ()| Ok(())).unwrap();
            }
            is_over.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn a_round_that_panics_has_failed_and_leaves_no_caller_waiting() {
        let rounds = GroupCommit::starting_at(0);
        assert_eq!(rounds.join(|| (), |_, ()| panic!("planted")), Err(Status::Io));
        assert!(rounds.has_failed());
        assert_eq!(rounds.join(|| (), |_, ()| Ok(())), Err(Status::Io));
        assert_eq!(rounds.synced(), 0);
    }
}
