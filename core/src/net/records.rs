//! Records of the data plane: its bytes, protected by AES-256-GCM (docs/decisions/0053-lane-and-data-plane.md).
//!
//! - W1 Each direction of a session has its own secret, and counts its records: no nonce is used twice with a key.
//! - W2 Plain text leaves `Opener` only when its record was authentic and the next one in order. What fails ends the
//!   connection.

use std::io;
use std::ops::Range;
use std::str::FromStr;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Prk};

use crate::error::{Error, Result};

/// Longest plain text of a record: it stays in the cache between its copy and its encryption.
pub(super) const TEXT_BYTES_MAX: usize = 64 << 10;
const HEAD_BYTES: usize = 4;
const TAG_BYTES: usize = 16;
/// Records of one key: 64 GiB, of the 350 GiB that RFC 8446, section 5.5, allows AES-GCM.
const KEY_RECORDS: u64 = 1 << 20;
/// What TLS exports for a direction: a secret and the base of its nonces.
const SECRET_BYTES: usize = 32;
pub(super) const EXPORTED_BYTES: usize = 2 * (SECRET_BYTES + NONCE_LEN);
const _: () = assert!(TEXT_BYTES_MAX <= u32::MAX as usize, "a head says how long its text is");

/// What protects the frames of a session over TCP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Wire {
    /// Nothing; where there are certificates, TLS still protects the handshake.
    None = 0,
    /// Who changes them is noticed; who reads the network reads them.
    Mac = 1,
    #[default]
    Encrypt = 2,
}

impl Wire {
    pub(crate) fn of(code: u8) -> Option<Wire> {
        [Wire::None, Wire::Mac, Wire::Encrypt].into_iter().find(|wire| *wire as u8 == code)
    }
}

impl FromStr for Wire {
    type Err = Error;

    fn from_str(text: &str) -> Result<Wire> {
        match text {
            "none" => Ok(Wire::None),
            "mac" => Ok(Wire::Mac),
            "encrypt" => Ok(Wire::Encrypt),
            _ => Err(Error::invalid(format!("wire is encrypt, mac or none, not {text:?}"))),
        }
    }
}

/// The keys of one direction.
struct Direction {
    wire: Wire,
    secret: Prk,
    base: [u8; NONCE_LEN],
    key: LessSafeKey,
    records: u64,
}

impl Direction {
    fn new(wire: Wire, exported: &[u8]) -> Direction {
        assert!(wire != Wire::None, "records are protected");
        let (secret, base) = exported.split_at(SECRET_BYTES);
        let secret = Prk::new_less_safe(HKDF_SHA256, secret);
        let key = key_of(&secret, 0);
        Direction { wire, secret, base: base.try_into().expect("split at its length"), key, records: 0 }
    }

    /// The nonce of the next record, for which `self.key` is the key (W1).
    fn advance(&mut self) -> Nonce {
        if self.records != 0 && self.records.is_multiple_of(KEY_RECORDS) {
            self.key = key_of(&self.secret, self.records / KEY_RECORDS);
        }
        let mut nonce = self.base;
        for (byte, number) in nonce[NONCE_LEN - 8..].iter_mut().zip(self.records.to_be_bytes()) {
            *byte ^= number;
        }
        self.records = self.records.checked_add(1).expect("a connection ends before that");
        Nonce::assume_unique_for_key(nonce)
    }
}

fn key_of(secret: &Prk, generation: u64) -> LessSafeKey {
    let info: [&[u8]; 2] = [b"luciola records", &generation.to_be_bytes()];
    let expanded = secret.expand(&info, &AES_256_GCM).expect("a key is shorter than HKDF's limit");
    LessSafeKey::new(UnboundKey::from(expanded))
}

/// Both directions of one end, from what TLS exported for `wire`: the client's first.
pub(super) fn directions(wire: Wire, exported: &[u8; EXPORTED_BYTES], is_client: bool) -> (Sealer, Opener) {
    let (client, server) = exported.split_at(EXPORTED_BYTES / 2);
    let (ours, theirs) = if is_client { (client, server) } else { (server, client) };
    (Sealer::new(wire, ours), Opener::new(wire, theirs))
}

/// Makes records of what is sent.
pub(super) struct Sealer {
    direction: Direction,
    record: Vec<u8>,
}

impl Sealer {
    fn new(wire: Wire, exported: &[u8]) -> Sealer {
        let record = vec![0; HEAD_BYTES + TEXT_BYTES_MAX + TAG_BYTES];
        Sealer { direction: Direction::new(wire, exported), record }
    }

