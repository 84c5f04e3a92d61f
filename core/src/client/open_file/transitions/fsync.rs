//! One sync of chains at a time.

use std::ops::Range;

use super::super::durability::Stored;
use super::super::machine::{Effects, Event, Machine};
use crate::error::Result;

/// Begin to sync the chains.
pub struct BeginChainSync;

pub enum ChainSync {
    /// Another one is under way (V3).
    Wait,
    Nothing,
    Sync(Stored, Range<u64>),
}

impl Event for BeginChainSync {
    type Outcome = ChainSync;

    fn apply(self, machine: &mut Machine, _: &mut Effects) -> ChainSync {
        if machine.durability.is_syncing {
            return ChainSync::Wait;
        }
        let Some(range) = machine.durability.volatile.take() else { return ChainSync::Nothing };
        machine.durability.is_syncing = true;
        ChainSync::Sync(machine.stored(), range)
    }
}

pub struct ChainSyncEnded<'a> {
    pub content: u64,
    pub range: Range<u64>,
    pub result: &'a Result<()>,
}

impl Event for ChainSyncEnded<'_> {
    type Outcome = ();

    fn apply(self, machine: &mut Machine, effects: &mut Effects) {
        assert!(machine.durability.is_syncing, "V3: a sync of chains ends once");
        machine.durability.is_syncing = false;
        if let Err(error) = self.result {
            if machine.inode.content == self.content {
                machine.durability.add_volatile(self.range);
            }
            machine.durability.failure_count += 1;
            machine.durability.failure = Some(error.clone());
        }
        effects.wake = true;
    }
}
