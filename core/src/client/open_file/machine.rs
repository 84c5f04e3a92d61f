//! The state of one open file and its transitions.
//!
//! Each event is a type with an outcome of its own; `transitions` has them all. `step` applies one.

use std::time::{Duration, Instant};

use super::access::Access;
use super::append_trust::AppendTrust;
use super::bug::Bug;
use super::durability::{Durability, Stored};
use super::inline::{Bytes, Inline};
use super::metadata::Metadata;
use super::sessions::Sessions;
use super::write_back::{HELPERS_MAX, SPILLED, WriteBack};
use crate::buffer::BufferPool;
use crate::client::deferred_setattr::DeferredSetattr;
use crate::error::Error;
use crate::wire::pb;

/// Something that happened to an open file.
pub(super) trait Event {
    type Outcome;

    fn apply(self, machine: &mut Machine, effects: &mut Effects) -> Self::Outcome;
}

/// What the driver has to do after a step, before it gives up the lock. The order does not matter.
#[derive(Debug, Default)]
#[must_use = "effects are carried out"]
pub(super) struct Effects {
    /// Change in memory held for dirty bytes.
    pub(super) memory: isize,
    /// Threads to start, each of which writes back until nothing is wanted.
    pub(super) start_helpers: usize,
    /// Threads that wait for the state of the file look again.
    pub(super) wake: bool,
    /// Put the file in the client's list of dirty files, or of those with appended bytes.
    pub(super) list_dirty: bool,
    pub(super) list_appended: bool,
    /// This client alone changed the inode: the kernel's pages of the first `change` are those of the second.
    pub(super) pages_follow: Option<(u64, u64)>,
    /// Change in the number of files with deferred attributes.
    pub(super) deferred_files: isize,
    /// Length and inline limit of a file that was created here and is closed for the first time.
    pub(super) created_file_closed: Option<(u64, u32)>,
    /// Errors that were counted.
    pub(super) failures: Vec<Error>,
}

#[cfg_attr(test, derive(Clone))]
pub(super) struct Machine {
    /// The inode as the metadata service last described it.
    pub(super) inode: pb::Inode,
    /// When; `None`: this client may have been away since.
    pub(super) described: Option<Instant>,
    pub(super) layout: pb::Layout,
    /// What a reader here sees.
    pub(super) length: u64,
    /// End of what the chains have acknowledged since the last truncation.
    pub(super) acknowledged: u64,
    /// Counts what the chains have acknowledged.
    pub(super) ack_count: u64,
    /// A length that counts only if the bytes below it were not cut away: the chains are to be asked.
    pub(super) unverified_size: Option<pb::LengthHint>,
    pub(super) bytes: Bytes,
    pub(super) write_back: WriteBack,
    /// Counts writes.
    pub(super) writes: u64,
    pub(super) metadata: Metadata,
    pub(super) deferred: Option<DeferredSetattr>,
    /// Created here and not closed yet: attributes may be deferred.
    pub(super) is_new: bool,
    pub(super) durability: Durability,
    pub(super) error_count: u64,
    pub(super) error: Option<Error>,
    pub(super) access: Access,
    pub(super) sessions: Sessions,
    pub(super) append_trust: AppendTrust,
    /// In the client's list of dirty files, and of files with appended bytes.
    pub(super) is_listed: bool,
    pub(super) is_append_listed: bool,
    /// Memory for dirty bytes.
    pub(super) pool: BufferPool,
    pub(super) bug: Bug,
}

impl Machine {
    pub(super) fn new(inode: pb::Inode, pool: BufferPool, now: Instant) -> Machine {
        Machine {
            described: Some(now),
            layout: inode.layout.unwrap_or_default(),
            length: inode.length,
            acknowledged: 0,
            ack_count: 0,
            unverified_size: None,
            bytes: Bytes::of(&inode),
            write_back: WriteBack::default(),
            writes: 0,
            metadata: Metadata::Clean,
            deferred: None,
            is_new: false,
            durability: Durability::at_open(&inode),
            error_count: 0,
            error: None,
            access: Access::Shared,
            sessions: Sessions::default(),
            append_trust: AppendTrust::default(),
            is_listed: false,
            is_append_listed: false,
            pool,
            bug: Bug::None,
            inode,
        }
    }

    /// Apply `event`. Return its outcome; what is to be done is added to `effects`, and is done before the invariants are
    /// asserted: a mistake fails the operation that shows it, and threads that wait are still woken.
    pub(super) fn step<E: Event>(&mut self, event: E, effects: &mut Effects) -> E::Outcome {
        event.apply(self, effects)
    }

