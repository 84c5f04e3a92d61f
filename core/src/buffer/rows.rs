//! Rows of equal width at regular distances, in memory that processes share: moved by number, summed, and cast.
//!
//! - R1 Every number of a row is checked before the first byte is written, so that a call does all or nothing.
//! - R2 What is computed with is copied first, into memory of this thread. Whoever shares the memory orders its writes
//!   by flags; one that does not gives torn numbers, never undefined ones.
//! - R3 Sums and products are made one after the other in `f32`, as loops over the rows would make them: the same bits
//!   on every machine.

use std::fmt;

mod casts;
mod logs;
mod sums;
mod widest;

pub use casts::cast;
pub use logs::{pack as pack_logs, sum as sum_logs};
pub use sums::sum;
use widest::widest;

/// Channels that share a scale.
const BLOCK: usize = 128;

/// Bytes of a word that `turn` moves.
const WORD: usize = 4;

/// What the bytes of a row are, where they are computed with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Number {
    Bfloat16,
    Float32,
}

impl Number {
    fn bytes(self) -> usize {
        match self {
            Number::Bfloat16 => 2,
            Number::Float32 => 4,
        }
    }
}

/// Rows that do not fit together, with the reason in words.
#[derive(Debug, PartialEq, Eq)]
pub struct Unfit(pub String);

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `count` rows of `width` bytes, each `stride` bytes after the one before it.
#[derive(Clone, Copy)]
pub struct Rows {
    start: *mut u8,
    count: usize,
    width: usize,
    stride: usize,
}

// SAFETY: rows are addresses that their maker holds valid for every thread; bytes are accessed by copying alone.
unsafe impl Send for Rows {}
// SAFETY: as above.
unsafe impl Sync for Rows {}

impl Rows {
    /// Rows in memory from `start` on.
    ///
    /// # Safety
    /// As long as the value is used, all bytes of all rows are valid for reads and, where the rows are a call's target,
    /// for writes.
    pub unsafe fn from_raw(start: *mut u8, count: usize, width: usize, stride: usize) -> Rows {
        Rows { start, count, width, stride }
    }

    /// How many.
    pub fn count(self) -> usize {
        self.count
    }

    fn at(self, row: usize) -> *mut u8 {
        debug_assert!(row < self.count, "numbers are checked first");
        // SAFETY: row `row` lies in the memory that the maker has promised.
        unsafe { self.start.add(row * self.stride) }
    }

    fn read(self, row: usize, from: usize, into: &mut [u8]) {
        debug_assert!(from + into.len() <= self.width, "pieces lie in their row");
        // SAFETY: the piece lies in a row that is valid for reads; `into` is memory of ours.
        unsafe { self.at(row).add(from).copy_to(into.as_mut_ptr(), into.len()) }
    }

    fn write(self, row: usize, from: usize, data: &[u8]) {
        debug_assert!(from + data.len() <= self.width, "pieces lie in their row");
        // SAFETY: the piece lies in a row that is valid for writes; `data` is memory of ours.
        unsafe { self.at(row).add(from).copy_from(data.as_ptr(), data.len()) }
    }
}

/// Moves rows: the i-th number of `targets` names the row that the i-th number of `sources` is copied to. No numbers:
/// all rows, in their order.
pub fn copy(
    target: Rows,
    targets: Option<&[i64]>,
    source: Rows,
    sources: Option<&[i64]>,
) -> Result<(), Unfit> {
    if source.width != target.width {
        return Err(Unfit(format!(
            "rows of {} bytes do not fit into rows of {} bytes",
            source.width, target.width
        )));
    }
    for (from, to) in Pairs::new(targets, target.count, sources, source.count)?.iter() {
        // SAFETY: both rows were checked to be among those that are valid, and are equally wide; they may overlap.
        unsafe { target.at(to).copy_from(source.at(from), source.width) };
    }
    Ok(())
}

/// Moves rows of 32-bit words into columns: with `width` words a row, and `length` in a row of `target`, word w of a row
/// that is to be row n goes to place n % length of row n / length * width + w.
pub fn turn(
    target: Rows,
    targets: Option<&[i64]>,
    source: Rows,
    sources: Option<&[i64]>,
) -> Result<(), Unfit> {
    let (width, length) = (source.width / WORD, target.width / WORD);
    let is_whole = source.width.is_multiple_of(WORD) && target.width.is_multiple_of(WORD);
    if !is_whole || width == 0 || !target.count.is_multiple_of(width) {
        return Err(Unfit(format!(
            "rows of {} bytes do not turn into {} of {} bytes",
            source.width, target.count, target.width
        )));
    }
    let mut word = [0_u8; WORD];
    for (from, to) in Pairs::new(targets, target.count / width * length, sources, source.count)?.iter() {
        for column in 0..width {
            source.read(from, column * WORD, &mut word);
            target.write(to / length * width + column, to % length * WORD, &word);
        }
    }
    Ok(())
}

