//! The end of the index's journal after power loss.
//!
//! What was appended to the journal since its last sync reaches the disk in pieces and in any order. fjall takes an end
//! that is merely short for what it is, but not one with a hole in it: it refuses to open, or misreads lengths. So the
//! newest journal is cut behind its last whole batch before fjall sees it. Whatever was synced lies before that. Older
//! journals were synced before the next was begun: damage in them is damage.
//!
//! Where no power was lost the kernel has kept the order of what was appended, and a journal ends with the beginning of
//! a batch at most. If the end of one lies behind it, what precedes that was damaged, synced or not, and nothing is cut.
//!
//! Source of the format: fjall 3.1, journal/entry.rs. A batch is a start (tag 1, u32 items, u64 sequence number), items
//! (tag 2, u8 kind, u8 compression, u64 keyspace, u16 key length, u32 value length, u32 its length here, key, value;
//! or tag 4, u64 keyspace: cleared), and an end (tag 3, u64 XXH3 of the items, "FJL\x03"). Little-endian.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use xxhash_rust::xxh3::Xxh3;

const START: u8 = 1;
const ITEM: u8 = 2;
const END: u8 = 3;
const CLEAR: u8 = 4;
const TRAILER: [u8; 4] = *b"FJL\x03";
/// Copied at once from a key or value to the checksum.
const BLOCK_BYTES: usize = 64 << 10;

/// Cuts the newest journal in `dir` behind its last whole batch. No one may have it open.
///
/// Raises `InvalidData` if more than the beginning of a batch would go, unless it `may_be_torn` by power loss.
pub fn cut_torn_end(dir: &Path, may_be_torn: bool) -> io::Result<()> {
    let Some(path) = newest(dir)? else { return Ok(()) };
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let length = file.metadata()?.len();
    let whole = whole_bytes(&file, length)?;
    if whole < length {
        if !may_be_torn && has_end_of_batch(&file, whole)? {
            let reason = format!(
                "the chunk index is damaged behind byte {whole} of {}, and no power was lost; empty the whole directory \
                 of this node, and the other replicas fill it",
                path.display()
            );
            return Err(io::Error::new(ErrorKind::InvalidData, reason));
        }
        log::debug!("{}: {whole} of {length} bytes are whole batches", path.display());
        file.set_len(whole)?;
        file.sync_all()?;
    }
    Ok(())
}

fn newest(dir: &Path) -> io::Result<Option<PathBuf>> {
    let mut newest: Option<(u64, PathBuf)> = None;
    for entry in dir.read_dir()? {
        let path = entry?.path();
        let number = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jnl")?.parse().ok());
        if let Some(number) = number
            && newest.as_ref().is_none_or(|&(known, _)| known < number)
        {
            newest = Some((number, path));
        }
    }
    Ok(newest.map(|(_, path)| path))
}

/// Bytes of the batches that are whole, up to the first that is not.
fn whole_bytes(file: &File, length: u64) -> io::Result<u64> {
    let mut reader = Batches { file: BufReader::with_capacity(BLOCK_BYTES, file), left: length };
    let mut whole = 0;
    loop {
        match reader.batch() {
            Ok(true) => whole = length - reader.left,
            Ok(false) => return Ok(whole),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(whole),
            Err(error) => return Err(error),
        }
    }
}

/// Whether a batch ends behind `at`. Holes are passed over: a journal has its size from its beginning.
fn has_end_of_batch(file: &File, mut at: u64) -> io::Result<bool> {
    let mut block = vec![0; BLOCK_BYTES];
    loop {
        at = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            Err(Errno::NXIO) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let count = file.read_at(&mut block, at)?;
        if block[..count].windows(TRAILER.len()).any(|bytes| bytes == TRAILER) {
            return Ok(true);
        }
        if count < TRAILER.len() {
            return Ok(false);
        }
        // A trailer may begin in the last bytes of this block.
        at += (count - (TRAILER.len() - 1)) as u64;
    }
}

struct Batches<'a> {
    file: BufReader<&'a File>,
    left: u64,
}

