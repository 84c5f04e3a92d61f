//! Writing the pages of a new state: which pages are shared, appended to in place, or newly written.
//!
//! Everything is written from the engine's own copy of the payload, so that the checksums are those of the bytes
//! on disk even when another process changes the payload meanwhile.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::ops::Range;

use super::api::{Damage, Origin};
use super::checksum;
use super::engine::Core;
use super::payload::Source;
use super::segments::Wait;
use super::state::{ContentState, Extent, HOLE, PAGE, PageNumber, compress, page_count};
use crate::types::{ChunkKey, Status};

thread_local! {
    static PAGE_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Call `work` with one page of scratch memory.
pub fn with_page_buffer<R>(work: impl FnOnce(&mut [u8]) -> R) -> R {
    PAGE_BUFFER.with_borrow_mut(|buffer| {
        buffer.resize(PAGE, 0);
        work(buffer)
    })
}

/// New content: `payload` at `offset`, the whole `length` bytes long; what neither covers reads as zeros.
pub struct Change<'a> {
    pub offset: usize,
    pub payload: &'a dyn Source,
    pub length: u32,
    /// Leave out pages of the payload that are all zeros: recovery keeps sparse chunks sparse.
    pub sparse: bool,
}

/// Pages written for a state that no record refers to yet.
pub struct Written {
    pub extents: Vec<Extent>,
    pub crcs: Vec<u32>,
    pub tail_used: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PageAction {
    /// The page of the state before.
    Share,
    Hole,
    /// In place, behind what any state ever used of the page.
    Append,
    Fresh,
}

impl Core {
    /// Write the pages in which the new content differs from `base`; take pages for them. On an error nothing
    /// is taken and `base` is untouched.
    pub fn write_content(
        &self,
        key: ChunkKey,
        base: &ContentState,
        change: &Change<'_>,
        origin: Origin,
    ) -> Result<Written, Status> {
        let plan = Plan::of(base, change);
        let wanted = plan.actions.iter().filter(|&&action| action == PageAction::Fresh).count() as u32;
        let fresh = self.take_pages(key, wanted, plan.page_before(), origin)?;
        let mut draft = plan.draft(&fresh);
        match self.write_pages(key, base, change, &mut draft) {
            Ok(()) => {
                self.note_backed(&fresh);
                Ok(draft.finish(base, change))
            }
            Err(status) => {
                let mut pages = self.pages.lock();
                fresh.iter().for_each(|&page| pages.free_page(page));
                Err(status)
            }
        }
    }

    /// Cut `base` to `length` bytes. Writes no data: only the last page's checksum changes.
    pub fn cut_content(&self, key: ChunkKey, base: &ContentState, length: u32) -> Result<Written, Status> {
        let count = page_count(length);
        assert!(length <= base.length, "a cut does not grow");
        let mut pages: Vec<_> = base.pages().collect();
        pages.truncate(count);
        let mut crcs = base.crcs[..count].to_vec();
        let mut tail_used = 0;
        if let Some(last) = count.checked_sub(1)
            && pages[last] != HOLE
        {
            let is_last_of_base = count == base.crcs.len();
            tail_used = if is_last_of_base { base.tail_used } else { PAGE as u32 };
            let valid = length as usize - last * PAGE;
            if valid < base.valid(last) {
                crcs[last] = with_page_buffer(|buffer| {
                    self.read_page(key, base, last, buffer)?;
                    Ok(checksum::crc32c(&buffer[..valid]))
                })?;
            }
        }
        Ok(Written { extents: compress(&pages), crcs, tail_used })
    }

    /// Read and verify page `index` of `state` into `buffer`, which is one page; zeros for a hole.
    pub fn read_page(
        &self,
        key: ChunkKey,
        state: &ContentState,
        index: usize,
        buffer: &mut [u8],
    ) -> Result<(), Status> {
        let valid = state.valid(index);
        let page = state.pages_between(index, index + 1)[0];
        if page == HOLE {
            buffer[..valid].fill(0);
            return Ok(());
        }
        let count = self
            .segments
            .read(address(page), &mut buffer[..valid], Wait::Yes)
            .map_err(|error| failed(&error))?;
        if count < valid || checksum::crc32c(&buffer[..valid]) != state.crcs[index] {
            self.report_damage(Damage { key, version: state.stamp.version, page: index as u32 });
            return Err(Status::Checksum);
        }
        Ok(())
    }

