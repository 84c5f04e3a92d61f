//! Files against the fakes of chunks and metadata.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::dirty_files::DirtyFile;
use super::fake::{CHUNK_BYTES, FakeChunks, FakeMeta, INLINE_BYTES, client, client_that_trusts};
use super::*;
use crate::buffer::Placement;
use crate::error::{Error, Kind, Result};
use crate::logged;
use crate::wire::pb::Method;

struct FakeCluster {
    chunks: Arc<FakeChunks>,
    meta: Arc<FakeMeta>,
    files: Arc<OpenFiles>,
    shared: Arc<Shared>,
    identity: Arc<Identity>,
}

const READ_WRITE: OpenOptions =
    OpenOptions { read: true, write: true, append: false, truncate: false, direct: false, follow: false };
const READ: OpenOptions = OpenOptions { write: false, ..READ_WRITE };
const DIRECT: OpenOptions = OpenOptions { direct: true, ..READ_WRITE };
const FRESH: CreateOptions = CreateOptions { permissions: 0o644, exclusive: false, layout: None };

impl FakeCluster {
    fn new() -> FakeCluster {
        FakeCluster::with_buffer(8 << 20)
    }

    fn with_buffer(bytes: usize) -> FakeCluster {
        let chunks = Arc::new(FakeChunks::default());
        let meta = FakeMeta::new(chunks.clone());
        let files = client(&chunks, &meta, bytes);
        FakeCluster { chunks, meta, shared: files.shared().clone(), files, identity: Arc::default() }
    }

    /// As `new`, but what it knows it does not ask for again.
    fn that_trusts() -> FakeCluster {
        let cluster = FakeCluster::new();
        cluster.with(cluster.trusting())
    }

    fn trusting(&self) -> Arc<OpenFiles> {
        client_that_trusts(&self.chunks, &self.meta, 8 << 20, Duration::from_secs(3600))
    }

    /// Another process on the same cluster.
    fn other(&self) -> FakeCluster {
        self.with(client(&self.chunks, &self.meta, 8 << 20))
    }

    fn with(&self, files: Arc<OpenFiles>) -> FakeCluster {
        let (chunks, meta, shared) = (self.chunks.clone(), self.meta.clone(), files.shared().clone());
        FakeCluster { chunks, meta, files, shared, identity: Arc::default() }
    }

    fn create(&self, number: u64) -> Arc<File> {
        let path = name_path(1, format!("f{number}").as_bytes());
        File::create(&self.files, &self.identity, path, READ_WRITE, FRESH).unwrap()
    }

    fn open(&self, number: u64) -> Arc<File> {
        File::open(&self.files, &self.identity, inode_path(number), READ_WRITE).unwrap()
    }

    fn open_with(&self, number: u64, options: OpenOptions) -> Arc<File> {
        File::open(&self.files, &self.identity, inode_path(number), options).unwrap()
    }
}

fn put(file: &File, offset: u64, bytes: &[u8]) {
    file.write(WriteOffset::At(offset), &Placement::from_vec(bytes.to_vec()), false).unwrap();
}

fn get(file: &File, offset: u64, length: usize) -> Vec<u8> {
    let into = Placement::from_vec(vec![0xee; length]);
    let count = file.read_at(offset, &into).unwrap();
    into.slice(0..count).to_vec()
}

fn pattern(length: usize, seed: u8) -> Vec<u8> {
    (0..length).map(|index| (index as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

#[test]
fn a_small_file_lives_in_its_inode_and_costs_one_close() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, b"hello");
    put(&file, 5, b" world");
    file.close().unwrap();
    assert_eq!(cluster.meta.inode(5).inline_data, b"hello world");
    assert_eq!(*cluster.meta.calls.lock(), [Method::MetaCreate, Method::MetaClose]);
    assert_eq!(cluster.chunks.writes.load(Ordering::Relaxed), 0);
    assert_eq!(get(&cluster.other().open(5), 0, 100), b"hello world");
}

#[test]
fn attributes_without_bytes_do_not_empty_a_small_file() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, b"hello");
    file.flush().unwrap();
    let listed = pb::Inode { inline_data: Vec::new(), ..cluster.meta.inode(5) };
    for change in [listed.change, listed.change + 1] {
        let listed = pb::Inode { change, ..listed.clone() };
        assert_eq!(file.inode().overlay_local(&listed).length, 5);
        assert_eq!(get(&file, 0, 100), b"hello");
    }
}

#[test]
fn a_file_that_outgrows_its_inode_moves_to_chunks() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    let bytes = pattern(INLINE_BYTES as usize + 10, 1);
    put(&file, 0, &bytes[..100]);
    file.flush().unwrap();
    assert!(cluster.meta.inode(5).is_inline);
    put(&file, 100, &bytes[100..]);
    assert_eq!(get(&file, 0, 10_000), bytes);
    file.close().unwrap();
    let inode = cluster.meta.inode(5);
    assert!(!inode.is_inline && inode.inline_data.is_empty());
    assert_eq!(inode.length, bytes.len() as u64);
    assert_eq!(cluster.chunks.content(inode.content), bytes);
}

#[test]
fn a_huge_range_of_zeros_costs_what_is_there() {
    const TIB: u64 = 1 << 40;
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    let bytes = pattern(200_000, 1);
    put(&file, 0, &bytes);
    file.truncate(TIB).unwrap();
    put(&file, 190_000, &bytes[..10_000]); // waits here
    file.punch_hole(100_000..TIB).unwrap();
    file.flush().unwrap();
    assert_eq!(get(&file, 0, 300_000), [&bytes[..100_000], &[0; 200_000]].concat());
    assert_eq!(cluster.meta.inode(5).length, TIB);
    assert!(cluster.chunks.content(cluster.meta.inode(5).content).len() < 400_000);
    file.close().unwrap();

    let small = cluster.create(6);
    put(&small, 0, b"hello world");
    small.truncate(TIB).unwrap();
    small.punch_hole(5..TIB).unwrap();
    small.close().unwrap();
    assert!(cluster.meta.inode(6).is_inline);
    assert_eq!(get(&cluster.open(6), 0, 20), b"hello\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
}

#[test]
fn writers_of_one_small_file_on_two_clients_both_survive() {
    let cluster = FakeCluster::new();
    let mine = cluster.create(5);
    put(&mine, 0, b"aaaaaaaa");
    mine.flush().unwrap();
    let other = cluster.other();
    let theirs = other.open(5);
    put(&mine, 0, b"MM");
    put(&theirs, 6, b"TTTT");
    theirs.close().unwrap();
    mine.close().unwrap();
    assert_eq!(cluster.meta.inode(5).inline_data, b"MMaaaaTTTT");
}

#[test]
fn an_answer_that_withholds_the_bytes_does_not_empty_a_small_file() {
    let cluster = FakeCluster::that_trusts();
    let file = cluster.create(5);
    put(&file, 0, b"hello");
    file.flush().unwrap();
    let inode = cluster.meta.inode(5);
    let withheld =
        pb::Inode { inline_data: Vec::new(), bytes_withheld: true, change: inode.change + 1, ..inode };
    file.inode().apply_server_inode(&withheld);
    assert_eq!(get(&file, 0, 100), b"hello");
}

/// What `call` gives, in another thread, if its call of `method` is carried out at once and answered after `meanwhile`.
fn call_while<T: Send>(
    cluster: &FakeCluster,
    method: Method,
    call: impl FnOnce() -> T + Send,
    meanwhile: impl FnOnce(),
) -> T {
    cluster.meta.hold_answer(Some(method));
    thread::scope(|scope| {
        let called = scope.spawn(call);
        cluster.meta.wait_for_caller();
        meanwhile();
        cluster.meta.hold_answer(None);
        called.join().unwrap()
    })
}

fn open_while<T: Send>(
    cluster: &FakeCluster,
    open: impl FnOnce() -> T + Send,
    meanwhile: impl FnOnce(),
) -> T {
    call_while(cluster, Method::MetaOpen, open, meanwhile)
}

/// Another client writes "TT" at 4 and closes.
fn write_elsewhere(cluster: &FakeCluster) {
    let theirs = cluster.other().open(5);
    put(&theirs, 4, b"TT");
    theirs.close().unwrap();
}

#[test]
fn bytes_of_others_that_were_seen_before_the_answer_to_an_own_close_are_read() {
    let cluster = FakeCluster::that_trusts();
    let first = cluster.create(5);
    put(&first, 0, b"aaaaaaaa");
    let mut second = None;
    call_while(
        &cluster,
        Method::MetaClose,
        || first.close().unwrap(),
        || {
            write_elsewhere(&cluster);
            second = Some(cluster.open(5));
        },
    );
    assert_eq!(get(&second.unwrap(), 0, 100), b"aaaaTTaa");
}

#[test]
fn bytes_of_others_survive_a_sync_that_was_answered_late_and_a_write_meanwhile() {
    let cluster = FakeCluster::that_trusts();
    let file = cluster.create(5);
    put(&file, 0, b"aaaaaaaa");
    file.flush().unwrap();
    put(&file, 0, b"MM");
    call_while(
        &cluster,
        Method::MetaSync,
        || file.flush().unwrap(),
        || {
            write_elsewhere(&cluster);
            put(&file, 7, b"N");
        },
    );
    file.close().unwrap();
    assert_eq!(cluster.meta.inode(5).inline_data, b"MMaaTTaN");
}

#[test]
fn a_file_that_was_closed_while_its_open_was_answered_is_as_it_was_left() {
    let cluster = FakeCluster::that_trusts();
    let first = cluster.create(5);
    let append = OpenOptions { append: true, ..READ_WRITE };
    let second = open_while(
        &cluster,
        || cluster.open_with(5, append),
        || {
            put(&first, 0, b"acknowledged");
            first.close().unwrap();
        },
    );
    second.write(WriteOffset::At(0), &Placement::from_vec(b" and more".to_vec()), false).unwrap();
    second.close().unwrap();
    assert_eq!(cluster.meta.inode(5).inline_data, b"acknowledged and more");
}

#[test]
fn a_file_is_as_it_was_left_whatever_else_was_closed_while_its_open_was_answered() {
    let cluster = FakeCluster::that_trusts();
    let first = cluster.create(5);
    let second = open_while(
        &cluster,
        || cluster.open(5),
        || {
            put(&first, 0, b"acknowledged");
            first.close().unwrap();
            (100..2000).for_each(|number| cluster.create(number).close().unwrap());
        },
    );
    assert_eq!(get(&second, 0, 100), b"acknowledged");
    assert_eq!(cluster.meta.count(Method::MetaStat), 1);
    second.close().unwrap();
    cluster.open(5).close().unwrap();
    assert_eq!(cluster.meta.count(Method::MetaStat), 1, "what is known is not asked for");
}

#[test]
fn a_file_that_was_cut_while_its_open_was_answered_is_cut() {
    let cluster = FakeCluster::that_trusts();
    let file = cluster.create(5);
    put(&file, 0, b"acknowledged");
    file.close().unwrap();
    let cut = || drop(set_length(&cluster.files, &cluster.identity, 5, 3, 0).unwrap());
    let file = open_while(&cluster, || cluster.open(5), cut);
    assert_eq!(get(&file, 0, 100), b"ack");
}

#[test]
fn bytes_of_others_that_were_seen_before_the_answer_to_an_own_cut_stay() {
    let cluster = FakeCluster::that_trusts();
    let file = cluster.create(5);
    put(&file, 0, b"acknowledged");
    file.flush().unwrap();
    let mut second = None;
    call_while(
        &cluster,
        Method::MetaSetAttr,
        || drop(set_length(&cluster.files, &cluster.identity, 5, 3, 0).unwrap()),
        || {
            write_elsewhere(&cluster);
            second = Some(cluster.open(5));
        },
    );
    assert_eq!(get(&second.unwrap(), 0, 100), b"ack\0TT");
    file.write(WriteOffset::Append, &Placement::from_vec(b" and more".to_vec()), false).unwrap();
    file.close().unwrap();
    assert_eq!(cluster.meta.inode(5).inline_data, b"ack\0TT and more");
}

#[test]
fn a_file_that_was_emptied_by_its_writer_is_closed() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, b"gone");
    file.truncate(0).unwrap();
    file.close().unwrap();
    assert_eq!(cluster.meta.inode(5).length, 0);
}

