//! Slow operations: chunks that one update or push has held for long.

use std::cmp::Reverse;
use std::time::Duration;

use super::server::StorageServer;
use super::table::SlotRef;

impl StorageServer {
    /// A line for each chunk that one update or push has held for `limit` or longer, the longest first: what it waits
    /// for, and how many wait for it. A chunk whose record is being read at this moment is left out.
    pub fn slow_ops(&self, limit: Duration) -> Vec<String> {
        let slots = self.node.table.all();
        let mut found: Vec<(Duration, String)> =
            slots.iter().filter_map(describe).filter(|(held, _)| *held >= limit).collect();
        found.sort_by_key(|(held, _)| Reverse(*held));
        found.into_iter().map(|(_, line)| line).collect()
    }
}

fn describe(slot: &SlotRef) -> Option<(Duration, String)> {
    let state = slot.state.try_lock()?;
    let progress = state.machine.as_ref()?.progress()?;
    let held = state.work?.1.elapsed();
    let (key, callers) = (slot.key, state.callers.len());
    let refusal = state.refusal.map_or(String::new(), |status| format!(", refused last: {status}"));
    let line = format!(
        "chunk {} of content {} on chain {}, for {:.1} s: {progress}; {callers} requests wait{refusal}",
        key.chunk.index,
        key.chunk.content,
        key.chain,
        held.as_secs_f32()
    );
    Some((held, line))
}
