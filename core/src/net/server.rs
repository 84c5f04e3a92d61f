//! Listeners and one thread per connection.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Secret, Service};

/// How a server listens.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Port 0: chosen by the kernel, see [`Server::tcp_address`].
    pub tcp: Option<SocketAddr>,
    /// Path of the socket of the shm transport, made with mode 0600.
    pub unix: Option<PathBuf>,
    pub secret: Secret,
    /// Connections served at once, each by one thread; further ones are told that the server is busy.
    pub threads_max: usize,
    /// Bytes of payload that follow frames and are in memory at once, over all connections.
    pub payload_bytes_max: usize,
}

impl ServerOptions {
    /// No listener yet; limits as `StorageConfig` has them.
    pub fn new(secret: Secret) -> ServerOptions {
        ServerOptions { tcp: None, unix: None, secret, threads_max: 512, payload_bytes_max: 256 << 20 }
    }
}

/// A running server; stops on drop.
#[derive(Debug)]
pub struct Server {}

impl Server {
    /// Binds and begins to serve. Errors: `AddrInUse` if a live server holds the socket file or the port.
    pub fn start(options: ServerOptions, service: Arc<dyn Service>) -> io::Result<Server> {
        let _ = (options, service);
        todo!("lands with the transports")
    }

    pub fn tcp_address(&self) -> Option<SocketAddr> {
        todo!("lands with the transports")
    }

    pub fn unix_path(&self) -> Option<&Path> {
        todo!("lands with the transports")
    }

    /// Connections being served now.
    pub fn connection_count(&self) -> usize {
        todo!("lands with the transports")
    }

    /// Stops listening, ends all connections and waits up to a second for their threads. Idempotent.
    pub fn stop(&self) {
        todo!("lands with the transports")
    }
}
