//! A thread of a client: what it does to the file, and how it judges what it sees.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::model::{Cut, Look, Mode, SLOT_BYTES, Write, record, stamp};
use super::world::{FILE, World};
use crate::buffer::Placement;
use crate::client::meta::inode_path;
use crate::client::open_file::WriteOffset;
use crate::client::{
    File, IoMode, OpenFiles, OpenOptions, WriteAt, set_attributes, set_attributes_deferred, set_length,
    write_many,
};
use crate::error::{Kind, Result};
use crate::schedule;
use crate::wire::pb;

const HANDLES_MAX: usize = 2;

/// An open file, and since when.
pub struct Handle {
    file: Arc<File>,
    number: u64,
    /// The moment before it was opened.
    opened: u64,
    /// The last moment at which it has reported an error.
    failed: u64,
}

#[derive(Clone)]
pub struct Worker {
    world: Arc<World>,
    thread: usize,
    pub client: usize,
    appended: usize,
}

impl Worker {
    pub fn new(world: Arc<World>, thread: usize) -> Worker {
        let client = world.plan.threads[thread];
        Worker { world, thread, client, appended: 0 }
    }

    fn files(&self) -> &Arc<OpenFiles> {
        &self.world.clients[self.client]
    }

    fn note(&self, text: String) {
        self.world.note(format!("client {} thread {}: {text}", self.client, self.thread));
    }

