//! Clients of one file, the requests that are under way, and the services.

use std::sync::Arc;
use std::time::Instant;

use super::super::access::Access;
use super::super::append_trust::AppendTrust;
use super::super::bug::Bug;
use super::super::machine::{Effects, Event, Machine};
use super::super::transitions::direct::{BeginDirect, DirectSlice};
use super::super::transitions::exclusive::{Drain, Enter, Entered, Leave};
use super::super::transitions::metadata_sync::{
    BeginSync, Described, Merge, MetadataUpdate, Sync, SyncEnded, SyncFailed,
};
use super::super::transitions::sessions::{AddSession, LoseSession};
use super::super::transitions::write_back::{
    Batch, BatchEnded, Migrated, Migration, MigrationEnded, TakeTask, Want, WriteBackTask,
};
use super::super::transitions::writing::{TakeWrite, Taken};
use crate::buffer::{BufferPool, Placement};
use crate::client::data::Write;
use crate::client::fake::{FakeChunks, FakeMeta};
use crate::client::meta::{inode_path, name_path};
use crate::error::{Error, Kind, Result};
use crate::wire::pb::{self, Method};

pub(super) const FILE: u64 = 5;
const CHUNK_BYTES: u32 = 8;
const INLINE_BYTES: u32 = 4;
/// Where bytes are written: inside the inode, beyond it in the first chunk, and in the second.
pub(super) const SLOTS: [u64; 3] = [1, 5, 9];
/// Lengths to which the file is cut.
const CUTS: [u64; 2] = [0, 3];

#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) bug: Bug,
    pub(super) clients: usize,
    /// Of each client.
    pub(super) writes: [usize; 2],
    /// How many of the places each client writes.
    pub(super) slots: [usize; 2],
    /// Of each client: syncs that are begun before all is written back. Each makes another one necessary.
    pub(super) early_syncs: usize,
    /// Of the first client.
    pub(super) cuts: usize,
    /// Times that the second client, or the only one, asks for the inode.
    pub(super) stats: usize,
    pub(super) faults: usize,
    /// Of the first client: how many of its writes may be direct, and how often it may lose its session.
    pub(super) direct: usize,
    pub(super) losses: usize,
    /// The file is made in chunks.
    pub(super) is_chunked: bool,
}

