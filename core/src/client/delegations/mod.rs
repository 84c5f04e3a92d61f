//! Opens that this client answers by itself: what the metadata service has delegated to it, and until when.
//!
//! The first open of a file for reading asks the service, the second asks for a delegation as well (if this client has a
//! lease), and from the third on opens and closes are local, until the delegation is recalled or the lease ends. The poll
//! (`poller`) extends the lease and brings recalls.
//!
//! None of this happens until a reply to an open says that the service delegates: by default it does not.
//!
//! - G1 An open is answered here only before the end of the lease, which is counted from the sending of the poll that was
//!   answered last, on the boot clock, and shortened by the drift. What was delegated before a lease ended is not used
//!   when there is a new one.
//! - G2 What is recalled is dropped before the service hears of it, and the reply to an open that had begun before then
//!   brings no delegation any more, of whatever file: it may be the one that was recalled.
//! - G3 The hold of the open that brought a delegation stays until the delegation and the last handle that was opened
//!   by it are gone. So bytes of a file that others remove stay readable, and handles are not counted one by one.
//! - G4 Another user is not answered by it, and gets no bytes by it.

mod hold;
mod poller;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

pub use hold::ReadHold;
pub use poller::RecallPoller;

use super::identity::Identity;
use crate::lock::{Condvar, Mutex};
use crate::wire::pb;

/// Files delegated to this client: with their bytes, up to `inline_bytes` (4 KiB), 40 MiB at most.
const ENTRIES_MAX: usize = 8192;
/// How many of the oldest go at once when there is no room.
const ENTRIES_DROPPED: usize = ENTRIES_MAX / 8;
/// Files that are known to have been opened once: half of these at least.
const OPENED_MAX: usize = 16_384;
/// Part of the lease, in percent, that this client counts on: clocks differ by at most 5 %.
const LEASE_PERCENT: u64 = 95;

struct DelegatedFile {
    inode: Arc<pb::Inode>,
    identity: Arc<Identity>,
    /// The number of the request that opened the file.
    grant: u64,
    hold: Arc<ReadHold>,
}

#[derive(Default)]
struct DelegationTable {
    /// By `clock`; 0: there was none yet.
    lease_until_ns: u64,
    /// Of the service that gives the lease; 0: not known.
    incarnation: u64,
    /// Grows when delegations are dropped that an open in progress may bring.
    epoch: u64,
    entries: HashMap<u64, DelegatedFile>,
    /// Files that were opened lately, and before that.
    opened: [HashSet<u64>; 2],
    /// What the next poll returns.
    returned: Vec<pb::Delegation>,
    is_wanted: bool,
    is_stopped: bool,
}

/// What is to be asked for beside an open.
#[derive(Clone, Copy, Debug)]
pub struct Asking {
    pub delegate: bool,
    epoch: u64,
}

pub enum Open {
    /// As the service would describe the file now, and the hold that keeps its bytes.
    Local(Arc<pb::Inode>, Arc<ReadHold>),
    Ask(Asking),
}

#[derive(Default)]
pub struct Delegations {
    /// The service gives leases, as far as is known.
    is_offered: AtomicBool,
    state: Mutex<DelegationTable>,
    changed: Condvar,
}

impl DelegationTable {
    fn is_leased(&self, now_ns: u64) -> bool {
        now_ns < self.lease_until_ns
    }

    /// Note that the file is opened. Return whether it was opened lately.
    fn note_opened(&mut self, inode: u64) -> bool {
        let [young, old] = &mut self.opened;
        if young.contains(&inode) || old.contains(&inode) {
            return true;
        }
        if young.len() >= OPENED_MAX / 2 {
            *old = std::mem::take(young);
        }
        young.insert(inode);
        false
    }

    /// Drop everything: nothing that was delegated until now is used again (G1, G2).
    fn clear(&mut self) -> HashMap<u64, DelegatedFile> {
        self.epoch += 1;
        std::mem::take(&mut self.entries)
    }

    /// Make room for one more. What is dropped is returned.
    fn make_room(&mut self) -> Vec<DelegatedFile> {
        if self.entries.len() < ENTRIES_MAX {
            return Vec::new();
        }
        let mut grants: Vec<(u64, u64)> =
            self.entries.iter().map(|(inode, entry)| (entry.grant, *inode)).collect();
        grants.sort_unstable();
        grants.truncate(ENTRIES_DROPPED);
        self.returned
            .extend(grants.iter().map(|(grant, inode)| pb::Delegation { inode: *inode, grant: *grant }));
        grants.iter().filter_map(|(_, inode)| self.entries.remove(inode)).collect()
    }
}

impl Delegations {
    /// A file is opened for reading, by number.
    pub fn open(&self, inode: u64, identity: &Identity, now_ns: u64) -> Open {
        if !self.is_offered.load(Ordering::Relaxed) {
            return Open::Ask(Asking { delegate: false, epoch: 0 });
        }
        let mut state = self.state.lock();
        let is_leased = state.is_leased(now_ns);
        if is_leased
            && let Some(entry) = state.entries.get(&inode)
            && *entry.identity == *identity
        {
            return Open::Local(entry.inode.clone(), entry.hold.clone());
        }
        let is_again = state.note_opened(inode);
        state.is_wanted |= is_again;
        Open::Ask(Asking { delegate: is_again && is_leased, epoch: state.epoch })
    }

