//! A disk in memory, mounted through FUSE, that writes down every change in the order in which it was made.
//!
//! Each directory of the mount's root is a *volume*: what loses power at once. A recorded volume has a log of writes,
//! changes of length, names, and flushes; `crash` makes of it what a disk may hold after power loss, and `add` shows
//! that as another volume, so that the program under test opens it in the same mount. A write has reached the log when
//! write(2) returns. Pages that programs map shared and write are recorded when the kernel writes them back.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use luciola_core::buffer::Placement;
use luciola_core::fuse::*;
use parking_lot::Mutex;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::image::{Body, Content, Image, Names};

/// What one call changed. Numbers are those of inodes, the same in a log's base.
#[derive(Clone, Debug)]
pub enum Change {
    Write {
        inode: u64,
        offset: u64,
        bytes: Vec<u8>,
    },
    SetLength {
        inode: u64,
        length: u64,
    },
    Punch {
        inode: u64,
        offset: u64,
        length: u64,
    },
    /// fsync or fdatasync of a file or a directory has begun; what comes until it ends it does not cover.
    SyncBegin {
        inode: u64,
    },
    /// It ends. `begun`: where in the log it began.
    SyncEnd {
        inode: u64,
        begun: usize,
    },
    /// A new inode got its name.
    Make {
        parent: u64,
        name: Vec<u8>,
        inode: u64,
        body: Body,
    },
    Link {
        parent: u64,
        name: Vec<u8>,
        inode: u64,
    },
    Remove {
        parent: u64,
        name: Vec<u8>,
    },
    Rename {
        source: (u64, Vec<u8>),
        target: (u64, Vec<u8>),
    },
}

/// A recorded volume: what it held at first, and every change since.
#[derive(Clone, Debug)]
pub struct Log {
    pub base: Image,
    pub changes: Vec<Change>,
}

struct Node {
    volume: u64,
    permissions: u32,
    kind: FileKind,
    body: Body,
    parent: u64,
    links: u32,
    references: u64,
    opens: u64,
}

#[derive(Default)]
struct State {
    nodes: HashMap<u64, Node>,
    next_inode: u64,
    /// Of recorded volumes, by the inode of their directory.
    logs: BTreeMap<u64, Log>,
    listings: HashMap<u64, Vec<(Vec<u8>, u64)>>,
    next_listing: u64,
}

/// The file system that the kernel sees.
struct Recorder(Mutex<State>);

/// How long the kernel believes us: it makes all changes but new volumes, whose names are new.
const TTL: Duration = Duration::from_secs(1);
/// What statfs says is free: less than makes the chunk index reserve blocks, which takes time and changes nothing.
const FREE_BYTES: u64 = 480 << 20;
const BLOCK_BYTES: u64 = 4096;

impl State {
    fn node(&mut self, inode: u64) -> Reply<&mut Node> {
        self.nodes.get_mut(&inode).ok_or(Errno::STALE)
    }

