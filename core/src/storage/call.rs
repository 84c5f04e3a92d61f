//! One caller's batch, executed by the caller's own thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::counters::{add, count};
use super::node::Node;
use super::send::SendRequest;
use super::table::{Mailbox, SlotRef};
use crate::buffer::Placement;
use crate::chunk::{Origin, Source, Staged, Update};
use crate::clock::Suspension;
use crate::craq::{Effect, Event, Outcome, StageEnd, StoredPending, Ticket};
use crate::panics::caught;
use crate::types::{BATCH_OPS_MAX, ChunkKey, Op, Status, Version};

/// Pauses before an update is sent again to a successor that did not take it.
const RETRY_FIRST: Duration = Duration::from_millis(5);
const RETRY_MAX: Duration = Duration::from_millis(200);
const _: () = assert!(RETRY_FIRST.as_millis() <= RETRY_MAX.as_millis());
/// How soon a waiting caller notices that the node stops.
const STOP_CHECK: Duration = Duration::from_millis(100);

/// The outcome of one operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The update is committed on every member from here on.
    Done(Version),
    /// The read may be served from the committed state.
    Serve,
    Refused(Status),
}

impl From<Outcome> for Answer {
    fn from(outcome: Outcome) -> Answer {
        match outcome {
            Outcome::Done { version } => Answer::Done(version),
            Outcome::Refused(status) => Answer::Refused(status),
        }
    }
}

/// The bytes that came with an update.
pub struct Payload {
    pub bytes: Placement,
    /// They do not change while the update is in progress. If a program could, later members get what was staged
    /// here, and not what its memory holds by then.
    pub stable: bool,
}

/// One operation of the batch.
struct Job {
    slot: SlotRef,
    ticket: Ticket,
    origin: Origin,
    payload: Option<Payload>,
    /// The pending version on disk was made from this job's own payload.
    staged: bool,
    answer: Option<Answer>,
    pause: Duration,
    retry_at: Option<Instant>,
}

impl Job {
    fn set_answer(&mut self, answer: Answer) {
        assert!(self.answer.is_none(), "{:?}: an operation has one answer", self.slot.key);
        self.answer = Some(answer);
    }
}

/// A batch under way.
pub struct Call<'a> {
    node: &'a Node,
    mailbox: Arc<Mailbox>,
    jobs: Vec<Job>,
    deadline: Instant,
    suspension: Suspension,
}

