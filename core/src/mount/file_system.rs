//! The client as the file system of a mount: it links the kernel's calls to files, names and the metadata service.
//!
//! The kernel has checked permissions (F1), so calls go out as root; where the caller will own what is made, they go
//! out in its name. Inode numbers are the cluster's own, so there is nothing to count for `forget`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::lock::{Mutex, RwLock};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::readdir::{Directory, cookie};
use crate::buffer::Placement;
use crate::client::{
    Client, CreateOptions, File, Identity, IoMode, LISTED_MAX, MetadataCache, NameLookup, OpenOptions,
    WriteOffset, inode_path, name_path, set_attributes, set_attributes_deferred,
};
use crate::error::{Error, Kind};
use crate::fuse::{
    AllocateMode, AttributeReply, Attributes, Caller, DirectorySink, Entry, FileKind, FileSystem,
    FileSystemStatistics, Notifier, Opened, PageCache, ReadOutcome, ReadRequest, RenameMode, Reply,
    SetAttributes, SetTime, WriteRequest, XattrMode,
};
use crate::wire::pb;

/// What stat calls the best size of a transfer: what the kernel reads ahead at least.
const BLOCK_BYTES: u32 = 128 << 10;
/// Unit of `Attributes::blocks`.
const SECTOR_BYTES: u64 = 512;
/// The bit of O_SYNC that O_DSYNC is alone; rustix takes the two for one.
const O_DSYNC: i32 = 0o10000;
/// How old the free space may be that fallocate goes by.
const FREE_BYTES_AGE: Duration = Duration::from_secs(1);
/// Offsets of the first two entries of a directory; those of the others are cookies, which are greater.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;
/// Names that are refused without asking: the metadata service keeps no access control lists.
const ACL_PREFIX: &[u8] = b"system.posix_acl_";

/// How consistent a mount is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// An open of a file that was closed elsewhere sees what was written.
    CloseToOpen,
    /// Every read sees every acknowledged write; nothing is cached.
    Strict,
}

/// A client as a mounted file system.
pub struct MountedFs {
    client: Arc<Client>,
    consistency: Consistency,
    root: Arc<Identity>,
    files: RwLock<HashMap<u64, Handle>>,
    directories: Mutex<HashMap<u64, Arc<Mutex<Directory>>>>,
    /// Free space, and when the metadata service was asked for it.
    free: Mutex<Option<(Instant, u64)>>,
    last_handle: AtomicU64,
    notifier: OnceLock<Notifier>,
}

/// An open file of the kernel.
struct Handle {
    file: Arc<File>,
    /// The kernel drops its pages at the reply to the open (`MetadataCache::page_cache_at`). 0: it has.
    invalidation: AtomicU64,
}

impl Handle {
    /// The kernel has made a request with the handle, so it has heard of the open.
    fn used(&self, names: &MetadataCache) -> Arc<File> {
        if self.invalidation.load(Ordering::Relaxed) != 0 {
            // Of two threads with the first requests, one takes the number.
            let invalidation = self.invalidation.swap(0, Ordering::Relaxed);
            if invalidation != 0 {
                names.page_cache_dropped(self.file.inode().id(), invalidation);
            }
        }
        self.file.clone()
    }
}

fn errno(error: Error) -> Errno {
    Errno::from_raw_os_error(error.errno())
}

/// An inode that the kernel knows and the cluster does not: its name must be looked up again.
fn stale(error: Error) -> Errno {
    if error.kind() == Kind::NotFound { Errno::STALE } else { errno(error) }
}

fn kind_of(inode: &pb::Inode) -> FileKind {
    match inode.r#type() {
        pb::FileType::Directory => FileKind::Directory,
        pb::FileType::Symlink => FileKind::Symlink,
        pb::FileType::Fifo => FileKind::Fifo,
        pb::FileType::Socket => FileKind::Socket,
        pb::FileType::CharDevice => FileKind::CharDevice,
        pb::FileType::BlockDevice => FileKind::BlockDevice,
        pb::FileType::Regular | pb::FileType::TypeInvalid => FileKind::Regular,
    }
}

