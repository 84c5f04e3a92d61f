//! Listings of directories in which many names were looked up within a short time.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::wire::pb;

/// Directories whose listing is kept.
const LISTINGS_MAX: usize = 16;
/// Directories whose look-ups are counted.
const BURSTS_MAX: usize = LISTINGS_MAX * 8;
/// Look-ups in one directory that had to ask, within `BURST_WINDOW`, before it is listed.
pub(super) const BURST_MISSES: u32 = 4;
const BURST_MISSES_MAX: u32 = 4096;
pub(super) const BURST_WINDOW: Duration = Duration::from_millis(200);
/// A listing that has answered fewer look-ups than this was not worth its price: the next one needs more misses.
const WORTH_HITS: u32 = 32;

const _: () = assert!(BURST_MISSES <= BURST_MISSES_MAX);

/// Part of a directory, as it was at one moment and with this client's changes since.
pub(super) struct Listing {
    asked: Instant,
    /// Names after this one are known …
    after: Vec<u8>,
    /// … up to and with this one; `None`: to the end.
    last: Option<Vec<u8>>,
    entries: BTreeMap<Vec<u8>, Arc<pb::Inode>>,
    hits: u32,
}

impl Listing {
    pub(super) fn asked(&self) -> Instant {
        self.asked
    }

    pub(super) fn covers(&self, name: &[u8]) -> bool {
        (self.after.is_empty() || name > self.after.as_slice())
            && self.last.as_ref().is_none_or(|last| name <= last.as_slice())
    }

    /// Return the inode of a name that the listing covers; `None`: there is no such name.
    pub(super) fn answer(&mut self, name: &[u8]) -> Option<Arc<pb::Inode>> {
        assert!(self.covers(name), "a listing answers for what it covers");
        self.hits += 1;
        self.entries.get(name).cloned()
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

/// Entries of a directory by name, and the last of them if there are more.
pub(super) type Listed = (BTreeMap<Vec<u8>, Arc<pb::Inode>>, Option<Vec<u8>>);

/// A name, and the inode it has now.
type NameChange = (Vec<u8>, Option<Arc<pb::Inode>>);

/// How often names of one directory had to be asked for lately.
struct LookupBurst {
    began: Instant,
    misses: u32,
    /// Misses that it takes to list.
    needed: u32,
    /// Whether `needed` takes the worth of the last listing into account.
    judged: bool,
    /// Larger than a listing: only the neighbourhood of a name is listed.
    large: bool,
    /// Changes made here since the listing that is under way began; `None`: none is under way.
    listing: Option<Vec<NameChange>>,
}

pub(super) struct ReaddirPrefetch {
    listings: HashMap<u64, Listing>,
    bursts: HashMap<u64, LookupBurst>,
}

impl ReaddirPrefetch {
    pub(super) fn new() -> ReaddirPrefetch {
        ReaddirPrefetch { listings: HashMap::new(), bursts: HashMap::new() }
    }

    pub(super) fn listing(&mut self, parent: u64) -> Option<&mut Listing> {
        self.listings.get_mut(&parent)
    }

    /// Count a look-up that has to ask. Return the name after which to list, if that is worth it now and `may_list`.
    pub(super) fn miss(&mut self, parent: u64, name: &[u8], may_list: bool) -> Option<Vec<u8>> {
        let now = Instant::now();
        if self.bursts.len() > BURSTS_MAX {
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
        assert!((BURST_MISSES..=BURST_MISSES_MAX).contains(&burst.needed), "a listing costs some misses");
        if burst.misses < burst.needed || burst.listing.is_some() || !may_list {
            return None;
        }
        if !std::mem::replace(&mut burst.judged, true)
            && let Some(last) = self.listings.get(&parent)
        {
            let worth = last.hits >= WORTH_HITS;
            burst.needed = if worth { BURST_MISSES } else { (burst.needed * 4).min(BURST_MISSES_MAX) };
            if burst.misses < burst.needed {
                return None;
            }
        }
        burst.misses = 0;
        burst.judged = false;
        burst.listing = Some(Vec::new());
        Some(if burst.large { before(name) } else { Vec::new() })
    }

    /// Record that this client has given `name` to the inode, or removed it.
    pub(super) fn change(&mut self, parent: u64, name: &[u8], inode: Option<&Arc<pb::Inode>>) {
        if let Some(listing) = self.listings.get_mut(&parent) {
            listing.change(name, inode.cloned());
        }
        if let Some(changes) = self.bursts.get_mut(&parent).and_then(|burst| burst.listing.as_mut()) {
            changes.push((name.to_vec(), inode.cloned()));
        }
    }

    /// Keep an empty listing of a directory that this client has made.
    pub(super) fn install_empty(&mut self, directory: u64, asked: Instant) {
        let listing =
            Listing { asked, after: Vec::new(), last: None, entries: BTreeMap::new(), hits: WORTH_HITS };
        self.install(directory, listing);
    }

    /// End the listing under way. `listed`: entries after `after`, and whether there are more; `None`: it failed.
    pub(super) fn finish(&mut self, parent: u64, after: Vec<u8>, asked: Instant, listed: Option<Listed>) {
        let Some(burst) = self.bursts.get_mut(&parent) else { return };
        let changes = burst.listing.take().unwrap_or_default();
        let Some((entries, last)) = listed else { return };
        burst.large = last.is_some() || !after.is_empty();
        let mut listing = Listing { asked, after, last, entries, hits: 0 };
        for (name, inode) in changes {
            listing.change(&name, inode);
        }
        self.install(parent, listing);
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
        assert!(self.listings.len() <= LISTINGS_MAX, "N3: memory is bounded");
    }

    pub(super) fn len(&self) -> usize {
        self.listings.values().map(|listing| listing.entries.len()).sum()
    }
}

/// Return a name just before `name` in order.
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
