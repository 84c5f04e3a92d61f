//! A place for bytes: a piece of memory that stays valid as long as the placement lives.

use std::any::Any;
use std::fmt;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::io::Errno;

use super::region::Mapping;
use super::{ALIGNMENT, Region};

/// Most pieces in one vectored call (IOV_MAX).
const PIECES_MAX: usize = 1024;

/// Keeps a placement's memory valid, and shows its owner that it is in use.
type Keep = Arc<dyn Any + Send + Sync>;

/// `len` bytes of memory, in a shared region or not. Cheap to clone and to slice.
///
/// Copies go byte by byte between processes: a peer that writes at the same time gives torn bytes, never
/// undefined ones, so code that needs stable bytes (to checksum and then store them, say) copies first;
/// [`Placement::is_shared`] says whether that is needed.
#[derive(Clone)]
pub struct Placement {
    start: NonNull<u8>,
    len: usize,
    region: Option<(Arc<Region>, usize)>,
    keep: Option<Keep>,
    writable: bool,
    expendable: bool,
}

// SAFETY: a placement is an address that `region` or `keep` hold valid for every thread (B1); its bytes have no
// owner, and all access to them is by copying or by system calls.
unsafe impl Send for Placement {}
// SAFETY: as above; methods on `&Placement` only copy bytes.
unsafe impl Sync for Placement {}

impl Region {
    /// `len` bytes at `offset`; `None` if they are not inside the region.
    pub fn placement(self: &Arc<Region>, offset: usize, len: usize) -> Option<Placement> {
        let end = offset.checked_add(len)?;
        (end <= self.len()).then(|| Placement::in_region(self, offset, len))
    }
}

impl Placement {
    pub(super) fn in_region(region: &Arc<Region>, offset: usize, len: usize) -> Placement {
        assert!(offset <= region.len() && len <= region.len() - offset, "checked by Region::placement");
        // SAFETY: `offset` is at most the region's length, so the address stays in (or one past) its mapping.
        let start = unsafe { NonNull::new_unchecked(region.as_ptr().add(offset)) };
        Placement {
            start,
            len,
            region: Some((region.clone(), offset)),
            keep: None,
            writable: true,
            expendable: false,
        }
    }

    /// `len` zeroed bytes of this process alone, page-aligned.
    pub fn private(len: usize) -> io::Result<Placement> {
        let mapping = Mapping::anonymous(len)?;
        let start = mapping.start();
        assert!(start.addr().get().is_multiple_of(ALIGNMENT), "a mapping begins with a page");
        Ok(Placement {
            start,
            len,
            region: None,
            keep: Some(Arc::new(mapping)),
            writable: true,
            expendable: false,
        })
    }

    /// The bytes of `bytes`, owned by the placement.
    pub fn from_vec(mut bytes: Vec<u8>) -> Placement {
        let start = NonNull::new(bytes.as_mut_ptr()).expect("a vector's pointer is never null");
        let len = bytes.len();
        Placement { start, len, region: None, keep: Some(Arc::new(bytes)), writable: true, expendable: false }
    }

    /// Call `work` with `bytes` as a placement, which does not outlive the call: a clone that does ends the
    /// process, because the memory behind it is about to vanish.
    pub fn scoped<R>(bytes: &mut [u8], work: impl FnOnce(&Placement) -> R) -> R {
        Placement::borrowed(NonNull::from(&mut *bytes).cast(), bytes.len(), true, work)
    }

    /// As [`Placement::scoped`] for bytes that are only read; writing into them is a programmer error.
    pub fn scoped_source<R>(bytes: &[u8], work: impl FnOnce(&Placement) -> R) -> R {
        Placement::borrowed(NonNull::from(bytes).cast(), bytes.len(), false, work)
    }

    fn borrowed<R>(start: NonNull<u8>, len: usize, writable: bool, work: impl FnOnce(&Placement) -> R) -> R {
        struct Guard(Keep);
        impl Drop for Guard {
            fn drop(&mut self) {
                if Arc::strong_count(&self.0) != 1 {
                    log::error!(
                        "placement outlives its borrowed memory: a clone was kept; aborting the process"
                    );
                    std::process::abort();
                }
            }
        }
        // Declared first, so dropped after the placement, also when `work` panics.
        let guard = Guard(Arc::new(()));
        let placement =
            Placement { start, len, region: None, keep: Some(guard.0.clone()), writable, expendable: false };
        let result = work(&placement);
        drop(placement);
        drop(guard);
        result
    }