impl Limits {
    pub(super) const SMALL: Limits = Limits {
        bug: Bug::None,
        clients: 1,
        writes: [1, 1],
        slots: [2, 2],
        early_syncs: 1,
        cuts: 0,
        stats: 0,
        faults: 0,
        direct: 0,
        losses: 0,
        is_chunked: false,
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Write {
        slot: usize,
    },
    WriteDirect {
        slot: usize,
    },
    /// The metadata service has ended the session while the client was away.
    LoseSession,
    /// A thread takes work.
    TakeTask,
    CarryOutBatch {
        number: usize,
    },
    FailBatch {
        number: usize,
    },
    EndBatch {
        number: usize,
    },
    CarryOutMigration,
    EndMigration,
    BeginSync,
    CarryOutSync,
    /// The sync is carried out, and its reply is lost.
    LoseSync,
    EndSync,
    CarryOutMerge,
    EndMerge,
    CarryOutStat,
    EndStat,
    BeginCut {
        to: usize,
    },
    EnterCut,
    CarryOutCut,
    EndCut,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Action {
    pub(super) client: usize,
    pub(super) step: Step,
}

#[derive(Clone)]
pub(super) struct BatchInFlight {
    pub(super) batch: Batch,
    pub(super) writes: Vec<Write>,
    pub(super) results: Option<Vec<Result<()>>>,
}

#[derive(Clone)]
pub(super) struct Moving {
    pub(super) bytes: Vec<u8>,
    pub(super) base: u64,
    session: u64,
    /// A spare content with the bytes.
    pub(super) spare: Option<pb::Spare>,
    pub(super) result: Option<(pb::Inode, bool)>,
}

/// What the thread that holds the metadata lock does.
#[derive(Clone)]
pub(super) enum Holder {
    /// `covers`: how many of the writes of all clients were acknowledged or are sent.
    Sync {
        update: Arc<MetadataUpdate>,
        covers: usize,
        reply: Option<Result<pb::Inode>>,
    },
    Merge {
        theirs: Option<pb::Inode>,
    },
    Cut {
        length: u64,
        reply: Option<pb::Inode>,
    },
}

/// A write that was taken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Written {
    pub(super) client: usize,
    pub(super) slot: usize,
    pub(super) value: u8,
    /// It cut the file after that.
    pub(super) is_cut_by_self: bool,
    /// It waited here when the session was lost under which it was written.
    pub(super) is_discarded: bool,
    /// Somebody cut the file after that.
    pub(super) may_be_cut: bool,
    /// The chains have refused it.
    pub(super) may_be_lost: bool,
    /// An fsync or close that followed it has returned.
    pub(super) is_synced: bool,
    /// Another client has written the slot after that.
    pub(super) is_overwritten: bool,
}

#[derive(Clone)]
pub(super) struct Client {
    pub(super) machine: Machine,
    /// Memory for dirty bytes, as the driver counts it.
    pub(super) memory: isize,
    writes_left: usize,
    cuts_left: usize,
    stats_left: usize,
    early_syncs_left: usize,
    direct_left: usize,
    losses_left: usize,
    session: u64,
    pub(super) in_flight: Vec<BatchInFlight>,
    pub(super) moving: Option<Moving>,
    pub(super) holder: Option<Holder>,
    pub(super) stat: Option<pb::Inode>,
    /// Highest `change` known.
    pub(super) change: u64,
}

#[derive(Clone)]
pub(super) struct World {
    pub(super) chunks: Arc<FakeChunks>,
    pub(super) meta: Arc<FakeMeta>,
    pub(super) clients: Vec<Client>,
    pub(super) written: Vec<Written>,
    pub(super) faults_left: usize,
    slots: [usize; 2],
    /// No time passes.
    now: Instant,
}

impl Client {
    /// What it may still do.
    pub(super) fn left(&self) -> [usize; 6] {
        let Client { writes_left, cuts_left, stats_left, early_syncs_left, .. } = self;
        [*writes_left, *cuts_left, *stats_left, *early_syncs_left, self.direct_left, self.losses_left]
    }
}

fn caller(client: usize) -> Option<pb::Caller> {
    Some(pb::Caller { client: client as u64 + 1, ..Default::default() })
}

impl World {
    pub(super) fn new(limits: Limits) -> World {
        let chunks = Arc::new(FakeChunks::default());
        let meta = FakeMeta::new(chunks.clone());
        meta.lay_out(CHUNK_BYTES, INLINE_BYTES);
        let pool = BufferPool::new(1 << 20, 1).expect("memory for one buffer");
        let (now, mut clients) = (Instant::now(), Vec::new());
        for client in 0..limits.clients {
            let request = pb::CreateRequest {
                caller: caller(client),
                path: Some(name_path(1, format!("f{FILE}").as_bytes())),
                permissions: 0o644,
                write: true,
                in_chunks: limits.is_chunked,
                ..Default::default()
            };
            let reply: pb::InodeReply = meta.call(Method::MetaCreate, &request).expect("nothing fails yet");
            let inode = reply.inode.expect("a create replies with the inode");
            let change = inode.change;
            let mut machine = Machine::new(inode, pool.clone(), now);
            machine.bug = limits.bug;
            let append_trust = AppendTrust::default();
            let mut effects = Effects::default();
            machine.step(
                AddSession { session: reply.session, identity: Arc::default(), append_trust },
                &mut effects,
            );
            clients.push(Client {
                machine,
                memory: 0,
                writes_left: limits.writes[client],
                cuts_left: if client == 0 { limits.cuts } else { 0 },
                stats_left: if client + 1 == limits.clients { limits.stats } else { 0 },
                early_syncs_left: limits.early_syncs,
                direct_left: if client == 0 { limits.direct } else { 0 },
                losses_left: if client == 0 { limits.losses } else { 0 },
                session: reply.session,
                in_flight: Vec::new(),
                moving: None,
                holder: None,
                stat: None,
                change,
            });
        }
        World {
            chunks,
            meta,
            clients,
            written: Vec::new(),
            faults_left: limits.faults,
            slots: limits.slots,
            now,
        }
    }

