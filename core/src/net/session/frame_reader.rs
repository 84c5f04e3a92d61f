//! Bytes as they come, and frames as they are taken out: whole.

use crate::wire::frame::{HEADER_BYTES, TABLE_BYTES_MAX};

/// What was received and not yet used. As large as the largest frame without its payload.
pub(super) struct FrameReader {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
    spare: Vec<u8>,
}

impl FrameReader {
    /// Bytes of the largest frame without its payload.
    pub(super) const BYTES: usize = HEADER_BYTES + TABLE_BYTES_MAX;

    pub(super) fn new() -> FrameReader {
        FrameReader { bytes: vec![0; FrameReader::BYTES], start: 0, end: 0, spare: Vec::new() }
    }

    pub(super) fn len(&self) -> usize {
        assert!(
            self.start <= self.end && self.end <= self.bytes.len(),
            "bytes are received before they are used"
        );
        self.end - self.start
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Room for more; never empty, because a frame without payload fits whole.
    pub(super) fn space(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        assert!(self.end < self.bytes.len(), "there is room while a frame is incomplete");
        &mut self.bytes[self.end..]
    }

    pub(super) fn filled(&mut self, count: usize) {
        assert!(count <= self.bytes.len() - self.end, "no more bytes than there was room for");
        self.end += count;
    }

    pub(super) fn head(&self) -> &[u8; HEADER_BYTES] {
        self.bytes[self.start..self.start + HEADER_BYTES].try_into().expect("received before it is looked at")
    }

    /// Take out the first `bytes`.
    pub(super) fn take(&mut self, bytes: usize) -> Vec<u8> {
        assert!(bytes <= self.len(), "received before it is taken");
        let mut taken = std::mem::take(&mut self.spare);
        taken.clear();
        taken.extend_from_slice(&self.bytes[self.start..self.start + bytes]);
        self.start += bytes;
        taken
    }

    pub(super) fn recycle(&mut self, spare: Vec<u8>) {
        self.spare = spare;
    }
}