    /// All in constant time, but for what walks the last entries of two trees.
    pub(super) fn assert_invariants(&self) {
        let is_edited = self.is_edited();
        assert!(
            !is_edited || self.write_back.is_empty(),
            "I1: bytes are edits while nothing beside them is newer"
        );
        let is_quiet = !self.write_back.is_in_flight() && !self.bytes.is_migrating();
        assert!(
            self.access != Access::Exclusive || is_quiet && !self.metadata.is_syncing(),
            "I4: with exclusive access nothing is under way"
        );
        assert_eq!(self.error_count > 0, self.error.is_some(), "I5: errors are counted with a reason");
        assert!(self.length >= self.written_end(), "a reader sees the end of what was written here");
        assert_eq!(
            self.bytes.inline().is_some(),
            self.inode.is_inline,
            "I6: bytes are where the inode says they are"
        );
        let is_sending = self.bytes.inline().is_some_and(|inline| !inline.syncing.is_empty());
        assert!(!is_sending || self.metadata.is_syncing(), "I1: bytes that are being sent have a sync");
        assert!(self.write_back.helpers <= HELPERS_MAX, "a file has a share of the threads");
        assert!(!self.metadata.is_empty_dirty(), "metadata that is dirty has something to send");
        assert!(self.durability.is_consistent(), "V1: what was made durable was counted before");
        assert!(self.deferred.is_none() || self.is_listed, "A2: what is deferred is sent by age");
    }

    /// Count an error that concerns every handle (I5).
    pub(super) fn fail(&mut self, error: Error, effects: &mut Effects) {
        self.error_count += 1;
        self.error = Some(error.clone());
        effects.failures.push(error);
    }

    /// Put the file in the client's list of files that have something to write back or to send.
    pub(super) fn list(&mut self, effects: &mut Effects) {
        effects.list_dirty |= !std::mem::replace(&mut self.is_listed, true);
    }

    /// Whether the metadata service described the inode less than `age` before `now`.
    pub(super) fn is_younger_than(&self, age: Duration, now: Instant) -> bool {
        self.described.is_some_and(|described| now.saturating_duration_since(described) < age)
    }
}

// What the state says.
impl Machine {
    /// Whether all that is known of the file's bytes is in the inode, so that a small write may go there.
    pub(super) fn is_all_inline(&self) -> bool {
        self.bytes.inline().is_some() && self.write_back.is_empty()
    }

    /// Whether bytes in the inode were written here and are not synced yet.
    pub(super) fn is_edited(&self) -> bool {
        self.bytes.inline().is_some_and(Inline::is_edited)
    }

    /// Whether bytes that were in the inode wait to be written back, and so are in no update of metadata.
    pub(super) fn has_spilled(&self) -> bool {
        self.write_back.waits_until(SPILLED)
    }

    /// Return the end of what waits here for the chains or the metadata service.
    pub(super) fn waiting_end(&self) -> u64 {
        let inline = self.bytes.inline().filter(|inline| inline.is_edited());
        let inline = inline.map_or(0, |inline| inline.bytes.len() as u64);
        self.write_back.end(self.layout.chunk_bytes).max(inline)
    }

    /// Return the end of what the chains have acknowledged here.
    fn acknowledged_end(&self) -> u64 {
        let unverified = self.unverified_size.map_or(0, |hint| hint.length);
        self.acknowledged.max(unverified)
    }

    /// Return the end of what was written here: acknowledged by the chains, or waiting.
    pub(super) fn written_end(&self) -> u64 {
        self.acknowledged_end().max(self.waiting_end())
    }

    /// Return where the file ends without what waits: as the metadata service reported, or as chains have acknowledged
    /// here.
    pub(super) fn stored_end(&self) -> u64 {
        self.inode.length.max(self.acknowledged_end())
    }

    /// Return where the file ends: as the metadata service reported, as chains have acknowledged here, and with what
    /// waits.
    pub(super) fn known_end(&self) -> u64 {
        self.inode.length.max(self.written_end())
    }

    /// Return the largest length that chunk indices can express.
    pub(super) fn length_max(&self) -> u64 {
        u64::from(self.layout.chunk_bytes.max(1)) * u64::from(u32::MAX)
    }

    /// Whether everything written here is acknowledged and synced.
    pub(super) fn is_clean(&self) -> bool {
        self.write_back.is_empty() && self.is_synced()
    }

    /// Whether the metadata service has been sent all that it must know.
    pub(super) fn is_synced(&self) -> bool {
        self.metadata.is_synced() && self.deferred.is_none() && !self.is_edited()
    }

    pub(super) fn size_is_synced(&self) -> bool {
        self.acknowledged <= self.inode.length
            && self.unverified_size.is_none()
            && !self.is_edited()
            && !self.has_spilled()
    }

    pub(super) fn stored(&self) -> Stored {
        Stored { layout: self.layout, content: self.inode.content }
    }

    /// Return what would be stored if the metadata service need store nothing more for the bytes to be found after the
    /// loss of power: its record of the write session survives, so the content stays, and the length is found on the
    /// chains.
    pub(super) fn recoverable(&self) -> Option<Stored> {
        let is_durable = self.durability.durable == self.durability.undurable;
        let is_chunked = self.bytes.inline().is_none() && !self.sessions.is_empty();
        (is_durable && self.size_is_synced() && is_chunked).then(|| self.stored())
    }

    /// Return how many syncs of chains have failed, and the last reason.
    pub(super) fn sync_failures(&self) -> (u64, Option<Error>) {
        (self.durability.failure_count, self.durability.failure.clone())
    }
}

/// Count an error that concerns every handle.
pub(super) struct Failed(pub(super) Error);

impl Event for Failed {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        machine.fail(self.0, effects);
    }
}
