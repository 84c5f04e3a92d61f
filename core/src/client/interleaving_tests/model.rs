//! What has been done to the file of a world, and what may be seen of it.
//!
//! Moments are numbers that grow. A write may be seen by a read that ends after the write began. It must be seen, or a
//! later one of its slot, by a read of the same client that begins after the write has ended, and by one of another
//! client whose handle was opened after the write was acknowledged: by a close, flush or fsync, or because it was direct.
//! Unless a cut that ended
//! after the write began has removed it; and it must not be seen if the cut began after that. What the loss of power
//! would leave when an fsync has succeeded is such a read too, with a handle that was opened when the fsync began.

pub const SLOT_BYTES: u64 = 16;

/// Who looks, and when.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    pub client: usize,
    pub begin: u64,
    pub end: u64,
    /// When the handle began to be opened.
    pub opened: u64,
}

impl Look {
    /// Whether what ended then, in that client, is over for this reader.
    fn is_after(&self, client: usize, end: u64) -> bool {
        end < if self.client == client { self.begin } else { self.opened }
    }
}

/// One write of a slot, or one record.
#[derive(Clone, Debug)]
pub struct Write {
    pub client: usize,
    pub thread: usize,
    pub handle: u64,
    pub begin: u64,
    pub end: Option<u64>,
    pub acknowledged: Option<u64>,
}

#[derive(Default)]
pub struct Slot {
    pub at: u64,
    /// Version 1 is the first.
    pub writes: Vec<Write>,
    pub is_busy: bool,
}

pub struct Cut {
    pub client: usize,
    pub length: u64,
    pub begin: u64,
    pub end: Option<u64>,
}

pub struct Mode {
    pub permissions: u32,
    pub begin: u64,
    pub end: Option<u64>,
}

#[derive(Default)]
pub struct Model {
    pub now: u64,
    pub slots: Vec<Slot>,
    pub cuts: Vec<Cut>,
    /// Records in the order in which they began to be appended, with their bytes.
    pub records: Vec<(Write, Vec<u8>)>,
    pub modes: Vec<Mode>,
    /// Calls fail: only what was acknowledged counts.
    pub is_faulty: bool,
    pub history: Vec<String>,
}

/// The bytes of a slot's version.
pub fn stamp(version: usize) -> Vec<u8> {
    (version as u32).to_le_bytes().repeat(SLOT_BYTES as usize / 4)
}

/// Of one record: its length, who appended it, its number there, and a pattern of these.
pub fn record(length: usize, thread: usize, number: usize) -> Vec<u8> {
    let mut bytes = vec![length as u8, thread as u8 + 1, number as u8];
    bytes.extend((3..length).map(|at| (at * 7 + thread * 31 + number * 13) as u8 | 1));
    bytes
}

impl Model {
    pub fn tick(&mut self) -> u64 {
        self.now += 1;
        self.now
    }

    /// Whether this reader must see the write.
    fn binds(&self, write: &Write, look: &Look) -> bool {
        let counts =
            if self.is_faulty || write.client != look.client { write.acknowledged } else { write.end };
        counts.is_some_and(|end| look.is_after(write.client, end))
    }

    /// Whether a cut may have removed what was written.
    fn may_be_cut(&self, at: u64, write: &Write, look: &Look) -> bool {
        let hits = |cut: &Cut| {
            cut.length <= at && cut.end.is_none_or(|end| end >= write.begin) && cut.begin <= look.end
        };
        self.cuts.iter().any(hits)
    }

    /// Whether a cut has removed what was written.
    fn is_cut(&self, at: u64, write: &Write, look: &Look) -> bool {
        let hits = |cut: &Cut| {
            let settled = if write.client == cut.client { write.end } else { write.acknowledged };
            cut.length <= at
                && settled.is_some_and(|settled| settled < cut.begin)
                && cut.end.is_some_and(|end| look.is_after(cut.client, end))
        };
        self.cuts.iter().any(hits)
    }

    /// What is wrong with these bytes of the file, from its start to its end.
    pub fn check_slots(&self, bytes: &[u8], look: &Look) -> Result<(), String> {
        let mut covered = vec![false; bytes.len()];
        for (number, slot) in self.slots.iter().enumerate() {
            let range = slot.at as usize..(slot.at + SLOT_BYTES) as usize;
            covered[range.start.min(bytes.len())..range.end.min(bytes.len())].fill(true);
            let version = match bytes.get(range) {
                None => 0,
                Some(seen) => {
                    let version = u32::from_le_bytes(seen[..4].try_into().unwrap()) as usize;
                    if seen != stamp(version) || version > slot.writes.len() {
                        return Err(format!("slot {number} is torn: {seen:?}"));
                    }
                    version
                }
            };
            self.check_slot(number, slot, version, look)?;
        }
        match covered.iter().zip(bytes).position(|(covered, byte)| !covered && *byte != 0) {
            Some(at) => Err(format!("byte {at} was never written")),
            None => Ok(()),
        }
    }

