//! What a file system answers: one method per operation of the kernel, in terms of inode numbers and handles.
//!
//! Methods run on the session's threads, many at once, and may block. An error is the errno that the calling
//! program sees. Defaults stand for "not offered": the kernel then falls back or reports it to its caller.
//!
//! F1  The kernel has checked permissions (`default_permissions`), names (1 to 255 bytes, no slash, no NUL) and
//!     types before it asks; what it knows may be as old as the timeouts that were given to it.
//! F2  Every `Entry` that reaches the kernel (lookup, create, mknod, mkdir, symlink, link, `DirectorySink::plus`)
//!     counts once for `forget`; an inode number stays valid until it is forgotten or the session ends.
//! F3  `flush` comes once for each close(2) of a descriptor that may write (before Linux 5.16 of any), `release` once for
//!     each successful `open` and `create`, later and without a waiting program; what is not yet released when the session
//!     ends never is (`destroy` comes instead).
//! F4  Set-user-id and set-group-id bits end when files are changed by users: `write` and `setattr` say when; `fallocate`
//!     goes by its caller, and a change of owner by itself. The session clears those of files that `open` and `create`
//!     have emptied.
//! F5  After `destroy` no other method is called.
//! F6  When a program is killed, its call of a method that changes nothing is answered by the session while the method
//!     runs on. What waits in there looks at `crate::cancel` and may return any error.

use rustix::io::Errno;

use crate::buffer::Placement;

use super::caller::Caller;
use super::directory::DirectorySink;
use super::notify::Notifier;
use super::operations::*;

