//! A bounded pool of connections to one endpoint.

use std::ops::{Deref, DerefMut};
use std::time::Instant;

use super::{ConnectError, Connection, Credential, Endpoint};

/// Connections to one endpoint. The one used last is used next; connections that broke while idle are noticed.
#[derive(Debug)]
pub struct Pool {}

impl Pool {
    /// At most `connections_max` are open at once; callers beyond that wait.
    pub fn new(endpoint: Endpoint, credential: Credential, connections_max: usize) -> Pool {
        let _ = (endpoint, credential, connections_max);
        todo!("lands with the transports")
    }

    pub fn endpoint(&self) -> &Endpoint {
        todo!("lands with the transports")
    }

    /// A connection for one or several batches; it returns to the pool on drop unless a request failed on it.
    /// Errors: `Io` (timed out) if all are in use until `deadline`.
    pub fn get(&self, deadline: Instant) -> Result<Pooled<'_>, ConnectError> {
        let _ = deadline;
        todo!("lands with the transports")
    }
}

/// A connection borrowed from its pool.
#[derive(Debug)]
pub struct Pooled<'a> {
    _pool: &'a Pool,
    connection: Connection,
}

impl Deref for Pooled<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl DerefMut for Pooled<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}