#[test]
fn a_file_that_is_emptied_by_name_loses_what_waits_here_too() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, b"gone");
    let truncate = OpenOptions { truncate: true, ..READ_WRITE };
    let again =
        File::create(&cluster.files, &cluster.identity, name_path(1, b"f5"), truncate, FRESH).unwrap();
    assert_eq!(get(&again, 0, 100), b"");
    file.close().unwrap();
    assert_eq!(cluster.meta.inode(5).length, 0);
}

#[test]
fn an_open_after_a_close_elsewhere_sees_it_beside_bytes_that_wait_here() {
    let cluster = FakeCluster::that_trusts();
    let file = cluster.create(5);
    put(&file, 0, b"aaaaaaaa");
    file.flush().unwrap();
    put(&file, 0, b"MM");
    write_elsewhere(&cluster);
    assert_eq!(get(&cluster.open(5), 0, 100), b"MMaaTTaa");
    let theirs = cluster.other().open(5);
    put(&theirs, 5000, b"far");
    theirs.close().unwrap();
    let again = cluster.open(5);
    assert_eq!(get(&again, 5000, 100), b"far");
    assert_eq!(get(&again, 0, 8), b"MMaaTTaa");
}

#[test]
fn what_was_synced_is_not_synced_again_over_later_writes_of_others() {
    let cluster = FakeCluster::that_trusts();
    let file = cluster.create(5);
    put(&file, 0, b"aaaaaaaa");
    let flush = || file.flush().unwrap();
    call_while(&cluster, Method::MetaSync, flush, || put(&file, 0, b"M"));
    write_elsewhere(&cluster);
    file.close().unwrap();
    assert_eq!(cluster.meta.inode(5).inline_data, b"MaaaTTaa");
}

#[test]
fn bytes_whose_sync_is_in_flight_do_not_leave_the_inode_before() {
    let cluster = FakeCluster::that_trusts();
    let file = cluster.create(5);
    put(&file, 0, b"aaaaaaaa");
    thread::scope(|scope| {
        cluster.meta.hold_answer(Some(Method::MetaSync));
        let flushed = scope.spawn(|| file.flush().unwrap());
        cluster.meta.wait_for_caller();
        let written = scope.spawn(|| put(&file, 5000, b"far"));
        write_elsewhere(&cluster);
        cluster.meta.hold_answer(None);
        flushed.join().unwrap();
        written.join().unwrap();
    });
    file.close().unwrap();
    assert_eq!(&get(&cluster.other().open(5), 0, 8), b"aaaaTTaa");
}

#[test]
fn bytes_that_were_cut_away_do_not_come_back_with_a_late_answer() {
    let cluster = FakeCluster::that_trusts();
    let file = cluster.create(5);
    put(&file, 0, b"gone");
    call_while(
        &cluster,
        Method::MetaSync,
        || file.flush().unwrap(),
        || {
            cluster.other().open_with(5, OpenOptions { truncate: true, ..READ_WRITE }).close().unwrap();
            put(&file, 6, b"N");
        },
    );
    assert_eq!(get(&file, 0, 100), b"\0\0\0\0\0\0N");
}

#[test]
fn what_others_wrote_before_the_answer_to_a_truncation_is_seen() {
    let cluster = FakeCluster::that_trusts();
    let file = cluster.create(5);
    let mut again = None;
    call_while(
        &cluster,
        Method::MetaSetAttr,
        || drop(file.truncate(0).unwrap()),
        || {
            write_elsewhere(&cluster);
            again = Some(cluster.open(5));
        },
    );
    assert_eq!(get(&again.unwrap(), 0, 100), b"\0\0\0\0TT");
}

#[test]
fn a_length_that_a_file_has_since_it_was_cut_elsewhere_is_synced() {
    let cluster = FakeCluster::that_trusts();
    let file = cluster.create(5);
    put(&file, 0, &pattern(2 * CHUNK_BYTES as usize, 3));
    file.flush().unwrap();
    let theirs = cluster.other();
    set_length(&theirs.files, &theirs.identity, 5, 0, 0).unwrap();
    put(&file, 0, b"new");
    file.inode().flush();
    file.refresh().unwrap();
    assert_eq!(get(&file, 0, 3), b"new");
    file.close().unwrap();
    assert_eq!(get(&cluster.other().open(5), 0, 100), b"new");
}

#[test]
fn a_file_whose_close_failed_syncs_nothing_when_opened_again() {
    let cluster = FakeCluster::that_trusts();
    let first = cluster.create(5);
    put(&first, 0, b"lost");
    let inode = first.inode().clone();
    cluster.meta.fail_calls(Some(Error::new(Kind::Unavailable, "no metadata")));
    assert_eq!(first.close().unwrap_err().kind(), Kind::Unavailable);
    cluster.meta.fail_calls(None);
    let second = cluster.open(5);
    put(&second, 0, b"kept");
    second.flush().unwrap();
    inode.clone().start_write_back();
    inode.clone().report_aged();
    assert_eq!(cluster.meta.inode(5).inline_data, b"kept");
    assert_eq!(cluster.shared.dirty_limit.used(), 0);
}

#[test]
fn attributes_that_were_asked_for_before_a_close_show_what_was_written_before() {
    let cluster = FakeCluster::that_trusts();
    let file = cluster.create(5);
    let (asked, _) = cluster.shared.metadata_cache.attributes(5).unwrap();
    put(&file, 0, b"hello");
    file.close().unwrap();
    assert_eq!(cluster.files.local_view(&asked).length, 5);
}

