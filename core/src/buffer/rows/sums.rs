//! Sums of rows, each over the places that are named for it.
//!
//! What is added, as it is or unpacked first, is the adder's affair; which rows, and in what order (R3), that of `Terms`.

use super::{Number, Rows, Unfit, from_bfloat16, to_bfloat16, widest};

/// Bytes of a row that are computed with at a time: small enough for the first cache, and some vectors long.
const PIECE: usize = 1024;

/// Sums rows of several parts: row t of `target` is the sum over parts p of row `places[t, p]` of p, times
/// `weights[t, p]` if there are weights. Places below zero add nothing.
pub fn sum(
    number: Number,
    target: Rows,
    parts: &[Rows],
    places: &[i64],
    weights: Option<&[f32]>,
) -> Result<(), Unfit> {
    if !target.width.is_multiple_of(number.bytes()) || parts.iter().any(|part| part.width != target.width) {
        return Err(Unfit(format!(
            "all rows must be as wide as the sums, {} bytes of whole numbers",
            target.width
        )));
    }
    Terms { parts, places, weights }.sum(
        number,
        target,
        #[inline(always)]
        |totals, part, row, weight| add(number, totals, part, row, weight),
    )
}

/// What is summed, as `sum` is told it.
#[derive(Clone, Copy)]
pub(super) struct Terms<'a> {
    pub(super) parts: &'a [Rows],
    pub(super) places: &'a [i64],
    pub(super) weights: Option<&'a [f32]>,
}

impl Terms<'_> {
    /// Sums into `target`; `add` adds one row of a part to the totals, times a weight.
    #[inline(always)]
    pub(super) fn sum(
        self,
        number: Number,
        target: Rows,
        mut add: impl FnMut(&mut [f32], Rows, usize, Option<f32>),
    ) -> Result<(), Unfit> {
        self.check(target.count)?;
        widest(
            #[inline(always)]
            || {
                let mut totals = vec![0_f32; target.width / number.bytes()];
                for row in 0..target.count {
                    totals.fill(0.0);
                    for (part, place, weight) in self.of_row(row) {
                        add(&mut totals, part, place, weight);
                    }
                    store(number, &totals, target, row);
                }
            },
        );
        Ok(())
    }

    fn check(self, count: usize) -> Result<(), Unfit> {
        let Terms { parts, places, weights } = self;
        if places.len() != count * parts.len() || weights.is_some_and(|all| all.len() != places.len()) {
            return Err(Unfit(format!(
                "{} places and {} weights for {count} rows of {} parts each",
                places.len(),
                weights.map_or(0, <[f32]>::len),
                parts.len()
            )));
        }
        for (index, &place) in places.iter().enumerate() {
            let count = parts[index % parts.len()].count;
            if place >= count as i64 {
                return Err(Unfit(format!("places hold {place}; there are {count} rows")));
            }
        }
        Ok(())
    }

    /// The parts that have something for a row of sums: which row, and its weight.
    #[inline(always)]
    fn of_row(self, row: usize) -> impl Iterator<Item = (Rows, usize, Option<f32>)> {
        let first = row * self.parts.len();
        let known = move |index: &usize| self.places[first + index] >= 0;
        (0..self.parts.len()).filter(known).map(move |index| {
            let at = first + index;
            (self.parts[index], self.places[at] as usize, self.weights.map(|all| all[at]))
        })
    }
}

#[inline(always)]
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

#[inline(always)]
fn each<const BYTES: usize>(totals: &mut [f32], bytes: &[u8], act: impl Fn(&mut f32, [u8; BYTES])) {
    for (total, word) in totals.iter_mut().zip(bytes.as_chunks().0) {
        act(total, *word);
    }
}

#[inline(always)]
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

#[cfg(test)]
mod tests {
    use super::super::tests::rows;
    use super::*;

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
}
