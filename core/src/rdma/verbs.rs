//! The part of libibverbs' public interface that we use, found at run time.
//!
//! One build serves machines with and without rdma-core: the library is opened by name, and a machine that lacks it
//! has no devices. The structs below are those of `<infiniband/verbs.h>`, whose layout is part of the library's
//! stable interface; a test holds their sizes and offsets against a C compiler's. Four calls of the header are inline
//! functions that go through a table in the device's context; so are ours.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

pub const ACCESS_LOCAL_WRITE: c_int = 1;
pub const ACCESS_REMOTE_WRITE: c_int = 1 << 1;
pub const ACCESS_REMOTE_READ: c_int = 1 << 2;
/// Optional: the library drops it where the kernel does not know it.
pub const ACCESS_RELAXED_ORDERING: c_int = 1 << 20;

pub const PORT_ACTIVE: c_int = 4;
pub const QPT_RC: c_int = 2;

pub const QPS_RESET: c_int = 0;
pub const QPS_INIT: c_int = 1;
pub const QPS_RTR: c_int = 2;
pub const QPS_RTS: c_int = 3;

pub const QP_STATE: c_int = 1;
pub const QP_ACCESS_FLAGS: c_int = 8;
pub const QP_PKEY_INDEX: c_int = 16;
pub const QP_PORT: c_int = 32;
pub const QP_AV: c_int = 128;
pub const QP_PATH_MTU: c_int = 256;
pub const QP_TIMEOUT: c_int = 512;
pub const QP_RETRY_CNT: c_int = 1024;
pub const QP_RNR_RETRY: c_int = 2048;
pub const QP_RQ_PSN: c_int = 4096;
pub const QP_MAX_QP_RD_ATOMIC: c_int = 8192;
pub const QP_MIN_RNR_TIMER: c_int = 32768;
pub const QP_SQ_PSN: c_int = 65536;
pub const QP_MAX_DEST_RD_ATOMIC: c_int = 131_072;
pub const QP_DEST_QPN: c_int = 1 << 20;

pub const WR_RDMA_WRITE: c_int = 0;
pub const WR_SEND_WITH_IMM: c_int = 3;
pub const WR_RDMA_READ: c_int = 4;
pub const SEND_SIGNALED: c_uint = 2;

pub const WC_SUCCESS: c_int = 0;
pub const WC_WR_FLUSH_ERR: c_int = 5;
pub const WC_RETRY_EXC_ERR: c_int = 12;
/// A bit of every opcode of a completed receive.
pub const WC_RECV: c_int = 1 << 7;
pub const WC_WITH_IMM: c_uint = 2;

/// Opaque.
#[repr(C)]
pub struct DeviceHandle {
    _private: [u8; 0],
}

/// Opaque.
#[repr(C)]
pub struct ProtectionDomain {
    _private: [u8; 0],
}

/// What the header's inline functions call.
#[repr(C)]
pub struct ContextOps {
    compat_1: [*const c_void; 11],
    pub poll_cq: unsafe extern "C" fn(*mut CompletionQueue, c_int, *mut WorkCompletion) -> c_int,
    pub req_notify_cq: unsafe extern "C" fn(*mut CompletionQueue, c_int) -> c_int,
    compat_2: [*const c_void; 12],
    pub post_send: unsafe extern "C" fn(*mut QueuePair, *mut SendRequest, *mut *mut SendRequest) -> c_int,
    pub post_recv:
        unsafe extern "C" fn(*mut QueuePair, *mut ReceiveRequest, *mut *mut ReceiveRequest) -> c_int,
    compat_3: [*const c_void; 5],
}

