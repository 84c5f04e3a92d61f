//! Buffers that devices may read and write: a few sizes out of large regions, so that one registration serves many.

use std::io;

use crate::lock::Mutex;

use crate::buffer::{BufferPool, Placement};

/// Fourfold steps, so that at most three quarters of a buffer are wasted; the smallest holds one connection's messages.
pub(super) const SIZES: [usize; 5] = [64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20];
/// One region holds so many bytes of buffers, or one buffer: all of it is locked in memory from its first use on.
const REGION_BYTES: usize = 8 << 20;
const _: () =
    assert!(SIZES[0] < SIZES[1] && SIZES[1] < SIZES[2] && SIZES[2] < SIZES[3] && SIZES[3] < SIZES[4]);

/// Registered buffers of one process. Only devices that were given a key write to them besides.
#[derive(Debug, Default)]
pub struct Buffers {
    by_size: [Mutex<Vec<BufferPool>>; SIZES.len()],
}

impl Buffers {
    /// `bytes` of registered memory, or what will be when it is first used; they return on drop.
    pub fn take(&self, bytes: usize) -> io::Result<Placement> {
        let Some(class) = SIZES.iter().position(|size| bytes <= *size) else {
            // Larger than nearly all batches: a region of its own, given back at once.
            let pool = BufferPool::exclusive(bytes, 1)?;
            let buffer = pool.try_take().expect("a new pool has its buffer");
            return Ok(buffer.into_placement().slice(0..bytes));
        };
        let mut pools = self.by_size[class].lock();
        let buffer = match pools.iter().find_map(BufferPool::try_take) {
            Some(buffer) => buffer,
            None => {
                let size = SIZES[class];
                let pool = BufferPool::exclusive(size, (REGION_BYTES / size).max(1))?;
                let buffer = pool.try_take().expect("a new pool has its buffers");
                pools.push(pool);
                buffer
            }
        };
        trim(&mut pools);
        assert!(buffer.len() >= bytes, "a buffer of the size that fits");
        Ok(buffer.into_placement().slice(0..bytes))
    }
}

/// Give the last region back when it is unused and the one before has room: they fill in order.
fn trim(pools: &mut Vec<BufferPool>) {
    while let [.., before, last] = pools.as_slice()
        && last.available() == last.count()
        && before.available() > 0
    {
        pools.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regions(buffers: &Buffers) -> usize {
        buffers.by_size.iter().map(|pools| pools.lock().len()).sum()
    }

    #[test]
    fn buffers_share_regions_and_empty_regions_go() {
        let buffers = Buffers::default();
        let per_region = REGION_BYTES / SIZES[0];
        let mut taken: Vec<_> = (0..per_region + 1).map(|_| buffers.take(1000).unwrap()).collect();
        assert_eq!(regions(&buffers), 2);
        let first = taken[0].region().unwrap().0.id();
        assert_eq!(taken[per_region - 1].region().unwrap().0.id(), first);
        assert_ne!(taken[per_region].region().unwrap().0.id(), first);
        taken.clear();
        drop(buffers.take(1).unwrap());
        assert_eq!(regions(&buffers), 1);
    }

    #[test]
    fn every_size_is_served_and_its_bytes_are_stable() {
        let buffers = Buffers::default();
        for bytes in [1, 64 << 10, (64 << 10) + 1, 5 << 20, 16 << 20, (64 << 20) + 2048] {
            let buffer = buffers.take(bytes).unwrap();
            assert_eq!(buffer.len(), bytes);
            assert!(!buffer.is_shared(), "no other process changes it");
            assert!(buffer.region().is_some(), "it can be registered");
        }
    }
}
