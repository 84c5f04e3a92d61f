//! The store of chunk records: fjall, whose choice `docs/decisions/0004-chunk-index.md` explains.
//!
//! Every change goes to the kernel before the call returns, so it survives `kill -9`; `sync` takes it to disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::Bound;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::accesses::Accesses;
use super::codec::{self, KEY_BYTES};
use super::journal;
use super::segments::sync_directory;
use super::state::Record;
use crate::types::{ChainId, ChunkKey, ContentId, Status, Version};

/// Key of the newest round of `sync` that succeeded.
const SYNCED: &str = "synced";
/// Key of the highest version of any record that was forgotten.
const FLOOR: &str = "floor";
/// Key of the newest round that had succeeded when the directory was opened, until `confirm` removes it.
const OPENED: &str = "opened";
/// Records written since the last flush are kept in memory up to this; an open after `kill -9` replays as much. Each flush
/// stops all updates for as long as the disk takes to sync the journal: the fewer, the better.
const MEMTABLE_BYTES: u64 = 64 << 20;
/// What fjall sets aside for a journal, as a hole.
const JOURNAL_BYTES: u64 = 64 << 20;
/// A journal's blocks are taken in advance when this many times its size is free, so that chunks can still be
/// removed, and pending versions committed, on a disk that others have filled.
const PREALLOCATE_FREE_FACTOR: u64 = 8;
/// The journal files together; fjall wants at least 64 MiB.
const JOURNAL_BYTES_MAX: u64 = 256 << 20;

/// Threads that flush and compact. They read requests from a bounded queue, which updates fill while the memtable is full,
/// and a flush is requested through the same queue: a thread alone would wait for itself and never flush again (fjall
/// pull request 323).
const WORKERS: usize = 2;

pub struct Index {
    dir: PathBuf,
    database: Database,
    chunks: Keyspace,
    /// What is not about one chunk: `SYNCED`, `FLOOR`, `OPENED`.
    engine: Keyspace,
    accesses: Arc<Accesses>,
}

impl Index {
    /// Open the index in `dir`, or make one. What it lacks at its end was lost with power if that `may_be_torn`.
    /// Raises `InvalidData` if it was not.
    pub fn open(
        dir: &Path,
        cache_bytes: usize,
        accesses: Arc<Accesses>,
        may_be_torn: bool,
    ) -> fjall::Result<Index> {
        if !dir.try_exists()? {
            make(dir, cache_bytes, accesses.clone())?;
        }
        journal::cut_torn_end(dir, may_be_torn)?;
        Index::open_whole(dir, cache_bytes, accesses)
    }

