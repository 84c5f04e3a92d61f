//! The regions that a server knows of one connection, by slot number.

use std::sync::{Arc, Weak};

use crate::buffer::{Placement, Region, RegionId};
use crate::wire::frame::REGIONS_MAX;

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
    pub(super) batch: u64,
}

#[derive(Debug)]
struct RegionSlot {
    id: Option<RegionId>,
    region: Weak<Region>,
    used: u64,
}

impl Regions {
    pub(super) fn find(&mut self, id: RegionId) -> Option<u16> {
        let place = self.slots.iter().position(|slot| slot.id == Some(id))?;
        self.slots[place].used = self.batch;
        Some(place as u16)
    }

    /// A slot for one more region: an unused one, or the one least recently used.
    pub(super) fn choose(&mut self) -> Option<u16> {
        if let Some(free) = self.slots.iter().position(|slot| slot.id.is_none()) {
            return Some(free as u16);
        }
        if self.slots.len() < REGIONS_MAX {
            assert!(
                self.slots.iter().all(|slot| slot.used <= self.batch),
                "no slot is used by a later batch"
            );
            self.slots.push(RegionSlot { id: None, region: Weak::new(), used: 0 });
            return Some(self.slots.len() as u16 - 1);
        }
        assert_eq!(self.slots.len(), REGIONS_MAX, "all slots are in use");
        let oldest = (0..self.slots.len()).min_by_key(|place| self.slots[*place].used)?;
        (self.slots[oldest].used < self.batch).then_some(oldest as u16)
    }

    pub(super) fn set(&mut self, slot: u16, region: &Arc<Region>) {
        let before = &mut self.slots[slot as usize];
        assert!(
            before.id.is_none() || before.used < self.batch,
            "a slot that this batch uses stays its region's"
        );
        *before = RegionSlot { id: Some(region.id()), region: Arc::downgrade(region), used: self.batch };
    }

    pub(super) fn take_dead(&mut self) -> Vec<u16> {
        let dead: Vec<u16> = (0..self.slots.len())
            .filter(|place| self.slots[*place].id.is_some() && self.slots[*place].region.strong_count() == 0)
            .map(|place| place as u16)
            .collect();
        dead.iter().for_each(|place| self.slots[*place as usize].id = None);
        dead
    }
}
