//! Answering reads, updates and syncs: the service's results, and the bytes that belong to them.
//!
//! Updates reach the service when all of their payload is here and is what was sent. The reply to a read leaves after the
//! bytes that go to the client's memory (rule A2).

use std::io;
use std::time::Instant;

use super::{Direct, STALL_TIMEOUT, ServerSession, sender};
use crate::buffer::Placement;
use crate::net::Service;
use crate::net::handshake::invalid;
use crate::rdma::Transfer;
use crate::types::{ReadOp, ReadResult, Status, UpdateOp, UpdateResult, Version};
use crate::wire::frame::{self, HEADER_BYTES, Header, Malformed, PayloadLocation};

impl ServerSession {
    pub(super) fn read(
        &mut self,
        service: &dyn Service,
        header: &Header,
        table: &[u8],
        deadline: Instant,
    ) -> io::Result<()> {
        let (ops, locations) = header.decode_reads(table).map_err(invalid)?;
        let lengths: Vec<usize> = ops.iter().map(|op| op.length as usize).collect();
        let mut results = Vec::with_capacity(ops.len());
        let (places, _share) = match self.places(&locations, &lengths, deadline) {
            Ok((places, share)) => {
                service.read(&ops, &places, deadline, &mut results);
                check_read_results(&ops, &results);
                (places, share)
            }
            Err(status) => {
                results.extend(ops.iter().map(|_| ReadResult { status, length: 0, version: Version(0) }));
                (Vec::new(), None)
            }
        };
        let filled: Vec<(&PayloadLocation, Placement)> = places
            .iter()
            .zip(&locations)
            .zip(&results)
            .filter(|(_, result)| result.length > 0)
            .map(|((place, location), result)| (location, place.slice(0..result.length as usize)))
            .collect();
        drop(places);
        let (following, transfers) = self.split(&filled).map_err(io::Error::other)?;
        self.transmit(header, &transfers)?;
        // While the device moves the bytes, which do not change any more.
        let crcs = self.read_crcs(&results, &filled);
        drop(filled);
        assert_eq!(crcs.len(), results.len(), "a checksum, or none, per result");
        let payload_bytes = crate::buffer::total_length(&following);
        let envelope = self.envelope(header);
        frame::encode_read_results(&mut self.frame, envelope, payload_bytes, &results, &crcs);
        self.wait_until_unused(following.len() + transfers.len());
        assert!(transfers.is_empty() || following.is_empty(), "bytes follow the reply or go by RDMA");
        self.reply(&following)?;
        if transfers.is_empty() {
            return Ok(());
        }
        self.stream.over_link(|link, socket| link.settle(socket, Instant::now() + STALL_TIMEOUT))
    }

    /// Checksums of what was read; none where both ends share memory.
    fn read_crcs(
        &self,
        results: &[ReadResult],
        filled: &[(&PayloadLocation, Placement)],
    ) -> Vec<Option<u32>> {
        let mut filled = filled.iter();
        results
            .iter()
            .map(|result| {
                let place = (result.length > 0).then(|| filled.next().expect("one for each with bytes"));
                place.filter(|_| !self.stream.shares_memory()).map(|(_, place)| place.crc32c())
            })
            .collect()
    }

    /// What follows the reply, and what goes to the client's memory by RDMA; the rest is there already.
    fn split(
        &self,
        filled: &[(&PayloadLocation, Placement)],
    ) -> Result<(Vec<Placement>, Vec<Transfer>), Status> {
        let (mut following, mut transfers) = (Vec::new(), Vec::new());
        for (location, local) in filled {
            match location {
                PayloadLocation::Inline => following.push(local.clone()),
                PayloadLocation::Region { slot, offset } => {
                    if let Some(remote) = self.remote(*slot, *offset, local.len())? {
                        transfers.push(Transfer { local: local.clone(), remote });
                    }
                }
            }
        }
        Ok((following, transfers))
    }

    /// Write to the client's memory, when it lets us. The reply comes after the bytes (rule A2).
    fn transmit(&mut self, header: &Header, transfers: &[Transfer]) -> io::Result<()> {
        if transfers.is_empty() {
            return Ok(());
        }
        if matches!(self.direct, Direct::Yes { asks: true }) {
            let envelope = self.envelope(header);
            frame::encode_transmit(&mut self.frame, envelope, false);
            self.reply(&[])?;
            self.receive(HEADER_BYTES, false)?;
            let answer = self.frame_reader.take(HEADER_BYTES);
            let answer = Header::decode(answer.as_slice().try_into().expect("a header")).map_err(invalid)?;
            answer.decode_transmit(true).map_err(invalid)?;
            if answer.id != header.id {
                return Err(invalid(Malformed("leave for another batch")));
            }
        }
        let patience = Instant::now() + STALL_TIMEOUT;
        self.stream.over_link(|link, socket| link.write(transfers, socket, patience))
    }

