//! Memory that file data is moved through: sealed shared regions, page-aligned pools, and placements in them.
//!
//! A [`Placement`] names the place of bytes. It is plain memory that other threads, and other processes
//! where it is part of a shared [`Region`], may change at any time: its bytes are copied, checksummed and handed
//! to the kernel, and nothing here or elsewhere decides anything by looking at them twice.
//!
//! Invariants:
//! - B1 A placement's memory stays mapped as long as the placement or a clone of it exists.
//! - B2 A pooled buffer returns to its pool when the last placement in it is dropped. Code that gives memory to
//!   another process keeps a clone until that process can no longer touch it, so nothing is reused too early.
//! - B3 A region never shrinks (`F_SEAL_SHRINK`, checked before a peer's memory is mapped), so that touching it
//!   cannot raise SIGBUS.
//!
//! [`Flag`] is the one word that is looked at more than once: processes that share memory wait for it.
//!
//! This is one of the few modules where `unsafe` is allowed.
#![allow(unsafe_code)]

mod flag;
mod placement;
mod pool;
mod region;
mod write_back;

pub use flag::Flag;
pub use placement::{
    Placement, read_vectored, read_vectored_at, total_length, write_vectored, write_vectored_at,
};
pub(crate) use placement::{sources, targets};
pub use pool::{Buffer, BufferPool};
pub use region::{REGION_BYTES_MAX, Region, RegionId};
pub use write_back::begin_write_back;

/// Unit of mapping and alignment of everything here.
pub const ALIGNMENT: usize = 4096;

/// `bytes` rounded up to whole pages.
pub fn page_align(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}
