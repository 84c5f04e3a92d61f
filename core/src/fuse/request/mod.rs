//! One request: taken apart, handed to the file system, answered.
//!
//! The operations are grouped as the trait is: `names` (directories and what is in them), `files` (open files and
//! their bytes), `inodes` (attributes, extended attributes, references).

mod files;
mod inodes;
mod names;
#[cfg(test)]
pub(super) mod tests;

use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::buffer::Placement;

use super::abi::{self, Opcode};
use super::attributes;
use super::body::Body;
use super::caller::Caller;
use super::file_system::FileSystem;
use super::negotiate::Agreement;
use super::notify::Notifier;
use super::operations::{Attributes, Entry, Opened, PageCache, Reply};
use super::options::SessionOptions;

/// What every request needs to know of its session.
pub struct Context<'a> {
    pub fs: &'a dyn FileSystem,
    pub options: &'a SessionOptions,
    pub agreement: &'a Agreement,
    pub notifier: &'a Notifier,
}

/// A request as it was read.
pub struct Request<'a> {
    pub context: Context<'a>,
    pub caller: Caller,
    /// The inode that the request is about.
    pub inode: u64,
    pub opcode: u32,
    pub body: Body<'a>,
    /// Page-aligned memory of `request_bytes`, for the payload: of a WRITE, or to read into.
    pub payload: &'a Placement,
    /// Bytes of the payload that came with the request.
    pub payload_length: usize,
    /// What it has opened.
    pub opened: Option<OpenedHandle>,
}

/// A handle that the kernel knows only once the request is answered.
pub enum OpenedHandle {
    File(u64),
    Directory(u64),
}

/// How an operation ends whose program is killed while it waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Ending {
    /// It changes something, and is answered when that is done.
    OnlyWhenDone,
    /// It is answered at once, and continues.
    Answered,
    /// It is answered at once, and may stop where it waits.
    Cancelled,
}

impl Ending {
    pub fn from_number(number: u8) -> Ending {
        [Ending::OnlyWhenDone, Ending::Answered, Ending::Cancelled][usize::from(number)]
    }
}

/// How a request of that kind ends with its program.
pub fn ending(opcode: u32, body: &[u8]) -> Ending {
    use Opcode::*;
    match Opcode::from_wire(opcode) {
        Some(
            Lookup | GetAttr | ReadLink | Read | ReadDir | ReadDirPlus | GetXattr | ListXattr | StatFs
            | Lseek,
        ) => Ending::Cancelled,
        // An fsync may be writing back what others wait for.
        Some(Fsync | FsyncDir | OpenDir) => Ending::Answered,
        Some(Open) => match Body(body).take::<abi::OpenIn>() {
            Ok(input)
                if input.flags & rustix::fs::OFlags::TRUNC.bits() == 0
                    && input.open_flags & abi::OPEN_KILL_SUIDGID == 0 =>
            {
                Ending::Answered
            }
            _ => Ending::OnlyWhenDone,
        },
        _ => Ending::OnlyWhenDone,
    }
}

/// Pages of the kernel that are older than what it learns next.
#[derive(Clone, Copy, Debug)]
pub struct OldPages {
    pub inode: u64,
    pub offset: u64,
    /// 0: to the end.
    pub length: u64,
    /// Of `FileSystem::outdates_pages`.
    pub number: Option<u64>,
}

/// What goes back to the kernel, beside what an operation has put into `out`.
pub enum Answer {
    /// The kernel expects none.
    Nothing,
    /// The bytes in `out`.
    Out,
    /// The same, once the kernel has dropped these pages.
    AfterDropping(OldPages),
    /// Bytes without a copy: the usual single piece, or several.
    Piece(Placement),
    Pieces(Vec<Placement>),
}

