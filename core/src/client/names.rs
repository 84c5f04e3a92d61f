//! Names and attributes that the mount has seen lately, so that it need not ask again for every look-up.
//!
//! Invariants:
//! - N1 Nothing is answered that the metadata service said more than `ttl` ago (counted from when it was asked).
//! - N2 What this client changed itself is known at once; an answer to an older question never replaces it.
//! - N3 Memory is bounded, whatever has been listed: old generations are dropped as a whole.
//! - N4 The kernel is shown the newest that is known, and whoever opens a file meets neither attributes nor pages of it
//!   there that are older than the answer to the open.
//!
//! Many look-ups in one directory within a short time become one listing with attributes, from which the following
//! ones are answered, absent names too.

use std::borrow::Borrow;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::lock::Mutex;

use crate::wire::pb;

/// Entries of each kind: 32,768 inodes of about 300 bytes are 10 MiB, twice while a generation is replaced.
const KNOWN_MAX: usize = 32_768;
/// Directories whose listing is kept.
const LISTINGS_MAX: usize = 16;
/// Look-ups in one directory that had to ask, within `BURST_WINDOW`, before it is listed.
const BURST_MISSES: u32 = 4;
const BURST_MISSES_MAX: u32 = 4096;
const BURST_WINDOW: Duration = Duration::from_millis(200);
/// A listing that has answered fewer look-ups than this was not worth its price: the next one has to be earned.
const WORTH_HITS: u32 = 32;
/// Entries of a directory that are listed at most: two pages of the service.
pub const LISTED_MAX: usize = 2048;

/// A map that forgets what was not used for one or two generations.
struct Generations<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
}

impl<K: Hash + Eq + Clone, V: Clone> Generations<K, V> {
    fn new() -> Self {
        Generations { young: HashMap::new(), old: HashMap::new() }
    }

    fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        if !self.young.contains_key(key)
            && let Some((key, value)) = self.old.remove_entry(key)
        {
            self.put(key, value);
        }
        self.young.get(key)
    }

    fn put(&mut self, key: K, value: V) {
        if self.young.len() >= KNOWN_MAX {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(key, value);
    }

    fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q)
    where
        K: Borrow<Q>,
    {
        self.young.remove(key);
        self.old.remove(key);
    }

    fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[derive(Clone)]
struct Attributes {
    inode: Arc<pb::Inode>,
    asked: Instant,
    /// The kernel holds no attributes older than of this `change`.
    shown: u64,
}

/// Which of the kernel's pages of a file may be used.
#[derive(Clone, Copy)]
struct Pages {
    /// `change` of the inode that they belong to,
    change: u64,
    /// once older ones have been dropped by the open of this number; 0: they have.
    invalidation: u64,
}

#[derive(Clone, Copy)]
struct Target {
    /// `None`: there is no such name.
    inode: Option<u64>,
    asked: Instant,
}

/// Part of a directory, as it was at one moment and with our own changes since.
struct Listing {
    asked: Instant,
    /// Names after this one are known …
    after: Vec<u8>,
    /// … up to and with this one; `None`: to the end.
    last: Option<Vec<u8>>,
    entries: BTreeMap<Vec<u8>, Arc<pb::Inode>>,
    hits: u32,
}

impl Listing {
    fn covers(&self, name: &[u8]) -> bool {
        (self.after.is_empty() || name > self.after.as_slice())
            && self.last.as_ref().is_none_or(|last| name <= last.as_slice())
    }

    fn change(&mut self, name: &[u8], inode: Option<Arc<pb::Inode>>) {
        if !self.covers(name) {
            return;
        }
        match inode {
            Some(inode) => drop(self.entries.insert(name.to_vec(), inode)),
            None => drop(self.entries.remove(name)),
        }
    }
}

/// A name, and the inode it has now.
type Change = (Vec<u8>, Option<Arc<pb::Inode>>);

