//! Frames of the lane (docs/protocol.md): a header, then one protobuf message.

use std::net::SocketAddr;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::frame::Malformed;

pub const HEADER_BYTES: usize = size_of::<RawLaneHeader>();
pub const PAYLOAD_BYTES_MAX: usize = 8 << 20;
const REPLY: u16 = 1;
const ERROR: u16 = 2;

/// Name of the abstract Unix socket by which a server that listens at `address` is reached on its own host.
pub fn socket_name(address: SocketAddr) -> String {
    format!("luciola-lane/{address}")
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawLaneHeader {
    pub(super) length: U32,
    pub(super) method: U16,
    pub(super) flags: U16,
    pub(super) id: U64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneHeader {
    pub length: u32,
    pub method: u16,
    pub reply: bool,
    /// The payload is an `Error` message.
    pub error: bool,
    pub id: u64,
}

impl LaneHeader {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        assert!(self.length as usize <= PAYLOAD_BYTES_MAX, "senders bound their messages");
        assert!(self.reply || !self.error, "only a reply is an error");
        let flags = if self.reply { REPLY } else { 0 } | if self.error { ERROR } else { 0 };
        let raw = RawLaneHeader {
            length: self.length.into(),
            method: self.method.into(),
            flags: flags.into(),
            id: self.id.into(),
        };
        raw.as_bytes().try_into().expect("the sizes are equal")
    }

    pub fn decode(bytes: &[u8; HEADER_BYTES]) -> Result<LaneHeader, Malformed> {
        let raw = RawLaneHeader::ref_from_bytes(bytes).expect("the sizes are equal and alignment is one");
        let flags = raw.flags.get();
        if raw.length.get() as usize > PAYLOAD_BYTES_MAX {
            return Err(Malformed("length of the message"));
        }
        if flags & !(REPLY | ERROR) != 0 || flags == ERROR {
            return Err(Malformed("unknown flags"));
        }
        Ok(LaneHeader {
            length: raw.length.get(),
            method: raw.method.get(),
            reply: flags & REPLY != 0,
            error: flags & ERROR != 0,
            id: raw.id.get(),
        })
    }
}
