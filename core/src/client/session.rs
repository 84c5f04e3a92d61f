//! What a client does by the clock: it extends its session, sends closes, writes back by age, and reports to a
//! metadata service that was restarted which files it holds open.
//!
//! One thread keeps time and never waits; what has to wait runs on other threads, each kind at most once at a time. The
//! session is extended by a thread of its own: whatever else hangs, the cluster keeps hearing this client.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::lock::Mutex;
use crate::panics::caught;

use super::close_batcher::CLOSES_MAX;
use super::identity::Identity;
use super::open_file::WRITE_BACK;
use super::open_files::OpenFiles;
use super::options::Options;
use super::shared::Shared;
use super::workers::Workers;
use crate::clock;
use crate::cluster::routing::{Routing, RoutingTable};
use crate::cluster::rpc::Lane;
use crate::error::Result;
use crate::types::ClientId;
use crate::wire::pb::{self, Method};

/// Longest sleep of the clock thread.
const TICK: Duration = Duration::from_millis(250);
/// Closes and appended bytes wait this long for company.
const GATHER: Duration = Duration::from_millis(50);
const _: () =
    assert!(GATHER.as_nanos() < TICK.as_nanos(), "the clock thread looks more often than it is late");
const _: () = assert!(
    GATHER.as_nanos() * 4 <= WRITE_BACK.as_nanos(),
    "E4: of the time to write back, most is left for the storage nodes"
);
/// Dirty bytes are written back after one to two of these, unless requested before.
const AGE: Duration = Duration::from_secs(1);
/// One attempt to extend the session.
const EXTEND_TIMEOUT: Duration = Duration::from_secs(2);
/// Time for the leave notice: without it mgmtd removes the client after the session timeout.
const LEAVE_TIMEOUT: Duration = Duration::from_millis(500);
/// The metadata service is sent the live write sessions this often: it ends old ones that are not among them.
const SESSIONS_INTERVAL: Duration = Duration::from_secs(60);
/// Part of the session timeout, in percent, that this client counts on: clocks differ by at most 5 %.
const TIMEOUT_PERCENT: u64 = 95;
/// Read holds reported in the one call that replaces them all: a lane message is at most 8 MiB.
const HOLDS_MAX: usize = 700_000;

/// One kind of background task, which runs at most once at a time.
#[derive(Default)]
struct SingleFlight(AtomicBool);

impl SingleFlight {
    /// Runs `job` on a shared thread unless the last one is still running.
    fn send(session: &Arc<Session>, which: fn(&Session) -> &SingleFlight, job: fn(&Session)) {
        SingleFlight::send_to(&session.shared.background, session, which, job);
    }

    /// As `send`, on a thread of `workers`.
    fn send_to(
        workers: &Workers,
        session: &Arc<Session>,
        which: fn(&Session) -> &SingleFlight,
        job: fn(&Session),
    ) {
        if which(session).0.swap(true, Ordering::AcqRel) {
            return;
        }
        let running = Running { session: session.clone(), which };
        workers.submit(move || job(&running.session));
    }
}

/// Ends with its job, also with one that panics or is never begun.
struct Running {
    session: Arc<Session>,
    which: fn(&Session) -> &SingleFlight,
}

impl Drop for Running {
    fn drop(&mut self) {
        let was_running = (self.which)(&self.session).0.swap(false, Ordering::AcqRel);
        assert!(was_running || thread::panicking(), "a task of a kind runs once at a time");
    }
}

/// What a metadata service has in memory lasts as long as its process, and its term as primary.
#[derive(Clone, Copy, Debug, PartialEq)]
struct MetaTerm {
    node: u32,
    incarnation: u64,
    epoch: u64,
}

impl MetaTerm {
    /// Of the metadata service that is to be called.
    fn of(routing: &Routing) -> Option<MetaTerm> {
        let node = routing.primary_meta()?;
        Some(MetaTerm { node: node.id, incarnation: node.incarnation, epoch: node.epoch })
    }
}