#[test]
fn pages_are_dropped_if_only_others_changed_the_file_before_an_fsync() {
    let cluster = FakeCluster::that_trusts();
    let file = cluster.create(5);
    let change = file.inode().change();
    let names = &cluster.shared.metadata_cache;
    names.page_cache_dropped(5, names.page_cache_at(5, change, 0).unwrap());
    write_elsewhere(&cluster);
    file.fsync(false).unwrap();
    assert_eq!(cluster.meta.inode(5).change, change + 1);
    assert!(names.page_cache_at(5, change + 1, 0).is_some(), "they must be dropped");
}

#[test]
fn pages_are_dropped_before_a_change_is_shown_that_only_the_open_file_knows() {
    let cluster = FakeCluster::that_trusts();
    let file = cluster.create(5);
    put(&file, 0, b"hello!");
    file.fsync(false).unwrap();
    let names = &cluster.shared.metadata_cache;
    let (change, length) = (file.inode().change(), file.inode().length());
    if let Some(number) = names.page_cache_at(5, change, length) {
        names.page_cache_dropped(5, number);
    }
    assert_eq!(names.outdates_pages(5, change, length), None);
    write_elsewhere(&cluster);
    file.refresh().unwrap();
    assert_eq!((file.inode().change(), file.inode().length()), (change + 1, length));
    assert!(names.outdates_pages(5, file.inode().change(), length).is_some());
}

#[test]
fn a_truncation_during_an_fsync_is_made_durable_by_the_next() {
    let cluster = FakeCluster::that_trusts();
    let file = cluster.create(5);
    put(&file, 0, b"old");
    cluster.meta.hold_answer(Some(Method::MetaSync));
    thread::scope(|scope| {
        scope.spawn(|| file.fsync(true).unwrap());
        cluster.meta.wait_for_caller();
        // It waits for what is being sent.
        scope.spawn(|| cluster.open_with(5, OpenOptions { truncate: true, ..READ_WRITE }).close().unwrap());
        cluster.meta.hold_answer(None);
    });
    file.fsync(true).unwrap();
    assert_eq!(cluster.meta.count(Method::MetaSync), 2);
}

#[test]
fn a_file_that_cannot_be_looked_at_again_is_not_opened_and_its_session_ends() {
    let cluster = FakeCluster::that_trusts();
    let first = cluster.create(5);
    let failed = open_while(
        &cluster,
        || File::open(&cluster.files, &cluster.identity, inode_path(5), READ_WRITE).map(drop),
        || {
            put(&first, 0, b"acknowledged");
            first.close().unwrap();
            cluster.meta.fail_calls(Some(Error::new(Kind::Unavailable, "no metadata")));
        },
    );
    assert_eq!(failed.unwrap_err().kind(), Kind::Unavailable);
    assert_eq!(cluster.shared.closes.count(), 1);
    assert!(cluster.files.all().is_empty() && cluster.files.held().is_empty());
}

#[test]
fn a_small_write_survives_that_the_file_became_a_large_one_meanwhile() {
    let cluster = FakeCluster::new();
    let mine = cluster.create(5);
    put(&mine, 0, b"aaaaaaaa");
    mine.flush().unwrap();
    let theirs = cluster.other().open(5);
    let large = pattern(3 * CHUNK_BYTES as usize, 9);
    put(&theirs, 0, &large);
    theirs.close().unwrap();
    put(&mine, 2, b"MM");
    mine.close().unwrap();
    let mut expected = large;
    expected[2..4].copy_from_slice(b"MM");
    assert_eq!(cluster.chunks.content(cluster.meta.inode(5).content), expected);
    assert_eq!(cluster.meta.inode(5).length, expected.len() as u64);
}

#[test]
fn a_file_that_outgrows_its_inode_keeps_what_others_wrote_there() {
    let cluster = FakeCluster::new();
    let mine = cluster.create(5);
    put(&mine, 0, b"aaaaaaaa");
    mine.flush().unwrap();
    let theirs = cluster.other().open(5);
    put(&theirs, 0, b"TT");
    theirs.close().unwrap();
    put(&mine, 5000, b"far");
    mine.close().unwrap();
    let content = cluster.chunks.content(cluster.meta.inode(5).content);
    assert_eq!(&content[..8], b"TTaaaaaa");
    assert_eq!(&content[5000..], b"far");
}

/// Two clients with a small file open; each has written its own bytes of the first few, and beyond what fits its inode.
fn two_that_outgrow(cluster: &FakeCluster) -> [(Arc<File>, FakeCluster); 2] {
    let first = cluster.create(5);
    put(&first, 0, &[b'.'; 4000]);
    first.close().unwrap();
    let clients = [cluster.other(), cluster.other()];
    let files = clients.map(|client| (client.open(5), client));
    for (index, (file, _)) in files.iter().enumerate() {
        put(file, index as u64 * 100 + 7, b"mine");
        put(file, 5000 + index as u64 * 70_000, &[b'0' + index as u8; 3000]);
    }
    files
}

fn what_two_have_written() -> Vec<u8> {
    let mut expected = [vec![b'.'; 4000], vec![0; 74_000]].concat();
    for index in 0..2 {
        expected[index * 100 + 7..][..4].copy_from_slice(b"mine");
        expected[5000 + index * 70_000..][..3000].fill(b'0' + index as u8);
    }
    expected
}

#[test]
fn of_two_clients_that_outgrow_an_inode_the_later_keeps_the_bytes_of_the_faster() {
    let cluster = FakeCluster::new();
    let files = two_that_outgrow(&cluster);
    for (file, _) in &files {
        file.close().unwrap();
    }
    let inode = cluster.meta.inode(5);
    assert_eq!(inode.length, 78_000);
    assert!(cluster.chunks.content(inode.content) == what_two_have_written());
    assert!(get(&cluster.other().open(5), 0, 100_000) == what_two_have_written());
}

#[test]
fn two_clients_that_stand_before_leaving_an_inode_at_one_moment_both_keep_their_bytes() {
    let cluster = FakeCluster::new();
    let files = two_that_outgrow(&cluster);
    cluster.chunks.hold_writes(true);
    thread::scope(|scope| {
        for (file, _) in &files {
            scope.spawn(|| file.close().unwrap());
        }
        // Both have read the inode, and write its bytes elsewhere: one of them will be late.
        cluster.chunks.wait_for_writers(2);
        cluster.chunks.hold_writes(false);
    });
    assert!(get(&cluster.other().open(5), 0, 100_000) == what_two_have_written());
}

#[test]
fn a_file_that_is_emptied_while_it_leaves_its_inode_keeps_only_what_was_written_here() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, b"old old old");
    file.flush().unwrap();
    put(&file, 4, b"new");
    put(&file, 5000, b"far");
    cluster.chunks.hold_writes(true);
    thread::scope(|scope| {
        scope.spawn(|| file.close().unwrap());
        cluster.chunks.wait_for_writers(1);
        cluster.other().open_with(5, OpenOptions { truncate: true, ..READ_WRITE }).close().unwrap();
        cluster.chunks.hold_writes(false);
    });
    let expected = [b"\0\0\0\0new".as_slice(), &[0; 4993], b"far"].concat();
    assert_eq!(get(&cluster.other().open(5), 0, 10_000), expected);
}

#[test]
fn a_file_that_cannot_leave_its_inode_keeps_its_bytes_and_the_writer_gets_the_error() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, b"small");
    file.flush().unwrap();
    cluster.chunks.fail_writes(Some(Error::new(Kind::NoSpace, "full")));
    put(&file, 5000, b"far");
    assert_eq!(file.fsync(false).unwrap_err().kind(), Kind::NoSpace);
    assert_eq!(cluster.meta.inode(5).inline_data, b"small");
    assert_eq!(cluster.shared.dirty_limit.used(), 0);
    cluster.chunks.fail_writes(None);
    put(&file, 5, b"er");
    file.close().unwrap();
    assert_eq!(cluster.meta.inode(5).inline_data, b"smaller");
}

#[test]
fn bytes_in_an_inode_are_on_the_disks_of_chains_before_they_leave_it() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, b"small");
    file.fsync(false).unwrap();
    put(&file, 5000, b"far");
    file.flush().unwrap();
    assert!(!cluster.meta.inode(5).is_inline);
    assert_eq!(cluster.chunks.syncs.load(Ordering::Relaxed), 1);
}

#[test]
fn reads_see_dirty_bytes_over_acknowledged_ones() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    let mut model = pattern(3 * CHUNK_BYTES as usize + 77, 3);
    put(&file, 0, &model);
    file.flush().unwrap();
    for (offset, length) in [(10, 20), (65_530, 20), (100_000, 5), (196_600, 60)] {
        let bytes = pattern(length, 200);
        put(&file, offset, &bytes);
        model[offset as usize..offset as usize + length].copy_from_slice(&bytes);
    }
    assert_eq!(get(&file, 0, model.len() + 100), model);
    assert_eq!(get(&file, 65_000, 1000), model[65_000..66_000]);
    file.close().unwrap();
    assert_eq!(cluster.chunks.content(cluster.meta.inode(5).content), model);
}

