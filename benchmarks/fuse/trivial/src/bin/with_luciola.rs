//! The trivial file system served by `luciola_core::fuse`: `with_luciola MOUNTPOINT`.

use std::sync::Arc;
use std::time::Duration;

use luciola_core::buffer::Placement;
use luciola_core::fuse::*;
use luciola_trivial_fuse::{BIG, BIG_BYTES, Names, inside, length};
use rustix::io::Errno;

const TTL: Duration = Duration::ZERO;

struct Trivial {
    names: Names,
    big: Placement,
}

fn attributes(inode: u64) -> Attributes {
    let directory = inode == ROOT;
    Attributes {
        inode,
        kind: if directory { FileKind::Directory } else { FileKind::Regular },
        permissions: if directory { 0o755 } else { 0o644 },
        links: 1,
        uid: 0,
        gid: 0,
        device: 0,
        length: length(inode),
        blocks: length(inode) / 512,
        block_bytes: 1 << 20,
        atime_ns: 0,
        mtime_ns: 0,
        ctime_ns: 0,
    }
}

fn entry(inode: u64) -> Entry {
    Entry { attributes: attributes(inode), generation: 0, name_ttl: TTL, attribute_ttl: TTL }
}

const OPENED: Opened = Opened { handle: 0, cache: PageCache::Drop };
type Done = Reply<()>;

#[rustfmt::skip]
impl FileSystem for Trivial {
    fn lookup(&self, _: &Caller, _: u64, name: &[u8]) -> Reply<Entry> {
        self.names.find(name).map(entry).ok_or(Errno::NOENT)
    }
    fn getattr(&self, _: &Caller, inode: u64, _: Option<u64>) -> Reply<AttributeReply> {
        Ok(AttributeReply { attributes: attributes(inode), ttl: TTL })
    }
    fn create(&self, _: &Caller, _: u64, name: &[u8], _: u32, _: i32) -> Reply<(Entry, Opened)> {
        Ok((entry(self.names.add(name)), OPENED))
    }
    fn open(&self, _: &Caller, _: u64, _: i32) -> Reply<Opened> { Ok(OPENED) }
    fn read(&self, _: &Caller, request: &ReadRequest, into: &Placement) -> Reply<ReadOutcome> {
        if request.inode != BIG { return Ok(ReadOutcome::Placed(0)); }
        Ok(ReadOutcome::Held(vec![self.big.slice(inside(request.offset, into.len()))]))
    }
    fn write(&self, _: &Caller, request: &WriteRequest, payload: Placement) -> Reply<usize> {
        let range = inside(request.offset, payload.len());
        let written = range.len();
        payload.slice(0..written).copy_into(&self.big.slice(range));
        Ok(written)
    }

    fn forget(&self, _: u64, _: u64) {}
    fn flush(&self, _: &Caller, _: u64, _: u64) -> Done { Ok(()) }
    fn release(&self, _: u64, _: u64) {}
    fn fsync(&self, _: &Caller, _: u64, _: u64, _: bool) -> Done { Ok(()) }
    fn opendir(&self, _: &Caller, _: u64) -> Reply<Opened> { Ok(OPENED) }
    fn readdir(&self, _: &Caller, _: u64, _: u64, _: u64, _: &mut DirectorySink<'_>) -> Done { Ok(()) }
    fn releasedir(&self, _: u64, _: u64) {}
    fn statfs(&self, _: &Caller, _: u64) -> Reply<FileSystemStatistics> { Ok(Default::default()) }
    fn setattr(&self, caller: &Caller, inode: u64, _: &SetAttributes) -> Reply<AttributeReply> { self.getattr(caller, inode, None) }
    fn readlink(&self, _: &Caller, _: u64) -> Reply<Vec<u8>> { Err(Errno::INVAL) }
    fn mknod(&self, _: &Caller, _: u64, _: &[u8], _: FileKind, _: u32, _: u32) -> Reply<Entry> { Err(Errno::PERM) }
    fn mkdir(&self, _: &Caller, _: u64, _: &[u8], _: u32) -> Reply<Entry> { Err(Errno::PERM) }
    fn unlink(&self, _: &Caller, _: u64, _: &[u8]) -> Done { Err(Errno::PERM) }
    fn rmdir(&self, _: &Caller, _: u64, _: &[u8]) -> Done { Err(Errno::PERM) }
    fn symlink(&self, _: &Caller, _: u64, _: &[u8], _: &[u8]) -> Reply<Entry> { Err(Errno::PERM) }
    fn rename(&self, _: &Caller, _: (u64, &[u8]), _: (u64, &[u8]), _: RenameMode) -> Done { Err(Errno::PERM) }
    fn link(&self, _: &Caller, _: u64, _: u64, _: &[u8]) -> Reply<Entry> { Err(Errno::PERM) }
}

fn main() -> std::io::Result<()> {
    let mountpoint = std::env::args().nth(1).expect("a mountpoint").into();
    let big = Placement::from_vec(vec![1; BIG_BYTES]);
    let fs = Arc::new(Trivial { names: Names::default(), big });
    let options = SessionOptions { mountpoint, threads_max: 4, ..Default::default() };
    Session::mount(fs, options)?.run()
}
