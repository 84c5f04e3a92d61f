//! Headers and table entries of frames, byte for byte as docs/protocol.md draws them.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Ports that one offer may name: more than any machine of today has.
pub const PORTS_MAX: usize = 16;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawHeader {
    pub(super) magic: [u8; 4],
    pub(super) version: u8,
    pub(super) kind: u8,
    pub(super) count: U16,
    pub(super) payload_bytes: U32,
    pub(super) deadline_ms: U32,
    pub(super) id: U32,
    pub(super) clock_ms: U32,
    pub(super) table_crc: U32,
    pub(super) header_crc: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawRead {
    pub(super) chain: U32,
    pub(super) slot: U16,
    pub(super) reserved: U16,
    pub(super) chain_version: U64,
    pub(super) content: U64,
    pub(super) index: U32,
    pub(super) offset: U32,
    pub(super) length: U32,
    pub(super) reserved_2: U32,
    pub(super) region_offset: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawReadResult {
    pub(super) status: U16,
    pub(super) flags: U16,
    pub(super) length: U32,
    pub(super) version: U64,
    pub(super) crc: U32,
    pub(super) reserved: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawUpdate {
    pub(super) chain: U32,
    pub(super) slot: U16,
    pub(super) op: U16,
    pub(super) chain_version: U64,
    pub(super) content: U64,
    pub(super) index: U32,
    pub(super) offset: U32,
    pub(super) length: U32,
    pub(super) crc: U32,
    pub(super) client: U64,
    pub(super) sequence: U64,
    pub(super) version: U64,
    pub(super) region_offset: U64,
    pub(super) flags: U32,
    pub(super) writers: U32,
    pub(super) decided: U64,
    pub(super) settled: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawUpdateResult {
    pub(super) status: U16,
    pub(super) reserved: U16,
    pub(super) length: U32,
    pub(super) version: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawSync {
    pub(super) chain: U32,
    pub(super) reserved: U32,
    pub(super) chain_version: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawSyncResult {
    pub(super) status: U16,
    pub(super) reserved: [u8; 6],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawRegister {
    pub(super) slot: U16,
    pub(super) reserved: [u8; 6],
    pub(super) region: [u8; 16],
    pub(super) length: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawOffer {
    pub(super) gid: [u8; 16],
    pub(super) link: u8,
    pub(super) mtu: u8,
    pub(super) lid: U16,
    pub(super) reserved: [u8; 4],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawEnd {
    pub(super) status: U16,
    pub(super) port: U16,
    pub(super) qpn: U32,
    pub(super) psn: U32,
    pub(super) lid: U16,
    pub(super) link: u8,
    pub(super) mtu: u8,
    pub(super) gid: [u8; 16],
    pub(super) window: U16,
    pub(super) reads: u8,
    pub(super) flags: u8,
    pub(super) reserved: [u8; 12],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawConnected {
    pub(super) status: U16,
    pub(super) grants: U16,
    pub(super) reserved: [u8; 4],
}
