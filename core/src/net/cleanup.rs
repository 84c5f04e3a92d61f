//! Keeps memory out of use while a server that was lost may still touch it (rule N2).
//!
//! A failed batch puts its socket here, closed for sending, with clones of its placements. The server's end of
//! the socket closes when its thread has finished with the batch, or its process has ended; then the kernel
//! reports the end of the stream and the clones are dropped.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use crate::lock::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::RecvFlags;

use crate::buffer::Placement;
use crate::rdma::Remains;

struct LostConnection {
    socket: Arc<OwnedFd>,
    /// Held, never used.
    _memory: Vec<Placement>,
    /// Keeps the number of a queue pair out of use (rule A3).
    _remains: Option<Remains>,
}

struct Cleanup {
    arrivals: Mutex<Vec<LostConnection>>,
    wake: OwnedFd,
}

/// Holds `memory` and `remains` until the peer of `socket` has closed its end. The thread that waits is started when first needed.
pub(super) fn quarantine(socket: Arc<OwnedFd>, memory: Vec<Placement>, remains: Option<Remains>) {
    static CLEANUP: OnceLock<Option<&'static Cleanup>> = OnceLock::new();
    let lost = LostConnection { socket, _memory: memory, _remains: remains };
    match CLEANUP.get_or_init(|| {
        start()
            .inspect_err(|error| {
                log::error!(
                    "starting the cleanup thread failed: {error}; memory of lost connections stays allocated"
                )
            })
            .ok()
    }) {
        Some(cleanup) => {
            cleanup.arrivals.lock().push(lost);
            let _ = rustix::io::write(&cleanup.wake, &1u64.to_ne_bytes());
        }
        // Memory without a watcher is never reused: a leak, not a corruption.
        None => std::mem::forget(lost),
    }
}

fn start() -> io::Result<&'static Cleanup> {
    let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let cleanup: &'static Cleanup = Box::leak(Box::new(Cleanup { arrivals: Mutex::default(), wake }));
    std::thread::Builder::new().name("luciola-cleanup".into()).spawn(|| cleanup.run())?;
    Ok(cleanup)
}

impl Cleanup {
    fn run(&self) {
        let mut waiting: Vec<LostConnection> = Vec::new();
        loop {
            let mut polled = vec![PollFd::new(&self.wake, PollFlags::IN)];
            polled.extend(waiting.iter().map(|lost| PollFd::new(&lost.socket, PollFlags::IN)));
            match rustix::event::poll(&mut polled, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => {
                    log::error!("polling lost connections failed: {error}; retrying in 1 s");
                    std::thread::sleep(std::time::Duration::from_secs(1));
                }
            }
            drop(polled);
            let _ = rustix::io::read(&self.wake, &mut [0u8; 8]);
            waiting.retain(|lost| !has_ended(&lost.socket));
            waiting.append(&mut self.arrivals.lock());
        }
    }
}

/// Throw away what the server still sends; true when it has closed its end.
fn has_ended(socket: &OwnedFd) -> bool {
    let mut scrap = [0u8; 16384];
    loop {
        match rustix::net::recv(socket, &mut scrap, RecvFlags::DONTWAIT) {
            Ok((0, _)) => return true,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return false,
            Err(_) => return true,
        }
    }
}
