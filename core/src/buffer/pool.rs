//! A bounded pool of equal, page-aligned buffers out of one region.

use std::fmt;
use std::io;
use std::ops::Deref;
use std::sync::{Arc, Weak};
use std::time::Instant;

use crate::lock::{Condvar, Mutex};

use super::{Placement, Region, page_align};

/// Buffers of one size in one shared region. Memory is used once a buffer has been touched; the buffer that
/// came back last is given out first, because it is still in the processor's cache.
pub struct BufferPool {
    shared: Arc<PoolShared>,
}

struct PoolShared {
    region: Arc<Region>,
    buffer_bytes: usize,
    count: usize,
    free: Mutex<Vec<u32>>,
    returned: Condvar,
}

impl BufferPool {
    /// A pool of `count` buffers of `buffer_bytes` (rounded up to whole pages) each.
    pub fn new(buffer_bytes: usize, count: usize) -> io::Result<BufferPool> {
        BufferPool::over(Region::create, buffer_bytes, count)
    }

    /// As [`BufferPool::new`], out of a region that no other process writes to unasked.
    pub fn exclusive(buffer_bytes: usize, count: usize) -> io::Result<BufferPool> {
        BufferPool::over(Region::create_exclusive, buffer_bytes, count)
    }

    fn over(
        create: fn(usize) -> io::Result<Arc<Region>>,
        buffer_bytes: usize,
        count: usize,
    ) -> io::Result<BufferPool> {
        let buffer_bytes = page_align(buffer_bytes);
        let total = buffer_bytes.checked_mul(count).ok_or(io::ErrorKind::InvalidInput)?;
        let region = create(total)?;
        assert!(total <= region.len(), "every buffer is in the region");
        let free = Mutex::new((0..count as u32).rev().collect());
        let shared = PoolShared { region, buffer_bytes, count, free, returned: Condvar::new() };
        Ok(BufferPool { shared: Arc::new(shared) })
    }

    /// A free buffer, or `None` if all are in use.
    pub fn try_take(&self) -> Option<Buffer> {
        let slot = self.shared.free.lock().pop()?;
        Some(self.shared.buffer(slot))
    }

    /// A free buffer, waiting for one until `deadline`; `None` if none came back by then.
    pub fn take(&self, deadline: Instant) -> Option<Buffer> {
        let mut free = self.shared.free.lock();
        loop {
            if let Some(slot) = free.pop() {
                drop(free);
                return Some(self.shared.buffer(slot));
            }
            if self.shared.returned.wait_until(&mut free, deadline).timed_out() {
                let slot = free.pop()?;
                drop(free);
                return Some(self.shared.buffer(slot));
            }
        }
    }

    pub fn buffer_bytes(&self) -> usize {
        self.shared.buffer_bytes
    }

    pub fn count(&self) -> usize {
        self.shared.count
    }

    /// Buffers that can be taken now.
    pub fn available(&self) -> usize {
        self.shared.free.lock().len()
    }

    pub fn region(&self) -> &Arc<Region> {
        &self.shared.region
    }
}

impl Clone for BufferPool {
    /// Another handle of the same pool.
    fn clone(&self) -> Self {
        BufferPool { shared: self.shared.clone() }
    }
}

impl fmt::Debug for BufferPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BufferPool {{ {} of {} free }}", self.available(), self.count())
    }
}

impl PoolShared {
    fn buffer(self: &Arc<PoolShared>, slot: u32) -> Buffer {
        assert!((slot as usize) < self.count, "a buffer of this pool");
        let offset = slot as usize * self.buffer_bytes;
        let guard = Arc::new(ReturnGuard { pool: Arc::downgrade(self), slot });
        Buffer(Placement::in_region(&self.region, offset, self.buffer_bytes).kept_by(guard))
    }
}

/// Returns its buffer when the last placement in it is gone (B2).
struct ReturnGuard {
    pool: Weak<PoolShared>,
    slot: u32,
}

impl Drop for ReturnGuard {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.upgrade() {
            let mut free = pool.free.lock();
            assert!(free.len() < pool.count, "a buffer returns once");
            free.push(self.slot);
            drop(free);
            pool.returned.notify_one();
        }
    }
}

/// A whole buffer of a pool. It is a [`Placement`]; slices and clones of it keep it out of the pool.
/// Its bytes are what the last user left there.
#[derive(Debug)]
pub struct Buffer(Placement);

impl Deref for Buffer {
    type Target = Placement;

    fn deref(&self) -> &Placement {
        &self.0
    }
}

impl Buffer {
    /// Whether a clone or a slice of the buffer exists.
    pub fn is_in_use(&self) -> bool {
        self.0.is_in_use()
    }

    pub fn into_placement(self) -> Placement {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_exhausted_pool_says_so_and_a_dropped_buffer_comes_back() {
        let pool = BufferPool::new(5000, 2).unwrap();
        assert_eq!(pool.buffer_bytes(), 8192);
        let first = pool.try_take().unwrap();
        let second = pool.try_take().unwrap();
        assert_ne!(first.as_ptr(), second.as_ptr());
        assert!(pool.try_take().is_none());
        assert!(pool.take(Instant::now() + Duration::from_millis(5)).is_none());
        drop(first);
        assert!(pool.try_take().is_some());
        assert_eq!(pool.available(), 1);
    }

    #[test]
    fn a_slice_keeps_its_buffer_out_of_the_pool() {
        let pool = BufferPool::new(4096, 1).unwrap();
        let buffer = pool.try_take().unwrap();
        assert!(!buffer.is_in_use());
        let part = buffer.slice(10..20);
        assert!(buffer.is_in_use());
        drop(buffer);
        assert!(pool.try_take().is_none());
        drop(part);
        assert!(pool.try_take().is_some());
    }

    #[test]
    fn a_waiter_gets_the_buffer_that_another_thread_returns() {
        let pool = BufferPool::new(4096, 1).unwrap();
        let buffer = pool.try_take().unwrap();
        let waiter = std::thread::spawn({
            let pool = pool.clone();
            move || pool.take(Instant::now() + Duration::from_secs(60)).is_some()
        });
        drop(buffer);
        assert!(waiter.join().unwrap());
        assert_eq!(pool.available(), 1);
    }

    #[test]
    fn a_buffer_may_outlive_its_pool() {
        let pool = BufferPool::new(4096, 1).unwrap();
        let buffer = pool.try_take().unwrap();
        drop(pool);
        buffer.copy_from(b"still mapped");
        assert_eq!(buffer.slice(0..12).to_vec(), b"still mapped");
    }
}
