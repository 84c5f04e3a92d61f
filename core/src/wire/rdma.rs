//! The bytes by which two ends agree on a pair of queue pairs (docs/protocol.md, "RDMA"). Frames of the data plane.

use zerocopy::FromBytes;
use zerocopy::little_endian::U16;

use super::frame::{Envelope, FrameKind, Header, Malformed, REPLY, encode};
pub use super::raw::PORTS_MAX;
use super::raw::{RawConnected, RawEnd, RawOffer};
use crate::buffer::RegionId;

/// Bounds of what an end may say about its window.
pub const WINDOW_MIN: u16 = 4;
pub const WINDOW_MAX: u16 = 256;
const _: () = assert!(WINDOW_MIN <= WINDOW_MAX);
/// Set in an end's flags: transmissions are asked for.
const ASKS: u8 = 1;

/// The link layer between a port and its peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LinkLayer {
    InfiniBand = 1,
    /// RoCE version 2.
    Ethernet = 2,
}

/// A port as its machine offers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    pub gid: [u8; 16],
    pub link: LinkLayer,
    /// As verbs numbers it: 1 to 5 for 256 to 4096 bytes.
    pub mtu: u8,
    pub lid: u16,
}

/// One end of a connection: what the other must know to address it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// In the server's answer: which of the offered ports; else 0.
    pub port: u16,
    pub offer: Offer,
    pub qpn: u32,
    pub psn: u32,
    /// Messages that this end has buffers for.
    pub window: u16,
    /// RDMA READs that this end answers at once.
    pub reads: u8,
    /// The client wants to be asked before each transmission.
    pub asks: bool,
}

/// Why an end cannot be upgraded to RDMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[repr(u16)]
pub enum Unable {
    #[error("the server uses no RDMA device")]
    NoDevice = 1,
    #[error("no port of the server is on a fabric with one of ours")]
    NoFabric = 2,
    #[error("the server's device has no room for one more queue pair")]
    NotNow = 3,
    #[error("the server protects its connections, which RDMA cannot (its setting `wire`)")]
    Protected = 4,
}

impl Header {
    pub fn decode_offer(&self, table: &[u8]) -> Result<Vec<Offer>, Malformed> {
        let entries = self.entries::<RawOffer>(FrameKind::Offer, false, table)?;
        entries.iter().map(|raw| offer(raw.gid, raw.link, raw.mtu, raw.lid)).collect()
    }

    /// The server's end, or why it has none.
    pub fn decode_offer_answer(&self, table: &[u8]) -> Result<Result<End, Unable>, Malformed> {
        let raw = &self.entries::<RawEnd>(FrameKind::Offer, true, table)?[0];
        match unable(raw.status)? {
            Some(unable) => Ok(Err(unable)),
            None => end(raw).map(Ok),
        }
    }

    pub fn decode_connect(&self, table: &[u8]) -> Result<End, Malformed> {
        end(&self.entries::<RawEnd>(FrameKind::Connect, false, table)?[0])
    }

    /// Whether the server will ask before it transmits, or why the upgrade failed.
    pub fn decode_connect_answer(&self, table: &[u8]) -> Result<Result<bool, Unable>, Malformed> {
        let raw = &self.entries::<RawConnected>(FrameKind::Connect, true, table)?[0];
        Ok(match unable(raw.status)? {
            Some(unable) => Err(unable),
            None => Ok(raw.grants.get() != 0),
        })
    }
}

fn unable(status: U16) -> Result<Option<Unable>, Malformed> {
    match status.get() {
        0 => Ok(None),
        1 => Ok(Some(Unable::NoDevice)),
        2 => Ok(Some(Unable::NoFabric)),
        3 => Ok(Some(Unable::NotNow)),
        4 => Ok(Some(Unable::Protected)),
        _ => Err(Malformed("unknown status")),
    }
}

