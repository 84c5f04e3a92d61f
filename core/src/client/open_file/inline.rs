//! A small file's bytes, kept in its inode, and which of them were changed here.

use std::ops::Range;

use crate::wire::pb;

/// Where the bytes of a file are, except those written here.
#[cfg_attr(test, derive(Clone))]
pub(super) enum Bytes {
    /// In the inode. Dirty chunks besides are newer, and the file has exceeded its inode.
    Inline(Inline),
    /// A thread is moving the file out of its inode. `None`: another client has done so meanwhile.
    Migrating(Option<Inline>),
    /// In chunks.
    Chunked,
}

impl Bytes {
    /// Return the bytes as the metadata service describes them.
    pub(super) fn of(inode: &pb::Inode) -> Bytes {
        inline_of(inode).map_or(Bytes::Chunked, Bytes::Inline)
    }

    pub(super) fn inline(&self) -> Option<&Inline> {
        match self {
            Bytes::Inline(inline) | Bytes::Migrating(Some(inline)) => Some(inline),
            Bytes::Migrating(None) | Bytes::Chunked => None,
        }
    }

    pub(super) fn inline_mut(&mut self) -> Option<&mut Inline> {
        match self {
            Bytes::Inline(inline) | Bytes::Migrating(Some(inline)) => Some(inline),
            Bytes::Migrating(None) | Bytes::Chunked => None,
        }
    }

    pub(super) fn is_migrating(&self) -> bool {
        matches!(self, Bytes::Migrating(_))
    }

    /// Replace what is known of the inode's bytes; a migration that is under way stays so.
    pub(super) fn replace(&mut self, inode: &pb::Inode) {
        *self = match self {
            Bytes::Migrating(_) => Bytes::Migrating(inline_of(inode)),
            Bytes::Inline(_) | Bytes::Chunked => Bytes::of(inode),
        };
    }

    /// Begin to move the file out of its inode. Return its bytes and their base.
    pub(super) fn begin_migration(&mut self) -> (Vec<u8>, u64) {
        let Bytes::Inline(inline) = std::mem::replace(self, Bytes::Chunked) else {
            panic!("I6: a file leaves its inode once at a time");
        };
        let start = (inline.bytes.clone(), inline.base);
        *self = Bytes::Migrating(Some(inline));
        start
    }

    pub(super) fn end_migration(&mut self) {
        *self = match std::mem::replace(self, Bytes::Chunked) {
            Bytes::Migrating(Some(inline)) => Bytes::Inline(inline),
            Bytes::Migrating(None) => Bytes::Chunked,
            Bytes::Inline(_) | Bytes::Chunked => panic!("I6: a migration ends once"),
        };
    }
}

fn inline_of(inode: &pb::Inode) -> Option<Inline> {
    inode.is_inline.then(|| Inline::new(inode.inline_data.clone(), inode.change))
}

/// Sorted ranges that neither overlap nor touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Range<usize>>);

impl Ranges {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.0.iter().cloned()
    }

    pub fn add(&mut self, new: Range<usize>) {
        if new.is_empty() {
            return;
        }
        let first = self.0.partition_point(|range| range.end < new.start);
        let last = self.0.partition_point(|range| range.start <= new.end);
        let merged = match self.0.get(first..last) {
            Some([start, .., end]) => start.start.min(new.start)..end.end.max(new.end),
            Some([one]) => one.start.min(new.start)..one.end.max(new.end),
            _ => new,
        };
        self.0.splice(first..last, [merged]);
    }
}

/// The content of a small file as this client sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inline {
    pub bytes: Vec<u8>,
    /// `change` of the inode that `bytes` was made from.
    pub base: u64,
    /// What was written here since, and is not being sent.
    pub edited: Ranges,
    /// What is being sent. Once it has been, it is not this client's any more: others may have written over it.
    pub syncing: Ranges,
}

