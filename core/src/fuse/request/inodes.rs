//! Inodes: attributes, extended attributes, links' targets, references.

use rustix::fs::XattrFlags;
use rustix::io::Errno;

use crate::fuse::NAME_BYTES_MAX;
use crate::fuse::abi::{self, fattr};
use crate::fuse::attributes::{attr_out, time_ns};
use crate::fuse::operations::{Reply, SetAttributes, SetTime, XattrMode};
use crate::fuse::privileges::CAPABILITY;

use super::{Answer, Request, put};

/// Most bytes of an extended attribute, and of a list of their names: the kernel's own limits.
const XATTR_BYTES_MAX: usize = 64 << 10;

/// Space of extended attributes that only root reads.
const TRUSTED: &[u8] = b"trusted.";

impl Request<'_> {
    pub fn getattr(&mut self, out: &mut Vec<u8>) -> Reply<Answer> {
        let input: abi::GetAttrIn = self.body.take()?;
        let handle = (input.flags & abi::GETATTR_FH != 0).then_some(input.fh);
        let reply = self.context.fs.getattr(&self.caller, self.inode, handle)?;
        put(out, &attr_out(&reply));
        Ok(self.answer_with(&reply.attributes))
    }

    pub fn setattr(&mut self, out: &mut Vec<u8>) -> Reply<()> {
        let input: abi::SetAttrIn = self.body.take()?;
        let change = wanted(&input);
        put(out, &attr_out(&self.context.fs.setattr(&self.caller, self.inode, &change)?));
        Ok(())
    }

    pub fn readlink(&mut self, out: &mut Vec<u8>) -> Reply<()> {
        let target = self.context.fs.readlink(&self.caller, self.inode)?;
        out.extend_from_slice(&target);
        Ok(())
    }

    pub fn setxattr(&mut self) -> Reply<()> {
        let input: abi::SetXattrIn = self.body.take()?;
        let name = attribute_name(self.body.text()?)?;
        let value = self.body.bytes(input.size as usize)?;
        let mode = match XattrFlags::from_bits_retain(input.flags) {
            flags if flags.is_empty() => XattrMode::Set,
            XattrFlags::CREATE => XattrMode::Create,
            XattrFlags::REPLACE => XattrMode::Replace,
            _ => return Err(Errno::INVAL),
        };
        self.context.fs.setxattr(&self.caller, self.inode, name, value, mode)
    }

    pub fn getxattr(&mut self, out: &mut Vec<u8>) -> Reply<()> {
        let input: abi::GetXattrIn = self.body.take()?;
        let name = self.body.text()?;
        // Asked for before the first write of each file.
        if name == CAPABILITY {
            return Err(Errno::NODATA);
        }
        let name = attribute_name(name)?;
        let value = self.context.fs.getxattr(&self.caller, self.inode, name)?;
        put_sized(out, &value, input.size as usize)
    }

    pub fn listxattr(&mut self, out: &mut Vec<u8>) -> Reply<()> {
        let input: abi::GetXattrIn = self.body.take()?;
        let names = self.context.fs.listxattr(&self.caller, self.inode)?;
        // As local file systems do: only root may know of them.
        let is_shown = |name: &Vec<u8>| self.caller.uid == 0 || !name.starts_with(TRUSTED);
        let list: Vec<u8> =
            names.into_iter().filter(is_shown).flat_map(|name| name.into_iter().chain([0])).collect();
        put_sized(out, &list, input.size as usize)
    }

    pub fn removexattr(&mut self) -> Reply<()> {
        let name = attribute_name(self.body.text()?)?;
        self.context.fs.removexattr(&self.caller, self.inode, name)
    }

    pub fn statfs(&mut self, out: &mut Vec<u8>) -> Reply<()> {
        let statistics = self.context.fs.statfs(&self.caller, self.inode)?;
        let value = abi::StatFsOut {
            blocks: statistics.blocks,
            bfree: statistics.blocks_free,
            bavail: statistics.blocks_available,
            files: statistics.inodes,
            ffree: statistics.inodes_free,
            bsize: statistics.block_bytes,
            namelen: NAME_BYTES_MAX as u32,
            frsize: statistics.block_bytes,
            ..Default::default()
        };
        put(out, &value);
        Ok(())
    }

    pub fn forget(&mut self) {
        if let Ok(input) = self.body.take::<abi::ForgetIn>() {
            self.context.fs.forget(self.inode, input.nlookup);
        }
    }

    pub fn forget_many(&mut self) {
        let Ok(input) = self.body.take::<abi::BatchForgetIn>() else { return };
        // A wrong count ends the list where the bytes end.
        let inodes: Vec<(u64, u64)> = (0..input.count)
            .map_while(|_| self.body.take::<abi::ForgetOne>().ok())
            .map(|one| (one.inode, one.nlookup))
            .collect();
        self.context.fs.forget_many(&inodes);
    }
}

/// Names that are stored. Those that would have to be obeyed are not: POSIX ACLs (`system.`), file capabilities.
fn attribute_name(name: &[u8]) -> Reply<&[u8]> {
    let spaces: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    let known = spaces.iter().any(|space| name.len() > space.len() && name.starts_with(space));
    if known && name != CAPABILITY { Ok(name) } else { Err(Errno::OPNOTSUPP) }
}

/// The protocol of getxattr(2): the length if `room` is 0, else the bytes, or `ERANGE` if they do not fit.
fn put_sized(out: &mut Vec<u8>, bytes: &[u8], room: usize) -> Reply<()> {
    if bytes.len() > XATTR_BYTES_MAX {
        return Err(Errno::TOOBIG);
    }
    if room == 0 {
        put(out, &abi::GetXattrOut { size: bytes.len() as u32, padding: 0 });
    } else if bytes.len() <= room {
        out.extend_from_slice(bytes);
    } else {
        return Err(Errno::RANGE);
    }
    Ok(())
}

fn wanted(input: &abi::SetAttrIn) -> SetAttributes {
    let set = |flag: u32| input.valid & flag != 0;
    let time = |flag: u32, now: u32, seconds: u64, nanoseconds: u32| {
        if set(now) {
            Some(SetTime::Now)
        } else {
            set(flag).then(|| SetTime::At(time_ns(seconds, nanoseconds)))
        }
    };
    SetAttributes {
        handle: set(fattr::FH).then_some(input.fh),
        permissions: set(fattr::MODE).then_some(input.mode & 0o7777),
        uid: set(fattr::UID).then_some(input.uid),
        gid: set(fattr::GID).then_some(input.gid),
        length: set(fattr::SIZE).then_some(input.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, input.atime, input.atimensec),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, input.mtime, input.mtimensec),
        clears_set_id: set(fattr::KILL_SUIDGID),
        ctime_ns: set(fattr::CTIME).then(|| time_ns(input.ctime, input.ctimensec)),
    }
}