    fn open_whole(dir: &Path, cache_bytes: usize, accesses: Arc<Accesses>) -> fjall::Result<Index> {
        let database = Database::builder(dir)
            .cache_size(cache_bytes as u64)
            .max_journaling_size(JOURNAL_BYTES_MAX)
            .worker_threads(WORKERS)
            .open()?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES);
        let chunks = database.keyspace("chunks", options)?;
        let engine = database.keyspace("engine", KeyspaceCreateOptions::default)?;
        let index = Index { dir: dir.to_owned(), database, chunks, engine, accesses };
        index.sync_journals()?;
        Ok(index)
    }

    pub fn get(&self, key: ChunkKey) -> Result<Option<Record>, Status> {
        let _access = self.accesses.begin();
        match self.chunks.get(codec::encode_key(key)).map_err(|error| failed(&error))? {
            None => Ok(None),
            Some(value) => decode(key, &value).map(Some),
        }
    }

    /// Store the record.
    pub fn put(&self, key: ChunkKey, record: &Record) -> Result<(), Status> {
        assert!(!record.is_absent(), "{key:?}: a record of nothing is forgotten");
        let _access = self.accesses.begin();
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        batch.insert(&self.chunks, codec::encode_key(key), codec::encode_record(record));
        batch.commit().map_err(|error| failed(&error))
    }

    /// Delete the record, and raises the floor, in one atomic batch.
    pub fn forget(&self, key: ChunkKey, floor: Version) -> Result<(), Status> {
        let _access = self.accesses.begin();
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        batch.remove(&self.chunks, codec::encode_key(key));
        batch.insert(&self.engine, FLOOR, floor.0.to_le_bytes());
        batch.commit().map_err(|error| failed(&error))
    }

    /// Store, in the place of a record, one that cannot be read.
    pub fn put_unreadable(&self, key: ChunkKey) -> Result<(), Status> {
        let _access = self.accesses.begin();
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        batch.insert(&self.chunks, codec::encode_key(key), [codec::RECORD_FORMAT]);
        batch.commit().map_err(|error| failed(&error))
    }

    #[cfg(test)]
    pub fn put_raw(&self, key: ChunkKey, value: &[u8]) {
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        batch.insert(&self.chunks, codec::encode_key(key), value);
        batch.commit().unwrap();
    }

    /// The newest round of `sync` that succeeded; 0 in a new directory.
    pub fn synced(&self) -> Result<u64, Status> {
        self.number(SYNCED)
    }

    /// The highest version of any record that was forgotten; 0 if none was.
    pub fn floor(&self) -> Result<u64, Status> {
        self.number(FLOOR)
    }

    /// What `set_opened` has stored; 0 if nothing.
    pub fn opened(&self) -> Result<u64, Status> {
        self.number(OPENED)
    }

    pub fn set_opened(&self, round: u64) -> Result<(), Status> {
        let _access = self.accesses.begin();
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        batch.insert(&self.engine, OPENED, round.to_le_bytes());
        batch.commit().map_err(|error| failed(&error))
    }

    /// Forget what `set_opened` has stored, durably.
    pub fn clear_opened(&self) -> Result<(), Status> {
        let _access = self.accesses.begin();
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        batch.remove(&self.engine, OPENED);
        batch.commit().map_err(|error| failed(&error))?;
        self.sync()
    }

    fn number(&self, key: &str) -> Result<u64, Status> {
        let value = self.engine.get(key).map_err(|error| failed(&error))?;
        match value.as_deref().map(<[u8; 8]>::try_from) {
            None => Ok(0),
            Some(Ok(bytes)) => Ok(u64::from_le_bytes(bytes)),
            Some(Err(_)) => {
                log::error!("chunk index: malformed number under {key:?}");
                Err(Status::Io)
            }
        }
    }

    pub fn set_synced(&self, round: u64) -> Result<(), Status> {
        assert!(round > 0, "0 stands for a directory without a round");
        let _access = self.accesses.begin();
        let mut batch = self.database.batch().durability(Some(PersistMode::Buffer));
        batch.insert(&self.engine, SYNCED, round.to_le_bytes());
        batch.commit().map_err(|error| failed(&error))
    }

    /// Make every record written before the call durable.
    ///
    /// `Database::persist` would hold the journal's lock, and so every update, while the disk works. But each
    /// batch is with the kernel when `put` returns, fjall syncs a journal before it begins the next one, and
    /// tables before it deletes their journal; so to sync the journals that exist is enough.
    pub fn sync(&self) -> Result<(), Status> {
        let _access = self.accesses.begin();
        match self.sync_journals() {
            Ok(0) => self.database.persist(PersistMode::SyncAll).map_err(|error| failed(&error)),
            Ok(_) => Ok(()),
            Err(error) => Err(failed(&fjall::Error::Io(error))),
        }
    }

    fn sync_journals(&self) -> io::Result<u32> {
        let mut count = 0;
        for entry in self.dir.read_dir()? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "jnl") {
                continue;
            }
            match OpenOptions::new().write(true).open(path) {
                Ok(journal) => {
                    preallocate(&journal)?;
                    journal.sync_data()?;
                }
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            }
            count += 1;
        }
        Ok(count)
    }

    /// The format of a record that is not ours, if there is one.
    pub fn foreign_format(&self) -> Option<u8> {
        self.chunks.iter().find_map(|guard| match codec::decode_record(&guard.value().ok()?) {
            Err(codec::Malformed::Format(format)) => Some(format),
            _ => None,
        })
    }

    /// The records of `range`, in order; from either end. A record that cannot be read is `Checksum`, and does not end
    /// the scan; an error without a key does: which chunks are behind it is unknown.
    #[allow(clippy::type_complexity)]
    pub fn scan(
        &self,
        range: Range,
    ) -> impl DoubleEndedIterator<Item = Result<(ChunkKey, Result<Record, Status>), Status>> + use<> {
        self.chunks.range(range).map(|guard| {
            let (key, value) = guard.into_inner().map_err(|error| failed(&error))?;
            let key = codec::decode_key(&key).map_err(|error| {
                log::error!("chunk index: malformed key: {error}; the scan ends");
                Status::Io
            })?;
            Ok((key, decode(key, &value)))
        })
    }
}

