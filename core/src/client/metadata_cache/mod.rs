//! Names and attributes that this client received lately, so that look-ups need not ask for them again.
//!
//! - `attributes` of inodes, `dentries` (names, absent ones too), `readdir_prefetch` (listings), `kernel_pages`.
//!
//! Invariants:
//! - N1 No answer is older than `ttl`, counted from when the metadata service was asked.
//! - N2 A change that this client made is known at once; a reply to an older request never replaces it.
//! - N3 Memory is bounded, whatever has been listed: old generations are dropped as a whole.
//! - N4 The kernel is shown the newest that is known, and an open finds neither attributes nor pages of its file there
//!   that are older than the reply to the open. Before a look-up shows newer attributes of an open file, its pages are
//!   dropped: by the kernel itself if it is shown another length than before.
//!
//! Many look-ups in one directory within a short time become one listing with attributes, from which the following
//! ones are answered, absent names too.

mod attributes;
mod dentries;
mod generations;
mod kernel_pages;
mod readdir_prefetch;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::lock::Mutex;
use crate::wire::pb;

use attributes::{AttributeCache, Source};
use dentries::{Dentry, DentryCache};
use kernel_pages::KernelPages;
use readdir_prefetch::ReaddirPrefetch;

/// Entries of a directory that are listed at most: two pages of the service.
pub const LISTED_MAX: usize = 2048;

/// What is known of a name.
#[derive(Debug)]
pub enum NameLookup {
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
    attributes: AttributeCache,
    dentries: DentryCache,
    prefetch: ReaddirPrefetch,
    kernel_pages: KernelPages,
}

/// Totals since the start.
#[derive(Debug, Default)]
pub struct CacheCounters {
    pub name_hits: AtomicU64,
    pub name_misses: AtomicU64,
    pub attribute_hits: AtomicU64,
    pub attribute_misses: AtomicU64,
}

pub struct MetadataCache {
    ttl: Duration,
    pub counters: CacheCounters,
    inner: Mutex<Inner>,
}

/// Return attributes only: the bytes of small files are not kept here.
fn slim(mut inode: pb::Inode) -> Arc<pb::Inode> {
    inode.inline_data = Vec::new();
    Arc::new(inode)
}

impl MetadataCache {
    pub fn new(ttl: Duration) -> MetadataCache {
        let inner = Inner {
            attributes: AttributeCache::new(),
            dentries: DentryCache::new(),
            prefetch: ReaddirPrefetch::new(),
            kernel_pages: KernelPages::new(),
        };
        MetadataCache { ttl, counters: CacheCounters::default(), inner: Mutex::new(inner) }
    }

    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    fn left(&self, asked: Instant) -> Option<Duration> {
        self.ttl.checked_sub(asked.elapsed()).filter(|left| !left.is_zero())
    }

