//! What of this machine's RDMA is there and not used.

/// A device or a port that is not used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unused {
    pub name: String,
    pub reason: String,
}