    /// What may happen next. Some of it turns out to change nothing when it is applied.
    pub(super) fn actions(&self) -> Vec<Action> {
        let mut actions = Vec::new();
        for (client, state) in self.clients.iter().enumerate() {
            let mut add = |step| actions.push(Action { client, step });
            if state.writes_left > 0 {
                (0..self.slots[client]).for_each(|slot| add(Step::Write { slot }));
                if state.direct_left > 0 {
                    (0..self.slots[client]).for_each(|slot| add(Step::WriteDirect { slot }));
                }
            }
            if state.losses_left > 0 {
                add(Step::LoseSession);
            }
            add(Step::TakeTask);
            for (number, batch_in_flight) in state.in_flight.iter().enumerate() {
                if batch_in_flight.results.is_some() {
                    add(Step::EndBatch { number });
                    continue;
                }
                add(Step::CarryOutBatch { number });
                if self.faults_left > 0 {
                    add(Step::FailBatch { number });
                }
            }
            match &state.moving {
                Some(moving) if moving.result.is_some() => add(Step::EndMigration),
                Some(_) => add(Step::CarryOutMigration),
                None => {}
            }
            match &state.holder {
                None => {
                    add(Step::BeginSync);
                    if state.cuts_left > 0 {
                        (0..CUTS.len()).for_each(|to| add(Step::BeginCut { to }));
                    }
                }
                Some(Holder::Sync { reply: None, .. }) => {
                    add(Step::CarryOutSync);
                    if self.faults_left > 0 {
                        add(Step::LoseSync);
                    }
                }
                Some(Holder::Sync { reply: Some(_), .. }) => add(Step::EndSync),
                Some(Holder::Merge { theirs: None }) => add(Step::CarryOutMerge),
                Some(Holder::Merge { theirs: Some(_) }) => add(Step::EndMerge),
                Some(Holder::Cut { .. }) if state.machine.access == Access::Draining => add(Step::EnterCut),
                Some(Holder::Cut { reply: None, .. }) => add(Step::CarryOutCut),
                Some(Holder::Cut { reply: Some(_), .. }) => add(Step::EndCut),
            }
            match &state.stat {
                Some(_) => add(Step::EndStat),
                None if state.stats_left > 0 => add(Step::CarryOutStat),
                None => {}
            }
        }
        actions
    }

    /// Apply an action. False: it changes nothing.
    pub(super) fn apply(&mut self, action: Action) -> std::result::Result<bool, String> {
        let Action { client, step } = action;
        let is_enabled = match step {
            Step::Write { slot } => self.write(client, slot)?,
            Step::WriteDirect { slot } => self.write_direct(client, slot)?,
            Step::LoseSession => self.lose_session(client)?,
            Step::TakeTask => self.take_task(client)?,
            Step::CarryOutBatch { number } => self.carry_out_batch(client, number),
            Step::FailBatch { number } => self.fail_batch(client, number),
            Step::EndBatch { number } => self.end_batch(client, number)?,
            Step::CarryOutMigration => self.carry_out_migration(client),
            Step::EndMigration => self.end_migration(client)?,
            Step::BeginSync => self.begin_sync(client)?,
            Step::CarryOutSync => self.carry_out_sync(client, false)?,
            Step::LoseSync => self.carry_out_sync(client, true)?,
            Step::EndSync => self.end_sync(client)?,
            Step::CarryOutMerge => {
                let theirs = self.stat(client);
                self.clients[client].holder = Some(Holder::Merge { theirs: Some(theirs) });
                true
            }
            Step::EndMerge => self.end_merge(client)?,
            Step::CarryOutStat => {
                self.clients[client].stats_left -= 1;
                self.clients[client].stat = Some(self.stat(client));
                true
            }
            Step::EndStat => {
                let inode = self.clients[client].stat.take().expect("it was carried out");
                self.step(client, Described { inode, now: self.now })?;
                true
            }
            Step::BeginCut { to } => self.begin_cut(client, CUTS[to])?,
            Step::EnterCut => self.enter_cut(client)?,
            Step::CarryOutCut => self.carry_out_cut(client),
            Step::EndCut => self.end_cut(client)?,
        };
        if is_enabled {
            self.check()?;
        }
        Ok(is_enabled)
    }

    /// Give this world services of its own, before a request changes them.
    fn fork(&mut self) {
        self.chunks = Arc::new(self.chunks.fork());
        self.meta = self.meta.fork(self.chunks.clone());
    }