fn offer(gid: [u8; 16], link: u8, mtu: u8, lid: U16) -> Result<Offer, Malformed> {
    let link = match link {
        1 => LinkLayer::InfiniBand,
        2 => LinkLayer::Ethernet,
        _ => return Err(Malformed("unknown link layer")),
    };
    if !(1..=5).contains(&mtu) {
        return Err(Malformed("unknown MTU"));
    }
    Ok(Offer { gid, link, mtu, lid: lid.get() })
}

fn end(raw: &RawEnd) -> Result<End, Malformed> {
    let (qpn, psn, window) = (raw.qpn.get(), raw.psn.get(), raw.window.get());
    if qpn >> 24 != 0 || psn >> 24 != 0 {
        return Err(Malformed("number of a queue pair"));
    }
    if !(WINDOW_MIN..=WINDOW_MAX).contains(&window) {
        return Err(Malformed("window"));
    }
    let offer = offer(raw.gid, raw.link, raw.mtu, raw.lid)?;
    let (port, reads, asks) = (raw.port.get(), raw.reads, raw.flags & ASKS != 0);
    Ok(End { port, offer, qpn, psn, window, reads, asks })
}

pub fn encode_offer(frame: &mut Vec<u8>, envelope: Envelope, offers: &[Offer]) {
    assert!((1..=PORTS_MAX).contains(&offers.len()), "callers choose their ports");
    let entries = offers.iter().map(|offer| RawOffer {
        gid: offer.gid,
        link: offer.link as u8,
        mtu: offer.mtu,
        lid: offer.lid.into(),
        reserved: [0; 4],
    });
    encode(frame, FrameKind::Offer as u8, envelope, 0, entries);
}

pub fn encode_offer_answer(frame: &mut Vec<u8>, envelope: Envelope, answer: &Result<End, Unable>) {
    let raw = match answer {
        Ok(end) => raw_end(end),
        Err(unable) => {
            let mut raw = RawEnd::read_from_bytes(&[0; size_of::<RawEnd>()]).expect("the sizes are equal");
            raw.status = (*unable as u16).into();
            raw
        }
    };
    encode(frame, FrameKind::Offer as u8 | REPLY, envelope, 0, std::iter::once(raw));
}

pub fn encode_connect(frame: &mut Vec<u8>, envelope: Envelope, end: &End) {
    encode(frame, FrameKind::Connect as u8, envelope, 0, std::iter::once(raw_end(end)));
}

pub fn encode_connect_answer(frame: &mut Vec<u8>, envelope: Envelope, answer: Result<bool, Unable>) {
    let (status, grants) = match answer {
        Ok(grants) => (0, u16::from(grants)),
        Err(unable) => (unable as u16, 0),
    };
    let raw = RawConnected { status: status.into(), grants: grants.into(), reserved: [0; 4] };
    encode(frame, FrameKind::Connect as u8 | REPLY, envelope, 0, std::iter::once(raw));
}

fn raw_end(end: &End) -> RawEnd {
    RawEnd {
        status: 0.into(),
        port: end.port.into(),
        qpn: end.qpn.into(),
        psn: end.psn.into(),
        lid: end.offer.lid.into(),
        link: end.offer.link as u8,
        mtu: end.offer.mtu,
        gid: end.offer.gid,
        window: end.window.into(),
        reads: end.reads,
        flags: if end.asks { ASKS } else { 0 },
        reserved: [0; 12],
    }
}

/// Memory that a peer's device may read or fill: an address and the key of its registration.
/// In a registration it stands in place of the region's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteMemory {
    pub address: u64,
    pub rkey: u32,
}

impl From<RemoteMemory> for RegionId {
    fn from(memory: RemoteMemory) -> RegionId {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&memory.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&memory.rkey.to_le_bytes());
        RegionId(bytes)
    }
}

