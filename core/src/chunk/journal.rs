//! The end of the index's journal after power loss.
//!
//! What was appended to the journal since its last sync reaches the disk in pieces and in any order. fjall takes an end
//! that is merely short for what it is, but not one with a hole in it: it refuses to open, or misreads lengths. So the
//! newest journal is cut behind its last whole batch before fjall sees it. Everything synced is before that. Older
//! journals were synced before the next was begun: damage in them is damage.
//!
//! Where no power was lost the kernel has kept the order of what was appended, and a journal ends with the beginning of
//! a batch at most. If a whole batch follows it, or the journal ends with the record of an end, then what precedes that
//! was damaged, synced or not, and nothing is cut. Keys and values may hold any bytes, so others say nothing.
//!
//! Source of the format: fjall 3.1, journal/entry.rs. A batch is a start (tag 1, u32 items, u64 sequence number), items
//! (tag 2, u8 kind, u8 compression, u64 keyspace, u16 key length, u32 value length, u32 its length here, key, value;
//! or tag 4, u64 keyspace: cleared), and an end (tag 3, u64 XXH3 of the items, "FJL\x03"). Little-endian.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, ErrorKind, Read, Seek};
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
const END_BYTES: usize = 1 + 8 + TRAILER.len();
/// Copied at once from a key or value to the checksum.
const BLOCK_BYTES: usize = 64 << 10;
/// Read of what may be a batch: most are none, which its first bytes show.
const CANDIDATE_BYTES: usize = 256;

/// Cut the newest journal in `dir` behind its last whole batch. No one may have it open.
///
/// Raises `InvalidData` if more than the beginning of a batch would go, unless it `may_be_torn` by power loss.
pub fn cut_torn_end(dir: &Path, may_be_torn: bool) -> io::Result<()> {
    let Some(path) = newest(dir)? else { return Ok(()) };
    let file = OpenOptions::new().read(true).write(true).open(&path)?;
    let length = file.metadata()?.len();
    let whole = whole_bytes(&file, length)?;
    if whole < length {
        if !may_be_torn && has_end_of_batch(&file, whole, length)? {
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
    let mut reader = Batches::new(file, 0, length, BLOCK_BYTES)?;
    let mut whole = 0;
    while reader.has_batch()? {
        whole = length - reader.left;
    }
    Ok(whole)
}

/// Whether behind `at`, where no whole batch begins, one does, or the journal ends with the record of an end.
fn has_end_of_batch(file: &File, at: u64, length: u64) -> io::Result<bool> {
    let mut block = vec![0; BLOCK_BYTES];
    let mut used = at; // behind the last byte that is not zero
    let mut next = at + 1;
    while let Some(data) = next_data(file, next)? {
        let count = file.read_at(&mut block, data)?;
        for (at, &byte) in (data..).zip(&block[..count]).filter(|&(_, &byte)| byte != 0) {
            used = at + 1;
            if byte == START && Batches::new(file, at, length, CANDIDATE_BYTES)?.has_batch()? {
                return Ok(true);
            }
        }
        next = data + count as u64;
    }
    let mut end = [0; END_BYTES];
    let Some(begin) = used.checked_sub(END_BYTES as u64).filter(|&begin| begin >= at) else {
        return Ok(false);
    };
    file.read_exact_at(&mut end, begin)?;
    Ok(end[0] == END && end.ends_with(&TRAILER))
}

/// Where data begins at or behind `at`. Holes are passed over: a journal has its size from its beginning.
fn next_data(file: &File, at: u64) -> io::Result<Option<u64>> {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => Ok(Some(data)),
        Err(Errno::NXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

struct Batches<'a> {
    file: BufReader<&'a File>,
    left: u64,
}

impl<'a> Batches<'a> {
    /// Read from `at` to `length`, `block_bytes` at once.
    fn new(mut file: &'a File, at: u64, length: u64, block_bytes: usize) -> io::Result<Batches<'a>> {
        file.seek(io::SeekFrom::Start(at))?;
        Ok(Batches { file: BufReader::with_capacity(block_bytes, file), left: length - at })
    }

    /// Whether a whole batch comes next; reads it.
    fn has_batch(&mut self) -> io::Result<bool> {
        match self.batch() {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
            found => found,
        }
    }

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

    /// Where the batches of a journal begin, and where the last one ends.
    fn bounds(path: &Path) -> Vec<usize> {
        let file = File::open(path).unwrap();
        let length = file.metadata().unwrap().len();
        let mut reader = Batches::new(&file, 0, length, BLOCK_BYTES).unwrap();
        let mut found = vec![0];
        while reader.has_batch().unwrap() {
            found.push((length - reader.left) as usize);
        }
        found
    }

    /// `kill -9` leaves any beginning of a batch, whose values may look like the end of one.
    #[test]
    fn a_beginning_of_a_batch_is_cut_whatever_its_values_hold() {
        let dir = directory();
        journal(dir.path());
        let database = Database::builder(dir.path()).open().unwrap();
        let keyspace = database.keyspace("numbers", KeyspaceCreateOptions::default).unwrap();
        let mut value = vec![7; 40];
        value.extend(TRAILER);
        value.extend([END, 1, 2, 3, 4, 5, 6, 7, 8]);
        value.extend(TRAILER);
        value.extend([START, 9, START, ITEM, END]);
        let mut batch = database.batch().durability(Some(PersistMode::Buffer));
        batch.insert(&keyspace, COUNT.to_be_bytes(), value);
        batch.commit().unwrap();
        drop((keyspace, database));

        let path = newest(dir.path()).unwrap().unwrap();
        let &[.., begin, end] = &bounds(&path)[..] else { panic!("there are batches") };
        let bytes = &std::fs::read(&path).unwrap()[..end];
        let like_an_end =
            begin + bytes[begin..end - 1].windows(4).rposition(|found| found == TRAILER).unwrap() + 4;
        // Left out: a journal that ends like one with a whole batch, of which a length was damaged.
        for torn in (begin + 1..end).filter(|&torn| torn != like_an_end) {
            std::fs::write(&path, [&bytes[..torn], &[0; 1000]].concat()).unwrap();
            cut_torn_end(dir.path(), false)
                .unwrap_or_else(|error| panic!("torn at {torn} of {end}: {error}"));
        }
    }

    /// A changed bit in what is checked of one of the last two batches: nothing was torn.
    #[test]
    fn damage_is_no_beginning_of_a_batch() {
        let dir = directory();
        let path = journal(dir.path());
        let &[.., before, last, end] = &bounds(&path)[..] else { panic!("there are batches") };
        let bytes = [&std::fs::read(&path).unwrap()[..end], &[0; 1000]].concat();
        for (begin, end) in [(before, last), (last, end)] {
            let sequence_number = begin + 5..begin + 13; // which nothing checks
            for damaged in (begin..end - END_BYTES).filter(|at| !sequence_number.contains(at)).step_by(3) {
                let mut left = bytes.clone();
                left[damaged] ^= 0x40;
                std::fs::write(&path, &left).unwrap();
                let found = cut_torn_end(dir.path(), false);
                let error = found.err().unwrap_or_else(|| panic!("damaged at {damaged} of {begin}..{end}"));
                assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
            }
        }
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
