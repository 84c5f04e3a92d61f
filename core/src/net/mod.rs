//! Connections: the handshake, the tcp, shm and rdma transports, the server and the pool of clients.
//!
//! A connection has one batch in flight. Each side has one thread for it, which blocks in the kernel
//! (docs/decisions/0005). Nothing here knows what a chain is.
//!
//! Registered memory. Over a Unix socket a client registers its [`Region`](crate::buffer::Region)s, and the server
//! reads and writes them in place. Rules:
//! - N1 A server answers, or closes the connection, only when nothing of the batch can touch the client's memory
//!   any more: every clone of the placements it gave to [`Service`] has been dropped. Placements that a
//!   server passed on to its own successor count too.
//! - N2 A client whose request failed closes its side for writing, and keeps clones of the request's placements
//!   until the server has closed its own (or died): the buffers stay out of their pool (B2) so long.
//!
//! Over RDMA the rules A1 to A5 of docs/protocol.md take the place of N2: a client's memory is its own again at once.
//!
//! Requests that arrive late.
//! - N3 An update is not begun once its client may have given it up, wherever it was on its way: every reply carries the
//!   server's clock, and a request for updates names the moment on that clock from which they are void. The client
//!   reckons it from below: it received the clock later than the server read it, and the server's clock is at most
//!   `CLOCK_DRIFT_PERCENT` slower. So what `send_updates` got a deadline for begins before it, or never.

mod budget;
mod busy_poll;
mod cleanup;
mod connect_error;
mod connection;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub(crate) mod handshake;
mod pool;
mod protection;
mod records;
mod server;
mod session;
pub(crate) mod stream;
mod upgrade;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

pub use crate::wire::tls::{Certificates, Role, UnusableCertificates};
pub use connect_error::{ConnectError, with_current_token};
pub use connection::Connection;
pub use pool::{Pool, Pooled};
pub use records::Wire;
pub use server::{Server, ServerOptions};

pub use crate::wire::credential::{Credential, Secret, Token};

use crate::buffer::Placement;
use crate::rdma::Fabric;
use crate::types::{ChainId, ChainVersion, ReadOp, ReadResult, Status, UpdateOp, UpdateResult};
use crate::wire::pb::Claims;

/// How much slower than ours a server's monotonic clock may run; leases rest on the same bound.
pub const CLOCK_DRIFT_PERCENT: u32 = 5;
const _: () = assert!(CLOCK_DRIFT_PERCENT < 100);

/// Where a server listens. A Unix endpoint shares memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Endpoint {
    Tcp(SocketAddr),
    /// RDMA, agreed on over TCP. `may_fall_back`: where that cannot be, a pool's connections stay with TCP.
    Rdma {
        address: SocketAddr,
        fabric: Arc<Fabric>,
        may_fall_back: bool,
    },
    Unix(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Endpoint::Tcp(address) => write!(f, "tcp:{address}"),
            Endpoint::Rdma { address, .. } => write!(f, "rdma:{address}"),
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The sender of a batch.
#[derive(Clone, Copy, Debug)]
pub enum Sender<'a> {
    /// A program or a mount: its updates are new ones, for the head of a chain.
    Client(&'a Claims),
    /// A node of this cluster (role SERVICE): its updates carry the version that a predecessor gave them.
    Node(&'a Claims),
}

/// What a storage server does with batches. Called from many threads at once, one per connection.
///
/// Each method pushes exactly one result per operation onto `out` (which comes empty), in the same order. It must
/// return soon after `deadline`, the answer then being `Status::Timeout`. Placements may be cloned and passed
/// on (to a [`Connection`] of the server's own); the batch is answered when all clones have been dropped (N1).
pub trait Service: Send + Sync + 'static {
    /// Place the bytes of each operation at the start of the placement of the same index, which is as long as
    /// the operation asks. The memory may be the client's own: what is read back from it proves nothing.
    fn read(&self, ops: &[ReadOp], into: &[Placement], deadline: Instant, out: &mut Vec<ReadResult>);

    /// An update is begun before `deadline` or not at all (N3).
    ///
    /// `payload[i]` is empty for operations without one. It may be a client's own memory, which the client may
    /// be changing (then it is damaged already, but replicas must not differ, nor checksums fail later).
    fn update(
        &self,
        sender: Sender<'_>,
        ops: &[UpdateOp],
        payload: &[Placement],
        deadline: Instant,
        out: &mut Vec<UpdateResult>,
    );

    /// Make everything that these chains have committed durable against power loss on this node, and on all
    /// further members if the sender is a client.
    fn sync(
        &self,
        sender: Sender<'_>,
        chains: &[(ChainId, ChainVersion)],
        deadline: Instant,
        out: &mut Vec<Status>,
    );
}
