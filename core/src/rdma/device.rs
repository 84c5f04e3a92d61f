//! Open devices: their ports, their limits, and memory registered with them.

use std::ffi::{c_int, c_uint};
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::gid::{GidEntry, GidType, choose_gid};
use super::unused::Unused;
use super::verbs::{self, DeviceAttributes, Library, PortAttributes};
use crate::buffer::Region;
use crate::wire::rdma::{LinkLayer, Offer};

/// Where the kernel describes its devices.
const SYSFS: &str = "/sys/class/infiniband";

/// What a device allows, as it says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub work_requests: usize,
    pub completions: usize,
    pub scatter_entries: usize,
    /// RDMA READs that a queue pair answers, and that it asks, at once.
    pub reads_answered: u8,
    pub reads_asked: u8,
    pub registrations: usize,
    pub registration_bytes: u64,
}

impl From<&DeviceAttributes> for Limits {
    fn from(raw: &DeviceAttributes) -> Limits {
        let count = |number: c_int| usize::try_from(number).unwrap_or(0);
        let small = |number: c_int| number.clamp(0, 255) as u8;
        Limits {
            work_requests: count(raw.max_qp_wr),
            completions: count(raw.max_cqe),
            scatter_entries: count(raw.max_sge),
            reads_answered: small(raw.max_qp_rd_atom),
            reads_asked: small(raw.max_qp_init_rd_atom),
            registrations: count(raw.max_mr),
            registration_bytes: raw.max_mr_size,
        }
    }
}

/// A port that connections can be made through.
#[derive(Clone, Debug)]
pub struct Port {
    pub device: Arc<Device>,
    pub number: u8,
    pub gid_index: u8,
    pub offer: Offer,
    /// Longest message of this port.
    pub message_bytes: usize,
}

/// An open device.
pub struct Device {
    library: &'static Library,
    context: *mut verbs::Context,
    domain: *mut verbs::ProtectionDomain,
    name: String,
    limits: Limits,
    ports: u8,
    /// Distinguishes it from every other device that this process has opened.
    number: usize,
    next_vector: AtomicUsize,
}

// SAFETY: the library's objects may be used from any thread; it locks what it shares.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// The ports of these devices as they are now. Those that cannot be used are added to `unused`.
pub fn ports(
    devices: &[Arc<Device>],
    wanted: &[String],
    gid_index: Option<u8>,
    unused: &mut Vec<Unused>,
) -> Vec<Port> {
    let mut ports = Vec::new();
    for device in devices {
        for number in 1..=device.port_count() {
            let name = format!("{}:{number}", device.name);
            if !wanted.is_empty() && !wanted.contains(&device.name) && !wanted.contains(&name) {
                continue;
            }
            match port(device, number, gid_index) {
                Ok(port) => ports.push(port),
                Err(reason) => unused.push(Unused { name, reason }),
            }
        }
    }
    ports
}

/// Open all devices that `wanted` lets through ("mlx5_0", "mlx5_0:1"; empty: all). Those that cannot be opened are added to
/// `unused`. Errors: why there can be none.
pub fn open(wanted: &[String], unused: &mut Vec<Unused>) -> Result<Vec<Arc<Device>>, String> {
    let library = Library::get()?;
    let mut count: c_int = 0;
    // SAFETY: `count` outlives the call.
    let list = unsafe { (library.get_device_list)(&mut count) };
    if list.is_null() {
        let error = io::Error::last_os_error();
        return Err(match error.raw_os_error() {
            Some(code) if code == rustix::io::Errno::NOSYS.raw_os_error() => {
                "the kernel of this machine knows no RDMA (module ib_uverbs)".into()
            }
            _ => format!("the RDMA devices cannot be listed: {error}"),
        });
    }
    let mut devices = Vec::new();
    for place in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the list has `count` entries, valid until it is freed below; an open device survives that.
        let (device, name) = unsafe {
            let device = *list.add(place);
            (device, verbs::text((library.get_device_name)(device)))
        };
        let is_wanted = |wanted: &String| wanted.split(':').next() == Some(&name);
        if !wanted.is_empty() && !wanted.iter().any(is_wanted) {
            continue;
        }
        match Device::open(library, device, name.clone()) {
            Ok(device) => devices.push(Arc::new(device)),
            Err(error) => unused.push(Unused { name, reason: format!("it cannot be opened: {error}") }),
        }
    }
    // SAFETY: it came from `get_device_list` and is freed once.
    unsafe { (library.free_device_list)(list) };
    Ok(devices)
}