    /// `count` pages, consecutive if possible, or `NoSpace`.
    fn take_pages(
        &self,
        key: ChunkKey,
        count: u32,
        after: Option<PageNumber>,
        origin: Origin,
    ) -> Result<Vec<PageNumber>, Status> {
        if origin == Origin::Client && self.available_bytes()? < self.options.reserve_bytes + bytes_of(count)
        {
            // Pages that wait to be freed may be enough.
            self.reclaim()?;
            if self.available_bytes()? < self.options.reserve_bytes + bytes_of(count) {
                return Err(Status::NoSpace);
            }
        }
        if count == 0 {
            return Ok(Vec::new());
        }
        let spread = key.chunk.index ^ key.chunk.content.0 as u32;
        let extents = match self.allocate(count, after, spread)? {
            Some(extents) => extents,
            None => {
                self.reclaim()?;
                self.allocate(count, after, spread)?.ok_or(Status::NoSpace)?
            }
        };
        let pages: Vec<_> =
            extents.iter().flat_map(|extent| extent.first..extent.first + extent.count).collect();
        assert_eq!(pages.len(), count as usize, "as many pages as were asked for");
        Ok(pages)
    }

    fn allocate(
        &self,
        count: u32,
        after: Option<PageNumber>,
        spread: u32,
    ) -> Result<Option<Vec<Extent>>, Status> {
        // The last quarter of the reserve is the index's: without it nothing could be removed any more.
        let floor = self.options.reserve_bytes / 4;
        let is_roomy = self.file_system_free(false)? >= floor + bytes_of(count);
        let mut pages = self.pages.lock();
        if !is_roomy {
            return Ok(pages.allocate_backed(count));
        }
        let extents = pages.allocate(count, after, spread);
        drop(pages);
        self.took_space(bytes_of(count));
        Ok(extents)
    }

    /// Bytes that data could still take, our own unused pages included.
    fn available_bytes(&self) -> Result<u64, Status> {
        let free = self.file_system_free(false)?;
        Ok(free + self.pages.lock().free_backed() * PAGE as u64)
    }

    /// Free the pages that wait for it (`deferred_free`), if any.
    fn reclaim(&self) -> Result<(), Status> {
        if self.deferred_free.lock().pages() > 0 {
            self.sync()?;
        }
        Ok(())
    }

    fn note_backed(&self, fresh: &[PageNumber]) {
        let mut pages = self.pages.lock();
        fresh.iter().for_each(|&page| pages.note_backed(page));
    }

    fn write_pages(
        &self,
        key: ChunkKey,
        base: &ContentState,
        change: &Change<'_>,
        draft: &mut Draft,
    ) -> Result<(), Status> {
        self.blocks.with_block(|buffer| {
            let mut block = Block { core: self, buffer, address: 0, used: 0 };
            let mut place = 0;
            while place < draft.actions.len() {
                let direct = draft.direct_run(place, change);
                if direct > 0 {
                    block.flush()?;
                    self.write_direct(change, draft, place, direct)?;
                    place += direct;
                    continue;
                }
                let index = draft.first + place;
                let page = draft.pages[index];
                let valid = valid_bytes(change.length, index);
                match draft.actions[place] {
                    PageAction::Share | PageAction::Hole => {}
                    PageAction::Append => {
                        let before = base.valid(index);
                        let bytes = block.extend(address(page) + before as u64, valid - before)?;
                        fill(bytes, index * PAGE + before, change);
                        draft.crcs[index] = checksum::extend(base.crcs[index], bytes);
                    }
                    PageAction::Fresh => {
                        let bytes = block.extend(address(page), valid)?;
                        let data = data_in_page(change, index);
                        if data.len() == valid {
                            fill(bytes, index * PAGE, change);
                        } else {
                            self.merge(key, base, index, change, bytes)?;
                        }
                        draft.crcs[index] = checksum::crc32c(bytes);
                    }
                }
                place += 1;
            }
            block.flush()
        })
    }