    /// Apply an event, and check that threads which wait are woken.
    fn step<E: Event>(&mut self, client: usize, event: E) -> std::result::Result<E::Outcome, String> {
        let state = &mut self.clients[client];
        let blocked = state.blocked();
        let mut effects = Effects::default();
        let outcome = state.machine.step(event, &mut effects);
        state.machine.assert_invariants();
        state.memory += effects.memory;
        let now = state.blocked();
        if !effects.wake && blocked.iter().zip(now).any(|(before, now)| *before && !now) {
            return Err("a thread that waits is not woken".to_owned());
        }
        Ok(outcome)
    }

    fn write(&mut self, client: usize, slot: usize) -> std::result::Result<bool, String> {
        let value = self.written.len() as u8 + 1;
        let payload = Placement::from_vec(vec![value]);
        // The driver has reserved it.
        self.clients[client].memory += 1;
        let write = TakeWrite { offset: Some(SLOTS[slot]), payload: &payload, keep: false, now_ns: 1 };
        match self.step(client, write)? {
            Taken::Done { .. } => {}
            Taken::Wait => return Ok(false),
            Taken::TooLarge => return Err("a small write is too large".to_owned()),
        }
        self.count_write(client, slot, value);
        Ok(true)
    }

    /// A direct write; where it cannot be sent out of its caller's memory, nothing happens.
    fn write_direct(&mut self, client: usize, slot: usize) -> std::result::Result<bool, String> {
        let value = self.written.len() as u8 + 1;
        let payload = Placement::from_vec(vec![value]);
        let slices = [DirectSlice { number: 0, offset: SLOTS[slot], payload: &payload }];
        let begun = self.step(client, BeginDirect { writes: &slices, now_ns: 1 })?;
        let Some((_, batch)) = begun else { return Ok(false) };
        let writes = batch.writes();
        self.clients[client].in_flight.push(BatchInFlight { batch, writes, results: None });
        self.clients[client].direct_left -= 1;
        self.count_write(client, slot, value);
        Ok(true)
    }

    /// Handles that write fail from here on.
    fn lose_session(&mut self, client: usize) -> std::result::Result<bool, String> {
        let discarded = self.clients[client].waiting();
        let session = self.clients[client].session;
        self.step(client, LoseSession(session))?;
        self.clients[client].losses_left -= 1;
        self.clients[client].writes_left = 0;
        for written in self.written.iter_mut().filter(|written| written.client == client) {
            written.may_be_lost = true;
            written.is_discarded |= discarded.contains(&written.value);
        }
        Ok(true)
    }

    fn count_write(&mut self, client: usize, slot: usize, value: u8) {
        self.clients[client].writes_left -= 1;
        for written in self.written.iter_mut().filter(|written| written.slot == slot && written.is_synced) {
            written.is_overwritten |= written.client != client;
        }
        self.written.push(Written {
            client,
            slot,
            value,
            is_cut_by_self: false,
            is_discarded: false,
            may_be_cut: false,
            may_be_lost: false,
            is_synced: false,
            is_overwritten: false,
        });
    }

    fn take_task(&mut self, client: usize) -> std::result::Result<bool, String> {
        self.step(client, Want { until: u64::MAX, others: usize::MAX / 2 })?;
        match self.step(client, TakeTask { is_fenced: false })? {
            WriteBackTask::Nothing => return Ok(false),
            WriteBackTask::WaitAtFence => return Err("there is no fence".to_owned()),
            WriteBackTask::Migrate(Migration { bytes, base, session, .. }) => {
                let moving = Moving { bytes, base, session, spare: None, result: None };
                let before = self.clients[client].moving.replace(moving);
                assert!(before.is_none(), "a file leaves its inode once at a time");
            }
            WriteBackTask::Write(batch) => {
                let writes = batch.writes();
                self.clients[client].in_flight.push(BatchInFlight { batch, writes, results: None });
            }
        }
        Ok(true)
    }

    fn carry_out_batch(&mut self, client: usize, number: usize) -> bool {
        self.fork();
        let batch_in_flight = &mut self.clients[client].in_flight[number];
        for write in &batch_in_flight.writes {
            self.chunks.write(write.content.0, write.offset, &write.payload.to_vec());
        }
        batch_in_flight.results = Some(batch_in_flight.writes.iter().map(|_| Ok(())).collect());
        true
    }

