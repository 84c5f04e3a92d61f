//! Attributes between our form and the kernel's.

use std::time::Duration;

use super::abi;
use super::operations::{AttributeReply, Attributes, Entry, FileKind};

const NS_PER_S: i64 = 1_000_000_000;

/// The type bits of a mode.
pub fn kind_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::Fifo => 0o010_000,
        FileKind::CharDevice => 0o020_000,
        FileKind::Directory => 0o040_000,
        FileKind::BlockDevice => 0o060_000,
        FileKind::Regular => 0o100_000,
        FileKind::Symlink => 0o120_000,
        FileKind::Socket => 0o140_000,
    }
}

/// The type in a mode, `None` if its bits mean nothing.
pub fn kind_of(mode: u32) -> Option<FileKind> {
    use FileKind::*;
    [Fifo, CharDevice, Directory, BlockDevice, Regular, Symlink, Socket]
        .into_iter()
        .find(|&kind| kind_bits(kind) == mode & 0o170_000)
}

/// A time as the kernel gives it; out of range becomes the nearest that we can keep.
pub fn time_ns(seconds: u64, nanoseconds: u32) -> i64 {
    (seconds as i64).saturating_mul(NS_PER_S).saturating_add(i64::from(nanoseconds))
}

fn split(time_ns: i64) -> (u64, u32) {
    (time_ns.div_euclid(NS_PER_S) as u64, time_ns.rem_euclid(NS_PER_S) as u32)
}

pub fn attr(attributes: &Attributes) -> abi::Attr {
    let (atime, atimensec) = split(attributes.atime_ns);
    let (mtime, mtimensec) = split(attributes.mtime_ns);
    let (ctime, ctimensec) = split(attributes.ctime_ns);
    abi::Attr {
        inode: attributes.inode,
        size: attributes.length,
        blocks: attributes.blocks,
        atime,
        mtime,
        ctime,
        atimensec,
        mtimensec,
        ctimensec,
        mode: kind_bits(attributes.kind) | attributes.permissions & 0o7777,
        nlink: attributes.links,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.device,
        blksize: attributes.block_bytes,
        flags: 0,
    }
}

pub fn attr_out(reply: &AttributeReply) -> abi::AttrOut {
    abi::AttrOut {
        attr_valid: reply.ttl.as_secs(),
        attr_valid_nsec: reply.ttl.subsec_nanos(),
        dummy: 0,
        attr: attr(&reply.attributes),
    }
}

pub fn entry_out(entry: &Entry) -> abi::EntryOut {
    abi::EntryOut {
        inode: entry.attributes.inode,
        generation: entry.generation,
        entry_valid: entry.name_ttl.as_secs(),
        attr_valid: entry.attribute_ttl.as_secs(),
        entry_valid_nsec: entry.name_ttl.subsec_nanos(),
        attr_valid_nsec: entry.attribute_ttl.subsec_nanos(),
        attr: attr(&entry.attributes),
    }
}

/// A name that is known to be absent for that long.
pub fn absent(ttl: Duration) -> abi::EntryOut {
    abi::EntryOut { entry_valid: ttl.as_secs(), entry_valid_nsec: ttl.subsec_nanos(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_keep_their_nanoseconds() {
        assert_eq!(split(-1), (-1_i64 as u64, 999_999_999));
        assert_eq!(time_ns(-1_i64 as u64, 999_999_999), -1);
        assert_eq!(time_ns(i64::MAX as u64, 0), i64::MAX);
    }

    #[test]
    fn types_survive_the_mode() {
        use FileKind::*;
        for kind in [Fifo, CharDevice, Directory, BlockDevice, Regular, Symlink, Socket] {
            assert_eq!(kind_of(kind_bits(kind) | 0o755), Some(kind));
        }
        assert_eq!(kind_of(0o755), None);
    }
}
