//! Listeners, admission of connections, and the clean stop.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::lock::{Condvar, Mutex};
use crate::panics::caught;
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::net::Shutdown;

use super::budget::Budget;
use super::connection::HANDSHAKE_TIMEOUT;
use super::session::{Common, RegionCache, ServerSession};
use super::stream::{Stream, with_short_path};
use super::{Certificates, Secret, Service, Wire, handshake};
use crate::rdma::Fabric;
use crate::wire::authority::Authority;
use crate::wire::credential::ChannelKind;
use crate::wire::handshake::{ServerHello, encode_server_hello};
use crate::wire::pb::{Claims, claims::Role};

/// How long `stop` waits for the threads of connections.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// One thread in so many is kept for nodes.
const NODES_SHARE: usize = 8;
const _: () = assert!(NODES_SHARE > 1, "clients get most of the threads");

/// How a server listens.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Port 0: chosen by the kernel, see [`Server::tcp_address`].
    pub tcp: Option<SocketAddr>,
    /// Path of the socket of the shm transport, made with mode 0600. Only this user and root may use it.
    pub unix: Option<PathBuf>,
    pub secret: Secret,
    /// Connections served at once, each by one thread; further ones receive "busy".
    pub threads_max: usize,
    /// Bytes of payload that follow frames, or travel by RDMA, and are in memory at once, over all connections.
    pub payload_bytes_max: usize,
    /// Upgrades connections over TCP to RDMA; `None`: none is upgraded.
    pub fabric: Option<Arc<Fabric>>,
    /// For TLS, which is then asked of every connection over TCP; `None`: in clear text.
    pub certificates: Option<Certificates>,
    /// What protects the frames after that. Without certificates: nothing.
    pub wire: Wire,
}

impl ServerOptions {
    /// No listener yet; limits as `StorageConfig` has them.
    pub fn new(secret: Secret) -> ServerOptions {
        ServerOptions {
            tcp: None,
            unix: None,
            secret,
            threads_max: 512,
            payload_bytes_max: 256 << 20,
            fabric: None,
            certificates: None,
            wire: Wire::default(),
        }
    }
}

/// A running server; stops on drop.
pub struct Server {
    inner: Arc<ServerInner>,
    tcp_address: Option<SocketAddr>,
    socket_file: Option<SocketFile>,
    listeners: Mutex<Vec<thread::JoinHandle<()>>>,
}

struct ServerInner {
    service: Arc<dyn Service>,
    threads_max: usize,
    common: Arc<Common>,
    stopping: AtomicBool,
    wake: OwnedFd,
    connections: Mutex<Connections>,
    ended: Condvar,
}

#[derive(Default)]
struct Connections {
    /// A second handle of each socket, to end it from outside.
    sockets: HashMap<u64, Arc<OwnedFd>>,
    /// Those that have not authenticated yet.
    unauthenticated: usize,
    /// Those of programs and mounts.
    clients: usize,
    next: u64,
}

impl Connections {
    fn check(&self, threads_max: usize) {
        assert!(self.sockets.len() <= threads_max, "connections are bounded");
        assert!(
            self.unauthenticated + self.clients <= self.sockets.len(),
            "each connection is counted as one thing"
        );
    }
}