impl<'a> Call<'a> {
    pub fn new(node: &'a Node, deadline: Instant) -> Call<'a> {
        let suspension = Suspension::since_now();
        Call { node, mailbox: Arc::default(), jobs: Vec::new(), deadline, suspension }
    }

    /// Add an operation; what it waits for is begun at once, and carried out by `finish`.
    pub fn begin(
        &mut self,
        key: ChunkKey,
        origin: Origin,
        payload: Option<Payload>,
        event: impl FnOnce(Ticket) -> Event,
    ) -> usize {
        let (node, place, ticket) = (self.node, self.jobs.len(), self.node.new_ticket());
        let slot = node.table.slot(key);
        let (pause, retry_at) = (RETRY_FIRST, None);
        assert!(place < BATCH_OPS_MAX, "a call has the operations of one batch");
        let before = slot.state.lock().callers.insert(ticket, (self.mailbox.clone(), place));
        assert!(before.is_none(), "{:?}: {ticket:?} is used once", slot.key);
        let answer = node.step(&slot, event(ticket)).err().map(|status| {
            slot.state.lock().callers.remove(&ticket);
            Answer::Refused(self.node.failed(key, status))
        });
        self.jobs.push(Job { slot, ticket, origin, payload, staged: false, answer, pause, retry_at });
        place
    }

    /// An operation that is refused before anything is asked.
    pub fn refuse(&mut self, key: ChunkKey, status: Status) {
        self.jobs.push(Job {
            slot: self.node.table.slot(key),
            ticket: self.node.new_ticket(),
            origin: Origin::Client,
            payload: None,
            staged: false,
            answer: Some(Answer::Refused(status)),
            pause: RETRY_FIRST,
            retry_at: None,
        });
    }

    /// Work until every operation has its answer or the deadline has passed; the answers in order.
    pub fn finish(mut self) -> Vec<Answer> {
        let mut sends: Vec<(usize, Effect)> = Vec::new();
        let mut orders = self.mailbox.take_all();
        loop {
            while let Some((place, effect)) = orders.pop_front() {
                self.receive(place, effect, &mut sends);
            }
            orders = self.mailbox.take_all();
            if !orders.is_empty() {
                continue;
            }
            if !sends.is_empty() {
                self.send(std::mem::take(&mut sends));
            } else if self.jobs.iter().all(|job| job.answer.is_some()) {
                break;
            } else if self.is_late() || self.node.stopping.load(Ordering::Acquire) {
                self.leave();
                break;
            } else {
                self.retry();
                orders = self.mailbox.wait(self.next_wake());
                continue;
            }
            orders = self.mailbox.take_all();
        }
        self.jobs.iter().map(|job| job.answer.expect("finished or left")).collect()
    }

    fn receive(&mut self, place: usize, effect: Effect, sends: &mut Vec<(usize, Effect)>) {
        let is_late = self.is_late();
        let job = &mut self.jobs[place];
        match effect {
            Effect::Reply { outcome, .. } => job.set_answer(outcome.into()),
            Effect::Serve { .. } => job.set_answer(Answer::Serve),
            Effect::Stalled { status, .. } => {
                log::debug!("{:?}: successor refused the update: {status}; retrying", job.slot.key);
                job.retry_at = Some(Instant::now() + job.pause);
                job.pause = (job.pause * 2).min(RETRY_MAX);
            }
            Effect::Forget { .. } => unreachable!("`Node::forget` carries it out"),
            Effect::Stage { update, fresh, last, .. } => {
                let bytes = job.payload.as_ref().map(|payload| &payload.bytes);
                // Its caller may have given it up while it waited for this chunk, or for a processor (S5).
                let result = match is_late {
                    false => {
                        let StoredPending { stamp, op, tag } = update;
                        let (key, origin) = (job.slot.key, job.origin);
                        self.node.stage(&Update { key, stamp, op, tag, origin, fresh }, bytes, last)
                    }
                    true => Err(Status::Timeout),
                };
                job.staged = result.is_ok();
                self.node.report(&job.slot, Event::Staged { result });
            }
            Effect::Commit { .. } | Effect::Drop { .. } => self.node.settle(&job.slot, &effect),
            Effect::Forward { .. } | Effect::Push { .. } => {
                job.retry_at = None;
                sends.push((place, effect));
            }
        }
    }

    fn send(&mut self, sends: Vec<(usize, Effect)>) {
        let sends = sends.into_iter().map(|(place, effect)| {
            let job = &self.jobs[place];
            let payload = job.payload.as_ref().filter(|payload| job.staged && payload.stable);
            let payload = payload.map(|payload| payload.bytes.clone());
            SendRequest { slot: job.slot.clone(), effect, payload }
        });
        self.node.send(sends.collect(), self.deadline);
    }

    /// Deadlines are those of callers on machines that may have run while this one was suspended.
    fn is_late(&self) -> bool {
        Instant::now() + self.suspension.length() >= self.deadline
    }

    fn next_wake(&self) -> Instant {
        let latest = self.deadline.min(Instant::now() + STOP_CHECK);
        self.jobs.iter().filter_map(|job| job.retry_at).fold(latest, Instant::min)
    }

    fn retry(&mut self) {
        let now = Instant::now();
        for job in &mut self.jobs {
            assert!(job.pause <= RETRY_MAX, "pauses are bounded");
            if job.retry_at.is_some_and(|at| at <= now) {
                job.retry_at = None;
                self.node.report(&job.slot, Event::Retry);
            }
        }
    }

    /// The deadline has passed. What is pending stays so, and is driven on by others (R5).
    fn leave(&mut self) {
        for job in self.jobs.iter().filter(|job| job.answer.is_none()) {
            count(&self.node.counters.timeouts);
            self.node.report(&job.slot, Event::Leave { ticket: job.ticket });
            job.slot.state.lock().callers.remove(&job.ticket);
        }
        // What had been ordered before is carried out, or handed over.
        let rest: VecDeque<(usize, Effect)> = self.mailbox.take_all();
        for (place, effect) in rest {
            let job = &mut self.jobs[place];
            match effect {
                Effect::Reply { outcome, .. } => {
                    job.answer.get_or_insert(outcome.into());
                }
                Effect::Stage { .. } => {
                    self.node.report(&job.slot, Event::Staged { result: Err(Status::Timeout) });
                }
                Effect::Push { attempt, .. } => {
                    let result = Err(Status::Timeout);
                    self.node.report(&job.slot, Event::Answered { attempt, result });
                }
                Effect::Stalled { .. } | Effect::Serve { .. } | Effect::Forget { .. } => {}
                Effect::Forward { .. } | Effect::Commit { .. } | Effect::Drop { .. } => {
                    self.node.hand_over(&job.slot, effect);
                }
            }
        }
        for job in &mut self.jobs {
            job.answer.get_or_insert(Answer::Refused(Status::Timeout));
        }
    }
}

impl Node {
    /// Report to a machine that has ordered something, and therefore exists.
    pub fn report(&self, slot: &SlotRef, event: Event) {
        if let Err(status) = self.step(slot, event) {
            log::error!("{:?}: chunk machine cannot be made: {status}; event dropped", slot.key);
        }
    }