/// Call the metadata service that routing says, from the moment it does. While there is none, the last one.
fn call_primary(lane: Arc<Lane>, routing: &RoutingTable) {
    let mut called = None;
    routing.listen(move |routing| {
        let term = MetaTerm::of(routing);
        if term.is_some() && term != called {
            called = term;
            lane.set_addresses(routing.meta_addresses());
            lane.retry_now();
        }
    });
}

pub struct Session {
    id: ClientId,
    request: pb::ExtendClientRequest,
    files: Arc<OpenFiles>,
    shared: Arc<Shared>,
    identity: Arc<Identity>,
    routing: Arc<RoutingTable>,
    mgmtd: Arc<Lane>,
    meta_lane: Arc<Lane>,
    interval_ms: AtomicU64,
    /// The metadata service that knows our holds.
    known: Mutex<Option<MetaTerm>>,
    extending: SingleFlight,
    /// One thread, which only extends the session.
    extender: Workers,
    closing: SingleFlight,
    appending: SingleFlight,
    aging: SingleFlight,
    holding: SingleFlight,
    comparing: SingleFlight,
    /// Sessions that the service did not know when they were last compared. A close may have been under way.
    suspected: Mutex<Vec<pb::WriteSession>>,
    stopping: AtomicBool,
    clock: Mutex<Option<JoinHandle<()>>>,
}