/// How often a directory was asked about lately.
struct LookupBurst {
    began: Instant,
    misses: u32,
    /// Misses that it takes to list.
    needed: u32,
    /// Whether `needed` takes the worth of the last listing into account.
    judged: bool,
    /// Larger than a listing: only the neighbourhood of a name is listed.
    large: bool,
    /// A listing is under way; the changes made here since it began.
    listing: Option<Vec<Change>>,
}

/// What is known of a name.
#[derive(Debug)]
pub enum Found {
    Known {
        inode: Arc<pb::Inode>,
        ttl: Duration,
    },
    Absent {
        ttl: Duration,
    },
    Unknown,
    /// Unknown, and worth a listing of the names after this one; `finish_listing` must follow.
    List {
        after: Vec<u8>,
    },
}

struct Inner {
    attributes: Generations<u64, Attributes>,
    names: Generations<(u64, Vec<u8>), Target>,
    listings: HashMap<u64, Listing>,
    bursts: HashMap<u64, LookupBurst>,
    cached: Generations<u64, Pages>,
    last_invalidation: u64,
    /// When this client last changed an entry of a directory.
    changed: Generations<u64, Instant>,
}

/// Where an answer comes from, and goes to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    /// Its attributes go to the kernel.
    Shown,
    /// Of a change that this client made, and that the kernel knows of.
    Own,
    /// Only this client knows.
    Silent,
}

pub struct MetadataCache {
    ttl: Duration,
    inner: Mutex<Inner>,
}

/// Attributes only: the bytes of small files are not kept here.
fn slim(mut inode: pb::Inode) -> Arc<pb::Inode> {
    inode.inline_data = Vec::new();
    Arc::new(inode)
}

/// A name just before `name` in order.
fn before(name: &[u8]) -> Vec<u8> {
    let mut before = name.to_vec();
    match before.pop() {
        Some(last) if last > 1 => {
            before.push(last - 1);
            before.extend([0xff; 8]);
        }
        _ => {}
    }
    before
}

impl MetadataCache {
    pub fn new(ttl: Duration) -> MetadataCache {
        let inner = Inner {
            attributes: Generations::new(),
            names: Generations::new(),
            listings: HashMap::new(),
            bursts: HashMap::new(),
            cached: Generations::new(),
            last_invalidation: 0,
            changed: Generations::new(),
        };
        MetadataCache { ttl, inner: Mutex::new(inner) }
    }

    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    fn left(&self, asked: Instant) -> Option<Duration> {
        self.ttl.checked_sub(asked.elapsed()).filter(|left| !left.is_zero())
    }

