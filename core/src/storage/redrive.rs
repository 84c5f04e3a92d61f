//! Work that no caller executes: pending versions whose caller has left, or that a restart found on disk.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::counters::count;
use super::node::{Node, within};
use super::redrive_queue::RedriveJob;
use super::send::SendRequest;
use crate::craq::{Effect, Event};
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
            survive(node, || node.send(sends, within(SEND_TIMEOUT)));
        }
    }
}

/// A mistake in one job leaves its chunk as it is; the other chunks wait for this thread.
fn survive(node: &Node, job: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(job)).is_err() {
        log::error!(
            "node {}: driving an update on failed by a mistake; its chunk waits for a new view",
            node.id
        );
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
