//! By which transport nodes are reached: shared memory on this host, RDMA where both ends have it, else TCP.

use std::str::FromStr;
use std::sync::Arc;

use super::routing::Routing;
use crate::error::{Error, Kind, Result};
use crate::net::Endpoint;
use crate::rdma::{Fabric, Options};
use crate::types::NodeId;

/// How bytes travel to storage nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// Shared memory where the node is on this host; else RDMA where that works, else TCP.
    #[default]
    Auto,
    Shm,
    Tcp,
    /// RDMA or not at all.
    Rdma,
}

impl FromStr for Transport {
    type Err = Error;

    fn from_str(text: &str) -> Result<Transport> {
        match text {
            "auto" => Ok(Transport::Auto),
            "shm" => Ok(Transport::Shm),
            "tcp" => Ok(Transport::Tcp),
            "rdma" => Ok(Transport::Rdma),
            _ => Err(Error::invalid(format!("no such transport: {text:?} (auto, shm, tcp or rdma)"))),
        }
    }
}

/// A transport, and the RDMA of this process where it may be used.
#[derive(Clone, Debug, Default)]
pub struct Reach {
    transport: Transport,
    fabric: Option<Arc<Fabric>>,
}

impl Reach {
    /// Errors: `Unavailable` with the reason if `transport` is RDMA and this machine can do none now.
    pub fn new(transport: Transport, rdma: Options) -> Result<Reach> {
        if matches!(transport, Transport::Shm | Transport::Tcp) {
            return Ok(Reach::from(transport));
        }
        if rdma.transmissions_max == Some(0) {
            return Err(Error::invalid("with no transmission at once nothing could be read"));
        }
        let fabric = Fabric::new(rdma);
        if transport == Transport::Rdma {
            let unusable = |reason| Error::new(Kind::Unavailable, format!("transport rdma: {reason}"));
            fabric.check().map_err(unusable)?;
        }
        Ok(Reach { transport, fabric: Some(fabric) })
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

impl From<Transport> for Reach {
    /// Without RDMA.
    fn from(transport: Transport) -> Reach {
        Reach { transport, fabric: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transports_are_parsed() {
        let parsed: Vec<Transport> = ["auto", "shm", "tcp", "rdma"].map(|text| text.parse().unwrap()).into();
        assert_eq!(parsed, [Transport::Auto, Transport::Shm, Transport::Tcp, Transport::Rdma]);
        assert!("pigeon".parse::<Transport>().unwrap_err().to_string().contains("pigeon"));
    }

    #[test]
    fn rdma_by_a_device_that_is_not_there_is_an_error_and_auto_is_not() {
        let nowhere = || Options { devices: vec!["nosuch0".into()], ..Options::default() };
        let error = Reach::new(Transport::Rdma, nowhere()).unwrap_err();
        assert!(error.kind() == Kind::Unavailable && error.to_string().contains("transport rdma"), "{error}");
        let reach = Reach::new(Transport::Auto, nowhere()).unwrap();
        let tcp = Endpoint::Tcp("127.0.0.1:1".parse().unwrap());
        assert_eq!(reach.beyond_tcp(tcp.clone()), tcp);
    }
}
