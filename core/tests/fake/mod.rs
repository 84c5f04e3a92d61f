//! A storage server in memory: a small real `Service`, with faults that enter on demand.
#![allow(dead_code)] // Each test binary uses its part.

#[path = "../port/mod.rs"]
pub mod port;

use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use luciola_core::buffer::Placement;
use luciola_core::net::{Endpoint, Pool, Secret, Sender, Server, ServerOptions, Service, Token};
use luciola_core::types::*;
use luciola_core::wire::pb::{Claims, claims::Role};
use parking_lot::{Condvar, Mutex};
use port::Port;

pub const SECRET: [u8; 32] = [42; 32];

pub fn credential(role: Role) -> Token {
    Secret::new(SECRET).mint(&Claims { role: role as i32, uid: 1000, ..Claims::default() })
}

pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// Tries what is given up after a while, with more time each try, until `attempt` has something to show: under load
/// the time may be over before anything has happened.
pub fn patiently<T>(what: &str, attempt: impl FnMut(Duration) -> Option<T>) -> T {
    let times = [50, 500, 5000, 50_000].map(Duration::from_millis);
    times.into_iter().find_map(attempt).unwrap_or_else(|| panic!("{what} does not happen"))
}

/// Lets `work` wait for what `end` ends, for a minute: a test that fails had better not hang.
pub fn at_most_a_minute<T>(end: impl FnOnce() + Send, work: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        let (done, wait) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || {
            if wait.recv_timeout(Duration::from_secs(60)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                end();
            }
        });
        let result = work();
        drop(done);
        result
    })
}

/// What happens to the next batch instead of its service.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// Every operation is answered so.
    Answer(Status),
    /// Served, but only after so long.
    Delay(Duration),
    /// The connection breaks before the batch is looked at.
    DropBefore,
    /// The connection breaks after the batch was carried out, so the answer is lost.
    DropAfter,
    /// Waits until `FakeStore::release`, then is served.
    Hang,
}

#[derive(Clone, Default)]
struct Stored {
    bytes: Vec<u8>,
    version: u64,
    writers: HashMap<u64, (u64, UpdateResult)>,
}

#[derive(Default)]
pub struct FakeStore {
    chunks: Mutex<HashMap<ChunkKey, Stored>>,
    /// Popped from the front, one per batch.
    pub faults: Mutex<VecDeque<Fault>>,
    /// Chains not named here accept any version.
    pub versions: Mutex<HashMap<ChainId, ChainVersion>>,
    /// Where updates are sent on.
    pub next: Mutex<Option<Arc<Pool>>>,
    pub reads: AtomicU64,
    pub batches: AtomicU64,
    pub executed: AtomicU64,
    pub synced: AtomicU64,
    /// Updates under way, per client and chunk, and the most that ever were.
    under_way: Mutex<HashMap<(u64, ChunkId), usize>>,
    pub under_way_max: AtomicU64,
    /// Batches that have come to hang.
    pub hung: AtomicU64,
    released: Mutex<bool>,
    release: Condvar,
}

