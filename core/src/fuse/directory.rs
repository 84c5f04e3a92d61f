//! A page of a directory listing, built in the kernel's form.

use zerocopy::IntoBytes;

use super::abi;
use super::attributes::{entry_out, kind_bits};
use super::operations::{Entry, FileKind};

/// Takes entries until the kernel's buffer is full.
pub struct DirectorySink<'a> {
    bytes: &'a mut Vec<u8>,
    limit: usize,
    plus: bool,
}

impl<'a> DirectorySink<'a> {
    /// A sink for `limit` bytes appended to `bytes`.
    pub(super) fn new(bytes: &'a mut Vec<u8>, limit: usize, plus: bool) -> Self {
        DirectorySink { bytes, limit, plus }
    }

    /// Whether the kernel asked for attributes with every name (READDIRPLUS).
    pub fn wants_attributes(&self) -> bool {
        self.plus
    }

    /// Add a name without attributes; listing continues after `offset`. False: full, the entry was not taken.
    pub fn plain(&mut self, name: &[u8], inode: u64, kind: FileKind, offset: u64) -> bool {
        // An entry of READDIRPLUS with inode 0 brings a name only.
        self.add(name, inode, kind, offset, self.plus.then(abi::EntryOut::default))
    }

    /// Add a name with its attributes, one reference more for `forget` if it is taken. False: full.
    pub fn plus(&mut self, name: &[u8], entry: &Entry, offset: u64) -> bool {
        let attributes = &entry.attributes;
        let out = self.plus.then(|| entry_out(entry));
        self.add(name, attributes.inode, attributes.kind, offset, out)
    }

    fn add(
        &mut self,
        name: &[u8],
        inode: u64,
        kind: FileKind,
        offset: u64,
        entry: Option<abi::EntryOut>,
    ) -> bool {
        let fixed = size_of::<abi::Dirent>() + entry.map_or(0, |_| size_of::<abi::EntryOut>());
        let length = (fixed + name.len()).next_multiple_of(8);
        if self.limit < length {
            return false;
        }
        self.limit -= length;
        let end = self.bytes.len() + length;
        if let Some(entry) = entry {
            self.bytes.extend_from_slice(entry.as_bytes());
        }
        let kind = kind_bits(kind) >> 12;
        let dirent = abi::Dirent { inode, offset, name_length: name.len() as u32, kind };
        self.bytes.extend_from_slice(dirent.as_bytes());
        self.bytes.extend_from_slice(name);
        assert!(self.bytes.len() <= end, "an entry is as long as was reckoned");
        self.bytes.resize(end, 0);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_sink_refuses_and_stays_as_it_was() {
        let mut bytes = Vec::new();
        let mut sink = DirectorySink::new(&mut bytes, 64, false);
        assert!(sink.plain(b"abc", 7, FileKind::Regular, 1));
        assert!(sink.plain(b"abcdefgh", 8, FileKind::Directory, 2));
        assert!(!sink.plain(b"x", 9, FileKind::Regular, 3));
        assert_eq!(bytes.len(), 64);
        assert_eq!(&bytes[24..27], b"abc");
        assert_eq!(&bytes[56..64], b"abcdefgh");
    }

    #[test]
    fn entries_with_attributes_are_aligned_to_eight_bytes() {
        let mut bytes = Vec::new();
        let mut sink = DirectorySink::new(&mut bytes, 4096, true);
        assert!(sink.plain(b".", 1, FileKind::Directory, 1));
        assert_eq!(bytes.len(), 128 + 24 + 8);
        assert_eq!(&bytes[..8], &[0; 8], "inode 0: no reference is counted");
    }
}
