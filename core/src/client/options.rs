//! How a client is configured.

use std::time::Duration;

use crate::cluster::Transport;
use crate::net::Certificates;
use crate::rdma;
use crate::wire::pb::NodeKind;

/// Who connects, and `ClientConfig` of `fs/config.py`, where every number has its reason.
#[derive(Clone)]
pub struct Options {
    /// Lane addresses of the cluster managers, "host:port".
    pub mgmtd: Vec<String>,
    /// The token: serialized `Claims` and their key (docs/protocol.md, "Credentials").
    pub claims: Vec<u8>,
    pub key: [u8; 32],
    /// What the token is, for people, where a newer one replaces it (`Client::set_token`). `None`: no newer one comes.
    pub token_source: Option<String>,
    /// Of a cluster of several machines; `None`: in clear text.
    pub certificates: Option<Certificates>,
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
    pub rdma: rdma::RdmaOptions,
}

impl Options {
    /// The defaults of `ClientConfig`.
    pub fn new(mgmtd: Vec<String>, claims: Vec<u8>, key: [u8; 32]) -> Options {
        Options {
            mgmtd,
            claims,
            key,
            token_source: None,
            certificates: None,
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
            rdma: rdma::RdmaOptions::default(),
        }
    }
}
