//! A complete file system in memory. It tests and measures the session; nothing else uses it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use luciola_core::buffer::Placement;
use luciola_core::fuse::*;
use parking_lot::{Mutex, RwLock};
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::content::Content;

/// How long the kernel believes us; nothing else changes this file system.
const TTL: Duration = Duration::from_secs(1);
/// Reads of less are copied: cheaper than naming their places.
const HELD_BYTES_MIN: usize = 32 << 10;

#[derive(Default)]
struct Directory {
    /// Name to inode and to where a listing continues after it.
    names: BTreeMap<Vec<u8>, (u64, u64)>,
    order: BTreeMap<u64, Vec<u8>>,
    next_offset: u64,
    parent: u64,
}

impl Directory {
    fn new(parent: u64) -> Self {
        // Offsets 1 and 2 are "." and "..".
        Directory { parent, next_offset: 3, ..Default::default() }
    }

    fn insert(&mut self, name: &[u8], inode: u64) {
        self.remove(name);
        self.names.insert(name.to_vec(), (inode, self.next_offset));
        self.order.insert(self.next_offset, name.to_vec());
        self.next_offset += 1;
    }

    fn remove(&mut self, name: &[u8]) {
        if let Some((_, offset)) = self.names.remove(name) {
            self.order.remove(&offset);
        }
    }

    fn get(&self, name: &[u8]) -> Reply<u64> {
        self.names.get(name).map(|&(inode, _)| inode).ok_or(Errno::NOENT)
    }
}

enum Body {
    Regular(Content),
    Directory(Directory),
    Symlink(Vec<u8>),
    Special,
}

struct State {
    attributes: Attributes,
    body: Body,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    references: u64,
    opens: u64,
    /// The kernel's pages are as new as the file, as far as this mount is the only one.
    written: bool,
}

type Node = Arc<RwLock<State>>;

pub struct MemoryFileSystem {
    inodes: RwLock<HashMap<u64, Node>>,
    next_inode: AtomicU64,
    /// Held while names change.
    tree: Mutex<()>,
    /// Called wherever a distributed file system has to ask another process: changes of names, open, read, write.
    pub before_answer: Option<fn()>,
    /// Set by `destroy`.
    pub destroyed: AtomicBool,
}

fn now_ns() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_nanos() as i64)
}

impl State {
    fn directory(&mut self) -> Reply<&mut Directory> {
        match &mut self.body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn content(&mut self) -> Reply<&mut Content> {
        match &mut self.body {
            Body::Regular(content) => Ok(content),
            Body::Directory(_) => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        }
    }

    fn shown(&self) -> Attributes {
        let mut attributes = self.attributes;
        match &self.body {
            Body::Regular(content) => {
                attributes.length = content.length;
                attributes.blocks = content.used() / 512;
            }
            Body::Directory(directory) => attributes.length = directory.names.len() as u64,
            Body::Symlink(target) => attributes.length = target.len() as u64,
            Body::Special => {}
        }
        attributes
    }

    fn touch(&mut self) {
        self.attributes.mtime_ns = now_ns();
        self.attributes.ctime_ns = self.attributes.mtime_ns;
    }

    fn entry(&mut self) -> Entry {
        self.references += 1;
        Entry { attributes: self.shown(), generation: 0, name_ttl: TTL, attribute_ttl: TTL }
    }
}

impl Default for MemoryFileSystem {
    fn default() -> Self {
        let now = now_ns();
        let attributes = Attributes {
            inode: ROOT,
            kind: FileKind::Directory,
            permissions: 0o755,
            links: 2,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            device: 0,
            length: 0,
            blocks: 0,
            block_bytes: 1 << 20,
            atime_ns: now,
            mtime_ns: now,
            ctime_ns: now,
        };
        let root = State {
            attributes,
            body: Body::Directory(Directory::new(ROOT)),
            xattrs: BTreeMap::new(),
            references: 1,
            opens: 0,
            written: false,
        };
        MemoryFileSystem {
            inodes: RwLock::new(HashMap::from([(ROOT, Arc::new(RwLock::new(root)))])),
            next_inode: AtomicU64::new(ROOT + 1),
            tree: Mutex::new(()),
            before_answer: None,
            destroyed: AtomicBool::new(false),
        }
    }
}

impl MemoryFileSystem {
    fn ask(&self) {
        if let Some(before_answer) = self.before_answer {
            before_answer();
        }
    }

