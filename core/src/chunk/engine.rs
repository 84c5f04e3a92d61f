//! The engine: opening a directory, and what it knows of its space. Updates, reads, listings and syncs are in
//! the files beside this one.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::lock::{Mutex, RwLock};
use rustix::fs::FlockOperation;

use super::accesses::Accesses;
use super::api::*;
use super::blocks::Blocks;
use super::boot_id;
use super::cache::{Cache, CacheSlot};
use super::codec::RECORD_FORMAT;
use super::deferred_free::DeferredFree;
use super::group_commit::GroupCommit;
use super::index::{self, Index};
use super::pages::PageMap;
use super::segments::{self, Segments};
use super::state::{ContentState, HOLE, PAGE, PageNumber, Record};
use super::writers::Writers;
use crate::types::{ChainId, ChunkKey, Status, Version};

/// Version of the directory's layout and of all formats in it (docs/formats.md).
const FORMAT: u32 = 5;
const FORMAT_FILE: &str = "FORMAT";
/// How long a look at the file system's free space is believed.
const SPACE_AGE_MAX: Duration = Duration::from_millis(20);
/// Damaged pages remembered; a disk with more is broken as a whole.
const DAMAGE_MAX: usize = 4096;
/// Records that cannot be read; an index with more is broken as a whole, or not ours.
const UNREADABLE_MAX: usize = 1000;
/// Shorter runs are not worth a system call to give back, unless the disk is tight.
const PUNCH_PAGES_MIN: u32 = 16;
const _: () = assert!(PUNCH_PAGES_MIN > 1, "on a tight disk shorter runs are given back too");
/// Free pages that keep their disk space, so that they are quickly written again.
const KEEP_BACKED_BYTES: u64 = 256 << 20;
const _: () = assert!(KEEP_BACKED_BYTES.is_multiple_of(PAGE as u64));

/// The chunks of one storage directory. All methods take `&self` and may be called from any thread.
pub struct Engine {
    pub(super) core: Arc<Core>,
    flusher: Option<JoinHandle<()>>,
}

/// What the engine's methods and its flusher thread share.
pub(super) struct Core {
    pub options: EngineOptions,
    pub segments: Segments,
    pub index: Index,
    pub accesses: Arc<Accesses>,
    pub cache: Cache,
    pub pages: Mutex<PageMap>,
    pub deferred_free: Mutex<DeferredFree>,
    pub group_commit: GroupCommit,
    pub writers: Writers,
    pub blocks: Blocks,
    usage: RwLock<HashMap<ChainId, Arc<UsageCounters>>>,
    damage: Mutex<BTreeSet<Damage>>,
    /// The highest version of any record that was forgotten; never lower than what the index says.
    pub floor: Mutex<Version>,
    free_space: Mutex<Option<(Instant, u64)>>,
    /// The open directory: holds the lock, and asks for free space.
    directory: File,
    report: OpenReport,
    /// The newest round that had succeeded when this directory was first opened since it was last confirmed.
    opened: u64,
}

#[derive(Default)]
struct UsageCounters {
    chunks: AtomicI64,
    tombstones: AtomicI64,
    bytes: AtomicI64,
    pages: AtomicI64,
    updates: AtomicI64,
}

impl Engine {
    /// Open the storage directory `dir`, or make one of an empty or absent directory, unless `options` forbid it.
    ///
    /// After `kill -9` everything acknowledged is there. Checks that no page has two owners.
    pub fn open(dir: &Path, options: EngineOptions) -> Result<Engine, OpenError> {
        let core = Arc::new(Core::open(dir, options)?);
        let flusher = core.options.sync_interval.map(|interval| {
            let core = core.clone();
            std::thread::Builder::new()
                .name("chunk-flush".into())
                .spawn(move || core.flush_in_background(interval))
                .expect("a thread can be started")
        });
        Ok(Engine { core, flusher })
    }

    /// What opening found: pending chunks to drive on, damaged block files.
    pub fn open_report(&self) -> &OpenReport {
        &self.core.report
    }

