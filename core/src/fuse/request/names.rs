//! Names: looking up, making, moving, removing, listing.

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use crate::fuse::abi;
use crate::fuse::attributes::{absent, kind_of};
use crate::fuse::directory::DirectorySink;
use crate::fuse::operations::{FileKind, PageCache, RenameMode, Reply};

use super::{Answer, OpenedHandle, Request, put, put_entry};

impl Request<'_> {
    pub fn lookup(&mut self, out: &mut Vec<u8>) -> Reply<Answer> {
        let fs = self.context.fs;
        let ttl = self.context.options.negative_ttl;
        let found = match self.body.0 {
            b".\0" => fs.find(&self.caller, self.inode)?,
            b"..\0" => fs.parent(&self.caller, self.inode)?,
            _ => match fs.lookup(&self.caller, self.inode, self.body.name()?) {
                Err(Errno::NOENT) if !ttl.is_zero() => {
                    put(out, &absent(ttl));
                    return Ok(Answer::Out);
                }
                result => result?,
            },
        };
        put_entry(out, &found);
        Ok(self.answer_with(&found.attributes))
    }

    pub fn mknod(&mut self, out: &mut Vec<u8>) -> Reply<()> {
        let input: abi::MknodIn = self.body.take()?;
        let name = self.body.name()?;
        let kind = kind_of(input.mode).ok_or(Errno::INVAL)?;
        if matches!(kind, FileKind::Directory | FileKind::Symlink) {
            return Err(Errno::INVAL);
        }
        let permissions = input.mode & 0o7777;
        let entry = self.context.fs.mknod(&self.caller, self.inode, name, kind, permissions, input.rdev)?;
        put_entry(out, &entry);
        Ok(())
    }

    pub fn mkdir(&mut self, out: &mut Vec<u8>) -> Reply<()> {
        let input: abi::MkdirIn = self.body.take()?;
        let name = self.body.name()?;
        let entry = self.context.fs.mkdir(&self.caller, self.inode, name, input.mode & 0o7777)?;
        put_entry(out, &entry);
        Ok(())
    }

    pub fn unlink(&mut self) -> Reply<()> {
        let name = self.body.name()?;
        self.context.fs.unlink(&self.caller, self.inode, name)
    }

    pub fn rmdir(&mut self) -> Reply<()> {
        let name = self.body.name()?;
        self.context.fs.rmdir(&self.caller, self.inode, name)
    }

    pub fn symlink(&mut self, out: &mut Vec<u8>) -> Reply<()> {
        let name = self.body.name()?;
        let target = self.body.text()?;
        let entry = self.context.fs.symlink(&self.caller, self.inode, name, target)?;
        put_entry(out, &entry);
        Ok(())
    }

    pub fn rename(&mut self) -> Reply<()> {
        let input: abi::RenameIn = self.body.take()?;
        self.rename_to(input.new_parent, RenameMode::Replace)
    }

    pub fn rename2(&mut self) -> Reply<()> {
        let input: abi::Rename2In = self.body.take()?;
        let mode = match RenameFlags::from_bits_retain(input.flags) {
            flags if flags.is_empty() => RenameMode::Replace,
            RenameFlags::NOREPLACE => RenameMode::NoReplace,
            RenameFlags::EXCHANGE => RenameMode::Exchange,
            _ => return Err(Errno::INVAL),
        };
        self.rename_to(input.new_parent, mode)
    }

    fn rename_to(&mut self, new_parent: u64, mode: RenameMode) -> Reply<()> {
        let source = self.body.name()?;
        let target = self.body.name()?;
        self.context.fs.rename(&self.caller, (self.inode, source), (new_parent, target), mode)
    }

    pub fn link(&mut self, out: &mut Vec<u8>) -> Reply<()> {
        let input: abi::LinkIn = self.body.take()?;
        let name = self.body.name()?;
        let entry = self.context.fs.link(&self.caller, input.inode, self.inode, name)?;
        put_entry(out, &entry);
        Ok(())
    }

    pub fn opendir(&mut self, out: &mut Vec<u8>) -> Reply<()> {
        let _: abi::OpenIn = self.body.take()?;
        let opened = self.context.fs.opendir(&self.caller, self.inode)?;
        self.opened = Some(OpenedHandle::Directory(opened.handle));
        let open_flags = match opened.cache {
            PageCache::Keep => abi::fopen::CACHE_DIR | abi::fopen::KEEP_CACHE,
            PageCache::Drop => abi::fopen::CACHE_DIR,
            PageCache::Bypass => 0,
        };
        put(out, &abi::OpenOut { fh: opened.handle, open_flags, backing_id: 0 });
        Ok(())
    }

    pub fn readdir(&mut self, out: &mut Vec<u8>, plus: bool) -> Reply<()> {
        let input: abi::ReadIn = self.body.take()?;
        let limit = (input.size as usize).min(self.context.agreement.request_bytes);
        let mut sink = DirectorySink::new(out, limit, plus);
        self.context.fs.readdir(&self.caller, self.inode, input.fh, input.offset, &mut sink)
    }

    pub fn releasedir(&mut self) -> Reply<()> {
        let input: abi::ReleaseIn = self.body.take()?;
        self.context.fs.releasedir(self.inode, input.fh);
        Ok(())
    }

    pub fn fsyncdir(&mut self) -> Reply<()> {
        let input: abi::FsyncIn = self.body.take()?;
        let data_only = input.flags & abi::FSYNC_FDATASYNC != 0;
        self.context.fs.fsyncdir(&self.caller, self.inode, input.fh, data_only)
    }
}
