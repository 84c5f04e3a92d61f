//! Notifications to the kernel: invalidate cached pages and names.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::Weak;

use rustix::io::{Errno, writev};
use zerocopy::IntoBytes;

use super::abi;
use super::operations::Reply;

/// Drops what the kernel has cached. Cheap to clone; does nothing once the session has ended.
///
/// A call may wait until requests on the same inode or directory are answered: never make it from within an
/// operation on that inode, nor while holding a lock that operations take.
#[derive(Clone, Debug)]
pub struct Notifier {
    device: Weak<OwnedFd>,
}

impl Notifier {
    pub(super) fn new(device: Weak<OwnedFd>) -> Self {
        Notifier { device }
    }

    /// A notifier of no session, for tests of file systems without a mount.
    pub fn disconnected() -> Self {
        Notifier { device: Weak::new() }
    }

    /// Attributes, and cached pages from `offset` on (`length` 0: to the end).
    pub fn inval_inode(&self, inode: u64, offset: u64, length: u64) -> Reply<()> {
        let message = abi::NotifyInvalInodeOut { inode, offset: offset as i64, length: length as i64 };
        self.send(abi::NOTIFY_INVAL_INODE, &[message.as_bytes()])
    }

    /// Attributes only; cached pages stay.
    pub fn inval_attributes(&self, inode: u64) -> Reply<()> {
        let message = abi::NotifyInvalInodeOut { inode, offset: -1, length: 0 };
        self.send(abi::NOTIFY_INVAL_INODE, &[message.as_bytes()])
    }

    /// A name: the next use looks it up again.
    pub fn inval_entry(&self, parent: u64, name: &[u8]) -> Reply<()> {
        self.entry(parent, name, 0)
    }

    /// A name's time-out, keeping what is below it.
    pub fn expire_entry(&self, parent: u64, name: &[u8]) -> Reply<()> {
        self.entry(parent, name, abi::EXPIRE_ONLY)
    }

    /// A name that another client has removed: watchers (inotify) are notified too.
    pub fn delete(&self, parent: u64, child: u64, name: &[u8]) -> Reply<()> {
        let name_length = name.len() as u32;
        let message = abi::NotifyDeleteOut { parent, child, name_length, padding: 0 };
        self.send(abi::NOTIFY_DELETE, &[message.as_bytes(), name, b"\0"])
    }

    fn entry(&self, parent: u64, name: &[u8], flags: u32) -> Reply<()> {
        let message = abi::NotifyInvalEntryOut { parent, name_length: name.len() as u32, flags };
        self.send(abi::NOTIFY_INVAL_ENTRY, &[message.as_bytes(), name, b"\0"])
    }

    fn send(&self, code: i32, parts: &[&[u8]]) -> Reply<()> {
        let Some(device) = self.device.upgrade() else { return Ok(()) };
        let length: usize = parts.iter().map(|part| part.len()).sum();
        let len = (size_of::<abi::OutHeader>() + length) as u32;
        let header = abi::OutHeader { len, error: code, unique: 0 };
        let mut slices = vec![IoSlice::new(header.as_bytes())];
        slices.extend(parts.iter().map(|part| IoSlice::new(part)));
        match writev(&*device, &slices) {
            // ENOENT: the kernel has not cached it.
            Ok(_) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
