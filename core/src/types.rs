//! Words shared by every module: identities, versions, operations on chunks and their results.
//!
//! Nothing here does I/O. `docs/architecture.md` explains the nouns, `docs/protocol.md` draws their wire form.

use std::fmt;
use std::time::Duration;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A chain: an ordered list of replicas on different nodes.
    ChainId(u32)
);
id!(
    /// Grows with every change of a chain's members, order or states.
    ChainVersion(u64)
);
id!(
    /// One replica of one chain on one node.
    TargetId(u64)
);
id!(
    /// One process of the cluster.
    NodeId(u32)
);
id!(
    /// What names a file's chunks. Never reused; a file truncated to nothing gets a new one.
    ContentId(u64)
);
id!(
    /// Counts the committed states of one chunk. 0: the chunk was never written.
    Version(u64)
);
id!(
    /// One client process, random.
    ClientId(u64)
);

/// A chunk: `index` chunks into the bytes named `content`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId {
    pub content: ContentId,
    pub index: u32,
}

/// A chunk's replica on this machine. One engine holds many chains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkKey {
    pub chain: ChainId,
    pub chunk: ChunkId,
}

/// When a state of a chunk was decided. Compared by chain version first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    pub chain_version: ChainVersion,
    pub version: Version,
}

/// Identity of one update, kept over retries. A client has at most one update of a chunk in flight,
/// and its sequence numbers grow, so a chunk need only remember the last one of each client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestTag {
    pub client: ClientId,
    pub sequence: u64,
}

/// What an update does to a chunk. Its payload, if any, travels beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// Puts `length` bytes at `offset`; a gap before `offset` reads as zeros.
    Write { offset: u32, length: u32 },
    /// Cuts or extends (with zeros) to `length` bytes.
    Truncate { length: u32 },
    /// Leaves a tombstone: the chunk reads as absent, its version keeps counting.
    Remove,
    /// Recovery: the chunk's whole state at the stamp given with it. The payload is the content of `length`
    /// bytes, then `writers` encoded `WriterRecord`s. `removed`: the state is a tombstone. Version 0: the
    /// predecessor never had such a chunk.
    Replace { length: u32, writers: u32, removed: bool },
}

/// The last request of one client that a chunk executed, and the version it created. Stored with the chunk and
/// sent along with a `Replace`, so that a retry is recognised by the head of that time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct WriterRecord {
    pub tag: RequestTag,
    pub version: Version,
    /// The round of `sync` that had begun on this node when it was recorded here, for its age. Does not travel.
    pub round: u64,
}

impl WriterRecord {
    pub const BYTES: usize = 24;

    /// client u64, sequence u64, version u64, little-endian.
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        let words = [self.tag.client.0, self.tag.sequence, self.version.0];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub fn decode(bytes: &[u8; Self::BYTES]) -> WriterRecord {
        let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at * 8 + byte]));
        let tag = RequestTag { client: ClientId(word(0)), sequence: word(1) };
        WriterRecord { tag, version: Version(word(2)), round: 0 }
    }
}

/// Largest chunk a layout may ask for. Bounds every length on the wire.
pub const CHUNK_BYTES_MAX: u32 = 64 << 20;
/// Unit of allocation, of copy-on-write and of checksums inside a chunk.
pub const PAGE_BYTES: u32 = 16 << 10;
/// Most clients whose last request a chunk remembers, so most records in a `Replace`. Only those count that have not said
/// that it is settled, and have not been silent for `WRITER_LIFE`. Each costs a few bytes with every update of its chunk.
pub const WRITERS_MAX: usize = 4096;
/// Longest that a client retries one update.
pub const UPDATE_LIFE_MAX: Duration = Duration::from_secs(100);
/// How long a chunk remembers a request of a client that does not say that it is settled; a tombstone is kept longer.
pub const WRITER_LIFE: Duration = Duration::from_secs(120);
const _: () =
    assert!(WRITER_LIFE.as_secs() > UPDATE_LIFE_MAX.as_secs(), "a request is remembered while it is retried");
const _: () =
    assert!(UPDATE_LIFE_MAX.as_secs() * 110 / 100 < WRITER_LIFE.as_secs(), "clocks differ by up to 5 %");
/// Most operations in one batch: a 1 MiB request at the smallest chunk size, with room to spare.
pub const BATCH_OPS_MAX: usize = 256;
/// Most payload bytes in one batch.
pub const BATCH_BYTES_MAX: usize = 64 << 20;