    fn check_slot(&self, number: usize, slot: &Slot, version: usize, look: &Look) -> Result<(), String> {
        if version > 0 && self.is_cut(slot.at, &slot.writes[version - 1], look) {
            return Err(format!("slot {number} has version {version}, which was cut away; {look:?}"));
        }
        let newest =
            (1..=slot.writes.len()).rev().find(|version| self.binds(&slot.writes[version - 1], look));
        let Some(newest) = newest else { return Ok(()) };
        let cut = version == 0 && self.may_be_cut(slot.at, &slot.writes[newest - 1], look);
        if version < newest && !cut {
            return Err(format!("slot {number} has version {version} and not {newest}; {look:?}"));
        }
        Ok(())
    }

    /// What is wrong with a length.
    pub fn check_length(&self, length: u64, look: &Look) -> Result<(), String> {
        for (number, slot) in self.slots.iter().enumerate() {
            let bound = slot.writes.iter().rfind(|write| self.binds(write, look));
            if let Some(write) = bound
                && length < slot.at + SLOT_BYTES
                && !self.may_be_cut(slot.at, write, look)
            {
                return Err(format!("length {length} is before the end of slot {number}; {look:?}"));
            }
        }
        let must =
            |(write, bytes): &(Write, Vec<u8>)| if self.binds(write, look) { bytes.len() as u64 } else { 0 };
        let records: u64 = self.records.iter().map(must).sum();
        if length < records {
            return Err(format!("length {length} is less than {records} bytes of records; {look:?}"));
        }
        Ok(())
    }

    /// What is wrong with these bytes of a file of records. `whole`: nothing else may be in it.
    pub fn check_records(&self, bytes: &[u8], look: &Look, whole: bool) -> Result<(), String> {
        let mut seen = vec![false; self.records.len()];
        let mut last: Vec<Option<usize>> = vec![None; 64];
        let mut at = 0;
        while at < bytes.len() {
            let length = usize::from(bytes[at]);
            let found = bytes.get(at..at + length.max(3)).and_then(|found| {
                self.records.iter().position(|(write, record)| record == found && write.begin < look.end)
            });
            let Some(number) = found else {
                if whole {
                    return Err(format!(
                        "no record at {at}: {:?}; {look:?}",
                        &bytes[at..bytes.len().min(at + 8)]
                    ));
                }
                // Bytes on their way, or lost with an error.
                at += 1;
                continue;
            };
            if std::mem::replace(&mut seen[number], true) {
                return Err(format!("record {number} is there twice; {look:?}"));
            }
            let thread = self.records[number].0.thread;
            if last[thread].is_some_and(|last| last > number) {
                return Err(format!("record {number} is not in order; {look:?}"));
            }
            last[thread] = Some(number);
            at += length;
        }
        match (0..seen.len()).find(|number| !seen[*number] && self.binds(&self.records[*number].0, look)) {
            Some(number) => Err(format!("record {number} is lost; {look:?}")),
            None => Ok(()),
        }
    }

    /// What is wrong with permissions.
    pub fn check_mode(&self, permissions: u32, look: &Look) -> Result<(), String> {
        let over = |mode: &Mode, begin: u64| {
            let later = |other: &Mode| other.begin > begin && other.end.is_some_and(|end| end < look.begin);
            mode.end.is_some_and(|end| self.modes.iter().any(|other| later(other) && other.begin > end))
        };
        let fits = |mode: &&Mode| {
            mode.permissions == permissions && mode.begin < look.end && !over(mode, mode.begin)
        };
        if self.modes.is_empty() || self.modes.iter().any(|mode| fits(&mode)) {
            return Ok(());
        }
        Err(format!("permissions {permissions:o} are not what was set last; {look:?}"))
    }

    /// Everything of this client that had ended before `begin` is acknowledged, if `counts`.
    pub fn acknowledge(&mut self, client: usize, begin: u64, counts: impl Fn(&Write) -> bool) {
        let now = self.tick();
        let slots = self.slots.iter_mut().flat_map(|slot| &mut slot.writes);
        let all = slots.chain(self.records.iter_mut().map(|(write, _)| write));
        for write in all {
            let ended = write.end.is_some_and(|end| end < begin);
            if write.client == client && ended && write.acknowledged.is_none() && counts(write) {
                write.acknowledged = Some(now);
            }
        }
    }
}
