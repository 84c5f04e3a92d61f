//! How a read or a write is carried out.

/// Where a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteOffset {
    At(u64),
    Append,
}

/// How a write or read treats this client's buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoMode {
    /// Bytes may wait here.
    Buffered,
    /// Acknowledged by the chains before the call returns; reads see what others wrote.
    Direct,
}
