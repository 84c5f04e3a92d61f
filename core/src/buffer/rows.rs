//! Rows of equal width at regular distances, in memory that processes share: moved by number, summed, and cast.
//!
//! - R1 Every number of a row is checked before the first byte is written, so that a call does all or nothing.
//! - R2 What is computed with is copied first, into memory of this thread. Whoever shares the memory orders its writes
//!   by flags; one that does not gives torn numbers, never undefined ones.
//! - R3 Sums and products are made one after the other in `f32`, as loops over the rows would make them: the same bits
//!   on every machine.

use std::fmt;

/// Bytes of a row that are computed with at a time: small enough for the first cache, and some vectors long.
const PIECE: usize = 1024;

/// Channels that share a scale.
const BLOCK: usize = 128;

/// The largest finite e4m3.
const E4M3_MAX: f32 = 448.0;

/// The least magnitude that a scale stands for: a block of zeros has a scale too.
const LEAST_MAGNITUDE: f32 = 1e-4;

/// Powers of two between the largest and the least magnitude of a block that are told apart.
const LOG_RANGE: f32 = 32.0;

/// Steps between them.
const LOG_STEPS: u16 = 510;

/// How many magnitudes bfloat16 has.
pub const MAGNITUDES: usize = 1 << 15;

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
    let count = sources.map_or(source.count, <[i64]>::len);
    let room = targets.map_or(target.count, <[i64]>::len);
    if count != room || source.width != target.width {
        return Err(Unfit(format!(
            "{count} rows of {} bytes do not fit into {room} rows of {} bytes",
            source.width, target.width
        )));
    }
    check(sources, source.count, "sources")?;
    check(targets, target.count, "targets")?;
    for index in 0..count {
        let from = source.at(sources.map_or(index, |all| all[index] as usize));
        let to = target.at(targets.map_or(index, |all| all[index] as usize));
        // SAFETY: both rows were checked to be among those that are valid, and are equally wide; they may overlap.
        unsafe { to.copy_from(from, source.width) };
    }
    Ok(())
}

/// Sums rows of several parts: row t of `target` is the sum over parts p of row `places[t, p]` of p, times
/// `weights[t, p]` if there are weights. Places below zero add nothing.
pub fn sum(
    number: Number,
    target: Rows,
    parts: &[Rows],
    places: &[i64],
    weights: Option<&[f32]>,
) -> Result<(), Unfit> {
    if places.len() != target.count * parts.len() || weights.is_some_and(|all| all.len() != places.len()) {
        return Err(Unfit(format!(
            "{} places and {} weights for {} rows of {} parts each",
            places.len(),
            weights.map_or(0, <[f32]>::len),
            target.count,
            parts.len()
        )));
    }
    if !target.width.is_multiple_of(number.bytes()) || parts.iter().any(|part| part.width != target.width) {
        return Err(Unfit(format!(
            "all rows must be as wide as the sums, {} bytes of whole numbers",
            target.width
        )));
    }
    for (index, &place) in places.iter().enumerate() {
        let count = parts[index % parts.len()].count;
        if place >= count as i64 {
            return Err(Unfit(format!("places hold {place}; there are {count} rows")));
        }
    }
    let mut totals = vec![0_f32; target.width / number.bytes()];
    for row in 0..target.count {
        totals.fill(0.0);
        for (index, part) in parts.iter().enumerate() {
            let at = row * parts.len() + index;
            if places[at] >= 0 {
                add(number, &mut totals, *part, places[at] as usize, weights.map(|all| all[at]));
            }
        }
        store(number, &totals, target, row);
    }
    Ok(())
}

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
    let (mut bytes, mut cast) = ([0_u8; 2 * BLOCK], [0_u8; BLOCK]);
    for row in 0..count {
        for block in 0..channels / BLOCK {
            source.read(row, block * 2 * BLOCK, &mut bytes);
            let scale = cast_block(&bytes, &mut cast, round_scale);
            values.write(row, block * BLOCK, &cast);
            scales.write(row, block * 4, &scale.to_le_bytes());
        }
    }
    Ok(())
}

/// Packs bfloat16 as ten bits a channel: where the logarithm of its magnitude lies between the least and the largest of
/// its block. `logs` has the logarithm of every magnitude. Rows of `target`: a byte a channel, the other two bits of
/// four neighbours in a byte each, and (least, step) of each block.
pub fn pack_logs(target: Rows, source: Rows, logs: &[f32; MAGNITUDES]) -> Result<(), Unfit> {
    let channels = source.width / 2;
    check_logs(target, channels)?;
    if !source.width.is_multiple_of(2) || source.count != target.count {
        return Err(Unfit(format!("{} rows are to be packed into {}", source.count, target.count)));
    }
    let (mut bytes, mut packed) = ([0_u8; 2 * BLOCK], vec![0_u8; target.width]);
    for row in 0..source.count {
        let (codes, ranges) = packed.split_at_mut(channels / 4 * 5);
        let (low, high) = codes.split_at_mut(channels);
        let blocks =
            low.as_chunks_mut().0.iter_mut().zip(high.as_chunks_mut().0).zip(ranges.as_chunks_mut().0);
        for (block, ((low, high), range)) in blocks.enumerate() {
            source.read(row, block * 2 * BLOCK, &mut bytes);
            pack_block(&bytes, low, high, range, logs);
        }
        target.write(row, 0, &packed);
    }
    Ok(())
}

