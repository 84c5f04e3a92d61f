//! Which way the requests of a session come.

use std::fmt;

/// Where requests come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Channel {
    IoUring,
    /// /dev/fuse, and why.
    Device(String),
}

impl Channel {
    /// Its name, and why it is not io_uring.
    pub fn described(&self) -> (&'static str, &str) {
        match self {
            Channel::IoUring => ("io_uring", ""),
            Channel::Device(reason) => ("/dev/fuse", reason),
        }
    }
}

impl fmt::Display for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.described() {
            (name, "") => f.write_str(name),
            (name, reason) => write!(f, "{name} ({reason})"),
        }
    }
}