/// Do what `request` asks for. `out` is empty; on success the fixed part of the answer is in it.
pub fn perform(request: &mut Request<'_>, out: &mut Vec<u8>) -> Reply<Answer> {
    use Opcode::*;
    assert!(out.is_empty(), "an answer begins with its fixed part");
    let opcode = Opcode::from_wire(request.opcode).ok_or(Errno::NOSYS)?;
    match opcode {
        Lookup => return request.lookup(out),
        Mknod => request.mknod(out)?,
        Mkdir => request.mkdir(out)?,
        Unlink => request.unlink()?,
        Rmdir => request.rmdir()?,
        Symlink => request.symlink(out)?,
        Rename => request.rename()?,
        Rename2 => request.rename2()?,
        Link => request.link(out)?,
        OpenDir => request.opendir(out)?,
        ReadDir => request.readdir(out, false)?,
        ReadDirPlus => request.readdir(out, true)?,
        ReleaseDir => request.releasedir()?,
        FsyncDir => request.fsyncdir()?,

        Open => request.open(out)?,
        Create => request.create(out)?,
        Read => return request.read(),
        Write => return request.write(out),
        Flush => request.flush()?,
        Release => request.release()?,
        Fsync => request.fsync()?,
        Fallocate => request.fallocate()?,
        Lseek => request.lseek(out)?,
        CopyFileRange => request.copy_file_range(out)?,

        GetAttr => return request.getattr(out),
        SetAttr => request.setattr(out)?,
        ReadLink => request.readlink(out)?,
        SetXattr => request.setxattr()?,
        GetXattr => request.getxattr(out)?,
        ListXattr => request.listxattr(out)?,
        RemoveXattr => request.removexattr()?,
        StatFs => request.statfs(out)?,
        Forget => {
            request.forget();
            return Ok(Answer::Nothing);
        }
        BatchForget => {
            request.forget_many();
            return Ok(Answer::Nothing);
        }

        // The kernel itself checks (default_permissions); with ENOSYS it does not ask again.
        Access => return Err(Errno::NOSYS),
        Ioctl => return Err(Errno::NOTTY),
        // Answered by the session before it comes here.
        Init | Interrupt => return Err(Errno::IO),
        Destroy => {}
    }
    Ok(Answer::Out)
}

fn put(out: &mut Vec<u8>, value: &(impl IntoBytes + zerocopy::Immutable)) {
    out.extend_from_slice(value.as_bytes());
}

fn put_entry(out: &mut Vec<u8>, entry: &Entry) {
    put(out, &attributes::entry_out(entry));
}

impl Request<'_> {
    /// Give back what was opened for a program that does not get it.
    pub fn close_opened(&mut self) {
        match self.opened.take() {
            Some(OpenedHandle::File(handle)) => self.context.fs.release(self.inode, handle),
            Some(OpenedHandle::Directory(handle)) => self.context.fs.releasedir(self.inode, handle),
            None => {}
        }
    }

    /// Answer with `out`, which shows these attributes.
    fn answer_with(&self, shown: &Attributes) -> Answer {
        match self.context.fs.outdates_pages(shown) {
            Some(number) => Answer::AfterDropping(OldPages {
                inode: shown.inode,
                offset: 0,
                length: 0,
                number: Some(number),
            }),
            None => Answer::Out,
        }
    }

    /// The kernel's form of an open file.
    fn open_out(&self, opened: &Opened, flags: i32) -> abi::OpenOut {
        // A descriptor with O_DIRECT that the kernel knows to be direct may write in parallel.
        let direct = flags & rustix::fs::OFlags::DIRECT.bits() as i32 != 0;
        let open_flags = match opened.cache {
            _ if direct || self.context.options.bypass_cache => {
                abi::fopen::DIRECT_IO | abi::fopen::PARALLEL_DIRECT_WRITES
            }
            PageCache::Bypass => abi::fopen::DIRECT_IO | abi::fopen::PARALLEL_DIRECT_WRITES,
            PageCache::Keep => abi::fopen::KEEP_CACHE,
            PageCache::Drop => 0,
        };
        // A close that has nothing to report costs no request.
        let reads_only = flags & rustix::fs::OFlags::RWMODE.bits() as i32 == 0;
        let flush = if reads_only { abi::fopen::NOFLUSH } else { 0 };
        abi::OpenOut { fh: opened.handle, open_flags: open_flags | flush, backing_id: 0 }
    }
}