#[test]
fn a_write_while_its_chunk_is_in_flight_is_seen_and_follows() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    cluster.chunks.hold_writes(true);
    put(&file, 0, &vec![1; CHUNK_BYTES as usize]);
    put(&file, 100, &[2; 10]);
    assert_eq!(get(&file, 95, 20), [[1; 5].as_slice(), &[2; 10], &[1; 5]].concat());
    cluster.chunks.hold_writes(false);
    file.close().unwrap();
    let content = cluster.chunks.content(cluster.meta.inode(5).content);
    assert_eq!(content[95..115], [[1; 5].as_slice(), &[2; 10], &[1; 5]].concat());
}

#[test]
fn a_failed_write_back_is_reported_once_to_every_handle() {
    let cluster = FakeCluster::new();
    let first = cluster.create(5);
    let second = cluster.open(5);
    cluster.chunks.fail_writes(Some(Error::new(Kind::NoSpace, "full")));
    put(&first, 0, &pattern(100_000, 0));
    let error = first.fsync(false).unwrap_err();
    assert_eq!((error.kind(), error.errno()), (Kind::NoSpace, 28));
    cluster.chunks.fail_writes(None);
    first.fsync(false).unwrap();
    assert_eq!(second.close().unwrap_err().kind(), Kind::NoSpace);
    first.close().unwrap();
    let later = cluster.open(5);
    later.close().unwrap();
}

#[test]
fn a_mistake_in_a_write_back_is_an_error_and_leaves_no_caller_waiting() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    cluster.chunks.panic_at_next_batch();
    put(&file, 0, &pattern(100_000, 0));
    assert_eq!(file.fsync(false).unwrap_err().kind(), Kind::Other);
    put(&file, 0, &pattern(100_000, 0));
    file.close().unwrap();
}

#[test]
fn a_mistake_while_a_file_leaves_its_inode_is_an_error_and_leaves_no_caller_waiting() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, b"hello");
    file.flush().unwrap();
    cluster.chunks.panic_at_next_batch();
    put(&file, 5, &pattern(5000, 0));
    assert_eq!(file.fsync(false).unwrap_err().kind(), Kind::Other);
    put(&file, 5, &pattern(5000, 0));
    file.close().unwrap();
    let expected = [b"hello", pattern(5000, 0).as_slice()].concat();
    assert_eq!(get(&cluster.other().open(5), 0, 10_000), expected);
}

#[test]
fn a_mistake_during_a_sync_is_an_error_of_that_sync_alone() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, b"hello");
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _metadata = file.inode().lock_metadata();
        let _guard = file.inode().guard_sync();
        assert!(file.inode().final_update().is_some());
        panic!("a mistake");
    }));
    assert!(panicked.is_err());
    file.fsync(false).unwrap();
    file.close().unwrap();
    assert_eq!(get(&cluster.other().open(5), 0, 10), b"hello");
}

#[test]
fn a_full_disk_fills_no_log() {
    logged::begin();
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 0));
    file.flush().unwrap();
    cluster.chunks.fail_writes(Some(Error::new(Kind::NoSpace, "full, says this test")));
    for index in 0..64 {
        put(&file, index * u64::from(CHUNK_BYTES), b"more");
    }
    assert_eq!(file.fsync(false).unwrap_err().kind(), Kind::NoSpace);
    let lines = logged::with("full, says this test").len();
    assert!(lines <= 30, "64 failures in a moment, {lines} lines"); // ten in each window of ten seconds
    cluster.chunks.fail_writes(None);
    drop(file.close());
}

#[test]
fn a_writer_that_never_syncs_gets_the_error_by_its_next_write_and_again_by_close() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    cluster.chunks.fail_writes(Some(Error::new(Kind::NoSpace, "full")));
    put(&file, 0, &pattern(100_000, 0));
    file.inode().flush();
    let payload = Placement::from_vec(vec![1]);
    assert_eq!(file.write(WriteOffset::At(0), &payload, false).unwrap_err().kind(), Kind::NoSpace);
    cluster.chunks.fail_writes(None);
    file.write(WriteOffset::At(0), &payload, false).unwrap();
    assert_eq!(file.close().unwrap_err().kind(), Kind::NoSpace);
}

#[test]
fn direct_writes_are_acknowledged_before_they_return_and_report_their_own_error() {
    let cluster = FakeCluster::new();
    cluster.create(5).close().unwrap();
    let file = cluster.open_with(5, OpenOptions { direct: true, ..READ_WRITE });
    put(&file, 8192, &[5; 4096]);
    let inode = cluster.meta.inode(5);
    assert!(!inode.is_inline, "it has left its inode already");
    assert_eq!(cluster.chunks.content(inode.content)[8192..], [5; 4096]);
    cluster.chunks.fail_writes(Some(Error::new(Kind::NoSpace, "full")));
    let payload = Placement::from_vec(vec![1; 4096]);
    assert_eq!(file.write(WriteOffset::At(0), &payload, false).unwrap_err().kind(), Kind::NoSpace);
    cluster.chunks.fail_writes(None);
    file.write(WriteOffset::At(0), &payload, false).unwrap();
}

#[test]
fn direct_reads_see_what_another_client_has_just_written() {
    let cluster = FakeCluster::new();
    let options = OpenOptions { direct: true, ..READ_WRITE };
    cluster.create(5).close().unwrap();
    let mine = cluster.open_with(5, options);
    let theirs = cluster.other().open_with(5, options);
    put(&theirs, 0, b"small");
    assert_eq!(get(&mine, 0, 100), b"small");
    put(&theirs, 0, &pattern(10_000, 4));
    theirs.flush().unwrap();
    assert_eq!(get(&mine, 0, 20_000), pattern(10_000, 4));
}

#[test]
fn appends_of_many_threads_neither_overlap_nor_leave_gaps() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    thread::scope(|scope| {
        for writer in 0..4u8 {
            let file = &file;
            scope.spawn(move || {
                for _ in 0..200 {
                    let payload = Placement::from_vec(vec![writer + 1; 333]);
                    file.write(WriteOffset::Append, &payload, false).unwrap();
                }
            });
        }
    });
    file.close().unwrap();
    let content = cluster.chunks.content(cluster.meta.inode(5).content);
    assert_eq!(content.len(), 4 * 200 * 333);
    for record in content.chunks(333) {
        assert!(record[0] != 0 && record.iter().all(|byte| *byte == record[0]));
    }
}

const APPEND: OpenOptions = OpenOptions { append: true, ..READ_WRITE };

fn append(file: &File, bytes: &[u8]) -> u64 {
    file.write(WriteOffset::Append, &Placement::from_vec(bytes.to_vec()), false).unwrap()
}

#[test]
fn appends_of_two_clients_in_turn_leave_all_lines() {
    for (number, length) in [(5, 20), (6, 900)] {
        let cluster = FakeCluster::new();
        cluster.create(number).close().unwrap();
        let other = cluster.other();
        let files = [cluster.open_with(number, APPEND), other.open_with(number, APPEND)];
        let lines: Vec<Vec<u8>> = (0..40).map(|line| vec![line + 1; length]).collect();
        for (line, file) in lines.iter().zip(files.iter().cycle()) {
            append(file, line);
            file.fsync(false).unwrap();
        }
        assert_eq!(get(&cluster.other().open(number), 0, 40_000), lines.concat());
    }
}

#[test]
fn append_follows_what_another_client_that_is_gone_has_written() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    append(&file, b"first");
    file.flush().unwrap();
    let other = cluster.other();
    let writer = other.open_with(5, APPEND);
    append(&writer, b"second");
    writer.close().unwrap();
    other.shared.send_closes();
    // Longer than a client counts itself alone.
    thread::sleep(Duration::from_millis(210));
    assert_eq!(append(&file, b"third"), 11);
}

#[test]
fn append_of_an_only_writer_asks_nothing() {
    let cluster = FakeCluster::that_trusts();
    let begun = Instant::now();
    let file = cluster.create(5);
    append(&file, b"first");
    append(&file, b"second");
    // A client asks again when it has counted itself alone for 200 ms, which a busy machine may take.
    let most = begun.elapsed().as_millis() / 200;
    file.close().unwrap();
    assert!(cluster.meta.count(Method::MetaStat) as u128 <= most);
    cluster.meta.calls.lock().retain(|method| *method != Method::MetaStat);
    assert_eq!(*cluster.meta.calls.lock(), [Method::MetaCreate, Method::MetaClose]);
}

