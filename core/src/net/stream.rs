//! A connected socket: whole messages in and out, with deadlines, pieces of memory and file descriptors. It may be
//! upgraded to RDMA; then the socket only shows whether the peer is still there.

use std::fmt;
use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::num::NonZero;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType,
};

use super::Endpoint;
use super::busy_poll::{BusyPoll, Waiters};
use super::protection::{Protection, ProtectionError};
use super::records::Wire;
use crate::buffer::{self, Placement, total_length};
use crate::cancel;
use crate::rdma::{Link, Remains};

/// Sockets block at most this long in one call; longer deadlines are several calls. So a socket's timeout is
/// set once, not once per request.
const TICK: Duration = Duration::from_secs(1);
const _: () = assert!(cancel::SLICE.as_millis() < TICK.as_millis(), "who is watched looks more often");
/// Longest path of a Unix socket that the kernel takes, with its final zero.
const SUN_PATH_BYTES: usize = 108;

/// Threads of this process that wait for answers of nodes on this host.
static WAITERS: LazyLock<Waiters> =
    LazyLock::new(|| Waiters::new(std::thread::available_parallelism().map_or(1, NonZero::get)));

pub(crate) struct Stream {
    /// Frames go over it, once there is one. Before the socket, so that it is gone when the peer sees that end (A4).
    link: Option<Box<Link>>,
    /// After an error of the link, which nothing can be sent over any more.
    remains: Option<Remains>,
    /// What is between the frames and the socket.
    protection: Protection,
    fd: Arc<OwnedFd>,
    shares_memory: bool,
    /// `None`: replies are waited for without polling.
    busy_poll: Option<BusyPoll>,
    receive_timeout: Duration,
    send_timeout: Duration,
}

impl Stream {
    pub(crate) fn connect(endpoint: &Endpoint, timeout: Duration) -> io::Result<Stream> {
        match endpoint {
            Endpoint::Tcp(address) => {
                Stream::from_tcp(TcpStream::connect_timeout(address, timeout.max(Duration::from_millis(1)))?)
            }
            Endpoint::Rdma { address, .. } => Stream::connect(&Endpoint::Tcp(*address), timeout),
            Endpoint::Unix(path) => Stream::connect_unix(path, timeout),
        }
    }

    fn connect_unix(path: &Path, timeout: Duration) -> io::Result<Stream> {
        let flags = SocketFlags::CLOEXEC;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        // Bounds `connect` too, which waits while the server's backlog is full.
        sockopt::set_socket_timeout(&fd, Timeout::Send, Some(timeout.max(Duration::from_millis(1))))?;
        with_short_path(path, |path| Ok(rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?))?;
        Stream::new(fd, true)
    }

