//! Rings that the kernel refuses, at the start of a session and later. Need root, /dev/fuse and Linux 6.14, else the tests
//! say so and pass.

use std::ops::Range;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::allowed::has_io_uring;
use super::channel::Channel;
use super::*;
use crate::fuse::options::{IoUring, SessionOptions};
use crate::fuse::request::tests::Empty;
use crate::fuse::session::Session;

#[path = "../../../tests/rings/mod.rs"]
mod allowed_for_tests;

const LIMIT: Duration = Duration::from_secs(100);

fn can_be_tried() -> bool {
    let can = rustix::process::geteuid().is_root() && Path::new("/dev/fuse").exists();
    can && allowed_for_tests::can_be_allowed(has_io_uring())
}

fn until(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + LIMIT;
    while Instant::now() < deadline {
        if condition() {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}

/// Serve a mount whose registrations of those numbers are refused, do `work` with it, and end it: how the session ended, and
/// what `work` found. io_uring stays allowed meanwhile: after a refusal the kernel looks at the parameter again.
fn served<R>(
    io_uring: IoUring,
    refused: Range<usize>,
    work: impl FnOnce(&Arc<SessionShared>, &Path) -> R,
) -> (io::Result<()>, R) {
    let directory = tempfile::tempdir().unwrap();
    let options = SessionOptions { mountpoint: directory.path().to_owned(), io_uring, ..Default::default() };
    allowed_for_tests::with_rings_allowed(|| {
        let session = Session::mount(Arc::new(Empty), options).unwrap();
        let (handle, shared) = (session.handle(), session.shared().clone());
        *shared.rings.as_ref().unwrap().refused.lock() = refused;
        let serving = thread::spawn(move || session.run());
        let found = caught(|| work(&shared, directory.path()));
        let _ = handle.abort();
        let ended = serving.join().unwrap();
        (ended, found.expect("the work found something"))
    })
}

fn channel(shared: &SessionShared) -> Channel {
    assert!(until(|| shared.channel.get().is_some()), "the session decides");
    shared.channel.get().unwrap().clone()
}

fn answers(place: &Path) -> bool {
    rustix::fs::statfs(place).is_ok()
}

#[test]
fn session_whose_first_rings_are_refused_continues_with_the_device() {
    if !can_be_tried() {
        return;
    }
    let (ended, ()) = served(IoUring::Auto, 0..usize::MAX, |shared, place| {
        assert!(answers(place));
        assert!(matches!(channel(shared), Channel::Device(reason) if reason.contains("refused")));
        assert!(answers(place));
        // As some ticks later: an entry that the kernel takes would have requests come by rings again.
        let rings = shared.rings.as_ref().unwrap();
        let started = rings.numbers.load(Ordering::SeqCst);
        rings.watched.lock().iter_mut().for_each(|watched| watched.since -= TICK);
        shared.look_at_rings();
        assert_eq!(rings.numbers.load(Ordering::SeqCst), started, "no ring is tried again");
        assert!(until(|| !shared.needs_watch()), "the watcher sleeps");
    });
    ended.unwrap();
}

#[test]
fn session_that_insists_on_rings_ends_without_them() {
    if !can_be_tried() {
        return;
    }
    let (ended, ()) = served(IoUring::Always, 0..usize::MAX, |shared, _| {
        assert!(until(|| shared.life.lock().ended), "it ends by itself");
    });
    assert!(ended.unwrap_err().to_string().contains("io_uring"));
}

#[test]
fn one_entry_of_a_queue_is_enough() {
    if !can_be_tried() {
        return;
    }
    let (ended, ()) = served(IoUring::Auto, 0..1, |shared, place| {
        assert_eq!(channel(shared), Channel::IoUring);
        (0..100).for_each(|_| assert!(answers(place)));
    });
    ended.unwrap();
}

#[test]
fn further_ring_that_is_refused_costs_nothing_and_is_tried_again() {
    if !can_be_tried() {
        return;
    }
    let (ended, ()) = served(IoUring::Auto, 0..0, |shared, place| {
        assert_eq!(channel(shared), Channel::IoUring);
        let rings = shared.rings.as_ref().unwrap();
        let queue = &rings.queues[0];
        let first = rings.registrations.load(Ordering::SeqCst);
        *rings.refused.lock() = first..first + 1;
        for number in 1..=2 {
            shared.add_ring_thread(0);
            assert!(until(|| rings.registrations.load(Ordering::SeqCst) == first + number));
        }
        assert!(until(|| queue.threads.load(Ordering::SeqCst) == THREADS_FIRST + 1), "one of two stays");
        (0..100).for_each(|_| assert!(answers(place)));
        assert!(!shared.life.lock().ended);
    });
    ended.unwrap();
}

#[test]
fn request_that_waits_beside_free_entries_is_found() {
    if !can_be_tried() {
        return;
    }
    let (ended, ()) = served(IoUring::Auto, 0..0, |shared, place| {
        assert_eq!(channel(shared), Channel::IoUring);
        let queue = &shared.rings.as_ref().unwrap().queues[0];
        on_first_processor(|| {
            assert!(until(|| answers(place) && queue.arrived() > 0 && !queue.is_unswept()))
        });
        let before = queue.arrived();
        // As after a registration beside requests, without an answer that would end it.
        queue.begin_register();
        queue.end_register(true);
        shared.watch.wake();
        assert!(until(|| !queue.is_unswept()), "an answer found that none waits");
        assert!(queue.arrived() > before, "it was to a request of our own");
        // There is no such entry.
        queue.end_register(false);
    });
    ended.unwrap();
}

#[test]
fn asking_for_requests_that_wait_ends_where_no_question_reaches_the_mount() {
    if !can_be_tried() {
        return;
    }
    let (ended, ()) = served(IoUring::Auto, 0..0, |shared, place| {
        assert_eq!(channel(shared), Channel::IoUring);
        let queue = &shared.rings.as_ref().unwrap().queues[0];
        on_first_processor(|| {
            assert!(until(|| answers(place) && queue.arrived() > 0 && !queue.is_unswept()))
        });
        let run = |program: &str, arguments: &[&str]| {
            assert!(Command::new(program).args(arguments).arg(place).status().unwrap().success());
        };
        run("mount", &["-t", "tmpfs", "over"]);
        queue.begin_register();
        queue.end_register(true);
        shared.watch.wake();
        let gave_up = until(|| !queue.is_unswept() && queue.nudging.load(Ordering::SeqCst) == 0);
        run("umount", &[]);
        queue.end_register(false);
        assert!(gave_up, "one question is enough");
    });
    ended.unwrap();
}

fn on_first_processor(work: impl FnOnce() + Send) {
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut first = rustix::thread::CpuSet::new();
            first.set(0);
            rustix::thread::sched_setaffinity(None, &first).unwrap();
            work();
        });
    });
}
