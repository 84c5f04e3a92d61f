//! One cluster with its clients, as a seed makes it, from the first open to the last look.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::model::{Look, Mode, Model, SLOT_BYTES, Slot};
use super::worker::{Handle, Worker};
use crate::buffer::Placement;
use crate::client::fake::{FakeChunks, FakeMeta, FaultPlan, Kept, client_that_trusts};
use crate::client::{
    CreateOptions, File, Identity, OpenFiles, OpenOptions, inode_path, name_path, set_attributes,
};
use crate::schedule::{self, Random};
use crate::wire::pb;

pub const FILE: u64 = 5;
const PERMISSIONS: u32 = 0o600;
/// Rounds of the clock; a world without an end is one in which somebody waits for nothing.
const TICKS: usize = 40;

#[derive(Clone, Debug)]
pub struct Plan {
    /// Trusts what it knows for an hour: one for each client.
    trusting: Vec<bool>,
    /// The client of each thread.
    pub threads: Vec<usize>,
    pub operations: u64,
    chunk_bytes: u32,
    inline_bytes: u32,
    buffer_bytes: usize,
    slots: u64,
    pub stride: u64,
    pub appends: bool,
    pub cuts: bool,
    pub sets_modes: bool,
    pub is_faulty: bool,
    faults: FaultPlan,
    /// The handles are closed all at one time, while a time is set.
    closes_together: bool,
    made_before: bool,
}

impl Plan {
    fn new(seed: u64) -> Plan {
        let mut random = Random::new(seed);
        let clients = [1, 1, 2, 2, 3][random.below(5) as usize];
        let (chunk_bytes, inline_bytes) =
            [(256, 128), (256, 256), (1024, 256), (4096, 512), (65_536, 4096)][random.below(5) as usize];
        let appends = random.one_in(3);
        let threads = 2 + random.below(4);
        let slots = 3 + random.below(6);
        // All in the inode; to its end and beyond; over many chunks.
        let widest = u64::from([inline_bytes, inline_bytes * 2, chunk_bytes * 4][random.below(3) as usize]);
        let is_faulty = random.one_in(6);
        let rate = |random: &mut Random| [0, 3, 10][random.below(3) as usize];
        let mut faults =
            FaultPlan { again: rate(&mut random), conflict: rate(&mut random) * 2, ..Default::default() };
        if is_faulty {
            faults = FaultPlan { refused: 8, lost: 8, ..faults };
        }
        Plan {
            trusting: (0..clients).map(|_| random.one_in(2)).collect(),
            // Records are appended by one client.
            threads: (0..threads).map(|_| random.below(clients) as usize).collect(),
            operations: 3 + random.below(8),
            chunk_bytes,
            inline_bytes,
            buffer_bytes: if random.one_in(4) { 3 * chunk_bytes as usize } else { 8 << 20 },
            slots,
            stride: (widest / slots / SLOT_BYTES).max(1) * SLOT_BYTES,
            appends,
            cuts: !appends && random.one_in(2),
            sets_modes: random.one_in(3),
            is_faulty,
            faults,
            closes_together: random.one_in(3),
            made_before: random.one_in(2),
        }
    }
}

pub struct World {
    pub plan: Plan,
    pub meta: Arc<FakeMeta>,
    pub chunks: Arc<FakeChunks>,
    pub clients: Vec<Arc<OpenFiles>>,
    pub identity: Arc<Identity>,
    pub model: Kept<Model>,
    pub exists: AtomicBool,
    is_over: AtomicBool,
}

const HOUR: Duration = Duration::from_secs(3600);

impl World {
    fn new(plan: Plan) -> World {
        let chunks = Arc::new(FakeChunks::default());
        let meta = FakeMeta::new(chunks.clone());
        meta.lay_out(plan.chunk_bytes, plan.inline_bytes);
        let client = |trusting: &bool| {
            let timeout = if *trusting { HOUR } else { Duration::ZERO };
            client_that_trusts(&chunks, &meta, plan.buffer_bytes, timeout)
        };
        let clients = plan.trusting.iter().map(client).collect();
        let world = World {
            meta,
            chunks: chunks.clone(),
            clients,
            identity: Arc::default(),
            model: Kept::default(),
            exists: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            plan,
        };
        let mut model = world.model.lock();
        model.is_faulty = world.plan.is_faulty;
        if !world.plan.appends {
            model
                .slots
                .extend((0..world.plan.slots).map(|n| Slot { at: n * world.plan.stride, ..Slot::default() }));
        }
        drop(model);
        world
    }