impl Session {
    #[allow(clippy::too_many_arguments)] // the parts of one client, put together in one place
    pub fn start(
        id: ClientId,
        options: &Options,
        files: Arc<OpenFiles>,
        identity: Arc<Identity>,
        routing: Arc<RoutingTable>,
        mgmtd: Arc<Lane>,
        meta_lane: Arc<Lane>,
        deadline: Instant,
    ) -> Result<Arc<Session>> {
        let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned();
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let request = pb::ExtendClientRequest {
            client: id.0,
            host,
            description: options.description.clone(),
            kind: options.kind.into(),
            started_unix_ms: started.as_millis() as u64,
            leaving: false,
            pid: std::process::id(),
            release: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let session = Session::new(id, request, files, identity, routing, mgmtd, meta_lane);
        session.extend_by(deadline)?;
        *session.known.lock() = session.meta_term();
        session.start_clock()?;
        Ok(session)
    }

    fn new(
        id: ClientId,
        request: pb::ExtendClientRequest,
        files: Arc<OpenFiles>,
        identity: Arc<Identity>,
        routing: Arc<RoutingTable>,
        mgmtd: Arc<Lane>,
        meta_lane: Arc<Lane>,
    ) -> Arc<Session> {
        call_primary(meta_lane.clone(), &routing);
        Arc::new(Session {
            id,
            request,
            shared: files.shared().clone(),
            files,
            identity,
            routing,
            mgmtd,
            meta_lane,
            interval_ms: AtomicU64::new(1000),
            known: Mutex::default(),
            extending: SingleFlight::default(),
            extender: Workers::new("luciola-extend", 1),
            closing: SingleFlight::default(),
            appending: SingleFlight::default(),
            aging: SingleFlight::default(),
            holding: SingleFlight::default(),
            comparing: SingleFlight::default(),
            suspected: Mutex::default(),
            stopping: AtomicBool::new(false),
            clock: Mutex::new(None),
        })
    }

    fn start_clock(self: &Arc<Self>) -> Result<()> {
        let ticking = self.clone();
        let clock =
            thread::Builder::new().name("luciola-clock".to_owned()).spawn(move || ticking.run_clock())?;
        *self.clock.lock() = Some(clock);
        Ok(())
    }

    pub fn cluster_id(&self) -> String {
        self.routing.current().cluster_id.clone()
    }

    /// Tick until the session is stopped. A panic costs one tick: without this thread the session would lapse, and nothing
    /// would be sent by age.
    fn keep_ticking(&self, mut tick: impl FnMut()) {
        while !self.stopping.load(Ordering::Acquire) {
            if caught(&mut tick).is_none() {
                log::error!("client {}: a tick of its clock panicked; the clock continues", self.id);
                thread::sleep(TICK);
            }
        }
    }

    fn run_clock(self: &Arc<Self>) {
        let mut extended = Instant::now();
        let mut aged = Instant::now();
        let mut compared = Instant::now();
        self.keep_ticking(|| {
            let closes = self.shared.wait_for_closes(TICK);
            let appended = self.shared.dirty_files.has_appended();
            if closes || appended {
                let gathered = self.shared.closes.count() >= CLOSES_MAX;
                thread::sleep(if gathered { GATHER / 50 } else { GATHER });
            }
            if closes {
                SingleFlight::send(self, |session| &session.closing, |session| session.shared.send_closes());
            }
            if appended {
                let job = |session: &Session| session.shared.dirty_files.write_back_appended();
                SingleFlight::send(self, |session| &session.appending, job);
            }
            let interval = Duration::from_millis(self.interval_ms.load(Ordering::Relaxed));
            let due = if self.shared.fence.is_raised() { interval.min(AGE) } else { interval };
            if extended.elapsed() >= due {
                extended = Instant::now();
                SingleFlight::send_to(&self.extender, self, |session| &session.extending, Session::extend);
                self.mgmtd.close_idle();
                self.meta_lane.close_idle();
            }
            if aged.elapsed() >= AGE {
                aged = Instant::now();
                SingleFlight::send(
                    self,
                    |session| &session.aging,
                    |session| session.shared.dirty_files.write_back_aged(),
                );
            }
            if compared.elapsed() >= SESSIONS_INTERVAL {
                compared = Instant::now();
                SingleFlight::send(self, |session| &session.comparing, Session::compare_sessions);
            }
            self.follow_meta();
        });
    }

    fn extend(&self) {
        if let Err(error) = self.extend_by(Instant::now() + EXTEND_TIMEOUT) {
            log::warn!(
                "client {}: extending the session failed: {error}; it is retried, and lapses after its timeout",
                self.id
            );
        }
    }

    fn extend_by(&self, deadline: Instant) -> Result<()> {
        let sent_ns = clock::now_ns();
        let reply: pb::ExtendClientReply =
            self.mgmtd.call(Method::MgmtdExtendClient, &self.request, deadline)?;
        if self.shared.fence.is_raised() {
            self.register_again()?;
        }
        let timeout_ns = u64::from(reply.session_timeout_ms) * 1_000_000 / 100 * TIMEOUT_PERCENT;
        self.shared.fence.open_until(sent_ns + timeout_ns);
        if reply.interval_ms > 0 {
            self.interval_ms.store(u64::from(reply.interval_ms), Ordering::Relaxed);
        }
        Ok(())
    }

    /// The cluster may have forgotten this client: what it has open is reported, and what was lost fails (N2).
    fn register_again(&self) -> Result<()> {
        assert!(self.shared.fence.is_raised(), "N2: nothing continues before it is registered again");
        log::warn!(
            "client {}: session lapsed: mgmtd was not reached in time; registering open files again",
            self.id
        );
        self.files.register_again(&self.identity, self.open_files(0))
    }

    /// All that is open, for the metadata service of that incarnation.
    fn open_files(&self, incarnation: u64) -> pb::HoldRequest {
        let mut inodes = self.files.held();
        if inodes.len() > HOLDS_MAX {
            log::warn!(
                "client {}: {} files are open for reading; re-registering only {HOLDS_MAX}, others may fail with ESTALE",
                self.id,
                inodes.len()
            );
            inodes.truncate(HOLDS_MAX);
        }
        pb::HoldRequest { inodes, incarnation, sessions: self.files.write_sessions(), ..Default::default() }
    }

    /// Ends sessions at the metadata service that this client does not know, and the other way round: a session that
    /// is unknown twice is lost.
    fn compare_sessions(&self) {
        let sessions = self.files.write_sessions();
        let request = pb::HoldRequest { keep_holds: true, sessions, ..Default::default() };
        match self.shared.meta.hold(&self.identity, request) {
            Ok(unknown) => {
                let mut suspected = self.suspected.lock();
                let lost: Vec<_> = unknown.iter().filter(|one| suspected.contains(one)).copied().collect();
                *suspected = unknown;
                drop(suspected);
                self.files.lose_sessions(&lost);
            }
            Err(error) => log::warn!(
                "client {}: comparing write sessions failed: {error}; retried in a minute",
                self.id
            ),
        }
    }

    fn meta_term(&self) -> Option<MetaTerm> {
        MetaTerm::of(&self.routing.current())
    }

    /// Report what is held to a metadata service that has taken over or was restarted.
    fn follow_meta(self: &Arc<Self>) {
        let term = self.meta_term();
        if term.is_some() && *self.known.lock() != term {
            SingleFlight::send(self, |session| &session.holding, Session::report_holds);
        }
    }

    fn report_holds(&self) {
        let Some(term) = self.meta_term() else { return };
        let incarnation = term.incarnation;
        if let Err(error) = self.shared.meta.hold(&self.identity, self.open_files(incarnation)) {
            log::warn!(
                "client {}: reporting open files to the restarted metadata service failed: {error}; retried",
                self.id
            );
            return;
        }
        *self.known.lock() = Some(term);
    }

    /// Ends the clock. Closes that wait are the caller's.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.shared.closes.wake();
        if let Some(clock) = self.clock.lock().take() {
            // A panic of the clock has been reported by the panic hook.
            let _ = clock.join();
        }
        // An extension that arrives after the client has left would bring it back.
        self.extender.stop();
    }