impl FakeStore {
    pub fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
        self.faults.lock().extend(faults);
    }

    pub fn release(&self) {
        *self.released.lock() = true;
        self.release.notify_all();
    }

    pub fn chunk(&self, chain: u32, content: u64, index: u32) -> Option<Vec<u8>> {
        let chunk = ChunkId { content: ContentId(content), index };
        self.chunks.lock().get(&ChunkKey { chain: ChainId(chain), chunk }).map(|stored| stored.bytes.clone())
    }

    /// Requests that the chunks remember.
    pub fn writer_count(&self) -> usize {
        self.chunks.lock().values().map(|stored| stored.writers.len()).sum()
    }

    pub fn chunk_count(&self) -> usize {
        self.chunks.lock().len()
    }

    pub fn put(&self, chain: u32, content: u64, index: u32, bytes: &[u8]) {
        let chunk = ChunkId { content: ContentId(content), index };
        let stored = Stored { bytes: bytes.to_vec(), version: 1, writers: HashMap::new() };
        self.chunks.lock().insert(ChunkKey { chain: ChainId(chain), chunk }, stored);
    }

    /// Carries out the fault due now. Some: answer so. The flag: break the connection afterwards.
    fn meet_fault(&self) -> (Option<Status>, bool) {
        self.batches.fetch_add(1, Ordering::SeqCst);
        let fault = self.faults.lock().pop_front();
        match fault {
            None => (None, false),
            Some(Fault::Answer(status)) => (Some(status), false),
            Some(Fault::Delay(time)) => {
                std::thread::sleep(time);
                (None, false)
            }
            Some(Fault::DropBefore) => break_connection(),
            Some(Fault::DropAfter) => (None, true),
            Some(Fault::Hang) => {
                self.hung.fetch_add(1, Ordering::SeqCst);
                let mut released = self.released.lock();
                self.release.wait_while(&mut released, |released| !*released);
                (None, false)
            }
        }
    }

    fn refuse(&self, chain: ChainId, version: ChainVersion) -> Option<Status> {
        let known = self.versions.lock().get(&chain).copied();
        (known.is_some() && known != Some(version)).then_some(Status::WrongChainVersion)
    }

    fn read_one(&self, op: &ReadOp, into: &Placement) -> ReadResult {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let failed = |status| ReadResult { status, length: 0, version: Version(0) };
        if let Some(status) = self.refuse(op.chain, op.chain_version) {
            return failed(status);
        }
        let chunks = self.chunks.lock();
        match chunks.get(&ChunkKey { chain: op.chain, chunk: op.chunk }) {
            None => failed(Status::NotFound),
            Some(stored) => {
                let start = (op.offset as usize).min(stored.bytes.len());
                let end = (op.offset as usize + op.length as usize).min(stored.bytes.len());
                into.copy_from(&stored.bytes[start..end]);
                let length = (end - start) as u32;
                ReadResult { status: Status::Ok, length, version: Version(stored.version) }
            }
        }
    }

    fn update_one(&self, op: &UpdateOp, payload: &Placement) -> UpdateResult {
        let mut chunks = self.chunks.lock();
        for stored in chunks.values_mut() {
            let writer = op.tag.client.0;
            stored.writers.retain(|client, (sequence, _)| *client != writer || *sequence >= op.settled);
        }
        let stored = chunks.entry(ChunkKey { chain: op.chain, chunk: op.chunk }).or_default();
        if let Some((sequence, result)) = stored.writers.get(&op.tag.client.0) {
            if *sequence == op.tag.sequence {
                return *result;
            }
            if *sequence > op.tag.sequence {
                return UpdateResult { status: Status::Stale, version: Version(stored.version), length: 0 };
            }
        }
        self.executed.fetch_add(1, Ordering::SeqCst);
        match op.op {
            Op::Write { offset, .. } => {
                let end = offset as usize + payload.len();
                if stored.bytes.len() < end {
                    stored.bytes.resize(end, 0);
                }
                payload.copy_to(&mut stored.bytes[offset as usize..end]);
            }
            Op::Truncate { length } => stored.bytes.resize(length as usize, 0),
            Op::Remove => stored.bytes.clear(),
            Op::Replace { length, .. } => stored.bytes = payload.slice(0..length as usize).to_vec(),
        }
        stored.version += 1;
        let length = stored.bytes.len() as u32;
        let result = UpdateResult { status: Status::Ok, version: Version(stored.version), length };
        stored.writers.insert(op.tag.client.0, (op.tag.sequence, result));
        result
    }
}

struct Done<'a> {
    fake: &'a FakeStore,
    ops: &'a [UpdateOp],
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        let mut under_way = self.fake.under_way.lock();
        for op in self.ops {
            *under_way.get_mut(&(op.tag.client.0, op.chunk)).unwrap() -= 1;
        }
    }
}

/// Ends this connection's thread without a panic message.
fn break_connection() -> ! {
    std::panic::resume_unwind(Box::new("the fake breaks the connection"))
}