impl Server {
    /// Bind and begin to serve. Errors: `AddrInUse` if a live server holds the socket file or the port.
    pub fn start(options: ServerOptions, service: Arc<dyn Service>) -> io::Result<Server> {
        assert!(options.threads_max > 0 && options.payload_bytes_max > 0, "a server can serve something");
        let tcp = options.tcp.map(listen).transpose()?;
        let tcp_address = tcp.as_ref().map(TcpListener::local_addr).transpose()?;
        let (unix, socket_file) = match &options.unix {
            Some(path) => {
                let (listener, file) = SocketFile::bind(path)?;
                (Some(listener), Some(file))
            }
            None => (None, None),
        };
        let inner = Arc::new(ServerInner {
            service,
            threads_max: options.threads_max,
            common: Arc::new(Common {
                budget: Arc::new(Budget::new(options.payload_bytes_max)),
                regions: RegionCache::default(),
                authority: Authority::new(options.secret),
                fabric: options.fabric,
                certificates: options.certificates,
                wire: options.wire,
            }),
            stopping: AtomicBool::new(false),
            wake: rustix::event::eventfd(0, EventfdFlags::CLOEXEC)?,
            connections: Mutex::default(),
            ended: Condvar::new(),
        });
        let server = Server { inner, tcp_address, socket_file, listeners: Mutex::default() };
        if let Some(listener) = tcp {
            listener.set_nonblocking(true)?;
            server.listen("luciola-tcp", move |inner| {
                inner.accept_all(&listener, || Stream::from_tcp(listener.accept()?.0))
            })?;
        }
        if let Some(listener) = unix {
            listener.set_nonblocking(true)?;
            server.listen("luciola-unix", move |inner| {
                inner.accept_all(&listener, || accept_unix(&listener))
            })?;
        }
        Ok(server)
    }

    fn listen(&self, name: &str, work: impl FnOnce(&Arc<ServerInner>) + Send + 'static) -> io::Result<()> {
        let inner = self.inner.clone();
        let thread = thread::Builder::new().name(name.into()).spawn(move || work(&inner))?;
        self.listeners.lock().push(thread);
        Ok(())
    }

    pub fn tcp_address(&self) -> Option<SocketAddr> {
        self.tcp_address
    }

    pub fn unix_path(&self) -> Option<&Path> {
        self.socket_file.as_ref().map(|file| file.path.as_path())
    }

    /// What says whether tokens are valid. Connections of those that are not any more end at their next request.
    pub fn authority(&self) -> &Authority {
        &self.inner.common.authority
    }

    /// Connections being served now.
    pub fn connection_count(&self) -> usize {
        self.inner.connections.lock().sockets.len()
    }

