//! A request of our own by one processor's queue, so that its answer makes the kernel look at what waits there.
//!
//! A process of its own asks. One that serves a mount never waits for it itself: killed while it does, it could not end.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;

use rustix::thread::{CpuSet, sched_setaffinity};

use super::queue::RingQueue;
use crate::fuse::shared::SessionShared;

/// Most threads that ask by one queue. One is enough, unless its request waits itself, because a program's took the entry
/// that was free for it; then the next one's answer lets it continue.
const NUDGES_MAX: usize = 8;

/// Have processes on the queue's processor ask the mount something, which is answered without the file system, until no
/// request waits beside free entries.
pub fn nudge(shared: &Arc<SessionShared>, index: usize) {
    let rings = shared.rings.as_ref().expect("its queue is one of theirs");
    let nudging = &rings.queues[index].nudging;
    if nudging.fetch_add(1, Ordering::AcqRel) >= NUDGES_MAX {
        nudging.fetch_sub(1, Ordering::AcqRel);
        return;
    }
    let started = thread::Builder::new().name("fuse-nudge".into()).spawn({
        let shared = shared.clone();
        move || {
            let queue = &shared.rings.as_ref().expect("as above").queues[index];
            while queue.is_unswept() && !queue.is_busy() && !shared.life.lock().ended {
                let before = queue.arrived();
                let asked = ask(&shared, queue);
                // Something else may be mounted on the mountpoint.
                if asked.is_err() || queue.arrived() == before {
                    log::warn!(
                        "processor {}: asking for requests that wait reached no ring ({asked:?}); they wait for the next \
                         answer",
                        queue.number
                    );
                    queue.give_up();
                }
            }
            queue.nudging.fetch_sub(1, Ordering::AcqRel);
        }
    });
    if started.is_err() {
        nudging.fetch_sub(1, Ordering::AcqRel);
    }
}

fn ask(shared: &SessionShared, queue: &RingQueue) -> std::io::Result<()> {
    let mut processor = CpuSet::new();
    processor.set(usize::from(queue.number));
    // The child inherits it.
    sched_setaffinity(None, &processor)?;
    let mut command = Command::new("stat");
    command.args(["-f", "--"]).arg(&shared.mounted.mountpoint);
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