    /// What a failure of the engine means for the caller; the node takes note of it.
    pub fn failed(&self, key: ChunkKey, status: Status) -> Status {
        match status {
            // An index that could not be written for want of space takes nothing more either.
            Status::NoSpace if self.is_bad() => Status::NotServing,
            Status::Io => {
                self.mark_bad("chunk access");
                Status::NotServing
            }
            Status::Checksum => {
                count(&self.counters.checksum_errors);
                self.repairs.push(key);
                Status::Checksum
            }
            other => other,
        }
    }

    /// `last`: no replica follows, so that the update is committed with it.
    fn stage(&self, update: &Update, payload: Option<&Placement>, last: bool) -> Result<StageEnd, Status> {
        let nothing: &[u8] = &[];
        let payload: &dyn Source = payload.map_or(&nothing, |payload| payload);
        let result = match last {
            true => self.engine.stage_and_commit(update, payload),
            false => self.engine.stage(update, payload),
        };
        match result {
            Ok(outcome) => {
                if let Op::Write { length, .. } = update.op {
                    add(&self.counters.update_bytes, u64::from(length));
                }
                Ok(match outcome.staged {
                    Staged::Committed => StageEnd::Committed,
                    Staged::Pending | Staged::AlreadyPending => StageEnd::Pending,
                })
            }
            Err(status) => Err(match self.failed(update.key, status) {
                // A page around the written bytes is damaged; it may be whole again soon.
                Status::Checksum if self.has_other_replica(update.key.chain) => Status::Busy,
                status => status,
            }),
        }
    }

    /// Carry out a `Commit` or a `Drop`. A panic in there is a failed disk: the replica would otherwise wait for its end.
    pub fn settle(&self, slot: &SlotRef, effect: &Effect) {
        match effect {
            Effect::Commit { stamp, .. } => {
                let commit = || self.engine.commit(slot.key, stamp.version, stamp.chain_version);
                let done = caught(commit).unwrap_or(Err(Status::Io));
                let result = done.map(|_| ()).map_err(|status| self.failed(slot.key, status));
                self.report(slot, Event::Committed { result });
            }
            Effect::Drop { stamp, .. } => {
                let drop_pending = || self.engine.drop_pending(slot.key, stamp.version);
                let done = caught(drop_pending).unwrap_or(Err(Status::Io));
                let result = done.map_err(|status| self.failed(slot.key, status));
                self.report(slot, Event::Dropped { result });
            }
            other => unreachable!("not for the disk: {other:?}"),
        }
    }

    pub fn hand_over(&self, slot: &SlotRef, effect: Effect) {
        self.redrive.push(super::redrive_queue::RedriveJob::Execute(slot.clone(), effect));
    }
}