    /// Memory of another owner, valid as long as `keep` lives.
    ///
    /// # Safety
    /// `start .. start + len` must be readable (and writable if `writable`) until `keep` is dropped, and no
    /// reference to it may be held while the placement is used.
    pub unsafe fn from_raw(start: NonNull<u8>, len: usize, writable: bool, keep: Keep) -> Placement {
        assert!(len <= isize::MAX as usize, "no memory is longer");
        Placement { start, len, region: None, keep: Some(keep), writable, expendable: false }
    }

    /// The same memory, which in addition holds `keep` until it and its clones are dropped.
    pub fn kept_by(mut self, keep: Arc<dyn Any + Send + Sync>) -> Placement {
        self.keep = Some(match self.keep.take() {
            Some(before) => Arc::new((before, keep)),
            None => keep,
        });
        self
    }

    /// The same memory, whose owner can do without it: a read into it may be given up while a server that hangs may
    /// still write there. Its clones keep it out of use so long (rule N2).
    pub fn expendable(mut self) -> Placement {
        self.expendable = true;
        self
    }

    pub fn is_expendable(&self) -> bool {
        self.expendable
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address of the first byte, for alignment checks and foreign buffers.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// The region that holds the bytes, and their offset there.
    pub fn region(&self) -> Option<(&Arc<Region>, usize)> {
        self.region.as_ref().map(|(region, offset)| (region, *offset))
    }

    /// Whether another holder keeps this memory: a clone, a slice, or the pool's borrower.
    pub(super) fn is_in_use(&self) -> bool {
        let in_use = self.keep.as_ref().is_some_and(|keep| Arc::strong_count(keep) > 1);
        // What the last borrower did to the bytes happened before what is done to them next.
        std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
        in_use
    }

    /// Whether another process may read or change the bytes at any time.
    pub fn is_shared(&self) -> bool {
        self.region.as_ref().is_some_and(|(region, _)| !region.is_exclusive())
    }

    /// Part of the placement. Panics if `range` is not inside.
    pub fn slice(&self, range: Range<usize>) -> Placement {
        assert!(range.start <= range.end && range.end <= self.len, "a slice is inside its placement");
        // SAFETY: the start is at most `len` bytes on, inside (or one past) the same memory.
        let start = unsafe { self.start.add(range.start) };
        Placement {
            start,
            len: range.end - range.start,
            region: self.region.as_ref().map(|(region, offset)| (region.clone(), offset + range.start)),
            keep: self.keep.clone(),
            writable: self.writable,
            expendable: self.expendable,
        }
    }

    /// Copy `source` to the start. Panics if it is longer than the placement.
    pub fn copy_from(&self, source: &[u8]) {
        self.copy_in(0, source);
    }

    /// Copy `source` to `offset`. Panics if it does not fit.
    pub fn copy_in(&self, offset: usize, source: &[u8]) {
        assert!(self.writable, "the placement is only read");
        assert!(offset <= self.len && source.len() <= self.len - offset, "the bytes fit the placement");
        // SAFETY: both ranges are valid for `source.len()` bytes; `source` is a live reference, so it does not
        // overlap memory of placements.
        unsafe {
            std::ptr::copy(source.as_ptr(), self.start.as_ptr().add(offset), source.len());
        }
    }

    /// Copy the first `target.len()` bytes out. Panics if there are fewer.
    pub fn copy_to(&self, target: &mut [u8]) {
        assert!(target.len() <= self.len, "the placement has that many bytes");
        // SAFETY: both ranges are valid for `target.len()` bytes, and `target` is exclusively ours.
        unsafe { std::ptr::copy(self.start.as_ptr(), target.as_mut_ptr(), target.len()) }
    }

    /// Copy all bytes to the start of `target`. Panics if they do not fit.
    pub fn copy_into(&self, target: &Placement) {
        assert!(target.writable, "the placement is only read");
        assert!(self.len <= target.len, "the bytes fit the placement");
        // SAFETY: both ranges are valid for `self.len` bytes; `copy` allows them to overlap.
        unsafe { std::ptr::copy(self.start.as_ptr(), target.start.as_ptr(), self.len) }
    }

    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.copy_to(&mut bytes);
        bytes
    }