    fn node(&self, inode: u64) -> Reply<Node> {
        self.inodes.read().get(&inode).cloned().ok_or(Errno::STALE)
    }

    /// Makes an inode and names it. The tree is locked.
    fn add(
        &self,
        caller: &Caller,
        parent: u64,
        name: &[u8],
        body: Body,
        (kind, permissions, device): (FileKind, u32, u32),
    ) -> Reply<(Node, Entry)> {
        let parent_node = self.node(parent)?;
        let mut parent_state = parent_node.write();
        if parent_state.directory()?.get(name).is_ok() {
            return Err(Errno::EXIST);
        }
        if parent_state.attributes.links == 0 {
            return Err(Errno::NOENT);
        }
        let is_directory = kind == FileKind::Directory;
        let inherits = parent_state.attributes.permissions & 0o2000 != 0;
        let now = now_ns();
        let attributes = Attributes {
            inode: self.next_inode.fetch_add(1, Ordering::Relaxed),
            kind,
            permissions: permissions | if inherits && is_directory { 0o2000 } else { 0 },
            links: if is_directory { 2 } else { 1 },
            uid: caller.uid,
            gid: if inherits { parent_state.attributes.gid } else { caller.gid },
            device,
            length: 0,
            blocks: 0,
            block_bytes: 1 << 20,
            atime_ns: now,
            mtime_ns: now,
            ctime_ns: now,
        };
        let mut state =
            State { attributes, body, xattrs: BTreeMap::new(), references: 0, opens: 0, written: false };
        let entry = state.entry();
        let node = Arc::new(RwLock::new(state));
        self.inodes.write().insert(attributes.inode, node.clone());
        parent_state.directory()?.insert(name, attributes.inode);
        if is_directory {
            parent_state.attributes.links += 1;
        }
        parent_state.touch();
        Ok((node, entry))
    }

    /// One name less. The tree is locked, the name is already gone.
    fn unname(&self, inode: u64) {
        let Ok(node) = self.node(inode) else { return };
        let mut state = node.write();
        state.attributes.links -= 1;
        if matches!(state.body, Body::Directory(_)) {
            state.attributes.links = 0;
        }
        state.attributes.ctime_ns = now_ns();
        let gone = self.is_gone(&state);
        drop(state);
        if gone {
            self.inodes.write().remove(&inode);
        }
    }

    fn is_gone(&self, state: &State) -> bool {
        state.attributes.links == 0 && state.references == 0 && state.opens == 0
    }

    fn remove(&self, parent: u64, name: &[u8], directory: bool) -> Reply<()> {
        self.ask();
        let _tree = self.tree.lock();
        let parent_node = self.node(parent)?;
        let inode = parent_node.write().directory()?.get(name)?;
        match (&self.node(inode)?.read().body, directory) {
            (Body::Directory(_), false) => return Err(Errno::ISDIR),
            (Body::Directory(body), true) if !body.names.is_empty() => return Err(Errno::NOTEMPTY),
            (Body::Directory(_), true) | (_, false) => {}
            (_, true) => return Err(Errno::NOTDIR),
        }
        let mut parent_state = parent_node.write();
        parent_state.directory()?.remove(name);
        if directory {
            parent_state.attributes.links -= 1;
        }
        parent_state.touch();
        drop(parent_state);
        self.unname(inode);
        Ok(())
    }

    fn opened(&self, node: &Node, flags: i32) -> Reply<Opened> {
        let mut state = node.write();
        if flags & OFlags::TRUNC.bits() as i32 != 0 {
            state.content()?.set_length(0);
            state.touch();
        }
        state.opens += 1;
        Ok(Opened { handle: state.attributes.inode, cache: PageCache::Keep })
    }

    fn closed(&self, inode: u64) {
        let Ok(node) = self.node(inode) else { return };
        let mut state = node.write();
        state.opens -= 1;
        let gone = self.is_gone(&state);
        drop(state);
        if gone {
            self.inodes.write().remove(&inode);
        }
    }

    /// Whether `inode` is `directory` or is above it.
    fn is_above(&self, inode: u64, mut directory: u64) -> Reply<bool> {
        while directory != ROOT {
            if directory == inode {
                return Ok(true);
            }
            directory = self.node(directory)?.write().directory()?.parent;
        }
        Ok(inode == ROOT)
    }

