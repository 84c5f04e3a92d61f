//! Which pages of the block files are in use: bitmaps in memory, rebuilt from the index when the engine opens.
//!
//! Pure bookkeeping. A page is *used* while a state owns it or it waits to be freed, and *backed* once it was
//! written, so that using it again takes no space from the file system.
//!
//! Segments are dealt out to lanes by their number. Small and large allocations have lanes of their own, so that
//! single pages do not break the runs that whole chunks want, and the large ones have several, so that writers of
//! different chunks do not wait for one file's lock.

use super::state::{Extent, HOLE, PageNumber};

/// Lane 0 takes allocations of few pages, the others the rest.
pub const LANES: u32 = 4;
/// From this many pages on an allocation is large: half a chunk of the smallest size.
const LARGE_PAGES: u32 = 8;
/// A search for runs to give back is repeated when this many more pages are free.
const SEARCH_PAGES: u64 = 1024;

const WORD: u32 = 64;
const _: () = assert!(LANES > 1, "large allocations have lanes of their own");
const _: () = assert!(LARGE_PAGES < WORD);

pub struct PageMap {
    segment_pages: u32,
    segments: Vec<Segment>,
    used: u64,
    free_backed: u64,
    /// The shortest run that the last search to give back asked for, and the free backed pages it left.
    searched: (u32, u64),
}

#[derive(Clone)]
struct Segment {
    used: Box<[u64]>,
    backed: Box<[u64]>,
    /// No run of free pages is longer than this.
    longest_max: u32,
    /// Word to search from.
    cursor: usize,
}

impl PageMap {
    pub fn new(segment_pages: u32) -> PageMap {
        assert!(
            segment_pages > 0 && segment_pages.is_multiple_of(WORD),
            "a segment is whole words of the bitmap"
        );
        PageMap { segment_pages, segments: Vec::new(), used: 0, free_backed: 0, searched: (0, 0) }
    }

    /// Pages in use, those that wait to be freed included.
    pub fn used(&self) -> u64 {
        self.used
    }

    /// Pages that could be written without taking space from the file system.
    pub fn free_backed(&self) -> u64 {
        self.free_backed
    }

    pub fn segment_count(&self) -> u32 {
        self.segments.len() as u32
    }

    /// Whether a page of that segment is in use.
    pub fn is_segment_used(&self, number: u32) -> bool {
        self.segments[number as usize].used.iter().any(|&word| word != 0)
    }

    /// Take one given page, while the index is read; `false` if it has an owner already.
    #[must_use]
    pub fn claim(&mut self, page: PageNumber) -> bool {
        assert_ne!(page, HOLE, "a hole is not a page");
        self.grow(page / self.segment_pages);
        if self.is_used(page) {
            return false;
        }
        self.set_used(page);
        true
    }

    /// Note that `page` has space on the disk.
    pub fn note_backed(&mut self, page: PageNumber) {
        self.grow(page / self.segment_pages);
        let (segment, word, bit) = self.place(page);
        let segment = &mut self.segments[segment];
        if segment.backed[word] & bit == 0 {
            segment.backed[word] |= bit;
            self.free_backed += u64::from(segment.used[word] & bit == 0);
        }
    }

    /// `count` pages, in one run if one fits in a segment: after the page `after` if that is free, else where
    /// the lane has room, else in a new segment. `None` when all page numbers are taken.
    pub fn allocate(&mut self, count: u32, after: Option<PageNumber>, spread: u32) -> Option<Vec<Extent>> {
        if let Some(extent) = after.and_then(|page| self.following(page, count)) {
            self.take(extent);
            return Some(vec![extent]);
        }
        let lane = if count < LARGE_PAGES { 0 } else { 1 + spread % (LANES - 1) };
        let mut extents = Vec::new();
        let mut left = count;
        while left > 0 {
            let want = left.min(self.segment_pages);
            let Some(extent) = self.find(want, lane) else {
                extents.iter().for_each(|&extent| self.free(extent));
                return None;
            };
            self.take(extent);
            extents.push(extent);
            left -= want;
        }
        Some(extents)
    }

