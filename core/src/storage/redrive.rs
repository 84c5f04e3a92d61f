//! Work that no caller executes: pending versions whose caller has left, or that a restart found on disk.

use std::sync::Arc;
use std::time::Duration;

use super::counters::count;
use super::node::{Node, within};
use super::redrive_queue::RedriveJob;
use super::send::SendRequest;
use crate::craq::{Effect, Event};
use crate::panics::caught;
use crate::types::Status;

/// How long one send may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// The body of a redrive thread.
pub fn run(node: &Arc<Node>) {
    while let Some(work) = node.redrive.take() {
        let mut sends = Vec::new();
        for job in work {
            survive(node, || sends.extend(carry_out(node, job)));
        }
        if !sends.is_empty() {
            send(node, sends);
        }
    }
}

/// Send updates on. After a mistake those without an answer get one: their chunks would wait for it otherwise.
fn send(node: &Node, sends: Vec<SendRequest>) {
    let attempts: Vec<_> = sends.iter().map(|send| (send.slot.clone(), send.addressed().0)).collect();
    if caught(|| node.send(sends, within(SEND_TIMEOUT))).is_none() {
        for (slot, attempt) in attempts {
            let result = Err(Status::Disconnected);
            survive(node, || node.report(&slot, Event::Answered { attempt, result }));
        }
    }
}

/// A mistake in one job is not the end of the thread that others wait for.
fn survive(node: &Node, job: impl FnOnce()) {
    if caught(job).is_none() {
        log::error!("node {}: driving an update on failed by a mistake; others continue", node.id);
    }
}

/// Return what is to be sent together with the sends of other jobs.
fn carry_out(node: &Arc<Node>, job: RedriveJob) -> Option<SendRequest> {
    match job {
        RedriveJob::Wake(key) => {
            let slot = node.table.slot(key);
            count(&node.counters.redriven);
            node.report(&slot, Event::Retry);
        }
        RedriveJob::Retry(slot) => {
            let was_queued = std::mem::take(&mut slot.state.lock().redrive_queued);
            assert!(was_queued, "{:?}: a chunk is queued once", slot.key);
            count(&node.counters.redriven);
            node.report(&slot, Event::Retry);
        }
        RedriveJob::Execute(slot, effect @ (Effect::Commit { .. } | Effect::Drop { .. })) => {
            node.settle(&slot, &effect);
        }
        RedriveJob::Execute(slot, effect @ Effect::Forward { .. }) => {
            return Some(SendRequest { slot, effect, payload: None });
        }
        RedriveJob::Execute(slot, Effect::Push { attempt, .. }) => {
            // Its caller has left before it was sent.
            let result = Err(Status::Timeout);
            node.report(&slot, Event::Answered { attempt, result });
        }
        RedriveJob::Execute(slot, Effect::Stage { .. }) => {
            let result = Err(Status::Timeout);
            node.report(&slot, Event::Staged { result });
        }
        RedriveJob::Execute(_, effect) => unreachable!("not for a redrive thread: {effect:?}"),
    }
    None
}
