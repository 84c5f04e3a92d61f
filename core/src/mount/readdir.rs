//! An open directory: pages of its listing, fetched as the reader continues, the next one before it is asked for.
//!
//! The offset of an entry is its cookie, which it keeps until its name goes: a reader may continue after any offset that it
//! was ever given, by this or another open of the directory, or before a remount, and misses no name that was there all
//! the while. Only two pages are kept, whatever the size of the directory, and one that was fetched ahead. Nothing is
//! shown that was asked for before this client changed an entry of the directory: own changes are known at once. Names
//! made since the listing began are not shown: a program that makes one for each that it is shown comes to an end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use crate::client::{Identity, Shared};
use crate::error::Result;
use crate::wire::pb;

/// Entries of the first page. Few, so that the reader has something to do while the next page is made, which takes
/// about as long for an entry: so each page has little more than the one before it, up to `PAGE_ENTRIES_MAX`.
const FIRST_ENTRIES: u32 = 256;
const GROWTH: u32 = 64;
const PAGE_ENTRIES_MAX: u32 = 1024;
const _: () = assert!(FIRST_ENTRIES <= PAGE_ENTRIES_MAX);
/// Pages that an open directory keeps: programs go back by less than one.
const PAGES_MAX: usize = 2;

/// The offset of an entry in its directory: listing continues after it.
pub fn cookie(entry: &pb::Dentry) -> u64 {
    if entry.cookie == 0 { entry.inode } else { entry.cookie }
}

struct Page {
    /// The cookie after which it begins.
    after: u64,
    asked: Instant,
    with_inodes: bool,
    entries: Vec<pb::Dentry>,
    more: bool,
}

impl Page {
    fn last(&self) -> u64 {
        self.entries.last().map_or(self.after, cookie)
    }

    /// Whether it has the entry that comes next after `after`, or there is none.
    fn continues(&self, after: u64) -> bool {
        self.after <= after && (after < self.last() || !self.more)
    }

    fn rest(&self, after: u64) -> &[pb::Dentry] {
        &self.entries[self.entries.partition_point(|entry| cookie(entry) <= after)..]
    }
}

/// A page that is fetched before it is read.
struct PagePrefetch {
    /// The cookie after which it begins.
    after: u64,
    asked: Instant,
    with_inodes: bool,
    /// A thread is asking for it, or it is not wanted any more.
    taken: Arc<AtomicBool>,
    reply: Receiver<Result<pb::ListReply>>,
}

impl PagePrefetch {
    /// The page, if it was fetched. A reader that finds nothing fetches it: a pool may be slow to begin.
    fn wait(&self) -> Option<pb::ListReply> {
        if self.taken.swap(true, Ordering::AcqRel) { self.reply.recv().ok()?.ok() } else { None }
    }
}

impl Drop for PagePrefetch {
    fn drop(&mut self) {
        self.taken.store(true, Ordering::Release);
    }
}

pub struct Directory {
    inode: u64,
    parent: Option<u64>,
    /// Entries with this cookie or a greater one were made after the listing began.
    end: Option<u64>,
    /// The last two pages that were wanted.
    pages: Vec<Page>,
    prefetch: Option<PagePrefetch>,
    /// Pages fetched so far.
    fetched: u32,
}

impl Directory {
    pub fn new(inode: u64) -> Directory {
        Directory { inode, parent: None, end: None, pages: Vec::new(), prefetch: None, fetched: 0 }
    }

    /// Back to the start: the directory is listed again.
    pub fn rewind(&mut self) {
        *self = Directory::new(self.inode);
    }

    /// Inode of "..".
    pub fn parent(
        &mut self,
        shared: &Arc<Shared>,
        identity: &Arc<Identity>,
        with_inodes: bool,
    ) -> Result<u64> {
        if self.parent.is_none() {
            self.fetch(shared, identity, 0, with_inodes)?;
        }
        Ok(self.parent.unwrap_or(self.inode))
    }

    /// Entries after the one with the cookie `after`, as many as are here, at least one, and when they were asked for;
    /// none at the end.
    pub fn entries(
        &mut self,
        shared: &Arc<Shared>,
        identity: &Arc<Identity>,
        after: u64,
        with_inodes: bool,
    ) -> Result<(&[pb::Dentry], Instant)> {
        self.forget_overtaken(shared);
        let fits = |page: &Page| page.continues(after) && (page.with_inodes || !with_inodes);
        let held = match self.pages.iter().position(fits) {
            Some(held) => held,
            None => self.fetch(shared, identity, after, with_inodes)?,
        };
        let page = &self.pages[held];
        assert!(page.after <= after, "a page has what comes after the offset");
        Ok((page.rest(after), page.asked))
    }