#[test]
fn direct_appends_report_their_length_once_at_close() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 2));
    file.flush().unwrap();
    let direct = cluster.open_with(5, DIRECT);
    let before = cluster.meta.count(Method::MetaSync);
    let other = cluster.other();
    let reader = other.open_with(5, OpenOptions { direct: true, ..READ });
    for number in 0..20 {
        put(&direct, 100_000 + number * 1000, &[7; 1000]);
        assert_eq!(get(&reader, 100_000 + number * 1000, 2000).len(), 1000, "others see it at once");
    }
    assert_eq!(cluster.meta.count(Method::MetaSync), before);
    direct.close().unwrap();
    assert_eq!(cluster.meta.inode(5).length, 120_000);
}

#[test]
fn length_that_others_have_written_is_shown_to_a_client_that_has_the_file_open() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 2));
    file.flush().unwrap();
    let direct = cluster.other().open_with(5, DIRECT);
    put(&direct, 100_000, &[7; 1000]);
    let unchanged = pb::Inode { length: 101_000, others_write: true, ..file.inode().local_view() };
    assert_eq!(cluster.files.local_view(&unchanged).length, 101_000);
    let earlier = pb::Inode { length: 99_000, ..unchanged };
    assert_eq!(cluster.files.local_view(&earlier).length, 100_000);
}

#[test]
fn append_that_failed_leaves_no_hole_before_the_next() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 2));
    file.flush().unwrap();
    for options in [DIRECT, READ_WRITE] {
        let log = cluster.open_with(5, OpenOptions { append: true, ..options });
        let end = log.inode().length();
        cluster.chunks.fail_writes(Some(Error::new(Kind::NoSpace, "full")));
        let lost = log.write(WriteOffset::Append, &Placement::from_vec(vec![1; 1000]), false);
        lost.and_then(|_| log.fsync(false)).unwrap_err();
        assert_eq!(log.inode().length(), end);
        cluster.chunks.fail_writes(None);
        assert_eq!(log.write(WriteOffset::Append, &Placement::from_vec(vec![2; 10]), false).unwrap(), end);
        log.flush().ok(); // it may report the error once more
        assert_eq!(get(&file, end, 100), [2; 10]);
    }
}

#[test]
fn read_of_a_file_that_was_collected_while_it_is_open_fails() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 2));
    file.close().unwrap();
    let reader = cluster.other().open_with(5, OpenOptions { direct: true, ..READ });
    cluster.meta.remove(5);
    let into = Placement::from_vec(vec![0; 10]);
    let error = reader.read_at(100_000, &into).unwrap_err();
    assert_eq!(error.errno(), rustix::io::Errno::STALE.raw_os_error());
}

/// The cluster hears of this client again.
fn come_back(cluster: &FakeCluster) {
    let sessions = cluster.files.write_sessions();
    let request = pb::HoldRequest { sessions, ..Default::default() };
    cluster.files.register_again(&cluster.identity, request).unwrap();
    cluster.shared.fence.open_until(u64::MAX);
}

fn assert_stale<T: std::fmt::Debug>(result: Result<T>) {
    assert_eq!(result.unwrap_err().errno(), rustix::io::Errno::STALE.raw_os_error());
}

#[test]
fn nothing_is_written_read_or_synced_until_a_lapsed_client_is_registered_again() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 2));
    file.flush().unwrap();
    put(&file, 0, b"new");
    let counts = || {
        [&cluster.chunks.writes, &cluster.chunks.reads, &cluster.chunks.syncs]
            .map(|n| n.load(Ordering::Relaxed))
    };
    let before = counts();
    cluster.shared.fence.open_until(0);
    thread::scope(|scope| {
        let calls = [scope.spawn(|| file.flush()), scope.spawn(|| file.fsync(false))];
        let read = scope.spawn(|| get(&file, 70_000, 5));
        thread::sleep(Duration::from_millis(20));
        assert_eq!(counts(), before);
        come_back(&cluster);
        calls.into_iter().for_each(|call| call.join().unwrap().unwrap());
        assert_eq!(read.join().unwrap(), pattern(100_000, 2)[70_000..70_005]);
    });
    assert_eq!(&cluster.meta.durable_bytes(5).unwrap()[..3], b"new");
}

#[test]
fn a_client_that_was_away_while_another_emptied_the_file_loses_no_bytes_silently() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 2));
    file.flush().unwrap();
    put(&file, 200_000, b"dirty");
    cluster.shared.fence.open_until(0);
    cluster.meta.end_sessions();
    let other = cluster.other();
    let emptied = other.open_with(5, OpenOptions { truncate: true, ..READ_WRITE });
    put(&emptied, 0, b"theirs");
    emptied.close().unwrap();
    let writes = cluster.chunks.writes.load(Ordering::Relaxed);
    come_back(&cluster);
    assert_stale(file.fsync(false));
    assert_stale(file.write(WriteOffset::At(0), &Placement::from_vec(vec![1]), false));
    assert_stale(file.close());
    assert_eq!(cluster.chunks.writes.load(Ordering::Relaxed), writes);
    assert_eq!(cluster.meta.inode(5).inline_data, b"theirs");
    let again = cluster.open(5);
    assert_eq!(get(&again, 0, 10), b"theirs");
    put(&again, 6, b"+");
    again.fsync(false).unwrap();
}

#[test]
fn a_client_that_was_away_for_a_short_time_continues() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 2));
    cluster.shared.fence.open_until(0);
    come_back(&cluster);
    file.fsync(false).unwrap();
    assert_eq!(cluster.meta.durable_bytes(5), Some(pattern(100_000, 2)));
}

#[test]
fn a_close_after_a_failed_write_has_the_chains_asked_for_the_length() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 2));
    file.flush().unwrap();
    cluster.chunks.fail_writes(Some(Error::new(Kind::Timeout, "the chain does not answer")));
    put(&file, 100_000, &pattern(100_000, 3));
    file.flush().unwrap_err();
    cluster.chunks.fail_writes(None);
    file.close().unwrap();
    cluster.shared.send_closes();
    assert_eq!(cluster.meta.measured().len(), 1);
    assert_eq!(cluster.meta.sessions(), []);
}

#[test]
fn a_close_that_the_metadata_service_does_not_take_is_sent_again() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, b"small");
    file.flush().unwrap();
    cluster.meta.fail_calls(Some(Error::new(Kind::Unavailable, "being restarted")));
    file.close().unwrap();
    cluster.shared.send_closes();
    assert_eq!(cluster.shared.closes.count(), 1);
    cluster.meta.fail_calls(None);
    cluster.shared.send_closes();
    assert_eq!(cluster.meta.sessions(), []);
}

#[test]
fn a_writer_waits_for_room_and_continues() {
    let cluster = FakeCluster::with_buffer(256 << 10);
    let file = cluster.create(5);
    let bytes = pattern(2 << 20, 8);
    for (index, part) in bytes.chunks(5000).enumerate() {
        put(&file, index as u64 * 5000, part);
    }
    file.close().unwrap();
    assert_eq!(cluster.chunks.content(cluster.meta.inode(5).content), bytes);
    assert_eq!(cluster.shared.dirty_limit.used(), 0);
}

#[test]
fn a_write_that_is_larger_than_the_buffer_does_not_fill_memory() {
    let cluster = FakeCluster::with_buffer(5 << 20);
    let file = cluster.create(5);
    let bytes = pattern(30 << 20, 8);
    let most = std::sync::atomic::AtomicUsize::new(0);
    let ended = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                most.fetch_max(cluster.shared.dirty_limit.used(), Ordering::Relaxed);
                thread::yield_now();
            }
        });
        put(&file, 3, &bytes);
        ended.store(true, Ordering::Relaxed);
    });
    let most = most.into_inner();
    assert!(most <= 7 << 20, "one part may be on its way in beside what is there: {most}");
    file.close().unwrap();
    assert!(cluster.chunks.content(cluster.meta.inode(5).content)[3..] == bytes);
}

#[test]
fn truncation_drops_what_is_beyond_and_keeps_what_is_below() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    let bytes = pattern(200_000, 2);
    put(&file, 0, &bytes);
    assert_eq!(file.truncate(70_000).unwrap().length, 70_000);
    assert_eq!(get(&file, 0, 300_000), bytes[..70_000]);
    file.truncate(90_000).unwrap();
    assert_eq!(get(&file, 69_000, 300_000), [&bytes[69_000..70_000], &[0; 20_000]].concat());
    put(&file, 80_000, b"x");
    file.truncate(0).unwrap();
    assert!(get(&file, 0, 10).is_empty());
    put(&file, 0, b"small again");
    file.close().unwrap();
    assert_eq!(cluster.meta.inode(5).inline_data, b"small again");
    assert_eq!(cluster.shared.dirty_limit.used(), 0);
}