    /// Write `count` pages from the payload's own memory, which does not change meanwhile.
    fn write_direct(
        &self,
        change: &Change<'_>,
        draft: &mut Draft,
        place: usize,
        count: usize,
    ) -> Result<(), Status> {
        assert!(count > 0 && place + count <= draft.actions.len(), "a run of pages of the draft");
        let index = draft.first + place;
        let end = (change.length as usize).min((index + count) * PAGE);
        let bytes = change.payload.stable().expect("checked by direct_run");
        let bytes = &bytes[index * PAGE - change.offset..end - change.offset];
        for (page, crc) in bytes.chunks(PAGE).zip(&mut draft.crcs[index..]) {
            *crc = checksum::crc32c(page);
        }
        self.segments.write(address(draft.pages[index]), bytes).map_err(|error| failed(&error))
    }

    /// The bytes of a page that holds old and new.
    fn merge(
        &self,
        key: ChunkKey,
        base: &ContentState,
        index: usize,
        change: &Change<'_>,
        bytes: &mut [u8],
    ) -> Result<(), Status> {
        let before = base.valid(index);
        let data = data_in_page(change, index);
        // Old bytes that the data does not cover on both sides are needed; else only zeros.
        if before > 0 && (data.start > 0 || data.end < before) {
            with_page_buffer(|buffer| {
                self.read_page(key, base, index, buffer)?;
                let kept = before.min(bytes.len());
                bytes[..kept].copy_from_slice(&buffer[..kept]);
                Ok(())
            })?;
        }
        if before < bytes.len() {
            bytes[before..].fill(0);
        }
        if !data.is_empty() {
            let from = index * PAGE + data.start - change.offset;
            change.payload.copy_to(from, &mut bytes[data]);
        }
        Ok(())
    }
}

/// Which pages the new state has, before any is taken.
struct Plan {
    /// Pages of `base`, as far as the new state has them.
    pages: Vec<PageNumber>,
    crcs: Vec<u32>,
    /// First page looked at; all before it are shared.
    first: usize,
    actions: Vec<PageAction>,
}

impl Plan {
    fn of(base: &ContentState, change: &Change<'_>) -> Plan {
        assert!(change.length >= base.length, "a write does not cut");
        let count = page_count(change.length);
        let mut pages: Vec<_> = base.pages().collect();
        let mut crcs = base.crcs.clone();
        // The first page that can change: where the data begins, or the last one before if it grows.
        let growing = if change.length > base.length { base.length as usize / PAGE } else { usize::MAX };
        let first = (change.offset / PAGE).min(growing).min(count);
        let actions: Vec<PageAction> =
            (first..count).map(|index| page_action(base, &pages, change, index)).collect();
        pages.resize(count, HOLE);
        crcs.resize(count, 0);
        assert_eq!(first + actions.len(), count, "an action for each page that may change");
        Plan { pages, crcs, first, actions }
    }

    /// The page that the first fresh one should follow.
    fn page_before(&self) -> Option<PageNumber> {
        let place = self.actions.iter().position(|&action| action == PageAction::Fresh)?;
        let index = self.first + place;
        // Overwritten pages are freed soon; only growing chunks want to continue their run.
        let before = self.pages[index.checked_sub(1)?];
        (before != HOLE && self.pages[index] == HOLE).then_some(before)
    }

    fn draft(mut self, fresh: &[PageNumber]) -> Draft {
        let mut next = fresh.iter();
        for (place, action) in self.actions.iter().enumerate() {
            let page = &mut self.pages[self.first + place];
            match action {
                PageAction::Share | PageAction::Append => {}
                PageAction::Hole => *page = HOLE,
                PageAction::Fresh => *page = *next.next().expect("as many as wanted were taken"),
            }
        }
        Draft { pages: self.pages, crcs: self.crcs, first: self.first, actions: self.actions }
    }
}

fn page_action(base: &ContentState, pages: &[PageNumber], change: &Change<'_>, index: usize) -> PageAction {
    let before = base.valid(index);
    let after = valid_bytes(change.length, index);
    let data = data_in_page(change, index);
    let has_page = before > 0 && pages[index] != HOLE;
    if data.is_empty() && (after == before || !has_page) {
        return if before == 0 || !has_page { PageAction::Hole } else { PageAction::Share };
    }
    let behind = data.is_empty() || data.start >= before;
    if has_page && behind && base.tail_used as usize <= before {
        return PageAction::Append;
    }
    if change.sparse && data.len() == after && is_zero(change, index, data) {
        return PageAction::Hole;
    }
    PageAction::Fresh
}

struct Draft {
    pages: Vec<PageNumber>,
    crcs: Vec<u32>,
    first: usize,
    actions: Vec<PageAction>,
}

impl Draft {
    /// How many pages from `place` on can be written straight from the payload: fresh, covered by it, consecutive,
    /// and the payload is in memory that only we use.
    fn direct_run(&self, place: usize, change: &Change<'_>) -> usize {
        if change.payload.stable().is_none() {
            return 0;
        }
        let first = self.pages[self.first + place];
        (place..self.actions.len())
            .take_while(|&at| {
                let index = self.first + at;
                self.actions[at] == PageAction::Fresh
                    && self.pages[index] == first + (at - place) as u32
                    && data_in_page(change, index) == (0..valid_bytes(change.length, index))
            })
            .count()
    }