    pub(super) fn update(
        &mut self,
        service: &dyn Service,
        header: &Header,
        table: &[u8],
        deadline: Instant,
    ) -> io::Result<()> {
        let (ops, locations) = header.decode_updates(table).map_err(invalid)?;
        let lengths: Vec<usize> = ops.iter().map(|op| op.payload_bytes()).collect();
        let mut results = Vec::with_capacity(ops.len());
        // Without memory for the payload there is no way to the next frame, so the connection waits longer than
        // the request, and is closed only then.
        let patience = Instant::now() + STALL_TIMEOUT;
        let failed = match self.places(&locations, &lengths, patience) {
            Ok((payload, _share)) => {
                self.receive_payload(&locations, &payload)?;
                self.fetch_payload(&locations, &payload)?;
                match self.verify(&ops, &payload)? {
                    _ if Instant::now() >= deadline => Some(Status::Timeout),
                    Status::Ok => {
                        let sender = sender(&self.claims);
                        service.update(sender, &ops, &payload, deadline, &mut results);
                        assert_eq!(results.len(), ops.len(), "one result per operation");
                        None
                    }
                    status => Some(status),
                }
            }
            Err(status) if header.payload_bytes == 0 => Some(status),
            Err(status) => {
                return Err(io::Error::other(format!("no memory for a payload: {status}")));
            }
        };
        if let Some(status) = failed {
            assert!(status != Status::Ok && results.is_empty(), "a batch is given to the service or fails");
            results.extend(ops.iter().map(|_| UpdateResult { status, version: Version(0), length: 0 }));
        }
        let envelope = self.envelope(header);
        frame::encode_update_results(&mut self.frame, envelope, &results);
        self.wait_until_unused(0);
        self.reply(&[])
    }

    /// Receive the bytes that follow the frame, of which the frame reader may already have some.
    fn receive_payload(&mut self, locations: &[PayloadLocation], payload: &[Placement]) -> io::Result<()> {
        let mut missing = Vec::new();
        for (place, _) in
            payload.iter().zip(locations).filter(|(_, location)| **location == PayloadLocation::Inline)
        {
            let here = self.frame_reader.len().min(place.len());
            place.copy_from(&self.frame_reader.take(here));
            if here < place.len() {
                missing.push(place.slice(here..place.len()));
            }
        }
        self.stream.receive_into(&missing, Instant::now() + STALL_TIMEOUT)
    }

    /// Read the payloads that are in the memory of a client across the network.
    fn fetch_payload(&mut self, locations: &[PayloadLocation], payload: &[Placement]) -> io::Result<()> {
        let filled = locations.iter().zip(payload.iter().cloned()).filter(|(_, place)| !place.is_empty());
        let filled: Vec<(&PayloadLocation, Placement)> = filled.collect();
        let (_, transfers) = self.split(&filled).map_err(io::Error::other)?;
        if transfers.is_empty() {
            return Ok(());
        }
        let patience = Instant::now() + STALL_TIMEOUT;
        self.stream.over_link(|link, socket| link.read(&transfers, socket, patience))
    }

    /// Whether the payload arrived as it was sent.
    fn verify(&self, ops: &[UpdateOp], payload: &[Placement]) -> io::Result<Status> {
        if self.stream.shares_memory() {
            return Ok(Status::Ok);
        }
        for (op, place) in ops.iter().zip(payload) {
            if place.is_empty() {
                continue;
            }
            match op.payload_crc {
                None => return Err(invalid(Malformed("bytes without a checksum"))),
                Some(crc) if place.crc32c() != crc => return Ok(Status::Checksum),
                Some(_) => {}
            }
        }
        Ok(Status::Ok)
    }

    pub(super) fn sync(
        &mut self,
        service: &dyn Service,
        header: &Header,
        table: &[u8],
        deadline: Instant,
    ) -> io::Result<()> {
        let chains = header.decode_syncs(table).map_err(invalid)?;
        let mut results = Vec::with_capacity(chains.len());
        service.sync(sender(&self.claims), &chains, deadline, &mut results);
        assert_eq!(results.len(), chains.len(), "one result per chain");
        let envelope = self.envelope(header);
        frame::encode_sync_results(&mut self.frame, envelope, &results);
        self.reply(&[])
    }
}

fn check_read_results(ops: &[ReadOp], results: &[ReadResult]) {
    assert_eq!(results.len(), ops.len(), "one result per operation");
    for (op, result) in ops.iter().zip(results) {
        assert!(result.length <= op.length, "no more bytes than were asked for");
        assert!(result.status == Status::Ok || result.length == 0, "a failed read has no bytes");
    }
}
