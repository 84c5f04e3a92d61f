//! The block files: large, sparse, addressed by page.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, IoSliceMut};
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::lock::RwLock;
use rustix::fs::{Advice, FallocateFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::accesses::Accesses;
use super::api::EngineOptions;
use super::payload::Sink;
use super::state::{Extent, HOLE, PAGE, PageNumber};
use crate::buffer::begin_write_back;

/// Runs of at least this many bytes are written back at once: a stream keeps the disk busy before somebody syncs. Shorter
/// ones are left to the kernel, which gathers them, and cost a system call each.
const WRITE_BACK_BYTES_MIN: usize = 256 << 10;
const _: () = assert!(WRITE_BACK_BYTES_MIN.is_multiple_of(PAGE), "whole pages are written back");

pub struct Segments {
    dir: PathBuf,
    bytes: u64,
    files: RwLock<Vec<Option<Arc<Segment>>>>,
    /// A block file was made since the directory was last synced.
    has_new: AtomicBool,
    on_write: Option<fn()>,
    on_round: Option<fn()>,
    accesses: Arc<Accesses>,
    #[cfg(test)]
    pub(super) faults: super::faults::Faults,
}

struct Segment {
    file: File,
    /// Written since the last `sync` began. Set after the write, cleared before the flush: an acknowledged write
    /// is never missed.
    dirty: AtomicBool,
}

/// Whether a read may wait for the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    Yes,
    /// Only what is in the page cache is read.
    No,
}

impl Segment {
    fn read(&self, into: &mut [u8], position: u64, wait: Wait) -> io::Result<usize> {
        if wait == Wait::No {
            let read = preadv2(&self.file, &mut [IoSliceMut::new(into)], position, ReadWriteFlags::NOWAIT);
            if read != Err(Errno::OPNOTSUPP) {
                return Ok(read?);
            }
        }
        self.file.read_at(into, position)
    }
}

impl Segments {
    pub fn new(dir: PathBuf, options: &EngineOptions, bytes: u64, accesses: Arc<Accesses>) -> Segments {
        Segments {
            dir,
            bytes,
            files: RwLock::default(),
            has_new: AtomicBool::new(false),
            on_write: options.on_write,
            on_round: options.on_round,
            accesses,
            #[cfg(test)]
            faults: super::faults::Faults::default(),
        }
    }

