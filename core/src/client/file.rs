//! One open file: a handle on an [`OpenInode`], with its own mode, errors still to be reported, and read-ahead.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::close_batcher::Close;
use super::identity::Identity;
use super::meta::inode_path;
use super::open_file::{DirectWrite, IoMode, OpenInode, WriteOffset, lost, stale, write_direct};
use super::open_files::{OpenFiles, Opening};
use super::readahead::Readahead;
use super::shared::Shared;
use crate::buffer::Placement;
use crate::error::{Error, Kind, Result};
use crate::wire::pb;
use rustix::io::Errno;

/// A longer write is carried out in slices, each with a deadline of its own.
const DIRECT_BYTES_MAX: usize = 4 << 20;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    pub read: bool,
    pub write: bool,
    pub append: bool,
    pub truncate: bool,
    /// Acknowledged by the chains before a write returns (O_DIRECT, strict consistency).
    pub direct: bool,
    pub follow: bool,
}

/// What `create` adds to [`OpenOptions`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateOptions {
    /// umask already applied.
    pub permissions: u32,
    pub exclusive: bool,
    /// What is unset, or all of it, is the directory's.
    pub layout: Option<pb::Layout>,
}

pub struct File {
    inode: Arc<OpenInode>,
    files: Arc<OpenFiles>,
    identity: Arc<Identity>,
    session: u64,
    options: OpenOptions,
    /// Errors that fsync and close have reported, and those that write has.
    reported: AtomicU64,
    written: AtomicU64,
    /// Errors before it was opened.
    opened_errors: u64,
    /// Write sessions of this file that were lost before it was opened here.
    lost_sessions: u64,
    readahead: Readahead,
    closed: AtomicBool,
}

/// A write at an offset, of a list.
pub struct WriteAt {
    pub file: Arc<File>,
    pub offset: u64,
    pub payload: Placement,
}

/// Direct writes of many files in one call, out of their own memory. `None`: that is not possible now, use
/// `write_through`. Overlapping ones have no order.
pub fn write_many(shared: &Shared, writes: &[WriteAt]) -> Vec<Option<Result<()>>> {
    let mut outcomes = Vec::with_capacity(writes.len());
    let mut requests = Vec::new();
    let mut places = Vec::new();
    for (place, WriteAt { file, offset, payload }) in writes.iter().enumerate() {
        let checked = file.check_write();
        if checked.is_ok() && !file.options.append {
            let (inode, written) = (&file.inode, &file.written);
            requests.push(DirectWrite { inode, offset: *offset, payload: payload.clone(), written });
            places.push(place);
        }
        outcomes.push(checked.err().map(Err));
    }
    for (place, outcome) in places.into_iter().zip(write_direct(shared, &requests)) {
        outcomes[place] = outcome;
    }
    outcomes
}

impl File {
    pub fn open(
        files: &Arc<OpenFiles>,
        identity: &Arc<Identity>,
        path: pb::Path,
        options: OpenOptions,
    ) -> Result<Arc<File>> {
        let request = pb::OpenRequest {
            path: Some(path.clone()),
            read: options.read,
            write: options.write,
            truncate: options.truncate,
            follow: options.follow,
            ..Default::default()
        };
        let opening = Opening::begin(files);
        // A file that other handles here are writing must be alone while it is emptied.
        let known = if options.truncate && path.path.is_empty() { files.find(path.at) } else { None };
        match known {
            Some(inode) => {
                let reply = inode.truncate(0, || files.shared().meta.open(identity, request))?;
                File::opened(opening, files, identity, reply, options)
            }
            None => {
                let reply = files.shared().meta.open(identity, request)?;
                let change = reply.inode.as_ref().map_or(0, |inode| inode.change);
                File::opened(opening, files, identity, reply, options)?.empty(change)
            }
        }
    }