    /// Names may have come or gone since.
    fn forget_overtaken(&mut self, shared: &Shared) {
        let holds = |asked| !shared.metadata_cache.have_changed_since(self.inode, asked);
        self.prefetch.take_if(|prefetch| !holds(prefetch.asked));
        self.pages.retain(|page| holds(page.asked));
    }

    /// Fetches the page after the cookie `after`, and begins to fetch the one after it. Returns its index.
    fn fetch(
        &mut self,
        shared: &Arc<Shared>,
        identity: &Arc<Identity>,
        after: u64,
        with_inodes: bool,
    ) -> Result<usize> {
        let (asked, with_inodes, reply) =
            match self.fetched_ahead(after, with_inodes, shared.metadata_cache.ttl()) {
                Some(fetched) => fetched,
                None => {
                    let asked = Instant::now();
                    (asked, with_inodes, shared.meta.list(identity, self.request(after, with_inodes))?)
                }
            };
        self.fetched += 1;
        self.parent = Some(reply.parent);
        let end = *self.end.get_or_insert(reply.next_cookie);
        let mut entries = reply.entries;
        let older = entries.partition_point(|entry| cookie(entry) < end);
        let more = reply.more && !entries.is_empty() && older == entries.len();
        entries.truncate(older);
        let page = Page { after, asked, with_inodes, entries, more };
        if more {
            self.fetch_ahead(shared, identity, page.last(), with_inodes);
        }
        self.pages.retain(|known| known.after != after);
        if self.pages.len() == PAGES_MAX {
            self.pages.remove(0);
        }
        self.pages.push(page);
        assert!(self.pages.len() <= PAGES_MAX, "an open directory keeps few pages");
        Ok(self.pages.len() - 1)
    }

    fn request(&self, after: u64, with_inodes: bool) -> pb::ListRequest {
        pb::ListRequest {
            inode: self.inode,
            by_cookie: true,
            after_cookie: after,
            limit: PAGE_ENTRIES_MAX.min(FIRST_ENTRIES + GROWTH.saturating_mul(self.fetched)),
            with_inodes,
            ..Default::default()
        }
    }

    fn fetch_ahead(&mut self, shared: &Arc<Shared>, identity: &Arc<Identity>, after: u64, with_inodes: bool) {
        if shared.metadata_cache.ttl().is_zero() {
            return;
        }
        let (replied, reply) = bounded(1);
        let taken = Arc::new(AtomicBool::new(false));
        let prefetch = PagePrefetch { after, asked: Instant::now(), with_inodes, taken, reply };
        let (asker, identity, taken) = (shared.clone(), identity.clone(), prefetch.taken.clone());
        let request = self.request(after, with_inodes);
        let job = move || {
            if !taken.swap(true, Ordering::AcqRel) {
                // No receiver is left when the directory was closed meanwhile.
                let _ = replied.send(asker.meta.list(&identity, request));
            }
        };
        self.prefetch = shared.background.submit(job).then_some(prefetch);
    }

