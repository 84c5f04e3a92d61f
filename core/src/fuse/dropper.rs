//! Answers after the kernel has dropped pages: writes those of what they wrote, attributes those that are older.
//!
//! Threads of their own, started when the first is needed: dropping a page waits for a READ of it, which the threads of
//! the session have to serve meanwhile. An inode has one of them, so a READ that hangs holds up the answers of few others.

use std::thread;

use crossbeam_channel::{Sender, unbounded};

use super::device::FuseDevice;
use super::notify::Notifier;

/// Files that are open with and without O_DIRECT and are written at the same time are rare.
const THREADS: u64 = 8;

/// The answer to a request.
pub struct Reply {
    pub device: FuseDevice,
    pub unique: u64,
    pub value: Vec<u8>,
}

struct Job {
    reply: Reply,
    inode: u64,
    offset: u64,
    length: u64,
}

/// Ends its threads when it is dropped.
pub struct Dropper {
    /// Of each thread, as many jobs as the kernel has requests under way, at most. `None`: it could not be started.
    jobs: Vec<Option<Sender<Job>>>,
    notifier: Notifier,
}

impl Dropper {
    pub fn start(notifier: Notifier) -> Dropper {
        let jobs = (0..THREADS).map(|_| start_thread(notifier.clone())).collect();
        Dropper { jobs, notifier }
    }

    /// Send `reply` when the kernel has no page of the range that is older.
    pub fn answer_after(&self, reply: Reply, inode: u64, offset: u64, length: u64) {
        let job = Job { reply, inode, offset, length };
        let unsent = match &self.jobs[(inode % THREADS) as usize] {
            Some(jobs) => jobs.send(job).map_err(|unsent| unsent.into_inner()),
            None => Err(job),
        };
        if let Err(job) = unsent {
            // Attributes at least, which takes no page.
            let _ = self.notifier.inval_attributes(job.inode);
            job.reply.device.reply(job.reply.unique, None, &job.reply.value, &[]);
        }
    }
}

fn start_thread(notifier: Notifier) -> Option<Sender<Job>> {
    let (jobs, received) = unbounded::<Job>();
    let run = move || received.iter().for_each(|job| carry_out(&notifier, &job));
    match thread::Builder::new().name("fuse-drop".into()).spawn(run) {
        Ok(_) => Some(jobs),
        Err(error) => {
            log::warn!(
                "starting the thread that invalidates kernel pages failed: {error}; the kernel keeps old ones"
            );
            None
        }
    }
}

fn carry_out(notifier: &Notifier, job: &Job) {
    if let Err(error) = notifier.inval_inode(job.inode, job.offset, job.length) {
        log::warn!(
            "inode {}: invalidating kernel pages failed: {error}; readers may see old bytes",
            job.inode
        );
    }
    job.reply.device.reply(job.reply.unique, None, &job.reply.value, &[]);
}