    /// Record in a directory where it now is, and in its parents that it came or went.
    fn moved(&self, inode: u64, from: u64, to: u64) -> Reply<()> {
        let node = self.node(inode)?;
        let mut state = node.write();
        state.attributes.ctime_ns = now_ns();
        if let Body::Directory(directory) = &mut state.body
            && from != to
        {
            directory.parent = to;
            drop(state);
            self.node(from)?.write().attributes.links -= 1;
            self.node(to)?.write().attributes.links += 1;
        }
        Ok(())
    }

    fn is_directory(&self, inode: u64) -> Reply<bool> {
        Ok(matches!(self.node(inode)?.read().body, Body::Directory(_)))
    }
}

impl FileSystem for MemoryFileSystem {
    fn destroy(&self) {
        assert!(!self.destroyed.swap(true, Ordering::SeqCst), "destroyed once");
    }

    fn lookup(&self, _: &Caller, parent: u64, name: &[u8]) -> Reply<Entry> {
        let parent = self.node(parent)?;
        // The reference is counted before the name can go.
        let mut parent = parent.write();
        let node = self.node(parent.directory()?.get(name)?)?;
        let entry = node.write().entry();
        Ok(entry)
    }

    fn forget(&self, inode: u64, count: u64) {
        let Ok(node) = self.node(inode) else { return };
        let mut state = node.write();
        state.references = state.references.checked_sub(count).expect("forgotten as often as given");
        let gone = self.is_gone(&state);
        drop(state);
        if gone {
            self.inodes.write().remove(&inode);
        }
    }

    fn getattr(&self, _: &Caller, inode: u64, _: Option<u64>) -> Reply<AttributeReply> {
        Ok(AttributeReply { attributes: self.node(inode)?.read().shown(), ttl: TTL })
    }

    fn setattr(&self, _: &Caller, inode: u64, change: &SetAttributes) -> Reply<AttributeReply> {
        let node = self.node(inode)?;
        let mut state = node.write();
        let now = now_ns();
        if let Some(length) = change.length {
            state.content()?.set_length(length);
            state.attributes.mtime_ns = now;
        }
        let time = |time| match time {
            SetTime::Now => now,
            SetTime::At(ns) => ns,
        };
        let attributes = &mut state.attributes;
        attributes.permissions = change.permissions.unwrap_or(attributes.permissions);
        attributes.uid = change.uid.unwrap_or(attributes.uid);
        attributes.gid = change.gid.unwrap_or(attributes.gid);
        attributes.atime_ns = change.atime.map_or(attributes.atime_ns, time);
        attributes.mtime_ns = change.mtime.map_or(attributes.mtime_ns, time);
        attributes.ctime_ns = change.ctime_ns.unwrap_or(now);
        Ok(AttributeReply { attributes: state.shown(), ttl: TTL })
    }

    fn readlink(&self, _: &Caller, inode: u64) -> Reply<Vec<u8>> {
        match &self.node(inode)?.read().body {
            Body::Symlink(target) => Ok(target.clone()),
            _ => Err(Errno::INVAL),
        }
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
        self.ask();
        let _tree = self.tree.lock();
        let body = if kind == FileKind::Regular { Body::Regular(Content::default()) } else { Body::Special };
        Ok(self.add(caller, parent, name, body, (kind, permissions, device))?.1)
    }

    fn mkdir(&self, caller: &Caller, parent: u64, name: &[u8], permissions: u32) -> Reply<Entry> {
        self.ask();
        let _tree = self.tree.lock();
        let body = Body::Directory(Directory::new(parent));
        Ok(self.add(caller, parent, name, body, (FileKind::Directory, permissions, 0))?.1)
    }

    fn unlink(&self, _: &Caller, parent: u64, name: &[u8]) -> Reply<()> {
        self.remove(parent, name, false)
    }

    fn rmdir(&self, _: &Caller, parent: u64, name: &[u8]) -> Reply<()> {
        self.remove(parent, name, true)
    }

    fn symlink(&self, caller: &Caller, parent: u64, name: &[u8], target: &[u8]) -> Reply<Entry> {
        self.ask();
        let _tree = self.tree.lock();
        let body = Body::Symlink(target.to_vec());
        Ok(self.add(caller, parent, name, body, (FileKind::Symlink, 0o777, 0))?.1)
    }

