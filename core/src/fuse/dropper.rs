//! Answers after the kernel has dropped pages: writes those of what they wrote, attributes those that are older.
//!
//! Threads of their own, started when the first is needed: dropping a page waits for a READ of it, which the threads of
//! the session have to serve meanwhile. An inode has one of them, so a READ that hangs holds up the answers of few others.

use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Sender, unbounded};

use super::file_system::FileSystem;
use super::notify::Notifier;
use super::request::OldPages;
use crate::panics::caught;

/// Files that are open with and without O_DIRECT and are written at the same time are rare.
const THREADS: u64 = 8;

/// A reply that is sent when the kernel has none of the pages.
pub struct Job {
    pub reply: Box<dyn FnOnce() + Send>,
    pub pages: OldPages,
}

/// Ends its threads when it is dropped.
pub struct Dropper {
    /// Of each thread, as many jobs as the kernel has requests under way, at most. `None`: it could not be started.
    jobs: Vec<Option<Sender<Job>>>,
    notifier: Notifier,
}

impl Dropper {
    pub fn start(notifier: &Notifier, fs: &Arc<dyn FileSystem>) -> Dropper {
        let jobs = (0..THREADS).map(|_| start_thread(notifier.clone(), fs.clone())).collect();
        Dropper { jobs, notifier: notifier.clone() }
    }

    pub fn answer_after(&self, job: Job) {
        let unsent = match &self.jobs[(job.pages.inode % THREADS) as usize] {
            Some(jobs) => jobs.send(job).map_err(|unsent| unsent.into_inner()),
            None => Err(job),
        };
        if let Err(job) = unsent {
            // Attributes at least, which takes no page.
            let _ = self.notifier.inval_attributes(job.pages.inode);
            (job.reply)();
        }
    }
}

fn start_thread(notifier: Notifier, fs: Arc<dyn FileSystem>) -> Option<Sender<Job>> {
    let (jobs, received) = unbounded::<Job>();
    // A mistake in there leaves neither this request nor those behind it without an answer.
    let run = move || {
        received.iter().for_each(|Job { reply, pages }| {
            if caught(|| drop_pages(&notifier, &*fs, &pages)).is_none() {
                log::error!("inode {}: invalidating kernel pages panicked", pages.inode);
            }
            reply();
        });
    };
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

fn drop_pages(notifier: &Notifier, fs: &dyn FileSystem, pages: &OldPages) {
    match notifier.inval_inode(pages.inode, pages.offset, pages.length) {
        Ok(()) => pages.number.into_iter().for_each(|number| fs.pages_dropped(pages.inode, number)),
        Err(error) => log::warn!(
            "inode {}: invalidating kernel pages failed: {error}; readers may see old bytes",
            pages.inode
        ),
    }
}
