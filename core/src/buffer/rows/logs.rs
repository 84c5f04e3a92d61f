//! LogFMT: bfloat16 as ten bits a channel, where the logarithm of its magnitude lies in its block's range.
//!
//! A packed row has a byte a channel, the other two bits of four neighbours in a byte each, and (least, step) of each
//! block as float32. Code 0 is zero, 1 to 511 are steps from the least logarithm on, bit 9 is the sign. A block in
//! which something is not finite has no range: what is not zero there comes back as NaN.

use std::f32::consts::LN_2;
use std::sync::OnceLock;

use super::sums::Terms;
use super::{BLOCK, Number, Pairs, Rows, Unfit, from_bfloat16, widest};

/// Powers of two between the largest and the least magnitude of a block that are told apart.
const LOG_RANGE: f32 = 32.0;

/// Steps between them.
const LOG_STEPS: f32 = 510.0;

/// How many magnitudes bfloat16 has, infinity and NaN among them.
const MAGNITUDES: usize = 1 << 15;

/// The least that is not finite.
const INFINITE: u16 = 0x7f80;

/// 2^x = 2^n · p(x - n) for the nearest integer n: the polynomial of torch's vectors, from its highest power on, whose
/// steps are fused. With it 2^x has the bits that torch gives.
const EXP2: [f32; 7] =
    [0.153_592_09e-3, 0.133_926_27e-2, 0.961_838_5e-2, 0.555_034_73e-1, 0.240_226_45, LN_2, 1.0];

/// Packs rows: the i-th number of `targets` names the row that the i-th number of `sources` is packed into. No numbers:
/// all rows, in their order.
pub fn pack(
    target: Rows,
    targets: Option<&[i64]>,
    source: Rows,
    sources: Option<&[i64]>,
) -> Result<(), Unfit> {
    if !source.width.is_multiple_of(2) {
        return Err(Unfit(format!("rows of {} bytes are not bfloat16", source.width)));
    }
    check_width(target, source.width / 2)?;
    let pairs = Pairs::new(targets, target.count, sources, source.count)?;
    let logarithms = logarithms();
    widest(
        #[inline(always)]
        || {
            let mut packed = vec![0_u8; target.width];
            for (from, to) in pairs.iter() {
                pack_row(&mut packed, source, from, logarithms);
                target.write(to, 0, &packed);
            }
        },
    );
    Ok(())
}

/// As `rows::sum`, of parts that `pack` has packed.
pub fn sum(
    number: Number,
    target: Rows,
    parts: &[Rows],
    places: &[i64],
    weights: Option<&[f32]>,
) -> Result<(), Unfit> {
    let channels = target.width / number.bytes();
    for part in parts {
        check_width(*part, channels)?;
    }
    let mut packed = vec![0_u8; parts.first().map_or(0, |part| part.width)];
    Terms { parts, places, weights }.sum(
        number,
        target,
        #[inline(always)]
        |totals, part, row, weight| {
            part.read(row, 0, &mut packed);
            add_row(totals, &packed, weight.unwrap_or(1.0));
        },
    )
}

fn check_width(packed: Rows, channels: usize) -> Result<(), Unfit> {
    let width = channels / 4 * 5 + channels / BLOCK * 8;
    if channels.is_multiple_of(BLOCK) && packed.width == width {
        return Ok(());
    }
    Err(Unfit(format!(
        "packed rows of {} bytes for {channels} channels: it must be {width} and whole blocks of {BLOCK}",
        packed.width
    )))
}

/// log2 of every magnitude, rounded once.
fn logarithms() -> &'static [f32; MAGNITUDES] {
    static LOGARITHMS: OnceLock<Box<[f32; MAGNITUDES]>> = OnceLock::new();
    LOGARITHMS.get_or_init(|| {
        let all = (0..MAGNITUDES as u32).map(|bits| f64::from(f32::from_bits(bits << 16)).log2() as f32);
        all.collect::<Vec<_>>().try_into().expect("so many were made")
    })
}

#[inline(always)]
fn pack_row(packed: &mut [u8], source: Rows, row: usize, logarithms: &[f32; MAGNITUDES]) {
    let mut bytes = [0_u8; 2 * BLOCK];
    let (codes, ranges) = packed.split_at_mut(source.width / 8 * 5);
    let (low, high) = codes.split_at_mut(source.width / 2);
    let blocks = low.as_chunks_mut().0.iter_mut().zip(high.as_chunks_mut().0).zip(ranges.as_chunks_mut().0);
    for (block, ((low, high), range)) in blocks.enumerate() {
        source.read(row, block * 2 * BLOCK, &mut bytes);
        pack_block(&bytes, low, high, range, logarithms);
    }
}

