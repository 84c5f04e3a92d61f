//! A file's bytes in memory: pieces of 256 KiB where something was written, holes elsewhere.

use std::collections::BTreeMap;

use luciola_core::buffer::Placement;
use luciola_core::fuse::Reply;
use rustix::io::Errno;

const PIECE_BYTES: u64 = 256 << 10;

#[derive(Default)]
pub struct Content {
    pieces: BTreeMap<u64, Placement>,
    pub length: u64,
}

/// One stretch of a range: which piece, from where in it, how much.
fn stretches(offset: u64, length: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        let (index, from) = (at / PIECE_BYTES, at % PIECE_BYTES);
        let count = (PIECE_BYTES - from).min(end - at);
        at += count;
        (count > 0).then_some((index, from as usize, count as usize))
    })
}

impl Content {
    /// The bytes of a range, not copied; a hole is a piece of zeros.
    pub fn read(&self, offset: u64, length: u64) -> Reply<Vec<Placement>> {
        let length = length.min(self.length.saturating_sub(offset));
        stretches(offset, length)
            .map(|(index, from, count)| match self.pieces.get(&index) {
                Some(piece) => Ok(piece.slice(from..from + count)),
                None => {
                    Placement::private(count).map(|zeros| zeros.slice(0..count)).map_err(|_| Errno::NOMEM)
                }
            })
            .collect()
    }

    pub fn write(&mut self, offset: u64, payload: &Placement) -> Reply<()> {
        let length = payload.len() as u64;
        let mut taken = 0;
        for (index, from, count) in stretches(offset, length) {
            let piece = match self.pieces.entry(index) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(Placement::private(PIECE_BYTES as usize).map_err(|_| Errno::NOMEM)?)
                }
            };
            payload.slice(taken..taken + count).copy_into(&piece.slice(from..from + count));
            taken += count;
        }
        self.length = self.length.max(offset + length);
        Ok(())
    }

    pub fn set_length(&mut self, length: u64) {
        if length < self.length {
            let old = self.length;
            self.punch(length, old.next_multiple_of(PIECE_BYTES) - length);
        }
        self.length = length;
    }

    /// Makes a range read as zeros, giving whole pieces back.
    pub fn punch(&mut self, offset: u64, length: u64) {
        for (index, from, count) in stretches(offset, length) {
            if count as u64 == PIECE_BYTES {
                self.pieces.remove(&index);
            } else if let Some(piece) = self.pieces.get(&index) {
                piece.slice(from..from + count).zero();
            }
        }
    }

    /// The first byte of data (or of a hole) at or after `offset`.
    pub fn seek(&self, offset: u64, data: bool) -> Reply<u64> {
        if offset >= self.length {
            return Err(Errno::NXIO);
        }
        let mut at = offset;
        while self.pieces.contains_key(&(at / PIECE_BYTES)) != data {
            at = (at / PIECE_BYTES + 1) * PIECE_BYTES;
            if at >= self.length {
                return if data { Err(Errno::NXIO) } else { Ok(self.length) };
            }
        }
        Ok(at)
    }

    /// Bytes of memory in use.
    pub fn used(&self) -> u64 {
        self.pieces.len() as u64 * PIECE_BYTES
    }
}
