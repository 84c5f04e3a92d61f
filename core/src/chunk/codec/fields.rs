//! The fields of a record, what all formats share: flags, fixed and variable integers, differences, operations.

use crate::chunk::checksum;
use crate::types::Op;

pub const HAS_COMMITTED: u8 = 1;
pub const HAS_PENDING: u8 = 2;
/// Where the number of fallbacks stands in the flags, of two bits.
pub const FALLBACKS_SHIFT: u32 = 2;
pub const FALLBACKS_MAX: usize = 2;

/// Bits of a variable integer that a byte holds; its highest bit says that more follow.
const BITS: u32 = 7;
const MORE: u8 = 1 << BITS;
/// Bytes of the largest variable integer.
const VARINT_BYTES_MAX: u32 = u64::BITS.div_ceil(BITS);

/// Why a value is not a record.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    #[error("key of {0} bytes")]
    Key(usize),
    #[error("the record's checksum does not match")]
    Checksum,
    #[error("record format {0} is not known")]
    Format(u8),
    #[error("the record ends early or has bytes left over")]
    Length,
    #[error("a field has an impossible value")]
    Field,
    #[error("a delta without the base that it was made for")]
    Base,
}

pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    pub fn take<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (head, rest) = self.0.split_first_chunk::<N>().ok_or(Malformed::Length)?;
        self.0 = rest;
        Ok(*head)
    }

    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.take().map(u16::from_le_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.take().map(u32::from_le_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.take().map(u64::from_le_bytes)
    }

    /// A variable integer: seven bits a byte, the lowest first.
    pub fn varint(&mut self) -> Result<u64, Malformed> {
        let mut value = 0;
        for place in 0..VARINT_BYTES_MAX {
            let [byte] = self.take()?;
            let bits = u64::from(byte & !MORE);
            let shifted = bits << (place * BITS);
            if shifted >> (place * BITS) != bits {
                return Err(Malformed::Field);
            }
            value |= shifted;
            if byte & MORE == 0 {
                return Ok(value);
            }
        }
        Err(Malformed::Field)
    }

    /// A variable integer that fits.
    pub fn varint_u32(&mut self) -> Result<u32, Malformed> {
        u32::try_from(self.varint()?).map_err(|_| Malformed::Field)
    }

    /// What differs from `base` by what stands here.
    pub fn difference(&mut self, base: u64) -> Result<u64, Malformed> {
        let coded = self.varint()?;
        Ok(base.wrapping_add((coded >> 1) ^ (coded & 1).wrapping_neg()))
    }

    /// As `difference`, where the result fits.
    pub fn difference_u32(&mut self, base: u32) -> Result<u32, Malformed> {
        u32::try_from(self.difference(u64::from(base))?).map_err(|_| Malformed::Field)
    }
}

pub fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= u64::from(MORE) {
        out.push(value as u8 | MORE);
        value >>= BITS;
    }
    out.push(value as u8);
}

/// `value - base`, small in either direction: its sign is the lowest bit.
pub fn put_difference(value: u64, base: u64, out: &mut Vec<u8>) {
    let difference = value.wrapping_sub(base) as i64;
    put_varint(((difference << 1) ^ (difference >> 63)) as u64, out);
}

/// With its checksum at the end.
pub fn seal(mut value: Vec<u8>) -> Vec<u8> {
    let crc = checksum::crc32c(&value);
    value.extend(crc.to_le_bytes());
    value
}

pub fn op_fields(op: Op) -> (u32, u32, u32) {
    match op {
        Op::Write { offset, length } => (1, offset, length),
        Op::Truncate { length } => (2, length, 0),
        Op::Remove => (3, 0, 0),
        Op::Replace { .. } => unreachable!("a replacement is never pending"),
    }
}

pub fn op_from_fields(kind: u32, first: u32, second: u32) -> Result<Op, Malformed> {
    match kind {
        1 => Ok(Op::Write { offset: first, length: second }),
        2 => Ok(Op::Truncate { length: first }),
        3 => Ok(Op::Remove),
        _ => Err(Malformed::Field),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn integers_and_differences_survive_the_round_trip(value: u64, base: u64) {
            let mut bytes = Vec::new();
            put_varint(value, &mut bytes);
            put_difference(value, base, &mut bytes);
            put_difference(base, value, &mut bytes);
            let mut input = Input(&bytes);
            prop_assert_eq!(input.varint(), Ok(value));
            prop_assert_eq!(input.difference(base), Ok(value));
            prop_assert_eq!(input.difference(value), Ok(base));
            prop_assert!(input.0.is_empty());
        }
    }

    #[test]
    fn small_integers_take_one_byte_and_the_largest_ten() {
        for (value, length) in [(0, 1), (127, 1), (128, 2), (1 << 21, 4), (u64::MAX, 10)] {
            let mut bytes = Vec::new();
            put_varint(value, &mut bytes);
            assert_eq!(bytes.len(), length);
        }
        let mut bytes = Vec::new();
        put_difference(1000, 1063, &mut bytes);
        put_difference(1063, 1000, &mut bytes);
        assert_eq!(bytes, [125, 126]);
    }

    #[test]
    fn an_integer_that_does_not_fit_is_refused() {
        assert_eq!(Input(&[0xff; 9]).varint(), Err(Malformed::Length));
        assert_eq!(Input(&[0xff; 20]).varint(), Err(Malformed::Field));
        assert_eq!(
            Input(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]).varint(),
            Err(Malformed::Field)
        );
        assert_eq!(Input(&[0xff, 0xff, 0xff, 0xff, 0x1f]).varint_u32(), Err(Malformed::Field));
        assert_eq!(Input(&[1]).difference_u32(0), Err(Malformed::Field), "-1");
    }
}
