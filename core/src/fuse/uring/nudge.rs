//! A request of our own by one processor's queue, so that its answer makes the kernel look at what waits there.
//!
//! A process of its own asks. One that serves a mount never waits for it itself: killed while it does, it could not end.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use rustix::thread::{CpuSet, sched_setaffinity};

use super::queue::Queue;
use crate::fuse::shared::SessionShared;

/// Have processes on the queue's processor ask the mount something, which is answered without the file system, until no
/// request waits beside free entries.
pub fn nudge(shared: &Arc<SessionShared>, index: usize) {
    let rings = shared.rings.get().expect("its queue is one of theirs");
    if rings.queues[index].nudging.swap(true, Ordering::AcqRel) {
        return;
    }
    let started = thread::Builder::new().name("fuse-nudge".into()).spawn({
        let shared = shared.clone();
        move || {
            let queue = &shared.rings.get().expect("as above").queues[index];
            while queue.is_unswept() && !queue.is_busy() {
                if let Err(error) = ask(&shared, queue) {
                    log::warn!(
                        "processor {}: asking for requests that wait failed: {error}; they wait for the next answer",
                        queue.number
                    );
                    queue.give_up();
                }
            }
            queue.nudging.store(false, Ordering::Release);
        }
    });
    if started.is_err() {
        rings.queues[index].nudging.store(false, Ordering::Release);
    }
}

fn ask(shared: &SessionShared, queue: &Queue) -> std::io::Result<()> {
    let mut processor = CpuSet::new();
    processor.set(usize::from(queue.number));
    // The child inherits it.
    sched_setaffinity(None, &processor)?;
    let mut command = Command::new("stat");
    command.args(["--file-system", "--"]).arg(&shared.mounted.mountpoint);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status().map(|_| ())
}

/// Whether thread `pid` belongs to a child of this process.
pub fn is_ours(pid: u32) -> bool {
    let parent = || {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
    };
    pid != 0 && parent() == Some(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_ours_and_others_are_not() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let found = is_ours(child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found);
        assert!(!is_ours(std::process::id()) && !is_ours(0) && !is_ours(u32::MAX));
    }
}