    /// Longest that the file can become, and more.
    pub fn length_max(&self) -> usize {
        if self.plan.appends { 8192 } else { (self.plan.slots * self.plan.stride + 64) as usize }
    }

    pub fn note(&self, text: String) {
        let mut model = self.model.lock();
        let line = format!("{:4} {text}", model.now);
        model.history.push(line);
    }

    pub fn tick(&self) -> u64 {
        self.model.lock().tick()
    }

    /// Ends the run if something is wrong.
    pub fn require(&self, checked: Result<(), String>) {
        if let Err(wrong) = checked {
            self.wrong(wrong);
        }
    }

    pub fn wrong(&self, wrong: String) -> ! {
        let history = self.model.lock().history.join("\n");
        schedule::fail(format!("{wrong}\n{:?}\n{history}", self.plan))
    }

    pub fn create(&self, client: usize, options: OpenOptions) -> crate::error::Result<Arc<File>> {
        let path = name_path(1, format!("f{FILE}").as_bytes());
        let create = CreateOptions { permissions: PERMISSIONS, exclusive: false, layout: None };
        File::create(&self.clients[client], &self.identity, path, options, create)
    }

    fn tick_clock(&self, client: usize) {
        for _ in 0..TICKS {
            schedule::pause();
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            self.clients[client].shared().dirty_files.write_back_aged();
            self.clients[client].shared().send_closes();
        }
    }

    fn begin(&self) {
        self.model.lock().modes.push(Mode { permissions: PERMISSIONS, begin: 0, end: Some(0) });
        if self.plan.made_before {
            let options = OpenOptions { write: true, ..Default::default() };
            self.create(0, options).and_then(|file| file.close()).expect("nothing goes wrong yet");
            self.exists.store(true, Ordering::Relaxed);
        }
        self.meta.follow(self.plan.faults);
        self.chunks.follow(self.plan.faults);
    }

    /// All that is left of the client is what it must keep.
    fn check_client(&self, number: usize) {
        let client = &self.clients[number];
        let shared = client.shared();
        shared.dirty_files.write_back_aged();
        shared.dirty_files.write_back_aged();
        // Those that are lost are sent again.
        while shared.closes.count() > 0 {
            shared.send_closes();
        }
        let left = client.leftovers();
        if !left.is_empty() {
            self.wrong(format!("client {number} has kept {left}"));
        }
        // What others have written need not show yet.
        let look = Look { opened: 0, ..self.look(number) };
        if self.plan.is_faulty || !self.exists.load(Ordering::Relaxed) {
            return;
        }
        if let Some((known, _)) = shared.metadata_cache.attributes(FILE) {
            let length = client.local_view(&known).length;
            let checked = self.model.lock().check_length(length, &look);
            self.require(checked);
        }
    }

    /// A look at the end, when every write is over.
    fn look(&self, client: usize) -> Look {
        let now = self.tick();
        Look { client, begin: now, end: now + 1, opened: now }
    }

    fn check_file(&self) {
        if !self.exists.load(Ordering::Relaxed) {
            return;
        }
        let nothing = FaultPlan::default();
        self.meta.follow(nothing);
        self.chunks.follow(nothing);
        let fresh = client_that_trusts(&self.chunks, &self.meta, 1 << 20, HOUR);
        let options = OpenOptions { read: true, ..Default::default() };
        let file = File::open(&fresh, &self.identity, inode_path(FILE), options).expect("it is there");
        let into = Placement::from_vec(vec![0xee; self.length_max()]);
        let count = file.read_at(0, &into).expect("nothing goes wrong any more");
        let bytes = into.slice(0..count).to_vec();
        let look = self.look(self.clients.len());
        let inode = self.meta.inode(FILE);
        {
            let model = self.model.lock();
            let whole = !self.plan.is_faulty;
            let content = match self.plan.appends {
                true => model.check_records(&bytes, &look, whole),
                false => model.check_slots(&bytes, &look),
            };
            let mode = if self.plan.is_faulty { Ok(()) } else { model.check_mode(inode.permissions, &look) };
            let checked = content.and(model.check_length(inode.length, &look)).and(mode);
            drop(model);
            self.require(checked);
        }
        file.close().expect("nothing was written");
    }