    /// The chains that have records here.
    pub fn chains(&self) -> Vec<ChainId> {
        let usage = self.core.usage.read();
        let mut chains: Vec<_> =
            usage.iter().filter(|(_, counters)| counters.is_used()).map(|(&chain, _)| chain).collect();
        chains.sort();
        chains
    }

    pub fn usage(&self, chain: ChainId) -> Usage {
        self.core.usage.read().get(&chain).map(|counters| counters.usage()).unwrap_or_default()
    }

    pub fn space(&self) -> Result<Space, Status> {
        let free = self.core.file_system_free(true)?;
        let pages = self.core.pages.lock();
        let used_bytes = pages.used() * PAGE as u64;
        let free_bytes = free + pages.free_backed() * PAGE as u64;
        Ok(Space {
            capacity_bytes: used_bytes + free_bytes,
            free_bytes: free_bytes.saturating_sub(self.core.options.reserve_bytes),
            used_bytes,
        })
    }

    /// Damaged pages found since the start that have not been replaced since.
    pub fn damage(&self) -> Vec<Damage> {
        self.core.damage.lock().iter().copied().collect()
    }

    /// Why the engine refuses updates: a failed flush or index write, after which only opening it again shows
    /// what the disk holds. Reads continue.
    pub fn failure(&self) -> Option<Status> {
        self.core.group_commit.check().err()
    }

    /// Whether there is a `failure`. Cheap enough to ask before every request.
    pub fn has_failed(&self) -> bool {
        self.core.group_commit.has_failed()
    }

    /// No record that was forgotten had a higher version.
    pub fn floor(&self) -> Version {
        *self.core.floor.lock()
    }

    /// Rounds of `sync` begun in the life of this directory: what is staged from now on is of this one or a later.
    pub fn round(&self) -> u64 {
        self.core.group_commit.begun()
    }

    /// The newest round of `sync` that has succeeded: it is in the index on the disk, and never goes back.
    pub fn synced_round(&self) -> u64 {
        self.core.group_commit.synced()
    }

    /// How far this directory had come before it was opened: `synced_round` of then. It stays the same over any
    /// number of openings until `confirm`, although each of them syncs: an older copy stays an older copy.
    pub fn opened_round(&self) -> u64 {
        self.core.opened
    }

    /// This directory is known to be the newest; the next opening counts from what is there then. Durable.
    pub fn confirm(&self) -> Result<(), Status> {
        self.core.index.clear_opened()
    }

    /// How long the oldest access to the disk has been under way: on a disk that hangs it does not end.
    pub fn oldest_access(&self) -> Duration {
        self.core.accesses.oldest()
    }

    /// What clients say of their requests: which of them need not be remembered.
    pub fn writers(&self) -> &Writers {
        &self.core.writers
    }

    /// Bytes of memory that cached records take.
    pub fn cache_bytes(&self) -> usize {
        self.core.cache.bytes()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.core.group_commit.stop();
        if let Some(flusher) = self.flusher.take() {
            // A panic of the flusher has been reported by its thread; the drop continues.
            let _ = flusher.join();
        }
        if let Err(status) = self.core.sync() {
            log::error!(
                "closing the chunk engine failed: last sync: {status}; acknowledged writes may not be durable"
            );
        }
    }
}