/// A file system that a `Session` shows to the kernel.
#[allow(unused_variables)]
pub trait FileSystem: Send + Sync + 'static {
    /// The mount is about to be used. `notifier` drops what the kernel has cached; it may be kept and used from any
    /// thread.
    fn init(&self, notifier: Notifier) -> Reply<()> {
        Ok(())
    }

    /// The session has ended: write back everything, then return. Called exactly once if `init` was.
    fn destroy(&self) {}

    /// `ENOENT` may be cached by the kernel for the session's `negative_ttl`.
    fn lookup(&self, caller: &Caller, parent: u64, name: &[u8]) -> Reply<Entry>;

    /// The inode itself: what a file handle of the kernel (open_by_handle_at, NFS) is found by. `ENOENT` if it is gone.
    fn find(&self, caller: &Caller, inode: u64) -> Reply<Entry> {
        Err(Errno::STALE)
    }

    /// The directory that `directory` is in, for the same.
    fn parent(&self, caller: &Caller, directory: u64) -> Reply<Entry> {
        Err(Errno::STALE)
    }

    /// The kernel has dropped `count` of the references that it got through entries.
    fn forget(&self, inode: u64, count: u64);

    fn forget_many(&self, inodes: &[(u64, u64)]) {
        for &(inode, count) in inodes {
            self.forget(inode, count);
        }
    }

    /// `handle` is given for fstat(2) on an open file, where the kernel knows it.
    fn getattr(&self, caller: &Caller, inode: u64, handle: Option<u64>) -> Reply<AttributeReply>;

    fn setattr(&self, caller: &Caller, inode: u64, change: &SetAttributes) -> Reply<AttributeReply>;

    fn readlink(&self, caller: &Caller, inode: u64) -> Reply<Vec<u8>>;

    /// `permissions` as the caller asked, umask already applied (here and below). `kind` is never a directory or
    /// a symlink.
    fn mknod(
        &self,
        caller: &Caller,
        parent: u64,
        name: &[u8],
        kind: FileKind,
        permissions: u32,
        device: u32,
    ) -> Reply<Entry>;

    fn mkdir(&self, caller: &Caller, parent: u64, name: &[u8], permissions: u32) -> Reply<Entry>;

    fn unlink(&self, caller: &Caller, parent: u64, name: &[u8]) -> Reply<()>;

    fn rmdir(&self, caller: &Caller, parent: u64, name: &[u8]) -> Reply<()>;

    fn symlink(&self, caller: &Caller, parent: u64, name: &[u8], target: &[u8]) -> Reply<Entry>;

    fn rename(
        &self,
        caller: &Caller,
        source: (u64, &[u8]),
        target: (u64, &[u8]),
        mode: RenameMode,
    ) -> Reply<()>;

    fn link(&self, caller: &Caller, inode: u64, parent: u64, name: &[u8]) -> Reply<Entry>;

    /// `flags` of open(2): access mode, `O_APPEND`, `O_DIRECT`, `O_TRUNC` (which is done here), …
    fn open(&self, caller: &Caller, inode: u64, flags: i32) -> Reply<Opened>;

    /// Make the file if it is missing (with `O_EXCL` in `flags` an existing one is an error) and open it.
    fn create(
        &self,
        caller: &Caller,
        parent: u64,
        name: &[u8],
        permissions: u32,
        flags: i32,
    ) -> Reply<(Entry, Opened)>;

    /// Read up to `into.len()` bytes.
    fn read(&self, caller: &Caller, request: &ReadRequest, into: &Placement) -> Reply<ReadOutcome>;

    /// Write all of `payload`; return the number of bytes taken, fewer only if an error comes after the first one.
    ///
    /// The payload is page-aligned in a buffer of the session's registered region, and the file system may keep it
    /// (the session then takes another buffer). Each is as large as the largest request: keep large payloads, copy
    /// small ones, or a few bytes hold a megabyte.
    fn write(&self, caller: &Caller, request: &WriteRequest, payload: Placement) -> Reply<usize>;

    /// Whether the kernel may have pages of the file that a write just made through `handle` has made wrong. It drops them
    /// itself before a direct write, and again when it has submitted it, but not at the end of an asynchronous one: what
    /// was read in between stays. They are dropped before the write is answered. Not asked of writes through the page
    /// cache, which hold their pages.
    fn has_cached_pages(&self, handle: u64, flags: i32) -> bool {
        false
    }

    /// A number, if the kernel may have pages of the file that are older than these attributes, which `lookup`, `find` or
    /// `getattr` has just returned. They are dropped before it gets them, and `pages_dropped` is called with the number;
    /// at another length than it knows it drops pages by itself.
    fn outdates_pages(&self, shown: &Attributes) -> Option<u64> {
        None
    }

    /// The kernel has dropped the pages, as `outdates_pages` has asked for.
    fn pages_dropped(&self, inode: u64, number: u64) {}

    /// close(2) of one descriptor that may write: the last chance to report failed writes to a program.
    fn flush(&self, caller: &Caller, inode: u64, handle: u64) -> Reply<()>;

    /// The last descriptor of an open file is gone. No program sees an error.
    fn release(&self, inode: u64, handle: u64);

    /// Return when all that was written to the file survives the loss of power; without `data_only` its attributes
    /// too.
    fn fsync(&self, caller: &Caller, inode: u64, handle: u64, data_only: bool) -> Reply<()>;

    fn opendir(&self, caller: &Caller, inode: u64) -> Reply<Opened>;

    /// Put entries into `sink`, beginning after the one whose offset is `after` (0: from the start), until it says
    /// that it is full or there are no more. "." and ".." belong to the listing. Offsets are the file system's own
    /// choice but for 0, and stay meaningful while entries are added and removed. With `sink.wants_attributes()`
    /// entries other than "." and ".." should be put with `plus`.
    fn readdir(
        &self,
        caller: &Caller,
        inode: u64,
        handle: u64,
        after: u64,
        sink: &mut DirectorySink<'_>,
    ) -> Reply<()>;

    fn releasedir(&self, inode: u64, handle: u64);

    fn fsyncdir(&self, caller: &Caller, inode: u64, handle: u64, data_only: bool) -> Reply<()> {
        Ok(())
    }

    fn statfs(&self, caller: &Caller, inode: u64) -> Reply<FileSystemStatistics>;

    fn setxattr(&self, caller: &Caller, inode: u64, name: &[u8], value: &[u8], mode: XattrMode) -> Reply<()> {
        Err(Errno::OPNOTSUPP)
    }

    /// `ENODATA` if there is none of that name.
    fn getxattr(&self, caller: &Caller, inode: u64, name: &[u8]) -> Reply<Vec<u8>> {
        Err(Errno::OPNOTSUPP)
    }

    fn listxattr(&self, caller: &Caller, inode: u64) -> Reply<Vec<Vec<u8>>> {
        Err(Errno::OPNOTSUPP)
    }

    /// `ENODATA` if there is none of that name.
    fn removexattr(&self, caller: &Caller, inode: u64, name: &[u8]) -> Reply<()> {
        Err(Errno::OPNOTSUPP)
    }

    fn fallocate(
        &self,
        caller: &Caller,
        inode: u64,
        handle: u64,
        mode: AllocateMode,
        offset: u64,
        length: u64,
    ) -> Reply<()> {
        Err(Errno::OPNOTSUPP)
    }

    /// First byte of data at or after `offset`; `ENXIO` if there is none.
    fn seek_data(&self, caller: &Caller, inode: u64, handle: u64, offset: u64) -> Reply<u64> {
        Err(Errno::NOSYS)
    }

    /// First byte of a hole at or after `offset` (the end of the file counts as one); `ENXIO` beyond the end.
    fn seek_hole(&self, caller: &Caller, inode: u64, handle: u64, offset: u64) -> Reply<u64> {
        Err(Errno::NOSYS)
    }

    /// Return the number of bytes copied. `ENOSYS` makes the kernel copy by reading and writing.
    fn copy_file_range(
        &self,
        caller: &Caller,
        source: &FileRange,
        target: &FileRange,
        length: u64,
    ) -> Reply<usize> {
        Err(Errno::NOSYS)
    }
}
