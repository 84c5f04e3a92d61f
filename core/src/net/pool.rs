//! A bounded pool of connections to one endpoint.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use crate::lock::{Condvar, Mutex};

use super::connect_error::{ConnectError, with_current_token};
use super::connection::Connection;
use super::{Credential, Endpoint, Token};

/// Connections idle for this long are closed: each costs the server a thread.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Connections to one endpoint. The one used last is used next; connections that broke while idle are noticed.
pub struct Pool {
    endpoint: Endpoint,
    credential: Credential,
    connections_max: usize,
    polls: bool,
    state: Mutex<PoolState>,
    freed: Condvar,
}

#[derive(Default)]
struct PoolState {
    /// The one used last is at the end.
    idle: Vec<Idle>,
    /// Idle, in use and being opened.
    open: usize,
}

struct Idle {
    connection: Connection,
    since: Instant,
    /// Of the token that it was opened with.
    generation: u64,
}

impl Pool {
    /// At most `connections_max` are open at once; callers beyond that wait.
    pub fn new(endpoint: Endpoint, credential: impl Into<Credential>, connections_max: usize) -> Pool {
        assert!(connections_max > 0, "a pool has at least one connection");
        let (credential, state) = (credential.into(), Mutex::default());
        Pool { endpoint, credential, connections_max, polls: true, state, freed: Condvar::new() }
    }

    /// A pool whose callers sleep until a reply comes, instead of polling for it first.
    pub fn without_polling(self) -> Pool {
        Pool { polls: false, ..self }
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// A connection for one or several batches; it returns to the pool on drop unless a request failed on it.
    /// Errors: `Io` (timed out) if all are in use until `deadline`.
    pub fn get(&self, deadline: Instant) -> Result<Pooled<'_>, ConnectError> {
        let mut state = self.state.lock();
        loop {
            if let Some(place) = self.place(&mut state) {
                drop(state);
                return place.connected(deadline);
            }
            if self.freed.wait_until(&mut state, deadline).timed_out() {
                let place = self.place(&mut state).ok_or(io::Error::from(io::ErrorKind::TimedOut))?;
                drop(state);
                return place.connected(deadline);
            }
        }
    }

    /// As [`Pool::get`], but `None` if all are in use: a caller that holds one connection must not wait for another.
    pub fn try_get(&self, deadline: Instant) -> Option<Result<Pooled<'_>, ConnectError>> {
        let place = self.place(&mut self.state.lock())?;
        Some(place.connected(deadline))
    }

    /// An idle connection that is still there, or leave to open one more.
    fn place(&self, state: &mut PoolState) -> Option<Pooled<'_>> {
        while let Some(Idle { mut connection, generation, .. }) = state.idle.pop() {
            if generation == self.credential.generation() && connection.is_alive() {
                return Some(Pooled { pool: self, connection: Some(connection), generation });
            }
            assert!(state.open > 0, "an idle connection is counted");
            state.open -= 1;
        }
        (state.open < self.connections_max).then(|| {
            state.open += 1;
            assert!(state.idle.is_empty(), "no more are opened while some are idle");
            Pooled { pool: self, connection: None, generation: 0 }
        })
    }

    /// A new connection, and the generation of its token.
    fn open(&self, deadline: Instant) -> Result<(Connection, u64), ConnectError> {
        with_current_token(&self.credential, deadline, |token| self.open_with(token, deadline))
    }

    /// A new connection: by RDMA if that is the endpoint's way, and over TCP where it may be and has to be.
    fn open_with(&self, token: &Token, deadline: Instant) -> Result<Connection, ConnectError> {
        let connect = |endpoint: &Endpoint| {
            let left = deadline.saturating_duration_since(Instant::now());
            let certificates = self.credential.certificates();
            let connection = Connection::connect_with(endpoint, token, certificates, left)?;
            Ok(if self.polls { connection } else { connection.without_polling() })
        };
        let Endpoint::Rdma { address, fabric, may_fall_back } = &self.endpoint else {
            return connect(&self.endpoint);
        };
        if *may_fall_back && fabric.avoids(*address) {
            return connect(&Endpoint::Tcp(*address));
        }
        match connect(&self.endpoint) {
            Err(ConnectError::NoRdma(reason)) if *may_fall_back => {
                fabric.fall_back(*address, &reason);
                connect(&Endpoint::Tcp(*address))
            }
            result => result,
        }
    }

    /// Close all idle connections, when the server is known to have gone.
    pub fn clear(&self) {
        let mut state = self.state.lock();
        assert!(state.open >= state.idle.len(), "idle connections are counted");
        state.open -= state.idle.len();
        let idle = std::mem::take(&mut state.idle);
        drop(state);
        drop(idle);
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        write!(f, "Pool {{ {}, {} open, {} idle }}", self.endpoint, state.open, state.idle.len())
    }
}

/// A connection borrowed from its pool.
#[derive(Debug)]
pub struct Pooled<'a> {
    pool: &'a Pool,
    /// `None` only while connecting and while dropping.
    connection: Option<Connection>,
    /// Of the token that it was opened with.
    generation: u64,
}

impl Pooled<'_> {
    /// Open the connection if there is none yet. If that fails, the drop gives back its count.
    fn connected(mut self, deadline: Instant) -> Result<Self, ConnectError> {
        if self.connection.is_none() {
            let (connection, generation) = self.pool.open(deadline)?;
            (self.connection, self.generation) = (Some(connection), generation);
        }
        Ok(self)
    }
}

impl Deref for Pooled<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection.as_ref().expect("it is there until the drop")
    }
}

impl DerefMut for Pooled<'_> {
    fn deref_mut(&mut self) -> &mut Connection {
        self.connection.as_mut().expect("it is there until the drop")
    }
}

impl Drop for Pooled<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        let mut state = self.pool.state.lock();
        assert!(state.open > state.idle.len(), "a borrowed connection is counted");
        match self.connection.take() {
            Some(connection) if connection.is_usable() => {
                state.idle.push(Idle { connection, since: now, generation: self.generation });
            }
            _ => state.open -= 1,
        }
        assert!(
            state.idle.len() <= state.open && state.open <= self.pool.connections_max,
            "connections are bounded"
        );
        // The least recently used is the first; at most one goes at a time, so this costs nothing.
        let stale = match state.idle.first() {
            Some(first) if now.duration_since(first.since) > IDLE_MAX => {
                state.open -= 1;
                Some(state.idle.remove(0))
            }
            _ => None,
        };
        drop(state);
        self.pool.freed.notify_one();
        drop(stale);
    }
}
