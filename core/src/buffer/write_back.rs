//! Writing back pages of a file before anybody waits for it.

use std::ffi::{c_int, c_uint};
use std::fs::File;
use std::os::fd::AsRawFd;

const SYNC_FILE_RANGE_WRITE: c_uint = 2;

unsafe extern "C" {
    fn sync_file_range(file: c_int, offset: i64, length: i64, flags: c_uint) -> c_int;
}

/// Have the kernel write back `length` bytes of `file` from `offset` on. Waits for room in the disk's request queue where
/// that is full, not for these writes, and drops no page from the page cache.
///
/// No outcome: this promises nothing, and an error of the write is reported by the next sync of the file.
pub fn begin_write_back(file: &File, offset: u64, length: usize) {
    let (offset, length) = (offset as i64, length as i64);
    assert!(offset >= 0 && length > 0, "a length of 0 stands for the whole file");
    // SAFETY: the call takes numbers only; the descriptor is open as long as `file` is borrowed.
    unsafe { sync_file_range(file.as_raw_fd(), offset, length, SYNC_FILE_RANGE_WRITE) };
}
