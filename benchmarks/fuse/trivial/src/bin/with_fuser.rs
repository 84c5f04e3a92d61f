//! The trivial file system served by the crate fuser: `with_fuser MOUNTPOINT`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, UNIX_EPOCH};

use fuser::*;
use luciola_trivial_fuse::{BIG_BYTES, Names, inside, length};
use parking_lot::RwLock;

const TTL: Duration = Duration::ZERO;

struct Trivial {
    names: Names,
    big: RwLock<Vec<u8>>,
}

fn attributes(inode: u64) -> FileAttr {
    let directory = inode == 1;
    FileAttr {
        ino: INodeNo(inode),
        size: length(inode),
        blocks: length(inode) / 512,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: if directory { FileType::Directory } else { FileType::RegularFile },
        perm: if directory { 0o755 } else { 0o644 },
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 1 << 20,
        flags: 0,
    }
}

impl Filesystem for Trivial {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let _ = config.set_max_write(1 << 20);
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_READ | InitFlags::FUSE_PARALLEL_DIROPS);
        Ok(())
    }

    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.names.find(name.as_bytes()) {
            Some(inode) => reply.entry(&TTL, &attributes(inode), Generation(0)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, inode: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&TTL, &attributes(inode.0));
    }

    fn create(
        &self,
        _: &Request,
        _: INodeNo,
        name: &OsStr,
        _: u32,
        _: u32,
        _: i32,
        reply: ReplyCreate,
    ) {
        let inode = self.names.add(name.as_bytes());
        reply.created(&TTL, &attributes(inode), Generation(0), FileHandle(0), FopenFlags::empty());
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        reply.data(&self.big.read()[inside(offset, size as usize)]);
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let range = inside(offset, data.len());
        let written = range.len();
        self.big.write()[range].copy_from_slice(&data[..written]);
        reply.written(written as u32);
    }
}

fn main() {
    let mountpoint = std::env::args().nth(1).expect("a mountpoint");
    let mut config = Config::default();
    config.mount_options.push(MountOption::DefaultPermissions);
    config.n_threads = Some(4);
    config.clone_fd = true;
    let fs = Trivial { names: Names::default(), big: RwLock::new(vec![1; BIG_BYTES]) };
    fuser::mount(fs, mountpoint, &config).unwrap();
}
