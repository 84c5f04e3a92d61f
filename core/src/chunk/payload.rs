//! Where bytes come from and go to, as the engine needs it.
//!
//! A payload may be in memory that another process can write to while we work. The engine then computes
//! checksums over its own copy of what it writes. In the same way it treats a mismatch found in the caller's memory as
//! damage only after reading the page again into its own.

use std::io;

use crate::buffer::{Placement, total_length};

/// Bytes of an update.
pub trait Source {
    fn len(&self) -> usize;
    /// Copy `into.len()` bytes from `offset` on.
    fn copy_to(&self, offset: usize, into: &mut [u8]);
    /// The bytes themselves, if they are contiguous in memory that no other process can write to.
    fn stable(&self) -> Option<&[u8]> {
        None
    }
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A system call that fills memory and returns how many bytes it has placed there.
pub type Fill<'a> = &'a dyn Fn(&mut [u8]) -> io::Result<usize>;

/// Where a read puts its bytes.
pub trait Sink {
    fn len(&self) -> usize;
    /// Call once for up to `length` bytes at `offset`.
    fn fill(&mut self, offset: usize, length: usize, call: Fill<'_>) -> io::Result<usize>;
    /// CRC32C of `length` bytes at `offset`.
    fn crc32c(&self, offset: usize, length: usize) -> u32;
    fn copy_from(&mut self, offset: usize, bytes: &[u8]);
    fn zero(&mut self, offset: usize, length: usize);
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Source for &[u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn copy_to(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self[offset..offset + into.len()]);
    }

    fn stable(&self) -> Option<&[u8]> {
        Some(self)
    }
}

impl Source for Vec<u8> {
    fn len(&self) -> usize {
        Vec::len(self)
    }

    fn copy_to(&self, offset: usize, into: &mut [u8]) {
        into.copy_from_slice(&self[offset..offset + into.len()]);
    }

    fn stable(&self) -> Option<&[u8]> {
        Some(self)
    }
}

impl Sink for &mut [u8] {
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }

    fn fill(&mut self, offset: usize, length: usize, call: Fill<'_>) -> io::Result<usize> {
        call(&mut self[offset..offset + length])
    }

    fn crc32c(&self, offset: usize, length: usize) -> u32 {
        crc_fast::crc32_iscsi(&self[offset..offset + length])
    }

    fn copy_from(&mut self, offset: usize, bytes: &[u8]) {
        self[offset..offset + bytes.len()].copy_from_slice(bytes);
    }

    fn zero(&mut self, offset: usize, length: usize) {
        self[offset..offset + length].fill(0);
    }
}

impl Source for Placement {
    fn len(&self) -> usize {
        Placement::len(self)
    }

    fn copy_to(&self, offset: usize, into: &mut [u8]) {
        self.slice(offset..offset + into.len()).copy_to(into);
    }

    fn stable(&self) -> Option<&[u8]> {
        (!self.is_shared()).then(|| self.as_source())
    }
}

/// Several pieces, one after the other.
impl Source for &[Placement] {
    fn len(&self) -> usize {
        total_length(self)
    }

    fn copy_to(&self, mut offset: usize, mut into: &mut [u8]) {
        for piece in self.iter() {
            if into.is_empty() {
                break;
            }
            if offset < piece.len() {
                let (now, rest) = into.split_at_mut(into.len().min(piece.len() - offset));
                piece.slice(offset..offset + now.len()).copy_to(now);
                into = rest;
                offset = 0;
            } else {
                offset -= piece.len();
            }
        }
        assert!(into.is_empty(), "the pieces hold the bytes asked for");
    }

    fn stable(&self) -> Option<&[u8]> {
        match self {
            [only] => only.stable(),
            _ => None,
        }
    }
}

/// Pass `&mut &placement`.
impl Sink for &Placement {
    fn len(&self) -> usize {
        Placement::len(self)
    }

    fn fill(&mut self, offset: usize, length: usize, call: Fill<'_>) -> io::Result<usize> {
        call(self.slice(offset..offset + length).as_target())
    }

    fn crc32c(&self, offset: usize, length: usize) -> u32 {
        self.slice(offset..offset + length).crc32c()
    }

    fn copy_from(&mut self, offset: usize, bytes: &[u8]) {
        self.copy_in(offset, bytes);
    }

    fn zero(&mut self, offset: usize, length: usize) {
        self.slice(offset..offset + length).zero();
    }
}
