//! Hostile requests: any bytes get an answer and no panic.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::fuse::*;

/// Takes everything and has nothing: what reaches it was understood.
pub struct Empty;

const OPENED: Opened = Opened { handle: 1, cache: PageCache::Drop };

fn some_attributes(inode: u64) -> Attributes {
    Attributes {
        inode,
        kind: FileKind::Regular,
        permissions: 0o6755,
        links: 1,
        uid: 0,
        gid: 0,
        device: 0,
        length: 0,
        blocks: 0,
        block_bytes: 4096,
        atime_ns: i64::MIN,
        mtime_ns: i64::MAX,
        ctime_ns: 0,
    }
}

fn some_entry() -> Entry {
    Entry {
        attributes: some_attributes(2),
        generation: 0,
        name_ttl: Duration::MAX,
        attribute_ttl: Duration::ZERO,
    }
}

#[rustfmt::skip]
impl FileSystem for Empty {
    fn lookup(&self, _: &Caller, _: u64, name: &[u8]) -> Reply<Entry> {
        assert!(!name.is_empty() && !name.contains(&b'/') && !name.contains(&0));
        Ok(some_entry())
    }
    fn forget(&self, _: u64, _: u64) {}
    fn getattr(&self, _: &Caller, inode: u64, _: Option<u64>) -> Reply<AttributeReply> {
        Ok(AttributeReply { attributes: some_attributes(inode), ttl: Duration::ZERO })
    }
    fn setattr(&self, c: &Caller, inode: u64, _: &SetAttributes) -> Reply<AttributeReply> { self.getattr(c, inode, None) }
    fn readlink(&self, _: &Caller, _: u64) -> Reply<Vec<u8>> { Ok(vec![b'x'; 4095]) }
    fn mknod(&self, _: &Caller, _: u64, _: &[u8], _: FileKind, _: u32, _: u32) -> Reply<Entry> { Ok(some_entry()) }
    fn mkdir(&self, _: &Caller, _: u64, _: &[u8], _: u32) -> Reply<Entry> { Ok(some_entry()) }
    fn unlink(&self, _: &Caller, _: u64, _: &[u8]) -> Reply<()> { Ok(()) }
    fn rmdir(&self, _: &Caller, _: u64, _: &[u8]) -> Reply<()> { Ok(()) }
    fn symlink(&self, _: &Caller, _: u64, _: &[u8], target: &[u8]) -> Reply<Entry> {
        assert!(!target.is_empty());
        Ok(some_entry())
    }
    fn rename(&self, _: &Caller, _: (u64, &[u8]), _: (u64, &[u8]), _: RenameMode) -> Reply<()> { Ok(()) }
    fn link(&self, _: &Caller, _: u64, _: u64, _: &[u8]) -> Reply<Entry> { Ok(some_entry()) }
    fn open(&self, _: &Caller, _: u64, _: i32) -> Reply<Opened> { Ok(OPENED) }
    fn create(&self, _: &Caller, _: u64, _: &[u8], _: u32, _: i32) -> Reply<(Entry, Opened)> { Ok((some_entry(), OPENED)) }
    fn read(&self, _: &Caller, _: &ReadRequest, into: &Placement) -> Reply<ReadOutcome> { Ok(ReadOutcome::Placed(into.len())) }
    fn write(&self, _: &Caller, _: &WriteRequest, payload: Placement) -> Reply<usize> { Ok(payload.len()) }
    fn flush(&self, _: &Caller, _: u64, _: u64) -> Reply<()> { Ok(()) }
    fn release(&self, _: u64, _: u64) {}
    fn fsync(&self, _: &Caller, _: u64, _: u64, _: bool) -> Reply<()> { Ok(()) }
    fn opendir(&self, _: &Caller, _: u64) -> Reply<Opened> { Ok(OPENED) }
    fn readdir(&self, _: &Caller, _: u64, _: u64, _: u64, sink: &mut DirectorySink<'_>) -> Reply<()> {
        for offset in 1.. {
            if !sink.plus(b"name", &some_entry(), offset) { break; }
        }
        Ok(())
    }
    fn releasedir(&self, _: u64, _: u64) {}
    fn statfs(&self, _: &Caller, _: u64) -> Reply<FileSystemStatistics> { Ok(FileSystemStatistics::default()) }
    fn setxattr(&self, _: &Caller, _: u64, _: &[u8], _: &[u8], _: XattrMode) -> Reply<()> { Ok(()) }
    fn getxattr(&self, _: &Caller, _: u64, _: &[u8]) -> Reply<Vec<u8>> { Ok(vec![1; 100]) }
    fn listxattr(&self, _: &Caller, _: u64) -> Reply<Vec<Vec<u8>>> { Ok(vec![b"user.x".to_vec(); 10]) }
    fn removexattr(&self, _: &Caller, _: u64, _: &[u8]) -> Reply<()> { Ok(()) }
    fn fallocate(&self, _: &Caller, _: u64, _: u64, _: AllocateMode, offset: u64, length: u64) -> Reply<()> {
        assert!(offset.checked_add(length).is_some());
        Ok(())
    }
    fn copy_file_range(&self, _: &Caller, _: &FileRange, _: &FileRange, length: u64) -> Reply<usize> { Ok(length as usize) }
}

