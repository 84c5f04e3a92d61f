//! Reads, every page verified.

use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::Arc;

use super::api::*;
use super::checksum;
use super::engine::{Core, Engine};
use super::page_writer::{address, failed, with_page_buffer};
use super::payload::Sink;
use super::segments::Wait;
use super::state::{ContentState, HOLE, PAGE, PageNumber, Record, compress};
use crate::types::{ChunkKey, Status};

/// Bytes read before they are verified: small enough to be still in a core's cache, large enough that the
/// system call does not count.
const BLOCK_PAGES: usize = 16;
/// A pending state may be dropped and written over while it is read; then the one that took its place is read.
const ATTEMPTS_MAX: usize = 8;

#[derive(Clone, Copy)]
enum Which {
    Committed,
    Pending,
}

impl Which {
    fn of(self, record: &Record) -> Option<&Arc<ContentState>> {
        match self {
            Which::Committed => record.committed.as_ref().filter(|state| !state.removed),
            Which::Pending => record.pending.as_ref().map(|pending| &pending.state),
        }
    }
}

impl Engine {
    /// All that is known of a chunk; `None` if it was never written (or its tombstone was purged).
    pub fn lookup(&self, key: ChunkKey) -> Result<Option<ChunkState>, Status> {
        let (_slot, record) = self.core.record(key)?;
        if record.is_absent() {
            return Ok(None);
        }
        Ok(Some(ChunkState {
            committed: record.committed.as_ref().map(|state| state.committed()),
            pending: record.pending.as_ref().map(|pending| pending.pending()),
            writers: record.writers.clone(),
        }))
    }

    /// Length of the committed content; 0 if there is none.
    pub fn length(&self, key: ChunkKey) -> Result<u32, Status> {
        let (_slot, record) = self.core.record(key)?;
        Ok(record.committed.as_ref().map_or(0, |state| state.length))
    }

    /// Read committed bytes from `offset` on, at most `into.len()`, each page verified. Never waits for an update.
    /// `NotFound` for a chunk without committed content; a read at or past the end places nothing.
    /// After an error the content of `into` is undefined.
    pub fn read(&self, key: ChunkKey, offset: u32, into: &mut dyn Sink) -> Result<ReadOutcome, Status> {
        self.read_of(key, offset, into, Which::Committed, Wait::Yes)
            .map(|outcome| outcome.expect("it waited"))
    }

    /// As `read`, if all bytes are in the page cache. `None`: they are not, and the disk has begun to read what is missing.
    pub fn read_cached(
        &self,
        key: ChunkKey,
        offset: u32,
        into: &mut dyn Sink,
    ) -> Result<Option<ReadOutcome>, Status> {
        self.read_of(key, offset, into, Which::Committed, Wait::No)
    }

    /// Like `read`, of the chunk as it will be once its pending version is committed; `NotFound` without one.
    pub fn read_pending(
        &self,
        key: ChunkKey,
        offset: u32,
        into: &mut dyn Sink,
    ) -> Result<ReadOutcome, Status> {
        self.read_of(key, offset, into, Which::Pending, Wait::Yes).map(|outcome| outcome.expect("it waited"))
    }

    /// Read and verify every page of a chunk's committed state (and pending one); the damaged ones.
    pub fn verify(&self, key: ChunkKey) -> Result<Vec<Damage>, Status> {
        let (_slot, record) = self.core.record(key)?;
        let mut damaged = Vec::new();
        for state in record.states() {
            for index in 0..state.crcs.len() {
                match with_page_buffer(|buffer| self.core.check_page(state, index, buffer)) {
                    Ok(()) => {}
                    Err(Status::Checksum) => damaged.push(self.core.damage_at(key, state, index)),
                    Err(status) => return Err(status),
                }
            }
        }
        damaged.dedup();
        Ok(damaged)
    }

