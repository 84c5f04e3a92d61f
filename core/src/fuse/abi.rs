//! The kernel's structures, as `include/uapi/linux/fuse.h` draws them (protocol 7.31 and later, native byte order).
//!
//! Only shapes and numbers; `request` gives them meaning.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The only major version there is.
pub const MAJOR: u32 = 7;
/// What this session was written against: 7.41 (Linux 6.12).
pub const MINOR: u32 = 41;
/// Oldest kernel spoken to: Linux 5.4, which brought `max_pages` and 1 MiB requests.
pub const MINOR_MIN: u32 = 31;

/// Operation codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Opcode {
    Lookup = 1,
    Forget = 2,
    GetAttr = 3,
    SetAttr = 4,
    ReadLink = 5,
    Symlink = 6,
    Mknod = 8,
    Mkdir = 9,
    Unlink = 10,
    Rmdir = 11,
    Rename = 12,
    Link = 13,
    Open = 14,
    Read = 15,
    Write = 16,
    StatFs = 17,
    Release = 18,
    Fsync = 20,
    SetXattr = 21,
    GetXattr = 22,
    ListXattr = 23,
    RemoveXattr = 24,
    Flush = 25,
    Init = 26,
    OpenDir = 27,
    ReadDir = 28,
    ReleaseDir = 29,
    FsyncDir = 30,
    Access = 34,
    Create = 35,
    Interrupt = 36,
    Destroy = 38,
    Ioctl = 39,
    BatchForget = 42,
    Fallocate = 43,
    ReadDirPlus = 44,
    Rename2 = 45,
    Lseek = 46,
    CopyFileRange = 47,
}

impl Opcode {
    /// `None` for an operation that this session does not offer.
    pub fn from_wire(number: u32) -> Option<Opcode> {
        use Opcode::*;
        Some(match number {
            1 => Lookup,
            2 => Forget,
            3 => GetAttr,
            4 => SetAttr,
            5 => ReadLink,
            6 => Symlink,
            8 => Mknod,
            9 => Mkdir,
            10 => Unlink,
            11 => Rmdir,
            12 => Rename,
            13 => Link,
            14 => Open,
            15 => Read,
            16 => Write,
            17 => StatFs,
            18 => Release,
            20 => Fsync,
            21 => SetXattr,
            22 => GetXattr,
            23 => ListXattr,
            24 => RemoveXattr,
            25 => Flush,
            26 => Init,
            27 => OpenDir,
            28 => ReadDir,
            29 => ReleaseDir,
            30 => FsyncDir,
            34 => Access,
            35 => Create,
            36 => Interrupt,
            38 => Destroy,
            39 => Ioctl,
            42 => BatchForget,
            43 => Fallocate,
            44 => ReadDirPlus,
            45 => Rename2,
            46 => Lseek,
            47 => CopyFileRange,
            _ => return None,
        })
    }
}

/// Capabilities of INIT, both words joined.
pub mod init {
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const CREATE_SUPP_GROUP: u64 = 1 << 34;
    pub const HAS_EXPIRE_ONLY: u64 = 1 << 35;
    pub const DIRECT_IO_ALLOW_MMAP: u64 = 1 << 36;
    /// Linux 6.14, offered where fuse's module parameter enable_uring is on.
    pub const OVER_IO_URING: u64 = 1 << 41;
}

/// Flags of an OPEN reply.
pub mod fopen {
    pub const DIRECT_IO: u32 = 1 << 0;
    pub const KEEP_CACHE: u32 = 1 << 1;
    pub const CACHE_DIR: u32 = 1 << 3;
    /// Linux 5.16; older kernels ignore it.
    pub const NOFLUSH: u32 = 1 << 5;
    pub const PARALLEL_DIRECT_WRITES: u32 = 1 << 6;
}