/// Make an empty index that has its name only when all of it is on disk: fjall does not open one that lost power while it
/// was made.
fn make(dir: &Path, cache_bytes: usize, accesses: Arc<Accesses>) -> fjall::Result<()> {
    let new = dir.with_extension("new");
    match fs::remove_dir_all(&new) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let index = Index::open_whole(&new, cache_bytes, accesses)?;
    index.database.persist(PersistMode::SyncAll)?;
    drop(index);
    sync_directories(&new)?;
    fs::rename(&new, dir)?;
    Ok(sync_directory(dir.parent().expect("the directory of the engine"))?)
}

/// Make the names in `dir` and below durable: fjall does not sync the directory that its keyspaces are made in.
fn sync_directories(dir: &Path) -> io::Result<()> {
    for entry in dir.read_dir()? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            sync_directories(&entry.path())?;
        }
    }
    sync_directory(dir)
}

fn preallocate(journal: &File) -> io::Result<()> {
    let metadata = journal.metadata()?;
    // Opening cuts a journal behind its last batch.
    let length = metadata.len().max(JOURNAL_BYTES);
    if metadata.blocks() * 512 >= length {
        return Ok(());
    }
    let stat = rustix::fs::fstatvfs(journal)?;
    if stat.f_bavail * stat.f_frsize < PREALLOCATE_FREE_FACTOR * length {
        return Ok(());
    }
    match rustix::fs::fallocate(journal, FallocateFlags::KEEP_SIZE, 0, length) {
        // Without it a full disk stops the index earlier; nothing else depends on it.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSPC | Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Keys from one bound to another.
pub type Range = (Bound<[u8; KEY_BYTES]>, Bound<[u8; KEY_BYTES]>);

pub fn everything() -> Range {
    (Bound::Unbounded, Bound::Unbounded)
}

/// The records of a chain after `after`, or from its start.
pub fn of_chain(chain: ChainId, after: Option<ChunkKey>) -> Range {
    let start = match after {
        Some(key) => Bound::Excluded(codec::encode_key(key)),
        None => Bound::Included(chain_key(chain, [0; 12])),
    };
    (start, Bound::Included(chain_key(chain, [0xff; 12])))
}

/// The records of one content with an index of at least `first_index`.
pub fn of_content(chain: ChainId, content: ContentId, first_index: u32) -> Range {
    let key = |index: u32| {
        let mut rest = [0; 12];
        rest[..8].copy_from_slice(&content.0.to_be_bytes());
        rest[8..].copy_from_slice(&index.to_be_bytes());
        chain_key(chain, rest)
    };
    (Bound::Included(key(first_index)), Bound::Included(key(u32::MAX)))
}

fn chain_key(chain: ChainId, rest: [u8; 12]) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..4].copy_from_slice(&chain.0.to_be_bytes());
    key[4..].copy_from_slice(&rest);
    key
}

fn decode(key: ChunkKey, value: &[u8]) -> Result<Record, Status> {
    codec::decode_record(value).map_err(|error| {
        log::error!("chunk index: record of {key:?} is damaged: {error}");
        Status::Checksum
    })
}

fn failed(error: &fjall::Error) -> Status {
    log::error!("chunk index: access failed: {error}");
    match error {
        fjall::Error::Io(error) if error.kind() == ErrorKind::StorageFull => Status::NoSpace,
        _ => Status::Io,
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::types::ChunkId;

    #[test]
    fn memtables_are_flushed_while_updates_come_faster_than_requests_are_read() {
        const LIMIT: Duration = Duration::from_secs(120);
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("index"), 1 << 20, Arc::default(), false).unwrap();
        let value = [7; 4096];
        for index_of_chunk in 0..6 * MEMTABLE_BYTES as u32 / 4096 {
            let chunk = ChunkId { content: ContentId(1), index: index_of_chunk };
            index.put_raw(ChunkKey { chain: ChainId(1), chunk }, &value);
        }
        let began = Instant::now();
        while index.database.write_buffer_size() > 2 * MEMTABLE_BYTES {
            assert!(began.elapsed() < LIMIT, "{} bytes wait for a flush", index.database.write_buffer_size());
            thread::sleep(Duration::from_millis(10));
        }
    }
}