    /// Connect to a socket of that name in this network namespace (an abstract Unix socket), without waiting. Replies on
    /// it are not polled for: services take longer than it is worth looking, and some requests wait until something changes.
    /// Errors: no process has the name, its owner is neither this user nor root, or its backlog is full.
    pub(crate) fn connect_abstract(name: &[u8]) -> io::Result<Stream> {
        // One that blocks would wait for room in a backlog that a stopped server may never take anything from.
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&fd, &SocketAddrUnix::new_abstract_name(name)?)?;
        let owner = sockopt::socket_peercred(&fd)?.uid;
        if !owner.is_root() && owner != rustix::process::geteuid() {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user has taken the name"));
        }
        rustix::io::ioctl_fionbio(&fd, false)?;
        let mut stream = Stream::new(fd, true)?;
        stream.stop_polling();
        Ok(stream)
    }

    /// Begin to connect over TCP. Before anything else, `finish_connecting`.
    pub(crate) fn begin_tcp(address: SocketAddr) -> io::Result<Stream> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&fd, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => Stream::from_tcp(fd.into()),
            Err(error) => Err(error.into()),
        }
    }

    /// Wait for a connection that was begun. Another thread that shuts the socket down ends the wait.
    pub(crate) fn finish_connecting(&mut self, deadline: Instant) -> io::Result<()> {
        if self.shares_memory {
            return Ok(());
        }
        if !is_ready_by(&self.fd, PollFlags::OUT, deadline)? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        sockopt::socket_error(&self.fd)??;
        rustix::io::ioctl_fionbio(&self.fd, false)?;
        Ok(())
    }

    pub(crate) fn from_tcp(stream: TcpStream) -> io::Result<Stream> {
        stream.set_nodelay(true)?;
        // A host that vanished without a word is noticed while a connection is idle.
        sockopt::set_socket_keepalive(&stream, true)?;
        Stream::new(stream.into(), false)
    }

    /// Where the other end is; `None`: on this host, over a Unix socket. An end that has gone is nowhere.
    pub(crate) fn peer(&self) -> Option<IpAddr> {
        if self.shares_memory {
            return None;
        }
        let peer = self.fd.try_clone().and_then(|fd| TcpStream::from(fd).peer_addr());
        Some(peer.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |address| address.ip()))
    }

    pub(crate) fn from_unix(stream: UnixStream) -> io::Result<Stream> {
        Stream::new(stream.into(), true)
    }

    fn new(fd: OwnedFd, shares_memory: bool) -> io::Result<Stream> {
        sockopt::set_socket_timeout(&fd, Timeout::Recv, Some(TICK))?;
        sockopt::set_socket_timeout(&fd, Timeout::Send, Some(TICK))?;
        Ok(Stream {
            link: None,
            remains: None,
            protection: Protection::None,
            fd: Arc::new(fd),
            shares_memory,
            busy_poll: shares_memory.then(BusyPoll::default),
            receive_timeout: TICK,
            send_timeout: TICK,
        })
    }

    /// Wait for replies without polling from here on.
    pub(super) fn stop_polling(&mut self) {
        self.busy_poll = None;
    }

    /// Send and receive everything from here on over `link`.
    pub(super) fn upgrade_to_rdma(&mut self, link: Link) {
        assert!(
            !self.is_remote_direct() && !self.shares_memory,
            "only a TCP connection is upgraded, and once"
        );
        self.link = Some(Box::new(link));
    }

    /// Whether frames travel by RDMA.
    pub(super) fn is_remote_direct(&self) -> bool {
        self.link.is_some() || self.remains.is_some()
    }

    /// Shake hands by TLS, which protects everything from here on. Errors: why the peer is not trusted; as `receive`.
    pub(crate) fn begin_tls(
        &mut self,
        connection: rustls::Connection,
        deadline: Instant,
    ) -> Result<(), ProtectionError> {
        assert!(!self.is_protected() && !self.shares_memory, "a TCP connection is protected once");
        self.protection = Protection::tls(connection);
        loop {
            // An alert says to the peer why it is not trusted.
            let is_ready = self.protection.handshake();
            let due = self.protection.take_due();
            let sent = self.send_clear(&due, &[], None, deadline);
            if is_ready? {
                return Ok(sent?);
            }
            sent?;
            self.receive_protected(deadline)?;
        }
    }

    /// End TLS, as both ends do at this byte, and protect what follows by its keys as `wire` says.
    pub(super) fn begin_records(&mut self, wire: Wire, is_client: bool) -> io::Result<()> {
        self.protection = std::mem::take(&mut self.protection).into_records(wire, is_client)?;
        Ok(())
    }

    /// Whether who is between the ends could change what is sent.
    pub(crate) fn is_protected(&self) -> bool {
        !matches!(self.protection, Protection::None)
    }

    /// Do something with the link. After an error its device works on no memory any more, before this returns.
    pub(super) fn over_link<T>(
        &mut self,
        work: impl FnOnce(&mut Link, BorrowedFd<'_>) -> io::Result<T>,
    ) -> io::Result<T> {
        let link = self.link.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let result = work(link, self.fd.as_fd());
        if result.as_ref().is_err_and(|error| error.kind() != io::ErrorKind::WouldBlock) {
            self.reset_link();
        }
        result
    }

    #[cfg_attr(not(feature = "rdma"), allow(unreachable_code, reason = "there is no link"))]
    fn reset_link(&mut self) {
        if let Some(link) = self.link.take() {
            self.remains = Some(link.reset());
        }
    }

    /// The link, for questions.
    pub(super) fn link(&self) -> Option<&Link> {
        self.link.as_deref()
    }

    /// Whether both ends are on one host and file descriptors can be passed.
    pub(crate) fn shares_memory(&self) -> bool {
        self.shares_memory
    }

    /// Send `head` and then `parts`, with `passed` beside the first byte.
    pub(crate) fn send(
        &mut self,
        head: &[u8],
        parts: &[Placement],
        passed: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> io::Result<()> {
        let total = head.len() + total_length(parts);
        if self.is_remote_direct() {
            assert!(total == head.len() && passed.is_none(), "nothing follows a frame over RDMA");
            return self.over_link(|link, socket| link.send(head, socket, deadline));
        }
        if !self.is_protected() {
            return self.send_clear(head, parts, passed, deadline);
        }
        assert!(passed.is_none(), "descriptors are passed on one host");
        // Taken, since sending needs the rest of the stream.
        let mut protection = std::mem::take(&mut self.protection);
        let sent = protection.send(head, parts, |bytes| self.send_clear(bytes, &[], None, deadline));
        self.protection = protection;
        sent
    }

    /// Send as it is.
    fn send_clear(
        &mut self,
        head: &[u8],
        parts: &[Placement],
        passed: Option<BorrowedFd<'_>>,
        deadline: Instant,
    ) -> io::Result<()> {
        let total = head.len() + total_length(parts);
        let mut sent = 0;
        while sent < total {
            let mut pieces: Vec<IoSlice<'_>> = Vec::with_capacity(parts.len() + 1);
            if sent < head.len() {
                pieces.push(IoSlice::new(&head[sent..]));
            }
            pieces.extend(buffer::sources(parts, sent.saturating_sub(head.len())));
            match self.send_once(&pieces, passed.filter(|_| sent == 0)) {
                Ok(count) => sent += count,
                Err(Errno::INTR) => not_cancelled()?,
                Err(Errno::AGAIN) => self.wait_longer(Timeout::Send, deadline)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn send_once(&self, pieces: &[IoSlice<'_>], passed: Option<BorrowedFd<'_>>) -> rustix::io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = passed.map(|fd| [fd]);
        if let Some(fds) = &fds {
            let fits = control.push(SendAncillaryMessage::ScmRights(fds));
            assert!(fits, "there is space for one file descriptor");
        }
        rustix::net::sendmsg(&self.fd, pieces, &mut control, SendFlags::NOSIGNAL)
    }

    /// Fill `target`. Errors: `UnexpectedEof` if the peer closed, `TimedOut`, also for a call that is cancelled.
    pub(crate) fn receive(&mut self, target: &mut [u8], deadline: Instant) -> io::Result<()> {
        let mut filled = 0;
        while self.is_remote_direct() && filled < target.len() {
            let until = next_look(deadline);
            match self.over_link(|link, socket| link.receive_some(&mut target[filled..], socket, until)) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if Instant::now() >= deadline {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    not_cancelled()?;
                }
                Err(error) => return Err(error),
            }
        }
        while self.is_protected() && filled < target.len() {
            match self.protection.take_text(&mut target[filled..])? {
                0 => self.receive_protected(deadline)?,
                count => filled += count,
            }
        }
        while filled < target.len() {
            if !self.has_answer_by(deadline)? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.fit_timeout(Timeout::Recv, deadline)?;
            match rustix::net::recv(&self.fd, &mut target[filled..], RecvFlags::WAITALL) {
                Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok((count, _)) => filled += count,
                Err(Errno::INTR) => not_cancelled()?,
                Err(Errno::AGAIN) => self.wait_longer(Timeout::Recv, deadline)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Receive once for what is protected. Errors: as `receive`.
    fn receive_protected(&mut self, deadline: Instant) -> io::Result<()> {
        loop {
            self.fit_timeout(Timeout::Recv, deadline)?;
            match self.protection.receive_from(&self.fd) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(_) => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => not_cancelled()?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.wait_longer(Timeout::Recv, deadline)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Fill the placements in order.
    pub(crate) fn receive_into(&mut self, parts: &[Placement], deadline: Instant) -> io::Result<()> {
        if self.is_protected() {
            for part in parts {
                let mut filled = 0;
                while filled < part.len() {
                    match self.protection.take_text_into(part, filled)? {
                        0 => self.receive_protected(deadline)?,
                        count => filled += count,
                    }
                }
            }
            return Ok(());
        }
        let total = total_length(parts);
        let mut filled = 0;
        while filled < total {
            self.fit_timeout(Timeout::Recv, deadline)?;
            let mut control = RecvAncillaryBuffer::default();
            let mut pieces = buffer::targets(parts, filled);
            match rustix::net::recvmsg(&self.fd, &mut pieces, &mut control, RecvFlags::WAITALL) {
                Ok(received) if received.bytes == 0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(received) => filled += received.bytes,
                Err(Errno::INTR) => not_cancelled()?,
                Err(Errno::AGAIN) => self.wait_longer(Timeout::Recv, deadline)?,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Receive what is there, at least one byte (0: the peer closed its side), and file descriptors passed
    /// with it. Errors: `WouldBlock` after a tick without anything.
    pub(crate) fn receive_some(&mut self, target: &mut [u8], passed: &mut Vec<OwnedFd>) -> io::Result<usize> {
        if self.is_remote_direct() {
            return self.over_link(|link, socket| link.receive_some(target, socket, Instant::now() + TICK));
        }
        if self.is_protected() {
            loop {
                match self.protection.take_text(target)? {
                    0 if self.protection.receive_from(&self.fd)? == 0 => return Ok(0),
                    0 => {}
                    count => return Ok(count),
                }
            }
        }
        if !self.shares_memory {
            return Ok(rustix::net::recv(&self.fd, target, RecvFlags::empty())?.0);
        }
        if !self.has_input_by(Instant::now() + TICK)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut pieces = [IoSliceMut::new(target)];
        let received = rustix::net::recvmsg(&self.fd, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                passed.extend(fds);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more file descriptors than expected"));
        }
        Ok(received.bytes)
    }

    /// As `has_input_by`, for an answer that may come at once.
    fn has_answer_by(&mut self, deadline: Instant) -> io::Result<bool> {
        let Some(busy_poll) = &mut self.busy_poll else { return self.has_input_by(deadline) };
        let waiter = WAITERS.enter();
        let begun = Instant::now();
        let mut polled = [PollFd::new(&self.fd, PollFlags::IN)];
        let has_come =
            || rustix::event::poll(&mut polled, Some(&Timespec::default())).is_ok_and(|count| count > 0);
        let has_come =
            busy_poll.poll(&waiter, || begun.elapsed(), has_come) || has_input_by(&self.fd, deadline)?;
        if has_come {
            busy_poll.came_after(begun.elapsed());
        }
        Ok(has_come)
    }

    /// Wait until there is something to receive, or the peer has closed; false: not by the deadline, or the call was
    /// cancelled.
    ///
    /// Only for Unix sockets: `recv` on one is also woken when the peer takes what was sent to it, so that each request
    /// would wake both ends once for nothing. Who polls for input is left alone.
    fn has_input_by(&self, deadline: Instant) -> io::Result<bool> {
        if self.shares_memory { has_input_by(&self.fd, deadline) } else { Ok(true) }
    }

    /// Whether the peer has neither closed nor sent anything unasked.
    pub(crate) fn is_quiet(&mut self) -> bool {
        if self.remains.is_some()
            || !self.protection.is_quiet()
            || self.link.as_mut().is_some_and(|link| !link.is_quiet())
        {
            return false;
        }
        let mut byte = [0u8; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        matches!(rustix::net::recv(&self.fd, &mut byte, flags), Err(Errno::AGAIN))
    }

    /// Shut down sending, and return the socket, whose end the caller waits for, with what is left
    /// of the link: its device works on no memory any more (A3).
    pub(crate) fn close_sending(mut self) -> (Arc<OwnedFd>, Option<Remains>) {
        self.reset_link();
        let _ = rustix::net::shutdown(&self.fd, Shutdown::Write);
        (self.fd, self.remains.filter(Remains::is_held))
    }

    /// Another handle of the socket, to end it from outside.
    pub(crate) fn handle(&self) -> Arc<OwnedFd> {
        self.fd.clone()
    }

    /// Make the next call return no later than `deadline` (or a tick, if that is sooner).
    fn fit_timeout(&mut self, which: Timeout, deadline: Instant) -> io::Result<()> {
        let current = if which == Timeout::Recv { self.receive_timeout } else { self.send_timeout };
        let left = cancel::slice(deadline.saturating_duration_since(Instant::now()));
        if left < current { self.set_timeout(which, left) } else { Ok(()) }
    }

    /// After a tick: an error if the deadline has passed or the call is cancelled, else a fitting timeout for the next call.
    fn wait_longer(&mut self, which: Timeout, deadline: Instant) -> io::Result<()> {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        not_cancelled()?;
        self.set_timeout(which, cancel::slice(left))
    }

    fn set_timeout(&mut self, which: Timeout, left: Duration) -> io::Result<()> {
        // Zero would mean "no timeout".
        let timeout = left.clamp(Duration::from_millis(1), TICK);
        let current = if which == Timeout::Recv { &mut self.receive_timeout } else { &mut self.send_timeout };
        if *current != timeout {
            *current = timeout;
            sockopt::set_socket_timeout(&self.fd, which, Some(timeout))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match (self.is_remote_direct(), self.shares_memory) {
            (true, _) => "rdma",
            (false, true) => "shm",
            (false, false) => "tcp",
        };
        write!(f, "Stream {{ {kind}, {:?} }}", self.fd)
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn has_input_by(fd: &OwnedFd, deadline: Instant) -> io::Result<bool> {
    is_ready_by(fd, PollFlags::IN, deadline)
}

fn is_ready_by(fd: &OwnedFd, what: PollFlags, deadline: Instant) -> io::Result<bool> {
    let mut polled = [PollFd::new(fd, what)];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(cancel::slice(left)).map_err(io::Error::other)?;
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Ok(0) if Instant::now() < deadline => {}
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if cancel::is_cancelled() {
            return Ok(false);
        }
    }
}

/// Errors: `TimedOut` for a call that was cancelled.
fn not_cancelled() -> io::Result<()> {
    if cancel::is_cancelled() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
}

/// When a wait until `deadline` looks whether its call is cancelled.
fn next_look(deadline: Instant) -> Instant {
    let now = Instant::now();
    now + cancel::slice(deadline.saturating_duration_since(now))
}

/// Call `work` with a name of the socket at `path` that is short enough for the kernel.
pub(crate) fn with_short_path<R>(path: &Path, work: impl FnOnce(&Path) -> io::Result<R>) -> io::Result<R> {
    if path.as_os_str().as_bytes().len() < SUN_PATH_BYTES {
        return work(path);
    }
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the path of a socket"));
    };
    let directory = rustix::fs::open(parent, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&directory);
    work(&PathBuf::from(format!("/proc/self/fd/{number}")).join(name))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn status(thread: i32, field: &str) -> String {
        let status = std::fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    }

    fn wait_until_asleep(thread: i32) {
        while status(thread, "State:") != "S" {
            std::thread::yield_now();
        }
    }

    /// How often a thread fell asleep between its question and the answer, which comes well after the peer has taken
    /// the question.
    fn sleeps_of_one_question() -> u64 {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut ours, mut theirs) = (Stream::from_unix(ours).unwrap(), Stream::from_unix(theirs).unwrap());
        let later = Instant::now() + Duration::from_secs(600);
        let (sender, receiver) = mpsc::channel();
        let asker = std::thread::spawn(move || {
            let this = rustix::thread::gettid().as_raw_nonzero().get();
            let sleeps = || status(this, "voluntary_ctxt_switches:").parse::<u64>().unwrap();
            let before = sleeps();
            ours.send(b"?", &[], None, later).unwrap();
            sender.send(this).unwrap();
            ours.receive(&mut [0], later).unwrap();
            sleeps() - before
        });
        let asker_id = receiver.recv().unwrap();
        wait_until_asleep(asker_id);
        theirs.receive_some(&mut [0], &mut Vec::new()).unwrap();
        wait_until_asleep(asker_id);
        theirs.send(b"!", &[], None, later).unwrap();
        asker.join().unwrap()
    }

    #[test]
    fn who_waits_for_an_answer_sleeps_on_when_the_peer_takes_the_question() {
        // Once in a while a thread sleeps for a reason of its own.
        let sleeps: Vec<u64> = (0..5).map(|_| sleeps_of_one_question()).collect();
        assert!(sleeps.contains(&1), "a waiting thread fell asleep so many times: {sleeps:?}");
    }

    #[test]
    fn who_waits_for_a_service_does_not_keep_others_from_looking_for_their_answers() {
        let name = format!("luciola-stream-test-{}", std::process::id());
        let address = SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap();
        let listener =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
                .unwrap();
        rustix::net::bind(&listener, &address).unwrap();
        rustix::net::listen(&listener, 1).unwrap();
        assert!(Stream::connect_abstract(name.as_bytes()).unwrap().busy_poll.is_none());
    }
}