fn port(device: &Arc<Device>, number: u8, gid_index: Option<u8>) -> Result<Port, String> {
    let attributes = device.query_port(number).map_err(|error| format!("it cannot be asked: {error}"))?;
    if attributes.state != verbs::PORT_ACTIVE {
        return Err("it is down".into());
    }
    let directory = PathBuf::from(SYSFS).join(&device.name).join("ports").join(number.to_string());
    let link = match attributes.link_layer {
        2 => LinkLayer::Ethernet,
        _ => LinkLayer::InfiniBand,
    };
    let table = gid_table(&directory);
    let gid = choose_gid(link, &table, gid_index)?;
    let mtu = u8::try_from(attributes.active_mtu).ok().filter(|mtu| (1..=5).contains(mtu));
    let mtu = mtu.ok_or_else(|| format!("its MTU number {} is unknown", attributes.active_mtu))?;
    let lid = if link == LinkLayer::InfiniBand { attributes.lid } else { 0 };
    Ok(Port {
        device: device.clone(),
        number,
        gid_index: gid.index,
        offer: Offer { gid: gid.gid, link, mtu, lid },
        message_bytes: attributes.max_msg_sz as usize,
    })
}

/// The GID table of a port, from its directory in sysfs. What cannot be read is not there.
fn gid_table(directory: &Path) -> Vec<GidEntry> {
    let Ok(files) = fs::read_dir(directory.join("gids")) else { return Vec::new() };
    let mut table: Vec<GidEntry> = files
        .filter_map(|file| {
            let index: u8 = file.ok()?.file_name().to_str()?.parse().ok()?;
            let gid = parse_gid(&fs::read_to_string(directory.join(format!("gids/{index}"))).ok()?)?;
            if gid == [0; 16] {
                return None;
            }
            let kind = fs::read_to_string(directory.join(format!("gid_attrs/types/{index}"))).ok()?;
            let kind = match kind.trim() {
                "RoCE v2" => GidType::RoceV2,
                "RoCE v1" | "IB/RoCE v1" if is_ethernet(directory) => GidType::RoceV1,
                _ => GidType::InfiniBand,
            };
            Some(GidEntry { index, gid, kind })
        })
        .collect();
    table.sort_by_key(|entry| entry.index);
    table
}

fn is_ethernet(port: &Path) -> bool {
    fs::read_to_string(port.join("link_layer")).is_ok_and(|link| link.trim() == "Ethernet")
}

/// "fe80:0000:0000:0000:5054:00ff:fe12:3456" as sysfs writes it.
fn parse_gid(text: &str) -> Option<[u8; 16]> {
    let mut gid = [0; 16];
    let mut groups = text.trim().split(':');
    for place in gid.chunks_exact_mut(2) {
        place.copy_from_slice(&u16::from_str_radix(groups.next()?, 16).ok()?.to_be_bytes());
    }
    groups.next().is_none().then_some(gid)
}