impl Core {
    fn open(dir: &Path, options: EngineOptions) -> Result<Core, OpenError> {
        let failed = |source| OpenError::Io { path: dir.to_owned(), source };
        make_directory(dir).map_err(failed)?;
        let directory = File::open(dir).map_err(failed)?;
        rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            match io::Error::from(error) {
                error if error.kind() == ErrorKind::WouldBlock => OpenError::Locked { path: dir.to_owned() },
                error => failed(error),
            }
        })?;
        let segment_bytes = open_format(dir, &options)?;
        let blocks = dir.join("blocks");
        fs::create_dir_all(&blocks).map_err(failed)?;
        segments::sync_directory(dir).map_err(failed)?;
        let accesses = Arc::new(Accesses::default());
        let has_lost_power = boot_id::has_changed(dir).map_err(failed)?;
        let index = open_index(dir, &blocks, &options, accesses.clone(), has_lost_power)?;
        let synced = index
            .synced()
            .map_err(|status| OpenError::Index { path: dir.to_owned(), reason: status.to_string() })?;
        let floor = index
            .floor()
            .map_err(|status| OpenError::Index { path: dir.to_owned(), reason: status.to_string() })?;
        let opened = opened_round(&index, synced)
            .map_err(|status| OpenError::Index { path: dir.to_owned(), reason: status.to_string() })?;
        let segments = Segments::new(blocks, &options, segment_bytes, accesses.clone());
        let mut core = Core {
            pages: Mutex::new(PageMap::new(segments.segment_pages())),
            cache: Cache::new(options.cache_bytes / 2),
            deferred_free: Mutex::default(),
            // An earlier process may have been in the middle of the round after.
            group_commit: GroupCommit::starting_at(synced + 1),
            writers: Writers::default(),
            blocks: Blocks::default(),
            usage: RwLock::default(),
            damage: Mutex::default(),
            floor: Mutex::new(Version(floor)),
            free_space: Mutex::new(None),
            report: OpenReport::default(),
            opened,
            options,
            segments,
            index,
            accesses,
            directory,
        };
        // Data of earlier rounds is durable; after power loss the rest is looked at.
        let suspect = has_lost_power.then_some(synced);
        core.report = core.load(dir, suspect)?;
        // What an earlier process left in the kernel becomes durable before any page is used again (I3, I7).
        core.segments.suspect_all();
        core.sync().map_err(|status| OpenError::Index {
            path: dir.to_owned(),
            reason: format!("first sync: {status}"),
        })?;
        boot_id::remember(dir).map_err(failed)?;
        Ok(core)
    }

    /// Read the whole index: which pages are in use, by which chunk, and how much each chain holds.
    fn load(&self, dir: &Path, suspect: Option<u64>) -> Result<OpenReport, OpenError> {
        let damaged = |reason: String| OpenError::Damaged { path: dir.to_owned(), reason };
        let failed = |source| OpenError::Io { path: dir.to_owned(), source };
        let mut report = OpenReport::default();
        // Before anything is read: reading makes missing files.
        let existing = segments::existing(&dir.join("blocks")).map_err(failed)?;
        let mut pages = self.pages.lock();
        for entry in self.index.scan(index::everything()) {
            let (key, record) = entry.map_err(|status| damaged(format!("the chunk index: {status}")))?;
            // Its pages are unknown, and so free unless another record names them: without it they are no data.
            let Ok(mut record) = record else {
                if report.unreadable.is_empty()
                    && let Some(found) = self.index.foreign_format()
                {
                    let path = dir.to_owned();
                    return Err(OpenError::RecordFormat { path, found, wanted: RECORD_FORMAT });
                }
                report.unreadable.push(key);
                if report.unreadable.len() > UNREADABLE_MAX {
                    return Err(damaged(format!(
                        "more than {UNREADABLE_MAX} records of the chunk index cannot be read; empty the whole directory \
                         of this node, and the other replicas fill it"
                    )));
                }
                continue;
            };
            if let Some(older) = suspect.and_then(|synced| self.fall_back(&record, synced)) {
                log::warn!(
                    "{key:?}: newest data lost with the power (never synced); using the state before it"
                );
                let stored = match older.is_absent() {
                    true => self.forget(key, &record),
                    false => self.index.put(key, &older),
                };
                stored.map_err(|status| damaged(format!("the chunk index: {status}")))?;
                report.fallen_back.push(key);
                record = older;
                if record.is_absent() {
                    continue;
                }
            }
            for page in owned_pages(&record) {
                if !pages.claim(page) {
                    return Err(damaged(format!("page {page} has two owners, one is {key:?}")));
                }
            }
            report.chunks += 1;
            if record.pending.is_some() {
                report.pending.push(key);
            }
            self.account(key, &Record::default(), &record);
        }
        let used: BTreeSet<u32> =
            (0..pages.segment_count()).filter(|&number| pages.is_segment_used(number)).collect();
        for &number in used.union(&existing.keys().copied().collect()) {
            self.segments.open_known(number).map_err(failed)?;
            // One that no chunk uses holds nothing: a process that was killed while it made the file leaves it short.
            if used.contains(&number)
                && existing.get(&number).is_none_or(|&length| length < self.segments.bytes())
            {
                log::error!(
                    "{}: block file {number} missing or truncated; its pages read as damaged",
                    dir.display()
                );
                report.damaged_segments.push(number);
            }
            for page in self.segments.backed_pages(number).map_err(failed)? {
                pages.note_backed(page);
            }
        }
        Ok(report)
    }

    /// After power loss: the record without states whose data, of round `synced` or later, is not on disk; `None`
    /// if all is there.
    fn fall_back(&self, record: &Record, synced: u64) -> Option<Record> {
        let is_lost = |state: &ContentState| state.round >= synced && !self.is_intact(state);
        if record.committed.as_ref().is_some_and(|state| is_lost(state)) {
            let committed = record.fallbacks.iter().find(|state| !is_lost(state)).cloned();
            if committed.as_ref().is_some_and(|state| !self.is_intact(state)) {
                return None; // Not power loss but damage: the chain repairs it.
            }
            let version = committed.as_ref().map_or(Version(0), |state| state.stamp.version);
            let mut writers = record.writers.clone();
            writers.retain(|writer| writer.version <= version);
            return Some(Record { committed, writers, ..Record::default() });
        }
        record.pending.as_ref().filter(|pending| is_lost(&pending.state))?;
        Some(Record { pending: None, ..record.clone() })
    }

    /// The slot and the record of a chunk.
    pub fn record(&self, key: ChunkKey) -> Result<(Arc<CacheSlot>, Arc<Record>), Status> {
        let slot = self.cache.slot(key);
        let record = self.record_of(key, &slot)?;
        Ok((slot, record))
    }

    pub fn record_of(&self, key: ChunkKey, slot: &CacheSlot) -> Result<Arc<Record>, Status> {
        self.cache.record(key, slot, || Ok(self.index.get(key)?.unwrap_or_default()))
    }

    /// Keep the counters of a chain: `before` has become `after`.
    pub fn account(&self, key: ChunkKey, before: &Record, after: &Record) {
        let known = self.usage.read().get(&key.chain).cloned();
        let counters = known.unwrap_or_else(|| self.usage.write().entry(key.chain).or_default().clone());
        counters.add(before, -1);
        counters.add(after, 1);
    }

    /// Bytes free in the file system, as of a moment ago or (`exact`) of now.
    pub fn file_system_free(&self, exact: bool) -> Result<u64, Status> {
        let mut free_space = self.free_space.lock();
        if let Some((at, free)) = *free_space
            && !exact
            && at.elapsed() < SPACE_AGE_MAX
        {
            return Ok(free);
        }
        let stat = rustix::fs::fstatvfs(&self.directory).map_err(|error| {
            log::error!("statvfs of the storage directory failed: {error}");
            Status::Io
        })?;
        let free = stat.f_bavail * stat.f_frsize;
        *free_space = Some((Instant::now(), free));
        Ok(free)
    }

    /// Note that `bytes` of the free space were just used.
    pub fn took_space(&self, bytes: u64) {
        if let Some((_, free)) = &mut *self.free_space.lock() {
            *free = free.saturating_sub(bytes);
        }
    }

    /// Take released pages back, and give space to the file system where we hold much of it unused.
    pub fn free_pages(&self, released: &[PageNumber]) {
        // On a tight disk the reserve comes first, the index's part of it most of all.
        let free = self.file_system_free(false).unwrap_or(u64::MAX);
        let missing = self.options.reserve_bytes.saturating_sub(free) / PAGE as u64;
        let punch = {
            let mut pages = self.pages.lock();
            released.iter().for_each(|&page| pages.free_page(page));
            let keep = pages.free_backed().saturating_sub(missing).min(KEEP_BACKED_BYTES / PAGE as u64);
            pages.take_punchable(keep, if missing > 0 { 1 } else { PUNCH_PAGES_MIN })
        };
        for extent in punch {
            if let Err(error) = self.segments.punch(extent) {
                log::warn!("punching holes in a block file failed: {error}; its space stays allocated");
            }
            self.pages.lock().free(extent);
        }
        *self.free_space.lock() = None;
    }

    pub fn report_damage(&self, damage: Damage) {
        log::error!("damaged page: {damage:?}");
        let mut known = self.damage.lock();
        if known.len() < DAMAGE_MAX {
            known.insert(damage);
        }
    }

    /// After an update: damage of pages that the chunk no longer has is history.
    pub fn review_damage(&self, key: ChunkKey, before: &Record, after: &Record) {
        let mut known = self.damage.lock();
        if known.is_empty() {
            return;
        }
        let of_chunk: Vec<Damage> = known.iter().filter(|damage| damage.key == key).copied().collect();
        for damage in of_chunk {
            let page = |record: &Record| page_of(record.committed.as_deref(), damage.page as usize);
            known.remove(&damage);
            if page(after).is_some() && page(before) == page(after) {
                known.insert(Damage { version: after.version(), ..damage });
            }
        }
    }
}