    fn fail_batch(&mut self, client: usize, number: usize) -> bool {
        self.faults_left -= 1;
        let batch_in_flight = &mut self.clients[client].in_flight[number];
        let failed = || Err(Error::new(Kind::Other, "a planned fault"));
        batch_in_flight.results = Some(batch_in_flight.writes.iter().map(|_| failed()).collect());
        // What was dirty under it, too: the newest bytes were the only ones.
        for write in &batch_in_flight.writes {
            let range = write.offset..write.offset + write.payload.len() as u64;
            let lost = self.written.iter_mut().filter(|written| range.contains(&SLOTS[written.slot]));
            lost.for_each(|written| written.may_be_lost = true);
        }
        true
    }

    fn end_batch(&mut self, client: usize, number: usize) -> std::result::Result<bool, String> {
        let BatchInFlight { batch, writes, results } = self.clients[client].in_flight.remove(number);
        let results = results.expect("it was carried out");
        let errors = self.clients[client].machine.error_count;
        self.step(client, BatchEnded { batch, writes: &writes, results: &results })?;
        let has_failed = results.iter().any(Result::is_err);
        if has_failed && self.clients[client].machine.error_count == errors {
            return Err("I5: a write-back fails without an error".to_owned());
        }
        Ok(true)
    }

    /// One request of a move: reserve a spare content and write it, or install it.
    fn carry_out_migration(&mut self, client: usize) -> bool {
        self.fork();
        let mut moving = self.clients[client].moving.take().expect("it is under way");
        let request = pb::SyncRequest {
            caller: caller(client),
            inode: FILE,
            session: moving.session,
            inline_base: moving.base,
            ..Default::default()
        };
        let needs_spare = !moving.bytes.is_empty() && moving.spare.is_none();
        let request = match needs_spare {
            true => pb::SyncRequest { reserve_spare: true, ..request },
            false => pb::SyncRequest { leave_inline: true, spare: moving.spare, ..request },
        };
        match self.meta.call::<_, pb::InodeReply>(Method::MetaSync, &request) {
            Ok(reply) if needs_spare => {
                let spare = reply.spare.expect("a spare was asked for");
                self.chunks.write(spare.content, 0, &moving.bytes);
                moving.spare = Some(spare);
            }
            Ok(reply) => moving.result = Some((reply.inode.expect("a sync replies with the inode"), true)),
            Err(error) => {
                assert_eq!(error.kind(), Kind::Conflict, "{error}");
                let theirs = self.stat(client);
                moving.spare = None;
                if theirs.is_inline {
                    (moving.bytes, moving.base) = (theirs.inline_data, theirs.change);
                } else {
                    moving.result = Some((theirs, false));
                }
            }
        }
        self.clients[client].moving = Some(moving);
        true
    }

    fn end_migration(&mut self, client: usize) -> std::result::Result<bool, String> {
        let moving = self.clients[client].moving.take().expect("it is under way");
        let (inode, ours) = moving.result.expect("it was carried out");
        let result = Ok(Migrated { inode, ours });
        self.step(client, MigrationEnded { result, now: self.now })?;
        Ok(true)
    }

    fn begin_sync(&mut self, client: usize) -> std::result::Result<bool, String> {
        let is_all = self.clients[client].machine.write_back.is_empty();
        if !is_all && self.clients[client].early_syncs_left == 0 {
            return Ok(false);
        }
        let Sync::Send(update) = self.step(client, BeginSync { durable: false })? else { return Ok(false) };
        let covers = if is_all { self.written.len() } else { 0 };
        let state = &mut self.clients[client];
        state.early_syncs_left -= usize::from(!is_all);
        if let Some(hint) = update.length.filter(|_| update.inline.is_none()) {
            state.check_length_sent(hint, &self.meta.inode(FILE), &self.chunks)?;
        }
        state.holder = Some(Holder::Sync { update: Arc::new(update), covers, reply: None });
        Ok(true)
    }

