//! Devices of a build without the feature `rdma`: none can be opened, so there are no ports.
//!
//! Types that exist only with a device have no values here, which the compiler checks.

use std::fmt;
use std::sync::Arc;

use super::unused::Unused;
use crate::wire::rdma::Offer;

/// An open device: none exists.
#[derive(Debug)]
pub enum Device {}

impl Device {
    pub fn name(&self) -> &str {
        match *self {}
    }
}

/// A port that connections can be made through: none exists, because it would have a device.
#[derive(Clone, Debug)]
pub struct Port {
    pub device: Arc<Device>,
    pub number: u8,
    pub gid_index: u8,
    pub offer: Offer,
}

/// Fail: this build opens no devices.
pub fn open(_wanted: &[String], _unused: &mut Vec<Unused>) -> Result<Vec<Arc<Device>>, String> {
    Err("this build has no RDMA (cargo feature `rdma`)".into())
}

pub fn ports(devices: &[Arc<Device>], _: &[String], _: Option<u8>, _: &mut Vec<Unused>) -> Vec<Port> {
    assert!(devices.is_empty(), "no device can be opened");
    Vec::new()
}

/// Memory registered with a device: none exists.
pub struct Registration {
    device: Device,
    pub lkey: u32,
    pub rkey: u32,
}

impl fmt::Debug for Registration {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.device {}
    }
}
