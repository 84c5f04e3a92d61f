//! The client's side of one connection.

use std::time::{Duration, Instant};

use super::{Credential, Endpoint};
use crate::buffer::Placement;
use crate::types::{ChainId, ChainVersion, ReadOp, ReadResult, Status, UpdateOp, UpdateResult};

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("the server refused the token")]
    Refused,
    #[error("the server has too many connections")]
    Busy,
    #[error("what answers is not a server of this cluster")]
    NotOurs,
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl ConnectError {
    /// The status of a batch that could not be sent.
    pub fn status(&self) -> Status {
        match self {
            ConnectError::Refused | ConnectError::NotOurs => Status::Denied,
            ConnectError::Busy => Status::Busy,
            ConnectError::Io(_) => Status::Disconnected,
        }
    }
}

/// An authenticated connection to a storage server. One batch at a time.
///
/// Any error makes it unusable: it closes, and memory of the failed batch that the server could still touch
/// stays out of use until the server has closed its side (rule N2).
#[derive(Debug)]
pub struct Connection {}

impl Connection {
    /// Connects and shakes hands, all within `timeout`.
    pub fn connect(
        endpoint: &Endpoint,
        credential: &Credential,
        timeout: Duration,
    ) -> Result<Connection, ConnectError> {
        let _ = (endpoint, credential, timeout);
        todo!("lands with the transports")
    }

    /// Whether no request has failed on it.
    pub fn is_usable(&self) -> bool {
        todo!("lands with the transports")
    }

    /// Reads into `into`, one placement per operation, each at least as long as its operation asks. On success
    /// `out` holds one result per operation. The whole batch failed if this returns an error: `Timeout`,
    /// `Disconnected`, or `Checksum` if bytes were damaged on the way.
    pub fn read(
        &mut self,
        ops: &[ReadOp],
        into: &[Placement],
        deadline: Instant,
        out: &mut Vec<ReadResult>,
    ) -> Result<(), Status> {
        let _ = (ops, into, deadline, out);
        todo!("lands with the transports")
    }

    /// Sends updates; `payload[i]` is exactly as long as `ops[i]` says (empty if it has none). `payload_crc`
    /// of the operations is filled in where the transport needs it. After an error the updates may or may not
    /// happen.
    pub fn update(
        &mut self,
        ops: &[UpdateOp],
        payload: &[Placement],
        deadline: Instant,
        out: &mut Vec<UpdateResult>,
    ) -> Result<(), Status> {
        let _ = (ops, payload, deadline, out);
        todo!("lands with the transports")
    }

    pub fn sync(
        &mut self,
        chains: &[(ChainId, ChainVersion)],
        deadline: Instant,
        out: &mut Vec<Status>,
    ) -> Result<(), Status> {
        let _ = (chains, deadline, out);
        todo!("lands with the transports")
    }

    pub fn ping(&mut self, deadline: Instant) -> Result<(), Status> {
        let _ = deadline;
        todo!("lands with the transports")
    }
}
