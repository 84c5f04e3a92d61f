//! The address at which the kernel puts payloads of one entry, and takes them from.
//!
//! It is fixed when the entry is registered, but which buffer is there may change: a file system that keeps the payload
//! of a write keeps its buffer, and the window shows another one. File systems get the buffer by its address in the
//! pool, so what they do with it has no effect on what the window shows next.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;

use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::buffer::Buffer;

pub struct PayloadWindow {
    start: NonNull<u8>,
    length: usize,
    buffer: Buffer,
}

// SAFETY: a window is an address range of the process, valid in every thread until it is dropped; its bytes are reached
// by system calls only.
unsafe impl Send for PayloadWindow {}

impl PayloadWindow {
    pub fn new(buffer: Buffer) -> io::Result<PayloadWindow> {
        let length = buffer.len();
        let start = map(std::ptr::null_mut(), length, &buffer, MapFlags::empty())?;
        Ok(PayloadWindow { start, length, buffer })
    }

    /// Have the window show another buffer; `touched`: how much of it is likely to be used. The one before is dropped.
    pub fn show(&mut self, buffer: Buffer, touched: usize) -> io::Result<()> {
        assert_eq!(buffer.len(), self.length, "the kernel knows how long it is");
        let start = map(self.start.as_ptr(), self.length, &buffer, MapFlags::FIXED)?;
        assert_eq!(start, self.start, "the kernel knows where it is");
        self.buffer = buffer;
        // One call instead of a fault for every page. A refusal costs the faults.
        // SAFETY: inside the mapping, and no content changes.
        let _ = unsafe {
            let touched = touched.min(self.length);
            rustix::mm::madvise(self.start.as_ptr().cast(), touched, Advice::LinuxPopulateWrite)
        };
        Ok(())
    }

    /// The buffer that it shows, by its address in the pool.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    pub fn address(&self) -> u64 {
        self.start.as_ptr().addr() as u64
    }

    pub fn length(&self) -> usize {
        self.length
    }
}

impl Drop for PayloadWindow {
    fn drop(&mut self) {
        // SAFETY: the window's own range. The ring of its entry, through which the kernel writes here, is closed before.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

fn map(at: *mut u8, length: usize, buffer: &Buffer, flags: MapFlags) -> io::Result<NonNull<u8>> {
    let (region, offset) = buffer.region().expect("a buffer of a pool is in its region");
    // SAFETY: with FIXED `at` is a window's own range, which nothing but the kernel's copies refers to; else nothing that
    // exists is replaced. The region is longer than `offset + length` and never shrinks (B3).
    let start = unsafe {
        rustix::mm::mmap(
            at.cast(),
            length,
            ProtFlags::READ | ProtFlags::WRITE,
            MapFlags::SHARED | flags,
            region.as_fd(),
            offset as u64,
        )?
    };
    Ok(NonNull::new(start.cast()).expect("mmap never returns null"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::BufferPool;

    fn seen(window: &PayloadWindow) -> u8 {
        // SAFETY: the first byte of the window, which is not written meanwhile.
        unsafe { window.start.as_ptr().read_volatile() }
    }

    #[test]
    fn window_shows_the_buffer_it_was_given_last_and_leaves_the_one_before_alone() {
        let pool = BufferPool::new(8192, 2).unwrap();
        let (first, second) = (pool.try_take().unwrap(), pool.try_take().unwrap());
        first.copy_from(b"first");
        second.copy_from(b"second");
        let kept = first.slice(0..5);
        let mut window = PayloadWindow::new(first).unwrap();
        let address = window.address();
        assert_eq!(seen(&window), b'f');
        assert!(window.buffer().is_in_use());
        window.show(second, 8192).unwrap();
        assert_eq!((seen(&window), window.address()), (b's', address));
        window.buffer().copy_from(b"other");
        assert_eq!((seen(&window), kept.to_vec()), (b'o', b"first".to_vec()));
        assert_eq!(pool.available(), 0);
        drop(kept);
        assert_eq!(pool.available(), 1, "the window does not hold the buffer that it showed before");
    }
}