    fn carry_out_sync(&mut self, client: usize, is_lost: bool) -> std::result::Result<bool, String> {
        self.fork();
        let Some(Holder::Sync { update, covers, .. }) = self.clients[client].holder.take() else {
            return Err("no sync is under way".to_owned());
        };
        let request = pb::SyncRequest {
            caller: caller(client),
            inode: FILE,
            length: update.length,
            mtime_ns: update.mtime_ns,
            has_inline: update.inline.is_some(),
            inline_base: update.base,
            inline_data: update.inline.clone().unwrap_or_default(),
            session: update.session,
            ..Default::default()
        };
        let reply = self.meta.call::<_, pb::InodeReply>(Method::MetaSync, &request);
        let mut reply = reply.map(|reply| reply.inode.expect("a sync replies with the inode"));
        if is_lost {
            self.faults_left -= 1;
            reply = Err(Error::timeout("a planned fault"));
        }
        self.clients[client].holder = Some(Holder::Sync { update, covers, reply: Some(reply) });
        Ok(true)
    }

    fn end_sync(&mut self, client: usize) -> std::result::Result<bool, String> {
        let now = self.now;
        let Some(Holder::Sync { update, covers, reply: Some(reply) }) = self.clients[client].holder.take()
        else {
            return Err("no sync was carried out".to_owned());
        };
        match reply {
            Ok(inode) => {
                self.step(client, SyncEnded { inode, update: &update, durable: false, now })?;
                let covered = self.written[..covers].iter_mut().filter(|written| written.client == client);
                covered.for_each(|written| written.is_synced = true);
            }
            Err(error) => {
                self.step(client, SyncFailed)?;
                if error.kind() == Kind::Conflict {
                    self.clients[client].holder = Some(Holder::Merge { theirs: None });
                }
            }
        }
        Ok(true)
    }

    fn end_merge(&mut self, client: usize) -> std::result::Result<bool, String> {
        let now = self.now;
        let Some(Holder::Merge { theirs: Some(theirs) }) = self.clients[client].holder.take() else {
            return Err("no merge is under way".to_owned());
        };
        self.step(client, Merge { theirs, now })?;
        Ok(true)
    }

    pub(super) fn stat(&self, client: usize) -> pb::Inode {
        let request =
            pb::StatRequest { caller: caller(client), path: Some(inode_path(FILE)), ..Default::default() };
        let reply: pb::InodeReply = self.meta.call(Method::MetaStat, &request).expect("the file is there");
        reply.inode.expect("a stat replies with the inode")
    }

    fn begin_cut(&mut self, client: usize, length: u64) -> std::result::Result<bool, String> {
        let machine = &self.clients[client].machine;
        if machine.access != Access::Shared || length != 0 && machine.is_edited() {
            return Ok(false);
        }
        self.step(client, Drain)?;
        self.clients[client].cuts_left -= 1;
        self.clients[client].holder = Some(Holder::Cut { length, reply: None });
        Ok(true)
    }

    fn enter_cut(&mut self, client: usize) -> std::result::Result<bool, String> {
        let Some(Holder::Cut { length, .. }) = self.clients[client].holder else {
            return Err("no truncation is under way".to_owned());
        };
        match self.step(client, Enter { length })? {
            Entered::Wait => return Ok(false),
            Entered::Exclusive => {}
            Entered::SyncFirst => {
                self.clients[client].cuts_left += 1;
                self.clients[client].holder = None;
            }
        }
        Ok(true)
    }

    fn carry_out_cut(&mut self, client: usize) -> bool {
        self.fork();
        let Some(Holder::Cut { length, reply }) = &mut self.clients[client].holder else { return false };
        let request = pb::SetAttrRequest {
            caller: caller(client),
            path: Some(inode_path(FILE)),
            length: Some(*length),
            ..Default::default()
        };
        let inode: pb::InodeReply = self.meta.call(Method::MetaSetAttr, &request).expect("it is there");
        *reply = inode.inode;
        let beyond = *length;
        for written in self.written.iter_mut().filter(|written| SLOTS[written.slot] >= beyond) {
            written.may_be_cut = true;
            written.is_cut_by_self |= written.client == client;
        }
        true
    }

    fn end_cut(&mut self, client: usize) -> std::result::Result<bool, String> {
        let now = self.now;
        let Some(Holder::Cut { length, reply }) = self.clients[client].holder.take() else {
            return Err("no truncation is under way".to_owned());
        };
        self.step(client, Leave { truncated: Some((length, reply)), now })?;
        Ok(true)
    }
}