#[inline(always)]
fn pack_block(
    bytes: &[u8; 2 * BLOCK],
    low: &mut [u8; BLOCK],
    high: &mut [u8; BLOCK / 4],
    range: &mut [u8; 8],
    logarithms: &[f32; MAGNITUDES],
) {
    let (mut words, mut logs) = ([0_u16; BLOCK], [0_f32; BLOCK]);
    for (word, &pair) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u16::from_le_bytes(pair);
    }
    for (log, word) in logs.iter_mut().zip(&words) {
        *log = logarithms[usize::from(word & 0x7fff)];
    }
    let (least, step) = range_of(&words, logarithms);
    let mut tops = [0_u8; BLOCK];
    for (((low, top), &log), word) in low.iter_mut().zip(&mut tops).zip(&logs).zip(&words) {
        let code =
            u32::from(from_bfloat16(word.to_le_bytes()) < 0.0) << 9 | place(log, word & 0x7fff, least, step);
        *low = code as u8;
        *top = (code >> 8) as u8;
    }
    for (byte, &four) in high.iter_mut().zip(tops.as_chunks().0) {
        let four = u32::from_le_bytes(four);
        *byte = (four | four >> 6 | four >> 12 | four >> 18) as u8;
    }
    range[..4].copy_from_slice(&least.to_le_bytes());
    range[4..].copy_from_slice(&step.to_le_bytes());
}

/// The least logarithm of a block and the distance of its steps; zeros are not looked at.
#[inline(always)]
fn range_of(words: &[u16; BLOCK], logarithms: &[f32; MAGNITUDES]) -> (f32, f32) {
    let largest = words.iter().fold(0_u16, |most, word| most.max(word & 0x7fff));
    let least = words.iter().fold(u16::MAX, |least, word| least.min((word & 0x7fff).wrapping_sub(1)));
    if largest == 0 {
        return (0.0, 0.0);
    }
    if largest >= INFINITE {
        return (f32::NAN, f32::NAN);
    }
    let largest = logarithms[usize::from(largest)];
    let least = logarithms[usize::from(least + 1)].max(largest - LOG_RANGE);
    (least, (largest - least) * ((1.0 / f64::from(LOG_STEPS)) as f32))
}

/// 0 for zero and for what is below the range, else the number of steps to it and one.
#[inline(always)]
fn place(log: f32, magnitude: u16, least: f32, step: f32) -> u32 {
    let steps = if step > 0.0 { (log - least) / step } else { 0.0 } + 0.5;
    let is_there = magnitude != 0 && steps >= 0.0;
    let steps = if steps < LOG_STEPS { steps } else { LOG_STEPS };
    let (nearest, whole) = nearest_integer(steps);
    let place = (whole as u32).wrapping_add(u32::from(nearest <= steps));
    if is_there { place } else { 0 }
}

#[inline(always)]
fn add_row(totals: &mut [f32], packed: &[u8], weight: f32) {
    let (codes, ranges) = packed.split_at(totals.len() / 4 * 5);
    let (low, high) = codes.split_at(totals.len());
    let low = low.as_chunks::<BLOCK>().0.iter().zip(high.as_chunks::<{ BLOCK / 4 }>().0);
    let blocks = totals.as_chunks_mut::<BLOCK>().0.iter_mut().zip(low).zip(ranges.as_chunks::<8>().0);
    for ((totals, (low, high)), range) in blocks {
        let words = range.as_chunks().0;
        let (least, step) = (f32::from_le_bytes(words[0]), f32::from_le_bytes(words[1]));
        let mut tops = [0_u8; BLOCK];
        for (four, &byte) in tops.as_chunks_mut().0.iter_mut().zip(high) {
            let byte = u32::from(byte);
            *four = ((byte | byte << 6 | byte << 12 | byte << 18) & 0x0303_0303).to_le_bytes();
        }
        for ((total, &low), &top) in totals.iter_mut().zip(low).zip(&tops) {
            *total += value(u32::from(low) | u32::from(top) << 8, least, step) * weight;
        }
    }
}