    fn names(&mut self, inode: u64) -> Reply<&mut Names> {
        match &mut self.node(inode)?.body {
            Body::Directory(names) => Ok(names),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn content(&mut self, inode: u64) -> Reply<&mut Content> {
        match &mut self.node(inode)?.body {
            Body::File(content) => Ok(content),
            Body::Directory(_) => Err(Errno::ISDIR),
            Body::Special => Err(Errno::INVAL),
        }
    }

    fn child(&mut self, parent: u64, name: &[u8]) -> Reply<u64> {
        self.names(parent)?.get(name).copied().ok_or(Errno::NOENT)
    }

    /// Writes a change of `inode` down, if its volume is recorded; where in the log.
    fn record(&mut self, inode: u64, change: impl FnOnce() -> Change) -> Option<usize> {
        let volume = self.nodes.get(&inode).map_or(0, |node| node.volume);
        let log = self.logs.get_mut(&volume)?;
        log.changes.push(change());
        Some(log.changes.len() - 1)
    }

    fn insert(&mut self, volume: u64, parent: u64, kind: FileKind, permissions: u32, body: Body) -> u64 {
        self.next_inode += 1;
        let inode = self.next_inode;
        let volume = if volume == 0 { inode } else { volume };
        let links = if kind == FileKind::Directory { 2 } else { 1 };
        let node = Node { volume, permissions, kind, body, parent, links, references: 0, opens: 0 };
        self.nodes.insert(inode, node);
        inode
    }

    fn make(&mut self, parent: u64, name: &[u8], kind: FileKind, permissions: u32, body: Body) -> Reply<u64> {
        if self.child(parent, name).is_ok() {
            return Err(Errno::EXIST);
        }
        let volume = if parent == ROOT { 0 } else { self.node(parent)?.volume };
        let inode = self.insert(volume, parent, kind, permissions, body.clone());
        self.names(parent)?.insert(name.to_vec(), inode);
        self.record(parent, || Change::Make { parent, name: name.to_vec(), inode, body });
        Ok(inode)
    }

    fn entry(&mut self, inode: u64) -> Reply<Entry> {
        self.node(inode)?.references += 1;
        Ok(Entry { attributes: self.attributes(inode)?, generation: 0, name_ttl: TTL, attribute_ttl: TTL })
    }

    fn attributes(&mut self, inode: u64) -> Reply<Attributes> {
        let node = self.node(inode)?;
        let (length, pages) = match &node.body {
            Body::File(content) => (content.length, content.pages.len() as u64),
            Body::Directory(names) => (names.len() as u64, 1),
            Body::Special => (0, 0),
        };
        Ok(Attributes {
            inode,
            kind: node.kind,
            permissions: node.permissions,
            links: node.links,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            device: 0,
            length,
            blocks: pages * (BLOCK_BYTES / 512),
            block_bytes: BLOCK_BYTES as u32,
            atime_ns: 0,
            mtime_ns: 0,
            ctime_ns: 0,
        })
    }

    fn unname(&mut self, inode: u64) {
        let Ok(node) = self.node(inode) else { return };
        node.links = if node.kind == FileKind::Directory { 0 } else { node.links - 1 };
        self.drop_if_gone(inode);
    }

    fn drop_if_gone(&mut self, inode: u64) {
        if self
            .nodes
            .get(&inode)
            .is_some_and(|node| node.links == 0 && node.references == 0 && node.opens == 0)
        {
            self.nodes.remove(&inode);
        }
    }

    fn remove(&mut self, parent: u64, name: &[u8]) -> Reply<()> {
        let inode = self.child(parent, name)?;
        if matches!(&self.node(inode)?.body, Body::Directory(names) if !names.is_empty()) {
            return Err(Errno::NOTEMPTY);
        }
        self.names(parent)?.remove(name);
        self.record(parent, || Change::Remove { parent, name: name.to_vec() });
        self.unname(inode);
        Ok(())
    }

    fn set_length(&mut self, inode: u64, length: u64) -> Reply<()> {
        if self.content(inode)?.length != length {
            self.content(inode)?.set_length(length);
            self.record(inode, || Change::SetLength { inode, length });
        }
        Ok(())
    }

    fn open(&mut self, inode: u64, flags: i32) -> Reply<Opened> {
        if flags & OFlags::TRUNC.bits() as i32 != 0 {
            self.set_length(inode, 0)?;
        }
        self.node(inode)?.opens += 1;
        Ok(Opened { handle: inode, cache: PageCache::Keep })
    }

    fn close(&mut self, inode: u64) {
        if let Ok(node) = self.node(inode) {
            node.opens -= 1;
        }
        self.drop_if_gone(inode);
    }

    /// Makes the inodes of `image`, with numbers of their own; the number of its root and the image in those numbers.
    fn adopt(&mut self, name: &str, image: &Image) -> (u64, Image) {
        let kind = |body: &Body| match body {
            Body::File(_) => FileKind::Regular,
            Body::Directory(_) => FileKind::Directory,
            Body::Special => FileKind::Socket,
        };
        let mut numbers = HashMap::new();
        let root = self.insert(0, ROOT, FileKind::Directory, 0o755, Body::Directory(Names::new()));
        numbers.insert(image.root, root);
        for (&inode, body) in image.bodies.iter().filter(|&(&inode, _)| inode != image.root) {
            let permissions = if matches!(body, Body::Directory(_)) { 0o755 } else { 0o600 };
            numbers.insert(inode, self.insert(root, root, kind(body), permissions, Body::Special));
        }
        let mut adopted = Image { root, bodies: HashMap::new() };
        for (inode, body) in &image.bodies {
            let mut body = body.clone();
            if let Body::Directory(names) = &mut body {
                for child in names.values_mut() {
                    *child = numbers[child];
                    self.nodes.get_mut(child).expect("just made").parent = numbers[inode];
                }
            }
            self.nodes.get_mut(&numbers[inode]).expect("just made").body = body.clone();
            adopted.bodies.insert(numbers[inode], body);
        }
        self.names(ROOT).expect("the root is a directory").insert(name.as_bytes().to_vec(), root);
        (root, adopted)
    }
}

impl FileSystem for Recorder {
    fn lookup(&self, _: &Caller, parent: u64, name: &[u8]) -> Reply<Entry> {
        let mut state = self.0.lock();
        let inode = state.child(parent, name)?;
        state.entry(inode)
    }

    fn forget(&self, inode: u64, count: u64) {
        let mut state = self.0.lock();
        if let Ok(node) = state.node(inode) {
            node.references -= count;
        }
        state.drop_if_gone(inode);
    }

    fn getattr(&self, _: &Caller, inode: u64, _: Option<u64>) -> Reply<AttributeReply> {
        Ok(AttributeReply { attributes: self.0.lock().attributes(inode)?, ttl: TTL })
    }

    fn setattr(&self, _: &Caller, inode: u64, change: &SetAttributes) -> Reply<AttributeReply> {
        let mut state = self.0.lock();
        if let Some(length) = change.length {
            state.set_length(inode, length)?;
        }
        let node = state.node(inode)?;
        node.permissions = change.permissions.unwrap_or(node.permissions);
        Ok(AttributeReply { attributes: state.attributes(inode)?, ttl: TTL })
    }

    fn readlink(&self, _: &Caller, _: u64) -> Reply<Vec<u8>> {
        Err(Errno::INVAL)
    }

    fn mknod(
        &self,
        _: &Caller,
        parent: u64,
        name: &[u8],
        kind: FileKind,
        permissions: u32,
        _: u32,
    ) -> Reply<Entry> {
        let mut state = self.0.lock();
        let body = if kind == FileKind::Regular { Body::File(Content::default()) } else { Body::Special };
        let inode = state.make(parent, name, kind, permissions, body)?;
        state.entry(inode)
    }

    fn mkdir(&self, _: &Caller, parent: u64, name: &[u8], permissions: u32) -> Reply<Entry> {
        let mut state = self.0.lock();
        let body = Body::Directory(Names::new());
        let inode = state.make(parent, name, FileKind::Directory, permissions, body)?;
        state.entry(inode)
    }

    fn unlink(&self, _: &Caller, parent: u64, name: &[u8]) -> Reply<()> {
        self.0.lock().remove(parent, name)
    }

    fn rmdir(&self, _: &Caller, parent: u64, name: &[u8]) -> Reply<()> {
        self.0.lock().remove(parent, name)
    }

    fn symlink(&self, _: &Caller, _: u64, _: &[u8], _: &[u8]) -> Reply<Entry> {
        Err(Errno::OPNOTSUPP)
    }

    fn rename(&self, _: &Caller, source: (u64, &[u8]), target: (u64, &[u8]), mode: RenameMode) -> Reply<()> {
        let mut state = self.0.lock();
        let inode = state.child(source.0, source.1)?;
        let replaced = state.child(target.0, target.1).ok();
        match (mode, replaced) {
            (RenameMode::Exchange, _) => return Err(Errno::OPNOTSUPP),
            (RenameMode::NoReplace, Some(_)) => return Err(Errno::EXIST),
            (_, Some(other)) if other == inode => return Ok(()),
            _ => {}
        }
        if let Some(other) = replaced {
            state.unname(other);
        }
        state.names(source.0)?.remove(source.1);
        state.names(target.0)?.insert(target.1.to_vec(), inode);
        state.node(inode)?.parent = target.0;
        state.record(source.0, || Change::Rename {
            source: (source.0, source.1.to_vec()),
            target: (target.0, target.1.to_vec()),
        });
        Ok(())
    }

    fn link(&self, _: &Caller, inode: u64, parent: u64, name: &[u8]) -> Reply<Entry> {
        let mut state = self.0.lock();
        if state.child(parent, name).is_ok() {
            return Err(Errno::EXIST);
        }
        state.names(parent)?.insert(name.to_vec(), inode);
        state.node(inode)?.links += 1;
        state.record(parent, || Change::Link { parent, name: name.to_vec(), inode });
        state.entry(inode)
    }

    fn open(&self, _: &Caller, inode: u64, flags: i32) -> Reply<Opened> {
        self.0.lock().open(inode, flags)
    }

    fn create(
        &self,
        _: &Caller,
        parent: u64,
        name: &[u8],
        permissions: u32,
        flags: i32,
    ) -> Reply<(Entry, Opened)> {
        let mut state = self.0.lock();
        let body = Body::File(Content::default());
        let inode = match state.make(parent, name, FileKind::Regular, permissions, body) {
            Err(Errno::EXIST) if flags & OFlags::EXCL.bits() as i32 == 0 => state.child(parent, name)?,
            made => made?,
        };
        let opened = state.open(inode, flags)?;
        Ok((state.entry(inode)?, opened))
    }

    fn read(&self, _: &Caller, request: &ReadRequest, into: &Placement) -> Reply<ReadOutcome> {
        let mut bytes = vec![0; into.len()];
        let count = self.0.lock().content(request.inode)?.read(request.offset, &mut bytes);
        into.copy_in(0, &bytes[..count]);
        Ok(ReadOutcome::Placed(count))
    }

    fn write(&self, _: &Caller, request: &WriteRequest, payload: Placement) -> Reply<usize> {
        let bytes = payload.to_vec();
        let mut state = self.0.lock();
        let inode = request.inode;
        let append = request.flags & OFlags::APPEND.bits() as i32 != 0 && !request.from_page_cache;
        let content = state.content(inode)?;
        let offset = if append { content.length } else { request.offset };
        content.write(offset, &bytes);
        state.record(inode, || Change::Write { inode, offset, bytes });
        Ok(payload.len())
    }

    fn flush(&self, _: &Caller, _: u64, _: u64) -> Reply<()> {
        Ok(())
    }

    fn release(&self, inode: u64, _: u64) {
        self.0.lock().close(inode);
    }

    fn fsync(&self, _: &Caller, inode: u64, _: u64, _: bool) -> Reply<()> {
        let mut state = self.0.lock();
        if let Some(begun) = state.record(inode, || Change::SyncBegin { inode }) {
            state.record(inode, || Change::SyncEnd { inode, begun });
        }
        Ok(())
    }

    fn opendir(&self, _: &Caller, inode: u64) -> Reply<Opened> {
        let mut state = self.0.lock();
        let listing = state.names(inode)?.iter().map(|(name, &child)| (name.clone(), child)).collect();
        state.next_listing += 1;
        let handle = state.next_listing;
        state.listings.insert(handle, listing);
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
        let mut state = self.0.lock();
        let parent = state.node(inode)?.parent;
        let mut listing = vec![(b".".to_vec(), inode), (b"..".to_vec(), parent)];
        listing.extend(state.listings.get(&handle).ok_or(Errno::BADF)?.iter().cloned());
        for (place, (name, child)) in listing.into_iter().enumerate().skip(after as usize) {
            let kind = state.nodes.get(&child).map_or(FileKind::Regular, |node| node.kind);
            if !sink.plain(&name, child, kind, place as u64 + 1) {
                break;
            }
        }
        Ok(())
    }

    fn releasedir(&self, _: u64, handle: u64) {
        self.0.lock().listings.remove(&handle);
    }

    fn fsyncdir(&self, caller: &Caller, inode: u64, handle: u64, data_only: bool) -> Reply<()> {
        self.fsync(caller, inode, handle, data_only)
    }

    fn statfs(&self, _: &Caller, _: u64) -> Reply<FileSystemStatistics> {
        Ok(FileSystemStatistics {
            block_bytes: BLOCK_BYTES as u32,
            blocks: 2 * FREE_BYTES / BLOCK_BYTES,
            blocks_free: FREE_BYTES / BLOCK_BYTES,
            blocks_available: FREE_BYTES / BLOCK_BYTES,
            inodes: 1 << 20,
            inodes_free: 1 << 19,
        })
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
        let mut state = self.0.lock();
        if let AllocateMode::PunchHole | AllocateMode::Zero { .. } = mode {
            state.content(inode)?.punch(offset, length);
            state.record(inode, || Change::Punch { inode, offset, length });
        }
        if let AllocateMode::Extend | AllocateMode::Zero { keep_length: false } = mode {
            let length = state.content(inode)?.length.max(offset + length);
            state.set_length(inode, length)?;
        }
        Ok(())
    }

    fn seek_data(&self, _: &Caller, inode: u64, _: u64, offset: u64) -> Reply<u64> {
        self.0.lock().content(inode)?.seek(offset, true).ok_or(Errno::NXIO)
    }

    fn seek_hole(&self, _: &Caller, inode: u64, _: u64, offset: u64) -> Reply<u64> {
        let mut state = self.0.lock();
        let content = state.content(inode)?;
        if offset >= content.length {
            return Err(Errno::NXIO);
        }
        Ok(content.seek(offset, false).unwrap_or(content.length))
    }
}

/// The mounted disk. Dropping it unmounts.
pub struct Disk {
    recorder: Arc<Recorder>,
    handle: SessionHandle,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    directory: PathBuf,
}

impl Disk {
    /// Mounts a disk without volumes on `directory`.
    pub fn mount(directory: &Path) -> std::io::Result<Disk> {
        let mut state = State { next_inode: ROOT - 1, ..State::default() };
        state.insert(0, ROOT, FileKind::Directory, 0o755, Body::Directory(Names::new()));
        let recorder = Arc::new(Recorder(Mutex::new(state)));
        let options = SessionOptions {
            mountpoint: directory.to_owned(),
            source: "power_disk".into(),
            threads_max: 4,
            buffers_kept_max: 4,
            grace: Duration::from_secs(5),
            ..Default::default()
        };
        let session = Session::mount(recorder.clone(), options)?;
        let handle = session.handle();
        let thread = Some(std::thread::spawn(move || session.run()));
        Ok(Disk { recorder, handle, thread, directory: directory.to_owned() })
    }

    /// A volume `name`, which is new in this mount, that holds `image`; its path.
    pub fn add(&self, name: &str, image: &Image) -> PathBuf {
        self.recorder.0.lock().adopt(name, image);
        self.directory.join(name)
    }

    /// As `add`; every change is recorded from now on.
    pub fn record(&self, name: &str, image: &Image) -> (PathBuf, u64) {
        let mut state = self.recorder.0.lock();
        let (volume, base) = state.adopt(name, image);
        state.logs.insert(volume, Log { base, changes: Vec::new() });
        (self.directory.join(name), volume)
    }

    /// Changes recorded so far: all that came before this call, and nothing that comes after it.
    pub fn position(&self, volume: u64) -> usize {
        self.recorder.0.lock().logs[&volume].changes.len()
    }

    /// Ends a recording.
    pub fn finish(&self, volume: u64) -> Log {
        self.recorder.0.lock().logs.remove(&volume).expect("the volume is recorded")
    }

    /// Remove an unused volume.
    pub fn remove(&self, name: &str) -> std::io::Result<()> {
        std::fs::remove_dir_all(self.directory.join(name))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = self.handle.unmount();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