    /// What is known of `name` in directory `parent`.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> Found {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if let Some(target) = inner.names.get(&(parent, name.to_vec())).copied()
            && let Some(ttl) = self.left(target.asked)
        {
            match target.inode {
                None => return Found::Absent { ttl },
                Some(id) => {
                    if let Some(known) = inner.attributes.get(&id)
                        && let Some(fresh) = self.left(known.asked)
                    {
                        return Found::Known { inode: known.inode.clone(), ttl: ttl.min(fresh) };
                    }
                }
            }
        }
        if let Some(listing) = inner.listings.get_mut(&parent) {
            let listing_asked = listing.asked;
            match self.left(listing_asked) {
                Some(ttl) if listing.covers(name) => {
                    listing.hits += 1;
                    return match listing.entries.get(name) {
                        None => Found::Absent { ttl },
                        Some(inode) => {
                            // What this client has learnt of the inode since may be newer.
                            let newer = inner.attributes.get(&inode.id).map(|known| known.inode.clone());
                            let inode =
                                newer.filter(|newer| newer.change > inode.change).unwrap_or(inode.clone());
                            inner.learn(inode.clone(), listing_asked, Source::Shown);
                            Found::Known { inode, ttl }
                        }
                    };
                }
                _ => {}
            }
        }
        inner.miss(parent, name, self.ttl)
    }

    /// The attributes of an inode, and for how long they hold.
    pub fn attributes(&self, inode: u64) -> Option<(Arc<pb::Inode>, Duration)> {
        let mut inner = self.inner.lock();
        let known = inner.attributes.get(&inode)?;
        let ttl = self.left(known.asked)?;
        Some((known.inode.clone(), ttl))
    }

    /// What is known of an inode that was told as `inode`, if that is newer, however long ago.
    pub fn newest(&self, inode: &pb::Inode) -> Option<Arc<pb::Inode>> {
        let mut inner = self.inner.lock();
        let known = inner.attributes.get(&inode.id)?;
        (known.inode.change > inode.change).then(|| known.inode.clone())
    }

    /// The metadata service answered a question that the kernel asked at `asked`. What is known now.
    pub fn learn_at(&self, inode: pb::Inode, asked: Instant) -> Arc<pb::Inode> {
        self.inner.lock().learn(slim(inode), asked, Source::Shown)
    }

    /// The metadata service just answered to a change.
    pub fn learn(&self, inode: pb::Inode) {
        self.inner.lock().learn(slim(inode), Instant::now(), Source::Own);
    }

    /// The metadata service just answered to an open.
    pub fn learn_opened(&self, inode: pb::Inode) {
        self.inner.lock().learn(slim(inode), Instant::now(), Source::Silent);
    }

    /// Whether the kernel holds no attributes older than of that `change`.
    pub fn is_shown(&self, inode: u64, change: u64) -> bool {
        self.inner.lock().attributes.get(&inode).is_some_and(|known| known.shown >= change)
    }

    /// The kernel has dropped what it held of attributes when the inode was at `change`.
    pub fn shown(&self, inode: u64, change: u64) {
        if let Some(known) = self.inner.lock().attributes.young.get_mut(&inode) {
            known.shown = known.shown.max(change);
        }
    }

    /// `name` was, when it was asked at `asked`, the inode, or absent.
    pub fn learn_name(&self, parent: u64, name: &[u8], inode: Option<pb::Inode>, asked: Instant) {
        let mut inner = self.inner.lock();
        let id = inode.as_ref().map(|inode| inode.id);
        if let Some(inode) = inode {
            inner.learn(slim(inode), asked, Source::Shown);
        }
        let key = (parent, name.to_vec());
        if inner.names.get(&key).is_none_or(|known| known.asked <= asked) {
            inner.names.put(key, Target { inode: id, asked });
        }
    }

    /// This client has just given `name` to the inode, or taken it away. `time_ns`: the directory's time of change, if
    /// nothing else of it has changed and it is known: the service gives it to the inode too.
    pub fn changed(&self, parent: u64, name: &[u8], inode: Option<&pb::Inode>, time_ns: Option<i64>) {
        let now = Instant::now();
        let slim = inode.cloned().map(slim);
        let mut inner = self.inner.lock();
        inner.changed.put(parent, now);
        match time_ns {
            Some(time_ns) => inner.touch(parent, time_ns),
            None => inner.attributes.remove(&parent),
        }
        if let Some(listing) = inner.listings.get_mut(&parent) {
            listing.change(name, slim.clone());
        }
        if let Some(changes) = inner.bursts.get_mut(&parent).and_then(|burst| burst.listing.as_mut()) {
            changes.push((name.to_vec(), slim.clone()));
        }
        let id = slim.as_ref().map(|inode| inode.id);
        if let Some(inode) = slim {
            inner.learn(inode, now, Source::Shown);
        }
        inner.names.put((parent, name.to_vec()), Target { inode: id, asked: now });
    }

    /// Whether this client has changed an entry of the directory since then.
    pub fn have_changed_since(&self, directory: u64, asked: Instant) -> bool {
        self.inner.lock().changed.get(&directory).is_some_and(|changed| *changed >= asked)
    }

    /// Nothing known of the inode counts any more.
    pub fn forget_attributes(&self, inode: u64) {
        self.inner.lock().attributes.remove(&inode);
    }

    /// A directory that this client has made, as it asked for at `asked`: empty.
    pub fn made_directory(&self, inode: u64, asked: Instant) {
        let listing =
            Listing { asked, after: Vec::new(), last: None, entries: BTreeMap::new(), hits: WORTH_HITS };
        self.inner.lock().install(inode, listing);
    }

    /// The listing asked for by `Found::List` at `asked`: entries after `after`; `more`: it goes on. `None`: it
    /// failed.
    pub fn finish_listing(
        &self,
        parent: u64,
        after: Vec<u8>,
        asked: Instant,
        listed: Option<(Vec<pb::Dentry>, bool)>,
    ) {
        let mut inner = self.inner.lock();
        let Some(burst) = inner.bursts.get_mut(&parent) else { return };
        let changes = burst.listing.take().unwrap_or_default();
        let Some((entries, more)) = listed else { return };
        burst.large = more || !after.is_empty();
        let last = more.then(|| entries.last().map(|entry| entry.name.clone()).unwrap_or_default());
        let entries = entries
            .into_iter()
            .filter_map(|entry| entry.attributes.map(|inode| (entry.name, slim(inode))))
            .collect();
        let mut listing = Listing { asked, after, last, entries, hits: 0 };
        for (name, inode) in changes {
            listing.change(&name, inode);
        }
        inner.install(parent, listing);
    }

    /// The file is being opened: pages of the kernel's cache belong to the inode as it was at `change`. `None`: those
    /// it may have from before do. Else they must be dropped by this open; call `page_cache_dropped` with that number
    /// once they are.
    pub fn page_cache_at(&self, inode: u64, change: u64) -> Option<u64> {
        let mut inner = self.inner.lock();
        if inner.cached.get(&inode).is_some_and(|pages| pages.change == change && pages.invalidation == 0) {
            return None;
        }
        inner.last_invalidation += 1;
        let invalidation = inner.last_invalidation;
        inner.cached.put(inode, Pages { change, invalidation });
        Some(invalidation)
    }

    /// The kernel has dropped what it had before the open of that number.
    pub fn page_cache_dropped(&self, inode: u64, invalidation: u64) {
        let mut inner = self.inner.lock();
        let Some(pages) = inner.cached.get(&inode).copied() else { return };
        if pages.invalidation == invalidation {
            inner.cached.put(inode, Pages { invalidation: 0, ..pages });
        }
    }

    /// The kernel's pages are to be dropped at the next open, whatever has changed.
    pub fn page_cache_is_wrong(&self, inode: u64) {
        self.inner.lock().cached.remove(&inode);
    }

    /// Only this client changed the inode, from `from` to `to`: the kernel's pages are those of `to`.
    pub fn page_cache_follows(&self, inode: u64, from: u64, to: u64) {
        let mut inner = self.inner.lock();
        if let Some(pages) = inner.cached.get(&inode).copied()
            && pages.change == from
        {
            inner.cached.put(inode, Pages { change: to, ..pages });
        }
    }

    /// Things known, for tests and statistics.
    pub fn len(&self) -> usize {
        let inner = self.inner.lock();
        let listed: usize = inner.listings.values().map(|listing| listing.entries.len()).sum();
        inner.attributes.len() + inner.names.len() + inner.cached.len() + inner.changed.len() + listed
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Inner {
    fn learn(&mut self, inode: Arc<pb::Inode>, asked: Instant, source: Source) -> Arc<pb::Inode> {
        let known = self.attributes.get(&inode.id).cloned();
        let (before, shown) = known.as_ref().map_or((0, 0), |known| (known.inode.change, known.shown));
        let newest = match known {
            Some(known)
                if known.inode.change > inode.change
                    || known.inode.change == inode.change && known.asked > asked =>
            {
                known
            }
            _ => Attributes { inode, asked, shown },
        };
        let change = newest.inode.change;
        let is_shown = match source {
            Source::Shown => true,
            Source::Own => change <= before + 1 && shown >= before,
            Source::Silent => false,
        };
        let shown = if is_shown { change } else { shown };
        self.attributes.put(newest.inode.id, Attributes { shown, ..newest.clone() });
        newest.inode
    }

    /// The directory's entries changed at that time. What is known of it gets no younger.
    fn touch(&mut self, directory: u64, time_ns: i64) {
        let Some(known) = self.attributes.get(&directory).cloned() else { return };
        if known.inode.ctime_ns < time_ns {
            let mut inode = pb::Inode::clone(&known.inode);
            inode.mtime_ns = time_ns;
            inode.ctime_ns = time_ns;
            inode.change = inode.change.max(time_ns as u64);
            self.attributes.put(directory, Attributes { inode: Arc::new(inode), ..known });
        }
    }

    fn install(&mut self, parent: u64, listing: Listing) {
        if !self.listings.contains_key(&parent)
            && self.listings.len() >= LISTINGS_MAX
            && let Some(oldest) =
                self.listings.iter().min_by_key(|(_, listing)| listing.asked).map(|(id, _)| *id)
        {
            self.listings.remove(&oldest);
        }
        self.listings.insert(parent, listing);
    }

    fn miss(&mut self, parent: u64, name: &[u8], ttl: Duration) -> Found {
        let now = Instant::now();
        if self.bursts.len() > LISTINGS_MAX * 8 {
            self.bursts.retain(|_, burst| burst.listing.is_some() || burst.began.elapsed() < BURST_WINDOW);
        }
        let burst = self.bursts.entry(parent).or_insert(LookupBurst {
            began: now,
            misses: 0,
            needed: BURST_MISSES,
            judged: false,
            large: false,
            listing: None,
        });
        if now.duration_since(burst.began) > BURST_WINDOW {
            burst.began = now;
            burst.misses = 0;
        }
        burst.misses += 1;
        if burst.misses < burst.needed || burst.listing.is_some() || ttl.is_zero() {
            return Found::Unknown;
        }
        if !std::mem::replace(&mut burst.judged, true)
            && let Some(last) = self.listings.get(&parent)
        {
            let worth = last.hits >= WORTH_HITS;
            burst.needed = if worth { BURST_MISSES } else { (burst.needed * 4).min(BURST_MISSES_MAX) };
            if burst.misses < burst.needed {
                return Found::Unknown;
            }
        }
        burst.misses = 0;
        burst.judged = false;
        burst.listing = Some(Vec::new());
        let after = if burst.large { before(name) } else { Vec::new() };
        Found::List { after }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inode(id: u64, change: u64) -> pb::Inode {
        pb::Inode { id, change, inline_data: vec![1; 100], ..Default::default() }
    }

    fn dentry(name: &str, id: u64) -> pb::Dentry {
        pb::Dentry { name: name.into(), inode: id, attributes: Some(inode(id, 1)), ..Default::default() }
    }

    fn names() -> MetadataCache {
        MetadataCache::new(Duration::from_secs(3600))
    }

    fn id(found: Found) -> Option<u64> {
        match found {
            Found::Known { inode, .. } => Some(inode.id),
            Found::Absent { .. } => None,
            other => panic!("not known: {other:?}"),
        }
    }

    /// Misses until the directory is to be listed.
    fn burst(names: &MetadataCache, parent: u64) -> (u32, Vec<u8>) {
        for misses in 1.. {
            match names.lookup(parent, format!("miss{misses}").as_bytes()) {
                Found::List { after } => return (misses, after),
                Found::Unknown => {}
                other => panic!("{other:?}"),
            }
        }
        unreachable!()
    }

    #[test]
    fn a_storm_of_lookups_becomes_one_listing_that_answers_absent_names_too() {
        // Misses count together only if they come within the window, which this thread may sleep through.
        let (names, (misses, after)) = std::iter::repeat_with(|| {
            let (names, began) = (names(), Instant::now());
            let listed = burst(&names, 1);
            (began.elapsed() < BURST_WINDOW).then_some((names, listed))
        })
        .find_map(|within| within)
        .expect("it repeats until there is one");
        assert_eq!((misses, after.as_slice()), (BURST_MISSES, &b""[..]));
        assert!(matches!(names.lookup(1, b"x"), Found::Unknown), "one listing at a time");
        let entries = vec![dentry("a", 2), dentry("b", 3)];
        names.finish_listing(1, after, Instant::now(), Some((entries, false)));
        assert_eq!(id(names.lookup(1, b"b")), Some(3));
        assert_eq!(id(names.lookup(1, b"c")), None);
    }

    #[test]
    fn own_changes_while_a_listing_is_under_way_win() {
        let names = names();
        let (_, after) = burst(&names, 1);
        let asked = Instant::now();
        names.changed(1, b"new", Some(&inode(9, 1)), None);
        names.changed(1, b"gone", None, None);
        names.finish_listing(1, after, asked, Some((vec![dentry("gone", 4)], false)));
        assert_eq!(id(names.lookup(1, b"new")), Some(9));
        assert_eq!(id(names.lookup(1, b"gone")), None);
        names.changed(1, b"new", None, None);
        assert_eq!(id(names.lookup(1, b"new")), None);
    }

    #[test]
    fn an_answer_to_an_older_question_does_not_undo_an_own_change() {
        let names = names();
        let asked = Instant::now();
        names.changed(1, b"f", Some(&inode(5, 3)), None);
        names.learn_name(1, b"f", None, asked);
        assert_eq!(id(names.lookup(1, b"f")), Some(5));
        names.learn_at(inode(5, 2), Instant::now());
        assert_eq!(names.attributes(5).unwrap().0.change, 3);
    }

    #[test]
    fn nothing_is_answered_after_its_time() {
        let names = MetadataCache::new(Duration::from_secs(60));
        let long_ago = Instant::now() - Duration::from_secs(61);
        names.learn_name(1, b"f", Some(inode(5, 1)), long_ago);
        assert!(matches!(names.lookup(1, b"f"), Found::Unknown));
        assert!(names.attributes(5).is_none());
        names.learn_name(1, b"f", Some(inode(5, 1)), Instant::now());
        let Found::Known { ttl, .. } = names.lookup(1, b"f") else { panic!() };
        assert!(ttl <= names.ttl());
    }

    #[test]
    fn a_large_directory_is_listed_around_the_name_only() {
        let names = names();
        let (_, after) = burst(&names, 1);
        names.finish_listing(1, after, Instant::now(), Some((vec![dentry("a", 2)], true)));
        assert_eq!(id(names.lookup(1, b"a")), Some(2));
        assert!(matches!(names.lookup(1, b"b"), Found::Unknown), "beyond what was listed");
        let (misses, after) = burst(&names, 1);
        assert!(misses > BURST_MISSES, "the first listing was not worth it");
        assert!(after.as_slice() < format!("miss{misses}").as_bytes() && after.starts_with(b"miss"));
    }

    #[test]
    fn a_change_of_names_moves_the_time_of_its_directory_and_nothing_else() {
        let names = names();
        let directory = pb::Inode { ctime_ns: 10, mtime_ns: 10, permissions: 0o755, ..inode(1, 10) };
        names.learn(directory.clone());
        names.changed(1, b"f", Some(&inode(5, 1)), Some(20));
        names.changed(1, b"g", Some(&inode(6, 1)), Some(15));
        let (known, _) = names.attributes(1).unwrap();
        assert_eq!((known.mtime_ns, known.ctime_ns, known.permissions), (20, 20, 0o755));
        names.changed(1, b"d", None, None);
        assert!(names.attributes(1).is_none());
    }

    #[test]
    fn it_is_known_since_when_this_client_has_changed_nothing_in_a_directory() {
        let names = names();
        let before = Instant::now();
        names.changed(7, b"f", Some(&inode(8, 1)), Some(20));
        assert!(names.have_changed_since(7, before) && !names.have_changed_since(8, before));
        assert!(!names.have_changed_since(7, Instant::now() + Duration::from_secs(1)));
    }

    #[test]
    fn a_directory_made_here_is_known_to_be_empty() {
        let names = names();
        names.made_directory(7, Instant::now());
        assert_eq!(id(names.lookup(7, b"f")), None);
        names.changed(7, b"f", Some(&inode(8, 1)), None);
        assert_eq!(id(names.lookup(7, b"f")), Some(8));
    }

    #[test]
    fn memory_stays_bounded_after_a_hundred_thousand_files() {
        let names = names();
        for id in 0..200_000u64 {
            names.learn_name(1, id.to_string().as_bytes(), Some(inode(id + 2, 1)), Instant::now());
        }
        assert!(names.len() <= 6 * KNOWN_MAX);
        assert!(names.attributes(200_001).unwrap().0.inline_data.is_empty());
    }

    #[test]
    fn pages_are_kept_only_if_nobody_else_changed_the_file() {
        let names = names();
        let is_kept = |change| match names.page_cache_at(5, change) {
            None => true,
            Some(invalidation) => {
                names.page_cache_dropped(5, invalidation);
                false
            }
        };
        assert!(!is_kept(1));
        assert!(is_kept(1));
        names.page_cache_follows(5, 1, 2);
        assert!(is_kept(2));
        names.page_cache_is_wrong(5);
        assert!(!is_kept(2));
        assert!(!is_kept(4));
        names.page_cache_follows(5, 3, 5);
        assert!(!is_kept(5));
    }

    #[test]
    fn pages_are_not_kept_until_the_open_that_drops_them_was_answered() {
        let names = names();
        let first = names.page_cache_at(5, 2).unwrap();
        let second = names.page_cache_at(5, 2).expect("older pages may still be there");
        names.page_cache_dropped(5, first);
        assert!(names.page_cache_at(5, 3).is_some());
        names.page_cache_dropped(5, second);
        let third = names.page_cache_at(5, 3).expect("another open has dropped older ones");
        names.page_cache_follows(5, 3, 4);
        names.page_cache_dropped(5, third);
        assert!(names.page_cache_at(5, 4).is_none());
    }

    #[test]
    fn the_kernel_is_shown_what_it_has_asked_for_and_what_this_client_changed() {
        let names = names();
        names.learn_name(1, b"f", Some(inode(5, 3)), Instant::now());
        assert!(names.is_shown(5, 3));
        names.learn(inode(5, 4));
        assert!(names.is_shown(5, 4), "an own change");
        names.learn_opened(inode(5, 4));
        assert!(names.is_shown(5, 4));
        names.learn_opened(inode(5, 5));
        assert!(!names.is_shown(5, 5), "somebody else's");
        names.learn(inode(5, 6));
        assert!(!names.is_shown(5, 6), "an own change after it");
        names.shown(5, 6);
        assert!(names.is_shown(5, 6));
        names.learn(inode(5, 8));
        assert!(!names.is_shown(5, 8), "an own change, and somebody else's");
        assert!(!names.is_shown(6, 1), "nothing is known of it");
    }

    #[test]
    fn what_is_known_is_newer_than_an_old_listing() {
        let names = names();
        names.learn(inode(5, 3));
        assert_eq!(names.newest(&inode(5, 2)).unwrap().change, 3);
        assert!(names.newest(&inode(5, 3)).is_none() && names.newest(&inode(6, 1)).is_none());
    }
}