    pub fn create(
        files: &Arc<OpenFiles>,
        identity: &Arc<Identity>,
        path: pb::Path,
        options: OpenOptions,
        create: CreateOptions,
    ) -> Result<Arc<File>> {
        let request = pb::CreateRequest {
            path: Some(path),
            permissions: create.permissions,
            exclusive: create.exclusive,
            truncate: options.truncate,
            write: options.write,
            read: options.read,
            in_chunks: options.write && files.shared().creates_large_files(),
            layout: create.layout,
            ..Default::default()
        };
        let opening = Opening::begin(files);
        let reply = files.shared().meta.create(identity, request)?;
        let created = reply.created;
        let change = reply.inode.as_ref().map_or(0, |inode| inode.change);
        let file = File::opened(opening, files, identity, reply, options)?;
        if created && options.write {
            file.inode.on_create();
            return Ok(file);
        }
        file.empty(change)
    }

    /// The file was at `change` when it had been emptied, if it was opened for that. Where it was being written here, or
    /// has been synced since, that was not known before it was opened: it is emptied once more, alone.
    fn empty(self: Arc<File>, change: u64) -> Result<Arc<File>> {
        let written = self.inode.is_written_besides(self.session) || self.inode.change() > change;
        if self.options.truncate && written && (self.inode.length() > 0 || !self.inode.is_clean()) {
            set_length(&self.files, &self.identity, self.inode.id(), 0, self.session)?;
        }
        Ok(self)
    }

    fn opened(
        mut opening: Opening,
        files: &Arc<OpenFiles>,
        identity: &Arc<Identity>,
        reply: pb::InodeReply,
        options: OpenOptions,
    ) -> Result<Arc<File>> {
        let mut inode =
            reply.inode.ok_or_else(|| Error::new(Kind::CorruptData, "opened without an inode"))?;
        let id = inode.id;
        let alone_ns = (!inode.others_write).then_some(opening.begun_ns);
        let inode = loop {
            files.shared().metadata_cache.learn_opened(inode.clone());
            if let Some(opened) = opening.opened(&inode) {
                break opened;
            }
            let close_request = || close_request(identity, id, reply.session, options.read);
            inode = files
                .shared()
                .meta
                .stat_open(identity, id)
                .inspect_err(|_| files.shared().close_later(close_request()))?;
        };
        if reply.session != 0 {
            inode.add_session(reply.session, identity, alone_ns);
        }
        if options.read {
            files.hold(inode.id());
        }
        let (errors, lost_sessions) = (inode.errors(), inode.lost_sessions());
        Ok(Arc::new(File {
            inode,
            files: files.clone(),
            identity: identity.clone(),
            session: reply.session,
            options,
            reported: AtomicU64::new(errors),
            written: AtomicU64::new(errors),
            opened_errors: errors,
            lost_sessions,
            readahead: Readahead::new(),
            closed: AtomicBool::new(false),
        }))
    }

    fn shared(&self) -> &Arc<Shared> {
        self.files.shared()
    }

    pub fn inode(&self) -> &Arc<OpenInode> {
        &self.inode
    }

    pub fn options(&self) -> OpenOptions {
        self.options
    }

    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    fn check_readable(&self) -> Result<()> {
        self.check_open()?;
        if self.options.read {
            return Ok(());
        }
        Err(Error::invalid("read from a file opened write-only").with_errno(Errno::BADF))
    }