impl Device {
    fn open(library: &'static Library, device: *mut verbs::DeviceHandle, name: String) -> io::Result<Device> {
        static NEXT: AtomicUsize = AtomicUsize::new(1);
        // SAFETY: `device` is an entry of a list that has not been freed.
        let context = unsafe { (library.open_device)(device) };
        if context.is_null() {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: all fields are numbers.
        let mut attributes: DeviceAttributes = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are valid; the context is closed below or by `drop`.
        let (asked, domain) = unsafe {
            let asked = (library.query_device)(context, &mut attributes);
            (asked, if asked == 0 { (library.alloc_pd)(context) } else { ptr::null_mut() })
        };
        if domain.is_null() {
            let error =
                if asked == 0 { io::Error::last_os_error() } else { io::Error::from_raw_os_error(asked) };
            // SAFETY: it is open and nothing uses it.
            unsafe { (library.close_device)(context) };
            return Err(error);
        }
        Ok(Device {
            library,
            context,
            domain,
            name,
            limits: Limits::from(&attributes),
            ports: attributes.phys_port_cnt,
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            next_vector: AtomicUsize::new(0),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    pub(super) fn library(&self) -> &'static Library {
        self.library
    }

    pub(super) fn context(&self) -> *mut verbs::Context {
        self.context
    }

    pub(super) fn domain(&self) -> *mut verbs::ProtectionDomain {
        self.domain
    }

    /// Completion queues take the device's interrupts in turn.
    pub(super) fn next_vector(&self) -> c_int {
        // SAFETY: the context is open.
        let count = unsafe { (*self.context).num_comp_vectors }.max(1) as usize;
        (self.next_vector.fetch_add(1, Ordering::Relaxed) % count) as c_int
    }

    fn port_count(&self) -> u8 {
        self.ports
    }

    fn query_port(&self, number: u8) -> io::Result<PortAttributes> {
        // SAFETY: all fields are numbers.
        let mut attributes: PortAttributes = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are valid. The function fills the struct up to its field `flags`.
        match unsafe { (self.library.query_port)(self.context, number, &mut attributes) } {
            0 => Ok(attributes),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// The registration of `region` with this device: one key for all of it, made when first needed, which lives as
    /// long as the region.
    pub fn registration(self: &Arc<Device>, region: &Arc<Region>) -> io::Result<Arc<Registration>> {
        region.attachment(self.number, || self.register(Memory::Region(region)))
    }

    /// Register memory. Errors: `Unsupported` for memory of a GPU; otherwise what the kernel says, which for a limit
    /// on locked memory is `OutOfMemory`.
    pub fn register(self: &Arc<Device>, memory: Memory<'_>) -> io::Result<Registration> {
        let region = match memory {
            Memory::Region(region) => region,
            Memory::DmaBuf { .. } | Memory::Peer { .. } => {
                return Err(io::Error::new(
                    io::ErrorKind::Unsupported,
                    "memory of a GPU cannot be registered: read into a buffer of the host and copy it, \
                     for example with luciola.plugins.weights",
                ));
            }
        };
        let access = verbs::ACCESS_LOCAL_WRITE
            | verbs::ACCESS_REMOTE_WRITE
            | verbs::ACCESS_REMOTE_READ
            | verbs::ACCESS_RELAXED_ORDERING;
        let (address, len) = (region.as_ptr(), region.len());
        if len as u64 > self.limits.registration_bytes {
            let name = &self.name;
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "{name} registers at most {} bytes at once, not {len}",
                    self.limits.registration_bytes
                ),
            ));
        }
        // SAFETY: the range is the region's mapping, which outlives the registration: regions drop their attachments
        // before they unmap.
        let raw = unsafe {
            (self.library.reg_mr_iova2)(self.domain, address.cast(), len, address as u64, access as c_uint)
        };
        if raw.is_null() {
            let error = io::Error::last_os_error();
            let mib = len.div_ceil(1 << 20);
            return Err(io::Error::new(
                error.kind(),
                format!(
                    "{mib} MiB cannot be registered with {}: {error} (raise the limit on locked memory, \
                     `ulimit -l` or LimitMEMLOCK=)",
                    self.name
                ),
            ));
        }
        // SAFETY: the library returned a struct of this type.
        let (lkey, rkey) = unsafe { ((*raw).lkey, (*raw).rkey) };
        Ok(Registration { device: self.clone(), raw, lkey, rkey })
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: registrations and queue pairs hold the device, so none is left.
        unsafe {
            (self.library.dealloc_pd)(self.domain);
            (self.library.close_device)(self.context);
        }
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device {{ {} }}", self.name)
    }
}

/// Memory that can be registered with a device.
#[derive(Clone, Copy, Debug)]
pub enum Memory<'a> {
    Region(&'a Region),
    /// Memory of a GPU that its driver exported.
    DmaBuf {
        fd: BorrowedFd<'a>,
        offset: u64,
        len: usize,
    },
    /// Memory of a GPU whose driver serves page requests of the device's driver (peer memory).
    Peer {
        address: u64,
        len: usize,
    },
}

/// Memory that a device may read and write.
pub struct Registration {
    device: Arc<Device>,
    raw: *mut verbs::MemoryRegion,
    pub lkey: u32,
    pub rkey: u32,
}

// SAFETY: the keys are numbers, and the object may be given back from any thread.
unsafe impl Send for Registration {}
// SAFETY: as above.
unsafe impl Sync for Registration {}

impl Drop for Registration {
    fn drop(&mut self) {
        // SAFETY: it came from the library and is given back once.
        let error = unsafe { (self.device.library.dereg_mr)(self.raw) };
        if error != 0 {
            log::error!(
                "deregistering memory from {} failed: error {error}; it stays registered",
                self.device.name
            );
        }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Registration {{ {}, rkey: {:#x} }}", self.device.name, self.rkey)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gids_are_read_as_the_kernel_writes_them() {
        let gid = parse_gid("0000:0000:0000:0000:0000:ffff:0a00:0001\n").unwrap();
        assert_eq!(gid, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 10, 0, 0, 1]);
        for bad in ["", "fe80", "0:0:0:0:0:0:0:0:0", "x:0:0:0:0:0:0:0"] {
            assert_eq!(parse_gid(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_table_is_read_from_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("link_layer", "Ethernet\n");
        write("gids/0", "fe80:0000:0000:0000:0000:0000:0000:0001\n");
        write("gid_attrs/types/0", "IB/RoCE v1\n");
        write("gids/1", "0000:0000:0000:0000:0000:ffff:0a00:0001\n");
        write("gid_attrs/types/1", "RoCE v2\n");
        write("gids/2", "0000:0000:0000:0000:0000:0000:0000:0000\n");
        write("gids/300", "fe80:0000:0000:0000:0000:0000:0000:0001\n");
        let table = gid_table(directory.path());
        assert_eq!(
            table.iter().map(|entry| (entry.index, entry.kind)).collect::<Vec<_>>(),
            [(0, GidType::RoceV1), (1, GidType::RoceV2)]
        );
        assert_eq!(gid_table(&directory.path().join("nowhere")), []);
    }
}