    /// The next record, whose `length` bytes of text `fill` writes.
    pub(super) fn seal(&mut self, length: usize, fill: impl FnOnce(&mut [u8])) -> &[u8] {
        assert!((1..=TEXT_BYTES_MAX).contains(&length), "records have some text, and not too much");
        let nonce = self.direction.advance();
        let head = (length as u32).to_le_bytes();
        let end = HEAD_BYTES + length;
        self.record[..HEAD_BYTES].copy_from_slice(&head);
        fill(&mut self.record[HEAD_BYTES..end]);
        let (text, tag_place) = self.record.split_at_mut(end);
        let key = &self.direction.key;
        let sealed = match self.direction.wire {
            Wire::Mac => key.seal_in_place_separate_tag(nonce, Aad::from(&*text), &mut []),
            _ => key.seal_in_place_separate_tag(nonce, Aad::from(head), &mut text[HEAD_BYTES..]),
        };
        let tag = sealed.expect("a record is shorter than the cipher's limit");
        tag_place[..TAG_BYTES].copy_from_slice(tag.as_ref());
        &self.record[..end + TAG_BYTES]
    }
}

/// Makes text of what is received.
pub(super) struct Opener {
    direction: Direction,
    /// What was received and not opened: `filled.start` is where the next record begins.
    received: Vec<u8>,
    filled: Range<usize>,
    /// Where text that was opened, and not taken, is in `received`; before `filled`.
    text: Range<usize>,
}

impl Opener {
    fn new(wire: Wire, exported: &[u8]) -> Opener {
        let received = vec![0; 2 * (HEAD_BYTES + TEXT_BYTES_MAX + TAG_BYTES)];
        Opener { direction: Direction::new(wire, exported), received, filled: 0..0, text: 0..0 }
    }

    /// Text that was opened and not taken.
    pub(super) fn text(&self) -> &[u8] {
        &self.received[self.text.clone()]
    }

    pub(super) fn take(&mut self, bytes: usize) {
        assert!(bytes <= self.text.len(), "only what was opened is taken");
        self.text.start += bytes;
    }

    /// Whether nothing was received that was not taken.
    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty() && self.filled.is_empty()
    }

    /// Open the next record if all of it was received. Errors: `InvalidData` if it is not what the peer sent next (W2).
    pub(super) fn open(&mut self) -> io::Result<bool> {
        assert!(self.text.is_empty(), "text is taken before more of it is opened");
        let Some(length) = self.text_length()? else { return Ok(false) };
        let (start, end) = (self.filled.start + HEAD_BYTES, self.filled.start + HEAD_BYTES + length);
        if self.filled.end < end + TAG_BYTES {
            return Ok(false);
        }
        let nonce = self.direction.advance();
        let tag: [u8; TAG_BYTES] = self.received[end..end + TAG_BYTES].try_into().expect("as long as a tag");
        let (tag, key) = (Tag::from(tag), &self.direction.key);
        let opened = match self.direction.wire {
            Wire::Mac => {
                let text = &self.received[self.filled.start..end];
                key.open_in_place_separate_tag(nonce, Aad::from(text), tag, &mut [], 0..).map(|_| ())
            }
            _ => {
                let head = Aad::from((length as u32).to_le_bytes());
                let text = &mut self.received[start..end];
                key.open_in_place_separate_tag(nonce, head, tag, text, 0..).map(|_| ())
            }
        };
        opened.map_err(|_| forged("a record was changed on its way, or is not the next one"))?;
        self.text = start..end;
        self.filled.start = end + TAG_BYTES;
        Ok(true)
    }

    fn text_length(&self) -> io::Result<Option<usize>> {
        let received = &self.received[self.filled.clone()];
        let Some(head) = received.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        match u32::from_le_bytes(*head) as usize {
            length if (1..=TEXT_BYTES_MAX).contains(&length) => Ok(Some(length)),
            _ => Err(forged("the length of a record is none")),
        }
    }

    /// Where more bytes are received to; `filled` says how many came.
    pub(super) fn space(&mut self) -> &mut [u8] {
        assert!(self.text.is_empty(), "text is taken before more is received");
        if self.filled.start > 0 {
            self.received.copy_within(self.filled.clone(), 0);
            self.filled = 0..self.filled.len();
        }
        let space = &mut self.received[self.filled.end..];
        assert!(!space.is_empty(), "a whole record fits");
        space
    }

    pub(super) fn filled(&mut self, bytes: usize) {
        self.filled.end += bytes;
        assert!(self.filled.end <= self.received.len(), "only the space is filled");
    }
}

