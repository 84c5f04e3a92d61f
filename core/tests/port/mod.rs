//! A port of this host that no other process gets while a test needs it, also while no server of the test listens on it.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketType, sockopt};

/// Its socket is bound and never listens: a server of this test may bind to the address beside it, the kernel gives the
/// port to no process that asks for any, and while no server listens connections are refused.
pub struct Port {
    pub address: SocketAddr,
    _socket: OwnedFd,
}

impl Port {
    pub fn reserve() -> Port {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        sockopt::set_socket_reuseaddr(&socket, true).unwrap();
        rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = rustix::net::getsockname(&socket).unwrap();
        Port { address: address.try_into().unwrap(), _socket: socket }
    }
}
