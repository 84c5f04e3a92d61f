//! Rings against the fakes of chunks and metadata.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::*;
use crate::client::fake::{CHUNK_BYTES, FakeChunks, FakeMeta, client};
use crate::client::{CreateOptions, Identity, OpenFiles, OpenOptions, inode_path, name_path};
use crate::error::Kind;

const CHUNK: u64 = CHUNK_BYTES as u64;
const READ_WRITE: OpenOptions =
    OpenOptions { read: true, write: true, append: false, truncate: false, direct: false, follow: false };

struct RingWorld {
    chunks: Arc<FakeChunks>,
    meta: Arc<FakeMeta>,
    files: Arc<OpenFiles>,
    shared: Arc<Shared>,
}

impl RingWorld {
    fn new() -> RingWorld {
        let chunks = Arc::new(FakeChunks::default());
        let meta = FakeMeta::new(chunks.clone());
        let files = client(&chunks, &meta, 8 << 20);
        RingWorld { chunks, meta, shared: files.shared().clone(), files }
    }

    /// A file of zeros in chunks.
    fn file_of_chunks(&self, number: u64, count: u64) -> Arc<File> {
        let create = CreateOptions { permissions: 0o644, exclusive: false, layout: None };
        let path = name_path(1, format!("f{number}").as_bytes());
        let file = File::create(&self.files, &Arc::<Identity>::default(), path, READ_WRITE, create).unwrap();
        let zeros = Placement::from_vec(vec![0; (count * CHUNK) as usize]);
        file.write(WriteOffset::At(0), &zeros, false).unwrap();
        file.fsync(false).unwrap();
        self.chunks.writes.store(0, Ordering::Relaxed);
        file
    }

    fn ring(&self, entries: usize) -> Ring {
        Ring::new(self.shared.clone(), entries).unwrap()
    }

    fn content(&self, number: u64) -> Vec<u8> {
        self.chunks.content(self.meta.inode(number).content)
    }
}

fn write(file: &Arc<File>, offset: u64, bytes: Vec<u8>) -> Entry {
    let buffer = Placement::from_vec(bytes);
    Entry { file: file.clone(), offset, buffer, direction: Direction::Write, user_data: offset }
}

fn read(file: &Arc<File>, offset: u64, length: usize) -> Entry {
    let buffer = Placement::from_vec(vec![0; length]);
    Entry { file: file.clone(), offset, buffer, direction: Direction::Read, user_data: offset }
}

fn submit(ring: &Ring, entries: Vec<Entry>) {
    assert!(ring.submit(entries).unwrap().is_empty(), "there is room for all");
}

fn drain(ring: &Ring) -> Vec<Completion> {
    let mut completions = ring.drain(usize::MAX, ring.in_flight(), None);
    assert_eq!(ring.in_flight(), 0);
    completions.sort_by_key(|done| done.user_data);
    completions
}

fn drain_all_good(ring: &Ring, count: usize, length: usize) {
    let completions = drain(ring);
    assert_eq!(completions.len(), count);
    for done in completions {
        assert_eq!(done.result.unwrap(), length);
    }
}

#[test]
fn a_timeout_that_ends_beyond_the_clock_is_none() {
    let world = RingWorld::new();
    let file = world.file_of_chunks(1, 1);
    let ring = world.ring(4);
    submit(&ring, vec![write(&file, 0, vec![1; 100])]);
    assert!(ring.wait(1, Some(Duration::MAX)));
    assert_eq!(ring.take(1).len(), 1);
}

#[test]
fn all_writes_of_a_full_ring_are_in_flight_in_few_calls() {
    let world = RingWorld::new();
    let file = world.file_of_chunks(5, 32);
    let ring = world.ring(32);
    world.chunks.hold_writes(true);
    submit(&ring, (0..32).map(|n| write(&file, n * CHUNK + 100, vec![n as u8 + 1; 4096])).collect());
    let calls = world.chunks.wait_for_writes(32);
    assert!(calls <= THREADS, "{calls} calls");
    assert!(ring.drain(1, 0, None).is_empty(), "nothing completes before chains have answered");
    world.chunks.hold_writes(false);
    drain_all_good(&ring, 32, 4096);
    let content = world.content(5);
    for n in 0..32 {
        let start = (n * CHUNK + 100) as usize;
        assert_eq!(content[start..start + 4096], vec![n as u8 + 1; 4096]);
    }
}

#[test]
fn long_writes_go_out_of_their_own_memory_and_touch_no_room_for_dirty_bytes() {
    let world = RingWorld::new();
    let file = world.file_of_chunks(5, 64);
    let ring = world.ring(4);
    world.chunks.hold_writes(true);
    submit(&ring, vec![write(&file, 0, vec![3; 64 * CHUNK as usize])]);
    world.chunks.wait_for_writes(64);
    assert_eq!(world.shared.dirty_limit.used(), 0);
    world.chunks.hold_writes(false);
    drain_all_good(&ring, 1, 64 * CHUNK as usize);
    assert_eq!(world.content(5), vec![3; 64 * CHUNK as usize]);
}

