//! The RDMA of one process: its devices and ports, its buffers, and which peers it reaches.

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crate::lock::Mutex;

use super::device::{Device, Port, open, ports};
use super::gid::choose_pair;
use super::grants::Grants;
use super::memory::Buffers;
use super::unused::Unused;
use crate::wire::rdma::{Offer, PORTS_MAX};

/// Ports are looked at again when one is needed and this has passed: cables and addresses change.
const PORTS_LIFE: Duration = Duration::from_secs(10);
/// A peer that could not be reached is tried again after this, and then after twice as long each time.
const RETRY_FIRST: Duration = Duration::from_secs(10);
const RETRY_MAX: Duration = Duration::from_secs(600);
const _: () = assert!(RETRY_FIRST.as_secs() <= RETRY_MAX.as_secs());

/// What there is on this machine.
#[derive(Clone, Debug, Default)]
pub struct Found {
    pub ports: Vec<Port>,
    pub unused: Vec<Unused>,
}

/// What a user may say about it; `ClientConfig` and `StorageConfig` have the reasons.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RdmaOptions {
    /// "mlx5_0" or "mlx5_0:1"; empty: all.
    pub devices: Vec<String>,
    /// Of all ports; `None`: chosen for each.
    pub gid_index: Option<u8>,
    /// Reads that servers may transmit to this process at once; `None`: they need not ask.
    pub transmissions_max: Option<usize>,
}

/// Counted since the process began.
#[derive(Debug, Default)]
pub struct RdmaCounters {
    connections: AtomicU64,
    fallbacks: AtomicU64,
    resets: AtomicU64,
    written_bytes: AtomicU64,
    read_bytes: AtomicU64,
}

impl RdmaCounters {
    #[cfg(feature = "rdma")]
    pub(super) fn written(&self, bytes: u64) {
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    #[cfg(feature = "rdma")]
    pub(super) fn read(&self, bytes: u64) {
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    #[cfg(feature = "rdma")]
    pub(super) fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }

    pub fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// By name, as a node and a client report them.
    pub fn all(&self) -> [(&'static str, u64); 5] {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("rdma_connections", get(&self.connections)),
            ("rdma_fallbacks", get(&self.fallbacks)),
            ("rdma_resets", get(&self.resets)),
            ("rdma_written_bytes", get(&self.written_bytes)),
            ("rdma_read_bytes", get(&self.read_bytes)),
        ]
    }
}

/// The devices that are wanted, and those that could not be opened.
struct OpenedDevices {
    devices: Vec<Arc<Device>>,
    unused: Vec<Unused>,
}

/// Shared by all connections of a client, or of a node. Devices are opened when first asked for.
pub struct Fabric {
    options: RdmaOptions,
    devices: OnceLock<Result<OpenedDevices, String>>,
    ports: Mutex<Option<(Instant, Found)>>,
    buffers: Buffers,
    counters: Arc<RdmaCounters>,
    turn: AtomicUsize,
    avoided: Mutex<HashMap<SocketAddr, Avoided>>,
    grants: Option<Grants>,
}

#[derive(Clone, Copy)]
struct Avoided {
    until: Instant,
    pause: Duration,
}

impl Fabric {
    pub fn new(options: RdmaOptions) -> Arc<Fabric> {
        let grants = options.transmissions_max.map(Grants::new);
        Arc::new(Fabric {
            options,
            devices: OnceLock::new(),
            ports: Mutex::default(),
            buffers: Buffers::default(),
            counters: Arc::default(),
            turn: AtomicUsize::new(0),
            avoided: Mutex::default(),
            grants,
        })
    }

    fn devices(&self) -> Result<&OpenedDevices, String> {
        let opened = || {
            let mut unused = Vec::new();
            open(&self.options.devices, &mut unused).map(|devices| OpenedDevices { devices, unused })
        };
        self.devices.get_or_init(opened).as_ref().map_err(Clone::clone)
    }

    /// The ports that can be used now, and what cannot be used. Errors: why there can be none.
    pub fn found(&self) -> Result<Found, String> {
        let OpenedDevices { devices, unused } = self.devices()?;
        let mut known = self.ports.lock();
        if let Some((at, found)) = known.as_ref()
            && at.elapsed() < PORTS_LIFE
        {
            return Ok(found.clone());
        }
        let mut found = Found { ports: Vec::new(), unused: unused.clone() };
        found.ports = ports(devices, &self.options.devices, self.options.gid_index, &mut found.unused);
        *known = Some((Instant::now(), found.clone()));
        Ok(found)
    }

    /// Whether it is worth trying at all: this machine has a device that could be opened.
    pub fn has_devices(&self) -> bool {
        self.devices().is_ok_and(|opened| !opened.devices.is_empty())
    }