    /// Stop listening, end all connections and wait up to a second for their threads. Idempotent.
    pub fn stop(&self) {
        self.inner.stopping.store(true, Ordering::SeqCst);
        let _ = rustix::io::write(&self.inner.wake, &1u64.to_ne_bytes());
        for thread in self.listeners.lock().drain(..) {
            let _ = thread.join();
        }
        if let Some(file) = &self.socket_file {
            file.remove();
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        let mut connections = self.inner.connections.lock();
        for socket in connections.sockets.values() {
            // A batch under way still gets its answer out.
            let _ = rustix::net::shutdown(socket, Shutdown::Read);
        }
        while !connections.sockets.is_empty() {
            if self.inner.ended.wait_until(&mut connections, deadline).timed_out() {
                // Their sockets stay open: closing them would promise that the clients' memory is unused (N1).
                log::warn!(
                    "stop: {} connections did not end in time; their sockets stay open",
                    connections.sockets.len()
                );
                break;
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connections = self.connection_count();
        write!(
            f,
            "Server {{ tcp: {:?}, unix: {:?}, {connections} connections }}",
            self.tcp_address,
            self.unix_path()
        )
    }
}

impl ServerInner {
    /// Serve what `accept` brings from `listener` until the server stops.
    fn accept_all(
        self: &Arc<ServerInner>,
        listener: impl AsFd,
        mut accept: impl FnMut() -> io::Result<Stream>,
    ) {
        while !self.stopping.load(Ordering::SeqCst) {
            let mut polled = [PollFd::new(&listener, PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
            let _ = rustix::event::poll(&mut polled, None);
            // Whatever is wrong with one connection, the next ones are accepted.
            let accepted = caught(|| accept().map(|stream| self.admit(stream)));
            match accepted.unwrap_or_else(|| Err(io::Error::other("it panicked"))) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    log::warn!("accepting a connection failed: {error}; retrying");
                    // Out of file descriptors, say: the queue stays readable, so do not spin.
                    thread::sleep(Duration::from_millis(20));
                }
            }
        }
    }

    fn admit(self: &Arc<ServerInner>, mut stream: Stream) {
        let Some(admission) = self.admission(&stream) else {
            log::warn!("connection refused: too many connections");
            // A fresh socket has room for this, so it does not block.
            let busy = encode_server_hello(ChannelKind::Data, ServerHello::Busy);
            let _ = stream.send(&busy, &[], None, Instant::now());
            return;
        };
        let spawned =
            thread::Builder::new().name("luciola-data".into()).spawn(move || admission.serve(stream));
        if let Err(error) = spawned {
            log::warn!("connection closed: starting its thread failed: {error}");
        }
    }

    fn admission(self: &Arc<ServerInner>, stream: &Stream) -> Option<Admission> {
        let socket = stream.handle();
        let mut connections = self.connections.lock();
        // Unauthenticated peers get only part of the threads, so that they cannot exclude those with a token.
        let unauthenticated_max = (self.threads_max / 4).max(2);
        if connections.sockets.len() >= self.threads_max || connections.unauthenticated >= unauthenticated_max
        {
            return None;
        }
        let number = connections.next;
        connections.next += 1;
        connections.unauthenticated += 1;
        let before = connections.sockets.insert(number, socket);
        assert!(before.is_none(), "connections have numbers of their own");
        connections.check(self.threads_max);
        Some(Admission { inner: self.clone(), number, holder: Holder::Unauthenticated })
    }
}

/// One connection's place among those that are served; given back on drop, also by a panic.
struct Admission {
    inner: Arc<ServerInner>,
    number: u64,
    holder: Holder,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Holder {
    Unauthenticated,
    Client,
    Node,
}

impl Admission {
    fn serve(mut self, mut stream: Stream) {
        let deadline = Instant::now() + HANDSHAKE_TIMEOUT;
        let inner = self.inner.clone();
        let admit = |claims: &Claims| self.admit(claims);
        let claims = match welcome(&mut stream, &inner.common, admit, deadline) {
            Ok(claims) => claims,
            Err(error) => {
                note("refused", &error);
                return;
            }
        };
        if inner.stopping.load(Ordering::SeqCst) {
            return;
        }
        let mut session = ServerSession::new(stream, claims, inner.common.clone());
        if let Err(error) = session.run(inner.service.as_ref()) {
            note("closed", &error);
        }
    }
}

/// Shake hands, and protect what follows.
fn welcome(
    stream: &mut Stream,
    common: &Common,
    admit: impl FnOnce(&Claims) -> bool,
    deadline: Instant,
) -> io::Result<Claims> {
    let certificates = common.certificates.as_ref().filter(|_| !stream.shares_memory());
    if let Some(certificates) = certificates {
        stream.begin_tls(certificates.server()?.into(), deadline)?;
    }
    let wire = if certificates.is_some() { common.wire } else { Wire::None };
    let claims = handshake::as_server(stream, ChannelKind::Data, &common.authority, wire, admit, deadline)?;
    stream.begin_records(wire, false)?;
    Ok(claims)
}

impl Admission {
    /// Count the connection by its role. Some threads are reserved for nodes, without which no write of a client
    /// could be forwarded.
    fn admit(&mut self, claims: &Claims) -> bool {
        let mut connections = self.inner.connections.lock();
        let clients_max = self.inner.threads_max - self.inner.threads_max / NODES_SHARE;
        let is_node = claims.role == Role::Service as i32;
        if !is_node && connections.clients >= clients_max {
            return false;
        }
        assert!(self.holder == Holder::Unauthenticated, "a connection is admitted once");
        assert!(connections.unauthenticated > 0, "it was counted when it was accepted");
        connections.unauthenticated -= 1;
        connections.clients += usize::from(!is_node);
        connections.check(self.inner.threads_max);
        self.holder = if is_node { Holder::Node } else { Holder::Client };
        true
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut connections = self.inner.connections.lock();
        let removed = connections.sockets.remove(&self.number);
        assert!(removed.is_some(), "a connection ends once");
        connections.unauthenticated -= usize::from(self.holder == Holder::Unauthenticated);
        connections.clients -= usize::from(self.holder == Holder::Client);
        connections.check(self.inner.threads_max);
        self.inner.ended.notify_all();
    }
}

/// Errors: those of bind(2), which say where this was to listen.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address)
        .map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))
}

/// One line for each connection that ended badly. Peers that merely went away are no warning.
fn note(what: &str, error: &io::Error) {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    let went_away = matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof);
    let level = if went_away { log::Level::Debug } else { log::Level::Warn };
    log::log!(level, "connection {what}: {error}");
}

