//! An open directory: pages of its listing, fetched as the reader goes on.
//!
//! Entry number n of the listing has offset n. Only two pages are kept, whatever the size of the directory; a reader
//! who goes further back gets the page listed again from the name before it.

use std::time::Instant;

use super::meta::{Meta, Who};
use crate::error::Result;
use crate::wire::pb;

/// Entries of a page.
const PAGE_ENTRIES: u32 = 1024;

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
}

pub struct Directory {
    inode: u64,
    parent: Option<u64>,
    /// The last two pages that were fetched.
    pages: Vec<Page>,
    /// Number of the first entry of each page so far, and the name before it.
    marks: Vec<(u64, Vec<u8>)>,
}

impl Directory {
    pub fn new(inode: u64) -> Directory {
        Directory { inode, parent: None, pages: Vec::new(), marks: vec![(0, Vec::new())] }
    }

    /// Back to the start: the directory is listed anew.
    pub fn rewind(&mut self) {
        *self = Directory::new(self.inode);
    }

    /// Inode of "..".
    pub fn parent(&mut self, meta: &Meta, who: &Who, with_inodes: bool) -> Result<u64> {
        if self.parent.is_none() {
            self.fetch(meta, who, 0, with_inodes)?;
        }
        Ok(self.parent.unwrap_or(self.inode))
    }

    /// Entry number `number` and when it was asked for; `None` at the end.
    pub fn entry(
        &mut self,
        meta: &Meta,
        who: &Who,
        number: u64,
        with_inodes: bool,
    ) -> Result<Option<(&pb::Dentry, Instant)>> {
        loop {
            let held = self.pages.iter().position(|page| {
                (page.first..page.end()).contains(&number) && (page.with_inodes || !with_inodes)
            });
            if let Some(held) = held {
                let page = &self.pages[held];
                return Ok(Some((&page.entries[(number - page.first) as usize], page.asked)));
            }
            if self.pages.iter().any(|page| !page.more && number >= page.end()) {
                return Ok(None);
            }
            let mark = self.marks.partition_point(|(first, _)| *first <= number) - 1;
            self.fetch(meta, who, mark, with_inodes)?;
        }
    }

    /// Fetches the page at `mark`.
    fn fetch(&mut self, meta: &Meta, who: &Who, mark: usize, with_inodes: bool) -> Result<()> {
        let (first, after) = self.marks[mark].clone();
        let request = pb::ListRequest {
            inode: self.inode,
            after,
            limit: PAGE_ENTRIES,
            with_inodes,
            ..Default::default()
        };
        let asked = Instant::now();
        let reply = meta.list(who, request)?;
        self.parent = Some(reply.parent);
        let more = reply.more && !reply.entries.is_empty();
        let page = Page { first, asked, with_inodes, entries: reply.entries, more };
        // The directory may have changed: later pages begin where this one ends now.
        self.marks.truncate(mark + 1);
        if let Some(last) = page.entries.last()
            && more
        {
            self.marks.push((page.end(), last.name.clone()));
        }
        self.pages.retain(|known| known.first != first);
        if self.pages.len() == 2 {
            self.pages.remove(0);
        }
        self.pages.push(page);
        Ok(())
    }
}
