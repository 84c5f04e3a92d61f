//! Requests of a connection: reads, updates, syncs and pings.
//!
//! Each batch goes in two halves, so that a caller may send to several servers before it waits for any. Bytes outside
//! shared memory have a checksum, which their receiver verifies.

use std::time::Instant;

use super::{Connection, Failure, GONE, RequestMemory, regions};
use crate::buffer::Placement;
use crate::types::{ChainId, ChainVersion, ReadOp, ReadResult, Status, UpdateOp, UpdateResult};
use crate::wire::frame::{self, FrameKind, HEADER_BYTES, Header, Malformed, PayloadLocation};

impl Connection {
    /// Read into `into`, one placement per operation, each at least as long as its operation asks. On success
    /// `out` holds one result per operation. The whole batch failed if this returns an error: `Timeout`,
    /// `Disconnected`, or `Checksum` if bytes were damaged on the way.
    pub fn read(
        &mut self,
        ops: &[ReadOp],
        into: &[Placement],
        deadline: Instant,
        out: &mut Vec<ReadResult>,
    ) -> Result<(), Status> {
        self.send_reads(ops, into, deadline)?;
        self.receive_reads(ops, into, deadline, out)
    }

    /// The first half of [`Connection::read`]: a caller may send to several servers before it waits for any.
    pub fn send_reads(
        &mut self,
        ops: &[ReadOp],
        into: &[Placement],
        deadline: Instant,
    ) -> Result<(), Status> {
        assert_eq!(ops.len(), into.len(), "one placement per operation");
        assert!(
            ops.iter().zip(into).all(|(op, into)| op.length as usize <= into.len()),
            "a read has room for what it asks for"
        );
        self.attempt(|connection| {
            let bounced = connection.bounce(into)?;
            let locations = connection.locations(into, &bounced, deadline)?;
            let envelope = connection.envelope(deadline)?;
            frame::encode_reads(&mut connection.frame, envelope, ops, &locations);
            connection.send(
                FrameKind::Read,
                envelope,
                RequestMemory { locations, places: into, bounced },
                &[],
                deadline,
            )
        })
    }

    /// The second half of [`Connection::read`], with the same arguments.
    pub fn receive_reads(
        &mut self,
        ops: &[ReadOp],
        into: &[Placement],
        deadline: Instant,
        out: &mut Vec<ReadResult>,
    ) -> Result<(), Status> {
        out.clear();
        self.attempt(|connection| connection.try_receive_reads(ops, into, deadline, out))
    }

    fn try_receive_reads(
        &mut self,
        ops: &[ReadOp],
        into: &[Placement],
        deadline: Instant,
        out: &mut Vec<ReadResult>,
    ) -> Result<(), Failure> {
        let header = self.receive(FrameKind::Read, deadline)?;
        let in_flight = self.in_flight.as_ref().expect("just received for it");
        assert!(
            ops.len() == in_flight.count && into.len() == ops.len(),
            "the same arguments as for the first half"
        );
        let results = header.decode_read_results(&self.frame[HEADER_BYTES..])?;
        assert_eq!(results.len(), ops.len(), "the reply's table is as long as the request's");
        let mut following = Vec::new();
        let mut arrived = Vec::new();
        for (place, (((result, crc), op), (location, own))) in
            results.iter().zip(ops).zip(in_flight.locations.iter().zip(into)).enumerate()
        {
            if result.length > op.length || (result.status != Status::Ok && result.length != 0) {
                return Err(Malformed("more bytes than were asked for").into());
            }
            out.push(*result);
            if result.length == 0 {
                continue;
            }
            let target = regions::target(&in_flight.bounced, place, own).slice(0..result.length as usize);
            if *location == PayloadLocation::Inline {
                following.push(target.clone());
            }
            arrived.push((target, own, *crc));
        }
        if crate::buffer::total_length(&following) != header.payload_bytes as usize {
            return Err(Malformed("the payload is not as long as its results say").into());
        }
        let shares_memory = self.shares_memory;
        self.stream.as_mut().ok_or(GONE)?.receive_into(&following, deadline)?;
        for (place, own, crc) in &arrived {
            match crc {
                _ if shares_memory => {}
                Some(crc) if place.crc32c() != *crc => return Err(Failure(Status::Checksum)),
                Some(_) => {}
                None => return Err(Malformed("bytes without a checksum").into()),
            }
            if place.as_ptr() != own.as_ptr() {
                place.copy_into(own);
            }
        }
        self.in_flight = None;
        Ok(())
    }

    /// Send updates; `payload[i]` is exactly as long as `ops[i]` says (empty if it has none). `payload_crc`
    /// of the operations is filled in where the transport needs it. After an error the updates may or may not
    /// happen; none is begun after `deadline` (N3).
    pub fn update(
        &mut self,
        ops: &[UpdateOp],
        payload: &[Placement],
        deadline: Instant,
        out: &mut Vec<UpdateResult>,
    ) -> Result<(), Status> {
        self.send_updates(ops, payload, deadline)?;
        self.receive_updates(deadline, out)
    }

