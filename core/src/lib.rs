//! The data path of Luciola. Python decides, this crate moves bytes.
//!
//! `chunk` keeps chunks on one disk; `craq` decides what a replica does; `wire`, `net` and `rdma` carry frames and
//! bytes in memory of `buffer`; `cluster` finds the nodes; `storage` joins these; `client` stripes files over chains;
//! `mount` shows it to the kernel by `fuse`, and `ring` to programs. tests/tidy/test_floors.py has the floors.
//! Only `python` knows that Python exists.

pub mod buffer;
mod cancel;
pub mod chunk;
pub mod client;
mod clock;
pub mod cluster;
pub mod craq;
pub mod error;
pub mod fuse;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
mod lock;
mod log_rate_limit;
#[cfg(test)]
mod logged;
pub mod mount;
pub mod net;
mod panics;
#[cfg(feature = "python")]
pub mod python;
pub mod rdma;
pub mod ring;
#[cfg(test)]
mod schedule;
pub mod storage;
pub mod types;
pub mod wire;
