//! The sessions of `fuse_session.rs` over io_uring. Where the kernel has none (Linux 6.14), or does not let this process
//! use it, the tests say so and pass.

#[path = "fuse_session.rs"]
mod fuse_session;
