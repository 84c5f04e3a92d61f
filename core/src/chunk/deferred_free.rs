//! Pages that are to be freed and may not be used again yet (invariant I3).
//!
//! An entry is a record that was replaced, which readers may still hold, and the pages that nothing after it
//! refers to. Entries are released in order, which keeps a page that several successive records shared away
//! from the oldest of their readers too.

use std::collections::VecDeque;
use std::sync::Arc;

use super::state::{PageNumber, Record};

#[derive(Default)]
pub struct DeferredFree {
    entries: VecDeque<DeferredRecord>,
    /// Number of the next entry.
    next: u64,
    pages: u64,
    /// Entries before this one have been flushed: only their readers are waited for.
    flushed: u64,
}

struct DeferredRecord {
    number: u64,
    record: Arc<Record>,
    pages: Vec<PageNumber>,
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

    /// What a flush of the index that begins now will make durable: pass it to `release` afterwards.
    pub fn mark(&self) -> u64 {
        self.next
    }

    /// The flush that began with `mark` has succeeded: the pages of entries before it that no reader holds.
    pub fn release(&mut self, mark: u64) -> Vec<PageNumber> {
        assert!(mark <= self.next, "a mark of this queue");
        self.flushed = self.flushed.max(mark);
        self.release_flushed()
    }

    /// The pages of entries that readers held when `release` was called, and do not hold any more.
    pub fn release_flushed(&mut self) -> Vec<PageNumber> {
        let mut released = Vec::new();
        while let Some(entry) = self.entries.front() {
            if entry.number >= self.flushed || Arc::strong_count(&entry.record) > 1 {
                break;
            }
            let entry = self.entries.pop_front().expect("just seen");
            assert!(self.pages >= entry.pages.len() as u64, "pages are counted while they wait");
            self.pages -= entry.pages.len() as u64;
            released.extend(entry.pages);
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

    #[test]
    fn a_reader_of_an_older_record_keeps_all_later_pages() {
        let mut deferred_free = DeferredFree::default();
        let first = Arc::new(Record::default());
        let reader = first.clone();
        deferred_free.push(first, vec![]);
        deferred_free.push(Arc::new(Record::default()), vec![7]);
        let mark = deferred_free.mark();
        assert_eq!(
            deferred_free.release(mark),
            Vec::<PageNumber>::new(),
            "the reader's record may share page 7"
        );
        deferred_free.push(Arc::new(Record::default()), vec![8]);
        assert_eq!(
            deferred_free.release_flushed(),
            Vec::<PageNumber>::new(),
            "the reader still holds its record"
        );
        drop(reader);
        assert_eq!(deferred_free.release_flushed(), vec![7], "and page 8 was not flushed");
        assert_eq!(deferred_free.pages(), 1);
    }

    #[test]
    fn what_came_after_the_flush_began_waits_for_the_next() {
        let mut deferred_free = DeferredFree::default();
        deferred_free.push(Arc::new(Record::default()), vec![1]);
        let mark = deferred_free.mark();
        deferred_free.push(Arc::new(Record::default()), vec![2]);
        assert_eq!(deferred_free.release(mark), vec![1]);
        assert_eq!(deferred_free.pages(), 1);
        assert_eq!(deferred_free.release(deferred_free.mark()), vec![2]);
    }
}