/// What `pack_logs` has packed, as float32: the logarithm of each magnitude, minus infinity for zero, and 1 or -1.
pub fn unpack_logs(logs: Rows, signs: Rows, source: Rows) -> Result<(), Unfit> {
    let channels = logs.width / 4;
    check_logs(source, channels)?;
    let fits = logs.width == 4 * channels && signs.width == logs.width;
    if !fits || logs.count != source.count || signs.count != source.count {
        return Err(Unfit(format!(
            "{} packed rows need as many rows of {channels} float32 and signs",
            source.count
        )));
    }
    let (mut packed, mut values) = (vec![0_u8; source.width], [[0_u8; 4]; BLOCK]);
    for row in 0..source.count {
        source.read(row, 0, &mut packed);
        let (codes, ranges) = packed.split_at(channels / 4 * 5);
        let (low, high) = codes.split_at(channels);
        for (block, range) in ranges.as_chunks::<8>().0.iter().enumerate() {
            let words = range.as_chunks::<4>().0;
            let (least, step) = (f32::from_le_bytes(words[0]), f32::from_le_bytes(words[1]));
            let code = |channel: usize| {
                let index = block * BLOCK + channel;
                u32::from(low[index]) | u32::from(high[index / 4] >> (index % 4 * 2) & 3) << 8
            };
            for (channel, value) in values.iter_mut().enumerate() {
                let place = code(channel) & 0x1ff;
                let log = least + (place as f32 - 1.0) * step;
                *value = (if place == 0 { f32::NEG_INFINITY } else { log }).to_le_bytes();
            }
            logs.write(row, block * 4 * BLOCK, values.as_flattened());
            for (channel, value) in values.iter_mut().enumerate() {
                *value = (if code(channel) & 0x200 == 0 { 1.0_f32 } else { -1.0 }).to_le_bytes();
            }
            signs.write(row, block * 4 * BLOCK, values.as_flattened());
        }
    }
    Ok(())
}

fn check_logs(packed: Rows, channels: usize) -> Result<(), Unfit> {
    let width = channels / 4 * 5 + channels / BLOCK * 8;
    if channels.is_multiple_of(BLOCK) && packed.width == width {
        return Ok(());
    }
    Err(Unfit(format!(
        "packed rows of {} bytes for {channels} channels: it must be {width} and whole blocks of {BLOCK}",
        packed.width
    )))
}

fn pack_block(
    bytes: &[u8; 2 * BLOCK],
    low: &mut [u8; BLOCK],
    high: &mut [u8; BLOCK / 4],
    range: &mut [u8; 8],
    table: &[f32; MAGNITUDES],
) {
    let (mut logs, mut codes) = ([0_f32; BLOCK], [0_u16; BLOCK]);
    let words = bytes.as_chunks::<2>().0;
    for (log, &word) in logs.iter_mut().zip(words) {
        *log = table[usize::from(u16::from_le_bytes(word) & 0x7fff)];
    }
    let largest = logs.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let (mut least, mut step) = (0.0, 0.0);
    if largest.is_finite() {
        least = logs
            .iter()
            .copied()
            .fold(largest, |least, log| if log.is_finite() { least.min(log) } else { least });
        least = least.max(largest - LOG_RANGE);
        step = (largest - least) * ((1.0 / f64::from(LOG_STEPS)) as f32);
    }
    for ((code, &log), &word) in codes.iter_mut().zip(&logs).zip(words) {
        let flat = if log.is_infinite() { f32::NEG_INFINITY } else { 0.0 };
        let place = if step > 0.0 { (log - least) / step } else { flat } + 0.5;
        let place = if place < 0.0 { 0 } else { (place as u16).min(LOG_STEPS) + 1 };
        *code = place | u16::from(from_bfloat16(word) < 0.0) << 9;
    }
    for (byte, code) in low.iter_mut().zip(&codes) {
        *byte = *code as u8;
    }
    for (byte, four) in high.iter_mut().zip(codes.as_chunks::<4>().0) {
        *byte = (four[0] >> 8 | four[1] >> 8 << 2 | four[2] >> 8 << 4 | four[3] >> 8 << 6) as u8;
    }
    range[..4].copy_from_slice(&least.to_le_bytes());
    range[4..].copy_from_slice(&step.to_le_bytes());
}

fn check(numbers: Option<&[i64]>, count: usize, what: &str) -> Result<(), Unfit> {
    let wrong = numbers.unwrap_or(&[]).iter().find(|&&each| each < 0 || each >= count as i64);
    wrong.map_or(Ok(()), |each| Err(Unfit(format!("{what} hold {each}; there are {count} rows"))))
}

