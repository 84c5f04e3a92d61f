//! Records of format 3, which releases before wrote: read, never written. The first byte is the format.

use std::sync::Arc;

use super::fields::{
    FALLBACKS_MAX, FALLBACKS_SHIFT, HAS_COMMITTED, HAS_PENDING, Input, Malformed, op_from_fields,
};
#[cfg(test)]
use super::fields::{op_fields, seal};
#[cfg(test)]
use super::runs::runs_of;
use super::runs::{Run, apply};
use crate::chunk::state::{ContentState, PendingState, Record, page_count};
use crate::types::{CHUNK_BYTES_MAX, ChainVersion, ClientId, RequestTag, Stamp, Version, WriterRecord};

pub const FORMAT: u8 = 3;
const FLAGS: u8 = 0b1111;
const REMOVED: u16 = 1;

/// What stands between the format and the checksum.
pub fn decode(body: &[u8]) -> Result<Record, Malformed> {
    let mut input = Input(body);
    let [flags] = input.take()?;
    let writer_count = input.u16()?;
    let writers = (0..writer_count)
        .map(|_| {
            let writer = WriterRecord::decode(&input.take()?);
            Ok(WriterRecord { round: input.u64()?, ..writer })
        })
        .collect::<Result<_, Malformed>>()?;
    let fallback_count = usize::from(flags >> FALLBACKS_SHIFT);
    if flags & !FLAGS != 0 || fallback_count > FALLBACKS_MAX {
        return Err(Malformed::Field);
    }
    let committed = match flags & HAS_COMMITTED {
        0 => None,
        _ => Some(Arc::new(decode_state(&mut input, None)?)),
    };
    let base = committed.as_deref();
    let fallbacks = (0..fallback_count)
        .map(|_| Ok(Arc::new(decode_state(&mut input, base)?)))
        .collect::<Result<_, Malformed>>()?;
    let pending = match flags & HAS_PENDING {
        0 => None,
        _ => Some(decode_pending(&mut input, base)?),
    };
    match input.0.is_empty() {
        true => Ok(Record { committed, fallbacks, pending, writers }),
        false => Err(Malformed::Length),
    }
}

fn decode_pending(input: &mut Input<'_>, base: Option<&ContentState>) -> Result<PendingState, Malformed> {
    let tag = RequestTag { client: ClientId(input.u64()?), sequence: input.u64()? };
    let op = op_from_fields(input.u32()?, input.u32()?, input.u32()?)?;
    Ok(PendingState { state: Arc::new(decode_state(input, base)?), op, tag })
}

fn decode_state(input: &mut Input<'_>, base: Option<&ContentState>) -> Result<ContentState, Malformed> {
    let stamp = Stamp { chain_version: ChainVersion(input.u64()?), version: Version(input.u64()?) };
    let round = input.u64()?;
    let length = input.u32()?;
    let tail_used = input.u32()?;
    let removed = input.u16()? & REMOVED != 0;
    let run_count = usize::from(input.u16()?);
    if length > CHUNK_BYTES_MAX || run_count > page_count(length) {
        return Err(Malformed::Field);
    }
    let runs = (0..run_count).map(|_| decode_run(input)).collect::<Result<Vec<Run>, _>>()?;
    let (extents, crcs) = apply(&runs, || input.u32(), base, page_count(length))?;
    Ok(ContentState { stamp, length, tail_used, removed, round, extents, crcs })
}

fn decode_run(input: &mut Input<'_>) -> Result<Run, Malformed> {
    let (index, count) = (usize::from(input.u16()?), u32::from(input.u16()?));
    Run::new(index, input.u32()?, count)
}

/// As releases before wrote it.
#[cfg(test)]
pub mod writing {
    use super::*;

    pub fn encode(record: &Record) -> Vec<u8> {
        let committed = if record.committed.is_some() { HAS_COMMITTED } else { 0 };
        let pending = if record.pending.is_some() { HAS_PENDING } else { 0 };
        let mut out = vec![FORMAT, committed | pending | (record.fallbacks.len() as u8) << FALLBACKS_SHIFT];
        out.extend((record.writers.len() as u16).to_le_bytes());
        for writer in &record.writers {
            out.extend(writer.encode());
            out.extend(writer.round.to_le_bytes());
        }
        let base = record.committed.as_deref();
        base.into_iter().for_each(|state| encode_state(state, None, &mut out));
        record.fallbacks.iter().for_each(|state| encode_state(state, base, &mut out));
        if let Some(pending) = &record.pending {
            out.extend(pending.tag.client.0.to_le_bytes());
            out.extend(pending.tag.sequence.to_le_bytes());
            let (kind, first, second) = op_fields(pending.op);
            [kind, first, second].iter().for_each(|field| out.extend(field.to_le_bytes()));
            encode_state(&pending.state, base, &mut out);
        }
        seal(out)
    }

    fn encode_state(state: &ContentState, base: Option<&ContentState>, out: &mut Vec<u8>) {
        out.extend(state.stamp.chain_version.0.to_le_bytes());
        out.extend(state.stamp.version.0.to_le_bytes());
        out.extend(state.round.to_le_bytes());
        out.extend(state.length.to_le_bytes());
        out.extend(state.tail_used.to_le_bytes());
        out.extend((u16::from(state.removed) * REMOVED).to_le_bytes());
        let runs = runs_of(state, base);
        out.extend((runs.len() as u16).to_le_bytes());
        for run in &runs {
            out.extend((run.index as u16).to_le_bytes());
            out.extend((run.extent.count as u16).to_le_bytes());
            out.extend(run.extent.first.to_le_bytes());
        }
        let crcs = runs.iter().flat_map(|run| &state.crcs[run.index..run.end()]);
        crcs.for_each(|crc| out.extend(crc.to_le_bytes()));
    }
}