    fn check_writable(&self) -> Result<()> {
        self.check_open()?;
        if self.options.write {
            return Ok(());
        }
        Err(Error::invalid("write to a file opened read-only").with_errno(Errno::BADF))
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::invalid("the file is closed").with_errno(Errno::BADF));
        }
        if self.is_lost() {
            return Err(lost());
        }
        Ok(())
    }

    /// Whether the metadata service has ended its write session.
    fn is_lost(&self) -> bool {
        let lost = self.inode.lost_sessions();
        assert!(lost >= self.lost_sessions, "a session that was lost stays so");
        self.options.write && lost != self.lost_sessions
    }

    /// Ask the metadata service what it knows: another client may have written.
    pub fn refresh(&self) -> Result<()> {
        self.check_open()?;
        self.inode.refresh(&self.identity, Duration::ZERO)
    }

    /// The length that a read up to `end` goes by; asked again if the file may have grown elsewhere.
    pub fn length_for(&self, end: u64) -> Result<u64> {
        self.check_readable()?;
        self.inode.refresh_for(&self.identity, end, self.mode())?;
        Ok(self.inode.length())
    }

    fn mode(&self) -> IoMode {
        if self.options.direct { IoMode::Direct } else { IoMode::Buffered }
    }

    /// Read up to `into.len()` bytes; fewer only at the end of the file.
    pub fn read_at(&self, offset: u64, into: &Placement) -> Result<usize> {
        self.check_readable()?;
        self.inode.read(&self.identity, offset, into, self.mode())
    }

    /// As `read_at`, for readers that have no cache below them: sequential small reads are read ahead.
    pub fn read_ahead_at(&self, offset: u64, into: &Placement) -> Result<usize> {
        self.check_readable()?;
        if self.options.direct {
            return self.inode.read(&self.identity, offset, into, IoMode::Direct);
        }
        self.readahead.read(self.shared(), &self.inode, &self.identity, offset, into)
    }

    /// Reads with another mode than the file was opened with (fcntl may change O_DIRECT).
    pub fn read_through(&self, offset: u64, into: &Placement, mode: IoMode) -> Result<usize> {
        self.check_open()?;
        self.inode.read(&self.identity, offset, into, mode)
    }

    /// As `read_through`, into memory that its owner can do without; the bytes read, which may lie elsewhere.
    pub fn read_anywhere(&self, offset: u64, into: &Placement, mode: IoMode) -> Result<Placement> {
        self.check_open()?;
        self.inode.read_anywhere(&self.identity, offset, into, mode)
    }

    /// Write all of `payload`; `keep`: its memory may be kept and changed. Returns the offset it went to.
    pub fn write(&self, place: WriteOffset, payload: &Placement, keep: bool) -> Result<u64> {
        self.write_through(place, payload, keep, self.mode())
    }

    pub fn write_through(
        &self,
        place: WriteOffset,
        payload: &Placement,
        keep: bool,
        mode: IoMode,
    ) -> Result<u64> {
        self.check_write()?;
        let place = if self.options.append { WriteOffset::Append } else { place };
        if let (IoMode::Direct, WriteOffset::At(offset)) = (mode, place)
            && let Some(result) = self.write_directly(offset, payload)
        {
            return result.map(|()| offset);
        }
        let result = self.inode.write(place, payload, keep, mode);
        if mode == IoMode::Direct {
            // Reported to this writer now; fsync reports it to the others.
            self.written.fetch_max(self.inode.errors(), Ordering::AcqRel);
        }
        result
    }

    /// Write out of the caller's memory. `None`: that is not possible now (W1), or too much at once.
    fn write_directly(&self, offset: u64, payload: &Placement) -> Option<Result<()>> {
        if payload.len() > DIRECT_BYTES_MAX {
            return None;
        }
        let (inode, written) = (&self.inode, &self.written);
        let write = DirectWrite { inode, offset, payload: payload.clone(), written };
        write_direct(self.shared(), &[write]).pop().expect("one outcome for one write")
    }

    /// Make a range read as zeros, at the price of what is there; the length stays.
    pub fn punch_hole(&self, range: Range<u64>) -> Result<()> {
        self.check_write()?;
        self.inode.punch_hole(range, self.mode())
    }

    fn check_write(&self) -> Result<()> {
        self.check_writable()?;
        // A program that never asks should not write for hours into a file that does not take it.
        match self.inode.error_since(self.written.load(Ordering::Acquire)) {
            // Unless another thread has reported it meanwhile.
            Some((errors, error)) if self.written.fetch_max(errors, Ordering::AcqRel) < errors => Err(error),
            _ => Ok(()),
        }
    }

    /// Return the error of a write-back that this handle has not reported yet.
    fn report(&self) -> Result<()> {
        match self.inode.error_since(self.reported.load(Ordering::Acquire)) {
            Some((errors, error)) => {
                self.reported.store(errors, Ordering::Release);
                self.written.fetch_max(errors, Ordering::AcqRel);
                Err(error)
            }
            None => Ok(()),
        }
    }

    /// What close(2) of one descriptor does: other clients that open the file now see everything.
    pub fn flush(&self) -> Result<()> {
        self.check_open()?;
        self.inode.on_first_close();
        let synced = if self.options.write { self.inode.sync() } else { Ok(()) };
        self.report().and(synced)
    }

    /// Everything that was acknowledged of the file before the call survives the loss of power: what any client wrote,
    /// also through handles that are closed. `data_only` leaves out times.
    pub fn fsync(&self, data_only: bool) -> Result<()> {
        self.check_open()?;
        let synced = self.inode.fsync(&self.identity, data_only);
        self.report().and(synced)
    }

    pub fn truncate(&self, length: u64) -> Result<pb::Inode> {
        self.check_writable()?;
        set_length(&self.files, &self.identity, self.inode.id(), length, self.session)
    }

    /// Make the file at least `length` bytes long, with zeros; never shorter, whatever others write meanwhile.
    pub fn extend(&self, length: u64) -> Result<()> {
        self.check_writable()?;
        self.inode.extend(&self.identity, self.session, length)
    }

    /// End the handle: everything is acknowledged and synced, or the error says why not. Idempotent.
    pub fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        self.inode.on_first_close();
        let synced = match self.is_lost() {
            true => Err(lost()),
            false if self.options.write => self.close_written(),
            false => Ok(false),
        };
        if !matches!(synced, Ok(true)) {
            self.shared().close_later(self.last_close(synced.is_err()));
        }
        self.end();
        self.report().and(synced.map(drop))
    }

    /// End the handle in the background: what is dirty is written back first.
    pub fn release(self: &Arc<Self>) {
        if self.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.inode.on_first_close();
        if !self.options.write || self.inode.is_clean() {
            self.finish();
            return;
        }
        let file = self.clone();
        if !self.shared().background.submit(move || file.finish_dirty()) {
            self.finish_dirty();
        }
    }

    fn finish_dirty(&self) {
        let synced = self.inode.sync();
        let failed = synced.is_err();
        if let Err(error) = synced {
            self.inode.fail(error.context("close"));
        }
        self.shared().close_later(self.last_close(failed));
        self.end();
    }

    fn finish(&self) {
        self.shared().close_later(self.last_close(false));
        self.end();
    }

    /// End the session. Where a write or its report has failed, the chains may hold more than was reported.
    fn last_close(&self, failed: bool) -> Close {
        self.inode.drop_session(self.session);
        let mut close = self.close_request();
        close.one.measure = failed || self.has_failed();
        close
    }

    fn has_failed(&self) -> bool {
        let errors = self.inode.errors();
        assert!(errors >= self.opened_errors, "I5: errors that were counted stay so");
        errors != self.opened_errors
    }

    fn end(&self) {
        if self.options.read {
            self.files.unhold(self.inode.id());
        }
        self.files.release(self.inode.id());
    }

    /// Write back, and send the final update with the close itself: one call. True: the close has been sent.
    fn close_written(&self) -> Result<bool> {
        self.inode.flush();
        let metadata = self.inode.lock_metadata();
        let guard = self.inode.guard_sync();
        let Some(update) = self.inode.final_update() else { return Ok(false) };
        if update.deferred.is_some() {
            self.inode.on_sync_failed();
            drop((guard, metadata));
            return self.inode.sync().map(|()| false);
        }
        let mut close = self.close_request();
        close.one.measure = self.has_failed();
        close.one.length = update.length;
        close.one.mtime_ns = update.mtime_ns;
        close.one.has_inline = update.inline.is_some();
        close.one.inline_data = update.inline.clone().unwrap_or_default();
        close.one.inline_base = update.base;
        close.one.clear_set_id = update.clears_set_id;
        self.inode.begin_close(self.session);
        match self.close_one(close) {
            Ok(inode) => {
                self.inode.on_synced(inode, &update, false);
                // The session has ended; the next sync must not name it.
                self.inode.drop_session(self.session);
                Ok(true)
            }
            Err(error) => {
                self.inode.on_sync_failed();
                // Another client changed the small file: merge, with the session still open.
                let merges = error.kind() == Kind::Conflict;
                if merges {
                    self.inode.close_refused();
                }
                drop((guard, metadata));
                if merges { self.inode.sync().map(|()| false) } else { Err(error) }
            }
        }
    }

    fn close_one(&self, close: Close) -> Result<pb::Inode> {
        let outcome = self.shared().meta.close(&self.identity, vec![close.one])?.pop();
        let missing =
            || Error::new(Kind::CorruptData, "a close that carried metadata was answered without an inode");
        stale(outcome.expect("one outcome for one close"))?.ok_or_else(missing)
    }

    fn close_request(&self) -> Close {
        close_request(&self.identity, self.inode.id(), self.session, self.options.read)
    }
}