fn page_of(state: Option<&ContentState>, index: usize) -> Option<PageNumber> {
    let state = state.filter(|state| index < state.crcs.len())?;
    state.pages_between(index, index + 1).first().copied()
}

/// The pages of both states of a record, shared ones once.
fn owned_pages(record: &Record) -> impl Iterator<Item = PageNumber> {
    let committed = || record.committed.iter().flat_map(|state| state.pages());
    let mut other = committed();
    let pending = record.pending.iter().flat_map(|pending| pending.state.pages());
    let own = pending.filter(move |&page| other.next() != Some(page));
    committed().chain(own).filter(|&page| page != HOLE)
}

impl UsageCounters {
    fn add(&self, record: &Record, sign: i64) {
        if record.is_absent() {
            return;
        }
        match &record.committed {
            Some(state) if state.removed => {
                self.tombstones.fetch_add(sign, Ordering::Relaxed);
            }
            Some(state) => {
                self.chunks.fetch_add(sign, Ordering::Relaxed);
                self.bytes.fetch_add(sign * i64::from(state.length), Ordering::Relaxed);
                self.updates.fetch_add(sign * state.stamp.version.0 as i64, Ordering::Relaxed);
            }
            None => {}
        }
        self.pages.fetch_add(sign * owned_pages(record).count() as i64, Ordering::Relaxed);
    }

