//! An open directory: pages of its listing, fetched as the reader goes on, the next one before it is asked for.
//!
//! Entry number n of the listing has offset n. Only two pages are kept, whatever the size of the directory, and one that
//! was fetched ahead; a reader who goes further back gets the page listed again from the name before it. Nothing is
//! shown that was asked for before this client changed an entry of the directory: own changes are known at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};

use super::meta::Who;
use super::shared::Shared;
use crate::error::Result;
use crate::wire::pb;

/// Entries of the first page. Few, so that the reader has something to do while the next page is made, which takes
/// about as long for an entry: so each page has little more than the one before it, up to `PAGE_ENTRIES_MAX`.
const FIRST_ENTRIES: u32 = 256;
const GROWTH: u32 = 64;
const PAGE_ENTRIES_MAX: u32 = 1024;

struct Page {
    /// Number of its first entry.
    first: u64,
    asked: Instant,
    with_inodes: bool,
    entries: Vec<pb::Dentry>,
    more: bool,
}

impl Page {
    fn end(&self) -> u64 {
        self.first + self.entries.len() as u64
    }

    fn holds(&self, number: u64) -> bool {
        (self.first..self.end()).contains(&number)
    }
}

/// A page that is asked for before anybody wants it.
struct Ahead {
    /// Number of its first entry.
    first: u64,
    asked: Instant,
    with_inodes: bool,
    /// Somebody is asking for it, or nobody wants it any more.
    taken: Arc<AtomicBool>,
    reply: Receiver<Result<pb::ListReply>>,
}

impl Ahead {
    /// The page, if somebody has begun to ask for it and got it. Who finds nothing asks: a pool may be slow to begin.
    fn wait(&self) -> Option<pb::ListReply> {
        if self.taken.swap(true, Ordering::AcqRel) { self.reply.recv().ok()?.ok() } else { None }
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.taken.store(true, Ordering::Release);
    }
}

pub struct Directory {
    inode: u64,
    parent: Option<u64>,
    /// The last two pages that were wanted.
    pages: Vec<Page>,
    ahead: Option<Ahead>,
    /// Number of the first entry of each page so far, and the name before it.
    marks: Vec<(u64, Vec<u8>)>,
}

impl Directory {
    pub fn new(inode: u64) -> Directory {
        Directory { inode, parent: None, pages: Vec::new(), ahead: None, marks: vec![(0, Vec::new())] }
    }

    /// Back to the start: the directory is listed anew.
    pub fn rewind(&mut self) {
        *self = Directory::new(self.inode);
    }

    /// Inode of "..".
    pub fn parent(&mut self, shared: &Arc<Shared>, who: &Arc<Who>, with_inodes: bool) -> Result<u64> {
        if self.parent.is_none() {
            self.fetch(shared, who, 0, with_inodes)?;
        }
        Ok(self.parent.unwrap_or(self.inode))
    }

    /// Entries from number `number` on, as many as are here, at least one, and when they were asked for; none at the
    /// end.
    pub fn entries(
        &mut self,
        shared: &Arc<Shared>,
        who: &Arc<Who>,
        number: u64,
        with_inodes: bool,
    ) -> Result<(&[pb::Dentry], Instant)> {
        self.forget_overtaken(shared, number);
        loop {
            let held =
                self.pages.iter().position(|page| page.holds(number) && (page.with_inodes || !with_inodes));
            if let Some(held) = held {
                let page = &self.pages[held];
                return Ok((&page.entries[(number - page.first) as usize..], page.asked));
            }
            if self.pages.iter().any(|page| !page.more && number >= page.end()) {
                return Ok((&[], Instant::now()));
            }
            let mark = self.marks.partition_point(|(first, _)| *first <= number) - 1;
            self.fetch(shared, who, mark, with_inodes)?;
        }
    }