    /// Fail if nothing can be used now, with all reasons.
    pub fn check(&self) -> Result<(), String> {
        let found = self.found()?;
        if !found.ports.is_empty() {
            return Ok(());
        }
        if found.unused.is_empty() {
            return Err(match self.options.devices.as_slice() {
                [] => "this machine has no RDMA device".into(),
                wanted => format!("this machine has no RDMA device named {}", wanted.join(" or ")),
            });
        }
        let reasons: Vec<String> =
            found.unused.iter().map(|unused| format!("{}: {}", unused.name, unused.reason)).collect();
        Err(reasons.join("; "))
    }

    /// The ports to offer, at most [`PORTS_MAX`]; in the order of `offers` of [`Fabric::found`].
    pub fn ports(&self) -> Vec<Port> {
        let mut ports = self.found().map(|found| found.ports).unwrap_or_default();
        ports.truncate(PORTS_MAX);
        ports
    }

    /// A port of ours for one of those offered, and which; `None` if no two can reach each other.
    pub fn choose(&self, offers: &[Offer]) -> Option<(Port, u16)> {
        let ports = self.ports();
        let ours: Vec<Offer> = ports.iter().map(|port| port.offer).collect();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let (our, their) = choose_pair(&ours, offers, turn)?;
        Some((ports[our].clone(), their as u16))
    }

    pub fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    pub fn counters(&self) -> &Arc<RdmaCounters> {
        &self.counters
    }

    pub fn grants(&self) -> Option<&Grants> {
        self.grants.as_ref()
    }

    /// Whether the peer at `address` was found not to be reachable by RDMA a short while ago.
    pub fn avoids(&self, address: SocketAddr) -> bool {
        self.avoided.lock().get(&address).is_some_and(|avoided| Instant::now() < avoided.until)
    }

    /// The peer was not reachable; its connections use TCP. Logged once, until it is reached again.
    pub fn fall_back(&self, address: SocketAddr, reason: &str) {
        self.counters.fallbacks.fetch_add(1, Ordering::Relaxed);
        let mut avoided = self.avoided.lock();
        let before = avoided.get(&address).copied();
        let pause = before.map_or(RETRY_FIRST, |before| (before.pause * 2).min(RETRY_MAX));
        avoided.insert(address, Avoided { until: Instant::now() + pause, pause });
        drop(avoided);
        if before.is_none() {
            log::warn!("RDMA to {address} failed: {reason}; using TCP");
        }
    }

    pub fn reached(&self, address: SocketAddr) {
        self.counters.connected();
        self.avoided.lock().remove(&address);
    }
}

impl PartialEq for Fabric {
    fn eq(&self, other: &Fabric) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Eq for Fabric {}

impl Hash for Fabric {
    fn hash<H: Hasher>(&self, state: &mut H) {
        std::ptr::hash(self, state);
    }
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fabric {{ {:?} }}", self.options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logged;

    #[test]
    fn a_peer_is_avoided_longer_each_time_until_it_is_reached() {
        logged::begin();
        let fabric = Fabric::new(RdmaOptions::default());
        let peer = "127.0.0.1:9".parse().unwrap();
        assert!(!fabric.avoids(peer));
        let pauses: Vec<Duration> = (0..8)
            .map(|_| {
                fabric.fall_back(peer, "a test");
                fabric.avoided.lock()[&peer].pause
            })
            .collect();
        assert!(fabric.avoids(peer));
        assert_eq!(pauses[..3], [RETRY_FIRST, RETRY_FIRST * 2, RETRY_FIRST * 4]);
        assert_eq!(pauses[7], RETRY_MAX);
        let said = || logged::with("WARN RDMA to 127.0.0.1:9 failed: ").len();
        assert_eq!(said(), 1, "once, not each time");
        fabric.reached(peer);
        fabric.fall_back(peer, "once more");
        assert_eq!(said(), 2);
        fabric.reached(peer);
        assert!(!fabric.avoids(peer));
        let counted = fabric.counters().all();
        assert_eq!(counted[..2], [("rdma_connections", 2), ("rdma_fallbacks", 9)]);
    }

    #[test]
    fn a_device_that_is_not_there_is_named() {
        let fabric = Fabric::new(RdmaOptions { devices: vec!["nosuch0:1".into()], ..RdmaOptions::default() });
        let reason = fabric.check().unwrap_err();
        let has_devices = Fabric::new(RdmaOptions::default()).has_devices();
        assert!(reason.contains("nosuch0:1") || (!has_devices && reason.contains("RDMA")), "{reason}");
        assert!(fabric.ports().is_empty() && !fabric.has_devices());
        assert_eq!(fabric.choose(&[]).map(|(_, place)| place), None);
    }
}
