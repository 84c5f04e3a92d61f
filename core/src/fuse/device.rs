//! One open /dev/fuse: whole requests in, whole replies out.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::io::{Errno, readv, writev};
use zerocopy::IntoBytes;

use crate::buffer::{self, Placement};

use super::abi;

/// Where the kernel's queue of requests is read and answered.
#[derive(Clone)]
pub struct FuseDevice {
    fd: Arc<OwnedFd>,
}

/// The fixed part of a request: its header, and the `WriteIn` that follows in a WRITE, so that a payload begins at the
/// start of its own, page-aligned buffer.
pub const HEAD_BYTES: usize = size_of::<abi::InHeader>() + size_of::<abi::WriteIn>();
const _: () = assert!(HEAD_BYTES == 80, "as `fuse.h` draws them");
pub type Head = [u8; HEAD_BYTES];

/// What `FuseDevice::receive` found.
pub enum Received {
    /// A request of so many bytes, the first `HEAD_BYTES` in the head, the rest at the start of the buffer.
    Request(usize),
    /// Nothing; ask again.
    Nothing,
    /// The file system is unmounted, or the connection was cut.
    Ended,
}

impl FuseDevice {
    pub fn open() -> io::Result<FuseDevice> {
        let fd = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        Ok(FuseDevice::from_fd(fd))
    }

    pub fn from_shared(fd: Arc<OwnedFd>) -> FuseDevice {
        FuseDevice { fd }
    }

    pub fn from_fd(fd: OwnedFd) -> FuseDevice {
        FuseDevice { fd: Arc::new(fd) }
    }

    /// Another queue of the same connection: replies on it do not wait for those of other threads.
    pub fn try_clone(&self) -> io::Result<FuseDevice> {
        let clone = FuseDevice::open()?;
        attach(&clone.fd, self.fd.as_raw_fd())?;
        Ok(clone)
    }

    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// Wait for the next request. `rest` has room for the largest payload.
    pub fn receive(&self, head: &mut Head, rest: &Placement) -> io::Result<Received> {
        let mut pieces = [IoSliceMut::new(head), IoSliceMut::new(rest.as_target())];
        match readv(&*self.fd, &mut pieces) {
            Ok(0) | Err(Errno::NODEV | Errno::CONNABORTED) => Ok(Received::Ended),
            Ok(length) => Ok(Received::Request(length)),
            // ENOENT: the request was taken back while it was copied.
            Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => Ok(Received::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// Answer request `unique` with the bytes of `piece`.
    pub fn reply_with(&self, unique: u64, piece: &Placement) {
        self.reply(unique, None, piece.as_source(), &[]);
    }

    /// Answer request `unique`: an error, or `value` followed by `pieces`.
    pub fn reply(&self, unique: u64, error: Option<Errno>, value: &[u8], pieces: &[Placement]) {
        assert!(value.is_empty() || pieces.is_empty(), "bytes in place follow the header");
        assert!(error.is_none() || (value.is_empty() && pieces.is_empty()), "an error has no bytes");
        let length = value.len() + buffer::total_length(pieces);
        let header = abi::OutHeader {
            len: (size_of::<abi::OutHeader>() + length) as u32,
            error: error.map_or(0, |error| -error.raw_os_error()),
            unique,
        };
        let result = if pieces.is_empty() {
            writev(&*self.fd, &[IoSlice::new(header.as_bytes()), IoSlice::new(value)])
        } else {
            buffer::write_vectored(self.fd.as_fd(), header.as_bytes(), pieces)
                .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        };
        match result {
            // ENOENT: the program does not wait any more. ENODEV: unmounted meanwhile.
            Ok(_) | Err(Errno::NOENT | Errno::NODEV | Errno::CONNABORTED) => {}
            Err(failure) => {
                log::error!("the kernel refused the reply to request {unique}: {failure}");
                // It may still wait: an error without a body is always acceptable.
                let plain = abi::OutHeader {
                    len: size_of::<abi::OutHeader>() as u32,
                    error: -Errno::IO.raw_os_error(),
                    unique,
                };
                let _ = rustix::io::write(&*self.fd, plain.as_bytes());
            }
        }
    }
}

/// FUSE_DEV_IOC_CLONE: makes `clone`, a fresh /dev/fuse, serve the connection of `original`.
#[allow(unsafe_code)]
fn attach(clone: &OwnedFd, original: RawFd) -> io::Result<()> {
    const FUSE_DEV_IOC_CLONE: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(229, 0);
    let number = original as u32;
    // SAFETY: the kernel reads one u32 (the number of a descriptor, which it checks) at the address given, that of
    // `number`, which lives through the call, and writes nothing. The only unsafe block here: there is no safe way
    // to make an ioctl.
    unsafe {
        rustix::ioctl::ioctl(clone, rustix::ioctl::Setter::<FUSE_DEV_IOC_CLONE, u32>::new(number))?;
    }
    Ok(())
}
