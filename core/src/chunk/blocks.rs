//! Scratch memory for writes.

use crate::buffer::ALIGNMENT;
use crate::lock::Mutex;

use super::state::PAGE;

/// Most bytes gathered into one write: a chunk of the default size, because large writes get large folios in the
/// page cache.
const BLOCK_BYTES: usize = 1 << 20;
const _: () = assert!(BLOCK_BYTES.is_multiple_of(PAGE), "a block is whole pages");

/// Scratch memory for writes, shared by all threads: many of them wait, few write.
#[derive(Default)]
pub struct Blocks(Mutex<Vec<Vec<u8>>>);

impl Blocks {
    /// Unused blocks that are kept.
    const IDLE_MAX: usize = 8;

    /// Call `work` with an unused block.
    pub fn with_block<R>(&self, work: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut block = self.0.lock().pop().unwrap_or_else(|| vec![0; BLOCK_BYTES + ALIGNMENT]);
        // Shared memory is page-aligned. Copying from it to just behind the same place of another page is
        // several times slower than to the very same place.
        let start = block.as_ptr().align_offset(ALIGNMENT);
        let result = work(&mut block[start..start + BLOCK_BYTES]);
        let mut idle = self.0.lock();
        if idle.len() < Self::IDLE_MAX {
            idle.push(block);
        }
        result
    }
}
