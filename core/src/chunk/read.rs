//! Reads, every page verified.

use std::sync::Arc;

use super::api::*;
use super::checksum;
use super::content::{address, failed, with_page_buffer};
use super::engine::{Core, Engine};
use super::payload::Sink;
use super::state::{HOLE, PAGE, PageNumber, Record, State};
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
    fn of(self, record: &Record) -> Option<&Arc<State>> {
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

    /// Reads committed bytes from `offset` on, at most `into.len()`, each page verified. Never waits for an update.
    /// `NotFound` for a chunk without committed content; a read at or past the end places nothing.
    /// After an error the content of `into` is undefined.
    pub fn read(&self, key: ChunkKey, offset: u32, into: &mut dyn Sink) -> Result<ReadOutcome, Status> {
        self.read_of(key, offset, into, Which::Committed)
    }

    /// Like `read`, of the chunk as it will be once its pending version is committed; `NotFound` without one.
    pub fn read_pending(
        &self,
        key: ChunkKey,
        offset: u32,
        into: &mut dyn Sink,
    ) -> Result<ReadOutcome, Status> {
        self.read_of(key, offset, into, Which::Pending)
    }

    /// Reads and verifies every page of a chunk's committed state (and pending one); the damaged ones.
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
    ) -> Result<ReadOutcome, Status> {
        for _ in 0..ATTEMPTS_MAX {
            let (slot, record) = self.core.record(key)?;
            let state = which.of(&record).ok_or(Status::NotFound)?;
            match self.core.read_state(state, offset as usize, into) {
                Ok(length) => {
                    return Ok(ReadOutcome {
                        length: length as u32,
                        stamp: state.stamp,
                        chunk_length: state.length,
                        pending: record.pending.as_ref().map(|pending| pending.state.stamp.version),
                    });
                }
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
    Failed(Status),
}

impl Core {
    fn damage_at(&self, key: ChunkKey, state: &State, index: usize) -> Damage {
        let damage = Damage { key, version: state.stamp.version, page: index as u32 };
        self.report_damage(damage);
        damage
    }

    /// Whether every page of a state matches its checksum.
    pub fn is_intact(&self, state: &State) -> bool {
        (0..state.crcs.len())
            .all(|index| with_page_buffer(|buffer| self.check_page(state, index, buffer)).is_ok())
    }

    fn check_page(&self, state: &State, index: usize, buffer: &mut [u8]) -> Result<(), Status> {
        let page = state.pages_between(index, index + 1)[0];
        if page == HOLE {
            return Ok(());
        }
        match self.load_page(state, index, page, buffer) {
            Ok(()) => Ok(()),
            Err(Fault::Damaged(_)) => Err(Status::Checksum),
            Err(Fault::Failed(status)) => Err(status),
        }
    }

    fn read_state(&self, state: &State, offset: usize, into: &mut dyn Sink) -> Result<usize, Fault> {
        let end = (state.length as usize).min(offset.saturating_add(into.len()));
        if offset >= end {
            return Ok(0);
        }
        let first = offset / PAGE;
        let pages = state.pages_between(first, end.div_ceil(PAGE));
        let mut place = 0;
        while place < pages.len() {
            let index = first + place;
            let whole = self.whole_pages(state, index, &pages[place..], offset, end);
            if whole == 0 {
                self.read_part(state, index, pages[place], offset..end, into)?;
                place += 1;
                continue;
            }
            let at = index * PAGE - offset;
            if pages[place] == HOLE {
                into.zero(at, end.min((index + whole) * PAGE) - index * PAGE);
            } else {
                self.read_whole(state, index, &pages[place..place + whole], at, into)?;
            }
            place += whole;
        }
        Ok(end - offset)
    }

    /// How many pages from `index` on are wanted whole and lie in one run, at most a block; holes are a run.
    fn whole_pages(
        &self,
        state: &State,
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

    /// Reads whole pages straight to where they belong and verifies them there.
    fn read_whole(
        &self,
        state: &State,
        index: usize,
        pages: &[PageNumber],
        at: usize,
        into: &mut dyn Sink,
    ) -> Result<(), Fault> {
        let last = index + pages.len() - 1;
        let length = (pages.len() - 1) * PAGE + state.valid(last);
        let count = self
            .segments
            .read_into(address(pages[0]), into, at, length)
            .map_err(|error| Fault::Failed(failed(&error)))?;
        for (place, &page) in pages.iter().enumerate() {
            let valid = state.valid(index + place);
            let is_there = place * PAGE + valid <= count;
            if is_there && into.crc32c(at + place * PAGE, valid) == state.crcs[index + place] {
                continue;
            }
            // Perhaps somebody changed the caller's memory; what counts is what our own memory gets.
            with_page_buffer(|buffer| {
                self.load_page(state, index + place, page, buffer)?;
                into.copy_from(at + place * PAGE, &buffer[..valid]);
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Reads a page of which only a part is wanted.
    fn read_part(
        &self,
        state: &State,
        index: usize,
        page: PageNumber,
        wanted: std::ops::Range<usize>,
        into: &mut dyn Sink,
    ) -> Result<(), Fault> {
        let start = wanted.start.max(index * PAGE);
        let end = wanted.end.min(index * PAGE + state.valid(index));
        let at = start - wanted.start;
        if page == HOLE {
            into.zero(at, end - start);
            return Ok(());
        }
        with_page_buffer(|buffer| {
            self.load_page(state, index, page, buffer)?;
            into.copy_from(at, &buffer[start - index * PAGE..end - index * PAGE]);
            Ok(())
        })
    }

    /// Reads and verifies one page into our own memory.
    fn load_page(
        &self,
        state: &State,
        index: usize,
        page: PageNumber,
        buffer: &mut [u8],
    ) -> Result<(), Fault> {
        let bytes = &mut buffer[..state.valid(index)];
        let count =
            self.segments.read(address(page), bytes).map_err(|error| Fault::Failed(failed(&error)))?;
        if count < bytes.len() || checksum::crc32c(bytes) != state.crcs[index] {
            return Err(Fault::Damaged(index));
        }
        Ok(())
    }
}
