//! Direct reads beside direct writes of the same client, in orders that a seed makes: what a read has returned is where
//! all clients read it, and what was acknowledged before the read is in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::buffer::Placement;
use crate::client::fake::{FakeChunks, FakeMeta, client};
use crate::client::file::{CreateOptions, File, OpenOptions};
use crate::client::identity::Identity;
use crate::client::meta::name_path;
use crate::client::open_file::WriteOffset;
use crate::client::open_files::OpenFiles;
use crate::schedule;

const SEEDS: u64 = 80;
const FILE: u64 = 5;
const CHUNK_BYTES: u32 = 64;
const BLOCK: usize = 16;
/// Two in the first chunk, of which the first is there from the start, and one in the second.
const PLACES: [usize; 3] = [0, BLOCK, CHUNK_BYTES as usize];
/// Of each block, less than this many after the first.
const VERSIONS_MAX: u64 = 4;
const READS: usize = 6;
/// Of a read: of the first block, the first chunk, and the whole file.
const LENGTHS: [usize; 3] = [BLOCK, CHUNK_BYTES as usize, PLACES[2] + BLOCK];
const DIRECT: OpenOptions =
    OpenOptions { read: true, write: true, append: false, truncate: false, direct: true, follow: false };

struct DirectFile {
    chunks: Arc<FakeChunks>,
    meta: Arc<FakeMeta>,
    files: Arc<OpenFiles>,
    file: Arc<File>,
    /// Version of each block whose write has returned.
    written: [AtomicU8; PLACES.len()],
}

impl DirectFile {
    fn new(inline_bytes: u32) -> Arc<DirectFile> {
        let chunks = Arc::new(FakeChunks::default());
        let meta = FakeMeta::new(chunks.clone());
        meta.lay_out(CHUNK_BYTES, inline_bytes);
        let files = client(&chunks, &meta, 1 << 20);
        let create = CreateOptions { permissions: 0o644, exclusive: false, layout: None };
        let path = name_path(1, format!("f{FILE}").as_bytes());
        let file = File::create(&files, &Arc::<Identity>::default(), path, DIRECT, create).unwrap();
        let direct = DirectFile { chunks, meta, files, file, written: Default::default() };
        direct.write(0, 1);
        Arc::new(direct)
    }

    fn write(&self, block: usize, version: u8) {
        let payload = Placement::from_vec(vec![version; BLOCK]);
        self.file.write(WriteOffset::At(PLACES[block] as u64), &payload, false).unwrap();
        self.written[block].store(version, Ordering::Relaxed);
    }

    /// What another client would read now.
    fn stored(&self) -> Vec<u8> {
        let inode = self.meta.inode(FILE);
        if inode.is_inline { inode.inline_data } else { self.chunks.content(inode.content) }
    }

    /// As one read of a ring's batch.
    fn read_planned(&self, into: &Placement) -> usize {
        match self.file.inode().plan_read(0, into) {
            Some(read) => {
                self.files.shared().chunks.read(&read).unwrap();
                into.len()
            }
            None => self.file.read_at(0, into).unwrap(),
        }
    }

    fn check_read(&self, length: usize) {
        let written = self.written.each_ref().map(|version| version.load(Ordering::Relaxed));
        let into = Placement::from_vec(vec![0xee; length]);
        let count = match schedule::one_in(2) {
            true => self.file.read_at(0, &into).unwrap(),
            false => self.read_planned(&into),
        };
        let (seen, stored) = (into.slice(0..count).to_vec(), self.stored());
        assert!(count <= stored.len(), "{count} bytes are read, {} are stored", stored.len());
        for (at, written) in PLACES.into_iter().zip(written).filter(|(at, _)| *at < length) {
            let of = |bytes: &[u8]| bytes.get(at..at + BLOCK).unwrap_or(&[0; BLOCK]).to_vec();
            let (seen, stored) = (of(&seen), of(&stored));
            assert!(seen.iter().all(|byte| *byte == seen[0]), "a block is read as it was written: {seen:?}");
            assert!(seen[0] >= written, "{written} was acknowledged before the read of {} at {at}", seen[0]);
            assert!(seen[0] <= stored[0], "{} is read at {at}, {} is stored", seen[0], stored[0]);
        }
    }

    fn live(inline_bytes: u32) {
        let direct = DirectFile::new(inline_bytes);
        let mut tasks = Vec::new();
        for block in 0..PLACES.len() {
            let direct = direct.clone();
            let versions = 2..2 + schedule::below(VERSIONS_MAX) as u8;
            let write = move || versions.for_each(|version| direct.write(block, version));
            tasks.push(schedule::spawn("writer", write));
        }
        let reader = direct.clone();
        tasks.push(schedule::spawn("reader", move || {
            (0..READS).for_each(|_| reader.check_read(LENGTHS[schedule::below(3) as usize]));
        }));
        schedule::join(tasks);
        direct.file.close().unwrap();
        schedule::join_all();
    }
}

fn explore(inline_bytes: u32) {
    let fails = |seed: &u64| {
        let failure = schedule::run(*seed, move || DirectFile::live(inline_bytes)).err();
        failure.inspect(|failure| println!("seed {seed}: {failure}")).is_some()
    };
    let failed = (1..=SEEDS).find(fails);
    assert_eq!(failed, None, "with {inline_bytes} bytes in the inode");
}

#[test]
fn direct_read_shows_what_chains_have() {
    explore(0);
}

#[test]
fn direct_read_shows_what_the_metadata_service_has() {
    explore(4096);
}

#[test]
fn direct_read_shows_what_is_stored_while_the_file_leaves_its_inode() {
    explore(2 * BLOCK as u32);
}
