//! Function `rdma_ports`: what a program may know of this machine's RDMA devices.

use std::net::Ipv6Addr;

use pyo3::prelude::*;

use crate::rdma::{Fabric, Port, RdmaOptions};
use crate::wire::rdma::LinkLayer;

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(rdma_ports, module)?)
}

/// (device, port, link layer, GID, its index, MTU).
type Line = (String, u8, &'static str, String, u8, u32);

/// The ports that connections can use, what cannot be used and why, and why there is nothing at all ("" if there is).
#[pyfunction]
#[pyo3(signature = (devices = Vec::new(), gid_index = None))]
fn rdma_ports(
    py: Python<'_>,
    devices: Vec<String>,
    gid_index: Option<u8>,
) -> (Vec<Line>, Vec<(String, String)>, String) {
    py.detach(|| {
        let fabric = Fabric::new(RdmaOptions { devices, gid_index, transmissions_max: None });
        let reason = fabric.check().err().unwrap_or_default();
        let found = fabric.found().unwrap_or_default();
        let unused = found.unused.into_iter().map(|unused| (unused.name, unused.reason)).collect();
        (found.ports.iter().map(line).collect(), unused, reason)
    })
}

fn line(port: &Port) -> Line {
    let link = match port.offer.link {
        LinkLayer::InfiniBand => "InfiniBand",
        LinkLayer::Ethernet => "Ethernet",
    };
    let gid = Ipv6Addr::from(port.offer.gid).to_string();
    (port.device.name().to_owned(), port.number, link, gid, port.gid_index, 128 << port.offer.mtu)
}
