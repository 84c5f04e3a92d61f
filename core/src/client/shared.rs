//! What all files of one client share: the services, memory, threads, caches, and the tables of files.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::chunk_store::ChunkStore;
use super::close_batcher::{Close, CloseBatcher};
use super::dirty_files::DirtyFiles;
use super::dirty_limit::DirtyLimit;
use super::fence::Fence;
use super::meta::{Identity, Meta};
use super::metadata_cache::MetadataCache;
use super::open_file::OpenInode;
use super::open_files::OpenFiles;
use super::workers::Workers;
use crate::buffer::BufferPool;
use crate::error::Result;
use crate::wire::pb;

/// After so many large files one after another the next is created in chunks: a mistake costs a round trip to a storage
/// node instead of one to the metadata service.
const LARGE_FILES_MIN: usize = 4;

/// Threads for write-back, and for the rest.
const WORKERS_MAX: usize = 8;
const BACKGROUND_MAX: usize = 16;

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
    pub files: OpenFiles,
    pub dirty_files: DirtyFiles,
    pub closes: CloseBatcher,
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
            files: OpenFiles::default(),
            dirty_files: DirtyFiles::default(),
            closes: CloseBatcher::default(),
            attribute_timeout,
            read_ahead_bytes,
            large_files: AtomicUsize::new(0),
        })
    }

    /// Return attributes that the metadata service has sent, with what was written here and not synced yet.
    pub fn local_view(&self, inode: &pb::Inode) -> pb::Inode {
        match self.files.find(inode.id) {
            Some(open) => open.overlay_local(inode),
            // It may have been closed since that was asked.
            None => self
                .metadata_cache
                .newest(inode)
                .map_or_else(|| inode.clone(), |known| pb::Inode::clone(&known)),
        }
    }

    /// List a file to which bytes were appended while this client was its only writer, and wake the clock thread.
    pub fn list_appended(&self, inode: &Arc<OpenInode>) {
        self.dirty_files.add_appended(inode);
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

    /// Fail the files of write sessions that the metadata service does not know any more.
    pub fn lose_sessions(&self, lost: &[pb::WriteSession]) {
        for lost in lost {
            if let Some(inode) = self.files.find(lost.inode) {
                inode.lose_session(lost.session);
            }
        }
    }

    /// Report what is open, as `request` says, to a service that may have forgotten this client: write sessions that
    /// were lost fail, and what is known of open files is asked for again.
    pub fn register_again(&self, identity: &Identity, request: pb::HoldRequest) -> Result<()> {
        let lost = self.meta.hold(identity, request)?;
        self.lose_sessions(&lost);
        self.files.all().iter().for_each(|inode| inode.distrust());
        Ok(())
    }

    /// Describe what a client should not keep when all files are closed and all is synced; empty if there is none.
    #[cfg(test)]
    pub fn leftovers(&self) -> String {
        let mut left = Vec::new();
        let mut expect_none = |what: &str, count: usize| {
            if count != 0 {
                left.push(format!("{count} {what}"));
            }
        };
        expect_none("bytes of the dirty limit", self.dirty_limit.used());
        expect_none("files with deferred attributes", self.dirty_files.deferred_count());
        expect_none("closes", self.closes.count());
        expect_none("held inodes", self.files.held().len());
        expect_none("files with dirty bytes", self.dirty_files.count());
        let (open, opening, closed) = self.files.counts();
        expect_none("open files", open);
        expect_none("opens", opening);
        expect_none("changes", closed);
        left.join(", ")
    }
}