/// Which row of a source goes where in a target: the i-th of `sources` to the i-th of `targets`. No numbers: all, in their
/// order.
#[derive(Clone, Copy)]
struct Pairs<'a> {
    targets: Option<&'a [i64]>,
    sources: Option<&'a [i64]>,
    count: usize,
}

impl<'a> Pairs<'a> {
    /// Of a target with `room` places and a source of so many `rows`.
    fn new(
        targets: Option<&'a [i64]>,
        room: usize,
        sources: Option<&'a [i64]>,
        rows: usize,
    ) -> Result<Pairs<'a>, Unfit> {
        let count = sources.map_or(rows, <[i64]>::len);
        let wanted = targets.map_or(room, <[i64]>::len);
        if count != wanted {
            return Err(Unfit(format!("{count} rows do not fit into {wanted}")));
        }
        check(sources, rows, "sources")?;
        check(targets, room, "targets")?;
        Ok(Pairs { targets, sources, count })
    }

    /// (from, to) of each row.
    fn iter(self) -> impl Iterator<Item = (usize, usize)> + use<'a> {
        let nth = |numbers: Option<&[i64]>, index: usize| numbers.map_or(index, |all| all[index] as usize);
        (0..self.count).map(move |index| (nth(self.sources, index), nth(self.targets, index)))
    }
}

fn check(numbers: Option<&[i64]>, count: usize, what: &str) -> Result<(), Unfit> {
    let wrong = numbers.unwrap_or(&[]).iter().find(|&&each| each < 0 || each >= count as i64);
    wrong.map_or(Ok(()), |each| Err(Unfit(format!("{what} hold {each}; there are {count} rows"))))
}

#[inline(always)]
fn from_bfloat16(word: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(word)) << 16)
}

/// Rounded to the nearest, ties to even.
#[inline(always)]
fn to_bfloat16(value: f32) -> [u8; 2] {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    (if value.is_nan() { 0x7fc0 } else { rounded }).to_le_bytes()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub fn rows(bytes: &mut [u8], width: usize, stride: usize) -> Rows {
        let count = if bytes.is_empty() { 0 } else { (bytes.len() - width) / stride + 1 };
        // SAFETY: so many rows lie in the slice, which tests keep as long as the rows.
        unsafe { Rows::from_raw(bytes.as_mut_ptr(), count, width, stride) }
    }

    #[test]
    fn rows_go_where_numbers_say() {
        let mut source: Vec<u8> = (0..12).collect();
        let mut target = [0_u8; 10];
        let (from, to) = (rows(&mut source, 2, 3), rows(&mut target, 2, 4));
        copy(to, Some(&[2, 0]), from, Some(&[1, 3])).unwrap();
        assert_eq!(target, [9, 10, 0, 0, 0, 0, 0, 0, 3, 4]);
    }

    #[test]
    fn nothing_moves_if_a_number_is_wrong() {
        let mut source = [1_u8; 4];
        let mut target = [0_u8; 4];
        let (from, to) = (rows(&mut source, 2, 2), rows(&mut target, 2, 2));
        for wrong in [-1, 2] {
            let error = copy(to, None, from, Some(&[0, wrong])).unwrap_err();
            assert_eq!(error.0, format!("sources hold {wrong}; there are 2 rows"));
            assert!(copy(to, Some(&[0, wrong]), from, None).is_err());
        }
        assert!(copy(to, None, from, Some(&[0])).is_err());
        assert!(copy(rows(&mut [0; 2], 1, 1), None, from, None).is_err());
        assert_eq!(target, [0; 4]);
    }

    #[test]
    fn rows_turn_into_columns() {
        let mut source: Vec<u8> = (0..24).collect();
        let mut target = [0_u8; 32];
        let (from, to) = (rows(&mut source, 8, 8), rows(&mut target, 8, 8));
        turn(to, Some(&[3, 0]), from, Some(&[2, 1])).unwrap();
        let word = |at: usize| target[at * 4];
        assert_eq!((word(0), word(2), word(5), word(7)), (8, 12, 16, 20));
        assert_eq!(word(1) + word(3) + word(4) + word(6), 0);
        assert!(turn(to, Some(&[4]), from, Some(&[0])).is_err());
        assert!(turn(to, None, from, None).is_err());
        assert!(turn(rows(&mut [0; 12], 4, 4), Some(&[0]), from, Some(&[0])).is_err());
    }

    #[test]
    fn bfloat16_is_rounded_to_even() {
        let cases = [(1.0, 0x3f80), (1.003_906_2, 0x3f80), (1.003_906_4, 0x3f81), (1.011_718_8, 0x3f82)];
        for (value, bits) in cases {
            assert_eq!(u16::from_le_bytes(to_bfloat16(value)), bits, "{value}");
        }
        assert!(from_bfloat16(to_bfloat16(f32::NAN)).is_nan());
        assert_eq!(from_bfloat16(to_bfloat16(f32::MAX)), f32::INFINITY);
    }
}
