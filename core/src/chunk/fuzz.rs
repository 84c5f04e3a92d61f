//! Bytes of a damaged disk (`crate::fuzz`): records of the index, and its journal.

use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use fjall::{Database, KeyspaceCreateOptions};

use super::{checksum, codec, journal as torn};
use crate::fuzz::split_first;

/// A key, and a record. What was understood is encoded again to the same meaning.
pub fn record(data: &[u8]) {
    if let Ok(key) = codec::decode_key(data) {
        assert_eq!(codec::encode_key(key), data);
    }
    let (repair, bytes) = split_first(data);
    let mut bytes = bytes.to_vec();
    if repair {
        bytes.extend(checksum::crc32c(&bytes).to_le_bytes());
    }
    let Ok(record) = codec::decode_record(&bytes) else { return };
    assert_eq!(codec::decode_record(&codec::encode_record(&record)), Ok(record.clone()));
    for state in record.states().chain(&record.fallbacks) {
        let _ = state.content_crc();
        let pages = state.pages().count();
        assert_eq!(pages, state.crcs.len(), "a checksum for each page");
        assert_eq!(state.pages_between(0, pages).len(), pages);
    }
    let _ = (record.fallbacks_for(&record, 1, 1), record.settled());
}

/// A journal of the index after power loss, and whether fjall opens what is left of it.
pub fn journal(data: &[u8]) {
    let (may_be_torn, bytes) = split_first(data);
    let dir = Directory::with_journal(bytes);
    let Ok(()) = torn::cut_torn_end(&dir.0, may_be_torn) else { return };
    let path = dir.0.join("0.jnl");
    let length = File::open(&path).and_then(|file| file.metadata()).expect("it is there").len();
    assert!(length <= bytes.len() as u64, "a journal is cut, or left as it is");
    torn::cut_torn_end(&dir.0, false).expect("what was cut is whole");
    let database = Database::builder(&dir.0).open();
    let keyspace = database.and_then(|database| database.keyspace("chunks", KeyspaceCreateOptions::default));
    if let Ok(keyspace) = keyspace {
        keyspace.iter().take(64).for_each(|entry| drop(entry.key()));
    }
}

/// A directory in memory with an empty index, but for its journal; removed on drop.
struct Directory(PathBuf);

impl Directory {
    fn with_journal(bytes: &[u8]) -> Directory {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let memory = PathBuf::from("/dev/shm");
        let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let dir = Directory(parent.join(format!("luciola-fuzz-{}-{count}", std::process::id())));
        std::fs::create_dir_all(&dir.0).expect("a temporary directory");
        let database = Database::builder(&dir.0).open().expect("an empty index opens");
        drop(database.keyspace("chunks", KeyspaceCreateOptions::default).expect("an empty index is written"));
        drop(database);
        std::fs::write(dir.0.join("0.jnl"), bytes).expect("its journal is written");
        dir
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