    pub fn zero(&self) {
        assert!(self.writable, "the placement is only read");
        // SAFETY: the range is valid for `len` bytes.
        unsafe { std::ptr::write_bytes(self.start.as_ptr(), 0, self.len) }
    }

    pub fn crc32c(&self) -> u32 {
        crc_fast::crc32_iscsi(self.as_source())
    }

    /// The CRC32 of zlib, PNG and FFRecord.
    pub fn crc32(&self) -> u32 {
        crc_fast::crc32_iso_hdlc(self.as_source())
    }

    /// Read from `file` at `offset` until the placement is full or the file ends; return the bytes read.
    pub fn read_at(&self, file: impl AsFd, offset: u64) -> io::Result<usize> {
        let file = file.as_fd();
        let mut filled = 0;
        while filled < self.len {
            match rustix::io::pread(file, &mut self.as_target()[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        assert!(filled <= self.len, "the kernel fills no more than there is room for");
        Ok(filled)
    }

    /// Write all bytes to `file` at `offset`.
    pub fn write_at(&self, file: impl AsFd, offset: u64) -> io::Result<()> {
        let file = file.as_fd();
        let mut written = 0;
        while written < self.len {
            match rustix::io::pwrite(file, &self.as_source()[written..], offset + written as u64) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => written += count,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The bytes, for a system call or a checksum: nothing may keep the reference or trust what it saw.
    pub(crate) fn as_source(&self) -> &[u8] {
        // SAFETY: the range is valid for `len` bytes as long as `self` lives (B1). Another process or thread may
        // write to it; the crate hands the slice only to the kernel and to the checksum, which read each byte
        // once and make no decision that memory safety rests on.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// The bytes, for a system call that fills them.
    #[allow(clippy::mut_from_ref)]
    pub(crate) fn as_target(&self) -> &mut [u8] {
        assert!(self.writable, "the placement is only read");
        // SAFETY: as for `as_source`; the slice goes to one system call, and no other reference into the memory
        // is used while that runs.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl fmt::Debug for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Placement {{ len: {}", self.len)?;
        if let Some((region, offset)) = &self.region {
            write!(f, ", region: {:?}, offset: {offset}", region.id())?;
        }
        f.write_str(" }")
    }
}

/// Bytes in all of `placements`.
pub fn total_length(placements: &[Placement]) -> usize {
    placements.iter().map(Placement::len).sum()
}

/// Read from `file` at `offset` into the placements in order, until all are full or the file ends.
pub fn read_vectored_at(file: impl AsFd, placements: &[Placement], offset: u64) -> io::Result<usize> {
    let file = file.as_fd();
    fill(placements, |pieces, done| rustix::io::preadv(file, pieces, offset + done as u64))
}

/// Write the placements in order to `file` at `offset`, all of them.
pub fn write_vectored_at(file: impl AsFd, placements: &[Placement], offset: u64) -> io::Result<()> {
    let file = file.as_fd();
    let total = total_length(placements);
    let mut written = 0;
    while written < total {
        match rustix::io::pwritev(file, &sources(placements, written), offset + written as u64) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// One `readv` into the placements in order: what a message-like file such as /dev/fuse wants.
pub fn read_vectored(file: impl AsFd, placements: &[Placement]) -> io::Result<usize> {
    Ok(rustix::io::readv(file, &mut targets(placements, 0))?)
}

/// One `writev` of `head` and then the placements.
pub fn write_vectored(file: impl AsFd, head: &[u8], placements: &[Placement]) -> io::Result<usize> {
    let mut pieces = Vec::with_capacity(placements.len() + 1);
    pieces.push(IoSlice::new(head));
    pieces.extend(sources(placements, 0));
    Ok(rustix::io::writev(file, &pieces)?)
}

fn fill(
    placements: &[Placement],
    mut read: impl FnMut(&mut [IoSliceMut<'_>], usize) -> rustix::io::Result<usize>,
) -> io::Result<usize> {
    let total = total_length(placements);
    let mut filled = 0;
    while filled < total {
        match read(&mut targets(placements, filled), filled) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    assert!(filled <= total, "the kernel fills no more than there is room for");
    Ok(filled)
}

/// The bytes after the first `skip`, as pieces for one vectored system call.
pub(crate) fn sources(placements: &[Placement], skip: usize) -> Vec<IoSlice<'_>> {
    rest(placements, skip).map(|(placement, from)| IoSlice::new(&placement.as_source()[from..])).collect()
}

/// As [`sources`], to be filled.
pub(crate) fn targets(placements: &[Placement], skip: usize) -> Vec<IoSliceMut<'_>> {
    rest(placements, skip)
        .map(|(placement, from)| IoSliceMut::new(&mut placement.as_target()[from..]))
        .collect()
}

fn rest(placements: &[Placement], mut skip: usize) -> impl Iterator<Item = (&Placement, usize)> {
    placements
        .iter()
        .filter_map(move |placement| {
            let from = skip.min(placement.len());
            skip -= from;
            (from < placement.len()).then_some((placement, from))
        })
        .take(PIECES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_and_slices_see_the_same_memory() {
        let whole = Placement::private(100).unwrap();
        assert_eq!(whole.as_ptr() as usize % super::super::ALIGNMENT, 0);
        whole.slice(10..20).copy_from(b"0123456789");
        whole.copy_in(15, b"x");
        assert_eq!(whole.slice(12..17).to_vec(), b"234x6");
        whole.slice(13..14).zero();
        assert_eq!(whole.slice(12..15).to_vec(), b"2\x004");
        assert_eq!(whole.slice(100..100).len(), 0);
    }

    #[test]
    #[should_panic(expected = "a slice is inside its placement")]
    fn a_slice_beyond_the_end_is_a_programmer_error() {
        let _ = Placement::private(10).unwrap().slice(5..11);
    }

    #[test]
    #[should_panic(expected = "only read")]
    fn a_source_is_never_written() {
        Placement::scoped_source(b"abc", |bytes| bytes.zero());
    }

    #[test]
    fn crc32_is_that_of_zlib() {
        assert_eq!(Placement::from_vec(b"123456789".to_vec()).crc32(), 0xcbf4_3926);
    }

    #[test]
    fn crc32c_is_castagnoli() {
        assert_eq!(Placement::from_vec(b"123456789".to_vec()).crc32c(), 0xe306_9283);
    }

    #[test]
    fn files_are_read_and_written_at_offsets_up_to_their_end() {
        let file = tempfile::tempfile().unwrap();
        Placement::from_vec(b"hello, world".to_vec()).write_at(&file, 3).unwrap();
        let target = Placement::private(20).unwrap();
        assert_eq!(target.read_at(&file, 3).unwrap(), 12);
        assert_eq!(target.slice(0..12).to_vec(), b"hello, world");
        assert_eq!(target.read_at(&file, 100).unwrap(), 0);
    }

    #[test]
    fn vectored_calls_go_through_all_placements_in_order() {
        let file = tempfile::tempfile().unwrap();
        let pieces: Vec<_> = (0..2000u32).map(|n| Placement::from_vec(n.to_le_bytes().to_vec())).collect();
        write_vectored_at(&file, &pieces, 5).unwrap();
        let targets: Vec<_> = [3, 0, 7990, 100].iter().map(|len| Placement::private(*len).unwrap()).collect();
        assert_eq!(read_vectored_at(&file, &targets, 5).unwrap(), 8000);
        let all: Vec<u8> = targets.iter().flat_map(Placement::to_vec).take(8000).collect();
        let expected: Vec<u8> = (0..2000u32).flat_map(u32::to_le_bytes).collect();
        assert_eq!(all, expected);
    }

    #[test]
    fn a_scoped_placement_returns_what_the_work_returns() {
        let mut bytes = *b"abcdef";
        let crc = Placement::scoped(&mut bytes, |placement| {
            placement.slice(0..1).copy_from(b"X");
            placement.crc32c()
        });
        assert_eq!(&bytes, b"Xbcdef");
        assert_eq!(crc, crc_fast::crc32_iscsi(b"Xbcdef"));
    }

    #[test]
    fn a_kept_object_lives_as_long_as_the_last_clone() {
        let token = Arc::new(());
        let placement = Placement::private(8).unwrap().kept_by(token.clone());
        let clone = placement.slice(2..4);
        drop(placement);
        assert_eq!(Arc::strong_count(&token), 2);
        drop(clone);
        assert_eq!(Arc::strong_count(&token), 1);
    }
}