    /// `count` pages that have space on the disk already, anywhere; `None` if there are too few.
    pub fn allocate_backed(&mut self, count: u32) -> Option<Vec<Extent>> {
        if self.free_backed < u64::from(count) {
            return None;
        }
        let mut pages = Vec::with_capacity(count as usize);
        'search: for (number, segment) in self.segments.iter().enumerate() {
            for (word, (used, backed)) in segment.used.iter().zip(&segment.backed).enumerate() {
                let mut free = backed & !used;
                while free != 0 {
                    let bit = free.trailing_zeros();
                    pages.push(number as u32 * self.segment_pages + word as u32 * WORD + bit);
                    if pages.len() == count as usize {
                        break 'search;
                    }
                    free &= free - 1;
                }
            }
        }
        assert_eq!(pages.len(), count as usize, "free_backed counts what the bitmaps say");
        let extents = super::state::compress(&pages);
        extents.iter().for_each(|&extent| self.take(extent));
        Some(extents)
    }

    pub fn free(&mut self, extent: Extent) {
        for page in extent.first..extent.first + extent.count {
            self.free_page(page);
        }
    }

    pub fn free_page(&mut self, page: PageNumber) {
        let (number, word, bit) = self.place(page);
        let segment = &mut self.segments[number];
        assert!(segment.used[word] & bit != 0, "page {page} is given back once");
        segment.used[word] &= !bit;
        segment.longest_max = u32::MAX;
        assert!(self.used > 0, "used pages are counted");
        self.used -= 1;
        self.free_backed += u64::from(segment.backed[word] & bit != 0);
    }

    /// Take runs of at least `shortest` free pages whose space is to be returned to the file system, until at most
    /// `keep` free backed pages are left. The caller punches them out of the files and then frees them.
    pub fn take_punchable(&mut self, keep: u64, shortest: u32) -> Vec<Extent> {
        let (searched, left) = self.searched;
        if self.free_backed <= keep || (searched == shortest && self.free_backed < left + SEARCH_PAGES) {
            return Vec::new();
        }
        let mut taken = Vec::new();
        for number in 0..self.segments.len() {
            for extent in self.backed_runs(number, shortest) {
                if self.free_backed <= keep {
                    break;
                }
                self.take(extent);
                for page in extent.first..extent.first + extent.count {
                    let (number, word, bit) = self.place(page);
                    self.segments[number].backed[word] &= !bit;
                }
                taken.push(extent);
            }
        }
        self.searched = (shortest, self.free_backed);
        taken
    }

    fn backed_runs(&self, number: usize, shortest: u32) -> Vec<Extent> {
        let segment = &self.segments[number];
        let mut runs: Vec<Extent> = Vec::new();
        for (word, (used, backed)) in segment.used.iter().zip(&segment.backed).enumerate() {
            let mut free = backed & !used;
            while free != 0 {
                let bit = free.trailing_zeros();
                let count = (free >> bit).trailing_ones();
                let first = number as u32 * self.segment_pages + word as u32 * WORD + bit;
                match runs.last_mut() {
                    Some(last) if last.first + last.count == first => last.count += count,
                    _ => runs.push(Extent { first, count }),
                }
                free &= u64::MAX.checked_shl(bit + count).unwrap_or(0);
            }
        }
        runs.retain(|run| run.count >= shortest);
        runs
    }

    fn place(&self, page: PageNumber) -> (usize, usize, u64) {
        let offset = page % self.segment_pages;
        ((page / self.segment_pages) as usize, (offset / WORD) as usize, 1 << (offset % WORD))
    }

    fn is_used(&self, page: PageNumber) -> bool {
        let (segment, word, bit) = self.place(page);
        self.segments[segment].used[word] & bit != 0
    }

    fn set_used(&mut self, page: PageNumber) {
        let (number, word, bit) = self.place(page);
        let segment = &mut self.segments[number];
        assert!(segment.used[word] & bit == 0, "I2: page {page} has one owner");
        segment.used[word] |= bit;
        self.used += 1;
        self.free_backed -= u64::from(segment.backed[word] & bit != 0);
    }

    fn take(&mut self, extent: Extent) {
        (extent.first..extent.first + extent.count).for_each(|page| self.set_used(page));
    }

    fn grow(&mut self, number: u32) {
        let words = (self.segment_pages / WORD) as usize;
        while self.segments.len() <= number as usize {
            self.segments.push(Segment {
                used: vec![0; words].into(),
                backed: vec![0; words].into(),
                longest_max: u32::MAX,
                cursor: 0,
            });
        }
    }

    /// The run right after `page`, if `count` pages are free there in the same segment.
    fn following(&self, page: PageNumber, count: u32) -> Option<Extent> {
        let first = page.checked_add(1)?;
        let end = (page / self.segment_pages + 1).checked_mul(self.segment_pages)?;
        let fits = count <= end.checked_sub(first)?;
        (fits && (first..first + count).all(|page| !self.is_used(page))).then_some(Extent { first, count })
    }

    fn find(&mut self, count: u32, lane: u32) -> Option<Extent> {
        let mut number = lane;
        loop {
            // The last page number that is not HOLE ends the last segment that fits.
            if u64::from(number + 1) * u64::from(self.segment_pages) > u64::from(HOLE) {
                return None;
            }
            self.grow(number);
            let segment = &mut self.segments[number as usize];
            if segment.longest_max >= count {
                if let Some(offset) = segment.find(count) {
                    segment.cursor = ((offset + count) / WORD) as usize % segment.used.len();
                    return Some(Extent { first: number * self.segment_pages + offset, count });
                }
                segment.longest_max = count - 1;
            }
            number += LANES;
        }
    }
}

impl Segment {
    fn find(&self, count: u32) -> Option<u32> {
        let cursor = self.cursor;
        self.find_between(count, cursor, self.used.len()).or_else(|| {
            // A run that begins before the cursor may reach past it.
            let end = (cursor + (count / WORD) as usize + 2).min(self.used.len());
            self.find_between(count, 0, end)
        })
    }