    /// An fsync of this client that began at `begin` has just succeeded: what was acknowledged before, to any client,
    /// is there after the loss of power.
    pub fn check_durable(&self, client: usize, begin: u64) {
        let Some(bytes) = self.meta.durable_bytes(FILE) else {
            self.wrong("the file is not durable".to_owned())
        };
        let look = Look { client, begin, end: self.tick(), opened: begin };
        let model = self.model.lock();
        let checked = match self.plan.appends {
            true => model.check_records(&bytes, &look, false),
            false => model.check_slots(&bytes, &look),
        };
        drop(model);
        self.require(checked.map_err(|wrong| format!("after the loss of power: {wrong}")));
    }

    fn set_time(&self, client: usize, time_ns: i64) {
        let path = Some(inode_path(FILE));
        let request = pb::SetAttrRequest { path, mtime_ns: Some(time_ns), ..Default::default() };
        self.note(format!("client {client} sets the time"));
        set_attributes(&self.clients[client], &self.identity, request).expect("it is there");
    }

    /// Closes all handles at one time; a time that is set then is later than all writes.
    fn close_together(self: &Arc<Self>, left: Vec<(Worker, Handle)>) {
        const TIME_NS: i64 = 7;
        let sets = !left.is_empty() && !self.plan.is_faulty;
        let mut tasks = Vec::new();
        if sets {
            let (world, client) = (self.clone(), left[0].0.client);
            tasks.push(schedule::spawn("time", move || world.set_time(client, TIME_NS)));
        }
        let clients: Vec<usize> = left.iter().map(|(worker, _)| worker.client).collect();
        for (mut worker, handle) in left {
            tasks.push(schedule::spawn("close", move || worker.close(handle)));
        }
        schedule::join(tasks);
        // What another client has written is later than what this one knows.
        let mtime_ns = if sets { self.meta.inode(FILE).mtime_ns } else { TIME_NS };
        if sets && clients.iter().all(|client| *client == clients[0]) && mtime_ns != TIME_NS {
            self.wrong(format!("the time that was set has become {mtime_ns}"));
        }
    }

    fn live(self: Arc<Self>) {
        self.begin();
        let clocks: Vec<usize> = (0..self.clients.len())
            .map(|client| {
                let world = self.clone();
                schedule::spawn("clock", move || world.tick_clock(client))
            })
            .collect();
        let left = Arc::new(Kept::<Vec<(Worker, Handle)>>::default());
        let workers = (0..self.plan.threads.len()).map(|thread| {
            let (world, left) = (self.clone(), left.clone());
            schedule::spawn("worker", move || {
                let handles = Worker::new(world.clone(), thread).work();
                for (mut worker, handle) in handles {
                    if world.plan.closes_together {
                        left.lock().push((worker, handle));
                    } else {
                        worker.close(handle);
                    }
                }
            })
        });
        schedule::join(workers.collect());
        let left = std::mem::take(&mut *left.lock());
        self.close_together(left);
        self.is_over.store(true, Ordering::Relaxed);
        schedule::join(clocks);
        schedule::join_all();
        for client in 0..self.clients.len() {
            self.check_client(client);
        }
        let sessions = self.meta.sessions();
        if !sessions.is_empty() && !self.plan.is_faulty {
            self.wrong(format!("sessions have not ended: {sessions:?}"));
        }
        self.check_file();
        schedule::join_all();
    }
}

/// Runs the world of this seed. Returns the steps it took.
pub fn explore(seed: u64) -> Result<u64, String> {
    let world = Arc::new(World::new(Plan::new(seed)));
    schedule::run(seed, move || world.live())
}
