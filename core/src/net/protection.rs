//! What protects a connection between machines: TLS from its first byte on, and on the data plane records after that.
//!
//! Nothing waits here: bytes are received into it and taken out of it.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;

use rustix::net::RecvFlags;

use super::connect_error::ConnectError;
use super::records::{EXPORTED_BYTES, Opener, Sealer, TEXT_BYTES_MAX, Wire, directions};
use crate::buffer::{Placement, total_length};
use crate::wire::handshake::{BUSY_PREFIX, MAGIC};

const LABEL: &[u8] = b"EXPORTER-luciola-data";
/// Bytes that are received at once while TLS is: a record of it.
const TLS_BYTES: usize = 16 << 10;

#[derive(Default)]
pub(super) enum Protection {
    #[default]
    None,
    Tls(Box<TlsLayer>),
    Records(Box<(Sealer, Opener)>),
}

pub(super) struct TlsLayer {
    connection: rustls::Connection,
    received: Vec<u8>,
    /// What the peer sent before its first record, when that was none.
    clear: Option<ClearText>,
}

enum ClearText {
    Greeting,
    Busy,
}

/// Why a connection is not protected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtectionError {
    #[error("the server speaks clear text, to which this machine's certificates and token are not shown")]
    ClearText,
    #[error("the server has too many connections")]
    Busy,
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<ProtectionError> for ConnectError {
    fn from(error: ProtectionError) -> ConnectError {
        match error {
            ProtectionError::Busy => ConnectError::Busy,
            ProtectionError::Io(error) => ConnectError::Io(error),
            error => ConnectError::Untrusted(error.to_string()),
        }
    }
}

impl From<ProtectionError> for io::Error {
    fn from(error: ProtectionError) -> io::Error {
        match error {
            ProtectionError::Io(error) => error,
            error => io::Error::new(io::ErrorKind::PermissionDenied, error.to_string()),
        }
    }
}

impl Protection {
    pub(super) fn tls(mut connection: rustls::Connection) -> Protection {
        connection.set_buffer_limit(None);
        Protection::Tls(Box::new(TlsLayer { connection, received: vec![0; TLS_BYTES], clear: None }))
    }

    /// Continue with what was received; return whether both ends have shaken hands.
    pub(super) fn handshake(&mut self) -> Result<bool, ProtectionError> {
        let Protection::Tls(tls) = self else { panic!("only TLS shakes hands") };
        match tls.clear {
            Some(ClearText::Busy) => return Err(ProtectionError::Busy),
            Some(ClearText::Greeting) => return Err(ProtectionError::ClearText),
            None => {}
        }
        tls.connection.process_new_packets()?;
        Ok(!tls.connection.is_handshaking())
    }

    /// What TLS has to send by itself.
    pub(super) fn take_due(&mut self) -> Vec<u8> {
        let mut due = Vec::new();
        if let Protection::Tls(tls) = self {
            while tls.connection.wants_write() {
                tls.connection.write_tls(&mut due).expect("a vector takes everything");
            }
        }
        due
    }

    /// Frames from here on, with keys of this TLS session and of `wire`. What had no TLS stays without.
    pub(super) fn into_records(self, wire: Wire, is_client: bool) -> io::Result<Protection> {
        let tls = match self {
            Protection::None => {
                assert!(wire == Wire::None, "keys come from TLS");
                return Ok(Protection::None);
            }
            Protection::Tls(tls) => tls,
            Protection::Records(_) => panic!("records begin once"),
        };
        if wire == Wire::None {
            return Ok(Protection::None);
        }
        let exported = [0; EXPORTED_BYTES];
        let exported = tls.connection.export_keying_material(exported, LABEL, Some(&[wire as u8]));
        let exported = exported.map_err(io::Error::other)?;
        Ok(Protection::Records(Box::new(directions(wire, &exported, is_client))))
    }

    /// Hand `head` and `parts`, protected, to `send`.
    pub(super) fn send(
        &mut self,
        head: &[u8],
        parts: &[Placement],
        mut send: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        match self {
            Protection::None => panic!("there is nothing that protects"),
            Protection::Tls(tls) => {
                tls.connection.writer().write_all(head)?;
                for part in parts {
                    tls.connection.writer().write_all(&part.to_vec())?;
                }
                send(&self.take_due())
            }
            Protection::Records(records) => {
                let total = head.len() + total_length(parts);
                let mut source = OutgoingText { head, parts, offset: 0 };
                let mut left = total;
                while left > 0 {
                    let length = left.min(TEXT_BYTES_MAX);
                    send(records.0.seal(length, |text| source.fill(text)))?;
                    left -= length;
                }
                Ok(())
            }
        }
    }

