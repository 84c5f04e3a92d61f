//! Threads take dirty chunks in flight, and chains answer; by age the rest is sent.

use std::sync::Arc;
use std::time::Instant;

use super::super::access::Access;
use super::super::bug::Bug;
use super::super::machine::{Effects, Event, Machine};
use super::super::server_inode::ChangeOrigin;
use super::super::write_back::HELPERS_MAX;
use crate::client::data::Write;
use crate::client::deferred_setattr::without_set_id;
use crate::client::dirty::DirtyChunk;
use crate::client::identity::Identity;
use crate::error::{Error, Result};
use crate::types::ContentId;
use crate::wire::pb;

impl Machine {
    /// Start threads, if there is more to write back than `others` will.
    pub(super) fn start_helpers(&mut self, others: usize, effects: &mut Effects) {
        let ready = self
            .write_back
            .ready(Bug::None)
            .take(HELPERS_MAX.saturating_add(others))
            .count()
            .saturating_sub(others);
        assert!(ready <= HELPERS_MAX, "a file has a share of the threads");
        if self.write_back.helpers < ready {
            effects.start_helpers += ready - self.write_back.helpers;
            self.write_back.helpers = ready;
        }
    }

    fn on_acked(&mut self, offset: u64, length: usize) {
        let end = offset + length as u64;
        self.acknowledged = self.acknowledged.max(end);
        self.ack_count += 1;
        self.durability.add_volatile(offset..end);
        self.metadata.mark(|pending| pending.size = true);
    }

    fn give_up(&mut self, effects: &mut Effects) {
        effects.memory -= self.write_back.give_up() as isize;
        self.length = self.known_end();
    }
}

/// Want everything up to a write on the chains, beside what `others` threads write back anyway.
pub struct Want {
    pub until: u64,
    pub others: usize,
}

impl Event for Want {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        machine.write_back.want_until(self.until);
        machine.start_helpers(self.others, effects);
    }
}

/// Start threads for what is wanted.
pub struct StartHelpers;

impl Event for StartHelpers {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        machine.start_helpers(0, effects);
    }
}

/// What a thread that writes back has to do.
pub enum WriteBackTask {
    Nothing,
    /// Wait until this client is registered again.
    WaitAtFence,
    Migrate(Migration),
    Write(Batch),
}

/// A file that is to leave its inode.
pub struct Migration {
    pub bytes: Vec<u8>,
    pub base: u64,
    pub layout: pb::Layout,
    pub session: u64,
    pub identity: Arc<Identity>,
}

/// A thread that writes back asks for work.
pub struct TakeTask {
    pub is_fenced: bool,
}

impl Event for TakeTask {
    type Outcome = WriteBackTask;

    fn apply(self, machine: &mut Machine, _: &mut Effects) -> WriteBackTask {
        let bug = machine.bug;
        if machine.access != Access::Shared || machine.write_back.ready(bug).next().is_none() {
            return WriteBackTask::Nothing;
        }
        if self.is_fenced {
            return WriteBackTask::WaitAtFence;
        }
        if machine.bytes.inline().is_some() && bug != Bug::WriteBackInline {
            if machine.bytes.is_migrating() {
                return WriteBackTask::Nothing;
            }
            let (session, identity) = machine.sessions.first().unwrap_or_default();
            let (bytes, base) = machine.bytes.begin_migration();
            return WriteBackTask::Migrate(Migration {
                bytes,
                base,
                layout: machine.layout,
                session,
                identity,
            });
        }
        let chunks = machine.write_back.take_batch(bug);
        WriteBackTask::Write(Batch::new(machine, chunks))
    }
}

/// A helper thread has found nothing to do, or could not be started.
pub struct HelperEnded;

impl Event for HelperEnded {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, _: &mut Effects) {
        assert!(machine.write_back.helpers > 0, "a helper is counted while it runs");
        machine.write_back.helpers -= 1;
    }
}

/// This client was not registered again in time: what was wanted on chains is given up.
pub struct FenceFailed(pub Error);

impl Event for FenceFailed {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        machine.give_up(effects);
        machine.fail(self.0.context("write-back"), effects);
        effects.wake = true;
    }
}

/// The file has left its inode.
pub struct Migrated {
    pub inode: pb::Inode,
    /// By this client's doing.
    pub ours: bool,
}

/// The file has left its inode, or could not.
pub struct MigrationEnded {
    pub result: Result<Migrated>,
    pub now: Instant,
}

