//! Open files and their bytes.

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use crate::buffer::total_length;
use crate::fuse::abi;
use crate::fuse::operations::{
    AllocateMode, FileRange, READ_PIECES_MAX, ReadOutcome, ReadRequest, Reply, WriteRequest,
};
use crate::fuse::privileges::drop_privileges;

use super::{Answer, OldPages, OpenedHandle, Request, put, put_entry};

const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl Request<'_> {
    pub fn open(&mut self, out: &mut Vec<u8>) -> Reply<()> {
        let input: abi::OpenIn = self.body.take()?;
        let flags = input.flags as i32;
        let opened = self.context.fs.open(&self.caller, self.inode, flags)?;
        self.opened = Some(OpenedHandle::File(opened.handle));
        if input.open_flags & abi::OPEN_KILL_SUIDGID != 0 {
            // Afterwards: what is known of the file now is not older than the open.
            if let Err(error) = drop_privileges(&self.context, &self.caller, self.inode) {
                self.close_opened();
                return Err(error);
            }
        }
        put(out, &self.open_out(&opened, flags));
        Ok(())
    }

    pub fn create(&mut self, out: &mut Vec<u8>) -> Reply<()> {
        let input: abi::CreateIn = self.body.take()?;
        let name = self.body.name()?;
        let flags = input.flags as i32;
        let permissions = input.mode & 0o7777;
        let (mut entry, opened) =
            self.context.fs.create(&self.caller, self.inode, name, permissions, flags)?;
        // The name existed after all, and was cut by a caller who may not keep its privileges.
        if input.open_flags & abi::OPEN_KILL_SUIDGID != 0
            && flags & OFlags::TRUNC.bits() as i32 != 0
            && entry.attributes.permissions & 0o6000 != permissions & 0o6000
        {
            match drop_privileges(&self.context, &self.caller, entry.attributes.inode) {
                Ok(Some(permissions)) => entry.attributes.permissions = permissions,
                Ok(None) => {}
                Err(error) => {
                    self.context.fs.release(entry.attributes.inode, opened.handle);
                    return Err(error);
                }
            }
        }
        put_entry(out, &entry);
        put(out, &self.open_out(&opened, flags));
        Ok(())
    }

    pub fn read(&mut self) -> Reply<Answer> {
        let input: abi::ReadIn = self.body.take()?;
        let size = input.size as usize;
        if size > self.payload.len() {
            return Err(Errno::INVAL);
        }
        let request = ReadRequest {
            inode: self.inode,
            handle: input.fh,
            offset: input.offset,
            flags: input.flags as i32,
        };
        let into = self.payload.slice(0..size);
        match self.context.fs.read(&self.caller, &request, &into)? {
            ReadOutcome::Placed(length) => {
                assert!(length <= size, "a read places no more than was asked for");
                Ok(Answer::Piece(if length == size { into } else { into.slice(0..length) }))
            }
            ReadOutcome::Held(pieces) => {
                assert!(pieces.len() <= READ_PIECES_MAX, "a read answers in few pieces");
                assert!(total_length(&pieces) <= size, "a read gives no more than was asked for");
                Ok(Answer::Pieces(pieces))
            }
        }
    }

    pub fn write(&mut self, out: &mut Vec<u8>) -> Reply<Answer> {
        let input: abi::WriteIn = self.body.take()?;
        let size = input.size as usize;
        if size != self.payload_length {
            return Err(Errno::INVAL);
        }
        let request = WriteRequest {
            inode: self.inode,
            handle: input.fh,
            offset: input.offset,
            flags: input.flags as i32,
            from_page_cache: input.write_flags & abi::WRITE_CACHE != 0,
            clears_set_id: input.write_flags & abi::WRITE_KILL_SUIDGID != 0,
        };
        let written = self.context.fs.write(&self.caller, &request, self.payload.slice(0..size))?;
        assert!(written <= size, "a write takes no more than it was given");
        put(out, &abi::WriteOut { size: written as u32, padding: 0 });
        // Dropping pages that the write itself holds would wait for its answer.
        let is_direct = flags_direct(request.flags) && !request.from_page_cache;
        if !is_direct || !self.context.fs.has_cached_pages(input.fh, request.flags) {
            return Ok(Answer::Out);
        }
        let appends = request.flags & OFlags::APPEND.bits() as i32 != 0;
        let (offset, length) = if appends { (0, 0) } else { (input.offset, written as u64) };
        Ok(Answer::AfterDropping(OldPages { inode: self.inode, offset, length, number: None }))
    }

    pub fn flush(&mut self) -> Reply<()> {
        let input: abi::FlushIn = self.body.take()?;
        self.context.fs.flush(&self.caller, self.inode, input.fh)
    }

    pub fn release(&mut self) -> Reply<()> {
        let input: abi::ReleaseIn = self.body.take()?;
        self.context.fs.release(self.inode, input.fh);
        Ok(())
    }

    pub fn fsync(&mut self) -> Reply<()> {
        let input: abi::FsyncIn = self.body.take()?;
        let data_only = input.flags & abi::FSYNC_FDATASYNC != 0;
        self.context.fs.fsync(&self.caller, self.inode, input.fh, data_only)
    }

    pub fn fallocate(&mut self) -> Reply<()> {
        let input: abi::FallocateIn = self.body.take()?;
        let mode = allocate_mode(input.mode).ok_or(Errno::OPNOTSUPP)?;
        input.offset.checked_add(input.length).filter(|&end| end <= i64::MAX as u64).ok_or(Errno::FBIG)?;
        self.context.fs.fallocate(&self.caller, self.inode, input.fh, mode, input.offset, input.length)
    }

    pub fn lseek(&mut self, out: &mut Vec<u8>) -> Reply<()> {
        let input: abi::LseekIn = self.body.take()?;
        let fs = self.context.fs;
        let offset = match input.whence {
            SEEK_DATA => fs.seek_data(&self.caller, self.inode, input.fh, input.offset)?,
            SEEK_HOLE => fs.seek_hole(&self.caller, self.inode, input.fh, input.offset)?,
            _ => return Err(Errno::INVAL),
        };
        put(out, &abi::LseekOut { offset });
        Ok(())
    }

    pub fn copy_file_range(&mut self, out: &mut Vec<u8>) -> Reply<()> {
        let input: abi::CopyFileRangeIn = self.body.take()?;
        if input.flags != 0 {
            return Err(Errno::INVAL);
        }
        let source = FileRange { inode: self.inode, handle: input.fh_in, offset: input.offset_in };
        let target = FileRange { inode: input.inode_out, handle: input.fh_out, offset: input.offset_out };
        // The answer has 32 bits.
        let length = input.length.min(u64::from(u32::MAX));
        let copied = self.context.fs.copy_file_range(&self.caller, &source, &target, length)?;
        assert!(copied as u64 <= length, "no more is copied than was asked for");
        put(out, &abi::WriteOut { size: copied as u32, padding: 0 });
        Ok(())
    }
}

fn flags_direct(flags: i32) -> bool {
    OFlags::from_bits_retain(flags as u32).contains(OFlags::DIRECT)
}

fn allocate_mode(mode: u32) -> Option<AllocateMode> {
    const KEEP_PUNCH: FallocateFlags = FallocateFlags::KEEP_SIZE.union(FallocateFlags::PUNCH_HOLE);
    const KEEP_ZERO: FallocateFlags = FallocateFlags::KEEP_SIZE.union(FallocateFlags::ZERO_RANGE);
    match FallocateFlags::from_bits_retain(mode) {
        flags if flags.is_empty() => Some(AllocateMode::Extend),
        FallocateFlags::KEEP_SIZE => Some(AllocateMode::KeepLength),
        KEEP_PUNCH => Some(AllocateMode::PunchHole),
        FallocateFlags::ZERO_RANGE => Some(AllocateMode::Zero { keep_length: false }),
        KEEP_ZERO => Some(AllocateMode::Zero { keep_length: true }),
        _ => None,
    }
}
