//! RDMA: devices, queue pairs and the connections made of them (docs/protocol.md, "RDMA").
//!
//! From below: `verbs` is the C library, loaded at run time; `device` and `queue` wrap its objects; `gid` and `credits`
//! are pure decisions; `memory` holds registered buffers; `link` is one connection, and `fabric` what all connections of
//! a process share. `net` upgrades a TCP connection to a `link`. The rules A1 to A5 of the page, why
//! no memory is touched late, are kept by `link` (A2 to A4) and by `net` (A1, A5).
//!
//! Without the cargo feature `rdma` no device is opened: the files of `unsupported` take the place of
//! `device` and `link`, and every connection stays with TCP.
//!
//! This is one of the few modules where `unsafe` is allowed.

#[cfg(feature = "rdma")]
mod credits;
#[cfg_attr(feature = "rdma", allow(unsafe_code))]
#[cfg_attr(not(feature = "rdma"), path = "unsupported/device.rs")]
mod device;
mod fabric;
#[cfg_attr(not(feature = "rdma"), allow(dead_code, reason = "GIDs are chosen for devices"))]
mod gid;
mod grants;
#[cfg_attr(not(feature = "rdma"), path = "unsupported/link.rs")]
mod link;
mod memory;
#[cfg(feature = "rdma")]
#[allow(unsafe_code)]
mod queue;
mod unused;
#[cfg(feature = "rdma")]
#[allow(unsafe_code)]
mod verbs;

pub use device::{Device, Port, Registration};
#[cfg(feature = "rdma")]
pub use device::{Limits, Memory};
pub use fabric::{Fabric, Found, RdmaCounters, RdmaOptions};
pub use grants::{Grant, Grants};
pub use link::{Half, Link, Remains, Transfer};
#[cfg(feature = "rdma")]
pub use link::{MESSAGE_BYTES, WINDOW};
#[cfg(feature = "rdma")]
pub use queue::{Completion, QueuePair, Request, Size, WorkKind};
pub use unused::Unused;
