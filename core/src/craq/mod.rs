//! Chain replication of one chunk, as one pure state machine.
//!
//! `Replica::step(event)` returns effects; there is no clock, no I/O, no randomness and no waiting in it, and a
//! payload is named by the ticket of its caller. `storage` carries the effects out; `core/tests/craq_model.rs`
//! explores this very code exhaustively for small worlds, `core/tests/craq_simulator.rs` for long ones.
//!
//! Invariants (`docs/architecture.md`, "Chain replication", has the rules R1 to R9):
//! - I1 `committed ≤ pending ≤ committed + 1`, unless nothing is committed here (R7): then any higher stamp.
//! - I2 Along a chain: predecessor's pending ≥ successor's ≥ successor's committed ≥ predecessor's committed.
//! - I3 A stamp names one content: no two replicas commit different bytes under the same stamp.
//! - I4 A request (client, sequence) is in the history of a chunk at most once.
//! - I5 A member with a pending version on its disk serves nothing.
//!
//! What it does not do: know other chunks, decide membership, or read a byte.

mod progress;
mod replica;
mod view;

pub use progress::{Progress, Step};
pub use replica::Replica;
pub use view::{Place, Successor, View};

use crate::types::{ChainVersion, Op, RequestTag, Stamp, Status, Version, WriterRecord};

/// Names one caller that waits for this machine, and the payload it brought. Unique while the machine lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Most updates that wait for one chunk. Writers of one chunk are served one after another, so a longer queue
/// would only hold requests until they time out.
pub const QUEUE_MAX: usize = 64;
/// Most reads that wait at the tail for one commit.
pub const READERS_MAX: usize = 1024;

/// What the engine holds of a chunk, when its machine is made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Stored {
    /// Version 0: nothing was ever committed.
    pub committed: Stamp,
    /// The committed state is a tombstone.
    pub removed: bool,
    pub pending: Option<StoredPending>,
    pub writers: Vec<WriterRecord>,
    /// No tombstone that was forgotten here had a higher version.
    pub floor: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StoredPending {
    pub stamp: Stamp,
    pub op: Op,
    pub tag: RequestTag,
}

/// An update as a predecessor sends it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Forwarded {
    pub chain_version: ChainVersion,
    pub stamp: Stamp,
    pub op: Op,
    pub tag: RequestTag,
    /// Before it the predecessor's chunk held nothing: it need not follow the version here if here is nothing either.
    pub fresh: bool,
    /// With a `Replace`: the records that came in its payload.
    pub writers: Vec<WriterRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Event {
    /// A client asks the head for an update. `leased`: the node holds its lease now.
    Client { ticket: Ticket, chain_version: ChainVersion, op: Op, tag: RequestTag, leased: bool },
    /// The predecessor brings an update.
    Chain { ticket: Ticket, update: Forwarded },
    /// Bring the SYNCING successor's copy up to this replica's committed state.
    Push { ticket: Ticket, chain_version: ChainVersion },
    /// A client asks for committed bytes.
    Read { ticket: Ticket, chain_version: ChainVersion, leased: bool },
    /// `Effect::Stage` is done: the version is on disk, or was refused and left nothing behind.
    Staged { result: Result<StageEnd, Status> },
    /// The successor answered the `Forward` or `Push` of that attempt, or its connection was lost.
    Answered { attempt: u64, result: Result<(), Status> },
    /// `Effect::Commit` is done.
    Committed { result: Result<(), Status> },
    /// `Effect::Drop` is done.
    Dropped { result: Result<(), Status> },
    /// Time has passed: drive a stalled update again.
    Retry,
    /// This caller's deadline has passed.
    Leave { ticket: Ticket },
    /// This tombstone is old enough: no message from before it can arrive any more (R7).
    Forget { stamp: Stamp },
    /// Routing says something new of the chain.
    ViewChanged { view: View },
}

/// What a version is once it is staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StageEnd {
    Pending,
    /// Its record says at once that it is committed: no later member has to take it, or it was a `Replace`.
    Committed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The update is committed here and on every later member; the version it created.
    Done {
        version: Version,
    },
    Refused(Status),
}

/// Whether a successor needs the change or the chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Content {
    /// The operation and its payload.
    Update,
    /// A `Replace` with the chunk's whole content as of this update, and its writer records.
    Whole,
}

/// One order to the driver. Those with an `owner` belong to that caller's thread, and to the driver's own
/// thread when the owner is `None`: the caller has left.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Put the payload of `owner` on disk as the pending version, with that tag. Answer with `Staged`.
    Stage {
        owner: Ticket,
        update: StoredPending,
        /// There is nothing here, so any higher stamp may follow.
        fresh: bool,
        /// No replica follows, so that it may be committed in the same record.
        last: bool,
    },
    /// Send the pending update to the successor. Answer with `Answered`, sooner or later.
    Forward {
        owner: Option<Ticket>,
        attempt: u64,
        to: Successor,
        chain_version: ChainVersion,
        update: StoredPending,
        fresh: bool,
        content: Content,
    },
    /// Send the committed state to the successor as a `Replace`. Answer with `Answered`.
    Push {
        owner: Ticket,
        attempt: u64,
        to: Successor,
        chain_version: ChainVersion,
        stamp: Stamp,
    },
    /// Make the pending version the committed one. Answer with `Committed`.
    Commit {
        owner: Option<Ticket>,
        stamp: Stamp,
    },
    /// Forget the pending version. Answer with `Dropped`.
    Drop {
        owner: Option<Ticket>,
        stamp: Stamp,
    },
    /// The successor did not take the update; nothing happens before `Retry` or `ViewChanged`.
    Stalled {
        owner: Option<Ticket>,
        status: Status,
    },
    /// Delete the record of this tombstone, before anything else happens to the chunk.
    Forget {
        stamp: Stamp,
    },
    /// Serve the committed content to this reader.
    Serve {
        ticket: Ticket,
    },
    Reply {
        ticket: Ticket,
        outcome: Outcome,
    },
}

/// Mistakes that a test plants to see that the model check finds them. Production code says `Bug::None`.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Bug {
    #[default]
    None,
    ServeWhilePending,
    CommitBeforeAnswer,
    DropPendingOnChange,
    ForgetWriters,
    IgnoreLease,
    TailIgnoresSyncing,
    ReplaceRollsBack,
    KeepStalePending,
    UpdateWithoutPrevious,
    AbortAfterRetry,
    CommitOwnAsSyncing,
    KeepStagedByLeaver,
    BirthRestarts,
    FloorForAll,
    IgnoreChainVersion,
    KeepQueueOnChange,
}
