//! Which way the requests of a session come.

use std::fmt;

/// How requests come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// Not known before the session runs.
    Unknown,
    IoUring,
    /// /dev/fuse, and why.
    Device(String),
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Transport::Unknown => f.write_str("unknown"),
            Transport::IoUring => f.write_str("io_uring"),
            Transport::Device(reason) => write!(f, "/dev/fuse ({reason})"),
        }
    }
}
