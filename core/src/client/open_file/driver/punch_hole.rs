//! Making a range read as zeros, at the price of what is there and not of its length.

use std::ops::Range;
use std::sync::Arc;

use super::super::mode::{IoMode, WriteOffset};
use super::OpenInode;
use crate::buffer::Placement;
use crate::error::Result;
use crate::types::ContentId;

/// Chunks that are asked at once whether they hold anything: a few batches for each node.
const ASKED_MAX: u64 = 4096;
/// Zeros written at a time.
const ZERO_BYTES: u64 = 1 << 20;

impl OpenInode {
    /// Make a range read as zeros; what holds no bytes does already, and is left alone. Chunks that do hold some get
    /// zeros and stay: the metadata service takes the end of the last one for the length of a file that others write.
    pub fn punch_hole(self: &Arc<Self>, range: Range<u64>, mode: IoMode) -> Result<()> {
        assert!(range.start <= range.end, "a range has its start first");
        // What was written here before is on chains when these are asked.
        self.flush();
        let asked_bytes = ASKED_MAX * u64::from(self.layout().chunk_bytes.max(1));
        let zeros = Placement::from_vec(vec![0; ZERO_BYTES.min(range.end - range.start) as usize]);
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at.saturating_add(asked_bytes));
            for extent in self.data_extents(at..end)? {
                self.write_zeros(extent, &zeros, mode)?;
            }
            at = end;
        }
        Ok(())
    }

    fn write_zeros(self: &Arc<Self>, range: Range<u64>, zeros: &Placement, mode: IoMode) -> Result<()> {
        let mut at = range.start;
        while at < range.end {
            let count = (range.end - at).min(zeros.len() as u64);
            self.write(WriteOffset::At(at), &zeros.slice(0..count as usize), false, mode)?;
            at += count;
        }
        Ok(())
    }

    /// Return the parts of a range that may hold other bytes than zeros.
    fn data_extents(&self, range: Range<u64>) -> Result<Vec<Range<u64>>> {
        let machine = self.machine.lock();
        if let Some(inline) = machine.bytes.inline() {
            let end = range.end.min(machine.waiting_end().max(inline.bytes.len() as u64));
            return Ok((range.start < end).then_some(range.start..end).into_iter().collect());
        }
        let stored = machine.stored();
        drop(machine);
        self.shared.chunks.data_extents(&stored.layout, ContentId(stored.content), range)
    }
}
