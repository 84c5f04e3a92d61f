//! The thread that keeps a watch at the metadata service. It has a connection of its own: while the connections for
//! requests wait for other clients, recalls still arrive, and those others get their answers.

use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::Delegations;
use crate::clock;
use crate::cluster::rpc::Lane;
use crate::error::{Kind, Result};
use crate::lock::Mutex;
use crate::types::ClientId;
use crate::wire::pb::{self, Method};

/// One attempt: the service answers after a part of the lease.
const WATCH_TIMEOUT: Duration = Duration::from_secs(10);
/// After one that failed, or was refused.
const RETRY: Duration = Duration::from_millis(200);
/// For the leave notice: without it changes of what this client had wait for the end of its lease.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

pub struct Watcher {
    delegations: Arc<Delegations>,
    lane: Arc<Lane>,
    caller: pb::Caller,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Watcher {
    /// `lane` is used for nothing else.
    pub fn new(delegations: Arc<Delegations>, lane: Arc<Lane>, client: ClientId) -> Arc<Watcher> {
        let caller = pb::Caller { client: client.0, ..Default::default() };
        Arc::new(Watcher { delegations, lane, caller, thread: Mutex::new(None) })
    }

    /// Start the thread if files are opened repeatedly at a service that delegates: elsewhere there is none.
    pub fn start_if_wanted(self: &Arc<Self>) {
        if !self.delegations.is_watch_wanted() {
            return;
        }
        let mut thread = self.thread.lock();
        if thread.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        let running = self.clone();
        match thread::Builder::new().name("luciola-watch".to_owned()).spawn(move || running.run()) {
            Ok(started) => *thread = Some(started),
            Err(error) => {
                log::debug!(
                    "{}: no thread for the watch: {error}; opens ask the service",
                    self.caller.client
                );
            }
        }
    }

    /// Until no watch is wanted any more.
    fn run(&self) {
        while self.delegations.is_watch_wanted() {
            let mut watch = self.delegations.watch();
            watch.caller = Some(self.caller.clone());
            let sent_ns = clock::now_ns();
            let answered: Result<pb::WatchReply> =
                self.lane.call(Method::MetaWatch, &watch, Instant::now() + WATCH_TIMEOUT);
            let reply = match answered {
                // An older service, which delegates nothing.
                Err(error) if error.kind() == Kind::Unsupported => Ok(pb::WatchReply::default()),
                other => other,
            };
            match reply {
                Ok(reply) => {
                    self.delegations.watched(&watch, sent_ns, &reply, clock::now_ns());
                    if reply.lease_ms == 0 {
                        self.delegations.pause(WATCH_TIMEOUT);
                    }
                }
                Err(error) => {
                    log::debug!("{}: the watch failed: {error}; opens ask the service", self.caller.client);
                    self.delegations.pause(RETRY);
                }
            }
        }
    }

    /// Use other addresses of the service.
    pub fn set_addresses(&self, addresses: Vec<String>) {
        self.lane.set_addresses(addresses);
    }

    /// Answer nothing here any more, and send the leave notice. The thread is not started again.
    pub fn stop(&self) {
        let is_watched = self.delegations.stop();
        let thread = self.thread.lock().take();
        let notice =
            pb::WatchRequest { caller: Some(self.caller.clone()), leaving: true, ..Default::default() };
        let notified: Option<Result<pb::WatchReply>> =
            is_watched.then(|| self.lane.call(Method::MetaWatch, &notice, Instant::now() + LEAVE_TIMEOUT));
        if let Some(Err(error)) = &notified {
            log::info!(
                "{}: leave notice of the watch failed: {error}; changes may wait for the end of its lease",
                self.caller.client
            );
            // A watch in progress ends by its own time limit.
            return;
        }
        if let Some(thread) = thread {
            // A panic has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}