    fn read_of(
        &self,
        key: ChunkKey,
        offset: u32,
        into: &mut dyn Sink,
        which: Which,
        wait: Wait,
    ) -> Result<Option<ReadOutcome>, Status> {
        for _ in 0..ATTEMPTS_MAX {
            let (slot, record) = self.core.record(key)?;
            let state = which.of(&record).ok_or(Status::NotFound)?;
            match self.core.read_state(state, offset as usize, into, wait) {
                Ok(length) => {
                    assert!(
                        length <= into.len() && length <= state.length as usize,
                        "{key:?}: bytes of the chunk"
                    );
                    return Ok(Some(ReadOutcome {
                        length: length as u32,
                        stamp: state.stamp,
                        chunk_length: state.length,
                        pending: record.pending.as_ref().map(|pending| pending.state.stamp.version),
                    }));
                }
                Err(Fault::NotCached) => return Ok(None),
                Err(Fault::Failed(status)) => return Err(status),
                Err(Fault::Damaged(index)) => {
                    let now = self.core.record_of(key, &slot)?;
                    if which.of(&now).is_some_and(|now| Arc::ptr_eq(now, state)) {
                        self.core.damage_at(key, state, index);
                        return Err(Status::Checksum);
                    }
                }
            }
        }
        Err(Status::Busy)
    }
}

/// Why a read of one state did not succeed.
enum Fault {
    /// That page does not match its checksum, or its file ends before it.
    Damaged(usize),
    /// It would have waited for the disk.
    NotCached,
    Failed(Status),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Fault {
        match error.kind() {
            ErrorKind::WouldBlock => Fault::NotCached,
            _ => Fault::Failed(failed(&error)),
        }
    }
}

impl Core {
    fn damage_at(&self, key: ChunkKey, state: &ContentState, index: usize) -> Damage {
        let damage = Damage { key, version: state.stamp.version, page: index as u32 };
        self.report_damage(damage);
        damage
    }

    /// Whether every page of a state matches its checksum.
    pub fn is_intact(&self, state: &ContentState) -> bool {
        (0..state.crcs.len())
            .all(|index| with_page_buffer(|buffer| self.check_page(state, index, buffer)).is_ok())
    }

    fn check_page(&self, state: &ContentState, index: usize, buffer: &mut [u8]) -> Result<(), Status> {
        let page = state.pages_between(index, index + 1)[0];
        if page == HOLE {
            return Ok(());
        }
        match self.load_page(state, index, page, buffer, Wait::Yes) {
            Ok(()) => Ok(()),
            Err(Fault::Damaged(_)) => Err(Status::Checksum),
            Err(Fault::Failed(status)) => Err(status),
            Err(Fault::NotCached) => unreachable!("it waited"),
        }
    }

    fn read_state(
        &self,
        state: &ContentState,
        offset: usize,
        into: &mut dyn Sink,
        wait: Wait,
    ) -> Result<usize, Fault> {
        let end = (state.length as usize).min(offset.saturating_add(into.len()));
        if offset >= end {
            return Ok(0);
        }
        let pages = state.pages_between(offset / PAGE, end.div_ceil(PAGE));
        assert_eq!(pages.len(), end.div_ceil(PAGE) - offset / PAGE, "a state has all its pages");
        let read = self.read_pages(state, &pages, offset..end, into, wait);
        if let Err(Fault::NotCached) = read {
            // All that is missing at once, which is more than the kernel would read ahead.
            compress(&pages)
                .into_iter()
                .filter(|run| run.first != HOLE)
                .for_each(|run| self.segments.prefetch(run));
        }
        read.map(|()| end - offset)
    }

