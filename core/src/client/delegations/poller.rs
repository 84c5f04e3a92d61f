//! The thread that keeps a poll at the metadata service. It has a connection of its own: while the connections for
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
const POLL_TIMEOUT: Duration = Duration::from_secs(10);
/// After one that failed, or was refused.
const RETRY: Duration = Duration::from_millis(200);
/// For the leave notice: without it changes of what this client had wait for the end of its lease.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);

pub struct RecallPoller {
    delegations: Arc<Delegations>,
    lane: Arc<Lane>,
    caller: pb::Caller,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl RecallPoller {
    /// `lane` is used for nothing else.
    pub fn new(delegations: Arc<Delegations>, lane: Arc<Lane>, client: ClientId) -> Arc<RecallPoller> {
        let caller = pb::Caller { client: client.0, ..Default::default() };
        Arc::new(RecallPoller { delegations, lane, caller, thread: Mutex::new(None) })
    }

    /// Start the thread if files are opened repeatedly at a service that delegates: elsewhere there is none.
    pub fn start_if_wanted(self: &Arc<Self>) {
        if !self.delegations.is_poll_wanted() {
            return;
        }
        let mut thread = self.thread.lock();
        if thread.as_ref().is_some_and(|running| !running.is_finished()) {
            return;
        }
        let running = self.clone();
        match thread::Builder::new().name("luciola-recalls".to_owned()).spawn(move || running.run()) {
            Ok(started) => *thread = Some(started),
            Err(error) => {
                log::debug!("{}: no thread for the poll: {error}; opens ask the service", self.caller.client);
            }
        }
    }

    /// Until no poll is wanted any more.
    fn run(&self) {
        while self.delegations.is_poll_wanted() {
            let mut poll = self.delegations.poll();
            poll.caller = Some(self.caller.clone());
            let sent_ns = clock::now_ns();
            let answered: Result<pb::AwaitRecallsReply> =
                self.lane.call(Method::MetaAwaitRecalls, &poll, Instant::now() + POLL_TIMEOUT);
            let reply = match answered {
                // An older service, which delegates nothing.
                Err(error) if error.kind() == Kind::Unsupported => Ok(pb::AwaitRecallsReply::default()),
                other => other,
            };
            match reply {
                Ok(reply) => {
                    self.delegations.polled(&poll, sent_ns, &reply, clock::now_ns());
                    if reply.lease_ms == 0 {
                        self.delegations.pause(POLL_TIMEOUT);
                    }
                }
                Err(error) => {
                    log::debug!("{}: the poll failed: {error}; opens ask the service", self.caller.client);
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
        let is_polled = self.delegations.stop();
        let thread = self.thread.lock().take();
        let notice = pb::AwaitRecallsRequest {
            caller: Some(self.caller.clone()),
            leaving: true,
            ..Default::default()
        };
        let notified: Option<Result<pb::AwaitRecallsReply>> = is_polled
            .then(|| self.lane.call(Method::MetaAwaitRecalls, &notice, Instant::now() + LEAVE_TIMEOUT));
        if let Some(Err(error)) = &notified {
            log::info!(
                "{}: leave notice of the poll failed: {error}; changes may wait for the end of its lease",
                self.caller.client
            );
            // A poll in progress ends by its own time limit.
            return;
        }
        if let Some(thread) = thread {
            // A panic has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}
