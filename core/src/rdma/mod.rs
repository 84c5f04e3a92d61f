//! RDMA: devices, queue pairs and the connections made of them (docs/protocol.md, "RDMA").
//!
//! From below: `verbs` is the C library, loaded at run time; `device` and `queue` wrap its objects; `gid` and `credits`
//! are pure decisions; `memory` holds registered buffers; `link` is one connection, and `fabric` what all connections of
//! a process share. `net` upgrades a TCP connection to a `link`. The rules A1 to A5 of the page, why
//! no memory is touched late, are kept by `link` (A2 to A4) and by `net` (A1, A5).
//!
//! This is one of the few modules where `unsafe` is allowed.

mod credits;
#[allow(unsafe_code)]
mod device;
mod fabric;
mod gid;
mod grants;
mod link;
mod memory;
#[allow(unsafe_code)]
mod queue;
#[allow(unsafe_code)]
mod verbs;

pub use device::{Device, Found, Limits, Memory, Port, Registration, Unused};
pub use fabric::{Fabric, RdmaCounters, RdmaOptions};
pub use grants::{Grant, Grants};
pub use link::{Half, Link, MESSAGE_BYTES, Remains, Transfer, WINDOW};
pub use queue::{Completion, QueuePair, Request, Size, WorkKind};
