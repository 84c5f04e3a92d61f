//! Mistakes that `exploration` plants to see that it finds them.

/// Production code says `Bug::None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(not(test), allow(dead_code))]
pub(super) enum Bug {
    #[default]
    None,
    /// A chunk is chosen for write-back while it is in flight.
    SecondInFlight,
    /// The length is sent with bytes that no chain has acknowledged.
    ReportUnacknowledged,
    /// Dirty chunks are written under the content of a file in its inode.
    WriteBackInline,
    /// A conflict takes the other client's bytes for the whole file.
    RebaseDropsEdits,
    /// What was written during a sync counts as sent with it.
    SyncClearsNewer,
    /// The length acknowledged before a truncation elsewhere is kept after it.
    KeepAcknowledged,
    /// A reply that is older than what is known replaces it.
    TakeStaleReply,
    /// Bytes that are being sent as inline data become dirty chunks.
    SpillWhileSyncing,
    /// Bytes in the inode are dropped when the file has become chunked meanwhile.
    MigrationDropsEdits,
    /// No waiter is woken when a batch has ended.
    NoWakeAfterBatch,
    /// Memory of a batch is not given back.
    LeakBatch,
    /// A batch that failed counts no error.
    ForgetError,
    /// Exclusive access is granted while a batch is in flight.
    EnterWhileInFlight,
    /// Writes are taken in while access is exclusive.
    WriteWhileExclusive,
    /// A direct write is sent past bytes of its chunk that are dirty.
    DirectPastDirty,
    /// What waits is kept when the session is lost under which it was written.
    KeepDirtyOfLostSession,
}
