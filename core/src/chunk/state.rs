//! One state of a chunk, and the record that holds a chunk's states. Values; nothing here does I/O.

use std::sync::Arc;

use super::api::{Committed, Pending};
use super::checksum;
use crate::buffer::ALIGNMENT;
use crate::types::{CHUNK_BYTES_MAX, Op, PAGE_BYTES, RequestTag, Stamp, Version, WriterRecord};

/// A page of the block files, counted from the first page of segment 0.
pub type PageNumber = u32;

/// Stands where a chunk has no page: that part reads as zeros.
pub const HOLE: PageNumber = u32::MAX;

pub const PAGE: usize = PAGE_BYTES as usize;
const _: () =
    assert!(PAGE.is_power_of_two() && PAGE.is_multiple_of(ALIGNMENT), "pages are whole pages of memory");
const _: () = assert!(CHUNK_BYTES_MAX.is_multiple_of(PAGE_BYTES), "a chunk is whole pages");

/// Pages that hold `length` bytes.
pub fn page_count(length: u32) -> usize {
    length.div_ceil(PAGE_BYTES) as usize
}

/// `count` consecutive pages; `first` may be `HOLE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    pub first: PageNumber,
    pub count: u32,
}

impl Extent {
    /// Whether `page` continues this run.
    pub fn precedes(&self, page: PageNumber) -> bool {
        match self.first {
            HOLE => page == HOLE,
            first => page != HOLE && first + self.count == page,
        }
    }
}

/// What a chunk holds at one version. Immutable; readers pin it by holding its `Arc`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ContentState {
    pub stamp: Stamp,
    pub length: u32,
    /// Bytes of the last page that some state, also a dropped one, has ever used: the end of what an append in
    /// place must not touch. At least the valid bytes of that page; 0 if the page is a hole.
    pub tail_used: u32,
    pub removed: bool,
    /// The round of `sync` that was the last to begin before the data was written. A later one makes it durable.
    pub round: u64,
    pub extents: Vec<Extent>,
    /// One per page, over its valid bytes; 0 for a hole.
    pub crcs: Vec<u32>,
}

impl ContentState {
    /// Bytes of page `index` that belong to the chunk.
    pub fn valid(&self, index: usize) -> usize {
        (self.length as usize).saturating_sub(index * PAGE).min(PAGE)
    }

    /// The page numbers, one per page.
    pub fn pages(&self) -> impl Iterator<Item = PageNumber> {
        self.extents.iter().flat_map(|extent| {
            let step = u32::from(extent.first != HOLE);
            (0..extent.count).map(move |offset| extent.first + offset * step)
        })
    }

    /// As `pages`, for the pages `from..to` only.
    pub fn pages_between(&self, from: usize, to: usize) -> Vec<PageNumber> {
        let mut pages = Vec::with_capacity(to - from);
        let mut index = 0;
        for extent in &self.extents {
            let end = index + extent.count as usize;
            for at in from.max(index)..to.min(end) {
                pages.push(match extent.first {
                    HOLE => HOLE,
                    first => first + (at - index) as u32,
                });
            }
            if end >= to {
                break;
            }
            index = end;
        }
        pages
    }

    /// CRC32C of the whole content.
    pub fn content_crc(&self) -> u32 {
        let mut sum = 0;
        let mut index = 0;
        for extent in &self.extents {
            for _ in 0..extent.count {
                let valid = self.valid(index);
                let crc = if extent.first == HOLE { checksum::zeros(valid) } else { self.crcs[index] };
                sum = checksum::combine(sum, crc, valid);
                index += 1;
            }
        }
        sum
    }

    /// Whether `other` is this very state, apart from what is known of it: one replaced by repair is not.
    fn is_same_content(&self, other: &ContentState) -> bool {
        self.stamp == other.stamp && self.extents == other.extents
    }

    pub fn committed(&self) -> Committed {
        Committed { stamp: self.stamp, length: self.length, removed: self.removed }
    }

    /// Bytes of memory this state takes, roughly.
    pub fn memory(&self) -> usize {
        size_of::<ContentState>() + self.extents.len() * size_of::<Extent>() + self.crcs.len() * 4
    }
}

/// Return runs of pages as extents.
pub fn compress(pages: &[PageNumber]) -> Vec<Extent> {
    let continues = |pair: &&[PageNumber]| Extent { first: pair[0], count: 1 }.precedes(pair[1]);
    let mut extents = Vec::with_capacity(pages.len() - pages.windows(2).filter(continues).count());
    for &page in pages {
        match extents.last_mut() {
            Some(last) if Extent::precedes(last, page) => last.count += 1,
            _ => extents.push(Extent { first: page, count: 1 }),
        }
    }
    extents
}

/// A state that waits for its commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingState {
    pub state: Arc<ContentState>,
    pub op: Op,
    pub tag: RequestTag,
}

