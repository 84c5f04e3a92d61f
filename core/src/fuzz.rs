//! What fuzzers call: for each parser of bytes from outside, a function of any bytes that must return.
//!
//! A peer that has no token reaches `handshake`; one with any token `frame` and `session`; a damaged disk `record` and
//! `journal`. Replies and `routing` come from services, which have proved themselves: they are here because a client
//! must survive a service's bug. `core/fuzz` builds each with libFuzzer (`make fuzz`); `cargo test` runs all seeds.
//!
//! Checksums would stop nearly every input at the door: where the first byte of an input is even, they are made right.

use std::net::{IpAddr, Ipv4Addr};

use prost::Message;

use crate::cluster::Transport;
use crate::cluster::routing::Routing;
use crate::error::Error;
use crate::types::NodeId;
use crate::wire::authority::Authority;
use crate::wire::credential::{self, CLAIMS_BYTES_MAX, ChannelKind, Nonces, Secret};
use crate::wire::frame::{self, Envelope, FrameKind, HEADER_BYTES, Header};
use crate::wire::handshake::{self, CLIENT_HELLO_BYTES, SERVER_HELLO_BYTES, VERDICT_BYTES};
use crate::wire::lane::{self, LaneHeader};
use crate::wire::{pb, rdma};

pub use crate::chunk::fuzz::{journal, record};
pub use crate::net::fuzz::session;

/// Where the checksums of frames stand: of the table, of the header.
const TABLE_CRC: std::ops::Range<usize> = HEADER_BYTES - 8..HEADER_BYTES - 4;
const HEADER_CRC: std::ops::Range<usize> = HEADER_BYTES - 4..HEADER_BYTES;

/// The input behind its first byte, and whether its checksums are to be made right.
pub(crate) fn split_first(data: &[u8]) -> (bool, &[u8]) {
    data.split_first().map_or((false, data), |(first, rest)| (first % 2 == 0, rest))
}

/// Bytes of the frame that `frame` begins with, without its payload, once what is checked before anything else is right:
/// magic, version and checksums. `None`: its header says what no header may, or it ends early.
pub(crate) fn seal(frame: &mut [u8]) -> Option<(Header, usize)> {
    if frame.len() < HEADER_BYTES {
        return None;
    }
    frame[..4].copy_from_slice(&frame::MAGIC);
    frame[4] = frame::VERSION;
    let header = seal_header(frame)?;
    let bytes = HEADER_BYTES + header.table_bytes();
    let table_crc = crc_fast::crc32_iscsi(frame.get(HEADER_BYTES..bytes)?);
    frame[TABLE_CRC].copy_from_slice(&table_crc.to_le_bytes());
    Some((seal_header(frame)?, bytes))
}

fn seal_header(frame: &mut [u8]) -> Option<Header> {
    let crc = crc_fast::crc32_iscsi(&frame[..HEADER_CRC.start]);
    frame[HEADER_CRC].copy_from_slice(&crc.to_le_bytes());
    Header::decode(frame[..HEADER_BYTES].try_into().expect("a header")).ok()
}