fn type_of(kind: FileKind) -> pb::FileType {
    match kind {
        FileKind::Regular => pb::FileType::Regular,
        FileKind::Directory => pb::FileType::Directory,
        FileKind::Symlink => pb::FileType::Symlink,
        FileKind::Fifo => pb::FileType::Fifo,
        FileKind::Socket => pb::FileType::Socket,
        FileKind::CharDevice => pb::FileType::CharDevice,
        FileKind::BlockDevice => pb::FileType::BlockDevice,
    }
}

/// What stat(2) shows of an inode.
pub fn attributes(inode: &pb::Inode) -> Attributes {
    Attributes {
        inode: inode.id,
        kind: kind_of(inode),
        permissions: inode.permissions,
        links: inode.link_count,
        uid: inode.uid,
        gid: inode.gid,
        device: inode.device,
        length: inode.length,
        blocks: inode.length.div_ceil(SECTOR_BYTES),
        block_bytes: BLOCK_BYTES,
        atime_ns: inode.atime_ns,
        mtime_ns: inode.mtime_ns,
        ctime_ns: inode.ctime_ns,
    }
}

/// The time at which a directory changed with this entry of it; `None` where its count of links may have changed too.
fn time_of(inode: &pb::Inode) -> Option<i64> {
    (inode.r#type() != pb::FileType::Directory).then_some(inode.ctime_ns)
}

fn open_options(flags: i32) -> OpenOptions {
    let flags = OFlags::from_bits_retain(flags as u32);
    let mode = flags & OFlags::RWMODE;
    OpenOptions {
        read: mode != OFlags::WRONLY,
        write: mode == OFlags::WRONLY || mode == OFlags::RDWR,
        // The kernel's flags come with every write.
        append: false,
        truncate: flags.contains(OFlags::TRUNC),
        direct: flags.contains(OFlags::DIRECT),
        follow: false,
    }
}

/// Whether a write with these flags has to be durable when it returns, and if so whether only its data: O_DSYNC, which
/// the kernel also sets for RWF_DSYNC. The kernel follows a write to its page cache with an FSYNC; of a direct one it
/// only hands down the flags.
fn synchronous(flags: i32) -> Option<bool> {
    (flags & O_DSYNC != 0).then(|| !OFlags::from_bits_retain(flags as u32).contains(OFlags::SYNC))
}

impl MountedFs {
    pub fn new(client: Arc<Client>, consistency: Consistency) -> MountedFs {
        MountedFs {
            client,
            consistency,
            root: Arc::default(),
            files: RwLock::new(HashMap::new()),
            directories: Mutex::new(HashMap::new()),
            free: Mutex::new(None),
            last_handle: AtomicU64::new(0),
            notifier: OnceLock::new(),
        }
    }

    fn is_strict(&self) -> bool {
        self.consistency == Consistency::Strict
    }

    /// In whose name something is made in `parent`.
    fn maker(&self, caller: &Caller, parent: u64) -> Reply<Arc<Identity>> {
        if caller.uid == 0 && caller.gid == 0 {
            return Ok(self.root.clone());
        }
        let groups = match caller.groups() {
            _ if caller.uid == 0 => Vec::new(),
            Some(groups) => groups,
            // Which groups it has cannot be seen from here. The kernel has, and lets it change the directory (F1).
            None => vec![self.getattr(caller, parent, None)?.attributes.gid],
        };
        Ok(Arc::new(Identity { uid: caller.uid, gid: caller.gid, groups }))
    }

    /// The identity under which an existing file is opened by create. `None`: as the `maker` says.
    fn opener(&self, caller: &Caller) -> Option<Arc<Identity>> {
        let groups = caller.named_group.and_then(|_| caller.all_groups())?;
        Some(Arc::new(Identity { uid: caller.uid, gid: caller.gid, groups }))
    }

    fn file(&self, handle: u64) -> Reply<Arc<File>> {
        let files = self.files.read();
        let handle = files.get(&handle).ok_or(Errno::BADF)?;
        Ok(handle.used(&self.client.shared().metadata_cache))
    }

    fn handle(&self) -> u64 {
        self.last_handle.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn keep(&self, file: Arc<File>, flags: i32) -> Opened {
        if self.mode(flags) == IoMode::Buffered {
            file.inode().set_cached_by_kernel();
        }
        let inode = file.inode().local_view();
        let invalidation =
            self.client.shared().metadata_cache.page_cache_at(inode.id, inode.change, inode.length);
        let cache = match self.consistency {
            Consistency::Strict => PageCache::Bypass,
            Consistency::CloseToOpen if invalidation.is_none() => PageCache::Keep,
            Consistency::CloseToOpen => PageCache::Drop,
        };
        let handle = self.handle();
        let invalidation = AtomicU64::new(invalidation.unwrap_or_default());
        let before = self.files.write().insert(handle, Handle { file, invalidation });
        assert!(before.is_none(), "a handle is given out once");
        Opened { handle, cache }
    }

    /// The kernel may still believe in attributes from before others changed the file: it would not read beyond the
    /// length that it had then.
    fn show_opened(&self, inode: u64, change: u64) {
        let names = &self.client.shared().metadata_cache;
        if names.is_shown(inode, change) {
            return;
        }
        if let Some(notifier) = self.notifier.get() {
            // ENOENT: it holds nothing of the inode.
            match notifier.inval_attributes(inode) {
                Ok(()) | Err(Errno::NOENT) => names.shown(inode, change),
                Err(error) => log::warn!("inode {inode}: the kernel keeps old attributes: {error}"),
            }
        }
    }

    /// A user is about to change the file's bytes. The kernel may still show the set-id bits that end with that.
    fn clear_set_id(&self, file: &File) {
        let inode = file.inode();
        if inode.clear_set_id()
            && let Some(notifier) = self.notifier.get()
            && let Err(error) = notifier.inval_attributes(inode.id())
        {
            log::warn!("inode {}: the kernel keeps old attributes: {error}", inode.id());
        }
    }

    /// An append went elsewhere than the kernel thought, because it did not know the end: its pages show the bytes in
    /// the wrong place. They cannot be dropped before the write is answered, which holds them.
    fn page_cache_is_wrong(&self, inode: u64) {
        self.client.shared().metadata_cache.page_cache_is_wrong(inode);
        let Some(notifier) = self.notifier.get().cloned() else { return };
        let drop_pages = move || notifier.inval_inode(inode, 0, 0);
        if let Err(error) = thread::Builder::new().name("luciola-notify".to_owned()).spawn(drop_pages) {
            log::warn!("inode {inode}: the kernel keeps misplaced pages until the next open: {error}");
        }
    }

    fn mode(&self, flags: i32) -> IoMode {
        let direct = OFlags::from_bits_retain(flags as u32).contains(OFlags::DIRECT);
        if direct || self.is_strict() { IoMode::Direct } else { IoMode::Buffered }
    }

    /// Return what the kernel is shown: with what was written here and is not synced yet.
    fn local_view(&self, inode: &pb::Inode) -> Attributes {
        attributes(&self.client.local_view(inode))
    }

    /// Free space of the cluster, at most `FREE_BYTES_AGE` old.
    fn free_bytes(&self) -> Reply<u64> {
        let known = *self.free.lock();
        if let Some((asked, bytes)) = known
            && asked.elapsed() < FREE_BYTES_AGE
        {
            return Ok(bytes);
        }
        // Not under the lock: calls that end early must not wait for this one.
        let asked = Instant::now();
        let bytes = self.client.meta().stat_fs(&self.root).map_err(errno)?.free_bytes;
        *self.free.lock() = Some((asked, bytes));
        Ok(bytes)
    }

    fn ttl(&self, left: Duration) -> Duration {
        if self.is_strict() { Duration::ZERO } else { left }
    }

    fn entry(&self, inode: &pb::Inode, left: Duration) -> Entry {
        let ttl = self.ttl(left);
        Entry { attributes: self.local_view(inode), generation: 0, name_ttl: ttl, attribute_ttl: ttl }
    }

    /// Puts an entry of a listing, with attributes if they are wanted and known: those of a directory in which something
    /// was changed here since it was listed are not, and those of an open file whose pages must be dropped are looked up.
    /// False: the sink is full.
    fn show(
        &self,
        dentry: &pb::Dentry,
        asked: Instant,
        left: Duration,
        sink: &mut DirectorySink<'_>,
    ) -> bool {
        let offset = cookie(dentry);
        let names = &self.client.shared().metadata_cache;
        if sink.wants_attributes()
            && let Some(inode) = &dentry.attributes
            && !match inode.r#type() {
                pb::FileType::Directory => names.have_changed_since(inode.id, asked),
                _ => {
                    self.client.files().find(inode.id).is_some_and(|open| {
                        names.has_outdated_pages(inode.id, inode.change.max(open.change()))
                    })
                }
            }
        {
            return sink.plus(&dentry.name, &self.entry(inode, left), offset);
        }
        let kind = kind_of(&pb::Inode { r#type: dentry.r#type, ..Default::default() });
        sink.plain(&dentry.name, dentry.inode, kind, offset)
    }

    /// The entry of a name that was just made.
    fn made(&self, parent: u64, name: &[u8], inode: &pb::Inode) -> Entry {
        let names = &self.client.shared().metadata_cache;
        names.changed(parent, name, Some(inode), time_of(inode));
        self.entry(inode, names.ttl())
    }

    fn ask(&self, parent: u64, name: &[u8]) -> Reply<Entry> {
        let names = &self.client.shared().metadata_cache;
        let asked = Instant::now();
        match self.client.meta().lookup(&self.root, parent, name) {
            Ok(inode) => {
                names.learn_name(parent, name, Some(inode.clone()), asked);
                Ok(self.entry(&inode, names.ttl().saturating_sub(asked.elapsed())))
            }
            Err(error) => {
                if error.kind() == Kind::NotFound {
                    names.learn_name(parent, name, None, asked);
                }
                Err(errno(error))
            }
        }
    }

    /// Lists a directory with attributes, as far as that is worth it, for look-ups to come.
    fn list(&self, parent: u64, after: Vec<u8>) {
        let asked = Instant::now();
        let mut entries: Vec<pb::Dentry> = Vec::new();
        let listed = loop {
            let last = entries.last().map_or(after.as_slice(), |entry| entry.name.as_slice()).to_vec();
            let request = pb::ListRequest {
                inode: parent,
                after: last,
                limit: (LISTED_MAX / 2) as u32,
                with_inodes: true,
                ..Default::default()
            };
            match self.client.meta().list(&self.root, request) {
                Ok(page) => {
                    let empty = page.entries.is_empty();
                    entries.extend(page.entries);
                    // Around a name in a large directory one page is enough.
                    if !page.more || empty || entries.len() >= LISTED_MAX || !after.is_empty() {
                        break Some((entries, page.more));
                    }
                }
                Err(error) => {
                    log::debug!("listing of {parent} ahead of look-ups: {error}");
                    break None;
                }
            }
        };
        self.client.shared().metadata_cache.finish_listing(parent, after, asked, listed);
    }
}

impl FileSystem for MountedFs {
    fn init(&self, notifier: Notifier) -> Reply<()> {
        let first = self.notifier.set(notifier).is_ok();
        assert!(first, "a file system is mounted once");
        Ok(())
    }

    fn destroy(&self) {
        let files: Vec<_> = self.files.write().drain().collect();
        for (_, Handle { file, .. }) in files {
            if let Err(error) = file.close() {
                log::error!("inode {}: {error}", file.inode().id());
            }
        }
        if let Err(error) = self.client.flush() {
            log::error!("unmount: {error}");
        }
    }

    fn lookup(&self, _: &Caller, parent: u64, name: &[u8]) -> Reply<Entry> {
        if self.is_strict() {
            return self.ask(parent, name);
        }
        let names = &self.client.shared().metadata_cache;
        let mut found = names.lookup(parent, name);
        if let NameLookup::List { after } = found {
            self.list(parent, after);
            found = names.lookup(parent, name);
        }
        match found {
            NameLookup::Known { inode, ttl } => Ok(self.entry(&inode, ttl)),
            NameLookup::Absent { .. } => Err(Errno::NOENT),
            NameLookup::List { after } => {
                names.finish_listing(parent, after, Instant::now(), None);
                self.ask(parent, name)
            }
            NameLookup::Unknown => self.ask(parent, name),
        }
    }

    fn find(&self, _: &Caller, inode: u64) -> Reply<Entry> {
        let names = &self.client.shared().metadata_cache;
        let asked = Instant::now();
        let known = self.client.meta().stat(&self.root, inode_path(inode), false).map_err(errno)?;
        let known = names.learn_at(known, asked);
        // Without a name it waits for its removal, unless it is open.
        if known.link_count == 0 && self.client.files().find(inode).is_none() {
            return Err(Errno::NOENT);
        }
        Ok(self.entry(&known, names.ttl().saturating_sub(asked.elapsed())))
    }

    fn parent(&self, caller: &Caller, directory: u64) -> Reply<Entry> {
        let request = pb::ListRequest { inode: directory, limit: 1, ..Default::default() };
        let parent = self.client.meta().list(&self.root, request).map_err(errno)?.parent;
        self.find(caller, parent)
    }

    fn forget(&self, _: u64, _: u64) {}

    fn getattr(&self, _: &Caller, inode: u64, _: Option<u64>) -> Reply<AttributeReply> {
        let names = &self.client.shared().metadata_cache;
        if !self.is_strict()
            && let Some((known, ttl)) = names.attributes(inode)
        {
            return Ok(AttributeReply { attributes: self.local_view(&known), ttl });
        }
        let asked = Instant::now();
        let meta = self.client.meta();
        let known = match self.is_strict() {
            true => meta.stat_exactly(&self.root, inode_path(inode), false),
            false => meta.stat(&self.root, inode_path(inode), false),
        };
        let known = known.map_err(stale)?;
        let attributes = self.local_view(&names.learn_at(known, asked));
        Ok(AttributeReply { attributes, ttl: self.ttl(names.ttl().saturating_sub(asked.elapsed())) })
    }

    fn setattr(&self, _: &Caller, inode: u64, change: &SetAttributes) -> Reply<AttributeReply> {
        let mut request = pb::SetAttrRequest {
            path: Some(inode_path(inode)),
            permissions: change.permissions,
            uid: change.uid,
            gid: change.gid,
            length: change.length,
            clear_set_id: change.clears_set_id,
            ..Default::default()
        };
        match change.atime {
            Some(SetTime::At(time_ns)) => request.atime_ns = Some(time_ns),
            Some(SetTime::Now) => request.atime_now = true,
            None => {}
        }
        match change.mtime {
            Some(SetTime::At(time_ns)) => request.mtime_ns = Some(time_ns),
            Some(SetTime::Now) => request.mtime_now = true,
            None => {}
        }
        let files = self.client.files();
        let inode = match self.consistency {
            Consistency::CloseToOpen => set_attributes_deferred(files, &self.root, request),
            Consistency::Strict => set_attributes(files, &self.root, request),
        };
        let inode = inode.map_err(stale)?;
        Ok(AttributeReply {
            attributes: attributes(&inode),
            ttl: self.ttl(self.client.shared().metadata_cache.ttl()),
        })
    }

    fn readlink(&self, _: &Caller, inode: u64) -> Reply<Vec<u8>> {
        if let Some((known, _)) = self.client.shared().metadata_cache.attributes(inode)
            && !known.symlink_target.is_empty()
        {
            return Ok(known.symlink_target.clone());
        }
        let inode = self.client.meta().stat(&self.root, inode_path(inode), false).map_err(stale)?;
        if inode.r#type() != pb::FileType::Symlink {
            return Err(Errno::INVAL);
        }
        Ok(inode.symlink_target)
    }

    fn mknod(
        &self,
        caller: &Caller,
        parent: u64,
        name: &[u8],
        kind: FileKind,
        permissions: u32,
        device: u32,
    ) -> Reply<Entry> {
        let (meta, identity) = (self.client.meta(), self.maker(caller, parent)?);
        let inode = meta
            .mknod(&identity, name_path(parent, name), type_of(kind), permissions, device)
            .map_err(errno)?;
        Ok(self.made(parent, name, &inode))
    }

    fn mkdir(&self, caller: &Caller, parent: u64, name: &[u8], permissions: u32) -> Reply<Entry> {
        let (meta, identity) = (self.client.meta(), self.maker(caller, parent)?);
        let asked = Instant::now();
        let path = Some(name_path(parent, name));
        let request = pb::MkdirRequest { path, permissions, ..Default::default() };
        let inode = meta.mkdir(&identity, request).map_err(errno)?;
        self.client.shared().metadata_cache.made_directory(inode.id, asked);
        Ok(self.made(parent, name, &inode))
    }

    fn unlink(&self, _: &Caller, parent: u64, name: &[u8]) -> Reply<()> {
        let inode = self.client.meta().unlink(&self.root, name_path(parent, name)).map_err(errno)?;
        let names = &self.client.shared().metadata_cache;
        names.changed(parent, name, None, time_of(&inode));
        names.learn(inode);
        Ok(())
    }

    fn rmdir(&self, _: &Caller, parent: u64, name: &[u8]) -> Reply<()> {
        self.client.meta().rmdir(&self.root, name_path(parent, name)).map_err(errno)?;
        self.client.shared().metadata_cache.changed(parent, name, None, None);
        Ok(())
    }

    fn symlink(&self, caller: &Caller, parent: u64, name: &[u8], target: &[u8]) -> Reply<Entry> {
        let (meta, identity) = (self.client.meta(), self.maker(caller, parent)?);
        let inode = meta.symlink(&identity, name_path(parent, name), target).map_err(errno)?;
        Ok(self.made(parent, name, &inode))
    }

    fn rename(&self, _: &Caller, source: (u64, &[u8]), target: (u64, &[u8]), mode: RenameMode) -> Reply<()> {
        let request = pb::RenameRequest {
            source: Some(name_path(source.0, source.1)),
            target: Some(name_path(target.0, target.1)),
            no_replace: mode == RenameMode::NoReplace,
            exchange: mode == RenameMode::Exchange,
            ..Default::default()
        };
        self.client.shared().dirty_files.flush_deferred();
        let reply = self.client.meta().rename(&self.root, request).map_err(errno)?;
        let names = &self.client.shared().metadata_cache;
        let replaced = reply.replaced.filter(|inode| inode.id != 0);
        let plain = replaced.as_ref().is_none_or(|inode| time_of(inode).is_some());
        let time_ns = reply.moved.as_ref().and_then(time_of).filter(|_| plain);
        let back = if mode == RenameMode::Exchange { replaced.as_ref() } else { None };
        // A rename to the same file leaves both names (rename(2)).
        let same = replaced.as_ref().map(|inode| inode.id) == reply.moved.as_ref().map(|inode| inode.id);
        if !same || replaced.is_none() {
            names.changed(source.0, source.1, back, time_ns);
        }
        names.changed(target.0, target.1, reply.moved.as_ref(), time_ns);
        if let Some(inode) = replaced {
            names.learn(inode);
        }
        Ok(())
    }

    fn link(&self, _: &Caller, inode: u64, parent: u64, name: &[u8]) -> Reply<Entry> {
        let target = name_path(parent, name);
        self.client.shared().dirty_files.flush_deferred();
        let inode = self.client.meta().link(&self.root, inode_path(inode), target, false).map_err(errno)?;
        Ok(self.made(parent, name, &inode))
    }

    fn open(&self, _: &Caller, inode: u64, flags: i32) -> Reply<Opened> {
        let file = self.client.open(&self.root, inode_path(inode), open_options(flags)).map_err(stale)?;
        if !self.is_strict() {
            self.show_opened(inode, file.inode().change());
        }
        Ok(self.keep(file, flags))
    }

    fn create(
        &self,
        caller: &Caller,
        parent: u64,
        name: &[u8],
        permissions: u32,
        flags: i32,
    ) -> Reply<(Entry, Opened)> {
        let identity = self.maker(caller, parent)?;
        let exclusive = OFlags::from_bits_retain(flags as u32).contains(OFlags::EXCL);
        let create = CreateOptions { permissions, exclusive, layout: None };
        let create_as =
            |identity| self.client.create(identity, name_path(parent, name), open_options(flags), create);
        let file = match create_as(&identity) {
            // The kernel took the name for free and named the directory's group only. It may be that of a file which
            // another client has made, and which belongs to another of the caller's groups.
            Err(error) if error.kind() == Kind::PermissionDenied && !exclusive => match self.opener(caller) {
                Some(identity) => create_as(&identity),
                None => Err(error),
            },
            result => result,
        };
        let file = file.map_err(errno)?;
        let entry = self.made(parent, name, &file.inode().local_view());
        Ok((entry, self.keep(file, flags)))
    }

    fn read(&self, _: &Caller, request: &ReadRequest, into: &Placement) -> Reply<ReadOutcome> {
        let file = self.file(request.handle)?;
        let mode = self.mode(request.flags);
        if mode == IoMode::Buffered {
            file.inode().set_cached_by_kernel();
        }
        let bytes = file.read_anywhere(request.offset, into, mode).map_err(errno)?;
        match bytes.as_ptr() == into.as_ptr() {
            true => Ok(ReadOutcome::Placed(bytes.len())),
            false => Ok(ReadOutcome::Held(vec![bytes])),
        }
    }

    fn write(&self, _: &Caller, request: &WriteRequest, payload: Placement) -> Reply<usize> {
        let file = self.file(request.handle)?;
        let append = OFlags::from_bits_retain(request.flags as u32).contains(OFlags::APPEND);
        let place = match append && !request.from_page_cache {
            true => WriteOffset::Append,
            false => WriteOffset::At(request.offset),
        };
        let mode = self.mode(request.flags);
        if request.clears_set_id {
            self.clear_set_id(&file);
        }
        let offset = file.write_through(place, &payload, true, mode).map_err(errno)?;
        if offset != request.offset {
            self.page_cache_is_wrong(request.inode);
        }
        if let (IoMode::Direct, Some(data_only)) = (mode, synchronous(request.flags)) {
            file.fsync(data_only).map_err(errno)?;
        }
        Ok(payload.len())
    }

    fn has_cached_pages(&self, handle: u64, flags: i32) -> bool {
        if self.mode(flags) == IoMode::Buffered {
            return false;
        }
        let files = self.files.read();
        let Some(Handle { file, .. }) = files.get(&handle) else { return false };
        // One that has become direct by fcntl may write through the page cache all the same.
        file.options().direct && file.inode().is_cached_by_kernel()
    }

    fn outdates_pages(&self, shown: &Attributes) -> Option<u64> {
        let is_file = shown.kind == FileKind::Regular;
        let open = is_file.then(|| self.client.files().find(shown.inode)).flatten()?;
        self.client.shared().metadata_cache.outdates_pages(shown.inode, open.change(), shown.length)
    }

    fn pages_dropped(&self, inode: u64, number: u64) {
        self.client.shared().metadata_cache.outdated_pages_dropped(inode, number);
    }

    fn flush(&self, _: &Caller, _: u64, handle: u64) -> Reply<()> {
        self.file(handle)?.flush().map_err(errno)
    }

    fn release(&self, _: u64, handle: u64) {
        let handle = self.files.write().remove(&handle);
        if let Some(handle) = handle {
            handle.used(&self.client.shared().metadata_cache).release();
        }
    }

    fn fsync(&self, _: &Caller, _: u64, handle: u64, data_only: bool) -> Reply<()> {
        self.file(handle)?.fsync(data_only).map_err(errno)
    }

    fn opendir(&self, _: &Caller, inode: u64) -> Reply<Opened> {
        let handle = self.handle();
        let directory = Arc::new(Mutex::new(Directory::new(inode)));
        let before = self.directories.lock().insert(handle, directory);
        assert!(before.is_none(), "a handle is given out once");
        Ok(Opened { handle, cache: PageCache::Bypass })
    }

    fn readdir(
        &self,
        _: &Caller,
        inode: u64,
        handle: u64,
        after: u64,
        sink: &mut DirectorySink<'_>,
    ) -> Reply<()> {
        let directory = self.directories.lock().get(&handle).cloned().ok_or(Errno::BADF)?;
        let mut directory = directory.lock();
        let with_inodes = sink.wants_attributes();
        if after == 0 {
            directory.rewind();
            if !sink.plain(b".", inode, FileKind::Directory, DOT) {
                return Ok(());
            }
        }
        let shared = self.client.shared();
        if after <= DOT {
            let parent = directory.parent(shared, &self.root, with_inodes).map_err(stale)?;
            if !sink.plain(b"..", parent, FileKind::Directory, DOT_DOT) {
                return Ok(());
            }
        }
        let (entries, asked) = directory.entries(shared, &self.root, after, with_inodes).map_err(stale)?;
        let left = shared.metadata_cache.ttl().saturating_sub(asked.elapsed());
        for dentry in entries {
            if !self.show(dentry, asked, left, sink) {
                break;
            }
        }
        Ok(())
    }

    fn releasedir(&self, _: u64, handle: u64) {
        self.directories.lock().remove(&handle);
    }

    fn fsyncdir(&self, _: &Caller, inode: u64, _: u64, _: bool) -> Reply<()> {
        let request = pb::SyncRequest { inode, durable: true, ..Default::default() };
        self.client.meta().sync(&self.root, request).map(drop).map_err(stale)
    }

    fn statfs(&self, _: &Caller, _: u64) -> Reply<FileSystemStatistics> {
        let space = self.client.meta().stat_fs(&self.root).map_err(errno)?;
        let blocks = space.capacity_bytes / 4096;
        let free = space.free_bytes / 4096;
        Ok(FileSystemStatistics {
            block_bytes: 4096,
            blocks,
            blocks_free: free,
            blocks_available: free,
            inodes: space.inode_count.saturating_add(free),
            inodes_free: free,
        })
    }

    fn setxattr(&self, _: &Caller, inode: u64, name: &[u8], value: &[u8], mode: XattrMode) -> Reply<()> {
        if name.starts_with(ACL_PREFIX) {
            return Err(Errno::OPNOTSUPP);
        }
        let flags = match mode {
            XattrMode::Set => 0,
            XattrMode::Create => 1,
            XattrMode::Replace => 2,
        };
        self.client.meta().set_xattr(&self.root, inode, name, value, flags).map_err(errno)?;
        // Its ctime has moved.
        self.client.shared().metadata_cache.forget_attributes(inode);
        Ok(())
    }

    fn getxattr(&self, _: &Caller, inode: u64, name: &[u8]) -> Reply<Vec<u8>> {
        if name.starts_with(ACL_PREFIX) {
            return Err(Errno::OPNOTSUPP);
        }
        self.client.meta().get_xattr(&self.root, inode, name).map_err(errno)
    }

    fn listxattr(&self, _: &Caller, inode: u64) -> Reply<Vec<Vec<u8>>> {
        self.client.meta().list_xattr(&self.root, inode).map_err(errno)
    }

    fn removexattr(&self, _: &Caller, inode: u64, name: &[u8]) -> Reply<()> {
        self.client.meta().remove_xattr(&self.root, inode, name).map_err(errno)?;
        self.client.shared().metadata_cache.forget_attributes(inode);
        Ok(())
    }

    fn fallocate(
        &self,
        caller: &Caller,
        _: u64,
        handle: u64,
        mode: AllocateMode,
        offset: u64,
        length: u64,
    ) -> Reply<()> {
        let file = self.file(handle)?;
        // The kernel does not say whether the caller may keep set-id bits: as a rule only root may.
        let is_user = caller.uid != 0;
        if is_user {
            self.clear_set_id(&file);
        }
        // Others may have written since: their bytes are zeroed where that is asked for, and never cut.
        file.refresh().map_err(errno)?;
        let before = file.inode().length();
        let end = offset + length;
        let needs_space = matches!(mode, AllocateMode::Extend | AllocateMode::KeepLength);
        if needs_space && end > before && end - before > self.free_bytes()? {
            return Err(Errno::NOSPC);
        }
        let zero_until = match mode {
            AllocateMode::Extend | AllocateMode::KeepLength => offset,
            AllocateMode::PunchHole | AllocateMode::Zero { .. } => end.min(before),
        };
        if offset < zero_until {
            file.punch_hole(offset..zero_until).map_err(errno)?;
        }
        match mode {
            // Inside the file too: its times move.
            AllocateMode::Extend => file.extend(end).map_err(errno)?,
            AllocateMode::Zero { keep_length: false } if end > before => file.extend(end).map_err(errno)?,
            _ => {}
        }
        if is_user {
            file.inode().sync().map_err(errno)?;
        }
        Ok(())
    }
}
