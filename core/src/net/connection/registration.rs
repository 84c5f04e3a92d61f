//! The location of each payload of a batch: in a region that the server knows by a slot number, or after the frame.
//!
//! - A region is registered before the first frame that names its slot, on the same stream.
//! - A slot that this batch uses is not given to another region; when all are in use, bytes follow the frame instead.
//! - Over RDMA bytes that the device cannot reach are copied to a registered buffer, for which one slot stays free.

use std::os::fd::AsFd;
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::{Connection, Failure, GONE};
use crate::buffer::{Placement, Region, RegionId};
use crate::types::Status;
use crate::wire::frame::{self, PayloadLocation, REGIONS_MAX, Registration};
use crate::wire::rdma::RemoteMemory;

impl Connection {
    /// Registered buffers for placements that the server's device cannot reach as they are; empty if there is none.
    pub(super) fn bounce(&mut self, placements: &[Placement]) -> Result<Vec<Option<Placement>>, Failure> {
        let (Some(fabric), Some(stream)) = (&self.fabric, &self.stream) else { return Ok(Vec::new()) };
        let link = stream.link().ok_or(GONE)?;
        let mut regions: Vec<RegionId> = Vec::new();
        let mut reachable = |placement: &Placement| {
            let Some((region, _)) = placement.region() else { return false };
            let known = regions.contains(&region.id());
            // One slot stays for the buffers.
            if (!known && regions.len() == REGIONS_MAX - 1) || link.keys(placement).is_err() {
                return false;
            }
            if !known {
                regions.push(region.id());
            }
            true
        };
        let bounced: Vec<bool> =
            placements.iter().map(|placement| !placement.is_empty() && !reachable(placement)).collect();
        let lengths = placements.iter().zip(&bounced).filter(|(_, bounced)| **bounced);
        let total: usize = lengths.map(|(placement, _)| placement.len()).sum();
        if total == 0 {
            return Ok(Vec::new());
        }
        let buffer = fabric.buffers().take(total).map_err(|_| Failure(Status::Busy))?;
        let mut used = 0;
        Ok(placements
            .iter()
            .zip(bounced)
            .map(|(placement, bounced)| {
                bounced.then(|| {
                    used += placement.len();
                    buffer.slice(used - placement.len()..used)
                })
            })
            .collect())
    }

    /// The location of each placement, or of its bounce buffer. Registers regions that the server does not know yet.
    pub(super) fn locations(
        &mut self,
        placements: &[Placement],
        bounced: &[Option<Placement>],
        deadline: Instant,
    ) -> Result<Vec<PayloadLocation>, Failure> {
        let mut locations = Vec::with_capacity(placements.len());
        for (place, placement) in placements.iter().enumerate() {
            let placement = target(bounced, place, placement);
            let registers = self.shares_memory || (self.fabric.is_some() && !placement.is_empty());
            let location = match placement.region() {
                Some((region, offset)) if registers => match self.slot(placement, region, deadline)? {
                    Some(slot) => PayloadLocation::Region { slot, offset: offset as u64 },
                    None => PayloadLocation::Inline,
                },
                _ => PayloadLocation::Inline,
            };
            locations.push(location);
        }
        self.regions.batch += 1;
        Ok(locations)
    }

    /// The slot of `region`, registered now if need be; `None` if this batch uses all slots for others.
    fn slot(
        &mut self,
        placement: &Placement,
        region: &Arc<Region>,
        deadline: Instant,
    ) -> Result<Option<u16>, Failure> {
        if let Some(slot) = self.regions.find(region.id()) {
            return Ok(Some(slot));
        }
        self.release_dead(deadline)?;
        let Some(slot) = self.regions.choose() else {
            return Ok(None);
        };
        let stream = self.stream.as_mut().ok_or(GONE)?;
        let (name, passed) = match stream.link() {
            Some(link) => {
                // A registration must exist: `bounce` has ensured one for all but its own buffer.
                let keys = link.keys(placement).map_err(|error| {
                    log::warn!("registering memory for RDMA failed: {error}; the batch is refused as busy");
                    Failure(Status::Busy)
                })?;
                let address = region.as_ptr() as u64;
                (RegionId::from(RemoteMemory { address, rkey: keys.rkey }), None)
            }
            None => (region.id(), Some(region.as_fd())),
        };
        let registration = Registration { slot, region: name, len: region.len() as u64 };
        let mut frame = Vec::new();
        frame::encode_registration(&mut frame, &registration);
        stream.send(&frame, &[], passed, deadline)?;
        self.regions.set(slot, region);
        Ok(Some(slot))
    }

    /// Unregister regions that no longer exist here, so that their memory is freed.
    fn release_dead(&mut self, deadline: Instant) -> Result<(), Failure> {
        for slot in self.regions.take_dead() {
            let mut frame = Vec::new();
            frame::encode_registration(&mut frame, &Registration { slot, region: RegionId([0; 16]), len: 0 });
            self.stream.as_mut().ok_or(GONE)?.send(&frame, &[], None, deadline)?;
        }
        Ok(())
    }
}

/// Where the bytes of operation `place` travel to: `own`, or its bounce buffer.
pub(super) fn target<'a>(
    bounced: &'a [Option<Placement>],
    place: usize,
    own: &'a Placement,
) -> &'a Placement {
    bounced.get(place).and_then(Option::as_ref).unwrap_or(own)
}

/// The regions that the server knows by slot number.
#[derive(Debug, Default)]
pub(super) struct Regions {
    slots: Vec<RegionSlot>,
    /// Counts batches; slots used in this one must stay.
    batch: u64,
}

#[derive(Debug)]
struct RegionSlot {
    id: Option<RegionId>,
    region: Weak<Region>,
    used: u64,
}

impl Regions {
    fn find(&mut self, id: RegionId) -> Option<u16> {
        let place = self.slots.iter().position(|slot| slot.id == Some(id))?;
        self.slots[place].used = self.batch;
        Some(place as u16)
    }

    /// A slot for one more region: an unused one, or the one least recently used.
    fn choose(&mut self) -> Option<u16> {
        if let Some(free) = self.slots.iter().position(|slot| slot.id.is_none()) {
            return Some(free as u16);
        }
        if self.slots.len() < REGIONS_MAX {
            self.slots.push(RegionSlot { id: None, region: Weak::new(), used: 0 });
            return Some(self.slots.len() as u16 - 1);
        }
        let oldest = (0..self.slots.len()).min_by_key(|place| self.slots[*place].used)?;
        (self.slots[oldest].used < self.batch).then_some(oldest as u16)
    }

    fn set(&mut self, slot: u16, region: &Arc<Region>) {
        self.slots[slot as usize] =
            RegionSlot { id: Some(region.id()), region: Arc::downgrade(region), used: self.batch };
    }

    fn take_dead(&mut self) -> Vec<u16> {
        let dead: Vec<u16> = (0..self.slots.len())
            .filter(|place| self.slots[*place].id.is_some() && self.slots[*place].region.strong_count() == 0)
            .map(|place| place as u16)
            .collect();
        dead.iter().for_each(|place| self.slots[*place as usize].id = None);
        dead
    }
}
