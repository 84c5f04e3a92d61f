//! Work that no caller executes: pending versions whose caller has left, or that a restart found on disk.

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
        for work in work {
            match work {
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
                    sends.push(SendRequest { slot, effect, payload: None });
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
        }
        if !sends.is_empty() {
            node.send(sends, within(SEND_TIMEOUT));
        }
    }
}