    pub fn segment_pages(&self) -> u32 {
        assert!(self.bytes.is_multiple_of(PAGE as u64), "a block file is whole pages");
        (self.bytes / PAGE as u64) as u32
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Open a block file that exists or that the index refers to. One that is missing or too short becomes
    /// whole again with zeros, which do not match what checksums say.
    pub fn open_known(&self, number: u32) -> io::Result<()> {
        self.segment(number).map(|_| ())
    }

    /// Write all of `bytes` at `address`, counted from the first byte of segment 0.
    pub fn write(&self, mut address: u64, mut bytes: &[u8]) -> io::Result<()> {
        let _access = self.accesses.begin();
        if let Some(on_write) = self.on_write {
            on_write();
        }
        while !bytes.is_empty() {
            let (segment, position, room) = self.at(address)?;
            let (now, rest) = bytes.split_at(bytes.len().min(room));
            #[cfg(test)]
            self.faults.on_write()?;
            segment.file.write_all_at(now, position)?;
            segment.dirty.store(true, Ordering::Release);
            if now.len() >= WRITE_BACK_BYTES_MIN {
                begin_write_back(&segment.file, position, now.len());
                #[cfg(test)]
                self.faults.write_back_bytes.fetch_add(now.len(), Ordering::Relaxed);
            }
            address += now.len() as u64;
            bytes = rest;
        }
        Ok(())
    }

    /// Read up to `into.len()` bytes; fewer where a file ends. Errors: `WouldBlock`, if it may not wait.
    pub fn read(&self, mut address: u64, mut into: &mut [u8], wait: Wait) -> io::Result<usize> {
        let _access = self.accesses.begin();
        let mut done = 0;
        while !into.is_empty() {
            let (segment, position, room) = self.at(address)?;
            let now = into.len().min(room);
            #[cfg(test)]
            self.faults.on_read()?;
            match segment.read(&mut into[..now], position, wait) {
                Ok(0) => break,
                Ok(count) => {
                    done += count;
                    address += count as u64;
                    into = &mut into[count..];
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Read up to `length` bytes into `sink` at `offset`; fewer where a file ends. Errors: `WouldBlock`, if it may not
    /// wait.
    pub fn read_into(
        &self,
        address: u64,
        sink: &mut dyn Sink,
        offset: usize,
        length: usize,
        wait: Wait,
    ) -> io::Result<usize> {
        let _access = self.accesses.begin();
        let mut done = 0;
        while done < length {
            let (segment, position, room) = self.at(address + done as u64)?;
            let now = (length - done).min(room);
            #[cfg(test)]
            self.faults.on_read()?;
            match sink.fill(offset + done, now, &|into| segment.read(into, position, wait)) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Begin to read `extent` into the page cache. It is read all the same where that does not work.
    pub fn prefetch(&self, extent: Extent) {
        let _access = self.accesses.begin();
        let mut address = extent.first as u64 * PAGE as u64;
        let mut left = extent.count as u64 * PAGE as u64;
        while left > 0 {
            let Ok((segment, position, room)) = self.at(address) else { return };
            let now = left.min(room as u64);
            let _ = rustix::fs::fadvise(&segment.file, position, NonZeroU64::new(now), Advice::WillNeed);
            address += now;
            left -= now;
        }
    }

    /// The next `sync` flushes every file that is open: a process before this one may have written them.
    pub fn suspect_all(&self) {
        for segment in self.files.read().iter().flatten() {
            segment.dirty.store(true, Ordering::Release);
        }
        self.has_new.store(true, Ordering::Release);
    }

    /// Make everything written before the call durable. An error is final: the kernel may have dropped the
    /// pages that it could not write, so a later success proves nothing.
    pub fn sync(&self) -> io::Result<()> {
        let _access = self.accesses.begin();
        if self.has_new.swap(false, Ordering::AcqRel) {
            sync_directory(&self.dir)?;
        }
        let files: Vec<_> = self.files.read().iter().flatten().cloned().collect();
        for segment in files {
            if segment.dirty.swap(false, Ordering::AcqRel) {
                #[cfg(test)]
                self.faults.on_sync()?;
                segment.file.sync_data()?;
                self.pause();
            }
        }
        Ok(())
    }

    /// A step of a round of `sync` is done.
    pub fn pause(&self) {
        if let Some(on_round) = self.on_round {
            on_round();
        }
    }

    /// Give the space of `extent` back to the file system.
    pub fn punch(&self, extent: Extent) -> io::Result<()> {
        assert!(extent.first != HOLE && extent.count > 0, "pages of a block file");
        let mut address = extent.first as u64 * PAGE as u64;
        let mut left = extent.count as u64 * PAGE as u64;
        while left > 0 {
            let (segment, position, room) = self.at(address)?;
            let now = left.min(room as u64);
            let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&segment.file, flags, position, now)?;
            address += now;
            left -= now;
        }
        Ok(())
    }

    /// The pages of a block file that have space on the disk.
    pub fn backed_pages(&self, number: u32) -> io::Result<Vec<PageNumber>> {
        let segment = self.segment(number)?;
        let first = number * self.segment_pages();
        let mut pages = Vec::new();
        let mut from = 0;
        while from < self.bytes {
            let data = match rustix::fs::seek(&segment.file, SeekFrom::Data(from)) {
                Ok(data) => data,
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let hole = rustix::fs::seek(&segment.file, SeekFrom::Hole(data))?.min(self.bytes);
            // A page counts when it begins in data: an append in place may have backed only its first part.
            pages.extend(data.div_ceil(PAGE as u64) as u32..hole.div_ceil(PAGE as u64) as u32);
            from = hole.max(data + 1);
        }
        Ok(pages.into_iter().map(|page| first + page).collect())
    }

    #[cfg(test)]
    pub(super) fn drop_cached(&self) -> bool {
        const TMPFS: i64 = 0x0102_1994;
        self.files.read().iter().flatten().all(|segment| {
            rustix::fs::fadvise(&segment.file, 0, None, Advice::DontNeed).unwrap();
            rustix::fs::fstatfs(&segment.file).unwrap().f_type != TMPFS
        })
    }

    fn path(&self, number: u32) -> PathBuf {
        self.dir.join(format!("{number:08}.blk"))
    }

    /// The segment, the position in its file, and the bytes up to its end.
    fn at(&self, address: u64) -> io::Result<(Arc<Segment>, u64, usize)> {
        let position = address % self.bytes;
        assert!(address / self.bytes <= u64::from(u32::MAX), "a page number is 32 bits");
        let segment = self.segment((address / self.bytes) as u32)?;
        Ok((segment, position, (self.bytes - position) as usize))
    }

    fn segment(&self, number: u32) -> io::Result<Arc<Segment>> {
        if let Some(Some(segment)) = self.files.read().get(number as usize) {
            return Ok(segment.clone());
        }
        let mut files = self.files.write();
        if files.len() <= number as usize {
            files.resize(number as usize + 1, None);
        }
        let entry = &mut files[number as usize];
        if entry.is_none() {
            *entry = Some(Arc::new(self.open(number)?));
        }
        Ok(entry.clone().expect("just opened"))
    }

    fn open(&self, number: u32) -> io::Result<Segment> {
        let path = self.path(number);
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        if file.metadata()?.len() < self.bytes {
            file.set_len(self.bytes)?;
            self.has_new.store(true, Ordering::Release);
        }
        Ok(Segment { file, dirty: AtomicBool::new(false) })
    }
}

/// Numbers and lengths of the block files in `dir`.
pub fn existing(dir: &Path) -> io::Result<BTreeMap<u32, u64>> {
    let mut lengths = BTreeMap::new();
    for entry in dir.read_dir()? {
        let entry = entry?;
        let name = entry.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.strip_suffix(".blk")?.parse().ok()) {
            lengths.insert(number, entry.metadata()?.len());
        }
    }
    Ok(lengths)
}

pub fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