fn close_request(identity: &Arc<Identity>, inode: u64, session: u64, read_hold: bool) -> Close {
    let one = pb::CloseOne { inode, session, read_hold, ..Default::default() };
    Close { identity: identity.clone(), one }
}

impl Drop for File {
    fn drop(&mut self) {
        if *self.closed.get_mut() {
            return;
        }
        if self.options.write && !self.inode.is_clean() {
            log::warn!(
                "inode {}: handle dropped without close; what is dirty is written back now",
                self.inode.id()
            );
            self.finish_dirty();
        } else {
            self.finish();
        }
    }
}

/// Cut or extend a file, which may be open here.
pub fn set_length(
    files: &Arc<OpenFiles>,
    identity: &Identity,
    inode: u64,
    length: u64,
    session: u64,
) -> Result<pb::Inode> {
    let request = pb::SetAttrRequest {
        path: Some(inode_path(inode)),
        length: Some(length),
        session,
        ..Default::default()
    };
    set_attributes(files, identity, request)
}

/// As `set_attributes`, but of a file that was made here and is not closed yet, what can be deferred is sent with the rest.
pub fn set_attributes_deferred(
    files: &Arc<OpenFiles>,
    identity: &Arc<Identity>,
    request: pb::SetAttrRequest,
) -> Result<pb::Inode> {
    let id = request.path.as_ref().map_or(0, |path| path.at);
    match files.find(id).and_then(|open| open.defer_setattr(identity, &request)) {
        Some(seen) => Ok(seen),
        None => set_attributes(files, identity, request),
    }
}