    /// The page after the cookie `after`, if it was fetched ahead, and not so long ago that its attributes hold for
    /// less than half of their time.
    fn fetched_ahead(
        &mut self,
        after: u64,
        with_inodes: bool,
        ttl: Duration,
    ) -> Option<(Instant, bool, pb::ListReply)> {
        let prefetch = self.prefetch.take()?;
        let fits = prefetch.after == after && (prefetch.with_inodes || !with_inodes);
        if !fits || prefetch.asked.elapsed() > ttl / 2 {
            return None;
        }
        Some((prefetch.asked, prefetch.with_inodes, prefetch.wait()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::fake::{self, FakeMeta};
    use crate::error::{Error, Kind};
    use crate::wire::pb::Method;

    const ROOT: u64 = 1;

    struct ReaddirWorld {
        meta: Arc<FakeMeta>,
        shared: Arc<Shared>,
        identity: Arc<Identity>,
        directory: Directory,
    }

    impl ReaddirWorld {
        /// A directory of so many files, all names as long as one another.
        fn new(files: u64) -> ReaddirWorld {
            let chunks = Arc::default();
            let meta = FakeMeta::new(Arc::clone(&chunks));
            meta.make(1000..1000 + files);
            let files = fake::client_that_trusts(&chunks, &meta, 1 << 20, Duration::from_secs(3600));
            let shared = files.shared().clone();
            ReaddirWorld { meta, shared, identity: Arc::default(), directory: Directory::new(ROOT) }
        }

        /// The inodes that one reply to the kernel could show.
        fn read(&mut self, after: u64) -> Vec<u64> {
            let (entries, _) = self.directory.entries(&self.shared, &self.identity, after, true).unwrap();
            entries.iter().map(|entry| entry.inode).collect()
        }

        fn read_all(&mut self, after: u64) -> Vec<u64> {
            let mut found = Vec::new();
            loop {
                let more = self.read(found.last().copied().unwrap_or(after));
                if more.is_empty() {
                    return found;
                }
                found.extend(more);
            }
        }

        fn asked(&self) -> usize {
            self.meta.count(Method::MetaList)
        }

        fn remove_here(&self, inode: u64) {
            self.meta.remove(inode);
            self.shared.metadata_cache.changed(ROOT, format!("f{inode}").as_bytes(), None, Some(1));
        }

        fn hold_background(&self) -> crossbeam_channel::Sender<()> {
            fake::hold_background(&self.shared)
        }
    }

    #[test]
    fn every_entry_is_listed_once_however_many_pages_there_are() {
        for files in [0, 1, 256, 257, 1000, 5000] {
            let mut world = ReaddirWorld::new(files);
            assert_eq!(world.read_all(0), (1000..1000 + files).collect::<Vec<_>>());
            world.directory.rewind();
            assert_eq!(world.read_all(0).len(), files as usize);
        }
    }

    #[test]
    fn the_next_page_is_fetched_before_it_is_wanted() {
        let mut world = ReaddirWorld::new(500);
        assert_eq!(world.read(0).len(), 256);
        world.shared.background.stop();
        assert_eq!(world.asked(), 2);
        assert_eq!(world.read(1255).len(), 500 - 256);
        assert_eq!(world.asked(), 2);
    }

    #[test]
    fn reader_fetches_what_no_other_has_begun_to_fetch() {
        let mut world = ReaddirWorld::new(500);
        let held = world.hold_background();
        assert_eq!(world.read_all(0).len(), 500);
        assert_eq!(world.asked(), 2);
        drop(held);
        world.shared.background.stop();
        assert_eq!(world.asked(), 2, "a page that is not wanted any more is not fetched");
    }

    #[test]
    fn a_page_that_could_not_be_fetched_ahead_is_asked_for_again() {
        let mut world = ReaddirWorld::new(500);
        let held = world.hold_background();
        assert_eq!(world.read(0).len(), 256);
        world.meta.fail_calls(Some(Error::new(Kind::Unavailable, "on purpose")));
        drop(held);
        world.shared.background.stop();
        assert_eq!(world.asked(), 2);
        world.meta.fail_calls(None);
        assert_eq!(world.read(1255).len(), 500 - 256);
    }

    #[test]
    fn a_name_removed_here_is_not_shown_any_more_and_no_other_is_missed() {
        let mut world = ReaddirWorld::new(1000);
        assert_eq!(world.read(0).len(), 256);
        world.shared.background.stop();
        for inode in [1000, 1099, 1100, 1300] {
            world.remove_here(inode);
        }
        let expected: Vec<u64> = (1100..2000).filter(|inode| ![1100, 1300].contains(inode)).collect();
        assert_eq!(world.read_all(1099), expected);
    }

    #[test]
    fn a_name_removed_here_is_not_shown_from_a_page_that_was_fetched_ahead() {
        let mut world = ReaddirWorld::new(500);
        assert_eq!(world.read(0).len(), 256);
        world.shared.background.stop();
        world.remove_here(1400);
        let expected: Vec<u64> = (1256..1500).filter(|inode| *inode != 1400).collect();
        assert_eq!(world.read_all(1255), expected);
    }

    #[test]
    fn names_that_others_remove_are_no_reason_to_ask_again() {
        let mut world = ReaddirWorld::new(500);
        assert_eq!(world.read(0).len(), 256);
        world.shared.background.stop();
        world.meta.remove(1400);
        assert!(world.read(1255).contains(&1400));
    }

    #[test]
    fn an_offset_means_the_same_after_removals_a_rewind_and_in_another_open() {
        let mut world = ReaddirWorld::new(600);
        assert_eq!(world.read_all(0).len(), 600);
        for inode in 1100..1200 {
            world.remove_here(inode);
        }
        let expected: Vec<u64> = (1301..1600).collect();
        assert_eq!(world.read_all(1300), expected);
        world.directory.rewind();
        assert_eq!(world.read_all(1300), expected);
        world.directory = Directory::new(ROOT);
        assert_eq!(world.read_all(1300), expected);
        assert_eq!(world.read_all(1150), (1200..1600).collect::<Vec<_>>(), "after a name that is gone");
    }

    #[test]
    fn files_made_while_a_directory_is_listed_do_not_make_the_listing_longer() {
        let mut world = ReaddirWorld::new(300);
        let mut last = 0;
        for made in 2000..3000 {
            let Some(next) = world.read(last).first().copied() else { break };
            last = next;
            world.meta.make(made..made + 1);
            world.shared.metadata_cache.changed(ROOT, format!("f{made}").as_bytes(), None, Some(1));
        }
        assert_eq!(last, 1299);
        world.directory.rewind();
        assert_eq!(world.read_all(0).len(), 600);
    }
}
