//! File data as open files see it: no chains, no retries.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::data::{DataClient, Read, Write};
use super::staging::{self, STAGED_BYTES_MIN, WINDOW_BYTES};
use crate::buffer::BufferPool;
use crate::error::Result;
use crate::types::ContentId;
use crate::wire::pb;

pub trait ChunkStore: Send + Sync {
    /// Fill all of `read.into`; holes read as zeros.
    fn read(&self, read: &Read) -> Result<()>;
    fn read_many(&self, reads: &[Read]) -> Vec<Result<()>>;
    /// Return one result for each; overlapping writes happen in order.
    fn write_many(&self, writes: &[Write]) -> Vec<Result<()>>;
    /// Make everything acknowledged in `range` survive the loss of power.
    fn sync(&self, layout: &pb::Layout, content: ContentId, range: Range<u64>) -> Result<()>;
    /// Return the parts of `range` in chunks that hold bytes there; the rest reads as zeros.
    fn data_extents(
        &self,
        layout: &pb::Layout,
        content: ContentId,
        range: Range<u64>,
    ) -> Result<Vec<Range<u64>>>;
}

/// The chains of a cluster.
pub struct ChainStore {
    pub data: Arc<DataClient>,
    pub deadline: Duration,
    /// Where to stage reads into private memory; `None`: no node is on this host.
    pub staging: Option<BufferPool>,
}

impl ChunkStore for ChainStore {
    fn read(&self, read: &Read) -> Result<()> {
        if self.staging.is_none() || read.into.is_shared() || read.into.len() < STAGED_BYTES_MIN {
            let deadline = Instant::now() + self.deadline;
            return self.data.read(&read.layout, read.content, read.offset, &read.into, deadline).map(drop);
        }
        for at in (0..read.into.len()).step_by(WINDOW_BYTES) {
            let into = read.into.slice(at..read.into.len().min(at + WINDOW_BYTES));
            let window = Read { into, offset: read.offset + at as u64, ..*read };
            self.read_many(&[window]).into_iter().collect::<Result<()>>()?;
        }
        Ok(())
    }

    fn read_many(&self, reads: &[Read]) -> Vec<Result<()>> {
        let deadline = Instant::now() + self.deadline;
        let outcomes: Vec<Result<()>> = match &self.staging {
            Some(pool) => staging::read_many(&self.data, pool, reads, deadline),
            None => self.data.read_many(reads, deadline).into_iter().map(|result| result.map(drop)).collect(),
        };
        assert_eq!(outcomes.len(), reads.len(), "one outcome for each read");
        outcomes
    }

    fn write_many(&self, writes: &[Write]) -> Vec<Result<()>> {
        let results = self.data.write_many(writes, Instant::now() + self.deadline);
        assert_eq!(results.len(), writes.len(), "one result for each write");
        results
    }

    fn sync(&self, layout: &pb::Layout, content: ContentId, range: Range<u64>) -> Result<()> {
        assert!(range.start <= range.end, "a range has its start first");
        let deadline = Instant::now() + self.deadline;
        self.data.sync(layout, content, range.start, range.end - range.start, deadline)
    }

    fn data_extents(
        &self,
        layout: &pb::Layout,
        content: ContentId,
        range: Range<u64>,
    ) -> Result<Vec<Range<u64>>> {
        assert!(range.start <= range.end, "a range has its start first");
        let deadline = Instant::now() + self.deadline;
        let extents = self.data.data_extents(layout, content, range.clone(), deadline)?;
        let is_within = |extent: &Range<u64>| range.start <= extent.start && extent.end <= range.end;
        assert!(extents.iter().all(is_within), "extents are of the range that was asked for");
        Ok(extents)
    }
}
