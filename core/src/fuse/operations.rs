//! Arguments and results of a file system's operations.

use std::time::Duration;

use rustix::io::Errno;

use crate::buffer::Placement;

/// What an operation gives: its result, or the errno for the calling program.
pub type Reply<T> = Result<T, Errno>;

/// Inode number of the mount's root directory.
pub const ROOT: u64 = 1;

/// Largest name of a directory entry, in bytes.
pub const NAME_BYTES_MAX: usize = 255;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FileKind {
    Regular,
    Directory,
    Symlink,
    Fifo,
    Socket,
    CharDevice,
    BlockDevice,
}

/// What stat(2) shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    pub inode: u64,
    pub kind: FileKind,
    /// Mode bits without the type: 0o7777.
    pub permissions: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    /// As Linux encodes it (major and minor in 32 bits); 0 unless a device.
    pub device: u32,
    pub length: u64,
    /// Space used, in units of 512 bytes.
    pub blocks: u64,
    /// What stat calls the best size of a transfer.
    pub block_bytes: u32,
    pub atime_ns: i64,
    pub mtime_ns: i64,
    pub ctime_ns: i64,
}

/// Attributes, and for how long the kernel may believe them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttributeReply {
    pub attributes: Attributes,
    pub ttl: Duration,
}

/// A name's inode, and for how long the kernel may believe both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub attributes: Attributes,
    /// Distinguishes two files that had the same inode number one after the other; 0 if numbers are never reused.
    pub generation: u64,
    pub name_ttl: Duration,
    pub attribute_ttl: Duration,
}

/// A time to be set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    Now,
    /// Nanoseconds since 1970.
    At(i64),
}

/// The attributes to change; those that are `None` stay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttributes {
    /// The open file this comes through (ftruncate), if any.
    pub handle: Option<u64>,
    pub permissions: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub length: Option<u64>,
    pub atime: Option<SetTime>,
    pub mtime: Option<SetTime>,
    pub ctime_ns: Option<i64>,
    /// The caller may not keep the file's set-user-id and set-group-id bits.
    pub clears_set_id: bool,
}

/// How the kernel may use its page cache for one open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageCache {
    /// The file has not changed since its pages were cached: use them.
    Keep,
    /// Forget cached pages, then cache (close-to-open consistency for a file that has or may have changed).
    Drop,
    /// Every read and write comes here.
    Bypass,
}

/// An open file or directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Given back with every operation on this open file; the file system's own choice.
    pub handle: u64,
    /// For a directory: whether the kernel may cache the listing (`Keep`, `Drop`) or not (`Bypass`).
    pub cache: PageCache,
}

/// Where and how bytes are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReadRequest {
    pub inode: u64,
    pub handle: u64,
    pub offset: u64,
    /// open(2) flags, as fcntl(2) may have changed them.
    pub flags: i32,
}

/// The bytes read.
pub enum ReadOutcome {
    /// So many bytes are at the start of the placement; fewer than asked only at the end of the file.
    Placed(usize),
    /// The bytes are, in order, in memory that the file system already had. Not copied: the kernel takes them from
    /// there. At most `READ_PIECES_MAX` pieces.
    Held(Vec<Placement>),
}

/// Most pieces in `ReadOutcome::Held`.
pub const READ_PIECES_MAX: usize = 64;

/// Where and how bytes are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteRequest {
    pub inode: u64,
    pub handle: u64,
    pub offset: u64,
    /// open(2) flags, as fcntl(2) may have changed them. With `O_APPEND` the offset is the kernel's idea of the end.
    pub flags: i32,
    /// Pages written back from the kernel's cache (mmap): the caller is not the process that wrote them, the handle
    /// is any that is open for writing.
    pub from_page_cache: bool,
    /// The caller may not keep the file's set-user-id and set-group-id bits.
    pub clears_set_id: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileSystemStatistics {
    /// Unit of the three counts of blocks below.
    pub block_bytes: u32,
    pub blocks: u64,
    pub blocks_free: u64,
    /// Free for ordinary users.
    pub blocks_available: u64,
    pub inodes: u64,
    pub inodes_free: u64,
}

/// What `rename` does when the target exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameMode {
    Replace,
    /// Fails with `EEXIST`.
    NoReplace,
    /// Both names stay and swap their inodes; `ENOENT` unless both exist.
    Exchange,
}

/// What `fallocate` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocateMode {
    /// Extends the file if the range ends beyond its end.
    Extend,
    /// Later writes to the range find space; the length stays.
    KeepLength,
    /// The range reads as zeros; the length stays.
    PunchHole,
    /// The range reads as zeros; extends the file if the range ends beyond its end, unless `keep_length`.
    Zero { keep_length: bool },
}

/// What `setxattr` does when the name exists or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XattrMode {
    Set,
    /// Fails with `EEXIST`.
    Create,
    /// Fails with `ENODATA`.
    Replace,
}

/// A range of one open file, for `copy_file_range`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRange {
    pub inode: u64,
    pub handle: u64,
    pub offset: u64,
}