    /// The reader goes on after the name that it has seen last: earlier ones may have come or gone.
    fn forget_overtaken(&mut self, shared: &Shared, number: u64) {
        let overtaken = |asked| shared.names.have_changed_since(self.inode, asked);
        if self.ahead.as_ref().is_some_and(|ahead| overtaken(ahead.asked)) {
            self.ahead = None;
        }
        let Some(page) = self.pages.iter().find(|page| page.holds(number) && overtaken(page.asked)) else {
            return;
        };
        if number > page.first {
            let seen = page.entries[(number - page.first) as usize - 1].name.clone();
            self.marks.truncate(self.marks.partition_point(|(first, _)| *first < number));
            self.marks.push((number, seen));
        }
        self.pages.clear();
    }

    /// Fetches the page at `mark`, and begins to fetch the one after it.
    fn fetch(&mut self, shared: &Arc<Shared>, who: &Arc<Who>, mark: usize, with_inodes: bool) -> Result<()> {
        let first = self.marks[mark].0;
        let (asked, with_inodes, reply) = match self.fetched_ahead(first, with_inodes, shared.names.ttl()) {
            Some(fetched) => fetched,
            None => {
                let asked = Instant::now();
                (asked, with_inodes, shared.meta.list(who, self.request(mark, with_inodes))?)
            }
        };
        self.parent = Some(reply.parent);
        let more = reply.more && !reply.entries.is_empty();
        let page = Page { first, asked, with_inodes, entries: reply.entries, more };
        // The directory may have changed: later pages begin where this one ends now.
        self.marks.truncate(mark + 1);
        if let Some(last) = page.entries.last()
            && more
        {
            self.marks.push((page.end(), last.name.clone()));
            self.fetch_ahead(shared, who, mark + 1, with_inodes);
        }
        self.pages.retain(|known| known.first != first);
        if self.pages.len() == 2 {
            self.pages.remove(0);
        }
        self.pages.push(page);
        Ok(())
    }

    fn request(&self, mark: usize, with_inodes: bool) -> pb::ListRequest {
        pb::ListRequest {
            inode: self.inode,
            after: self.marks[mark].1.clone(),
            limit: PAGE_ENTRIES_MAX.min(FIRST_ENTRIES + GROWTH * mark as u32),
            with_inodes,
            ..Default::default()
        }
    }

    fn fetch_ahead(&mut self, shared: &Arc<Shared>, who: &Arc<Who>, mark: usize, with_inodes: bool) {
        if shared.names.ttl().is_zero() {
            return;
        }
        let (told, reply) = bounded(1);
        let taken = Arc::new(AtomicBool::new(false));
        let ahead = Ahead { first: self.marks[mark].0, asked: Instant::now(), with_inodes, taken, reply };
        let (asker, who, taken) = (shared.clone(), who.clone(), ahead.taken.clone());
        let request = self.request(mark, with_inodes);
        let job = move || {
            if !taken.swap(true, Ordering::AcqRel) {
                // Nobody listens when the directory was closed meanwhile.
                let _ = told.send(asker.meta.list(&who, request));
            }
        };
        self.ahead = shared.errands.submit(job).then_some(ahead);
    }