    /// Return what is known of `name` in directory `parent`.
    pub fn lookup(&self, parent: u64, name: &[u8]) -> NameLookup {
        let found = self.find(parent, name);
        let counter = match found {
            NameLookup::Known { .. } | NameLookup::Absent { .. } => &self.counters.name_hits,
            NameLookup::Unknown | NameLookup::List { .. } => &self.counters.name_misses,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    fn find(&self, parent: u64, name: &[u8]) -> NameLookup {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if let Some(dentry) = inner.dentries.get(parent, name)
            && let Some(ttl) = self.left(dentry.asked)
        {
            match dentry.inode {
                None => return NameLookup::Absent { ttl },
                Some(id) => {
                    if let Some(known) = inner.attributes.get(id)
                        && let Some(fresh) = self.left(known.asked)
                    {
                        return NameLookup::Known { inode: known.inode.clone(), ttl: ttl.min(fresh) };
                    }
                }
            }
        }
        if let Some(listing) = inner.prefetch.listing(parent)
            && listing.covers(name)
            && let asked = listing.asked()
            && let Some(ttl) = self.left(asked)
        {
            let Some(inode) = listing.answer(name) else { return NameLookup::Absent { ttl } };
            // What this client has learnt of the inode since may be newer.
            let newer = inner.attributes.get(inode.id).map(|known| known.inode.clone());
            let inode = newer.filter(|newer| newer.change > inode.change).unwrap_or(inode);
            inner.attributes.learn(inode.clone(), asked, Source::Shown);
            return NameLookup::Known { inode, ttl };
        }
        match inner.prefetch.miss(parent, name, !self.ttl.is_zero()) {
            Some(after) => NameLookup::List { after },
            None => NameLookup::Unknown,
        }
    }

    /// Return the attributes of an inode, and for how long they hold.
    pub fn attributes(&self, inode: u64) -> Option<(Arc<pb::Inode>, Duration)> {
        let found = self.find_attributes(inode);
        let CacheCounters { attribute_hits, attribute_misses, .. } = &self.counters;
        let counter = if found.is_some() { attribute_hits } else { attribute_misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    fn find_attributes(&self, inode: u64) -> Option<(Arc<pb::Inode>, Duration)> {
        let mut inner = self.inner.lock();
        let known = inner.attributes.get(inode)?;
        let ttl = self.left(known.asked)?;
        Some((known.inode.clone(), ttl))
    }

    /// Return what is known of an inode if that is newer than `inode`, however long ago it was asked for.
    pub fn newest(&self, inode: &pb::Inode) -> Option<Arc<pb::Inode>> {
        let mut inner = self.inner.lock();
        let known = inner.attributes.get(inode.id)?;
        (known.inode.change > inode.change).then(|| known.inode.clone())
    }

    /// Take in the reply to a request that the kernel made at `asked`. Return what is known now.
    pub fn learn_at(&self, inode: pb::Inode, asked: Instant) -> Arc<pb::Inode> {
        self.inner.lock().attributes.learn(slim(inode), asked, Source::Shown)
    }

    /// Take in the reply to a change that this client has just made.
    pub fn learn(&self, inode: pb::Inode) {
        self.inner.lock().attributes.learn(slim(inode), Instant::now(), Source::Own);
    }

    /// Take in the reply to an open.
    pub fn learn_opened(&self, inode: pb::Inode) {
        self.inner.lock().attributes.learn(slim(inode), Instant::now(), Source::Silent);
    }

    /// Return whether the kernel holds no attributes older than those of `change`.
    pub fn is_shown(&self, inode: u64, change: u64) -> bool {
        self.inner.lock().attributes.is_shown(inode, change)
    }

    /// Record that the kernel has dropped the attributes that it held when the inode was at `change`.
    pub fn shown(&self, inode: u64, change: u64) {
        self.inner.lock().attributes.shown(inode, change);
    }

    /// Take in that `name`, when it was asked for at `asked`, was the inode, or absent.
    pub fn learn_name(&self, parent: u64, name: &[u8], inode: Option<pb::Inode>, asked: Instant) {
        let mut inner = self.inner.lock();
        let id = inode.as_ref().map(|inode| inode.id);
        if let Some(inode) = inode {
            inner.attributes.learn(slim(inode), asked, Source::Shown);
        }
        inner.dentries.learn(parent, name, Dentry { inode: id, asked });
    }

    /// Take in that this client has just given `name` to the inode, or removed it. `time_ns`: the directory's time of
    /// change, if nothing else of it has changed and it is known: the service gives it to the inode too.
    pub fn changed(&self, parent: u64, name: &[u8], inode: Option<&pb::Inode>, time_ns: Option<i64>) {
        let now = Instant::now();
        let slim = inode.cloned().map(slim);
        let mut inner = self.inner.lock();
        match time_ns {
            Some(time_ns) => inner.attributes.touch(parent, time_ns),
            None => inner.attributes.forget(parent),
        }
        inner.prefetch.change(parent, name, slim.as_ref());
        let id = slim.as_ref().map(|inode| inode.id);
        if let Some(inode) = slim {
            inner.attributes.learn(inode, now, Source::Shown);
        }
        inner.dentries.change(parent, name, Dentry { inode: id, asked: now });
    }

    /// Return whether this client has changed an entry of the directory since `asked`.
    pub fn have_changed_since(&self, directory: u64, asked: Instant) -> bool {
        self.inner.lock().dentries.have_changed_since(directory, asked)
    }

    /// Forget what is known of the inode.
    pub fn forget_attributes(&self, inode: u64) {
        self.inner.lock().attributes.forget(inode);
    }

    /// Take in that this client has made a directory, as it asked for at `asked`: it is empty.
    pub fn made_directory(&self, inode: u64, asked: Instant) {
        self.inner.lock().prefetch.install_empty(inode, asked);
    }

    /// Take in the listing that `NameLookup::List` asked for at `asked`: entries after `after`, and whether there are more.
    /// `None`: it failed.
    pub fn finish_listing(
        &self,
        parent: u64,
        after: Vec<u8>,
        asked: Instant,
        listed: Option<(Vec<pb::Dentry>, bool)>,
    ) {
        let listed = listed.map(|(entries, more)| {
            let last = more.then(|| entries.last().map(|entry| entry.name.clone()).unwrap_or_default());
            let with_attributes = |entry: pb::Dentry| entry.attributes.map(|inode| (entry.name, slim(inode)));
            (entries.into_iter().filter_map(with_attributes).collect(), last)
        });
        self.inner.lock().prefetch.finish(parent, after, asked, listed);
    }

    /// Record an open of the file at `change`: pages of the kernel's cache belong to the inode as it was then. `None`:
    /// those that the kernel has do. Else this open must drop them; call `page_cache_dropped` with the number returned
    /// once it has.
    pub fn page_cache_at(&self, inode: u64, change: u64, length: u64) -> Option<u64> {
        self.inner.lock().kernel_pages.open(inode, change, length)
    }

    /// Return whether the kernel's pages of a file are older than its attributes of `change`.
    pub fn has_outdated_pages(&self, inode: u64, change: u64) -> bool {
        self.inner.lock().kernel_pages.are_outdated(inode, change)
    }

    /// Record that the kernel is about to be shown the newest known attributes of an open file, with this length; `change`
    /// is what the file itself knows. Return a number if it must drop its pages before: others have changed the file. Call
    /// `outdated_pages_dropped` with that then.
    pub fn outdates_pages(&self, inode: u64, change: u64, length: u64) -> Option<u64> {
        let mut inner = self.inner.lock();
        let change = change.max(inner.attributes.get(inode)?.inode.change);
        inner.kernel_pages.show(inode, change, length)
    }

    /// Record that the kernel has dropped its pages, as `outdates_pages` has asked for.
    pub fn outdated_pages_dropped(&self, inode: u64, number: u64) {
        self.inner.lock().kernel_pages.dropped(inode, number);
    }

    /// Record that the kernel has dropped the pages it had before the open of that number.
    pub fn page_cache_dropped(&self, inode: u64, invalidation: u64) {
        self.inner.lock().kernel_pages.invalidated(inode, invalidation);
    }

    /// Have the kernel's pages dropped at the next open, whatever has changed.
    pub fn page_cache_is_wrong(&self, inode: u64) {
        self.inner.lock().kernel_pages.forget(inode);
    }

    /// Record that this client alone changed the inode, from `from` to `to`: the kernel's pages are those of `to`.
    pub fn page_cache_follows(&self, inode: u64, from: u64, to: u64) {
        self.inner.lock().kernel_pages.follow(inode, from, to);
    }

    /// Count what is known, for tests and statistics.
    pub fn len(&self) -> usize {
        let inner = self.inner.lock();
        inner.attributes.len() + inner.dentries.len() + inner.kernel_pages.len() + inner.prefetch.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::generations::ENTRIES_MAX;
    use super::readdir_prefetch::{BURST_MISSES, BURST_WINDOW};
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

    fn id(found: NameLookup) -> Option<u64> {
        match found {
            NameLookup::Known { inode, .. } => Some(inode.id),
            NameLookup::Absent { .. } => None,
            other => panic!("not known: {other:?}"),
        }
    }

    /// Misses until the directory is to be listed.
    fn burst(names: &MetadataCache, parent: u64) -> (u32, Vec<u8>) {
        for misses in 1.. {
            match names.lookup(parent, format!("miss{misses}").as_bytes()) {
                NameLookup::List { after } => return (misses, after),
                NameLookup::Unknown => {}
                other => panic!("{other:?}"),
            }
        }
        unreachable!()
    }

    #[test]
    fn a_burst_of_lookups_becomes_one_listing_that_answers_absent_names_too() {
        // Misses count together only if they come within the window, which this thread may sleep through.
        let (names, (misses, after)) = std::iter::repeat_with(|| {
            let (names, began) = (names(), Instant::now());
            let listed = burst(&names, 1);
            (began.elapsed() < BURST_WINDOW).then_some((names, listed))
        })
        .find_map(|within| within)
        .expect("it repeats until there is one");
        assert_eq!((misses, after.as_slice()), (BURST_MISSES, &b""[..]));
        assert!(matches!(names.lookup(1, b"x"), NameLookup::Unknown), "one listing at a time");
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
        assert!(matches!(names.lookup(1, b"f"), NameLookup::Unknown));
        assert!(names.attributes(5).is_none());
        names.learn_name(1, b"f", Some(inode(5, 1)), Instant::now());
        let NameLookup::Known { ttl, .. } = names.lookup(1, b"f") else { panic!() };
        assert!(ttl <= names.ttl());
    }

    #[test]
    fn a_large_directory_is_listed_around_the_name_only() {
        let names = names();
        let (_, after) = burst(&names, 1);
        names.finish_listing(1, after, Instant::now(), Some((vec![dentry("a", 2)], true)));
        assert_eq!(id(names.lookup(1, b"a")), Some(2));
        assert!(matches!(names.lookup(1, b"b"), NameLookup::Unknown), "beyond what was listed");
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
        assert!(names.len() <= 6 * ENTRIES_MAX);
        assert!(names.attributes(200_001).unwrap().0.inline_data.is_empty());
    }

    #[test]
    fn pages_are_kept_only_if_no_other_client_changed_the_file() {
        let names = names();
        let is_kept = |change| match names.page_cache_at(5, change, 0) {
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
        let first = names.page_cache_at(5, 2, 0).unwrap();
        let second = names.page_cache_at(5, 2, 0).expect("older pages may still be there");
        names.page_cache_dropped(5, first);
        assert!(names.page_cache_at(5, 3, 0).is_some());
        names.page_cache_dropped(5, second);
        let third = names.page_cache_at(5, 3, 0).expect("another open has dropped older ones");
        names.page_cache_follows(5, 3, 4);
        names.page_cache_dropped(5, third);
        assert!(names.page_cache_at(5, 4, 0).is_none());
    }

    #[test]
    fn pages_are_dropped_before_newer_attributes_of_the_same_length_are_shown() {
        let names = names();
        names.page_cache_dropped(5, names.page_cache_at(5, 1, 10).unwrap());
        let outdates = |change, length| {
            names.learn_at(inode(5, change), Instant::now());
            names.outdates_pages(5, 0, length)
        };
        let shows = |change, length| {
            let number = outdates(change, length);
            number.into_iter().for_each(|number| names.outdated_pages_dropped(5, number));
            number.is_some()
        };
        assert!(!shows(1, 10));
        names.page_cache_follows(5, 1, 2);
        assert!(!shows(2, 20), "an own change");
        assert!(names.has_outdated_pages(5, 3) && !names.has_outdated_pages(5, 2));
        assert!(shows(3, 20), "somebody else's");
        assert!(!shows(3, 20), "they are dropped by now");
        assert!(names.page_cache_at(5, 3, 20).is_some(), "or will be");
        assert!(!shows(4, 30), "the kernel sees another length");
        assert!(shows(4, 30), "it may have known of that");
        names.page_cache_is_wrong(5);
        assert!(shows(4, 30), "nothing is known of them");
        assert!(names.outdates_pages(6, 0, 0).is_none(), "nor of the file");
        let first = outdates(5, 30).expect("somebody else's");
        assert!(names.has_outdated_pages(5, 5), "they are still there");
        let second = outdates(5, 30).expect("they are not shown meanwhile either");
        names.outdated_pages_dropped(5, first);
        assert!(names.has_outdated_pages(5, 5), "the second drops them again");
        names.outdated_pages_dropped(5, second);
        assert!(outdates(5, 30).is_none() && !names.has_outdated_pages(5, 5));
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