#[test]
fn extension_cuts_nothing_that_others_have_written() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    file.flush().unwrap();
    let other = cluster.other().open(5);
    let bytes = pattern(200_000, 2);
    put(&other, 0, &bytes);
    other.flush().unwrap();
    file.extend(70_000).unwrap(); // longer than all it knows of
    assert_eq!(cluster.meta.inode(5).length, 200_000);
    assert_eq!(get(&cluster.other().open(5), 0, 300_000), bytes);
    file.extend(200_005).unwrap();
    assert_eq!(get(&file, 199_999, 100), [&bytes[199_999..], &[0; 5]].concat());
    other.truncate(10).unwrap();
    file.extend(50).unwrap(); // reported under an older truncation at first
    assert_eq!(get(&file, 0, 100), [&bytes[..10], &[0; 40]].concat());
}

#[test]
fn extension_of_a_small_file_keeps_its_bytes() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, b"small");
    file.extend(9000).unwrap();
    assert_eq!(get(&file, 0, 10_000), [b"small".as_slice(), &[0; 8995]].concat());
    put(&file, 2, b"-");
    file.close().unwrap();
    assert_eq!(get(&cluster.other().open(5), 0, 10_000), [b"sm-ll".as_slice(), &[0; 8995]].concat());
}

#[test]
fn opening_with_truncation_forgets_what_other_handles_wrote() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(200_000, 2));
    let fresh = cluster.open_with(5, OpenOptions { truncate: true, ..READ_WRITE });
    put(&fresh, 0, b"new");
    assert_eq!(get(&file, 0, 100), b"new");
    file.close().unwrap();
    fresh.close().unwrap();
    assert_eq!(cluster.meta.inode(5).inline_data, b"new");
}

#[test]
fn times_set_by_the_user_are_not_undone_by_an_earlier_write() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(10_000, 2));
    let request =
        pb::SetAttrRequest { path: Some(inode_path(5)), mtime_ns: Some(12_345), ..Default::default() };
    set_attributes(&cluster.files, &cluster.identity, request).unwrap();
    file.close().unwrap();
    assert_eq!(cluster.meta.inode(5).mtime_ns, 12_345);
}

#[test]
fn fdatasync_of_overwritten_bytes_stores_nothing_at_the_metadata_service() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 2));
    file.fsync(false).unwrap();
    let before = cluster.meta.count(Method::MetaSync);
    put(&file, 500, b"overwritten");
    file.fsync(true).unwrap();
    assert_eq!(cluster.meta.count(Method::MetaSync), before);
    assert_eq!(cluster.meta.count(Method::MetaStat), 1, "whether others have written");
    assert_eq!(cluster.chunks.syncs.load(Ordering::Relaxed), 2);
    put(&file, 100_000, b"longer");
    file.fsync(true).unwrap();
    assert_eq!(cluster.meta.count(Method::MetaSync), before + 1);
    assert_eq!(cluster.meta.inode(5).length, 100_006);
}

#[test]
fn fsync_makes_durable_what_was_written_through_a_closed_handle() {
    for (number, data_only) in [(5, false), (6, true)] {
        let cluster = FakeCluster::new();
        let file = cluster.create(number);
        put(&file, 0, &pattern(100_000, 2));
        file.close().unwrap();
        let reader = cluster.open_with(number, READ);
        reader.fsync(data_only).unwrap();
        assert_eq!(cluster.meta.durable_bytes(number), Some(pattern(100_000, 2)));
    }
}

#[test]
fn fsync_of_a_small_file_makes_durable_what_another_client_closed() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, b"small");
    file.close().unwrap();
    cluster.other().open_with(5, READ).fsync(true).unwrap();
    assert_eq!(cluster.meta.durable_bytes(5), Some(b"small".to_vec()));
    assert_eq!(cluster.chunks.syncs.load(Ordering::Relaxed), 0);
}

#[test]
fn fsync_makes_durable_what_other_clients_have_written_since_the_open() {
    for data_only in [false, true] {
        let cluster = FakeCluster::new();
        let file = cluster.create(5);
        put(&file, 0, &pattern(100_000, 2));
        file.fsync(false).unwrap();
        let other = cluster.other();
        let writer = other.open_with(5, DIRECT);
        put(&writer, 300_000, b"still open");
        file.fsync(data_only).unwrap();
        assert_eq!(&cluster.meta.durable_bytes(5).unwrap()[300_000..], b"still open");
        put(&writer, 500_000, b"closed");
        writer.close().unwrap();
        file.fsync(data_only).unwrap();
        assert_eq!(&cluster.meta.durable_bytes(5).unwrap()[500_000..], b"closed");
    }
}

#[test]
fn fsync_makes_durable_what_is_below_an_earlier_cut() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 2));
    file.flush().unwrap();
    file.truncate(70_000).unwrap();
    file.fsync(false).unwrap();
    assert_eq!(cluster.meta.durable_bytes(5), Some(pattern(100_000, 2)[..70_000].to_vec()));
}

#[test]
fn second_fsync_of_an_unchanged_file_syncs_no_chain() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 2));
    file.fsync(false).unwrap();
    file.fsync(false).unwrap();
    file.fsync(true).unwrap();
    assert_eq!(cluster.chunks.syncs.load(Ordering::Relaxed), 1);
}

/// Two fsyncs of one file, of which the second comes while the first waits for its chains.
fn fsync_during_fsync(fault: Option<Error>) -> [Result<()>; 2] {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 2));
    cluster.chunks.hold_syncs(true);
    thread::scope(|scope| {
        let first = scope.spawn(|| file.fsync(false));
        cluster.chunks.wait_for_syncs(1);
        let reported = cluster.meta.count(Method::MetaSync);
        let second = scope.spawn(|| {
            let result = file.fsync(false);
            assert!(result.is_err() || cluster.meta.durable_bytes(5) == Some(pattern(100_000, 2)));
            result
        });
        while cluster.meta.count(Method::MetaSync) == reported {
            thread::yield_now();
        }
        cluster.chunks.fail_syncs(fault);
        cluster.chunks.hold_syncs(false);
        [first.join().unwrap(), second.join().unwrap()]
    })
}

#[test]
fn fsync_waits_for_the_one_under_way() {
    fsync_during_fsync(None).into_iter().for_each(Result::unwrap);
}

#[test]
fn fsync_shares_the_error_of_the_one_under_way() {
    let fault = Error::new(Kind::Timeout, "the chain does not answer");
    for result in fsync_during_fsync(Some(fault)) {
        assert_eq!(result.unwrap_err().kind(), Kind::Timeout);
    }
}

#[test]
fn chains_of_a_failed_fsync_are_synced_by_the_next() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 2));
    cluster.chunks.fail_syncs(Some(Error::new(Kind::Timeout, "the chain does not answer")));
    file.fsync(false).unwrap_err();
    cluster.chunks.fail_syncs(None);
    file.fsync(true).unwrap();
    assert_eq!(cluster.meta.durable_bytes(5), Some(pattern(100_000, 2)));
}

#[test]
fn fsync_beside_a_cut_makes_the_cut_durable_or_what_it_removes() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 2));
    cluster.chunks.hold_syncs(true);
    thread::scope(|scope| {
        let first = scope.spawn(|| file.fsync(false));
        cluster.chunks.wait_for_syncs(1);
        put(&file, 0, b"newer");
        let reports = cluster.meta.count(Method::MetaSync);
        let second = scope.spawn(|| file.fsync(false));
        while cluster.meta.count(Method::MetaSync) == reports {
            thread::yield_now();
        }
        file.truncate(0).unwrap(); // after the report that is under way
        cluster.chunks.hold_syncs(false);
        first.join().unwrap().unwrap();
        second.join().unwrap().unwrap();
    });
    let durable = cluster.meta.durable_bytes(5).unwrap();
    assert!(
        durable.is_empty() || durable.starts_with(b"newer"),
        "neither the newer bytes nor the cut are durable"
    );
}

#[test]
fn fsync_ends_though_another_client_cuts_the_file_during_each_sync() {
    const CUTS: usize = 20;
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 2));
    file.close().unwrap();
    // The only one that writes: its cuts replace the content.
    let cutter = cluster.other().open(5);
    let file = cluster.open_with(5, READ);
    let (cuts, reader) = (Arc::new(AtomicUsize::new(0)), file.clone());
    let counted = cuts.clone();
    cluster.chunks.during_sync(move || {
        if counted.fetch_add(1, Ordering::Relaxed) < CUTS {
            cutter.truncate(0).unwrap();
            put(&cutter, 0, &pattern(50_000, 3));
            cutter.flush().unwrap();
            reader.refresh().unwrap();
        }
    });
    file.fsync(false).unwrap();
    assert!(cuts.load(Ordering::Relaxed) < CUTS, "as many syncs as there were cuts");
    let durable = cluster.meta.durable_bytes(5);
    assert!(durable == Some(pattern(100_000, 2)), "neither the bytes nor a cut is durable");
}

