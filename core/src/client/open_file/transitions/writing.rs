//! A write is taken in.

use super::super::access::Access;
use super::super::bug::Bug;
use super::super::machine::{Effects, Event, Machine};
use crate::buffer::Placement;

impl Machine {
    /// Count a write up to `end`: what readers and attributes show of it.
    pub(super) fn count_write(&mut self, end: u64, now_ns: i64) {
        self.writes += 1;
        self.length = self.length.max(end);
        self.metadata.mark(|pending| pending.mtime_ns = Some(now_ns));
        if let Some(deferred) = &mut self.deferred {
            deferred.written();
        }
    }
}

/// Take in a write for which `reserved` bytes of memory are reserved.
pub struct TakeWrite<'a> {
    /// `None`: append.
    pub offset: Option<u64>,
    pub payload: &'a Placement,
    /// The memory of `payload` may be kept and changed.
    pub keep: bool,
    pub now_ns: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    Done {
        offset: u64,
        /// Number of the write.
        number: u64,
        is_inline: bool,
        /// A run of a chunk is complete: it is worth writing back now.
        is_complete: bool,
    },
    /// Access is not shared, or bytes that would leave the inode are being sent.
    Wait,
    TooLarge,
}

impl Event for TakeWrite<'_> {
    type Outcome = Taken;

    fn apply(self, machine: &mut Machine, effects: &mut Effects) -> Taken {
        assert!(!self.payload.is_empty(), "an empty write changes nothing");
        let length = self.payload.len();
        if machine.access != Access::Shared && machine.bug != Bug::WriteWhileExclusive {
            return Taken::Wait;
        }
        let offset = self.offset.unwrap_or(machine.length);
        let end = offset.saturating_add(length as u64);
        let exceeds_inline = end > u64::from(machine.layout.inline_bytes());
        let is_syncing = machine.bytes.inline().is_some_and(|inline| !inline.syncing.is_empty());
        if is_syncing && exceeds_inline && machine.bug != Bug::SpillWhileSyncing {
            return Taken::Wait;
        }
        effects.memory -= length as isize;
        if end > machine.length_max() {
            return Taken::TooLarge;
        }
        machine.count_write(end, self.now_ns);
        let mut is_complete = false;
        let is_inline = machine.is_all_inline() && !exceeds_inline;
        if let Some(inline) = machine.bytes.inline_mut().filter(|_| is_inline) {
            inline.write(offset as usize, length, |target| self.payload.copy_to(target));
            machine.metadata.mark(|pending| pending.size = true);
        } else {
            machine.spill_inline(effects);
            let (number, chunk_bytes) = (machine.writes, machine.layout.chunk_bytes);
            let (change, complete) = machine.write_back.dirty.put(
                number,
                offset,
                self.payload,
                self.keep,
                chunk_bytes,
                &machine.pool,
            );
            effects.memory += change;
            is_complete = !complete.is_empty();
        }
        machine.list(effects);
        assert!(machine.length >= end, "a reader sees the write");
        Taken::Done { offset, number: machine.writes, is_inline: machine.is_all_inline(), is_complete }
    }
}
