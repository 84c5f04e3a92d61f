//! The location of each payload of a batch: in a region that the server knows by a slot number, or after the frame.
//!
//! - A region is registered before the first frame that names its slot, on the same stream.
//! - A slot that this batch uses is not given to another region; when all are in use, bytes follow the frame instead.
//! - Over RDMA bytes that the device cannot reach are copied to a registered buffer, for which one slot stays free.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use super::regions::target;
use super::{Connection, Failure, GONE};
use crate::buffer::{Placement, Region, RegionId};
use crate::types::Status;
use crate::wire::frame::{self, PayloadLocation, REGIONS_MAX, RegionRegistration};
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
        assert_eq!(buffer.len(), total, "a buffer for all that is bounced");
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
        assert_eq!(locations.len(), placements.len(), "one location per placement");
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
        let registration = RegionRegistration { slot, region: name, len: region.len() as u64 };
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
            frame::encode_registration(
                &mut frame,
                &RegionRegistration { slot, region: RegionId([0; 16]), len: 0 },
            );
            self.stream.as_mut().ok_or(GONE)?.send(&frame, &[], None, deadline)?;
        }
        Ok(())
    }
}