fn answer(opcode: u32, body: &[u8], payload_length: usize) -> (Reply<usize>, usize) {
    let options = SessionOptions::default();
    let agreement = Agreement { minor: 31, flags: 0, request_bytes: 1 << 16 };
    let payload = Placement::private(1 << 16).unwrap();
    let notifier = Notifier::disconnected();
    let mut request = Request {
        context: Context { fs: &Empty, options: &options, agreement: &agreement, notifier: &notifier },
        caller: Caller { uid: 1, gid: 1, pid: 1, named_group: None },
        inode: 1,
        opcode,
        body: Body(body),
        payload: &payload,
        payload_length,
        opened: None,
    };
    let mut out = Vec::new();
    let result = perform(&mut request, &mut out).map(|answer| match answer {
        Answer::Nothing | Answer::Out | Answer::AfterDropping { .. } => 0,
        Answer::Piece(piece) => piece.len(),
        Answer::Pieces(pieces) => crate::buffer::total_length(&pieces),
    });
    (result, out.len())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_answered_within_bounds(opcode in 0u32..64, body in proptest::collection::vec(any::<u8>(), 0..300), extra in 0usize..3) {
        let (result, length) = answer(opcode, &body, extra * 4096);
        if let Ok(piece) = result {
            prop_assert!(piece <= 1 << 16);
        }
        prop_assert!(length <= (1 << 16) + 4096);
    }

    /// Wrong sizes and counts, in bodies that are otherwise in order.
    #[test]
    fn lying_sizes_are_answered_within_bounds(opcode in 0u32..64, words in proptest::collection::vec(prop_oneof![Just(0u32), Just(u32::MAX), Just(1 << 31), 0u32..9, Just(1 << 16)], 0..24)) {
        let mut body: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        body.extend_from_slice(b"name\0other\0");
        let (result, length) = answer(opcode, &body, 0);
        if let Ok(piece) = result {
            prop_assert!(piece <= 1 << 16);
        }
        prop_assert!(length <= (1 << 16) + 4096);
    }
}

#[test]
fn an_empty_name_is_refused_everywhere() {
    let zeros = [0u8; 88];
    for opcode in 1..64 {
        let Some(known) = Opcode::from_wire(opcode) else { continue };
        // Names follow the structure of each; "name" alone is a name, and zeros are no name.
        let (result, _) = answer(opcode, &zeros, 0);
        let refused = matches!(result, Err(Errno::INVAL | Errno::NOSYS | Errno::NOTTY | Errno::IO));
        let named = matches!(
            known,
            Opcode::Lookup
                | Opcode::Unlink
                | Opcode::Rmdir
                | Opcode::Mknod
                | Opcode::Mkdir
                | Opcode::Symlink
                | Opcode::Link
                | Opcode::Rename
                | Opcode::Rename2
                | Opcode::Create
                | Opcode::SetXattr
                | Opcode::GetXattr
                | Opcode::RemoveXattr
        );
        assert!(!named || refused, "{known:?} took an empty name: {result:?}");
    }
}
