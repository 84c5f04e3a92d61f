//! Pages that are to be freed and may not be used again yet (invariant I3).
//!
//! An entry is a record that was replaced, which readers may still hold, and the pages that nothing after it
//! refers to. Entries are released in order, which keeps a page that several successive records shared away
//! from the oldest of their readers too. A round of `sync` may release tens of thousands: they are taken a few at
//! a time and destroyed without the lock, for which every update waits.

use std::collections::VecDeque;
use std::sync::Arc;

use super::state::{PageNumber, Record};

/// Entries taken at once: some tens of microseconds under the lock.
const BATCH: usize = 1024;

#[derive(Default)]
pub struct DeferredFree {
    entries: VecDeque<DeferredRecord>,
    /// Number of the next entry.
    next: u64,
    pages: u64,
    /// Entries before this one have been flushed: only their readers are waited for.
    flushed: u64,
}

/// A record that was replaced.
pub struct DeferredRecord {
    number: u64,
    record: Arc<Record>,
    /// What nothing after it refers to.
    pub pages: Vec<PageNumber>,
}

impl DeferredFree {
    /// Take a replaced record; the index without it has been written, though not to disk.
    pub fn push(&mut self, record: Arc<Record>, pages: Vec<PageNumber>) {
        if pages.is_empty() && Arc::strong_count(&record) == 1 {
            return;
        }
        self.pages += pages.len() as u64;
        self.entries.push_back(DeferredRecord { number: self.next, record, pages });
        self.next += 1;
    }

    /// What a flush of the index that begins now will make durable: pass it to `note_flushed` afterwards.
    pub fn mark(&self) -> u64 {
        self.next
    }

    /// The flush that began with `mark` has succeeded: entries before it may be released.
    pub fn note_flushed(&mut self, mark: u64) {
        assert!(mark <= self.next, "a mark of this queue");
        self.flushed = self.flushed.max(mark);
    }

    /// Take out the next entries that were flushed and that no reader holds; none if there are none. Their pages are free.
    pub fn release(&mut self) -> Vec<DeferredRecord> {
        let mut released = Vec::new();
        while let Some(entry) = self.entries.front() {
            let is_held = Arc::strong_count(&entry.record) > 1;
            if released.len() == BATCH || entry.number >= self.flushed || is_held {
                break;
            }
            let entry = self.entries.pop_front().expect("just seen");
            assert!(self.pages >= entry.pages.len() as u64, "pages are counted while they wait");
            self.pages -= entry.pages.len() as u64;
            released.push(entry);
        }
        released
    }

    /// Pages waiting.
    pub fn pages(&self) -> u64 {
        self.pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn released(deferred_free: &mut DeferredFree) -> Vec<PageNumber> {
        deferred_free.release().into_iter().flat_map(|entry| entry.pages).collect()
    }

    #[test]
    fn a_reader_of_an_older_record_keeps_all_later_pages() {
        let mut deferred_free = DeferredFree::default();
        let first = Arc::new(Record::default());
        let reader = first.clone();
        deferred_free.push(first, vec![]);
        deferred_free.push(Arc::new(Record::default()), vec![7]);
        deferred_free.note_flushed(deferred_free.mark());
        assert_eq!(released(&mut deferred_free), [0; 0], "the reader's record may share page 7");
        deferred_free.push(Arc::new(Record::default()), vec![8]);
        assert_eq!(released(&mut deferred_free), [0; 0], "the reader still holds its record");
        drop(reader);
        assert_eq!(released(&mut deferred_free), [7], "and page 8 was not flushed");
        assert_eq!(deferred_free.pages(), 1);
    }

    #[test]
    fn what_came_after_the_flush_began_waits_for_the_next() {
        let mut deferred_free = DeferredFree::default();
        deferred_free.push(Arc::new(Record::default()), vec![1]);
        let mark = deferred_free.mark();
        deferred_free.push(Arc::new(Record::default()), vec![2]);
        deferred_free.note_flushed(mark);
        assert_eq!(released(&mut deferred_free), [1]);
        assert_eq!(deferred_free.pages(), 1);
        deferred_free.note_flushed(deferred_free.mark());
        assert_eq!(released(&mut deferred_free), [2]);
    }

    #[test]
    fn many_are_released_in_batches_and_in_order() {
        let mut deferred_free = DeferredFree::default();
        let count = 2 * BATCH as PageNumber + 1;
        (0..count).for_each(|page| deferred_free.push(Arc::new(Record::default()), vec![page]));
        assert_eq!(released(&mut deferred_free), [0; 0], "nothing was flushed");
        deferred_free.note_flushed(deferred_free.mark());
        let batches: Vec<_> = (0..3).map(|_| released(&mut deferred_free)).collect();
        assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [BATCH, BATCH, 1]);
        assert_eq!(batches.concat(), (0..count).collect::<Vec<_>>());
        assert_eq!((deferred_free.pages(), deferred_free.release().len()), (0, 0));
    }
}
