//! What all files of one client share: the services, memory, threads, caches, and the lists of dirty files.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::chunk_store::ChunkStore;
use super::close_batcher::{Close, CloseBatcher};
use super::dirty_files::{DirtyFile, DirtyFiles};
use super::dirty_limit::DirtyLimit;
use super::fence::Fence;
use super::meta::Meta;
use super::metadata_cache::MetadataCache;
use super::workers::Workers;
use crate::buffer::BufferPool;

/// After so many large files one after another the next is created in chunks: a mistake costs a round trip to a storage
/// node instead of one to the metadata service.
const LARGE_FILES_MIN: usize = 4;

/// Threads for write-back, and for the rest.
const WORKERS_MAX: usize = 8;
const BACKGROUND_MAX: usize = 16;

/// Totals since the start.
#[derive(Debug, Default)]
pub struct WriteBackCounters {
    /// Acknowledged by the chains.
    pub bytes: AtomicU64,
    /// Writes that failed. Their error is reported at the next `fsync` or `close`.
    pub failures: AtomicU64,
}

impl WriteBackCounters {
    pub fn ended(&self, bytes: usize, is_stored: bool) {
        if is_stored {
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        } else {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }
}

pub struct Shared {
    pub meta: Meta,
    pub chunks: Box<dyn ChunkStore>,
    pub fence: Fence,
    /// Buffers for dirty bytes and for reading ahead.
    pub pool: BufferPool,
    pub dirty_limit: DirtyLimit,
    /// Write-back only: its jobs wait for chains, never for memory or for other jobs.
    pub workers: Workers,
    /// Everything else that should not hold up its caller.
    pub background: Workers,
    pub metadata_cache: MetadataCache,
    pub dirty_files: DirtyFiles,
    pub closes: CloseBatcher,
    pub write_back: WriteBackCounters,
    pub attribute_timeout: Duration,
    pub read_ahead_bytes: usize,
    /// How many of the files created last, one after another, have exceeded their inodes.
    large_files: AtomicUsize,
}

impl Shared {
    pub fn new(
        meta: Meta,
        chunks: Box<dyn ChunkStore>,
        pool: BufferPool,
        write_buffer_bytes: usize,
        read_ahead_bytes: usize,
        attribute_timeout: Duration,
    ) -> Arc<Shared> {
        Arc::new(Shared {
            meta,
            chunks,
            fence: Fence::new(),
            pool,
            dirty_limit: DirtyLimit::new(write_buffer_bytes),
            workers: Workers::new("luciola-write", WORKERS_MAX),
            background: Workers::new("luciola-task", BACKGROUND_MAX),
            metadata_cache: MetadataCache::new(attribute_timeout),
            dirty_files: DirtyFiles::default(),
            closes: CloseBatcher::default(),
            write_back: WriteBackCounters::default(),
            attribute_timeout,
            read_ahead_bytes,
            large_files: AtomicUsize::new(0),
        })
    }

    /// List a file to which bytes were appended while this client was its only writer, and wake the clock thread.
    pub fn list_appended(&self, file: Weak<dyn DirtyFile>) {
        self.dirty_files.add_appended(file);
        self.closes.wake();
    }

    /// Record the length of a file that was created here and is closed for the first time. An empty one does not count.
    pub fn on_created_file_closed(&self, length: u64, inline_bytes: u32) {
        if length > u64::from(inline_bytes) {
            self.large_files.fetch_add(1, Ordering::Relaxed);
        } else if length > 0 {
            self.large_files.store(0, Ordering::Relaxed);
        }
    }

    /// Return whether the next file will probably exceed its inode, so that it had better be created in chunks.
    pub fn creates_large_files(&self) -> bool {
        self.large_files.load(Ordering::Relaxed) >= LARGE_FILES_MIN
    }

    /// Leave a close to be sent with others.
    pub fn close_later(&self, close: Close) {
        self.closes.push(close, &self.meta);
    }

    /// Send the closes that wait.
    pub fn send_closes(&self) {
        self.closes.send(&self.meta);
    }

    /// Wait at most `most` for closes or appended bytes. Return whether there are closes.
    pub fn wait_for_closes(&self, most: Duration) -> bool {
        self.closes.wait(most, || self.dirty_files.has_appended())
    }
}
