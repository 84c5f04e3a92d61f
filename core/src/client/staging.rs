//! Reads into private memory, staged in buffers that storage nodes on this host can reach.
//!
//! Bytes for memory that no node can reach travel through a socket; from `STAGED_BYTES_MIN` on a copy out of a buffer
//! of the pool is cheaper.

use std::time::Instant;

use super::data::{DataClient, Read};
use super::dirty::RUN_BYTES;
use crate::buffer::BufferPool;
use crate::error::{Kind, Result};

pub(super) const STAGED_BYTES_MIN: usize = 32 << 10;
/// Buffers that one call uses; beyond, bytes travel.
const BUFFERS_MAX: usize = 8;
/// What these buffers hold.
pub(super) const WINDOW_BYTES: usize = BUFFERS_MAX * RUN_BYTES as usize;

const _: () = assert!(STAGED_BYTES_MIN <= RUN_BYTES as usize, "what is staged fits a buffer");

/// A slice of a read as it is carried out: of which read, where in it, and whether a copy is to follow.
struct Staged {
    owner: usize,
    at: usize,
    copy: bool,
}

/// Split reads into private memory into slices that buffers of the pool hold.
fn stage(pool: &BufferPool, reads: &[Read]) -> (Vec<Read>, Vec<Staged>) {
    let (mut slices, mut staged) = (Vec::with_capacity(reads.len()), Vec::with_capacity(reads.len()));
    let mut buffers = 0;
    for (owner, read) in reads.iter().enumerate() {
        let mut at = 0;
        while at < read.into.len() && !read.into.is_shared() && read.into.len() >= STAGED_BYTES_MIN {
            let buffer = if buffers < BUFFERS_MAX { pool.try_take() } else { None };
            let Some(buffer) = buffer else { break };
            buffers += 1;
            let length = buffer.len().min(read.into.len() - at);
            let into = buffer.slice(0..length).expendable();
            slices.push(Read { into, offset: read.offset + at as u64, ..*read });
            staged.push(Staged { owner, at, copy: true });
            at += length;
        }
        if at < read.into.len() || at == 0 {
            let into = read.into.slice(at..read.into.len());
            slices.push(Read { into, offset: read.offset + at as u64, ..*read });
            staged.push(Staged { owner, at, copy: false });
        }
    }
    assert_eq!(slices.len(), staged.len(), "each slice has its owner");
    assert!(buffers <= BUFFERS_MAX, "a call takes few buffers");
    let bytes = |reads: &[Read]| reads.iter().map(|read| read.into.len()).sum::<usize>();
    assert_eq!(bytes(&slices), bytes(reads), "each byte of a read is in one slice");
    (slices, staged)
}

/// Carry out reads through buffers of the pool. Return one outcome for each.
pub(super) fn read_many(
    data: &DataClient,
    pool: &BufferPool,
    reads: &[Read],
    deadline: Instant,
) -> Vec<Result<()>> {
    let (slices, staged) = stage(pool, reads);
    let results = data.read_many(&slices, deadline);
    assert_eq!(results.len(), slices.len(), "one result for each slice");
    let mut outcomes: Vec<Result<()>> = reads.iter().map(|_| Ok(())).collect();
    for ((slice, staged), result) in slices.iter().zip(staged).zip(results) {
        match result {
            Ok(_) if staged.copy => {
                let target = &reads[staged.owner].into;
                slice.into.copy_into(&target.slice(staged.at..staged.at + slice.into.len()));
            }
            Ok(_) => {}
            // A node hangs with our buffer; without one another node can be asked.
            Err(error) if staged.copy && error.kind() == Kind::Timeout => {
                let into = reads[staged.owner].into.slice(staged.at..staged.at + slice.into.len());
                let again = data.read(&slice.layout, slice.content, slice.offset, &into, deadline);
                if let (Err(error), Ok(())) = (again, &outcomes[staged.owner]) {
                    outcomes[staged.owner] = Err(error);
                }
            }
            Err(error) if outcomes[staged.owner].is_ok() => outcomes[staged.owner] = Err(error),
            Err(_) => {}
        }
    }
    outcomes
}