impl Inline {
    pub fn new(bytes: Vec<u8>, base: u64) -> Inline {
        Inline { bytes, base, edited: Ranges::default(), syncing: Ranges::default() }
    }

    /// Whether anything was written here that is not synced yet.
    pub fn is_edited(&self) -> bool {
        !(self.edited.is_empty() && self.syncing.is_empty())
    }

    /// Send all that was written here.
    pub fn begin_sync(&mut self) {
        for range in std::mem::take(&mut self.edited).0 {
            self.syncing.add(range);
        }
    }

    /// It could not be sent.
    pub fn end_sync(&mut self) {
        for range in std::mem::take(&mut self.syncing).0 {
            self.edited.add(range);
        }
    }

    /// Forget what was written here: it was cut away, or given up.
    pub fn forget_edits(&mut self) {
        self.edited = Ranges::default();
        self.syncing = Ranges::default();
    }

    /// Return the ranges that were written here and are not synced yet, those written last at the end.
    pub fn edits(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.syncing.iter().chain(self.edited.iter())
    }

    /// Puts `source` at `offset`; a gap before it reads as zeros, but was not written.
    pub fn write(&mut self, offset: usize, length: usize, copy: impl FnOnce(&mut [u8])) {
        assert!(length > 0, "an empty write changes nothing");
        let end = offset + length;
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        copy(&mut self.bytes[offset..end]);
        self.edited.add(offset..end);
    }

    /// Somebody else changed the inode to `theirs`: keep their bytes where nothing was written here.
    pub fn rebase(&mut self, theirs: Vec<u8>, base: u64) {
        assert!(self.edits().all(|range| range.end <= self.bytes.len()), "I1: what was written is there");
        let mut merged = theirs;
        for range in self.edits() {
            if merged.len() < range.end {
                merged.resize(range.end, 0);
            }
            merged[range.clone()].copy_from_slice(&self.bytes[range]);
        }
        self.bytes = merged;
        self.base = base;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn put(inline: &mut Inline, offset: usize, bytes: &[u8]) {
        inline.write(offset, bytes.len(), |target| target.copy_from_slice(bytes));
    }

    #[test]
    fn two_writers_of_different_bytes_both_survive() {
        let mut mine = Inline::new(b"aaaaaaaa".to_vec(), 1);
        put(&mut mine, 2, b"MM");
        mine.rebase(b"aaaaaaTTtt".to_vec(), 2);
        assert_eq!(mine.bytes, b"aaMMaaTTtt");
        assert_eq!(mine.base, 2);
    }

    #[test]
    fn bytes_written_after_a_truncation_elsewhere_stay() {
        let mut mine = Inline::new(b"abcdef".to_vec(), 1);
        put(&mut mine, 6, b"gh");
        mine.rebase(Vec::new(), 2);
        assert_eq!(mine.bytes, b"\0\0\0\0\0\0gh");
    }

    #[test]
    fn zeros_before_a_write_beyond_the_end_give_way_to_what_somebody_wrote_there() {
        let mut mine = Inline::new(b"ab".to_vec(), 1);
        put(&mut mine, 6, b"gh");
        assert_eq!(mine.bytes, b"ab\0\0\0\0gh");
        mine.rebase(b"abTTTT".to_vec(), 2);
        assert_eq!(mine.bytes, b"abTTTTgh");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn ranges_equal_a_set_of_bytes(adds in proptest::collection::vec((0usize..60, 0usize..12), 0..14)) {
            let mut ranges = Ranges::default();
            let mut model = [false; 80];
            for (start, length) in adds {
                ranges.add(start..start + length);
                model[start..start + length].fill(true);
            }
            let mut seen = [false; 80];
            for range in ranges.iter() {
                prop_assert!(!range.is_empty());
                seen[range].fill(true);
            }
            prop_assert_eq!(seen, model);
            for pair in ranges.0.windows(2) {
                prop_assert!(pair[0].end < pair[1].start);
            }
        }
    }
}