    fn read_pages(
        &self,
        state: &ContentState,
        pages: &[PageNumber],
        Range { start: offset, end }: Range<usize>,
        into: &mut dyn Sink,
        wait: Wait,
    ) -> Result<(), Fault> {
        let first = offset / PAGE;
        let mut place = 0;
        while place < pages.len() {
            let index = first + place;
            let whole = self.whole_pages(state, index, &pages[place..], offset, end);
            if whole == 0 {
                self.read_part(state, index, pages[place], offset..end, into, wait)?;
                place += 1;
                continue;
            }
            let at = index * PAGE - offset;
            if pages[place] == HOLE {
                into.zero(at, end.min((index + whole) * PAGE) - index * PAGE);
            } else {
                self.read_whole(state, index, &pages[place..place + whole], at, into, wait)?;
            }
            place += whole;
        }
        Ok(())
    }

    /// How many pages from `index` on are wanted whole and form one run, at most a block; holes are a run.
    fn whole_pages(
        &self,
        state: &ContentState,
        index: usize,
        pages: &[PageNumber],
        offset: usize,
        end: usize,
    ) -> usize {
        let is_whole = |index: usize| index * PAGE >= offset && index * PAGE + state.valid(index) <= end;
        let follows = |place: usize| match pages[0] {
            HOLE => pages[place] == HOLE,
            first => pages[place] == first.wrapping_add(place as u32) && pages[place] != HOLE,
        };
        let limit = if pages[0] == HOLE { usize::MAX } else { BLOCK_PAGES };
        (0..pages.len()).take(limit).take_while(|&place| is_whole(index + place) && follows(place)).count()
    }

    /// Read whole pages straight to where they belong and verifies them there.
    fn read_whole(
        &self,
        state: &ContentState,
        index: usize,
        pages: &[PageNumber],
        at: usize,
        into: &mut dyn Sink,
        wait: Wait,
    ) -> Result<(), Fault> {
        assert!(!pages.is_empty() && pages[0] != HOLE, "a run of pages");
        let last = index + pages.len() - 1;
        let length = (pages.len() - 1) * PAGE + state.valid(last);
        let count = self.segments.read_into(address(pages[0]), into, at, length, wait)?;
        for (place, &page) in pages.iter().enumerate() {
            let valid = state.valid(index + place);
            let is_there = place * PAGE + valid <= count;
            if is_there && into.crc32c(at + place * PAGE, valid) == state.crcs[index + place] {
                continue;
            }
            // Another process may have changed the caller's memory; the copy in our own memory counts.
            with_page_buffer(|buffer| {
                self.load_page(state, index + place, page, buffer, wait)?;
                into.copy_from(at + place * PAGE, &buffer[..valid]);
                Ok::<(), Fault>(())
            })?;
        }
        Ok(())
    }

    /// Read a page of which only a part is wanted.
    fn read_part(
        &self,
        state: &ContentState,
        index: usize,
        page: PageNumber,
        wanted: Range<usize>,
        into: &mut dyn Sink,
        wait: Wait,
    ) -> Result<(), Fault> {
        let start = wanted.start.max(index * PAGE);
        let end = wanted.end.min(index * PAGE + state.valid(index));
        assert!(start < end && wanted.start <= start, "a part of the page is wanted");
        let at = start - wanted.start;
        if page == HOLE {
            into.zero(at, end - start);
            return Ok(());
        }
        with_page_buffer(|buffer| {
            self.load_page(state, index, page, buffer, wait)?;
            into.copy_from(at, &buffer[start - index * PAGE..end - index * PAGE]);
            Ok(())
        })
    }

    /// Read and verify one page into our own memory.
    fn load_page(
        &self,
        state: &ContentState,
        index: usize,
        page: PageNumber,
        buffer: &mut [u8],
        wait: Wait,
    ) -> Result<(), Fault> {
        assert!(page != HOLE && index < state.crcs.len(), "a page of the state");
        let bytes = &mut buffer[..state.valid(index)];
        let count = self.segments.read(address(page), bytes, wait)?;
        if count < bytes.len() || checksum::crc32c(bytes) != state.crcs[index] {
            return Err(Fault::Damaged(index));
        }
        Ok(())
    }
}