impl Batches<'_> {
    /// Whether a whole batch comes next; reads it.
    fn batch(&mut self) -> io::Result<bool> {
        if self.take::<1>()? != [START] {
            return Ok(false);
        }
        let items = u32::from_le_bytes(self.take()?);
        self.take::<8>()?;
        let mut sum = Xxh3::new();
        for _ in 0..items {
            if !self.item(&mut sum)? {
                return Ok(false);
            }
        }
        Ok(self.take::<1>()? == [END]
            && u64::from_le_bytes(self.take()?) == sum.digest()
            && self.take::<4>()? == TRAILER)
    }

    fn item(&mut self, sum: &mut Xxh3) -> io::Result<bool> {
        let tag = self.take::<1>()?;
        sum.update(&tag);
        match tag {
            [CLEAR] => {
                sum.update(&self.take::<8>()?);
                Ok(true)
            }
            [ITEM] => {
                let head = self.take::<20>()?;
                sum.update(&head);
                let key_bytes = u16::from_le_bytes(head[10..12].try_into().expect("two bytes"));
                let value_bytes = u32::from_le_bytes(head[12..16].try_into().expect("four bytes"));
                // The same: nothing is compressed.
                let stored_bytes = u32::from_le_bytes(head[16..20].try_into().expect("four bytes"));
                if value_bytes != stored_bytes {
                    return Ok(false);
                }
                self.sum_up(u64::from(key_bytes) + u64::from(stored_bytes), sum)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn sum_up(&mut self, mut count: u64, sum: &mut Xxh3) -> io::Result<()> {
        let mut block = vec![0; (count as usize).min(BLOCK_BYTES)];
        while count > 0 {
            let now = (count as usize).min(BLOCK_BYTES);
            self.fill(&mut block[..now])?;
            sum.update(&block[..now]);
            count -= now as u64;
        }
        Ok(())
    }

    fn take<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        self.left = self.left.checked_sub(bytes.len() as u64).ok_or(ErrorKind::UnexpectedEof)?;
        self.file.read_exact(bytes)
    }
}

#[cfg(test)]
mod tests {
    use fjall::{Database, KeyspaceCreateOptions, PersistMode};

    use super::*;

    const COUNT: u64 = 40;

    /// In memory where there is a place for that: these tests are not about the disk's speed.
    fn directory() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a temporary directory")
    }

    fn keys(dir: &Path) -> Vec<u64> {
        let database = Database::builder(dir).open().expect("a journal that was cut opens");
        let keyspace = database.keyspace("numbers", KeyspaceCreateOptions::default).unwrap();
        let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
        keyspace.iter().map(|guard| number(&guard.key().unwrap())).collect()
    }

    /// A journal of `COUNT` batches, some with two items.
    fn journal(dir: &Path) -> PathBuf {
        let database = Database::builder(dir).open().unwrap();
        let keyspace = database.keyspace("numbers", KeyspaceCreateOptions::default).unwrap();
        for number in 0..COUNT {
            let mut batch = database.batch().durability(Some(PersistMode::Buffer));
            batch.insert(&keyspace, number.to_be_bytes(), vec![number as u8; 100 + number as usize]);
            if number % 3 == 0 {
                batch.remove(&keyspace, (COUNT + number).to_be_bytes());
            }
            batch.commit().unwrap();
        }
        drop((keyspace, database));
        newest(dir).unwrap().expect("a database has a journal")
    }

    #[test]
    fn a_whole_journal_is_left_as_it_is() {
        let dir = directory();
        journal(dir.path());
        cut_torn_end(dir.path(), false).unwrap();
        assert_eq!(keys(dir.path()), (0..COUNT).collect::<Vec<_>>());
    }

    /// Whichever 512 bytes did not reach the disk: the batches before them are there, and nothing else.
    #[test]
    fn a_journal_with_a_hole_is_cut_before_it() {
        let original = directory();
        let path = journal(original.path());
        let bytes = std::fs::read(&path).unwrap();
        let used = bytes.iter().rposition(|&byte| byte != 0).unwrap() + 1;
        let mut counts = Vec::new();
        for hole in (0..used).step_by(512) {
            let end = (hole + 512).min(used);
            OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .write_all_at(&vec![0; end - hole], hole as u64)
                .unwrap();
            cut_torn_end(original.path(), true).unwrap();
            let kept = std::fs::metadata(&path).unwrap().len();
            assert!(kept <= hole as u64, "{kept} bytes are kept before a hole at {hole}");
            let found = keys(original.path());
            assert_eq!(found, (0..found.len() as u64).collect::<Vec<_>>());
            counts.push(found.len());
            std::fs::write(&path, &bytes).unwrap();
        }
        assert!(counts.is_sorted() && counts[0] == 0 && *counts.last().unwrap() > 30, "{counts:?}");
    }
}