#[inline(always)]
fn value(code: u32, least: f32, step: f32) -> f32 {
    let place = code & 0x1ff;
    let magnitude = exp2(least + (place as i32 as f32 - 1.0) * step);
    let magnitude = if place == 0 { 0.0 } else { magnitude };
    f32::from_bits(magnitude.to_bits() | (code & 0x200) << 22)
}

/// 2 to the power `x`.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    let (nearest, whole) = nearest_integer(x);
    let rest = x - nearest;
    let mut product = EXP2[0];
    for factor in &EXP2[1..] {
        product = product.mul_add(rest, *factor);
    }
    // In two steps, so that what has no exponent of its own is rounded once.
    let power = |of: i32| f32::from_bits((of.wrapping_add(127) << 23) as u32);
    let result = product * power(whole >> 1) * power(whole.wrapping_sub(whole >> 1));
    let result = if x >= 128.0 { f32::INFINITY } else { result };
    if x < -150.0 { 0.0 } else { result }
}

/// Of a small number, ties to even; as a vector's instructions can, which conversions that saturate are not among.
#[inline(always)]
fn nearest_integer(x: f32) -> (f32, i32) {
    /// Adding it leaves an integer in the lowest bits.
    const INTEGERS: f32 = 12_582_912.0;
    let shifted = x + INTEGERS;
    (shifted - INTEGERS, shifted.to_bits().wrapping_sub(INTEGERS.to_bits()) as i32)
}

#[cfg(test)]
mod tests {
    use super::super::tests::rows;
    use super::super::to_bfloat16;
    use super::*;

    const PACKED: usize = BLOCK / 4 * 5 + 8;

    fn there_and_back(values: [f32; BLOCK]) -> Vec<f32> {
        let mut source: Vec<u8> = values.iter().flat_map(|&each| to_bfloat16(each)).collect();
        let (mut packed, mut back) = ([0_u8; PACKED], [0_u8; 4 * BLOCK]);
        let between = rows(&mut packed, PACKED, 1);
        pack(between, None, rows(&mut source, 2 * BLOCK, 1), None).unwrap();
        sum(Number::Float32, rows(&mut back, 4 * BLOCK, 1), &[between], &[0], None).unwrap();
        back.as_chunks().0.iter().map(|&each| f32::from_le_bytes(each)).collect()
    }

    #[test]
    fn values_come_back() {
        let values = std::array::from_fn(|channel| match channel % 17 {
            3 => 0.0,
            each if each % 2 == 0 => 2_f32.powi(each as i32),
            each => -1.1 * 2_f32.powi(each as i32),
        });
        for (value, back) in values.iter().zip(there_and_back(values)) {
            let given = from_bfloat16(to_bfloat16(*value));
            assert!((back - given).abs() <= 0.012 * given.abs(), "{given} came back as {back}");
        }
    }

    #[test]
    fn what_is_not_finite_is_not_made_finite() {
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let mut values = [1.0; BLOCK];
            (values[5], values[6]) = (bad, 0.0);
            let back = there_and_back(values);
            assert!(
                back.iter().enumerate().all(|(channel, each)| each.is_nan() == (channel != 6)),
                "{back:?}"
            );
        }
    }

    #[test]
    fn powers_of_two_are_within_a_bit() {
        for step in -15_500..13_500 {
            let x = step as f32 / 100.0;
            let (ours, exact) = (f64::from(exp2(x)), f64::from(x).exp2());
            let close = (ours - exact).abs() <= exact * 2_f64.powi(-23) + 2_f64.powi(-149);
            assert!(close || x >= 128.0 && ours == f64::INFINITY, "{x}: {ours} is not {exact}");
        }
        assert!(exp2(f32::NAN).is_nan());
        assert_eq!((exp2(f32::INFINITY), exp2(f32::NEG_INFINITY)), (f32::INFINITY, 0.0));
    }

    #[test]
    fn rows_that_do_not_fit_are_refused() {
        let (mut source, mut packed) = ([0_u8; 2 * BLOCK], [0_u8; PACKED]);
        let (from, between) = (rows(&mut source, 2 * BLOCK, 1), rows(&mut packed, PACKED, 1));
        assert!(pack(from, None, from, None).is_err());
        assert!(pack(between, None, from, Some(&[1])).is_err());
        assert!(pack(between, Some(&[0]), from, Some(&[0, 0])).is_err());
        assert!(sum(Number::Bfloat16, from, &[from], &[0], None).is_err());
        assert!(sum(Number::Bfloat16, from, &[between], &[1], None).is_err());
    }
}