    /// An error is wrong where nothing fails, and so is a panic that the client has made an error of.
    fn outcome<T>(&self, what: &str, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) if self.world.plan.is_faulty && error.kind() != Kind::Other => {
                self.note(format!("{what} failed: {error}"));
                None
            }
            Err(error) => self.world.wrong(format!("{what} failed: {error}")),
        }
    }

    /// Returns the handles that are open at the end.
    pub fn work(mut self) -> Vec<(Worker, Handle)> {
        let mut handles: Vec<Handle> = Vec::new();
        for _ in 0..self.world.plan.operations {
            self.step(&mut handles);
        }
        handles.into_iter().map(|handle| (self.clone(), handle)).collect()
    }

    fn step(&mut self, handles: &mut Vec<Handle>) {
        if handles.is_empty() || handles.len() < HANDLES_MAX && schedule::one_in(5) {
            handles.extend(self.open());
            return;
        }
        let chosen = schedule::below(handles.len() as u64) as usize;
        let handle = &mut handles[chosen];
        match schedule::below(20) {
            0..=7 => self.write(handle),
            8..=9 => self.read(handle),
            10 => self.look_again(),
            11..=12 => self.sync(handle),
            13..=14 => {
                let handle = handles.swap_remove(chosen);
                self.close(handle);
            }
            15 => self.look_at_attributes(),
            16 => self.cut(handle),
            17 => self.set_mode(),
            18 => self.extend(handle),
            _ => {
                self.note("presses".to_owned());
                self.files().shared().dirty_files.flush_for_pressure();
            }
        }
    }

    /// Whether this thread's client appends: only one does.
    fn appends(&self) -> bool {
        self.world.plan.appends && self.client == self.world.plan.threads[0]
    }

    fn options(&self) -> OpenOptions {
        let write = (!self.world.plan.appends || self.appends()) && !schedule::one_in(5);
        OpenOptions {
            read: !write || !schedule::one_in(4),
            write,
            append: self.world.plan.appends && schedule::one_in(2),
            truncate: write && self.world.plan.cuts && schedule::one_in(5),
            direct: schedule::one_in(8),
            follow: false,
        }
    }

    fn open(&self) -> Option<Handle> {
        let options = self.options();
        let exists = self.world.exists.load(Ordering::Relaxed);
        let by_name = !exists || schedule::one_in(4);
        let opened = self.world.tick();
        let cut = options.truncate.then(|| self.begin_cut(0));
        self.note(format!("opens {options:?} by name: {by_name}"));
        let file = match by_name {
            true => self.world.create(self.client, options),
            false => File::open(self.files(), &self.world.identity, inode_path(FILE), options),
        };
        let file = self.outcome("open", file)?;
        self.world.exists.store(true, Ordering::Relaxed);
        if let Some(cut) = cut {
            self.end_cut(cut);
        }
        let number = self.world.tick();
        self.note(format!("has opened handle {number}"));
        Some(Handle { file, number, opened, failed: 0 })
    }

    fn begin_cut(&self, length: u64) -> usize {
        let mut model = self.world.model.lock();
        let begin = model.tick();
        model.cuts.push(Cut { client: self.client, length, begin, end: None });
        model.cuts.len() - 1
    }

    fn end_cut(&self, cut: usize) {
        let mut model = self.world.model.lock();
        let end = model.tick();
        model.cuts[cut].end = Some(end);
    }

    fn begin_write(&self, handle: &Handle) -> Write {
        let begin = self.world.tick();
        let (client, thread, handle) = (self.client, self.thread, handle.number);
        Write { client, thread, handle, begin, end: None, acknowledged: None }
    }

    fn write(&mut self, handle: &mut Handle) {
        if !handle.file.options().write {
            return;
        }
        match self.world.plan.appends {
            true => self.append(handle),
            false if schedule::one_in(4) => self.write_slots(handle),
            false => self.write_slot(handle),
        }
    }

    /// A slot that this thread may write: whatever was written there, this client or this handle knows of it.
    fn slot(&self, handle: &Handle) -> Option<usize> {
        let model = self.world.model.lock();
        let may = |number: &usize| {
            let slot = &model.slots[*number];
            !slot.is_busy
                && slot.writes.last().is_none_or(|last| match last.client == self.client {
                    true => last.end.is_some(),
                    false => last.acknowledged.is_some_and(|moment| moment < handle.opened),
                })
        };
        let free: Vec<usize> = (0..model.slots.len()).filter(may).collect();
        drop(model);
        (!free.is_empty()).then(|| free[schedule::below(free.len() as u64) as usize])
    }

    fn write_slot(&self, handle: &mut Handle) {
        let Some(number) = self.slot(handle) else { return };
        let write = self.begin_write(handle);
        let (at, version) = {
            let mut model = self.world.model.lock();
            let slot = &mut model.slots[number];
            slot.writes.push(write);
            slot.is_busy = true;
            (slot.at, slot.writes.len())
        };
        self.note(format!("handle {} writes version {version} of slot {number}", handle.number));
        let payload = Placement::from_vec(stamp(version));
        let result = handle.file.write(WriteOffset::At(at), &payload, false);
        let done = self.outcome("write", result).is_some();
        let mut model = self.world.model.lock();
        let now = model.tick();
        model.slots[number].is_busy = false;
        if done {
            let write = &mut model.slots[number].writes[version - 1];
            write.end = Some(now);
            write.acknowledged = handle.file.options().direct.then_some(now);
        }
        drop(model);
        self.note(format!("has written version {version} of slot {number}: {done}"));
    }

    /// Several slots at once, as a ring does.
    fn write_slots(&self, handle: &mut Handle) {
        let mut begun = Vec::new();
        let mut writes = Vec::new();
        for _ in 0..1 + schedule::below(3) {
            let Some(number) = self.slot(handle) else { break };
            let write = self.begin_write(handle);
            let mut model = self.world.model.lock();
            let slot = &mut model.slots[number];
            slot.writes.push(write);
            slot.is_busy = true;
            let (offset, version) = (slot.at, slot.writes.len());
            drop(model);
            self.note(format!("handle {} writes version {version} of slot {number}, of many", handle.number));
            let payload = Placement::from_vec(stamp(version));
            writes.push(WriteAt { file: handle.file.clone(), offset, payload });
            begun.push((number, version));
        }
        let outcomes = write_many(self.files().shared(), &writes);
        for ((write, (number, version)), outcome) in writes.iter().zip(begun).zip(outcomes) {
            let alone = || {
                let place = WriteOffset::At(write.offset);
                handle.file.write_through(place, &write.payload, false, IoMode::Direct).map(drop)
            };
            let is_done = self.outcome("write", outcome.unwrap_or_else(alone)).is_some();
            let mut model = self.world.model.lock();
            let now = model.tick();
            model.slots[number].is_busy = false;
            if is_done {
                let write = &mut model.slots[number].writes[version - 1];
                write.end = Some(now);
                write.acknowledged = Some(now);
            }
            drop(model);
            self.note(format!("has written version {version} of slot {number}: {is_done}"));
        }
    }

    fn append(&mut self, handle: &mut Handle) {
        let length = 8 + schedule::below(60) as usize;
        let bytes = record(length, self.thread, self.appended);
        self.appended += 1;
        let write = self.begin_write(handle);
        let number = {
            let mut model = self.world.model.lock();
            model.records.push((write, bytes.clone()));
            model.records.len() - 1
        };
        self.note(format!("handle {} appends record {number} of {length} bytes", handle.number));
        let result = handle.file.write(WriteOffset::Append, &Placement::from_vec(bytes), false);
        if let Some(at) = self.outcome("append", result) {
            let mut model = self.world.model.lock();
            let now = model.tick();
            model.records[number].0.end = Some(now);
            drop(model);
            self.note(format!("has appended record {number} at {at}"));
        }
    }

    fn read(&self, handle: &Handle) {
        if !handle.file.options().read {
            return;
        }
        let begin = self.world.tick();
        let into = Placement::from_vec(vec![0xee; self.world.length_max()]);
        let result = match schedule::one_in(3) {
            true => handle.file.read_ahead_at(0, &into),
            false => handle.file.read_at(0, &into),
        };
        let Some(count) = self.outcome("read", result) else { return };
        let bytes = into.slice(0..count).to_vec();
        let length = handle.file.inode().length();
        let end = self.world.tick();
        let look = Look { client: self.client, begin, end, opened: handle.opened };
        self.note(format!("handle {} has read {count} bytes since {begin}", handle.number));
        let model = self.world.model.lock();
        let checked = match self.world.plan.appends {
            true => model.check_records(&bytes, &look, self.appends() && !self.world.plan.is_faulty),
            false => model.check_slots(&bytes, &look),
        };
        let checked = checked.and(model.check_length(length, &look));
        drop(model);
        self.world.require(checked);
    }

    /// Opens the file, reads it, and closes it.
    fn look_again(&self) {
        let opened = self.world.tick();
        self.note("looks".to_owned());
        let options = OpenOptions { read: true, ..Default::default() };
        let file = File::open(self.files(), &self.world.identity, inode_path(FILE), options);
        let Some(file) = self.outcome("open", file) else { return };
        let number = self.world.tick();
        let handle = Handle { file, number, opened, failed: 0 };
        self.read(&handle);
        self.close_quietly(&handle);
    }

    fn close_quietly(&self, handle: &Handle) {
        match schedule::below(2) {
            0 => drop(self.outcome("close", handle.file.close())),
            _ => handle.file.release(),
        }
    }

    fn sync(&self, handle: &mut Handle) {
        let begin = self.world.tick();
        let way = schedule::below(3);
        self.note(format!("handle {} syncs in way {way}", handle.number));
        let result = match way {
            0 => handle.file.flush(),
            1 => handle.file.fsync(false),
            _ => handle.file.fsync(true),
        };
        if way != 0 && result.is_ok() {
            self.world.check_durable(self.client, begin);
        }
        self.on_reported(handle, begin, result);
    }

    /// What a flush, fsync or close that began at `begin` says of what was written before.
    fn on_reported(&self, handle: &mut Handle, begin: u64, result: Result<()>) {
        let done = self.outcome("sync", result).is_some();
        if !done {
            handle.failed = self.world.tick();
            return;
        }
        if handle.file.options().write {
            let (faulty, failed, number) = (self.world.plan.is_faulty, handle.failed, handle.number);
            let counts = |write: &Write| !faulty || write.handle == number && write.begin > failed;
            self.world.model.lock().acknowledge(self.client, begin, counts);
        }
        self.note(format!("handle {} has synced since {begin}", handle.number));
    }

    pub fn close(&mut self, mut handle: Handle) {
        let begin = self.world.tick();
        self.note(format!("closes handle {}", handle.number));
        match schedule::below(4) {
            0..=1 => {
                let result = handle.file.close();
                self.on_reported(&mut handle, begin, result);
            }
            2 => {
                let result = handle.file.flush();
                self.on_reported(&mut handle, begin, result);
                handle.file.release();
            }
            // No caller waits, and none gets the error; at the end each has to get one.
            _ if self.world.plan.is_faulty => handle.file.release(),
            _ => {
                let result = handle.file.close();
                self.on_reported(&mut handle, begin, result);
            }
        }
    }

    fn look_at_attributes(&self) {
        let begin = self.world.tick();
        let (files, shared) = (self.files(), self.files().shared());
        let known = match shared.metadata_cache.attributes(FILE) {
            Some((known, _)) => pb::Inode::clone(&known),
            None => {
                match self.outcome("stat", shared.meta.stat(&self.world.identity, inode_path(FILE), false)) {
                    Some(inode) => inode,
                    None => return,
                }
            }
        };
        let seen = files.local_view(&known);
        let end = self.world.tick();
        self.note(format!("has seen length {} since {begin}", seen.length));
        // What other clients have done need not show yet.
        let look = Look { client: self.client, begin, end, opened: 0 };
        let model = self.world.model.lock();
        let mode = match self.world.plan.is_faulty || self.client != self.world.plan.threads[0] {
            true => Ok(()),
            false => model.check_mode(seen.permissions, &look),
        };
        let checked = model.check_length(seen.length, &look).and(mode);
        drop(model);
        self.world.require(checked);
    }

    fn cut(&self, handle: &Handle) {
        if !self.world.plan.cuts || !handle.file.options().write {
            return;
        }
        let length = [0, 1, 2, 5][schedule::below(4) as usize] * self.world.plan.stride;
        let cut = self.begin_cut(length);
        self.note(format!("cuts at {length}"));
        let result = match schedule::one_in(2) {
            true => handle.file.truncate(length),
            false => set_length(self.files(), &self.world.identity, FILE, length, 0),
        };
        if self.outcome("cut", result).is_some() {
            self.end_cut(cut);
            self.note(format!("has cut at {length}"));
        }
    }

    fn extend(&self, handle: &Handle) {
        if self.world.plan.appends || !handle.file.options().write {
            return;
        }
        let length = schedule::below(6) * self.world.plan.stride + SLOT_BYTES / 2;
        self.note(format!("extends to {length}"));
        self.outcome("extend", handle.file.extend(length));
    }

    fn set_mode(&self) {
        if !self.world.plan.sets_modes || self.client != self.world.plan.threads[0] {
            return;
        }
        let (number, permissions) = {
            let mut model = self.world.model.lock();
            let (begin, number) = (model.tick(), model.modes.len());
            let permissions = 0o600 + number as u32;
            model.modes.push(Mode { permissions, begin, end: None });
            (number, permissions)
        };
        self.note(format!("sets permissions {permissions:o}"));
        let path = Some(inode_path(FILE));
        let request = pb::SetAttrRequest { path, permissions: Some(permissions), ..Default::default() };
        let (files, identity) = (self.files(), &self.world.identity);
        let result = match schedule::one_in(2) {
            true => set_attributes_deferred(files, identity, request),
            false => set_attributes(files, identity, request),
        };
        if self.outcome("set attributes", result).is_some() {
            let mut model = self.world.model.lock();
            let end = model.tick();
            model.modes[number].end = Some(end);
            drop(model);
            self.note(format!("has set permissions {permissions:o}"));
        }
    }
}
