//! What must hold in every state, and at the end.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use prost::Message;

use super::super::access::Access;
use super::super::metadata::Metadata;
use super::super::view::ReadPlan;
use super::world::{Client, FILE, Holder, SLOTS, World, Written};
use crate::buffer::Placement;
use crate::client::fake::FakeChunks;
use crate::wire::pb;

/// More than the file ever holds.
const READ_BYTES: usize = 16;

type Checked = Result<(), String>;

impl Client {
    /// Why threads wait: for shared access, for what is in flight, for a sync, for all to be acknowledged.
    pub(super) fn blocked(&self) -> [bool; 4] {
        let machine = &self.machine;
        [
            machine.access != Access::Shared,
            machine.write_back.is_in_flight() || machine.bytes.is_migrating(),
            matches!(machine.metadata, Metadata::Syncing { .. }),
            !machine.write_back.is_empty(),
        ]
    }

    /// Values that wait here: dirty, or written to the inode's bytes and not being sent.
    pub(super) fn waiting(&self) -> Vec<u8> {
        let dirty = self.machine.write_back.dirty.chunks();
        let dirty = dirty.flat_map(|(_, chunk)| chunk.pieces().flat_map(|(_, bytes)| bytes.to_vec()));
        let inline = self.machine.bytes.inline();
        let edited = inline
            .into_iter()
            .flat_map(|inline| inline.edited.iter().flat_map(|range| inline.bytes[range].to_vec()));
        dirty.chain(edited).collect()
    }

    /// I3, of an update that the metadata service would believe.
    pub(super) fn check_length_sent(
        &self,
        hint: pb::LengthHint,
        server: &pb::Inode,
        chunks: &FakeChunks,
    ) -> Checked {
        let stored = chunks.content(server.content).len() as u64;
        let is_known = hint.truncate_version == server.truncate_version
            && self.machine.inode.content == server.content
            && !server.is_inline;
        if !is_known || hint.length <= stored.max(server.length) {
            return Ok(());
        }
        Err(format!("I3: the length sent is {}, and chains hold {stored} bytes", hint.length))
    }
}

impl World {
    fn content(&self, inode: &pb::Inode) -> Vec<u8> {
        if inode.is_inline { inode.inline_data.clone() } else { self.chunks.content(inode.content) }
    }

    /// What this client reads of each slot.
    fn view(&self, client: usize) -> Vec<u8> {
        let into = Placement::from_vec(vec![0; READ_BYTES]);
        if let ReadPlan::Chains { read, waiting, .. } = self.clients[client].machine.read(0, &into) {
            let stored = self.chunks.content(read.content.0);
            read.into.copy_from(&stored[..stored.len().min(read.into.len())]);
            for (at, bytes) in waiting {
                bytes.copy_into(&read.into.slice(at..at + bytes.len()));
            }
        }
        let bytes = into.to_vec();
        SLOTS.iter().map(|at| bytes[*at as usize]).collect()
    }

    /// Whether bytes that a client has replaced or cut away itself may not be seen any more.
    fn is_gone(&self, written: &Written) -> bool {
        let newer = |other: &Written| {
            other.client == written.client
                && other.slot == written.slot
                && other.value > written.value
                && !other.may_be_lost
                && !other.may_be_cut
        };
        self.written.iter().any(newer)
    }

    pub(super) fn check(&mut self) -> Checked {
        for client in 0..self.clients.len() {
            let view = self.view(client);
            let state = &mut self.clients[client];
            let machine = &state.machine;
            let change = machine.inode.change;
            if change < std::mem::replace(&mut state.change, change) {
                return Err(format!("what client {client} knows goes back to change {change}"));
            }
            let held = machine.write_back.bytes() as isize;
            if state.memory != held {
                return Err(format!("{} bytes of memory are counted and {held} held", state.memory));
            }
            let is_cutting = matches!(state.holder, Some(Holder::Cut { reply: Some(_), .. }));
            if !is_cutting {
                self.check_view(client, &view)?;
            }
        }
        Ok(())
    }

    /// A client reads its own last write, or something that others have done since.
    fn check_view(&self, client: usize, view: &[u8]) -> Checked {
        for (slot, value) in view.iter().enumerate() {
            let own = self.written.iter().rfind(|written| (written.client, written.slot) == (client, slot));
            let seen = self.written.iter().find(|written| written.value == *value);
            let is_right = match (own, seen) {
                (_, Some(seen)) if seen.slot != slot => false,
                (Some(own), Some(seen)) if seen.client == client => {
                    seen.value == own.value && !own.is_cut_by_self || own.may_be_lost
                }
                (None, Some(seen)) => seen.client != client,
                (Some(_), Some(_)) => true,
                (Some(own), None) => *value == 0 && (own.may_be_cut || own.may_be_lost),
                (None, None) => *value == 0,
            };
            if !is_right {
                return Err(format!(
                    "client {client}: {value} is read in slot {slot}, of {:?}",
                    self.written
                ));
            }
        }
        Ok(())
    }