    /// The page that begins with entry number `first`, if it was fetched ahead, and not so long ago that its attributes
    /// hold for less than half of their time.
    fn fetched_ahead(
        &mut self,
        first: u64,
        with_inodes: bool,
        ttl: Duration,
    ) -> Option<(Instant, bool, pb::ListReply)> {
        let ahead = self.ahead.take()?;
        let fits = ahead.first == first && (ahead.with_inodes || !with_inodes);
        if !fits || ahead.asked.elapsed() > ttl / 2 {
            return None;
        }
        Some((ahead.asked, ahead.with_inodes, ahead.wait()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::twin::{self, MetaTwin};
    use crate::error::{Error, Kind};
    use crate::wire::pb::Method;

    const ROOT: u64 = 1;

    struct World {
        meta: Arc<MetaTwin>,
        shared: Arc<Shared>,
        who: Arc<Who>,
        directory: Directory,
    }

    impl World {
        /// A directory of so many files, all names as long as one another.
        fn new(files: u64) -> World {
            let chunks = Arc::default();
            let meta = MetaTwin::new(Arc::clone(&chunks));
            meta.make(1000..1000 + files);
            let shared = twin::client_that_trusts(&chunks, &meta, 1 << 20, Duration::from_secs(3600));
            World { meta, shared, who: Arc::default(), directory: Directory::new(ROOT) }
        }

        /// The inodes that one reply to the kernel could show.
        fn read(&mut self, number: u64) -> Vec<u64> {
            let (entries, _) = self.directory.entries(&self.shared, &self.who, number, true).unwrap();
            entries.iter().map(|entry| entry.inode).collect()
        }

        fn read_all(&mut self, from: u64) -> Vec<u64> {
            let mut found = Vec::new();
            loop {
                let more = self.read(from + found.len() as u64);
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
            self.shared.names.changed(ROOT, format!("f{inode}").as_bytes(), None, Some(1));
        }

        fn hold_errands(&self) -> crossbeam_channel::Sender<()> {
            twin::hold_errands(&self.shared)
        }
    }

    #[test]
    fn every_entry_is_listed_once_however_many_pages_there_are() {
        for files in [0, 1, 256, 257, 1000, 5000] {
            let mut world = World::new(files);
            assert_eq!(world.read_all(0), (1000..1000 + files).collect::<Vec<_>>());
            world.directory.rewind();
            assert_eq!(world.read_all(0).len(), files as usize);
        }
    }

    #[test]
    fn the_next_page_is_fetched_before_it_is_wanted() {
        let mut world = World::new(500);
        assert_eq!(world.read(0).len(), 256);
        world.shared.errands.stop();
        assert_eq!(world.asked(), 2);
        assert_eq!(world.read(256).len(), 500 - 256);
        assert_eq!(world.asked(), 2);
    }

    #[test]
    fn who_finds_that_nobody_has_begun_to_fetch_asks() {
        let mut world = World::new(500);
        let held = world.hold_errands();
        assert_eq!(world.read_all(0).len(), 500);
        assert_eq!(world.asked(), 2);
        drop(held);
        world.shared.errands.stop();
        assert_eq!(world.asked(), 2, "a page that nobody wants any more is not fetched");
    }

    #[test]
    fn a_page_that_could_not_be_fetched_ahead_is_asked_for_again() {
        let mut world = World::new(500);
        let held = world.hold_errands();
        assert_eq!(world.read(0).len(), 256);
        world.meta.fail_calls(Some(Error::new(Kind::Unavailable, "on purpose")));
        drop(held);
        world.shared.errands.stop();
        assert_eq!(world.asked(), 2);
        world.meta.fail_calls(None);
        assert_eq!(world.read(256).len(), 500 - 256);
    }

    #[test]
    fn a_name_removed_here_is_not_shown_any_more_and_no_other_is_missed() {
        let mut world = World::new(1000);
        assert_eq!(world.read(0).len(), 256);
        world.shared.errands.stop();
        for inode in [1000, 1099, 1100, 1300] {
            world.remove_here(inode);
        }
        let expected: Vec<u64> = (1100..2000).filter(|inode| ![1100, 1300].contains(inode)).collect();
        assert_eq!(world.read_all(100), expected);
    }

    #[test]
    fn a_name_removed_here_is_not_shown_from_a_page_that_was_fetched_ahead() {
        let mut world = World::new(500);
        assert_eq!(world.read(0).len(), 256);
        world.shared.errands.stop();
        world.remove_here(1400);
        let expected: Vec<u64> = (1256..1500).filter(|inode| *inode != 1400).collect();
        assert_eq!(world.read_all(256), expected);
    }

    #[test]
    fn names_that_others_remove_are_no_reason_to_ask_again() {
        let mut world = World::new(500);
        assert_eq!(world.read(0).len(), 256);
        world.shared.errands.stop();
        world.meta.remove(1400);
        assert!(world.read(256).contains(&1400));
    }
}
