//! The memory of a batch: regions that the client registered, or a buffer of this connection.
//!
//! - Every placement given to the service holds the connection's in-use guard, and nothing is answered or closed while a
//!   clone of it exists (rule N1).
//! - A region is named by its slot; operations that name an empty slot, or a range outside, are answered with Invalid.
//! - Payloads of clients are charged to the server's budget.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::memory::RegisteredBuffer;
use super::{ServerSession, sender};
use crate::buffer::{Placement, REGION_BYTES_MAX};
use crate::net::Sender;
use crate::net::budget::Share;
use crate::net::handshake::invalid;
use crate::types::Status;
use crate::wire::frame::{Malformed, PayloadLocation, REGIONS_MAX, RegionRegistration};
use crate::wire::rdma::RemoteMemory;

impl ServerSession {
    pub(super) fn register(&mut self, registration: RegionRegistration) -> io::Result<()> {
        let slot = registration.slot as usize;
        assert!(slot < REGIONS_MAX, "checked when it was decoded");
        self.regions[slot] = None;
        if registration.len == 0 {
            return Ok(());
        }
        if self.stream.is_remote_direct() {
            if registration.len > REGION_BYTES_MAX as u64 {
                return Err(invalid(Malformed("a region of that length is not allowed")));
            }
            let (memory, len) = (registration.region.into(), registration.len);
            self.regions[slot] = Some(RegisteredBuffer::Remote { memory, len });
            return Ok(());
        }
        if self.passed.is_empty() {
            return Err(invalid(Malformed("a registration without a file descriptor")));
        }
        let fd = self.passed.remove(0);
        match self.common.regions.map(fd, registration.region, registration.len as usize) {
            Ok(region) => self.regions[slot] = Some(RegisteredBuffer::Mapped(region)),
            // Operations that name the slot are answered with Invalid.
            Err(error) => log::warn!(
                "registering a region failed: {error}; operations that name it are answered with Invalid"
            ),
        }
        Ok(())
    }

    /// The memory of each operation: in the client's region, or in this connection's buffer.
    pub(super) fn places(
        &mut self,
        locations: &[PayloadLocation],
        lengths: &[usize],
        deadline: Instant,
    ) -> Result<(Vec<Placement>, Option<Share>), Status> {
        assert_eq!(locations.len(), lengths.len(), "one location per operation");
        assert_eq!(Arc::strong_count(&self.in_use), 1, "N1: nothing of the batch before is in use");
        let direct = self.stream.is_remote_direct();
        // Bytes that pass through memory of ours.
        let following: usize = locations
            .iter()
            .zip(lengths)
            .filter(|(location, _)| direct || **location == PayloadLocation::Inline)
            .map(|(_, length)| *length)
            .sum();
        let mut places = Vec::with_capacity(locations.len());
        for (location, length) in locations.iter().zip(lengths) {
            places.push(match location {
                PayloadLocation::Region { slot, offset } => self.in_region(*slot, *offset, *length)?,
                PayloadLocation::Inline if direct && *length > 0 => return Err(Status::Invalid),
                PayloadLocation::Inline => None,
            });
        }
        let (buffer, share) = match following {
            0 => (None, None),
            bytes => {
                let share = self.share(bytes, deadline)?;
                let buffer = match self.common.fabric.as_ref().filter(|_| direct) {
                    Some(fabric) => fabric.buffers().take(bytes),
                    None => self.payload.get(bytes),
                };
                (Some(buffer.map_err(|_| Status::Busy)?), share)
            }
        };
        assert!(
            buffer.as_ref().is_none_or(|buffer| buffer.len() == following),
            "as much memory as passes through"
        );
        let mut used = 0;
        let places: Vec<Placement> = places
            .into_iter()
            .zip(lengths)
            .map(|(place, length)| {
                let place = place.unwrap_or_else(|| match &buffer {
                    Some(buffer) => {
                        used += length;
                        buffer.slice(used - length..used)
                    }
                    None => Placement::from_vec(Vec::new()),
                });
                place.kept_by(self.in_use.clone())
            })
            .collect();
        assert!(
            places.iter().zip(lengths).all(|(place, length)| place.len() == *length),
            "places as long as asked"
        );
        Ok((places, share))
    }

    /// Reserve `bytes` of the budget. Nodes need none: what they forward is bounded by the budgets of the nodes that sent it, and
    /// two nodes whose budgets were full of updates for each other would deadlock.
    fn share(&self, bytes: usize, deadline: Instant) -> Result<Option<Share>, Status> {
        match sender(&self.claims) {
            Sender::Node(_) => Ok(None),
            Sender::Client(_) => self.common.budget.take(bytes, deadline).map(Some).ok_or(Status::Busy),
        }
    }

    /// The placement in memory shared with the client; `None` if the client is across the network.
    fn in_region(&self, slot: u16, offset: u64, length: usize) -> Result<Option<Placement>, Status> {
        match self.regions[slot as usize].as_ref().ok_or(Status::Invalid)? {
            RegisteredBuffer::Mapped(region) => {
                let offset = usize::try_from(offset).map_err(|_| Status::Invalid)?;
                region.placement(offset, length).map(Some).ok_or(Status::Invalid)
            }
            RegisteredBuffer::Remote { .. } => self.remote(slot, offset, length).map(|_| None),
        }
    }

    /// The address and key for the client's device; `None` if the memory is shared.
    pub(super) fn remote(
        &self,
        slot: u16,
        offset: u64,
        length: usize,
    ) -> Result<Option<RemoteMemory>, Status> {
        match self.regions[slot as usize].as_ref().ok_or(Status::Invalid)? {
            RegisteredBuffer::Mapped(_) => Ok(None),
            RegisteredBuffer::Remote { memory, len } => {
                let end = offset.checked_add(length as u64).ok_or(Status::Invalid)?;
                let address = memory.address.checked_add(offset).ok_or(Status::Invalid)?;
                if end > *len {
                    return Err(Status::Invalid);
                }
                Ok(Some(RemoteMemory { address, rkey: memory.rkey }))
            }
        }
    }

    /// Wait until no placement but `ours` refers to the memory of this batch (rule N1). Nearly
    /// always at once; after a successor was lost, until that has closed its connection.
    pub(super) fn wait_until_unused(&self, ours: usize) {
        let mut pause = Duration::from_micros(50);
        while Arc::strong_count(&self.in_use) > 1 + ours {
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(50));
        }
    }
}

impl Drop for ServerSession {
    /// Before the socket closes, also when the service panicked.
    fn drop(&mut self) {
        self.wait_until_unused(0);
    }
}
