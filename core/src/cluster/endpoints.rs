//! Chooses the endpoint of each storage node: its Unix socket, RDMA where both ends have it, else TCP.

use std::sync::Arc;

use super::routing::Routing;
use super::transport::Transport;
use crate::error::{Error, Kind, Result};
use crate::net::Endpoint;
use crate::rdma::{Fabric, RdmaOptions};
use crate::types::NodeId;

/// A transport, and the RDMA of this process where it may be used.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    transport: Transport,
    fabric: Option<Arc<Fabric>>,
}

impl Endpoints {
    /// Errors: `Unavailable` with the reason if `transport` is RDMA and this machine can do none now.
    pub fn new(transport: Transport, rdma: RdmaOptions) -> Result<Endpoints> {
        if matches!(transport, Transport::Shm | Transport::Tcp) {
            return Ok(Endpoints::from(transport));
        }
        if rdma.transmissions_max == Some(0) {
            return Err(Error::invalid("with no transmission at once nothing could be read"));
        }
        let fabric = Fabric::new(rdma);
        if transport == Transport::Rdma {
            let unusable = |reason| Error::new(Kind::Unavailable, format!("transport rdma: {reason}"));
            fabric.check().map_err(unusable)?;
        }
        Ok(Endpoints { transport, fabric: Some(fabric) })
    }

    pub fn transport(&self) -> Transport {
        self.transport
    }

    pub fn fabric(&self) -> Option<&Arc<Fabric>> {
        self.fabric.as_ref()
    }

    /// The way to `node`; `None` if routing does not say where it is.
    pub fn endpoint(&self, routing: &Routing, node: NodeId) -> Option<Endpoint> {
        Some(self.beyond_tcp(routing.endpoint(node, self.transport)?))
    }

    /// The way that is left where the socket of a node on this host turns out not to be usable.
    pub fn without_socket(&self, routing: &Routing, node: NodeId) -> Option<Endpoint> {
        Some(self.beyond_tcp(routing.endpoint(node, Transport::Tcp)?))
    }

    fn beyond_tcp(&self, endpoint: Endpoint) -> Endpoint {
        let may_fall_back = self.transport != Transport::Rdma;
        match (endpoint, &self.fabric) {
            (Endpoint::Tcp(address), Some(fabric)) if !may_fall_back || fabric.has_devices() => {
                Endpoint::Rdma { address, fabric: fabric.clone(), may_fall_back }
            }
            (endpoint, _) => endpoint,
        }
    }
}

impl From<Transport> for Endpoints {
    /// Without RDMA.
    fn from(transport: Transport) -> Endpoints {
        Endpoints { transport, fabric: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rdma_by_a_device_that_is_not_there_is_an_error_and_auto_is_not() {
        let nowhere = || RdmaOptions { devices: vec!["nosuch0".into()], ..RdmaOptions::default() };
        let error = Endpoints::new(Transport::Rdma, nowhere()).unwrap_err();
        assert!(error.kind() == Kind::Unavailable && error.to_string().contains("transport rdma"), "{error}");
        let endpoints = Endpoints::new(Transport::Auto, nowhere()).unwrap();
        let tcp = Endpoint::Tcp("127.0.0.1:1".parse().unwrap());
        assert_eq!(endpoints.beyond_tcp(tcp.clone()), tcp);
    }

    #[test]
    fn no_transmission_at_once_is_refused() {
        let none = RdmaOptions { transmissions_max: Some(0), ..RdmaOptions::default() };
        assert_eq!(Endpoints::new(Transport::Auto, none).unwrap_err().kind(), Kind::InvalidArgument);
    }
}