#[test]
fn short_writes_that_follow_one_another_become_one_update() {
    let world = RingWorld::new();
    let file = world.file_of_chunks(5, 1);
    let parts: Vec<WriteAt> = (0..8u64)
        .map(|n| {
            let payload = Placement::from_vec(vec![n as u8; 4096]);
            WriteAt { file: file.clone(), offset: 8192 + n * 4096, payload }
        })
        .collect();
    for outcome in write_many(&world.shared, &parts) {
        outcome.expect("nothing stands in the way").unwrap();
    }
    assert_eq!(world.chunks.writes.load(Ordering::Relaxed), 1);
    let expected: Vec<u8> = (0..8).flat_map(|n| vec![n; 4096]).collect();
    assert_eq!(world.content(5)[8192..8192 + 32_768], expected);
}

#[test]
fn writes_over_dirty_bytes_and_over_one_another_keep_their_order_and_their_bytes() {
    let world = RingWorld::new();
    let file = world.file_of_chunks(5, 4);
    let ring = world.ring(8);
    file.write(WriteOffset::At(CHUNK - 100), &Placement::from_vec(vec![1; 200]), false).unwrap();
    submit(&ring, vec![write(&file, CHUNK - 50, vec![2; 100]), write(&file, 3 * CHUNK, vec![7; 10])]);
    drain_all_good_of(&ring, &[(CHUNK - 50, 100), (3 * CHUNK, 10)]);
    // Acknowledged, with what was dirty under them.
    let content = world.content(5);
    let start = CHUNK as usize - 100;
    assert_eq!(content[start..start + 200], [[1; 50], [2; 50], [2; 50], [1; 50]].concat());
    let overlapping = (0..8).map(|n| write(&file, 2 * CHUNK + n, vec![n as u8 + 1; 20])).collect();
    submit(&ring, overlapping);
    drain_all_good(&ring, 8, 20);
    let content = world.content(5);
    let start = 2 * CHUNK as usize;
    assert_eq!((content[start], content[start + 26]), (1, 8), "bytes of one write only");
    assert!(content[start..start + 27].iter().all(|byte| (1..=8).contains(byte)));
    file.close().unwrap();
    assert_eq!(world.content(5), content, "the close changes nothing of it");
}

fn drain_all_good_of(ring: &Ring, expected: &[(u64, usize)]) {
    let found: Vec<_> = drain(ring).into_iter().map(|done| (done.user_data, done.result.unwrap())).collect();
    assert_eq!(found, expected);
}

#[test]
fn bytes_in_flight_are_read_and_a_buffered_write_over_them_follows() {
    let world = RingWorld::new();
    let file = world.file_of_chunks(5, 2);
    let ring = world.ring(4);
    world.chunks.hold_writes(true);
    submit(&ring, vec![write(&file, 0, vec![1; 100])]);
    world.chunks.wait_for_writes(1);
    file.write(WriteOffset::At(50), &Placement::from_vec(vec![2; 100]), false).unwrap();
    let into = Placement::from_vec(vec![9; 200]);
    assert_eq!(file.read_at(0, &into).unwrap(), 200);
    assert!(file.inode().plan_read(CHUNK - 200, &into).is_none(), "of a chunk in flight");
    assert!(file.inode().plan_read(CHUNK, &into).is_some(), "of another chunk");
    let expected = [[1; 50], [2; 50], [2; 50], [0; 50]].concat();
    assert_eq!(into.to_vec(), expected);
    world.chunks.hold_writes(false);
    drain_all_good(&ring, 1, 100);
    file.fsync(false).unwrap();
    assert_eq!(world.content(5)[..200], expected);
}

#[test]
fn the_failure_of_one_of_many_is_the_completion_of_that_one() {
    let world = RingWorld::new();
    let file = world.file_of_chunks(5, 16);
    let ring = world.ring(16);
    world.chunks.fail_writes_at(3 * CHUNK, Error::new(Kind::NoSpace, "full"));
    world.chunks.hold_writes(true);
    submit(&ring, (0..16).map(|n| write(&file, n * CHUNK, vec![1; 4096])).collect());
    world.chunks.wait_for_writes(16);
    world.chunks.hold_writes(false);
    for done in drain(&ring) {
        match done.user_data == 3 * CHUNK {
            true => assert_eq!(done.result.unwrap_err().kind(), Kind::NoSpace),
            false => assert_eq!(done.result.unwrap(), 4096),
        }
    }
    // Its writer got the error; fsync and close report that the file is incomplete.
    submit(&ring, vec![write(&file, 0, vec![2; 4096])]);
    drain_all_good(&ring, 1, 4096);
    assert_eq!(file.fsync(false).unwrap_err().kind(), Kind::NoSpace);
    file.close().unwrap();
    world.shared.send_closes();
    assert_eq!(world.meta.measured().len(), 1, "the chains are asked for the length");
}