#[test]
fn a_released_dirty_file_is_written_back_and_its_session_closed() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 2));
    file.release();
    drop(file);
    cluster.shared.background.stop();
    cluster.shared.send_closes();
    assert_eq!(cluster.meta.inode(5).length, 100_000);
    assert_eq!(cluster.meta.count(Method::MetaClose), 1);
    assert!(cluster.files.all().is_empty() && cluster.files.held().is_empty());
}

#[test]
fn sequential_small_reads_are_read_ahead_and_random_ones_are_not() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    let bytes = pattern(6 << 20, 5);
    put(&file, 0, &bytes);
    file.close().unwrap();
    let cluster = cluster.with(cluster.trusting());
    let file = cluster.open(5);
    let reads = || cluster.chunks.reads.load(Ordering::Relaxed);
    let read = |offset: usize, length: usize| {
        let into = Placement::from_vec(vec![0; length]);
        let count = file.read_ahead_at(offset as u64, &into).unwrap();
        assert_eq!(into.slice(0..count).to_vec(), bytes[offset..(offset + length).min(bytes.len())]);
    };
    let before = reads();
    for block in [77, 3, 50, 12, 9, 33] {
        read(block * 60_000, 4096);
    }
    assert_eq!(reads() - before, 6);
    for block in 0..bytes.len() / 4096 {
        read(block * 4096, 4096);
    }
    let caused = reads() - before - 6;
    assert!((6..12).contains(&caused), "{caused} reads of 6 MiB, a few small ones and then in blocks");
}

/// Clients whose bytes interleave, each in its own thread: no byte is lost, whichever client leaves the inode first.
#[test]
fn clients_with_bytes_of_their_own_never_lose_them() {
    const CLIENTS: usize = 3;
    // Seeds are fixed; the failing one is in the message.
    for seed in 0..40u64 {
        let cluster = FakeCluster::new();
        let first = cluster.create(5);
        put(&first, 0, &vec![b'.'; (seed as usize * 211) % 4097]);
        first.close().unwrap();
        let mut expected = vec![b'.'; (seed as usize * 211) % 4097];
        let clients: Vec<FakeCluster> = (0..CLIENTS).map(|_| cluster.other()).collect();
        let mut plans: Vec<Vec<(usize, bool)>> = Vec::new();
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = move |limit: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % limit
        };
        for client in 0..CLIENTS {
            // Mostly inside the inode, now and then beyond.
            let write = |_| {
                let reach = if next(4) == 0 { 2000 } else { 120 };
                (next(reach) as usize * 30 + client * 10, next(3) == 0)
            };
            let plan: Vec<_> = (0..12).map(write).collect();
            for (offset, _) in &plan {
                expected.resize(expected.len().max(offset + 10), 0);
                expected[*offset..offset + 10].fill(b'a' + client as u8);
            }
            plans.push(plan);
        }
        thread::scope(|scope| {
            for ((client, plan), cluster) in plans.iter().enumerate().zip(&clients) {
                scope.spawn(move || {
                    let file = cluster.open_with(5, OpenOptions { direct: client == 2, ..READ_WRITE });
                    for (offset, flush) in plan {
                        put(&file, *offset as u64, &[b'a' + client as u8; 10]);
                        if *flush {
                            file.flush().unwrap();
                        }
                    }
                    file.close().unwrap();
                });
            }
        });
        assert!(get(&cluster.other().open(5), 0, 100_000) == expected, "seed {seed}");
        for client in &clients {
            assert_eq!(client.shared.dirty_limit.used(), 0, "seed {seed}");
        }
    }
}

#[test]
fn random_operations_equal_a_plain_array() {
    // Seeds are fixed; the failing one is in the message.
    for seed in 0..6u64 {
        let cluster = FakeCluster::with_buffer(512 << 10);
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = move |limit: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % limit
        };
        let mut model: Vec<u8> = Vec::new();
        let file = cluster.create(5);
        let direct = cluster.open_with(5, OpenOptions { direct: true, ..READ_WRITE });
        for step in 0..300 {
            let offset = next(300_000) as usize;
            let length = if next(3) == 0 { next(90_000) } else { next(3000) } as usize + 1;
            match next(20) {
                0 => file.flush().unwrap(),
                1 => file.fsync(next(2) == 0).unwrap(),
                2 => {
                    file.truncate(offset as u64).unwrap();
                    model.resize(offset, 0);
                }
                3 if next(4) == 0 => {
                    file.truncate(0).unwrap();
                    model.clear();
                }
                4..9 => {
                    let expected = &model[offset.min(model.len())..(offset + length).min(model.len())];
                    assert!(get(&file, offset as u64, length) == expected, "seed {seed} step {step}");
                }
                19 => {
                    let range = offset.min(model.len())..(offset + length).min(model.len());
                    let handle = if next(2) == 0 { &direct } else { &file };
                    handle.punch_hole(range.start as u64..range.end as u64).unwrap();
                    model[range].fill(0);
                }
                kind => {
                    let handle = if kind == 9 { &direct } else { &file };
                    let offset = offset.min(model.len() + 10_000);
                    let bytes = pattern(length, (step % 255) as u8 + 1);
                    put(handle, offset as u64, &bytes);
                    model.resize(model.len().max(offset + length), 0);
                    model[offset..offset + length].copy_from_slice(&bytes);
                }
            }
            assert_eq!(file.inode().length(), model.len() as u64, "seed {seed} step {step}");
        }
        file.close().unwrap();
        direct.close().unwrap();
        let fresh = cluster.other().open(5);
        assert!(get(&fresh, 0, model.len() + 1) == model, "seed {seed}: what another client reads");
        assert_eq!(cluster.shared.dirty_limit.used(), 0);
    }
}

fn times(mtime_ns: i64) -> pb::SetAttrRequest {
    pb::SetAttrRequest { path: Some(inode_path(5)), mtime_ns: Some(mtime_ns), ..Default::default() }
}

fn mode(permissions: u32) -> pb::SetAttrRequest {
    pb::SetAttrRequest { path: Some(inode_path(5)), permissions: Some(permissions), ..Default::default() }
}

#[test]
fn an_unpacked_file_costs_a_create_a_move_and_one_report() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    let bytes = pattern(2 * INLINE_BYTES as usize, 3);
    put(&file, 0, &bytes);
    let seen = set_attributes_deferred(&cluster.files, &cluster.identity, times(77)).unwrap();
    assert_eq!((seen.mtime_ns, seen.length), (77, bytes.len() as u64));
    set_attributes_deferred(&cluster.files, &cluster.identity, mode(0o755)).unwrap();
    assert_eq!(file.inode().local_view().permissions, 0o755);
    assert_eq!(*cluster.meta.calls.lock(), [Method::MetaCreate], "what is deferred is not sent yet");
    file.flush().unwrap();
    let inode = cluster.meta.inode(5);
    assert_eq!((inode.mtime_ns, inode.permissions, inode.length), (77, 0o755, bytes.len() as u64));
    // It leaves its inode, and sends the rest.
    assert_eq!(*cluster.meta.calls.lock(), [Method::MetaCreate, Method::MetaSync, Method::MetaSync]);
    assert!(file.inode().is_clean());
    assert_eq!(get(&cluster.other().open(5), 0, 10_000), bytes, "another client sees it after the close");
}

#[test]
fn attributes_of_a_closed_file_are_synced_at_once() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    file.flush().unwrap();
    set_attributes_deferred(&cluster.files, &cluster.identity, times(77)).unwrap();
    assert_eq!(cluster.meta.inode(5).mtime_ns, 77);
}

#[test]
fn a_change_that_may_not_wait_comes_after_those_that_do() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    set_attributes_deferred(&cluster.files, &cluster.identity, mode(0o755)).unwrap();
    set_attributes_deferred(&cluster.files, &cluster.identity, mode(0o600)).unwrap();
    assert_eq!(cluster.meta.inode(5).permissions, 0o600);
    file.flush().unwrap();
    assert_eq!(cluster.meta.inode(5).permissions, 0o600);
}

#[test]
fn a_write_after_the_times_were_set_counts() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    set_attributes_deferred(&cluster.files, &cluster.identity, times(77)).unwrap();
    put(&file, 0, b"later");
    file.flush().unwrap();
    assert!(cluster.meta.inode(5).mtime_ns > 77);
}