    fn usage(&self) -> Usage {
        let get = |counter: &AtomicI64| counter.load(Ordering::Relaxed).max(0) as u64;
        Usage {
            chunks: get(&self.chunks),
            tombstones: get(&self.tombstones),
            bytes: get(&self.bytes),
            page_bytes: get(&self.pages) * PAGE as u64,
            updates: get(&self.updates),
        }
    }

    fn is_used(&self) -> bool {
        let usage = self.usage();
        usage.chunks + usage.tombstones + usage.page_bytes > 0
    }
}

/// The round that an unconfirmed opening has noted, or `synced`, which is noted now; the first sync makes it durable.
fn opened_round(index: &Index, synced: u64) -> Result<u64, Status> {
    match index.opened()? {
        0 => index.set_opened(synced).map(|()| synced),
        noted => Ok(noted),
    }
}

/// Open the index, or make that of a directory whose making broke off before it had one.
fn open_index(
    dir: &Path,
    blocks: &Path,
    options: &EngineOptions,
    accesses: Arc<Accesses>,
    has_lost_power: bool,
) -> Result<Index, OpenError> {
    let failed = |source| OpenError::Io { path: dir.to_owned(), source };
    let path = dir.join("index");
    let damaged = |reason: String| OpenError::Damaged { path: path.clone(), reason };
    if !path.try_exists().map_err(failed)?
        && (boot_id::is_known(dir).map_err(failed)? || blocks.read_dir().map_err(failed)?.next().is_some())
    {
        return Err(damaged(
            "the chunk index is gone: put it back; if it is lost, empty the whole directory of the node, and the other \
             replicas fill it"
                .into(),
        ));
    }
    Index::open(&path, options.cache_bytes / 2, accesses, has_lost_power).map_err(|error| match error {
        fjall::Error::Io(source) if source.kind() == ErrorKind::InvalidData => damaged(source.to_string()),
        fjall::Error::Io(source) => failed(source),
        error => OpenError::Index { path: dir.to_owned(), reason: error.to_string() },
    })
}

