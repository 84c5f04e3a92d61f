//! The memory of a connection on the server's side: regions of its client, and a buffer of its own.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

use crate::buffer::{Placement, Region, RegionId};
use crate::lock::Mutex;
use crate::wire::frame::PAYLOAD_BYTES_MAX;
use crate::wire::rdma::RemoteMemory;

/// Payload memory that a connection keeps between batches, so that it is not mapped again for each.
const RETAINED_BYTES: usize = 4 << 20;
/// Least that is mapped at once.
const MAPPED_BYTES_MIN: usize = 64 << 10;
const _: () = assert!(MAPPED_BYTES_MIN <= RETAINED_BYTES && RETAINED_BYTES <= PAYLOAD_BYTES_MAX);

/// Regions mapped into this process, so that many connections of one client share one mapping. The memory is
/// recognised by its inode, not only by the name that the peer gives it.
#[derive(Debug, Default)]
pub(in crate::net) struct RegionCache(Mutex<HashMap<RegionKey, Weak<Region>>>);

/// Name, device and inode, length.
type RegionKey = (RegionId, (u64, u64), usize);

impl RegionCache {
    pub(super) fn map(&self, fd: OwnedFd, id: RegionId, len: usize) -> io::Result<Arc<Region>> {
        let key = (id, Region::identity(&fd)?, len);
        let mut cache = self.0.lock();
        if let Some(region) = cache.get(&key).and_then(Weak::upgrade) {
            return Ok(region);
        }
        let region = Region::map_peer(fd, id, len)?;
        cache.retain(|_, region| region.strong_count() > 0);
        cache.insert(key, Arc::downgrade(&region));
        Ok(region)
    }
}

/// A client's memory.
pub(super) enum RegisteredBuffer {
    Mapped(Arc<Region>),
    Remote { memory: RemoteMemory, len: u64 },
}

/// While a clone of the guard of a connection exists besides its own, memory of its batch is in use (rule N1).
pub(super) struct InUseGuard;

/// Memory for payloads that follow frames.
#[derive(Default)]
pub(super) struct PayloadBuffer(Option<Placement>);

impl PayloadBuffer {
    pub(super) fn get(&mut self, bytes: usize) -> io::Result<Placement> {
        assert!(bytes <= PAYLOAD_BYTES_MAX, "checked when the frame was decoded");
        if let Some(kept) = self.0.as_ref().filter(|kept| kept.len() >= bytes) {
            return Ok(kept.slice(0..bytes));
        }
        let fresh = Placement::private(bytes.next_power_of_two().max(MAPPED_BYTES_MIN))?;
        let part = fresh.slice(0..bytes);
        if fresh.len() <= RETAINED_BYTES {
            self.0 = Some(fresh);
        }
        Ok(part)
    }

    pub(super) fn release(&mut self) {
        self.0 = None;
    }
}