#[test]
fn deferred_attributes_are_flushed_before_a_name_moves_and_by_age() {
    let by_name = |cluster: &FakeCluster| cluster.shared.dirty_files.flush_deferred();
    let by_age = |cluster: &FakeCluster| cluster.shared.dirty_files.write_back_aged();
    for (settle, writes_back) in [(by_name as fn(&FakeCluster), false), (by_age, true)] {
        let cluster = FakeCluster::new();
        let file = cluster.create(5);
        put(&file, 0, &pattern(2 * INLINE_BYTES as usize, 3));
        set_attributes_deferred(&cluster.files, &cluster.identity, mode(0o755)).unwrap();
        settle(&cluster);
        let inode = cluster.meta.inode(5);
        assert_eq!(inode.permissions, 0o755);
        // What is old is also written back, by another thread that may be ahead of this one.
        assert!(inode.is_inline || writes_back);
        assert_eq!(cluster.shared.dirty_files.deferred_count(), 0);
        file.flush().unwrap();
        let calls = (cluster.meta.count(Method::MetaSync), cluster.meta.count(Method::MetaStat));
        // The attributes may be sent while that thread moves the file: then it tries again.
        let may_conflict = writes_back && calls == (3, 1);
        assert!(calls == (2, 0) || may_conflict, "a conflict with this client's own change: {calls:?}");
        assert!(!cluster.meta.inode(5).is_inline);
    }
}

#[test]
fn an_error_of_attributes_that_waited_reaches_the_close() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    set_attributes_deferred(&cluster.files, &cluster.identity, mode(0o755)).unwrap();
    cluster.meta.fail_calls(Some(Error::new(Kind::NoSpace, "full")));
    assert_eq!(file.flush().unwrap_err().kind(), Kind::NoSpace);
    cluster.meta.fail_calls(None);
    file.flush().unwrap();
    assert_eq!(cluster.meta.inode(5).permissions, 0o755);
}

#[test]
fn own_attributes_do_not_make_a_conflict_of_a_small_file_but_those_of_others_do() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, b"hello");
    set_attributes(&cluster.files, &cluster.identity, times(77)).unwrap();
    file.flush().unwrap();
    assert_eq!((cluster.meta.count(Method::MetaSync), cluster.meta.count(Method::MetaStat)), (1, 0));
    let other = cluster.other();
    let theirs = other.open(5);
    put(&theirs, 5, b" you");
    put(&file, 0, b"HELLO");
    theirs.flush().unwrap();
    set_attributes(&cluster.files, &cluster.identity, times(78)).unwrap();
    file.flush().unwrap();
    assert_eq!(cluster.meta.inode(5).inline_data, b"HELLO you");
}

#[test]
fn after_consecutive_large_files_the_next_is_made_in_chunks() {
    let cluster = FakeCluster::new();
    let bytes = pattern(2 * INLINE_BYTES as usize, 3);
    for number in 10..14 {
        let file = cluster.create(number);
        put(&file, 0, &bytes);
        file.flush().unwrap();
        file.close().unwrap();
    }
    cluster.create(14).close().unwrap();
    cluster.meta.calls.lock().clear();
    let large = cluster.create(15);
    assert!(!cluster.meta.inode(15).is_inline);
    put(&large, 0, &bytes);
    large.flush().unwrap();
    assert_eq!(*cluster.meta.calls.lock(), [Method::MetaCreate, Method::MetaSync]);
    assert_eq!(get(&cluster.other().open(15), 0, 10_000), bytes);

    let small = cluster.create(16);
    put(&small, 0, b"hello");
    small.close().unwrap();
    assert_eq!(get(&cluster.other().open(16), 0, 100), b"hello");
    assert_eq!(cluster.chunks.content(cluster.meta.inode(16).content), b"hello");
    cluster.create(17);
    assert!(cluster.meta.inode(17).is_inline, "a small file ends the row");
}

#[test]
fn writes_of_a_user_are_not_reported_by_age_where_no_set_id_bit_is_known() {
    let cluster = FakeCluster::that_trusts();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 2));
    file.flush().unwrap();
    let others = cluster.other();
    set_attributes(&others.files, &others.identity, mode(0o4755)).unwrap();
    let reports = || cluster.meta.count(Method::MetaSync);
    let before = reports();
    for byte in 0..3 {
        assert!(!file.inode().clear_set_id());
        put(&file, byte, b"b");
        cluster.shared.dirty_files.write_back_aged();
        file.inode().flush();
        cluster.shared.dirty_files.write_back_aged();
    }
    assert_eq!(reports(), before);
    file.close().unwrap();
    assert_eq!(cluster.meta.inode(5).permissions, 0o755, "the close reports it");
}

#[test]
fn known_set_id_bits_end_by_age_and_a_report_that_fails_is_no_error_of_a_write() {
    let cluster = FakeCluster::that_trusts();
    let file = cluster.create(5);
    put(&file, 0, &pattern(100_000, 2));
    file.flush().unwrap();
    set_attributes(&cluster.files, &cluster.identity, mode(0o4755)).unwrap();
    assert!(file.inode().clear_set_id());
    put(&file, 0, b"new");
    cluster.meta.fail_calls(Some(Error::new(Kind::Unavailable, "being restarted")));
    cluster.shared.dirty_files.write_back_aged();
    put(&file, 3, b"newer");
    cluster.meta.fail_calls(None);
    cluster.shared.dirty_files.write_back_aged();
    assert_eq!(cluster.meta.inode(5).permissions, 0o755);
    file.close().unwrap();
}

#[test]
fn write_back_by_age_waits_for_no_report_of_another_file() {
    let cluster = FakeCluster::new();
    let (small, large) = (cluster.create(5), cluster.create(6));
    put(&large, 0, &pattern(100_000, 2));
    large.flush().unwrap();
    put(&small, 0, b"small");
    put(&large, 0, b"new");
    let content = cluster.meta.inode(6).content;
    call_while(
        &cluster,
        Method::MetaSync,
        || cluster.shared.dirty_files.write_back_aged(),
        || {
            let deadline = std::time::Instant::now() + Duration::from_secs(60);
            while cluster.chunks.content(content)[..3] != *b"new" {
                assert!(std::time::Instant::now() < deadline, "the large file waits");
                thread::yield_now();
            }
        },
    );
}

#[test]
fn registering_again_while_a_close_is_under_way_loses_no_session() {
    for is_open_twice in [false, true] {
        let cluster = FakeCluster::new();
        let file = cluster.create(5);
        put(&file, 0, b"small");
        let other = is_open_twice.then(|| cluster.open(5));
        call_while(&cluster, Method::MetaClose, || file.close(), || come_back(&cluster)).unwrap();
        if let Some(other) = other {
            put(&other, 5, b"!");
            other.fsync(false).unwrap();
            other.close().unwrap();
        }
        assert!(cluster.meta.inode(5).inline_data.starts_with(b"small"));
    }
}

#[test]
fn reading_ahead_does_not_wait_at_a_raised_fence() {
    let cluster = FakeCluster::new();
    let bytes = pattern(3 << 20, 5);
    let file = cluster.create(5);
    put(&file, 0, &bytes);
    file.flush().unwrap();
    let read = |block: usize| {
        let into = Placement::from_vec(vec![0; 4096]);
        file.read_ahead_at(4096 * block as u64, &into).map(|count| into.slice(0..count).to_vec())
    };
    (0..2).for_each(|block| assert_eq!(read(block).unwrap(), bytes[4096 * block..4096 * (block + 1)]));
    cluster.shared.fence.open_until(0);
    let buffer = cluster.shared.pool.try_take().unwrap().into_placement();
    assert!(file.inode().read_in_advance(&cluster.identity, 0, &buffer).is_none());
    thread::scope(|scope| {
        let reader = scope.spawn(|| read(2));
        come_back(&cluster);
        assert_eq!(reader.join().unwrap().unwrap(), bytes[8192..12288]);
    });
}

#[test]
fn file_that_the_metadata_service_has_lost_is_stale() {
    let operations: [fn(&File) -> Result<()>; 4] =
        [|file| file.fsync(false), File::flush, |file| file.extend(100), File::close];
    // The bytes of the longer one leave the inode.
    for length in [5, INLINE_BYTES as usize + 1] {
        for operation in operations {
            let cluster = FakeCluster::new();
            let file = cluster.create(5);
            put(&file, 0, &vec![1; length]);
            cluster.meta.remove(5);
            let error = operation(&file).unwrap_err();
            assert_eq!(error.errno(), rustix::io::Errno::STALE.raw_os_error(), "{length}: {error}");
        }
    }
}

#[test]
fn direct_write_leaves_its_callers_memory_only_for_the_chains() {
    let cluster = FakeCluster::new();
    let file = cluster.create(5);
    put(&file, 0, &[1; 100_000]);
    file.fsync(false).unwrap();
    cluster.chunks.hold_writes(true);
    let direct = cluster.open_with(5, DIRECT);
    thread::scope(|scope| {
        let writer =
            scope.spawn(|| direct.write(WriteOffset::At(7), &Placement::from_vec(vec![2; 9]), false));
        cluster.chunks.wait_for_writers(1);
        let (dirty, seen) = (cluster.shared.dirty_limit.used(), get(&file, 6, 11));
        cluster.chunks.hold_writes(false);
        assert_eq!(dirty, 0, "nothing of it is dirty");
        assert_eq!(seen, [1, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1], "buffered reads see what is in flight (W2)");
        assert_eq!(writer.join().unwrap().unwrap(), 7);
    });
}