    /// The first half of [`Connection::update`].
    pub fn send_updates(
        &mut self,
        ops: &[UpdateOp],
        payload: &[Placement],
        deadline: Instant,
    ) -> Result<(), Status> {
        assert_eq!(ops.len(), payload.len(), "one placement per operation");
        assert!(
            ops.iter().zip(payload).all(|(op, payload)| op.payload_bytes() == payload.len()),
            "payloads are as long as their operations say"
        );
        self.attempt(|connection| connection.try_send_updates(ops, payload, deadline))
    }

    fn try_send_updates(
        &mut self,
        ops: &[UpdateOp],
        payload: &[Placement],
        deadline: Instant,
    ) -> Result<(), Failure> {
        self.read_clock(deadline)?;
        let bounced = self.bounce(payload)?;
        for (payload, bounced) in payload.iter().zip(&bounced) {
            if let Some(bounced) = bounced {
                payload.copy_into(bounced);
            }
        }
        let locations = self.locations(payload, &bounced, deadline)?;
        let mut envelope = self.envelope(deadline)?;
        envelope.clock_ms = self.clock.expect("it was just read").at(deadline);
        let with_crc = |(op, payload): (&UpdateOp, &Placement)| {
            let needed = !self.shares_memory && !payload.is_empty();
            let crc = needed.then(|| op.payload_crc.unwrap_or_else(|| payload.crc32c()));
            UpdateOp { payload_crc: crc, ..*op }
        };
        let ops: Vec<UpdateOp> = ops.iter().zip(payload).map(with_crc).collect();
        frame::encode_updates(&mut self.frame, envelope, &ops, &locations);
        let following: Vec<Placement> = payload
            .iter()
            .zip(&locations)
            .filter(|(payload, location)| **location == PayloadLocation::Inline && !payload.is_empty())
            .map(|(payload, _)| payload.clone())
            .collect();
        let registered = RequestMemory { locations, places: payload, bounced };
        self.send(FrameKind::Update, envelope, registered, &following, deadline)
    }

    /// The second half of [`Connection::update`].
    pub fn receive_updates(&mut self, deadline: Instant, out: &mut Vec<UpdateResult>) -> Result<(), Status> {
        *out = self.answer(FrameKind::Update, deadline, Header::decode_update_results)?;
        Ok(())
    }

    /// Make what these chains have committed durable.
    pub fn sync(
        &mut self,
        chains: &[(ChainId, ChainVersion)],
        deadline: Instant,
        out: &mut Vec<Status>,
    ) -> Result<(), Status> {
        self.send_syncs(chains, deadline)?;
        self.receive_syncs(deadline, out)
    }

    /// The first half of [`Connection::sync`].
    pub fn send_syncs(
        &mut self,
        chains: &[(ChainId, ChainVersion)],
        deadline: Instant,
    ) -> Result<(), Status> {
        self.attempt(|connection| {
            let envelope = connection.envelope(deadline)?;
            frame::encode_syncs(&mut connection.frame, envelope, chains);
            let locations = vec![PayloadLocation::Inline; chains.len()];
            connection.send(
                FrameKind::Sync,
                envelope,
                RequestMemory { locations, ..RequestMemory::default() },
                &[],
                deadline,
            )
        })
    }

    /// The second half of [`Connection::sync`].
    pub fn receive_syncs(&mut self, deadline: Instant, out: &mut Vec<Status>) -> Result<(), Status> {
        *out = self.answer(FrameKind::Sync, deadline, Header::decode_sync_results)?;
        Ok(())
    }

    /// Check that the server answers.
    pub fn ping(&mut self, deadline: Instant) -> Result<(), Status> {
        self.attempt(|connection| connection.try_ping(deadline))
    }

    pub(super) fn try_ping(&mut self, deadline: Instant) -> Result<(), Failure> {
        let envelope = self.envelope(deadline)?;
        frame::encode_ping(&mut self.frame, envelope, false);
        self.send(FrameKind::Ping, envelope, RequestMemory::default(), &[], deadline)?;
        self.receive(FrameKind::Ping, deadline)?.decode_ping(true)?;
        self.in_flight = None;
        Ok(())
    }

    /// Refresh the server's clock, so that a moment near `deadline` can be named on it.
    fn read_clock(&mut self, deadline: Instant) -> Result<(), Failure> {
        let is_fresh = self.clock.as_ref().is_some_and(|clock| clock.is_fresh_for(deadline));
        if is_fresh { Ok(()) } else { self.try_ping(deadline) }
    }

    /// The results of a batch whose reply is nothing but a table of them.
    fn answer<T>(
        &mut self,
        kind: FrameKind,
        deadline: Instant,
        decode: impl FnOnce(&Header, &[u8]) -> Result<Vec<T>, Malformed>,
    ) -> Result<Vec<T>, Status> {
        self.attempt(|connection| {
            let header = connection.receive(kind, deadline)?;
            let results = decode(&header, &connection.frame[HEADER_BYTES..])?;
            let answered = connection.in_flight.take().expect("just received for it");
            assert_eq!(results.len(), answered.count, "the reply's table is as long as the request's");
            Ok(results)
        })
    }
}
