//! The upgrade of a TCP connection to RDMA (docs/protocol.md, "RDMA").

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::connect_error::ConnectError;
use super::handshake::invalid;
use super::stream::Stream;
use crate::rdma::{Fabric, Half, Link, Port};
use crate::wire::frame::{Envelope, FrameKind, HEADER_BYTES, Header, Malformed};
use crate::wire::rdma::{End, Offer, Unable, encode_connect, encode_offer};

/// How long the first ping over RDMA may take: between ends that reach each other it takes microseconds.
pub(super) const FIRST_PING_TIMEOUT: Duration = Duration::from_secs(3);

/// Offer our ports and connect to the one that the server chose. Errors: `NoRdma` if the connection stays what it is.
pub(super) fn as_client(
    stream: &mut Stream,
    fabric: &Arc<Fabric>,
    deadline: Instant,
) -> Result<(), ConnectError> {
    fabric.check().map_err(ConnectError::NoRdma)?;
    let ports = fabric.ports();
    if ports.is_empty() {
        return Err(ConnectError::NoRdma("the last port has just gone".into()));
    }
    let offers: Vec<Offer> = ports.iter().map(|port| port.offer).collect();
    let mut frame = Vec::new();
    encode_offer(&mut frame, envelope(1, deadline), &offers);
    let (header, table) = exchange(stream, &frame, FrameKind::Offer, 1, deadline)?;
    let theirs = header.decode_offer_answer(&table).map_err(invalid)?.map_err(refused)?;
    let port =
        ports.get(theirs.port as usize).ok_or_else(|| invalid(Malformed("a port that was not offered")))?;
    let half = Half::new(fabric, port, true).map_err(|error| ConnectError::NoRdma(error.to_string()))?;
    let ours = End { asks: fabric.grants().is_some(), ..*half.end() };
    let link = half.connect(&theirs).map_err(|error| ConnectError::NoRdma(error.to_string()))?;
    encode_connect(&mut frame, envelope(2, deadline), &ours);
    let (header, table) = exchange(stream, &frame, FrameKind::Connect, 2, deadline)?;
    header.decode_connect_answer(&table).map_err(invalid)?.map_err(refused)?;
    stream.upgrade_to_rdma(link);
    Ok(())
}

fn refused(unable: Unable) -> ConnectError {
    ConnectError::NoRdma(unable.to_string())
}

fn envelope(id: u32, deadline: Instant) -> Envelope {
    let left = deadline.saturating_duration_since(Instant::now());
    Envelope { id, deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1), clock_ms: 0 }
}

/// Send a request and receive its reply.
fn exchange(
    stream: &mut Stream,
    frame: &[u8],
    kind: FrameKind,
    id: u32,
    deadline: Instant,
) -> io::Result<(Header, Vec<u8>)> {
    stream.send(frame, &[], None, deadline)?;
    let mut head = [0; HEADER_BYTES];
    stream.receive(&mut head, deadline)?;
    let header = Header::decode(&head).map_err(invalid)?;
    if header.kind != kind || !header.reply || header.id != id {
        return Err(invalid(Malformed("not the reply to this request")));
    }
    let mut table = vec![0; header.table_bytes()];
    stream.receive(&mut table, deadline)?;
    Ok((header, table))
}

/// The server's answer to an offer: its own end, with a queue pair that waits for the client's.
pub(super) fn answer_offer(
    is_protected: bool,
    fabric: Option<&Arc<Fabric>>,
    offers: &[Offer],
) -> Result<(Half, End), Unable> {
    if is_protected {
        return Err(Unable::Protected);
    }
    let fabric = fabric.ok_or(Unable::NoDevice)?;
    if let Err(reason) = fabric.check() {
        log::debug!("RDMA offer refused: {reason}");
        return Err(Unable::NoDevice);
    }
    let (port, place): (Port, u16) = fabric.choose(offers).ok_or(Unable::NoFabric)?;
    let half = Half::new(fabric, &port, false).map_err(|error| {
        log::warn!("creating a queue pair failed: {error}; the upgrade is refused");
        Unable::NotNow
    })?;
    let end = End { port: place, ..*half.end() };
    Ok((half, end))
}

/// The server connects to the client's end.
pub(super) fn answer_connect(half: Half, theirs: &End) -> Result<Link, Unable> {
    half.connect(theirs).map_err(|error| {
        log::warn!("connecting to a client's queue pair failed: {error}; the upgrade is refused");
        Unable::NotNow
    })
}