    /// Send mgmtd the leave notice, and stop following routing.
    pub fn leave(&self) {
        let request = pb::ExtendClientRequest { leaving: true, ..self.request.clone() };
        let notice: Result<pb::ExtendClientReply> =
            self.mgmtd.call(Method::MgmtdExtendClient, &request, Instant::now() + LEAVE_TIMEOUT);
        if let Err(error) = notice {
            log::info!(
                "client {}: leave notice to mgmtd failed: {error}; it removes this client after the session timeout",
                self.id
            );
        }
        self.routing.stop();
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;
    use crate::buffer::Placement;
    use crate::client::fake::{self, FakeMeta};
    use crate::client::{CreateOptions, File, OpenOptions, WriteOffset, inode_path, name_path};
    use crate::cluster::rpc::LaneOptions;
    use crate::wire::credential::Token;

    fn session(files: &Arc<OpenFiles>, listener: &TcpListener) -> Arc<Session> {
        let address = listener.local_addr().unwrap();
        let credential = Token::new(Vec::new(), [1; 32]).unwrap();
        let lane = |addresses| Lane::new(addresses, credential.clone(), LaneOptions::default());
        let (mgmtd, meta) = (lane(vec![address.to_string()]), lane(Vec::new()));
        let routing = RoutingTable::fixed(Routing::default());
        let request = pb::ExtendClientRequest::default();
        Session::new(ClientId(1), request, files.clone(), Arc::default(), routing, mgmtd, meta)
    }

    #[test]
    fn appended_bytes_are_written_back_before_they_have_aged_and_others_append_after_them() {
        let chunks = Arc::default();
        let metas = FakeMeta::new(Arc::clone(&chunks));
        let files = fake::client(&chunks, &metas, 1 << 20);
        let session = session(&files, &TcpListener::bind("127.0.0.1:0").unwrap());
        // What has aged is never written back.
        session.aging.0.store(true, Ordering::Relaxed);
        session.start_clock().unwrap();
        let identity = Arc::default();
        let options = OpenOptions { read: true, write: true, append: true, ..OpenOptions::default() };
        for (number, length) in [(5, 20), (6, 100_000)] {
            let create = CreateOptions { permissions: 0o644, exclusive: true, layout: None };
            let path = name_path(1, format!("f{number}").as_bytes());
            let file = File::create(&files, &identity, path, options, create).unwrap();
            let line = Placement::from_vec(vec![1; length]);
            assert_eq!(file.write(WriteOffset::Append, &line, false).unwrap(), 0);
            let held =
                || metas.inode(number).inline_data.len() + chunks.content(metas.inode(number).content).len();
            let deadline = Instant::now() + Duration::from_secs(60);
            while held() < length {
                assert!(Instant::now() < deadline, "{length} bytes wait until they have aged");
                thread::yield_now();
            }
            let other = fake::client(&chunks, &metas, 1 << 20);
            let theirs = File::open(&other, &identity, inode_path(number), options).unwrap();
            assert_eq!(theirs.write(WriteOffset::Append, &line, false).unwrap(), length as u64);
            file.fsync(false).unwrap();
            let into = Placement::from_vec(vec![0; 3 * length]);
            assert_eq!(theirs.read_at(0, &into).unwrap(), 2 * length);
            assert!(into.slice(0..2 * length).to_vec().iter().all(|&byte| byte == 1));
        }
        session.stop();
    }

    #[test]
    fn a_standby_that_alone_was_published_for_a_moment_is_left_again() {
        let meta = |id: u32, epoch| pb::Node {
            id,
            kind: pb::NodeKind::NodeMeta as i32,
            status: pb::NodeStatus::Connected as i32,
            lane_address: format!("127.0.0.1:{id}"),
            epoch,
            ..pb::Node::default()
        };
        let routing =
            |nodes| Routing::default().apply(pb::Routing { nodes, ..pb::Routing::default() }).unwrap();
        let chunks = Arc::default();
        let files = fake::client(&chunks, &FakeMeta::new(Arc::clone(&chunks)), 1 << 20);
        let session = session(&files, &TcpListener::bind("127.0.0.1:0").unwrap());
        let held = fake::hold_background(files.shared()); // nothing is reported to the standby, which would refuse it
        for nodes in [vec![meta(100, 7), meta(101, 0)], vec![meta(101, 0)], vec![meta(100, 7), meta(101, 0)]]
        {
            let called = format!("127.0.0.1:{}", nodes[0].id);
            session.routing.replace(routing(nodes));
            assert_eq!(session.meta_lane.addresses(), [called]);
            session.follow_meta();
            session.known.lock().get_or_insert(MetaTerm { node: 100, incarnation: 0, epoch: 7 });
        }
        let before = session.meta_lane.changes();
        session.routing.replace(routing(vec![meta(100, 7)]));
        assert_eq!(session.meta_lane.changes(), before, "another one that has gone is no news");
        session.routing.replace(routing(vec![meta(100, 8)]));
        assert!(session.meta_lane.changes() > before, "calls that it has refused are sent to it again");
        drop(held);
        session.stop();
    }

    #[test]
    fn after_a_tick_that_panics_the_clock_continues() {
        let chunks = Arc::default();
        let files = fake::client(&chunks, &FakeMeta::new(Arc::clone(&chunks)), 1 << 20);
        let session = session(&files, &TcpListener::bind("127.0.0.1:0").unwrap());
        let mut ticks = 0;
        session.keep_ticking(|| {
            ticks += 1;
            assert_ne!(ticks, 1, "a mistake, on purpose");
            session.stopping.store(ticks == 3, Ordering::Release);
        });
        assert_eq!(ticks, 3);
    }

    #[test]
    fn session_is_extended_while_all_shared_threads_wait() {
        let chunks = Arc::default();
        let files = fake::client(&chunks, &FakeMeta::new(Arc::clone(&chunks)), 1 << 20);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let session = session(&files, &listener);
        session.interval_ms.store(1, Ordering::Relaxed);
        let held = fake::hold_background(files.shared());
        session.start_clock().unwrap();
        let (report, reached) = crossbeam_channel::bounded(1);
        thread::spawn(move || report.send(listener.accept().is_ok()));
        assert_eq!(reached.recv_timeout(Duration::from_secs(60)), Ok(true), "the manager hears the client");
        drop(held);
        session.stop();
    }
}
