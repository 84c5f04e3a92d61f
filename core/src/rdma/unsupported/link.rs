//! Connections of a build without the feature `rdma`: none exist, which the compiler checks.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Instant;

use super::device::{Port, Registration};
use super::fabric::Fabric;
use crate::buffer::Placement;
use crate::wire::rdma::{End, RemoteMemory};

/// Bytes that a transfer moves, at both ends.
#[derive(Clone, Debug)]
pub struct Transfer {
    pub local: Placement,
    pub remote: RemoteMemory,
}

/// A queue pair that the peer does not know yet: none exists.
pub enum Half {}

impl Half {
    pub fn new(_fabric: &Arc<Fabric>, port: &Port, _remote_access: bool) -> io::Result<Half> {
        match *port.device {}
    }

    pub fn end(&self) -> &End {
        match *self {}
    }

    pub fn connect(self, _theirs: &End) -> io::Result<Link> {
        match self {}
    }
}

/// A connection over RDMA: none exists.
pub enum Link {}

impl Link {
    pub fn keys(&self, _placement: &Placement) -> io::Result<Arc<Registration>> {
        match *self {}
    }

    pub fn send(&mut self, _bytes: &[u8], _socket: BorrowedFd<'_>, _deadline: Instant) -> io::Result<()> {
        match *self {}
    }

    pub fn receive_some(
        &mut self,
        _target: &mut [u8],
        _socket: BorrowedFd<'_>,
        _until: Instant,
    ) -> io::Result<usize> {
        match *self {}
    }

    pub fn write(
        &mut self,
        _transfers: &[Transfer],
        _socket: BorrowedFd<'_>,
        _deadline: Instant,
    ) -> io::Result<()> {
        match *self {}
    }

    pub fn read(
        &mut self,
        _transfers: &[Transfer],
        _socket: BorrowedFd<'_>,
        _deadline: Instant,
    ) -> io::Result<()> {
        match *self {}
    }

    pub fn settle(&mut self, _socket: BorrowedFd<'_>, _deadline: Instant) -> io::Result<()> {
        match *self {}
    }

    pub fn is_quiet(&mut self) -> bool {
        match *self {}
    }

    pub fn reset(self) -> Remains {
        match self {}
    }
}

/// A queue pair in RESET: none exists.
pub enum Remains {}

impl Remains {
    pub fn is_held(&self) -> bool {
        match *self {}
    }
}
