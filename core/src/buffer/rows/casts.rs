//! FP8: e4m3 with a float32 scale for each 128 neighbours.

use super::{BLOCK, Rows, Unfit, from_bfloat16, widest};

/// The largest finite e4m3.
const E4M3_MAX: f32 = 448.0;

/// The least magnitude that a scale stands for: a block of zeros has a scale too.
const LEAST_MAGNITUDE: f32 = 1e-4;

/// Casts bfloat16 to e4m3, with a float32 scale for each 128 neighbours: largest magnitude / 448, or the next power of
/// two if it is to be rounded.
pub fn cast(values: Rows, scales: Rows, source: Rows, round_scale: bool) -> Result<(), Unfit> {
    let channels = source.width / 2;
    let fits = channels.is_multiple_of(BLOCK) && source.width == 2 * channels && values.width == channels;
    let count = source.count;
    if !fits || scales.width != channels / BLOCK * 4 || values.count != count || scales.count != count {
        return Err(Unfit(format!(
            "{count} rows of {channels} channels need as many rows of {channels} bytes and of {} bytes of scales, and \
             channels in blocks of {BLOCK}",
            channels / BLOCK * 4
        )));
    }
    widest(
        #[inline(always)]
        || {
            let (mut bytes, mut cast) = ([0_u8; 2 * BLOCK], [0_u8; BLOCK]);
            for row in 0..count {
                for block in 0..channels / BLOCK {
                    source.read(row, block * 2 * BLOCK, &mut bytes);
                    let scale = cast_block(&bytes, &mut cast, round_scale);
                    values.write(row, block * BLOCK, &cast);
                    scales.write(row, block * 4, &scale.to_le_bytes());
                }
            }
        },
    );
    Ok(())
}

#[inline(always)]
fn cast_block(bytes: &[u8; 2 * BLOCK], cast: &mut [u8; BLOCK], round_scale: bool) -> f32 {
    let words = bytes.as_chunks::<2>().0;
    // Magnitudes of bfloat16 are ordered as their bits are; NaN is above all, and stays.
    let bits = words.iter().fold(0_i16, |most, &word| most.max(i16::from_le_bytes(word) & 0x7fff));
    let most = f32::from_bits(u32::from(bits as u16) << 16);
    let most = if most < LEAST_MAGNITUDE { LEAST_MAGNITUDE } else { most };
    let (mut scale, mut factor) = (most * ((1.0 / f64::from(E4M3_MAX)) as f32), E4M3_MAX / most);
    if round_scale {
        scale = power_of_two_above(scale);
        factor = 1.0 / scale;
    }
    for (value, &word) in cast.iter_mut().zip(words) {
        *value = to_e4m3(from_bfloat16(word) * factor);
    }
    scale
}

/// The least power of two that is not below a normal positive value; 1 for what is not finite.
fn power_of_two_above(value: f32) -> f32 {
    if !value.is_finite() {
        return 1.0;
    }
    f32::from_bits(value.to_bits().wrapping_add(0x7f_ffff) & 0xff80_0000)
}

/// Rounded to the nearest, ties to even; what is too large becomes the largest.
#[inline(always)]
fn to_e4m3(value: f32) -> u8 {
    /// Adding it to a value below the least normal e4m3 leaves that value's code in the lowest bits.
    const SUBNORMAL: f32 = f32::from_bits(141 << 23);
    let sign = (value.to_bits() >> 24) as u8 & 0x80;
    let magnitude = value.abs();
    let magnitude = if magnitude > E4M3_MAX { E4M3_MAX } else { magnitude };
    let bits = magnitude.to_bits();
    let normal = bits.wrapping_sub(120 << 23).wrapping_add(0x7_ffff + (bits >> 20 & 1)) >> 20;
    let small = (magnitude + SUBNORMAL).to_bits().wrapping_sub(SUBNORMAL.to_bits());
    let code = if bits < 121 << 23 { small } else { normal };
    sign | if magnitude.is_nan() { 0x7f } else { code as u8 }
}

#[cfg(test)]
mod tests {
    use super::super::tests::rows;
    use super::super::to_bfloat16;
    use super::*;

    #[test]
    fn every_e4m3_is_its_own_nearest_and_ties_go_to_even() {
        let value = |code: u8| {
            let (exponent, mantissa) = (i32::from(code >> 3), f32::from(code & 7));
            if exponent == 0 { mantissa / 512.0 } else { (1.0 + mantissa / 8.0) * 2_f32.powi(exponent - 7) }
        };
        for code in 0..0x7f {
            assert_eq!(to_e4m3(value(code)), code);
            assert_eq!(to_e4m3(-value(code)), code | 0x80);
            if code < 0x7e {
                let middle = f32::midpoint(value(code), value(code + 1));
                assert_eq!(to_e4m3(middle), code + (code & 1));
                assert_eq!(to_e4m3(middle.next_up()), code + 1);
                assert_eq!(to_e4m3(middle.next_down()), code);
            }
        }
        assert_eq!(to_e4m3(1e9), 0x7e);
        assert_eq!(to_e4m3(f32::NAN) & 0x7f, 0x7f);
    }

    #[test]
    fn scales_cover_their_blocks() {
        let mut source: Vec<u8> = (0..BLOCK).flat_map(|each| to_bfloat16(each as f32 - 64.0)).collect();
        let (mut values, mut scales) = ([0_u8; BLOCK], [0_u8; 4]);
        for (round_scale, scale) in [(false, 64.0 * ((1.0 / 448.0_f64) as f32)), (true, 0.25)] {
            let (to, of) = (rows(&mut values, BLOCK, BLOCK), rows(&mut scales, 4, 4));
            cast(to, of, rows(&mut source, 2 * BLOCK, 2 * BLOCK), round_scale).unwrap();
            assert_eq!(f32::from_le_bytes(scales), scale);
        }
        assert_eq!(values[64], 0);
        assert!(
            cast(rows(&mut values, 1, 1), rows(&mut scales, 4, 4), rows(&mut source, 2, 2), false).is_err()
        );
    }
}