/// Change attributes of an inode (by number), which may be open here.
pub fn set_attributes(
    files: &Arc<OpenFiles>,
    identity: &Identity,
    request: pb::SetAttrRequest,
) -> Result<pb::Inode> {
    let id = request.path.as_ref().map_or(0, |path| path.at);
    let times = request.mtime_ns.is_some() || request.mtime_now;
    let open = files.find(id);
    if let Some(open) = &open {
        open.flush_deferred()?;
    }
    let (length, sets_mode) = (request.length, request.permissions.is_some());
    let inode = match (&open, length) {
        (Some(open), Some(length)) => {
            let change = || {
                let inode = files.shared().meta.set_attr(identity, request)?;
                Ok(pb::InodeReply { inode: Some(inode), ..Default::default() })
            };
            open.truncate(length, change)?.inode.unwrap_or_default()
        }
        (Some(open), None) if times => open.set_times(|| files.shared().meta.set_attr(identity, request))?,
        _ => files.shared().meta.set_attr(identity, request)?,
    };
    files.shared().metadata_cache.learn(inode.clone());
    // It may have been opened meanwhile, or closed.
    let Some(open) = files.find_changed(&inode) else { return Ok(inode) };
    if times && length.is_some() {
        open.forget_mtime();
    }
    if sets_mode {
        open.keep_set_id();
    }
    if length.is_none() {
        open.apply_own_change(&inode);
    } else {
        open.apply_server_inode(&inode);
    }
    Ok(open.local_view())
}