impl PendingState {
    pub fn pending(&self) -> Pending {
        Pending {
            stamp: self.state.stamp,
            op: self.op,
            tag: self.tag,
            length: self.state.length,
            removed: self.state.removed,
        }
    }
}

/// Everything the index knows of one chunk. Immutable; an update makes a new one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub committed: Option<Arc<ContentState>>,
    /// Earlier committed states that power loss may fall back to while the data of `committed` may be lost, newest
    /// first: the newest of those written before the round of `sync` that was under way at the last update, and the
    /// newest of those written before the round that had succeeded; one if they are the same. Their pages are not freed yet (`deferred_free`).
    pub fallbacks: Vec<Arc<ContentState>>,
    pub pending: Option<PendingState>,
    pub writers: Vec<WriterRecord>,
}

impl Record {
    /// Nothing is known: no key in the index.
    pub fn is_absent(&self) -> bool {
        self.committed.is_none() && self.pending.is_none()
    }

    /// No committed content: never written, or a tombstone.
    pub fn is_bare(&self) -> bool {
        self.committed.as_ref().is_none_or(|state| state.removed)
    }

    pub fn version(&self) -> Version {
        self.committed.as_ref().map_or(Version(0), |state| state.stamp.version)
    }

    /// Committed, then pending.
    pub fn states(&self) -> impl Iterator<Item = &Arc<ContentState>> {
        self.committed.iter().chain(self.pending.iter().map(|pending| &pending.state))
    }

    pub fn memory(&self) -> usize {
        size_of::<Record>()
            + self.committed.as_ref().map_or(0, |state| state.memory())
            + self.fallbacks.iter().map(|state| state.memory()).sum::<usize>()
            + self.pending.as_ref().map_or(0, |pending| pending.state.memory())
            + self.writers.len() * size_of::<WriterRecord>()
    }

    /// The fallbacks of `after`, which takes the place of this record. Round `synced` of `sync` has succeeded and round
    /// `begun`, the same or the next one, has begun; `begun` was read before `synced`.
    ///
    /// At most one round is under way. If power is lost now, the index may say that it has succeeded or that only the
    /// one before has, so a state of before each must be named. A state once skipped is never needed again: rounds grow.
    pub fn fallbacks_for(&self, after: &Record, begun: u64, synced: u64) -> Vec<Arc<ContentState>> {
        assert!(synced <= begun, "a round succeeds after it has begun");
        let Some(committed) = &after.committed else { return Vec::new() };
        let is_other = |before: &&Arc<ContentState>| {
            !Arc::ptr_eq(before, committed) && !before.is_same_content(committed)
        };
        let before = self.committed.iter().filter(is_other);
        let earlier = before.chain(&self.fallbacks);
        let mut fallbacks: Vec<Arc<ContentState>> = Vec::new();
        for round in [begun, synced] {
            let is_needed = committed.round >= round;
            let newest = earlier.clone().find(|state| state.round < round).filter(|_| is_needed);
            if let Some(state) = newest
                && !fallbacks.iter().any(|known| Arc::ptr_eq(known, state))
            {
                fallbacks.push(state.clone());
            }
        }
        assert!(
            fallbacks.iter().all(|state| state.round <= committed.round),
            "I7: power loss leads back to what was written before"
        );
        fallbacks
    }

    /// The committed state with `tail_used` grown by what the pending state, about to vanish, put behind it.
    pub fn settled(&self) -> Option<Arc<ContentState>> {
        let committed = self.committed.as_ref()?;
        let Some(pending) = &self.pending else { return Some(committed.clone()) };
        let Some(last) = committed.crcs.len().checked_sub(1) else { return Some(committed.clone()) };
        let same_page =
            pending.state.pages_between(last, last + 1) == committed.pages_between(last, last + 1);
        let used = match pending.state.crcs.len() {
            count if count == last + 1 => pending.state.tail_used,
            _ => pending.state.valid(last) as u32,
        };
        assert!(used as usize <= PAGE, "bytes of one page");
        if !same_page || used <= committed.tail_used {
            return Some(committed.clone());
        }
        Some(Arc::new(ContentState { tail_used: used, ..(**committed).clone() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_survive_compression() {
        for pages in [
            vec![],
            vec![HOLE],
            vec![5, 6, 7, HOLE, HOLE, 9, 10, 3],
            vec![HOLE - 2, HOLE - 1, HOLE, HOLE],
            vec![1, 2, 4, 3],
        ] {
            let state = ContentState {
                extents: compress(&pages),
                crcs: vec![0; pages.len()],
                ..ContentState::default()
            };
            assert_eq!(state.pages().collect::<Vec<_>>(), pages);
            for from in 0..pages.len() {
                for to in from..=pages.len() {
                    assert_eq!(state.pages_between(from, to), pages[from..to]);
                }
            }
        }
        assert_eq!(compress(&[5, 6, 7, HOLE, HOLE, 9]).len(), 3);
        assert_eq!(compress(&[HOLE - 1, HOLE]).len(), 2, "a hole never continues a run of pages");
    }
}