fn accept_unix(listener: &UnixListener) -> io::Result<Stream> {
    let (stream, _) = listener.accept()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream)?;
    let ours = rustix::process::geteuid();
    // The mode of the socket file says the same; this closes the moment before the mode is set.
    if peer.uid != ours && !peer.uid.is_root() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "a process of another user"));
    }
    Stream::from_unix(stream)
}

/// The file of a listening Unix socket; removed on stop if it is still ours.
struct SocketFile {
    path: PathBuf,
    device_and_inode: (u64, u64),
}

impl SocketFile {
    fn bind(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
        remove_if_dead(path)?;
        let listener = with_short_path(path, |path| UnixListener::bind(path))?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        let metadata = std::fs::symlink_metadata(path)?;
        let device_and_inode = (metadata.dev(), metadata.ino());
        Ok((listener, SocketFile { path: path.to_owned(), device_and_inode }))
    }

    fn remove(&self) {
        if let Ok(metadata) = std::fs::symlink_metadata(&self.path)
            && (metadata.dev(), metadata.ino()) == self.device_and_inode
        {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Remove a socket file that a dead server left. Errors: `AddrInUse` if it lives, or is no socket.
fn remove_if_dead(path: &Path) -> io::Result<()> {
    let metadata = match std::fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !metadata.file_type().is_socket() {
        let message = format!("{} exists and is not a socket", path.display());
        return Err(io::Error::new(io::ErrorKind::AddrInUse, message));
    }
    match with_short_path(path, |path| UnixStream::connect(path)) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        _ => {
            let message = format!("a server listens at {}", path.display());
            Err(io::Error::new(io::ErrorKind::AddrInUse, message))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::TcpStream;

    use super::*;
    use crate::types::{ChainId, ChainVersion, ReadOp, ReadResult, Status, UpdateOp, UpdateResult};
    use crate::{buffer::Placement, net::Sender};

    struct Nothing;

    impl Service for Nothing {
        fn read(&self, _: &[ReadOp], _: &[Placement], _: Instant, _: &mut Vec<ReadResult>) {}
        fn update(
            &self,
            _: Sender<'_>,
            _: &[UpdateOp],
            _: &[Placement],
            _: Instant,
            _: &mut Vec<UpdateResult>,
        ) {
        }
        fn sync(&self, _: Sender<'_>, _: &[(ChainId, ChainVersion)], _: Instant, _: &mut Vec<Status>) {}
    }

    #[test]
    fn after_a_panic_the_next_connection_is_accepted() {
        let server = Server::start(ServerOptions::new(Secret::new([1; 32])), Arc::new(Nothing)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let mut is_first = true;
        let accept_all = move |inner: &Arc<ServerInner>| {
            inner.accept_all(&listener, || {
                let (stream, _) = listener.accept()?;
                assert!(!std::mem::take(&mut is_first), "a mistake, on purpose");
                Stream::from_tcp(stream)
            });
        };
        server.listen("luciola-test", accept_all).unwrap();
        let mut bytes = [0; 8];
        assert_eq!(TcpStream::connect(address).unwrap().read(&mut bytes).unwrap(), 0, "closed");
        assert_ne!(TcpStream::connect(address).unwrap().read(&mut bytes).unwrap(), 0, "greeted");
        server.stop();
    }
}