/// `SetAttrIn::valid`.
pub mod fattr {
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

pub const GETATTR_FH: u32 = 1 << 0;
pub const WRITE_CACHE: u32 = 1 << 0;
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
pub const OPEN_KILL_SUIDGID: u32 = 1 << 0;
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
pub const EXPIRE_ONLY: u32 = 1 << 0;

/// `ExtHeader::kind` of the groups of a caller that makes something.
pub const EXT_GROUPS: u32 = 32;
/// Unit of `InHeader::total_extlen`, and alignment of extensions.
pub const EXT_UNIT: usize = 8;

pub const NOTIFY_INVAL_INODE: i32 = 2;
pub const NOTIFY_INVAL_ENTRY: i32 = 3;
pub const NOTIFY_DELETE: i32 = 6;

macro_rules! wire {
    ($($name:ident { $($field:ident: $kind:ty),* $(,)? })*) => {$(
        #[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $(pub $field: $kind),* }
    )*};
}

wire! {
    InHeader { len: u32, opcode: u32, unique: u64, inode: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16 }
    ExtHeader { size: u32, kind: u32 }
    OutHeader { len: u32, error: i32, unique: u64 }
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32 }
    InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }
    Attr {
        inode: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    EntryOut {
        inode: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32, attr_valid_nsec: u32,
        attr: Attr,
    }
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    ForgetIn { nlookup: u64 }
    ForgetOne { inode: u64, nlookup: u64 }
    BatchForgetIn { count: u32, dummy: u32 }
    GetAttrIn { flags: u32, dummy: u32, fh: u64 }
    SetAttrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32 }
    MkdirIn { mode: u32, umask: u32 }
    RenameIn { new_parent: u64 }
    Rename2In { new_parent: u64, flags: u32, padding: u32 }
    LinkIn { inode: u64 }
    OpenIn { flags: u32, open_flags: u32 }
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    OpenOut { fh: u64, open_flags: u32, backing_id: i32 }
    ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    FlushIn { fh: u64, unused: u32, padding: u32, lock_owner: u64 }
    ReadIn { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    WriteIn { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    WriteOut { size: u32, padding: u32 }
    StatFsOut {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    FsyncIn { fh: u64, flags: u32, padding: u32 }
    SetXattrIn { size: u32, flags: u32 }
    GetXattrIn { size: u32, padding: u32 }
    GetXattrOut { size: u32, padding: u32 }
    InterruptIn { unique: u64 }
    FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    LseekIn { fh: u64, offset: u64, whence: u32, padding: u32 }
    LseekOut { offset: u64 }
    CopyFileRangeIn {
        fh_in: u64, offset_in: u64, inode_out: u64, fh_out: u64, offset_out: u64, length: u64, flags: u64,
    }
    Dirent { inode: u64, offset: u64, name_length: u32, kind: u32 }
    NotifyInvalInodeOut { inode: u64, offset: i64, length: i64 }
    NotifyInvalEntryOut { parent: u64, name_length: u32, flags: u32 }
    NotifyDeleteOut { parent: u64, child: u64, name_length: u32, padding: u32 }
}

/// Requests over io_uring: commands, and what the kernel fills for each entry.
pub mod uring {
    use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

    pub const REGISTER: u32 = 1;
    pub const COMMIT_AND_FETCH: u32 = 2;

    pub const HEADER_BYTES: usize = 128;

    wire! {
        EntryHeader { flags: u64, commit_id: u64, payload_bytes: u32, padding: u32, reserved: u64 }
    }

    /// `struct fuse_uring_req_header`: `in_out` begins with the `InHeader` of the request, then the `OutHeader` of its reply.
    #[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
    #[repr(C)]
    pub struct Header {
        pub in_out: [u8; HEADER_BYTES],
        pub operation: [u8; HEADER_BYTES],
        pub entry: EntryHeader,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sizes that the kernel checks replies against.
    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<InHeader>(), 40);
        assert_eq!(size_of::<OutHeader>(), 16);
        assert_eq!(size_of::<InitOut>(), 64);
        assert_eq!(size_of::<Attr>(), 88);
        assert_eq!(size_of::<EntryOut>(), 128);
        assert_eq!(size_of::<AttrOut>(), 104);
        assert_eq!(size_of::<SetAttrIn>(), 88);
        assert_eq!(size_of::<ReadIn>(), 40);
        assert_eq!(size_of::<WriteIn>(), 40);
        assert_eq!(size_of::<StatFsOut>(), 80);
        assert_eq!(size_of::<OpenOut>(), 16);
        assert_eq!(size_of::<Dirent>(), 24);
        assert_eq!(size_of::<CopyFileRangeIn>(), 56);
        assert_eq!(size_of::<uring::Header>(), 288);
    }

    #[test]
    fn every_opcode_is_found_by_its_number() {
        for number in 0..64 {
            if let Some(opcode) = Opcode::from_wire(number) {
                assert_eq!(opcode as u32, number);
            }
        }
        assert_eq!(Opcode::from_wire(7), None);
    }
}
