//! Bytes of a connection after its handshake (`crate::fuzz`), as a server takes them.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::Budget;
use super::session::{Common, RegionCache, ServerSession};
use super::stream::Stream;
use super::{Sender, Service, Wire};
use crate::buffer::{Placement, Region};
use crate::fuzz::{seal, split_first};
use crate::types::{
    BATCH_BYTES_MAX, ChainId, ChainVersion, ReadOp, ReadResult, Status, UpdateOp, UpdateResult, Version,
};
use crate::wire::authority::Authority;
use crate::wire::credential::Secret;
use crate::wire::frame::{FrameKind, HEADER_BYTES};
use crate::wire::pb::{Claims, claims::Role};

/// What is sent at once; it and the replies to it fit the buffers of a socket, which are not emptied meanwhile.
const INPUT_BYTES_MAX: usize = 4096;
const READ_BYTES_MAX: u32 = 512;

/// Frames, each registration with a descriptor; then the end of the connection.
pub fn session(data: &[u8]) {
    let (repair, bytes) = split_first(&data[..data.len().min(INPUT_BYTES_MAX)]);
    let (client, server) = UnixStream::pair().expect("two ends");
    let mut client = Stream::from_unix(client).expect("an end");
    send(&mut client, repair, bytes.to_vec());
    let (_sending, _remains) = client.close_sending();
    let role = if bytes.len() % 2 == 0 { Role::Client } else { Role::Service };
    let claims = Claims { role: role as i32, ..Claims::default() };
    let common = Arc::new(Common {
        budget: Arc::new(Budget::new(BATCH_BYTES_MAX)),
        regions: RegionCache::default(),
        authority: Authority::new(Secret::new([7; 32])),
        fabric: None,
        certificates: None,
        wire: Wire::None,
    });
    let server = Stream::from_unix(server).expect("an end");
    if let Err(error) = ServerSession::new(server, claims, common).run(&Small) {
        assert_ne!(error.kind(), ErrorKind::TimedOut, "nothing waits where all bytes have come");
    }
}

fn send(client: &mut Stream, repair: bool, mut bytes: Vec<u8>) {
    let region = Region::create(1).expect("memory");
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut rest = &mut bytes[..];
    while !rest.is_empty() {
        let sealed = if repair { seal(rest) } else { None };
        let (length, passed) = match sealed {
            Some((header, bytes)) => {
                let passed = (header.kind == FrameKind::Register).then(|| region.as_fd());
                (rest.len().min(bytes + header.payload_bytes as usize), passed)
            }
            None => (rest.len(), None),
        };
        assert!(length >= HEADER_BYTES || sealed.is_none(), "a frame has a header");
        let (frame, next) = rest.split_at_mut(length);
        client.send(frame, &[], passed, deadline).expect("there is room in the socket");
        rest = next;
    }
}

/// Has few bytes of every chunk, and takes every update.
struct Small;

impl Service for Small {
    fn read(&self, ops: &[ReadOp], into: &[Placement], _: Instant, out: &mut Vec<ReadResult>) {
        assert_eq!(ops.len(), into.len(), "a place for each");
        out.extend(ops.iter().zip(into).map(|(op, place)| {
            assert_eq!(place.len(), op.length as usize, "as long as asked");
            let length = op.length.min(READ_BYTES_MAX);
            place.slice(0..length as usize).zero();
            ReadResult { status: Status::Ok, length, version: Version(1) }
        }));
    }

    fn update(
        &self,
        _: Sender<'_>,
        ops: &[UpdateOp],
        payload: &[Placement],
        _: Instant,
        out: &mut Vec<UpdateResult>,
    ) {
        out.extend(ops.iter().zip(payload).map(|(op, place)| {
            assert_eq!(place.len(), op.payload_bytes(), "all of its bytes");
            let _ = place.crc32c();
            UpdateResult { status: Status::Ok, version: op.version, length: 0 }
        }));
    }

    fn sync(&self, _: Sender<'_>, chains: &[(ChainId, ChainVersion)], _: Instant, out: &mut Vec<Status>) {
        out.extend(chains.iter().map(|_| Status::Ok));
    }
}