    /// Nothing is left to do: all is stored.
    pub(super) fn check_end(&self) -> Checked {
        for (client, state) in self.clients.iter().enumerate() {
            if !state.machine.is_clean() || state.machine.access != Access::Shared {
                return Err(format!("client {client} has something to do, and nothing can happen"));
            }
        }
        let inode = self.meta.inode(FILE);
        let mut bytes = self.content(&inode);
        bytes.resize(bytes.len().min(inode.length as usize), 0);
        for (slot, at) in SLOTS.iter().enumerate() {
            let value = bytes.get(*at as usize).copied().unwrap_or_default();
            self.check_stored(slot, value)?;
        }
        let kept = self.written.iter().filter(|written| !written.may_be_cut && !written.may_be_lost);
        let end = kept.map(|written| SLOTS[written.slot] + 1).max().unwrap_or_default();
        let longest = self.written.iter().filter(|written| !written.is_cut_by_self);
        let longest = longest.map(|written| SLOTS[written.slot] + 1).max().unwrap_or_default().max(3);
        if inode.length < end || inode.length > longest {
            return Err(format!("the file is {} bytes long, of {:?}", inode.length, self.written));
        }
        Ok(())
    }

    fn check_stored(&self, slot: usize, value: u8) -> Checked {
        let of_slot = || self.written.iter().filter(|written| written.slot == slot);
        let is_kept = |written: &Written| !written.may_be_cut && !written.may_be_lost;
        let is_right = match of_slot().find(|written| written.value == value) {
            Some(written) => {
                let is_replaced = written.is_overwritten && of_slot().all(is_kept);
                let is_absent = written.is_cut_by_self || written.is_discarded;
                !is_absent && !is_replaced && !self.is_gone(written)
            }
            None => value == 0 && !of_slot().any(is_kept),
        };
        if is_right {
            return Ok(());
        }
        Err(format!("{value} is stored in slot {slot}, of {:?}", self.written))
    }

    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.written.hash(&mut hasher);
        self.faults_left.hash(&mut hasher);
        hash_inode(&self.meta.inode(FILE), &mut hasher);
        self.chunks.all().hash(&mut hasher);
        for client in &self.clients {
            client.hash_into(&mut hasher);
        }
        hasher.finish()
    }
}

fn hash_inode(inode: &pb::Inode, hasher: &mut impl Hasher) {
    let timeless = pb::Inode { mtime_ns: 0, ctime_ns: 0, atime_ns: 0, birth_ns: 0, ..inode.clone() };
    timeless.encode_to_vec().hash(hasher);
}

impl Client {
    fn hash_into(&self, hasher: &mut impl Hasher) {
        let machine = &self.machine;
        hash_inode(&machine.inode, hasher);
        let unverified = machine.unverified_size.map(|hint| (hint.length, hint.truncate_version));
        (machine.length, machine.acknowledged, unverified, &machine.metadata, machine.access).hash(hasher);
        (machine.error_count, self.left()).hash(hasher);
        machine.bytes.is_migrating().hash(hasher);
        if let Some(inline) = machine.bytes.inline() {
            (&inline.bytes, inline.base).hash(hasher);
            inline.edited.iter().for_each(|range| (0, range.start, range.end).hash(hasher));
            inline.syncing.iter().for_each(|range| (1, range.start, range.end).hash(hasher));
        }
        machine.write_back.hash_into(hasher);
        for batch_in_flight in &self.in_flight {
            for write in &batch_in_flight.writes {
                (write.content.0, write.offset, write.payload.to_vec()).hash(hasher);
            }
            batch_in_flight.batch.stamp().hash(hasher);
            batch_in_flight.results.as_ref().map(|results| results.iter().all(Result::is_ok)).hash(hasher);
        }
        if let Some(moving) = &self.moving {
            (&moving.bytes, moving.base, moving.spare.map(|spare| spare.content)).hash(hasher);
            if let Some((inode, ours)) = &moving.result {
                hash_inode(inode, hasher);
                ours.hash(hasher);
            }
        }
        match &self.holder {
            None => 0.hash(hasher),
            Some(Holder::Sync { update, covers, reply }) => {
                let length = update.length.map(|hint| (hint.length, hint.truncate_version));
                (1, covers, length, &update.inline, update.base, update.mtime_ns).hash(hasher);
                update.is_acked_since(machine.ack_count).hash(hasher);
                match reply {
                    None => 0.hash(hasher),
                    Some(Ok(inode)) => hash_inode(inode, hasher),
                    Some(Err(error)) => error.to_string().hash(hasher),
                }
            }
            Some(Holder::Merge { theirs }) => {
                2.hash(hasher);
                theirs.iter().for_each(|inode| hash_inode(inode, hasher));
            }
            Some(Holder::Cut { length, reply }) => {
                (3, length).hash(hasher);
                reply.iter().for_each(|inode| hash_inode(inode, hasher));
            }
        }
        self.stat.is_some().hash(hasher);
        self.stat.iter().for_each(|inode| hash_inode(inode, hasher));
    }
}