/// One frame of the data plane, as either end decodes it. What was understood is encoded again to the same meaning.
pub fn frame(data: &[u8]) {
    let (repair, bytes) = split_first(data);
    let mut bytes = bytes.to_vec();
    if repair {
        seal(&mut bytes);
    }
    let Some((head, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else { return };
    let Ok(header) = Header::decode(head) else { return };
    let Some(table) = rest.get(..header.table_bytes()) else { return };
    let Header { id, deadline_ms, clock_ms, .. } = header;
    let envelope = Envelope { id, deadline_ms, clock_ms };
    let payload_bytes = header.payload_bytes as usize;
    let mut again = Vec::new();
    // The meaning of the frame, and of the one made of it.
    macro_rules! same {
        ($decode:ident, $meaning:ident => $encode:expr) => {
            if let Ok($meaning) = header.$decode(table) {
                $encode;
                let (head, table) = again.split_first_chunk().expect("a frame has a header");
                assert_eq!(Header::decode(head).unwrap().$decode(table).unwrap(), $meaning);
            }
        };
    }
    let out = &mut again;
    match (header.kind, header.reply) {
        (FrameKind::Read, false) => {
            same!(decode_reads, ops => frame::encode_reads(out, envelope, &ops.0, &ops.1));
        }
        (FrameKind::Read, true) => same!(decode_read_results, found => {
            let (results, crcs): (Vec<_>, Vec<_>) = found.iter().copied().unzip();
            frame::encode_read_results(out, envelope, payload_bytes, &results, &crcs);
        }),
        (FrameKind::Update, false) => {
            same!(decode_updates, ops => frame::encode_updates(out, envelope, &ops.0, &ops.1));
        }
        (FrameKind::Update, true) => {
            same!(decode_update_results, found => frame::encode_update_results(out, envelope, &found));
        }
        (FrameKind::Sync, false) => {
            same!(decode_syncs, chains => frame::encode_syncs(out, envelope, &chains));
        }
        (FrameKind::Sync, true) => {
            same!(decode_sync_results, found => frame::encode_sync_results(out, envelope, &found));
        }
        (FrameKind::Register, false) => {
            same!(decode_registration, found => frame::encode_registration(out, &found));
        }
        (FrameKind::Offer, false) => {
            same!(decode_offer, offers => rdma::encode_offer(out, envelope, &offers));
        }
        (FrameKind::Offer, true) => {
            same!(decode_offer_answer, answer => rdma::encode_offer_answer(out, envelope, &answer));
        }
        (FrameKind::Connect, false) => {
            same!(decode_connect, end => rdma::encode_connect(out, envelope, &end));
        }
        (FrameKind::Connect, true) => {
            same!(decode_connect_answer, answer => rdma::encode_connect_answer(out, envelope, answer));
        }
        (FrameKind::Ping | FrameKind::Transmit | FrameKind::Register, _) => {
            let _ = (header.decode_ping(header.reply), header.decode_transmit(header.reply));
        }
    }
}

/// Greetings of both ends, frames of the lane, a written secret, and claims with a proof.
pub fn handshake(data: &[u8]) {
    for kind in [ChannelKind::Lane, ChannelKind::Data] {
        if let Some(bytes) = data.first_chunk::<SERVER_HELLO_BYTES>()
            && let Ok(hello) = handshake::decode_server_hello(kind, bytes)
        {
            let again = handshake::encode_server_hello(kind, hello);
            assert_eq!(handshake::decode_server_hello(kind, &again), Ok(hello));
        }
        if let Some(bytes) = data.first_chunk::<CLIENT_HELLO_BYTES>()
            && let Ok((_, claims_bytes)) = handshake::decode_client_hello(kind, bytes)
        {
            assert!(claims_bytes <= CLAIMS_BYTES_MAX, "a server reserves so much for a stranger");
        }
    }
    if let Some(bytes) = data.first_chunk::<VERDICT_BYTES>() {
        let verdict = handshake::decode_verdict(bytes);
        assert_eq!(handshake::decode_verdict(&handshake::encode_verdict(verdict)), verdict);
    }
    if let Some(bytes) = data.first_chunk::<{ lane::HEADER_BYTES }>()
        && let Ok(header) = LaneHeader::decode(bytes)
    {
        assert_eq!(header.encode(), *bytes);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Secret::from_hex(text);
    }
    claims(data);
}

/// Claims that the holder of the secret signed, whatever they say: bytes get no further without its signature.
fn claims(data: &[u8]) {
    let secret = Secret::new([7; 32]);
    let nonces = Nonces { server: [1; 32], client: [2; 32] };
    let peer = Some(IpAddr::V4(Ipv4Addr::new(10, 1, 2, 3)));
    let unsigned = Authority::new(secret.clone()).verify(ChannelKind::Lane, &nonces, data, &[0; 32], peer);
    assert!(unsigned.is_err(), "claims without a proof");
    for version in [0, credential::VERSION] {
        let proof = secret.sign_any(data, version).client_proof(ChannelKind::Lane, &nonces);
        for peer in [None, peer] {
            let authority = Authority::new(secret.clone());
            let _ = authority.verify(ChannelKind::Lane, &nonces, data, &proof, peer);
        }
    }
}

/// Routing as mgmtd sends it, a layout as meta does, and the error in a reply.
pub fn routing(data: &[u8]) {
    if let Ok(error) = pb::Error::decode(data) {
        let _ = Error::from(error).to_string();
    }
    let Ok(update) = pb::Routing::decode(data) else { return };
    let known = Routing::default();
    let Ok(next) = known.apply(update.clone()) else { return };
    // The same once more, as a poll that is repeated brings it.
    assert!(next.apply(update).is_ok(), "what was accepted is accepted again");
    let _ = next.meta_addresses();
    for &NodeId(node) in next.nodes.keys() {
        for transport in [Transport::Auto, Transport::Tcp, Transport::Shm] {
            let _ = next.endpoint(NodeId(node), transport);
        }
    }
    for (&(table, table_version), chains) in &next.tables {
        let [base, stripe] = [chains.chains[0], chains.chains.len() as u32];
        let layout = pb::Layout {
            chunk_bytes: 1 << 20,
            stripe,
            table,
            table_version,
            base,
            seed: base.into(),
            permutation_version: 1,
            ..pb::Layout::default()
        };
        let chosen = next.stripe(&layout);
        assert!(chosen.is_err() || chosen.is_ok_and(|chosen| chosen.len() == stripe as usize));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Its name, and how many changed copies of each seed it is tried with: most for those that cost least.
    type Target = (&'static str, fn(&[u8]), usize);

    const TARGETS: [Target; 6] = [
        ("frame", frame, 200),
        ("handshake", handshake, 20),
        ("journal", journal, 20),
        ("record", record, 200),
        ("routing", routing, 50),
        ("session", session, 10),
    ];

    /// Inputs that reached each part of the parsers once, and those that found something; then some with changed bytes.
    #[test]
    fn no_seed_makes_a_parser_panic() {
        for (name, target, copies) in TARGETS {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
            let mut seeds: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
            seeds.sort();
            assert!(seeds.len() > 3, "{} has seeds", folder.display());
            let mut state = 1_u64;
            for path in seeds {
                let seed = std::fs::read(&path).unwrap();
                target(&seed);
                for _ in 0..copies {
                    let mut changed = seed.clone();
                    for _ in 0..3 {
                        state = state
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        let at = (state >> 33) as usize % changed.len().max(1);
                        if let Some(byte) = changed.get_mut(at) {
                            *byte ^= (state >> 20) as u8;
                        }
                    }
                    target(&changed);
                }
            }
        }
    }
}
