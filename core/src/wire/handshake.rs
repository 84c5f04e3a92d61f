//! The bytes of the handshake (docs/protocol.md): three fixed messages before the first frame.

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::credential::{CLAIMS_BYTES_MAX, ChannelKind};
use super::frame::Malformed;

pub const MAGIC: [u8; 4] = *b"LUC1";
pub const VERSION: u8 = 1;
/// Where a greeting says that the server is busy.
pub(crate) const BUSY_PREFIX: usize = std::mem::offset_of!(RawServerHello, busy);
pub const SERVER_HELLO_BYTES: usize = size_of::<RawServerHello>();
pub const CLIENT_HELLO_BYTES: usize = size_of::<RawClientHello>();
pub const VERDICT_BYTES: usize = size_of::<RawVerdict>();
pub const PROOF_BYTES: usize = 32;
const _: () = assert!(CLAIMS_BYTES_MAX <= u16::MAX as usize, "a greeting says how long its claims are");

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawServerHello {
    pub(super) magic: [u8; 4],
    pub(super) kind: u8,
    pub(super) version: u8,
    pub(super) busy: u8,
    pub(super) wire: u8,
    pub(super) nonce_s: [u8; 32],
}

/// `claims` and `proof_c` follow.
#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawClientHello {
    pub(super) magic: [u8; 4],
    pub(super) kind: u8,
    pub(super) version: u8,
    pub(super) claims_len: U16,
    pub(super) nonce_c: [u8; 32],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct RawVerdict {
    pub(super) status: u8,
    pub(super) reserved: [u8; 7],
    pub(super) proof_s: [u8; 32],
}

/// What a server says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerHello {
    /// `wire`: what protects the frames that follow the handshake (`net::Wire`).
    Nonce { nonce: [u8; 32], wire: u8 },
    /// It has no thread for one more connection, and closes.
    Busy,
}

pub fn encode_server_hello(kind: ChannelKind, hello: ServerHello) -> [u8; SERVER_HELLO_BYTES] {
    let (busy, wire, nonce_s) = match hello {
        ServerHello::Nonce { nonce, wire } => (0, wire, nonce),
        ServerHello::Busy => (1, 0, [0; 32]),
    };
    let raw = RawServerHello { magic: MAGIC, kind: kind as u8, version: VERSION, busy, wire, nonce_s };
    raw.as_bytes().try_into().expect("the sizes are equal")
}

pub fn decode_server_hello(
    kind: ChannelKind,
    bytes: &[u8; SERVER_HELLO_BYTES],
) -> Result<ServerHello, Malformed> {
    let raw = RawServerHello::ref_from_bytes(bytes).expect("the sizes are equal and alignment is one");
    check(kind, raw.magic, raw.kind, raw.version)?;
    match raw.busy {
        0 => Ok(ServerHello::Nonce { nonce: raw.nonce_s, wire: raw.wire }),
        1 => Ok(ServerHello::Busy),
        _ => Err(Malformed("unknown greeting")),
    }
}

/// The client's whole answer: fixed part, claims and proof.
pub fn encode_client_hello(
    kind: ChannelKind,
    nonce_c: [u8; 32],
    claims: &[u8],
    proof_c: &[u8; 32],
) -> Vec<u8> {
    assert!(claims.len() <= CLAIMS_BYTES_MAX, "checked when the credential was made");
    let claims_len = (claims.len() as u16).into();
    let raw = RawClientHello { magic: MAGIC, kind: kind as u8, version: VERSION, claims_len, nonce_c };
    [raw.as_bytes(), claims, proof_c].concat()
}

/// The client's nonce, and the length of the claims that follow (then the proof).
pub fn decode_client_hello(
    kind: ChannelKind,
    bytes: &[u8; CLIENT_HELLO_BYTES],
) -> Result<([u8; 32], usize), Malformed> {
    let raw = RawClientHello::ref_from_bytes(bytes).expect("the sizes are equal and alignment is one");
    check(kind, raw.magic, raw.kind, raw.version)?;
    let claims_len = raw.claims_len.get() as usize;
    if claims_len > CLAIMS_BYTES_MAX {
        return Err(Malformed("length of the claims"));
    }
    Ok((raw.nonce_c, claims_len))
}

/// The server's last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// With the server's own proof.
    Welcome([u8; 32]),
    Refused,
    /// The token is good, but all threads for clients are taken.
    Busy,
}

pub fn encode_verdict(verdict: Verdict) -> [u8; VERDICT_BYTES] {
    let (status, proof_s) = match verdict {
        Verdict::Welcome(proof_s) => (0, proof_s),
        Verdict::Refused => (1, [0; 32]),
        Verdict::Busy => (2, [0; 32]),
    };
    let raw = RawVerdict { status, reserved: [0; 7], proof_s };
    raw.as_bytes().try_into().expect("the sizes are equal")
}

pub fn decode_verdict(bytes: &[u8; VERDICT_BYTES]) -> Verdict {
    let raw = RawVerdict::ref_from_bytes(bytes).expect("the sizes are equal and alignment is one");
    match raw.status {
        0 => Verdict::Welcome(raw.proof_s),
        2 => Verdict::Busy,
        _ => Verdict::Refused,
    }
}

fn check(kind: ChannelKind, magic: [u8; 4], number: u8, version: u8) -> Result<(), Malformed> {
    if magic != MAGIC {
        return Err(Malformed("not the beginning of a handshake"));
    }
    if number != kind as u8 {
        return Err(Malformed("another kind of connection"));
    }
    if version != VERSION {
        return Err(Malformed("another version of the protocol"));
    }
    Ok(())
}