    /// A reply to an open says that the service gives leases.
    pub fn offer(&self) {
        if !self.is_offered.load(Ordering::Relaxed) {
            self.is_offered.store(true, Ordering::Relaxed);
        }
    }

    /// The reply to an open that asked for a delegation brought one. If it is not used it is returned (G2).
    pub fn granted(
        &self,
        asking: Asking,
        grant: u64,
        inode: Arc<pb::Inode>,
        identity: &Arc<Identity>,
        hold: &Arc<ReadHold>,
    ) {
        let id = inode.id;
        let mut state = self.state.lock();
        // Holds that are dropped take locks of their own: after this one.
        let _replaced: Option<DelegatedFile>;
        let _dropped: Vec<DelegatedFile>;
        if asking.epoch != state.epoch || state.is_stopped || inode.bytes_withheld || inode.others_write {
            state.returned.push(pb::Delegation { inode: id, grant });
        } else {
            _dropped = state.make_room();
            let entry = DelegatedFile { inode, identity: identity.clone(), grant, hold: hold.clone() };
            _replaced = state.entries.insert(id, entry);
        }
        drop(state);
    }

    /// Return whether files are opened repeatedly at a service that delegates.
    pub fn is_poll_wanted(&self) -> bool {
        if !self.is_offered.load(Ordering::Relaxed) {
            return false;
        }
        let state = self.state.lock();
        state.is_wanted && !state.is_stopped
    }

    /// Wait, or until it is over.
    fn pause(&self, length: Duration) {
        let until = Instant::now() + length;
        let mut state = self.state.lock();
        while !state.is_stopped && Instant::now() < until {
            self.changed.wait_for(&mut state, until.saturating_duration_since(Instant::now()));
        }
    }

    /// The next poll.
    pub fn poll(&self) -> pb::AwaitRecallsRequest {
        let state = self.state.lock();
        pb::AwaitRecallsRequest {
            incarnation: state.incarnation,
            returned: state.returned.clone(),
            ..Default::default()
        }
    }

    /// Take in the reply to a poll that was sent at `sent_ns`.
    pub fn polled(
        &self,
        poll: &pb::AwaitRecallsRequest,
        sent_ns: u64,
        reply: &pb::AwaitRecallsReply,
        now_ns: u64,
    ) {
        let mut state = self.state.lock();
        let mut dropped: Vec<DelegatedFile> = Vec::new();
        if reply.incarnation != state.incarnation || reply.lease_ms == 0 {
            dropped.extend(state.clear().into_values());
            state.returned.clear();
            state.incarnation = reply.incarnation;
            state.lease_until_ns = 0;
            if reply.lease_ms == 0 {
                state.is_wanted = false;
                self.is_offered.store(false, Ordering::Relaxed);
            }
            return self.leave_lock(state, dropped);
        }
        // The service has it. What was added since is behind it.
        assert!(
            state.returned.starts_with(&poll.returned),
            "only replies to polls take out what is returned"
        );
        state.returned.drain(..poll.returned.len());
        if !state.is_leased(now_ns) {
            // The service counts the lease for longer: it may not have ended there.
            let ended = state.clear();
            let grants =
                ended.iter().map(|(inode, entry)| pb::Delegation { inode: *inode, grant: entry.grant });
            state.returned.extend(grants);
            dropped.extend(ended.into_values());
        }
        let lease_ns = u64::from(reply.lease_ms) * 1_000_000 / 100 * LEASE_PERCENT;
        match reply.recalled.is_empty() {
            true => state.lease_until_ns = state.lease_until_ns.max(sent_ns + lease_ns),
            // Such a poll extends nothing: others wait for one lease at most, whichever messages are lost.
            false => state.epoch += 1,
        }
        for recalled in &reply.recalled {
            if state.entries.get(&recalled.inode).is_some_and(|entry| entry.grant == recalled.grant) {
                dropped.extend(state.entries.remove(&recalled.inode));
            }
            state.returned.push(*recalled);
        }
        self.leave_lock(state, dropped);
    }

    /// Drop what closes files after the lock, never under it.
    fn leave_lock(&self, state: crate::lock::MutexGuard<'_, DelegationTable>, dropped: Vec<DelegatedFile>) {
        drop(state);
        drop(dropped);
    }

    /// Answer nothing here any more. Return whether the service was ever asked for a lease.
    pub fn stop(&self) -> bool {
        let mut state = self.state.lock();
        state.is_stopped = true;
        state.lease_until_ns = 0;
        let dropped = state.clear().into_values().collect();
        let was_wanted = state.is_wanted;
        self.changed.notify_all();
        self.leave_lock(state, dropped);
        was_wanted
    }

    /// Count files that are delegated.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.state.lock().entries.len()
    }
}
