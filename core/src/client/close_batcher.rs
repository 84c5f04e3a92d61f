//! Closes that wait to be sent together: one call for many.

use std::sync::Arc;
use std::time::Duration;

use super::identity::Identity;
use super::meta::Meta;
use crate::error::Result;
use crate::lock::{Condvar, Mutex};
use crate::wire::pb;

/// Closes sent in one call.
pub const CLOSES_MAX: usize = 128;
/// Closes that may wait. A thread that closes more helps to send them.
const CLOSES_WAITING_MAX: usize = 4096;

const _: () = assert!(CLOSES_MAX <= CLOSES_WAITING_MAX);

/// A close that the metadata service has not been sent yet.
pub struct Close {
    pub identity: Arc<Identity>,
    pub one: pb::CloseOne,
}

#[derive(Default)]
pub struct CloseBatcher {
    waiting: Mutex<Vec<Close>>,
    /// Wakes the clock thread: closes or appended bytes wait.
    wake: Condvar,
}

impl CloseBatcher {
    /// Leave a close to be sent with others.
    pub fn push(&self, close: Close, meta: &Meta) {
        let count = {
            let mut waiting = self.waiting.lock();
            waiting.push(close);
            waiting.len()
        };
        if count == 1 || count == CLOSES_MAX {
            self.wake.notify_all();
        }
        if count > CLOSES_WAITING_MAX {
            self.send(meta);
        }
    }

    pub fn count(&self) -> usize {
        self.waiting.lock().len()
    }

    /// Wait at most `most` for closes, or until `is_due`. Return whether there are closes.
    pub fn wait(&self, most: Duration, is_due: impl Fn() -> bool) -> bool {
        let mut waiting = self.waiting.lock();
        if waiting.is_empty() && !is_due() {
            self.wake.wait_for(&mut waiting, most);
        }
        !waiting.is_empty()
    }

    /// Wake the thread in `wait`, which may have looked at what is due just before that changed.
    pub fn wake(&self) {
        drop(self.waiting.lock());
        self.wake.notify_all();
    }

    /// Take closes of one caller, as many as one call carries.
    fn take(&self) -> Option<(Arc<Identity>, Vec<pb::CloseOne>)> {
        let mut waiting = self.waiting.lock();
        let identity = waiting.first()?.identity.clone();
        let count = waiting.len();
        let mut batch = Vec::new();
        let mut rest = Vec::new();
        for close in waiting.drain(..) {
            if batch.len() < CLOSES_MAX && close.identity == identity {
                batch.push(close.one);
            } else {
                rest.push(close);
            }
        }
        *waiting = rest;
        assert!(
            !batch.is_empty() && batch.len() <= CLOSES_MAX,
            "a call carries some closes, and not too many"
        );
        assert_eq!(batch.len() + waiting.len(), count, "a close is sent or waits");
        Some((identity, batch))
    }

    /// Send the closes that wait. Those that the metadata service does not answer stay.
    pub fn send(&self, meta: &Meta) {
        while let Some((identity, batch)) = self.take() {
            match meta.close(&identity, batch.clone()) {
                Ok(outcomes) => {
                    for error in outcomes.into_iter().filter_map(Result::err) {
                        log::debug!(
                            "close failed: {error}; the session ends when it is missed in the next report"
                        );
                    }
                }
                Err(error) if error.is_retryable() => {
                    log::warn!(
                        "batched close of {} files failed: {error}; it is retried, sessions stay open until then",
                        batch.len()
                    );
                    let again = batch.into_iter().map(|one| Close { identity: identity.clone(), one });
                    self.waiting.lock().extend(again);
                    return;
                }
                Err(error) => log::warn!(
                    "batched close of {} files refused: {error}; their sessions end with the next session report",
                    batch.len()
                ),
            }
        }
    }
}
