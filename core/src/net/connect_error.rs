//! Why a connection could not be made.

use std::io;

use crate::types::Status;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("authentication failed: the token is wrong or has expired")]
    Refused,
    #[error("the server has too many connections")]
    Busy,
    #[error("the peer is not a server of this cluster")]
    NotOurs,
    #[error("no RDMA: {0}")]
    NoRdma(String),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl ConnectError {
    /// The status of a batch that could not be sent.
    pub fn status(&self) -> Status {
        match self {
            ConnectError::Refused => Status::Denied,
            ConnectError::Busy => Status::Busy,
            // Another process may have got a dead server's port; the server may come back elsewhere.
            ConnectError::NotOurs | ConnectError::NoRdma(_) | ConnectError::Io(_) => Status::Disconnected,
        }
    }
}