impl Service for FakeStore {
    fn read(&self, ops: &[ReadOp], into: &[Placement], _: Instant, out: &mut Vec<ReadResult>) {
        let (answer, break_after) = self.meet_fault();
        for (op, into) in ops.iter().zip(into) {
            out.push(match answer {
                Some(status) => ReadResult { status, length: 0, version: Version(0) },
                None => self.read_one(op, into),
            });
        }
        if break_after {
            break_connection();
        }
    }

    fn update(
        &self,
        _: Sender<'_>,
        ops: &[UpdateOp],
        payload: &[Placement],
        deadline: Instant,
        out: &mut Vec<UpdateResult>,
    ) {
        for op in ops {
            let mut under_way = self.under_way.lock();
            let count = under_way.entry((op.tag.client.0, op.chunk)).or_default();
            *count += 1;
            self.under_way_max.fetch_max(*count as u64, Ordering::SeqCst);
        }
        let _done = Done { fake: self, ops };
        let (answer, break_after) = self.meet_fault();
        let refusal = ops.iter().find_map(|op| self.refuse(op.chain, op.chain_version));
        let failed = |status| UpdateResult { status, version: Version(0), length: 0 };
        let mut refusal = answer.or(refusal);
        let next = self.next.lock().clone();
        if let (None, Some(next)) = (refusal, next) {
            refusal = match next.get(deadline) {
                Ok(mut connection) => connection.update(ops, payload, deadline, &mut Vec::new()).err(),
                Err(error) => Some(error.status()),
            };
        }
        for (op, payload) in ops.iter().zip(payload) {
            out.push(match refusal {
                Some(status) => failed(status),
                None => self.update_one(op, payload),
            });
        }
        if break_after {
            break_connection();
        }
    }

    fn sync(&self, _: Sender<'_>, chains: &[(ChainId, ChainVersion)], _: Instant, out: &mut Vec<Status>) {
        let (answer, _) = self.meet_fault();
        self.synced.fetch_add(chains.len() as u64, Ordering::SeqCst);
        out.extend(
            chains
                .iter()
                .map(|(chain, version)| answer.or(self.refuse(*chain, *version)).unwrap_or(Status::Ok)),
        );
    }
}

/// A fake behind both transports.
pub struct Running {
    pub fake: Arc<FakeStore>,
    pub server: Server,
    /// The server's, also when it has stopped.
    pub port: Port,
    _directory: tempfile::TempDir,
}

impl Running {
    pub fn start() -> Running {
        Running::with(|_| {})
    }

    pub fn with(change: impl FnOnce(&mut ServerOptions)) -> Running {
        let directory = tempfile::tempdir().unwrap();
        let mut options = ServerOptions::new(Secret::new(SECRET));
        let port = Port::reserve();
        options.tcp = Some(port.address);
        options.unix = Some(directory.path().join("data.sock"));
        change(&mut options);
        let fake = Arc::new(FakeStore::default());
        let server = Server::start(options, fake.clone()).unwrap();
        Running { fake, server, port, _directory: directory }
    }

    pub fn tcp(&self) -> Endpoint {
        Endpoint::Tcp(self.server.tcp_address().unwrap())
    }

    pub fn unix(&self) -> Endpoint {
        Endpoint::Unix(self.socket().to_owned())
    }

    pub fn socket(&self) -> &Path {
        self.server.unix_path().unwrap()
    }
}

pub fn read_op(content: u64, index: u32, offset: u32, length: u32) -> ReadOp {
    let chunk = ChunkId { content: ContentId(content), index };
    ReadOp { chain: ChainId(1), chain_version: ChainVersion(1), chunk, offset, length }
}

pub fn write_op(content: u64, index: u32, offset: u32, length: u32, sequence: u64) -> UpdateOp {
    UpdateOp {
        chain: ChainId(1),
        chain_version: ChainVersion(1),
        chunk: ChunkId { content: ContentId(content), index },
        op: Op::Write { offset, length },
        tag: RequestTag { client: ClientId(7), sequence },
        settled: 0,
        version: Version(0),
        decided: ChainVersion(0),
        fresh: false,
        payload_crc: None,
    }
}
