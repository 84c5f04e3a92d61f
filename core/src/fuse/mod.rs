//! The kernel's FUSE protocol on /dev/fuse and over io_uring: sessions, mounting, and the trait that a file system implements.
//!
//! A `Session` mounts a `FileSystem`, answers the kernel from several threads, and ends when it is unmounted,
//! also from outside. Payloads are read from the device straight into page-aligned buffers of a registered region and
//! handed over with the request; replies are written without a copy. Why not a library:
//! docs/decisions/0003-fuse.md.
//!
//! Nothing here knows what a chain is. Source: Documentation/filesystems/fuse, include/uapi/linux/fuse.h.

mod abi;
mod attributes;
mod body;
mod caller;
mod counters;
mod device;
mod directory;
mod dropper;
mod execute;
mod file_system;
mod mount;
mod negotiate;
mod notify;
mod operations;
mod options;
mod privileges;
mod request;
mod session;
mod shared;
mod slot;
mod threads;
mod uring;
mod watch;
mod watcher;
mod worker;

pub use caller::Caller;
pub use counters::OperationDurations;
pub use directory::DirectorySink;
pub use file_system::FileSystem;
pub use notify::Notifier;
pub use operations::*;
pub use options::{IoUring, REQUEST_BYTES_MAX, SessionOptions};
pub use session::{Session, SessionHandle};
pub use uring::allowed::has_io_uring;
pub use uring::channel::Channel;
