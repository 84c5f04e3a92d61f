//! Slices of a range of a file, each of which is in one chunk.

use std::ops::Range;

use rustix::io::Errno;

use crate::error::{Error, Result};

/// What one chunk has of a range of a file: one slice of a read or write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChunkSlice {
    /// Number of the chunk.
    pub index: u32,
    /// Offset in the chunk.
    pub offset: u32,
    /// Where the slice is in the range: in the caller's buffer.
    pub range: Range<usize>,
}

/// Cut `length` bytes at `offset` of a file at the boundaries of chunks and of runs of `run_bytes`.
pub fn chunk_slices(
    offset: u64,
    length: usize,
    chunk_bytes: u32,
    run_bytes: u32,
) -> impl Iterator<Item = ChunkSlice> {
    assert!(chunk_bytes > 0 && run_bytes > 0, "a chunk and a run hold something");
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = offset + done as u64;
        let in_chunk = (at % u64::from(chunk_bytes)) as u32;
        let most = (chunk_bytes - in_chunk).min(run_bytes - in_chunk % run_bytes) as usize;
        let range = done..length.min(done + most);
        done = range.end;
        Some(ChunkSlice { index: (at / u64::from(chunk_bytes)) as u32, offset: in_chunk, range })
    })
}

/// Check that chunks of a range can be numbered. Errors: EFBIG.
pub fn require_range(offset: u64, length: usize, chunk_bytes: u32) -> Result<()> {
    let end_max = (u64::from(u32::MAX) + 1) * u64::from(chunk_bytes);
    if offset.checked_add(length as u64).is_none_or(|end| end > end_max) {
        return Err(Error::invalid("beyond the largest file").with_errno(Errno::FBIG));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_at_chunk_boundaries() {
        let cut = |offset, length| {
            let slices = chunk_slices(offset, length, 100, 100);
            slices.map(|slice| (slice.index, slice.offset, slice.range)).collect::<Vec<_>>()
        };
        assert_eq!(cut(0, 0), []);
        assert_eq!(cut(0, 100), [(0, 0, 0..100)]);
        assert_eq!(cut(99, 102), [(0, 99, 0..1), (1, 0, 1..101), (2, 0, 101..102)]);
        assert_eq!(cut(250, 10), [(2, 50, 0..10)]);
    }

    #[test]
    fn slices_stop_at_chunks_and_runs() {
        const MIB: u32 = 1 << 20;
        let cut: Vec<_> = chunk_slices(2 * (4 << 20) - 10, 20, 4 * MIB, MIB).collect();
        assert_eq!(cut.len(), 2);
        assert_eq!((cut[0].index, cut[0].offset, cut[0].range.clone()), (1, 4 * MIB - 10, 0..10));
        assert_eq!((cut[1].index, cut[1].offset, cut[1].range.clone()), (2, 0, 10..20));
        assert_eq!(chunk_slices(0, 3 << 20, 4 * MIB, MIB).count(), 3);
    }

    #[test]
    fn a_range_beyond_the_last_chunk_is_too_large() {
        let last = (1u64 << 32) * 4096;
        assert!(require_range(last - 10, 10, 4096).is_ok());
        for (offset, length) in [(last - 10, 11), (last, 1), (u64::MAX, 2)] {
            let error = require_range(offset, length, 4096).unwrap_err();
            assert_eq!(error.errno(), Errno::FBIG.raw_os_error());
        }
    }
}