/// Its beginning; a mutex and more follow.
#[repr(C)]
pub struct Context {
    device: *mut DeviceHandle,
    pub ops: ContextOps,
    cmd_fd: c_int,
    async_fd: c_int,
    pub num_comp_vectors: c_int,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct DeviceAttributes {
    pub firmware: [c_char; 64],
    pub node_guid: u64,
    pub sys_image_guid: u64,
    pub max_mr_size: u64,
    pub page_size_cap: u64,
    pub vendor_id: u32,
    pub vendor_part_id: u32,
    pub hw_ver: u32,
    pub max_qp: c_int,
    pub max_qp_wr: c_int,
    pub device_cap_flags: c_uint,
    pub max_sge: c_int,
    pub max_sge_rd: c_int,
    pub max_cq: c_int,
    pub max_cqe: c_int,
    pub max_mr: c_int,
    pub max_pd: c_int,
    pub max_qp_rd_atom: c_int,
    pub max_ee_rd_atom: c_int,
    pub max_res_rd_atom: c_int,
    pub max_qp_init_rd_atom: c_int,
    pub unused: [c_int; 16],
    pub max_pkeys: u16,
    pub local_ca_ack_delay: u8,
    pub phys_port_cnt: u8,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct PortAttributes {
    pub state: c_int,
    pub max_mtu: c_int,
    pub active_mtu: c_int,
    pub gid_tbl_len: c_int,
    pub port_cap_flags: u32,
    pub max_msg_sz: u32,
    pub bad_pkey_cntr: u32,
    pub qkey_viol_cntr: u32,
    pub pkey_tbl_len: u16,
    pub lid: u16,
    pub sm_lid: u16,
    pub lmc: u8,
    pub max_vl_num: u8,
    pub sm_sl: u8,
    pub subnet_timeout: u8,
    pub init_type_reply: u8,
    pub active_width: u8,
    pub active_speed: u8,
    pub phys_state: u8,
    pub link_layer: u8,
    pub flags: u8,
    pub port_cap_flags2: u16,
}

#[repr(C)]
pub struct MemoryRegion {
    context: *mut Context,
    pd: *mut ProtectionDomain,
    pub address: *mut c_void,
    pub length: usize,
    handle: u32,
    pub lkey: u32,
    pub rkey: u32,
}

/// Its beginning; a mutex and counters follow.
#[repr(C)]
pub struct CompletionQueue {
    pub context: *mut Context,
}

#[repr(C)]
pub struct CompletionChannel {
    context: *mut Context,
    pub fd: c_int,
    refcnt: c_int,
}

/// Its beginning; a mutex and counters follow.
#[repr(C)]
pub struct QueuePair {
    pub context: *mut Context,
    qp_context: *mut c_void,
    pd: *mut ProtectionDomain,
    send_cq: *mut CompletionQueue,
    recv_cq: *mut CompletionQueue,
    srq: *mut c_void,
    handle: u32,
    pub qp_num: u32,
    pub state: c_int,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct QueueLimits {
    pub max_send_wr: u32,
    pub max_recv_wr: u32,
    pub max_send_sge: u32,
    pub max_recv_sge: u32,
    pub max_inline_data: u32,
}

#[repr(C)]
pub struct QueuePairInit {
    pub qp_context: *mut c_void,
    pub send_cq: *mut CompletionQueue,
    pub recv_cq: *mut CompletionQueue,
    pub srq: *mut c_void,
    pub cap: QueueLimits,
    pub qp_type: c_int,
    pub sq_sig_all: c_int,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct GlobalRoute {
    /// Eight-byte aligned as the header's union is.
    pub dgid: [u64; 2],
    pub flow_label: u32,
    pub sgid_index: u8,
    pub hop_limit: u8,
    pub traffic_class: u8,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct AddressHandle {
    pub grh: GlobalRoute,
    pub dlid: u16,
    pub sl: u8,
    pub src_path_bits: u8,
    pub static_rate: u8,
    pub is_global: u8,
    pub port_num: u8,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct QueuePairAttributes {
    pub qp_state: c_int,
    pub cur_qp_state: c_int,
    pub path_mtu: c_int,
    pub path_mig_state: c_int,
    pub qkey: u32,
    pub rq_psn: u32,
    pub sq_psn: u32,
    pub dest_qp_num: u32,
    pub qp_access_flags: c_int,
    pub cap: QueueLimits,
    pub ah_attr: AddressHandle,
    pub alt_ah_attr: AddressHandle,
    pub pkey_index: u16,
    pub alt_pkey_index: u16,
    pub en_sqd_async_notify: u8,
    pub sq_draining: u8,
    pub max_rd_atomic: u8,
    pub max_dest_rd_atomic: u8,
    pub min_rnr_timer: u8,
    pub port_num: u8,
    pub timeout: u8,
    pub retry_cnt: u8,
    pub rnr_retry: u8,
    pub alt_port_num: u8,
    pub alt_timeout: u8,
    pub rate_limit: u32,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct ScatterEntry {
    pub address: u64,
    pub length: u32,
    pub lkey: u32,
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct SendRequest {
    pub wr_id: u64,
    pub next: *mut SendRequest,
    pub sg_list: *mut ScatterEntry,
    pub num_sge: c_int,
    pub opcode: c_int,
    pub send_flags: c_uint,
    /// Big-endian.
    pub imm_data: u32,
    pub remote_address: u64,
    pub rkey: u32,
    pub rest: [u64; 9],
}

#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ReceiveRequest {
    pub wr_id: u64,
    pub next: *mut ReceiveRequest,
    pub sg_list: *mut ScatterEntry,
    pub num_sge: c_int,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct WorkCompletion {
    pub wr_id: u64,
    pub status: c_int,
    pub opcode: c_int,
    pub vendor_err: u32,
    pub byte_len: u32,
    /// Big-endian.
    pub imm_data: u32,
    pub qp_num: u32,
    pub src_qp: u32,
    pub wc_flags: c_uint,
    pub pkey_index: u16,
    pub slid: u16,
    pub sl: u8,
    pub dlid_path_bits: u8,
}

unsafe extern "C" {
    fn dlopen(file: *const c_char, mode: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

const RTLD_NOW: c_int = 2;

macro_rules! library {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The library's functions, without their prefix `ibv_`.
        pub struct Library {
            $(pub $name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Library {
            fn open() -> Result<Library, String> {
                // SAFETY: a constant string; the library is one that the machine's own loader finds, and stays
                // loaded for good.
                let handle = unsafe { dlopen(c"libibverbs.so.1".as_ptr(), RTLD_NOW) };
                if handle.is_null() {
                    return Err(format!("no RDMA without libibverbs.so.1: {}", loader_error()));
                }
                Ok(Library {
                    $($name: {
                        let name = concat!("ibv_", stringify!($name), "\0");
                        // SAFETY: `name` ends with a zero. Of several versions of a symbol the newest is found.
                        let symbol = unsafe { dlsym(handle, name.as_ptr().cast()) };
                        if symbol.is_null() {
                            return Err(format!("libibverbs.so.1 is too old for RDMA: {}", loader_error()));
                        }
                        // SAFETY: the symbol of this name has this type since version 1.1 of the interface.
                        unsafe {
                            std::mem::transmute::<
                                *mut c_void,
                                unsafe extern "C" fn($($argument),*) $(-> $result)?,
                            >(symbol)
                        }
                    },)*
                })
            }
        }
    };
}

library! {
    get_device_list: fn(*mut c_int) -> *mut *mut DeviceHandle;
    free_device_list: fn(*mut *mut DeviceHandle);
    get_device_name: fn(*mut DeviceHandle) -> *const c_char;
    open_device: fn(*mut DeviceHandle) -> *mut Context;
    close_device: fn(*mut Context) -> c_int;
    query_device: fn(*mut Context, *mut DeviceAttributes) -> c_int;
    query_port: fn(*mut Context, u8, *mut PortAttributes) -> c_int;
    alloc_pd: fn(*mut Context) -> *mut ProtectionDomain;
    dealloc_pd: fn(*mut ProtectionDomain) -> c_int;
    reg_mr_iova2: fn(*mut ProtectionDomain, *mut c_void, usize, u64, c_uint) -> *mut MemoryRegion;
    dereg_mr: fn(*mut MemoryRegion) -> c_int;
    create_comp_channel: fn(*mut Context) -> *mut CompletionChannel;
    destroy_comp_channel: fn(*mut CompletionChannel) -> c_int;
    create_cq: fn(*mut Context, c_int, *mut c_void, *mut CompletionChannel, c_int) -> *mut CompletionQueue;
    destroy_cq: fn(*mut CompletionQueue) -> c_int;
    get_cq_event: fn(*mut CompletionChannel, *mut *mut CompletionQueue, *mut *mut c_void) -> c_int;
    ack_cq_events: fn(*mut CompletionQueue, c_uint);
    create_qp: fn(*mut ProtectionDomain, *mut QueuePairInit) -> *mut QueuePair;
    modify_qp: fn(*mut QueuePair, *mut QueuePairAttributes, c_int) -> c_int;
    destroy_qp: fn(*mut QueuePair) -> c_int;
    wc_status_str: fn(c_int) -> *const c_char;
}

impl Library {
    /// The library of this machine; the text says why there is none. Opened once.
    pub fn get() -> Result<&'static Library, String> {
        static LIBRARY: OnceLock<Result<Library, String>> = OnceLock::new();
        LIBRARY.get_or_init(Library::open).as_ref().map_err(Clone::clone)
    }

    pub fn status_text(&self, status: c_int) -> String {
        // SAFETY: the library answers any number with a constant string.
        text(unsafe { (self.wc_status_str)(status) })
    }
}

/// A string of the library's.
pub fn text(string: *const c_char) -> String {
    if string.is_null() {
        return String::new();
    }
    // SAFETY: it is not null, and the caller got it from a function that returns a string with its zero.
    unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned()
}

fn loader_error() -> String {
    // SAFETY: no arguments; the string is copied before the next call of the loader by this thread.
    text(unsafe { dlerror() })
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    /// The numbers are what a C compiler says of the header on 64-bit Linux.
    #[test]
    fn structs_are_laid_out_as_the_header_says() {
        assert_eq!(size_of::<DeviceAttributes>(), 232);
        assert_eq!(offset_of!(DeviceAttributes, max_qp_wr), 112);
        assert_eq!(offset_of!(DeviceAttributes, max_sge), 120);
        assert_eq!(offset_of!(DeviceAttributes, max_cqe), 132);
        assert_eq!(offset_of!(DeviceAttributes, max_mr), 136);
        assert_eq!(offset_of!(DeviceAttributes, max_qp_init_rd_atom), 156);
        assert_eq!(offset_of!(DeviceAttributes, phys_port_cnt), 227);
        assert_eq!(size_of::<PortAttributes>(), 52);
        assert_eq!(offset_of!(PortAttributes, max_msg_sz), 20);
        assert_eq!(offset_of!(PortAttributes, lid), 34);
        assert_eq!(offset_of!(PortAttributes, link_layer), 46);
        assert_eq!(offset_of!(PortAttributes, port_cap_flags2), 48);
        assert_eq!(size_of::<MemoryRegion>(), 48);
        assert_eq!(offset_of!(MemoryRegion, lkey), 36);
        assert_eq!(offset_of!(MemoryRegion, rkey), 40);
        assert_eq!(size_of::<QueueLimits>(), 20);
        assert_eq!(size_of::<QueuePairInit>(), 64);
        assert_eq!(offset_of!(QueuePairInit, qp_type), 52);
        assert_eq!(size_of::<QueuePairAttributes>(), 144);
        assert_eq!(offset_of!(QueuePairAttributes, ah_attr), 56);
        assert_eq!(offset_of!(QueuePairAttributes, port_num), 129);
        assert_eq!(offset_of!(QueuePairAttributes, timeout), 130);
        assert_eq!(offset_of!(QueuePairAttributes, rate_limit), 136);
        assert_eq!(size_of::<AddressHandle>(), 32);
        assert_eq!(offset_of!(AddressHandle, dlid), 24);
        assert_eq!(offset_of!(AddressHandle, port_num), 30);
        assert_eq!(size_of::<GlobalRoute>(), 24);
        assert_eq!(size_of::<ScatterEntry>(), 16);
        assert_eq!(size_of::<SendRequest>(), 128);
        assert_eq!(offset_of!(SendRequest, imm_data), 36);
        assert_eq!(offset_of!(SendRequest, remote_address), 40);
        assert_eq!(offset_of!(SendRequest, rkey), 48);
        assert_eq!(size_of::<ReceiveRequest>(), 32);
        assert_eq!(size_of::<WorkCompletion>(), 48);
        assert_eq!(offset_of!(WorkCompletion, imm_data), 24);
        assert_eq!(offset_of!(WorkCompletion, wc_flags), 36);
        assert_eq!(offset_of!(QueuePair, qp_num), 52);
        assert_eq!(offset_of!(QueuePair, state), 56);
        assert_eq!(offset_of!(CompletionChannel, fd), 8);
        assert_eq!(size_of::<ContextOps>(), 256);
        assert_eq!(offset_of!(ContextOps, poll_cq), 88);
        assert_eq!(offset_of!(ContextOps, req_notify_cq), 96);
        assert_eq!(offset_of!(ContextOps, post_send), 200);
        assert_eq!(offset_of!(ContextOps, post_recv), 208);
        assert_eq!(offset_of!(Context, ops), 8);
        assert_eq!(offset_of!(Context, num_comp_vectors), 272);
    }

    #[test]
    fn the_library_is_there_or_says_why_not() {
        match Library::get() {
            Ok(library) => assert!(!library.status_text(WC_RETRY_EXC_ERR).is_empty()),
            Err(reason) => assert!(reason.contains("libibverbs.so.1"), "{reason}"),
        }
    }
}