    /// Receive once. Errors: as `recv`, and `InvalidData` for what is not of the peer.
    pub(super) fn receive_from(&mut self, fd: impl AsFd) -> io::Result<usize> {
        match self {
            Protection::None => panic!("there is nothing that protects"),
            Protection::Tls(tls) => {
                let count = rustix::net::recv(fd, &mut tls.received[..], RecvFlags::empty())?.0;
                tls.feed(count)?;
                Ok(count)
            }
            Protection::Records(records) => {
                let count = rustix::net::recv(fd, records.1.space(), RecvFlags::empty())?.0;
                records.1.filled(count);
                Ok(count)
            }
        }
    }

    /// Text that was received, as much as there is and fits; 0: more must be received first.
    pub(super) fn take_text(&mut self, target: &mut [u8]) -> io::Result<usize> {
        match self {
            Protection::None => panic!("there is nothing that protects"),
            Protection::Tls(tls) => {
                tls.connection.process_new_packets().map_err(invalid)?;
                match tls.connection.reader().read(target) {
                    Ok(0) if !target.is_empty() => Err(io::ErrorKind::UnexpectedEof.into()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
                    read => read,
                }
            }
            Protection::Records(records) => {
                let text = opened(&mut records.1)?;
                let count = text.len().min(target.len());
                target[..count].copy_from_slice(&text[..count]);
                records.1.take(count);
                Ok(count)
            }
        }
    }

    /// As `take_text`, to `target` from `offset` on.
    pub(super) fn take_text_into(&mut self, target: &Placement, offset: usize) -> io::Result<usize> {
        let space = target.len() - offset;
        let Protection::Records(records) = self else {
            let mut bytes = vec![0; space.min(TEXT_BYTES_MAX)];
            let count = self.take_text(&mut bytes)?;
            target.copy_in(offset, &bytes[..count]);
            return Ok(count);
        };
        let text = opened(&mut records.1)?;
        let count = text.len().min(space);
        target.copy_in(offset, &text[..count]);
        records.1.take(count);
        Ok(count)
    }

    /// Whether all that was received has been taken.
    pub(super) fn is_quiet(&self) -> bool {
        match self {
            Protection::None | Protection::Tls(_) => true,
            Protection::Records(records) => records.1.is_empty(),
        }
    }
}

impl TlsLayer {
    fn feed(&mut self, count: usize) -> io::Result<()> {
        let mut bytes = &self.received[..count];
        if self.connection.is_handshaking() && bytes.starts_with(&MAGIC) {
            let is_busy = bytes.get(BUSY_PREFIX) == Some(&1);
            self.clear = Some(if is_busy { ClearText::Busy } else { ClearText::Greeting });
            return Ok(());
        }
        while !bytes.is_empty() {
            self.connection.read_tls(&mut bytes)?;
            // What is wrong with the handshake its own loop says, after the alert for the peer.
            if let Err(error) = self.connection.process_new_packets()
                && !self.connection.is_handshaking()
            {
                return Err(invalid(error));
            }
        }
        Ok(())
    }
}

/// What is sent, in pieces.
struct OutgoingText<'a> {
    head: &'a [u8],
    parts: &'a [Placement],
    /// Of `head` while there is some, then of the first part.
    offset: usize,
}

impl OutgoingText<'_> {
    fn fill(&mut self, mut target: &mut [u8]) {
        while !target.is_empty() {
            let is_head = !self.head.is_empty();
            let length = if is_head { self.head.len() } else { self.parts[0].len() };
            let count = (length - self.offset).min(target.len());
            let (now, later) = target.split_at_mut(count);
            let range = self.offset..self.offset + count;
            match is_head {
                true => now.copy_from_slice(&self.head[range]),
                false if count > 0 => self.parts[0].slice(range).copy_to(now),
                false => {}
            }
            target = later;
            self.offset += count;
            if self.offset == length {
                self.offset = 0;
                if is_head { self.head = &[] } else { self.parts = &self.parts[1..] }
            }
        }
    }
}

/// Text of the record received last, or of the next one; empty if more must be received first.
fn opened(opener: &mut Opener) -> io::Result<&[u8]> {
    if opener.text().is_empty() {
        opener.open()?;
    }
    Ok(opener.text())
}

fn invalid(error: rustls::Error) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