/// Outcome of one operation of a batch, as it travels in frames. `Ok` is 0; the numbers are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u16)]
pub enum Status {
    #[error("ok")]
    Ok = 0,
    /// No committed content: a hole, or past the end.
    #[error("no such chunk")]
    NotFound = 1,
    /// The caller's chain version is not the server's; refresh routing and try again.
    #[error("the chain has changed")]
    WrongChainVersion = 2,
    /// This node does not hold a replica of that chain, or the replica may not serve now.
    #[error("the replica is not serving")]
    NotServing = 3,
    /// A newer version is on its way; read from the tail instead.
    #[error("the chunk is being written")]
    Dirty = 4,
    /// Updates go to the head.
    #[error("not the head of the chain")]
    NotHead = 5,
    /// The update arrived out of order in the chain (a version is missing); the sender re-drives.
    #[error("an earlier version is missing")]
    MissingVersion = 6,
    /// Bytes on disk or on the wire do not match their checksum.
    #[error("checksum mismatch")]
    Checksum = 7,
    #[error("no space left on the storage node")]
    NoSpace = 8,
    #[error("the storage device failed")]
    Io = 9,
    #[error("invalid argument")]
    Invalid = 10,
    /// The deadline passed; the update may or may not happen.
    #[error("the deadline passed")]
    Timeout = 11,
    /// Too many requests, or too many recent writers of one chunk; try again later.
    #[error("the server is busy")]
    Busy = 12,
    /// This request's sequence number is older than one already executed.
    #[error("an older request of this client")]
    Stale = 13,
    /// The node holds no valid lease from the cluster manager.
    #[error("the node's lease has run out")]
    NoLease = 14,
    #[error("not permitted")]
    Denied = 15,
    /// The connection broke; the update may or may not have happened.
    #[error("the connection was lost")]
    Disconnected = 16,
}

impl Status {
    /// Whether the same request may succeed later, perhaps elsewhere, by itself.
    pub fn is_retryable(self) -> bool {
        use Status::*;
        matches!(
            self,
            WrongChainVersion
                | NotServing
                | Dirty
                | NotHead
                | MissingVersion
                | Timeout
                | Busy
                | NoLease
                | Disconnected
        )
    }

    /// The status with that number; `None` for a number that this version does not know.
    pub fn from_wire(number: u16) -> Option<Status> {
        use Status::*;
        [
            Ok,
            NotFound,
            WrongChainVersion,
            NotServing,
            Dirty,
            NotHead,
            MissingVersion,
            Checksum,
            NoSpace,
            Io,
            Invalid,
            Timeout,
            Busy,
            Stale,
            NoLease,
            Denied,
            Disconnected,
        ]
        .into_iter()
        .find(|status| *status as u16 == number)
    }
}

/// One read of a batch. The server places at most `length` bytes at the caller's buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOp {
    pub chain: ChainId,
    pub chain_version: ChainVersion,
    pub chunk: ChunkId,
    pub offset: u32,
    pub length: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadResult {
    pub status: Status,
    /// Bytes placed: less than asked at the end of the chunk.
    pub length: u32,
    pub version: Version,
}

/// One update of a batch, from a client to a head or from a replica to its successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpdateOp {
    pub chain: ChainId,
    pub chain_version: ChainVersion,
    pub chunk: ChunkId,
    pub op: Op,
    pub tag: RequestTag,
    /// Each request of the tag's client below this sequence is settled: it need not be remembered any more.
    pub settled: u64,
    /// From a client: zero. From a predecessor: the version this update creates.
    pub version: Version,
    /// From a client: zero. From a predecessor: the chain version under which a head decided this update;
    /// with `version` its stamp, which stays the same when the update is driven again under a newer one.
    pub decided: ChainVersion,
    /// From a predecessor: before this update its chunk held nothing. From a client: false.
    pub fresh: bool,
    /// CRC32C of the payload; `None` where both ends share memory.
    pub payload_crc: Option<u32>,
}

impl UpdateOp {
    pub fn stamp(&self) -> Stamp {
        Stamp { chain_version: self.decided, version: self.version }
    }

    /// How many payload bytes belong to this operation.
    pub fn payload_bytes(&self) -> usize {
        match self.op {
            Op::Write { length, .. } => length as usize,
            Op::Truncate { .. } | Op::Remove => 0,
            Op::Replace { length, writers, .. } => length as usize + writers as usize * WriterRecord::BYTES,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpdateResult {
    pub status: Status,
    /// Version now committed.
    pub version: Version,
    /// Length of the chunk after the update.
    pub length: u32,
}

/// What the cluster manager says of one replica (values of `PublicState` in `proto/mgmtd.proto`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TargetState {
    Serving,
    LastServing,
    Syncing,
    Waiting,
    Offline,
}

impl TargetState {
    /// Return whether the replica is sent the updates of its chain.
    pub fn takes_writes(self) -> bool {
        matches!(self, TargetState::Serving | TargetState::Syncing)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ChainMember {
    pub target: TargetId,
    pub node: NodeId,
    pub state: TargetState,
}

/// A chain as routing describes it: members in chain order, SERVING first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chain {
    pub id: ChainId,
    pub version: ChainVersion,
    pub members: Vec<ChainMember>,
}

impl Chain {
    pub fn serving(&self) -> impl Iterator<Item = &ChainMember> {
        self.members.iter().filter(|member| member.state == TargetState::Serving)
    }

    pub fn head(&self) -> Option<&ChainMember> {
        self.serving().next()
    }

    pub fn tail(&self) -> Option<&ChainMember> {
        self.serving().last()
    }

    /// Where `node` sends its updates next: the following SERVING member, or the SYNCING one after the tail.
    pub fn successor(&self, node: NodeId) -> Option<&ChainMember> {
        let place = self.members.iter().position(|member| member.node == node)?;
        self.members[place + 1..].iter().find(|member| member.state.takes_writes())
    }
}
