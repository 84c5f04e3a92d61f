//! What a disk may hold after power was lost: a recording, replayed up to a cut.
//!
//! The model, of which every part is what some file system or device does:
//! - What an fsync covered that had ended is there. It covers what came before it began, and nothing else: the fsync of
//!   a file not its name, that of a directory not the content of its files.
//! - Of the rest, each 4 KiB page of a file holds what it held at some moment since, independent of all other pages
//!   (`Data::Pages`), or each 512-byte sector of it does (`Data::Torn`). A file is as long as what survives of it needs.
//! - A cut of a file and a hole are metadata: a page never shows what was written after one that did not happen, or
//!   before one that did.
//! - Metadata happen in order. Either there is one journal for all, of which any fsync writes what came before it
//!   (`Metadata::Journal`: ext4, XFS), or one for each file and directory (`Metadata::Separate`, as much as POSIX lets
//!   happen). A rename is atomic also between two directories.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::disk::{Change, Log};
use super::image::{Body, Content, Image, Names, PAGE, Page};

const SECTOR: usize = 512;

/// How much survives of changes of names and lengths that no fsync covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metadata {
    All,
    /// As if each had a journal of its own.
    Nothing,
    Journal,
    Separate,
}

/// How much survives of bytes that no fsync covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Data {
    All,
    Nothing,
    Pages,
    Torn,
}

/// One of the states that a disk may be in, `seed` chooses which where chance decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    pub metadata: Metadata,
    pub data: Data,
    pub seed: u64,
}

/// Numbers by chance, the same for the same seed.
#[derive(Clone, Debug)]
pub struct Chance(pub u64);

impl Chance {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ x >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ x >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ x >> 31
    }

    /// One of `0..bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// One of `from..=to`.
    pub fn between(&mut self, from: usize, to: usize) -> usize {
        from + self.below(to - from + 1)
    }
}

/// A page as it was after a change.
#[derive(Clone)]
struct Version {
    at: usize,
    /// `None`: a hole.
    page: Option<Page>,
    /// Length of the file, as far as this page reaches.
    end: u64,
    /// The change was one of metadata.
    is_cut: bool,
}

#[derive(Clone, Default)]
struct File {
    durable: Content,
    current: Content,
    /// Since `durable`, the oldest first.
    versions: BTreeMap<u64, Vec<Version>>,
    lengths: Vec<(usize, u64)>,
    /// The content when an fsync began that has not ended.
    syncing: Vec<(usize, Content)>,
}

#[derive(Clone, Default)]
struct Directory {
    durable: Names,
    current: Names,
    /// Since `durable`: names that came to mean an inode, or nothing.
    changes: Vec<(usize, Vec<u8>, Option<u64>)>,
}

/// A recording, carried out up to a point.
pub struct Replay<'a> {
    log: &'a Log,
    /// Changes carried out.
    at: usize,
    files: HashMap<u64, File>,
    directories: HashMap<u64, Directory>,
    special: HashSet<u64>,
    /// Renames from one directory to another.
    moves: Vec<(usize, u64, u64)>,
    /// With one journal, metadata of changes before this one are durable.
    journaled: usize,
}

impl File {
    fn of(content: Content) -> File {
        File { durable: content.clone(), current: content, ..File::default() }
    }

    fn note(&mut self, at: usize, pages: std::ops::Range<u64>, is_cut: bool) {
        for number in pages {
            let end = self.current.length.min((number + 1) * PAGE as u64);
            let page = self.current.pages.get(&number).cloned();
            self.versions.entry(number).or_default().push(Version { at, page, end, is_cut });
        }
    }

    fn write(&mut self, at: usize, offset: u64, bytes: &[u8]) {
        self.current.write(offset, bytes);
        self.note(at, offset / PAGE as u64..(offset + bytes.len() as u64).div_ceil(PAGE as u64), false);
    }

    fn set_length(&mut self, at: usize, length: u64) {
        let cut = length / PAGE as u64..self.current.length.div_ceil(PAGE as u64);
        let held: Vec<u64> =
            self.current.pages.range(cut.start..cut.end.max(cut.start)).map(|(&n, _)| n).collect();
        self.current.set_length(length);
        self.lengths.push((at, length));
        held.into_iter().for_each(|number| self.note(at, number..number + 1, true));
    }

    fn punch(&mut self, at: usize, offset: u64, length: u64) {
        let range = offset / PAGE as u64..(offset + length).div_ceil(PAGE as u64);
        let held: Vec<u64> = self.current.pages.range(range).map(|(&number, _)| number).collect();
        self.current.punch(offset, length);
        held.into_iter().for_each(|number| self.note(at, number..number + 1, true));
    }