fn add(number: Number, totals: &mut [f32], part: Rows, row: usize, weight: Option<f32>) {
    let mut bytes = [0_u8; PIECE];
    for (index, piece) in totals.chunks_mut(PIECE / number.bytes()).enumerate() {
        let bytes = &mut bytes[..piece.len() * number.bytes()];
        part.read(row, index * PIECE, bytes);
        match (number, weight) {
            (Number::Bfloat16, None) => each(piece, bytes, |total, word| *total += from_bfloat16(word)),
            (Number::Bfloat16, Some(weight)) => {
                each(piece, bytes, |total, word| *total += from_bfloat16(word) * weight);
            }
            (Number::Float32, None) => each(piece, bytes, |total, word| *total += f32::from_le_bytes(word)),
            (Number::Float32, Some(weight)) => {
                each(piece, bytes, |total, word| *total += f32::from_le_bytes(word) * weight);
            }
        }
    }
}

fn each<const BYTES: usize>(totals: &mut [f32], bytes: &[u8], act: impl Fn(&mut f32, [u8; BYTES])) {
    for (total, word) in totals.iter_mut().zip(bytes.as_chunks().0) {
        act(total, *word);
    }
}

fn store(number: Number, totals: &[f32], target: Rows, row: usize) {
    let mut bytes = [0_u8; PIECE];
    for (index, piece) in totals.chunks(PIECE / number.bytes()).enumerate() {
        let bytes = &mut bytes[..piece.len() * number.bytes()];
        match number {
            Number::Bfloat16 => {
                for (word, total) in bytes.as_chunks_mut().0.iter_mut().zip(piece) {
                    *word = to_bfloat16(*total);
                }
            }
            Number::Float32 => {
                for (word, total) in bytes.as_chunks_mut().0.iter_mut().zip(piece) {
                    *word = total.to_le_bytes();
                }
            }
        }
        target.write(row, index * PIECE, bytes);
    }
}

fn from_bfloat16(word: [u8; 2]) -> f32 {
    f32::from_bits(u32::from(u16::from_le_bytes(word)) << 16)
}

/// Rounded to the nearest, ties to even.
fn to_bfloat16(value: f32) -> [u8; 2] {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    (if value.is_nan() { 0x7fc0 } else { rounded }).to_le_bytes()
}

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
    use super::*;

    fn rows(bytes: &mut [u8], width: usize, stride: usize) -> Rows {
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
    fn sums_are_of_floats_in_their_order() {
        let bytes = |values: &[f32]| values.iter().flat_map(|each| each.to_le_bytes()).collect::<Vec<u8>>();
        let (mut one, mut two) = (bytes(&[1e8, 1.0]), bytes(&[-1e8, 3.0]));
        let mut target = bytes(&[f32::NAN; 2]);
        let parts = [rows(&mut one, 4, 4), rows(&mut two, 4, 4), rows(&mut one, 4, 4)];
        let places = [0, 0, 1, 1, 1, -1];
        sum(Number::Float32, rows(&mut target, 4, 4), &parts, &places, None).unwrap();
        assert_eq!(target, bytes(&[1.0, 4.0]));
        sum(
            Number::Float32,
            rows(&mut target, 4, 4),
            &parts,
            &places,
            Some(&[0.0, 0.0, 2.0, 1.0, -1.0, 9.0]),
        )
        .unwrap();
        assert_eq!(target, bytes(&[2.0, -2.0]));
        let error =
            sum(Number::Float32, rows(&mut target, 4, 4), &parts, &[0, 0, 2, 0, 0, 0], None).unwrap_err();
        assert_eq!(error.0, "places hold 2; there are 2 rows");
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
    fn logarithms_come_back() {
        let logs: Vec<f32> = (0..1_u16 << 15).map(|each| from_bfloat16(each.to_le_bytes()).log2()).collect();
        let values = |channel: usize| if channel == 3 { 0.0 } else { 2_f32.powi(channel as i32 % 16) };
        let signed =
            |channel: usize| if channel.is_multiple_of(2) { values(channel) } else { -values(channel) };
        let mut source: Vec<u8> = (0..BLOCK).flat_map(|each| to_bfloat16(signed(each))).collect();
        let mut packed = [0_u8; BLOCK / 4 * 5 + 8];
        let (mut back, mut signs) = ([0_u8; 4 * BLOCK], [0_u8; 4 * BLOCK]);
        let (from, between) = (rows(&mut source, 2 * BLOCK, 1), rows(&mut packed, BLOCK / 4 * 5 + 8, 1));
        let (to, with) = (rows(&mut back, 4 * BLOCK, 1), rows(&mut signs, 4 * BLOCK, 1));
        pack_logs(between, from, logs.as_slice().try_into().unwrap()).unwrap();
        unpack_logs(to, with, between).unwrap();
        let float = |bytes: &[u8], channel: usize| f32::from_le_bytes(bytes.as_chunks().0[channel]);
        for channel in 0..BLOCK {
            let value = float(&back, channel).exp2() * float(&signs, channel);
            assert!((value - signed(channel)).abs() <= 0.02 * values(channel), "{channel}: {value}");
        }
        assert!(unpack_logs(to, with, from).is_err());
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
