//! Answers writes after the kernel has dropped its pages of what they wrote.
//!
//! A thread of its own, started when it is first needed: dropping a page waits for a READ of it, which the threads of the
//! session have to serve meanwhile.

use std::thread;

use crossbeam_channel::{Sender, unbounded};

use super::device::Device;
use super::notify::Notifier;

/// The answer to a request.
pub struct Reply {
    pub device: Device,
    pub unique: u64,
    pub value: Vec<u8>,
}

struct Job {
    reply: Reply,
    inode: u64,
    offset: u64,
    length: u64,
}

/// Ends its thread when it is dropped.
pub struct Dropper {
    /// As many jobs as the kernel has requests under way, at most.
    jobs: Option<Sender<Job>>,
    notifier: Notifier,
}

impl Dropper {
    pub fn start(notifier: Notifier) -> Dropper {
        let (jobs, received) = unbounded::<Job>();
        let dropping = notifier.clone();
        let started = thread::Builder::new().name("fuse-drop".into()).spawn(move || {
            received.iter().for_each(|job| carry_out(&dropping, &job));
        });
        if let Err(error) = &started {
            log::warn!("no thread to drop pages of the kernel: writes are answered without: {error}");
        }
        Dropper { jobs: started.is_ok().then_some(jobs), notifier }
    }

    /// Sends `reply` when the kernel has no page of the range that is older.
    pub fn answer_after(&self, reply: Reply, inode: u64, offset: u64, length: u64) {
        let job = Job { reply, inode, offset, length };
        let unsent = match &self.jobs {
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

fn carry_out(notifier: &Notifier, job: &Job) {
    if let Err(error) = notifier.inval_inode(job.inode, job.offset, job.length) {
        log::warn!("inode {}: the kernel keeps old pages: {error}", job.inode);
    }
    job.reply.device.reply(job.reply.unique, None, &job.reply.value, &[]);
}