#[test]
fn a_panic_in_a_batch_is_an_error_of_each_and_leaves_no_caller_waiting() {
    let world = RingWorld::new();
    let file = world.file_of_chunks(5, 2);
    let ring = world.ring(1);
    for entry in [write(&file, 0, vec![1; 100]), read(&file, 0, 100)] {
        world.chunks.panic_at_next_batch();
        submit(&ring, vec![entry]);
        assert_eq!(drain(&ring).remove(0).result.unwrap_err().kind(), Kind::Other);
    }
    submit(&ring, vec![write(&file, 0, vec![2; 100])]);
    drain_all_good(&ring, 1, 100);
}

#[test]
fn fsync_and_close_cover_writes_that_lengthen_the_file() {
    let world = RingWorld::new();
    let file = world.file_of_chunks(5, 1);
    let ring = world.ring(8);
    submit(&ring, (1..8).map(|n| write(&file, n * CHUNK, vec![n as u8; CHUNK as usize])).collect());
    drain_all_good(&ring, 7, CHUNK as usize);
    file.fsync(true).unwrap();
    assert_eq!(world.meta.durable_bytes(5).unwrap(), world.content(5));
    assert_eq!(world.content(5).len() as u64, 8 * CHUNK);
    submit(&ring, vec![write(&file, 8 * CHUNK, vec![9; 10])]);
    drain_all_good(&ring, 1, 10);
    file.close().unwrap();
    assert_eq!(world.meta.inode(5).length, 8 * CHUNK + 10);
}

#[test]
fn fsync_and_truncation_wait_for_writes_in_flight() {
    let world = RingWorld::new();
    let file = world.file_of_chunks(5, 2);
    let ring = world.ring(4);
    world.chunks.hold_writes(true);
    submit(&ring, vec![write(&file, CHUNK, vec![1; 100])]);
    world.chunks.wait_for_writes(1);
    thread::scope(|scope| {
        let synced = scope.spawn(|| file.fsync(false));
        let cut = scope.spawn(|| file.truncate(CHUNK));
        world.chunks.hold_writes(false);
        synced.join().unwrap().unwrap();
        cut.join().unwrap().unwrap();
    });
    drain_all_good(&ring, 1, 100);
    assert_eq!(world.meta.inode(5).length, CHUNK);
    assert_eq!(file.inode().length(), CHUNK);
}

#[test]
fn small_files_and_appends_are_written_through_a_ring_too() {
    let world = RingWorld::new();
    let create = CreateOptions { permissions: 0o644, exclusive: false, layout: None };
    let identity = Arc::<Identity>::default();
    let small = File::create(&world.files, &identity, name_path(1, b"f6"), READ_WRITE, create).unwrap();
    let ring = world.ring(4);
    submit(&ring, (0..4).map(|n| write(&small, n * 10, vec![n as u8; 10])).collect());
    drain_all_good(&ring, 4, 10);
    assert!(world.meta.inode(6).is_inline);
    assert_eq!(world.meta.inode(6).inline_data.len(), 40);
    world.file_of_chunks(5, 1);
    let options = OpenOptions { append: true, ..READ_WRITE };
    let appender = File::open(&world.files, &identity, inode_path(5), options).unwrap();
    submit(&ring, (0..4).map(|n| write(&appender, n, vec![8; 10])).collect());
    drain_all_good(&ring, 4, 10);
    assert_eq!(world.content(5)[CHUNK as usize..], [8; 40]);
    // Longer than what is sent at once: others may append too, but not into it.
    let long = 9 << 20;
    let other = File::open(&world.files, &identity, inode_path(5), options).unwrap();
    submit(&ring, vec![write(&appender, 0, vec![3; long]), write(&other, 1, vec![4; long])]);
    drain_all_good(&ring, 2, long);
    let appended = world.content(5).split_off(CHUNK as usize + 40);
    assert_eq!(appended.len(), 2 * long);
    assert!(appended.chunks(long).all(|one| one.iter().all(|byte| *byte == one[0])), "not interleaved");
    let reader =
        File::open(&world.files, &identity, inode_path(5), OpenOptions { write: false, ..READ_WRITE });
    let reader = reader.unwrap();
    submit(&ring, vec![write(&reader, 0, vec![1; 10])]);
    assert_eq!(drain(&ring).remove(0).result.unwrap_err().kind(), Kind::InvalidArgument);
}

#[test]
fn no_write_leaves_a_lapsed_client() {
    let world = RingWorld::new();
    let file = world.file_of_chunks(5, 2);
    let ring = world.ring(4);
    world.shared.fence.open_until(0);
    submit(&ring, vec![write(&file, 0, vec![1; 100])]);
    assert!(ring.drain(1, 1, Some(Duration::from_millis(20))).is_empty());
    assert_eq!(world.chunks.writes.load(Ordering::Relaxed), 0);
    world.shared.fence.open_until(u64::MAX);
    drain_all_good(&ring, 1, 100);
}
