//! How clients and storage nodes reach a cluster: its routing, the transport to each node, calls to its services.
//!
//! - `routing`: which node holds which chunks, followed at mgmtd.
//! - `transport`, `endpoints`: the way to each storage node.
//! - `rpc`: calls to mgmtd and meta over the lane, the fast-path RPC.
//! - `attempts`, `backoff`: what is counted between two attempts of a request, and how long to wait.

pub(crate) mod attempts;
pub(crate) mod backoff;
mod endpoints;
pub mod routing;
pub mod rpc;
mod transport;

pub use endpoints::Endpoints;
pub use transport::Transport;
