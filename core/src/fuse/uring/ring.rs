//! One io_uring that carries one command at a time: a submission, then a wait for its completion, in one system call.
//!
//! The kernel serves a command in the thread that has submitted it, so the thread that waits for a completion is the one
//! that made the submission before. The ring may pass to another thread in between.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use rustix::io::Errno;
use rustix::io_uring::{
    IORING_OFF_SQ_RING, IORING_OFF_SQES, IoringEnterFlags, IoringSetupFlags, io_uring_cqe, io_uring_enter,
    io_uring_params, io_uring_setup,
};
use rustix::mm::{MapFlags, ProtFlags};
use zerocopy::{Immutable, IntoBytes};

/// One command in the ring, and one in the kernel's hands.
const ENTRIES: u32 = 2;
/// How long to wait when the kernel has no memory for a command.
const RETRY: Duration = Duration::from_millis(10);
const URING_CMD: u8 = rustix::io_uring::IoringOp::UringCmd as u8;

/// A submission of 128 bytes (`IORING_SETUP_SQE128`), as `include/uapi/linux/io_uring.h` draws it for IORING_OP_URING_CMD,
/// with `struct fuse_uring_cmd_req` in its last 80.
#[derive(Clone, Copy, Debug, IntoBytes, Immutable)]
#[repr(C)]
pub struct Submission {
    opcode: u8,
    flags: u8,
    priority: u16,
    file: i32,
    command: u32,
    padding: u32,
    address: u64,
    count: u32,
    command_flags: u32,
    user_data: u64,
    unused: [u64; 1],
    command_request_flags: u64,
    commit_id: u64,
    queue: u16,
    rest: [u8; 62],
}
const _: () = assert!(size_of::<Submission>() == 128);
const _: () = assert!(std::mem::offset_of!(Submission, command_request_flags) == 48);

impl Submission {
    /// Command `command` to `file`, which must stay open until it completes. `address` and `count`: of its `iovec`s.
    pub fn new(file: BorrowedFd<'_>, command: u32, queue: u16) -> Submission {
        Submission {
            opcode: URING_CMD,
            flags: 0,
            priority: 0,
            file: file.as_raw_fd(),
            command,
            padding: 0,
            address: 0,
            count: 0,
            command_flags: 0,
            user_data: 0,
            unused: [0],
            command_request_flags: 0,
            commit_id: 0,
            queue,
            rest: [0; 62],
        }
    }

    pub fn with_pieces(mut self, address: u64, count: u32) -> Submission {
        (self.address, self.count) = (address, count);
        self
    }

    pub fn with_commit(mut self, commit_id: u64) -> Submission {
        self.commit_id = commit_id;
        self
    }
}

pub struct Ring {
    fd: OwnedFd,
    words: Mapping,
    submissions: Mapping,
    params: io_uring_params,
}

// SAFETY: the pointers in `io_uring_params` are the kernel's to fill and are not followed; the mappings are memory of the
// process, reached through `&mut self` or by atomic operations.
unsafe impl Send for Ring {}

impl Ring {
    pub fn new() -> io::Result<Ring> {
        let mut params = io_uring_params::default();
        params.flags =
            IoringSetupFlags::SQE128 | IoringSetupFlags::NO_SQARRAY | IoringSetupFlags::COOP_TASKRUN;
        // SAFETY: without ATTACH_WQ no field of `params` names anything; the kernel fills it.
        let fd = unsafe { io_uring_setup(ENTRIES, &mut params)? };
        let completions =
            params.cq_off.cqes as usize + params.cq_entries as usize * size_of::<io_uring_cqe>();
        let words = Mapping::new(fd.as_fd(), completions, IORING_OFF_SQ_RING)?;
        let bytes = params.sq_entries as usize * size_of::<Submission>();
        let submissions = Mapping::new(fd.as_fd(), bytes, IORING_OFF_SQES)?;
        Ok(Ring { fd, words, submissions, params })
    }

    /// Put a submission into the ring, for the next `enter`.
    pub fn put(&mut self, submission: &Submission) {
        let tail = self.word(self.params.sq_off.tail).load(Ordering::Relaxed);
        let head = self.word(self.params.sq_off.head).load(Ordering::Acquire);
        assert!(tail.wrapping_sub(head) < self.params.sq_entries, "one command at a time");
        let index = (tail & (self.params.sq_entries - 1)) as usize;
        // SAFETY: `index` is below the number of entries, each of 128 bytes, and the kernel reads none between its head
        // and the tail that is stored below.
        unsafe {
            let place = self.submissions.start.as_ptr().add(index * size_of::<Submission>());
            place.copy_from_nonoverlapping(submission.as_bytes().as_ptr(), size_of::<Submission>());
        }
        self.word(self.params.sq_off.tail).store(tail.wrapping_add(1), Ordering::Release);
    }

    /// Hand what was put to the kernel. With `wait`, return when there is a completion, or after a signal.
    pub fn enter(&mut self, wait: bool) -> io::Result<()> {
        let tail = self.word(self.params.sq_off.tail).load(Ordering::Relaxed);
        let head = self.word(self.params.sq_off.head).load(Ordering::Acquire);
        let count = tail.wrapping_sub(head);
        let flags = if wait { IoringEnterFlags::GETEVENTS } else { IoringEnterFlags::empty() };
        // SAFETY: the submissions name an open descriptor, and memory that their owner (`RingEntry`) keeps until the ring is
        // closed or the command has completed.
        match unsafe { io_uring_enter(&self.fd, count, u32::from(wait), flags) } {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            // No memory for the command just now.
            Err(Errno::AGAIN | Errno::BUSY | Errno::NOMEM) => {
                std::thread::sleep(RETRY);
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Whether everything that was put has been handed over.
    pub fn is_handed_over(&self) -> bool {
        let tail = self.word(self.params.sq_off.tail).load(Ordering::Relaxed);
        self.word(self.params.sq_off.head).load(Ordering::Acquire) == tail
    }

    /// The result of the command that has completed, if it has.
    pub fn completion(&mut self) -> Option<i32> {
        let head = self.word(self.params.cq_off.head).load(Ordering::Relaxed);
        let tail = self.word(self.params.cq_off.tail).load(Ordering::Acquire);
        if head == tail {
            return None;
        }
        let index = (head & (self.params.cq_entries - 1)) as usize;
        let offset = self.params.cq_off.cqes as usize + index * size_of::<io_uring_cqe>();
        // The second word but one: after eight bytes of user data.
        let result = self.word((offset + 8) as u32).load(Ordering::Relaxed) as i32;
        self.word(self.params.cq_off.head).store(head.wrapping_add(1), Ordering::Release);
        Some(result)
    }

    fn word(&self, offset: u32) -> &AtomicU32 {
        let offset = offset as usize;
        assert!(offset + 4 <= self.words.length && offset.is_multiple_of(4), "a word of the ring");
        // SAFETY: inside the mapping and aligned; the kernel and this process change these words by atomic operations.
        unsafe { AtomicU32::from_ptr(self.words.start.as_ptr().add(offset).cast()) }
    }
}

/// Part of the ring that kernel and process share.
struct Mapping {
    start: NonNull<u8>,
    length: usize,
}

impl Mapping {
    fn new(ring: BorrowedFd<'_>, length: usize, offset: u64) -> io::Result<Mapping> {
        // SAFETY: a null hint replaces no mapping; the kernel refuses lengths beyond the ring.
        let start = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                ring,
                offset,
            )?
        };
        Ok(Mapping { start: NonNull::new(start.cast()).expect("mmap never returns null"), length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly what mmap gave; nothing refers to it any more.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.length) };
    }
}