    fn end_sync(&mut self, begun: usize) {
        let Some(place) = self.syncing.iter().position(|&(at, _)| at == begun) else { return };
        self.durable = self.syncing.remove(place).1;
        self.lengths.retain(|&(at, _)| at >= begun);
        self.versions.retain(|_, versions| {
            versions.retain(|version| version.at >= begun);
            !versions.is_empty()
        });
        self.syncing.retain(|&(at, _)| at > begun);
    }

    /// What is left of it where metadata before `bound` happened.
    fn crash(&self, bound: usize, data: Data, chance: &mut Chance) -> Content {
        let mut content = self.durable.clone();
        let happened = self.lengths.iter().take_while(|&&(at, _)| at < bound);
        content.length = happened.last().map_or(content.length, |&(_, length)| length);
        for (&number, versions) in &self.versions {
            let is_done = |version: &Version| version.is_cut && version.at < bound;
            let lowest = versions.iter().rposition(is_done).map_or(0, |place| place + 1);
            let undone = versions.iter().position(|version| version.is_cut && version.at >= bound);
            let highest = undone.unwrap_or(versions.len());
            let (older, chosen) = match data {
                Data::All => (highest, highest),
                Data::Nothing => (lowest, lowest),
                Data::Pages => {
                    let chosen = chance.between(lowest, highest);
                    (chosen, chosen)
                }
                Data::Torn => {
                    let older = chance.between(lowest, highest);
                    (older, chance.between(older, highest))
                }
            };
            if chosen == 0 {
                continue;
            }
            let version = &versions[chosen - 1];
            let mut page = version.page.clone();
            if older < chosen {
                let before = match older {
                    0 => self.durable.pages.get(&number).cloned(),
                    older => versions[older - 1].page.clone(),
                };
                page = Some(tear(before, page, chance));
            }
            match page {
                Some(page) => content.pages.insert(number, page),
                None => content.pages.remove(&number),
            };
            if !version.is_cut {
                content.length = content.length.max(version.end);
            }
        }
        let length = content.length;
        content.punch(length, (u64::MAX / 2).saturating_sub(length));
        content
    }
}

/// Some sectors of the one, the others of the other.
fn tear(older: Option<Page>, newer: Option<Page>, chance: &mut Chance) -> Page {
    let zeros = || Arc::new([0; PAGE]);
    let mut page = newer.unwrap_or_else(zeros);
    let older = older.unwrap_or_else(zeros);
    for start in (0..PAGE).step_by(SECTOR) {
        if chance.below(2) == 0 {
            Arc::make_mut(&mut page)[start..start + SECTOR].copy_from_slice(&older[start..start + SECTOR]);
        }
    }
    page
}

impl Directory {
    fn of(names: Names) -> Directory {
        Directory { durable: names.clone(), current: names, ..Directory::default() }
    }

    fn set(&mut self, at: usize, name: &[u8], inode: Option<u64>) {
        match inode {
            Some(inode) => self.current.insert(name.to_vec(), inode),
            None => self.current.remove(name),
        };
        self.changes.push((at, name.to_vec(), inode));
    }

    fn harden(&mut self, before: usize) {
        self.durable = self.crash(before);
        self.changes.retain(|&(at, ..)| at >= before);
    }

    fn crash(&self, bound: usize) -> Names {
        let mut names = self.durable.clone();
        for (_, name, inode) in self.changes.iter().take_while(|&&(at, ..)| at < bound) {
            match inode {
                Some(inode) => names.insert(name.clone(), *inode),
                None => names.remove(name),
            };
        }
        names
    }
}