    fn finish(self, base: &ContentState, change: &Change<'_>) -> Written {
        let tail_used = match self.pages.last() {
            None | Some(&HOLE) => 0,
            Some(_) => {
                let last = self.pages.len() - 1;
                let valid = valid_bytes(change.length, last) as u32;
                let is_shared = last < self.first || self.actions[last - self.first] == PageAction::Share;
                if is_shared { base.tail_used.max(valid) } else { valid }
            }
        };
        assert!(
            self.crcs.len() == self.pages.len() && self.pages.len() == page_count(change.length),
            "one checksum per page"
        );
        assert!(tail_used as usize <= PAGE, "bytes of the last page");
        Written { extents: compress(&self.pages), crcs: self.crcs, tail_used }
    }
}

/// Bytes that are contiguous on disk, gathered into one write.
struct Block<'a> {
    core: &'a Core,
    buffer: &'a mut [u8],
    address: u64,
    used: usize,
}

impl Block<'_> {
    /// Room for `count` bytes at `address`, to be filled before the next call.
    fn extend(&mut self, address: u64, count: usize) -> Result<&mut [u8], Status> {
        if self.address + self.used as u64 != address || self.used + count > self.buffer.len() {
            self.flush()?;
            self.address = address;
        }
        let start = self.used;
        self.used += count;
        assert!(self.used <= self.buffer.len(), "a page fits a block");
        Ok(&mut self.buffer[start..self.used])
    }

    fn flush(&mut self) -> Result<(), Status> {
        let bytes = &self.buffer[..std::mem::take(&mut self.used)];
        self.core.segments.write(self.address, bytes).map_err(|error| failed(&error))
    }
}

/// Copy the payload's bytes at chunk offset `from` into `bytes`; zeros before the payload's start.
fn fill(bytes: &mut [u8], from: usize, change: &Change<'_>) {
    let gap = change.offset.saturating_sub(from).min(bytes.len());
    bytes[..gap].fill(0);
    let rest = &mut bytes[gap..];
    if change.payload.is_empty() {
        rest.fill(0);
    } else if !rest.is_empty() {
        change.payload.copy_to(from + gap - change.offset, rest);
    }
}

fn is_zero(change: &Change<'_>, index: usize, data: Range<usize>) -> bool {
    with_page_buffer(|buffer| {
        let bytes = &mut buffer[..data.len()];
        change.payload.copy_to(index * PAGE + data.start - change.offset, bytes);
        bytes.iter().all(|&byte| byte == 0)
    })
}

/// The part of page `index` that the payload covers.
fn data_in_page(change: &Change<'_>, index: usize) -> Range<usize> {
    let start = index * PAGE;
    let end = change.offset + change.payload.len();
    if change.payload.is_empty() || end <= start || change.offset >= start + PAGE {
        return 0..0;
    }
    change.offset.saturating_sub(start)..(end - start).min(PAGE)
}

fn valid_bytes(length: u32, index: usize) -> usize {
    (length as usize).saturating_sub(index * PAGE).min(PAGE)
}

pub fn address(page: PageNumber) -> u64 {
    u64::from(page) * PAGE as u64
}

fn bytes_of(count: u32) -> u64 {
    u64::from(count) * PAGE as u64
}

/// What a failed read or write of a block file means to the caller.
pub fn failed(error: &io::Error) -> Status {
    log::error!("access to a block file failed: {error}");
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => Status::NoSpace,
        _ => Status::Io,
    }
}