fn forged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPORTED: [u8; EXPORTED_BYTES] = {
        let mut bytes = [7; EXPORTED_BYTES];
        bytes[0] = 8;
        bytes
    };

    fn ends(wire: Wire) -> (Sealer, Opener) {
        let (sealer, _) = directions(wire, &EXPORTED, true);
        let (_, opener) = directions(wire, &EXPORTED, false);
        (sealer, opener)
    }

    fn sealed(sealer: &mut Sealer, text: &[u8]) -> Vec<u8> {
        sealer.seal(text.len(), |space| space.copy_from_slice(text)).to_vec()
    }

    fn opened(opener: &mut Opener, bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
        opener.space()[..bytes.len()].copy_from_slice(bytes);
        opener.filled(bytes.len());
        let whole = opener.open()?;
        let text = opener.text().to_vec();
        opener.take(text.len());
        Ok(whole.then_some(text))
    }

    #[test]
    fn what_was_sealed_is_opened_in_order_and_only_encrypt_hides_it() {
        for wire in [Wire::Mac, Wire::Encrypt] {
            let (mut sealer, mut opener) = ends(wire);
            for text in [b"secret one".to_vec(), b"secret two".to_vec(), vec![5; TEXT_BYTES_MAX]] {
                let record = sealed(&mut sealer, &text);
                assert_eq!(record.windows(6).any(|bytes| bytes == &text[..6]), wire == Wire::Mac);
                let (some, rest) = record.split_at(record.len() / 2);
                assert_eq!(opened(&mut opener, some).unwrap(), None);
                assert_eq!(opened(&mut opener, rest).unwrap(), Some(text));
            }
            assert!(opener.is_empty());
        }
    }

    #[test]
    fn a_record_that_was_changed_anywhere_is_refused() {
        for wire in [Wire::Mac, Wire::Encrypt] {
            let length = sealed(&mut ends(wire).0, b"sixteen bytes of").len();
            for place in 0..length {
                let (mut sealer, mut opener) = ends(wire);
                let mut record = sealed(&mut sealer, b"sixteen bytes of");
                record[place] ^= 1;
                // A longer length asks for what never comes.
                assert!(!matches!(opened(&mut opener, &record), Ok(Some(_))), "byte {place} was changed");
            }
        }
    }

    #[test]
    fn a_record_that_is_repeated_left_out_moved_or_sent_back_is_refused() {
        for wire in [Wire::Mac, Wire::Encrypt] {
            let (mut sealer, mut opener) = ends(wire);
            let records = [sealed(&mut sealer, b"0"), sealed(&mut sealer, b"1")];
            assert!(opened(&mut opener, &records[0]).unwrap().is_some());
            assert!(opened(&mut opener, &records[0]).is_err(), "repeated");
            assert!(opened(&mut ends(wire).1, &records[1]).is_err(), "left out, or moved");
            let (_, mut own) = directions(wire, &EXPORTED, true);
            assert!(opened(&mut own, &records[0]).is_err(), "sent back");
        }
    }

    #[test]
    fn ends_that_took_each_other_for_something_else_understand_nothing() {
        let (mut sealer, _) = ends(Wire::Mac);
        assert!(opened(&mut ends(Wire::Encrypt).1, &sealed(&mut sealer, b"text")).is_err());
    }

    #[test]
    fn the_key_changes_at_its_limit_on_both_ends() {
        let (mut sealer, mut opener) = ends(Wire::Encrypt);
        sealer.direction.records = KEY_RECORDS;
        opener.direction.records = KEY_RECORDS;
        let record = sealed(&mut sealer, b"text");
        assert_eq!(opened(&mut opener, &record).unwrap(), Some(b"text".to_vec()));
        let (mut before, _) = ends(Wire::Encrypt);
        before.direction.records = KEY_RECORDS + 1;
        assert_ne!(sealed(&mut sealer, b"text"), sealed(&mut before, b"text"), "another key");
    }

    #[test]
    fn a_length_that_no_record_has_is_refused_before_it_comes() {
        for length in [0, TEXT_BYTES_MAX as u32 + 1, u32::MAX] {
            assert!(opened(&mut ends(Wire::Encrypt).1, &length.to_le_bytes()).is_err());
        }
    }
}