/// Read `dir/FORMAT`, or write it into an empty directory; the size of the block files.
fn open_format(dir: &Path, options: &EngineOptions) -> Result<u64, OpenError> {
    let failed = |source| OpenError::Io { path: dir.to_owned(), source };
    let path = dir.join(FORMAT_FILE);
    let segment_bytes = options.segment_bytes;
    match fs::read_to_string(&path) {
        Ok(text) => {
            let (segment_bytes, found) = parse_format(&path, &text)?;
            match options.identity {
                0 => Ok(segment_bytes),
                wanted if wanted == found => Ok(segment_bytes),
                wanted => Err(OpenError::OtherEngine { path: dir.to_owned(), found, wanted }),
            }
        }
        Err(error) if error.kind() == ErrorKind::InvalidData => {
            Err(OpenError::Foreign { path: dir.to_owned() })
        }
        Err(error) if error.kind() != ErrorKind::NotFound => Err(failed(error)),
        Err(_) => {
            if segment_bytes == 0
                || !segment_bytes.is_multiple_of(64 * PAGE as u64)
                || segment_bytes > 1 << 44
            {
                return Err(OpenError::Option(
                    "segment_bytes must be a multiple of 64 pages, at most 16 TiB",
                ));
            }
            for entry in dir.read_dir().map_err(failed)? {
                let name = entry.map_err(failed)?.file_name();
                // What a crash while making the directory, and mkfs, leave behind.
                if name != "FORMAT.new" && name != "lost+found" {
                    return Err(OpenError::Foreign { path: dir.to_owned() });
                }
            }
            if !options.create {
                return Err(OpenError::Missing { path: dir.to_owned() });
            }
            write_format(dir, &path, options).map_err(failed)?;
            Ok(segment_bytes)
        }
    }
}

/// Make `dir` if it is missing, with a name that survives power loss.
fn make_directory(dir: &Path) -> io::Result<()> {
    if dir.try_exists()? {
        return Ok(());
    }
    fs::create_dir_all(dir)?;
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
    segments::sync_directory(parent.unwrap_or(Path::new(".")))
}

fn write_format(dir: &Path, path: &Path, options: &EngineOptions) -> io::Result<()> {
    let new = dir.join("FORMAT.new");
    let mut file = File::create(&new)?;
    let EngineOptions { segment_bytes, identity, .. } = options;
    write!(
        file,
        "luciola chunk engine\nformat {FORMAT}\npage_bytes {PAGE}\nsegment_bytes {segment_bytes}\n\
         identity {identity:032x}\n"
    )?;
    file.sync_all()?;
    fs::rename(new, path)?;
    segments::sync_directory(dir)
}

/// The size of the block files, and which engine it is.
fn parse_format(path: &Path, text: &str) -> Result<(u64, u128), OpenError> {
    let mut lines = text.lines();
    if lines.next() != Some("luciola chunk engine") {
        return Err(OpenError::Foreign { path: path.to_owned() });
    }
    let damaged =
        || OpenError::Damaged { path: path.to_owned(), reason: "a line is missing or malformed".into() };
    let mut line = |name: &str| lines.next().and_then(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let mut field = |name: &str| -> Result<u64, OpenError> {
        line(name).and_then(|value| value.parse().ok()).ok_or_else(damaged)
    };
    let found = field("format")? as u32;
    if found != FORMAT {
        return Err(OpenError::Format { path: path.to_owned(), found, wanted: FORMAT });
    }
    let page_bytes = field("page_bytes")?;
    let segment_bytes = field("segment_bytes")?;
    if page_bytes != PAGE as u64 || segment_bytes == 0 || !segment_bytes.is_multiple_of(64 * PAGE as u64) {
        return Err(damaged());
    }
    let identity = line("identity").and_then(|value| u128::from_str_radix(value, 16).ok());
    Ok((segment_bytes, identity.ok_or_else(damaged)?))
}