impl<'a> Replay<'a> {
    pub fn new(log: &'a Log) -> Replay<'a> {
        let mut replay = Replay {
            log,
            at: 0,
            files: HashMap::new(),
            directories: HashMap::new(),
            special: HashSet::new(),
            moves: Vec::new(),
            journaled: 0,
        };
        for (&inode, body) in &log.base.bodies {
            replay.hold(inode, body.clone());
        }
        replay
    }

    fn hold(&mut self, inode: u64, body: Body) {
        match body {
            Body::File(content) => _ = self.files.insert(inode, File::of(content)),
            Body::Directory(names) => _ = self.directories.insert(inode, Directory::of(names)),
            Body::Special => _ = self.special.insert(inode),
        }
    }

    fn directory(&mut self, inode: u64) -> &mut Directory {
        self.directories.get_mut(&inode).expect("the log names a directory of its own")
    }

    fn file(&mut self, inode: u64) -> &mut File {
        self.files.get_mut(&inode).expect("the log names a file of its own")
    }

    /// Carries out one more change. False: there is none.
    pub fn advance(&mut self) -> bool {
        let at = self.at;
        let Some(change) = self.log.changes.get(at) else { return false };
        match change {
            Change::Write { inode, offset, bytes } => self.file(*inode).write(at, *offset, bytes),
            Change::SetLength { inode, length } => self.file(*inode).set_length(at, *length),
            Change::Punch { inode, offset, length } => self.file(*inode).punch(at, *offset, *length),
            Change::Make { parent, name, inode, body } => {
                self.hold(*inode, body.clone());
                self.directory(*parent).set(at, name, Some(*inode));
            }
            Change::Link { parent, name, inode } => self.directory(*parent).set(at, name, Some(*inode)),
            Change::Remove { parent, name } => self.directory(*parent).set(at, name, None),
            Change::Rename { source, target } => {
                let inode = self.directory(source.0).current[&source.1];
                self.directory(source.0).set(at, &source.1, None);
                self.directory(target.0).set(at, &target.1, Some(inode));
                if source.0 != target.0 {
                    self.moves.push((at, source.0, target.0));
                }
            }
            Change::SyncBegin { inode } => {
                if let Some(file) = self.files.get_mut(inode) {
                    file.syncing.push((at, file.current.clone()));
                }
            }
            Change::SyncEnd { inode, begun } => self.end_sync(*inode, *begun),
        }
        self.at += 1;
        true
    }

    fn end_sync(&mut self, inode: u64, begun: usize) {
        self.journaled = self.journaled.max(begun);
        if let Some(file) = self.files.get_mut(&inode) {
            file.end_sync(begun);
        } else if self.directories.contains_key(&inode) {
            self.directory(inode).harden(begun);
            // What was moved is in one place, whichever of the two is asked.
            while let Some(place) = self
                .moves
                .iter()
                .position(|&(at, source, target)| at < begun && (source == inode || target == inode))
            {
                let (at, source, target) = self.moves.remove(place);
                self.directory(source).harden(at + 1);
                self.directory(target).harden(at + 1);
            }
        }
    }

    /// What the disk holds if power is lost now.
    pub fn crash(&self, variant: Variant) -> Image {
        let mut chance = Chance(variant.seed ^ (self.at as u64) << 32);
        let journal = chance.between(self.journaled.min(self.at), self.at);
        let mut bound = |_: u64| match variant.metadata {
            Metadata::All => self.at,
            Metadata::Nothing => 0,
            Metadata::Journal => journal,
            Metadata::Separate => chance.between(0, self.at),
        };
        let mut inodes: Vec<u64> = self.directories.keys().copied().collect();
        inodes.sort_unstable();
        let mut bounds: HashMap<u64, usize> = inodes.iter().map(|&inode| (inode, bound(inode))).collect();
        let mut files: Vec<u64> = self.files.keys().copied().collect();
        files.sort_unstable();
        let lengths: Vec<usize> = files.iter().map(|&inode| bound(inode)).collect();
        self.keep_moves_whole(&mut bounds);
        let mut image = Image { root: self.log.base.root, bodies: HashMap::new() };
        let mut reached = vec![image.root];
        while let Some(inode) = reached.pop() {
            let Some(directory) = self.directories.get(&inode) else {
                if self.special.contains(&inode) {
                    image.bodies.insert(inode, Body::Special);
                }
                continue;
            };
            let names = directory.crash(bounds[&inode]);
            reached.extend(names.values().filter(|child| !image.bodies.contains_key(child)));
            image.bodies.insert(inode, Body::Directory(names));
        }
        let named: HashSet<u64> = image
            .bodies
            .values()
            .filter_map(|body| match body {
                Body::Directory(names) => Some(names.values().copied()),
                _ => None,
            })
            .flatten()
            .collect();
        for (&inode, &bound) in files.iter().zip(&lengths) {
            let content = self.files[&inode].crash(bound, variant.data, &mut chance);
            if named.contains(&inode) {
                image.bodies.insert(inode, Body::File(content));
            }
        }
        image
    }

    /// A move happened in both directories or in neither.
    fn keep_moves_whole(&self, bounds: &mut HashMap<u64, usize>) {
        loop {
            let torn = self
                .moves
                .iter()
                .find(|&&(at, source, target)| (at < bounds[&source]) != (at < bounds[&target]));
            let Some(&(at, source, target)) = torn else { return };
            for inode in [source, target] {
                let bound = bounds.get_mut(&inode).expect("all directories have one");
                *bound = at.min(*bound);
            }
        }
    }
}