    fn rename(
        &self,
        _: &Caller,
        (source_parent, source_name): (u64, &[u8]),
        (target_parent, target_name): (u64, &[u8]),
        mode: RenameMode,
    ) -> Reply<()> {
        self.ask();
        let _tree = self.tree.lock();
        let (from, to) = (self.node(source_parent)?, self.node(target_parent)?);
        let inode = from.write().directory()?.get(source_name)?;
        let replaced = to.write().directory()?.get(target_name).ok();
        if self.is_above(inode, target_parent)? {
            return Err(Errno::INVAL);
        }
        match (mode, replaced) {
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (RenameMode::Exchange, None) => return Err(Errno::NOENT),
            (RenameMode::Exchange, Some(other)) => {
                if self.is_above(other, source_parent)? {
                    return Err(Errno::INVAL);
                }
                from.write().directory()?.insert(source_name, other);
                to.write().directory()?.insert(target_name, inode);
                self.moved(inode, source_parent, target_parent)?;
                self.moved(other, target_parent, source_parent)?;
            }
            (_, Some(other)) if other == inode => return Ok(()),
            (_, replaced) => {
                if let Some(other) = replaced {
                    match (self.is_directory(inode)?, self.is_directory(other)?) {
                        (true, false) => return Err(Errno::NOTDIR),
                        (false, true) => return Err(Errno::ISDIR),
                        (true, true) if !self.node(other)?.write().directory()?.names.is_empty() => {
                            return Err(Errno::NOTEMPTY);
                        }
                        _ => {}
                    }
                    if self.is_directory(other)? {
                        to.write().attributes.links -= 1;
                    }
                    self.unname(other);
                }
                from.write().directory()?.remove(source_name);
                to.write().directory()?.insert(target_name, inode);
                self.moved(inode, source_parent, target_parent)?;
            }
        }
        from.write().touch();
        to.write().touch();
        Ok(())
    }

    fn link(&self, _: &Caller, inode: u64, parent: u64, name: &[u8]) -> Reply<Entry> {
        self.ask();
        let _tree = self.tree.lock();
        let parent = self.node(parent)?;
        let node = self.node(inode)?;
        let mut parent = parent.write();
        if parent.directory()?.get(name).is_ok() {
            return Err(Errno::EXIST);
        }
        parent.directory()?.insert(name, inode);
        parent.touch();
        let mut state = node.write();
        state.attributes.links += 1;
        state.attributes.ctime_ns = now_ns();
        Ok(state.entry())
    }

    fn open(&self, _: &Caller, inode: u64, flags: i32) -> Reply<Opened> {
        self.ask();
        self.opened(&self.node(inode)?, flags)
    }

    fn create(
        &self,
        caller: &Caller,
        parent: u64,
        name: &[u8],
        permissions: u32,
        flags: i32,
    ) -> Reply<(Entry, Opened)> {
        self.ask();
        let _tree = self.tree.lock();
        let body = Body::Regular(Content::default());
        match self.add(caller, parent, name, body, (FileKind::Regular, permissions, 0)) {
            Ok((node, entry)) => Ok((entry, self.opened(&node, flags)?)),
            Err(Errno::EXIST) if flags & OFlags::EXCL.bits() as i32 == 0 => {
                let inode = self.node(parent)?.write().directory()?.get(name)?;
                let node = self.node(inode)?;
                let opened = self.opened(&node, flags)?;
                let entry = node.write().entry();
                Ok((entry, opened))
            }
            Err(error) => Err(error),
        }
    }

    fn read(&self, _: &Caller, request: &ReadRequest, into: &Placement) -> Reply<ReadOutcome> {
        self.ask();
        let node = self.node(request.inode)?;
        let state = node.read();
        let Body::Regular(content) = &state.body else { return Err(Errno::INVAL) };
        let pieces = content.read(request.offset, into.len() as u64)?;
        if into.len() >= HELD_BYTES_MIN {
            return Ok(ReadOutcome::Held(pieces));
        }
        let mut placed = 0;
        for piece in &pieces {
            piece.copy_into(&into.slice(placed..into.len()));
            placed += piece.len();
        }
        Ok(ReadOutcome::Placed(placed))
    }

    fn write(&self, _: &Caller, request: &WriteRequest, payload: Placement) -> Reply<usize> {
        self.ask();
        let node = self.node(request.inode)?;
        let mut state = node.write();
        let append = request.flags & OFlags::APPEND.bits() as i32 != 0 && !request.from_page_cache;
        let content = state.content()?;
        let offset = if append { content.length } else { request.offset };
        content.write(offset, &payload)?;
        state.written = true;
        state.touch();
        Ok(payload.len())
    }

    fn flush(&self, _: &Caller, _: u64, _: u64) -> Reply<()> {
        Ok(())
    }

    fn release(&self, inode: u64, _: u64) {
        self.closed(inode);
    }