impl From<RegionId> for RemoteMemory {
    fn from(RegionId(bytes): RegionId) -> RemoteMemory {
        let address = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        let rkey = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
        RemoteMemory { address, rkey }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::frame::HEADER_BYTES;

    const ENVELOPE: Envelope = Envelope { id: 7, deadline_ms: 5000, clock_ms: 0 };

    fn an_end() -> End {
        let offer = Offer { gid: [9; 16], link: LinkLayer::Ethernet, mtu: 3, lid: 0 };
        End { port: 1, offer, qpn: 0x12_3456, psn: 0xff_ffff, window: 8, reads: 16, asks: true }
    }

    fn split(frame: &[u8]) -> (Header, &[u8]) {
        let head = frame[..HEADER_BYTES].try_into().unwrap();
        (Header::decode(head).unwrap(), &frame[HEADER_BYTES..])
    }

    #[test]
    fn offers_and_ends_come_back_as_they_were_sent() {
        let mut frame = Vec::new();
        let offers =
            [an_end().offer, Offer { gid: [0xfe; 16], link: LinkLayer::InfiniBand, mtu: 5, lid: 77 }];
        encode_offer(&mut frame, ENVELOPE, &offers);
        let (header, table) = split(&frame);
        assert_eq!(header.decode_offer(table).unwrap(), offers);
        for answer in [Ok(an_end()), Err(Unable::NoDevice), Err(Unable::NoFabric), Err(Unable::NotNow)] {
            encode_offer_answer(&mut frame, Envelope::reply(7, 1), &answer);
            let (header, table) = split(&frame);
            assert_eq!(header.decode_offer_answer(table).unwrap(), answer);
        }
        encode_connect(&mut frame, ENVELOPE, &an_end());
        let (header, table) = split(&frame);
        assert_eq!(header.decode_connect(table).unwrap(), an_end());
        for answer in [Ok(true), Ok(false), Err(Unable::NotNow)] {
            encode_connect_answer(&mut frame, Envelope::reply(7, 1), answer);
            let (header, table) = split(&frame);
            assert_eq!(header.decode_connect_answer(table).unwrap(), answer);
        }
    }

    #[test]
    fn ends_beyond_the_limits_are_malformed() {
        let good = an_end();
        let bad = [
            End { qpn: 1 << 24, ..good },
            End { psn: 1 << 24, ..good },
            End { window: WINDOW_MIN - 1, ..good },
            End { window: WINDOW_MAX + 1, ..good },
            End { offer: Offer { mtu: 0, ..good.offer }, ..good },
            End { offer: Offer { mtu: 6, ..good.offer }, ..good },
        ];
        let mut frame = Vec::new();
        for end in bad {
            encode_connect(&mut frame, ENVELOPE, &end);
            let (header, table) = split(&frame);
            assert!(header.decode_connect(table).is_err(), "{end:?}");
        }
    }

    #[test]
    fn more_ports_than_an_offer_may_have_are_malformed() {
        let mut frame = Vec::new();
        encode_offer(&mut frame, ENVELOPE, &[an_end().offer; PORTS_MAX]);
        frame[6] = PORTS_MAX as u8 + 1;
        let crc = crc_fast::crc32_iscsi(&frame[..HEADER_BYTES - 4]);
        frame[HEADER_BYTES - 4..HEADER_BYTES].copy_from_slice(&crc.to_le_bytes());
        assert!(Header::decode(frame[..HEADER_BYTES].try_into().unwrap()).is_err());
    }

    #[test]
    fn remote_memory_takes_the_place_of_a_name() {
        let memory = RemoteMemory { address: 0x7fff_1234_5678_9000, rkey: 0xdead_beef };
        assert_eq!(RemoteMemory::from(RegionId::from(memory)), memory);
    }

    proptest! {
        /// Whatever stands in a table, decoding says yes or no, and what it took it would send the same.
        #[test]
        fn any_table_decodes_or_is_malformed(bytes in proptest::collection::vec(any::<u8>(), size_of::<RawEnd>())) {
            let mut frame = Vec::new();
            let raw = RawEnd::read_from_bytes(&bytes[..]).unwrap();
            encode(&mut frame, FrameKind::Connect as u8, ENVELOPE, 0, std::iter::once(raw));
            let (header, table) = split(&frame);
            if let Ok(end) = header.decode_connect(table) {
                encode_connect(&mut frame, ENVELOPE, &end);
                let (header, table) = split(&frame);
                prop_assert_eq!(header.decode_connect(table).unwrap(), end);
            }
        }
    }
}
