//! What the index holds of one chunk, and when an update stores a delta instead of the whole record.

use std::sync::Arc;

use super::codec::{self, Base, Malformed};
use super::state::Record;

/// The values that stand in the index for a chunk.
#[derive(Clone, Default)]
pub struct StoredForm {
    /// `None`: nothing is there.
    base: Option<Arc<Base>>,
    has_delta: bool,
}

/// What is to be written for a record.
pub enum Values {
    Delta(Vec<u8>),
    Base {
        value: Vec<u8>,
        /// The delta of the base before goes with it.
        is_delta_removed: bool,
    },
}

impl StoredForm {
    /// What to write for `record` where this is stored, and what is stored then. A delta of more than `percent_max` hundredths
    /// of its base gives way to a new base.
    pub fn update(&self, record: &Record, percent_max: u32) -> (Values, StoredForm) {
        if let Some(base) = &self.base {
            let delta = codec::encode_delta(record, base);
            if delta.len() * 100 <= base.bytes() * percent_max as usize {
                return (Values::Delta(delta), StoredForm { base: Some(base.clone()), has_delta: true });
            }
        }
        let (value, base) = codec::encode_base(record);
        let after = StoredForm { base: Some(Arc::new(base)), has_delta: false };
        (Values::Base { value, is_delta_removed: self.has_delta }, after)
    }

    #[cfg(test)]
    pub fn has_delta(&self) -> bool {
        self.has_delta
    }

    /// Bytes of memory, roughly.
    pub fn memory(&self) -> usize {
        self.base.as_ref().map_or(0, |base| base.memory())
    }
}

/// The record that two values are.
pub fn decode(base: Option<&[u8]>, delta: Option<&[u8]>) -> Result<(Record, StoredForm), Malformed> {
    let (record, base) = codec::decode_base(base.ok_or(Malformed::Base)?)?;
    let record = match delta {
        None => record,
        Some(delta) => codec::decode_delta(delta, &base)?,
    };
    Ok((record, StoredForm { base: Some(Arc::new(base)), has_delta: delta.is_some() }))
}