impl Event for MigrationEnded {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        machine.bytes.end_migration();
        match self.result {
            Ok(Migrated { inode, ours }) => {
                let source = ChangeOrigin::of(&machine.inode, &inode, ours);
                machine.follow_pages(&inode, source, effects);
                machine.durability.undurable += 1;
                machine.apply_inode(inode, source, self.now, effects);
            }
            Err(error) => {
                machine.give_up(effects);
                machine.fail(error.context("write-back"), effects);
            }
        }
        machine.start_helpers(0, effects);
        effects.wake = true;
    }
}

/// Chunks of one file that are in flight together, and what the file was when they left.
#[cfg_attr(test, derive(Clone))]
pub struct Batch {
    chunks: Vec<(u32, Arc<DirtyChunk>)>,
    layout: pb::Layout,
    content: u64,
    truncate_version: u64,
}

impl Batch {
    /// Make a batch of `chunks` that are in flight.
    pub(super) fn new(machine: &Machine, chunks: Vec<(u32, Arc<DirtyChunk>)>) -> Batch {
        assert!(!chunks.is_empty(), "a batch writes something");
        let is_in_flight = |(index, _): &(u32, _)| machine.write_back.in_flight.contains_key(index);
        assert!(chunks.iter().all(is_in_flight), "I1: they are in flight");
        let is_inline = machine.inode.is_inline && machine.bug != Bug::WriteBackInline;
        assert!(!is_inline, "I6: nothing is written under the content of a file in its inode");
        let (content, truncate_version) = (machine.inode.content, machine.inode.truncate_version);
        Batch { chunks, layout: machine.layout, content, truncate_version }
    }

    /// Return which content and truncation the batch was made for.
    #[cfg(test)]
    pub fn stamp(&self) -> (u64, u64) {
        (self.content, self.truncate_version)
    }

    /// Return one write for each slice, those of a chunk one after another.
    pub fn writes(&self) -> Vec<Write> {
        let chunk_bytes = u64::from(self.layout.chunk_bytes);
        let writes = self.chunks.iter().flat_map(|(index, chunk)| {
            chunk.pieces().map(move |(at, payload)| Write {
                layout: self.layout,
                content: ContentId(self.content),
                offset: u64::from(*index) * chunk_bytes + u64::from(at),
                payload,
            })
        });
        writes.collect()
    }
}

/// Chains have answered the `writes` of a batch.
pub struct BatchEnded<'a> {
    pub batch: Batch,
    pub writes: &'a [Write],
    pub results: &'a [Result<()>],
}

impl Event for BatchEnded<'_> {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        assert_eq!(self.results.len(), self.writes.len(), "one result for each write");
        let Batch { chunks, content, truncate_version, .. } = self.batch;
        let is_current =
            truncate_version == machine.inode.truncate_version && content == machine.inode.content;
        for (write, result) in self.writes.iter().zip(self.results) {
            match result {
                Ok(()) if is_current => machine.on_acked(write.offset, write.payload.len()),
                Ok(()) if content == machine.inode.content => {
                    let end = write.offset + write.payload.len() as u64;
                    machine.durability.add_volatile(write.offset..end);
                    machine.add_unverified_size(end, truncate_version);
                }
                Ok(()) => machine.metadata.mark(|pending| pending.size = true),
                Err(_) if machine.bug == Bug::ForgetError => {}
                Err(error) => machine.fail(error.clone().context("write-back"), effects),
            }
        }
        for (index, chunk) in chunks {
            machine.write_back.end_flight(index, &chunk);
            if machine.bug != Bug::LeakBatch {
                effects.memory -= chunk.bytes() as isize;
            }
        }
        if self.results.iter().any(Result::is_err) {
            // What failed did not extend the file: an append that follows leaves no hole.
            machine.length = machine.known_end();
        }
        effects.wake |= machine.bug != Bug::NoWakeAfterBatch;
    }
}

/// Decide what is to be sent by age, after write-back was started.
pub struct Age;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aged {
    DeferredAttributes,
    InlineBytes,
    /// Set-id bits that are known to be set end. Where none are known, their end travels with the next sync: every write
    /// of a user may ask for it.
    SetIdBits,
    /// Bytes wait for the chains.
    WriteBack,
    /// The client's list of dirty files does not have the file any more.
    Nothing,
}

impl Event for Age {
    type Outcome = Aged;

    fn apply(self, machine: &mut Machine, _: &mut Effects) -> Aged {
        let permissions = machine.inode.permissions;
        let clears = machine.metadata.pending().clears_set_id && permissions != without_set_id(permissions);
        if machine.deferred.is_some() {
            return Aged::DeferredAttributes;
        }
        if machine.is_edited() {
            return Aged::InlineBytes;
        }
        if clears {
            return Aged::SetIdBits;
        }
        if !machine.write_back.is_empty() {
            return Aged::WriteBack;
        }
        machine.is_listed = false;
        Aged::Nothing
    }
}