    fn fsync(&self, _: &Caller, inode: u64, _: u64, _: bool) -> Reply<()> {
        self.node(inode)?.write().written = false;
        Ok(())
    }

    fn opendir(&self, _: &Caller, inode: u64) -> Reply<Opened> {
        let node = self.node(inode)?;
        let mut state = node.write();
        state.directory()?;
        state.opens += 1;
        Ok(Opened { handle: inode, cache: PageCache::Bypass })
    }

    fn readdir(&self, _: &Caller, inode: u64, _: u64, after: u64, sink: &mut DirectorySink<'_>) -> Reply<()> {
        let node = self.node(inode)?;
        let mut state = node.write();
        let directory = state.directory()?;
        let dots = [(b".".as_slice(), inode, 1), (b"..".as_slice(), directory.parent, 2)];
        for (name, inode, offset) in dots.into_iter().filter(|&(_, _, offset)| offset > after) {
            if !sink.plain(name, inode, FileKind::Directory, offset) {
                return Ok(());
            }
        }
        for (&offset, name) in directory.order.range(after + 1..) {
            let child = self.node(directory.get(name)?)?;
            let mut child = child.write();
            let taken = if sink.wants_attributes() {
                let entry = child.entry();
                let taken = sink.plus(name, &entry, offset);
                if !taken {
                    child.references -= 1;
                }
                taken
            } else {
                sink.plain(name, child.attributes.inode, child.attributes.kind, offset)
            };
            if !taken {
                break;
            }
        }
        Ok(())
    }

    fn releasedir(&self, inode: u64, _: u64) {
        self.closed(inode);
    }

    fn statfs(&self, _: &Caller, _: u64) -> Reply<FileSystemStatistics> {
        let blocks = 1 << 20;
        Ok(FileSystemStatistics {
            block_bytes: 4096,
            blocks,
            blocks_free: blocks,
            blocks_available: blocks,
            inodes: 1 << 20,
            inodes_free: (1 << 20) - self.inodes.read().len() as u64,
        })
    }

    fn setxattr(&self, _: &Caller, inode: u64, name: &[u8], value: &[u8], mode: XattrMode) -> Reply<()> {
        let node = self.node(inode)?;
        let mut state = node.write();
        match (mode, state.xattrs.contains_key(name)) {
            (XattrMode::Create, true) => return Err(Errno::EXIST),
            (XattrMode::Replace, false) => return Err(Errno::NODATA),
            _ => {}
        }
        state.xattrs.insert(name.to_vec(), value.to_vec());
        state.attributes.ctime_ns = now_ns();
        Ok(())
    }

    fn getxattr(&self, _: &Caller, inode: u64, name: &[u8]) -> Reply<Vec<u8>> {
        self.node(inode)?.read().xattrs.get(name).cloned().ok_or(Errno::NODATA)
    }

    fn listxattr(&self, _: &Caller, inode: u64) -> Reply<Vec<Vec<u8>>> {
        Ok(self.node(inode)?.read().xattrs.keys().cloned().collect())
    }

    fn removexattr(&self, _: &Caller, inode: u64, name: &[u8]) -> Reply<()> {
        let node = self.node(inode)?;
        let mut state = node.write();
        state.attributes.ctime_ns = now_ns();
        state.xattrs.remove(name).map(|_| ()).ok_or(Errno::NODATA)
    }

    fn fallocate(
        &self,
        _: &Caller,
        inode: u64,
        _: u64,
        mode: AllocateMode,
        offset: u64,
        length: u64,
    ) -> Reply<()> {
        let node = self.node(inode)?;
        let mut state = node.write();
        let content = state.content()?;
        let end = offset + length;
        match mode {
            AllocateMode::KeepLength => {}
            AllocateMode::PunchHole | AllocateMode::Zero { keep_length: true } => {
                content.punch(offset, length)
            }
            AllocateMode::Extend => content.length = content.length.max(end),
            AllocateMode::Zero { keep_length: false } => {
                content.punch(offset, length);
                content.length = content.length.max(end);
            }
        }
        state.touch();
        Ok(())
    }

    fn seek_data(&self, _: &Caller, inode: u64, _: u64, offset: u64) -> Reply<u64> {
        self.node(inode)?.write().content()?.seek(offset, true)
    }

    fn seek_hole(&self, _: &Caller, inode: u64, _: u64, offset: u64) -> Reply<u64> {
        self.node(inode)?.write().content()?.seek(offset, false)
    }
}
