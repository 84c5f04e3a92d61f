//! What callers of the engine see: requests, outcomes, options.

use std::path::PathBuf;
use std::time::Duration;

use crate::types::{ChunkId, ChunkKey, Op, RequestTag, Stamp, Version, WriterRecord};

/// How an engine behaves. The defaults suit a production disk.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Size of one block file, a multiple of the page size. Fixed when the directory is made.
    pub segment_bytes: u64,
    /// Which engine the directory must hold: its FORMAT names it. 0: any.
    pub identity: u128,
    /// Whether an empty or absent directory becomes a new engine. If not, it is refused: the disk may not be mounted.
    pub create: bool,
    /// Client writes are refused with `NoSpace` when less than this is free; a quarter of it, which no
    /// data may use, is left to the index.
    pub reserve_bytes: u64,
    /// Memory for chunk records: half holds decoded records of hot chunks, half blocks of the index.
    pub cache_bytes: usize,
    /// How often acknowledged updates are made durable in the background. `None`: only when `sync` is called.
    pub sync_interval: Option<Duration>,
    /// Pages given up are made durable and used again, at the latest, when they are this many bytes.
    pub deferred_free_bytes_max: u64,
    /// Called before bytes are written to a block file: how tests make a disk hang.
    #[doc(hidden)]
    pub on_write: Option<fn()>,
    /// Called by the thread that syncs, before and after each step of a round, without any lock: how tests let updates happen
    /// in between.
    #[doc(hidden)]
    pub on_round: Option<fn()>,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            segment_bytes: 4 << 30,
            identity: 0,
            create: true,
            reserve_bytes: 256 << 20,
            cache_bytes: 128 << 20,
            // As ext4: what was never synced explicitly is at most this old after power loss.
            sync_interval: Some(Duration::from_secs(5)),
            deferred_free_bytes_max: 512 << 20,
            on_write: None,
            on_round: None,
        }
    }
}

/// Why a directory could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{path}: another process has this storage directory open")]
    Locked { path: PathBuf },
    #[error("{path}: not a storage directory of Luciola (the directory is not empty and has no FORMAT file)")]
    Foreign { path: PathBuf },
    #[error(
        "{path}: chunk engine format {found}, and this release reads format {wanted}; run the release that wrote it, or \
         give this node an empty directory, which the other replicas fill"
    )]
    Format { path: PathBuf, found: u32, wanted: u32 },
    #[error(
        "{path}: FORMAT says {wanted}, but the index has records of format {found}, written by another release; run \
         that, or give this node an empty directory, which the other replicas fill"
    )]
    RecordFormat { path: PathBuf, found: u8, wanted: u8 },
    #[error(
        "{path}: the chunks that were stored here are gone: mount their disk; if it is lost, empty the whole directory of \
         the node, node.json too, and the other replicas fill it"
    )]
    Missing { path: PathBuf },
    #[error(
        "{path}: holds chunk engine {found:032x}, and node.json beside it names {wanted:032x}: mount the disk that belongs \
         here, or put back its node.json; if either is lost, empty the whole directory of the node, and the other \
         replicas fill it"
    )]
    OtherEngine { path: PathBuf, found: u128, wanted: u128 },
    #[error("{path}: {reason}")]
    Damaged { path: PathBuf, reason: String },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: the index cannot be opened: {reason}")]
    Index { path: PathBuf, reason: String },
    #[error("invalid option: {0}")]
    Option(&'static str),
}

/// What opening found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenReport {
    pub chunks: u64,
    /// Chunks with a pending version, which the chain must drive on or drop (R5).
    pub pending: Vec<ChunkKey>,
    /// Block files in use that were missing or shorter than they must be; what they held reads as `Checksum`.
    pub damaged_segments: Vec<u32>,
    /// Chunks whose records cannot be read. Reads and updates of them fail with `Checksum`.
    pub unreadable: Vec<ChunkKey>,
    /// After power loss: chunks whose newest data had not been synced and is gone; they are in an older state.
    pub fallen_back: Vec<ChunkKey>,
}

/// On whose behalf space is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A client's own request, at the head: refused when space is low.
    Client,
    /// A predecessor's, or recovery's: the chain has already agreed to it, so it may use the reserve.
    Chain,
}

/// One update to stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    pub key: ChunkKey,
    /// `version` is the one this update creates.
    pub stamp: Stamp,
    pub op: Op,
    pub tag: RequestTag,
    pub origin: Origin,
    /// If there is nothing here, or a tombstone, any higher stamp may follow.
    pub fresh: bool,
}

/// Recovery: the new state of a chunk, regardless of its present one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Install<'a> {
    pub key: ChunkKey,
    pub stamp: Stamp,
    /// A tombstone; the payload is then empty.
    pub removed: bool,
    pub tag: RequestTag,
    /// The sender's writer records, which take the place of ours: duplicates are known here too.
    pub writers: &'a [WriterRecord],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub stamp: Stamp,
    pub length: u32,
    /// A tombstone: reads as absent.
    pub removed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    pub stamp: Stamp,
    pub op: Op,
    pub tag: RequestTag,
    /// Length of the chunk once this is committed.
    pub length: u32,
    pub removed: bool,
}

/// All that is known of one chunk. A chunk that was never written has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkState {
    /// `None`: the first version is still pending.
    pub committed: Option<Committed>,
    pub pending: Option<Pending>,
    pub writers: Vec<WriterRecord>,
}

impl ChunkState {
    /// The committed version; 0 when there is none.
    pub fn version(&self) -> Version {
        self.committed.map_or(Version(0), |committed| committed.stamp.version)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staged {
    /// The update is pending now.
    Pending,
    /// It already was: the same tag and operation.
    AlreadyPending,
    /// That version is committed: a late duplicate, or an `Op::Replace`, which needs no commit.
    Committed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StageOutcome {
    pub staged: Staged,
    /// Length of the chunk in the state that results.
    pub length: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitOutcome {
    /// The committed state after the call; newer than asked if the chunk has moved on.
    pub stamp: Stamp,
    pub length: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadOutcome {
    /// Bytes placed; less than asked at the end of the chunk.
    pub length: u32,
    /// The state that was read.
    pub stamp: Stamp,
    /// Length of the whole chunk in that state.
    pub chunk_length: u32,
    /// A pending version existed when that state was looked up, in the same instant.
    pub pending: Option<Version>,
}

/// One line of a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkRecord {
    pub chunk: ChunkId,
    /// `None`: only a pending first version.
    pub committed: Option<Committed>,
    /// CRC32C of the whole committed content.
    pub crc32c: u32,
    pub pending: Option<Pending>,
    /// The record cannot be read: the other fields are unknown.
    pub is_unreadable: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Chunks with content.
    pub chunks: u64,
    pub tombstones: u64,
    /// Committed bytes.
    pub bytes: u64,
    /// Bytes of the pages that committed and pending states own.
    pub page_bytes: u64,
    /// Versions of the chunks with content, summed: of two replicas of a chain, the one that lacks updates has fewer.
    pub updates: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// What this engine uses and what it still could.
    pub capacity_bytes: u64,
    /// What clients may still write: free, less the reserve.
    pub free_bytes: u64,
    pub used_bytes: u64,
}

/// A page whose bytes do not match its checksum, for scrub and repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Damage {
    pub key: ChunkKey,
    pub version: Version,
    /// Page of the chunk, counted from its start.
    pub page: u32,
}