    fn find_between(&self, count: u32, from: usize, to: usize) -> Option<u32> {
        let mut run = 0;
        for word in from..to {
            let bits = self.used[word];
            let mut bit = 0;
            while bit < WORD {
                let rest = bits >> bit;
                let free = rest.trailing_zeros().min(WORD - bit);
                run += free;
                bit += free;
                if run >= count {
                    return Some(word as u32 * WORD + bit - run);
                }
                if bit < WORD {
                    run = 0;
                    bit += (bits >> bit).trailing_ones();
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_large_allocation_is_one_run_and_the_next_one_follows_it() {
        let mut map = PageMap::new(128);
        let first = map.allocate(64, None, 0).unwrap();
        assert_eq!(first, vec![Extent { first: 128, count: 64 }]);
        let more = map.allocate(10, Some(191), 0).unwrap();
        assert_eq!(more, vec![Extent { first: 192, count: 10 }]);
        assert_eq!(map.allocate(1, None, 0).unwrap(), vec![Extent { first: 0, count: 1 }], "small: lane 0");
        let next = map.allocate(64, None, 0).unwrap();
        assert_eq!(next, vec![Extent { first: 128 * 5, count: 64 }], "does not fit: the lane's next segment");
    }

    #[test]
    fn more_than_a_segment_is_split() {
        let mut map = PageMap::new(64);
        let extents = map.allocate(150, None, 0).unwrap();
        assert_eq!(extents.iter().map(|extent| extent.count).sum::<u32>(), 150);
        assert_eq!(map.used(), 150);
    }

    #[test]
    fn a_page_is_claimed_once() {
        let mut map = PageMap::new(64);
        assert!(map.claim(70));
        assert!(!map.claim(70));
        map.free_page(70);
        assert!(map.claim(70));
    }

    #[test]
    fn page_numbers_end_before_the_hole() {
        let mut map = PageMap::new(1 << 30);
        assert!(map.find(1 << 30, 3).is_none(), "its last page would be the hole");
    }

    #[test]
    fn backed_pages_are_found_wherever_they_lie() {
        let mut map = PageMap::new(64);
        let extents = map.allocate(20, None, 0).unwrap();
        (0..20).for_each(|n| map.note_backed(extents[0].first + n));
        map.free_page(extents[0].first + 3);
        map.free_page(extents[0].first + 9);
        assert_eq!(map.free_backed(), 2);
        assert_eq!(map.allocate_backed(3), None);
        assert_eq!(map.allocate_backed(2).unwrap().len(), 2);
        assert_eq!(map.free_backed(), 0);
    }

    #[test]
    fn punching_takes_long_runs_and_forgets_that_they_are_backed() {
        let mut map = PageMap::new(64);
        let extent = map.allocate(40, None, 0).unwrap()[0];
        (0..40).for_each(|n| map.note_backed(extent.first + n));
        map.free(extent);
        assert_eq!(map.take_punchable(40, 16), vec![]);
        assert_eq!(map.take_punchable(0, 41), vec![]);
        assert_eq!(map.take_punchable(0, 16), vec![extent]);
        assert_eq!((map.free_backed(), map.used()), (0, 40));
        map.free(extent);
        assert_eq!((map.free_backed(), map.used()), (0, 0));
    }

    #[derive(Clone, Debug)]
    enum MapStep {
        Allocate(u32, u32, bool),
        Free(usize),
    }

    fn step() -> impl Strategy<Value = MapStep> {
        prop_oneof![
            (1u32..100, 0u32..5, any::<bool>())
                .prop_map(|(count, lane, after)| MapStep::Allocate(count, lane, after)),
            (0usize..64).prop_map(MapStep::Free),
        ]
    }

    proptest! {
        /// No page is handed out twice, counts hold, and free space of a lane is found when it is there.
        #[test]
        fn bitmaps_agree_with_a_set(steps in proptest::collection::vec(step(), 1..60)) {
            let mut map = PageMap::new(128);
            let mut owned: BTreeSet<u32> = BTreeSet::new();
            let mut held: Vec<Extent> = Vec::new();
            for step in steps {
                match step {
                    MapStep::Allocate(count, spread, after) => {
                        let hint = after.then(|| held.last().map(|extent| extent.first + extent.count - 1)).flatten();
                        let extents = map.allocate(count, hint, spread).unwrap();
                        prop_assert_eq!(extents.iter().map(|extent| extent.count).sum::<u32>(), count);
                        for extent in extents {
                            for page in extent.first..extent.first + extent.count {
                                prop_assert!(owned.insert(page), "page {} twice", page);
                            }
                            held.push(extent);
                        }
                    }
                    MapStep::Free(place) if !held.is_empty() => {
                        let extent = held.swap_remove(place % held.len());
                        map.free(extent);
                        (extent.first..extent.first + extent.count).for_each(|page| { owned.remove(&page); });
                    }
                    MapStep::Free(_) => {}
                }
                prop_assert_eq!(map.used(), owned.len() as u64);
            }
        }
    }
}
