//! What a disk holds: files as pages, directories as names. Copies share their pages.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

pub const PAGE: usize = 4096;
pub type Page = Arc<[u8; PAGE]>;
pub type Names = BTreeMap<Vec<u8>, u64>;

/// The bytes of a file. A page that is missing reads as zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    pub length: u64,
    pub pages: BTreeMap<u64, Page>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    File(Content),
    Directory(Names),
    /// A name without bytes: a socket.
    Special,
}

/// A directory tree: bodies by inode number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    pub root: u64,
    pub bodies: HashMap<u64, Body>,
}

impl Default for Image {
    /// An empty directory.
    fn default() -> Image {
        Image { root: 1, bodies: HashMap::from([(1, Body::Directory(Names::new()))]) }
    }
}

impl Content {
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let at = offset + done as u64;
            let start = (at % PAGE as u64) as usize;
            let count = (PAGE - start).min(bytes.len() - done);
            let page = self.pages.entry(at / PAGE as u64).or_insert_with(|| Arc::new([0; PAGE]));
            Arc::make_mut(page)[start..start + count].copy_from_slice(&bytes[done..done + count]);
            done += count;
        }
        self.length = self.length.max(offset + bytes.len() as u64);
    }

    /// Reads up to `into.len()` bytes, fewer at the end of the file.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> usize {
        let length = self.length.saturating_sub(offset).min(into.len() as u64) as usize;
        let mut done = 0;
        while done < length {
            let at = offset + done as u64;
            let start = (at % PAGE as u64) as usize;
            let count = (PAGE - start).min(length - done);
            let part = &mut into[done..done + count];
            match self.pages.get(&(at / PAGE as u64)) {
                Some(page) => part.copy_from_slice(&page[start..start + count]),
                None => part.fill(0),
            }
            done += count;
        }
        length
    }

    pub fn set_length(&mut self, length: u64) {
        if length < self.length {
            self.punch(length, self.length - length);
        }
        self.length = length;
    }

    /// Makes a range read as zeros; the length stays.
    pub fn punch(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        let first = offset / PAGE as u64;
        let touched: Vec<u64> =
            self.pages.range(first..end.div_ceil(PAGE as u64)).map(|(&at, _)| at).collect();
        for at in touched {
            let start = at * PAGE as u64;
            if offset <= start && start + PAGE as u64 <= end {
                self.pages.remove(&at);
                continue;
            }
            let from = offset.saturating_sub(start).min(PAGE as u64) as usize;
            let to = (end - start).min(PAGE as u64) as usize;
            Arc::make_mut(self.pages.get_mut(&at).expect("just found"))[from..to].fill(0);
        }
    }

    /// Where data (or a hole) begins at or after `offset`; `None`: nowhere before the end.
    pub fn seek(&self, offset: u64, is_data: bool) -> Option<u64> {
        let mut at = offset;
        while at < self.length {
            let page = at / PAGE as u64;
            if self.pages.contains_key(&page) == is_data {
                return Some(at);
            }
            at = match is_data {
                true => self.pages.range(page..).next().map_or(self.length, |(&next, _)| next * PAGE as u64),
                false => (page + 1) * PAGE as u64,
            };
        }
        None
    }
}
