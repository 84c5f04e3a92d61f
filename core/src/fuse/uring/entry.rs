//! One request at a time: an entry of the kernel's queue of one processor, with the ring that it is served by.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use crate::buffer::{Buffer, Placement};
use crate::fuse::abi::{self, uring};
use crate::fuse::device::FuseDevice;

use super::ring::{Ring, Submission};
use super::window::PayloadWindow;

/// Where the `iovec`s that describe the entry are, behind its headers.
const PIECES_AT: usize = 512;
const HEADERS_BYTES: usize = 4096;
const _: () = assert!(size_of::<uring::Header>() <= PIECES_AT);

/// A request as it came.
pub struct Arrived {
    pub header: abi::InHeader,
    /// The first structure of its body; what follows, or the payload, is at the start of the entry's buffer.
    pub first: [u8; uring::HEADER_BYTES],
    pub first_length: usize,
    pub rest_length: usize,
}

/// What `RingEntry::next` found.
pub enum Next {
    Request(Box<Arrived>),
    /// The file system is unmounted, or the connection was cut.
    Ended,
}

/// What a request is answered with.
pub enum Reply<'a> {
    Error(Errno),
    Value(&'a [u8]),
    /// So many bytes, which are at the start of the entry's buffer.
    Placed(usize),
    Pieces(Vec<Placement>),
}

/// Fields are dropped in this order: the kernel's way to the memory ends first.
pub struct RingEntry {
    ring: Ring,
    headers: Placement,
    window: PayloadWindow,
    device: Arc<OwnedFd>,
    queue: u16,
    /// A completion that came before anybody waited for it.
    early: Option<i32>,
}

impl RingEntry {
    /// An entry that the kernel does not know yet. `buffer` is as long as the largest payload.
    pub fn new(device: Arc<OwnedFd>, queue: u16, buffer: Buffer) -> io::Result<RingEntry> {
        let ring = Ring::new()?;
        let headers = Placement::private(HEADERS_BYTES)?;
        let window = PayloadWindow::new(buffer)?;
        Ok(RingEntry { ring, headers, window, device, queue, early: None })
    }

    /// Offer the entry to the kernel, which may use it at once. `payload_bytes`: how long its window is said to be.
    pub fn register(&mut self, payload_bytes: usize) -> io::Result<()> {
        assert!(payload_bytes <= self.window.length(), "the kernel writes into the window only");
        let start = self.headers.as_ptr().addr() as u64;
        let pieces = [start, size_of::<uring::Header>() as u64, self.window.address(), payload_bytes as u64];
        self.headers.copy_in(PIECES_AT, pieces.as_bytes());
        let register = Submission::new(self.device.as_fd(), uring::REGISTER, self.queue);
        self.ring.put(&register.with_pieces(start + PIECES_AT as u64, 2));
        while !self.ring.is_handed_over() {
            self.ring.enter(false)?;
        }
        match self.ring.completion() {
            Some(result) if result < 0 => Err(io::Error::from_raw_os_error(-result)),
            early => {
                self.early = early;
                Ok(())
            }
        }
    }

    /// Hand over the answer that was put into the ring. Whether the entry has got a request at once.
    pub fn hand_over(&mut self) -> io::Result<bool> {
        while !self.ring.is_handed_over() {
            self.ring.enter(false)?;
        }
        self.early = self.early.take().or_else(|| self.ring.completion());
        Ok(self.early.is_some())
    }

    /// Wait for the next request, after handing over what `answer` has put into the ring.
    pub fn next(&mut self) -> io::Result<Next> {
        let result = loop {
            if let Some(result) = self.early.take().or_else(|| self.ring.completion()) {
                break result;
            }
            self.ring.enter(true)?;
        };
        match result {
            0.. => self.arrived().map(|arrived| Next::Request(Box::new(arrived))),
            _ => match Errno::from_raw_os_error(-result) {
                Errno::NOTCONN | Errno::CONNABORTED | Errno::CANCELED | Errno::NODEV => Ok(Next::Ended),
                error => Err(error.into()),
            },
        }
    }

    fn arrived(&self) -> io::Result<Arrived> {
        let mut bytes = [0; size_of::<uring::Header>()];
        self.headers.copy_to(&mut bytes);
        let header = uring::Header::read_from_bytes(&bytes).expect("a header of its size");
        let (in_header, _) = abi::InHeader::read_from_prefix(&header.in_out).expect("it is shorter");
        let rest_length = header.entry.payload_bytes as usize;
        let first_length = (in_header.len as usize)
            .checked_sub(size_of::<abi::InHeader>() + rest_length)
            .filter(|&first| first <= uring::HEADER_BYTES && rest_length <= self.window.length())
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a request with wrong lengths"))?;
        Ok(Arrived { header: in_header, first: header.operation, first_length, rest_length })
    }

    /// The memory of payloads, as file systems see it.
    pub fn buffer(&self) -> &Buffer {
        self.window.buffer()
    }

    /// Put the reply to request `unique` into the ring; `next` hands it over. `spare`: a buffer in place of the present one,
    /// which the file system keeps.
    pub fn answer(&mut self, unique: u64, reply: Reply<'_>, spare: Option<Buffer>) -> io::Result<()> {
        if let Some(spare) = spare {
            if let Reply::Placed(length) = reply {
                self.buffer().slice(0..length).copy_into(&spare);
            }
            self.window.show(spare, self.window.length())?;
        }
        assert!(!self.buffer().is_in_use(), "the kernel writes into the buffer next");
        let (error, length) = match reply {
            Reply::Error(error) => (-error.raw_os_error(), 0),
            Reply::Value(value) => {
                self.buffer().copy_from(value);
                (0, value.len())
            }
            Reply::Placed(length) => (0, length),
            Reply::Pieces(pieces) => {
                let mut at = 0;
                for piece in &pieces {
                    piece.copy_into(&self.buffer().slice(at..at + piece.len()));
                    at += piece.len();
                }
                (0, at)
            }
        };
        let header = abi::OutHeader { len: (size_of::<abi::OutHeader>() + length) as u32, error, unique };
        self.headers.copy_from(header.as_bytes());
        let entry =
            uring::EntryHeader { commit_id: unique, payload_bytes: length as u32, ..Default::default() };
        self.headers.copy_in(offset_of!(uring::Header, entry), entry.as_bytes());
        let commit = Submission::new(self.device.as_fd(), uring::COMMIT_AND_FETCH, self.queue);
        self.ring.put(&commit.with_commit(unique));
        Ok(())
    }
}

/// Have the kernel give up waiting for entries: it hands requests to the device from the first refusal on, unless all
/// queues have one.
pub fn call_off(device: &FuseDevice) -> io::Result<()> {
    let mut ring = Ring::new()?;
    ring.put(&Submission::new(device.fd().as_fd(), uring::REGISTER, u16::MAX));
    while !ring.is_handed_over() {
        ring.enter(false)?;
    }
    Ok(())
}
